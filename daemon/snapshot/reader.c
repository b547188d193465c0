/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A read is done chunk by chunk, in whatever order they come: each time a page or a piece of content
 * arrives, all reads that wait are looked at again, take what they want of it at once, and ask for what is
 * missing still. So nothing that is kept belongs to a read, and anything that is kept may be dropped.
 */
#include "daemon/snapshot/reader.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/snapshot/internal.h"

#define PAGES_DEFAULT   16u
#define BYTES_DEFAULT   (16ull << 20)
#define FETCHES_DEFAULT 8u
/* An unaligned read of BUF_SIZE_MAX touches one more. */
#define READ_CHUNKS (RUN_CHUNKS + 1)

_Static_assert(READ_CHUNKS <= 32, "a read's chunks have a bit each");

/* One read of the caller's. */
struct job {
	struct job *next;
	struct env_op *op;
	uint8_t *data;
	uint64_t offset, first_chunk;
	uint32_t length;
	uint32_t left;   /* bit i: first_chunk + i is not done yet */
	bool sequential; /* goes on where the last one ended: more of the same will be wanted */
	int64_t result;
};

/* A map page that is kept. */
struct kept_page {
	enum { KEPT_FREE, KEPT_LOADING, KEPT_READY } state;
	struct snapshot_reader *reader;
	const struct manifest_page *pointer;
	struct snapfmt_page *page;
	unsigned pieces; /* whose entries are in use */
	uint64_t used;   /* when last: by the reader's clock */
};

/* Content of neighbouring chunks. */
struct piece {
	struct piece *next;
	struct snapshot_reader *reader;
	struct kept_page *page; /* while loading */
	struct run run;
	uint64_t first_chunk;
	unsigned count;
	uint64_t used;
	bool loading;
	uint8_t data[];
};

struct snapshot_reader {
	struct snapshot_repo *repo;
	struct manifest *manifest;
	struct snapshot_reader_config config;
	struct kept_page *pages; /* config.cache_pages of them */
	struct piece *pieces;
	uint64_t piece_bytes, clock, next_offset;
	unsigned fetching, paging; /* under way: pieces, pages */
	struct job *waiting, *done;
	struct env_task done_task;
	bool delivering; /* done_run() is at it */
	bool closing;
	void (*closed)(void *context);
	void *closed_context;
	char why[WHY_BYTES];
	struct snapshot_reader_stats stats;
};

static void advance(struct snapshot_reader *r);

/* ---- closing --------------------------------------------------------------------------------------- */

static void reader_free(struct snapshot_reader *r)
{
	void (*closed)(void *context) = r->closed;
	void *context = r->closed_context;
	struct piece *piece;

	while ((piece = r->pieces) != NULL) {
		r->pieces = piece->next;
		free(piece);
	}
	for (unsigned i = 0; i < r->config.cache_pages; i++)
		free(r->pages[i].page);
	free(r->pages);
	manifest_free(r->manifest);
	r->repo->under_way--;
	free(r);
	closed(context);
}

static bool over(const struct snapshot_reader *r)
{
	return r->closing && !r->fetching && !r->paging && !r->waiting && !r->done &&
	       !r->delivering;
}

/* ---- reads ------------------------------------------------------------------------------------------ */

static void done_run(struct env_task *task)
{
	struct snapshot_reader *r = container_of(task, struct snapshot_reader, done_task);
	struct job *job, *done = r->done;

	r->done = NULL;
	r->delivering = true; /* a callback may close the reader, which goes when all were called */
	while ((job = done) != NULL) {
		struct env_op *op = job->op;
		int64_t result = job->result;

		done = job->next;
		free(job);
		op->done(op, result);
	}
	r->delivering = false;
	if (over(r))
		reader_free(r);
}

/* Takes it out of the waiting ones; done in a later turn. */
static void job_end(struct snapshot_reader *r, struct job *job, int64_t result)
{
	struct job **link = &r->waiting;

	while (*link != job)
		link = &(*link)->next;
	*link = job->next;
	job->result = result;
	job->next = r->done;
	r->done = job;
	env_defer(r->repo->env, &r->done_task);
}

static uint64_t chunk_count(const struct snapshot_reader *r)
{
	return (r->manifest->info.size_bytes + SNAPFMT_CHUNK_BYTES - 1) / SNAPFMT_CHUNK_BYTES;
}

