/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store in memory that locks objects and archives packs, a writer that locks what it puts, and what has to hold of
 * locks. The clock that locks go by can be put forward. A test includes it instead of snapshot_fixture.h.
 */
#ifndef OFFSITE_TESTS_SNAPSHOT_LOCKS_H
#define OFFSITE_TESTS_SNAPSHOT_LOCKS_H

#include "tests/unit/snapshot_fixture.h"
#include "daemon/io/env_ops.h"

#include <fcntl.h>

#include "daemon/snapshot/seal.h"
#include "daemon/store/crypt.h"

#define HOUR_NS 3600000000000ull

/* ---- the store in memory, with locks ----------------------------------------------------------- */

struct lock {
	char name[128];
	struct store_retention retention;
};

struct locks {
	struct store_ops ops;
	const struct store_ops *plain;
	struct lock table[2048];
	unsigned count, retains, looks;
	struct env_ops env;
	const struct env_ops *real;
	uint64_t clock_ns; /* what it is instead of now; 0: now */
	bool off;          /* as if all had ended */
	bool archived;     /* packs are, and are never back */
	unsigned thaws;
	void (*each)(void *context, const struct store_object *object);
};

static struct locks *locks;

static struct lock *lock_of(const char *name)
{
	for (unsigned i = 0; i < locks->count; i++)
		if (!strcmp(locks->table[i].name, name))
			return &locks->table[i];
	return NULL;
}

static void lock_set(const char *name, const struct store_retention *retention)
{
	struct lock *lock = lock_of(name);

	if (!lock) {
		assert_true(locks->count < 2048);
		lock = &locks->table[locks->count++];
		snprintf(lock->name, sizeof(lock->name), "%s", name);
	}
	if (lock->retention.until_ns < retention->until_ns)
		lock->retention = *retention;
}

static void locked_put(struct store *store, struct env_op *op, const char *name,
		       const struct iovec *iov, unsigned count,
		       const struct store_retention *retention)
{
	lock_set(name, retention);
	locks->plain->put(store, op, name, iov, count);
}

static void locked_retain(struct store *store, struct env_op *op, const char *name,
			  const struct store_retention *retention)
{
	struct memory_store *m = (struct memory_store *)store;
	bool fail = fails(m, OP_PUT);
	bool there = memory_find(m, name) >= 0;

	locks->retains++;
	if (there && (!fail || m->fail_effect))
		lock_set(name, retention);
	complete(store->env, op, fail ? m->fail_error : there ? 0 : -ENOENT);
}

static void locked_look(struct store *store, struct env_op *op, const char *name)
{
	struct memory_store *m = (struct memory_store *)store;
	const struct lock *lock = lock_of(name);
	bool fail = fails(m, OP_SIZE);

	locks->looks++;
	complete(store->env, op,
		 fail                       ? m->fail_error
		 : memory_find(m, name) < 0 ? -ENOENT
		 : lock && !locks->off      ? (int64_t)(lock->retention.until_ns / 1000000000)
					    : 0);
}

static void locked_delete(struct store *store, struct env_op *op, const char *name)
{
	const struct lock *lock = lock_of(name);

	if (lock && !locks->off && lock->retention.until_ns > env_realtime_ns(store->env))
		complete(store->env, op, -STORE_LOCKED);
	else
		locks->plain->delete (store, op, name);
}

static void archived_each(void *context, const struct store_object *object)
{
	struct store_object told = *object;

	if (locks->archived && strstr(told.name, "/packs/"))
		told.archive = "GLACIER";
	locks->each(context, &told);
}

static void archived_list(struct store *store, struct env_op *op, const char *prefix,
			  void (*each)(void *context, const struct store_object *object),
			  void *context)
{
	locks->each = each;
	locks->plain->list(store, op, prefix, archived_each, context);
}

static void archived_thaw(struct store *store, struct env_op *op, const char *name)
{
	locks->thaws++;
	complete(store->env, op, 0);
}

static void archived_thawed(struct store *store, struct env_op *op, const char *name)
{
	complete(store->env, op, 0);
}

static uint64_t archived_thaw_ns(struct store *store, const char *archive)
{
	return 5 * HOUR_NS;
}

static inline void writer_new(struct world *w, enum store_lock lock, uint64_t lock_for_ns,
			      const char *node)
{
	struct snapshot_writer_config config = {.node_name = node,
						.pack_bytes = 128 << 10,
						.lock = lock,
						.lock_for_ns = lock_for_ns};

	if (w->writer)
		writer_free(w->env, w->writer);
	w->writer = snapshot_writer_new(w->v, w->repo, &config);
}

