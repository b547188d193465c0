// SPDX-License-Identifier: Apache-2.0
/* What the operator does when something went wrong, and now and then. */
#include "tests/sim/scenario_internal.h"

/* The new disk is filled from the peer while the clients go on: to its end, if nothing comes between. */
static void fill_under_writes(struct world *world, unsigned faults)
{
	unsigned index = world->primary;
	unsigned count = world_chance(world, 50) ? 400 : (unsigned)world_random(world, 100);

	for (unsigned i = 0; i < count && index == world->primary && world_leans(world, index);
	     i++) {
		world_submit(world);
		scenario_run_steps(world, world_random(world, 8));
	}
	if (index == world->primary && world_leans(world, index) && world_chance(world, 50))
		fault_crash(world, faults, index);
}

/* The operator sees a failed disk, has the cause put right and starts the node again. */
void operator_look_after_disks(struct world *world, unsigned faults)
{
	for (unsigned i = 0; i < NODES; i++) {
		struct world_node *n = &world->nodes[i];
		struct volume_state state;

		if (world_leans(world, i) && world_chance(world, 30)) {
			world_replace_disk(world, i);
			if (i == world->primary &&
			    (world->options.theme == THEME_DISK || world_chance(world, 50)))
				fill_under_writes(world, faults);
		}
		if (n->disk_full && world_chance(world, 10))
			world_disk_room(world, i);
		if (n->node == NULL || !n->disk_errors || n->disk_full)
			continue;
		world_volume_state(world, i, &state);
		if (!n->disk_failed && state.disk != VOLUME_DISK_FAILED)
			continue;
		world_crash(world, i, SIM_CRASH_KILL);
		world_disk_errors(world, i, 0, NULL);
	}
}

/* One side was made bigger alone, and the smaller one does not follow by itself. */
static bool sizes_differ(struct world *world, unsigned index, uint64_t *size_bytes)
{
	struct node_volume *v = world_volume(world, index);

	*size_bytes = world_disk_size(world->nodes[1 - index].env);
	return v != NULL && v->volume != NULL && volume_size_bytes(v->volume) < *size_bytes;
}

static bool refused(struct world *world, unsigned index)
{
	struct replication_status status;

	world_status(world, index, &status);
	return status.state == REPLICATION_STANDALONE && status.refusal[0] != '\0';
}

static bool has_failed(struct world *world, unsigned index)
{
	struct volume_state state;

	world_volume_state(world, index, &state);
	return state.disk == VOLUME_DISK_FAILED && !world->nodes[index].disk_errors;
}

/* The operator makes the smaller side bigger, as the refusal says. */
static bool make_equal(struct world *world)
{
	uint64_t size;

	for (unsigned i = 0; i < NODES; i++)
		if (sizes_differ(world, i, &size) && !has_failed(world, i) &&
		    world_resize_alone(world, i, size))
			return true;
	return false;
}

/* What a failed write was to change may differ on the peer, until they meet again. */
static void reconnect(struct world *world)
{
	struct world_node *n = &world->nodes[world->primary];
	struct replication_status status;
	char why[256] = "";

	if (!n->unequal || n->disk_errors || n->node == NULL || n->restoring || n->disconnected)
		return;
	world_status(world, world->primary, &status);
	if (status.state != REPLICATION_STREAMING || world_leans(world, world->primary))
		return;
	sim_note(world->sim, "node %u: disconnect and connect", world->primary);
	n->unequal = false;
	world->must_wait = false; /* it is the operator's word */
	replication_disconnect(world_volume(world, world->primary)->replication, why, sizeof(why));
	replication_connect(world_volume(world, world->primary)->replication, why, sizeof(why));
}

/* The operator decides whose content counts: the primary's, unless its disk was lost. */
void operator_look_after_content(struct world *world)
{
	unsigned other = 1 - world->primary;
	char why[256] = "";

	reconnect(world);
	if (world->nodes[world->primary].content_lost) {
		if (!refused(world, world->primary) || !make_equal(world))
			world_restore_from_peer(world, world->primary);
		return;
	}
	if (world->nodes[world->primary].rolling_back)
		world_roll_back(world);
	if (world->nodes[other].node == NULL || world->nodes[world->primary].node == NULL ||
	    world->nodes[other].disconnected || world->nodes[world->primary].disconnected ||
	    !(refused(world, other) || refused(world, world->primary) || has_failed(world, other)))
		return;
	if (has_failed(world, other) &&
	    (world_leans(world, world->primary) || world->nodes[other].refused)) {
		/* All there is: it was only full. */
		world->nodes[other].refused = false;
		world_crash(world, other, SIM_CRASH_KILL);
		world_start(world, other);
		return;
	}
	if (make_equal(world))
		return;
	if (!world_chance(world, 70) || !world_resolve(world, other))
		world_restore_from_peer(world, other);
	replication_connect(world_volume(world, world->primary)->replication, why, sizeof(why));
}

/* ---- verify ------------------------------------------------------------------------------------------ */

void operator_begin_verify(struct world *world)
{
	static const char *const nodes[] = {NULL, "a", "b"};
	struct node_volume *v = world_volume(world, world->primary);
	char why[256];

	if (v == NULL || v->replication == NULL)
		return;
	if (world_chance(world, 10))
		replication_verify_cancel(v->replication, why, sizeof(why));
	else
		replication_verify(v->replication, nodes[world_random(world, 3)],
				   world_chance(world, 50) ? 0
							   : 100000 + world_random(world, 2000000),
				   why, sizeof(why));
}

/* Both sides are the same at every point of the order, and so verify must say. */
void scenario_check_verify(struct world *world)
{
	struct node_volume *v = world_volume(world, world->primary);
	struct verify_status status;

	/* What cannot be read counts as different. */
	if (v == NULL || v->replication == NULL || world->disk_failed || world->write_failed)
		return;
	replication_get_verify(v->replication, &status);
	if (status.record.differ_bytes > 0)
		world_fail(world, "verify: %llu bytes differ, at %llu",
			   (unsigned long long)status.record.differ_bytes,
			   (unsigned long long)status.record.extent[0].offset_bytes);
}
