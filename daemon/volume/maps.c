// SPDX-License-Identifier: Apache-2.0
/*
 * The file "maps": pages of the write-intent map, of the peer's and of the store's dirty map, in
 * this order, all preallocated when the volume is made, so that a full file system under the state
 * directory never stops a running volume.
 *
 * What covers a dirty bit at any instant is one of three (promise 3):
 *   - its bit in the consumer's stored page;
 *   - the durable intent bit of its region; `uncovered` (or `covering`, while the page is on its
 *     way) notes that it is needed for that;
 *   - the superblock's all-dirty flag of the consumer.
 * A bit that becomes set at ISSUE is noted in `uncovered`, and a page is stored with everything that
 * is dirty when it is encoded; so an intent bit may go when neither note is left. A bit set otherwise
 * (volume_mark and the like) has the flag until every stale page is stored.
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/io/resident.h"
#include "daemon/mutate.h"

static uint64_t *bits_new(uint64_t count)
{
	return calloc(BITS_WORDS(count) + 1, 8);
}

static bool consumer_init(struct volume *v, enum volume_consumer c, uint64_t base)
{
	struct consumer *consumer = &v->consumers[c];
	uint32_t block = volume_consumer_block_bytes(c);
	uint64_t blocks = round_up(v->size_bytes, block) / block;
	uint64_t regions = v->intent.regions;

	consumer->regions_per_page = METADATA_PAGE_BITS / (VOLUME_REGION_BYTES / block);
	_Static_assert(
		METADATA_PAGE_BITS % (VOLUME_REGION_BYTES / VOLUME_PEER_BLOCK_BYTES) == 0 &&
			METADATA_PAGE_BITS % (VOLUME_REGION_BYTES / VOLUME_STORE_BLOCK_BYTES) == 0,
		"a region's blocks lie in one page");
	consumer->page_base = base;
	consumer->page_count = (blocks + METADATA_PAGE_BITS - 1) / METADATA_PAGE_BITS;
	consumer->stale = bits_new(consumer->page_count);
	consumer->stored_any = bits_new(consumer->page_count);
	consumer->storing = bits_new(consumer->page_count);
	consumer->uncovered = bits_new(regions);
	consumer->covering = bits_new(regions);
	return dirty_init(&consumer->active, blocks) && dirty_init(&v->cuts[c].sealed, blocks) &&
	       dirty_init(&v->cuts[c].safe, blocks) && dirty_init(&v->cuts[c].staged, blocks) &&
	       consumer->stale && consumer->stored_any && consumer->storing &&
	       consumer->uncovered && consumer->covering;
}

int maps_init(struct volume *v)
{
	struct intent *intent = &v->intent;
	uint64_t base;

	intent->regions = (v->size_bytes + VOLUME_REGION_BYTES - 1) / VOLUME_REGION_BYTES;
	intent->page_count = (intent->regions + METADATA_PAGE_BITS - 1) / METADATA_PAGE_BITS;
	intent->active = bits_new(intent->regions);
	intent->disk = bits_new(intent->regions);
	intent->recent = bits_new(intent->regions);
	intent->candidate = bits_new(intent->regions);
	intent->page_dirty = bits_new(intent->page_count);
	intent->page_loose = bits_new(intent->page_count);
	intent->batch.pages = malloc(BATCH_PAGES * METADATA_PAGE_BYTES);
	v->checkpoint.batch.pages = malloc(BATCH_PAGES * METADATA_PAGE_BYTES);
	intent->window = INTENT_WINDOW;
	intent->next_in_order = UINT64_MAX;
	if (!intent->active || !intent->disk || !intent->recent || !intent->candidate ||
	    !intent->page_dirty || !intent->page_loose || !intent->batch.pages ||
	    !v->checkpoint.batch.pages)
		return -ENOMEM;
	base = intent->page_count;
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		if (!consumer_init(v, (enum volume_consumer)c, base))
			return -ENOMEM;
		base += v->consumers[c].page_count;
	}
	return 0;
}

static void bits_brace(const uint64_t *bits, uint64_t count)
{
	resident_make(bits, (BITS_WORDS(count) + 1) * 8);
}

static void consumer_brace(struct volume *v, enum volume_consumer c)
{
	const struct consumer *consumer = &v->consumers[c];

	bits_brace(consumer->stale, consumer->page_count);
	bits_brace(consumer->stored_any, consumer->page_count);
	bits_brace(consumer->storing, consumer->page_count);
	bits_brace(consumer->uncovered, v->intent.regions);
	bits_brace(consumer->covering, v->intent.regions);
	dirty_brace(&consumer->active);
	if (!v->braced[c])
		return;
	/* The active map and this one change places. */
	dirty_brace(&v->cuts[c].sealed);
	dirty_brace(&v->cuts[c].safe);
	dirty_brace(&v->cuts[c].staged);
}

