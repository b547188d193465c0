/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sink's redo log: collecting, committing, applying, draining, recovery.
 *
 * Two passes over the same records: first the cut's blocks up to COMMIT, then what was streamed.
 * The log stays whole until both are durable on the volume, so a crash anywhere repeats both from
 * the start; only what is durable in the log is ever applied, so that a repeated pass ends no
 * earlier than where the interrupted one was.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/mutate.h"
#include "daemon/replication/sink_internal.h"

static bool committed(const struct sink *sink)
{
	return sink->log >= SINK_LOG_APPLY_CUT && sink->log <= SINK_LOG_FLUSH_STREAM;
}

static void staging_progress(void *owner)
{
	sink_step_later(owner);
}

static void staging_failed(void *owner, int error)
{
	struct sink *sink = owner;

	sink->log_failed = true;
	sink_refuse(sink, FRAME_ERROR_STAGING,
		    error == -ENOSPC ? "staging: no space left on the disk"
				     : "staging: write error");
	if (sink->log == SINK_LOG_COLLECT || sink->log == SINK_LOG_COMMITTING)
		sink->log = SINK_LOG_ABANDON;
	sink_void_transfer(sink);
	sink_step_later(sink);
}

const struct staging_ops sink_staging_ops = {
	.progress = staging_progress,
	.failed = staging_failed,
};

void sink_log_stuck(struct sink *sink, int error, const char *what)
{
	env_log(sink->env, ENV_LOG_ERROR, "staging: volume %s: %s: %s; kept for the next start",
		volume_name(sink->volume), what, strerror(-error));
	sink->log = SINK_LOG_STUCK;
	sink_refuse(sink, FRAME_ERROR_IO, "staged data cannot be applied");
	sink_step_later(sink);
}

void sink_log_append(struct sink *sink, enum staging_type type, unsigned flags, uint64_t lsn,
		     uint64_t offset, uint64_t length, const void *payload)
{
	struct staging_record record = {
		.type = type, .flags = flags, .lsn = lsn, .offset = offset, .length = length};

	if (type >= STAGING_WRITE && !sink->stream_position) {
		sink->stream_position = staging_end(sink->staging);
		sink->stream_first = staging_sequence(sink->staging) + 1;
	}
	staging_append(sink->staging, &record, payload);
}

void sink_log_commit(struct sink *sink)
{
	assert(sink->log == SINK_LOG_COLLECT);
	sink_log_append(sink, STAGING_COMMIT, sink->final ? STAGING_FINAL : 0, sink->cut_lsn, 0,
			sizeof(sink->commit), &sink->commit);
	sink->commit_position = staging_end(sink->staging);
	sink->log = SINK_LOG_COMMITTING;
	staging_sync(sink->staging);
	sink_step_later(sink);
}

static void begin_pass(struct sink *sink, enum sink_log log, uint64_t position, uint64_t sequence,
		       uint64_t limit)
{
	sink->log = log;
	sink->limit = limit;
	sink->have_record = false;
	staging_seek(sink->staging, position, sequence);
}

/* Until the log is empty only it makes the backing whole: a mixture while the cut is applied, without
 * acknowledged writes while the stream behind it is. */
static int mark_applying(struct sink *sink, bool applying)
{
	struct volume_state state;

	volume_get_state(sink->volume, &state);
	if (state.applying == applying || MUTATE(replication_apply_unmarked))
		return 0;
	state.applying = applying;
	return volume_set_state(sink->volume, &state);
}

/* No whole log is there: was its cut half applied? */
static void lost_while_applying(struct sink *sink)
{
	struct volume_state state;

	volume_get_state(sink->volume, &state);
	if (!state.applying)
		return;
	env_log(sink->env, ENV_LOG_ERROR,
		"staging: volume %s: the log of a cut that was being applied is lost or damaged: "
		"the "
		"content is a mixture until it is synced or restored anew",
		volume_name(sink->volume));
	state.disk = VOLUME_DISK_INCONSISTENT;
	int error = volume_set_state(sink->volume, &state);
	if (error)
		sink_log_stuck(sink, error, "cannot persist the volume's state");
}

