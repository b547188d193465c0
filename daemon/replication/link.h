/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link: one connection between two nodes. Owns the stream, the framing, the queue of frames to be
 * sent (one send under way, many frames in it), pings, and the timer that finds a dead peer.
 * Knows nothing of what the frames mean.
 */
#ifndef OFFSITE_REPLICATION_LINK_H
#define OFFSITE_REPLICATION_LINK_H

#include "daemon/io/buf.h"
#include "daemon/io/rate.h"
#include "daemon/io/stream.h"
#include "protocol/replication.h"

struct link;

struct link_ops {
	/* A frame's header is here. False: not now; link_resume() asks again. For volume content
	 * *buf is to be set to a buffer that holds payload_length. */
	bool (*admit)(void *owner, const struct frame *frame, struct buf **buf);
	/* The frame is here, its payload checked. The reference to buf is the callee's. */
	void (*frame)(void *owner, const struct frame *frame, const void *payload, struct buf *buf);
	/* A batch has left: link_queue_bytes() is smaller now. May be NULL. */
	void (*sent)(void *owner);
	/* The connection is lost or was failed. Called once, with link_close() to follow. */
	void (*dead)(void *owner, int error, const char *why);
	/* After link_close(): the memory is gone and every buffer given back. May be NULL. */
	void (*gone)(void *owner);
};

struct link_config {
	unsigned ping_interval_ms, peer_timeout_ms;
};

/* Takes the stream over. NULL without memory (the stream is closed then). */
struct link *link_new(struct env *env, struct stream *stream, const struct link_config *config,
		      const struct link_ops *ops, void *owner);
/* The owner changes; for the one that had it, the link is gone (no further callback). */
void link_set_owner(struct link *link, const struct link_config *config, const struct link_ops *ops,
		    void *owner);
/* Begins: TLS handshake if tls is given, then frames in both directions. */
void link_start(struct link *link, struct tls_context *tls);
/* Ends the connection. Without link_refuse() at once; with it after the ERROR has been sent. */
void link_close(struct link *link);

/* Queues a frame; content in buf from buf->data + at on (its reference is consumed), or NULL.
 * Checksums are made here. */
void link_send(struct link *link, struct frame *frame, struct buf *buf, uint32_t at);
/* As link_send(), with a payload of up to 8 KiB that is copied. False: no room now, try later. */
bool link_send_control(struct link *link, struct frame *frame, const void *payload,
		       uint32_t length);
/* Sends a frame ahead of all that is queued. One that has not left yet is replaced. */
#define LINK_URGENT_BYTES 64u
void link_send_urgent(struct link *link, const struct frame *frame, const void *payload,
		      uint32_t length);
/* Throws the queue away and queues an ERROR. */
void link_refuse(struct link *link, enum frame_error code, const char *text);
/* The connection has become useless; dead() follows in a later turn. */
void link_fail(struct link *link, int error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void link_resume(struct link *link);
/* Frames of the stream leave at this rate from now on, and what is behind them waits with them. The limit
 * is the caller's and outlives the link. */
void link_set_stream_rate(struct link *link, struct rate_limit *limit);

/* Its memory is there before it is touched: see volume_brace(). */
void link_brace(struct link *link);

uint64_t link_queue_bytes(const struct link *link);
unsigned link_queue_frames(const struct link *link);
bool link_is_tls(const struct link *link);
/* The other side's certificate is for that name, and who it says it is. */
bool link_has_name(const struct link *link, const char *name);
const char *link_identity(const struct link *link);
const char *link_peername(const struct link *link);
uint64_t link_sent_bytes(const struct link *link);
uint64_t link_received_bytes(const struct link *link);
/* Asks for a sign of life now. */
void link_ping(struct link *link);
/* When something came last; env_now_ns(). */
uint64_t link_heard_ns(const struct link *link);
void link_check(const struct link *link);

/* Frames that fit the queue; senders keep well below. */
#define LINK_QUEUE_FRAMES 20480u

#endif
