// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/storage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/node/instant.h"
#include "daemon/node/moment.h"

#define IDLE_LOOK_NS 10000000ull
#define RETIRED_MAX  4u

struct storage {
	struct node_volume *volume;
	struct id128 repo_uuid;                     /* the volume's uuid when repo was made */
	struct snapshot_repo *retired[RETIRED_MAX]; /* of uuids it had before; freed at the end */

	struct env_task follow; /* the volume has another uuid */

	struct env_work opening; /* under way while volume->store_opening */
	struct store *opened;    /* what it came to: a store, or NULL ... */
	char opening_why[256];   /* ... and why */

	struct env_timer idle;       /* the end waits for what is under way in the store */
	void (*done)(void *context); /* a step of the end */
	void *context;
};

static struct env *env_of(const struct storage *s)
{
	return node_env(s->volume->node);
}

/* ---- repository and writer ------------------------------------------------------------------------ */

/* Somebody may still look into it. False: uuids do not change that often; the next start sees the new one. */
static bool retire_repo(struct storage *s)
{
	for (unsigned i = 0; i < RETIRED_MAX; i++) {
		if (!s->retired[i]) {
			s->retired[i] = s->volume->repo;
			s->volume->repo = NULL;
			return true;
		}
	}
	return false;
}

static void make_writer(struct storage *s)
{
	struct node_volume *v = s->volume;
	const struct config_volume *c = v->config;
	struct snapshot_writer_config config = {
		.node_name = node_config(v->node)->node.name,
		.zstd_level = c->compression_level,
		.policy = node_policy(c),
		.rate = c->snapshot_rate,
		.latency_percent = c->latency_percent,
		.min_rate = c->snapshot_min_rate,
		.lock = (enum store_lock)c->lock,
		.lock_for_ns = c->lock_for_ns,
		.repack = c->repack,
		.prepare = v->moment ? moment_prepare : NULL,
		.prepare_context = v->moment,
	};

	v->writer = snapshot_writer_new(v->volume, v->repo, &config);
}

static void writer_replaced(void *context)
{
	(void)context;
}

/* At start, when the store could be opened at last, and when the volume took over its peer's uuid. */
static void follow_uuid(struct storage *s)
{
	struct node_volume *v = s->volume;
	struct volume_state state;

	volume_get_state(v->volume, &state);
	if (v->repo && id128_equal(&state.uuid, &s->repo_uuid))
		return;
	if (v->writer)
		snapshot_writer_free(v->writer, writer_replaced, s);
	v->writer = NULL;
	if (v->repo && !retire_repo(s))
		return;
	s->repo_uuid = state.uuid;
	v->repo = snapshot_repo_new(v->store, &state.uuid);
	if (v->repo)
		make_writer(s);
}

void storage_set_options(struct storage *s)
{
	struct node_volume *v = s->volume;

	if (!v->writer)
		return;
	snapshot_writer_set_rate(v->writer, &v->config->snapshot_rate);
	snapshot_writer_set_pace(v->writer, v->config->latency_percent,
				 v->config->snapshot_min_rate);
}

bool storage_is_writing(const struct node_volume *v)
{
	struct snapshot_writer_status status = {.running = false};

	if (v->writer)
		snapshot_writer_status(v->writer, &status);
	return status.running;
}

/* ---- opening --------------------------------------------------------------------------------------- */

static struct storage *of_opening(struct env_work *work)
{
	return (struct storage *)((char *)work - offsetof(struct storage, opening));
}

/* On a helper thread: it may hang for as long as NFS does. */
static void opening_run(struct env_work *work)
{
	struct storage *s = of_opening(work);
	const struct config_volume *c = s->volume->config;
	const struct secret_source source = node_store_secret(c);

	if (crypt_store_open(env_of(s), c->store, &source, &s->opened, s->opening_why,
			     sizeof(s->opening_why)))
		s->opened = NULL;
}

