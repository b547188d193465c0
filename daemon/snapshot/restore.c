/* SPDX-License-Identifier: Apache-2.0 */
/*
 * restore: writes a snapshot's content to a target, in about ascending order, several runs of chunks under
 * way. The target is touched only when all objects that the snapshot needs are in the store; no byte goes
 * to it before its chunk's hash was found right. A target that holds something is looked at first (present.c),
 * and only what differs is fetched and written.
 */
#include "daemon/snapshot/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS           12
#define ZERO_STEP_BYTES (256ull << 20)
#define PROGRESS_NS     250000000ull

struct restore;

struct restore_slot {
	struct restore *restore;
	bool busy;
	struct run run;
	struct walk_page *page;   /* NULL: zeroes */
	struct bulk_piece *piece; /* what it is made of, until that is needed no more */
	struct buf *buf, *old;
	struct buf stored; /* in place of buf: the piece's own memory */
	struct env_op op;
	struct env_work work;
	uint64_t offset, length;
	bool is_zero;
	bool parked; /* its run met an archived object, and waits for it */
};

struct restore {
	struct snapshot_repo *repo;
	struct snapshot_target *target;
	struct manifest *manifest;
	struct buf_pool *pool;
	struct walk walk;
	struct present present; /* of a target that is compared */
	struct bulk bulk;
	bool walking;
	struct id128 id; /* wanted; zero: the newest */
	struct names names;
	size_t candidate;
	struct inventory_archive archive;
	unsigned parked; /* slots */
	bool thawing;    /* they are being waited for */
	bool thawed_all; /* everything was asked for: an archived object now is an error */
	struct restore_slot slots[SLOTS];
	unsigned busy;
	uint64_t zero_at, zero_end; /* what is left of a range of zeroes */
	bool tail_taken;            /* the target's end beyond the snapshot's */
	bool finishing;
	struct env_op finish_op;
	struct snapshot_progress progress;
	uint64_t told_ns;
	void (*progress_fn)(void *context, const struct snapshot_progress *progress);
	void (*done)(void *context, const struct snapshot_result *result);
	void *context;
	struct snapshot_result result;
};

static void pump(struct restore *r);

static void restore_end(struct restore *r)
{
	if (r->walking)
		walk_end(&r->walk);
	bulk_end(&r->bulk);
	names_free(&r->names);
	if (r->pool)
		buf_pool_free(r->pool);
	if (!r->result.error) {
		r->progress.done_bytes = r->progress.total_bytes;
		r->result.skipped_bytes = r->progress.total_bytes - r->result.written_bytes;
	}
	if (!r->result.error && r->progress_fn)
		r->progress_fn(r->context, &r->progress);
	manifest_free(r->manifest);
	free(r->archive.objects);
	r->repo->under_way--;
	r->target->free(r->target);
	r->done(r->context, &r->result);
	free(r);
}

static void restore_fail(struct restore *r, int error, const char *why)
{
	char id[ID128_TEXT_BYTES];

	if (r->result.error)
		return;
	id128_format(&r->result.info.id, id);
	r->result.error = why_set(r->result.why, error, "snapshot %.8s: %s", id, why);
}

static void target_fail(struct restore *r, int error, const char *what, uint64_t offset)
{
	char why[WHY_BYTES];

	if (error == -ECANCELED)
		why_set(why, error, "given up");
	else
		why_set(why, error, "target: %s at byte %llu: %s", what, (unsigned long long)offset,
			strerror(-error));
	restore_fail(r, error, why);
}

/* ---- one slot ------------------------------------------------------------------------------- */

static void slot_end(struct restore_slot *slot)
{
	struct restore *r = slot->restore;

	buf_put(slot->buf);
	buf_put(slot->old);
	slot->buf = slot->old = NULL;
	r->progress.done_bytes += slot->length;
	if (slot->page)
		walk_release(&r->walk, slot->page);
	if (slot->piece)
		bulk_release(&r->bulk, slot->piece);
	slot->busy = false;
	r->busy--;
	pump(r);
}

static void slot_written(struct env_op *op, int64_t result)
{
	struct restore_slot *slot = container_of(op, struct restore_slot, op);

	if (result < 0)
		target_fail(slot->restore, (int)result, "writing", slot->offset);
	else
		slot->restore->result.written_bytes += slot->length;
	slot_end(slot);
}

static void slot_check(struct restore_slot *slot)
{
	if (slot->piece && slot->piece->stored)
		run_check(&slot->run, slot->piece->stored);
	else
		run_start(&slot->run);
}

