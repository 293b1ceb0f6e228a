// Calls of the JavaScript driver go in as JSON, and what comes of them goes out:
//
//   node drive.mjs DRIVER PACKAGES  <  {"source": …, "options": {…}, "calls": [["prefill", [[1, 2]]], …]}
//
// `calls` are methods, or properties, of a Session. {"parse": [text, …]} parses manifests instead.

import { createRequire } from 'node:module';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { pathToFileURL } from 'node:url';

const [driver, packages] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(path.join(driver, name)));
const { Session, EdgewrightError, fromFolder, fromUrl } = await load('edgewright.mjs');
const { parseManifest } = await load('manifest.mjs');

const plain = (value) => (ArrayBuffer.isView(value) ? Array.from(value) : (value ?? null));

async function attempt(call) {
  try {
    return { value: plain(await call()) };
  } catch (error) {
    if (!(error instanceof EdgewrightError)) throw error;
    return { error: error.name, message: error.message };
  }
}

async function drive({ source, options: { onnxruntime = 'onnxruntime-node', ...options }, calls }) {
  const ort = createRequire(path.join(packages, 'any.js'))(onnxruntime);
  const from = source.startsWith('http') ? fromUrl(source) : fromFolder(source);
  let session;
  const answers = [
    await attempt(async () => void (session = await Session.open(from, { ort, ...options }))),
  ];
  for (const [name, words = []] of session ? calls : []) {
    const told = [];
    if (name === 'generate')
      words[1] = {
        ...words[1],
        onToken: (token) => told.push(token) < (words[1]?.most ?? Infinity),
      };
    const answer = await attempt(() =>
      typeof session[name] === 'function' ? session[name](...words) : session[name],
    );
    answers.push(name === 'generate' ? { ...answer, told } : answer);
  }
  return answers;
}

const request = JSON.parse(await text(process.stdin));
const parse = (manifest) =>
  attempt(() => void parseManifest(Buffer.from(manifest), 'manifest.json'));
const answers = request.parse ? await Promise.all(request.parse.map(parse)) : await drive(request);
process.stdout.write(JSON.stringify(answers), () => process.exit(0));
