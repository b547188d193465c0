#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A first start by hand, without a service manager: what is missing is made, or said in one line.
# time limit: 120 s
. "$(dirname "$0")/lib.sh"
need jq nbdinfo
begin

node_config() { # BACKING MORE-LINES
	config x <<-END
		[node]
		name = x
		state-dir = $dir/var/lib/x
		control = $dir/run/control/x.sock
		nbd-listen = unix:$dir/run/nbd/x.nbd
		[volume v]
		backing = $1
		size = 4M
		role = primary
		${2:-}
	END
}
uri_x() { echo "nbd+unix:///v?socket=$dir/run/nbd/x.nbd"; }
off_x() { "$build/offsite" --socket "$dir/run/control/x.sock" "$@"; }
start_x() {
	launch x
	wait_for 15 "the start" off_x status
}

folders_are_made() {
	current=folders_are_made
	node_config "$dir/v.img"
	start_x
	nbdinfo "$(uri_x)" >"$dir/info" 2>&1 || die "nbdinfo: $(tail -n 1 "$dir/info")"
	grep -q 'offsite volume v' "$dir/info" || die "no description"
	stop x
	ok "$current"
}

description_is_shown() {
	current=description_is_shown
	node_config "$dir/v.img" "description = the orders' database"
	start_x
	nbdinfo "$(uri_x)" >"$dir/info" 2>&1 || die "nbdinfo: $(tail -n 1 "$dir/info")"
	grep -q "the orders' database" "$dir/info" || die "not the configured description"
	stop x
	ok "$current"
}

missing_folder_is_said() {
	local error
	current=missing_folder_is_said
	rm -rf "${dir:?}/var"
	node_config "$dir/none/v.img"
	start_x
	error=$(off_x status --json | jq -r '.volumes[0].error')
	case $error in
	*"/none/v.img: the folder to make it in does not exist") ;;
	*) die "said: $error" ;;
	esac
	stop x
	ok "$current"
}

# A store that cannot be opened is there to be seen, and is opened once it can be.
store_is_seen() {
	current=store_is_seen
	touch "$dir/store"
	node_config "$dir/v.img" "store = file:$dir/store"
	start_x
	wait_for 5 "the reason" sh -c "'$build/offsite' --socket '$dir/run/control/x.sock' status | grep 'failed .*Not a directory'"
	curl -s --unix-socket "$dir/run/control/x.sock" http://x/metrics | found '^offsite_store_up{volume="v"} 0' ||
		die "not in the metrics"
	off_x snapshot create v >"$dir/out" 2>&1
	[ $? -eq 4 ] || die "not refused: $(cat "$dir/out")"
	rm "$dir/store"
	wait_for 15 "the snapshot" off_x snapshot create v
	off_x status | found 'failed ' && die "the reason is still there"
	off_x events | found 'the store is open' || die "no event"
	stop x
	ok "$current"
}

need curl
for one in folders_are_made description_is_shown missing_folder_is_said store_is_seen; do
	part "$one"
done
