// The hot loop of decoding in WebAssembly's text format: all lanes of a turn. The same algorithm as decode.ts and rans.ts,
// which explain it; tests hold both to the same bits. Memory: layout.ts.

import { LOWER_BOUND, PROBABILITY_BITS, PROBABILITY_SCALE } from '../../entropy/rans.ts';
import { BLOCK_COMPONENTS, CLASS_MAX, CLASS_MIN } from '../classes.ts';
import { PAIR_CLASS_MAX, SINGLE_CLASS_MAX, SINGLE_ESCAPE, SINGLE_REACH, SINGLE_TABLES } from '../symbols.ts';
import { absolute, add, clampClass, classShift, field, get, i32, set, setField, setRatio, sub } from './expressions.ts';
import {
  CENTROIDS,
  CENTROID_ROW_BYTES,
  ENTRY,
  LANE,
  LANES,
  LANE_BYTES,
  PAIR_ESCAPE_MARK,
  TABLE_BYTES,
  TABLE_ENTRIES,
  WEIGHTS,
} from './layout.ts';

const TOP_ROW = SINGLE_CLASS_MAX - CLASS_MIN;

/** Address of the first table of pairs: those of singles come before. */
const PAIR_TABLES_AT = TABLE_BYTES * SINGLE_TABLES;

const entryField = (name: keyof typeof ENTRY): string => `offset=${TABLE_ENTRIES + ENTRY[name]} ${get('entry')}`;

/** $slot, $q and $entry ← slot, symbol and entry of the state in `x`, by the table at address `table`. */
const readSymbol = (x: string, table: string): string => `
  ${set('slot', `(i32.and ${get(x)} ${i32(PROBABILITY_SCALE - 1)})`)}
  ${set('q', `(i32.load8_u ${add(get(table), get('slot'))})`)}
  ${set('entry', add(get(table), `(i32.shl ${get('q')} ${i32(4)})`))}`;

/** `x` ← the state after that symbol; it may want a word now. */
const afterSymbol = (x: string): string => `
  ${set(x, add(`(i32.mul (i32.load16_u ${entryField('frequency')}) (i32.shr_u ${get(x)} ${i32(PROBABILITY_BITS)}))`, sub(get('slot'), `(i32.load16_u ${entryField('start')})`)))}`;

/** `x` takes a word at `p` if it wants one, without a branch. */
const takeWord = (x: string, p: string): string => `
  ${set('r', `(i32.lt_u ${get(x)} ${i32(LOWER_BOUND)})`)}
  ${set(x, `(select (i32.or (i32.shl ${get(x)} ${i32(16)}) (i32.load16_u ${get(p)})) ${get(x)} ${get('r')})`)}
  ${set(p, `(select ${add(get(p), i32(2))} ${get(p)} ${get('r')})`)}`;

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

/** $weight clamped to the places there are: what a component by itself counts. */
const singleWeight = (place: string): string => `
  ${set('weight', place)}
  ${set('weight', `(select ${get('weight')} ${i32(0)} (i32.gt_s ${get('weight')} ${i32(0)}))`)}
  ${set('weight', `(select ${get('weight')} ${i32(TOP_ROW)} (i32.lt_s ${get('weight')} ${i32(TOP_ROW)}))`)}
  ${set('weight', `(i32.load offset=${WEIGHTS} (i32.shl ${get('weight')} ${i32(2)}))`)}`;

/** Component j of pair $u by itself. */
const decodeSingle = (s: Walker, j: 0 | 1): string => `
  ${set('q', `(i32.load16_s offset=${2 * j} ${add(get('componentClasses'), `(i32.shl ${get('u')} ${i32(2)})`)})`)}
  ${set('row', sub(get('q'), get(`shift${s}`)))}
  ${singleWeight(sub(get('q'), get(`base${s}`)))}
  (block $read${s}${j}
    (block $rare${s}${j}
      (br_if $rare${s}${j} (i32.ge_u ${get('row')} ${i32(SINGLE_TABLES)}))
      ${set('table', `(i32.mul ${get('row')} ${i32(TABLE_BYTES)})`)}
      ${readSymbol(`x${s}`, 'table')}
      (br_if $rare${s}${j} (i32.eq ${get('q')} ${i32(SINGLE_ESCAPE)}))
      ${afterSymbol(`x${s}`)}
      ${takeWord(`x${s}`, `p${s}`)}
      ${set(`observed${s}`, add(get(`observed${s}`), `(i32.mul (i32.load ${entryField('magnitude')}) ${get('weight')})`))}
      (f32.store offset=${4 * j} ${get(`to${s}`)} (f32.mul (f32.load ${entryField('values')}) (f32x4.extract_low ${get(`step${s}`)})))
      (br $read${s}${j}))
    ${callSingle(s, 4 * j)})`;

