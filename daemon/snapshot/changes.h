/* SPDX-License-Identifier: Apache-2.0 */
/*
 * changes: where one snapshot differs from another, by chunks. Pages of the map that both share by pointer,
 * or that neither has, are not read: what it costs follows the difference.
 *
 * Of a page that was read two bits a chunk are kept, of a fixed number of pages; a few pages are read
 * ahead. So the memory is bounded whatever the sizes are, the list of pages that differ aside.
 */
#ifndef OFFSITE_SNAPSHOT_CHANGES_H
#define OFFSITE_SNAPSHOT_CHANGES_H

#include "daemon/snapshot/diff.h"
#include "daemon/snapshot/internal.h"

struct changes;

/* A question. The caller's until done. */
struct changes_query {
	/* Set by the caller. */
	uint64_t offset_bytes, length_bytes; /* within the snapshot; length >= 1 */
	struct snapshot_extent *extents;     /* room for max >= 1 */
	unsigned max;
	/* error: 0, -EBADMSG or -ENOENT (of a map page), or of the store; why names the object. Possibly
	 * from inside changes_ask(). */
	void (*done)(struct changes_query *query, int error, const char *why);
	/* Filled: they cover the range from its beginning on without a gap, its end only if max allows.
	 * Neighbours differ. */
	unsigned count;
	/* Private. */
	struct changes_query *next;
	uint64_t at;
};

/* What of `now` differs from `then`; then NULL: from zeroes of the same size, so that `changed` is where
 * now has data. Both stay the caller's and outlive it. Beyond the end of then all is changed. */
struct changes *changes_new(struct store *store, const struct manifest *then,
			    const struct manifest *now);
void changes_ask(struct changes *changes, struct changes_query *query);
bool changes_idle(const struct changes *changes); /* no page is being read, no query waits */
/* Queries that wait end with -ECANCELED from inside. freed() (may be NULL), never from inside, when what is
 * being read has come: the manifests are used until then. */
void changes_free(struct changes *changes, void (*freed)(void *context), void *context);
/* How many pages were read, for tests and progress. */
uint64_t changes_pages_read(const struct changes *changes);

#endif
