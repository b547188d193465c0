/* SPDX-License-Identifier: Apache-2.0 */
/*
 * internal: the state of a volume, shared by the files of this folder and by nobody else.
 *
 *   volume.c      open, close, what is reported
 *   state.c       the state and the maps as set from outside
 *   super.c       the superblock: three slots, blocking and asynchronous writes
 *   maps.c        the file "maps": its pages, creation, recovery
 *   intent.c      intent bits, group commit, checkpoints that retire them
 *   request.c     a mutation's way: lock, read-modify-write, gate, ISSUE, completion
 *   sync.c        fsync of the backing, shared by all who wait
 *   grow.c        a bigger size, and the maps for it
 *   cut.c         cuts, copy before write, reading sealed blocks
 *   preserve.c    the preserve file of a cut: its slots, its space given back
 *   copy.c        the content kept while a catch-up in place makes it a mixture
 *   export.c      struct block, reads, volume_read(), volume_apply()
 *   hold.c        ranges held at one point of the write order
 *   lean.c        a failed disk: settling, leaning on the peer, reading there
 *   hydrate.c     filling a disk while it is in use: fetching, the background
 *   missing.c     the map of what it lacks, and its file
 *   instant.c     filling it from a snapshot: how that begins and ends
 */
#ifndef OFFSITE_VOLUME_INTERNAL_H
#define OFFSITE_VOLUME_INTERNAL_H

#include <errno.h>
#include "daemon/volume/bits.h"
#include "daemon/volume/dirty.h"
#include "daemon/volume/overlap.h"
#include "daemon/volume/volume.h"
#include "protocol/metadata.h"

#define TICK_NS           (5ull * 1000000000) /* regions idle for so long lose their intent bit */
#define TOKENS            8192u               /* events of the write order that wait for the tap */
#define BATCH_PAGES       64u                 /* map pages in one write */
#define PRESERVE_JOBS     64u                 /* copies before writes that are read at a time */
#define PRESERVE_BUFS     8u                  /* of old content on its way to a preserve file */
#define ZERO_PIECE        (1024ull * 1024 * 1024) /* of a TRIM or ZERO, where the backing can */
#define ZERO_PROBE        65536u                  /* while it is not known whether it can */
#define INTENT_WINDOW     4u                      /* regions marked together */
#define INTENT_WINDOW_MAX 64u                     /* likewise when regions come in order */

/* ---- one operation, in the private part of its owner's request --------------------------- */

enum op_kind { OP_READ, OP_WRITE, OP_ZERO, OP_FLUSH, OP_HOLD, OP_FETCH };
enum op_owner { OWNER_CLIENT, OWNER_READER, OWNER_APPLY, OWNER_HOLD, OWNER_FETCH };

/* What of an op failed locally while it waits for the peer to take over. */
enum op_failed { FAILED_READ = 1, FAILED_EDGE, FAILED_WRITE, FAILED_SYNC };

struct op {
	union {
		struct env_op io;
		struct volume_origin_read ask; /* content that is read where it is */
	};
	void (*read_done)(struct op *op, int error); /* see op_read() */
	struct volume *volume;
	struct range_lock lock;
	struct op *next;                     /* in the one queue it waits in */
	uint64_t pos, end;                   /* what is not done yet of the request */
	uint64_t piece_offset, piece_length; /* aligned; what is under way of it */
	uint64_t lsn;
	uint64_t started_ns; /* a client's */
	struct buf *bounce;
	int error;
	int local_error;
	uint16_t align;     /* of its pieces */
	uint16_t tap_waits; /* tokens held by the tap */
	uint32_t written;   /* of a piece that is zeroed by writing */
	uint8_t kind, owner;
	uint8_t edge;   /* read-modify-write: which edge block is read next */
	uint8_t failed; /* enum op_failed */
	bool trim : 1;  /* client's TRIM: nothing where the backing cannot */
	bool punch : 1, fua : 1, fast : 1;
	bool piece_is_write : 1; /* edges of a ZERO too */
	bool issued : 1;         /* local I/O of the piece is under way */
	bool local_done : 1;     /* all pieces are */
	bool punching : 1;       /* the env_zero() under way punches */
	bool locked : 1;
	bool remote : 1;        /* issued while the volume leans: done when the peer has it, too */
	bool local_pending : 1; /* ... and its local part is under way */
	bool on_disk : 1;       /* ... or was, on the present disk */
	bool again : 1;         /* ... it did not reach the peer: to be issued once more */
	bool diverged : 1;      /* ... and this disk may have it: its region keeps its intent bit */
};
_Static_assert(sizeof(struct op) <= sizeof(((struct block_request *)0)->priv), "priv too small");
_Static_assert(sizeof(struct op) <= sizeof(((struct volume_apply *)0)->priv), "priv too small");

