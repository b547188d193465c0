/* SPDX-License-Identifier: Apache-2.0 */
/* The receiving side: frames, application in order, acknowledgements. See sink.h. */
#include "daemon/replication/sink.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/replication/answer.h"
#include "daemon/mutate.h"
#include "daemon/replication/sink_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

void generations_push(struct volume_generations *generations, const struct id128 *id)
{
	if (id128_is_zero(id))
		return;
	for (unsigned i = 0; i < VOLUME_HISTORY; i++)
		if (id128_equal(&generations->history[i], id))
			return;
	memmove(generations->history + 1, generations->history,
		sizeof(generations->history) - sizeof(generations->history[0]));
	generations->history[0] = *id;
}

void sink_step_later(struct sink *sink)
{
	env_defer(sink->env, &sink->step_task);
}

void sink_refuse(struct sink *sink, enum frame_error code, const char *text)
{
	if (!sink->link || sink->phase == SINK_OFF)
		return;
	sink->phase = SINK_OFF;
	sink->ops->refuse(sink->owner, code, text);
}

/* ---- acknowledgements ----------------------------------------------------------------------- */

/* At most one range between any two applications under way: the array cannot overflow. */
_Static_assert(FRAME_RANGES_MAX > SINK_APPLIES + 2, "acknowledgements fit one frame");

void sink_ack(struct sink *sink, uint64_t first, uint64_t last)
{
	unsigned i = 0;

	if (!sink->link)
		return;
	for (; i < sink->ack_count; i++) {
		if (first <= sink->acks[i].last + 1 && last + 1 >= sink->acks[i].first)
			break;
	}
	if (i == sink->ack_count) {
		assert(sink->ack_count < FRAME_RANGES_MAX);
		sink->ack_count++;
		sink->acks[i].first = first;
		sink->acks[i].last = last;
	}
	if (first < sink->acks[i].first)
		sink->acks[i].first = first;
	if (last > sink->acks[i].last)
		sink->acks[i].last = last;
	/* Joining one range may make it touch others. */
	for (unsigned j = 0; j < sink->ack_count;) {
		if (j != i && sink->acks[j].first <= sink->acks[i].last + 1 &&
		    sink->acks[j].last + 1 >= sink->acks[i].first) {
			if (sink->acks[j].first < sink->acks[i].first)
				sink->acks[i].first = sink->acks[j].first;
			if (sink->acks[j].last > sink->acks[i].last)
				sink->acks[i].last = sink->acks[j].last;
			sink->acks[j] = sink->acks[--sink->ack_count];
			if (i == sink->ack_count)
				i = j;
		} else {
			j++;
		}
	}
	env_defer(sink->env, &sink->ack_task);
}

static void send_acks(struct env_task *task)
{
	struct sink *sink = container_of(task, struct sink, ack_task);
	struct frame frame = {
		.type = FRAME_ACK, .id = sink->received_sequence, .lsn = sink->durable_lsn};

	if (!sink->link || sink->phase == SINK_OFF)
		return;
	if (!sink->ack_count && sink->sent_received == sink->received_sequence)
		return;
	for (unsigned i = 0; i < sink->ack_count; i++)
		sink->ack_wire[i] = (struct frame_range_wire){to_be64(sink->acks[i].first),
							      to_be64(sink->acks[i].last)};
	if (!link_send_control(sink->link, &frame, sink->ack_wire,
			       sink->ack_count * (uint32_t)sizeof(sink->ack_wire[0])))
		return; /* sink_sent() tries again */
	sink->ack_count = 0;
	sink->sent_received = sink->received_sequence;
}

static void send_resume(struct sink *sink);

void sink_sent(struct sink *sink)
{
	answer_sent(sink->answer);
	if (sink->report_unsent)
		send_resume(sink);
	env_defer(sink->env, &sink->ack_task);
	sink_step_later(sink); /* a READ may wait for room in the queue */
}

static void send(struct sink *sink, struct frame frame)
{
	if (sink->link && sink->phase != SINK_OFF)
		link_send_control(sink->link, &frame, NULL, 0);
}

/* ---- applying ------------------------------------------------------------------------------- */

