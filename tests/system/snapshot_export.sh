#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Snapshots opened without being restored (VOLUME@SNAPSHOT), and what changed between them: read with nbdcopy,
# qemu-img and libnbd, copied incrementally by the metadata contexts, listed by `snapshot diff`; what damage,
# a killed daemon, deletion and a missing store do to clients.
# time limit: 180 s
. "$(dirname "$0")/lib.sh"
need jq nbdcopy nbdinfo qemu-img qemu-io
begin
for python in python3 /usr/bin/python3; do "$python" -c 'import nbd' 2>/dev/null && break; done
"$python" -c 'import nbd' 2>/dev/null || {
	skip all "no libnbd for python"
	exit 0
}
backup() { "$python" "$TOP/examples/nbd-incremental-backup.py" "$@"; }

a_config() { # SIZE LINES...
	config a <<-END
		[node]
		name = a
		state-dir = $dir/a.state
		control = $dir/a.sock
		nbd-listen = unix:$dir/a.nbd
		[volume v]
		backing = $dir/a.img
		size = $1
		role = primary
		store = file:$dir/store
	END
}
write() { qemu-io -f raw "${@/#/-c}" "$(uri a)" >"$dir/out" 2>&1 || die "cannot write: $(cat "$dir/out")"; }
snap() { # NAME: its id in $ids, the content beside it
	off a snapshot create v --label "$1" >"$dir/out" 2>&1 || die "snapshot: $(cat "$dir/out")"
	ids[$1]=$(off a snapshot list v --json | jq -r '.snapshots[-1].id')
	cp --sparse=always "$dir/a.img" "$dir/$1.want"
}
is_snapshot() { # EXPORT NAME
	rm -f "$dir/copy"
	nbdcopy "$(uri a "$1")" "$dir/copy" 2>"$dir/out" || die "$1: $(cat "$dir/out")"
	cmp "$dir/copy" "$dir/$2.want" || die "$1 is not $2"
}
refused() { # WORDS EXPORT
	LIBNBD_DEBUG=1 nbdinfo "$(uri a "$2")" >"$dir/out" 2>&1 && die "$2: was opened"
	grep -q "server error message: .*$1" "$dir/out" ||
		die "$2: says $(grep 'server error message' "$dir/out")"
}
fails() { ! nbdcopy "$(uri a "$1")" null: 2>/dev/null; }
declare -A ids

prepare() {
	a_config 64M
	start a
	refused "no snapshot of this volume" v@latest
	write 'write -P 1 0 3M' 'write -P 2 25M 64k' 'write -P 3 50M 1M'
	snap one
	write 'write -z 1M 1M' 'write -P 4 25M 4k' 'write -P 5 63M 1M' 'write -P 3 50M 64k'
	snap two
	write 'write -P 6 40M 70000'
}

