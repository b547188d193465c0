/* SPDX-License-Identifier: Apache-2.0 */
/* See gather.h. */
#include "daemon/snapshot/gather.h"

#include <assert.h>
#include <string.h>

#include "daemon/snapshot/internal.h"

static int piece_compare(const struct gather_piece *a, const struct gather_piece *b)
{
	int order = snapfmt_ref_compare(&a->pack, &b->pack);

	return order ? order : (a->from > b->from) - (a->from < b->from);
}

static void insert(struct gather *gather, const struct gather_piece *piece)
{
	unsigned from = 0, to = gather->count;

	while (from < to) {
		unsigned middle = (from + to) / 2;

		if (piece_compare(&gather->waiting[middle], piece) <= 0)
			from = middle + 1;
		else
			to = middle;
	}
	memmove(&gather->waiting[from + 1], &gather->waiting[from],
		(gather->count - from) * sizeof(gather->waiting[0]));
	gather->waiting[from] = *piece;
	gather->count++;
}

static unsigned oldest(const struct gather *gather)
{
	unsigned oldest = 0;

	for (unsigned i = 1; i < gather->count; i++)
		if (gather->waiting[i].number < gather->waiting[oldest].number)
			oldest = i;
	return oldest;
}

/* Several of those that wait, and where they lie in their pack. */
struct stretch {
	unsigned first, count;
	uint32_t from, to;
};

/* Whether it can be read along; then it is part of it. */
static bool stretch_add(struct stretch *s, const struct snapfmt_ref *pack,
			const struct gather_piece *piece)
{
	uint32_t from = piece->from < s->from ? piece->from : s->from;
	uint32_t to = piece->to > s->to ? piece->to : s->to;

	if (snapfmt_ref_compare(&piece->pack, pack) || to - from > BULK_BYTES ||
	    piece->from > s->to + GAP_BYTES || piece->to + GAP_BYTES < s->from)
		return false;
	s->from = from;
	s->to = to;
	s->count++;
	return true;
}

/* What comes by one request with that one. */
static struct stretch stretch_around(const struct gather *gather, unsigned index)
{
	const struct gather_piece *piece = &gather->waiting[index];
	struct stretch s = {index, 1, piece->from, piece->to};

	while (s.first + s.count < gather->count &&
	       stretch_add(&s, &piece->pack, &gather->waiting[s.first + s.count]))
		;
	while (s.first > 0 && stretch_add(&s, &piece->pack, &gather->waiting[s.first - 1]))
		s.first--;
	return s;
}

static void take(struct gather *gather, const struct stretch *s)
{
	gather->request(gather, &gather->waiting[s->first], s->count, s->from, s->to);
	gather->count -= s->count;
	memmove(&gather->waiting[s->first], &gather->waiting[s->first + s->count],
		(gather->count - s->first) * sizeof(gather->waiting[0]));
}

void gather_add(struct gather *gather, const struct walk_item *item, void *owner)
{
	const struct snapfmt_entry *first = item->entries, *last = first + item->count - 1;
	const struct gather_piece piece = {
		.pack = first->pack,
		.from = first->offset,
		.to = last->offset + last->stored_bytes,
		.chunk = item->first_chunk,
		.number = gather->added++,
		.owner = owner,
	};

	insert(gather, &piece);
	while (gather->count) {
		unsigned index = oldest(gather);
		struct stretch s = stretch_around(gather, index);

		if (gather->count < GATHER_PIECES && s.to - s.from <= BULK_BYTES - BULK_BYTES / 4 &&
		    piece.chunk < gather->waiting[index].chunk + GATHER_CHUNKS)
			return;
		take(gather, &s);
	}
}

void gather_flush(struct gather *gather)
{
	while (gather->count) {
		struct stretch s = stretch_around(gather, oldest(gather));

		take(gather, &s);
	}
}

void gather_drop(struct gather *gather)
{
	gather->count = 0;
}
