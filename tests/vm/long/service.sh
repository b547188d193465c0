#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The service that `make install` puts there, under systemd: a volume attached by configuration and the README's
# line in fstab. At boot the daemon comes after its disk, which udev finds late, and the filesystem after the daemon, even
# with less time for its device than that takes; it goes before it at shutdown; and a service that writes to it sees no
# error through a restart, a kill and a hang of the daemon, nor through a reboot. The first start is in a machine in
# which no module has made a block device yet. Within what the unit leaves to them the operator's programs freeze and
# mount filesystems, and become another user.
# time limit: 900 s
. "$(dirname "$0")/../lib.sh"
need dumpe2fs debugfs
vm_begin
current=$test_name
machine a -s -k -m 768 -r data=128M -r hand=64M
boot a

cat >"$dir/a.out/service.sh" <<'END'
lines=/var/lib/postgresql/lines
written() { wc -l <$lines; }
reached() { [ "$(written)" -ge "$goal" ]; }
goes_on() { # the writer
	wait_for 60 "the file" test -s $lines
	goal=$(($(written) + 20))
	wait_for 240 "the writer" reached
	systemctl is-active -q writer || fail "the writer ended: $(systemctl status writer)"
	[ "$(systemctl show -P NRestarts writer)" = 0 ] || fail "the writer was started anew"
	went=1 kernel_is_quiet
}
restarts() { systemctl show -P NRestarts offsited; }
is() { [ "$(cat "/sys/block/$1")" = "$2" ] || fail "$1 is $(cat "/sys/block/$1"), not $2"; }
limits_are_set() {
	is nbd0/queue/max_sectors_kb 1024
	is nbd0/queue/io_timeout 1000
	is nbd0/queue/rotational 0
	! journalctl -b -u offsited | grep 'limits' || fail "they are not set"
}
again() { [ "$(restarts)" -gt "$before" ] && systemctl is-active -q offsited; }
END
on a <<'END' || die "the first start: $(on a 'systemctl status offsited; journalctl -b -n 50')"
[ ! -e /sys/devices/virtual/block ] || fail "block devices are there: $(ls /sys/devices/virtual/block)"
watchdog() { systemctl show -P WatchdogUSec offsited; }
systemctl cat offsited | grep -q '^WatchdogSec=' || fail "no watchdog"
mkdir -p /etc/systemd/system/offsited.service.d /mnt/hand
# Shorter than what is installed: a hang is waited for.
printf '[Service]\nWatchdogSec=10\n' >/etc/systemd/system/offsited.service.d/test.conf
cat >/etc/offsite/offsite.conf <<CONF
[node]
name = a
state-dir = /var/lib/offsite
control = /run/offsite/control.sock
nbd-listen = unix:/run/offsite/nbd.sock
[volume pgdata]
backing = /dev/disk/by-id/virtio-data
role = primary
attach = yes
store = file:/var/lib/store
snapshot-every = 0
snapshot-before-command = /usr/local/bin/before
snapshot-after-command = /usr/local/bin/after
proof-dir = /var/lib/proof
proof-command = /usr/local/bin/prove
[volume hand]
backing = /dev/disk/by-id/virtio-hand
role = primary
CONF
# At the next boot: what does not wait for udev has started for a while (or had 20 s to do so: all does when
# sysinit.target has to) when udev is done with this disk, and its name is there.
cat >/etc/udev/rules.d/59-late.rules <<'RULES'
ACTION=="add", SUBSYSTEM=="block", ATTR{serial}=="data", PROGRAM="/usr/sbin/late"
RULES
cat >/usr/sbin/late <<'LATE'
#!/bin/sh
for i in $(seq 20); do
	[ ! -e /run/systemd/units/invocation:vm-agent.service ] || break
	sleep 1
done
sleep 15
cut -d' ' -f1 /proc/uptime >/run/late
LATE
chmod 755 /usr/sbin/late || fail "the rule for a late disk"
cat >/etc/systemd/system/writer.service <<UNIT
[Unit]
RequiresMountsFor=/var/lib/postgresql
[Service]
ExecStart=/usr/bin/python3 /root/writer.py
[Install]
WantedBy=multi-user.target
UNIT
# Numbered lines, each on the disk before the next; what an earlier start left has to be whole.
cat >/root/writer.py <<'PY'
import os
with open("/var/lib/postgresql/lines", "a+b", buffering=0) as f:
    f.seek(0)
    number = 0
    for line in f.read().splitlines():
        number += 1
        assert int(line) == number, number
    while True:
        number += 1
        f.write(b"%d\n" % number)
        os.fsync(f.fileno())
