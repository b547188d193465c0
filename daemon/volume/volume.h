/* SPDX-License-Identifier: Apache-2.0 */
/*
 * volume: one replicated block device. Owns the write path, the write order (LSNs), the
 * write-intent map, one dirty map per consumer, cuts, and the persisted state.
 *
 * The write path of a request, in this order:
 *   receive -> admit (bounds, role, suspended) -> wait for overlapping writes in flight
 *   -> preserve sealed blocks that a cut still needs (copy before write)
 *   -> make the region's intent bit durable -> ISSUE: takes the next LSN, sets the dirty bits,
 *   hands the write to the peer tap and to the backing, in the same loop turn
 *   -> complete when the backing is done and, if the tap holds it, volume_tap_done() was called.
 * The order of ISSUE is the volume's one write order; the tap sees every write in that order.
 * A cut falls between two ISSUEs: it contains exactly the writes with lsn <= cut lsn.
 *
 * What holds at any instant, and survives any crash: for each consumer, every block whose content
 * the consumer may lack is marked in memory, and on disk either in that consumer's stored dirty
 * map or by its region's intent bit (promise 3). After a crash all blocks of regions with an
 * intent bit, and of any stored page whose checksum is wrong, count as dirty.
 */
#ifndef OFFSITE_VOLUME_H
#define OFFSITE_VOLUME_H

#include "daemon/block.h"
#include "daemon/io/env.h"
#include "daemon/volume/latency.h"
#include "protocol/wire.h"

struct volume;

/* Who follows the write order. */
enum volume_consumer {
	VOLUME_PEER,  /* dirty map granularity 4 KiB */
	VOLUME_STORE, /* dirty map granularity 64 KiB: the chunk */
	VOLUME_CONSUMERS,
};
#define VOLUME_PEER_BLOCK_BYTES  4096u
#define VOLUME_STORE_BLOCK_BYTES 65536u
#define VOLUME_REGION_BYTES      (1024u * 1024u) /* one intent bit */
uint32_t volume_consumer_block_bytes(enum volume_consumer consumer);

enum volume_role { VOLUME_SECONDARY, VOLUME_PRIMARY };

/* What the backing's content is worth. Persisted.
 *
 *  state         meaning                                         allowed next
 *  UPTODATE      a state the primary had (or is)                 INCONSISTENT, OUTDATED, FAILED
 *  OUTDATED      consistent, known to be behind the peer         UPTODATE, INCONSISTENT, FAILED
 *  INCONSISTENT  a mixture (first sync, restore, in-place        UPTODATE, OUTDATED, FAILED
 *                catch-up under way); never served or promoted
 *  DISKLESS      primary: the backing failed; the content is at    INCONSISTENT, FAILED
 *                the peer and is served from there (see below)
 *  FAILED        the backing is missing or gave an I/O error     INCONSISTENT, UPTODATE
 *                (not persisted: found anew at each open)
 */
enum volume_disk_state {
	VOLUME_DISK_UPTODATE,
	VOLUME_DISK_OUTDATED,
	VOLUME_DISK_INCONSISTENT,
	VOLUME_DISK_FAILED,
	VOLUME_DISK_DISKLESS,
};
const char *volume_role_name(enum volume_role role);              /* "primary", "secondary" */
const char *volume_disk_state_name(enum volume_disk_state state); /* "uptodate", ... */

/* Generation identifiers, as in DRBD: what history the content belongs to. Persisted.
 * current: changed by the first write after the peer was lost or never there ("bump").
 * base: the generation the PEER dirty map is relative to; zero while peer and self agree. */
#define VOLUME_HISTORY 8
struct volume_generations {
	struct id128 current; /* zero: never written, never synced ("blank") */
	struct id128 base;
	struct id128 history[VOLUME_HISTORY]; /* newest first; zero: empty */
};