static uint64_t clock_now(struct env *env)
{
	return locks->clock_ns ? locks->clock_ns : locks->real->realtime_ns(env);
}

static void locks_begin(struct world *w, enum store_lock lock, uint64_t lock_for_ns)
{
	world_volume(w, 8 << 20, 0, 128 << 10);
	locks = calloc(1, sizeof(*locks));
	locks->plain = w->m->store.ops;
	locks->ops = *locks->plain;
	locks->ops.put_retained = locked_put;
	locks->ops.retain = locked_retain;
	locks->ops.retained = locked_look;
	locks->ops.delete = locked_delete;
	locks->ops.list = archived_list;
	locks->ops.thaw = archived_thaw;
	locks->ops.thawed = archived_thawed;
	locks->ops.thaw_ns = archived_thaw_ns;
	w->m->store.ops = &locks->ops;
	w->m->store.lists_cost = true;
	locks->real = w->env->ops;
	locks->env = *locks->real;
	locks->env.realtime_ns = clock_now;
	w->env->ops = &locks->env;
	writer_new(w, lock, lock_for_ns, "node");
}

static void locks_end(struct world *w)
{
	w->m->store.ops = locks->plain;
	world_drop(w);
	w->env->ops = locks->real;
	free(locks);
	locks = NULL;
}

static void fill(struct world *w, unsigned count, uint64_t seed)
{
	for (unsigned i = 0; i < count; i++)
		fake_fill(w->v, (seed * 7919 + i * 13) % w->v->chunks, seed * 1000 + i);
}

static inline void keep_open(struct store *store)
{
}

static inline struct secret *key_file(void)
{
	struct secret *secret = calloc(1, sizeof(*secret));

	secret->method = CRYPTFMT_KEY_FILE;
	secret->length = 32;
	return secret;
}

/* ---- what has to hold ------------------------------------------------------------------------------ */

struct loaded {
	bool done;
	struct manifest *manifest;
};

static void loaded_done(void *context, struct manifest *manifest, int error, const char *why)
{
	struct loaded *loaded = context;

	assert_int_equal(error, 0);
	loaded->manifest = manifest;
	loaded->done = true;
}

static void assert_locked(const char *name, uint64_t until_ns)
{
	const struct lock *lock = lock_of(name);

	if (!lock || lock->retention.until_ns < until_ns)
		fail_msg("%s: is not locked for long enough", name);
}

/* All that a listed snapshot needs is locked for at least as long as it says. */
static inline void assert_locks_hold(struct world *w, uint64_t lock_for_ns)
{
	struct waited l = list(w->env, w->repo);

	for (unsigned i = 0; i < l.listed; i++) {
		const struct snapshot_info *info = &l.infos[i];
		struct snapfmt_ref ref = {info->id, info->sequence, 0};
		struct loaded loaded = {.done = false};
		char name[SNAPFMT_NAME_BYTES];

		assert_true(info->retention.until_ns >= info->created_ns + lock_for_ns);
		snapfmt_name(SNAPFMT_MANIFEST, &info->volume, &ref, name);
		assert_locked(name, info->retention.until_ns);
		manifest_load(&w->m->store, &info->volume, &ref, loaded_done, &loaded);
		env_run_until(w->env, &loaded.done);
		for (unsigned o = 0; o < loaded.manifest->object_count; o++) {
			const struct manifest_object *object = &loaded.manifest->objects[o];

			snapfmt_name(object->kind, &info->volume, &object->ref, name);
			assert_locked(name, info->retention.until_ns);
		}
		manifest_free(loaded.manifest);
	}
}

static void assert_all_is_well(struct world *w)
{
	struct waited v = verify(w->env, w->repo);
	uint8_t data[CHUNK];
	char path[128];
	int fd;

	if (v.bad)
		fail_msg("%s: %s", v.object, v.why);
	snprintf(path, sizeof(path), "%s/check", w->dir);
	assert_string_equal(restore_file(w->env, w->repo, NULL, path, false).result.why, "");
	fd = open(path, O_RDONLY);
	for (uint64_t i = 0; i < w->v->chunks; i++) {
		assert_int_equal(pread(fd, data, CHUNK, (off_t)(i * CHUNK)), CHUNK);
		assert_memory_equal(data, w->v->data[i] ? w->v->data[i] : zero_chunk, CHUNK);
	}
	close(fd);
	unlink(path);
}

#endif
