/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bulk: the runs of a whole snapshot on their way out of the store. A request costs time whatever it brings, so
 * runs that lie together in a pack come by one: those of the next MiBs of the volume are waited with until there
 * are enough of them, as neighbours in the volume need not be neighbours in the pack (several are compressed at
 * a time when it is written). What a request did not bring, for whatever reason, is left to be fetched alone,
 * and its trouble to be told then.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/snapshot/internal.h"

#define GAP_BYTES 65536u /* read for nothing rather than asked for apart */

struct bulk_get {
	struct env_op op;
	struct bulk *bulk;
	char name[SNAPFMT_NAME_BYTES];
	uint8_t *data; /* BULK_BYTES */
	uint32_t offset, length_bytes, came_bytes;
	uint64_t came; /* in which order; 0: under way */
	unsigned pieces;
};

static uint32_t piece_offset(const struct bulk_piece *piece)
{
	return piece->item.entries[0].offset;
}

static uint32_t piece_end(const struct bulk_piece *piece)
{
	const struct snapfmt_entry *last = &piece->item.entries[piece->item.count - 1];

	return last->offset + last->stored_bytes;
}

static const struct snapfmt_ref *piece_pack(const struct bulk_piece *piece)
{
	return &piece->item.entries[0].pack;
}

bool bulk_has_room(const struct bulk *bulk)
{
	return bulk->count < BULK_PIECES;
}

bool bulk_idle(const struct bulk *bulk)
{
	return bulk->count == 0;
}

void bulk_end(struct bulk *bulk)
{
	assert(bulk_idle(bulk) && !bulk->gets);
	slabs_free(&bulk->slabs);
}

/* ---- requests -------------------------------------------------------------------------------- */

static void get_free(struct bulk_get *get)
{
	struct bulk *bulk = get->bulk;

	bulk->gets--;
	slab_give(&bulk->slabs, get->data);
	free(get);
}

static void get_done(struct env_op *op, int64_t result)
{
	struct bulk_get *get = container_of(op, struct bulk_get, op);
	struct bulk *bulk = get->bulk;

	get->came = ++bulk->came;
	get->came_bytes = result > 0 ? (uint32_t)result : 0;
	for (unsigned i = 0; i < BULK_PIECES; i++) {
		struct bulk_piece *piece = &bulk->pieces[i];

		if (piece->state != BULK_FETCHING || piece->get != get)
			continue;
		piece->state = BULK_COME;
		if (piece_end(piece) - get->offset <= get->came_bytes)
			piece->stored = get->data + (piece_offset(piece) - get->offset);
	}
	bulk->ready(bulk);
}

/* ---- what waits, in the order of packs and of what lies in them ------------------------------- */

static int piece_compare(const struct bulk_piece *a, const struct bulk_piece *b)
{
	int order = snapfmt_ref_compare(piece_pack(a), piece_pack(b));

	if (order)
		return order;
	return (piece_offset(a) > piece_offset(b)) - (piece_offset(a) < piece_offset(b));
}

static void waiting_add(struct bulk *bulk, struct bulk_piece *piece)
{
	unsigned from = 0, to = bulk->waiting_count;

	while (from < to) {
		unsigned middle = (from + to) / 2;

		if (piece_compare(bulk->waiting[middle], piece) <= 0)
			from = middle + 1;
		else
			to = middle;
	}
	memmove(&bulk->waiting[from + 1], &bulk->waiting[from],
		(bulk->waiting_count - from) * sizeof(bulk->waiting[0]));
	bulk->waiting[from] = piece;
	bulk->waiting_count++;
}

/* The first one added. */
static unsigned waiting_oldest(const struct bulk *bulk)
{
	unsigned oldest = 0;

	for (unsigned i = 1; i < bulk->waiting_count; i++)
		if (bulk->waiting[i]->number < bulk->waiting[oldest]->number)
			oldest = i;
	return oldest;
}

/* Several of those that wait, and where they lie in their pack. */
struct stretch {
	unsigned first, count;
	uint32_t from, to;
};

