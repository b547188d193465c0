/* SPDX-License-Identifier: Apache-2.0 */
/* Histograms of latencies. See latency.h. */
#include "daemon/volume/latency.h"

#include <stddef.h>

#define UNIT_SHIFT 12u /* the finest bucket: 4.1 us */
#define STEPS      8u  /* buckets in an octave */

static unsigned bucket_of(uint64_t ns)
{
	uint64_t units = ns >> UNIT_SHIFT;

	if (units < STEPS)
		return (unsigned)units;
	unsigned octave = 63u - (unsigned)__builtin_clzll(units) - 3u;
	unsigned bucket = STEPS + octave * STEPS + (unsigned)((units >> octave) & (STEPS - 1));
	return bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1;
}

static uint64_t bucket_end_ns(unsigned bucket)
{
	if (bucket < STEPS)
		return (uint64_t)(bucket + 1) << UNIT_SHIFT;
	unsigned octave = (bucket - STEPS) / STEPS;
	return (uint64_t)(STEPS + bucket % STEPS + 1) << octave << UNIT_SHIFT;
}

void latency_add(struct latency *latency, uint64_t ns)
{
	latency->counts[bucket_of(ns)]++;
}

static uint64_t in_bucket(const struct latency *now, const struct latency *before, unsigned bucket)
{
	return now->counts[bucket] - (before ? before->counts[bucket] : 0);
}

uint64_t latency_count(const struct latency *now, const struct latency *before)
{
	uint64_t count = 0;

	for (unsigned i = 0; i < LATENCY_BUCKETS; i++)
		count += in_bucket(now, before, i);
	return count;
}

uint64_t latency_quantile_ns(const struct latency *now, const struct latency *before,
			     unsigned permille)
{
	uint64_t count = latency_count(now, before), seen = 0;
	uint64_t wanted = (count * permille + 999) / 1000;

	for (unsigned i = 0; i < LATENCY_BUCKETS; i++) {
		seen += in_bucket(now, before, i);
		if (count && seen >= wanted)
			return bucket_end_ns(i);
	}
	return 0;
}
