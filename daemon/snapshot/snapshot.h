/* SPDX-License-Identifier: Apache-2.0 */
/*
 * snapshot: sealing a volume's changes into the object store, and getting them back.
 *
 * Two objects: a snapshot_repo is one volume's place in a store (list, delete, verify, read,
 * restore; needs nothing but the store); a snapshot_writer seals a live volume into a repo.
 * Formats: protocol/snapshot.h and protocol/snapshot.md. Layout in the store, under the volume's
 * uuid:  packs/SEQUENCE-ID-NUMBER  maps/SEQUENCE-ID-NUMBER  snapshots/SEQUENCE-ID (manifest; put last).
 *
 * The store has no locks: any number may write, delete and collect at once, and be killed anywhere
 * (protocol/snapshot.md, section 7).
 *
 * CPU-heavy work (hash, zstd) runs in env_work; memory is bounded by a fixed number of buffers.
 * All calls are asynchronous with callbacks on the loop thread.
 */
#ifndef OFFSITE_SNAPSHOT_H
#define OFFSITE_SNAPSHOT_H

#include "daemon/io/rate.h"
#include "daemon/store/store.h"
#include "daemon/volume/volume.h"
#include "protocol/wire.h"

#define SNAPSHOT_CHUNK_BYTES  VOLUME_STORE_BLOCK_BYTES
#define SNAPSHOT_NAME_MAX     64
#define SNAPSHOT_GIVEN_UP_MAX 8

struct snapshot_info {
	struct id128 id;
	uint64_t sequence;   /* increases by at least 1 with each snapshot of a volume */
	struct id128 volume; /* uuid */
	char volume_name[SNAPSHOT_NAME_MAX]; /* NUL-terminated */
	char node_name[SNAPSHOT_NAME_MAX];   /* who wrote it */
	char label[SNAPSHOT_NAME_MAX];       /* operator's word, or "" */
	uint64_t created_ns;                 /* realtime of the cut */
	uint64_t lsn;                        /* the cut's place in the write order */
	uint64_t size_bytes;                 /* of the volume */
	uint64_t data_bytes;                 /* allocated (non-zero) chunks, uncompressed */
	uint64_t changed_bytes;              /* chunks read because they may have changed */
	uint64_t stored_bytes;               /* put into the store for this one */
	uint32_t objects;                    /* put into the store for this one */
	uint32_t requests; /* to the service for this one, of any kind; 0: not known, or none */
	/* It, and all it needs, cannot be deleted before that time (realtime), at least: as its manifest says, or
	 * later if that is known here. */
	struct store_retention retention;
	/* The generation that its content belongs to; zero: not known. */
	struct id128 history;
	bool given_up; /* it keeps what was given up in a split brain: never meant by "the newest" */
	/* The generations before it that were given up with it, younger first; zero: no more. */
	struct id128 given_up_before[SNAPSHOT_GIVEN_UP_MAX];
};

/* Long work reports through this; total may grow. Called at most a few times a second. */
struct snapshot_progress {
	uint64_t done_bytes, total_bytes;
	uint64_t started_ns; /* env_now_ns() */
	/* restore: it waits for so many objects to be brought back from an archive, which takes that long as
	 * a rule. 0: it does not. */
	uint64_t archived_objects, archive_ns;
};

/* What a finished operation says. error: 0 or -errno; why: one line naming the object and the
 * reason ("" if fine). */
struct snapshot_result {
	int error;
	char why[256];
	struct snapshot_info info; /* create, restore: which snapshot */
	/* checked: out of the store. restore: skipped were right already. */
	uint64_t checked_bytes, written_bytes, skipped_bytes, deleted_objects, freed_bytes;
	uint64_t locked_objects; /* delete, forget: to go, and left as they are locked */
	/* forget: of those that stay, locked for longer; and with them so many objects */
	uint64_t renewed_snapshots, renewed_objects;
	uint64_t archived_objects; /* verify: not read; restore: brought back */
	unsigned bad_objects;      /* verify */
	unsigned pins_left;        /* unpin: of others */
};

/* ---- repository --------------------------------------------------------------------------- */

struct snapshot_repo;

