/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the snapshot tests stand on: a volume in memory (the functions of volume.h that snapshots use,
 * with cuts and copy-before-write), a store in memory that counts and fails on purpose, and calls that
 * run the loop until an operation is done. Included by one file of a test program.
 */
#ifndef OFFSITE_TESTS_SNAPSHOT_FIXTURE_H
#define OFFSITE_TESTS_SNAPSHOT_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "daemon/snapshot/snapshot.h"
#include "protocol/snapshot.h"
#include "tests/unit/on_backends.h"

#define CHUNK ((uint64_t)SNAPSHOT_CHUNK_BYTES)

/* ---- later: completions never come from inside ----------------------------------------------- */

struct late {
	struct env_task task;
	struct env_op *op;
	int64_t result;
	void (*call)(void *context);
	void *context;
};

static void late_call(struct env_task *task)
{
	struct late *late = (struct late *)task;
	struct late copy = *late;

	free(late);
	if (copy.op)
		copy.op->done(copy.op, copy.result);
	else
		copy.call(copy.context);
}

static struct late *late_new(struct env *env)
{
	struct late *late = calloc(1, sizeof(*late));

	assert_non_null(late);
	late->task.call = late_call;
	env_defer(env, &late->task);
	return late;
}

static void complete(struct env *env, struct env_op *op, int64_t result)
{
	struct late *late = late_new(env);

	late->op = op;
	late->result = result;
}

/* ---- a volume in memory ------------------------------------------------------------------------ */

struct volume {
	struct env *env;
	uint64_t size, chunks;
	uint8_t **data;                     /* by chunk; NULL: not allocated */
	uint8_t **preserved;                /* as of the cut; zero_chunk: was not allocated */
	uint8_t *dirty, *sealed, *consumed; /* a byte each would be 16 MiB a TiB: bits */
	struct volume_state state;
	struct volume_cut *cut;
	struct volume_stats stats;
	bool fail_set_state, lose_cut;
	bool cut_is_short;
	bool store_lost; /* the store's map does not follow */
	uint64_t peer_marked;
	unsigned applied, cut_reads;
	void (*on_cut_read)(struct volume *volume, const struct volume_cut_read *read); /* begun */
	struct block block;
	struct latency latency;
};

struct volume_cut {
	struct volume *volume;
	void (*lost)(void *context, int error);
	void *context;
	uint64_t bytes;
	unsigned reads;
};

static uint8_t zero_chunk[SNAPSHOT_CHUNK_BYTES];

static bool bit(const uint8_t *bits, uint64_t i)
{
	return bits[i / 8] >> i % 8 & 1;
}

static void bit_assign(uint8_t *bits, uint64_t i, bool value)
{
	if (value)
		bits[i / 8] |= (uint8_t)(1u << i % 8);
	else
		bits[i / 8] &= (uint8_t) ~(1u << i % 8);
}

static inline struct volume *fake_volume(struct env *env, uint64_t size, uint8_t uuid)
{
	struct volume *v = calloc(1, sizeof(*v));

	v->env = env;
	v->size = size;
	v->chunks = (size + CHUNK - 1) / CHUNK;
	v->data = calloc(v->chunks, sizeof(*v->data));
	v->preserved = calloc(v->chunks, sizeof(*v->preserved));
	v->dirty = calloc(v->chunks / 8 + 1, 1);
	v->sealed = calloc(v->chunks / 8 + 1, 1);
	v->consumed = calloc(v->chunks / 8 + 1, 1);
	v->state.role = VOLUME_PRIMARY;
	v->state.disk = VOLUME_DISK_UPTODATE;
	memset(&v->state.uuid, uuid, sizeof(v->state.uuid));
	return v;
}

static inline void fake_volume_free(struct volume *v)
{
	assert_null(v->cut);
	for (uint64_t i = 0; i < v->chunks; i++)
		free(v->data[i]);
	free(v->data);
	free(v->preserved);
	free(v->dirty);
	free(v->sealed);
	free(v->consumed);
	free(v);
}

