#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Brings a copy of one snapshot to the state of another export, by what changed and nothing else.

usage: nbd-incremental-backup.py URI CONTEXT FILE

URI is an export of offsited (pgdata@latest, pgdata@ID, or pgdata itself), CONTEXT one that says what
changed since the snapshot that FILE is a copy of: offsite:changed-since=ID or qemu:dirty-bitmap:ID.
FILE is changed in place. Needs libnbd's Python module (Debian: python3-libnbd).
"""
import os
import sys

import nbd

CHANGED, ZERO = 1, 2
ASKED, READ = 1 << 30, 1 << 20


def extents(handle, context, size):
    """What the context says, as (offset, length, flags), in order."""
    at = 0
    while at < size:
        found = []

        def keep(name, offset, entries, error):
            if name == context:
                found.extend(entries)

        handle.block_status(min(ASKED, size - at), at, keep)
        for length, flags in zip(found[::2], found[1::2]):
            yield at, length, flags
            at += length


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    uri, context, path = sys.argv[1:]
    handle = nbd.NBD()
    handle.add_meta_context(context)
    handle.connect_uri(uri)
    if not handle.can_meta_context(context):
        sys.exit(f"{uri}: the server knows of no {context}")
    size, copied, zeroed = handle.get_size(), 0, 0
    is_bitmap = context.startswith("qemu:")
    with open(path, "r+b", buffering=0) as file:
        file.truncate(size)
        for offset, length, flags in extents(handle, context, size):
            if not flags & CHANGED:
                continue
            if flags & ZERO and not is_bitmap:
                zeroed += length
            else:
                copied += length
            for at in range(offset, offset + length, READ):
                n = min(READ, offset + length - at)
                zero = flags & ZERO and not is_bitmap
                os.pwrite(file.fileno(), bytes(n) if zero else handle.pread(n, at), at)
        os.fsync(file.fileno())
    handle.shutdown()
    print(f"{copied} bytes copied, {zeroed} zeroed, of {size}")


main()
