// SPDX-License-Identifier: Apache-2.0
/*
 * Filling a disk while it is in use. The map of what is missing has a bit for each block of 4 KiB.
 *
 *   reads     of what is missing wait until it was fetched and written here; many wait for one fetch
 *   writes    of whole blocks make them present; of parts of blocks read the rest where it is
 *   the rest  is fetched in the background, slowly while clients are at work
 *
 * A fetch holds the lock of its range from before the question until its content is on the disk. So a
 * client's write is either issued before the question, and then in the answer, or after the local
 * write: what is fetched never goes over something newer.
 *
 * In memory a bit goes when its block is written; in the file after an fsync of the disk that came
 * later. So after a crash the file names all that may be missing, and some more.
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/mutate.h"

#define STORE_NS  (5ull * 1000000000)
#define RETRY_NS  1000000000ull
#define CHUNK(at) ((at) / FETCH_BYTES * FETCH_BYTES)

static void pump(struct env_task *task);
static void store_next(struct volume *v);

static struct volume *volume_of(struct hydrate *h)
{
	return (struct volume *)((char *)h - offsetof(struct volume, hydrate));
}

static uint64_t blocks_of(const struct volume *v)
{
	return v->size_bytes / FETCH_BLOCK_BYTES;
}

/* ---- the map ------------------------------------------------------------------------------------ */

/* The first missing run in [from, to). False: there is none. */
static bool missing_run(const struct volume *v, uint64_t from, uint64_t to, uint64_t *start,
			uint64_t *end)
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

static int make_memory(struct volume *v)
{
	static const unsigned counts[3] = {0, FETCHES - FETCHES_FILL, FETCHES_FILL};
	struct hydrate *h = &v->hydrate;

	h->page_count = (blocks_of(v) + METADATA_PAGE_BITS - 1) / METADATA_PAGE_BITS;
	h->pool = buf_pool_new(counts);
	h->stale = calloc(BITS_WORDS(h->page_count) + 1, 8);
	h->batch.pages = malloc(BATCH_PAGES * METADATA_PAGE_BYTES);
	if (!h->pool || !h->stale || !h->batch.pages || !dirty_init(&h->missing, blocks_of(v)))
		return -ENOMEM;
	return 0;
}

static void free_memory(struct volume *v)
{
	struct hydrate *h = &v->hydrate;

	if (h->file != NULL)
		env_file_close(v->env, h->file);
	h->file = NULL;
	if (h->pool != NULL)
		buf_pool_free(h->pool);
	h->pool = NULL;
	free(h->stale);
	free(h->batch.pages);
	h->stale = NULL;
	h->batch.pages = NULL;
	if (h->missing.words != NULL)
		dirty_free(&h->missing);
	h->missing = (struct dirty_map){0};
}

static void encode(struct volume *v, uint64_t page, struct metadata_page_wire *wire)
{
	uint64_t words[METADATA_PAGE_WORDS] = {0};
	uint64_t first = page * METADATA_PAGE_WORDS, count = BITS_WORDS(blocks_of(v));

	for (uint64_t i = 0; i < METADATA_PAGE_WORDS && first + i < count; i++)
		words[i] = v->hydrate.missing.words[first + i];
	metadata_page_encode(METADATA_MISSING, (uint32_t)page, words, wire);
}

/* The whole file, durably. Blocking. */
static int store_file(struct volume *v)
{
	struct hydrate *h = &v->hydrate;
	int error = 0;

	for (uint64_t p = 0; p < h->page_count && error == 0; p++) {
		encode(v, p, h->batch.pages);
		error = env_file_pwrite(v->env, h->file, h->batch.pages, METADATA_PAGE_BYTES,
					p * METADATA_PAGE_BYTES);
	}
	if (error == 0)
		error = env_file_sync(v->env, h->file);
	if (error == 0)
		memset(h->stale, 0, BITS_WORDS(h->page_count) * 8);
	return error;
}

int hydrate_store_all(struct volume *v)
{
	return store_file(v);
}

