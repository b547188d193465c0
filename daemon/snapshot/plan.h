/* SPDX-License-Identifier: Apache-2.0 */
/* plan: what a restore of a snapshot will take, before it begins. */
#ifndef OFFSITE_SNAPSHOT_PLAN_H
#define OFFSITE_SNAPSHOT_PLAN_H

#include "daemon/snapshot/snapshot.h"

#define PLAN_PAGES 4096u /* of 64 MiB of the volume each */

struct snapshot_plan {
	struct snapshot_info info;
	uint64_t fetch_bytes; /* out of the store: map pages, chunks as they are stored */
	bool at_most; /* the target may have some of it: that is neither fetched nor written */
	bool differing_known; /* where the volume may differ from the snapshot, and in how much */
	uint64_t differing_bytes;
	uint64_t write_bytes; /* at most: chunks that are not zero, or differing_bytes */
	/* A list that comes in several pages, and what is tried again, is one. */
	uint64_t requests;
	bool exact; /* the maps were read: requests and fetch_bytes are what they will be; else about */
	uint64_t
		estimate_ns; /* about: from one request for content that was timed; 0: nothing to fetch */
	/* Of its objects lie in an archive, or lay there (what was brought back is still listed so); and how long
	 * that takes as a rule, on top of estimate_ns. */
	uint64_t archived_objects, archive_ns;
};

/* Onto what. */
struct snapshot_plan_target {
	bool holds_something; /* which is compared with the snapshot by hashes: what that finds is not known */
	struct volume *volume; /* or NULL. Its dirty map may tell; until done */
	bool exact;   /* a new file: its map pages are read, too, up to PLAN_PAGES of them */
	bool at_once; /* nothing is listed but snapshots, and hardly a map page read */
};

/* Of snapshot id (NULL: the newest). Reads its manifest, up to 1 MiB of a pack to see how fast the store
 * is, and map pages where a dirty map marks something, if they are few. target may be NULL: a new file. done: plan
 * is NULL on error. */
void snapshot_plan(struct snapshot_repo *repo, const struct id128 *id,
		   const struct snapshot_plan_target *target,
		   void (*done)(void *context, const struct snapshot_plan *plan, int error,
				const char *why),
		   void *context);

#endif
