// SPDX-License-Identifier: Apache-2.0
/*
 * The way of a mutation:
 *
 *   op_start     asks for the range lock of all of the request
 *   next_piece   cuts off what is done in one go: all of an aligned write, an edge block, up to 1 GiB
 *                of zeroes; reads the edge blocks of what is not aligned into a bounce buffer
 *   op_gate      all conditions of ISSUE, looked at in one go; the first that does not hold decides in
 *                which queue the op waits, and then all are looked at again
 *   issue        LSN, dirty bits, tap, local I/O: in one loop turn, so the order of issue is one
 *   piece_done   the local I/O landed; the next piece, or the end
 *
 * The lock is held until the last piece has landed, so overlapping requests take effect in the order
 * of their submission; a long one gives up its front as it goes.
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/mutate.h"

#define LSN_EXTEND (1ull << 31)

static void next_piece(struct op *op);
static void piece_done(struct op *op, int error);

static struct op *op_of_io(struct env_op *io)
{
	return (struct op *)((char *)io - offsetof(struct op, io));
}

static struct op *op_of_lock(struct range_lock *lock)
{
	return (struct op *)((char *)lock - offsetof(struct op, lock));
}

/* ---- completion ------------------------------------------------------------------------------ */

void op_complete(struct op *op, int error)
{
	struct volume *v = op->volume;

	assert(!op->locked && !op->issued && op->bounce == NULL && op->tap_waits == 0);
	if (op->owner == OWNER_HOLD) {
		hold_written(op, error);
	} else if (op->owner != OWNER_APPLY) {
		struct block_request *request = request_of(op);

		if (op->owner == OWNER_CLIENT)
			v->stats.in_flight--;
		if (op->owner == OWNER_CLIENT && (op->kind == OP_WRITE || op->kind == OP_ZERO))
			latency_add(&v->latency, env_now_ns(v->env) - op->started_ns);
		request->done(request, error);
	} else {
		struct volume_apply *apply = apply_of(op);

		apply->done(apply, error);
	}
	op_ended(v);
}

static void deferred_run(struct env_task *task)
{
	struct volume *v = (struct volume *)((char *)task - offsetof(struct volume, deferred_task));
	struct op_queue queue = queue_take(&v->deferred);
	struct op *op;

	while ((op = queue_pop(&queue)) != NULL)
		op_complete(op, op->error);
}

void op_complete_later(struct op *op, int error)
{
	struct volume *v = op->volume;

	if (error != 0 && error != -ESHUTDOWN)
		v->stats.io_errors++;
	v->hydrate.keep_intents |= op->diverged;
	buf_put(op->bounce);
	op->bounce = NULL;
	op_unlock(op);
	op->local_done = true;
	op->error = error;
	if (op->tap_waits > 0)
		return; /* an earlier piece of it */
	queue_push(&v->deferred, op);
	env_defer(v->env, &v->deferred_task);
}

static void complete_if_done(struct op *op)
{
	if (op->local_done && op->tap_waits == 0)
		op_complete(op, op->error);
}

/* ---- locks ------------------------------------------------------------------------------------ */

static void run_granted(struct range_lock *granted)
{
	while (granted != NULL) {
		struct range_lock *next = granted->next;

		op_lock_granted(op_of_lock(granted));
		granted = next;
	}
}

void op_unlock(struct op *op)
{
	if (!op->locked)
		return;
	op->locked = false;
	run_granted(range_release(&op->volume->ranges, &op->lock));
}

void op_lock(struct op *op)
{
	struct volume *v = op->volume;
	uint64_t start, end;

	/* Where blocks may be missing they are written whole. */
	op->align =
		(uint16_t)(leaning(v) || v->hydrate.active ? FETCH_BLOCK_BYTES : v->align_bytes);
	start = round_down(op->pos, op->align);
	end = round_up(op->end, op->align);
	op->locked = true;
	if (range_acquire(&v->ranges, &op->lock, start, end))
		op_lock_granted(op);
}

