#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# A generator of systemd's (systemd.generator(7)), run at boot and at every daemon-reload: offsite-devices.target, which
# the daemon starts after, waits for the devices that volumes lie on. Not for those that the daemon itself makes, nor for
# files in memory.
set -euf
config=@SYSCONFDIR@/offsite/offsite.conf
target=$1/offsite-devices.target.d

[ -r "$config" ] || exit 0
devices=$(sed -n 's|^[[:space:]]*backing[[:space:]]*=[[:space:]]*\(/dev/[^[:space:];]*\).*|\1|p' "$config" |
	grep -v -e '^/dev/nbd' -e '^/dev/offsite/' -e '^/dev/shm/' | sort -u)
[ -n "$devices" ] || exit 0
mkdir -p "$target"
echo '[Unit]' >"$target/devices.conf"
for device in $devices; do
	unit=$(systemd-escape --path --suffix=device "$device") || continue
	printf 'Wants=%s\nAfter=%s\n' "$unit" "$unit" >>"$target/devices.conf"
done
