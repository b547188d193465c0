/* SPDX-License-Identifier: Apache-2.0 */
/* One connection: framing, batches, pings, teardown. See link.h. */
#include "daemon/replication/link.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/io/resident.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

enum {
	RECEIVE_BYTES = 128 * 1024,
	DIRECT_BYTES = 16 * 1024, /* what is left of content and at least so long skips the copy */
	CONTROL_BYTES = 8192,
	CONTROL_BUFS = 64,
	BATCH_FRAMES = 256,
	BATCH_BYTES = 1024 * 1024, /* what an urgent frame may have to wait for */
	LINGER_MS = 1000,          /* for the other side to take our ERROR and hang up */
};
_Static_assert(BATCH_FRAMES * 2 <= 1024, "env_sendv() takes 1024 parts");

struct entry {
	struct frame_wire header;
	struct buf *buf;
	uint32_t payload_at, payload_length;
	bool stream; /* its rate is that of the stream */
};

struct link {
	struct env *env;
	struct stream *stream;
	const struct link_ops *ops;
	void *owner;
	struct link_config config;
	struct buf_pool *control_pool;

	bool started, handshaking, receiving, sending;
	bool braced;
	bool dead;     /* no further frame goes either way */
	bool closing;  /* the owner gave it up */
	bool refused;  /* an ERROR is the last frame */
	bool closed;   /* the stream is closed; waiting for the operations to come back */
	bool paused;   /* the owner did not admit the frame at hand */
	unsigned busy; /* inside a callback: memory must stay */
	int error;
	char why[256];

	struct env_op handshake_op, receive_op, send_op;
	struct env_task flush_task, dead_task, resume_task;
	struct env_timer tick;
	uint64_t received_at_ns, ping_id;
	uint64_t pong_id;
	bool pong_due, urgent_due;
	struct frame urgent;
	uint8_t urgent_payload[LINK_URGENT_BYTES];

	/* queue: a ring of entries; [head, head+in_batch) is being sent */
	struct entry *queue;
	unsigned head, count, in_batch;
	struct rate_limit *stream_rate; /* may be NULL */
	struct env_timer rate_timer;    /* active: the head of the queue waits for it */
	uint64_t queue_bytes, batch_bytes, sent_bytes, received_bytes;
	struct iovec iov[BATCH_FRAMES * 2];

	/* the frame at hand */
	bool have_header, admitted;
	struct frame frame;
	struct buf *content;
	uint32_t payload_got;
	size_t receive_used, receive_at; /* bytes in receive_buf, and how many are consumed */
	bool direct;
	uint8_t control[CONTROL_BYTES];
	uint8_t receive_buf[RECEIVE_BYTES];
};

static void receive(struct link *link);
static void parse(struct link *link);
static void start_send(struct link *link);
static void queue_first(struct link *link, const struct frame *frame, struct buf *buf);

/* ---- life ----------------------------------------------------------------------------------- */

static uint64_t tick_ns(const struct link *link)
{
	unsigned ms = link->config.ping_interval_ms;

	if (ms > link->config.peer_timeout_ms / 3)
		ms = link->config.peer_timeout_ms / 3;
	return (ms ? ms : 1) * 1000000ull;
}

static void free_memory(struct link *link)
{
	void (*gone)(void *) = link->ops->gone;
	void *owner = link->owner;

	env_timer_stop(link->env, &link->tick);
	env_timer_stop(link->env, &link->rate_timer);
	env_defer_cancel(link->env, &link->flush_task);
	env_defer_cancel(link->env, &link->dead_task);
	env_defer_cancel(link->env, &link->resume_task);
	buf_pool_free(link->control_pool);
	free(link->queue);
	free(link);
	if (gone)
		gone(owner);
}

static void drop_queue(struct link *link)
{
	while (link->count > link->in_batch) {
		struct entry *entry =
			&link->queue[(link->head + --link->count) % LINK_QUEUE_FRAMES];
		link->queue_bytes -= sizeof(entry->header) + entry->payload_length;
		buf_put(entry->buf);
		entry->buf = NULL;
	}
}

/* Frees what can be freed; to be called wherever the last hindrance may just have gone. */
static void release(struct link *link)
{
	if (!link->closing || link->busy)
		return;
	if (!link->closed) {
		bool unsent = link->refused && !link->dead && env_timer_active(&link->tick);
		if (unsent)
			return;
		link->closed = true;
		drop_queue(link);
		stream_close(link->stream);
		link->stream = NULL;
	}
	if (link->handshaking || link->receiving || link->sending)
		return;
	buf_put(link->content);
	link->content = NULL;
	assert(link->count == 0);
	free_memory(link);
}

