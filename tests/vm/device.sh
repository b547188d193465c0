#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A volume as the kernel's block device, used as people use one: ext4 and XFS, made bigger while mounted, fio's
# own verification, a sparse volume of 2 TiB trimmed, and coming and going CYCLES (6) times. A snapshot as a
# device, over a restart of the daemon; four connections under load when the daemon is killed; blocks of 4096
# bytes; and what is said where devices cannot be had.
# time limit: 900 s
. "$(dirname "$0")/lib.sh"
vm_begin
current=$test_name
machine a -m 1536 -v -r data=8G
boot a
on a <<'END' || die "no node"
node_disk
node_config a <<'VOLUMES'
[volume v]
role = primary
backing = /srv/offsite/v.img
size = 512M
[volume big]
role = primary
backing = /srv/offsite/big.img
size = 2T
[volume snap]
role = primary
backing = /srv/offsite/snap.img
size = 64M
store = file:/srv/offsite/store
[volume four]
role = primary
backing = /srv/offsite/four.img
size = 64M
attach-connections = 4
attach-request-timeout = 5
[volume large]
role = primary
backing = /srv/offsite/large.img
size = 512M
block-size = 4096
VOLUMES
mkdir -p /srv/offsite/store
node_start
offsite attach v >/dev/null || fail attach
mkdir -p /mnt/v
END

story() { # NAME: what is on standard input runs in the machine
	if limit=300 on a; then ok "$1"; else fail "$1" "see above"; fi
}

story ext4_resized_while_mounted <<'END'
set -e
mkfs.ext4 -q /dev/offsite/v
mount /dev/offsite/v /mnt/v
cp -r /usr/share/postgresql/*/extension /mnt/v/files
(cd /mnt/v && find files -type f -exec md5sum {} +) >/tmp/sums
offsite resize v 768M >/dev/null
[ "$(blockdev --getsize64 /dev/offsite/v)" = $((768 << 20)) ] || fail "the device did not grow"
resize2fs /dev/offsite/v 2>/dev/null >&2
[ "$(df --output=size -m /mnt/v | tail -n 1)" -gt 600 ] || fail "the filesystem did not grow"
umount /mnt/v
fsck.ext4 -fn /dev/offsite/v >/tmp/fsck 2>&1 || fail "fsck: $(tail -n 3 /tmp/fsck)"
mount /dev/offsite/v /mnt/v
(cd /mnt/v && md5sum --quiet -c /tmp/sums)
umount /mnt/v
END

story xfs_resized_while_mounted <<'END'
set -e
mkfs.xfs -q -f /dev/offsite/v
mount /dev/offsite/v /mnt/v
cp -r /usr/share/postgresql/*/extension /mnt/v/files
(cd /mnt/v && find files -type f -exec md5sum {} +) >/tmp/sums
offsite resize v 1G >/dev/null
xfs_growfs /mnt/v >/dev/null
[ "$(df --output=size -m /mnt/v | tail -n 1)" -gt 900 ] || fail "the filesystem did not grow"
umount /mnt/v
xfs_repair -n /dev/offsite/v >/tmp/repair 2>&1 || fail "xfs_repair: $(tail -n 3 /tmp/repair)"
mount /dev/offsite/v /mnt/v
(cd /mnt/v && md5sum --quiet -c /tmp/sums)
umount /mnt/v
END

story fio_verifies <<'END'
fio --name=v --filename=/dev/offsite/v --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --bsrange=4k-128k \
	--size=48M --verify=crc32c --verify_fatal=1 --thread \
	>/tmp/fio 2>&1 || fail "fio: $(grep -m 3 -iE 'verify|err' /tmp/fio)"
END

