/* SPDX-License-Identifier: Apache-2.0 */
/* See pacer.h. */
#include "daemon/volume/pacer.h"

#include <stddef.h>

#include "daemon/volume/volume.h"

static void window_begin(struct pacer *pacer)
{
	volume_get_latency(pacer->volume, &pacer->before);
	pacer->at_ns = env_now_ns(pacer->env);
	pacer->bytes = 0;
}

static void window_take(const struct pacer *pacer, struct pace_window *window)
{
	struct latency now;

	volume_get_latency(pacer->volume, &now);
	*window = (struct pace_window){
		.writes = latency_count(&now, &pacer->before),
		.p99_ns = latency_quantile_ns(&now, &pacer->before, 990),
		.bytes = pacer->bytes,
		.length_ns = env_now_ns(pacer->env) - pacer->at_ns,
	};
}

static void fire(struct env_timer *timer)
{
	struct pacer *pacer = (struct pacer *)((char *)timer - offsetof(struct pacer, timer));
	struct pace_window window;

	window_take(pacer, &window);
	if (pacer->looking) {
		pacer->looking = false;
		if (window.writes)
			pace_control_begin_probing(&pacer->control);
		window_begin(pacer);
	} else if (pace_control_window(&pacer->control, &window)) {
		rate_limit_change(&pacer->rate, pace_control_rate(&pacer->control));
		window_begin(pacer);
	}
	if (pacer->judged(pacer))
		env_timer_start(pacer->env, timer, PACE_WINDOW_NS);
}

void pacer_init(struct pacer *pacer)
{
	pacer->timer.fire = fire;
}

void pacer_set(struct pacer *pacer, unsigned percent, uint64_t min_rate)
{
	pace_control_set(&pacer->control, percent, min_rate);
	rate_limit_change(&pacer->rate, pace_control_rate(&pacer->control));
	if (!percent)
		pacer_end(pacer);
}

static void begin(struct pacer *pacer, bool looking)
{
	if (!pacer->control.percent || env_timer_active(&pacer->timer))
		return;
	pace_control_begin(&pacer->control);
	rate_limit_change(&pacer->rate, 0);
	window_begin(pacer);
	pacer->looking = looking;
	env_timer_start(pacer->env, &pacer->timer, looking ? PACER_LOOK_NS : PACE_WINDOW_NS);
}

void pacer_begin(struct pacer *pacer)
{
	begin(pacer, false);
}

void pacer_begin_looking(struct pacer *pacer)
{
	begin(pacer, true);
}

void pacer_end(struct pacer *pacer)
{
	env_timer_stop(pacer->env, &pacer->timer);
	pacer->looking = false;
}

bool pacer_beside_clients(const struct pacer *pacer)
{
	return pacer->looking || pacer->control.state != PACE_FREE;
}

uint64_t pacer_wait_ns(struct pacer *pacer)
{
	if (env_timer_active(&pacer->timer) &&
	    (pacer->looking || pace_control_paused(&pacer->control)))
		return UINT64_MAX;
	return rate_limit_wait_ns(&pacer->rate, env_now_ns(pacer->env),
				  env_realtime_ns(pacer->env));
}

void pacer_take(struct pacer *pacer, uint64_t bytes)
{
	rate_limit_take(&pacer->rate, bytes);
	pacer->bytes += bytes;
}
