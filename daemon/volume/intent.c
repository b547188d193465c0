// SPDX-License-Identifier: Apache-2.0
/*
 * Intent bits, one a region of 1 MiB.
 *
 * Setting: before the first ISSUE into a region whose bit is not durable the bit is set and its page
 * written and synced; all requests that come meanwhile wait together for the next such write.
 *
 * Retiring (a checkpoint, one at a time): a bit stands for two things, that blocks of its region are
 * dirty without a stored map bit saying so, and that what was written there may still be in the
 * disk's cache, so that after a power cut this side may lack what a consumer has. So:
 *   1. choose candidates; from here on `recent` notes regions in which a mutation is issued or lands,
 *      and those in which one is under way now;
 *   2. fsync the backing: what landed in candidates before is durable;
 *   3. store the map pages in which candidates have uncovered bits;  4. fsync "maps";
 *   5. a candidate that is neither recent nor has uncovered bits loses its bit in memory. On disk it
 *      goes when its page is written the next time, or is tightened when there is nothing to do.
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include "daemon/mutate.h"

#define RETRY_NS 1000000000ull

static void intent_write_next(struct volume *v);
static void checkpoint_start(struct volume *v, bool pressed);
static void checkpoint_next_pages(struct volume *v);

static uint64_t region_of(uint64_t offset)
{
	return offset / VOLUME_REGION_BYTES;
}

/* ---- setting -------------------------------------------------------------------------------- */

static void set_active(struct volume *v, uint64_t first, uint64_t count)
{
	struct intent *intent = &v->intent;

	if (first + count > intent->regions)
		count = intent->regions - first;
	for (uint64_t w = first / 64; w <= (first + count - 1) / 64; w++) {
		uint64_t added = bits_mask(w, first, count) & ~intent->active[w];

		intent->active[w] |= added;
		intent->count += (uint64_t)__builtin_popcountll(added);
		if (added & ~intent->disk[w])
			bits_set(intent->page_dirty, w * 64 / METADATA_PAGE_BITS);
	}
	checkpoint_want(v);
}

static uint64_t hard_limit(const struct volume *v)
{
	return 4ull * v->config.intent_max_regions;
}

/* Marks the regions of the op's piece, and some more that are likely to be written next. */
static void want_regions(struct volume *v, const struct op *op)
{
	struct intent *intent = &v->intent;
	uint64_t first = region_of(op->piece_offset);
	uint64_t last = region_of(op->piece_offset + op->piece_length - 1);

	if (op->end > op->piece_offset + op->piece_length) {
		/* One write of intent pages for all pieces of a long TRIM or ZERO. */
		last = region_of(op->end - 1);
		set_active(v, first, last - first + 1);
		return;
	}
	if (first == intent->next_in_order) {
		if (intent->window < INTENT_WINDOW_MAX)
			intent->window *= 2;
	} else {
		intent->window = INTENT_WINDOW;
		first -= first % INTENT_WINDOW;
	}
	if (last < first + intent->window - 1)
		last = first + intent->window - 1;
	intent->next_in_order = last + 1;
	set_active(v, first, last - first + 1);
}

bool intent_ready(struct volume *v, struct op *op)
{
	struct intent *intent = &v->intent;
	uint64_t first = region_of(op->piece_offset);
	uint64_t count = region_of(op->piece_offset + op->piece_length - 1) - first + 1;

	if (MUTATE(volume_skip_intent))
		return true;
	if (bits_all(intent->active, first, count) && bits_all(intent->disk, first, count))
		return true;
	if (!bits_all(intent->active, first, count)) {
		if (intent->count >= hard_limit(v) &&
		    (op->owner == OWNER_CLIENT || op->owner == OWNER_APPLY) &&
		    v->checkpoint.step != CHECKPOINT_IDLE && count < v->config.intent_max_regions) {
			queue_push(&v->wait_checkpoint, op);
			return false;
		}
		want_regions(v, op);
		if (intent->count > v->config.intent_max_regions)
			checkpoint_start(v, true);
		if (bits_all(intent->disk, first, count))
			return true;
	}
	queue_push(&intent->waiting, op);
	intent_write_next(v);
	return false;
}

void intent_touch(struct volume *v, uint64_t offset, uint64_t length)
{
	uint64_t first = region_of(offset), last = region_of(offset + length - 1);

	if (first == last)
		bits_set(v->intent.recent, first);
	else
		bits_set_range(v->intent.recent, first, last - first + 1);
}

