# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What the scripts that run in a machine share; in front of each of them (see lib.sh: on).

fail() {
	echo "$*" >&2
	exit 1
}
wait_for() { # SECONDS WHAT COMMAND...
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || fail "$what: not within the time"
		sleep 0.05
	done
}
