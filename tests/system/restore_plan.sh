#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A restore says what it will take before it begins, and with --dry-run that is all: from a store, through the
# daemon, and with the daemon stopped; for people and as JSON.
# time limit: 120 s
. "$(dirname "$0")/lib.sh"
need jq nbdcopy
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
jq -e "$as_it_is"' and .exact and .target_now == "nothing: it is new"' "$dir/plan.json" >/dev/null || die "$(cat "$dir/plan.json")"
[ ! -e "$dir/back.img" ] && [ ! -e "$dir/back.img.incomplete" ] || die "it did something"
restore >"$dir/restore.log" 2>&1 || die "$(cat "$dir/restore.log")"
grep -q "fetch .* requests" "$dir/restore.log" || die "no plan was printed: $(cat "$dir/restore.log")"
restore --force --dry-run >"$dir/plan" || die "plan"
grep -q "overwrites the file: 64.0 MiB" "$dir/plan" || die "$(cat "$dir/plan")"
ok "$current"

current=through_the_daemon
off a restore v --dry-run --json >"$dir/plan.json" 2>"$dir/restore.log" || die "$(cat "$dir/restore.log")"
jq -e "$as_it_is"' and (.target_now | test("primary, disk uptodate"))' "$dir/plan.json" >/dev/null ||
	die "$(cat "$dir/plan.json")"
volume_is a '.disk == "uptodate"' >/dev/null || die "it did something"
off a restore v >"$dir/restore.log" 2>&1 || die "$(cat "$dir/restore.log")"
grep -q "fetch .* requests" "$dir/restore.log" || die "no plan was printed: $(cat "$dir/restore.log")"
ok "$current"

current=daemon_stopped
stop a
"$build/offsite" --config "$dir/a.conf" restore v --dry-run >"$dir/plan" || die "plan"
grep -q "overwrites primary, disk uptodate" "$dir/plan" || die "$(cat "$dir/plan")"
ok "$current"