/* Of a batch that began when there had been so many errors. */
static int maps_result(struct volume *v, int64_t result, uint64_t errors_before)
{
	if (result < 0) {
		v->maps_errors++;
		return (int)result;
	}
	return v->maps_errors == errors_before ? 0 : -EIO;
}

static void pages_written(struct volume *v, int error)
{
	struct intent *intent = &v->intent;
	struct op_queue waiting = queue_take(&intent->waiting);
	struct op *op;

	for (uint64_t p = intent->batch_first; p < intent->batch_first + intent->batch_count; p++) {
		const struct metadata_page_wire *wire =
			&intent->batch.pages[p - intent->batch_first];
		uint64_t words[METADATA_PAGE_WORDS];

		if (error != 0) {
			bits_set(intent->page_dirty, p);
			continue;
		}
		if (metadata_page_decode(wire, METADATA_INTENT, (uint32_t)p, words) != NULL)
			assert(!"a page of our own");
		for (uint64_t i = 0; i < METADATA_PAGE_WORDS; i++) {
			uint64_t w = p * METADATA_PAGE_WORDS + i;

			if (w < BITS_WORDS(intent->regions))
				intent->disk[w] |= words[i];
		}
	}
	intent->writing = false;
	if (error == 0) {
		op_gate_all(waiting);
		intent_write_next(v);
	} else {
		volume_log_error(v, "write-intent map", intent->batch_first * METADATA_PAGE_BYTES,
				 error);
		while ((op = queue_pop(&waiting)) != NULL)
			op_complete_later(op, -EIO);
		checkpoint_want(v);
	}
	op_ended(v);
}

static void intent_sync_done(struct env_op *io, int64_t result)
{
	struct volume *v = (struct volume *)((char *)io - offsetof(struct volume, intent.batch.io));

	pages_written(v, maps_result(v, result, v->intent.errors_before));
}

static void intent_write_done(struct env_op *io, int64_t result)
{
	struct volume *v = (struct volume *)((char *)io - offsetof(struct volume, intent.batch.io));

	if (result < 0 || v->intent.batch_count == 1) {
		pages_written(v, maps_result(v, result, v->intent.errors_before));
		return;
	}
	io->done = intent_sync_done;
	env_fsync(v->env, io, v->maps);
}

static bool page_chosen(const struct intent *intent, uint64_t page)
{
	return bits_test(intent->page_dirty, page) ||
	       (intent->tighten && bits_test(intent->page_loose, page));
}

/* Writes the next run of pages that have bits to be made durable. While a page is on its way the
 * disk holds its old or its new content, so a bit counts as durable only if it is in both. */
static void intent_write_next(struct volume *v)
{
	struct intent *intent = &v->intent;
	uint64_t p = 0, n = 0;

	if (intent->writing || v->maps_held)
		return;
	while (p < intent->page_count && !page_chosen(intent, p))
		p++;
	if (p == intent->page_count) {
		intent->tighten = false;
		return;
	}
	intent->batch_first = p;
	for (; p < intent->page_count && n < BATCH_PAGES && page_chosen(intent, p); p++, n++) {
		uint64_t words[METADATA_PAGE_WORDS] = {0};

		for (uint64_t i = 0; i < METADATA_PAGE_WORDS; i++) {
			uint64_t w = p * METADATA_PAGE_WORDS + i;

			if (w >= BITS_WORDS(intent->regions))
				break;
			words[i] = intent->active[w];
			intent->disk[w] &= words[i];
		}
		metadata_page_encode(METADATA_INTENT, (uint32_t)p, words, &intent->batch.pages[n]);
		bits_clear(intent->page_dirty, p);
		bits_clear(intent->page_loose, p);
	}
	intent->batch_count = n;
	intent->errors_before = v->maps_errors;
	intent->writing = true;
	v->ops++;
	v->stats.intent_writes += n;
	intent->batch.io.done = intent_write_done;
	env_write(v->env, &intent->batch.io, v->maps, intent->batch.pages, n * METADATA_PAGE_BYTES,
		  intent->batch_first * METADATA_PAGE_BYTES, n == 1 ? ENV_WRITE_FUA : 0);
}

