/* SPDX-License-Identifier: Apache-2.0 */
/*
 * export: the block device in front of a snapshot's reader. A chunk that is damaged or missing fails the reads
 * of it and nothing else; the log names it once, and others not more often than one a second.
 */
#include "daemon/snapshot/export.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/snapshot/changes.h"
#include "daemon/snapshot/reader.h"

#define LOG_PERIOD_NS 1000000000ull

/* What one client sees: the same snapshot by one of its two names. */
struct door {
	struct block block;
	struct snapshot_export *export;
	bool latest;
};

struct snapshot_export {
	struct snapshot_repo *repo;
	struct env *env;
	struct snapshot_info info;
	struct door by_id, by_latest;
	char name[SNAPSHOT_NAME_MAX + 64], description[192];
	struct snapshot_reader *reader; /* NULL: stopped */
	struct changes *allocation;     /* made when it is asked for first */
	unsigned clients, under_way;
	bool kept; /* held in the repo */
	bool stopping, closing;
	bool reader_gone, allocation_gone;
	uint64_t logged_ns, unlogged;
	char logged[256]; /* the last line's reason */
	void (*opened)(void *context, struct snapshot_export *export, int error, const char *why);
	void *opened_context;
	void (*closed)(void *context);
	void *closed_context;
};

bool snapshot_export_keep(struct snapshot_export *e, bool keep)
{
	if (keep && !e->kept)
		e->kept = snapshot_hold(e->repo, &e->info.id);
	else if (!keep && e->kept)
		snapshot_unhold(e->repo, &e->info.id);
	e->kept = keep && e->kept;
	return e->kept;
}

/* ---- opening and closing ------------------------------------------------------------------------ */

static void check_gone(struct snapshot_export *e)
{
	void (*closed)(void *context) = e->closed;
	void *context = e->closed_context;

	if (!e->closing || !e->reader_gone || !e->allocation_gone)
		return;
	assert(!e->under_way && !e->clients);
	snapshot_export_keep(e, false);
	free(e);
	closed(context);
}

static void reader_closed(void *context)
{
	struct snapshot_export *e = context;

	e->reader_gone = true;
	check_gone(e);
}

/* The reader has the manifest that the allocation goes by. */
static void allocation_freed(void *context)
{
	struct snapshot_export *e = context;
	struct snapshot_reader *reader = e->reader;

	e->allocation_gone = true;
	e->reader = NULL;
	snapshot_reader_close(reader, reader_closed, e);
}

void snapshot_export_stop(struct snapshot_export *e)
{
	struct changes *allocation = e->allocation;

	if (e->stopping)
		return;
	e->stopping = true;
	e->allocation = NULL;
	if (allocation)
		changes_free(allocation, allocation_freed, e);
	else
		allocation_freed(e);
}

void snapshot_export_close(struct snapshot_export *e, void (*closed)(void *context), void *context)
{
	assert(!e->closing && !e->clients && !e->under_way);
	e->closing = true;
	e->closed = closed;
	e->closed_context = context;
	if (e->stopping)
		check_gone(e);
	else
		snapshot_export_stop(e);
}

static void describe(struct snapshot_export *e, const char *volume_name)
{
	const time_t seconds = (time_t)(e->info.created_ns / 1000000000u);
	char id[ID128_TEXT_BYTES], when[40] = "?";
	struct tm tm;

	id128_format(&e->info.id, id);
	if (gmtime_r(&seconds, &tm))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S UTC", &tm);
	snprintf(e->name, sizeof(e->name), "%s@%s", volume_name, id);
	snprintf(e->description, sizeof(e->description), "snapshot of %s as of %s%s%s", volume_name,
		 when, e->info.label[0] ? ": " : "", e->info.label);
}

static void export_opened(void *context, struct snapshot_reader *reader, int error, const char *why)
{
	struct snapshot_export *e = context;

	if (!error) {
		e->reader = reader;
		e->info = *snapshot_reader_info(reader);
		*strchr(e->name, '@') = '\0';
		describe(e, strdupa(e->name));
		e->opened(e->opened_context, e, 0, "");
		return;
	}
	snapshot_export_keep(e, false);
	e->opened(e->opened_context, NULL, error, why);
	free(e);
}

static const struct block_ops door_ops;

void snapshot_export_open(struct snapshot_repo *repo, const char *volume_name,
			  const struct snapshot_info *found,
			  void (*done)(void *context, struct snapshot_export *export, int error,
				       const char *why),
			  void *context)
{
	const struct snapshot_reader_config config = {.sequence = found->sequence};
	struct snapshot_export *e;

	if (!snapshot_hold(repo, &found->id)) {
		done(context, NULL, -ENOENT, "the snapshot was deleted");
		return;
	}
	e = must_alloc(sizeof(*e));
	*e = (struct snapshot_export){
		.repo = repo,
		.env = repo->env,
		.info = *found,
		.kept = true,
		.opened = done,
		.opened_context = context,
	};
	e->by_id = (struct door){{&door_ops, e->name, e->description}, e, false};
	e->by_latest = (struct door){{&door_ops, e->name, e->description}, e, true};
	snprintf(e->name, sizeof(e->name), "%s@", volume_name);
	snapshot_reader_open(repo, &found->id, &config, export_opened, e);
}

struct block *snapshot_export_block(struct snapshot_export *e, bool latest)
{
	return latest ? &e->by_latest.block : &e->by_id.block;
}

const struct snapshot_info *snapshot_export_info(const struct snapshot_export *e)
{
	return &e->info;
}

