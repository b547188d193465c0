#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The secondary is always usable: a database under load, protocol A, 50 ms each way and 20 Mbit/s, and a
# link that is reset again and again, so that the secondary is mostly in the middle of a catch-up. At
# random moments its disk and state directory are copied as a power cut would leave them; from the copy
# alone a node starts, the filesystem's journal and PostgreSQL recover, and the ledger has no gap, none
# less than a copy before had, and its indexes are sound. MOMENTS (8) of them.
# time limit: 600 s
# in the place of a machine
. "$(dirname "$0")/lib.sh"
pg=$(for d in /usr/lib/postgresql/*/bin; do echo "$d"; done | sort -V | tail -n 1)
need python3 jq nbdfuse losetup mkfs.ext4 setpriv "$pg/postgres" "$pg/pg_amcheck"
[ "$(id -u)" = 0 ] || {
	skip "$test_name" "needs root for loop devices and mounts"
	exit 0
}
begin
seed_random
moments=${MOMENTS:-8}
current=$test_name
chmod 755 "$dir"
mkdir -p "$dir/mnt" "$dir/mnt-copy" "$dir/fuse" "$dir/copy" "$dir/pg" "$dir/pg-copy"
chown postgres "$dir/pg" "$dir/pg-copy"

user_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups --reset-env)
as_postgres() { "${user_postgres[@]}" "$@"; }
sql() { # SOCKET-DIRECTORY ARGUMENTS...
	local socket=$1
	shift
	as_postgres "$pg/psql" -h "$socket" -d bank -qAtX -v ON_ERROR_STOP=1 "$@"
}
unmount() {
	grep -q " $1 " /proc/mounts || return 0
	timeout 20 umount "$1" 2>/dev/null || umount -l "$1" 2>/dev/null
}

# ---- the database on the primary ------------------------------------------------------------------

attach() {
	nbdfuse "$dir/fuse/v" "$(uri a)" >>"$dir/nbdfuse.log" 2>&1 &
	helpers+=($!)
	at_end "unmount $dir/fuse"
	wait_for 10 "nbdfuse on the volume" test -f "$dir/fuse/v"
	device=$(losetup -f --show "$dir/fuse/v") || die "losetup on the volume"
	at_end "unmount $dir/mnt; loop_end $device"
	mkfs.ext4 -q -F "$device" && mount -t ext4 "$device" "$dir/mnt" || die "ext4 on the volume"
}

answers_sql() { sql "$1" -d postgres -c 'SELECT 1'; }

start_database() { # DATA SOCKET-DIRECTORY
	"${user_postgres[@]}" "$pg/postgres" -D "$1" -k "$2" -c fsync=on >>"$dir/postgresql.log" 2>&1 &
	postmaster=$!
	wait_for 60 "start of PostgreSQL on $1" database_decided "$2"
	answers_sql "$2" >/dev/null 2>&1 || die "PostgreSQL does not start: $(tail -n 2 "$dir/postgresql.log")"
}
database_decided() { answers_sql "$1" || ! kill -0 "$postmaster"; }

make_database() {
	mkdir "$dir/mnt/data" && chown postgres "$dir/mnt/data"
	as_postgres "$pg/initdb" -D "$dir/mnt/data" --data-checksums --auth=trust --locale=C.UTF-8 \
		>"$dir/initdb.log" 2>&1 || die "initdb: $(tail -n 3 "$dir/initdb.log")"
	cat >>"$dir/mnt/data/postgresql.conf" <<-END
		listen_addresses = ''
		shared_buffers = 32MB
		max_wal_size = 64MB
		checkpoint_timeout = 30s
	END
	sync "$dir/mnt/data/postgresql.conf" # nobody else does
	start_database "$dir/mnt/data" "$dir/pg"
	primary_database=$postmaster postmaster=
	at_end "kill -QUIT $primary_database 2>/dev/null; sleep 0.5"
	as_postgres "$pg/createdb" -h "$dir/pg" bank &&
		sql "$dir/pg" -c 'CREATE TABLE ledger (id bigint PRIMARY KEY, note text)' &&
		as_postgres "$pg/pgbench" -h "$dir/pg" -i -s 2 -q bank >"$dir/pgbench.log" 2>&1 ||
		die "making the database"
}

customers() {
	as_postgres "$pg/pgbench" -h "$dir/pg" -c 1 -R 60 -T 3600 -n bank >>"$dir/pgbench.log" 2>&1
}
ledger() {
	local number=0
	while :; do
		echo "INSERT INTO ledger VALUES ($((number += 1)), repeat('x', 100));"
	done | as_postgres "$pg/psql" -h "$dir/pg" -d bank -qAtX -v ON_ERROR_STOP=1 >>"$dir/ledger.log" 2>&1
}
last_number() { sql "$1" -c 'SELECT coalesce(max(id), 0) FROM ledger'; }

# ---- a moment ----------------------------------------------------------------------------------------

# What a power cut would leave: the process stands still, what it had under way has landed.
copy_secondary() {
	kill -STOP "${pid_of[b]}"
	sleep 0.05
	rm -rf "$dir/copy/state" "$dir/copy/v.img"
	cp -a "$dir/b.state" "$dir/copy/state" && cp --sparse=always "$dir/b.img" "$dir/copy/v.img" ||
		die "copying the secondary"
	kill -CONT "${pid_of[b]}"
	rm -f "$dir/copy/state"/*.sock
}

# The copy's node recovers what was committed, alone; then its disk is as the secondary would give it.
recover_copy() {
	config c <<-END
		[node]
		name = c
		state-dir = $dir/copy/state
		control = $dir/c.sock
		nbd-listen = unix:$dir/c.nbd
		[volume v]
		backing = $dir/copy/v.img
		role = secondary
	END
	start c
	disk=$(volume_get c .disk)
	case $disk in
	uptodate | outdated) ;;
	*) die "moment $moment: the secondary's copy is $disk" ;;
	esac
	wait_for 30 "moment $moment: recovery and promotion of the copy" off c promote v --force
	stop c
}

check_copy() {
	local loop number gaps
	loop=$(losetup -f --show "$dir/copy/v.img") || die "losetup on the copy"
	copy_loop=$loop
	mount -t ext4 "$loop" "$dir/mnt-copy" || die "moment $moment: the copy's filesystem"
	rm -f "$dir/mnt-copy/data/postmaster.pid"
	start_database "$dir/mnt-copy/data" "$dir/pg-copy"
	number=$(last_number "$dir/pg-copy") || die "moment $moment: the ledger cannot be read"
	gaps=$(sql "$dir/pg-copy" -c 'SELECT coalesce(max(id), 0) - count(*) FROM ledger')
	[ "$gaps" = 0 ] || die "moment $moment: $gaps transactions are missing in the middle"
	[ "$number" -ge "$seen" ] || die "moment $moment: went back from $seen to $number"
	as_postgres "$pg/pg_amcheck" -h "$dir/pg-copy" --install-missing --heapallindexed bank \
		>"$dir/amcheck.log" 2>&1 || die "moment $moment: pg_amcheck: $(tail -n 1 "$dir/amcheck.log")"
	kill -INT "$postmaster"
	wait "$postmaster"
	postmaster=
	umount "$dir/mnt-copy" && losetup -d "$loop" || die "moment $moment: the copy stays mounted"
	copy_loop=
	[ "$number" -le "$seen" ] || advanced=$((advanced + 1))
	seen=$number
}

one_moment() {
	# Mostly the link has just been reset, or is down for a while, and a catch-up is under way.
	case $((RANDOM % 3)) in
	0) relay reset >/dev/null ;;
	1)
		relay cut >/dev/null
		pause_ms "$(between 100 2500)"
		relay join >/dev/null
		;;
	esac
	pause_ms "$(between 0 3000)"
	state=$(volume_get b .replication.state)
	copy_secondary
	states[$state]=$((${states[$state]:-0} + 1))
	recover_copy
	check_copy
}

leave_copy() {
	[ -z "$postmaster" ] || { kill -QUIT "$postmaster" && wait "$postmaster"; }
	unmount "$dir/mnt-copy"
	[ -z "$copy_loop" ] || loop_end "$copy_loop"
}

declare -A states=()
copy_loop='' postmaster=''
at_end "leave_copy 2>/dev/null"
link='' pair_config 192 "protocol = A"
start_relay "$port_b" --buffer 1M
sed -i "s/^peer = .*/peer = 127.0.0.1:$link/" "$dir/a.conf"
start b
start a
attach
make_database
wait_state 120 "the first sync" a in-sync
relay delay 50 >/dev/null
relay rate 2500K >/dev/null
helper_start customers
helper_start ledger
wait_for 20 "the first transactions" test "$(last_number "$dir/pg")" -ge 0
seen=0 advanced=0
for ((moment = 1; moment <= moments; moment++)); do
	one_moment
done
note "$moments moments, states of the secondary:$(for s in "${!states[@]}"; do printf ' %s %d' "$s" "${states[$s]}"; done)," \
	"$advanced times further than before, ledger at $seen; primary at $(last_number "$dir/pg")"
[ "$advanced" -gt 0 ] || die "the secondary never advanced"
kill -INT "$primary_database"
wait "$primary_database"
ok "$test_name"
