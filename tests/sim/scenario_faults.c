// SPDX-License-Identifier: Apache-2.0
/* What goes wrong, any time: one function for each fault that a seed may know. */
#include "tests/sim/scenario_internal.h"

#include <errno.h>
#include <stdio.h>

static enum sim_crash any_crash(struct world *world)
{
	static const enum sim_crash modes[] = {
		SIM_CRASH_KILL,  SIM_CRASH_KILL,       SIM_CRASH_POWER,     SIM_CRASH_POWER,
		SIM_CRASH_POWER, SIM_CRASH_POWER_DROP, SIM_CRASH_POWER_KEEP};

	return modes[world_random(world, 7)];
}

void fault_crash(struct world *world, unsigned faults, unsigned index)
{
	struct world_node *n = &world->nodes[index];

	if (n->node == NULL)
		return;
	if ((faults & CRASH_IO) && world_chance(world, 60))
		sim_crash_after_ios(world->sim, n->env, 1 + world_random(world, 60),
				    any_crash(world));
	else
		world_crash(world, index, any_crash(world));
}

/* Records of their own, of which only some are there, and rarely. */
static void flip_records(struct world *world, struct env *env, unsigned index)
{
	static const char *const files[] = {"split-brain", "wanting", "verify", "missing"};

	for (unsigned i = 0; i < 4; i++) {
		char path[64];
		uint64_t size, offset;

		snprintf(path, sizeof(path), WORLD_STATE "/%s", files[i]);
		if (!sim_file_size(env, path, &size) || size == 0 || world_extra(world, 4) != 0)
			continue;
		offset = world_extra(world, size);
		sim_file_corrupt(env, path, offset, (uint8_t)(1 + world_extra(world, 255)));
		world->flipped = true;
		sim_note(world->sim, "node %u: %s is damaged at %llu", index, path,
			 (unsigned long long)offset);
	}
}

/* One page of the superblock, never both copies of one; one page of the maps; the first record of the redo log: any
 * of them. */
static void flip(struct world *world, unsigned index, bool log)
{
	static const char *const files[] = {"super", "maps", "staging"};
	static const uint64_t limits[] = {6 * 4096, 0, 8192};
	struct env *env = world->nodes[index].env;

	for (unsigned i = 0; i < 3; i++) {
		char path[64];
		uint64_t size, offset;

		snprintf(path, sizeof(path), WORLD_STATE "/%s", files[i]);
		if (!(i == 2 && log) && !world_chance(world, 40))
			continue;
		if (!sim_file_size(env, path, &size) || size == 0)
			continue;
		if (i == 0 && !world_super_is_whole(env))
			continue;
		offset = world_random(world, limits[i] && limits[i] < size ? limits[i] : size);
		sim_file_corrupt(env, path, offset, (uint8_t)(1 + world_random(world, 255)));
		world->flipped = true;
		sim_note(world->sim, "node %u: %s is damaged at %llu", index, path,
			 (unsigned long long)offset);
	}
	flip_records(world, env, index);
}

void fault_start(struct world *world, unsigned faults, unsigned index)
{
	struct world_node *n = &world->nodes[index];

	if (n->node != NULL)
		return;
	if ((faults & FLIP) && world_chance(world, 30))
		flip(world, index, false);
	/* Sometimes it dies again before it is up. */
	if ((faults & CRASH_IO) && (faults & (index == A ? CRASH_A : CRASH_B)) &&
	    world_chance(world, 20)) {
		if (sim_node_dead(n->env))
			n->env = sim_restart(world->sim, n->env);
		sim_crash_after_ios(world->sim, n->env, 1 + world_random(world, 40),
				    any_crash(world));
	}
	world_start(world, index);
}

/* It dies while it applies its redo log, which is spoilt as well. */
void fault_lose_log(struct world *world)
{
	unsigned index = 1 - world->primary;
	struct node_volume *v = world_volume(world, index);

	if (v == NULL || v->replication == NULL || !replication_applying(v->replication))
		return;
	world_crash(world, index, any_crash(world));
	if (sim_node_dead(world->nodes[index].env))
		flip(world, index, true);
}

