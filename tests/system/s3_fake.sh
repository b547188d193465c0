#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What radosgw does not have, of a fake service: archives that packs have to be brought back from; lists that
# are late; how many requests a snapshot costs.
# time limit: 300 s
. "$(dirname "$0")/lib.sh"
need python3 qemu-io curl
begin
export AWS_ACCESS_KEY_ID=AKIAFAKE AWS_SECRET_ACCESS_KEY=fakesecret AWS_EC2_METADATA_DISABLED=true
unset AWS_SESSION_TOKEN AWS_PROFILE AWS_REGION AWS_DEFAULT_REGION AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3

# It ends when its input does: with this test.
mkfifo "$dir/fake.input"
python3 "$(dirname "$0")/fake_s3.py" <"$dir/fake.input" >"$dir/fake.port" 2>"$dir/fake.err" &
exec 9>"$dir/fake.input"
port_known() { [ -s "$dir/fake.port" ]; }
wait_for 20 "the fake" port_known
endpoint=http://127.0.0.1:$(cat "$dir/fake.port")
requests() { curl -s "$endpoint/latest/requests/$1" | jq -r "$2 // 0"; } # BUCKET KIND

node() { # STORE [SIZE]
	rm -rf "$dir"/a.*
	config a <<-END
		[node]
		name = a
		state-dir = $dir/a.state
		control = $dir/a.sock
		nbd-listen = unix:$dir/a.nbd
		[volume v]
		backing = $dir/a.img
		size = ${2:-8M}
		role = primary
		store = $1
	END
}

archived_packs() {
	local store="s3://frozen/db?endpoint=$endpoint&checksum=none&storage-class=GLACIER"
	node "$store&restore-tier=Expedited"
	head -c 8M /dev/urandom >"$dir/a.img"
	start a
	off a snapshot create v >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	qemu-io -f raw -c 'write -P 0x33 1M 1M' "$(uri a)" >/dev/null || die "cannot write"
	off a snapshot create v >"$dir/out" 2>&1 || die "second: $(cat "$dir/out")"
	cp "$dir/a.img" "$dir/want.img"
	off a snapshot verify v >"$dir/out" 2>&1 || die "verify: $(cat "$dir/out")"
	grep -q '2 objects are archived' "$dir/out" || die "verify says: $(cat "$dir/out")"
	ok archived_is_not_damaged

	"$build/offsite" restore --dry-run --store "$store" --to "$dir/back.img" >"$dir/out" 2>&1
	grep -q 'archive .* 2 objects.*up to 5 h' "$dir/out" || die "the plan says: $(cat "$dir/out")"
	"$build/offsite" restore --store "$store&restore-tier=Bulk" --to "$dir/back.img" >"$dir/out" 2>&1 ||
		die "restore: $(cat "$dir/out")"
	grep -q '^2 objects are archived .* up to 12 h.*waiting' "$dir/out" &&
		grep -q '^they are there' "$dir/out" || die "restore says: $(cat "$dir/out")"
	cmp "$dir/want.img" "$dir/back.img" || die "restored otherwise than it was"
	[ "$(requests frozen .POST)" = 2 ] || die "$(requests frozen .POST) times asked for 2 objects"
	ok restore_waits_for_an_archive

	# In place, and while it can still be read: no waiting.
	qemu-io -f raw -c 'write -P 0x44 0 4M' "$(uri a)" >/dev/null || die "cannot write"
	off a restore v >"$dir/out" 2>&1 || die "in place: $(cat "$dir/out")"
	grep -q waiting "$dir/out" && die "waited for what is there: $(cat "$dir/out")"
	stop a
	cmp "$dir/want.img" "$dir/a.img" || die "restored otherwise than it was"
	ok restore_in_place
}