/* Whether it can be read along; then it is part of it. */
static bool stretch_add(struct stretch *s, const struct bulk_piece *in,
			const struct bulk_piece *piece)
{
	uint32_t from = piece_offset(piece) < s->from ? piece_offset(piece) : s->from;
	uint32_t to = piece_end(piece) > s->to ? piece_end(piece) : s->to;

	if (snapfmt_ref_compare(piece_pack(piece), piece_pack(in)) || to - from > BULK_BYTES ||
	    piece_offset(piece) > s->to + GAP_BYTES || piece_end(piece) + GAP_BYTES < s->from)
		return false;
	s->from = from;
	s->to = to;
	s->count++;
	return true;
}

/* What comes by one request with that one. */
static struct stretch stretch_around(const struct bulk *bulk, unsigned index)
{
	const struct bulk_piece *piece = bulk->waiting[index];
	struct stretch s = {index, 1, piece_offset(piece), piece_end(piece)};

	while (s.first + s.count < bulk->waiting_count &&
	       stretch_add(&s, piece, bulk->waiting[s.first + s.count]))
		;
	while (s.first > 0 && stretch_add(&s, piece, bulk->waiting[s.first - 1]))
		s.first--;
	return s;
}

static void get_start(struct bulk *bulk, const struct stretch *s)
{
	struct bulk_get *get = must_alloc(sizeof(*get));

	bulk->slabs.slab_bytes = BULK_BYTES;
	*get = (struct bulk_get){
		.op.done = get_done,
		.bulk = bulk,
		.data = slab_take(&bulk->slabs),
		.offset = s->from,
		.length_bytes = s->to - s->from,
		.pieces = s->count,
	};
	snapfmt_name(SNAPFMT_PACK, bulk->volume, piece_pack(bulk->waiting[s->first]), get->name);
	for (unsigned i = s->first; i < s->first + s->count; i++) {
		bulk->waiting[i]->state = BULK_FETCHING;
		bulk->waiting[i]->get = get;
	}
	bulk->waiting_count -= s->count;
	memmove(&bulk->waiting[s->first], &bulk->waiting[s->first + s->count],
		(bulk->waiting_count - s->first) * sizeof(bulk->waiting[0]));
	bulk->gets++;
	bulk->store->ops->get(bulk->store, &get->op, get->name, get->data, get->length_bytes,
			      get->offset);
}

/* Sends requests as long as it is worth it; all: of what there is, as nothing more comes for now. */
static void send(struct bulk *bulk, bool all)
{
	while (bulk->gets < BULK_GETS && bulk->waiting_count) {
		struct stretch s = stretch_around(bulk, waiting_oldest(bulk));

		if (!all && bulk_has_room(bulk) && s.to - s.from <= BULK_BYTES - BULK_BYTES / 4)
			return;
		get_start(bulk, &s);
	}
}

/* ---- pieces ---------------------------------------------------------------------------------- */

void bulk_add(struct bulk *bulk, const struct walk_item *item)
{
	struct bulk_piece *piece = bulk->pieces;

	assert(bulk_has_room(bulk) && item->page && item->count <= RUN_CHUNKS);
	while (piece->state != BULK_FREE)
		piece++;
	*piece = (struct bulk_piece){.state = BULK_WAITING, .item = *item, .number = ++bulk->added};
	bulk->count++;
	waiting_add(bulk, piece);
	send(bulk, false);
}

void bulk_flush(struct bulk *bulk)
{
	send(bulk, true);
}

void bulk_give_up(struct bulk *bulk)
{
	for (unsigned i = 0; i < bulk->waiting_count; i++)
		bulk->waiting[i]->state = BULK_COME;
	bulk->waiting_count = 0;
}

static uint64_t came(const struct bulk_piece *piece)
{
	return piece->get ? piece->get->came : 0;
}

struct bulk_piece *bulk_take(struct bulk *bulk)
{
	struct bulk_piece *first = NULL;

	for (unsigned i = 0; i < BULK_PIECES; i++) {
		struct bulk_piece *piece = &bulk->pieces[i];

		if (piece->state == BULK_COME &&
		    (!first || came(piece) < came(first) ||
		     (came(piece) == came(first) && piece->number < first->number)))
			first = piece;
	}
	if (first)
		first->state = BULK_TAKEN;
	return first;
}

void bulk_release(struct bulk *bulk, struct bulk_piece *piece)
{
	assert(piece->state == BULK_TAKEN);
	if (piece->get && !--piece->get->pieces)
		get_free(piece->get);
	piece->state = BULK_FREE;
	bulk->count--;
	send(bulk, false);
}
