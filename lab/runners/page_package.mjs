// In the browser: one variant of a package.

import { fromUrl, Session } from '/driver/edgewright.mjs';
import { runPackage } from './package_run.mjs';

export async function answer(ort, write, provider, ids, prompt) {
  const open = () =>
    Session.open(fromUrl('/package'), { ort, provider, sessionOptions: { logSeverityLevel: 0 } });
  const { outputs, measured } = await runPackage(ort, open, ids, prompt, write);
  return { outputs, measured };
}
