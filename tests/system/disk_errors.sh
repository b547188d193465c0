#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Disks that fail under clients, with real daemons. A disk is a file that nbdfuse shows and nbdkit's error
# filter stands behind: EIO on reads, on writes, or on both, while a file is there.
#
#   diskless     the primary's disk fails, on-io-error = detach: the writer notices nothing, the volume is
#                DISKLESS; killed and started again, with a disk that works again and is stale, it is so
#                still; replace-disk brings a disk back under the writer
#   filling      the new disk fails too; kill -9 while one is filled
#   passed_on    on-io-error = error: the client gets the error, status names it; what differs from then on
#                counts as out of sync, and is equal after a catch-up
#   secondary    the secondary's disk fails: it follows no more, and does again after replace-disk
#   unreadable   a block that cannot be read during a catch-up is named; a write mends it
# time limit: 600 s
. "$(dirname "$0")/lib.sh"
need jq nbdcopy nbdkit nbdfuse qemu-io nbd_ledger
if [ "$(id -u)" != 0 ] || [ ! -c /dev/fuse ]; then
	skip "$test_name" "needs root and /dev/fuse"
	exit 0
fi
nbdkit --filter=error null --help 2>/dev/null | grep error-pread >/dev/null || {
	skip "$test_name" "nbdkit has no error filter"
	exit 0
}
begin
seed_random
size_mib=16
blocks=$((size_mib * 256))

# ---- disks --------------------------------------------------------------------------------------------

unmount() { ! grep -q " $1 " /proc/mounts || umount -l "$1"; }

# NODE's disk as a file below $dir/NODE.disk, its content in NODE.raw; a second call replaces it.
new_disk() { # NODE
	local mount=$dir/$1.disk
	unmount "$mount"
	mkdir -p "$mount"
	rm -f "$dir/$1.raw" "$dir/$1.bad-read" "$dir/$1.bad-write"
	truncate -s ${size_mib}M "$dir/$1.raw"
	nbdfuse -C 4 "$mount/disk" --command nbdkit -s --exit-with-parent --filter=error file "$dir/$1.raw" \
		error-pread-rate=100% error-pread-file="$dir/$1.bad-read" \
		error-pwrite-rate=100% error-pwrite-file="$dir/$1.bad-write" \
		error-zero-rate=100% error-zero-file="$dir/$1.bad-write" \
		error-trim-rate=100% error-trim-file="$dir/$1.bad-write" >>"$dir/nbdkit.log" 2>&1 &
	helpers+=($!)
	at_end "unmount $mount"
	wait_for 10 "the disk of $1" test -f "$mount/disk"
}
bad() { # NODE read|write...
	local node=$1 what
	shift
	for what in "$@"; do : >"$dir/$node.bad-$what"; done
}
good() { rm -f "$dir/$1".bad-*; }

# ---- clients ------------------------------------------------------------------------------------------

ledger() {
	exec "$tools/nbd_ledger" write --socket "$dir/a.nbd" --log "$dir/log" --blocks $blocks \
		--seed "$(between 1 1000000)" >"$dir/ledger.log" 2>&1
}
start_writer() {
	helper_start ledger
	writer=$helper
	goes_on
}
written() { volume_get a .stats.writes; }
wrote() { [ "$(written)" -gt "$1" ]; }
# The writer gets answers, and no errors.
goes_on() {
	local before
	before=$(written)
	wait_for 20 "the writer going on" wrote $((before + 200))
	kill -0 "$writer" 2>/dev/null || die "the writer ended: $(tail -n 1 "$dir/ledger.log")"
}
end_writer() {
	kill -TERM -- "-$writer"
	wait "$writer" || die "$1: a request failed: $(tail -n 1 "$dir/ledger.log")"
	wait_for 10 "the writer gone" volume_is a '.clients == 0'
}
holds_all() { # IMAGE WHEN
	"$tools/nbd_ledger" check --image "$1" --log "$dir/log" --blocks $blocks >"$dir/check.out" 2>&1 ||
		die "$2: ${1##*/}: $(tail -n 1 "$dir/check.out")"
}
# What clients read at the primary is what was acknowledged.
read_back() { # WHEN
	timeout 240 nbdcopy --no-extents "$(uri a)" "$dir/read.back" 2>"$dir/nbdcopy.out" ||
		die "$1: reading: $(tail -n 1 "$dir/nbdcopy.out")"
	holds_all "$dir/read.back" "$1"
}
same() { # WHEN
	wait_state 60 "$1: in sync" a in-sync
	applied b
	cmp "$(content a)" "$(content b)" >"$dir/cmp.out" 2>&1 || die "$1: the disks differ: $(cat "$dir/cmp.out")"
	holds_all "$(content a)" "$1"
}
content() { if [ -f "$dir/$1.raw" ]; then echo "$dir/$1.raw"; else echo "$dir/$1.img"; fi; }