/** $row ← that of the run's pairs. */
const pairRow = (s: Walker): string => `
      ${set('row', sub(get('pairClass'), get(`shift${s}`)))}
      ${set('row', `(select ${get('row')} ${i32(0)} (i32.gt_s ${get('row')} ${i32(0)}))`)}`;

/** One pair by the run's table. */
const decodePair = (s: Walker): string => `
  ${readSymbol(`x${s}`, `table${s}`)}
  ${afterSymbol(`x${s}`)}
  ${takeWord(`x${s}`, `p${s}`)}
  ${set('magnitude', `(i32.load ${entryField('magnitude')})`)}
  (if (i32.eq ${get('magnitude')} ${i32(PAIR_ESCAPE_MARK)})
    (then
      ${pairRow(s)}
      ${set('weight', get(`weight${s}`))}
      ${callSingle(s, 0)}
      ${callSingle(s, 4)})
    (else
      ${set(`sum${s}`, add(get(`sum${s}`), get('magnitude')))}
      (v128.store64_low ${get(`to${s}`)} (f32x4.mul (v128.load64_zero ${entryField('values')}) ${get(`step${s}`)}))))`;

/** How a lane takes a run: by a table of pairs, by one of singles (with low bits or without), or each component by its own. */
const KIND = { pairs: 0, singles: 1, raw: 2, mixed: 3 } as const;

/** The lane's kind for the run, and what that kind needs. */
const enterRun = (s: Walker): string => `
  ${set(`sum${s}`, i32(0))}
  ${set(`weight${s}`, i32(0))}
  ${set('row', sub(get('pairClass'), get(`shift${s}`)))}
  (if (i32.gt_s ${get('row')} ${i32(PAIR_CLASS_MAX - CLASS_MIN)})
    (then
      ${set(`kind${s}`, i32(KIND.mixed))}
      ;; Classes fall: where the run's first and last component are of one class, all are.
      ${set('q', `(i32.load16_s ${add(get('componentClasses'), `(i32.shl ${get('u')} ${i32(2)})`)})`)}
      ${set('row', sub(get('q'), get(`shift${s}`)))}
      (if (i32.and (i32.eq ${get('q')} (i32.load16_s ${sub(add(get('componentClasses'), `(i32.shl ${get('stop')} ${i32(2)})`), i32(2))}))
          (i32.lt_u ${get('row')} ${i32(CLASS_MAX - CLASS_MIN + 1)}))
        (then
          ${set(`kind${s}`, i32(KIND.singles))}
          ${set(`bits${s}`, i32(0))}
          (if (i32.ge_s ${get('row')} ${i32(SINGLE_TABLES)})
            (then
              ${set(`kind${s}`, i32(KIND.raw))}
              ${set(`bits${s}`, `(i32.shr_s ${sub(get('row'), i32(SINGLE_CLASS_MAX - CLASS_MIN - 3))} ${i32(2)})`)}))
          ${set(`table${s}`, `(i32.mul ${sub(get('row'), `(i32.shl ${get(`bits${s}`)} ${i32(2)})`)} ${i32(TABLE_BYTES)})`)}
          ${singleWeight(sub(get('q'), get(`base${s}`)))}
          ${set(`weight${s}`, get('weight'))})))
    (else
      ${set(`kind${s}`, i32(KIND.pairs))}
      ${pairRow(s)}
      ${set(`table${s}`, add(`(i32.mul ${get('row')} ${i32(TABLE_BYTES)})`, i32(PAIR_TABLES_AT)))}
      ;; A coded pair's base class is at least the cut, and here at most two above PAIR_CLASS_MAX.
      ${set(`weight${s}`, `(i32.load offset=${WEIGHTS} (i32.shl ${sub(get('pairClass'), get(`base${s}`))} ${i32(2)}))`)}))`;

