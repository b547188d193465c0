/* SPDX-License-Identifier: Apache-2.0 */
/* Schedules by day and hour, and the bucket, with the time given. */
#include "daemon/io/rate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>
#include <cmocka.h>

enum { MON, TUE, WED, THU, FRI, SAT, SUN };
#define AT(day, hour, minute) ((day)*RATE_MINUTES_DAY + (hour)*60u + (minute))
#define M                     (1024ull * 1024)
#define SECOND                1000000000ull

static void schedules_by_day_and_hour(void **unused)
{
	static const char week[] = "20M, 100M@22:00-06:00, 5M@mon-fri 08:00-18:00";
	static const char wrap[] = "1M@fri-mon 23:30-00:30";
	static const struct {
		const char *text;
		unsigned minute;
		uint64_t rate;
	} table[] = {
		{"0", AT(MON, 0, 0), 0},
		{"128K", AT(SUN, 23, 59), 128 * 1024},
		{" 7m ", AT(THU, 3, 3), 7 * M},
		{week, AT(MON, 7, 59), 20 * M},
		{week, AT(MON, 8, 0), 5 * M},
		{week, AT(FRI, 17, 59), 5 * M},
		{week, AT(FRI, 18, 0), 20 * M},
		{week, AT(SAT, 12, 0), 20 * M},
		{week, AT(SUN, 21, 59), 20 * M},
		{week, AT(SUN, 22, 0), 100 * M},
		{week, AT(MON, 0, 0), 100 * M},
		{week, AT(MON, 5, 59), 100 * M},
		{week, AT(MON, 6, 0), 20 * M},
		/* Friday, Saturday, Sunday and Monday at 23:30, each into the next morning. */
		{wrap, AT(FRI, 0, 29), 0},
		{wrap, AT(FRI, 23, 29), 0},
		{wrap, AT(FRI, 23, 30), M},
		{wrap, AT(SAT, 0, 29), M},
		{wrap, AT(SAT, 0, 30), 0},
		{wrap, AT(MON, 0, 0), M},
		{wrap, AT(MON, 23, 45), M},
		{wrap, AT(TUE, 0, 15), M},
		{wrap, AT(TUE, 23, 45), 0},
		{wrap, AT(WED, 0, 15), 0},
		{"1M@sat", AT(SAT, 0, 0), M},
		{"1M@sat", AT(SAT, 23, 59), M},
		{"1M@sat", AT(SUN, 0, 0), 0},
		{"1M@00:00-24:00", AT(WED, 23, 59), M},
		{"1M@12:00-24:00", AT(WED, 0, 0), 0},
		/* The last that fits counts. */
		{"3M,1M@08:00-18:00,2M@mon 09:00-10:00", AT(MON, 9, 30), 2 * M},
		{"3M,2M@mon 09:00-10:00,1M@08:00-18:00", AT(MON, 9, 30), M},
		{"2M, 0@sun", AT(SUN, 9, 30), 0},
	};

	for (unsigned i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		struct rate_schedule schedule;
		const char *wrong = rate_parse(table[i].text, &schedule);
		if (wrong || rate_at(&schedule, table[i].minute) != table[i].rate)
			fail_msg("'%s' at minute %u: %s", table[i].text, table[i].minute,
				 wrong ? wrong : "another rate");
	}
}