story two_tebibytes_trimmed <<'END'
set -e
offsite attach big >/dev/null
mkfs.xfs -q -K -l size=64m /dev/offsite/big
mkdir -p /mnt/big
mount /dev/offsite/big /mnt/big
dd if=/dev/urandom of=/mnt/big/file bs=1M count=64 conv=fsync status=none
before=$(du -m /srv/offsite/big.img | cut -f1)
rm /mnt/big/file
sync
begun=$(seconds)
fstrim /mnt/big
fstrim=$(since $begun)
echo "# fstrim of 2 TiB: $fstrim s"
# XFS gives the blocks of a removed file back in the background, and trims none that it is just giving back.
after() { du -m /srv/offsite/big.img | cut -f1; }
trimmed() { [ "$(after)" -lt $((before - 50)) ] || { sync && fstrim /mnt/big && false; }; }
wait_for 240 "the backing had $before MiB, has $(after) MiB after fstrim" trimmed
umount /mnt/big
[ "${fstrim%.*}" -lt 120 ] || fail "fstrim took $fstrim s"
begun=$(seconds)
blkdiscard -f /dev/offsite/big
took=$(since $begun)
echo "# blkdiscard of 2 TiB: $took s"
[ "${took%.*}" -lt 120 ] || fail "blkdiscard took $took s"
udevadm settle
offsite detach big >/dev/null
END

on a "udevadm settle; offsite detach v >/dev/null" || fail detach "v"
story comes_and_goes <<END
begun=\$(seconds)
pid=\$(cat /run/offsited.pid)
for i in \$(seq ${CYCLES:-6}); do
	device=\$(offsite attach v | cut -d' ' -f1) || fail "attach \$i"
	udevadm settle # who reads from a device that goes gets an error
	offsite detach v >/dev/null || fail "detach \$i"
	[ \$i != 5 ] || before=\$(ls /proc/\$pid/fd | wc -l)
done
# The connection of a command that has ended goes a moment later.
as_few() { [ "\$(ls /proc/\$pid/fd | wc -l)" -le \$before ]; }
wait_for 240 "descriptors, \$before before, \$(ls /proc/\$pid/fd | wc -l) now" as_few
wait_for 240 "no client" volume_is '.clients == 0 and .attached == null'
echo "# attached and detached ${CYCLES:-6} times in \$(since \$begun) s"
END
story blocks_of_4096 <<'END'
set -e
offsite attach large >/dev/null
device=$(readlink -f /dev/offsite/large)
[ "$(blockdev --getss $device)" = 4096 ] || fail "sectors of $(blockdev --getss $device)"
dd if=/dev/zero of=$device bs=512 count=1 oflag=direct status=none 2>/tmp/err && fail "512 bytes were written"
mkfs.xfs -q -f -K /dev/offsite/large
mkdir -p /mnt/large
mount /dev/offsite/large /mnt/large
cp -r /usr/share/postgresql/*/extension /mnt/large/files
(cd /mnt/large && find files -type f -exec md5sum {} +) >/tmp/sums
umount /mnt/large
xfs_repair -n /dev/offsite/large >/tmp/repair 2>&1 || fail "xfs_repair: $(tail -n 3 /tmp/repair)"
mount /dev/offsite/large /mnt/large
(cd /mnt/large && md5sum --quiet -c /tmp/sums)
umount /mnt/large
udevadm settle
offsite detach large >/dev/null
END
story kernel_is_quiet <<<kernel_is_quiet

story snapshot_as_a_device <<'END'
set -e
offsite attach snap >/dev/null
mkfs.ext4 -q /dev/offsite/snap
mkdir -p /mnt/snap
mount /dev/offsite/snap /mnt/snap
head -c 4M /dev/urandom >/mnt/snap/file
sum=$(md5sum </mnt/snap/file)
umount /mnt/snap
offsite snapshot create snap >/dev/null 2>&1
mount /dev/offsite/snap /mnt/snap
head -c 4M /dev/urandom >/mnt/snap/file
umount /mnt/snap
device=$(offsite attach snap@latest | cut -d' ' -f1)
[ "$(blockdev --getro $device)" = 1 ] || fail "$device can be written"
dd if=/dev/zero of=$device bs=4k count=1 oflag=direct status=none 2>/tmp/err && fail "it was written"
grep -qE 'not permitted|Read-only' /tmp/err || fail "$(cat /tmp/err)"
mount -t ext4 -o ro,noload $device /mnt/snap
[ "$(md5sum </mnt/snap/file)" = "$sum" ] || fail "other content"
for how in node_stop node_kill; do
	$how
	echo 3 >/proc/sys/vm/drop_caches
	md5sum </mnt/snap/file >/tmp/sum & # waits for the next daemon
	reader=$!
	node_start
	wait $reader
	[ "$(cat /tmp/sum)" = "$sum" ] || fail "other content after $how: $(cat /tmp/sum)"
done
offsite attach --list | grep -q "^$device .* attached, read-only$" || fail "$(offsite attach --list)"
umount /mnt/snap
udevadm settle
offsite detach $device >/dev/null
offsite detach snap >/dev/null
END

story four_connections <<'END'
set -e
offsite attach four >/dev/null
device=$(readlink -f /dev/offsite/four)
offsite attach --list --json | jq -e '.attached[] | select(.export == "four") | .alive == 4' >/dev/null || fail "$(offsite attach --list)"
# The kernel uses no more of them than there are processors.
queues=$(ls -d /sys/block/${device##*/}/mq/*/ | wc -l)
[ $queues = $(($(nproc) < 4 ? $(nproc) : 4)) ] || fail "the kernel has $queues queues"
fio --name=four --filename=$device --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bsrange=4k-64k --size=32M \
	--verify=crc32c --verify_fatal=1 --thread --time_based --runtime=40 --rate_iops=100 >/tmp/fio 2>&1 &
fio=$!
written() { awk '{ print $5 }' /sys/block/${device##*/}/stat; }
moved() { [ "$(written)" -ge $goal ]; }
goal=$(($(written) + 50))
wait_for 240 "load" moved
node_kill
kill -0 $fio || fail "the load ended before"
node_start
wait $fio || fail "fio: $(grep -m 3 -iE 'verify|err' /tmp/fio)"
offsite attach --list --json | jq -e ".attached[] | select(.export == \"four\") | .alive == $queues" >/dev/null || fail "$(offsite attach --list)"
udevadm settle
offsite detach four >/dev/null
END
story kernel_expected_that <<<'went=1 kernel_is_quiet'
on a node_stop || fail stop "the daemon"