static void apply_done(struct volume_apply *done, int error)
{
	struct sink_apply *apply = container_of(done, struct sink_apply, apply);
	struct sink *sink = apply->sink;
	bool flush = apply->apply.mutation.type == VOLUME_FLUSH;
	uint64_t sequence = apply->sequence, lsn = apply->apply.mutation.lsn;

	buf_put(apply->apply.mutation.buf);
	apply->apply.mutation.buf = NULL;
	apply->next = sink->free_applies;
	sink->free_applies = apply;
	assert(sink->in_flight > 0);
	sink->in_flight--;
	if (flush && sink->flushing) {
		sink->flushing = false;
		sink->barrier = false;
		if (!error && lsn > sink->durable_lsn)
			sink->durable_lsn = lsn;
	} else if (flush) {
		sink_log_flushed(sink, error);
		error = 0;
	} else if (error && sink->log == SINK_LOG_ABANDON) {
		error = 0; /* of what is void */
	} else if (error && sink->log >= SINK_LOG_APPLY_CUT && sink->log != SINK_LOG_STUCK) {
		sink_log_stuck(sink, error, "cannot apply staged data");
		error = 0;
	}
	if (error) {
		sink_void_transfer(sink); /* nothing may be built on what did not land */
		sink_refuse(sink, FRAME_ERROR_IO, "the disk failed");
	} else if (sequence && !MUTATE(replication_ack_before_apply))
		sink_ack(sink, sequence, sequence);
	sink_step_later(sink);
}

void sink_submit(struct sink *sink, enum volume_mutation_type type, bool fua, bool punch,
		 uint64_t lsn, uint64_t offset, uint64_t length, struct buf *buf, uint64_t sequence)
{
	struct sink_apply *apply = sink->free_applies;

	assert(apply);
	sink->free_applies = apply->next;
	sink->in_flight++;
	apply->sequence = sequence;
	apply->apply.mutation = (struct volume_mutation){
		.type = type,
		.fua = fua,
		.punch = punch,
		.lsn = lsn,
		.offset_bytes = offset,
		.length_bytes = length,
		.buf = buf,
	};
	apply->apply.done = apply_done;
	volume_apply(sink->volume, &apply->apply);
}

int sink_begin_applying(struct sink *sink)
{
	if (sink->applying_begun)
		return 0;
	int error = volume_begin_applying(sink->volume);
	if (error)
		env_log(sink->env, ENV_LOG_ERROR, "replication: volume %s: %s",
			volume_name(sink->volume), strerror(-error));
	sink->applying_begun = error == 0;
	return error;
}

/* What this side wrote since its base is given up: no later content descends from it. */
static void forget_own(struct volume_generations *generations)
{
	unsigned own = 0, left;

	while (own < VOLUME_HISTORY && !id128_equal(&generations->history[own], &generations->base))
		own++;
	if (id128_is_zero(&generations->base))
		return;
	if (own == VOLUME_HISTORY) /* it fell out of the history: older than all of it */
		generations->history[--own] = generations->base;
	left = VOLUME_HISTORY - own;
	memmove(generations->history, generations->history + own,
		left * sizeof(generations->history[0]));
	memset(generations->history + left, 0, own * sizeof(generations->history[0]));
}

/* The content is now the source's as of the cut. */
int sink_cut_applied(struct sink *sink)
{
	struct volume_state state;
	bool was_in_place = sink->in_place;

	volume_get_state(sink->volume, &state);
	if (sink->wants)
		forget_own(&state.generations);
	else
		generations_push(&state.generations, &state.generations.current);
	state.generations.current = sink->commit.generation;
	state.generations.base = (struct id128){};
	if (!id128_equal(&state.uuid, &sink->commit.uuid)) {
		state.uuid = sink->commit.uuid;
		state.snapshot = (struct id128){};
	}
	if (sink->final || was_in_place || sink->wants) {
		state.disk = VOLUME_DISK_UPTODATE;
		state.outdated_ns = 0;
	}
	if (was_in_place && sink->live && !sink->wants) {
		state.disk = VOLUME_DISK_OUTDATED;
		state.outdated_ns =
			env_realtime_ns(sink->env) - (env_now_ns(sink->env) - sink->cut_started_ns);
	}
	int error = volume_set_state(sink->volume, &state);
	if (error)
		return error;
	/* Its own changes are in the source's map, and so in the cut. A crash before this line only
	 * leaves marks that are sent once more. */
	error = volume_clear_all(sink->volume, VOLUME_PEER);
	if (error && error != -EBUSY)
		return error;
	if (was_in_place)
		volume_drop_copy(sink->volume);
	sink->cuts++;
	sink->wants = false;
	sink->transfer = (struct id128){};
	sink->durable_lsn = sink->cut_lsn;
	if (sink->link && sink->phase == SINK_COMMIT) {
		sink->phase = sink->final ? SINK_STREAM : SINK_WAIT;
		send(sink, (struct frame){.type = FRAME_CUT_ACK, .id = sink->round});
		sink->ops->cut_applied(sink->owner, sink->final);
	}
	return 0;
}

