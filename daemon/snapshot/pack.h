/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pack: an object being filled (a pack of chunks, or a maps object of pages) and then put. Parts are
 * kept as they came and go to the store as one iovec; small ones are gathered first.
 */
#ifndef OFFSITE_SNAPSHOT_PACK_H
#define OFFSITE_SNAPSHOT_PACK_H

#include "daemon/snapshot/internal.h"

#define PACK_CHUNKS_MAX 16384u /* bounds the index where chunks pack very small */

struct pack;

/* padded: so many zeroes are added at its end that its size tells little. */
struct pack *pack_new(enum snapfmt_kind kind, const struct id128 *volume,
		      const struct snapfmt_ref *ref, bool padded);
void pack_free(struct pack *pack); /* NULL is allowed; not while it is put */
/* Adds bytes, whose block (from malloc) becomes the pack's; returns their offset in the object. */
uint32_t pack_add(struct pack *pack, void *data, uint32_t length_bytes);
/* PACK: a chunk's line in the index; entry->ordinal is set. */
void pack_index(struct pack *pack, uint64_t chunk, struct snapfmt_entry *entry);
/* MAPS: counts a page. */
void pack_count_page(struct pack *pack);
uint64_t pack_size_bytes(const struct pack *pack); /* as it would be put now */
uint32_t pack_count(const struct pack *pack);      /* chunks or pages */

/* Puts it, locked for so long; it is freed before done. */
void pack_put(struct pack *pack, struct store *store, const struct store_retention *retention,
	      void (*done)(void *context, int error, const char *why), void *context);

#endif