struct op_queue {
	struct op *first, *last;
};

/* ---- readers: copies made of the backing that no mutation may overtake --------------------- */

/* While a reader is in the list no mutation that overlaps it is issued; it starts when those issued
 * before have landed. It waits for nothing that is not issued yet, so it cannot deadlock with the
 * locks of requests that wait at the gate. */
struct reader {
	struct reader *next, **previous;
	uint64_t start, end;
	uint32_t waiting; /* issued mutations still under way */
	void (*ready)(struct reader *reader);
	struct op_queue waiters; /* mutations to be looked at again when it ends */
};

/* Old content on its way to a preserve file. Where a cut may be lost, writes go on as soon as it is in here, and
 * several jobs share one, so that the file is written in large pieces and nobody waits for it. */
struct preserve_buf {
	struct env_op io;
	struct volume *volume;
	struct volume_cut *cut; /* NULL: free */
	struct preserve_job
		*job; /* NULL: shared; else the one that waits until it is in the file */
	struct buf *buf;
	uint64_t epoch;       /* the cut's, when it was taken */
	uint64_t slot, count; /* in the file; those given out */
	unsigned reading;     /* jobs that do not have their content yet */
	bool closed;          /* takes no more: it is written when all is read */
};

struct preserve_job {
	struct reader reader;
	struct env_op io;
	struct volume_cut *cut;
	struct volume *volume;
	struct preserve_buf *buf; /* NULL: the job is free */
	uint64_t epoch;           /* the cut's, when the job began */
	uint64_t first, count;    /* units */
	uint64_t slot;
};

/* What copy-before-write copies: as little as a write may overwrite. */
#define PRESERVE_UNIT 4096u

struct preserve_slot {
	uint64_t unit_plus_1; /* 0: empty */
	uint64_t slot;
};

struct volume_cut {
	struct volume *volume;
	enum volume_consumer consumer;
	uint64_t epoch; /* how many cuts this was: jobs of an earlier one tell themselves apart */
	bool active, bits_only, is_lost;
	bool is_live; /* blocks are read as they are now; nothing is preserved */
	bool patient; /* begun live: where the preserve area ends, writers wait; never lost */
	bool preserve_failed;
	uint64_t data_start, data_end; /* of the backing: was allocated when it was looked at */
	uint64_t wanted;               /* a block a writer waits for, or DIRTY_NONE */
	bool failed_covered; /* begun after the last failed write: its content tells the truth */
	int lost_error;
	uint64_t lsn, bytes;
	struct id128 snapshot; /* that the store's map is relative to, when it began */
	struct dirty_map sealed;
	struct dirty_map safe;   /* read, or (one unit large) preserved: a mutation may go ahead */
	struct dirty_map staged; /* of sealed: the consumer has their content; patient only */
	void (*lost)(void *context, int error);
	void *context;
	struct env_task lost_task;
	unsigned reads; /* cut_reads under way */

	/* The preserve file: slots of one unit each, and the index unit -> slot. */
	char *path;
	struct env_file *file;
	struct preserve_slot *index;
	uint64_t index_size, index_count; /* size: a power of two */
	bool index_kept;                  /* braced: it is emptied, not freed */
	uint64_t next_slot, used_slots;   /* used: by this cut */
	uint64_t file_slots;              /* of the file: beyond them is nothing */
	struct env_op shrink_io;
	uint64_t shrink_slot; /* shrinking: what is being emptied, up to file_slots */
	bool shrinking;
	unsigned jobs;                /* and writes to the file, for this cut or an earlier one */
	struct preserve_buf *filling; /* that takes more, or NULL */
};

/* ---- maps ----------------------------------------------------------------------------------- */

struct page_batch { /* a run of pages on its way into "maps" */
	struct env_op io;
	struct metadata_page_wire *pages; /* BATCH_PAGES of them */
};

