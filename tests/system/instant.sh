#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# restore --instant: a sparse TiB is read and written within a second of the processor; on a new host too,
# which becomes the volume; killed in the middle again and again while a client writes, it goes on, and what was written is
# never overwritten; a store that is away is waited for, or is an error after hydrate-timeout, and status
# says so; the snapshot that is fetched cannot be deleted meanwhile; the peer catches up when all is here.
# time limit: 450 s
. "$(dirname "$0")/lib.sh"
need jq nbdcopy qemu-io qemu-img
begin
seed_random

alone() { # NODE SIZE LINES...
	local node=$1 size=$2
	shift 2
	config "$node" <<-END
		[node]
		name = $node
		state-dir = $dir/$node.state
		control = $dir/$node.sock
		nbd-listen = unix:$dir/$node.nbd
		[volume v]
		backing = $dir/$node.img
		size = $size
		role = primary
		store = file:$dir/store
		$(printf '%s\n' "$@")
	END
}
io() { # NODE COMMAND...: of qemu-io
	local node=$1 out
	shift
	out=$(qemu-io -f raw -c "$*" "$(uri "$node")" 2>&1) || { echo "$out"; return 1; }
	case $out in *rror* | *ailed*) echo "$out"; return 1 ;; esac
}
missing() { volume_get "$1" '.filling.missing_bytes // 0'; }
newest() { off "$1" snapshot list v --json | jq -r '[.. | objects | select(.sequence?)] | max_by(.sequence) | .id'; }

# ---- a sparse TiB ------------------------------------------------------------------------------------

sparse() {
	current=sparse_tebibyte
	local begun took uuid n name
	mkdir -p "$dir/store"
	alone a 1T "hydrate-rate = 64K"
	start a
	for n in 0 1 200000 700000; do
		io a write -P 77 "${n}M" 4M >"$dir/io.out" || die "$(cat "$dir/io.out")"
	done
	off a snapshot create v >/dev/null 2>&1 || die "snapshot"
	io a write -P 1 0 64M >"$dir/io.out" || die "$(cat "$dir/io.out")"
	off a demote v >"$dir/out" 2>&1 || die "demote: $(cat "$dir/out")"
	off a restore v --instant >"$dir/restore.log" 2>&1 && die "restored onto a secondary"
	[ -z "$(ls "$dir"/store/*/pins 2>/dev/null)" ] || die "what was refused left its pin: $(tail -n 1 "$dir/restore.log")"
	off a promote v >"$dir/out" 2>&1 || die "promote: $(cat "$dir/out")"
	begun=$(processor_ms a)
	off a restore v --instant >"$dir/restore.log" 2>&1 || die "$(tail -n 2 "$dir/restore.log")"
	io a read -P 77 700000M 64k >"$dir/io.out" || die "first read: $(cat "$dir/io.out")"
	io a write -P 5 300000M 64k >"$dir/io.out" || die "first write: $(cat "$dir/io.out")"
	took=$(($(processor_ms a) - begun))
	note "in place: first read and first write after $took ms of the processor; $(missing a) bytes missing"
	[ "$(missing a)" -gt 0 ] || die "it was whole already"
	[ $took -lt 1000 ] || die "first read and write after $took ms of the processor"
	io a read -P 0 8M 1M >"$dir/io.out" || die "what the snapshot has not: $(cat "$dir/io.out")"
	off a set v hydrate-rate=0 >/dev/null 2>&1 || die "set"
	wait_state 60 "the volume to be whole" a filled
	io a read -P 5 300000M 64k >"$dir/io.out" || die "the write is gone: $(cat "$dir/io.out")"
	ok "$current"

	current=on_a_new_host
	uuid=$(volume_get a .uuid)
	stop a
	rm -rf "$dir"/a.*
	alone a 1T "hydrate-rate = 64K"
	start a
	off a restore v --instant >"$dir/restore.log" 2>&1 && die "restored from nothing"
	off a restore v --instant --volume other >"$dir/restore.log" 2>&1 && die "restored what is not there"
	grep -q "holds no volume of that name" "$dir/restore.log" || die "$(tail -n 2 "$dir/restore.log")"
	for name in "$uuid" v; do
		off a restore v --instant --volume "$name" --dry-run --json >"$dir/plan.json" 2>"$dir/restore.log" ||
			die "plan: $(tail -n 2 "$dir/restore.log")"
		jq -e '.fetch_bytes > 0 and .target == "v"' "$dir/plan.json" >/dev/null || die "$(cat "$dir/plan.json")"
	done
	volume_is a ".uuid != \"$uuid\" and .filling == null" >/dev/null || die "the plan did something"
	begun=$(processor_ms a)
	off a restore v --instant --volume "$uuid" >"$dir/restore.log" 2>&1 || die "$(tail -n 2 "$dir/restore.log")"
	io a read -P 77 700000M 64k >"$dir/io.out" || die "first read: $(cat "$dir/io.out")"
	io a write -P 6 300000M 64k >"$dir/io.out" || die "first write: $(cat "$dir/io.out")"
	took=$(($(processor_ms a) - begun))
	note "new host: first read and first write after $took ms of the processor; $(missing a) bytes missing"
	[ "$(missing a)" -gt 0 ] && [ $took -lt 1000 ] || die "first read and write after $took ms of the processor"
	[ "$(volume_get a .uuid)" = "$uuid" ] || die "it did not become the volume that was restored"
	off a set v hydrate-rate=0 >/dev/null 2>&1 || die "set"
	wait_state 60 "the volume to be whole" a filled
	off a snapshot create v >"$dir/snapshot.log" 2>&1 || die "$(tail -n 1 "$dir/snapshot.log")"
	off a snapshot list v --json >"$dir/list.json"
	jq -e '[.. | objects | select(.sequence?)] | max_by(.sequence) | .changed_bytes <= 65536 * 4' \
		"$dir/list.json" >/dev/null || die "the next snapshot is not incremental: $(cat "$dir/list.json")"
	stop a
	rm -rf "$dir"/a.* "$dir/store"
	ok "$current"
}

