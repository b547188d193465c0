/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pace_control: background work (catch-up, a snapshot's reading) beside clients: their p99 write latency is held
 * within a factor of what it is without it. That is learnt by pausing for two windows, at first and every ten
 * seconds or so. Then the rate grows: doubling until the latency is half way to the factor, by steps from there
 * on; it falls by a quarter wherever a window is beyond the factor, by half where it is beyond twice that, but
 * not below a floor, so that the work always ends. Pure: no clock, no I/O.
 *
 *  state   meaning                                          rate
 *  FREE    no client writes                                 any
 *  SETTLE  paused; what was under way ends                  none
 *  PROBE   paused; the latency without catch-up is taken    none
 *  RUN     adapted window by window                         rate
 */
#ifndef OFFSITE_VOLUME_PACE_CONTROL_H
#define OFFSITE_VOLUME_PACE_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

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
	uint64_t bytes;          /* of the background work */
	uint64_t length_ns;
};
#define PACE_WINDOW_NS 250000000ull

void pace_control_set(struct pace_control *control, unsigned percent, uint64_t min_rate);
/* The work begins. */
void pace_control_begin(struct pace_control *control);
/* ... and clients were seen at work just now: without it nothing is under way yet, so their latency is taken
 * first. */
void pace_control_begin_probing(struct pace_control *control);
/* To be called every PACE_WINDOW_NS. True: the window is judged, a new one begins; false: it goes on. */
bool pace_control_window(struct pace_control *control, const struct pace_window *window);
bool pace_control_paused(const struct pace_control *control);
uint64_t pace_control_rate(const struct pace_control *control); /* 0: any */
/* Why it is as it is, in a few words. */
const char *pace_control_reason(const struct pace_control *control);

#endif
