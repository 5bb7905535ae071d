// Assembles the part of the WebAssembly text format that decode-text.ts and encode-text.ts are written in: one imported
// memory, functions with named parameters and locals, folded instructions. The text is the source; nothing binary is kept.
// Does not check types: the engine does when it compiles the module.

import { invariant } from '../../../base/errors.ts';

type Node = string | readonly Node[];

const TYPES: Readonly<Record<string, number>> = { i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b };

/**
 * Instructions without immediates; extract_low and extract_third stand for extract_lane 0 and 2, low_of_both, low_in_turn
 * and high_in_turn for shuffles.
 */
const PLAIN: Readonly<Record<string, readonly number[]>> = {
  return: [0x0f],
  drop: [0x1a],
  select: [0x1b],
  'i32.eqz': [0x45],
  'i32.eq': [0x46],
  'i32.lt_s': [0x48],
  'i32.lt_u': [0x49],
  'i32.gt_s': [0x4a],
  'i32.le_s': [0x4c],
  'i32.ge_s': [0x4e],
  'i32.ge_u': [0x4f],
  'i64.ne': [0x52],
  'i64.lt_s': [0x53],
  'i64.ge_s': [0x59],
  'f64.lt': [0x63],
  'f64.ge': [0x66],
  'i32.clz': [0x67],
  'i32.add': [0x6a],
  'i32.sub': [0x6b],
  'i32.mul': [0x6c],
  'i32.and': [0x71],
  'i32.or': [0x72],
  'i32.xor': [0x73],
  'i32.shl': [0x74],
  'i32.shr_s': [0x75],
  'i32.shr_u': [0x76],
  'i64.mul': [0x7e],
  'i64.and': [0x83],
  'i64.shr_u': [0x88],
  'f32.neg': [0x8c],
  'f32.mul': [0x94],
  'f64.abs': [0x99],
  'f64.floor': [0x9c],
  'f64.add': [0xa0],
  'f64.mul': [0xa2],
  'i32.wrap_i64': [0xa7],
  'i64.extend_i32_s': [0xac],
  'i64.extend_i32_u': [0xad],
  'f32.demote_f64': [0xb6],
  'f64.convert_i32_s': [0xb7],
  'f64.promote_f32': [0xbb],
  'i32.trunc_sat_f64_s': [0xfc, 0x02],
  'i32x4.gt_s': [0xfd, 0x3b],
  'f32x4.ne': [0xfd, 0x42],
  'v128.and': [0xfd, 0x4e],
  'v128.or': [0xfd, 0x50],
  'v128.xor': [0xfd, 0x51],
  'v128.any_true': [0xfd, 0x53],
  'i16x8.splat': [0xfd, 0x10],
  'i32x4.splat': [0xfd, 0x11],
  'f64x2.splat': [0xfd, 0x14],
  'i16x8.gt_s': [0xfd, 0x31],
  'i16x8.narrow_i32x4_s': [0xfd, 0x85, 0x01],
  'i32x4.add': [0xfd, 0xae, 0x01],
  'i32x4.min_u': [0xfd, 0xb7, 0x01],
  'i32x4.dot_i16x8_s': [0xfd, 0xba, 0x01],
  'i64x2.shr_u': [0xfd, 0xcd, 0x01],
  'i64x2.low_of_both': [0xfd, 0x0d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23],
  'i32x4.low_in_turn': [0xfd, 0x0d, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23],
  'i32x4.high_in_turn': [0xfd, 0x0d, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31],
  'i32x4.relaxed_trunc_f64x2_s_zero': [0xfd, 0x83, 0x02],
  'f64x2.promote_low_f32x4': [0xfd, 0x5f],
  'i32x4.abs': [0xfd, 0xa0, 0x01],
  'i32x4.shl': [0xfd, 0xab, 0x01],
  'i32x4.shr_s': [0xfd, 0xac, 0x01],
  'i32x4.sub': [0xfd, 0xb1, 0x01],
  'i32x4.max_s': [0xfd, 0xb8, 0x01],
  'f32x4.sub': [0xfd, 0xe5, 0x01],
  'f64x2.mul': [0xfd, 0xf2, 0x01],
  'i32x4.trunc_sat_f64x2_s_zero': [0xfd, 0xfc, 0x01],
  'i32x4.extract_low': [0xfd, 0x1b, 0],
  'i32x4.extract_third': [0xfd, 0x1b, 2],
  'i64x2.extract_low': [0xfd, 0x1d, 0],
  'f32x4.extract_low': [0xfd, 0x1f, 0],
  'f32x4.mul': [0xfd, 0xe6, 0x01],
};