void maps_brace(struct volume *v)
{
	const struct intent *intent = &v->intent;

	bits_brace(intent->active, intent->regions);
	bits_brace(intent->disk, intent->regions);
	bits_brace(intent->recent, intent->regions);
	bits_brace(intent->candidate, intent->regions);
	bits_brace(intent->page_dirty, intent->page_count);
	bits_brace(intent->page_loose, intent->page_count);
	resident_make(intent->batch.pages, BATCH_PAGES * METADATA_PAGE_BYTES);
	resident_make(v->checkpoint.batch.pages, BATCH_PAGES * METADATA_PAGE_BYTES);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		consumer_brace(v, (enum volume_consumer)c);
}

void maps_free(struct volume *v)
{
	free(v->intent.active);
	free(v->intent.disk);
	free(v->intent.recent);
	free(v->intent.candidate);
	free(v->intent.page_dirty);
	free(v->intent.page_loose);
	free(v->intent.batch.pages);
	free(v->checkpoint.batch.pages);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		free(v->consumers[c].stale);
		free(v->consumers[c].stored_any);
		free(v->consumers[c].storing);
		free(v->consumers[c].uncovered);
		free(v->consumers[c].covering);
		dirty_free(&v->consumers[c].active);
		dirty_free(&v->cuts[c].sealed);
		dirty_free(&v->cuts[c].safe);
		dirty_free(&v->cuts[c].staged);
	}
}

void maps_page_words(const struct volume *v, enum volume_consumer c, uint64_t page,
		     uint64_t words[METADATA_PAGE_WORDS])
{
	const struct dirty_map *active = &v->consumers[c].active;
	const struct dirty_map *sealed = &v->cuts[c].sealed;
	uint64_t first = page * METADATA_PAGE_WORDS, count = BITS_WORDS(active->blocks);

	for (uint64_t i = 0; i < METADATA_PAGE_WORDS; i++)
		words[i] =
			first + i < count ? active->words[first + i] | sealed->words[first + i] : 0;
}

void maps_mark(struct volume *v, enum volume_consumer c, uint64_t offset, uint64_t length,
	       bool covered_by_intent)
{
	struct consumer *consumer = &v->consumers[c];
	uint64_t first = block_of(c, offset), last = block_of(c, offset + length - 1);
	uint64_t fresh;

	assert(length > 0 && offset < v->size_bytes && length <= v->size_bytes - offset);
	if (consumer->active.count == 0 && v->cuts[c].sealed.count == 0)
		consumer->dirty_since_ns = env_now_ns(v->env);
	fresh = dirty_set(&consumer->active, first, last - first + 1, &v->cuts[c].sealed,
			  v->cuts[c].active ? &consumer->both : NULL);
	if (fresh == 0)
		return;
	if (covered_by_intent) {
		uint64_t region = offset / VOLUME_REGION_BYTES;

		bits_set_range(consumer->uncovered, region,
			       (offset + length - 1) / VOLUME_REGION_BYTES - region + 1);
	} else {
		uint64_t page = first / METADATA_PAGE_BITS;

		bits_set_range(consumer->stale, page, last / METADATA_PAGE_BITS - page + 1);
	}
}

void maps_all_stale(struct volume *v, enum volume_consumer c)
{
	bits_set_range(v->consumers[c].stale, 0, v->consumers[c].page_count);
	checkpoint_want(v);
}

