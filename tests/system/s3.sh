#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Snapshots in a bucket of a real service (Ceph's radosgw): made by the daemon, listed, verified, restored
# without it, deleted. What is wrong with address, keys or network is said in one line.
# time limit: 300 s
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/s3_lib.sh"
need radosgw ceph-mon ceph-osd curl qemu-io
begin
s3_up

store="s3://$bucket/nightly?endpoint=$S3_ENDPOINT"
local_store() { "$build/offsite" "$@" --store "$store"; }

snapshot_cycle() {
	config a <<-END
		[node]
		name = a
		state-dir = $dir/a.state
		control = $dir/a.sock
		nbd-listen = unix:$dir/a.nbd
		[volume v]
		backing = $dir/a.img
		size = 96M
		role = primary
		store = $store
	END
	start a
	qemu-io -f raw -c 'write -P 0x11 0 48M' -c 'write -P 0x22 64M 64k' "$(uri a)" >/dev/null ||
		die "cannot write"
	cp "$dir/a.img" "$dir/first.img"
	off a snapshot create v >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	qemu-io -f raw -c 'write -P 0x33 1M 1M' "$(uri a)" >/dev/null || die "cannot write"
	off a snapshot create v >"$dir/out" 2>&1 || die "second create: $(cat "$dir/out")"
	[ "$(off a snapshot list v --json | jq '.snapshots | length')" = 2 ] || die "not two snapshots"
	off a snapshot verify v >"$dir/out" 2>&1 || die "verify: $(cat "$dir/out")"
	ok snapshot_create_list_verify
	curl -s --unix-socket "$dir/a.sock" http://localhost/metrics | grep '^offsite_store_' >"$dir/metrics"
	grep -q '^offsite_store_puts_total{.*} 8$' "$dir/metrics" &&
		grep -q '^offsite_store_retries_total{.*} 0$' "$dir/metrics" ||
		die "two snapshots are not four puts each: $(cat "$dir/metrics")"
	note "$(sed 's/{.*}//; s/offsite_store_//' "$dir/metrics" | tr '\n' ' ')"
	ok requests_are_few_and_counted
	first=$(off a snapshot list v --json | jq -r '.snapshots[0].id')
	nbdcopy "$(uri a "v@$first")" "$dir/read.img" 2>"$dir/out" || die "read as an export: $(cat "$dir/out")"
	cmp "$dir/read.img" "$dir/first.img" || die "as an export it reads as something else"
	off a snapshot diff v "$first" latest --json >"$dir/out" || die "diff: $(cat "$dir/out")"
	jq -e '.extents == [{"offset": 1048576, "length": 1048576, "zero": false}]' "$dir/out" >/dev/null ||
		die "diff: $(cat "$dir/out")"
	nbdinfo --map="offsite:changed-since=$first" "$(uri a v@latest)" >"$dir/out" || die "map: $(cat "$dir/out")"
	grep -q '1048576 *1048576 *1' "$dir/out" || die "map: $(cat "$dir/out")"
	ok export_and_diff
	stop a

	local_store restore --to "$dir/back.img" >"$dir/out" 2>&1 || die "restore: $(cat "$dir/out")"
	cmp "$dir/a.img" "$dir/back.img" || die "restored otherwise than it was"
	first=$(local_store snapshot list --json | jq -r '.snapshots[0].id')
	local_store restore --snapshot "$first" --to "$dir/back1.img" >"$dir/out" 2>&1 ||
		die "restore of the first: $(cat "$dir/out")"
	cmp "$dir/first.img" "$dir/back1.img" || die "the first one restored otherwise than it was"
	ok restore_needs_the_bucket_only

	start a
	off a snapshot delete v "$first" >"$dir/out" 2>&1 || die "delete: $(cat "$dir/out")"
	[ "$(off a snapshot list v --json | jq '.snapshots | length')" = 1 ] || die "not one snapshot"
	off a snapshot verify v >"$dir/out" 2>&1 || die "verify after delete: $(cat "$dir/out")"
	ok delete_collects
	stop a
}

refused() { # NAME WORDS URL: the command fails in one line with these words
	local lines
	if "$build/offsite" snapshot list --store "$3" >"$dir/out" 2>&1; then
		fail "$1" "was not refused"
	elif ! grep -q "$2" "$dir/out"; then
		fail "$1" "$(cat "$dir/out")"
	else
		lines=$(wc -l <"$dir/out")
		[ "$lines" -eq 1 ] && ok "$1" || fail "$1" "$lines lines"
	fi
}