struct volume_config {
	const char *name;
	const char *backing;         /* path of a block device or regular file */
	const char *state_dir;       /* this volume's own directory; made if missing */
	const char *description;     /* one line for clients; NULL: "offsite volume NAME" */
	uint64_t size_bytes;         /* multiple of 4096; 0: the backing's present size. A missing
				      * regular file is created (sparse) at first start only */
	enum volume_role role;       /* at first start; the persisted role counts afterwards */
	uint32_t block_min_bytes;    /* 1, 512 or 4096; 0: 1 */
	uint64_t preserve_max_bytes; /* per cut; at the limit the cut is given up. 0: 1 GiB */
	uint32_t intent_max_regions; /* regions with an intent bit at a time; 0: 4096 */
	bool detach_on_error;        /* on-io-error = detach */
	bool store_follows;          /* what volume_apply() changes is marked for the store, too */
	uint64_t hydrate_max_bytes_per_second; /* filling in the background; 0: no limit */
	uint64_t hydrate_timeout_ns; /* how long a request waits for what is in a snapshot that
				      * cannot be read now, before it fails; 0: for ever */
	/* volume_set_state() gave it another uuid: it took over its peer's. May be NULL; nothing of the volume
	 * is to be called from within. */
	void (*uuid_changed)(void *context);
	void *uuid_context;
};

/* Opens, and at first start creates, a volume. On failure -errno and one line in why
 * (e.g. "volume pgdata: /srv/pg.img: in use by another process"). A backing that is missing, too
 * small or unreadable is no failure once metadata exists: the volume opens with disk state FAILED.
 * One that a restore left half done is a failure (-EBUSY): see volume_restore_mark(). Recovers the dirty maps. Blocking; start-up only. */
int volume_open(struct env *env, const struct volume_config *config, struct volume **volume,
		char *why, size_t why_size);

/* Where a restore onto a backing that no volume has open leaves its mark (by free()), NULL: no memory.
 * what: "restoring", durable before the first byte: the volume is refused; "restored", durable before
 * that one goes: the next volume_open() finds everything changed (both maps, snapshot, generation;
 * UPTODATE), durably, and removes it. Beside the backing, or for what lies below /dev in
 * /var/lib/offsite; by the name that the configuration uses. */
char *volume_restore_mark(const char *backing, const char *what);

/* Waits for requests in flight, stores maps and the superblock cleanly, then calls closed().
 * The tap must be removed and cuts finished before. */
void volume_close(struct volume *volume, void (*closed)(void *context), void *context);

/* From now on the volume lies under a filesystem of this host, whose dirty pages may be all of the memory there is:
 * what its writes need has its memory, or they wait for some of that. With 128 KiB for each GiB of volume and
 * consumer peer, 8 for store (a quarter for one that it has not), and about 20 MiB, 9 more for a consumer's preserve
 * index. For the rest of its life. */
void volume_brace(struct volume *volume, bool peer, bool store);

const char *volume_name(const struct volume *volume);
struct env *volume_env(const struct volume *volume);
uint64_t volume_size_bytes(const struct volume *volume);
/* Makes the volume bigger, while it is in use: durable, and the disk reads as zeroes from the old end on,
 * before done(), which is never called from inside. A backing that is a file is grown, a device must have
 * been. Nothing of the new part is marked for the peer, whose own is to read as zeroes, too; snapshots find
 * it out. Refused (done with -errno and why) while a snapshot or a catch-up is under way, or the disk has
 * not all of the content. -EBUSY and -EAGAIN pass by themselves. A crash leaves the old or the new size. */
void volume_grow(struct volume *volume, uint64_t size_bytes,
		 void (*done)(void *context, int error, const char *why), void *context);
/* What it would be refused for now: 0, or -errno and why. */
int volume_grow_check(const struct volume *volume, uint64_t size_bytes, char *why, size_t why_size);
const char *volume_state_dir(const struct volume *volume);
/* Why the disk is FAILED, or why FLUSH fails since an fsync did, or the first error of the disk that a
 * client was given; "" if all is well. */
