// The hot loop of decoding in WebAssembly's text format: all lanes of a turn. The same algorithm as decode.ts and rans.ts,
// which explain it; tests hold both to the same bits. Memory: layout.ts.

import { LOWER_BOUND, PROBABILITY_BITS, PROBABILITY_SCALE } from '../../entropy/rans.ts';
import { BLOCK_COMPONENTS, CLASS_MIN } from '../classes.ts';
import {
  ENTRY_STRIDE,
  PAIR_CLASS_MAX,
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
import {
  CENTROIDS,
  CENTROID_ROW_BYTES,
  ENTRIES,
  ENTRY_BYTES,
  LANE,
  LANES,
  LANE_BYTES,
  PAIR_ESCAPE_MARK,
  SYMBOLS,
  WEIGHTS,
} from './layout.ts';

const TOP_ROW = SINGLE_CLASS_MAX - CLASS_MIN;

/** First address of a table's slots and entries; tables of pairs follow those of singles. */
const PAIR_SYMBOLS = SYMBOLS + PROBABILITY_SCALE * SINGLE_TABLES;
const PAIR_ENTRIES = ENTRIES + ENTRY_BYTES * ENTRY_STRIDE * SINGLE_TABLES;

/** $slot, $q and $entry ← slot, symbol and entry's place of the state in `x`, by table $row of the slots at `symbols`. */
const readSymbol = (x: string, symbols: number): string => `
  ${set('slot', `(i32.and ${get(x)} ${i32(PROBABILITY_SCALE - 1)})`)}
  ${set('q', `(i32.load8_u offset=${symbols} (i32.or (i32.shl ${get('row')} ${i32(PROBABILITY_BITS)}) ${get('slot')}))`)}
  ${set('entry', `(i32.shl ${add(`(i32.shl ${get('row')} ${i32(6)})`, get('q'))} ${i32(4)})`)}`;

/** `x` ← the state after that symbol, by the entries at `entries`; it may want a word now. */
const afterSymbol = (x: string, entries: number): string => `
  ${set('packed', `(i32.load offset=${entries} ${get('entry')})`)}
  ${set(x, add(`(i32.mul (i32.shr_u ${get('packed')} ${i32(PROBABILITY_BITS)}) (i32.shr_u ${get(x)} ${i32(PROBABILITY_BITS)}))`, sub(get('slot'), `(i32.and ${get('packed')} ${i32(PROBABILITY_SCALE - 1)})`)))}`;

/** `x` takes a word at `p` if it wants one, without a branch. */
const takeWord = (x: string, p: string): string => `
  ${set('r', `(i32.shr_s (i32.sub ${get(x)} ${i32(LOWER_BOUND)}) ${i32(31)})`)}
  ${set(x, `(i32.or (i32.shl ${get(x)} (i32.and ${get('r')} ${i32(16)})) (i32.and (i32.load16_u ${get(p)}) ${get('r')}))`)}
  ${set(p, sub(get(p), `(i32.shl ${get('r')} ${i32(1)})`))}`;

/** The two lanes that walk together: the record at $lane and the next. Locals carry the name. */
const WALKERS = ['A', 'B'] as const;
type Walker = (typeof WALKERS)[number];

const fieldOf = (s: Walker, name: keyof typeof LANE): string =>
  `(i32.load offset=${LANE[name] + (s === 'A' ? 0 : LANE_BYTES)} ${get('lane')})`;
const setFieldOf = (s: Walker, name: keyof typeof LANE, value: string): string =>
  `(i32.store offset=${LANE[name] + (s === 'A' ? 0 : LANE_BYTES)} ${get('lane')} ${value})`;

/** A lane's locals for the block of pairs from $first on; $end ← the last place that either lane has pairs before. */
const enterBlock = (s: Walker): string => `
  ${set(`n${s}`, fieldOf(s, 'pairCount'))}
  (if (i32.gt_s ${get(`n${s}`)} ${add(get('first'), i32(BLOCK_COMPONENTS / 2))})
    (then ${set(`n${s}`, add(get('first'), i32(BLOCK_COMPONENTS / 2)))}))
  ${set('end', `(select ${get('end')} ${get(`n${s}`)} (i32.gt_s ${get('end')} ${get(`n${s}`)}))`)}
  ${set(`observed${s}`, fieldOf(s, 'observed'))}
  (if (i32.and (i32.gt_s ${get('first')} ${i32(0)}) (i32.gt_s ${get(`n${s}`)} ${get('first')})) (then
    ${setRatio(get(`observed${s}`), `(i32.load ${add(fieldOf(s, 'expected'), `(i32.shr_u ${get('first')} ${i32(2)})`)})`)}
    ${setFieldOf(s, 'shift', sub(fieldOf(s, 'tokenShift'), classShift))}))
  ;; Less the shift and CLASS_MIN a class is a table, less the token's shift and CLASS_MIN it is a weight's place.
  ${set(`shift${s}`, add(fieldOf(s, 'shift'), i32(CLASS_MIN)))}
  ${set(`base${s}`, add(fieldOf(s, 'tokenShift'), i32(CLASS_MIN)))}
  ${set(`x${s}`, fieldOf(s, 'state'))}
  ${set(`p${s}`, fieldOf(s, 'position'))}
  ${set(`to${s}`, add(fieldOf(s, 'row'), `(i32.shl ${get('first')} ${i32(3)})`))}
  ${set(`step${s}`, `(v128.load32_splat offset=${LANE.step + (s === 'A' ? 0 : LANE_BYTES)} ${get('lane')})`)}`;

/** A lane's locals back into its record. */
const keep = (s: Walker): string => `
  ${setFieldOf(s, 'state', get(`x${s}`))}
  ${setFieldOf(s, 'position', get(`p${s}`))}
  ${setFieldOf(s, 'observed', get(`observed${s}`))}`;

/** Table $row's single by the function that knows all of them, for what is rare. */
const callSingle = (s: Walker, offset: number): string => `
  ${keep(s)}
  (call $single ${s === 'A' ? get('lane') : add(get('lane'), i32(LANE_BYTES))} ${add(get('row'), i32(CLASS_MIN))} ${get('weight')} ${add(get(`to${s}`), i32(offset))})
  ${set(`x${s}`, fieldOf(s, 'state'))}
  ${set(`p${s}`, fieldOf(s, 'position'))}
  ${set(`observed${s}`, fieldOf(s, 'observed'))}`;

/** Component j of pair $u by itself. */
const decodeSingle = (s: Walker, j: 0 | 1): string => `
  ${set('weight', `(i32.load16_s offset=${2 * j} ${add(get('componentClasses'), `(i32.shl ${get('u')} ${i32(2)})`)})`)}
  ${set('row', sub(get('weight'), get(`shift${s}`)))}
  ${set('weight', weightOf(add(sub(get('weight'), get(`base${s}`)), i32(CLASS_MIN))))}
  (block $read${s}${j}
    (block $rare${s}${j}
      (br_if $rare${s}${j} (i32.ge_u ${get('row')} ${i32(SINGLE_TABLES)}))
      ${readSymbol(`x${s}`, SYMBOLS)}
      (br_if $rare${s}${j} (i32.eq ${get('q')} ${i32(SINGLE_ESCAPE)}))
      ${afterSymbol(`x${s}`, ENTRIES)}
      ${takeWord(`x${s}`, `p${s}`)}
      ${set(`observed${s}`, add(get(`observed${s}`), `(i32.mul (i32.load offset=${ENTRIES + 12} ${get('entry')}) ${get('weight')})`))}
      (f32.store offset=${4 * j} ${get(`to${s}`)} (f32.mul (f32.load offset=${ENTRIES + 4} ${get('entry')}) (f32x4.extract_low ${get(`step${s}`)})))
      (br $read${s}${j}))
    ${callSingle(s, 4 * j)})`;

/** Pair $u of a lane, if it has it. */
const decodePair = (s: Walker): string => `
  (block $next${s}
    (br_if $next${s} (i32.ge_s ${get('u')} ${get(`n${s}`)}))
    ${set('row', sub(get('pairClass'), get(`shift${s}`)))}
    (if (i32.gt_s ${get('row')} ${i32(PAIR_CLASS_MAX - CLASS_MIN)})
      (then
        ${decodeSingle(s, 0)}
        ${decodeSingle(s, 1)})
      (else
        ${set('row', `(i32.and ${get('row')} (i32.xor (i32.shr_s ${get('row')} ${i32(31)}) ${i32(-1)}))`)}
        ${readSymbol(`x${s}`, PAIR_SYMBOLS)}
        ${afterSymbol(`x${s}`, PAIR_ENTRIES)}
        ${takeWord(`x${s}`, `p${s}`)}
        ${set('magnitude', `(i32.load offset=${PAIR_ENTRIES + 12} ${get('entry')})`)}
        ;; A coded pair's base class is at least the cut, and here at most two above PAIR_CLASS_MAX.
        ${set('weight', `(i32.load offset=${WEIGHTS} (i32.shl ${sub(get('pairClass'), get(`base${s}`))} ${i32(2)}))`)}
        (if (i32.eq ${get('magnitude')} ${i32(PAIR_ESCAPE_MARK)})
          (then
            ${callSingle(s, 0)}
            ${callSingle(s, 4)})
          (else
            ${set(`observed${s}`, add(get(`observed${s}`), `(i32.mul ${get('magnitude')} ${get('weight')})`))}
            (i64.store ${get(`to${s}`)} (i64x2.extract_low (f32x4.mul (v128.load64_zero offset=${PAIR_ENTRIES + 4} ${get('entry')}) ${get(`step${s}`)})))))))
    ${set(`to${s}`, add(get(`to${s}`), i32(8)))})`;

/** Functions `decode`, and what it calls. */
export const DECODE_TEXT = `
(func $refill (param $lane i32) (param $x i32) (local $r i32) (local $p i32)
  ${set('p', field('position'))}
  ${takeWord('x', 'p')}
  ${setField('state', get('x'))}
  ${setField('position', get('p'))})

(func $weight (param $c i32) (result i32)
  (if (i32.lt_s ${get('c')} ${i32(CLASS_MIN)}) (then ${set('c', i32(CLASS_MIN))}))
  (if (i32.gt_s ${get('c')} ${i32(SINGLE_CLASS_MAX)}) (then ${set('c', i32(SINGLE_CLASS_MAX))}))
  (i32.load offset=${WEIGHTS} (i32.shl ${sub(get('c'), i32(CLASS_MIN))} ${i32(2)})))

(func $raw (param $lane i32) (param $bits i32) (result i32) (local $x i32)
  ${set('x', field('state'))}
  (call $refill ${get('lane')} (i32.shr_u ${get('x')} ${get('bits')}))
  (i32.and ${get('x')} ${sub(`(i32.shl ${i32(1)} ${get('bits')})`, i32(1))}))

;; Integer k of a class's row as a value in steps.
(func $value (param $k i32) (param $row i32) (result f32) (local $m i32) (local $cell i32) (local $v f32)
  ${set('m', absolute('k'))}
  ${set('cell', `(select ${get('m')} ${i32(3)} (i32.lt_s ${get('m')} ${i32(3)}))`)}
  (local.set $v (f32.demote_f64 (f64.add (f64.convert_i32_s ${get('m')})
    (f64.promote_f32 (f32.load offset=${CENTROIDS - 4}
      ${add(`(i32.mul ${get('row')} ${i32(CENTROID_ROW_BYTES)})`, `(i32.shl ${get('cell')} ${i32(2)})`)})))))
  (select (f32.neg ${get('v')}) ${get('v')} (i32.lt_s ${get('k')} ${i32(0)})))

;; One component by itself, of shifted class $c, stored times the token's step at $to.
(func $single (param $lane i32) (param $c i32) (param $weight i32) (param $to i32)
  (local $n i32) (local $x i32) (local $slot i32) (local $entry i32) (local $packed i32) (local $q i32) (local $row i32)
  ${clampClass}
  ${set('row', sub(get('c'), add(`(i32.shl ${get('n')} ${i32(2)})`, i32(CLASS_MIN))))}
  ${set('x', field('state'))}
  ${readSymbol('x', SYMBOLS)}
  ${afterSymbol('x', ENTRIES)}
  (call $refill ${get('lane')} ${get('x')})
  ${setField('observed', add(field('observed'), `(i32.mul (i32.load offset=${ENTRIES + 12} ${get('entry')}) ${get('weight')})`))}
  (if (i32.or ${get('n')} (i32.eq ${get('q')} ${i32(SINGLE_ESCAPE)}))
    (then
      (if (i32.eq ${get('q')} ${i32(SINGLE_ESCAPE)})
        (then
          ${set('x', `(call $raw ${get('lane')} ${i32(4)})`)}
          ${set('q', add(i32(SINGLE_REACH), `(i32.shl ${i32(1)} ${get('x')})`))}
          (if ${get('x')} (then ${set('q', add(get('q'), `(call $raw ${get('lane')} ${get('x')})`))}))
          (if (call $raw ${get('lane')} ${i32(1)}) (then ${set('q', sub(i32(0), get('q')))})))
        (else ${set('q', sub(get('q'), i32(SINGLE_REACH)))}))
      (if ${get('n')}
        (then
          ${set('row', i32(TOP_ROW))}
          ${set('q', sub(`(i32.shl ${get('q')} ${get('n')})`, `(i32.shl ${i32(1)} ${sub(get('n'), i32(1))})`))}
          ${set('q', add(get('q'), `(call $raw ${get('lane')} ${get('n')})`))}))
      (if ${get('q')}
        (then (f32.store ${get('to')} (f32.mul (call $value ${get('q')} ${get('row')}) (f32.load offset=${LANE.step} ${get('lane')}))))
        (else (i32.store ${get('to')} ${i32(0)}))))
    (else (f32.store ${get('to')} (f32.mul (f32.load offset=${ENTRIES + 4} ${get('entry')}) (f32.load offset=${LANE.step} ${get('lane')}))))))

;; One token of every lane: pairs [0, $pairs). $laneEnd is the address past the last lane's record, of an even number. Two
;; lanes walk together a block at a time, their states in locals: each waits for its own last step, not for the other's.
(func $decode (export "decode") (param $pairs i32) (param $laneEnd i32) (param $pairClasses i32) (param $componentClasses i32)
  (local $first i32) (local $end i32) (local $u i32) (local $lane i32) (local $pairClass i32) (local $row i32) (local $slot i32)
  (local $entry i32) (local $packed i32) (local $magnitude i32) (local $q i32) (local $weight i32) (local $r i32)
  ${WALKERS.map(
    (s) =>
      `(local $x${s} i32) (local $p${s} i32) (local $observed${s} i32) (local $shift${s} i32) (local $base${s} i32)
  (local $n${s} i32) (local $to${s} i32) (local $step${s} v128)`,
  ).join(' ')} (local $scaled i64) (local $base i64)
  (block $done (loop $blocks
    (br_if $done (i32.ge_s ${get('first')} ${get('pairs')}))
    ${set('lane', i32(LANES))}
    (loop $walk
      ${set('end', i32(0))}
      ${WALKERS.map(enterBlock).join('')}
      ${set('u', get('first'))}
      (block $walked (loop $each
        (br_if $walked (i32.ge_s ${get('u')} ${get('end')}))
        ${set('pairClass', `(i32.load16_s ${add(get('pairClasses'), `(i32.shl ${get('u')} ${i32(1)})`)})`)}
        ${WALKERS.map(decodePair).join('')}
        ${set('u', add(get('u'), i32(1)))}
        (br $each)))
      ${WALKERS.map(keep).join('')}
      ${set('lane', add(get('lane'), i32(2 * LANE_BYTES)))}
      (br_if $walk (i32.lt_u ${get('lane')} ${get('laneEnd')})))
    ${set('first', add(get('first'), i32(BLOCK_COMPONENTS / 2)))}
    (br $blocks))))
`;