void op_lock_granted(struct op *op)
{
	if (op->kind == OP_HOLD)
		hold_granted(op);
	else if (op->kind == OP_READ)
		read_start(op);
	else if (op->kind == OP_FETCH)
		hydrate_fetch_granted(op);
	else
		next_piece(op);
}

void op_start(struct op *op)
{
	op->volume->ops++;
	if (op->kind == OP_FLUSH)
		op_gate(op);
	else
		op_lock(op);
}

/* Those at the gate stay ahead of those that wait at the door; and who comes while the door's queue is
 * not empty stands behind it. What goes on may itself suspend and resume: the rest keeps its place, and goes on
 * below. */
void export_resume(struct volume *v)
{
	struct op *op;

	if (v->resuming)
		return;
	v->resuming = true;
	while (!v->suspended && (v->wait_resume.first != NULL || v->held.first != NULL)) {
		bool gate = v->wait_resume.first != NULL;

		op = queue_pop(gate ? &v->wait_resume : &v->held);
		if (op->kind == OP_FLUSH || op->locked)
			op_gate(op);
		else if (op->kind == OP_READ)
			read_start(op);
		else
			op_lock(op);
	}
	v->resuming = false;
}

/* ---- pieces ----------------------------------------------------------------------------------- */

static const struct buf *op_buf(const struct op *op, uint64_t *offset)
{
	if (op->owner == OWNER_APPLY) {
		const struct volume_apply *apply = apply_of((struct op *)(uintptr_t)op);

		*offset = apply->mutation.offset_bytes;
		return apply->mutation.buf;
	}
	*offset = request_of((struct op *)(uintptr_t)op)->offset_bytes;
	return request_of((struct op *)(uintptr_t)op)->buf;
}

static uint64_t piece_end(const struct op *op)
{
	uint64_t end = op->piece_offset + op->piece_length;

	return end < op->end ? end : op->end;
}

static void finish_local(struct op *op)
{
	/* A volume that leans is done when the peer has it durably. */
	bool sync = op->kind == OP_ZERO && op->fua && op->error == 0 && !leaning(op->volume);

	op_unlock(op);
	if (sync) {
		sync_join(op);
		return;
	}
	op->local_done = true;
	complete_if_done(op);
}

static void synced(struct op *op, int error);

void op_synced(struct op *op, int error)
{
	if (error != 0 && op->owner == OWNER_CLIENT && disk_failed(op->volume, "fsync", 0, error))
		op_failed(op, FAILED_SYNC, error);
	else
		synced(op, error);
}

static void synced(struct op *op, int error)
{
	if (error != 0)
		op->error = -EIO;
	if (error != 0 && op->owner == OWNER_APPLY)
		apply_failed(op->volume, "fsync", 0, error);
	op->local_done = true;
	complete_if_done(op);
}

static void edges_read(struct op *op)
{
	uint64_t from = op->pos, to = piece_end(op), offset;
	uint8_t *target = op->bounce->data + (from - op->piece_offset);

	if (op->kind == OP_ZERO) {
		memset(target, 0, to - from);
	} else {
		const struct buf *buf = op_buf(op, &offset);

		memcpy(target, buf->data + (from - offset), to - from);
	}
	op_gate(op);
}

static void edge_read_done(struct op *op, int error);

/* Edge 0 is the piece's first block, edge 1 its last. */
static void read_edges(struct op *op)
{
	uint32_t align = op->align;
	uint64_t end = op->piece_offset + op->piece_length;
	bool head = op->pos > op->piece_offset, tail = op->end < end;

	while (op->edge < 2) {
		unsigned edge = op->edge++;
		bool single = op->piece_length == align;
		uint64_t at = edge == 0 ? op->piece_offset : end - align;

		if (edge == 0 ? !(head || (single && tail)) : !tail || single)
			continue;
		op_read(op, op->bounce->data + (at - op->piece_offset), align, at, edge_read_done);
		return;
	}
	edges_read(op);
}

