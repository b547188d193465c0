#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Snapshots from the secondary: one instant of the primary's write order while it is under load, and one
# chain whoever writes it: after a change of the writer, and after a failover, the next one costs what
# changed, not a full read; and each comes back exactly.
# time limit: 450 s
. "$(dirname "$0")/lib.sh"
need jq nbd_ledger qemu-io
begin
seed_random
blocks=$((48 * 256))

mark() {
	marks=$((marks + 1))
	kill -USR1 "$writer"
	wait_for 10 "mark $marks" grep -qx "mark $marks" "$dir/writer.out"
}
write_ledger() { # NODE LOG
	exec "$tools/nbd_ledger" write --socket "$dir/$1.nbd" --log "$dir/$2" --blocks "$blocks" \
		--depth 32 --seed "$seed" >"$dir/writer.out" 2>&1
}
begin_load() {
	helper_start write_ledger "$1" "$2"
	writer=$helper marks=0
	wait_writes "$1" # from then on it knows signals
}
end_load() {
	kill -TERM "$writer"
	wait "$writer" || die "the writer: $(tail -n 1 "$dir/writer.out")"
}
create() { # NODE LABEL
	off "$1" snapshot create v --label "$2" >"$dir/create.out" 2>&1 ||
		die "snapshot $2 on $1: $(tail -n 1 "$dir/create.out")"
}
newest() { off "$1" snapshot list v --json | jq ".snapshots[-1] | $2"; }
write_some() { # NODE MIB
	qemu-io -f raw -c "write -P $((RANDOM % 256)) ${2}M 64k" "$(uri "$1")" >/dev/null || die "writing"
}
# Both have one opinion of what is the newest, and of what changed since.
agree() {
	local a b
	a=$(volume_get a .snapshots.relative_to) b=$(volume_get b .snapshots.relative_to)
	[ "$a" = "$b" ] && [ "$a" != null ] &&
		[ "$(volume_get a .snapshots.changed_bytes)" = "$(volume_get b .snapshots.changed_bytes)" ]
}
cheap() { # NODE WRITER MAX-BYTES
	local changed
	changed=$(newest "$1" .changed_bytes)
	written_by "$2" || die "written by $(newest "$1" .node)"
	[ "$changed" -le "$3" ] || die "$(newest "$1" .label): $changed bytes read, not $3"
	note "$(newest "$1" .label) by $2: $changed bytes read"
}
written_by() { [ "$(newest "${at:-a}" .node)" = "\"$1\"" ]; }
same() { # LABEL IMAGE
	local id
	id=$(off "${at:-a}" snapshot list v --json | jq -r ".snapshots[] | select(.label == \"$1\") | .id")
	"$build/offsite" restore --store "file:$dir/store" --snapshot "$id" --to "$dir/back.img" \
		>"$dir/restore.log" 2>&1 || die "restore of $1: $(tail -n 2 "$dir/restore.log")"
	cmp "$dir/back.img" "$2" || die "$1 is not what it should be"
	rm -f "$dir/back.img"
}
begin_pair() { # LINES
	rm -rf "$dir"/[ab].* "$dir"/log* "$dir/store"
	mkdir "$dir/store"
	link='' pair_config 48 "store = file:$dir/store
$1"
	start b
	start a
	wait_state 30 "the first sync" a in-sync
	wait_for 10 "the store at b" opened b
}
opened() { off "$1" snapshot create v --label first; }

under_load() {
	current=under_load_$io
	begin_pair ""
	begin_load a log
	for n in 1 2 3 4; do
		pause_ms "$(between 50 400)"
		mark
		create b "load $n"
		mark
	done
	end_load
	wait_state 30 "in sync at the end" a in-sync
	off b snapshot verify v >"$dir/verify.log" 2>&1 || die "verify: $(tail -n 3 "$dir/verify.log")"
	for n in 1 2 3 4; do
		local id
		id=$(off b snapshot list v --json | jq -r ".snapshots[] | select(.label == \"load $n\") | .id")
		"$build/offsite" restore --store "file:$dir/store" --snapshot "$id" --to "$dir/back.img" \
			>"$dir/restore.log" 2>&1 || die "restore of $n: $(tail -n 2 "$dir/restore.log")"
		"$tools/nbd_ledger" cut --image "$dir/back.img" --log "$dir/log" --blocks "$blocks" \
			--from $((2 * n - 1)) --to $((2 * n)) >"$dir/cut.out" 2>&1 ||
			die "snapshot $n is no instant: $(tail -n 1 "$dir/cut.out")"
		note "snapshot $n: $(tail -n 1 "$dir/cut.out")"
		rm -f "$dir/back.img"
	done
	ok $current
	one_chain
}

