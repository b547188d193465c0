#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The main job, end to end, on one machine: a PostgreSQL database on an offsite volume, replicated
# with protocol C and snapshotted; then its server is killed and its disk destroyed, and the
# database is brought back three ways:
#   (a) from the second node's copy
#   (b) from the last snapshot in the store
#   (c) on the first node again, its new disk filled from the second node
# In each: recovery by itself, pg_amcheck and checksums clean, nothing missing.
#
# Needs root (loop devices, mounts). Everything lives in one folder and is gone at the end; with
# KEEP=1 in the environment the folder stays.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
case $build in /*) ;; *) build=$PWD/$build ;; esac
volume_mib=${VOLUME_MIB:-1024}

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
	bold=$'\e[1m' dim=$'\e[2m' good=$'\e[32m' bad=$'\e[31m' plain=$'\e[0m'
else
	bold='' dim='' good='' bad='' plain=''
fi
chapter() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '   %s\n' "$*"; }
command_line() { printf '   %s$ %s%s\n' "$dim" "$*" "$plain"; }
die() {
	printf '%sfailed: %s%s\n' "$bad" "$*" "$plain" >&2
	show_logs
	exit 1
}
now_ms() { date +%s%3N; }
seconds_since() { awk -v a="$1" -v b="$(now_ms)" 'BEGIN { printf "%.1f", (b - a) / 1000 }'; }

# ---- can it be done here? --------------------------------------------------------------------

if [ "$(id -u)" != 0 ]; then
	if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
		exec sudo -n env "BUILD=$build" "KEEP=${KEEP:-}" "VOLUME_MIB=$volume_mib" "$0" "$@"
	fi
	echo "main-job: needs root for loop devices and mounts: type: sudo make run" >&2
	exit 1
fi
pg=$(for d in /usr/lib/postgresql/*/bin; do echo "$d"; done | sort -V | tail -n 1)
[ -x "$pg/postgres" ] || {
	echo "main-job: PostgreSQL is missing (make deps installs it)" >&2
	exit 1
}
for tool in nbdfuse losetup mkfs.ext4 jq setpriv; do
	command -v $tool >/dev/null || {
		echo "main-job: $tool is missing (make deps installs it)" >&2
		exit 1
	}
done
[ -x "$build/offsited" ] || {
	echo "main-job: $build/offsited is not built: make" >&2
	exit 1
}

# How a volume becomes a block device: offsite attach, with the kernel's nbd; else FUSE and a loop device.
use_nbd=
if command -v nbd-client >/dev/null && { [ -b /dev/nbd0 ] || modprobe nbd 2>/dev/null; }; then
	use_nbd=1
fi
loop_works() {
	local file device
	file=$(mktemp /var/tmp/offsite-loop-XXXXXX) && truncate -s 1M "$file"
	device=$(losetup -f --show "$file" 2>/dev/null)
	[ -n "$device" ] && losetup -d "$device"
	rm -f "$file"
	[ -n "$device" ]
}
if ! loop_works; then
	echo "main-job: no loop devices here (losetup fails): run it where they are allowed" >&2
	exit 1
fi
if [ -z "$use_nbd" ] && ! [ -c /dev/fuse ]; then
	echo "main-job: neither the kernel's nbd nor FUSE (/dev/fuse) here: run it elsewhere" >&2
	exit 1
fi

# ---- what is started must be stopped ------------------------------------------------------------

work=$(mktemp -d /var/tmp/offsite-job-XXXXXX) || exit 1
chmod 755 "$work"
declare -A daemons=() # node name: pid
helpers=()            # pids of pgbench, psql
attached=             # device that carries the filesystem now
attached_by=''          # node that attached it
fuse_pid=''             # nbdfuse
postmaster=''           # pid of the running database

user_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups --reset-env)
as_postgres() { "${user_postgres[@]}" "$@"; }

