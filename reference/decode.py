#!/usr/bin/env python3
"""Independent decoder of .kvtc files, written from docs/format/*.md alone. Python 3.9+, standard library only.

It is slow and plain on purpose: it exists to check the product and to show that the pages suffice. wtc.py beside it
decodes chunks of that codec.

  decode.py check FILE...            check every rule and checksum; a JSON line per file; exit status 3 if one is refused
  decode.py chunks FILE [--profile P]
                                     JSON: header, and sha256 of every decoded part; wtc needs the profile
  decode.py rows FILE --profile P --stream key|value [--tokens A:B] -o OUT
                                     rebuilt rows, f32 little-endian [tokens][layers][kv heads][head dim], as the engine
                                     holds them (keys rotated)
"""
import argparse
import hashlib
import json
import math
import re
import struct
import sys
import zlib

import wtc

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


# --- paper-codec.md: blocks, split planes, quantisers ------------------------------------------------------------------

BLOCK_BYTES = 65536
STORED_FLAG = 0x80000000
CODE_BITS = {"int2": 2, "int4": 4, "fp8": 8}
E4M3 = [(-1) ** (b >> 7) * ((b & 7) * 2.0 ** -9 if b & 0x78 == 0 else (1 + (b & 7) / 8) * 2.0 ** ((b >> 3 & 15) - 7))
        for b in range(256)]


