/* SPDX-License-Identifier: Apache-2.0 */
/* The pace of the source's catch-up: the configured rate, and what the clients' latency allows. */
#include <stddef.h>
#include <string.h>

#include "daemon/replication/source_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

static bool reading(const struct source *source)
{
	return source->phase == SOURCE_LIVE || source->phase == SOURCE_CUT ||
	       source->phase == SOURCE_COMPARE;
}

static void go_on(struct source *source)
{
	if (source->phase == SOURCE_COMPARE)
		compare_resume(source->compare);
	else
		env_defer(source->env, &source->pump_task);
}

static bool window_judged(struct pacer *pacer)
{
	struct source *source = container_of(pacer, struct source, pacer);

	if (!reading(source))
		return false;
	go_on(source);
	return true;
}

static void pace_timer_fire(struct env_timer *timer)
{
	go_on(container_of(timer, struct source, pace_timer));
}

void source_pace_init(struct source *source)
{
	source->pace_timer.fire = pace_timer_fire;
	source->pacer.env = source->env;
	source->pacer.volume = source->volume;
	source->pacer.judged = window_judged;
	pacer_init(&source->pacer);
}

void source_pace_stop(struct source *source)
{
	env_timer_stop(source->env, &source->pace_timer);
	pacer_end(&source->pacer);
}

void source_set_pace(struct source *source, const struct pace_options *pace)
{
	source->bound = pace->bound;
	rate_limit_set(&source->stream_rate, &pace->stream);
	rate_limit_set(&source->catch_up_rate, &pace->catch_up);
	pacer_set(&source->pacer, pace->latency_percent, pace->min_rate);
	if (!source->link)
		return;
	link_set_stream_rate(source->link, &source->stream_rate);
	source_stream_resume(source);
	go_on(source);
}

static bool wait_for(struct source *source, uint64_t wait_ns)
{
	if (wait_ns && !env_timer_active(&source->pace_timer))
		env_timer_start(source->env, &source->pace_timer, wait_ns);
	return wait_ns == 0;
}

bool source_pace_clients_allow(struct source *source)
{
	pacer_begin_looking(&source->pacer);
	uint64_t wait = pacer_wait_ns(&source->pacer);
	return wait != UINT64_MAX && wait_for(source, wait);
}

bool source_pace_allows(struct source *source)
{
	uint64_t now_ns = env_now_ns(source->env), realtime_ns = env_realtime_ns(source->env);

	pacer_begin(&source->pacer); /* its windows go on while blocks are sent */
	uint64_t clients = pacer_wait_ns(&source->pacer);
	if (clients == UINT64_MAX)
		return false;
	uint64_t wait = rate_limit_wait_ns(&source->catch_up_rate, now_ns, realtime_ns);
	return wait_for(source, clients > wait ? clients : wait);
}

/* Few while clients are at work, with writes or reads: each of their requests waits behind what is on the disk
 * already. A disk to itself gives the more the more it is asked for at a time; and so it is for clients that wait
 * for the end of it. */
unsigned source_pace_depth(const struct source *source)
{
	struct volume_stats stats;

	volume_get_stats(source->volume, &stats);
	uint64_t quiet_ns = env_now_ns(source->env) - stats.requested_ns;
	bool beside = stats.in_flight || (stats.requested_ns && quiet_ns < SOURCE_CLIENTS_NS);
	return beside && !source->waiting ? SOURCE_READS_BESIDE : SOURCE_READS;
}

void source_pace_take(struct source *source, uint64_t bytes)
{
	rate_limit_take(&source->catch_up_rate, bytes);
	pacer_take(&source->pacer, bytes);
}

/* Of what was taken so much was zeroes: it cost the disk its reading, the link nothing. */
void source_pace_zeroes(struct source *source, uint64_t bytes)
{
	rate_limit_give_back(&source->catch_up_rate, bytes);
}

uint64_t source_pace_rate(const struct source *source)
{
	uint64_t rate = source->catch_up_rate.rate, clients = source->pacer.rate.rate;

	return rate && (!clients || rate < clients) ? rate : clients;
}

void source_pace_status(const struct source *source, struct source_status *status)
{
	const struct pace_control *control = &source->pacer.control;
	uint64_t realtime_ns = env_realtime_ns(source->env);
	uint64_t clients = reading(source) ? pace_control_rate(control) : 0;
	uint64_t rate = rate_limit_now(&source->catch_up_rate, realtime_ns);

	status->stream_limit = rate_limit_now(&source->stream_rate, realtime_ns);
	status->catch_up_limit = clients && (!rate || clients < rate) ? clients : rate;
	status->catch_up_reason = status->catch_up_limit && status->catch_up_limit == rate
					  ? "catch-up-rate"
				  : reading(source) ? pace_control_reason(control)
						    : "";
	status->write_p99_ns = reading(source) ? control->p99_ns : 0;
	status->write_baseline_ns = control->baseline_ns;
}
