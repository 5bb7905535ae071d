#!/usr/bin/env python3
"""Independent decoder of .kvtc files, written from docs/format/*.md alone. Python 3.9+, standard library only.

It is slow and plain on purpose: it exists to check the product and to show that the pages suffice. container.py,
paper.py, wtc.py and rows.py beside it follow the pages.

  decode.py check FILE...            check every rule and checksum; a JSON line per file; exit status 3 if one is refused
  decode.py chunks FILE [--profile P]
                                     JSON: header, and sha256 of every decoded part; wtc needs the profile
  decode.py rows FILE --profile P --stream key|value [--tokens A:B] [--embeddings E] -o OUT
                                     rebuilt rows, f32 little-endian [tokens][layers][kv heads][head dim], as the engine
                                     holds them (keys rotated); a profile of version 3 needs the model's input embedding
                                     as well, f32 little-endian [vocabulary][width]
"""
import argparse
import hashlib
import json
import struct
import sys

from container import Refused, STREAMS, f32_bytes, i32_bytes, read_container
from paper import decode_chunk, read_plans
from rows import read_profile, rebuild_rows


# --- commands ----------------------------------------------------------------------------------------------------------

def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


def read_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def read_embeddings(data, profile):
    """id -> one token's embedding."""
    width = profile["token"]["width"] if "token" in profile else 1
    return lambda token: struct.unpack_from(f"<{width}f", data, 4 * width * token)


def describe(container, profile=None):
    """All decoded content as JSON, data as sha256."""
    header, out = container["header"], []
    plans = read_plans(header)
    for chunk in container["chunks"]:
        packed, coefficients, _ = decode_chunk(chunk, header, plans, profile)
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
    rows.add_argument("--embeddings")
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
        embeddings = options.embeddings and read_embeddings(read_bytes(options.embeddings), profile)
        rebuilt = rebuild_rows(container, profile, options.stream, start, end, embeddings)
        with open(options.out, "wb") as file:
            for row in rebuilt:
                file.write(f32_bytes(row))
        return 0
    except Refused as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
