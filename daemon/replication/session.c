/* SPDX-License-Identifier: Apache-2.0 */
/* session: one connection from HELLO to its end: who the peer is, what is decided, who then sends. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/mutate.h"
#include "daemon/replication/replication_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* ---- HELLO ---------------------------------------------------------------------------------- */

/* Whether everything on this disk reads as zeroes, as far as the file system can tell. */
static bool disk_is_zero(struct replication *r)
{
	struct block *block = volume_block(r->volume);
	struct block_extent extents[16];
	uint64_t size = volume_size_bytes(r->volume), offset = 0;

	while (offset < size) {
		unsigned count = block->ops->extents(block, offset, size - offset, extents, 16);
		if (count == 0)
			return false;
		for (unsigned i = 0; i < count; i++) {
			if (!extents[i].zero || !extents[i].hole || !extents[i].length_bytes)
				return false;
			offset += extents[i].length_bytes;
		}
	}
	return true;
}

void session_hello(struct replication *r, struct hello *hello)
{
	struct volume_state state;

	volume_get_state(r->volume, &state);
	*hello = (struct hello){
		.version = FRAME_VERSION,
		.features = HELLO_FEATURES,
		.uuid = state.uuid,
		.instance = r->instance,
		.attempt = r->attempt,
		.size_bytes = volume_size_bytes(r->volume),
		.dirty_bytes = volume_dirty_bytes(r->volume, VOLUME_PEER),
		.role = state.role == VOLUME_PRIMARY,
		.disk = (unsigned)state.disk,
		.protocol = (unsigned)r->config.protocol,
		.flags = (r->wants ? HELLO_WANTS : 0) | (r->starting ? HELLO_STARTING : 0) |
			 (volume_leans(r->volume) ? HELLO_LEANS : 0),
		.after_sb_0pri = r->config.after_sb_0pri,
		.after_sb_1pri = r->config.after_sb_1pri,
		.current = state.generations.current,
		.base = state.generations.base,
	};
	_Static_assert(VOLUME_HISTORY == HELLO_HISTORY, "one history");
	memcpy(hello->history, state.generations.history, sizeof(hello->history));
	snprintf(hello->node, sizeof(hello->node), "%s", r->node_name);
	snprintf(hello->volume, sizeof(hello->volume), "%s", volume_name(r->volume));
}

void session_hello_whole(struct replication *r, struct hello *hello)
{
	struct volume_state state;

	session_hello(r, hello);
	volume_get_state(r->volume, &state);
	if (id128_is_zero(&state.generations.current) && state.disk == VOLUME_DISK_UPTODATE &&
	    state.role == VOLUME_SECONDARY && disk_is_zero(r))
		hello->flags |= HELLO_ZERO_DISK;
	if (state.role == VOLUME_PRIMARY && yield_vacant(r))
		hello->flags |= HELLO_VACANT;
}

static void make_hello(struct replication *r)
{
	restore_recheck(r);
	r->attempt++;
	session_hello_whole(r, &r->self);
}

static void send_hello(struct replication *r)
{
	struct frame frame = {.type = FRAME_HELLO};
	struct hello_wire wire;

	make_hello(r);
	hello_encode(&r->self, &wire);
	link_send_control(r->link, &frame, &wire, sizeof(wire));
	r->session = SESSION_HELLO;
}

enum frame_error session_peer_invalid(const struct replication *r, const struct hello *peer,
				      char *text, size_t size)
{
	if (peer->version != FRAME_VERSION) {
		snprintf(text, size, "peer %s speaks version %u of the protocol, this node %u",
			 peer->node, peer->version, FRAME_VERSION);
		return FRAME_ERROR_VERSION;
	}
	if (strcmp(peer->node, r->node_name) == 0) {
		snprintf(text, size, "both nodes have the name %s: give one another name",
			 peer->node);
		return FRAME_ERROR_SAME_NAME;
	}
	if (strcmp(peer->volume, volume_name(r->volume)) != 0) {
		snprintf(text, size, "peer %s answers for volume %s", peer->node, peer->volume);
		return FRAME_ERROR_NO_VOLUME;
	}
	if (!resize_sizes_fit(r, peer))
		return resize_sizes_differ(r, peer, text, size);
	return 0;
}

