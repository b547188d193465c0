// SPDX-License-Identifier: Apache-2.0
/*
 * Holds: a range kept still at one point of the write order. A hold asks for the same lock as a
 * mutation, so it is granted when what was asked for before it and overlaps has landed, and what comes
 * behind waits. Its owner may read the range, and ends it by letting go or by writing the range.
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <errno.h>

struct holding {
	struct op op;
	struct env_task task;
	struct buf *buf; /* being read into */
};
_Static_assert(sizeof(struct holding) <= sizeof(((struct volume_hold *)0)->priv), "priv too small");

static struct holding *holding_of(struct op *op)
{
	return (struct holding *)op;
}

static struct volume_hold *hold_of(struct holding *holding)
{
	return (struct volume_hold *)((char *)holding - offsetof(struct volume_hold, priv));
}

void volume_hold(struct volume *v, struct volume_hold *hold)
{
	struct holding *holding = (struct holding *)hold->priv;
	uint64_t end = hold->offset_bytes + hold->length_bytes;

	assert(hold->length_bytes > 0 && end <= v->size_bytes);
	assert(hold->offset_bytes % VOLUME_PEER_BLOCK_BYTES == 0);
	assert(end % VOLUME_PEER_BLOCK_BYTES == 0);
	*holding = (struct holding){.op = {.volume = v, .owner = OWNER_HOLD, .kind = OP_HOLD}};
	holding->op.pos = hold->offset_bytes;
	holding->op.end = end;
	op_start(&holding->op);
}

void hold_granted(struct op *op)
{
	struct volume_hold *hold = hold_of(holding_of(op));

	hold->granted(hold);
}

bool volume_hold_cancel(struct volume_hold *hold)
{
	struct op *op = (struct op *)hold->priv;
	struct volume *v = op->volume;

	if (op->lock.blockers == 0)
		return false;
	op_unlock(op);
	op_ended(v);
	return true;
}

bool volume_is_whole(const struct volume *v)
{
	return v->backing != NULL && v->lean == VOLUME_LEAN_NO && !v->hydrate.active;
}

/* ---- reading ---------------------------------------------------------------------------------- */

static void hold_read_end(struct holding *holding, int error)
{
	struct volume_hold *hold = hold_of(holding);

	if (error != 0)
		holding->op.volume->stats.io_errors++;
	buf_put(holding->buf);
	holding->buf = NULL;
	hold->done(hold, error);
}

static void hold_read_failed(struct env_task *task)
{
	hold_read_end((struct holding *)((char *)task - offsetof(struct holding, task)), -EIO);
}

static void hold_read_done(struct env_op *io, int64_t result)
{
	struct holding *holding = (struct holding *)io;

	if (result < 0)
		volume_log_error(holding->op.volume, "read", holding->op.pos, (int)result);
	hold_read_end(holding, result < 0 ? -EIO : 0);
}
_Static_assert(offsetof(struct holding, op) == 0 && offsetof(struct op, io) == 0, "first");

void volume_hold_read(struct volume_hold *hold, uint32_t length, struct buf *buf)
{
	struct holding *holding = (struct holding *)hold->priv;
	struct op *op = &holding->op;
	struct volume *v = op->volume;

	assert(op->locked && op->lock.blockers == 0 && holding->buf == NULL);
	assert(length <= hold->length_bytes && length <= buf->size_bytes);
	holding->buf = buf_get(buf);
	if (!volume_is_whole(v)) {
		holding->task.call = hold_read_failed;
		env_defer(v->env, &holding->task);
		return;
	}
	op->io.done = hold_read_done;
	env_read(v->env, &op->io, v->backing, buf->data, length, hold->offset_bytes);
}

/* ---- the end ---------------------------------------------------------------------------------- */

void volume_hold_release(struct volume_hold *hold)
{
	struct holding *holding = (struct holding *)hold->priv;
	struct volume *v = holding->op.volume;

	assert(holding->buf == NULL && holding->op.kind == OP_HOLD);
	op_unlock(&holding->op);
	op_ended(v);
}

void volume_hold_write(struct volume_hold *hold, struct buf *buf)
{
	struct holding *holding = (struct holding *)hold->priv;
	struct op *op = &holding->op;

	assert(op->locked && op->lock.blockers == 0 && holding->buf == NULL);
	assert(hold->length_bytes <= buf->size_bytes);
	op->kind = OP_WRITE;
	op->fua = true;
	op->piece_is_write = true;
	op->piece_offset = op->pos;
	op->piece_length = op->end - op->pos;
	op->bounce = buf_get(buf);
	op_gate(op);
}

bool hold_refused(struct op *op)
{
	struct volume *v = op->volume;
	int error = v->state.role != VOLUME_PRIMARY ? -EPERM
		    : !volume_is_whole(v)           ? -EIO
		    : v->closing                    ? -ESHUTDOWN
		    : v->suspended                  ? -EAGAIN
						    : 0;

	if (error != 0)
		op_complete_later(op, error);
	return error != 0;
}

void hold_written(struct op *op, int error)
{
	struct volume_hold *hold = hold_of(holding_of(op));

	hold->done(hold, error);
}