struct consumer {
	struct dirty_map active;
	uint64_t both;                  /* blocks active and sealed */
	uint64_t page_count, page_base; /* in "maps" */
	uint64_t regions_per_page;
	uint64_t *stale;         /* per page: is to be stored */
	uint64_t *stored_any;    /* per page: the stored one may have bits */
	uint64_t *storing;       /* per page: part of the checkpoint under way */
	uint64_t *uncovered;     /* per region: has bits that only its intent bit covers */
	uint64_t *covering;      /* per region: those are in the pages on their way */
	bool all_dirty;          /* the superblock says the stored map counts as all ones */
	uint64_t dirty_since_ns; /* when a block was marked in an empty map last */
};

struct intent {
	uint64_t regions, page_count;
	uint64_t *active;       /* set; every page written from now on includes it */
	uint64_t *disk;         /* surely set on disk */
	uint64_t *recent;       /* issued or landed since the checkpoint or tick before */
	uint64_t *candidate;    /* of the checkpoint under way */
	uint64_t *page_dirty;   /* per page: active bits that are not on disk */
	uint64_t *page_loose;   /* per page: bits on disk that are not active */
	uint64_t count;         /* active */
	uint64_t next_in_order; /* region that goes on where the last window ended */
	uint32_t window;
	struct op_queue waiting;
	struct page_batch batch;
	uint64_t batch_first, batch_count;
	uint64_t errors_before; /* maps_errors when the batch began */
	bool writing;
	bool tighten; /* write loose pages too */
};

enum checkpoint_step { CHECKPOINT_IDLE, CHECKPOINT_BACKING, CHECKPOINT_PAGES, CHECKPOINT_SYNC };

struct checkpoint {
	enum checkpoint_step step;
	bool retire; /* the backing's fsync succeeded: candidates may be retired */
	unsigned consumer;
	uint64_t cursor;        /* page */
	uint64_t errors_before; /* maps_errors when its pages began to be written */
	struct page_batch batch;
};

/* ---- superblock ------------------------------------------------------------------------------ */

struct super {
	struct env_file *file;
	uint64_t sequence; /* of the last slot written or being written */
	uint64_t slot_sequence[METADATA_SUPER_SLOTS]; /* durable content; 0: none */
	int writing;                                  /* slot, or -1 */
	bool again;                                   /* something changed while writing */
	struct env_op io;
	struct metadata_super_wire *wire; /* a slot: of the asynchronous write */
	uint64_t writing_sequence, writing_lsn;
	uint64_t
		bump_sequence; /* the bump is durable with a slot from this one on; 0: no bump waits */
	uint64_t lsn_limit;    /* LSNs up to this are reserved durably */
	uint64_t lsn_goal;     /* somebody waits for this one to be */
	struct op_queue waiting;
};

/* ---- filling a disk -------------------------------------------------------------------------- */

#define FETCH_BLOCK_BYTES VOLUME_PEER_BLOCK_BYTES /* a bit of the map */
#define FETCH_BYTES       65536u                  /* fetched together for a reader */
#define FETCH_FILL_BYTES  (256u * 1024)           /* in the background, from the peer */
#define FETCH_STORE_BYTES BUF_SIZE_MAX            /* ... from a store */
#define FETCHES           12u
#define FETCHES_FILL      4u /* the last of them, for the background */

struct fetch {
	struct op op; /* its lock keeps writes out from the question to the local write */
	struct buf *buf;
	uint64_t start, end, begun_ns;
	bool busy;
};

enum hydrate_store { STORE_IDLE, STORE_BACKING, STORE_PAGES, STORE_SYNC, STORE_FINISH };

