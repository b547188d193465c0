#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Attached devices with the real kernel and udev: attached and detached over and over; what they say of
# themselves; ext4 on one of them under load, while its daemon is killed, stopped and started; made bigger in
# use; and what the daemon asks of the kernel for its own threads.
# time limit: 500 s
. "$(dirname "$0")/lib.sh"
vm_begin
machine a -v -r data=1G
boot a

cat >"$dir/a.out/daemon.sh" <<'END'
start() {
	offsited --config /root/offsite.conf >>/root/offsited.log 2>&1 &
	echo $! >/root/pid
	wait_for 240 "start of the daemon" offsite status
}
stop() { # SIGNAL
	kill "-$1" "$(cat /root/pid)"
	wait_for 240 "end of the daemon" test ! -d "/proc/$(cat /root/pid)"
}
attached() { offsite attach --list --json | jq -e '.attached[0].state == "attached"'; }
END
on a <<'END' || die "the daemon does not start: $(on a 'cat /root/offsited.log')"
cp /src/packaging/60-offsite.rules /etc/udev/rules.d/ && udevadm control --reload
mkfs.ext4 -q /dev/disk/by-serial/data && mount -t ext4 /dev/disk/by-serial/data /root
cat >/root/offsite.conf <<CONF
[node]
name = alpha
state-dir = /root/state
[volume v]
backing = /root/v.img
size = 192M
role = primary
CONF
cp /out/daemon.sh /root/
. /root/daemon.sh
start
END

current=over_and_over
on a <<'END' && ok $current || fail $current "see above"
for i in 1 2 3 4 5 6; do
	out=$(offsite attach v) || fail "attach $i"
	[ "$out" = "/dev/nbd0 /dev/offsite/v" ] || fail "attach $i: $out"
	head -c 64k /dev/urandom >/dev/offsite/v || fail "write $i"
	offsite detach v >/dev/null || fail "detach $i"
	wait_for 240 "the end of the name" test ! -e /dev/offsite/v
	udevadm settle # while udev looks into it, it is not free
done
[ "$(cat /sys/block/nbd0/size)" = 0 ] || fail "it has $(cat /sys/block/nbd0/size) sectors"
END

current=what_it_says
on a <<'END' && ok $current || fail $current "see above"
offsite attach v /dev/nbd4 >/dev/null || fail attach
q=/sys/block/nbd4/queue
is() { [ "$(cat "$1")" = "$2" ] || fail "$1 is $(cat "$1"), not $2"; }
is $q/rotational 0
is $q/max_sectors_kb 1024
is $q/io_timeout 1000
is $q/logical_block_size 512
is $q/write_cache "write back"
is $q/fua 1
[ "$(cat $q/discard_max_bytes)" -gt 0 ] || fail "no trim"
is /sys/block/nbd4/size $((192 * 2048))
is /sys/block/nbd4/ro 0
[ "$(readlink -f /dev/offsite/v)" = /dev/nbd4 ] || fail "/dev/offsite/v is $(readlink -f /dev/offsite/v)"
grep -q '^offsite:v:alpha:' /sys/block/nbd4/backend || fail "$(cat /sys/block/nbd4/backend)"
head -c 1M /dev/urandom | dd of=/dev/nbd4 oflag=direct bs=1M status=none
blkdiscard -l 1M /dev/nbd4 && cmp -n $((1 << 20)) /dev/nbd4 /dev/zero || fail "discarded is not zero"
# Another device is busy, and the same volume elsewhere is refused.
nbdkit -U /root/n.sock memory 1M && nbd-client -unix /root/n.sock /dev/nbd7 >/dev/null 2>&1
offsite detach v >/dev/null || fail detach
offsite attach v /dev/nbd7 2>/root/err && fail "nbd7 was in use"
grep -q 'nbd7 is in use' /root/err || fail "$(cat /root/err)"
nbd-client -d /dev/nbd7 >/dev/null
offsite attach v >/dev/null
END

# Where /sys cannot be written the limits are not set, which is said once; the device works.
current=sys_is_read_only
on a <<'END' && ok $current || fail $current "see above"
offsite detach v >/dev/null || fail detach
mount -o remount,ro /sys || fail remount
offsite attach v >/dev/null || fail attach
dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct status=none || fail write
offsite resize v 193M >/dev/null || fail resize # sets them again
told=$(grep -c 'not all of its limits are set: /sys/block/nbd0/queue/max_sectors_kb: Read-only file system' /root/offsited.log)
mount -o remount,rw /sys || fail remount
[ "$told" = 1 ] || fail "said $told times: $(cat /root/offsited.log)"
offsite detach v >/dev/null && offsite attach v >/dev/null || fail "attach anew"
[ "$(cat /sys/block/nbd0/queue/io_timeout)" = 1000 ] || fail "the limits"
END