void sink_adopt_synced(struct sink *sink)
{
	struct volume_state state;

	if (!sink->have_synced)
		return;
	sink->have_synced = false;
	volume_get_state(sink->volume, &state);
	if (!id128_equal(&state.generations.current, &sink->synced_generation)) {
		generations_push(&state.generations, &state.generations.current);
		state.generations.current = sink->synced_generation;
		state.generations.base = (struct id128){};
		if (volume_set_state(sink->volume, &state)) {
			sink_refuse(sink, FRAME_ERROR_IO, "cannot persist the volume's state");
			return;
		}
	}
	struct frame_generation_wire wire = {.current = sink->synced_generation};
	struct frame frame = {.type = FRAME_SYNCED};
	if (sink->link && sink->phase == SINK_STREAM &&
	    !link_send_control(sink->link, &frame, &wire, sizeof(wire)))
		sink_refuse(sink, FRAME_ERROR_BUSY, "no buffer");
}

/* ---- the loop ------------------------------------------------------------------------------- */

static void send_resume(struct sink *sink)
{
	struct frame_transfer_wire wire = {sink->transfer};
	struct frame frame = {
		.type = FRAME_RESUME, .offset = sink->cut_frames, .length = sink->durable_frames};

	sink->report_unsent = false;
	if (sink->link && sink->phase != SINK_OFF && !id128_is_zero(&sink->transfer))
		sink->report_unsent = !link_send_control(sink->link, &frame, &wire, sizeof(wire));
}

static bool report_due(const struct sink *sink)
{
	uint64_t frames = sink->cut_frames - sink->durable_frames;

	return frames >= SINK_REPORT_FRAMES ||
	       sink->cut_bytes - sink->report_bytes >=
		       (sink->in_place ? SINK_PLACE_BYTES : SINK_REPORT_BYTES);
}

/* From time to time what was collected is made durable, and the source told. */
static void step_collect(struct sink *sink)
{
	if (sink->report_position && staging_synced(sink->staging) >= sink->report_position) {
		sink->report_position = 0;
		sink->durable_frames = sink->report_frames;
		send_resume(sink);
	}
	if (sink->report_position || !report_due(sink))
		return;
	sink->report_position = staging_end(sink->staging);
	sink->report_frames = sink->cut_frames;
	sink->report_bytes = sink->cut_bytes;
	staging_sync(sink->staging);
}

/* Likewise in place: true while the frames that follow have to wait. */
static bool step_place_report(struct sink *sink)
{
	if (sink->place_barrier && !sink->place_flushing && !sink->in_flight) {
		sink->place_flushing = sink->flushing = true;
		sink->report_frames = sink->cut_frames;
		sink_submit(sink, VOLUME_FLUSH, false, false, 0, 0, 0, NULL, 0);
	} else if (sink->place_flushing && !sink->flushing) {
		sink->place_barrier = sink->place_flushing = false;
		sink->durable_frames = sink->report_frames;
		sink->report_bytes = sink->cut_bytes;
		send_resume(sink);
	}
	return sink->place_barrier;
}

static void step_in_place(struct sink *sink)
{
	if (step_place_report(sink))
		return;
	if (!sink->cut_ended || sink->in_flight || sink->phase != SINK_COMMIT)
		return;
	if (!sink->flush_waiting) {
		sink->flush_waiting = true;
		sink->flushing = true;
		sink_submit(sink, VOLUME_FLUSH, false, false, sink->cut_lsn, 0, 0, NULL, 0);
		return;
	}
	sink->flush_waiting = false;
	sink->cut_ended = false;
	if (sink_cut_applied(sink))
		sink_refuse(sink, FRAME_ERROR_IO, "cannot persist the volume's state");
	else
		sink->in_place = false;
}

static void step_stream(struct sink *sink)
{
	if (sink->flush_waiting && !sink->in_flight) {
		sink->flush_waiting = false;
		sink->flushing = true;
		sink_submit(sink, VOLUME_FLUSH, false, false, sink->flush_lsn, 0, 0, NULL,
			    sink->flush_sequence);
	} else if (sink->barrier && !sink->in_flight && !sink->flushing) {
		sink->barrier = false;
	}
	if (sink->have_synced && !sink->in_flight && !sink->barrier)
		sink_adopt_synced(sink);
}

bool sink_is_at_rest(const struct sink *sink)
{
	return !sink->in_flight && !sink->flush_waiting && !sink->in_place &&
	       (sink->log == SINK_LOG_NONE || sink->log == SINK_LOG_COLLECT);
}

bool sink_is_still(const struct sink *sink)
{
	return sink->phase == SINK_STREAM && sink->log == SINK_LOG_NONE &&
	       (sink_is_at_rest(sink) || MUTATE(replication_reference_early));
}

void sink_at_rest(struct sink *sink, void (*rest)(void *context, int error), void *context)
{
	assert(!rest || !sink->rest);
	sink->rest_cancelled = !rest;
	if (rest) {
		sink->rest = rest;
		sink->rest_context = context;
	}
	sink_step_later(sink);
}

