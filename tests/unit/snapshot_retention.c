/* SPDX-License-Identifier: Apache-2.0 */
/* Which snapshots a policy keeps, against dates worked out by hand; and deleting the others. */
#include "tests/unit/snapshot_fixture.h"

#include <stdio.h>

#include "daemon/snapshot/retention.h"

#define SECOND UINT64_C(1000000000)
#define HOUR   (3600 * SECOND)
#define DAY    (24 * HOUR)
#define NOW    (UINT64_C(1767225600) * SECOND) /* Thursday, 2026-01-01 00:00:00 UTC */

/* Snapshots so many hours before NOW, oldest first; those kept as a string of their places. */
static const char *kept(const struct retention_policy *policy, const unsigned *hours_ago,
			unsigned count)
{
	static char text[256];
	struct snapshot_info infos[16] = {{.sequence = 0}};
	struct retention_verdict verdicts[16];
	size_t used = 0;

	for (unsigned i = 0; i < count; i++)
		infos[i].created_ns = NOW - hours_ago[i] * HOUR;
	retention_decide(policy, infos, NULL, count, NOW, verdicts);
	text[0] = '\0';
	for (unsigned i = 0; i < count; i++) {
		assert_int_equal(verdicts[i].keep, verdicts[i].why[0] != 0);
		if (verdicts[i].keep)
			used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%u",
						 used ? " " : "", hours_ago[i]);
	}
	return text;
}

#define KEPT(expected, policy_, ...)                                                        \
	do {                                                                                \
		static const unsigned hours[] = {__VA_ARGS__};                              \
		const struct retention_policy policy = policy_;                             \
		assert_string_equal(kept(&policy, hours, sizeof(hours) / sizeof(hours[0])), \
				    expected);                                              \
	} while (0)
#define POLICY(...) ((struct retention_policy){__VA_ARGS__})

/* What the service would refuse to delete stays, and says why. */
static void locked_ones_stay(void **state)
{
	struct snapshot_info infos[4] = {{.created_ns = NOW - 40 * HOUR},
					 {.created_ns = NOW - 30 * HOUR},
					 {.created_ns = NOW - 20 * HOUR},
					 {.created_ns = NOW - 10 * HOUR}};
	struct retention_verdict verdicts[4];
	struct retention_policy policy = {.last = 1, .locks = true};

	infos[0].retention = (struct store_retention){STORE_LOCK_GOVERNANCE, NOW};
	infos[1].retention = (struct store_retention){STORE_LOCK_COMPLIANCE, NOW + DAY};
	retention_decide(&policy, infos, NULL, 4, NOW, verdicts);
	assert_false(verdicts[0].keep);
	assert_string_equal(verdicts[1].why, "locked until 2026-01-02 00:00:00 UTC");
	assert_false(verdicts[2].keep);
	assert_string_equal(verdicts[3].why, "newest, last 1 of 1");
	assert_false(retention_is_only_last(&policy));
}

static void rules(void **state)
{
	KEPT("5 4 3 2 1", POLICY(.last = 0), 5, 4, 3, 2, 1);
	KEPT("2 1", POLICY(.last = 2), 5, 4, 3, 2, 1);
	/* 1 hour ago is Wednesday 31st 23:00; 24 hours ago the 31st 00:00; 25 the 30th. */
	KEPT("25 1", POLICY(.daily = 2), 72, 49, 30, 25, 24, 1);
	KEPT("49 25 1", POLICY(.daily = 3), 72, 50, 49, 30, 25, 24, 1);
	/* The week began on Monday the 29th: 72 hours ago is its first hour, 73 the week before. */
	KEPT("73 1", POLICY(.weekly = 2), 300, 74, 73, 72, 1);
	/* December had 744 hours: 745 hours ago is November. */
	KEPT("745 1", POLICY(.monthly = 2), 800, 746, 745, 744, 1);
	KEPT("8761 1", POLICY(.yearly = 5), 9000, 8761, 8760, 1);
	KEPT("2 1", POLICY(.hourly = 2), 3, 2, 1);
	KEPT("2 1", POLICY(.within_ns = 2 * HOUR), 4, 3, 2, 1);
	/* The newest stays, however old; periods without any do not count. */
	KEPT("5000", POLICY(.within_ns = HOUR), 6000, 5000);
	KEPT("9000 5000 1", POLICY(.daily = 3), 9000, 5000, 1);
	/* Any rule keeps. */
	KEPT("745 25 2 1", POLICY(.last = 2, .daily = 2, .monthly = 2), 746, 745, 26, 25, 2, 1);
}

