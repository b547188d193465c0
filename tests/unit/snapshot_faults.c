/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots over a store that fails, and over one whose bytes rot: at every operation, and in every
 * object. What is listed is always whole; what comes back is right or does not come back.
 * time limit: 300 s
 */
#include "tests/unit/snapshot_fixture.h"
#include "daemon/io/env_ops.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

static void fill(struct world *w, unsigned count, uint64_t seed)
{
	for (unsigned i = 0; i < count; i++)
		fake_fill(w->v, (seed * 7919 + i * 13) % w->v->chunks, seed * 1000 + i);
}

static int file_differs(const struct volume *v, const char *path)
{
	uint8_t data[CHUNK];
	int fd = open(path, O_RDONLY), bad = 0;

	if (fd < 0)
		return -1;
	for (uint64_t i = 0; i < v->chunks; i++) {
		assert_int_equal(pread(fd, data, CHUNK, (off_t)(i * CHUNK)), CHUNK);
		bad += memcmp(data, v->data[i] ? v->data[i] : zero_chunk, CHUNK) != 0;
	}
	close(fd);
	return bad;
}

static void assert_all_listed_are_whole(struct world *w, unsigned k)
{
	struct waited v = verify(w->env, w->repo);

	if (v.bad)
		fail_msg("after failure %u: %s: %s", k, v.object, v.why);
}

static void assert_newest_is_now(struct world *w)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/check", w->dir);
	assert_int_equal(restore_file(w->env, w->repo, NULL, path, false).result.error, 0);
	assert_int_equal(file_differs(w->v, path), 0);
	unlink(path);
}

static void create_fails_at_every_operation(void **state)
{
	struct world *w = world_of(state);
	bool failed = true;

	for (unsigned k = 1; failed; k++) {
		world_volume(w, 8 << 20, 2, 128 << 10);
		for (unsigned s = 0; s < 2; s++) {
			fill(w, 20, s);
			assert_int_equal(create(w->env, w->writer, "").result.error, 0);
		}
		fill(w, 20, 2);
		memory_fail(w->m, OP_ALL, k, -EIO, k % 2 ? MEMORY_WITH_EFFECT : MEMORY_ONCE);
		create(w->env, w->writer, "");
		failed = memory_heal(w->m);
		assert_all_listed_are_whole(w, k);
		fake_fill(w->v, 3, 33);
		assert_string_equal(create(w->env, w->writer, "").result.why, "");
		assert_all_listed_are_whole(w, k);
		assert_newest_is_now(w);
		assert_int_equal(list(w->env, w->repo).listed, 2);
		world_drop(w);
		assert_true(k < 500);
	}
}

static void delete_fails_at_every_operation(void **state)
{
	struct world *w = world_of(state);
	bool failed = true;

	for (unsigned k = 1; failed; k++) {
		struct id128 first;
		unsigned packs, maps, manifests;

		world_volume(w, 8 << 20, 0, 128 << 10);
		fill(w, 20, 0);
		first = create(w->env, w->writer, "").result.info.id;
		fill(w, 20, 1);
		create(w->env, w->writer, "");
		memory_fail(w->m, OP_ALL, k, -EIO, k % 2 ? MEMORY_WITH_EFFECT : MEMORY_ONCE);
		delete (w->env, w->repo, &first);
		failed = memory_heal(w->m);
		assert_all_listed_are_whole(w, k);
		delete (w->env, w->repo, &first);
		assert_int_equal(collect(w->env, w->repo).result.error, 0);
		assert_all_listed_are_whole(w, k);
		assert_newest_is_now(w);
		memory_count(w->m, &packs, &maps, &manifests);
		assert_int_equal(manifests, 1);
		world_drop(w);
		assert_true(k < 500);
	}
}