stop_database() {
	[ -n "$postmaster" ] || return 0
	kill -INT "$postmaster" # "fast": a clean end without waiting for clients
	wait "$postmaster" || die "PostgreSQL did not stop cleanly"
	postmaster=''
}

# kill -9 of all of it, also where its disk is dead: a backend that lives on would keep the next
# start from happening. Its processes are those that work in the data directory.
kill_database() {
	[ -n "$postmaster" ] || return 0
	local process left=1
	kill -KILL "$postmaster" 2>/dev/null
	wait "$postmaster" 2>/dev/null
	postmaster=''
	for _ in $(seq 100); do
		left=''
		for process in /proc/[0-9]*; do
			[ "$(readlink "$process/cwd" 2>/dev/null)" = "$work/mnt/data" ] || continue
			kill -KILL "${process#/proc/}" 2>/dev/null
			left=1
		done
		[ -n "$left" ] || return 0
		sleep 0.05
	done
}

# Each helper is a process group of its own: a pipeline ends as a whole.
start_helper() {
	set -m
	"$@" &
	helpers+=($!)
	set +m
}

stop_helpers() {
	local pid
	for pid in "${helpers[@]}"; do
		kill -KILL -- "-$pid" 2>/dev/null
		wait "$pid" 2>/dev/null
	done
	helpers=()
}

# A dead FUSE file system does not answer to mountpoint(1).
unmount() {
	grep -q " $1 " /proc/mounts || return 0
	timeout 20 umount "$1" 2>/dev/null || umount -l "$1" 2>/dev/null
}

# An attached device outlives its daemon, and holds its I/O for the next one: here its whole host is lost.
lose_device() {
	case $attached in
	/dev/nbd*) nbd-client -d "$attached" >/dev/null 2>&1 ;;
	esac
}

detach() {
	unmount "$work/mnt"
	case $attached in
	/dev/nbd*) on "$attached_by" detach "$attached" >/dev/null 2>&1 || lose_device ;;
	/dev/loop*) losetup -d "$attached" 2>/dev/null ;;
	esac
	attached=
	if [ -n "$fuse_pid" ]; then
		unmount "$work/fuse"
		for _ in $(seq 50); do
			kill -0 "$fuse_pid" 2>/dev/null || break
			sleep 0.1
		done
		kill -KILL "$fuse_pid" 2>/dev/null
		fuse_pid=
	fi
}

clean_up() {
	local status=$? node pid
	trap '' INT TERM
	trap - EXIT
	stop_helpers
	kill_database
	detach
	for node in "${!daemons[@]}"; do
		kill -TERM "${daemons[$node]}" 2>/dev/null
	done
	for node in "${!daemons[@]}"; do
		pid=${daemons[$node]}
		for _ in $(seq 50); do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.1
		done
		kill -KILL "$pid" 2>/dev/null
		wait "$pid" 2>/dev/null
	done
	if [ -n "${KEEP:-}" ]; then
		echo "kept: $work"
	else
		rm -rf "$work"
	fi
	exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

show_logs() {
	local log
	for log in "$work"/*.log; do
		[ -s "$log" ] || continue
		echo "--- last lines of ${log##*/}" >&2
		tail -n 8 "$log" >&2
	done
}

wait_until() { # SECONDS WHAT COMMAND...
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || die "$what: not in time"
		sleep 0.05
	done
}

# ---- nodes ------------------------------------------------------------------------------------------

free_port() { # below the range that connections take theirs from
	local port
	while :; do
		port=$((20000 + RANDOM % 12000))
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
	done
	echo $port
}

write_config() { # NODE ROLE LISTEN_PORT PEER_PORT
	mkdir -p "$work/$1"
	cat >"$work/$1.conf" <<-END
		[node]
		name = $1
		state-dir = $work/$1/state
		control = $work/$1.sock
		nbd-listen = unix:$work/$1.nbd
		peer-listen = 127.0.0.1:$3
		psk-file = $work/peer.psk

		[volume pgdata]
		backing = $work/$1/disk.img
		size = ${volume_mib}M
		role = $2
		peer = 127.0.0.1:$4
		protocol = C
		store = file:$work/store
	END
}