static void step_rest(struct sink *sink)
{
	void (*rest)(void *context, int error) = sink->rest;
	int error = sink->rest_cancelled || sink->stopping ? -ECANCELED
		    : sink->log == SINK_LOG_STUCK          ? -EIO
							   : 0;

	if (!rest || (!error && !sink_is_at_rest(sink)))
		return;
	sink->rest = NULL;
	sink->rest_cancelled = false;
	rest(sink->rest_context, error);
}

static void step(struct env_task *task)
{
	struct sink *sink = container_of(task, struct sink, step_task);

	if (sink->log == SINK_LOG_COLLECT && !sink->kept)
		step_collect(sink);
	else if (sink->log != SINK_LOG_NONE && sink->log != SINK_LOG_COLLECT)
		sink_log_step(sink);
	if (sink->in_place)
		step_in_place(sink);
	else if (sink->log == SINK_LOG_NONE && sink->link)
		step_stream(sink);
	step_rest(sink);
	if (sink->link && sink->phase != SINK_OFF)
		link_resume(sink->link);
	if (!sink->link && (sink_is_idle(sink) || sink_is_stuck(sink)))
		sink->ops->idle(sink->owner);
	else if (sink->stopping && sink_is_quiet(sink))
		sink->ops->idle(sink->owner);
}

/* ---- life ----------------------------------------------------------------------------------- */

static void answer_idle(void *owner)
{
	sink_step_later(owner);
}

int sink_new(struct volume *volume, struct buf_pool *pool, uint64_t staging_max_bytes,
	     const struct sink_ops *ops, void *owner, struct sink **result, char *why,
	     size_t why_size)
{
	struct sink *sink = calloc(1, sizeof(*sink));
	if (!sink) {
		snprintf(why, why_size, "no memory");
		return -ENOMEM;
	}
	sink->volume = volume;
	sink->env = volume_env(volume);
	sink->pool = pool;
	sink->ops = ops;
	sink->owner = owner;
	sink->step_task.call = step;
	sink->ack_task.call = send_acks;
	for (unsigned i = 0; i < SINK_APPLIES; i++) {
		sink->applies[i].sink = sink;
		sink->applies[i].next = sink->free_applies;
		sink->free_applies = &sink->applies[i];
	}
	int error = staging_open(sink->env, volume_state_dir(volume), volume_size_bytes(volume),
				 staging_max_bytes, &sink_staging_ops, sink, &sink->staging, why,
				 why_size);
	if (error) {
		free(sink);
		return error;
	}
	sink->answer = answer_new(volume, answer_idle, sink);
	if (!sink->answer) {
		staging_close(sink->staging);
		free(sink);
		snprintf(why, why_size, "no memory");
		return -ENOMEM;
	}
	*result = sink;
	return 0;
}

void sink_free(struct sink *sink)
{
	assert(!sink->in_flight && !sink->reads_busy && !sink->link);
	env_defer_cancel(sink->env, &sink->step_task);
	env_defer_cancel(sink->env, &sink->ack_task);
	staging_close(sink->staging);
	answer_free(sink->answer);
	free(sink);
}

void sink_recover(struct sink *sink, bool wants)
{
	sink->wants = wants;
	sink_log_recover(sink);
}

void sink_stop(struct sink *sink)
{
	sink->stopping = true;
	staging_stop(sink->staging);
	sink_step_later(sink);
}

static bool writes_nothing(const struct sink *sink)
{
	return !sink->in_flight && !sink->reads_busy && staging_is_idle(sink->staging);
}

bool sink_is_quiet(const struct sink *sink)
{
	return writes_nothing(sink) && answer_is_idle(sink->answer) &&
	       !(sink->stopping && staging_is_shrinking(sink->staging));
}

void sink_discard(struct sink *sink)
{
	if (sink->log != SINK_LOG_NONE) {
		sink->log = SINK_LOG_ABANDON;
		sink->log_failed = true; /* not to be found at the next start */
	}
	sink_step_later(sink);
}

void sink_void_transfer(struct sink *sink)
{
	sink->transfer = (struct id128){};
	sink->kept = false;
}

void sink_forget_transfer(struct sink *sink)
{
	assert(!sink->link);
	if (sink->kept && sink->log == SINK_LOG_COLLECT)
		sink->log = SINK_LOG_ABANDON;
	sink_void_transfer(sink);
	sink_step_later(sink);
}

bool sink_keeps_transfer(const struct sink *sink)
{
	return sink->kept;
}

/* A transfer begins anew, or another one does. */
static void forget_counts(struct sink *sink)
{
	sink->cut_frames = sink->cut_bytes = 0;
	sink->durable_frames = sink->report_bytes = 0;
}

/* All about the cut but what was collected of it. What was streamed behind it is void: whoever
 * streamed it went on alone since. */
