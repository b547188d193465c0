# shellcheck shell=bash disable=SC2054
# SPDX-License-Identifier: Apache-2.0
#
# Virtual machines for tests: Debian's kernel and this host's packages in QEMU without acceleration. On top
# of tests/system/lib.sh (begin, ok, fail, wait_for, part...). The script runs on the host and
# says what the machines do:
#
#   . "$(dirname "$0")/lib.sh"
#   vm_begin                            begin; the whole test is skipped where machines cannot run
#   machine NAME OPTIONS...             describes one (it runs after boot NAME):
#     -m MIB -c CPUS                    memory (1024), processors (2)
#     -d DISK=SIZE                      a disk that has a volatile write cache: a power cut loses all that
#                                       was not flushed. /dev/disk/by-serial/DISK in the machine
#     -r DISK=SIZE                      a disk that keeps every write at once, and is faster
#     -l IP/BITS                        listens for the other machine's link, with this address; -j IP/BITS joins.
#                                       The one that joins may be power cut and booted again, not the other
#     -u                                a network card to this host (10.0.2.2 there is 127.0.0.1 here)
#     -s                                systemd runs it (else a script: seconds less)
#     -v                                udev runs in it (with -s it does anyway)
#     -k                                its root disk lives on over boots (else each boot begins anew)
#     -a 'ARGUMENTS'                    more for the kernel's command line; vm.bare=1: offsite is not installed
#   boot NAME...                        starts, and waits until all are there
#   on NAME [COMMAND...]                a line of bash (or a script on standard input) as root there; its output,
#                                       its exit status. guest.sh is there already. 400 s; with limit=N others
#   behind NAME [COMMAND...]            the same in the background; $job. job_end JOB waits: output and status;
#                                       job_runs JOB; job_output JOB: so far
#   power_cut NAME                      killed at once, and what its disks had not flushed is lost
#   power_off NAME                      flushed and off in order (with -s: systemctl poweroff)
#   reboots NAME                        waits for a machine that reboots by itself, and boots it again
#
# In a machine the source tree is /src, the build folder /build, what make install put there is installed, and
# /out is shared with $dir/NAME.out. The console's text is in $dir/NAME.console.log, shown when the test fails.
# KEEP=1 keeps $dir. VM_SHELL=NAME: when the test ends, a prompt for commands in that machine.

. "$(dirname "${BASH_SOURCE[0]}")/../system/lib.sh"
vm_images=${VM_IMAGES:-$build/vm}
qemu='qemu-system-x86_64'
longest_pause_ms=60 # a look for a file costs nothing
patience=1          # the times below are those of a machine that is busy, under emulation
declare -A vm_options=() vm_pid=() vm_disk_pids=() vm_runs=()
vm_link_port=

vm_begin() {
	local why status
	need $qemu qemu-img nbdkit jq
	begin
	[ -z "${VM_SHELL:-}" ] || trap 'vm_prompt "$VM_SHELL"; finish' EXIT
	$qemu -accel help 2>/dev/null | found '^tcg$' || {
		skip "$test_name" "this QEMU has no software emulation"
		exit 0
	}
	why=$(BUILD=$build "$TOP/tests/vm/image.sh" "$vm_images" 2>&1)
	status=$?
	[ $status -ne 77 ] || {
		skip "$test_name" "${why##*$'\n'}"
		exit 0
	}
	[ $status -eq 0 ] || die "the root image is not built (status $status): $why"
	why=$(make -s -C "$TOP" BUILD="$build" DESTDIR="$dir/installed" PREFIX=/usr install 2>&1) ||
		die "make install: $why"
}

machine() {
	local name=$1
	shift
	vm_options[$name]=$(printf '%q ' "$@")
	mkdir -p "$dir/$name.out"
}

# A prompt: what is typed runs in a machine. Ends with the end of the input.
vm_prompt() { # NAME
	local line
	while vm_alive "$1" && IFS= read -r -e -p "$1# " line; do on "$1" "$line"; done
}

