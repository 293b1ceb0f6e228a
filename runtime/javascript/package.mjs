// A source of files goes in; its manifest, and files that are what the manifest says, come out.

import { PackageError, SessionError } from './errors.mjs';
import { MANIFEST_LIMIT_BYTES, MANIFEST_NAME, parseManifest } from './manifest.mjs';

const READ_LIMIT_BYTES = 2 ** 31; // no graph is larger: protobuf ends there

export class Package {
  constructor(source, manifest, verify) {
    this.source = source;
    this.manifest = manifest;
    this.verify = verify;
  }

  static async open(source, verify) {
    const bytes = await source.read(MANIFEST_NAME, MANIFEST_LIMIT_BYTES);
    return new Package(source, parseManifest(bytes, `${source.name}: ${MANIFEST_NAME}`), verify);
  }

  /** A listed file's bytes, whose hash is the listed one. */
  async readVerified(path) {
    const bytes = await this.#read(path, READ_LIMIT_BYTES);
    this.#compare(path, await digest(bytes));
    return bytes;
  }

  /** A listed file's bytes, of the listed size; hashed only if everything is. */
  async readBlob(path) {
    const bytes = await this.#read(path, Infinity);
    if (this.verify) this.#compare(path, await digest(bytes));
    return bytes;
  }

  /** The same of a file that ONNX Runtime reads by itself. */
  async checkBlob(path) {
    this.#compareSize(path, await this.source.size(path));
    if (this.verify) this.#compare(path, await this.source.sha256(path));
  }

  async #read(path, limitBytes) {
    const { size } = this.manifest.files[path];
    if (size > limitBytes) {
      throw new PackageError(
        `${this.source.name}: ${path} has ${size} bytes; at most ${limitBytes} are allowed`,
      );
    }
    const bytes = await this.source.read(path, size);
    this.#compareSize(path, bytes.length);
    return bytes;
  }

  #compareSize(path, found) {
    const { size } = this.manifest.files[path];
    if (found === size) return;
    throw new PackageError(
      `${this.source.name}: ${path} has ${found} bytes, ${size} are required; copy or export the package again`,
    );
  }

  #compare(path, found) {
    const { sha256 } = this.manifest.files[path];
    if (found === sha256) return;
    throw new PackageError(
      `${this.source.name}: ${path} is not what ${MANIFEST_NAME} says: its sha256 is ${found.slice(0, 12)}…, ` +
        `${sha256.slice(0, 12)}… is required; copy or export the package again`,
    );
  }
}

async function digest(bytes) {
  const { subtle } = globalThis.crypto ?? {};
  if (!subtle)
    throw new SessionError('this page cannot hash: open it from https, or from localhost');
  const found = new Uint8Array(await subtle.digest('SHA-256', bytes));
  return Array.from(found, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
