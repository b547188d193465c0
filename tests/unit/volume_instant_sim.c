// SPDX-License-Identifier: Apache-2.0
/*
 * A volume that is filled from a snapshot while clients use it: with a crash at any operation on its files,
 * with an origin that is away, slow or cannot give a block, and given up in the middle. Each sector carries
 * a stamp that says who wrote it: the time before (never to be seen again), the snapshot, or a client.
 * time limit: 300 s
 */
#include <errno.h>
#include "daemon/io/buf.h"

#define MIB           (1024ull * 1024)
#define MINUTE        (60ull * 1000000000)
#define FIXTURE_BYTES (40 * MIB + 8192) /* the map's bits fill several sectors */
#define FIXTURE_SEED  23
#include "tests/unit/volume_alone.h"

#define SECTOR  512u
#define SECTORS (FIXTURE_BYTES / SECTOR)
#define OLD     (1ull << 60)
#define SNAP    (2ull << 60)
#define CLIENT  (3ull << 60)

static void stamp(uint8_t *sector, uint64_t value)
{
	for (unsigned i = 0; i < SECTOR; i += 8)
		memcpy(sector + i, &value, 8);
}

static uint64_t stamp_of(const uint8_t *sector)
{
	uint64_t value, other;

	memcpy(&value, sector, 8);
	for (unsigned i = 8; i < SECTOR; i += 8) {
		memcpy(&other, sector + i, 8);
		if (other != value)
			return UINT64_MAX;
	}
	return value;
}

/* The snapshot: data, and a long run of zeroes in the middle; chunks alternate at its end. */
static uint64_t snapshot_value(uint64_t sector)
{
	uint64_t chunk = sector * SECTOR / 65536;

	if ((chunk >= 20 && chunk < 70) || (chunk > 80 && chunk % 2))
		return 0;
	return SNAP | sector;
}

/* ---- an origin ------------------------------------------------------------------------------------ */

struct question {
	struct env_timer timer;
	struct world *world;
	struct volume_origin_read *read;
};

struct world {
	struct volume_origin origin;
	struct fixture *f;
	bool over, filled;
	unsigned asked;
	uint64_t delay_ns;
	uint64_t bad_start, bad_end; /* cannot be had */
	/* What each sector may hold: what was durable for certain, what was acknowledged last, and what
	 * was written since the flush, acknowledged or not. */
	uint64_t durable[SECTORS], acked[SECTORS];
	uint64_t since[SECTORS][8];
	uint8_t since_count[SECTORS];
	uint64_t next;
};

static void answer(struct env_timer *timer)
{
	struct question *q = (struct question *)timer;
	struct volume_origin_read *read = q->read;
	struct world *w = q->world;
	int error = 0;

	for (uint32_t at = 0; at < read->length_bytes; at += SECTOR)
		stamp(read->data + at, snapshot_value((read->offset_bytes + at) / SECTOR));
	if (read->offset_bytes < w->bad_end &&
	    w->bad_start < read->offset_bytes + read->length_bytes)
		error = -EIO;
	free(q);
	read->done(read, error);
}

static void origin_read(struct volume_origin *origin, struct volume_origin_read *read)
{
	struct world *w = (struct world *)origin;
	struct question *q = calloc(1, sizeof(*q));

	q->timer.fire = answer;
	q->world = w;
	q->read = read;
	w->asked++;
	env_timer_start(w->f->env, &q->timer, 1 + sim_random(w->f->sim, w->delay_ns));
}

/* Coarse, as the manifest is: whole MiB. */
static bool origin_next_data(struct volume_origin *origin, uint64_t offset, uint64_t *start,
			     uint64_t *end)
{
	for (uint64_t s = offset / SECTOR; s < SECTORS; s++)
		if (snapshot_value(s) != 0) {
			*start = s * SECTOR / MIB * MIB;
			*end = *start + MIB < FIXTURE_BYTES ? *start + MIB : FIXTURE_BYTES;
			if (*start < offset)
				*start = offset;
			return true;
		}
	return false;
}

static void origin_over(struct volume_origin *origin, bool filled)
{
	struct world *w = (struct world *)origin;

	w->over = true;
	w->filled = filled;
}

static const struct volume_source source = {
	.volume = {{7}}, .snapshot = {{8}}, .sequence = 3, .pinned = false};

