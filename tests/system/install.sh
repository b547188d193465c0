#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What `make install` puts where: commands that run, a unit that systemd takes, manual pages that man
# renders without a warning.
# time limit: 120 s
. "$(dirname "$0")/lib.sh"
need make awk
begin

installed() {
	current=installed
	make -C "$TOP" --no-print-directory BUILD="$build" DESTDIR="$dir/root" PREFIX=/usr install \
		>"$dir/install.out" 2>&1 || die "make install: $(tail -n 1 "$dir/install.out")"
	"$dir/root/usr/bin/offsite" --version >/dev/null || die "offsite does not run"
	"$dir/root/usr/sbin/offsited" --version >/dev/null || die "offsited does not run"
	ok "$current"
}

unit() {
	local unit=$dir/root/usr/lib/systemd/system/offsited.service
	current=unit
	grep "@[A-Z]*@" "${unit%/*}"/*.service && die "a placeholder is left, above"
	[ -x "$dir/root$(sed -n 's/^ExecStop=//p' "${unit%/*}/offsite-unmount.service")" ] || die "nothing that unmounts"
	# dev-offsite-VOLUME.device of any volume: its time begins behind the daemon's start.
	grep -qx 'After=offsited.service' "${unit%/*}/dev-offsite-.device.d/offsited.conf" || die "devices do not wait for the daemon"
	# A store on NFS that is not mounted yet would be a folder on the local disk.
	grep -qE '^After=.*\bremote-fs\.target\b' "$unit" || die "does not wait for remote file systems"
	grep -qE '^After=.*\bnetwork-online\.target\b' "$unit" || die "does not wait for the network"
	# shellcheck disable=SC2013 # no blanks in a link
	for page in $(sed -n 's/^Documentation=//p' "$unit"); do
		page=${page#man:}
		[ -f "$dir/root/usr/share/man/man${page//[!0-9]/}/${page%(*}.${page//[!0-9]/}" ] ||
			die "the unit names a manual page that is not there: $page"
	done
	ok "$current"
}

# What a boot waits for: the devices of the configuration, by the names of their units.
boot_waits() {
	current=boot_waits
	local generator=$dir/root/usr/lib/systemd/system-generators/offsite-generator
	local told=$dir/units/offsite-devices.target.d/devices.conf
	command -v systemd-escape >/dev/null || {
		skip "$current" "systemd-escape is missing"
		return
	}
	grep -q '^After=offsite-devices.target' "$dir/root/usr/lib/systemd/system/offsited.service" || die "the unit does not wait"
	[ -f "$dir/root/usr/lib/systemd/system/offsite-devices.target" ] || die "no target"
	mkdir -p "$dir/etc/offsite" "$dir/units"
	sed -i "s|^config=/etc/|config=$dir/etc/|" "$generator"
	"$generator" "$dir/units" "$dir/units" "$dir/units" || die "fails without a configuration"
	cat >"$dir/etc/offsite/offsite.conf" <<-'END'
		[volume a]
		backing = /srv/offsite/a.img
		[volume b]
		backing=/dev/vg0/data-1   ; the disk
		[volume c]
		  backing = /dev/disk/by-id/c
		[volume d]
		backing = /dev/offsite/a
		[volume e]
		backing = /dev/../e
		[volume f]
		backing = /dev/shm/f.img
		[volume g]
		backing = /dev/sdy1
		# backing = /dev/sdx
	END
	"$generator" "$dir/units" "$dir/units" "$dir/units" || die "fails"
	[ "$(grep -c . "$told")" = 7 ] || die "$(cat "$told")"
	for one in 'dev-disk-by\x2did-c.device' 'dev-vg0-data\x2d1.device' dev-sdy1.device; do
		grep -qxF "Wants=$one" "$told" && grep -qxF "After=$one" "$told" || die "$one: $(cat "$told")"
	done
	sed -i '/\/dev/d' "$dir/etc/offsite/offsite.conf"
	rm -r "$dir/units/offsite-devices.target.d"
	"$generator" "$dir/units" "$dir/units" "$dir/units" || die "fails without a device"
	[ ! -e "$told" ] || die "$(cat "$told")"
	ok "$current"
}

manual_pages() {
	current=manual_pages
	command -v man >/dev/null || {
		skip "$current" "man is missing"
		return
	}
	for page in offsite.1 offsited.8; do
		LC_ALL=C.UTF-8 MANWIDTH=80 man --warnings -l "$dir/root/usr/share/man/man${page##*.}/$page" \
			>"$dir/$page.txt" 2>"$dir/$page.err" || die "$page: man fails"
		[ -s "$dir/$page.err" ] && die "$page: $(head -n 1 "$dir/$page.err")"
		grep -q '^SEE ALSO' "$dir/$page.txt" || die "$page: not whole"
		grep -nE '\*\*|`|^ *:  ' "$dir/$page.txt" && die "$page: Markdown is left"
	done
	ok "$current"
}

udev_rule() {
	current=udev_rule
	grep -q 'SYMLINK+="offsite/' "$dir/root/usr/lib/udev/rules.d/60-offsite.rules" || die "no name is made"
	ok "$current"
}

for one in installed unit boot_waits udev_rule manual_pages; do
	part "$one"
done