static void reasons_are_told(void **state)
{
	struct snapshot_info infos[2] = {{.created_ns = NOW - DAY}, {.created_ns = NOW}};
	const struct retention_policy policy = {.last = 1, .daily = 7, .within_ns = HOUR};
	struct retention_verdict verdicts[2];

	retention_decide(&policy, infos, NULL, 2, NOW, verdicts);
	assert_string_equal(verdicts[0].why, "daily 2 of 7");
	assert_string_equal(verdicts[1].why, "newest, last 1 of 1, daily 1 of 7, within");
}

/* Pinned ones are beside the count. */
static void pinned_ones_take_no_place(void **state)
{
	struct snapshot_info infos[4] = {{.created_ns = NOW - 3 * DAY},
					 {.created_ns = NOW - 2 * DAY},
					 {.created_ns = NOW - DAY},
					 {.created_ns = NOW}};
	const bool pinned[4] = {false, false, true, false};
	const struct retention_policy policy = {.last = 2};
	struct retention_verdict verdicts[4];

	retention_decide(&policy, infos, pinned, 4, NOW, verdicts);
	assert_false(verdicts[0].keep);
	assert_string_equal(verdicts[1].why, "last 2 of 2");
	assert_string_equal(verdicts[2].why, "pinned");
	assert_string_equal(verdicts[3].why, "newest, last 1 of 2");
}

/* ---- locking on ---------------------------------------------------------------------------------- */

/* Of hourly ones, from count hours ago until now, locked for so many hours since then: those due, oldest first. */
static const char *due(const struct retention_policy *policy, unsigned count, unsigned locked_hours,
		       const bool *pinned)
{
	static char text[128];
	struct snapshot_info infos[128] = {{.sequence = 0}};
	bool is_due[128];
	size_t used = 0;

	for (unsigned i = 0; i < count; i++) {
		infos[i].sequence = i + 1;
		infos[i].created_ns = NOW - (count - 1 - i) * HOUR;
		infos[i].retention = (struct store_retention){
			STORE_LOCK_COMPLIANCE, infos[i].created_ns + locked_hours * HOUR};
	}
	retention_due(policy, infos, pinned, count, NOW, is_due);
	text[0] = '\0';
	for (unsigned i = 0; i < count; i++) {
		bool begins = is_due[i] && (!i || !is_due[i - 1]);
		bool ends = is_due[i] && (i + 1 == count || !is_due[i + 1]);

		if (begins || ends)
			used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%u%s",
						 used && begins ? " " : "", count - 1 - i,
						 begins && !ends ? ".." : "");
	}
	return text;
}

static void what_is_kept_for_longer_is_locked_on(void **state)
{
	struct retention_policy policy = {.last = 48, .lock_for_ns = 48 * HOUR, .every_ns = HOUR};
	bool pinned[128] = {[3] = true};

	/* Locked for as long as it is sure to be kept: never for longer. */
	assert_string_equal(due(&policy, 48, 48, NULL), "");
	assert_string_equal(due(&policy, 48, 54, NULL), "");
	/* Kept for longer: as soon as less than half is left. */
	policy.last = 96;
	assert_string_equal(due(&policy, 96, 54, NULL), "86..31");
	/* Those that go until an eighth of it after the lock has ended are left to go. */
	policy.last = 54;
	assert_string_equal(due(&policy, 54, 48, NULL), "");
	policy.last = 60;
	assert_string_equal(due(&policy, 60, 48, NULL), "50..25");
	/* The day's last one; what only its number keeps goes before its lock ends. */
	policy = (struct retention_policy){
		.last = 24, .daily = 7, .lock_for_ns = 24 * HOUR, .every_ns = HOUR};
	assert_string_equal(due(&policy, 90, 27, NULL), "73 49 25");
	/* Without a schedule: as they are now. */
	policy = (struct retention_policy){.last = 2, .lock_for_ns = 24 * HOUR};
	assert_string_equal(due(&policy, 24, 10, NULL), "1..0");
	/* No rule: only what is pinned, however it is kept. */
	policy = (struct retention_policy){.lock_for_ns = 24 * HOUR, .every_ns = HOUR};
	assert_string_equal(due(&policy, 24, 24, NULL), "");
	assert_string_equal(due(&policy, 24, 24, pinned), "20");
	/* Nothing is made longer without lock-for. */
	policy = (struct retention_policy){.last = 24};
	assert_string_equal(due(&policy, 24, 1, pinned), "");
}

