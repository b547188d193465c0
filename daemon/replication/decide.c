/* SPDX-License-Identifier: Apache-2.0 */
/* The decision tables. See decide.h. */
#include "daemon/replication/decide.h"

#include <assert.h>

enum { UPTODATE, OUTDATED, INCONSISTENT, FAILED, DISKLESS, DISKS }; /* hello.disk */

enum standing decide_standing(unsigned role, unsigned disk, unsigned flags)
{
	/* A primary that is inconsistent without wanting the peer's content is being restored from
	 * elsewhere (a snapshot): it must be left alone. */
	static const enum standing table[2][DISKS] = {
		{STANDING_SECONDARY, STANDING_SECONDARY, STANDING_INCOMPLETE, STANDING_UNUSABLE,
		 STANDING_UNUSABLE},
		{STANDING_PRIMARY, STANDING_PRIMARY, STANDING_UNUSABLE, STANDING_UNUSABLE,
		 STANDING_UNUSABLE},
	};
	/* A mixture's map says nothing. Good content that is given up is what its map says it is. */
	static const enum standing giving_up[DISKS] = {STANDING_DISCARDS, STANDING_DISCARDS,
						       STANDING_WANTS, STANDING_UNUSABLE,
						       STANDING_UNUSABLE};

	assert(role < 2 && disk < DISKS);
	if (flags & HELLO_WANTS)
		return giving_up[disk];
	if (flags & HELLO_VACANT && table[role][disk] == STANDING_PRIMARY)
		return flags & HELLO_STARTING ? STANDING_STARTING : STANDING_VACANT;
	return table[role][disk];
}

/* Place of id in history, or -1. */
static int history_index(const struct hello *hello, const struct id128 *id)
{
	for (int i = 0; i < HELLO_HISTORY; i++)
		if (id128_equal(&hello->history[i], id))
			return i;
	return -1;
}

enum descent { NONE, COVERED, FAR };

/* Whether the younger one's content descends from generation, and whether its dirty map, which
 * is relative to its base, covers the way. Bumps between base and current stand in the history
 * before base; a base that fell out of the history is older than all of it. */
static enum descent descent(const struct hello *younger, const struct id128 *generation)
{
	if (id128_is_zero(generation))
		return NONE;
	if (id128_equal(&younger->base, generation))
		return COVERED;
	int at = history_index(younger, generation);
	if (at < 0)
		return NONE;
	if (id128_is_zero(&younger->base))
		return FAR;
	int base = history_index(younger, &younger->base);
	return base < 0 || at < base ? COVERED : FAR;
}

/* Whether both descend from generation, and both maps reach back to it. */
static bool both_cover(const struct hello *a, const struct hello *b, const struct id128 *generation)
{
	return descent(a, generation) == COVERED && descent(b, generation) == COVERED;
}

static enum relation diverged(const struct hello *a, const struct hello *b)
{
	if (both_cover(a, b, &a->base) || both_cover(a, b, &b->base))
		return RELATION_DIVERGED_NEAR;
	for (int i = 0; i < HELLO_HISTORY; i++)
		if (both_cover(a, b, &a->history[i]))
			return RELATION_DIVERGED_NEAR;
	return RELATION_DIVERGED_FAR;
}

struct id128 decide_common(const struct hello *a, const struct hello *b)
{
	const struct id128 *youngest[] = {&a->current, &b->current};

	for (unsigned i = 0; i < 2; i++)
		if (descent(i ? a : b, youngest[i]) != NONE ||
		    id128_equal(&a->current, &b->current))
			return *youngest[i];
	for (int i = 0; i < HELLO_HISTORY; i++)
		if (descent(b, &a->history[i]) != NONE)
			return a->history[i];
	if (descent(b, &a->base) != NONE)
		return a->base;
	if (descent(a, &b->base) != NONE)
		return b->base;
	return (struct id128){};
}

enum relation decide_relation(const struct hello *a, const struct hello *b)
{
	bool a_blank = id128_is_zero(&a->current), b_blank = id128_is_zero(&b->current);