void maps_loosened(struct volume *v, enum volume_consumer c)
{
	struct consumer *consumer = &v->consumers[c];

	for (uint64_t w = 0; w < BITS_WORDS(consumer->page_count); w++)
		consumer->stale[w] |= consumer->stored_any[w];
	checkpoint_want(v);
}

void maps_loosened_range(struct volume *v, enum volume_consumer c, uint64_t first, uint64_t count)
{
	struct consumer *consumer = &v->consumers[c];

	for (uint64_t p = first / METADATA_PAGE_BITS; p <= (first + count - 1) / METADATA_PAGE_BITS;
	     p++)
		if (bits_test(consumer->stored_any, p))
			bits_set(consumer->stale, p);
	checkpoint_want(v);
}

/* ---- blocking: creation, recovery, close ---------------------------------------------------- */

static uint64_t page_offset(uint64_t page)
{
	return page * METADATA_PAGE_BYTES;
}

/* Fills in page number `page` of the file as of now. */
static void encode_page(struct volume *v, uint64_t page, bool intents,
			struct metadata_page_wire *wire)
{
	uint64_t words[METADATA_PAGE_WORDS] = {0};

	if (page < v->intent.page_count) {
		uint64_t first = page * METADATA_PAGE_WORDS, count = BITS_WORDS(v->intent.regions);

		for (uint64_t i = 0; intents && i < METADATA_PAGE_WORDS && first + i < count; i++)
			words[i] = v->intent.active[first + i];
		metadata_page_encode(METADATA_INTENT, (uint32_t)page, words, wire);
		return;
	}
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		const struct consumer *consumer = &v->consumers[c];

		if (page < consumer->page_base ||
		    page >= consumer->page_base + consumer->page_count)
			continue;
		page -= consumer->page_base;
		maps_page_words(v, (enum volume_consumer)c, page, words);
		metadata_page_encode(c == VOLUME_PEER ? METADATA_PEER_MAP : METADATA_STORE_MAP,
				     (uint32_t)page, words, wire);
		return;
	}
	assert(!"page beyond the end");
}

static uint64_t all_pages(const struct volume *v)
{
	const struct consumer *last = &v->consumers[VOLUME_CONSUMERS - 1];

	return last->page_base + last->page_count;
}

static int store_range(struct volume *v, uint64_t from, uint64_t to, bool intents)
{
	struct metadata_page_wire *pages = v->intent.batch.pages;

	while (from < to) {
		uint64_t count = to - from < BATCH_PAGES ? to - from : BATCH_PAGES;
		int error;

		for (uint64_t i = 0; i < count; i++)
			encode_page(v, from + i, intents, &pages[i]);
		error = env_file_pwrite(v->env, v->maps, pages, count * METADATA_PAGE_BYTES,
					page_offset(from));
		if (error != 0)
			return error;
		from += count;
	}
	return 0;
}

/* The consumers' pages reach the disk before the intent bits go: those cover what is in between. */
int maps_store_all(struct volume *v, bool drop_intents)
{
	int error = 0;

	for (unsigned c = 0; c < VOLUME_CONSUMERS && error == 0; c++) {
		struct consumer *consumer = &v->consumers[c];

		for (uint64_t p = 0; p < consumer->page_count && error == 0; p++) {
			uint64_t region = p * consumer->regions_per_page;
			uint64_t end = region + consumer->regions_per_page;

			if (end > v->intent.regions)
				end = v->intent.regions;
			if (bits_test(consumer->stale, p) ||
			    bits_next(consumer->uncovered, region, end) < end)
				error = store_range(v, consumer->page_base + p,
						    consumer->page_base + p + 1, false);
		}
	}
	if (error == 0)
		error = env_file_sync(v->env, v->maps);
	if (error == 0 && drop_intents)
		error = store_range(v, 0, v->intent.page_count, false);
	if (error == 0 && drop_intents)
		error = env_file_sync(v->env, v->maps);
	return error;
}

