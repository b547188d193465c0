/* SPDX-License-Identifier: Apache-2.0 */
/* Schedules and token buckets. See rate.h. */
#include "daemon/io/rate.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define ALL_DAYS       0x7fu
#define SECOND_NS      1000000000ull
#define BURST_MIN      (64 * 1024) /* bytes that pass at once after a pause */
#define BURST_FRACTION 20          /* ... and at least so much of a second */

/* ---- parsing -------------------------------------------------------------------------------- */

static const char *skip_blanks(const char *c)
{
	while (*c == ' ' || *c == '\t')
		c++;
	return c;
}

static const char *parse_rate(const char **at, uint64_t *rate)
{
	static const char units[] = "KMG";
	static const char wrong[] = "not a rate (a number with K, M, G or nothing behind it)";
	const char *c = *at;

	if (!isdigit((unsigned char)*c))
		return wrong;
	for (*rate = 0; isdigit((unsigned char)*c); c++) {
		if (*rate > UINT32_MAX)
			return "a rate is 1024G at most";
		*rate = *rate * 10 + (uint64_t)(*c - '0');
	}
	const char *unit = *c ? strchr(units, toupper((unsigned char)*c)) : NULL;
	if (unit) {
		*rate <<= 10 * (unit - units + 1);
		c++;
	}
	if (*rate > 1ull << 40)
		return "a rate is 1024G at most";
	if (*rate && *rate < RATE_MIN)
		return "a rate is 0 (unlimited) or at least 128K";
	if (*c && !strchr(" \t,@", *c))
		return wrong;
	*at = c;
	return NULL;
}

static int parse_day(const char **at)
{
	static const char names[7][4] = {"mon", "tue", "wed", "thu", "fri", "sat", "sun"};

	for (int day = 0; day < 7; day++)
		if (strncasecmp(*at, names[day], 3) == 0) {
			*at += 3;
			return day;
		}
	return -1;
}

static const char *parse_days(const char **at, uint8_t *days)
{
	int first = parse_day(at), last = first;

	if (first >= 0 && **at == '-') {
		++*at;
		last = parse_day(at);
	}
	if (first < 0 || last < 0 || isalnum((unsigned char)**at))
		return "not a day (mon, tue, wed, thu, fri, sat, sun; or two, as in mon-fri)";
	for (int day = first;; day = (day + 1) % 7) {
		*days |= (uint8_t)(1u << day);
		if (day == last)
			return NULL;
	}
}

/* HH:MM, up to 24:00. */
static bool parse_time(const char **at, uint16_t *minutes)
{
	const char *c = *at;

	for (unsigned i = 0; i < 5; i++)
		if (i == 2 ? c[i] != ':' : !isdigit((unsigned char)c[i]))
			return false;
	unsigned hours = (unsigned)(c[0] - '0') * 10 + (unsigned)(c[1] - '0');
	unsigned rest = (unsigned)(c[3] - '0') * 10 + (unsigned)(c[4] - '0');
	*minutes = (uint16_t)(hours * 60 + rest);
	*at += 5;
	return rest < 60 && *minutes <= RATE_MINUTES_DAY;
}

static const char *parse_hours(const char **at, struct rate_timed *timed)
{
	if (!parse_time(at, &timed->from) || *(*at)++ != '-' || !parse_time(at, &timed->to))
		return "not hours (HH:MM-HH:MM)";
	if (timed->from == timed->to || timed->from == RATE_MINUTES_DAY)
		return "hours that never are";
	return NULL;
}

static const char *parse_timed(const char **at, struct rate_timed *timed)
{
	const char *wrong = NULL;

	timed->to = RATE_MINUTES_DAY;
	*at = skip_blanks(*at);
	if (isalpha((unsigned char)**at)) {
		wrong = parse_days(at, &timed->days);
		*at = skip_blanks(*at);
	} else {
		timed->days = ALL_DAYS;
		if (!**at || **at == ',')
			return "nothing behind the @ (days, hours, or both)";
	}
	if (!wrong && **at && **at != ',')
		wrong = parse_hours(at, timed);
	return wrong;
}

static const char *parse_entry(const char **at, struct rate_schedule *schedule, bool first)
{
	struct rate_timed timed = {};
	const char *wrong = parse_rate(at, &timed.rate);

	if (wrong)
		return wrong;
	*at = skip_blanks(*at);
	if (**at != '@') {
		schedule->rate = timed.rate;
		return first ? NULL : "a rate without a time stands first";
	}
	++*at;
	if (schedule->count == RATE_TIMED_MAX)
		return "more than 12 times";
	wrong = parse_timed(at, &timed);
	schedule->timed[schedule->count++] = timed;
	return wrong;
}