story without_the_right <<'END'
set -e
install -d -o nobody /tmp/nobody
printf '[node]\nname = n\nstate-dir = /tmp/nobody/state\ncontrol = /tmp/nobody/sock\nnbd-listen = unix:/tmp/nobody/nbd\n[volume n]\nrole = primary\nbacking = /tmp/nobody/n.img\nsize = 4M\n' >/tmp/nobody.conf
setpriv --reuid=nobody --clear-groups --inh-caps=-all offsited --config /tmp/nobody.conf >/tmp/nobody.log 2>&1 &
daemon=$!
wait_for 240 "the daemon" offsite --socket /tmp/nobody/sock status
offsite --socket /tmp/nobody/sock attach n >/tmp/out 2>&1 && fail "attached"
grep -qF 'attach n: the kernel does not let this daemon attach devices: it needs CAP_SYS_ADMIN, as root or with AmbientCapabilities= in its unit' /tmp/out ||
	fail "$(cat /tmp/out)"
kill $daemon
wait $daemon
END

story without_the_module <<'END'
set -e
mkdir -p /etc/modprobe.d
echo 'install nbd /bin/false' >/etc/modprobe.d/none.conf
rmmod nbd
node_start
offsite attach v >/tmp/out 2>&1 && fail "attached"
grep -qF 'attach v: the kernel has no nbd: its module cannot be loaded here (modprobe nbd says why); clients can use nbdfuse or qemu instead' /tmp/out ||
	fail "$(cat /tmp/out)"
rm /etc/modprobe.d/none.conf
offsite attach v >/dev/null # loads it
udevadm settle
offsite detach v >/dev/null
node_stop
END
power_off a
