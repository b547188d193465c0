/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two nodes take snapshots in turn and tell each other which one the store's map is relative to. At every moment
 * all that differs from that snapshot is marked on the node that would write the next one. The snapshots are
 * copies of the disk here, no objects. In the simulator; SEED=n replays.
 */
#define WORLD_SIM
#define VOLUME_BYTES (512u * 1024 * 1024)
#pragma GCC diagnostic ignored "-Wunused-function"
#include "tests/unit/replication_pair.h"

/* What is written: the first chunk of each so many bytes, in regions that share no intent bit, nor are marked
 * with another's. */
#define CHUNK     VOLUME_STORE_BLOCK_BYTES
#define PLACE     (4u * 1024 * 1024)
#define PLACES    (VOLUME_BYTES / PLACE)
#define SNAPSHOTS 256u
#define IOS       8u

struct snapshot {
	struct id128 id;
	uint64_t sequence;
	uint8_t *content; /* a chunk a place */
};

struct test {
	struct world w;
	struct snapshot snapshots[SNAPSHOTS];
	unsigned count;
	struct io *ios[IOS];
	unsigned written;
	struct id128 known[2]; /* as seen last */
};

static void read_disk(struct node *n, unsigned place, uint8_t *chunk)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/backing", n->dir);
	if (!sim_file_peek(n->env, path, chunk, CHUNK, (uint64_t)place * PLACE))
		memset(chunk, 0, CHUNK);
}

static bool is_marked(struct node *n, unsigned place)
{
	uint64_t start, length, at = (uint64_t)place * PLACE;

	return volume_dirty_next(n->volume, VOLUME_STORE, at, &start, &length) && start == at;
}

/* The next snapshot from here would be right. */
static void expect_marks(struct test *t, struct node *n)
{
	struct volume_state s = state(n);
	struct snapshot *base = NULL;
	uint8_t chunk[CHUNK];

	for (unsigned i = 0; i < t->count; i++)
		if (id128_equal(&t->snapshots[i].id, &s.snapshot))
			base = &t->snapshots[i];
	if (!base)
		return;
	for (unsigned place = 0; place < PLACES; place++) {
		read_disk(n, place, chunk);
		if (memcmp(chunk, base->content + (size_t)place * CHUNK, CHUNK) != 0 &&
		    !is_marked(n, place)) {
			dump(&t->w);
			fail_msg("seed %llu: node %s: place %u differs from snapshot %llu and is "
				 "not marked",
				 (unsigned long long)seed, n->name, place,
				 (unsigned long long)base->sequence);
		}
	}
}

static void look(struct test *t)
{
	for (unsigned i = 0; i < 2; i++) {
		struct node *n = i ? &t->w.b : &t->w.a;

		if (!n->volume)
			continue;
		struct volume_state s = state(n);
		if (id128_equal(&t->known[i], &s.snapshot))
			continue;
		t->known[i] = s.snapshot;
		expect_marks(t, n);
	}
}

static void step(struct test *t)
{
	turn(&t->w);
	look(t);
}

static void pass(struct test *t, unsigned ms)
{
	uint64_t end = now_ns(&t->w) + ms * 1000000ull;

	while (now_ns(&t->w) < end)
		step(t);
}

/* ---- snapshots ---------------------------------------------------------------------------------- */

struct taking {
	struct test *t;
	struct node *n;
	bool done;
};

/* As a writer does it, in one turn: the cut, its content, the name, the end of the cut. */
static void take(void *context, int error)
{
	struct taking *taking = context;
	struct test *t = taking->t;
	struct node *n = taking->n;
	struct snapshot *snapshot = &t->snapshots[t->count];
	struct volume_cut *cut;
	struct volume_state s;

	assert_int_equal(error, 0);
	assert_true(t->count < SNAPSHOTS);
	replication_yield_store(n->replication);
	assert_int_equal(
		volume_cut_begin(n->volume, VOLUME_STORE, VOLUME_CUT_BITS_ONLY, NULL, NULL, &cut),
		0);
	snapshot->content = malloc((size_t)PLACES * CHUNK);
	assert_non_null(snapshot->content);
	for (unsigned place = 0; place < PLACES; place++)
		read_disk(n, place, snapshot->content + (size_t)place * CHUNK);
	s = state(n);
	env_random(n->env, &snapshot->id, sizeof(snapshot->id));
	snapshot->sequence = s.snapshot_sequence;
	if (t->count && t->snapshots[t->count - 1].sequence > snapshot->sequence)
		snapshot->sequence = t->snapshots[t->count - 1].sequence;
	s.snapshot = snapshot->id;
	s.snapshot_sequence = ++snapshot->sequence;
	t->count++;
	assert_int_equal(volume_set_state(n->volume, &s), 0);
	volume_cut_finish(cut, true);
	taking->done = true;
}