on() { # NODE ARGUMENTS...: the command, at that node
	local node=$1
	shift
	"$build/offsite" --socket "$work/$node.sock" "$@"
}

status_is() { # NODE JQ-CONDITION on the volume
	on "$1" status --json | jq -e ".volumes[0] | $2"
}

start_node() {
	"$build/offsited" --config "$work/$1.conf" >>"$work/$1.log" 2>&1 &
	daemons[$1]=$!
	wait_until 10 "start of node $1" on "$1" status
}

# ---- the volume as a filesystem, the database on it --------------------------------------------------

attach() { # NODE
	local uri="nbd+unix:///pgdata?socket=$work/$1.nbd"
	if [ -n "$use_nbd" ]; then
		command_line offsite attach pgdata
		attached_by=$1
		attached=$(on "$1" attach pgdata --json | jq -r .device) || die "offsite attach"
		return
	fi
	mkdir -p "$work/fuse"
	nbdfuse "$work/fuse/pgdata" "$uri" >>"$work/nbdfuse.log" 2>&1 &
	fuse_pid=$!
	disown # it may abort when its server is killed, which is no news then
	wait_until 10 "nbdfuse on the volume" test -f "$work/fuse/pgdata"
	attached=$(losetup -f --show "$work/fuse/pgdata") || die "losetup on the volume"
}

mount_volume() { # the filesystem on $attached; recovers its journal by itself
	mkdir -p "$work/mnt"
	mount -t ext4 "$attached" "$work/mnt" || die "mount of $attached"
}

# A child of this script, so that it is gone for good when it ends.
start_database() {
	"${user_postgres[@]}" "$pg/postgres" -D "$work/mnt/data" >>"$work/postgresql.log" 2>&1 &
	postmaster=$!
	wait_until 60 "start of PostgreSQL" database_decided
	database_answers >/dev/null 2>&1 || die "PostgreSQL does not start"
}
database_answers() { as_postgres "$pg/psql" -h "$work/pg" -d postgres -qAtXc 'SELECT 1'; }
database_decided() { database_answers || ! kill -0 "$postmaster"; }

sql() { as_postgres "$pg/psql" -h "$work/pg" -d bank -qAtX -v ON_ERROR_STOP=1 "$@"; }

# Commits numbered transactions one after the other; a number is written down when its commit has
# been confirmed, and only then.
ledger_client() { # FIRST
	local number=$1
	while :; do
		echo "INSERT INTO ledger VALUES ($number);"
		printf '\\echo %d\n' "$number"
		number=$((number + 1))
	done | as_postgres stdbuf -oL "$pg/psql" -h "$work/pg" -d bank -qAtX \
		-v ON_ERROR_STOP=1 >>"$work/confirmed" 2>/dev/null
}
last_confirmed() { tail -n 1 "$work/confirmed"; }

# What every copy must stand: nothing confirmed up to NUMBER is missing, indexes and pages are sound.
check_database() { # NUMBER
	local found gaps
	found=$(sql -c 'SELECT max(id) FROM ledger') || die "the ledger cannot be read"
	gaps=$(sql -c 'SELECT max(id) - count(*) FROM ledger')
	[ "$gaps" = 0 ] || die "$gaps transactions are missing in the middle of the ledger"
	[ "$found" -ge "$1" ] || die "$(($1 - found)) confirmed transactions are missing"
	sql -c 'SELECT sum(abalance) FROM pgbench_accounts' >/dev/null || die "pgbench's tables"
	as_postgres "$pg/pg_amcheck" -h "$work/pg" --install-missing --heapallindexed \
		bank >"$work/amcheck.log" 2>&1 || die "pg_amcheck: $(tail -n 1 "$work/amcheck.log")"
	say "ledger: $found transactions, $1 needed, none missing; pg_amcheck: clean"
	ledger_found=$found
}

