/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plan: what a connection would do, found out without doing it. The asking side opens a connection of its
 * own and says HELLO with DRY_RUN; the other answers HELLO and, in MAPs, what it changed itself. Both
 * HELLOs decide as always. Neither side changes any state, and a connection at work is not disturbed.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/replication/replication_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define PLAN_TIMEOUT_NS 10000000000ull
#define RATE_MIN_BYTES  (1024u * 1024) /* less tells nothing of the link */

/* ---- the rate ------------------------------------------------------------------------------- */

void plan_note_rate(struct replication *r, uint64_t bytes, uint64_t started_ns)
{
	uint64_t took_ns = env_now_ns(r->env) - started_ns;

	if (bytes >= RATE_MIN_BYTES && started_ns && took_ns)
		r->rate_bytes = (uint64_t)((double)bytes * 1e9 / (double)took_ns);
}

/* ---- asking --------------------------------------------------------------------------------- */

static void finish(struct plan *p, int error, const char *why)
{
	void (*done)(void *, int, const char *, const struct replication_plan *) = p->done;
	struct link *link = p->link;

	if (!done)
		return;
	env_timer_stop(p->r->env, &p->timer);
	p->done = NULL;
	p->link = NULL;
	if (link)
		link_close(link);
	done(p->context, error, why, error ? NULL : &p->result);
}

/* Of a range that the peer changed: what is not marked here as well. */
static uint64_t not_marked(struct replication *r, uint64_t offset, uint64_t end)
{
	uint64_t bytes = end - offset, start, length;

	while (offset < end && volume_dirty_next(r->volume, VOLUME_PEER, offset, &start, &length) &&
	       start < end) {
		offset = start + length;
		bytes -= (offset < end ? offset : end) - start;
	}
	return bytes;
}

static void decided(struct plan *p, const struct hello *peer)
{
	struct replication_plan *result = &p->result;
	enum verdict verdict = decide(&p->self, peer);
	bool to = verdict == VERDICT_CATCH_UP_FROM_A || verdict == VERDICT_FULL_FROM_A;
	bool from = verdict == VERDICT_CATCH_UP_FROM_B || verdict == VERDICT_FULL_FROM_B;

	snprintf(result->peer_name, sizeof(result->peer_name), "%s", peer->node);
	snprintf(result->decision, sizeof(result->decision), "%s", decide_text(verdict));
	result->refused = decide_refusal(verdict) != 0;
	result->direction = to ? REPLICATION_TO_PEER : from ? REPLICATION_FROM_PEER : 0;
	result->full = verdict == VERDICT_FULL_FROM_A || verdict == VERDICT_FULL_FROM_B;
	if (result->full)
		result->bytes = volume_size_bytes(p->r->volume);
	else if (result->direction)
		result->bytes = volume_dirty_bytes(p->r->volume, VOLUME_PEER);
	p->decided = true;
	if (!to && !from)
		finish(p, 0, "");
}

static void take_hello(struct plan *p, const struct frame *frame, const void *payload)
{
	char text[FRAME_ERROR_TEXT_MAX + 1] = "";
	struct hello peer;
	const char *reason = hello_decode(payload, frame->payload_length, &peer);

	if (reason)
		finish(p, -EPROTO, reason);
	else if (!(peer.flags & HELLO_DRY_RUN))
		finish(p, -EPROTO, "the peer does not know dry runs");
	else if (session_peer_invalid(p->r, &peer, text, sizeof(text)))
		finish(p, -EPERM, text);
	else
		decided(p, &peer);
}

static void take_map(struct plan *p, const struct frame *frame, const void *payload)
{
	const struct frame_range_wire *ranges = payload;
	uint64_t size = volume_size_bytes(p->r->volume);

	for (unsigned i = 0; i < frame->payload_length / sizeof(*ranges); i++) {
		uint64_t offset = from_be64(ranges[i].first), length = from_be64(ranges[i].second);
		if (length == 0 || offset > size || length > size - offset || offset < p->map_end) {
			finish(p, -EPROTO, "MAP: bad range");
			return;
		}
		p->map_end = offset + length;
		if (!p->result.full)
			p->result.bytes += not_marked(p->r, offset, offset + length);
	}
	if (frame->flags & FRAME_LAST)
		finish(p, 0, "");
}