static void dead_now(struct env_task *task)
{
	struct link *link = container_of(task, struct link, dead_task);

	if (link->closing) {
		release(link);
		return;
	}
	link->busy++;
	link->ops->dead(link->owner, link->error, link->why);
	link->busy--;
	release(link);
}

static void fail(struct link *link, int error, const char *why)
{
	if (link->dead)
		return;
	link->dead = true;
	link->error = error;
	snprintf(link->why, sizeof(link->why), "%s", why);
	env_defer(link->env, &link->dead_task);
}

void link_fail(struct link *link, int error, const char *format, ...)
{
	char why[256];
	va_list args;

	va_start(args, format);
	vsnprintf(why, sizeof(why), format, args);
	va_end(args);
	fail(link, error, why);
}

static void fail_io(struct link *link, int error)
{
	const char *known = stream_error(link->stream);

	if (*known)
		link_fail(link, error, "%s", known);
	else
		link_fail(link, error, "%s", error == 0 ? "closed by the peer" : strerror(-error));
}

static void tick(struct env_timer *timer)
{
	struct link *link = container_of(timer, struct link, tick);
	uint64_t now = env_now_ns(link->env);

	if (link->closing) {
		link->dead = true;
		release(link);
		return;
	}
	/* While this side does not read, silence says nothing about the other. */
	if (link->paused)
		link->received_at_ns = now;
	if (now - link->received_at_ns >= link->config.peer_timeout_ms * 1000000ull) {
		link_fail(link, -ETIMEDOUT,
			  link->handshaking ? "TLS: no answer in %u ms" : "nothing heard for %u ms",
			  link->config.peer_timeout_ms);
		return;
	}
	if (!link->handshaking && !link->dead) {
		struct frame ping = {.type = FRAME_PING, .id = ++link->ping_id};
		/* Behind a stream that is slowed down on purpose it would come too late. */
		if (env_timer_active(&link->rate_timer) && !link->sending &&
		    link->count < LINK_QUEUE_FRAMES)
			queue_first(link, &ping, NULL);
		else
			link_send_control(link, &ping, NULL, 0);
		env_defer(link->env, &link->flush_task);
	}
	env_timer_start(link->env, &link->tick, tick_ns(link));
}

static void rate_timer_fire(struct env_timer *timer)
{
	start_send(container_of(timer, struct link, rate_timer));
}

void link_set_stream_rate(struct link *link, struct rate_limit *limit)
{
	link->stream_rate = limit;
	env_defer(link->env, &link->flush_task);
}

static void flush_now(struct env_task *task)
{
	start_send(container_of(task, struct link, flush_task));
}

static void resume_now(struct env_task *task)
{
	struct link *link = container_of(task, struct link, resume_task);

	if (link->paused) {
		link->paused = false;
		parse(link);
	}
}

static void receive_done(struct env_op *op, int64_t result);
static void send_done(struct env_op *op, int64_t result);
static void handshake_done(struct env_op *op, int64_t result);

struct link *link_new(struct env *env, struct stream *stream, const struct link_config *config,
		      const struct link_ops *ops, void *owner)
{
	struct link *link = calloc(1, sizeof(*link));
	if (!link)
		goto fail_stream;
	link->queue = malloc(LINK_QUEUE_FRAMES * sizeof(*link->queue));
	if (!link->queue)
		goto fail_link;
	link->control_pool = buf_pool_new((unsigned[3]){CONTROL_BUFS, 0, 0});
	if (!link->control_pool)
		goto fail_queue;
	link->env = env;
	link->stream = stream;
	link->config = *config;
	link->ops = ops;
	link->owner = owner;
	link->handshake_op.done = handshake_done;
	link->receive_op.done = receive_done;
	link->send_op.done = send_done;
	link->flush_task.call = flush_now;
	link->dead_task.call = dead_now;
	link->resume_task.call = resume_now;
	link->tick.fire = tick;
	link->rate_timer.fire = rate_timer_fire;
	return link;

fail_queue:
	free(link->queue);
fail_link:
	free(link);
fail_stream:
	stream_close(stream);
	return NULL;
}

void link_set_owner(struct link *link, const struct link_config *config, const struct link_ops *ops,
		    void *owner)
{
	link->config = *config;
	link->ops = ops;
	link->owner = owner;
	link->received_at_ns = env_now_ns(link->env);
	env_timer_start(link->env, &link->tick, tick_ns(link));
}

