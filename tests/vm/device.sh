#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A volume as the kernel's block device, used as people use one: ext4 and XFS, made bigger while mounted, fio's
# own verification, a sparse volume of 2 TiB trimmed, and coming and going CYCLES (6) times.
# time limit: 600 s
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
VOLUMES
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
story kernel_is_quiet <<<kernel_is_quiet
on a node_stop || fail stop "the daemon"
power_off a