	if (a_blank || b_blank)
		return a_blank && b_blank ? RELATION_BOTH_BLANK
		       : a_blank          ? RELATION_A_BLANK
					  : RELATION_B_BLANK;
	if (!id128_equal(&a->uuid, &b->uuid))
		return RELATION_UNRELATED;
	if (id128_equal(&a->current, &b->current))
		return RELATION_EQUAL;
	enum descent a_from_b = descent(a, &b->current), b_from_a = descent(b, &a->current);
	if (a_from_b != NONE && b_from_a != NONE)
		return RELATION_DIVERGED_FAR;
	if (a_from_b != NONE)
		return a_from_b == COVERED ? RELATION_A_AHEAD : RELATION_A_FAR;
	if (b_from_a != NONE)
		return b_from_a == COVERED ? RELATION_B_AHEAD : RELATION_B_FAR;
	struct id128 common = decide_common(a, b);
	return id128_is_zero(&common) ? RELATION_UNRELATED : diverged(a, b);
}

#define S(x)         (1u << STANDING_##x)
#define R(x)         (1u << RELATION_##x)
#define ANY_STANDING ((1u << STANDINGS) - 1)
#define ANY_RELATION ((1u << RELATIONS) - 1)
#define UNUSED       (S(VACANT) | S(STARTING))
#define ANY_PRIMARY  (S(PRIMARY) | UNUSED)
#define GOOD         (ANY_PRIMARY | S(SECONDARY))
#define GIVES_UP     (S(DISCARDS) | S(WANTS))
#define DIVERGED     (R(DIVERGED_NEAR) | R(DIVERGED_FAR))
#define NEAR         (R(EQUAL) | R(A_AHEAD) | R(B_AHEAD) | R(DIVERGED_NEAR))
#define NO_KIN       (R(UNRELATED) | R(A_BLANK) | R(B_BLANK) | R(BOTH_BLANK))
#define USABLE       (ANY_STANDING & ~S(UNUSABLE))
#define HAS_A        (ANY_RELATION & ~(R(A_BLANK) | R(BOTH_BLANK)))
#define HAS_B        (ANY_RELATION & ~(R(B_BLANK) | R(BOTH_BLANK)))

