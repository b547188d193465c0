#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A snapshot is proven: restored for real, checked by the operator's program, and what came of it told over
# restarts; by an operator's word, on the schedule, and with a database by examples/prove-postgresql.sh.
# time limit: 360 s
. "$(dirname "$0")/lib.sh"
need jq qemu-io
begin

node() { # LINES
	rm -rf "$dir"/a.* "$dir/store" "$dir/scratch" "$dir/seen"
	mkdir "$dir/store"
	config a <<-END
		[node]
		name = a
		state-dir = $dir/a.state
		control = $dir/a.sock
		nbd-listen = unix:$dir/a.nbd
		[volume v]
		backing = $dir/a.img
		size = ${size:-64M}
		role = primary
		store = file:$dir/store
		proof-dir = $dir/scratch
		$1
	END
	start a
}
command() { # TEXT
	cat >"$dir/check" <<-END
		#!/bin/sh
		$1
	END
	chmod 755 "$dir/check"
}
prove() { off a snapshot prove v "$@" >"$dir/prove.out" 2>&1; }
proof() { volume_is a ".proof | $1" >/dev/null; }
nothing_left() { [ -z "$(ls -A "$dir/scratch" 2>/dev/null)" ]; }
create() { off a snapshot create v --label "$1" >"$dir/create.out" 2>&1 || die "$(cat "$dir/create.out")"; }