# A volume that is to be used at once does not wait for hours at its first read: it is said before anything
# begins, what is needed is asked for, and then it is there.
instant_of_an_archive() {
	local store="s3://frozen/instant?endpoint=$endpoint&checksum=none&storage-class=GLACIER"
	node "$store"
	head -c 8M /dev/urandom >"$dir/a.img"
	start a
	off a snapshot create v >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	stop a
	mv "$dir/a.img" "$dir/want.img"
	node "$store"
	start a
	off a restore v --instant --volume v >"$dir/out" 2>&1 && die "began with an archive"
	grep -q '1 objects are archived (GLACIER) and have been asked for.*try again' "$dir/out" || die "says: $(cat "$dir/out")"
	volume_is a '.filling == null and .disk == "uptodate"' >/dev/null || die "it did something"
	thawed() { off a restore v --instant --volume v >"$dir/out" 2>&1; }
	wait_for 20 "the objects to be back" thawed
	qemu-img compare -f raw -F raw "$(uri a)" "$dir/want.img" >"$dir/out" 2>&1 || die "compare: $(cat "$dir/out")"
	stop a
	ok instant_of_an_archive
}

# Over what the disk held: before it is in use (the snapshot is pinned then) nothing is listed but snapshots; that
# all of it is there is looked for behind, and as long as something is missing only what is wanted is fetched.
instant_at_once() {
	local store="s3://plain/once?endpoint=$endpoint&checksum=none" before pack first
	hide() { curl -sSf "$endpoint/latest/hide/plain/$1"; } # and bring back
	since() { curl -s "$endpoint/latest/order/plain" | tail -n +$((before + 1)); }
	node "$store" 40M
	head -c 40M /dev/urandom >"$dir/a.img"
	start a
	off a snapshot create v >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	cp "$dir/a.img" "$dir/want.img"
	first=$(off a snapshot list v --json | jq -r '.snapshots[0].id')
	qemu-io -f raw -c 'write -P 5 0 40M' "$(uri a)" >/dev/null || die "write"
	off a snapshot create v >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	pack=$(curl -s "$endpoint/latest/order/plain" | sed -n 's/^PUT //p' | grep packs/ | sed -n 2p)
	hide "$pack" || die "cannot take $pack"
	before=$(curl -s "$endpoint/latest/order/plain" | wc -l)
	off a restore v --snapshot "$first" --instant >"$dir/out" 2>&1 || die "restore: $(cat "$dir/out")"
	since | sed '/ .*pins/q' >"$dir/order"
	grep -q '^PUT .*pins/' "$dir/order" || die "nothing was pinned: $(cat "$dir/order")"
	grep -E '^LIST .*(packs|maps)' "$dir/order" && die "listed before it was in use: $(cat "$dir/order")"
	[ "$(wc -l <"$dir/order")" -lt 24 ] || die "so many requests: $(cat "$dir/order")"
	held() { volume_is a '.filling.missing_bytes > 0 and (.filling.trouble // "" | test("objects of it are missing"))'; }
	wait_for 20 "what is missing to be said" held >/dev/null
	qemu-io -f raw -c 'read -v 39M 4k' "$(uri a)" >/dev/null || true # what is wanted is fetched, or an error
	hide "$pack" || die "cannot bring $pack back"
	wait_state 60 "the volume to be whole" a filled
	qemu-img compare -f raw -F raw "$(uri a)" "$dir/want.img" >"$dir/out" 2>&1 || die "compare: $(cat "$dir/out")"
	stop a
	ok instant_at_once
}

# One of which no list tells, met on the way.
hidden_archive() {
	local store="s3://tiered/db?endpoint=$endpoint&checksum=none&storage-class=INTELLIGENT_TIERING"
	node "$store" 40M
	head -c 40M /dev/urandom >"$dir/a.img"
	start a
	off a snapshot create v >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	stop a
	"$build/offsite" restore --store "$store" --to "$dir/tiered.img" >"$dir/out" 2>&1 ||
		die "restore: $(cat "$dir/out")"
	grep -q 'objects are archived .*waiting' "$dir/out" || die "restore says: $(cat "$dir/out")"
	cmp "$dir/a.img" "$dir/tiered.img" || die "restored otherwise than it was"
	ok restore_meets_an_archive_on_its_way
}

