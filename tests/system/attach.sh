#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# `offsite attach` with a real daemon: with the kernel's nbd module the life of a device, without it the one
# line that says so. (Filesystems on it, crashes and restarts under load: tests/vm.)
# time limit: 120 s
. "$(dirname "$0")/lib.sh"
need jq
begin

config alpha <<END
[node]
name = alpha
state-dir = $dir/alpha
control = $dir/alpha.sock
nbd-listen = unix:$dir/alpha.nbd
[volume v]
backing = $dir/v.img
size = 64M
role = primary
END

refusals() {
	current=refusals
	off alpha attach nothing 2>"$dir/err" && die "an export that is not there was attached"
	grep -q '^offsite: attach nothing: ' "$dir/err" || die "$(cat "$dir/err")"
	off alpha attach v /dev/sda 2>"$dir/err" && die "/dev/sda was attached"
	grep -q "'/dev/sda' is not /dev/nbdN" "$dir/err" || die "$(cat "$dir/err")"
	off alpha detach v 2>"$dir/err" && die "detached what was not attached"
	grep -q 'it is not attached' "$dir/err" || die "$(cat "$dir/err")"
	[ "$(off alpha attach --list --json | jq '.attached | length')" = 0 ] || die "something is attached"
	ok "$current"
}

# One line, which says what to do; and a client less, not one for ever.
without_the_module() {
	current=without_the_module
	off alpha attach v 2>"$dir/err" && die "attached without the module"
	[ "$(wc -l <"$dir/err")" = 1 ] || die "not one line: $(cat "$dir/err")"
	grep -qE 'modprobe nbd|CAP_SYS_ADMIN' "$dir/err" || die "$(cat "$dir/err")"
	volume_is alpha '.clients == 0 and .attached == null' || die "the volume is still open"
	ok "$current"
}

with_the_module() {
	current=with_the_module
	local device
	device=$(off alpha attach v --json | jq -r .device) || die "not attached"
	at_end "off alpha detach v --force >/dev/null 2>&1"
	volume_is alpha ".clients == 1 and .attached == \"$device\"" || die "not in the status"
	[ "$(blockdev --getsize64 "$device")" = $((64 << 20)) ] || die "size"
	head -c 1M /dev/urandom >"$dir/data"
	dd if="$dir/data" of="$device" bs=64k oflag=direct status=none || die "write"
	kill9 alpha
	start alpha
	wait_for 10 "the device again" connected
	cmp -n $((1 << 20)) "$dir/data" "$device" || die "the data is another one"
	off alpha detach "$device" >/dev/null || die "detach"
	ok "$current"
}
connected() { off alpha attach --list --json | jq -e '.attached[0].state == "attached"'; }

# The device of a primary with a peer in protocol C: no request fails, and nothing acknowledged is missing on either
# disk, however often the daemon goes and comes.
blocks=16384
device() {
	exec "$build/tests/device/nbd_device" --listen "$dir/device" --log "$dir/log" --blocks $blocks --rest \
		--seed "$(between 1 1000000)" >"$dir/device.log" 2>&1
}
says_again() { grep -q "^again $1 " "$dir/device.log" || ! kill -0 "$device_pid"; }
acknowledged_on() { # NODE
	"$tools/nbd_ledger" check --image "$dir/$1.img" --log "$dir/log" --blocks $blocks >"$dir/check.out" 2>&1 ||
		die "$1: $(tail -n 1 "$dir/check.out")"
}
outlives() { # CONNECTIONS HOW...
	current=outlives_the_daemon_$1
	local connections=$1 how changes=0
	shift
	export OFFSITE_DEVICE=$dir/device
	offsited=$build/tests/device/offsited
	rm -rf "$dir"/{a,b}.{img,state} "$dir"/{device,log,store}
	pair_config $((blocks / 256)) "protocol = C
attach = yes
attach-connections = $connections
attach-request-timeout = 2
store = file:$dir/store"
	helper_start device
	device_pid=$helper
	start b
	start a
	wait_for 15 "the device" grep -q "^attached $connections" "$dir/device.log"
	for how; do
		wait_for 30 "round $((changes + 1)): streaming" streaming a
		case $how in
		restart) stop a ;;
		kill) kill9 a ;;
		restart_in_snapshot)
			off a snapshot create v --no-wait >/dev/null || die "no snapshot"
			stop a
			;;
		esac
		changes=$((changes + 1))
		start a
		wait_for 60 "round $changes ($how): all goes on" says_again $changes
	done
	kill -TERM "$device_pid"
	helper_end "$device_pid" || die "$(tail -n 2 "$dir/device.log")"
	acknowledged_on a
	wait_state 30 "in sync" a in-sync # until then b lacks what was answered without it
	applied b
	acknowledged_on b
	stop a
	stop b
	cmp -s "$dir/a.img" "$dir/b.img" || die "the disks differ"
	ok "$current"
}

part outlives 1 restart kill restart_in_snapshot kill
part outlives 3 restart kill
start alpha
part refusals
if [ "$(id -u)" = 0 ] && { [ -d /sys/module/nbd ] || modprobe -q nbd 2>/dev/null; }; then
	part with_the_module
else
	part without_the_module
fi
stop alpha
