/* SPDX-License-Identifier: Apache-2.0 */
/* time limit: 300 s */
/* Snapshots of a volume in memory: what is stored, what comes back, what it costs, what is deleted. */
#include "tests/unit/snapshot_fixture.h"

#include <fcntl.h>
#include <sys/stat.h>

/* The file holds exactly what the volume holds now. */
static void assert_same(const struct volume *v, const char *path)
{
	uint8_t data[CHUNK];
	struct stat st;
	int fd = open(path, O_RDONLY);

	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, v->size);
	for (uint64_t i = 0; i < v->chunks; i++) {
		size_t length = v->size - i * CHUNK < CHUNK ? v->size - i * CHUNK : CHUNK;

		assert_int_equal(pread(fd, data, length, (off_t)(i * CHUNK)), length);
		if (memcmp(data, v->data[i] ? v->data[i] : zero_chunk, length))
			fail_msg("chunk %llu differs", (unsigned long long)i);
	}
	close(fd);
}

static void check_restore(struct world *w, const struct id128 *id, const char *name)
{
	char path[128];
	struct waited r;

	snprintf(path, sizeof(path), "%s/%s", w->dir, name);
	r = restore_file(w->env, w->repo, id, path, false);
	assert_string_equal(r.result.why, "");
	assert_same(w->v, path);
	assert_int_equal(unlink(path), 0);
}

static void fill_some(struct world *w, unsigned count, uint64_t seed)
{
	for (unsigned i = 0; i < count; i++)
		fake_fill(w->v, (seed * 7919 + i * 13) % w->v->chunks, seed * 1000 + i);
}

static void content_comes_back(void **state)
{
	struct world *w = world_of(state);
	struct waited c;

	world_volume(w, 200 * 1024 * 1024 + 4096 * 3, 0, 1 << 20);
	fill_some(w, 300, 1);
	fake_fill(w->v, w->v->chunks - 1, 99); /* the last, shorter one */
	memset(w->v->data[w->v->chunks - 1] + 4096 * 3, 0, CHUNK - 4096 * 3);
	c = create(w->env, w->writer, "first");
	assert_string_equal(c.result.why, "");
	assert_string_equal(c.result.info.label, "first");
	assert_int_equal(c.result.info.sequence, 1);
	assert_true(id128_equal(&w->v->state.snapshot, &c.result.info.id));
	check_restore(w, NULL, "whole");
	assert_int_equal(verify(w->env, w->repo).bad, 0);
}

/* Requests take MiBs, whatever order chunks got their places in; what one did not bring is asked for again. */
static void what_lies_together_comes_together(void **state)
{
	struct world *w = world_of(state);
	struct waited r;
	char path[128];
	unsigned gets, failed = 0;

	world_volume(w, 128 << 20, 0, 0);
	for (unsigned i = 0; i < w->v->chunks; i++)
		fake_fill(w->v, i, i);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	gets = w->m->gets;
	check_restore(w, NULL, "whole");
	gets = w->m->gets - gets;
	print_message("128 MiB in %u requests\n", gets);
	assert_true(gets <= 128 / 8 * 3 / 2 + 1 + 2); /* the manifest, two pages */
	gets = w->m->gets;
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	assert_true(w->m->gets - gets <= 128 / 8 * 2 + 1 + 2 + 3 * w->m->count);
	for (unsigned k = 1; k < 9; k++) {
		snprintf(path, sizeof(path), "%s/k%u", w->dir, k);
		memory_fail(w->m, OP_GET, k, -EIO, MEMORY_ONCE);
		r = restore_file(w->env, w->repo, NULL, path, false);
		failed += r.result.error != 0;
		if (!r.result.error)
			assert_same(w->v, path);
	}
	assert_true(failed > 0 && failed <= 3); /* the manifest, the pages */
	/* All over a newer one, of which most lies in the older one's packs. */
	for (unsigned i = 0; i < w->v->chunks; i += 3)
		fake_fill(w->v, i, 5000 + i);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	gets = w->m->gets;
	check_restore(w, NULL, "newer");
	gets = w->m->gets - gets;
	print_message("128 MiB out of the packs of two snapshots in %u requests\n", gets);
	assert_true(gets <= 150); /* not one for each run of a chunk or two */
	assert_int_equal(verify(w->env, w->repo).bad, 0);
}

