# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The part of bench/vm.sh in the machine. Prints "CONFIGURATION JOB VALUE".

size_mib=256
jobs_all="w4q1 w4q32 f4q1 w1m r4q1 r4q32"
# Without it DRBD asks a helper program before a resync, which has no configuration here, and never starts.
modprobe drbd usermode_helper=/bin/true || fail "no drbd"
modprobe brd rd_nr=3 rd_size=$((size_mib * 1024)) && modprobe nbd nbds_max=4 || fail "no brd, no nbd"
mkdir -p /var/lib/drbd /run/bench
for disk in /dev/ram0 /dev/ram1 /dev/ram2; do dd if=/dev/zero of=$disk bs=1M count=$size_mib oflag=direct status=none; done

fio_jobs() { # CONFIGURATION DEVICE: all jobs in one start of fio, which is slow here
	local job
	{
		printf '[global]\nfilename=%s\ndirect=1\nioengine=libaio\ntime_based=1\nruntime=%s\nramp_time=0.5\n' "$2" "$each"
		printf 'thread=1\nnorandommap=1\nrandrepeat=0\nsize=%sM\nstonewall\n' $((size_mib - 16))
		for job in $jobs_all; do
			printf '[%s]\n' "$job"
			case $job in
			w4q1) printf 'rw=randwrite\nbs=4k\niodepth=1\n' ;;
			w4q32) printf 'rw=randwrite\nbs=4k\niodepth=32\n' ;;
			f4q1) printf 'rw=randwrite\nbs=4k\niodepth=1\nfdatasync=1\n' ;;
			w1m) printf 'rw=write\nbs=1M\niodepth=4\n' ;;
			r4q1) printf 'rw=randread\nbs=4k\niodepth=1\n' ;;
			r4q32) printf 'rw=randread\nbs=4k\niodepth=32\n' ;;
			esac
		done
	} >/run/bench/jobs
	fio --output-format=json --output=/run/bench/out /run/bench/jobs >/run/bench/log 2>&1 || fail "fio on $1: $(tail -n 3 /run/bench/log)"
	jq -r --arg c "$1" '.jobs[] | [$c, .jobname, if .jobname == "w1m" then .write.bw_bytes / 1048576 else .write.iops + .read.iops end] | join(" ")' \
		</run/bench/out
}
scattered() { # DEVICE: the same blocks for each
	fio --name=x --filename="$1" --direct=1 --ioengine=libaio --iodepth=32 --rw=randwrite --bs=4k --size=240M \
		--io_size=64M --randseed=7 --thread >/run/bench/log 2>&1 || fail "scattered writes"
}

# ---- DRBD: both ends in this kernel, as two resources ------------------------------------------------------