static void wrong_schedules_are_refused(void **unused)
{
	static const char *const wrong[] = {
		"",
		",",
		"fast",
		"20MB",
		"20M,",
		"20M 30M",
		"100",
		"1K",
		"127K",
		"20M,30M",
		"1M@sat,2M",
		"1M@",
		"1M@ , 2M@sat",
		"1M@monday",
		"1M@mon-",
		"1M@mon-xyz",
		"1M@8:00-18:00",
		"1M@08:00",
		"1M@08:00-",
		"1M@08:00-25:00",
		"1M@08:60-09:00",
		"1M@08:00-08:00",
		"1M@24:00-08:00",
		"1M@08:00-09:00 mon",
		"1M@mon tue",
		"-1",
		"99999999999999999999",
		"2048G",
		"1M@mon-fri08:00-18:00x",
		"1M@mon,1M@mon,1M@mon,1M@mon,1M@mon,1M@mon,1M@mon,1M@mon,1M@mon,1M@mon,1M@mon,1M@"
		"mon,"
		"1M@mon",
	};
	struct rate_schedule schedule = {.rate = 42};

	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		if (!rate_parse(wrong[i], &schedule))
			fail_msg("'%s' was taken", wrong[i]);
	assert_int_equal(schedule.rate, 42); /* and nothing was changed */
}

static void minutes_are_those_of_local_time(void **unused)
{
	/* 2026-01-05 was a Monday. */
	uint64_t monday_noon = 1767614400ull * SECOND;

	setenv("TZ", "UTC0", 1);
	tzset();
	assert_int_equal(rate_minute(monday_noon), AT(MON, 12, 0));
	setenv("TZ", "XXX-13:30", 1);
	tzset();
	assert_int_equal(rate_minute(monday_noon), AT(TUE, 1, 30));
	unsetenv("TZ");
	tzset();
}

/* Bytes that pass within a time, in pieces. */
static uint64_t pass(struct rate_limit *limit, uint64_t *now, uint64_t length_ns, uint64_t piece)
{
	uint64_t end = *now + length_ns, bytes = 0;

	while (*now < end) {
		uint64_t wait = rate_limit_wait_ns(limit, *now, *now);
		if (wait) {
			assert_true(wait <= SECOND);
			*now += wait;
			continue;
		}
		rate_limit_take(limit, piece);
		bytes += piece;
		if (bytes > 1ull << 40)
			break;
	}
	return bytes;
}

static void the_bucket_holds_its_rate(void **unused)
{
	static const uint64_t pieces[] = {64, 4096, 65536, 1048576};
	struct rate_limit limit;
	struct rate_schedule schedule;
	uint64_t now = 5 * SECOND;

	for (unsigned i = 0; i < 4; i++) {
		assert_null(rate_parse("1M", &schedule));
		rate_limit_set(&limit, &schedule);
		uint64_t bytes = pass(&limit, &now, 20 * SECOND, pieces[i]);
		assert_in_range(bytes, 19 * M, 22 * M);
	}
	/* A long pause saves up no more than one burst. */
	now += 1000 * SECOND;
	assert_true(pass(&limit, &now, SECOND / 10, 4096) <= M / 10 + 64 * 1024 + 8192);
	/* Unlimited: never a wait. */
	assert_null(rate_parse("0", &schedule));
	rate_limit_set(&limit, &schedule);
	assert_true(pass(&limit, &now, SECOND, 1048576) > 1ull << 40);
}

static void the_bucket_follows_the_schedule(void **unused)
{
	struct rate_limit limit;
	struct rate_schedule schedule;
	uint64_t now = 1767614400ull * SECOND - 10 * SECOND; /* Monday, 11:59:50 */

	setenv("TZ", "UTC0", 1);
	tzset();
	assert_null(rate_parse("1M, 10M@12:00-13:00", &schedule));
	rate_limit_set(&limit, &schedule);
	assert_in_range(pass(&limit, &now, 9 * SECOND, 65536), 8 * M, 10 * M);
	now += 2 * SECOND;
	assert_in_range(pass(&limit, &now, 10 * SECOND, 65536), 95 * M, 110 * M);
	unsetenv("TZ");
	tzset();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(schedules_by_day_and_hour),
		cmocka_unit_test(wrong_schedules_are_refused),
		cmocka_unit_test(minutes_are_those_of_local_time),
		cmocka_unit_test(the_bucket_holds_its_rate),
		cmocka_unit_test(the_bucket_follows_the_schedule),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
