/* SPDX-License-Identifier: Apache-2.0 */
/*
 * thaw: brings back from an archive what a snapshot needs: all of it is asked for at once, then looked at
 * from time to time, one after the other, until the last can be read.
 */
#include "daemon/snapshot/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUSY_MAX       8
#define PAUSE_FIRST_NS 1000000000ull
#define PAUSE_MAX_NS   (300 * 1000000000ull)
#define FAILURES_MAX \
	20 /* looks in a row: hours of waiting are not given up for a moment's trouble */

struct thaw;

struct thaw_op {
	struct env_op op;
	struct thaw *thaw;
	size_t index; /* in the archive's objects */
	char name[SNAPFMT_NAME_BYTES];
	uint8_t byte;
	int error; /* of the asking, while it is tried whether it can be read all the same */
	bool busy;
};

struct thaw {
	struct store *store;
	const struct manifest *manifest;
	const struct inventory_archive *archive;
	bool *ready;
	size_t next; /* to be asked for; then: to be looked at */
	struct thaw_op ops[BUSY_MAX];
	unsigned busy;
	struct env_timer timer;
	uint64_t pause_ns;
	unsigned failures;
	int error;
	char why[WHY_BYTES];
	void (*waiting)(void *context, size_t left);
	void (*done)(void *context, int error, const char *why);
	void *context;
};

static void ask_pump(struct thaw *t);
static void look(struct thaw *t);

static void thaw_end(struct thaw *t)
{
	t->done(t->context, t->error, t->why);
	free(t->ready);
	free(t);
}

static void name_of(const struct thaw *t, size_t index, char name[SNAPFMT_NAME_BYTES])
{
	const struct manifest_object *object = &t->manifest->objects[t->archive->objects[index]];

	snapfmt_name(object->kind, &t->manifest->info.volume, &object->ref, name);
}

/* ---- looking ----------------------------------------------------------------------------------- */

static size_t left(const struct thaw *t)
{
	size_t count = 0;

	for (size_t i = 0; i < t->archive->count; i++)
		count += !t->ready[i];
	return count;
}

static void pause_over(struct env_timer *timer)
{
	look(container_of(timer, struct thaw, timer));
}

static void looked(struct env_op *op, int64_t result)
{
	struct thaw_op *one = container_of(op, struct thaw_op, op);
	struct thaw *t = one->thaw;

	if (result > 0) {
		t->ready[one->index] = true;
		t->failures = 0;
		look(t);
		return;
	}
	if (result < 0 && (result == -ENOENT || ++t->failures == FAILURES_MAX)) {
		t->error = why_set(t->why, (int)result, "%s: %s", one->name,
				   store_strerror((int)result));
		thaw_end(t);
		return;
	}
	if (!result)
		t->failures = 0;
	if (!t->waiting) {
		t->error =
			why_set(t->why, -STORE_ARCHIVED,
				"%zu objects are archived (%s) and have been asked for: as a rule "
				"they are there within %.1f hours; try again then",
				left(t), t->archive->class, (double)t->archive->takes_ns / 3600e9);
		thaw_end(t);
		return;
	}
	t->waiting(t->context, left(t));
	env_timer_start(t->store->env, &t->timer, t->pause_ns);
	t->pause_ns = t->pause_ns * 3 / 2 < PAUSE_MAX_NS ? t->pause_ns * 3 / 2 : PAUSE_MAX_NS;
}

/* The first that is not there yet. */
static void look(struct thaw *t)
{
	struct thaw_op *one = &t->ops[0];

	while (t->next < t->archive->count && t->ready[t->next])
		t->next++;
	if (t->next == t->archive->count) {
		thaw_end(t);
		return;
	}
	one->thaw = t;
	one->index = t->next;
	one->op.done = looked;
	name_of(t, t->next, one->name);
	t->store->ops->thawed(t->store, &one->op, one->name);
}

/* ---- asking -------------------------------------------------------------------------------------- */

static void asked_over(struct thaw_op *one)
{
	one->busy = false;
	one->thaw->busy--;
	ask_pump(one->thaw);
}

static void tried(struct env_op *op, int64_t result)
{
	struct thaw_op *one = container_of(op, struct thaw_op, op);
	struct thaw *t = one->thaw;

	if (result == 1)
		t->ready[one->index] = true;
	else if (!t->error)
		t->error =
			why_set(t->why, one->error, "%s: is archived, and cannot be asked for: %s",
				one->name, store_strerror(one->error));
	asked_over(one);
}

static void asked(struct env_op *op, int64_t result)
{
	struct thaw_op *one = container_of(op, struct thaw_op, op);
	struct thaw *t = one->thaw;

	if (result < 0) {
		/* A service whose classes of that name are none to wait for, perhaps. */
		one->error = (int)result;
		one->op.done = tried;
		t->store->ops->get(t->store, &one->op, one->name, &one->byte, 1, 0);
		return;
	}
	t->ready[one->index] = result > 0;
	asked_over(one);
}

static void ask_pump(struct thaw *t)
{
	for (unsigned i = 0; i < BUSY_MAX && !t->error; i++) {
		struct thaw_op *one = &t->ops[i];

		if (one->busy || t->next == t->archive->count)
			continue;
		one->busy = true;
		one->thaw = t;
		one->index = t->next++;
		one->op.done = asked;
		name_of(t, one->index, one->name);
		t->busy++;
		t->store->ops->thaw(t->store, &one->op, one->name);
	}
	if (t->busy)
		return;
	if (t->error) {
		thaw_end(t);
		return;
	}
	t->next = 0;
	look(t);
}

static void thaw_begin(void *context)
{
	ask_pump(context);
}

void thaw(struct store *store, const struct manifest *manifest,
	  const struct inventory_archive *archive, void (*waiting)(void *context, size_t left),
	  void (*done)(void *context, int error, const char *why), void *context)
{
	struct thaw *t = must_alloc(sizeof(*t));

	*t = (struct thaw){
		.store = store,
		.manifest = manifest,
		.archive = archive,
		.ready = must_alloc(archive->count + 1),
		.timer.fire = pause_over,
		.pause_ns = PAUSE_FIRST_NS,
		.waiting = waiting,
		.done = done,
		.context = context,
	};
	call_later(store->env, thaw_begin, t);
}
