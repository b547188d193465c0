/* SPDX-License-Identifier: Apache-2.0 */
/* The decision: total, unambiguous, the same seen from both sides; relations of generations. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/replication/decide.h"

static void table_is_total_and_unambiguous(void **state)
{
	for (unsigned a = 0; a < STANDINGS; a++)
		for (unsigned b = 0; b < STANDINGS; b++)
			for (unsigned r = 0; r < RELATIONS; r++)
				if (decide_matches(a, b, r) != 1)
					fail_msg("standings %u %u relation %u: %u rules", a, b, r,
						 decide_matches(a, b, r));
}

static void both_sides_decide_the_same(void **state)
{
	for (unsigned a = 0; a < STANDINGS; a++)
		for (unsigned b = 0; b < STANDINGS; b++)
			for (unsigned r = 0; r < RELATIONS; r++)
				assert_int_equal(decide_verdict(b, a, decide_mirror_relation(r)),
						 decide_mirror(decide_verdict(a, b, r)));
}

/* No verdict overwrites good content of a side that did not ask for it, unless its history says
 * that the other descends from it. */
static void good_content_is_overwritten_by_descendants_only(void **state)
{
	const unsigned from_a = 1u << RELATION_EQUAL | 1u << RELATION_A_AHEAD |
				1u << RELATION_A_FAR | 1u << RELATION_B_BLANK |
				1u << RELATION_BOTH_BLANK;

	for (unsigned a = 0; a < STANDINGS; a++)
		for (unsigned b = 0; b <= STANDING_SECONDARY; b++)
			for (unsigned r = 0; r < RELATIONS; r++) {
				enum verdict v = decide_verdict(a, b, r);
				if (v == VERDICT_FULL_FROM_A || v == VERDICT_CATCH_UP_FROM_A) {
					assert_true(from_a & 1u << r);
					assert_true(a <= STANDING_STARTING);
					assert_int_equal(b, STANDING_SECONDARY);
				}
			}
}

/* Nobody steps down who is in use, or who has anything that the other has not; never both. */
static void only_the_unused_yield_to_what_went_on(void **state)
{
	for (unsigned a = 0; a < STANDINGS; a++)
		for (unsigned b = 0; b < STANDINGS; b++)
			for (unsigned r = 0; r < RELATIONS; r++) {
				if (decide_verdict(a, b, r) != VERDICT_A_YIELDS)
					continue;
				assert_true(a == STANDING_VACANT || a == STANDING_STARTING);
				assert_true(b <= STANDING_STARTING);
				assert_true(r == RELATION_B_AHEAD || r == RELATION_B_FAR ||
					    (r == RELATION_EQUAL && b < a));
			}
}

/* Where both have good content and both histories went on, nothing but an operator's word moves it. */
static void diverged_is_split_brain_until_one_gives_up(void **state)
{
	static const unsigned relations[] = {RELATION_DIVERGED_NEAR, RELATION_DIVERGED_FAR};

	for (unsigned i = 0; i < 2; i++)
		for (unsigned a = 0; a <= STANDING_SECONDARY; a++) {
			for (unsigned b = 0; b <= STANDING_SECONDARY; b++)
				assert_int_equal(decide_verdict(a, b, relations[i]),
						 VERDICT_SPLIT_BRAIN);
			assert_int_equal(decide_verdict(STANDING_DISCARDS, a, relations[i]),
					 i ? VERDICT_FULL_FROM_B : VERDICT_CATCH_UP_FROM_B);
			assert_int_equal(decide_verdict(STANDING_WANTS, a, relations[i]),
					 VERDICT_FULL_FROM_B);
		}
}

static struct id128 id(uint8_t n)
{
	return (struct id128){{n}};
}

static struct hello hello(uint8_t current, uint8_t base, const uint8_t *history)
{
	struct hello h = {.uuid = id(99), .current = id(current), .base = id(base)};

	for (unsigned i = 0; history && i < HELLO_HISTORY && history[i]; i++)
		h.history[i] = id(history[i]);
	return h;
}

