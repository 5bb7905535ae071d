"""Independent decoder of `wtc` chunks, written from docs/format/wtc-codec.md and entropy.md. Standard library only.

  wtc.py FAMILY JSON     FAMILY: a table family as f32; JSON: {"scales": [...], "parameters": {"stepIndex", "rank", "cut"},
                         "tokens": n, "chunk": hex}. Prints sha256 of the coefficients f32[tokens, rank] and the token
                         classes; exit status 3 if the chunk is malformed.
"""
import bisect
import hashlib
import json
import struct
import sys

CLASS_MIN, CLASS_MAX, SINGLE_MAX, PAIR_MAX, SHORT_MAX = -10, 58, 10, 2, -2
SINGLES, TABLES = 21, 34


class Malformed(Exception):
    """The chunk breaks a rule."""


def require(condition, message):
    if not condition:
        raise Malformed(message)


def f32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


class Table:
    def __init__(self, frequencies):
        self.frequencies = [int(f) for f in frequencies]
        self.starts = [0]
        for f in self.frequencies:
            self.starts.append(self.starts[-1] + f)
        require(self.starts[-1] == 4096, "frequencies do not sum to 4096")


class Lane:
    def __init__(self, words):
        self.words, self.position = words, 2
        self.x = words[0] << 16 | words[1]
        require(32768 <= self.x < 1 << 31, "a lane's first state")

    def _refill(self):
        if self.x < 32768:
            require(self.position < len(self.words), "a lane runs out of words")
            self.x = self.x << 16 | self.words[self.position]
            self.position += 1

    def symbol(self, table):
        slot = self.x & 4095
        s = bisect.bisect_right(table.starts, slot) - 1
        self.x = table.frequencies[s] * (self.x >> 12) + slot - table.starts[s]
        self._refill()
        return s

    def raw(self, bits):
        value = self.x & ((1 << bits) - 1)
        self.x >>= bits
        self._refill()
        return value


def clamp(value, low, high):
    return max(low, min(high, value))


class Family:
    def __init__(self, values):
        require(len(values) == TABLES * 64 + SINGLES * 8, "a family's length")
        self.tables = [Table(values[64 * t: 64 * t + 64]) for t in range(TABLES)]
        rest = values[64 * TABLES:]
        self.centroids = [rest[3 * r: 3 * r + 3] for r in range(SINGLES)]
        self.weights = [int(w) for w in rest[6 * SINGLES: 7 * SINGLES]]
        self.expectations = [int(e) for e in rest[7 * SINGLES: 8 * SINGLES]]

    def row(self, part, scale_class):
        return part[clamp(scale_class, CLASS_MIN, SINGLE_MAX) - CLASS_MIN]

    def value(self, k, scale_class):
        if k == 0:
            return 0.0
        size = f32(abs(k) + self.row(self.centroids, scale_class)[min(abs(k), 3) - 1])
        return -size if k < 0 else size


def single(lane, family, scale_class):
    """One component by itself: (value in steps, min(|q|, 25))."""
    c = clamp(scale_class, CLASS_MIN, CLASS_MAX)
    n = 0 if c <= SINGLE_MAX else (c - 7) // 4
    symbol = lane.symbol(family.tables[c - 4 * n - CLASS_MIN])
    q = symbol - 24
    if symbol == 49:
        m = lane.raw(4)
        q = 24 + (1 << m) + (lane.raw(m) if m else 0)
        if lane.raw(1):
            q = -q
    k = q * (1 << n) - (1 << n - 1) + lane.raw(n) if n else q
    return family.value(k, SINGLE_MAX if n else c), min(abs(q), 25)


def shift_of(observed, expected):
    o, e = 1024 * (observed + 256), expected + 256
    if o >= 1117 * e:
        return 2 if o >= 1328 * e else 1
    if o < 939 * e:
        return -2 if o < 790 * e else -1
    return 0