static void forget_cut(struct sink *sink)
{
	sink->final = sink->cut_ended = false;
	sink->report_position = 0;
	sink->place_barrier = sink->place_flushing = false;
	sink->commit_position = sink->stream_position = sink->stream_first = 0;
	sink->stream_applied = sink->limit = 0;
	sink->log_sync_position = sink->log_sync_sequence = 0;
	sink->log_acked = sink->log_last_sequence;
	sink->log_recovered = sink->log_failed = sink->hold = sink->have_record = false;
}

void sink_attach(struct sink *sink, struct link *link, const struct id128 *uuid, bool wants)
{
	assert(sink_is_idle(sink) && !sink->link);
	forget_cut(sink);
	sink->link = link;
	sink->phase = SINK_WAIT;
	sink->peer_uuid = *uuid;
	sink->wants = wants;
	sink->barrier = sink->flush_waiting = sink->have_synced = false;
	sink->received_sequence = sink->received_lsn = sink->sent_received = 0;
	sink->streamed_bytes = 0;
	sink->log_last_sequence = sink->log_acked = 0;
	sink->ack_count = 0;
	sink->applying_begun = false;
	sink->cut_total_bytes = 0;
	answer_attach(sink->answer, link);
	if (sink->kept)
		send_resume(sink);
}

void sink_set_live(struct sink *sink, bool live)
{
	sink->live = live;
}

void sink_attach_served(struct sink *sink, struct link *link, const struct id128 *uuid)
{
	struct volume_state state;

	sink_attach(sink, link, uuid, false);
	sink_set_live(sink, true);
	sink->phase = SINK_STREAM;
	sink->final = true;
	int error = sink_begin_applying(sink);

	/* It was left; but a source without content wrote nothing that is not here. */
	volume_get_state(sink->volume, &state);
	if (!error && state.disk == VOLUME_DISK_OUTDATED) {
		state.disk = VOLUME_DISK_UPTODATE;
		state.outdated_ns = 0;
		error = volume_set_state(sink->volume, &state);
	}
	if (error)
		sink_refuse(sink, FRAME_ERROR_IO, "cannot persist the volume's state");
}

void sink_detach(struct sink *sink)
{
	if (sink->link)
		answer_detach(sink->answer);
	sink->link = NULL;
	sink->phase = SINK_OFF;
	sink->flush_waiting = sink->have_synced = false;
	sink->ack_count = 0;
	bool some = !id128_is_zero(&sink->transfer) && sink->cut_frames;
	if (sink->log == SINK_LOG_COLLECT && !some)
		sink->log = SINK_LOG_ABANDON;
	sink->kept = some && (sink->log == SINK_LOG_COLLECT || sink->in_place);
	sink->in_place = false;
	if (sink->kept && sink->log == SINK_LOG_COLLECT)
		staging_sync(sink->staging);
	sink_step_later(sink);
}

bool sink_is_idle(const struct sink *sink)
{
	return (sink->log == SINK_LOG_NONE || (sink->log == SINK_LOG_COLLECT && sink->kept)) &&
	       sink_is_quiet(sink);
}

bool sink_is_stuck(const struct sink *sink)
{
	return sink->log == SINK_LOG_STUCK;
}

bool sink_is_applying(const struct sink *sink)
{
	return sink->in_flight > 0 ||
	       (sink->log >= SINK_LOG_COMMITTING && sink->log != SINK_LOG_ABANDON);
}

/* ---- frames --------------------------------------------------------------------------------- */

/* The last consistent content, where the file system keeps it for nothing. */
static void keep_copy(struct sink *sink)
{
	int error = volume_keep_copy(sink->volume);

	if (error && error != -EOPNOTSUPP)
		env_log(sink->env, ENV_LOG_WARNING,
			"replication: volume %s: catch-up in place: the content before it cannot "
			"be "
			"kept: %s",
			volume_name(sink->volume), strerror(-error));
	else
		env_log(sink->env, ENV_LOG_INFO,
			"replication: volume %s: catch-up in place: the content before it is %s%s",
			volume_name(sink->volume),
			error ? "not kept: no reflinks here" : "kept in ",
			error ? "" : volume_kept_copy(sink->volume));
}

/* A transfer begins: where it goes, and what is made durable first. */
static int begin_transfer(struct sink *sink, const struct frame *frame, struct volume_state *state)
{
	/* Room for the records' heads: 64 bytes for each block of 4 KiB at worst. */
	uint64_t expected = frame->length + frame->length / 64;
	int error = 0;

	forget_counts(sink);
	sink->log = SINK_LOG_NONE;
	sink->in_place = state->disk == VOLUME_DISK_INCONSISTENT ||
			 id128_is_zero(&state->generations.current) ||
			 expected > staging_max_bytes(sink->staging);
	if (sink->in_place && state->disk != VOLUME_DISK_INCONSISTENT) {
		if (!id128_is_zero(&state->generations.current))
			keep_copy(sink);
		state->disk = VOLUME_DISK_INCONSISTENT;
		return volume_set_state(sink->volume, state);
	}
	if (sink->in_place)
		return 0;
	if (frame->length && state->disk == VOLUME_DISK_UPTODATE) {
		state->disk = VOLUME_DISK_OUTDATED;
		state->outdated_ns = env_realtime_ns(sink->env);
		error = volume_set_state(sink->volume, state);
	}
	if (!error)
		error = staging_begin(sink->staging, &state->uuid, &state->generations.current,
				      &sink->transfer, expected);
	if (!error)
		sink->log = SINK_LOG_COLLECT;
	return error;
}

