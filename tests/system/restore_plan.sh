#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A restore says what it will take before it begins, and with --dry-run that is all: from a store, through the
# daemon, at once, from the peer, and with the daemon stopped; for people and as JSON. What is there already is not part of
# it where the dirty map knows, and else what is fetched is "at most".
# time limit: 120 s
. "$(dirname "$0")/lib.sh"
need jq nbdcopy qemu-io
begin
mkdir "$dir/store"
config a <<-END
	[node]
	name = a
	state-dir = $dir/a.state
	control = $dir/a.sock
	nbd-listen = unix:$dir/a.nbd
	[volume v]
	backing = $dir/a.img
	size = 64M
	role = primary
	store = file:$dir/store
END
start a
head -c 32M /dev/urandom >"$dir/want.img"
truncate -s 64M "$dir/want.img"
nbdcopy "$dir/want.img" "$(uri a)" || die "nbdcopy"
off a snapshot create v >/dev/null 2>&1 || die "snapshot"
as_it_is='.fetch_bytes > 33000000 and .fetch_bytes < 35000000 and .write_bytes == 33554432 and
	.requests >= 8 and .requests < 32 and .estimate_seconds > 0 and (.snapshot | length) == 32'

current=from_a_store
restore() { "$build/offsite" restore --store "file:$dir/store" --to "$dir/back.img" "$@"; }
restore --dry-run --json >"$dir/plan.json" || die "plan"
jq -e "$as_it_is"' and .exact and .target_now == "nothing: it is new" and (.at_most | not)' "$dir/plan.json" >/dev/null || die "$(cat "$dir/plan.json")"
[ ! -e "$dir/back.img" ] && [ ! -e "$dir/back.img.incomplete" ] || die "it did something"
restore >"$dir/restore.log" 2>&1 || die "$(cat "$dir/restore.log")"
grep -q "fetch .* requests" "$dir/restore.log" || die "no plan was printed: $(cat "$dir/restore.log")"
restore --force --dry-run >"$dir/plan" || die "plan"
grep -q "overwrites the file: 64.0 MiB" "$dir/plan" && grep -q "fetch      at most 32" "$dir/plan" || die "$(cat "$dir/plan")"
restore --force >"$dir/restore.log" 2>&1 || die "$(cat "$dir/restore.log")"
grep -q "(0 B written, 64.0 MiB were right already)" "$dir/restore.log" || die "again: $(cat "$dir/restore.log")"
ok "$current"

current=through_the_daemon
first=$(off a snapshot list v --json | jq -r '.snapshots[0].id')
in_place() { # OPTIONS...: the plan, of which nothing is done
	off a restore v --dry-run --json "$@" >"$dir/plan.json" 2>"$dir/restore.log" || die "$(cat "$dir/restore.log")"
}
plan_is() { jq -e "$1" "$dir/plan.json" >/dev/null || die "$(cat "$dir/plan.json")"; }
for how in "" --instant; do
	# shellcheck disable=SC2086 # none, or one word
	in_place $how
	plan_is '.fetch_bytes == 0 and .write_bytes == 0 and .requests <= 5 and (.snapshot | length) == 32 and
		(.target_now | test("primary, disk uptodate, 0 bytes changed since this snapshot"))'
done
qemu-io -f raw -c 'write -P 7 1M 1M' -c 'write -P 7 40M 64k' "$(uri a)" >/dev/null || die "write"
for how in "" --instant; do
	# shellcheck disable=SC2086
	in_place $how
	plan_is '.fetch_bytes > 1048576 and .fetch_bytes < 1200000 and .write_bytes == 17 * 65536 and .requests < 16 and
		(.target_now | test(", 1114112 bytes changed since this snapshot"))'
done
off a snapshot create v >/dev/null 2>&1 || die "snapshot"
in_place --snapshot "$first"
plan_is "$as_it_is"' and .at_most and (.target_now | test("changed since") | not)'
volume_is a '.disk == "uptodate"' >/dev/null || die "it did something"
off a restore v --snapshot "$first" >"$dir/restore.log" 2>&1 || die "$(cat "$dir/restore.log")"
grep -q "fetch      at most 32.* requests" "$dir/restore.log" || die "no plan was printed: $(cat "$dir/restore.log")"
nbdcopy "$(uri a)" "$dir/back2.img" && cmp "$dir/want.img" "$dir/back2.img" || die "it is not what it was"
off a restore v --instant >"$dir/restore.log" 2>&1 || die "$(cat "$dir/restore.log")"
grep -q "fetch .* requests, about .*, while it is in use" "$dir/restore.log" ||
	die "no plan was printed: $(cat "$dir/restore.log")"
wait_state 60 "the volume to be whole" a filled
ok "$current"

current=daemon_stopped
stop a
"$build/offsite" --config "$dir/a.conf" restore v --dry-run >"$dir/plan" || die "plan"
grep -q "overwrites primary, disk uptodate" "$dir/plan" || die "$(cat "$dir/plan")"
ok "$current"

current=from_the_peer
rm -rf "$dir"/[ab].*
pair_config 64
start b
start a
wait_state 30 "the first sync" a in-sync
off a restore v --from-peer --dry-run >"$dir/plan" 2>&1 || die "plan: $(cat "$dir/plan")"
grep -q "fetch      at most 64.0 MiB, " "$dir/plan" && grep -q "overwrites primary, disk uptodate" "$dir/plan" ||
	die "$(cat "$dir/plan")"
volume_is a '.role == "primary" and .disk == "uptodate"' >/dev/null || die "it did something"
ok "$current"