/* ---- deleting ---------------------------------------------------------------------------------- */

static unsigned told_kept, told_going;

static void told(void *context, const struct snapshot_info *info, bool keep, const char *why)
{
	assert_int_equal(keep, *why != '\0');
	*(keep ? &told_kept : &told_going) += 1;
}

static struct waited forget(struct world *w, const struct retention_policy *policy, bool dry_run)
{
	struct waited f = {.done = false};

	told_kept = told_going = 0;
	snapshot_forget(w->repo, policy, dry_run, told, waited_done, &f);
	env_run_until(w->env, &f.done);
	return f;
}

static void what_is_not_kept_goes(void **state)
{
	struct world *w = world_of(state);
	const struct retention_policy policy = {.last = 2, .yearly = 1};
	struct snapshot_result would;
	struct waited f;
	unsigned count;

	world_volume(w, 16 << 20, 0, 1 << 20);
	for (unsigned i = 0; i < 5; i++) {
		fake_fill(w->v, i, i);
		assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	}
	count = w->m->count;
	f = forget(w, &policy, true);
	assert_int_equal(f.result.error, 0);
	assert_int_equal(told_kept, 2);
	assert_int_equal(told_going, 3);
	assert_int_equal(w->m->count, count);
	would = f.result;

	/* What is to stay cannot be read: nothing goes. */
	for (unsigned i = 0, n = 0; i < w->m->count; i++)
		if (strstr(w->m->objects[i].name, "/snapshots/") && ++n == 5)
			w->m->objects[i].data[w->m->objects[i].size - 1] ^= 1;
	f = forget(w, &policy, false);
	assert_int_equal(f.result.error, -EBADMSG);
	assert_int_equal(w->m->count, count);
	for (unsigned i = 0, n = 0; i < w->m->count; i++)
		if (strstr(w->m->objects[i].name, "/snapshots/") && ++n == 5)
			w->m->objects[i].data[w->m->objects[i].size - 1] ^= 1;

	f = forget(w, &policy, false);
	assert_string_equal(f.result.why, "");
	assert_true(f.result.deleted_objects >= 3);
	assert_int_equal(f.result.deleted_objects, would.deleted_objects);
	assert_int_equal(f.result.freed_bytes, would.freed_bytes);
	assert_int_equal(list(w->env, w->repo).listed, 2);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	assert_int_equal(collect(w->env, w->repo).result.deleted_objects, 0);
}

static struct waited pin(struct world *w, const struct id128 *id, const struct id128 *holder)
{
	struct waited p = {.done = false};

	snapshot_pin(w->repo, id, holder, waited_done, &p);
	env_run_until(w->env, &p.done);
	return p;
}

static struct waited unpin(struct world *w, const struct id128 *id, const struct id128 *holder,
			   bool all)
{
	struct waited p = {.done = false};

	snapshot_unpin(w->repo, id, holder, all, waited_done, &p);
	env_run_until(w->env, &p.done);
	return p;
}