# The third snapshot of a volume: a few puts, one small list, and no list of packs or maps.
few_requests() {
	local before lists i
	node "s3://count/db?endpoint=$endpoint&checksum=none" 96M
	start a
	# What comes with a start: a look at the bucket, at old uploads, at the newest snapshot.
	started() { [ "$(requests count .LIST)" -ge 3 ]; }
	wait_for 20 "the daemon's own looks" started
	for i in 1 2 3; do
		qemu-io -f raw -c "write -P $i 1M 64k" -c "write -P $i 70M 64k" "$(uri a)" >/dev/null ||
			die "cannot write"
		before=$(requests count '[.[]] | add') lists=$(requests count .LIST)
		off a snapshot create v >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	done
	# A pack, the maps, the manifest; the two pages of the map; what is newer than the snapshot before; a
	# claim put, looked for, and deleted.
	[ $(($(requests count '[.[]] | add') - before)) = 8 ] || die "not 8 requests: $(requests count .)"
	[ $(($(requests count .LIST) - lists)) = 1 ] || die "$(requests count .LIST) lists"
	grep -q '(8 requests)' "$dir/out" || die "create says: $(cat "$dir/out")"
	off a status | found 'requests  *8 for the newest' || die "status: $(off a status)"
	[ "$(off a snapshot list v --json | jq '.snapshots[2].requests')" = 8 ] ||
		die "list: $(off a snapshot list v --json)"
	[ "$("$build/offsite" snapshot list --store "s3://count/db?endpoint=$endpoint" --json |
		jq '.snapshots[2].requests')" = 8 ] || die "list without a daemon"
	stop a
	ok few_requests
}

# What is listed is two seconds old. A snapshot that is told to be there is whole, and stays so, whatever is deleted
# beside it.
late_lists() {
	local store="s3://late/db?endpoint=$endpoint&checksum=none" i id
	node "$store"
	sed -i 's/^store = .*/&\nstore-list-lag = 3s/' "$dir/a.conf"
	head -c 8M /dev/urandom >"$dir/a.img"
	start a
	for i in 1 2 3 4; do
		qemu-io -f raw -c "write -P $i ${i}M 300k" "$(uri a)" >/dev/null || die "cannot write"
		off a snapshot create v --label "n$i" >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	done
	cp "$dir/a.img" "$dir/want.img"
	labels() { [ "$(off a snapshot list v --json | jq -r '.snapshots | map(.label) | join(" ")')" = "$1" ]; }
	wait_for 20 "the list to show all four" labels "n1 n2 n3 n4"
	off a snapshot verify v >"$dir/out" 2>&1 || die "verify: $(cat "$dir/out")"
	ok late_snapshots

	# One that is written while others are deleted shares with one of these.
	id=$(off a snapshot list v --json | jq -r '.snapshots[3].id')
	qemu-io -f raw -c "write -P 9 6M 300k" "$(uri a)" >/dev/null || die "cannot write"
	cp "$dir/a.img" "$dir/want.img"
	"$build/offsite" --config "$dir/a.conf" snapshot forget v --keep-last 1 >"$dir/forget.out" 2>&1 &
	off a snapshot create v --label n5 >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	wait $! || die "forget: $(cat "$dir/forget.out")"
	grep -q "^keep  ${id:0:12}.*newest" "$dir/forget.out" || die "forget kept: $(cat "$dir/forget.out")"
	wait_for 20 "the list to show what stayed" labels "n4 n5"
	"$build/offsite" --config "$dir/a.conf" snapshot forget v --keep-last 1 >"$dir/out" 2>&1 ||
		die "forget: $(cat "$dir/out")"
	wait_for 20 "the list to show the last" labels n5
	ok late_deletions

	off a snapshot verify v >"$dir/out" 2>&1 || die "verify: $(cat "$dir/out")"
	stop a
	"$build/offsite" restore --store "$store" --to "$dir/late.img" >"$dir/out" 2>&1 ||
		die "restore: $(cat "$dir/out")"
	cmp "$dir/want.img" "$dir/late.img" || die "restored otherwise than it was"
	ok late_restore
}

part archived_packs
part instant_of_an_archive
part instant_at_once
part hidden_archive
part late_lists
part few_requests
exec 9>&-
