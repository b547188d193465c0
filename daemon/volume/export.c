// SPDX-License-Identifier: Apache-2.0
/*
 * The doors: struct block for clients, volume_read() and volume_apply() for the modules above. Checks
 * what comes in and makes an op of it; reads are done here.
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* ---- reads ---------------------------------------------------------------------------------- */

static void read_end(struct op *op, int error)
{
	struct volume *v = op->volume;

	buf_put(op->bounce);
	op->bounce = NULL;
	if (error != 0)
		v->stats.io_errors++;
	op_unlock(op);
	op_complete(op, error);
}

static void read_failed(struct op *op, int error)
{
	if (!is_remote_error(error) && op->owner == OWNER_CLIENT &&
	    disk_failed(op->volume, "read", op->pos, error)) {
		op_failed(op, FAILED_READ, error);
		return;
	}
	volume_log_error(op->volume, "read", op->pos, error);
	read_end(op, error == -ESHUTDOWN ? error : -EIO);
}

static void read_done(struct op *op, int error)
{
	if (error != 0)
		read_failed(op, error);
	else
		read_end(op, 0);
}

static void read_bounced(struct op *op);

static void bounce_done(struct op *op, int error)
{
	struct block_request *request = request_of(op);
	uint64_t end = op->piece_offset + op->piece_length;

	if (error != 0) {
		read_failed(op, error);
		return;
	}
	if (end > op->end)
		end = op->end;
	memcpy(request->buf->data + (op->pos - request->offset_bytes),
	       op->bounce->data + (op->pos - op->piece_offset), end - op->pos);
	op->pos = end;
	if (op->pos == op->end)
		read_end(op, 0);
	else
		read_bounced(op);
}

static void read_resume(struct buf_waiter *waiter)
{
	struct volume *v = (struct volume *)((char *)waiter - offsetof(struct volume, read_waiter));
	struct op_queue queue = queue_take(&v->wait_read);
	struct op *op;

	v->read_waiting = false;
	while ((op = queue_pop(&queue)) != NULL)
		read_bounced(op);
}

/* What the backing's alignment does not allow to be read in place. */
static void read_bounced(struct op *op)
{
	struct volume *v = op->volume;
	uint32_t align = op_read_align(v);
	uint64_t start = round_down(op->pos, align), end = round_up(op->end, align);

	if (end - start > BUF_SIZE_MAX)
		end = start + BUF_SIZE_MAX;
	if (op->bounce == NULL)
		op->bounce = buf_alloc(v->local_pool, (uint32_t)(end - start));
	if (op->bounce == NULL) {
		queue_push(&v->wait_read, op);
		if (!v->read_waiting) {
			v->read_waiting = true;
			buf_wait(v->local_pool, &v->read_waiter, (uint32_t)(end - start));
		}
		return;
	}
	if (end - start > op->bounce->size_bytes)
		end = start + op->bounce->size_bytes;
	op->piece_offset = start;
	op->piece_length = end - start;
	op_read(op, op->bounce->data, end - start, start, bounce_done);
}

void read_start(struct op *op)
{
	struct volume *v = op->volume;
	struct block_request *request = request_of(op);
	uint32_t align = op_read_align(v);
	uint64_t length = round_up(request->length_bytes, align);

	if (v->backing == NULL && !leaning(v)) {
		op_complete_later(op, -EIO);
		return;
	}
	if (v->hydrate.active && hydrate_wait(op))
		return;
	/* A part of it may be newer here than there. */
	if (v->hydrate.from_store && op->owner != OWNER_CLIENT && v->hydrate.active &&
	    hydrate_is_missing(v, request->offset_bytes, request->length_bytes)) {
		op_complete_later(op, -EIO);
		return;
	}
	if (request->offset_bytes % align == 0 && length <= request->buf->size_bytes) {
		op_read(op, request->buf->data, length, request->offset_bytes, read_done);
		return;
	}
	read_bounced(op);
}

void read_retry(struct op *op, int error)
{
	if (error != 0) {
		read_end(op, -EIO);
		return;
	}
	buf_put(op->bounce);
	op->bounce = NULL;
	op->pos = request_of(op)->offset_bytes;
	read_start(op);
}

/* ---- clients ---------------------------------------------------------------------------------- */

