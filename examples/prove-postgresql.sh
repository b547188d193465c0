#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# A proof-command: is the restored image a database that starts and is whole? Attaches OFFSITE_IMAGE, mounts
# it, starts PostgreSQL on it, which recovers as after a power cut, and lets pg_amcheck look at every table
# and index. The image is offsite's to remove; what is attached and mounted here goes again, whatever
# happens. To be run as root (loop devices).
#
#   proof-command = /usr/share/doc/offsite/examples/prove-postgresql.sh
#
#   PROVE_DATA   the data directory within the filesystem; looked for if not given
#   PROVE_USER   who runs the database (postgres)
set -eu

user=${PROVE_USER:-postgres}
bin=$(for d in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin; do [ -x "$d/postgres" ] && echo "$d"; done |
	sort -V | tail -n 1)
[ -n "$bin" ] || {
	echo "no PostgreSQL is installed here"
	exit 1
}
work=$(mktemp -d "${TMPDIR:-/tmp}/offsite-prove-XXXXXX")
chmod 755 "$work"
mkdir "$work/mnt" "$work/run"
chown "$user" "$work/run"
device='' server='' mounted=''

cleanup() {
	status=$?
	trap - EXIT INT TERM
	[ -z "$server" ] || { kill -INT "$server" && wait "$server"; } 2>/dev/null || true
	[ -z "$mounted" ] || umount "$work/mnt" || umount -l "$work/mnt" || true
	[ -z "$device" ] || losetup -d "$device" || true
	rm -rf "$work"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

as_user() { setpriv --reuid="$user" --regid="$user" --init-groups --reset-env "$@"; }
fail() {
	tail -n 5 "$work"/run/*.log 2>/dev/null || true
	echo "$*"
	exit 1
}

device=$(losetup -f --show "$OFFSITE_IMAGE")
# Mounting replays the filesystem's journal: the image is a copy, and may be written to.
mount "$device" "$work/mnt" || fail "the filesystem of snapshot $OFFSITE_SNAPSHOT cannot be mounted"
mounted=yes
data=${PROVE_DATA:+$work/mnt/$PROVE_DATA}
[ -n "$data" ] || data=$(dirname "$(find "$work/mnt" -name PG_VERSION -path '*/*' |
	awk '{ print length($0) " " $0 }' | sort -n | head -n 1 | cut -d' ' -f2-)")
[ -f "$data/PG_VERSION" ] || fail "no PostgreSQL data directory in snapshot $OFFSITE_SNAPSHOT"
rm -f "$data/postmaster.pid"

setpriv --reuid="$user" --regid="$user" --init-groups --reset-env "$bin/postgres" -D "$data" -k "$work/run" -c listen_addresses= -c archive_mode=off \
	-c max_connections=20 >"$work/run/server.log" 2>&1 &
server=$!
until as_user "$bin/psql" -h "$work/run" -d postgres -qAtXc 'SELECT 1' >/dev/null 2>&1; do
	kill -0 "$server" 2>/dev/null || fail "PostgreSQL does not start on snapshot $OFFSITE_SNAPSHOT"
	sleep 0.2
done
as_user "$bin/pg_amcheck" -h "$work/run" --all --install-missing --heapallindexed \
	>"$work/run/amcheck.log" 2>&1 || fail "pg_amcheck: snapshot $OFFSITE_SNAPSHOT is damaged"
echo "PostgreSQL started on snapshot $OFFSITE_SNAPSHOT, and pg_amcheck found nothing"