/* What of the chunk the job wants: its place in the job's data, and in the chunk. */
static uint32_t job_part(const struct job *job, uint64_t chunk, uint8_t **to, uint32_t *skip)
{
	uint64_t start = chunk * SNAPFMT_CHUNK_BYTES, end = start + SNAPFMT_CHUNK_BYTES;
	uint64_t from = start > job->offset ? start : job->offset;

	if (end > job->offset + job->length)
		end = job->offset + job->length;
	*to = job->data + (from - job->offset);
	*skip = (uint32_t)(from - start);
	return (uint32_t)(end - from);
}

static void job_chunk_done(struct job *job, uint64_t chunk)
{
	job->left &= ~(1u << (chunk - job->first_chunk));
}

static void job_zero(struct job *job, uint64_t chunk)
{
	uint32_t skip;
	uint8_t *to;
	uint32_t length = job_part(job, chunk, &to, &skip);

	memset(to, 0, length);
	job_chunk_done(job, chunk);
}

static bool job_wants(const struct job *job, uint64_t chunk)
{
	return chunk >= job->first_chunk && chunk < job->first_chunk + READ_CHUNKS &&
	       job->left >> (chunk - job->first_chunk) & 1;
}

/* The chunk out of a piece; what the piece lacks behind the snapshot's end is zero. */
static void job_copy(struct job *job, const struct piece *piece, uint64_t chunk)
{
	uint64_t at = (chunk - piece->first_chunk) * SNAPFMT_CHUNK_BYTES;
	uint32_t skip, there, length;
	uint8_t *to;

	length = job_part(job, chunk, &to, &skip);
	there = piece->run.length_bytes - (uint32_t)at;
	there = there > skip ? there - skip : 0;
	if (there > length)
		there = length;
	memcpy(to, piece->data + at + skip, there);
	memset(to + there, 0, length - there);
	job_chunk_done(job, chunk);
}

/* ---- map pages -------------------------------------------------------------------------------------- */

static int pointer_compare(const void *key, const void *element)
{
	uint64_t number = *(const uint64_t *)key;
	const struct manifest_page *pointer = element;

	return number < pointer->number ? -1 : number > pointer->number;
}

/* NULL: all of its chunks are zero. */
static const struct manifest_page *pointer_of(const struct snapshot_reader *r, uint64_t chunk)
{
	uint64_t number = chunk / SNAPFMT_PAGE_CHUNKS;

	if (!r->manifest->page_count)
		return NULL;
	return bsearch(&number, r->manifest->pages, r->manifest->page_count,
		       sizeof(r->manifest->pages[0]), pointer_compare);
}

static struct kept_page *page_find(const struct snapshot_reader *r,
				   const struct manifest_page *pointer)
{
	for (unsigned i = 0; i < r->config.cache_pages; i++)
		if (r->pages[i].state != KEPT_FREE && r->pages[i].pointer == pointer)
			return &r->pages[i];
	return NULL;
}

static void page_loaded(void *context, int error, const char *why)
{
	struct kept_page *page = context;
	struct snapshot_reader *r = page->reader;
	uint64_t first = (uint64_t)page->pointer->number * SNAPFMT_PAGE_CHUNKS;
	struct job *job, *next;

	r->paging--;
	page->state = error ? KEPT_FREE : KEPT_READY;
	if (error)
		why_set(r->why, error, "%s", why);
	for (job = r->waiting; job && error; job = next) {
		next = job->next;
		for (unsigned i = 0; i < READ_CHUNKS; i++) {
			uint64_t chunk = job->first_chunk + i;

			if (job_wants(job, chunk) && chunk - first < SNAPFMT_PAGE_CHUNKS) {
				job_end(r, job, error);
				break;
			}
		}
	}
	advance(r);
}

/* A slot that nobody uses: a free one, else the one that was not used for the longest. */
static struct kept_page *page_slot(struct snapshot_reader *r)
{
	struct kept_page *oldest = NULL;

	for (unsigned i = 0; i < r->config.cache_pages; i++) {
		struct kept_page *page = &r->pages[i];

		if (page->state == KEPT_FREE)
			return page;
		if (page->state == KEPT_READY && !page->pieces &&
		    (!oldest || page->used < oldest->used))
			oldest = page;
	}
	return oldest;
}

