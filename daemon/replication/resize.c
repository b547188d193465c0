/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resize: a volume is made bigger on both nodes. The secondary's first, so that what is written beyond the
 * old end has a place there: the primary asks on the stream's connection, waits for the answer, then grows
 * its own. Whatever breaks in between leaves the secondary bigger, which the primary says when they meet.
 * A secondary that is smaller than its primary when they meet grows by itself, and so does a new disk that is to
 * get all its content from the peer.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/mutate.h"
#include "daemon/replication/replication_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define AGAIN_NS 50000000ull
#define MAX_NS   10000000000ull /* for what is in the way here and passes by itself */

static void finish(struct replication *r, int error, const char *why)
{
	void (*done)(void *, int, const char *) = r->resize.done;

	r->resize.asked = 0;
	r->resize.done = NULL;
	if (done)
		done(r->resize.context, error, why);
}

/* ---- this volume -------------------------------------------------------------------------------- */

static void send_reply(struct replication *r)
{
	struct resize *z = &r->resize;

	if (!z->reply_due || !r->link)
		return;
	if (link_send_control(r->link, &z->reply, z->reply_text, (uint32_t)strlen(z->reply_text)))
		z->reply_due = false;
	else
		env_timer_start(r->env, &z->timer, AGAIN_NS);
}

static void answer(struct replication *r, const char *why)
{
	r->resize.reply =
		(struct frame){.type = FRAME_RESIZE, .length = volume_size_bytes(r->volume)};
	snprintf(r->resize.reply_text, sizeof(r->resize.reply_text), "%s", why);
	r->resize.reply_due = true;
	send_reply(r);
}

/* It is what keeps the two apart: an operator is needed, unless it passes. */
static void stays_small(struct replication *r, int error, const char *why)
{
	char text[FRAME_ERROR_TEXT_MAX + 1];
	bool passes = error == -EBUSY || error == -EAGAIN;

	snprintf(text, sizeof(text), "smaller than its primary: %.120s%s%s", why,
		 passes ? "" : "; then: offsite connect ", passes ? "" : volume_name(r->volume));
	session_end(r, passes ? FRAME_ERROR_BUSY : FRAME_ERROR_SIZE, text);
	replication_lost(r, !passes, false, text);
}

static void grown(void *context, int error, const char *why)
{
	struct replication *r = context;
	struct resize *z = &r->resize;
	bool by_itself = z->by_itself;
	uint64_t from_link = z->from_link;

	z->growing = z->by_itself = false;
	z->from_link = 0;
	if (!error && !MUTATE(replication_resize_log_not_told))
		sink_resized(r->sink);
	if (r->stopping) {
		env_defer(r->env, &r->end_task);
		return;
	}
	if (by_itself && error) {
		stays_small(r, error, why);
	} else if (from_link && r->link && from_link == r->attempt) {
		answer(r, why);
	} else if (z->done && error == -EBUSY && env_now_ns(r->env) < z->deadline_ns) {
		env_timer_start(r->env, &z->timer, AGAIN_NS);
	} else if (z->done) {
		char text[512] = "";

		if (!error && !r->link && !r->operator_off)
			replication_connect(r, text, sizeof(text));
		finish(r, error, why);
	}
}

static void grow(struct replication *r, uint64_t size_bytes)
{
	assert(!r->resize.growing);
	r->resize.growing = true;
	r->resize.size_bytes = size_bytes;
	volume_grow(r->volume, size_bytes, grown, r);
}

static void grow_own(struct replication *r)
{
	/* What was sent of an unfinished catch-up is sent again. */
	replication_forget_transfer(r);
	grow(r, r->resize.size_bytes);
}

/* ---- the operator's ----------------------------------------------------------------------------- */

static void ask(struct replication *r)
{
	struct frame frame = {.type = FRAME_RESIZE, .length = r->resize.asked};

	r->resize.sent = link_send_control(r->link, &frame, NULL, 0);
	if (!r->resize.sent)
		env_timer_start(r->env, &r->resize.timer, AGAIN_NS);
}