/* A client's write of one whole chunk; data NULL: zeroed and deallocated. */
static void fake_write(struct volume *v, uint64_t chunk, const uint8_t *data)
{
	if (v->cut && bit(v->sealed, chunk) && !bit(v->consumed, chunk) && !v->preserved[chunk]) {
		v->preserved[chunk] = v->data[chunk] ? v->data[chunk] : zero_chunk;
		v->data[chunk] = NULL;
	}
	if (data) {
		if (!v->data[chunk])
			v->data[chunk] = malloc(CHUNK);
		memcpy(v->data[chunk], data, CHUNK);
	} else {
		free(v->data[chunk]);
		v->data[chunk] = NULL;
	}
	bit_assign(v->dirty, chunk, true);
}

static inline void fake_fill(struct volume *v, uint64_t chunk, uint64_t seed)
{
	uint64_t words[CHUNK / 8];

	for (unsigned i = 0; i < CHUNK / 8; i++) {
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		words[i] = seed ^ seed >> 29;
	}
	fake_write(v, chunk, (void *)words);
}

void volume_get_latency(const struct volume *volume, struct latency *latency)
{
	*latency = volume->latency;
}

const char *volume_name(const struct volume *volume)
{
	return "test";
}

struct env *volume_env(const struct volume *volume)
{
	return volume->env;
}

uint64_t volume_size_bytes(const struct volume *volume)
{
	return volume->size;
}

bool volume_store_follows(const struct volume *volume)
{
	return !volume->store_lost;
}

bool volume_is_snapshot_but(const struct volume *volume, const struct id128 *uuid,
			    const struct id128 *snapshot)
{
	return volume->state.disk == VOLUME_DISK_UPTODATE &&
	       id128_equal(&volume->state.snapshot, snapshot) &&
	       id128_equal(&volume->state.uuid, uuid);
}

bool volume_dirty_next(const struct volume *volume, enum volume_consumer consumer, uint64_t offset,
		       uint64_t *start, uint64_t *length)
{
	const struct volume *v = volume;
	uint64_t i = offset / CHUNK;

	assert_int_equal(consumer, VOLUME_STORE);
	while (i < v->chunks && !bit(v->dirty, i) && !(v->cut && bit(v->sealed, i)))
		i++;
	if (i == v->chunks)
		return false;
	*start = i * CHUNK < offset ? offset : i * CHUNK;
	while (i < v->chunks && (bit(v->dirty, i) || (v->cut && bit(v->sealed, i))))
		i++;
	*length = (i == v->chunks ? v->size : i * CHUNK) - *start;
	return true;
}

const char *volume_disk_state_name(enum volume_disk_state state)
{
	return state == VOLUME_DISK_UPTODATE ? "uptodate" : "not uptodate";
}

void volume_get_state(const struct volume *volume, struct volume_state *state)
{
	*state = volume->state;
}

int volume_set_state(struct volume *volume, const struct volume_state *state)
{
	if (volume->fail_set_state)
		return -EIO;
	volume->state = *state;
	return 0;
}

int volume_mark_all(struct volume *volume, enum volume_consumer consumer, bool allocated_only)
{
	if (consumer == VOLUME_PEER) {
		volume->peer_marked += volume->size;
		return 0;
	}
	for (uint64_t i = 0; i < volume->chunks; i++)
		if (volume->data[i] || !allocated_only)
			bit_assign(volume->dirty, i, true);
	return 0;
}

int volume_mark(struct volume *volume, enum volume_consumer consumer, uint64_t offset,
		uint64_t length)
{
	if (consumer == VOLUME_PEER) {
		volume->peer_marked += length;
		return 0;
	}
	for (uint64_t i = offset / CHUNK; i * CHUNK < offset + length; i++)
		bit_assign(volume->dirty, i, true);
	return 0;
}