/* NULL: it is on its way, or will be when there is room. */
static struct kept_page *page_get(struct snapshot_reader *r, const struct manifest_page *pointer)
{
	struct kept_page *page = page_find(r, pointer);

	if (!page) {
		page = page_slot(r);
		if (!page)
			return NULL;
		if (!page->page)
			page->page = must_alloc(sizeof(*page->page));
		page->state = KEPT_LOADING;
		page->reader = r;
		page->pointer = pointer;
		r->paging++;
		r->stats.requests++;
		page_load(r->repo->store, r->manifest, pointer, page->page, page_loaded, page);
	}
	page->used = ++r->clock;
	return page->state == KEPT_READY ? page : NULL;
}

/* ---- pieces of content ------------------------------------------------------------------------------- */

static struct piece *piece_find(const struct snapshot_reader *r, uint64_t chunk)
{
	for (struct piece *piece = r->pieces; piece; piece = piece->next)
		if (chunk - piece->first_chunk < piece->count)
			return piece;
	return NULL;
}

static void piece_drop(struct snapshot_reader *r, struct piece *piece)
{
	struct piece **link = &r->pieces;

	assert(!piece->loading);
	while (*link != piece)
		link = &(*link)->next;
	*link = piece->next;
	r->piece_bytes -= piece->count * SNAPFMT_CHUNK_BYTES;
	free(piece);
}

/* Makes room for so many bytes. False: all that is there is on its way. */
static bool pieces_make_room(struct snapshot_reader *r, uint64_t bytes)
{
	while (r->piece_bytes && r->piece_bytes + bytes > r->config.cache_bytes) {
		struct piece *oldest = NULL;

		for (struct piece *piece = r->pieces; piece; piece = piece->next)
			if (!piece->loading && (!oldest || piece->used < oldest->used))
				oldest = piece;
		if (!oldest)
			return false;
		piece_drop(r, oldest);
	}
	return true;
}

static bool is_bad(const struct piece *piece, uint64_t chunk)
{
	const struct run *run = &piece->run;

	if (!run->error)
		return false;
	return run->error != -EBADMSG || !run->bad || run->bad >> (chunk - piece->first_chunk) & 1;
}

/* Who waits for a chunk that is not to be had is told; those that are well are handed out. */
static void piece_failed(struct snapshot_reader *r, const struct piece *piece)
{
	struct job *job, *next;

	why_set(r->why, 0, "%s", piece->run.why);
	for (job = r->waiting; job; job = next) {
		bool bad = false;

		next = job->next;
		for (uint64_t c = piece->first_chunk; c < piece->first_chunk + piece->count; c++) {
			if (!job_wants(job, c))
				continue;
			if (is_bad(piece, c))
				bad = true;
			else
				job_copy(job, piece, c);
		}
		if (bad)
			job_end(r, job, piece->run.error);
	}
}

static void piece_done(struct run *run)
{
	struct piece *piece = container_of(run, struct piece, run);
	struct snapshot_reader *r = piece->reader;

	r->fetching--;
	piece->loading = false;
	piece->page->pieces--;
	piece->page = NULL;
	if (run->error) {
		piece_failed(r, piece);
		piece_drop(r, piece);
	} else {
		r->stats.fetched_bytes += run->length_bytes;
	}
	advance(r);
}

/* How many chunks from this one on lie behind each other in one pack, are not kept yet, and are wanted. */
static unsigned run_length(const struct snapshot_reader *r, const struct kept_page *page,
			   uint64_t chunk, uint64_t wanted_end)
{
	uint64_t base = page->page->number * SNAPFMT_PAGE_CHUNKS, end = base + SNAPFMT_PAGE_CHUNKS;
	const struct snapfmt_entry *e = &page->page->entries[chunk - base];
	unsigned n = 1;

	if (end > wanted_end)
		end = wanted_end;
	while (n < RUN_CHUNKS && chunk + n < end && walk_follows(&e[n - 1], &e[n]) &&
	       !piece_find(r, chunk + n))
		n++;
	return n;
}

