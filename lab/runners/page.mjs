// In the browser: /runners/page_<kind>.mjs fetches what it runs, and sends back what comes of it.

import * as ort from '/packages/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs';

ort.env.wasm.wasmPaths = '/packages/onnxruntime-web/dist/';
ort.env.wasm.numThreads = 1;
// The placement of the nodes is only in the log.
ort.env.logLevel = 'verbose';

const write = async (file, bytes) => {
  const kept = await fetch(`/answer/${file}`, { method: 'POST', body: bytes });
  if (!kept.ok) throw new Error(`${file} could not be kept`);
};

window.answer = async (kind, ...words) => {
  const { answer } = await import(`/runners/page_${kind}.mjs`);
  return answer(ort, write, ...words);
};