static bool plan_admit(void *owner, const struct frame *frame, struct buf **buf)
{
	struct plan *p = owner;

	if (frame->type == (p->decided ? FRAME_MAP : FRAME_HELLO))
		return true;
	finish(p, -EPROTO, "the peer's answer is out of place");
	return false;
}

static void plan_frame(void *owner, const struct frame *frame, const void *payload, struct buf *buf)
{
	char text[FRAME_ERROR_TEXT_MAX + 1];
	struct plan *p = owner;
	enum frame_error code;

	buf_put(buf);
	if (frame->type == FRAME_HELLO)
		take_hello(p, frame, payload);
	else if (frame->type == FRAME_MAP)
		take_map(p, frame, payload);
	else if (!frame_error_decode(payload, frame->payload_length, &code, text))
		finish(p, -EPERM, text);
	else
		finish(p, -EPROTO, "bad ERROR");
}

static void plan_dead(void *owner, int error, const char *why)
{
	finish(owner, error ? error : -ECONNRESET, why);
}

static void link_gone(struct replication *r)
{
	assert(r->links > 0);
	r->links--;
	if (r->stopping)
		env_defer(r->env, &r->end_task);
}

static void plan_gone(void *owner)
{
	link_gone(((struct plan *)owner)->r);
}

static const struct link_ops plan_ops = {
	.admit = plan_admit,
	.frame = plan_frame,
	.dead = plan_dead,
	.gone = plan_gone,
};

static void plan_say_hello(struct plan *p, struct stream *stream)
{
	struct replication *r = p->r;
	struct frame frame = {.type = FRAME_HELLO};
	struct hello_wire wire;

	p->link = link_new(r->env, stream, &r->link_config, &plan_ops, p);
	if (!p->link) {
		finish(p, -ENOMEM, "no memory");
		return;
	}
	r->links++;
	link_start(p->link, r->config.tls_client);
	session_hello_whole(r, &p->self);
	p->self.flags |= HELLO_DRY_RUN;
	hello_encode(&p->self, &wire);
	link_send_control(p->link, &frame, &wire, sizeof(wire));
}

static void plan_connected(struct env_op *op, int64_t result)
{
	struct plan *p = container_of(op, struct plan, connect_op);
	struct replication *r = p->r;
	char why[200];

	p->connecting = false;
	if (result >= 0 && p->done) {
		struct stream *stream = stream_new(r->env, p->sock);
		if (stream)
			plan_say_hello(p, stream);
		else
			env_sock_close(r->env, p->sock);
	} else if (result >= 0) {
		env_sock_close(r->env, p->sock);
	} else {
		snprintf(why, sizeof(why), "peer %s: %s", r->peer_addr, strerror((int)-result));
		finish(p, (int)result, why);
	}
	p->sock = NULL;
	if (r->stopping)
		env_defer(r->env, &r->end_task);
}

static void plan_timer_fire(struct env_timer *timer)
{
	finish(container_of(timer, struct plan, timer), -ETIMEDOUT, "the peer does not answer");
}

/* What the connection there is does says it all. */
static void plan_present(struct replication *r, struct replication_plan *plan)
{
	struct replication_status status;

	replication_get_status(r, &status);
	plan->connected = true;
	snprintf(plan->peer_name, sizeof(plan->peer_name), "%s", status.peer_name);
	snprintf(plan->decision, sizeof(plan->decision), "connected already: %s",
		 status.state == REPLICATION_STREAMING ? "in sync" : decide_text(r->verdict));
	if (status.state != REPLICATION_CATCH_UP)
		return;
	plan->direction = status.source ? REPLICATION_TO_PEER : REPLICATION_FROM_PEER;
	plan->full = r->verdict == VERDICT_FULL_FROM_A || r->verdict == VERDICT_FULL_FROM_B;
	plan->bytes = status.catch_up_total_bytes - status.catch_up_done_bytes;
}

