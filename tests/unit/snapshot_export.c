/* SPDX-License-Identifier: Apache-2.0 */
/* A snapshot as a block device: what clients read, what damage and a stop do to them. */
#include "tests/unit/snapshot_fixture.h"

#include "daemon/snapshot/diff.h"
#include "daemon/snapshot/export.h"

struct opened {
	bool done;
	struct snapshot_export *export;
	int error;
};

static void export_opened(void *context, struct snapshot_export *export, int error, const char *why)
{
	struct opened *o = context;

	assert_int_equal(error != 0, why[0] != 0);
	*o = (struct opened){true, export, error};
}

static struct opened open_export(struct world *w, const struct snapshot_info *info)
{
	struct opened o = {.done = false};

	snapshot_export_open(w->repo, "v", info, export_opened, &o);
	env_run_until(w->env, &o.done);
	return o;
}

static void export_closed(void *context)
{
	*(bool *)context = true;
}

static void close_export(struct world *w, struct snapshot_export *export)
{
	bool closed = false;

	snapshot_export_close(export, export_closed, &closed);
	env_run_until(w->env, &closed);
}

struct reading {
	struct block_request request;
	bool done;
	int error;
};

static void read_done(struct block_request *request, int error)
{
	struct reading *r = (struct reading *)request;

	assert_false(r->done);
	r->done = true;
	r->error = error;
}

static void begin_read(struct block *block, struct reading *r, struct buf *buf, uint64_t offset,
		       uint64_t length)
{
	*r = (struct reading){.request = {.op = BLOCK_READ,
					  .offset_bytes = offset,
					  .length_bytes = length,
					  .buf = buf,
					  .done = read_done}};
	block->ops->submit(block, &r->request);
}

static int read_one(struct world *w, struct block *block, struct buf *buf, uint64_t offset,
		    uint64_t length)
{
	struct reading r;

	begin_read(block, &r, buf, offset, length);
	env_run_until(w->env, &r.done);
	return r.error;
}

static void assert_content(const struct volume *v, const uint8_t *data, uint64_t offset,
			   uint64_t length)
{
	for (uint64_t i = 0; i < length; i++) {
		uint64_t at = offset + i;
		const uint8_t *chunk = v->data[at / CHUNK];

		if (data[i] != (chunk ? chunk[at % CHUNK] : 0))
			fail_msg("byte %llu differs", (unsigned long long)at);
	}
}

static struct snapshot_info some_snapshot(struct world *w)
{
	world_volume(w, 300ull << 20, 0, 1 << 20);
	for (unsigned i = 0; i < 40; i++)
		fake_fill(w->v, i * 97 % w->v->chunks, i + 1);
	fake_fill(w->v, 1, 77);
	fake_fill(w->v, 2, 78);
	return create(w->env, w->writer, "word").result.info;
}

static struct buf_pool *pool_of(struct buf **buf)
{
	const unsigned counts[3] = {0, 0, 4};
	struct buf_pool *pool = buf_pool_new(counts);

	*buf = buf_alloc(pool, BUF_SIZE_MAX);
	assert_non_null(*buf);
	return pool;
}

static void reads_what_was(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_info info = some_snapshot(w);
	struct opened o = open_export(w, &info);
	struct block *by_id = snapshot_export_block(o.export, false);
	struct block *latest = snapshot_export_block(o.export, true);
	struct block_request write = {.op = BLOCK_WRITE, .length_bytes = 512};
	struct reading *refused = (struct reading *)&(struct reading){.request = write};
	struct block_info a, b;
	struct buf *buf;
	struct buf_pool *pool = pool_of(&buf);
	uint32_t random = 5;

	assert_int_equal(o.error, 0);
	assert_int_equal(strncmp(by_id->name, "v@", 2), 0);
	assert_int_equal(strlen(by_id->name), 34);
	assert_non_null(strstr(by_id->description, "word"));
	by_id->ops->info(by_id, &a);
	latest->ops->info(latest, &b);
	assert_true(a.read_only && b.read_only && a.can_multi_conn && !b.can_multi_conn);
	assert_int_equal(a.size_bytes, 300ull << 20);
	for (unsigned i = 0; i < 60; i++) {
		uint64_t offset, length;

		random = random * 1664525u + 1013904223u;
		offset = (uint64_t)random % (a.size_bytes - BUF_SIZE_MAX);
		length = 1 + random / 7 % BUF_SIZE_MAX;
		if (i < 20) /* where there is something */
			offset = i * 97 % w->v->chunks * CHUNK - (i % 2 && i ? 100 : 0);
		assert_int_equal(read_one(w, by_id, buf, offset, length), 0);
		assert_content(w->v, buf->data, offset, length);
	}
	refused->request.done = read_done;
	by_id->ops->submit(by_id, &refused->request);
	assert_int_equal(refused->error, -EPERM);
	assert_int_equal(read_one(w, by_id, buf, a.size_bytes - 10, 11), -EINVAL);
	buf_put(buf);
	buf_pool_free(pool);
	close_export(w, o.export);
}