static bool secondary_is_good(struct world *world)
{
	struct volume_state state;
	uint64_t size;

	if (world->nodes[1 - world->primary].node == NULL)
		return false;
	world_volume_state(world, 1 - world->primary, &state);
	/* It has asked for the other's content itself, and would give its own up. */
	if (sim_file_size(world->nodes[1 - world->primary].env, WORLD_STATE "/wanting", &size))
		return false;
	/* One that still takes itself for primary would rightly go on as such. */
	return state.role == VOLUME_SECONDARY && state.disk == VOLUME_DISK_UPTODATE &&
	       !id128_is_zero(&state.generations.current);
}

/* The primary's disk, or only the volume's file, is gone. */
void fault_lose_primary_disk(struct world *world)
{
	struct replication_status status;

	world_status(world, 1 - world->primary, &status);
	/* What is on its way may make the secondary give its content up for a round in place. */
	if (status.state == REPLICATION_HANDSHAKE || status.state == REPLICATION_CATCH_UP)
		return;
	if (!secondary_is_good(world) || world->nodes[world->primary].content_lost ||
	    world->nodes[world->primary].rolling_back ||
	    replication_applying(world_volume(world, 1 - world->primary)->replication))
		return;
	bool leans = world_leans(world, world->primary); /* its content is not on its disk */

	world_crash(world, world->primary, SIM_CRASH_POWER);
	if (!leans && world_chance(world, 50))
		sim_disk_lose(world->nodes[world->primary].env);
	else
		sim_file_remove(world->nodes[world->primary].env, WORLD_BACKING);
	world->nodes[world->primary].content_lost = !leans;
	world->must_wait = false;
	sim_note(world->sim, "the primary's disk is lost");
}

void fault_lose_secondary_disk(struct world *world)
{
	if (world->nodes[world->primary].content_lost ||
	    world->nodes[world->primary].rolling_back || world->nodes[world->primary].disk_errors ||
	    world_leans(world, world->primary))
		return;
	if (world_at_peer(world->nodes[world->primary].env)) /* it was the only one left */
		return;
	world_crash(world, 1 - world->primary, SIM_CRASH_POWER);
	if (!sim_node_dead(world->nodes[1 - world->primary].env))
		return;
	sim_disk_lose(world->nodes[1 - world->primary].env);
	model_peer_lost(world->model);
	for (unsigned i = 0; i < WORLD_CLIENTS_MAX; i++) /* acknowledgements on their way */
		world->clients[i].streaming = false;
	sim_note(world->sim, "the secondary's disk is lost");
}

void fault_toggle_connection(struct world *world)
{
	unsigned index = world_chance(world, 80) ? world->primary : 1 - world->primary;
	struct world_node *n = &world->nodes[index];
	char why[256] = "";

	if (n->node == NULL || n->restoring || n->content_lost || n->rolling_back)
		return;
	if (index == world->primary) /* a word of the operator's, too */
		world->must_wait = false;
	if (n->disconnected)
		replication_connect(world_volume(world, index)->replication, why, sizeof(why));
	else
		replication_disconnect(world_volume(world, index)->replication, why, sizeof(why));
	n->disconnected = !n->disconnected;
	sim_note(world->sim, "node %u: %s %s", index, n->disconnected ? "disconnect" : "connect",
		 why);
}

void fault_change_protocol(struct world *world)
{
	struct node_volume *v = world_volume(world, world->primary);

	if (v != NULL)
		replication_set_protocol(v->replication,
					 (enum replication_protocol)world_random(world, 3));
}

