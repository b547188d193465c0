/* SPDX-License-Identifier: Apache-2.0 */
/* What a restore over a volume whose dirty map is known will fetch: map pages are read where it marks something, if
 * they are few; else the manifest alone gives a bound. */
#include <stdlib.h>

#include "daemon/snapshot/internal.h"

/* A chunk's place in a pack. */
struct place {
	struct snapfmt_ref pack;
	uint32_t from, to;
};

struct plan_differing {
	struct walk walk;
	const struct manifest *manifest;
	struct differing *differing;
	struct differing_cost cost;
	struct place *places;
	size_t count, room;
	void (*done)(void *context, const struct differing_cost *cost, int error, const char *why);
	void *context;
};

/* How many chunks of the page differ, at most as many as it has. */
static uint64_t page_chunks(struct differing *differing, const struct manifest_page *page)
{
	uint64_t at = (uint64_t)page->number * SNAPFMT_PAGE_CHUNKS * SNAPFMT_CHUNK_BYTES;
	uint64_t page_end = at + SNAPFMT_PAGE_CHUNKS * SNAPFMT_CHUNK_BYTES, start, end, chunks = 0;

	while (differing_next(differing, at, &start, &end) && start < page_end) {
		at = end < page_end ? end : page_end;
		chunks += (at - start) / SNAPFMT_CHUNK_BYTES;
		if (at == page_end)
			break;
	}
	return chunks < page->chunk_count ? chunks : page->chunk_count;
}

static bool page_wanted(struct walk *walk, const struct manifest_page *page)
{
	return page_chunks(container_of(walk, struct plan_differing, walk)->differing, page) > 0;
}

static int place_compare(const void *a, const void *b)
{
	const struct place *p = a, *q = b;
	int order = snapfmt_ref_compare(&p->pack, &q->pack);

	return order ? order : (p->from > q->from) - (p->from < q->from);
}

/* As many requests as gather.c makes of what lies together, if all of it waits at once. */
static uint64_t count_requests(struct plan_differing *p)
{
	const struct place *first = p->places;
	uint64_t requests = 0;

	if (p->count)
		qsort(p->places, p->count, sizeof(*p->places), place_compare);
	for (size_t i = 0; i < p->count; i++) {
		const struct place *place = &p->places[i], *before = place - 1;

		if (i && !snapfmt_ref_compare(&place->pack, &first->pack) &&
		    place->from <= before->to + GAP_BYTES && place->to - first->from <= BULK_BYTES)
			continue;
		first = place;
		requests++;
	}
	return requests;
}

static void plan_end(struct plan_differing *p, int error, const char *why)
{
	p->cost.requests += count_requests(p);
	walk_end(&p->walk);
	p->done(p->context, &p->cost, error, why);
	free(p->places);
	free(p);
}

static void item_count(struct plan_differing *p, const struct walk_item *item)
{
	for (uint64_t i = 0; i < item->count; i++) {
		const struct snapfmt_entry *entry = &item->entries[i];
		uint64_t at = (item->first_chunk + i) * SNAPFMT_CHUNK_BYTES, start, end;
		struct place *place;

		if (!differing_next(p->differing, at, &start, &end) || start > at)
			continue;
		place = array_add((void **)&p->places, &p->count, &p->room, sizeof(*place));
		*place = (struct place){entry->pack, entry->offset,
					entry->offset + entry->stored_bytes};
		p->cost.fetch_bytes += entry->stored_bytes;
	}
	walk_release(&p->walk, item->page);
}

static void step(struct walk *walk)
{
	struct plan_differing *p = container_of(walk, struct plan_differing, walk);
	struct walk_item item;
	enum walk_result next;

	while ((next = walk_next(walk, &item)) == WALK_ITEM)
		if (item.page)
			item_count(p, &item);
	if (next != WALK_WAIT && walk_idle(walk))
		plan_end(p, walk->error, walk->why);
}

static void begin(void *context)
{
	struct plan_differing *p = context;

	walk_begin(&p->walk);
	step(&p->walk);
}

/* Without a look at pages: no chunk is stored in more than it has. */
static void bound(void *context)
{
	struct plan_differing *p = context;
	const struct manifest *m = p->manifest;
	uint64_t stored = 0, chunks = 0;

	for (unsigned i = 0; i < m->page_count; i++)
		chunks += page_chunks(p->differing, &m->pages[i]);
	for (unsigned i = 0; i < m->object_count; i++)
		if (m->objects[i].kind == SNAPFMT_PACK)
			stored += m->objects[i].live_bytes;
	if (stored > chunks * SNAPFMT_CHUNK_BYTES)
		stored = chunks * SNAPFMT_CHUNK_BYTES;
	p->cost.fetch_bytes += stored;
	p->cost.requests += (stored + BULK_BYTES - 1) / BULK_BYTES;
	p->done(p->context, &p->cost, 0, "");
	free(p);
}

void differing_cost(struct store *store, const struct manifest *manifest,
		    struct differing *differing, unsigned pages_max,
		    void (*done)(void *context, const struct differing_cost *cost, int error,
				 const char *why),
		    void *context)
{
	struct plan_differing *p = must_alloc(sizeof(*p));
	unsigned pages = 0;

	p->manifest = manifest;
	p->differing = differing;
	p->done = done;
	p->context = context;
	p->walk = (struct walk){
		.store = store, .manifest = manifest, .ready = step, .wanted = page_wanted};
	for (unsigned i = 0; i < manifest->page_count; i++) {
		if (!page_wanted(&p->walk, &manifest->pages[i]))
			continue;
		pages++;
		p->cost.fetch_bytes += manifest->pages[i].length_bytes;
	}
	p->cost.requests = pages;
	call_later(store->env, pages <= pages_max ? begin : bound, p);
}