/* ---- START ---------------------------------------------------------------------------------- */

static void run(struct replication *r);

static void send_start(struct replication *r)
{
	struct frame start = {.type = FRAME_START, .id = (uint64_t)r->verdict};

	r->session = SESSION_START;
	link_send(r->link, &start, NULL, 0);
}

static bool gives_as_secondary(const struct replication *r)
{
	return (r->verdict == VERDICT_CATCH_UP_FROM_A || r->verdict == VERDICT_FULL_FROM_A) &&
	       r->self.role == VOLUME_SECONDARY && !MUTATE(replication_served_no_fsync);
}

/* The peer will take for durable here what it gets from here, and no map names what the stream brought: left in
 * the disk's cache it could be lost under a cut that comes back later. A primary has its intent bits. So nothing
 * begins, and START is not sent, before it is durable; the peer's may come meanwhile. */
static void make_durable(struct replication *r)
{
	r->session = SESSION_DURABLE;
	if (r->flushing)
		return; /* for a connection that is over: what this one needs begins when that is done */
	r->flushing = true;
	r->flush_attempt = r->attempt;
	r->flush.mutation = (struct volume_mutation){.type = VOLUME_FLUSH};
	volume_apply(r->volume, &r->flush);
}

static void flushed(struct volume_apply *apply, int error)
{
	struct replication *r = container_of(apply, struct replication, flush);

	r->flushing = false;
	if (r->stopping)
		env_defer(r->env, &r->end_task);
	if (r->session != SESSION_DURABLE || r->drop_code)
		return;
	if (r->flush_attempt != r->attempt) {
		make_durable(r);
	} else if (error) {
		replication_refuse(r, FRAME_ERROR_IO, "what is here cannot be made durable");
	} else {
		send_start(r);
		if (r->start_came)
			run(r);
	}
}

void session_init(struct replication *r)
{
	r->flush.done = flushed;
}

static void take_start(struct replication *r, const struct frame *frame)
{
	if (frame->id != (uint64_t)decide_mirror(r->verdict))
		replication_refuse(r, FRAME_ERROR_PROTOCOL, "the two sides decide differently");
	else if (r->session == SESSION_DURABLE)
		r->start_came = true;
	else
		run(r);
}

static void take_hello(struct replication *r, const struct hello *peer)
{
	char text[FRAME_ERROR_TEXT_MAX + 1] = "";

	r->peer = *peer;
	r->peer_instance = peer->instance;
	r->peer_attempt = peer->attempt;
	enum frame_error code = session_peer_invalid(r, peer, text, sizeof(text));
	/* A node that gets all its content gets its size with it. */
	bool grows = code == FRAME_ERROR_SIZE && peer->size_bytes > volume_size_bytes(r->volume);
	if ((!code || grows) && restore_heard(r))
		return;
	if (code && resize_begin_by_itself(r, peer))
		return;
	if (!code && resize_is_under_way(r)) {
		code = FRAME_ERROR_BUSY;
		snprintf(text, sizeof(text), "is being made bigger");
	}
	if (!code) {
		r->verdict = decide(&r->self, peer);
		if (r->verdict == VERDICT_SPLIT_BRAIN) {
			split_begin(r);
			return;
		}
		code = decide_refusal(r->verdict);
		snprintf(text, sizeof(text), "%s", decide_text(r->verdict));
	}
	if (code) {
		replication_refuse(r, code, text);
		return;
	}
	if (gives_as_secondary(r))
		make_durable(r);
	else
		send_start(r);
}

/* ---- roles ---------------------------------------------------------------------------------- */

unsigned session_map(struct replication *r, uint64_t *offset,
		     struct frame_range_wire wire[FRAME_RANGES_MAX], bool *more)
{
	uint64_t start, length, run_start = 0, run_end = 0;
	unsigned count = 0;

	while (volume_dirty_next(r->volume, VOLUME_PEER, *offset, &start, &length)) {
		if (run_end && start != run_end) {
			wire[count++] = (struct frame_range_wire){to_be64(run_start),
								  to_be64(run_end - run_start)};
			run_end = 0;
			if (count == FRAME_RANGES_MAX - 1)
				break;
		}
		if (!run_end)
			run_start = start;
		run_end = *offset = start + length;
	}
	if (run_end)
		wire[count++] =
			(struct frame_range_wire){to_be64(run_start), to_be64(run_end - run_start)};
	*more = volume_dirty_next(r->volume, VOLUME_PEER, *offset, &start, &length);
	return count;
}