const char *volume_failure(const struct volume *volume);
/* An fsync of the disk failed: nothing can be made durable there until the volume is opened anew, and
 * volume_failure() says so. */
bool volume_flush_fails(const struct volume *volume);
/* The backing was there when the volume was opened: if the disk FAILED since, its content may be whole still. */
bool volume_has_backing(const struct volume *volume);
/* The export for NBD clients. open() is refused unless primary and UPTODATE. */
struct block *volume_block(struct volume *volume);

/* ---- state ------------------------------------------------------------------------------- */

/* What a secondary knows of the primary it follows: enough to say what its promotion would lose.
 * All zero when this node was itself the last primary it knows of. */
struct volume_contact {
	uint64_t heard_ns;      /* realtime; the last word from it */
	uint64_t heard_lsn;     /* the last LSN it had issued then, as far as it said */
	uint64_t received_lsn;  /* the last of them that came here */
	uint64_t missing_bytes; /* written there, and known not to have come */
	uint64_t behind_ns;     /* realtime; since when something is missing, 0: nothing is */
	bool streaming;         /* its stream was received then */
};

struct volume_state {
	struct id128 uuid; /* the same on both nodes and in the store; a volume that never had a
			    * peer, store or write may adopt the other's */
	enum volume_role role;
	enum volume_disk_state disk;
	struct volume_generations generations;
	uint64_t lsn;          /* last issued (primary) or applied (secondary) */
	uint64_t outdated_ns;  /* realtime; since when OUTDATED, else 0 */
	struct id128 snapshot; /* the newest snapshot the STORE map is relative to; zero: none */
	uint64_t
		snapshot_sequence; /* highest sequence number ever used in the store, as far as known */
	struct id128 writer;       /* as which this node claims in the store; zero: it never did */
	struct volume_contact contact;
	/* Primary: clients wait while the peer does not stream (on-peer-loss = suspend). */
	bool peer_needed;
	/* A committed redo log is being applied to the backing, which is a mixture, or lacks what was
	 * acknowledged, until that is done. Found at start without the log: the content is lost. */
	bool applying;
};
void volume_get_state(const struct volume *volume, struct volume_state *state);
/* Persists before it returns (blocking, durable). -errno: nothing changed. The dirty maps and lsn
 * are not touched; the caller sees to allowed transitions (asserted by the table above). */
int volume_set_state(struct volume *volume, const struct volume_state *state);

/* All that the backing has been given is durable there before it returns (blocking). */
int volume_sync_backing(struct volume *volume);

/* Takes the contact over, and to the disk in a while: nothing waits for it. */
void volume_note_contact(struct volume *volume, const struct volume_contact *contact);

/* What a first write without a synchronised peer does: before a write is issued while `in_sync` is
 * false and no bump was made since it became false, the generation is bumped durably
 * (base = base or old current; history; new random current). Likewise a client's flush while anything is marked
 * for the peer. Replication tells: */
void volume_set_peer_in_sync(struct volume *volume, bool in_sync);

/* Marks everything dirty for consumer (blank peer, unknown base). Durable before it returns. With
 * allocated_only, only what the backing reports as allocated (the other side is known blank). */
int volume_mark_all(struct volume *volume, enum volume_consumer consumer, bool allocated_only);
/* Marks one range dirty for consumer, durably before done (the other side's map being merged in). */
int volume_mark(struct volume *volume, enum volume_consumer consumer, uint64_t offset,
		uint64_t length);
/* Forgets the consumer's dirty map (a sync target that became equal). Not while a cut exists. */
int volume_clear_all(struct volume *volume, enum volume_consumer consumer);
/* Bytes dirty for consumer now (active and sealed). */
uint64_t volume_dirty_bytes(const struct volume *volume, enum volume_consumer consumer);
/* When the map last became other than empty (monotonic); 0: not since the volume was opened. */
uint64_t volume_dirty_since_ns(const struct volume *volume, enum volume_consumer consumer);
/* The next dirty run (active or sealed) at or after offset: false if there is none. */
bool volume_dirty_next(const struct volume *volume, enum volume_consumer consumer, uint64_t offset,
		       uint64_t *start, uint64_t *length);

