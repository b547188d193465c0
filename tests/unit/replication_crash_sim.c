/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A node of a pair dies by kill or power cut in the middle of things and comes back: nothing that was
 * acknowledged is lost, nothing is a mixture, and both sides become equal. SEED=n replays.
 * time limit: 300 s
 */
#define WORLD_SIM
#include "tests/unit/replication_pair.h"

/* Protocol A over a slow link: the clients are ahead of the peer, and it knows by how much. */
static void what_was_on_its_way_is_known(void **unused)
{
	struct sim_net_options net;
	struct world w;

	world_open(&w);
	w.a.protocol = w.b.protocol = REPLICATION_A;
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	sim_net_get(w.sim, &net);
	net.bytes_per_second = 1000000;
	sim_net_set(w.sim, &net);
	struct io *ios = calloc(30, sizeof(*ios));
	for (unsigned i = 0; i < 30; i++) {
		ios[i].request = (struct block_request){.op = BLOCK_WRITE,
							.offset_bytes = 131072 * i,
							.length_bytes = 131072,
							.done = io_done};
		ios[i].request.buf = buf_alloc(w.pool, 131072);
		memset(ios[i].request.buf->data, 1, 131072);
		volume_block(w.a.volume)->ops->submit(volume_block(w.a.volume), &ios[i].request);
	}
	WAIT(&w, loss(&w.b).bytes > 0);
	assert_int_equal(loss(&w.b).risk, REPLICATION_RISK_NONE); /* it is still coming */
	uint64_t lag = status(&w.a).lag_bytes;
	assert_true(lag > 0);
	assert_true(status(&w.b).lag_bytes > 0 && status(&w.b).lag_ns > 0);
	crash_primary(&w.a, SIM_CRASH_KILL);
	WAIT(&w, status(&w.b).state == REPLICATION_CONNECTING);
	struct replication_loss l = loss(&w.b);
	assert_int_equal(l.risk, REPLICATION_RISK_BEHIND);
	assert_true(l.bytes > 0 && l.bytes <= lag);
	assert_true(l.since_ns > 0 && l.since_ns <= l.heard_ns);
	assert_true(l.first_lsn > 0 && l.last_lsn >= l.first_lsn);
	assert_int_equal(status(&w.b).lag_bytes, l.bytes);
	free(ios);
	world_close(&w);
}

static void reads_of_the_log_fail(struct node *n, bool fail)
{
	struct sim_disk_options disk;

	sim_disk_get(n->env, &disk);
	disk.eio_path = "/staging";
	disk.read_eio_ppm = fail ? 1000000 : 0;
	sim_disk_set(n->env, &disk);
}

/* The node with the log dies; what its disk gives when it comes back. */
static void comes_back_without_its_log(struct world *w)
{
	crash(&w->b, SIM_CRASH_POWER);
	block_link(w, true);
	reads_of_the_log_fail(&w->b, true);
	come_back(&w->b, VOLUME_SECONDARY);
	let_pass(w, 2000);
	reads_of_the_log_fail(&w->b, false);
}

/* Half applied, and its first page is not to be had for a moment: it may be at the next start. One that was not
 * complete is void, and does not come back. */
