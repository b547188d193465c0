/* SPDX-License-Identifier: Apache-2.0 */
/* The source's stream: the tap, the ring of what is not acknowledged, points, acknowledgements. */
#include <assert.h>
#include <errno.h>
#include <stddef.h>

#include "daemon/mutate.h"
#include "daemon/replication/source_internal.h"

#define STALL_QUEUE_BYTES (64u * 1024)
#define STALL_SENT_BYTES  4096u

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

static struct source_entry *entry_of(struct source *source, uint64_t sequence)
{
	return &source->ring[sequence % SOURCE_RING];
}

static struct source_entry *push(struct source *source, struct frame *frame, struct buf *buf)
{
	if (source->next - source->oldest >= SOURCE_RING) {
		source_refuse(source, FRAME_ERROR_BUSY, "send queue overflow");
		return NULL;
	}
	struct source_entry *entry = entry_of(source, source->next);
	if (source->oldest == source->next)
		source->moved_ns = env_now_ns(source->env);
	frame->id = source->next++;
	frame->payload_length = buf ? (uint32_t)frame->length : 0;
	*entry = (struct source_entry){
		.lsn = frame->lsn,
		.issued_at_ns = env_now_ns(source->env),
		.bytes = frame->length,
		.payload = frame->payload_length,
		.flush = frame->type == FRAME_FLUSH,
	};
	if (entry->flush)
		source->last_flush = frame->id;
	source->sent_lsn = frame->lsn;
	source->lag_bytes += frame->length;
	source->streamed_bytes += frame->length;
	source->lag_payload += frame->payload_length;
	source->since_point_bytes += frame->length;
	if (source->phase != SOURCE_STREAM)
		source->log_bytes += SOURCE_HEAD_BYTES + frame->payload_length;
	link_send(source->link, frame, buf ? buf_get(buf) : NULL, 0);
	return entry;
}

/* What the client's completion of this mutation waits for. */
static enum source_wait wait_of(const struct source *source)
{
	/* The peer is not in sync yet. But it may be by the time that this is complete here, and from then on,
	 * with on-peer-loss = suspend, nothing is completed that it has no part in. */
	if (source->phase != SOURCE_STREAM &&
	    (!source->suspends || MUTATE(replication_final_alone)))
		return WAIT_NOTHING;
	if (volume_leans(source->volume))
		return WAIT_DURABLE;
	switch (source->protocol) {
	case REPLICATION_A:
		return WAIT_NOTHING;
	case REPLICATION_B:
		return WAIT_RECEIVED;
	case REPLICATION_C:
		return WAIT_WRITTEN;
	}
	return WAIT_WRITTEN;
}

bool source_may_leave(const struct source *source)
{
	/* With on-peer-loss = suspend, and without content here (or soon without), nothing is completed
	 * that the peer has no part in. */
	return source->protocol == REPLICATION_A && !source->suspends &&
	       volume_lean(source->volume) == VOLUME_LEAN_NO &&
	       source->bound.action == PACE_CATCH_UP &&
	       (source->bound.max_bytes || source->bound.max_ns);
}

uint64_t source_stream_age_ns(const struct source *source)
{
	if (source->oldest == source->next)
		return 0;
	return env_now_ns(source->env) - source->ring[source->oldest % SOURCE_RING].issued_at_ns;
}

/* Seals the bits of all that was streamed so far and asks the peer to make it durable. */
void source_stream_point(struct source *source)
{
	struct frame frame = {.type = FRAME_FLUSH, .flags = FRAME_POINT, .lsn = source->sent_lsn};

	if (source->phase != SOURCE_STREAM || source->cut ||
	    source->next - source->oldest >= SOURCE_RING - SOURCE_RING_MARGIN ||
	    volume_dirty_bytes(source->volume, VOLUME_PEER) == 0)
		return;
	if (volume_cut_begin(source->volume, VOLUME_PEER, VOLUME_CUT_BITS_ONLY, NULL, NULL,
			     &source->cut)) {
		source->cut = NULL;
		return;
	}
	source->since_point_bytes = 0;
	struct source_entry *entry = push(source, &frame, NULL);
	if (entry)
		entry->point = true;
	if (MUTATE(replication_consume_on_send) && entry) {
		entry->point = false;
		volume_cut_finish(source->cut, true);
		source->cut = NULL;
	}
}