/* ---- fetching ------------------------------------------------------------------------------------- */

static struct fetch *fetch_of(struct op *op)
{
	return (struct fetch *)((char *)op - offsetof(struct fetch, op));
}

static void fetch_end(struct fetch *f)
{
	struct volume *v = f->op.volume;

	f->op.issued = false;
	op_unlock(&f->op);
	buf_put(f->buf);
	f->buf = NULL;
	f->busy = false;
	hydrate_pump_later(v);
	op_ended(v);
}

static void write_next(struct fetch *f);

static void written(struct fetch *f, int error)
{
	struct op *op = &f->op;
	struct volume *v = op->volume;

	v->local_io--;
	op->issued = false;
	if (error != 0 && v->hydrate.active && op->on_disk)
		disk_failed(v, "write", op->piece_offset, error);
	if (error != 0 || !v->hydrate.active || !op->on_disk) {
		fetch_end(f);
		return;
	}
	v->stats.hydrated_bytes += op->piece_length;
	hydrate_landed(v, op->piece_offset, op->piece_length);
	write_next(f);
}

static struct fetch *fetch_of_io(struct env_op *io)
{
	return fetch_of((struct op *)((char *)io - offsetof(struct op, io)));
}

static void write_done(struct env_op *io, int64_t result)
{
	written(fetch_of_io(io), result < 0 ? (int)result : 0);
}

static void write_content(struct fetch *f)
{
	struct op *op = &f->op;
	struct volume *v = op->volume;

	op->io.done = write_done;
	env_write(v->env, &op->io, v->backing, f->buf->data + (op->piece_offset - f->start),
		  op->piece_length, op->piece_offset, 0);
}

static void zero_done(struct env_op *io, int64_t result)
{
	struct fetch *f = fetch_of_io(io);
	struct volume *v = f->op.volume;

	if (result == -EOPNOTSUPP) {
		v->punch_cap = CAP_NO;
		write_content(f);
		return;
	}
	written(f, result < 0 ? (int)result : 0);
}

/* The next run of the answer that is still missing: what a client wrote before is left alone. */
static void write_next(struct fetch *f)
{
	struct op *op = &f->op;
	struct volume *v = op->volume;
	uint64_t start, end, from = op->pos;

	if (!missing_run(v, from, f->end, &start, &end)) {
		fetch_end(f);
		return;
	}
	op->pos = end;
	op->piece_offset = start;
	op->piece_length = end - start;
	op->issued = true;
	v->local_io++;
	if (v->punch_cap != CAP_NO &&
	    bytes_are_zero(f->buf->data + (start - f->start), end - start)) {
		op->io.done = zero_done;
		env_zero(v->env, &op->io, v->backing, start, end - start, ENV_ZERO_PUNCH);
		return;
	}
	write_content(f);
}

static bool wants(const struct op *op, uint64_t start, uint64_t end)
{
	const struct block_request *request = request_of((struct op *)(uintptr_t)op);

	return request->offset_bytes < end && start < request->offset_bytes + request->length_bytes;
}

/* The origin cannot read it: whoever waits for it gets the error, the background comes again. */
static void fetch_failed(struct fetch *f)
{
	struct volume *v = f->op.volume;
	struct op_queue waiting = queue_take(&v->hydrate.wait);
	struct op *op;

	if (!v->hydrate.unreadable)
		env_log(v->env, ENV_LOG_ERROR, "volume %s: the peer cannot read %llu bytes at %llu",
			v->name, (unsigned long long)(f->end - f->start),
			(unsigned long long)f->start);
	v->hydrate.unreadable = true;
	v->hydrate.next_fill_ns = env_now_ns(v->env) + 10 * RETRY_NS;
	while ((op = queue_pop(&waiting)) != NULL)
		if (wants(op, f->start, f->end))
			op_complete_later(op, -EIO);
		else
			queue_push(&v->hydrate.wait, op);
	fetch_end(f);
}

