/* SPDX-License-Identifier: Apache-2.0 */
/*
 * retention: which snapshots a policy keeps, and why. A pure decision over a list; who deletes is
 * snapshot_forget().
 */
#ifndef OFFSITE_SNAPSHOT_RETENTION_H
#define OFFSITE_SNAPSHOT_RETENTION_H

#include "daemon/snapshot/snapshot.h"

struct retention_verdict {
	bool keep;
	char why[128]; /* "newest, daily 1 of 7"; "" if it goes */
};

/* No rule at all: everything is kept. */
bool retention_is_empty(const struct retention_policy *policy);

/* The service would refuse to delete it; text: until when. */
bool retention_is_locked(const struct snapshot_info *info, uint64_t now_ns, char text[64]);

/* Until when all of a snapshot is to be locked: an eighth of lock-for longer than it has to be, so that what shares
 * with it soon after need not lock anything. In whole seconds, as services count. */
uint64_t retention_until(uint64_t from_ns, uint64_t lock_for_ns);

/* Which of those that are locked are to be locked on (due): their lock ends within half of lock-for (they are
 * not locked for that long any more), and a rule, or a pin, keeps them for longer than it lasts. Rules are
 * asked how things will be then, with the snapshots that will have been taken by that time: what they let go
 * of within an eighth of lock-for after the lock's end is left to go. infos, pinned: as below; retention: as
 * it is by now. */
void retention_due(const struct retention_policy *policy, const struct snapshot_info *infos,
		   const bool *pinned, size_t count, uint64_t now_ns, bool *due);

/* Whether names and order of the snapshots are all that counts. */
bool retention_is_only_last(const struct retention_policy *policy);

/* pinned: by index; may be NULL. infos: ascending by sequence; verdicts: as many. The newest one is kept whatever the policy says. */
void retention_decide(const struct retention_policy *policy, const struct snapshot_info *infos,
		      const bool *pinned, size_t count, uint64_t now_ns,
		      struct retention_verdict *verdicts);

#endif
