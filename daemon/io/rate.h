/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rate: how many bytes a second may pass: a schedule by day and hour, and a token bucket. Pure: the
 * time is the caller's, nothing waits here.
 *
 * A schedule in words, as it stands in a config:
 *   SCHEDULE = RATE [ "," TIMED ]...  |  TIMED [ "," TIMED ]...
 *   RATE     = digits, then K, M, G or nothing: bytes a second; 0: unlimited
 *   TIMED    = RATE "@" ( DAYS | HOURS | DAYS " " HOURS )
 *   DAYS     = mon | tue | wed | thu | fri | sat | sun, or two of them with "-" between
 *   HOURS    = HH:MM-HH:MM
 * e.g. "20M, 100M@22:00-06:00, 5M@mon-fri 08:00-18:00". Local time. The last that fits the moment
 * counts; where none does, the rate without a time does, or none (unlimited). Hours that end before
 * they begin go on into the next day, and belong to the day on which they began.
 */
#ifndef OFFSITE_IO_RATE_H
#define OFFSITE_IO_RATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RATE_MINUTES_DAY  1440u
#define RATE_MINUTES_WEEK (7 * RATE_MINUTES_DAY)
#define RATE_TIMED_MAX    12u
/* The slowest that can be asked for, in bytes a second. */
#define RATE_MIN      (128u * 1024)
#define RATE_TEXT_MAX 192u

struct rate_timed {
	uint64_t rate;
	uint8_t days;      /* bit 0: Monday */
	uint16_t from, to; /* minutes of a day; to <= from: into the next day */
};

struct rate_schedule {
	uint64_t rate; /* where no other fits; 0: unlimited */
	unsigned count;
	struct rate_timed timed[RATE_TIMED_MAX];
	char text[RATE_TEXT_MAX]; /* as it was given; "" counts as "0" */
};

/* NULL, or the reason, fit for "OPTION = TEXT: REASON". */
const char *rate_parse(const char *text, struct rate_schedule *schedule);
/* The rate at a minute of the week; 0 is Monday 00:00. */
uint64_t rate_at(const struct rate_schedule *schedule, unsigned minute_of_week);
/* Of local time. */
unsigned rate_minute(uint64_t realtime_ns);

/* A bucket that follows a schedule. May go below empty by
 * what is taken last, so that one big piece passes a low rate as well. */
struct rate_limit {
	struct rate_schedule schedule;
	uint64_t rate; /* in force; 0: unlimited */
	int64_t tokens;
	uint64_t at_ns, looked_at_ns;
	bool began;
};

void rate_limit_set(struct rate_limit *limit, const struct rate_schedule *schedule);
/* To another rate, without a schedule. */
void rate_limit_change(struct rate_limit *limit, uint64_t rate);
/* Bytes a second at this moment; 0: unlimited. */
uint64_t rate_limit_now(const struct rate_limit *limit, uint64_t realtime_ns);
/* 0: go on. Else how long until it is worth asking again. */
uint64_t rate_limit_wait_ns(struct rate_limit *limit, uint64_t now_ns, uint64_t realtime_ns);
void rate_limit_take(struct rate_limit *limit, uint64_t bytes);
/* Not needed after all. */
void rate_limit_give_back(struct rate_limit *limit, uint64_t bytes);

#endif
