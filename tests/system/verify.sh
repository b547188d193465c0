#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A block that goes bad on one side's disk is found by `offsite verify` while clients write, and
# repaired from the side named; it goes on after restarts; it is refused where it cannot run. And a
# disk that is nearly equal is restored from the peer by sending the difference.
# time limit: 200 s
. "$(dirname "$0")/lib.sh"
need qemu-io jq
begin
seed_random
mib=64

rot() { # NODE 4-KiB-BLOCK: behind the daemon's back
	dd if=/dev/urandom of="$dir/$1.img" bs=4096 seek="$2" count=1 conv=notrunc oflag=direct status=none ||
		dd if=/dev/urandom of="$dir/$1.img" bs=4096 seek="$2" count=1 conv=notrunc,fsync status=none
}
writer() { # until it is told to end
	local i=0
	while [ ! -e "$dir/enough" ]; do
		i=$((i + 1))
		qemu-io -f raw -c "write -P $((i % 255 + 1)) $((i * 37 % 8192 * 512))  128k" "$(uri a)" >"$dir/writer.log" 2>&1 ||
			return 1
	done
}
verify() { # EXPECTED-STATUS ARGUMENTS...
	local want=$1 got
	shift
	off a verify v --wait --rate 0 "$@" >"$dir/verify.out" 2>&1
	got=$?
	[ $got -eq "$want" ] || die "verify $*: exit code $got, expected $want: $(cat "$dir/verify.out")"
}
said() { # EXPECTED-STATUS WORDS STATUS
	[ "$3" -eq "$1" ] || die "exit code $3, expected $1: $(cat "$dir/out")"
	grep -q "$2" "$dir/out" || die "not '$2' but: $(cat "$dir/out")"
}
same() { cmp "$dir/a.img" "$dir/b.img" >"$dir/cmp.out" 2>&1 || die "the disks differ: $(cat "$dir/cmp.out")"; }
verified() { volume_is a ".verify.$1"; }

current=refused_where_it_cannot_run
pair_config $mib 'verify-rate = 3M'
launch a
wait_for 15 "start of node a" answers a
off a verify v >"$dir/out" 2>&1
said 4 'not in sync' $?
start b
wait_state 30 "the first sync" a in-sync
qemu-io -f raw -c "write -P 7 0 ${mib}M" -c flush "$(uri a)" >"$dir/out" 2>&1 || die "write: $(cat "$dir/out")"
wait_state 30 "the stream" a in-sync
off b verify v >"$dir/out" 2>&1
said 4 'verify it on a' $?
off a verify v --repair-from c >"$dir/out" 2>&1 && die "repair from a node that is none"
off a verify v --cancel >"$dir/out" 2>&1
said 4 'no verification is under way' $?
ok $current

current=equal_under_writes
helper_start writer
verify 0
grep -q ' 0 bytes differ' "$dir/verify.out" || die "$(cat "$dir/verify.out")"
ok $current

current=found_and_repaired
rot b 15000
rot b 15002
verify 5
grep -q "8192 bytes differ" "$dir/verify.out" || die "$(cat "$dir/verify.out")"
grep -q "$((15002 * 4096)) + 4096" "$dir/verify.out" || die "$(cat "$dir/verify.out")"
off a status | found '8192 bytes differ' || die "not in the status"
verify 0 --repair-from a
grep -q "8192 repaired" "$dir/verify.out" || die "$(cat "$dir/verify.out")"
rot a 16000
verify 5
verify 0 --repair-from b
verify 0
touch "$dir/enough"
helper_end "$helper" || die "a write failed: $(cat "$dir/writer.log")"
wait_state 30 "the stream" a in-sync
same
ok $current

# At 3 MiB a second: it is far from its end when they are stopped. (A kill of the primary would have what
# was written lately caught up, and repaired by that.)
current=goes_on_after_restarts
rot b 12345
off a verify v >"$dir/out" 2>&1 || die "$(cat "$dir/out")"
wait_for 15 "some of it" verified 'compared_bytes > 2097152'
verified 'state == "running"' >/dev/null || die "faster than verify-rate"
stop a
start a
wait_for 15 "more of it" volume_is a '.verify | .waiting == false and .compared_bytes > 5242880'
kill9 b
verified 'state == "running"' >/dev/null || die "faster than verify-rate"
start b
wait_for 60 "its end" verified 'state == "done"'
verified 'differ_bytes == 4096' >/dev/null || die "$(volume_get a .verify)"
ok $current

current=nearly_equal_disk_is_restored_by_its_difference
rot b 3
rot b 9999
off b restore v --from-peer >"$dir/out" 2>&1 || die "$(cat "$dir/out")"
wait_state 30 "the stream" a in-sync
volume_is a '.replication.comparison | .total_bytes == 67108864 and .differ_bytes <= 16384' >/dev/null ||
	die "$(volume_get a .replication.comparison)"
same
ok $current
stop a
stop b