/* Target: tells the source what it changed itself since the common base. */
static void send_map(struct replication *r)
{
	bool full = r->verdict == VERDICT_FULL_FROM_B ||
		    (MUTATE(replication_given_up_not_told) && r->wants) ||
		    (MUTATE(replication_rolled_back_not_told) && !r->wants);

	while (r->mapping && r->link) {
		struct frame frame = {.type = FRAME_MAP};
		uint64_t offset = r->map_offset;
		bool more = false;
		unsigned count = full ? 0 : session_map(r, &offset, r->map_wire, &more);

		frame.flags = more ? 0 : FRAME_LAST;
		if (!link_send_control(r->link, &frame, r->map_wire,
				       count * (uint32_t)sizeof(r->map_wire[0])))
			return; /* again when something has been sent */
		r->map_offset = offset;
		r->mapping = more;
	}
}

/* The map reaches back to an older generation than the peer has (its CUT_ACK was lost): what it has is
 * named as the base, before it falls out of the history. */
static void take_base(struct replication *r)
{
	struct volume_state state;

	if (decide_relation(&r->self, &r->peer) != RELATION_A_AHEAD)
		return;
	volume_get_state(r->volume, &state);
	if (id128_equal(&state.generations.base, &r->peer.current))
		return;
	state.generations.base = r->peer.current;
	if (volume_set_state(r->volume, &state))
		replication_refuse(r, FRAME_ERROR_IO, "cannot persist the volume's state");
}

/* A primary whose content is at the secondary: the stream goes on where it was, without a catch-up. */
static void run_served(struct replication *r)
{
	bool source = r->verdict == VERDICT_SERVED_BY_B;

	r->session = source ? SESSION_SOURCE : SESSION_SINK;
	contact_begin(r);
	if (source && !volume_leans(r->volume)) {
		/* Its disk became whole since HELLO. */
		replication_refuse(r, FRAME_ERROR_CLOSING, "its state changed");
		return;
	}
	if (!source && sink_keeps_transfer(r->sink)) {
		/* What came of an unfinished catch-up is nothing any more; its log has to go first. */
		sink_forget_transfer(r->sink);
		replication_refuse(r, FRAME_ERROR_CLOSING, "an unfinished catch-up is given up");
		return;
	}
	if (source)
		source_attach_served(r->source, r->link, r->config.protocol);
	else
		sink_attach_served(r->sink, r->link, &r->peer.uuid);
	if (source || r->drop_code)
		return;
	replication_set_state(r, REPLICATION_STREAMING);
	contact_streaming(r);
}

static void run(struct replication *r)
{
	bool source = r->verdict == VERDICT_CATCH_UP_FROM_A || r->verdict == VERDICT_FULL_FROM_A;

	env_log(r->env, ENV_LOG_INFO, "replication: volume %s: peer %s (%s): %s",
		volume_name(r->volume), r->peer.node, link_peername(r->link),
		decide_text(r->verdict));
	r->logged[0] = r->refusal[0] = 0;
	r->backoff_ms = 0;
	r->connects++;
	split_end(r);
	if (r->verdict == VERDICT_A_YIELDS) {
		yield_step_down(r);
		return;
	}
	yield_settled(r);
	if (r->verdict == VERDICT_A_KEEPS) {
		restore_take_back(r);
		replication_refuse(r, FRAME_ERROR_CLOSING, "what is here is not given up");
		return;
	}
	if (r->verdict == VERDICT_IDLE || r->verdict == VERDICT_B_YIELDS ||
	    r->verdict == VERDICT_B_KEEPS) {
		r->session = SESSION_IDLE;
		replication_set_state(r, REPLICATION_IDLE);
		contact_begin(r);
		return;
	}
	replication_set_state(r, REPLICATION_CATCH_UP);
	if (r->verdict == VERDICT_SERVED_BY_A || r->verdict == VERDICT_SERVED_BY_B) {
		run_served(r);
		return;
	}
	r->full_syncs += r->verdict == VERDICT_FULL_FROM_A || r->verdict == VERDICT_FULL_FROM_B;
	if (source) {
		r->session = SESSION_SOURCE;
		if (r->verdict == VERDICT_CATCH_UP_FROM_A)
			take_base(r);
		struct source_target target = {
			.full = r->verdict == VERDICT_FULL_FROM_A,
			.zero_disk = r->peer.flags & HELLO_ZERO_DISK,
			.generation = r->peer.current,
			.instance = r->peer.instance,
		};
		source_attach(r->source, r->link, r->config.protocol, &target);
		contact_begin(r);
		return;
	}
	r->session = SESSION_SINK;
	if (r->verdict == VERDICT_CATCH_UP_FROM_B)
		yield_roll_back(r);
	source_forget_transfer(r->source);
	sink_attach(r->sink, r->link, &r->peer.uuid, r->wants);
	sink_set_live(r->sink, r->peer.role == VOLUME_PRIMARY);
	contact_begin(r);
	r->mapping = true;
	r->map_offset = 0;
	send_map(r);
}

