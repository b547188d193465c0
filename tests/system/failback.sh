#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A full circle with real daemons: kill -9 of the primary under load, promote, work, the old primary comes
# back, steps down by itself and is rolled back; the same the other way round. Then a split brain: both
# say it, resolve shows it, keeps what is given up, and makes both the same. No full sync after the first.
# time limit: 600 s
. "$(dirname "$0")/lib.sh"
need jq python3 nbd_ledger
begin
seed_random
size_mib=32
blocks=$((size_mib * 256))

ledger() { # NODE
	exec "$tools/nbd_ledger" write --socket "$dir/$1.nbd" --log "$dir/log" --blocks "$blocks" \
		--seed "$(between 1 1000000)" >"$dir/ledger.log" 2>&1
}
work_on() { # NODE MILLISECONDS
	helper_start ledger "$1"
	wait_writes "$1"
	pause_ms "$2"
}
end_work() {
	kill -TERM -- "-$helper"
	wait "$helper" || die "a write failed: $(tail -n 1 "$dir/ledger.log")"
}
acknowledged_on() { # NODE WHEN
	"$tools/nbd_ledger" check --image "$dir/$1.img" --log "$dir/log" --blocks "$blocks" \
		>"$dir/check.out" 2>&1 || die "$2: $1: $(tail -n 1 "$dir/check.out")"
}
same() {
	cmp "$dir/a.img" "$dir/b.img" >"$dir/cmp.out" 2>&1 || die "$1: the disks differ: $(cat "$dir/cmp.out")"
}
no_client() { volume_is "$1" '.clients == 0'; }
full_syncs() { volume_get "$1" .replication.full_syncs; }

# PRIMARY dies under load; OTHER goes on; PRIMARY comes back.
half_circle() {
	local old=$1 fresh=$2
	work_on "$old" "$(between 200 900)"
	kill9 "$old"
	wait "$helper"
	wait_for 30 "$fresh noticing that $old is gone" volume_is "$fresh" '.replication.state != "streaming"'
	off "$fresh" promote v >"$dir/out" 2>&1 || die "promote $fresh: $(cat "$dir/out")"
	acknowledged_on "$fresh" "after the failover"
	work_on "$fresh" "$(between 200 900)"
	start "$old"
	wait_state 60 "$old following again" "$fresh" streaming
	volume_is "$old" '.role == "secondary" and .replication.stepped_down != null' >/dev/null ||
		die "$old did not step down: $(off "$old" status)"
	[ "$(full_syncs "$old")" = 0 ] || die "a full sync of $old"
	end_work
	wait_state 30 "$fresh in sync" "$fresh" in-sync
	applied "$old"
	wait_for 10 "$fresh without clients" no_client "$fresh"
	acknowledged_on "$old" "in sync"
	acknowledged_on "$fresh" "in sync"
	same "after $old came back"
	wait_for 10 "the event on $old" says "$old" 'this node stepped down'
}

full_circle() {
	current=full_circle
	pair_config $size_mib
	start b
	off b promote v >"$dir/out" 2>&1 && die "an empty secondary was promoted"
	grep -q 'never synchronised with its peer; use --force' "$dir/out" || die "promote of an empty one: $(cat "$dir/out")"
	start a
	wait_state 30 "the first sync" a in-sync
	for _ in 1 2; do
		half_circle a b
		half_circle b a
	done
	ok $current
}

# Each side has its own truth from now on.
split() {
	off a disconnect v >/dev/null || die "disconnect"
	wait_for 10 "b alone" volume_is b '.replication.state != "streaming"'
	off b promote v --force >"$dir/out" 2>&1 || die "promote b: $(cat "$dir/out")"
	for node in a b; do
		rm -f "$dir/log"
		work_on $node 300
		end_work
		wait_for 10 "$node without clients" no_client $node
	done
	off a connect v >/dev/null || die "connect"
	for node in a b; do
		wait_for 30 "$node finding out" volume_is $node '.replication.split_brain != null and .replication.state == "standalone"'
	done
}

# What the ledger says is not asked for any more.
split_brain() {
	local before out
	current=split_brain
	split
	for node in a b; do
		off $node status | found 'SPLIT BRAIN since' || die "status of $node: $(off $node status)"
		off $node changes v >"$dir/out" || die "changes on $node"
		[ "$(grep -c 'changed at most' "$dir/out")" = 2 ] || die "changes on $node: $(cat "$dir/out")"
		wait_for 10 "the event on $node" says $node 'split brain with'
	done
	off a changes v --json | jq -e '.split_brain.peer_changes.bytes > 0 and .changes.bytes > 0' >/dev/null || die "changes --json"
	# Wrong words are answered in one line each.
	out=$(off b resolve v --keep nobody 2>&1) && die "resolve --keep nobody"
	[ "$(wc -l <<<"$out")" = 1 ] && grep -q 'neither this node, b, nor its peer, a' <<<"$out" || die "resolve --keep nobody: $out"
	out=$(off a replace-disk v 2>&1)
	[ $? = 4 ] && [ "$(wc -l <<<"$out")" = 1 ] || die "replace-disk of a good one: $out"
	out=$(off a resolve v --keep a 2>&1) && die "resolve on the winner"
	grep -q 'run it there: offsite resolve v --keep a' <<<"$out" || die "resolve on the winner: $out"
	cp "$dir/b.img" "$dir/before.img"
	off b resolve v --keep a --dry-run >"$dir/out" || die "dry-run: $(cat "$dir/out")"
	grep -q '^b changed at most' "$dir/out" && grep -q 'kept before: as a file' "$dir/out" || die "dry-run: $(cat "$dir/out")"
	cmp -s "$dir/b.img" "$dir/before.img" && volume_is b '.role == "primary"' >/dev/null || die "dry-run changed something"
	# Over a restart of both.
	stop a
	stop b
	start b
	start a
	wait_for 30 "a finds it again" volume_is a '.replication.split_brain != null and .replication.state == "standalone"'
	before=$(volume_get a .replication.sent_bytes)
	off b resolve v --keep a >"$dir/out" 2>&1 || die "resolve: $(cat "$dir/out")"
	grep -q "^v: resolved; what was given up is kept: $dir/b.state/v/kept/.*\.json$" "$dir/out" || die "resolve does not say where: $(cat "$dir/out")"
	wait_state 30 "a in sync" a in-sync
	same "after resolve"
	for node in a b; do
		volume_is $node '.replication.split_brain == null and .replication.full_syncs == 0' >/dev/null || die "$node: $(off $node status)"
	done
	python3 - "$dir/b.state/v/kept" "$dir/before.img" <<-'END' || die "what was kept is not what b had"
		import glob, json, sys
		index, = glob.glob(sys.argv[1] + "/*.json")
		kept = json.load(open(index))
		image, disk = open(index[:-5] + ".img", "rb"), open(sys.argv[2], "rb")
		assert kept["format"] == "offsite-kept-1" and kept["node"] == "b" and kept["extents"]
		assert sum(length for _, length in kept["extents"]) == kept["bytes"]
		for offset, length in kept["extents"]:
		    image.seek(offset), disk.seek(offset)
		    assert image.read(length) == disk.read(length)
	END
	note "resolved: $(($(volume_get a .replication.sent_bytes) - before)) bytes sent, kept in $dir/b.state/v/kept"
	stop a
	stop b
	ok $current
}

