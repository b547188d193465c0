// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/world_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "protocol/metadata.h"
#include "protocol/split.h"
#include "tests/sim/check.h"

static uint64_t next_random(uint64_t *state, uint64_t limit)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	z ^= z >> 31;
	return limit > 0 ? z % limit : z;
}

uint64_t world_random(struct world *world, uint64_t limit)
{
	return next_random(&world->random_state, limit);
}

uint64_t world_extra(struct world *world, uint64_t limit)
{
	return next_random(&world->extra_state, limit);
}

bool world_chance(struct world *world, unsigned percent)
{
	return world_random(world, 100) < percent;
}

void world_fail(struct world *world, const char *format, ...)
{
	va_list args;
	char reason[1024];

	va_start(args, format);
	vsnprintf(reason, sizeof(reason), format, args);
	va_end(args);
	sim_print_log(world->sim, stderr);
	fprintf(stderr, "FAILED: seed %llu at %.6f s: %s\n", (unsigned long long)world->seed,
		(double)sim_now_ns(world->sim) / 1e9, reason);
	fflush(stderr);
	_exit(1);
}

/* ---- looking ------------------------------------------------------------------------------------- */

struct node_volume *world_volume(struct world *world, unsigned index)
{
	struct node *node = world->nodes[index].node;

	return node != NULL ? node_find(node, WORLD_VOLUME) : NULL;
}

void world_status(struct world *world, unsigned index, struct replication_status *status)
{
	struct node_volume *v = world_volume(world, index);

	memset(status, 0, sizeof(*status));
	if (v != NULL && v->replication != NULL)
		replication_get_status(v->replication, status);
}

void world_volume_state(struct world *world, unsigned index, struct volume_state *state)
{
	volume_get_state(world_volume(world, index)->volume, state);
}

static const uint8_t *image_page(const void *file, uint64_t index)
{
	return sim_file_page(file, index);
}

static const uint32_t *image_checksums(const void *file, uint64_t index)
{
	return sim_file_checksums(file, index);
}

static struct metadata_super newest_super(const struct env *env)
{
	struct metadata_super super, newest = {0};
	struct metadata_super_wire wire;

	for (unsigned i = 0; i < METADATA_SUPER_SLOTS * METADATA_SUPER_COPIES; i++)
		if (sim_file_peek(env, WORLD_STATE "/super", &wire, sizeof(wire),
				  i * METADATA_SUPER_BYTES) &&
		    metadata_super_decode(&wire, &super) == NULL &&
		    super.sequence > newest.sequence)
			newest = super;
	return newest;
}

bool world_super_is_whole(const struct env *env)
{
	uint64_t newest = newest_super(env).sequence;
	struct metadata_super super;
	struct metadata_super_wire wire;
	unsigned copies = 0;

	for (unsigned i = 0; i < METADATA_SUPER_SLOTS * METADATA_SUPER_COPIES; i++)
		copies += sim_file_peek(env, WORLD_STATE "/super", &wire, sizeof(wire),
					i * METADATA_SUPER_BYTES) &&
			  metadata_super_decode(&wire, &super) == NULL && super.sequence == newest;
	return copies == METADATA_SUPER_COPIES;
}

bool world_at_peer(const struct env *env)
{
	return newest_super(env).flags & METADATA_AT_PEER;
}

uint64_t world_disk_size(const struct env *env)
{
	return newest_super(env).size_bytes;
}

bool world_leans(struct world *world, unsigned index)
{
	struct node_volume *v = world_volume(world, index);

	return v != NULL && v->volume != NULL && volume_leans(v->volume);
}

static void replaced(void *context, int error, const char *why)
{
	(void)context;
	(void)error;
	(void)why;
}

void world_replace_disk(struct world *world, unsigned index)
{
	struct node_volume *v = world_volume(world, index);

	if (!world_leans(world, index) || v->replacement != NULL ||
	    volume_lean(v->volume) != VOLUME_LEAN_DISKLESS)
		return;
	world_disk_errors(world, index, 0, NULL);
	sim_note(world->sim, "the disk of node %u is replaced", index);
	node_replace_disk(v, replaced, NULL);
}

struct model_image world_image_of(const struct env *env, const char *path)
{
	return (struct model_image){
		.page = image_page,
		.checksums = image_checksums,
		.context = sim_file_find(env, path),
	};
}

struct model_image world_image(const struct env *env)
{
	struct model_image image = world_image_of(env, WORLD_BACKING);

	image.size_bytes = world_disk_size(env);
	return image;
}

/* ---- nodes ------------------------------------------------------------------------------------------ */