static void piece_start(struct snapshot_reader *r, struct kept_page *page, uint64_t chunk,
			uint64_t wanted_end)
{
	unsigned count;
	struct piece *piece;

	if (r->fetching == r->config.fetches_max)
		return; /* the next to end comes back here */
	count = run_length(r, page, chunk, wanted_end);
	if (!pieces_make_room(r, count * SNAPFMT_CHUNK_BYTES))
		return;
	piece = must_alloc(sizeof(*piece) + count * SNAPFMT_CHUNK_BYTES);
	piece->reader = r;
	piece->page = page;
	piece->first_chunk = chunk;
	piece->count = count;
	piece->loading = true;
	piece->used = ++r->clock;
	piece->next = r->pieces;
	r->pieces = piece;
	r->piece_bytes += count * SNAPFMT_CHUNK_BYTES;
	page->pieces++;
	r->fetching++;
	r->stats.requests++;
	piece->run = (struct run){
		.store = r->repo->store,
		.volume = &r->repo->volume,
		.entries = &page->page->entries[chunk % SNAPFMT_PAGE_CHUNKS],
		.first_chunk = chunk,
		.count = count,
		.volume_size_bytes = r->manifest->info.size_bytes,
		.out = piece->data,
		.done = piece_done,
	};
	run_start(&piece->run);
}

/* ---- the course ----------------------------------------------------------------------------------------- */

static void job_chunk(struct snapshot_reader *r, struct job *job, uint64_t chunk)
{
	const struct manifest_page *pointer = NULL;
	uint64_t end = job->first_chunk + READ_CHUNKS;
	struct piece *piece;
	struct kept_page *page;

	if (chunk < chunk_count(r))
		pointer = pointer_of(r, chunk);
	if (!pointer) {
		job_zero(job, chunk);
		return;
	}
	piece = piece_find(r, chunk);
	if (piece) {
		piece->used = ++r->clock;
		if (!piece->loading)
			job_copy(job, piece, chunk);
		return;
	}
	page = page_get(r, pointer);
	if (!page)
		return;
	if (!page->page->entries[chunk % SNAPFMT_PAGE_CHUNKS].stored_bytes) {
		job_zero(job, chunk);
		return;
	}
	while (!job->sequential && !job_wants(job, end - 1))
		end--;
	piece_start(r, page, chunk, end);
}

static void job_advance(struct snapshot_reader *r, struct job *job)
{
	for (unsigned i = 0; i < READ_CHUNKS && job->left; i++)
		if (job->left >> i & 1)
			job_chunk(r, job, job->first_chunk + i);
	if (!job->left)
		job_end(r, job, job->length);
}

static void advance(struct snapshot_reader *r)
{
	struct job *job, *next;

	for (job = r->waiting; job && !r->closing; job = next) {
		next = job->next;
		job_advance(r, job);
	}
	if (over(r))
		reader_free(r);
}

void snapshot_reader_read(struct snapshot_reader *r, struct env_op *op, void *data, uint32_t length,
			  uint64_t offset)
{
	struct job *job = must_alloc(sizeof(*job)), **link = &r->waiting;
	uint64_t last = (offset + length - 1) / SNAPFMT_CHUNK_BYTES;

	assert(!r->closing && length > 0 && length <= BUF_SIZE_MAX);
	job->op = op;
	job->data = data;
	job->offset = offset;
	job->length = length;
	job->first_chunk = offset / SNAPFMT_CHUNK_BYTES;
	job->left = (uint32_t)((2ull << (last - job->first_chunk)) - 1);
	job->sequential = offset == r->next_offset && offset > 0;
	r->next_offset = offset + length;
	while (*link)
		link = &(*link)->next;
	*link = job;
	for (uint64_t c = job->first_chunk; c <= last; c++) {
		const struct piece *piece = piece_find(r, c);
		uint32_t skip;
		uint8_t *to;

		if (piece && !piece->loading)
			r->stats.hit_bytes += job_part(job, c, &to, &skip);
	}
	job_advance(r, job);
}