void source_stream_settle(struct source *source)
{
	source->settling = volume_dirty_bytes(source->volume, VOLUME_PEER) > 0 ? source->next : 0;
	source_stream_point(source);
}

/* All up to this point is durable at the peer. */
static void settled(struct source *source, uint64_t sequence)
{
	if (!source->settling ||
	    (sequence < source->settling && volume_dirty_bytes(source->volume, VOLUME_PEER) > 0))
		return;
	source->settling = 0;
	source->ops->settled(source->owner);
}

static bool issue(struct volume_tap *tap, const struct volume_mutation *mutation, uint64_t token)
{
	struct source *source = container_of(tap, struct source, tap);
	static const enum frame_type types[] = {
		[VOLUME_WRITE] = FRAME_WRITE,
		[VOLUME_ZERO] = FRAME_ZERO,
		[VOLUME_FLUSH] = FRAME_FLUSH,
	};

	if (!source->link)
		return false;
	struct frame frame = {
		.type = types[mutation->type],
		.lsn = mutation->lsn,
		.offset = mutation->offset_bytes,
		.length = mutation->length_bytes,
	};
	/* Where all waits for a flush, a barrier for each would only be slower. */
	bool fua = mutation->fua && !volume_leans(source->volume);
	if (mutation->type != VOLUME_FLUSH)
		frame.flags = (fua ? FRAME_FUA : 0) |
			      (mutation->type == VOLUME_ZERO && mutation->punch ? FRAME_PUNCH : 0);
	struct source_entry *entry =
		push(source, &frame, mutation->type == VOLUME_WRITE ? mutation->buf : NULL);
	if (!entry)
		return false;
	entry->token = token;
	entry->client = true;
	entry->wait = wait_of(source);
	if (entry->wait == WAIT_DURABLE && mutation->type == VOLUME_FLUSH)
		entry->wait = WAIT_WRITTEN;
	if (entry->wait == WAIT_DURABLE) {
		source->last_durable = frame.id;
		env_defer(source->env, &source->flush_task);
	}
	return entry->wait != WAIT_NOTHING;
}

/* Group commit: all that was sent since the last one shares the next flush. */
static void flush_now(struct env_task *task)
{
	struct source *source = container_of(task, struct source, flush_task);
	struct frame frame = {.type = FRAME_FLUSH, .lsn = source->sent_lsn};

	if (source->phase != SOURCE_STREAM || source->own_flush != 0 ||
	    source->last_durable <= source->last_flush)
		return;
	if (push(source, &frame, NULL))
		source->own_flush = frame.id;
}

static bool settle(struct volume_tap *tap)
{
	struct source *source = container_of(tap, struct source, tap);
	struct frame frame = {.type = FRAME_FLUSH, .lsn = source->sent_lsn};
	struct volume_state state;

	volume_get_state(source->volume, &state);
	/* A generation that the peer does not have yet could not be told from one it never had. */
	if (source->phase != SOURCE_STREAM || !id128_is_zero(&state.generations.base))
		return false;
	struct source_entry *entry = push(source, &frame, NULL);
	if (entry)
		entry->settle = true;
	return entry != NULL;
}

static void tap_read(struct volume_tap *tap, struct volume_origin_read *read)
{
	source_read(container_of(tap, struct source, tap), read);
}

void source_stream_served(struct source *source)
{
	struct frame frame = {.type = FRAME_FLUSH, .lsn = source->sent_lsn};
	struct source_entry *entry = push(source, &frame, NULL);

	if (entry)
		entry->begin = true;
}

/* What is read or sent from here on cannot be lost by a power cut of the peer's. */
static void served(struct source *source)
{
	volume_set_peer_in_sync(source->volume, true);
	if (source_followed(source)) {
		source_refuse(source, FRAME_ERROR_IO, "cannot persist the volume's state");
		return;
	}
	source_followed_done(source);
	source->phase = SOURCE_STREAM;
	source_stream_begin(source);
	source_stream_watch(source);
	source->tapped = true;
	volume_set_tap(source->volume, &source->tap);
	source->ops->cut_acknowledged(source->owner, true);
}

/* Whether max-lag is asked for now: clients of B and C wait for the peer themselves, and before the
 * final cut is acknowledged the peer is behind by more than the stream. */
static bool bounded(const struct source *source)
{
	return source->protocol == REPLICATION_A &&
	       (source->phase == SOURCE_STREAM || source_may_leave(source));
}

