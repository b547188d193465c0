// SPDX-License-Identifier: Apache-2.0
/* Opening, closing and reporting. What the other files own: see internal.h. */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/io/resident.h"

#define LOG_EVERY_NS 1000000000ull

_Static_assert(VOLUME_PEER_BLOCK_BYTES == METADATA_PEER_BLOCK_BYTES &&
		       VOLUME_STORE_BLOCK_BYTES == METADATA_STORE_BLOCK_BYTES &&
		       VOLUME_REGION_BYTES == METADATA_REGION_BYTES,
	       "the file format is of the same opinion");

uint32_t volume_consumer_block_bytes(enum volume_consumer consumer)
{
	return consumer == VOLUME_PEER ? VOLUME_PEER_BLOCK_BYTES : VOLUME_STORE_BLOCK_BYTES;
}

const char *volume_role_name(enum volume_role role)
{
	return role == VOLUME_PRIMARY ? "primary" : "secondary";
}

const char *volume_disk_state_name(enum volume_disk_state state)
{
	static const char *const names[] = {
		[VOLUME_DISK_UPTODATE] = "uptodate",         [VOLUME_DISK_OUTDATED] = "outdated",
		[VOLUME_DISK_INCONSISTENT] = "inconsistent", [VOLUME_DISK_FAILED] = "failed",
		[VOLUME_DISK_DISKLESS] = "diskless",
	};

	return names[state];
}

void volume_log_error(struct volume *v, const char *what, uint64_t offset, int error)
{
	uint64_t now = env_now_ns(v->env);

	if (v->last_log_ns != 0 && now - v->last_log_ns < LOG_EVERY_NS)
		return;
	v->last_log_ns = now;
	env_log(v->env, ENV_LOG_ERROR, "volume %s: %s at %llu: %s", v->name, what,
		(unsigned long long)offset, strerror(-error));
}

/* ---- opening -------------------------------------------------------------------------------- */

static int make_paths(struct volume *v, const struct volume_config *config)
{
	static const char *const names[] = {"preserve.peer", "preserve.store"};

	v->name = strdup(config->name);
	v->backing_path = strdup(config->backing);
	v->state_dir = strdup(config->state_dir);
	if (!v->name || !v->backing_path || !v->state_dir)
		return -ENOMEM;
	if (asprintf(&v->copy_path, "%s.before-catch-up", config->backing) < 0 ||
	    asprintf(&v->super_path, "%s/super", config->state_dir) < 0 ||
	    asprintf(&v->maps_paths[0], "%s/maps", config->state_dir) < 0 ||
	    asprintf(&v->maps_paths[1], "%s/maps.1", config->state_dir) < 0)
		return -ENOMEM;
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		if (asprintf(&v->cuts[c].path, "%s/%s", config->state_dir, names[c]) < 0)
			return -ENOMEM;
	v->config = *config;
	v->config.name = v->name;
	v->config.backing = v->backing_path;
	v->config.state_dir = v->state_dir;
	v->config.description = NULL;
	if (config->description)
		snprintf(v->description, sizeof(v->description), "%s", config->description);
	else
		snprintf(v->description, sizeof(v->description), "offsite volume %s", config->name);
	if (v->config.block_min_bytes == 0)
		v->config.block_min_bytes = 1;
	if (v->config.preserve_max_bytes == 0)
		v->config.preserve_max_bytes = 1ull << 30;
	if (v->config.intent_max_regions == 0)
		v->config.intent_max_regions = 4096;
	return 0;
}