/* Who wants requests held: they are as long as one of them does. */
enum volume_suspender {
	VOLUME_SUSPEND_OPERATOR = 1,
	VOLUME_SUSPEND_PEER = 2,     /* on-peer-loss = suspend, and the peer does not stream */
	VOLUME_SUSPEND_START = 8,    /* whether the peer was promoted is not known yet */
	VOLUME_SUSPEND_HISTORY = 4,  /* a new generation cannot be made durable */
	VOLUME_SUSPEND_SETTLE = 32,  /* the disk failed a moment ago: the peer is to take over */
	VOLUME_SUSPEND_FILLED = 128, /* a replaced disk has everything: until that is durable */
	VOLUME_SUSPEND_ORIGIN = 64,  /* the content is at the peer, and the peer is away */
};
/* New requests from clients are held (not failed) until resumed; requests issued go on. */
void volume_suspend(struct volume *volume, enum volume_suspender who, bool suspend);
unsigned volume_suspended(const struct volume *volume); /* by whom: enum volume_suspender */
/* Requests that are held, or wait for the tap without a tap, end with error: the clients go. */
void volume_fail_held(struct volume *volume, int error);

/* ---- origins: where content is that the local disk lacks --------------------------------------- */

/* One question for content, in the caller's memory. */
struct volume_origin_read {
	uint64_t offset_bytes; /* multiples of 512 */
	uint32_t length_bytes; /* 1..BUF_SIZE_MAX */
	uint8_t *data;
	/* Never from inside the call. 0; -EIO: the origin cannot read it; -ENOTCONN: the origin is
	 * gone for now, to be asked again when there is one. */
	void (*done)(struct volume_origin_read *read, int error);
	struct volume_origin_read *next; /* the origin's */
	uint64_t priv[7];                /* the origin's */
};

/*
 * A primary whose disk fails while an up-to-date peer follows the stream, with on-io-error = detach,
 * leans on the peer:
 *
 *  lean        meaning                                                       next
 *  NO          the disk has the content                                      SETTLING, DISKLESS
 *  SETTLING    the disk failed; until the peer has all that was issued       DISKLESS, NO
 *              so far durably, requests are held
 *  DISKLESS    reads are answered by the peer; writes go to it alone and     HYDRATING
 *              are complete when they are durable there. Persisted before
 *              the first completion that the disk lacks
 *  HYDRATING   a new disk is filled; what is missing is read at the peer,    NO, DISKLESS
 *              writes go to both and are complete when durable there
 *
 * While it leans and the tap is gone, requests are held (VOLUME_SUSPEND_ORIGIN); those under way that the
 * peer has not carried out are put to the next tap again. After a restart it leans again.
 */
enum volume_lean {
	VOLUME_LEAN_NO,
	VOLUME_LEAN_SETTLING,
	VOLUME_LEAN_DISKLESS,
	VOLUME_LEAN_HYDRATING
};
enum volume_lean volume_lean(const struct volume *volume);
/* The content is at the peer: the answer to a request is complete only when it is durable there. */
bool volume_leans(const struct volume *volume);
/* A FAILED primary is to lean on its peer, by the operator's word: durable before it returns. Held until a
 * tap is set. */
int volume_lean_on_peer(struct volume *volume, char *why, size_t why_size);
/* Opens a new backing (creating a missing regular file) for a volume that is DISKLESS with a tap, and
 * begins to fill it. It goes on by itself, over restarts, until the disk is UPTODATE. -EBUSY: I/O on the
 * old one has not ended; -ENOTCONN: no tap. */
int volume_hydrate(struct volume *volume, char *why, size_t why_size);