void intent_mark_active(struct volume *v)
{
	struct intent *intent = &v->intent;

	for (uint64_t r = bits_next(intent->active, 0, intent->regions); r < intent->regions;
	     r = bits_next(intent->active, r + 1, intent->regions)) {
		uint64_t offset = r * VOLUME_REGION_BYTES;
		uint64_t length = v->size_bytes - offset < VOLUME_REGION_BYTES
					  ? v->size_bytes - offset
					  : VOLUME_REGION_BYTES;

		if (!bits_test(intent->disk, r))
			continue; /* on its way to the disk: nothing was issued there yet */
		for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
			if (c == VOLUME_STORE || !v->applied_only)
				maps_mark(v, (enum volume_consumer)c, offset, length, true);
	}
}

/* ---- checkpoints ------------------------------------------------------------------------------ */

static bool consumer_page_wanted(const struct volume *v, const struct consumer *consumer,
				 uint64_t page)
{
	uint64_t first = page * consumer->regions_per_page;
	uint64_t end = first + consumer->regions_per_page;

	if (bits_test(consumer->stale, page))
		return true;
	if (MUTATE(volume_intent_retire_early))
		return false;
	if (end > v->intent.regions)
		end = v->intent.regions;
	for (uint64_t r = bits_next(consumer->uncovered, first, end); r < end;
	     r = bits_next(consumer->uncovered, r + 1, end))
		if (bits_test(v->intent.candidate, r))
			return true;
	return false;
}

/* The page now says all that is dirty; what its regions' notes said is on its way. */
static void encode_consumer_page(struct volume *v, enum volume_consumer c, uint64_t page,
				 struct metadata_page_wire *wire)
{
	struct consumer *consumer = &v->consumers[c];
	uint64_t words[METADATA_PAGE_WORDS];
	uint64_t first = page * consumer->regions_per_page;
	uint64_t end = first + consumer->regions_per_page;
	bool any = false;

	maps_page_words(v, c, page, words);
	for (unsigned i = 0; i < METADATA_PAGE_WORDS && !any; i++)
		any = words[i] != 0;
	metadata_page_encode(c == VOLUME_PEER ? METADATA_PEER_MAP : METADATA_STORE_MAP,
			     (uint32_t)page, words, wire);
	if (end > v->intent.regions)
		end = v->intent.regions;
	for (uint64_t r = bits_next(consumer->uncovered, first, end); r < end;
	     r = bits_next(consumer->uncovered, r + 1, end)) {
		bits_clear(consumer->uncovered, r);
		bits_set(consumer->covering, r);
	}
	bits_clear(consumer->stale, page);
	bits_set(consumer->storing, page);
	if (any)
		bits_set(consumer->stored_any, page);
	else
		bits_clear(consumer->stored_any, page);
}

/* The disk's content of the pages on their way is known again (error 0) or not. */
static void settle_pages(struct volume *v, int error)
{
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		struct consumer *consumer = &v->consumers[c];

		for (uint64_t w = 0; w < BITS_WORDS(v->intent.regions); w++) {
			if (error != 0)
				consumer->uncovered[w] |= consumer->covering[w];
			consumer->covering[w] = 0;
		}
		for (uint64_t w = 0; w < BITS_WORDS(consumer->page_count); w++) {
			if (error != 0) {
				consumer->stale[w] |= consumer->storing[w];
				consumer->stored_any[w] |= consumer->storing[w];
			}
			consumer->storing[w] = 0;
		}
	}
}

static void retire(struct volume *v)
{
	struct intent *intent = &v->intent;

	for (uint64_t w = 0; w < BITS_WORDS(intent->regions); w++) {
		uint64_t gone = intent->candidate[w] & ~intent->recent[w] & intent->active[w];

		for (unsigned c = 0; c < VOLUME_CONSUMERS && !MUTATE(volume_intent_retire_early);
		     c++)
			gone &= ~v->consumers[c].uncovered[w];
		if (gone == 0)
			continue;
		intent->active[w] &= ~gone;
		intent->count -= (uint64_t)__builtin_popcountll(gone);
		bits_set(intent->page_loose, w * 64 / METADATA_PAGE_BITS);
	}
}

/* A secondary whose own writes all have their marks stored: from now on an intent bit is for what is
 * applied, which its peer has. */
static void note_applied_only(struct volume *v)
{
	const struct consumer *peer = &v->consumers[VOLUME_PEER];

	if (v->applied_only || v->state.role != VOLUME_SECONDARY || !volume_store_follows(v) ||
	    bits_next(peer->uncovered, 0, v->intent.regions) < v->intent.regions)
		return;
	v->applied_only = true;
	super_store_later(v);
}

