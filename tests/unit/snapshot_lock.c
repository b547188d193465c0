/* SPDX-License-Identifier: Apache-2.0 */
/* time limit: 300 s */
/*
 * Snapshots in a store that locks objects and whose lists cost: what a snapshot needs is locked for as
 * long as it is, what is locked is left and told, and nothing is listed that can be remembered.
 */
#include "tests/unit/snapshot_locks.h"

#include "daemon/snapshot/reader.h"
#include "daemon/store/keyring.h"

/* ---- locks ------------------------------------------------------------------------------------------- */

static void what_is_shared_is_locked_as_long(void **state)
{
	struct world *w = world_of(state);

	locks_begin(w, STORE_LOCK_COMPLIANCE, HOUR_NS);
	for (unsigned s = 0; s < 3; s++) {
		fill(w, 20, s);
		assert_string_equal(create(w->env, w->writer, "").result.why, "");
	}
	assert_locks_hold(w, HOUR_NS);
	/* They share what the first one locked for a while longer than it had to. */
	assert_int_equal(locks->retains, 0);
	writer_new(w, STORE_LOCK_COMPLIANCE, 4 * HOUR_NS, "node");
	fill(w, 3, 9);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	assert_true(locks->retains > 3);
	assert_locks_hold(w, HOUR_NS);
	assert_all_is_well(w);
	/* The other way to lock: everything again. */
	locks->retains = 0;
	writer_new(w, STORE_LOCK_GOVERNANCE, HOUR_NS, "node");
	fill(w, 3, 10);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	assert_true(locks->retains > 3);
	locks_end(w);
}

struct verdicts {
	struct waited waited; /* first */
	unsigned kept, gone, locked;
};

static void verdict_each(void *context, const struct snapshot_info *info, bool keep,
			 const char *why)
{
	struct verdicts *v = context;

	keep ? v->kept++ : v->gone++;
	v->locked += strstr(why, "locked until ") != NULL;
}

static struct verdicts forget(struct world *w, unsigned last, bool told)
{
	struct verdicts v = {.waited.done = false};
	struct retention_policy policy = {.last = last};

	snapshot_forget(w->repo, &policy, false, told ? verdict_each : NULL, waited_done, &v);
	env_run_until(w->env, &v.waited.done);
	return v;
}

static void what_is_locked_is_left_and_said(void **state)
{
	struct world *w = world_of(state);
	struct waited first, d;
	struct verdicts v;
	unsigned count;

	locks_begin(w, STORE_LOCK_GOVERNANCE, HOUR_NS);
	fill(w, 20, 0);
	first = create(w->env, w->writer, "");
	for (unsigned s = 1; s < 4; s++) {
		fill(w, 20, s);
		assert_string_equal(create(w->env, w->writer, "").result.why, "");
	}
	count = w->m->count;
	v = forget(w, 1, true);
	assert_int_equal(v.waited.result.error, 0);
	assert_int_equal(v.locked, 4);
	assert_int_equal(v.gone, 0);
	assert_int_equal(w->m->count, count);
	/* By names alone nobody knows: the service refuses, and that is no failure. */
	v = forget(w, 1, false);
	assert_string_equal(v.waited.result.why, "");
	assert_true(v.waited.result.locked_objects > 0);
	assert_int_equal(w->m->count, count);
	d = delete (w->env, w->repo, &first.result.info.id);
	assert_int_equal(d.result.error, -EPERM);
	assert_non_null(strstr(d.result.why, "locked until "));
	assert_all_is_well(w);
	locks_end(w);
}

static void what_was_locked_is_taken_by_a_later_run(void **state)
{
	struct world *w = world_of(state);
	unsigned count;

	locks_begin(w, STORE_LOCK_GOVERNANCE, 1000000);
	for (unsigned s = 0; s < 4; s++) {
		fill(w, 20, s);
		assert_string_equal(create(w->env, w->writer, "").result.why, "");
	}
	count = w->m->count;
	for (unsigned i = 0; forget(w, 1, true).kept > 1; i++) {
		assert_true(i < 600);
		usleep(100000);
	}
	assert_int_equal(list(w->env, w->repo).listed, 1);
	assert_true(w->m->count < count);
	assert_all_is_well(w);
	locks_end(w);
}

