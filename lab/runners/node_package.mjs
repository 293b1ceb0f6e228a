// A package goes in, and one of its providers; what onnxruntime-node answers comes out:
//
//   node node_package.mjs PACKAGES ANSWER PACKAGE PROVIDER IDS PROMPT DRIVER
//
// PACKAGES is the folder node_modules; PROVIDER as in the manifest. DRIVER is the folder of our own
// modules; IDS and PROMPT are as package_run.mjs has them.

import { pathToFileURL } from 'node:url';
import { answerWith, load, placed, profiled, writer } from './node.mjs';
import { runPackage } from './package_run.mjs';

const [packages, answered, folder, provider, ids, prompt, driver] = process.argv.slice(2);

await answerWith(answered, async () => {
  const ort = load(packages, 'onnxruntime-node');
  const { fromFolder, Session } = await import(pathToFileURL(`${driver}/edgewright.mjs`));
  const open = () =>
    Session.open(fromFolder(folder), {
      ort,
      provider,
      sessionOptions: (role) => profiled(answered, role),
    });
  const { session, ...told } = await runPackage(ort, open, ids, prompt, writer(answered));
  for (const graph of Object.values(session.graphs)) graph.endProfiling();
  return { ...told, nodes: placed(answered) };
});