static void edge_read_done(struct op *op, int error)
{
	if (error != 0 && !is_remote_error(error) && op->owner == OWNER_CLIENT &&
	    disk_failed(op->volume, "read", op->piece_offset, error)) {
		op_failed(op, FAILED_EDGE, error);
		return;
	}
	if (error != 0) {
		volume_log_error(op->volume, "read", op->piece_offset, error);
		op_complete_later(op, error == -ESHUTDOWN ? error : -EIO);
		return;
	}
	read_edges(op);
}

static void bounce_resume(struct buf_waiter *waiter)
{
	struct volume *v =
		(struct volume *)((char *)waiter - offsetof(struct volume, bounce_waiter));
	struct op_queue queue = queue_take(&v->wait_bounce);
	struct op *op;

	v->bounce_waiting = false;
	while ((op = queue_pop(&queue)) != NULL)
		next_piece(op);
}

static void modify(struct op *op)
{
	struct volume *v = op->volume;

	op->piece_is_write = true;
	op->bounce = buf_alloc(v->bounce_pool, (uint32_t)op->piece_length);
	if (op->bounce == NULL) {
		queue_push(&v->wait_bounce, op);
		if (!v->bounce_waiting) {
			v->bounce_waiting = true;
			buf_wait(v->bounce_pool, &v->bounce_waiter, (uint32_t)op->piece_length);
		}
		return;
	}
	op->edge = 0;
	read_edges(op);
}

static uint64_t zero_piece_max(const struct volume *v, bool punch)
{
	if (v->lean == VOLUME_LEAN_DISKLESS)
		return ZERO_PIECE;
	if ((punch && v->punch_cap == CAP_YES) || v->zero_cap == CAP_YES)
		return ZERO_PIECE;
	if (v->zero_cap == CAP_NO && (!punch || v->punch_cap == CAP_NO))
		return BUF_SIZE_MAX;
	return ZERO_PROBE;
}

static void next_zero(struct op *op)
{
	struct volume *v = op->volume;
	uint32_t align = op->align;
	uint64_t start = round_down(op->pos, align), limit;

	if (op->trim && v->punch_cap == CAP_NO && !leaning(v)) {
		op->pos = op->end;
		finish_local(op);
		return;
	}
	if (op->fast && !leaning(v) && v->zero_cap == CAP_NO &&
	    (!op->punch || v->punch_cap == CAP_NO)) {
		op->error = -EOPNOTSUPP;
		finish_local(op);
		return;
	}
	op->piece_offset = start;
	if (start < op->pos || op->end - op->pos < align) {
		op->piece_length = align;
		modify(op);
		return;
	}
	limit = zero_piece_max(v, op->punch);
	op->piece_length = round_down(op->end, align) - op->pos;
	/* Up to the next multiple of the limit, so that pieces and map pages fit together. */
	if (op->piece_length > limit - op->pos % limit)
		op->piece_length = limit - op->pos % limit;
	op->piece_is_write = false;
	op->written = 0;
	op_gate(op);
}

static void next_piece(struct op *op)
{
	struct volume *v = op->volume;
	uint32_t align = op->align;
	uint64_t end;

	if (op->pos == op->end || op->error != 0) {
		finish_local(op);
		return;
	}
	if (v->backing == NULL && !leaning(v)) {
		op_complete_later(op, -EIO);
		return;
	}
	if (op->kind == OP_ZERO) {
		next_zero(op);
		return;
	}
	op->piece_offset = round_down(op->pos, align);
	end = round_up(op->end, align);
	if (op->piece_offset == op->pos && end == op->end) {
		op->piece_length = op->end - op->pos;
		op->piece_is_write = true;
		op_gate(op);
		return;
	}
	if (end - op->piece_offset > BUF_SIZE_MAX)
		end = op->piece_offset + BUF_SIZE_MAX;
	op->piece_length = end - op->piece_offset;
	modify(op);
}

/* ---- the gate -------------------------------------------------------------------------------- */

static bool readers_ready(struct volume *v, struct op *op)
{
	for (struct reader *r = v->readers; r != NULL; r = r->next) {
		if (r->start >= op->piece_offset + op->piece_length || op->piece_offset >= r->end)
			continue;
		queue_push(&r->waiters, op);
		return false;
	}
	return true;
}

