/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Comparison of two nodes' content by hashes, in the simulator: full syncs that send what differs, and
 * verification. SEED=n replays.
 */
#define WORLD_SIM
#include "tests/unit/replication_pair.h"
#include "daemon/replication/verify.h"

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
	/* Nothing is going to be sent again. */
	WAIT(w, status(&w->a).out_of_sync_bytes == 0);
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

static void a_restore_that_cannot_be_noted_gives_nothing_up(void **unused)
{
	struct sim_disk_options disk;
	struct restored r = {};
	struct world w;

	world_open(&w);
	fill(&w);
	sim_disk_get(w.b.env, &disk);
	disk.fsync_eio_ppm = 1000000;
	disk.eio_path = "/wanting";
	sim_disk_set(w.b.env, &disk);
	replication_restore_from_peer(w.b.replication, restored, &r);
	WAIT(&w, r.done);
	assert_int_equal(r.error, -EIO);
	assert_int_not_equal(state(&w.b).disk, VOLUME_DISK_INCONSISTENT);
	disk.fsync_eio_ppm = 0;
	sim_disk_set(w.b.env, &disk);
	write_some(&w.a, 20);
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

static void full_sync_begins(struct world *w)
{
	disconnect(&w->b);
	disconnect(&w->a);
	write_some(&w->a, 20);
	flush(&w->a);
	forget_base(&w->a);
	reconnect(&w->a);
	reconnect(&w->b);
}

static bool measures_clients(const struct replication_status *s)
{
	return s->compare_total_bytes && s->compared_bytes < s->compare_total_bytes &&
	       strcmp(s->catch_up_reason, "measuring without it") == 0;
}

/* Until the comparison waits for what clients do without it. It looks at them for 20 ms only: at the disk's worst none
 * of their writes ends in it. */
static void until_it_measures(struct world *w)
{
	for (unsigned i = 0; i < 20; i++) {
		full_sync_begins(w);
		while (!in_sync(w)) {
			struct replication_status s = status(&w->a);
			if (measures_clients(&s))
				return;
			write_some(&w->a, 1);
		}
	}
	fail_msg("clients are never looked at");
}

/* A client at work is looked at before the disk is read, and waited for. */
static void a_reduced_full_sync_goes_at_the_clients_pace(void **unused)
{
	struct pace_options pace = {.latency_percent = 200};
	struct world w;

	world_open(&w);
	fill(&w);
	replication_set_pace(w.a.replication, &pace);
	until_it_measures(&w);
	for (struct replication_status s = status(&w.a); measures_clients(&s); s = status(&w.a)) {
		assert_int_equal(s.compare_read_bytes, 0);
		write_some(&w.a, 1);
	}
	WAIT(&w, in_sync(&w));
	assert_int_equal(status(&w.a).compared_bytes, VOLUME_BYTES);
	/* Switched off in a pause: it goes on. */
	until_it_measures(&w);
	pace.latency_percent = 0;
	replication_set_pace(w.a.replication, &pace);
	WAIT(&w, in_sync(&w));
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* What had arrived is compared, not sent again. */
static void an_interrupted_first_sync_costs_hashes(void **unused)
{
	struct world w;
	struct sim_net_options net;

	world_open(&w);
	listeners(&w);
	start(&w.a, VOLUME_PRIMARY);
	write_some(&w.a, 600);
	flush(&w.a);
	sim_net_get(w.sim, &net);
	net.bytes_per_second = 2 << 20;
	sim_net_set(w.sim, &net);
	start(&w.b, VOLUME_SECONDARY);
	WAIT(&w, status(&w.b).received_bytes > 3 << 20);
	uint64_t total = status(&w.a).out_of_sync_bytes;
	crash(&w.b, SIM_CRASH_POWER_KEEP);
	come_back(&w.b, VOLUME_SECONDARY);
	WAIT(&w, in_sync(&w));
	assert_int_equal(status(&w.a).compared_bytes, VOLUME_BYTES);
	assert_true(status(&w.a).compare_differ_bytes < total - (1 << 20));
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* ---- verify ---------------------------------------------------------------------------------- */

static struct verify_record verified(struct node *n)
{
	struct verify_status v;

	replication_get_verify(n->replication, &v);
	return v.record;
}

static void verify(struct node *n, const char *repair_from)
{
	char why[256] = "";

	if (replication_verify(n->replication, repair_from, 0, why, sizeof(why)))
		fail_msg("%s", why);
}

/* Blocks of the volume whose content is not zero, from the end, each third. */
static uint64_t some_block(struct world *w, unsigned index)
{
	uint64_t block = VOLUME_BYTES / 4096;

	for (unsigned i = 0; i <= 3 * index; i++)
		do
			block--;
		while (bytes_are_zero(w->model + block * 4096, 4096));
	return block * 4096;
}

static void verify_finds_exactly_what_differs(void **unused)
{
	struct world w;

	world_open(&w);
	fill(&w);
	assert_int_equal(verified(&w.a).state, VERIFY_NEVER);
	verify(&w.a, NULL);
	WAIT(&w, verified(&w.a).state == VERIFY_DONE);
	assert_int_equal(verified(&w.a).differ_bytes, 0);
	assert_int_equal(verified(&w.a).position_bytes, VOLUME_BYTES);
	uint64_t places[3];
	for (unsigned i = 0; i < 3; i++) {
		places[i] = some_block(&w, 2 - i);
		corrupt(i == 1 ? &w.a : &w.b, places[i] + 1000 * i);
	}
	verify(&w.a, NULL);
	WAIT(&w, verified(&w.a).state == VERIFY_DONE);
	struct verify_record r = verified(&w.a);
	assert_int_equal(r.differ_bytes, 3 * 4096);
	assert_int_equal(r.extents, 3);
	assert_int_equal(r.listed, 3);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(r.extent[i].offset_bytes, places[i]);
		assert_int_equal(r.extent[i].length_bytes, 4096);
	}
	/* What is known outlives a restart. */
	stop(&w.a);
	start(&w.a, VOLUME_PRIMARY);
	assert_int_equal(verified(&w.a).differ_bytes, 3 * 4096);
	WAIT(&w, in_sync(&w));
	world_close(&w);
}

static void verify_is_exact_under_writes(void **unused)
{
	struct world w;

	world_open(&w);
	w.a.protocol = w.b.protocol = REPLICATION_A;
	fill(&w);
	for (unsigned i = 0; i < 20; i++) {
		verify(&w.a, NULL);
		while (verified(&w.a).state == VERIFY_RUNNING)
			write_some(&w.a, 3);
		assert_int_equal(verified(&w.a).state, VERIFY_DONE);
		assert_int_equal(verified(&w.a).differ_bytes, 0);
	}
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void verify_repairs_from_the_node_named(void **unused)
{
	for (unsigned from_peer = 0; from_peer < 2; from_peer++) {
		struct world w;
		world_open(&w);
		fill(&w);
		for (unsigned i = 0; i < 5; i++)
			corrupt(from_peer ? &w.a : &w.b, some_block(&w, i) + i);
		verify(&w.a, from_peer ? "b" : "a");
		while (verified(&w.a).state == VERIFY_RUNNING)
			turn(&w);
		assert_int_equal(verified(&w.a).differ_bytes, 5 * 4096);
		assert_int_equal(verified(&w.a).repaired_bytes, 5 * 4096);
		expect_same(&w, &w.a, __LINE__);
		verify(&w.a, NULL);
		WAIT(&w, verified(&w.a).state == VERIFY_DONE);
		assert_int_equal(verified(&w.a).differ_bytes, 0);
		world_close(&w);
	}
}

/* Clients write to what is being repaired, and links are lost: their writes stand. */
static void repair_under_writes_and_link_losses(void **unused)
{
	for (unsigned i = 0; i < 12; i++) {
		struct world w;
		world_open(&w);
		w.random += i;
		w.a.protocol = w.b.protocol = i % 3;
		fill(&w);
		for (unsigned block = 0; block < 60; block++)
			corrupt(&w.b, 4096 * rnd(&w, VOLUME_BYTES / 4096));
		verify(&w.a, "a");
		for (unsigned cut = 0; cut < 3; cut++) {
			write_some(&w.a, (unsigned)rnd(&w, 30));
			let_pass(&w, (unsigned)rnd(&w, 20));
			cut_links(&w);
		}
		while (verified(&w.a).state == VERIFY_RUNNING)
			write_some(&w.a, 5);
		struct verify_record r = verified(&w.a);
		assert_int_equal(r.state, VERIFY_DONE);
		assert_int_equal(r.repaired_bytes, r.differ_bytes);
		expect_same(&w, &w.a, __LINE__);
		world_close(&w);
	}
}

/* on-peer-loss = suspend: what waits for the next connection must not keep it from coming. */
static void suspended_requests_do_not_block_a_comparison(void **unused)
{
	for (unsigned i = 0; i < 20; i++) {
		struct world w;
		struct io ios[8] = {};
		world_open(&w);
		w.random += i;
		w.a.suspends = true;
		fill(&w);
		for (unsigned block = 0; block < 40; block++)
			corrupt(&w.b, 4096 * rnd(&w, VOLUME_BYTES / 4096));
		let_pass(&w,
			 20000); /* no region has its intent bit: writes wait for them, locked */
		struct block *block = volume_block(w.a.volume);
		for (unsigned k = 0; k < 8; k++) {
			ios[k].request = (struct block_request){.op = BLOCK_WRITE,
								.offset_bytes = k << 20,
								.length_bytes = 1 << 20,
								.done = io_done,
								.buf = buf_alloc(w.pool, 1 << 20)};
			memset(ios[k].request.buf->data, (int)k + 1, 1 << 20);
			memset(w.model + (k << 20), (int)k + 1, 1 << 20);
			if (k == 4) {
				verify(&w.a, i % 2 ? "a" : "b");
				if (rnd(&w, 2))
					turn(&w);
				cut_links(&w);
			}
			block->ops->submit(block, &ios[k].request);
		}
		for (unsigned k = 0; k < 8; k++) {
			WAIT(&w, ios[k].done);
			assert_int_equal(ios[k].error, 0);
			buf_put(ios[k].request.buf);
		}
		WAIT(&w, verified(&w.a).state == VERIFY_DONE);
		expect_same(&w, &w.a, __LINE__);
		world_close(&w);
	}
}

static void verify_goes_on_after_a_restart(void **unused)
{
	struct world w;
	char why[256];

	world_open(&w);
	fill(&w);
	corrupt(&w.b, some_block(&w, 3));
	corrupt(&w.b, some_block(&w, 0));
	assert_int_equal(replication_verify(w.a.replication, NULL, 4 << 20, why, sizeof(why)), 0);
	assert_int_equal(replication_verify(w.a.replication, NULL, 0, why, sizeof(why)), -EBUSY);
	let_pass(&w, 300);
	assert_int_equal(verified(&w.a).state, VERIFY_RUNNING);
	stop(&w.a);
	start(&w.a, VOLUME_PRIMARY);
	WAIT(&w, verified(&w.a).state == VERIFY_DONE);
	assert_int_equal(verified(&w.a).differ_bytes, 2 * 4096);
	assert_int_equal(verified(&w.a).extents, 2);
	world_close(&w);
}

static void verify_is_throttled_cancelled_and_refused(void **unused)
{
	struct world w;
	char why[256] = "";

	world_open(&w);
	fill(&w);
	assert_int_equal(replication_verify(w.b.replication, NULL, 0, why, sizeof(why)), -EPERM);
	assert_non_null(strstr(why, "verify it on a"));
	assert_int_equal(replication_verify(w.a.replication, "c", 0, why, sizeof(why)), -EINVAL);
	assert_int_equal(replication_verify_cancel(w.a.replication, why, sizeof(why)), -EALREADY);
	uint64_t began = now_ns(&w);
	assert_int_equal(replication_verify(w.a.replication, NULL, 1 << 20, why, sizeof(why)), 0);
	WAIT(&w, verified(&w.a).position_bytes >= 3 << 20);
	assert_true(now_ns(&w) - began > 1500000000);
	assert_int_equal(replication_verify_cancel(w.a.replication, why, sizeof(why)), 0);
	assert_int_equal(verified(&w.a).state, VERIFY_CANCELLED);
	verify(&w.a, "b");
	WAIT(&w, verified(&w.a).state == VERIFY_DONE);
	stop(&w.b);
	assert_int_equal(replication_verify(w.a.replication, NULL, 0, why, sizeof(why)), -EPERM);
	assert_non_null(strstr(why, "not in sync"));
	world_close(&w);
}

/* Both compare, one at a time: a verification that waits for the stream has nothing to stop. */
static void a_full_sync_goes_on_when_a_verification_is_cancelled(void **unused)
{
	struct world w;
	char why[256] = "";

	world_open(&w);
	fill(&w);
	assert_int_equal(replication_verify(w.a.replication, NULL, 1 << 20, why, sizeof(why)), 0);
	disconnect(&w.b);
	disconnect(&w.a);
	write_some(&w.a, 5);
	forget_base(&w.a);
	reconnect(&w.a);
	reconnect(&w.b);
	WAIT(&w, status(&w.a).state == REPLICATION_CATCH_UP &&
			 status(&w.a).compare_read_bytes > 0 &&
			 status(&w.a).compared_bytes < VOLUME_BYTES);
	assert_int_equal(verified(&w.a).state, VERIFY_RUNNING);
	assert_int_equal(replication_verify_cancel(w.a.replication, why, sizeof(why)), 0);
	expect_same(&w, &w.a, __LINE__);
	assert_int_equal(status(&w.a).compared_bytes, VOLUME_BYTES);
	world_close(&w);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_restore_of_a_nearly_equal_disk_sends_the_difference),
		cmocka_unit_test(a_restore_that_cannot_be_noted_gives_nothing_up),
		cmocka_unit_test(a_reduced_full_sync_is_staged),
		cmocka_unit_test(a_reduced_full_sync_under_writes),
		cmocka_unit_test(a_reduced_full_sync_goes_at_the_clients_pace),
		cmocka_unit_test(an_interrupted_first_sync_costs_hashes),
		cmocka_unit_test(verify_finds_exactly_what_differs),
		cmocka_unit_test(verify_is_exact_under_writes),
		cmocka_unit_test(verify_repairs_from_the_node_named),
		cmocka_unit_test(repair_under_writes_and_link_losses),
		cmocka_unit_test(suspended_requests_do_not_block_a_comparison),
		cmocka_unit_test(verify_goes_on_after_a_restart),
		cmocka_unit_test(verify_is_throttled_cancelled_and_refused),
		cmocka_unit_test(a_full_sync_goes_on_when_a_verification_is_cancelled),
	};

	return pair_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