one_line_each() {
	refused missing_bucket 'there is no such bucket' "s3://no-such-bucket/x?endpoint=$S3_ENDPOINT"
	AWS_SECRET_ACCESS_KEY=wrong refused wrong_secret 'refuses the credentials' "$store"
	AWS_ACCESS_KEY_ID=AKIAWRONG refused wrong_key 'refuses the credentials' "$store"
	AWS_ACCESS_KEY_ID='' refused no_credentials 'no credentials' "$store"
	refused certificate 'certificate' "s3://$bucket/nightly?endpoint=$S3_ENDPOINT_TLS"
	refused nobody_there 'cannot be reached' "s3://$bucket/nightly?retry=1&endpoint=http://127.0.0.1:9"
}

ways_to_the_bucket() {
	local url
	for url in "s3://$bucket/nightly?endpoint=$S3_ENDPOINT_TLS&ca-file=$S3_CA" \
		"s3://$bucket/nightly?endpoint=http://$S3_VHOST:$S3_PORT&path-style=no"; do
		"$build/offsite" snapshot list --store "$url" >"$dir/out" 2>&1 &&
			grep -q ' v ' "$dir/out" || fail ways "$url: $(cat "$dir/out")"
	done
	ok https_and_virtual_host
}

# A node b with a volume of random data and this store.
node_b() { # STORE [MIB [SNAPSHOT-RATE]]
	rm -rf "$dir"/b.*
	config b <<-END
		[node]
		name = b
		state-dir = $dir/b.state
		control = $dir/b.sock
		nbd-listen = unix:$dir/b.nbd
		[volume v]
		backing = $dir/b.img
		size = ${2:-24}M
		role = primary
		store = $1
		snapshot-rate = ${3:-0}
	END
	head -c "${2:-24}M" /dev/urandom >"$dir/b.img"
	start b
}

heads() { # FOLDER: the headers of the first object in it
	local key
	key=$(s3_curl GET "/$bucket?list-type=2&prefix=$1" | grep -o '<Key>[^<]*' | cut -c6- | grep -m1 "/$2/")
	shift 2
	s3_curl HEAD "/$bucket/$key" -I "$@" | tr -d '\r'
}

class_and_tags() {
	local url="s3://$bucket/classes?endpoint=$S3_ENDPOINT&storage-class=GLACIER&tags=team:db,env:a%20b"
	node_b "$url"
	off b snapshot create v >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	stop b
	heads classes packs | found -i '^x-amz-storage-class: GLACIER' || die "class of packs"
	heads classes snapshots | found -i '^x-amz-storage-class: GLACIER' && die "class of manifests"
	local key
	key=$(s3_curl GET "/$bucket?list-type=2&prefix=classes" | grep -o '<Key>[^<]*' | head -1 | cut -c6-)
	s3_curl GET "/$bucket/$key?tagging=" | found '<Key>env</Key><Value>a b</Value>' || die "tags"
	ok storage_class_and_tags
}

encrypted_by_the_service() {
	local url="s3://$bucket/kms?endpoint=$S3_ENDPOINT&sse=aws:kms&sse-kms-key=testkey"
	node_b "$url"
	off b snapshot create v >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	stop b
	heads kms packs | found -i '^x-amz-server-side-encryption: aws:kms' || die "no sse-kms"
	"$build/offsite" restore --store "$url" --to "$dir/b.back" >"$dir/out" 2>&1 || die "$(cat "$dir/out")"
	cmp "$dir/b.img" "$dir/b.back" || die "restored otherwise"

	head -c 32 /dev/urandom >"$dir/customer.key"
	url="s3://$bucket/customer?endpoint=$S3_ENDPOINT_TLS&ca-file=$S3_CA&part-size=5"
	node_b "$url&sse=customer&sse-key-file=$dir/customer.key"
	off b snapshot create v >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	stop b
	"$build/offsite" restore --store "$url&sse=customer&sse-key-file=$dir/customer.key" --to "$dir/b.back" \
		>"$dir/out" 2>&1 || die "$(cat "$dir/out")"
	cmp "$dir/b.img" "$dir/b.back" || die "restored otherwise"
	"$build/offsite" restore --store "$url" --to "$dir/b.none" >"$dir/out" 2>&1 &&
		die "restored without the customer's key"
	ok encrypted_by_the_service
}

