/* SPDX-License-Identifier: Apache-2.0 */
/*
 * target_volume: a restore into a volume of this daemon, in place. The volume is INCONSISTENT from
 * before the first byte until all is durable. Everything written is marked for the peer before it is
 * written, and at the end the volume is of a new generation whose base is the one the peer knows: so the
 * peer catches up with exactly what the restore changed.
 */
#include "daemon/snapshot/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct volume_target {
	struct snapshot_target target; /* first */
	struct volume *volume;
	struct differing differing; /* as it was before all is marked */
	struct volume_apply flush;
	struct env_op *finish_op;
};

/* One read, write or zero on its way. */
struct transfer {
	union {
		struct block_request request;
		struct volume_apply apply;
	} u;
	struct env *env;
	struct env_op *op;
	int64_t result;
};

static int volume_next_differing(struct snapshot_target *target, uint64_t offset, uint64_t *start,
				 uint64_t *end)
{
	struct volume_target *v = (struct volume_target *)target;

	if (!v->differing.bits) {
		*start = offset;
		*end = UINT64_MAX;
		return 0;
	}
	return differing_next(&v->differing, offset, start, end) ? 0 : -ENXIO;
}

static int volume_begin(struct snapshot_target *target, const struct snapshot_info *info, char *why,
			size_t why_size)
{
	struct volume_target *v = (struct volume_target *)target;
	const char *name = volume_name(v->volume);
	struct volume_state state;
	struct volume_stats stats;
	bool mixture;
	int error;

	volume_get_stats(v->volume, &stats);
	volume_get_state(v->volume, &state);
	if (stats.clients) {
		snprintf(why, why_size, "volume %s: clients have it open", name);
		return -EBUSY;
	}
	if (volume_size_bytes(v->volume) < info->size_bytes) {
		snprintf(why, why_size,
			 "volume %s: too small: has %llu bytes, the snapshot needs %llu", name,
			 (unsigned long long)volume_size_bytes(v->volume),
			 (unsigned long long)info->size_bytes);
		return -ENOSPC;
	}
	differing_find(&v->differing, v->volume, info);
	mixture = state.disk != VOLUME_DISK_UPTODATE;
	state.disk = VOLUME_DISK_INCONSISTENT;
	if (id128_is_zero(&state.generations.base))
		state.generations.base = state.generations.current;
	error = volume_set_state(v->volume, &state);
	if (!error)
		error = volume_begin_replacing(v->volume);
	/* Nobody knows how a mixture differs from what the peer has. */
	if (!error && mixture)
		error = volume_mark_all(v->volume, VOLUME_PEER, false);
	if (error) {
		snprintf(why, why_size, "volume %s: state not stored: %s", name, strerror(-error));
		return error;
	}
	target->zero_to_bytes = volume_size_bytes(v->volume);
	return 0;
}

static struct transfer *transfer_new(struct volume_target *v, struct env_op *op)
{
	struct transfer *t = must_alloc(sizeof(*t));

	t->env = volume_env(v->volume);
	t->op = op;
	return t;
}

static void transfer_end(void *context)
{
	struct transfer *t = context;
	struct env_op *op = t->op;
	int64_t result = t->result;

	free(t);
	op->done(op, result);
}

static void volume_read_done(struct block_request *request, int error)
{
	struct transfer *t = container_of(request, struct transfer, u.request);

	t->result = error ? error : (int64_t)request->length_bytes;
	transfer_end(t);
}

static void volume_target_read(struct snapshot_target *target, struct env_op *op, struct buf *buf,
			       uint64_t offset, uint32_t length)
{
	struct volume_target *v = (struct volume_target *)target;
	struct transfer *t = transfer_new(v, op);

	t->u.request = (struct block_request){
		.op = BLOCK_READ,
		.offset_bytes = offset,
		.length_bytes = length,
		.buf = buf,
		.done = volume_read_done,
	};
	volume_read(v->volume, &t->u.request);
}

static void applied(struct volume_apply *apply, int error)
{
	struct transfer *t = container_of(apply, struct transfer, u.apply);

	t->result = error;
	/* volume_apply() may complete inside the call; an env_op never does. */
	call_later(t->env, transfer_end, t);
}

