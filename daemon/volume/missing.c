// SPDX-License-Identifier: Apache-2.0
/*
 * The map of what a disk that is being filled lacks, and its way to the file "missing".
 *
 * In memory a bit goes when its block is written; in the file after an fsync of the disk that came later.
 * So after a crash the file names all that may be missing, and some more. Where the peer has the content,
 * "some more" is fetched once more. Where a snapshot has it, that would undo what a client wrote since. So a
 * client's write that lands on blocks which the file still names is complete when the file no longer names
 * them: until then it waits here, and many share one round of fsyncs.
 *
 * Of such a map a page that a power cut tore must not count as all ones, for the same reason. So each page has
 * two places, one in either half of the file, and is stored where it was not stored last. Bits only ever go:
 * what either of the two does not name is there.
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "daemon/mutate.h"

#define STORE_NS        (5ull * 1000000000)
#define STORE_ORIGIN_NS 1000000000ull
#define RETRY_NS        1000000000ull

static uint64_t blocks_of(const struct volume *v)
{
	return v->size_bytes / FETCH_BLOCK_BYTES;
}

static struct volume *volume_of(struct hydrate *h)
{
	return (struct volume *)((char *)h - offsetof(struct volume, hydrate));
}

/* ---- the map in memory -------------------------------------------------------------------------- */

bool missing_run(const struct volume *v, uint64_t from, uint64_t to, uint64_t *start, uint64_t *end)
{
	const struct dirty_map *missing = &v->hydrate.missing;
	uint64_t last = round_up(to, FETCH_BLOCK_BYTES) / FETCH_BLOCK_BYTES;
	uint64_t first = dirty_next(missing, from / FETCH_BLOCK_BYTES);

	if (first == DIRTY_NONE || first >= last)
		return false;
	*start = first * FETCH_BLOCK_BYTES;
	*end = dirty_next_clear(missing, first, last) * FETCH_BLOCK_BYTES;
	return true;
}

bool hydrate_is_missing(const struct volume *v, uint64_t offset, uint64_t length)
{
	uint64_t start, end;

	return missing_run(v, offset, offset + length, &start, &end);
}

void hydrate_landed(struct volume *v, uint64_t offset, uint64_t length)
{
	uint64_t first = round_up(offset, FETCH_BLOCK_BYTES) / FETCH_BLOCK_BYTES;
	uint64_t end = (offset + length) / FETCH_BLOCK_BYTES;
	struct hydrate *h = &v->hydrate;

	if (first >= end || dirty_clear(&h->missing, first, end - first, NULL, NULL) == 0)
		return;
	bits_set_range(h->stale, first / METADATA_PAGE_BITS,
		       (end - 1) / METADATA_PAGE_BITS - first / METADATA_PAGE_BITS + 1);
	if (h->wait.first != NULL || h->missing.count == 0)
		hydrate_pump_later(v);
}

