/* SPDX-License-Identifier: Apache-2.0 */
/* time limit: 300 s */
/*
 * What rules and pins keep for longer than it was locked is locked on: with all it needs, before its lock
 * ends, by requests that are few; and what is locked longer than its manifest says is not marked as deleted.
 */
#include "tests/unit/snapshot_locks.h"

#define LOCK_NS (8 * HOUR_NS)
#define BEGIN   (1767571200000000000ull + HOUR_NS / 2) /* Monday, 2026-01-05 00:30 */

static void begin(struct world *w, const struct retention_policy *policy)
{
	locks_begin(w, STORE_LOCK_COMPLIANCE, LOCK_NS);
	locks->clock_ns = BEGIN;
	w->writer->policy = *policy;
	w->writer->policy.locks = true;
	w->writer->policy.lock_for_ns = LOCK_NS;
	w->writer->policy.every_ns = HOUR_NS;
}

/* An hour later: one more, with what is due after it. */
static struct snapshot_info next(struct world *w, uint64_t seed)
{
	struct waited made;

	locks->clock_ns += HOUR_NS;
	w->writer->pruned_ns = 0;
	w->writer->counted_ns = env_now_ns(w->env);
	fill(w, 10, seed);
	made = create(w->env, w->writer, "");
	assert_string_equal(made.result.why, "");
	return made.result.info;
}

static uint64_t lock_of_manifest(const struct snapshot_info *info)
{
	const struct snapfmt_ref ref = {info->id, info->sequence, 0};
	char name[SNAPFMT_NAME_BYTES];

	snapfmt_name(SNAPFMT_MANIFEST, &info->volume, &ref, name);
	assert_non_null(lock_of(name));
	return lock_of(name)->retention.until_ns;
}

/* Whatever a listed snapshot's own lock is, all that it needs is locked as long. */
static void assert_whole_while_locked(struct world *w)
{
	struct waited l = list(w->env, w->repo);

	for (unsigned i = 0; i < l.listed; i++) {
		const struct snapshot_info *info = &l.infos[i];
		struct snapfmt_ref ref = {info->id, info->sequence, 0};
		uint64_t until_ns = lock_of_manifest(info);
		struct loaded loaded = {.done = false};
		char name[SNAPFMT_NAME_BYTES];

		manifest_load(&w->m->store, &info->volume, &ref, loaded_done, &loaded);
		env_run_until(w->env, &loaded.done);
		for (unsigned o = 0; o < loaded.manifest->object_count; o++) {
			const struct manifest_object *object = &loaded.manifest->objects[o];

			snapfmt_name(object->kind, &info->volume, &object->ref, name);
			assert_locked(name, until_ns);
		}
		manifest_free(loaded.manifest);
	}
}

static unsigned marks(struct world *w)
{
	unsigned count = 0;

	for (unsigned i = 0; i < w->m->count; i++)
		count += strstr(w->m->objects[i].name, "-deleted") != NULL;
	return count;
}

static struct waited forget(struct world *w, struct snapshot_repo *repo,
			    const struct retention_policy *policy)
{
	struct waited f = {.done = false};

	snapshot_forget(repo, policy, false, NULL, waited_done, &f);
	env_run_until(w->env, &f.done);
	return f;
}

static void pin(struct world *w, const struct id128 *id)
{
	struct waited p = {.done = false};

	snapshot_pin(w->repo, id, NULL, waited_done, &p);
	env_run_until(w->env, &p.done);
	assert_int_equal(p.result.error, 0);
}

/* Three days of an hourly schedule: what "daily" keeps never has less than half of lock-for left, but for the
 * hour between two runs; what only "last" keeps goes when its time has come, not a lock-for later. */