static struct world *world_new(struct fixture *f)
{
	struct world *w = calloc(1, sizeof(*w));

	w->origin = (struct volume_origin){
		.read = origin_read, .next_data = origin_next_data, .over = origin_over};
	w->f = f;
	w->delay_ns = 3000000;
	return w;
}

static int begin(struct world *w)
{
	return volume_hydrate_from(w->f->volume, &source, &w->origin, w->f->why, sizeof(w->f->why));
}

/* A disk full of what must never be seen again. */
static void old_content(struct fixture *f)
{
	struct env_file *file;
	uint8_t *image = malloc(FIXTURE_BYTES);

	for (uint64_t s = 0; s < SECTORS; s++)
		stamp(image + s * SECTOR, OLD | s);
	assert_int_equal(env_file_open(f->env, "/disk/v.img",
				       ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE, &file),
			 0);
	assert_int_equal(env_file_pwrite(f->env, file, image, FIXTURE_BYTES, 0), 0);
	assert_int_equal(env_file_sync(f->env, file), 0);
	assert_int_equal(env_sync_dir(f->env, "/disk"), 0);
	env_file_close(f->env, file);
	free(image);
}

static void begin_history(struct world *w)
{
	for (uint64_t s = 0; s < SECTORS; s++) {
		w->durable[s] = w->acked[s] = snapshot_value(s);
		w->since_count[s] = 0;
	}
}

/* ---- clients ---------------------------------------------------------------------------------------- */

struct client {
	struct request r;
	struct world *w;
	uint64_t value; /* of a write: what its sectors carry */
	bool busy, alone;
};

static bool overlaps(const struct client *clients, unsigned count, uint64_t offset, uint64_t length)
{
	for (unsigned i = 0; i < count; i++) {
		const struct block_request *b = &clients[i].r.block;

		if (clients[i].busy && b->op != BLOCK_FLUSH &&
		    offset / 4096 <= (b->offset_bytes + b->length_bytes) / 4096 &&
		    b->offset_bytes / 4096 <= (offset + length) / 4096)
			return true;
	}
	return false;
}

static void note_written(struct world *w, const struct block_request *b, uint64_t value)
{
	for (uint64_t s = b->offset_bytes / SECTOR;
	     s < (b->offset_bytes + b->length_bytes) / SECTOR; s++) {
		assert_true(w->since_count[s] < 8);
		w->since[s][w->since_count[s]++] = value;
	}
}

static bool client_start(struct world *w, struct client *clients, unsigned count, struct client *c)
{
	struct fixture *f = w->f;
	unsigned what = (unsigned)sim_random(f->sim, 10);
	struct block_request *b = &c->r.block;

	memset(c, 0, sizeof(*c));
	c->w = w;
	b->op = what < 5   ? BLOCK_WRITE
		: what < 7 ? BLOCK_READ
		: what < 8 ? BLOCK_ZERO
			   : BLOCK_FLUSH;
	b->done = request_done;
	if (b->op != BLOCK_FLUSH) {
		uint64_t most = sim_random(f->sim, 4) ? 24 : 600;

		b->length_bytes = (uint32_t)((1 + sim_random(f->sim, most)) * SECTOR);
		b->offset_bytes = sim_random(f->sim, SECTORS) * SECTOR;
		if (sim_random(f->sim, 2)) { /* whole blocks */
			b->offset_bytes &= ~4095ull;
			b->length_bytes = (b->length_bytes + 4095) & ~4095u;
		}
		if (b->offset_bytes + b->length_bytes > FIXTURE_BYTES ||
		    overlaps(clients, count, b->offset_bytes, b->length_bytes))
			return false;
		for (uint64_t s = b->offset_bytes / SECTOR;
		     s < (b->offset_bytes + b->length_bytes) / SECTOR; s++)
			if (w->since_count[s] == 8)
				return false;
	}
	if (b->op == BLOCK_WRITE || b->op == BLOCK_READ) {
		b->buf = buf_alloc(f->pool, (uint32_t)b->length_bytes);
		if (b->buf == NULL)
			return false;
	}
	if (b->op == BLOCK_WRITE) {
		c->value = CLIENT | ++w->next;
		for (uint32_t at = 0; at < b->length_bytes; at += SECTOR)
			stamp(b->buf->data + at, c->value);
		b->flags = sim_random(f->sim, 5) ? 0 : BLOCK_FUA;
	}
	if (b->op == BLOCK_WRITE || b->op == BLOCK_ZERO)
		note_written(w, b, c->value);
	c->alone = true;
	for (unsigned i = 0; i < count; i++)
		c->alone &= !clients[i].busy;
	c->busy = true;
	volume_block(f->volume)->ops->submit(volume_block(f->volume), b);
	return true;
}

