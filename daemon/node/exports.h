/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exports: what NBD clients may open beside the volumes themselves: snapshots (VOLUME@latest, VOLUME@ID, or a
 * beginning of an id), and maps of what changed since a snapshot, of volumes and of snapshots. A snapshot is
 * opened when the first client asks for it, shared by all that do, and closed a little after the last one went.
 *
 * At most EXPORTS_MAX snapshots are open at a time, and EXPORTS_MAPS_MAX maps.
 */
#ifndef OFFSITE_EXPORTS_H
#define OFFSITE_EXPORTS_H

#include "daemon/block.h"
#include "daemon/node/node.h"

#define EXPORTS_MAX       16u
#define EXPORTS_MAPS_MAX  64u
#define EXPORTS_LINGER_NS 10000000000ull

struct exports;

/* idle() is called whenever nothing is open or under way any more after exports_stop(). */
struct exports *exports_new(struct node *node, void (*idle)(void *context), void *context);
void exports_free(struct exports *exports); /* idle */

/* Nothing new is opened; what waits ends with -ESHUTDOWN. What clients have open yet is closed when they let it
 * go. May be called again. */
void exports_stop(struct exports *exports);
bool exports_idle(const struct exports *exports);

/* A snapshot that is open. */
struct exports_snapshot {
	struct id128 id;
	uint64_t created_ns;
	unsigned clients; /* that have it open; 0: it is closed soon */
};
/* Of a volume; returns how many there are, of which the first max are filled. */
unsigned exports_snapshots(const struct node_volume *volume, struct exports_snapshot *list,
			   unsigned max);

/* As the NBD server wants them. Listed are the volumes, and VOLUME@latest of those that had a snapshot. */
struct block *exports_list(struct exports *exports, unsigned index); /* valid until the next call */
void exports_look_up(struct exports *exports, const char *name, struct block_lookup *lookup);
void exports_release(struct exports *exports, struct block *block);
void exports_map_open(struct exports *exports, struct block *block, const char *name,
		      struct block_map_open *open);
void exports_map_list(struct exports *exports, struct block *block, struct block_map_list *list);

#endif
