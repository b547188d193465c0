/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared inside daemon/snapshot: fetching and decoding objects (manifests, map pages, runs of chunks),
 * listing manifests, and walking over a snapshot's content.
 */
#ifndef OFFSITE_SNAPSHOT_INTERNAL_H
#define OFFSITE_SNAPSHOT_INTERNAL_H

#include "daemon/io/buf.h"
#include "daemon/mutate.h"
#include "daemon/snapshot/gather.h"
#include "daemon/snapshot/slabs.h"
#include "daemon/snapshot/snapshot.h"
#include "protocol/snapshot.h"

#define container_of(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

#define WHY_BYTES  256
#define RUN_CHUNKS (BUF_SIZE_MAX / SNAPFMT_CHUNK_BYTES)
_Static_assert(SNAPSHOT_CHUNK_BYTES == SNAPFMT_CHUNK_BYTES, "the dirty map counts in chunks");
_Static_assert(SNAPSHOT_GIVEN_UP_MAX == SNAPFMT_GIVEN_UP_MAX, "they fit");
_Static_assert(SNAPSHOT_NAME_MAX == SNAPFMT_TEXT_BYTES, "texts fit");

/* What a manifest said. They never change. */
struct known_info {
	struct snapshot_info info;
	uint64_t size_bytes; /* of the manifest */
};

/* The names of a volume's manifests. */
struct names {
	struct snapfmt_ref *refs; /* the snapshots; ascending */
	uint64_t *sizes;
	size_t count;
	struct snapfmt_ref *marks; /* deleted, says the store; ascending */
	size_t mark_count;
	struct snapfmt_ref *gone; /* those of them whose manifests are still there; ascending */
	uint64_t *gone_sizes;
	size_t gone_count;
	uint64_t highest; /* sequence number of all manifests; 0: none */
};

struct snapshot_repo {
	struct store *store;
	struct env *env;
	struct id128 volume;
	unsigned under_way; /* operations */
	/* Where reading is paid for: of the last listing. */
	struct known_info *known;
	size_t known_count;
	/* What was listed last for those who only look; see looks.c. */
	struct names seen;
	bool seen_valid;
	uint64_t seen_ns;       /* when that list began */
	struct repo_list *list; /* under way, and as new as anybody could ask for; or NULL */
	struct repo_hold *holds;
	size_t hold_count, hold_room;
	struct repo_lock *locks; /* longer than manifests say; renew.c */
	size_t lock_count, lock_room;
	struct id128 deleted[64]; /* manifests that a deletion was begun of; the last of them */
	unsigned deleted_next;
	/* Of the writer at work here, if there is one; see claims.c. */
	struct id128 writer;        /* zero: none, or it has no claim yet */
	struct id128 attempt;       /* under way; zero: none */
	struct snapfmt_ref *sparse; /* of the last collection: packs worth being repacked */
	size_t sparse_count;
	uint64_t
		stale_from_ns; /* env_now_ns() from which on other claims of this writer are nobody's */
};

/* holds.c. False: somebody has it open. Else it cannot be opened any more. */
bool repo_may_delete(struct snapshot_repo *repo, const struct id128 *id);

