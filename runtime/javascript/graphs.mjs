// A variant goes in; its graphs come out, opened by ONNX Runtime on the package's weights.

import { canCopy } from './device_copies.mjs';
import { oneLine, PackageError, SessionError } from './errors.mjs';
import { checkStates, isKeptWhole, tokenBytes } from './state_specs.mjs';

const TOKEN_INPUTS = ['input_ids', 'start', 'length', 'logit_index'];
// Nothing may fall back to the processor.
const STRICT = { disable_cpu_ep_fallback: '1' };
// Folded and repacked weights would be copies of those that the package has.
const UNCOPIED = { disable_prepacking: '1' };
const OPTIMIZATION = { disable_specified_optimizers: 'ConstantFolding' };

export class Graphs {
  /** By role, each an InferenceSession. */
  sessions = {};

  constructor(backend, pack, variant) {
    this.backend = backend;
    this.ort = backend.ort;
    this.variant = variant;
    this.states = variant.states.specs;
    this.vocabSize = pack.manifest.model.vocab_size;
    this.executionProvider = backend.executionProvider(variant.provider);
    this.isOnDevice = !['cpu', 'wasm'].includes(this.executionProvider);
  }

  /** Whether a state is never read back between calls. DirectML has no way to say so, and Node none
   * to write into what is there. */
  staysOnDevice(spec) {
    if (this.executionProvider !== 'webgpu') return false;
    return isKeptWhole(spec) || (!this.backend.isNative && canCopy(tokenBytes(spec)));
  }

  static async open(backend, pack, variant, { allowFallback, sessionOptions }) {
    const graphs = new Graphs(backend, pack, variant);
    checkStates(variant);
    const weights = await graphs.#weights(pack);
    try {
      for (const [role, path] of Object.entries(variant.graphs)) {
        const bytes = await pack.readVerified(path);
        const more = typeof sessionOptions === 'function' ? sessionOptions(role) : sessionOptions;
        graphs.sessions[role] = await graphs.#open(path, bytes, weights, pack, allowFallback, more);
        graphs.#checkInterface(role);
      }
    } catch (error) {
      await graphs.close();
      throw error;
    }
    return graphs;
  }

  async close() {
    for (const session of Object.values(this.sessions)) await session.release();
    this.sessions = {};
  }

  /** The token inputs of a call as the graph has them: int64, or int32. */
  tokens(role, values) {
    const type =
      this.sessions[role].inputMetadata?.find(({ name }) => name === 'input_ids')?.type ?? 'int64';
    const feeds = {};
    for (const name of TOKEN_INPUTS) {
      const [numbers, shape] = values[name];
      const data =
        type === 'int32' ? Int32Array.from(numbers) : BigInt64Array.from(numbers, BigInt);
      feeds[name] = new this.ort.Tensor(type, data, shape);
    }
    return feeds;
  }

  /** `fetches`: tensors that outputs are written to. */
  async run(role, feeds, fetches = {}) {
    const wanted = { logits: null };
    for (const { name } of this.states)
      wanted[`present.${name}`] = fetches[`present.${name}`] ?? null;
    let found;
    try {
      found = await this.sessions[role].run(feeds, wanted);
    } catch (error) {
      throw new SessionError(`onnxruntime could not run the graph: ${oneLine(error)}`);
    }
    const { type, dims } = found.logits;
    if (type !== 'float32' || dims.at(-1) !== this.vocabSize) {
      throw new PackageError(
        `${this.variant.graphs[role]}: its logits are ${type} [${dims}]; ${this.vocabSize} float32 values are required`,
      );
    }
    return found;
  }

  /** Read once for all graphs, unless ONNX Runtime can map them. */
  async #weights(pack) {
    const paths = [...new Set(this.variant.weights)];
    if (!this.#mapsFrom(pack)) {
      return Promise.all(paths.map(async (path) => ({ path, data: await pack.readBlob(path) })));
    }
    for (const path of paths) await pack.checkBlob(path);
    return undefined;
  }

  #mapsFrom(pack) {
    return this.backend.isNative && pack.source.folder !== undefined;
  }

  async #open(path, bytes, externalData, pack, allowFallback, sessionOptions = {}) {
    const { extra = {}, ...others } = sessionOptions;
    const mayFallBack = allowFallback || Object.keys(this.variant.fallback).length > 0;
    const strict = this.isOnDevice && !mayFallBack ? STRICT : {};
    const mapped = externalData
      ? {}
      : { model_external_initializers_file_folder_path: pack.source.folder };
    try {
      return await this.ort.InferenceSession.create(bytes, {
        executionProviders: [this.executionProvider],
        logSeverityLevel: 4, // its errors reach the caller as ours
        enableMemPattern: false, // not taken by DirectML; else kept for every shape ever seen
        executionMode: 'sequential',
        ...(externalData && { externalData }),
        preferredOutputLocation: this.#outputLocations(),
        ...others,
        extra: {
          ...extra,
          session: { ...UNCOPIED, ...strict, ...mapped, ...extra.session },
          optimization: { ...OPTIMIZATION, ...extra.optimization },
        },
      });
    } catch (error) {
      throw new SessionError(`${path}: onnxruntime cannot open it: ${oneLine(error)}`);
    }
  }

  #outputLocations() {
    const kept = this.states.filter((spec) => this.staysOnDevice(spec));
    return Object.fromEntries(kept.map(({ name }) => [`present.${name}`, 'gpu-buffer']));
  }

  #checkInterface(role) {
    const { inputNames, outputNames } = this.sessions[role];
    const names = this.states.map(({ name }) => name);
    for (const [what, found, required] of [
      ['inputs', inputNames, [...TOKEN_INPUTS, ...names.map((name) => `past.${name}`)]],
      ['outputs', outputNames, ['logits', ...names.map((name) => `present.${name}`)]],
    ]) {
      const odd = [
        ...found.filter((name) => !required.includes(name)),
        ...required.filter((name) => !found.includes(name)),
      ];
      if (odd.length) {
        throw new PackageError(
          `${this.variant.graphs[role]}: its ${what} are not those of the manifest's states; ` +
            `these are in one only: ${odd.sort().slice(0, 6).join(', ')}`,
        );
      }
    }
  }
}
