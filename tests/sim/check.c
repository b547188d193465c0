// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/check_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RESTORED "/restored.img"

/* ---- a copy of a node, alone in a world of its own ------------------------------------------------- */

struct alone {
	struct sim *sim;
	struct env *env;
	struct node *node;
	struct config config;
	struct config_volume volume;
};

/* The medium spoils the redo log's header, or its first record's. */
static void spoil_log(struct world *world, struct env *env)
{
	static const char path[] = WORLD_STATE "/staging";
	uint64_t size = 0;

	if (sim_file_size(env, path, &size) && size >= 192)
		sim_file_corrupt(env, path, world_random(world, 192),
				 (uint8_t)(1 + world_random(world, 255)));
}

static void alone_start_with(struct world *world, unsigned index, enum sim_crash mode, bool spoil,
			     const char *store, struct alone *alone)
{
	struct world_node *from = &world->nodes[index];
	struct sim_disk_options disk;
	struct node_volume *v;
	uint64_t limit;
	char why[256] = "";
	int error;

	memset(alone, 0, sizeof(*alone));
	alone->sim = sim_new(world_random(world, 0));
	alone->env = sim_node_copy(alone->sim, sim_node_name(from->env), from->env, mode);
	sim_disk_get(alone->env, &disk);
	disk.read_eio_ppm = disk.write_eio_ppm = disk.fsync_eio_ppm = 0;
	disk.capacity_bytes = 0;
	sim_disk_set(alone->env, &disk);
	if (spoil)
		spoil_log(world, alone->env);
	alone->config = from->config;
	alone->volume = from->volume;
	world_configure_size(world, alone->env, &alone->volume);
	alone->volume.peer = NULL;
	alone->volume.store = (char *)(uintptr_t)store;
	alone->config.volumes = &alone->volume;
	env_mkdir(alone->env, "/srv");
	error = node_start(alone->env, &alone->config, &alone->node, why, sizeof(why));
	if (error != 0)
		world_fail(world, "a copy of node %u does not start: %d, %s", index, error, why);
	v = node_find(alone->node, alone->volume.name);
	if (v->volume == NULL)
		world_fail(world, "a copy of node %u: its volume does not open: %s", index,
			   v->error);
	limit = sim_now_ns(alone->sim) + 60 * WORLD_SECOND;
	while (replication_applying(v->replication))
		if (!sim_step(alone->sim) || sim_now_ns(alone->sim) > limit) {
			sim_print_log(alone->sim, stderr);
			world_fail(world, "a copy of node %u does not end its recovery", index);
		}
}

static void alone_start(struct world *world, unsigned index, enum sim_crash mode, bool spoil,
			struct alone *alone)
{
	alone_start_with(world, index, mode, spoil, NULL, alone);
}

static void set_flag(void *context)
{
	*(bool *)context = true;
}

static void alone_end(struct world *world, struct alone *alone)
{
	bool stopped = false;

	node_stop(alone->node, set_flag, &stopped);
	if (!sim_run_until(alone->sim, &stopped, 600 * WORLD_SECOND)) {
		sim_print_log(alone->sim, stderr);
		world_fail(world, "a copy of a node does not stop");
	}
	sim_free(alone->sim);
}

/* ---- promise 2 ---------------------------------------------------------------------------------------- */

void check_primary(struct world *world)
{
	struct sim *sim;
	struct env *env;
	struct model_image image;
	char why[1024];

	if (world->nodes[world->primary].content_lost || world->nodes[world->primary].rolling_back)
		return;
	sim = sim_new(world_random(world, 0));
	env = sim_node_copy(sim, "copy", world->nodes[world->primary].env, check_power_cut(world));
	if (world_at_peer(env)) { /* the secondary is checked instead */
		sim_free(sim);
		return;
	}
	image = world_image(env);
	if (!model_check_local(world->model, &image, MODEL_NEVER, why, sizeof(why)))
		world_fail(world, "promise 1: the primary, powered off: %s", why);
	sim_free(sim);
}

