/* SPDX-License-Identifier: Apache-2.0 */
/*
 * diff: what changed between two snapshots, and since one until now. By chunks (64 KiB), and never too
 * little: what is not in it is equal. What it costs follows the difference, not the size.
 */
#ifndef OFFSITE_SNAPSHOT_DIFF_H
#define OFFSITE_SNAPSHOT_DIFF_H

#include "daemon/snapshot/snapshot.h"

struct snapshot_extent {
	uint64_t offset_bytes, length_bytes;
	bool changed;
	bool zero; /* changed, and all of it reads as zeroes now */
};

/* The snapshot that a person calls text: "latest", an id, or a beginning of one that no other has. found
 * has id and sequence only. -ENOENT, -EINVAL (ambiguous), or of the store. */
void snapshot_find(struct snapshot_repo *repo, const char *text,
		   void (*done)(void *context, const struct snapshot_info *found, int error,
				const char *why),
		   void *context);

/* Which there are, newest first, at most max of them; each has id and sequence only. */
void snapshot_ids(struct snapshot_repo *repo, unsigned max,
		  void (*done)(void *context, const struct snapshot_info *found, unsigned count,
			       int error, const char *why),
		  void *context);

/* ---- two snapshots, or one and the volume ------------------------------------------------------- */

struct snapshot_diff;

struct snapshot_diff_ends {
	struct snapshot_info from, to; /* to a volume as it is: id zero */
	uint64_t size_bytes;           /* of what it goes to */
};

/* Whether the volume's own map says what changed since the snapshot it is relative to: it is primary, had one,
 * and nothing but what is marked has changed it. */
bool snapshot_diff_knows(const struct volume *volume);

/* Opens the difference from snapshot `from` to snapshot `to`. Both are kept from being deleted by this
 * process (snapshot_hold()) until it is closed. volume NULL, or: to is NULL, and it goes to what the volume
 * holds now: snapshot_diff_knows() it, or questions fail (-EPERM). done: diff, or NULL, error and why. */
void snapshot_diff_open(struct snapshot_repo *repo, const struct id128 *from,
			const struct id128 *to, struct volume *volume,
			void (*done)(void *context, struct snapshot_diff *diff, int error,
				     const char *why),
			void *context);
/* Questions under way end before closed(), some from inside, with -ECANCELED or an answer. closed() (may be
 * NULL) when nothing is under way in the store any more, never from inside. The volume is used until then. */
void snapshot_diff_close(struct snapshot_diff *diff, void (*closed)(void *context), void *context);
const struct snapshot_diff_ends *snapshot_diff_ends(const struct snapshot_diff *diff);

/* One question. The caller's until done. */
struct snapshot_diff_ask {
	uint64_t offset_bytes, length_bytes; /* within size_bytes; length >= 1 */
	struct snapshot_extent *extents;     /* room for max >= 1 */
	unsigned max;
	/* Possibly from inside. 0, or -errno and why: of the store, -EBADMSG or -ENOENT. */
	void (*done)(struct snapshot_diff_ask *ask, int error, const char *why);
	unsigned count; /* filled; without a gap from the offset on, as far as max allows */
	uint64_t priv[14];
};
void snapshot_diff_ask(struct snapshot_diff *diff, struct snapshot_diff_ask *ask);

#endif
