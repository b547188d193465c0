#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The commands around a snapshot's cut. The one before it and the one after it come in pairs, whatever
# fails or hangs, and the time between them is the cut's, not the upload's; a daemon killed in between
# makes up for it at its start.
# time limit: 180 s
. "$(dirname "$0")/lib.sh"
need jq qemu-io
begin
log=$dir/commands.log

write_command() { # NAME TEXT
	cat >"$dir/$1" <<-END
		#!/bin/sh
		echo "\$OFFSITE_WHEN \$OFFSITE_VOLUME \$OFFSITE_NODE \$OFFSITE_SNAPSHOT \$OFFSITE_RESULT" >>$log
		$2
	END
	chmod 755 "$dir/$1"
}
node() { # LINES FOR THE VOLUME
	rm -rf "$dir"/a.* "$dir/store"
	: >"$log"
	mkdir "$dir/store"
	write_command before true
	write_command after true
	config a <<-END
		[node]
		name = a
		state-dir = $dir/a.state
		control = $dir/a.sock
		nbd-listen = unix:$dir/a.nbd
		[volume v]
		backing = $dir/a.img
		size = 64M
		role = primary
		store = file:$dir/store
		snapshot-before-command = $dir/before
		snapshot-after-command = $dir/after
		snapshot-command-timeout = ${timeout:-100s}
		$1
	END
	start a
}
lines() { [ "$(wc -l <"$log")" -ge "$1" ]; }
create() { off a snapshot create v --wait >"$dir/create.out" 2>&1; }
newest() { off a snapshot list v --json | jq -r '.snapshots[-1].id'; }

in_pairs() {
	current=in_pairs
	node ""
	create || die "a snapshot: $(tail -n 1 "$dir/create.out")"
	wait_for 5 "the command after the cut" lines 2
	local id
	id=$(newest)
	[ "$(cat "$log")" = "before v a $id 
after v a $id cut" ] || die "not as it should be: $(cat "$log")"
	# The scheduled ones, too.
	stop a
	sed -i 's/^store = .*/&\nsnapshot-every = 1s/' "$dir/a.conf"
	start a
	wait_for 10 "a scheduled snapshot" lines 4
	stop a
	ok $current
}

# The frozen time has nothing to do with the upload: here the store takes seconds for its packs.
only_the_cut() {
	current=only_the_cut
	node "snapshot-rate = 128K" # the second pack would wait for two minutes
	qemu-io -f raw -c 'write -P 1 0 8M' "$(uri a)" >/dev/null || die "writing"
	dd if=/dev/urandom of="$dir/random" bs=1M count=40 status=none
	qemu-io -f raw -c "write -s $dir/random 8M 40M" "$(uri a)" >/dev/null || die "writing"
	write_command before "date +%s%N >$dir/frozen"
	write_command after "ls -d $dir/store/*/packs/* 2>/dev/null | wc -l >$dir/thawed.packs; date +%s%N >$dir/thawed"
	off a snapshot create v >"$dir/create.out" 2>&1 &
	wait_for 10 "the command after the cut" test -s "$dir/thawed"
	volume_is a '.snapshots.running' >/dev/null || die "the snapshot was over before the command"
	[ "$(cat "$dir/thawed.packs")" -lt 2 ] || die "$(cat "$dir/thawed.packs") packs were there before the command"
	off a set v snapshot-rate=0 >/dev/null || die "set"
	local ms=$((($(cat "$dir/thawed") - $(cat "$dir/frozen")) / 1000000))
	note "between the two commands: $ms ms"
	wait $! || die "the snapshot: $(tail -n 1 "$dir/create.out")"
	stop a
	ok $current
}

failing() {
	current=failing
	node ""
	write_command before "echo the database says no; exit 3"
	create && die "taken though the command failed"
	grep -q "ended with 3: the database says no" "$dir/create.out" || die "$(cat "$dir/create.out")"
	wait_for 5 "the command after it all the same" lines 2
	tail -n 1 "$log" | found "^after v a .* failed$" || die "$(cat "$log")"
	[ "$(off a snapshot list v --json | jq '.snapshots | length')" = 0 ] || die "there is one"
	volume_is a '.snapshots.command_failures == 1' >/dev/null || die "not counted"
	wait_for 10 "the event" says a "the database says no"
	stop a
	sed -i 's/^store = .*/&\nsnapshot-on-command-failure = continue/' "$dir/a.conf"
	start a
	create || die "continue: $(tail -n 1 "$dir/create.out")"
	grep -q "the snapshot is taken all the same" "$dir/a.log" || die "not said"
	write_command before true
	write_command after "exit 1"
	create || die "the snapshot is there when the second command fails"
	wait_for 5 "the failure" volume_is a '.snapshots.command_failure | test("after the cut")'
	stop a
	ok $current
}

# A command that hangs, with a child that would hang on: both are gone, the other one runs.
hanging() {
	current=hanging
	timeout=5s node ""
	write_command before "sleep 307.$$ & sleep 308.$$"
	create && die "taken though the command hung"
	grep -q "took longer than snapshot-command-timeout" "$dir/create.out" || die "$(cat "$dir/create.out")"
	wait_for 5 "the command after it" lines 2
	wait_for 5 "the end of its children" no_child
	write_command before true
	write_command after "sleep 309"
	: >"$log"
	create || die "the second command hangs: $(tail -n 1 "$dir/create.out")"
	create || die "the next one: $(tail -n 1 "$dir/create.out")"
	wait_for 10 "both pairs" lines 4
	[ "$(cut -d' ' -f1 "$log" | tr '\n' ' ')" = "before after before after " ] || die "$(cat "$log")"
	# A stop ends the first one, and lets the second one run.
	write_command before "sleep 310"
	write_command after "sleep 0.3; echo thawed >>$log"
	: >"$log"
	sed -i 's/^snapshot-command-timeout = .*/snapshot-command-timeout = 100s/' "$dir/a.conf"
	wait_for 10 "idle" volume_is a '.snapshots.running | not'
	stop a
	start a
	off a snapshot create v >/dev/null 2>&1 &
	wait_for 5 "the first command" lines 1
	stop a
	grep -q thawed "$log" || die "stopped between the two: $(cat "$log")"
	ok $current
}
no_child() { ! pgrep -f "sleep 30[78]\.$$"; }

killed() {
	current=killed
	rm -f "$dir/frozen"
	node ""
	write_command before "echo \$\$ >$dir/frozen; exec sleep 300"
	off a snapshot create v >/dev/null 2>&1 &
	wait_for 5 "the first command" test -s "$dir/frozen"
	kill9 a
	kill -KILL "$(cat "$dir/frozen")"
	[ -e "$dir/a.state/v/after-command" ] || die "nothing says that it is owed"
	start a
	wait_for 5 "the second command, at the start" lines 2
	tail -n 1 "$log" | found "^after v a  interrupted$" || die "$(cat "$log")"
	write_command before true
	create || die "then: $(tail -n 1 "$dir/create.out")"
	stop a
	start a
	[ "$(grep -c ^after "$log")" = 2 ] || die "once more at the next start: $(cat "$log")"
	stop a
	ok $current
}

part in_pairs
part only_the_cut
part failing
part hanging
part killed