/* ---- filling the disk from a snapshot, in use ---------------------------------------------------- */

/* Which one. The superblock keeps it for as long as the disk is being filled, and while it is pinned. */
struct volume_source {
	struct id128 volume; /* whose snapshot it is: a uuid */
	struct id128 snapshot;
	uint64_t sequence;
	bool pinned; /* for this; to be unpinned when it is over */
};

/* Whoever reads the snapshot. */
struct volume_origin {
	/* As volume_tap.read. -EIO: it is not to be had now, whoever wants it gets the error. */
	void (*read)(struct volume_origin *origin, struct volume_origin_read *read);
	/* The first run at or after offset that may hold anything but zeroes; false: there is none. */
	bool (*next_data)(struct volume_origin *origin, uint64_t offset, uint64_t *start,
			  uint64_t *end);
	/* filled: the disk has everything, durably. Else the filling was given up, the disk stays
	 * INCONSISTENT. Nothing is asked of the origin any more. */
	void (*over)(struct volume_origin *origin, bool filled);
};

/* Makes the volume one whose content is the snapshot's, and which clients may use from now on: what the disk
 * lacks is read at the origin when it is wanted, and fetched in the background, at most at
 * hydrate_max_bytes_per_second. Durable before it returns; goes on after restarts, when an origin is set.
 * Until it is UPTODATE no content can be cut. What clients write is never overwritten.
 * For a primary without clients and without a tap: else -EBUSY, -EPERM. Its content from before is given up;
 * where the disk is known to be the snapshot but for what was written since, only that is fetched. */
int volume_hydrate_from(struct volume *volume, const struct volume_source *source,
			struct volume_origin *origin, char *why, size_t why_size);
/* After a restart: an origin is there, or (NULL) is away, so that reads of what is missing wait. What was
 * asked of the one before comes to its end. */
void volume_set_origin(struct volume *volume, struct volume_origin *origin);
/* While it is held nothing is fetched in the background of a snapshot, only what is read or written in part: what
 * the disk held stays where nobody wants anything. As it was begun it is not. */
void volume_hold_filling(struct volume *volume, bool held);
/* True: the disk is being filled from a snapshot (also while it has failed). source may be NULL. */
bool volume_source(const struct volume *volume, struct volume_source *source);
/* True: it is over, and the snapshot pinned still; unpinned: it is no more. */
bool volume_source_pinned(const struct volume *volume, struct volume_source *source);
void volume_source_unpinned(struct volume *volume);
/* The config's of those names; 0: no limit, for ever. */
void volume_set_hydrate_rate(struct volume *volume, uint64_t max_bytes_per_second,
			     uint64_t timeout_ns);
/* The content is that snapshot's of this volume, but for what is dirty for the store. */
bool volume_is_snapshot_but(const struct volume *volume, const struct id128 *uuid,
			    const struct id128 *snapshot);
/* Gives it up, durably: the disk stays INCONSISTENT. Nothing if it is not being filled from a snapshot. */
int volume_hydrate_give_up(struct volume *volume);

/* ---- the peer tap: streaming ---------------------------------------------------------------- */

enum volume_mutation_type { VOLUME_WRITE, VOLUME_ZERO, VOLUME_FLUSH };

/* One event of the write order. Lives until its tap work and its local work are both done. */
struct volume_mutation {
	enum volume_mutation_type type; /* a client's TRIM comes as ZERO with punch set */
	bool fua;
	bool punch; /* ZERO: deallocated */
	uint64_t lsn;
	uint64_t offset_bytes, length_bytes; /* multiples of 512 at least; 0 for FLUSH */
	struct buf *buf;                     /* WRITE: content; take a reference to keep it */
};

