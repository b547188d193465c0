/* SPDX-License-Identifier: Apache-2.0 */
/* The sink's inside, shared by sink.c (frames, acknowledgements) and sink_log.c (the redo log). */
#ifndef OFFSITE_REPLICATION_SINK_INTERNAL_H
#define OFFSITE_REPLICATION_SINK_INTERNAL_H

#include "daemon/replication/sink.h"
#include "daemon/replication/staging.h"

#define SINK_APPLIES       256u
#define SINK_READS         READS_MAX
#define SINK_REPORT_FRAMES 2048u /* of a transfer, after which what came is made durable and told */
#define SINK_REPORT_BYTES  (8u * 1024 * 1024)
#define SINK_PLACE_BYTES   (64u * 1024 * 1024) /* likewise, in place: this holds the source up */

struct sink_apply {
	struct volume_apply apply;
	struct sink *sink;
	uint64_t sequence; /* to acknowledge; 0: none */
	struct sink_apply *next;
};

struct sink_read {
	struct block_request request;
	struct sink *sink;
	uint64_t id;
	bool busy;
};

struct sink {
	struct volume *volume;
	struct env *env;
	struct buf_pool *pool;
	const struct sink_ops *ops;
	void *owner;
	struct staging *staging;
	struct answer *answer;

	/* the link */
	struct link *link;
	enum sink_phase phase;
	struct id128 peer_uuid;
	bool wants;
	bool live; /* the source is primary: more follows a cut that is not final */

	/* the cut at hand */
	uint64_t round, cut_lsn, cut_frames, cut_bytes, cut_total_bytes, cut_started_ns;
	bool in_place, final, cut_ended;
	struct staging_commit_wire commit;

	/* The transfer: kept over the loss of a link, so that the source goes on behind it. Zero: none.
	 * cut_frames and cut_bytes count from its beginning. */
	struct id128 transfer;
	bool kept;                               /* no round owns it */
	bool report_unsent;                      /* no buffer */
	uint64_t durable_frames, report_bytes;   /* told; bytes when it was told last */
	uint64_t report_frames, report_position; /* being made durable; 0: nothing is */
	bool place_barrier, place_flushing;      /* in place: frames wait until a flush is done */

	/* applying */
	struct sink_apply applies[SINK_APPLIES];
	struct sink_apply *free_applies;
	unsigned in_flight;
	bool stopping;
	bool applying_begun; /* volume_begin_applying() was called for this link */
	/* A barrier keeps later frames out until everything before it is done. */
	bool barrier;       /* FUA: until in_flight is zero */
	bool flush_waiting; /* FLUSH: sent to the volume when in_flight is zero */
	bool flushing;      /* under way */
	uint64_t flush_sequence, flush_lsn;
	bool have_synced; /* SYNCED came; to be carried out when all before is applied */
	struct id128 synced_generation;

	/* sink_at_rest(): who waits for the volume to be still */
	void (*rest)(void *context, int error);
	void *rest_context;
	bool rest_cancelled;

	/* acknowledgements */
	uint64_t streamed_bytes; /* of WRITE and ZERO received on this link */
	uint64_t received_sequence, received_lsn, durable_lsn, sent_received;
	struct frame_range_wire ack_wire[FRAME_RANGES_MAX];
	struct {
		uint64_t first, last;
	} acks[FRAME_RANGES_MAX];
	unsigned ack_count;

	/* the log */
	enum sink_log log;
	uint64_t commit_position;               /* behind the COMMIT record */
	uint64_t stream_position, stream_first; /* the first streamed record: place, sequence */
	uint64_t limit;                         /* of the pass at hand */
	uint64_t stream_applied;                /* where the last stream pass ended; 0: none did */
	uint64_t log_acked, log_sync_sequence, log_sync_position; /* group commit */
	uint64_t log_last_sequence;                               /* of the stream, last appended */
	uint64_t log_last_lsn;
	bool log_recovered, log_failed, hold;
	bool have_record;
	struct staging_record record;
	const uint8_t *record_payload;
	struct id128 log_generation;

	/* READ */
	struct sink_read reads[SINK_READS];
	unsigned reads_busy;

	struct env_task step_task, ack_task;
	uint64_t cuts;
};

/* sink.c */
void sink_step_later(struct sink *sink);
void sink_ack(struct sink *sink, uint64_t first, uint64_t last);
void sink_submit(struct sink *sink, enum volume_mutation_type type, bool fua, bool punch,
		 uint64_t lsn, uint64_t offset, uint64_t length, struct buf *buf,
		 uint64_t sequence);
int sink_begin_applying(struct sink *sink);
void sink_void_transfer(struct sink *sink); /* it must not be taken up again */
/* The cut is on the volume and durable: persists the state, tells source and owner. -errno. */
int sink_cut_applied(struct sink *sink);
void sink_adopt_synced(struct sink *sink);
/* The link is to go, with this told to the other side; no frame is taken any more. */
void sink_refuse(struct sink *sink, enum frame_error code, const char *text);

/* sink_read.c */
bool sink_read_admit(struct sink *sink);
void sink_on_read(struct sink *sink, const struct frame *frame, const void *payload,
		  struct buf *buf);

/* sink_log.c */
void sink_log_recover(struct sink *sink); /* at start */
extern const struct staging_ops sink_staging_ops;
void sink_log_step(struct sink *sink);
void sink_log_append(struct sink *sink, enum staging_type type, unsigned flags, uint64_t lsn,
		     uint64_t offset, uint64_t length, const void *payload);
void sink_log_commit(struct sink *sink);
/* A flush of the volume that the log asked for is done. */
void sink_log_flushed(struct sink *sink, int error);
void sink_log_stuck(struct sink *sink, int error, const char *what);

#endif
