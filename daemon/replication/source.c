/* SPDX-License-Identifier: Apache-2.0 */
/* The sending side: rounds and generations. See source.h. */
#include "daemon/replication/source.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/io/resident.h"
#include "daemon/mutate.h"
#include "daemon/replication/sink.h"
#include "daemon/replication/source_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

void source_refuse(struct source *source, enum frame_error code, const char *text)
{
	if (source->link && source->phase != SOURCE_OFF)
		source->ops->refuse(source->owner, code, text);
}

static void pump(struct env_task *task)
{
	struct source *source = container_of(task, struct source, pump_task);

	source_leave_step(source);
	if (source->link)
		source_cut_pump(source);
	else if (source->cut && !source->reads_busy && !source->parked)
		source_transfer_park(source); /* or what a comparison left */
	if (!source->link)
		source_reads_fail(source); /* asked since */
	if (!source->link && source_is_idle(source))
		source->ops->idle(source->owner);
}

static void memory_free(struct source *source)
{
	if (source->compare)
		compare_free(source->compare);
	free(source->ring);
	free(source->sent);
	free(source);
}

void source_brace(struct source *source)
{
	resident_make(source, sizeof(*source));
	resident_make(source->sent, SOURCE_SENT * sizeof(*source->sent));
	resident_make(source->ring, SOURCE_RING * sizeof(*source->ring));
}

struct source *source_new(struct volume *volume, struct buf_pool *pool, uint64_t queue_max_bytes,
			  uint64_t final_max_bytes, const struct source_ops *ops, void *owner)
{
	struct source *source = calloc(1, sizeof(*source));
	if (!source)
		return NULL;
	/* Only what is between their ends means anything. */
	source->sent = malloc(SOURCE_SENT * sizeof(*source->sent));
	source->ring = malloc(SOURCE_RING * sizeof(*source->ring));
	source->compare = compare_new(volume);
	if (!source->sent || !source->ring || !source->compare) {
		memory_free(source);
		return NULL;
	}
	source->volume = volume;
	source->env = volume_env(volume);
	source->pool = pool;
	source->ops = ops;
	source->owner = owner;
	source->queue_max_bytes = queue_max_bytes;
	source->complete_at_ns = env_now_ns(source->env);
	source->final_max_bytes = final_max_bytes;
	source->pump_task.call = pump;
	source_pace_init(source);
	source_stream_init(source);
	source_reads_init(source);
	source_bad_init(source);
	source_stream_reset(source);
	return source;
}

void source_configure(struct source *source, unsigned stall_timeout_ms, bool suspends)
{
	source->stall_timeout_ms = stall_timeout_ms;
	source_loss_init(source, suspends);
}

void source_free(struct source *source)
{
	assert(source_is_idle(source) && !source->link);
	env_timer_stop(source->env, &source->bad_timer);
	env_timer_stop(source->env, &source->point_timer);
	source_loss_stop(source);
	source_pace_stop(source);
	env_defer_cancel(source->env, &source->pump_task);
	env_defer_cancel(source->env, &source->leave_task);
	source_reads_fail(source);
	source_transfer_end(source, false);
	memory_free(source);
}

bool source_is_idle(const struct source *source)
{
	return (!source->cut || source->parked) && !source->reads_busy &&
	       compare_is_idle(source->compare) && !source->bump_due;
}

void source_forget_transfer(struct source *source)
{
	assert(source_is_idle(source) && !source->link);
	source_transfer_end(source, false);
}

void source_set_protocol(struct source *source, enum replication_protocol protocol)
{
	bool waited = source->protocol != REPLICATION_A;

	source->protocol = protocol;
	if (source->phase == SOURCE_STREAM && !waited)
		source_stream_settle(source);
	if (source->link)
		source_stream_resume(source);
}

/* ---- rounds --------------------------------------------------------------------------------- */

void source_propose(struct source *source)
{
	/* What was overwritten while there was no link may have made it too much for the log. */
	if (source->cut && !source_transfer_fits(source, 0))
		source_transfer_end(source, false);
	if (!source->cut)
		source_transfer_new(source);
	uint64_t left = source->cut ? volume_cut_left_bytes(source->cut)
				    : volume_dirty_bytes(source->volume, VOLUME_PEER);
	struct frame_transfer_wire wire = {source->transfer};
	struct frame frame = {.type = FRAME_PROPOSE, .id = ++source->round, .length = left};

	source->cut_total_bytes = source->cut_done_bytes + left;
	source_cut_rewind(source);
	source->phase = SOURCE_PROPOSED;
	if (!link_send_control(source->link, &frame, &wire, sizeof(wire)))
		source_refuse(source, FRAME_ERROR_BUSY, "no buffer");
}

