#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The daemon goes, the device stays: PostgreSQL under pgbench on a mounted, attached volume, while the
# daemon is restarted, replaced by another binary and killed, RESTARTS (2) and KILLS (3) times. No
# transaction fails, and the kernel has no errors. Pauses are printed: the longest that a transaction took.
# time limit: 1500 s
. "$(dirname "$0")/lib.sh"
vm_begin
current=$test_name
restarts=${RESTARTS:-2} kills=${KILLS:-3}
seed_random
machine a -m 1536 -r data=2G
boot a
on a <<'END' || die "no database"
node_disk
node_config a <<'VOLUMES'
[volume v]
role = primary
backing = /srv/offsite/v.img
size = 512M
VOLUMES
node_start
offsite attach v >/dev/null || fail attach
mkfs.ext4 -q /dev/offsite/v && mkdir -p /mnt/v && mount /dev/offsite/v /mnt/v || fail mount
database_new /mnt/v/database
database_start /mnt/v/database
as_postgres $pg/pgbench -h /run/postgresql -U postgres -q -i -s 1 postgres >/dev/null 2>&1 || fail "pgbench -i"
END

behind a <<'END'
cd /tmp
as_postgres $pg/pgbench -h /run/postgresql -U postgres -n -c 4 -R 20 -T 3600 -l --log-prefix=/tmp/transactions postgres
END
bench=$job

# The daemon goes in the middle of the load, and the load goes on behind it.
round() { # HOW: restart, upgrade or kill
	on a <<END
how=$1
written() { awk '{ print \$5 }' /sys/block/nbd0/stat; }
moved() { [ "\$(written)" -ge \$goal ]; }
goal=\$((\$(written) + $(between 20 120)))
wait_for 240 "load before it" moved
case \$how in
restart) node_stop ;;
upgrade)
	# The same program with a byte more at its end: another file, other content.
	cp /usr/sbin/offsited /usr/sbin/offsited.new && echo >>/usr/sbin/offsited.new && mv /usr/sbin/offsited.new /usr/sbin/offsited
	node_stop
	;;
kill) node_kill ;;
esac
node_start
cmp -s /proc/\$(cat /run/offsited.pid)/exe /usr/sbin/offsited || fail "another binary runs"
goal=\$((\$(written) + 20))
wait_for 240 "load behind it" moved
END
}
windows=()
rounds() { # NAME HOW COUNT
	local i begun
	begun=$(on a 'date +%s')
	for i in $(seq "$3"); do
		round "$2" || {
			fail "$1" "round $i of $3"
			return
		}
		job_runs "$bench" || {
			fail "$1" "pgbench ended: $(job_output "$bench" | tail -n 3)"
			return
		}
	done
	ok "$1"
	windows+=("$1 $begun $(on a 'date +%s')")
}
rounds restart restart "$restarts"
rounds upgrade upgrade 1
rounds kill kill "$kills"

# Its own signal for the end of the time: it ends in order, and says what it saw.
on a 'pkill -ALRM pgbench'
limit=500 job_end "$bench" >"$dir/pgbench.txt"
for window in "${windows[@]}"; do
	# pgbench's log: latency in microseconds, script, when it ended.
	note "$(on a "cat /tmp/transactions.* | awk -v w='$window' 'BEGIN { split(w, x) } \$5 >= x[2] && \$5 <= x[3] { n++; if (\$3 > m) m = \$3 }
		END { printf \"%s: %d transactions, the longest took %.1f s\", x[1], n, m / 1000000 }'")"
done
if grep -qE 'aborted|ERROR|FATAL|PANIC' "$dir/pgbench.txt" ||
	! grep -q 'number of failed transactions: 0 ' "$dir/pgbench.txt"; then
	fail no_transaction_failed "$(tail -n 3 "$dir/pgbench.txt")"
else
	ok no_transaction_failed
	note "$(grep 'transactions actually' "$dir/pgbench.txt")"
fi
grep -E 'ERROR|FATAL|PANIC' "$dir/a.out/postgresql.log" | grep -v 'starting up' | head -n 3 >"$dir/errors.txt"
[ -s "$dir/errors.txt" ] && fail database "$(cat "$dir/errors.txt")"
on a 'went=1 kernel_is_quiet' && ok kernel_is_quiet || fail kernel_is_quiet "see above"
on a <<'END' && ok comes_apart_in_order || fail comes_apart_in_order "see above"
set -e
sql -c 'CREATE EXTENSION amcheck' -c "SELECT bt_index_check(indexrelid, true) FROM pg_index i JOIN pg_class c ON c.oid = indexrelid WHERE relname LIKE 'pgbench%'" >/dev/null
database_stop /mnt/v/database
umount /mnt/v
fsck.ext4 -fn /dev/offsite/v >/tmp/fsck 2>&1 || fail "fsck: $(tail -n 3 /tmp/fsck)"
offsite detach v >/dev/null
node_stop
END
power_off a
