/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Catch-up over a bad link, of a bad disk, and what it costs. SEED=n replays.
 * time limit: 300 s
 */
#define WORLD_SIM
#include "tests/unit/replication_pair.h"

#define SLOW_BYTES_PER_SECOND (1u << 20)
#define SLOW_WINDOW_BYTES     (128u * 1024)
#define ALONE_BLOCKS          1024u

static void slow_link(struct world *w)
{
	struct sim_net_options net;

	sim_net_get(w->sim, &net);
	net.bytes_per_second = SLOW_BYTES_PER_SECOND;
	net.window_bytes = SLOW_WINDOW_BYTES;
	sim_net_set(w->sim, &net);
}

/* A difference of a few MiB, and a link that is to carry it slowly. */
static uint64_t fall_behind(struct world *w)
{
	world_open(w);
	w->a.final_cut_max_bytes = 64 * 1024;
	w->a.preserve_max_bytes = 64 * 1024;
	world_start(w);
	write_some(&w->a, 50);
	expect_same(w, &w->a, __LINE__);
	disconnect(&w->b);
	write_some(&w->a, 400);
	flush(&w->a);
	slow_link(w);
	reconnect(&w->b);
	return status(&w->a).out_of_sync_bytes;
}

/* What crossed the wire; what was on its way when a connection broke comes on top. */
static uint64_t received_bytes(struct world *w)
{
	return status(&w->b).received_bytes;
}

/* What the target has it is not sent again, however often the link breaks: even the blocks of the
 * cut proper are staged for good. */
