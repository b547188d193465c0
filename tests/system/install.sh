#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What `make install` puts where: commands that run, a unit that systemd takes, manual pages that man
# renders without a warning.
# time limit: 60 s
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

for one in installed unit udev_rule manual_pages; do
	part "$one"
done
