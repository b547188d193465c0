/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/snapshot/origin.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/snapshot/internal.h"

#define RETRY_NS 1000000000ull

/* One read of the volume's, until it is answered. */
struct asked {
	struct env_op op;
	struct snapshot_origin *origin;
	struct volume_origin_read *read;
	uint64_t since_ns;
	struct asked *next; /* of those to be tried again */
};

struct snapshot_origin {
	struct volume_origin volume; /* first */
	struct snapshot_reader *reader;
	struct snapshot_repo *repo;
	struct snapshot_origin_config config;
	struct asked *failed; /* to be tried again */
	struct env_timer retry;
	bool closing;
	bool checking; /* what is closed goes when that has ended */
	struct inventory_archive archive;
	void (*checked)(void *context, int error, const char *why);
	void *checked_context;
	char trouble[WHY_BYTES];
	void (*over)(void *context, bool filled);
	void (*done)(void *context, struct snapshot_origin *origin, int error, const char *why);
	void *context;
	void (*closed)(void *context);
	void *closed_context;
};

/* Not to be mended by asking again. */
static bool is_final(int error)
{
	return error == -EBADMSG || error == -ENOENT || error == -STORE_NO_SECRET ||
	       error == -STORE_WRONG_SECRET || error == -STORE_NO_KEYS;
}

static void asked_end(struct asked *asked, int error)
{
	struct volume_origin_read *read = asked->read;

	free(asked);
	read->done(read, error);
}

static void asked_done(struct env_op *op, int64_t result)
{
	struct asked *asked = container_of(op, struct asked, op);
	struct snapshot_origin *o = asked->origin;
	uint64_t waited = env_now_ns(o->repo->env) - asked->since_ns;

	if (result >= 0) {
		o->trouble[0] = '\0';
		asked_end(asked, 0);
		return;
	}
	if (o->closing) {
		asked_end(asked, -ENOTCONN);
		return;
	}
	if (strcmp(o->trouble, snapshot_reader_why(o->reader)) != 0)
		env_log(o->repo->env, ENV_LOG_ERROR, "%s", snapshot_reader_why(o->reader));
	why_set(o->trouble, 0, "%s", snapshot_reader_why(o->reader));
	if (is_final((int)result) || (o->config.wait_ns && waited >= o->config.wait_ns)) {
		asked_end(asked, -EIO);
		return;
	}
	asked->next = o->failed;
	o->failed = asked;
	if (!env_timer_active(&o->retry))
		env_timer_start(o->repo->env, &o->retry, RETRY_NS);
}

static void ask(struct asked *asked)
{
	snapshot_reader_read(asked->origin->reader, &asked->op, asked->read->data,
			     asked->read->length_bytes, asked->read->offset_bytes);
}

static void retry(struct env_timer *timer)
{
	struct snapshot_origin *o = container_of(timer, struct snapshot_origin, retry);
	struct asked *failed = o->failed, *asked;

	o->failed = NULL;
	while ((asked = failed) != NULL) {
		failed = asked->next;
		ask(asked);
	}
}

static void origin_read(struct volume_origin *origin, struct volume_origin_read *read)
{
	struct snapshot_origin *o = (struct snapshot_origin *)origin;
	struct asked *asked = must_alloc(sizeof(*asked));

	assert(!o->closing);
	asked->op.done = asked_done;
	asked->origin = o;
	asked->read = read;
	asked->since_ns = env_now_ns(o->repo->env);
	ask(asked);
}

static bool origin_next_data(struct volume_origin *origin, uint64_t offset, uint64_t *start,
			     uint64_t *end)
{
	return snapshot_reader_next_data(((struct snapshot_origin *)origin)->reader, offset, start,
					 end);
}

static void origin_over(struct volume_origin *origin, bool filled)
{
	struct snapshot_origin *o = (struct snapshot_origin *)origin;

	o->over(o->context, filled);
}

static void opened(void *context, struct snapshot_reader *reader, int error, const char *why)
{
	struct snapshot_origin *o = context;

	if (error) {
		o->done(o->context, NULL, error, why);
		free(o);
		return;
	}
	o->reader = reader;
	o->done(o->context, o, 0, "");
}

void snapshot_origin_open(struct snapshot_repo *repo, const struct snapshot_origin_config *config,
			  void (*over)(void *context, bool filled),
			  void (*done)(void *context, struct snapshot_origin *origin, int error,
				       const char *why),
			  void *context)
{
	struct snapshot_origin *o = must_alloc(sizeof(*o));
	const struct snapshot_reader_config reader = {.sequence = config->sequence,
						      .probe_archive = config->probe_archive,
						      .fetches_max = 16,
						      .cache_bytes = 32u << 20};

	*o = (struct snapshot_origin){
		.volume = {.read = origin_read, .next_data = origin_next_data, .over = origin_over},
		.repo = repo,
		.config = *config,
		.retry = {.fire = retry},
		.over = over,
		.done = done,
		.context = context,
	};
	snapshot_reader_open(repo, id128_is_zero(&config->id) ? NULL : &o->config.id, &reader,
			     opened, o);
}

struct volume_origin *snapshot_origin_of_volume(struct snapshot_origin *o)
{
	return &o->volume;
}

const struct snapshot_info *snapshot_origin_info(const struct snapshot_origin *o)
{
	return snapshot_reader_info(o->reader);
}

const char *snapshot_origin_trouble(const struct snapshot_origin *o)
{
	return o->trouble;
}

static void reader_closed(void *context)
{
	struct snapshot_origin *o = context;
	void (*closed)(void *context) = o->closed;
	void *closed_context = o->closed_context;

	free(o);
	closed(closed_context);
}

/* ---- whether all of it is there --------------------------------------------------------------- */

static void check_end(struct snapshot_origin *o, int error, const char *why)
{
	o->checking = false;
	free(o->archive.objects);
	o->archive = (struct inventory_archive){.objects = NULL};
	if (o->closing)
		snapshot_reader_close(o->reader, reader_closed, o);
	else
		o->checked(o->checked_context, error, why);
}

static void check_thawed(void *context, int error, const char *why)
{
	check_end(context, error, why);
}

static void check_looked(void *context, int error, const char *why)
{
	struct snapshot_origin *o = context;
	char line[WHY_BYTES];

	if (!error && o->archive.count) {
		thaw(o->repo->store, snapshot_reader_manifest(o->reader), &o->archive, NULL,
		     check_thawed, o);
		return;
	}
	if (error == -EBADMSG)
		why_set(line, error, "objects of it are missing from the store: %s", why);
	else
		why_set(line, error, "%s", why);
	check_end(o, error, line);
}

void snapshot_origin_check(struct snapshot_origin *o,
			   void (*done)(void *context, int error, const char *why), void *context)
{
	assert(!o->checking && !o->closing);
	o->checking = true;
	o->checked = done;
	o->checked_context = context;
	inventory_look(o->repo->store, snapshot_reader_manifest(o->reader), &o->archive,
		       check_looked, o);
}

void snapshot_origin_close(struct snapshot_origin *o, void (*closed)(void *context), void *context)
{
	struct asked *failed = o->failed, *asked;

	o->closing = true;
	o->closed = closed;
	o->closed_context = context;
	env_timer_stop(o->repo->env, &o->retry);
	o->failed = NULL;
	while ((asked = failed) != NULL) {
		failed = asked->next;
		asked_end(asked, -ENOTCONN);
	}
	if (!o->checking)
		snapshot_reader_close(o->reader, reader_closed, o);
}