static void take_on_secondary(struct test *t)
{
	struct taking taking = {t, &t->w.b, false};

	replication_at_rest(t->w.b.replication, take, &taking);
	while (!taking.done)
		step(t);
}

/* ---- writes ------------------------------------------------------------------------------------- */

static void end_ios(struct test *t, bool all)
{
	for (unsigned i = 0; i < IOS; i++) {
		struct io *io = t->ios[i];

		if (!io)
			continue;
		while (all && !io->done)
			step(t);
		if (!io->done)
			continue;
		assert_int_equal(io->error, 0);
		buf_put(io->request.buf);
		free(io);
		t->ios[i] = NULL;
	}
}

static void take_on_primary(struct test *t)
{
	struct taking taking = {t, &t->w.a, false};

	end_ios(t, true);
	take(&taking, 0);
}

/* The next place in turn; those before are not touched for long. */
static bool write_next(struct test *t)
{
	struct node *n = &t->w.a;
	unsigned i = 0;

	end_ios(t, false);
	while (i < IOS && t->ios[i])
		i++;
	if (i == IOS)
		return false;
	struct io *io = t->ios[i] = calloc(1, sizeof(*io));
	io->request = (struct block_request){
		.op = BLOCK_WRITE,
		.offset_bytes = (uint64_t)(t->written++ * 37 % PLACES) * PLACE +
				4096 * rnd(&t->w, CHUNK / 4096),
		.length_bytes = 4096,
		.done = io_done};
	io->request.buf = buf_alloc(t->w.pool, 4096);
	assert_non_null(io->request.buf);
	for (unsigned at = 0; at < 4096; at++)
		io->request.buf->data[at] = (uint8_t)rnd(&t->w, 256);
	volume_block(n->volume)->ops->submit(volume_block(n->volume), &io->request);
	return true;
}

static bool agree(struct test *t)
{
	struct volume_state a = state(&t->w.a), b = state(&t->w.b);

	return id128_equal(&a.snapshot, &b.snapshot) && !id128_is_zero(&a.snapshot);
}

static void write_until_they_agree(struct test *t, unsigned gap_ms)
{
	uint64_t limit = now_ns(&t->w) + 20000000000ull;

	while (!agree(t)) {
		write_next(t);
		pass(t, gap_ms);
		if (now_ns(&t->w) > limit) {
			dump(&t->w);
			fail_msg("seed %llu: they never agree", (unsigned long long)seed);
		}
	}
}

/* ---- life --------------------------------------------------------------------------------------- */

static struct test *open_synced(void)
{
	struct test *t = calloc(1, sizeof(*t));

	world_open(&t->w);
	t->w.a.store_follows = t->w.b.store_follows = true;
	t->w.a.protocol = t->w.b.protocol = REPLICATION_A;
	world_start(&t->w);
	WAIT(&t->w, in_sync(&t->w));
	return t;
}

static void close_test(struct test *t)
{
	end_ios(t, true);
	expect_marks(t, &t->w.a);
	expect_marks(t, &t->w.b);
	world_close(&t->w);
	for (unsigned i = 0; i < t->count; i++)
		free(t->snapshots[i].content);
	free(t);
}

/* A slow disk there: what was written before the question is still on its way into it when that arrives. */
static void the_answer_covers_what_came_before_the_question(void **unused)
{
	struct test *t = open_synced();
	struct sim_disk_options options;

	sim_disk_get(t->w.b.env, &options);
	options.latency_min_ns = 10000000;
	options.latency_max_ns = 20000000;
	sim_disk_set(t->w.b.env, &options);
	for (unsigned round = 0; round < 8; round++) {
		take_on_secondary(t);
		write_until_they_agree(t, 15);
		end_ios(t, true);
		pass(t, 20000); /* no intent bit is left, so that each write there waits for one */
	}
	assert_true(t->count == 8);
	close_test(t);
}