static void fetched(struct op *op, int error)
{
	struct fetch *f = fetch_of(op);
	struct volume *v = op->volume;

	if (!v->hydrate.active || !op->on_disk || error == -ESHUTDOWN) {
		fetch_end(f);
	} else if (error != 0) {
		fetch_failed(f);
	} else {
		op->pos = f->start;
		write_next(f);
	}
}

void hydrate_fetch_granted(struct op *op)
{
	struct fetch *f = fetch_of(op);
	struct volume *v = op->volume;
	uint64_t start, end, last = f->end;

	/* What was written while it waited for the lock. */
	if (!v->hydrate.active || v->closing || !missing_run(v, f->start, last, &start, &end)) {
		fetch_end(f);
		return;
	}
	f->start = start;
	for (f->end = end; missing_run(v, f->end, last, &start, &end);)
		f->end = end;
	/* The end of the present disk tells itself by this; see leave_disk(). */
	op->on_disk = true;
	op_read(op, f->buf->data, f->end - f->start, f->start, fetched);
}

static void fetch_begin(struct volume *v, struct fetch *f, uint64_t start, uint64_t end)
{
	if (end > v->size_bytes)
		end = v->size_bytes;
	f->buf = buf_alloc(v->hydrate.pool, (uint32_t)(end - start));
	assert(f->buf != NULL);
	f->start = start;
	f->end = end;
	f->busy = true;
	f->begun_ns = env_now_ns(v->env);
	f->op = (struct op){.volume = v, .kind = OP_FETCH, .owner = OWNER_FETCH};
	f->op.pos = start;
	f->op.end = end;
	v->ops++;
	op_lock(&f->op);
}

static bool is_fetched(const struct volume *v, uint64_t at)
{
	for (unsigned i = 0; i < FETCHES; i++) {
		const struct fetch *f = &v->hydrate.fetches[i];

		if (f->busy && f->start <= at && at < f->end)
			return true;
	}
	return false;
}

static struct fetch *fetch_unused(struct volume *v, unsigned from, unsigned to)
{
	for (unsigned i = from; i < to; i++)
		if (!v->hydrate.fetches[i].busy)
			return &v->hydrate.fetches[i];
	return NULL;
}

/* Starts what the read wants and nobody fetches yet. False: nothing of it is missing. */
static bool fetch_for(struct op *op)
{
	struct volume *v = op->volume;
	uint64_t at = op->pos, start, end;
	bool any = false;

	while (missing_run(v, at, op->end, &start, &end)) {
		struct fetch *f;

		any = true;
		at = CHUNK(start) + FETCH_BYTES;
		if (is_fetched(v, start))
			continue;
		f = fetch_unused(v, 0, FETCHES - FETCHES_FILL);
		if (f == NULL)
			break;
		fetch_begin(v, f, CHUNK(start), CHUNK(start) + FETCH_BYTES);
	}
	return any;
}

bool hydrate_wait(struct op *op)
{
	/* A reader has the lock that a fetch would want: it reads where the content is. */
	if (op->owner != OWNER_CLIENT || !fetch_for(op))
		return false;
	queue_push(&op->volume->hydrate.wait, op);
	return true;
}

/* ---- the background ------------------------------------------------------------------------------- */

static void fill_fire(struct env_timer *timer)
{
	struct hydrate *h =
		(struct hydrate *)((char *)timer - offsetof(struct hydrate, fill_timer));

	env_defer(volume_of(h)->env, &h->pump_task);
}

/* When the next one may begin: by the rate, and clients at work get three quarters of the time. */
static void pace(struct volume *v, uint64_t bytes, uint64_t took_ns)
{
	struct hydrate *h = &v->hydrate;
	uint64_t now = env_now_ns(v->env), delay = 0;
	uint64_t rate = v->config.hydrate_max_bytes_per_second;

	if (rate != 0)
		delay = bytes * 1000000000ull / rate;
	if (v->stats.in_flight > 0 && delay < 3 * took_ns)
		delay = 3 * took_ns;
	if (h->next_fill_ns < now)
		h->next_fill_ns = now;
	h->next_fill_ns += delay;
}

