#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# offsite beside the real DRBD 8.4 (drbd.ko of the same Debian kernel), in one run in one virtual machine, under
# software emulation: protocol A and C of both, each with both nodes in that machine over its loopback, the
# backings ramdisks; nbdkit under nbd.ko and the bare ramdisk beside them. The same fio jobs for all, ROUNDS (2)
# times around, and the resync of the same scattered writes. Prints Markdown tables; the best of the rounds
# counts. SECONDS_EACH (3) a job. RESULTS: a file for what was measured. PARTS: some of it only (bare nbdkit alone A C
# resync), where a host is quiet for minutes only; RESULTS_BEFORE: files of other parts, for the same tables.
. "$(dirname "$0")/../tests/vm/lib.sh"
vm_begin
machine bench -m 4096
boot bench
if ! limit=3000 on bench "rounds=${ROUNDS:-2} each=${SECONDS_EACH:-3} parts='${PARTS:-bare nbdkit alone A C resync}'; . /src/bench/vm_guest.sh" >"$dir/results"; then
	tail -n 20 "$dir/results"
	die "the run failed"
fi
[ -n "${RESULTS:-}" ] && cp "$dir/results" "$RESULTS"
[ -z "${RESULTS_BEFORE:-}" ] || cat $RESULTS_BEFORE >>"$dir/results"
power_off bench

# Lines of the results: "CONFIGURATION JOB VALUE"; several of one pair: the best (for resync the least).
awk '
function best(c, j) { return (c, j) in value ? value[c, j] : 0 }
function ratio(a, b) { return b ? sprintf("%.2f", a / b) : "-" }
function show(x) { return x >= 100 ? sprintf("%d", x) : sprintf("%.1f", x) }
/^#/ { next }
$2 == "resync" { if (!(($1, $2) in value) || $3 < value[$1, $2]) value[$1, $2] = $3; next }
NF == 3 { if ($3 > value[$1, $2]) value[$1, $2] = $3 }
END {
	jobs = split("w4q1 w4q32 f4q1 w1m r4q1 r4q32", job)
	name["w4q1"] = "randwrite 4k qd1, iops"; name["w4q32"] = "randwrite 4k qd32, iops"
	name["f4q1"] = "randwrite 4k+fdatasync, iops"; name["w1m"] = "write 1M qd4, MiB/s"
	name["r4q1"] = "randread 4k qd1, iops"; name["r4q32"] = "randread 4k qd32, iops"
	print "| job | bare disk | DRBD A | offsite A | offsite / DRBD | DRBD C | offsite C | offsite / DRBD | nbdkit | offsite alone | offsite / nbdkit |"
	print "|---|---|---|---|---|---|---|---|---|---|---|"
	for (i = 1; i <= jobs; i++) {
		j = job[i]
		printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", name[j], show(best("bare", j)),
			show(best("drbd_A", j)), show(best("offsite_A", j)), ratio(best("offsite_A", j), best("drbd_A", j)),
			show(best("drbd_C", j)), show(best("offsite_C", j)), ratio(best("offsite_C", j), best("drbd_C", j)),
			show(best("nbdkit", j)), show(best("offsite", j)), ratio(best("offsite", j), best("nbdkit", j))
	}
	print ""
	print "| resync of 64 MiB of scattered 4k writes, seconds | DRBD, its defaults | DRBD, not throttled | offsite | DRBD (best) / offsite |"
	print "|---|---|---|---|---|"
	d = best("drbd_C", "resync"); f = best("drbd_C_free", "resync"); o = best("offsite_C", "resync")
	printf "| protocol C | %.1f | %.1f | %.1f | %s |\n", d, f, o, ratio(f && f < d ? f : d, o)
}' "$dir/results"