void source_attach(struct source *source, struct link *link, enum replication_protocol protocol,
		   const struct source_target *target)
{
	assert(source_is_idle(source) && !source->link);
	source->link = link;
	link_set_stream_rate(link, &source->stream_rate);
	source->phase = SOURCE_MAP;
	source->protocol = protocol;
	source->target = *target;
	source->round = source->question_id = 0;
	source->staged_rounds = 0;
	source->compared = (struct compare_status){};
	source->compare_total_bytes = 0;
	source->final = source->in_place = source->leaving = false;
	source->parked = source->map_begun = source->resuming = false;
	source_stream_reset(source);
}

void source_attach_served(struct source *source, struct link *link,
			  enum replication_protocol protocol)
{
	source_forget_transfer(source);
	source_attach(source, link, protocol, &(struct source_target){});
	source->phase = SOURCE_SERVED;
	source->final = true;
	/* What the map says was sent is there, or is sent again: requests under way were kept. */
	if (volume_clear_all(source->volume, VOLUME_PEER)) {
		source_refuse(source, FRAME_ERROR_BUSY, "a cut is still there");
		return;
	}
	source_stream_served(source);
}

/* A cut has a generation of its own: whatever is written after it is written under another, so
 * that a target promoted at the cut and a source that went on are told apart. */
static int cut_generation(struct source *source)
{
	struct volume_state state;

	volume_get_state(source->volume, &state);
	if (id128_is_zero(&state.generations.current))
		env_random(source->env, &state.generations.current,
			   sizeof(state.generations.current));
	/* A bump may be on its way to the disk: the target must not know it before this side does. */
	int error = volume_set_state(source->volume, &state);
	if (error)
		return error;
	source->cut_generation = state.generations.current;
	volume_set_peer_in_sync(source->volume, true);
	volume_set_peer_in_sync(source->volume, false);
	return 0;
}

/* Whether the stream may begin at this cut: its round is a small one, or the last that is tried, and
 * what is streamed behind it finds room in the log. */
static bool is_final(const struct source *source, uint64_t left)
{
	struct volume_state state;

	volume_get_state(source->volume, &state);
	/* A secondary has nothing to stream. */
	if (source->in_place || state.role != VOLUME_PRIMARY)
		return false;
	if (left <= source->final_max_bytes && source_transfer_fits(source, left / 2))
		return true;
	/* One that is too big would make writers wait for it. */
	return source->staged_rounds >= SOURCE_STAGED_MAX && !source_may_leave(source);
}

/* The cut, its frame and the tap: all in this one turn, so that the stream begins at the cut. */
void source_freeze(struct source *source)
{
	struct volume_state state;

	if (cut_generation(source)) {
		source_refuse(source, FRAME_ERROR_IO, "cannot begin a cut");
		return;
	}
	volume_cut_freeze(source->cut);
	source->frozen = true;
	source->ended = false;
	source->cut_at_ns = env_now_ns(source->env);
	uint64_t left = volume_cut_left_bytes(source->cut);
	source->final = is_final(source, left);
	volume_get_state(source->volume, &state);
	struct frame_generation_wire wire = {source->cut_generation, state.uuid};
	struct frame frame = {
		.type = FRAME_CUT_BEGIN,
		.id = source->round,
		.flags = source->final ? FRAME_FINAL : 0,
		.lsn = volume_cut_lsn(source->cut),
		.length = left,
	};
	source->cut_total_bytes = source->cut_done_bytes + left;
	source_cut_rewind(source);
	source->phase = SOURCE_CUT;
	if (!link_send_control(source->link, &frame, &wire, sizeof(wire))) {
		source_refuse(source, FRAME_ERROR_BUSY, "no buffer");
		return;
	}
	source_stream_watch(source);
	if (source->final) {
		source->tapped = true;
		volume_set_tap(source->volume, &source->tap);
	}
	env_defer(source->env, &source->pump_task);
}

/* From now on the map is relative to generation: what the peer has. */
static int set_base(struct source *source, const struct id128 *generation, bool *equal)
{
	struct volume_state state;

	volume_get_state(source->volume, &state);
	*equal = id128_equal(&state.generations.current, generation);
	struct id128 base = *equal ? (struct id128){} : *generation;
	if (*equal && id128_equal(&state.generations.base, &base))
		return 0; /* else stored even if it is so: a bump may be on its way to the disk */
	state.generations.base = base;
	return volume_set_state(source->volume, &state);
}

