// What the manifest says of a state, and what this driver can hold of it.

import { PackageError } from './errors.mjs';

// Float16 is never computed with here, so its bits will do.
export const ARRAYS = { float32: Float32Array, float16: Uint16Array, int8: Int8Array };

/** What one token takes of one row of an append state. */
export function tokenBytes({ shape, dtype }) {
  const after = shape.slice(shape.indexOf('capacity') + 1);
  return after.reduce((size, dim) => size * dim, ARRAYS[dtype].BYTES_PER_ELEMENT);
}

/** Whether a graph gives the whole state, and not its new tokens alone. */
export function isKeptWhole({ growth, update }) {
  return growth === 'replace' || update === 'in_graph';
}

/** Refuse what this driver cannot hold, before anything is allocated. */
export function checkStates({ states, static: sizes }) {
  for (const { name, shape, growth, update } of states.specs) {
    if (growth === 'ring' || (update !== 'in_graph' && sizes === null)) {
      throw new PackageError(
        `state ${name} is a ${growth} state updated as ${update}; this driver holds append and ` +
          'replace states, updated in_graph by a step graph',
      );
    }
    if ((growth === 'append') !== shape.includes('capacity')) {
      throw new PackageError(
        `state ${name} has the shape ${JSON.stringify(shape)}; one capacity, in an append state alone, is required`,
      );
    }
  }
}