/* volume: uuid; the store stays the caller's and outlives the repo. */
struct snapshot_repo *snapshot_repo_new(struct store *store, const struct id128 *volume);
void snapshot_repo_free(struct snapshot_repo *repo); /* nothing under way */
/* Nothing is under way on it: it may be freed. What is under way ends soon once its store is stopped. */
bool snapshot_repo_is_idle(const struct snapshot_repo *repo);

/* While a snapshot is held nothing of this repo deletes it: snapshot_delete() is refused (-EBUSY),
 * snapshot_forget() keeps it. Counted. False: it is being deleted. */
bool snapshot_hold(struct snapshot_repo *repo, const struct id128 *id);
void snapshot_unhold(struct snapshot_repo *repo, const struct id128 *id); /* zero: nothing */
bool snapshot_is_held(const struct snapshot_repo *repo, const struct id128 *id);

/* The volumes in a store: each() is called with the newest readable snapshot of each, then done. A
 * damaged manifest met on the way to it is told to damaged() (may be NULL) by its object name. */
void snapshot_volumes(struct store *store,
		      void (*each)(void *context, const struct snapshot_info *newest),
		      void (*damaged)(void *context, const char *object, const char *why),
		      void (*done)(void *context, const struct snapshot_result *result),
		      void *context);

/* All complete snapshots, oldest first. A damaged manifest is reported through damaged() (may be
 * NULL) by its object name and reason, and left out. */
void snapshot_list(struct snapshot_repo *repo,
		   void (*each)(void *context, const struct snapshot_info *info),
		   void (*damaged)(void *context, const char *object, const char *why),
		   void (*done)(void *context, const struct snapshot_result *result),
		   void *context);

/* Of these, in any order, the newest of the volume's own history: neither what was given up in a split brain, nor
 * what that node took while it was apart. NULL: there is none. */
const struct snapshot_info *snapshot_newest(const struct snapshot_info *infos, size_t count);
/* To collect what snapshot_list() tells; starts as zeroes, and list is to be freed. */
struct snapshot_infos {
	struct snapshot_info *list;
	size_t count, room;
};
void snapshot_infos_add(struct snapshot_infos *infos, const struct snapshot_info *info);

/* kept says that it keeps what was given up, and content of that history was among it. */
bool snapshot_gave_up(const struct snapshot_info *kept, const struct id128 *history);

/* Deletes one snapshot (-EPERM: it is pinned or locked), then every object that no remaining snapshot needs and that no snapshot
 * being written can need. May be interrupted anywhere and run again. */
void snapshot_delete(struct snapshot_repo *repo, const struct id128 *id,
		     void (*done)(void *context, const struct snapshot_result *result),
		     void *context);

/* Which snapshots stay; each rule 0: none of it. All 0: all stay. See retention.c. */
struct retention_policy {
	unsigned last, hourly, daily, weekly, monthly, yearly;
	uint64_t within_ns; /* those not older than that */
	bool locks;         /* some may be locked, and stay for that: manifests are read to know */
	/* What rules or pins keep is locked on in the way it is, so that it always is for half of that; 0: no
	 * lock is made longer. And how often snapshots are taken; 0: not known. See renew.c. */
	uint64_t lock_for_ns, every_ns;
};

/* Pins a snapshot: neither snapshot_forget() nor snapshot_delete() takes it away until all who pinned it unpin it.
 * holder: an identifier that nobody else has, and that is known still when it is to be unpinned; NULL: the operator.
 * If that fails nothing stays of it; where it has to, why says so. */
void snapshot_pin(struct snapshot_repo *repo, const struct id128 *id, const struct id128 *holder,
		  void (*done)(void *context, const struct snapshot_result *result), void *context);
/* Takes the holder's pin away, if there is one; all: whoever holds one. */
void snapshot_unpin(struct snapshot_repo *repo, const struct id128 *id, const struct id128 *holder,
		    bool all, void (*done)(void *context, const struct snapshot_result *result),
		    void *context);

/* Deletes what the policy does not keep, but what is locked, and what nothing needs then; dry_run: only says
 * so, and how much that would free. each() (may
 * be NULL) is told every snapshot, oldest first, before anything is deleted; then what is unreferenced goes also
 * if no snapshot does. If one of those to be kept cannot be read, nothing is deleted. What stays is locked for longer
 * first where the policy says so; if that fails, the rest is done all the same, and then it is the result. */