static void restore_fails_and_goes_on(void **state)
{
	struct world *w = world_of(state);
	char path[128], other[128];
	bool failed = true;

	snprintf(path, sizeof(path), "%s/disk", w->dir);
	snprintf(other, sizeof(other), "%s/disk.incomplete", w->dir);
	world_volume(w, 8 << 20, 0, 128 << 10);
	fill(w, 60, 0);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	for (unsigned k = 1; failed; k += 2) {
		struct waited r;

		/* For good: chunks are asked for twice. */
		memory_fail(w->m, OP_ALL, k, -EIO, MEMORY_FOR_GOOD);
		r = restore_file(w->env, w->repo, NULL, path, false);
		failed = memory_heal(w->m);
		assert_int_equal(r.result.error, failed ? -EIO : 0);
		if (failed) {
			assert_int_not_equal(access(path, F_OK), 0);
			r = restore_file(w->env, w->repo, NULL, path, false);
		}
		assert_int_equal(r.result.error, 0);
		assert_int_not_equal(access(other, F_OK), 0);
		assert_int_equal(file_differs(w->v, path), 0);
		unlink(path);
	}
}

static void overwriting_is_marked(void **state)
{
	struct world *w = world_of(state);
	char path[128], marker[128], restored[128], why[256];
	struct snapshot_target *target;
	struct waited r;
	FILE *file;

	snprintf(path, sizeof(path), "%s/disk", w->dir);
	snprintf(marker, sizeof(marker), "%s/disk.restoring", w->dir);
	snprintf(restored, sizeof(restored), "%s/disk.restored", w->dir);
	world_volume(w, 8 << 20, 0, 0);
	fill(w, 60, 0);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	file = fopen(path, "w");
	for (unsigned i = 0; i < 100000; i++)
		fputs("old content ", file);
	fclose(file);
	assert_int_equal(snapshot_target_file(w->env, path, false, &target, why, sizeof(why)),
			 -EEXIST);
	assert_non_null(strstr(why, "exists"));
	assert_non_null(strstr(why, "--force"));
	memory_fail(w->m, OP_GET, 3, -EIO, MEMORY_FOR_GOOD);
	assert_int_equal(restore_file(w->env, w->repo, NULL, path, true).result.error, -EIO);
	assert_int_equal(access(marker, F_OK), 0);
	assert_int_not_equal(access(restored, F_OK), 0);
	memory_heal(w->m);
	r = restore_file(w->env, w->repo, NULL, path, true);
	assert_int_equal(r.result.error, 0);
	assert_int_not_equal(access(marker, F_OK), 0);
	assert_int_equal(access(restored, F_OK), 0); /* a volume on it has to know */
	assert_int_equal(file_differs(w->v, path), 0);
	/* What is right already is not written again. */
	r = restore_file(w->env, w->repo, NULL, path, true);
	assert_int_equal(r.result.error, 0);
	assert_int_equal(r.result.written_bytes, 0);
	/* In place of one that was lost. */
	unlink(path);
	unlink(restored);
	assert_int_equal(restore_file(w->env, w->repo, NULL, path, false).result.error, 0);
	assert_int_equal(access(restored, F_OK), 0);
}

/* A target that is slow to read, but for its beginning. */
struct slow_target {
	struct snapshot_target target; /* first */
	struct env *env;
	struct slow_read {
		struct env_timer timer;
		struct env_op *op;
	} reads[256];
	unsigned count;
};

static int slow_begin(struct snapshot_target *target, const struct snapshot_info *info, char *why,
		      size_t why_size)
{
	return 0;
}

static void slow_fire(struct env_timer *timer)
{
	struct slow_read *read = (struct slow_read *)timer;

	read->op->done(read->op, -EIO); /* what cannot be read is written */
}

static void slow_read(struct snapshot_target *target, struct env_op *op, struct buf *buf,
		      uint64_t offset, uint32_t length)
{
	struct slow_target *slow = (struct slow_target *)target;
	struct slow_read *read = &slow->reads[slow->count++];

	read->timer.fire = slow_fire;
	read->op = op;
	env_timer_start(slow->env, &read->timer, offset ? 30000000 : 1000000);
}

static void slow_write(struct snapshot_target *target, struct env_op *op, struct buf *buf,
		       uint64_t offset, uint32_t length)
{
	complete(((struct slow_target *)target)->env, op, length);
}

static void slow_zero(struct snapshot_target *target, struct env_op *op, uint64_t offset,
		      uint64_t length)
{
	complete(((struct slow_target *)target)->env, op, 0);
}

static void slow_finish(struct snapshot_target *target, struct env_op *op)
{
	complete(((struct slow_target *)target)->env, op, 0);
}