/** Loads and stores: opcode, log2 of the natural alignment. */
const MEMORY: Readonly<Record<string, readonly [opcode: readonly number[], alignment: number]>> = {
  'i32.load': [[0x28], 2],
  'i64.load': [[0x29], 3],
  'f32.load': [[0x2a], 2],
  'i32.load8_u': [[0x2d], 0],
  'i32.load16_s': [[0x2e], 1],
  'i32.load16_u': [[0x2f], 1],
  'i32.store': [[0x36], 2],
  'i64.store': [[0x37], 3],
  'f32.store': [[0x38], 2],
  'i32.store16': [[0x3b], 1],
  'v128.load': [[0xfd, 0x00], 4],
  'v128.store': [[0xfd, 0x0b], 4],
  'v128.load32_splat': [[0xfd, 0x09], 2],
  'v128.load64_zero': [[0xfd, 0x5d], 3],
  'v128.store64_low': [[0xfd, 0x5b], 3],
};

/** Magic number and version. */
const PREAMBLE = [0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0];

interface Function {
  readonly exported: string | null;
  readonly parameters: readonly number[];
  readonly results: readonly number[];
  readonly locals: readonly number[];
  readonly code: readonly number[];
}

/** Bytes of a module from its text: a list of `(func …)`. It imports `kvtc.memory` and exports what `(export "…")` names. */
export function assembleModule(text: string): Uint8Array {
  const nodes = parse(text);
  const names = new Map(nodes.map((node, index) => [named(node), index]));
  const functions = nodes.map((node) => assembleFunction(node, names));
  const types = functions.map(({ parameters, results }) => [0x60, ...vector(parameters), ...vector(results)]);
  const bodies = functions.map(({ locals, code }) => {
    const body = [...unsigned(locals.length), ...locals.flatMap((type) => [1, type]), ...code, 0x0b];
    return [...unsigned(body.length), ...body];
  });
  const exported = functions.flatMap(({ exported: name }, index) =>
    name === null ? [] : [[...string(name), 0, ...unsigned(index)]],
  );
  return Uint8Array.from([
    ...PREAMBLE,
    ...section(1, list(types)),
    ...section(2, list([[...string('kvtc'), ...string('memory'), 2, 0, 1]])),
    ...section(3, list(functions.map((_, index) => unsigned(index)))),
    ...section(7, list(exported)),
    ...section(10, list(bodies)),
  ]);
}

function parse(text: string): readonly (readonly Node[])[] {
  const tokens = text.replaceAll(/;;.*$/gm, '').match(/\(|\)|"[^"]*"|[^\s()]+/g) ?? [];
  let at = 0;
  const read = (): Node => {
    const token = tokens[at++];
    invariant(token !== undefined && token !== ')', `kernel text: unexpected ${token}`);
    if (token !== '(') return token;
    const nodes: Node[] = [];
    while (tokens[at] !== ')') nodes.push(read());
    at++;
    return nodes;
  };
  const nodes: (readonly Node[])[] = [];
  while (at < tokens.length) nodes.push(read() as readonly Node[]);
  return nodes;
}

function named(node: readonly Node[]): string {
  invariant(node[0] === 'func' && typeof node[1] === 'string', 'kernel text: expected (func $name …)');
  return node[1];
}

