# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What system tests share. A test sources this, calls begin, then uses nodes and volumes; whatever
# was started or mounted is gone when it ends.
#
#   . "$(dirname "$0")/lib.sh"
#   begin                               a folder $dir, traps; $build, $io
#   for io in $(backends); do ... done  uring and aio, where the kernel has them
#   config NODE <<END ... END           NODE.conf; in it $dir etc. are the caller's business
#   start NODE / stop NODE / kill9 NODE the daemon with that config
#   off NODE ARGS...                    the command offsite at that node
#   volume_is NODE CONDITION            jq condition on the first volume's status
#   wait_for SECONDS WHAT COMMAND...    polls; on time-out (see patience): fail and end of the test
#   start_relay PORT OPTIONS...         relay.py in front of a port; relay ORDER... (see relay.py)
#   ok NAME / fail NAME WHY / skip NAME WHY
#   part FUNCTION ARGS...               runs it for itself: its failure does not end the test
#   need COMMAND...                     skips the whole test where one is missing

set -uo pipefail
TOP=${TOP:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
build=${BUILD:-$TOP/build}
case $build in /*) ;; *) build=$TOP/$build ;; esac
tools=$build/tests/system
offsited=$build/offsited
test_name=$(basename "$0" .sh)
PATH=/usr/bin:$PATH # Debian's programs, which the tests were written for, before wrappers of others
io=${io:-auto}
declare -A pid_of=()
cleanups=()
helpers=()
failed=0

ok() { echo "ok $test_name/$1"; }
fail() {
	echo "FAIL $test_name/$1: ${2:-}"
	failed=$((failed + 1))
}
skip() { echo "SKIP $test_name/$1: $2"; }
note() { echo "# $*"; }

need() {
	local tool
	for tool in "$@"; do
		command -v "$tool" >/dev/null || [ -x "$tools/$tool" ] || {
			skip "$test_name" "$tool is missing"
			exit 0
		}
	done
}

begin() {
	[ -x "$build/offsited" ] || {
		fail start "$build/offsited is not built"
		exit 1
	}
	dir=$(mktemp -d "${TMPDIR:-/tmp}/offsite-XXXXXX") || exit 1
	trap finish EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
}

# Detaches a loop device that is ours: its number may be another test's by now.
loop_end() { # DEVICE
	case $(losetup -n -O BACK-FILE "$1" 2>/dev/null) in
	"$dir"/*) losetup -d "$1" ;;
	esac
}

# Something to be undone at the end, the last first.
at_end() { cleanups+=("$*"); }

# Ends what was started here; the last lines of the logs if it went wrong.
end_all() { # STATUS
	local node i
	for ((i = ${#helpers[@]} - 1; i >= 0; i--)); do
		kill -KILL -- "-${helpers[i]}" 2>/dev/null
	done
	for ((i = ${#cleanups[@]} - 1; i >= 0; i--)); do
		eval "${cleanups[i]}"
	done
	for node in "${!pid_of[@]}"; do
		kill -CONT "${pid_of[$node]}" 2>/dev/null
		kill -KILL "${pid_of[$node]}" 2>/dev/null
	done
	{ wait; } 2>/dev/null
	[ "$1" -ne 0 ] || return 0
	for i in "$dir"/*.log "$dir"/*.out/*.log; do
		[ -s "$i" ] || continue
		echo "# --- end of ${i##*/}"
		tail -n 12 "$i" | sed 's/^/# /'
	done
}

finish() {
	local status=$?
	trap '' INT TERM
	trap - EXIT
	end_all $status
	[ $failed -eq 0 ] || status=1
	[ -n "${KEEP:-}" ] && echo "# kept: $dir" || rm -rf "$dir"
	exit $status
}

# A part of the test that fails for itself: what it starts ends with it, the next parts still run.
# shellcheck disable=SC2030,SC2031 # helpers is its own there, which is what is wanted
part() { # FUNCTION ARGUMENTS...
	(
		helpers=() cleanups=() pid_of=()
		trap 'status=$?; trap - EXIT; end_all $status; exit $status' EXIT
		"$@"
	) || failed=$((failed + 1))
}

