#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# kill -9 of the primary, of the secondary, of both, and a cut or silent link, at random moments
# while two clients write: nbd_ledger (half of the volume; knows every acknowledged write) and fio
# (the other half; verifies its blocks). After each: nothing acknowledged is missing on either
# disk, and after reconnection the disks are the same. ROUNDS (26) on each I/O backend.
# time limit: 900 s
. "$(dirname "$0")/lib.sh"
need fio python3 jq nbd_ledger
begin
seed_random
rounds=${ROUNDS:-26}
half_mib=16
blocks=$((half_mib * 256))

relay_signal() { # SIGNAL WORD
	kill "-$1" "$relay_pid"
	read -r -t 60 -u "${RELAY[0]}" answer || die "the relay does not answer"
	[ "$answer" = "$2" ] || die "the relay says $answer"
}

# One pass over the second half in random order; the seed makes the order, so that a later run can
# verify what an interrupted one has written.
fio_job() { # OPTIONS...
	fio --name=half --thread --ioengine=nbd --uri="$(uri a)" --offset=${half_mib}M --size=${half_mib}M \
		--bs=4k --rw=randwrite --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
		--randseed="$fio_seed" --output-format=json "$@"
}
fio_write() {
	exec fio --name=half --thread --ioengine=nbd --uri="$(uri a)" --offset=${half_mib}M --size=${half_mib}M \
		--bs=4k --rw=randwrite --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=0 --verify_state_save=0 \
		--randseed="$fio_seed" --output-format=json --rate_iops=1500 --output="$dir/fio.json" \
		>"$dir/fio.log" 2>&1
}
# Its words stand before and within the JSON it gives.
fio_says() { sed -n '/^{/,/^}/p' "$1" | jq "$2"; } # FILE EXPRESSION
# All that the run before has finished, but for what may have been under way at its end.
fio_verify() {
	local written
	grep -q '^}' "$dir/fio.json" 2>/dev/null || return 0
	written=$(fio_says "$dir/fio.json" '.jobs[0].write.total_ios') || die "round $round ($fault): fio said nothing"
	[ "$written" -gt 64 ] || return 0
	fio_job --verify_only --number_ios=$((written - 32)) --output="$dir/verify.json" >"$dir/fio.log" 2>&1 &&
		[ "$(fio_says "$dir/verify.json" '.jobs[0].error')" = 0 ] || return 1
	verified=$((verified + $(fio_says "$dir/verify.json" '.jobs[0].read.total_ios')))
}
ledger() { # as primary a's client
	exec "$tools/nbd_ledger" write --socket "$dir/a.nbd" --log "$dir/log" --blocks "$blocks" \
		--seed "$(between 1 1000000)" >"$dir/ledger.log" 2>&1
}
acknowledged_on() { # NODE WHEN
	"$tools/nbd_ledger" check --image "$dir/$1.img" --log "$dir/log" --blocks "$blocks" \
		>"$dir/check.out" 2>&1 || die "round $round ($fault): $2: $1: $(tail -n 1 "$dir/check.out")"
}
start_writers() {
	fio_seed=$(between 1 1000000)
	rm -f "$dir/fio.json"
	helper_start ledger
	ledger_pid=$helper
	helper_start fio_write
	fio_pid=$helper
	wait_for 10 "round $round: both writers connected" both_seen
	wait_writes a
}
both_seen() { # fio ends by itself after three seconds
	volume_is a '.clients >= 2' || { ! kill -0 "$fio_pid" && volume_is a '.clients >= 1'; }
}
# They must have lived through the fault.
end_writers() {
	kill -TERM -- "-$ledger_pid"
	wait "$ledger_pid" || die "round $round ($fault): a write failed: $(tail -n 1 "$dir/ledger.log")"
	kill -INT -- "-$fio_pid" 2>/dev/null
	wait "$fio_pid" 2>/dev/null
	[ "$(fio_says "$dir/fio.json" '.jobs[0].error')" = 0 ] || die "round $round ($fault): fio: $(head -n 1 "$dir/fio.log")"
}
# The server is gone, so they are.
await_writers() {
	wait "$ledger_pid"
	local status=$?
	[ $status -eq 3 ] || die "round $round ($fault): the ledger ended with $status: $(tail -n 1 "$dir/ledger.log")"
	# fio sometimes polls a dead connection for ever; then it tells nothing, and is not asked.
	for _ in $(seq 40); do
		kill -0 "$fio_pid" 2>/dev/null || break
		sleep 0.05
	done
	kill -KILL -- "-$fio_pid" 2>/dev/null
	{ wait "$fio_pid"; } 2>/dev/null
}
b_settled() { ! streaming b; }

one_round() {
	local faults=(primary secondary both cut silent)
	fault=${faults[RANDOM % ${#faults[@]}]}
	start_writers
	pause_ms "$(between 50 700)"
	case $fault in
	primary)
		kill9 a
		await_writers
		# What was acknowledged must be on the second disk now, not only later.
		wait_for 30 "b noticing that a is gone" b_settled
		acknowledged_on b "before reconnection"
		acknowledged_on a "before reconnection"
		launch a
		;;
	secondary)
		kill9 b
		pause_ms "$(between 20 400)"
		launch b
		pause_ms "$(between 50 300)"
		end_writers
		;;
	both)
		if [ $((RANDOM % 2)) = 0 ]; then
			kill9 a
			kill9 b
		else
			kill9 b
			pause_ms "$(between 0 100)"
			kill9 a
		fi
		await_writers
		acknowledged_on a "before reconnection"
		if [ $((RANDOM % 2)) = 0 ]; then
			launch a
			launch b
		else
			launch b
			launch a
		fi
		;;
	cut)
		relay_signal USR1 cut
		pause_ms "$(between 20 400)"
		relay_signal USR2 joined
		pause_ms "$(between 50 300)"
		end_writers
		;;
	silent)
		kill -STOP "$relay_pid"
		pause_ms "$(between 20 400)"
		kill -CONT "$relay_pid"
		pause_ms "$(between 50 300)"
		end_writers
		;;
	esac
	wait_for 15 "round $round ($fault): node a" answers a
	wait_for 15 "round $round ($fault): node b" answers b
	wait_state 60 "round $round ($fault): both in sync" a in-sync
	applied b
	acknowledged_on a "in sync"
	acknowledged_on b "in sync"
	cmp "$dir/a.img" "$dir/b.img" >"$dir/cmp.out" 2>&1 ||
		die "round $round ($fault): the disks differ: $(cat "$dir/cmp.out")"
	fio_verify || die "round $round ($fault): fio finds a wrong block: $(head -n 1 "$dir/fio.log")"
	counts[$fault]=$((${counts[$fault]:-0} + 1))
}

run_backend() {
	current=kills_and_cuts_$io
	declare -A counts=()
	rm -rf "$dir"/[ab].* "$dir/log" "$dir/relay.sock"
	link='' pair_config $((2 * half_mib))
	start_relay "$port_b"
	sed -i "s/^peer = .*/peer = 127.0.0.1:$link/" "$dir/a.conf"
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	verified=0
	for ((round = 1; round <= rounds; round++)); do
		one_round
	done
	note "$io:$(for f in "${!counts[@]}"; do printf ' %s %d' "$f" "${counts[$f]}"; done);" \
		"fio verified $verified blocks; $(tail -n 1 "$dir/check.out")"
	stop a
	stop b
	kill -KILL "$relay_pid"
	wait "$relay_pid" 2>/dev/null
	ok "$current"
}

for io in $(backends); do
	part run_backend
done