struct hydrate {
	bool active;     /* the disk is being filled */
	bool from_store; /* ... from a snapshot: the superblock says so, also while there is no disk */
	bool refined;    /* ... and the map was compared with what the snapshot has */
	struct volume_source source;  /* ... which one */
	struct volume_origin *origin; /* ... who reads it; NULL: away */
	bool held;                    /* ... and nothing is fetched but what is wanted */
	bool keep_intents; /* a write that this disk may have and the peer not was given up */
	bool unreadable;   /* said already: the origin cannot read a block */
	struct dirty_map missing;
	uint64_t page_count;
	uint64_t *stale;  /* per page: the file has it otherwise */
	uint64_t *fresh;  /* per page: the file has none, which counts as all ones */
	uint64_t *urgent; /* per page: somebody waits for it to be stored */
	uint64_t *second; /* per page: it is stored next in the file's second half */
	uint64_t
		*filed; /* the bits as the file has them, a page behind the other; but fresh ones */
	size_t filed_bytes;
	struct op_queue wait_stored; /* writes that landed on blocks which the file names */
	struct env_file *file;
	char *path;
	struct fetch fetches[FETCHES];
	struct buf_pool *pool;
	struct op_queue wait; /* reads of what is missing */
	uint64_t cursor, next_fill_ns;
	uint64_t total_bytes, started_ns; /* missing when it was begun, or went on after a start */
	uint64_t careful_start, careful_end; /* a snapshot does not give all of this */
	struct env_timer fill_timer, store_timer;
	struct env_task pump_task;
	enum hydrate_store store;
	struct page_batch batch;
	uint64_t batch_numbers[BATCH_PAGES];
	unsigned batch_count, batch_at;
};

enum capability { CAP_UNKNOWN, CAP_YES, CAP_NO };

struct token {
	struct op *op; /* NULL: free or released */
	uint32_t generation;
	uint32_t next_free;
};

struct volume {
	struct block block;
	struct env *env;
	char *copy_path; /* of what is kept while the backing is a mixture */
	bool has_copy;
	char *name, *backing_path, *state_dir, *super_path;
	char *maps_paths[METADATA_MAPS_FILES];
	unsigned maps_number; /* which of them is in use */
	struct grow *grow;    /* grow.c: under way, or NULL */
	bool maps_held;       /* no write of pages begins: the file is about to be another one */
	/* How often the file could not be written. The error of whatever was written in the back is told once,
	 * to whoever asks first: so a batch counts as failed if anyone met an error since it began. */
	uint64_t maps_errors;
	char description[200]; /* a line of the config fits */
	char failure[256];     /* why FAILED, or why FLUSH fails; "" */
	struct volume_config config;
	uint64_t size_bytes;
	uint32_t align_bytes;                 /* of mutations: >= 512 */
	uint32_t io_align_bytes;              /* of the backing */
	struct volume_state state;            /* lsn included */
	enum volume_disk_state disk_recorded; /* in the superblock while state.disk is FAILED */
	bool detached;                        /* see METADATA_STORE_DETACHED */
	bool applied_only;                    /* see METADATA_INTENT_APPLIED */
	bool in_sync, bumped;
	bool is_braced, braced[VOLUME_CONSUMERS]; /* see volume_brace(); with these consumers */
	bool closing, crashed;
	unsigned suspended; /* by whom: enum volume_suspender */

	struct env_file *backing, *maps;
	struct super super;
	struct intent intent;
	struct checkpoint checkpoint;
	struct env_timer tick;
	struct consumer consumers[VOLUME_CONSUMERS];
	struct volume_cut cuts[VOLUME_CONSUMERS];
	uint64_t failed_start, failed_end; /* where a local write failed; empty: none */

	struct range_table ranges;
	struct reader *readers;
	struct op_queue held;        /* suspended: at the door */
	struct op_queue wait_resume; /* likewise, at the gate with their locks */
	bool resuming;               /* both are being emptied */
	struct op_queue wait_bounce, wait_job, wait_tap;
	struct op_queue wait_cut;        /* preserve area full: until their blocks are read */
	struct op_queue wait_checkpoint; /* far too many intents */
	struct op_queue deferred;        /* to be completed with op->error in a later turn */
	struct env_task deferred_task;
	struct preserve_job jobs[PRESERVE_JOBS];
	struct preserve_buf preserve_bufs[PRESERVE_BUFS];
	struct buf_pool *bounce_pool; /* of mutations: the tap may keep them */
	struct buf_pool *local_pool;  /* of reads and preserving */
	struct buf_waiter bounce_waiter, read_waiter;
	bool bounce_waiting, read_waiting;
	struct op_queue wait_read;
	const uint8_t *zeroes; /* BUF_SIZE_MAX of them, read-only */
	enum capability punch_cap, zero_cap;

	struct env_op sync_io;
	bool sync_running, sync_checkpoint_now, sync_checkpoint_next, sync_grow_now, sync_grow_next;
	struct op_queue sync_now, sync_next;
	int sync_error; /* an fsync failed: what was acknowledged may be gone, no FLUSH succeeds */