/* Every combination matches exactly one row. */
static const struct {
	unsigned a, b, relation;
	enum verdict verdict;
} rules[] = {
	{S(UNUSABLE), ANY_STANDING, ANY_RELATION, VERDICT_IDLE},
	{USABLE, S(UNUSABLE), ANY_RELATION, VERDICT_IDLE},

	/* Two primaries. One that nobody uses gives way to one that went on from it. */
	{UNUSED, ANY_PRIMARY, R(B_AHEAD) | R(B_FAR), VERDICT_A_YIELDS},
	{UNUSED, S(PRIMARY), R(EQUAL), VERDICT_A_YIELDS},
	{S(STARTING), S(VACANT), R(EQUAL), VERDICT_A_YIELDS},
	{ANY_PRIMARY, UNUSED, R(A_AHEAD) | R(A_FAR), VERDICT_B_YIELDS},
	{S(PRIMARY), UNUSED, R(EQUAL), VERDICT_B_YIELDS},
	{S(VACANT), S(STARTING), R(EQUAL), VERDICT_B_YIELDS},
	{S(VACANT), S(VACANT), R(EQUAL), VERDICT_BOTH_PRIMARY},
	{S(STARTING), S(STARTING), R(EQUAL), VERDICT_BOTH_PRIMARY},
	{UNUSED, S(PRIMARY), R(A_AHEAD) | R(A_FAR), VERDICT_BOTH_PRIMARY},
	{S(PRIMARY), UNUSED, R(B_AHEAD) | R(B_FAR), VERDICT_BOTH_PRIMARY},
	{UNUSED, ANY_PRIMARY, NO_KIN, VERDICT_BOTH_PRIMARY},
	{S(PRIMARY), UNUSED, NO_KIN, VERDICT_BOTH_PRIMARY},
	{S(PRIMARY), S(PRIMARY), ANY_RELATION & ~DIVERGED, VERDICT_BOTH_PRIMARY},
	{GOOD, GOOD, DIVERGED, VERDICT_SPLIT_BRAIN},
	{S(SECONDARY), S(SECONDARY), ANY_RELATION & ~DIVERGED, VERDICT_IDLE},

	{ANY_PRIMARY, S(SECONDARY), R(EQUAL) | R(A_AHEAD), VERDICT_CATCH_UP_FROM_A},
	{ANY_PRIMARY, S(SECONDARY), R(A_FAR) | R(B_BLANK) | R(BOTH_BLANK), VERDICT_FULL_FROM_A},
	{ANY_PRIMARY, S(SECONDARY), R(B_AHEAD) | R(B_FAR), VERDICT_A_BEHIND},
	{ANY_PRIMARY, S(SECONDARY), R(UNRELATED) | R(A_BLANK), VERDICT_UNRELATED},

	{S(SECONDARY), ANY_PRIMARY, R(EQUAL) | R(B_AHEAD), VERDICT_CATCH_UP_FROM_B},
	{S(SECONDARY), ANY_PRIMARY, R(B_FAR) | R(A_BLANK) | R(BOTH_BLANK), VERDICT_FULL_FROM_B},
	{S(SECONDARY), ANY_PRIMARY, R(A_AHEAD) | R(A_FAR), VERDICT_B_BEHIND},
	{S(SECONDARY), ANY_PRIMARY, R(UNRELATED) | R(B_BLANK), VERDICT_UNRELATED},

	/* An incomplete side has nothing of its own to lose. But a primary that is blank may be one
	 * whose disk was replaced: its emptiness is not spread over what is left of the data. */
	{ANY_PRIMARY, S(INCOMPLETE), HAS_A | R(BOTH_BLANK), VERDICT_FULL_FROM_A},
	{ANY_PRIMARY, S(INCOMPLETE), R(A_BLANK), VERDICT_UNRELATED},
	{S(INCOMPLETE), ANY_PRIMARY, HAS_B | R(BOTH_BLANK), VERDICT_FULL_FROM_B},
	{S(INCOMPLETE), ANY_PRIMARY, R(B_BLANK), VERDICT_UNRELATED},
	{S(INCOMPLETE), S(INCOMPLETE) | S(SECONDARY), ANY_RELATION, VERDICT_IDLE},
	{S(SECONDARY), S(INCOMPLETE), ANY_RELATION, VERDICT_IDLE},

	/* The operator's word: give up what is here. Where the maps reach, the union of them is all
	 * that has to come. */
	{S(DISCARDS), GOOD, NEAR, VERDICT_CATCH_UP_FROM_B},
	{S(DISCARDS), GOOD, HAS_B & ~NEAR, VERDICT_FULL_FROM_B},
	{S(WANTS), GOOD, HAS_B, VERDICT_FULL_FROM_B},
	{GIVES_UP, GOOD, R(B_BLANK) | R(BOTH_BLANK), VERDICT_NO_SOURCE},
	{GOOD, S(DISCARDS), NEAR, VERDICT_CATCH_UP_FROM_A},
	{GOOD, S(DISCARDS), HAS_A & ~NEAR, VERDICT_FULL_FROM_A},
	{GOOD, S(WANTS), HAS_A, VERDICT_FULL_FROM_A},
	{GOOD, GIVES_UP, R(A_BLANK) | R(BOTH_BLANK), VERDICT_NO_SOURCE},
	/* A primary that lives on the other's disk: that must be what it left, nothing older or newer. */
	{S(LEANS), S(SECONDARY), R(EQUAL), VERDICT_SERVED_BY_B},
	{S(LEANS), S(SECONDARY), R(B_AHEAD) | R(B_FAR), VERDICT_A_BEHIND},
	{S(LEANS), S(SECONDARY), R(A_AHEAD) | R(A_FAR), VERDICT_NO_SOURCE},
	{S(LEANS), S(SECONDARY), DIVERGED, VERDICT_SPLIT_BRAIN},
	{S(LEANS), S(SECONDARY), NO_KIN, VERDICT_UNRELATED},
	{S(LEANS), ANY_PRIMARY | S(LEANS), ANY_RELATION, VERDICT_BOTH_PRIMARY},
	{S(LEANS), GIVES_UP | S(INCOMPLETE), ANY_RELATION, VERDICT_NO_SOURCE},
	{S(SECONDARY), S(LEANS), R(EQUAL), VERDICT_SERVED_BY_A},
	{S(SECONDARY), S(LEANS), R(A_AHEAD) | R(A_FAR), VERDICT_B_BEHIND},
	{S(SECONDARY), S(LEANS), R(B_AHEAD) | R(B_FAR), VERDICT_NO_SOURCE},
	{S(SECONDARY), S(LEANS), DIVERGED, VERDICT_SPLIT_BRAIN},
	{S(SECONDARY), S(LEANS), NO_KIN, VERDICT_UNRELATED},
	{ANY_PRIMARY, S(LEANS), ANY_RELATION, VERDICT_BOTH_PRIMARY},
	{GIVES_UP | S(INCOMPLETE), S(LEANS), ANY_RELATION, VERDICT_NO_SOURCE},

	/* What the other's changes were given up for is lost: theirs is the only good copy now. */
	{S(DISCARDS), S(WANTS), HAS_A, VERDICT_A_KEEPS},
	{S(WANTS), S(DISCARDS), HAS_B, VERDICT_B_KEEPS},
	{S(DISCARDS), S(WANTS), R(A_BLANK) | R(BOTH_BLANK), VERDICT_NO_SOURCE},
	{S(WANTS), S(DISCARDS), R(B_BLANK) | R(BOTH_BLANK), VERDICT_NO_SOURCE},
	{S(DISCARDS), S(DISCARDS) | S(INCOMPLETE), ANY_RELATION, VERDICT_NO_SOURCE},
	{S(WANTS), S(WANTS) | S(INCOMPLETE), ANY_RELATION, VERDICT_NO_SOURCE},
	{S(INCOMPLETE), GIVES_UP, ANY_RELATION, VERDICT_NO_SOURCE},
};

