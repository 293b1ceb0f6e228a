// What the runners of Node share: ONNX Runtime, where each node ran, and the answer's file.

import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const PROFILE = 'profile';

/** `packages` is the folder node_modules. */
export function load(packages, name) {
  return createRequire(path.join(packages, 'any.js'))(name);
}

/** Options of a session whose nodes `placed` is to tell; `part` tells one session from another. */
export function profiled(answered, part) {
  return { enableProfiling: true, profileFilePrefix: path.join(answered, `${PROFILE}-${part}`) };
}

/** Every node that ran, by provider, once however often it ran. */
export function placed(answered) {
  const nodes = {};
  for (const name of fs.readdirSync(answered).filter((each) => each.startsWith(PROFILE))) {
    const seen = new Set();
    for (const event of JSON.parse(fs.readFileSync(path.join(answered, name), 'utf8'))) {
      const node = `${event.name} ${event.args?.node_index}`;
      if (event.cat !== 'Node' || !event.args.provider || seen.has(node)) continue;
      seen.add(node);
      (nodes[event.args.provider] ??= []).push(event.args.op_name);
    }
  }
  return nodes;
}

/** Into the folder of the answer. */
export function writer(answered) {
  return (file, bytes) => fs.writeFileSync(path.join(answered, file), bytes);
}

/** What `make` answers, or why it does not; the process ends. */
export async function answerWith(answered, make) {
  let told;
  try {
    told = await make();
  } catch (error) {
    // Of a page's error, the message has the stack, too.
    told = { error: String(error?.message ?? error).split('\n    at ')[0] };
  }
  writer(answered)('answer.json', JSON.stringify(told));
  // Threads of the provider's own would keep the process.
  process.exit(0);
}