static void what_went_missing_is_noticed_when_locking(void **state)
{
	struct world *w = world_of(state);
	struct snapfmt_ref ref;
	char name[SNAPFMT_NAME_BYTES];
	struct waited first;
	int i;

	locks_begin(w, STORE_LOCK_COMPLIANCE, HOUR_NS);
	fill(w, 20, 0);
	first = create(w->env, w->writer, "");
	fill(w, 3, 1);
	for (i = 0; !strstr(w->m->objects[i].name, "/packs/"); i++)
		;
	/* Behind the back of a writer that counted it just now. */
	memory_remove(w->m, (unsigned)i);
	/* What is known is not counted again; but locking it for longer finds out. */
	w->writer->lock_for_ns = 4 * HOUR_NS;
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	assert_int_equal(list(w->env, w->repo).listed, 2);
	/* The new one shares nothing with what is damaged. */
	ref = (struct snapfmt_ref){first.result.info.id, first.result.info.sequence, 0};
	snapfmt_name(SNAPFMT_MANIFEST, &first.result.info.volume, &ref, name);
	memory_remove(w->m, (unsigned)memory_find(w->m, name));
	locks->off = true;
	assert_int_equal(collect(w->env, w->repo).result.error, 0);
	assert_all_is_well(w);
	locks_end(w);
}

static void without_a_lock_it_is_an_error(void **state)
{
	struct world *w = world_of(state);
	struct waited c;

	locks_begin(w, STORE_LOCK_COMPLIANCE, HOUR_NS);
	locks->ops.put_retained = NULL;
	fill(w, 20, 0);
	c = create(w->env, w->writer, "");
	assert_int_equal(c.result.error, -STORE_CANNOT_LOCK);
	assert_int_equal(list(w->env, w->repo).listed, 0);
	locks_end(w);
}

/* ---- keys ----------------------------------------------------------------------------------------------- */

/* As at a daemon's start; with NULL the bare store. */
static void begin_encrypted(struct world *w, struct store **crypt, struct secret *secret)
{
	writer_free(w->env, w->writer);
	snapshot_repo_free(w->repo);
	if (*crypt)
		store_close(*crypt);
	w->writer = NULL;
	*crypt = secret ? crypt_open(&w->m->store, secret) : NULL;
	w->repo = snapshot_repo_new(*crypt ? *crypt : &w->m->store, &w->v->state.uuid);
	writer_new(w, STORE_LOCK_COMPLIANCE, HOUR_NS, "node");
}

static void key_added(void *context, const struct id128 *slot, int error)
{
	assert_int_equal(error, 0);
	*(bool *)context = true;
}

static void renew_key(struct world *w)
{
	struct secret *secret = key_file();
	struct data_key fresh;
	bool done = false;

	keyring_new_key(w->env, &fresh);
	keyring_add(&w->m->store, &w->v->state.uuid, &fresh, secret, "", key_added, &done);
	env_run_until(w->env, &done);
	secret_free(secret);
}

static unsigned assert_keys_locked(struct world *w, uint64_t until_ns)
{
	unsigned count = 0;

	for (unsigned i = 0; i < w->m->count; i++)
		if (strstr(w->m->objects[i].name, "/keys/")) {
			assert_locked(w->m->objects[i].name, until_ns);
			count++;
		}
	return count;
}

/* Without the key nothing of what is locked could be read. */
static void a_new_key_is_locked_before_it_is_needed(void **state)
{
	struct world *w = world_of(state);
	struct store *crypt = NULL;
	struct waited made;

	locks_begin(w, STORE_LOCK_COMPLIANCE, HOUR_NS);
	locks->ops.close = keep_open;
	begin_encrypted(w, &crypt, key_file());
	fill(w, 20, 0);
	made = create(w->env, w->writer, "");
	assert_string_equal(made.result.why, "");
	assert_int_equal(assert_keys_locked(w, made.result.info.retention.until_ns), 1);
	renew_key(w);
	begin_encrypted(w, &crypt, key_file());
	for (unsigned s = 1; s < 3; s++) {
		locks->retains = 0;
		fill(w, 3, s);
		made = create(w->env, w->writer, "");
		assert_string_equal(made.result.why, "");
		assert_int_equal(assert_keys_locked(w, made.result.info.retention.until_ns), 2);
		/* It shares what is locked for long enough; and then so are the keys. */
		assert_int_equal(locks->retains, s == 1 ? 2 : 0);
	}
	begin_encrypted(w, &crypt, NULL);
	locks_end(w);
}

