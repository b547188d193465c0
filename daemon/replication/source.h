/* SPDX-License-Identifier: Apache-2.0 */
/*
 * source: the sending side. Follows the volume's write order for the peer in its two gaits: cut by
 * cut until the peer is close, then write by write from the last cut on.
 *
 * What the peer may lack is always marked in the volume's PEER map: blocks of a cut stay sealed
 * until CUT_ACK, streamed blocks stay marked until a POINT (a flush of the source's own) behind
 * them was acknowledged.
 *
 * A round sends blocks as they are, then those that were overwritten meanwhile, until little is left
 * or it does not get less; only the rest is a cut proper, whose blocks are copied before they are
 * overwritten. What was sent is a transfer: it outlives the link, and the next connection goes on
 * behind what the target has. The instant does not: while there is no link nothing is preserved.
 */
#ifndef OFFSITE_REPLICATION_SOURCE_H
#define OFFSITE_REPLICATION_SOURCE_H

#include "daemon/replication/compare.h"
#include "daemon/replication/link.h"
#include "daemon/replication/pace.h"
#include "daemon/replication/replication.h"
#include "daemon/volume/volume.h"

struct source;

/*
 *  phase     meaning                                       a cut exists       the tap is set
 *  OFF       no link                                       while reads end    no
 *  MAP       the target tells what it changed itself       no                 no
 *  COMPARE   full: what is equal already is found out      bits only          no
 *  PROPOSED  waiting for READY                             if resumed         no
 *  LIVE      blocks are sent as they are                   yes, live          no
 *  CUT       the rest, as of one instant                   yes, frozen        if final
 *  ENDED     waiting for CUT_ACK                           yes                if final
 *  STREAM    in sync                                       between POINTs     yes
 *  LEAVE     max-lag was reached: what was streamed is     until its POINT    no
 *            being carried out; catch-up follows           is acknowledged
 *  SERVED    the volume leans on the target: until all that   no                     no
 *            it has is durable there
 *  DONE      a secondary gave its content, or the sealed   while reads end    if final
 *            blocks cannot be read; link to end
 */
enum source_phase {
	SOURCE_OFF,
	SOURCE_MAP,
	SOURCE_COMPARE,
	SOURCE_PROPOSED,
	SOURCE_LIVE,
	SOURCE_CUT,
	SOURCE_ENDED,
	SOURCE_STREAM,
	SOURCE_LEAVE,
	SOURCE_SERVED,
	SOURCE_DONE,
};

struct source_ops {
	/* A cut was acknowledged; streaming: it was the final one. */
	void (*cut_acknowledged)(void *owner, bool streaming);
	/* The peer has what was completed before it streamed, too: nothing that a client saw the end of is missing. */
	void (*settled)(void *owner);
	/* The stream was left for catch-up, on the same connection. */
	void (*left_stream)(void *owner);
	/* The link has to go, telling the other side this. Not to be done from inside the call. */
	void (*refuse)(void *owner, enum frame_error code, const char *text);
	void (*idle)(void *owner); /* after source_detach(): nothing is under way any more */
};

struct source *source_new(struct volume *volume, struct buf_pool *pool, uint64_t queue_max_bytes,
			  uint64_t final_max_bytes, const struct source_ops *ops, void *owner);
/* At start. stall_timeout_ms: the peer is lost if it carries nothing out for so long while something is
 * to be. suspends: on-peer-loss = suspend. */
void source_configure(struct source *source, unsigned stall_timeout_ms, bool suspends);
/* The operator's word: the clients wait for the peer no more, until it streams again. -errno: nothing
 * changed. */
int source_go_alone(struct source *source);
/* No new generation is tried for any more: who waits for one waits until the volume is closed. */
void source_loss_stop(struct source *source);
/* The volume's role is another one now. */
void source_role_changed(struct source *source);
void source_free(struct source *source);  /* idle */
void source_brace(struct source *source); /* see replication_brace() */

/* What is known of the target when a link begins. */
struct source_target {
	bool full;               /* it gets everything that is not equal by hashes */
	bool zero_disk;          /* its disk reads as zeroes, so there is nothing to compare */
	struct id128 generation; /* of its content */
	bool unsure;             /* it may have another by now */
	struct id128 instance;   /* of its process */
};
void source_attach(struct source *source, struct link *link, enum replication_protocol protocol,
		   const struct source_target *target);
/* The volume leans on the target, which has all of its content: streams as soon as that is durable
 * there (what an earlier connection left may not be). */
void source_attach_served(struct source *source, struct link *link,
			  enum replication_protocol protocol);
/* An unfinished transfer is given up: this side gets content now. Idle, without a link. */
void source_forget_transfer(struct source *source);
/* The peer is lost: clients wait for it no more, later writes are tracked. */
void source_detach(struct source *source);
bool source_is_idle(const struct source *source);
void source_set_protocol(struct source *source, enum replication_protocol protocol);
void source_set_pace(struct source *source, const struct pace_options *pace);

/* Free for its user while the source is streaming. */
struct compare *source_compare(struct source *source);

bool source_admit(struct source *source, const struct frame *frame, struct buf **buf);
void source_frame(struct source *source, const struct frame *frame, const void *payload);
void source_sent(struct source *source);

/* Asks the target for its content, at the point of the write order at which the question is sent, not
 * before this call: whatever was issued before is in the answer. Sent before the first cut and in the stream;
 * waits for one of them. -ENOTCONN without a link, and when it is lost. */
void source_read(struct source *source, struct volume_origin_read *read);

struct source_status {
	enum source_phase phase;
	uint64_t sent_lsn, acked_lsn, streamed_bytes;
	/* In STREAM: issued and not yet acknowledged, and the age of the oldest of it. Else: what is
	 * marked for the peer, and the time since it was last known to have everything. */
	uint64_t lag_bytes, lag_ns;
	uint64_t unacked_bytes; /* of the stream, in any phase */
	bool held;              /* writers wait for the peer now, or did within the last seconds */
	uint64_t holds;         /* how often they began to */
	uint64_t left;          /* how often the stream was left at max-lag */
	bool settling; /* in STREAM; what completed before may be on its way to the peer still */
	bool waiting;  /* clients wait for the peer to stream (on-peer-loss = suspend) */
	uint64_t waiting_since_ns;                /* realtime */
	uint64_t stream_limit, catch_up_limit;    /* bytes a second now; 0: unlimited */
	const char *catch_up_reason;              /* why; "": there is no catch-up */
	uint64_t write_p99_ns, write_baseline_ns; /* of clients: now, and without catch-up */
	uint64_t resumes;
	uint64_t unreadable_bytes;  /* what cannot be read here */
	uint64_t unreadable_offset; /* the first of it */
	bool in_place;              /* this round */
	uint64_t room_bytes;        /* the target's staging limit; 0: unknown */
	uint64_t cut_done_bytes, cut_total_bytes, cut_started_ns, cuts;
	struct compare_status compare; /* of this connection's full sync */
	uint64_t compare_total_bytes;
};
void source_get_status(const struct source *source, struct source_status *status);
void source_check(const struct source *source);

#endif
