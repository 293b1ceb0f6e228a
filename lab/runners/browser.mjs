// Headless Chromium for the runners: a page of ours in it answers, and reads the folders it needs.

import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { answerWith, load } from './node.mjs';

const TYPES = {
  '.html': 'text/html',
  '.mjs': 'text/javascript',
  '.json': 'application/json',
  '.wasm': 'application/wasm',
};

/**
 * What /runners/page_<kind>.mjs answers to the words. `folders` are served below their names;
 * `browser` is the program of Chromium, and its arguments.
 */
export async function answerInBrowser({ packages, answered, folders, browser, kind, words }) {
  const served = { ...folders, packages, runners: path.dirname(fileURLToPath(import.meta.url)) };
  await answerWith(answered, async () => {
    const handle = (request, response) => serve(served, answered, request, response);
    const server = http.createServer(handle).listen(0, '127.0.0.1');
    await new Promise((resolve) => server.once('listening', resolve));
    return ask(load(packages, 'playwright-core').chromium, browser, server.address().port, [
      kind,
      ...words,
    ]);
  });
}

function serve(folders, answered, request, response) {
  const { pathname } = new URL(request.url, 'http://localhost');
  const [, where, ...rest] = decodeURIComponent(pathname).split('/');
  if (request.method === 'POST' && where === 'answer' && /^output\d+\.bin$/.test(rest[0])) {
    const file = fs.createWriteStream(path.join(answered, rest[0]));
    request.pipe(file).on('finish', () => response.writeHead(204).end());
    return;
  }
  const file = path.join(folders[where] ?? '', ...rest);
  if (!folders[where] || rest.includes('..') || !fs.existsSync(file)) {
    response.writeHead(404).end();
    return;
  }
  const type = TYPES[path.extname(file)] ?? 'application/octet-stream';
  response.writeHead(200, { 'content-type': type, 'content-length': fs.statSync(file).size });
  fs.createReadStream(file).pipe(response);
}

async function ask(launcher, [program, ...options], port, words) {
  const log = [];
  const browser = await launcher.launch({
    executablePath: program,
    headless: true,
    args: ['--no-sandbox', '--no-first-run', '--disable-background-networking', ...options],
  });
  try {
    const page = await browser.newPage();
    page.on('console', (message) => log.push(message.text()));
    page.on('pageerror', (error) => log.push(String(error)));
    await page.goto(`http://127.0.0.1:${port}/runners/page.html`);
    await page.waitForFunction('window.answer !== undefined', null, { timeout: 30000 });
    const told = await page.evaluate((given) => window.answer(...given), words);
    return { ...told, nodes: placed(log) };
  } finally {
    await browser.close();
  }
}

/** The log of a session counts each provider's nodes; it names none where all are in one place. */
function placed(log) {
  const nodes = {};
  for (const text of log) {
    for (const [, provider, count] of text.matchAll(
      /placed on \[(\w+)\]\. Number of nodes: (\d+)/g,
    )) {
      (nodes[provider] ??= []).push(...Array(Number(count)).fill('node'));
    }
  }
  return nodes;
}