/* The data key of the last pack. */
static struct id128 pack_key(struct world *w)
{
	struct id128 id = {{0}};

	for (unsigned i = 0; i < w->m->count; i++)
		if (strstr(w->m->objects[i].name, "/packs/"))
			assert_null(
				cryptfmt_header_decode((const void *)w->m->objects[i].data, &id));
	assert_false(id128_is_zero(&id));
	return id;
}

/* It is read before the next snapshot, not at the daemon's next start; and when nothing was added, only the names are
 * looked at. */
static void a_new_key_is_used_from_the_next_snapshot_on(void **state)
{
	struct world *w = world_of(state);
	struct store *crypt = NULL;
	struct id128 first, second;
	struct waited made;
	unsigned gets;

	locks_begin(w, STORE_LOCK_COMPLIANCE, HOUR_NS);
	locks->ops.close = keep_open;
	begin_encrypted(w, &crypt, key_file());
	fill(w, 20, 0);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	first = pack_key(w);
	renew_key(w);
	fill(w, 3, 1);
	made = create(w->env, w->writer, "");
	assert_string_equal(made.result.why, "");
	second = pack_key(w);
	assert_false(id128_equal(&first, &second));
	assert_int_equal(assert_keys_locked(w, made.result.info.retention.until_ns), 2);
	for (unsigned s = 2; s < 4; s++) {
		gets = w->m->gets;
		fill(w, 3, s);
		assert_string_equal(create(w->env, w->writer, "").result.why, "");
		assert_int_equal(w->m->gets - gets, 1); /* the one map page there is */
		first = pack_key(w);
		assert_true(id128_equal(&first, &second));
	}
	assert_all_is_well(w);
	begin_encrypted(w, &crypt, NULL);
	locks_end(w);
}

/* ---- lists ---------------------------------------------------------------------------------------------- */

static void nothing_is_listed_twice(void **state)
{
	struct world *w = world_of(state);
	unsigned lists, gets;

	locks_begin(w, STORE_LOCK_NONE, 0);
	for (unsigned s = 0; s < 2; s++) {
		fill(w, 20, s);
		assert_string_equal(create(w->env, w->writer, "").result.why, "");
	}
	for (unsigned s = 2; s < 6; s++) {
		lists = w->m->lists;
		gets = w->m->gets;
		fill(w, 20, s);
		assert_string_equal(create(w->env, w->writer, "").result.why, "");
		assert_int_equal(w->m->lists - lists, 1); /* what is newer than the base */
		assert_int_equal(w->m->gets - gets, 1);   /* the one map page there is */
	}
	assert_int_equal(list(w->env, w->repo).listed, 6);
	gets = w->m->gets;
	assert_int_equal(list(w->env, w->repo).listed, 6);
	assert_int_equal(w->m->gets, gets);
	assert_all_is_well(w);
	locks_end(w);
}

/* A change in each 64 MiB of 16 GiB is no request for each of them. */
static void neighbouring_pages_come_together(void **state)
{
	struct world *w = world_of(state);
	const uint64_t chunks_a_page = 1024, pages = 256;
	unsigned gets;

	world_volume(w, pages * chunks_a_page * CHUNK, 0, 0);
	for (uint64_t p = 0; p < pages; p++)
		fake_fill(w->v, p * chunks_a_page + p % 7, p);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	gets = w->m->gets;
	for (uint64_t p = 0; p < pages; p += 2)
		fake_fill(w->v, p * chunks_a_page + 3, 1000 + p);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	/* The manifest, and some spans of up to 64 pages. */
	assert_true(w->m->gets - gets <= 1 + pages / 2 / 32);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	world_drop(w);
}

/* What is remembered may have been overtaken: seen in the end, and done anew. */
static void another_writer_is_noticed(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_writer *mine;
	struct volume_state before, now;

	locks_begin(w, STORE_LOCK_NONE, 0);
	fill(w, 20, 0);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	mine = w->writer;
	w->writer = NULL;
	before = w->v->state;
	writer_new(w, STORE_LOCK_NONE, 0, "other");
	fill(w, 5, 1);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	writer_free(w->env, w->writer);
	w->writer = mine;
	now = w->v->state;
	w->v->state.snapshot = before.snapshot; /* this node knows nothing of it */
	w->v->state.snapshot_sequence = before.snapshot_sequence;
	fill(w, 5, 2);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	assert_true(w->v->state.snapshot_sequence > now.snapshot_sequence);
	assert_int_equal(list(w->env, w->repo).listed, 3);
	assert_all_is_well(w);
	locks_end(w);
}