static bool over(const struct source *source)
{
	return bounded(source) &&
	       pace_over(&source->bound, source->lag_payload, source_stream_age_ns(source));
}

/* Behind a cut that is not acknowledged all goes into the target's log, which has a limit. */
static bool log_full(const struct source *source)
{
	return source->frozen && !source_transfer_fits(source, 0);
}

static bool full(const struct source *source)
{
	return log_full(source) || link_queue_bytes(source->link) >= source->queue_max_bytes ||
	       source->next - source->oldest >= SOURCE_RING - SOURCE_RING_MARGIN;
}

/* Writers wait from here on. */
static void hold(struct source *source)
{
	uint64_t now = env_now_ns(source->env);

	if (!source->holds || now - source->held_at_ns >= SOURCE_HELD_NS)
		source->holds++;
	source->held_at_ns = now;
}

static bool ready(struct volume_tap *tap)
{
	struct source *source = container_of(tap, struct source, tap);

	if (!source->link)
		return true;
	if (source->full_queue)
		return false;
	if (!full(source) && !over(source))
		return true;
	source->full_queue = true;
	if (source_may_leave(source)) /* not here: this is in the middle of a request */
		env_defer(source->env, &source->leave_task);
	else
		hold(source);
	return false;
}

static void leave_now(struct env_task *task)
{
	struct source *source = container_of(task, struct source, leave_task);

	if (!source->link || !source->tapped || !source->full_queue)
		return;
	if (source_may_leave(source))
		source_leave_stream(source);
	else /* not any more: they wait for room as others do */
		hold(source);
}

/* Those who wait go on as soon as there is a little room, each only if there still is for him: so
 * they flow at the pace of the link. */
void source_stream_resume(struct source *source)
{
	if (!source->full_queue || log_full(source) ||
	    source->next - source->oldest > SOURCE_RING_RESUME ||
	    link_queue_bytes(source->link) >
		    source->queue_max_bytes - pace_hysteresis(source->queue_max_bytes) ||
	    (bounded(source) &&
	     !pace_flows(&source->bound, source->lag_payload, source_stream_age_ns(source))))
		return;
	source->full_queue = false;
	source->held_at_ns = env_now_ns(source->env);
	volume_tap_resume(source->volume);
}

static void point_timer_fire(struct env_timer *timer)
{
	struct source *source = container_of(timer, struct source, point_timer);

	if (source->phase != SOURCE_STREAM)
		return;
	if (source_may_leave(source) && over(source)) {
		source_leave_stream(source);
		return;
	}
	source_stream_point(source);
	env_timer_start(source->env, timer, SOURCE_POINT_NS);
}

/* What is waited for: all of the stream, or before that, room for more of it, or for a block of the cut
 * that a writer waits for. */
static bool is_waiting(const struct source *source)
{
	return source_cut_is_stuck(source) ||
	       (source->next > source->oldest &&
		(source->phase == SOURCE_STREAM || source->phase == SOURCE_LEAVE ||
		 source->full_queue || source->suspends));
}

/* A peer that answers pings but carries nothing out (its disk hangs) would hold the writers for ever.
 * On a slow link a long queue that is being read is movement enough. */
static void stall_timer_fire(struct env_timer *timer)
{
	struct source *source = container_of(timer, struct source, stall_timer);
	uint64_t now = env_now_ns(source->env), sent = link_sent_bytes(source->link);

	if (!is_waiting(source) || (link_queue_bytes(source->link) > STALL_QUEUE_BYTES &&
				    sent - source->sent_bytes > STALL_SENT_BYTES))
		source->moved_ns = now;
	source->sent_bytes = sent;
	if (now - source->moved_ns >= source->stall_timeout_ms * 1000000ull) {
		link_fail(source->link, -ETIMEDOUT,
			  "it answers, but has carried nothing out for %u ms",
			  source->stall_timeout_ms);
		return;
	}
	env_timer_start(source->env, timer, source->stall_timeout_ms * 1000000ull / 4);
}

void source_stream_watch(struct source *source)
{
	source->moved_ns = env_now_ns(source->env);
	source->sent_bytes = link_sent_bytes(source->link);
	env_timer_start(source->env, &source->stall_timer,
			source->stall_timeout_ms * 1000000ull / 4);
}

