/* SPDX-License-Identifier: Apache-2.0 */
/*
 * overlap: exclusive locks on byte ranges, granted in the order of their request where they
 * overlap. Each lock counts the earlier ones that overlap it (its blockers); it is granted when the
 * count is zero. So nothing is searched again and no one is overtaken.
 *
 * Most ranges are small: they hang in buckets by 2 MiB region (a range of up to 2 MiB touches at
 * most two). Longer ones ("wide") stand in a list of their own and may shrink from the front while
 * held, which lets others in behind the part that is done.
 */
#ifndef OFFSITE_VOLUME_OVERLAP_H
#define OFFSITE_VOLUME_OVERLAP_H

#include <stdbool.h>
#include <stdint.h>

#define OVERLAP_BUCKETS 512u

struct range_lock;

struct range_node {
	struct range_node *next, **previous;
	struct range_lock *lock;
};

struct range_lock {
	uint64_t start, end; /* [start, end) */
	uint64_t sequence;
	struct range_node node[2];
	struct range_lock *all_next, **all_previous;
	struct range_lock *next; /* in the list of those just granted, or of the wide */
	uint32_t blockers;
	bool held, wide; /* held: in the table, granted or waiting */
};

struct range_table {
	struct range_node *bucket[OVERLAP_BUCKETS];
	struct range_lock *all;
	uint64_t sequence;
	uint32_t wide; /* wide locks in `all` */
};

/* Asks for [start, end). True: granted at once. */
bool range_acquire(struct range_table *table, struct range_lock *lock, uint64_t start,
		   uint64_t end);
/* Gives it back; returns the locks granted by that, linked by next. */
struct range_lock *range_release(struct range_table *table, struct range_lock *lock);
/* A granted wide lock gives up [start, new_start). Likewise. */
struct range_lock *range_shrink(struct range_table *table, struct range_lock *lock,
				uint64_t new_start);
void range_check(const struct range_table *table);

#endif
