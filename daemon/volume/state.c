// SPDX-License-Identifier: Apache-2.0
/*
 * The volume's state and maps as set from outside. All of it is durable before it returns; the
 * superblock alone is written here, never a map page: pages have one writer at a time (intent.c).
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/mutate.h"

void volume_get_state(const struct volume *v, struct volume_state *state)
{
	*state = v->state;
}

static bool disk_change_allowed(enum volume_disk_state from, enum volume_disk_state to)
{
	static const bool allowed[5][5] = {
		[VOLUME_DISK_UPTODATE] = {true, true, true, true, false},
		[VOLUME_DISK_OUTDATED] = {true, true, true, true, false},
		[VOLUME_DISK_INCONSISTENT] = {true, true, true, true, false},
		[VOLUME_DISK_FAILED] = {true, false, true, true, false},
		[VOLUME_DISK_DISKLESS] = {false, false, true, true, true},
	};

	return allowed[from][to];
}

int volume_sync_backing(struct volume *v)
{
	int error = v->sync_error;

	if (v->backing != NULL && error == 0) {
		error = env_file_sync(v->env, v->backing);
		if (error != 0)
			sync_failed(v, error);
	}
	return error;
}

int volume_set_state(struct volume *v, const struct volume_state *state)
{
	struct volume_state old = v->state;
	enum volume_disk_state old_recorded = v->disk_recorded;
	bool old_detached = v->detached, old_applied_only = v->applied_only;
	enum volume_lean old_lean = v->lean;
	bool old_from_store = v->hydrate.from_store;
	struct volume_source old_source = v->hydrate.source;
	bool leave = leaning(v) && state->role == VOLUME_SECONDARY;
	bool give_up = v->hydrate.from_store && state->role == VOLUME_SECONDARY;
	int error;

	assert(disk_change_allowed(old.disk, state->disk));
	/* The peer takes what a former primary wrote for durable here, and its map does not name it:
	 * left in the disk's cache it could be lost under a cut that is applied later. But where all is at the
	 * peer nothing here counts, and the disk may have failed. */
	if (old.role == VOLUME_PRIMARY && state->role == VOLUME_SECONDARY && !leave &&
	    state->disk != VOLUME_DISK_FAILED && state->disk != VOLUME_DISK_INCONSISTENT) {
		error = volume_sync_backing(v);
		if (error != 0)
			return error;
	}
	v->state = *state;
	v->state.lsn = old.lsn;
	if (state->disk == VOLUME_DISK_INCONSISTENT)
		v->state.applying = false; /* whatever comes now replaces all of it */
	if (state->role == VOLUME_PRIMARY)
		v->state.contact = (struct volume_contact){0};
	else
		v->state.peer_needed = false;
	if (give_up) {
		v->state.disk = VOLUME_DISK_INCONSISTENT;
		v->state.snapshot = (struct id128){0};
		v->hydrate.from_store = false;
		if (!old_source.pinned)
			v->hydrate.source = (struct volume_source){0};
	}
	if (leave) {
		/* A secondary leans on nobody: its disk is one to be filled by a sync, or none. */
		v->state.disk = v->lean == VOLUME_LEAN_DISKLESS ? VOLUME_DISK_FAILED
								: VOLUME_DISK_INCONSISTENT;
		v->lean = VOLUME_LEAN_NO;
	}
	if (state->disk < VOLUME_DISK_FAILED)
		v->disk_recorded = state->disk;
	/* A primary's own writes are marked: the store's map, all of it dirty now, follows again. But not as
	 * long as they go to the peer. */
	if (state->role == VOLUME_PRIMARY) {
		v->applied_only = false;
		if (!leaning(v) || MUTATE(volume_diskless_attached))
			v->detached = false;
	}
	error = super_store(v, 0);
	if (error != 0) {
		v->state = old;
		v->disk_recorded = old_recorded;
		v->detached = old_detached;
		v->applied_only = old_applied_only;
		v->lean = old_lean;
		v->hydrate.from_store = old_from_store;
		v->hydrate.source = old_source;
		return error;
	}
	if (leave) {
		hydrate_stop(v);
		volume_suspend(v, VOLUME_SUSPEND_ORIGIN, false);
	}
	if (give_up)
		instant_given_up(v);
	if (id128_is_zero(&state->generations.base) ||
	    !id128_equal(&old.generations.current, &state->generations.current))
		v->bumped = false;
	/* Who waited for the superblock may find what it waits for. */
	op_gate_all(queue_take(&v->super.waiting));
	checkpoint_want(v);
	if (v->config.uuid_changed != NULL && !id128_equal(&old.uuid, &state->uuid))
		v->config.uuid_changed(v->config.uuid_context);
	return 0;
}