# A process that ends with this script, however that ends.
vm_process() { # COMMAND...
	helper_start setpriv --pdeathsig KILL "$@"
}

# nbdkit's cache filter is a disk's volatile write cache: the file has what was flushed, nothing else.
vm_volatile_disk() { # NAME DISK SIZE
	local socket=$dir/$1.$2.sock image=$dir/$1.$2.img
	[ -f "$image" ] || truncate -s "$3" "$image" || die "disk $2 of $1"
	rm -f "$socket"
	vm_process nbdkit -f -U "$socket" --filter=cache file "$image" cache=writeback cache-on-read=false \
		cache-min-block-size=4K >>"$dir/$1.disk.log" 2>&1
	vm_disk_pids[$1]+=" $helper"
	wait_for 60 "disk $2 of $1" test -S "$socket"
}

vm_launch() { # NAME
	local name=$1 memory=1024 cpus=2 args='' udev='' systemd='' keep='' ip='' option OPTIND=1 OPTARG value
	local arguments=() share
	eval "set -- ${vm_options[$name]}"
	vm_disk_pids[$name]=
	while getopts m:c:d:r:l:j:usvka: option; do
		value=${OPTARG:-}
		case $option in
		m) memory=$value ;;
		c) cpus=$value ;;
		d)
			vm_volatile_disk "$name" "${value%%=*}" "${value#*=}"
			arguments+=(-drive "file=nbd:unix:$dir/$name.${value%%=*}.sock,format=raw,if=none,id=${value%%=*},cache=writeback,discard=unmap"
				-device "virtio-blk-pci,drive=${value%%=*},serial=${value%%=*}")
			;;
		r)
			[ -f "$dir/$name.${value%%=*}.img" ] || truncate -s "${value#*=}" "$dir/$name.${value%%=*}.img"
			arguments+=(-drive "file=$dir/$name.${value%%=*}.img,format=raw,if=none,id=${value%%=*},cache=unsafe,discard=unmap"
				-device "virtio-blk-pci,drive=${value%%=*},serial=${value%%=*}")
			;;
		l)
			[ -n "$vm_link_port" ] || vm_link_port=$(free_port)
			ip=$value
			arguments+=(-netdev "socket,id=link,listen=127.0.0.1:$vm_link_port"
				-device virtio-net-pci,netdev=link,mac=52:54:00:00:00:01,romfile=)
			;;
		j)
			ip=$value
			arguments+=(-netdev "socket,id=link,connect=127.0.0.1:$vm_link_port"
				-device virtio-net-pci,netdev=link,mac=52:54:00:00:00:02,romfile=)
			;;
		u) arguments+=(-netdev user,id=host -device virtio-net-pci,netdev=host,mac=52:54:00:00:01:01,romfile=) ;;
		s) systemd=1 ;;
		v) udev=1 ;;
		k) keep=1 ;;
		a) args=$value ;;
		*) die "machine $name: no such option" ;;
		esac
	done
	[ -n "$keep" ] && [ -f "$dir/$name.root" ] ||
		qemu-img create -q -f qcow2 -b "$vm_images/root.img" -F raw "$dir/$name.root" ||
		die "root disk of $name"
	for share in src=$TOP build=$build installed=$dir/installed out=$dir/$name.out; do
		arguments+=(-virtfs "local,path=${share#*=},mount_tag=${share%%=*},security_model=none,multidevs=remap$([ ${share%%=*} = out ] || echo ,readonly=on)")
	done
	[ -p "$dir/$name.say.in" ] || mkfifo "$dir/$name.say.in" "$dir/$name.say.out"
	rm -f "$dir/$name.out/up"
	vm_process $qemu -name "$name" -machine q35,vmport=off,hpet=off -nodefaults -no-user-config -nographic \
		-no-reboot -display none -monitor none -accel tcg,thread=multi,tb-size=512 -cpu max,-erms,-fsrm \
		-smp "$cpus" -m "$memory" -kernel "$vm_images/vmlinux" -initrd "$vm_images/initrd" \
		-append "console=ttyS0 quiet panic=-1 clocksource=tsc tsc=reliable mitigations=off nokaslr random.trust_cpu=on cryptomgr.notests audit=0 apparmor=0 no_timer_check rcupdate.rcu_expedited=1 vm.name=$name${ip:+ vm.ip=$ip}${udev:+ vm.udev=1}${systemd:+ vm.init=systemd} $args" \
		-drive "file=$dir/$name.root,format=qcow2,if=none,id=root,cache=unsafe" \
		-device virtio-blk-pci,drive=root,serial=root -device virtio-rng-pci \
		-chardev "file,id=console,path=$dir/$name.console.log,append=on" -serial chardev:console \
		-chardev "pipe,id=say,path=$dir/$name.say" -serial chardev:say "${arguments[@]}" \
		>>"$dir/$name.qemu.log" 2>&1
	vm_pid[$name]=$helper
	vm_runs[$name]=0
}