static void client_end(struct world *w, struct client *c)
{
	struct block_request *b = &c->r.block;
	uint64_t first = b->offset_bytes / SECTOR;

	assert_int_equal(c->r.wait.error, 0);
	for (uint64_t i = 0; b->op == BLOCK_READ && i < b->length_bytes / SECTOR; i++)
		if (stamp_of(b->buf->data + i * SECTOR) != w->acked[first + i])
			fail_msg("sector %llu reads %llx instead of %llx",
				 (unsigned long long)(first + i),
				 (unsigned long long)stamp_of(b->buf->data + i * SECTOR),
				 (unsigned long long)w->acked[first + i]);
	for (uint64_t i = 0;
	     (b->op == BLOCK_WRITE || b->op == BLOCK_ZERO) && i < b->length_bytes / SECTOR; i++) {
		w->acked[first + i] = c->value;
		if (b->flags & BLOCK_FUA) {
			w->durable[first + i] = c->value;
			w->since_count[first + i] = 0;
		}
	}
	/* A flush covers what was complete when it came: known for sure when nothing was under way. */
	if (b->op == BLOCK_FLUSH) {
		for (uint64_t s = 0; c->alone && s < SECTORS; s++) {
			w->durable[s] = w->acked[s];
			w->since_count[s] = 0;
		}
	}
	buf_put(b->buf);
	c->busy = false;
}

/* So many requests, three at a time; a flush comes alone. False: the node died. */
static bool clients_run(struct world *w, unsigned requests)
{
	struct client *clients = calloc(3, sizeof(*clients));
	struct fixture *f = w->f;
	unsigned busy = 0;

	while (requests > 0 || busy > 0) {
		bool flush = false;

		for (unsigned i = 0; i < 3; i++)
			flush |= clients[i].busy && clients[i].r.block.op == BLOCK_FLUSH;
		for (unsigned i = 0; i < 3 && requests > 0 && !flush; i++)
			if (!clients[i].busy && client_start(w, clients, 3, &clients[i])) {
				busy++;
				requests--;
				flush = clients[i].r.block.op == BLOCK_FLUSH;
			}
		if (busy == 0)
			continue;
		if (sim_node_dead(f->env) || !sim_step(f->sim) || sim_node_dead(f->env)) {
			for (unsigned i = 0; i < 3; i++)
				if (clients[i].busy)
					buf_put(clients[i].r.block.buf);
			free(clients);
			return false;
		}
		volume_check(f->volume);
		for (unsigned i = 0; i < 3; i++)
			if (clients[i].busy && clients[i].r.wait.done) {
				client_end(w, &clients[i]);
				busy--;
			}
	}
	free(clients);
	return true;
}

/* ---- what is there after a crash ------------------------------------------------------------------------ */

static bool legal(const struct world *w, uint64_t s, uint64_t value, enum sim_crash mode)
{
	bool is_acked = value == w->acked[s];

	for (unsigned i = 0; i < w->since_count[s]; i++) {
		if (w->since[s][i] != value)
			continue;
		/* kill -9: nothing from before what was acknowledged last. */
		if (mode != SIM_CRASH_KILL || is_acked)
			return true;
		for (unsigned k = 0; k < i; k++)
			if (w->since[s][k] == w->acked[s])
				return true;
		return w->acked[s] == w->durable[s];
	}
	return mode == SIM_CRASH_KILL ? is_acked : value == w->durable[s];
}

