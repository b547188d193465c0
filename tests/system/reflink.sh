#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Where the file system has reflinks (XFS in a loop device), a catch-up in place keeps the content before
# it: seen in status, gone when the catch-up is complete; and by hand it becomes the volume again.
# time limit: 200 s
. "$(dirname "$0")/lib.sh"
need qemu-io jq mkfs.xfs mount losetup
begin
mib=64

unmount() { umount -l "$dir/xfs"; } # the daemons end later
current=kept_until_complete
mkdir "$dir/xfs"
truncate -s 400M "$dir/xfs.img"
if ! { mkfs.xfs -q -m reflink=1 "$dir/xfs.img" && mount -o loop "$dir/xfs.img" "$dir/xfs"; } >"$dir/mount.log" 2>&1; then
	skip "$current" "no XFS with reflinks can be mounted here: $(tail -n 1 "$dir/mount.log")"
	finish
fi
at_end unmount
kept="$dir/xfs/b.img.before-catch-up"

write() { # PATTERN
	qemu-io -f raw -c "write -P $1 0 ${mib}M" "$(uri a)" >"$dir/writer.log" 2>&1 || die "write: $(cat "$dir/writer.log")"
}
all_of() { # FILE PATTERN
	qemu-io -f raw -r -c "read -P $2 0 ${mib}M" "$1" >"$dir/read.log" 2>&1 && ! grep -q "verification failed" "$dir/read.log"
}
inconsistent() { volume_is b '.disk == "inconsistent"'; }
# More than staging-max; at this rate the catch-up takes minutes, until `off a set v catch-up-rate=0`.
fall_behind() { # PATTERN
	off b disconnect v >/dev/null || die "disconnect"
	write "$1"
	off a set v catch-up-rate=256K >/dev/null || die "set"
}

pair_config $mib 'staging-max = 1M'
sed -i "s|^backing = .*|backing = $dir/xfs/b.img|" "$dir/b.conf"
start b
start a
wait_state 30 "the first sync" a in-sync
write 17
wait_state 30 "in sync" a in-sync
fall_behind 34
off b connect v >/dev/null
wait_for 20 "in place" inconsistent
[ "$(volume_get b .kept_copy)" = "$kept" ] || die "status does not name the copy: $(volume_get b .kept_copy)"
all_of "$kept" 17 || die "the copy is not the content before"
off a set v catch-up-rate=0 >/dev/null || die "set"
wait_state 60 "complete" a in-sync
[ ! -e "$kept" ] || die "the copy is left behind"
[ "$(volume_get b .kept_copy)" = null ] || die "status names a copy that is gone"
ok "$current"

current=becomes_the_volume_again
fall_behind 51
off b connect v >/dev/null
wait_for 20 "in place" inconsistent
kill9 a
off b promote v --force >"$dir/out" 2>&1 && die "a mixture is promoted"
grep -qF "mv $kept $dir/xfs/b.img, touch $dir/xfs/b.img.restored" "$dir/out" ||
	die "promote does not say what is there to go on with: $(cat "$dir/out")"
stop b
mv "$kept" "$dir/xfs/b.img" && touch "$dir/xfs/b.img.restored"
start b
volume_is b '.disk == "uptodate"' >/dev/null || die "not usable: $(volume_get b .disk)"
off b promote v --force >"$dir/out" 2>&1 || die "promote: $(cat "$dir/out")"
qemu-io -f raw -r -c "read -P 34 0 ${mib}M" "$(uri b)" >"$dir/read.log" 2>&1
grep -q "verification failed" "$dir/read.log" && die "not the content before: $(cat "$dir/read.log")"
ok "$current"
finish