static void what_a_rule_keeps_stays_locked(void **state)
{
	const struct retention_policy policy = {.last = 8, .daily = 7};
	struct world *w = world_of(state);
	unsigned asked = 0, quiet = 0;

	begin(w, &policy);
	for (unsigned hour = 0; hour < 72; hour++) {
		unsigned retains = locks->retains, looks = locks->looks, dailies = 0;
		struct waited l;

		next(w, hour);
		l = list(w->env, w->repo);
		for (unsigned i = 0; i < l.listed; i++) {
			const struct snapshot_info *info = &l.infos[i];
			uint64_t age_ns = locks->clock_ns - info->created_ns;

			if (age_ns <= 10 * HOUR_NS)
				continue;
			dailies++;
			assert_true(info->created_ns / (24 * HOUR_NS) <
				    locks->clock_ns / (24 * HOUR_NS));
			assert_true(lock_of_manifest(info) >=
				    locks->clock_ns + LOCK_NS / 2 - HOUR_NS);
		}
		assert_true(dailies <= 1 + hour / 24);
		/* An object is locked on at most twice in lock-for; nothing is asked while nothing is due. */
		assert_true(locks->retains - retains <= w->m->count);
		asked += locks->looks - looks;
		quiet += locks->retains == retains;
		assert_whole_while_locked(w);
	}
	assert_true(quiet > 36);
	assert_true(asked <= 3 * 72); /* one that goes: twice; one that is due: once */
	assert_int_equal(marks(w), 0);
	assert_all_is_well(w);
	locks_end(w);
}

static void what_is_pinned_stays_locked_without_any_rule(void **state)
{
	const struct retention_policy none = {.last = 0};
	struct world *w = world_of(state);
	struct snapshot_info pinned, other;

	begin(w, &none);
	pinned = next(w, 0);
	other = next(w, 1);
	pin(w, &pinned.id);
	for (unsigned hour = 2; hour < 20; hour++) {
		next(w, hour);
		assert_true(lock_of_manifest(&pinned) >= locks->clock_ns + LOCK_NS / 2 - HOUR_NS);
	}
	/* No rule keeps it: an operator deletes it, and can. */
	assert_int_equal(lock_of_manifest(&other), other.retention.until_ns);
	assert_int_equal(delete (w->env, w->repo, &other.id).result.error, 0);
	assert_whole_while_locked(w);
	assert_all_is_well(w);
	locks_end(w);
}

/* The manifest's own words are no news to one who was not there. */
static void what_is_locked_on_is_not_marked(void **state)
{
	const struct retention_policy daily = {.last = 1, .daily = 7}, last = {.last = 1};
	struct world *w = world_of(state);
	struct snapshot_repo *other;
	struct snapshot_info first;
	struct waited f;
	uint64_t until_ns;

	begin(w, &daily);
	locks->clock_ns += 22 * HOUR_NS;
	first = next(w, 0); /* at 23:30: the day's last */
	for (unsigned hour = 1; hour < 12; hour++)
		next(w, hour);
	assert_true(first.retention.until_ns < locks->clock_ns);
	until_ns = lock_of_manifest(&first);
	assert_true(until_ns > locks->clock_ns);
	other = snapshot_repo_new(&w->m->store, &w->v->state.uuid);
	for (unsigned told = 0; told < 2; told++) {
		f = forget(w, told ? w->repo : other, &last);
		assert_string_equal(f.result.why, "");
		assert_true(f.result.locked_objects > 0);
		assert_int_equal(marks(w), 0);
		f = delete (w->env, told ? w->repo : other, &first.id);
		assert_int_equal(f.result.error, -EPERM);
		assert_non_null(strstr(f.result.why, "locked until "));
		assert_int_equal(marks(w), 0);
	}
	/* When it has ended it goes. */
	locks->clock_ns = until_ns + HOUR_NS;
	assert_string_equal(forget(w, other, &last).result.why, "");
	assert_int_equal(list(w->env, w->repo).listed, 1);
	assert_all_is_well(w);
	snapshot_repo_free(other);
	locks_end(w);
}

static void what_another_node_locked_on_is_left(void **state)
{
	const struct retention_policy daily = {.last = 1, .daily = 7};
	struct world *w = world_of(state);
	struct retention_policy policy;
	struct snapshot_repo *other;
	unsigned retains, looks;
	struct waited f;

	begin(w, &daily);
	locks->clock_ns += 22 * HOUR_NS;
	for (unsigned hour = 0; hour < 12; hour++)
		next(w, hour);
	policy = w->writer->policy;
	other = snapshot_repo_new(&w->m->store, &w->v->state.uuid);
	retains = locks->retains;
	looks = locks->looks;
	f = forget(w, other, &policy);
	assert_int_equal(f.result.renewed_snapshots, 0);
	assert_int_equal(locks->retains, retains);
	assert_true(locks->looks > looks);
	snapshot_repo_free(other);
	locks_end(w);
}