PY
# What Debian's libpam-runtime makes when it is installed.
for kind in account auth password session; do echo "$kind required pam_unix.so" >/etc/pam.d/common-$kind; done
cp /etc/pam.d/common-session /etc/pam.d/common-session-noninteractive
mkdir -p /usr/local/bin /var/lib/store /var/lib/proof
cat >/usr/local/bin/before <<'HOOK'
#!/bin/bash
set -e
[ "$(runuser -u postgres -- id -un)" = postgres ]
ping -c 1 -W 60 127.0.0.1
fsfreeze -f /var/lib/postgresql
HOOK
printf '#!/bin/sh\nexec fsfreeze -u /var/lib/postgresql\n' >/usr/local/bin/after
cat >/usr/local/bin/prove <<'HOOK'
#!/bin/bash
set -e
device=$(losetup -f --show "$OFFSITE_IMAGE")
mkdir -p /run/prove
mount "$device" /run/prove
lines=$(setpriv --reuid=postgres --regid=postgres --clear-groups wc -l </run/prove/lines)
umount /run/prove
losetup -d "$device"
[ "$lines" -gt 0 ]
echo "there are $lines lines"
HOOK
chmod 755 /usr/local/bin/*
systemctl daemon-reload
systemctl enable -q --now offsited || fail "the daemon does not start"
wait_for 60 "the device" test -b /dev/offsite/pgdata
[ "$(watchdog)" = 10s ] || fail "the watchdog is $(watchdog)"
. /out/service.sh
limits_are_set
mkfs.ext4 -q /dev/offsite/pgdata || fail mkfs
# The device has less time than the late disk takes, as it does not begin before the daemon is ready.
sed -n 's/^\(.dev.offsite.pgdata .*_netdev\)/\1,x-systemd.device-timeout=30s/p' /src/README.md >>/etc/fstab
grep -q '^/dev/offsite/pgdata .*,x-systemd.device-timeout=' /etc/fstab || fail "the README has no such line"
systemctl daemon-reload
granted=$(systemctl show -P JobRunningTimeoutUSec dev-offsite-pgdata.device)
[ "$granted" = 30s ] || fail "the device has $granted"
systemctl enable -q --now writer || fail "the writer does not start"
END

story() { # NAME: what is on standard input runs in the machine
	if limit=300 on a '. /out/service.sh;' "$(cat)"; then ok "$1"; else fail "$1" "see above"; fi
}

# As the disk is left: unmounted in order, nothing to be recovered.
left_clean() { # NAME DISK
	local head
	head=$(dumpe2fs -h "$dir/a.$2.img" 2>&1)
	if grep -q '^Filesystem state: *clean$' <<<"$head" && ! grep -q needs_recovery <<<"$head"; then
		ok "$1"
	else
		fail "$1" "$(grep -E '^(Filesystem (state|features)|dumpe2fs:)' <<<"$head")"
	fi
}

story restarted <<'END'
goes_on
systemctl restart offsited || fail "the restart"
goes_on
END

story commands_of_the_operator <<'END'
offsite snapshot create pgdata >/tmp/out 2>&1 || fail "no snapshot: $(cat /tmp/out)"
offsite snapshot prove pgdata >/tmp/out 2>&1 || fail "not proven: $(cat /tmp/out)"
goes_on
END
story without_privileges <<'END'
exposed=$(systemd-analyze security --no-pager offsited | tail -n 1)
echo "# $exposed"
exposed=$(grep -oE '[0-9]+[.][0-9]+' <<<"$exposed")
[ "${exposed%.*}" -lt 6 ] || fail "systemd-analyze security says $exposed"
pid=$(systemctl show -P MainPID offsited)
grep -q '^NoNewPrivs:.*1$' /proc/$pid/status || fail "new privileges"
END

begun=$SECONDS
count=$(on a '. /out/service.sh; written')
behind a 'systemctl reboot'
vm_gone a
note "down after $((SECONDS - begun)) s"
left_clean shut_down data
boot a

story started_after_the_disk <<'END'
wait_for 240 "the daemon" systemctl is-active -q offsited
[ -s /run/late ] || fail "the disk was not late: $(ls -l /dev/disk/by-id)"
started=$(systemctl show -P ExecMainStartTimestampMonotonic offsited)
awk -v late="$(cat /run/late)" -v started="$started" 'BEGIN { exit started / 1e6 <= late }' ||
	fail "started at $((started / 1000000)) s, the disk was there at $(cat /run/late) s"
[ "$(restarts)" = 0 ] || fail "it did not start at once: $(journalctl -b -u offsited | head -n 20)"
END
story mounted_after_the_daemon <<'END'
at() { systemctl show -P "$1" "$2"; }
wait_for 240 "the mount" mountpoint -q /var/lib/postgresql
[ "$(at InactiveExitTimestampMonotonic dev-offsite-pgdata.device)" -gt 30000000 ] || fail "the device came too early for this test"
[ "$(findmnt -no SOURCE /var/lib/postgresql)" = /dev/nbd0 ] || fail "$(findmnt /var/lib/postgresql)"
[ "$(at ActiveEnterTimestampMonotonic offsited)" -lt "$(at InactiveExitTimestampMonotonic var-lib-postgresql.mount)" ] ||
	fail "mounted before the daemon was ready"
systemd-analyze blame | head -n 12 >/out/blame.txt; systemd-analyze critical-chain >>/out/blame.txt
systemctl --failed --no-legend | grep . && fail "units have failed"
dmesg | grep -iE 'EXT4-fs \(nbd.*(recover|orphan)' && fail "there was something to recover"
journalctl -b -u systemd-fsck@dev-offsite-pgdata | grep -q ': clean,' || fail "fsck: $(journalctl -b -u 'systemd-fsck@*')"
END
story unmounted_before_the_daemon <<'END'
journalctl --no-pager -b -1 -o cat >/tmp/before
unmounted=$(grep -nE '^Unmounted .*/var/lib/postgresql' /tmp/before | tail -n 1 | cut -d: -f1)
stopping=$(grep -nE '^Stopping offsited' /tmp/before | tail -n 1 | cut -d: -f1)
[ -n "$unmounted" ] && [ -n "$stopping" ] && [ $unmounted -lt $stopping ] ||
	fail "$(grep -nE 'postgresql|offsited' /tmp/before | tail -n 20)"