static int block_open(struct block *block, char *why, size_t why_size)
{
	struct volume *v = volume_of_block(block);

	if (v->closing) {
		snprintf(why, why_size, "volume %s is being closed", v->name);
		return -ESHUTDOWN;
	}
	if (v->state.disk == VOLUME_DISK_FAILED) {
		snprintf(why, why_size, "volume %s: disk failed: %s", v->name, v->failure);
		return -EIO;
	}
	if (v->state.role != VOLUME_PRIMARY) {
		snprintf(why, why_size,
			 "volume %s is secondary on this node; promote it first (offsite promote "
			 "%s)",
			 v->name, v->name);
		return -EPERM;
	}
	if (v->state.disk != VOLUME_DISK_UPTODATE && !volume_serves(v)) {
		snprintf(why, why_size, "volume %s: its disk is %s on this node", v->name,
			 volume_disk_state_name(v->state.disk));
		return -EPERM;
	}
	v->stats.clients++;
	return 0;
}

static void block_close(struct block *block)
{
	struct volume *v = volume_of_block(block);

	assert(v->stats.clients > 0);
	v->stats.clients--;
}

static void block_info(struct block *block, struct block_info *info)
{
	struct volume *v = volume_of_block(block);

	*info = (struct block_info){
		.size_bytes = v->size_bytes,
		.block_min_bytes = v->config.block_min_bytes,
		.block_preferred_bytes = 4096,
		.can_trim = true,
		.can_zero = true,
		.can_fast_zero = v->punch_cap != CAP_NO || v->zero_cap != CAP_NO,
		.can_flush = true,
		.can_multi_conn = true,
	};
}

/* 0, or why the request is not taken in. */
static int refuse(const struct volume *v, const struct block_request *request)
{
	bool changes = request->op == BLOCK_WRITE || request->op == BLOCK_TRIM ||
		       request->op == BLOCK_ZERO;
	bool data = request->op == BLOCK_READ || request->op == BLOCK_WRITE;

	if (v->closing)
		return -ESHUTDOWN;
	if (!volume_serves(v))
		return -EIO;
	/* Also reads of a client from before a change of role: its cache is not to be believed. */
	if ((changes || data) && v->state.role != VOLUME_PRIMARY)
		return -EPERM;
	if (request->op == BLOCK_FLUSH)
		return 0;
	if (request->offset_bytes > v->size_bytes ||
	    request->length_bytes > v->size_bytes - request->offset_bytes)
		return changes ? -ENOSPC : -EINVAL;
	if (data && (request->length_bytes == 0 || request->length_bytes > BUF_SIZE_MAX))
		return -EINVAL;
	return 0;
}

static void count(struct volume *v, const struct block_request *request)
{
	switch (request->op) {
	case BLOCK_READ:
		v->stats.reads++;
		v->stats.read_bytes += request->length_bytes;
		break;
	case BLOCK_WRITE:
		v->stats.writes++;
		v->stats.written_bytes += request->length_bytes;
		break;
	case BLOCK_FLUSH:
		v->stats.flushes++;
		break;
	case BLOCK_TRIM:
	case BLOCK_ZERO:
		v->stats.trims++;
		break;
	case BLOCK_CACHE:
		break;
	}
	if (++v->stats.in_flight > v->stats.in_flight_max)
		v->stats.in_flight_max = v->stats.in_flight;
}

static void block_submit(struct block *block, struct block_request *request)
{
	struct volume *v = volume_of_block(block);
	struct op *op = (struct op *)request->priv;
	int error = refuse(v, request);
	bool flush = request->op == BLOCK_FLUSH;

	*op = (struct op){.volume = v, .owner = OWNER_CLIENT, .started_ns = env_now_ns(v->env)};
	op->pos = flush ? 0 : request->offset_bytes;
	op->end = flush ? 0 : request->offset_bytes + request->length_bytes;
	op->fua = request->flags & BLOCK_FUA;
	switch (request->op) {
	case BLOCK_READ:
		op->kind = OP_READ;
		break;
	case BLOCK_WRITE:
		op->kind = OP_WRITE;
		break;
	case BLOCK_FLUSH:
		op->kind = OP_FLUSH;
		break;
	case BLOCK_TRIM:
		/* Advisory, but what it does is the same on both nodes: zeroes. */
		op->kind = OP_ZERO;
		op->trim = op->punch = true;
		op->pos = round_up(op->pos, v->align_bytes);
		op->end = round_down(op->end, v->align_bytes);
		break;
	case BLOCK_ZERO:
		op->kind = OP_ZERO;
		op->punch = !(request->flags & BLOCK_NO_HOLE);
		op->fast = request->flags & BLOCK_FAST_ZERO;
		break;
	case BLOCK_CACHE:
		break;
	}
	if (error != 0 || request->op == BLOCK_CACHE || (!flush && op->pos >= op->end)) {
		request->done(request, error);
		return;
	}
	count(v, request);
	v->stats.requested_ns = op->started_ns;
	if (v->suspended || v->held.first != NULL) {
		v->ops++;
		queue_push(&v->held, op);
	} else if (op->kind == OP_READ) {
		v->ops++;
		read_start(op);
	} else {
		op_start(op);
	}
}

