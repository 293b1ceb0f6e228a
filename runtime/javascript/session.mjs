// A package goes in; logits and tokens come out, of one conversation at a time.

import { checkFits, openContext } from './context.mjs';
import { SessionError, shown } from './errors.mjs';
import { Graphs } from './graphs.mjs';
import { Package } from './package.mjs';
import { Backend, candidates } from './providers.mjs';
import { Sampler } from './sampling.mjs';

const PREFILL_CHUNK = 512;
// What the logits of one chunk may take while every position's are wanted.
const LOGITS_CHUNK_BYTES = 2 ** 26;

export class Session {
  #package;
  #graphs;
  #context;
  #isBusy = false;

  constructor(pack, graphs, contextLimit) {
    this.#package = pack;
    this.#graphs = graphs;
    this.contextLimit = contextLimit;
    this.#context = openContext(graphs, contextLimit);
  }

  /**
   * The package of a source that fromFolder or fromUrl gave.
   *
   * @param {object} options
   * @param options.ort the module onnxruntime-web or onnxruntime-node
   * @param {string} [options.provider] the variant's provider, such as 'webgpu:f32'; else the first
   *   of `ORDER` that the package has and that runs here
   * @param {boolean} [options.verify] hash the weights too, and not the graphs alone
   * @param {boolean} [options.allowFallback] let nodes that a device does not take run on the processor
   * @param {number} [options.capacity] the context in tokens; the model's own unless given
   * @param {object|function} [options.sessionOptions] more of ONNX Runtime's own options, or a
   *   function that gives them for a graph's role
   */
  static async open(source, options = {}) {
    const { ort, provider, verify = false, capacity } = options;
    const backend = new Backend(ort);
    const pack = await Package.open(await source, verify);
    if (capacity !== undefined) checkCount('capacity', capacity, 1);
    const reasons = [];
    for (const variant of candidates(pack.manifest.variants, provider)) {
      const obstacle = await backend.obstacle(variant);
      if (obstacle) {
        reasons.push(`${variant.name}: ${obstacle}`);
        continue;
      }
      try {
        return await Session.#openVariant(backend, pack, variant, options);
      } catch (error) {
        if (provider !== undefined || !(error instanceof SessionError)) throw error;
        reasons.push(`${variant.name}: ${error.message}`);
      }
    }
    throw new SessionError(`${pack.source.name}: no variant runs here: ${reasons.join('; ')}`);
  }