int volume_cut_begin(struct volume *volume, enum volume_consumer consumer, unsigned flags,
		     void (*lost)(void *context, int error), void *context, struct volume_cut **cut)
{
	if (volume->cut)
		return -EBUSY;
	*cut = calloc(1, sizeof(**cut));
	**cut = (struct volume_cut){.volume = volume, .lost = lost, .context = context};
	for (uint64_t i = 0; i < volume->chunks; i++) {
		bool dirty = bit(volume->dirty, i);

		bit_assign(volume->sealed, i, dirty);
		bit_assign(volume->consumed, i, false);
		(*cut)->bytes += dirty ? CHUNK : 0;
	}
	memset(volume->dirty, 0, volume->chunks / 8 + 1);
	volume->cut = *cut;
	return 0;
}

uint64_t volume_cut_lsn(const struct volume_cut *cut)
{
	return cut->volume->state.lsn ? cut->volume->state.lsn : 4711;
}

uint64_t volume_cut_bytes(const struct volume_cut *cut)
{
	return cut->bytes;
}

bool volume_cut_is_short(const struct volume_cut *cut)
{
	return cut->volume->cut_is_short;
}

bool volume_cut_next(const struct volume_cut *cut, uint64_t offset, uint64_t max_bytes,
		     uint64_t *start, uint64_t *length)
{
	const struct volume *v = cut->volume;
	uint64_t i = offset / CHUNK, n;

	assert_true(max_bytes >= CHUNK);
	while (i < v->chunks && !bit(v->sealed, i)) {
		if (i % 64 == 0 && i + 64 < v->chunks && !*(const uint64_t *)(v->sealed + i / 8))
			i += 64;
		else
			i++;
	}
	if (i == v->chunks)
		return false;
	for (n = 1; i + n < v->chunks && bit(v->sealed, i + n) && (n + 1) * CHUNK <= max_bytes; n++)
		;
	*start = i * CHUNK;
	*length = n * CHUNK;
	if (*start + *length > v->size)
		*length = v->size - *start;
	return true;
}

uint64_t volume_cut_hole_bytes(struct volume_cut *cut, uint64_t offset, uint64_t length)
{
	const struct volume *v = cut->volume;
	uint64_t i = offset / CHUNK, end = offset + length;

	while (i * CHUNK < end && !v->data[i])
		i++;
	return i * CHUNK < end ? i * CHUNK - offset : length;
}

/* As of the cut. */
static bool cut_is_hole(const struct volume *v, uint64_t offset, uint64_t end)
{
	for (uint64_t i = offset / CHUNK; i * CHUNK < end; i++)
		if (v->data[i] || v->preserved[i])
			return false;
	return true;
}

struct late_read {
	struct volume_cut *cut;
	struct volume_cut_read *read;
};

static void cut_read_late(void *context)
{
	struct late_read *late = context;
	struct volume_cut_read *read = late->read;
	struct volume_cut *cut = late->cut;
	struct volume *v = cut->volume;
	uint64_t end = read->offset_bytes + read->length_bytes;

	read->hole = read->skip_hole && cut_is_hole(v, read->offset_bytes, end);
	for (uint64_t at = read->offset_bytes; at < end && (read->buf || read->hole); at += CHUNK) {
		uint64_t chunk = at / CHUNK, length = end - at < CHUNK ? end - at : CHUNK;
		uint8_t *kept = v->preserved[chunk];
		const uint8_t *from = kept ? kept : v->data[chunk] ? v->data[chunk] : zero_chunk;

		if (read->buf && !read->hole)
			memcpy(read->buf->data + (at - read->offset_bytes), from, length);
		bit_assign(v->consumed, chunk, true);
		v->preserved[chunk] = NULL;
		if (kept && kept != zero_chunk)
			free(kept);
	}
	cut->reads--;
	free(late);
	read->done(read, 0);
}

void volume_cut_read(struct volume_cut *cut, struct volume_cut_read *read)
{
	struct late_read *context = malloc(sizeof(*context));
	struct late *late = late_new(cut->volume->env);
	uint64_t first = read->offset_bytes / CHUNK;
	uint64_t last = (read->offset_bytes + read->length_bytes - 1) / CHUNK;

	assert_int_equal(read->offset_bytes % CHUNK, 0);
	assert_true(read->buf ? read->length_bytes <= read->buf->size_bytes : read->skip_hole);
	for (uint64_t i = first; i <= last; i++)
		assert_true(bit(cut->volume->sealed, i));
	*context = (struct late_read){cut, read};
	cut->reads++;
	cut->volume->cut_reads++;
	if (read->buf)
		cut->volume->stats.cut_read_bytes += read->length_bytes;
	late->call = cut_read_late;
	late->context = context;
	if (cut->volume->lose_cut) {
		cut->volume->lose_cut = false;
		cut->lost(cut->context, -ENOSPC);
	}
	if (cut->volume->on_cut_read)
		cut->volume->on_cut_read(cut->volume, read);
}

