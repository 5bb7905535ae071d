"""Reads a .kvtc file and checks every rule of docs/format/container.md. Does not know how chunks are coded."""
import json
import math
import re
import struct
import zlib

MAGIC = bytes.fromhex("894b56540d0a1a0a")
HEADER, EXACT_ROWS, PAYLOAD, EXACT_CHECKSUMS, CHUNK_INDEX, POSITIONS, TOKENS = range(1, 8)
FIRST_ANCILLARY = 0x80000000
STREAMS = ("key", "value")
LIMITS = dict(sections=32, header=1 << 20, tokens=1 << 24, chunks=1 << 20, chunk_tokens=1 << 14, chunk=1 << 28, exact_layer=1 << 30)
MAX_JSON_DEPTH = 32


class Refused(Exception):
    """The file breaks a rule; `code` is the one docs/errors.md gives for it."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def require(condition, code, message):
    if not condition:
        raise Refused("KVTC_" + code, message)


# --- container.md, section 2: preamble and section table ---------------------------------------------------------------

def read_container(data):
    """Everything in a .kvtc file, checked: dict of header, tokens, positions, exact and chunks."""
    require(data and data[:8] == MAGIC[: len(data)], "CONTAINER_MAGIC", "no .kvtc file")
    require(len(data) >= 64, "CONTAINER_TRUNCATED", "the file ends inside the preamble")
    major, minor, required, _ignorable, count, length = struct.unpack_from("<HHIIIQ", data, 8)
    require(major == 1, "CONTAINER_VERSION", f"format version {major}.{minor}")
    require(count <= LIMITS["sections"], "CONTAINER_LIMIT", f"{count} sections")
    require(length <= len(data), "CONTAINER_TRUNCATED", f"{len(data)} of {length} bytes")
    require(length == len(data), "CONTAINER_MALFORMED", "bytes follow the last section")
    head = 64 + 24 * count
    require(head <= len(data), "CONTAINER_TRUNCATED", "the file ends inside the section table")
    checksum = struct.unpack_from("<I", data, 60)[0]
    require(zlib.crc32(data[64:head], zlib.crc32(data[:60])) == checksum, "CONTAINER_CHECKSUM", "preamble and table")
    require(required == 0, "CONTAINER_RESERVED", f"required features {required:#x}")
    require(not any(data[32:60]), "CONTAINER_RESERVED", "reserved bytes of the preamble")

    sections, end, kind_before = {}, head, 0
    for at in range(64, head, 24):
        kind, crc, offset, size = struct.unpack_from("<IIQQ", data, at)
        require(kind > kind_before, "CONTAINER_MALFORMED", f"section kind {kind} after {kind_before}")
        require(kind <= TOKENS or kind >= FIRST_ANCILLARY, "CONTAINER_RESERVED", f"section kind {kind}")
        require(offset == -(-end // 64) * 64, "CONTAINER_MALFORMED", f"section kind {kind} at {offset}")
        require(offset + size <= len(data), "CONTAINER_MALFORMED", f"section kind {kind} passes the end")
        sections[kind] = (offset, size, crc)
        kind_before, end = kind, offset + size
    require(end == len(data), "CONTAINER_MALFORMED", "the last section does not end the file")
    end = head
    for offset, size, _ in sections.values():
        require(not any(data[end:offset]), "CONTAINER_RESERVED", "padding")
        end = offset + size

    def section(kind):
        require(kind in sections, "CONTAINER_MALFORMED", f"section kind {kind} is missing")
        return sections[kind]

    def content(kind):
        offset, size, crc = section(kind)
        require(zlib.crc32(data[offset:offset + size]) == crc, "CONTAINER_CHECKSUM", f"section kind {kind}")
        return data[offset:offset + size]

    require(section(HEADER)[1] <= LIMITS["header"], "CONTAINER_LIMIT", "header")
    header = read_header(content(HEADER), strict=minor == 0)
    blocks = exact_blocks(header)
    check_lengths(section, sections, header, blocks)
    checksums = struct.unpack("<%dI" % (section(EXACT_CHECKSUMS)[1] // 4), content(EXACT_CHECKSUMS))
    chunks = read_chunk_index(content(CHUNK_INDEX), section(PAYLOAD)[1], header)
    positions = read_positions(content(POSITIONS), header["tokenCount"])
    tokens = None
    if TOKENS in sections:
        tokens = struct.unpack("<%di" % header["tokenCount"], content(TOKENS))
        require(all(token >= 0 for token in tokens), "CONTAINER_MALFORMED", "a token id is negative")
    for kind in sections:
        if kind >= FIRST_ANCILLARY:
            content(kind)
    return dict(
        header=header, tokens=tokens, positions=positions,
        exact=read_exact(data, section(EXACT_ROWS)[0], blocks, checksums, content),
        chunks=read_payload(data, section(PAYLOAD)[0], chunks, content),
    )


def check_lengths(section, sections, header, blocks):
    for block in blocks:
        require(block["layer_bytes"] <= LIMITS["exact_layer"], "CONTAINER_LIMIT", "exact rows of a layer")
    layers = header["model"]["geometry"]["layers"]
    exact_bytes = sum(block["layer_bytes"] * layers for block in blocks)
    require(section(EXACT_ROWS)[1] == exact_bytes, "CONTAINER_MALFORMED", "length of the exact rows")
    require(section(EXACT_CHECKSUMS)[1] == 4 * layers * len(blocks), "CONTAINER_MALFORMED", "length of exact checksums")
    section(PAYLOAD)
    index = section(CHUNK_INDEX)[1]
    require(index % 24 == 0, "CONTAINER_MALFORMED", "length of the chunk index")
    require(index <= 24 * LIMITS["chunks"], "CONTAINER_LIMIT", "chunk index")
    runs = section(POSITIONS)[1]
    require(runs % 8 == 0 and runs <= 8 * header["tokenCount"], "CONTAINER_MALFORMED", "length of the positions")
    if TOKENS in sections:
        require(section(TOKENS)[1] == 4 * header["tokenCount"], "CONTAINER_MALFORMED", "length of the token ids")
    for kind in sections:
        if kind >= FIRST_ANCILLARY:
            require(sections[kind][1] <= LIMITS["chunk"], "CONTAINER_LIMIT", "ancillary section")


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def f32_bytes(values):
    return struct.pack("<%df" % len(values), *values)


def i32_bytes(values):
    return struct.pack("<%di" % len(values), *values)


# --- section 3: the header ---------------------------------------------------------------------------------------------

def canonical_number(x):
    """ECMAScript's Number::toString of a finite float, from Python's shortest digits."""
    mantissa, _, exponent = repr(abs(x)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    point = len(whole) + int(exponent or 0)
    digits = whole + fraction
    point -= len(digits) - len(digits.lstrip("0"))
    digits = digits.strip("0")
    if not digits:
        return "0"
    sign, k = "-" if x < 0 else "", len(digits)
    if k <= point <= 21:
        return sign + digits + "0" * (point - k)
    if 0 < point <= 21:
        return sign + digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return sign + "0." + "0" * -point + digits
    rest = "." + digits[1:] if k > 1 else ""
    return f"{sign}{digits[0]}{rest}e{'+' if point > 0 else '-'}{abs(point - 1)}"


def canonical_string(text):
    return re.sub("[\ud800-\udfff]", lambda m: "\\u%04x" % ord(m.group()), json.dumps(text, ensure_ascii=False))


def canonical_json(value, depth=0):
    require(depth <= MAX_JSON_DEPTH, "CONTAINER_MALFORMED", "the header is nested too deep")
    if isinstance(value, float):
        require(math.isfinite(value), "CONTAINER_MALFORMED", "a number of the header is not finite")
        return canonical_number(value)
    if isinstance(value, str):
        return canonical_string(value)
    if isinstance(value, list):
        return "[" + ",".join(canonical_json(item, depth + 1) for item in value) + "]"
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(canonical_string(n) + ":" + canonical_json(value[n], depth + 1) for n in names) + "}"
    return {None: "null", True: "true", False: "false"}[value]


def members(value, names, where, strict=True):
    ok = isinstance(value, dict) and set(names) <= set(value) and (not strict or set(names) == set(value))
    require(ok, "CONTAINER_MALFORMED", f"{where}: expected exactly the members {', '.join(names)}")


def is_integer(value):
    return isinstance(value, float) and value == math.floor(value)


def integer(holder, name, low, high=2 ** 31 - 1):
    value = holder[name]
    require(is_integer(value) and low <= value <= high, "CONTAINER_MALFORMED", f"{name} is {value!r}")
    holder[name] = int(value)


def text(holder, name, longest, pattern=".*"):
    value = holder[name]
    ok = isinstance(value, str) and len(value.encode("utf-16-le", "surrogatepass")) // 2 <= longest
    ok = ok and re.fullmatch(pattern, value, re.DOTALL)
    require(ok, "CONTAINER_MALFORMED", f"{name} is {value!r}")


def read_header(raw, strict):
    def constant(name):
        raise ValueError(name)

    try:
        source = raw.decode("utf-8")
        header = json.loads(source, parse_int=float, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Refused("KVTC_CONTAINER_MALFORMED", f"header: {error}") from error
    require(canonical_json(header) == source, "CONTAINER_MALFORMED", "the header is not canonical JSON")
    bad = "CONTAINER_MALFORMED"
    names = ("chunkTokens", "codec", "codecParameters", "elementTypes", "engine", "entropy", "exactRanges", "model",
             "producer", "profileId", "tokenCount")
    members(header, names, "header", strict)
    integer(header, "tokenCount", 1)
    integer(header, "chunkTokens", 1)
    for name in ("codec", "entropy"):
        text(header, name, 64, "[a-z][a-z0-9.-]*")
    text(header, "profileId", 64, "[0-9a-f]{64}")
    text(header, "producer", 256)
    text(header, "engine", 1024)
    require(isinstance(header["codecParameters"], dict), bad, "codecParameters")
    members(header["elementTypes"], STREAMS, "elementTypes")
    require(all(t in ("f32", "f16", "bf16", "q8_0") for t in header["elementTypes"].values()), bad, "elementTypes")

    model = header["model"]
    members(model, ("architecture", "name", "fingerprint", "geometry", "rope"), "model")
    text(model, "architecture", 1024)
    text(model, "name", 1024)
    text(model, "fingerprint", 64, "[0-9a-f]{64}")
    geometry, rope = model["geometry"], model["rope"]
    members(geometry, ("layers", "kvHeads", "keyHeadDim", "valueHeadDim"), "geometry")
    for name in geometry:
        integer(geometry, name, 1, 65536)
    numbers = ("frequencyBase", "frequencyScale", "extFactor", "attnFactor", "betaFast", "betaSlow", "originalContext")
    members(rope, ("pairing", "dims", "frequencyFactors") + numbers, "rope")
    require(rope["pairing"] in ("interleaved", "half-split"), bad, "pairing")
    require(all(isinstance(rope[name], float) for name in numbers), bad, "rope")
    integer(rope, "dims", 0, geometry["keyHeadDim"])
    require(rope["dims"] % 2 == 0, bad, "dims is odd")
    factors = rope["frequencyFactors"]
    ok = factors is None or (isinstance(factors, list) and len(factors) == rope["dims"] // 2
                             and all(isinstance(f, float) for f in factors))
    require(ok, bad, "frequencyFactors")
    for stream in STREAMS:
        ok = header["elementTypes"][stream] != "q8_0" or layer_width(header, stream) % 32 == 0
        require(ok, bad, "q8_0 rows whose width is no multiple of 32")

    require(isinstance(header["exactRanges"], list), bad, "exactRanges")
    end = -1
    for r in header["exactRanges"]:
        members(r, ("startToken", "endToken"), "exactRanges")
        integer(r, "startToken", 0)
        integer(r, "endToken", 1)
        require(end < r["startToken"] < r["endToken"] <= header["tokenCount"], bad, "exactRanges")
        end = r["endToken"]
    require(header["tokenCount"] <= LIMITS["tokens"], "CONTAINER_LIMIT", "tokens")
    require(header["chunkTokens"] <= LIMITS["chunk_tokens"], "CONTAINER_LIMIT", "chunkTokens")
    return header


# --- sections 4 to 6: exact rows, chunks, positions --------------------------------------------------------------------

def head_dim(header, stream):
    return header["model"]["geometry"]["keyHeadDim" if stream == "key" else "valueHeadDim"]


def layer_width(header, stream):
    return header["model"]["geometry"]["kvHeads"] * head_dim(header, stream)


def exact_blocks(header):
    sizes = {"f32": lambda n: 4 * n, "f16": lambda n: 2 * n, "bf16": lambda n: 2 * n, "q8_0": lambda n: n // 32 * 34}
    return [dict(stream=s, start=r["startToken"], end=r["endToken"], layers=header["model"]["geometry"]["layers"],
                 layer_bytes=(r["endToken"] - r["startToken"]) * sizes[header["elementTypes"][s]](layer_width(header, s)))
            for r in header["exactRanges"] for s in STREAMS]


def read_exact(data, offset, blocks, checksums, content):
    checksum = iter(checksums)
    for block in blocks:
        block["rows"] = []
        for _ in range(block["layers"]):
            rows = data[offset:offset + block["layer_bytes"]]
            require(zlib.crc32(rows) == next(checksum), "CONTAINER_CHECKSUM", "exact rows")
            block["rows"].append(rows)
            offset += len(rows)
    content(EXACT_ROWS)
    return blocks


def read_chunk_index(index, payload_bytes, header):
    chunks = []
    for start, end, stored, packed, crc, stream, reserved in struct.iter_unpack("<IIIIIB3s", index):
        require(stream < 2, "CONTAINER_MALFORMED", f"stream {stream}")
        require(not any(reserved), "CONTAINER_RESERVED", "reserved bytes of the chunk index")
        require(stored <= LIMITS["chunk"] and packed <= LIMITS["chunk"], "CONTAINER_LIMIT", "chunk")
        chunks.append(dict(stream=STREAMS[stream], start=start, end=end, stored_bytes=stored, packed_bytes=packed, crc=crc))
    require(sum(c["stored_bytes"] for c in chunks) == payload_bytes, "CONTAINER_MALFORMED", "length of the payload")
    order = [(c["start"], STREAMS.index(c["stream"])) for c in chunks]
    require(all(a < b for a, b in zip(order, order[1:])), "CONTAINER_MALFORMED", "order of the chunk index")
    exact = [(r["startToken"], r["endToken"]) for r in header["exactRanges"]]
    for stream in STREAMS:
        covered = [(c["start"], c["end"]) for c in chunks if c["stream"] == stream]
        require(all(0 < e - s <= header["chunkTokens"] for s, e in covered), "CONTAINER_MALFORMED", "length of a chunk")
        at = 0
        for start, end in sorted(covered + exact):
            require(start == at, "CONTAINER_MALFORMED", f"{stream} token {at} is covered twice or not at all")
            at = end
        require(at == header["tokenCount"], "CONTAINER_MALFORMED", f"{stream} chunks end at token {at}")
    return chunks


def read_payload(data, offset, chunks, content):
    for chunk in chunks:
        chunk["stored"] = data[offset:offset + chunk["stored_bytes"]]
        require(zlib.crc32(chunk["stored"]) == chunk["crc"], "CONTAINER_CHECKSUM", "chunk")
        offset += chunk["stored_bytes"]
    content(PAYLOAD)
    return chunks


def read_positions(raw, token_count):
    positions, follows = [], None
    for first, count in struct.iter_unpack("<II", raw):
        ok = count >= 1 and first + count <= 2 ** 31 and count <= token_count - len(positions) and first != follows
        require(ok, "CONTAINER_MALFORMED", "a run of positions")
        positions.extend(range(first, first + count))
        follows = first + count
    require(len(positions) == token_count, "CONTAINER_MALFORMED", "positions are missing")
    return positions