# A pair in sync; NODE's disk can fail.
pair_with_disk() { # NODE VOLUME-LINES
	rm -rf "$dir"/[ab].* "$dir/log"
	new_disk "$1"
	link='' pair_config $size_mib "$2"
	sed -i "s|^backing = .*/$1.img|backing = $dir/$1.disk/disk|" "$dir/$1.conf"
	start b
	start a
	wait_state 30 "the first sync" a in-sync
}
says() { # NODE WORDS
	off "$1" status >"$dir/status.out"
	grep -q -- "$2" "$dir/status.out" || die "status of $1 lacks '$2': $(cat "$dir/status.out")"
}

# ---- stories --------------------------------------------------------------------------------------------

is_diskless() { volume_is a '.disk == "diskless" and .at_peer and .disk_failure != null'; }

replace_disk() { # NODE
	off "$1" replace-disk v >"$dir/out" 2>&1 || die "replace-disk: $(cat "$dir/out")"
}
# Alone and diskless: nothing is answered.
waits_for_peer() {
	stop b
	start a
	is_diskless >/dev/null || die "started alone: $(off a status)"
	wait_for 10 "it waits for its peer" volume_is a .waits_for_peer
	timeout 2 nbdcopy --no-extents "$(uri a)" "$dir/read.back" 2>"$dir/nbdcopy.out"
	[ $? = 124 ] || die "answered without its content: $(cat "$dir/nbdcopy.out")"
	start b
}

diskless() { # PROTOCOL WHAT-FAILS NEW-DISK(yes|no)
	current=diskless_$1_${2}_$io
	pair_with_disk a $'on-io-error = detach\nprotocol = '"$1"
	start_writer
	bad a "$2"
	[ "$2" = write ] || nbdcopy --no-extents "$(uri a)" "$dir/read.back" 2>"$dir/nbdcopy.out" ||
		die "a read failed: $(cat "$dir/nbdcopy.out")"
	wait_for 20 "it is diskless" is_diskless
	says a DISKLESS
	says a "disk failed .*$2 at"
	goes_on
	end_writer "the disk failed"
	read_back "diskless"
	start_writer
	kill9 a
	wait "$writer"
	good a # it could be read again
	waits_for_peer
	wait_for 20 "with its peer again" volume_is a '.waits_for_peer | not'
	is_diskless >/dev/null || die "after a restart: $(off a status)"
	read_back "after kill -9"
	start_writer
	[ "$3" = no ] || new_disk a
	replace_disk a
	wait_for 60 "the disk is back" volume_is a '.disk == "uptodate" and (.at_peer | not) and .disk_failure == null'
	goes_on
	end_writer "replacing the disk"
	same "replaced"
	read_back "replaced"
	stop a
	stop b
	ok "$current"
}

# The new disk fails while it is filled; the next one is filled over a kill -9, with requests under way.
filling() {
	current=filling_$io
	pair_with_disk a $'on-io-error = detach\nhydrate-rate = 64K' # minutes
	start_writer
	bad a read write
	wait_for 20 "it is diskless" is_diskless
	kill9 a # and it starts with a disk that cannot even be read
	wait "$writer"
	start a
	is_diskless >/dev/null || die "started with a bad disk: $(off a status)"
	start_writer
	off a replace-disk v >"$dir/out" 2>&1 # refused, or it fails at once
	wait_for 20 "still diskless" is_diskless
	goes_on
	new_disk a
	replace_disk a
	volume_is a '.stats.missing_bytes > 0' >/dev/null || die "filled at once: $(off a status)"
	bad a write
	wait_for 20 "the new disk failed" is_diskless
	goes_on
	good a
	replace_disk a
	goes_on
	volume_is a '.stats.missing_bytes > 0' >/dev/null || die "filled at once: $(off a status)"
	kill9 a
	wait "$writer"
	start a
	volume_is a '.at_peer' >/dev/null || die "started while it was filled: $(off a status)"
	start_writer
	off a set v hydrate-rate=0 >"$dir/out" 2>&1 || die "set: $(cat "$dir/out")"
	wait_for 60 "the disk is back" volume_is a '.disk == "uptodate" and (.at_peer | not)'
	end_writer "filling"
	same "filled"
	stop a
	stop b
	ok "$current"
}