one_chain() {
	current=one_chain_$io
	create b "load over"
	wait_for 10 "one opinion" agree
	write_some a 3
	wait_state 10 "in sync" a in-sync
	create a "chain 1"
	cheap a a $((1 << 18))
	cp "$dir/a.img" "$dir/chain1.img"
	wait_for 10 "one opinion" agree
	write_some a 5
	wait_state 10 "in sync" a in-sync
	create b "chain 2"
	cheap b b $((1 << 18))
	wait_for 10 "one opinion" agree
	same "chain 1" "$dir/chain1.img"
	same "chain 2" "$dir/a.img"
	# The secondary restarts, in order and not; the primary goes on meanwhile.
	stop b
	write_some a 7
	start b
	wait_state 20 "in sync" a in-sync
	wait_for 10 "one opinion" agree
	write_some a 9
	wait_state 10 "in sync" a in-sync
	kill9 b
	start b
	wait_state 20 "in sync" a in-sync
	create b "chain 3"
	cheap b b $((24 << 20)) # the regions with an intent bit
	same "chain 3" "$dir/a.img"
	ok $current
	failover
}

failover() {
	current=failover_$io
	wait_for 10 "one opinion" agree
	begin_load a log2
	pause_ms 300
	kill9 a
	wait "$writer" 2>/dev/null
	wait_for 20 "the promotion" off b promote v
	local at=b written
	written=$(volume_get b .snapshots.changed_bytes)
	create b "failover 1"
	cheap b b "$written"
	cp "$dir/b.img" "$dir/failover1.img"
	same "failover 1" "$dir/failover1.img"
	# The old primary comes back as a secondary, and writes the next one.
	start a
	wait_state 30 "in sync again" b in-sync
	wait_for 10 "one opinion" agree
	write_some b 11
	wait_state 10 "in sync" b in-sync
	create a "failover 2"
	cheap a a $((1 << 18))
	same "failover 2" "$dir/b.img"
	wait_for 10 "one opinion" agree
	write_some b 13
	create b "failover 3"
	cheap b b $((1 << 18))
	off b snapshot verify v >"$dir/verify.log" 2>&1 || die "verify: $(tail -n 3 "$dir/verify.log")"
	stop a
	stop b
	ok $current
}

# What is not one instant, or older than the newest in the store, is not taken; and the schedules of the
# two nodes do not collide.
who_takes_it() {
	current=who_takes_it
	begin_pair "snapshot-every = 1s
snapshot-from = secondary"
	wait_for 15 "a scheduled one" volume_is b '.snapshots.succeeded > 1'
	wait_for 10 "the primary's knowing of it" volume_is a '.snapshots.relative_to != null'
	# But for a secondary that stood still for seven seconds.
	volume_is a '.snapshots.succeeded == 0' >/dev/null || grep -q 'from the secondary for two intervals' "$dir/a.log" ||
		die "the primary takes them, too"
	off a disconnect v >/dev/null
	write_some a 1
	# Not while one of the schedule is under way.
	wait_for 10 "b outdated and idle" volume_is b '.disk == "outdated" and (.snapshots.running | not)'
	off b snapshot create v >"$dir/create.out" 2>&1 && die "an outdated disk's"
	grep -q "its disk is outdated" "$dir/create.out" || die "$(cat "$dir/create.out")"
	wait_for 25 "the primary steps in" written_by a
	off a connect v >/dev/null
	wait_state 10 "in sync" a in-sync
	local before
	before=$(volume_get b .snapshots.succeeded)
	wait_for 10 "the secondary again" volume_is b ".snapshots.succeeded > $before"
	stop a
	stop b
	! grep "another node is writing" "$dir/a.log" || die "they collide"
	ok $current
}

for io in ${IO:-$(backends)}; do
	part under_load
done
part who_takes_it