static void opening_done(struct env_work *work)
{
	struct storage *s = of_opening(work);
	struct node_volume *v = s->volume;

	v->store_opening = false;
	if (node_is_stopping(v)) {
		store_close(s->opened);
		node_stop_go_on(v);
	} else if (s->opened) {
		v->store = s->opened;
		v->store->list_lag_ns = v->config->store_list_lag_ns;
		v->store_error[0] = '\0';
		follow_uuid(s);
		instant_look(v);
	} else {
		if (strcmp(s->opening_why, v->store_error) != 0)
			env_log(env_of(s), ENV_LOG_ERROR, "volume %s: %s", v->config->name,
				s->opening_why);
		memcpy(v->store_error, s->opening_why, sizeof(v->store_error));
	}
}

void storage_open(struct storage *s)
{
	struct node_volume *v = s->volume;

	if (!v->config->store || !v->volume || v->store_opening)
		return;
	if (v->store) {
		follow_uuid(s);
		return;
	}
	v->store_opening = true;
	s->opening.run = opening_run;
	s->opening.done = opening_done;
	env_work_submit(env_of(s), &s->opening);
}

/* In a turn of its own: the volume is in the middle of its own work. */
static void follow_call(struct env_task *task)
{
	struct storage *s = (struct storage *)((char *)task - offsetof(struct storage, follow));

	if (!node_is_stopping(s->volume))
		storage_open(s);
}

void storage_uuid_changed(struct storage *s)
{
	env_defer(env_of(s), &s->follow);
}

void storage_look(struct storage *s)
{
	struct node_volume *v = s->volume;

	if (v->store_opening && !v->store_error[0]) {
		snprintf(v->store_error, sizeof(v->store_error), "store %.160s: does not answer",
			 v->config->store);
		env_log(env_of(s), ENV_LOG_ERROR, "volume %s: %s", v->config->name, v->store_error);
	}
	storage_open(s);
}

/* ---- the end --------------------------------------------------------------------------------------- */

static void writer_freed(void *context)
{
	struct storage *s = context;

	s->volume->writer = NULL;
	s->done(s->context);
}

void storage_stop_writer(struct storage *s, void (*stopped)(void *context), void *context)
{
	struct node_volume *v = s->volume;

	store_stop(v->store);
	s->done = stopped;
	s->context = context;
	if (v->writer)
		snapshot_writer_free(v->writer, writer_freed, s);
	else
		writer_freed(s);
}

/* Whether nobody looks into the store any more: a plan, a deletion that was asked for. */
static bool is_idle(const struct storage *s)
{
	for (unsigned i = 0; i < RETIRED_MAX; i++)
		if (s->retired[i] && !snapshot_repo_is_idle(s->retired[i]))
			return false;
	return !s->volume->repo || snapshot_repo_is_idle(s->volume->repo);
}

/* The store is stopped: what is under way in it comes to its end. */
static void close_when_idle(struct storage *s)
{
	struct node_volume *v = s->volume;

	if (!is_idle(s)) {
		env_timer_start(env_of(s), &s->idle, IDLE_LOOK_NS);
		return;
	}
	for (unsigned i = 0; i < RETIRED_MAX; i++)
		snapshot_repo_free(s->retired[i]);
	snapshot_repo_free(v->repo);
	v->repo = NULL;
	store_close(v->store);
	v->store = NULL;
	s->done(s->context);
}

static void idle_fire(struct env_timer *timer)
{
	close_when_idle((struct storage *)((char *)timer - offsetof(struct storage, idle)));
}

void storage_close(struct storage *s, void (*closed)(void *context), void *context)
{
	s->done = closed;
	s->context = context;
	close_when_idle(s);
}

/* ---- life ------------------------------------------------------------------------------------------- */

struct storage *storage_new(struct node_volume *volume)
{
	struct storage *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->volume = volume;
	s->idle.fire = idle_fire;
	s->follow.call = follow_call;
	return s;
}

void storage_free(struct storage *s)
{
	if (s)
		env_defer_cancel(env_of(s), &s->follow);
	free(s);
}