void world_drop_clients(struct world *world)
{
	world->incarnation++;
	world->block = NULL;
	world->snapshot_running = false;
	for (unsigned i = 0; i < WORLD_CLIENTS_MAX; i++)
		world->clients[i].busy = false;
	world->busy = 0;
	world_new_pool(world); /* the old one's buffers are with the dead */
}

/* Its process is gone: nothing of it is called or freed any more. */
static void forget(struct world *world, unsigned index)
{
	struct world_node *n = &world->nodes[index];

	if (index == world->primary || index == world->resize_index)
		world->resizing = false;
	n->node = NULL;
	n->incarnation++;
	n->disconnected = false;
	n->disk_failed = false;
	n->unequal = false;
	n->restoring = false;
	n->unresolved = false;
	world->crashes++;
	if (index == world->primary)
		world_drop_clients(world);
}

bool world_died(struct world *world, unsigned index)
{
	struct world_node *n = &world->nodes[index];

	if (!sim_node_dead(n->env))
		return false;
	if (n->node != NULL)
		forget(world, index);
	return true;
}

void world_crash(struct world *world, unsigned index, enum sim_crash mode)
{
	if (world->nodes[index].node == NULL || world_died(world, index))
		return;
	sim_crash(world->sim, world->nodes[index].env, mode);
	forget(world, index);
}

void world_disk_errors(struct world *world, unsigned index, uint32_t ppm, const char *path)
{
	struct world_node *n = &world->nodes[index];
	struct sim_disk_options options;

	sim_disk_get(n->env, &options);
	options.read_eio_ppm = options.write_eio_ppm = options.fsync_eio_ppm = ppm;
	options.eio_path = path;
	sim_disk_set(n->env, &options);
	world->disk_failed = world->disk_failed || ppm > 0;
	if (ppm > 0)
		n->disk_errors = true;
	else if (n->node == NULL)
		n->disk_errors = false;
	sim_note(world->sim, "disk errors on node %u: %u in a million%s%s", index, ppm,
		 path != NULL ? " of " : "", path != NULL ? path : "");
}

void world_disk_full(struct world *world, unsigned index, uint64_t left_bytes, bool copies)
{
	struct world_node *n = &world->nodes[index];
	struct sim_disk_options options;

	sim_disk_get(n->env, &options);
	options.capacity_bytes = sim_disk_used(n->env) + left_bytes;
	options.copies_on_write = copies;
	sim_disk_set(n->env, &options);
	n->disk_full = true;
	n->disk_errors = true;
	world->full_disks++;
	sim_note(world->sim, "the disk of node %u is full, but for %llu bytes%s", index,
		 (unsigned long long)left_bytes, copies ? "; it copies on write" : "");
}

void world_disk_room(struct world *world, unsigned index)
{
	struct world_node *n = &world->nodes[index];
	struct sim_disk_options options;

	if (!n->disk_full)
		return;
	sim_disk_get(n->env, &options);
	options.capacity_bytes = 0;
	options.copies_on_write = false;
	sim_disk_set(n->env, &options);
	n->disk_full = false;
	if (options.write_eio_ppm == 0 && !n->disk_failed)
		n->disk_errors = false;
	for (unsigned i = 0; i < WORLD_CLIENTS_MAX; i++)
		world->clients[i].excused = world->clients[i].busy;
	sim_note(world->sim, "there is room on the disk of node %u", index);
}

static bool recovered(struct world *world)
{
	struct node_volume *v = world_volume(world, world->primary);

	return v == NULL || !replication_applying(v->replication);
}

static void primary_started(struct world *world)
{
	struct world_node *n = &world->nodes[world->primary];
	struct model_image image = world_image(n->env);
	struct volume_state state;
	char why[1024] = "";

	/* The operator will ask for the restore once more, whatever it has come to. */
	if (n->content_lost || n->rolling_back)
		return;
	n->unresolved = world_leans(world, world->primary);
	if (n->unresolved)
		return;
	world_look_at_size(world);
	if (!model_resolve(world->model, &image, false, why, sizeof(why)))
		world_fail(world, "promise 1: %s", why);
	check_maps(world);
	world_volume_state(world, world->primary, &state);
	if (state.role != VOLUME_PRIMARY && !world_wait(world, recovered, 60 * WORLD_SECOND))
		world_fail(world, "the recovery at start does not end");
	if (n->node != NULL &&
	    state.role != VOLUME_PRIMARY && /* died in the middle of a change of roles */
	    node_promote(world_volume(world, world->primary), true, why, sizeof(why)) != 0 &&
	    !world_died(world, world->primary) && !n->disk_errors)
		world_fail(world, "the primary cannot be promoted again: %s", why);
}