static void again(struct env_timer *timer)
{
	struct replication *r = container_of(timer, struct replication, resize.timer);

	send_reply(r);
	if (r->resize.asked && r->link && !r->resize.sent)
		ask(r);
	else if (r->resize.done && !r->resize.asked && !r->resize.growing)
		grow_own(r);
}

static int refused(const struct replication *r, uint64_t size_bytes, bool force, char *why,
		   size_t why_size)
{
	const char *name = volume_name(r->volume), *peer = r->peer.node;
	bool streams = r->state == REPLICATION_STREAMING && r->session == SESSION_SOURCE;
	struct volume_state state;
	int error = volume_grow_check(r->volume, size_bytes, why, why_size);

	volume_get_state(r->volume, &state);
	if (r->stopping || r->resize.done || r->resize.growing) {
		snprintf(why, why_size, "volume %s: %s", name,
			 r->stopping ? "shutting down" : "is being made bigger already");
		return -EBUSY;
	}
	/* With the link gone, a catch-up's cut goes as well. */
	if (error && (error != -EBUSY || r->link))
		return error;
	if (streams || (force && !r->link))
		return 0;
	if (r->link && state.role != VOLUME_PRIMARY)
		snprintf(why, why_size, "volume %s is secondary on this node: resize it on %s",
			 name, *peer ? peer : "the primary");
	else if (r->link)
		snprintf(why, why_size, "volume %s: the peer is not in sync yet (%s)", name,
			 replication_state_name(r->state));
	else
		snprintf(why, why_size,
			 "volume %s: the peer is not connected; --force resizes this side alone",
			 name);
	return -EPERM;
}

void replication_resize(struct replication *r, uint64_t size_bytes, bool force,
			void (*done)(void *context, int error, const char *why), void *context)
{
	char why[512] = "";
	int error = refused(r, size_bytes, force, why, sizeof(why));

	if (error) {
		done(context, error, why);
		return;
	}
	r->resize.done = done;
	r->resize.context = context;
	r->resize.size_bytes = size_bytes;
	r->resize.deadline_ns = env_now_ns(r->env) + MAX_NS;
	if (r->link && !MUTATE(replication_resize_own_first)) {
		r->resize.asked = size_bytes;
		ask(r);
	} else {
		grow_own(r);
	}
}

/* ---- frames ------------------------------------------------------------------------------------- */

static void take_answer(struct replication *r, const struct frame *frame, const char *text)
{
	char why[512];

	if (!r->resize.asked || !r->resize.sent) {
		replication_refuse(r, FRAME_ERROR_PROTOCOL, "RESIZE that nobody asked for");
		return;
	}
	if (frame->length < r->resize.asked) {
		snprintf(why, sizeof(why), "peer %s: %s", r->peer.node, *text ? text : "refused");
		finish(r, -EPERM, why);
		return;
	}
	r->resize.asked = 0;
	r->resize.deadline_ns = env_now_ns(r->env) + MAX_NS;
	grow_own(r);
}

void resize_frame(struct replication *r, const struct frame *frame, const void *payload)
{
	char text[FRAME_ERROR_TEXT_MAX + 1] = "";

	for (uint32_t i = 0; i < frame->payload_length; i++) {
		char c = ((const char *)payload)[i];

		text[i] = c >= ' ' && c <= '~' ? c : '?';
	}
	if (r->session == SESSION_SOURCE) {
		take_answer(r, frame, text);
		return;
	}
	if (r->session != SESSION_SINK || r->resize.from_link || r->resize.reply_due) {
		replication_refuse(r, FRAME_ERROR_PROTOCOL, "RESIZE is out of place now");
		return;
	}
	if (frame->length <= volume_size_bytes(r->volume)) {
		answer(r, "");
	} else if (r->resize.growing) {
		answer(r, "is being made bigger already");
	} else {
		r->resize.from_link = r->attempt;
		grow(r, frame->length);
	}
}

/* ---- when two meet ------------------------------------------------------------------------------ */

bool resize_is_under_way(const struct replication *r)
{
	return r->resize.growing || (r->resize.done && !r->resize.asked);
}

