/* SPDX-License-Identifier: Apache-2.0 */
/* How far the peer may lag. See pace.h. */
#include "daemon/replication/pace.h"

#include "daemon/mutate.h"

#define HYSTERESIS_MAX_BYTES (1024u * 1024u)

uint64_t pace_hysteresis(uint64_t max)
{
	return max / 8 < HYSTERESIS_MAX_BYTES ? max / 8 : HYSTERESIS_MAX_BYTES;
}

bool pace_over(const struct pace_bound *bound, uint64_t lag_bytes, uint64_t lag_ns)
{
	if (MUTATE(pace_no_bound))
		return false;
	return (bound->max_bytes && lag_bytes >= bound->max_bytes) ||
	       (bound->max_ns && lag_ns >= bound->max_ns);
}

bool pace_flows(const struct pace_bound *bound, uint64_t lag_bytes, uint64_t lag_ns)
{
	return (!bound->max_bytes ||
		lag_bytes <= bound->max_bytes - pace_hysteresis(bound->max_bytes)) &&
	       (!bound->max_ns || lag_ns < bound->max_ns);
}