# Ends the test: the reason is a failure of its own.
die() {
	fail "${current:-$test_name}" "$*"
	exit 1
}

# PIPE | found GREP'S ARGUMENTS: reads all there is. `grep -q` goes at its first match, who still writes gets SIGPIPE, and
# pipefail makes that a failure.
found() { [ "$(grep -c "$@")" -gt 0 ]; }

# A pause without a new program: nobody writes into this pipe.
exec {never}<> <(:)
pause_ms() {
	local seconds
	printf -v seconds '%d.%03d' $(($1 / 1000)) $(($1 % 1000))
	read -r -t "$seconds" -u $never || true
}

# A look costs 60 ms of a processor that others need: jq's start is most of it. So there are fewer as time passes.
longest_pause_ms=230
# SECONDS are what a machine needs that has nothing else to do; another one gets as many times as much. Nothing is
# checked by them: they only end what hangs.
patience=4
wait_for() { # SECONDS WHAT COMMAND...
	local end=$((SECONDS + patience * $1)) what=$2 pause=30
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || die "$what: not within the time"
		pause_ms $pause
		pause=$((pause < longest_pause_ms ? pause * 3 / 2 : pause))
	done
}

# Below the range that connections take theirs from; a hundred for each test that runs beside, each once, and none
# that another test has in mind.
free_port() {
	local port
	while :; do
		port=$((20000 + $$ % 120 * 100 + RANDOM % 100))
		grep -qxs $port "${dir%/*}"/offsite-*/ports && continue
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
	done
	echo $port | tee -a "$dir/ports"
}

# A number in [$1, $2], from the test's seed (call seed_random first).
seed_random() {
	seed=${SEED:-$((RANDOM * 32768 + RANDOM))}
	RANDOM=$((seed % 32768))
	note "seed $seed (SEED=$seed replays)"
}
between() { echo $(($1 + (RANDOM * 32768 + RANDOM) % ($2 - $1 + 1))); }

# uring where the kernel lets us, and aio.
backends() {
	local backend
	for backend in uring aio; do
		printf '[node]\nname = probe\nstate-dir = %s/probe\ncontrol = %s/probe.sock\nnbd-listen = unix:%s/probe.nbd\n[volume v]\nbacking = %s/probe.img\nsize = 1M\n' \
			"$dir" "$dir" "$dir" "$dir" >"$dir/probe.conf"
		"$build/offsited" --config "$dir/probe.conf" --io $backend >"$dir/probe.out" 2>&1 &
		local pid=$!
		# It serves, or it ends: a backend is not left out for being slow.
		while kill -0 $pid 2>/dev/null; do
			if "$build/offsite" --socket "$dir/probe.sock" status >/dev/null 2>&1; then
				echo $backend
				break
			fi
			pause_ms 30
		done
		kill -TERM $pid 2>/dev/null
		wait $pid 2>/dev/null
		rm -rf "$dir"/probe*
	done
}

# ---- nodes ---------------------------------------------------------------------------------------

config() { cat >"$dir/$1.conf"; }

# Two nodes a (primary) and b, protocol C, TLS by a pre-shared key, volume v of $1 MiB;
# more lines for the volume's section in $2, for the node's in $3. $link: where a finds b (default:
# b's own port).
pair_config() {
	local size=$1 volume_lines=${2:-} node_lines=${3:-} node
	port_b=$(free_port)
	[ -f "$dir/psk" ] || "$build/offsite" keygen "$dir/psk" >/dev/null
	for node in a b; do
		{
			cat <<-END
				[node]
				name = $node
				state-dir = $dir/$node.state
				control = $dir/$node.sock
				nbd-listen = unix:$dir/$node.nbd
				psk-file = $dir/psk
			END
			[ $node = b ] && echo "peer-listen = 127.0.0.1:$port_b"
			[ -n "$node_lines" ] && echo "$node_lines"
			cat <<-END
				[volume v]
				backing = $dir/$node.img
				size = ${size}M
				role = $([ $node = a ] && echo primary || echo secondary)
			END
			[ $node = a ] && echo "peer = 127.0.0.1:${link:-$port_b}"
			echo "$volume_lines"
		} >"$dir/$node.conf"
	done
}