void snapshot_forget(
	struct snapshot_repo *repo, const struct retention_policy *policy, bool dry_run,
	void (*each)(void *context, const struct snapshot_info *info, bool keep, const char *why),
	void (*done)(void *context, const struct snapshot_result *result), void *context);

/* Deletes nothing but what is unreferenced (after interrupted runs). */
void snapshot_collect(struct snapshot_repo *repo,
		      void (*done)(void *context, const struct snapshot_result *result),
		      void *context);

/* Reads back and checks all (sample_percent 100) or a random sample of the chunks of one snapshot,
 * or of all snapshots (id NULL). bad() is called for each damaged or missing object, once for each snapshot that it hits (hit is
 * NULL for a manifest that cannot be read). The result's error is -EBADMSG if there were any. */
void snapshot_verify(struct snapshot_repo *repo, const struct id128 *id, unsigned sample_percent,
		     void (*bad)(void *context, const char *object, const char *why,
				 const struct snapshot_info *hit),
		     void (*progress)(void *context, const struct snapshot_progress *progress),
		     void (*done)(void *context, const struct snapshot_result *result),
		     void *context);

/* ---- restore ---------------------------------------------------------------------------------- */

/* Where a restore writes: a file or device (snapshot_target_file) or a volume (volume_apply). */
struct snapshot_target {
	/* 0, or -errno: marks the target incomplete, durably, before the first byte. */
	int (*begin)(struct snapshot_target *target, const struct snapshot_info *info, char *why,
		     size_t why_size);
	/* Content of [offset, offset+length) as it is now, for comparing; or -errno: always write. */
	void (*read)(struct snapshot_target *target, struct env_op *op, struct buf *buf,
		     uint64_t offset, uint32_t length);
	void (*write)(struct snapshot_target *target, struct env_op *op, struct buf *buf,
		      uint64_t offset, uint32_t length);
	void (*zero)(struct snapshot_target *target, struct env_op *op, uint64_t offset,
		     uint64_t length);
	/* Everything is written: make it durable, then take the mark of incompleteness away. */
	void (*finish)(struct snapshot_target *target, struct env_op *op);
	void (*free)(struct snapshot_target *target);
	/* May be NULL. The first run at or after offset that may hold anything but zeroes; -ENXIO:
	 * there is none. */
	int (*next_data)(struct snapshot_target *target, uint64_t offset, uint64_t *start,
			 uint64_t *end);
	/* May be NULL. The first run at or after offset that may hold anything but what the snapshot has
	 * there; -ENXIO: there is none. */
	int (*next_differing)(struct snapshot_target *target, uint64_t offset, uint64_t *start,
			      uint64_t *end);
	uint64_t zero_to_bytes; /* set by begin(): the target's end, if beyond the snapshot's */
	bool known_zero; /* the target reads as zeroes all over (a new file): zeroes need no work */
	bool compare;    /* it may hold some of it: read first, fetch and write only what differs */
	/* write() takes any memory with BUF_ALIGN that stays until it is done: of the buf only data counts. */
	bool any_memory;
};

/* A regular file or block device. A new file is written as PATH.incomplete and renamed at the end; an
 * existing file or device needs overwrite, is compared and changed in place, and carries a marker until
 * it is complete: PATH.restoring, or for what lies below /dev /var/lib/offsite/restoring-NAME. When it
 * is, PATH.restored stays, for the volume that may have it for its backing (volume_restore_mark()). An
 * interrupted restore is run again the same way; it then fetches and writes only what is not there yet. */
int snapshot_target_file(struct env *env, const char *path, bool overwrite,
			 struct snapshot_target **target, char *why, size_t why_size);
/* A volume that serves no client. It is INCONSISTENT until complete. */
int snapshot_target_volume(struct volume *volume, struct snapshot_target **target, char *why,
			   size_t why_size);
/* Before inner, which it takes over: content is written at that rate. The limit is the caller's and outlives
 * the target. */
struct snapshot_target *snapshot_target_paced(struct env *env, struct snapshot_target *inner,
					      struct rate_limit *rate);

