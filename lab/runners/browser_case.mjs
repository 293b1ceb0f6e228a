// A case goes in, and a provider of onnxruntime-web; headless Chromium's answer comes out:
//
//   node browser_case.mjs CASE ANSWER PROVIDER PACKAGES CHROMIUM [ARGUMENT ...]
//
// PROVIDER is webgpu or wasm; PACKAGES the folder node_modules. Nothing may fall back to another.

import fs from 'node:fs';
import http from 'node:http';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const [folder, answered, provider, packages, chromium, ...browserArguments] = process.argv.slice(2);
const FOLDERS = {
  case: folder,
  packages,
  runners: path.dirname(fileURLToPath(import.meta.url)),
};
const TYPES = {
  '.html': 'text/html',
  '.mjs': 'text/javascript',
  '.json': 'application/json',
  '.wasm': 'application/wasm',
};

function serve(request, response) {
  const { pathname } = new URL(request.url, 'http://localhost');
  const [, where, ...rest] = decodeURIComponent(pathname).split('/');
  if (request.method === 'POST' && where === 'answer' && /^output\d+\.bin$/.test(rest[0])) {
    const file = fs.createWriteStream(path.join(answered, rest[0]));
    request.pipe(file).on('finish', () => response.writeHead(204).end());
    return;
  }
  const file = path.join(FOLDERS[where] ?? '', ...rest);
  if (!FOLDERS[where] || rest.includes('..') || !fs.existsSync(file)) {
    response.writeHead(404).end();
    return;
  }
  const type = TYPES[path.extname(file)] ?? 'application/octet-stream';
  response.writeHead(200, { 'content-type': type, 'content-length': fs.statSync(file).size });
  fs.createReadStream(file).pipe(response);
}

/** The log of a session counts each provider's nodes; it names none where all are in one place. */
function placed(log) {
  const nodes = {};
  for (const text of log) {
    for (const [, provider, count] of text.matchAll(/placed on \[(\w+)\]\. Number of nodes: (\d+)/g)) {
      nodes[provider] = Array(Number(count)).fill('node');
    }
  }
  return nodes;
}

async function answer(port) {
  const { chromium: launcher } = createRequire(path.join(packages, 'any.js'))('playwright-core');
  const log = [];
  const browser = await launcher.launch({
    executablePath: chromium,
    headless: true,
    args: ['--no-sandbox', '--no-first-run', '--disable-background-networking', ...browserArguments],
  });
  try {
    const page = await browser.newPage();
    page.on('console', (message) => log.push(message.text()));
    page.on('pageerror', (error) => log.push(String(error)));
    await page.goto(`http://127.0.0.1:${port}/runners/page.html`);
    await page.waitForFunction('window.answer !== undefined', null, { timeout: 30000 });
    const told = await page.evaluate((name) => window.answer(name), provider);
    return { ...told, nodes: placed(log) };
  } finally {
    await browser.close();
  }
}

const server = http.createServer(serve).listen(0, '127.0.0.1');
await new Promise((resolve) => server.once('listening', resolve));
let told;
try {
  told = await answer(server.address().port);
} catch (error) {
  told = { error: String(error?.message ?? error) };
}
fs.writeFileSync(path.join(answered, 'answer.json'), JSON.stringify(told));
process.exit(0);
