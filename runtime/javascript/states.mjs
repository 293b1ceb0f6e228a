// A variant's states go in; tensors of one row come out, which a graph reads and which take over what
// it gives. They stay where ONNX Runtime leaves them: on the device, or in this process.

import { SessionError } from './errors.mjs';
import { isKeptWhole } from './graphs.mjs';

const ARRAYS = { float32: Float32Array, float16: Uint16Array, int8: Int8Array };
const LIMIT_BYTES = 2 ** 33;

export class States {
  #graphs;
  #tensors = new Map();

  constructor(graphs, capacity) {
    this.#graphs = graphs;
    this.capacity = capacity;
    this.#checkSize(capacity);
    for (const spec of graphs.states) this.#tensors.set(spec, this.#zeros(spec, capacity));
  }

  feeds() {
    const pairs = [...this.#tensors].map(([{ name }, tensor]) => [`past.${name}`, tensor]);
    return Object.fromEntries(pairs);
  }

  /** Where native ONNX Runtime may write what is appended: where it reads it. Room past the tokens
   * held counts for nothing, so a call that fails or is repeated does no harm. */
  fetches() {
    if (!this.#graphs.backend.isNative || this.#graphs.keepsStates) return {};
    const inPlace = [...this.#tensors].filter(([spec]) => spec.growth === 'append' && isKeptWhole(spec));
    return Object.fromEntries(inPlace.map(([{ name }, tensor]) => [`present.${name}`, tensor]));
  }

  /** What a graph gave, after `count` more tokens than the `held` before. */
  takeOver(found, held, count) {
    for (const [spec, tensor] of this.#tensors) {
      const given = found[`present.${spec.name}`];
      if (!isKeptWhole(spec)) {
        copyTokens(spec, given, 0, tensor, held, count);
      } else if (given !== tensor) {
        release(tensor);
        this.#tensors.set(spec, given);
      }
    }
  }

  /** What a graph gave and nobody wants. */
  leave(found) {
    for (const [spec, tensor] of this.#tensors) {
      const given = found[`present.${spec.name}`];
      if (given !== tensor) release(given);
    }
  }

  /** One state at a time, so that the peak is all states and one more. */
  grow(capacity, used) {
    this.#checkSize(capacity);
    for (const [spec, tensor] of this.#tensors) {
      if (spec.growth === 'append') {
        const bigger = this.#zeros(spec, capacity);
        copyTokens(spec, tensor, 0, bigger, 0, used);
        this.#tensors.set(spec, bigger);
      }
    }
    this.capacity = capacity;
  }

  close() {
    for (const tensor of this.#tensors.values()) release(tensor);
    this.#tensors.clear();
  }

  #checkSize(capacity) {
    const bytes = this.#graphs.states
      .map((spec) => resolve(spec, capacity).reduce((size, dim) => size * dim, ARRAYS[spec.dtype].BYTES_PER_ELEMENT))
      .reduce((sum, size) => sum + size, 0);
    if (bytes > LIMIT_BYTES) {
      throw new SessionError(`the states of ${capacity} tokens take ${bytes} bytes; at most ${LIMIT_BYTES} are allowed`);
    }
  }

  #zeros(spec, capacity) {
    const dims = resolve(spec, capacity);
    try {
      const values = new ARRAYS[spec.dtype](dims.reduce((size, dim) => size * dim, 1));
      return new this.#graphs.ort.Tensor(spec.dtype, values, dims);
    } catch {
      throw new SessionError(`no memory for state ${spec.name} of shape [${dims}]; ask for a smaller capacity`);
    }
  }
}

function resolve({ shape }, capacity) {
  const sizes = { batch: 1, capacity };
  return shape.map((dim) => sizes[dim] ?? dim);
}

/** `count` tokens of one tensor, from the place `first` on, to the place `at` of another. */
function copyTokens({ shape }, from, first, to, at, count) {
  const axis = shape.indexOf('capacity');
  const [source, target] = [bytesOf(from), bytesOf(to)];
  const rows = to.dims.slice(0, axis).reduce((size, dim) => size * dim, 1);
  const [read, written] = [source.length / rows, target.length / rows];
  const [perSource, perTarget] = [read / from.dims[axis], written / to.dims[axis]];
  for (let row = 0; row < rows; row++) {
    const begin = row * read + first * perSource;
    target.set(source.subarray(begin, begin + count * perSource), row * written + at * perTarget);
  }
}

function bytesOf({ data }) {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

function release(tensor) {
  if (tensor.location === 'gpu-buffer') tensor.dispose();
}