/* Puts that take their time, and how many packs' were under way at once. */
static struct {
	const struct store_ops *plain;
	unsigned now, most, awaited; /* packs at a time */
} slow;

struct slow_put {
	struct env_timer timer;
	struct env_op op, *user;
	struct env *env;
	int64_t result;
	unsigned fired;
	bool pack;
};

static void slow_put_ends(struct env_timer *timer)
{
	struct slow_put *put = (struct slow_put *)timer;

	/* The next packs may take longer than this to be made. */
	if (put->pack && slow.most < slow.awaited && ++put->fired < 150) {
		env_timer_start(put->env, timer, 200000000);
		return;
	}
	slow.now -= put->pack;
	put->user->done(put->user, put->result);
	free(put);
}

static void slow_put_stored(struct env_op *op, int64_t result)
{
	struct slow_put *put = (struct slow_put *)((char *)op - offsetof(struct slow_put, op));

	put->result = result;
	env_timer_start(put->env, &put->timer, 200000000);
}

static void slow_put(struct store *store, struct env_op *op, const char *name,
		     const struct iovec *iov, unsigned count)
{
	struct slow_put *put = calloc(1, sizeof(*put));

	put->timer.fire = slow_put_ends;
	put->op.done = slow_put_stored;
	put->user = op;
	put->env = store->env;
	put->pack = strstr(name, "/packs/") != NULL;
	slow.now += put->pack;
	if (slow.now > slow.most)
		slow.most = slow.now;
	slow.plain->put(store, &put->op, name, iov, count);
}

static void packs_are_put_side_by_side(void **state)
{
	struct world *w = world_of(state);
	struct store_ops ops;

	for (unsigned service = 0; service < 2; service++) {
		world_volume(w, 48 << 20, 0, 2 << 20);
		slow.plain = w->m->store.ops;
		slow.most = 0;
		slow.awaited = service ? 4 : 2;
		ops = *slow.plain;
		ops.put = slow_put;
		w->m->store.ops = &ops;
		w->m->store.lists_cost = service;
		for (unsigned i = 0; i < w->v->chunks; i++)
			fake_fill(w->v, i, i);
		assert_int_equal(create(w->env, w->writer, "").result.error, 0);
		/* The last one, which is not full, waits for no other. */
		assert_in_range(slow.most, slow.awaited, slow.awaited + 1);
		assert_int_equal(verify(w->env, w->repo).bad, 0);
		world_drop(w);
	}
}

static void empty_volume(void **state)
{
	struct world *w = world_of(state);

	world_volume(w, 1 << 20, 0, 0);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	assert_int_equal(w->m->count, 1);
	check_restore(w, NULL, "empty");
}

static void only_changes_are_stored(void **state)
{
	struct world *w = world_of(state);
	struct waited c;
	unsigned packs, maps, manifests, gets;
	uint64_t put;

	world_volume(w, 256ull << 20, 0, 0);
	for (unsigned i = 0; i < 1024; i++)
		fake_fill(w->v, i * 4, i);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	put = w->m->put_bytes;
	gets = w->m->gets;
	fake_fill(w->v, 8, 100001);
	fake_fill(w->v, 9, 100002);
	fake_write(w->v, 12, NULL); /* now zero */
	fake_fill(w->v, 16, 4);     /* the same as before */
	c = create(w->env, w->writer, "");
	assert_int_equal(c.result.error, 0);
	assert_int_equal(c.result.info.changed_bytes, 4 * CHUNK);
	assert_int_equal(c.result.info.objects, 3);
	assert_true(w->m->put_bytes - put < 3 * CHUNK + 100000);
	assert_true(w->m->gets - gets <= 2); /* the manifest, one map page */
	memory_count(w->m, &packs, &maps, &manifests);
	assert_int_equal(manifests, 2);
	check_restore(w, NULL, "second");
	c = create(w->env, w->writer, ""); /* nothing changed */
	assert_int_equal(c.result.info.objects, 1);
	check_restore(w, NULL, "third");
	assert_int_equal(verify(w->env, w->repo).bad, 0);
}

struct overwriter {
	struct volume *v;
	uint8_t *image[64];
};

static void overwrite_now(struct memory_store *m, const char *name)
{
	struct overwriter *o = m->context;

	if (strstr(name, "/claims/")) /* it is put before the cut */
		return;
	for (unsigned i = 0; i < 64; i++)
		fake_fill(o->v, i, 5000 + i);
}