/** Component j by the run's table, low bits and all. */
const decodeAlike = (s: Walker, j: 0 | 1, raw: boolean): string => `
  (block $read${s}${j}
    (block $rare${s}${j}
      ${readSymbol(`x${s}`, `table${s}`)}
      (br_if $rare${s}${j} (i32.eq ${get('q')} ${i32(SINGLE_ESCAPE)}))
      ${afterSymbol(`x${s}`)}
      ${takeWord(`x${s}`, `p${s}`)}
      ${set(`sum${s}`, add(get(`sum${s}`), `(i32.load ${entryField('magnitude')})`))}
      ${
        raw
          ? `
      ${set('q', sub(`(i32.shl ${sub(get('q'), i32(SINGLE_REACH))} ${get(`bits${s}`)})`, `(i32.shl ${i32(1)} ${sub(get(`bits${s}`), i32(1))})`))}
      ${set('q', add(get('q'), `(i32.and ${get(`x${s}`)} ${sub(`(i32.shl ${i32(1)} ${get(`bits${s}`)})`, i32(1))})`))}
      ${set(`x${s}`, `(i32.shr_u ${get(`x${s}`)} ${get(`bits${s}`)})`)}
      ${takeWord(`x${s}`, `p${s}`)}
      (if ${get('q')}
        (then (f32.store offset=${4 * j} ${get(`to${s}`)} (f32.mul (call $value ${get('q')} ${i32(TOP_ROW)}) (f32x4.extract_low ${get(`step${s}`)}))))
        (else (i32.store offset=${4 * j} ${get(`to${s}`)} ${i32(0)})))`
          : `
      (f32.store offset=${4 * j} ${get(`to${s}`)} (f32.mul (f32.load ${entryField('values')}) (f32x4.extract_low ${get(`step${s}`)})))`
      }
      (br $read${s}${j}))
    ;; The function that knows all tables takes the class from the component's own.
    ${set('row', sub(`(i32.load16_s offset=${2 * j} ${add(get('componentClasses'), `(i32.shl ${get('u')} ${i32(2)})`)})`, get(`shift${s}`)))}
    ${set('weight', get(`weight${s}`))}
    ${callSingle(s, 4 * j)})`;

/** Pair $u in the way of its kind. */
const decodeByKind = (s: Walker): string => `
  (block $taken${s}
    (block $mixed${s} (block $raw${s} (block $pairs${s}
      (br_if $pairs${s} (i32.eqz ${get(`kind${s}`)}))
      (br_if $raw${s} (i32.eq ${get(`kind${s}`)} ${i32(KIND.raw)}))
      (br_if $mixed${s} (i32.eq ${get(`kind${s}`)} ${i32(KIND.mixed)}))
      ${decodeAlike(s, 0, false)}
      ${decodeAlike(s, 1, false)}
      (br $taken${s}))
      ${decodePair(s)}
      (br $taken${s}))
      ${decodeAlike(s, 0, true)}
      ${decodeAlike(s, 1, true)}
      (br $taken${s}))
    ${decodeSingle(s, 0)}
    ${decodeSingle(s, 1)})`;

const leaveRun = (s: Walker): string =>
  set(`observed${s}`, add(get(`observed${s}`), `(i32.mul ${get(`sum${s}`)} ${get(`weight${s}`)})`));

const eachPair = (walkers: readonly Walker[], decode: (s: Walker) => string): string => `
  (loop $each
    ${walkers.map((s) => `${decode(s)}${set(`to${s}`, add(get(`to${s}`), i32(8)))}`).join('')}
    ${set('u', add(get('u'), i32(1)))}
    (br_if $each (i32.lt_s ${get('u')} ${get('stop')})))`;

/** Pairs [$u, $stop), all of class $pairClass, of lanes that have them all. */
const decodeRun = (walkers: readonly Walker[]): string => `
  ${walkers.map(enterRun).join('')}
  (if ${walkers.map((s) => get(`kind${s}`)).reduce((a, b) => `(i32.or ${a} ${b})`)}
    (then ${eachPair(walkers, decodeByKind)})
    (else ${eachPair(walkers, decodePair)}))
  ${walkers.map(leaveRun).join('')}`;

/** $stop ← the least of itself and a lane's end. */
const stopAt = (end: string): string =>
  set('stop', `(select ${get('stop')} ${get(end)} (i32.lt_s ${get('stop')} ${get(end)}))`);

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

