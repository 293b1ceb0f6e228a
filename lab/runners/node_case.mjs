// A case goes in, and a provider of onnxruntime-node; its answer comes out, on Linux and Windows:
//
//   node node_case.mjs CASE ANSWER PROVIDER PACKAGES
//
// PROVIDER is cpu, webgpu or dml; PACKAGES the folder node_modules. Nothing may fall back to another.

import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { readInputs, STRICT, writeOutputs } from './tensors.mjs';

const [folder, answered, provider, packages] = process.argv.slice(2);

function ran(prefix) {
  const nodes = {};
  const profile = fs.readdirSync(answered).find((name) => name.startsWith(prefix));
  for (const event of JSON.parse(fs.readFileSync(path.join(answered, profile), 'utf8'))) {
    if (event.cat === 'Node' && event.args.provider) {
      (nodes[event.args.provider] ??= []).push(event.args.op_name);
    }
  }
  return nodes;
}

function readBytes(file) {
  const { buffer, byteOffset, byteLength } = fs.readFileSync(path.join(folder, file));
  return buffer.slice(byteOffset, byteOffset + byteLength);
}

async function answer() {
  const ort = createRequire(path.join(packages, 'any.js'))('onnxruntime-node');
  const told = JSON.parse(fs.readFileSync(path.join(folder, 'case.json'), 'utf8'));
  const feed = await readInputs(ort, told.inputs, readBytes);
  const opening = performance.now();
  const session = await ort.InferenceSession.create(path.join(folder, told.model), {
    executionProviders: [provider],
    logSeverityLevel: 4,
    enableProfiling: true,
    profileFilePrefix: path.join(answered, 'profile'),
    // DirectML takes neither memory patterns nor parallel execution.
    enableMemPattern: provider !== 'dml',
    executionMode: 'sequential',
    extra: provider === 'cpu' ? {} : STRICT,
  });
  const running = performance.now();
  const found = await session.run(feed);
  const done = performance.now();
  session.endProfiling();
  const write = (file, bytes) => fs.writeFileSync(path.join(answered, file), bytes);
  return {
    outputs: await writeOutputs(session.outputNames, found, write),
    nodes: ran('profile'),
    measured: { open_seconds: (running - opening) / 1000, run_seconds: (done - running) / 1000 },
  };
}

let told;
try {
  told = await answer();
} catch (error) {
  told = { error: String(error?.message ?? error) };
}
fs.writeFileSync(path.join(answered, 'answer.json'), JSON.stringify(told));
// Threads of the provider's own would keep the process.
process.exit(0);
