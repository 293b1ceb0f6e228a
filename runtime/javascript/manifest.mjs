// The bytes of manifest.json go in; what they say comes out, if all of it is as the format requires.
// The schema is the one that artifacts/ publishes; the rest is what a schema cannot say.

import { PackageError } from './errors.mjs';
import { problemOf } from './json_schema.mjs';
import schema from './manifest.schema.json' with { type: 'json' };

export const MANIFEST_NAME = 'manifest.json';
export const MANIFEST_LIMIT_BYTES = 32 * 2 ** 20;
const [FORMAT] = schema.properties.format.enum;
const [VERSION] = schema.properties.version.enum;
const BLOB_PREFIX = 'shared_assets/sha256-';
const EVIDENCE_PREFIX = 'evidence/';

export function parseManifest(bytes, source) {
  let parsed;
  try {
    parsed = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch {
    throw new PackageError(`${source}: not JSON; copy or export the package again`);
  }
  const problem = versionProblem(parsed) ?? problemOf(parsed, schema) ?? referenceProblem(parsed);
  if (problem) throw new PackageError(`${source}: ${problem}`);
  return parsed;
}

function versionProblem(parsed) {
  if (parsed?.format !== FORMAT) return `not an Edgewright manifest ("format" is not "${FORMAT}")`;
  if (!Number.isInteger(parsed.version) || parsed.version === VERSION) return undefined;
  const remedy = parsed.version > VERSION ? 'use a newer one' : 'export the package again';
  return `format version ${parsed.version}; this driver reads ${VERSION}: ${remedy}`;
}

function referenceProblem({ files, evidence, variants, tokenizer }) {
  const evidencePaths = Object.values(evidence).map((entry) => entry.path);
  return (
    togetherProblem([MANIFEST_NAME, ...Object.keys(files), ...evidencePaths]) ??
    repeated(
      'variants',
      variants.map((variant) => variant.name),
    ) ??
    repeated('evidence paths', evidencePaths) ??
    firstOf(evidencePaths, (path) =>
      path.startsWith(EVIDENCE_PREFIX) && !Object.hasOwn(files, path)
        ? undefined
        : `evidence at ${path}; it must lie below ${EVIDENCE_PREFIX}, once`,
    ) ??
    firstOf(variants, (variant) =>
      unlisted(`variant ${variant.name}`, variantPaths(variant), files),
    ) ??
    (tokenizer && unlisted('the tokenizer', tokenizerPaths(tokenizer), files)) ??
    firstOf(Object.entries(files), ([path, { sha256 }]) =>
      path.startsWith(BLOB_PREFIX) && path !== BLOB_PREFIX + sha256
        ? `${path} is listed with the sha256 ${sha256}`
        : undefined,
    ) ??
    firstOf(variants, variantProblem)
  );
}

function variantPaths({ graphs, libraries, weights }) {
  return [...Object.values(graphs), ...Object.values(libraries), ...weights];
}

function tokenizerPaths(tokenizer) {
  return [tokenizer.definition, ...tokenizer.files, ...Object.values(tokenizer.chat_templates)];
}

function unlisted(who, paths, files) {
  const path = paths.find((each) => !Object.hasOwn(files, each));
  return path && `${who} needs ${path}, which files does not list`;
}

/** Paths that would meet on a system that ignores case, or where one is a folder. */
function togetherProblem(paths) {
  const seen = new Map();
  for (const path of paths) {
    const other = seen.get(path.toLowerCase()) ?? path;
    if (other !== path) return `${other} and ${path} differ only in case: some systems mix them up`;
    seen.set(path.toLowerCase(), path);
  }
  for (const path of seen.keys()) {
    for (let at = path.indexOf('/'); at >= 0; at = path.indexOf('/', at + 1)) {
      if (seen.has(path.slice(0, at)))
        return `${seen.get(path.slice(0, at))} is both a file and a folder`;
    }
  }
  return undefined;
}

function variantProblem({ name, graphs, static: sizes, states }) {
  const roles = Object.keys(graphs).sort().join();
  if (roles !== 'step' && roles !== 'decode,prefill') {
    return `variant ${name}: step, or prefill and decode, are required`;
  }
  if ((sizes === null) !== (roles === 'step')) {
    return `variant ${name}: static sizes are required with prefill and decode, and with them alone`;
  }
  if (sizes && sizes.chunk > sizes.capacity) {
    return `variant ${name}: a chunk of ${sizes.chunk} tokens does not fit a capacity of ${sizes.capacity}`;
  }
  return (
    repeated(
      `variant ${name}: states`,
      states.specs.map((spec) => spec.name),
    ) ?? firstOf(states.specs, (spec) => shapeProblem(name, spec))
  );
}

function shapeProblem(variant, { name, shape }) {
  const [first, ...rest] = shape;
  const capacities = rest.filter((dim) => dim === 'capacity').length;
  if (first === 'batch' && !rest.includes('batch') && capacities <= 1) return undefined;
  return (
    `variant ${variant}: state ${name} has the shape ${JSON.stringify(shape)}; ` +
    'batch first, and at most one capacity, are required'
  );
}

function repeated(what, names) {
  const seen = new Set();
  const name = names.find((each) => seen.size === seen.add(each).size);
  return name && `${what}: ${name} appears more than once`;
}

function firstOf(values, problem) {
  for (const value of values) {
    const found = problem(value);
    if (found) return found;
  }
  return undefined;
}