/* The generation of what is written from now on, where the peer does not follow. */
static void bump(struct volume *v)
{
	generation_begin(v);
	v->bumped = true;
	v->super.bump_sequence = v->super.sequence + 1;
}

/* A client's flush makes durable here what the peer, which does not follow, may have had in its cache only: were
 * the history still the peer's, it could be taken for what no client saw the end of. */
static bool flush_goes_apart(const struct volume *v, const struct op *op)
{
	return op->owner == OWNER_CLIENT && op->kind == OP_FLUSH && !v->in_sync && !leaning(v) &&
	       v->state.role == VOLUME_PRIMARY && !id128_is_zero(&v->state.generations.current) &&
	       volume_dirty_bytes(v, VOLUME_PEER) > 0;
}

static bool super_ready(struct volume *v, struct op *op)
{
	struct super *super = &v->super;
	uint64_t lsn = op->owner == OWNER_APPLY ? apply_of(op)->mutation.lsn : v->state.lsn + 1;
	bool changes = (op_is_own(op) && op->kind != OP_FLUSH) || flush_goes_apart(v, op);
	/* What is applied, too, belongs to no state of the volume that was not stored for certain. */
	bool waits = changes || (op->owner == OWNER_APPLY && op->kind != OP_FLUSH);

	if (changes &&
	    ((!v->in_sync && !v->bumped) || id128_is_zero(&v->state.generations.current)))
		bump(v);
	if (lsn + LSN_EXTEND > super->lsn_limit && super->writing < 0) {
		if (lsn > super->lsn_goal)
			super->lsn_goal = lsn;
		super_store_later(v);
	}
	if (lsn <= super->lsn_limit && (!waits || super->bump_sequence == 0))
		return true;
	if (lsn > super->lsn_goal)
		super->lsn_goal = lsn;
	queue_push(&super->waiting, op);
	if (super->writing < 0 || super->writing_sequence < super->bump_sequence)
		super_store_later(v);
	return false;
}

/* Its regions need intent bits. */
static bool op_is_marked(const struct op *op)
{
	return op_is_own(op) || (op->owner == OWNER_APPLY && volume_store_follows(op->volume));
}

static bool token_left(const struct volume *v)
{
	return v->token_free != 0 || v->tokens_used < TOKENS;
}

/* The one that was free last, for its cache line; there is one left. */
static uint32_t token_take(struct volume *v)
{
	uint32_t index = v->token_free != 0 ? v->token_free - 1 : v->tokens_used++;

	v->token_free = v->tokens[index].next_free;
	return index;
}

static bool tap_ready(struct volume *v, struct op *op)
{
	if (v->tap == NULL || !op_is_own(op))
		return true;
	if (token_left(v) && v->tap->ready(v->tap))
		return true;
	queue_push(&v->wait_tap, op);
	return false;
}

/* True if the tap keeps the op waiting. */
static bool tap_issue(struct volume *v, struct op *op)
{
	struct volume_mutation mutation = {
		.type = op->kind == OP_FLUSH ? VOLUME_FLUSH
			: op->piece_is_write ? VOLUME_WRITE
					     : VOLUME_ZERO,
		.fua = op->fua,
		.punch = op->punch && !op->piece_is_write,
		.lsn = op->lsn,
	};
	uint32_t index = token_take(v);
	struct token *token = &v->tokens[index];

	if (op->kind != OP_FLUSH) {
		mutation.offset_bytes = op->piece_offset;
		mutation.length_bytes = op->piece_length;
	}
	if (mutation.type == VOLUME_WRITE)
		mutation.buf = op->bounce != NULL ? op->bounce : request_of(op)->buf;
	token->op = op;
	op->tap_waits++;
	/* Nobody waits for the peer's part of a hold's write: the next connection waits for holds. */
	if (v->tap->issue(v->tap, &mutation, (uint64_t)token->generation << 32 | index) &&
	    op->owner != OWNER_HOLD)
		return true;
	token->op = NULL;
	token->generation++;
	token->next_free = v->token_free;
	v->token_free = index + 1;
	op->tap_waits--;
	return false;
}