struct volume_tap {
	/* Called at ISSUE, in LSN order. Returns true if the client's completion waits for
	 * volume_tap_done(token) (protocols B and C; FLUSH and FUA in C), false if not. The
	 * mutation is valid during the call only; buf by its own reference. */
	bool (*issue)(struct volume_tap *tap, const struct volume_mutation *mutation,
		      uint64_t token);
	/* False: the tap's queue is full; writes wait until volume_tap_resume(). */
	bool (*ready)(struct volume_tap *tap);
	/* The volume's disk failed: false if the peer cannot take over. Else volume_settled() is called
	 * when all that was issued is durable there, or is not to be had. Never from inside. */
	bool (*settle)(struct volume_tap *tap);
	/* Content at the peer, behind all that was issued. */
	void (*read)(struct volume_tap *tap, struct volume_origin_read *read);
};
void volume_settled(struct volume *volume, int error);

/* Sets (or with NULL removes) the tap, at this point of the write order. Requests that still wait
 * for volume_tap_done() are released by volume_tap_release_all(). */
void volume_set_tap(struct volume *volume, struct volume_tap *tap);
void volume_tap_done(struct volume *volume, uint64_t token);
/* The peer is lost: nothing waits for it any more (on-peer-loss = continue). */
void volume_tap_release_all(struct volume *volume);
void volume_tap_resume(struct volume *volume);

/* ---- cuts ------------------------------------------------------------------------------------ */

struct volume_cut; /* at most one per consumer */

enum volume_cut_flags {
	/* The blocks sealed were streamed already; only the bits are sealed, nothing is preserved
	 * (the stream's flush points). */
	VOLUME_CUT_BITS_ONLY = 1,
	/* Blocks are read as they are at the moment, until volume_cut_freeze() makes it one instant.
	 * Such a cut is never lost: where the preserve area ends, writes to blocks that are not read
	 * yet wait until they are. */
	VOLUME_CUT_LIVE = 2,
};

/* Seals the consumer's dirty blocks at this point of the write order: the active map becomes the
 * sealed map, a new empty one takes its place. Nothing blocks. -EBUSY: one exists already.
 * lost() (may be NULL for BITS_ONLY and LIVE) is called if the content can no longer be kept (preserve area
 * full or failing): the owner must then call volume_cut_finish(cut, false). */
int volume_cut_begin(struct volume *volume, enum volume_consumer consumer, unsigned flags,
		     void (*lost)(void *context, int error), void *context,
		     struct volume_cut **cut);
uint64_t volume_cut_lsn(const struct volume_cut *cut);
uint64_t volume_cut_bytes(const struct volume_cut *cut); /* sealed at the beginning */
/* More than half of its preserve area is used: it is time to read what is left. */
bool volume_cut_is_short(const struct volume_cut *cut);
/* For invariants: it is that consumer's present cut, and of bits only. */
bool volume_cut_is_bits_only(const struct volume *volume, enum volume_consumer consumer,
			     const struct volume_cut *cut);
/* The next sealed run at or after offset, at most max_bytes long. Of a LIVE cut: of what is not
 * staged yet; and, until it is frozen, not overwritten since it was sealed. */
bool volume_cut_next(const struct volume_cut *cut, uint64_t offset, uint64_t max_bytes,
		     uint64_t *start, uint64_t *length);

/* A LIVE cut only. Its consumer collects blocks as they are, tells which of them it has (staged), and
 * takes what was overwritten meanwhile into the cut again (absorb), until little is left: then the cut
 * is frozen, and what is staged plus what is read from then on is the content at that instant. A
 * frozen cut can be thawed: the instant is given up, what is staged stays so. */
void volume_cut_stage(struct volume_cut *cut, uint64_t offset, uint64_t length);
void volume_cut_unstage(struct volume_cut *cut, uint64_t offset, uint64_t length); /* not frozen */
void volume_cut_absorb(struct volume_cut *cut); /* not frozen, no cut_read under way */
void volume_cut_freeze(struct volume_cut *cut); /* likewise */
void volume_cut_thaw(struct volume_cut *cut);   /* no cut_read under way */
/* What is to be read yet: what was overwritten before it was staged may count twice. */
uint64_t volume_cut_left_bytes(const struct volume_cut *cut);
/* Frozen: a block that a writer waits for. */
bool volume_cut_wanted(const struct volume_cut *cut, uint64_t *start, uint64_t *length);

