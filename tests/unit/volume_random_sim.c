// SPDX-License-Identifier: Apache-2.0
/*
 * A volume against a model, from a seed: random requests at random alignments, cuts of both consumers
 * whose content is compared with what it was at the cut, crashes and clean restarts. Checked:
 *   - reads give what was written before them;
 *   - a cut's content is that of its point of the write order;
 *   - after a crash everything that a completed FLUSH or FUA covered is there, and nothing that was
 *     never written; the generation and the LSNs go on from where they were;
 *   - wherever the content differs from what a consumer has, its dirty map says so.
 *
 *   volume_random_sim [SEED [RUNS]]     or SEED=n RUNS=n in the environment
 */
#include "daemon/volume/volume.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/sim/env_sim.h"

#define REQUESTS    24
#define SECTOR      512u
#define ENTRIES_MAX 4096

/* One event of the write order, as the tap saw it. */
struct entry {
	uint64_t lsn, offset, length;
	uint8_t *data;      /* NULL: zeroes */
	uint64_t completed; /* when its request completed: a count; 0: not yet */
	bool fua;
};

struct world;

struct request {
	struct block_request block;
	struct world *world;
	bool busy;
	bool check; /* READ: no write overlapped it */
	uint64_t submitted, issued_to, end;
	uint64_t covers; /* FLUSH: completions it covers */
	uint8_t *expect;
	unsigned entries[256];
	unsigned entry_count;
};

struct cut_state {
	struct world *world;
	struct volume_cut *cut;
	bool bits_only, reading, lost, all_read;
	uint64_t next;
	uint8_t *image;  /* as of the cut */
	uint8_t *sealed; /* by block */
	struct volume_cut_read read;
	struct buf *buf;
};

struct world {
	uint64_t seed;
	struct sim *sim;
	struct env *env;
	struct volume *volume;
	struct volume_tap tap;
	uint64_t size;
	uint32_t align;
	bool trims, tap_waits, suspended, in_sync;
	uint8_t *client; /* content by submission order */
	uint8_t *issued; /* content by write order */
	uint8_t *base;   /* content at the last open */
	uint8_t *has[VOLUME_CONSUMERS];
	struct entry entries[ENTRIES_MAX];
	unsigned entry_count;
	uint64_t completions, durable; /* counts */
	uint64_t submissions, lsn_seen;
	struct request requests[REQUESTS];
	unsigned in_flight;
	struct cut_state cuts[VOLUME_CONSUMERS];
	struct buf_pool *pool;
	struct id128 generation; /* under which a write completed */
	uint64_t tokens[REQUESTS * 8];
	unsigned token_count;
	struct volume_config config;
	bool closed;
	enum sim_crash crash_mode;
	uint64_t done_ops, checked_reads, checked_cuts, crashes;
};

static uint64_t rnd(struct world *w, uint64_t limit)
{
	return sim_random(w->sim, limit);
}

static void __attribute__((noreturn, format(printf, 2, 3)))
fail(struct world *w, const char *format, ...)
{
	va_list args;

	sim_print_log(w->sim, stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "\nFAIL volume_random_sim: replay with: volume_random_sim %llu 1\n",
		(unsigned long long)w->seed);
	exit(1);
}

/* ---- the tap --------------------------------------------------------------------------------- */

static bool overlaps(uint64_t a, uint64_t a_end, uint64_t b, uint64_t b_end)
{
	return a < b_end && b < a_end;
}

static struct request *owner_of(struct world *w, const struct volume_mutation *m)
{
	struct request *first = NULL;

	for (unsigned i = 0; i < REQUESTS; i++) {
		struct request *r = &w->requests[i];

		if (!r->busy || r->issued_to >= r->end ||
		    !overlaps(m->offset_bytes, m->offset_bytes + m->length_bytes, r->issued_to,
			      r->end))
			continue;
		if (first == NULL || r->submitted < first->submitted)
			first = r;
	}
	return first;
}

