#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Protocol A over a link of 50 ms each way, then a narrow one: writers do not wait for the round trip;
# at max-lag they wait just enough, or the stream is left on the same connection and begun again;
# rates are changed while running. After each part both disks are the same.
# time limit: 500 s
. "$(dirname "$0")/lib.sh"
need fio python3 jq
begin
mib=48

fio_write() { # WRITES DEPTH BLOCK_SIZE
	fio --name=w --thread --ioengine=nbd --uri="$(uri a)" --size=${mib}M --bs="$3" --rw=randwrite \
		--iodepth="$2" --number_ios="$1" --output-format=json --output="$dir/fio.json" \
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
	relay delay 50 >/dev/null
	# Who waited for an answer would write no more than the first four.
	relay hold >/dev/null
	fio_write 100 4 4k || die "fio: $(head -n 1 "$dir/fio.log")"
	volume_is a '.replication | .state == "streaming" and .lag_bytes == 409600' >/dev/null ||
		die "the link was not silent: $(volume_get a .replication)"
	relay pass >/dev/null
	fio_write 1000 4 4k || die "fio: $(head -n 1 "$dir/fio.log")"
	same_disks
	one_connection
}

lag_is_bounded() {
	local lag
	lag=$(volume_get a '.replication | if .state == "streaming" then .lag_bytes else "gone" end')
	[ "$lag" != gone ] || die "the stream was left"
	[ "$lag" -le $((1048576 + 16384)) ] || die "a lag of $lag bytes at max-lag=1M"
	[ "$lag" -ge "$1" ] || die "the bound is not used: $lag bytes"
}
writers_wait_just_enough() {
	local writer
	relay hold >/dev/null
	set_options max-lag=1M max-lag-action=slow
	helper_start fio_write 320 4 16k
	writer=$helper
	wait_for 10 "writers being held" volume_is a '.replication.held'
	lag_is_bounded $((7 * 1048576 / 8))
	pause_ms 500
	lag_is_bounded $((7 * 1048576 / 8))
	kill -0 "$writer" || die "the writers were not held: $(head -n 1 "$dir/fio.log")"
	# With a link that carries 64 of them a second they flow.
	relay rate 1M >/dev/null
	relay pass >/dev/null
	while kill -0 "$writer" 2>/dev/null; do
		lag_is_bounded 0
		pause_ms 100
	done
	helper_end "$writer" || die "fio: $(head -n 1 "$dir/fio.log")"
	[ "$(fio_says '.jobs[0].write.clat_ns.percentile["90.000000"] < 3e9')" = true ] ||
		die "a tenth of the writes took $(fio_says '.jobs[0].write.clat_ns.percentile["90.000000"]') ns"
	volume_is a '.replication | .left_stream == 0 and .holds > 0' >/dev/null || die "$(volume_get a .replication)"
	relay rate 0 >/dev/null
	same_disks
	one_connection
}

nobody_waits() {
	local holds
	holds=$(volume_get a .replication.holds)
	relay rate 1M >/dev/null
	relay hold >/dev/null
	set_options max-lag-action=catch-up
	fio_write 200 4 16k || die "fio: $(head -n 1 "$dir/fio.log")"
	volume_is a ".replication | .left_stream > 0 and .holds == $holds" >/dev/null ||
		die "the stream was not left: $(volume_get a .replication)"
	relay pass >/dev/null
	wait_for 10 "the event" says a "stream was left"
	relay rate 0 >/dev/null
	same_disks
	one_connection
}

rates_change_while_running() {
	set_options max-lag=0 catch-up-rate=256K catch-up-latency-factor=0
	off a disconnect v >/dev/null
	fio_write 192 4 64k || die "fio: $(head -n 1 "$dir/fio.log")" # 12 MiB
	off a connect v >/dev/null
	wait_for 10 "catch-up at its rate" volume_is a \
		'.replication | .state == "catch-up" and .pace.catch_up_limit == 262144 and .pace.catch_up_reason == "catch-up-rate"'
	pause_ms 1000
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
	link='' pair_config $mib $'protocol = A\npeer-timeout = 120' # a link may be silent here
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
