/* SPDX-License-Identifier: Apache-2.0 */
/*
 * check: the promises, checked from outside: on copies of the disks as a power cut would leave them
 * and on copies of the store, in small worlds of their own that nothing else lives in.
 */
#ifndef OFFSITE_TESTS_SIM_CHECK_H
#define OFFSITE_TESTS_SIM_CHECK_H

#include "tests/sim/world.h"

/* Promise 1: the primary's disk, powered off here and now. */
void check_primary(struct world *world);
/* Promise 2 (and 1 for protocol C): the secondary, powered off here and now and started alone. */
void check_secondary(struct world *world);
/* Promise 3, after a start of the primary, before anything else happens: what the secondary or the
 * newest snapshot lacks is marked. */
void check_maps(struct world *world);
/* Promise 3 by the specification, at any time: both nodes powered off here and now. */
void check_maps_on_disk(struct world *world);
/* Promise 4: restores a snapshot (NULL: the newest) from a copy of the store and checks that it is one
 * instant between two ordinals. */
void check_snapshot(struct world *world, const struct id128 *id, uint32_t from, uint32_t to);
/* The primary's disk holds exactly the newest snapshot, which is none that keeps what was given up. */
void check_rolled_back(struct world *world);
/* Every snapshot that the store lists can be restored, but for one that just was. */
void check_all_snapshots(struct world *world, const struct id128 *but);
/* The node is giving up what it changed: the snapshot of that name holds what its disk held before. */
void check_kept(struct world *world, unsigned index, const char *id);
/* Likewise of files beside the volume, whose index lies there: also after a power cut, and nothing is left out. */
void check_kept_files(struct world *world, unsigned index, const char *path);
/* Both disks hold the same. */
void check_equal(struct world *world);
bool check_disks_differ(struct world *world, uint64_t *offset);

#endif