static bool tap_issue(struct volume_tap *tap, const struct volume_mutation *m, uint64_t token)
{
	struct world *w = (struct world *)((char *)tap - offsetof(struct world, tap));
	struct request *owner;
	struct entry *e;

	if (m->lsn <= w->lsn_seen)
		fail(w, "LSN %llu after %llu", (unsigned long long)m->lsn,
		     (unsigned long long)w->lsn_seen);
	w->lsn_seen = m->lsn;
	if (m->type != VOLUME_FLUSH) {
		if (m->offset_bytes % 512 || m->length_bytes % 512 || m->length_bytes == 0)
			fail(w, "tap: range not aligned");
		owner = owner_of(w, m);
		if (owner == NULL)
			fail(w, "tap: event type %d at %llu+%llu without a request", m->type,
			     (unsigned long long)m->offset_bytes,
			     (unsigned long long)m->length_bytes);
		assert(w->entry_count < ENTRIES_MAX && owner->entry_count < 256);
		owner->issued_to = m->offset_bytes + m->length_bytes;
		owner->entries[owner->entry_count++] = w->entry_count;
		e = &w->entries[w->entry_count++];
		*e = (struct entry){.lsn = m->lsn,
				    .offset = m->offset_bytes,
				    .length = m->length_bytes,
				    .fua = m->fua};
		if (m->type == VOLUME_WRITE) {
			e->data = malloc(m->length_bytes);
			memcpy(e->data, m->buf->data, m->length_bytes);
			memcpy(w->issued + e->offset, e->data, e->length);
		} else {
			memset(w->issued + e->offset, 0, e->length);
		}
	}
	if (!w->tap_waits || rnd(w, 2) == 0 || w->token_count == REQUESTS * 8)
		return false;
	w->tokens[w->token_count++] = token;
	return true;
}

static bool tap_ready(struct volume_tap *tap)
{
	struct world *w = (struct world *)((char *)tap - offsetof(struct world, tap));

	return w->token_count < 8;
}

static void some_acks(struct world *w)
{
	if (w->token_count == 0)
		return;
	if (rnd(w, 30) == 0) {
		w->token_count = 0;
		volume_tap_release_all(w->volume);
		return;
	}
	if (rnd(w, 3) == 0) {
		unsigned i = (unsigned)rnd(w, w->token_count);
		uint64_t token = w->tokens[i];

		w->tokens[i] = w->tokens[--w->token_count];
		volume_tap_done(w->volume, token);
		volume_tap_done(w->volume, token); /* once too often is forgiven */
		volume_tap_resume(w->volume);
	}
}

/* ---- requests ---------------------------------------------------------------------------------- */

static void request_done(struct block_request *block, int error)
{
	struct request *r = (struct request *)block;
	struct world *w = r->world;

	assert(r->busy);
	if (error != 0)
		fail(w, "request: op %d at %llu: %s", block->op,
		     (unsigned long long)block->offset_bytes, strerror(-error));
	r->busy = false;
	w->in_flight--;
	w->done_ops++;
	w->completions++;
	for (unsigned i = 0; i < r->entry_count; i++) {
		w->entries[r->entries[i]].completed = w->completions;
		struct volume_state state;

		volume_get_state(w->volume, &state);
		w->generation = state.generations.current;
	}
	if (block->op == BLOCK_FLUSH && r->covers > w->durable)
		w->durable = r->covers;
	if (block->op == BLOCK_READ && r->check) {
		if (memcmp(block->buf->data, r->expect, block->length_bytes) != 0)
			fail(w, "read at %llu+%llu differs",
			     (unsigned long long)block->offset_bytes,
			     (unsigned long long)block->length_bytes);
		w->checked_reads++;
	}
	buf_put(block->buf);
	block->buf = NULL;
}

static void random_range(struct world *w, uint64_t max, uint64_t *offset, uint64_t *length)
{
	uint64_t hot = rnd(w, 3) == 0 ? w->size : 1u << 20;

	switch (rnd(w, 4)) {
	case 0:
		*length = 1 + rnd(w, 3000);
		break;
	case 1:
		*length = 4096 * (1 + rnd(w, 8));
		break;
	case 2:
		*length = 1 + rnd(w, 200000);
		break;
	default:
		*length = 512 * (1 + rnd(w, 64));
	}
	if (rnd(w, 40) == 0)
		*length = 1 + rnd(w, max);
	if (*length > max)
		*length = max;
	*offset = rnd(w, hot);
	if (rnd(w, 2) == 0)
		*offset &= ~4095ull;
	else if (rnd(w, 2) == 0)
		*offset &= ~511ull;
	if (*offset + *length > w->size)
		*offset = w->size - *length;
}