int missing_make_memory(struct volume *v)
{
	static const unsigned counts[3] = {0, FETCHES - FETCHES_FILL, FETCHES_FILL};
	struct hydrate *h = &v->hydrate;

	h->page_count = (blocks_of(v) + METADATA_PAGE_BITS - 1) / METADATA_PAGE_BITS;
	h->filed_bytes = h->page_count * METADATA_PAGE_WORDS * 8;
	h->pool = buf_pool_new(counts);
	h->stale = calloc(BITS_WORDS(h->page_count) + 1, 8);
	h->fresh = calloc(BITS_WORDS(h->page_count) + 1, 8);
	h->urgent = calloc(BITS_WORDS(h->page_count) + 1, 8);
	h->second = calloc(BITS_WORDS(h->page_count) + 1, 8);
	h->batch.pages = malloc(BATCH_PAGES * METADATA_PAGE_BYTES);
	h->filed = mmap(NULL, h->filed_bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (h->filed == MAP_FAILED)
		h->filed = NULL;
	if (!h->pool || !h->stale || !h->fresh || !h->urgent || !h->second || !h->filed ||
	    !h->batch.pages || !dirty_init(&h->missing, blocks_of(v)))
		return -ENOMEM;
	return 0;
}

void missing_free(struct volume *v)
{
	struct hydrate *h = &v->hydrate;

	if (h->file != NULL)
		env_file_close(v->env, h->file);
	h->file = NULL;
	if (h->pool != NULL)
		buf_pool_free(h->pool);
	h->pool = NULL;
	free(h->stale);
	free(h->fresh);
	free(h->urgent);
	free(h->second);
	free(h->batch.pages);
	if (h->filed != NULL)
		munmap(h->filed, h->filed_bytes);
	h->stale = h->fresh = h->urgent = h->second = h->filed = NULL;
	h->batch.pages = NULL;
	if (h->missing.words != NULL)
		dirty_free(&h->missing);
	h->missing = (struct dirty_map){0};
}

/* ---- the file ------------------------------------------------------------------------------------ */

static void page_words(const struct volume *v, uint64_t page, uint64_t words[METADATA_PAGE_WORDS])
{
	uint64_t first = page * METADATA_PAGE_WORDS, count = BITS_WORDS(blocks_of(v));

	memset(words, 0, METADATA_PAGE_WORDS * 8);
	for (uint64_t i = 0; i < METADATA_PAGE_WORDS && first + i < count; i++)
		words[i] = v->hydrate.missing.words[first + i];
}

static void encode(const struct volume *v, uint64_t page, struct metadata_page_wire *wire)
{
	uint64_t words[METADATA_PAGE_WORDS];

	page_words(v, page, words);
	metadata_page_encode(METADATA_MISSING, (uint32_t)page, words, wire);
}

static uint64_t place(const struct hydrate *h, uint64_t page, bool second)
{
	return (page + (second ? h->page_count : 0)) * METADATA_PAGE_BYTES;
}

/* The file has the page as it was encoded. */
static void page_filed(struct volume *v, uint64_t page, const struct metadata_page_wire *wire)
{
	struct hydrate *h = &v->hydrate;

	bits_clear(h->fresh, page);
	if (h->from_store && bits_test(h->second, page))
		bits_clear(h->second, page);
	else if (h->from_store)
		bits_set(h->second, page);
	(void)metadata_page_decode(wire, METADATA_MISSING, (uint32_t)page,
				   &h->filed[page * METADATA_PAGE_WORDS]);
}

int hydrate_store_all(struct volume *v)
{
	struct hydrate *h = &v->hydrate;
	int error = 0;

	for (uint64_t p = bits_next(h->stale, 0, h->page_count); p < h->page_count && error == 0;
	     p = bits_next(h->stale, p + 1, h->page_count)) {
		encode(v, p, h->batch.pages);
		error = env_file_pwrite(v->env, h->file, h->batch.pages, METADATA_PAGE_BYTES,
					place(h, p, bits_test(h->second, p)));
		page_filed(v, p, h->batch.pages);
	}
	if (error == 0)
		error = env_file_sync(v->env, h->file);
	if (error == 0)
		memset(h->stale, 0, BITS_WORDS(h->page_count) * 8);
	return error;
}

int missing_make_file(struct volume *v)
{
	struct hydrate *h = &v->hydrate;
	int error = env_file_open(v->env, h->path, ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE,
				  &h->file);

	if (error == 0)
		error = env_file_truncate(v->env, h->file, 0);
	if (error == 0)
		error = env_file_allocate(v->env, h->file, 0, place(h, h->page_count, true));
	if (error == 0)
		error = env_file_sync(v->env, h->file);
	if (error == 0)
		error = env_sync_dir(v->env, v->state_dir);
	/* Pages that were never written count as all ones. */
	bits_set_range(h->stale, 0, h->page_count);
	bits_set_range(h->fresh, 0, h->page_count);
	return error;
}

/* NULL, or what is wrong with it: "" if it was never stored. */
static const char *load_half(struct volume *v, uint64_t page, bool second, uint64_t *words,
			     int *error)
{
	struct hydrate *h = &v->hydrate;
	const char *bad;
	int result = env_file_pread(v->env, h->file, h->batch.pages, METADATA_PAGE_BYTES,
				    place(h, page, second));

	if (result == -ENODATA) /* behind the file's end */
		return "";
	if (result != 0) {
		*error = result;
		return "unreadable";
	}
	bad = metadata_page_decode(h->batch.pages, METADATA_MISSING, (uint32_t)page, words);
	return bad != NULL && bytes_are_zero(h->batch.pages, METADATA_PAGE_BYTES) ? "" : bad;
}

/* Of both places what they agree on; stored next where the newest is not. */
static const char *load_both(struct volume *v, uint64_t page, uint64_t *words, int *error)
{
	uint64_t other[METADATA_PAGE_WORDS];
	const char *first = load_half(v, page, false, words, error);
	const char *second = load_half(v, page, true, other, error);
	bool first_is_newer = first == NULL;

	for (uint64_t i = 0; first == NULL && second == NULL && i < METADATA_PAGE_WORDS; i++)
		first_is_newer &= (words[i] & ~other[i]) == 0;
	for (uint64_t i = 0; second == NULL && i < METADATA_PAGE_WORDS; i++)
		words[i] = first == NULL ? words[i] & other[i] : other[i];
	if (first_is_newer)
		bits_set(v->hydrate.second, page);
	if (first == NULL || second == NULL)
		return NULL;
	return first[0] != '\0' ? first : second;
}

/* An error: where a snapshot has the content, a page that cannot be read must not count as an older one of it, nor as
 * all ones: what a client wrote would be fetched over. */
static int load_page(struct volume *v, uint64_t page)
{
	struct hydrate *h = &v->hydrate;
	uint64_t *words = &h->filed[page * METADATA_PAGE_WORDS], first = page * METADATA_PAGE_BITS;
	uint64_t count = blocks_of(v) - first;
	int error = 0;
	const char *bad = h->from_store ? load_both(v, page, words, &error)
					: load_half(v, page, false, words, &error);

	if (error != 0 && h->from_store)
		return error;
	if (count > METADATA_PAGE_BITS)
		count = METADATA_PAGE_BITS;
	if (bad != NULL) {
		if (bad[0] != '\0')
			env_log(v->env, ENV_LOG_WARNING,
				"volume %s: %s: page %llu: %s; fetched again", v->name, h->path,
				(unsigned long long)page, bad);
		bits_set(h->stale, page);
		bits_set(h->fresh, page);
		dirty_set(&h->missing, first, count, NULL, NULL);
		return 0;
	}
	for (uint64_t b = bits_next(words, 0, count); b < count;) {
		uint64_t end = b + 1;

		while (end < count && bits_test(words, end))
			end++;
		dirty_set(&h->missing, first + b, end - b, NULL, NULL);
		b = bits_next(words, end, count);
	}
	return 0;
}

int missing_load(struct volume *v)
{
	struct hydrate *h = &v->hydrate;
	int error = env_file_open(v->env, h->path, ENV_FILE_READ | ENV_FILE_WRITE, &h->file);

	/* What a killed process wrote is in the page cache, but maybe not on the disk: made durable
	 * before a bit that is not there counts as such. */
	if (error == 0)
		error = env_file_sync(v->env, h->file);
	for (uint64_t p = 0; p < h->page_count && error == 0; p++)
		error = load_page(v, p);
	return error;
}

/* ---- the map's way to the file ---------------------------------------------------------------------- */

static struct volume *volume_of_store(struct env_op *io)
{
	return (struct volume *)((char *)io - offsetof(struct volume, hydrate.batch.io));
}

static bool file_names(const struct volume *v, uint64_t offset, uint64_t length)
{
	const struct hydrate *h = &v->hydrate;
	uint64_t first = offset / FETCH_BLOCK_BYTES;
	uint64_t end = (offset + length + FETCH_BLOCK_BYTES - 1) / FETCH_BLOCK_BYTES;

	while (first < end) {
		uint64_t page = first / METADATA_PAGE_BITS, base = page * METADATA_PAGE_BITS;
		uint64_t last = end < base + METADATA_PAGE_BITS ? end : base + METADATA_PAGE_BITS;
		const uint64_t *words = &h->filed[page * METADATA_PAGE_WORDS];

		if (bits_test(h->fresh, page) ||
		    bits_next(words, first - base, last - base) < last - base)
			return true;
		first = last;
	}
	return false;
}

/* It has to be stored soon. */
static void want_stored(struct op *op)
{
	struct hydrate *h = &op->volume->hydrate;
	uint64_t first = op->piece_offset / FETCH_BLOCK_BYTES / METADATA_PAGE_BITS;
	uint64_t last =
		(op->piece_offset + op->piece_length - 1) / FETCH_BLOCK_BYTES / METADATA_PAGE_BITS;

	bits_set_range(h->urgent, first, last - first + 1);
	queue_push(&h->wait_stored, op);
}

bool missing_wait_stored(struct op *op)
{
	struct volume *v = op->volume;
	struct hydrate *h = &v->hydrate;

	if (!h->active || !h->from_store || !op_is_own(op) ||
	    MUTATE(volume_instant_write_before_map) ||
	    !file_names(v, op->piece_offset, op->piece_length))
		return false;
	want_stored(op);
	if (h->store == STORE_IDLE)
		missing_store(v, false);
	return true;
}

void missing_release(struct volume *v, int error)
{
	struct op_queue waiting = queue_take(&v->hydrate.wait_stored);
	struct op *op;

	while ((op = queue_pop(&waiting)) != NULL)
		if (error == 0 && v->hydrate.active &&
		    file_names(v, op->piece_offset, op->piece_length))
			want_stored(op);
		else
			op_stored(op, error);
}

/* The batch is in the file, durably, or is not. */
static void settle_batch(struct volume *v, int error)
{
	struct hydrate *h = &v->hydrate;

	for (unsigned i = 0; i < h->batch_count; i++) {
		if (error != 0)
			bits_set(h->stale, h->batch_numbers[i]);
		else
			page_filed(v, h->batch_numbers[i], &h->batch.pages[i]);
	}
	h->batch_count = 0;
}

static void store_end(struct volume *v, int error)
{
	struct hydrate *h = &v->hydrate;
	bool finished = h->store == STORE_FINISH;

	h->store = STORE_IDLE;
	if (!h->active) {
		h->batch_count = 0;
		op_ended(v);
		return;
	}
	if (error != 0)
		volume_log_error(v, "map of what is missing", 0, error);
	settle_batch(v, error);
	if (error == 0 && finished)
		hydrate_finish(v);
	if (h->active && !v->closing)
		env_timer_start(v->env, &h->store_timer,
				error != 0      ? RETRY_NS
				: h->from_store ? STORE_ORIGIN_NS
						: STORE_NS);
	missing_release(v, error);
	if (h->active && h->store == STORE_IDLE && h->wait_stored.first != NULL)
		missing_store(v, false);
	op_ended(v);
}

static void file_synced(struct env_op *io, int64_t result)
{
	store_end(volume_of_store(io), result < 0 ? (int)result : 0);
}

/* The next run of neighbouring pages of the batch, or the fsync. */
static void write_next(struct volume *v)
{
	struct hydrate *h = &v->hydrate;
	unsigned first = h->batch_at, n = 1;

	if (first == h->batch_count) {
		h->store = STORE_SYNC;
		h->batch.io.done = file_synced;
		env_fsync(v->env, &h->batch.io, h->file);
		return;
	}
	while (first + n < h->batch_count &&
	       h->batch_numbers[first + n] == h->batch_numbers[first] + n &&
	       bits_test(h->second, h->batch_numbers[first + n]) ==
		       bits_test(h->second, h->batch_numbers[first]))
		n++;
	h->batch_at += n;
	env_write(v->env, &h->batch.io, h->file, &h->batch.pages[first], n * METADATA_PAGE_BYTES,
		  place(h, h->batch_numbers[first], bits_test(h->second, h->batch_numbers[first])),
		  0);
}

static void pages_written(struct env_op *io, int64_t result)
{
	struct volume *v = volume_of_store(io);

	if (result < 0 || !v->hydrate.active)
		store_end(v, result < 0 ? (int)result : 0);
	else
		write_next(v);
}

static void backing_synced(struct env_op *io, int64_t result)
{
	struct volume *v = volume_of_store(io);
	struct hydrate *h = &v->hydrate;

	v->local_io--;
	if (result >= 0 && h->from_store)
		result = v->sync_error; /* told to somebody else meanwhile */
	if (result < 0 && h->active && h->store != STORE_IDLE) {
		if (h->from_store)
			sync_failed(v, (int)result);
		else
			disk_failed(v, "fsync", 0, (int)result);
	}
	if (result < 0 || !h->active || h->store == STORE_FINISH) {
		store_end(v, result < 0 ? (int)result : 0);
		return;
	}
	h->store = STORE_PAGES;
	h->batch_at = 0;
	io->done = pages_written;
	write_next(v);
}

/* Takes pages that are marked in bits into the batch, as they are now. */
static void fill_batch(struct volume *v, const uint64_t *bits)
{
	struct hydrate *h = &v->hydrate;

	for (uint64_t p = bits_next(bits, 0, h->page_count);
	     p < h->page_count && h->batch_count < BATCH_PAGES;
	     p = bits_next(bits, p + 1, h->page_count)) {
		encode(v, p, &h->batch.pages[h->batch_count]);
		h->batch_numbers[h->batch_count++] = p;
		bits_clear(h->stale, p);
		bits_clear(h->urgent, p);
	}
}

void missing_store(struct volume *v, bool finish)
{
	struct hydrate *h = &v->hydrate;

	assert(h->store == STORE_IDLE && h->batch_count == 0);
	if (v->sync_error != 0 && h->from_store) {
		missing_release(v, v->sync_error);
		return;
	}
	if (!finish) {
		fill_batch(v, h->urgent);
		fill_batch(v, h->stale);
		if (h->batch_count == 0)
			return;
	}
	h->store = finish ? STORE_FINISH : STORE_BACKING;
	v->ops++;
	v->local_io++;
	h->batch.io.done = backing_synced;
	env_fsync(v->env, &h->batch.io, v->backing);
}

static void store_fire(struct env_timer *timer)
{
	struct hydrate *h =
		(struct hydrate *)((char *)timer - offsetof(struct hydrate, store_timer));
	struct volume *v = volume_of(h);

	if (!h->active || v->closing)
		return;
	hydrate_expire(v);
	if (h->store == STORE_IDLE && h->missing.count > 0)
		missing_store(v, false);
	else
		hydrate_pump_later(v);
	if (h->store == STORE_IDLE)
		env_timer_start(v->env, timer, h->from_store ? STORE_ORIGIN_NS : STORE_NS);
}

void missing_init(struct volume *v)
{
	v->hydrate.store_timer.fire = store_fire;
	if (asprintf(&v->hydrate.path, "%s/missing", v->state_dir) < 0)
		v->hydrate.path = NULL;
}
