// The profiles that one evaluation judges side by side: opened, checked against the model, named, each with the ratios
// it serves. Does not know: documents, treatments, what is measured.

import { basename } from 'node:path';
import { KvtcError, isKvtcError } from '../base/errors.ts';
import { plannedRatios, ranksInUse } from '../cache/chunk-coder.ts';
import type { EndModes } from '../cache/chunk-seam.ts';
import { openProfile } from '../profile/open-profile.ts';
import type { ModelIdentity, Profile } from '../profile/profile.ts';
import type { ChosenModes } from './treatment.ts';
import { codecName } from './treatment.ts';

export interface EvaluatedProfile {
  /** The codec's name; with the file's, where several profiles are of one codec. */
  readonly name: string;
  readonly profile: Profile;
  /** Ascending as asked for. */
  readonly ratios: readonly number[];
  /** What is missing leaves the codec its default. */
  readonly modes: ChosenModes;
}

export interface ProfileChoice extends EndModes {
  /** Default: those that plannedRatios names. */
  readonly ratios?: readonly number[] | undefined;
}

/**
 * Opens profiles of one model. Each is judged at those of `ratios` that it serves; finer steps are asked only of codecs
 * that have them, where any of them does. Handles go to `onClose`. Throws as openProfile, KVTC_MODEL_MISMATCH,
 * KVTC_PLAN_MISSING for a ratio that no profile serves or a profile that serves none, KVTC_OPTION_INVALID.
 */
export async function openEvaluatedProfiles(
  paths: readonly string[],
  identity: ModelIdentity,
  choice: ProfileChoice,
  onClose: (close: () => Promise<void>) => void,
): Promise<EvaluatedProfile[]> {
  const { ratios } = choice;
  const opened: { readonly path: string; readonly profile: Profile }[] = [];
  for (const path of paths) {
    const profile = await openProfile(path);
    onClose(() => profile.close());
    checkModel(profile, identity);
    opened.push({ path, profile });
  }
  const hasFiner = opened.some(({ profile }) => profile.codec === 'wtc');
  const found = opened.map(({ path, profile }) => {
    const codec = codecName(profile);
    const isAlone = opened.filter((other) => other.profile.codec === profile.codec).length === 1;
    const modes = modesOf(choice, hasFiner && profile.codec !== 'wtc' ? 'finer' : null);
    const served = ratios?.filter((ratio) => refusal(profile, ratio, modes) === null) ?? plannedRatios(profile);
    const name = isAlone ? codec : `${codec} ${basename(path).replace(/(\.profile)?\.safetensors$/u, '')}`;
    return { name, profile, ratios: served, modes };
  });
  for (const ratio of ratios ?? []) {
    const first = found[0];
    if (first !== undefined && !found.some((one) => one.ratios.includes(ratio))) {
      throw refusal(first.profile, ratio, first.modes);
    }
  }
  const idle = found.find((one) => one.ratios.length === 0);
  if (idle !== undefined) throw refusal(idle.profile, ratios?.[0] ?? 0, idle.modes);
  return found;
}

/** Modes asked for, but `without`. */
function modesOf({ sinkMode, windowMode }: EndModes, without: 'finer' | null): ChosenModes {
  return {
    ...(sinkMode === undefined || sinkMode === without ? {} : { sinkMode }),
    ...(windowMode === undefined || windowMode === without ? {} : { windowMode }),
  };
}

/** Why a profile does not serve a ratio; null where it does. Throws for settings its codec does not have. */
function refusal(profile: Profile, ratio: number, modes: ChosenModes): KvtcError | null {
  try {
    ranksInUse(profile, { ratio, ...modes });
    return null;
  } catch (error) {
    if (isKvtcError(error, 'KVTC_PLAN_MISSING')) return error;
    throw error;
  }
}

function checkModel(profile: Profile, identity: ModelIdentity): void {
  if (profile.model.fingerprint === identity.fingerprint) return;
  throw new KvtcError(
    'KVTC_MODEL_MISMATCH',
    `the profile belongs to model ${profile.model.name} (${profile.model.fingerprint.slice(0, 12)}), the file is ${identity.name} (${identity.fingerprint.slice(0, 12)})`,
    { got: identity.fingerprint, expected: profile.model.fingerprint },
  );
}
