/* SPDX-License-Identifier: Apache-2.0 */
/* The source's inside, shared by source.c (rounds, generations), source_stream.c, source_cut.c,
 * source_read.c, source_compare.c. */
#ifndef OFFSITE_REPLICATION_SOURCE_INTERNAL_H
#define OFFSITE_REPLICATION_SOURCE_INTERNAL_H

#include "daemon/replication/source.h"
#include "daemon/volume/pacer.h"

#define SOURCE_RING         8192u /* streamed frames not yet carried out by the peer */
#define SOURCE_RING_MARGIN  64u   /* writes that may be issued after ready() said no */
#define SOURCE_RING_RESUME  (SOURCE_RING - 8 * SOURCE_RING_MARGIN)
#define SOURCE_READS        64u /* at a time; no more than SOURCE_WINDOW_BYTES of them */
#define SOURCE_READS_BESIDE 8u  /* likewise, beside clients: what their requests wait behind */
#define SOURCE_CLIENTS_NS   1000000000ull /* after a request a client counts as there for so long */
#define SOURCE_WINDOW_BYTES (8u * 1024 * 1024) /* of a cut, waiting to be sent */
#define SOURCE_SENT         16384u /* frames of a transfer that are not yet durable there */
#define SOURCE_SENT_MARGIN  4096u  /* of those, what the reads under way may become */
#define SOURCE_BAD_MAX      64u    /* blocks that cannot be read, in one pass: then it is over */
#define SOURCE_BAD_FIRST_NS 1000000000ull  /* until they are tried again, at first */
#define SOURCE_BAD_MAX_NS   30000000000ull /* and in the end */
#define SOURCE_PASSES_MAX   4u             /* of a round, over blocks as they are */
#define SOURCE_HEAD_BYTES   64u /* what the target's log needs for a frame besides its content */
#define SOURCE_STAGED_MAX   4u  /* staged rounds: the last is the final one whatever its size */
#define SOURCE_POINT_BYTES  (32ull * 1024 * 1024)
#define SOURCE_POINT_NS     1000000000ull
#define SOURCE_HELD_NS      5000000000ull /* so long after the last wait writers count as held */
_Static_assert(SOURCE_RING + 1024 <= LINK_QUEUE_FRAMES, "the stream cannot overflow the queue");

/* What a client's completion waits for. */
enum source_wait {
	WAIT_NOTHING,
	WAIT_RECEIVED,
	WAIT_WRITTEN,
	WAIT_DURABLE, /* for a FLUSH behind it: the volume leans on the peer */
};

struct source_entry {
	uint64_t token, lsn, issued_at_ns, bytes;
	uint32_t payload; /* of bytes, those that travel: zeroes and TRIM do not count in max-lag */
	enum source_wait wait;
	bool point, written, flush, settle, begin;
	bool client; /* somebody saw its end, or waits for it */
};

struct source_read {
	struct volume_cut_read read;
	struct source *source;
	bool busy;
};

/* A READ without an answer. */
struct source_question {
	struct volume_origin_read *read; /* NULL: unused */
	struct buf *buf;                 /* for the answer */
	uint64_t id;
};

/* A frame of the transfer. */
struct source_sent {
	uint64_t offset, length;
	bool data;
};

struct source {
	struct volume *volume;
	struct env *env;
	struct buf_pool *pool;
	const struct source_ops *ops;
	void *owner;
	uint64_t queue_max_bytes, final_max_bytes;
	struct pace_bound bound;
	struct rate_limit stream_rate, catch_up_rate;
	struct env_timer pace_timer; /* catch-up goes on */
	struct pacer pacer;          /* ... beside clients */

	struct link *link;
	enum source_phase phase;
	enum replication_protocol protocol;
	struct source_target target;

	/* rounds */
	uint64_t round, cuts;
	unsigned staged_rounds;
	bool in_place, final;
	struct volume_cut *cut; /* catch-up's, or the stream's POINT: bits only */
	struct id128 cut_generation;

	/* a full sync's comparison */
	struct compare *compare;
	struct compare_status compared;
	uint64_t compare_total_bytes;

