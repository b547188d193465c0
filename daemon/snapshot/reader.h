/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reader: a snapshot's content read at random, straight out of the store. The manifest is loaded when it
 * is opened; map pages and content when they are asked for, and the last used of both are kept, up to
 * limits. Every byte was checked against its chunk's hash before it is handed out. What several reads want
 * is fetched once; chunks that lie behind each other in a pack are fetched with one request.
 */
#ifndef OFFSITE_SNAPSHOT_READER_H
#define OFFSITE_SNAPSHOT_READER_H

#include "daemon/snapshot/snapshot.h"

struct snapshot_reader;

struct snapshot_reader_config {
	uint64_t
		sequence; /* of the snapshot, as in its info: it need not be looked for. 0: unknown */
	bool probe_archive; /* where a service has archives, first ask for two packs, the oldest and the
			       largest; if one is archived, make sure that all it needs is in the store
			       (-EBADMSG: not so) and can be read (-STORE_ARCHIVED: not now; it was asked
			       for) */
	unsigned cache_pages; /* map pages kept, about 100 KiB each; 0: 16 */
	uint64_t cache_bytes; /* content kept; 0: 16 MiB */
	unsigned fetches_max; /* requests for content under way; 0: 8 */
};

/* Opens snapshot id (NULL: the newest). config may be NULL. done: the reader; or NULL, -errno (-ENOENT: no
 * such snapshot) and one line that names the object and the reason. The repo outlives the reader. */
void snapshot_reader_open(struct snapshot_repo *repo, const struct id128 *id,
			  const struct snapshot_reader_config *config,
			  void (*done)(void *context, struct snapshot_reader *reader, int error,
				       const char *why),
			  void *context);

/* Reads that are under way end with -ECANCELED. closed(), possibly from inside the call, when nothing of it is
 * under way in the store any more. */
void snapshot_reader_close(struct snapshot_reader *reader, void (*closed)(void *context),
			   void *context);

/* Valid until it is closed. */
const struct snapshot_info *snapshot_reader_info(const struct snapshot_reader *reader);

/* Reads [offset, offset + length), any alignment, at most BUF_SIZE_MAX bytes, into data, which is the
 * caller's and untouched by others until op->done(). Beyond the snapshot's end there are zeroes. Result: length,
 * or -EBADMSG (damaged), -ENOENT (an object is missing), or an error of the store; see
 * snapshot_reader_why(). Such a read may be asked for again. Several may be under way. */
void snapshot_reader_read(struct snapshot_reader *reader, struct env_op *op, void *data,
			  uint32_t length, uint64_t offset);

/* The last failure in one line: object and reason; "" if there was none. */
const char *snapshot_reader_why(const struct snapshot_reader *reader);

/* The first run at or after offset that may hold anything but zeroes; false: there is none. Looks at the
 * manifest and at map pages that are in memory, never at the store: else a run is as large as a map page
 * (64 MiB). */
bool snapshot_reader_next_data(const struct snapshot_reader *reader, uint64_t offset,
			       uint64_t *start, uint64_t *end);

struct snapshot_reader_stats {
	uint64_t requests;      /* for map pages and content */
	uint64_t fetched_bytes; /* content, unpacked */
	uint64_t hit_bytes;     /* handed out without a request of their own */
};
void snapshot_reader_stats(const struct snapshot_reader *reader,
			   struct snapshot_reader_stats *stats);

void snapshot_reader_check(const struct snapshot_reader *reader); /* invariants */

#endif