def unpack_blocks(stored, packed_bytes, method):
    """Undoes the entropy stage: `method` none or deflate."""
    bad = "CHUNK_MALFORMED"
    require(method in ("none", "deflate", "zstd"), "CODEC_UNKNOWN", f"entropy method {method}")
    require(method != "zstd", "CODEC_UNKNOWN", "zstd is not in Python's standard library (before 3.14); use the product")
    if method == "none":
        require(len(stored) == packed_bytes, bad, "length of an unframed chunk")
        return stored
    count = -(-packed_bytes // BLOCK_BYTES)
    require(len(stored) >= 4 * count, bad, "block table")
    at, packed = 4 * count, bytearray()
    for entry in struct.unpack_from("<%dI" % count, stored):
        size, length = entry & ~STORED_FLAG, min(BLOCK_BYTES, packed_bytes - len(packed))
        block = stored[at:at + size]
        require(len(block) == size, bad, "block passes the chunk")
        at += size
        if entry & STORED_FLAG:
            require(size == length, bad, "length of a stored block")
            packed += block
            continue
        require(0 < size < length, bad, "length of a compressed block")
        inflater = zlib.decompressobj(-15)
        try:
            out = inflater.decompress(block, length + 1)
        except zlib.error as error:
            raise Refused("KVTC_CHUNK_MALFORMED", str(error)) from error
        ok = inflater.eof and len(out) == length and not inflater.unused_data
        require(ok, bad, f"a block does not inflate to {length} bytes")
        packed += out
    require(at == len(stored), bad, "bytes follow the last block")
    return bytes(packed)


def read_plans(header):
    """Plans of both streams: {stream: (rank, [(start, size, type, exponent)])}."""
    bad = "CONTAINER_MALFORMED"
    if header["codec"] == "wtc":
        return read_wtc_parameters(header)
    require(header["codec"] == "kvtc-paper", "CODEC_UNKNOWN", f"codec {header['codec']}")
    parameters, plans = header["codecParameters"], {}
    members(parameters, ("keyRatio", "valueRatio") + STREAMS, "codecParameters")
    for name in ("keyRatio", "valueRatio"):
        require(isinstance(parameters[name], float) and parameters[name] > 0, bad, name)
    for stream in STREAMS:
        plan = dict(parameters[stream])
        members(plan, ("rank", "groups"), stream)
        integer(plan, "rank", 0, 1 << 20)
        require(plan["rank"] % 16 == 0 and isinstance(plan["groups"], list), bad, "rank or groups of a plan")
        end, groups = 0, []
        for group in plan["groups"]:
            members(group, ("start", "size", "type", "exponent"), "group")
            require(isinstance(group["type"], str) and group["type"] in CODE_BITS, bad, f"group {group!r}")
            start, size, kind, exponent = (group[name] for name in ("start", "size", "type", "exponent"))
            require(all(map(is_integer, (start, size, exponent))), bad, f"group {group!r}")
            start, size, exponent = int(start), int(size), int(exponent)
            ok = start >= end and size >= 1 and start + size <= plan["rank"]
            require(ok and abs(exponent) <= (100 if kind == "fp8" else 0), bad, f"group {group!r}")
            end = start + size
            groups.append((start, size, kind, exponent))
        plans[stream] = (plan["rank"], groups)
    return plans


def read_wtc_parameters(header):
    """{stream: {stepIndex, rank, cut}}."""
    bad, parameters, out = "CONTAINER_MALFORMED", header["codecParameters"], {}
    require(header["entropy"] == "none", bad, "wtc has no entropy stage of its own")
    members(parameters, STREAMS, "codecParameters")
    for stream in STREAMS:
        out[stream] = plan = dict(parameters[stream])
        members(plan, ("stepIndex", "rank", "cut"), stream)
        integer(plan, "stepIndex", -16384, 16384)
        integer(plan, "rank", 0, 1 << 20)
        integer(plan, "cut", -10, 58)
        require(plan["rank"] % 16 == 0, bad, "rank")
    return out


def unpack_chunk(packed, n, plan):
    """Coefficients f32 of n tokens, as n lists of `rank` floats."""
    rank, groups = plan
    token_bytes = {g: -(-g[1] * CODE_BITS[g[2]] // 8) for g in groups}
    expected = n * sum(token_bytes[g] + (0 if g[2] == "fp8" else 4) for g in groups)
    require(len(packed) == expected, "CHUNK_MALFORMED", f"{len(packed)} packed bytes, the plan makes {expected}")
    rows, at, metadata = [[0.0] * rank for _ in range(n)], 0, {}
    for group in groups:
        if group[2] != "fp8":
            minima, steps = struct.unpack_from("<%de" % n, packed, at), struct.unpack_from("<%de" % n, packed, at + 2 * n)
            require(all(map(math.isfinite, minima + steps)), "CHUNK_MALFORMED", "a minimum or step is not finite")
            metadata[group] = (minima, steps)
            at += 4 * n
    for group in groups:
        start, size, kind, exponent = group
        if kind == "fp8":
            for component in range(start, start + size):
                for token in range(n):
                    require(packed[at] & 0x7F != 0x7F, "CHUNK_MALFORMED", "an fp8 code is NaN")
                    rows[token][component] = E4M3[packed[at]] * 2.0 ** exponent
                    at += 1
    for wanted in ("int4", "int2"):
        bits = CODE_BITS[wanted]
        for group in (g for g in groups if g[2] == wanted):
            start, size = group[0], group[1]
            for token, low, step in zip(range(n), *metadata[group]):
                codes = int.from_bytes(packed[at:at + token_bytes[group]], "little")
                require(codes >> size * bits == 0, "CHUNK_MALFORMED", "padding bits are not zero")
                at += token_bytes[group]
                for i in range(size):
                    code = codes >> i * bits & (1 << bits) - 1
                    rows[token][start + i] = f32(low + code * step)
    return rows


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def f32_bytes(values):
    return struct.pack("<%df" % len(values), *values)


def i32_bytes(values):
    return struct.pack("<%di" % len(values), *values)


def decode_chunk(chunk, header, plans, profile=None):
    """Bytes before the entropy stage, and coefficients as lists of `rank` floats."""
    n, plan = chunk["end"] - chunk["start"], plans[chunk["stream"]]
    if header["codec"] == "wtc":
        require(profile is not None, "PROFILE_MISMATCH", "chunks of wtc need their profile: --profile")
        require(chunk["packed_bytes"] == chunk["stored_bytes"], "CHUNK_MALFORMED", "packed and stored lengths differ")
        coding = profile[chunk["stream"]]
        require(plan["rank"] <= coding["rank"], "PROFILE_MISMATCH", f"rank {plan['rank']} exceeds the profile's")
        try:
            flat = wtc.decode_chunk(chunk["stored"], n, coding["family"], coding["scales"], plan)[0]
        except wtc.Malformed as error:
            raise Refused("KVTC_CHUNK_MALFORMED", str(error)) from error
        return chunk["stored"], [flat[t * plan["rank"]:(t + 1) * plan["rank"]] for t in range(n)]
    packed = unpack_blocks(chunk["stored"], chunk["packed_bytes"], header["entropy"])
    return packed, unpack_chunk(packed, n, plan)


# --- profile.md: basis and means ---------------------------------------------------------------------------------------

def read_profile(data, header):
    """Per stream mean [p], rank, row(component) of the synthesis, for wtc scales and family; only the container's own."""
    bad = "PROFILE_MALFORMED"
    require(len(data) >= 8, bad, "no safetensors file")
    size = struct.unpack_from("<Q", data)[0]
    require(size <= len(data) - 8, bad, "length of the JSON header")
    try:
        entries = json.loads(data[8:8 + size].decode("utf-8"))
    except ValueError as error:
        raise Refused("KVTC_PROFILE_MALFORMED", str(error)) from error
    metadata = entries.pop("__metadata__", {})
    require(metadata.get("format") == "kvtc-profile", bad, "not a profile")
    version = metadata.get("version")
    require(version in ("1", "2"), "PROFILE_VERSION", f"profile version {version}")
    require(version == "1" or metadata.get("codec") == "wtc", bad, "version 2 is for wtc")
    codec = "kvtc-paper" if version == "1" else "wtc"
    require(codec == header["codec"], "PROFILE_MISMATCH", f"the profile is for {codec}")
    tensors = data[8 + size:]
    identity = hashlib.sha256(metadata["model"].encode("utf-8") + b"\n" + tensors).hexdigest()
    require(identity == metadata.get("id"), bad, "the profile's contents do not hash to its id")
    require(identity == header["profileId"], "PROFILE_MISMATCH", f"the file names profile {header['profileId']}")
    layers, streams = header["model"]["geometry"]["layers"], {}
    for stream in STREAMS:
        width = layers * layer_width(header, stream)
        mean = tensor(entries, tensors, stream + ".mean", "F32", [width])
        if version == "1":
            rank = entries[stream + ".basis"]["shape"][0]
            basis = tensor(entries, tensors, stream + ".basis", "F16", [rank, width])
            streams[stream] = dict(mean=mean, rank=rank, row=lambda k, b=basis, w=width: b[k * w:(k + 1) * w])
            continue
        rank = entries[stream + ".scales"]["shape"][0]
        heads, dim = width // head_dim(header, stream), head_dim(header, stream)
        integers = tensor(entries, tensors, stream + ".synthesis", "I8", [rank, width])
        scales = tensor(entries, tensors, stream + ".synthesis.scales", "F32", [rank, heads])
        family = entries[stream + ".tables"]["shape"]

        def row(k, integers=integers, scales=scales, width=width, heads=heads, dim=dim):
            return [integers[k * width + i] * scales[k * heads + i // dim] for i in range(width)]

        streams[stream] = dict(mean=mean, rank=rank, row=row,
                               scales=tensor(entries, tensors, stream + ".scales", "I16", [rank]),
                               family=wtc.Family(tensor(entries, tensors, stream + ".tables", "F32", family)))
    return streams


def tensor(entries, tensors, name, kind, shape):
    """A tensor's values, flat."""
    entry = entries[name]
    require(entry["dtype"] == kind and entry["shape"] == shape, "PROFILE_MALFORMED", name)
    code = {"F32": "f", "F16": "e", "I8": "b", "I16": "h"}[kind]
    return struct.unpack("<%d%s" % (math.prod(shape), code), tensors[slice(*entry["data_offsets"])])


def synthesise(coefficients, profile):
    """Rows [tokens][p] in double precision: mean + coefficients · synthesis."""
    width, rows = len(profile["mean"]), [list(profile["mean"]) for _ in coefficients]
    for component in range(len(coefficients[0]) if coefficients else 0):
        require(component < profile["rank"], "PROFILE_MISMATCH", f"a rank exceeds the profile's {profile['rank']}")
        if not any(token[component] for token in coefficients):
            continue
        direction = profile["row"](component)
        for token, row in zip(coefficients, rows):
            c = token[component]
            if c:
                for i in range(width):
                    row[i] += c * direction[i]
    return rows


# --- container.md, section 8: RoPE -------------------------------------------------------------------------------------

def rotate(row, position, header):
    """Rotates one token's key row [layers][heads][head dim] in place."""
    rope, dim = header["model"]["rope"], head_dim(header, "key")
    dims = rope["dims"]
    low, high = yarn_range(rope)
    for i in range(dims // 2):
        factor = rope["frequencyFactors"][i] if rope["frequencyFactors"] else 1.0
        extrapolated = position * rope["frequencyBase"] ** (-2 * i / dims) / factor
        angle, magnitude = rope["frequencyScale"] * extrapolated, rope["attnFactor"]
        if rope["extFactor"]:
            w = rope["extFactor"] * (1 - min(1.0, max(0.0, (i - low) / max(0.001, high - low))))
            angle = angle * (1 - w) + extrapolated * w
            magnitude *= 1 + 0.1 * math.log(1 / rope["frequencyScale"])
        cos, sin = math.cos(angle) * magnitude, math.sin(angle) * magnitude
        first, second = (2 * i, 2 * i + 1) if rope["pairing"] == "interleaved" else (i, i + dims // 2)
        for head in range(0, len(row), dim):
            x, y = row[head + first], row[head + second]
            row[head + first], row[head + second] = x * cos - y * sin, x * sin + y * cos


def yarn_range(rope):
    if not rope["extFactor"]:
        return 0, 0

    def pair(beta):
        turns = rope["originalContext"] / (2 * math.pi * beta)
        return rope["dims"] * math.log(turns) / (2 * math.log(rope["frequencyBase"]))

    return max(0, math.floor(pair(rope["betaFast"]))), min(rope["dims"] - 1, math.ceil(pair(rope["betaSlow"])))


def exact_values(raw, element):
    """Numbers of exact rows."""
    if element == "q8_0":
        return [scale * q for scale, *codes in struct.iter_unpack("<e32b", raw) for q in codes]
    if element == "bf16":
        return [struct.unpack("<f", b"\0\0" + raw[i:i + 2])[0] for i in range(0, len(raw), 2)]
    return list(struct.unpack("<%d%s" % (len(raw) // (4 if element == "f32" else 2), "f" if element == "f32" else "e"), raw))


def rebuild_rows(container, profile, stream, start, end):
    """Rows of tokens [start, end) of a stream, as the engine holds them: lists of p floats."""
    header = container["header"]
    plans, width = read_plans(header), layer_width(header, stream)
    rows = {}
    for block in container["exact"]:
        if block["stream"] == stream:
            layers = [exact_values(raw, header["elementTypes"][stream]) for raw in block["rows"]]
            for token in range(max(start, block["start"]), min(end, block["end"])):
                at = (token - block["start"]) * width
                rows[token] = [x for layer in layers for x in layer[at:at + width]]
    for chunk in container["chunks"]:
        if chunk["stream"] == stream and chunk["start"] < end and chunk["end"] > start:
            first = max(start, chunk["start"])
            coefficients = decode_chunk(chunk, header, plans, profile)[1][first - chunk["start"]:end - chunk["start"]]
            for token, row in enumerate(synthesise(coefficients, profile[stream]), first):
                if stream == "key":
                    rotate(row, container["positions"][token], header)
                rows[token] = row
    return [rows[token] for token in range(start, end)]


# --- commands ----------------------------------------------------------------------------------------------------------

def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


def read_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def describe(container, profile=None):
    """All decoded content as JSON, data as sha256."""
    header, out = container["header"], []
    plans = read_plans(header)
    for chunk in container["chunks"]:
        packed, coefficients = decode_chunk(chunk, header, plans, profile)
        out.append(dict(stream=chunk["stream"], startToken=chunk["start"], endToken=chunk["end"],
                        storedBytes=chunk["stored_bytes"], packedSha256=sha256(packed),
                        coefficientsSha256=sha256(b"".join(map(f32_bytes, coefficients)))))
    exact = [dict(stream=b["stream"], startToken=b["start"], endToken=b["end"], sha256=sha256(b"".join(b["rows"])))
             for b in container["exact"]]
    tokens, positions = container["tokens"], container["positions"]
    return dict(header=header, tokensSha256=tokens and sha256(i32_bytes(tokens)), positionsSha256=sha256(i32_bytes(positions)),
                exact=exact, chunks=out)


def check(path):
    try:
        container = read_container(read_bytes(path))
        decoded = container["header"]["codec"] == "kvtc-paper" and container["header"]["entropy"] != "zstd"
        if decoded:
            describe(container)
        return dict(file=path, ok=True, decoded=decoded)
    except Refused as error:
        return dict(file=path, ok=False, code=error.code, message=str(error))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check").add_argument("files", nargs="+")
    chunks = commands.add_parser("chunks")
    chunks.add_argument("file")
    chunks.add_argument("--profile")
    rows = commands.add_parser("rows")
    rows.add_argument("file")
    rows.add_argument("--profile", required=True)
    rows.add_argument("--stream", choices=STREAMS, required=True)
    rows.add_argument("--tokens", default=":")
    rows.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    if options.command == "check":
        results = [check(path) for path in options.files]
        for result in results:
            print(json.dumps(result))
        return 0 if all(result["ok"] for result in results) else 3
    try:
        container = read_container(read_bytes(options.file))
        read_plans(container["header"])
        profile = options.profile and read_profile(read_bytes(options.profile), container["header"])
        if options.command == "chunks":
            print(json.dumps(describe(container, profile)))
            return 0
        first, _, last = options.tokens.partition(":")
        start, end = int(first or 0), min(int(last or 2 ** 31), container["header"]["tokenCount"])
        rebuilt = rebuild_rows(container, profile, options.stream, start, end)
        with open(options.out, "wb") as file:
            for row in rebuilt:
                file.write(f32_bytes(row))
        return 0
    except Refused as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
