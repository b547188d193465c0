// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/instant.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/node/job.h"
#include "daemon/node/refusal.h"
#include "daemon/node/restore.h"
#include "daemon/node/storage.h"
#include "daemon/snapshot/origin.h"

enum instant_step { OPENING, PINNING, WAITING, FILLING, UNPINNING, CLOSING };

/* What is under way on the volume (a cut of the peer's, the last requests of clients that went) ends soon. A
 * client that is there is not waited for, but one that has just gone may not have been missed yet. */
#define BUSY_RETRY_NS 50000000ull
#define BUSY_TRIES    100u
#define CLIENT_TRIES  20u
/* Objects that are missing, or the store, may come back: from one wait to the other. */
#define CHECK_RETRY_NS     10000000000ull
#define CHECK_RETRY_MAX_NS 600000000000ull

struct instant {
	struct node_volume *volume;
	enum instant_step step;
	bool job;    /* begun by a job that waits to be told */
	bool filled; /* ... and nothing of it was given up */
	bool check;  /* FILLING: held until the store was found to have everything */
	struct env_timer check_timer;
	uint64_t check_wait_ns;
	struct volume_source source;
	struct snapshot_repo *repo;
	struct snapshot_origin *origin;
	struct env_task over_task;
	struct env_timer busy_timer; /* WAITING */
	unsigned busy_tries;
	int error; /* of the job */
	char why[256];
	char trouble[256];
};

static struct env *env_of(const struct instant *i)
{
	return node_env(i->volume->node);
}

static void closed(void *context)
{
	struct instant *i = context;
	struct node_volume *v = i->volume;
	bool job = i->job;
	struct instant copy = *i;

	snapshot_repo_free(i->repo);
	v->instant = NULL;
	snprintf(v->instant_trouble, sizeof(v->instant_trouble), "%s", i->trouble);
	free(i);
	if (job)
		node_job_finish(v, copy.error, copy.why);
	node_stop_go_on(v);
}

static void close_it(struct instant *i)
{
	i->step = CLOSING;
	env_defer_cancel(env_of(i), &i->over_task);
	env_timer_stop(env_of(i), &i->busy_timer);
	env_timer_stop(env_of(i), &i->check_timer);
	if (i->origin)
		snapshot_origin_close(i->origin, closed, i);
	else
		closed(i);
}

static void withdrawn(void *context, const struct snapshot_result *result)
{
	struct instant *i = context;

	if (result->error && result->error != -ENOENT)
		env_log(env_of(i), ENV_LOG_WARNING,
			"volume %s: the snapshot it was not restored from stays pinned: %s",
			i->volume->config->name, result->why);
	close_it(i);
}

/* A pin that the volume does not know of would stay for ever. */
static bool withdraw_pin(struct instant *i)
{
	struct volume_source known;
	struct volume_state state;

	(void)volume_source_pinned(i->volume->volume, &known);
	if (!i->source.pinned ||
	    (known.pinned && id128_equal(&known.snapshot, &i->source.snapshot)))
		return false;
	volume_get_state(i->volume->volume, &state);
	i->step = UNPINNING;
	snapshot_unpin(i->repo, &i->source.snapshot, &state.writer, false, withdrawn, i);
	return true;
}

/* Before anything changed, or for this time. */
static void fail(struct instant *i, int error, const char *why)
{
	if (strcmp(i->volume->instant_trouble, why) != 0 && !i->job)
		env_log(env_of(i), ENV_LOG_ERROR, "volume %s: filled from a snapshot: %s",
			i->volume->config->name, why);
	snprintf(i->trouble, sizeof(i->trouble), "%s", i->job ? "" : why);
	i->error = error;
	snprintf(i->why, sizeof(i->why), "%s", why);
	if (!i->job || !withdraw_pin(i))
		close_it(i);
}

/* ---- the end ---------------------------------------------------------------------------------- */

static void unpinned(void *context, const struct snapshot_result *result)
{
	struct instant *i = context;
	char id[ID128_TEXT_BYTES];

	id128_format(&i->source.snapshot, id);
	if (result->error && result->error != -ENOENT)
		env_log(env_of(i), ENV_LOG_WARNING,
			"volume %s: snapshot %.8s stays pinned for now: %s",
			i->volume->config->name, id, result->why);
	else
		volume_source_unpinned(i->volume->volume);
	close_it(i);
}

static void unpin(struct instant *i)
{
	struct volume_state state;

	i->step = UNPINNING;
	volume_get_state(i->volume->volume, &state);
	snapshot_unpin(i->repo, &i->source.snapshot, &state.writer, false, unpinned, i);
}

/* In a turn of its own: the volume is in the middle of its own work. */
static void over_run(struct env_task *task)
{
	struct instant *i = (struct instant *)((char *)task - offsetof(struct instant, over_task));
	struct node_volume *v = i->volume;
	char why[512] = "";

	if (i->filled && v->replication && replication_connect(v->replication, why, sizeof(why)))
		env_log(env_of(i), ENV_LOG_WARNING, "volume %s: %s", v->config->name, why);
	if (volume_source_pinned(v->volume, &i->source))
		unpin(i);
	else
		close_it(i);
}