/* What was written up to the cut is in it, what comes behind it is not. */
static void write_around_cut(void *context, struct snapshot_writer *writer)
{
	struct world *w = context;

	for (unsigned i = 0; i < 64; i += 2)
		fake_fill(w->v, i, 500 + i);
	assert_int_equal(snapshot_cut(writer, 0, ""), 0);
	for (unsigned i = 0; i < 64; i += 2)
		fake_fill(w->v, i, 1000 + i);
}

static void a_snapshot_is_one_instant(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_writer_config config = {
		.pack_bytes = 128 << 10, .prepare = write_around_cut, .prepare_context = w};
	struct id128 id;

	world_volume(w, 64 * CHUNK, 0, 128 << 10);
	for (unsigned i = 0; i < 64; i++)
		fake_fill(w->v, i, i);
	writer_free(w->env, w->writer);
	w->writer = snapshot_writer_new(w->v, w->repo, &config);
	struct waited first = create(w->env, w->writer, "");
	assert_int_equal(first.result.error, 0);
	id = first.result.info.id;
	writer_free(w->env, w->writer);
	w->writer = snapshot_writer_new(w->v, w->repo,
					&(struct snapshot_writer_config){.pack_bytes = 128 << 10});
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	check_restore(w, NULL, "new");
	for (unsigned i = 0; i < 64; i += 2)
		fake_fill(w->v, i, 500 + i);
	check_restore(w, &id, "old");
	/* Again, with the writes in the middle. */
	w->m->context = &(struct overwriter){.v = w->v};
	w->m->on_put = overwrite_now;
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	w->m->on_put = NULL;
	for (unsigned i = 0; i < 64; i++)
		fake_fill(w->v, i, i);
	for (unsigned i = 0; i < 64; i += 2)
		fake_fill(w->v, i, 500 + i);
	check_restore(w, NULL, "middle");
}

struct asked {
	struct snapshot_writer *writer;
	bool done;
};

static void prepare_later(void *context, struct snapshot_writer *writer)
{
	*(struct asked *)context = (struct asked){writer, true};
}

static struct snapshot_writer *create_up_to_cut(struct world *w, struct asked *asked,
						struct waited *waited)
{
	*asked = (struct asked){.done = false};
	*waited = (struct waited){.done = false};
	snapshot_create(w->writer, "", waited_done, waited);
	env_run_until(w->env, &asked->done);
	return asked->writer;
}

static void set_done(struct env_timer *timer)
{
	*(bool *)(timer + 1) = true;
}

/* Who prepares may refuse, and may take his time while the writer is stopped. */
static void what_prepares_for_the_cut(void **state)
{
	struct world *w = world_of(state);
	struct asked asked;
	struct snapshot_writer_config config = {.prepare = prepare_later,
						.prepare_context = &asked};
	struct snapshot_writer *writer;
	struct waited first, freed = {.done = false};
	struct {
		struct env_timer timer;
		bool done;
	} pause = {.timer.fire = set_done};

	world_volume(w, 16 << 20, 0, 0);
	fill_some(w, 20, 1);
	writer_free(w->env, w->writer);
	w->writer = snapshot_writer_new(w->v, w->repo, &config);
	writer = create_up_to_cut(w, &asked, &first);
	fill_some(w, 40, 2);
	assert_int_equal(snapshot_cut(writer, -EPERM, "not now"), -EPERM);
	env_run_until(w->env, &first.done);
	assert_int_equal(first.result.error, -EPERM);
	assert_string_equal(first.result.why, "not now");
	assert_int_equal(list(w->env, w->repo).listed, 0);
	/* The disk is not what it was when it began. */
	writer = create_up_to_cut(w, &asked, &first);
	w->v->state.disk = VOLUME_DISK_INCONSISTENT;
	assert_int_equal(snapshot_cut(writer, 0, ""), -EPERM);
	env_run_until(w->env, &first.done);
	w->v->state.disk = VOLUME_DISK_UPTODATE;
	/* Stopped meanwhile. */
	writer = create_up_to_cut(w, &asked, &first);
	snapshot_writer_free(w->writer, waited_freed, &freed);
	env_timer_start(w->env, &pause.timer, 5000000);
	env_run_until(w->env, &pause.done);
	assert_false(freed.done);
	assert_int_equal(snapshot_cut(writer, 0, ""), -ECANCELED);
	env_run_until(w->env, &freed.done);
	assert_int_equal(first.result.error, -ECANCELED);
	w->writer = snapshot_writer_new(w->v, w->repo, &(struct snapshot_writer_config){0});
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	check_restore(w, NULL, "then");
}

