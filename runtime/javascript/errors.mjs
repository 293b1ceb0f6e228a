// The ways a package or a call can be wrong, each told in one line.

const MESSAGE_LIMIT = 400;

export class EdgewrightError extends Error {
  get name() {
    return this.constructor.name;
  }
}

/** The package is not what it says, or not what this runtime reads. */
export class PackageError extends EdgewrightError {}

/** The package is right, but what was asked of it cannot be done. */
export class SessionError extends EdgewrightError {}

/** ONNX Runtime's messages run over many lines; its WebAssembly also throws bare numbers. */
export function oneLine(error) {
  const text = String(error?.message ?? error)
    .replace(/\s+/g, ' ')
    .trim();
  return text.length <= MESSAGE_LIMIT ? text : `${text.slice(0, MESSAGE_LIMIT - 1)}…`;
}

/** Untrusted text as a message may show it. */
export function shown(value) {
  if (typeof value === 'object' && value !== null)
    return Array.isArray(value) ? 'a list' : 'an object';
  const text = JSON.stringify(value) ?? String(value);
  return text.length <= 60 ? text : `${text.slice(0, 56)}…${text.at(-1)}`;
}
