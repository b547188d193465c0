/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the exports share: exports.c (snapshots) and export_maps.c (maps of changes). */
#ifndef OFFSITE_EXPORTS_INTERNAL_H
#define OFFSITE_EXPORTS_INTERNAL_H

#include <stdarg.h>
#include <stddef.h>

#include "daemon/node/exports.h"
#include "daemon/snapshot/diff.h"
#include "daemon/snapshot/export.h"

#define exports_of(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

struct exports {
	struct node *node;
	struct env *env;
	struct entry *entries;
	unsigned entry_count;
	struct finding *findings;
	struct map_opening *openings;
	struct map_listing *listings;
	unsigned map_count;
	unsigned under_way; /* all of these together, and maps that are open */
	bool stopping;
	struct block listed; /* what exports_list() told last */
	char listed_name[SNAPSHOT_NAME_MAX + 16];
	struct env_task idle_task;
	void (*idle)(void *context);
	void *context;
};

/* exports.c: counts under_way. */
void exports_begin(struct exports *exports);
void exports_end(struct exports *exports);
/* What a device is of: a snapshot, or (zero) a volume as it is. False: it is none of the node's. */
bool exports_device(const struct exports *exports, const struct block *block,
		    struct node_volume **volume, struct id128 *snapshot);

/* export_maps.c: what waits is answered. */
void exports_stop_maps(struct exports *exports);

#endif
