/* SPDX-License-Identifier: Apache-2.0 */
/*
 * origin: a snapshot as the origin of a volume's content, for a restore that is used before it is whole
 * (volume_hydrate_from()). A store that does not answer is asked again and again; what is damaged or missing
 * there is an error at once.
 */
#ifndef OFFSITE_SNAPSHOT_ORIGIN_H
#define OFFSITE_SNAPSHOT_ORIGIN_H

#include "daemon/snapshot/reader.h"

struct snapshot_origin;

struct snapshot_origin_config {
	struct id128 id;    /* zero: the newest */
	uint64_t sequence;  /* 0: unknown */
	bool probe_archive; /* see snapshot_reader_config */
	uint64_t wait_ns; /* how long a read waits for a store that does not answer; 0: for ever */
};

/* over() is called as volume_origin.over. done: the origin; or NULL, -errno and why. The repo outlives it. */
void snapshot_origin_open(struct snapshot_repo *repo, const struct snapshot_origin_config *config,
			  void (*over)(void *context, bool filled),
			  void (*done)(void *context, struct snapshot_origin *origin, int error,
				       const char *why),
			  void *context);
struct volume_origin *snapshot_origin_of_volume(struct snapshot_origin *origin);
const struct snapshot_info *snapshot_origin_info(const struct snapshot_origin *origin);
/* What the store's trouble is, as of the last answer; "": none. */
const char *snapshot_origin_trouble(const struct snapshot_origin *origin);
/* Whether all that the snapshot needs is in the store (-EBADMSG: not so) and can be read (-STORE_ARCHIVED: not
 * now; it was asked for). Lists packs and maps; reads go on beside it. One at a time. */
void snapshot_origin_check(struct snapshot_origin *origin,
			   void (*done)(void *context, int error, const char *why), void *context);
/* Done is not called any more of what is being checked. The volume asks nothing of it any more; what it asked ends with -ENOTCONN. closed() possibly from inside. */
void snapshot_origin_close(struct snapshot_origin *origin, void (*closed)(void *context),
			   void *context);

#endif
