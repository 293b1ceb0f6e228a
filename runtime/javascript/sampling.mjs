// Logits of one position go in; the next token comes out. Filters, their order and their rounding are
// those of the Python runtime; the random numbers are not.

import { SessionError } from './errors.mjs';

const round = Math.fround;

export class Sampler {
  #options;
  #isGreedy;
  #random;

  /** With nothing given the choice is greedy; temperature 0 is greedy whatever else is given. */
  constructor({ temperature, topK, topP, minP, seed }) {
    require('temperature', temperature, 0, Number.MAX_VALUE);
    require('topP', topP, 0, 1);
    require('minP', minP, 0, 1);
    require('topK', topK, 0, Number.MAX_SAFE_INTEGER, Number.isInteger);
    require('seed', seed, 0, Number.MAX_SAFE_INTEGER, Number.isInteger);
    const given = [temperature, topK, topP, minP].some((value) => value !== undefined);
    this.#options = { temperature, topK, topP, minP };
    this.#isGreedy = !given || temperature === 0;
    this.#random = seed === undefined ? Math.random : randomFrom(seed);
  }

  choose(logits) {
    const scores = this.#isGreedy ? logits : this.#filter(logits);
    const best = argmax(scores);
    if (Number.isNaN(scores[best])) {
      throw new SessionError(
        "the model gave logits that are not numbers (NaN); check the checkpoint's weights",
      );
    }
    return this.#isGreedy ? best : draw(scores, best, this.#random());
  }

  #filter(logits) {
    const { temperature, topK, topP, minP } = this.#options;
    const scores = Float32Array.from(logits);
    if (temperature !== undefined && temperature !== 1) {
      for (const index of scores.keys()) scores[index] /= round(temperature);
    }
    if (topK) keepTopK(scores, topK);
    if (topP !== undefined && topP < 1) keepTopP(scores, topP);
    if (minP !== undefined) keepMinP(scores, minP);
    return scores;
  }
}

/** The k best scores; everything tied with the k-th stays too. */
function keepTopK(scores, k) {
  const threshold = scores.toSorted()[Math.max(scores.length - k, 0)];
  for (const index of scores.keys()) if (scores[index] < threshold) scores[index] = -Infinity;
}

/** The smallest set of best tokens whose probability reaches topP; of tied ones the first go first. */
function keepTopP(scores, topP) {
  const ascending = scores.toSorted();
  let sum = 0;
  let dropped = 0;
  for (const share of softmax(ascending)) {
    sum += share;
    if (round(sum) > round(1 - topP)) break;
    dropped += 1;
  }
  dropped = Math.min(dropped, scores.length - 1);
  const threshold = ascending[dropped];
  let tied = dropped - ascending.indexOf(threshold);
  for (const index of scores.keys()) {
    if (scores[index] < threshold || (scores[index] === threshold && tied-- > 0))
      scores[index] = -Infinity;
  }
}

/** Tokens at least minP times as likely as the likeliest. */
function keepMinP(scores, minP) {
  const shares = softmax(scores);
  const least = round(round(minP) * shares[argmax(shares)]);
  for (const index of scores.keys()) if (shares[index] < least) scores[index] = -Infinity;
}

function softmax(scores) {
  const best = scores[argmax(scores)];
  const powers = scores.map((score) => Math.exp(round(score - best)));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

/** The first of the greatest; a NaN before all. */
function argmax(values) {
  let best = 0;
  for (let index = 0; index < values.length; index++) {
    if (Number.isNaN(values[index])) return index;
    if (values[index] > values[best]) best = index;
  }
  return best;
}

/** Inverse transform sampling in double; one random number a token, whatever was filtered. */
function draw(scores, best, uniform) {
  const weights = Float64Array.from(scores, (score) => Math.exp(score - scores[best]));
  const target = uniform * weights.reduce((sum, weight) => sum + weight, 0);
  let sum = 0;
  for (const [index, weight] of weights.entries()) {
    sum += weight;
    if (weight > 0 && sum > target) return index;
  }
  return best;
}

/** Sebastiano Vigna's SplitMix64; 53 bits of each number. */
function randomFrom(seed) {
  let state = BigInt(seed);
  const mix = (value, shift, factor) => BigInt.asUintN(64, (value ^ (value >> shift)) * factor);
  return () => {
    state = BigInt.asUintN(64, state + 0x9e3779b97f4a7c15n);
    const mixed = mix(mix(state, 30n, 0xbf58476d1ce4e5b9n), 27n, 0x94d049bb133111ebn);
    return Number((mixed ^ (mixed >> 31n)) >> 11n) / 2 ** 53;
  };
}

function require(name, value, low, high, isKind = (number) => typeof number === 'number') {
  if (value === undefined || (isKind(value) && value >= low && value <= high)) return;
  throw new SessionError(`${name} is ${value}; it must be a number from ${low} to ${high}`);
}