/* No power cut makes an inconsistent volume of a good one, nor does it lose its log. */
static void check_stays_good(struct world *world, struct alone *alone)
{
	struct node_volume *v = world_volume(world, 1 - world->primary);
	struct volume_state state;

	if (v == NULL || v->volume == NULL || world->disk_failed || world->flipped)
		return;
	volume_get_state(v->volume, &state);
	if (state.disk == VOLUME_DISK_INCONSISTENT || state.disk == VOLUME_DISK_FAILED)
		return;
	sim_print_log(alone->sim, stderr);
	world_fail(world, "promise 2: the secondary is %s, powered off it is not usable any more",
		   volume_disk_state_name(state.disk));
}

void check_secondary(struct world *world)
{
	struct alone alone;
	struct node_volume *v;
	struct volume_state state;
	struct model_image image;
	bool spoil = world_applies_log(world, 1 - world->primary) && world_chance(world, 20);
	char why[1024];

	alone_start(world, 1 - world->primary, check_power_cut(world), spoil, &alone);
	v = node_find(alone.node, alone.volume.name);
	volume_get_state(v->volume, &state);
	world->image_checks++;
	if (state.disk == VOLUME_DISK_INCONSISTENT || state.disk == VOLUME_DISK_FAILED) {
		world->refusals++;
		if (!spoil)
			check_stays_good(world, &alone);
		/* One that was primary when it went down still is, by its own word. */
		if (state.role == VOLUME_SECONDARY && node_promote(v, true, why, sizeof(why)) == 0)
			world_fail(world, "promise 2: a secondary that is %s was promoted",
				   volume_disk_state_name(state.disk));
	} else {
		image = world_image(alone.env);
		if (!model_check_peer(world->model, &image, why, sizeof(why))) {
			sim_print_log(alone.sim, stderr);
			world_fail(world, "promise 2: the secondary (%s): %s",
				   volume_disk_state_name(state.disk), why);
		}
		if (!id128_is_zero(&state.generations.current) &&
		    node_promote(v, true, why, sizeof(why)) != 0)
			world_fail(world, "promise 2: a usable secondary is not promoted: %s", why);
	}
	alone_end(world, &alone);
}

/* ---- promise 3 ------------------------------------------------------------------------------------------ */

/* False: they are equal so far. */
static bool files_differ(const struct inode *a, const struct inode *b, uint64_t size_bytes,
			 uint64_t *offset)
{
	for (*offset = 0; *offset < size_bytes; *offset += 4096)
		if (!check_blocks_equal(a, b, *offset))
			return true;
	return false;
}

static void print_block(struct world *world, uint64_t at, struct model_image other)
{
	struct model_image image;

	for (uint64_t sector = at; sector < at + 4096; sector += MODEL_SECTOR) {
		image = world_image(world->nodes[world->primary].env);
		fprintf(stderr, "primary: ");
		model_print(world->model, sector, &image, stderr);
		fprintf(stderr, "other: ");
		model_print(world->model, sector, &other, stderr);
	}
}

static void check_peer_map(struct world *world)
{
	struct volume *own = world_volume(world, world->primary)->volume, *theirs;
	const struct inode *a_disk, *b_disk;
	struct volume_state a, b;
	struct alone alone;
	bool known;

	alone_start(world, 1 - world->primary, check_power_cut(world), false, &alone);
	theirs = node_find(alone.node, alone.volume.name)->volume;
	volume_get_state(own, &a);
	volume_get_state(theirs, &b);
	/* Otherwise all of it will be sent; also where the disk is gone, and somebody took over. */
	known = b.disk != VOLUME_DISK_INCONSISTENT && b.disk != VOLUME_DISK_FAILED &&
		b.disk != VOLUME_DISK_DISKLESS && !id128_is_zero(&b.generations.current) &&
		(id128_equal(&b.generations.current, &a.generations.current) ||
		 id128_equal(&b.generations.current, &a.generations.base));
	a_disk = sim_file_find(world->nodes[world->primary].env, WORLD_BACKING);
	b_disk = sim_file_find(alone.env, WORLD_BACKING);
	for (uint64_t at = 0; known && at < world->size_bytes; at += 4096)
		if (!check_blocks_equal(a_disk, at < volume_size_bytes(theirs) ? b_disk : NULL,
					at) &&
		    !check_marked(own, VOLUME_PEER, at) && !check_marked(theirs, VOLUME_PEER, at)) {
			sim_print_log(alone.sim, stderr);
			print_block(world, at, world_image(alone.env));
			world_fail(world,
				   "promise 3: block at %llu differs on the peer and is not dirty",
				   (unsigned long long)at);
		}
	alone_end(world, &alone);
}