by_word() {
	current=by_word
	command "echo \"\$OFFSITE_VOLUME \$OFFSITE_SNAPSHOT\" >$dir/seen; exec cmp \$OFFSITE_IMAGE $dir/a.img"
	node "proof-command = $dir/check"
	prove && die "proven without a snapshot"
	grep -q "there is no snapshot" "$dir/prove.out" || die "$(cat "$dir/prove.out")"
	qemu-io -f raw -c 'write -P 7 1M 5M' -c 'write -P 8 40M 64k' "$(uri a)" >/dev/null || die "writing"
	create one
	prove || die "$(tail -n 1 "$dir/prove.out")"
	local id
	id=$(off a snapshot list v --json | jq -r '.snapshots[0].id')
	[ "$(cat "$dir/seen")" = "v $id" ] || die "$(cat "$dir/seen")"
	nothing_left || die "left: $(ls "$dir/scratch")"
	proof ".proven == \"$id\" and .last_error == null and .proven_age_seconds < 60" ||
		die "$(volume_get a .proof)"
	off a status | found "proven .*${id:0:12}" || die "$(off a status)"
	# What fails is said, and what was proven before stays.
	qemu-io -f raw -c 'write -P 9 2M 64k' "$(uri a)" >/dev/null || die "writing"
	create two
	command "echo everything is wrong; exit 1"
	prove && die "proven though the program failed"
	grep -q "everything is wrong" "$dir/prove.out" || die "$(cat "$dir/prove.out")"
	proof ".proven == \"$id\" and (.last_error | test(\"everything is wrong\"))" || die "$(volume_get a .proof)"
	nothing_left || die "left: $(ls "$dir/scratch")"
	wait_for 10 "the event" says a "not proven.*everything is wrong"
	stop a
	start a
	proof ".proven == \"$id\" and (.last_error | test(\"everything is wrong\"))" || die "forgotten"
	off a metrics >"$dir/metrics" 2>/dev/null || curl -s --unix-socket "$dir/a.sock" http://x/metrics >"$dir/metrics"
	grep -q '^offsite_proof_failed{.*} 1' "$dir/metrics" || die "metrics: $(grep proof "$dir/metrics")"
	grep -q '^offsite_proof_last_success_timestamp_seconds{.*} 1' "$dir/metrics" || die "metrics"
	# An older one by its id, and one that is damaged.
	command "exit 0"
	prove "$id" || die "an older one: $(tail -n 1 "$dir/prove.out")"
	for pack in "$dir"/store/*/packs/*; do
		printf 'damage' | dd of="$pack" bs=1 seek=200 conv=notrunc status=none
	done
	prove && die "proven though it is damaged"
	proof '.last_error | test("pack")' || die "$(volume_get a .proof)"
	nothing_left || die "left: $(ls "$dir/scratch")"
	stop a
	ok $current
}

on_schedule() {
	current=on_schedule
	command "echo \$OFFSITE_SNAPSHOT >>$dir/seen"
	node "proof-command = $dir/check
proof-every = 2s
proof-rate = 8M"
	qemu-io -f raw -c 'write -P 7 1M 5M' "$(uri a)" >/dev/null || die "writing"
	proof '.proven == null and .last_error == null' || die "$(volume_get a .proof)"
	create one
	wait_for 80 "a proof" test -s "$dir/seen"
	wait_for 20 "the next one" twice
	# A program that hangs, and a daemon that is stopped, then killed, meanwhile.
	command "echo \$\$ >$dir/pid; exec sleep 300"
	wait_for 20 "the program" test -s "$dir/pid"
	stop a
	kill -0 "$(cat "$dir/pid")" 2>/dev/null && die "the program outlived the daemon"
	nothing_left || die "left: $(ls "$dir/scratch")"
	rm "$dir/pid"
	start a
	wait_for 20 "the program" test -s "$dir/pid"
	kill9 a
	kill -KILL "$(cat "$dir/pid")"
	nothing_left && die "this test is none"
	command true
	sed -i '/^proof-every/d' "$dir/a.conf"
	start a
	wait_for 10 "the removal of what was left" nothing_left
	stop a
	ok $current
}
twice() { [ "$(wc -l <"$dir/seen")" -ge 2 ]; }

# The newest snapshots of all are what b took while it was apart, and what it gave up: neither is what a restore
# would take, nor is it proven, on the schedule or by a word that names none.
beside_what_was_given_up() {
	local own apart kept
	current=beside_what_was_given_up
	rm -rf "$dir"/[ab].* "$dir/store" "$dir/scratch" "$dir/seen"
	mkdir "$dir/store"
	command "echo \$OFFSITE_SNAPSHOT >>$dir/seen; exec cmp \$OFFSITE_IMAGE $dir/own.img"
	pair_config 16 "store = file:$dir/store
proof-dir = $dir/scratch
proof-command = $dir/check"
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	qemu-io -f raw -c 'write -P 1 1M 64k' "$(uri a)" >/dev/null || die "writing to a"
	create before
	own=$(off a snapshot list v --json | jq -r '.snapshots[0].id')
	cp "$dir/a.img" "$dir/own.img"
	off a disconnect v >/dev/null || die "disconnect"
	wait_for 10 "b alone" volume_is b '.replication.state != "streaming"'
	off b promote v --force >"$dir/out" 2>&1 || die "promote b: $(cat "$dir/out")"
	qemu-io -f raw -c 'write -P 2 2M 64k' "$(uri b)" >/dev/null || die "writing to b"
	off b snapshot create v >"$dir/out" 2>&1 || die "$(cat "$dir/out")"
	apart=$(off b snapshot list v --json | jq -r '.snapshots | max_by(.sequence).id')
	qemu-io -f raw -c 'write -P 3 3M 64k' "$(uri b)" >/dev/null || die "writing to b"
	qemu-io -f raw -c 'write -P 4 4M 64k' "$(uri a)" >/dev/null || die "writing to a"
	off a connect v >/dev/null || die "connect"
	wait_for 30 "the split brain" volume_is b '.replication.split_brain != null and .replication.state == "standalone"'
	off b resolve v --keep a >"$dir/out" 2>&1 || die "resolve: $(cat "$dir/out")"
	kept=$(sed -n 's/^v: resolved; what was given up is kept: snapshot \([0-9a-f]\{32\}\)$/\1/p' "$dir/out")
	off b snapshot list v --json | jq -e --arg own "$own" --arg apart "$apart" --arg kept "$kept" \
		'[.snapshots | sort_by(.sequence)[].id] == [$own, $apart, $kept]' >/dev/null ||
		die "not what this is about: $own $apart $kept: $(off b snapshot list v)"
	off b snapshot prove v >"$dir/prove.out" 2>&1 || die "$(tail -n 1 "$dir/prove.out")"
	stop b
	echo "proof-every = 2s" >>"$dir/b.conf"
	start b
	wait_for 20 "a proof on the schedule" twice
	[ "$(sort -u "$dir/seen")" = "$own" ] || die "not proven as it should be: $(cat "$dir/seen"), own $own, kept $kept"
	volume_is b ".proof | .proven == \"$own\" and .last_error == null" >/dev/null || die "$(volume_get b .proof)"
	# It is a choice: what is named is proven. Not beside one of the schedule.
	stop b
	sed -i '/^proof-every/d' "$dir/b.conf"
	start b
	off b snapshot prove v "$kept" >"$dir/prove.out" 2>&1 && die "what was given up is the same"
	grep -qx "$kept" "$dir/seen" || die "not proven though it was named: $(cat "$dir/prove.out")"
	stop a
	stop b
	ok $current
}

no_room() {
	current=no_room
	[ "$(id -u)" = 0 ] || {
		skip $current "needs root for a mount"
		return
	}
	node ""
	qemu-io -f raw -c 'write -P 7 0 32M' "$(uri a)" >/dev/null || die "writing"
	create one
	mkdir -p "$dir/scratch"
	mount -t tmpfs -o size=8M none "$dir/scratch" || die "mount"
	at_end "umount $dir/scratch"
	prove && die "proven without room"
	grep -q "8 MiB free" "$dir/prove.out" || die "$(cat "$dir/prove.out")"
	stop a
	ok $current
}

# ---- a database ----------------------------------------------------------------------------------

pg=$(for d in /usr/lib/postgresql/*/bin; do echo "$d"; done | sort -V | tail -n 1)
user_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups --reset-env)
as_postgres() { "${user_postgres[@]}" "$@"; }
unmount() {
	grep -q " $1 " /proc/mounts || return 0
	timeout 20 umount "$1" 2>/dev/null || umount -l "$1" 2>/dev/null
}