struct volume_cut_read {
	uint64_t offset_bytes; /* within one sealed run; multiples of the consumer's block, the
				 * volume's end aside */
	uint32_t length_bytes; /* <= BUF_SIZE_MAX with a buf */
	/* The caller's; filled from data on. NULL: nothing is read, it is only asked whether all of it is a hole:
	 * where it is not, all stays as if it had not been asked. */
	struct buf *buf;
	void (*done)(struct volume_cut_read *read, int error); /* never from inside the call */
	bool skip_hole; /* in: buf need not be filled where all of it is a hole */
	bool hole;      /* out: it is one, and skip_hole was set */
	uint64_t priv[40];
};
/* Reads content as of the cut: each block from the preserve area or from the backing, after writes
 * issued before the cut have landed there. Holes of the backing are not read. Afterwards the blocks need no preserving any more
 * (they stay sealed until the cut is finished). Several may be under way. */
void volume_cut_read(struct volume_cut *cut, struct volume_cut_read *read);
/* How much of [offset, offset + length) looks like a hole in front, in whole blocks: a guess, for what is worth
 * being asked at once; what is so as of the cut a read says. */
uint64_t volume_cut_hole_bytes(struct volume_cut *cut, uint64_t offset, uint64_t length);

/* The consumer turned out to have [offset, offset + length) already, as it is at this point of the
 * write order or (a hold) was when nothing of it was under way: those blocks are no longer sealed.
 * BITS_ONLY. Multiples of the block, the volume's end aside. */
void volume_cut_narrow(struct volume_cut *cut, uint64_t offset, uint64_t length);

/* Ends the cut. consumed: the consumer holds all of it durably; the sealed bits are dropped.
 * Otherwise they are merged back into the active map. No cut_read may be under way. */
void volume_cut_finish(struct volume_cut *cut, bool consumed);

/* ---- the secondary's side -------------------------------------------------------------------- */

/* Applies a mutation that came from the peer, or from staging, or from a restore: same ordering
 * and overlap rules, no role check, no tap; marks nothing for the peer, and for the store only where
 * it follows: volume_begin_applying(). Lengths and offsets are multiples of 512. */
struct volume_apply {
	struct volume_mutation mutation; /* buf with a reference of the caller's */
	void (*done)(struct volume_apply *apply, int error);
	uint64_t priv[44];
};
void volume_apply(struct volume *volume, struct volume_apply *apply);
/* To be called once before a series of volume_apply(): from now on the content changes by another's
 * hand. With store_follows all of it is marked for the store, as a client's writes are. Else the STORE map
 * no longer follows, durably, and the next snapshot from here compares by hash. */
int volume_begin_applying(struct volume *volume);
/* The same, where all the content is replaced: the STORE map does not follow in any case. */
int volume_begin_replacing(struct volume *volume);
/* Whether the STORE map covers all that differs from volume_state.snapshot, whoever changed it. */
bool volume_store_follows(const struct volume *volume);
/* The STORE map's reference is from now on this snapshot of the content's history; the map covers what
 * differs from it: what is marked already, and these runs (multiples of the block, the volume's end
 * aside). To be followed, if the map before is not to count any more, by volume_cut_finish(cut, true) of a
 * BITS_ONLY cut that was begun at the same point of the write order. Durable before it returns. */
struct volume_run {
	uint64_t offset_bytes, length_bytes;
};
int volume_adopt_snapshot(struct volume *volume, const struct id128 *snapshot, uint64_t sequence,
			  const struct volume_run *runs, unsigned count);
/* Reads content through the same ordering (verification, reverse sync). done never from inside. */
void volume_read(struct volume *volume, struct block_request *request);