void link_start(struct link *link, struct tls_context *tls)
{
	assert(!link->started);
	link->started = true;
	link->received_at_ns = env_now_ns(link->env);
	env_timer_start(link->env, &link->tick, tick_ns(link));
	if (tls) {
		link->handshaking = true;
		stream_handshake(link->stream, &link->handshake_op, tls);
		return;
	}
	env_defer(link->env, &link->flush_task);
	receive(link);
}

void link_brace(struct link *link)
{
	link->braced = true;
	resident_make(link, sizeof(*link));
	resident_make(link->queue, LINK_QUEUE_FRAMES * sizeof(*link->queue));
	buf_pool_brace(link->control_pool, (unsigned[3]){CONTROL_BUFS, 0, 0});
	stream_brace(link->stream);
}

static void handshake_done(struct env_op *op, int64_t result)
{
	struct link *link = container_of(op, struct link, handshake_op);

	link->handshaking = false;
	if (link->braced)
		stream_brace(link->stream);
	if (link->closed || link->closing) {
		release(link);
		return;
	}
	if (result < 0) {
		const char *known = stream_error(link->stream);
		link_fail(link, (int)result, "TLS: %s",
			  *known              ? known
			  : result == -EACCES ? "wrong pre-shared key or certificate"
					      : strerror((int)-result));
		return;
	}
	link->received_at_ns = env_now_ns(link->env);
	start_send(link);
	receive(link);
}

void link_close(struct link *link)
{
	assert(!link->closing);
	link->closing = true;
	if (link->refused && !link->dead)
		env_timer_start(link->env, &link->tick, LINGER_MS * 1000000ull);
	release(link);
}

/* ---- sending -------------------------------------------------------------------------------- */

void link_send(struct link *link, struct frame *frame, struct buf *buf, uint32_t at)
{
	assert(!buf || at + frame->payload_length <= buf->size_bytes);
	assert(buf || frame->payload_length == 0);
	if (link->dead || link->refused || link->closing) {
		buf_put(buf);
		return;
	}
	if (link->count == LINK_QUEUE_FRAMES) {
		buf_put(buf);
		link_fail(link, -ENOBUFS, "send queue overflow");
		return;
	}
	frame->payload_crc = buf ? crc32c(0, buf->data + at, frame->payload_length) : 0;
	struct entry *entry = &link->queue[(link->head + link->count++) % LINK_QUEUE_FRAMES];
	entry->buf = buf;
	entry->payload_at = at;
	entry->payload_length = frame->payload_length;
	entry->stream = frame_is_stream(frame->type);
	frame_encode(frame, &entry->header);
	link->queue_bytes += sizeof(entry->header) + frame->payload_length;
	env_defer(link->env, &link->flush_task);
}

bool link_send_control(struct link *link, struct frame *frame, const void *payload, uint32_t length)
{
	struct buf *buf = NULL;

	assert(length <= CONTROL_BYTES);
	if (length) {
		buf = buf_alloc(link->control_pool, length);
		if (!buf)
			return false;
		memcpy(buf->data, payload, length);
	}
	frame->payload_length = length;
	link_send(link, frame, buf, 0);
	return true;
}

void link_send_urgent(struct link *link, const struct frame *frame, const void *payload,
		      uint32_t length)
{
	assert(length <= LINK_URGENT_BYTES);
	if (link->dead || link->refused || link->closing)
		return;
	link->urgent = *frame;
	link->urgent.payload_length = length;
	memcpy(link->urgent_payload, payload, length);
	link->urgent_due = true;
	env_defer(link->env, &link->flush_task);
}

/* To the front of the queue, while no batch of it is under way. Consumes buf's reference. */
static void queue_first(struct link *link, const struct frame *frame, struct buf *buf)
{
	assert(!link->sending && link->count < LINK_QUEUE_FRAMES);
	link->head = (link->head + LINK_QUEUE_FRAMES - 1) % LINK_QUEUE_FRAMES;
	link->count++;
	struct entry *entry = &link->queue[link->head];
	*entry = (struct entry){.buf = buf, .payload_length = frame->payload_length};
	frame_encode(frame, &entry->header);
	link->queue_bytes += sizeof(entry->header) + entry->payload_length;
}

/* Whether the stream's rate allows what is next; if not, the timer asks again. */
static bool may_send(struct link *link, const struct entry *entry)
{
	if (!entry->stream || !link->stream_rate)
		return true;
	uint64_t wait = rate_limit_wait_ns(link->stream_rate, env_now_ns(link->env),
					   env_realtime_ns(link->env));
	if (!wait)
		rate_limit_take(link->stream_rate, sizeof(entry->header) + entry->payload_length);
	else
		env_timer_start(link->env, &link->rate_timer, wait);
	return wait == 0;
}

