// What Node and a browser make of a package: `open` gives a session of our driver, and the answer has
//
//   logits [n, vocabulary]   after the first PROMPT of the IDS, read as one prompt, and after each of
//                            the others, read alone
//   tokens [n]               what is chosen after that prompt when each choice is the likeliest token
//
// IDS are numbers with commas between them.

import { writeOutputs } from './tensors.mjs';

export async function runPackage(ort, open, ids, prompt, write) {
  const numbers = ids.split(',').map(Number);
  const [first, others] = [numbers.slice(0, Number(prompt)), numbers.slice(Number(prompt))];
  const opening = performance.now();
  const session = await open();
  const running = performance.now();
  const rows = [await session.prefill(first)];
  for (const token of others) rows.push(await session.decode(token));
  const tokens = await session.generate(first, { maxNewTokens: rows.length, stopIds: [] });
  const done = performance.now();
  const logits = new Float32Array(rows.length * session.vocabSize);
  for (const [index, row] of rows.entries()) logits.set(row, index * session.vocabSize);
  const found = {
    logits: new ort.Tensor('float32', logits, [rows.length, session.vocabSize]),
    tokens: new ort.Tensor('int32', Int32Array.from(tokens), [tokens.length]),
  };
  return {
    session,
    outputs: await writeOutputs(Object.keys(found), found, write),
    measured: { open_seconds: (running - opening) / 1000, run_seconds: (done - running) / 1000 },
  };
}
