/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gather: which runs of chunks come by one request. Runs that lie together in a pack do; those of the next MiBs of the
 * volume are waited with until there are enough of them, as neighbours in the volume need not be neighbours in the
 * pack (several are compressed at a time when it is written). It depends on what is added and in which order, and
 * not on when anything comes: so a plan counts the requests that a restore makes.
 */
#ifndef OFFSITE_SNAPSHOT_GATHER_H
#define OFFSITE_SNAPSHOT_GATHER_H

#include "protocol/snapshot.h"

#define BULK_BYTES    (8u << 20) /* of a request, at most */
#define GAP_BYTES     65536u     /* in an object: read for nothing rather than asked for apart */
#define GATHER_PIECES 128        /* that wait */
#define GATHER_CHUNKS \
	(2 * SNAPFMT_PAGE_CHUNKS) /* none waits for one further away: it holds its map page */

struct walk_item;

struct gather_piece {
	struct snapfmt_ref pack;
	uint32_t from, to; /* bytes of it */
	uint64_t chunk, number;
	void *owner;
};

struct gather {
	/* Set by the caller. These pieces, which are valid in the call only, come by one request for [from, to) of their
	 * pack. Called from inside gather_add() and gather_flush(). */
	void (*request)(struct gather *gather, const struct gather_piece *pieces, unsigned count,
			uint32_t from, uint32_t to);
	/* Private. */
	uint64_t added;
	unsigned count;
	struct gather_piece
		waiting[GATHER_PIECES]; /* in the order of packs and of what lies in them */
};

/* A run of chunks, in about ascending order. item is not needed any more. */
void gather_add(struct gather *gather, const struct walk_item *item, void *owner);
void gather_flush(struct gather *gather); /* nothing follows that could go along */
void gather_drop(struct gather *gather);  /* forgets what waits */

#endif