static void fill(struct volume *v)
{
	struct hydrate *h = &v->hydrate;
	uint64_t now = env_now_ns(v->env), start, end;
	bool clients = v->stats.in_flight > 0 || v->config.hydrate_max_bytes_per_second != 0;
	unsigned most = clients ? 1 : FETCHES_FILL;

	while (h->missing.count > 0 && now >= h->next_fill_ns) {
		struct fetch *f =
			fetch_unused(v, FETCHES - FETCHES_FILL, FETCHES - FETCHES_FILL + most);

		if (f == NULL)
			return; /* its end comes back here */
		if (!missing_run(v, h->cursor, v->size_bytes, &start, &end)) {
			if (h->cursor == 0)
				return;
			h->cursor = 0;
			continue;
		}
		h->cursor = start - start % FETCH_FILL_BYTES + FETCH_FILL_BYTES;
		if (h->cursor >= v->size_bytes)
			h->cursor = 0;
		if (is_fetched(v, start))
			return; /* for a reader: comes again */
		fetch_begin(v, f, start, start - start % FETCH_FILL_BYTES + FETCH_FILL_BYTES);
		pace(v, f->end - f->start, 0);
	}
	if (h->missing.count > 0)
		env_timer_start(v->env, &h->fill_timer, h->next_fill_ns - now);
}

static bool fetching(const struct volume *v)
{
	for (unsigned i = 0; i < FETCHES; i++)
		if (v->hydrate.fetches[i].busy)
			return true;
	return false;
}

/* What was answered so far is durable at the peer, and here after the last fsync alone: it covers all of
 * it, so nothing more is answered until it is done. */
static void store_last(struct volume *v)
{
	if (!MUTATE(volume_hydrate_finish_in_flight))
		volume_suspend(v, VOLUME_SUSPEND_FILLED, true);
	if ((v->remote_ops == 0 && v->local_io == 0) || MUTATE(volume_hydrate_finish_in_flight))
		store_next(v);
	else if (!env_timer_active(&v->hydrate.store_timer))
		env_timer_start(v->env, &v->hydrate.store_timer, STORE_NS);
}

static void pump(struct env_task *task)
{
	struct hydrate *h = (struct hydrate *)((char *)task - offsetof(struct hydrate, pump_task));
	struct volume *v = volume_of(h);
	struct op_queue waiting = queue_take(&h->wait);
	struct op *op;

	while ((op = queue_pop(&waiting)) != NULL)
		read_start(op); /* waits again if something is missing still */
	if (!h->active || v->closing || v->tap == NULL)
		return;
	fill(v);
	if (h->missing.count == 0 && !fetching(v) && h->store == STORE_IDLE)
		store_last(v);
	else if (!env_timer_active(&h->store_timer))
		env_timer_start(v->env, &h->store_timer, STORE_NS);
}

void hydrate_pump_later(struct volume *v)
{
	if (v->hydrate.active || v->hydrate.wait.first != NULL)
		env_defer(v->env, &v->hydrate.pump_task);
}

/* ---- the map's way to the disk ---------------------------------------------------------------------- */

static struct volume *volume_of_store(struct env_op *io)
{
	return (struct volume *)((char *)io - offsetof(struct volume, hydrate.batch.io));
}

static void remove_file(struct volume *v)
{
	free_memory(v);
	(void)env_unlink(v->env, v->hydrate.path);
}

