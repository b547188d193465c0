#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# run.sh KIND...: runs the tests of these kinds (unit fuzz sim system vm vm-long), TEST_JOBS at a time, and
# ends with one line: N passed, N failed, N skipped. Logs of failures are printed. Most tests of daemons wait for
# them, virtual machines keep processors busy: so there is one machine at a time, and the others beside it.
#
# What a test says:
#   cmocka programs        counted from their output
#   scripts and others     a line "ok NAME", "FAIL NAME[: why]" or "SKIP NAME: why" for each test
# Exit status 77 without such a line: skipped. Anything else but 0: failed. A source with the words
# "time limit: N s" gets N seconds instead of 120. "in the place of a machine" in a script: none runs
# beside it.
#
# Environment: BUILD, FUZZ_BUILD, FUZZ_SECONDS, TEST_JOBS, SIM_ARGS, ONLY (words; only tests whose
# name contains one of them), KEEP_LOGS (a directory), REPEAT (machines only: each test so many times, and how often
# all of them passed).
set -u
cd "$(dirname "$0")/.." || exit 1
export BUILD=${BUILD:-build} TOP=$PWD
FUZZ_BUILD=${FUZZ_BUILD:-$BUILD/fuzz}
FUZZ_SECONDS=${FUZZ_SECONDS:-5}
TEST_JOBS=${TEST_JOBS:-4}
case $BUILD in /*) ;; *) BUILD=$PWD/$BUILD ;; esac

logs=${KEEP_LOGS:-$(mktemp -d /tmp/offsite-tests-XXXXXX)}
mkdir -p "$logs"
declare -A name_of=() group_of=()
passed=0 failed=0 skipped=0 spent=0
failures=()

clean_up() {
	local pid
	trap '' INT TERM
	for pid in "${!group_of[@]}"; do
		kill -TERM -- "-$pid" 2>/dev/null
	done
	[ ${#group_of[@]} -gt 0 ] && sleep 2
	for pid in "${!group_of[@]}"; do
		kill -KILL -- "-$pid" 2>/dev/null
	done
	[ -n "${KEEP_LOGS:-}" ] || rm -rf "$logs"
}
trap 'clean_up; exit 130' INT TERM
trap clean_up EXIT

# The results in a log: "passed failed skipped". Lines like "ok 1 - x" of foreign tools within a
# log do not count: only NAMEs of ours, [a-z0-9_/.-]+.
count_results() {
	awk '
	/^\[ RUN      \] /      { running = $4; next }
	/^\[       OK \] /      { if (running != "") ok++; running = ""; next }
	/^\[  SKIPPED \] /      { if (running != "") skip++; running = ""; next }
	/^\[  (FAILED |ERROR  ) \] [A-Za-z0-9_]+$/ { if (running != "") fail++; running = ""; next }
	/^ok [a-zA-Z_][a-zA-Z0-9_\/.-]*/           { ok++ }
	/^FAIL [a-zA-Z_][a-zA-Z0-9_\/.-]*/         { fail++ }
	/^SKIP [a-zA-Z_][a-zA-Z0-9_\/.-]*/         { skip++ }
	END { if (running != "") fail++; print ok + 0, fail + 0, skip + 0 }' "$1"
}

# The processors' time of all that was waited for, in milliseconds: $spent.
count_spent() {
	local user system
	times >"$logs/times"
	read -r user system < <(tail -n 1 "$logs/times")
	spent=$(($(in_ms "$user") + $(in_ms "$system")))
}