void replication_plan(struct replication *r,
		      void (*done)(void *context, int error, const char *why,
				   const struct replication_plan *plan),
		      void *context)
{
	struct plan *p = &r->plan;
	struct replication_plan present = {.rate_bytes = r->rate_bytes};
	char why[160];

	if (p->done || p->connecting || p->link || r->stopping) {
		done(context, -EBUSY, "another dry run is under way", NULL);
		return;
	}
	if (r->link && r->session >= SESSION_SOURCE) {
		plan_present(r, &present);
		done(context, 0, "", &present);
		return;
	}
	if (!r->peer_addr) {
		snprintf(why, sizeof(why),
			 "volume %s: only the peer connects to this node: ask there",
			 volume_name(r->volume));
		done(context, -EPERM, why, NULL);
		return;
	}
	*p = (struct plan){.r = r, .done = done, .context = context};
	p->result.rate_bytes = r->rate_bytes;
	p->connect_op.done = plan_connected;
	p->timer.fire = plan_timer_fire;
	env_timer_start(r->env, &p->timer, PLAN_TIMEOUT_NS);
	p->connecting = true;
	env_connect(r->env, &p->connect_op, r->peer_addr, &p->sock);
}

/* ---- answering ------------------------------------------------------------------------------ */

static bool answer_admit(void *owner, const struct frame *frame, struct buf **buf)
{
	struct replication *r = owner;

	link_fail(r->answer.link, -EPROTO, "frame out of place in a dry run");
	return false;
}

static void answer_end(struct replication *r)
{
	struct link *link = r->answer.link;

	r->answer.link = NULL;
	if (link)
		link_close(link);
}

static void answer_frame(void *owner, const struct frame *frame, const void *payload,
			 struct buf *buf)
{
	buf_put(buf);
	answer_end(owner); /* only ERROR is admitted without being asked */
}

static void answer_sent(void *owner)
{
	struct replication *r = owner;
	struct plan_answer *a = &r->answer;

	while (a->mapping) {
		struct frame frame = {.type = FRAME_MAP};
		uint64_t offset = a->map_offset;
		unsigned count = session_map(r, &offset, a->wire, &a->mapping);

		frame.flags = a->mapping ? 0 : FRAME_LAST;
		if (!link_send_control(a->link, &frame, a->wire,
				       count * (uint32_t)sizeof(a->wire[0]))) {
			a->mapping = true;
			return; /* again when something has been sent */
		}
		a->map_offset = offset;
	}
}

static void answer_dead(void *owner, int error, const char *why)
{
	answer_end(owner);
}

static void answer_gone(void *owner)
{
	link_gone(owner);
}

static const struct link_ops answer_ops = {
	.admit = answer_admit,
	.frame = answer_frame,
	.sent = answer_sent,
	.dead = answer_dead,
	.gone = answer_gone,
};

void plan_answer(struct replication *r, struct link *link)
{
	struct frame frame = {.type = FRAME_HELLO};
	struct hello_wire wire;
	struct hello hello;

	if (r->stopping || r->answer.link) {
		link_refuse(link, FRAME_ERROR_BUSY, "busy with another dry run");
		link_close(link);
		return;
	}
	r->answer.link = link;
	r->answer.map_offset = 0;
	r->answer.mapping = true;
	r->links++;
	link_set_owner(link, &r->link_config, &answer_ops, r);
	session_hello_whole(r, &hello);
	hello.flags |= HELLO_DRY_RUN;
	hello_encode(&hello, &wire);
	link_send_control(link, &frame, &wire, sizeof(wire));
	answer_sent(r);
}

void plan_stop(struct replication *r)
{
	finish(&r->plan, -ECANCELED, "shutting down");
	answer_end(r);
}

bool plan_is_idle(const struct replication *r)
{
	return !r->plan.connecting;
}