/* Reads all of it, and takes what is there for the beginning of a new history. */
static void check_all(struct world *w, enum sim_crash mode)
{
	struct fixture *f = w->f;

	for (uint64_t at = 0; at < FIXTURE_BYTES;) {
		uint64_t length = FIXTURE_BYTES - at < 65536 ? FIXTURE_BYTES - at : 65536;
		struct request *r = submit(f, BLOCK_READ, 0, at, length, 0xee);

		assert_true(r->wait.done || sim_run_until(f->sim, &r->wait.done, MINUTE));
		assert_int_equal(r->wait.error, 0);
		for (uint64_t i = 0; i < length / SECTOR; i++) {
			uint64_t s = at / SECTOR + i;
			uint64_t value = stamp_of(r->block.buf->data + i * SECTOR);

			if (!legal(w, s, value, mode))
				fail_msg("sector %llu holds %llx: durable %llx, acknowledged %llx",
					 (unsigned long long)s, (unsigned long long)value,
					 (unsigned long long)w->durable[s],
					 (unsigned long long)w->acked[s]);
			w->acked[s] = w->durable[s] = value;
			w->since_count[s] = 0;
		}
		finish(f, r);
		at += length;
	}
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), 0);
}

static bool is_filling(const struct fixture *f)
{
	return volume_source(f->volume, NULL);
}

static void fill_up(struct world *w)
{
	struct fixture *f = w->f;

	if (is_filling(f))
		assert_true(sim_run_until(f->sim, &w->over, 10 * MINUTE));
	volume_get_state(f->volume, &f->state);
	assert_int_equal(f->state.disk, VOLUME_DISK_UPTODATE);
}

/* ---- tests ------------------------------------------------------------------------------------------------ */

static void is_used_before_it_is_filled(void **state)
{
	struct fixture *f = *state;
	struct world *w = world_new(f);
	struct volume_stats stats;
	struct request *read;

	f->config.hydrate_max_bytes_per_second = MIB;
	old_content(f);
	open_it(f);
	assert_int_equal(begin(w), 0);
	begin_history(w);
	volume_get_state(f->volume, &f->state);
	assert_int_equal(f->state.disk, VOLUME_DISK_INCONSISTENT);
	assert_true(id128_equal(&f->state.uuid, &source.volume)); /* nobody wrote to it before */
	assert_true(id128_equal(&f->state.snapshot, &source.snapshot));
	/* A read does not wait for the background. */
	read = submit(f, BLOCK_READ, 0, 5 * MIB, 4096, 0);
	assert_true(sim_run_until(f->sim, &read->wait.done, 50000000));
	assert_int_equal(stamp_of(read->block.buf->data), snapshot_value(5 * MIB / SECTOR));
	finish(f, read);
	volume_get_stats(f->volume, &stats);
	assert_true(stats.missing_bytes > 4 * MIB);
	assert_true(clients_run(w, 300));
	fill_up(w);
	assert_true(w->filled);
	check_all(w, SIM_CRASH_KILL);
	/* The next snapshot looks at what clients wrote, the peer gets all that is different. */
	assert_true(volume_dirty_bytes(f->volume, VOLUME_STORE) > 0);
	assert_true(volume_dirty_bytes(f->volume, VOLUME_PEER) >= FIXTURE_BYTES - 4096);
	close_it(f);
	open_it(f);
	assert_false(is_filling(f));
	check_all(w, SIM_CRASH_KILL);
	close_it(f);
	free(w);
}

/* The sparse backing of a new volume: what is zero on both sides is neither asked for nor written. */
static void what_is_zero_on_both_sides_is_there(void **state)
{
	struct fixture *f = *state;
	struct world *w = world_new(f);
	struct volume_stats stats;

	open_it(f);
	assert_int_equal(begin(w), 0);
	volume_get_stats(f->volume, &stats);
	assert_int_equal(stats.missing_bytes,
			 FIXTURE_BYTES - 2 * MIB); /* a MiB is whole if any of it is data */
	begin_history(w);
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	volume_set_origin(f->volume, &w->origin);
	volume_get_stats(f->volume, &stats);
	assert_int_equal(stats.missing_bytes, FIXTURE_BYTES - 2 * MIB);
	fill_up(w);
	check_all(w, SIM_CRASH_KILL);
	close_it(f);
	free(w);
}

