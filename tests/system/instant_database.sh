#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The host is lost; on a new one, restored with --instant, the filesystem is mounted and PostgreSQL answers
# before 5 % of its disk is here; it works on, the daemon is killed and comes back, and when all is here the
# indexes are sound and nothing that was committed is missing.
# time limit: 300 s
# in the place of a machine
. "$(dirname "$0")/lib.sh"
pg=$(for d in /usr/lib/postgresql/*/bin; do echo "$d"; done | sort -V | tail -n 1)
need jq nbdfuse losetup mkfs.ext4 setpriv "$pg/postgres" "$pg/pg_amcheck"
[ "$(id -u)" = 0 ] || {
	skip "$test_name" "needs root for loop devices and mounts"
	exit 0
}
begin
current=$test_name
chmod 755 "$dir"
mkdir -p "$dir/mnt" "$dir/fuse" "$dir/pg" "$dir/store"
chown postgres "$dir/pg"
user_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups --reset-env)
sql() { "${user_postgres[@]}" "$pg/psql" -h "$dir/pg" -d bank -qAtX -v ON_ERROR_STOP=1 "$@"; }
unmount() {
	grep -q " $1 " /proc/mounts || return 0
	timeout 20 umount "$1" 2>/dev/null || umount -l "$1" 2>/dev/null
}

# At this rate little comes by itself: what is here was asked for.
node() {
	config a <<-END
		[node]
		name = a
		state-dir = $dir/a.state
		control = $dir/a.sock
		nbd-listen = unix:$dir/a.nbd
		[volume v]
		backing = $dir/a.img
		size = 4G
		role = primary
		hydrate-rate = 64K
		store = file:$dir/store
	END
	start a
}
attach() {
	nbdfuse "$dir/fuse/v" "$(uri a)" >>"$dir/nbdfuse.log" 2>&1 &
	helpers+=($!)
	at_end "unmount $dir/fuse"
	wait_for 10 "nbdfuse" test -f "$dir/fuse/v"
	device=$(losetup -f --show "$dir/fuse/v") || die "losetup"
	at_end "unmount $dir/mnt; loop_end $device"
}
detach() {
	umount "$dir/mnt" && losetup -d "$device" || die "detaching"
	wait_for 10 "the loop device to go" gone
	umount "$dir/fuse" || die "unmounting nbdfuse"
}
gone() { ! losetup "$device"; }
database() {
	"${user_postgres[@]}" "$pg/postgres" -D "$dir/mnt/data" -k "$dir/pg" >>"$dir/postgresql.log" 2>&1 &
	postmaster=$!
	at_end "kill -QUIT $postmaster 2>/dev/null; sleep 0.5"
	wait_for 60 "PostgreSQL" "${user_postgres[@]}" "$pg/psql" -h "$dir/pg" -d postgres -c 'SELECT 1'
}
stop_database() {
	kill -INT "$postmaster"
	wait "$postmaster"
}
hydrated() { # in per mille
	volume_get a '.filling.progress | (.done_bytes * 1000 / .total_bytes) | floor'
}

node
attach
mkfs.ext4 -q -F "$device" && mount "$device" "$dir/mnt" || die "ext4"
mkdir "$dir/mnt/data" && chown postgres "$dir/mnt/data"
"${user_postgres[@]}" "$pg/initdb" -D "$dir/mnt/data" --data-checksums --auth=trust --locale=C.UTF-8 \
	>"$dir/initdb.log" 2>&1 || die "initdb: $(tail -n 3 "$dir/initdb.log")"
printf "listen_addresses = ''\nshared_buffers = 32MB\n" >>"$dir/mnt/data/postgresql.conf"
database
"${user_postgres[@]}" "$pg/createdb" -h "$dir/pg" bank &&
	"${user_postgres[@]}" "$pg/pgbench" -h "$dir/pg" -i -s 4 -q bank >"$dir/pgbench.log" 2>&1 || die "pgbench -i"
stop_database
head -c 512M /dev/urandom >"$dir/mnt/files" # the rest of what such a host has
sync -f "$dir/mnt/files"
sum=$(cksum <"$dir/mnt/files")
detach
off a snapshot create v >/dev/null 2>&1 || die "snapshot"
uuid=$(volume_get a .uuid)
stop a
rm -rf "$dir"/a.*

node
off a restore v --instant --volume "$uuid" >"$dir/restore.log" 2>&1 || die "$(tail -n 1 "$dir/restore.log")"
begun=$(date +%s%N)
attach
mount "$device" "$dir/mnt" || die "mount"
database
[ "$(sql -c 'SELECT count(*) FROM pgbench_branches')" = 4 ] || die "a wrong answer"
done_by_then=$(hydrated)
note "PostgreSQL answers after $((($(date +%s%N) - begun) / 1000000)) ms, with $done_by_then per mille here"
[ "$done_by_then" -lt 50 ] || die "only after $done_by_then per mille were here"
ok before_it_is_here

"${user_postgres[@]}" "$pg/pgbench" -h "$dir/pg" -c 4 -T 4 bank >"$dir/pgbench.log" 2>&1 || die "pgbench"
written=$(sql -c 'SELECT count(*) FROM pgbench_history')
stop_database
detach
kill9 a
start a
off a set v hydrate-rate=0 >/dev/null 2>&1 || die "set"
attach
mount "$device" "$dir/mnt" || die "mount"
database
[ "$written" -gt 0 ] && [ "$(sql -c 'SELECT count(*) FROM pgbench_history')" = "$written" ] ||
	die "of $written transactions there are $(sql -c 'SELECT count(*) FROM pgbench_history')"
wait_state 120 "all to be here" a filled
"${user_postgres[@]}" "$pg/pg_amcheck" -h "$dir/pg" --install-missing --heapallindexed bank >"$dir/amcheck.log" 2>&1 ||
	die "amcheck: $(tail -n 3 "$dir/amcheck.log")"
[ "$(cksum <"$dir/mnt/files")" = "$sum" ] || die "the files differ"
stop_database
detach
stop a
ok sound_when_it_is
