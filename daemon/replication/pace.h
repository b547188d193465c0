/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pace: how far the peer may lag, and how fast catch-up may go beside the clients, decided from
 * numbers alone. Pure: no clock, no I/O; whoever asks brings the time. The source does what is decided
 * here (source_stream.c, source_pace.c).
 */
#ifndef OFFSITE_REPLICATION_PACE_H
#define OFFSITE_REPLICATION_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/io/rate.h"

/* What happens when the peer lags by more than the bound, in protocol A. In B and C clients wait
 * for the peer with every write: there is nothing to bound. */
enum pace_action {
	PACE_SLOW,     /* writers wait, just so long that the lag does not grow */
	PACE_CATCH_UP, /* nobody waits: the stream is left for catch-up, and begun again behind it */
};

struct pace_bound {
	uint64_t max_bytes; /* 0: no bound */
	uint64_t max_ns;    /* 0: no bound */
	enum pace_action action;
};

/* All that may be changed while running. */
struct pace_options {
	struct pace_bound bound;
	struct rate_schedule stream;   /* what leaves as stream */
	struct rate_schedule catch_up; /* ... as blocks of a cut */
	unsigned latency_percent;      /* catch-up-latency-factor; 0: off */
	uint64_t min_rate;             /* catch-up-min-rate */
};

/* The lag is at the bound or beyond. One write that began below it may pass it. */
bool pace_over(const struct pace_bound *bound, uint64_t lag_bytes, uint64_t lag_ns);
/* Whether writers that wait for the lag to fall may go on: a little below the bound, so that they
 * flow instead of stopping and going. */
bool pace_flows(const struct pace_bound *bound, uint64_t lag_bytes, uint64_t lag_ns);

/* What pace_flows() asks of a queue that was full at max: this much room. */
uint64_t pace_hysteresis(uint64_t max);

/*
 * Catch-up beside clients: their p99 write latency is held within a factor of what it is without
 * catch-up. That is learnt by pausing for two windows, at first and every ten seconds or so. Then the
 * rate grows (doubling, and by little steps after the first time that it was too much) and falls by a
 * quarter wherever a window is beyond the factor, but not below a floor, so that catch-up always ends.
 *
 *  state   meaning                                          rate
 *  FREE    no client writes                                 any
 *  SETTLE  paused; what was under way ends                  none
 *  PROBE   paused; the latency without catch-up is taken    none
 *  RUN     adapted window by window                         rate
 */
enum pace_state { PACE_FREE, PACE_SETTLE, PACE_PROBE, PACE_RUN };

struct pace_control {
	unsigned percent; /* 0: off */
	uint64_t min_rate, rate;
	uint64_t too_much; /* the rate at which it was so last */
	enum pace_state state;
	bool slow_start, known;
	uint64_t baseline_ns, p99_ns;
	unsigned windows, calls; /* in this state; in the window under way */
};

struct pace_window {
	uint64_t writes, p99_ns; /* of clients, since the window began */
	uint64_t bytes;          /* read for catch-up */
	uint64_t length_ns;
};
#define PACE_WINDOW_NS 250000000ull

void pace_control_set(struct pace_control *control, unsigned percent, uint64_t min_rate);
/* A catch-up begins. */
void pace_control_begin(struct pace_control *control);
/* To be called every PACE_WINDOW_NS. True: the window is judged, a new one begins; false: it goes on. */
bool pace_control_window(struct pace_control *control, const struct pace_window *window);
bool pace_control_paused(const struct pace_control *control);
uint64_t pace_control_rate(const struct pace_control *control); /* 0: any */
/* Why it is as it is, in a few words. */
const char *pace_control_reason(const struct pace_control *control);

#endif