static void a_base_that_is_gone_is_noticed(void **state)
{
	struct world *w = world_of(state);
	struct waited first;

	locks_begin(w, STORE_LOCK_NONE, 0);
	fill(w, 20, 0);
	first = create(w->env, w->writer, "");
	assert_int_equal(delete (w->env, w->repo, &first.result.info.id).result.error, 0);
	fill(w, 5, 1);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	assert_int_equal(list(w->env, w->repo).listed, 1);
	assert_all_is_well(w);
	locks_end(w);
}

static void create_fails_at_every_operation(void **state)
{
	struct world *w = world_of(state);
	bool failed = true;

	for (unsigned k = 1; failed; k++) {
		struct waited v;

		locks_begin(w, STORE_LOCK_COMPLIANCE, HOUR_NS);
		for (unsigned s = 0; s < 2; s++) {
			fill(w, 20, s);
			assert_string_equal(create(w->env, w->writer, "").result.why, "");
		}
		if (k % 3) /* everything is locked anew */
			w->writer->lock_for_ns = 4 * HOUR_NS;
		fill(w, 20, 2);
		memory_fail(w->m, OP_ALL, (k + 2) / 3, -EIO,
			    k % 2 ? MEMORY_WITH_EFFECT : MEMORY_ONCE);
		create(w->env, w->writer, "");
		failed = memory_heal(w->m);
		v = verify(w->env, w->repo);
		if (v.bad)
			fail_msg("after failure %u: %s: %s", k, v.object, v.why);
		fill(w, 3, 33);
		assert_string_equal(create(w->env, w->writer, "").result.why, "");
		assert_locks_hold(w, HOUR_NS);
		assert_all_is_well(w);
		locks_end(w);
		assert_true(k < 500);
	}
}

/* ---- archives -------------------------------------------------------------------------------------------- */

struct opened {
	bool done;
	int error;
	char why[256];
};

static void opened_done(void *context, struct snapshot_reader *reader, int error, const char *why)
{
	struct opened *opened = context;

	assert_null(reader);
	opened->error = error;
	snprintf(opened->why, sizeof(opened->why), "%s", why);
	opened->done = true;
}

/* Who would read at random does not wait for hours in the middle of it. */
static void does_not_begin_with_an_archive(struct world *w,
					   const struct snapshot_reader_config *config)
{
	struct opened opened = {.done = false};

	locks_begin(w, STORE_LOCK_NONE, 0);
	fill(w, 20, 0);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	locks->archived = true;
	snapshot_reader_open(w->repo, NULL, config, opened_done, &opened);
	env_run_until(w->env, &opened.done);
	assert_int_equal(opened.error, -STORE_ARCHIVED);
	assert_non_null(strstr(opened.why, "archived (GLACIER) and have been asked for"));
	assert_non_null(strstr(opened.why, "within 5.0 hours"));
	assert_true(locks->thaws > 1);
	locks_end(w);
}

static void a_reader_does_not_begin_with_an_archive(void **state)
{
	const struct snapshot_reader_config probe = {.probe_archive = true};

	does_not_begin_with_an_archive(world_of(state), &probe);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH(what_is_shared_is_locked_as_long),
		ON_BOTH(what_is_locked_is_left_and_said),
		ON_BOTH(what_was_locked_is_taken_by_a_later_run),
		ON_BOTH(what_went_missing_is_noticed_when_locking),
		ON_BOTH(without_a_lock_it_is_an_error),
		ON_BOTH(a_new_key_is_locked_before_it_is_needed),
		ON_BOTH(a_new_key_is_used_from_the_next_snapshot_on),
		ON_BOTH(nothing_is_listed_twice),
		ON_BOTH(neighbouring_pages_come_together),
		ON_BOTH(another_writer_is_noticed),
		ON_BOTH(a_base_that_is_gone_is_noticed),
		ON_BOTH(create_fails_at_every_operation),
		ON_BOTH(a_reader_does_not_begin_with_an_archive),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