void volume_note_contact(struct volume *v, const struct volume_contact *contact)
{
	v->state.contact = *contact;
	super_store_later(v);
}

void volume_set_peer_in_sync(struct volume *v, bool in_sync)
{
	v->in_sync = in_sync;
	if (in_sync)
		v->bumped = false;
}

/* The stored map counts as all ones until every page is stored again. */
static int distrust_stored(struct volume *v, enum volume_consumer c)
{
	struct consumer *consumer = &v->consumers[c];
	int error;

	if (consumer->all_dirty)
		return 0;
	consumer->all_dirty = true;
	error = super_store(v, 0);
	if (error != 0)
		consumer->all_dirty = false;
	return error;
}

int volume_mark(struct volume *v, enum volume_consumer c, uint64_t offset, uint64_t length)
{
	int error;

	if (length == 0)
		return 0;
	assert(offset < v->size_bytes && length <= v->size_bytes - offset);
	error = distrust_stored(v, c);
	if (error != 0)
		return error;
	maps_mark(v, c, offset, length, false);
	checkpoint_want(v);
	return 0;
}

int volume_mark_all(struct volume *v, enum volume_consumer c, bool allocated_only)
{
	uint64_t offset = 0, start, end;
	int error = distrust_stored(v, c);

	if (error != 0)
		return error;
	while (allocated_only && v->backing != NULL && offset < v->size_bytes) {
		error = env_file_next_data(v->env, v->backing, offset, &start, &end);
		if (error == -ENXIO || (error == 0 && start >= v->size_bytes)) {
			checkpoint_want(v);
			return 0;
		}
		if (error != 0 || start < offset || end <= start)
			break; /* it cannot say: everything */
		if (end > v->size_bytes)
			end = v->size_bytes;
		maps_mark(v, c, start, end - start, false);
		offset = end;
	}
	if (!allocated_only || v->backing == NULL || offset < v->size_bytes)
		maps_mark(v, c, 0, v->size_bytes, false);
	checkpoint_want(v);
	return 0;
}

int volume_clear_all(struct volume *v, enum volume_consumer c)
{
	if (v->cuts[c].active)
		return -EBUSY;
	if (c == VOLUME_STORE && v->detached)
		return 0;
	dirty_clear_all(&v->consumers[c].active);
	if (c == VOLUME_PEER)
		v->failed_start = v->failed_end = 0;
	maps_loosened(v, c);
	return 0;
}

/* Everything is marked; what is marked by another's hand from now on stays so after that is consumed. */
static int attach(struct volume *v)
{
	if (!v->detached)
		return 0;
	v->detached = false;
	int error = super_store(v, 0);
	if (error != 0)
		v->detached = true;
	else
		checkpoint_want(v);
	return error;
}

int volume_begin_applying(struct volume *v)
{
	return v->config.store_follows ? attach(v) : volume_begin_replacing(v);
}

bool volume_store_follows(const struct volume *v)
{
	return !v->detached && v->config.store_follows;
}

/* Whether all of it is marked, active or sealed. */
static bool is_marked(const struct volume *v, const struct volume_run *run)
{
	uint64_t start, length;

	return volume_dirty_next(v, VOLUME_STORE, run->offset_bytes, &start, &length) &&
	       start == run->offset_bytes && length >= run->length_bytes;
}