in_ms() { # 1m2.345s
	local minutes=${1%m*} seconds=${1#*m}
	seconds=${seconds%s}
	echo $((minutes * 60000 + ${seconds%.*} * 1000 + 10#${seconds#*.}))
}

report() { # NAME STATUS SECONDS LIMIT PROCESSOR-SECONDS
	local name=$1 status=$2 seconds=$3 limit=$4 used=$5 log=$logs/${1//\//_}.log ok fail skip why=
	read -r ok fail skip <<<"$(count_results "$log")"
	if [ "$status" -eq 124 ] || [ "$status" -eq 137 ] && [ "$seconds" -ge "$limit" ]; then
		why="time limit of $limit s"
	elif [ "$status" -eq 77 ] && [ $((ok + fail + skip)) -eq 0 ]; then
		skip=1
	elif [ "$status" -gt 128 ]; then
		why="ended by signal $((status - 128))"
	elif [ "$status" -ne 0 ] && [ "$fail" -eq 0 ]; then
		why="exit status $status"
	elif [ $((ok + fail + skip)) -eq 0 ]; then
		why="no result"
	fi
	[ -n "$why" ] && [ "$fail" -eq 0 ] && fail=1
	passed=$((passed + ok)) failed=$((failed + fail)) skipped=$((skipped + skip))
	if [ "$fail" -gt 0 ]; then
		failures+=("$name")
		printf 'FAIL  %-34s %3d ok, %d failed (%d s, processor %d s)%s\n' "$name" "$ok" "$fail" \
			"$seconds" "$used" "${why:+: $why}"
		echo "----- $name: last lines of its output -----"
		tail -n 60 "$log"
		echo "----- end of $name -----"
	elif [ "$ok" -eq 0 ]; then
		printf 'SKIP  %-34s %s\n' "$name" \
			"$(grep -m1 '^SKIP' "$log" | sed 's/^SKIP //' || echo 'not possible here')"
	else
		printf 'ok    %-34s %3d ok%s (%d s, processor %d s)\n' "$name" "$ok" \
			"$([ "$skip" -gt 0 ] && echo ", $skip skipped")" "$seconds" "$used"
		[ "$skip" -gt 0 ] && grep '^SKIP' "$log" | sed 's/^/      /'
		grep '^note: ' "$log" | sed 's/^/      /'
	fi
	return 0
}

reap_one() {
	local pid status
	wait -n -p pid "${!name_of[@]}"
	status=$?
	[ -n "${pid:-}" ] || return 0
	local name limit started
	IFS=' ' read -r name limit started <<<"${name_of[$pid]}"
	# What it left behind in its process group.
	kill -KILL -- "-$pid" 2>/dev/null
	unset "name_of[$pid]" "group_of[$pid]"
	[ "$pid" != "$machine" ] || machine=
	local before=$spent
	count_spent
	report "$name" "$status" $((SECONDS - started)) "$limit" $(((spent - before) / 1000))
}

wanted() {
	local word
	[ -n "${ONLY:-}" ] || return 0
	for word in $ONLY; do
		[[ $1 == *$word* ]] && return 0
	done
	return 1
}

limit_of() { # SOURCE
	local limit
	limit=$(grep -m1 -o 'time limit: [0-9]* s' "$1" 2>/dev/null | tr -dc 0-9)
	echo "${limit:-120}"
}

# What is to be run, in this order: "NAME LIMIT COMMAND...", quoted.
waiting=() waiting_machines=()
machine= # the process that is one

# Machines come first where processors are short: they are one after the other, and what takes longest.
later() { # NAME LIMIT COMMAND...
	wanted "$1" && waiting+=("$(printf '%q ' "${@:1:2}" nice -n 4 "${@:3}")")
}
later_machine() { # the same
	wanted "$1" && waiting_machines+=("$(printf '%q ' "$@")")
}

start() { # NAME LIMIT COMMAND...: $pid
	local name=$1 limit=$2
	shift 2
	# timeout makes a process group of its own, with its pid as the number.
	timeout -k 10 "$limit" "$@" >"$logs/${name//\//_}.log" 2>&1 </dev/null &
	pid=$!
	name_of[$pid]="$name $limit $SECONDS"
	group_of[$pid]=1
}

run_all() {
	local pid
	while [ $((${#name_of[@]} + ${#waiting[@]} + ${#waiting_machines[@]})) -gt 0 ]; do
		if [ ${#name_of[@]} -ge "$TEST_JOBS" ]; then
			reap_one
		elif [ -z "$machine" ] && [ ${#waiting_machines[@]} -gt 0 ]; then
			eval "start ${waiting_machines[0]}"
			waiting_machines=("${waiting_machines[@]:1}")
			machine=$pid
		elif [ ${#waiting[@]} -gt 0 ]; then
			eval "start ${waiting[0]}"
			waiting=("${waiting[@]:1}")
		else
			reap_one
		fi
	done
}

skip_all() { # NAME WHY
	wanted "$1" || return 0
	echo "SKIP  $1: $2"
	skipped=$((skipped + 1))
}

run_unit() {
	local source name
	for source in tests/unit/*.c; do
		name=$(basename "$source" .c)
		later "unit/$name" "$(limit_of "$source")" "$BUILD/tests/unit/$name"
	done
}

run_one_fuzz() { # PROGRAM NAME: as a child process, through the environment
	local corpus scratch kept=() seconds=$FUZZ_SECONDS
	[ "$2" = fuzz_replication ] && seconds=$((seconds * 12)) # a peer's bytes: all kinds of frames in one
	scratch=$(mktemp -d /tmp/offsite-fuzz-XXXXXX)
	corpus=tests/fuzz/corpus/$2
	mkdir "$scratch/new"
	# The kept cases first, each once; then new ones for a while.
	if [ -d "$corpus" ] && ! "$1" -runs=0 "$corpus"; then
		echo "FAIL $2: a kept case"
		rm -rf "$scratch"
		return 1
	fi
	[ -d "$corpus" ] && kept=("$corpus")
	if "$1" -max_total_time="$seconds" -max_len=8192 -rss_limit_mb=4096 \
		-artifact_prefix="$scratch/" "$scratch/new" "${kept[@]}"; then
		echo "ok $2"
	else
		for file in "$scratch"/crash-* "$scratch"/leak-* "$scratch"/timeout-* "$scratch"/oom-*; do
			[ -f "$file" ] && { echo "input:"; base64 "$file"; }
		done
		echo "FAIL $2"
	fi
	rm -rf "$scratch"
}
export -f run_one_fuzz
export FUZZ_SECONDS

run_fuzz() {
	local source name
	for source in tests/fuzz/*.c; do
		[ -f "$source" ] || continue
		name=$(basename "$source" .c)
		if [ ! -x "$FUZZ_BUILD/tests/fuzz/$name" ]; then
			skip_all "fuzz/$name" "needs clang"
			continue
		fi
		# shellcheck disable=SC2016 # for the other shell
		later "fuzz/$name" $((FUZZ_SECONDS * 12 + 300)) bash -c 'run_one_fuzz "$0" "$1"' \
			"$FUZZ_BUILD/tests/fuzz/$name" "$name"
	done
}

run_sim() {
	[ -x "$BUILD/tests/sim/sim" ] || return 0
	later sim/sim 900 bash -c '"$@" && echo "ok seeds" || echo "FAIL seeds"' sim \
		"$BUILD/tests/sim/sim" ${SIM_ARGS:-}
	# The same with a fault in the engine, one at a time: each has to be caught.
	later sim/mutations 900 bash -c 'set -o pipefail; tests/sim/mutations.sh |
		sed -E "s/^(caught|equivalent) ([a-z_]+):/ok \2 \1:/; s/^MISSED /FAIL /"'
}

run_system() {
	local script name
	for script in tests/system/*.sh; do
		name=$(basename "$script" .sh)
		[[ $name == lib || $name == *_lib ]] && continue
		if grep -q 'in the place of a machine' "$script"; then
			later_machine "system/$name" "$(limit_of "$script")" bash "$script"
		else
			later "system/$name" "$(limit_of "$script")" bash "$script"
		fi
	done
}

run_machines() { # KIND SCRIPT...
	local kind=$1 script name round
	shift
	for round in $(seq "${REPEAT:-1}"); do
		for script in "$@"; do
			name=$(basename "$script" .sh)
			[[ $name =~ ^(lib|guest|image)$ ]] && continue
			later_machine "$kind/$name${REPEAT:+#$round}" "$(limit_of "$script")" bash "$script"
		done
	done
}

# Of the rounds with REPEAT.
report_rounds() {
	local round failed_rounds=0
	for round in $(seq "$REPEAT"); do
		[[ " ${failures[*]} " != *"#$round "* ]] || failed_rounds=$((failed_rounds + 1))
	done
	echo "$REPEAT rounds, $((REPEAT - failed_rounds)) without a failure"
}
run_vm() { run_machines vm tests/vm/*.sh; }

for kind in "$@"; do
	case $kind in
	unit | fuzz | sim | system | vm) "run_$kind" ;;
	vm-long) run_machines vm-long tests/vm/long/*.sh ;;
	*)
		echo "run.sh: unknown kind of test: $kind" >&2
		exit 2
		;;
	esac
done
run_all

count_spent
echo "in $SECONDS s, with $((spent / 1000)) s of the processors"
[ ${#failures[@]} -eq 0 ] || echo "failed: ${failures[*]}"
[ -z "${REPEAT:-}" ] || report_rounds
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