END
story limits_after_a_boot <<<limits_are_set
story data_is_there <<END
goes_on
[ "\$(written)" -ge $((count + 20)) ] || fail "there were $count lines, there are \$(written)"
END

story killed <<'END'
before=$(restarts)
systemctl kill -s KILL offsited
wait_for 120 "the next daemon" again
goes_on
END
story hangs <<'END'
before=$(restarts)
systemctl kill -s STOP offsited
wait_for 120 "the watchdog and the next daemon" again
journalctl -b -u offsited | grep -q 'Watchdog timeout' || fail "ended by something else"
goes_on
END

# Mounted by hand, where systemd has nothing to go by; a service on it takes its time to end.
story mounted_by_hand <<'END'
offsite attach hand >/dev/null && mkfs.ext4 -q /dev/offsite/hand && mount /dev/offsite/hand /mnt/hand || fail mount
systemd-run -q -u user -p RequiresMountsFor=/mnt/hand -p ExecStop='/bin/sh -c "sleep 3; echo ended >/mnt/hand/end"' sleep infinity ||
	fail "a service"
goes_on
END
begun=$SECONDS
power_off a
note "down after $((SECONDS - begun)) s"
left_clean shut_down_again data
left_clean shut_down_by_hand hand
[ "$(debugfs -R 'cat /end' "$dir/a.hand.img" 2>/dev/null)" = ended ] && ok not_under_a_service || fail not_under_a_service "it was unmounted before"
if grep -iE 'I/O error|EXT4-fs error|blocked for more' "$dir/a.console.log"; then
	fail console "errors, above"
else
	ok console
fi