/* Keeps a range still at one point of the write order: granted when all that overlaps and was asked
 * for before has landed; what comes behind waits until the end. So what is read, and what the tap
 * was given up to granted(), are the same. Keep it short: clients wait. */
struct volume_hold {
	uint64_t offset_bytes, length_bytes;       /* multiples of VOLUME_PEER_BLOCK_BYTES */
	void (*granted)(struct volume_hold *hold); /* possibly from inside volume_hold() */
	/* Of the read or the write under way. Of a write possibly from inside the call. */
	void (*done)(struct volume_hold *hold, int error);
	uint64_t priv[48];
};
void volume_hold(struct volume *volume, struct volume_hold *hold);
/* Reads its first length_bytes into buf, which has room for them. One at a time. */
void volume_hold_read(struct volume_hold *hold, uint32_t length_bytes, struct buf *buf);
/* True: it was not granted yet, and is gone. What it waits for may itself wait for long: for requests to be
 * resumed, for the peer. */
bool volume_hold_cancel(struct volume_hold *hold);
/* Whether what a hold reads is the content: the disk is there and lacks none of it. Else reads fail. */
bool volume_is_whole(const struct volume *volume);
/* Ends the hold; done() is not called. */
void volume_hold_release(struct volume_hold *hold);
/* Ends the hold with a write of all of it: as a client's with FUA, with the next LSN, marked and given to the
 * tap. Nobody has waited for it since the range was granted, so it cannot undo a client's write.
 * done() when it is durable here; the peer's part is not waited for. -EPERM unless primary, -EIO unless the
 * disk is whole, -EAGAIN while requests are held. */
void volume_hold_write(struct volume_hold *hold, struct buf *buf);

/* Keeps the content as it is now beside the backing, as a reflink: the file BACKING.before-catch-up. To be
 * called before the content becomes a mixture; nothing may be under way. -EOPNOTSUPP where the file
 * system cannot. It is dropped when the volume is opened and is no mixture, or by volume_drop_copy(). */
int volume_keep_copy(struct volume *volume);
void volume_drop_copy(struct volume *volume);
/* Its path, or NULL: there is none. */
const char *volume_kept_copy(const struct volume *volume);

/* Opens a backing again that was missing or failed, creating a missing regular file at the volume's
 * size; the disk state becomes INCONSISTENT, durably. For restore. -EBUSY unless FAILED or unused. */
int volume_replace_backing(struct volume *volume, char *why, size_t why_size);

/* ---- numbers ---------------------------------------------------------------------------------- */

struct volume_stats {
	uint64_t reads, read_bytes, writes, written_bytes, flushes, trims;
	uint64_t io_errors;
	uint64_t intent_writes;                           /* intent pages written */
	uint64_t intent_regions;                          /* regions with an intent bit now */
	uint64_t preserved_bytes;                         /* copied before write, in all */
	uint64_t preserve_used_bytes, preserve_max_bytes; /* now, over all cuts */
	uint64_t cut_read_bytes; /* of sealed blocks, from backing or preserve area; not holes */
	uint64_t preserve_waits; /* writes that waited for room in it, or to be read */
	uint32_t in_flight, in_flight_max;
	uint64_t requested_ns; /* when a client's request came last; 0: none did */
	uint32_t clients;      /* exports open */
	uint64_t missing_bytes,
		hydrated_bytes; /* HYDRATING: not on the disk yet; fetched, in all */
	uint64_t remote_reads;  /* answered by the peer, or asked of the snapshot */
	uint64_t fill_total_bytes,
		fill_started_ns; /* filling: what was missing when it began here */
};
void volume_get_stats(const struct volume *volume, struct volume_stats *stats);

/* How long clients' writes and zeroes took, from submission to completion. */
void volume_get_latency(const struct volume *volume, struct latency *latency);

/* Verifies the module's invariants (asserts). The simulator calls it after every tick. */
void volume_check(const struct volume *volume);

#endif