database() {
	current=database
	local size=192M device postmaster
	command -v nbdfuse losetup mkfs.ext4 >/dev/null && [ -x "$pg/pg_amcheck" ] && [ "$(id -u)" = 0 ] || {
		skip $current "needs root, nbdfuse, losetup, ext4 and PostgreSQL"
		return
	}
	chmod 755 "$dir"
	mkdir -p "$dir/mnt" "$dir/fuse" "$dir/pg"
	chown postgres "$dir/pg"
	node "proof-command = $TOP/examples/prove-postgresql.sh"
	nbdfuse "$dir/fuse/v" "$(uri a)" >>"$dir/nbdfuse.log" 2>&1 &
	helpers+=($!)
	at_end "unmount $dir/fuse"
	wait_for 10 "nbdfuse" test -f "$dir/fuse/v"
	device=$(losetup -f --show "$dir/fuse/v") || die "losetup"
	at_end "unmount $dir/mnt; loop_end $device"
	mkfs.ext4 -q -F "$device" && mount -t ext4 "$device" "$dir/mnt" || die "ext4"
	mkdir "$dir/mnt/data" && chown postgres "$dir/mnt/data"
	as_postgres "$pg/initdb" -D "$dir/mnt/data" --auth=trust --locale=C.UTF-8 >"$dir/initdb.log" 2>&1 ||
		die "initdb: $(tail -n 2 "$dir/initdb.log")"
	"${user_postgres[@]}" "$pg/postgres" -D "$dir/mnt/data" -k "$dir/pg" -c listen_addresses= \
		>"$dir/postgresql.log" 2>&1 &
	postmaster=$!
	at_end "kill -QUIT $postmaster 2>/dev/null; sleep 0.3"
	wait_for 30 "PostgreSQL" as_postgres "$pg/psql" -h "$dir/pg" -d postgres -c 'SELECT 1'
	as_postgres "$pg/pgbench" -h "$dir/pg" -i -s 1 -q postgres >"$dir/pgbench.log" 2>&1 || die "pgbench"
	as_postgres "$pg/pgbench" -h "$dir/pg" -c 2 -T 300 -n postgres >>"$dir/pgbench.log" 2>&1 &
	local load=$!
	transactions() { [ "$(as_postgres "$pg/psql" -h "$dir/pg" -d postgres -qAtX -c 'SELECT count(*) FROM pgbench_history')" -gt 50 ]; }
	wait_for 30 "the load" transactions
	create "under load"
	kill $load 2>/dev/null
	prove || die "$(tail -n 3 "$dir/prove.out")"
	proof '.proven != null and .last_error == null' || die "$(volume_get a .proof)"
	# It can fail: an index that is not what its table says.
	as_postgres "$pg/psql" -h "$dir/pg" -d postgres -qAtX -c CHECKPOINT || die "checkpoint"
	local index
	index=$(as_postgres "$pg/psql" -h "$dir/pg" -d postgres -qAtX \
		-c "SELECT pg_relation_filepath('pgbench_accounts_pkey')")
	kill -INT $postmaster
	wait $postmaster
	dd if=/dev/zero of="$dir/mnt/data/$index" bs=8192 seek=20 count=1 conv=notrunc status=none
	sync -f "$dir/mnt/data"
	create damaged
	prove && die "a damaged index was proven"
	grep -q "pg_amcheck" "$dir/prove.out" || die "$(cat "$dir/prove.out")"
	nothing_left || die "left: $(ls "$dir/scratch")"
	umount "$dir/mnt" && losetup -d "$device" 2>/dev/null
	umount "$dir/fuse"
	stop a
	ok $current
}

part by_word
part on_schedule
part beside_what_was_given_up
part no_room
part database