/* The first MAP frame: all that RESUME could say has been said. */
static bool begin_map(struct source *source)
{
	int error = 0;

	source->map_begun = true;
	if (source->resuming)
		return true;
	bool applied = source_transfer_was_applied(source), equal;
	source_transfer_end(source, applied);
	if (applied) {
		source->cuts++;
		source->complete_at_ns = source->cut_at_ns;
		error = set_base(source, &source->cut_generation, &equal);
	}
	if (!error && source->target.full)
		error = volume_mark_all(source->volume, VOLUME_PEER, source->target.zero_disk);
	if (error)
		source_refuse(source, FRAME_ERROR_IO, "cannot mark the blocks to be sent");
	return !error;
}

static void on_map(struct source *source, const struct frame *frame, const void *payload)
{
	const struct frame_range_wire *ranges = payload;

	if (!source->map_begun && !begin_map(source))
		return;
	for (unsigned i = 0; i < frame->payload_length / sizeof(*ranges); i++) {
		uint64_t offset = from_be64(ranges[i].first), length = from_be64(ranges[i].second);
		if (length == 0 || offset > volume_size_bytes(source->volume) ||
		    length > volume_size_bytes(source->volume) - offset ||
		    offset % VOLUME_PEER_BLOCK_BYTES) {
			source_refuse(source, FRAME_ERROR_PROTOCOL, "MAP: bad range");
			return;
		}
		/* Resumed: they are in the cut since it began. */
		if (source->target.full || source->resuming || MUTATE(replication_skip_map_merge))
			continue;
		if (volume_mark(source->volume, VOLUME_PEER, offset, length)) {
			source_refuse(source, FRAME_ERROR_IO, "cannot mark the blocks to be sent");
			return;
		}
	}
	if (!(frame->flags & FRAME_LAST))
		return;
	if (source->target.full && !source->target.zero_disk && !source->resuming)
		source_compare_begin(source);
	else
		source_propose(source);
}

static void on_ready(struct source *source, const struct frame *frame, const void *payload)
{
	if (frame->id != source->round) {
		source_refuse(source, FRAME_ERROR_PROTOCOL, "READY for another round");
		return;
	}
	source->in_place = frame->flags & FRAME_IN_PLACE;
	if (!source->in_place)
		source->staged_rounds++;
	source->room_bytes = frame->length;
	if (!source->cut && source_transfer_begin(source)) {
		source_refuse(source, FRAME_ERROR_IO, "cannot begin a cut");
		return;
	}
	source->passes = 0;
	source->pass_bytes = volume_cut_left_bytes(source->cut);
	source->phase = SOURCE_LIVE;
	env_defer(source->env, &source->pump_task);
}

static void send_synced(struct source *source, const struct id128 *current)
{
	struct frame_generation_wire wire = {.current = *current};
	struct frame frame = {.type = FRAME_SYNCED};

	source->target.unsure = true;
	if (!link_send_control(source->link, &frame, &wire, sizeof(wire)))
		source_refuse(source, FRAME_ERROR_BUSY, "no buffer");
}

static void on_cut_ack(struct source *source, const struct frame *frame, const void *payload)
{
	bool equal;

	if (frame->id != source->round) {
		source_refuse(source, FRAME_ERROR_PROTOCOL, "CUT_ACK for another round");
		return;
	}
	source_transfer_end(source, true);
	source->phase = SOURCE_DONE;
	source_bad_reset(source);
	source->cuts++;
	source->complete_at_ns = source->cut_at_ns;
	source->target = (struct source_target){.generation = source->cut_generation};
	int error = set_base(source, &source->cut_generation, &equal);
	if (error) {
		source_refuse(source, FRAME_ERROR_IO, "cannot persist the volume's state");
		return;
	}
	if (!source->final) {
		struct volume_state state;
		volume_get_state(source->volume, &state);
		if (state.role == VOLUME_PRIMARY)
			source_propose(source);
		source->ops->cut_acknowledged(source->owner, false);
		return;
	}
	if (source->leaving) {
		source->leaving = false;
		source->phase = SOURCE_LEAVE;
		env_defer(source->env, &source->pump_task);
		source->ops->cut_acknowledged(source->owner, false);
		return;
	}
	source->phase = SOURCE_STREAM;
	volume_set_peer_in_sync(source->volume, true);
	source_stream_begin(source);
	source_stream_settle(source);
	if (source_followed(source)) {
		source_refuse(source, FRAME_ERROR_IO, "cannot persist the volume's state");
		return;
	}
	if (!equal) {
		struct volume_state state;
		volume_get_state(source->volume, &state);
		send_synced(source, &state.generations.current);
	}
	source->ops->cut_acknowledged(source->owner, true);
	source_followed_done(source);
	source_stream_resume(source); /* writers that waited for room in the target's log */
}