static void a_lost_link_costs_what_was_in_flight(void **unused)
{
	struct world w;
	uint64_t difference = fall_behind(&w), before = received_bytes(&w);
	unsigned losses = 0;

	while (!in_sync(&w)) {
		let_pass(&w, 400 + (unsigned)rnd(&w, 300));
		if (in_sync(&w))
			break;
		sim_cut(w.sim, "a", "b", rnd(&w, 4) == 0);
		if (++losses > 200)
			fail_msg("seed %llu: no progress", (unsigned long long)seed);
	}
	uint64_t sent = received_bytes(&w) - before;
	printf("difference %llu, sent %llu, losses %u\n", (unsigned long long)difference,
	       (unsigned long long)sent, losses);
	assert_true(losses >= 4 && status(&w.a).resumes >= 3);
	assert_true(sent <= difference + difference / 5 + losses * SLOW_WINDOW_BYTES);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* Likewise with restarts of the target in between, by kill and by power cut: what its log has on the
 * disk is not sent again. */
static void a_crashed_target_goes_on_with_its_log(void **unused)
{
	struct world w;
	uint64_t difference = fall_behind(&w), sent = 0, before = received_bytes(&w);
	struct sim_disk_options disk;
	unsigned crashes = 0;

	/* Its slowest fsync takes 32 times as long: it has to be over before the crash. */
	sim_disk_get(w.b.env, &disk);
	disk.latency_max_ns = 100000;
	sim_disk_set(w.b.env, &disk);
	while (crashes < 5) {
		let_pass(&w, 1500);
		if (in_sync(&w))
			break;
		sim_cut(w.sim, "a", "b", false); /* from here the log is made durable */
		let_pass(&w, 20);
		sent += received_bytes(&w) - before;
		before = 0;
		crash(&w.b, crashes % 2 ? SIM_CRASH_KILL : SIM_CRASH_POWER);
		come_back(&w.b, VOLUME_SECONDARY);
		crashes++;
	}
	assert_true(crashes >= 2);
	expect_same(&w, &w.a, __LINE__);
	sent += received_bytes(&w);
	printf("difference %llu, sent %llu, crashes %u\n", (unsigned long long)difference,
	       (unsigned long long)sent, crashes);
	assert_true(sent <= difference + difference / 5 + crashes * SLOW_WINDOW_BYTES);
	world_close(&w);
}

/* Blocks written while the catch-up runs over a link that breaks: those staged before are void, and
 * what was streamed behind a final cut that came to nothing must not be applied. */
static void writers_and_losses_end_in_the_same_content(void **unused)
{
	struct world w;

	for (unsigned i = 0; i < 6; i++) {
		fall_behind(&w);
		for (unsigned n = 0; n < 8 && !in_sync(&w); n++) {
			write_some(&w.a, 30);
			let_pass(&w, (unsigned)rnd(&w, 900));
			sim_cut(w.sim, "a", "b", false);
		}
		flush(&w.a);
		expect_same(&w, &w.a, __LINE__);
		world_close(&w);
		seed++;
	}
}

/* A writer that outruns the link, a preserve area far smaller than what it overwrites: the secondary
 * gets ahead all the same, from one consistent state to the next. */
static void a_writer_faster_than_the_link_is_no_livelock(void **unused)
{
	struct world w;
	fall_behind(&w);
	uint64_t begin = now_ns(&w), written = 0;
	uint64_t cuts = status(&w.b).cuts;

	while (now_ns(&w) - begin < 60000000000ull && !in_sync(&w)) {
		uint64_t start = now_ns(&w);
		write_some(&w.a, 150); /* more than the link carries in a second */
		written++;
		if (now_ns(&w) - start < 100000000ull)
			let_pass(&w, 100);
		assert_int_not_equal(state(&w.b).disk, VOLUME_DISK_INCONSISTENT);
	}
	printf("written %llu times, cuts %llu, in sync after %.1f s\n", (unsigned long long)written,
	       (unsigned long long)(status(&w.b).cuts - cuts), (double)(now_ns(&w) - begin) / 1e9);
	assert_true(status(&w.b).cuts > cuts);
	assert_true(in_sync(&w));
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* One write of random bytes, to its end. */
static void write_at(struct node *n, uint64_t offset, uint32_t length)
{
	struct io io = {.request = {.op = BLOCK_WRITE,
				    .offset_bytes = offset,
				    .length_bytes = length,
				    .done = io_done}};

	io.request.buf = buf_alloc(n->world->pool, length);
	for (uint32_t at = 0; at < length; at++)
		io.request.buf->data[at] = (uint8_t)rnd(n->world, 256);
	memcpy(n->world->model + offset, io.request.buf->data, length);
	assert_int_equal(submit_and_wait(n, &io), 0);
	buf_put(io.request.buf);
}

/* One sector of the primary's disk that cannot be read: everything else gets there, the round does not
 * end, status names the block, and a write to it mends it. */
static void an_unreadable_block_is_named_and_mended_by_a_write(void **unused)
{
	struct world w;
	struct sim_disk_options disk;

	for (unsigned large = 0; large < 2; large++) {
		world_open(&w);
		w.a.final_cut_max_bytes = large ? 64 * 1024 : 0;
		world_start(&w);
		write_some(&w.a, 50);
		expect_same(&w, &w.a, __LINE__);
		disconnect(&w.b);
		write_some(&w.a, 400);
		for (uint64_t at = 1 << 20; at < 1 << 21; at += 65536)
			write_at(&w.a, at, 65536);
		flush(&w.a);
		sim_disk_get(w.a.env, &disk);
		disk.eio_path = "backing";
		disk.bad_start = (1 << 20) + 5 * 4096;
		disk.bad_end = disk.bad_start + 512;
		sim_disk_set(w.a.env, &disk);
		reconnect(&w.b);
		let_pass(&w, 20000);
		struct replication_status s = status(&w.a);
		assert_int_equal(s.state, REPLICATION_CATCH_UP);
		assert_int_equal(s.unreadable_bytes, 4096);
		assert_int_equal(s.unreadable_offset, disk.bad_start);
		uint64_t sent = s.sent_bytes;
		let_pass(&w, 20000);
		s = status(&w.a); /* not in a hot loop, and what is there is not sent again */
		assert_true(s.sent_bytes - sent < 100000 && s.state == REPLICATION_CATCH_UP);
		assert_int_equal(s.unreadable_bytes, 4096);
		write_at(&w.a, disk.bad_start, 4096);
		expect_same(&w, &w.a, __LINE__);
		assert_int_equal(status(&w.a).unreadable_bytes, 0);
		world_close(&w);
	}
}

static uint64_t cut_read_bytes(struct node *n)
{
	struct volume_stats stats;

	volume_get_stats(n->volume, &stats);
	return stats.cut_read_bytes;
}

/* Blocks of 4 KiB here and there: no more than these is read and sent, on either side's account. */
static void scattered_blocks_cost_what_they_are(void **unused)
{
	struct world w;
	const unsigned count = VOLUME_BYTES / 32768;

	world_open(&w);
	world_start(&w);
	write_at(&w.a, 0, 4096);
	expect_same(&w, &w.a, __LINE__);
	WAIT(&w, status(&w.a).out_of_sync_bytes == 0);
	disconnect(&w.b);
	WAIT(&w, status(&w.a).state == REPLICATION_CONNECTING);
	for (unsigned i = 0; i < count; i++)
		write_at(&w.a, i * 32768ull + 8192, 4096);
	flush(&w.a);
	uint64_t sent = status(&w.a).sent_bytes, read = cut_read_bytes(&w.a);
	reconnect(&w.b);
	expect_same(&w, &w.a, __LINE__);
	assert_true(status(&w.a).sent_bytes - sent <= count * 4096 * 11 / 10);
	assert_true(cut_read_bytes(&w.a) - read <= count * 4096);
	world_close(&w);
}

static void client_reads(struct node *n)
{
	struct io io = {.request = {.op = BLOCK_READ, .length_bytes = 4096, .done = io_done}};

	io.request.buf = buf_alloc(n->world->pool, 4096);
	assert_int_equal(submit_and_wait(n, &io), 0);
	buf_put(io.request.buf);
}

/* The most reads of scattered blocks that begin while the disk does one. */
static uint64_t reads_at_a_time(bool client)
{
	const unsigned latency_ms = 20, count = VOLUME_BYTES / 32768;
	struct sim_disk_options disk;
	uint64_t most = 0;
	struct world w;

	world_open(&w);
	world_start(&w);
	expect_same(&w, &w.a, __LINE__);
	disconnect(&w.b);
	WAIT(&w, status(&w.a).state == REPLICATION_CONNECTING);
	for (unsigned i = 0; i < count; i++)
		write_at(&w.a, i * 32768ull + 8192, 4096);
	flush(&w.a);
	let_pass(&w, 2000); /* they were a client's */
	sim_disk_get(w.a.env, &disk);
	disk.latency_min_ns = disk.latency_max_ns = latency_ms * 1000000ull;
	sim_disk_set(w.a.env, &disk);
	reconnect(&w.b);
	while (!in_sync(&w)) {
		uint64_t before = cut_read_bytes(&w.a), begun_ns = env_now_ns(w.a.env);
		uint64_t times, bytes;

		if (client)
			client_reads(&w.a); /* longer where one of the cut's is in its way */
		else
			let_pass(&w, latency_ms);
		times = (env_now_ns(w.a.env) - begun_ns) / disk.latency_min_ns;
		bytes = (cut_read_bytes(&w.a) - before) / (times ? times : 1);
		if (bytes > most)
			most = bytes;
	}
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
	return most / 4096;
}

/* A disk to itself is asked for much at a time; beside clients, of whom some only read, for little: each of their
 * requests waits behind it. */
static void a_disk_is_read_deeply_if_it_has_no_clients(void **unused)
{
	assert_true(reads_at_a_time(false) >= 64);
	assert_true(reads_at_a_time(true) <= 2 * 8); /* while those of two such times overlap */
}

/* The cut is acknowledged, and that it is cannot be stored: the connection goes, and the next one ends well. */
static void an_acknowledgement_that_cannot_be_stored(void **unused)
{
	struct sim_disk_options disk, fails;
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	disconnect(&w.b);
	WAIT(&w, status(&w.a).state == REPLICATION_CONNECTING);
	write_some(&w.a, 50);
	flush(&w.a);
	reconnect(&w.b);
	WAIT(&w, status(&w.b).state == REPLICATION_STREAMING);
	assert_int_equal(status(&w.a).state, REPLICATION_CATCH_UP);
	sim_disk_get(w.a.env, &disk);
	fails = disk;
	fails.eio_path = "super";
	fails.write_eio_ppm = 1000000;
	sim_disk_set(w.a.env, &fails);
	WAIT(&w, status(&w.a).state != REPLICATION_CATCH_UP);
	assert_int_not_equal(status(&w.a).state, REPLICATION_STREAMING);
	sim_disk_set(w.a.env, &disk);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* Writes and flushes, one after the other, until that node streams; how many ended by then. */
static unsigned write_until_streaming(struct world *w, struct node *n)
{
	struct block *block = volume_block(w->a.volume);

	for (unsigned count = 0;; count++) {
		uint64_t at = 4096ull * (count % ALONE_BLOCKS);
		struct io *write = calloc(1, sizeof(*write)), *sync = calloc(1, sizeof(*sync));

		write->request = (struct block_request){.op = BLOCK_WRITE,
							.offset_bytes = at,
							.length_bytes = 4096,
							.done = io_done};
		/* What is on its way keeps its buffers. */
		while (!(write->request.buf = buf_alloc(w->pool, 4096)) &&
		       status(n).state != REPLICATION_STREAMING)
			turn(w);
		if (!write->request.buf)
			return count;
		memset(write->request.buf->data, w->model[at] + 1, 4096);
		memset(w->model + at, w->model[at] + 1, 4096);
		sync->request = (struct block_request){.op = BLOCK_FLUSH, .done = io_done};
		block->ops->submit(block, &write->request);
		while (!write->done && status(n).state != REPLICATION_STREAMING)
			turn(w);
		if (write->done)
			block->ops->submit(block, &sync->request);
		while (!sync->done && status(n).state != REPLICATION_STREAMING)
			turn(w);
		if (!sync->done) /* the primary is to die with it */
			return count;
		buf_put(write->request.buf);
		free(write);
		free(sync);
	}
}

enum stream_begins { TARGET_STREAMS, SOURCE_STREAMS, PROTOCOL_CHANGES };

/* The primary dies at that moment, or some time after; true if the peer lacks what was flushed on the primary, where
 * nobody waited for the peer yet. */
static bool dies_as_the_stream_begins(enum stream_begins moment, unsigned later_ms,
				      enum replication_risk *risk)
{
	struct sim_net_options net;
	struct world w;

	world_open(&w);
	if (moment == PROTOCOL_CHANGES)
		w.a.protocol = w.b.protocol = REPLICATION_A;
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	disconnect(&w.b);
	WAIT(&w, status(&w.a).state == REPLICATION_CONNECTING);
	/* Far behind the writer. */
	slow_link(&w);
	sim_net_get(w.sim, &net);
	net.latency_min_ns = net.latency_max_ns = 50000000;
	sim_net_set(w.sim, &net);
	reconnect(&w.b);
	unsigned flushed = write_until_streaming(&w, moment == TARGET_STREAMS ? &w.b : &w.a);
	assert_true(flushed > 0);
	if (moment == PROTOCOL_CHANGES) {
		let_pass(&w, 10000);
		flushed = ALONE_BLOCKS;
		for (uint64_t at = 0; at < 4096ull * flushed; at += 65536)
			write_at(&w.a, at, 65536);
		flush(&w.a);
		replication_set_protocol(w.a.replication, REPLICATION_C);
		let_pass(&w, 1500); /* the peer knows, ahead of what is queued */
	}
	let_pass(&w, later_ms);
	crash_primary(&w.a, SIM_CRASH_POWER);
	WAIT(&w, status(&w.b).state == REPLICATION_CONNECTING);
	let_pass(&w, 1000);
	uint64_t last = 4096ull * ((flushed - 1) % ALONE_BLOCKS);
	struct buf *piece = read_piece(&w.b, last / 65536 * 65536);
	bool lost = memcmp(piece->data + last % 65536, w.model + last, 4096) != 0;
	buf_put(piece);
	*risk = loss(&w.b).risk;
	stop(&w.b);
	return lost;
}

/* What completed on the primary alone, behind the final cut or in protocol A, may be on its way when clients begin to
 * wait for the peer. Until it is there the secondary does not take itself for one that has everything. */
static void a_stream_that_begins_is_not_all_there_yet(void **unused)
{
	enum replication_risk risk;

	for (enum stream_begins moment = TARGET_STREAMS; moment <= PROTOCOL_CHANGES; moment++) {
		assert_true(dies_as_the_stream_begins(moment, 0, &risk));
		assert_int_not_equal(risk, REPLICATION_RISK_NONE);
		assert_false(dies_as_the_stream_begins(moment, 20000, &risk));
		assert_int_equal(risk, REPLICATION_RISK_NONE);
	}
}

static void silent_links(void **unused)
{
	struct world w;

	world_open(&w);
	world_start(&w);
	for (unsigned i = 0; i < 8; i++) {
		write_some(&w.a, 50);
		sim_cut(w.sim, "a", "b", i % 2);
		write_some(&w.a, 50);
		flush(&w.a);
		expect_same(&w, &w.a, __LINE__);
	}
	world_close(&w);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_acknowledgement_that_cannot_be_stored),
		cmocka_unit_test(a_stream_that_begins_is_not_all_there_yet),
		cmocka_unit_test(silent_links),
		cmocka_unit_test(a_lost_link_costs_what_was_in_flight),
		cmocka_unit_test(an_unreadable_block_is_named_and_mended_by_a_write),
		cmocka_unit_test(scattered_blocks_cost_what_they_are),
		cmocka_unit_test(a_disk_is_read_deeply_if_it_has_no_clients),
		cmocka_unit_test(a_crashed_target_goes_on_with_its_log),
		cmocka_unit_test(writers_and_losses_end_in_the_same_content),
		cmocka_unit_test(a_writer_faster_than_the_link_is_no_livelock),
	};

	return pair_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