/* A log that cannot be read now may be readable at the next start: one that was being applied is kept for that, as it
 * alone makes the content whole; any other is made void, that it does not come back over newer content. */
void sink_log_recover(struct sink *sink)
{
	int error = staging_recover(sink->staging, &sink->log_generation, &sink->transfer);
	struct volume_state state;

	volume_get_state(sink->volume, &state);
	if (!error)
		sink->log = SINK_LOG_SCAN;
	else if (error == -ENOENT)
		lost_while_applying(sink);
	else if (state.applying)
		sink_log_stuck(sink, error, "cannot read the log");
	else
		sink->log = SINK_LOG_ABANDON;
	sink_step_later(sink);
}

static void begin_cut_pass(struct sink *sink)
{
	int error = sink_begin_applying(sink);

	if (!error)
		error = mark_applying(sink, true);

	if (error) {
		sink_log_stuck(sink, error, "cannot persist the volume's state");
		return;
	}
	begin_pass(sink, SINK_LOG_APPLY_CUT, STAGING_FIRST, 1, sink->commit_position);
}

/* Hands the record at hand to the volume if it belongs to this pass. False: no buffer now. */
static bool apply_record(struct sink *sink)
{
	const struct staging_record *r = &sink->record;
	bool content = r->type == STAGING_CUT_DATA || r->type == STAGING_WRITE;
	bool zero = r->type == STAGING_CUT_ZERO || r->type == STAGING_ZERO;
	bool cut = r->type == STAGING_CUT_DATA || r->type == STAGING_CUT_ZERO;
	struct buf *buf = NULL;

	/* The log is durable and is repeated as a whole: its flushes need no barriers here. */
	if (cut != (sink->log == SINK_LOG_APPLY_CUT) || (!content && !zero))
		return true;
	if (content) {
		buf = buf_alloc(sink->pool, (uint32_t)r->length);
		if (!buf)
			return false;
		memcpy(buf->data, sink->record_payload, r->length);
	}
	sink_submit(sink, content ? VOLUME_WRITE : VOLUME_ZERO, false, r->flags & STAGING_PUNCH,
		    r->lsn, r->offset, r->length, buf, 0);
	return true;
}

/* Goes on with the pass. True: everything up to the limit is on the volume. */
static bool pass(struct sink *sink)
{
	while (sink->free_applies && !sink->stopping && sink->log != SINK_LOG_STUCK) {
		if (!sink->have_record) {
			int result = staging_next(sink->staging, sink->limit, &sink->record,
						  &sink->record_payload);
			if (result == -EAGAIN)
				return false;
			if (result < 0 ||
			    (result == 0 && staging_position(sink->staging) < sink->limit)) {
				sink_log_stuck(sink, -EIO, "log damaged after it was written");
				return false;
			}
			if (result == 0)
				return sink->in_flight == 0;
			sink->have_record = true;
		}
		if (!apply_record(sink))
			return false;
		sink->have_record = false;
	}
	return false;
}

static void flush_volume(struct sink *sink, enum sink_log log, uint64_t lsn)
{
	sink->log = log;
	sink->flush_lsn = lsn;
	sink_submit(sink, VOLUME_FLUSH, false, false, lsn, 0, 0, NULL, 0);
}

/* The log has done its work: empties it before anything newer reaches the volume directly. */
static void finish(struct sink *sink)
{
	if (!staging_is_idle(sink->staging))
		return; /* comes again with the progress */
	/* A frame that was admitted before the source was held may have come since. */
	if (!sink->log_recovered && !sink->log_failed && sink->stream_position &&
	    staging_end(sink->staging) > sink->stream_applied) {
		if (sink->stream_applied)
			sink->log = SINK_LOG_APPLY_STREAM;
		else
			begin_pass(sink, SINK_LOG_APPLY_STREAM, sink->stream_position,
				   sink->stream_first, staging_synced(sink->staging));
		sink_step_later(sink);
		return;
	}
	/* In this order: a log that is there once more does no harm. */
	int error = mark_applying(sink, false);
	if (!error && !MUTATE(replication_keep_stale_log))
		error = staging_reset(sink->staging);
	if (error) {
		sink_log_stuck(sink, error, "cannot empty the log");
		return;
	}
	sink->log = SINK_LOG_NONE;
	sink->hold = false;
	sink->log_recovered = false;
	if (!sink->log_failed && sink->log_last_sequence > sink->log_acked)
		sink_ack(sink, sink->log_acked + 1, sink->log_last_sequence);
	sink_adopt_synced(sink);
	sink_step_later(sink);
}