static void slow_free(struct snapshot_target *target)
{
}

/* The store fails while other pieces of the target are still being compared: it ends all the same. */
static void a_restore_ends_at_every_failure(void **state)
{
	struct world *w = world_of(state);
	struct slow_target slow;
	struct waited r;

	world_volume(w, 8 << 20, 0, 0);
	for (unsigned i = 0; i < 40; i++)
		fake_fill(w->v, 3 * i, i);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	for (unsigned k = 1; k < 100; k++) {
		memset(&slow, 0, sizeof(slow));
		slow.target = (struct snapshot_target){
			.begin = slow_begin,
			.read = slow_read,
			.write = slow_write,
			.zero = slow_zero,
			.finish = slow_finish,
			.free = slow_free,
			.compare = true,
		};
		slow.env = w->env;
		memory_fail(w->m, OP_GET, k, -EIO, MEMORY_FOR_GOOD);
		r = restore(w->env, w->repo, NULL, &slow.target);
		memory_heal(w->m);
		if (!r.result.error)
			return;
		assert_int_equal(r.result.error, -EIO);
	}
	fail_msg("it never succeeds: %s", r.result.why);
}

/* A snapshot of which an object is missing or truncated does not cost a target what it holds. */
static void an_incomplete_snapshot_spares_the_target(void **state)
{
	struct world *w = world_of(state);
	char path[128], other[160];
	struct snapshot_target *target;
	struct volume_state before;
	struct waited r;
	char why[256];
	FILE *file;

	snprintf(path, sizeof(path), "%s/disk", w->dir);
	world_volume(w, 8 << 20, 0, 256 << 10);
	fill(w, 60, 0);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	assert_int_equal(restore_file(w->env, w->repo, NULL, path, false).result.error, 0);
	fill(w, 60, 1); /* the last good copy is the volume itself, and what the file holds */
	for (unsigned o = 0; o < w->m->count; o++) {
		struct memory_object *object = &w->m->objects[o];
		char first = object->name[0];

		if (strstr(object->name, "/snapshots/"))
			continue;
		if (o % 2)
			object->size--;
		else
			object->name[0] = 'x';
		file = fopen(path, "w");
		fputs("the last good copy", file);
		fclose(file);
		r = restore_file(w->env, w->repo, NULL, path, true);
		assert_int_equal(r.result.error, -EBADMSG);
		assert_non_null(
			strstr(r.result.why, "missing from the store; nothing was changed"));
		assert_non_null(strstr(r.result.why, o % 2 ? ": truncated" : ": missing"));
		file = fopen(path, "r");
		assert_non_null(fgets(why, sizeof(why), file));
		fclose(file);
		assert_string_equal(why, "the last good copy");
		snprintf(other, sizeof(other), "%s.restoring", path);
		assert_int_not_equal(access(other, F_OK), 0);
		snprintf(other, sizeof(other), "%s/new", w->dir);
		assert_int_equal(restore_file(w->env, w->repo, NULL, other, false).result.error,
				 -EBADMSG);
		snprintf(other, sizeof(other), "%s/new.incomplete", w->dir);
		assert_int_not_equal(access(other, F_OK), 0);
		before = w->v->state;
		assert_int_equal(snapshot_target_volume(w->v, &target, why, sizeof(why)), 0);
		assert_int_equal(restore(w->env, w->repo, NULL, target).result.error, -EBADMSG);
		assert_memory_equal(&before, &w->v->state, sizeof(before));
		object->name[0] = first;
		object->size += o % 2;
	}
	assert_int_equal(restore_file(w->env, w->repo, NULL, path, true).result.error, 0);
}

/* A damaged or missing object: verify names it, restore stops or is right, nothing crashes. */
static void damage(struct world *w, unsigned object, const char *path)
{
	char name[160];
	struct waited v, r;

	snprintf(name, sizeof(name), "%s", object < w->m->count ? w->m->objects[object].name : "?");
	v = verify(w->env, w->repo);
	if (!v.bad || !v.result.error)
		fail_msg("%s is damaged, verify is content", name);
	if (object < w->m->count)
		assert_string_equal(v.object, name);
	r = restore_file(w->env, w->repo, NULL, path, false);
	if (!r.result.error && file_differs(w->v, path))
		fail_msg("%s is damaged: wrong content restored as right", name);
	if (r.result.error)
		assert_int_not_equal(access(path, F_OK), 0);
	unlink(path);
}