static void pinned_ones_stay(void **state)
{
	struct world *w = world_of(state);
	const struct retention_policy policy = {.within_ns = 1};
	struct id128 id, unknown = {{7}};

	world_volume(w, 16 << 20, 2, 1 << 20); /* the writer keeps two */
	for (unsigned i = 0; i < 5; i++) {
		struct waited c;

		fake_fill(w->v, i, i);
		c = create(w->env, w->writer, "");
		assert_int_equal(c.result.error, 0);
		if (i == 0) {
			id = c.result.info.id;
			assert_int_equal(pin(w, &id, NULL).result.error, 0);
			assert_int_equal(pin(w, &id, NULL).result.error, 0); /* again */
		}
	}
	assert_int_equal(list(w->env, w->repo).listed, 3);
	assert_int_equal(pin(w, &unknown, NULL).result.error, -ENOENT);
	assert_int_equal(delete (w->env, w->repo, &id).result.error, -EPERM);
	assert_int_equal(forget(w, &policy, false).result.error, 0);
	assert_int_equal(list(w->env, w->repo).listed, 2);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	assert_int_equal(unpin(w, &id, NULL, false).result.error, 0);
	assert_int_equal(delete (w->env, w->repo, &id).result.error, 0);
	assert_int_equal(list(w->env, w->repo).listed, 1);
}

static unsigned pins(const struct world *w)
{
	unsigned n = 0;

	for (unsigned i = 0; i < w->m->count; i++)
		n += strstr(w->m->objects[i].name, "/pins/") != NULL;
	return n;
}

/* Two restores, and the operator: whoever goes first takes nothing from the others. */
static void each_has_a_pin_of_its_own(void **state)
{
	struct world *w = world_of(state);
	const struct retention_policy policy = {.last = 1};
	const struct id128 a = {{1}}, b = {{2}};
	struct id128 id;

	world_volume(w, 16 << 20, 0, 1 << 20);
	for (unsigned i = 0; i < 3; i++) {
		fake_fill(w->v, i, i);
		struct waited c = create(w->env, w->writer, "");
		assert_int_equal(c.result.error, 0);
		if (i == 0)
			id = c.result.info.id;
	}
	assert_int_equal(pin(w, &id, &a).result.error, 0);
	assert_int_equal(pin(w, &id, NULL).result.error, 0);
	assert_int_equal(pin(w, &id, &b).result.error, 0);
	assert_int_equal(pin(w, &id, &b).result.error, 0); /* again, as after a crash */
	assert_int_equal(pins(w), 3);
	assert_int_equal(unpin(w, &id, NULL, false).result.pins_left, 2);
	assert_int_equal(forget(w, &policy, false).result.error, 0);
	assert_int_equal(list(w->env, w->repo).listed, 2);
	assert_int_equal(delete (w->env, w->repo, &id).result.error, -EPERM);
	assert_int_equal(unpin(w, &id, &a, false).result.pins_left, 1);
	assert_int_equal(unpin(w, &id, &a, false).result.error, 0); /* again */
	assert_int_equal(forget(w, &policy, false).result.error, 0);
	assert_int_equal(list(w->env, w->repo).listed, 2);
	assert_int_equal(unpin(w, &id, NULL, true).result.pins_left, 0);
	assert_int_equal(pins(w), 0);
	assert_int_equal(forget(w, &policy, false).result.error, 0);
	assert_int_equal(list(w->env, w->repo).listed, 1);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
}

