// An address as a package's source: the files lie below it as they do in the package's folder.

import { oneLine, PackageError, SessionError } from './errors.mjs';

export class Site {
  #fetch;

  constructor(url, fetch) {
    const base = globalThis.document?.baseURI ?? globalThis.location?.href;
    this.name = new URL(`${String(url).replace(/\/+$/, '')}/`, base).href;
    this.#fetch = fetch;
  }

  /** A whole file, which has at most so many bytes: no more are taken in. */
  async read(file, limitBytes) {
    const pieces = [];
    let total = 0;
    for await (const piece of this.#pieces(file)) {
      total += piece.length;
      if (total > limitBytes) {
        throw new PackageError(
          `${this.name}: ${file} has more than the ${limitBytes} bytes that are allowed`,
        );
      }
      pieces.push(piece);
    }
    return joined(pieces, total);
  }

  async *#pieces(file) {
    let reader;
    try {
      const response = await this.#fetch(new URL(file, this.name).href);
      if (!response.ok) throw new Error(`the server answers ${response.status}`);
      reader = response.body.getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        yield value;
      }
    } catch (error) {
      throw new PackageError(`${this.name}: cannot read ${file}: ${oneLine(error)}`);
    } finally {
      await reader?.cancel().catch(() => {});
    }
  }
}

function joined(pieces, total) {
  let bytes;
  try {
    bytes = new Uint8Array(total);
  } catch {
    throw new SessionError(`no memory for a file of ${total} bytes`);
  }
  let offset = 0;
  for (const piece of pieces) {
    bytes.set(piece, offset);
    offset += piece.length;
  }
  return bytes;
}