# The same with a store: what is given up is a snapshot there, which keep-last does not delete.
resolve_to_store() {
	local id kind
	current=resolve_to_store
	mkdir -p "$dir/store"
	pair_config $size_mib "store = file:$dir/store
keep-last = 1"
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	work_on a 300
	end_work
	wait_state 30 "a in sync" a in-sync
	wait_for 10 "a without clients" no_client a
	off a snapshot create v >"$dir/out" 2>&1 || die "snapshot: $(cat "$dir/out")"
	split
	cp "$dir/b.img" "$dir/before.img"
	cmp -s "$dir/a.img" "$dir/before.img" && die "there is nothing to tell the sides apart by"
	off b resolve v --keep a --dry-run | found 'kept before: as a snapshot' || die "dry-run"
	# While the store cannot be used nothing is given up.
	mkdir -p "$dir/elsewhere"
	mv "$dir"/store/* "$dir/elsewhere"
	for kind in "$dir"/elsewhere/*; do touch "$dir/store/${kind##*/}"; done
	off b resolve v --keep a >"$dir/out" 2>&1 && die "resolved without a store: $(cat "$dir/out")"
	[ "$(wc -l <"$dir/out")" = 1 ] && grep -q 'nothing was given up' "$dir/out" || die "without a store: $(cat "$dir/out")"
	cmp -s "$dir/b.img" "$dir/before.img" || die "given up without a store"
	volume_is b '.replication.split_brain != null and .role == "primary"' >/dev/null || die "no split brain any more: $(off b status)"
	rm -rf "$dir"/store/*
	mv "$dir"/elsewhere/* "$dir/store"
	off b resolve v --keep a >"$dir/out" 2>&1 || die "resolve: $(cat "$dir/out")"
	id=$(sed -n 's/^v: resolved; what was given up is kept: snapshot \([0-9a-f]\{32\}\)$/\1/p' "$dir/out")
	[ -n "$id" ] || die "resolve does not say where: $(cat "$dir/out")"
	wait_state 30 "a in sync" a in-sync
	same "after resolve"
	[ ! -e "$dir/b.state/v/kept" ] || die "kept in files, too"
	# b's next snapshot is a's content, though its last one, the newest of all, is its own.
	off a demote v >/dev/null && off b promote v >/dev/null || die "change of places"
	work_on b 200
	end_work
	wait_for 10 "b without clients" no_client b
	off b snapshot create v >"$dir/out" 2>&1 || die "snapshot on b: $(cat "$dir/out")"
	"$build/offsite" restore --store "file:$dir/store" --to "$dir/newest.img" >"$dir/out" 2>&1 ||
		die "restore: $(cat "$dir/out")"
	cmp "$dir/newest.img" "$dir/b.img" || die "b's next snapshot is not what it has"
	wait_state 10 "b in sync" b in-sync
	off b demote v >/dev/null && off a promote v >/dev/null || die "change of places"
	for _ in 1 2; do # each deletes all that keep-last lets go
		work_on a 200
		end_work
		off a snapshot create v >"$dir/out" 2>&1 || die "snapshot: $(cat "$dir/out")"
	done
	off b snapshot list v --json | jq -e --arg id "$id" \
		'[.snapshots[].id] | length == 2 and index($id) == 0' >/dev/null ||
		die "keep-last: $(off b snapshot list v)"
	off b snapshot list v --json | jq -e '.snapshots[0].label == "given up for a" and .snapshots[0].node == "b"' >/dev/null || die "label"
	"$build/offsite" restore --store "file:$dir/store" --snapshot "$id" --to "$dir/given-up.img" >"$dir/out" 2>&1 ||
		die "restore: $(cat "$dir/out")"
	cmp "$dir/given-up.img" "$dir/before.img" || die "the snapshot is not what b had"
	stop a
	stop b
	ok $current
}

for io in $(backends); do
	rm -rf "$dir"/[ab].* "$dir/log"
	note "$io"
	full_circle
	split_brain
	rm -rf "$dir"/[ab].* "$dir/log" "$dir"/*.img "$dir/store"
	resolve_to_store
done
