// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/world.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "protocol/metadata.h"
#include "tests/sim/check.h"

#define VOLUME_NAME "v"

uint64_t world_random(struct world *world, uint64_t limit)
{
	uint64_t z = world->random_state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	z ^= z >> 31;
	return limit > 0 ? z % limit : z;
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

/* ---- making ------------------------------------------------------------------------------------- */

static void choose_options(struct world *world)
{
	struct world_options *o = &world->options;
	static const unsigned block_min[] = {1, 512, 4096};

	o->theme = (enum world_theme)world_random(world, world_chance(world, 40) ? 1 : THEMES);
	o->size_bytes = (1 + world_random(world, world_chance(world, 20) ? 8 : 3)) << 20;
	if (world_chance(world, 30)) /* an end that is not a multiple of a chunk or region */
		o->size_bytes -= 4096 * world_random(world, 40);
	o->protocol = "ABCCC"[world_random(world, 5)];
	o->block_min_bytes = block_min[world_random(world, 3)];
	o->partial_sectors =
		o->theme != THEME_DISK && o->block_min_bytes == 1 && world_chance(world, 60);
	o->queue_depth = 1 + (unsigned)world_random(world, world_chance(world, 50) ? 4 : 32);
	o->write_max_bytes = 4096u << world_random(world, 6);
	o->staging_max_bytes = world_chance(world, 50) ? 0 : (64 + world_random(world, 4096)) << 10;
	o->preserve_max_bytes =
		world_chance(world, 60) ? 0 : (128 + world_random(world, 1024)) << 10;
	o->send_queue_max_bytes =
		world_chance(world, 50) ? 0 : (2048 + world_random(world, 4096)) << 10;
	/* The volumes are small: catch-up over blocks as they are would never be seen. */
	o->final_cut_max_bytes = world_chance(world, 30) ? 0 : (4 + world_random(world, 512)) << 10;
	o->keep_last = world_chance(world, 50) ? 0 : 1 + (unsigned)world_random(world, 4);
	if (world_chance(world, 50)) {
		o->max_lag_bytes = world_chance(world, 80) ? 4096u << world_random(world, 7) : 0;
		o->max_lag_ns = world_chance(world, 30) ? WORLD_SECOND : 0;
		o->max_lag_leave = world_chance(world, 60);
	}
	o->start_wait_ns = world_chance(world, 50) ? 0 : world_random(world, 4 * WORLD_SECOND);
	o->latency_percent = world_chance(world, 50) ? 0 : 110 + (unsigned)world_random(world, 200);
	o->strict = world_chance(world, 2);
	o->suspend = world_chance(world, 20);
	o->detach = o->theme == THEME_DISK || (o->theme == THEME_NONE && world_chance(world, 40));
	o->encrypted = world->seed % 3 == 0;
	if (world->seed % 5 < 2) {
		o->after_sb_0pri = (unsigned)(world->seed / 5 % AFTER_SB_0PRIS);
		o->after_sb_1pri = (unsigned)(world->seed / 15 % AFTER_SB_1PRIS);
	}
	o->keep = world->seed % 2;
	o->keep_within_ns = world->seed % 4 == 1 ? 2 * WORLD_SECOND : 0;
}

/* A file without a name, with the same content for all seeds. */
static void make_key(struct world *world)
{
	static const uint8_t key[32] = "a key for all simulated worlds.";

	world->key_fd = -1;
	if (!world->options.encrypted)
		return;
	world->key_fd = memfd_create("key", 0);
	if (world->key_fd < 0 || write(world->key_fd, key, sizeof(key)) != (ssize_t)sizeof(key))
		abort();
	snprintf(world->key_path, sizeof(world->key_path), "/proc/self/fd/%d", world->key_fd);
	world->key_file = world->key_path;
}

static void make_config(struct world *world, unsigned index)
{
	static const char *const names[] = {"a", "b"}, *const addresses[] = {"a:7000", "b:7000"};
	struct world_node *n = &world->nodes[index];
	const struct world_options *o = &world->options;

	n->world = world;
	n->index = index;
	n->env = sim_node(world->sim, names[index]);
	n->config = (struct config){
		.path = (char *)"simulated",
		.node = {.name = (char *)(uintptr_t)names[index],
			 .state_dir = (char *)"/var/offsite",
			 .peer_listen = (char *)(uintptr_t)addresses[index],
			 .peer_plaintext = true,
			 .log_level = ENV_LOG_INFO},
		.volumes = &n->volume,
		.volume_count = 1,
	};
	n->volume = (struct config_volume){
		.name = (char *)VOLUME_NAME,
		.backing = (char *)WORLD_BACKING,
		.size_bytes = o->size_bytes,
		.primary = index == A,
		.peer = (char *)(uintptr_t)addresses[1 - index],
		.protocol = o->protocol,
		.staging_max_bytes = o->staging_max_bytes,
		.preserve_max_bytes = o->preserve_max_bytes,
		.final_cut_max_bytes = o->final_cut_max_bytes,
		.send_queue_max_bytes = o->send_queue_max_bytes,
		.suspend_on_loss = o->suspend,
		.after_sb_0pri = o->after_sb_0pri,
		.after_sb_1pri = o->after_sb_1pri,
		.max_lag_bytes = o->max_lag_bytes,
		.latency_percent = o->latency_percent,
		.max_lag_ns = o->max_lag_ns,
		.max_lag_action = o->max_lag_leave ? PACE_CATCH_UP : PACE_SLOW,
		.start_wait_ns = o->start_wait_ns,
		.block_min_bytes = o->block_min_bytes,
		.store = (char *)WORLD_STORE,
		.store_key_file = (char *)(uintptr_t)world->key_file,
		.keep_last = o->keep_last,
		.keep_within_ns = o->keep_within_ns,
		.detach_on_error = o->detach,
		.compression_level = 1,
	};
}

static void new_pool(struct world *world)
{
	static const unsigned counts[3] = {WORLD_CLIENTS_MAX, WORLD_CLIENTS_MAX, WORLD_CLIENTS_MAX};

	world->pool = buf_pool_new(counts);
	if (world->pool == NULL)
		abort();
}

struct world *world_new(uint64_t seed, bool trace)
{
	struct world *world = calloc(1, sizeof(*world));

	if (world == NULL)
		abort();
	world->seed = seed;
	world->random_state = seed ^ UINT64_C(0x5851f42d4c957f2d);
	world->sim = sim_new(seed);
	if (trace)
		sim_trace(world->sim, stderr);
	choose_options(world);
	make_key(world);
	world->size_bytes = world->options.size_bytes;
	world->model = model_new(world->size_bytes);
	for (unsigned i = 0; i < NODES; i++)
		make_config(world, i);
	new_pool(world);
	sim_note(world->sim,
		 "seed %llu: %llu bytes, protocol %c, block %u%s, depth %u, staging %llu, "
		 "preserve %llu, final %llu, queue %llu, lag %llu %s, keep %u%s, theme %u",
		 (unsigned long long)seed, (unsigned long long)world->options.size_bytes,
		 world->options.protocol, world->options.block_min_bytes,
		 world->options.partial_sectors ? " partial" : "", world->options.queue_depth,
		 (unsigned long long)world->options.staging_max_bytes,
		 (unsigned long long)world->options.preserve_max_bytes,
		 (unsigned long long)world->options.final_cut_max_bytes,
		 (unsigned long long)world->options.send_queue_max_bytes,
		 (unsigned long long)world->options.max_lag_bytes,
		 world->options.max_lag_leave ? "leave" : "slow", world->options.keep_last,
		 world->options.encrypted ? ", encrypted" : "", world->options.theme);
	return world;
}

void world_end(struct world *world)
{
	if (world->key_fd >= 0)
		close(world->key_fd);
}

/* ---- looking ------------------------------------------------------------------------------------- */

static void look_at_size(struct world *world);

struct node_volume *world_volume(struct world *world, unsigned index)
{
	struct node *node = world->nodes[index].node;

	return node != NULL ? node_find(node, VOLUME_NAME) : NULL;
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

static const uint8_t *image_page(void *context, uint64_t index)
{
	return sim_file_page(context, WORLD_BACKING, index);
}

static const uint32_t *image_checksums(void *context, uint64_t index)
{
	return sim_file_checksums(context, WORLD_BACKING, index);
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

struct model_image world_image(struct env *env)
{
	return (struct model_image){
		.page = image_page,
		.checksums = image_checksums,
		.context = env,
		.size_bytes = world_disk_size(env),
	};
}

/* ---- nodes ------------------------------------------------------------------------------------------ */

/* Its process is gone: nothing of it is called or freed any more. */
/* The clients lose their device: what is under way never completes. */
static void drop_clients(struct world *world)
{
	world->incarnation++;
	world->block = NULL;
	world->snapshot_running = false;
	for (unsigned i = 0; i < WORLD_CLIENTS_MAX; i++)
		world->clients[i].busy = false;
	world->busy = 0;
	new_pool(world); /* the old one's buffers are with the dead */
}

static void forget(struct world *world, unsigned index)
{
	struct world_node *n = &world->nodes[index];

	if (index == world->primary || index == world->resize_index)
		world->resizing = false;
	n->node = NULL;
	n->incarnation++;
	n->disconnected = false;
	n->disk_failed = false;
	n->restoring = false;
	world->crashes++;
	if (index == world->primary)
		drop_clients(world);
}

static bool died(struct world *world, unsigned index)
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
	if (world->nodes[index].node == NULL || died(world, index))
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
	look_at_size(world);
	if (!model_resolve(world->model, &image, false, why, sizeof(why)))
		world_fail(world, "promise 1: %s", why);
	check_maps(world);
	world_volume_state(world, world->primary, &state);
	if (state.role != VOLUME_PRIMARY && !world_wait(world, recovered, 60 * WORLD_SECOND))
		world_fail(world, "the recovery at start does not end");
	if (n->node != NULL &&
	    state.role != VOLUME_PRIMARY && /* died in the middle of a change of roles */
	    node_promote(world_volume(world, world->primary), true, why, sizeof(why)) != 0 &&
	    !died(world, world->primary) && !n->disk_errors)
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
	died(world, index);
}

/* The operator writes into the config what the volume has; a new disk gets what the clients know. */
void world_configure_size(const struct world *world, const struct env *env,
			  struct config_volume *config)
{
	uint64_t size = world_disk_size(env);

	config->size_bytes = size > 0 ? size : world->size_bytes;
}

void world_start(struct world *world, unsigned index)
{
	struct world_node *n = &world->nodes[index];
	char why[256] = "";
	struct sim_disk_options disk;
	struct node *node = NULL;
	int error;

	if (n->node != NULL)
		return;
	if (sim_node_dead(n->env))
		n->env = sim_restart(world->sim, n->env);
	sim_disk_get(n->env, &disk);
	n->disk_errors = disk.write_eio_ppm > 0;
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
	    !died(world, world->primary) && !world->nodes[world->primary].disk_errors)
		world_fail(world, "suspended requests cannot be resumed: %s", why);
	died(world, world->primary);
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
		died(world, 1 - index);
		if (died(world, index))
			return;
	}
	if (died(world, index))
		return;
	if (abandoned) { /* a long job still has it: the process ends */
		world_crash(world, index, SIM_CRASH_KILL);
		return;
	}
	env_free(n->env);
	forget(world, index);
}

