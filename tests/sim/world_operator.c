// SPDX-License-Identifier: Apache-2.0
/* What the operator does: snapshots, restores, sizes, roles; and what must hold when it is done. */
#include "tests/sim/world_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/check.h"

/* ---- snapshots, restores ----------------------------------------------------------------------------------- */

struct ticket {
	struct world *world;
	unsigned index;
	uint32_t incarnation;
	bool secondary; /* a snapshot: by the node that the clients did not use then */
};

static struct ticket *ticket_new(struct world *world, unsigned index)
{
	struct ticket *ticket = malloc(sizeof(*ticket));

	if (ticket == NULL)
		abort();
	*ticket = (struct ticket){world, index, world->nodes[index].incarnation,
				  index != world->primary};
	return ticket;
}

/* False: from an incarnation that is gone. */
static bool ticket_take(void *context, struct ticket *ticket)
{
	struct world_node *n;

	*ticket = *(struct ticket *)context;
	free(context);
	n = &ticket->world->nodes[ticket->index];
	return ticket->incarnation == n->incarnation && !sim_node_dead(n->env);
}

static void snapshot_created(void *context, const struct snapshot_result *result)
{
	struct ticket ticket;
	struct world *world;

	if (!ticket_take(context, &ticket))
		return;
	world = ticket.world;
	if (ticket.secondary || ticket.index != world->primary || !world->snapshot_running) {
		world->secondary_snapshots += !result->error;
		world->secondary_maybe -= result->error && world->secondary_maybe;
		sim_note(world->sim, "snapshot of node %u: %d %s", ticket.index, result->error,
			 result->why);
		return;
	}
	world->snapshot_running = false;
	world->snapshot_error = result->error;
	sim_note(world->sim, "snapshot: %d %s", result->error, result->why);
	if (result->error != 0)
		return;
	world->snapshots++;
	check_snapshot(world, &result->info.id, world->snapshot_from, model_tick(world->model));
}

void world_snapshot(struct world *world)
{
	struct node_volume *v = world_volume(world, world->primary);

	if (v == NULL || v->writer == NULL || world->snapshot_running ||
	    world->nodes[world->primary].rolling_back ||
	    world->nodes[world->primary].content_lost || world->nodes[world->primary].restoring)
		return;
	world->snapshot_running = true;
	world->snapshot_from = model_tick(world->model);
	world->snapshot_size_bytes = world->size_bytes;
	sim_note(world->sim, "snapshot begins at ordinal %u", world->snapshot_from);
	snapshot_create(v->writer, "sim", snapshot_created, ticket_new(world, world->primary));
	world_died(world, world->primary);
}

void world_snapshot_secondary(struct world *world)
{
	unsigned index = 1 - world->primary;
	struct node_volume *v = world_volume(world, index);

	if (v == NULL || v->writer == NULL || world->nodes[index].restoring ||
	    world->nodes[world->primary].rolling_back)
		return;
	sim_note(world->sim, "snapshot of node %u begins", index);
	world->secondary_maybe++;
	snapshot_create(v->writer, "sim, secondary", snapshot_created, ticket_new(world, index));
	world_died(world, index);
}

/* The content of node index becomes what the clients go on with; the other's disk does not count. */
static void take_over(struct world *world, unsigned index)
{
	struct model_image image = world_image(world->nodes[index].env);
	char why[1024];

	if (!model_resolve(world->model, &image, true, why, sizeof(why)))
		world_fail(world, "promise 1, going on with the peer's content: %s", why);
}

static void new_primary(struct world *world, unsigned index);

/* It was to give its changes up, which failed: it serves again what it served. */
static bool serves_again(struct world *world, unsigned index)
{
	struct node_volume *v = world_volume(world, index);
	struct volume_state state;

	if (v == NULL || v->volume == NULL)
		return false;
	world_volume_state(world, index, &state);
	return state.role == VOLUME_PRIMARY;
}