/* Writes one line and returns error. */
int why_set(char why[WHY_BYTES], int error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Calls call(context) in a later turn. */
void call_later(struct env *env, void (*call)(void *context), void *context);

/* Zeroed. Never NULL: a process that cannot have some KiB has nothing better to do. Not for what has the
 * size that an object of the store says. */
void *must_alloc(size_t size_bytes);

/* Appends room for one element of size bytes; returns it, zeroed. */
void *array_add(void **array, size_t *count, size_t *room, size_t size_bytes);

/* ---- codec.c: zstd, hash; helper threads ---- */

void codec_hash(const void *data, size_t length, uint8_t hash[SNAPFMT_HASH_BYTES]);
/* Compressed length, or 0 if it does not shrink. */
size_t codec_pack(int level, const void *data, size_t length, void *out, size_t out_size);
/* False unless it unpacks to exactly length bytes. */
bool codec_unpack(const void *stored, size_t stored_bytes, void *out, size_t length);

/* ---- manifest.c ---- */

struct manifest_object {
	enum snapfmt_kind kind; /* PACK or MAPS */
	struct snapfmt_ref ref;
	uint32_t total_count, live_count;
	uint64_t size_bytes, live_bytes;
};

struct manifest_page {
	uint32_t number;
	uint32_t object; /* index into objects */
	uint32_t offset, length_bytes, crc, chunk_count;
};

struct manifest {
	struct snapshot_info info;
	struct id128 parent;
	struct manifest_object *objects; /* sorted by kind, ref */
	unsigned object_count;
	struct manifest_page *pages; /* sorted by number */
	unsigned page_count;
};

void manifest_free(struct manifest *manifest);
int manifest_object_compare(const void *a, const void *b);
/* NULL if not there. */
struct manifest_object *manifest_find(const struct manifest *manifest, enum snapfmt_kind kind,
				      const struct snapfmt_ref *ref);
/* Fills info.stored_bytes and info.objects up with the manifest itself. 0 or -ENOMEM, -EFBIG. */
int manifest_encode(struct manifest *manifest, bool padded, uint8_t **data, size_t *length);
/* NULL, or why it is damaged; *manifest is then untouched. */
const char *manifest_decode(const uint8_t *data, size_t length, const struct id128 *volume,
			    const struct snapfmt_ref *ref, struct manifest **manifest);
/* Only what info says, out of the first SNAPFMT_MANIFEST_HEAD_BYTES. object_size as listed. */
const char *manifest_peek(const uint8_t *head, size_t length, uint64_t object_size,
			  const struct id128 *volume, const struct snapfmt_ref *ref,
			  struct snapshot_info *info);

/* manifest: NULL on error; then why has object and reason. -EBADMSG: damaged, -ENOENT: missing. */
void manifest_load(struct store *store, const struct id128 *volume, const struct snapfmt_ref *ref,
		   void (*done)(void *context, struct manifest *manifest, int error,
				const char *why),
		   void *context);

/* The newest one of the volume's own history: neither what was given up in a split brain, nor what that node
 * took while it was apart. -ENOENT: there is none. names are copied. */
void manifest_load_newest(struct store *store, const struct id128 *volume,
			  const struct names *names,
			  void (*done)(void *context, struct manifest *manifest, int error,
				       const char *why),
			  void *context);

/* ---- fetch.c ---- */

/* Reads length bytes at offset into a new block (the receiver frees it); UINT64_MAX: the whole object.
 * data NULL: error and why. A shorter object is -EBADMSG. */
typedef void (*fetch_done_fn)(void *context, uint8_t *data, size_t length, int error,
			      const char *why);
void fetch(struct store *store, const char *name, uint64_t offset, uint64_t length,
	   fetch_done_fn done, void *context);

/* Whether that snapshot is among them. */
bool refs_have(const struct snapfmt_ref *refs, size_t count, const struct id128 *snapshot);
void names_list(struct store *store, const struct id128 *volume,
		void (*done)(void *context, struct names *names, int error, const char *why),
		void *context);
/* Of those with at least that sequence: costs what there is of them. */
void names_list_since(struct store *store, const struct id128 *volume, uint64_t sequence,
		      void (*done)(void *context, struct names *names, int error, const char *why),
		      void *context);
void names_free(struct names *names);

/* What is put as a mark of deletion: where there is a disk, nothing, for which there is room on a full one. */
const struct iovec *mark_content(const struct store *store);

/* ---- looks.c ---- */

/* As names_list(), for who only looks: what decides on sharing or deletion lists by itself. It may be what a list
 * of some seconds ago said; wanted (NULL: none): that snapshot is among them, or it was looked for just now.
 * names are valid in done() only. */
void repo_look(struct snapshot_repo *repo, const struct id128 *wanted,
	       void (*done)(void *context, const struct names *names, int error, const char *why),
	       void *context);
/* A snapshot was added here, or marked as deleted: whoever asks from now on sees it so. */
void repo_changed(struct snapshot_repo *repo);

/* Loads one map page. error 0: page is filled. */
void page_load(struct store *store, const struct manifest *manifest,
	       const struct manifest_page *pointer, struct snapfmt_page *page,
	       void (*done)(void *context, int error, const char *why), void *context);

/* The same of a page that is there: data has pointer->length_bytes, and is copied. */
void page_take(struct env *env, const struct manifest *manifest,
	       const struct manifest_page *pointer, const uint8_t *data, struct snapfmt_page *page,
	       void (*done)(void *context, int error, const char *why), void *context);

/* Chunks that follow each other in the volume and in one pack: read, unpacked, checked. */
struct run {
	/* Set by the caller. */
	struct store *store;
	const struct id128 *volume;
	const struct snapfmt_entry *entries;
	uint64_t first_chunk;
	unsigned count; /* <= RUN_CHUNKS */
	uint64_t volume_size_bytes;
	uint8_t *out;  /* at least count chunks */
	bool in_place; /* what run_check() is given may be the content, without a copy in out */
	void (*done)(struct run *run);
	/* Filled. */
	int error;              /* -EBADMSG, -ENOENT, or of the store */
	const uint8_t *content; /* out, or what run_check() was given */
	uint32_t bad;           /* bit i: chunk i is wrong (error -EBADMSG) */
	char why[WHY_BYTES];    /* the first one: object, chunk, reason */
	uint32_t length_bytes;
	/* Private. */
	struct env_op op;
	struct env_work work;
	char name[SNAPFMT_NAME_BYTES];
	uint8_t *stored;
	size_t stored_bytes;
	bool borrowed; /* stored is the caller's */
};
void run_start(struct run *run);
/* The same without reading: what is stored is there, and stays until done. */
void run_check(struct run *run, const uint8_t *stored);
uint32_t chunk_bytes(uint64_t chunk, uint64_t volume_size_bytes);

/* ---- walk.c: the content of a snapshot in ascending order ---- */

enum walk_result { WALK_ITEM, WALK_WAIT, WALK_END, WALK_ERROR };

struct walk_page {
	enum { WALK_FREE, WALK_LOADING, WALK_LOADED, WALK_SKIPPED } state;
	struct walk *walk;
	const struct manifest_page *pointer;
	unsigned references;
	struct snapfmt_page page;
};

struct walk_item {
	struct walk_page *page; /* NULL: zeroes; else release it when done */
	uint64_t first_chunk, count;
	const struct snapfmt_entry *entries;
};

#define WALK_PAGES 6
struct walk {
	/* Set by the caller. */
	struct store *store;
	const struct manifest *manifest;
	void (*ready)(
		struct walk *walk); /* a page came: ask again; never from inside walk_next() */
	/* NULL: a page that cannot be loaded ends the walk; else it is told here and left out. */
	void (*bad_page)(struct walk *walk, const struct manifest_page *pointer, int error,
			 const char *why);
	/* NULL: all; else whether a page is of interest. */
	bool (*wanted)(struct walk *walk, const struct manifest_page *pointer);
	/* Filled. */
	int error;
	char why[WHY_BYTES];
	/* Private. */
	uint64_t at, chunks;
	unsigned next_page, next_load, loading;
	struct walk_page *pages[WALK_PAGES];
};
void walk_begin(struct walk *walk);
enum walk_result walk_next(struct walk *walk, struct walk_item *item);
void walk_release(struct walk *walk, struct walk_page *page);
bool walk_idle(const struct walk *walk); /* nothing is being loaded */
void walk_end(struct walk *walk);
/* Whether b, the next chunk of a page, lies behind a in the same pack: one request reads both. */
bool walk_follows(const struct snapfmt_entry *a, const struct snapfmt_entry *b);

/* ---- bulk.c: runs that lie together in a pack come by one request ---- */

#define BULK_PIECES 256
#define BULK_GETS   10 /* requests under way, or whose bytes are still in use */
_Static_assert(GATHER_PIECES < BULK_PIECES, "what waits leaves room for more");
_Static_assert(GATHER_CHUNKS / SNAPFMT_PAGE_CHUNKS + 1 < WALK_PAGES,
	       "and pages for the walk to go on");

struct bulk_get;
/* An item of a walk. WAITING: for its request; FETCHING; COME, whether its bytes did or not; TAKEN by who uses
 * them. */
struct bulk_piece {
	struct walk_item item;
	const uint8_t *stored; /* the run's bytes; NULL: it has to be fetched by itself */
	/* Private. */
	enum { BULK_FREE, BULK_WAITING, BULK_FETCHING, BULK_COME, BULK_TAKEN } state;
	uint64_t number;
	struct bulk_get *get;
};

struct bulk {
	/* Set by the caller. */
	struct store *store;
	const struct id128 *volume;
	void (*ready)(struct bulk *bulk); /* something came; never from inside a call */
	/* Private. */
	unsigned count, gets;
	uint64_t added, came;
	struct bulk_piece pieces[BULK_PIECES];
	struct gather gather;
	struct bulk_get *first; /* requests that wait until there are fewer under way */
	struct slabs slabs;     /* of the requests */
};
bool bulk_has_room(const struct bulk *bulk);
/* item has chunks, and its page is the piece's until the caller releases it after bulk_take(). */
void bulk_add(struct bulk *bulk, const struct walk_item *item);
void bulk_flush(struct bulk *bulk);   /* nothing follows, or not for long */
void bulk_give_up(struct bulk *bulk); /* what was not asked for yet comes without bytes */
struct bulk_piece *bulk_take(struct bulk *bulk); /* NULL: nothing has come that was not taken */
void bulk_release(struct bulk *bulk, struct bulk_piece *piece); /* one that was taken */
bool bulk_idle(const struct bulk *bulk);                        /* holds no piece */
void bulk_end(struct bulk *bulk);                               /* one that is idle */

/* ---- present.c: what of a snapshot a target has already ---- */

#define PRESENT_LOOKS 8 /* each reads up to BUF_SIZE_MAX */

struct present;
/* Neighbouring chunks. Bit i: the i-th of them. */
struct present_look {
	struct present *present;
	enum { PRESENT_FREE, PRESENT_GATHERING, PRESENT_READING, PRESENT_DONE } state;
	uint64_t number;
	struct walk_item items[RUN_CHUNKS]; /* of which it consists */
	unsigned item_count, chunks;
	uint64_t first_chunk;
	uint32_t unknown, differs; /* neither: it is what the snapshot has */
	struct buf *buf;
	unsigned read_first; /* the chunk that buf begins with */
	uint32_t read_bytes;
	struct env_op op;
	struct env_work work;
	unsigned taken_items, taken_chunks; /* and of the next item */
};

struct present {
	/* Set by the caller. */
	struct env *env;
	struct snapshot_target *target;
	struct walk *walk;
	struct buf_pool *pool; /* has PRESENT_LOOKS buffers for it */
	uint64_t volume_size_bytes;
	void (*ready)(struct present *present); /* something is known; never from inside a call */
	/* Filled; the caller may take away from it. */
	uint64_t same_bytes; /* of what was taken, or need not be */
	/* Private. */
	struct present_look looks[PRESENT_LOOKS];
	struct present_look *gathering;
	unsigned count;
	uint64_t added;
	/* What the target said last: from there on the next data, and the next that may differ. */
	uint64_t data_from, data_start, data_end;
	uint64_t differing_from, differing_start, differing_end;
};
bool present_has_room(const struct present *present);
/* item has chunks; its page is released when all of it is known. */
void present_add(struct present *present, const struct walk_item *item);
void present_flush(struct present *present);   /* nothing more is added for now */
void present_give_up(struct present *present); /* what was not begun is taken to be the same */
/* The next chunks that differ, with a reference to their page; false: none is known for now. */
bool present_take(struct present *present, struct walk_item *item);
bool present_idle(const struct present *present); /* all was taken */

/* ---- differing.c: where a volume may differ from a snapshot, as its dirty map says ---- */

struct differing {
	uint8_t *bits; /* a chunk each; NULL: it is not known. free() */
	uint64_t chunks;
	uint64_t from, start, end; /* what differing_next() found last */
};
/* As of now. */
void differing_find(struct differing *differing, struct volume *volume,
		    const struct snapshot_info *info);
uint64_t differing_bytes(struct differing *differing);
/* The first range at or after offset, of whole chunks; false: there is none. It is known. */
bool differing_next(struct differing *differing, uint64_t offset, uint64_t *start, uint64_t *end);

/* ---- plan_differing.c ---- */

/* Of getting a snapshot's content where a volume differs from it, at most: chunks that were written with what they
 * held before are not fetched. */
struct differing_cost {
	uint64_t fetch_bytes, requests; /* map pages and chunks */
};
/* Reads up to pages_max map pages to say it by chunks; are there more, it is a bound by what the manifest says.
 * manifest and differing are kept until done. */
void differing_cost(struct store *store, const struct manifest *manifest,
		    struct differing *differing, unsigned pages_max,
		    void (*done)(void *context, const struct differing_cost *cost, int error,
				 const char *why),
		    void *context);

/* ---- reader.c ---- */

/* Of what it reads; the reader's. */
struct snapshot_reader;
const struct manifest *snapshot_reader_manifest(const struct snapshot_reader *reader);

/* ---- inventory.c ---- */

/* Lists packs and maps, and compares with what the manifest (kept until done) needs. -EBADMSG: of that
 * something is missing or truncated; why names the first. Other errors are the store's. */
void inventory_check(struct store *store, const struct manifest *manifest,
		     void (*done)(void *context, int error, const char *why), void *context);

/* What of a snapshot's objects has to be brought back from an archive before it can be read. */
struct inventory_archive {
	unsigned *objects; /* indexes in the manifest's; free() */
	size_t count, room;
	uint64_t bytes;
	uint64_t takes_ns; /* of the slowest, as a rule */
	const char *class; /* of it; NULL: there is none */
};
/* The same, and fills *archive (all zero before). */
void inventory_look(struct store *store, const struct manifest *manifest,
		    struct inventory_archive *archive,
		    void (*done)(void *context, int error, const char *why), void *context);

/* ---- thaw.c ---- */

/* Asks for what is archived, and waits until all of it can be read, however long that takes. waiting is told
 * how many objects are not there yet, each time after a look; NULL: nobody waits, -STORE_ARCHIVED. manifest and archive are kept until done. */
void thaw(struct store *store, const struct manifest *manifest,
	  const struct inventory_archive *archive, void (*waiting)(void *context, size_t left),
	  void (*done)(void *context, int error, const char *why), void *context);

/* ---- retain.c ---- */

/* Locks those of the manifest's objects that are wanted (NULL: none), and with keys the volume's keys, as
 * retention (both kept until done) says. -ENOENT: of that something is missing. */
void retain_objects(struct store *store, const struct manifest *manifest,
		    const struct store_retention *retention, bool keys,
		    bool (*wanted)(void *context, const struct manifest_object *object),
		    void (*done)(void *context, int error, const char *why), void *context);

/* ---- renew.c ---- */

/* Of those wanted asks the store until when their manifests are locked, and raises infos by that (all are
 * kept until done). */
void locks_look(struct snapshot_repo *repo, struct snapshot_info *infos, const bool *wanted,
		size_t count, void (*done)(void *context, int error, const char *why),
		void *context);
/* What is known of that by now, without asking. */
void lock_raise(const struct snapshot_repo *repo, struct snapshot_info *info);

struct renewed {
	uint64_t until_ns; /* that long at most */
	uint64_t snapshots, objects;
	int error; /* the first one; others were locked on all the same */
	char why[WHY_BYTES];
};
/* Locks those that are due (retention_due()), with all they need, for lock_for_ns from now. infos, as locks_look()
 * left them, and due are kept until done. */
void locks_renew(struct snapshot_repo *repo, uint64_t lock_for_ns,
		 const struct snapshot_info *infos, const bool *due, size_t count,
		 void (*done)(void *context, const struct renewed *renewed), void *context);

/* ---- claims.c ---- */

#define CLAIM_HOUR_NS ((uint64_t)3600 * 1000000000)
/* What a node sent before it stopped or gave up arrives within this, or never. */
#define CLAIM_QUIET_NS CLAIM_HOUR_NS
/* pin.c: True: an object of the pins' folder is a pin; holder zero: the operator's. */
bool pin_is_of(const struct snapshot_repo *repo, const struct store_object *object,
	       struct id128 *snapshot, struct id128 *holder);

/* A claim as old as that is nobody's; so long before that a writer puts no manifest any more. */
#define CLAIM_END_NS  (30 * 24 * CLAIM_HOUR_NS)
#define CLAIM_LATE_NS (28 * 24 * CLAIM_HOUR_NS)

struct claim {
	struct snapfmt_ref ref; /* the snapshot being written */
	struct id128 base;      /* what it shares with; zero: with none */
};
struct claims {
	struct claim *list;
	size_t count;
};
/* Those that count: of writers that stopped for good they are taken away. claims are freed after done. */
void claims_list(struct snapshot_repo *repo,
		 void (*done)(void *context, const struct claims *claims, int error,
			      const char *why),
		 void *context);
/* Whether one of them protects the snapshot's own objects (as it is being written), or its whole content
 * (as it is what another one shares with). */
bool claims_protect_own(const struct claims *claims, const struct id128 *snapshot);
bool claims_protect(const struct claims *claims, const struct id128 *snapshot);

/* ---- repack.c ---- */

/* live_bytes: the most that any one snapshot needs of it. */
bool repack_pays(const struct manifest_object *object);

/* ---- collect.c ---- */

/* Deletes these snapshots, after all others were found readable, then what nothing needs. dry_run: only
 * counts what would go. */
void collect_forget(struct snapshot_repo *repo, const struct id128 *ids, size_t count, bool dry_run,
		    void (*done)(void *context, const struct snapshot_result *result),
		    void *context);

/* Deletes the snapshot given (may be NULL), then what nothing needs. */
void collect_run(struct snapshot_repo *repo, const struct id128 *delete_id,
		 void (*done)(void *context, const struct snapshot_result *result), void *context);

#endif
