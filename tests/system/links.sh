#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Real links: two nodes in two network namespaces, joined by a veth pair, and a client that knows every
# acknowledged write. The cable is pulled (both ways, and either way alone), a connection is left half
# open, the link is 20 Mbit/s (tbf), has 50 ms each way (relay.py), is reset in the middle of a frame,
# the peer stops reading. Each time: the client goes on within the peer's time-out, both find together
# again by themselves, the disks become the same, and nothing acknowledged is missing on either.
# time limit: 600 s
. "$(dirname "$0")/lib.sh"
need ip tc nsenter python3 jq nbd_ledger
[ "$(id -u)" = 0 ] && ip netns add "offsite-probe-$$" 2>/dev/null && ip netns del "offsite-probe-$$" || {
	skip "$test_name" "no network namespaces here (ip netns add fails)"
	exit 0
}
begin
seed_random
size_mib=32
blocks=$((size_mib * 256))
ns_a=offsite-a-$$ ns_b=offsite-b-$$

make_net() {
	at_end "ip netns del $ns_a 2>/dev/null; ip netns del $ns_b 2>/dev/null"
	ip netns add "$ns_a" && ip netns add "$ns_b" &&
		ip link add cable netns "$ns_a" type veth peer name cable netns "$ns_b" &&
		ip -n "$ns_a" addr add 10.77.0.1/24 dev cable && ip -n "$ns_b" addr add 10.77.0.2/24 dev cable &&
		ip -n "$ns_a" link set lo up && ip -n "$ns_b" link set lo up &&
		ip -n "$ns_a" link set cable up && ip -n "$ns_b" link set cable up || die "the namespaces' network"
}

# `ip netns exec` would make a namespace of mounts, too, and keep what others unmount meanwhile.
in_net() { # NAMESPACE COMMAND...
	exec nsenter --net="/run/netns/$1" "${@:2}"
}
launch() { # the library's, each node in its own namespace
	in_net "offsite-$1-$$" "$build/offsited" --config "$dir/$1.conf" --io "$io" >>"$dir/$1.log" 2>&1 &
	pid_of[$1]=$!
}

make_pair() {
	rm -rf "$dir"/[ab].* "$dir/log" "$dir/relay.sock"
	link='' pair_config "$size_mib" $'protocol = C\npeer-timeout = 3'
	sed -i "s/^peer-listen = .*/peer-listen = 10.77.0.2:$port_b/" "$dir/b.conf"
	sed -i "s/^peer = .*/peer = 10.77.0.2:$port_b/" "$dir/a.conf"
}

ledger() {
	exec "$tools/nbd_ledger" write --socket "$dir/a.nbd" --log "$dir/log" --blocks "$blocks" \
		--seed "$(between 1 1000000)" >"$dir/ledger.log" 2>&1
}
start_writer() {
	helper_start ledger
	ledger_pid=$helper
	wait_writes a
}
end_writer() {
	kill -TERM -- "-$ledger_pid"
	wait "$ledger_pid" || die "$current: a write failed: $(tail -n 1 "$dir/ledger.log")"
}
acknowledged_on() { # NODE
	"$tools/nbd_ledger" check --image "$dir/$1.img" --log "$dir/log" --blocks "$blocks" \
		>"$dir/check.out" 2>&1 || die "$current: $1: $(tail -n 1 "$dir/check.out")"
}
# The client's writes go on: the count of finished ones grows, when the peer's time-out is over.
writes_go_on() {
	local before
	before=$(volume_get a .stats.writes)
	wait_for 8 "$current: the client's writes go on" volume_is a ".stats.writes > $before + 20"
}
together_again() {
	pause_ms 300
	end_writer
	wait_state 60 "$current: both in sync" a in-sync
	acknowledged_on a
	acknowledged_on b
	cmp "$dir/a.img" "$dir/b.img" >"$dir/cmp.out" 2>&1 || die "$current: $(cat "$dir/cmp.out")"
	ok "$current"
}
not_streaming() { ! streaming "$1"; }

cable() { ip -n "$ns_a" link set cable "$1"; } # up, down
deaf() {                                        # NODE OTHERS_ADDRESS: what it sends goes nowhere
	ip -n "offsite-$1-$$" route add blackhole "$2/32"
}
hears() { ip -n "offsite-$1-$$" route del blackhole "$2/32"; }

pulled() {
	local known
	current=cable_pulled_$io
	start_writer
	known=$(wc -l <"$dir/a.log") # of this backend, and of the one before
	cable down
	wait_for 10 "$current: noticed" not_streaming a
	grep -qE '(nothing heard|has carried nothing out) for 3000 ms' <(tail -n "+$((known + 1))" "$dir/a.log") ||
		die "not by the peer's time-out: $(tail -n 2 "$dir/a.log")"
	writes_go_on
	cable up
	together_again
}

one_way() { # FROM ADDRESS NAME
	current=$3_$io
	start_writer
	deaf "$1" "$2"
	wait_for 15 "$current: noticed by a" not_streaming a
	wait_for 15 "$current: noticed by b" not_streaming b
	writes_go_on
	hears "$1" "$2"
	together_again
}

half_open() { # b dies and comes back while a cannot hear of it
	current=half_open_$io
	start_writer
	cable down
	kill9 b
	launch b
	wait_for 15 "$current: node b" answers b
	cable up
	writes_go_on
	together_again
}

stops_reading() {
	current=peer_stops_reading_$io
	start_writer
	kill -STOP "${pid_of[b]}"
	wait_for 10 "$current: noticed" not_streaming a
	writes_go_on
	kill -CONT "${pid_of[b]}"
	together_again
}

slow_link() {
	current=slow_link_$io
	tc -n "$ns_a" qdisc add dev cable root tbf rate 20mbit burst 32k latency 200ms || die "tbf"
	start_writer
	writes_go_on
	cable down # and a catch-up over it
	wait_for 10 "$current: noticed" not_streaming a
	writes_go_on
	cable up
	wait_state 60 "$current: streaming beside the writer" a streaming
	tc -n "$ns_a" qdisc del dev cable root
	together_again
}

# 50 ms each way, and resets in the middle of a frame: through a relay in a's namespace.
far_link() {
	current=far_link_$io
	stop a
	link=$(free_port)
	coproc RELAY { in_net "$ns_a" python3 "$TOP/tests/system/relay.py" "$link" "$port_b" \
		--target 10.77.0.2 --delay 50 --control "$dir/relay.sock"; }
	relay_pid=$RELAY_PID
	at_end "kill -KILL $relay_pid 2>/dev/null"
	read -r -t 10 -u "${RELAY[0]}" || die "the relay does not start"
	sed -i "s/^peer = .*/peer = 127.0.0.1:$link/" "$dir/a.conf"
	start a
	wait_state 30 "$current: in sync" a in-sync
	start_writer
	writes_go_on
	for _ in 1 2 3; do
		relay reset-after "$(between 1 200000)" >/dev/null
		pause_ms "$(between 100 900)"
	done
	wait_state 60 "$current: streaming beside the writer" a streaming
	together_again
}

run_backend() {
	current=start_$io
	make_net
	make_pair
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	pulled
	one_way b 10.77.0.1 silent_peer
	one_way a 10.77.0.2 unheard_by_peer
	half_open
	stops_reading
	slow_link
	far_link
	stop a
	stop b
	kill -KILL "$relay_pid"
	wait "$relay_pid" 2>/dev/null
	ip netns del "$ns_a"
	ip netns del "$ns_b"
}

for io in $(backends); do
	part run_backend
done
