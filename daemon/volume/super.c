// SPDX-License-Identifier: Apache-2.0
/*
 * The superblock. Three slots of two equal 4 KiB pages each; the valid page with the highest sequence
 * number counts, so that a page that the medium spoils does not bring an older one back. A blocking write may come while an asynchronous one is under way: each goes to a slot that
 * neither holds the newest durable content nor is being written, so whatever is torn, one whole
 * superblock that is new enough remains.
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LSN_AHEAD  (1ull << 32)
#define SLOT_BYTES (METADATA_SUPER_COPIES * METADATA_SUPER_BYTES)

static void encode(struct volume *v, unsigned flags, uint64_t sequence, uint64_t lsn,
		   struct metadata_super_wire *wire)
{
	const struct volume_state *state = &v->state;
	const struct volume_contact *contact = &state->contact;
	struct metadata_super super = {
		.flags = flags | (leaning(v) ? METADATA_AT_PEER : 0) |
			 (v->lean == VOLUME_LEAN_HYDRATING || v->hydrate.from_store
				  ? METADATA_HYDRATING
				  : 0) |
			 (v->hydrate.source.pinned ? METADATA_PINNED : 0) |
			 (state->applying ? METADATA_APPLYING : 0) |
			 (state->peer_needed ? METADATA_PEER_NEEDED : 0) |
			 (contact->streaming ? METADATA_HEARD_STREAMING : 0) |
			 (v->detached ? METADATA_STORE_DETACHED : 0) |
			 (v->applied_only ? METADATA_INTENT_APPLIED : 0) |
			 (v->consumers[VOLUME_PEER].all_dirty ? METADATA_PEER_ALL : 0) |
			 (v->consumers[VOLUME_STORE].all_dirty ? METADATA_STORE_ALL : 0),
		.sequence = sequence,
		.uuid = state->uuid,
		.size_bytes = v->size_bytes,
		.role = state->role == VOLUME_PRIMARY ? METADATA_PRIMARY : METADATA_SECONDARY,
		.disk = (enum metadata_disk)(state->disk >= VOLUME_DISK_FAILED ? v->disk_recorded
									       : state->disk),
		.maps = v->maps_number,
		.current = state->generations.current,
		.base = state->generations.base,
		.lsn = lsn,
		.outdated_ns = state->outdated_ns,
		.snapshot = state->snapshot,
		.snapshot_sequence = state->snapshot_sequence,
		.heard_ns = contact->heard_ns,
		.heard_lsn = contact->heard_lsn,
		.received_lsn = contact->received_lsn,
		.missing_bytes = contact->missing_bytes,
		.behind_ns = contact->behind_ns,
		.writer = state->writer,
	};

	_Static_assert(VOLUME_HISTORY == METADATA_HISTORY, "same history");
	memcpy(super.history, state->generations.history, sizeof(super.history));
	if (v->hydrate.from_store || v->hydrate.source.pinned) {
		super.source_volume = v->hydrate.source.volume;
		super.source_snapshot = v->hydrate.source.snapshot;
		super.source_sequence = v->hydrate.source.sequence;
	}
	snprintf(super.backing, sizeof(super.backing), "%s", v->backing_path);
	metadata_super_encode(&super, wire);
}

static void encode_slot(struct volume *v, unsigned flags, uint64_t sequence, uint64_t lsn,
			struct metadata_super_wire slot[METADATA_SUPER_COPIES])
{
	encode(v, flags, sequence, lsn, &slot[0]);
	for (unsigned i = 1; i < METADATA_SUPER_COPIES; i++)
		slot[i] = slot[0];
}

/* The slot with the oldest durable content that is not being written. */
static int choose_slot(const struct super *super)
{
	int best = -1;

	for (int i = 0; i < (int)METADATA_SUPER_SLOTS; i++) {
		if (i == super->writing)
			continue;
		if (best < 0 || super->slot_sequence[i] < super->slot_sequence[best])
			best = i;
	}
	return best;
}

/* What is reserved with a write made now. */
static uint64_t lsn_ahead(const struct volume *v)
{
	uint64_t lsn = v->state.lsn > v->super.lsn_goal ? v->state.lsn : v->super.lsn_goal;

	return lsn > UINT64_MAX - LSN_AHEAD ? UINT64_MAX : lsn + LSN_AHEAD;
}

