/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pack: an object being filled (a pack of chunks, or a maps object of pages) and then put, as one iovec. Pages are
 * kept as they came, small ones gathered; chunks are copied into slabs, by helper threads, to places that were
 * reserved for them.
 */
#ifndef OFFSITE_SNAPSHOT_PACK_H
#define OFFSITE_SNAPSHOT_PACK_H

#include "daemon/snapshot/internal.h"

#define PACK_CHUNKS_MAX 16384u /* bounds the index where chunks pack very small */

struct pack;

/* Where chunks that follow each other in the pack go: one slab, and what does not fit there into the next. */
struct pack_place {
	struct pack *pack;
	uint8_t *to, *rest;
	uint32_t to_bytes; /* of the first */
};

/* padded: so many zeroes are added at its end that its size tells little. slabs: of a PACK, kept until it is freed. */
struct pack *pack_new(enum snapfmt_kind kind, const struct id128 *volume,
		      const struct snapfmt_ref *ref, bool padded, struct slabs *slabs);
void pack_free(struct pack *pack); /* NULL is allowed; not while it is put */
/* MAPS: adds bytes, whose block (from malloc) becomes the pack's; returns their offset in the object. */
uint32_t pack_add(struct pack *pack, void *data, uint32_t length_bytes);
/* PACK: room for up to SLAB_BYTES, whose offset in the object is returned. */
uint32_t pack_reserve(struct pack *pack, uint32_t length_bytes, struct pack_place *place);
/* Any thread: copies what lies so far behind the beginning of the place. */
void pack_place_write(const struct pack_place *place, uint32_t at, const void *data,
		      uint32_t length_bytes);
void pack_placed(struct pack_place *place);
/* PACK: a chunk's line in the index; entry->ordinal is set. */
void pack_index(struct pack *pack, uint64_t chunk, struct snapfmt_entry *entry);
/* MAPS: counts a page. */
void pack_count_page(struct pack *pack);
uint64_t pack_size_bytes(const struct pack *pack); /* as it would be put now */
uint32_t pack_count(const struct pack *pack);      /* chunks or pages */

/* Puts it, locked for so long, when all that was reserved is there; it is freed before done. */
void pack_put(struct pack *pack, struct store *store, const struct store_retention *retention,
	      void (*done)(void *context, int error, const char *why), void *context);

#endif