	enum volume_lean lean;
	struct hydrate hydrate;
	struct op_queue wait_settled; /* failed locally while SETTLING */
	struct op_queue wait_origin;  /* reads of what is elsewhere, which is away */
	uint64_t local_io;            /* of requests, on the present backing */
	uint64_t remote_ops;          /* issued while the volume leans, and not done */

	struct volume_tap *tap;
	struct token *tokens;
	uint32_t tokens_used; /* of these some are free again, the others never were taken */
	uint32_t token_free;  /* 1-based, of those that are free again; 0: none */

	uint64_t ops; /* operations of all kinds under way */
	struct volume_stats stats;
	struct latency latency; /* of clients' writes */
	uint64_t last_log_ns;
	void (*closed)(void *context);
	void *closed_context;
	struct env_task close_task;
};

static inline struct block_request *request_of(struct op *op)
{
	return (struct block_request *)((char *)op - offsetof(struct block_request, priv));
}
static inline struct volume_apply *apply_of(struct op *op)
{
	return (struct volume_apply *)((char *)op - offsetof(struct volume_apply, priv));
}
static inline struct volume *volume_of_block(struct block *block)
{
	return (struct volume *)((char *)block - offsetof(struct volume, block));
}

/* A change of the content that begins here, not at the peer: intent, dirty bits, a generation. */
static inline bool op_is_own(const struct op *op)
{
	return op->owner == OWNER_CLIENT || op->owner == OWNER_HOLD;
}

static inline void queue_push(struct op_queue *queue, struct op *op)
{
	op->next = NULL;
	if (queue->last != NULL)
		queue->last->next = op;
	else
		queue->first = op;
	queue->last = op;
}

static inline struct op *queue_pop(struct op_queue *queue)
{
	struct op *op = queue->first;

	if (op != NULL) {
		queue->first = op->next;
		if (queue->first == NULL)
			queue->last = NULL;
	}
	return op;
}

static inline struct op_queue queue_take(struct op_queue *queue)
{
	struct op_queue all = *queue;

	*queue = (struct op_queue){0};
	return all;
}

static inline uint64_t block_of(enum volume_consumer consumer, uint64_t offset)
{
	return offset >> (consumer == VOLUME_PEER ? 12 : 16);
}
static inline uint64_t round_down(uint64_t value, uint32_t align)
{
	return value & ~((uint64_t)align - 1);
}
static inline uint64_t round_up(uint64_t value, uint32_t align)
{
	return (value + align - 1) & ~((uint64_t)align - 1);
}

/* generation.c */
/* What is written from now on belongs to a new generation, in memory. */
void generation_begin(struct volume *volume);

/* restored.c */
/* 0, or -EBUSY and why: a restore onto the backing was not completed. */
int restored_refuse(struct volume *volume, char *why, size_t why_size);
/* 1: a restore wrote onto the backing; the state in memory says so now, for maps_load() and
 * super_store(). 0: none did. -errno and why: who knows. */
int restored_look(struct volume *volume, char *why, size_t why_size);
/* Takes the mark away, durably. */
int restored_forget(struct volume *volume);

/* volume.c */
/* Opens the backing; create: a missing regular file is made. On failure -errno and why. */
int backing_open(struct volume *volume, bool create, char *why, size_t why_size);
void volume_log_error(struct volume *volume, const char *what, uint64_t offset, int error);
/* An operation of any kind ended; the last one lets a close go on. */
void op_ended(struct volume *volume);

/* copy.c */
void copy_look(struct volume *volume); /* whether an earlier run left one */

/* super.c */
int super_create(struct volume *volume);
/* -ENOENT: there is none; -EINVAL and why: it is damaged. */
int super_load(struct volume *volume, unsigned *flags, char *why, size_t why_size);
/* Durable before it returns. flags: METADATA_CREATING, METADATA_CLEAN or 0. */
int super_store(struct volume *volume, unsigned flags);
void super_store_later(struct volume *volume);

