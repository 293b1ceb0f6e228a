// A package goes in, and one of its providers; what onnxruntime-web answers in headless Chromium
// comes out:
//
//   node browser_package.mjs PACKAGES ANSWER PACKAGE PROVIDER IDS PROMPT DRIVER CHROMIUM [ARGUMENT ...]
//
// The words are those of node_package.mjs.

import { answerInBrowser } from './browser.mjs';

const [packages, answered, folder, provider, ids, prompt, driver, ...browser] =
  process.argv.slice(2);
const folders = { package: folder, driver };
const words = [provider, ids, prompt];
await answerInBrowser({ packages, answered, folders, browser, kind: 'package', words });
