// The hot loops of encoding in WebAssembly's text format: choosing a token's steps, and writing steps. The same algorithms
// as symbolise.ts and rans.ts, which explain them; tests hold both to the same bits. Memory: layout.ts.

import { CLASS_MIN } from '../classes.ts';
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

/** Address of 16 zero bytes: the unused end of the weights. */
const ZEROS = WEIGHTS + 4 * 48;

const pushRaw = (value: string, bits: string): string => `
  (i32.store ${get('at')} ${sub(i32(-1), `(i32.or (i32.shl ${value} ${i32(4)}) ${bits})`)})
  ${set('at', add(get('at'), i32(4)))}`;

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

;; Steps of one token's pairs [0, $pairs) from the coefficients at $from, to $at; returns their end.
(func $symbolise (export "symbolise") (param $from i32) (param $pairs i32) (param $scale f64) (param $tokenShift i32)
  (param $expected i32) (param $pairClasses i32) (param $componentClasses i32) (param $at i32) (result i32)
  (local $u i32) (local $shift i32) (local $observed i32) (local $pairClass i32) (local $row i32) (local $c i32) (local $n i32)
  (local $k i32) (local $own i32) (local $a i32) (local $b i32) (local $size i32) (local $reach i32) (local $side i32) (local $weight i32)
  (local $w v128) (local $m v128) (local $s v128) (local $scaled i64) (local $base i64)
  ${set('shift', get('tokenShift'))}
  (block $done (loop $each
    (br_if $done (i32.ge_s ${get('u')} ${get('pairs')}))
    (if (i32.eqz (i32.and ${get('u')} ${i32(15)})) (then (if ${get('u')} (then
      ${setRatio(get('observed'), `(i32.load ${add(get('expected'), `(i32.shr_u ${get('u')} ${i32(2)})`)})`)}
      ${set('shift', sub(get('tokenShift'), classShift))}))))
    ${set('pairClass', `(i32.load16_s ${add(get('pairClasses'), `(i32.shl ${get('u')} ${i32(1)})`)})`)}
    ${set('row', sub(sub(get('pairClass'), get('shift')), i32(CLASS_MIN)))}
    (if (i32.gt_s ${get('row')} ${i32(PAIR_CLASS_MAX - CLASS_MIN)})
      (then
        ${[0, 1]
          .map(
            (j) => `
        ${set('own', `(i32.load16_s offset=${2 * j} ${add(get('componentClasses'), `(i32.shl ${get('u')} ${i32(2)})`)})`)}
        ${set('n', i32(0))}
        ${set('c', sub(get('own'), get('shift')))}
        ${clampClass}
        ${set('row', sub(`(select ${i32(SINGLE_CLASS_MAX)} ${get('c')} ${get('n')})`, i32(CLASS_MIN)))}
        ${set('k', `(call $decide (f64.mul (f64.promote_f32 (f32.load offset=${4 * j} ${get('from')})) ${get('scale')}) ${get('row')} ${sub(`(i32.shl ${i32(MAX_Q)} ${get('n')})`, `(i32.const 1)`)})`)}
        ${set('at', `(call $push ${get('at')} ${get('k')} ${get('c')})`)}
        ${set('observed', add(get('observed'), `(i32.mul (call $magnitude ${get('k')} ${get('c')}) ${weightOf(sub(get('own'), get('tokenShift')))})`))}`,
          )
          .join('')})
      (else
        ${set('row', `(i32.and ${get('row')} (i32.xor (i32.shr_s ${get('row')} ${i32(31)}) ${i32(-1)}))`)}
        ${set('own', `(i32.mul ${get('row')} ${i32(CENTROID_ROW_BYTES)})`)}
        (local.set $w (i32x4.trunc_sat_f64x2_s_zero (f64x2.mul (f64x2.promote_low_f32x4 (v128.load64_zero ${get('from')})) (f64x2.splat ${get('scale')}))))
        (local.set $m (i32x4.abs ${get('w')}))
        (local.set $s (i32x4.shr_s ${get('w')} ${i32(31)}))
        (local.set $w (i32x4.sub (i32x4.sub
          (i32x4.max_s (i32x4.shr_s (i32x4.sub ${get('m')} (v128.load32_splat offset=${DECISIONS + 8} ${get('own')})) ${i32(DECISION_BITS)}) (v128.load ${i32(ZEROS)}))
          (i32x4.gt_s ${get('m')} (v128.load32_splat offset=${DECISIONS} ${get('own')})))
          (i32x4.gt_s ${get('m')} (v128.load32_splat offset=${DECISIONS + 4} ${get('own')}))))
        ${set('size', add(`(i32x4.extract_low ${get('w')})`, `(i32x4.extract_next ${get('w')})`))}
        (local.set $w (i32x4.sub (v128.xor ${get('w')} ${get('s')}) ${get('s')}))
        ${set('a', `(i32x4.extract_low ${get('w')})`)}
        ${set('b', `(i32x4.extract_next ${get('w')})`)}
        (if (i32.shr_u (i32.or (i32x4.extract_low ${get('m')}) (i32x4.extract_next ${get('m')})) ${i32(26)})
          (then
            ${set('a', `(call $decide (f64.mul (f64.promote_f32 (f32.load ${get('from')})) ${get('scale')}) ${get('row')} ${i32(MAX_Q)})`)}
            ${set('b', `(call $decide (f64.mul (f64.promote_f32 (f32.load offset=4 ${get('from')})) ${get('scale')}) ${get('row')} ${i32(MAX_Q)})`)}))
        ${set('reach', sub(i32(3), `(i32.le_s ${get('row')} ${i32(SHORT_PAIR_CLASS_MAX - CLASS_MIN)})`))}
        ${set('side', add(`(i32.shl ${get('reach')} ${i32(1)})`, i32(1)))}
        ${set('weight', `(i32.load offset=${WEIGHTS} (i32.shl ${sub(sub(get('pairClass'), get('tokenShift')), i32(CLASS_MIN))} ${i32(2)}))`)}
        ${set('own', `(i32.shl ${add(get('row'), i32(SINGLE_TABLES))} ${i32(6)})`)}
        (if (i32.and (i32.lt_u ${add(get('a'), get('reach'))} ${get('side')}) (i32.lt_u ${add(get('b'), get('reach'))} ${get('side')}))
          (then
            (i32.store ${get('at')} ${add(get('own'), add(`(i32.mul ${get('side')} ${add(get('a'), get('reach'))})`, add(get('b'), get('reach'))))})
            ${set('at', add(get('at'), i32(4)))}
            ${set('observed', add(get('observed'), `(i32.mul ${get('size')} ${get('weight')})`))})
          (else
            (i32.store ${get('at')} ${add(get('own'), `(i32.mul ${get('side')} ${get('side')})`)})
            ${set('c', add(get('row'), i32(CLASS_MIN)))}
            ${set('at', `(call $push (call $push ${add(get('at'), i32(4))} ${get('a')} ${get('c')}) ${get('b')} ${get('c')})`)}
            ${set('observed', add(get('observed'), `(i32.mul ${add(`(call $magnitude ${get('a')} ${get('c')})`, `(call $magnitude ${get('b')} ${get('c')})`)} ${get('weight')})`))}))))
    ${set('from', add(get('from'), i32(8)))}
    ${set('u', add(get('u'), i32(1)))}
    (br $each)))
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
        ${set('f', `(i32.load offset=8 ${get('entry')})`)}
        ;; The word is stored in any case and kept only if needed: whether it is cannot be foreseen.
        ${set('full', `(i32.ge_u ${get('x')} (i32.shl ${get('f')} ${i32(19)}))`)}
        (i32.store16 ${sub(get('p'), i32(2))} ${get('x')})
        ${set('p', sub(get('p'), `(i32.shl ${get('full')} ${i32(1)})`))}
        ${set('x', `(i32.shr_u ${get('x')} (i32.shl ${get('full')} ${i32(4)}))`)}
        ${set('x', add(add(get('x'), `(i32.load offset=12 ${get('entry')})`), `(i32.mul ${sub(i32(4096), get('f'))} (i32.wrap_i64 (i64.shr_u (i64.mul (i64.extend_i32_u ${get('x')}) (i64.load ${get('entry')})) (i64.const 43))))`))})
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