static void huge_volume_small_change(void **state)
{
	struct world *w = world_of(state);
	double start, took;
	struct waited c;

	world_volume(w, 1ull << 40, 0, 0);
	for (unsigned i = 0; i < 3000; i++)
		fake_fill(w->v, (uint64_t)i * 5000, i);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	for (unsigned i = 0; i < 160; i++)
		fake_fill(w->v, (uint64_t)i * 100003 % w->v->chunks, 77 + i);
	start = cpu_seconds();
	c = create(w->env, w->writer, "");
	took = cpu_seconds() - start;
	assert_int_equal(c.result.error, 0);
	print_message(
		"10 MiB changed of 1 TiB: %.3f s of the processor (the test's volume included)\n",
		took);
	assert_true(took < 2.0); /* sanitizers included */
	assert_int_equal(verify(w->env, w->repo).bad, 0);
}

/* All of it is marked, and nearly all of it holes. */
static void holes_cost_a_step_each(void **state)
{
	struct world *w = world_of(state);
	double start, took;

	world_volume(w, 1ull << 40, 0, 0);
	for (unsigned i = 0; i < 100; i++)
		fake_fill(w->v, (uint64_t)i * 160003 + 5, i);
	volume_mark_all(w->v, VOLUME_STORE, false);
	start = seconds();
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	took = seconds() - start;
	print_message("1 TiB of holes: %u reads, %.1f s (the test's volume included)\n",
		      w->v->cut_reads, took);
	assert_true(w->v->cut_reads <= (1ull << 40) / SNAPFMT_PAGE_BYTES + 100 * 4);
	assert_true(w->v->stats.cut_read_bytes <= 100 << 20);
	assert_int_equal(list(w->env, w->repo).infos[0].data_bytes, 100 * CHUNK);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
}

/* While it is asked whether there is a hole at chunk 100: data comes into it and some goes out of the cut's data;
 * both belong to what comes later. */
static void write_into_hole(struct volume *v, const struct volume_cut_read *read)
{
	uint64_t first = read->offset_bytes / CHUNK;

	if (read->buf || first != 100 || v->applied++)
		return;
	fake_fill(v, first + 7, 4711);
	fake_write(v, first + read->length_bytes / CHUNK + 1, NULL);
}

static void holes_are_as_of_the_cut(void **state)
{
	struct world *w = world_of(state);
	struct id128 id;

	world_volume(w, 256 << 20, 0, 0);
	for (unsigned i = 0; i < w->v->chunks; i++)
		fake_fill(w->v, i, i);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	/* What was data in the snapshot before is none. */
	for (unsigned i = 100; i < 700; i++)
		fake_write(w->v, i, NULL);
	for (unsigned i = 1500; i < 3000; i++)
		fake_write(w->v, i, NULL);
	w->v->on_cut_read = write_into_hole;
	id = create(w->env, w->writer, "").result.info.id;
	w->v->on_cut_read = NULL;
	assert_true(w->v->applied > 0);
	fake_write(w->v, 107, NULL);
	fake_fill(w->v, 701, 701);
	check_restore(w, &id, "cut");
	assert_int_equal(verify(w->env, w->repo).bad, 0);
}

static void many_changes_few_objects(void **state)
{
	struct world *w = world_of(state);
	unsigned packs, maps, manifests;

	world_volume(w, 4ull << 30, 0, 0);
	for (unsigned i = 0; i < 10000; i++)
		fake_fill(w->v, (uint64_t)i * 6 % w->v->chunks, i);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	memory_count(w->m, &packs, &maps, &manifests);
	print_message("10,000 chunks: %u packs, %u maps\n", packs, maps);
	assert_true(w->m->count <= 50);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
}