static void what_the_primary_tells_holds_at_that_point(void **unused)
{
	struct test *t = open_synced();

	for (unsigned round = 0; round < 8; round++) {
		take_on_primary(t);
		write_until_they_agree(t, 15);
	}
	close_test(t);
}

/* Both, without waiting for each other, with connections that end. */
static void they_take_turns_as_it_comes(void **unused)
{
	struct test *t = open_synced();

	for (unsigned i = 0; i < 1500; i++) {
		write_next(t);
		pass(t, (unsigned)rnd(&t->w, 30));
		switch (rnd(&t->w, 60)) {
		case 0:
			take_on_primary(t);
			break;
		case 1:
			take_on_secondary(t);
			break;
		case 2:
			sim_cut(t->w.sim, "a", "b", rnd(&t->w, 2));
			break;
		}
	}
	write_until_they_agree(t, 50);
	assert_true(t->count > 10);
	close_test(t);
}

/* The map cannot be taken over, as the superblock cannot be written; later it can. */
static void what_could_not_be_taken_over_is_asked_for_again(void **unused)
{
	struct test *t = open_synced();
	struct sim_disk_options options;

	sim_disk_get(t->w.a.env, &options);
	options.fsync_eio_ppm = 1000000;
	options.eio_path = "/super";
	sim_disk_set(t->w.a.env, &options);
	take_on_secondary(t);
	pass(t, 5000);
	assert_false(agree(t));
	options.fsync_eio_ppm = 0;
	sim_disk_set(t->w.a.env, &options);
	write_until_they_agree(t, 50);
	close_test(t);
}

/* There was no room for a write here, and there was there: the primary's map is taken over with a mark for it,
 * although its own snapshot has what is here. */
static void what_failed_here_only_stays_marked(void **unused)
{
	struct test *t = open_synced();
	struct sim_disk_options options;

	take_on_primary(t);
	write_until_they_agree(t, 15);
	end_ios(t, true);
	sim_disk_get(t->w.a.env, &options);
	options.capacity_bytes = 1;
	sim_disk_set(t->w.a.env, &options);
	assert_true(write_next(t));
	while (!t->ios[0]->done)
		step(t);
	assert_int_equal(t->ios[0]->error, -EIO);
	t->ios[0]->error = 0;
	options.capacity_bytes = 0;
	sim_disk_set(t->w.a.env, &options);
	for (unsigned round = 0; round < 3; round++) {
		pass(t, 2000);
		take_on_primary(t);
		write_until_they_agree(t, 15);
	}
	close_test(t);
}

/* While the question is under way the volume can be made bigger. */
struct resized {
	bool done;
	int error;
};

static void resize_done(void *context, int error, const char *why)
{
	*(struct resized *)context = (struct resized){true, error};
}

static void a_question_is_no_snapshot_that_keeps_the_size(void **unused)
{
	struct test *t = open_synced();
	uint64_t size = VOLUME_BYTES;
	struct sim_net_options net;

	sim_net_get(t->w.sim, &net);
	net.latency_min_ns = net.latency_max_ns = 700000000; /* most of the time one is under way */
	sim_net_set(t->w.sim, &net);
	sim_cut(t->w.sim, "a", "b", false);
	WAIT(&t->w, !in_sync(&t->w));
	WAIT(&t->w, in_sync(&t->w));
	for (unsigned round = 0; round < 12; round++) {
		struct resized z = {};

		take_on_secondary(t);
		pass(t, (unsigned)rnd(&t->w, 3000));
		size += 4096;
		replication_resize(t->w.a.replication, size, false, resize_done, &z);
		while (!z.done)
			step(t);
		assert_int_equal(z.error, 0);
	}
	close_test(t);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_answer_covers_what_came_before_the_question),
		cmocka_unit_test(what_the_primary_tells_holds_at_that_point),
		cmocka_unit_test(they_take_turns_as_it_comes),
		cmocka_unit_test(what_could_not_be_taken_over_is_asked_for_again),
		cmocka_unit_test(what_failed_here_only_stays_marked),
		cmocka_unit_test(a_question_is_no_snapshot_that_keeps_the_size),
	};

	return pair_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
