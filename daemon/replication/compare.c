/* SPDX-License-Identifier: Apache-2.0 */
/* The source's side of a comparison. See compare.h. */
#include "daemon/replication/compare.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/mutate.h"
#include "daemon/replication/hashes.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define FINE     COMPARE_FINE_BLOCK_BYTES
#define LATER_NS 200000000ull
/* Ranges held and read here at a time: with clients at work few, which keep a disk busy and its queue
 * short. */
#define READS      8u
#define READS_BUSY 2u

enum step {
	STEP_ASK,   /* the next piece is to be asked for */
	STEP_ASKED, /* held, read, hashed here; at the peer */
	STEP_DONE,  /* to be told */
};

/* One range on its way, piece by piece. */
struct slot {
	struct compare *compare;
	uint64_t offset, length, differ_bytes;
	uint64_t differ[COMPARE_HOLE_MAX_BYTES / FINE / 64];
	enum step step;

	uint64_t at; /* what lies before is known */
	uint64_t fine_end,
		resume; /* at < fine_end: a second look up to there, then on from resume */

	/* the piece at hand */
	uint64_t piece, question;
	bool hole, waiting, reading, local_busy, have_own, have_peer;
	bool own_failed;
	struct volume_hold hold;
	struct hashes own;
	struct buf *buf;
	struct frame answer;
	uint8_t peer[HASHES_MAX][COMPARE_HASH_BYTES];
};

struct compare {
	struct volume *volume;
	struct env *env;
	const struct compare_ops *ops;
	void *owner;
	struct link *link; /* NULL: stopped */
	struct buf_pool *pool;
	uint64_t next_offset, question;
	bool exact, no_more, finished;
	unsigned local_busy, reading;

	uint64_t rate, next_read_ns;
	struct env_timer timer;
	struct env_task pump_task;
	struct slot slots[COMPARES_MAX];
	unsigned head, count; /* a ring: the oldest is told first */
	struct compare_status status;
};

bool compare_range_next(const struct compare_range *range, uint64_t *first, uint64_t *count)
{
	uint64_t blocks = range->length_bytes / FINE, i = *first, end;

	while (i < blocks && !(range->differ[i / 64] >> i % 64 & 1))
		i++;
	for (end = i; end < blocks && range->differ[end / 64] >> end % 64 & 1; end++)
		;
	*first = i;
	*count = end - i;
	return end > i;
}

/* ---- what is known of a piece ---------------------------------------------------------------- */

static void mark(struct slot *slot, uint64_t offset, uint64_t length)
{
	uint64_t first = (offset - slot->offset) / FINE;

	for (uint64_t i = first; i < first + length / FINE; i++)
		slot->differ[i / 64] |= 1ull << i % 64;
	slot->differ_bytes += length;
}

static uint64_t min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void advance(struct slot *slot, uint64_t to)
{
	slot->at = to;
	if (slot->at == slot->fine_end) {
		slot->fine_end = 0;
		slot->at = slot->resume;
	}
	slot->step = slot->at == slot->offset + slot->length ? STEP_DONE : STEP_ASK;
}

/* By chunks: what differs is looked at again. */
static void take_coarse(struct slot *slot, uint64_t known, const bool *differs, unsigned count)
{
	unsigned first = count, last = 0, differing = 0;

	for (unsigned i = 0; i < count; i++) {
		if (!differs[i])
			continue;
		first = first < i ? first : i;
		last = i;
		differing++;
	}
	if (differing == 0) {
		advance(slot, slot->at + known);
	} else if (differing == count && !slot->compare->exact) {
		mark(slot, slot->at, known);
		advance(slot, slot->at + known);
	} else {
		slot->resume = slot->at + known;
		slot->fine_end =
			min64(slot->at + (last + 1ull) * COMPARE_BLOCK_BYTES, slot->resume);
		slot->at += (uint64_t)first * COMPARE_BLOCK_BYTES;
		slot->step = STEP_ASK;
	}
}

static void take_fine(struct slot *slot, uint64_t known, const bool *differs, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (differs[i])
			mark(slot, slot->at + (uint64_t)i * FINE, FINE);
	advance(slot, slot->at + known);
}

