/* SPDX-License-Identifier: Apache-2.0 */
/*
 * span: the base's map pages on their way to a snapshot being written: those that will be wanted, and lie close
 * together in one object, come by one request. Changes all over a large volume would otherwise cost a
 * request for each 64 MiB of it.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "daemon/snapshot/seal.h"

#define SPAN_BYTES 1048576u
#define PAGES_MAX  64u

struct seal_span {
	struct snapshot_writer *writer;
	uint32_t object, offset, length_bytes;
	uint8_t *data;       /* NULL: under way */
	unsigned references; /* the writer's, if it is the last one; pages that wait for it */
	char name[SNAPFMT_NAME_BYTES];
};

static void release(struct seal_span *span)
{
	assert(span->references);
	if (--span->references)
		return;
	free(span->data);
	free(span);
}

static bool covers(const struct seal_span *span, const struct manifest_page *old)
{
	return span->object == old->object && span->offset <= old->offset &&
	       old->offset + old->length_bytes <= span->offset + span->length_bytes;
}

/* The base's next page behind that one that will be loaded, or NULL. */
static const struct manifest_page *next_wanted(const struct snapshot_writer *w,
					       const struct manifest_page *page)
{
	const struct manifest_page *end = w->base->pages + w->base->page_count;
	uint64_t at = ((uint64_t)page->number + 1) * SNAPFMT_PAGE_BYTES, start, length;

	if (w->full)
		return page + 1 < end ? page + 1 : NULL;
	for (unsigned i = 0; i < PAGES_MAX; i++) {
		if (!volume_cut_next(w->cut, at, SNAPFMT_PAGE_BYTES, &start, &length))
			return NULL;
		while (page < end && page->number < start / SNAPFMT_PAGE_BYTES)
			page++;
		if (page == end || page->number == start / SNAPFMT_PAGE_BYTES)
			return page == end ? NULL : page;
		at = (start / SNAPFMT_PAGE_BYTES + 1) *
		     SNAPFMT_PAGE_BYTES; /* the base has none there */
	}
	return NULL;
}

/* From the first page on, whatever is wanted soon and lies close by: in an object pages stand about in the order
 * of their numbers, as they were finished. */
static void span_set(struct seal_span *span, const struct manifest_page *first)
{
	const struct snapshot_writer *w = span->writer;
	const struct manifest_page *page = first;
	uint64_t begin = first->offset, end = begin + first->length_bytes;

	for (unsigned i = 0; i < PAGES_MAX && (page = next_wanted(w, page)); i++) {
		uint64_t from = page->offset, to = from + page->length_bytes;
		uint64_t low = from < begin ? from : begin, high = to > end ? to : end;

		if (page->object != first->object)
			break;
		if (from > end + GAP_BYTES || to + GAP_BYTES < begin || high - low > SPAN_BYTES)
			continue;
		begin = low;
		end = high;
	}
	span->object = first->object;
	span->offset = (uint32_t)begin;
	span->length_bytes = (uint32_t)(end - begin);
}

static void give(struct seal_span *span, struct seal_page *page)
{
	struct snapshot_writer *w = span->writer;

	page->span = NULL;
	page_take(w->env, w->base, page->old, span->data + (page->old->offset - span->offset),
		  &page->map, page->loaded, page);
	release(span);
}

static void span_fetched(void *context, uint8_t *data, size_t length, int error, const char *why)
{
	struct seal_span *span = context;
	struct snapshot_writer *w = span->writer;
	struct seal_page *waiting[SEAL_PAGES];
	unsigned count = 0;

	assert(error || length == span->length_bytes);
	span->data = data;
	span->references++;
	if (error && w->span == span)
		span_end_last(w);
	for (unsigned i = 0; i < SEAL_PAGES; i++)
		if (w->pages[i]->span == span)
			waiting[count++] = w->pages[i];
	/* The last one that is told of an error may end the run, and the writer. */
	for (unsigned i = 0; i < count; i++) {
		if (!error) {
			give(span, waiting[i]);
			continue;
		}
		waiting[i]->span = NULL;
		release(span);
		waiting[i]->loaded(waiting[i], error, why);
	}
	release(span);
}

static struct seal_span *span_new(struct snapshot_writer *w, const struct manifest_page *first)
{
	struct seal_span *span = must_alloc(sizeof(*span));

	span->writer = w;
	span_set(span, first);
	span->references = 1;
	span_end_last(w);
	w->span = span;
	snapfmt_name(SNAPFMT_MAPS, &w->base->info.volume, &w->base->objects[first->object].ref,
		     span->name);
	fetch(w->repo->store, span->name, span->offset, span->length_bytes, span_fetched, span);
	return span;
}

void span_load(struct snapshot_writer *w, struct seal_page *page,
	       void (*loaded)(void *context, int error, const char *why))
{
	struct seal_span *span = w->span;

	if (!span || !covers(span, page->old))
		span = span_new(w, page->old);
	page->loaded = loaded;
	page->span = span;
	span->references++;
	if (span->data)
		give(span, page);
}

void span_end_last(struct snapshot_writer *w)
{
	struct seal_span *span = w->span;

	w->span = NULL;
	if (span)
		release(span);
}