static void finish(struct volume *v)
{
	bool detached = v->detached;
	enum volume_lean lean = v->lean;
	int error;

	v->hydrate.active = false;
	v->lean = VOLUME_LEAN_NO;
	v->state.disk = v->disk_recorded = VOLUME_DISK_UPTODATE;
	v->detached = false; /* writes are marked again */
	error = super_store(v, 0);
	if (error != 0) {
		v->hydrate.active = true;
		v->lean = lean;
		v->detached = detached;
		v->state.disk = v->disk_recorded = VOLUME_DISK_INCONSISTENT;
		env_timer_start(v->env, &v->hydrate.store_timer, RETRY_NS);
		return;
	}
	v->failure[0] = '\0';
	env_timer_stop(v->env, &v->hydrate.fill_timer);
	env_timer_stop(v->env, &v->hydrate.store_timer);
	remove_file(v);
	checkpoint_want(v);
	volume_suspend(v, VOLUME_SUSPEND_FILLED, false);
	volume_suspend(v, VOLUME_SUSPEND_ORIGIN, false);
	env_log(v->env, ENV_LOG_INFO, "volume %s: the disk is filled: UPTODATE", v->name);
}

static void store_end(struct volume *v, int error)
{
	struct hydrate *h = &v->hydrate;
	bool finished = h->store == STORE_FINISH;

	h->store = STORE_IDLE;
	if (!h->active) {
		op_ended(v);
		return;
	}
	if (error != 0) {
		bits_set_range(h->stale, h->batch_first, h->batch_count);
		volume_log_error(v, "map of what is missing", 0, error);
	}
	if (error == 0 && finished && h->missing.count == 0 && !fetching(v) && !v->closing)
		finish(v);
	if (h->active && !v->closing)
		env_timer_start(v->env, &h->store_timer, error != 0 ? RETRY_NS : STORE_NS);
	op_ended(v);
}

static void store_synced(struct env_op *io, int64_t result)
{
	store_end(volume_of_store(io), result < 0 ? (int)result : 0);
}

static void store_written(struct env_op *io, int64_t result)
{
	struct volume *v = volume_of_store(io);

	if (result < 0 || !v->hydrate.active) {
		store_end(v, result < 0 ? (int)result : 0);
		return;
	}
	v->hydrate.store = STORE_SYNC;
	io->done = store_synced;
	env_fsync(v->env, io, v->hydrate.file);
}

static void backing_synced(struct env_op *io, int64_t result)
{
	struct volume *v = volume_of_store(io);
	struct hydrate *h = &v->hydrate;

	v->local_io--;
	if (result < 0 && h->active && h->store != STORE_IDLE)
		disk_failed(v, "fsync", 0, (int)result);
	if (result < 0 || !h->active || h->store == STORE_FINISH) {
		store_end(v, result < 0 ? (int)result : 0);
		return;
	}
	h->store = STORE_PAGES;
	io->done = store_written;
	env_write(v->env, io, h->file, h->batch.pages, h->batch_count * METADATA_PAGE_BYTES,
		  h->batch_first * METADATA_PAGE_BYTES, 0);
}

/* Bits are taken as they are now; the disk is synced; then they go to the file. With nothing missing the
 * sync is the last. */
static void store_next(struct volume *v)
{
	struct hydrate *h = &v->hydrate;
	uint64_t page = bits_next(h->stale, 0, h->page_count);

	h->batch_first = page;
	h->batch_count = 0;
	h->store = STORE_FINISH;
	if (h->missing.count > 0) {
		if (page == h->page_count) {
			h->store = STORE_IDLE;
			return;
		}
		for (; page < h->page_count && h->batch_count < BATCH_PAGES &&
		       bits_test(h->stale, page);
		     page++) {
			encode(v, page, &h->batch.pages[h->batch_count++]);
			bits_clear(h->stale, page);
		}
		h->store = STORE_BACKING;
	}
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
	if (h->store == STORE_IDLE && h->missing.count > 0)
		store_next(v);
	else
		hydrate_pump_later(v);
	if (h->store == STORE_IDLE)
		env_timer_start(v->env, timer, STORE_NS);
}

/* ---- begin and end ----------------------------------------------------------------------------------- */