static void slot_write(struct restore_slot *slot)
{
	struct restore *r = slot->restore;
	struct buf *buf = slot->buf;

	if (slot->run.content != buf->data) {
		slot->stored = (struct buf){.data = (uint8_t *)(uintptr_t)slot->run.content,
					    .size_bytes = (uint32_t)slot->length,
					    .references = 1};
		buf = &slot->stored;
	}
	slot->op.done = slot_written;
	r->target->write(r->target, &slot->op, buf, slot->offset, (uint32_t)slot->length);
}

static void slot_checked(struct run *run)
{
	struct restore_slot *slot = container_of(run, struct restore_slot, run);
	struct restore *r = slot->restore;

	if (slot->piece && run->content == run->out) {
		bulk_release(&r->bulk, slot->piece);
		slot->piece = NULL;
	}
	if (run->error == -STORE_ARCHIVED && !r->thawed_all && !r->result.error) {
		slot->parked = true;
		r->parked++;
		pump(r);
		return;
	}
	if (run->error) {
		restore_fail(r, run->error, run->why);
	} else {
		r->result.checked_bytes += slot->length;
		if (!r->result.error) {
			slot_write(slot);
			return;
		}
	}
	slot_end(slot);
}

static void slot_zero(struct restore_slot *slot)
{
	struct restore *r = slot->restore;

	slot->op.done = slot_written;
	r->target->zero(r->target, &slot->op, slot->offset, slot->length);
}

static void zero_run(struct env_work *work)
{
	struct restore_slot *slot = container_of(work, struct restore_slot, work);

	slot->is_zero = bytes_are_zero(slot->old->data, slot->length);
}

static void zero_done(struct env_work *work)
{
	struct restore_slot *slot = container_of(work, struct restore_slot, work);

	if (slot->is_zero || slot->restore->result.error)
		slot_end(slot);
	else
		slot_zero(slot);
}

static void slot_compare_read(struct env_op *op, int64_t result)
{
	struct restore_slot *slot = container_of(op, struct restore_slot, op);
	struct restore *r = slot->restore;

	if (r->result.error) {
		slot_end(slot);
	} else if (result < 0) { /* what cannot be read is written */
		slot_zero(slot);
	} else {
		slot->work = (struct env_work){.run = zero_run, .done = zero_done};
		env_work_submit(r->repo->env, &slot->work);
	}
}

static struct restore_slot *slot_take(struct restore *r, uint64_t offset, uint64_t length)
{
	for (unsigned i = 0; i < SLOTS; i++) {
		struct restore_slot *slot = &r->slots[i];

		if (slot->busy)
			continue;
		slot->restore = r;
		slot->busy = true;
		slot->page = NULL;
		slot->piece = NULL;
		slot->offset = offset;
		slot->length = length;
		r->busy++;
		return slot;
	}
	assert(false);
	return NULL;
}

/* Zeroes need not be written over zeroes. */
static void slot_compare(struct restore_slot *slot)
{
	struct restore *r = slot->restore;

	slot->old = buf_alloc(r->pool, (uint32_t)slot->length);
	assert(slot->old); /* as many as slots */
	slot->op.done = slot_compare_read;
	r->target->read(r->target, &slot->op, slot->old, slot->offset, (uint32_t)slot->length);
}

static uint64_t item_bytes(const struct restore *r, const struct walk_item *item)
{
	uint64_t left = r->manifest->info.size_bytes - item->first_chunk * SNAPFMT_CHUNK_BYTES;
	uint64_t length = item->count * SNAPFMT_CHUNK_BYTES;

	return length < left ? length : left;
}

static void start_chunks(struct restore *r, struct bulk_piece *piece)
{
	const struct walk_item *item = &piece->item;
	uint64_t length = item_bytes(r, item);
	struct restore_slot *slot = slot_take(r, item->first_chunk * SNAPFMT_CHUNK_BYTES, length);

	slot->page = item->page;
	slot->piece = piece;
	slot->buf = buf_alloc(r->pool, (uint32_t)length);
	assert(slot->buf);
	slot->run = (struct run){
		.store = r->repo->store,
		.volume = &r->repo->volume,
		.entries = item->entries,
		.first_chunk = item->first_chunk,
		.count = (unsigned)item->count,
		.volume_size_bytes = r->manifest->info.size_bytes,
		.out = slot->buf->data,
		.in_place = r->target->any_memory && (uintptr_t)piece->stored % BUF_ALIGN == 0,
		.done = slot_checked,
	};
	slot_check(slot);
}