/* Streaming in protocol A, nothing new is sent where max-lag is reached: one write may pass it. */
static void check_lag(struct world *world)
{
	uint64_t max = world->options.max_lag_bytes, before = world->lag_bytes;
	struct replication_status status;

	if (max == 0)
		return;
	world_status(world, world->primary, &status);
	world->lag_bytes = status.source ? status.unacked_bytes : 0;
	max += world->options.write_max_bytes + 8192;
	if (status.state == REPLICATION_STREAMING && status.source &&
	    status.protocol == REPLICATION_A && world->lag_bytes > max && world->lag_bytes > before)
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

/* Split brain: what a node gives up, by the operator's word or by a policy, is in the store before it goes. */
static void look_at_resolve(struct world *world, unsigned index)
{
	struct world_node *n = &world->nodes[index];
	struct node_volume *v = world_volume(world, index);

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
		world->policies += !n->restoring;
		world->newest_given_up = true;
	}
	if (!n->kept && strncmp(v->kept, "snapshot ", 9) == 0) {
		check_kept(world, index, v->kept + 9);
		n->kept = true;
		world->kept++;
	}
}

bool world_step(struct world *world)
{
	bool more = sim_step(world->sim);
	struct node_volume *leaning;

	resolve_leaning(world);
	look_at_size(world);
	world->steps++;
	check_lag(world);
	for (unsigned i = 0; i < NODES; i++)
		if (!died(world, i) && world->nodes[i].node != NULL &&
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

/* ---- clients -------------------------------------------------------------------------------------------- */

bool world_idle(struct world *world)
{
	return world->busy == 0;
}

static bool in_sync(struct world *world, uint64_t *connects)
{
	struct replication_status status;

	world_status(world, world->primary, &status);
	*connects = status.connects + status.disconnects + status.left_stream;
	return status.state == REPLICATION_STREAMING && status.source &&
	       status.protocol == REPLICATION_C;
}

/* What was written is on both disks: the peer said so before it was lost. */
static bool on_both(struct world *world, const struct block_request *r)
{
	uint8_t *own = malloc(r->length_bytes), *other = malloc(r->length_bytes);
	bool same = own != NULL && other != NULL &&
		    sim_file_peek(world->nodes[world->primary].env, WORLD_BACKING, own,
				  r->length_bytes, r->offset_bytes) &&
		    sim_file_peek(world->nodes[1 - world->primary].env, WORLD_BACKING, other,
				  r->length_bytes, r->offset_bytes) &&
		    memcmp(own, other, r->length_bytes) == 0;

	free(own);
	free(other);
	return same;
}

/* on-peer-loss = suspend: once the peer followed, no write completes without it. */
static void check_not_alone(struct client *client)
{
	struct world *world = client->world;
	struct replication_status status;

	if (!world->must_wait || client->request.op == BLOCK_READ ||
	    client->request.op == BLOCK_FLUSH || world->options.protocol != 'C')
		return;
	world_status(world, world->primary, &status);
	if (status.state != REPLICATION_STREAMING && !on_both(world, &client->request))
		world_fail(world, "a write completed while the peer did not follow (%s)",
			   replication_state_name(status.state));
}

static void check_read_done(struct client *client)
{
	struct world *world = client->world;
	struct block_request *r = &client->request;
	char why[1024];

	if (client->whole &&
	    !model_check_read(world->model, r->buf->data, r->offset_bytes, r->length_bytes,
			      client->submitted, model_tick(world->model), why, sizeof(why)))
		world_fail(world, "read [%llu+%llu]: %s", (unsigned long long)r->offset_bytes,
			   (unsigned long long)r->length_bytes, why);
}

static void client_end(struct client *client)
{
	buf_put(client->request.buf);
	client->request.buf = NULL;
	client->busy = false;
	client->world->busy--;
}

static void request_done(struct block_request *request, int error)
{
	struct client *client = (struct client *)request;
	struct world *world = client->world;
	uint64_t connects;
	bool on_peer, leans = world_leans(world, world->primary);

	if (client->incarnation != world->incarnation ||
	    sim_node_dead(world->nodes[world->primary].env))
		return;
	if (!client->busy)
		world_fail(world, "a request completed twice");
	if (error != 0 && !world->nodes[world->primary].disk_errors)
		world_fail(world, "request %d [%llu+%llu] failed: %d", request->op,
			   (unsigned long long)request->offset_bytes,
			   (unsigned long long)request->length_bytes, error);
	if (error != 0) {
		world->nodes[world->primary].disk_failed = true;
		client_end(client);
		return;
	}
	check_not_alone(client);
	on_peer = leans ||
		  (in_sync(world, &connects) && client->streaming && connects == client->connects);
	switch (request->op) {
	case BLOCK_READ:
		check_read_done(client);
		break;
	case BLOCK_WRITE:
	case BLOCK_TRIM:
	case BLOCK_ZERO:
		model_complete(world->model, client->write,
			       (request->flags & BLOCK_FUA) != 0 || leans, on_peer);
		break;
	case BLOCK_FLUSH:
		model_flushed(world->model, client->submitted, on_peer);
		break;
	default:
		break;
	}
	if ((request->op == BLOCK_FLUSH || (request->flags & BLOCK_FUA)) && world_chance(world, 10))
		world->look = true;
	client_end(client);
}

/* Opens the export when the volume is fit for it. */
static bool open_block(struct world *world)
{
	struct world_node *n = &world->nodes[world->primary];
	struct volume_state state;
	struct block *block;
	char why[256] = "";

	if (world->block != NULL)
		return true;
	if (n->node == NULL || n->content_lost || n->restoring || n->rolling_back || n->unresolved)
		return false;
	world_volume_state(world, world->primary, &state);
	if (n->disk_errors && state.disk == VOLUME_DISK_FAILED)
		n->disk_failed = true;
	if (n->disk_failed)
		return false;
	if (state.role != VOLUME_PRIMARY ||
	    (state.disk != VOLUME_DISK_UPTODATE && !world_leans(world, world->primary)))
		world_fail(world, "the primary is %s and %s", volume_role_name(state.role),
			   volume_disk_state_name(state.disk));
	block = node_find_block(n->node, VOLUME_NAME);
	if (block == NULL || block->ops->open(block, why, sizeof(why)) != 0)
		world_fail(world, "the primary's export does not open: %s", why);
	world->block = block;
	return true;
}

static struct client *client_new(struct world *world, enum block_op op)
{
	struct client *client = NULL;

	if (world->busy >= world->options.queue_depth || !open_block(world))
		return NULL;
	for (unsigned i = 0; client == NULL && i < WORLD_CLIENTS_MAX; i++)
		if (!world->clients[i].busy)
			client = &world->clients[i];
	if (client == NULL)
		return NULL;
	memset(client, 0, sizeof(*client));
	client->world = world;
	client->busy = true;
	client->incarnation = world->incarnation;
	client->streaming = in_sync(world, &client->connects);
	if (world->options.suspend && client->streaming)
		world->must_wait = true;
	client->request.op = op;
	client->request.done = request_done;
	world->busy++;
	return client;
}

static void submit(struct world *world, struct client *client)
{
	world->requests++;
	world->block->ops->submit(world->block, &client->request);
	for (unsigned i = 0; i < NODES; i++)
		died(world, i);
}

void world_flush(struct world *world)
{
	struct client *client = client_new(world, BLOCK_FLUSH);

	if (client == NULL)
		return;
	client->submitted = model_tick(world->model);
	submit(world, client);
}

static void choose_range(struct world *world, struct block_request *r, uint64_t align,
			 uint64_t length_max)
{
	uint64_t size = world->size_bytes;
	uint64_t length = 1 + world_random(world, length_max);

	/* Half of it in a few places, so that requests meet. */
	if (world_chance(world, 50))
		r->offset_bytes =
			(world_random(world, 8) * 131072 + world_random(world, 16384)) % size;
	else
		r->offset_bytes = world_random(world, size);
	r->offset_bytes -= r->offset_bytes % align;
	length += align - 1;
	length -= length % align;
	if (length > size - r->offset_bytes)
		length = size - r->offset_bytes;
	r->length_bytes = length;
}

/* Two writes that share a sector without sharing a byte may take effect in any order: not told
 * apart by the model, so not done at the same time. */
static bool shares_sector(const struct world *world, const struct client *client)
{
	const struct block_request *r = &client->request;
	uint64_t start = r->offset_bytes / MODEL_SECTOR;
	uint64_t end = (r->offset_bytes + r->length_bytes - 1) / MODEL_SECTOR;

	for (unsigned i = 0; i < WORLD_CLIENTS_MAX; i++) {
		const struct client *other = &world->clients[i];
		const struct block_request *o = &other->request;

		if (!other->busy || other == client || o->length_bytes == 0 || o->op == BLOCK_READ)
			continue;
		if (o->offset_bytes / MODEL_SECTOR <= end &&
		    (o->offset_bytes + o->length_bytes - 1) / MODEL_SECTOR >= start)
			return true;
	}
	return false;
}

static void submit_write(struct world *world)
{
	uint64_t align = world->options.block_min_bytes > 512 ? 4096 : 512;
	struct client *client = client_new(world, BLOCK_WRITE);
	struct block_request *r;

	if (client == NULL)
		return;
	r = &client->request;
	if (world->options.partial_sectors && world_chance(world, 50))
		align = 1;
	choose_range(world, r, align, world->options.write_max_bytes);
	if (world->options.partial_sectors && shares_sector(world, client)) {
		client_end(client);
		return;
	}
	if (world_chance(world, 10))
		r->flags = BLOCK_FUA;
	r->buf = buf_alloc(world->pool, (uint32_t)r->length_bytes);
	if (r->buf == NULL) {
		client_end(client);
		return;
	}
	client->write = model_submit(world->model, r->offset_bytes, r->length_bytes, r->buf->data);
	submit(world, client);
}

static void submit_zero(struct world *world)
{
	struct client *client;
	struct block_request *r;
	struct sim_disk_options disk;
	uint64_t align = 4096;
	bool trim;

	/* A TRIM may leave the content where the disk cannot punch: not told apart. */
	sim_disk_get(world->nodes[world->primary].env, &disk);
	trim = !disk.zero_unsupported && world_chance(world, 50);
	client = client_new(world, trim ? BLOCK_TRIM : BLOCK_ZERO);
	if (client == NULL)
		return;
	r = &client->request;
	if (r->op == BLOCK_ZERO && world->options.block_min_bytes <= 512)
		align = 512;
	choose_range(world, r, align, world_chance(world, 20) ? 1 << 20 : 65536);
	if (world->options.partial_sectors && shares_sector(world, client)) {
		client_end(client);
		return;
	}
	if (world_chance(world, 10))
		r->flags |= BLOCK_FUA;
	if (r->op == BLOCK_ZERO && world_chance(world, 30))
		r->flags |= BLOCK_NO_HOLE;
	client->write = model_submit(world->model, r->offset_bytes, r->length_bytes, NULL);
	submit(world, client);
}

static void submit_read(struct world *world)
{
	uint64_t align = world->options.block_min_bytes > 512 ? 4096 : 512;
	struct client *client = client_new(world, BLOCK_READ);
	struct block_request *r;

	if (client == NULL)
		return;
	r = &client->request;
	client->whole = true;
	if (world->options.block_min_bytes == 1 && world_chance(world, 20)) {
		align = 1;
		client->whole = false;
	}
	choose_range(world, r, align, world->options.write_max_bytes);
	r->buf = buf_alloc(world->pool, (uint32_t)r->length_bytes);
	if (r->buf == NULL) {
		client_end(client);
		return;
	}
	client->submitted = model_tick(world->model);
	submit(world, client);
}

void world_submit(struct world *world)
{
	unsigned what = (unsigned)world_random(world, 100);

	if (what < 55)
		submit_write(world);
	else if (what < 65)
		submit_zero(world);
	else if (what < 85)
		submit_read(world);
	else
		world_flush(world);
}

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
	world->newest_given_up = false;
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
	died(world, world->primary);
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
	died(world, index);
}

/* The content of node index becomes what the clients go on with; the other's disk does not count. */
static void take_over(struct world *world, unsigned index)
{
	struct model_image image = world_image(world->nodes[index].env);
	char why[1024];

	if (!model_resolve(world->model, &image, true, why, sizeof(why)))
		world_fail(world, "promise 1, going on with the peer's content: %s", why);
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
	if (error != 0)
		return;
	world->restores++;
	if (ticket.index != world->primary)
		return;
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
	died(world, index);
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
	died(world, index);
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
	if (error == -ENOENT && state.disk == VOLUME_DISK_UPTODATE) /* there is no snapshot */
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
	if (!n->rolling_back && (world->snapshots == 0 || world->newest_given_up))
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
	died(world, world->primary);
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

/* A bigger volume is there for its clients at once; it is never smaller than it was said to be. */
static void look_at_size(struct world *world)
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
		look_at_size(world);
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
	died(world, index);
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
	drop_clients(world);
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

	if (world->must_wait && world->options.protocol == 'C' && !died(world, index) &&
	    !model_check_local(world->model, &image, why, sizeof(why)))
		world_fail(world, "promise 1, lost in a promotion without force: %s", why);
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
	if (world_chance(world, 50) && node_promote(v, false, why, sizeof(why)) == 0)
		check_nothing_lost(world, index);
	else if (!died(world, index) && node_promote(v, true, why, sizeof(why)) != 0 &&
		 !died(world, index))
		world_fail(world, "a usable secondary is not promoted: %s", why);
	if (!died(world, index))
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
	if (node_demote(v, why, sizeof(why)) != 0 || died(world, from))
		return;
	for (unsigned steps = (unsigned)world_random(world, 200); steps > 0; steps--)
		world_step(world);
	if (died(world, from) || died(world, to) || node_promote(w, false, why, sizeof(why)) != 0 ||
	    died(world, to)) {
		sim_note(world->sim, "the switch-over fails: %s", why);
		if (!died(world, from) && node_promote(v, true, why, sizeof(why)) != 0 &&
		    !died(world, from))
			world_fail(world, "demoted and cannot be promoted again: %s", why);
		return;
	}
	image = world_image(world->nodes[to].env);
	now = model_tick(world->model);
	if (!model_check_point(world->model, &image, now, now, why, sizeof(why)))
		world_fail(world, "promise 1, lost in a planned change of roles: %s", why);
	new_primary(world, to);
}
