#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# `offsite wait`: what it waits for, over a restart of the daemon too, and how it gives up.
# time limit: 180 s
. "$(dirname "$0")/lib.sh"
need jq
begin

says_with() { # EXIT-CODE WORDS ARGUMENTS...
	local code=$1 words=$2 status
	shift 2
	off a wait "$@" >"$dir/said" 2>&1
	status=$?
	[ $status -eq "$code" ] || die "wait $*: exit code $status: $(cat "$dir/said")"
	[ -z "$words" ] || grep -q -- "$words" "$dir/said" || die "wait $*: $(cat "$dir/said")"
}
waits() { # NAME ARGUMENTS...
	local name=$1
	shift
	rm -f "$dir/$name.ended"
	helper_start sh -c '"$@"; echo $? >"$0.new" && mv "$0.new" "$0"' "$dir/$name.ended" \
		"$build/offsite" --socket "$dir/a.sock" wait "$@"
}
ended() { [ -e "$dir/$1.ended" ]; }
ends_well() { # NAME
	wait_for 20 "the end of wait for $1" ended "$1"
	[ "$(cat "$dir/$1.ended")" = 0 ] || die "wait for $1: exit code $(cat "$dir/$1.ended")"
}

bad_words() {
	current=bad_words
	says_with 3 'cannot\|No such file\|not answer' v
	link='' pair_config 4
	start a
	says_with 2 'no such state' v --for bliss
	says_with 2 'timeout' v --timeout soon
	says_with 2 VOLUME
	says_with 1 'volume nothing: not configured' nothing
	ok "$current"
}

what_is_not_yet() {
	current=what_is_not_yet
	says_with 1 'not in-sync within 1s: replication is connecting' v --timeout 1s
	says_with 1 'not connected within 0' v --for connected --timeout 0
	says_with 0 '' v --for filled --timeout 0
	ok "$current"
}

what_comes() {
	local state
	current=what_comes
	for state in connected streaming in-sync; do
		waits $state v --for $state --timeout 300s
	done
	pause_ms 300
	ended connected && die "there is no peer yet"
	start b
	for state in connected streaming in-sync; do
		ends_well $state
	done
	[ "$(volume_get a .replication.state)" = streaming ] || die "not streaming"
	off b wait v --for streaming >"$dir/said" 2>&1 || die "b: $(cat "$dir/said")"
	off b wait v >"$dir/said" 2>&1
	[ $? = 4 ] && grep -q 'secondary here' "$dir/said" || die "a secondary says: $(cat "$dir/said")"
	ok "$current"
}

over_a_restart() {
	local pause
	current=over_a_restart
	stop b
	# Nothing tells from outside that it has had its first look: one that had none says so, and is tried again.
	for pause in 300 3000 20000; do
		waits in-sync v
		pause_ms $pause
		stop a
		pause_ms 600
		ended in-sync || break
		[ "$(cat "$dir/in-sync.ended")" = 3 ] && [ $pause != 20000 ] ||
			die "ended with the daemon: $(cat "$dir/in-sync.ended")"
		start a
	done
	start a
	start b
	ends_well in-sync
	ok "$current"
}

# One that hangs is not waited for beyond the time.
hangs() {
	local begun=$SECONDS
	current=hangs
	kill -STOP "${pid_of[a]}"
	off a wait v --timeout 1s >"$dir/said" 2>&1
	[ $? = 3 ] || die "said: $(cat "$dir/said")"
	kill -CONT "${pid_of[a]}"
	[ $((SECONDS - begun)) -lt 40 ] || die "took $((SECONDS - begun)) s"
	ok "$current"
}

no_peer() {
	current=no_peer
	stop a
	sed -i '/^peer = /d' "$dir/a.conf"
	start a
	says_with 4 'has no peer' v
	says_with 0 '' v --for filled
	stop a
	stop b
	ok "$current"
}

bad_words
what_is_not_yet
what_comes
over_a_restart
hangs
no_peer