/* What has come goes on where there are slots; after an error nothing does. */
static void take_come(struct restore *r)
{
	struct bulk_piece *piece;

	if (r->result.error) {
		struct walk_item item;

		present_give_up(&r->present);
		while (present_take(&r->present, &item))
			walk_release(&r->walk, item.page);
		bulk_give_up(&r->bulk);
	}
	while ((r->busy < SLOTS || r->result.error) && (piece = bulk_take(&r->bulk))) {
		if (!r->result.error) {
			start_chunks(r, piece);
			continue;
		}
		walk_release(&r->walk, piece->item.page);
		bulk_release(&r->bulk, piece);
	}
}

/* ---- ranges of zeroes ------------------------------------------------------------------------- */

static void zero_skip(struct restore *r, uint64_t to)
{
	r->progress.done_bytes += to - r->zero_at;
	r->zero_at = to;
}

/* Skips to the next run, in which something is to be done; false: there is none in the range. */
static bool zero_skip_to(struct restore *r, int error, uint64_t start)
{
	if (error == -ENXIO || (!error && start >= r->zero_end)) {
		zero_skip(r, r->zero_end);
		return false;
	}
	if (!error && start > r->zero_at)
		zero_skip(r, start);
	return true;
}

/* Starts the next piece of the range; it may only skip. */
static void zero_step(struct restore *r)
{
	struct snapshot_target *target = r->target;
	uint64_t start, end = UINT64_MAX, data_end, length;
	struct restore_slot *slot;
	int error;

	if (target->known_zero) {
		zero_skip(r, r->zero_end);
		return;
	}
	if (target->next_differing) {
		error = target->next_differing(target, r->zero_at, &start, &end);
		if (!zero_skip_to(r, error, start))
			return;
	}
	if (target->next_data) {
		error = target->next_data(target, r->zero_at, &start, &data_end);
		start -= error ? 0 : start % 4096;
		if (!zero_skip_to(r, error, start) || r->zero_at >= end)
			return;
	}
	length = target->compare ? BUF_SIZE_MAX : ZERO_STEP_BYTES;
	if (end > r->zero_end)
		end = r->zero_end;
	if (length > end - r->zero_at)
		length = end - r->zero_at;
	slot = slot_take(r, r->zero_at, length);
	r->zero_at += length;
	if (target->compare)
		slot_compare(slot);
	else
		slot_zero(slot);
}

/* ---- the course -------------------------------------------------------------------------------- */

static void finished(struct env_op *op, int64_t result)
{
	struct restore *r = container_of(op, struct restore, finish_op);

	if (result < 0)
		target_fail(r, (int)result, "finishing", r->progress.total_bytes);
	restore_end(r);
}

static void tell(struct restore *r)
{
	uint64_t now = env_now_ns(r->repo->env);

	if (!r->progress_fn || now < r->told_ns + PROGRESS_NS)
		return;
	r->told_ns = now;
	r->progress_fn(r->context, &r->progress);
}

static void walk_ready(struct walk *walk)
{
	pump(container_of(walk, struct restore, walk));
}

static void present_ready(struct present *present)
{
	pump(container_of(present, struct restore, present));
}

static void bulk_ready(struct bulk *bulk)
{
	pump(container_of(bulk, struct restore, bulk));
}

/* Whether the target may differ there: else the page is not even loaded. */
static bool page_wanted(struct walk *walk, const struct manifest_page *pointer)
{
	struct restore *r = container_of(walk, struct restore, walk);
	uint64_t start, end, first = (uint64_t)pointer->number * SNAPFMT_PAGE_CHUNKS;

	return !r->target->next_differing(r->target, first * SNAPFMT_CHUNK_BYTES, &start, &end) &&
	       start < (first + SNAPFMT_PAGE_CHUNKS) * SNAPFMT_CHUNK_BYTES;
}

/* Chunks that are known to differ go on to be fetched. False: there are none for now. */
static bool fetch_differing(struct restore *r)
{
	struct walk_item item;
	bool some = present_take(&r->present, &item);

	r->progress.done_bytes += r->present.same_bytes;
	r->present.same_bytes = 0;
	if (some)
		bulk_add(&r->bulk, &item);
	return some;
}

/* Nothing more comes for now. True: but something became known by that. */
static bool flush(struct restore *r)
{
	present_flush(&r->present);
	if (fetch_differing(r))
		return true;
	if (present_idle(&r->present))
		bulk_flush(&r->bulk);
	return false;
}

/* Asks for items while there is room, and starts zeroes while there are slots; true when nothing is left to
 * start. */