static void start_zero(struct op *op);

static void piece_landed(struct op *op);

static bool is_written_through(const struct op *op)
{
	return op->fua && op->kind == OP_WRITE && !op->remote;
}

/* A write with FUA is an fsync, too, and its error that of all that was not durable yet: the next fsync does not
 * tell it once more. But where nothing is written in the back, no space was there before anything was synced. */
static bool failed_as_fsync(const struct op *op, int error)
{
	bool direct = op->volume->io_align_bytes > 1;

	return error != 0 && is_written_through(op) &&
	       !(direct && (error == -ENOSPC || error == -EDQUOT));
}

static void landed(struct op *op, int error)
{
	struct volume *v = op->volume;

	if (failed_as_fsync(op, error))
		sync_failed(v, error);
	v->local_io--;
	op->local_pending = false;
	op->local_error = error;
	if (error != 0 && op->owner == OWNER_CLIENT &&
	    disk_failed(v, "write", op->piece_offset, error))
		op_failed(op, FAILED_WRITE, error);
	else
		piece_landed(op);
}

static void write_done(struct env_op *io, int64_t result)
{
	landed(op_of_io(io), result < 0 ? (int)result : 0);
}

static void zero_write_done(struct env_op *io, int64_t result)
{
	struct op *op = op_of_io(io);

	if (result < 0) {
		landed(op, (int)result);
		return;
	}
	op->written += (uint32_t)result;
	if (op->written == op->piece_length)
		landed(op, 0);
	else
		start_zero(op);
}

static void zero_done(struct env_op *io, int64_t result)
{
	struct op *op = op_of_io(io);
	struct volume *v = op->volume;
	enum capability *cap = op->punching ? &v->punch_cap : &v->zero_cap;

	if (result == -EOPNOTSUPP) {
		*cap = CAP_NO;
		start_zero(op);
		return;
	}
	if (result == 0)
		*cap = CAP_YES;
	landed(op, (int)result);
}

/* The best the backing can: punch, zero, or write. */
static void start_zero(struct op *op)
{
	struct volume *v = op->volume;
	uint64_t left = op->piece_length - op->written;

	op->punching = op->punch && v->punch_cap != CAP_NO;
	if (op->written == 0 && (op->punching || v->zero_cap != CAP_NO)) {
		op->io.done = zero_done;
		env_zero(v->env, &op->io, v->backing, op->piece_offset, op->piece_length,
			 op->punching ? ENV_ZERO_PUNCH : 0);
		return;
	}
	op->io.done = zero_write_done;
	env_write(v->env, &op->io, v->backing, v->zeroes, left < BUF_SIZE_MAX ? left : BUF_SIZE_MAX,
		  op->piece_offset + op->written, 0);
}

#ifdef OFFSITE_MUTATIONS
/* The fault "acknowledged before written": the write goes on by itself, without its request. */
struct stray {
	struct env_op io;
	struct buf *buf;
};

static void stray_done(struct env_op *io, int64_t result)
{
	struct stray *stray = (struct stray *)io;

	(void)result;
	buf_put(stray->buf);
	free(stray);
}

static bool ack_before_write(struct op *op)
{
	struct volume *v = op->volume;
	struct stray *stray;

	if (!MUTATE(volume_ack_before_write) || op->owner != OWNER_CLIENT || op->bounce != NULL)
		return false;
	stray = calloc(1, sizeof(*stray));
	stray->io.done = stray_done;
	stray->buf = buf_get(request_of(op)->buf);
	env_write(v->env, &stray->io, v->backing, stray->buf->data, op->piece_length,
		  op->piece_offset, 0);
	piece_done(op, 0);
	return true;
}
#else
static bool ack_before_write(struct op *op)
{
	(void)op;
	return false;
}
#endif