static void relations(void **state)
{
	static const struct {
		uint8_t a_current, a_base, a_history[8], b_current, b_base, b_history[8];
		enum relation relation;
	} cases[] = {
		{0, 0, {}, 0, 0, {}, RELATION_BOTH_BLANK},
		{1, 0, {}, 0, 0, {}, RELATION_B_BLANK},
		{1, 0, {}, 1, 0, {}, RELATION_EQUAL},
		{2, 1, {1}, 1, 0, {}, RELATION_A_AHEAD},
		{1, 0, {}, 2, 1, {1}, RELATION_B_AHEAD},
		/* a cut's generation adopted, its acknowledgement lost */
		{4, 1, {3, 2, 1}, 3, 0, {}, RELATION_A_AHEAD},
		/* base fell out of the history */
		{20, 1, {19, 18, 17, 16, 15, 14, 13, 12}, 17, 0, {}, RELATION_A_AHEAD},
		/* an old copy of the disk */
		{4, 3, {3, 2, 1}, 1, 0, {}, RELATION_A_FAR},
		{4, 0, {3, 2, 1}, 1, 0, {}, RELATION_A_FAR},
		{2, 1, {1}, 3, 1, {1}, RELATION_DIVERGED_NEAR},
		/* one took writes of several generations */
		{5, 1, {4, 2, 1}, 3, 1, {1}, RELATION_DIVERGED_NEAR},
		/* a cut's generation adopted, its acknowledgement lost, and both went on */
		{4, 1, {3, 2, 1}, 5, 3, {3}, RELATION_DIVERGED_NEAR},
		/* base fell out of the history, what is common did not */
		{20, 1, {19, 18, 17, 16, 15, 14, 13, 12}, 30, 17, {17}, RELATION_DIVERGED_NEAR},
		/* a map that does not reach back to what is common */
		{2, 0, {1}, 3, 1, {1}, RELATION_DIVERGED_FAR},
		{2, 0, {1}, 3, 0, {1}, RELATION_DIVERGED_FAR},
		{5, 4, {4, 2, 1}, 3, 1, {1}, RELATION_DIVERGED_FAR},
		{2, 3, {}, 3, 2, {}, RELATION_DIVERGED_FAR},
		{2, 1, {1}, 4, 3, {3}, RELATION_UNRELATED},
		{2, 0, {}, 4, 0, {}, RELATION_UNRELATED},
	};

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct hello a = hello(cases[i].a_current, cases[i].a_base, cases[i].a_history);
		struct hello b = hello(cases[i].b_current, cases[i].b_base, cases[i].b_history);
		assert_int_equal(decide_relation(&a, &b), cases[i].relation);
		assert_int_equal(decide_relation(&b, &a),
				 decide_mirror_relation(cases[i].relation));
		struct id128 common = decide_common(&a, &b);
		bool kin = cases[i].relation < RELATION_UNRELATED;
		assert_int_equal(!id128_is_zero(&common), kin);
	}
	struct hello a = hello(1, 0, NULL), b = a;
	b.uuid = id(98);
	assert_int_equal(decide_relation(&a, &b), RELATION_UNRELATED);
}

static void standings(void **state)
{
	for (unsigned i = 0; i < 8u * (HELLO_FLAGS_KNOWN + 1); i++) {
		unsigned role = i & 1, disk = i >> 1 & 3, flags = i >> 3;
		bool wants = flags & HELLO_WANTS;
		enum standing s = decide_standing(role, disk, flags);
		assert_true(s < STANDINGS);
		if (s <= STANDING_SECONDARY) /* a possible source */
			assert_true(disk < 2 && !wants);
		if (s <= STANDING_STARTING)
			assert_int_equal(role, 1);
		if (s == STANDING_DISCARDS) /* its map is believed */
			assert_true(disk < 2 && wants);
	}
	assert_int_equal(decide_standing(1, 2, HELLO_VACANT), STANDING_UNUSABLE);
	assert_int_equal(decide_standing(1, 2, HELLO_WANTS), STANDING_WANTS);
	assert_int_equal(decide_standing(0, 1, HELLO_WANTS), STANDING_DISCARDS);
	assert_int_equal(decide_standing(1, 0, HELLO_VACANT), STANDING_VACANT);
	assert_int_equal(decide_standing(1, 0, HELLO_VACANT | HELLO_STARTING), STANDING_STARTING);
	assert_int_equal(decide_standing(1, 0, HELLO_STARTING), STANDING_PRIMARY);
	assert_int_equal(decide_standing(0, 0, HELLO_VACANT), STANDING_SECONDARY);
}