static void queue_urgent(struct link *link)
{
	struct buf *buf;

	if (!link->urgent_due || link->refused || link->count == LINK_QUEUE_FRAMES)
		return;
	buf = buf_alloc(link->control_pool, LINK_URGENT_BYTES);
	if (!buf)
		return; /* what is being sent gives some back */
	link->urgent_due = false;
	memcpy(buf->data, link->urgent_payload, link->urgent.payload_length);
	link->urgent.payload_crc = crc32c(0, buf->data, link->urgent.payload_length);
	queue_first(link, &link->urgent, buf);
}

void link_refuse(struct link *link, enum frame_error code, const char *text)
{
	struct frame_error_wire wire;
	struct frame frame = {.type = FRAME_ERROR};

	if (link->dead || link->refused || link->closing)
		return;
	drop_queue(link);
	frame_error_encode(code, text, &wire);
	link_send_control(link, &frame, &wire, sizeof(wire));
	link->refused = true;
}

static void start_send(struct link *link)
{
	unsigned parts = 0;

	if (link->pong_due && !link->dead && !link->closing) {
		struct frame pong = {.type = FRAME_PONG, .id = link->pong_id};
		link->pong_due = false;
		link_send_control(link, &pong, NULL, 0);
	}
	if (link->sending || link->handshaking || link->closed || link->dead || !link->started)
		return;
	queue_urgent(link);
	if (!link->count)
		return;
	link->batch_bytes = 0;
	link->in_batch = 0;
	while (link->in_batch < link->count && link->in_batch < BATCH_FRAMES &&
	       link->batch_bytes < BATCH_BYTES) {
		struct entry *entry =
			&link->queue[(link->head + link->in_batch) % LINK_QUEUE_FRAMES];
		if (!may_send(link, entry))
			break;
		link->in_batch++;
		link->iov[parts++] = (struct iovec){&entry->header, sizeof(entry->header)};
		if (entry->buf)
			link->iov[parts++] = (struct iovec){entry->buf->data + entry->payload_at,
							    entry->payload_length};
		link->batch_bytes += sizeof(entry->header) + entry->payload_length;
	}
	if (!link->in_batch)
		return;
	link->sending = true;
	stream_sendv(link->stream, &link->send_op, link->iov, parts);
}

static void send_done(struct env_op *op, int64_t result)
{
	struct link *link = container_of(op, struct link, send_op);

	link->sending = false;
	for (; link->in_batch; link->in_batch--) {
		struct entry *entry = &link->queue[link->head];
		buf_put(entry->buf);
		entry->buf = NULL;
		link->head = (link->head + 1) % LINK_QUEUE_FRAMES;
		link->count--;
	}
	link->queue_bytes -= link->batch_bytes;
	if (!link->closed && result < 0)
		fail_io(link, (int)result);
	else if (result > 0)
		link->sent_bytes += (uint64_t)result;
	if (link->dead || link->closed)
		drop_queue(link);
	link->busy++;
	if (!link->closing && !link->dead && link->ops->sent)
		link->ops->sent(link->owner);
	link->busy--;
	start_send(link);
	release(link);
}

/* ---- receiving ------------------------------------------------------------------------------ */

static void receive(struct link *link)
{
	if (link->receiving || link->paused || link->dead || link->closed)
		return;
	link->receiving = true;
	link->direct = link->admitted && link->content &&
		       link->frame.payload_length - link->payload_got >= DIRECT_BYTES;
	if (link->direct) {
		stream_recv(link->stream, &link->receive_op,
			    link->content->data + link->payload_got,
			    link->frame.payload_length - link->payload_got);
		return;
	}
	if (link->receive_at) {
		memmove(link->receive_buf, link->receive_buf + link->receive_at,
			link->receive_used - link->receive_at);
		link->receive_used -= link->receive_at;
		link->receive_at = 0;
	}
	stream_recv(link->stream, &link->receive_op, link->receive_buf + link->receive_used,
		    sizeof(link->receive_buf) - link->receive_used);
}

static void receive_done(struct env_op *op, int64_t result)
{
	struct link *link = container_of(op, struct link, receive_op);

	link->receiving = false;
	if (link->closed) {
		release(link);
		return;
	}
	if (result <= 0) {
		fail_io(link, (int)result);
		release(link);
		return;
	}
	link->received_bytes += (uint64_t)result;
	link->received_at_ns = env_now_ns(link->env);
	if (link->closing) { /* lingering: read on until the other side hangs up */
		link->admitted = link->direct = false;
		link->receive_used = link->receive_at = 0;
		receive(link);
		return;
	}
	if (link->direct)
		link->payload_got += (uint32_t)result;
	else
		link->receive_used += (size_t)result;
	parse(link);
}

