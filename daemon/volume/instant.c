// SPDX-License-Identifier: Apache-2.0
/*
 * A volume that is in use while it is filled from a snapshot: how that begins, ends, and goes on after a
 * restart. The filling itself is hydrate.c's.
 *
 *   begin    everything that the snapshot may have, and everything that the disk may have, is missing: what
 *            is zero on both sides is not. If the disk is known to be the snapshot and what was written
 *            since, only that is. One superblock makes it so; before it nothing has changed
 *   serve    as a primary whose disk is INCONSISTENT: clients, marks for peer and store, new generation; no
 *            cuts of content and no peer, for both need all of it
 *   restart  the superblock names the snapshot; whoever can read it sets itself as origin
 *   end      all is durable: UPTODATE
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A backing of so many pieces is taken for full: looking at each of them would take too long. */
#define EXTENTS_MAX 65536u

bool volume_source(const struct volume *v, struct volume_source *source)
{
	if (v->hydrate.from_store && source != NULL)
		*source = v->hydrate.source;
	return v->hydrate.from_store;
}

bool volume_source_pinned(const struct volume *v, struct volume_source *source)
{
	*source = v->hydrate.source;
	return source->pinned && !v->hydrate.from_store;
}

void volume_source_unpinned(struct volume *v)
{
	if (v->hydrate.from_store)
		return;
	v->hydrate.source = (struct volume_source){0};
	super_store_later(v);
}

static void mark(struct volume *v, uint64_t start, uint64_t end)
{
	if (end > v->size_bytes)
		end = v->size_bytes;
	start = round_down(start, FETCH_BLOCK_BYTES);
	end = round_up(end, FETCH_BLOCK_BYTES);
	if (start < end)
		dirty_set(&v->hydrate.missing, start / FETCH_BLOCK_BYTES,
			  (end - start) / FETCH_BLOCK_BYTES, NULL, NULL);
}

/* All that the disk may have. False: it cannot say. */
static bool mark_allocated(struct volume *v)
{
	uint64_t offset = 0, start, end;

	for (unsigned i = 0; i < EXTENTS_MAX && offset < v->size_bytes; i++) {
		int error = env_file_next_data(v->env, v->backing, offset, &start, &end);

		if (error == -ENXIO || (error == 0 && start >= v->size_bytes))
			return true;
		if (error != 0 || start < offset || end <= start)
			return false;
		mark(v, start, end);
		offset = end;
	}
	return offset >= v->size_bytes;
}

static void mark_snapshot(struct volume *v, struct volume_origin *origin)
{
	uint64_t offset = 0, start, end;

	while (offset < v->size_bytes && origin->next_data(origin, offset, &start, &end)) {
		mark(v, start, end);
		offset = end;
	}
}

/* What of the map of the store, in blocks of its own size, is dirty. */
static void mark_written(struct volume *v)
{
	uint64_t start, length;

	for (uint64_t at = 0; volume_dirty_next(v, VOLUME_STORE, at, &start, &length);
	     at = start + length)
		mark(v, start, start + length);
}

bool volume_is_snapshot_but(const struct volume *v, const struct id128 *uuid,
			    const struct id128 *snapshot)
{
	return v->state.disk == VOLUME_DISK_UPTODATE && !v->detached && !v->hydrate.from_store &&
	       id128_equal(&v->state.snapshot, snapshot) && id128_equal(&v->state.uuid, uuid);
}

static void make_missing(struct volume *v, const struct volume_source *source,
			 struct volume_origin *origin)
{
	if (volume_is_snapshot_but(v, &source->volume, &source->snapshot)) {
		mark_written(v);
		return;
	}
	mark_snapshot(v, origin);
	if (!mark_allocated(v))
		mark(v, 0, v->size_bytes);
}

static int begin_invalid(const struct volume *v, char *why, size_t why_size)
{
	int error = 0;

	if (v->state.role != VOLUME_PRIMARY || leaning(v) || v->backing == NULL ||
	    v->state.disk >= VOLUME_DISK_FAILED || v->sync_error != 0) {
		error = -EPERM;
		snprintf(why, why_size, "volume %s: is not a primary with a disk of its own",
			 v->name);
	} else if (v->stats.clients > 0 || v->stats.in_flight > 0 || v->ranges.all != NULL ||
		   v->readers != NULL || v->cuts[VOLUME_STORE].active ||
		   v->cuts[VOLUME_PEER].active || v->grow != NULL || v->tap != NULL) {
		error = -EBUSY;
		snprintf(why, why_size, "volume %s: is in use", v->name);
	}
	return error;
}

/* In memory, for one superblock that makes all of it so. */
static void change(struct volume *v, const struct volume_source *source, bool mixture)
{
	struct volume_state *state = &v->state;
	uint64_t start, end;

	/* A volume that nobody ever wrote to becomes the one that is restored. */
	if (id128_is_zero(&state->generations.current))
		state->uuid = source->volume;
	for (uint64_t at = 0; missing_run(v, at, v->size_bytes, &start, &end); at = end)
		maps_mark(v, VOLUME_PEER, start, end - start, false);
	if (mixture)
		maps_mark(v, VOLUME_PEER, 0, v->size_bytes, false);
	v->consumers[VOLUME_PEER].all_dirty = v->consumers[VOLUME_STORE].all_dirty = true;
	generation_begin(v);
	state->disk = v->disk_recorded = VOLUME_DISK_INCONSISTENT;
	state->applying = false;
	state->snapshot = (struct id128){0};
	if (id128_equal(&state->uuid, &source->volume)) {
		state->snapshot = source->snapshot;
		if (state->snapshot_sequence < source->sequence)
			state->snapshot_sequence = source->sequence;
	}
	v->detached = false;
	v->hydrate.source = *source;
	v->hydrate.from_store = v->hydrate.active = true;
}

