#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A primary whose clients wait for the peer (on-peer-loss = suspend) is stopped by SIGTERM: it ends in
# order and soon, and after the next start nothing that a client saw acknowledged is missing.
# time limit: 180 s
. "$(dirname "$0")/lib.sh"
need jq nbd_ledger
begin
seed_random
blocks=4096

ledger() {
	exec "$tools/nbd_ledger" write --socket "$dir/a.nbd" --log "$dir/log" --blocks "$blocks" \
		--seed "$(between 1 1000000)" >"$dir/ledger.log" 2>&1
}
ended() { ! alive a; }

run_backend() {
	current=suspended_stop_$io
	rm -rf "$dir"/[ab].* "$dir/log"
	link='' pair_config 16 $'protocol = C\npeer-timeout = 2\non-peer-loss = suspend'
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	helper_start ledger
	wait_writes a
	kill9 b
	wait_for 20 "the clients wait" volume_is a '.replication.suspended'
	pause_ms 300
	kill -TERM "${pid_of[a]}"
	wait_for 15 "the end of the stopped primary" ended
	wait "${pid_of[a]}" || die "node a ended with status $?"
	unset "pid_of[a]"
	start b
	start a
	wait_state 30 "both in sync" a in-sync
	for node in a b; do
		"$tools/nbd_ledger" check --image "$dir/$node.img" --log "$dir/log" --blocks "$blocks" \
			>"$dir/check.out" 2>&1 || die "$node: $(tail -n 1 "$dir/check.out")"
	done
	stop a
	stop b
	ok "$current"
}

for io in $(backends); do
	part run_backend
done