static void no_check(struct world *w, uint64_t offset, uint64_t end)
{
	for (unsigned i = 0; i < REQUESTS; i++) {
		struct request *r = &w->requests[i];

		if (r->busy && r->block.op == BLOCK_READ &&
		    overlaps(offset, end, r->block.offset_bytes,
			     r->block.offset_bytes + r->block.length_bytes))
			r->check = false;
	}
}

static bool written_now(struct world *w, uint64_t offset, uint64_t end)
{
	for (unsigned i = 0; i < REQUESTS; i++) {
		struct request *r = &w->requests[i];

		if (r->busy && r->end > 0 && r->block.op != BLOCK_READ &&
		    overlaps(offset, end, r->block.offset_bytes, r->end + SECTOR * 8))
			return true;
	}
	return false;
}

static void submit_random(struct world *w)
{
	static const enum block_op ops[] = {BLOCK_READ,  BLOCK_READ,  BLOCK_WRITE,
					    BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE,
					    BLOCK_FLUSH, BLOCK_TRIM,  BLOCK_ZERO};
	struct request *r = w->requests;
	uint64_t offset = 0, length = 0, end;

	while (r->busy)
		r++;
	*r = (struct request){
		.world = w, .busy = true, .submitted = ++w->submissions, .expect = r->expect};
	r->block.op = ops[rnd(w, sizeof(ops) / sizeof(*ops))];
	r->block.done = request_done;
	if (r->block.op == BLOCK_TRIM && !w->trims)
		r->block.op = BLOCK_ZERO;
	if (r->block.op == BLOCK_FLUSH)
		r->covers = w->completions;
	else
		random_range(w,
			     r->block.op == BLOCK_READ || r->block.op == BLOCK_WRITE ? BUF_SIZE_MAX
										     : w->size,
			     &offset, &length);
	end = offset + length;
	r->block.offset_bytes = offset;
	r->block.length_bytes = length;
	r->issued_to = offset;
	r->end = end;
	if (r->block.op != BLOCK_READ && rnd(w, 6) == 0)
		r->block.flags = BLOCK_FUA;
	if (r->block.op == BLOCK_ZERO && rnd(w, 2) == 0)
		r->block.flags |= BLOCK_NO_HOLE;
	switch (r->block.op) {
	case BLOCK_READ:
		r->end = 0;
		r->block.buf = buf_alloc(w->pool, (uint32_t)length);
		r->check = !written_now(w, offset, end);
		memcpy(r->expect, w->client + offset, length);
		break;
	case BLOCK_WRITE:
		r->block.buf = buf_alloc(w->pool, (uint32_t)length);
		memset(r->block.buf->data, 1 + (int)rnd(w, 255), length);
		for (uint64_t i = 0; i + 8 <= length; i += 512)
			*(uint64_t *)(r->block.buf->data + i) = w->submissions * 1000003 + i;
		memcpy(w->client + offset, r->block.buf->data, length);
		no_check(w, offset, end);
		break;
	case BLOCK_TRIM:
		r->issued_to = offset = (offset + w->align - 1) / w->align * w->align;
		r->end = end = end / w->align * w->align;
		if (offset < end)
			memset(w->client + offset, 0, end - offset);
		else
			r->end = 0;
		no_check(w, offset, end);
		break;
	case BLOCK_ZERO:
		memset(w->client + offset, 0, length);
		no_check(w, offset, end);
		break;
	default:
		r->end = 0;
	}
	w->in_flight++;
	volume_block(w->volume)->ops->submit(volume_block(w->volume), &r->block);
}

/* ---- cuts --------------------------------------------------------------------------------------- */

static void cut_lost(void *context, int error)
{
	struct cut_state *c = context;

	(void)error;
	c->lost = true;
}