static void start_local(struct op *op)
{
	struct volume *v = op->volume;
	const uint8_t *data;
	uint64_t offset;

	if (op->kind == OP_FLUSH) {
		if (!op->remote)
			sync_join(op);
		return;
	}
	op->issued = true;
	op->diverged = false;
	op->local_error = 0;
	if (op->remote && v->lean == VOLUME_LEAN_DISKLESS)
		return;
	op->local_pending = op->on_disk = true;
	v->local_io++;
	if (!op->piece_is_write) {
		op->written = 0; /* it may go once more, to the next connection */
		start_zero(op);
		return;
	}
	if (ack_before_write(op))
		return;
	data = op->bounce != NULL ? op->bounce->data : op_buf(op, &offset)->data;
	op->io.done = write_done;
	env_write(v->env, &op->io, v->backing, data, op->piece_length, op->piece_offset,
		  is_written_through(op) ? ENV_WRITE_FUA : 0);
}

static void issue(struct op *op)
{
	struct volume *v = op->volume;

	if (op->owner == OWNER_APPLY) {
		op->lsn = apply_of(op)->mutation.lsn;
		if (op->lsn > v->state.lsn)
			v->state.lsn = op->lsn;
		if (op->kind != OP_FLUSH && volume_store_follows(v) &&
		    !MUTATE(volume_applied_unmarked)) {
			intent_touch(v, op->piece_offset, op->piece_length);
			maps_mark(v, VOLUME_STORE, op->piece_offset, op->piece_length, true);
		}
	} else {
		op->lsn = ++v->state.lsn;
		op->remote = leaning(v);
		if (op->kind != OP_FLUSH && v->lean != VOLUME_LEAN_DISKLESS) {
			intent_touch(v, op->piece_offset, op->piece_length);
			for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
				maps_mark(v, (enum volume_consumer)c, op->piece_offset,
					  op->piece_length, true);
		}
		if (v->tap != NULL && !tap_issue(v, op) && op->remote) {
			/* The connection is about to end: it goes to the next one. */
			op->remote = false;
			queue_push(&v->wait_tap, op);
			return;
		}
		v->remote_ops += op->remote;
	}
	start_local(op);
}

/* In the order in which they asked for their locks first; a flush overlaps nothing. */
static void wait_for_resume(struct volume *v, struct op *op)
{
	struct op **p = &v->wait_resume.first;

	while (*p != NULL && ((*p)->kind == OP_FLUSH || (*p)->lock.sequence <= op->lock.sequence))
		p = &(*p)->next;
	if (*p == NULL || op->kind == OP_FLUSH) {
		queue_push(&v->wait_resume, op);
		return;
	}
	op->next = *p;
	*p = op;
}

/* The newest mutation of a client that asked after op for its lock, and has not got it. */
static struct op *waits_behind(const struct volume *v, const struct op *op)
{
	struct op *newest = NULL;

	for (struct range_lock *l = v->ranges.all; l != NULL; l = l->all_next) {
		struct op *other = op_of_lock(l);

		if (l->blockers > 0 && l->sequence > op->lock.sequence &&
		    other->owner == OWNER_CLIENT && other->kind != OP_READ &&
		    (newest == NULL || l->sequence > newest->lock.sequence))
			newest = other;
	}
	return newest;
}

/* A client's request gives its lock up, and begins its piece anew when requests go on: what lets them
 * go on may be a comparison of both sides, which wants to hold the range. Those behind it come along, the
 * newest first, so that none of them gets a lock by that and overtakes. */
static void stand_aside(struct op *op)
{
	struct volume *v = op->volume;
	struct op *other;

	wait_for_resume(v, op);
	/* A volume that leans is compared with nothing. */
	if (op->owner != OWNER_CLIENT || !op->locked || leaning(v) || v->hydrate.active)
		return;
	buf_put(op->bounce);
	op->bounce = NULL;
	while ((other = waits_behind(v, op)) != NULL) {
		wait_for_resume(v, other);
		op_unlock(other);
	}
	op_unlock(op);
}