/* ---- restoring ------------------------------------------------------------------------------------------- */

struct restore {
	bool done;
	int error;
	char why[256];
	struct snapshot_info info;
};

static void restore_progress(void *context, const struct snapshot_progress *progress)
{
	(void)context;
	(void)progress;
}

static void restore_done(void *context, const struct snapshot_result *result)
{
	struct restore *restore = context;

	restore->done = true;
	restore->error = result->error;
	memcpy(restore->why, result->why, sizeof(restore->why));
	restore->info = result->info;
}

/* Flips bits of an object, or takes one away. */
static void damage_store(struct world *world, struct sim *sim)
{
	unsigned count = 0;
	const char *name;
	size_t size;

	while (store_sim_object(sim, WORLD_STORE, count, NULL, NULL) != NULL)
		count++;
	if (count == 0)
		return;
	name = store_sim_object(sim, WORLD_STORE, (unsigned)world_random(world, count), NULL,
				&size);
	if (world_chance(world, 10))
		store_sim_remove(sim, WORLD_STORE, name);
	else if (size > 0)
		store_sim_corrupt(sim, WORLD_STORE, name, world_random(world, size),
				  (uint8_t)(1 + world_random(world, 255)));
}

/* The store as somebody opens it who has the same key file. */
static struct store *reader_store(struct world *world, struct env *env)
{
	const struct secret_source source = {.key_file = world->key_file};
	struct store *store;
	char why[256];

	if (crypt_store_open(env, WORLD_STORE, &source, &store, why, sizeof(why)) != 0)
		world_fail(world, "store: %s", why);
	return store;
}

/* Restores from a copy of the store to RESTORED on the new world's only node. */
static struct sim *restore_snapshot(struct world *world, const struct id128 *uuid,
				    const struct id128 *id, bool damage, struct env **env,
				    struct restore *restore)
{
	struct sim *sim = sim_new(world_random(world, 0));
	struct store *store;
	struct snapshot_repo *repo;
	struct snapshot_target *target;
	int error;

	memset(restore, 0, sizeof(*restore));
	store_sim_copy(sim, world->sim, WORLD_STORE);
	if (damage)
		damage_store(world, sim);
	*env = sim_node(sim, "reader");
	store = reader_store(world, *env);
	repo = snapshot_repo_new(store, uuid);
	error = snapshot_target_file(*env, RESTORED, false, &target, restore->why,
				     sizeof(restore->why));
	if (error != 0)
		world_fail(world, "restore: target: %d, %s", error, restore->why);
	snapshot_restore(repo, id, target, restore_progress, restore_done, restore);
	if (!sim_run_until(sim, &restore->done, 3600 * WORLD_SECOND)) {
		sim_print_log(sim, stderr);
		world_fail(world, "restore: does not come to an end");
	}
	snapshot_repo_free(repo);
	store_close(store);
	return sim;
}

/* With a damaged store a restore says so, or was not concerned. */
static void check_damaged(struct world *world, const struct id128 *uuid, const struct id128 *id,
			  struct env *sound)
{
	struct restore restore;
	struct env *env;
	struct sim *sim = restore_snapshot(world, uuid, id, true, &env, &restore);
	uint64_t at;

	if (restore.error == 0 &&
	    files_differ(sim_file_find(sound, RESTORED), sim_file_find(env, RESTORED),
			 world->size_bytes, &at))
		world_fail(world,
			   "promise 4: restored something else from a damaged store, at %llu",
			   (unsigned long long)at);
	sim_free(sim);
}

