"""Frames that no encoder would make, with every checksum right: to get past the front door."""

import struct

import msgpack
import xxhash


def forge(
    payload=b"",
    *,
    tensors=(("", "fp32", (0,)),),
    flags=0,
    weight=0.0,
    meta=b"",
    chunks=(),
    sums=None,
    fields=None,
    version=1,
    magic=b"SMLT",
    length=None,
):
    """Return a frame; `chunks` is a list of (mode, stored bytes), else `payload` is all raw."""
    if chunks:
        payload = b"".join(stored for _, stored in chunks)
    if sums is None:
        pieces = [stored for _, stored in chunks] or [
            payload[i : i + 65536] for i in range(0, len(payload), 65536)
        ]
        sums = struct.pack(f"<{len(pieces)}Q", *map(xxhash.xxh3_64_intdigest, pieces))
    table = struct.pack(f"<{len(chunks)}I", *(mode << 28 | len(data) for mode, data in chunks))
    if fields is None:
        fields = msgpack.packb(
            {
                "tensors": [list(t) for t in tensors],
                "flags": flags,
                "weight": weight,
                "meta": meta,
                "chunks": table,
                "sums": sums,
            }
        )
    hashed = struct.pack("<Q", len(fields) if length is None else length) + fields
    hashed += bytes(-(16 + len(hashed)) % 64)
    return struct.pack("<4sIQ", magic, version, xxhash.xxh3_64_intdigest(hashed)) + hashed + payload
