/* SPDX-License-Identifier: Apache-2.0 */
/*
 * staging: the secondary's redo log as a file. Appends through a ring in memory with one write
 * under way, group sync, emptying, and reading back. Knows the records' form, not their meaning.
 * Format: protocol/staging.h.
 *
 * Positions are byte offsets in the file: synced <= done <= submitted <= end. synced and end are
 * between two records, the others need not be.
 */
#ifndef OFFSITE_REPLICATION_STAGING_H
#define OFFSITE_REPLICATION_STAGING_H

#include "daemon/io/env.h"
#include "protocol/staging.h"

struct staging;

struct staging_ops {
	void (*progress)(void *owner);          /* room, a sync or a fill has come */
	void (*failed)(void *owner, int error); /* once per log: it takes no more */
};

/* Opens the file `staging` in dir. max_bytes: what a log may hold, 0: a tenth of the volume, but 4 GiB at least (a volume
 * of that size or less never has a difference that is larger). On failure -errno and why. */
int staging_open(struct env *env, const char *dir, uint64_t volume_size_bytes, uint64_t max_bytes,
		 const struct staging_ops *ops, void *owner, struct staging **staging, char *why,
		 size_t why_size);
/* Before staging_close(): of what is given back of the file no further step is begun. */
void staging_stop(struct staging *staging);
/* A step is under way. progress() tells its end. */
bool staging_is_shrinking(const struct staging *staging);
/* Nothing may be under way, not even such a step. */
void staging_close(struct staging *staging);
/* No write, sync or fill under way. */
bool staging_is_idle(const struct staging *staging);

/* The volume is bigger now. A log that was begun before stays good. */
void staging_resized(struct staging *staging, uint64_t volume_size_bytes);

/* Begins a new log; what the file held is void. Reserves room for expected bytes. */
int staging_begin(struct staging *staging, const struct id128 *uuid, const struct id128 *generation,
		  const struct id128 *transfer, uint64_t expected_bytes);
/* The log found by staging_recover() takes records again, from where the reader stands. */
void staging_continue(struct staging *staging);
/* Appends RESUME: nothing that stands in the file behind this place shows through any more. */
void staging_mark_resumed(struct staging *staging);
/* Whether a record with such a payload can be appended now; else progress() tells when. */
bool staging_has_room(const struct staging *staging, uint32_t payload_bytes);
uint64_t staging_max_bytes(const struct staging *staging);
/* The log is at its limit: only emptying it helps. */
bool staging_is_full(const struct staging *staging);
void staging_append(struct staging *staging, struct staging_record *record, const void *payload);
/* Asks for everything appended so far to become durable: staging_synced() grows. */
void staging_sync(struct staging *staging);
uint64_t staging_end(const struct staging *staging);
uint64_t staging_written(const struct staging *staging);
uint64_t staging_synced(const struct staging *staging);
uint64_t staging_sequence(const struct staging *staging); /* of the last record appended */
/* Empties the log, durably (blocking). Idle only. Its space is given back afterwards, step by step. */
int staging_reset(struct staging *staging);

/* Looks whether the file holds a log for this volume: 0 and the reader stands at its first record. -ENOENT: it
 * does not; else it cannot be read. generation: the volume's when the log was begun. */
int staging_recover(struct staging *staging, struct id128 *generation, struct id128 *transfer);
/* The reader goes to STAGING_FIRST, or to a place between two records behind the last RESUME;
 * sequence is that of the next one. */
void staging_seek(struct staging *staging, uint64_t position, uint64_t sequence);
#define STAGING_FIRST sizeof(struct staging_header)
/* The next record before limit: 1; 0 at the limit or at the end of what is valid; -EAGAIN: being
 * read, progress() tells; -EIO. The payload stays until the next call. */
int staging_next(struct staging *staging, uint64_t limit, struct staging_record *record,
		 const uint8_t **payload);
uint64_t staging_position(const struct staging *staging); /* of the reader */
uint64_t staging_file_bytes(const struct staging *staging);

#endif
