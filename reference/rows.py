"""Profiles, and coefficients to rows as the engine holds them: docs/format/profile.md, container.md section 8."""
import hashlib
import json
import math
import struct

import wtc
from container import Refused, STREAMS, f32, head_dim, layer_width, require
from paper import decode_chunk, read_plans


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
    require(version in ("1", "2", "3"), "PROFILE_VERSION", f"profile version {version}")
    require(version == "1" or metadata.get("codec") == "wtc", bad, f"version {version} is for wtc")
    codec = "kvtc-paper" if version == "1" else "wtc"
    require(codec == header["codec"], "PROFILE_MISMATCH", f"the profile is for {codec}")
    tensors = data[8 + size:]
    identity = hashlib.sha256(metadata["model"].encode("utf-8") + b"\n" + tensors).hexdigest()
    require(identity == metadata.get("id"), bad, "the profile's contents do not hash to its id")
    require(identity == header["profileId"], "PROFILE_MISMATCH", f"the file names profile {header['profileId']}")
    layers, streams = header["model"]["geometry"]["layers"], {}
    if version == "3":
        dims, doubled = entries["token.features"]["shape"]
        streams["token"] = dict(dims=dims, width=doubled // 2, features=scaled_rows(entries, tensors, "token.features"),
                                offsets=tensor(entries, tensors, "token.offsets", "F32", [dims]))
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
        if version == "3":
            shape = entries[stream + ".expected"]["shape"]
            require(shape[0] <= rank and shape[1] == dims, bad, stream + ".expected")
            streams[stream]["expected"] = scaled_rows(entries, tensors, stream + ".expected")
    return streams


def scaled_rows(entries, tensors, name):
    """Rows of an I8 tensor, each by its scale."""
    rows, columns = entries[name]["shape"]
    integers = tensor(entries, tensors, name, "I8", [rows, columns])
    scales = tensor(entries, tensors, name + ".scales", "F32", [rows, 1])
    return [[integers[r * columns + i] * scales[r] for i in range(columns)] for r in range(rows)]


def tensor(entries, tensors, name, kind, shape):
    """A tensor's values, flat."""
    entry = entries[name]
    require(entry["dtype"] == kind and entry["shape"] == shape, "PROFILE_MALFORMED", name)
    code = {"F32": "f", "F16": "e", "I8": "b", "I16": "h"}[kind]
    return struct.unpack("<%d%s" % (math.prod(shape), code), tensors[slice(*entry["data_offsets"])])


def token_features(tokens, t, token, embeddings):
    """z of token t: features of its own embedding and its predecessor's, less offsets; embeddings(id) gives one."""
    def normalised(index):
        values = embeddings(tokens[index]) if index >= 0 else [0.0] * token["width"]
        scale = 1 / math.sqrt(sum(v * v for v in values) / len(values) + 1e-12)
        return [v * scale for v in values]

    both = normalised(t) + normalised(t - 1)
    return [sum(f * v for f, v in zip(feature, both)) - offset
            for feature, offset in zip(token["features"], token["offsets"])]


def expect(coefficients, stream, z, components):
    """Coefficients of one token with what its id lets expect of the first components."""
    require(components <= len(stream["expected"]), "PROFILE_MISMATCH", "more is expected than the profile knows")
    told = [sum(e * v for e, v in zip(row, z)) for row in stream["expected"][:components]]
    return [c + t for c, t in zip(coefficients, told)] + list(coefficients[components:])


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


def rebuild_rows(container, profile, stream, start, end, embeddings=None):
    """Rows of tokens [start, end) of a stream, as the engine holds them: lists of p floats.

    embeddings(id) gives a token's input embedding; a profile of version 3 needs it, and the file its token ids.
    """
    needed = "token" in profile
    require(not needed or embeddings, "OPTION_INVALID", "the profile needs the model's embeddings")
    require(not needed or container["tokens"], "STATE_UNSUPPORTED", "the profile needs token ids")
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
            _, coefficients, coded = decode_chunk(chunk, header, plans, profile)
            coefficients = coefficients[first - chunk["start"]:end - chunk["start"]]
            if needed:
                told = plans[stream]["expected"]
                coefficients = [expect(own, profile[stream],
                                       token_features(container["tokens"], t, profile["token"], embeddings),
                                       min(told, coded[t - chunk["start"]]))
                                for t, own in enumerate(coefficients, first)]
            for token, row in enumerate(synthesise(coefficients, profile[stream]), first):
                if stream == "key":
                    rotate(row, container["positions"][token], header)
                rows[token] = row
    return [rows[token] for token in range(start, end)]
