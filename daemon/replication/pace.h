/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pace: how far the peer may lag, decided from numbers alone. Pure: no clock, no I/O; whoever asks brings
 * the time. The source does what is decided here (source_stream.c). How fast catch-up may go beside the
 * clients: volume/pace_control.h.
 */
#ifndef OFFSITE_REPLICATION_PACE_H
#define OFFSITE_REPLICATION_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/io/rate.h"
#include "daemon/volume/pace_control.h"

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

#endif