static void slot_written(struct volume *v, int slot, uint64_t sequence, uint64_t lsn)
{
	struct super *super = &v->super;

	super->slot_sequence[slot] = sequence;
	if (lsn > super->lsn_limit)
		super->lsn_limit = lsn;
	if (super->bump_sequence != 0 && sequence >= super->bump_sequence)
		super->bump_sequence = 0;
}

int super_store(struct volume *v, unsigned flags)
{
	struct super *super = &v->super;
	struct metadata_super_wire wire[METADATA_SUPER_COPIES];
	uint64_t sequence = super->sequence + 1;
	uint64_t lsn = flags & METADATA_CLEAN ? v->state.lsn : lsn_ahead(v);
	int slot = choose_slot(super);
	int error;

	encode_slot(v, flags, sequence, lsn, wire);
	super->sequence = sequence;
	/* Whatever happens, the slot's old content is not to be counted on. */
	super->slot_sequence[slot] = 0;
	error = env_file_pwrite(v->env, super->file, wire, sizeof(wire),
				(uint64_t)slot * SLOT_BYTES);
	if (error == 0)
		error = env_file_sync(v->env, super->file);
	if (error != 0) {
		/* It may be on the disk all the same: no write goes on before a newer one is. */
		super->bump_sequence = sequence + 1;
		env_log(v->env, ENV_LOG_ERROR, "volume %s: %s: %s", v->name, v->super_path,
			strerror(-error));
		return error;
	}
	slot_written(v, slot, sequence, lsn);
	return 0;
}

static void super_write_done(struct env_op *io, int64_t result)
{
	struct volume *v = (struct volume *)((char *)io - offsetof(struct volume, super) -
					     offsetof(struct super, io));
	struct super *super = &v->super;
	struct op_queue waiting;
	int slot = super->writing;
	struct op *op;

	super->writing = -1;
	if (result >= 0) {
		slot_written(v, slot, super->writing_sequence, super->writing_lsn);
		if (super->again) {
			super->again = false;
			super_store_later(v);
		}
		op_gate_all(queue_take(&super->waiting));
	} else {
		volume_log_error(v, "superblock", (uint64_t)slot, (int)result);
		/* Those who need it fail; the next one tries again. */
		super->again = false;
		waiting = queue_take(&super->waiting);
		while ((op = queue_pop(&waiting)) != NULL)
			op_complete_later(op, -EIO);
	}
	op_ended(v);
}

void super_store_later(struct volume *v)
{
	struct super *super = &v->super;

	if (super->writing >= 0) {
		super->again = true;
		return;
	}
	super->writing = choose_slot(super);
	super->slot_sequence[super->writing] = 0;
	super->writing_sequence = ++super->sequence;
	super->writing_lsn = lsn_ahead(v);
	encode_slot(v, 0, super->writing_sequence, super->writing_lsn, super->wire);
	super->io.done = super_write_done;
	v->ops++;
	env_write(v->env, &super->io, super->file, super->wire, SLOT_BYTES,
		  (uint64_t)super->writing * SLOT_BYTES, ENV_WRITE_FUA);
}