/* The superblock's flags may go once no page is left to be stored. */
static void drop_all_dirty(struct volume *v)
{
	bool changed = false;

	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		struct consumer *consumer = &v->consumers[c];

		if (!consumer->all_dirty || (c == VOLUME_STORE && v->detached) ||
		    bits_next(consumer->stale, 0, consumer->page_count) < consumer->page_count)
			continue;
		consumer->all_dirty = false;
		changed = true;
	}
	if (changed)
		super_store_later(v);
}

static void checkpoint_finish(struct volume *v, int error)
{
	struct checkpoint *checkpoint = &v->checkpoint;

	settle_pages(v, error);
	checkpoint->step = CHECKPOINT_IDLE;
	if (error != 0) {
		volume_log_error(v, "stored maps", 0, error);
	} else {
		if (checkpoint->retire)
			retire(v);
		drop_all_dirty(v);
		note_applied_only(v);
	}
	memset(v->intent.candidate, 0, BITS_WORDS(v->intent.regions) * 8);
	checkpoint_want(v);
	op_gate_all(queue_take(&v->wait_checkpoint));
	op_ended(v);
}

static void checkpoint_sync_done(struct env_op *io, int64_t result)
{
	struct volume *v =
		(struct volume *)((char *)io - offsetof(struct volume, checkpoint.batch.io));

	checkpoint_finish(v, maps_result(v, result, v->checkpoint.errors_before));
}

static void checkpoint_write_done(struct env_op *io, int64_t result)
{
	struct volume *v =
		(struct volume *)((char *)io - offsetof(struct volume, checkpoint.batch.io));

	if (result < 0)
		checkpoint_finish(v, maps_result(v, result, v->checkpoint.errors_before));
	else
		checkpoint_next_pages(v);
}

/* Writes the next run of pages, or goes on to the fsync. */
static void checkpoint_next_pages(struct volume *v)
{
	struct checkpoint *checkpoint = &v->checkpoint;
	struct env_op *io = &checkpoint->batch.io;

	for (; checkpoint->consumer < VOLUME_CONSUMERS; checkpoint->consumer++) {
		struct consumer *consumer = &v->consumers[checkpoint->consumer];
		uint64_t n = 0, first;

		while (checkpoint->cursor < consumer->page_count &&
		       !consumer_page_wanted(v, consumer, checkpoint->cursor))
			checkpoint->cursor++;
		first = checkpoint->cursor;
		while (checkpoint->cursor < consumer->page_count && n < BATCH_PAGES &&
		       consumer_page_wanted(v, consumer, checkpoint->cursor))
			encode_consumer_page(v, (enum volume_consumer)checkpoint->consumer,
					     checkpoint->cursor++, &checkpoint->batch.pages[n++]);
		if (n > 0) {
			io->done = checkpoint_write_done;
			env_write(v->env, io, v->maps, checkpoint->batch.pages,
				  n * METADATA_PAGE_BYTES,
				  (consumer->page_base + first) * METADATA_PAGE_BYTES, 0);
			return;
		}
		checkpoint->cursor = 0;
	}
	checkpoint->step = CHECKPOINT_SYNC;
	io->done = checkpoint_sync_done;
	env_fsync(v->env, io, v->maps);
}

void checkpoint_synced(struct volume *v, int error)
{
	assert(v->checkpoint.step == CHECKPOINT_BACKING);
	v->checkpoint.retire = error == 0;
	v->checkpoint.step = CHECKPOINT_PAGES;
	checkpoint_next_pages(v);
}

/* Mutations under way now land after the backing's fsync began. */
static void note_issued(struct volume *v)
{
	for (const struct range_lock *lock = v->ranges.all; lock != NULL; lock = lock->all_next) {
		const struct op *op =
			(const struct op *)((const char *)lock - offsetof(struct op, lock));

		if (op->issued || op->diverged)
			intent_touch(v, op->piece_offset, op->piece_length);
	}
}

static bool choose_candidates(struct volume *v, bool pressed)
{
	struct intent *intent = &v->intent;
	uint64_t words = BITS_WORDS(intent->regions), count = 0;

	for (uint64_t w = 0; w < words; w++) {
		intent->candidate[w] = intent->active[w] & ~intent->recent[w];
		count += (uint64_t)__builtin_popcountll(intent->candidate[w]);
	}
	/* Too few are idle: all that nobody touches from now on. */
	if (pressed && count < v->config.intent_max_regions / 4) {
		memcpy(intent->candidate, intent->active, words * 8);
		count = intent->count;
	}
	memset(intent->recent, 0, words * 8);
	note_issued(v);
	return count > 0;
}