static void restored(void *context, int error, const char *why)
{
	struct ticket ticket;
	struct world *world;
	struct world_node *n;
	struct volume_state state;
	char reason[256] = "";

	if (!ticket_take(context, &ticket))
		return;
	world = ticket.world;
	n = &world->nodes[ticket.index];
	n->restoring = false;
	sim_note(world->sim, "restore of node %u from its peer: %d %s", ticket.index, error,
		 why != NULL ? why : "");
	n->refused = error == -EPERM;
	if (error != 0)
		return;
	world->restores++;
	if (ticket.index != world->primary)
		return;
	if (serves_again(world, 1 - ticket.index)) {
		new_primary(world, 1 - ticket.index);
		return;
	}
	take_over(world, ticket.index);
	n->content_lost = false;
	world_volume_state(world, ticket.index, &state);
	if (state.role != VOLUME_PRIMARY &&
	    node_promote(world_volume(world, ticket.index), false, reason, sizeof(reason)) != 0 &&
	    !sim_node_dead(n->env))
		world_fail(world, "restored from the peer, but not promoted: %s", reason);
}

void world_restore_from_peer(struct world *world, unsigned index)
{
	struct world_node *n = &world->nodes[index];

	if (n->node == NULL || n->restoring)
		return;
	if (index == world->primary)
		world->must_wait = false;
	n->restoring = true;
	sim_note(world->sim, "restore of node %u from its peer begins", index);
	node_restore_from_peer(world_volume(world, index), restored, ticket_new(world, index));
	world_died(world, index);
}

bool world_resolve(struct world *world, unsigned index)
{
	struct world_node *n = &world->nodes[index];
	struct node_volume *v = world_volume(world, index);
	const char *keep = world->nodes[1 - index].config.node.name;
	struct node_resolve_plan plan;
	char why[512];

	if (v == NULL || n->restoring || v->volume == NULL || v->resolve != NULL ||
	    node_resolve_plan(v, keep, !world->options.keep, &plan, why, sizeof(why)) != 0)
		return false;
	n->restoring = true;
	world->resolves++;
	sim_note(world->sim, "node %u gives up its changes: %llu bytes, full %d", index,
		 (unsigned long long)plan.discarded.bytes, plan.full);
	node_resolve(v, keep, !world->options.keep, restored, ticket_new(world, index));
	world_died(world, index);
	return true;
}

static void rolled_back(void *context, int error, const char *why)
{
	struct ticket ticket;
	struct world *world;
	struct world_node *n;
	struct model_image image;
	struct volume_state state;
	char reason[1024];

	if (!ticket_take(context, &ticket))
		return;
	world = ticket.world;
	n = &world->nodes[ticket.index];
	n->restoring = false;
	sim_note(world->sim, "roll-back of node %u: %d %s", ticket.index, error,
		 why != NULL ? why : "");
	world_volume_state(world, ticket.index, &state);
	/* There is no snapshot, or the newest is of a peer that was made bigger before this node. */
	if ((error == -ENOENT || error == -ENOSPC) && state.disk == VOLUME_DISK_UPTODATE)
		n->rolling_back = false;
	if (error != 0)
		return;
	check_rolled_back(world);
	image = world_image(n->env);
	if (!model_rolled_back(world->model, &image, reason, sizeof(reason)))
		world_fail(world, "promise 6: %s", reason);
	n->rolling_back = false;
	world->roll_backs++;
}

static void no_progress(void *context, const struct snapshot_progress *progress)
{
	(void)context;
	(void)progress;
}

static bool snapshot_runs(struct world *world, unsigned index)
{
	struct node_volume *v = world_volume(world, index);
	struct snapshot_writer_status status = {.running = false};

	if (v != NULL && v->writer != NULL)
		snapshot_writer_status(v->writer, &status);
	return status.running;
}