bool resize_sizes_fit(const struct replication *r, const struct hello *peer)
{
	uint64_t size = volume_size_bytes(r->volume);

	return peer->size_bytes == size || (volume_leans(r->volume) && size < peer->size_bytes) ||
	       ((peer->flags & HELLO_LEANS) && peer->size_bytes < size);
}

/* All of a new disk's content is to come from the peer: nothing here speaks for the size it has. */
static bool takes_all(const struct replication *r, const struct hello *peer)
{
	struct volume_state state;

	volume_get_state(r->volume, &state);
	return r->wants && id128_is_zero(&r->gives_up) && state.disk == VOLUME_DISK_INCONSISTENT &&
	       !id128_is_zero(&peer->current) && !(peer->flags & (HELLO_WANTS | HELLO_LEANS)) &&
	       (peer->disk == VOLUME_DISK_UPTODATE || peer->disk == VOLUME_DISK_OUTDATED);
}

static bool follows(const struct replication *r, const struct hello *peer)
{
	return peer->role == VOLUME_PRIMARY && id128_equal(&peer->uuid, &r->self.uuid);
}

bool resize_begin_by_itself(struct replication *r, const struct hello *peer)
{
	if (peer->size_bytes <= volume_size_bytes(r->volume) || r->self.role == VOLUME_PRIMARY ||
	    strcmp(peer->node, r->node_name) == 0 ||
	    strcmp(peer->volume, volume_name(r->volume)) != 0 ||
	    !(follows(r, peer) || takes_all(r, peer)))
		return false;
	if (!r->resize.growing) {
		r->resize.by_itself = true;
		if (source_is_idle(r->source))
			source_forget_transfer(r->source);
		grow(r, peer->size_bytes);
	}
	replication_refuse(r, FRAME_ERROR_BUSY, "grows to its peer's size");
	return true;
}

/* Whether the peer, which is smaller, is about to grow: its view of the above. */
static bool peer_grows(const struct hello *peer, const struct volume_state *state)
{
	return peer->role != VOLUME_PRIMARY &&
	       ((state->role == VOLUME_PRIMARY && id128_equal(&peer->uuid, &state->uuid)) ||
		((peer->flags & HELLO_WANTS) && peer->disk == VOLUME_DISK_INCONSISTENT));
}

enum frame_error resize_sizes_differ(const struct replication *r, const struct hello *peer,
				     char *text, size_t size)
{
	unsigned long long here = volume_size_bytes(r->volume), there = peer->size_bytes;
	const char *small = here < there ? r->node_name : peer->node;
	struct volume_state state;
	int length = snprintf(text, size, "sizes differ: %llu bytes on %s, %llu bytes on %s", here,
			      r->node_name, there, peer->node);

	volume_get_state(r->volume, &state);
	assert(length > 0);
	text += (size_t)length < size ? (size_t)length : size;
	size -= (size_t)length < size ? (size_t)length : size;
	if (there < here && peer_grows(peer, &state)) {
		snprintf(text, size, ", which is to grow by itself");
		return FRAME_ERROR_BUSY;
	}
	/* A new disk gets the size with the content. */
	if ((here < there ? (unsigned)state.disk : peer->disk) == VOLUME_DISK_FAILED)
		snprintf(text, size,
			 "; the disk of %s failed; there: offsite restore %s --from-peer", small,
			 volume_name(r->volume));
	else
		snprintf(text, size, "; on %s: offsite resize %s %llu --force", small,
			 volume_name(r->volume), here < there ? there : here);
	return FRAME_ERROR_SIZE;
}

/* ---- life --------------------------------------------------------------------------------------- */

void resize_parted(struct replication *r)
{
	r->resize.reply_due = false;
	if (r->resize.asked)
		finish(r, -ENOTCONN,
		       "the connection to the peer was lost; the peer may be bigger now: try "
		       "again");
}

void resize_stop(struct replication *r)
{
	env_timer_stop(r->env, &r->resize.timer);
	finish(r, -ECANCELED, "shutting down");
}

void resize_init(struct replication *r)
{
	r->resize.timer.fire = again;
}
