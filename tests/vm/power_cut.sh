#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The bad day, with real machines: PostgreSQL on a volume replicated by protocol C, two clients that note each
# transaction they were told is committed, pgbench beside them, and the power of the primary is cut, with its
# disk's volatile cache. The other machine promotes, mounts and recovers, and nothing that was noted is missing.
# It goes on there; the first machine comes back, steps down by itself and is caught up. MOMENTS (1): so many cuts, at
# random moments; between two of them the first machine takes over again in peace.
# time limit: 1500 s
. "$(dirname "$0")/lib.sh"
vm_begin
current=$test_name
moments=${MOMENTS:-1}
seed_random
# The one that listens is never cut off.
machine b -m 1024 -l 10.1.0.2/24 -d data=1G
machine a -m 1024 -j 10.1.0.1/24 -d data=1G
boot b a
for node in a b; do
	mkdir -p "$dir/$node.out"
	[ -f "$dir/psk" ] || "$build/offsite" keygen "$dir/psk" >/dev/null
	cp "$dir/psk" "$dir/$node.out/psk"
done

node() { # a|b: its disk, its configuration, its daemon
	on "$1" <<END || die "node $1 does not start"
node_disk
install -m 600 /out/psk /run/psk
node_config $1 "psk-file = /run/psk
peer-listen = $([ $1 = a ] && echo 10.1.0.1 || echo 10.1.0.2):7790" <<'VOLUMES'
[volume v]
backing = /srv/offsite/v.img
size = 128M
role = $([ $1 = a ] && echo primary || echo secondary)
peer = $([ $1 = a ] && echo 10.1.0.2 || echo 10.1.0.1):7790
protocol = C
VOLUMES
node_start
END
}
node b
node a
on a <<'END' || die "no database"
offsite wait v --timeout 240s || fail "the peer is not in sync"
offsite attach v >/dev/null || fail attach
mkfs.ext4 -q /dev/offsite/v && mkdir -p /mnt/v && mount /dev/offsite/v /mnt/v || fail mount
database_new /mnt/v/database
database_start /mnt/v/database
sql -c 'CREATE EXTENSION amcheck' -c 'CREATE TABLE ledger (client int, number int, PRIMARY KEY (client, number))'
sql -c 'CREATE TABLE account (number int PRIMARY KEY, balance int)' \
	-c 'INSERT INTO account SELECT generate_series(1, 5000), 0' || fail "the accounts"
END

# Two clients on the machine that is not cut; what they were told goes to a file of the host.
clients() {
	rm -f "$dir"/b.out/ledger.*
	behind b <<'END'
server='host=10.1.0.1 user=postgres dbname=postgres tcp_user_timeout=3000 keepalives_idle=1 keepalives_interval=1 keepalives_count=3'
for client in 1 2; do
	for ((number = 1;; number++)); do
		echo "INSERT INTO ledger VALUES ($client, $number) RETURNING number;"
		pause 0.05
	done 2>/dev/null |
		$pg/psql "$server" -qAtX -v ON_ERROR_STOP=1 >>/out/ledger.$client 2>>/out/clients.log &
done
wait
END
	clients=$job
}
noted() { [ "$(cat "$dir"/b.out/ledger.* 2>/dev/null | wc -l)" -ge "$1" ]; }

# All that the clients noted is in the database of $1, without a gap, and its indexes are sound.
nothing_is_missing() {
	local client last
	for client in 1 2; do
		last=$(tail -n 1 "$dir/b.out/ledger.$client")
		last=${last:-0}
		on "$1" "[ \"\$(sql -c 'SELECT count(*) FROM ledger WHERE client = $client AND number <= $last')\" = $last ]" || {
			note "client $client was told that $last are committed; $(on "$1" "sql -c 'SELECT count(*), max(number) FROM ledger WHERE client = $client'")"
			return 1
		}
	done
	on "$1" "sql -c \"SELECT bt_index_check(indexrelid, true) FROM pg_index i JOIN pg_class c ON c.oid = indexrelid WHERE relname ~ '^(account|ledger)'\" >/dev/null &&
		[ \"\$(sql -c 'SELECT sum(balance) FROM account')\" = 0 ]"
}

for moment in $(seq "$moments"); do
	current=cut_$moment
	clients
	behind a <<'END'
cat >/tmp/transfer <<'SQL'
\set from random(1, 5000)
\set to random(1, 5000)
BEGIN;
UPDATE account SET balance = balance - 1 WHERE number = least(:from, :to);
UPDATE account SET balance = balance + 1 WHERE number = greatest(:from, :to);
COMMIT;
SQL
$pg/pgbench -h /run/postgresql -U postgres -n -c 2 -R 15 -T 3600 -f /tmp/transfer postgres
END
	wait_for 240 "the clients at work" noted 40
	pause_ms "$(between 0 2000)"
	power_cut a
	note "cut $moment: $(tail -qn 1 "$dir"/b.out/ledger.* | tr '\n' ' ')were committed"
	limit=500 job_end "$clients" >/dev/null

	on b <<'END' || die "b does not take over"
wait_for 240 "promotion: $(offsite promote v 2>&1)" offsite promote v
offsite attach v >/dev/null || fail attach
mkdir -p /mnt/v && mount /dev/offsite/v /mnt/v || fail mount
database_start /mnt/v/database
END
	ok "cut_${moment}_taken_over"
	nothing_is_missing b && ok "cut_${moment}_nothing_is_missing" || fail "cut_${moment}_nothing_is_missing" "see above"
	on b "sql -c \"INSERT INTO ledger SELECT c, generate_series((SELECT max(number) + 1 FROM ledger WHERE client = c), 5000) FROM generate_series(1, 2) c\"" ||
		die "writes on b"

	# The first machine is back: its own word is that it is primary.
	boot a
	node a
	on b 'offsite wait v --timeout 240s' || die "no reverse sync"
	[ "$(on a 'offsite status v --json | jq -r .volumes[0].role')" = secondary ] || die "a did not step down"
	note "cut $moment: a was caught up from b: $(on a 'grep -hE "rolled back|caught up|catch-up" /out/offsited.log | tail -n 1 | cut -c1-120')"
	ok "cut_${moment}_caught_up"
	[ "$moment" -lt "$moments" ] || break
	on b <<'END' || die "b does not give it back"
database_stop /mnt/v/database
umount /mnt/v
offsite detach v >/dev/null || fail detach
offsite demote v >/dev/null || fail demote
END
	on a <<'END' || die "a does not take it back"
offsite promote v >/dev/null || fail promote
offsite attach v >/dev/null || fail attach
mkdir -p /mnt/v && mount /dev/offsite/v /mnt/v || fail mount
database_start /mnt/v/database
offsite wait v --timeout 240s || fail "the peer is not in sync"
[ "$(sql -c 'SELECT count(*) FROM ledger')" = 10000 ] || fail "the ledger is another one"
sql -c 'TRUNCATE ledger'
END
	ok "cut_${moment}_back"
done

current=end
on b <<'END' || die "b does not end"
database_stop /mnt/v/database
umount /mnt/v
fsck.ext4 -fn /dev/offsite/v >/tmp/fsck 2>&1 || fail "fsck: $(tail -n 3 /tmp/fsck)"
offsite wait v --timeout 240s || fail "the peer is not in sync"
offsite detach v >/dev/null
offsite verify v --wait >/dev/null 2>&1 || fail verify
went=1 kernel_is_quiet
END
ok in_sync_and_verified
on a 'went=1 kernel_is_quiet' && ok kernels_are_quiet || fail kernels_are_quiet "a, see above"
power_off a
power_off b
