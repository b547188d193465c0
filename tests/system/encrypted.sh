#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# An encrypted store as an operator meets it: the daemon writes it, the command reads it with the right
# secret and says in one line what is wrong with another or with none; a passphrase is changed; restores
# with and without the daemon; verify; the same with a key file and with a command.
# time limit: 240 s
. "$(dirname "$0")/lib.sh"
need jq nbdcopy
begin
size=24

by_store() { "$build/offsite" "$@" --store "file:$dir/store" >"$dir/out" 2>&1; }
sums() { find "$dir/store" -path '*/packs/*' -type f -exec sha256sum {} + | sort; }
# Fails, and says in one line: WORDS
refused() { # WORDS COMMAND...
	local words=$1
	shift
	by_store "$@" && die "$*: was done"
	[ "$(wc -l <"$dir/out")" -eq 1 ] || die "$*: not one line: $(cat "$dir/out")"
	grep -q "$words" "$dir/out" || die "$*: says $(cat "$dir/out")"
}
fine() { by_store "$@" || die "$*: $(cat "$dir/out")"; }

node_with() { # SECRET LINE
	rm -rf "$dir"/a.* "$dir/store" "$dir"/*.img
	mkdir "$dir/store"
	pair_config $size "store = file:$dir/store"$'\n'"$1"
	sed -i '/^peer/d' "$dir/a.conf"
	head -c ${size}M /dev/urandom >"$dir/want.img"
	cp "$dir/want.img" "$dir/a.img"
	start a
	off a snapshot create v --label one >"$dir/out" 2>&1 || die "snapshot: $(cat "$dir/out")"
	off a snapshot verify v >"$dir/out" 2>&1 || die "verify: $(cat "$dir/out")"
}

with_passphrase() {
	current=passphrase
	echo 'correct horse' >"$dir/old"
	echo 'battery staple' >"$dir/new"
	node_with "store-passphrase-file = $dir/old"
	grep -rqa "OFSN\|OFPG" "$dir/store" && die "something lies in the store in the clear"
	refused "no key is given" snapshot list
	refused "encrypted with another key" snapshot list --passphrase-file "$dir/new"
	refused "no key is given" restore --to "$dir/back.img"
	refused "another key" restore --to "$dir/back.img" --passphrase-file "$dir/new"
	[ ! -e "$dir/back.img" ] || die "a target was made all the same"
	fine restore --to "$dir/back.img" --passphrase-file "$dir/old"
	cmp "$dir/back.img" "$dir/want.img" || die "restored something else"
	fine snapshot verify --passphrase-file "$dir/old"
	nbdcopy "$(uri a v@latest)" "$dir/read.img" 2>"$dir/out" || die "read as an export: $(cat "$dir/out")"
	cmp "$dir/read.img" "$dir/want.img" || die "as an export it reads as something else"
	off a snapshot diff v latest >"$dir/out" && grep -q '^0 B changed' "$dir/out" || die "diff: $(cat "$dir/out")"
	ok passphrase

	current=rotation
	sums >"$dir/before"
	fine key list --passphrase-file "$dir/old"
	slot=$(awk '{print $2}' "$dir/out")
	refused "opens no other slot" key remove "$slot" --passphrase-file "$dir/old"
	fine key add --passphrase-file "$dir/old" --new-passphrase-file "$dir/new" --label second
	fine key remove "$slot" --passphrase-file "$dir/new"
	refused "another key" snapshot list --passphrase-file "$dir/old"
	rm -f "$dir/back.img"
	fine restore --to "$dir/back.img" --passphrase-file "$dir/new"
	cmp "$dir/back.img" "$dir/want.img" || die "restored something else"
	sums >"$dir/after"
	cmp "$dir/before" "$dir/after" || die "data was written anew"
	stop a
	sed -i "s|$dir/old|$dir/new|" "$dir/a.conf"
	start a
	fine key renew --passphrase-file "$dir/new"
	off a snapshot create v --label two >"$dir/out" 2>&1 || die "snapshot: $(cat "$dir/out")"
	"$build/offsite" --config "$dir/a.conf" snapshot forget v --dry-run --keep-last 1 >"$dir/out" 2>&1 ||
		die "forget --dry-run: $(cat "$dir/out")"
	[ "$(cut -d' ' -f1 "$dir/out" | tr '\n' ' ')" = "go keep v: " ] || die "forget: $(cat "$dir/out")"
	local began=${EPOCHREALTIME/./}
	fine snapshot forget v --keep-last 1 --passphrase-file "$dir/new" --store-list-lag 1s
	[ $((${EPOCHREALTIME/./} - began)) -ge 2000000 ] || die "forget did not wait for late lists"
	[ "$(off a snapshot list v --json | jq '.snapshots | length')" -eq 1 ] || die "forget: $(off a snapshot list v)"
	"$build/offsite" --config "$dir/a.conf" snapshot pin v latest >"$dir/out" 2>&1 || die "pin: $(cat "$dir/out")"
	off a snapshot delete v latest >"$dir/out" 2>&1 && die "a pinned snapshot was deleted"
	grep -q "is pinned" "$dir/out" || die "delete of a pinned one: $(cat "$dir/out")"
	refused "is pinned" snapshot delete v latest --passphrase-file "$dir/new"
	fine snapshot unpin v latest --passphrase-file "$dir/new"
	off a snapshot create v --label three >"$dir/out" 2>&1 || die "snapshot: $(cat "$dir/out")"
	fine snapshot delete v latest --passphrase-file "$dir/new"
	[ "$(off a snapshot list v --json | jq -r '.snapshots | map(.label) | join(" ")')" = two ] ||
		die "delete --store: $(off a snapshot list v)"
	off a restore v >"$dir/out" 2>&1 || die "in place: $(cat "$dir/out")"
	fine snapshot verify --passphrase-file "$dir/new"
	stop a
	"$build/offsite" --config "$dir/a.conf" restore v >"$dir/out" 2>&1 || die "offline: $(cat "$dir/out")"
	cmp "$dir/a.img" "$dir/want.img" || die "restored something else in place"
	ok rotation
}

with_key_file() {
	current=key_file
	rm -f "$dir/key"
	"$build/offsite" keygen "$dir/key" || die keygen
	node_with "store-key-file = $dir/key"
	fine restore --to "$dir/back.img" --key-file "$dir/key"
	cmp "$dir/back.img" "$dir/want.img" || die "restored something else"
	refused "another key" snapshot list --passphrase-file "$dir/key"
	stop a
	ok key_file
}

with_command() {
	current="command"
	cat >"$dir/kms" <<-'END'
		#!/bin/sh
		case $OFFSITE_KEY_ACTION in
		wrap) sed 's/^/kms:/' ;;
		unwrap) sed 's/^kms://' ;;
		esac
	END
	chmod +x "$dir/kms"
	node_with "store-key-command = $dir/kms"
	fine restore --to "$dir/back.img" --key-command "$dir/kms"
	cmp "$dir/back.img" "$dir/want.img" || die "restored something else"
	refused "another key" snapshot list --key-command false
	stop a
	ok command
}

part with_passphrase
part with_key_file
part with_command
