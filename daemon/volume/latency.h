/* SPDX-License-Identifier: Apache-2.0 */
/*
 * latency: how long requests took, counted in buckets of an eighth of an octave. Pure, no allocation.
 * Counts only grow: what happened within a time is the difference of two copies.
 */
#ifndef OFFSITE_VOLUME_LATENCY_H
#define OFFSITE_VOLUME_LATENCY_H

#include <stdint.h>

#define LATENCY_BUCKETS 200u /* the last: 64 s and more */

struct latency {
	uint64_t counts[LATENCY_BUCKETS];
};

void latency_add(struct latency *latency, uint64_t ns);
/* Requests between two copies; before NULL: all. */
uint64_t latency_count(const struct latency *now, const struct latency *before);
/* The time that so many of a thousand of them did not exceed, rounded up to a bucket's end; 0: none. */
uint64_t latency_quantile_ns(const struct latency *now, const struct latency *before,
			     unsigned permille);

#endif