void sink_log_flushed(struct sink *sink, int error)
{
	if (sink->log == SINK_LOG_ABANDON) {
		sink_step_later(sink);
		return;
	}
	if (error) {
		sink_log_stuck(sink, error, "cannot apply staged data");
		return;
	}
	if (sink->log == SINK_LOG_FLUSH_CUT) {
		error = sink_cut_applied(sink);
		if (error) {
			sink_log_stuck(sink, error, "cannot persist the volume's state");
			return;
		}
		uint64_t limit = sink->log_recovered ? sink->limit : staging_synced(sink->staging);
		if (sink->stream_position)
			begin_pass(sink, SINK_LOG_APPLY_STREAM, sink->stream_position,
				   sink->stream_first, limit);
		else
			sink->log = SINK_LOG_FLUSH_STREAM;
		sink->hold = sink->log == SINK_LOG_FLUSH_STREAM;
	}
	sink_step_later(sink);
}

/* Group commit of what is streamed into the log; acknowledged once the cut before it is durable. */
static void sync_stream(struct sink *sink)
{
	uint64_t synced = staging_synced(sink->staging);

	if (sink->log_failed)
		return;
	if (sink->log_sync_position && synced >= sink->log_sync_position) {
		if (sink->log_sync_sequence > sink->log_acked)
			sink_ack(sink, sink->log_acked + 1, sink->log_sync_sequence);
		sink->log_acked = sink->log_sync_sequence;
		sink->log_sync_position = 0;
	}
	if (!sink->log_sync_position && staging_end(sink->staging) > synced) {
		sink->log_sync_position = staging_end(sink->staging);
		sink->log_sync_sequence = sink->log_last_sequence;
		staging_sync(sink->staging);
	}
}

static void step_stream_pass(struct sink *sink)
{
	if (!sink->log_recovered) {
		sink->limit = staging_synced(sink->staging);
		/* Close to the end the source is held, so that the end is reached. */
		if (staging_position(sink->staging) >= sink->limit)
			sink->hold = true;
	}
	if (!pass(sink))
		return;
	if (!sink->log_recovered && !sink->log_failed &&
	    staging_end(sink->staging) > staging_synced(sink->staging))
		return; /* the rest is being made durable */
	sink->hold = true;
	sink->stream_applied = sink->limit;
	flush_volume(sink, SINK_LOG_FLUSH_STREAM, sink->log_last_lsn);
}

static void scan_record(struct sink *sink, uint64_t position)
{
	const struct staging_record *r = &sink->record;

	switch (r->type) {
	case STAGING_CUT_DATA:
	case STAGING_CUT_ZERO:
		sink->cut_frames++;
		sink->cut_bytes += r->length;
		break;
	case STAGING_COMMIT:
		memcpy(&sink->commit, sink->record_payload, sizeof(sink->commit));
		sink->commit_position = staging_position(sink->staging);
		sink->cut_lsn = r->lsn;
		sink->final = r->flags & STAGING_FINAL;
		break;
	case STAGING_RESUME: /* what was streamed belonged to a cut that never was */
		sink->stream_position = sink->stream_first = 0;
		break;
	default:
		if (!sink->stream_position) {
			sink->stream_position = position;
			sink->stream_first = r->sequence;
		}
		sink->log_last_lsn = r->lsn;
	}
}

/* An unfinished cut is kept for its source to go on with, unless there is nothing in it. */
static void scan_unfinished(struct sink *sink)
{
	sink->kept = sink->cut_frames && !id128_is_zero(&sink->transfer);
	sink->log = sink->kept ? SINK_LOG_COLLECT : SINK_LOG_ABANDON;
	if (sink->kept) {
		sink->durable_frames = sink->cut_frames;
		sink->report_bytes = sink->cut_bytes;
		staging_continue(sink->staging);
	}
	env_log(sink->env, ENV_LOG_INFO,
		"staging: volume %s: a cut that was not complete: %llu bytes of it are kept",
		volume_name(sink->volume), (unsigned long long)(sink->kept ? sink->cut_bytes : 0));
	sink_step_later(sink);
}

