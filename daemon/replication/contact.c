/* SPDX-License-Identifier: Apache-2.0 */
/*
 * contact: what each side tells the other about itself (STATE), and what a secondary therefore knows of
 * the primary it follows: when it was last heard, and what of it did not come here. That outlives
 * connections and restarts, and says what a promotion would lose.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "daemon/replication/replication_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define STATE_NS      1000000000ull  /* between two looks at what to tell */
#define NOTE_NS       10000000000ull /* between two writes of what is known, if it moved */
#define NOTE_QUIET_NS 60000000000ull /* ... if it did not */

static bool follows_primary(const struct replication *r)
{
	return r->session == SESSION_SINK && r->peer.role == VOLUME_PRIMARY;
}

/* ---- telling -------------------------------------------------------------------------------- */

static void look(const struct replication *r, struct frame_state *now)
{
	struct volume_state state;
	struct source_status source;
	struct sink_status sink;

	volume_get_state(r->volume, &state);
	source_get_status(r->source, &source);
	sink_get_status(r->sink, &sink);
	*now = (struct frame_state){
		.lsn = r->session == SESSION_SINK ? sink.received_lsn : state.lsn,
		.role = state.role == VOLUME_PRIMARY,
		.disk = (unsigned)state.disk,
		.protocol = (unsigned)r->config.protocol,
	};
	if (r->session != SESSION_SOURCE)
		return;
	now->streamed_bytes = source.streamed_bytes;
	now->lag_ns = source.lag_ns;
	now->dirty_bytes = volume_dirty_bytes(r->volume, VOLUME_PEER);
	now->flags =
		(r->state == REPLICATION_STREAMING && !source.settling ? FRAME_STATE_STREAMING
								       : 0) |
		(volume_suspended(r->volume) & VOLUME_SUSPEND_PEER ? FRAME_STATE_SUSPENDED : 0);
}

static void tell(struct replication *r)
{
	struct frame frame = {.type = FRAME_STATE};
	struct frame_state_wire wire;
	struct frame_state now;

	look(r, &now);
	if (r->has_told && memcmp(&now, &r->told, sizeof(now)) == 0)
		return;
	frame_state_encode(&now, &wire);
	link_send_urgent(r->link, &frame, &wire, sizeof(wire));
	r->told = now;
	r->has_told = true;
}

/* ---- knowing -------------------------------------------------------------------------------- */

static uint64_t heard_ns(const struct replication *r)
{
	return env_realtime_ns(r->env) - (env_now_ns(r->env) - link_heard_ns(r->link));
}

/* In protocols B and C no client saw the end of a write that did not come here. */
static void missing_of_stream(struct replication *r, struct volume_contact *c,
			      const struct sink_status *sink)
{
	const struct frame_state *heard = &r->heard;

	if (heard->protocol != REPLICATION_A && heard->flags & FRAME_STATE_STREAMING)
		return;
	if (heard->flags & FRAME_STATE_STREAMING)
		c->missing_bytes = heard->streamed_bytes > sink->streamed_bytes
					   ? heard->streamed_bytes - sink->streamed_bytes
					   : 0;
	else /* the stream was left: its end is on the way here, catch-up follows */
		c->missing_bytes = heard->dirty_bytes;
	if (!c->missing_bytes)
		return;
	c->behind_ns = c->heard_ns - (heard->lag_ns < c->heard_ns ? heard->lag_ns : 0);
}

/* By its own word, and behind all that its clients saw the end of before they waited for this side. */
static bool heard_streaming(const struct replication *r)
{
	return r->has_heard && r->heard.flags & FRAME_STATE_STREAMING;
}

/* As of now, while a primary is followed. */
static void refresh(struct replication *r)
{
	struct volume_contact *c = &r->contact;
	struct volume_state state;
	struct sink_status sink;

	volume_get_state(r->volume, &state);
	sink_get_status(r->sink, &sink);
	c->heard_ns = heard_ns(r);
	c->streaming = r->state == REPLICATION_STREAMING && heard_streaming(r);
	/* Not the volume's: that is a bound after a crash. */
	if (sink.durable_lsn > sink.received_lsn)
		sink.received_lsn = sink.durable_lsn;
	if (sink.received_lsn)
		c->received_lsn = sink.received_lsn;
	if (r->has_heard && r->heard.lsn > c->heard_lsn)
		c->heard_lsn = r->heard.lsn;
	if (c->heard_lsn < c->received_lsn)
		c->heard_lsn = c->received_lsn;
	c->missing_bytes = c->behind_ns = 0;
	if (r->state == REPLICATION_STREAMING && r->has_heard)
		missing_of_stream(r, c, &sink);
	if (state.disk == VOLUME_DISK_UPTODATE)
		return;
	c->behind_ns = state.outdated_ns ? state.outdated_ns : c->heard_ns;
	c->missing_bytes = r->has_heard ? r->heard.dirty_bytes : r->peer.dirty_bytes;
}

