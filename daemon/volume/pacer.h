/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pacer: a token bucket that background work on a volume takes its bytes from, set by pace_control from the
 * volume's write latencies, window by window.
 */
#ifndef OFFSITE_VOLUME_PACER_H
#define OFFSITE_VOLUME_PACER_H

#include "daemon/io/env.h"
#include "daemon/io/rate.h"
#include "daemon/volume/latency.h"
#include "daemon/volume/pace_control.h"

struct volume;

struct pacer {
	/* Set by the owner before pacer_init(). */
	struct env *env;
	struct volume *volume;
	/* A window was judged: what was paused or waited may ask again, in a later turn. False: the work is
	 * over, and so are the windows. */
	bool (*judged)(struct pacer *pacer);
	/* For others to read. */
	struct pace_control control;
	struct rate_limit rate;
	/* Private. */
	struct env_timer timer;
	struct latency before; /* when the window began */
	uint64_t at_ns, bytes;
	bool looking;
};

void pacer_init(struct pacer *pacer);
/* As pace_control_set(); at any time. */
void pacer_set(struct pacer *pacer, unsigned percent, uint64_t min_rate);
/* The work begins, if it has not, at any rate, until the first window says more. */
void pacer_begin(struct pacer *pacer);
/* The same, but clients are looked for first, for PACER_LOOK_NS; the latency of those that are at work is taken
 * before the first byte. */
#define PACER_LOOK_NS 20000000ull
void pacer_begin_looking(struct pacer *pacer);
void pacer_end(struct pacer *pacer);
/* Clients are at work, as far as is known: small pieces, and few at a time, are in place. */
bool pacer_beside_clients(const struct pacer *pacer);
/* 0: go on. Else how long until it is worth asking again; UINT64_MAX: judged() will say. */
uint64_t pacer_wait_ns(struct pacer *pacer);
void pacer_take(struct pacer *pacer, uint64_t bytes);

#endif