/* Restores snapshot id (NULL: the newest of the volume's own history) to target. Objects missing from the store are noticed before
 * the target is touched (-EBADMSG). Of a target with content each chunk's hash is compared first, and only
 * what differs is fetched; every chunk's hash is checked before it is written. The target is freed after done. */
void snapshot_restore(struct snapshot_repo *repo, const struct id128 *id,
		      struct snapshot_target *target,
		      void (*progress)(void *context, const struct snapshot_progress *progress),
		      void (*done)(void *context, const struct snapshot_result *result),
		      void *context);

/* ---- sealing ------------------------------------------------------------------------------------ */

struct snapshot_writer;

struct snapshot_writer_config {
	const char *node_name;
	uint64_t pack_bytes;            /* target size of a pack; 0: 16 MiB */
	int zstd_level;                 /* 0: 1 */
	struct retention_policy policy; /* applied after each success */
	struct rate_schedule rate;      /* of what is put, a pack at a time */
	unsigned latency_percent; /* of reading beside clients, and its floor: pace_control_set() */
	uint64_t min_rate;
	bool repack; /* what lives in packs that are mostly dead is stored again (repack.c) */
	enum store_lock lock; /* of what a snapshot needs */
	uint64_t lock_for_ns; /* since its instant */
	/* The cut is about to be taken: to be answered by one snapshot_cut(), from inside or later, when all
	 * is as it should be for it. NULL: it is taken at once. Not called for what is given up. */
	void (*prepare)(void *context, struct snapshot_writer *writer);
	void *prepare_context;
};

struct snapshot_writer *snapshot_writer_new(struct volume *volume, struct snapshot_repo *repo,
					    const struct snapshot_writer_config *config);
/* Gives up a snapshot under way (its blocks stay dirty), then calls freed(). */
void snapshot_writer_free(struct snapshot_writer *writer, void (*freed)(void *context),
			  void *context);

void snapshot_writer_set_rate(struct snapshot_writer *writer, const struct rate_schedule *rate);
void snapshot_writer_set_pace(struct snapshot_writer *writer, unsigned latency_percent,
			      uint64_t min_rate);
/* The answer to prepare(). Takes the cut inside the call, or with an error gives the snapshot up for it.
 * 0: the cut is taken; else there is none. */
int snapshot_cut(struct snapshot_writer *writer, int error, const char *why);
/* Of the one under way. */
const struct id128 *snapshot_writer_id(const struct snapshot_writer *writer);
/* Looks for what is there already, takes a cut and stores it. -EBUSY through done if one is under way. On an error of the store
 * the cut is merged back and the next snapshot takes all of it. If the store's newest snapshot is not
 * the one the volume's map is relative to (another node wrote it, maps lost), every allocated chunk
 * is read and compared by hash. Afterwards volume_state.snapshot is the new id. */
void snapshot_create(struct snapshot_writer *writer, const char *label,
		     void (*done)(void *context, const struct snapshot_result *result),
		     void *context);
/* Keeps what is about to be given up in a split brain for the content of node: also of a secondary, whose
 * disk may be outdated, as long as nothing is applied to it. common: the youngest generation that both descend
 * from; the snapshot says that all since then was given up. No older snapshot is deleted for it; the caller pins it. */
void snapshot_create_given_up(struct snapshot_writer *writer, const char *node,
			      const struct id128 *common,
			      void (*done)(void *context, const struct snapshot_result *result),
			      void *context);

struct snapshot_writer_status {
	bool running;
	struct snapshot_progress progress;
	struct snapshot_result last; /* of the last finished run; info.sequence 0: none yet */
	uint64_t last_done_ns;       /* realtime, 0: none */
	uint64_t succeeded, failed;
	/* Reading beside clients, while it runs. */
	uint64_t read_limit;     /* bytes a second; 0: any */
	const char *read_reason; /* what sets it; "": nothing is read */
	uint64_t write_p99_ns, write_baseline_ns;
};
void snapshot_writer_status(const struct snapshot_writer *writer,
			    struct snapshot_writer_status *status);
void snapshot_check(const struct snapshot_writer *writer); /* invariants */

#endif
