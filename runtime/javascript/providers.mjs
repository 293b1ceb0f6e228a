// A variant's provider goes in; the execution provider of the ONNX Runtime at hand comes out.

import { SessionError } from './errors.mjs';

// In the order in which a variant is chosen when the caller names none.
export const ORDER = ['webgpu', 'webgpu:f32', 'directml', 'directml:f32', 'cpu-portable', 'cpu'];
const EXECUTION_PROVIDERS = {
  webgpu: 'webgpu',
  directml: 'dml',
  'cpu-portable': 'cpu',
  cpu: 'cpu',
};

/** onnxruntime-node or onnxruntime-web, and what it can do. */
export class Backend {
  constructor(ort) {
    const versions = ort?.env?.versions ?? {};
    this.ort = ort;
    this.isNative = versions.node !== undefined;
    this.version = versions.node ?? versions.web ?? versions.common;
    if (!ort?.InferenceSession || !this.version) {
      throw new SessionError('{ ort } must be the module onnxruntime-web or onnxruntime-node');
    }
  }

  /** Its name for the provider's execution provider; undefined where it has none. */
  executionProvider(provider) {
    const found = EXECUTION_PROVIDERS[provider.split(':')[0]];
    if (found === 'cpu') return this.isNative ? 'cpu' : 'wasm';
    const listed = this.ort.listSupportedBackends?.().map((backend) => backend.name);
    const has = listed ? listed.includes(found) : found === 'webgpu' && !this.isNative;
    return has ? found : undefined;
  }

  /** Why the variant cannot run here, as far as that can be known before it is tried. */
  async obstacle({ name, provider, onnxruntime_min: least, compute_dtype: dtype }) {
    const wanted = this.executionProvider(provider);
    if (!wanted)
      return `this ONNX Runtime has no ${EXECUTION_PROVIDERS[provider.split(':')[0]] ?? provider}`;
    if (isOlder(this.version, least)) {
      return `onnxruntime ${this.version} is here; variant ${name} needs ${least} or newer`;
    }
    if (wanted !== 'webgpu' || this.isNative) return undefined;
    const adapter = await globalThis.navigator?.gpu?.requestAdapter();
    if (!adapter) return 'this browser offers no WebGPU adapter';
    // Its shaders would fail long after they were taken, and no call would say so.
    if (dtype === 'float16' && !adapter.features.has('shader-f16'))
      return 'the WebGPU adapter has no float16';
    return undefined;
  }
}

/** The variants to try, the best first; of the provider asked for, if one is. */
export function candidates(variants, provider) {
  const wanted = provider === undefined ? ORDER : [provider];
  const found = wanted.flatMap((name) => variants.filter((variant) => variant.provider === name));
  if (found.length) return found;
  const has = [...new Set(variants.map((variant) => variant.provider))].sort().join(', ');
  throw new SessionError(
    `no variant for ${wanted.join(' or ')}; the package has ${has}, and this driver runs ${ORDER.join(', ')}`,
  );
}

function isOlder(found, least) {
  const [mine, theirs] = [found, least].map((release) =>
    release.match(/\d+/g).slice(0, 3).map(Number),
  );
  const at = theirs.findIndex((number, index) => number !== (mine[index] ?? 0));
  return at >= 0 && (mine[at] ?? 0) < theirs[at];
}
