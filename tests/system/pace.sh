#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Protocol A over a link of 50 ms each way, then a narrow one: writers do not wait for the round trip;
# at max-lag they wait just enough, or the stream is left on the same connection and begun again;
# rates are changed while running. After each part both disks are the same.
# time limit: 300 s
. "$(dirname "$0")/lib.sh"
need fio python3 jq
begin
mib=48

fio_write() { # SECONDS DEPTH BLOCK_SIZE
	fio --name=w --thread --ioengine=nbd --uri="$(uri a)" --size=${mib}M --bs="$3" --rw=randwrite \
		--iodepth="$2" --time_based --runtime="$1" --output-format=json --output="$dir/fio.json" \
		>"$dir/fio.log" 2>&1
}
fio_says() { sed -n '/^{/,/^}/p' "$dir/fio.json" | jq "$1"; } # EXPRESSION
set_options() { off a set v "$@" >/dev/null || die "offsite set $*"; }
same_disks() {
	wait_state 90 "both in sync" a in-sync
	cmp "$dir/a.img" "$dir/b.img" >"$dir/cmp.out" 2>&1 || die "the disks differ: $(cat "$dir/cmp.out")"
}
one_connection() { volume_is a '.replication.connects == 1' >/dev/null || die "the connection was lost"; }

no_round_trip() {
	local total
	relay delay 50 >/dev/null
	fio_write 4 4 4k || die "fio: $(head -n 1 "$dir/fio.log")"
	# If each waited for its round trip of 100 ms, it were 160.
	total=$(fio_says '.jobs[0].write.total_ios')
	[ "$total" -gt 800 ] || die "only $total writes in 4 s over a round trip of 100 ms"
	same_disks
	one_connection
	note "$io: $total writes in 4 s"
}

writers_wait_just_enough() {
	local lag=0 most=0 writer
	relay rate 1M >/dev/null
	set_options max-lag=1M max-lag-action=slow
	helper_start fio_write 6 4 16k
	writer=$helper
	wait_for 10 "writers being held" volume_is a '.replication.held'
	for _ in $(seq 15); do
		lag=$(volume_get a '.replication | if .state == "streaming" then .lag_bytes else "gone" end')
		[ "$lag" != gone ] || die "the stream was left"
		[ "$lag" -le "$most" ] || most=$lag
		sleep 0.1
	done
	helper_end "$writer" || die "fio: $(head -n 1 "$dir/fio.log")"
	[ "$most" -le $((1048576 + 16384)) ] || die "a lag of $most bytes at max-lag=1M"
	[ "$most" -ge $((1048576 / 2)) ] || die "the bound is not used: $most bytes at most"
	# Flowing, not stopping and going.
	[ "$(fio_says '.jobs[0].write.clat_ns.max < 3e9')" = true ] ||
		die "a write took $(fio_says '.jobs[0].write.clat_ns.max') ns"
	volume_is a '.replication | .left_stream == 0 and .holds > 0' >/dev/null || die "$(volume_get a .replication)"
	relay rate 0 >/dev/null
	same_disks
	one_connection
}

nobody_waits() {
	local slow fast
	slow=$(fio_says '.jobs[0].write.total_ios')
	relay rate 1M >/dev/null
	set_options max-lag-action=catch-up
	fio_write 6 4 16k || die "fio: $(head -n 1 "$dir/fio.log")"
	fast=$(fio_says '.jobs[0].write.total_ios')
	volume_is a '.replication.left_stream > 0' >/dev/null || die "the stream was not left"
	# The link carries no more than 384 of them.
	[ "$fast" -gt $((2 * slow)) ] || die "$fast writes without waiting, $slow at the link's pace"
	wait_for 10 "the event" says a "stream was left"
	relay rate 0 >/dev/null
	same_disks
	one_connection
	note "$io: $slow writes at the link's pace, $fast without waiting"
}

rates_change_while_running() {
	set_options max-lag=0 catch-up-rate=256K catch-up-latency-factor=0
	off a disconnect v >/dev/null
	fio_write 1 4 64k || die "fio: $(head -n 1 "$dir/fio.log")"
	off a connect v >/dev/null
	wait_for 10 "catch-up at its rate" volume_is a \
		'.replication | .state == "catch-up" and .pace.catch_up_limit == 262144 and .pace.catch_up_reason == "catch-up-rate"'
	sleep 1
	volume_is a '.replication.state == "catch-up"' >/dev/null || die "caught up in no time at 256K a second"
	off a set v catch-up-rate=fast 2>"$dir/err" && die "a wrong rate was taken"
	grep -q "catch-up-rate = fast: not a rate" "$dir/err" || die "wrong rate: $(cat "$dir/err")"
	off a set v catch-up-rate=0 backing=/x 2>"$dir/err" && die "backing was changed"
	grep -q "backing: cannot be changed while running" "$dir/err" || die "backing: $(cat "$dir/err")"
	volume_is a '.replication.pace.catch_up_rate == "256K"' >/dev/null || die "half of a refused set was done"
	set_options catch-up-rate="0, 1G@sat"
	same_disks
}

run_backend() {
	current=start_$io
	rm -rf "$dir"/[ab].* "$dir/relay.sock"
	link='' pair_config $mib "protocol = A"
	start_relay "$port_b" --buffer 512K
	sed -i "s/^peer = .*/peer = 127.0.0.1:$link/" "$dir/a.conf"
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	for current in no_round_trip writers_wait_just_enough nobody_waits rates_change_while_running; do
		$current
		ok "${current}_$io"
	done
	stop a
	stop b
	kill -KILL "$relay_pid"
	wait "$relay_pid" 2>/dev/null
	return 0
}

for io in $(backends); do
	part run_backend
done
