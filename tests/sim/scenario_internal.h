/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of a story know of each other: the phase with faults (scenario.c), the faults
 * (scenario_faults.c), the operator (scenario_operator.c), the phase without faults (scenario_end.c).
 */
#ifndef OFFSITE_TESTS_SIM_SCENARIO_INTERNAL_H
#define OFFSITE_TESTS_SIM_SCENARIO_INTERNAL_H

#include "tests/sim/scenario.h"

/* Which faults a seed knows: each seed a few of them, so that rare ones meet undisturbed. */
enum fault {
	CRASH_A = 1 << 0,
	CRASH_B = 1 << 1,
	CRASH_IO = 1 << 2, /* at a chosen file operation rather than between events */
	STOP = 1 << 3,
	CUT = 1 << 4,
	BLOCK = 1 << 5,
	SILENCE = 1 << 6, /* long times without anything */
	STORE_ERRORS = 1 << 7,
	SNAPSHOTS = 1 << 8,
	DISCONNECT = 1 << 9,
	LOSE_A = 1 << 10,
	LOSE_B = 1 << 11,
	PROTOCOL = 1 << 12,
	SLOW_LINK = 1 << 13,
	ZERO_UNSUPPORTED = 1 << 14,
	DISK_A = 1 << 15,
	DISK_B = 1 << 16,
	FAIL_OVER = 1 << 17,
	SWITCH = 1 << 18,
	ROLL_BACK = 1 << 19,
	FLIP = 1 << 20,   /* the medium spoils metadata while a node is down */
	VERIFY = 1 << 21, /* comparisons of both sides, any time */
	RESIZE = 1 << 22,
	FAULTS = 1 << 23,
	/* Not of the same draw: seeds without them are what they were. */
	FULL_A = 1 << 23, /* no room is left on the disk, for a while */
	FULL_B = 1 << 24,
	FULL_STORE = 1 << 25,
};

/* Where nothing happens but timers, few steps are a long time: that is for scenario_run_time(). */
void scenario_run_steps(struct world *world, uint64_t steps);
void scenario_run_time(struct world *world, uint64_t ns);
/* Both sides are the same at every point of the order, and so verify must say. */
void scenario_check_verify(struct world *world);
void scenario_without_faults(struct world *world);

void fault_crash(struct world *world, unsigned faults, unsigned index);
void fault_start(struct world *world, unsigned faults, unsigned index);
/* The secondary dies while it applies its redo log, which is spoilt as well. */
void fault_lose_log(struct world *world);
void fault_lose_primary_disk(struct world *world);
void fault_lose_secondary_disk(struct world *world);
void fault_toggle_connection(struct world *world);
void fault_change_protocol(struct world *world);
void fault_store(struct world *world);
void fault_net(struct world *world, unsigned faults);
void fault_disk(struct world *world, unsigned index);
/* No room is left on the node's disk, or some is made again. */
void fault_full_disk(struct world *world, unsigned index);
void fault_full_store(struct world *world);
/* The primary's disk goes at once, while the peer follows: it is to take over. */
void fault_fail_in_stream(struct world *world);
/* The primary goes on without its peer, and dies; its peer goes on without it. Then they meet. */
void fault_come_apart(struct world *world, unsigned faults);

/* The operator sees a failed disk, has the cause put right and starts the node again. */
void operator_look_after_disks(struct world *world, unsigned faults);
/* The operator decides whose content counts: the primary's, unless its disk was lost. */
void operator_look_after_content(struct world *world);
void operator_begin_verify(struct world *world);

#endif