;; Integer k ≠ 0 of a class's row as a value in steps.
(func $value (param $k i32) (param $row i32) (result f32) (local $m i32) (local $cell i32) (local $v f32)
  ${set('m', absolute('k'))}
  ${set('cell', `(select ${get('m')} ${i32(3)} (i32.lt_s ${get('m')} ${i32(3)}))`)}
  (local.set $v (f32.demote_f64 (f64.add (f64.convert_i32_s ${get('m')})
    (f64.promote_f32 (f32.load offset=${CENTROIDS - 4}
      ${add(`(i32.mul ${get('row')} ${i32(CENTROID_ROW_BYTES)})`, `(i32.shl ${get('cell')} ${i32(2)})`)})))))
  (select (f32.neg ${get('v')}) ${get('v')} (i32.lt_s ${get('k')} ${i32(0)})))

;; One component by itself, of shifted class $c, stored times the token's step at $to.
(func $single (param $lane i32) (param $c i32) (param $weight i32) (param $to i32)
  (local $n i32) (local $x i32) (local $slot i32) (local $entry i32) (local $table i32) (local $q i32) (local $row i32)
  ${clampClass}
  ${set('row', sub(get('c'), add(`(i32.shl ${get('n')} ${i32(2)})`, i32(CLASS_MIN))))}
  ${set('x', field('state'))}
  ${set('table', `(i32.mul ${get('row')} ${i32(TABLE_BYTES)})`)}
  ${readSymbol('x', 'table')}
  ${afterSymbol('x')}
  (call $refill ${get('lane')} ${get('x')})
  ${setField('observed', add(field('observed'), `(i32.mul (i32.load ${entryField('magnitude')}) ${get('weight')})`))}
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
    (else (f32.store ${get('to')} (f32.mul (f32.load ${entryField('values')}) (f32.load offset=${LANE.step} ${get('lane')}))))))

;; One token of every lane: pairs [0, $pairs). $laneEnd is the address past the last lane's record, of an even number. Two
;; lanes walk together a block at a time, their states in locals: each waits for its own last step, not for the other's.
;; Within a block pairs of one class follow one another, so that a table is chosen once for all of them.
(func $decode (export "decode") (param $pairs i32) (param $laneEnd i32) (param $pairClasses i32) (param $runEnds i32)
  (param $componentClasses i32)
  (local $first i32) (local $end i32) (local $u i32) (local $stop i32) (local $lane i32) (local $pairClass i32) (local $row i32)
  (local $table i32) (local $slot i32) (local $entry i32) (local $magnitude i32) (local $q i32) (local $weight i32) (local $r i32)
  ${WALKERS.map(
    (s) =>
      `(local $x${s} i32) (local $p${s} i32) (local $observed${s} i32) (local $shift${s} i32) (local $base${s} i32)
  (local $n${s} i32) (local $to${s} i32) (local $table${s} i32) (local $sum${s} i32) (local $kind${s} i32) (local $bits${s} i32)
  (local $weight${s} i32) (local $step${s} v128)`,
  ).join(' ')} (local $scaled i64) (local $base i64)
  (block $done (loop $blocks
    (br_if $done (i32.ge_s ${get('first')} ${get('pairs')}))
    ${set('lane', i32(LANES))}
    (loop $walk
      ${set('end', i32(0))}
      ${WALKERS.map(enterBlock).join('')}
      ${set('u', get('first'))}
      (block $walked (loop $runs
        (br_if $walked (i32.ge_s ${get('u')} ${get('end')}))
        ${set('pairClass', `(i32.load16_s ${add(get('pairClasses'), `(i32.shl ${get('u')} ${i32(1)})`)})`)}
        ${set('stop', `(i32.load ${add(get('runEnds'), `(i32.shl ${get('u')} ${i32(2)})`)})`)}
        (if (i32.ge_s ${get('u')} ${get('nA')})
          (then
            ${stopAt('nB')}
            ${decodeRun(['B'])})
          (else
            ${stopAt('nA')}
            (if (i32.ge_s ${get('u')} ${get('nB')})
              (then ${decodeRun(['A'])})
              (else
                ${stopAt('nB')}
                ${decodeRun(WALKERS)}))))
        (br $runs)))
      ${WALKERS.map(keep).join('')}
      ${set('lane', add(get('lane'), i32(2 * LANE_BYTES)))}
      (br_if $walk (i32.lt_u ${get('lane')} ${get('laneEnd')})))
    ${set('first', add(get('first'), i32(BLOCK_COMPONENTS / 2)))}
    (br $blocks))))
`;