void op_gate(struct op *op)
{
	struct volume *v = op->volume;

	if (op->owner == OWNER_HOLD && hold_refused(op))
		return;
	if (v->suspended && op_is_own(op)) {
		if (v->closing)
			op_complete_later(op, -ESHUTDOWN);
		else
			stand_aside(op);
		return;
	}
	if (op->kind != OP_FLUSH) {
		if (v->readers != NULL && !readers_ready(v, op))
			return;
		if (!cut_ready(v, op))
			return;
	}
	if (!super_ready(v, op))
		return;
	if (op->kind != OP_FLUSH && op_is_marked(op) && v->lean != VOLUME_LEAN_DISKLESS &&
	    !intent_ready(v, op))
		return;
	if (!tap_ready(v, op))
		return;
	issue(op);
}

void op_gate_all(struct op_queue queue)
{
	struct op *op;

	while ((op = queue_pop(&queue)) != NULL)
		op_gate(op);
}

/* ---- landing ----------------------------------------------------------------------------------- */

/* This side's content is unknown there, whatever the consumers have. */
static void landed_badly(struct op *op, int error)
{
	struct volume *v = op->volume;
	uint64_t end = op->piece_offset + op->piece_length;

	volume_log_error(v, "write", op->piece_offset, error);
	v->stats.io_errors++;
	op->error = -EIO;
	if (!op_is_own(op)) {
		apply_failed(v, "write", op->piece_offset, error);
		return;
	}
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		maps_mark(v, (enum volume_consumer)c, op->piece_offset, op->piece_length, true);
	if (v->failed_start == v->failed_end) {
		v->failed_start = op->piece_offset;
		v->failed_end = end;
	}
	if (op->piece_offset < v->failed_start)
		v->failed_start = op->piece_offset;
	if (end > v->failed_end)
		v->failed_end = end;
	v->cuts[VOLUME_PEER].failed_covered = false;
}

static void tell_readers(struct volume *v, uint64_t start, uint64_t end)
{
	struct reader *next;

	for (struct reader *r = v->readers; r != NULL; r = next) {
		next = r->next;
		if (r->waiting == 0 || r->start >= end || start >= r->end)
			continue;
		if (--r->waiting == 0)
			r->ready(r);
	}
}

/* The end of filling a disk waits for the last of them. */
static void remote_over(struct op *op)
{
	struct volume *v = op->volume;

	if (!op->remote)
		return;
	op->remote = false;
	assert(v->remote_ops > 0);
	if (--v->remote_ops == 0)
		hydrate_pump_later(v);
}

/* A part of an op that leans on the peer is done when both have it. */
static void piece_landed(struct op *op)
{
	struct volume *v = op->volume;

	if (op->remote && (op->tap_waits > 0 || op->local_pending))
		return;
	if (op->remote && op->again) {
		op->diverged |= op->on_disk;
		remote_over(op);
		op->again = op->issued = op->on_disk = false;
		if (v->readers != NULL && op->kind != OP_FLUSH)
			tell_readers(v, op->piece_offset, op->piece_offset + op->piece_length);
		op_gate(op);
		return;
	}
	if (op->kind == OP_FLUSH) {
		remote_over(op);
		op->local_done = true;
		complete_if_done(op);
		return;
	}
	piece_done(op, op->local_error);
}

void op_retry(struct op *op, int error)
{
	enum op_failed what = (enum op_failed)op->failed;

	op->failed = 0;
	switch (what) {
	case FAILED_READ:
		read_retry(op, error);
		break;
	case FAILED_EDGE:
		op->edge = 0;
		if (error == 0)
			read_edges(op);
		else
			op_complete_later(op, -EIO);
		break;
	case FAILED_WRITE:
		op->local_error = error;
		op->on_disk = false;
		piece_landed(op);
		break;
	case FAILED_SYNC:
		synced(op, error);
		break;
	}
}

static void piece_over(struct op *op);

static void piece_done(struct op *op, int error)
{
	struct volume *v = op->volume;
	uint64_t start = op->piece_offset, end = start + op->piece_length;

	assert(op->issued);
	op->issued = false;
	if (op_is_marked(op))
		intent_touch(v, start, op->piece_length);
	if (error != 0)
		landed_badly(op, error);
	else if (v->hydrate.active && op->on_disk)
		hydrate_landed(v, start, op->piece_length);
	remote_over(op);
	op->on_disk = false;
	if (v->readers != NULL)
		tell_readers(v, start, end);
	if (error != 0 || !missing_wait_stored(op))
		piece_over(op);
}