/* What was begun on the disk comes to its end by itself. */
void hydrate_stop(struct volume *v)
{
	struct hydrate *h = &v->hydrate;
	bool lean = leaning(v);

	h->active = false;
	h->unreadable = false;
	volume_suspend(v, VOLUME_SUSPEND_FILLED, false);
	hydrate_stop_timers(v);
	env_defer(v->env, &h->pump_task); /* who waited reads elsewhere */
	if (lean) {
		v->lean = VOLUME_LEAN_DISKLESS;
		v->state.disk = VOLUME_DISK_DISKLESS;
		/* Recorded before the next write is issued; what is under way has its intent bits. */
		v->super.bump_sequence = v->super.sequence + 1;
		super_store_later(v);
	}
}

void hydrate_stop_timers(struct volume *v)
{
	env_timer_stop(v->env, &v->hydrate.fill_timer);
	env_timer_stop(v->env, &v->hydrate.store_timer);
	if (v->closing)
		env_defer_cancel(v->env, &v->hydrate.pump_task);
}

static bool old_disk_busy(const struct volume *v)
{
	const struct volume_cut *store = &v->cuts[VOLUME_STORE], *peer = &v->cuts[VOLUME_PEER];

	return v->local_io > 0 || v->sync_running || v->readers != NULL || fetching(v) ||
	       v->hydrate.store != STORE_IDLE || v->checkpoint.step == CHECKPOINT_BACKING ||
	       (store->active && !store->bits_only) || (peer->active && !peer->bits_only) ||
	       store->jobs > 0 || peer->jobs > 0;
}

/* A piece cut for the old disk's alignment would be a part of a block. */
static bool small_pieces(const struct volume *v)
{
	for (const struct range_lock *lock = v->ranges.all; lock != NULL; lock = lock->all_next)
		if (((const struct op *)((const char *)lock - offsetof(struct op, lock)))->align !=
		    FETCH_BLOCK_BYTES)
			return true;
	return false;
}

static int open_new(struct volume *v, char *why, size_t why_size)
{
	struct env_file *old = v->backing;
	int error;

	v->backing = NULL;
	if (old != NULL)
		env_file_close(v->env, old);
	error = backing_open(v, true, why, why_size);
	if (error != 0)
		return error;
	v->sync_error = 0;
	v->punch_cap = v->zero_cap = CAP_UNKNOWN;
	return 0;
}

static int make_file(struct volume *v, char *why, size_t why_size)
{
	struct hydrate *h = &v->hydrate;
	int error = make_memory(v);

	if (error == 0)
		error = env_file_open(v->env, h->path,
				      ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE, &h->file);
	if (error == 0)
		error = env_file_allocate(v->env, h->file, 0, h->page_count * METADATA_PAGE_BYTES);
	if (error == 0) {
		dirty_set(&h->missing, 0, blocks_of(v), NULL, NULL);
		error = store_file(v);
	}
	if (error == 0)
		error = env_sync_dir(v->env, v->state_dir);
	if (error != 0)
		snprintf(why, why_size, "volume %s: %s: %s", v->name, h->path, strerror(-error));
	return error;
}

static int record(struct volume *v, char *why, size_t why_size)
{
	struct hydrate *h = &v->hydrate;
	int error;

	h->active = true;
	v->lean = VOLUME_LEAN_HYDRATING;
	v->state.disk = v->disk_recorded = VOLUME_DISK_INCONSISTENT;
	error = super_store(v, 0);
	if (error == 0)
		return 0;
	snprintf(why, why_size, "volume %s: %s: %s", v->name, v->super_path, strerror(-error));
	h->active = false;
	v->lean = VOLUME_LEAN_DISKLESS;
	v->state.disk = VOLUME_DISK_DISKLESS;
	return error;
}