unsigned snapshot_export_clients(const struct snapshot_export *e)
{
	return e->clients;
}

/* ---- the device --------------------------------------------------------------------------------- */

static struct door *door_of(struct block *block)
{
	return container_of(block, struct door, block);
}

static int door_open(struct block *block, char *why, size_t why_size)
{
	struct snapshot_export *e = door_of(block)->export;

	if (e->stopping) {
		snprintf(why, why_size, "%s: the server is stopping", e->name);
		return -ESHUTDOWN;
	}
	e->clients++;
	return 0;
}

static void door_close(struct block *block)
{
	struct snapshot_export *e = door_of(block)->export;

	assert(e->clients > 0);
	e->clients--;
}

static void door_info(struct block *block, struct block_info *info)
{
	const struct door *door = door_of(block);

	*info = (struct block_info){
		.size_bytes = door->export->info.size_bytes,
		.block_min_bytes = 1,
		.block_preferred_bytes = SNAPSHOT_CHUNK_BYTES,
		.read_only = true,
		.can_multi_conn = !door->latest,
	};
}

static void log_failure(struct snapshot_export *e, const char *what, uint64_t offset,
			const char *why)
{
	uint64_t now = env_now_ns(e->env);

	if (!strcmp(why, e->logged) || (e->logged_ns && now - e->logged_ns < LOG_PERIOD_NS)) {
		e->unlogged++;
		return;
	}
	env_log(e->env, ENV_LOG_ERROR, "export %s: %s at byte %llu failed: %s", e->name, what,
		(unsigned long long)offset, why);
	if (e->unlogged)
		env_log(e->env, ENV_LOG_INFO, "export %s: %llu more failures before that one",
			e->name, (unsigned long long)e->unlogged);
	e->unlogged = 0;
	e->logged_ns = now;
	snprintf(e->logged, sizeof(e->logged), "%s", why);
}

/* In the request's priv. */
struct reading {
	struct env_op op;
	struct snapshot_export *export;
	struct block_request *request;
};
_Static_assert(sizeof(struct reading) <= sizeof(((struct block_request *)0)->priv), "it fits");

static void read_done(struct env_op *op, int64_t result)
{
	struct reading *reading = container_of(op, struct reading, op);
	struct snapshot_export *e = reading->export;
	struct block_request *request = reading->request;
	int error = 0;

	e->under_way--;
	if (result < 0 && e->stopping) {
		error = -ESHUTDOWN;
	} else if (result < 0) {
		log_failure(e, "read", request->offset_bytes, snapshot_reader_why(e->reader));
		error = -EIO;
	}
	request->done(request, error);
}

static void door_submit(struct block *block, struct block_request *request)
{
	struct snapshot_export *e = door_of(block)->export;
	struct reading *reading = (struct reading *)request->priv;

	if (request->op == BLOCK_FLUSH || request->op == BLOCK_CACHE) {
		request->done(request, 0);
	} else if (request->op != BLOCK_READ) {
		request->done(request, -EPERM);
	} else if (e->stopping) {
		request->done(request, -ESHUTDOWN);
	} else if (!request->length_bytes || request->length_bytes > BUF_SIZE_MAX ||
		   request->offset_bytes > e->info.size_bytes ||
		   request->length_bytes > e->info.size_bytes - request->offset_bytes) {
		request->done(request, -EINVAL);
	} else {
		*reading = (struct reading){{.done = read_done}, e, request};
		e->under_way++;
		snapshot_reader_read(e->reader, &reading->op, request->buf->data,
				     (uint32_t)request->length_bytes, request->offset_bytes);
	}
}

/* ---- allocation: chunks that the map has, and the rest, which is holes ------------------------------ */

struct asking {
	struct changes_query query;
	struct snapshot_export *export;
	struct block_status *status;
	struct snapshot_extent *extents;
};
_Static_assert(sizeof(struct asking) <= sizeof(((struct block_status *)0)->priv), "it fits");

static void asked(struct changes_query *query, int error, const char *why)
{
	struct asking *asking = container_of(query, struct asking, query);
	struct snapshot_export *e = asking->export;
	struct block_status *status = asking->status;

	e->under_way--;
	status->count = query->count;
	for (unsigned i = 0; i < query->count; i++)
		status->extents[i] = (struct block_extent){
			.length_bytes = query->extents[i].length_bytes,
			.hole = query->extents[i].zero,
			.zero = query->extents[i].zero,
		};
	if (error && !e->stopping)
		log_failure(e, "map", status->offset_bytes, why);
	free(asking->extents);
	status->done(status, !error ? 0 : e->stopping ? -ESHUTDOWN : -EIO);
}

static void door_status(struct block *block, struct block_status *status)
{
	struct snapshot_export *e = door_of(block)->export;
	struct asking *asking = (struct asking *)status->priv;

	if (e->stopping) {
		status->done(status, -ESHUTDOWN);
		return;
	}
	if (!e->allocation)
		e->allocation =
			changes_new(e->repo->store, NULL, snapshot_reader_manifest(e->reader));
	*asking = (struct asking){.export = e, .status = status};
	asking->extents = must_alloc(status->max * sizeof(*asking->extents));
	asking->query = (struct changes_query){
		.offset_bytes = status->offset_bytes,
		.length_bytes = status->length_bytes,
		.extents = asking->extents,
		.max = status->max,
		.done = asked,
	};
	e->under_way++;
	changes_ask(e->allocation, &asking->query);
}

static const struct block_ops door_ops = {
	.open = door_open,
	.close = door_close,
	.info = door_info,
	.submit = door_submit,
	.status = door_status,
};