static void delete_gives_space_back(void **state)
{
	struct world *w = world_of(state);
	struct id128 ids[4];
	struct waited d;
	unsigned packs, maps, manifests, before;

	world_volume(w, 64 << 20, 0, 1 << 20);
	for (unsigned s = 0; s < 4; s++) {
		struct waited c;

		fill_some(w, 50, s);
		c = create(w->env, w->writer, "");
		assert_int_equal(c.result.error, 0);
		ids[s] = c.result.info.id;
	}
	before = w->m->count;
	d = delete (w->env, w->repo, &ids[1]);
	assert_string_equal(d.result.why, "");
	assert_true(d.result.freed_bytes > 0);
	assert_int_equal(d.result.deleted_objects, before - w->m->count);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	check_restore(w, NULL, "newest");
	assert_int_equal(delete (w->env, w->repo, &ids[1]).result.error, -ENOENT);
	assert_int_equal(delete (w->env, w->repo, &ids[3]).result.error, 0);
	fake_fill(w->v, 5, 12345); /* the newest is gone: the next compares by hash */
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	check_restore(w, NULL, "after");
	for (struct waited l = list(w->env, w->repo); l.listed; l = list(w->env, w->repo))
		assert_int_equal(delete (w->env, w->repo, &l.infos[0].id).result.error, 0);
	memory_count(w->m, &packs, &maps, &manifests);
	assert_int_equal(packs + maps + manifests, 0);
}

static void keep_last(void **state)
{
	struct world *w = world_of(state);

	world_volume(w, 64 << 20, 2, 1 << 20);
	for (unsigned s = 0; s < 5; s++) {
		fill_some(w, 60, s);
		assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	}
	assert_int_equal(list(w->env, w->repo).listed, 2);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	assert_int_equal(collect(w->env, w->repo).result.deleted_objects, 0);
	check_restore(w, NULL, "kept");
}

/* What the loser of a split brain had takes no other's place. */
static void given_up(void **state)
{
	struct world *w = world_of(state);
	const struct id128 common = {{0}};
	struct waited waited = {};

	world_volume(w, 64 << 20, 1, 1 << 20);
	fill_some(w, 60, 0);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	fill_some(w, 60, 1);
	snapshot_create_given_up(w->writer, "beta", &common, waited_done, &waited);
	env_run_until(w->env, &waited.done);
	assert_int_equal(waited.result.error, 0);
	assert_string_equal(waited.result.info.label, "given up for beta");
	assert_int_equal(list(w->env, w->repo).listed, 2);
	check_restore(w, &waited.result.info.id, "given up");
}

/* Another node writes in between: nothing may be taken over unseen. */
static void another_writer(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_writer_config config = {.node_name = "other"};
	struct volume *other;
	struct snapshot_writer *writer;

	world_volume(w, 64 << 20, 0, 0);
	other = fake_volume(w->env, 64 << 20, 0x11);
	writer = snapshot_writer_new(other, w->repo, &config);
	fill_some(w, 100, 1);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	fake_fill(other, 3, 3);
	assert_int_equal(create(w->env, writer, "").result.error, 0);
	fake_fill(w->v, 50, 50);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	check_restore(w, NULL, "own");
	writer_free(w->env, writer);
	fake_volume_free(other);
}

struct meddler {
	struct world *w;
	struct waited waited;
	struct id128 id;
	struct snapshot_writer *writer;
	bool on;
};

static void delete_base_now(struct memory_store *m, const char *name)
{
	struct meddler *d = m->context;

	if (!d->on || !strstr(name, "/packs/"))
		return;
	d->on = false;
	snapshot_delete(d->w->repo, &d->id, waited_done, &d->waited);
}

/* The snapshot compared with is deleted while the new one relies on it: what that needs stays. */
static void base_deleted_meanwhile(void **state)
{
	struct world *w = world_of(state);
	struct meddler d = {.w = w, .on = true};
	struct waited c;

	world_volume(w, 64 << 20, 0, 1 << 20);
	fill_some(w, 100, 1);
	d.id = create(w->env, w->writer, "").result.info.id;
	fill_some(w, 40, 2);
	w->m->context = &d;
	w->m->on_put = delete_base_now;
	c = create(w->env, w->writer, "");
	assert_string_equal(c.result.why, "");
	env_run_until(w->env, &d.waited.done);
	assert_string_equal(d.waited.result.why, "");
	assert_int_equal(list(w->env, w->repo).listed, 1);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	check_restore(w, NULL, "new");
	/* What it alone needed goes with the next deletion. */
	assert_true(collect(w->env, w->repo).result.deleted_objects > 0);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
}