int maps_create(struct volume *v, bool all_dirty)
{
	int error = env_file_open(v->env, maps_path(v),
				  ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE, &v->maps);

	if (error != 0)
		return error;
	if (all_dirty)
		for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
			maps_mark(v, (enum volume_consumer)c, 0, v->size_bytes, false);
			bits_set_range(v->consumers[c].stored_any, 0, v->consumers[c].page_count);
		}
	error = env_file_allocate(v->env, v->maps, 0, page_offset(all_pages(v)));
	if (error == 0)
		error = store_range(v, 0, all_pages(v), false);
	if (error == 0)
		error = env_file_sync(v->env, v->maps);
	if (error == 0)
		error = env_sync_dir(v->env, v->state_dir);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		memset(v->consumers[c].stale, 0, BITS_WORDS(v->consumers[c].page_count) * 8);
	return error;
}

void maps_copy(struct volume *v, const struct volume *from)
{
	struct intent *intent = &v->intent;
	uint64_t words = BITS_WORDS(from->intent.regions) * 8;

	memcpy(intent->active, from->intent.active, words);
	memcpy(intent->disk, from->intent.active, words);
	memcpy(intent->recent, from->intent.recent, words);
	intent->count = from->intent.count;
	intent->window = from->intent.window;
	intent->next_in_order = from->intent.next_in_order;
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		const struct consumer *old = &from->consumers[c];
		struct consumer *consumer = &v->consumers[c];

		dirty_merge(&consumer->active, &old->active);
		dirty_merge(&v->cuts[c].sealed, &from->cuts[c].sealed);
		dirty_merge(&v->cuts[c].safe, &from->cuts[c].safe);
		dirty_merge(&v->cuts[c].staged, &from->cuts[c].staged);
		consumer->both = old->both;
		consumer->all_dirty = old->all_dirty;
		consumer->dirty_since_ns = old->dirty_since_ns;
		/* What another's hand changes is not marked: all of it is, always. */
		if (c == VOLUME_STORE && from->detached)
			maps_mark(v, VOLUME_STORE, 0, v->size_bytes, false);
	}
}

int maps_create_beside(struct volume *v, unsigned number)
{
	int error = env_file_open(v->env, v->maps_paths[number],
				  ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE, &v->maps);

	if (error != 0)
		return error;
	v->maps_number = number;
	error = env_file_truncate(v->env, v->maps, 0);
	if (error == 0)
		error = env_file_allocate(v->env, v->maps, 0, page_offset(all_pages(v)));
	if (error == 0)
		error = store_range(v, 0, all_pages(v), true);
	if (error == 0 && !MUTATE(volume_grow_maps_no_fsync))
		error = env_file_sync(v->env, v->maps);
	if (error == 0)
		error = env_sync_dir(v->env, v->state_dir);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		struct consumer *consumer = &v->consumers[c];

		memset(consumer->stale, 0, BITS_WORDS(consumer->page_count) * 8);
		/* A page too many costs a write. */
		bits_set_range(consumer->stored_any, 0, consumer->page_count);
	}
	return error;
}

/* True: the page is good. */
static bool load_page(struct volume *v, uint64_t file_page, enum metadata_page_kind kind,
		      uint64_t number, uint64_t *words)
{
	struct metadata_page_wire *wire = &v->intent.batch.pages[0];
	const char *bad;
	int error = env_file_pread(v->env, v->maps, wire, sizeof(*wire), page_offset(file_page));

	bad = error != 0 ? strerror(-error)
			 : metadata_page_decode(wire, kind, (uint32_t)number, words);
	if (bad != NULL)
		env_log(v->env, ENV_LOG_WARNING,
			"volume %s: %s: page %llu: %s; what it stands for counts as changed",
			v->name, maps_path(v), (unsigned long long)file_page, bad);
	return bad == NULL;
}