static void over(void *context, bool filled)
{
	struct instant *i = context;

	i->filled = filled;
	i->over_task.call = over_run;
	env_defer(env_of(i), &i->over_task);
}

/* ---- whether all of it is there ------------------------------------------------------------------ */

static void checked(void *context, int error, const char *why)
{
	struct instant *i = context;
	const char *name = i->volume->config->name;

	if (i->step != FILLING)
		return;
	if (!error) {
		i->trouble[0] = '\0';
		i->check = false;
		volume_hold_filling(i->volume->volume, false);
		return;
	}
	if (strcmp(i->trouble, why) != 0)
		env_log(env_of(i), ENV_LOG_ERROR,
			"volume %s: filled from a snapshot: only what is wanted is fetched: %s",
			name, why);
	snprintf(i->trouble, sizeof(i->trouble), "%s", why);
	env_timer_start(env_of(i), &i->check_timer, i->check_wait_ns);
	i->check_wait_ns *= 2;
	if (i->check_wait_ns > CHECK_RETRY_MAX_NS)
		i->check_wait_ns = CHECK_RETRY_MAX_NS;
}

static void check_fire(struct env_timer *timer)
{
	struct instant *i =
		(struct instant *)((char *)timer - offsetof(struct instant, check_timer));

	snapshot_origin_check(i->origin, checked, i);
}

static void check_begin(struct instant *i)
{
	if (!i->check)
		return;
	i->check_wait_ns = CHECK_RETRY_NS;
	snapshot_origin_check(i->origin, checked, i);
}

/* ---- the beginning ------------------------------------------------------------------------------ */

static bool has_clients(const struct instant *i)
{
	struct volume_stats stats;

	volume_get_stats(i->volume->volume, &stats);
	return stats.clients > 0;
}

static void fill(struct instant *i)
{
	struct node_volume *v = i->volume;
	char why[256] = "";
	int error;

	if (v->replication)
		replication_forget_transfer(v->replication);
	volume_hold_filling(v->volume, i->check);
	error = volume_hydrate_from(v->volume, &i->source, snapshot_origin_of_volume(i->origin),
				    why, sizeof(why));

	if (error == -EBUSY && i->busy_tries++ < (has_clients(i) ? CLIENT_TRIES : BUSY_TRIES)) {
		i->step = WAITING;
		env_timer_start(env_of(i), &i->busy_timer, BUSY_RETRY_NS);
		return;
	}
	if (error) {
		fail(i, error, why);
		return;
	}
	i->step = FILLING;
	i->job = false;
	check_begin(i);
	/* The uuid may be another one now: that of what it is filled from. */
	storage_open(v->storage);
	node_job_finish(v, 0, "");
}

static void busy_fire(struct env_timer *timer)
{
	fill((struct instant *)((char *)timer - offsetof(struct instant, busy_timer)));
}

static void begin(struct instant *i)
{
	struct node_volume *v = i->volume;
	char why[256] = "";
	int error;

	if (volume_source(v->volume, NULL)) { /* another one, given up for this */
		error = volume_hydrate_give_up(v->volume);
		if (error) {
			fail(i, error, "the volume's state cannot be stored");
			return;
		}
	}
	error = restore_prepare(v, why, sizeof(why));
	if (error)
		fail(i, error, why);
	else
		fill(i);
}

static void pinned(void *context, const struct snapshot_result *result)
{
	struct instant *i = context;

	if (node_is_stopping(i->volume)) {
		close_it(i);
		return;
	}
	if (result->error == -ENOENT) { /* nothing has changed yet */
		fail(i, -ENOENT, result->why);
		return;
	}
	if (result->error)
		env_log(env_of(i), ENV_LOG_WARNING,
			"volume %s: the snapshot could not be pinned; see to it that nobody "
			"deletes it "
			"while the volume is being filled: %s",
			i->volume->config->name, result->why);
	i->source.pinned = !result->error;
	begin(i);
}

/* As this volume of this node, whatever its uuid is: by the identifier that it has in the store. */
static void pin(struct instant *i)
{
	struct volume *volume = i->volume->volume;
	struct volume_state state;

	volume_get_state(volume, &state);
	if (id128_is_zero(&state.writer)) {
		env_random(env_of(i), &state.writer, sizeof(state.writer));
		if (volume_set_state(volume, &state)) {
			fail(i, -EIO, "the volume's state cannot be stored");
			return;
		}
	}
	i->step = PINNING;
	snapshot_pin(i->repo, &i->source.snapshot, &state.writer, pinned, i);
}