/* Deleted between the look at it and the claim: the one before is taken instead. */
static void delete_base_before_claim(struct memory_store *m, const char *name)
{
	struct meddler *d = m->context;
	struct snapfmt_ref ref = {d->id, 2, 0};
	char mark[SNAPFMT_NAME_BYTES];
	struct memory_object *o;

	if (!d->on || !strstr(name, "/claims/"))
		return;
	d->on = false;
	snapfmt_mark_name(&d->w->v->state.uuid, &ref, mark);
	o = &m->objects[m->count++];
	*o = (struct memory_object){strdup(mark), malloc(1), 0};
	for (; o > m->objects && strcmp(o[-1].name, o->name) > 0; o--) {
		struct memory_object other = o[-1];

		o[-1] = *o;
		*o = other;
	}
}

static void base_deleted_before_the_claim(void **state)
{
	struct world *w = world_of(state);
	struct meddler d = {.w = w, .on = true};

	world_volume(w, 64 << 20, 0, 1 << 20);
	fill_some(w, 100, 1);
	create(w->env, w->writer, "");
	fill_some(w, 10, 2);
	d.id = create(w->env, w->writer, "").result.info.id;
	fill_some(w, 40, 3);
	w->m->context = &d;
	w->m->on_put = delete_base_before_claim;
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	assert_false(d.on);
	assert_int_equal(list(w->env, w->repo).listed, 2);
	assert_int_equal(collect(w->env, w->repo).result.error, 0);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	check_restore(w, NULL, "new");
	for (unsigned i = 0; i < w->m->count; i++)
		assert_null(strstr(w->m->objects[i].name, "/claims/"));
}

static void write_elsewhere_now(struct memory_store *m, const char *name)
{
	struct meddler *d = m->context;

	if (!d->on || !strstr(name, "/packs/"))
		return;
	d->on = false;
	snapshot_create(d->writer, "", waited_done, &d->waited);
}

/* Two nodes at once: each snapshot that is listed afterwards is whole. */
static void two_writers_at_once(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_writer_config config = {.node_name = "other", .policy = {.last = 1}};
	struct volume *other;
	struct meddler d = {.w = w, .on = true};

	world_volume(w, 64 << 20, 0, 256 << 10);
	other = fake_volume(w->env, 64 << 20, 0x11);
	fake_fill(other, 1, 1);
	d.writer = snapshot_writer_new(other, w->repo, &config);
	fill_some(w, 100, 1);
	w->m->context = &d;
	w->m->on_put = write_elsewhere_now;
	create(w->env, w->writer, "");
	env_run_until(w->env, &d.waited.done);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	check_restore(w, NULL, "mine");
	writer_free(w->env, d.writer);
	fake_volume_free(other);
}

static void lost_cut(void **state)
{
	struct world *w = world_of(state);
	struct waited c;

	world_volume(w, 16 << 20, 0, 0);
	fill_some(w, 100, 1);
	w->v->lose_cut = true;
	c = create(w->env, w->writer, "");
	assert_int_equal(c.result.error, -ENOSPC);
	assert_non_null(strstr(c.result.why, "preserve-max"));
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	check_restore(w, NULL, "then");
}

static void grown_volume(void **state)
{
	struct world *w = world_of(state);
	struct volume *old;

	world_volume(w, 3 * CHUNK + 4096, 0, 0);
	fill_some(w, 4, 1);
	memset(w->v->data[3] + 4096, 0, CHUNK - 4096);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	old = w->v;
	w->v = fake_volume(w->env, 80 << 20, 0x11);
	w->v->state = old->state;
	for (unsigned i = 0; i < 4; i++)
		fake_write(w->v, i, old->data[i]);
	memset(w->v->dirty, 0, w->v->chunks / 8 + 1);
	writer_free(w->env, w->writer);
	w->writer = snapshot_writer_new(w->v, w->repo, &(struct snapshot_writer_config){0});
	fake_volume_free(old);
	fake_fill(w->v, 1100, 1);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	check_restore(w, NULL, "grown");
	assert_int_equal(verify(w->env, w->repo).bad, 0);
}

static void refusals(void **state)
{
	struct world *w = world_of(state);
	struct waited first = {.done = false}, c;
	struct id128 nobody = {{9}};

	world_volume(w, 16 << 20, 0, 0);
	fake_fill(w->v, 1, 1);
	snapshot_create(w->writer, "", waited_done, &first);
	c = create(w->env, w->writer, "");
	assert_int_equal(c.result.error, -EBUSY);
	env_run_until(w->env, &first.done);
	assert_int_equal(first.result.error, 0);
	w->v->state.role = VOLUME_SECONDARY;
	assert_int_equal(create(w->env, w->writer, "").result.error, -EPERM);
	w->v->state.role = VOLUME_PRIMARY;
	w->v->state.disk = VOLUME_DISK_INCONSISTENT;
	assert_int_equal(create(w->env, w->writer, "").result.error, -EPERM);
	w->v->state.disk = VOLUME_DISK_UPTODATE;
	w->v->fail_set_state = true;
	assert_int_equal(create(w->env, w->writer, "").result.error, -EIO);
	w->v->fail_set_state = false;
	assert_int_equal(delete (w->env, w->repo, &nobody).result.error, -ENOENT);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
}

