/* SPDX-License-Identifier: Apache-2.0 */
/*
 * diff: opens the two ends and answers questions. The far end is a snapshot; or the volume as it is: then it
 * is the snapshot that the volume's map is relative to, and what the map marks. That snapshot changes each
 * time a new one is taken, so before and after a question it is looked at again.
 */
#include "daemon/snapshot/diff.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/snapshot/changes.h"

/* A far end. */
struct side {
	struct snapshot_diff *diff;
	struct snapfmt_ref ref;
	struct manifest *manifest;
	struct changes *changes; /* since the near end */
	unsigned users; /* questions that it is asked, and the diff itself while it is current */
};

struct snapshot_diff {
	struct snapshot_repo *repo;
	struct volume *volume; /* NULL: to a snapshot */
	struct snapshot_diff_ends ends;
	struct snapfmt_ref from, wanted; /* wanted: the far end being opened */
	struct manifest *then;           /* of the near end */
	struct side *side;               /* current; NULL: none is needed, or there is none yet */
	unsigned sides;                  /* that exist */
	bool loading;
	struct asking *waiting; /* for a far end that is being opened */
	bool closing, opened;
	void (*opened_fn)(void *context, struct snapshot_diff *diff, int error, const char *why);
	void *opened_context;
	void (*closed)(void *context);
	void *context;
};

#define LIVE_EXTENTS 64u

/* What is behind a question, in its priv. */
struct asking {
	struct asking *next; /* waiting */
	struct snapshot_diff *diff;
	struct snapshot_diff_ask *ask;
	struct side *side;               /* that it was put to */
	struct snapshot_extent *extents; /* live: what the snapshots say */
	struct changes_query query;
};
_Static_assert(sizeof(struct asking) <= sizeof(((struct snapshot_diff_ask *)0)->priv),
	       "a question fits");

/* ---- the ends --------------------------------------------------------------------------------- */

static void diff_gone(struct snapshot_diff *d)
{
	void (*closed)(void *context) = d->closed;
	void *context = d->context;

	snapshot_unhold(d->repo, &d->from.snapshot);
	manifest_free(d->then);
	d->repo->under_way--;
	free(d);
	if (closed)
		closed(context);
}

static void diff_gone_late(void *context)
{
	diff_gone(context);
}

static void diff_check_gone(struct snapshot_diff *d)
{
	if (d->closing && !d->sides && !d->loading)
		diff_gone(d);
}

static void side_gone(void *context)
{
	struct side *side = context;
	struct snapshot_diff *d = side->diff;

	snapshot_unhold(d->repo, &side->ref.snapshot);
	manifest_free(side->manifest);
	free(side);
	d->sides--;
	diff_check_gone(d);
}

static void side_drop(struct side *side)
{
	assert(side->users > 0);
	if (--side->users == 0)
		changes_free(side->changes, side_gone, side);
}

static void side_new(struct snapshot_diff *d, struct manifest *manifest)
{
	struct side *side = must_alloc(sizeof(*side));

	assert(!d->side);
	*side = (struct side){.diff = d, .ref = d->wanted, .manifest = manifest, .users = 1};
	side->changes = changes_new(d->repo->store, d->then, manifest);
	d->side = side;
	d->sides++;
}

static void open_end(struct snapshot_diff *d, int error, const char *why)
{
	void (*done)(void *context, struct snapshot_diff *diff, int error, const char *why) =
		d->opened_fn;
	void *context = d->opened_context;
	char line[WHY_BYTES];

	d->opened = true;
	if (!error) {
		done(context, d, 0, "");
		return;
	}
	why_set(line, 0, "%s", why);
	d->closing = true;
	d->closed = NULL;
	assert(!d->side);
	diff_check_gone(d);
	done(context, NULL, error, line);
}

/* ---- opening ------------------------------------------------------------------------------------ */

static void ask_again(struct snapshot_diff *d, int error, const char *why);

