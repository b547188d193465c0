#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Restore: without a daemon (snapshots are listed as it lists them), to a file and to a loop device;
# interrupted by kill -9 again and again, and repeated; in place, with the daemon running and stopped; from
# the peer after the disk was lost, interrupted too.
# time limit: 300 s
. "$(dirname "$0")/lib.sh"
need jq nbdcopy
begin
seed_random
size=96

fill() { # NODE: random content in scattered places, the image of it in $dir/want.img
	truncate -s ${size}M "$dir/want.img"
	local n
	for n in $(seq 12); do
		dd if=/dev/urandom of="$dir/want.img" bs=64k seek="$(between 0 $((size * 16 - 33)))" \
			count="$(between 1 32)" conv=notrunc status=none
	done
	nbdcopy "$dir/want.img" "$(uri "$1")" || die "nbdcopy"
}
same() { cmp "$1" "$2" >"$dir/cmp.out" 2>&1 || die "$3: $(cat "$dir/cmp.out")"; }
snapshot_of() { # LABEL
	off a snapshot list v --json | jq -r ".. | objects | select(.label? == \"$1\") | .id" | head -n 1
}
restore() { "$build/offsite" restore --store "file:$dir/store" "$@" >"$dir/restore.log" 2>&1; }

run_backend() {
	local status id
	rm -rf "$dir"/[ab].* "$dir/store" "$dir"/*.img
	mkdir "$dir/store"
	pair_config $size "store = file:$dir/store"
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	fill a
	off a snapshot create v --label first >/dev/null 2>&1 || die "snapshot"
	cp "$dir/want.img" "$dir/first.img"
	fill a
	off a snapshot create v --label second >/dev/null 2>&1 || die "snapshot"
	id=$(snapshot_of first)

	current=listed_without_the_daemon_$io
	off a snapshot list v --json | jq -S .snapshots >"$dir/by_daemon.json"
	"$build/offsite" snapshot list --store "file:$dir/store" --json | jq -S .snapshots >"$dir/by_store.json"
	[ "$(jq length "$dir/by_store.json")" = 2 ] || die "$(cat "$dir/by_store.json")"
	same "$dir/by_daemon.json" "$dir/by_store.json" "what it says of a snapshot"
	ok "$current"

	current=to_a_file_$io
	restore --to "$dir/back.img" || die "$(tail -n 2 "$dir/restore.log")"
	same "$dir/back.img" "$dir/want.img" "newest"
	restore --to "$dir/back.img" && die "an existing file was overwritten without --force"
	restore --to "$dir/back.img" --force --snapshot "$id" || die "$(tail -n 2 "$dir/restore.log")"
	same "$dir/back.img" "$dir/first.img" "first, over the newest"
	ok "$current"

	current=to_a_device_$io
	truncate -s ${size}M "$dir/disk.img"
	if device=$(losetup -f --show "$dir/disk.img" 2>/dev/null); then
		at_end "loop_end $device; rm -f /var/lib/offsite/restored-${device#/dev/}"
		restore --to "$device" --force || die "$(tail -n 2 "$dir/restore.log")"
		sync "$device"
		same "$device" "$dir/want.img" "device"
		losetup -d "$device"
		ok "$current"
	else
		skip "$current" "no loop device"
	fi

	# Killed at random moments: never a half-restored file under the final name, or without a mark.
	current=interrupted_$io
	rm -f "$dir/back.img"
	local killed=0 attempt
	for attempt in $(seq 12); do
		"$build/offsite" restore --store "file:$dir/store" --to "$dir/back.img" >/dev/null 2>&1 &
		status=$!
		pause_ms "$(between 1 60)"
		kill -KILL $status 2>/dev/null && killed=$((killed + 1))
		wait $status 2>/dev/null
		if [ -e "$dir/back.img" ]; then
			same "$dir/back.img" "$dir/want.img" "attempt $attempt left a wrong file"
			rm -f "$dir/back.img"
		fi
	done
	restore --to "$dir/back.img" || die "repeated: $(tail -n 2 "$dir/restore.log")"
	same "$dir/back.img" "$dir/want.img" "repeated"
	for attempt in $(seq 8); do
		"$build/offsite" restore --store "file:$dir/store" --to "$dir/back.img" --force \
			--snapshot "$id" >/dev/null 2>&1 &
		status=$!
		pause_ms "$(between 1 60)"
		kill -KILL $status 2>/dev/null && killed=$((killed + 1))
		wait $status 2>/dev/null
		[ -e "$dir/back.img.restoring" ] || cmp -s "$dir/back.img" "$dir/want.img" ||
			cmp -s "$dir/back.img" "$dir/first.img" || die "half restored and not marked"
	done
	restore --to "$dir/back.img" --force --snapshot "$id" || die "repeated: $(tail -n 2 "$dir/restore.log")"
	same "$dir/back.img" "$dir/first.img" "repeated over a file"
	[ ! -e "$dir/back.img.restoring" ] || die "complete, but still marked"
	note "$killed of 20 killed in time"
	ok "$current"

	current=in_place_running_$io
	off a restore v --snapshot "$id" >"$dir/restore.log" 2>&1 || die "$(tail -n 2 "$dir/restore.log")"
	wait_state 30 "in sync after a restore" a in-sync
	nbdcopy "$(uri a)" "$dir/back.img" || die "nbdcopy"
	same "$dir/back.img" "$dir/first.img" "the volume"
	same "$dir/b.img" "$dir/first.img" "the peer"
	ok "$current"

	# Stopped while it is under way, so that it ends while the daemon does: nothing is freed under it.
	current=in_place_and_stop_$io
	for attempt in $(seq 6); do
		[ $((attempt % 2)) = 0 ] && label=first || label=second
		chosen=$(snapshot_of $label)
		off a restore v --dry-run >/dev/null 2>&1 & # a look at the store, which nobody's job waits for
		plan=$!
		off a restore v --snapshot "$chosen" >"$dir/restore.log" 2>&1 &
		status=$!
		pause_ms "$(between 1 150)"
		stop a
		wait $plan $status
		start a
	done
	off a restore v --snapshot "$id" >"$dir/restore.log" 2>&1 || die "$(tail -n 2 "$dir/restore.log")"
	wait_state 30 "in sync after a restore" a in-sync
	same "$dir/a.img" "$dir/first.img" "the disk"
	same "$dir/b.img" "$dir/first.img" "the peer"
	ok "$current"

	current=in_place_stopped_$io
	stop a
	"$build/offsite" --config "$dir/a.conf" restore v >"$dir/restore.log" 2>&1 ||
		die "$(tail -n 2 "$dir/restore.log")"
	start a
	wait_state 30 "in sync after a restore" a in-sync
	same "$dir/a.img" "$dir/want.img" "the disk"
	same "$dir/b.img" "$dir/want.img" "the peer"
	ok "$current"

	# Onto the backing of a stopped daemon: it knows when it starts, and so do the peer and the store.
	current=onto_the_backing_$io
	stop a
	restore --to "$dir/a.img" --force --snapshot "$id" || die "$(tail -n 2 "$dir/restore.log")"
	start a
	wait_state 30 "in sync after a restore" a in-sync
	same "$dir/b.img" "$dir/first.img" "the peer"
	[ ! -e "$dir/a.img.restored" ] || die "the mark is still there"
	off a snapshot create v --label third >/dev/null 2>&1 || die "snapshot"
	rm -f "$dir/back.img"
	restore --to "$dir/back.img" || die "$(tail -n 2 "$dir/restore.log")"
	same "$dir/back.img" "$dir/first.img" "the snapshot taken afterwards"
	stop a
	mv "$dir/back.img.restored" "$dir/a.img.restoring"
	start a
	off a status 2>&1 | found "a.img: a restore onto it was interrupted" || die "$(off a status 2>&1)"
	stop a
	restore --to "$dir/a.img" --force --snapshot latest || die "$(tail -n 2 "$dir/restore.log")"
	start a
	wait_state 30 "in sync after a restore" a in-sync
	off a restore v --snapshot "$(snapshot_of second)" >"$dir/restore.log" 2>&1 ||
		die "$(tail -n 2 "$dir/restore.log")"
	wait_state 30 "in sync after a restore" a in-sync
	ok "$current"

	current=from_the_peer_$io
	kill9 a
	rm -rf "$dir/a.img" "$dir/a.state"
	start a
	off a restore v --from-peer >"$dir/restore.log" 2>&1 || die "$(tail -n 2 "$dir/restore.log")"
	wait_state 30 "in sync again" a in-sync
	volume_is a '.role == "primary" and .disk == "uptodate"' >/dev/null || die "a: $(volume_get a '.role, .disk')"
	same "$dir/a.img" "$dir/want.img" "the new disk"
	ok "$current"

	# The disk lost, and killed in the middle of the way back: it is said to be inconsistent, not
	# served, and goes on.
	current=from_the_peer_interrupted_$io
	kill9 a
	rm -rf "$dir/a.img" "$dir/a.state"
	for attempt in 1 2 3 4; do
		start a
		off a restore v --from-peer >"$dir/restore.log" 2>&1 &
		status=$!
		pause_ms "$(between 1 150)"
		kill9 a
		wait $status 2>/dev/null
	done
	start a
	# A generation: on a slow machine each of them may have been killed before it began, the new disk is blank then.
	if ! volume_is a '.disk == "uptodate" and .role == "primary" and .generations.current' >/dev/null; then
		nbdinfo "$(uri a)" >/dev/null 2>&1 && ! volume_is a '.disk == "uptodate"' >/dev/null &&
			die "an inconsistent volume is served"
		off a restore v --from-peer >"$dir/restore.log" 2>&1 || die "$(tail -n 2 "$dir/restore.log")"
	fi
	wait_state 60 "in sync again" a in-sync
	same "$dir/a.img" "$dir/want.img" "the new disk"
	same "$dir/b.img" "$dir/want.img" "the peer's"
	ok "$current"
	stop a
	stop b
}

for io in $(backends); do
	part run_backend
done
