/* SPDX-License-Identifier: Apache-2.0 */
/*
 * seal: the snapshot_writer's inside, shared by seal.c (the course of a snapshot), seal_open.c (what is
 * compared with, claim, cut), map.c (its content: chunks, packs, map pages) and batch.c (what is done with chunks).
 */
#ifndef OFFSITE_SNAPSHOT_SEAL_H
#define OFFSITE_SNAPSHOT_SEAL_H

#include <zstd.h>

#include "daemon/snapshot/internal.h"
#include "daemon/snapshot/pack.h"
#include "daemon/volume/pacer.h"

#define SEAL_BATCHES 8
#define SEAL_PAGES   8
/* Packs on their way: of a service one connection carries less than the link. */
#define SEAL_PUTS         2
#define SEAL_PUTS_SERVICE 4
/* Beside clients: what one read may hold the disk for, and how many are under way. */
#define SEAL_GENTLE_BYTES   (256u << 10)
#define SEAL_GENTLE_BATCHES 2
/* So large that 10,000 changed chunks, however they lie, make less than 50 objects. */
#define SEAL_MAPS_BYTES (64u << 20)

/*
 *  phase     meaning                                                  allowed next
 *  IDLE      nothing under way                                        LOOK
 *  LOOK      manifests are listed, the base loaded and its objects    CLAIM, UNDO
 *            counted; or it is remembered
 *  CLAIM     a claim is put, then the base is looked for again        READY, UNDO
 *  READY     the owner prepares for the cut; it is taken              DATA, UNDO
 *  DATA      chunks are read, compared, packed; packs are put         FLUSH, UNDO
 *  FLUSH     all content is read; the last packs and maps are put     MANIFEST, UNDO
 *  MANIFEST  everything it needs is in the store, and locked if it    PRUNE, UNDO
 *            is to be; it is being put
 *  PRUNE     done and recorded; the claim goes, older ones are        IDLE
 *            deleted
 *  UNDO      failed: what is under way is waited for, the cut merged  IDLE, LOOK
 *            back (LOOK: once more, with another base)
 */
enum seal_phase {
	SEAL_IDLE,
	SEAL_LOOK,
	SEAL_CLAIM,
	SEAL_READY,
	SEAL_DATA,
	SEAL_FLUSH,
	SEAL_MANIFEST,
	SEAL_PRUNE,
	SEAL_UNDO,
	SEAL_PHASES,
};

enum chunk_state { CHUNK_ZERO, CHUNK_SAME, CHUNK_NEW };

struct seal_page;
struct seal_span;

/* Up to RUN_CHUNKS neighbouring chunks on their way from the volume to a pack; or a hole. */
struct seal_batch {
	struct snapshot_writer *writer;
	struct seal_page *page; /* NULL: the slot is free */
	struct volume_cut_read read;
	struct env_work work;
	struct buf *buf; /* NULL: it is only asked whether there is a hole, of any length */
	ZSTD_CCtx *zstd;
	uint64_t first_chunk;
	unsigned count;
	struct buf *packed; /* what was compressed of it, back to back */
	uint32_t packed_bytes;
	uint32_t stored_bytes; /* of the new ones */
	struct pack_place place;
	struct {
		enum chunk_state state;
		struct snapfmt_entry entry; /* NEW: offset relative to the first new one's */
		const uint8_t *stored;      /* NEW: in buf or packed */
	} chunks[RUN_CHUNKS];
};

struct seal_page {
	enum { PAGE_FREE, PAGE_LOADING, PAGE_OPEN, PAGE_ENCODING } state;
	struct snapshot_writer *writer;
	struct env_work work;
	const struct manifest_page *old; /* in the base; NULL: none */
	struct seal_span *span;          /* LOADING: what it waits for, or NULL */
	void (*loaded)(void *context, int error, const char *why);
	uint64_t at, end; /* what of it was not yet read, in bytes */
	uint64_t read_to; /* below it nothing more is asked for holes: it was no hole after all */
	bool asking;      /* whether there is a hole at `at`: nothing else is begun */
	unsigned pending; /* batches under way */
	bool changed;
	uint8_t *encoded; /* malloc */
	uint32_t encoded_bytes, chunk_count;
	struct snapfmt_page map;
};

/* A page of the new map that differs from the base's. */
struct seal_changed {
	struct manifest_page pointer; /* object: number of the maps object; chunk_count 0: gone */
};

/* What of this snapshot's own objects is in use. */
struct seal_object {
	uint32_t total_count, live_count;
	uint64_t size_bytes, live_bytes;
};

struct snapshot_writer {
	struct volume *volume;
	struct snapshot_repo *repo;
	struct env *env;
	struct buf_pool *pool;
	char node_name[SNAPSHOT_NAME_MAX];
	uint64_t pack_bytes;
	int zstd_level;
	struct retention_policy policy;
	struct rate_limit rate;
	struct env_timer rate_timer; /* packs may be put again */
	struct pacer pacer;          /* of reading, beside clients */
	struct env_timer pace_timer; /* it may go on */
	bool pacing; /* the cut waits until the clients' latency without it is known */
	enum store_lock lock;
	uint64_t lock_for_ns;
	bool repack_on;
	struct snapfmt_ref *repack; /* packs whose chunks are stored again; sorted */
	unsigned repack_count;