static bool fits(struct instant *i, const struct snapshot_info *info)
{
	uint64_t size = volume_size_bytes(i->volume->volume);
	char why[256];

	if (info->size_bytes <= size)
		return true;
	snprintf(why, sizeof(why), "volume %s: too small: has %llu bytes, the snapshot needs %llu",
		 i->volume->config->name, (unsigned long long)size,
		 (unsigned long long)info->size_bytes);
	fail(i, -ENOSPC, why);
	return false;
}

static void opened(void *context, struct snapshot_origin *origin, int error, const char *why)
{
	struct instant *i = context;
	const struct snapshot_info *info;

	i->origin = origin;
	if (error) {
		fail(i, error, why);
		return;
	}
	if (node_is_stopping(i->volume)) {
		close_it(i);
		return;
	}
	info = snapshot_origin_info(origin);
	if (!i->job) { /* after a restart */
		i->step = FILLING;
		i->trouble[0] = i->volume->instant_trouble[0] = '\0';
		volume_hold_filling(i->volume->volume, i->check);
		volume_set_origin(i->volume->volume, snapshot_origin_of_volume(origin));
		check_begin(i);
	} else if (fits(i, info)) {
		i->source.snapshot = info->id;
		i->source.sequence = info->sequence;
		pin(i);
	}
}

static struct instant *instant_new(struct node_volume *v, const struct volume_source *source)
{
	struct instant *i = calloc(1, sizeof(*i));

	if (i)
		i->repo = snapshot_repo_new(v->store, &source->volume);
	if (!i || !i->repo) {
		free(i);
		return NULL;
	}
	i->volume = v;
	i->source = *source;
	i->busy_timer.fire = busy_fire;
	i->check_timer.fire = check_fire;
	v->instant = i;
	return i;
}

static void open_origin(struct instant *i)
{
	const struct snapshot_origin_config config = {
		.id = i->source.snapshot,
		.sequence = i->source.sequence,
		.probe_archive = i->job,
		.wait_ns = i->volume->config->hydrate_timeout_ns,
	};

	i->step = OPENING;
	snapshot_origin_open(i->repo, &config, over, opened, i);
}

/* What is about to be given up may be the last copy: then nothing goes over it for nobody before all of the new
 * one is known to be there. A disk that nobody ever wrote to holds nothing. */
static bool has_content(const struct volume_state *state)
{
	return !id128_is_zero(&state->generations.current);
}

void node_restore_instant(struct node_volume *v, const struct id128 *volume_uuid,
			  const struct id128 *id, node_done_fn done, void *context)
{
	char why[256] = "";
	int error = node_job_begin(v, "restore", done, context, why, sizeof(why));
	struct volume_source source = {.snapshot = {{0}}};
	struct volume_state state;
	struct instant *i;

	if (error) {
		done(context, error, why);
		return;
	}
	volume_get_state(v->volume, &state);
	source.volume = id128_is_zero(volume_uuid) ? state.uuid : *volume_uuid;
	if (id)
		source.snapshot = *id;
	if (!v->store)
		error = node_fail(-ENODEV, why, sizeof(why), "volume %s: %s", v->config->name,
				  node_store_why(v));
	else if (v->instant)
		error = node_fail(-EBUSY, why, sizeof(why),
				  "volume %s: is being filled from a snapshot already; try again "
				  "when it is over",
				  v->config->name);
	i = error ? NULL : instant_new(v, &source);
	if (!i) {
		node_job_finish(v, error ? error : -ENOMEM, error ? why : "out of memory");
		return;
	}
	i->job = true;
	i->check = has_content(&state);
	open_origin(i);
}

/* ---- over restarts ---------------------------------------------------------------------------------- */

void instant_look(struct node_volume *v)
{
	struct volume_source source;
	struct instant *i;

	if (!v->volume || !v->store || v->instant || v->busy || node_is_stopping(v))
		return;
	if (volume_source(v->volume, &source)) {
		i = instant_new(v, &source);
		if (i) {
			i->check = true; /* it may not have come to its end */
			open_origin(i);
		}
	} else if (volume_source_pinned(v->volume, &source)) {
		i = instant_new(v, &source);
		if (i)
			unpin(i);
	}
}

void instant_stop(struct node_volume *v)
{
	struct instant *i = v->instant;

	if (v->volume)
		volume_set_origin(v->volume, NULL);
	if (i->step == WAITING)
		fail(i, -ESHUTDOWN, "the daemon stops");
	else if (i->step == FILLING)
		close_it(i); /* else what is under way in the store comes back, and ends it */
}

const char *node_instant_trouble(const struct node_volume *v)
{
	if (!v->volume || !volume_source(v->volume, NULL))
		return "";
	if (!v->store)
		return node_store_why(v);
	if (v->instant && v->instant->origin && v->instant->step == FILLING &&
	    v->instant->trouble[0])
		return v->instant->trouble;
	if (v->instant && v->instant->origin)
		return snapshot_origin_trouble(v->instant->origin);
	return v->instant_trouble;
}
