#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Golden vectors of replication.md and staging.md: written from the specifications alone, sharing nothing with the C
code. Prints frames.json or staging.json; tests/unit/protocol_vectors.c reads the files that stand here.

    python3 make.py frames >frames.json
    python3 make.py staging >staging.json
"""
import json
import struct
import sys


def crc32c(data, crc=0):
    """RFC 3720, appendix B.4: reflected polynomial 0x82f63b78, all ones before and after."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def ident(first):
    return bytes((first + i) & 255 for i in range(16))


def name(text):
    return text.encode().ljust(64, b"\0")


def pairs(*runs):
    return b"".join(struct.pack(">QQ", *run) for run in runs)


# ---- frames ---------------------------------------------------------------------------------------

FLAG = {"FUA": 1, "PUNCH": 2, "POINT": 4, "LAST": 8, "FINAL": 16, "IN_PLACE": 32, "FINE": 64, "HOLE": 128,
        "LATER": 256, "UNREADABLE": 512, "ASK": 1024}

HELLO = struct.pack(">II64s64s16s16sQQQBBBBBB2x16s16s", 2, 1, name("alpha"), name("pgdata"), ident(0x10), ident(0x20), 9,
                    1 << 30, 4096, 1, 2, 2, 1 | 32, 2, 1, ident(0x30), ident(0x40)) + b"".join(
                        ident(0x50 + 16 * i) if i < 2 else bytes(16) for i in range(8))
ERROR = struct.pack(">II240s", 14, 24, b"staging: no space on dev")
STATE = struct.pack(">QQQQBBBB12x", 88410, 0x0102030405060708, 1500000000, 8192, 1, 0, 2, 1)
SNAPSHOT = ident(0xa0) + struct.pack(">Q8x", 7) + pairs((0x10000, 0x20000), (0x40000, 0x1000))
CONTENT = bytes(range(256)) * 2
HASHES = ident(0x80) + bytes(16)

# type, name, flags, id, lsn, offset, length, payload
FRAMES = [
    (1, "HELLO", [], 0, 0, 0, 0, HELLO),
    (2, "ERROR", [], 0, 0, 0, 0, ERROR),
    (3, "PING", [], 0x0102030405060708, 0, 0, 0, b""),
    (4, "PONG", [], 0x0102030405060708, 0, 0, 0, b""),
    (5, "START", [], 5, 0, 0, 0, b""),
    (6, "MAP", ["LAST"], 0, 0, 0, 0, pairs((4096, 8192), (1 << 40, 1 << 20))),
    (7, "PROPOSE", [], 3, 0, 0, 1 << 30, ident(0x60)),
    (8, "READY", ["IN_PLACE"], 3, 0, 0, 0, b""),
    (8, "READY", [], 3, 0, 0, 4 << 30, b""),
    (9, "CUT_BEGIN", ["FINAL"], 3, 88410, 0, 65536, ident(0x30) + ident(0x10)),
    (10, "CUT_DATA", [], 0, 0, 0x7000, 512, CONTENT),
    (11, "CUT_ZERO", ["PUNCH"], 0, 0, 0x8000, 1 << 40, b""),
    (12, "CUT_END", [], 3, 0, 2, 65536, b""),
    (13, "CUT_ACK", [], 3, 0, 0, 0, b""),
    (14, "WRITE", ["FUA"], 0x0102030405060708, 0x1112131415161718, 0x10000, 512, CONTENT),
    (15, "ZERO", ["FUA", "PUNCH"], 8, 88411, 0x20000, 0x100000, b""),
    (16, "FLUSH", ["POINT"], 9, 88411, 0, 0, b""),
    (17, "SYNCED", [], 0, 0, 0, 0, ident(0x30) + ident(0x10)),
    (18, "ACK", [], 9, 0, 0, 0, pairs((1, 7), (9, 9))),
    (19, "COMPARE", ["FINE"], 5, 6, 0x100000, 0x2000, b""),
    (20, "HASHES", ["FINE"], 5, 0, 0x100000, 0x2000, HASHES),
    (20, "HASHES", ["LATER"], 6, 0, 0x110000, 0x10000, b""),
    (23, "RESUME", [], 0, 0, 0x0102, 0x0101, ident(0x60)),
    (24, "READ", [], 5, 0, 0x100000, 0x10000, b""),
    (25, "READ_DATA", [], 5, 0, 0x100000, 512, CONTENT),
    (25, "READ_DATA", ["HOLE"], 6, 0, 0x110000, 0x10000, b""),
    (26, "RESIZE", [], 0, 0, 0, 0x40001000, b""),
    (27, "STATE", [], 0, 0, 0, 0, STATE),
    (28, "CHANGES", [], 2, 0, 0, 12288, pairs((4096, 4096), (65536, 8192))),
    (29, "SNAPSHOT", ["ASK"], 0, 0, 0, 0, b""),
    (29, "SNAPSHOT", [], 0, 0, 0, 0, SNAPSHOT),
]


