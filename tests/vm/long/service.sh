#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The service that `make install` puts there, under systemd: a volume attached by configuration and the README's
# line in fstab. At boot the daemon comes after its disk, which udev finds late, and the filesystem after the daemon, even
# with less time for its device than that takes; it goes before it at shutdown; and a service that writes to it sees no
# error through a restart, a kill and a hang of the daemon, nor through a reboot.
# time limit: 600 s
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
	kernel_is_quiet
}
restarts() { systemctl show -P NRestarts offsited; }
again() { [ "$(restarts)" -gt "$before" ] && systemctl is-active -q offsited; }
END
on a <<'END' || die "the first start: $(on a 'systemctl status offsited; journalctl -b -n 50')"
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
systemctl daemon-reload
systemctl enable -q --now offsited || fail "the daemon does not start"
wait_for 60 "the device" test -b /dev/offsite/pgdata
[ "$(watchdog)" = 10s ] || fail "the watchdog is $(watchdog)"
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
