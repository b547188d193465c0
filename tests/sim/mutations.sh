#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Can the simulator fail? Builds it with -DOFFSITE_MUTATIONS, switches each deliberate fault in the
# engine (MUTATE(name) in daemon/) on in turn, and runs seeds until one is caught: first the seed that
# caught it when tests/sim/mutations.seeds was written (--update), which saves time but decides nothing,
# then all from 1. Prints "caught NAME seed S" or "MISSED NAME"; exits non-zero if one is missed.
# usage: mutations.sh [--list | --update] [NAME...]; environment: BUILD, SEEDS (1000), SECONDS_MAX
# (120, of the processor), JOBS
set -eu
cd "$(dirname "$0")/../.."
BUILD=${BUILD:-build}
SEEDS=${SEEDS:-1000}
SECONDS_MAX=${SECONDS_MAX:-120}
HINTS=tests/sim/mutations.seeds

# Faults that change nothing a promise speaks of, each with the reason: NAME REASON
equivalent() {
	case $1 in
	volume_grow_maps_no_fsync) echo "a page of the maps that is lost counts as changed" ;;
	store_put_no_fsync) echo "in the store on disk; the simulator has a store of its own" ;;
	*) return 1 ;;
	esac
}

# Faults in what a unit test plays through by itself, and seeds meet by luck: NAME TEST
unit_test() {
	case $1 in
	volume_instant_*) echo volume_instant_sim ;;
	volume_hole_* | volume_preserve_*) echo volume_cut_sim ;;
	replication_final_alone) echo replication_loss_sim ;;
	replication_served_no_fsync) echo replication_crash_sim ;;
	replication_reference_early) echo replication_reference_sim ;;
	volume_diskless_attached) echo replication_diskless_sim ;;
	*) return 1 ;;
	esac
}

list() {
	grep -rhoE 'MUTATE\("?[a-z][a-z0-9_-]+"?\)' daemon --include='*.c' |
		sed -E 's/.*\("?([a-z0-9_-]+)"?\)/\1/' | sort -u
}

caught() { # NAME OUTPUT ARGUMENT...
	name=$1 output=$2
	shift 2
	! "$BUILD/mutated/sim" --mutation "$name" "$@" >"$output" 2>&1
}

update=
case ${1:-} in
--list)
	list
	exit 0
	;;
--update)
	update=yes
	shift
	;;
esac
names=${*:-$(list)}
make -j"${JOBS:-2}" BUILD="$BUILD" "$BUILD/mutated/sim" >/dev/null
output=$(mktemp)
trap 'rm -f "$output"' EXIT
missed=0
for name in $names; do
	if why=$(equivalent "$name"); then
		echo "equivalent $name: $why"
		continue
	fi
	if test=$(unit_test "$name"); then
		make BUILD="$BUILD" "$BUILD/mutated/$test" >/dev/null
		if MUTATION=$name "$BUILD/mutated/$test" >/dev/null 2>&1; then
			echo "MISSED $name ($test)"
			missed=$((missed + 1))
		else
			echo "caught $name: $test"
		fi
		continue
	fi
	hint=$([ -n "$update" ] || sed -n "s/^$name //p" "$HINTS" 2>/dev/null)
	if { [ -n "$hint" ] && caught "$name" "$output" --first "$hint" --seeds 1; } ||
		caught "$name" "$output" --seeds "$SEEDS" --seconds "$SECONDS_MAX"; then
		grep -m 1 -a -o 'FAILED: .*' "$output" | cut -c 1-150 | sed "s|^FAILED|caught $name|"
		[ -z "$update" ] || {
			grep -v "^$name " "$HINTS" >"$HINTS.new" || true
			sed -n "s|.*FAILED: seed \([0-9]*\).*|$name \1|p" "$output" | head -n 1 >>"$HINTS.new"
			sort -o "$HINTS" "$HINTS.new"
			rm "$HINTS.new"
		}
	else
		echo "MISSED $name ($(tail -n 1 "$output"))"
		missed=$((missed + 1))
	fi
done
[ "$missed" -eq 0 ]
