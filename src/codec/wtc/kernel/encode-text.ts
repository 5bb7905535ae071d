// The hot loops of encoding in WebAssembly's text format: choosing a token's steps, and writing steps. The same algorithms
// as symbolise.ts and rans.ts, which explain them; tests hold both to the same bits. Memory: layout.ts.

import { BLOCK_COMPONENTS, CLASS_MIN } from '../classes.ts';
import { DECISION_BITS } from '../symbolise.ts';
import {
  MAX_EXCESS,
  PAIR_CLASS_MAX,
  SHORT_PAIR_CLASS_MAX,
  SINGLE_CLASS_MAX,
  SINGLE_ESCAPE,
  SINGLE_REACH,
  SINGLE_TABLES,
} from '../symbols.ts';
import {
  absolute,
  add,
  clampClass,
  classShift,
  field,
  get,
  i32,
  set,
  setField,
  setRatio,
  sub,
  weightOf,
} from './expressions.ts';
import { CENTROID_ROW_BYTES, DECISIONS, ENCODER_BYTES, WEIGHTS } from './layout.ts';

const MAX_Q = SINGLE_REACH + MAX_EXCESS - 1;

const pushRaw = (value: string, bits: string): string => `
  (i32.store ${get('at')} ${sub(i32(-1), `(i32.or (i32.shl ${value} ${i32(4)}) ${bits})`)})
  ${set('at', add(get('at'), i32(4)))}`;

/**
 * Magnitudes in decision units count as this at most, which is far beyond what four at a time can be coded with. So does
 * what an i32 cannot hold, whatever relaxed truncation makes of it: its magnitude as a u32 is at least 2^31 − 1.
 */
const MOST_UNITS = 2 ** 26;

/** An integer up to this was not held back by that. */
const LARGE_INTEGER = 60_000;

/** `v` ← four coefficients at $from in whole decision units; `k` ← how many thresholds each has passed. */
const decideFour = (v: string, k: string, offset: number): string => {
  const two = (at: number): string =>
    `(i32x4.relaxed_trunc_f64x2_s_zero (f64x2.mul (f64x2.promote_low_f32x4 (v128.load64_zero offset=${at} ${get('from')})) ${get('scales')}))`;
  return `
            (local.set $${v} (i64x2.low_of_both ${two(offset)} ${two(offset + 8)}))
            (local.set $${k} (i32x4.min_u (i32x4.abs ${get(v)}) ${get('most')}))
            (local.set $${k} (i32x4.sub (i32x4.sub
              (i32x4.max_s (i32x4.shr_s (i32x4.sub ${get(k)} ${get('above')}) ${i32(DECISION_BITS)}) ${get('zero')})
              (i32x4.gt_s ${get(k)} ${get('one')}))
              (i32x4.gt_s ${get(k)} ${get('two')})))`;
};

/** Thresholds of table row $row, the same in all places. */
const loadDecisions = `
        ${set('k', `(i32.mul ${get('row')} ${i32(CENTROID_ROW_BYTES)})`)}
        (local.set $one (v128.load32_splat offset=${DECISIONS} ${get('k')}))
        (local.set $two (v128.load32_splat offset=${DECISIONS + 4} ${get('k')}))
        (local.set $above (v128.load32_splat offset=${DECISIONS + 8} ${get('k')}))`;

/** The sum of four i32. */
const sumOf = (v: string): string => {
  const halves = `(i32x4.add ${get(v)} (i64x2.shr_u ${get(v)} ${i32(32)}))`;
  return add(`(i32x4.extract_low ${halves})`, `(i32x4.extract_third ${halves})`);
};

/** Integers of magnitudes `k` with the signs of `v`. */
const signed = (k: string, v: string): string =>
  `(i32x4.sub (v128.xor ${get(k)} (i32x4.shr_s ${get(v)} ${i32(31)})) (i32x4.shr_s ${get(v)} ${i32(31)}))`;

/** $c, $n and $row ← class, low bits and table row of a single whose own class is $own. */
const enterSingle = `
        ${set('n', i32(0))}
        ${set('c', sub(get('own'), get('shift')))}
        ${clampClass}
        ${set('row', sub(`(select ${i32(SINGLE_CLASS_MAX)} ${get('c')} ${get('n')})`, i32(CLASS_MIN)))}`;