static void begun(struct volume *v, struct volume_origin *origin)
{
	struct hydrate *h = &v->hydrate;

	/* What clients write from now on is what the next snapshot of it has to look at. */
	if (id128_is_zero(&v->state.snapshot))
		maps_mark(v, VOLUME_STORE, 0, v->size_bytes, false);
	else
		(void)volume_clear_all(v, VOLUME_STORE);
	v->bumped = false;
	v->failure[0] = '\0';
	h->origin = origin;
	h->cursor = h->next_fill_ns = 0;
	h->unreadable = h->keep_intents = false;
	h->refined = true;
	h->careful_start = h->careful_end = 0;
	hydrate_count(v);
	checkpoint_want(v);
	env_log(v->env, ENV_LOG_INFO,
		"volume %s: in use, and filled from the snapshot: %llu bytes are missing", v->name,
		(unsigned long long)(h->missing.count * FETCH_BLOCK_BYTES));
	hydrate_pump_later(v);
	env_timer_start(v->env, &h->store_timer, 1);
}

int volume_hydrate_from(struct volume *v, const struct volume_source *source,
			struct volume_origin *origin, char *why, size_t why_size)
{
	struct volume_state old = v->state;
	bool mixture = old.disk != VOLUME_DISK_UPTODATE, detached = v->detached;
	bool old_all[VOLUME_CONSUMERS] = {false};
	int error = begin_invalid(v, why, why_size);

	if (error != 0)
		return error;
	if (v->hydrate.store != STORE_IDLE || v->hydrate.active || hydrate_fetching(v)) {
		snprintf(why, why_size, "volume %s: is being filled already", v->name);
		return -EBUSY;
	}
	missing_free(v);
	error = missing_make_memory(v);
	if (error == 0)
		error = missing_make_file(v);
	if (error == 0) {
		for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
			old_all[c] = v->consumers[c].all_dirty;
		make_missing(v, source, origin);
		change(v, source, mixture);
		error = super_store(v, 0);
	}
	if (error == 0) {
		begun(v, origin);
		return 0;
	}
	snprintf(why, why_size, "volume %s: cannot be filled: %s: %s", v->name, v->state_dir,
		 strerror(-error));
	if (v->hydrate.from_store) {
		for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
			v->consumers[c].all_dirty = old_all[c];
		v->state = old;
		v->disk_recorded = old.disk;
		v->detached = detached;
		v->hydrate.from_store = v->hydrate.active = false;
	}
	missing_free(v);
	return error;
}

/* What is a hole here and zero there is not missing: a file that was never written names everything. */
static void refine(struct volume *v, struct volume_origin *origin)
{
	struct dirty_map named = v->hydrate.missing;

	v->hydrate.missing = (struct dirty_map){0};
	if (!dirty_init(&v->hydrate.missing, v->size_bytes / FETCH_BLOCK_BYTES)) {
		v->hydrate.missing = named;
		return;
	}
	mark_snapshot(v, origin);
	if (!mark_allocated(v))
		mark(v, 0, v->size_bytes);
	for (uint64_t at = 0, end; (at = dirty_next(&v->hydrate.missing, at)) != DIRTY_NONE;
	     at = end) {
		end = dirty_next_clear(&v->hydrate.missing, at, v->hydrate.missing.blocks);
		for (uint64_t b = at, present; b < end; b = present) {
			present = dirty_next(&named, b);
			if (present > end)
				present = end;
			if (present > b)
				dirty_clear(&v->hydrate.missing, b, present - b, NULL, NULL);
			present = present < end ? dirty_next_clear(&named, present, end) : end;
		}
	}
	dirty_free(&named);
	bits_set_range(v->hydrate.stale, 0, v->hydrate.page_count);
}

void volume_set_origin(struct volume *v, struct volume_origin *origin)
{
	struct hydrate *h = &v->hydrate;
	struct op_queue waiting;

	h->origin = h->from_store ? origin : NULL;
	if (h->origin == NULL || !h->active)
		return;
	if (!h->refined) {
		refine(v, origin);
		h->refined = true;
		hydrate_count(v);
	}
	waiting = queue_take(&v->wait_origin);
	origin_ask_all(waiting);
	hydrate_pump_later(v);
	env_timer_start(v->env, &h->store_timer, 1);
}

void volume_hold_filling(struct volume *v, bool held)
{
	v->hydrate.held = held;
	if (!held && v->hydrate.active)
		hydrate_pump_later(v);
}

void instant_given_up(struct volume *v)
{
	struct volume_origin *origin = v->hydrate.origin;

	v->hydrate.origin = NULL;
	hydrate_stop(v);
	lean_fail_waiting(v, -EIO);
	if (origin != NULL)
		origin->over(origin, false);
}

int volume_hydrate_give_up(struct volume *v)
{
	struct hydrate *h = &v->hydrate;
	struct volume_source source = h->source;
	struct id128 snapshot = v->state.snapshot;
	int error;

	if (!h->from_store)
		return 0;
	h->from_store = false;
	if (!source.pinned)
		h->source = (struct volume_source){0};
	v->state.snapshot = (struct id128){0};
	error = super_store(v, 0);
	if (error != 0) {
		h->from_store = true;
		h->source = source;
		v->state.snapshot = snapshot;
		return error;
	}
	instant_given_up(v);
	return 0;
}

void instant_filled(struct volume *v)
{
	struct volume_origin *origin = v->hydrate.origin;

	v->hydrate.origin = NULL;
	if (!v->hydrate.source.pinned)
		v->hydrate.source = (struct volume_source){0};
	if (origin != NULL)
		origin->over(origin, true);
}