static void cut_end(struct cut_state *c, bool consumed)
{
	struct world *w = c->world;
	enum volume_consumer consumer = (enum volume_consumer)(c - w->cuts);
	uint32_t size = volume_consumer_block_bytes(consumer);

	if (consumed) {
		for (uint64_t b = 0; b * size < w->size; b++)
			if (c->sealed[b])
				memcpy(w->has[consumer] + b * size, c->image + b * size,
				       w->size - b * size < size ? w->size - b * size : size);
		w->checked_cuts++;
	}
	volume_cut_finish(c->cut, consumed);
	c->cut = NULL;
	free(c->image);
	free(c->sealed);
}

static void cut_read_done(struct volume_cut_read *read, int error)
{
	struct cut_state *c = (struct cut_state *)((char *)read - offsetof(struct cut_state, read));
	struct world *w = c->world;

	c->reading = false;
	if (error == 0 &&
	    memcmp(read->buf->data, c->image + read->offset_bytes, read->length_bytes) != 0)
		fail(w, "cut of consumer %d at lsn %llu: content of %llu+%u is not of the cut",
		     (int)(c - w->cuts), (unsigned long long)volume_cut_lsn(c->cut),
		     (unsigned long long)read->offset_bytes, read->length_bytes);
	if (error != 0 && !c->lost)
		c->lost = true;
	c->next = read->offset_bytes + read->length_bytes;
	buf_put(read->buf);
}

static void cut_turn(struct world *w, enum volume_consumer consumer)
{
	struct cut_state *c = &w->cuts[consumer];
	uint64_t start, length, offset = 0;
	uint32_t size = volume_consumer_block_bytes(consumer);

	if (c->cut == NULL) {
		unsigned flags = rnd(w, 4) == 0 ? VOLUME_CUT_BITS_ONLY : 0;
		int error;

		*c = (struct cut_state){.world = w, .bits_only = flags};
		error = volume_cut_begin(w->volume, consumer, flags, cut_lost, c, &c->cut);
		if (error != 0 && sim_node_dead(w->env))
			return;
		if (error != 0)
			fail(w, "cut_begin: %s", strerror(-error));
		c->image = malloc(w->size);
		memcpy(c->image, w->issued, w->size);
		c->sealed = calloc(w->size / size + 1, 1);
		while (volume_cut_next(c->cut, offset, w->size + size, &start, &length)) {
			for (uint64_t b = start / size; b * size < start + length; b++)
				c->sealed[b] = 1;
			offset = start + length;
		}
		return;
	}
	if (c->reading)
		return;
	if (c->lost || rnd(w, 60) == 0) {
		cut_end(c, false);
		return;
	}
	if (c->bits_only) {
		cut_end(c, rnd(w, 4) != 0);
		return;
	}
	if (!volume_cut_next(c->cut, c->next, size * (1 + rnd(w, BUF_SIZE_MAX / size)), &start,
			     &length)) {
		cut_end(c, true);
		return;
	}
	memset(&c->read, 0, sizeof(c->read));
	c->read.offset_bytes = start;
	c->read.length_bytes = (uint32_t)length;
	c->read.buf = buf_alloc(w->pool, (uint32_t)length);
	c->read.done = cut_read_done;
	c->reading = true;
	volume_cut_read(c->cut, &c->read);
}

/* ---- checks --------------------------------------------------------------------------------------- */

static void check_dirty(struct world *w, const uint8_t *now, const char *when)
{
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		uint32_t size = volume_consumer_block_bytes((enum volume_consumer)c);
		uint64_t dirty_end = 0, start = 0, length = 0, bytes = 0;
		bool more = true;

		for (uint64_t at = 0; at < w->size; at += size) {
			uint64_t n = w->size - at < size ? w->size - at : size;

			while (more && dirty_end <= at) {
				more = volume_dirty_next(w->volume, (enum volume_consumer)c, at,
							 &start, &length);
				dirty_end = more ? start + length : 0;
				bytes += more ? length : 0;
			}
			if (more && start <= at)
				continue;
			if (memcmp(now + at, w->has[c] + at, n) != 0)
				fail(w, "%s: consumer %u lacks %llu and its map does not say so",
				     when, c, (unsigned long long)at);
		}
		if (bytes != volume_dirty_bytes(w->volume, (enum volume_consumer)c))
			fail(w, "dirty bytes: %llu counted", (unsigned long long)bytes);
	}
}

