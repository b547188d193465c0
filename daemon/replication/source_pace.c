/* SPDX-License-Identifier: Apache-2.0 */
/* The pace of the source's catch-up: the configured rate, and what the clients' latency allows. */
#include <stddef.h>
#include <string.h>

#include "daemon/replication/source_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

static bool sending(const struct source *source)
{
	return source->phase == SOURCE_LIVE || source->phase == SOURCE_CUT;
}

static void begin_window(struct source *source)
{
	volume_get_latency(source->volume, &source->window_before);
	source->window_at_ns = env_now_ns(source->env);
	source->window_bytes = 0;
}

static void window_fire(struct env_timer *timer)
{
	struct source *source = container_of(timer, struct source, window_timer);
	struct latency now;

	if (!sending(source))
		return;
	volume_get_latency(source->volume, &now);
	struct pace_window window = {
		.writes = latency_count(&now, &source->window_before),
		.p99_ns = latency_quantile_ns(&now, &source->window_before, 990),
		.bytes = source->window_bytes,
		.length_ns = env_now_ns(source->env) - source->window_at_ns,
	};
	if (pace_control_window(&source->control, &window)) {
		rate_limit_change(&source->control_rate, pace_control_rate(&source->control));
		begin_window(source);
	}
	env_timer_start(source->env, timer, PACE_WINDOW_NS);
	env_defer(source->env, &source->pump_task);
}

static void pace_timer_fire(struct env_timer *timer)
{
	struct source *source = container_of(timer, struct source, pace_timer);

	env_defer(source->env, &source->pump_task);
}

void source_pace_init(struct source *source)
{
	source->pace_timer.fire = pace_timer_fire;
	source->window_timer.fire = window_fire;
}

void source_pace_stop(struct source *source)
{
	env_timer_stop(source->env, &source->pace_timer);
	env_timer_stop(source->env, &source->window_timer);
}

void source_set_pace(struct source *source, const struct pace_options *pace)
{
	source->bound = pace->bound;
	rate_limit_set(&source->stream_rate, &pace->stream);
	rate_limit_set(&source->catch_up_rate, &pace->catch_up);
	pace_control_set(&source->control, pace->latency_percent, pace->min_rate);
	rate_limit_change(&source->control_rate, pace_control_rate(&source->control));
	if (!source->link)
		return;
	link_set_stream_rate(source->link, &source->stream_rate);
	source_stream_resume(source);
	env_defer(source->env, &source->pump_task);
}

/* The window's timer runs while blocks are sent. */
static void watch_clients(struct source *source)
{
	if (!source->control.percent || env_timer_active(&source->window_timer))
		return;
	pace_control_begin(&source->control);
	rate_limit_change(&source->control_rate, 0);
	begin_window(source);
	env_timer_start(source->env, &source->window_timer, PACE_WINDOW_NS);
}

bool source_pace_allows(struct source *source)
{
	uint64_t now_ns = env_now_ns(source->env), realtime_ns = env_realtime_ns(source->env);

	watch_clients(source);
	if (pace_control_paused(&source->control))
		return false; /* the window's timer ends it */
	uint64_t wait = rate_limit_wait_ns(&source->catch_up_rate, now_ns, realtime_ns);
	uint64_t clients = rate_limit_wait_ns(&source->control_rate, now_ns, realtime_ns);
	if (clients > wait)
		wait = clients;
	if (wait && !env_timer_active(&source->pace_timer))
		env_timer_start(source->env, &source->pace_timer, wait);
	return wait == 0;
}

void source_pace_take(struct source *source, uint64_t bytes)
{
	rate_limit_take(&source->catch_up_rate, bytes);
	rate_limit_take(&source->control_rate, bytes);
	source->window_bytes += bytes;
}

/* Of what was taken so much was zeroes: it cost the disk its reading, the link nothing. */
void source_pace_zeroes(struct source *source, uint64_t bytes)
{
	rate_limit_give_back(&source->catch_up_rate, bytes);
}

uint64_t source_pace_rate(const struct source *source)
{
	uint64_t rate = source->catch_up_rate.rate, clients = source->control_rate.rate;

	return rate && (!clients || rate < clients) ? rate : clients;
}

void source_pace_status(const struct source *source, struct source_status *status)
{
	uint64_t realtime_ns = env_realtime_ns(source->env);
	uint64_t clients = sending(source) ? pace_control_rate(&source->control) : 0;
	uint64_t rate = rate_limit_now(&source->catch_up_rate, realtime_ns);

	status->stream_limit = rate_limit_now(&source->stream_rate, realtime_ns);
	status->catch_up_limit = clients && (!rate || clients < rate) ? clients : rate;
	status->catch_up_reason = status->catch_up_limit && status->catch_up_limit == rate
					  ? "catch-up-rate"
				  : sending(source) ? pace_control_reason(&source->control)
						    : "";
	status->write_p99_ns = sending(source) ? source->control.p99_ns : 0;
	status->write_baseline_ns = source->control.baseline_ns;
}
