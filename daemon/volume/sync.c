// SPDX-License-Identifier: Apache-2.0
/*
 * fsync of the backing. One is under way at a time; all who come meanwhile share the next one, which
 * begins after they came, and so covers what completed before.
 *
 * After a failed fsync the system may have dropped what it could not write, and the next fsync
 * succeeds without it. So no FLUSH succeeds any more until the volume is opened anew, all that was
 * written lately (every region that has an intent bit) counts as changed, and a secondary follows no
 * more. It is the same whoever asked for the fsync, a write with FUA included.
 */
#include "daemon/volume/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "daemon/mutate.h"

static void sync_start(struct volume *v);

void sync_failed(struct volume *v, int error)
{
	v->stats.io_errors++;
	volume_log_error(v, "fsync", 0, error);
	if (v->sync_error == 0) {
		snprintf(v->failure, sizeof(v->failure),
			 "%s: fsync: %s; check the disk, then restart offsited", v->backing_path,
			 strerror(-error));
		intent_mark_active(v);
	}
	v->sync_error = error;
	apply_failed(v, "fsync", 0, error);
}

static void sync_done(struct env_op *io, int64_t result)
{
	struct volume *v = (struct volume *)((char *)io - offsetof(struct volume, sync_io));
	struct op_queue done = queue_take(&v->sync_now);
	bool checkpoint = v->sync_checkpoint_now, grow = v->sync_grow_now;
	struct op *op;

	if (result < 0)
		sync_failed(v, (int)result);
	v->sync_running = false;
	v->sync_checkpoint_now = v->sync_grow_now = false;
	if (v->sync_next.first != NULL || v->sync_checkpoint_next || v->sync_grow_next)
		sync_start(v);
	if (checkpoint)
		checkpoint_synced(v, v->sync_error);
	if (grow)
		grow_synced(v, v->sync_error);
	while ((op = queue_pop(&done)) != NULL)
		op_synced(op, v->sync_error);
	op_ended(v);
}

static void sync_start(struct volume *v)
{
	v->sync_now = queue_take(&v->sync_next);
	v->sync_checkpoint_now = v->sync_checkpoint_next;
	v->sync_grow_now = v->sync_grow_next;
	v->sync_checkpoint_next = v->sync_grow_next = false;
	v->sync_running = true;
	v->ops++;
	v->sync_io.done = sync_done;
	env_fsync(v->env, &v->sync_io, v->backing);
}

void sync_join(struct op *op)
{
	struct volume *v = op->volume;

	if (v->backing == NULL || v->sync_error != 0) {
		if (op->owner == OWNER_CLIENT && disk_failed(v, "fsync", 0, -EIO))
			op_failed(op, FAILED_SYNC, -EIO);
		else
			op_complete_later(op, -EIO);
		return;
	}
	if (MUTATE(volume_flush_no_fsync)) {
		op_complete_later(op, 0);
		return;
	}
	queue_push(&v->sync_next, op);
	if (!v->sync_running)
		sync_start(v);
}

void sync_join_checkpoint(struct volume *v)
{
	v->sync_checkpoint_next = true;
	if (!v->sync_running)
		sync_start(v);
}

void sync_join_grow(struct volume *v)
{
	v->sync_grow_next = true;
	if (!v->sync_running)
		sync_start(v);
}