	/* sending the cut */
	struct source_read reads[SOURCE_READS];
	unsigned reads_busy;
	uint64_t reads_bytes; /* of those */
	uint64_t scan_offset, cut_done_bytes, cut_total_bytes;
	uint64_t cut_sent_bytes;            /* in payloads */
	uint64_t cut_started_ns, cut_at_ns; /* the transfer; the cut proper */
	/* What the disk does not give: a run that failed is read block by block up to careful_end; as long
	 * as a block fails there is no cut, and all is tried again later. */
	uint64_t careful_end;
	unsigned bad_blocks;                          /* in this pass */
	uint64_t unreadable_bytes, unreadable_offset; /* as of the last pass */
	uint64_t bad_wait_ns;
	bool suspect; /* a block failed since the last CUT_ACK: no cut before all were read */
	struct env_timer bad_timer;
	uint64_t zero_offset, zero_length; /* a run of zeroes that may still grow */
	bool scanned;

	/* The transfer, from the first READY to CUT_ACK, over any number of links. While there is one,
	 * cut is its cut: live, or frozen in CUT and ENDED. */
	struct id128 transfer;
	struct source_target begun_with;
	uint64_t resumes;   /* in all */
	bool moving;        /* there is one; else cut is a comparison's or a POINT's: bits only */
	bool transfer_zero; /* nothing but zeroes is on the target */
	bool parked, frozen, ended, map_begun, resuming;
	unsigned passes;
	uint64_t pass_bytes;                            /* left when the pass began */
	uint64_t cut_frames, cut_bytes;                 /* sent */
	uint64_t durable_frames, room_bytes, log_bytes; /* in the target's log; room 0: no limit */
	struct source_sent *sent; /* [durable_frames, cut_frames) of SOURCE_SENT */

	/* the stream: sequences [oldest, next) are not yet written by the peer, in part */
	struct volume_tap tap;
	bool tapped;
	bool full_queue; /* ready() said no: writers wait */
	bool leaving;    /* the final cut's tap is off: LEAVE follows instead of STREAM */
	uint64_t
		settling; /* not 0: until a POINT from this sequence on; see source_stream_settle() */
	struct source_entry *ring; /* SOURCE_RING */
	uint64_t oldest, next, received;
	uint64_t sent_lsn, acked_lsn, lag_bytes, lag_payload, since_point_bytes;
	uint64_t streamed_bytes; /* on this link */
	uint64_t complete_at_ns; /* when the peer last was known to have everything */
	uint64_t held_at_ns, holds, left;
	struct env_timer point_timer;
	uint64_t moved_ns, sent_bytes; /* when the peer last carried something out, or read */
	unsigned stall_timeout_ms;
	struct env_timer stall_timer;

	/* the peer is lost: source_loss.c */
	bool suspends;             /* on-peer-loss = suspend */
	bool waiting;              /* clients wait for the peer to stream */
	uint64_t waiting_since_ns; /* realtime */
	bool bump_due;             /* clients wait for a new generation to be durable */
	struct env_timer bump_timer;
	/* the volume leans on the peer: one flush of the source's own at a time, for all who wait */
	uint64_t last_durable, last_flush; /* sequences: of WAIT_DURABLE, of a FLUSH */
	uint64_t own_flush;                /* sequence; 0: none is under way */
	struct env_task flush_task;
	struct env_task pump_task, idle_task, leave_task;

	/* reading at the target */
	struct source_question questions[READS_MAX];
	struct volume_origin_read *reads_first, *reads_last; /* not asked yet */
	uint64_t question_id;
	struct env_task ask_task;
};

