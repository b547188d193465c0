// SPDX-License-Identifier: Apache-2.0
/* Dirty maps and range locks against plain models, with random operations. SEED=n replays. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "daemon/volume/dirty.h"
#include "daemon/volume/overlap.h"

static uint64_t random_state;

static uint64_t rnd(uint64_t limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state * 0x2545f4914f6cdd1dull % limit;
}

static uint64_t model_next(const uint8_t *model, uint64_t from, uint64_t blocks, uint8_t value)
{
	while (from < blocks && model[from] != value)
		from++;
	return from;
}

/* As from a stored page, whose last word may have more bits than there are blocks. */
static void set_words(struct dirty_map *map, uint8_t *model, uint64_t blocks)
{
	uint64_t words[8], all = (blocks + 63) / 64, first = rnd(all);
	uint64_t count = 1 + rnd(all - first < 8 ? all - first : 8);

	for (uint64_t i = 0; i < count; i++) {
		words[i] = rnd(3) == 0 ? rnd(UINT64_MAX) : rnd(2) ? UINT64_MAX : 0;
		for (uint64_t b = (first + i) * 64; b < (first + i + 1) * 64 && b < blocks; b++)
			model[b] |= words[i] >> (b % 64) & 1;
	}
	dirty_set_words(map, first * 64, words, count);
}

static void dirty_map_follows_a_model(void **state)
{
	(void)state;
	for (unsigned run = 0; run < 60; run++) {
		uint64_t blocks = 1 + rnd(run % 3 == 0 ? 300000 : 9000);
		struct dirty_map map, other;
		uint8_t *model = calloc(1, blocks), *second = calloc(1, blocks);

		assert_true(dirty_init(&map, blocks) && dirty_init(&other, blocks));
		for (unsigned i = 0; i < 60; i++) {
			uint64_t first = rnd(blocks), fresh = 0, both = 0, overlap = 0;
			uint64_t count =
				1 + rnd(rnd(8) == 0 ? blocks - first
						    : (blocks - first < 70 ? blocks - first : 70));

			if (rnd(16) == 0)
				set_words(&map, model, blocks);
			if (rnd(3) == 0) {
				dirty_set(&other, first, count, NULL, NULL);
				memset(second + first, 1, count);
				continue;
			}
			for (uint64_t b = first; b < first + count; b++) {
				fresh += !model[b];
				both += !model[b] && second[b];
			}
			memset(model + first, 1, count);
			assert_int_equal(dirty_set(&map, first, count, &other, &overlap), fresh);
			assert_int_equal(overlap, both);
			for (unsigned k = 0; k < 20; k++) {
				uint64_t from = rnd(blocks), found = dirty_next(&map, from);
				uint64_t expect = model_next(model, from, blocks, 1);

				assert_int_equal(found, expect == blocks ? DIRTY_NONE : expect);
				assert_int_equal(dirty_next_clear(&map, from, blocks),
						 model_next(model, from, blocks, 0));
			}
			if (rnd(40) == 0) {
				dirty_clear_all(&map);
				memset(model, 0, blocks);
			}
		}
		dirty_merge(&map, &other);
		for (uint64_t b = 0; b < blocks; b++)
			assert_int_equal(dirty_test(&map, b), model[b] | second[b]);
		dirty_check(&map);
		dirty_check(&other);
		assert_int_equal(dirty_next(&map, blocks), DIRTY_NONE);
		dirty_clear_all(&map);
		assert_int_equal(dirty_next(&map, 0), DIRTY_NONE);
		dirty_check(&map);
		dirty_free(&map);
		dirty_free(&other);
		free(model);
		free(second);
	}
}

/* Never two granted locks that overlap, and in the order of their request where they do. */
static void locks_exclude_and_keep_order(void **state)
{
	enum { LOCKS = 64 };
	struct range_table *table = calloc(1, sizeof(*table));
	struct range_lock *locks = calloc(LOCKS, sizeof(*locks));
	unsigned granted = 0;

	(void)state;
	for (unsigned i = 0; i < 40000; i++) {
		struct range_lock *lock = &locks[rnd(LOCKS)], *list = NULL;

		if (!lock->held) {
			uint64_t start = rnd(64) << 18 | rnd(4096) << 6;
			uint64_t length = rnd(30) == 0 ? 1 + rnd(40u << 20) : 1 + rnd(300000);

			range_acquire(table, lock, start, start + length);
		} else if (lock->blockers == 0) {
			if (lock->wide && lock->end - lock->start > 1 && rnd(3) != 0)
				list = range_shrink(table, lock,
						    lock->start + 1 +
							    rnd(lock->end - lock->start - 1));
			else
				list = range_release(table, lock);
		}
		for (; list != NULL; list = list->next) {
			assert_int_equal(list->blockers, 0);
			assert_true(list->next == NULL || list->next->sequence > list->sequence);
			granted++;
		}
		if (i % 16 == 0)
			range_check(table);
	}
	assert_true(granted > 1000);
	for (bool any = true; any;) {
		any = false;
		for (unsigned i = 0; i < LOCKS; i++)
			if (locks[i].held && locks[i].blockers == 0) {
				range_release(table, &locks[i]);
				any = true;
			}
	}
	for (unsigned i = 0; i < LOCKS; i++)
		assert_false(locks[i].held);
	free(locks);
	free(table);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(dirty_map_follows_a_model),
		cmocka_unit_test(locks_exclude_and_keep_order),
	};

	random_state = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) | 1 : 4711;
	printf("SEED=%llu\n", (unsigned long long)random_state);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