static bool rule_matches(unsigned i, enum standing a, enum standing b, enum relation relation)
{
	return rules[i].a & 1u << a && rules[i].b & 1u << b && rules[i].relation & 1u << relation;
}

unsigned decide_matches(enum standing a, enum standing b, enum relation relation)
{
	unsigned matches = 0;

	for (unsigned i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
		matches += rule_matches(i, a, b, relation);
	return matches;
}

enum verdict decide_verdict(enum standing a, enum standing b, enum relation relation)
{
	for (unsigned i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
		if (rule_matches(i, a, b, relation))
			return rules[i].verdict;
	assert(!"the table is total");
	return VERDICT_IDLE;
}

static enum standing standing(const struct hello *hello)
{
	if (hello->flags & HELLO_LEANS && hello->role == 1)
		return STANDING_LEANS;
	return decide_standing(hello->role, hello->disk, hello->flags);
}

enum verdict decide(const struct hello *self, const struct hello *peer)
{
	return decide_verdict(standing(self), standing(peer), decide_relation(self, peer));
}

/* ---- split brain ------------------------------------------------------------------------------ */

enum comparison { SELF_NONE, PEER_NONE, SELF_LESS, PEER_LESS, LIKE, COMPARISONS };

static enum comparison compare(const struct hello *self, const struct hello *peer)
{
	if (self->dirty_bytes == peer->dirty_bytes)
		return LIKE;
	if (self->dirty_bytes == 0 || peer->dirty_bytes == 0)
		return self->dirty_bytes == 0 ? SELF_NONE : PEER_NONE;
	return self->dirty_bytes < peer->dirty_bytes ? SELF_LESS : PEER_LESS;
}

static enum decide_loser without_primary(const struct hello *self, const struct hello *peer)
{
	static const enum decide_loser table[AFTER_SB_0PRIS][COMPARISONS] = {
		[AFTER_SB_0PRI_DISCARD_ZERO_CHANGES] =
			{[SELF_NONE] = DECIDE_SELF, [PEER_NONE] = DECIDE_PEER},
		[AFTER_SB_0PRI_DISCARD_LEAST_CHANGES] = {[SELF_NONE] = DECIDE_SELF,
							 [PEER_NONE] = DECIDE_PEER,
							 [SELF_LESS] = DECIDE_SELF,
							 [PEER_LESS] = DECIDE_PEER},
	};

	return table[self->after_sb_0pri][compare(self, peer)];
}

enum decide_loser decide_split_brain(const struct hello *self, const struct hello *peer)
{
	enum decide_loser secondary = self->role ? DECIDE_PEER : DECIDE_SELF;

	/* Where the maps do not reach back, bytes say nothing. A primary without content has nothing that
	 * the other side could give its own up for. */
	if (decide(self, peer) != VERDICT_SPLIT_BRAIN || standing(self) == STANDING_LEANS ||
	    standing(peer) == STANDING_LEANS ||
	    decide_relation(self, peer) != RELATION_DIVERGED_NEAR ||
	    self->after_sb_0pri != peer->after_sb_0pri ||
	    self->after_sb_1pri != peer->after_sb_1pri || (self->role && peer->role))
		return DECIDE_NOBODY;
	if (!self->role && !peer->role)
		return without_primary(self, peer);
	switch ((enum hello_after_sb_1pri)self->after_sb_1pri) {
	case AFTER_SB_1PRI_DISCARD_SECONDARY:
		return secondary;
	case AFTER_SB_1PRI_CONSENSUS:
		return without_primary(self, peer) == secondary ? secondary : DECIDE_NOBODY;
	case AFTER_SB_1PRI_DISCONNECT:
	case AFTER_SB_1PRIS:
		break;
	}
	return DECIDE_NOBODY;
}

static const struct {
	enum verdict mirror;
	enum frame_error refusal;
	const char *text;
} verdicts[VERDICTS] = {
	[VERDICT_CATCH_UP_FROM_A] = {VERDICT_CATCH_UP_FROM_B, 0, "catch-up to the peer"},
	[VERDICT_CATCH_UP_FROM_B] = {VERDICT_CATCH_UP_FROM_A, 0, "catch-up from the peer"},
	[VERDICT_FULL_FROM_A] = {VERDICT_FULL_FROM_B, 0, "full sync to the peer"},
	[VERDICT_FULL_FROM_B] = {VERDICT_FULL_FROM_A, 0, "full sync from the peer"},
	[VERDICT_IDLE] = {VERDICT_IDLE, 0, "nothing to do"},
	[VERDICT_BOTH_PRIMARY] = {VERDICT_BOTH_PRIMARY, FRAME_ERROR_BOTH_PRIMARY,
				  "both nodes are primary: demote one of them"},
	[VERDICT_SPLIT_BRAIN] =
		{VERDICT_SPLIT_BRAIN, FRAME_ERROR_SPLIT_BRAIN,
		 "split brain: both nodes took writes apart from each other; nothing "
		 "was changed; see `offsite resolve`"},
	[VERDICT_A_BEHIND] = {VERDICT_B_BEHIND, FRAME_ERROR_BEHIND,
			      "this primary is behind its secondary, which took writes later: "
			      "demote this node and promote the other, or restore one from its "
			      "peer"},
	[VERDICT_B_BEHIND] = {VERDICT_A_BEHIND, FRAME_ERROR_BEHIND,
			      "the peer is primary but behind this secondary, which took writes "
			      "later: promote this node, or restore one from its peer"},
	[VERDICT_UNRELATED] =
		{VERDICT_UNRELATED, FRAME_ERROR_UNRELATED,
		 "the volumes have no history in common: choose the one whose content "
		 "is given up and restore it from its peer"},
	[VERDICT_NO_SOURCE] = {VERDICT_NO_SOURCE, FRAME_ERROR_NO_SOURCE,
			       "content is wanted from the peer, but that side has none"},
	[VERDICT_SERVED_BY_A] = {VERDICT_SERVED_BY_B, 0,
				 "the peer's content is here: it is served from this disk"},
	[VERDICT_SERVED_BY_B] = {VERDICT_SERVED_BY_A, 0, "served from the peer's disk"},
	[VERDICT_A_YIELDS] = {VERDICT_B_YIELDS, 0, "the peer was promoted: this node steps down"},
	[VERDICT_B_YIELDS] = {VERDICT_A_YIELDS, 0, "this node was promoted: the peer steps down"},
	[VERDICT_A_KEEPS] = {VERDICT_B_KEEPS, 0,
			     "the peer's content is lost: what is here is not given up for it"},
	[VERDICT_B_KEEPS] = {VERDICT_A_KEEPS, 0,
			     "the content here is lost: the peer does not give its own up for it"},
};

enum verdict decide_mirror(enum verdict verdict)
{
	return verdicts[verdict].mirror;
}

enum relation decide_mirror_relation(enum relation relation)
{
	static const enum relation mirror[RELATIONS] = {
		[RELATION_EQUAL] = RELATION_EQUAL,
		[RELATION_A_AHEAD] = RELATION_B_AHEAD,
		[RELATION_B_AHEAD] = RELATION_A_AHEAD,
		[RELATION_A_FAR] = RELATION_B_FAR,
		[RELATION_B_FAR] = RELATION_A_FAR,
		[RELATION_DIVERGED_NEAR] = RELATION_DIVERGED_NEAR,
		[RELATION_DIVERGED_FAR] = RELATION_DIVERGED_FAR,
		[RELATION_UNRELATED] = RELATION_UNRELATED,
		[RELATION_A_BLANK] = RELATION_B_BLANK,
		[RELATION_B_BLANK] = RELATION_A_BLANK,
		[RELATION_BOTH_BLANK] = RELATION_BOTH_BLANK,
	};

	return mirror[relation];
}

enum frame_error decide_refusal(enum verdict verdict)
{
	return verdicts[verdict].refusal;
}

const char *decide_text(enum verdict verdict)
{
	return verdicts[verdict].text;
}