static void checkpoint_start(struct volume *v, bool pressed)
{
	struct checkpoint *checkpoint = &v->checkpoint;
	bool any;

	if (checkpoint->step != CHECKPOINT_IDLE || v->maps_held)
		return;
	any = choose_candidates(v, pressed);
	checkpoint->consumer = 0;
	checkpoint->cursor = 0;
	checkpoint->errors_before = v->maps_errors;
	checkpoint->retire = false;
	v->ops++;
	if (any && disk_usable(v)) {
		checkpoint->step = CHECKPOINT_BACKING;
		sync_join_checkpoint(v);
	} else {
		checkpoint->step = CHECKPOINT_PAGES;
		checkpoint_next_pages(v);
	}
}

/* ---- the tick --------------------------------------------------------------------------------- */

static bool pages_stale(const struct volume *v)
{
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		const struct consumer *consumer = &v->consumers[c];

		/* With the store detached its flag stays: nothing is gained by storing pages. */
		if (c == VOLUME_STORE && v->detached)
			continue;
		if (bits_next(consumer->stale, 0, consumer->page_count) < consumer->page_count)
			return true;
	}
	return false;
}

static bool candidates_idle(const struct volume *v)
{
	for (uint64_t w = 0; w < BITS_WORDS(v->intent.regions); w++)
		if (v->intent.active[w] & ~v->intent.recent[w])
			return true;
	return false;
}

static bool pages_loose(const struct volume *v)
{
	return bits_next(v->intent.page_loose, 0, v->intent.page_count) < v->intent.page_count;
}

static bool all_dirty_ready(const struct volume *v)
{
	return v->consumers[VOLUME_PEER].all_dirty ||
	       (v->consumers[VOLUME_STORE].all_dirty && !v->detached);
}

static void tick(struct env_timer *timer)
{
	struct volume *v = (struct volume *)((char *)timer - offsetof(struct volume, tick));
	struct intent *intent = &v->intent;

	if (v->closing)
		return;
	if (v->checkpoint.step == CHECKPOINT_IDLE) {
		if (pages_stale(v) || all_dirty_ready(v) ||
		    (candidates_idle(v) && disk_usable(v))) {
			checkpoint_start(v, false);
		} else {
			memset(intent->recent, 0, BITS_WORDS(intent->regions) * 8);
			note_issued(v);
			if (pages_loose(v) || bits_next(intent->page_dirty, 0, intent->page_count) <
						      intent->page_count) {
				intent->tighten = true;
				intent_write_next(v);
			}
		}
	}
	checkpoint_want(v);
}

void checkpoint_want(struct volume *v)
{
	if (env_timer_active(&v->tick) || v->closing || v->maps == NULL)
		return;
	if (v->checkpoint.step != CHECKPOINT_IDLE || pages_stale(v) || pages_loose(v) ||
	    all_dirty_ready(v) || (v->intent.count > 0 && disk_usable(v)))
		env_timer_start(v->env, &v->tick, TICK_NS);
}

void tick_init(struct volume *v)
{
	v->tick.fire = tick;
}

bool intent_idle(const struct volume *v)
{
	return !v->intent.writing && v->checkpoint.step == CHECKPOINT_IDLE;
}

void intent_go_on(struct volume *v)
{
	v->maps_held = false;
	op_gate_all(queue_take(&v->intent.waiting));
	intent_write_next(v);
	checkpoint_want(v);
}

void intent_check(const struct volume *v)
{
	const struct intent *intent = &v->intent;
	uint64_t count = 0;

	for (uint64_t w = 0; w < BITS_WORDS(intent->regions); w++) {
		count += (uint64_t)__builtin_popcountll(intent->active[w]);
		for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
			uint64_t noted = v->consumers[c].uncovered[w] | v->consumers[c].covering[w];

			if (!MUTATE(volume_skip_intent) && !MUTATE(volume_intent_retire_early))
				assert((noted & ~(intent->active[w] & intent->disk[w])) == 0);
		}
	}
	assert(count == intent->count);
	if (v->checkpoint.step == CHECKPOINT_IDLE)
		for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
			assert(bits_next(v->consumers[c].covering, 0, intent->regions) ==
			       intent->regions);
}