static void sink_cut_applied_(void *owner, bool final)
{
	struct replication *r = owner;
	struct sink_status sink;

	sink_get_status(r->sink, &sink);
	plan_note_rate(r, sink.cut_done_bytes, sink.cut_started_ns);
	restore_satisfied(r);
	if (final && r->state == REPLICATION_CATCH_UP) {
		replication_set_state(r, REPLICATION_STREAMING);
		contact_streaming(r);
	}
}

static void source_cut_acknowledged_(void *owner, bool streaming)
{
	struct replication *r = owner;
	struct source_status source;

	source_get_status(r->source, &source);
	plan_note_rate(r, source.cut_done_bytes, source.cut_started_ns);
	if (streaming) {
		replication_set_state(r, REPLICATION_STREAMING);
		verify_attach(r->verify, r->link);
		contact_streaming(r);
	} else if (r->self.role != VOLUME_PRIMARY) /* a reverse sync is done: decide anew */
		replication_refuse(r, FRAME_ERROR_CLOSING, "restored from this side");
}

static void settled_(void *owner)
{
	contact_streaming(owner);
}

static void left_stream_(void *owner)
{
	struct replication *r = owner;

	verify_detach(r->verify);
	r->peer.disk = VOLUME_DISK_OUTDATED;
	if (r->state == REPLICATION_STREAMING)
		replication_set_state(r, REPLICATION_CATCH_UP);
	contact_streaming(r);
}

static void sink_left_stream_(void *owner)
{
	struct replication *r = owner;

	if (r->state == REPLICATION_STREAMING)
		replication_set_state(r, REPLICATION_CATCH_UP);
}

static void refuse_(void *owner, enum frame_error code, const char *text)
{
	replication_refuse(owner, code, text);
}

static void idle_(void *owner)
{
	struct replication *r = owner;

	if (r->recovering && !r->stopping && sink_is_idle(r->sink))
		r->recovering = false;
	restore_recheck(r);
	if (r->stopping)
		env_defer(r->env, &r->end_task);
	else
		replication_retry(r);
}

void session_verify_idle(void *owner)
{
	idle_(owner);
}

const struct sink_ops replication_sink_ops = {
	.cut_applied = sink_cut_applied_,
	.left_stream = sink_left_stream_,
	.refuse = refuse_,
	.idle = idle_,
};

const struct source_ops replication_source_ops = {
	.cut_acknowledged = source_cut_acknowledged_,
	.settled = settled_,
	.left_stream = left_stream_,
	.refuse = refuse_,
	.idle = idle_,
};

/* ---- frames --------------------------------------------------------------------------------- */