void world_roll_back(struct world *world)
{
	struct world_node *n = &world->nodes[world->primary];
	struct node_volume *v = world_volume(world, world->primary);
	struct volume_state state;
	char why[256];

	if (v == NULL || n->restoring || n->content_lost || n->disk_errors || world->busy > 0 ||
	    world->snapshot_running)
		return;
	/* Another one would be the newest by the time that is looked at. */
	if (snapshot_runs(world, 1 - world->primary))
		return;
	world_volume_state(world, world->primary, &state);
	if (!n->rolling_back && world->snapshots == 0)
		return;
	if (world_leans(world, world->primary))
		return;
	n->rolling_back = true;
	world->must_wait = false;
	if (world->block != NULL)
		world->block->ops->close(world->block);
	world->block = NULL;
	if (state.disk == VOLUME_DISK_INCONSISTENT &&
	    volume_block(v->volume)->ops->open(volume_block(v->volume), why, sizeof(why)) == 0)
		world_fail(world, "promise 6: a half-restored volume can be opened");
	n->restoring = true;
	sim_note(world->sim, "roll-back of node %u begins", world->primary);
	node_restore_snapshot(v, NULL, no_progress, rolled_back, ticket_new(world, world->primary));
	world_died(world, world->primary);
}

void world_clock_jump(struct world *world)
{
	static const uint64_t most[] = {5, 3600, 10 * 24 * 3600};
	uint64_t by = world_random(world, most[world_random(world, 3)] * WORLD_SECOND);
	struct world_node *n = &world->nodes[world_random(world, NODES)];

	sim_clock_jump(world->sim, n->env, world_chance(world, 50) ? (int64_t)by : -(int64_t)by);
	world->clock_jumps++;
}

/* ---- size ------------------------------------------------------------------------------------------------ */

void world_look_at_size(struct world *world)
{
	struct node_volume *v = world_volume(world, world->primary);
	struct node_volume *w = world_volume(world, 1 - world->primary);
	struct replication_status status, other;
	uint64_t size;

	if (v == NULL || v->volume == NULL || sim_node_dead(world->nodes[world->primary].env) ||
	    world->nodes[world->primary].content_lost)
		return;
	size = volume_size_bytes(v->volume);
	if (size < world->size_bytes)
		world_fail(world, "the volume has %llu bytes, and had %llu",
			   (unsigned long long)size, (unsigned long long)world->size_bytes);
	if (size == world->size_bytes)
		return;
	world->size_bytes = size;
	model_grow(world->model, size);
	world_status(world, world->primary, &status);
	world_status(world, 1 - world->primary, &other); /* its disk may be another since */
	if (status.source && status.state == REPLICATION_STREAMING &&
	    other.state == REPLICATION_STREAMING && w != NULL && w->volume != NULL &&
	    !sim_node_dead(world->nodes[1 - world->primary].env) &&
	    volume_size_bytes(w->volume) < size)
		world_fail(world, "the primary is bigger than the secondary that it streams to");
}

static void resized(void *context, int error, const char *why)
{
	struct ticket ticket;
	struct world *world;

	if (!ticket_take(context, &ticket))
		return;
	world = ticket.world;
	world->resizing = false;
	sim_note(world->sim, "resize: %d %s", error, why);
	if (error != 0)
		return;
	world->resizes++;
	if (ticket.index == world->primary)
		world_look_at_size(world);
	if (world->resize_alone || ticket.index != world->primary ||
	    world->nodes[1 - world->primary].incarnation != world->resize_incarnation)
		return;
	if (world->size_bytes < world->resize_bytes ||
	    world_disk_size(world->nodes[1 - world->primary].env) < world->resize_bytes)
		world_fail(
			world, "resized to %llu bytes, and is not: %llu here, %llu there",
			(unsigned long long)world->resize_bytes,
			(unsigned long long)world->size_bytes,
			(unsigned long long)world_disk_size(world->nodes[1 - world->primary].env));
}

