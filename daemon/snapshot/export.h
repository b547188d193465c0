/* SPDX-License-Identifier: Apache-2.0 */
/*
 * snapshot_export: a snapshot as a block device, read-only, without restoring it. The manifest is read when it
 * is opened; maps and content as they are asked for, each chunk checked by its hash before a byte of it goes to
 * a client. What was read last is kept, up to a limit, for all its clients together.
 */
#ifndef OFFSITE_SNAPSHOT_EXPORT_H
#define OFFSITE_SNAPSHOT_EXPORT_H

#include "daemon/block.h"
#include "daemon/snapshot/snapshot.h"

struct snapshot_export;

/* found: id and sequence, as of snapshot_find(). volume_name: for the export's name, NAME@ID. The snapshot
 * is held (snapshot_hold()) while it is kept; the repo outlives it. done: export; or NULL, -errno and why. */
void snapshot_export_open(struct snapshot_repo *repo, const char *volume_name,
			  const struct snapshot_info *found,
			  void (*done)(void *context, struct snapshot_export *export, int error,
				       const char *why),
			  void *context);

/* Its device. latest: the one for clients that asked for the newest snapshot, which may be another one when
 * they connect again: no several connections for one client then (can_multi_conn). */
struct block *snapshot_export_block(struct snapshot_export *export, bool latest);
const struct snapshot_info *snapshot_export_info(const struct snapshot_export *export);
unsigned snapshot_export_clients(const struct snapshot_export *export);

/* From its opening on it is kept: nothing deletes the snapshot. Nobody uses it now (false): it may be deleted.
 * Again (true): false if it was. */
bool snapshot_export_keep(struct snapshot_export *export, bool keep);

/* Reads and questions under way fail with -ESHUTDOWN, and so does what is asked later; for a stop, while
 * clients have it open yet. */
void snapshot_export_stop(struct snapshot_export *export);
/* No client has it open, nothing is under way at the devices. closed(), possibly from inside, when nothing is
 * under way in the store any more. */
void snapshot_export_close(struct snapshot_export *export, void (*closed)(void *context),
			   void *context);

#endif
