#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Short of memory: a machine of 256 MiB in which daemon, filesystem and a hog live together. Far more dirty
# pages than it has memory are written to the attached device, while the daemon replicates (protocol C, to a
# second one there) and makes snapshots, and the hog takes what is left. Nothing may stand still, no daemon be
# killed, and what was written has to be there.
# time limit: 400 s
. "$(dirname "$0")/lib.sh"
vm_begin
current=$test_name
machine a -m 256 -r data=2G
boot a

limit=300 on a <<'END' && ok $current || fail $current "see above"
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
[volume v]
backing = /root/$1.img
size = 512M
role = $2
peer = 127.0.0.1:$4
protocol = C
store = file:/root/store
CONF
}
node a primary 7001 7002 >a.conf
node b secondary 7002 7001 >b.conf
for n in b a; do
	offsited --config $n.conf >$n.log 2>&1 &
	eval "$n=\$!"
	wait_for 60 "start of $n" offsite --socket /run/$n.sock status
done
off() { offsite --socket /run/a.sock "$@"; }
streams() { off status --json | jq -e '.volumes[0].replication.state == "streaming"'; }
wait_for 60 replication streams
off attach v >/dev/null || fail attach
mkfs.ext4 -q /dev/nbd0 && mkdir -p /mnt/v && mount /dev/nbd0 /mnt/v || fail "mkfs, mount"

# The hog: 96 MiB of anonymous memory, all of it touched again and again.
python3 -c '
m = bytearray(96 << 20)
while True:
    for i in range(0, len(m), 4096): m[i] = 1
' &
hog=$!
echo 900 >/proc/$hog/oom_score_adj
# Dirty pages without end: 320 MiB through the page cache, in pieces that can be checked.
python3 - <<'PY' &
import hashlib, os
piece = os.urandom(1 << 20)
with open("/mnt/v/big", "wb") as f:
    for i in range(320):
        f.write(i.to_bytes(8, "little") + piece[8:])
    f.flush()
    os.fsync(f.fileno())
open("/root/sum", "wb").write(piece)
PY
writer=$!
snapshots=0
while kill -0 $writer 2>/dev/null; do
	off snapshot create v >snapshot.out 2>&1 && snapshots=$((snapshots + 1))
	sleep 1
done
wait $writer || fail "the writer failed"
kill $hog 2>/dev/null
for n in a b; do
	pid=${!n}
	[ -d /proc/$pid ] || fail "daemon $n is gone: $(tail -n 3 $n.log; dmesg | grep -i oom | tail -n 3)"
done
[ $snapshots -gt 0 ] || fail "no snapshot was made meanwhile: $(cat snapshot.out)"
echo 3 >/proc/sys/vm/drop_caches
python3 - <<'PY' || fail "what was written is not there"
piece = open("/root/sum", "rb").read()
with open("/mnt/v/big", "rb") as f:
    for i in range(320):
        got = f.read(1 << 20)
        assert got[:8] == i.to_bytes(8, "little") and got[8:] == piece[8:], i
PY
dmesg | grep -E 'I/O error|blocked for more than|Killed process.*offsited' && fail "the kernel complained"
umount /mnt/v && off detach v >/dev/null || fail "end"
wait_for 60 "the peer" eval 'off status --json | jq -e ".volumes[0].replication.out_of_sync_bytes == 0"'
echo "# 320 MiB dirty in 256 MiB of memory, $snapshots snapshots meanwhile"
END
