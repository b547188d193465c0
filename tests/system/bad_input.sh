#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Bad input from everywhere: each gets a clear line, hurts nobody else, and loses nothing: random
# bytes to all sockets, a second daemon on the same volume, damaged metadata, a damaged store, a full
# disk under the store and under the state directory, a backing file that shrank, a bad config.
# (Wrong keys and certificates: tls.sh.)
# time limit: 450 s
. "$(dirname "$0")/lib.sh"
need jq nbdcopy nbdinfo python3
begin
seed_random
size=32
head -c ${size}M /dev/urandom >"$dir/want"
head -c ${size}M /dev/urandom >"$dir/other"

fresh() { # lines for the volume, for the node
	rm -rf "$dir"/[ab].state "$dir"/[ab].img "$dir"/[ab].log "$dir"/[ab].conf
	pair_config $size "${1:-}" "${2:-}"
}
alone() { sed -i '/^peer = /d' "$dir/a.conf"; }
put() { nbdcopy "$1" "$(uri a)" 2>"$dir/nbdcopy.out" || die "nbdcopy: $(cat "$dir/nbdcopy.out")"; }
holds() { # FILE: the export at a gives exactly this
	rm -f "$dir/got"
	nbdcopy "$(uri a)" "$dir/got" 2>"$dir/nbdcopy.out" || die "reading: $(cat "$dir/nbdcopy.out")"
	cmp "$1" "$dir/got" >"$dir/cmp.out" 2>&1 || die "content: $(cat "$dir/cmp.out")"
}
# The log says so, in at most $3 (3) lines.
says() { # NODE PATTERN [LINES]
	local count
	wait_for 10 "the log of $1 saying '$2'" grep -qiE "$2" "$dir/$1.log"
	count=$(grep -ciE "$2" "$dir/$1.log")
	[ "$count" -le "${3:-3}" ] || die "the log repeats '$2' $count times"
	note "$current: $(grep -m1 -iE "$2" "$dir/$1.log")"
}
resident_kib() { awk '/^VmRSS/ { print $2 }' "/proc/${pid_of[$1]}/status"; }

random_to_sockets() {
	current=random_bytes_$io
	local nbd_port before after
	fresh
	nbd_port=$(free_port)
	sed -i "s|^nbd-listen = .*|& 127.0.0.1:$nbd_port|" "$dir/a.conf"
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	put "$dir/want"
	before=$(resident_kib a)
	SEED=$seed python3 - "$dir/a.nbd" "$nbd_port" "$dir/a.sock" "$dir/b.sock" "$port_b" <<-'END' || die "a socket hangs"
		import os, random, socket, struct, sys
		random.seed(int(os.environ["SEED"]))
		greeting = struct.pack(">I", 3)
		def option(number, data=b"", length=None):
		    return b"IHAVEOPT" + struct.pack(">II", number, len(data) if length is None else length) + data
		go = option(7, struct.pack(">I", 1) + b"v" + struct.pack(">H", 0))
		beginnings = {
		    "nbd": [b"", greeting, greeting + option(3, length=0xffffffff), greeting + option(7, b"x" * 5000),
		            greeting + go, greeting + go + struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, 0xffffffff),
		            greeting + go + struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 1 << 63, 1 << 20)],
		    "http": [b"", b"GET / HTTP/1.1\r\n", b"POST /v1/volumes/v/restore HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n{"],
		    "peer": [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"],
		}
		targets = [("nbd", sys.argv[1]), ("nbd", int(sys.argv[2])), ("http", sys.argv[3]),
		           ("http", sys.argv[4]), ("peer", int(sys.argv[5]))]
		for attempt in range(60):
		    for kind, where in targets:
		        s = socket.socket(socket.AF_INET if isinstance(where, int) else socket.AF_UNIX)
		        s.settimeout(60)
		        s.connect(("127.0.0.1", where) if isinstance(where, int) else where)
		        try:
		            s.sendall(random.choice(beginnings[kind]) + random.randbytes(random.randrange(1, 70000)))
		            s.shutdown(socket.SHUT_WR)
		            while s.recv(65536):
		                pass
		        except socket.timeout:
		            print("no end of the connection to", where)
		            sys.exit(1)
		        except OSError:
		            pass
		        s.close()
	END
	alive a && alive b || die "a daemon is gone"
	after=$(resident_kib a)
	[ $((after - before)) -lt 65536 ] || die "grew from $before to $after KiB"
	holds "$dir/want"
	wait_state 30 "in sync still" a in-sync
	cmp "$dir/want" "$dir/b.img" || die "the peer's disk"
	stop a
	stop b
	ok "$current"
}

