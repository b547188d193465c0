#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# deps.sh SECTION...: sees to it that the packages of these sections of debian-packages.txt are
# installed. Quick when nothing is missing. Without the right to install it prints the command to
# type and fails. OFFSITE_DEPS=skip: trusts that everything is there.
set -eu

list=$(dirname "$0")/debian-packages.txt

[ "${OFFSITE_DEPS:-}" = skip ] && exit 0

wanted=$(for section in "$@"; do
	awk -v section="[$section]" '/^\[/ { on = $0 == section; next } on && /^[a-z0-9]/ { print $1 }' "$list"
done | sort -u)

if ! command -v dpkg-query >/dev/null 2>&1; then
	echo "deps: this is no Debian: install what corresponds to these packages, then go on with" >&2
	echo "deps: OFFSITE_DEPS=skip in the environment:" $wanted >&2
	exit 1
fi

installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null |
	awk '$1 == "installed" { print $2 }' || true)
missing=
for package in $wanted; do
	case "
$installed
" in
	*"
$package
"*) ;;
	*) missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0

command="apt-get install -y --no-install-recommends$missing"
if [ "$(id -u)" = 0 ]; then
	sudo=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
	sudo="sudo -n"
else
	echo "deps: missing:$missing" >&2
	echo "deps: type: sudo $command" >&2
	exit 1
fi
echo "deps: installing:$missing"
if ! command -v apt-get >/dev/null 2>&1; then
	echo "deps: apt-get is missing" >&2
	exit 1
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Without package lists, or with old ones, the first try fails.
if ! $sudo env DEBIAN_FRONTEND=noninteractive $command >"$log" 2>&1; then
	if ! { $sudo apt-get update && $sudo env DEBIAN_FRONTEND=noninteractive $command; } \
		>"$log" 2>&1; then
		tail -n 20 "$log" >&2
		echo "deps: that did not work; the command was: $command" >&2
		exit 1
	fi
fi
