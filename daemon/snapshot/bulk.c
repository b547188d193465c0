/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bulk: the runs of a whole snapshot on their way out of the store. A request costs time whatever it brings, so
 * runs that lie together in a pack come by one (gather.h). What a request did not bring, for whatever reason, is
 * left to be fetched alone, and its trouble to be told then.
 */
#include <assert.h>
#include <stdlib.h>

#include "daemon/snapshot/internal.h"

struct bulk_get {
	struct env_op op;
	struct bulk *bulk;
	struct bulk_get *next; /* while it has to wait */
	char name[SNAPFMT_NAME_BYTES];
	uint8_t *data; /* BULK_BYTES; NULL: it was not sent yet */
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

static void send(struct bulk *bulk)
{
	struct bulk_get *get;

	while (bulk->gets < BULK_GETS && (get = bulk->first)) {
		bulk->first = get->next;
		bulk->gets++;
		bulk->slabs.slab_bytes = BULK_BYTES;
		get->data = slab_take(&bulk->slabs);
		bulk->store->ops->get(bulk->store, &get->op, get->name, get->data,
				      get->length_bytes, get->offset);
	}
}

static void get_new(struct gather *gather, const struct gather_piece *pieces, unsigned count,
		    uint32_t from, uint32_t to)
{
	struct bulk *bulk = container_of(gather, struct bulk, gather);
	struct bulk_get *get = must_alloc(sizeof(*get)), **place = &bulk->first;

	*get = (struct bulk_get){
		.op.done = get_done,
		.bulk = bulk,
		.offset = from,
		.length_bytes = to - from,
		.pieces = count,
	};
	snapfmt_name(SNAPFMT_PACK, bulk->volume, &pieces[0].pack, get->name);
	for (unsigned i = 0; i < count; i++) {
		struct bulk_piece *piece = pieces[i].owner;

		piece->state = BULK_FETCHING;
		piece->get = get;
	}
	while (*place)
		place = &(*place)->next;
	*place = get;
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
	bulk->gather.request = get_new;
	gather_add(&bulk->gather, item, piece);
	send(bulk);
}

void bulk_flush(struct bulk *bulk)
{
	gather_flush(&bulk->gather);
	send(bulk);
}

void bulk_give_up(struct bulk *bulk)
{
	struct bulk_get *get;

	gather_drop(&bulk->gather);
	for (unsigned i = 0; i < BULK_PIECES; i++) {
		struct bulk_piece *piece = &bulk->pieces[i];

		if (piece->state != BULK_WAITING &&
		    (piece->state != BULK_FETCHING || piece->get->data))
			continue;
		piece->state = BULK_COME;
		piece->get = NULL;
	}
	while ((get = bulk->first)) {
		bulk->first = get->next;
		free(get);
	}
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
	send(bulk);
}