static void now_loaded(void *context, struct manifest *manifest, int error, const char *why)
{
	struct snapshot_diff *d = context;

	d->loading = false;
	if (error)
		snapshot_unhold(d->repo, &d->wanted.snapshot);
	else if (!d->closing)
		side_new(d, manifest);
	if (!error && d->closing) {
		manifest_free(manifest);
		snapshot_unhold(d->repo, &d->wanted.snapshot);
	}
	if (d->closing) {
		diff_check_gone(d);
		return;
	}
	if (!error && !d->volume) {
		d->ends.to = manifest->info;
		d->ends.size_bytes = manifest->info.size_bytes;
	}
	if (!d->opened)
		open_end(d, error, why);
	else
		ask_again(d, error, why);
}

/* Loads the far end `wanted`. */
static int now_load(struct snapshot_diff *d, char why[WHY_BYTES])
{
	char id[ID128_TEXT_BYTES];

	id128_format(&d->wanted.snapshot, id);
	if (!snapshot_hold(d->repo, &d->wanted.snapshot))
		return why_set(why, -ENOENT, "snapshot %.12s: was deleted", id);
	d->loading = true;
	manifest_load(d->repo->store, &d->repo->volume, &d->wanted, now_loaded, d);
	return 0;
}

static void then_loaded(void *context, struct manifest *manifest, int error, const char *why)
{
	struct snapshot_diff *d = context;
	char line[WHY_BYTES];

	d->loading = false;
	if (!error) {
		d->then = manifest;
		d->ends.from = manifest->info;
		if (d->volume)
			d->ends.size_bytes = volume_size_bytes(d->volume);
		/* What is equal to itself needs no second look: a volume's map may say it all. */
		if (d->volume && id128_equal(&d->wanted.snapshot, &d->from.snapshot)) {
			open_end(d, 0, "");
			return;
		}
		error = now_load(d, line);
		why = line;
	}
	if (error)
		open_end(d, error, why);
}

static int find_ref(const struct names *names, const struct id128 *id, struct snapfmt_ref *ref,
		    char why[WHY_BYTES])
{
	char text[ID128_TEXT_BYTES];

	for (size_t i = 0; i < names->count; i++)
		if (id128_equal(&names->refs[i].snapshot, id)) {
			*ref = names->refs[i];
			return 0;
		}
	id128_format(id, text);
	return why_set(why, -ENOENT, "snapshot %.12s: not in the store", text);
}

bool snapshot_diff_knows(const struct volume *volume)
{
	struct volume_state state;

	volume_get_state(volume, &state);
	return state.role == VOLUME_PRIMARY && !id128_is_zero(&state.snapshot) &&
	       volume_store_follows(volume);
}

static void open_listed(void *context, const struct names *names, int error, const char *why)
{
	struct snapshot_diff *d = context;
	struct id128 from = d->from.snapshot, to = d->wanted.snapshot;
	char line[WHY_BYTES];

	d->loading = false;
	d->from.snapshot = (struct id128){.bytes = {0}}; /* not held yet */
	if (!error)
		error = find_ref(names, &to, &d->wanted, line), why = line;
	if (!error)
		error = find_ref(names, &from, &d->from, line), why = line;
	if (!error && !snapshot_hold(d->repo, &from)) {
		d->from.snapshot = (struct id128){.bytes = {0}};
		error = why_set(line, -ENOENT, "the snapshot was deleted");
		why = line;
	}
	if (error) {
		open_end(d, error, why);
		return;
	}
	d->loading = true;
	manifest_load(d->repo->store, &d->repo->volume, &d->from, then_loaded, d);
}

void snapshot_diff_open(struct snapshot_repo *repo, const struct id128 *from,
			const struct id128 *to, struct volume *volume,
			void (*done)(void *context, struct snapshot_diff *diff, int error,
				     const char *why),
			void *context)
{
	struct snapshot_diff *d = must_alloc(sizeof(*d));
	struct volume_state state;

	assert(!to == !!volume);
	*d = (struct snapshot_diff){
		.repo = repo,
		.volume = volume,
		.opened_fn = done,
		.opened_context = context,
	};
	repo->under_way++;
	d->from.snapshot = *from;
	if (volume) {
		volume_get_state(volume, &state);
		d->wanted.snapshot = state.snapshot;
	} else {
		d->wanted.snapshot = *to;
	}
	d->loading = true;
	repo_look(repo, &d->wanted.snapshot, open_listed, d);
}