/* Wherever it fails; but what was there before is the operator's still. */
static void a_pin_that_fails_does_not_stay(void **state)
{
	struct world *w = world_of(state);
	const struct id128 holder = {{1}};
	struct waited p;
	struct id128 id;

	world_volume(w, 16 << 20, 0, 1 << 20);
	fake_fill(w->v, 0, 1);
	id = create(w->env, w->writer, "").result.info.id;
	for (unsigned held = 0; held < 2; held++) {
		const struct id128 *who = held ? &holder : NULL;

		memory_fail(w->m, OP_LIST, 2, -EIO, MEMORY_ONCE);
		assert_int_equal(pin(w, &id, who).result.error, -EIO);
		assert_true(memory_heal(w->m));
		assert_int_equal(pins(w), 0);
		/* A put whose answer was lost. */
		memory_fail(w->m, OP_PUT, 1, -EIO, MEMORY_WITH_EFFECT);
		p = pin(w, &id, who);
		assert_int_equal(p.result.error, -EIO);
		assert_true(memory_heal(w->m));
		/* The operator's may have been there before: it is not taken away, and that is said. */
		assert_int_equal(pins(w), held ? 0 : 1);
		assert_true(held || strstr(p.result.why, "may be there"));
		assert_int_equal(unpin(w, &id, who, false).result.error, 0);
	}
	assert_int_equal(pin(w, &id, NULL).result.error, 0);
	memory_fail(w->m, OP_PUT, 1, -EIO, MEMORY_ONCE);
	assert_int_equal(pin(w, &id, NULL).result.error, -EIO);
	assert_int_equal(pins(w), 1);
	memory_fail(w->m, OP_LIST, 2, -EIO, MEMORY_ONCE);
	assert_int_equal(pin(w, &id, NULL).result.error, -EIO);
	assert_int_equal(pins(w), 1);
	assert_int_equal(unpin(w, &id, NULL, false).result.error, 0);
	/* What cannot be taken back is said. */
	memory_fail(w->m, OP_LIST | OP_DELETE, 2, -EIO, MEMORY_FOR_GOOD);
	p = pin(w, &id, NULL);
	assert_true(memory_heal(w->m));
	assert_int_equal(p.result.error, -EIO);
	assert_non_null(strstr(p.result.why, "the pin stays"));
	assert_int_equal(pins(w), 1);
}

static unsigned packs_of(const struct world *w, const char *sequence)
{
	unsigned n = 0;

	for (unsigned i = 0; i < w->m->count; i++)
		n += strstr(w->m->objects[i].name, "/packs/") &&
		     strstr(w->m->objects[i].name, sequence);
	return n;
}

/* Of what the first snapshot packed six chunks of 64 stay. */
static void packs_mostly_dead_are_repacked(void **state)
{
	for (unsigned on = 0; on < 2; on++) {
		struct world *w = world_of(state);
		struct snapshot_writer_config config = {.policy = {.last = 1}, .repack = on};
		struct waited c;

		world_volume(w, 64 * CHUNK, 0, 0);
		writer_free(w->env, w->writer);
		w->writer = snapshot_writer_new(w->v, w->repo, &config);
		for (unsigned i = 0; i < 64; i++)
			fake_fill(w->v, i, i);
		assert_int_equal(create(w->env, w->writer, "").result.error, 0);
		for (unsigned i = 6; i < 64; i++)
			fake_fill(w->v, i, 100 + i);
		assert_int_equal(create(w->env, w->writer, "").result.error, 0);
		assert_int_equal(packs_of(w, "/0000000000000001-"), 1);
		fake_fill(w->v, 20, 1000);
		c = create(w->env, w->writer, "");
		assert_string_equal(c.result.why, "");
		assert_int_equal(packs_of(w, "/0000000000000001-"), !on);
		assert_true(on ? c.result.written_bytes > 7 * CHUNK
			       : c.result.written_bytes < 2 * CHUNK);
		assert_int_equal(verify(w->env, w->repo).bad, 0);
		for (unsigned i = 0; i < 64; i++) {
			uint8_t now[CHUNK];

			memcpy(now, w->v->data[i], CHUNK);
			fake_write(w->v, i, now);
		}
		/* Nothing differs from what it says: all chunks compare equal. */
		assert_true(create(w->env, w->writer, "").result.written_bytes < CHUNK);
		assert_int_equal(verify(w->env, w->repo).bad, 0);
		world_drop(w);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rules),
		cmocka_unit_test(locked_ones_stay),
		cmocka_unit_test(reasons_are_told),
		cmocka_unit_test(pinned_ones_take_no_place),
		cmocka_unit_test(what_is_kept_for_longer_is_locked_on),
		ON_BOTH(what_is_not_kept_goes),
		ON_BOTH(pinned_ones_stay),
		ON_BOTH(each_has_a_pin_of_its_own),
		ON_BOTH(a_pin_that_fails_does_not_stay),
		ON_BOTH(packs_mostly_dead_are_repacked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