static void note(struct replication *r)
{
	r->contact_noted_ns = env_now_ns(r->env);
	volume_note_contact(r->volume, &r->contact);
}

static void note_if_due(struct replication *r)
{
	struct volume_state state;

	volume_get_state(r->volume, &state);
	bool moved = state.contact.heard_lsn != r->contact.heard_lsn ||
		     state.contact.missing_bytes != r->contact.missing_bytes;
	if (env_now_ns(r->env) - r->contact_noted_ns >= (moved ? NOTE_NS : NOTE_QUIET_NS))
		note(r);
}

static void state_fire(struct env_timer *timer)
{
	struct replication *r = container_of(timer, struct replication, state_timer);

	if (!r->link || r->session < SESSION_SOURCE)
		return;
	tell(r);
	if (follows_primary(r)) {
		refresh(r);
		note_if_due(r);
	}
	env_timer_start(r->env, timer, STATE_NS);
}

/* Two secondaries, and this one has all the other has: nothing can be lost by promoting it. */
static void clear_if_whole(struct replication *r)
{
	enum relation relation = decide_relation(&r->self, &r->peer);

	if (r->session != SESSION_IDLE || r->self.role != VOLUME_SECONDARY ||
	    r->peer.role != VOLUME_SECONDARY || !r->contact.heard_ns ||
	    (relation != RELATION_EQUAL && relation != RELATION_A_AHEAD))
		return;
	r->contact = (struct volume_contact){};
	note(r);
}

void contact_begin(struct replication *r)
{
	struct volume_state state;

	volume_get_state(r->volume, &state);
	r->contact = state.contact;
	clear_if_whole(r);
	if (follows_primary(r)) {
		r->contact.heard_lsn = 0;
		refresh(r);
		note(r);
	}
	env_timer_start(r->env, &r->state_timer, STATE_NS / 5);
}

void contact_streaming(struct replication *r)
{
	if (follows_primary(r)) {
		refresh(r);
		note(r);
	}
	if (r->link)
		tell(r);
}

void contact_end(struct replication *r)
{
	env_timer_stop(r->env, &r->state_timer);
	if (r->session >= SESSION_SOURCE) {
		r->seen_ns = heard_ns(r);
		r->seen_role = (enum volume_role)(r->has_heard ? r->heard.role : r->peer.role);
		r->seen_disk =
			(enum volume_disk_state)(r->has_heard ? r->heard.disk : r->peer.disk);
	}
	if (follows_primary(r)) {
		refresh(r);
		note(r);
	}
	r->has_told = r->has_heard = false;
}

/* As DRBD does: who leaves a primary, or is left by it, on purpose, is behind from then on. */
void contact_left(struct replication *r)
{
	struct volume_state state;

	volume_get_state(r->volume, &state);
	if (!follows_primary(r) || state.role != VOLUME_SECONDARY ||
	    state.disk != VOLUME_DISK_UPTODATE || r->wants)
		return;
	state.disk = VOLUME_DISK_OUTDATED;
	state.outdated_ns = env_realtime_ns(r->env);
	if (volume_set_state(r->volume, &state))
		env_log(r->env, ENV_LOG_ERROR,
			"replication: volume %s: it is behind from now on, but that is not stored",
			volume_name(r->volume));
}

void contact_frame(struct replication *r, const struct frame *frame, const void *payload)
{
	struct frame_state heard;
	const char *reason = frame_state_decode(payload, frame->payload_length, &heard);

	if (reason) {
		replication_refuse(r, FRAME_ERROR_PROTOCOL, reason);
		return;
	}
	bool before = heard_streaming(r);
	r->heard = heard;
	r->has_heard = true;
	if (follows_primary(r) && heard_streaming(r) != before) {
		refresh(r);
		note(r);
	}
}

void contact_init(struct replication *r)
{
	struct volume_state state;

	r->state_timer.fire = state_fire;
	volume_get_state(r->volume, &state);
	r->contact = state.contact;
}

void contact_lag(const struct replication *r, uint64_t *bytes, uint64_t *ns)
{
	uint64_t now_ns = env_realtime_ns(r->env);
	struct volume_state state;

	volume_get_state(r->volume, &state);
	const struct volume_contact *c = follows_primary(r) ? &r->contact : &state.contact;
	*bytes = c->missing_bytes;
	*ns = c->behind_ns && now_ns > c->behind_ns ? now_ns - c->behind_ns : 0;
}

