#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Can the simulator fail? Builds with -DOFFSITE_MUTATIONS in a folder of its own, switches each
# deliberate fault in the engine (MUTATE(name) in daemon/) on in turn, and runs seeds until one is
# caught. Prints "caught NAME seed S" or "MISSED NAME"; exits non-zero if one is missed.
# usage: mutations.sh [--list] [NAME...]; environment: BUILD, SEEDS (300), SECONDS_MAX (120), JOBS
set -eu
cd "$(dirname "$0")/../.."
BUILD=${BUILD:-build}-mutations
SEEDS=${SEEDS:-300}
SECONDS_MAX=${SECONDS_MAX:-120}

# Faults that change nothing a promise speaks of, each with the reason: NAME REASON
equivalent() {
	case $1 in
	store_put_no_fsync) echo "in the store on disk; the simulator has a store of its own" ;;
	*) return 1 ;;
	esac
}

list() {
	grep -rhoE 'MUTATE\("?[a-z][a-z0-9_-]+"?\)' daemon --include='*.c' |
		sed -E 's/.*\("?([a-z0-9_-]+)"?\)/\1/' | sort -u
}

if [ "${1:-}" = --list ]; then
	list
	exit 0
fi
names=${*:-$(list)}
make -j"${JOBS:-2}" BUILD="$BUILD" DEFS=-DOFFSITE_MUTATIONS "$BUILD/tests/sim/sim" >/dev/null
missed=0
for name in $names; do
	if why=$(equivalent "$name"); then
		echo "equivalent $name: $why"
		continue
	fi
	output=$(mktemp)
	if "$BUILD/tests/sim/sim" --seeds "$SEEDS" --seconds "$SECONDS_MAX" --mutation "$name" \
		>"$output" 2>&1; then
		echo "MISSED $name ($(tail -n 1 "$output"))"
		missed=$((missed + 1))
	else
		grep -m 1 -o 'FAILED: .*' "$output" | cut -c 1-150 | sed "s|^FAILED|caught $name|"
	fi
	rm -f "$output"
done
[ "$missed" -eq 0 ]