static bool session_admit(void *owner, const struct frame *frame, struct buf **buf)
{
	struct replication *r = owner;

	if (r->drop_code)
		return false;
	if (frame->type == FRAME_STATE && r->session >= SESSION_START)
		return true;
	if (frame->type == FRAME_RESIZE && r->session >= SESSION_SOURCE)
		return true;
	if (frame->type == FRAME_SNAPSHOT &&
	    (r->session == SESSION_SOURCE || r->session == SESSION_SINK))
		return reference_admit(r);
	switch (r->session) {
	case SESSION_HELLO:
		if (frame->type == FRAME_HELLO)
			return true;
		break;
	case SESSION_DURABLE:
		if (frame->type == FRAME_START && !r->start_came)
			return true;
		break;
	case SESSION_START:
		if (frame->type == FRAME_START)
			return true;
		break;
	case SESSION_SPLIT:
		if (frame->type == FRAME_CHANGES && !r->split_told)
			return true;
		break;
	case SESSION_SOURCE:
		return source_admit(r->source, frame, buf);
	case SESSION_SINK:
		return sink_admit(r->sink, frame, buf);
	case SESSION_IDLE:
	case SESSION_NONE:
		break;
	}
	replication_refuse(r, FRAME_ERROR_PROTOCOL, "frame out of place");
	return false;
}

static void take_error(struct replication *r, const struct frame *frame, const void *payload)
{
	char text[FRAME_ERROR_TEXT_MAX + 1], why[400];
	enum frame_error code;
	const char *reason = frame_error_decode(payload, frame->payload_length, &code, text);

	if (reason) {
		link_fail(r->link, -EPROTO, "%s", reason);
		return;
	}
	bool quiet = code == FRAME_ERROR_CLOSING || code == FRAME_ERROR_COLLISION ||
		     code == FRAME_ERROR_BUSY;
	const char *name = r->peer.node[0] ? r->peer.node : link_peername(r->link);
	snprintf(why, sizeof(why), "peer %s: %s", name, text);
	if (code == FRAME_ERROR_SPLIT_BRAIN) /* both say it at once */
		snprintf(why, sizeof(why), "%s", decide_text(VERDICT_SPLIT_BRAIN));
	if (code == FRAME_ERROR_STANDALONE)
		contact_left(r);
	session_end(r, 0, NULL);
	replication_lost(r, frame_error_is_final(code), code == FRAME_ERROR_CLOSING,
			 quiet ? "" : why);
}

static void session_frame(void *owner, const struct frame *frame, const void *payload,
			  struct buf *buf)
{
	struct replication *r = owner;
	struct hello hello;

	if (frame->type == FRAME_ERROR) {
		take_error(r, frame, payload);
		return;
	}
	if (frame->type == FRAME_STATE) {
		contact_frame(r, frame, payload);
		return;
	}
	if (frame->type == FRAME_RESIZE) {
		resize_frame(r, frame, payload);
		return;
	}
	if (frame->type == FRAME_SNAPSHOT) {
		reference_frame(r, frame, payload);
		return;
	}
	switch (r->session) {
	case SESSION_HELLO: {
		const char *reason = hello_decode(payload, frame->payload_length, &hello);
		if (reason)
			replication_refuse(r, FRAME_ERROR_PROTOCOL, reason);
		else
			take_hello(r, &hello);
		break;
	}
	case SESSION_DURABLE:
	case SESSION_START:
		take_start(r, frame);
		break;
	case SESSION_SPLIT:
		split_frame(r, frame, payload);
		break;
	case SESSION_SOURCE:
		source_frame(r->source, frame, payload);
		break;
	case SESSION_SINK:
		sink_frame(r->sink, frame, payload, buf);
		return;
	case SESSION_IDLE:
	case SESSION_NONE:
		break;
	}
	buf_put(buf);
}

static void session_sent(void *owner)
{
	struct replication *r = owner;

	if (r->session == SESSION_SPLIT)
		split_sent(r);
	if (r->session == SESSION_SOURCE)
		source_sent(r->source);
	if (r->session == SESSION_SINK) {
		send_map(r);
		sink_sent(r->sink);
	}
}

static void session_dead(void *owner, int error, const char *why)
{
	struct replication *r = owner;
	char text[400];

	snprintf(text, sizeof(text), "peer %s: %s", link_peername(r->link), why);
	session_end(r, 0, NULL);
	replication_lost(r, false, false, text);
}

static void session_gone(void *owner)
{
	struct replication *r = owner;

	assert(r->links > 0);
	r->links--;
	if (r->stopping)
		env_defer(r->env, &r->end_task);
}

