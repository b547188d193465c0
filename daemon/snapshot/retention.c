/* SPDX-License-Identifier: Apache-2.0 */
/*
 * retention. The rules are applied one by one, from the newest snapshot to the oldest; one is kept if
 * any rule keeps it. Pinned ones stay in addition: rules neither count nor see them. A calendar rule keeps the newest snapshot of each of the last N hours, days, weeks
 * (from Monday), months, years (UTC) that have any: periods without a snapshot do not count, so that a
 * machine that was off for a year loses nothing. What is locked stays whatever the rules say: the service
 * would refuse to delete it.
 */
#include "daemon/snapshot/retention.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/snapshot/internal.h"

#define SECOND_NS  1000000000ull
#define LOCK_SHARE 8 /* of lock-for */
#define DUE_STEPS  8 /* in half of lock-for: how exactly a lock's end is looked at */
#define AHEAD_MAX  4096

enum period { PERIOD_NONE, PERIOD_HOUR, PERIOD_DAY, PERIOD_WEEK, PERIOD_MONTH, PERIOD_YEAR };

static int64_t period_of(enum period period, uint64_t created_ns, size_t index)
{
	time_t seconds = (time_t)(created_ns / SECOND_NS);
	struct tm date;

	switch (period) {
	case PERIOD_NONE:
		return (int64_t)index; /* each for itself */
	case PERIOD_HOUR:
		return seconds / 3600;
	case PERIOD_DAY:
		return seconds / 86400;
	case PERIOD_WEEK:
		return (seconds / 86400 + 3) / 7; /* 1970 began on a Thursday */
	default:
		gmtime_r(&seconds, &date);
		return period == PERIOD_YEAR ? date.tm_year
					     : (int64_t)date.tm_year * 12 + date.tm_mon;
	}
}

static void keep(struct retention_verdict *verdict, const char *rule, unsigned number, unsigned of)
{
	size_t used = strlen(verdict->why);

	verdict->keep = true;
	if (of)
		snprintf(verdict->why + used, sizeof(verdict->why) - used, "%s%s %u of %u",
			 used ? ", " : "", rule, number, of);
	else
		snprintf(verdict->why + used, sizeof(verdict->why) - used, "%s%s", used ? ", " : "",
			 rule);
}

static void apply(enum period period, const char *rule, unsigned most,
		  const struct snapshot_info *infos, const bool *pinned, size_t count,
		  struct retention_verdict *verdicts)
{
	int64_t last = 0;
	unsigned kept = 0;

	for (size_t i = count; i-- > 0 && kept < most;) {
		int64_t now = period_of(period, infos[i].created_ns, i);

		if ((pinned && pinned[i]) || (kept && now == last))
			continue;
		last = now;
		keep(&verdicts[i], rule, ++kept, most);
	}
}

bool retention_is_locked(const struct snapshot_info *info, uint64_t now_ns, char text[64])
{
	time_t seconds = (time_t)(info->retention.until_ns / SECOND_NS);
	struct tm date;

	if (!info->retention.lock || info->retention.until_ns <= now_ns)
		return false;
	strftime(text, 64, "locked until %Y-%m-%d %H:%M:%S UTC", gmtime_r(&seconds, &date));
	return true;
}

uint64_t retention_until(uint64_t from_ns, uint64_t lock_for_ns)
{
	return (from_ns + lock_for_ns + lock_for_ns / LOCK_SHARE) / SECOND_NS * SECOND_NS +
	       SECOND_NS;
}

bool retention_is_empty(const struct retention_policy *policy)
{
	return !policy->last && !policy->hourly && !policy->daily && !policy->weekly &&
	       !policy->monthly && !policy->yearly && !policy->within_ns;
}

bool retention_is_only_last(const struct retention_policy *policy)
{
	struct retention_policy others = *policy;

	others.last = 0;
	return policy->last && !policy->locks && retention_is_empty(&others);
}

void retention_decide(const struct retention_policy *policy, const struct snapshot_info *infos,
		      const bool *pinned, size_t count, uint64_t now_ns,
		      struct retention_verdict *verdicts)
{
	const struct snapshot_info *newest;