passed_on() {
	current=passed_on_$io
	pair_with_disk a 'on-io-error = error'
	start_writer
	bad a write
	wait "$writer" && die "the writer noticed nothing"
	grep -q 'failed: error 5' "$dir/ledger.log" || die "the writer: $(cat "$dir/ledger.log")"
	says a "disk error  .*write at .*Input/output error"
	volume_is a '.stats.io_errors > 0 and .role == "primary"' >/dev/null || die "$(off a status)"
	good a
	start_writer
	end_writer "the disk is good again"
	# What failed differs: the peer has it.
	volume_is a '.replication | .state == "streaming" and .out_of_sync_bytes > 0' >/dev/null || die "$(off a status)"
	off a disconnect v >"$dir/out" 2>&1 && off a connect v >"$dir/out" 2>&1 || die "$(cat "$dir/out")"
	same "the disk is good again"
	stop a
	stop b
	ok "$current"
}

secondary() { # read|write
	current=secondary_$io
	pair_with_disk b 'on-io-error = detach'
	start_writer
	bad b write
	wait_for 20 "the secondary says so" volume_is b '.disk == "failed" and .disk_failure != null'
	says b 'disk failed .*write at .*Input/output error'
	wait_for 20 "the primary tracks" volume_is a '.replication | .state != "streaming" and .out_of_sync_bytes > 0'
	goes_on
	off b promote v --force >"$dir/out" 2>&1 && die "a failed disk was promoted"
	stop b # started again with it: fails again as soon as it is written to
	bad b read
	start b
	wait_for 30 "the secondary says so after a restart" volume_is b '.disk == "failed" and .disk_failure != null'
	goes_on
	stop b
	good b
	start b # it is good again, nobody replaced it
	wait_state 30 "it follows again" a streaming
	bad b write
	wait_for 20 "the secondary's disk fails" volume_is b '.disk == "failed"'
	timeout 120 "$build/offsite" --socket "$dir/b.sock" replace-disk v >"$dir/out" 2>&1
	[ $? = 1 ] && grep -q 'the disk failed: .*write at .*Input/output error' "$dir/out" ||
		die "replace-disk with a disk that fails: $(cat "$dir/out")"
	volume_is b '.disk == "failed"' >/dev/null || die "$(off b status)"
	good b
	replace_disk b
	wait_state 30 "it follows again" a streaming
	volume_is b '.disk == "uptodate" and .disk_failure == null' >/dev/null || die "$(off b status)"
	goes_on
	bad b write # once more; a new disk this time
	wait_for 20 "the secondary says so again" volume_is b '.disk == "failed"'
	new_disk b
	replace_disk b
	wait_state 30 "it follows again" a streaming
	end_writer "the secondary's disk"
	same "replaced"
	stop a
	stop b
	ok "$current"
}

fill_last() { # PATTERN
	qemu-io -f raw -c "write -P $1 $((last * 4096)) 8192" "$(uri a)" >"$dir/qemu-io.out" 2>&1 &&
		! grep -q 'failed' "$dir/qemu-io.out" || die "writing: $(cat "$dir/qemu-io.out")"
}
# The last blocks of the file behind the disk are cut off: they cannot be read until they are written.
unreadable() {
	local last=$((blocks - 2))
	current=unreadable_$io
	pair_with_disk a 'on-io-error = detach'
	stop b
	start_writer
	end_writer "alone"
	fill_last 0x5a
	truncate -s $((last * 4096)) "$dir/a.raw"
	start b
	wait_for 30 "the blocks are named" volume_is a ".replication.unreadable == {offset: $((last * 4096)), bytes: 8192}"
	says a "cannot read 8192 bytes at $((last * 4096))"
	streaming a >/dev/null && die "streams without having sent all"
	volume_is b '.disk == "uptodate"' >/dev/null && die "the secondary is up to date"
	fill_last 0xa5
	wait_state 60 "mended by a write" a in-sync
	volume_is a '.replication.unreadable == null' >/dev/null || die "$(off a status)"
	cmp "$dir/a.raw" "$dir/b.img" >"$dir/cmp.out" 2>&1 || die "the disks differ: $(cat "$dir/cmp.out")"
	[ "$(tail -c 8192 "$dir/b.img" | tr -d '\245' | wc -c)" = 0 ] || die "what mended it is not there"
	stop a
	stop b
	ok "$current"
}

for io in $(backends); do
	part diskless C write yes
	part diskless A read no
	part filling
	part passed_on
	part secondary
	part unreadable
done