/* The disk is the snapshot and three chunks: three are fetched. */
static void only_what_differs_is_fetched_where_that_is_known(void **state)
{
	struct fixture *f = *state;
	struct world *w = world_new(f);
	struct volume_stats stats;
	struct volume_state s;

	open_it(f);
	assert_int_equal(begin(w), 0);
	begin_history(w);
	fill_up(w);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(simple(f, BLOCK_WRITE, i * 11 * 65536, 4096, 9), 0);
	w->asked = 0;
	w->over = false;
	assert_int_equal(begin(w), 0);
	volume_get_stats(f->volume, &stats);
	assert_int_equal(stats.missing_bytes, 3 * 65536);
	fill_up(w);
	assert_true(w->asked <= 3);
	check_all(w, SIM_CRASH_KILL);
	/* Not where somebody else's hand was in it. */
	volume_get_state(f->volume, &s);
	assert_int_equal(volume_begin_applying(f->volume), 0);
	assert_int_equal(volume_set_state(f->volume, &s), 0);
	w->over = false;
	assert_int_equal(volume_begin_applying(f->volume), 0);
	assert_int_equal(begin(w), 0);
	volume_get_stats(f->volume, &stats);
	assert_true(stats.missing_bytes > 3 * MIB);
	fill_up(w);
	close_it(f);
	free(w);
}

static void reads_wait_while_the_origin_is_away(void **state)
{
	struct fixture *f = *state;
	struct world *w = world_new(f);
	struct request *read, *write;

	old_content(f);
	open_it(f);
	assert_int_equal(begin(w), 0);
	begin_history(w);
	crash_it(f, SIM_CRASH_KILL);
	open_it(f);
	assert_true(is_filling(f));
	read = submit(f, BLOCK_READ, 0, MIB, 4096, 0);
	write = submit(f, BLOCK_WRITE, 0, 2 * MIB, 4096, 5);
	assert_true(sim_run_until(f->sim, &write->wait.done, MINUTE)); /* goes through */
	assert_int_equal(finish(f, write), 0);
	assert_true(reads_as(f, 2 * MIB, 4096, 5));
	assert_false(sim_run_until(f->sim, &read->wait.done, MINUTE));
	volume_set_origin(f->volume, &w->origin);
	assert_true(sim_run_until(f->sim, &read->wait.done, MINUTE));
	assert_int_equal(stamp_of(read->block.buf->data), snapshot_value(MIB / SECTOR));
	assert_int_equal(finish(f, read), 0);
	fill_up(w);
	assert_true(reads_as(f, 2 * MIB, 4096, 5));
	close_it(f);
	free(w);
}

static void what_the_snapshot_does_not_give_is_an_error(void **state)
{
	struct fixture *f = *state;
	struct world *w = world_new(f);
	struct volume_stats stats;

	old_content(f);
	open_it(f);
	w->bad_start = 3 * MIB + 65536;
	w->bad_end = w->bad_start + 65536;
	assert_int_equal(begin(w), 0);
	begin_history(w);
	assert_int_equal(simple(f, BLOCK_READ, w->bad_start, 4096, 0), -EIO);
	assert_int_equal(simple(f, BLOCK_WRITE, w->bad_start, 512, 1), -EIO); /* needs the rest */
	assert_int_equal(simple(f, BLOCK_READ, MIB, 4096, 0), 0);
	assert_false(sim_run_until(f->sim, &w->over, MINUTE));
	volume_get_state(f->volume, &f->state);
	assert_int_equal(f->state.disk, VOLUME_DISK_INCONSISTENT);
	volume_get_stats(f->volume, &stats);
	assert_int_equal(stats.missing_bytes, 65536); /* all else is there */
	/* A client's write mends it. */
	assert_int_equal(simple(f, BLOCK_WRITE, w->bad_start, 65536, 1), 0);
	fill_up(w);
	assert_true(reads_as(f, w->bad_start, 65536, 1));
	close_it(f);
	free(w);
}

static void is_given_up_for_good(void **state)
{
	struct fixture *f = *state;
	struct world *w = world_new(f);

	old_content(f);
	open_it(f);
	assert_int_equal(begin(w), 0);
	assert_int_equal(begin(w), -EBUSY);
	assert_int_equal(volume_hydrate_give_up(f->volume), 0);
	assert_true(w->over && !w->filled);
	crash_it(f, SIM_CRASH_POWER);
	open_it(f);
	assert_false(is_filling(f));
	volume_get_state(f->volume, &f->state);
	assert_int_equal(f->state.disk, VOLUME_DISK_INCONSISTENT);
	assert_int_equal(
		volume_block(f->volume)->ops->open(volume_block(f->volume), f->why, sizeof(f->why)),
		-EPERM);
	w->over = false;
	assert_int_equal(begin(w), 0);
	begin_history(w);
	fill_up(w);
	check_all(w, SIM_CRASH_KILL);
	close_it(f);
	free(w);
}