static void forget_entries(struct world *w)
{
	for (unsigned i = 0; i < w->entry_count; i++)
		free(w->entries[i].data);
	w->entry_count = 0;
}

/* After a crash each sector is as of some event that nothing durable came after. */
static void check_content(struct world *w, const uint8_t *now)
{
	for (uint64_t s = 0; s < w->size; s += SECTOR) {
		bool good = memcmp(now + s, w->base + s, SECTOR) == 0;

		for (unsigned i = 0; i < w->entry_count; i++) {
			const struct entry *e = &w->entries[i];
			bool same, durable = e->completed != 0 &&
					     (e->fua || e->completed <= w->durable);
			static const uint8_t zero[SECTOR];

			if (!overlaps(s, s + SECTOR, e->offset, e->offset + e->length))
				continue;
			same = memcmp(now + s, e->data ? e->data + (s - e->offset) : zero,
				      SECTOR) == 0;
			good = durable ? same : good || same;
		}
		if (!good)
			fail(w, "after the crash: sector at %llu is none it can be",
			     (unsigned long long)s);
	}
}

static void open_volume(struct world *w)
{
	char why[256];
	int error = volume_open(w->env, &w->config, &w->volume, why, sizeof(why));
	struct volume_state state;

	if (error != 0)
		fail(w, "open: %s", why);
	volume_get_state(w->volume, &state);
	if (state.lsn < w->lsn_seen)
		fail(w, "LSN went back");
	if (!id128_is_zero(&w->generation) &&
	    !id128_equal(&w->generation, &state.generations.current)) {
		/* A later bump may have become durable before any write under it completed. */
		bool known = false;

		for (unsigned i = 0; i < VOLUME_HISTORY; i++)
			known |= id128_equal(&w->generation, &state.generations.history[i]);
		if (!known)
			fail(w, "the generation is forgotten");
	}
	volume_set_tap(w->volume, &w->tap);
}

static void after_open(struct world *w, bool crashed)
{
	uint8_t *now = malloc(w->size);

	if (!sim_file_peek(w->env, w->config.backing, now, w->size, 0))
		fail(w, "no backing");
	if (crashed)
		check_content(w, now);
	else if (memcmp(now, w->issued, w->size) != 0)
		fail(w, "content changed over a clean restart");
	check_dirty(w, now, crashed ? "after a crash" : "after a clean restart");
	memcpy(w->client, now, w->size);
	memcpy(w->issued, now, w->size);
	free(now);
	/* After a kill the disk's cache still holds what it held: nothing became durable by that. */
	if (crashed && w->crash_mode == SIM_CRASH_KILL)
		return;
	memcpy(w->base, w->issued, w->size);
	forget_entries(w);
	w->durable = w->completions;
}

static void suspend(struct world *w, bool suspended)
{
	w->suspended = suspended;
	volume_suspend(w->volume, VOLUME_SUSPEND_OPERATOR, suspended);
}

static void step(struct world *w)
{
	if (!sim_step(w->sim) && !sim_node_dead(w->env) && w->in_flight > 0 &&
	    w->token_count == 0 && !w->suspended)
		fail(w, "nothing happens any more with %u requests under way", w->in_flight);
	if (!sim_node_dead(w->env))
		volume_check(w->volume);
}

static void quiesce(struct world *w)
{
	for (unsigned i = 0; w->in_flight > 0 || w->cuts[0].reading || w->cuts[1].reading; i++) {
		while (w->token_count > 0)
			some_acks(w);
		volume_tap_resume(w->volume);
		step(w);
		if (i > 2000000)
			fail(w, "does not come to rest");
	}
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		if (w->cuts[c].cut != NULL)
			cut_end(&w->cuts[c], false);
}