static void on_synced(struct source *source, const struct frame *frame, const void *payload)
{
	struct frame_generation_wire wire;
	struct volume_state state;
	bool equal;

	if (source->phase != SOURCE_STREAM)
		return; /* the stream was left meanwhile: the next cut names the generation */
	memcpy(&wire, payload, sizeof(wire));
	volume_get_state(source->volume, &state);
	if (!id128_equal(&wire.current, &state.generations.current)) {
		send_synced(source, &state.generations.current);
		return;
	}
	source->target.generation = wire.current;
	source->target.unsure = false;
	if (set_base(source, &wire.current, &equal))
		source_refuse(source, FRAME_ERROR_IO, "cannot persist the volume's state");
}

static void on_hashes(struct source *source, const struct frame *frame, const void *payload)
{
	const char *invalid = compare_hashes(source->compare, frame, payload);

	if (invalid)
		source_refuse(source, FRAME_ERROR_PROTOCOL, invalid);
}

#define P(x) (1u << SOURCE_##x)
static const struct {
	unsigned phases;
	void (*call)(struct source *source, const struct frame *frame, const void *payload);
} handlers[FRAME_TYPES] = {
	[FRAME_RESUME] = {P(MAP) | P(LIVE) | P(CUT) | P(ENDED), source_transfer_resume},
	[FRAME_MAP] = {P(MAP), on_map},
	[FRAME_READY] = {P(PROPOSED), on_ready},
	[FRAME_CUT_ACK] = {P(ENDED), on_cut_ack},
	[FRAME_ACK] = {P(PROPOSED) | P(LIVE) | P(CUT) | P(ENDED) | P(STREAM) | P(LEAVE) | P(SERVED),
		       source_stream_ack},
	[FRAME_SYNCED] = {P(PROPOSED) | P(LIVE) | P(CUT) | P(ENDED) | P(STREAM) | P(LEAVE),
			  on_synced},
	[FRAME_READ_DATA] = {~P(OFF), source_read_data},
	/* Behind the stream only answers that nobody waits for any more. */
	[FRAME_HASHES] = {P(COMPARE) | P(STREAM) | P(LEAVE) | P(PROPOSED) | P(LIVE) | P(CUT) |
				  P(ENDED),
			  on_hashes},
};

bool source_admit(struct source *source, const struct frame *frame, struct buf **buf)
{
	if (source->phase == SOURCE_OFF)
		return false;
	if (handlers[frame->type].call && handlers[frame->type].phases & 1u << source->phase)
		return frame->type != FRAME_READ_DATA || source_read_admit(source, frame, buf);
	source_refuse(source, FRAME_ERROR_PROTOCOL, "frame out of place");
	return false;
}

void source_frame(struct source *source, const struct frame *frame, const void *payload)
{
	if (source->phase != SOURCE_OFF)
		handlers[frame->type].call(source, frame, payload);
}

void source_sent(struct source *source)
{
	if (!source->link)
		return;
	source_reads_resume(source);
	source_cut_pump(source); /* before the writers: they would take all the room */
	if (source->link)
		source_stream_resume(source);
	env_defer(source->env, &source->pump_task);
}

/* The stream ends here: until its oldest unacknowledged write the peer had everything. */
static void note_complete(struct source *source)
{
	source->complete_at_ns = env_now_ns(source->env) - source_stream_age_ns(source);
}

/* ---- leaving the stream at max-lag ---------------------------------------------------------- */

void source_leave_stream(struct source *source)
{
	assert(source->tapped);
	source->tapped = false;
	source->left++;
	if (source->phase == SOURCE_STREAM) {
		/* Behind it nothing that was streamed needs to be sent again. */
		source_stream_point(source);
		note_complete(source);
		source->phase = SOURCE_LEAVE;
		/* As at the loss of a link: clients saw writes completed that the peer lacks. */
		if (source_completed_alone(source, true))
			source_bump(source);
		volume_set_peer_in_sync(source->volume, false);
		compare_stop(source->compare);
		source->ops->left_stream(source->owner);
	} else {
		source->leaving = true;
	}
	source->full_queue = false;
	volume_set_tap(source->volume, NULL);
	env_defer(source->env, &source->pump_task);
}

void source_leave_step(struct source *source)
{
	if (source->phase != SOURCE_LEAVE || source->oldest < source->next || source->cut)
		return;
	source->staged_rounds = 0;
	source_propose(source);
}