const struct snapshot_diff_ends *snapshot_diff_ends(const struct snapshot_diff *d)
{
	return &d->ends;
}

/* ---- answering ------------------------------------------------------------------------------------ */

static struct asking *asking_of(struct changes_query *query)
{
	return container_of(query, struct asking, query);
}

static void finish(struct asking *asking, int error, const char *why)
{
	struct snapshot_diff_ask *ask = asking->ask;

	free(asking->extents);
	ask->done(ask, error, why);
}

static void put(struct snapshot_diff_ask *ask, uint64_t at, uint64_t to, bool changed, bool zero,
		bool *full)
{
	struct snapshot_extent *last = ask->count ? &ask->extents[ask->count - 1] : NULL;

	if (!last || last->changed != changed || last->zero != zero) {
		if (ask->count == ask->max) {
			*full = true;
			return;
		}
		last = &ask->extents[ask->count++];
		*last = (struct snapshot_extent){at, 0, changed, zero};
	}
	last->length_bytes += to - at;
}

/* What the snapshots say of a range (beyond `known` everything changed), and what the volume's map marks. */
static void overlay(struct snapshot_diff *d, struct snapshot_diff_ask *ask,
		    const struct snapshot_extent *extents, unsigned count, uint64_t known)
{
	uint64_t at = ask->offset_bytes, end = at + ask->length_bytes;
	uint64_t start = 0, length = 0;
	bool more = true, full = false;
	unsigned i = 0;

	/* Where the answer of the snapshots ends, so does this one. */
	if (count && extents[count - 1].offset_bytes + extents[count - 1].length_bytes < known &&
	    extents[count - 1].offset_bytes + extents[count - 1].length_bytes < end)
		end = extents[count - 1].offset_bytes + extents[count - 1].length_bytes;
	ask->count = 0;
	while (at < end && !full) {
		struct snapshot_extent base = {.length_bytes = end - at, .changed = true};
		uint64_t to = end;
		bool dirty;

		while (i < count && extents[i].offset_bytes + extents[i].length_bytes <= at)
			i++;
		if (i < count) {
			base = extents[i];
			if (base.offset_bytes + base.length_bytes < to)
				to = base.offset_bytes + base.length_bytes;
		}
		while (more && start + length <= at)
			more = volume_dirty_next(d->volume, VOLUME_STORE, at, &start, &length);
		dirty = more && start <= at;
		if (more && start > at && start < to)
			to = start;
		if (dirty && start + length < to)
			to = start + length;
		put(ask, at, to, base.changed || dirty, base.changed && base.zero && !dirty, &full);
		at = to;
	}
}

static void answer(struct asking *asking);

static void asked(struct changes_query *query, int error, const char *why)
{
	struct asking *asking = asking_of(query);
	struct snapshot_diff *d = asking->diff;
	struct side *side = asking->side;
	struct volume_state state;
	char line[WHY_BYTES];

	if (!d->volume) {
		asking->ask->count = query->count;
		/* The side stays until the diff is closed. */
		finish(asking, error, why);
		return;
	}
	why_set(line, 0, "%s", why);
	asking->side = NULL;
	volume_get_state(d->volume, &state);
	if (error) {
		side_drop(side);
		finish(asking, error, line);
		return;
	}
	if (id128_equal(&state.snapshot, &side->ref.snapshot) && snapshot_diff_knows(d->volume)) {
		overlay(d, asking->ask, query->extents, query->count,
			side->manifest->info.size_bytes);
		side_drop(side);
		finish(asking, 0, "");
		return;
	}
	/* A snapshot was finished meanwhile: what the map had marked is in that one now. */
	side_drop(side);
	free(asking->extents);
	asking->extents = NULL;
	answer(asking);
}

static void side_listed(void *context, const struct names *names, int error, const char *why)
{
	struct snapshot_diff *d = context;
	const struct id128 id = d->wanted.snapshot;
	char line[WHY_BYTES];

	d->loading = false;
	if (d->closing) {
		diff_check_gone(d);
		return;
	}
	if (!error) {
		error = find_ref(names, &id, &d->wanted, line);
		why = line;
	}
	if (!error)
		error = now_load(d, line);
	if (error)
		ask_again(d, error, why);
}