static void load_intent(struct volume *v)
{
	struct intent *intent = &v->intent;
	uint64_t words[METADATA_PAGE_WORDS];

	for (uint64_t p = 0; p < intent->page_count; p++) {
		uint64_t first = p * METADATA_PAGE_BITS;
		uint64_t end = first + METADATA_PAGE_BITS;

		if (end > intent->regions)
			end = intent->regions;
		if (!load_page(v, p, METADATA_INTENT, p, words)) {
			/* What it says on the disk nobody knows; it may be read again next time. So no write
			 * is issued in its regions before it is written anew. */
			bits_set_range(intent->active, first, end - first);
			bits_set(intent->page_dirty, p);
			intent->count += end - first;
			continue;
		}
		for (uint64_t r = bits_next(words, 0, end - first); r < end - first;
		     r = bits_next(words, r + 1, end - first)) {
			bits_set(intent->active, first + r);
			bits_set(intent->disk, first + r);
			intent->count++;
		}
	}
}

static void load_consumer(struct volume *v, enum volume_consumer c)
{
	struct consumer *consumer = &v->consumers[c];
	uint64_t words[METADATA_PAGE_WORDS], blocks = consumer->active.blocks;
	enum metadata_page_kind kind = c == VOLUME_PEER ? METADATA_PEER_MAP : METADATA_STORE_MAP;

	for (uint64_t p = 0; p < consumer->page_count; p++) {
		uint64_t first = p * METADATA_PAGE_BITS;
		uint64_t count =
			blocks - first < METADATA_PAGE_BITS ? blocks - first : METADATA_PAGE_BITS;
		uint64_t before = consumer->active.count;

		if (!load_page(v, consumer->page_base + p, kind, p, words)) {
			dirty_set(&consumer->active, first, count, NULL, NULL);
			bits_set(consumer->stored_any, p);
			/* To be repaired; until then it counts as all ones. */
			bits_set(consumer->stale, p);
			continue;
		}
		dirty_set_words(&consumer->active, first, words, BITS_WORDS(count));
		if (consumer->active.count > before)
			bits_set(consumer->stored_any, p);
	}
}

/* The blocks of regions whose intent page could not be read are dirty, and no intent bit says so on the disk: the
 * superblock does, which is written before the volume is used, until they are stored. */
static void mark_unknown(struct volume *v, enum volume_consumer c)
{
	const struct intent *intent = &v->intent;

	for (uint64_t p = bits_next(intent->page_dirty, 0, intent->page_count);
	     p < intent->page_count; p = bits_next(intent->page_dirty, p + 1, intent->page_count)) {
		uint64_t offset = p * METADATA_PAGE_BITS * VOLUME_REGION_BYTES;
		uint64_t length = METADATA_PAGE_BITS * VOLUME_REGION_BYTES;

		if (length > v->size_bytes - offset)
			length = v->size_bytes - offset;
		maps_mark(v, c, offset, length, false);
		v->consumers[c].all_dirty = true;
	}
}

int maps_load(struct volume *v, char *why, size_t why_size)
{
	int error = env_file_open(v->env, maps_path(v), ENV_FILE_READ | ENV_FILE_WRITE, &v->maps);

	if (error == -ENOENT) {
		env_log(v->env, ENV_LOG_WARNING,
			"volume %s: %s: missing; everything counts as changed", v->name,
			maps_path(v));
		error = maps_create(v, true);
		if (error == 0)
			return 0;
	}
	/* What a killed process wrote is in the page cache, but maybe not on the disk: made durable
	 * before a bit that is read counts as such. */
	if (error == 0)
		error = env_file_sync(v->env, v->maps);
	if (error != 0) {
		snprintf(why, why_size, "volume %s: %s: %s", v->name, maps_path(v),
			 strerror(-error));
		return error;
	}
	load_intent(v);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		load_consumer(v, (enum volume_consumer)c);
		if (v->consumers[c].all_dirty || (c == VOLUME_STORE && v->detached)) {
			maps_mark(v, (enum volume_consumer)c, 0, v->size_bytes, false);
			bits_set_range(v->consumers[c].stale, 0, v->consumers[c].page_count);
		}
		if (c == VOLUME_STORE || !v->applied_only)
			mark_unknown(v, (enum volume_consumer)c);
	}
	/* What was written shortly before a crash may be here, at the peer, both or neither. */
	intent_mark_active(v);
	return 0;
}