/* Two days of two nodes: only what is not shared is locked on by itself. */
static void the_keys_are_locked_on_too(void **state)
{
	const struct retention_policy daily = {.last = 1, .daily = 7};
	struct world *w = world_of(state);
	struct snapshot_writer_config config = {.node_name = "node",
						.pack_bytes = 128 << 10,
						.policy = daily,
						.lock = STORE_LOCK_COMPLIANCE,
						.lock_for_ns = LOCK_NS};
	struct snapshot_info first;
	struct store *crypt;
	unsigned keys = 0;

	begin(w, &daily);
	locks->ops.close = keep_open;
	writer_free(w->env, w->writer);
	snapshot_repo_free(w->repo);
	crypt = crypt_open(&w->m->store, key_file());
	w->repo = snapshot_repo_new(crypt, &w->v->state.uuid);
	config.policy.every_ns = HOUR_NS;
	w->writer = snapshot_writer_new(w->v, w->repo, &config);
	locks->clock_ns += 22 * HOUR_NS;
	first = next(w, 0);
	/* Nothing new is put, so nothing else locks the keys: only the schedule of old ones. */
	for (unsigned hour = 1; hour < 20; hour++) {
		locks->clock_ns += HOUR_NS;
		config.policy.locks = true;
		config.policy.lock_for_ns = LOCK_NS;
		assert_string_equal(forget(w, w->repo, &config.policy).result.why, "");
	}
	for (unsigned i = 0; i < w->m->count; i++)
		if (strstr(w->m->objects[i].name, "/keys/")) {
			assert_locked(w->m->objects[i].name, lock_of_manifest(&first));
			keys++;
		}
	assert_int_equal(keys, 1);
	assert_true(lock_of_manifest(&first) > locks->clock_ns + LOCK_NS / 2 - HOUR_NS);
	writer_free(w->env, w->writer);
	snapshot_repo_free(w->repo);
	store_close(crypt);
	w->repo = snapshot_repo_new(&w->m->store, &w->v->state.uuid);
	w->writer = NULL;
	writer_new(w, STORE_LOCK_COMPLIANCE, LOCK_NS, "node");
	locks_end(w);
}

/* Broken off anywhere, no snapshot is ever locked for longer than what it needs; the next run makes up for it. */
static void a_run_is_broken_off_anywhere(void **state)
{
	const struct retention_policy daily = {.last = 3, .daily = 7};
	struct world *w = world_of(state);
	bool failed = true;

	for (unsigned k = 1; failed; k++) {
		struct retention_policy policy;
		struct waited f;

		begin(w, &daily);
		locks->clock_ns += 21 * HOUR_NS;
		w->writer->policy.lock_for_ns = 0; /* until now */
		for (unsigned hour = 0; hour < 6; hour++)
			next(w, hour);
		policy = w->writer->policy;
		policy.lock_for_ns = LOCK_NS;
		w->m->fail_types = OP_ALL;
		w->m->fail_at = (k + 1) / 2;
		w->m->fail_for_good = k % 2;
		w->m->fail_error = -EIO;
		w->m->failed = false;
		f = forget(w, w->repo, &policy);
		failed = w->m->failed;
		assert_int_equal(f.result.error, failed ? -EIO : 0);
		w->m->fail_at = 0;
		w->m->fail_for_good = false;
		assert_whole_while_locked(w);
		f = forget(w, w->repo, &policy);
		assert_string_equal(f.result.why, "");
		if (!failed) /* at all; then the first run did it */
			assert_int_equal(f.result.renewed_snapshots, 0);
		assert_whole_while_locked(w);
		for (unsigned i = 0; i < list(w->env, w->repo).listed; i++) {
			const struct snapshot_info info = list(w->env, w->repo).infos[i];

			assert_true(lock_of_manifest(&info) >= locks->clock_ns + LOCK_NS / 2);
		}
		assert_all_is_well(w);
		locks_end(w);
		assert_true(k < 500);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH(what_a_rule_keeps_stays_locked),
		ON_BOTH(what_is_pinned_stays_locked_without_any_rule),
		ON_BOTH(what_is_locked_on_is_not_marked),
		ON_BOTH(what_another_node_locked_on_is_left),
		ON_BOTH(the_keys_are_locked_on_too),
		ON_BOTH(a_run_is_broken_off_anywhere),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
