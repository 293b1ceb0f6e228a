// A case goes in, and a provider of onnxruntime-web; headless Chromium's answer comes out:
//
//   node browser_case.mjs PACKAGES ANSWER CASE PROVIDER CHROMIUM [ARGUMENT ...]
//
// PACKAGES is the folder node_modules; PROVIDER webgpu or wasm. Nothing may fall back to another.

import { answerInBrowser } from './browser.mjs';

const [packages, answered, folder, provider, ...browser] = process.argv.slice(2);
const folders = { case: folder };
await answerInBrowser({ packages, answered, folders, browser, kind: 'case', words: [provider] });