/* maps.c */
int maps_init(struct volume *volume); /* memory */
void maps_brace(struct volume *volume);
void maps_free(struct volume *volume);
int maps_create(struct volume *volume, bool all_dirty);
static inline const char *maps_path(const struct volume *volume)
{
	return volume->maps_paths[volume->maps_number];
}
/* Takes over what `from` has, which is smaller. */
void maps_copy(struct volume *volume, const struct volume *from);
/* Makes the file of that number for the maps as they are, intents included, durably. The volume uses it. */
int maps_create_beside(struct volume *volume, unsigned number);
int maps_load(struct volume *volume, char *why, size_t why_size);
/* Everything that is not stored yet; then, if the backing is durable, no intents. Blocking. */
int maps_store_all(struct volume *volume, bool drop_intents);
/* The content of a page of the consumer's map as of now. */
void maps_page_words(const struct volume *volume, enum volume_consumer consumer, uint64_t page,
		     uint64_t words[METADATA_PAGE_WORDS]);
/* Marks bytes dirty. covered_by_intent: a mutation, whose region has an intent bit. */
void maps_mark(struct volume *volume, enum volume_consumer consumer, uint64_t offset,
	       uint64_t length, bool covered_by_intent);
void maps_all_stale(struct volume *volume, enum volume_consumer consumer);
/* Pages whose stored bits may be more than is dirty now are to be stored again. */
void maps_loosened(struct volume *volume, enum volume_consumer consumer);
/* Likewise those of the given blocks. */
void maps_loosened_range(struct volume *volume, enum volume_consumer consumer, uint64_t first,
			 uint64_t count);

/* intent.c */
/* True if every region of the range has a durable intent bit. Else the op was queued. */
bool intent_ready(struct volume *volume, struct op *op);
void intent_touch(struct volume *volume, uint64_t offset, uint64_t length);
/* Whatever lies in a region with an intent bit is dirty for all. */
void intent_mark_active(struct volume *volume);
void checkpoint_synced(struct volume *volume, int error);
void checkpoint_want(struct volume *volume); /* arms the tick */
void tick_init(struct volume *volume);
bool intent_idle(const struct volume *volume);
/* The maps are no longer held. */
void intent_go_on(struct volume *volume);
void intent_check(const struct volume *volume);

/* request.c */
/* Starts a mutation whose kind, owner, pos, end and flags are set. */
void op_start(struct op *op);
void op_lock(struct op *op);
void op_lock_granted(struct op *op);
/* A part that failed locally, and that the peer has (0), or not. */
void op_retry(struct op *op, int error);
void op_unlock(struct op *op);
/* What missing_wait_stored() waited for. */
void op_stored(struct op *op, int error);
void op_gate(struct op *op);
void op_gate_all(struct op_queue queue);
void op_synced(struct op *op, int error);
/* done() in a later turn. */
void op_complete_later(struct op *op, int error);
void op_complete(struct op *op, int error);
void reader_start(struct volume *volume, struct reader *reader);
void reader_end(struct volume *volume, struct reader *reader);
/* Who waits for a tap that is gone ends with error. */
void tap_fail_all(struct volume *volume, int error);
void request_init(struct volume *volume);

/* sync.c */
void sync_join(struct op *op);
void sync_join_checkpoint(struct volume *volume);
void sync_join_grow(struct volume *volume);
void sync_failed(struct volume *volume, int error); /* no FLUSH succeeds from now on */

/* lean.c */
/* The content is at the peer as well as here, or only there. */
static inline bool leaning(const struct volume *volume)
{
	return volume->lean >= VOLUME_LEAN_DISKLESS;
}
/* Whether clients are served: by the disk, or by what stands in for it. */
bool volume_serves(const struct volume *volume);
/* A request's local I/O failed. True: the peer takes over, or is about to (SETTLING): see op_failed().
 * False: its client gets the error, and volume_failure() names the first such. */
bool disk_failed(struct volume *volume, const char *what, uint64_t offset, int error);
/* Of what op_read() gives: not the disk's. */
static inline bool is_remote_error(int error)
{
	return error == -EREMOTEIO || error == -ESHUTDOWN;
}
/* The disk takes I/O, and an fsync of it means something. */
static inline bool disk_usable(const struct volume *volume)
{
	return volume->backing != NULL && volume->sync_error == 0 &&
	       volume->lean != VOLUME_LEAN_DISKLESS;
}
/* The op waits for SETTLING to end, or goes on at once. */
void op_failed(struct op *op, enum op_failed what, int error);
/* Reads where the content is: the backing, or the origin for what the disk lacks. done is never called
 * from inside. */
void op_read(struct op *op, uint8_t *data, size_t length, uint64_t offset,
	     void (*done)(struct op *op, int error));
