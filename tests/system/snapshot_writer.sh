#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A snapshot under load is one instant of the write order: a client whose blocks carry sequence
# numbers writes without a pause while snapshots are taken; each one, restored, is held against
# the client's log. With a peer in protocol C and without, on each I/O backend.
# time limit: 300 s
. "$(dirname "$0")/lib.sh"
need jq nbd_ledger
begin
seed_random
blocks=$((48 * 256))
snapshots=6

mark() { # tells the writer to put a mark into its log, waits for it
	marks=$((marks + 1))
	kill -USR1 "$writer"
	wait_for 10 "mark $marks" grep -qx "mark $marks" "$dir/writer.out"
}
writer() {
	exec "$tools/nbd_ledger" write --socket "$dir/a.nbd" --log "$dir/log" --blocks "$blocks" \
		--depth 32 --seed "$seed" >"$dir/writer.out" 2>&1
}

one_run() { # NAME WITH_PEER
	current=$1
	rm -rf "$dir"/[ab].* "$dir/log" "$dir/store"
	mkdir "$dir/store"
	# The writer never pauses: a snapshot that made room for it would take its time.
	pair_config 48 "store = file:$dir/store
catch-up-latency-factor = 0"
	if [ "$2" = yes ]; then
		start b
	else
		sed -i '/^peer = /d' "$dir/a.conf"
	fi
	start a
	[ "$2" = no ] || wait_state 30 "the first sync" a in-sync
	helper_start writer
	writer=$helper marks=0
	wait_writes a # from then on it knows signals
	for ((n = 1; n <= snapshots; n++)); do
		pause_ms "$(between 50 500)"
		mark
		off a snapshot create v --label "$n" >"$dir/snapshot.log" 2>&1 ||
			die "snapshot $n: $(tail -n 1 "$dir/snapshot.log")"
		mark
	done
	kill -TERM "$writer"
	wait "$writer" || die "the writer: $(tail -n 1 "$dir/writer.out")"
	[ "$2" = no ] || {
		wait_state 30 "in sync at the end" a in-sync
		cmp "$dir/a.img" "$dir/b.img" >/dev/null || die "the disks differ"
	}
	off a snapshot verify v >"$dir/verify.log" 2>&1 || die "verify: $(tail -n 3 "$dir/verify.log")"
	off a snapshot list v --json >"$dir/list.json" || die "list"
	# The daemon is not needed any more.
	stop a
	[ "$2" = no ] || stop b
	for ((n = 1; n <= snapshots; n++)); do
		local id
		id=$(jq -r ".. | objects | select(.label? == \"$n\") | .id" "$dir/list.json" | head -n 1)
		[ -n "$id" ] || die "snapshot $n is not in the list"
		"$build/offsite" restore --store "file:$dir/store" --snapshot "$id" --to "$dir/back.img" \
			>"$dir/restore.log" 2>&1 || die "restore of $n: $(tail -n 2 "$dir/restore.log")"
		"$tools/nbd_ledger" cut --image "$dir/back.img" --log "$dir/log" --blocks "$blocks" \
			--from $((2 * n - 1)) --to $((2 * n)) >"$dir/cut.out" 2>&1 ||
			die "snapshot $n is no instant: $(tail -n 1 "$dir/cut.out")"
		note "snapshot $n: $(tail -n 1 "$dir/cut.out")"
		rm -f "$dir/back.img"
	done
	ok "$1"
}

for io in $(backends); do
	part one_run "one_instant_alone_$io" no
	part one_run "one_instant_with_peer_$io" yes
done