# The gateway dies while a snapshot is on its way, and is back some seconds later: one snapshot, whole.
gateway_restarts() {
	node_b "s3://$bucket/restarts?endpoint=$S3_ENDPOINT&connections=2" 192 4M
	off b snapshot create v --no-wait >/dev/null || die "create"
	packs_there() { s3_curl GET "/$bucket?list-type=2&prefix=restarts" | found /packs/; }
	wait_for 30 "the first pack" packs_there
	s3_kill
	volume_is b .snapshots.running >/dev/null || die "it was over before the service was"
	off b set v snapshot-rate=0 >/dev/null || die "set"
	sleep 1
	s3_start
	there() { [ "$(off b snapshot list v --json | jq '.snapshots | length')" = 1 ]; }
	wait_for 60 "the snapshot" there
	off b snapshot verify v >"$dir/out" 2>&1 || die "verify: $(cat "$dir/out")"
	stop b
	ok goes_on_when_the_service_does
}

# The daemon is killed while it uploads: the next snapshot is whole, and what was left behind is collected.
killed_in_the_middle() {
	node_b "s3://$bucket/killed?endpoint=$S3_ENDPOINT&connections=2" 128 4M
	off b snapshot create v --no-wait >/dev/null || die "create"
	a_pack_there() { s3_curl GET "/$bucket?list-type=2&prefix=killed" | found /packs/; }
	wait_for 30 "the first pack" a_pack_there
	kill9 b
	sed -i '/^snapshot-rate/d' "$dir/b.conf"
	start b
	off b snapshot create v >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	off b snapshot verify v >"$dir/out" 2>&1 || die "verify: $(cat "$dir/out")"
	[ "$(off b snapshot list v --json | jq '.snapshots | length')" = 1 ] || die "not one snapshot"
	off b snapshot create v >/dev/null || die "second"
	off b snapshot delete v "$(off b snapshot list v --json | jq -r '.snapshots[0].id')" >"$dir/out" 2>&1 ||
		die "delete: $(cat "$dir/out")"
	attempts() {
		s3_curl GET "/$bucket?list-type=2&prefix=killed" | grep -o '/packs/[0-9a-f]*-[0-9a-f]*' | sort -u | wc -l
	}
	# What was killed might still be on its way: its claim keeps it for an hour.
	[ "$(attempts)" = 2 ] || die "packs of $(attempts) attempts are left beside the claim"
	claim=$(s3_curl GET "/$bucket?list-type=2&prefix=killed" | grep -o 'killed/[0-9a-f]*/claims/[0-9a-f-]*')
	[ "$(wc -l <<<"$claim")" = 1 ] || die "claims: $claim"
	s3_curl DELETE "/$bucket/$claim" >/dev/null
	off b snapshot create v >/dev/null || die "third"
	off b snapshot delete v "$(off b snapshot list v --json | jq -r '.snapshots[0].id')" >"$dir/out" 2>&1 ||
		die "delete: $(cat "$dir/out")"
	stop b
	[ "$(attempts)" = 1 ] || die "packs of $(attempts) attempts are left without it"
	"$build/offsite" restore --store "s3://$bucket/killed?endpoint=$S3_ENDPOINT" --to "$dir/b.back" \
		>"$dir/out" 2>&1 || die "$(cat "$dir/out")"
	cmp "$dir/b.img" "$dir/b.back" || die "restored otherwise"
	ok killed_in_the_middle
}

# While the service is away a snapshot fails with a reason, and the daemon stops without waiting for it (two minutes).
service_away() {
	node_b "s3://$bucket/away?endpoint=$S3_ENDPOINT" 8
	wait_for 20 "the store" off b snapshot list v
	s3_kill
	off b snapshot create v --no-wait >/dev/null || die "create"
	local begun=$SECONDS
	stop b
	[ $((SECONDS - begun)) -lt 60 ] || die "the stop took $((SECONDS - begun)) s"
	start b
	store_is_down() { volume_is b '.snapshots.last_error | test("cannot be reached")'; }
	wait_for 40 "the reason in status" store_is_down
	s3_start
	made() { off b snapshot create v; }
	wait_for 60 "a snapshot after all" made
	stop b
	ok stops_and_starts_without_the_service
}

export AWS_EC2_METADATA_DISABLED=true
part snapshot_cycle
part one_line_each
part ways_to_the_bucket
part class_and_tags
part encrypted_by_the_service
part gateway_restarts
part killed_in_the_middle
part service_away