static bool start_items(struct restore *r)
{
	struct walk_item item;

	while (!r->result.error && bulk_has_room(&r->bulk)) {
		enum walk_result next;

		if (fetch_differing(r))
			continue;
		if (r->zero_at < r->zero_end) {
			if (r->busy == SLOTS && !r->target->known_zero) {
				if (flush(r)) /* a range of zeroes may be long */
					continue;
				return false;
			}
			zero_step(r);
			continue;
		}
		if (!present_has_room(&r->present))
			return false;
		next = walk_next(&r->walk, &item);
		if (next == WALK_ERROR) {
			restore_fail(r, r->walk.error, r->walk.why);
			return true;
		}
		if (next == WALK_ITEM && item.page && r->target->compare) {
			present_add(&r->present, &item);
		} else if (next == WALK_ITEM && item.page) {
			bulk_add(&r->bulk, &item);
		} else if (next == WALK_ITEM) {
			r->zero_at = item.first_chunk * SNAPFMT_CHUNK_BYTES;
			r->zero_end = r->zero_at + item.count * SNAPFMT_CHUNK_BYTES;
			if (r->zero_end > r->manifest->info.size_bytes)
				r->zero_end = r->manifest->info.size_bytes;
		} else if (next == WALK_END && !r->tail_taken &&
			   r->target->zero_to_bytes > r->manifest->info.size_bytes) {
			r->tail_taken = true;
			r->zero_at = r->manifest->info.size_bytes;
			r->zero_end = r->target->zero_to_bytes;
		} else if (next == WALK_WAIT && !r->target->compare) {
			return false; /* how much comes by a request does not depend on it: a plan knows */
		} else if (!flush(r)) {
			return next == WALK_END && present_idle(&r->present);
		}
	}
	return r->result.error != 0;
}

/* ---- archives ---------------------------------------------------------------------------------- */

/* Not said of what a service only calls an archive. */
static void archive_waiting(void *context, size_t left)
{
	struct restore *r = context;

	if (!r->progress.archived_objects)
		env_log(r->repo->env, ENV_LOG_INFO,
			"restore: %zu of %u objects are archived (%s) and have been asked for: as "
			"a "
			"rule that takes up to %.1f hours",
			left, r->manifest->object_count, r->archive.class,
			(double)r->archive.takes_ns / 3600e9);
	r->progress.archived_objects = left;
	r->progress.archive_ns = r->archive.takes_ns;
	if (r->progress_fn)
		r->progress_fn(r->context, &r->progress);
}

static void archive_all_thawed(void *context, int error, const char *why)
{
	struct restore *r = context;

	r->thawing = false;
	r->thawed_all = true;
	r->parked = 0;
	r->progress.archived_objects = r->progress.archive_ns = 0;
	r->result.archived_objects = r->archive.count;
	if (error)
		restore_fail(r, error, why);
	for (unsigned i = 0; i < SLOTS; i++) {
		struct restore_slot *slot = &r->slots[i];

		if (!slot->parked)
			continue;
		slot->parked = false;
		slot_check(slot);
	}
}

/* A list does not tell of every archive (INTELLIGENT_TIERING): one object that is met there, and all are asked
 * for, instead of one after the other. */
static void archive_ask_all(struct restore *r)
{
	struct inventory_archive *archive = &r->archive;

	free(archive->objects);
	*archive = (struct inventory_archive){
		.objects = must_alloc(r->manifest->object_count * sizeof(*archive->objects)),
		.count = r->manifest->object_count,
		.class = "DEEP_ARCHIVE",
	};
	for (unsigned i = 0; i < r->manifest->object_count; i++)
		archive->objects[i] = i;
	archive->takes_ns = r->repo->store->ops->thaw_ns(r->repo->store, archive->class);
	r->thawing = true;
	thaw(r->repo->store, r->manifest, archive, archive_waiting, archive_all_thawed, r);
}

static void pump(struct restore *r)
{
	bool over;

	if (r->finishing || r->thawing)
		return;
	tell(r);
	if (r->parked) { /* nothing new until they go on */
		if (r->parked == r->busy)
			archive_ask_all(r);
		return;
	}
	take_come(r);
	over = start_items(r);
	if (r->result.error)
		take_come(r);
	if (!over || r->busy || !present_idle(&r->present) || !bulk_idle(&r->bulk) ||
	    !walk_idle(&r->walk))
		return;
	r->finishing = true;
	if (r->result.error) {
		restore_end(r);
		return;
	}
	r->finish_op.done = finished;
	r->target->finish(r->target, &r->finish_op);
}