static void every_byte_counts(void **state)
{
	struct world *w = world_of(state);
	char path[128], incomplete[128];
	const char *text = getenv("SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL);
	unsigned step = 97, tried = 0;

	print_message("SEED=%llu\n", (unsigned long long)seed);
	srandom((unsigned)seed);
	snprintf(path, sizeof(path), "%s/disk", w->dir);
	snprintf(incomplete, sizeof(incomplete), "%s/disk.incomplete", w->dir);
	world_volume(w, 4 * CHUNK, 0, 0);
	for (unsigned i = 0; i < 3; i++) { /* chunks that shrink to little */
		uint8_t data[CHUNK];

		memset(data, (int)i + 1, sizeof(data));
		for (unsigned j = 0; j < 300; j++)
			data[random() % CHUNK] = (uint8_t)random();
		fake_write(w->v, i, data);
	}
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	for (unsigned o = 0; o < w->m->count; o++) {
		struct memory_object *object = &w->m->objects[o];
		size_t size = object->size;

		/* All of the first and last bytes, where structure is; a sample of the rest. */
		for (size_t at = 0; at < size;
		     at += at < 640 || size - at < 200 ? 1 + random() % 3 : 1 + random() % step) {
			uint8_t old = object->data[at];

			object->data[at] ^= (uint8_t)(1 + random() % 255);
			damage(w, o, path);
			object->data[at] = old;
			tried++;
		}
		for (size_t at = 0; at < size; at += 1 + random() % (size / 20 + 1)) {
			object->size = at;
			damage(w, o, path);
			object->size = size;
			tried++;
		}
	}
	print_message("%u damages tried\n", tried);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
}

static void damage_is_told_for_each_snapshot(void **state)
{
	struct world *w = world_of(state);
	struct waited v;
	unsigned first_pack = 0;

	world_volume(w, 8 << 20, 0, 0);
	fill(w, 60, 0);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	for (unsigned s = 1; s < 3; s++) {
		fake_fill(w->v, 127, s);
		assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	}
	while (!strstr(w->m->objects[first_pack].name, "/packs/"))
		first_pack++;
	w->m->objects[first_pack].data[5000] ^= 1;
	v = verify(w->env, w->repo);
	assert_int_equal(v.hits, 3);
	assert_int_equal(v.result.bad_objects, 1);
	memory_remove(w->m, first_pack);
	v = verify(w->env, w->repo);
	assert_int_equal(v.hits, 3);
	assert_string_equal(v.why, "missing");
	assert_int_equal(v.result.bad_objects, 1);
}

static void nothing_is_collected_blindly(void **state)
{
	struct world *w = world_of(state);
	struct id128 ids[3];
	unsigned before, packs, maps, manifests;
	struct waited d;
	uint8_t *byte = NULL;

	world_volume(w, 8 << 20, 0, 0);
	for (unsigned s = 0; s < 3; s++) {
		fill(w, 30, s);
		ids[s] = create(w->env, w->writer, "").result.info.id;
	}
	for (unsigned i = 0, n = 0; i < w->m->count; i++)
		if (strstr(w->m->objects[i].name, "/snapshots/") && ++n == 2)
			byte = &w->m->objects[i].data[w->m->objects[i].size - 1];
	*byte ^= 1;
	memory_count(w->m, &before, &maps, &manifests);
	d = delete (w->env, w->repo, &ids[0]);
	assert_int_equal(d.result.error, -EBADMSG);
	memory_count(w->m, &packs, &maps, &manifests);
	assert_int_equal(packs, before);
	*byte ^= 1;
	assert_int_equal(collect(w->env, w->repo).result.error, 0);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	memory_count(w->m, &packs, &maps, &manifests);
	assert_true(packs <= before);
}

/* The snapshot compared with is damaged: the next one is complete in itself. */
static void damaged_base_is_left_behind(void **state)
{
	struct world *w = world_of(state);
	struct waited c;

	world_volume(w, 8 << 20, 0, 0);
	fill(w, 60, 0);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	for (unsigned i = 0; i < w->m->count; i++)
		if (strstr(w->m->objects[i].name, "/maps/"))
			w->m->objects[i].data[300] ^= 1;
	fake_fill(w->v, 1, 1);
	c = create(w->env, w->writer, "again");
	assert_string_equal(c.result.why, "");
	assert_string_equal(c.result.info.label, "again");
	assert_newest_is_now(w);
	for (unsigned i = 0; i < w->m->count; i++)
		if (strstr(w->m->objects[i].name, "/snapshots/"))
			w->m->objects[i].data[200] ^= 1;
	assert_int_equal(list(w->env, w->repo).damaged, 2);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	assert_newest_is_now(w);
}

static void lose_a_pack(struct world *w)
{
	unsigned i = 0;

	while (!strstr(w->m->objects[i].name, "/packs/"))
		i++;
	memory_remove(w->m, i);
}

/* Of the snapshot compared with the store lost a pack: the next one does not need it. */
static void a_lost_pack_is_not_inherited(void **state)
{
	struct world *w = world_of(state);

	world_volume(w, 8 << 20, 0, 256 << 10);
	fill(w, 60, 0);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	lose_a_pack(w);
	fake_fill(w->v, 1, 1);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	assert_newest_is_now(w);
	/* The same where the map is not relative to it, and all is compared anyway. */
	lose_a_pack(w);
	lose_a_pack(w);
	memset(&w->v->state.snapshot, 0, sizeof(w->v->state.snapshot));
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	assert_newest_is_now(w);
	lose_a_pack(w);
}

/* A crash between the manifest and the note of it, and a collector after it: the snapshot is one. */
static void a_snapshot_that_was_not_noted(void **state)
{
	struct world *w = world_of(state);
	struct volume_state before;
	struct id128 first;

	world_volume(w, 8 << 20, 0, 256 << 10);
	fill(w, 60, 0);
	first = create(w->env, w->writer, "").result.info.id;
	before = w->v->state;
	fake_fill(w->v, 1, 1);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	w->v->state.snapshot = before.snapshot;
	memset(w->v->dirty, 255, w->v->chunks / 8);
	assert_string_equal(delete (w->env, w->repo, &first).result.why, "");
	assert_all_listed_are_whole(w, 0);
	assert_newest_is_now(w);
	fake_fill(w->v, 2, 2);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	assert_all_listed_are_whole(w, 0);
	assert_newest_is_now(w);
	assert_int_equal(list(w->env, w->repo).listed, 2);
}

/* At a read of a pack: all that the first snapshot alone has goes; with context the manifest too. */
static void first_goes_now(struct memory_store *m, const char *name)
{
	if (!strstr(name, "/packs/"))
		return;
	m->on_get = NULL;
	for (unsigned i = 0; i < m->count;) {
		const char *last = strrchr(m->objects[i].name, '/');
		bool manifest = strstr(m->objects[i].name, "/snapshots/") != NULL;

		if (!strncmp(last + 1, "0000000000000001", 16) && (m->context || !manifest))
			memory_remove(m, i);
		else
			i++;
	}
}

static void what_is_deleted_meanwhile_is_no_damage(void **state)
{
	struct world *w = world_of(state);
	struct waited v = {.done = false};

	for (unsigned deleted = 0; deleted < 3; deleted++) {
		struct id128 first;

		world_volume(w, 8 << 20, 0, 256 << 10);
		fill(w, 60, 0);
		first = create(w->env, w->writer, "").result.info.id;
		for (unsigned i = 0; i < w->v->chunks; i++)
			fake_fill(w->v, i, 1000 + i);
		assert_int_equal(create(w->env, w->writer, "").result.error, 0);
		w->m->context = deleted ? w : NULL;
		w->m->on_get = first_goes_now;
		v = (struct waited){.done = false};
		snapshot_verify(w->repo, deleted == 2 ? &first : NULL, 100, waited_bad, NULL,
				waited_done, &v);
		env_run_until(w->env, &v.done);
		assert_null(w->m->on_get);
		assert_int_equal(v.result.error, deleted == 0   ? -EBADMSG
						 : deleted == 1 ? 0
								: -ENOENT);
		assert_int_equal(v.bad != 0, deleted == 0);
		assert_int_equal(v.result.bad_objects != 0, deleted == 0);
		world_drop(w);
	}
}

/* Another restore to the same name, at the two moments that matter. The environment's own calls, with
 * something happening around them. */
static const struct env_ops *plain;
static struct env_ops meddling;
static char meddle_path[128];

static int open_late(struct env *env, const char *path, unsigned flags, struct env_file **file)
{
	int error = plain->file_open(env, path, flags, file);

	if (!error && flags & ENV_FILE_LOCK && strstr(path, ".incomplete"))
		assert_int_equal(rename(path, meddle_path), 0); /* the other one is complete */
	return error;
}

static int rename_late(struct env *env, const char *from, const char *to, bool replace)
{
	FILE *file = fopen(meddle_path, "w");

	fputs("somebody else's", file);
	fclose(file);
	return plain->rename(env, from, to, replace);
}

static void two_restores_to_one_name(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_target *target;
	char why[256] = "", other[160];
	FILE *file;

	snprintf(meddle_path, sizeof(meddle_path), "%s/disk", w->dir);
	snprintf(other, sizeof(other), "%s.incomplete", meddle_path);
	world_volume(w, 8 << 20, 0, 0);
	fill(w, 60, 0);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	plain = w->env->ops;
	meddling = *plain;
	w->env->ops = &meddling;
	meddling.file_open = open_late;
	assert_int_equal(
		snapshot_target_file(w->env, meddle_path, false, &target, why, sizeof(why)),
		-EWOULDBLOCK);
	assert_non_null(strstr(why, "another restore"));
	unlink(meddle_path);
	meddling.file_open = plain->file_open;
	meddling.rename = rename_late;
	assert_int_equal(restore_file(w->env, w->repo, NULL, meddle_path, false).result.error,
			 -EEXIST);
	w->env->ops = plain;
	file = fopen(meddle_path, "r");
	assert_non_null(fgets(why, sizeof(why), file));
	fclose(file);
	assert_string_equal(why, "somebody else's");
	unlink(other);
}

#ifdef __SANITIZE_ADDRESS__
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

/* An object that claims a size for which there is no memory is an error, not the end. */
static void an_object_too_large_for_memory(void **state)
{
	struct world *w = world_of(state);
	struct rlimit limit, small;
	struct memory_object *manifest;
	struct waited r;
	char path[128];
	size_t size;

	if (SANITIZED)
		skip(); /* the sanitizer needs the address space */
	snprintf(path, sizeof(path), "%s/disk", w->dir);
	world_volume(w, 8 << 20, 0, 0);
	fill(w, 10, 0);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	manifest = &w->m->objects[w->m->count - 1];
	size = manifest->size;
	manifest->size = 1900u << 20;
	assert_int_equal(getrlimit(RLIMIT_AS, &limit), 0);
	small = limit;
	small.rlim_cur = 1500u << 20;
	assert_int_equal(setrlimit(RLIMIT_AS, &small), 0);
	r = restore_file(w->env, w->repo, NULL, path, false);
	assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
	manifest->size = size;
	assert_int_equal(r.result.error, -ENOMEM);
	assert_non_null(strstr(r.result.why, "too large for this machine's memory"));
	assert_int_equal(restore_file(w->env, w->repo, NULL, path, false).result.error, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH(create_fails_at_every_operation),
		ON_BOTH(delete_fails_at_every_operation),
		ON_BOTH(restore_fails_and_goes_on),
		ON_BOTH(overwriting_is_marked),
		ON_BOTH(a_restore_ends_at_every_failure),
		ON_BOTH(an_incomplete_snapshot_spares_the_target),
		ON_BOTH(every_byte_counts),
		ON_BOTH(damage_is_told_for_each_snapshot),
		ON_BOTH(nothing_is_collected_blindly),
		ON_BOTH(damaged_base_is_left_behind),
		ON_BOTH(a_lost_pack_is_not_inherited),
		ON_BOTH(a_snapshot_that_was_not_noted),
		ON_BOTH(what_is_deleted_meanwhile_is_no_damage),
		ON_BOTH(an_object_too_large_for_memory),
		ON_BOTH(two_restores_to_one_name),
	};

	alarm(300);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
