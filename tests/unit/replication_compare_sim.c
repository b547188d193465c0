/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Comparison of two nodes' content by hashes, in the simulator: full syncs that send what differs, and
 * verification. SEED=n replays.
 */
#define WORLD_SIM
#include "tests/unit/replication_pair.h"

struct restored {
	bool done;
	int error;
};

static void restored(void *context, int error, const char *why)
{
	struct restored *r = context;

	r->done = true;
	r->error = error;
}

/* The medium changes a block behind the engine's back. */
static void corrupt(struct node *n, uint64_t offset)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/backing", n->dir);
	sim_file_corrupt(n->env, path, offset, 0x40);
}

static void cut_links(struct world *w)
{
	sim_cut(w->sim, "a", "b", false);
	sim_cut(w->sim, "b", "a", false);
}

static void fill(struct world *w)
{
	world_start(w);
	write_some(&w->a, 300);
	expect_same(w, &w->a, __LINE__);
}

static void a_restore_of_a_nearly_equal_disk_sends_the_difference(void **unused)
{
	struct world w;
	struct restored r = {};

	world_open(&w);
	fill(&w);
	for (uint64_t i = 0, block = VOLUME_BYTES / 4096 - 1; i < 3; i++) {
		while (bytes_are_zero(w.model + block * 4096, 4096))
			block--;
		corrupt(&w.a, block * 4096 + 77 * i);
		block -= 5;
	}
	uint64_t received = status(&w.a).received_bytes;
	replication_restore_from_peer(w.a.replication, restored, &r);
	WAIT(&w, status(&w.b).compared_bytes == VOLUME_BYTES);
	struct replication_status s = status(&w.b);
	WAIT(&w, r.done);
	assert_int_equal(r.error, 0);
	assert_int_equal(s.compare_total_bytes, VOLUME_BYTES);
	assert_int_equal(s.compare_differ_bytes, 3 * 4096);
	assert_true(s.compare_read_bytes + s.compare_skipped_bytes >= VOLUME_BYTES);
	assert_in_range(status(&w.a).received_bytes - received, 3 * 4096, 100 * 1024);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* The primary forgot what its map is relative to: the verdict is "full". */
static void forget_base(struct node *n)
{
	struct volume_state s = state(n);

	assert_false(id128_is_zero(&s.generations.base));
	s.generations.base = (struct id128){};
	assert_int_equal(volume_set_state(n->volume, &s), 0);
}

static void a_reduced_full_sync_is_staged(void **unused)
{
	struct world w;

	world_open(&w);
	w.b.staging_max_bytes = 2 << 20;
	fill(&w);
	disconnect(&w.b);
	disconnect(&w.a);
	write_some(&w.a, 5);
	flush(&w.a);
	forget_base(&w.a);
	uint64_t changed = status(&w.a).out_of_sync_bytes;
	reconnect(&w.a);
	reconnect(&w.b);
	while (!in_sync(&w)) {
		assert_int_not_equal(state(&w.b).disk, VOLUME_DISK_INCONSISTENT);
		turn(&w);
	}
	assert_int_equal(status(&w.a).compare_total_bytes, VOLUME_BYTES);
	assert_in_range(status(&w.a).compare_differ_bytes, 4096, changed);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* Writers and link losses during the comparison: nothing is forgotten. */
static void a_reduced_full_sync_under_writes(void **unused)
{
	for (unsigned i = 0; i < 10; i++) {
		struct world w;
		world_open(&w);
		w.random += i;
		fill(&w);
		disconnect(&w.b);
		disconnect(&w.a);
		write_some(&w.a, 20);
		flush(&w.a);
		forget_base(&w.a);
		for (unsigned block = 0; block < 40; block++)
			corrupt(&w.b, 4096 * rnd(&w, VOLUME_BYTES / 4096));
		reconnect(&w.a);
		reconnect(&w.b);
		for (unsigned cut = 0; cut < 4; cut++) {
			write_some(&w.a, (unsigned)rnd(&w, 40));
			let_pass(&w, (unsigned)rnd(&w, 30));
			cut_links(&w);
		}
		expect_same(&w, &w.a, __LINE__);
		world_close(&w);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_restore_of_a_nearly_equal_disk_sends_the_difference),
		cmocka_unit_test(a_reduced_full_sync_is_staged),
		cmocka_unit_test(a_reduced_full_sync_under_writes),
	};
	const char *text = argc > 1 ? argv[1] : getenv("SEED");

	seed = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid();
	printf("seed: SEED=%llu\n", (unsigned long long)seed);
	if (getenv("TEST"))
		cmocka_set_test_filter(getenv("TEST"));
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	printf("seed: SEED=%llu\n", (unsigned long long)seed);
	return failed;
}