struct status {
	struct block_status status;
	struct block_extent extents[64];
	bool done;
	int error;
};

static void status_done(struct block_status *status, int error)
{
	((struct status *)status)->done = true;
	((struct status *)status)->error = error;
}

static void begin_status(struct block *block, struct status *s, uint64_t offset, uint64_t length)
{
	*s = (struct status){.status = {.offset_bytes = offset,
					.length_bytes = length,
					.extents = s->extents,
					.max = 64,
					.done = status_done}};
	block->ops->status(block, &s->status);
}

static void says_where_holes_are(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_info info = some_snapshot(w);
	struct opened o = open_export(w, &info);
	struct block *block = snapshot_export_block(o.export, false);
	uint64_t at = 4096;
	struct status s;

	while (at < info.size_bytes) {
		begin_status(block, &s, at, info.size_bytes - at);
		env_run_until(w->env, &s.done);
		assert_int_equal(s.error, 0);
		assert_true(s.status.count > 0);
		for (unsigned i = 0; i < s.status.count; i++) {
			uint64_t end = at + s.extents[i].length_bytes;

			assert_int_equal(s.extents[i].hole, s.extents[i].zero);
			for (; at < end; at = (at / CHUNK + 1) * CHUNK)
				assert_int_equal(s.extents[i].hole, !w->v->data[at / CHUNK]);
			at = end;
		}
	}
	close_export(w, o.export);
}

static void damage_fails_what_it_hits(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_info info = some_snapshot(w);
	struct opened o = open_export(w, &info);
	struct block *block = snapshot_export_block(o.export, false);
	unsigned failed = 0, fine = 0;
	struct buf *buf;
	struct buf_pool *pool = pool_of(&buf);

	for (unsigned i = 0, hit = 0; i < w->m->count && !hit; i++)
		if (strstr(w->m->objects[i].name, "/packs/")) {
			w->m->objects[i].data[128 + 5] ^= 1;
			hit = 1;
		}
	for (unsigned i = 0; i < 40; i++) {
		uint64_t chunk = i * 97 % w->v->chunks;
		int error = read_one(w, block, buf, chunk * CHUNK, 4096);

		assert_true(!error || error == -EIO);
		failed += error != 0;
		fine += error == 0;
		if (!error)
			assert_content(w->v, buf->data, chunk * CHUNK, 4096);
	}
	assert_int_equal(failed, 1);
	assert_int_equal(fine, 39);
	buf_put(buf);
	buf_pool_free(pool);
	close_export(w, o.export);
}

/* With reads and questions under way, at each turn. */
static void stopped_at_any_time(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_info info = some_snapshot(w);
	struct buf *buf;
	struct buf_pool *pool = pool_of(&buf);

	for (unsigned turns = 0; turns < 6; turns++) {
		struct opened o = open_export(w, &info);
		struct block *block = snapshot_export_block(o.export, false);
		char why[64] = "";
		struct reading r[4];
		struct status s;

		assert_int_equal(block->ops->open(block, why, sizeof(why)), 0);
		assert_int_equal(snapshot_export_clients(o.export), 1);
		for (unsigned i = 0; i < 4; i++)
			begin_read(block, &r[i], buf, i * 97 * CHUNK, 4096);
		begin_status(block, &s, 0, info.size_bytes);
		for (unsigned i = 0; i < turns; i++) {
			struct late *late = late_new(w->env);
			bool turn = false;

			late->call = export_closed;
			late->context = &turn;
			env_run_until(w->env, &turn);
		}
		snapshot_export_stop(o.export);
		for (unsigned i = 0; i < 4; i++) {
			env_run_until(w->env, &r[i].done);
			assert_true(!r[i].error || r[i].error == -ESHUTDOWN);
		}
		assert_true(s.done);
		assert_int_equal(read_one(w, block, buf, 0, 4096), -ESHUTDOWN);
		begin_status(block, &s, 0, 4096);
		assert_int_equal(s.error, -ESHUTDOWN);
		block->ops->close(block);
		assert_int_equal(block->ops->open(block, why, sizeof(why)), -ESHUTDOWN);
		close_export(w, o.export);
	}
	buf_put(buf);
	buf_pool_free(pool);
}