/* Disks are seldom new: what is behind the volume's end is not zeroes. */
static void append_junk(struct world *world, unsigned index, uint64_t size_bytes)
{
	struct env *env = world->nodes[index].env;
	uint64_t file = 0, volume = world_disk_size(env);

	if (world->nodes[index].node == NULL || volume == 0 || volume >= size_bytes ||
	    !sim_file_size(env, WORLD_BACKING, &file) || file != volume || !world_chance(world, 60))
		return;
	sim_file_append_junk(env, WORLD_BACKING, 4096 * (1 + world_random(world, 64)));
}

static bool resize(struct world *world, unsigned index, uint64_t size_bytes, bool alone)
{
	struct node_volume *v = world_volume(world, index);

	if (v == NULL || v->volume == NULL || world->resizing || world->nodes[index].restoring)
		return false;
	for (unsigned i = 0; i < NODES; i++)
		append_junk(world, i, size_bytes);
	world->resizing = true;
	world->resize_index = index;
	world->resize_bytes = size_bytes;
	world->resize_alone = alone;
	world->resize_incarnation = world->nodes[1 - index].incarnation;
	sim_note(world->sim, "resize of node %u to %llu bytes%s", index,
		 (unsigned long long)size_bytes, alone ? ", alone" : "");
	node_resize(v, size_bytes, alone, resized, ticket_new(world, index));
	world_died(world, index);
	return true;
}

void world_resize(struct world *world)
{
	struct world_node *n = &world->nodes[world->primary];
	uint64_t size = world->size_bytes;

	if (n->content_lost || n->rolling_back || size >= 2 * world->options.size_bytes + (1 << 20))
		return;
	size += 4096 - size % 4096;
	size += 4096 * world_random(world, world_chance(world, 50) ? 8 : 128);
	resize(world, world->primary, size, world_chance(world, 20));
}

bool world_resize_alone(struct world *world, unsigned index, uint64_t size_bytes)
{
	return resize(world, index, size_bytes, true);
}

/* ---- roles ---------------------------------------------------------------------------------------------- */

static void new_primary(struct world *world, unsigned index)
{
	take_over(world, index);
	world->size_bytes = volume_size_bytes(world_volume(world, index)->volume);
	model_grow(world->model, world->size_bytes);
	world->resizing = false;
	model_switched(world->model);
	world_drop_clients(world);
	world->nodes[world->primary].content_lost = false;
	world->nodes[world->primary].rolling_back = false;
	world->primary = index;
	world->must_wait = false;
	world->switches++;
	sim_note(world->sim, "node %u is the primary from here on", index);
}

/* It was promoted without force, and no client of the old primary saw anything that is not here. */
static void check_nothing_lost(struct world *world, unsigned index)
{
	struct model_image image = world_image(world->nodes[index].env);
	char why[1024];

	if (world->must_wait && world->options.protocol == 'C' && !world_died(world, index) &&
	    !model_check_local(world->model, &image, world->answered, why, sizeof(why)))
		world_fail(world, "promise 1, lost in a promotion without force: %s", why);
}

struct fencing {
	bool done;
	int error;
	char why[256];
};

static void fenced(void *context, int error, const char *why)
{
	struct fencing *fencing = context;

	fencing->done = true;
	fencing->error = error;
	snprintf(fencing->why, sizeof(fencing->why), "%s", why);
}

/* A program is asked first. If it refuses, nothing has changed. */
static void fail_over_with_fence(struct world *world, unsigned index)
{
	struct world_node *n = &world->nodes[index];
	struct fencing *fencing = calloc(1, sizeof(*fencing)); /* stays behind if the node dies */
	uint32_t incarnation = n->incarnation;
	bool force = world_chance(world, 50);
	struct volume_state state;

	if (fencing == NULL)
		abort();
	node_promote_start(world_volume(world, index), force ? NODE_FORCE : 0, fenced, fencing);
	while (!fencing->done && !world_died(world, index) && n->incarnation == incarnation)
		world_step(world);
	if (n->incarnation != incarnation || world_died(world, index))
		return;
	sim_note(world->sim, "promotion of node %u: %d %s", index, fencing->error, fencing->why);
	world_volume_state(world, index, &state);
	if ((fencing->error == 0) != (state.role == VOLUME_PRIMARY))
		world_fail(world, "promotion: %d, but the node is %s", fencing->error,
			   volume_role_name(state.role));
	if (fencing->error != 0)
		return;
	if (!force)
		check_nothing_lost(world, index);
	new_primary(world, index);
}