function assembleFunction(node: readonly Node[], names: ReadonlyMap<string, number>): Function {
  let exported: string | null = null;
  const parameters: number[] = [];
  const results: number[] = [];
  const locals: number[] = [];
  const code: number[] = [];
  const variables = new Map<string, number>();
  for (const part of node.slice(2)) {
    invariant(Array.isArray(part), `kernel text: ${String(part)} outside an instruction`);
    const [head, ...rest] = part as readonly Node[];
    const type = (): number => TYPES[rest.at(-1) as string] ?? fail(`type of ${String(rest[0])}`);
    if (head === 'export') exported = (rest[0] as string).slice(1, -1);
    else if (head === 'result') results.push(type());
    else if (head === 'param' || head === 'local') {
      variables.set(rest[0] as string, variables.size);
      (head === 'param' ? parameters : locals).push(type());
    } else emit(part, code, { variables, names, labels: [] });
  }
  return { exported, parameters, results, locals, code };
}

interface Scope {
  readonly variables: ReadonlyMap<string, number>;
  readonly names: ReadonlyMap<string, number>;
  /** Innermost last. */
  readonly labels: readonly string[];
}

function emit(node: Node, code: number[], scope: Scope): void {
  invariant(typeof node !== 'string', `kernel text: ${String(node)} is no instruction`);
  const [head, ...rest] = node as readonly [string, ...Node[]];
  const all = (nodes: readonly Node[], inner: Scope = scope): void => nodes.forEach((one) => emit(one, code, inner));
  const index = (from: ReadonlyMap<string, number>, name: Node | undefined): number[] =>
    unsigned(from.get(name as string) ?? fail(String(name)));
  const within = (label: string): Scope => ({ ...scope, labels: [...scope.labels, label] });
  if (head === 'block' || head === 'loop') {
    code.push(head === 'block' ? 0x02 : 0x03, 0x40);
    all(rest.slice(1), within(rest[0] as string));
    code.push(0x0b);
  } else if (head === 'if') {
    const [condition, then, otherwise] = rest as [Node, Node[], Node[]?];
    emit(condition, code, scope);
    code.push(0x04, 0x40);
    all(then.slice(1), within(''));
    if (otherwise !== undefined) {
      code.push(0x05);
      all(otherwise.slice(1), within(''));
    }
    code.push(0x0b);
  } else if (head === 'br' || head === 'br_if') {
    all(rest.slice(1));
    const depth = scope.labels.toReversed().indexOf(rest[0] as string);
    invariant(depth >= 0, `kernel text: no label ${String(rest[0])}`);
    code.push(head === 'br' ? 0x0c : 0x0d, ...unsigned(depth));
  } else if (head === 'call') {
    all(rest.slice(1));
    code.push(0x10, ...index(scope.names, rest[0]));
  } else if (head === 'local.get' || head === 'local.set' || head === 'local.tee') {
    all(rest.slice(1));
    code.push({ 'local.get': 0x20, 'local.set': 0x21, 'local.tee': 0x22 }[head], ...index(scope.variables, rest[0]));
  } else if (head === 'i32.const' || head === 'i64.const') {
    code.push(head === 'i32.const' ? 0x41 : 0x42, ...signed(Number(rest[0])));
  } else if (head === 'f64.const') {
    code.push(0x44, ...new Uint8Array(Float64Array.of(Number(rest[0])).buffer));
  } else if (MEMORY[head] !== undefined) {
    const [opcode, alignment] = MEMORY[head];
    const offset = typeof rest[0] === 'string' ? Number(rest[0].replace('offset=', '')) : 0;
    all(rest.filter((one) => typeof one !== 'string'));
    code.push(...opcode, alignment, ...unsigned(offset));
    if (head === 'v128.store64_low') code.push(0);
  } else {
    all(rest);
    code.push(...(PLAIN[head] ?? fail(head)));
  }
}

function fail(what: string): never {
  throw new Error(`kvtc invariant: kernel text: unknown ${what}`);
}

function unsigned(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 128);
  return [...bytes, rest];
}

function signed(value: number): number[] {
  const bytes: number[] = [];
  let rest = BigInt(value);
  for (; rest < -64n || rest > 63n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  return [...bytes, Number(rest & 127n)];
}

function vector(bytes: readonly number[]): number[] {
  return [...unsigned(bytes.length), ...bytes];
}

function string(text: string): number[] {
  return vector([...new TextEncoder().encode(text)]);
}

function list(items: readonly (readonly number[])[]): number[] {
  return [...unsigned(items.length), ...items.flat()];
}

function section(id: number, content: readonly number[]): number[] {
  return [id, ...vector(content)];
}