int volume_adopt_snapshot(struct volume *v, const struct id128 *snapshot, uint64_t sequence,
			  const struct volume_run *runs, unsigned count)
{
	struct volume_state old = v->state;
	int error = 0;

	assert(volume_store_follows(v));
	for (unsigned i = 0; i < count && error == 0; i++) {
		/* What is marked is covered on the disk already. */
		if (!is_marked(v, &runs[i]))
			error = distrust_stored(v, VOLUME_STORE);
		if (error == 0)
			maps_mark(v, VOLUME_STORE, runs[i].offset_bytes, runs[i].length_bytes,
				  false);
	}
	if (error != 0)
		return error;
	/* There this side has something else than the one whose map it is. */
	if (v->failed_start != v->failed_end)
		maps_mark(v, VOLUME_STORE, v->failed_start, v->failed_end - v->failed_start, false);
	v->state.snapshot = *snapshot;
	if (sequence > v->state.snapshot_sequence)
		v->state.snapshot_sequence = sequence;
	error = super_store(v, 0);
	if (error != 0)
		v->state = old;
	checkpoint_want(v);
	return error;
}

int volume_begin_replacing(struct volume *v)
{
	struct id128 snapshot = v->state.snapshot;
	bool all_dirty = v->consumers[VOLUME_STORE].all_dirty;
	int error;

	if (v->detached && id128_is_zero(&snapshot))
		return 0;
	v->state.snapshot = (struct id128){0};
	v->detached = true;
	v->consumers[VOLUME_STORE].all_dirty = true;
	error = super_store(v, 0);
	if (error != 0) {
		v->state.snapshot = snapshot;
		v->detached = false;
		v->consumers[VOLUME_STORE].all_dirty = all_dirty;
		return error;
	}
	maps_mark(v, VOLUME_STORE, 0, v->size_bytes, false);
	return 0;
}

int volume_replace_backing(struct volume *v, char *why, size_t why_size)
{
	struct env_file *old = v->backing;
	enum volume_disk_state disk = v->state.disk, recorded = v->disk_recorded;
	bool all_dirty = v->consumers[VOLUME_STORE].all_dirty;
	int error;

	if (old != NULL &&
	    (v->ranges.all != NULL || v->readers != NULL || v->sync_running || v->grow != NULL ||
	     v->stats.in_flight > 0 || (disk != VOLUME_DISK_FAILED && v->stats.clients > 0))) {
		snprintf(why, why_size, "volume %s: in use", v->name);
		return -EBUSY;
	}
	error = volume_hydrate_give_up(v);
	if (error != 0) {
		snprintf(why, why_size, "volume %s: %s: %s", v->name, v->super_path,
			 strerror(-error));
		return error;
	}
	/* INCONSISTENT first: from here on nobody takes the content for anything. */
	v->state.disk = v->disk_recorded = VOLUME_DISK_INCONSISTENT;
	v->state.applying = false;
	/* Nothing of the old one's content is known of the new one. */
	v->consumers[VOLUME_STORE].all_dirty = true;
	error = super_store(v, 0);
	if (error == 0) {
		maps_mark(v, VOLUME_STORE, 0, v->size_bytes, false);
		checkpoint_want(v);
	} else {
		v->consumers[VOLUME_STORE].all_dirty = all_dirty;
		snprintf(why, why_size, "volume %s: %s: %s", v->name, v->super_path,
			 strerror(-error));
		v->state.disk = disk;
		v->disk_recorded = recorded;
		return error;
	}
	v->backing = NULL;
	if (old != NULL)
		env_file_close(v->env, old);
	error = backing_open(v, true, why, why_size);
	if (error != 0) {
		v->state.disk = VOLUME_DISK_FAILED;
		snprintf(v->failure, sizeof(v->failure), "%s", why);
		return error;
	}
	v->failure[0] = '\0';
	v->sync_error = 0;
	v->punch_cap = v->zero_cap = CAP_UNKNOWN;
	return 0;
}