/* What was asked of the one before may be answered still: none of it goes to the disk. */
static void begins_again_when_the_last_answer_came(void **state)
{
	struct fixture *f = *state;
	struct world *w = world_new(f);
	bool never = false;
	int error;

	old_content(f);
	open_it(f);
	w->delay_ns = 2000000000;
	assert_int_equal(begin(w), 0);
	sim_run_until(f->sim, &never, 100000000);
	assert_int_equal(volume_hydrate_give_up(f->volume), 0);
	w->over = false;
	assert_int_equal(begin(w), -EBUSY);
	while ((error = begin(w)) == -EBUSY)
		assert_true(sim_step(f->sim));
	assert_int_equal(error, 0);
	w->delay_ns = 3000000;
	begin_history(w);
	fill_up(w);
	check_all(w, SIM_CRASH_KILL);
	close_it(f);
	free(w);
}

/* Nothing is cut, grown or begun twice meanwhile; and it needs a volume that nobody uses. */
static void refuses_what_needs_a_whole_disk(void **state)
{
	struct fixture *f = *state;
	struct world *w = world_new(f);
	struct volume_cut *cut;

	open_it(f);
	assert_int_equal(
		volume_block(f->volume)->ops->open(volume_block(f->volume), f->why, sizeof(f->why)),
		0);
	assert_int_equal(begin(w), -EBUSY);
	volume_block(f->volume)->ops->close(volume_block(f->volume));
	w->delay_ns = 100000000;
	assert_int_equal(begin(w), 0);
	assert_false(volume_is_whole(f->volume));
	assert_int_equal(
		volume_cut_begin(f->volume, VOLUME_STORE, VOLUME_CUT_LIVE, NULL, NULL, &cut), -EIO);
	assert_int_equal(volume_grow_check(f->volume, 64 * MIB, f->why, sizeof(f->why)), -EPERM);
	begin_history(w);
	fill_up(w);
	close_it(f);
	free(w);
}

static void fail_to_begin(struct world *w)
{
	struct fixture *f = w->f;

	set_errors(f, "/super", 0, 1000000);
	assert_int_equal(begin(w), -EIO);
	set_errors(f, NULL, 0, 0);
	volume_get_state(f->volume, &f->state);
	assert_int_equal(f->state.disk, VOLUME_DISK_UPTODATE);
}

/* The superblock that begins it may be on the disk, though its fsync failed: it must not come into force later,
 * over what clients wrote after that. */
static void a_beginning_that_failed_has_none_later(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < 16; i++) {
		struct fixture life = *f;
		struct world *w = world_new(&life);

		life.sim = sim_new(31000 + i);
		life.env = sim_node(life.sim, "a");
		env_mkdir(life.env, "/disk");
		old_content(&life);
		open_it(&life);
		assert_int_equal(simple(&life, BLOCK_WRITE, MIB, 4096, 6), 0);
		fail_to_begin(w);
		assert_int_equal(simple(&life, BLOCK_WRITE, MIB, 4096, 7), 0);
		assert_int_equal(simple(&life, BLOCK_FLUSH, 0, 0, 0), 0);
		crash_it(&life, SIM_CRASH_KILL);
		open_it(&life);
		assert_false(is_filling(&life));
		assert_true(reads_as(&life, MIB, 4096, 7));
		close_it(&life);
		sim_free(life.sim);
		free(w);
	}
}

/* Opened again after a crash; what it holds is checked. */
static void revive(struct world *w, enum sim_crash mode, bool first)
{
	struct fixture *f = w->f;

	f->env = sim_restart(f->sim, f->env);
	w->over = false;
	open_it(f);
	volume_get_state(f->volume, &f->state);
	if (first && !is_filling(f) && id128_is_zero(&f->state.snapshot)) { /* it had not begun */
		assert_int_equal(f->state.disk, VOLUME_DISK_UPTODATE);
		assert_int_equal(begin(w), 0);
		begin_history(w);
	}
	volume_set_origin(f->volume, &w->origin);
	check_all(w, mode);
}

