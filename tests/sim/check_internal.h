/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the checks know of each other. */
#ifndef OFFSITE_TESTS_SIM_CHECK_INTERNAL_H
#define OFFSITE_TESTS_SIM_CHECK_INTERNAL_H

#include "tests/sim/check.h"

/* Power cuts, as a rule. */
enum sim_crash check_power_cut(struct world *world);
/* By the volume's own word. */
bool check_marked(struct volume *volume, enum volume_consumer consumer, uint64_t offset);
/* NULL: zeroes. */
bool check_pages_equal(const uint8_t *a, const uint8_t *b, size_t length);
/* A page of both, as in 4096 bytes at that offset. */
bool check_blocks_equal(const struct inode *a, const struct inode *b, uint64_t at);
/* Promise 4 by the specification: the snapshot as it lies in the world's store, not encrypted. */
void check_snapshot_by_spec(struct world *world, const uint8_t volume[16],
			    const uint8_t snapshot[16], uint32_t from, uint32_t to);

#endif