drbd_meta() { # DISK MINOR
	dd if=/dev/zero of="$1" bs=1M seek=$((size_mib - 1)) count=1 conv=notrunc status=none
	drbdmeta --force "$2" v08 "$1" internal create-md >/dev/null 2>&1 || fail "drbdmeta"
}
drbd_connect() { # RESOURCE PORT PEER-PORT PROTOCOL
	drbdsetup connect "$1" 127.0.0.1:$2 127.0.0.1:$3 --protocol="$4" --ping-timeout=30
}
drbd_up() { # PROTOCOL
	drbd_meta /dev/ram0 0
	drbd_meta /dev/ram1 1
	drbdsetup new-resource a && drbdsetup new-minor a 0 0 && drbdsetup attach 0 /dev/ram0 /dev/ram0 internal || fail "drbd a"
	drbdsetup new-resource b && drbdsetup new-minor b 1 0 && drbdsetup attach 1 /dev/ram1 /dev/ram1 internal || fail "drbd b"
	drbd_connect a 7788 7789 "$1" && drbd_connect b 7789 7788 "$1" || fail "drbd connect"
	drbdsetup wait-connect 0 --wfc-timeout=60 --degr-wfc-timeout=60 --outdated-wfc-timeout=60 >/dev/null || fail "drbd wait-connect"
	# Both are blank: no first sync.
	drbdsetup new-current-uuid --clear-bitmap 0
	wait_for 240 "DRBD in sync" drbd_in_sync
	drbdsetup primary 0 || fail "drbd primary"
}
drbd_down() {
	drbdsetup down a
	drbdsetup down b
}
drbd_in_sync() {
	[ "$(grep -c 'cs:Connected.*UpToDate/UpToDate' /proc/drbd)" = 2 ] && ! grep -q 'oos:[1-9]' /proc/drbd
}
drbd_resync() { # CONFIGURATION OPTIONS...
	local begun configuration=$1
	shift
	drbd_up C
	[ $# -eq 0 ] || { drbdsetup disk-options 0 "$@" && drbdsetup disk-options 1 "$@"; } || fail "disk-options"
	drbdsetup disconnect 127.0.0.1:7788 127.0.0.1:7789
	scattered /dev/drbd0
	begun=$(seconds)
	drbd_connect a 7788 7789 C
	wait_for 240 "resync of DRBD" drbd_in_sync
	echo "$configuration resync $(since "$begun")"
	drbdsetup secondary 0
	drbd_down
	cmp -n $(((size_mib - 1) << 20)) /dev/ram0 /dev/ram1 >&2 || fail "DRBD's disks differ"
}

# ---- offsite: two daemons ------------------------------------------------------------------------------------

offsite_at() {
	local node=$1
	shift
	offsite --socket "/run/bench/$node.sock" "$@"
}
offsite_node() { # a|b PROTOCOL (or -: alone)
	cat >"/run/bench/$1.conf" <<-END
		[node]
		name = $1
		state-dir = /run/bench/$1.state
		control = /run/bench/$1.sock
		nbd-listen = unix:/run/bench/$1.nbd
		peer-listen = 127.0.0.1:$([ "$1" = a ] && echo 7790 || echo 7791)
		peer-plaintext = yes
		[volume v]
		backing = $([ "$1" = a ] && echo /dev/ram0 || echo /dev/ram1)
		size = $((size_mib - 1))M
		role = $([ "$1" = a ] && echo primary || echo secondary)
		$([ "$2" = - ] || printf 'peer = 127.0.0.1:%s\nprotocol = %s\n' "$([ "$1" = a ] && echo 7791 || echo 7790)" "$2")
	END
	offsited --config "/run/bench/$1.conf" >>/out/offsited.log 2>&1 &
	echo $! >"/run/bench/$1.pid"
	wait_for 240 "start of offsite $1" offsite_at "$1" status
}
offsite_in_sync() {
	offsite_at a status --json | jq -e '.volumes[0].replication | .state == "streaming" and .out_of_sync_bytes == 0 and .lag_bytes == 0'
}
offsite_up() { # PROTOCOL
	for disk in /dev/ram0 /dev/ram1; do dd if=/dev/zero of=$disk bs=1M count=$size_mib oflag=direct status=none; done
	rm -rf /run/bench/?.state
	[ "$1" = - ] || offsite_node b "$1"
	offsite_node a "$1"
	[ "$1" = - ] || wait_for 240 "offsite in sync" offsite_in_sync
	device=$(offsite_at a attach v --json | jq -r .device)
	[ -b "$device" ] || fail "offsite attach"
}
offsite_down() {
	local node
	offsite_at a detach v >/dev/null || fail "offsite detach"
	for node in a b; do
		[ -f /run/bench/$node.pid ] || continue
		kill "$(cat /run/bench/$node.pid)"
		wait_for 240 "end of offsite $node" gone "$(cat /run/bench/$node.pid)"
		rm /run/bench/$node.pid
	done
}
gone() { ! kill -0 "$1"; }
offsite_resync() {
	local begun
	offsite_up C
	offsite_at a disconnect v >/dev/null || fail "offsite disconnect"
	scattered "$device"
	begun=$(seconds)
	offsite_at a connect v >/dev/null
	wait_for 240 "resync of offsite" offsite_in_sync
	echo "offsite_C resync $(since "$begun")"
	offsite_down
	cmp -n $(((size_mib - 2) << 20)) /dev/ram0 /dev/ram1 >&2 || fail "offsite's disks differ"
}

nbdkit_run() {
	rm -f /run/bench/nbdkit.sock
	nbdkit -f -U /run/bench/nbdkit.sock file /dev/ram2 >/out/nbdkit.log 2>&1 &
	local server=$!
	wait_for 240 "nbdkit" test -S /run/bench/nbdkit.sock
	nbd-client -unix /run/bench/nbdkit.sock /dev/nbd3 >/dev/null 2>&1 || fail nbd-client
	fio_jobs nbdkit /dev/nbd3
	nbd-client -d /dev/nbd3 >/dev/null 2>&1
	kill $server
	wait $server
}

wanted() { [[ " $parts " = *" $1 "* ]]; }
for round in $(seq "$rounds"); do
	! wanted bare || fio_jobs bare /dev/ram2
	! wanted nbdkit || nbdkit_run
	if wanted alone; then
		offsite_up -
		fio_jobs offsite "$device"
		offsite_down
	fi
	for protocol in A C; do
		wanted $protocol || continue
		drbd_up $protocol
		fio_jobs drbd_$protocol /dev/drbd0
		drbdsetup secondary 0
		drbd_down
		offsite_up $protocol
		fio_jobs offsite_$protocol "$device"
		offsite_down
	done
	wanted resync || continue
	drbd_resync drbd_C
	# Its rate controller off.
	drbd_resync drbd_C_free --c-plan-ahead=0 --resync-rate=1G --c-min-rate=0
	offsite_resync
done