# Starts without waiting.
launch() {
	"$offsited" --config "$dir/$1.conf" --io "$io" >>"$dir/$1.log" 2>&1 &
	pid_of[$1]=$!
}
answers() { off "$1" status; }
start() {
	launch "$1"
	wait_for 15 "start of node $1" answers "$1"
}
stop() {
	local status
	kill -TERM "${pid_of[$1]}"
	wait "${pid_of[$1]}"
	status=$?
	unset "pid_of[$1]"
	[ $status -eq 0 ] || die "node $1 ended with status $status"
}
kill9() {
	{
		kill -KILL "${pid_of[$1]}"
		wait "${pid_of[$1]}"
	} 2>/dev/null
	unset "pid_of[$1]"
}
alive() { kill -0 "${pid_of[$1]}" 2>/dev/null; }
# The processor's time that the node took since its start, which does not depend on what runs beside.
processor_ms() { # NODE
	local stat
	read -r stat <"/proc/${pid_of[$1]}/stat"
	set -- ${stat##*) }
	echo $(((${12} + ${13}) * 1000 / $(getconf CLK_TCK)))
}

off() {
	local node=$1
	shift
	"$build/offsite" --socket "$dir/$node.sock" "$@"
}
# Among the node's events, which follow its state: NODE WORDS
says() { off "$1" events >"$dir/events.out" && grep -q "$2" "$dir/events.out"; }
volume_is() { off "$1" status --json | jq -e ".volumes[0] | $2"; }
volume_get() { off "$1" status --json | jq -r ".volumes[0] | $2"; }
streaming() { volume_is "$1" '.replication.state == "streaming"'; }
# A client of NODE's is at work: it has connected, and COUNT (50) of its writes are answered.
wait_writes() { # NODE [COUNT]
	local before
	wait_for 15 "a client on $1" volume_is "$1" '.clients >= 1'
	before=$(volume_get "$1" .stats.writes)
	wait_for 15 "a client's writes on $1" volume_is "$1" ".stats.writes >= $before + ${2:-50}"
}
# By the command that is made for it: a look costs nothing.
wait_state() { # SECONDS WHAT NODE STATE
	local why
	why=$(off "$3" wait v --for "$4" --timeout "$((patience * $1))s" 2>&1) || die "$2: $why"
}
# In sync is what is durable: behind a catch-up that is being applied it may stand in NODE's log, and not on its disk yet.
applied() { # NODE
	wait_for 60 "$1: the log is applied" volume_is "$1" '.replication.staged_bytes == 0'
}
uri() { echo "nbd+unix:///${2:-v}?socket=$dir/$1.nbd"; }

# A relay.py in front of $1 (a port), with options; where it listens in $link, orders by `relay`.
start_relay() { # PORT OPTIONS...
	link=$(free_port)
	coproc RELAY { exec python3 "$TOP/tests/system/relay.py" "$link" "$@" --control "$dir/relay.sock"; }
	relay_pid=$RELAY_PID
	at_end "kill -CONT $relay_pid 2>/dev/null; kill -KILL $relay_pid 2>/dev/null"
	read -r -t 60 -u "${RELAY[0]}" || die "the relay does not start"
}
relay() { # ORDER...
	python3 "$TOP/tests/system/relay.py" --send "$dir/relay.sock" "$@" || die "the relay refuses: $*"
}

# Runs in the background, a process group of its own; its pid in $helper.
# shellcheck disable=SC2031
helper_start() {
	set -m
	"$@" &
	helper=$!
	set +m
	helpers+=("$helper")
}
helper_end() { # PID: waits for it
	wait "$1"
}