check_checksums() { # of the stopped cluster
	local result
	result=$(as_postgres "$pg/pg_checksums" --check -D "$work/mnt/data" 2>&1) ||
		die "pg_checksums: $result"
	say "pg_checksums: $(grep -o 'Blocks scanned: *[0-9]*' <<<"$result"), no bad one"
}

table=()
row() { table+=("$(printf '   %-46s %12s %12s %9s' "$@")"); }

# ---- the story ---------------------------------------------------------------------------------------------

started=$(now_ms)
ledger_found=0
chapter "Two nodes: onprem (primary) and cloud (secondary), protocol C, TLS with a pre-shared key"
mkdir -p "$work/pg" "$work/store"
chown postgres "$work/pg"
: >"$work/confirmed"
"$build/offsite" keygen "$work/peer.psk" >/dev/null || die "keygen"
port_a=$(free_port)
port_b=$(free_port)
write_config onprem primary "$port_a" "$port_b"
write_config cloud secondary "$port_b" "$port_a"
start_node cloud
start_node onprem
wait_until 30 "replication" status_is onprem '.replication.state == "streaming"'
command_line offsite status
on onprem status | sed 's/^/   /'

chapter "A database on the volume: ext4 and PostgreSQL with checksums"
attach onprem
say "device: $attached ($([ -n "$use_nbd" ] && echo "the kernel's nbd" || echo 'nbdfuse and a loop device'))"
mkfs.ext4 -q -F "$attached" || die "mkfs.ext4"
mount_volume
mkdir "$work/mnt/data" && chown postgres "$work/mnt/data"
as_postgres "$pg/initdb" -D "$work/mnt/data" --data-checksums --auth=trust \
	--locale=C.UTF-8 >"$work/initdb.log" 2>&1 || die "initdb: $(tail -n 3 "$work/initdb.log")"
cat >>"$work/mnt/data/postgresql.conf" <<-END
	listen_addresses = ''
	unix_socket_directories = '$work/pg'
	shared_buffers = 64MB
	max_wal_size = 256MB
	checkpoint_timeout = 30s
END
sync "$work/mnt/data/postgresql.conf" # nobody else does, and a crash is to come
start_database
as_postgres "$pg/createdb" -h "$work/pg" bank || die "createdb"
sql -c 'CREATE TABLE ledger (id bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())' ||
	die "the ledger"
as_postgres "$pg/pgbench" -h "$work/pg" -i -s 5 -q bank >"$work/pgbench.log" 2>&1 ||
	die "pgbench -i"

chapter "Customers: pgbench, and a ledger of numbered transactions"
customers() {
	as_postgres "$pg/pgbench" -h "$work/pg" -c 2 -T 600 -n bank >>"$work/pgbench.log" 2>&1
}
start_helper customers
start_helper ledger_client 1
wait_until 20 "the first transactions" test -s "$work/confirmed"
for n in 1 2 3; do
	sleep 3
	before_snapshot=$(last_confirmed)
	snapshot_started=$(now_ms)
	on onprem snapshot create pgdata --label "round $n" >"$work/snapshot.out" 2>&1 ||
		die "snapshot: $(cat "$work/snapshot.out")"
	say "snapshot $n after transaction $before_snapshot: $(seconds_since "$snapshot_started") s"
done
command_line offsite snapshot list pgdata
on onprem snapshot list pgdata | sed 's/^/   /'
sleep 3

chapter "The bad moment: kill -9 of the primary, its disk and metadata destroyed"
lost_at=$(now_ms)
{
	kill -KILL "${daemons[onprem]}"
	wait "${daemons[onprem]}"
} 2>/dev/null
unset 'daemons[onprem]'
# Its clients see errors from here on; the database on it is dead as well.
lose_device
kill_database
stop_helpers
detach
rm -rf "$work/onprem"
confirmed=$(last_confirmed)
say "last transaction confirmed to a customer: $confirmed"