/* Who was primary before the other took over, or is by its config, is told that it is not. */
static void other_started(struct world *world, unsigned index)
{
	struct volume_state state;
	char why[256] = "";

	world_volume_state(world, index, &state);
	/* ... or is left to find it out. */
	if (state.role == VOLUME_PRIMARY &&
	    (!world_chance(world, 40) || world_leans(world, index)) &&
	    node_demote(world_volume(world, index), why, sizeof(why)) != 0 &&
	    !sim_node_dead(world->nodes[index].env) && !world->nodes[index].disk_errors)
		world_fail(world, "node %u cannot be demoted: %s", index, why);
	world_died(world, index);
}

/* The operator writes into the config what the volume has; a new disk gets what the clients know. */
void world_configure_size(const struct world *world, const struct env *env,
			  struct config_volume *config)
{
	uint64_t size = world_disk_size(env);

	/* A first start that died may have made the file, and no more. */
	if (size == 0 && (!sim_file_size(env, WORLD_BACKING, &size) || size == 0))
		size = world->size_bytes;
	config->size_bytes = size;
}

void world_start(struct world *world, unsigned index)
{
	struct world_node *n = &world->nodes[index];
	char why[256] = "";
	struct sim_disk_options disk;
	struct node *node = NULL;
	int error;

	if (!world_died(world, index) && n->node != NULL)
		return;
	if (sim_node_dead(n->env))
		n->env = sim_restart(world->sim, n->env);
	sim_disk_get(n->env, &disk);
	n->disk_errors = disk.write_eio_ppm > 0 || n->disk_full;
	world_configure_size(world, n->env, &n->volume);
	env_mkdir(n->env, "/srv");
	error = sim_node_dead(n->env) ? 0 : node_start(n->env, &n->config, &node, why, sizeof(why));
	if (sim_node_dead(n->env)) {
		world->crashes++;
		return;
	}
	if (error != 0 && n->disk_errors) {
		sim_crash(world->sim, n->env, SIM_CRASH_KILL);
		return;
	}
	if (error != 0)
		world_fail(world, "node %u did not start: %d, %s", index, error, why);
	n->node = node;
	if (world_volume(world, index)->volume == NULL && n->disk_errors) {
		world_crash(world, index, SIM_CRASH_KILL);
		return;
	}
	if (world_volume(world, index)->volume == NULL)
		world_fail(world, "node %u: its volume did not open: %s", index,
			   world_volume(world, index)->error);
	if (index == world->primary)
		primary_started(world);
	else
		other_started(world, index);
}

void world_resume(struct world *world)
{
	struct node_volume *v = world_volume(world, world->primary);
	struct replication_status status;
	char why[256] = "";

	if (v == NULL)
		return;
	world_status(world, world->primary, &status);
	if (!status.waiting || world_leans(world, world->primary))
		return;
	world->must_wait = false;
	world->resumes++;
	sim_note(world->sim, "resume");
	if (replication_resume(v->replication, why, sizeof(why)) != 0 &&
	    !world_died(world, world->primary) && !world->nodes[world->primary].disk_errors)
		world_fail(world, "suspended requests cannot be resumed: %s", why);
	world_died(world, world->primary);
}

static bool idle_by_resume(struct world *world)
{
	world_resume(world);
	return world_idle(world);
}

static void stopped(void *context)
{
	*(bool *)context = true;
}

void world_stop(struct world *world, unsigned index)
{
	struct world_node *n = &world->nodes[index];
	uint64_t limit = sim_now_ns(world->sim) + 600 * WORLD_SECOND;
	bool done = false, abandoned;

	/* Requests wait as long as its peer is away. */
	if (n->node == NULL || n->restoring || world_leans(world, index))
		return;
	/* ... or as long as a new generation finds no room. */
	world_disk_room(world, index);
	if (index == world->primary) {
		if (!world_wait(world, idle_by_resume, 300 * WORLD_SECOND))
			world_fail(world, "requests under way for 300 s");
		if (n->node == NULL)
			return;
		if (world->block != NULL)
			world->block->ops->close(world->block);
		world->block = NULL;
	}
	sim_note(world->sim, "stop of node %u", index);
	abandoned = node_stop(n->node, stopped, &done);
	while (!done) {
		if (!sim_step(world->sim) || sim_now_ns(world->sim) > limit)
			world_fail(world, "node %u does not stop", index);
		world->steps++;
		world_died(world, 1 - index);
		if (world_died(world, index))
			return;
	}
	if (world_died(world, index))
		return;
	if (abandoned) { /* a long job still has it: the process ends */
		world_crash(world, index, SIM_CRASH_KILL);
		return;
	}
	env_free(n->env);
	forget(world, index);
}

/* Streaming in protocol A, nothing new is sent where max-lag is reached: one write may pass it. Without a bound is
 * what is issued behind the final cut, up to the turn in which that is acknowledged. */