	for (size_t i = 0; i < count; i++) {
		verdicts[i] = (struct retention_verdict){.keep = false};
		if (retention_is_empty(policy))
			keep(&verdicts[i], "no rule", 0, 0);
		if (pinned && pinned[i])
			keep(&verdicts[i], "pinned", 0, 0);
	}
	if (!count)
		return;
	keep(&verdicts[count - 1], "newest", 0, 0);
	newest = snapshot_newest(infos, count);
	if (newest &&
	    newest != &infos[count - 1]) /* that is of what was given up in a split brain */
		keep(&verdicts[newest - infos], "newest", 0, 0);
	apply(PERIOD_NONE, "last", policy->last, infos, pinned, count, verdicts);
	apply(PERIOD_HOUR, "hourly", policy->hourly, infos, pinned, count, verdicts);
	apply(PERIOD_DAY, "daily", policy->daily, infos, pinned, count, verdicts);
	apply(PERIOD_WEEK, "weekly", policy->weekly, infos, pinned, count, verdicts);
	apply(PERIOD_MONTH, "monthly", policy->monthly, infos, pinned, count, verdicts);
	apply(PERIOD_YEAR, "yearly", policy->yearly, infos, pinned, count, verdicts);
	for (size_t i = 0; i < count; i++) {
		char text[64];

		if (policy->within_ns && infos[i].created_ns + policy->within_ns >= now_ns)
			keep(&verdicts[i], "within", 0, 0);
		if (retention_is_locked(&infos[i], now_ns, text))
			keep(&verdicts[i], text, 0, 0);
	}
}

/* ---- which are locked on ------------------------------------------------------------------------ */

/* Which the rules will keep at that time, if snapshots are taken as they are now. Too few of them are foreseen
 * rather than too many: then one more is locked on. */
static void foresee(const struct retention_policy *policy, const struct snapshot_info *infos,
		    const bool *pinned, size_t count, uint64_t at_ns, bool *kept)
{
	const struct snapshot_info *newest = snapshot_newest(infos, count);
	uint64_t last_ns = infos[count - 1].created_ns, ahead = 0;
	struct retention_verdict *verdicts;
	struct snapshot_info *all;
	bool *all_pinned;

	if (policy->every_ns && at_ns > last_ns)
		ahead = (at_ns - last_ns) / policy->every_ns;
	if (ahead > AHEAD_MAX)
		ahead = AHEAD_MAX;
	all = must_alloc((count + ahead) * sizeof(*all));
	all_pinned = must_alloc((count + ahead) * sizeof(*all_pinned));
	verdicts = must_alloc((count + ahead) * sizeof(*verdicts));
	for (size_t i = 0; i < count + ahead; i++) {
		all[i] = i < count ? infos[i] : newest ? *newest : infos[count - 1];
		all[i].retention = (struct store_retention){.lock = STORE_LOCK_NONE};
		if (i < count) {
			all_pinned[i] = pinned && pinned[i];
			continue;
		}
		all[i].sequence = infos[count - 1].sequence + (i - count) + 1;
		all[i].created_ns = last_ns + (i - count + 1) * policy->every_ns;
	}
	retention_decide(policy, all, all_pinned, count + ahead, at_ns, verdicts);
	for (size_t i = 0; i < count; i++)
		kept[i] = verdicts[i].keep;
	free(verdicts);
	free(all_pinned);
	free(all);
}

void retention_due(const struct retention_policy *policy, const struct snapshot_info *infos,
		   const bool *pinned, size_t count, uint64_t now_ns, bool *due)
{
	const uint64_t half_ns = policy->lock_for_ns / 2, step_ns = half_ns / DUE_STEPS;
	bool *kept = must_alloc((count + 1) * sizeof(*kept));

	for (size_t i = 0; i < count; i++)
		due[i] = half_ns && pinned && pinned[i] && infos[i].retention.lock &&
			 infos[i].retention.until_ns < now_ns + half_ns;
	/* One look for all whose locks end within a step of each other. */
	for (unsigned step = 0; half_ns && step < DUE_STEPS && !retention_is_empty(policy);
	     step++) {
		uint64_t from_ns = step ? now_ns + step * step_ns : 0;
		uint64_t to_ns =
			step + 1 == DUE_STEPS ? now_ns + half_ns : now_ns + (step + 1) * step_ns;
		bool foreseen = false;

		for (size_t i = 0; i < count; i++) {
			const struct store_retention *r = &infos[i].retention;

			if (!r->lock || r->until_ns < from_ns || r->until_ns >= to_ns)
				continue;
			if (!foreseen)
				foresee(policy, infos, pinned, count,
					to_ns + policy->lock_for_ns / LOCK_SHARE, kept);
			foreseen = true;
			due[i] |= kept[i];
		}
	}
	free(kept);
}