void volume_cut_finish(struct volume_cut *cut, bool consumed)
{
	struct volume *v = cut->volume;

	assert_int_equal(cut->reads, 0);
	for (uint64_t i = 0; i < v->chunks; i++) {
		if (!consumed && bit(v->sealed, i))
			bit_assign(v->dirty, i, true);
		if (v->preserved[i] && v->preserved[i] != zero_chunk)
			free(v->preserved[i]);
		v->preserved[i] = NULL;
	}
	memset(v->sealed, 0, v->chunks / 8 + 1);
	v->cut = NULL;
	free(cut);
}

void volume_get_stats(const struct volume *volume, struct volume_stats *stats)
{
	*stats = volume->stats;
}

int volume_begin_replacing(struct volume *volume)
{
	memset(&volume->state.snapshot, 0, sizeof(volume->state.snapshot));
	return 0;
}

static void apply_late(void *context)
{
	struct volume_apply *apply = context;

	apply->done(apply, 0);
}

void volume_apply(struct volume *volume, struct volume_apply *apply)
{
	const struct volume_mutation *m = &apply->mutation;
	struct late *late = late_new(volume->env);

	late->call = apply_late;
	late->context = apply;
	if (m->type == VOLUME_FLUSH)
		return;
	assert_int_equal(volume->state.disk, VOLUME_DISK_INCONSISTENT);
	volume->applied++;
	for (uint64_t at = m->offset_bytes; at < m->offset_bytes + m->length_bytes; at += CHUNK) {
		uint8_t copy[CHUNK];
		uint64_t left = m->offset_bytes + m->length_bytes - at;

		memset(copy, 0, sizeof(copy));
		if (m->buf)
			memcpy(copy, m->buf->data + (at - m->offset_bytes),
			       left < CHUNK ? left : CHUNK);
		fake_write(volume, at / CHUNK, m->buf ? copy : NULL);
		bit_assign(volume->dirty, at / CHUNK, false); /* marks nothing */
	}
}

static void read_late(void *context)
{
	struct block_request *request = context;

	request->done(request, 0);
}

void volume_read(struct volume *volume, struct block_request *request)
{
	struct late *late = late_new(volume->env);
	uint64_t end = request->offset_bytes + request->length_bytes;

	for (uint64_t at = request->offset_bytes; at < end; at += CHUNK) {
		const uint8_t *from = volume->data[at / CHUNK];

		memcpy(request->buf->data + (at - request->offset_bytes), from ? from : zero_chunk,
		       end - at < CHUNK ? end - at : CHUNK);
	}
	late->call = read_late;
	late->context = request;
}

static unsigned fake_extents(struct block *block, uint64_t offset, uint64_t length,
			     struct block_extent *extents, unsigned count)
{
	struct volume *v = (struct volume *)((char *)block - offsetof(struct volume, block));
	uint64_t i = offset / CHUNK;
	bool hole = !v->data[i];

	while (i < v->chunks && !v->data[i] == hole)
		i++;
	extents[0].length_bytes = i * CHUNK - offset < length ? i * CHUNK - offset : length;
	extents[0].hole = extents[0].zero = hole;
	return 1;
}

struct block *volume_block(struct volume *volume)
{
	static const struct block_ops ops = {.extents = fake_extents};

	volume->block.ops = &ops;
	return &volume->block;
}

/* ---- a store in memory --------------------------------------------------------------------------- */

enum { OP_PUT = 1, OP_GET = 2, OP_SIZE = 4, OP_LIST = 8, OP_DELETE = 16, OP_ALL = 31 };