/** Component j of pair $u by itself. */
const symboliseSingle = (j: number): string => `
        ${set('own', `(i32.load16_s offset=${2 * j} ${add(get('componentClasses'), `(i32.shl ${get('u')} ${i32(2)})`)})`)}
        ${enterSingle}
        ${set('k', `(call $decide (f64.mul (f64.promote_f32 (f32.load offset=${4 * j} ${get('from')})) ${get('scale')}) ${get('row')} ${sub(`(i32.shl ${i32(MAX_Q)} ${get('n')})`, `(i32.const 1)`)})`)}
        ${set('at', `(call $push ${get('at')} ${get('k')} ${get('c')})`)}
        ${set('observed', add(get('observed'), `(i32.mul (call $magnitude ${get('k')} ${get('c')}) ${weightOf(sub(get('own'), get('tokenShift')))})`))}`;

/** One pair, which may be an escape: the last of a run, and any that is not within reach. */
const symbolisePair = `
          ${set('a', `(call $decide (f64.mul (f64.promote_f32 (f32.load ${get('from')})) ${get('scale')}) ${get('row')} ${i32(MAX_Q)})`)}
          ${set('b', `(call $decide (f64.mul (f64.promote_f32 (f32.load offset=4 ${get('from')})) ${get('scale')}) ${get('row')} ${i32(MAX_Q)})`)}
          (if (i32.and (i32.lt_u ${add(get('a'), get('reach'))} ${get('side')}) (i32.lt_u ${add(get('b'), get('reach'))} ${get('side')}))
            (then
              (i32.store ${get('at')} ${add(get('own'), add(`(i32.mul ${get('side')} ${add(get('a'), get('reach'))})`, add(get('b'), get('reach'))))})
              ${set('at', add(get('at'), i32(4)))}
              ${set('observed', add(get('observed'), `(i32.mul ${add(absolute('a'), absolute('b'))} ${get('weight')})`))})
            (else
              (i32.store ${get('at')} ${add(get('own'), `(i32.mul ${get('side')} ${get('side')})`)})
              ${set('c', add(get('row'), i32(CLASS_MIN)))}
              ${set('at', `(call $push (call $push ${add(get('at'), i32(4))} ${get('a')} ${get('c')}) ${get('b')} ${get('c')})`)}
              ${set('observed', add(get('observed'), `(i32.mul ${add(`(call $magnitude ${get('a')} ${get('c')})`, `(call $magnitude ${get('b')} ${get('c')})`)} ${get('weight')})`))}))`;