static const struct link_ops session_ops = {
	.admit = session_admit,
	.frame = session_frame,
	.sent = session_sent,
	.dead = session_dead,
	.gone = session_gone,
};

/* ---- beginning and end ---------------------------------------------------------------------- */

void session_open(struct replication *r, struct stream *stream)
{
	struct link *link = link_new(r->env, stream, &r->link_config, &session_ops, r);
	if (!link)
		return;
	r->link = link;
	if (r->braced)
		link_brace(link);
	r->links++;
	r->outgoing = true;
	if (r->state == REPLICATION_STANDALONE)
		replication_set_state(r, REPLICATION_CONNECTING);
	replication_set_state(r, REPLICATION_HANDSHAKE);
	link_start(link, r->config.tls_client);
	send_hello(r);
}

/* Ends the connection if there is one, telling the peer why if code is not 0. */
void session_end(struct replication *r, enum frame_error code, const char *text)
{
	struct link *link = r->link;

	r->drop_code = 0;
	env_defer_cancel(r->env, &r->drop_task);
	if (!link)
		return;
	contact_end(r);
	if (r->state >= REPLICATION_IDLE)
		r->disconnects++;
	r->sent_bytes += link_sent_bytes(link);
	r->received_bytes += link_received_bytes(link);
	if (code)
		link_refuse(link, code, text);
	enum session session = r->session;
	r->link = NULL;
	r->session = SESSION_NONE;
	r->mapping = r->start_came = false;
	resize_parted(r);
	verify_detach(r->verify);
	if (session == SESSION_SOURCE)
		source_detach(r->source);
	if (session == SESSION_SINK)
		sink_detach(r->sink);
	link_close(link);
	if (r->state != REPLICATION_STANDALONE)
		replication_set_state(r, REPLICATION_CONNECTING);
}

static enum frame_error accept_invalid(const struct replication *r, const struct hello *hello,
				       const char **text)
{
	if (r->stopping) {
		*text = "shutting down";
		return FRAME_ERROR_CLOSING;
	}
	if (r->operator_off) {
		*text = "disconnected by the operator of this side";
		return FRAME_ERROR_STANDALONE;
	}
	*text = "another connection is the one to keep";
	if (id128_equal(&hello->instance, &r->peer_instance) && hello->attempt <= r->peer_attempt)
		return FRAME_ERROR_COLLISION; /* overtaken by a later HELLO of the same peer */
	if (r->link && r->outgoing && r->session == SESSION_HELLO &&
	    strcmp(r->node_name, hello->node) < 0)
		return FRAME_ERROR_COLLISION; /* both connect: the lower name's survives */
	return 0;
}

bool replication_admits(const struct replication *r, const struct link *link)
{
	return !r->config.peer_cert_name || link_has_name(link, r->config.peer_cert_name);
}

void replication_accept(struct replication *r, struct link *link, const struct hello *hello)
{
	const char *text;
	enum frame_error code;

	if (hello->flags & HELLO_DRY_RUN) {
		plan_answer(r, link);
		return;
	}
	code = accept_invalid(r, hello, &text);
	if (!code && r->link) {
		/* The peer would not come again if the old connection were alive. */
		session_end(r, FRAME_ERROR_COLLISION, "replaced by a new connection");
	}
	if (!code && (!sink_is_idle(r->sink) || !source_is_idle(r->source) ||
		      !verify_is_idle(r->verify) || r->recovering)) {
		code = FRAME_ERROR_BUSY;
		text = sink_is_stuck(r->sink) ? "staged data cannot be applied: the disk failed"
					      : "still applying what came before";
	}
	if (code) {
		link_refuse(link, code, text);
		link_close(link);
		return;
	}
	if (r->connect_busy)
		r->connect_abandoned = true;
	env_timer_stop(r->env, &r->retry_timer);
	if (r->state == REPLICATION_STANDALONE)
		replication_set_state(r, REPLICATION_CONNECTING);
	r->link = link;
	r->links++;
	r->outgoing = false;
	link_set_owner(link, &r->link_config, &session_ops, r);
	replication_set_state(r, REPLICATION_HANDSHAKE);
	send_hello(r);
	take_hello(r, hello);
}
