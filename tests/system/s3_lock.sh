#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Object lock at a real service (Ceph's radosgw): what a snapshot needs cannot be deleted by anybody while
# it is locked, what is shared is locked as long, forget leaves it and takes it later, versions and all.
# time limit: 240 s
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/s3_lib.sh"
need radosgw ceph-mon ceph-osd curl qemu-io
begin
s3_up
export AWS_EC2_METADATA_DISABLED=true

locked=offsite-lock
store="s3://$locked/db?endpoint=$S3_ENDPOINT&part-size=5" prefix=db
local_store() { "$build/offsite" "$@" --store "$store"; }

node() { # STORE OPTIONS...
	local url=$1
	shift
	config a <<-END
		[node]
		name = a
		state-dir = $dir/a.state
		control = $dir/a.sock
		nbd-listen = unix:$dir/a.nbd
		[volume v]
		backing = $dir/a.img
		size = 48M
		role = primary
		store = $url
		$(printf '%s\n' "$@")
	END
}

versions() { # of all that the store has in the bucket, "KEY VERSION" lines
	s3_curl GET "/$locked?prefix=$prefix&versions=" | sed 's/<Version>/\n&/g; s/<DeleteMarker>/\n&/g' |
		sed -n 's/^<\(Version\|DeleteMarker\)>.*<Key>\([^<]*\)<.*<VersionId>\([^<]*\)<.*/\2 \3/p'
}

lock_cycle() {
	local key version status count first
	[ "$(s3_curl PUT "/$locked" -H 'x-amz-bucket-object-lock-enabled: true' -o /dev/null \
		-w '%{http_code}')" = 200 ] || die "no bucket with object lock"
	node "$store" 'lock = compliance' 'lock-for = 1h' 'keep-last = 1'
	head -c 48M /dev/urandom >"$dir/a.img"
	start a
	off a snapshot create v >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	grep -q 'locked until 20' "$dir/out" || die "create does not say it: $(cat "$dir/out")"
	first=$(off a snapshot list v --json | jq -r '.snapshots[0].id')
	qemu-io -f raw -c 'write -P 0x33 1M 1M' "$(uri a)" >/dev/null || die "cannot write"
	off a snapshot create v >"$dir/out" 2>&1 || die "second create: $(cat "$dir/out")"
	off a snapshot list v | found 'LOCKED UNTIL' || die "list does not say it"
	off a status | found 'locked .*until .*compliance' || die "status does not say it"
	[ "$(off a snapshot list v --json | jq '.snapshots | length')" = 2 ] || die "not two snapshots"
	ok snapshots_are_locked

	# Packs in parts too, whose headers this gateway drops; and the shared ones for as long as the newer
	# snapshot.
	count=0
	while read -r key version; do
		s3_curl GET "/$locked/$key?retention=" | found COMPLIANCE || die "$key is not locked"
		status=$(s3_curl DELETE "/$locked/$key?versionId=$version" -o /dev/null -w '%{http_code}')
		[ "$status" = 403 ] || die "$key could be deleted ($status)"
		count=$((count + 1))
	done < <(versions)
	[ "$count" -ge 7 ] || die "only $count objects"
	[ "$(versions | cut -d' ' -f1 | grep '/packs/' | while read -r key; do
		s3_curl GET "/$locked/$key?retention=" | grep -o '<RetainUntilDate>[^<]*'
	done | sort -u | wc -l)" = 1 ] || die "what is shared is not locked as long as what is not"
	ok nobody_deletes_them

	off a snapshot delete v "$first" >"$dir/out" 2>&1 && die "a locked one was deleted"
	grep -q 'locked until' "$dir/out" || die "delete does not say why: $(cat "$dir/out")"
	local_store snapshot forget v --keep-last 1 >"$dir/out" 2>&1 || die "forget: $(cat "$dir/out")"
	grep -q "^keep.*${first:0:12}.*locked until" "$dir/out" || die "forget does not say it: $(cat "$dir/out")"
	[ "$(versions | wc -l)" = "$count" ] || die "something went, or was hidden by a marker"
	local_store restore --snapshot "$first" --to "$dir/back.img" >"$dir/out" 2>&1 || die "$(cat "$dir/out")"
	ok what_is_locked_is_left_and_said
	stop a
}

# The same with locks that end soon.
locks_end() {
	local count first store=${store/db/short} prefix=short
	rm -rf "$dir"/a.state
	node "$store" 'lock = compliance' 'lock-for = 3s'
	start a
	off a snapshot create v >"$dir/out" 2>&1 || die "create: $(cat "$dir/out")"
	first=$(off a snapshot list v --json | jq -r '.snapshots[0].id')
	qemu-io -f raw -c 'write -P 0x44 1M 1M' "$(uri a)" >/dev/null || die "cannot write"
	off a snapshot create v >"$dir/out" 2>&1 || die "second create: $(cat "$dir/out")"
	count=$(versions | wc -l)
	later() {
		local_store snapshot forget v --keep-last 1 >"$dir/out" 2>&1 &&
			[ "$(off a snapshot list v --json | jq '.snapshots | length')" = 1 ] &&
			[ "$(versions | wc -l)" -lt "$count" ]
	}
	wait_for 60 "the lock's end, and space that comes back" later
	versions | found "/snapshots/.*$first" && die "the manifest is still there"
	off a snapshot verify v >"$dir/out" 2>&1 || die "verify: $(cat "$dir/out")"
	stop a
	local_store restore --to "$dir/back2.img" >"$dir/out" 2>&1 || die "restore: $(cat "$dir/out")"
	cmp "$dir/a.img" "$dir/back2.img" || die "restored otherwise than it was"
	ok a_later_run_takes_them
}

without_object_lock() {
	rm -rf "$dir"/a.state
	node "s3://$bucket/db?endpoint=$S3_ENDPOINT" 'lock = governance' 'lock-for = 1h'
	start a
	off a snapshot create v >"$dir/out" 2>&1 && die "made without a lock"
	grep -q 'does not lock objects' "$dir/out" || die "$(cat "$dir/out")"
	stop a
	ok a_bucket_without_lock_is_one_clear_line
}

part lock_cycle
part locks_end
part without_object_lock