static void propose(struct sink *sink, const struct frame *frame, const struct id128 *transfer)
{
	struct volume_state state;

	volume_get_state(sink->volume, &state);
	if (state.role != VOLUME_SECONDARY && !sink->wants) {
		sink_refuse(sink, FRAME_ERROR_CLOSING, "no longer secondary");
		return;
	}
	/* First of all: without it the snapshots' map would not know of what comes. */
	if (sink_begin_applying(sink)) {
		sink_refuse(sink, FRAME_ERROR_IO, "cannot persist the volume's state");
		return;
	}
	bool place = sink->log == SINK_LOG_NONE;
	bool resumed = sink->kept && id128_equal(&sink->transfer, transfer) &&
		       place == (state.disk == VOLUME_DISK_INCONSISTENT);
	int error = 0;
	forget_cut(sink);
	if (sink->phase == SINK_STREAM)
		sink->ops->left_stream(sink->owner);
	sink->log_last_sequence = sink->log_acked = sink->received_sequence;
	sink->round = frame->id;
	sink->kept = false;
	sink->transfer = *transfer;
	if (!resumed)
		error = begin_transfer(sink, frame, &state);
	else if (place)
		sink->in_place = true;
	else
		staging_mark_resumed(sink->staging);
	if (error) {
		char text[128];
		sink->transfer = (struct id128){};
		snprintf(text, sizeof(text), "staging: cannot take %llu bytes: %s%s",
			 (unsigned long long)frame->length, strerror(-error),
			 error == -ENOSPC ? ": make room for state-dir, or set staging-max" : "");
		sink_refuse(sink, FRAME_ERROR_STAGING, text);
		return;
	}
	sink->phase = SINK_READY;
	send(sink, (struct frame){.type = FRAME_READY,
				  .id = sink->round,
				  .length = sink->in_place ? 0 : staging_max_bytes(sink->staging),
				  .flags = sink->in_place ? FRAME_IN_PLACE : 0});
}

static void on_propose(struct sink *sink, const struct frame *frame, const void *payload,
		       struct buf *buf)
{
	struct frame_transfer_wire wire;

	memcpy(&wire, payload, sizeof(wire));
	if (id128_is_zero(&wire.transfer))
		sink_refuse(sink, FRAME_ERROR_PROTOCOL, "PROPOSE without a name");
	else
		propose(sink, frame, &wire.transfer);
}

static void on_cut_begin(struct sink *sink, const struct frame *frame, const void *payload,
			 struct buf *buf)
{
	struct frame_generation_wire wire;

	memcpy(&wire, payload, sizeof(wire));
	if (frame->id != sink->round || (frame->flags & FRAME_FINAL && sink->in_place) ||
	    id128_is_zero(&wire.current) || id128_is_zero(&wire.uuid)) {
		sink_refuse(sink, FRAME_ERROR_PROTOCOL, "CUT_BEGIN does not fit READY");
		return;
	}
	sink->commit = (struct staging_commit_wire){wire.current, wire.uuid};
	sink->final = frame->flags & FRAME_FINAL;
	sink->cut_lsn = frame->lsn;
	sink->cut_total_bytes = frame->length;
	sink->cut_started_ns = env_now_ns(sink->env);
	sink->phase = SINK_CUT;
}

static void on_cut_data(struct sink *sink, const struct frame *frame, const void *payload,
			struct buf *buf)
{
	bool data = frame->type == FRAME_CUT_DATA, punch = frame->flags & FRAME_PUNCH;

	sink->cut_frames++;
	sink->cut_bytes += frame->length;
	if (report_due(sink)) {
		sink->place_barrier = sink->in_place;
		sink_step_later(sink);
	}
	if (sink->in_place) {
		sink_submit(sink, data ? VOLUME_WRITE : VOLUME_ZERO, false, punch, 0, frame->offset,
			    frame->length, buf ? buf_get(buf) : NULL, 0);
		return;
	}
	if (sink->log == SINK_LOG_COLLECT)
		sink_log_append(sink, data ? STAGING_CUT_DATA : STAGING_CUT_ZERO,
				punch ? STAGING_PUNCH : 0, 0, frame->offset, frame->length,
				buf ? buf->data : NULL);
}

