#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Short of memory: a machine of 288 MiB in which two daemons and a filesystem live together. More than the memory that
# is left is written to the attached device, as many dirty pages at a time as fit, while the daemon replicates (protocol
# C, to the second one there) and makes a snapshot. Nothing may stand still, and what was written has to be there. Each
# of the three things that the daemon asks of the kernel is looked at where its lack shows: all threads are I/O
# flushers; what the OOM killer ends is something else, though smaller; nothing of the daemons is swapped out.
# time limit: 300 s
. "$(dirname "$0")/lib.sh"
vm_begin
machine a -m 288 -r data=2G -r swap=128M
boot a

current=dirty_pages
limit=200 on a <<'END' && ok $current || die "see above"
mkfs.ext4 -q -O ^has_journal /dev/disk/by-serial/data && mount -t ext4 /dev/disk/by-serial/data /root && cd /root
node() { # NAME ROLE PORT PEER
	cat <<CONF
[node]
name = $1
state-dir = /root/$1
control = /run/$1.sock
nbd-listen = unix:/run/$1.nbd
peer-listen = 127.0.0.1:$3
peer-plaintext = yes
io = uring
[volume v]
backing = /root/$1.img
size = 160M
role = $2
peer = 127.0.0.1:$4
protocol = C
store = file:/root/store
CONF
}
node a primary 7001 7002 >a.conf
node b secondary 7002 7001 >b.conf
mkdir /sys/fs/cgroup/daemons && echo +memory >/sys/fs/cgroup/cgroup.subtree_control || fail cgroup
for n in b a; do
	(echo $BASHPID >/sys/fs/cgroup/daemons/cgroup.procs && exec offsited --config $n.conf >$n.log 2>&1) &
	eval "$n=\$!"
	wait_for 240 "start of $n" offsite --socket /run/$n.sock status
done
off() { offsite --socket /run/a.sock "$@"; }
streams() { off status --json | jq -e '.volumes[0].replication.state == "streaming"'; }
wait_for 60 replication streams
off attach v >/dev/null || fail attach
mkfs.ext4 -q /dev/nbd0 && mkdir -p /mnt/v && mount /dev/nbd0 /mnt/v || fail "mkfs, mount"

# PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, what PR_SET_IO_FLUSHER sets: each thread has them, the kernel's that work
# for the daemon included, whatever it was started for.
marked() { # NAME
	local task stat fields
	for task in /proc/${!1}/task/*; do
		{ read -r stat <"$task/stat"; } 2>/dev/null || continue # it has ended
		read -r -a fields <<<"${stat##*) }"
		[ $((fields[6] & 0x180000)) = $((0x180000)) ] || fail "$1: ${stat%)*}): not an I/O flusher: flags ${fields[6]}"
		case $stat in *'(iou-wrk-'*) workers[$1]=1 ;; esac
	done
}
declare -A workers=()

# Writers are held up when most of what is left is dirty, not before.
echo 60 >/proc/sys/vm/dirty_ratio && echo 50 >/proc/sys/vm/dirty_background_ratio
python3 - <<'PY' &
import os
piece = os.urandom(1 << 20)
open("/root/piece", "wb").write(piece)
with open("/mnt/v/big", "wb") as f:
    for i in range(128):
        f.write(i.to_bytes(8, "little") + piece[8:])
    f.flush()
    os.fsync(f.fileno())
PY
writer=$!
dirty=0
left=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)
off snapshot create v >snapshot.out 2>&1 &
snapshot=$!
while kill -0 $writer 2>/dev/null; do
	marked a
	marked b
	now=$(awk '/^Dirty:/ { print $2 }' /proc/meminfo)
	[ "$now" -le $dirty ] || dirty=$now
	pause 0.5
done
wait $writer || fail "the writer failed"
for n in a b; do
	[ -e /proc/${!n}/exe ] || fail "daemon $n is gone: $(tail -n 3 $n.log; dmesg | grep -i oom | tail -n 3)"
	marked $n
	[ "${workers[$n]:-}" ] || fail "$n: no thread of the kernel's was seen"
done
wait $snapshot || fail "no snapshot was made meanwhile: $(cat snapshot.out)"
echo 3 >/proc/sys/vm/drop_caches
python3 - <<'PY' || fail "what was written is not there"
piece = open("/root/piece", "rb").read()
with open("/mnt/v/big", "rb") as f:
    for i in range(128):
        got = f.read(1 << 20)
        assert got[:8] == i.to_bytes(8, "little") and got[8:] == piece[8:], i
PY
# That the kernel lacks a page for a message to the daemon may be: it sends it again over another socket.
complaints() { dmesg | grep -E 'I/O error|EXT4-fs error|blocked for more than|Killed process.*offsited'; }
complaints && fail "the kernel complained"
echo "# 128 MiB written with $((left / 1024)) MiB left, $((dirty / 1024)) MiB of them dirty at a time"
{ declare -p a b; declare -f off complaints; } >daemons
END

# Processes smaller than each daemon are there for the OOM killer.
current=out_of_memory
on a <<'END' && ok $current || fail $current "see above"
. /root/daemons
rss_kib() { awk '/^VmRSS:/ { print $2 }' /proc/$1/status; }
there() { [ -e /proc/$a/exe ] && [ -e /proc/$b/exe ]; }
echo -500 >/proc/$$/oom_score_adj # who makes them is not meant
for i in 1 2 3; do
	python3 -c '
import time
open("/proc/self/oom_score_adj", "w").write("0")
m = bytearray(2 << 20)
m[::4096] = b"x" * 512
print(flush=True)
time.sleep(1000)' >ready.$i &
	victims[i]=$!
	wait_for 240 "process $i" test -s ready.$i
	[ $(rss_kib $!) -lt $(rss_kib $b) ] && [ $(rss_kib $!) -lt $(rss_kib $a) ] ||
		fail "of $(rss_kib $!) KiB, and the daemons of $(rss_kib $a) and $(rss_kib $b)"
done
one_less() { ! there || [ "$(ls -d $(printf '/proc/%s/exe ' "${victims[@]}") 2>/dev/null | wc -l)" -lt $left ]; }
for left in 3 2; do
	echo f >/proc/sysrq-trigger # as if there were none left
	wait_for 240 "the OOM killer" one_less
	there || fail "a daemon was killed: $(dmesg | grep 'Killed process')"
done
kill "${victims[@]}" 2>/dev/null
echo x >/mnt/v/after && sync /mnt/v/after || fail "no write afterwards"
END

# The kernel is to take from the daemons all that it can.
current=swapped_out
on a <<'END' && ok $current || fail $current "see above"
. /root/daemons
mkswap /dev/disk/by-serial/swap >/dev/null && swapon /dev/disk/by-serial/swap || fail swapon
echo 64M 2>/dev/null >/sys/fs/cgroup/daemons/memory.reclaim
for pid in $a $b; do
	out=$(awk '/^VmSwap:/ { print $2 }' /proc/$pid/status)
	[ "$out" = 0 ] || fail "$out KiB of a daemon are swapped out"
done
echo y >/mnt/v/after && sync /mnt/v/after || fail "no write afterwards"
END

current=end
on a <<'END' && ok $current || fail $current "see above"
. /root/daemons
complaints && fail "the kernel complained"
umount /mnt/v && off detach v >/dev/null || fail end
off wait v --timeout 240s || fail "the peer is not in sync"
END