int super_create(struct volume *v)
{
	char path[4096];
	int error;

	/* It gets its name only once it is whole: a superblock that exists was valid once. */
	if (snprintf(path, sizeof(path), "%s.new", v->super_path) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	error = env_file_open(v->env, path,
			      ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE | ENV_FILE_LOCK,
			      &v->super.file);
	if (error != 0)
		return error;
	error = env_file_truncate(v->env, v->super.file, 0);
	if (error == 0)
		error = env_file_allocate(v->env, v->super.file, 0,
					  METADATA_SUPER_SLOTS * SLOT_BYTES);
	if (error == 0)
		error = super_store(v, METADATA_CREATING);
	if (error == 0)
		error = env_rename(v->env, path, v->super_path);
	if (error == 0)
		error = env_sync_dir(v->env, v->state_dir);
	return error;
}

static void take(struct volume *v, const struct metadata_super *super)
{
	v->size_bytes = super->size_bytes;
	v->maps_number = super->maps;
	v->detached = super->flags & METADATA_STORE_DETACHED;
	v->applied_only = super->flags & METADATA_INTENT_APPLIED;
	v->consumers[VOLUME_PEER].all_dirty = super->flags & METADATA_PEER_ALL;
	v->consumers[VOLUME_STORE].all_dirty = super->flags & METADATA_STORE_ALL;
	v->state = (struct volume_state){
		.uuid = super->uuid,
		.role = super->role == METADATA_PRIMARY ? VOLUME_PRIMARY : VOLUME_SECONDARY,
		.disk = (enum volume_disk_state)super->disk,
		.generations = {.current = super->current, .base = super->base},
		.lsn = super->lsn,
		.outdated_ns = super->outdated_ns,
		.snapshot = super->snapshot,
		.snapshot_sequence = super->snapshot_sequence,
		.writer = super->writer,
		.contact = {.heard_ns = super->heard_ns,
			    .heard_lsn = super->heard_lsn,
			    .received_lsn = super->received_lsn,
			    .missing_bytes = super->missing_bytes,
			    .behind_ns = super->behind_ns,
			    .streaming = super->flags & METADATA_HEARD_STREAMING},
		.peer_needed = super->flags & METADATA_PEER_NEEDED,
		.applying = super->flags & METADATA_APPLYING,
	};
	memcpy(v->state.generations.history, super->history, sizeof(v->state.generations.history));
	v->disk_recorded = v->state.disk;
	v->super.sequence = super->sequence;
	v->hydrate.active = super->flags & METADATA_HYDRATING;
	v->hydrate.from_store = v->hydrate.active && !(super->flags & METADATA_AT_PEER);
	v->hydrate.source = (struct volume_source){
		.volume = super->source_volume,
		.snapshot = super->source_snapshot,
		.sequence = super->source_sequence,
		.pinned = super->flags & METADATA_PINNED,
	};
	if (super->flags & METADATA_AT_PEER)
		v->lean = v->hydrate.active ? VOLUME_LEAN_HYDRATING : VOLUME_LEAN_DISKLESS;
}

int super_load(struct volume *v, unsigned *flags, char *why, size_t why_size)
{
	struct metadata_super super, newest = {0};
	int unread[METADATA_SUPER_SLOTS] = {0};
	const char *reason = "empty";
	int error = env_file_open(v->env, v->super_path,
				  ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_LOCK, &v->super.file);

	if (error == -EWOULDBLOCK || error == -EBUSY)
		snprintf(why, why_size, "volume %s: %s: in use by another process", v->name,
			 v->super_path);
	else if (error != 0)
		snprintf(why, why_size, "volume %s: %s: %s", v->name, v->super_path,
			 strerror(-error));
	if (error != 0)
		return error;
	for (unsigned i = 0; i < METADATA_SUPER_SLOTS * METADATA_SUPER_COPIES; i++) {
		uint64_t *slot_sequence = &v->super.slot_sequence[i / METADATA_SUPER_COPIES];
		struct metadata_super_wire wire;
		const char *bad;

		error = env_file_pread(v->env, v->super.file, &wire, sizeof(wire),
				       (uint64_t)i * METADATA_SUPER_BYTES);
		if (error != 0) {
			reason = strerror(-error);
			if (error != -ENODATA) /* behind the file's end */
				unread[i / METADATA_SUPER_COPIES] = error;
			continue;
		}
		bad = metadata_super_decode(&wire, &super);
		if (bad != NULL) {
			if (bytes_are_zero(&wire, sizeof(wire)))
				continue;
			reason = bad;
			env_log(v->env, ENV_LOG_WARNING,
				"volume %s: %s: page %u: %s; another one is used if it can be",
				v->name, v->super_path, i, bad);
			continue;
		}
		if (super.sequence > *slot_sequence)
			*slot_sequence = super.sequence;
		if (super.sequence > newest.sequence)
			newest = super;
	}
	for (unsigned i = 0; i < METADATA_SUPER_SLOTS; i++) {
		if (unread[i] == 0 || v->super.slot_sequence[i] != 0)
			continue;
		snprintf(why, why_size,
			 "volume %s: %s: a superblock cannot be read, which may be the newest: %s; "
			 "if it stays so, restore the file from a copy",
			 v->name, v->super_path, strerror(-unread[i]));
		return unread[i];
	}
	if (newest.sequence == 0) {
		snprintf(
			why, why_size,
			"volume %s: %s: no valid superblock (%s); restore the file from a copy, or "
			"move the directory away to start anew",
			v->name, v->super_path, reason);
		return -EINVAL;
	}
	take(v, &newest);
	*flags = newest.flags;
	return 0;
}
