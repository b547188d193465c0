// SPDX-License-Identifier: Apache-2.0
#include "daemon/volume/overlap.h"

#include <assert.h>
#include <stddef.h>

#define REGION_SHIFT 21
#define SMALL_MAX    (1ull << REGION_SHIFT)

static unsigned bucket_of(uint64_t region)
{
	return (unsigned)(region * 0x9e3779b97f4a7c15ull >> 55) % OVERLAP_BUCKETS;
}

static bool overlaps(const struct range_lock *a, uint64_t start, uint64_t end)
{
	return a->start < end && start < a->end;
}

/* Calls for every lock but `self` that overlaps [start, end). Two small ranges may share two
 * regions: they meet in the first they share. */
typedef void (*visit_fn)(struct range_lock *other, void *context);

static void visit(const struct range_table *table, const struct range_lock *self, uint64_t start,
		  uint64_t end, visit_fn call, void *context)
{
	if (self->wide) {
		for (struct range_lock *l = table->all; l != NULL; l = l->all_next)
			if (l != self && overlaps(l, start, end))
				call(l, context);
		return;
	}
	for (uint64_t region = start >> REGION_SHIFT; region <= (end - 1) >> REGION_SHIFT;
	     region++) {
		for (const struct range_node *n = table->bucket[bucket_of(region)]; n != NULL;
		     n = n->next) {
			struct range_lock *l = n->lock;
			uint64_t first = l->start > start ? l->start : start;
			uint64_t own = (n == &l->node[0] ? l->start : l->end - 1) >> REGION_SHIFT;

			if (l != self && own == region && first >> REGION_SHIFT == region &&
			    overlaps(l, start, end))
				call(l, context);
		}
	}
	if (table->wide > 0)
		for (struct range_lock *l = table->all; l != NULL; l = l->all_next)
			if (l->wide && l != self && overlaps(l, start, end))
				call(l, context);
}

static void hang(struct range_table *table, struct range_lock *lock, unsigned which,
		 uint64_t region)
{
	struct range_node *node = &lock->node[which];
	struct range_node **head = &table->bucket[bucket_of(region)];

	node->lock = lock;
	node->next = *head;
	node->previous = head;
	if (*head != NULL)
		(*head)->previous = &node->next;
	*head = node;
}

static void unhang(struct range_node *node)
{
	if (node->previous == NULL)
		return;
	*node->previous = node->next;
	if (node->next != NULL)
		node->next->previous = node->previous;
	node->previous = NULL;
}

static void count_blocker(struct range_lock *other, void *context)
{
	(void)other;
	++*(uint32_t *)context;
}

bool range_acquire(struct range_table *table, struct range_lock *lock, uint64_t start, uint64_t end)
{
	assert(start < end && !lock->held);
	lock->start = start;
	lock->end = end;
	lock->sequence = ++table->sequence;
	lock->wide = end - start > SMALL_MAX;
	lock->blockers = 0;
	lock->held = true;
	lock->next = NULL;
	lock->node[0].previous = lock->node[1].previous = NULL;
	visit(table, lock, start, end, count_blocker, &lock->blockers);
	if (lock->wide) {
		table->wide++;
	} else {
		uint64_t first = start >> REGION_SHIFT, last = (end - 1) >> REGION_SHIFT;

		hang(table, lock, 0, first);
		if (last != first)
			hang(table, lock, 1, last);
	}
	lock->all_next = table->all;
	lock->all_previous = &table->all;
	if (table->all != NULL)
		table->all->all_previous = &lock->all_next;
	table->all = lock;
	return lock->blockers == 0;
}

struct leaving {
	const struct range_lock *lock;
	uint64_t keep_start; /* what overlaps from here on stays blocked */
	struct range_lock *granted, **tail;
};

static void unblock(struct range_lock *other, void *context)
{
	struct leaving *leaving = context;

	if (other->sequence < leaving->lock->sequence || other->end > leaving->keep_start)
		return;
	assert(other->blockers > 0);
	if (--other->blockers > 0)
		return;
	other->next = NULL;
	*leaving->tail = other;
	leaving->tail = &other->next;
}

/* In the order of their requests: the buckets hold the newest first. */
static struct range_lock *in_order(struct range_lock *list)
{
	struct range_lock *sorted = NULL;

	while (list != NULL) {
		struct range_lock *lock = list, **p = &sorted;

		list = lock->next;
		while (*p != NULL && (*p)->sequence < lock->sequence)
			p = &(*p)->next;
		lock->next = *p;
		*p = lock;
	}
	return sorted;
}

struct range_lock *range_release(struct range_table *table, struct range_lock *lock)
{
	struct leaving leaving = {.lock = lock, .keep_start = UINT64_MAX};

	assert(lock->held);
	leaving.tail = &leaving.granted;
	visit(table, lock, lock->start, lock->end, unblock, &leaving);
	unhang(&lock->node[0]);
	unhang(&lock->node[1]);
	*lock->all_previous = lock->all_next;
	if (lock->all_next != NULL)
		lock->all_next->all_previous = lock->all_previous;
	if (lock->wide)
		table->wide--;
	lock->held = false;
	return in_order(leaving.granted);
}

struct range_lock *range_shrink(struct range_table *table, struct range_lock *lock,
				uint64_t new_start)
{
	struct leaving leaving = {.lock = lock, .keep_start = new_start};

	assert(lock->held && lock->wide && lock->blockers == 0);
	assert(new_start > lock->start && new_start < lock->end);
	leaving.tail = &leaving.granted;
	visit(table, lock, lock->start, new_start, unblock, &leaving);
	lock->start = new_start;
	return in_order(leaving.granted);
}

void range_check(const struct range_table *table)
{
	uint32_t wide = 0;

	for (const struct range_lock *a = table->all; a != NULL; a = a->all_next) {
		uint32_t blockers = 0;

		assert(a->held);
		wide += a->wide;
		for (const struct range_lock *b = table->all; b != NULL; b = b->all_next)
			blockers += b->sequence < a->sequence && overlaps(b, a->start, a->end);
		assert(blockers == a->blockers);
	}
	assert(wide == table->wide);
}
