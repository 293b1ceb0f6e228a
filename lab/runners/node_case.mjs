// A case goes in, and a provider of onnxruntime-node; its answer comes out, on Linux and Windows:
//
//   node node_case.mjs PACKAGES ANSWER CASE PROVIDER
//
// PACKAGES is the folder node_modules; PROVIDER cpu, webgpu or dml. Nothing may fall back to another.

import fs from 'node:fs';
import path from 'node:path';
import { answerWith, load, placed, profiled, writer } from './node.mjs';
import { readInputs, STRICT, writeOutputs } from './tensors.mjs';

const [packages, answered, folder, provider] = process.argv.slice(2);

function readBytes(file) {
  const { buffer, byteOffset, byteLength } = fs.readFileSync(path.join(folder, file));
  return buffer.slice(byteOffset, byteOffset + byteLength);
}

await answerWith(answered, async () => {
  const ort = load(packages, 'onnxruntime-node');
  const told = JSON.parse(fs.readFileSync(path.join(folder, 'case.json'), 'utf8'));
  const feed = await readInputs(ort, told.inputs, readBytes);
  const opening = performance.now();
  const session = await ort.InferenceSession.create(path.join(folder, told.model), {
    executionProviders: [provider],
    logSeverityLevel: 4,
    ...profiled(answered, 'case'),
    // DirectML takes neither memory patterns nor parallel execution.
    enableMemPattern: provider !== 'dml',
    executionMode: 'sequential',
    extra: provider === 'cpu' ? {} : STRICT,
  });
  const running = performance.now();
  const found = await session.run(feed);
  const done = performance.now();
  session.endProfiling();
  return {
    outputs: await writeOutputs(session.outputNames, found, writer(answered)),
    nodes: placed(answered),
    measured: { open_seconds: (running - opening) / 1000, run_seconds: (done - running) / 1000 },
  };
});