void source_stream_init(struct source *source)
{
	source->stall_timer.fire = stall_timer_fire;
	source->tap.issue = issue;
	source->tap.ready = ready;
	source->leave_task.call = leave_now;
	source->tap.settle = settle;
	source->tap.read = tap_read;
	source->flush_task.call = flush_now;
	source->point_timer.fire = point_timer_fire;
}

void source_stream_reset(struct source *source)
{
	env_timer_stop(source->env, &source->point_timer);
	env_timer_stop(source->env, &source->stall_timer);
	source->oldest = source->next = 1;
	source->received = 0;
	source->lag_bytes = source->lag_payload = 0;
	source->since_point_bytes = source->streamed_bytes = 0;
	source->full_queue = false;
	source->settling = 0;
	source->last_durable = source->last_flush = source->own_flush = 0;
	env_defer_cancel(source->env, &source->flush_task);
}

void source_stream_begin(struct source *source)
{
	env_timer_start(source->env, &source->point_timer, SOURCE_POINT_NS);
	source_reads_resume(source);
}

static void release(struct source *source, struct source_entry *entry)
{
	enum source_wait wait = entry->wait;

	entry->wait = WAIT_NOTHING;
	if (wait != WAIT_NOTHING)
		volume_tap_done(source->volume, entry->token);
}

/* All ahead of this flush is durable. */
static void flushed(struct source *source, uint64_t sequence)
{
	if (sequence >= source->own_flush)
		source->own_flush = 0;
	for (uint64_t s = source->oldest; s < sequence; s++)
		if (entry_of(source, s)->wait == WAIT_DURABLE)
			release(source, entry_of(source, s));
	env_defer(source->env, &source->flush_task);
}

static void mark_written(struct source *source, uint64_t sequence)
{
	struct source_entry *entry = entry_of(source, sequence);

	if (entry->written)
		return;
	entry->written = true;
	source->lag_bytes -= entry->bytes;
	source->lag_payload -= entry->payload;
	if (entry->point) {
		assert(source->cut);
		volume_cut_finish(source->cut, true);
		source->cut = NULL;
	}
	if (entry->point)
		settled(source, sequence);
	bool takes_over = entry->settle, begin = entry->begin;
	if (entry->flush)
		flushed(source, sequence);
	/* May issue further writes from inside, at the ring's other end. */
	if (entry->wait != WAIT_DURABLE || MUTATE(replication_durable_when_written))
		release(source, entry);
	if (takes_over)
		volume_settled(source->volume, 0);
	if (begin && source->link)
		served(source);
}

void source_stream_ack(struct source *source, const struct frame *frame, const void *payload)
{
	const struct frame_range_wire *ranges = payload;
	unsigned count = frame->payload_length / (uint32_t)sizeof(*ranges);

	if (frame->id >= source->next || frame->id < source->received) {
		source_refuse(source, FRAME_ERROR_PROTOCOL, "ACK of what was not sent");
		return;
	}
	for (unsigned i = 0; i < count; i++) {
		uint64_t first = from_be64(ranges[i].first), last = from_be64(ranges[i].second);
		if (first == 0 || first > last || last > frame->id) {
			source_refuse(source, FRAME_ERROR_PROTOCOL, "ACK of what was not sent");
			return;
		}
	}
	if (count || frame->id > source->received)
		source->moved_ns = env_now_ns(source->env);
	while (source->link && source->received < frame->id) {
		struct source_entry *entry = entry_of(source, ++source->received);
		if (source->received >= source->oldest && entry->wait == WAIT_RECEIVED)
			release(source, entry);
	}
	for (unsigned i = 0; i < count; i++) {
		uint64_t first = from_be64(ranges[i].first), last = from_be64(ranges[i].second);
		if (first < source->oldest)
			first = source->oldest;
		for (uint64_t s = first; s <= last && source->link; s++)
			mark_written(source, s);
	}
	while (source->oldest < source->next && entry_of(source, source->oldest)->written &&
	       entry_of(source, source->oldest)->wait != WAIT_DURABLE)
		source->acked_lsn = entry_of(source, source->oldest++)->lsn;
	if (!source->link)
		return;
	if (source->since_point_bytes >= SOURCE_POINT_BYTES)
		source_stream_point(source);
	source_stream_resume(source);
	if (source->phase == SOURCE_LEAVE && source->oldest == source->next)
		env_defer(source->env, &source->pump_task);
}