static void check_lag(struct world *world)
{
	uint64_t max = world->options.max_lag_bytes, before = world->lag_bytes;
	struct replication_status status;
	bool bounded;

	if (max == 0)
		return;
	world_status(world, world->primary, &status);
	/* Where all is at the peer each request waits for it. */
	bounded = status.state == REPLICATION_STREAMING && status.source &&
		  status.protocol == REPLICATION_A &&
		  volume_lean(world_volume(world, world->primary)->volume) == VOLUME_LEAN_NO;
	world->lag_bytes = bounded ? status.unacked_bytes : UINT64_MAX;
	max += world->options.write_max_bytes + 8192;
	if (bounded && world->lag_bytes > max && world->lag_bytes > before)
		world_fail(world, "the lag grows from %llu to %llu bytes, beyond max-lag",
			   (unsigned long long)before, (unsigned long long)world->lag_bytes);
}

/* After a restart it serves what its peer has, from the moment on that this is durable there. */
static void resolve_leaning(struct world *world)
{
	struct world_node *n = &world->nodes[world->primary];
	struct node_volume *v;
	struct model_image image;
	char why[1024];

	if (!n->unresolved || sim_node_dead(n->env))
		return;
	v = world_volume(world, world->primary);
	if (v == NULL || volume_suspended(v->volume) & VOLUME_SUSPEND_ORIGIN)
		return;
	n->unresolved = false;
	image = world_image(world->nodes[1 - world->primary].env);
	if (!model_resolve(world->model, &image, false, why, sizeof(why)))
		world_fail(world, "promise 1, at the peer: %s", why);
}

bool world_applies_log(struct world *world, unsigned index)
{
	struct node_volume *v = world_volume(world, index);
	struct replication_status status;

	if (v == NULL || v->replication == NULL || !replication_applying(v->replication))
		return false;
	world_status(world, index, &status);
	return status.state != REPLICATION_STREAMING;
}

/* Split brain: what a node gives up, by the operator's word or by a policy, is in the store, or in files, before it
 * goes. */
static void look_at_resolve(struct world *world, unsigned index)
{
	struct world_node *n = &world->nodes[index];
	struct node_volume *v = world_volume(world, index);
	const struct split_record *split;

	if (v == NULL || v->resolve == NULL || sim_node_dead(n->env)) {
		free(n->giving_up);
		n->giving_up = NULL;
		n->kept = false;
		return;
	}
	if (n->giving_up == NULL && !n->kept) {
		n->giving_up_bytes = volume_size_bytes(v->volume);
		n->giving_up = malloc(n->giving_up_bytes);
		if (n->giving_up == NULL ||
		    !sim_file_peek(n->env, WORLD_BACKING, n->giving_up, n->giving_up_bytes, 0))
			abort();
		split = replication_get_split(v->replication);
		n->giving_up_near = split != NULL && (split->flags & SPLIT_NEAR);
		world->policies += !n->restoring;
	}
	if (n->kept || v->kept[0] == '\0')
		return;
	n->kept = true;
	if (strncmp(v->kept, "snapshot ", 9) == 0) {
		check_kept(world, index, v->kept + 9);
		world->kept++;
	} else {
		check_kept_files(world, index, v->kept);
		world->kept_files++;
	}
}

bool world_step(struct world *world)
{
	bool more = sim_step(world->sim);
	struct node_volume *leaning;

	resolve_leaning(world);
	world_look_at_size(world);
	world->steps++;
	check_lag(world);
	for (unsigned i = 0; i < NODES; i++)
		if (!world_died(world, i) && world->nodes[i].node != NULL &&
		    (world->options.strict || world->steps % 64 == 0))
			node_check(world->nodes[i].node);
	/* Where a log is applied, promise 2 is at stake at every step. */
	if (world_applies_log(world, 1 - world->primary) && world_chance(world, 3))
		world->look = true;
	/* From here on only its own disk counts again. */
	for (unsigned i = 0; i < NODES; i++)
		look_at_resolve(world, i);
	leaning = world_leans(world, world->primary) ? world_volume(world, world->primary) : NULL;
	if (world->leaning != NULL && world->leaning == world_volume(world, world->primary) &&
	    leaning == NULL) {
		world->fills++;
		world->look = true;
	}
	world->leaning = leaning;
	if (world->look && !world->spoilt) {
		world->look = false;
		check_primary(world);
		check_secondary(world);
		if (world->options.read_by_spec)
			check_maps_on_disk(world);
	}
	return more;
}

bool world_wait(struct world *world, bool (*condition)(struct world *world), uint64_t max_ns)
{
	uint64_t end = sim_now_ns(world->sim) + max_ns;

	while (!condition(world))
		if (sim_now_ns(world->sim) > end || !world_step(world))
			return false;
	return true;
}