def frame(kind, label, flags, number, lsn, offset, length, payload):
    bits = sum(FLAG[f] for f in flags)
    head = struct.pack(">IHHQQQQII12x", 0x4F465250, kind, bits, number, lsn, offset, length, len(payload),
                       crc32c(payload) if payload else 0)
    return {"name": label, "type": kind, "flags": bits, "id": number, "lsn": lsn, "offset": offset, "length": length,
            "header": (head + struct.pack(">I", crc32c(head))).hex(), "payload": payload.hex()}


# ---- the staging log ------------------------------------------------------------------------------

LOG, AGAIN = ident(0xc0), ident(0xd0)
# type, name, flags, lsn, offset, length, payload
RECORDS = [
    (1, "CUT_DATA", 0, 0, 0x7000, 512, CONTENT),
    (4, "WRITE", 0, 88400, 0x9000, 512, CONTENT),
    (7, "RESUME", 0, 0, 0, 16, AGAIN),
    (2, "CUT_ZERO", 1, 0, 0x8000, 1 << 20, b""),
    (3, "COMMIT", 2, 88410, 0, 32, ident(0x30) + ident(0x10)),
    (4, "WRITE", 0, 88411, 0x10000, 512, CONTENT),
    (5, "ZERO", 1, 88412, 0x20000, 0x100000, b""),
    (6, "FLUSH", 0, 88412, 0, 0, b""),
]


def staging():
    head = struct.pack(">Q16s16sQ16s16s44x", 0x4F46535447303031, LOG, ident(0x10), 1 << 30, ident(0x40), ident(0x60))
    log, records = LOG, []
    for sequence, (kind, label, flags, lsn, offset, length, payload) in enumerate(RECORDS, 1):
        record = struct.pack(">IHH16sQQQQI", 0x53524543, kind, flags, log, sequence, lsn, offset, length,
                             crc32c(payload) if payload else 0)
        records.append({"name": label, "type": kind, "flags": flags, "log_id": log.hex(), "sequence": sequence,
                        "lsn": lsn, "offset": offset, "length": length,
                        "header": (record + struct.pack(">I", crc32c(record))).hex(), "payload": payload.hex()})
        if kind == 7:
            log = payload
    return {"log_id": LOG.hex(), "uuid": ident(0x10).hex(), "size_bytes": 1 << 30, "generation": ident(0x40).hex(),
            "transfer": ident(0x60).hex(), "header": (head + struct.pack(">I", crc32c(head))).hex(), "records": records}


if __name__ == "__main__":
    what = {"frames": lambda: [frame(*f) for f in FRAMES], "staging": staging}
    if len(sys.argv) != 2 or sys.argv[1] not in what:
        raise SystemExit(__doc__)
    print(json.dumps(what[sys.argv[1]](), indent=1))