# ---- killed in the middle -----------------------------------------------------------------------------

size=64
write_both() { # N: to the volume, acknowledged, and to the image of what is to be there
	local at length
	at=$(between 0 $((size * 256 - 40)))
	length=$(between 1 32)
	io a write -P "$1" "$((at * 4))k" "$((length * 4))k" >"$dir/io.out" || return 1
	head -c $((length * 4096)) /dev/zero | tr '\0' "\\$(printf '%03o' "$1")" |
		dd of="$dir/want.img" bs=4k seek="$at" conv=notrunc status=none
}
same_as_wanted() { # WHAT
	rm -f "$dir/back.img"
	nbdcopy "$(uri a)" "$dir/back.img" || die "nbdcopy"
	cmp "$dir/want.img" "$dir/back.img" >"$dir/cmp.out" 2>&1 || die "$1: $(cat "$dir/cmp.out")"
}

killed() {
	current=killed_in_the_middle
	local round n=0
	rm -rf "$dir"/[ab].* "$dir/store"
	mkdir "$dir/store"
	head -c 64 /dev/urandom >"$dir/key"
	chmod 600 "$dir/key"
	pair_config $size "$(printf '%s\n' "store = file:$dir/store" "hydrate-rate = 128k")
$([ "$io" != aio ] || echo "store-key-file = $dir/key")" # encrypted with one of both
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	head -c $((size / 2 << 20)) /dev/urandom >"$dir/want.img"
	truncate -s ${size}M "$dir/want.img"
	nbdcopy "$dir/want.img" "$(uri a)" || die "nbdcopy"
	off a snapshot create v --label good >/dev/null 2>&1 || die "snapshot"
	for round in $(seq 4); do
		io a write -P 200 $((round * 12))M 12M >"$dir/io.out" || die "$(cat "$dir/io.out")"
	done
	off a snapshot create v --label bad >/dev/null 2>&1 || die "snapshot"
	good=$(off a snapshot list v --json | jq -r '.. | objects | select(.label? == "good") | .id' | head -n 1)
	off a restore v --snapshot "$good" --instant >"$dir/restore.log" 2>&1 || die "$(tail -n 2 "$dir/restore.log")"
	for round in $(seq 6); do
		for _ in $(seq "$(between 1 6)"); do
			n=$((n + 1))
			write_both $((n % 250 + 1)) || die "write: $(cat "$dir/io.out")"
		done
		[ "$(missing a)" -gt 0 ] || break
		kill9 a
		start a
		{ volume_is a '.filling.from == "snapshot"' || off a wait v --for filled --timeout 0; } >/dev/null || die "it does not go on"
	done
	note "killed $round times, $n writes; $(missing a) bytes were missing at the end"
	volume_is a '.replication.state == "standalone"' >/dev/null || die "the peer is not kept away"
	off a snapshot delete v "$good" >"$dir/delete.log" 2>&1 && die "the snapshot was deleted"
	grep -q pinned "$dir/delete.log" || die "$(cat "$dir/delete.log")"
	off a snapshot create v >"$dir/snapshot.log" 2>&1 && die "a snapshot of what is not there"
	grep -q "being filled" "$dir/snapshot.log" || die "$(cat "$dir/snapshot.log")"
	off a demote v >"$dir/demote.log" 2>&1 && die "demoted"
	off a status | found "filling *from snapshot" || die "status: $(off a status)"
	off a set v hydrate-rate=0 >/dev/null 2>&1 || die "set"
	same_as_wanted "while it is filled"
	wait_state 60 "the volume to be whole" a filled
	same_as_wanted "filled"
	wait_state 30 "in sync afterwards" a in-sync
	cmp "$dir/want.img" "$dir/b.img" >"$dir/cmp.out" 2>&1 || die "the peer: $(cat "$dir/cmp.out")"
	wait_for 10 "the pin to go" pin_gone
	off a snapshot delete v "$good" >"$dir/delete.log" 2>&1 || die "$(cat "$dir/delete.log")"
	ok "$current"
}
pin_gone() { [ -z "$(find "$dir/store" -path '*/pins/*' -type f)" ]; }