static void a_log_that_cannot_be_read(void **unused)
{
	struct sim_net_options net, slow;
	uint8_t header[64], none[64] = {0};
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	disconnect(&w.b);
	write_some(&w.a, 200);
	flush(&w.a);
	reconnect(&w.b);
	WAIT(&w, state(&w.b).applying);
	comes_back_without_its_log(&w);
	assert_int_not_equal(state(&w.b).disk, VOLUME_DISK_INCONSISTENT);
	crash(&w.b, SIM_CRASH_POWER);
	come_back(&w.b, VOLUME_SECONDARY);
	WAIT(&w, !replication_applying(w.b.replication));
	assert_int_equal(state(&w.b).disk, VOLUME_DISK_UPTODATE);
	block_link(&w, false);
	expect_same(&w, &w.a, __LINE__);

	disconnect(&w.b);
	write_some(&w.a, 400);
	flush(&w.a);
	sim_net_get(w.sim, &net);
	slow = net;
	slow.bytes_per_second = 1000000;
	sim_net_set(w.sim, &slow);
	reconnect(&w.b);
	let_pass(&w, 1500);
	sim_cut(w.sim, "a", "b", false);
	let_pass(&w, 500);
	assert_true(sim_file_peek(w.b.env, "/b/state/staging", header, sizeof(header), 0));
	assert_memory_not_equal(header, none, sizeof(header));
	comes_back_without_its_log(&w);
	assert_true(sim_file_peek(w.b.env, "/b/state/staging", header, sizeof(header), 0));
	assert_memory_equal(header, none, sizeof(header));
	sim_net_set(w.sim, &net);
	block_link(&w, false);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void crashes_of_the_secondary(void **unused)
{
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	for (unsigned i = 0; i < 12; i++) {
		sim_crash_after_ios(w.sim, w.b.env, 1 + sim_random(w.sim, 400),
				    (enum sim_crash)sim_random(w.sim, 4));
		for (unsigned n = 0; n < 40 && !sim_node_dead(w.b.env); n++) {
			write_some(&w.a, 20);
			if (rnd(&w, 3) == 0)
				let_pass(&w, 100);
		}
		if (sim_node_dead(w.b.env)) {
			crash(&w.b, SIM_CRASH_KILL);
			come_back(&w.b, VOLUME_SECONDARY);
		} else {
			sim_crash_after_ios(w.sim, w.b.env, 0, SIM_CRASH_KILL);
		}
		write_some(&w.a, 10);
		flush(&w.a);
		expect_same(&w, &w.a, __LINE__);
	}
	world_close(&w);
}

static void read_content(struct node *n, uint8_t *content)
{
	for (uint64_t at = 0; at < VOLUME_BYTES; at += 65536) {
		struct buf *piece = read_piece(n, at);

		memcpy(content + at, piece->data, 65536);
		buf_put(piece);
	}
}

/* The primary dies with writes under way and comes back as primary: whatever of them its disk kept,
 * the peer gets the same; and what was flushed is there. */
static void crashes_of_the_primary(void **unused)
{
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	for (unsigned i = 0; i < 8; i++) {
		struct io *ios =
			calloc(200, sizeof(*ios)); /* those under way are never completed */
		struct block *block = volume_block(w.a.volume);
		if (i % 3 == 2)
			disconnect(&w.b);
		write_some(&w.a, 20);
		flush(&w.a);
		sim_crash_after_ios(w.sim, w.a.env, 1 + sim_random(w.sim, 60),
				    (enum sim_crash)sim_random(w.sim, 4));
		for (unsigned n = 0; n < 200 && !sim_node_dead(w.a.env); n++) {
			/* only the first half is written to: the rest has to be as flushed */
			ios[n].request = (struct block_request){
				.op = n % 16 == 15 ? BLOCK_FLUSH : BLOCK_WRITE,
				.offset_bytes = 512 * rnd(&w, VOLUME_BYTES / 1024 - 16),
				.length_bytes = 512 * (1 + rnd(&w, 16)),
				.done = io_done};
			ios[n].request.buf = buf_alloc(w.pool, 8192);
			if (!ios[n].request.buf)
				break;
			memset(ios[n].request.buf->data, (int)rnd(&w, 256), 8192);
			if (ios[n].request.op == BLOCK_FLUSH)
				ios[n].request.offset_bytes = ios[n].request.length_bytes = 0;
			block->ops->submit(block, &ios[n].request);
			sim_step(w.sim);
		}
		sim_run_until(w.sim, NULL, rnd(&w, 2) * 50000000);
		crash_primary(&w.a, SIM_CRASH_POWER);
		come_back(&w.a, VOLUME_PRIMARY);
		if (i % 3 == 2)
			reconnect(&w.b);
		WAIT(&w, in_sync(&w) && status(&w.a).lag_bytes == 0);
		uint8_t *flushed = malloc(VOLUME_BYTES);
		memcpy(flushed, w.model, VOLUME_BYTES);
		read_content(&w.a, w.model);
		assert_memory_equal(flushed + VOLUME_BYTES / 2, w.model + VOLUME_BYTES / 2,
				    VOLUME_BYTES / 2);
		free(flushed);
		expect_same(&w, &w.a, __LINE__);
	}
	world_close(&w);
}

/* What only the old primary had, because nobody was told that it was done, is undone on it. */
static void the_old_primarys_own_writes_are_undone(void **unused)
{
	struct world w;
	struct io ios[20] = {};

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	block_link(&w, true);
	struct block *block = volume_block(w.a.volume);
	for (unsigned i = 0; i < 20; i++) {
		ios[i].request = (struct block_request){.op = BLOCK_WRITE,
							.offset_bytes = 65536 * i,
							.length_bytes = 4096,
							.done = io_done};
		ios[i].request.buf = buf_alloc(w.pool, 4096);
		memset(ios[i].request.buf->data, 0x55, 4096);
		block->ops->submit(block, &ios[i].request);
	}
	let_pass(&w, 500);
	for (unsigned i = 0; i < 20; i++)
		assert_false(ios[i].done); /* protocol C */
	crash_primary(&w.a, SIM_CRASH_POWER_KEEP);
	block_link(&w, false);
	set_role(&w.b, VOLUME_PRIMARY);
	write_some(&w.b, 5);
	come_back(&w.a, VOLUME_PRIMARY);
	WAIT(&w, status(&w.a).state == REPLICATION_STANDALONE);
	set_role(&w.a, VOLUME_SECONDARY);
	expect_same(&w, &w.b, __LINE__);
	world_close(&w);
}

/* The secondary dies, if it has not yet, and starts again with nobody to talk to. */
static void crash_and_start_alone(struct world *w, enum sim_crash mode)
{
	block_link(w, true);
	crash(&w->b, mode);
	come_back(&w->b, VOLUME_SECONDARY);
	WAIT(w, !replication_applying(w->b.replication));
}

/* Protocol C: what was flushed before the secondary lost its power is on it. */
static void flushed_writes_survive_on_the_secondary(void **unused)
{
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	for (unsigned i = 0; i < 6; i++) {
		if (i % 2) {
			/* from the log, while the cut is being applied */
			disconnect(&w.b);
			write_some(&w.a, 60);
			reconnect(&w.b);
			WAIT(&w, status(&w.a).state == REPLICATION_STREAMING);
		}
		write_some(&w.a, 1 + (unsigned)rnd(&w, 30));
		flush(&w.a);
		crash_and_start_alone(&w, rnd(&w, 2) ? SIM_CRASH_POWER_DROP : SIM_CRASH_POWER);
		assert_int_equal(state(&w.b).disk, VOLUME_DISK_UPTODATE);
		expect_content(&w.b, w.model, __LINE__);
		block_link(&w, false);
		expect_same(&w, &w.a, __LINE__);
	}
	world_close(&w);
}

static bool content_is(const uint8_t *content, const uint8_t *model)
{
	return memcmp(content, model, VOLUME_BYTES) == 0;
}

/* A catch-up that is cut off anywhere leaves the old state or the new one, never a mixture. */
static void a_cut_is_applied_whole_or_not_at_all(void **unused)
{
	struct world w;
	uint8_t *old = malloc(VOLUME_BYTES), *content = malloc(VOLUME_BYTES);
	unsigned olds = 0, news = 0;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	for (unsigned i = 0; i < 16; i++) {
		disconnect(&w.b);
		memcpy(old, w.model, VOLUME_BYTES);
		write_some(&w.a, 60);
		flush(&w.a);
		reconnect(&w.b);
		WAIT(&w, status(&w.b).state >= REPLICATION_CATCH_UP);
		sim_crash_after_ios(w.sim, w.b.env, 1 + sim_random(w.sim, i % 2 ? 12 : 120),
				    (enum sim_crash)sim_random(w.sim, 4));
		uint64_t end = now_ns(&w) + 3000000000ull;
		while (!sim_node_dead(w.b.env) && now_ns(&w) < end && sim_step(w.sim))
			;
		crash_and_start_alone(&w, SIM_CRASH_POWER);
		assert_int_not_equal(state(&w.b).disk, VOLUME_DISK_INCONSISTENT);
		read_content(&w.b, content);
		olds += content_is(content, old);
		news += content_is(content, w.model);
		if (!content_is(content, old) && !content_is(content, w.model)) {
			dump(&w);
			fail_msg("seed %llu: a mixture", (unsigned long long)seed);
		}
		block_link(&w, false);
		expect_same(&w, &w.a, __LINE__);
	}
	printf("left as before: %u, as after: %u\n", olds, news);
	free(old);
	free(content);
	world_close(&w);
}

static void restored(void *context, int error, const char *why)
{
	if (error)
		fail_msg("%s", why);
	*(bool *)context = true;
}

/* What the stream brought and nobody flushed is in the secondary's cache when the primary gets its content back
 * from there: no map names it from then on, so it has to be durable before a cut comes back and is committed. */
static void what_a_peer_was_restored_from_is_durable(void **unused)
{
	struct world w;

	for (unsigned ios = 1; ios < 30; ios++) {
		bool done = false;

		world_open(&w);
		world_start(&w);
		write_some(&w.a, 50);
		flush(&w.a);
		expect_same(&w, &w.a, __LINE__);
		write_some(&w.a, 20);
		crash_primary(&w.a, SIM_CRASH_KILL);
		sim_file_remove(w.a.env, "/a/backing");
		come_back(&w.a, VOLUME_PRIMARY);
		replication_restore_from_peer(w.a.replication, restored, &done);
		WAIT(&w, done);
		write_some(&w.a, 5);
		sim_crash_after_ios(w.sim, w.b.env, ios, SIM_CRASH_POWER_DROP);
		for (uint64_t end = now_ns(&w) + 500000000; now_ns(&w) < end;)
			sim_step(w.sim);
		crash(&w.b, SIM_CRASH_POWER_DROP);
		come_back(&w.b, VOLUME_SECONDARY);
		expect_same(&w, &w.a, __LINE__);
		world_close(&w);
		seed++;
	}
}

static void set_latency(struct node *n, uint64_t min_ns, uint64_t max_ns)
{
	struct sim_disk_options options;

	sim_disk_get(n->env, &options);
	options.latency_min_ns = min_ns;
	options.latency_max_ns = max_ns;
	sim_disk_set(n->env, &options);
}

/* That flush is one of the loop's operations: it may take longer than a peer that says nothing is waited for, and a
 * connection that ends meanwhile leaves it to the next one. Nothing begins before it. */
static void a_peer_is_restored_from_once_its_slow_disk_has_all(void **unused)
{
	const uint64_t slow_ns = 2ull * PEER_TIMEOUT_MS * 1000000;
	struct world w;

	for (unsigned lost = 0; lost < 3; lost++) {
		uint64_t begun_ns, connects;
		bool done = false;

		world_open(&w);
		world_start(&w);
		write_some(&w.a, 50);
		flush(&w.a);
		expect_same(&w, &w.a, __LINE__);
		crash_primary(&w.a, SIM_CRASH_KILL);
		sim_file_remove(w.a.env, "/a/backing");
		come_back(&w.a, VOLUME_PRIMARY);
		set_latency(&w.b, slow_ns, slow_ns);
		begun_ns = now_ns(&w);
		replication_restore_from_peer(w.a.replication, restored, &done);
		if (lost == 2) { /* stopped meanwhile */
			let_pass(&w, PEER_TIMEOUT_MS);
			set_latency(&w.b, 1000, 1000000);
			stop(&w.b);
			start(&w.b, VOLUME_SECONDARY);
			WAIT(&w, done);
			expect_same(&w, &w.a, __LINE__);
			world_close(&w);
			continue;
		}
		if (lost == 1) {
			let_pass(&w, PEER_TIMEOUT_MS);
			sim_cut(w.sim, "a", "b", false);
			WAIT(&w, status(&w.b).state == REPLICATION_CONNECTING);
			begun_ns = now_ns(&w);
		}
		WAIT(&w, status(&w.b).state == REPLICATION_HANDSHAKE);
		connects = status(&w.b).connects;
		WAIT(&w, status(&w.b).state >= REPLICATION_CATCH_UP);
		assert_true(now_ns(&w) - begun_ns >= slow_ns);
		assert_int_equal(status(&w.b).connects, connects + 1); /* it was one connection */
		set_latency(&w.b, 1000, 1000000);
		WAIT(&w, done);
		expect_same(&w, &w.a, __LINE__);
		world_close(&w);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_on_its_way_is_known),
		cmocka_unit_test(a_log_that_cannot_be_read),
		cmocka_unit_test(crashes_of_the_secondary),
		cmocka_unit_test(crashes_of_the_primary),
		cmocka_unit_test(the_old_primarys_own_writes_are_undone),
		cmocka_unit_test(flushed_writes_survive_on_the_secondary),
		cmocka_unit_test(a_cut_is_applied_whole_or_not_at_all),
		cmocka_unit_test(what_a_peer_was_restored_from_is_durable),
		cmocka_unit_test(a_peer_is_restored_from_once_its_slow_disk_has_all),
	};

	return pair_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
