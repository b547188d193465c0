#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Fail over, work, fail back, again and again: the primary is killed, or the link is cut and then the
# primary killed, or the roles are changed as planned; the other node is promoted and works; the first one
# comes back, finds that it was replaced, and follows. After each half circle: what the client saw
# acknowledged (protocol C) is on both disks, which are the same, fio verifies its blocks, and not once was
# there a full sync. CIRCLES (6) of two halves, on each I/O backend in turn.
# time limit: 600 s
. "$(dirname "$0")/lib.sh"
need fio python3 jq nbd_ledger
begin
seed_random
circles=${CIRCLES:-6}
half_mib=16
blocks=$((half_mib * 256))

ledger() { # NODE
	exec "$tools/nbd_ledger" write --socket "$dir/$1.nbd" --log "$dir/log" --blocks "$blocks" \
		--seed "$(between 1 1000000)" >"$dir/ledger.log" 2>&1
}
# fio's own half: written and verified by it, through the primary.
fio_on() { # NODE
	fio --name=half --thread --ioengine=nbd --uri="$(uri "$1")" --offset=${half_mib}M --size=2M \
		--bs=4k --rw=randwrite --iodepth=8 --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
		--randseed="$(between 1 1000000)" >"$dir/fio.log" 2>&1 ||
		die "$where: fio: $(grep -m1 -E 'err|bad' "$dir/fio.log")"
}
acknowledged_on() { # NODE
	"$tools/nbd_ledger" check --image "$dir/$1.img" --log "$dir/log" --blocks "$blocks" \
		>"$dir/check.out" 2>&1 || die "$where: $1: $(tail -n 1 "$dir/check.out")"
}
start_ledger() { # NODE
	helper_start ledger "$1"
	ledger_pid=$helper
	wait_for 10 "$where: the client connected" volume_is "$1" '.clients >= 1'
	pause_ms "$(between 100 600)"
}
end_ledger() {
	kill -TERM -- "-$ledger_pid" 2>/dev/null
	wait "$ledger_pid"
}
promoted() { off "$1" promote v >"$dir/promote.out" 2>&1; }
follows() { volume_is "$1" '.role == "secondary" and .disk == "uptodate"'; }
streams_to() { # PRIMARY SECONDARY
	volume_is "$1" '.role == "primary" and .replication.state == "streaming"' && follows "$2"
}

# One change of roles, from $1 to $2.
half_circle() {
	local from=$1 to=$2 ways=(killed cut planned)
	way=${ways[RANDOM % 3]}
	where="circle $circle, $from to $to ($way)"
	start_ledger "$from"
	case $way in
	killed)
		kill9 "$from"
		end_ledger
		;;
	cut) # it goes on for as long as it takes to notice; then it dies, and comes back when the other worked
		relay cut >/dev/null
		pause_ms "$(between 0 200)"
		kill9 "$from"
		end_ledger
		relay join >/dev/null
		;;
	planned)
		end_ledger
		wait_for 10 "$where: the client gone" volume_is "$from" '.clients == 0'
		off "$from" demote v >"$dir/demote.out" 2>&1 || die "$where: demote: $(cat "$dir/demote.out")"
		;;
	esac
	wait_for 20 "$where: promotion" promoted "$to"
	start_ledger "$to"
	[ "$way" = planned ] || launch "$from"
	wait_for 15 "$where: node $from" answers "$from"
	wait_for 60 "$where: the old primary follows" streams_to "$to" "$from"
	fio_on "$to"
	end_ledger || die "$where: a write failed: $(tail -n 1 "$dir/ledger.log")"
	wait_state 60 "$where: all of it on both" "$to" in-sync
	applied "$from"
	acknowledged_on "$to"
	acknowledged_on "$from"
	cmp "$dir/a.img" "$dir/b.img" >"$dir/cmp.out" 2>&1 || die "$where: the disks differ: $(cat "$dir/cmp.out")"
	counts[$way]=$((${counts[$way]:-0} + 1))
}

run_backend() {
	current=circles_$io where=start
	declare -A counts=()
	rm -rf "$dir"/[ab].* "$dir/log" "$dir/relay.sock"
	link='' pair_config $((2 * half_mib)) $'protocol = C\npeer-timeout = 2\non-peer-loss = suspend'
	start_relay "$port_b"
	sed -i "s/^peer = .*/peer = 127.0.0.1:$link/" "$dir/a.conf"
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	full=$(cat "$dir"/[ab].log | grep -c "full sync")
	for ((circle = 1; circle <= circles; circle++)); do
		half_circle a b
		half_circle b a
	done
	[ "$(cat "$dir"/[ab].log | grep -c "full sync")" = "$full" ] || die "there was a full sync"
	note "$io:$(for f in "${!counts[@]}"; do printf ' %s %d' "$f" "${counts[$f]}"; done);" \
		"$(tail -n 1 "$dir/check.out")"
	stop a
	stop b
	kill -KILL "$relay_pid"
	wait "$relay_pid" 2>/dev/null
	ok "$current"
}

for io in $(backends); do
	part run_backend
done