void check_snapshot(struct world *world, const struct id128 *id, uint32_t from, uint32_t to)
{
	struct volume_state state;
	struct restore restore;
	struct env *env;
	struct sim *sim;
	uint64_t size = 0, other = world_disk_size(world->nodes[1 - world->primary].env);
	char why[1024];

	world_volume_state(world, world->primary, &state);
	sim = restore_snapshot(world, &state.uuid, id, false, &env, &restore);
	world->point_checks++;
	/* What the other node took since, or is about to have taken, may be newer, and by its rules all that is kept. */
	if (restore.error == -ENOENT && world->secondary_maybe > 0) {
		sim_free(sim);
		return;
	}
	if (restore.error != 0)
		world_fail(world, "promise 4: snapshot cannot be restored: %d, %s", restore.error,
			   restore.why);
	if (!sim_file_size(env, RESTORED, &size) || size < world->snapshot_size_bytes ||
	    size > (other > world->size_bytes ? other : world->size_bytes))
		world_fail(world, "promise 4: the restored size is %llu", (unsigned long long)size);

	struct model_image image = world_image_of(env, RESTORED);

	if (!model_check_point(world->model, &image, from, to, why, sizeof(why)))
		world_fail(world, "promise 4: %s", why);
	if (world->key_file == NULL && restore.info.size_bytes > 0)
		check_snapshot_by_spec(world, state.uuid.bytes, restore.info.id.bytes, from, to);
	if (world_chance(world, 30))
		check_damaged(world, &state.uuid, id, env);
	sim_free(sim);
}

void check_rolled_back(struct world *world)
{
	uint64_t at;
	struct volume_state state;
	struct restore restore;
	struct env *env;
	struct sim *sim;

	world_volume_state(world, world->primary, &state);
	sim = restore_snapshot(world, &state.uuid, NULL, false, &env, &restore);
	if (restore.error != 0)
		world_fail(world, "promise 6: restored in place, but not once more: %s",
			   restore.why);
	if (restore.info.given_up)
		world_fail(world, "promise 5: restored what was given up, without being asked to");
	if (files_differ(sim_file_find(world->nodes[world->primary].env, WORLD_BACKING),
			 sim_file_find(env, RESTORED), world->size_bytes, &at))
		world_fail(world, "promise 6: restored in place, but not that: at %llu",
			   (unsigned long long)at);
	sim_free(sim);
}

void check_kept(struct world *world, unsigned index, const char *text)
{
	struct world_node *n = &world->nodes[index];
	const struct inode *restored;
	struct volume_state state;
	struct restore restore;
	struct id128 id;
	struct env *env;
	struct sim *sim;

	volume_get_state(world_volume(world, index)->volume, &state);
	if (!id128_parse(text, strlen(text), &id))
		world_fail(world, "promise 5: kept as '%s'", text);
	sim = restore_snapshot(world, &state.uuid, &id, false, &env, &restore);
	if (restore.error != 0)
		world_fail(world, "promise 5: kept, and cannot be restored: %d, %s", restore.error,
			   restore.why);
	restored = sim_file_find(env, RESTORED);
	for (uint64_t at = 0; at < n->giving_up_bytes; at += 4096)
		if (!check_pages_equal(n->giving_up + at, sim_file_page(restored, at / 4096), 4096))
			world_fail(world,
				   "promise 5: what node %u gives up is kept, but not at %llu",
				   index, (unsigned long long)at);
	sim_free(sim);
}

/* own: a volume on env's disk. */
static void check_store_map_of(struct world *world, struct volume *own, struct env *disk)
{
	const struct inode *backing, *restored;
	struct volume_state state;
	struct restore restore;
	struct env *env;
	struct sim *sim;

	volume_get_state(own, &state);
	if (id128_is_zero(&state.snapshot) || state.disk == VOLUME_DISK_FAILED)
		return;
	sim = restore_snapshot(world, &state.uuid, &state.snapshot, false, &env, &restore);
	if (restore.error == -ENOENT) {
		/* The other node wrote newer ones meanwhile and deleted it: everything counts. */
		sim_free(sim);
		return;
	}
	if (restore.error != 0)
		world_fail(world, "promise 3: the newest snapshot cannot be restored: %d, %s",
			   restore.error, restore.why);
	backing = sim_file_find(disk, WORLD_BACKING);
	restored = sim_file_find(env, RESTORED);
	for (uint64_t at = 0; at < volume_size_bytes(own); at += 4096)
		if (!check_blocks_equal(backing, restored, at) &&
		    !check_marked(own, VOLUME_STORE, at)) {
			print_block(world, at, world_image_of(env, RESTORED));
			world_fail(
				world,
				"promise 3: block at %llu differs from the newest snapshot and is "
				"not dirty for the store",
				(unsigned long long)at);
		}
	sim_free(sim);
}