struct memory_object {
	char *name;
	uint8_t *data;
	size_t size;
};

struct memory_store {
	struct store store;                 /* first */
	struct memory_object objects[2048]; /* sorted */
	unsigned count;
	unsigned puts, gets, lists, deletes, sizes;
	uint64_t put_bytes, got_bytes;
	/* The k-th operation of these types fails with error; puts and deletes take effect all the same
	 * if effect. 0: none. */
	unsigned fail_types, fail_at;
	int fail_error;
	bool fail_effect, failed;
	bool fail_for_good;                                       /* and all of them after it */
	void (*on_put)(struct memory_store *m, const char *name); /* before it takes effect */
	void (*on_get)(struct memory_store *m, const char *name);
	void *context;
};

enum { MEMORY_ONCE = 0, MEMORY_WITH_EFFECT = 1, MEMORY_FOR_GOOD = 2 };

/* Operation number k (1...) of these types from now on is to fail. */
static inline void memory_fail(struct memory_store *m, unsigned types, unsigned k, int error,
			       unsigned how)
{
	m->fail_types = types;
	m->fail_at = k;
	m->fail_error = error;
	m->fail_effect = how & MEMORY_WITH_EFFECT;
	m->fail_for_good = how & MEMORY_FOR_GOOD;
	m->failed = false;
}

/* None is any more. Whether one did: failed. */
static inline bool memory_heal(struct memory_store *m)
{
	m->fail_at = 0;
	return m->failed;
}

static bool fails(struct memory_store *m, unsigned type)
{
	if (!m->fail_at || !(m->fail_types & type) || --m->fail_at)
		return false;
	m->failed = true;
	m->fail_at = m->fail_for_good;
	return true;
}

static int memory_find(struct memory_store *m, const char *name)
{
	for (unsigned i = 0; i < m->count; i++)
		if (!strcmp(m->objects[i].name, name))
			return (int)i;
	return -1;
}

static void memory_remove(struct memory_store *m, unsigned i)
{
	free(m->objects[i].name);
	free(m->objects[i].data);
	memmove(&m->objects[i], &m->objects[i + 1], (m->count - i - 1) * sizeof(m->objects[0]));
	m->count--;
}

static void memory_put(struct store *store, struct env_op *op, const char *name,
		       const struct iovec *iov, unsigned count)
{
	struct memory_store *m = (struct memory_store *)store;
	bool fail = fails(m, OP_PUT);
	unsigned at = 0;
	struct memory_object o = {.name = strdup(name)};

	assert_true(store_name_valid(name));
	m->puts++;
	if (m->on_put)
		m->on_put(m, name);
	if (memory_find(m, name) >= 0 || (fail && !m->fail_effect)) {
		free(o.name);
		complete(store->env, op, fail ? m->fail_error : -EEXIST);
		return;
	}
	for (unsigned i = 0; i < count; i++)
		o.size += iov[i].iov_len;
	o.data = malloc(o.size + 1);
	for (size_t n = 0, i = 0; i < count; n += iov[i++].iov_len)
		memcpy(o.data + n, iov[i].iov_base, iov[i].iov_len);
	m->put_bytes += o.size;
	assert_true(m->count < 2048);
	while (at < m->count && strcmp(m->objects[at].name, name) < 0)
		at++;
	memmove(&m->objects[at + 1], &m->objects[at], (m->count - at) * sizeof(o));
	m->objects[at] = o;
	m->count++;
	complete(store->env, op, fail ? m->fail_error : 0);
}

static void memory_get(struct store *store, struct env_op *op, const char *name, void *buf,
		       size_t length, uint64_t offset)
{
	struct memory_store *m = (struct memory_store *)store;
	int i;
	size_t n = 0;

	if (m->on_get)
		m->on_get(m, name);
	i = memory_find(m, name);
	m->gets++;
	if (fails(m, OP_GET)) {
		complete(store->env, op, m->fail_error);
		return;
	}
	if (i >= 0 && offset < m->objects[i].size) {
		n = m->objects[i].size - offset < length ? m->objects[i].size - offset : length;
		memcpy(buf, m->objects[i].data + offset, n);
	}
	m->got_bytes += n;
	complete(store->env, op, i < 0 ? -ENOENT : (int64_t)n);
}