def coded_components(scales, parameters, token_class):
    """How many components a token of the class codes: pairs from the first on, while their base class reaches the cut."""
    step, cut, pairs = parameters["stepIndex"], parameters["cut"], parameters["rank"] // 2
    base = ((scales[2 * u] + scales[2 * u + 1] - 2 * step + 64) // 128 - 2 * token_class for u in range(pairs))
    return 2 * next((u for u, pair in enumerate(base) if pair < cut), pairs)


def walk(lane, family, scales, parameters, token_class):
    """One token's values in steps, rank of them."""
    step, rank, cut = parameters["stepIndex"], parameters["rank"], parameters["cut"]
    out, observed, expected, shift = [0.0] * rank, 0, 0, 0
    for u in range(rank // 2):
        own = [(scales[i] - step + 32) // 64 - 2 * token_class for i in (2 * u, 2 * u + 1)]
        pair = (scales[2 * u] + scales[2 * u + 1] - 2 * step + 64) // 128 - 2 * token_class
        if pair < cut:
            break
        if u and u % 16 == 0:
            shift = shift_of(observed, expected)
        if pair > PAIR_MAX:
            expected += sum(family.row(family.expectations, c) for c in own)
        else:
            expected += 2 * family.row(family.expectations, pair)
        weight = family.row(family.weights, pair)
        c = max(pair + shift, CLASS_MIN)
        if c > PAIR_MAX:
            for j in (0, 1):
                out[2 * u + j], size = single(lane, family, own[j] + shift)
                observed += size * family.row(family.weights, own[j])
            continue
        reach = 2 if c <= SHORT_MAX else 3
        side = 2 * reach + 1
        symbol = lane.symbol(family.tables[SINGLES + c - CLASS_MIN])
        if symbol == side * side:
            for j in (0, 1):
                out[2 * u + j], size = single(lane, family, c)
                observed += size * weight
        else:
            a, b = symbol // side - reach, symbol % side - reach
            out[2 * u], out[2 * u + 1] = family.value(a, c), family.value(b, c)
            observed += (abs(a) + abs(b)) * weight
    return out


def decode_chunk(data, tokens, family, scales, parameters):
    """Coefficients, a flat list of tokens · rank f32 numbers, and token classes."""
    require(len(data) >= 9, "shorter than its head")
    lanes = data[0]
    require(1 <= lanes <= min(64, tokens), f"{lanes} lanes")
    weights = [data[1 + c // 2] >> 4 * (c % 2) & 15 for c in range(16)]
    shares = [1 << w - 1 if w else 0 for w in weights]
    require(sum(shares), "no token class")
    frequencies = [max(1, 4096 * v // sum(shares)) if v else 0 for v in shares]
    frequencies[weights.index(max(weights))] += 4096 - sum(frequencies)
    classes_table = Table(frequencies)
    at, lengths = 9, []
    for _ in range(lanes):
        length = shift = 0
        while True:
            require(at < len(data) and shift <= 21, "a lane's length")
            byte = data[at]
            at += 1
            length |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
        require(byte or not shift, "a lane's length is not in its shortest form")
        require(2 <= length <= 1 << 26, "a lane's length")
        lengths.append(length)
    require(len(data) - at == 2 * sum(lengths), "the words do not end the chunk")
    coefficients, classes = [], []
    for l, length in enumerate(lengths):
        lane = Lane(struct.unpack_from(f"<{length}H", data, at))
        at += 2 * length
        for _ in range(tokens * l // lanes, tokens * (l + 1) // lanes):
            c = lane.symbol(classes_table) - 8
            step = f32(2.0 ** (parameters["stepIndex"] / 256 + c / 2))
            classes.append(c)
            coefficients += [f32(value * step) for value in walk(lane, family, scales, parameters, c)]
        require(lane.x == 32768 and lane.position == length, "a lane's end")
    return coefficients, classes


def main(arguments):
    with open(arguments[0], "rb") as file:
        data = file.read()
    family = Family(struct.unpack(f"<{len(data) // 4}f", data))
    with open(arguments[1], encoding="utf-8") as file:
        case = json.load(file)
    try:
        coefficients, classes = decode_chunk(
            bytes.fromhex(case["chunk"]), case["tokens"], family, case["scales"], case["parameters"])
    except Malformed as error:
        print(error, file=sys.stderr)
        return 3
    packed = struct.pack(f"<{len(coefficients)}f", *coefficients)
    print(json.dumps({"sha256": hashlib.sha256(packed).hexdigest(), "tokenClasses": classes}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