static void kept_as_long_as_it_is_used(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_info info = some_snapshot(w), other;
	struct opened o = open_export(w, &info);

	other = create(w->env, w->writer, "").result.info;
	assert_int_equal(delete (w->env, w->repo, &info.id).result.error, -EBUSY);
	assert_false(snapshot_export_keep(o.export, false));
	assert_true(snapshot_export_keep(o.export, true));
	assert_int_equal(delete (w->env, w->repo, &info.id).result.error, -EBUSY);
	snapshot_export_keep(o.export, false);
	assert_int_equal(delete (w->env, w->repo, &info.id).result.error, 0);
	assert_false(snapshot_export_keep(o.export, true));
	close_export(w, o.export);
	assert_int_equal(open_export(w, &info).error, -ENOENT);
	o = open_export(w, &other);
	assert_int_equal(o.error, 0);
	close_export(w, o.export);
	memory_fail(w->m, OP_ALL, 1, -EIO, MEMORY_ONCE);
	assert_int_equal(open_export(w, &other).error, -EIO);
	assert_int_equal(delete (w->env, w->repo, &other.id).result.error,
			 0); /* nothing holds it */
}

/* Held at any moment of a deletion: either it cannot be, or nothing that it needs goes until it is let go. */
static void held_during_a_deletion(void **state)
{
	struct world *w = world_of(state);
	const struct retention_policy policy = {.last = 1};
	unsigned held = 0, gone = 0;
	struct buf *buf;
	struct buf_pool *pool = pool_of(&buf);

	for (unsigned turns = 0; turns < 40; turns++) {
		struct waited d = {.done = false};
		struct snapshot_info a;
		uint8_t content[4096];
		struct opened o;

		world_volume(w, 1ull << 30, 0, 0);
		fake_fill(w->v, 5, 1);
		memcpy(content, w->v->data[5], sizeof(content));
		a = create(w->env, w->writer, "").result.info;
		fake_fill(w->v, 5, 2);
		create(w->env, w->writer, "");
		if (turns % 2)
			snapshot_delete(w->repo, &a.id, waited_done, &d);
		else
			snapshot_forget(w->repo, &policy, false, NULL, waited_done, &d);
		for (unsigned i = 0; i < turns / 2; i++) {
			struct late *late = late_new(w->env);
			bool turn = false;

			late->call = export_closed;
			late->context = &turn;
			env_run_until(w->env, &turn);
		}
		if (snapshot_hold(w->repo, &a.id)) {
			held++;
			env_run_until(w->env, &d.done);
			o = open_export(w, &a);
			assert_int_equal(o.error, 0);
			assert_int_equal(read_one(w, snapshot_export_block(o.export, false), buf,
						  5 * CHUNK, sizeof(content)),
					 0);
			assert_memory_equal(buf->data, content, sizeof(content));
			close_export(w, o.export);
			snapshot_unhold(w->repo, &a.id);
		} else {
			gone++;
			env_run_until(w->env, &d.done);
		}
		delete (w->env, w->repo, &a.id);
		collect(w->env, w->repo);
		assert_int_equal(open_export(w, &a).error, -ENOENT);
		assert_int_equal(list(w->env, w->repo).listed, 1);
		world_drop(w);
	}
	if (held <= 1 || gone <= 1)
		fail_msg("held %u, gone %u", held, gone);
	buf_put(buf);
	buf_pool_free(pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH(reads_what_was),
		ON_BOTH(says_where_holes_are),
		ON_BOTH(damage_fails_what_it_hits),
		ON_BOTH(stopped_at_any_time),
		ON_BOTH(kept_as_long_as_it_is_used),
		ON_BOTH(held_during_a_deletion),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