static void given_up_when_stopping(void **state)
{
	struct world *w = world_of(state);
	struct waited first = {.done = false};

	world_volume(w, 16 << 20, 0, 0);
	fill_some(w, 100, 1);
	snapshot_create(w->writer, "", waited_done, &first);
	writer_free(w->env, w->writer);
	assert_true(first.done);
	assert_int_equal(first.result.error, -ECANCELED);
	w->writer = snapshot_writer_new(w->v, w->repo, &(struct snapshot_writer_config){0});
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	check_restore(w, NULL, "later");
}

static void volume_restored_in_place(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_target *target;
	struct id128 current = {{7}};
	char why[256];
	struct waited r;
	uint8_t *want[5];

	world_volume(w, 80 << 20, 0, 0);
	w->v->state.generations.current = current;
	fill_some(w, 200, 1);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	for (unsigned i = 0; i < 5; i++) {
		want[i] = calloc(1, CHUNK);
		if (w->v->data[i * 100])
			memcpy(want[i], w->v->data[i * 100], CHUNK);
		fake_fill(w->v, i * 100, 999 + i);
	}
	assert_int_equal(snapshot_target_volume(w->v, &target, why, sizeof(why)), 0);
	r = restore(w->env, w->repo, NULL, target);
	assert_string_equal(r.result.why, "");
	for (unsigned i = 0; i < 5; i++) {
		assert_memory_equal(w->v->data[i * 100] ? w->v->data[i * 100] : zero_chunk, want[i],
				    CHUNK);
		free(want[i]);
	}
	assert_int_equal(w->v->state.disk, VOLUME_DISK_UPTODATE);
	assert_true(id128_equal(&w->v->state.generations.base, &current));
	assert_false(id128_equal(&w->v->state.generations.current, &current));
	assert_true(w->v->peer_marked >= 5 * CHUNK && w->v->peer_marked < 100 * CHUNK);
	w->v->stats.clients = 1;
	assert_int_equal(snapshot_target_volume(w->v, &target, why, sizeof(why)), 0);
	assert_int_equal(restore(w->env, w->repo, NULL, target).result.error, -EBUSY);
	w->v->stats.clients = 0;
	fake_fill(w->v, 0, 5);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	check_restore(w, NULL, "image");
}

static void volumes_and_list(void **state)
{
	struct world *w = world_of(state);
	struct waited l = {.done = false};
	uint8_t *byte = NULL;

	world_volume(w, 16 << 20, 0, 0);
	for (unsigned i = 0; i < 3; i++) {
		fake_fill(w->v, i, i);
		assert_int_equal(create(w->env, w->writer, i ? "" : "one").result.error, 0);
	}
	snapshot_volumes(&w->m->store, waited_each, NULL, waited_done, &l);
	env_run_until(w->env, &l.done);
	assert_int_equal(l.listed, 1);
	assert_int_equal(l.infos[0].sequence, 3);
	/* Its newest manifest is damaged: the one before it stands for the volume. */
	for (unsigned i = 0; i < w->m->count; i++)
		if (strstr(w->m->objects[i].name, "/snapshots/"))
			byte = &w->m->objects[i].data[300];
	*byte ^= 1;
	l = (struct waited){.done = false};
	snapshot_volumes(&w->m->store, waited_each, waited_damaged, waited_done, &l);
	env_run_until(w->env, &l.done);
	assert_int_equal(l.listed, 1);
	assert_int_equal(l.damaged, 1);
	assert_int_equal(l.infos[0].sequence, 2);
	*byte ^= 1;
	l = list(w->env, w->repo);
	assert_int_equal(l.listed, 3);
	assert_string_equal(l.infos[0].label, "one");
	assert_string_equal(l.infos[2].volume_name, "test");
	assert_int_equal(l.infos[2].lsn, 4711);
	assert_int_equal(l.infos[2].data_bytes, 3 * CHUNK);
}