static void check_store_map(struct world *world)
{
	check_store_map_of(world, world_volume(world, world->primary)->volume,
			   world->nodes[world->primary].env);
}

/* The secondary's, as a crash leaves it: what is applied there is marked, too. */
static void check_secondary_store_map(struct world *world)
{
	struct alone alone;

	alone_start_with(world, 1 - world->primary, check_power_cut(world), false, WORLD_STORE,
			 &alone);
	check_store_map_of(world, node_find(alone.node, alone.volume.name)->volume, alone.env);
	alone_end(world, &alone);
}

void check_maps(struct world *world)
{
	check_peer_map(world);
	if (world->options.no_store)
		return;
	if (world_chance(world, 50))
		check_store_map(world);
	if (world_chance(world, 50))
		check_secondary_store_map(world);
}

/* ---- the end ------------------------------------------------------------------------------------------------ */

struct listing {
	struct id128 ids[256];
	unsigned count;
	bool done;
	int error;
	char damaged[256];
};

static void list_each(void *context, const struct snapshot_info *info)
{
	struct listing *listing = context;

	if (listing->count < 256)
		listing->ids[listing->count++] = info->id;
}

static void list_damaged(void *context, const char *object, const char *why)
{
	struct listing *listing = context;

	snprintf(listing->damaged, sizeof(listing->damaged), "%.120s: %.120s", object, why);
}

static void list_done(void *context, const struct snapshot_result *result)
{
	struct listing *listing = context;

	listing->done = true;
	listing->error = result->error;
}

void check_all_snapshots(struct world *world, const struct id128 *but)
{
	struct listing listing = {0};
	struct volume_state state;
	struct sim *sim = sim_new(world_random(world, 0));
	struct env *env = sim_node(sim, "reader");
	struct snapshot_repo *repo;
	struct store *store;

	world_volume_state(world, world->primary, &state);
	store_sim_copy(sim, world->sim, WORLD_STORE);
	store = reader_store(world, env);
	repo = snapshot_repo_new(store, &state.uuid);
	snapshot_list(repo, list_each, list_damaged, list_done, &listing);
	if (!sim_run_until(sim, &listing.done, 3600 * WORLD_SECOND) || listing.error != 0)
		world_fail(world, "the store cannot be listed: %d", listing.error);
	if (listing.damaged[0] != '\0')
		world_fail(world, "promise 4: damaged snapshot: %s", listing.damaged);
	snapshot_repo_free(repo);
	store_close(store);
	sim_free(sim);
	for (unsigned i = 0; i < listing.count; i++) {
		struct restore restore;

		if (id128_equal(&listing.ids[i], but))
			continue;
		sim = restore_snapshot(world, &state.uuid, &listing.ids[i], false, &env, &restore);
		if (restore.error != 0)
			world_fail(world, "promise 4: a listed snapshot cannot be restored: %d, %s",
				   restore.error, restore.why);
		sim_free(sim);
	}
}

bool check_disks_differ(struct world *world, uint64_t *offset)
{
	return files_differ(sim_file_find(world->nodes[A].env, WORLD_BACKING),
			    sim_file_find(world->nodes[B].env, WORLD_BACKING), world->size_bytes,
			    offset);
}

void check_equal(struct world *world)
{
	uint64_t offset;

	if (check_disks_differ(world, &offset))
		world_fail(world, "in sync, but the disks differ at %llu",
			   (unsigned long long)offset);
}