static void check_at_rest(struct world *w)
{
	uint8_t *now = malloc(w->size);

	if (!sim_file_peek(w->env, w->config.backing, now, w->size, 0))
		fail(w, "no backing");
	if (memcmp(now, w->issued, w->size) != 0)
		fail(w, "the disk is not what the tap was told");
	if (memcmp(now, w->client, w->size) != 0) {
		uint64_t at = 0;

		while (now[at] == w->client[at])
			at++;
		fail(w, "the disk is not what was written, at %llu", (unsigned long long)at);
	}
	check_dirty(w, now, "at rest");
	free(now);
}

static void closed(void *context)
{
	((struct world *)context)->closed = true;
}

static void restart_cleanly(struct world *w)
{
	uint64_t before[VOLUME_CONSUMERS];

	quiesce(w);
	check_at_rest(w);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		before[c] = volume_dirty_bytes(w->volume, (enum volume_consumer)c);
	volume_set_tap(w->volume, NULL);
	w->closed = false;
	volume_close(w->volume, closed, w);
	if (!sim_run_until(w->sim, &w->closed, 60ull * 1000000000))
		fail(w, "close does not end");
	open_volume(w);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		if (before[c] != volume_dirty_bytes(w->volume, (enum volume_consumer)c))
			fail(w, "consumer %u: other dirty bytes after a clean restart", c);
	after_open(w, false);
}

static void drop_all(struct world *w)
{
	for (unsigned i = 0; i < REQUESTS; i++) {
		if (w->requests[i].busy)
			buf_put(w->requests[i].block.buf);
		w->requests[i].busy = false;
	}
	w->in_flight = 0;
	w->token_count = 0;
	w->suspended = false;
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		if (w->cuts[c].cut == NULL)
			continue;
		if (w->cuts[c].reading)
			buf_put(w->cuts[c].read.buf);
		free(w->cuts[c].image);
		free(w->cuts[c].sealed);
		w->cuts[c] = (struct cut_state){0};
	}
}

static void crash(struct world *w)
{
	if (!sim_node_dead(w->env)) {
		w->crash_mode = (enum sim_crash)rnd(w, 4);
		if (w->entry_count >= ENTRIES_MAX / 2)
			w->crash_mode = SIM_CRASH_POWER;
		sim_crash(w->sim, w->env, w->crash_mode);
	}
	w->crashes++;
	/* Everything of before hangs in the air; its memory may still be named by the volume. */
	drop_all(w);
	w->env = sim_restart(w->sim, w->env);
	open_volume(w);
	after_open(w, true);
}

static struct world *world_new(uint64_t seed)
{
	struct world *w = calloc(1, sizeof(*w));
	unsigned counts[3] = {256, 128, 96};
	struct sim_disk_options disk;

	w->seed = seed;
	w->sim = sim_new(seed);
	w->env = sim_node(w->sim, "a");
	w->pool = buf_pool_new(counts);
	w->size = (3 + rnd(w, 20)) << 20 | rnd(w, 256) << 12;
	sim_disk_get(w->env, &disk);
	w->trims = true;
	if (rnd(w, 4) == 0) {
		disk.zero_unsupported = true;
		w->trims = false;
		sim_disk_set(w->env, &disk);
	}
	w->align = disk.align_bytes;
	w->tap.issue = tap_issue;
	w->tap.ready = tap_ready;
	w->tap_waits = rnd(w, 2);
	w->client = calloc(1, w->size);
	w->issued = calloc(1, w->size);
	w->base = calloc(1, w->size);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		w->has[c] = calloc(1, w->size);
	for (unsigned i = 0; i < REQUESTS; i++)
		w->requests[i].expect = malloc(BUF_SIZE_MAX);
	w->config = (struct volume_config){
		.name = "pgdata",
		.backing = "/disk/pg.img",
		.state_dir = "/state/pgdata",
		.size_bytes = w->size,
		.role = VOLUME_PRIMARY,
		.preserve_max_bytes = rnd(w, 3) == 0 ? 1 << 20 : 0,
		.intent_max_regions = rnd(w, 2) == 0 ? 4 : 0,
	};
	env_mkdir(w->env, "/disk");
	open_volume(w);
	return w;
}