void op_stored(struct op *op, int error)
{
	if (error != 0)
		op->error = -EIO;
	piece_over(op);
}

static void piece_over(struct op *op)
{
	struct volume *v = op->volume;

	op->pos = piece_end(op);
	buf_put(op->bounce);
	op->bounce = NULL;
	if (op->lock.wide && op->pos < op->end && op->pos > op->lock.start &&
	    op->pos % op->align == 0)
		run_granted(range_shrink(&v->ranges, &op->lock, op->pos));
	next_piece(op);
}

/* ---- readers ------------------------------------------------------------------------------------ */

void reader_start(struct volume *v, struct reader *reader)
{
	reader->waiting = 0;
	reader->waiters = (struct op_queue){0};
	for (struct range_lock *lock = v->ranges.all; lock != NULL; lock = lock->all_next) {
		struct op *op = op_of_lock(lock);

		if (op->issued && op->piece_offset < reader->end &&
		    reader->start < op->piece_offset + op->piece_length)
			reader->waiting++;
	}
	reader->next = v->readers;
	reader->previous = &v->readers;
	if (reader->next != NULL)
		reader->next->previous = &reader->next;
	v->readers = reader;
	if (MUTATE(volume_cut_ignores_in_flight))
		reader->waiting = 0;
	if (reader->waiting == 0)
		reader->ready(reader);
}

void reader_end(struct volume *v, struct reader *reader)
{
	assert(reader->waiting == 0);
	*reader->previous = reader->next;
	if (reader->next != NULL)
		reader->next->previous = reader->previous;
	op_gate_all(queue_take(&reader->waiters));
}

/* ---- the tap ------------------------------------------------------------------------------------ */

void volume_set_tap(struct volume *v, struct volume_tap *tap)
{
	v->tap = tap;
	lean_tap_changed(v);
	op_gate_all(queue_take(&v->wait_tap));
}

void volume_tap_resume(struct volume *v)
{
	op_gate_all(queue_take(&v->wait_tap));
}

static struct op *token_free(struct volume *v, uint32_t index)
{
	struct token *token = &v->tokens[index];
	struct op *op = token->op;

	token->op = NULL;
	token->generation++;
	token->next_free = v->token_free;
	v->token_free = index + 1;
	assert(op->tap_waits > 0);
	op->tap_waits--;
	return op;
}

static void tap_part_done(struct op *op)
{
	if (op->remote)
		piece_landed(op);
	else
		complete_if_done(op);
}

void volume_tap_done(struct volume *v, uint64_t token)
{
	uint32_t index = (uint32_t)token;
	bool none_free = !token_left(v);

	assert(index < v->tokens_used);
	/* Released meanwhile: whoever holds the old token is late. */
	if (v->tokens[index].op == NULL || v->tokens[index].generation != token >> 32)
		return;
	tap_part_done(token_free(v, index));
	if (none_free)
		op_gate_all(queue_take(&v->wait_tap));
}

static void release_all(struct volume *v, int error)
{
	struct op_queue done = {0};
	struct op *op;

	for (uint32_t i = 0; i < v->tokens_used; i++) {
		if (v->tokens[i].op == NULL)
			continue;
		op = token_free(v, i);
		if (error != 0)
			op->error = error;
		/* What the peer may lack is nowhere else. */
		if (op->remote && leaning(v) && error == 0)
			op->again = true;
		if (op->tap_waits == 0 && (op->remote ? !op->local_pending : op->local_done))
			queue_push(&done, op);
	}
	while ((op = queue_pop(&done)) != NULL)
		tap_part_done(op);
	op_gate_all(queue_take(&v->wait_tap));
}

void volume_tap_release_all(struct volume *v)
{
	release_all(v, 0);
}

void tap_fail_all(struct volume *v, int error)
{
	release_all(v, error);
}

void request_init(struct volume *v)
{
	v->bounce_waiter.resume = bounce_resume;
	v->deferred_task.call = deferred_run;
}
