// In the browser: the case is fetched from the runner, and what comes of it is sent back there.

import * as ort from '/packages/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs';
import { readInputs, STRICT, writeOutputs } from '/runners/tensors.mjs';

ort.env.wasm.wasmPaths = '/packages/onnxruntime-web/dist/';
ort.env.wasm.numThreads = 1;
// The placement of the nodes is only in the log.
ort.env.logLevel = 'verbose';

const read = async (file) => (await fetch(`/case/${file}`)).arrayBuffer();

const write = async (file, bytes) => {
  const kept = await fetch(`/answer/${file}`, { method: 'POST', body: bytes });
  if (!kept.ok) throw new Error(`${file} could not be kept`);
};

window.answer = async (provider) => {
  const told = await (await fetch('/case/case.json')).json();
  const feed = await readInputs(ort, told.inputs, read);
  const opening = performance.now();
  const session = await ort.InferenceSession.create(`/case/${told.model}`, {
    executionProviders: [provider],
    externalData: told.external.map((name) => ({ path: name, data: `/case/${name}` })),
    logSeverityLevel: 0,
    extra: provider === 'wasm' ? {} : STRICT,
  });
  const running = performance.now();
  const found = await session.run(feed);
  const outputs = await writeOutputs(session.outputNames, found, write);
  const done = performance.now();
  const measured = { open_seconds: (running - opening) / 1000, run_seconds: (done - running) / 1000 };
  return { outputs, measured };
};
