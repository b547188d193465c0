// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/scenario_internal.h"

#include <string.h>

#include "tests/sim/check.h"
#include "tests/sim/stranger.h"

/* Where nothing happens but timers, few steps are a long time: that is for scenario_run_time(). */
void scenario_run_steps(struct world *world, uint64_t steps)
{
	uint64_t end = sim_now_ns(world->sim) + WORLD_SECOND / 20;

	while (steps-- > 0 && sim_now_ns(world->sim) < end && world_step(world))
		;
}

void scenario_run_time(struct world *world, uint64_t ns)
{
	uint64_t end = sim_now_ns(world->sim) + ns;

	while (sim_now_ns(world->sim) < end && world_step(world))
		;
}

/* ---- the two phases ------------------------------------------------------------------------------------ */

static void one_action(struct world *world, unsigned faults)
{
	unsigned what = (unsigned)world_random(world, 1000);

	if (what < 560) {
		world_submit(world);
	} else if (what < 840) {
		scenario_run_steps(world, 1 + world_random(world, 60));
	} else if (what < 880) {
		scenario_run_time(world, world_random(world, world_chance(world, 10) ? 2000000000
										     : 50000000));
	} else if (what < 895 && (faults & CRASH_A)) {
		fault_crash(world, faults, A);
	} else if (what < 910 && (faults & CRASH_B)) {
		fault_crash(world, faults, B);
	} else if (what < 940) {
		fault_start(world, faults, (unsigned)world_random(world, NODES));
	} else if (what < 955 && (faults & (CUT | BLOCK))) {
		fault_net(world, faults);
	} else if (what < 970 && (faults & SNAPSHOTS)) {
		world_chance(world, 40) ? world_snapshot_secondary(world) : world_snapshot(world);
	} else if (what < 980) {
		check_primary(world);
		check_secondary(world);
		if (world->options.read_by_spec)
			check_maps_on_disk(world);
	} else if (what < 984 && (faults & DISCONNECT)) {
		fault_toggle_connection(world);
	} else if (what < 987 && (faults & STORE_ERRORS)) {
		fault_store(world);
	} else if (what < 989 && (faults & PROTOCOL)) {
		fault_change_protocol(world);
	} else if (what < 991 && (faults & SILENCE)) {
		scenario_run_time(world, world_random(world, 40 * WORLD_SECOND));
	} else if (what < 994 && (faults & STOP)) {
		unsigned index = (unsigned)world_random(world, NODES);

		/* What is blocked or disconnected is no reason for requests to hang. */
		if (!world->nodes[index].content_lost)
			world_stop(world, index);
	} else if (what < 996 && (faults & LOSE_A)) {
		fault_lose_primary_disk(world);
	} else if (what < 997 && (faults & LOSE_B)) {
		fault_lose_secondary_disk(world);
	} else if (what < 999 && (faults & (DISK_A | DISK_B))) {
		fault_disk(world, !(faults & DISK_A)   ? B
				  : !(faults & DISK_B) ? A
						       : (unsigned)world_random(world, NODES));
	}
	if (world_chance(world, 2))
		operator_look_after_content(world);
	if ((faults & FAIL_OVER) && world_chance(world, 1))
		world_fail_over(world);
	if ((faults & FAIL_OVER) && world->seed % 5 < 2 && world_random(world, 120) == 0)
		fault_come_apart(world, faults);
	if ((faults & ROLL_BACK) && (faults & SNAPSHOTS) && world_random(world, 500) == 0)
		world_roll_back(world);
	if ((faults & FLIP) && world_chance(world, 2))
		fault_lose_log(world);
	if ((faults & VERIFY) && world_chance(world, 2))
		operator_begin_verify(world);
	if (!(faults & (DISK_A | DISK_B)))
		scenario_check_verify(world);
	if ((faults & SWITCH) && world_chance(world, 1))
		world_switch(world);
	if ((faults & RESIZE) &&
	    world_random(world, world->options.theme == THEME_SIZE ? 20 : 200) == 0)
		world_resize(world);
	if (world->options.detach &&
	    world_random(world, world->options.theme == THEME_DISK ? 30 : 150) == 0)
		fault_fail_in_stream(world);
	if ((faults & (FULL_A | FULL_B)) && world_random(world, 60) == 0)
		fault_full_disk(world, !(faults & FULL_A)   ? B
				       : !(faults & FULL_B) ? A
							    : (unsigned)world_random(world, NODES));
	if (world->stranger != NULL && world_random(world, 40) == 0)
		stranger_comes(world);
	if ((faults & FULL_STORE) && world_random(world, 60) == 0)
		fault_full_store(world);
	if (world_chance(world, 10))
		operator_look_after_disks(world, faults);
	if (world_chance(world, 1))
		world_resume(world);
	if (world->seed % 4 == 3 && world_chance(world, 1))
		world_clock_jump(world);
}

static void prepare(struct world *world, unsigned faults)
{
	struct sim_net_options net;
	struct sim_disk_options disk;

	for (unsigned i = 0; i < NODES; i++) {
		sim_disk_get(world->nodes[i].env, &disk);
		disk.zero_unsupported = (faults & ZERO_UNSUPPORTED) && world_chance(world, 70);
		disk.reflinks = world_chance(world, 30);
		sim_disk_set(world->nodes[i].env, &disk);
	}
	sim_net_get(world->sim, &net);
	if (faults & SLOW_LINK)
		net.bytes_per_second = 100000 + world_random(world, 2000000);
	sim_net_set(world->sim, &net);
}

static void with_faults(struct world *world)
{
	unsigned faults = (unsigned)world_random(world, FAULTS);
	unsigned actions = 100 + (unsigned)world_random(world, 900);

	if (world->seed % 6 == 5)
		faults |= (1 + (unsigned)(world->seed / 6 % 7)) * FULL_A;
	if (world->options.suspend) /* whether a write had to wait would not be known */
		faults &= ~(unsigned)PROTOCOL;
	if (world_chance(world, 60)) /* losing disks is for a few seeds only */
		faults &= ~(unsigned)(LOSE_A | LOSE_B);
	if (world_chance(world, 70))
		faults &= ~(unsigned)(DISK_A | DISK_B);
	if (world_chance(world, 50))
		faults &= ~(unsigned)FLIP;
	if (world->options.theme == THEME_DISK)
		faults &= ~(unsigned)(BLOCK | DISK_A | DISK_B | LOSE_A | LOSE_B | FLIP | ROLL_BACK |
				      DISCONNECT | FAIL_OVER);
	if (world->options.theme == THEME_SIZE)
		faults |= RESIZE;
	sim_note(world->sim, "faults %04x, %u actions", faults, actions);
	prepare(world, faults);
	world_start(world, A);
	if (world->options.theme != THEME_NONE || world_chance(world, 80))
		world_start(world, B);
	if (world->options.theme != THEME_NONE || world_chance(world, 60)) /* many begin in sync */
		scenario_run_time(world, 5 * WORLD_SECOND);
	while (actions-- > 0)
		one_action(world, faults);
}

void scenario_run(struct world *world)
{
	with_faults(world);
	scenario_without_faults(world);
}
