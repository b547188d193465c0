/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slabs: memory for what a snapshot keeps until it is put, or a restore until it is used. Having it anew costs more
 * than filling it: it is used again, in large pages as far as the system has them, and all of it goes back at the
 * end, as a daemon has other work then. Loop thread only, but for what lies in a slab.
 */
#ifndef OFFSITE_SNAPSHOT_SLABS_H
#define OFFSITE_SNAPSHOT_SLABS_H

#include <stddef.h>
#include <stdint.h>

#define SLAB_BYTES (2u << 20) /* of those that packs lie in */

struct env;
struct slabs {
	size_t slab_bytes; /* set by the owner, before the first is taken */
	/* Private. */
	uint8_t **spare;
	size_t count, room;
};

uint8_t *slab_take(struct slabs *slabs);
void slab_give(struct slabs *slabs, uint8_t *slab);
/* All were given back: their memory goes back to the system. */
void slabs_free(struct slabs *slabs);
void slabs_end(struct slabs *slabs, struct env *env); /* likewise, by a helper thread */

#endif