second_daemon() {
	current=second_daemon_$io
	fresh
	alone
	start a
	put "$dir/want"
	# The same state directory; then another one, but the same backing.
	sed "s|^control = .*|control = $dir/x.sock|; s|^nbd-listen = .*|nbd-listen = unix:$dir/x.nbd|" \
		"$dir/a.conf" >"$dir/x.conf"
	timeout 60 "$build/offsited" --config "$dir/x.conf" --io "$io" >"$dir/x.log" 2>&1
	[ $? -eq 1 ] || die "a second daemon runs in the same state directory"
	note "$current: $(tail -n 1 "$dir/x.log")"
	sed -i "s|^state-dir = .*|state-dir = $dir/x.state|" "$dir/x.conf"
	start x
	says x 'in use|another'
	volume_is x '.open == false' >/dev/null || die "two daemons have one backing open"
	nbdinfo "$(uri x)" >/dev/null 2>&1 && die "it is served twice"
	stop x
	holds "$dir/want"
	stop a
	rm -rf "$dir"/x.*
	ok "$current"
}

# Each file of the volume's state with damage in it: refused by one clear line, or seen through
# (what it said is then taken as dirty); never other content, and with the old file all is well.
damaged_metadata() {
	current=damaged_metadata_$io
	local file how said refused=0 mended=0
	fresh
	alone
	start a
	put "$dir/want"
	stop a
	cp -a "$dir/a.state" "$dir/state.good"
	while read -r file; do
		for how in flip zero cut wreck; do
			rm -rf "$dir/a.state"
			cp -a "$dir/state.good" "$dir/a.state"
			case $how in
			flip) python3 - "$dir/a.state/$file" <<-'END' ;;
				import random, sys
				f = open(sys.argv[1], "r+b"); data = bytearray(f.read())
				for _ in range(8):
				    if data: data[random.randrange(min(len(data), 8192))] ^= 1 << random.randrange(8)
				f.seek(0); f.write(data)
			END
			zero) dd if=/dev/zero of="$dir/a.state/$file" bs=4096 count=2 conv=notrunc status=none ;;
			wreck)
				dd if=/dev/urandom of="$dir/a.state/$file" bs=4096 conv=notrunc status=none \
					count=$((($(stat -c %s "$dir/a.state/$file") + 4095) / 4096))
				;;
			cut) truncate -s $(($(stat -c %s "$dir/a.state/$file") / 2)) "$dir/a.state/$file" ;;
			esac
			: >"$dir/a.log"
			start a
			if volume_is a .open >/dev/null; then
				mended=$((mended + 1))
				note "$file, $how: $(grep -m1 -E 'warning|error' "$dir/a.log" | cut -c26-)"
				holds "$dir/want"
			else
				said=$(volume_get a .error)
				[ "$(wc -l <<<"$said")" = 1 ] && [ ${#said} -gt 20 ] || die "$file, $how: it says '$said'"
				refused=$((refused + 1))
				note "$file, $how: $said"
			fi
			stop a
			cmp "$dir/want" "$dir/a.img" || die "$file, $how: the backing was changed"
		done
	done < <(cd "$dir/state.good" && find . -type f -size +0 -path './*/*' | sort)
	[ $((refused + mended)) -gt 0 ] || die "no metadata found"
	rm -rf "$dir/a.state"
	mv "$dir/state.good" "$dir/a.state"
	start a
	holds "$dir/want"
	stop a
	note "$refused refused, $mended mended"
	ok "$current"
}

damaged_store() {
	current=damaged_store_$io
	local object status
	mkdir -p "$dir/store"
	rm -rf "$dir/store"/*
	fresh "store = file:$dir/store"
	alone
	start a
	put "$dir/want"
	off a snapshot create v >/dev/null 2>&1 || die "snapshot"
	stop a
	# The largest object is a pack.
	object=$(find "$dir/store" -type f -printf '%s %p\n' | sort -rn | head -n 1 | cut -d' ' -f2-)
	cp "$object" "$dir/object.good"
	for how in cut flip gone; do
		case $how in
		cut) truncate -s -100000 "$object" ;;
		flip) printf 'XXXX' | dd of="$object" bs=1 seek=20000 conv=notrunc status=none ;;
		gone) rm -f "$object" ;;
		esac
		"$build/offsite" snapshot verify --store "file:$dir/store" >"$dir/verify.out" 2>&1
		status=$?
		[ $status -eq 5 ] || die "$how: verify ends with $status: $(tail -n 1 "$dir/verify.out")"
		grep -q "$(basename "$object" | cut -c1-12)" "$dir/verify.out" || die "$how: verify does not name the object"
		rm -f "$dir"/back*
		"$build/offsite" restore --store "file:$dir/store" --to "$dir/back.img" >"$dir/restore.out" 2>&1
		status=$?
		[ $status -eq 5 ] || [ $status -eq 1 ] || die "$how: restore ends with $status"
		[ ! -e "$dir/back.img" ] || die "$how: a damaged snapshot was restored"
		note "$how: $(tail -n 1 "$dir/restore.out")"
		rm -f "$object"
		cp "$dir/object.good" "$object"
	done
	"$build/offsite" snapshot verify --store "file:$dir/store" >"$dir/verify.out" 2>&1 || die "verify of the mended store"
	# A manifest: the smallest object.
	object=$(find "$dir/store" -type f -size +0 -printf '%s %p\n' | sort -n | head -n 1 | cut -d' ' -f2-)
	printf 'XX' | dd of="$object" bs=1 seek=30 conv=notrunc status=none
	"$build/offsite" restore --store "file:$dir/store" --to "$dir/back.img" >"$dir/restore.out" 2>&1 &&
		die "restored from a damaged $(basename "$object")"
	[ ! -e "$dir/back.img" ] || die "a damaged snapshot was restored"
	note "$(basename "$object"): $(tail -n 1 "$dir/restore.out")"
	ok "$current"
}

small_tmpfs() { # NAME MIB
	mkdir -p "$dir/$1"
	mount -t tmpfs -o size="$2"m none "$dir/$1" 2>/dev/null || return 1
	at_end "umount -l $dir/$1 2>/dev/null"
}

full_store() {
	current=full_store_$io
	umount "$dir/store" 2>/dev/null
	rm -rf "$dir/store"
	small_tmpfs store 8 || {
		skip "$current" "no tmpfs can be mounted"
		return
	}
	fresh "store = file:$dir/store"
	alone
	start a
	put "$dir/want"
	off a snapshot create v >"$dir/snapshot.out" 2>&1 && die "32 MiB of noise fit into 8 MiB"
	note "$current: $(tail -n 1 "$dir/snapshot.out")"
	grep -qi 'no space' "$dir/snapshot.out" || die "it does not say why: $(tail -n 1 "$dir/snapshot.out")"
	[ "$(off a snapshot list v --json | jq '.snapshots | length')" = 0 ] || die "a snapshot is listed"
	put "$dir/other" # writing goes on
	holds "$dir/other"
	mount -o remount,size=200m "$dir/store" || die "remount"
	off a snapshot create v >"$dir/snapshot.out" 2>&1 || die "with room: $(tail -n 1 "$dir/snapshot.out")"
	off a snapshot verify v >/dev/null 2>&1 || die "verify"
	stop a
	rm -f "$dir/back.img"
	"$build/offsite" restore --store "file:$dir/store" --to "$dir/back.img" >/dev/null 2>&1 || die "restore"
	cmp "$dir/back.img" "$dir/other" || die "the snapshot lacks something"
	start a
	dd if=/dev/zero of="$dir/store/filler" bs=64k 2>/dev/null
	dd if=/dev/zero of="$dir/store/filler2" bs=1 2>/dev/null
	off a snapshot delete v latest >"$dir/snapshot.out" 2>&1 ||
		die "no room is made where there is none: $(tail -n 1 "$dir/snapshot.out")"
	[ -z "$(find "$dir/store" -path '*/packs/*' -type f)" ] || die "packs are left"
	stop a
	umount "$dir/store"
	ok "$current"
}

full_state() {
	current=full_state_directory_$io
	fresh
	small_tmpfs a.state 64 && small_tmpfs b.state 64 || {
		skip "$current" "no tmpfs can be mounted"
		return
	}
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	dd if=/dev/zero of="$dir/a.state/filler" bs=1M status=none 2>/dev/null
	dd if=/dev/zero of="$dir/b.state/filler" bs=1M status=none 2>/dev/null
	# Writing, tracking, and coming back from kill -9 need no more space.
	put "$dir/want"
	holds "$dir/want"
	kill9 b
	put "$dir/other"
	kill9 a
	start a
	holds "$dir/other"
	# The peer's catch-up has nowhere to be staged: it waits or does without, and says so.
	start b
	pause_ms 1500
	alive a && alive b || die "a daemon is gone"
	holds "$dir/other"
	[ "$(wc -l <"$dir/b.log")" -lt 400 ] && [ "$(wc -l <"$dir/a.log")" -lt 400 ] || die "the log is flooded"
	note "b: $(grep -iE 'space|staging' "$dir/b.log" | head -n 1)"
	rm -f "$dir/a.state/filler" "$dir/b.state/filler"
	wait_state 60 "in sync after space came back" a in-sync
	cmp "$dir/other" "$dir/b.img" || die "the peer's disk"
	cmp "$dir/other" "$dir/a.img" || die "the disk"
	stop a
	stop b
	umount "$dir/a.state" "$dir/b.state"
	ok "$current"
}

shrunk_backing() {
	current=shrunk_backing_$io
	fresh
	echo 'on-io-error = error' >>"$dir/a.conf" # else the peer answers
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	put "$dir/want"
	wait_state 30 "in sync" a in-sync
	# While it runs.
	truncate -s $((size / 2))M "$dir/a.img"
	nbdcopy --no-extents "$(uri a)" null: >/dev/null 2>&1 && die "reads beyond the end of the file succeed"
	alive a || die "the daemon is gone"
	kill9 a
	# At the next start.
	: >"$dir/a.log"
	start a
	says a 'small|shr[ua]nk|size'
	nbdinfo "$(uri a)" >/dev/null 2>&1 && die "a volume with half a disk is served"
	cmp "$dir/want" "$dir/b.img" || die "the peer's disk has suffered"
	# The way out: a whole disk and the peer's content.
	stop a
	truncate -s ${size}M "$dir/a.img"
	start a
	if ! { volume_is a '.disk == "uptodate"' && off a wait v --timeout 0; } >/dev/null 2>&1; then
		off a restore v --from-peer >"$dir/restore.log" 2>&1 || die "$(tail -n 1 "$dir/restore.log")"
	fi
	wait_state 30 "in sync again" a in-sync
	cmp "$dir/a.img" "$dir/b.img" || die "the disks differ"
	stop a
	stop b
	ok "$current"
}

bad_config() {
	current=bad_config
	fresh
	sed -i 's/^size = .*/sice = 1G/' "$dir/a.conf"
	"$build/offsite" config check "$dir/a.conf" >"$dir/check.out" 2>&1
	[ $? -eq 2 ] || die "exit code of config check"
	grep -q "a.conf:[0-9]*: .volume v. unknown option 'sice' (nearest: size)" "$dir/check.out" ||
		die "$(cat "$dir/check.out")"
	timeout 60 "$build/offsited" --config "$dir/a.conf" >"$dir/check.out" 2>&1
	[ $? -eq 2 ] || die "exit code of the daemon"
	ok "$current"
}

part bad_config
for io in $(backends); do
	for one in random_to_sockets second_daemon damaged_metadata damaged_store full_store full_state \
		shrunk_backing; do
		if [[ $one == *${PART:-}* ]]; then
			part $one
		fi
	done
done