/* At start: finds COMMIT, the first streamed record and the end of what is valid. */
static void scan(struct sink *sink)
{
	for (;;) {
		uint64_t position = staging_position(sink->staging);
		int result = staging_next(sink->staging, staging_file_bytes(sink->staging),
					  &sink->record, &sink->record_payload);
		if (result == -EAGAIN)
			return;
		if (result < 0) {
			sink_log_stuck(sink, result, "cannot read the log");
			return;
		}
		if (result == 0)
			break;
		scan_record(sink, position);
	}
	struct volume_state state;
	volume_get_state(sink->volume, &state);
	const struct id128 *current = &state.generations.current;
	/* A volume that went on without this log (restored, promoted by force) must not be set back. */
	bool fits = state.disk != VOLUME_DISK_INCONSISTENT && state.role == VOLUME_SECONDARY &&
		    (id128_equal(current, &sink->log_generation) ||
		     (sink->commit_position && id128_equal(current, &sink->commit.generation)));
	if (MUTATE(replication_apply_uncommitted) && !sink->commit_position && fits) {
		sink->commit_position = staging_position(sink->staging);
		sink->commit.generation = *current;
		sink->commit.uuid = state.uuid;
	}
	if (!sink->commit_position && fits && !state.applying) {
		scan_unfinished(sink);
		return;
	}
	if (!sink->commit_position || !fits) {
		env_log(sink->env, ENV_LOG_WARNING, "staging: volume %s: dropping a cut that %s",
			volume_name(sink->volume),
			sink->commit_position ? "no longer fits the volume" : "is not complete");
		sink->log = SINK_LOG_ABANDON;
		if (!sink->commit_position)
			lost_while_applying(sink);
		sink_step_later(sink);
		return;
	}
	env_log(sink->env, ENV_LOG_INFO, "staging: volume %s: applying a committed cut",
		volume_name(sink->volume));
	uint64_t end = staging_position(sink->staging);
	begin_cut_pass(sink);
	sink->log_recovered = true;
	sink->log_sync_position = end; /* where the stream pass will end */
	sink_step_later(sink);
}

static void step_committing(struct sink *sink)
{
	uint64_t safe = MUTATE(replication_commit_without_fsync) ? staging_written(sink->staging)
								 : staging_synced(sink->staging);
	if (safe < sink->commit_position)
		return;
	begin_cut_pass(sink);
	sink_step_later(sink);
}

static void step_cut_pass(struct sink *sink)
{
	if (!pass(sink))
		return;
	if (sink->log_recovered)
		sink->limit = sink->log_sync_position;
	flush_volume(sink, SINK_LOG_FLUSH_CUT, sink->cut_lsn);
}

static void step_abandon(struct sink *sink)
{
	if (!staging_is_idle(sink->staging) || sink->link || sink->in_flight)
		return;
	/* Its COMMIT may have become durable though its fsync failed: void it. */
	if (!MUTATE(replication_keep_stale_log))
		(void)staging_reset(sink->staging);
	sink->log = SINK_LOG_NONE;
	sink_step_later(sink);
}

void sink_log_step(struct sink *sink)
{
	if (committed(sink) && !sink->log_recovered)
		sync_stream(sink);
	switch (sink->log) {
	case SINK_LOG_COMMITTING:
		step_committing(sink);
		break;
	case SINK_LOG_APPLY_CUT:
		step_cut_pass(sink);
		break;
	case SINK_LOG_APPLY_STREAM:
		step_stream_pass(sink);
		break;
	case SINK_LOG_FLUSH_STREAM:
		if (sink->in_flight == 0)
			finish(sink);
		break;
	case SINK_LOG_ABANDON:
		step_abandon(sink);
		break;
	case SINK_LOG_SCAN:
		scan(sink);
		break;
	case SINK_LOG_NONE:
	case SINK_LOG_COLLECT:
	case SINK_LOG_FLUSH_CUT:
	case SINK_LOG_STUCK:
		break;
	}
}