# ---- the store goes away ------------------------------------------------------------------------------

hide() { mkdir "$dir/hidden" && mv "$dir"/store/* "$dir/hidden"; } # it is reachable, but empty
show() { mv "$dir"/hidden/* "$dir/store" && rmdir "$dir/hidden"; }
says_trouble() { volume_is a '.filling.trouble != null'; }
read_behind() { io a read -P 200 20M 64k >"$dir/io.read" 2>&1; }
away() {
	current=store_away
	local reader
	off a set v hydrate-rate=256K >/dev/null 2>&1 || die "set"
	io a write -P 3 0 64M >"$dir/io.out" || die "$(cat "$dir/io.out")"
	off a restore v --snapshot latest --instant >"$dir/restore.log" 2>&1 || die "$(tail -n 2 "$dir/restore.log")"
	kill9 a
	hide
	sed -i 's/^hydrate-rate.*/hydrate-rate = 256K/' "$dir/a.conf"
	start a
	io a write -P 9 60M 64k >"$dir/io.out" || die "a write does not go through: $(cat "$dir/io.out")"
	helper_start read_behind
	reader=$helper
	wait_for 20 "status to say it" says_trouble
	off a status | found "cannot be read now" || die "$(off a status)"
	kill -0 "$reader" 2>/dev/null || die "the read did not wait: $(cat "$dir/io.read")"
	show
	wait "$reader" || die "the read failed: $(cat "$dir/io.read")"
	off a set v hydrate-rate=0 >/dev/null 2>&1 || die "set"
	wait_state 60 "the volume to be whole" a filled
	io a read -P 9 60M 64k >"$dir/io.out" || die "the write is gone: $(cat "$dir/io.out")"
	ok "$current"

	current=store_away_too_long
	off a set v hydrate-rate=256K >/dev/null 2>&1 || die "set"
	stop a
	# The peer is still being caught up when the restore begins.
	sed -i 's/^hydrate-rate.*/hydrate-rate = 256K\nhydrate-timeout = 2s\ncatch-up-rate = 1M/' "$dir/a.conf"
	start a
	io a write -P 3 0 64M >"$dir/io.out" || die "$(cat "$dir/io.out")"
	off a restore v --snapshot latest --instant >"$dir/restore.log" 2>&1 || die "$(tail -n 2 "$dir/restore.log")"
	kill9 a
	hide
	start a
	io a read -P 200 40M 64k >"$dir/io.out" && die "it was read from nowhere"
	show
	off a set v hydrate-rate=0 >/dev/null 2>&1 || die "set"
	wait_state 60 "the volume to be whole" a filled
	stop a
	stop b
	ok "$current"
}

killed_and_away() {
	killed
	away
}

for io in $(backends); do
	[ "$io" = aio ] || part sparse
	part killed_and_away
done
