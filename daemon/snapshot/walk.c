/* SPDX-License-Identifier: Apache-2.0 */
/*
 * walk: goes over a snapshot's content in ascending order, loading a few map pages ahead. The caller
 * pulls items (runs of zeroes; chunks that lie together in one pack) as it has room for them.
 */
#include "daemon/snapshot/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static void load_ahead(struct walk *walk);

static struct walk_page *slot_of(const struct walk *walk, const struct manifest_page *pointer)
{
	for (unsigned i = 0; i < WALK_PAGES; i++)
		if (walk->pages[i]->state != WALK_FREE && walk->pages[i]->pointer == pointer)
			return walk->pages[i];
	return NULL;
}

static void page_loaded(void *context, int error, const char *why)
{
	struct walk_page *slot = context;
	struct walk *walk = slot->walk;

	walk->loading--;
	slot->state = WALK_LOADED;
	if (error && walk->bad_page) {
		slot->state = WALK_SKIPPED;
		walk->bad_page(walk, slot->pointer, error, why);
	} else if (error) {
		slot->state = WALK_SKIPPED;
		if (!walk->error)
			walk->error = why_set(walk->why, error, "%s", why);
	}
	walk->ready(walk);
}

static void load_ahead(struct walk *walk)
{
	const struct manifest *m = walk->manifest;

	for (unsigned i = 0; i < WALK_PAGES && !walk->error; i++) {
		struct walk_page *slot = walk->pages[i];

		while (walk->wanted && walk->next_load < m->page_count &&
		       !walk->wanted(walk, &m->pages[walk->next_load]))
			walk->next_load++;
		if (walk->next_load == m->page_count)
			return;
		if (slot->state != WALK_FREE)
			continue;
		slot->state = WALK_LOADING;
		slot->references = 1; /* the walk's own */
		slot->pointer = &m->pages[walk->next_load++];
		walk->loading++;
		page_load(walk->store, m, slot->pointer, &slot->page, page_loaded, slot);
	}
}

void walk_begin(struct walk *walk)
{
	walk->error = 0;
	walk->why[0] = '\0';
	walk->at = 0;
	walk->chunks =
		(walk->manifest->info.size_bytes + SNAPFMT_CHUNK_BYTES - 1) / SNAPFMT_CHUNK_BYTES;
	walk->next_page = walk->next_load = walk->loading = 0;
	for (unsigned i = 0; i < WALK_PAGES; i++) {
		walk->pages[i] = must_alloc(sizeof(*walk->pages[i]));
		walk->pages[i]->walk = walk;
	}
	load_ahead(walk);
}

void walk_release(struct walk *walk, struct walk_page *page)
{
	assert(page->references > 0);
	if (--page->references)
		return;
	page->state = WALK_FREE;
	load_ahead(walk);
}

bool walk_idle(const struct walk *walk)
{
	return walk->loading == 0;
}

void walk_end(struct walk *walk)
{
	assert(walk_idle(walk));
	for (unsigned i = 0; i < WALK_PAGES; i++)
		free(walk->pages[i]);
}

bool walk_follows(const struct snapfmt_entry *a, const struct snapfmt_entry *b)
{
	return b->stored_bytes && b->offset == a->offset + a->stored_bytes &&
	       !snapfmt_ref_compare(&a->pack, &b->pack);
}

/* The item at walk->at, inside a loaded page. */
static void take(struct walk *walk, struct walk_page *slot, uint64_t end, struct walk_item *item)
{
	const struct snapfmt_entry *entries = slot->page.entries;
	uint64_t base = slot->page.number * SNAPFMT_PAGE_CHUNKS;
	uint64_t i = walk->at - base, n = 1;

	*item = (struct walk_item){.first_chunk = walk->at};
	if (!entries[i].stored_bytes) {
		while (base + i + n < end && !entries[i + n].stored_bytes)
			n++;
	} else {
		while (base + i + n < end && n < RUN_CHUNKS &&
		       walk_follows(&entries[i + n - 1], &entries[i + n]))
			n++;
		item->page = slot;
		item->entries = &entries[i];
		slot->references++;
	}
	item->count = n;
	walk->at += n;
}

enum walk_result walk_next(struct walk *walk, struct walk_item *item)
{
	const struct manifest *m = walk->manifest;

	for (;;) {
		uint64_t first = walk->chunks, end;
		struct walk_page *slot;

		if (walk->error)
			return WALK_ERROR;
		if (walk->at >= walk->chunks)
			return WALK_END;
		if (walk->next_page < m->page_count)
			first = (uint64_t)m->pages[walk->next_page].number * SNAPFMT_PAGE_CHUNKS;
		if (walk->at < first) {
			*item = (struct walk_item){.first_chunk = walk->at,
						   .count = first - walk->at};
			walk->at = first;
			return WALK_ITEM;
		}
		end = first + SNAPFMT_PAGE_CHUNKS;
		if (end > walk->chunks)
			end = walk->chunks;
		slot = slot_of(walk, &m->pages[walk->next_page]);
		if (slot && slot->state == WALK_LOADING)
			return WALK_WAIT;
		if (!slot && walk->next_load <= walk->next_page)
			return WALK_WAIT; /* all slots are in use: a release loads it */
		if (slot && slot->state == WALK_LOADED && walk->at < end) {
			take(walk, slot, end, item);
			return WALK_ITEM;
		}
		walk->at = end; /* the page is done, bad, or of no interest */
		walk->next_page++;
		if (slot)
			walk_release(walk, slot);
	}
}
