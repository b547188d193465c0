/* SPDX-License-Identifier: Apache-2.0 */
/* changes: see changes.h. */
#include "daemon/snapshot/changes.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/volume/bits.h"

#define KEPT_PAGES 256u /* 68 KiB; a slot by the page's number */
#define LOADS_MAX  8u   /* at a time; each holds two unpacked pages of about 90 KiB */
#define NO_PAGE    UINT32_MAX
#define PAGE_WORDS BITS_WORDS(SNAPFMT_PAGE_CHUNKS)

/* A page of the map that has to be looked at. */
struct pair {
	uint32_t number;
	uint32_t then, now; /* indices into the manifests' pages; NO_PAGE */
};

struct kept_page {
	enum { KEPT_FREE, KEPT_LOADING, KEPT_LOADED } state;
	uint32_t number;
	uint64_t changed[PAGE_WORDS]; /* bit i: chunk i of the page differs */
	uint64_t zero[PAGE_WORDS];    /* bit i: it reads as zeroes now */
};

struct changes_load {
	struct changes *changes; /* NULL: not in use */
	struct kept_page *kept;
	const struct pair *pair;
	struct snapfmt_page *then, *now;
	unsigned waiting; /* pages of the two that have not come */
	int error;
	char why[WHY_BYTES];
};

struct changes {
	struct store *store;
	const struct manifest *then, *now;
	uint64_t chunks;    /* of now */
	uint64_t new_from;  /* chunks from here on lie beyond the end of then */
	struct pair *pairs; /* ascending */
	size_t pair_count, pair_room;
	struct kept_page *kept; /* KEPT_PAGES */
	struct changes_load loads[LOADS_MAX];
	unsigned loading;
	struct changes_query *queries;
	uint64_t pages_read;
	bool freeing;
	struct env_task free_task; /* never from inside what is going on */
	void (*freed)(void *context);
	void *context;
};

static void free_call(struct env_task *task)
{
	struct changes *c = container_of(task, struct changes, free_task);
	void (*freed)(void *context) = c->freed;
	void *context = c->context;

	free(c->pairs);
	free(c->kept);
	free(c);
	if (freed)
		freed(context);
}

/* ---- which pages ------------------------------------------------------------------------------ */

static bool is_shared(const struct changes *c, const struct manifest_page *then,
		      const struct manifest_page *now)
{
	const struct manifest_object *a = &c->then->objects[then->object];
	const struct manifest_object *b = &c->now->objects[now->object];

	return then->offset == now->offset && then->length_bytes == now->length_bytes &&
	       then->crc == now->crc && !snapfmt_ref_compare(&a->ref, &b->ref);
}

static void add_pair(struct changes *c, uint32_t number, uint32_t then, uint32_t now)
{
	struct pair *pair =
		array_add((void **)&c->pairs, &c->pair_count, &c->pair_room, sizeof(*pair));

	*pair = (struct pair){number, then, now};
}

/* Of both lists, which are sorted by number. */
static void find_pairs(struct changes *c)
{
	unsigned then_count = c->then ? c->then->page_count : 0;
	unsigned t = 0, n = 0;

	while (t < then_count || n < c->now->page_count) {
		uint32_t then = t < then_count ? c->then->pages[t].number : NO_PAGE;
		uint32_t now = n < c->now->page_count ? c->now->pages[n].number : NO_PAGE;
		uint32_t number = then < now ? then : now;
		/* The page in which then ends is looked at in any case. */
		bool end_in =
			c->new_from / SNAPFMT_PAGE_CHUNKS == number && c->new_from < c->chunks;

		if ((uint64_t)number * SNAPFMT_PAGE_CHUNKS >= c->chunks)
			return;
		if (then != now || end_in || !is_shared(c, &c->then->pages[t], &c->now->pages[n]))
			add_pair(c, number, then == number ? t : NO_PAGE,
				 now == number ? n : NO_PAGE);
		t += then == number;
		n += now == number;
	}
}

struct changes *changes_new(struct store *store, const struct manifest *then,
			    const struct manifest *now)
{
	struct changes *c = must_alloc(sizeof(*c));

	*c = (struct changes){.store = store, .then = then, .now = now};
	c->chunks = (now->info.size_bytes + SNAPFMT_CHUNK_BYTES - 1) / SNAPFMT_CHUNK_BYTES;
	c->new_from = c->chunks;
	if (then && then->info.size_bytes < now->info.size_bytes)
		c->new_from = then->info.size_bytes / SNAPFMT_CHUNK_BYTES;
	c->free_task.call = free_call;
	c->kept = must_alloc(KEPT_PAGES * sizeof(*c->kept));
	find_pairs(c);
	return c;
}

