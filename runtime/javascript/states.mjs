// A variant's states go in; tensors of one row come out, which a graph reads and which take over what
// it gives. They stay where ONNX Runtime leaves them: on the device, or in this process.

import { copyOnDevice, zerosOnDevice } from './device_copies.mjs';
import { SessionError } from './errors.mjs';
import { ARRAYS, isKeptWhole, tokenBytes } from './state_specs.mjs';

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
    if (!this.#graphs.backend.isNative) return {};
    const inPlace = [...this.#tensors].filter(
      ([spec]) =>
        spec.growth === 'append' && isKeptWhole(spec) && !this.#graphs.staysOnDevice(spec),
    );
    return Object.fromEntries(inPlace.map(([{ name }, tensor]) => [`present.${name}`, tensor]));
  }

  /** What a graph gave, after `count` more tokens than the `held` before. */
  takeOver(found, held, count) {
    for (const [spec, tensor] of this.#tensors) {
      const given = found[`present.${spec.name}`];
      if (!isKeptWhole(spec)) {
        this.#copy(spec, given, tensor, held, count);
        release(given);
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
        this.#copy(spec, tensor, bigger, 0, used);
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
      .map((spec) =>
        resolve(spec, capacity).reduce(
          (size, dim) => size * dim,
          ARRAYS[spec.dtype].BYTES_PER_ELEMENT,
        ),
      )
      .reduce((sum, size) => sum + size, 0);
    if (bytes > LIMIT_BYTES) {
      throw new SessionError(
        `the states of ${capacity} tokens take ${bytes} bytes; at most ${LIMIT_BYTES} are allowed`,
      );
    }
  }

  #zeros(spec, capacity) {
    const { ort } = this.#graphs;
    const dims = resolve(spec, capacity);
    const size = dims.reduce((product, dim) => product * dim, 1);
    try {
      if (!isKeptWhole(spec) && this.#graphs.staysOnDevice(spec)) {
        return zerosOnDevice(ort, spec.dtype, dims, size * ARRAYS[spec.dtype].BYTES_PER_ELEMENT);
      }
      return new ort.Tensor(spec.dtype, new ARRAYS[spec.dtype](size), dims);
    } catch {
      throw new SessionError(
        `no memory for state ${spec.name} of shape [${dims}]; ask for a smaller capacity`,
      );
    }
  }

  /** The first `count` tokens of one tensor, to the place `at` of another. */
  #copy(spec, from, to, at, count) {
    const copies = regions(spec, from.dims, to.dims, at, count);
    if (to.location === 'gpu-buffer') {
      copyOnDevice(this.#graphs.ort, from, to, copies);
      return;
    }
    const [source, target] = [bytesOf(from), bytesOf(to)];
    for (const [begin, end, place] of copies) target.set(source.subarray(begin, end), place);
  }
}

function resolve({ shape }, capacity) {
  const sizes = { batch: 1, capacity };
  return shape.map((dim) => sizes[dim] ?? dim);
}

/** [begin, end, at] in bytes, for each row of all dimensions before the tokens'. */
function regions(spec, from, to, at, count) {
  const axis = spec.shape.indexOf('capacity');
  const product = (dims) => dims.reduce((size, dim) => size * dim, 1);
  const token = tokenBytes(spec);
  return Array.from({ length: product(to.slice(0, axis)) }, (_, row) => {
    const begin = row * from[axis] * token;
    return [begin, begin + count * token, (row * to[axis] + at) * token];
  });
}

function bytesOf({ data }) {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

function release(tensor) {
  if (tensor.location === 'gpu-buffer') tensor.dispose();
}