static void apply(struct volume_target *v, struct env_op *op,
		  const struct volume_mutation *mutation)
{
	struct transfer *t = transfer_new(v, op);
	int error =
		volume_mark(v->volume, VOLUME_PEER, mutation->offset_bytes, mutation->length_bytes);

	t->result = error;
	if (error) {
		call_later(t->env, transfer_end, t);
		return;
	}
	t->u.apply = (struct volume_apply){.mutation = *mutation, .done = applied};
	volume_apply(v->volume, &t->u.apply);
}

static void volume_target_write(struct snapshot_target *target, struct env_op *op, struct buf *buf,
				uint64_t offset, uint32_t length)
{
	struct volume_mutation mutation = {
		.type = VOLUME_WRITE,
		.offset_bytes = offset,
		.length_bytes = length,
		.buf = buf,
	};

	apply((struct volume_target *)target, op, &mutation);
}

static void volume_target_zero(struct snapshot_target *target, struct env_op *op, uint64_t offset,
			       uint64_t length)
{
	struct volume_mutation mutation = {
		.type = VOLUME_ZERO,
		.punch = true,
		.offset_bytes = offset,
		.length_bytes = length,
	};

	apply((struct volume_target *)target, op, &mutation);
}

static int volume_next_data(struct snapshot_target *target, uint64_t offset, uint64_t *start,
			    uint64_t *end)
{
	struct volume_target *v = (struct volume_target *)target;
	struct block *block = volume_block(v->volume);
	uint64_t size = volume_size_bytes(v->volume);

	while (offset < size) {
		struct block_extent extent;

		if (!block->ops->extents(block, offset, size - offset, &extent, 1))
			return -EIO;
		if (!extent.zero) {
			*start = offset;
			*end = offset + extent.length_bytes;
			return 0;
		}
		offset += extent.length_bytes;
	}
	return -ENXIO;
}

static void new_generation(struct volume_state *state, struct env *env)
{
	struct volume_generations *g = &state->generations;

	/* Also if it is the base: a generation in no history counts as older than all of it. */
	if (!id128_is_zero(&g->current) && !id128_equal(&g->current, &g->history[0])) {
		memmove(&g->history[1], &g->history[0], sizeof(g->history) - sizeof(g->history[0]));
		g->history[0] = g->current;
	}
	env_random(env, &g->current, sizeof(g->current));
}

static void volume_flushed(struct volume_apply *flush, int error)
{
	struct volume_target *v = container_of(flush, struct volume_target, flush);
	struct env_op *op = v->finish_op;

	if (!error) {
		struct volume_state state;

		volume_get_state(v->volume, &state);
		state.disk = VOLUME_DISK_UPTODATE;
		state.outdated_ns = 0;
		new_generation(&state, volume_env(v->volume));
		error = volume_set_state(v->volume, &state);
	}
	op->done(op, error);
}

static void volume_target_finish(struct snapshot_target *target, struct env_op *op)
{
	struct volume_target *v = (struct volume_target *)target;

	v->finish_op = op;
	v->flush = (struct volume_apply){
		.mutation = {.type = VOLUME_FLUSH},
		.done = volume_flushed,
	};
	volume_apply(v->volume, &v->flush);
}

static void volume_target_free(struct snapshot_target *target)
{
	free(((struct volume_target *)target)->differing.bits);
	free(target);
}

int snapshot_target_volume(struct volume *volume, struct snapshot_target **target, char *why,
			   size_t why_size)
{
	struct volume_target *v;
	struct volume_state state;

	volume_get_state(volume, &state);
	if (state.disk == VOLUME_DISK_FAILED) {
		snprintf(why, why_size, "volume %s: its backing is missing or failed",
			 volume_name(volume));
		return -EIO;
	}
	v = must_alloc(sizeof(*v));
	*v = (struct volume_target){
		.target =
			{
				.begin = volume_begin,
				.read = volume_target_read,
				.write = volume_target_write,
				.zero = volume_target_zero,
				.finish = volume_target_finish,
				.free = volume_target_free,
				.next_data = volume_next_data,
				.next_differing = volume_next_differing,
				.compare = true,
			},
		.volume = volume,
	};
	*target = &v->target;
	return 0;
}