# All threads are marked, as any of them may have to work for a page to be written out.
current=threads
on a <<'END' && ok $current || fail $current "see above"
pid=$(cat /root/pid)
for task in /proc/$pid/task/*; do
	# io_uring's workers come and go.
	stat=$(cat "$task/stat" 2>/dev/null) || continue
	flags=$(cut -d' ' -f8 <<<"${stat##*)}")
	[ $((flags & 0x80000)) -ne 0 ] || fail "${stat%%)*}): not an I/O flusher (flags $flags)"
done
[ "$(ls /proc/$pid/task | wc -l)" -gt 3 ] || fail "where are its threads?"
[ "$(cat /proc/$pid/oom_score_adj)" = -900 ] || fail oom_score_adj
# What the writes need is there before they come.
rss=$(awk '/^VmRSS:/ { print $2 }' /proc/$pid/status)
echo "# resident: $((rss / 1024)) MiB"
[ $rss -gt 50000 ] || fail "$rss KiB are resident"
[ "$(awk '/^VmLck:/ { print $2 }' /proc/$pid/status)" -gt 50000 ] || fail "$(grep VmLck /proc/$pid/status)"
END

current=under_load
# Of udev, which reads from devices that go, the kernel has said something before.
on a 'dmesg -C; mkfs.ext4 -q /dev/offsite/v && mkdir -p /mnt/v && mount /dev/offsite/v /mnt/v' || die "mkfs, mount"
limit=240 on a <<'END' && ok $current || fail $current "see above"
. /root/daemon.sh
dmesg -C # udev may have read from a device that was detached
fio --name=load --filename=/mnt/v/load --size=24M --rw=randwrite --bs=4k --ioengine=libaio --iodepth=16 \
	--direct=1 --fsync=32 --verify=crc32c --verify_fatal=1 --time_based --runtime=30 --rate_iops=50 \
	--output-format=json --output=/root/fio.json >/root/fio.err 2>&1 &
fio=$!
wait_for 240 "the load" test -s /mnt/v/load
for signal in KILL TERM KILL TERM KILL; do
	stop $signal
	start
	wait_for 240 "the device after $signal" attached
	pause 1.5 # of load
done
kill -0 $fio 2>/dev/null || note='(the load ended before the last of them)'
wait $fio || fail "fio: $(cat /root/fio.err)"
sed -i '/^{/,$!d' /root/fio.json # it may say something first
jq -r '.jobs[0] | "# \(.write.iops | floor) writes a second, the longest wait \(.write.clat_ns.max / 1e6 | floor) ms, errors \(.error)"' /root/fio.json
[ -z "${note:-}" ] || echo "# $note"
[ "$(jq '.jobs[0].error' /root/fio.json)" = 0 ] || fail "an error"
dmesg | grep -E 'I/O error|Buffer I/O|EXT4-fs error|timed out|Double reply|Unexpected reply' && fail "the kernel saw errors"
offsite status --json | jq -e '.volumes[0].clients == 1' >/dev/null || fail "more than one client"
END

current=bigger
on a <<'END' && ok $current || fail $current "see above"
offsite resize v 224M >/dev/null || fail resize
[ "$(blockdev --getsize64 /dev/offsite/v)" = $((224 << 20)) ] || fail "$(blockdev --getsize64 /dev/offsite/v)"
resize2fs /dev/offsite/v >/dev/null 2>&1 || fail resize2fs
[ "$(df --output=size -k /mnt/v | tail -n 1)" -gt 200000 ] || fail "$(df -k /mnt/v)"
END

current=mounted_is_not_detached
on a <<'END' && ok $current || fail $current "see above"
offsite detach v 2>/root/err
[ $? = 4 ] && grep -q 'unmount it first' /root/err || fail "$(cat /root/err)"
offsite demote v 2>/root/err
[ $? = 4 ] && grep -q 'offsite detach v' /root/err || fail "$(cat /root/err)"
touch /mnt/v/still-there && sync /mnt/v/still-there || fail "not in use any more"
umount /mnt/v && fsck.ext4 -fn /dev/offsite/v >/root/fsck 2>&1 || fail "$(cat /root/fsck)"
offsite detach v >/dev/null || fail detach
END

# A daemon that does not come back in time: errors, not for ever; and one that comes later revives it.
current=too_late
limit=180 on a <<'END' && ok $current || fail $current "see above"
. /root/daemon.sh
stop TERM
sed -i '/^\[node\]/i [volume w]\nbacking = /root/w.img\nsize = 16M\nrole = primary\nattach = yes\nattach-timeout = 3' /root/offsite.conf
start
wait_for 240 "what is configured" test -b /dev/offsite/w
udevadm settle
stop KILL
dd if=/dev/zero of=/dev/offsite/w bs=4k count=1 oflag=direct 2>/root/err && fail "written without a daemon"
grep -q 'Input/output error' /root/err || fail "$(cat /root/err)"
start
wait_for 240 "the device" attached
dd if=/dev/zero of=/dev/offsite/w bs=4k count=1 oflag=direct 2>/root/err || fail "$(cat /root/err)"
stop TERM
END
[ $failed -eq 0 ] || on a 'tail -n 30 /root/offsited.log; dmesg | grep -i nbd | tail -n 30'