/* The first page that ends behind the chunk. */
static unsigned page_at(const struct manifest *m, uint64_t chunk)
{
	unsigned low = 0, high = m->page_count;

	while (low < high) {
		unsigned middle = low + (high - low) / 2;

		if (((uint64_t)m->pages[middle].number + 1) * SNAPFMT_PAGE_CHUNKS <= chunk)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

bool snapshot_reader_next_data(const struct snapshot_reader *r, uint64_t offset, uint64_t *start,
			       uint64_t *end)
{
	const struct manifest *m = r->manifest;
	uint64_t chunk = offset / SNAPFMT_CHUNK_BYTES, chunks = chunk_count(r);

	for (unsigned p = page_at(m, chunk); p < m->page_count; p++) {
		uint64_t first = (uint64_t)m->pages[p].number * SNAPFMT_PAGE_CHUNKS;
		uint64_t limit = first + SNAPFMT_PAGE_CHUNKS, last;
		const struct kept_page *page = page_find(r, &m->pages[p]);

		if (limit > chunks)
			limit = chunks;
		if (chunk < first)
			chunk = first;
		last = limit;
		if (page && page->state == KEPT_READY) {
			const struct snapfmt_entry *e = page->page->entries;

			while (chunk < limit && !e[chunk - first].stored_bytes)
				chunk++;
			if (chunk == limit)
				continue;
			for (last = chunk; last < limit && e[last - first].stored_bytes; last++)
				;
		}
		*start = chunk * SNAPFMT_CHUNK_BYTES;
		if (*start < offset)
			*start = offset;
		*end = last * SNAPFMT_CHUNK_BYTES;
		if (*end > m->info.size_bytes)
			*end = m->info.size_bytes;
		if (*start < *end)
			return true;
	}
	return false;
}

const struct snapshot_info *snapshot_reader_info(const struct snapshot_reader *r)
{
	return &r->manifest->info;
}

const struct manifest *snapshot_reader_manifest(const struct snapshot_reader *r)
{
	return r->manifest;
}

const char *snapshot_reader_why(const struct snapshot_reader *r)
{
	return r->why;
}

void snapshot_reader_stats(const struct snapshot_reader *r, struct snapshot_reader_stats *stats)
{
	*stats = r->stats;
}

void snapshot_reader_check(const struct snapshot_reader *r)
{
	uint64_t bytes = 0;
	unsigned loading = 0, using = 0, paging = 0;

	for (const struct piece *piece = r->pieces; piece; piece = piece->next) {
		bytes += piece->count * SNAPFMT_CHUNK_BYTES;
		loading += piece->loading;
		assert(piece->loading == (piece->page != NULL));
	}
	for (unsigned i = 0; i < r->config.cache_pages; i++) {
		using += r->pages[i].pieces;
		paging += r->pages[i].state == KEPT_LOADING;
	}
	assert(bytes == r->piece_bytes && loading == r->fetching && using == r->fetching);
	assert(paging == r->paging && loading <= r->config.fetches_max);
	assert(bytes <= r->config.cache_bytes || !r->pieces->next);
	for (const struct job *job = r->waiting; job; job = job->next)
		assert(job->left && (r->fetching || r->paging));
}

void snapshot_reader_close(struct snapshot_reader *r, void (*closed)(void *context), void *context)
{
	assert(!r->closing);
	r->closing = true;
	r->closed = closed;
	r->closed_context = context;
	while (r->waiting)
		job_end(r, r->waiting, -ECANCELED);
	if (over(r))
		reader_free(r);
}

/* ---- opening ---------------------------------------------------------------------------------------------- */

struct opening {
	struct snapshot_repo *repo;
	struct id128 id; /* zero: the newest */
	struct snapshot_reader_config config;
	struct manifest *manifest;
	struct inventory_archive archive;
	struct env_op probe;
	const struct manifest_object *probes[2]; /* still to be asked for; NULL: none */
	char probe_name[SNAPFMT_NAME_BYTES];
	void (*done)(void *context, struct snapshot_reader *reader, int error, const char *why);
	void *context;
};

static void opening_end(struct opening *o, int error, const char *why)
{
	struct snapshot_reader *r = NULL;

	if (error) {
		manifest_free(o->manifest);
		o->repo->under_way--;
	} else {
		r = must_alloc(sizeof(*r));
		r->repo = o->repo;
		r->manifest = o->manifest;
		r->config = o->config;
		r->pages = must_alloc(r->config.cache_pages * sizeof(*r->pages));
		r->done_task.call = done_run;
	}
	o->done(o->context, r, error, why);
	free(o->archive.objects);
	free(o);
}

/* Reads would have to wait for hours: better said at once. */
static void opening_thawed(void *context, int error, const char *why)
{
	opening_end(context, error, why);
}

static void opening_counted(void *context, int error, const char *why)
{
	struct opening *o = context;
	char line[WHY_BYTES];

	if (!error && o->archive.count) {
		thaw(o->repo->store, o->manifest, &o->archive, NULL, opening_thawed, o);
		return;
	}
	if (error == -EBADMSG)
		why_set(line, error, "objects of it are missing from the store: %s", why);
	else
		why_set(line, error, "%s", why);
	opening_end(context, error, line);
}

static void probe_next(struct opening *o);

/* What cannot be told here a read will. */
static void probed(struct env_op *op, int64_t result)
{
	struct opening *o = container_of(op, struct opening, probe);

	if (result == 0)
		inventory_look(o->repo->store, o->manifest, &o->archive, opening_counted, o);
	else
		probe_next(o);
}

static void probe_next(struct opening *o)
{
	const struct manifest_object **probe = o->probes[0] ? &o->probes[0] : &o->probes[1];
	const struct manifest_object *object = *probe;

	if (!object) {
		opening_end(o, 0, "");
		return;
	}
	*probe = NULL;
	snapfmt_name(SNAPFMT_PACK, &o->repo->volume, &object->ref, o->probe_name);
	o->probe.done = probed;
	o->repo->store->ops->thawed(o->repo->store, &o->probe, o->probe_name);
}

/* Lifecycle rules archive the oldest first, and leave small ones where they are. */
static void probe_begin(struct opening *o)
{
	const struct manifest *m = o->manifest;
	const struct manifest_object *oldest = NULL, *largest = NULL;

	for (unsigned i = 0; i < m->object_count; i++) {
		const struct manifest_object *object = &m->objects[i];

		if (object->kind != SNAPFMT_PACK)
			continue;
		if (!oldest)
			oldest = object;
		if (!largest || object->size_bytes > largest->size_bytes)
			largest = object;
	}
	o->probes[0] = oldest;
	o->probes[1] = largest == oldest ? NULL : largest;
	probe_next(o);
}

static void opening_loaded(void *context, struct manifest *manifest, int error, const char *why)
{
	struct opening *o = context;
	const struct store *store = o->repo->store;

	o->manifest = manifest;
	if (!error && o->config.probe_archive && store->lists_cost && store->ops->thawed)
		probe_begin(o);
	else
		opening_end(o, error, why);
}

static void opening_listed(void *context, const struct names *names, int error, const char *why)
{
	struct opening *o = context;
	char line[WHY_BYTES], id[ID128_TEXT_BYTES];
	const struct snapfmt_ref *found = NULL;

	for (size_t i = 0; i < names->count; i++)
		if (id128_equal(&o->id, &names->refs[i].snapshot))
			found = &names->refs[i];
	id128_format(&o->id, id);
	if (error)
		opening_end(o, error, why);
	else if (id128_is_zero(&o->id))
		manifest_load_newest(o->repo->store, &o->repo->volume, names, opening_loaded, o);
	else if (found)
		manifest_load(o->repo->store, &o->repo->volume, found, opening_loaded, o);
	else
		opening_end(o, why_set(line, -ENOENT, "%s: no such snapshot in the store", id),
			    line);
}

void snapshot_reader_open(struct snapshot_repo *repo, const struct id128 *id,
			  const struct snapshot_reader_config *config,
			  void (*done)(void *context, struct snapshot_reader *reader, int error,
				       const char *why),
			  void *context)
{
	struct opening *o = must_alloc(sizeof(*o));

	*o = (struct opening){.repo = repo, .done = done, .context = context};
	if (config)
		o->config = *config;
	if (id)
		o->id = *id;
	if (!o->config.cache_pages)
		o->config.cache_pages = PAGES_DEFAULT;
	if (!o->config.cache_bytes)
		o->config.cache_bytes = BYTES_DEFAULT;
	if (!o->config.fetches_max)
		o->config.fetches_max = FETCHES_DEFAULT;
	repo->under_way++;
	if (id && o->config.sequence) {
		struct snapfmt_ref ref = {.snapshot = *id, .sequence = o->config.sequence};

		manifest_load(repo->store, &repo->volume, &ref, opening_loaded, o);
	} else {
		repo_look(repo, id, opening_listed, o);
	}
}
