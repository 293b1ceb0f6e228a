// Token ids of one conversation go in, in pieces that a graph takes; its states advance and the
// logits asked for come out.

import { SessionError } from './errors.mjs';
import { States } from './states.mjs';

const SPARE_TOKENS = 64;

class Context {
  tokens = [];

  constructor(graphs, limit, capacity) {
    this.graphs = graphs;
    this.limit = limit;
    this.states = new States(graphs, capacity);
  }

  checkRoom(more) {
    checkFits(this.tokens.length + more, this.limit);
  }

  /** Continue with these tokens; the logits after the last. */
  async prefill(ids, chunk) {
    this.checkRoom(ids.length);
    let last;
    for (const piece of this.#pieces(ids, chunk))
      [last] = await this.read(piece, [piece.length - 1]);
    return last;
  }

  /** The logits after each of these tokens, one array for all. */
  async allLogits(ids, chunk) {
    this.checkRoom(ids.length);
    let all;
    let offset = 0;
    for (const piece of this.#pieces(ids, chunk)) {
      for (const row of await this.read(piece, [...piece.keys()])) {
        all ??= new Float32Array(ids.length * row.length);
        all.set(row, offset);
        offset += row.length;
      }
    }
    return all;
  }

  close() {
    this.states.close();
  }

  /** A run of one graph on `seq` places, of which the tokens take the first. */
  async run(role, ids, seq, places) {
    const padded = [...ids, ...Array(seq - ids.length).fill(0)];
    const feeds = this.graphs.tokens(role, {
      input_ids: [padded, [1, seq]],
      start: [[this.tokens.length], [1]],
      length: [[ids.length], [1]],
      logit_index: [places, [1, places.length]],
    });
    return this.graphs.run(role, { ...feeds, ...this.states.feeds() }, this.states.fetches());
  }

  take(found, ids) {
    this.states.takeOver(found, this.tokens.length, ids.length);
    this.tokens.push(...ids);
  }

  *#pieces(ids, chunk) {
    const size = Math.min(chunk, this.mostTokens);
    for (let offset = 0; offset < ids.length; offset += size)
      yield ids.slice(offset, offset + size);
  }
}

/** One graph for any number of tokens; its states grow with what they hold. */
class StepContext extends Context {
  mostTokens = Infinity;

  constructor(graphs, limit) {
    super(graphs, limit, grownCapacity(1, 0, limit));
  }

  async read(ids, places) {
    const needed = this.tokens.length + ids.length;
    const { capacity } = this.states;
    if (needed > capacity)
      this.states.grow(grownCapacity(needed, capacity, this.limit), this.tokens.length);
    const found = await this.run('step', ids, ids.length, places);
    this.take(found, ids);
    const { data } = found.logits;
    const width = data.length / places.length;
    return places.map((_, row) => data.slice(row * width, (row + 1) * width));
  }
}

/** A prefill graph for chunks and a decode graph for single tokens, each for one place's logits. */
class StaticContext extends Context {
  constructor(graphs, limit) {
    super(graphs, limit, graphs.variant.static.capacity);
    this.mostTokens = graphs.variant.static.chunk;
  }

  async read(ids, places) {
    const [role, seq] = ids.length === 1 ? ['decode', 1] : ['prefill', this.mostTokens];
    const rows = [];
    for (const [index, place] of places.entries()) {
      const found = await this.run(role, ids, seq, [place]);
      rows.push(found.logits.data.slice());
      if (index + 1 < places.length) this.states.leave(found);
      else this.take(found, ids);
    }
    return rows;
  }
}

export function checkFits(tokens, limit) {
  if (tokens <= limit) return;
  throw new SessionError(
    `${tokens} tokens, but the context holds ${limit}; use fewer tokens, or open the session with a ` +
      'larger capacity',
  );
}

export function openContext(graphs, limit) {
  return graphs.variant.static ? new StaticContext(graphs, limit) : new StepContext(graphs, limit);
}

/** Doubling, so that a long decode's copies stay linear. */
function grownCapacity(needed, current, limit) {
  return Math.min(limit, Math.max(needed + Math.floor(needed / 4) + SPARE_TOKENS, 2 * current));
}
