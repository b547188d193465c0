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
	uint8_t *data;
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

/* ---- requests -------------------------------------------------------------------------------- */

static void get_free(struct bulk_get *get)
{
	get->bulk->gets--;
	free(get->data);
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

/* The first one added of those that wait. */
static struct bulk_piece *oldest_waiting(struct bulk *bulk)
{
	struct bulk_piece *oldest = NULL;

	for (unsigned i = 0; i < BULK_PIECES; i++)
		if (bulk->pieces[i].state == BULK_WAITING &&
		    (!oldest || bulk->pieces[i].number < oldest->number))
			oldest = &bulk->pieces[i];
	return oldest;
}

/* Whether one more of that pack can be reached from [*from, *to), which it then becomes part of. */
static bool extend(const struct bulk *bulk, const struct snapfmt_ref *pack, uint32_t *from,
		   uint32_t *to)
{
	for (unsigned i = 0; i < BULK_PIECES; i++) {
		const struct bulk_piece *piece = &bulk->pieces[i];
		uint32_t first, last;

		if (piece->state != BULK_WAITING || snapfmt_ref_compare(piece_pack(piece), pack))
			continue;
		first = piece_offset(piece) < *from ? piece_offset(piece) : *from;
		last = piece_end(piece) > *to ? piece_end(piece) : *to;
		if ((first == *from && last == *to) || last - first > BULK_BYTES)
			continue;
		if (piece_offset(piece) > *to + GAP_BYTES || piece_end(piece) + GAP_BYTES < *from)
			continue;
		*from = first;
		*to = last;
		return true;
	}
	return false;
}

static void get_start(struct bulk *bulk, const struct snapfmt_ref *pack, uint32_t from, uint32_t to)
{
	struct bulk_get *get = must_alloc(sizeof(*get));

	*get = (struct bulk_get){
		.op.done = get_done, .bulk = bulk, .offset = from, .length_bytes = to - from};
	get->data = malloc(get->length_bytes);
	assert(get->data);
	snapfmt_name(SNAPFMT_PACK, bulk->volume, pack, get->name);
	for (unsigned i = 0; i < BULK_PIECES; i++) {
		struct bulk_piece *piece = &bulk->pieces[i];

		if (piece->state != BULK_WAITING || snapfmt_ref_compare(piece_pack(piece), pack) ||
		    piece_offset(piece) < from || piece_end(piece) > to)
			continue;
		piece->state = BULK_FETCHING;
		piece->get = get;
		get->pieces++;
		bulk->waiting--;
	}
	bulk->gets++;
	bulk->store->ops->get(bulk->store, &get->op, get->name, get->data, get->length_bytes, from);
}

/* Sends requests as long as it is worth it; all: of what there is, as nothing more comes for now. */
static void send(struct bulk *bulk, bool all)
{
	while (bulk->gets < BULK_GETS && bulk->waiting) {
		const struct bulk_piece *piece = oldest_waiting(bulk);
		uint32_t from = piece_offset(piece), to = piece_end(piece);

		while (extend(bulk, piece_pack(piece), &from, &to))
			;
		if (!all && bulk_has_room(bulk) && to - from <= BULK_BYTES - BULK_BYTES / 4)
			return;
		get_start(bulk, piece_pack(piece), from, to);
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
	bulk->waiting++;
	send(bulk, false);
}

void bulk_flush(struct bulk *bulk)
{
	send(bulk, true);
}

void bulk_give_up(struct bulk *bulk)
{
	for (unsigned i = 0; i < BULK_PIECES; i++)
		if (bulk->pieces[i].state == BULK_WAITING)
			bulk->pieces[i].state = BULK_COME;
	bulk->waiting = 0;
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
