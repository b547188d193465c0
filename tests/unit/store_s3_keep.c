/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Versions, locks and archives of a bucket (the fake's): a delete takes all versions; what is locked is
 * left and told; that a service locks is proven, not believed; what is archived is asked for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "tests/unit/s3_fixture.h"

static uint64_t in_seconds(unsigned seconds)
{
	return ((uint64_t)time(NULL) + seconds) * 1000000000ull;
}

static int64_t put_locked(struct world *w, const char *name, size_t length, enum store_lock lock,
			  unsigned seconds)
{
	struct call call = {.op.done = call_done};
	struct store_retention retention = {lock, in_seconds(seconds)};
	char *data = calloc(1, length);
	struct iovec iov = {data, length};

	store_put(w->store, &call.op, name, &iov, 1, &retention);
	env_run_until(w->env, &call.done);
	free(data);
	return call.result;
}

static int64_t retain(struct world *w, const char *name, enum store_lock lock, unsigned seconds)
{
	struct call call = {.op.done = call_done};
	struct store_retention retention = {lock, in_seconds(seconds)};

	store_retain(w->store, &call.op, name, &retention);
	env_run_until(w->env, &call.done);
	return call.result;
}

static int64_t ask(struct world *w, const char *name,
		   void (*what)(struct store *store, struct env_op *op, const char *name))
{
	struct call call = {.op.done = call_done};

	what(w->store, &call.op, name);
	env_run_until(w->env, &call.done);
	return call.result;
}

/* For how many seconds from now; 0: not, or not any more. */
static int64_t locked_for(struct world *w, const char *name)
{
	struct call call = {.op.done = call_done};

	store_retained(w->store, &call.op, name);
	env_run_until(w->env, &call.done);
	return call.result > 0 ? call.result - (int64_t)time(NULL) : call.result;
}

/* Those that a plain listing shows or hides. */
static unsigned versions(struct world *w, const char *bucket)
{
	char what[64];

	snprintf(what, sizeof(what), "versions/%s", bucket);
	return ask_fake(w, what);
}

static void delete_takes_all_versions(void **state)
{
	struct world *w = world_of(state);
	struct store_counts counts;

	open_bucket(w, "versioned", "");
	assert_int_equal(put(w, "v/packs/1", "one"), 0);
	assert_int_equal(put(w, "v/packs/1", "two"), 0); /* no condition there */
	assert_int_equal(put(w, "v/packs/2", "other"), 0);
	assert_int_equal(versions(w, "versioned"), 3);
	assert_int_equal(delete (w, "v/packs/1"), 0);
	assert_int_equal(size(w, "v/packs/1"), -ENOENT);
	assert_int_equal(size(w, "v/packs/2"), 5);
	assert_int_equal(versions(w, "versioned"), 1);
	assert_int_equal(delete (w, "v/packs/1"), 0);
	close_bucket(w);
	/* One that has put nothing finds out by itself, and leaves no marker either. */
	open_bucket(w, "versioned", "");
	assert_int_equal(delete (w, "v/packs/2"), 0);
	assert_int_equal(versions(w, "versioned"), 0);
	close_bucket(w);
	/* Where nothing has versions a delete is one request, but for the first. */
	open_bucket(w, "plain", "");
	assert_int_equal(put(w, "v/a", "x"), 0);
	assert_int_equal(delete (w, "v/a"), 0);
	assert_int_equal(delete (w, "v/b"), 0);
	store_counts(w->store, &counts);
	assert_int_equal(counts.deletes, 2);
	assert_int_equal(counts.lists, 2); /* opening; old parts */
}

static void says_so_where_versions_do_not_go(void **state)
{
	struct world *w = world_of(state);

	open_bucket(w, "blind", "");
	assert_int_equal(put(w, "v/a", "x"), 0);
	assert_int_equal(delete (w, "v/a"), -EACCES);
}

static void what_is_locked_stays(void **state)
{
	struct world *w = world_of(state);

	open_bucket(w, "locked", "");
	assert_int_equal(put_locked(w, "v/packs/1", 10, STORE_LOCK_COMPLIANCE, 3600), 0);
	assert_int_equal(put_locked(w, "v/packs/2", 10, STORE_LOCK_GOVERNANCE, 36000), 0);
	assert_int_equal(put(w, "v/packs/3", "free"), 0);
	assert_int_equal(delete (w, "v/packs/1"), -STORE_LOCKED);
	assert_int_equal(delete (w, "v/packs/2"), -STORE_LOCKED);
	assert_int_equal(delete (w, "v/packs/3"), 0);
	/* Nothing hides it either. */
	assert_int_equal(size(w, "v/packs/1"), 10);
	close_bucket(w);
	open_bucket(w, "locked", "");
	assert_int_equal(delete (w, "v/packs/1"), -STORE_LOCKED);
	assert_int_equal(size(w, "v/packs/1"), 10);
	ask_fake(w, "later/7200");
	assert_int_equal(delete (w, "v/packs/1"), 0);
	assert_int_equal(delete (w, "v/packs/2"), -STORE_LOCKED);
	assert_int_equal(size(w, "v/packs/1"), -ENOENT);
	assert_int_equal(versions(w, "locked"), 1);
}

static void a_lock_is_made_longer_never_shorter(void **state)
{
	struct world *w = world_of(state);

	open_bucket(w, "locked", "");
	assert_int_equal(put_locked(w, "v/long", 10, STORE_LOCK_GOVERNANCE, 600), 0);
	assert_int_equal(retain(w, "v/long", STORE_LOCK_GOVERNANCE, 7200), 0);
	assert_int_equal(retain(w, "v/long", STORE_LOCK_GOVERNANCE, 1800),
			 0); /* is that long already */
	ask_fake(w, "later/3600");
	assert_int_equal(delete (w, "v/long"), -STORE_LOCKED);
	/* The other way of locking does not replace it, but the time counts. */
	assert_int_equal(retain(w, "v/long", STORE_LOCK_COMPLIANCE, 36000), 0);
	assert_int_equal(retain(w, "v/none", STORE_LOCK_COMPLIANCE, 7200), -ENOENT);
	/* Of what was put without. */
	assert_int_equal(put(w, "v/free", "free"), 0);
	assert_int_equal(locked_for(w, "v/free"), 0);
	assert_int_equal(retain(w, "v/free", STORE_LOCK_COMPLIANCE, 36000), 0);
	assert_int_equal(delete (w, "v/free"), -STORE_LOCKED);
	/* And the service tells until when. */
	assert_true(locked_for(w, "v/free") > 18000 && locked_for(w, "v/free") <= 36001);
	assert_int_equal(locked_for(w, "v/none"), -ENOENT);
	close_bucket(w);
	open_bucket(w, "plain", "");
	assert_int_equal(put(w, "v/free", "free"), 0);
	assert_int_equal(locked_for(w, "v/free"), 0);
}

static void a_lock_is_proven(void **state)
{
	struct world *w = world_of(state);

	/* A service that drops the headers of an object in parts is asked once more. */
	open_bucket(w, "dropper", "part-size=5&checksum=none");
	assert_int_equal(put_locked(w, "v/large", 6 << 20, STORE_LOCK_COMPLIANCE, 3600), 0);
	assert_int_equal(delete (w, "v/large"), -STORE_LOCKED);
	assert_int_equal(put_locked(w, "v/small", 6, STORE_LOCK_COMPLIANCE, 3600), 0);
	assert_int_equal(delete (w, "v/small"), -STORE_LOCKED);
	close_bucket(w);
	/* Those that take them for nothing, or refuse them, are found out. */
	open_bucket(w, "faithless", "");
	assert_int_equal(put_locked(w, "v/x", 6, STORE_LOCK_COMPLIANCE, 3600), -STORE_CANNOT_LOCK);
	close_bucket(w);
	open_bucket(w, "plain", "");
	assert_int_equal(put_locked(w, "v/x", 6, STORE_LOCK_COMPLIANCE, 3600), -STORE_CANNOT_LOCK);
	assert_int_equal(put(w, "v/y", "y"), 0);
	assert_int_equal(retain(w, "v/y", STORE_LOCK_COMPLIANCE, 3600), -STORE_CANNOT_LOCK);
}

static void names_after_one(void **state)
{
	struct world *w = world_of(state);
	struct call call = {.op.done = call_done};
	struct store_counts before, after;

	open_bucket(w, "after", "");
	for (char name[] = "v/maps/a"; name[7] <= 'z'; name[7]++)
		assert_int_equal(put(w, name, "m"), 0);
	store_counts(w->store, &before);
	store_list_after(w->store, &call.op, "v/maps/", "v/maps/x", listed, &call);
	env_run_until(w->env, &call.done);
	store_counts(w->store, &after);
	assert_int_equal(call.result, 2);
	assert_string_equal(call.listed, "v/maps/y:1 v/maps/z:1 ");
	assert_int_equal(after.lists - before.lists, 1);
}

static const char *archive_of;

static void archive_listed(void *context, const struct store_object *object)
{
	archive_of = object->archive;
}

static void brings_back_what_is_archived(void **state)
{
	struct world *w = world_of(state);
	struct call call = {.op.done = call_done};
	char buf[8];

	ask_fake(w, "thaw/3600");
	open_bucket(w, "frozen", "storage-class=DEEP_ARCHIVE&restore-tier=Bulk&restore-days=3");
	assert_int_equal(put(w, "v/packs/1", "cold"), 0);
	assert_int_equal(put(w, "v/maps/1", "warm"), 0);
	assert_int_equal(get(w, "v/packs/1", buf, 8, 0), -STORE_ARCHIVED);
	w->store->ops->list(w->store, &call.op, "v/packs/", archive_listed, NULL);
	env_run_until(w->env, &call.done);
	assert_string_equal(archive_of, "DEEP_ARCHIVE");
	assert_int_equal(w->store->ops->thaw_ns(w->store, archive_of) / 3600000000000ull, 48);
	assert_int_equal(ask(w, "v/packs/1", w->store->ops->thawed), 0);
	assert_int_equal(ask(w, "v/packs/1", w->store->ops->thaw), 0);
	assert_int_equal(ask(w, "v/packs/1", w->store->ops->thaw), 0);
	assert_int_equal(ask(w, "v/packs/1", w->store->ops->thawed), 0);
	ask_fake(w, "later/3601");
	assert_int_equal(ask(w, "v/packs/1", w->store->ops->thawed), 1);
	assert_int_equal(ask(w, "v/packs/1", w->store->ops->thaw), 1);
	assert_int_equal(get(w, "v/packs/1", buf, 8, 0), 4);
	assert_int_equal(ask(w, "v/maps/1", w->store->ops->thawed), 1);
	assert_int_equal(ask(w, "v/maps/1", w->store->ops->thaw), 1);
	assert_int_equal(ask(w, "v/none", w->store->ops->thaw), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(delete_takes_all_versions, setup, teardown),
		cmocka_unit_test_setup_teardown(says_so_where_versions_do_not_go, setup, teardown),
		cmocka_unit_test_setup_teardown(what_is_locked_stays, setup, teardown),
		cmocka_unit_test_setup_teardown(a_lock_is_made_longer_never_shorter, setup,
						teardown),
		cmocka_unit_test_setup_teardown(a_lock_is_proven, setup, teardown),
		cmocka_unit_test_setup_teardown(names_after_one, setup, teardown),
		cmocka_unit_test_setup_teardown(brings_back_what_is_archived, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
