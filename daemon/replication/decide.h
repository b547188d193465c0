/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decide: what two nodes that have just said HELLO do with each other. Pure: both sides compute it
 * from the same two HELLOs and must come to mirrored results.
 *
 * Three steps, each a table: what a side stands for (role, disk, wants), how the two histories are
 * related (generations), and what follows from the two standings and the relation.
 */
#ifndef OFFSITE_REPLICATION_DECIDE_H
#define OFFSITE_REPLICATION_DECIDE_H

#include "protocol/replication.h"

enum standing {
	STANDING_PRIMARY,   /* primary with good content */
	STANDING_VACANT,    /* likewise, but nobody has it open: it may step down */
	STANDING_STARTING,  /* likewise, and it has served nobody since it started */
	STANDING_SECONDARY, /* secondary with good content */
	STANDING_DISCARDS,  /* good content; what it changed itself is given up for the other's */
	STANDING_WANTS, /* asks for the other's content, whatever it has; its map says nothing */
	STANDING_LEANS, /* primary whose content is at the other side */
	STANDING_INCOMPLETE, /* secondary with a mixture: a target only */
	STANDING_UNUSABLE,   /* can neither give nor take now */
	STANDINGS,
};

/* "a" is this side, "b" the peer. */
enum relation {
	RELATION_EQUAL,   /* same generation */
	RELATION_A_AHEAD, /* a descends from b's generation and its dirty map covers the way */
	RELATION_B_AHEAD,
	RELATION_A_FAR, /* a descends from b's, but the map does not reach back so far */
	RELATION_B_FAR,
	RELATION_DIVERGED_NEAR, /* both changed since a generation that both dirty maps reach back to:
				 * the union of the maps names every difference */
	RELATION_DIVERGED_FAR, /* both changed since a common generation; the maps do not say what */
	RELATION_UNRELATED,    /* nothing in common */
	RELATION_A_BLANK,      /* never written */
	RELATION_B_BLANK,
	RELATION_BOTH_BLANK,
	RELATIONS,
};

enum verdict {
	VERDICT_CATCH_UP_FROM_A, /* b gets what a's map and b's own map name */
	VERDICT_CATCH_UP_FROM_B,
	VERDICT_FULL_FROM_A, /* b gets everything */
	VERDICT_FULL_FROM_B,
	VERDICT_IDLE, /* stay connected, nothing to do */
	VERDICT_BOTH_PRIMARY,
	VERDICT_SPLIT_BRAIN,
	VERDICT_A_BEHIND, /* the primary a is older than the secondary b */
	VERDICT_B_BEHIND,
	VERDICT_UNRELATED,
	VERDICT_NO_SOURCE,
	VERDICT_SERVED_BY_A, /* b's content is at a: b streams from where it is, and reads there */
	VERDICT_SERVED_BY_B,
	VERDICT_A_YIELDS, /* a becomes secondary, then anew: b was promoted, and a has nothing alone */
	VERDICT_B_YIELDS,
	VERDICT_A_KEEPS, /* a does not give up its changes, then anew: b's content was lost meanwhile */
	VERDICT_B_KEEPS,
	VERDICTS,
};

/* flags: enum hello_flags. */
enum standing decide_standing(unsigned role, unsigned disk, unsigned flags);
enum relation decide_relation(const struct hello *a, const struct hello *b);
enum verdict decide_verdict(enum standing a, enum standing b, enum relation relation);
/* How many rows of the table match: exactly one, for every combination (tested). */
unsigned decide_matches(enum standing a, enum standing b, enum relation relation);

/* The whole way. */
enum verdict decide(const struct hello *self, const struct hello *peer);
enum verdict decide_mirror(enum verdict verdict);
enum relation decide_mirror_relation(enum relation relation);
/* The ERROR a verdict leads to; 0: none. */
enum frame_error decide_refusal(enum verdict verdict);
/* Who gives up what it changed in a split brain, by the policy that both have; NOBODY: an operator has to
 * say. Whoever is primary never loses by a policy. */
enum decide_loser { DECIDE_NOBODY, DECIDE_SELF, DECIDE_PEER };
enum decide_loser decide_split_brain(const struct hello *self, const struct hello *peer);

/* For people: what it means and what to do. */
const char *decide_text(enum verdict verdict);
/* The youngest generation that both descend from, as far as their histories tell; zero: none. */
struct id128 decide_common(const struct hello *a, const struct hello *b);

#endif