static unsigned block_extents(struct block *block, uint64_t offset, uint64_t length,
			      struct block_extent *extents, unsigned max)
{
	struct volume *v = volume_of_block(block);
	uint64_t end = offset + length;
	unsigned n = 0;

	assert(max > 0 && length > 0 && end <= v->size_bytes);
	while (n < max && offset < end) {
		uint64_t data = offset, data_end = end;
		int error =
			v->backing == NULL || leaning(v) || v->hydrate.active
				? -EIO
				: env_file_next_data(v->env, v->backing, offset, &data, &data_end);

		if (error == -ENXIO)
			data = data_end = end;
		else if (error != 0 || data_end <= offset || data < offset)
			data = offset, data_end = end; /* it cannot say: allocated */
		if (data > end)
			data = end;
		if (data > offset) {
			extents[n++] = (struct block_extent){
				.length_bytes = data - offset, .hole = true, .zero = true};
			offset = data;
		}
		if (n < max && offset < end) {
			data_end = data_end < end ? data_end : end;
			extents[n++] = (struct block_extent){.length_bytes = data_end - offset};
			offset = data_end;
		}
	}
	return n;
}

static const struct block_ops volume_block_ops = {
	.open = block_open,
	.close = block_close,
	.info = block_info,
	.submit = block_submit,
	.extents = block_extents,
};

struct block *volume_block(struct volume *v)
{
	return &v->block;
}

void volume_suspend(struct volume *v, enum volume_suspender who, bool suspend)
{
	unsigned before = v->suspended;

	v->suspended = suspend ? before | who : before & ~(unsigned)who;
	if (before != 0 && v->suspended == 0)
		export_resume(v);
}

unsigned volume_suspended(const struct volume *v)
{
	return v->suspended;
}

void volume_fail_held(struct volume *v, int error)
{
	struct op_queue held = queue_take(&v->held), gate = queue_take(&v->wait_resume);
	struct op *op;

	/* What of them is on the new disk already is not at the peer: it is filled anew. */
	if (v->hydrate.active && leaning(v) && gate.first != NULL)
		hydrate_stop(v);

	while ((op = queue_pop(&gate)) != NULL)
		op_complete_later(op, error);
	while ((op = queue_pop(&held)) != NULL)
		op_complete_later(op, error);
	lean_fail_waiting(v, error);
	if (v->tap == NULL)
		tap_fail_all(v, error);
}

/* ---- the modules above ------------------------------------------------------------------------- */

void volume_read(struct volume *v, struct block_request *request)
{
	struct op *op = (struct op *)request->priv;
	uint64_t end = request->offset_bytes + request->length_bytes;

	assert(request->op == BLOCK_READ && request->length_bytes > 0);
	assert(end <= v->size_bytes && request->length_bytes <= request->buf->size_bytes);
	*op = (struct op){.volume = v, .owner = OWNER_READER, .kind = OP_READ};
	op->pos = request->offset_bytes;
	op->end = end;
	op_start(op);
}

void volume_apply(struct volume *v, struct volume_apply *apply)
{
	const struct volume_mutation *mutation = &apply->mutation;
	struct op *op = (struct op *)apply->priv;

	*op = (struct op){.volume = v, .owner = OWNER_APPLY};
	op->kind = mutation->type == VOLUME_WRITE  ? OP_WRITE
		   : mutation->type == VOLUME_ZERO ? OP_ZERO
						   : OP_FLUSH;
	op->fua = mutation->fua;
	op->punch = mutation->punch;
	if (op->kind != OP_FLUSH) {
		op->pos = mutation->offset_bytes;
		op->end = mutation->offset_bytes + mutation->length_bytes;
		assert(op->pos % 512 == 0 && op->end % 512 == 0 && op->pos < op->end);
		assert(op->end <= v->size_bytes);
		assert(op->kind == OP_ZERO || mutation->length_bytes <= mutation->buf->size_bytes);
	}
	op_start(op);
}

void export_init(struct volume *v)
{
	v->read_waiter.resume = read_resume;
	v->block.ops = &volume_block_ops;
	v->block.name = v->name;
	v->block.description = v->description;
}