static void wait_for_side(struct asking *asking, const struct id128 *id)
{
	struct snapshot_diff *d = asking->diff;

	asking->next = d->waiting;
	d->waiting = asking;
	if (d->loading)
		return;
	if (d->side)
		side_drop(d->side);
	d->side = NULL;
	d->wanted.snapshot = *id;
	d->loading = true;
	repo_look(d->repo, id, side_listed, d);
}

/* Of a volume as it is. */
static void answer_live(struct asking *asking)
{
	struct snapshot_diff *d = asking->diff;
	struct snapshot_diff_ask *ask = asking->ask;
	uint64_t known = d->ends.from.size_bytes;
	struct volume_state state;

	volume_get_state(d->volume, &state);
	if (!snapshot_diff_knows(d->volume)) {
		finish(asking, -EPERM, "the volume's map is relative to no snapshot");
		return;
	}
	if (id128_equal(&state.snapshot, &d->from.snapshot)) {
		struct snapshot_extent same = {ask->offset_bytes, 0, false, false};

		if (known > ask->offset_bytes)
			same.length_bytes = known - ask->offset_bytes;
		if (same.length_bytes > ask->length_bytes)
			same.length_bytes = ask->length_bytes;
		overlay(d, ask, &same, same.length_bytes != 0, known);
		finish(asking, 0, "");
		return;
	}
	if (!d->side || !id128_equal(&d->side->ref.snapshot, &state.snapshot)) {
		wait_for_side(asking, &state.snapshot);
		return;
	}
	known = d->side->manifest->info.size_bytes;
	if (ask->offset_bytes >= known) {
		overlay(d, ask, NULL, 0, known);
		finish(asking, 0, "");
		return;
	}
	asking->extents = must_alloc(LIVE_EXTENTS * sizeof(*asking->extents));
	asking->side = d->side;
	asking->side->users++;
	asking->query = (struct changes_query){
		.offset_bytes = ask->offset_bytes,
		.length_bytes = ask->length_bytes < known - ask->offset_bytes
					? ask->length_bytes
					: known - ask->offset_bytes,
		.extents = asking->extents,
		.max = LIVE_EXTENTS,
		.done = asked,
	};
	changes_ask(asking->side->changes, &asking->query);
}

static void answer(struct asking *asking)
{
	struct snapshot_diff *d = asking->diff;

	if (d->closing) {
		finish(asking, -ECANCELED, "given up");
	} else if (d->volume) {
		answer_live(asking);
	} else {
		asking->query = (struct changes_query){
			.offset_bytes = asking->ask->offset_bytes,
			.length_bytes = asking->ask->length_bytes,
			.extents = asking->ask->extents,
			.max = asking->ask->max,
			.done = asked,
		};
		changes_ask(d->side->changes, &asking->query);
	}
}

/* A far end came, or not. */
static void ask_again(struct snapshot_diff *d, int error, const char *why)
{
	struct asking *asking = d->waiting;
	char line[WHY_BYTES];

	why_set(line, 0, "%s", why);
	d->waiting = NULL;
	while (asking) {
		struct asking *next = asking->next;

		if (error)
			finish(asking, error, line);
		else
			answer(asking);
		asking = next;
	}
}

void snapshot_diff_ask(struct snapshot_diff *d, struct snapshot_diff_ask *ask)
{
	struct asking *asking = (struct asking *)ask->priv;

	assert(ask->length_bytes > 0 && ask->max > 0);
	assert(ask->offset_bytes + ask->length_bytes <= d->ends.size_bytes);
	*asking = (struct asking){.diff = d, .ask = ask};
	ask->count = 0;
	answer(asking);
}

void snapshot_diff_close(struct snapshot_diff *d, void (*closed)(void *context), void *context)
{
	assert(!d->closing);
	d->closing = true;
	d->closed = closed;
	d->context = context;
	ask_again(d, -ECANCELED, "given up");
	if (d->side)
		side_drop(d->side);
	d->side = NULL;
	if (!d->sides && !d->loading)
		call_later(d->repo->env, diff_gone_late, d);
}