int volume_hydrate(struct volume *v, char *why, size_t why_size)
{
	struct hydrate *h = &v->hydrate;
	int error;

	if (v->lean != VOLUME_LEAN_DISKLESS) {
		snprintf(why, why_size, "volume %s: is not diskless", v->name);
		return -EINVAL;
	}
	if (v->tap == NULL) {
		snprintf(why, why_size, "volume %s: the peer, which has its content, is away",
			 v->name);
		return -ENOTCONN;
	}
	if (old_disk_busy(v) || small_pieces(v)) {
		snprintf(why, why_size, "volume %s: requests on the old disk have not ended yet",
			 v->name);
		return -EBUSY;
	}
	free_memory(v);
	error = open_new(v, why, why_size);
	if (error == 0)
		error = make_file(v, why, why_size);
	if (error == 0)
		error = record(v, why, why_size);
	if (error != 0) {
		free_memory(v);
		return error;
	}
	h->cursor = h->next_fill_ns = 0;
	h->unreadable = h->keep_intents = false;
	for (struct range_lock *lock = v->ranges.all; lock != NULL; lock = lock->all_next)
		((struct op *)((char *)lock - offsetof(struct op, lock)))->diverged = false;
	env_log(v->env, ENV_LOG_INFO, "volume %s: %s: is filled from the peer", v->name,
		v->backing_path);
	hydrate_pump_later(v);
	return 0;
}

/* ---- after a restart ------------------------------------------------------------------------------------ */

static void load_page(struct volume *v, uint64_t page)
{
	struct hydrate *h = &v->hydrate;
	uint64_t words[METADATA_PAGE_WORDS], first = page * METADATA_PAGE_BITS;
	uint64_t count = blocks_of(v) - first;
	const char *bad = "unreadable";

	if (count > METADATA_PAGE_BITS)
		count = METADATA_PAGE_BITS;
	if (env_file_pread(v->env, h->file, h->batch.pages, METADATA_PAGE_BYTES,
			   page * METADATA_PAGE_BYTES) == 0)
		bad = metadata_page_decode(h->batch.pages, METADATA_MISSING, (uint32_t)page, words);
	if (bad != NULL) {
		env_log(v->env, ENV_LOG_WARNING, "volume %s: %s: page %llu: %s; fetched again",
			v->name, h->path, (unsigned long long)page, bad);
		dirty_set(&h->missing, first, count, NULL, NULL);
		return;
	}
	for (uint64_t b = bits_next(words, 0, count); b < count; b = bits_next(words, b + 1, count))
		dirty_set(&h->missing, first + b, 1, NULL, NULL);
}

/* What was written last may be here, at the peer, both or neither; the peer is right. */
static void distrust_recent(struct volume *v)
{
	uint64_t start, length;

	if (!leaning(v) || MUTATE(volume_hydrate_trusts_recent))
		return;
	for (uint64_t at = 0; volume_dirty_next(v, VOLUME_PEER, at, &start, &length);
	     at = start + length)
		dirty_set(&v->hydrate.missing, start / FETCH_BLOCK_BYTES,
			  length / FETCH_BLOCK_BYTES, NULL, NULL);
}

int hydrate_recover(struct volume *v, char *why, size_t why_size)
{
	struct hydrate *h = &v->hydrate;
	int error;

	if (!h->active)
		return 0;
	if (v->backing == NULL) {
		/* The new disk is gone as well. */
		h->active = false;
		v->lean = VOLUME_LEAN_DISKLESS;
		return super_store(v, 0);
	}
	error = make_memory(v);
	if (error == 0)
		error = env_file_open(v->env, h->path, ENV_FILE_READ | ENV_FILE_WRITE, &h->file);
	if (error == 0) {
		for (uint64_t p = 0; p < h->page_count; p++)
			load_page(v, p);
		distrust_recent(v);
		/* Before the maps that say so are changed. */
		error = store_file(v);
	}
	if (error != 0)
		snprintf(why, why_size, "volume %s: %s: %s", v->name, h->path, strerror(-error));
	return error;
}

void hydrate_init(struct volume *v)
{
	struct hydrate *h = &v->hydrate;

	h->pump_task.call = pump;
	h->fill_timer.fire = fill_fire;
	h->store_timer.fire = store_fire;
	if (asprintf(&h->path, "%s/missing", v->state_dir) < 0)
		h->path = NULL;
}

void hydrate_release(struct volume *v)
{
	free_memory(v);
	free(v->hydrate.path);
}