both_listed() {
	[ "$(nbdinfo --list --json "nbd+unix://?socket=$dir/a.nbd" | jq -r '.exports | length')" = 2 ]
}
reads() {
	local map
	is_snapshot "v@${ids[one]}" one
	is_snapshot "v@${ids[two]}" two
	is_snapshot v@latest two
	is_snapshot "v@${ids[one]:0:12}" one
	qemu-img convert -f raw -O raw "$(uri a "v@${ids[one]}")" "$dir/copy" || die "qemu-img"
	cmp "$dir/copy" "$dir/one.want" || die "qemu-img reads something else"
	ok reads_what_was
	refused "none whose id begins so" v@ffffffffff0123
	refused "no such export" v@
	refused "no such export" w@latest
	qemu-io -f raw -c 'write -P 9 0 4k' "$(uri a v@latest)" >"$dir/out" 2>&1 && die "was written"
	nbdinfo --json "$(uri a "v@${ids[two]}")" >"$dir/info" || die "nbdinfo"
	jq -e ".exports[0] | .is_read_only and .can_multi_conn and .\"export-name\" == \"v@${ids[two]}\"" \
		"$dir/info" >/dev/null || die "not as it should be: $(cat "$dir/info")"
	wait_for 10 "the list of both" both_listed # it does not wait for a store for more than two seconds
	ok names_and_flags
	map=$(nbdinfo --map --json "$(uri a "v@${ids[two]}")" | jq -c 'map([.offset, .length, .type])')
	[ "$map" = "[[0,1048576,0],[1048576,1048576,3],[2097152,1048576,0],[3145728,23068672,3],[26214400,65536,0],[26279936,26148864,3],[52428800,1048576,0],[53477376,12582912,3],[66060288,1048576,0]]" ] ||
		die "allocation: $map"
	ok allocation
}

changes() {
	local changed='[[1048576,1048576,true],[26214400,65536,false],[66060288,1048576,false]]' name
	for name in "v ${ids[one]} latest" "v ${ids[one]} ${ids[two]:0:10}"; do
		# shellcheck disable=SC2086
		off a snapshot diff $name --json | jq -e ".extents | map([.offset,.length,.zero]) == $changed" \
			>/dev/null || die "diff $name"
	done
	"$build/offsite" snapshot diff --store "file:$dir/store" v "${ids[one]}" latest --json |
		jq -e ".changed_bytes == 2162688 and .zero_bytes == 1048576" >/dev/null || die "diff of the store"
	off a snapshot diff v "${ids[one]}" >"$dir/out" || die "diff until now"
	grep -q '41943040 *131072 *data' "$dir/out" && grep -q '2.2 MiB changed in 4 extents' "$dir/out" ||
		die "until now: $(cat "$dir/out")"
	off a snapshot diff v latest latest | found '^0 B changed' || die "differs from itself"
	ok diff
}

increments() {
	local context
	for context in "offsite:changed-since=${ids[one]}" "qemu:dirty-bitmap:${ids[one]}" \
		"offsite:changed-since=${ids[one]:0:12}"; do
		cp "$dir/one.want" "$dir/copy"
		backup "$(uri a v@latest)" "$context" "$dir/copy" >"$dir/out" 2>&1 || die "$(cat "$dir/out")"
		cmp "$dir/copy" "$dir/two.want" || die "$context: something else"
		cp "$dir/one.want" "$dir/copy"
		backup "$(uri a v)" "$context" "$dir/copy" >"$dir/out" 2>&1 || die "$(cat "$dir/out")"
		cmp "$dir/copy" "$dir/a.img" || die "$context until now: something else"
	done
	grep -q "^1245184 bytes copied, 1048576 zeroed" "$dir/out" || die "copied: $(cat "$dir/out")"
	# Back, too; and by the program that knows dirty bitmaps.
	cp "$dir/two.want" "$dir/copy"
	backup "$(uri a "v@${ids[one]}")" "offsite:changed-since=latest" "$dir/copy" >"$dir/out" 2>&1 ||
		die "$(cat "$dir/out")"
	cmp "$dir/copy" "$dir/one.want" || die "back: something else"
	nbdinfo --map="qemu:dirty-bitmap:${ids[one]}" "$(uri a v@latest)" >"$dir/out" || die "nbdinfo --map"
	grep -q '26214400 *65536 *1 *dirty' "$dir/out" || die "nbdinfo: $(cat "$dir/out")"
	qemu-img map --output=json --image-opts "driver=nbd,server.type=unix,server.path=$dir/a.nbd,export=v@latest,x-dirty-bitmap=qemu:dirty-bitmap:${ids[one]}" |
		jq -e 'map(select(.data | not) | [.start, .length]) == [[1048576,1048576],[26214400,65536],[66060288,1048576]]' >/dev/null ||
		die "qemu-img map"
	nbdinfo --map="offsite:changed-since=ffff" "$(uri a v@latest)" >"$dir/out" 2>&1 && die "of nothing"
	ok incremental_backup
	off a resize v 80M >"$dir/out" 2>&1 || die "$(cat "$dir/out")"
	write 'write -P 7 70M 64k'
	snap three
	cp "$dir/two.want" "$dir/copy"
	backup "$(uri a v@latest)" "offsite:changed-since=${ids[two]}" "$dir/copy" >"$dir/out" 2>&1 ||
		die "$(cat "$dir/out")"
	cmp "$dir/copy" "$dir/three.want" || die "grown: something else"
	is_snapshot "v@${ids[two]}" two
	ok grown
}

# A client that keeps it open until it is told: OPENER's commands go to its standard input.
open_it() { # EXPORT
	coproc OPENER { exec "$python" -c "
import nbd, sys
h = nbd.NBD(); h.connect_uri('$(uri a "$1")'); print('open', flush=True)
for line in sys.stdin:
    try: h.pread(65536, int(line)); print('read', flush=True)
    except nbd.Error as e: print(e.errno, flush=True)" 2>/dev/null; }
	opener_pid=$OPENER_PID
	at_end "kill -KILL $opener_pid 2>/dev/null"
	opener_says open
}
opener_says() {
	local line=
	read -r -t 60 -u "${OPENER[0]}" line
	[ "$line" = "$1" ] || die "the client says '$line', not '$1'"
}
opener_reads() {
	echo "$1" >&"${OPENER[1]}"
	opener_says "$2"
}
close_it() {
	eval "exec ${OPENER[1]}>&-"
	wait "$opener_pid" 2>/dev/null
}

deletion() {
	open_it "v@${ids[one]}"
	volume_is a ".exports | any(.snapshot == \"${ids[one]}\" and .clients == 1)" >/dev/null ||
		die "not in the status: $(volume_get a .exports)"
	off a status | found "@${ids[one]:0:12} as of .*clients:1" || die "status: $(off a status)"
	off a snapshot delete v "${ids[one]}" >"$dir/out" 2>&1 && die "was deleted"
	grep -q "open as an export" "$dir/out" || die "says $(cat "$dir/out")"
	opener_reads 0 read
	close_it
	# Nobody has it open: nothing is in the way, though it is kept ready for a little.
	gone() { off a snapshot delete v "${ids[one]}" >"$dir/out" 2>&1; }
	wait_for 5 "deletion" gone
	refused "none whose id begins so" "v@${ids[one]}"
	is_snapshot "v@${ids[two]}" two
	ok what_is_open_is_not_deleted
}

# One byte of a pack: reads of that chunk fail, others do not; the log says it once.
damage() {
	local pack
	write 'write -P 8 60M 64k'
	snap four
	kill9 a
	start a
	pack=$(find "$dir/store" -path '*/packs/*' -type f | sort | tail -n 1)
	cp "$pack" "$dir/pack"
	printf '\xee' | dd of="$pack" bs=1 seek=134 conv=notrunc status=none
	open_it v@latest
	opener_reads $((60 << 20)) EIO
	opener_reads $((60 << 20)) EIO
	opener_reads 0 read
	[ "$(grep -c 'ERROR\|error: export v@' "$dir/a.log")" = 1 ] || die "not one line: $(grep error: "$dir/a.log")"
	grep 'error: export v@' "$dir/a.log" | found "/packs/" || die "the object is not named"
	rm "$pack"
	opener_reads $((60 << 20)) EIO
	opener_reads $((25 << 20)) read
	cp "$dir/pack" "$pack"
	opener_reads $((60 << 20)) read
	close_it
	is_snapshot v@latest four
	ok damage_fails_what_it_hits
}

without_the_store() {
	stop a # nothing is in its memory
	start a
	open_it v@latest
	opener_reads 0 read
	mkdir "$dir/away"
	mv "$dir"/store/*-* "$dir"/store/[0-9a-f]* "$dir/away/" 2>/dev/null
	opener_reads $((50 << 20)) EIO
	nbdcopy "$(uri a v)" "$dir/copy" || die "the volume itself suffers"
	fails "v@${ids[two]}" || die "opened without a store"
	nbdinfo "$(uri a v)" >"$dir/out" 2>&1 || die "the volume is not shown: $(cat "$dir/out")"
	mv "$dir"/away/* "$dir/store/"
	opener_reads $((50 << 20)) read
	ok without_the_store
	# The daemon goes with clients in the middle, and its next one serves them.
	kill9 a
	close_it
	start a
	is_snapshot v@latest four
	open_it v@latest
	stop a || die "does not stop"
	close_it
	ok stopped_under_clients
}

# 1 TiB, data all over: opened, and the first byte read, at once.
large() {
	local before after i
	rm -rf "$dir"/a.* "$dir/store"
	a_config 1T
	start a
	for ((i = 0; i < 64; i++)); do echo "write -P $i $((i * 16))G 64k"; done |
		qemu-io -f raw "$(uri a)" >"$dir/out" 2>&1 || die "cannot write"
	snap large
	stop a # nothing is in its memory
	start a
	before=$(processor_ms a)
	"$python" -c "
import nbd
h = nbd.NBD(); h.connect_uri('$(uri a v@latest)')
assert h.pread(65536, 1023 << 30) == bytes(65536) and h.pread(4096, 63 * (16 << 30)) == bytes([63]) * 4096" ||
		die "read something else"
	after=$(processor_ms a)
	note "opened, and first reads of 1 TiB: $((after - before)) ms of the processor"
	[ $((after - before)) -lt 1000 ] || die "took $((after - before)) ms of the processor"
	write 'write -P 99 512G 64k'
	before=$(processor_ms a)
	off a snapshot diff v latest --json | jq -e '.changed_bytes == 65536' >/dev/null || die "diff"
	backup_map=$(nbdinfo --map="offsite:changed-since=latest" --json "$(uri a v)" | jq -c 'map(select(.type != 0) | [.offset, .length])')
	[ "$backup_map" = "[[549755813888,65536]]" ] || die "map: $backup_map"
	after=$(processor_ms a)
	note "what changed in 1 TiB, twice: $((after - before)) ms of the processor"
	stop a
	ok large
}

prepare
reads
changes
increments
deletion
damage
without_the_store
large
