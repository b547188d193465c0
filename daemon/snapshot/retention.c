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
#include <string.h>
#include <time.h>

#define SECOND_NS 1000000000ull

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