/* A crash at the k-th operation on a file, then up to two more at random. */
static void one_life(struct fixture *f, uint64_t k, enum sim_crash mode, bool old)
{
	struct world *w = world_new(f);
	bool died;

	if (old)
		old_content(f);
	open_it(f);
	sim_crash_after_ios(f->sim, f->env, k, mode);
	begin_history(w);
	died = begin(w) != 0 || sim_node_dead(f->env) || !clients_run(w, 60);
	for (unsigned round = 0; died && round < 3; round++) {
		revive(w, mode, round == 0);
		if (round == 2)
			break;
		sim_crash_after_ios(f->sim, f->env, 1 + sim_random(f->sim, 200), mode);
		died = !clients_run(w, 20) || sim_node_dead(f->env);
	}
	sim_crash_after_ios(f->sim, f->env, 0, mode);
	fill_up(w);
	check_all(w, SIM_CRASH_KILL);
	close_it(f);
	free(w);
}

static void a_crash_anywhere_loses_nothing(void **state)
{
	static const enum sim_crash modes[] = {SIM_CRASH_KILL, SIM_CRASH_POWER,
					       SIM_CRASH_POWER_DROP};
	struct fixture *f = *state;
	const char *only = getenv("LIFE");

	for (unsigned k = 1; k < 500; k += k < 40 ? 1 : 7) {
		struct fixture life = *f;
		if (only && strtoul(only, NULL, 10) != k)
			continue;
		sim_note(life.sim, "LIFE=%u", k);
		life.sim = sim_new(FIXTURE_SEED * 1000 + k);
		life.env = sim_node(life.sim, "a");
		env_mkdir(life.env, "/disk");
		one_life(&life, k, modes[k % 3], k % 2);
		sim_free(life.sim);
	}
}

/* A power cut tears the page of the map that is on its way. */
static void a_torn_page_undoes_nothing(void **state)
{
	struct fixture *f = *state;

	for (unsigned k = 68; k < 76; k++) {
		struct fixture life = *f;

		life.sim = sim_new(77000 + k);
		life.env = sim_node(life.sim, "a");
		env_mkdir(life.env, "/disk");
		one_life(&life, k, SIM_CRASH_POWER, true);
		sim_free(life.sim);
	}
}

/* What the map says nobody knows then; that all of it is missing would undo what clients wrote. */
static void a_map_that_cannot_be_read_undoes_nothing(void **state)
{
	struct fixture *f = *state;
	struct world *w = world_new(f);
	struct sim_disk_options options;
	struct request *r;

	open_it(f);
	w->delay_ns = MINUTE; /* nothing of it comes by itself */
	assert_int_equal(begin(w), 0);
	assert_int_equal(finish(f, submit(f, BLOCK_WRITE, BLOCK_FUA, 0, 4096, 7)), 0);
	crash_it(f, SIM_CRASH_POWER_DROP);
	sim_disk_get(f->env, &options);
	options.read_eio_ppm = 1000000;
	options.eio_path = "/missing";
	sim_disk_set(f->env, &options);
	assert_int_equal(try_open(f), -EIO);
	assert_non_null(strstr(f->why, "/missing"));
	options.read_eio_ppm = 0;
	sim_disk_set(f->env, &options);
	open_it(f);
	w->delay_ns = 1000;
	volume_set_origin(f->volume, &w->origin);
	assert_true(sim_run_until(f->sim, &w->over, MINUTE));
	assert_true(w->filled);
	r = submit(f, BLOCK_READ, 0, 0, 8192, 0);
	assert_true(r->wait.done || sim_run_until(f->sim, &r->wait.done, MINUTE));
	assert_int_equal(r->block.buf->data[0], 7);
	assert_int_equal(stamp_of(r->block.buf->data + 4096), snapshot_value(8));
	assert_int_equal(finish(f, r), 0);
	close_it(f);
	free(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(is_used_before_it_is_filled),
		TEST(what_is_zero_on_both_sides_is_there),
		TEST(only_what_differs_is_fetched_where_that_is_known),
		TEST(reads_wait_while_the_origin_is_away),
		TEST(what_the_snapshot_does_not_give_is_an_error),
		TEST(is_given_up_for_good),
		TEST(a_beginning_that_failed_has_none_later),
		TEST(begins_again_when_the_last_answer_came),
		TEST(refuses_what_needs_a_whole_disk),
		TEST(a_torn_page_undoes_nothing),
		TEST(a_map_that_cannot_be_read_undoes_nothing),
		TEST(a_crash_anywhere_loses_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