static void world_free(struct world *w)
{
	forget_entries(w);
	for (unsigned i = 0; i < REQUESTS; i++)
		free(w->requests[i].expect);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		free(w->has[c]);
	free(w->client);
	free(w->issued);
	free(w->base);
	buf_pool_free(w->pool);
	sim_free(w->sim);
	free(w);
}

/* What happens to a volume that runs. */
static void life_turn(struct world *w)
{
	some_acks(w);
	if (sim_node_dead(w->env))
		return;
	if (rnd(w, 5) == 0)
		cut_turn(w, (enum volume_consumer)rnd(w, VOLUME_CONSUMERS));
	if (rnd(w, w->suspended ? 20 : 100) == 0)
		suspend(w, !w->suspended);
	if (rnd(w, 40) == 0) {
		w->in_sync = !w->in_sync;
		volume_set_peer_in_sync(w->volume, w->in_sync);
	}
	/* Lets regions become idle and be retired. */
	if (rnd(w, 100) == 0)
		sim_run_until(w->sim, NULL, 7ull * 1000000000);
}

/* Now and then it crashes, at once or some requests later, or is closed and opened. */
static void death_turn(struct world *w)
{
	if (rnd(w, 150) == 0) {
		w->crash_mode = (enum sim_crash)rnd(w, 4);
		sim_crash_after_ios(w->sim, w->env, 1 + rnd(w, 40), w->crash_mode);
	}
	if (sim_node_dead(w->env) || rnd(w, 250) == 0 || w->entry_count >= ENTRIES_MAX - 600) {
		w->in_sync = false;
		crash(w);
	} else if (rnd(w, 300) == 0) {
		w->in_sync = false;
		sim_crash_after_ios(w->sim, w->env, 0, SIM_CRASH_KILL);
		suspend(w, false);
		restart_cleanly(w);
	}
}

static void end_cleanly(struct world *w)
{
	sim_crash_after_ios(w->sim, w->env, 0, SIM_CRASH_KILL);
	suspend(w, false);
	restart_cleanly(w);
	volume_set_tap(w->volume, NULL);
	w->closed = false;
	volume_close(w->volume, closed, w);
	if (!sim_run_until(w->sim, &w->closed, 60ull * 1000000000))
		fail(w, "close does not end");
}

static void run(uint64_t seed)
{
	struct world *w = world_new(seed);
	unsigned depth = 1 + (unsigned)rnd(w, REQUESTS);
	unsigned turns = 300 + (unsigned)rnd(w, 900);

	for (unsigned i = 0; i < turns; i++) {
		if (w->in_flight < depth && w->entry_count < ENTRIES_MAX - 600)
			submit_random(w);
		for (unsigned k = (unsigned)rnd(w, 12); k > 0 && !sim_node_dead(w->env); k--)
			step(w);
		if (!sim_node_dead(w->env))
			life_turn(w);
		death_turn(w);
	}
	if (!sim_node_dead(w->env))
		end_cleanly(w);
	if (getenv("VERBOSE"))
		printf("seed %llu: %llu requests, %llu reads checked, %llu cuts, %llu crashes\n",
		       (unsigned long long)seed, (unsigned long long)w->done_ops,
		       (unsigned long long)w->checked_reads, (unsigned long long)w->checked_cuts,
		       (unsigned long long)w->crashes);
	world_free(w);
}

/* The memory of volumes that crashed is dropped, as env_sim.h says. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0";
}

int main(int argc, char **argv)
{
	const char *seed_text = argc > 1 ? argv[1] : getenv("SEED");
	const char *runs_text = argc > 2 ? argv[2] : getenv("RUNS");
	uint64_t seed = seed_text ? strtoull(seed_text, NULL, 10) : 1;
	uint64_t runs = runs_text ? strtoull(runs_text, NULL, 10) : 25;

	printf("volume_random_sim: seeds %llu to %llu\n", (unsigned long long)seed,
	       (unsigned long long)(seed + runs - 1));
	fflush(stdout);
	for (uint64_t i = 0; i < runs; i++)
		run(seed + i);
	printf("ok volume_random_sim\n");
	return 0;
}