static void on_cut_end(struct sink *sink, const struct frame *frame, const void *payload,
		       struct buf *buf)
{
	if (frame->id != sink->round || frame->offset != sink->cut_frames ||
	    frame->length != sink->cut_bytes) {
		sink_refuse(sink, FRAME_ERROR_PROTOCOL, "CUT_END does not match what was sent");
		return;
	}
	sink->phase = SINK_COMMIT;
	sink->cut_ended = true;
	if (sink->in_place)
		sink_step_later(sink);
	else if (sink->log == SINK_LOG_COLLECT)
		sink_log_commit(sink);
}

static void log_stream(struct sink *sink, const struct frame *frame, struct buf *buf)
{
	enum staging_type type = frame->type == FRAME_WRITE  ? STAGING_WRITE
				 : frame->type == FRAME_ZERO ? STAGING_ZERO
							     : STAGING_FLUSH;

	sink_log_append(sink, type, frame->flags & FRAME_PUNCH ? STAGING_PUNCH : 0, frame->lsn,
			frame->offset, frame->length, buf ? buf->data : NULL);
	sink->log_last_sequence = frame->id;
	sink->log_last_lsn = frame->lsn;
	/* Before the cut is acknowledged nobody relies on what follows it: this only tells the
	 * source that it needs to keep no record of the frame. */
	if (sink->log == SINK_LOG_COLLECT || sink->log == SINK_LOG_COMMITTING) {
		sink_ack(sink, frame->id, frame->id);
		sink->log_acked = frame->id;
	}
	sink_step_later(sink);
}

static void apply_stream(struct sink *sink, const struct frame *frame, struct buf *buf)
{
	bool fua = frame->flags & FRAME_FUA;

	if (MUTATE(replication_ack_before_apply))
		sink_ack(sink, frame->id, frame->id);
	if (frame->type == FRAME_FLUSH) {
		if (MUTATE(replication_no_barrier)) {
			sink_ack(sink, frame->id, frame->id);
			return;
		}
		sink->barrier = sink->flush_waiting = true;
		sink->flush_sequence = frame->id;
		sink->flush_lsn = frame->lsn;
		sink_step_later(sink);
		return;
	}
	sink->barrier = fua && !MUTATE(replication_no_barrier);
	sink_submit(sink, frame->type == FRAME_WRITE ? VOLUME_WRITE : VOLUME_ZERO, fua,
		    frame->flags & FRAME_PUNCH, frame->lsn, frame->offset, frame->length,
		    buf ? buf_get(buf) : NULL, frame->id);
}

static void on_stream(struct sink *sink, const struct frame *frame, const void *payload,
		      struct buf *buf)
{
	if (!sink->final || frame->id != sink->received_sequence + 1) {
		sink_refuse(sink, FRAME_ERROR_PROTOCOL, "stream out of sequence");
		return;
	}
	sink->received_sequence = frame->id;
	sink->received_lsn = frame->lsn;
	sink->streamed_bytes += frame->length;
	env_defer(sink->env, &sink->ack_task);
	if (sink->log == SINK_LOG_NONE)
		apply_stream(sink, frame, buf);
	else if (sink->log != SINK_LOG_ABANDON && sink->log != SINK_LOG_STUCK)
		log_stream(sink, frame, buf);
}

static void on_synced(struct sink *sink, const struct frame *frame, const void *payload,
		      struct buf *buf)
{
	struct frame_generation_wire wire;

	memcpy(&wire, payload, sizeof(wire));
	if (id128_is_zero(&wire.current)) {
		sink_refuse(sink, FRAME_ERROR_PROTOCOL, "SYNCED without a generation");
		return;
	}
	sink->have_synced = true;
	sink->synced_generation = wire.current;
	sink_step_later(sink);
}

/* The place in the order is the volume's: what came before has been submitted to it. */
static void on_compare(struct sink *sink, const struct frame *frame, const void *payload,
		       struct buf *buf)
{
	if (!answer_question(sink->answer, frame, sink->log != SINK_LOG_NONE))
		sink_refuse(sink, FRAME_ERROR_PROTOCOL, "too many COMPAREs without an answer");
}

#define P(x) (1u << SINK_##x)
static const struct {
	unsigned phases;
	void (*call)(struct sink *sink, const struct frame *frame, const void *payload,
		     struct buf *buf);
} handlers[FRAME_TYPES] = {
	[FRAME_PROPOSE] = {P(WAIT) | P(STREAM), on_propose},
	[FRAME_CUT_BEGIN] = {P(READY), on_cut_begin},
	[FRAME_CUT_DATA] = {P(READY) | P(CUT), on_cut_data},
	[FRAME_CUT_ZERO] = {P(READY) | P(CUT), on_cut_data},
	[FRAME_CUT_END] = {P(CUT), on_cut_end},
	[FRAME_WRITE] = {P(CUT) | P(COMMIT) | P(STREAM), on_stream},
	[FRAME_ZERO] = {P(CUT) | P(COMMIT) | P(STREAM), on_stream},
	[FRAME_FLUSH] = {P(CUT) | P(COMMIT) | P(STREAM), on_stream},
	[FRAME_SYNCED] = {P(STREAM), on_synced},
	[FRAME_READ] = {P(WAIT) | P(STREAM), sink_on_read},
	[FRAME_COMPARE] = {P(WAIT) | P(STREAM), on_compare},
};

