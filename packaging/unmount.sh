#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# ExecStop= of offsite-unmount.service: unmounts what lies on attached devices, while their daemon still runs. For
# each mount it waits until the services that systemd has ordered behind it are gone, then unmounts it, and tries
# again for a while if it is busy.
busy_limit=60 # seconds

# Mount points on the devices of offsited, and on what is made of them (partitions, LVM, LUKS), the last mounted first.
mounts() {
	local backend device
	for backend in /sys/block/nbd*/backend; do
		grep -qs '^offsite:' "$backend" || continue
		device=${backend%/backend}
		lsblk -nro MOUNTPOINTS "/dev/${device##*/}"
	done | sed 's/\\x0a/\n/g' | grep '^/' | tac
}
# Services that still run and need this mount.
users() { # MOUNT POINT
	local unit
	for unit in $(systemctl show -P Before -- "$(systemd-escape -p --suffix=mount -- "$1")"); do
		case $unit in
		offsite-unmount.service) ;;
		*.service)
			case $(systemctl show -P ActiveState -- "$unit") in
			inactive | failed) ;;
			*) echo "$unit" ;;
			esac
			;;
		esac
	done
}

waited=0
while :; do
	left=
	needed=
	while IFS= read -r line; do
		where=$(printf %b "$line")
		if [ -n "$(users "$where")" ]; then
			needed=1
		else
			umount -- "$where" 2>/dev/null || left="$left $where"
		fi
	done < <(mounts)
	[ -n "$left$needed" ] || exit 0
	if [ -z "$needed" ]; then
		[ $waited -lt $((busy_limit * 5)) ] || break
		waited=$((waited + 1))
	fi
	sleep 0.2
done
echo "offsite: still in use, I/O fails soon:$left" >&2
exit 1
