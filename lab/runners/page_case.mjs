// In the browser: one case.

import { readInputs, STRICT, writeOutputs } from './tensors.mjs';

const read = async (file) => (await fetch(`/case/${file}`)).arrayBuffer();

export async function answer(ort, write, provider) {
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
  const measured = {
    open_seconds: (running - opening) / 1000,
    run_seconds: (done - running) / 1000,
  };
  return { outputs, measured };
}