chapter "(a) The second node takes over"
command_line offsite promote pgdata
on cloud promote pgdata | sed 's/^/   /' || die "promotion"
attach cloud
mount_volume
start_database
took=$(seconds_since "$lost_at")
say "database up again $took s after the loss"
check_database "$confirmed"
row "(a) second node, protocol C" "$confirmed" "$((confirmed > ledger_found ? confirmed - ledger_found : 0))" "$took s"
stop_database
check_checksums
start_database
say "business goes on in the cloud"
: >"$work/confirmed"
start_helper ledger_client $((ledger_found + 1))
sleep 2
stop_helpers
in_cloud=$(last_confirmed)
in_cloud=${in_cloud:-$ledger_found}

# One database at a time on this folder's mount point: the cloud's rests during (b).
stop_database
detach

chapter "(b) The last snapshot, restored onto a new disk, with nothing but the store"
restore_started=$(now_ms)
command_line "offsite restore --store file:$work/store --to new.img"
"$build/offsite" restore --store "file:$work/store" --to "$work/new.img" >"$work/restore.out" 2>&1 ||
	die "restore: $(tail -n 3 "$work/restore.out")"
tr '\r' '\n' <"$work/restore.out" | tail -n 1 | sed 's/^/   /'
attached=$(losetup -f --show "$work/new.img") || die "losetup on the restored disk"
mount_volume
start_database
took=$(seconds_since "$restore_started")
say "database up $took s after the command"
check_database "$before_snapshot"
row "(b) newest snapshot" "$before_snapshot" "$((before_snapshot > ledger_found ? before_snapshot - ledger_found : 0))" "$took s"
say "(the snapshot was asked for after transaction $before_snapshot: what came later is not its job)"
stop_database
check_checksums
detach

chapter "(c) The first node comes back with an empty disk"
attach cloud
mount_volume
start_database
say "the cloud serves meanwhile"
start_helper ledger_client $((in_cloud + 1))
back_started=$(now_ms)
mkdir -p "$work/onprem"
start_node onprem
command_line offsite restore pgdata --from-peer
on onprem restore pgdata --from-peer >"$work/restore.out" 2>&1 ||
	die "restore from the peer: $(tail -n 3 "$work/restore.out")"
tr '\r' '\n' <"$work/restore.out" | tail -n 1 | sed 's/^/   /'
wait_until 30 "the first node in sync" status_is onprem \
	'.disk == "uptodate" and .replication.state == "streaming"'
say "in sync after $(seconds_since "$back_started") s; now the roles change back"
stop_helpers
in_cloud=$(last_confirmed)
switch_started=$(now_ms)
stop_database
detach
demoted() { on cloud demote pgdata; }
wait_until 20 "demotion of the cloud" demoted
promoted() { status_is onprem '.role == "primary"' || on onprem promote pgdata; }
wait_until 20 "promotion of the first node" promoted
attach onprem
mount_volume
start_database
took=$(seconds_since "$back_started")
say "database back on the first node, $(seconds_since "$switch_started") s after the cloud's stopped"
check_database "$in_cloud"
row "(c) first node, new disk, from its peer" "$in_cloud" "$((in_cloud > ledger_found ? in_cloud - ledger_found : 0))" "$took s"
stop_database
check_checksums
detach
wait_until 30 "the second node in sync" status_is onprem \
	'.replication.state == "streaming" and .replication.out_of_sync_bytes == 0'
for node in onprem cloud; do
	kill -TERM "${daemons[$node]}"
	wait "${daemons[$node]}" || die "node $node did not stop cleanly"
	unset "daemons[$node]"
done
cmp "$work/onprem/disk.img" "$work/cloud/disk.img" || die "the disks differ"
say "both nodes stopped; their disks are the same, byte for byte"

chapter "What was lost"
printf '   %-46s %12s %12s %9s\n' "" "confirmed" "lost" "up after"
printf '%s\n' "${table[@]}"
printf '\n   %sall of it in %s s%s\n' "$good" "$(seconds_since "$started")" "$plain"
