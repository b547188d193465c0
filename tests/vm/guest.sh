# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What the scripts that run in a machine share; it stands before each of them (lib.sh: on, behind).

fail() {
	echo "$*" >&2
	exit 1
}
# sleep without a new program, which costs a tenth of a second here: nobody writes into this pipe.
exec {never}<>/dev/vm-never
pause() { # SECONDS
	read -r -t "$1" -u $never || true
}
wait_for() { # SECONDS WHAT COMMAND...
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || fail "$what: not within the time"
		pause 0.3 # under emulation, who asks too often is who has to be waited for
	done
}
seconds() {
	local up
	read -r up _ </proc/uptime
	echo "$up"
}
since() { awk -v now="$(seconds)" -v then="$1" 'BEGIN { printf "%.1f", now - then }'; }

# ---- a node --------------------------------------------------------------------------------------

# The disk "data" as ext4 under /srv/offsite, where backing and state live; made if it is new.
node_disk() {
	local disk=/dev/disk/by-serial/data
	mkdir -p /srv/offsite
	blkid $disk >/dev/null || mkfs.ext4 -q -E lazy_itable_init=1,nodiscard $disk || fail "mkfs.ext4 $disk"
	mount -t ext4 $disk /srv/offsite || fail "mount $disk"
}
# NAME, lines of the node's section; the volumes' sections come from standard input.
node_config() {
	mkdir -p /etc/offsite
	{
		printf '[node]\nname = %s\nstate-dir = /srv/offsite/state\ncontrol = /run/offsite/control.sock\n' "$1"
		printf 'nbd-listen = unix:/run/offsite/nbd.sock\n%s\n' "${2:-}"
		cat
	} >/etc/offsite/offsite.conf
}
node_launch() {
	offsited --config /etc/offsite/offsite.conf >>/out/offsited.log 2>&1 &
	echo $! >/run/offsited.pid
}
node_start() {
	node_launch
	wait_for 240 "start of the daemon" offsite status
}
node_gone() { ! kill -0 "$(cat /run/offsited.pid)"; }
node_stop() {
	kill -TERM "$(cat /run/offsited.pid)"
	wait_for 240 "end of the daemon" node_gone
}
node_kill() {
	kill -KILL "$(cat /run/offsited.pid)"
	wait_for 240 "end of the daemon" node_gone
}
volume_is() { offsite status v --json | jq -e ".volumes[0] | $1"; }

# What the kernel said and should not have said: errors of devices and filesystems, tasks that hang. What it says of
# a detach is expected, and of requests that take some seconds, as under emulation a trim does; and with went=1, the
# daemon having been away meanwhile, of a connection that is lost and made again, and of requests that wait for less
# than attach-timeout.
kernel_errors() {
	dmesg | grep -iE 'block nbd[0-9]|I/O error|EXT4-fs (error|warning)|XFS.*(error|corrupt|shut)|blocked for more|BUG:|WARNING:|Call Trace|Out of memory' |
		awk -v went="${went:-0}" '
		match($0, /block nbd[0-9]+: /) {
			device = substr($0, RSTART, RLENGTH)
			said = substr($0, RSTART + RLENGTH)
			if (said ~ /^NBD_DISCONNECT/) {
				detached[device] = 1
				next
			}
			if (said ~ /^shutting down sockets/ && detached[device]) {
				detached[device] = 0
				next
			}
			if (said ~ /^Disconnected due to user request/)
				next
			if (went && said ~ /^(Receive (control|data) failed \(result -(32|104)\)|Send (control|data) failed|Request send failed, requeueing|Dead connection, failed to find a fallback|Attempted send on invalid socket|reconnected socket|Connection timed out, retrying|Send disconnect failed -32)/)
				next
			if (said ~ /^Possible stuck request/ && match(said, /Runtime [0-9]+/) &&
			    substr(said, RSTART + 8, RLENGTH - 8) + 0 < (went ? 120 : 30))
				next
		}
		/ nbd[0-9]+: (detected capacity change| *p[0-9])/ || /nbd: registered/ { next }
		{ print }'
}
kernel_is_quiet() {
	local errors
	errors=$(kernel_errors)
	[ -z "$errors" ] || fail "the kernel says: $(head -n 5 <<<"$errors")"
}

# ---- PostgreSQL ------------------------------------------------------------------------------------

for pg in /usr/lib/postgresql/*/bin; do :; done # the last
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups --reset-env "$@"; }
sql() { as_postgres "$pg/psql" -h /run/postgresql -U postgres -qAtX -v ON_ERROR_STOP=1 "$@"; }
database_new() { # DIRECTORY: as durable as initdb leaves one
	cp -a /var/lib/vm/database "$1" &&
		{ [ "$(stat -c %U "$1")" = postgres ] || chown -R postgres: "$1"; } && sync -f "$1" ||
		fail "a new database in $1"
}
database_start() { # DIRECTORY
	mkdir -p /run/postgresql && chown postgres /run/postgresql
	as_postgres "$pg/postgres" -D "$1" -k /run/postgresql -c listen_addresses='*' -c shared_buffers=32MB \
		-c max_wal_size=32MB >>/out/postgresql.log 2>&1 &
	postmaster=$!
	wait_for 240 "start of PostgreSQL" database_decided
	sql -c 'SELECT 1' >/dev/null || fail "PostgreSQL does not start: $(tail -n 3 /out/postgresql.log)"
}
database_decided() { sql -c 'SELECT 1' || ! kill -0 "$postmaster"; }
database_stop() { # DIRECTORY
	as_postgres "$pg/pg_ctl" -D "$1" -m fast -w -t 120 stop >/dev/null || fail "PostgreSQL does not stop"
}