/** Functions `symbolise`, `finite` and `write`, and what they call; `$weight` is the decoder's. */
export const ENCODE_TEXT = `
;; Integer of $v = c / step in decision units.
(func $decide (param $v f64) (param $row i32) (param $limit i32) (result i32)
  (local $w i32) (local $s i32) (local $m i32) (local $a i32) (local $k i32) (local $at i32)
  (if (f64.ge (f64.abs ${get('v')}) (f64.const 1073741824))
    (then
      ${set('k', `(i32.trunc_sat_f64_s (f64.floor (f64.add (f64.mul (f64.abs ${get('v')}) (f64.const 0.0009765625)) (f64.const 0.5))))`)}
      (if (i32.gt_s ${get('k')} ${get('limit')}) (then ${set('k', get('limit'))}))
      (if (f64.lt ${get('v')} (f64.const 0)) (then ${set('k', sub(i32(0), get('k')))}))
      (return ${get('k')})))
  ${set('w', `(i32.trunc_sat_f64_s ${get('v')})`)}
  ${set('s', `(i32.shr_s ${get('w')} ${i32(31)})`)}
  ${set('m', sub(`(i32.xor ${get('w')} ${get('s')})`, get('s')))}
  ${set('at', `(i32.mul ${get('row')} ${i32(CENTROID_ROW_BYTES)})`)}
  ${set('a', `(i32.shr_s ${sub(get('m'), `(i32.load offset=${DECISIONS + 8} ${get('at')})`)} ${i32(DECISION_BITS)})`)}
  ${set('a', `(i32.and ${get('a')} (i32.xor (i32.shr_s ${get('a')} ${i32(31)}) ${i32(-1)}))`)}
  ${set('k', add(get('a'), add(`(i32.gt_s ${get('m')} (i32.load offset=${DECISIONS} ${get('at')}))`, `(i32.gt_s ${get('m')} (i32.load offset=${DECISIONS + 4} ${get('at')}))`)))}
  ${set('k', `(select ${get('limit')} ${get('k')} (i32.gt_s ${get('k')} ${get('limit')}))`)}
  ${sub(`(i32.xor ${get('k')} ${get('s')})`, get('s'))})

;; Steps of one component of clamped class $c by itself; returns where the next step goes.
(func $push (param $at i32) (param $k i32) (param $c i32) (result i32) (local $n i32) (local $q i32) (local $m i32) (local $l i32)
  ${clampClass}
  (if ${get('n')} (then ${set('k', add(get('k'), `(i32.shl ${i32(1)} ${sub(get('n'), i32(1))})`))}))
  ${set('q', `(i32.shr_s ${get('k')} ${get('n')})`)}
  ${set('c', `(i32.shl ${sub(get('c'), add(`(i32.shl ${get('n')} ${i32(2)})`, i32(CLASS_MIN)))} ${i32(6)})`)}
  ${set('m', absolute('q'))}
  (if (i32.le_s ${get('m')} ${i32(SINGLE_REACH)})
    (then
      (i32.store ${get('at')} ${add(get('c'), add(get('q'), i32(SINGLE_REACH)))})
      ${set('at', add(get('at'), i32(4)))})
    (else
      (i32.store ${get('at')} ${add(get('c'), i32(SINGLE_ESCAPE))})
      ${set('at', add(get('at'), i32(4)))}
      ${set('m', sub(get('m'), i32(SINGLE_REACH)))}
      ${set('l', sub(i32(31), `(i32.clz ${get('m')})`))}
      ${pushRaw(get('l'), i32(4))}
      (if ${get('l')} (then ${pushRaw(sub(get('m'), `(i32.shl ${i32(1)} ${get('l')})`), get('l'))}))
      ${pushRaw(`(i32.lt_s ${get('q')} ${i32(0)})`, i32(1))}))
  (if ${get('n')} (then ${pushRaw(`(i32.and ${get('k')} ${sub(`(i32.shl ${i32(1)} ${get('n')})`, i32(1))})`, get('n'))}))
  ${get('at')})

;; What a single of clamped class $c counts: |q|, at most one above its reach.
(func $magnitude (param $k i32) (param $c i32) (result i32) (local $n i32)
  ${clampClass}
  (if ${get('n')} (then ${set('k', `(i32.shr_s ${add(get('k'), `(i32.shl ${i32(1)} ${sub(get('n'), i32(1))})`)} ${get('n')})`)}))
  ${set('k', absolute('k'))}
  (select ${get('k')} ${i32(SINGLE_REACH + 1)} (i32.lt_s ${get('k')} ${i32(SINGLE_REACH + 1)})))

;; Steps of one token's pairs [0, $pairs) from the coefficients at $from, to $at; returns their end. Within a block pairs of
;; one class follow one another: their table is chosen once, and four pairs are decided at a time.
(func $symbolise (export "symbolise") (param $from i32) (param $pairs i32) (param $scale f64) (param $tokenShift i32)
  (param $expected i32) (param $pairClasses i32) (param $runEnds i32) (param $componentClasses i32) (param $at i32) (result i32)
  (local $u i32) (local $stop i32) (local $shift i32) (local $observed i32) (local $pairClass i32) (local $row i32) (local $c i32)
  (local $n i32) (local $k i32) (local $own i32) (local $a i32) (local $b i32) (local $reach i32) (local $side i32) (local $weight i32)
  (local $first v128) (local $second v128) (local $sizes v128) (local $sum v128) (local $scales v128) (local $zero v128)
  (local $one v128) (local $two v128) (local $above v128) (local $most v128) (local $reaches v128) (local $sides v128)
  (local $ones v128) (local $bases v128) (local $k0 v128) (local $k1 v128) (local $four i64) (local $scaled i64) (local $base i64)
  ${set('shift', get('tokenShift'))}
  (local.set $scales (f64x2.splat ${get('scale')}))
  (local.set $most (i32x4.splat ${i32(MOST_UNITS)}))
  (local.set $ones (i32x4.splat ${i32(0x10001)}))
  (block $done (loop $runs
    (br_if $done (i32.ge_s ${get('u')} ${get('pairs')}))
    (if (i32.eqz (i32.and ${get('u')} ${i32(BLOCK_COMPONENTS / 2 - 1)})) (then (if ${get('u')} (then
      ${setRatio(get('observed'), `(i32.load ${add(get('expected'), `(i32.shr_u ${get('u')} ${i32(2)})`)})`)}
      ${set('shift', sub(get('tokenShift'), classShift))}))))
    ${set('pairClass', `(i32.load16_s ${add(get('pairClasses'), `(i32.shl ${get('u')} ${i32(1)})`)})`)}
    ${set('stop', `(i32.load ${add(get('runEnds'), `(i32.shl ${get('u')} ${i32(2)})`)})`)}
    ${set('k', add(`(i32.or ${get('u')} ${i32(BLOCK_COMPONENTS / 2 - 1)})`, i32(1)))}
    ${set('stop', `(select ${get('stop')} ${get('k')} (i32.lt_s ${get('stop')} ${get('k')}))`)}
    ${set('stop', `(select ${get('stop')} ${get('pairs')} (i32.lt_s ${get('stop')} ${get('pairs')}))`)}
    ${set('row', sub(sub(get('pairClass'), get('shift')), i32(CLASS_MIN)))}
    (if (i32.gt_s ${get('row')} ${i32(PAIR_CLASS_MAX - CLASS_MIN)})
      (then (block $singles (loop $single
        (block $alone
          ;; Two pairs whose components are all of one class are decided together.
          (br_if $alone (i32.lt_s ${sub(get('stop'), get('u'))} ${i32(2)}))
          (local.set $four (i64.load ${add(get('componentClasses'), `(i32.shl ${get('u')} ${i32(2)})`)}))
          ${set('own', `(i32.load16_s ${add(get('componentClasses'), `(i32.shl ${get('u')} ${i32(2)})`)})`)}
          (br_if $alone (i64.ne ${get('four')} (i64.mul (i64.and ${get('four')} (i64.const 65535)) (i64.const ${0x1_0001_0001_0001}))))
          ${enterSingle}
          ${loadDecisions}
          ${decideFour('first', 'k0', 0)}
          (br_if $alone (v128.any_true (i32x4.gt_s ${get('k0')} (i32x4.splat ${i32(LARGE_INTEGER)}))))
          ;; Cells of 2^n integers, centred on a multiple of that.
          (local.set $k0 (i32x4.add ${signed('k0', 'first')} (i32x4.splat (i32.shr_u (i32.shl ${i32(1)} ${get('n')}) ${i32(1)}))))
          (local.set $second (i32x4.shr_s ${get('k0')} ${get('n')}))
          (local.set $k1 (i32x4.abs ${get('second')}))
          (br_if $alone (v128.any_true (i32x4.gt_s ${get('k1')} (i32x4.splat ${i32(SINGLE_REACH)}))))
          ${set('observed', add(get('observed'), `(i32.mul ${sumOf('k1')} ${weightOf(sub(get('own'), get('tokenShift')))})`))}
          (local.set $second (i32x4.add ${get('second')} (i32x4.splat ${add(`(i32.shl ${sub(get('c'), add(`(i32.shl ${get('n')} ${i32(2)})`, i32(CLASS_MIN)))} ${i32(6)})`, i32(SINGLE_REACH))})))
          (if ${get('n')}
            (then
              (local.set $k0 (v128.and ${get('k0')} (i32x4.splat ${sub(`(i32.shl ${i32(1)} ${get('n')})`, i32(1))})))
              (local.set $k0 (i32x4.sub (i32x4.splat ${sub(i32(-1), get('n'))}) (i32x4.shl ${get('k0')} ${i32(4)})))
              (v128.store ${get('at')} (i32x4.low_in_turn ${get('second')} ${get('k0')}))
              (v128.store offset=16 ${get('at')} (i32x4.high_in_turn ${get('second')} ${get('k0')}))
              ${set('at', add(get('at'), i32(32)))})
            (else
              (v128.store ${get('at')} ${get('second')})
              ${set('at', add(get('at'), i32(16)))}))
          ${set('from', add(get('from'), i32(16)))}
          ${set('u', add(get('u'), i32(2)))}
          (br_if $single (i32.lt_s ${get('u')} ${get('stop')}))
          (br $singles))
        ${[0, 1].map(symboliseSingle).join('')}
        ${set('from', add(get('from'), i32(8)))}
        ${set('u', add(get('u'), i32(1)))}
        (br_if $single (i32.lt_s ${get('u')} ${get('stop')})))))
      (else
        ${set('row', `(select ${get('row')} ${i32(0)} (i32.gt_s ${get('row')} ${i32(0)}))`)}
        ${loadDecisions}
        ${set('reach', sub(i32(3), `(i32.le_s ${get('row')} ${i32(SHORT_PAIR_CLASS_MAX - CLASS_MIN)})`))}
        ${set('side', add(`(i32.shl ${get('reach')} ${i32(1)})`, i32(1)))}
        ${set('weight', `(i32.load offset=${WEIGHTS} (i32.shl ${sub(sub(get('pairClass'), get('tokenShift')), i32(CLASS_MIN))} ${i32(2)}))`)}
        ${set('own', `(i32.shl ${add(get('row'), i32(SINGLE_TABLES))} ${i32(6)})`)}
        (local.set $reaches (i16x8.splat ${get('reach')}))
        (local.set $sides (i32x4.splat (i32.or ${get('side')} ${i32(0x10000)})))
        (local.set $bases (i32x4.splat ${add(get('own'), `(i32.mul ${get('reach')} ${add(get('side'), i32(1))})`)}))
        (local.set $sum ${get('zero')})
        (block $decided (loop $pair
          (block $apart
            (br_if $apart (i32.lt_s ${sub(get('stop'), get('u'))} ${i32(4)}))
            ${decideFour('first', 'k0', 0)}
            ${decideFour('second', 'k1', 16)}
            (local.set $sizes (i16x8.narrow_i32x4_s ${get('k0')} ${get('k1')}))
            (br_if $apart (v128.any_true (i16x8.gt_s ${get('sizes')} ${get('reaches')})))
            (v128.store ${get('at')} (i32x4.add ${get('bases')} (i32x4.dot_i16x8_s ${get('sides')}
              (i16x8.narrow_i32x4_s ${signed('k0', 'first')} ${signed('k1', 'second')}))))
            (local.set $sum (i32x4.add ${get('sum')} (i32x4.dot_i16x8_s ${get('sizes')} ${get('ones')})))
            ${set('at', add(get('at'), i32(16)))}
            ${set('from', add(get('from'), i32(32)))}
            ${set('u', add(get('u'), i32(4)))}
            (br_if $pair (i32.lt_s ${get('u')} ${get('stop')}))
            (br $decided))
          ${symbolisePair}
          ${set('from', add(get('from'), i32(8)))}
          ${set('u', add(get('u'), i32(1)))}
          (br_if $pair (i32.lt_s ${get('u')} ${get('stop')}))))
        ${set('observed', add(get('observed'), `(i32.mul ${sumOf('sum')} ${get('weight')})`))}))
    (br $runs)))
  ${get('at')})

(func $finite (export "finite") (param $from i32) (param $end i32) (result i32) (local $x v128) (local $nan v128)
  (block $done (loop $each
    (br_if $done (i32.ge_u ${get('from')} ${get('end')}))
    ;; x − x is NaN for NaN and infinities alone.
    (local.set $x (f32x4.sub (v128.load ${get('from')}) (v128.load ${get('from')})))
    (local.set $nan (v128.or ${get('nan')} (f32x4.ne ${get('x')} ${get('x')})))
    ${set('from', add(get('from'), i32(16)))}
    (br $each)))
  (i32.eqz (v128.any_true ${get('nan')})))

;; Codes the steps at [$first, $end), last to first, by the tables at $encoder, into words before the lane's position.
(func $write (export "write") (param $lane i32) (param $first i32) (param $end i32) (param $encoder i32)
  (local $x i32) (local $p i32) (local $step i32) (local $f i32) (local $entry i32) (local $full i32)
  ${set('x', field('state'))}
  ${set('p', field('position'))}
  (block $done (loop $each
    (br_if $done (i32.le_s ${get('end')} ${get('first')}))
    ${set('end', sub(get('end'), i32(4)))}
    ${set('step', `(i32.load ${get('end')})`)}
    (if (i32.ge_s ${get('step')} ${i32(0)})
      (then
        ${set('entry', add(get('encoder'), `(i32.mul ${get('step')} ${i32(ENCODER_BYTES)})`))}
        ;; The word is stored in any case and kept only if needed: whether it is cannot be foreseen.
        (i32.store16 ${sub(get('p'), i32(2))} ${get('x')})
        ${set('full', `(i32.ge_u ${get('x')} (i32.load offset=8 ${get('entry')}))`)}
        ${set('p', `(select ${sub(get('p'), i32(2))} ${get('p')} ${get('full')})`)}
        ${set('x', `(select (i32.shr_u ${get('x')} ${i32(16)}) ${get('x')} ${get('full')})`)}
        ${set('x', add(add(get('x'), `(i32.load16_u offset=14 ${get('entry')})`), `(i32.mul (i32.load16_u offset=12 ${get('entry')}) (i32.wrap_i64 (i64.shr_u (i64.mul (i64.extend_i32_u ${get('x')}) (i64.load ${get('entry')})) (i64.const 43))))`))})
      (else
        ${set('step', sub(i32(-1), get('step')))}
        ${set('f', `(i32.and ${get('step')} ${i32(15)})`)}
        (if (i32.shr_u ${get('x')} ${sub(i32(31), get('f'))}) (then
          ${set('p', sub(get('p'), i32(2)))}
          (i32.store16 ${get('p')} ${get('x')})
          ${set('x', `(i32.shr_u ${get('x')} ${i32(16)})`)}))
        ${set('x', `(i32.or (i32.shl ${get('x')} ${get('f')}) (i32.shr_u ${get('step')} ${i32(4)}))`)}))
    (br $each)))
  ${setField('state', get('x'))}
  ${setField('position', get('p'))})
`;