/* The same over a directory. */
static void directory_store(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_repo *repo = NULL, *keep;
	struct snapshot_writer *writer;
	struct store *store;
	char url[96], why[256];
	struct waited c;

	world_volume(w, 64 << 20, 0, 0);
	snprintf(url, sizeof(url), "file:%s/store", w->dir);
	assert_int_equal(store_open(w->env, url, &store, why, sizeof(why)), 0);
	repo = snapshot_repo_new(store, &w->v->state.uuid);
	writer = snapshot_writer_new(w->v, repo, &(struct snapshot_writer_config){0});
	fill_some(w, 200, 1);
	c = create(w->env, writer, "");
	assert_string_equal(c.result.why, "");
	fill_some(w, 20, 2);
	assert_int_equal(create(w->env, writer, "").result.error, 0);
	keep = w->repo;
	w->repo = repo;
	check_restore(w, NULL, "back");
	w->repo = keep;
	assert_int_equal(verify(w->env, repo).bad, 0);
	assert_int_equal(delete (w->env, repo, &c.result.info.id).result.error, 0);
	assert_int_equal(verify(w->env, repo).bad, 0);
	writer_free(w->env, writer);
	snapshot_repo_free(repo);
	store_close(store);
}

/* The directory of the store is empty, as the mount point of what is not mounted: nothing goes there. */
static void store_not_mounted(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_repo *repo;
	struct snapshot_writer *writer;
	struct store *store;
	char path[96], moved[96], why[256];
	struct waited c;
	struct id128 first;

	world_volume(w, 64 << 20, 0, 0);
	fill_some(w, 20, 1);
	snprintf(path, sizeof(path), "%s/store", w->dir);
	snprintf(moved, sizeof(moved), "%s/elsewhere", w->dir);
	for (unsigned mounted = 2; mounted < 3; mounted--) {
		assert_int_equal(store_open(w->env, path, &store, why, sizeof(why)), 0);
		repo = snapshot_repo_new(store, &w->v->state.uuid);
		writer = snapshot_writer_new(w->v, repo, &(struct snapshot_writer_config){0});
		first = w->v->state.snapshot;
		fake_fill(w->v, 3, mounted);
		c = create(w->env, writer, "");
		if (mounted == 1) {
			assert_int_equal(c.result.error, -ENOENT);
			assert_non_null(strstr(c.result.why, "is it mounted?"));
			assert_true(id128_equal(&first, &w->v->state.snapshot));
			assert_int_equal(rmdir(path), 0); /* it is still empty */
			assert_int_equal(rename(moved, path), 0);
		} else {
			assert_string_equal(c.result.why, "");
		}
		if (!mounted) /* the last one gone on purpose is another matter */
			for (struct waited l = list(w->env, repo); l.listed; l = list(w->env, repo))
				delete (w->env, repo, &l.infos[0].id);
		if (!mounted)
			assert_string_equal(create(w->env, writer, "").result.why, "");
		writer_free(w->env, writer);
		snapshot_repo_free(repo);
		store_close(store);
		if (mounted == 2)
			assert_int_equal(rename(path, moved), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH(content_comes_back),
		ON_BOTH(what_lies_together_comes_together),
		ON_BOTH(packs_are_put_side_by_side),
		ON_BOTH(empty_volume),
		ON_BOTH(only_changes_are_stored),
		ON_BOTH(a_snapshot_is_one_instant),
		ON_BOTH(what_prepares_for_the_cut),
		ON_BOTH(huge_volume_small_change),
		ON_BOTH(holes_cost_a_step_each),
		ON_BOTH(holes_are_as_of_the_cut),
		ON_BOTH(many_changes_few_objects),
		ON_BOTH(delete_gives_space_back),
		ON_BOTH(keep_last),
		ON_BOTH(given_up),
		ON_BOTH(another_writer),
		ON_BOTH(base_deleted_meanwhile),
		ON_BOTH(base_deleted_before_the_claim),
		ON_BOTH(two_writers_at_once),
		ON_BOTH(lost_cut),
		ON_BOTH(grown_volume),
		ON_BOTH(refusals),
		ON_BOTH(given_up_when_stopping),
		ON_BOTH(volume_restored_in_place),
		ON_BOTH(volumes_and_list),
		ON_BOTH(directory_store),
		ON_BOTH(store_not_mounted),
	};

	alarm(300);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
