// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/schedule.h"

#include <stdlib.h>

#include "daemon/node/peering.h"
#include "daemon/node/storage.h"

#define NS_PER_S 1000000000ull
/* A snapshot that was due before the start: its volume, and its peer, come first. */
#define OVERDUE_WAIT_NS (10 * NS_PER_S)
/* The first one of a volume, which may be about to be filled. */
#define FIRST_WAIT_NS (300 * NS_PER_S)
/* One that could not be taken when it was due is tried again after an eighth of the interval, this at least. */
#define RETRY_WAIT_NS (60 * NS_PER_S)

struct schedule {
	struct node_volume *volume;
	struct env_timer timer;
	uint64_t first_ns;     /* env_now_ns() at which the first one is due; 0: it was */
	struct id128 newest;   /* snapshot known here ... */
	uint64_t newest_at_ns; /* ... since; or since the start */
	bool split_over;       /* this primary survived a split brain, and took none since */
	bool after_split;      /* the one under way is taken for that */
};

static struct env *env_of(const struct schedule *s)
{
	return node_env(s->volume->node);
}

static uint64_t retry_wait(const struct config_volume *c)
{
	uint64_t wait = c->snapshot_every_ns / 8;

	if (wait < RETRY_WAIT_NS)
		wait = RETRY_WAIT_NS;
	return wait < c->snapshot_every_ns ? wait : c->snapshot_every_ns;
}

void schedule_look(struct schedule *s)
{
	struct volume_state state;

	volume_get_state(s->volume->volume, &state);
	if (id128_equal(&state.snapshot, &s->newest))
		return;
	s->newest = state.snapshot;
	s->newest_at_ns = env_now_ns(env_of(s));
}

/* ---- one is due ---------------------------------------------------------------------------------- */

/* Whether it is this node's to take. A primary whose secondary should, but did not within two intervals,
 * steps in. */
static bool is_due_here(struct schedule *s)
{
	const struct node_volume *v = s->volume;
	struct replication_status peer;
	struct volume_state state;

	schedule_look(s);
	volume_get_state(v->volume, &state);
	if (state.disk != VOLUME_DISK_UPTODATE || v->busy)
		return false;
	peering_get_status(v, &peer);
	if (state.role != VOLUME_PRIMARY)
		return v->config->snapshot_from_secondary && peer.state == REPLICATION_STREAMING;
	if (!v->config->snapshot_from_secondary || s->split_over)
		return true;
	if (env_now_ns(env_of(s)) - s->newest_at_ns <
	    v->config->snapshot_every_ns * 3 / 2 + SCHEDULE_LOOK_NS)
		return false;
	env_log(env_of(s), ENV_LOG_WARNING,
		"volume %s: no snapshot from the secondary for two intervals: taken here",
		v->config->name);
	return true;
}

static void snapshot_done(void *context, const struct snapshot_result *result)
{
	struct schedule *s = context;
	struct node_volume *v = s->volume;

	s->split_over = s->split_over || (result->error && s->after_split);
	s->after_split = false;
	if (!result->error)
		return;
	env_log(env_of(s), ENV_LOG_ERROR, "volume %s: scheduled snapshot: %s", v->config->name,
		result->why);
	if (!node_is_stopping(v))
		env_timer_start(env_of(s), &s->timer, retry_wait(v->config));
}

static void take(struct schedule *s)
{
	struct node_volume *v = s->volume;

	storage_open(v->storage); /* the uuid may have been taken over from the peer just now */
	if (!v->writer) {
		env_log(env_of(s), ENV_LOG_ERROR, "volume %s: scheduled snapshot: not taken: %s",
			v->config->name, node_store_why(v));
		return;
	}
	env_timer_start(env_of(s), &s->timer, v->config->snapshot_every_ns);
	s->after_split = s->split_over;
	s->split_over = false;
	snapshot_create(v->writer, "", snapshot_done, s);
}

static void due(struct env_timer *timer)
{
	struct schedule *s = (struct schedule *)((char *)timer - offsetof(struct schedule, timer));
	const struct node_volume *v = s->volume;

	s->first_ns = 0;
	/* What is under way may be older than what the other took last. */
	if (s->split_over && (v->busy || storage_is_writing(v))) {
		env_timer_start(env_of(s), timer, OVERDUE_WAIT_NS);
		return;
	}
	/* What stands in its way may go soon: a catch-up, a long job, the other node's role. */
	env_timer_start(env_of(s), timer, retry_wait(v->config));
	if (is_due_here(s))
		take(s);
}

/* ---- when it is due ------------------------------------------------------------------------------ */

static void set_first(struct schedule *s, uint64_t delay_ns)
{
	s->first_ns = env_now_ns(env_of(s)) + delay_ns;
	env_timer_start(env_of(s), &s->timer, delay_ns);
}

void schedule_split_over(void *volume)
{
	struct node_volume *v = volume;
	struct volume_state state;

	volume_get_state(v->volume, &state);
	if (state.role != VOLUME_PRIMARY || !v->config->snapshot_every_ns || !v->config->store ||
	    node_is_stopping(v))
		return;
	v->schedule->split_over = true;
	set_first(v->schedule, OVERDUE_WAIT_NS);
}

void node_saw_snapshot(struct node_volume *v, uint64_t created_ns)
{
	struct schedule *s = v->schedule;
	uint64_t every = v->config->snapshot_every_ns, now = env_realtime_ns(env_of(s));
	uint64_t delay = every;

	if (!s->first_ns || node_is_stopping(v))
		return;
	if (!created_ns || created_ns > now) /* none, or a clock was set back: nobody knows */
		delay = FIRST_WAIT_NS;
	else
		delay = now - created_ns < every ? every - (now - created_ns) : 0;
	if (delay < OVERDUE_WAIT_NS)
		delay = OVERDUE_WAIT_NS;
	/* Never later than without. */
	if (env_now_ns(env_of(s)) + delay < s->first_ns)
		set_first(s, delay);
}

/* ---- life ------------------------------------------------------------------------------------------ */

struct schedule *schedule_new(struct node_volume *volume)
{
	struct schedule *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->volume = volume;
	s->timer.fire = due;
	return s;
}

void schedule_free(struct schedule *s)
{
	free(s);
}

void schedule_start(struct schedule *s)
{
	const struct config_volume *c = s->volume->config;

	schedule_look(s);
	s->newest_at_ns = env_now_ns(env_of(s));
	if (c->store && c->snapshot_every_ns)
		set_first(s, c->snapshot_every_ns);
}

void schedule_stop(struct schedule *s)
{
	env_timer_stop(env_of(s), &s->timer);
}