void world_fail_over(struct world *world)
{
	unsigned index = 1 - world->primary;
	struct node_volume *v = world_volume(world, index);
	struct volume_state state;
	struct replication_status status;
	char why[256] = "";

	if (world->nodes[world->primary].node != NULL || v == NULL ||
	    world->nodes[index].restoring || world->nodes[index].disk_errors || v->busy != NULL ||
	    replication_applying(v->replication))
		return;
	world_volume_state(world, index, &state);
	if (id128_is_zero(&state.generations.current) || state.disk == VOLUME_DISK_INCONSISTENT ||
	    state.disk == VOLUME_DISK_FAILED)
		return;
	if (state.role == VOLUME_PRIMARY) /* has not stepped down yet: not rolled back */
		return;
	/* Snapshots would be too big for it. */
	if (volume_size_bytes(v->volume) < world->size_bytes && world->snapshots > 0)
		return;
	world_status(world, index, &status);
	if (status.state >= REPLICATION_IDLE) /* it does not know yet, and rightly refuses */
		return;
	if (world->options.fence) {
		fail_over_with_fence(world, index);
		return;
	}
	if (world_chance(world, 50) && node_promote(v, false, why, sizeof(why)) == 0)
		check_nothing_lost(world, index);
	else if (!world_died(world, index) && node_promote(v, true, why, sizeof(why)) != 0 &&
		 !world_died(world, index))
		world_fail(world, "a usable secondary is not promoted: %s", why);
	if (!world_died(world, index))
		new_primary(world, index);
}

void world_switch(struct world *world)
{
	unsigned from = world->primary, to = 1 - from;
	struct node_volume *v = world_volume(world, from), *w = world_volume(world, to);
	struct replication_status status;
	struct model_image image;
	uint32_t now;
	char why[1024] = "";

	if (world_leans(world, from))
		return;
	if (v == NULL || w == NULL || world->busy > 0 || world->snapshot_running ||
	    world->nodes[from].content_lost || world->nodes[from].restoring ||
	    world->nodes[from].rolling_back || world->nodes[to].restoring ||
	    world->nodes[from].disk_errors || world->nodes[to].disk_errors)
		return;
	world_status(world, from, &status);
	if (status.state != REPLICATION_STREAMING || !status.source)
		return;
	if (world->block != NULL)
		world->block->ops->close(world->block);
	world->block = NULL;
	if (node_demote(v, why, sizeof(why)) != 0 || world_died(world, from))
		return;
	for (unsigned steps = (unsigned)world_random(world, 200); steps > 0; steps--)
		world_step(world);
	if (world_died(world, from) || world_died(world, to) ||
	    node_promote(w, false, why, sizeof(why)) != 0 || world_died(world, to)) {
		sim_note(world->sim, "the switch-over fails: %s", why);
		if (!world_died(world, from) && node_promote(v, true, why, sizeof(why)) != 0 &&
		    !world_died(world, from))
			world_fail(world, "demoted and cannot be promoted again: %s", why);
		world->must_wait = false; /* a demotion ends the wait for the peer */
		return;
	}
	image = world_image(world->nodes[to].env);
	now = model_tick(world->model);
	if (!model_check_point(world->model, &image, now, now, why, sizeof(why)))
		world_fail(world, "promise 1, lost in a planned change of roles: %s", why);
	new_primary(world, to);
}