/* Every policy, every pair of roles, every comparison: both sides name the same loser, never a primary,
 * and only by the policy's own words. */
static void both_sides_name_the_same_loser(void **state)
{
	static const uint8_t history[] = {1, 0};
	static const uint64_t bytes[] = {0, 4096, 8192};
	struct hello a = hello(2, 1, history), b = hello(3, 1, history);

	for (unsigned i = 0; i < AFTER_SB_0PRIS * AFTER_SB_1PRIS * 4 * 9; i++) {
		unsigned rest = i;
		a.after_sb_0pri = b.after_sb_0pri = rest % AFTER_SB_0PRIS, rest /= AFTER_SB_0PRIS;
		a.after_sb_1pri = b.after_sb_1pri = rest % AFTER_SB_1PRIS, rest /= AFTER_SB_1PRIS;
		a.role = rest & 1, b.role = rest >> 1 & 1, rest /= 4;
		a.dirty_bytes = bytes[rest % 3], b.dirty_bytes = bytes[rest / 3];
		enum decide_loser self = decide_split_brain(&a, &b), peer;
		peer = decide_split_brain(&b, &a);
		assert_int_equal(self == DECIDE_SELF, peer == DECIDE_PEER);
		assert_int_equal(self == DECIDE_PEER, peer == DECIDE_SELF);
		const struct hello *loser = self == DECIDE_SELF ? &a : &b;
		const struct hello *winner = self == DECIDE_SELF ? &b : &a;
		unsigned primaries = a.role + b.role;
		bool by_bytes = primaries == 0 || a.after_sb_1pri == AFTER_SB_1PRI_CONSENSUS;
		if (primaries == 2 || (primaries == 1 && !a.after_sb_1pri) ||
		    (by_bytes && !a.after_sb_0pri))
			assert_int_equal(self, DECIDE_NOBODY);
		if (primaries == 1 && a.after_sb_1pri == AFTER_SB_1PRI_DISCARD_SECONDARY)
			assert_int_not_equal(self, DECIDE_NOBODY);
		if (self == DECIDE_NOBODY)
			continue;
		assert_int_equal(loser->role, 0);
		if (by_bytes)
			assert_true(loser->dirty_bytes < winner->dirty_bytes);
		if (by_bytes && a.after_sb_0pri == AFTER_SB_0PRI_DISCARD_ZERO_CHANGES)
			assert_int_equal(loser->dirty_bytes, 0);
	}
	/* a primary without content is nothing to give the only one up for */
	a.role = 1, b.role = 0;
	a.after_sb_1pri = b.after_sb_1pri = AFTER_SB_1PRI_DISCARD_SECONDARY;
	assert_int_equal(decide_split_brain(&a, &b), DECIDE_PEER);
	a.flags = HELLO_LEANS;
	assert_int_equal(decide(&a, &b), VERDICT_SPLIT_BRAIN);
	assert_int_equal(decide_split_brain(&a, &b), DECIDE_NOBODY);
	assert_int_equal(decide_split_brain(&b, &a), DECIDE_NOBODY);
	a.flags = 0;
	/* not where the two do not agree, and not where the maps say nothing */
	a.role = b.role = 0, a.dirty_bytes = 0, b.dirty_bytes = 4096;
	a.after_sb_0pri = b.after_sb_0pri = AFTER_SB_0PRI_DISCARD_LEAST_CHANGES;
	assert_int_equal(decide_split_brain(&a, &b), DECIDE_SELF);
	b.after_sb_0pri = AFTER_SB_0PRI_DISCARD_ZERO_CHANGES;
	assert_int_equal(decide_split_brain(&a, &b), DECIDE_NOBODY);
	b.after_sb_0pri = a.after_sb_0pri;
	b.base = id(0);
	assert_int_equal(decide_split_brain(&a, &b), DECIDE_NOBODY);
}