void fault_store(struct world *world)
{
	struct store_sim_options options;

	store_sim_get_options(world->sim, WORLD_STORE, &options);
	options.error_ppm = world_chance(world, 50) ? 0 : (uint32_t)world_random(world, 200000);
	options.effect_ppm = (uint32_t)world_random(world, 1000000);
	options.error = 0;
	store_sim_set_options(world->sim, WORLD_STORE, &options);
	if (world_chance(world, 50))
		store_sim_fail_at(world->sim, WORLD_STORE, STORE_SIM_ALL,
				  1 + world_random(world, 30), -EIO, world_chance(world, 50));
}

void fault_net(struct world *world, unsigned faults)
{
	if ((faults & CUT) && world_chance(world, 60))
		sim_cut(world->sim, "a", "b", world_chance(world, 40));
	if ((faults & BLOCK) && world_chance(world, 60)) {
		bool on = world_chance(world, 40);

		if (world_chance(world, 70))
			sim_block(world->sim, "a", "b", on);
		if (world_chance(world, 70))
			sim_block(world->sim, "b", "a", on);
	}
}

void fault_disk(struct world *world, unsigned index)
{
	static const char *const paths[] = {NULL, "volume.img", "staging", "/var/offsite"};
	bool on = world_chance(world, 50);

	/* A failed write leaves a sector old or new: not told apart where sectors are written in
	 * parts. */
	if (index == world->primary && world->options.partial_sectors)
		return;
	world_disk_errors(world, index, on ? (uint32_t)world_random(world, 20000) : 0,
			  paths[world_random(world, 4)]);
}

void fault_full_disk(struct world *world, unsigned index)
{
	static const uint64_t left[] = {0, 0, 16 << 10, 256 << 10, 2 << 20};

	if (world->nodes[index].disk_full) {
		world_disk_room(world, index);
		return;
	}
	/* As in fault_disk(). */
	if (index == world->primary && world->options.partial_sectors)
		return;
	world_disk_full(world, index, world_random(world, 1 + left[world_random(world, 5)]),
			world_chance(world, 30));
}

void fault_full_store(struct world *world)
{
	struct store_sim_options options;

	store_sim_get_options(world->sim, WORLD_STORE, &options);
	if (options.capacity_bytes == 0)
		options.capacity_bytes = 1 + store_sim_bytes(world->sim, WORLD_STORE) +
					 world_random(world, world_chance(world, 50) ? 1 : 1 << 20);
	else
		options.capacity_bytes = 0;
	store_sim_set_options(world->sim, WORLD_STORE, &options);
	sim_note(world->sim, "the store has room for %llu bytes",
		 (unsigned long long)options.capacity_bytes);
}

/* The primary's disk goes at once, while the peer follows: it is to take over. */
void fault_fail_in_stream(struct world *world)
{
	struct replication_status status;

	world_status(world, world->primary, &status);
	if (status.state == REPLICATION_STREAMING && status.source &&
	    !world->options.partial_sectors && !world_leans(world, world->primary))
		world_disk_errors(world, world->primary, 1000000, "volume.img");
}

/* The primary goes on without its peer, and dies; its peer goes on without it. Then they meet. */
void fault_come_apart(struct world *world, unsigned faults)
{
	unsigned old = world->primary;

	if (world_leans(world, old) || world->nodes[old].content_lost ||
	    world->nodes[old].rolling_back)
		return;
	sim_cut(world->sim, "a", "b", false);
	sim_block(world->sim, "a", "b", true);
	sim_block(world->sim, "b", "a", true);
	for (unsigned phase = 0; phase < 2; phase++) {
		for (unsigned i = (unsigned)world_random(world, 40); i > 0; i--) {
			world_submit(world);
			scenario_run_steps(world, world_random(world, 60));
		}
		if (phase == 0) {
			world_crash(world, old, any_crash(world));
			world_fail_over(world);
		}
	}
	sim_block(world->sim, "a", "b", false);
	sim_block(world->sim, "b", "a", false);
	fault_start(world, faults, old);
	scenario_run_time(world, world_random(world, 20 * WORLD_SECOND));
}
