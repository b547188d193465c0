/* SPDX-License-Identifier: Apache-2.0 */
/* The target's side of a comparison. See answer.h. */
#include "daemon/replication/answer.h"

#include <assert.h>
#include <stdlib.h>

#include "daemon/replication/hashes.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

enum step {
	STEP_FREE,
	STEP_LOCAL, /* waiting for the range, reading or hashing */
	STEP_READY, /* HASHES is made, but not sent yet */
};

struct slot {
	struct answer *answer;
	enum step step;
	uint64_t epoch; /* of the link that asked */
	struct frame reply;
	struct volume_hold hold;
	struct hashes hashes;
	struct buf *buf;
};

struct answer {
	struct volume *volume;
	struct env *env;
	void (*idle)(void *owner);
	void *owner;
	struct link *link;
	uint64_t epoch;
	struct buf_pool *pool;
	struct env_task send_task;
	struct slot slots[COMPARES_MAX];
};

/* ---- replies --------------------------------------------------------------------------------- */

static void send_ready(struct env_task *task)
{
	struct answer *answer = container_of(task, struct answer, send_task);

	for (unsigned i = 0; i < COMPARES_MAX; i++) {
		struct slot *slot = &answer->slots[i];
		if (slot->step != STEP_READY)
			continue;
		if (answer->link && slot->epoch == answer->epoch &&
		    !link_send_control(answer->link, &slot->reply, slot->hashes.hash,
				       slot->reply.payload_length))
			return; /* answer_sent() tries again */
		slot->step = STEP_FREE;
	}
	if (!answer->link && answer_is_idle(answer))
		answer->idle(answer->owner);
}

static void reply(struct slot *slot, unsigned flag, uint64_t length)
{
	slot->reply.flags = (slot->reply.flags & FRAME_FINE) | flag;
	slot->reply.length = length;
	slot->step = STEP_READY;
	env_defer(slot->answer->env, &slot->answer->send_task);
}

static void hashes_done(struct hashes *hashes)
{
	struct slot *slot = container_of(hashes, struct slot, hashes);
	uint32_t block = hashes->block_bytes;

	buf_put(slot->buf);
	slot->buf = NULL;
	slot->reply.payload_length =
		(hashes->length_bytes + block - 1) / block * COMPARE_HASH_BYTES;
	reply(slot, 0, hashes->length_bytes);
}

/* ---- content --------------------------------------------------------------------------------- */

/* How far the range reads as zeroes from its beginning, as far as the file system can tell. */
static uint64_t hole_bytes(struct slot *slot)
{
	struct block *block = volume_block(slot->answer->volume);
	struct block_extent extent = {};
	uint64_t length = slot->reply.length;

	if (block->ops->extents(block, slot->reply.offset, length, &extent, 1) == 0 || !extent.zero)
		return 0;
	length = extent.length_bytes < length ? extent.length_bytes : length;
	return length - length % compare_block_bytes(slot->reply.flags);
}

static void read_done(struct volume_hold *hold, int error)
{
	struct slot *slot = container_of(hold, struct slot, hold);
	struct answer *answer = slot->answer;

	volume_hold_release(hold);
	if (error) {
		buf_put(slot->buf);
		slot->buf = NULL;
		reply(slot, FRAME_UNREADABLE, slot->hashes.length_bytes);
		return;
	}
	slot->hashes.buf = slot->buf;
	hashes_make(answer->env, &slot->hashes);
}

static void granted(struct volume_hold *hold)
{
	struct slot *slot = container_of(hold, struct slot, hold);
	uint64_t hole = hole_bytes(slot), length = slot->reply.length;

	if (hole == length || (hole > 0 && slot->reply.flags & FRAME_HOLE)) {
		volume_hold_release(hold);
		reply(slot, FRAME_HOLE, hole);
		return;
	}
	if (length > COMPARE_MAX_BYTES)
		length = COMPARE_MAX_BYTES; /* the source asks for the rest again */
	slot->buf = buf_alloc(slot->answer->pool, (uint32_t)length);
	assert(slot->buf); /* the pool has one for each slot */
	slot->hashes.length_bytes = (uint32_t)length;
	slot->hashes.block_bytes = compare_block_bytes(slot->reply.flags);
	volume_hold_read(hold, slot->hashes.length_bytes, slot->buf);
}

bool answer_question(struct answer *answer, const struct frame *frame, bool later)
{
	struct slot *slot = NULL;

	for (unsigned i = 0; i < COMPARES_MAX && !slot; i++)
		if (answer->slots[i].step == STEP_FREE)
			slot = &answer->slots[i];
	if (!slot)
		return false;
	slot->epoch = answer->epoch;
	slot->reply = (struct frame){
		.type = FRAME_HASHES,
		.flags = frame->flags,
		.id = frame->id,
		.offset = frame->offset,
		.length = frame->length,
	};
	if (later) {
		reply(slot, FRAME_LATER,
		      frame->length < COMPARE_MAX_BYTES ? frame->length : COMPARE_MAX_BYTES);
		return true;
	}
	slot->step = STEP_LOCAL;
	slot->hold.offset_bytes = frame->offset;
	slot->hold.length_bytes = frame->length;
	volume_hold(answer->volume, &slot->hold);
	return true;
}

/* ---- life ------------------------------------------------------------------------------------ */

struct answer *answer_new(struct volume *volume, void (*idle)(void *owner), void *owner)
{
	struct answer *answer = calloc(1, sizeof(*answer));
	if (!answer)
		return NULL;
	/* Pages that are never used cost no memory. */
	answer->pool = buf_pool_new((unsigned[3]){0, 0, COMPARES_MAX});
	if (!answer->pool) {
		free(answer);
		return NULL;
	}
	answer->volume = volume;
	answer->env = volume_env(volume);
	answer->idle = idle;
	answer->owner = owner;
	answer->send_task.call = send_ready;
	for (unsigned i = 0; i < COMPARES_MAX; i++) {
		answer->slots[i].answer = answer;
		answer->slots[i].hold.granted = granted;
		answer->slots[i].hold.done = read_done;
		answer->slots[i].hashes.done = hashes_done;
	}
	return answer;
}

void answer_free(struct answer *answer)
{
	assert(answer_is_idle(answer) && !answer->link);
	env_defer_cancel(answer->env, &answer->send_task);
	buf_pool_free(answer->pool);
	free(answer);
}

bool answer_is_idle(const struct answer *answer)
{
	for (unsigned i = 0; i < COMPARES_MAX; i++)
		if (answer->slots[i].step != STEP_FREE)
			return false;
	return true;
}

void answer_attach(struct answer *answer, struct link *link)
{
	answer->link = link;
	answer->epoch++;
}

void answer_detach(struct answer *answer)
{
	answer->link = NULL;
	env_defer(answer->env, &answer->send_task);
}

void answer_sent(struct answer *answer)
{
	env_defer(answer->env, &answer->send_task);
}

void answer_check(const struct answer *answer)
{
	for (unsigned i = 0; i < COMPARES_MAX; i++)
		assert(answer->slots[i].step == STEP_LOCAL || !answer->slots[i].buf);
}