uint32_t op_read_align(const struct volume *volume);
void lean_tap_changed(struct volume *volume);
/* There is an origin (again) for reads that wait for it. */
void origin_ask_all(struct op_queue waiting);
void lean_fail_waiting(struct volume *volume, int error);
/* What a secondary applies met an error of the disk: FAILED. */
void apply_failed(struct volume *volume, const char *what, uint64_t offset, int error);
void lean_check(const struct volume *volume);
/* At open: the superblock says that the content is at the peer. */
void lean_recover(struct volume *volume);

/* hydrate.c */
void hydrate_init(struct volume *volume);
void hydrate_release(struct volume *volume);
bool hydrate_is_missing(const struct volume *volume, uint64_t offset, uint64_t length);
/* True: the read was queued until what it wants is here. */
bool hydrate_wait(struct op *op);
void hydrate_fetch_granted(struct op *op);
/* All blocks wholly within the range are on the disk. */
void hydrate_landed(struct volume *volume, uint64_t offset, uint64_t length);
/* The new disk failed as well, or the volume is closed. */
void hydrate_stop(struct volume *volume);
int hydrate_recover(struct volume *volume, char *why, size_t why_size);
void hydrate_pump_later(struct volume *volume);
void hydrate_count(struct volume *volume); /* the progress begins here */
void hydrate_stop_timers(struct volume *volume);
/* An fsync of the disk covered all that was fetched: UPTODATE, if nothing came in between. */
void hydrate_finish(struct volume *volume);
bool hydrate_fetching(const struct volume *volume);
/* Who waits longer than hydrate_timeout_ns gets an error. */
void hydrate_expire(struct volume *volume);

/* missing.c */
void missing_init(struct volume *volume);
int missing_make_memory(struct volume *volume);
void missing_free(struct volume *volume);
/* A new file, durable, that names everything. */
int missing_make_file(struct volume *volume);
/* What the file names is missing. */
int missing_load(struct volume *volume);
/* The first missing run in [from, to). False: there is none. */
bool missing_run(const struct volume *volume, uint64_t from, uint64_t to, uint64_t *start,
		 uint64_t *end);
/* Begins to bring the map to the file; finish: only the fsync of the disk, and hydrate_finish() then. */
void missing_store(struct volume *volume, bool finish);
/* Blocking: what of it the file has otherwise. The disk was synced. */
int hydrate_store_all(struct volume *volume);
/* True: the write's piece has landed where the file still names blocks; it waits, then op_stored(). */
bool missing_wait_stored(struct op *op);
/* Those that need not wait any more go on; error: all of them do, with it. */
void missing_release(struct volume *volume, int error);

/* instant.c */
void instant_filled(struct volume *volume);
void instant_given_up(struct volume *volume); /* the superblock says so */

/* cut.c */
/* The content of cuts under way can no longer be had. */
void cut_lose_all(struct volume *volume, int error);
/* True if no block of the op's piece has to be preserved first. Else the op was queued. */
bool cut_ready(struct volume *volume, struct op *op);
void cut_init(struct volume *volume);
void cut_brace(struct volume_cut *cut);
void cut_release(struct volume *volume);
void cut_check(const struct volume *volume);

/* preserve.c */
/* Unless it is in use nothing of the file is needed any more: its space is given back, in the background. */
void preserve_shrink(struct volume_cut *cut);
/* Slots that may be given out now; 0: an op that wants one waits with those that wait for a job. */
uint64_t preserve_room(const struct volume_cut *cut);
void preserve_give(struct volume_cut *cut, uint64_t count); /* those from next_slot on */
void preserve_init(struct volume_cut *cut);
int preserve_open(struct volume_cut *cut);
/* Once the volume is open: what a process left that ended in the middle of a cut is given back. */
void preserve_recover(struct volume_cut *cut);
void preserve_close(struct volume_cut *cut);
void preserve_check(const struct volume_cut *cut);

/* grow.c */
void grow_synced(struct volume *volume, int error);
void grow_look(struct volume *volume); /* at open: what an earlier run left */

/* hold.c */
void hold_granted(struct op *op);
void hold_written(struct op *op, int error);
/* At the gate: true if the op cannot be issued and was completed. */
bool hold_refused(struct op *op);

/* export.c */
void export_init(struct volume *volume);
void export_resume(struct volume *volume);
void read_start(struct op *op);
/* A read that failed locally: the peer may have it (0). */
void read_retry(struct op *op, int error);

#endif
