/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sink: the receiving side. Owns the redo log, the application of cuts and of the stream onto the
 * volume in the order that matters, and the acknowledgements. Outlives links: a cut that was
 * committed is applied to its end whether or not the source is still there.
 *
 * Where streamed frames go:   before the final cut is applied and the log behind it drained: to the
 * log; afterwards: straight to the volume. The log is emptied, durably, in between.
 */
#ifndef OFFSITE_REPLICATION_SINK_H
#define OFFSITE_REPLICATION_SINK_H

#include "daemon/replication/link.h"
#include "daemon/volume/volume.h"

struct sink;

/* What the present link is at. */
enum sink_phase {
	SINK_OFF,    /* no link */
	SINK_WAIT,   /* for PROPOSE */
	SINK_READY,  /* READY sent; blocks as they are, then CUT_BEGIN */
	SINK_CUT,    /* the blocks of the cut proper */
	SINK_COMMIT, /* all of it is here; applying; CUT_ACK to come */
	SINK_STREAM, /* the final cut is applied */
};

/*
 *  what the log is at  meaning                                        may be lost by a crash
 *  NONE                empty, durably                                  -
 *  COLLECT             a cut is being collected; without a link:      all: the old content stands
 *                      kept, for the same source to go on with
 *  COMMITTING          COMMIT appended, fsync under way               all or nothing
 *  APPLY_CUT           committed; its blocks go to the volume         nothing
 *  FLUSH_CUT           ... and are made durable, the state persisted  nothing
 *  APPLY_STREAM        the stream behind it goes to the volume        what was not acknowledged
 *  FLUSH_STREAM        ... made durable, the log emptied              nothing
 *  ABANDON             given up; operations coming back               all
 *  SCAN                at start: looking for a COMMIT                 nothing
 *  STUCK               committed but not applicable (disk failed)     nothing
 */
enum sink_log {
	SINK_LOG_NONE,
	SINK_LOG_COLLECT,
	SINK_LOG_COMMITTING,
	SINK_LOG_APPLY_CUT,
	SINK_LOG_FLUSH_CUT,
	SINK_LOG_APPLY_STREAM,
	SINK_LOG_FLUSH_STREAM,
	SINK_LOG_ABANDON,
	SINK_LOG_SCAN,
	SINK_LOG_STUCK,
};

struct sink_ops {
	/* A cut is applied and durable; final: the stream follows. */
	void (*cut_applied)(void *owner, bool final);
	/* The source left the stream: cuts follow again. */
	void (*left_stream)(void *owner);
	/* The link has to go, telling the other side this. Not to be done from inside the call. */
	void (*refuse)(void *owner, enum frame_error code, const char *text);
	/* Nothing of the sink is under way any more. Called after sink_detach(), sink_recover(). */
	void (*idle)(void *owner);
};

int sink_new(struct volume *volume, struct buf_pool *pool, uint64_t staging_max_bytes,
	     const struct sink_ops *ops, void *owner, struct sink **sink, char *why,
	     size_t why_size);
/* Idle, detached, or stuck. */
void sink_free(struct sink *sink);
/* Looks for a committed cut of an earlier run and applies it; idle() follows, possibly from inside.
 * wants: as with sink_attach(). */
void sink_recover(struct sink *sink, bool wants);
/* No new application is begun; sink_is_quiet() becomes true. What is committed is found again. */
void sink_stop(struct sink *sink);
bool sink_is_quiet(const struct sink *sink);
/* The committed cut is void: the whole content is to be replaced. */
void sink_discard(struct sink *sink);
/* There is one, for its source to go on with. */
bool sink_keeps_transfer(const struct sink *sink);
/* What was collected of an unfinished cut is given up: the volume goes on without it. Detached. */
void sink_forget_transfer(struct sink *sink);

/* Tells the source first what it has of an unfinished transfer. wants: what this side has is given up
 * for the source's content, the role does not matter, and its own generations since the base are no
 * ancestors of what comes. */
void sink_attach(struct sink *sink, struct link *link, const struct id128 *uuid, bool wants);
/* After sink_attach(): the source is primary, and goes on after each cut. */
void sink_set_live(struct sink *sink, bool live);
/* The source leans on this side: the stream begins at once, onto the content as it is. */
void sink_attach_served(struct sink *sink, struct link *link, const struct id128 *uuid);
void sink_detach(struct sink *sink);
bool sink_is_idle(const struct sink *sink);
bool sink_is_stuck(const struct sink *sink);
/* Committed content is not on the volume yet. */
bool sink_is_applying(const struct sink *sink);

/* Calls back, never from inside, as soon as the volume's content is one instant of the source's order:
 * nothing of the stream or of a cut is half applied. It stays so for the length of the call only. Until then
 * no more of the stream is taken. -EIO: staged data cannot be applied. rest NULL: who waits is told
 * -ECANCELED soon. */
void sink_at_rest(struct sink *sink, void (*rest)(void *context, int error), void *context);
/* In the stream, with nothing before this point of it to be applied yet. If not, the link is resumed when
 * it may be. */
bool sink_is_still(const struct sink *sink);
bool sink_is_at_rest(const struct sink *sink);

bool sink_admit(struct sink *sink, const struct frame *frame, struct buf **buf);
void sink_frame(struct sink *sink, const struct frame *frame, const void *payload, struct buf *buf);
void sink_sent(struct sink *sink);

/* The volume is bigger now. */
void sink_resized(struct sink *sink);

struct sink_status {
	enum sink_phase phase;
	uint64_t received_lsn, durable_lsn, streamed_bytes;
	uint64_t cut_done_bytes, cut_total_bytes, cut_started_ns;
	uint64_t cuts, staged_bytes;
	bool in_place;
};
void sink_get_status(const struct sink *sink, struct sink_status *status);
void sink_check(const struct sink *sink);

/* Puts id in front of the history, once. */
void generations_push(struct volume_generations *generations, const struct id128 *id);

#endif
