// Runs an Edgewright package in a browser, in Node and in Node for Windows, from its manifest alone:
// token ids go in, logits and token ids come out. ONNX Runtime is the caller's.

import { Site } from './site.mjs';

export { EdgewrightError, PackageError, SessionError } from './errors.mjs';
export { ORDER } from './providers.mjs';
export { Session } from './session.mjs';

/** A package on this machine, for Node. */
export async function fromFolder(folder) {
  const { Folder } = await import('./folder.mjs');
  return new Folder(folder);
}

/** A package at an address; `fetch` may bring credentials, or a cache. */
export function fromUrl(url, { fetch = globalThis.fetch } = {}) {
  return new Site(url, (address) => fetch(address));
}