/* ---- is it alive? --------------------------------------------------------------------------- */

void replication_ping(struct replication *r)
{
	if (r->link)
		link_ping(r->link);
}

bool replication_is_silent(const struct replication *r, uint64_t since_ns)
{
	return !r->link || link_heard_ns(r->link) < since_ns;
}

void replication_give_up_peer(struct replication *r, const char *why)
{
	if (r->link)
		link_fail(r->link, -ETIMEDOUT, "%s", why);
}

/* ---- what a promotion would lose ------------------------------------------------------------ */

static enum replication_risk risk_of_peer(struct replication *r)
{
	struct hello self;

	if (r->peer.role != VOLUME_SECONDARY || r->peer.disk > VOLUME_DISK_OUTDATED ||
	    r->peer.flags & HELLO_WANTS)
		return REPLICATION_RISK_NONE;
	session_hello(r, &self);
	switch (decide_relation(&self, &r->peer)) {
	case RELATION_B_AHEAD:
	case RELATION_B_FAR:
	case RELATION_DIVERGED_NEAR:
	case RELATION_DIVERGED_FAR:
		return REPLICATION_RISK_PEER;
	default:
		return REPLICATION_RISK_NONE;
	}
}

void replication_get_loss(struct replication *r, struct replication_loss *loss)
{
	struct volume_state state;

	volume_get_state(r->volume, &state);
	*loss = (struct replication_loss){.connected = r->link && r->session >= SESSION_SOURCE};
	snprintf(loss->peer_name, sizeof(loss->peer_name), "%s", r->peer.node);
	if (state.role == VOLUME_PRIMARY)
		return;
	if (loss->connected && follows_primary(r))
		refresh(r);
	else if (!loss->connected)
		r->contact = state.contact;
	const struct volume_contact *c = &r->contact;
	bool outdated = state.disk == VOLUME_DISK_OUTDATED;
	if (outdated || (!loss->connected && c->missing_bytes))
		loss->risk = REPLICATION_RISK_BEHIND;
	else if (loss->connected)
		loss->risk = risk_of_peer(r);
	else if (c->heard_ns && !c->streaming)
		loss->risk = REPLICATION_RISK_UNHEARD;
	loss->since_ns = c->behind_ns ? c->behind_ns : outdated ? state.outdated_ns : 0;
	loss->heard_ns = c->heard_ns;
	loss->bytes = c->missing_bytes;
	if (c->heard_lsn > c->received_lsn) {
		loss->first_lsn = c->received_lsn + 1;
		loss->last_lsn = c->heard_lsn;
	}
}

static void print_time(FILE *out, uint64_t realtime_ns)
{
	time_t seconds = (time_t)(realtime_ns / 1000000000u);
	struct tm tm;
	char text[40] = "?";

	if (gmtime_r(&seconds, &tm))
		strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S UTC", &tm);
	fputs(text, out);
}

static void print_bytes(FILE *out, uint64_t bytes)
{
	static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
	double value = (double)bytes;
	unsigned unit = 0;

	while (value >= 1024 && unit < 5) {
		value /= 1024;
		unit++;
	}
	fprintf(out, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
}

static void print_loss(const struct replication_loss *loss, FILE *out)
{
	const char *name = loss->peer_name[0] ? loss->peer_name : "the peer";

	if (loss->risk == REPLICATION_RISK_PEER) {
		fprintf(out, "writes that %s has, though it is secondary, and this node has not",
			name);
		return;
	}
	fprintf(out, "what %s wrote", name);
	if (loss->since_ns) {
		fputs(" since ", out);
		print_time(out, loss->since_ns);
		if (loss->heard_ns > loss->since_ns)
			fprintf(out, " (%llu s)",
				(unsigned long long)((loss->heard_ns - loss->since_ns + 999999999) /
						     1000000000));
	}
	if (loss->bytes) {
		fputs(", ", out);
		print_bytes(out, loss->bytes);
	}
	if (loss->last_lsn)
		fprintf(out, ", LSN %llu..%llu", (unsigned long long)loss->first_lsn,
			(unsigned long long)loss->last_lsn);
	if (loss->heard_ns && !loss->connected) {
		fputs(loss->since_ns || loss->bytes ? ", and after " : " after ", out);
		print_time(out, loss->heard_ns);
		fputs(", when it was last heard", out);
	}
}

void replication_loss_text(const struct replication_loss *loss, char *text, size_t size)
{
	FILE *out = fmemopen(text, size, "w");

	text[0] = 0;
	if (!out)
		return;
	print_loss(loss, out);
	fclose(out);
	text[size - 1] = 0;
}
