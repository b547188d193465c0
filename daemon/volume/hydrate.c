// SPDX-License-Identifier: Apache-2.0
/*
 * Filling a disk while it is in use. The map of what is missing has a bit for each block of 4 KiB.
 *
 *   reads     of what is missing wait until it was fetched and written here; many wait for one fetch
 *   writes    of whole blocks make them present; of parts of blocks read the rest where it is
 *   the rest  is fetched in the background, slowly while clients are at work
 *
 * The content is at the peer, which follows what clients write, or in a snapshot, which never changes
 * (from_store; how that begins and ends: instant.c).
 *
 * A fetch holds the lock of its range until its content is on the disk: from before the question to the
 * peer; from the answer on, where it is a snapshot's. So a client's write is either issued before the
 * question, and then in the answer, or after the local write; or it was before the lock, and then its blocks
 * are not missing any more: what is fetched never goes over something newer.
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/mutate.h"

#define STORE_NS  (5ull * 1000000000)
#define FAILED_NS (10ull * 1000000000) /* after a block that cannot be had */
#define RETRY_NS  1000000000ull
#define CHUNK(at) ((at) / FETCH_BYTES * FETCH_BYTES)

static void pump(struct env_task *task);

static struct volume *volume_of(struct hydrate *h)
{
	return (struct volume *)((char *)h - offsetof(struct volume, hydrate));
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
static void fetch_failed(struct fetch *f, const char *why);

static void written(struct fetch *f, int error)
{
	struct op *op = &f->op;
	struct volume *v = op->volume;

	v->local_io--;
	op->issued = false;
	if (error != 0 && v->hydrate.active && op->on_disk &&
	    !disk_failed(v, "write", op->piece_offset, error)) {
		fetch_failed(f, "cannot be written here");
		return;
	}
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

	if (MUTATE(volume_instant_over_newer) && v->hydrate.from_store && from == f->start) {
		start = f->start;
		end = f->end;
	} else if (!missing_run(v, from, f->end, &start, &end)) {
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

/* It is not to be had: whoever waits for it gets the error, the background comes again. */
static void fetch_failed(struct fetch *f, const char *why)
{
	struct volume *v = f->op.volume;
	struct op_queue waiting = queue_take(&v->hydrate.wait);
	struct op *op;

	if (!v->hydrate.unreadable)
		env_log(v->env, ENV_LOG_ERROR, "volume %s: %llu bytes at %llu: %s", v->name,
			(unsigned long long)(f->end - f->start), (unsigned long long)f->start, why);
	v->hydrate.unreadable = true;
	if (v->hydrate.from_store && f->end - f->start > FETCH_BYTES) {
		/* What of it can be had comes chunk by chunk. */
		v->hydrate.careful_start = v->hydrate.cursor = f->start;
		v->hydrate.careful_end = f->end;
	} else {
		v->hydrate.next_fill_ns = env_now_ns(v->env) + FAILED_NS;
	}
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
		fetch_failed(f, v->hydrate.from_store ? "the snapshot does not give them"
						      : "the peer cannot read them");
	} else if (v->hydrate.from_store) {
		op->pos = f->start;
		op->end = f->end;
		op_lock(op);
	} else {
		op->pos = f->start;
		write_next(f);
	}
}

/* Leaves of the fetch what is missing still. False: nothing is. */
static bool narrow(struct fetch *f)
{
	const struct volume *v = f->op.volume;
	uint64_t start, end, last = f->end;

	if (!v->hydrate.active || v->closing || !missing_run(v, f->start, last, &start, &end))
		return false;
	f->start = start;
	for (f->end = end; missing_run(v, f->end, last, &start, &end);)
		f->end = end;
	return true;
}

static void ask(struct fetch *f)
{
	struct op *op = &f->op;

	/* The end of the present disk tells itself by this; see leave_disk(). */
	op->on_disk = true;
	op_read(op, f->buf->data, f->end - f->start, f->start, fetched);
}

void hydrate_fetch_granted(struct op *op)
{
	struct fetch *f = fetch_of(op);

	if (op->volume->hydrate.from_store && op->on_disk && op->volume->hydrate.active)
		write_next(f);
	else if (op->volume->hydrate.from_store)
		fetch_end(f);
	else if (narrow(f)) /* of what was written while it waited for the lock */
		ask(f);
	else
		fetch_end(f);
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
	if (!v->hydrate.from_store)
		op_lock(&f->op);
	else if (narrow(f))
		ask(f);
	else
		fetch_end(f);
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

static bool expired(const struct volume *v, const struct op *op)
{
	return op->owner == OWNER_CLIENT &&
	       env_now_ns(v->env) - op->started_ns >= v->config.hydrate_timeout_ns;
}

void hydrate_expire(struct volume *v)
{
	struct op_queue reads = queue_take(&v->hydrate.wait), edges = queue_take(&v->wait_origin);
	struct op *op;

	while ((op = queue_pop(&reads)) != NULL)
		if (v->config.hydrate_timeout_ns != 0 && expired(v, op))
			op_complete_later(op, -EIO);
		else
			queue_push(&v->hydrate.wait, op);
	while ((op = queue_pop(&edges)) != NULL)
		if (v->config.hydrate_timeout_ns != 0 && expired(v, op))
			op->read_done(op, -EREMOTEIO);
		else
			queue_push(&v->wait_origin, op);
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
	bool clients = v->stats.in_flight > 0;
	unsigned most = clients || v->config.hydrate_max_bytes_per_second != 0 ? 1 : 2;

	if (h->from_store && h->held)
		return;
	/* Nobody waits for the lock of what is on its way from a store. */
	if (h->from_store)
		most = clients ? 2 : FETCHES_FILL;

	while (h->missing.count > 0 && now >= h->next_fill_ns) {
		uint32_t step = h->from_store ? FETCH_STORE_BYTES : FETCH_FILL_BYTES;
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
		if (start >= h->careful_start && start < h->careful_end)
			step = FETCH_BYTES;
		h->cursor = start - start % step + step;
		if (h->cursor >= v->size_bytes)
			h->cursor = 0;
		if (is_fetched(v, start))
			return; /* for a reader: comes again */
		end = start - start % step + step;
		pace(v, end - start, 0);
		fetch_begin(v, f, start, end);
	}
	if (h->missing.count > 0)
		env_timer_start(v->env, &h->fill_timer, h->next_fill_ns - now);
}

bool hydrate_fetching(const struct volume *v)
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
	if (v->hydrate.from_store) { /* what was answered is durable by the client's flush alone */
		missing_store(v, true);
		return;
	}
	if (!MUTATE(volume_hydrate_finish_in_flight))
		volume_suspend(v, VOLUME_SUSPEND_FILLED, true);
	if ((v->remote_ops == 0 && v->local_io == 0) || MUTATE(volume_hydrate_finish_in_flight))
		missing_store(v, true);
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
	if (!h->active || v->closing || (h->from_store ? h->origin == NULL : v->tap == NULL))
		return;
	fill(v);
	if (h->missing.count == 0 && !hydrate_fetching(v) && h->store == STORE_IDLE)
		store_last(v);
	else if (!env_timer_active(&h->store_timer))
		env_timer_start(v->env, &h->store_timer, STORE_NS);
}

void volume_set_hydrate_rate(struct volume *v, uint64_t max_bytes_per_second, uint64_t timeout_ns)
{
	v->config.hydrate_max_bytes_per_second = max_bytes_per_second;
	v->config.hydrate_timeout_ns = timeout_ns;
	v->hydrate.next_fill_ns = 0;
	hydrate_pump_later(v);
}

void hydrate_count(struct volume *v)
{
	v->hydrate.total_bytes = v->hydrate.missing.count * FETCH_BLOCK_BYTES;
	v->hydrate.started_ns = env_now_ns(v->env);
}

void hydrate_pump_later(struct volume *v)
{
	if (v->hydrate.active || v->hydrate.wait.first != NULL)
		env_defer(v->env, &v->hydrate.pump_task);
}

/* ---- begin and end ----------------------------------------------------------------------------------- */

void hydrate_finish(struct volume *v)
{
	struct hydrate *h = &v->hydrate;
	bool detached = v->detached, from_store = h->from_store;
	enum volume_lean lean = v->lean;
	struct volume_state state = v->state;
	int error;

	if (h->missing.count > 0 || hydrate_fetching(v) || v->closing)
		return;
	h->active = h->from_store = false;
	v->lean = VOLUME_LEAN_NO;
	v->state.disk = v->disk_recorded = VOLUME_DISK_UPTODATE;
	v->state.outdated_ns = 0;
	v->detached = false; /* writes are marked again */
	error = super_store(v, 0);
	if (error != 0) {
		h->active = true;
		h->from_store = from_store;
		v->lean = lean;
		v->detached = detached;
		v->state = state;
		v->disk_recorded = VOLUME_DISK_INCONSISTENT;
		return; /* the timer comes back here */
	}
	v->failure[0] = '\0';
	hydrate_stop_timers(v);
	missing_free(v);
	(void)env_unlink(v->env, h->path);
	checkpoint_want(v);
	volume_suspend(v, VOLUME_SUSPEND_FILLED, false);
	volume_suspend(v, VOLUME_SUSPEND_ORIGIN, false);
	env_log(v->env, ENV_LOG_INFO, "volume %s: the disk is filled: UPTODATE", v->name);
	if (from_store)
		instant_filled(v);
}

/* What was begun on the disk comes to its end by itself. */
void hydrate_stop(struct volume *v)
{
	struct hydrate *h = &v->hydrate;
	bool lean = leaning(v);

	h->active = false;
	h->unreadable = false;
	for (unsigned i = 0; i < FETCHES; i++)
		h->fetches[i].op.on_disk = false; /* an answer to come belongs to nothing */
	missing_release(v, 0);
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

	return v->local_io > 0 || v->sync_running || v->readers != NULL || v->grow != NULL ||
	       hydrate_fetching(v) || v->hydrate.store != STORE_IDLE ||
	       v->checkpoint.step == CHECKPOINT_BACKING || (store->active && !store->bits_only) ||
	       (peer->active && !peer->bits_only) || store->jobs > 0 || peer->jobs > 0;
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

static int make_map(struct volume *v, char *why, size_t why_size)
{
	int error = missing_make_memory(v);

	if (error == 0)
		error = missing_make_file(v);
	if (error == 0)
		dirty_set(&v->hydrate.missing, 0, v->size_bytes / FETCH_BLOCK_BYTES, NULL, NULL);
	if (error != 0)
		snprintf(why, why_size, "volume %s: %s: %s", v->name, v->hydrate.path,
			 strerror(-error));
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
	missing_free(v);
	error = open_new(v, why, why_size);
	if (error == 0)
		error = make_map(v, why, why_size);
	if (error == 0)
		error = record(v, why, why_size);
	if (error != 0) {
		missing_free(v);
		return error;
	}
	h->cursor = h->next_fill_ns = 0;
	h->unreadable = h->keep_intents = false;
	hydrate_count(v);
	for (struct range_lock *lock = v->ranges.all; lock != NULL; lock = lock->all_next)
		((struct op *)((char *)lock - offsetof(struct op, lock)))->diverged = false;
	env_log(v->env, ENV_LOG_INFO, "volume %s: %s: is filled from the peer", v->name,
		v->backing_path);
	hydrate_pump_later(v);
	return 0;
}

/* ---- after a restart ------------------------------------------------------------------------------------ */

/* What was written last may be here, at the peer, both or neither; the peer is right. */
static void distrust_recent(struct volume *v)
{
	struct hydrate *h = &v->hydrate;
	uint64_t start, length;

	if (!leaning(v) || MUTATE(volume_hydrate_trusts_recent))
		return;
	for (uint64_t at = 0; volume_dirty_next(v, VOLUME_PEER, at, &start, &length);
	     at = start + length)
		dirty_set(&h->missing, start / FETCH_BLOCK_BYTES, length / FETCH_BLOCK_BYTES, NULL,
			  NULL);
	bits_set_range(h->stale, 0, h->page_count);
}

int hydrate_recover(struct volume *v, char *why, size_t why_size)
{
	struct hydrate *h = &v->hydrate;
	int error;

	if (!h->active)
		return 0;
	if (v->backing == NULL) {
		/* The new disk is gone as well. Of one that is filled from a snapshot the record stays:
		 * it may be back at the next start. */
		h->active = false;
		if (h->from_store)
			return 0;
		v->lean = VOLUME_LEAN_DISKLESS;
		return super_store(v, 0);
	}
	error = missing_make_memory(v);
	if (error == 0)
		error = missing_load(v);
	if (error == 0 && !h->from_store) {
		distrust_recent(v);
		/* Before the maps that say so are changed. */
		error = hydrate_store_all(v);
	}
	hydrate_count(v);
	if (error != 0)
		snprintf(why, why_size, "volume %s: %s: %s", v->name, h->path, strerror(-error));
	else if (h->from_store)
		env_timer_start(v->env, &h->store_timer,
				RETRY_NS); /* who waits may do so too long */
	return error;
}

void hydrate_init(struct volume *v)
{
	struct hydrate *h = &v->hydrate;

	h->pump_task.call = pump;
	h->fill_timer.fire = fill_fire;
	missing_init(v);
}

void hydrate_release(struct volume *v)
{
	missing_free(v);
	free(v->hydrate.path);
}