/* The first pair at or behind a page; count if there is none. */
static size_t pair_at(const struct changes *c, uint64_t number)
{
	size_t low = 0, high = c->pair_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (c->pairs[middle].number < number)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* ---- reading a page ----------------------------------------------------------------------------- */

static void run_queries(struct changes *c);

static void compare_page(struct changes *c, const struct changes_load *load)
{
	static const struct snapfmt_entry none = {.stored_bytes = 0};
	struct kept_page *kept = load->kept;
	uint64_t first = (uint64_t)kept->number * SNAPFMT_PAGE_CHUNKS;

	memset(kept->changed, 0, sizeof(kept->changed));
	memset(kept->zero, 0, sizeof(kept->zero));
	for (unsigned i = 0; i < SNAPFMT_PAGE_CHUNKS; i++) {
		const struct snapfmt_entry *a = load->then ? &load->then->entries[i] : &none;
		const struct snapfmt_entry *b = load->now ? &load->now->entries[i] : &none;
		bool same = !a->stored_bytes == !b->stored_bytes &&
			    (!b->stored_bytes || !memcmp(a->hash, b->hash, sizeof(b->hash)));

		if (!same || first + i >= c->new_from)
			bits_set(kept->changed, i);
		if (!b->stored_bytes)
			bits_set(kept->zero, i);
	}
}

static void load_end(struct changes_load *load)
{
	struct changes *c = load->changes;
	struct kept_page *kept = load->kept;
	char why[WHY_BYTES];
	int error = load->error;

	if (!error)
		compare_page(c, load);
	kept->state = error ? KEPT_FREE : KEPT_LOADED;
	free(load->then);
	free(load->now);
	memcpy(why, load->why, sizeof(why));
	load->changes = NULL;
	c->loading--;
	/* It fails those who stand before this page; for others it was read ahead, and is read again. */
	for (struct changes_query **link = &c->queries; error && *link;) {
		struct changes_query *query = *link;

		if (query->at / SNAPFMT_PAGE_BYTES != kept->number) {
			link = &query->next;
			continue;
		}
		*link = query->next;
		query->done(query, error, why);
		link = &c->queries; /* done() may have asked anew */
	}
	if (c->freeing && !c->loading)
		env_defer(c->store->env, &c->free_task);
	run_queries(c);
}

static void page_came(void *context, int error, const char *why)
{
	struct changes_load *load = context;

	if (error && !load->error)
		load->error = why_set(load->why, error, "%s", why);
	if (--load->waiting == 0)
		load_end(load);
}

/* False: too much is being read already. */
static bool load_begin(struct changes *c, const struct pair *pair)
{
	struct kept_page *kept = &c->kept[pair->number % KEPT_PAGES];
	struct changes_load *load = c->loads;

	if (c->loading == LOADS_MAX || kept->state == KEPT_LOADING)
		return false;
	while (load->changes)
		load++;
	*load = (struct changes_load){.changes = c, .kept = kept, .pair = pair};
	c->loading++;
	kept->state = KEPT_LOADING;
	kept->number = pair->number;
	load->waiting = (pair->then != NO_PAGE) + (pair->now != NO_PAGE);
	c->pages_read += load->waiting;
	if (pair->then != NO_PAGE) {
		load->then = must_alloc(sizeof(*load->then));
		page_load(c->store, c->then, &c->then->pages[pair->then], load->then, page_came,
			  load);
	}
	if (pair->now != NO_PAGE) {
		load->now = must_alloc(sizeof(*load->now));
		page_load(c->store, c->now, &c->now->pages[pair->now], load->now, page_came, load);
	}
	return true;
}

static bool is_kept(const struct changes *c, uint64_t number)
{
	const struct kept_page *kept = &c->kept[number % KEPT_PAGES];

	return kept->state != KEPT_FREE && kept->number == number;
}

/* From the page that the query waits for on, as far as it will want them. */
static void read_ahead(struct changes *c, const struct changes_query *query)
{
	uint64_t end = (query->offset_bytes + query->length_bytes - 1) / SNAPFMT_PAGE_BYTES;
	size_t first = pair_at(c, query->at / SNAPFMT_PAGE_BYTES);

	for (size_t i = first; i < c->pair_count && i < first + LOADS_MAX; i++) {
		if (c->pairs[i].number > end)
			return;
		if (!is_kept(c, c->pairs[i].number) && !load_begin(c, &c->pairs[i]))
			return;
	}
}

/* ---- answering ------------------------------------------------------------------------------------ */

/* Goes on to `to` with what was found there. False: there is no room for another extent. */
static bool answer(struct changes_query *query, uint64_t to, bool changed, bool zero)
{
	uint64_t end = query->offset_bytes + query->length_bytes;
	struct snapshot_extent *last = query->count ? &query->extents[query->count - 1] : NULL;

	if (to > end)
		to = end;
	if (!last || last->changed != changed || last->zero != zero) {
		if (query->count == query->max)
			return false;
		last = &query->extents[query->count++];
		*last = (struct snapshot_extent){query->at, 0, changed, zero};
	}
	last->length_bytes += to - query->at;
	query->at = to;
	return true;
}

/* Of the chunks of a page that is there. */
static bool answer_page(struct changes *c, struct changes_query *query,
			const struct kept_page *kept)
{
	uint64_t end = query->offset_bytes + query->length_bytes;
	uint64_t base = (uint64_t)kept->number * SNAPFMT_PAGE_CHUNKS;

	while (query->at < end && query->at / SNAPFMT_PAGE_BYTES == kept->number) {
		uint64_t chunk = query->at / SNAPFMT_CHUNK_BYTES;
		bool changed = bits_test(kept->changed, chunk - base);

		/* Whether what did not change is zero, only who asks for data is told: fewer extents. */
		if (!answer(query, (chunk + 1) * SNAPFMT_CHUNK_BYTES, changed,
			    bits_test(kept->zero, chunk - base) && (changed || !c->then)))
			return false;
	}
	return true;
}

/* True: it is answered. */
static bool advance(struct changes *c, struct changes_query *query)
{
	uint64_t end = query->offset_bytes + query->length_bytes;

	while (query->at < end) {
		uint64_t number = query->at / SNAPFMT_PAGE_BYTES;
		size_t next = pair_at(c, number);
		uint64_t to = end, new_from = c->new_from * SNAPFMT_CHUNK_BYTES;
		const struct kept_page *kept = &c->kept[number % KEPT_PAGES];
		bool is_new = query->at >= new_from;

		if (next < c->pair_count && c->pairs[next].number == number) {
			if (kept->state != KEPT_LOADED || kept->number != number)
				return false;
			if (!answer_page(c, query, kept))
				return true;
			continue;
		}
		/* Up to the next page to look at nothing differs; and what neither has is zero. */
		if (next < c->pair_count)
			to = c->pairs[next].number * SNAPFMT_PAGE_BYTES;
		if (!is_new && to > new_from)
			to = new_from;
		if (!answer(query, to, is_new, is_new || !c->then))
			return true;
	}
	return true;
}

static void run_queries(struct changes *c)
{
	struct changes_query **link = &c->queries;

	while (*link && !c->freeing) {
		struct changes_query *query = *link;

		if (advance(c, query)) {
			*link = query->next;
			query->done(query, 0, "");
			link = &c->queries;
		} else {
			read_ahead(c, query);
			link = &query->next;
		}
	}
}

void changes_ask(struct changes *c, struct changes_query *query)
{
	struct changes_query **link = &c->queries;

	assert(query->length_bytes > 0 && query->max > 0 && !c->freeing);
	assert(query->offset_bytes + query->length_bytes <= c->now->info.size_bytes);
	query->at = query->offset_bytes;
	query->count = 0;
	query->next = NULL;
	if (advance(c, query)) {
		query->done(query, 0, "");
		return;
	}
	while (*link)
		link = &(*link)->next;
	*link = query;
	read_ahead(c, query);
}

bool changes_idle(const struct changes *c)
{
	return !c->loading && !c->queries;
}

uint64_t changes_pages_read(const struct changes *c)
{
	return c->pages_read;
}

void changes_free(struct changes *c, void (*freed)(void *context), void *context)
{
	assert(!c->freeing);
	c->freeing = true;
	c->freed = freed;
	c->context = context;
	while (c->queries) {
		struct changes_query *query = c->queries;

		c->queries = query->next;
		query->done(query, -ECANCELED, "given up");
	}
	if (!c->loading)
		env_defer(c->store->env, &c->free_task);
}
