#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A volume is made bigger while it is written to: both backings grow, clients that come see the new size,
# those that were there keep theirs; nothing is sent for the new part; a snapshot before and one after are
# each restored with their size; without the peer, which grows when it comes back; refusals.
# time limit: 200 s
. "$(dirname "$0")/lib.sh"
need qemu-io nbdinfo jq
begin
mib=64

size_of() { nbdinfo --size "$(uri a)"; }
expect_sizes() { # BYTES
	[ "$(size_of)" = "$1" ] || die "the export has $(size_of) bytes, not $1"
	[ "$(volume_get a .size_bytes)" = "$1" ] || die "a: $(volume_get a .size_bytes) bytes"
	[ "$(volume_get b .size_bytes)" = "$1" ] || die "b: $(volume_get b .size_bytes) bytes"
	[ "$(stat -c %s "$dir/a.img")" = "$1" ] || die "a.img: $(stat -c %s "$dir/a.img") bytes"
	[ "$(stat -c %s "$dir/b.img")" = "$1" ] || die "b.img: $(stat -c %s "$dir/b.img") bytes"
}
write() { # PATTERN OFFSET LENGTH
	qemu-io -f raw -c "write -P $1 $2 $3" -c flush "$(uri a)" >"$dir/writer.log" 2>&1 &&
		! grep -q failed "$dir/writer.log" || die "write: $(cat "$dir/writer.log")"
}
holds() { # FILE PATTERN OFFSET LENGTH
	qemu-io -r --image-opts "driver=raw,file.driver=file,file.filename=$1,file.locking=off" -c "read -P $2 $3 $4" >"$dir/read.log" 2>&1 &&
		! grep -Eq "failed|error" "$dir/read.log" || die "$1 at $3 is not $2: $(cat "$dir/read.log")"
}
same_disks() {
	wait_state 30 "both in sync" a in-sync
	cmp "$dir/a.img" "$dir/b.img" >"$dir/cmp.out" 2>&1 || die "the disks differ: $(cat "$dir/cmp.out")"
}
refused() { # WHAT-IT-SAYS CODE ARGUMENTS...
	local says=$1 code=$2 status=0
	shift 2
	off a resize "$@" >"$dir/refused.out" 2>&1 || status=$?
	[ $status = "$code" ] || die "resize $*: exit code $status: $(cat "$dir/refused.out")"
	grep -q -- "$says" "$dir/refused.out" || die "resize $*: $(cat "$dir/refused.out")"
	[ "$(wc -l <"$dir/refused.out")" = 1 ] || die "more than a line: $(cat "$dir/refused.out")"
}

both_grow_while_it_is_written_to() {
	local sent old
	write 17 0 ${mib}M
	off a snapshot create v >/dev/null || die "snapshot"
	same_disks
	sent=$(volume_get a .replication.sent_bytes)
	# A client from before, that goes on for a while with the size it knows.
	helper_start stdbuf -oL qemu-io -f raw -c length -c "sleep 1500" -c "write -P 18 4M 4M" -c flush -c length "$(uri a)" \
		>"$dir/old.out" 2>&1
	old=$helper
	wait_for 10 "the client" test -s "$dir/old.out"
	off a resize v 256M >"$dir/resize.out" 2>&1 || die "resize: $(cat "$dir/resize.out")"
	grep -q "268435456 bytes" "$dir/resize.out" || die "it says: $(cat "$dir/resize.out")"
	expect_sizes 268435456
	helper_end "$old" || die "the client from before: $(cat "$dir/old.out")"
	! grep -q failed "$dir/old.out" || die "the client from before: $(cat "$dir/old.out")"
	same_disks
	[ $(($(volume_get a .replication.sent_bytes) - sent)) -lt $((16 << 20)) ] || die "the new part was sent"
	volume_is a '.replication.connects == 1' >/dev/null || die "the connection was lost"
	holds "$dir/b.img" 0 ${mib}M 100M
	write 19 200M 24M
	write 20 63M 2M
	same_disks
	holds "$dir/b.img" 19 200M 24M
}

snapshots_have_the_size_of_their_time() {
	local id
	off a snapshot create v >/dev/null || die "snapshot"
	id=$(off a snapshot list v --json | jq -r '.snapshots | min_by(.created).id')
	"$build/offsite" restore --store "file:$dir/store" --snapshot "$id" --to "$dir/old.img" >"$dir/r.out" 2>&1 ||
		die "restore: $(cat "$dir/r.out")"
	[ "$(stat -c %s "$dir/old.img")" = $((mib << 20)) ] || die "the old one has $(stat -c %s "$dir/old.img") bytes"
	holds "$dir/old.img" 17 0 ${mib}M
	"$build/offsite" restore --store "file:$dir/store" --to "$dir/new.img" >"$dir/r.out" 2>&1 ||
		die "restore: $(cat "$dir/r.out")"
	cmp "$dir/new.img" "$dir/a.img" || die "the new one is not the volume"
}

refusals_are_one_line() {
	refused "never made smaller" 2 v 64M
	refused "SIZE 1234567" 2 v 1234567
	stop b
	wait_for 20 "b being away" volume_is a '.replication.state != "streaming"'
	refused "--force" 4 v 512M
}

a_peer_that_was_away_grows_when_it_comes_back() {
	off a resize v 512M --force >"$dir/resize.out" 2>&1 || die "resize: $(cat "$dir/resize.out")"
	write 21 480M 8M
	start b
	same_disks
	expect_sizes 536870912
	kill9 a
	kill9 b
	start b
	start a
	same_disks
	expect_sizes 536870912
	holds "$dir/b.img" 21 480M 8M
}

run_backend() {
	current=start_$io
	rm -rf "$dir"/[ab].* "$dir"/*.img "$dir/store"
	pair_config $mib
	echo "store = file:$dir/store" >>"$dir/a.conf"
	mkdir "$dir/store"
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	for current in both_grow_while_it_is_written_to snapshots_have_the_size_of_their_time refusals_are_one_line \
		a_peer_that_was_away_grows_when_it_comes_back; do
		$current
		ok "${current}_$io"
	done
	stop a
	stop b
}

for io in $(backends); do
	part run_backend
done
finish
