// Where downloads and other things that can be made again are kept, by the platform's custom.
// Does not know: what is kept there.

import { homedir } from 'node:os';
import { join } from 'node:path';

/** `$KVTC_CACHE`, else the platform's cache folder for `kvtc`. Not created here. */
export function cacheDirectory(
  env: NodeJS.ProcessEnv = process.env,
  platform: NodeJS.Platform = process.platform,
): string {
  if (env['KVTC_CACHE']) return env['KVTC_CACHE'];
  if (platform === 'darwin') return join(homedir(), 'Library', 'Caches', 'kvtc');
  if (platform === 'win32') return join(env['LOCALAPPDATA'] ?? join(homedir(), 'AppData', 'Local'), 'kvtc', 'Cache');
  return join(env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'kvtc');
}
