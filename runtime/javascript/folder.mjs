// A folder on this machine as a package's source, for Node: nothing is read through a link.

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { PackageError } from './errors.mjs';

export class Folder {
  constructor(folder) {
    /** ONNX Runtime maps weights from here. */
    this.folder = path.resolve(folder);
    this.name = this.folder;
  }

  /** A whole file, which has at most so many bytes. */
  async read(file, limitBytes) {
    const { location, size } = this.#locate(file);
    if (size > limitBytes) {
      throw new PackageError(
        `${this.name}: ${file} has ${size} bytes; at most ${limitBytes} are allowed`,
      );
    }
    return new Uint8Array(await this.#guarded(file, () => fs.promises.readFile(location)));
  }

  async size(file) {
    return this.#locate(file).size;
  }

  async sha256(file) {
    const { location } = this.#locate(file);
    return this.#guarded(file, async () => {
      const digest = createHash('sha256');
      for await (const chunk of fs.createReadStream(location)) digest.update(chunk);
      return digest.digest('hex');
    });
  }

  #locate(file) {
    let location = this.folder;
    let found;
    for (const name of file.split('/')) {
      if (found && !found.isDirectory()) break;
      location = path.join(location, name);
      found = fs.lstatSync(location, { throwIfNoEntry: false });
      if (!found)
        throw new PackageError(
          `${this.name}: ${file} is missing; copy or export the package again`,
        );
    }
    if (!found.isFile()) {
      throw new PackageError(
        `${this.name}: ${file} must be a plain file in plain folders, and no link`,
      );
    }
    return { location, size: found.size };
  }

  async #guarded(file, read) {
    try {
      return await read();
    } catch (error) {
      throw new PackageError(`${this.name}: cannot read ${file}: ${error.code ?? error.message}`);
    }
  }
}