static void restore_begin(struct restore *r)
{
	const unsigned counts[3] = {0, SLOTS + PRESENT_LOOKS, SLOTS + PRESENT_LOOKS};
	char why[WHY_BYTES] = "";
	int error;

	r->pool = buf_pool_new(counts);
	assert(r->pool);
	error = r->target->begin(r->target, &r->manifest->info, why, sizeof(why));
	if (error) {
		restore_fail(r, error, why);
		restore_end(r);
		return;
	}
	r->progress.total_bytes = r->manifest->info.size_bytes;
	if (r->target->zero_to_bytes > r->progress.total_bytes)
		r->progress.total_bytes = r->target->zero_to_bytes;
	r->walk.store = r->repo->store;
	r->walk.manifest = r->manifest;
	r->walk.ready = walk_ready;
	if (r->target->next_differing)
		r->walk.wanted = page_wanted;
	r->present.env = r->repo->env;
	r->present.target = r->target;
	r->present.walk = &r->walk;
	r->present.pool = r->pool;
	r->present.volume_size_bytes = r->manifest->info.size_bytes;
	r->present.ready = present_ready;
	r->bulk.store = r->repo->store;
	r->bulk.volume = &r->repo->volume;
	r->bulk.ready = bulk_ready;
	r->walking = true;
	walk_begin(&r->walk);
	pump(r);
}

static void archive_thawed(void *context, int error, const char *why)
{
	struct restore *r = context;

	r->progress.archived_objects = r->progress.archive_ns = 0;
	r->progress.started_ns = env_now_ns(r->repo->env);
	r->result.archived_objects = r->archive.count;
	if (!error) {
		restore_begin(r);
		return;
	}
	restore_fail(r, error, why);
	restore_end(r);
}

/* Before the target is touched: what it holds may be the last copy there is. */
static void restore_counted(void *context, int error, const char *why)
{
	struct restore *r = context;
	char line[WHY_BYTES];

	if (!error && r->archive.count) {
		thaw(r->repo->store, r->manifest, &r->archive, archive_waiting, archive_thawed, r);
		return;
	}
	if (!error) {
		restore_begin(r);
		return;
	}
	if (error == -EBADMSG)
		why_set(line, error,
			"objects of it are missing from the store; nothing was changed: %s", why);
	else
		why_set(line, error, "%s", why);
	restore_fail(r, error, line);
	restore_end(r);
}

static void restore_loaded(void *context, struct manifest *manifest, int error, const char *why)
{
	struct restore *r = context;

	if (error && id128_is_zero(&r->result.info.id)) {
		r->result.error = why_set(r->result.why, error, "%s", why);
		restore_end(r);
		return;
	}
	if (error) {
		restore_fail(r, error, why);
		restore_end(r);
		return;
	}
	r->manifest = manifest;
	r->result.info = manifest->info;
	inventory_look(r->repo->store, manifest, &r->archive, restore_counted, r);
}

static void restore_listed(void *context, struct names *names, int error, const char *why)
{
	struct restore *r = context;
	const struct snapfmt_ref *found = NULL;
	char id[ID128_TEXT_BYTES];

	if (!error && id128_is_zero(&r->id)) {
		manifest_load_newest(r->repo->store, &r->repo->volume, names, restore_loaded, r);
		return;
	}
	for (size_t i = 0; i < names->count; i++)
		if (id128_equal(&r->id, &names->refs[i].snapshot))
			found = &names->refs[i];
	id128_format(&r->id, id);
	if (error)
		r->result.error = why_set(r->result.why, error, "%s", why);
	else if (!found)
		r->result.error =
			why_set(r->result.why, -ENOENT, "%s: no such snapshot in the store", id);
	if (r->result.error) {
		restore_end(r);
		return;
	}
	r->result.info.id = found->snapshot;
	r->result.info.sequence = found->sequence;
	manifest_load(r->repo->store, &r->repo->volume, found, restore_loaded, r);
}

void snapshot_restore(struct snapshot_repo *repo, const struct id128 *id,
		      struct snapshot_target *target,
		      void (*progress)(void *context, const struct snapshot_progress *progress),
		      void (*done)(void *context, const struct snapshot_result *result),
		      void *context)
{
	struct restore *r = must_alloc(sizeof(*r));

	r->repo = repo;
	r->target = target;
	r->progress_fn = progress;
	r->done = done;
	r->context = context;
	r->progress.started_ns = env_now_ns(repo->env);
	if (id)
		r->id = *id;
	repo->under_way++;
	names_list(repo->store, &repo->volume, restore_listed, r);
}