static void memory_size(struct store *store, struct env_op *op, const char *name)
{
	struct memory_store *m = (struct memory_store *)store;
	int i = memory_find(m, name);

	m->sizes++;
	if (fails(m, OP_SIZE))
		complete(store->env, op, m->fail_error);
	else
		complete(store->env, op, i < 0 ? -ENOENT : (int64_t)m->objects[i].size);
}

static void memory_list(struct store *store, struct env_op *op, const char *prefix,
			void (*each)(void *context, const struct store_object *object),
			void *context)
{
	struct memory_store *m = (struct memory_store *)store;
	int64_t n = 0;

	m->lists++;
	if (fails(m, OP_LIST)) {
		complete(store->env, op, m->fail_error);
		return;
	}
	for (unsigned i = 0; i < m->count; i++) {
		struct store_object object = {m->objects[i].name, m->objects[i].size, NULL};

		if (strncmp(object.name, prefix, strlen(prefix)))
			continue;
		each(context, &object);
		n++;
	}
	complete(store->env, op, n);
}

static void memory_delete(struct store *store, struct env_op *op, const char *name)
{
	struct memory_store *m = (struct memory_store *)store;
	int i = memory_find(m, name);
	bool fail = fails(m, OP_DELETE);

	m->deletes++;
	if (i >= 0 && (!fail || m->fail_effect))
		memory_remove(m, (unsigned)i);
	complete(store->env, op, fail ? m->fail_error : 0);
}

static void memory_close(struct store *store)
{
	struct memory_store *m = (struct memory_store *)store;

	while (m->count)
		memory_remove(m, 0);
	free(m);
}

static inline struct memory_store *memory_store(struct env *env)
{
	static const struct store_ops ops = {.put = memory_put,
					     .get = memory_get,
					     .size = memory_size,
					     .list = memory_list,
					     .delete = memory_delete,
					     .close = memory_close};
	struct memory_store *m = calloc(1, sizeof(*m));

	m->store = (struct store){.ops = &ops, .env = env, .url = "memory:"};
	return m;
}

static inline void memory_count(struct memory_store *m, unsigned *packs, unsigned *maps,
				unsigned *manifests)
{
	*packs = *maps = *manifests = 0;
	for (unsigned i = 0; i < m->count; i++) {
		*packs += strstr(m->objects[i].name, "/packs/") != NULL;
		*maps += strstr(m->objects[i].name, "/maps/") != NULL;
		*manifests += strstr(m->objects[i].name, "/snapshots/") != NULL;
	}
}

/* ---- operations, waited for -------------------------------------------------------------------------- */

struct waited {
	bool done;
	struct snapshot_result result;
	unsigned bad, hits, listed, damaged;
	char object[160], why[256];
	struct snapshot_info infos[64];
	const struct snapshot_writer *writer; /* checked as it goes */
};

static inline void waited_done(void *context, const struct snapshot_result *result)
{
	struct waited *w = context;

	assert_false(w->done);
	w->result = *result;
	w->done = true;
	assert_int_equal(result->error != 0, result->why[0] != 0);
}

static inline void waited_freed(void *context)
{
	((struct waited *)context)->done = true;
}

static inline void waited_bad(void *context, const char *object, const char *why,
			      const struct snapshot_info *hit)
{
	struct waited *w = context;

	w->bad++;
	w->hits += hit != NULL;
	snprintf(w->object, sizeof(w->object), "%s", object);
	snprintf(w->why, sizeof(w->why), "%s", why);
}

static inline void waited_each(void *context, const struct snapshot_info *info)
{
	struct waited *w = context;

	assert_true(w->listed < 64);
	w->infos[w->listed++] = *info;
}

static inline void waited_damaged(void *context, const char *object, const char *why)
{
	((struct waited *)context)->damaged++;
}

