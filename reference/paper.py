"""Chunks of kvtc-paper and wtc to coefficients, from docs/format/paper-codec.md; wtc.py has that codec's stages."""
import math
import struct
import zlib

import wtc
from container import Refused, STREAMS, f32, integer, is_integer, members, require


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
    """{stream: {stepIndex, rank, cut, expected}}."""
    bad, parameters, out = "CONTAINER_MALFORMED", header["codecParameters"], {}
    require(header["entropy"] == "none", bad, "wtc has no entropy stage of its own")
    members(parameters, STREAMS, "codecParameters")
    for stream in STREAMS:
        out[stream] = plan = dict(parameters[stream])
        members(plan, ("stepIndex", "rank", "cut") + (("expected",) if "expected" in plan else ()), stream)
        plan.setdefault("expected", 0.0)
        integer(plan, "stepIndex", -16384, 16384)
        integer(plan, "rank", 0, 1 << 20)
        integer(plan, "cut", -10, 58)
        integer(plan, "expected", 0, plan["rank"])
        require(plan["rank"] % 16 == 0 and plan["expected"] % 16 == 0, bad, "rank")
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


def decode_chunk(chunk, header, plans, profile=None):
    """Bytes before the entropy stage, coefficients as lists of `rank` floats, and how many of each a token codes."""
    n, plan = chunk["end"] - chunk["start"], plans[chunk["stream"]]
    if header["codec"] == "wtc":
        require(profile is not None, "PROFILE_MISMATCH", "chunks of wtc need their profile: --profile")
        require(chunk["packed_bytes"] == chunk["stored_bytes"], "CHUNK_MALFORMED", "packed and stored lengths differ")
        coding = profile[chunk["stream"]]
        require(plan["rank"] <= coding["rank"], "PROFILE_MISMATCH", f"rank {plan['rank']} exceeds the profile's")
        try:
            flat, classes = wtc.decode_chunk(chunk["stored"], n, coding["family"], coding["scales"], plan)
        except wtc.Malformed as error:
            raise Refused("KVTC_CHUNK_MALFORMED", str(error)) from error
        coded = [wtc.coded_components(coding["scales"], plan, token_class) for token_class in classes]
        return chunk["stored"], [flat[t * plan["rank"]:(t + 1) * plan["rank"]] for t in range(n)], coded
    packed = unpack_blocks(chunk["stored"], chunk["packed_bytes"], header["entropy"])
    return packed, unpack_chunk(packed, n, plan), [plan[0]] * n