/* False: not all of a header is here, or it is none. */
static bool take_header(struct link *link)
{
	struct frame_wire wire;

	if (link->receive_used - link->receive_at < sizeof(wire))
		return false;
	memcpy(&wire, link->receive_buf + link->receive_at, sizeof(wire));
	const char *reason = frame_decode(&wire, &link->frame);
	if (reason) {
		link_fail(link, -EPROTO, "bad frame: %s", reason);
		return false;
	}
	link->receive_at += sizeof(wire);
	link->have_header = true;
	link->admitted = false;
	link->payload_got = 0;
	return true;
}

static bool admit(struct link *link)
{
	enum frame_type type = link->frame.type;

	assert(!link->content);
	if (type != FRAME_PING && type != FRAME_PONG && type != FRAME_ERROR &&
	    !link->ops->admit(link->owner, &link->frame, &link->content)) {
		link->paused = true;
		return false;
	}
	if (link->dead || link->closing)
		return false;
	if (frame_is_content(type))
		assert(link->content && link->content->size_bytes >= link->frame.payload_length);
	else
		assert(link->frame.payload_length <= sizeof(link->control));
	link->admitted = true;
	return true;
}

static bool take_payload(struct link *link)
{
	uint8_t *to = link->content ? link->content->data : link->control;
	size_t have = link->receive_used - link->receive_at;
	size_t want = link->frame.payload_length - link->payload_got;
	size_t length = have < want ? have : want;

	memcpy(to + link->payload_got, link->receive_buf + link->receive_at, length);
	link->payload_got += (uint32_t)length;
	link->receive_at += length;
	if (length < want)
		return false;
	if (link->frame.payload_length &&
	    crc32c(0, to, link->frame.payload_length) != link->frame.payload_crc) {
		link_fail(link, -EPROTO, "%s: payload checksum", frame_name(link->frame.type));
		return false;
	}
	return true;
}

static void deliver(struct link *link)
{
	struct buf *content = link->content;

	link->content = NULL;
	link->have_header = link->admitted = false;
	if (link->frame.type == FRAME_PING) {
		link->pong_due = true;
		link->pong_id = link->frame.id;
		env_defer(link->env, &link->flush_task);
	} else if (link->frame.type != FRAME_PONG) {
		link->ops->frame(link->owner, &link->frame, link->control, content);
	}
}

static void parse(struct link *link)
{
	link->busy++;
	while (!link->dead && !link->closing && !link->paused) {
		if (!link->have_header && !take_header(link))
			break;
		if (!link->admitted && !admit(link))
			break;
		if (!take_payload(link))
			break;
		deliver(link);
	}
	link->busy--;
	if (link->closing && !link->closed) {
		buf_put(link->content);
		link->content = NULL;
		link->have_header = link->admitted = false;
		link->receive_at = link->receive_used = 0;
		link->paused = false;
	}
	receive(link);
	release(link);
}

void link_resume(struct link *link)
{
	if (link->paused && !link->dead && !link->closing)
		env_defer(link->env, &link->resume_task);
}

/* ---- questions ------------------------------------------------------------------------------ */

uint64_t link_queue_bytes(const struct link *link)
{
	return link->queue_bytes;
}

unsigned link_queue_frames(const struct link *link)
{
	return link->count;
}

bool link_is_tls(const struct link *link)
{
	return link->stream && stream_is_tls(link->stream);
}

bool link_has_name(const struct link *link, const char *name)
{
	return link->stream && stream_has_name(link->stream, name);
}

const char *link_identity(const struct link *link)
{
	return link->stream ? stream_identity(link->stream) : "";
}

const char *link_peername(const struct link *link)
{
	return link->stream ? stream_peername(link->stream) : "";
}

uint64_t link_sent_bytes(const struct link *link)
{
	return link->sent_bytes;
}

uint64_t link_received_bytes(const struct link *link)
{
	return link->received_bytes;
}

void link_ping(struct link *link)
{
	struct frame ping = {.type = FRAME_PING, .id = ++link->ping_id};

	if (!link->handshaking && !link->dead && !link->refused && !link->closing)
		link_send_control(link, &ping, NULL, 0);
}

uint64_t link_heard_ns(const struct link *link)
{
	return link->received_at_ns;
}

void link_check(const struct link *link)
{
	assert(link->count <= LINK_QUEUE_FRAMES && link->in_batch <= link->count);
	assert(link->sending || link->in_batch == 0);
	assert(link->receive_at <= link->receive_used);
	assert(!link->content || link->admitted);
	assert((link->count == 0) == (link->queue_bytes == 0));
}