const char *rate_parse(const char *text, struct rate_schedule *schedule)
{
	const char *at = skip_blanks(text), *wrong = NULL;
	struct rate_schedule result = {};

	if (strlen(text) >= sizeof(result.text))
		return "too long";
	snprintf(result.text, sizeof(result.text), "%s", text);
	for (bool first = true; !wrong; first = false) {
		wrong = parse_entry(&at, &result, first);
		at = skip_blanks(at);
		if (!wrong && *at && *at != ',')
			wrong = "a comma is missing between two rates";
		if (wrong || !*at)
			break;
		at = skip_blanks(at + 1);
	}
	if (!wrong)
		*schedule = result;
	return wrong;
}

/* ---- time ----------------------------------------------------------------------------------- */

static bool fits(const struct rate_timed *timed, unsigned day, unsigned minute)
{
	unsigned yesterday = (day + 6) % 7;

	if (timed->from < timed->to)
		return timed->days & 1u << day && minute >= timed->from && minute < timed->to;
	return (timed->days & 1u << day && minute >= timed->from) ||
	       (timed->days & 1u << yesterday && minute < timed->to);
}

uint64_t rate_at(const struct rate_schedule *schedule, unsigned minute_of_week)
{
	unsigned day = minute_of_week / RATE_MINUTES_DAY % 7;

	for (unsigned i = schedule->count; i-- > 0;)
		if (fits(&schedule->timed[i], day, minute_of_week % RATE_MINUTES_DAY))
			return schedule->timed[i].rate;
	return schedule->rate;
}

unsigned rate_minute(uint64_t realtime_ns)
{
	time_t seconds = (time_t)(realtime_ns / SECOND_NS);
	struct tm tm;

	if (!localtime_r(&seconds, &tm))
		return 0;
	return ((unsigned)tm.tm_wday + 6) % 7 * RATE_MINUTES_DAY + (unsigned)tm.tm_hour * 60 +
	       (unsigned)tm.tm_min;
}

/* ---- the bucket ----------------------------------------------------------------------------- */

static int64_t burst(uint64_t rate)
{
	int64_t bytes = (int64_t)(rate / BURST_FRACTION);

	return bytes > BURST_MIN ? bytes : BURST_MIN;
}

uint64_t rate_limit_now(const struct rate_limit *limit, uint64_t realtime_ns)
{
	const struct rate_schedule *schedule = &limit->schedule;

	return schedule->count ? rate_at(schedule, rate_minute(realtime_ns)) : schedule->rate;
}

static void look(struct rate_limit *limit, uint64_t now_ns, uint64_t realtime_ns)
{
	/* The clock of the schedule is looked at once a second. */
	if (limit->began && now_ns - limit->looked_at_ns < SECOND_NS)
		return;
	limit->looked_at_ns = now_ns;
	limit->rate = rate_limit_now(limit, realtime_ns);
	if (!limit->began || !limit->rate) {
		limit->began = true;
		limit->at_ns = now_ns;
		limit->tokens = burst(limit->rate);
	}
}

void rate_limit_set(struct rate_limit *limit, const struct rate_schedule *schedule)
{
	*limit = (struct rate_limit){.schedule = *schedule};
}

uint64_t rate_limit_wait_ns(struct rate_limit *limit, uint64_t now_ns, uint64_t realtime_ns)
{
	look(limit, now_ns, realtime_ns);
	if (!limit->rate)
		return 0;
	uint64_t passed = now_ns - limit->at_ns;
	if (passed > 10 * SECOND_NS)
		passed = 10 * SECOND_NS;
	int64_t more = (int64_t)((__uint128_t)passed * limit->rate / SECOND_NS);
	if (more > 0) {
		limit->tokens += more;
		limit->at_ns = now_ns;
	}
	if (limit->tokens > burst(limit->rate))
		limit->tokens = burst(limit->rate);
	if (limit->tokens > 0)
		return 0;
	uint64_t wait = (uint64_t)((__uint128_t)(1 - limit->tokens) * SECOND_NS / limit->rate) + 1;
	return wait < SECOND_NS ? wait : SECOND_NS; /* the schedule may change meanwhile */
}

void rate_limit_take(struct rate_limit *limit, uint64_t bytes)
{
	if (limit->rate)
		limit->tokens -= (int64_t)bytes;
}

void rate_limit_give_back(struct rate_limit *limit, uint64_t bytes)
{
	if (limit->rate)
		limit->tokens += (int64_t)bytes;
}

void rate_limit_change(struct rate_limit *limit, uint64_t rate)
{
	limit->schedule.count = 0;
	limit->schedule.rate = rate;
	limit->looked_at_ns = 0; /* looked at the next time */
	if (!limit->rate || !rate)
		limit->began = false;
}