/* ---- the table as protocol/decision.md prints it ------------------------------------------------ */

static void doc_row(enum standing a, enum standing b, char *text, size_t size)
{
	static const char *const standings_[STANDINGS] = {
		[STANDING_PRIMARY] = "primary",   [STANDING_VACANT] = "vacant",
		[STANDING_STARTING] = "starting", [STANDING_SECONDARY] = "secondary",
		[STANDING_DISCARDS] = "discards", [STANDING_WANTS] = "wants",
		[STANDING_LEANS] = "leans",       [STANDING_INCOMPLETE] = "incomplete",
		[STANDING_UNUSABLE] = "unusable",
	};
	static const char *const marks[VERDICTS] = {
		[VERDICT_CATCH_UP_FROM_A] = "->",
		[VERDICT_CATCH_UP_FROM_B] = "<-",
		[VERDICT_FULL_FROM_A] = "=>",
		[VERDICT_FULL_FROM_B] = "<=",
		[VERDICT_IDLE] = "idle",
		[VERDICT_BOTH_PRIMARY] = "2P",
		[VERDICT_SPLIT_BRAIN] = "SB",
		[VERDICT_A_BEHIND] = "a<",
		[VERDICT_B_BEHIND] = "b<",
		[VERDICT_UNRELATED] = "UN",
		[VERDICT_NO_SOURCE] = "NS",
		[VERDICT_A_YIELDS] = "a yields",
		[VERDICT_B_YIELDS] = "b yields",
		[VERDICT_A_KEEPS] = "a keeps",
		[VERDICT_B_KEEPS] = "b keeps",
		[VERDICT_SERVED_BY_A] = "a serves",
		[VERDICT_SERVED_BY_B] = "b serves",
	};
	int used = snprintf(text, size, "| %s | %s |", standings_[a], standings_[b]);

	for (unsigned r = 0; r < RELATIONS; r++)
		used += snprintf(text + used, size - (size_t)used, " %s |",
				 marks[decide_verdict(a, b, r)]);
}

/* DOCS=1 prints it, to be copied. */
static void the_documented_table_is_this_one(void **state)
{
	FILE *file = fopen("protocol/decision.md", "r");
	char row[512], *text = calloc(1, 1 << 20);

	if (!file) {
		print_message("SKIP: protocol/decision.md is not in the working directory\n");
		free(text);
		skip();
	}
	assert_true(fread(text, 1, (1 << 20) - 1, file) > 0);
	fclose(file);
	for (unsigned a = 0; a < STANDINGS; a++)
		for (unsigned b = a; b < STANDINGS; b++) {
			doc_row(a, b, row, sizeof(row));
			if (getenv("DOCS"))
				puts(row);
			else if (!strstr(text, row))
				fail_msg("protocol/decision.md lacks this row (DOCS=1 prints all): "
					 "%s",
					 row);
		}
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(table_is_total_and_unambiguous),
		cmocka_unit_test(both_sides_decide_the_same),
		cmocka_unit_test(good_content_is_overwritten_by_descendants_only),
		cmocka_unit_test(only_the_unused_yield_to_what_went_on),
		cmocka_unit_test(diverged_is_split_brain_until_one_gives_up),
		cmocka_unit_test(both_sides_name_the_same_loser),
		cmocka_unit_test(the_documented_table_is_this_one),
		cmocka_unit_test(relations),
		cmocka_unit_test(standings),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