bool sink_admit(struct sink *sink, const struct frame *frame, struct buf **buf)
{
	if (sink->phase == SINK_OFF)
		return false;
	if (frame_range_invalid(frame, volume_size_bytes(sink->volume))) {
		sink_refuse(sink, FRAME_ERROR_PROTOCOL, "range beyond the end of the volume");
		return false;
	}
	if (!handlers[frame->type].call || !(handlers[frame->type].phases & 1u << sink->phase)) {
		char text[64];
		snprintf(text, sizeof(text), "%s is out of place now", frame_name(frame->type));
		sink_refuse(sink, FRAME_ERROR_PROTOCOL, text);
		return false;
	}
	bool stream = frame_is_stream(frame->type);
	bool cut = frame->type == FRAME_CUT_DATA || frame->type == FRAME_CUT_ZERO;
	/* The log of the last round is being emptied, or the end of the stream carried out. */
	if (frame->type == FRAME_PROPOSE)
		return sink_is_idle(sink) && !sink->barrier && !sink->flush_waiting &&
		       !sink->have_synced;
	if (frame->type == FRAME_READ) {
		if (!sink_read_admit(sink))
			return false;
		*buf = buf_alloc(sink->pool, (uint32_t)frame->length);
		return *buf != NULL;
	}
	if (frame->type == FRAME_COMPARE && sink->phase == SINK_WAIT)
		return (sink->log == SINK_LOG_NONE || sink->kept) && writes_nothing(sink);
	if (sink->place_barrier)
		return false;
	if (!stream && !cut)
		return frame->type != FRAME_SYNCED || !sink->have_synced;
	if ((sink->hold || sink->rest) && stream)
		return false;
	if (sink->in_place || sink->log == SINK_LOG_NONE) {
		if (!sink->free_applies || sink->barrier || sink->have_synced)
			return false;
	} else if (!staging_has_room(sink->staging, frame->payload_length)) {
		if (sink->log == SINK_LOG_COLLECT && staging_is_full(sink->staging))
			sink_refuse(sink, FRAME_ERROR_STAGING, "staging: staging-max reached");
		return false;
	}
	if (!frame_is_content(frame->type))
		return true;
	*buf = buf_alloc(sink->pool, frame->payload_length);
	return *buf != NULL;
}

void sink_frame(struct sink *sink, const struct frame *frame, const void *payload, struct buf *buf)
{
	if (sink->phase != SINK_OFF)
		handlers[frame->type].call(sink, frame, payload, buf);
	buf_put(buf);
}

void sink_resized(struct sink *sink)
{
	staging_resized(sink->staging, volume_size_bytes(sink->volume));
}

void sink_get_status(const struct sink *sink, struct sink_status *status)
{
	*status = (struct sink_status){
		.phase = sink->phase,
		.received_lsn = sink->received_lsn,
		.streamed_bytes = sink->streamed_bytes,
		.durable_lsn = sink->durable_lsn,
		.cut_done_bytes = sink->cut_bytes,
		.cut_total_bytes = sink->cut_total_bytes,
		.cut_started_ns = sink->cut_started_ns,
		.cuts = sink->cuts,
		.staged_bytes = sink->log != SINK_LOG_NONE ? staging_end(sink->staging) : 0,
		.in_place = sink->in_place,
	};
}

void sink_check(const struct sink *sink)
{
	unsigned unused = 0;

	for (const struct sink_apply *apply = sink->free_applies; apply; apply = apply->next)
		unused++;
	answer_check(sink->answer);
	assert(unused + sink->in_flight == SINK_APPLIES);
	assert((sink->link != NULL) || sink->phase == SINK_OFF);
	assert((sink->phase != SINK_CUT && sink->phase != SINK_READY) || sink->in_place ||
	       sink->log == SINK_LOG_COLLECT);
	assert(!sink->kept || !id128_is_zero(&sink->transfer));
	assert(!sink->kept || !sink->link || sink->phase == SINK_WAIT || sink->phase == SINK_OFF);
	assert(!sink->flushing || sink->in_flight > 0);
	assert(sink->ack_count <= FRAME_RANGES_MAX);
	assert(sink->log_acked <= sink->log_last_sequence || !sink->log_last_sequence);
}