/* source.c */
void source_refuse(struct source *source, enum frame_error code, const char *text);
void source_freeze(struct source *source); /* the live passes are over: the cut proper */
/* source_read.c */
void source_reads_init(struct source *source);
void source_reads_resume(struct source *source); /* something was sent, or the phase allows it */
void source_reads_fail(struct source *source);
bool source_read_admit(struct source *source, const struct frame *frame, struct buf **buf);
void source_read_data(struct source *source, const struct frame *frame, const void *payload);
void source_propose(struct source *source);
/* source_compare.c */
void source_compare_begin(struct source *source);
/* max-lag is reached and nobody is to wait: the tap comes off, catch-up follows. */
void source_leave_stream(struct source *source);
/* Whether it is to be done so: by the bound's action and the protocol. */
bool source_may_leave(const struct source *source);
/* LEAVE: goes on with catch-up if all that was streamed is carried out. */
void source_leave_step(struct source *source);
/* source_pace.c */
void source_pace_init(struct source *source);
void source_pace_stop(struct source *source);
/* Whether another read of the cut may be started; if not, the pump is called when it may. */
bool source_pace_allows(struct source *source);
/* Whether more may be read for the comparison: as far as clients are concerned; if not, it is resumed when it may. */
bool source_pace_clients_allow(struct source *source);
void source_pace_take(struct source *source, uint64_t bytes);
void source_pace_zeroes(struct source *source, uint64_t bytes);
uint64_t source_pace_rate(const struct source *source);  /* 0: any */
unsigned source_pace_depth(const struct source *source); /* reads at a time */
void source_pace_status(const struct source *source, struct source_status *status);
/* source_cut.c */
void source_cut_pump(struct source *source);
/* A writer waits for a block that cannot be sent before the target has taken more. */
bool source_cut_is_stuck(const struct source *source);
void source_cut_rewind(struct source *source); /* from the first block on */
/* source_bad.c */
void source_bad_init(struct source *source);
/* A read failed; error as from the disk. */
void source_bad_read(struct source *source, uint64_t offset, uint32_t length);
/* A pass ended: true if it met blocks that cannot be read: it is begun anew later. */
bool source_bad_pass(struct source *source);
void source_bad_reset(struct source *source); /* all is there */
/* source_transfer.c */
/* The target's log has room for what is left, and for more beside it. */
bool source_transfer_fits(const struct source *source, uint64_t more_bytes);
void source_transfer_new(struct source *source);
int source_transfer_begin(struct source *source);
void source_transfer_sent(struct source *source, uint64_t offset, uint64_t length, bool data);
/* No link any more, no read under way: what was not sent is to be sent; nothing is preserved. */
void source_transfer_park(struct source *source);
void source_transfer_end(struct source *source, bool consumed);
/* The link's first frames: whether the target has the transfer, or all of it was applied. */
bool source_transfer_was_applied(const struct source *source);
void source_transfer_resume(struct source *source, const struct frame *frame, const void *payload);
/* source_stream.c */
/* The cut proper begins, or the tap is set: from here on the peer has to get on with things. */
void source_stream_watch(struct source *source);
void source_stream_init(struct source *source);
void source_stream_reset(struct source *source);
void source_stream_begin(struct source *source);  /* the final cut was acknowledged */
void source_stream_served(struct source *source); /* asks for a first flush; then begins */
void source_stream_ack(struct source *source, const struct frame *frame, const void *payload);
void source_stream_resume(struct source *source);
void source_stream_point(struct source *source); /* one behind all that was streamed */
/* Clients wait for the peer from now on. What was completed before that may be on its way still: it is there when
 * the next point is. */
void source_stream_settle(struct source *source);
/* Age of the oldest that the peer has not carried out; 0: none. */
uint64_t source_stream_age_ns(const struct source *source);

/* source_loss.c */
void source_loss_init(struct source *source, bool suspends);
/* Clients saw, or are about to see, the end of writes that the peer lacks: a new generation. As long as
 * it cannot be stored they wait. */
void source_bump(struct source *source);
/* Of the stream, before it is reset: whether a client saw the end of a write that the peer may lack, or of a
 * flush of what the peer may have in its cache only. to_come: or is about to see it. */
bool source_completed_alone(const struct source *source, bool to_come);
/* -errno: that the peer is needed from now on is not stored. */
int source_followed(struct source *source);
/* And it streams. */
void source_followed_done(struct source *source);
/* In this order, the stream's ring still whole, then the tap gone. */
void source_lost(struct source *source, bool streamed);
void source_lost_tap(struct source *source);

#endif