	enum seal_phase phase;
	void (*done)(void *context, const struct snapshot_result *result);
	void *context;
	void (*freed)(void *context); /* set: to be freed as soon as it is idle */
	void *freed_context;

	int error; /* the first of this run */
	char why[WHY_BYTES];
	void (*prepare)(void *context, struct snapshot_writer *writer);
	void *prepare_context;
	bool asked;        /* the owner owes a snapshot_cut() */
	bool retried;      /* this run began anew, without base */
	bool base_damaged; /* why this run failed */
	bool trusted;      /* the base is the one remembered: nothing was listed */
	bool relook; /* why this run failed: something has changed that a list would have shown */
	bool extend; /* what it shares has to be locked for longer */
	unsigned keys_read, keys_locked; /* of the store's keys_read: seen, and locked as of then */
	unsigned tries;                  /* runs begun for this snapshot */
	bool claimed, manifest_sent;
	uint64_t retries;      /* of the store, when the manifest was sent */
	struct env_task nudge; /* seal_advance() in a later turn */
	unsigned waiting;      /* lists, loads, manifest put under way */

	struct volume_cut *cut;
	struct id128 given_up_since; /* with it: the youngest generation that is not given up */
	bool given_up; /* what a secondary is about to give up: see snapshot_create_given_up() */
	bool full;     /* every chunk not in the cut is zero; else: as in the base */
	struct manifest *base;
	struct names names; /* while looking for the base */
	size_t candidate;
	uint64_t claimed_ns;
	struct snapfmt_claim_wire claim;
	struct env_op claim_op;
	struct iovec claim_iov;
	char claim_name[SNAPFMT_NAME_BYTES];
	bool prune;            /* there are some that may go */
	struct manifest *next; /* the one being written */
	/* Where listing is paid for: the last one confirmed, until a run fails or a day has passed since
	 * its objects were counted. */
	struct manifest *known;
	uint64_t counted_ns, pruned_ns;
	bool litter_looked;       /* whether an earlier process left something */
	uint64_t litter_from_ns;  /* what failed attempts put goes from then on; 0: nothing */
	uint64_t requests_before; /* of the store, when this run began */

	uint64_t cursor; /* page number; smaller ones were opened */
	unsigned base_cursor;
	struct seal_page *pages[SEAL_PAGES];
	struct seal_batch batches[SEAL_BATCHES];
	unsigned batches_busy;
	struct seal_span *span; /* the last one, or NULL; see span.c */
	struct pack *pack, *maps;
	struct slabs slabs;                 /* of this run's packs */
	struct seal_object *packs, *mapses; /* by number */
	size_t pack_count, pack_room, maps_count, maps_room;
	struct seal_changed *changed;
	size_t changed_count, changed_room;
	unsigned puts;
	uint8_t *manifest_data;
	size_t manifest_bytes;
	int manifest_error;
	struct env_work manifest_work;
	struct env_op manifest_op;
	struct iovec manifest_iov;
	char manifest_name[SNAPFMT_NAME_BYTES];

	struct snapshot_progress progress;
	struct snapshot_result last;
	uint64_t last_done_ns, succeeded, failed;
};

/* seal.c */
void seal_fail(struct snapshot_writer *w, int error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void seal_advance(struct snapshot_writer *w); /* after each completion */
void seal_set_phase(struct snapshot_writer *w, enum seal_phase phase);

/* seal_open.c */
void seal_open(struct snapshot_writer *w);    /* begins with LOOK */
void seal_cut_ask(struct snapshot_writer *w); /* in READY: once more, as it had to wait */
void seal_data_begin(struct snapshot_writer *w);
void seal_cut_end(struct snapshot_writer *w, bool consumed);
/* Collectors need not heed the claim any more: now, or when what may be on its way has arrived. */
void seal_claim_drop(struct snapshot_writer *w, bool now);
uint64_t seal_requests(const struct snapshot_writer *w); /* of the store, since it was opened */
bool seal_pace_judged(struct pacer *pacer);              /* its judged() */

/* span.c */

/* Loads page->old into page->map, together with what will be wanted next. */
void span_load(struct snapshot_writer *w, struct seal_page *page,
	       void (*loaded)(void *context, int error, const char *why));
/* Nothing more is loaded from the last one. */
void span_end_last(struct snapshot_writer *w);

/* repack.c */
/* Looks after a deletion for packs that are worth it, and marks what they held. w->next is the snapshot just
 * written. */
void repack_plan(struct snapshot_writer *w, void (*done)(struct snapshot_writer *w));
bool repack_wants(const struct snapshot_writer *w, const struct snapfmt_ref *pack);

/* batch.c */
/* On a helper thread: of a batch that was read, what is new, compressed. */
void batch_run(struct env_work *work);
/* On a helper thread: what is new goes to batch->place. */
void batch_place_run(struct env_work *work);

/* map.c */
void map_begin(struct snapshot_writer *w);
void map_pump(struct snapshot_writer *w);       /* starts what there is room for */
bool map_idle(const struct snapshot_writer *w); /* no read, work, page, put under way */
bool map_drained(struct snapshot_writer *w);    /* nothing more to read; pages are encoded */
void map_flush(struct snapshot_writer *w);      /* puts what is not yet full */
/* On a helper thread: makes w->next whole out of the base and what changed. */
void map_assemble(struct snapshot_writer *w);
void map_end(struct snapshot_writer *w); /* frees what a run held */

#endif