  static async #openVariant(backend, pack, variant, options) {
    const limit = fixedLimit(variant, pack.manifest.model.max_context, options.capacity);
    const graphs = await Graphs.open(backend, pack, variant, options);
    try {
      const session = new Session(pack, graphs, limit);
      // A device that was not asked for is one that has made a token.
      if (graphs.isOnDevice && options.provider === undefined) await session.logits([0]);
      return session;
    } catch (error) {
      await graphs.close();
      throw error;
    }
  }

  /** ONNX Runtime's own sessions, by the graph's role. */
  get graphs() {
    return this.#graphs.sessions;
  }

  get manifest() {
    return this.#package.manifest;
  }

  /** The manifest's entry of the variant that runs. */
  get variant() {
    return this.#graphs.variant;
  }

  /** What the state holds. */
  get tokens() {
    return [...this.#context.tokens];
  }

  get vocabSize() {
    return this.#graphs.vocabSize;
  }

  /** The text of the checkpoint's tokenizer.json, for a tokenizer of the caller's; or null. */
  async tokenizer() {
    const { tokenizer } = this.manifest;
    return (
      tokenizer && new TextDecoder().decode(await this.#package.readVerified(tokenizer.definition))
    );
  }

  /** Continue the state with these tokens; the logits after the last, a Float32Array. */
  prefill(ids, { chunk = PREFILL_CHUNK } = {}) {
    return this.#alone(async () =>
      this.#context.prefill(this.#checked(ids), checkCount('chunk', chunk, 1)),
    );
  }

  /** Continue the state with one token; the logits after it. */
  decode(token) {
    return this.prefill([token]);
  }

  /** The logits after each token, [ids.length × vocabSize], from a fresh state; the session's own is
   * left alone. */
  logits(ids, { chunk } = {}) {
    const most = Math.max(
      1,
      Math.min(PREFILL_CHUNK, Math.floor(LOGITS_CHUNK_BYTES / (4 * this.vocabSize))),
    );
    return this.#alone(async () => {
      const checked = this.#checked(ids);
      const context = openContext(this.#graphs, this.contextLimit);
      try {
        return await context.allLogits(
          checked,
          chunk === undefined ? most : checkCount('chunk', chunk, 1),
        );
      } finally {
        context.close();
      }
    });
  }

  /**
   * The new tokens after a prompt; greedy unless temperature, topK, topP or minP is given. The state
   * starts fresh, or goes on with `fresh: false`; afterwards it holds everything but the last token.
   * `stopIds` are the checkpoint's end-of-text ids unless given; the id that stops is the last.
   * `onToken` is told each token, and may be async; where it gives false, no more follow.
   */
  generate(
    ids,
    { maxNewTokens = 64, stopIds, onToken, fresh = true, chunk = PREFILL_CHUNK, ...sampling } = {},
  ) {
    return this.#alone(async () => {
      const checked = this.#checked(ids);
      const stops = new Set(stopIds ?? this.manifest.generation.eos_token_ids);
      const sampler = new Sampler(sampling);
      checkCount('maxNewTokens', maxNewTokens, 0);
      checkCount('chunk', chunk, 1);
      if (fresh) {
        // Nothing is forgotten for the sake of a prompt that is then refused.
        checkFits(checked.length, this.contextLimit);
        this.#renew();
      }
      let logits = await this.#context.prefill(checked, chunk);
      // The last token is chosen but never fed, so it needs no place.
      const room = Math.min(maxNewTokens, this.contextLimit - this.#context.tokens.length + 1);
      const made = [];
      while (made.length < room) {
        const token = sampler.choose(logits);
        made.push(token);
        const goesOn = (await onToken?.(token)) !== false;
        if (!goesOn || stops.has(token) || made.length === room) break;
        [logits] = await this.#context.read([token], [0]);
      }
      return made;
    });
  }

  /** Forget every token. */
  reset() {
    return this.#alone(async () => this.#renew());
  }

  /** Give back what ONNX Runtime and the device hold. */
  close() {
    return this.#alone(async () => {
      this.#context.close();
      await this.#graphs.close();
    });
  }

  #renew() {
    this.#context.close();
    this.#context = openContext(this.#graphs, this.contextLimit);
  }

  /** One call at a time: two would write the same states. */
  async #alone(call) {
    if (this.#isBusy)
      throw new SessionError('another call of this session is under way; await it first');
    this.#isBusy = true;
    try {
      return await call();
    } finally {
      this.#isBusy = false;
    }
  }

  #checked(ids) {
    if (typeof ids?.[Symbol.iterator] !== 'function' || typeof ids === 'string') {
      throw new SessionError(
        `${shown(ids)} came as token ids; a list of whole numbers is required`,
      );
    }
    const checked = Array.from(ids, (id) => (typeof id === 'bigint' ? Number(id) : id));
    if (!checked.length) throw new SessionError('no tokens came; at least one is required');
    const at = checked.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < this.vocabSize));
    if (at < 0) return checked;
    throw new SessionError(
      `token ${shown(checked[at])} at position ${at} is outside the vocabulary; ids from 0 to ` +
        `${this.vocabSize - 1} are required`,
    );
  }
}

function checkCount(name, value, least) {
  if (Number.isInteger(value) && value >= least) return value;
  throw new SessionError(
    `${name} is ${shown(value)}; a whole number of at least ${least} is required`,
  );
}

function fixedLimit({ name, static: sizes }, limit, asked) {
  if (!sizes) return asked ?? limit;
  if (asked > sizes.capacity) {
    throw new SessionError(
      `variant ${name} holds ${sizes.capacity} tokens, fixed when it was exported; a capacity of ` +
        `${asked} is too large`,
    );
  }
  return Math.min(asked ?? limit, sizes.capacity);
}
