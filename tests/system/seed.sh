#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A new secondary is seeded from the store instead of over the link: its disk is restored before its first
# start, and the first sync then carries hashes and what changed since the snapshot. Counted on the link.
# time limit: 150 s
. "$(dirname "$0")/lib.sh"
need jq nbdcopy qemu-io
begin
seed_random
size=64

write() { # PATTERN AT LENGTH
	qemu-io -f raw -c "write -P $1 $2 $3" "$(uri a)" >"$dir/io.out" 2>&1 || die "$(cat "$dir/io.out")"
}
sent() { volume_get a .replication.sent_bytes; }

current=from_a_snapshot
mkdir "$dir/store"
pair_config $size "store = file:$dir/store"
start a
head -c ${size}M /dev/urandom >"$dir/want.img"
nbdcopy "$dir/want.img" "$(uri a)" || die "nbdcopy"
off a snapshot create v >/dev/null 2>&1 || die "snapshot"
write 7 5M 256k
write 8 40M 256k
"$build/offsite" restore --store "file:$dir/store" --to "$dir/b.img" >"$dir/restore.log" 2>&1 ||
	die "$(tail -n 1 "$dir/restore.log")"
start b
wait_state 60 "the first sync" a in-sync
note "$(sent) bytes went over the link, of $((size << 20))"
[ "$(sent)" -lt $((3 << 20)) ] || die "$(sent) bytes went over the link"
cmp "$dir/a.img" "$dir/b.img" >/dev/null || die "the disks differ"
volume_is b '.disk == "uptodate"' >/dev/null || die "$(off b status)"
stop b
ok "$current"

# The same without a seed: the test would notice.
current=without_one
rm -rf "$dir"/b.img* "$dir/b.state"
before=$(sent)
start b
wait_state 60 "the first sync" a in-sync
[ $(($(sent) - before)) -gt $((size << 20)) ] || die "$(($(sent) - before)) bytes"
stop a
stop b
ok "$current"
