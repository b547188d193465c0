/* SPDX-License-Identifier: Apache-2.0 */
/*
 * compare: the source's side of a comparison of both nodes' content by hashes. Walks ranges that its
 * owner names, several at a time, and tells for each, in order, which blocks of 4 KiB differ.
 *
 * A range is held in the volume's write order only while it is read here. COMPARE leaves in that very
 * moment, behind all that was streamed before and ahead of all that comes, so the target reads the same
 * point of the order at its own pace: exact under writes, and clients wait for a local read at most.
 * What differs by the hashes of 64 KiB is asked for again by those of 4 KiB. What is a hole on both
 * sides is neither read nor hashed.
 */
#ifndef OFFSITE_REPLICATION_COMPARE_H
#define OFFSITE_REPLICATION_COMPARE_H

#include "daemon/replication/link.h"
#include "daemon/volume/volume.h"

struct compare;

struct compare_range {
	uint64_t offset_bytes, length_bytes; /* of whole blocks of 4 KiB */
	uint64_t differ_bytes;
	const uint64_t *differ; /* bit i: block i of the range differs, or cannot be read */
};
/* The next differing run of a range at or after block *first. False: none. */
bool compare_range_next(const struct compare_range *range, uint64_t *first, uint64_t *count);

struct compare_ops {
	/* The next bytes to compare at or after offset. False: there are none. */
	bool (*next)(void *owner, uint64_t offset, uint64_t *start, uint64_t *length);
	/* In the order of next(), each byte once. False: not now, compare_resume() tells it again. */
	bool (*result)(void *owner, const struct compare_range *range);
	/* All ranges were told. compare_stop() has to follow, possibly from inside. */
	void (*finished)(void *owner);
	/* NULL: always. Whether bytes may be read here now; compare_resume() when they may. What is asked for afterwards is
	 * told by took(). */
	bool (*may_read)(void *owner);
	void (*took)(void *owner, uint64_t bytes);
	/* Nothing is under way any more. Called after compare_stop(). */
	void (*idle)(void *owner);
};

struct compare *compare_new(struct volume *volume); /* NULL without memory */
void compare_free(struct compare *compare);         /* idle and stopped */

/* exact: blocks of 4 KiB everywhere. Otherwise a range of which no chunk is equal counts as
 * different all over without a second look. From offset on, at rate bytes read a second (0: any). */
void compare_start(struct compare *compare, struct link *link, uint64_t offset, bool exact,
		   uint64_t rate, const struct compare_ops *ops, void *owner);
void compare_set_rate(struct compare *compare, uint64_t rate);
void compare_stop(struct compare *compare);
void compare_resume(struct compare *compare);
bool compare_is_running(const struct compare *compare);
bool compare_is_idle(const struct compare *compare);
/* A HASHES frame. NULL, or what is wrong with it. */
const char *compare_hashes(struct compare *compare, const struct frame *frame, const void *payload);

struct compare_status {
	uint64_t compared_bytes, differ_bytes;            /* told so far, since the start */
	uint64_t read_bytes, hashed_bytes, skipped_bytes; /* here; skipped: holes */
};
void compare_get_status(const struct compare *compare, struct compare_status *status);
void compare_check(const struct compare *compare);

#endif