static void judge(struct slot *slot)
{
	bool fine = slot->at < slot->fine_end, differs[HASHES_MAX];
	uint32_t block = fine ? FINE : COMPARE_BLOCK_BYTES;
	uint64_t known = slot->answer.length;
	unsigned count = (unsigned)((known + block - 1) / block);

	slot->have_own = slot->have_peer = false;
	if (slot->hole)
		slot->compare->status.skipped_bytes += known;
	if (slot->hole && slot->answer.flags & FRAME_HOLE) {
		advance(slot, slot->at + known);
		return;
	}
	if (slot->hole)
		memset(slot->own.hash, 0, sizeof(slot->own.hash));
	if (slot->answer.flags & FRAME_HOLE)
		memset(slot->peer, 0, sizeof(slot->peer));
	bool failed = slot->own_failed || slot->answer.flags & FRAME_UNREADABLE;
	for (unsigned i = 0; i < count; i++)
		differs[i] =
			failed || memcmp(slot->own.hash[i], slot->peer[i], COMPARE_HASH_BYTES) != 0;
	if (fine)
		take_fine(slot, known, differs, count);
	else
		take_coarse(slot, known, differs, count);
}

static void judge_if_known(struct slot *slot)
{
	struct compare *compare = slot->compare;

	if (!slot->have_own || !slot->have_peer || !compare->link)
		return;
	if (slot->answer.flags & FRAME_LATER) {
		slot->have_own = slot->have_peer = false;
		slot->step = STEP_ASK;
		compare->next_read_ns = env_now_ns(compare->env) + LATER_NS;
	} else {
		judge(slot);
	}
	env_defer(compare->env, &compare->pump_task);
}

/* ---- asking ---------------------------------------------------------------------------------- */

static void local_end(struct slot *slot)
{
	struct compare *compare = slot->compare;

	buf_put(slot->buf);
	slot->buf = NULL;
	slot->local_busy = false;
	compare->local_busy--;
	slot->have_own = true;
	judge_if_known(slot);
	if (!compare->link)
		env_defer(compare->env, &compare->pump_task);
}

static void hashes_done(struct hashes *hashes)
{
	local_end(container_of(hashes, struct slot, own));
}

static void count_reading(struct slot *slot, bool reading)
{
	struct compare *compare = slot->compare;

	if (slot->reading == reading)
		return;
	slot->reading = reading;
	compare->reading += reading ? 1 : -1u;
	env_defer(compare->env, &compare->pump_task);
}

static void send_question(struct slot *slot)
{
	bool fine = slot->at < slot->fine_end;
	struct frame question = {
		.type = FRAME_COMPARE,
		.flags = (slot->hole ? FRAME_HOLE : 0) | (fine ? FRAME_FINE : 0),
		.id = slot->question = ++slot->compare->question,
		.offset = slot->at,
		.length = slot->piece,
	};

	link_send(slot->compare->link, &question, NULL, 0);
}

static void read_done(struct volume_hold *hold, int error)
{
	struct slot *slot = container_of(hold, struct slot, hold);
	struct compare *compare = slot->compare;

	volume_hold_release(hold);
	count_reading(slot, false);
	slot->own_failed = error != 0;
	if (compare->link && MUTATE(replication_compare_late))
		send_question(slot);
	if (error || !compare->link) {
		local_end(slot);
		return;
	}
	compare->status.read_bytes += slot->piece;
	compare->status.hashed_bytes += slot->piece;
	slot->own.buf = slot->buf;
	slot->own.length_bytes = (uint32_t)slot->piece;
	slot->own.block_bytes = slot->at < slot->fine_end ? FINE : COMPARE_BLOCK_BYTES;
	hashes_make(compare->env, &slot->own);
}

/* Bytes from offset on, length at most, that read as zeroes as far as the file system can tell. */
static uint64_t hole_bytes(struct compare *compare, uint64_t offset, uint64_t length)
{
	struct block *block = volume_block(compare->volume);
	struct block_extent extent = {};

	if (block->ops->extents(block, offset, length, &extent, 1) == 0 || !extent.zero)
		return 0;
	return min64(extent.length_bytes, length) / COMPARE_BLOCK_BYTES * COMPARE_BLOCK_BYTES;
}

static void granted(struct volume_hold *hold)
{
	struct slot *slot = container_of(hold, struct slot, hold);
	struct compare *compare = slot->compare;

	slot->waiting = false;
	/* It may have been written since it was looked at: what is not a hole any more is read. */
	if (slot->hole)
		slot->hole = hole_bytes(compare, slot->at, slot->piece) == slot->piece;
	if (!slot->hole && slot->piece > COMPARE_MAX_BYTES)
		slot->piece = COMPARE_MAX_BYTES;
	if (compare->link && (slot->hole || !MUTATE(replication_compare_late)))
		send_question(slot);
	count_reading(slot, !slot->hole && compare->link);
	if (slot->hole || !compare->link) {
		volume_hold_release(hold);
		slot->own_failed = false;
		local_end(slot);
		return;
	}
	slot->buf = buf_alloc(compare->pool, (uint32_t)slot->piece);
	assert(slot->buf); /* the pool has one for each slot */
	volume_hold_read(hold, (uint32_t)slot->piece, slot->buf);
}