vm_alive() { kill -0 "${vm_pid[$1]}" 2>/dev/null; }
vm_up_or_dead() { [ -s "$dir/$1.out/up" ] || ! vm_alive "$1"; }

boot() {
	local name started=$SECONDS
	for name in "$@"; do vm_launch "$name"; done
	for name in "$@"; do
		wait_for 300 "start of machine $name" vm_up_or_dead "$name"
		[ -s "$dir/$name.out/up" ] || die "machine $name ended at its start: $(tail -n 3 "$dir/$name.qemu.log" "$dir/$name.console.log")"
		note "machine $name: up after $((SECONDS - started)) s, $(cat "$dir/$name.out/up") s of its own time"
	done
}

behind() { # NAME [COMMAND...]: the job's name in $job, also for the caller of on
	# Also in a subshell, $(on ...), no name comes twice.
	local name=$1 number=${EPOCHREALTIME//[.,]/}-$BASHPID
	shift
	vm_alive "$name" || die "machine $name is gone: $(tail -n 3 "$dir/$name.console.log")"
	job=$name/$number
	{
		echo '. /src/tests/vm/guest.sh'
		if [ $# -gt 0 ]; then echo "$*"; else cat; fi
	} >"$dir/$name.out/$number.sh"
	echo "$number" >"$dir/$name.say.in"
}
vm_path() { echo "$dir/${1%/*}.out/${1#*/}"; }
job_output() { cat "$(vm_path "$1").out" 2>/dev/null; }
job_over() { [ -s "$(vm_path "$1").rc" ] || ! vm_alive "${1%/*}"; }
job_runs() { ! job_over "$1"; }
job_end() {
	wait_for "${limit:-400}" "what machine ${1%/*} does ($(sed -n 2p "$(vm_path "$1").sh" | cut -c1-60))" job_over "$1"
	job_output "$1"
	# A machine that died says nothing: 125.
	return "$(cat "$(vm_path "$1").rc" 2>/dev/null || echo 125)"
}
on() {
	local job
	behind "$@"
	job_end "$job"
}

vm_end() { # NAME SIGNAL: the machine first, then its disks
	local pid
	for pid in ${vm_pid[$1]} ${vm_disk_pids[$1]}; do
		kill "-$2" "$pid" 2>/dev/null
		wait "$pid" 2>/dev/null
	done
	unset "vm_pid[$1]"
}
power_cut() {
	local pid
	# All at the same moment: what a disk's cache holds is not written by the end of its machine.
	kill -KILL ${vm_disk_pids[$1]} "${vm_pid[$1]}" 2>/dev/null
	for pid in ${vm_disk_pids[$1]} ${vm_pid[$1]}; do wait "$pid" 2>/dev/null; done
	unset "vm_pid[$1]"
}
power_off() {
	behind "$1" 'sync; if [ -d /run/systemd/system ]; then systemctl poweroff; else echo o >/proc/sysrq-trigger; fi'
	vm_gone "$1"
}
vm_dead() { ! vm_alive "$1"; }
vm_gone() {
	wait_for 240 "machine $1 going off" vm_dead "$1"
	vm_end "$1" TERM
}
reboots() {
	vm_gone "$1"
	boot "$1"
}