static inline struct waited create(struct env *env, struct snapshot_writer *writer,
				   const char *label)
{
	struct waited w = {.done = false};

	snapshot_create(writer, label, waited_done, &w);
	assert_false(w.done);
	env_run_until(env, &w.done);
	snapshot_check(writer);
	return w;
}

static inline struct waited verify(struct env *env, struct snapshot_repo *repo)
{
	struct waited w = {.done = false};

	snapshot_verify(repo, NULL, 100, waited_bad, NULL, waited_done, &w);
	env_run_until(env, &w.done);
	return w;
}

static inline struct waited list(struct env *env, struct snapshot_repo *repo)
{
	struct waited w = {.done = false};

	snapshot_list(repo, waited_each, waited_damaged, waited_done, &w);
	env_run_until(env, &w.done);
	return w;
}

static inline struct waited delete (struct env *env, struct snapshot_repo *repo,
				    const struct id128 *id)
{
	struct waited w = {.done = false};

	snapshot_delete(repo, id, waited_done, &w);
	env_run_until(env, &w.done);
	return w;
}

static inline struct waited collect(struct env *env, struct snapshot_repo *repo)
{
	struct waited w = {.done = false};

	snapshot_collect(repo, waited_done, &w);
	env_run_until(env, &w.done);
	return w;
}

static inline struct waited restore(struct env *env, struct snapshot_repo *repo,
				    const struct id128 *id, struct snapshot_target *target)
{
	struct waited w = {.done = false};

	snapshot_restore(repo, id, target, NULL, waited_done, &w);
	env_run_until(env, &w.done);
	return w;
}

static inline struct waited restore_file(struct env *env, struct snapshot_repo *repo,
					 const struct id128 *id, const char *path, bool overwrite)
{
	struct snapshot_target *target;
	char why[256] = "";
	int error = snapshot_target_file(env, path, overwrite, &target, why, sizeof(why));

	if (error)
		fail_msg("target: %s", why);
	return restore(env, repo, id, target);
}

static inline void writer_free(struct env *env, struct snapshot_writer *writer)
{
	struct waited w = {.done = false};

	snapshot_writer_free(writer, waited_freed, &w);
	env_run_until(env, &w.done);
}

/* ---- a world for each test ----------------------------------------------------------------------- */

struct world {
	struct env *env;
	char dir[64];
	struct memory_store *m;
	struct volume *v;
	struct snapshot_repo *repo;
	struct snapshot_writer *writer;
};

static inline void world_volume(struct world *w, uint64_t size, unsigned keep_last,
				uint64_t pack_bytes)
{
	struct snapshot_writer_config config = {
		.node_name = "node", .policy = {.last = keep_last}, .pack_bytes = pack_bytes};

	w->v = fake_volume(w->env, size, 0x11);
	w->m = memory_store(w->env);
	w->repo = snapshot_repo_new(&w->m->store, &w->v->state.uuid);
	w->writer = snapshot_writer_new(w->v, w->repo, &config);
}

static inline void world_drop(struct world *w)
{
	writer_free(w->env, w->writer);
	snapshot_repo_free(w->repo);
	store_close(&w->m->store);
	fake_volume_free(w->v);
	w->v = NULL;
}

static int world_setup(void **state, enum env_backend backend)
{
	struct world *w = calloc(1, sizeof(*w));

	if (!backend_begin(backend, "/tmp/offsite-snapshot-XXXXXX", &w->env, w->dir)) {
		free(w);
		*state = NULL;
		return 0;
	}
	*state = w;
	return 0;
}

SETUP_ON_BOTH(world_setup)

static inline int world_teardown(void **state)
{
	struct world *w = *state;

	if (!w)
		return 0;
	if (w->v)
		world_drop(w);
	backend_end(w->env, w->dir);
	free(w);
	return 0;
}

#define ON_BOTH(test)                                                    \
	{#test " (io_uring)", test, setup_uring, world_teardown, NULL},  \
	{                                                                \
#test " (libaio)", test, setup_aio, world_teardown, NULL \
	}

static inline double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Of all threads; whatever runs beside does not count. */
static inline double cpu_seconds(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
	       1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

#endif