/* Chooses the next piece of the slot and asks for it. */
static void ask(struct slot *slot)
{
	struct compare *compare = slot->compare;
	uint64_t end = slot->fine_end ? slot->fine_end : slot->offset + slot->length;
	uint64_t hole = slot->fine_end ? 0 : hole_bytes(compare, slot->at, end - slot->at);

	slot->step = STEP_ASKED;
	slot->question = 0;
	slot->have_own = slot->have_peer = false;
	slot->hole = hole > 0;
	slot->piece = hole ? hole : min64(end - slot->at, COMPARE_MAX_BYTES);
	if (!slot->hole && compare->rate) {
		uint64_t now = env_now_ns(compare->env);
		if (compare->next_read_ns < now)
			compare->next_read_ns = now;
		compare->next_read_ns += slot->piece * 1000000000ull / compare->rate;
	}
	if (!slot->hole && compare->ops->took)
		compare->ops->took(compare->owner, slot->piece);
	count_reading(slot, !slot->hole);
	slot->local_busy = slot->waiting = true;
	compare->local_busy++;
	slot->hold.offset_bytes = slot->at;
	slot->hold.length_bytes = slot->piece;
	volume_hold(compare->volume, &slot->hold);
}

const char *compare_hashes(struct compare *compare, const struct frame *frame, const void *payload)
{
	struct slot *slot = NULL;

	for (unsigned i = 0; i < compare->count; i++) {
		struct slot *s = &compare->slots[(compare->head + i) % COMPARES_MAX];
		if (s->step == STEP_ASKED && s->question == frame->id && !s->have_peer)
			slot = s;
	}
	if (!slot)
		return compare->link ? "HASHES without a question" : NULL;
	bool fine = slot->at < slot->fine_end;
	if (frame->offset != slot->at || frame->length > slot->piece ||
	    fine != ((frame->flags & FRAME_FINE) != 0) ||
	    (frame->length < slot->piece && frame->length % compare_block_bytes(frame->flags)))
		return "HASHES do not fit the question";
	slot->answer = *frame;
	slot->have_peer = true;
	if (frame->payload_length)
		memcpy(slot->peer, payload, frame->payload_length);
	judge_if_known(slot);
	return NULL;
}

/* ---- the walk -------------------------------------------------------------------------------- */

/* Tells what is known, the oldest first. False: the owner cannot take it now, or stopped it all. */
static bool tell(struct compare *compare)
{
	while (compare->count > 0) {
		struct slot *slot = &compare->slots[compare->head];
		struct compare_range range = {slot->offset, slot->length, slot->differ_bytes,
					      slot->differ};
		if (slot->step != STEP_DONE)
			return true;
		if (!compare->ops->result(compare->owner, &range) || !compare->link)
			return false;
		compare->status.compared_bytes += range.length_bytes;
		compare->status.differ_bytes += range.differ_bytes;
		compare->head = (compare->head + 1) % COMPARES_MAX;
		compare->count--;
	}
	return true;
}

/* The next range gets a slot. What is no hole from its beginning on is short: told soon. */
static bool add(struct compare *compare)
{
	uint64_t start, length;

	if (compare->no_more || compare->count == COMPARES_MAX)
		return false;
	if (!compare->ops->next(compare->owner, compare->next_offset, &start, &length)) {
		compare->no_more = true;
		return false;
	}
	length = min64(length, COMPARE_HOLE_MAX_BYTES);
	uint64_t hole = hole_bytes(compare, start, length);
	if (hole)
		length = hole;
	else
		length = min64(length, COMPARE_MAX_BYTES);
	struct slot *slot = &compare->slots[(compare->head + compare->count++) % COMPARES_MAX];
	assert(!slot->local_busy);
	slot->offset = slot->at = start;
	slot->length = length;
	slot->differ_bytes = slot->fine_end = 0;
	memset(slot->differ, 0, sizeof(slot->differ));
	slot->step = STEP_ASK;
	compare->next_offset = start + length;
	return true;
}

static bool may_ask(struct compare *compare)
{
	uint64_t now = env_now_ns(compare->env);
	struct volume_stats stats;

	volume_get_stats(compare->volume, &stats);
	if (compare->reading >= (stats.in_flight ? READS_BUSY : READS))
		return false; /* a read that ends asks again */
	if (compare->ops->may_read && !compare->ops->may_read(compare->owner))
		return false;
	if (compare->next_read_ns <= now)
		return true;
	if (!env_timer_active(&compare->timer))
		env_timer_start(compare->env, &compare->timer, compare->next_read_ns - now);
	return false;
}