static int make_memory(struct volume *v)
{
	static const unsigned bounce[3] = {256, 32, 8}, local[3] = {128, 32, 8 + PRESERVE_BUFS};
	void *zeroes = mmap(NULL, BUF_SIZE_MAX, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (zeroes != MAP_FAILED)
		v->zeroes = zeroes;
	v->bounce_pool = buf_pool_new(bounce);
	v->local_pool = buf_pool_new(local);
	v->tokens = calloc(TOKENS, sizeof(*v->tokens));
	v->super.wire = malloc(METADATA_SUPER_COPIES * sizeof(*v->super.wire));
	if (!v->zeroes || !v->bounce_pool || !v->local_pool || !v->tokens || !v->super.wire)
		return -ENOMEM;
	for (unsigned i = 0; i < PRESERVE_BUFS; i++)
		v->preserve_bufs[i].buf = buf_alloc(v->local_pool, BUF_SIZE_MAX);
	return 0;
}

static void volume_free(struct volume *v)
{
	cut_release(v);
	hydrate_release(v);
	maps_free(v);
	for (unsigned i = 0; i < PRESERVE_BUFS; i++)
		buf_put(v->preserve_bufs[i].buf);
	buf_pool_free(v->bounce_pool);
	buf_pool_free(v->local_pool);
	if (v->zeroes != NULL)
		munmap((void *)(uintptr_t)v->zeroes, BUF_SIZE_MAX);
	if (v->backing != NULL)
		env_file_close(v->env, v->backing);
	if (v->maps != NULL)
		env_file_close(v->env, v->maps);
	if (v->super.file != NULL)
		env_file_close(v->env, v->super.file);
	free(v->tokens);
	free(v->super.wire);
	free(v->super_path);
	for (unsigned i = 0; i < METADATA_MAPS_FILES; i++)
		free(v->maps_paths[i]);
	free(v->state_dir);
	free(v->backing_path);
	free(v->copy_path);
	free(v->name);
	free(v);
}

/* A crash may have come between making the file, sizing it and making its name durable. One that is there when
 * the volume is opened may be a replaced disk's (volume_replace_backing()): of that only the name is missing. */
static int finish_backing(struct volume *v, const struct env_file_info *info, bool create)
{
	int error = 0;

	if (info->block_device || !(create || v->state.disk == VOLUME_DISK_INCONSISTENT))
		return 0;
	if (create && info->size_bytes == 0 && v->size_bytes != 0)
		error = env_file_truncate(v->env, v->backing, v->size_bytes);
	if (error == 0 && create)
		error = env_file_sync(v->env, v->backing);
	return error == 0 ? env_sync_parent(v->env, v->backing_path) : error;
}

/* size_bytes 0: takes the backing's. */
static int check_backing(struct volume *v, bool create, char *why, size_t why_size)
{
	struct env_file_info info;
	int error = env_file_info(v->env, v->backing, &info);

	if (error == 0)
		error = finish_backing(v, &info, create);
	if (error == 0 && create)
		error = env_file_info(v->env, v->backing, &info);
	if (error != 0) {
		snprintf(why, why_size, "volume %s: %s: %s", v->name, v->backing_path,
			 strerror(-error));
		return error;
	}
	if (v->size_bytes == 0)
		v->size_bytes = info.size_bytes & ~4095ull;
	if (v->size_bytes == 0 || info.size_bytes < v->size_bytes) {
		snprintf(why, why_size,
			 "volume %s: %s: backing file shrank: it has %llu bytes, the "
			 "volume %llu",
			 v->name, v->backing_path, (unsigned long long)info.size_bytes,
			 (unsigned long long)v->size_bytes);
		return -ENOSPC;
	}
	if (info.align_bytes > 4096) {
		snprintf(why, why_size, "volume %s: %s: sectors of %u bytes; at most 4096", v->name,
			 v->backing_path, info.align_bytes);
		return -EINVAL;
	}
	v->io_align_bytes = info.align_bytes > 0 ? info.align_bytes : 1;
	v->align_bytes = v->io_align_bytes < 512 ? 512 : v->io_align_bytes;
	return 0;
}

int backing_open(struct volume *v, bool create, char *why, size_t why_size)
{
	int error = env_file_open(v->env, v->backing_path,
				  ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_DIRECT | ENV_FILE_LOCK,
				  &v->backing);

	if (error == -ENOENT && create && v->size_bytes != 0)
		error = env_file_open(v->env, v->backing_path,
				      ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_DIRECT |
					      ENV_FILE_LOCK | ENV_FILE_CREATE | ENV_FILE_EXCL,
				      &v->backing);
	if (error == -EWOULDBLOCK || error == -EBUSY)
		snprintf(why, why_size, "volume %s: %s: in use by another process", v->name,
			 v->backing_path);
	else if (error == -ENOENT && create && v->size_bytes != 0)
		snprintf(why, why_size, "volume %s: %s: the folder to make it in does not exist",
			 v->name, v->backing_path);
	else if (error == -ENOENT && create)
		snprintf(why, why_size, "volume %s: %s: does not exist; give a size to make it",
			 v->name, v->backing_path);
	else if (error != 0)
		snprintf(why, why_size, "volume %s: %s: %s", v->name, v->backing_path,
			 strerror(-error));
	else
		error = check_backing(v, create, why, why_size);
	if (error != 0 && v->backing != NULL) {
		env_file_close(v->env, v->backing);
		v->backing = NULL;
	}
	return error;
}

static int fail(struct volume *v, int error, const char *path, char *why, size_t why_size)
{
	snprintf(why, why_size, "volume %s: %s: %s", v->name, path, strerror(-error));
	return error;
}

/* The maps exist and the superblock says so. */
static int finish_creation(struct volume *v, char *why, size_t why_size)
{
	int error = maps_create(v, false);

	if (error != 0)
		return fail(v, error, maps_path(v), why, why_size);
	error = super_store(v, 0);
	return error != 0 ? fail(v, error, v->super_path, why, why_size) : 0;
}

static int create(struct volume *v, char *why, size_t why_size)
{
	struct env_file *maps;
	int error;

	for (unsigned i = 0; i < METADATA_MAPS_FILES; i++) {
		if (env_file_open(v->env, v->maps_paths[i], ENV_FILE_READ, &maps) != 0)
			continue;
		env_file_close(v->env, maps);
		snprintf(why, why_size,
			 "volume %s: %s: missing, but %s is there; restore it from a copy, or move "
			 "the directory away to start anew",
			 v->name, v->super_path, v->maps_paths[i]);
		return -EINVAL;
	}
	v->size_bytes = v->config.size_bytes;
	if (v->size_bytes % 4096 != 0 || v->size_bytes > INT64_MAX) {
		snprintf(why, why_size, "volume %s: size %llu is not a multiple of 4096", v->name,
			 (unsigned long long)v->size_bytes);
		return -EINVAL;
	}
	error = backing_open(v, true, why, why_size);
	if (error != 0)
		return error;
	env_random(v->env, &v->state.uuid, sizeof(v->state.uuid));
	v->state.role = v->config.role;
	error = maps_init(v);
	if (error != 0)
		return fail(v, error, "memory for the maps", why, why_size);
	error = restored_forget(v); /* a new volume knows nothing of what was before */
	if (error != 0)
		return fail(v, error, "mark of a restore", why, why_size);
	error = super_create(v);
	if (error != 0)
		return fail(v, error, v->super_path, why, why_size);
	return finish_creation(v, why, why_size);
}

static int recover(struct volume *v, unsigned flags, char *why, size_t why_size)
{
	int error, restored = 0;

	if (v->config.size_bytes > v->size_bytes) {
		snprintf(
			why, why_size,
			"volume %s: has %llu bytes, the configuration says %llu; it is made bigger "
			"with: offsite resize %s %llu",
			v->name, (unsigned long long)v->size_bytes,
			(unsigned long long)v->config.size_bytes, v->name,
			(unsigned long long)v->config.size_bytes);
		return -EINVAL;
	}
	if (v->config.size_bytes != 0 && v->config.size_bytes < v->size_bytes)
		env_log(v->env, ENV_LOG_WARNING,
			"volume %s: has %llu bytes, the configuration says %llu, which only counts "
			"when it is made",
			v->name, (unsigned long long)v->size_bytes,
			(unsigned long long)v->config.size_bytes);
	error = maps_init(v);
	if (error != 0)
		return fail(v, error, "memory for the maps", why, why_size);
	if (v->lean != VOLUME_LEAN_DISKLESS)
		error = backing_open(v, flags & METADATA_CREATING, why, why_size);
	if (error == -EWOULDBLOCK || error == -EBUSY)
		return error;
	if (error != 0) {
		v->state.disk = VOLUME_DISK_FAILED;
		snprintf(v->failure, sizeof(v->failure), "%s", why);
		env_log(v->env, ENV_LOG_ERROR, "%s", why);
	}
	if (flags & METADATA_CREATING)
		return finish_creation(v, why, why_size);
	if (v->backing != NULL)
		restored = restored_look(v, why, why_size);
	if (restored < 0)
		return restored;
	if (restored > 0) {
		v->lean = VOLUME_LEAN_NO;
		v->hydrate.active = v->hydrate.from_store = false;
	}
	error = maps_load(v, why, why_size);
	if (error == 0)
		error = hydrate_recover(v, why, why_size);
	if (error != 0)
		return error;
	lean_recover(v);
	copy_look(v);
	grow_look(v);
	/* Not clean from here on, and LSNs that were never given out before. */
	error = super_store(v, 0);
	if (error != 0)
		return fail(v, error, v->super_path, why, why_size);
	error = restored ? restored_forget(v) : 0;
	return error != 0 ? fail(v, error, "mark of a restore", why, why_size) : 0;
}

static int open_files(struct volume *v, char *why, size_t why_size)
{
	unsigned flags = 0;
	int error = env_mkdir(v->env, v->state_dir);

	if (error != 0)
		return fail(v, error, v->state_dir, why, why_size);
	error = restored_refuse(v, why, why_size);
	if (error != 0)
		return error;
	error = super_load(v, &flags, why, why_size);
	if (error == -ENOENT)
		return create(v, why, why_size);
	if (error != 0)
		return error;
	return recover(v, flags, why, why_size);
}

static void close_now(struct env_task *task);

int volume_open(struct env *env, const struct volume_config *config, struct volume **out, char *why,
		size_t why_size)
{
	struct volume *v = calloc(1, sizeof(*v));
	int error;

	if (v == NULL) {
		snprintf(why, why_size, "volume %s: out of memory", config->name);
		return -ENOMEM;
	}
	v->env = env;
	v->super.writing = -1;
	v->close_task.call = close_now;
	v->io_align_bytes = 1;
	v->align_bytes = 512;
	cut_init(v);
	tick_init(v);
	error = make_paths(v, config);
	if (error == 0)
		error = make_memory(v);
	if (error != 0) {
		snprintf(why, why_size, "volume %s: out of memory", config->name);
	} else {
		request_init(v);
		export_init(v);
		hydrate_init(v);
		error = open_files(v, why, why_size);
	}
	if (error != 0) {
		env_timer_stop(env, &v->tick);
		hydrate_stop_timers(v);
		volume_free(v);
		return error;
	}
	v->bumped = false;
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		preserve_recover(&v->cuts[c]);
	checkpoint_want(v);
	*out = v;
	return 0;
}

/* ---- closing ---------------------------------------------------------------------------------- */

void op_ended(struct volume *v)
{
	assert(v->ops > 0);
	if (--v->ops == 0 && v->closing)
		env_defer(v->env, &v->close_task);
}

static void store_cleanly(struct volume *v)
{
	bool durable = v->backing != NULL && v->sync_error == 0 &&
		       v->lean != VOLUME_LEAN_DISKLESS && !v->hydrate.keep_intents &&
		       volume_sync_backing(v) == 0;
	int error = v->hydrate.active && durable ? hydrate_store_all(v) : 0;

	if (error == 0)
		error = maps_store_all(v, durable);
	if (error == 0) {
		for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
			if (c != VOLUME_STORE || !v->detached)
				v->consumers[c].all_dirty = false;
		error = super_store(v, METADATA_CLEAN);
	}
	if (error != 0)
		env_log(v->env, ENV_LOG_ERROR, "volume %s: close: %s", v->name, strerror(-error));
}

static void close_now(struct env_task *task)
{
	struct volume *v = (struct volume *)((char *)task - offsetof(struct volume, close_task));
	void (*closed)(void *context) = v->closed;
	void *context = v->closed_context;

	if (v->ops > 0)
		return; /* somebody came once more; the last to end comes back here */
	env_timer_stop(v->env, &v->tick);
	env_defer_cancel(v->env, &v->deferred_task);
	hydrate_stop_timers(v);
	store_cleanly(v);
	volume_free(v);
	closed(context);
}

void volume_close(struct volume *v, void (*closed)(void *context), void *context)
{
	struct op_queue held = queue_take(&v->held);
	struct op *op;

	assert(!v->closing && v->tap == NULL);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		assert(!v->cuts[c].active);
	v->closing = true;
	v->closed = closed;
	v->closed_context = context;
	v->ops++;
	while ((op = queue_pop(&held)) != NULL)
		op_complete_later(op, -ESHUTDOWN);
	op_gate_all(queue_take(&v->wait_resume));
	v->hydrate.origin = NULL;
	lean_fail_waiting(v, -ESHUTDOWN);
	tap_fail_all(v, -ESHUTDOWN);
	op_ended(v);
}

/* ---- reporting --------------------------------------------------------------------------------- */

void volume_brace(struct volume *v, bool peer, bool store)
{
	static const unsigned bounce[3] = {128, 16, 4}, local[3] = {64, 16, 4 + PRESERVE_BUFS};

	if (v->is_braced && v->braced[VOLUME_PEER] >= peer && v->braced[VOLUME_STORE] >= store)
		return;
	v->is_braced = true;
	v->braced[VOLUME_PEER] = v->braced[VOLUME_PEER] || peer;
	v->braced[VOLUME_STORE] = v->braced[VOLUME_STORE] || store;
	resident_make(v, sizeof(*v));
	resident_make(v->tokens, TOKENS * sizeof(*v->tokens));
	resident_make(v->super.wire, METADATA_SUPER_COPIES * sizeof(*v->super.wire));
	buf_pool_brace(v->bounce_pool, bounce);
	buf_pool_brace(v->local_pool, local);
	maps_brace(v);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		if (v->braced[c])
			cut_brace(&v->cuts[c]);
}

const char *volume_name(const struct volume *v)
{
	return v->name;
}

struct env *volume_env(const struct volume *v)
{
	return v->env;
}

uint64_t volume_size_bytes(const struct volume *v)
{
	return v->size_bytes;
}

const char *volume_state_dir(const struct volume *v)
{
	return v->state_dir;
}

const char *volume_failure(const struct volume *v)
{
	return v->failure;
}

bool volume_flush_fails(const struct volume *v)
{
	return v->sync_error != 0;
}

bool volume_has_backing(const struct volume *v)
{
	return v->backing != NULL;
}

void volume_get_latency(const struct volume *v, struct latency *latency)
{
	*latency = v->latency;
}

void volume_get_stats(const struct volume *v, struct volume_stats *stats)
{
	*stats = v->stats;
	stats->intent_regions = v->intent.count;
	stats->missing_bytes = v->hydrate.active ? v->hydrate.missing.count * FETCH_BLOCK_BYTES : 0;
	stats->fill_total_bytes = v->hydrate.active ? v->hydrate.total_bytes : 0;
	stats->fill_started_ns = v->hydrate.active ? v->hydrate.started_ns : 0;
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		const struct volume_cut *cut = &v->cuts[c];

		if (!cut->active || cut->bits_only)
			continue;
		stats->preserve_used_bytes += cut->used_slots * PRESERVE_UNIT;
		stats->preserve_max_bytes += v->config.preserve_max_bytes;
	}
}

void volume_check(const struct volume *v)
{
	uint32_t tokens = 0;

	range_check(&v->ranges);
	cut_check(v);
	intent_check(v);
	for (const struct reader *r = v->readers; r != NULL; r = r->next) {
		uint32_t waiting = 0;

		for (const struct range_lock *l = v->ranges.all; l != NULL; l = l->all_next) {
			const struct op *op =
				(const struct op *)((const char *)l - offsetof(struct op, lock));

			waiting += op->issued && op->piece_offset < r->end &&
				   r->start < op->piece_offset + op->piece_length;
		}
		assert(waiting == r->waiting || r->waiting == 0);
	}
	for (uint32_t i = v->token_free; i != 0; i = v->tokens[i - 1].next_free)
		tokens++;
	for (uint32_t i = 0; i < v->tokens_used; i++)
		tokens += v->tokens[i].op != NULL;
	assert(tokens == v->tokens_used);
	lean_check(v);
	assert(v->size_bytes % 4096 == 0 && v->stats.in_flight <= v->ops);
}