void source_detach(struct source *source)
{
	bool streamed = source->phase == SOURCE_STREAM;
	bool left = source->phase == SOURCE_LEAVE;
	bool point = (streamed || left) && source->cut;

	compare_stop(source->compare);
	source_pace_stop(source);
	if (streamed)
		note_complete(source);
	source->link = NULL;
	source->phase = SOURCE_OFF;
	if (point) {
		volume_cut_finish(source->cut, left && MUTATE(replication_leave_forgets));
		source->cut = NULL;
	}
	source_lost(source, streamed);
	source_stream_reset(source);
	source->leaving = false;
	env_timer_stop(source->env, &source->bad_timer);
	source->bad_blocks = 0;
	source->careful_end = 0;
	if (source->tapped || left) {
		source->tapped = false;
		volume_set_tap(source->volume, NULL);
		source_lost_tap(source);
	}
	source_reads_fail(source);
	env_defer(source->env, &source->pump_task);
}

struct compare *source_compare(struct source *source)
{
	return source->compare;
}

/* How far behind the peer is, whatever the phase. */
static void get_lag(const struct source *source, struct source_status *status)
{
	uint64_t since = volume_dirty_since_ns(source->volume, VOLUME_PEER);

	if (source->phase == SOURCE_STREAM) {
		status->lag_bytes = source->lag_bytes;
		status->lag_ns = source_stream_age_ns(source);
		return;
	}
	status->lag_bytes = volume_dirty_bytes(source->volume, VOLUME_PEER);
	if (since < source->complete_at_ns)
		since = source->complete_at_ns;
	if (status->lag_bytes)
		status->lag_ns = env_now_ns(source->env) - since;
}

void source_get_status(const struct source *source, struct source_status *status)
{
	*status = (struct source_status){
		.phase = source->phase,
		.sent_lsn = source->sent_lsn,
		.acked_lsn = source->acked_lsn,
		.settling = source->settling != 0,
		.waiting = source->waiting,
		.waiting_since_ns = source->waiting ? source->waiting_since_ns : 0,
		.streamed_bytes = source->streamed_bytes,
		.unacked_bytes = source->lag_payload,
		.held = source->full_queue ||
			(source->holds &&
			 env_now_ns(source->env) - source->held_at_ns < SOURCE_HELD_NS),
		.holds = source->holds,
		.left = source->left,
		.resumes = source->resumes,
		.unreadable_bytes = source->unreadable_bytes,
		.unreadable_offset = source->unreadable_offset,
		.in_place = source->in_place && source->phase >= SOURCE_LIVE &&
			    source->phase <= SOURCE_ENDED,
		.room_bytes = source->room_bytes,
		.cut_done_bytes = source->cut_done_bytes,
		.cut_total_bytes = source->cut_total_bytes,
		.cut_started_ns = source->cut_started_ns,
		.cuts = source->cuts,
		.compare = source->compared,
		.compare_total_bytes = source->compare_total_bytes,
	};
	if (source->phase == SOURCE_COMPARE)
		compare_get_status(source->compare, &status->compare);
	source_pace_status(source, status);
	get_lag(source, status);
}

void source_check(const struct source *source)
{
	uint64_t lag = 0, payload = 0;

	assert(source->oldest <= source->next && source->next - source->oldest <= SOURCE_RING);
	assert(source->received < source->next);
	assert(source->link || (source->phase == SOURCE_OFF && !source->tapped));
	assert(source->tapped || source->phase != SOURCE_STREAM);
	compare_check(source->compare);
	assert(source->phase != SOURCE_COMPARE || source->cut);
	assert((source->phase != SOURCE_CUT && source->phase != SOURCE_LIVE) || source->cut);
	assert(source->phase != SOURCE_CUT || source->frozen);
	assert(source->phase != SOURCE_LIVE || !source->frozen);
	assert(!source->parked || (source->cut && !source->link && !source->frozen));
	assert(source->durable_frames <= source->cut_frames &&
	       source->cut_frames - source->durable_frames <= SOURCE_SENT);
	assert(source->phase != SOURCE_ENDED || (source->cut && !source->reads_busy));
	assert((source->reads_busy == 0) == (source->reads_bytes == 0));
	assert(!source->leaving || (source->final && !source->tapped));
	assert(source->phase != SOURCE_LEAVE || !source->tapped);
	assert(source->phase != SOURCE_PROPOSED || source->oldest == source->next);
	for (uint64_t s = source->oldest; s < source->next; s++) {
		if (source->ring[s % SOURCE_RING].written)
			continue;
		lag += source->ring[s % SOURCE_RING].bytes;
		payload += source->ring[s % SOURCE_RING].payload;
	}
	assert(lag == source->lag_bytes && payload == source->lag_payload);
}