static void walk(struct compare *compare)
{
	if (!tell(compare))
		return;
	for (unsigned i = 0; compare->link && (i < compare->count || add(compare)); i++) {
		struct slot *slot = &compare->slots[(compare->head + i) % COMPARES_MAX];
		if (slot->step != STEP_ASK)
			continue;
		if (!may_ask(compare))
			return;
		ask(slot);
	}
	if (compare->link && compare->count == 0 && compare->no_more && !compare->finished) {
		compare->finished = true;
		compare->ops->finished(compare->owner);
	}
}

/* Stopped: what waits for its range might do so until there is a next connection. */
static void cancel_waiting(struct compare *compare)
{
	for (unsigned i = 0; i < COMPARES_MAX; i++) {
		struct slot *slot = &compare->slots[i];
		if (!slot->waiting || !volume_hold_cancel(&slot->hold))
			continue;
		slot->waiting = false;
		count_reading(slot, false);
		local_end(slot);
	}
}

static void pump(struct env_task *task)
{
	struct compare *compare = container_of(task, struct compare, pump_task);

	if (compare->link)
		walk(compare);
	else
		cancel_waiting(compare);
	if (!compare->link && compare->ops && compare->local_busy == 0) {
		const struct compare_ops *ops = compare->ops;
		compare->ops = NULL;
		ops->idle(compare->owner);
	}
}

static void timer_fire(struct env_timer *timer)
{
	struct compare *compare = container_of(timer, struct compare, timer);

	env_defer(compare->env, &compare->pump_task);
}

/* ---- life ------------------------------------------------------------------------------------ */

struct compare *compare_new(struct volume *volume)
{
	struct compare *compare = calloc(1, sizeof(*compare));
	if (!compare)
		return NULL;
	/* Pages that are never used cost no memory. */
	compare->pool = buf_pool_new((unsigned[3]){0, 0, COMPARES_MAX});
	if (!compare->pool) {
		free(compare);
		return NULL;
	}
	compare->volume = volume;
	compare->env = volume_env(volume);
	compare->pump_task.call = pump;
	compare->timer.fire = timer_fire;
	for (unsigned i = 0; i < COMPARES_MAX; i++) {
		compare->slots[i].compare = compare;
		compare->slots[i].hold.granted = granted;
		compare->slots[i].hold.done = read_done;
		compare->slots[i].own.done = hashes_done;
	}
	return compare;
}

void compare_free(struct compare *compare)
{
	assert(compare_is_idle(compare));
	env_timer_stop(compare->env, &compare->timer);
	env_defer_cancel(compare->env, &compare->pump_task);
	buf_pool_free(compare->pool);
	free(compare);
}

void compare_start(struct compare *compare, struct link *link, uint64_t offset, bool exact,
		   uint64_t rate, const struct compare_ops *ops, void *owner)
{
	assert(compare_is_idle(compare) && link);
	compare->link = link;
	compare->ops = ops;
	compare->owner = owner;
	compare->next_offset = offset;
	compare->exact = exact;
	compare->rate = rate;
	compare->next_read_ns = 0;
	compare->no_more = compare->finished = false;
	compare->head = compare->count = 0;
	compare->status = (struct compare_status){};
	env_defer(compare->env, &compare->pump_task);
}

void compare_set_rate(struct compare *compare, uint64_t rate)
{
	compare->rate = rate;
	compare->next_read_ns = 0;
	env_timer_stop(compare->env, &compare->timer);
	env_defer(compare->env, &compare->pump_task);
}

void compare_stop(struct compare *compare)
{
	if (!compare->link)
		return;
	compare->link = NULL;
	compare->count = 0;
	env_timer_stop(compare->env, &compare->timer);
	env_defer(compare->env, &compare->pump_task);
}

void compare_resume(struct compare *compare)
{
	env_defer(compare->env, &compare->pump_task);
}

bool compare_is_running(const struct compare *compare)
{
	return compare->link != NULL;
}

bool compare_is_idle(const struct compare *compare)
{
	return !compare->link && !compare->ops;
}

void compare_get_status(const struct compare *compare, struct compare_status *status)
{
	*status = compare->status;
}

void compare_check(const struct compare *compare)
{
	unsigned busy = 0, reading = 0;

	for (unsigned i = 0; i < COMPARES_MAX; i++) {
		const struct slot *slot = &compare->slots[i];
		busy += slot->local_busy;
		reading += slot->reading;
		assert(slot->local_busy || !slot->buf);
	}
	assert(busy == compare->local_busy && reading == compare->reading);
	assert(compare->link || compare->count == 0);
	for (unsigned i = 0; i < compare->count; i++) {
		const struct slot *slot = &compare->slots[(compare->head + i) % COMPARES_MAX];
		assert(slot->at >= slot->offset && slot->at <= slot->offset + slot->length);
		assert(!slot->fine_end || slot->at < slot->fine_end);
		assert((slot->step == STEP_DONE) == (slot->at == slot->offset + slot->length));
	}
}
