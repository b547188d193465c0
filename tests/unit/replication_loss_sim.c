/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of the clients when the peer is lost: on-peer-loss = suspend, a peer that hangs, a
 * generation that cannot be stored. In the simulator; SEED=n replays.
 */
#define WORLD_SIM
#define VOLUME_BYTES (32u * 1024 * 1024)
#pragma GCC diagnostic ignored "-Wunused-function"
#include "tests/unit/replication_pair.h"

static struct io *write_one(struct node *n, uint64_t offset, int fill)
{
	struct io *io = calloc(1, sizeof(*io));
	struct block *block = volume_block(n->volume);

	io->request = (struct block_request){
		.op = BLOCK_WRITE, .offset_bytes = offset, .length_bytes = 4096, .done = io_done};
	io->request.buf = buf_alloc(n->world->pool, 4096);
	memset(io->request.buf->data, fill, 4096);
	memset(n->world->model + offset, fill, 4096);
	block->ops->submit(block, &io->request);
	return io;
}

static void end_io(struct world *w, struct io *io, int error)
{
	WAIT(w, io->done);
	assert_int_equal(io->error, error);
	buf_put(io->request.buf);
	free(io);
}

static bool same_generation(const struct volume_state *a, const struct volume_state *b)
{
	return id128_equal(&a->generations.current, &b->generations.current);
}

static void open_suspending(struct world *w)
{
	world_open(w);
	w->a.suspends = w->b.suspends = true;
	world_start(w);
	write_some(&w->a, 50); /* before it ever followed nobody waits for it */
	expect_same(w, &w->a, __LINE__);
}

static void requests_wait_for_a_peer_that_was_lost(void **unused)
{
	struct world w;
	struct io *io;
	char why[256];

	open_suspending(&w);
	assert_false(status(&w.a).waiting);
	assert_int_equal(replication_resume(w.a.replication, why, sizeof(why)), -EPERM);
	stop(&w.b);
	WAIT(&w, status(&w.a).waiting);
	assert_true(status(&w.a).waiting_since_ns > 0);
	io = write_one(&w.a, 0, 7);
	let_pass(&w, 5000);
	assert_false(io->done);
	start(&w.b, VOLUME_SECONDARY);
	end_io(&w, io, 0);
	assert_false(status(&w.a).waiting);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* What was issued and not answered when the peer was lost is answered when it has it, and the history is
 * the same: no client ever saw what the peer did not have. */
static void held_writes_reach_the_peer(void **unused)
{
	struct world w;
	struct io *ios[8];

	open_suspending(&w);
	struct volume_state before = state(&w.a);
	block_link(&w, true);
	for (unsigned i = 0; i < 8; i++)
		ios[i] = write_one(&w.a, 4096 * i, 1 + (int)i);
	WAIT(&w, status(&w.a).waiting);
	let_pass(&w, 3000);
	for (unsigned i = 0; i < 8; i++)
		assert_false(ios[i]->done);
	struct volume_state during = state(&w.a);
	assert_true(same_generation(&before, &during));
	block_link(&w, false);
	for (unsigned i = 0; i < 8; i++)
		end_io(&w, ios[i], 0);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void it_waits_over_a_restart_until_the_operators_word(void **unused)
{
	struct world w;
	struct io *io;
	char why[256];

	open_suspending(&w);
	stop(&w.b);
	WAIT(&w, status(&w.a).waiting);
	io = write_one(&w.a, 0, 7);
	stop(&w.a);
	end_io(&w, io, -ESHUTDOWN);
	start(&w.a, VOLUME_PRIMARY);
	assert_true(status(&w.a).waiting);
	struct volume_state before = state(&w.a);
	io = write_one(&w.a, 0, 8);
	let_pass(&w, 3000);
	assert_false(io->done);
	assert_int_equal(replication_resume(w.a.replication, why, sizeof(why)), 0);
	end_io(&w, io, 0);
	struct volume_state after = state(&w.a);
	assert_false(same_generation(&before, &after));
	/* And now it is alone, also after another restart. */
	stop(&w.a);
	start(&w.a, VOLUME_PRIMARY);
	assert_false(status(&w.a).waiting);
	write_some(&w.a, 20);
	start(&w.b, VOLUME_SECONDARY);
	expect_same(&w, &w.a, __LINE__);
	/* Until the peer has followed again. */
	stop(&w.b);
	WAIT(&w, status(&w.a).waiting);
	/* To leave the peer on purpose is such a word, too. */
	disconnect(&w.a);
	assert_false(status(&w.a).waiting);
	write_some(&w.a, 20);
	world_close(&w);
}

/* Issued behind the final cut of a catch-up, when the peer is not in sync yet, and still under way on this
 * disk when it is, and is lost at that very moment. */
static void what_began_before_the_stream_waits_as_well(void **unused)
{
	enum { WRITES = 1024 };
	struct sim_disk_options disk, slow;
	struct io *ios[WRITES] = {0};
	bool early[WRITES];
	unsigned count = 0, waiting = 0;
	struct world w;

	open_suspending(&w);
	buf_pool_free(w.pool);
	w.pool = buf_pool_new((unsigned[3]){WRITES, 64, 32}); /* for as many as there may be */
	disconnect(&w.a);
	write_some(&w.a, 20);
	sim_disk_get(w.a.env, &disk);
	slow = disk;
	slow.latency_min_ns = 400000000;
	slow.latency_max_ns = 500000000;
	sim_disk_set(w.a.env, &slow);
	sim_disk_set(w.b.env, &slow); /* it has got more than it has carried out */
	reconnect(&w.a);
	while (status(&w.a).state != REPLICATION_STREAMING) {
		if (status(&w.a).state == REPLICATION_CATCH_UP) {
			ios[count] = write_one(&w.a, 4096ull * count, 1 + (int)(count % 200));
			count++;
		}
		for (uint64_t end = now_ns(&w) + 100000000;
		     now_ns(&w) < end && status(&w.a).state != REPLICATION_STREAMING;)
			turn(&w);
		assert_true(count < WRITES);
	}
	crash(&w.b, SIM_CRASH_KILL);
	for (unsigned i = 0; i < count; i++) {
		early[i] = ios[i]->done;
		waiting += !early[i];
	}
	assert_true(waiting > 0);
	WAIT(&w, status(&w.a).waiting);
	let_pass(&w, 3000);
	block_link(&w, true);
	sim_disk_set(w.a.env, &disk);
	w.b.env = sim_restart(w.sim, w.b.env);
	sim_disk_set(w.b.env, &disk);
	start(&w.b, VOLUME_SECONDARY);
	WAIT(&w, !replication_applying(w.b.replication));
	/* What ended meanwhile is there: of the cut, or its answer was on its way. */
	for (unsigned i = 0; i < count; i++) {
		uint8_t block[4096];

		if (early[i] || !ios[i]->done)
			continue;
		assert_true(sim_file_peek(w.b.env, "/b/backing", block, 4096, 4096ull * i));
		assert_memory_equal(block, w.model + 4096ull * i, 4096);
	}
	block_link(&w, false);
	listen_on(&w.b);
	for (unsigned i = 0; i < count; i++)
		end_io(&w, ios[i], 0);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void a_demotion_ends_the_wait(void **unused)
{
	struct world w;
	struct io *io;

	open_suspending(&w);
	stop(&w.b);
	WAIT(&w, status(&w.a).waiting);
	io = write_one(&w.a, 0, 7);
	volume_fail_held(w.a.volume, -EIO);
	end_io(&w, io, -EIO);
	set_role(&w.a, VOLUME_SECONDARY);
	assert_false(status(&w.a).waiting);
	assert_int_equal(volume_suspended(w.a.volume), 0);
	assert_false(state(&w.a).peer_needed);
	world_close(&w);
}

/* It steps down by itself while it waits: what it is promoted to later waits for nobody. */
static void who_steps_down_waits_no_more(void **unused)
{
	struct world w;

	world_open(&w);
	w.a.suspends = w.b.suspends = true;
	w.a.steps_down = w.b.steps_down = true;
	w.a.start_wait_ms = 2000;
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	stop(&w.a);
	set_role(&w.b, VOLUME_PRIMARY);
	write_some(&w.b, 5);
	start(&w.a, VOLUME_PRIMARY);
	assert_true(status(&w.a).starting && status(&w.a).waiting);
	expect_same(&w, &w.b, __LINE__);
	assert_int_equal(state(&w.a).role, VOLUME_SECONDARY);
	assert_false(status(&w.a).waiting);
	assert_int_equal(volume_suspended(w.a.volume), 0);
	stop(&w.b);
	set_role(&w.a, VOLUME_PRIMARY);
	write_some(&w.a, 5);
	start(&w.b, VOLUME_PRIMARY);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* Its disk hangs, but it answers pings: writers must not wait for ever. */
static void a_peer_that_does_nothing_is_lost(void **unused)
{
	struct sim_disk_options disk;
	struct world w;
	struct io *io;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	sim_disk_get(w.b.env, &disk);
	struct sim_disk_options hangs = disk;
	hangs.latency_min_ns = hangs.latency_max_ns = 8000000000ull;
	sim_disk_set(w.b.env, &hangs);
	io = write_one(&w.a, 0, 7);
	uint64_t begun = now_ns(&w);
	WAIT(&w, io->done);
	assert_true(now_ns(&w) - begun < 5000000000ull);
	assert_non_null(strstr(status(&w.a).refusal, "carried nothing out"));
	end_io(&w, io, 0);
	sim_disk_set(w.b.env, &disk);
	/* The peer may be in the middle of a record of its own, and stand still for each of its writes. */
	let_pass(&w, 300000);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* Likewise while it is sent a cut: writers that wait for their blocks to be sent, since there is no room
 * left to keep them, do not wait for a disk that hangs over there. */
static void a_peer_that_hangs_under_a_cut_is_lost(void **unused)
{
	struct sim_disk_options disk;
	struct io *ios[32];
	struct world w;

	world_open(&w);
	w.a.preserve_max_bytes = 65536;
	w.b.staging_max_bytes = 1u << 20; /* in place */
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	disconnect(&w.b);
	for (uint64_t at = 0; at < VOLUME_BYTES; at += 8192)
		end_io(&w, write_one(&w.a, at, 5), 0);
	sim_disk_get(w.b.env, &disk);
	struct sim_disk_options hangs = disk;
	hangs.latency_min_ns = hangs.latency_max_ns = 60000000000ull;
	reconnect(&w.b);
	WAIT(&w, status(&w.a).in_place && status(&w.a).catch_up_done_bytes > 0);
	sim_disk_set(w.b.env, &hangs);
	let_pass(&w, 300);
	for (unsigned i = 0; i < 32; i++)
		ios[i] = write_one(&w.a, VOLUME_BYTES - 8192 * (1 + i), 7);
	uint64_t begun = now_ns(&w);
	for (unsigned i = 0; i < 32; i++)
		end_io(&w, ios[i], 0);
	assert_true(now_ns(&w) - begun < 5000000000ull);
	assert_non_null(strstr(status(&w.a).refusal, "carried nothing out"));
	crash(&w.b, SIM_CRASH_KILL);
	w.b.env = sim_restart(w.sim, w.b.env);
	sim_disk_set(w.b.env, &disk);
	listen_on(&w.b);
	start(&w.b, VOLUME_SECONDARY);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* Slow is not dead: as long as it reads what is sent it is not given up. */
static void a_slow_link_is_no_reason(void **unused)
{
	struct sim_net_options net;
	struct world w;

	world_open(&w);
	w.a.protocol = w.b.protocol = REPLICATION_A;
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	uint64_t disconnects = status(&w.a).disconnects;
	sim_net_get(w.sim, &net);
	net.bytes_per_second = 100000;
	sim_net_set(w.sim, &net);
	write_some(&w.a, 300);
	WAIT(&w, status(&w.a).lag_bytes == 0);
	assert_int_equal(status(&w.a).disconnects, disconnects);
	world_close(&w);
}

/* The peer lacks what clients are about to see completed, and that cannot be written down: they wait. */
static void a_history_that_cannot_be_stored_holds_the_clients(void **unused)
{
	struct sim_disk_options disk;
	struct world w;
	struct io *io, *next;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	struct volume_state before = state(&w.a);
	block_link(&w, true);
	io = write_one(&w.a, 0, 7);
	sim_disk_get(w.a.env, &disk);
	disk.write_eio_ppm = 1000000;
	disk.eio_path = "super";
	sim_disk_set(w.a.env, &disk);
	WAIT(&w, volume_suspended(w.a.volume) == VOLUME_SUSPEND_HISTORY);
	next = write_one(&w.a, 8192, 8);
	let_pass(&w, 5000);
	assert_false(io->done || next->done);
	disk.write_eio_ppm = 0;
	sim_disk_set(w.a.env, &disk);
	end_io(&w, io, 0);
	end_io(&w, next, 0);
	struct volume_state after = state(&w.a);
	assert_false(same_generation(&before, &after));
	block_link(&w, false);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* A client saw the end of a flush that the peer was not there for, and the peer lost to a power cut what it had
 * in its cache. It is promoted later: what was flushed must not be rolled back as if nobody had seen it. */
static void what_was_flushed_alone_is_not_rolled_back(void **unused)
{
	for (unsigned late = 0; late < 2; late++) {
		struct io io = {.request = {.op = BLOCK_FLUSH, .done = io_done}};
		struct world w;
		uint8_t byte = 0;

		world_open(&w);
		w.a.steps_down = w.b.steps_down = true;
		w.a.start_wait_ms = 2000;
		world_start(&w);
		write_some(&w.a, 50);
		expect_same(&w, &w.a, __LINE__);
		WAIT(&w, volume_dirty_bytes(w.a.volume, VOLUME_PEER) == 0);
		struct volume_state before = state(&w.a);
		end_io(&w, write_one(&w.a, 0, 7), 0);
		/* Under way to the peer when that is lost, or begun afterwards. */
		if (!late)
			volume_block(w.a.volume)
				->ops->submit(volume_block(w.a.volume), &io.request);
		crash(&w.b, SIM_CRASH_POWER_DROP);
		if (late) {
			WAIT(&w, status(&w.a).state == REPLICATION_CONNECTING);
			struct volume_state during = state(&w.a);
			assert_true(same_generation(&before, &during));
			volume_block(w.a.volume)
				->ops->submit(volume_block(w.a.volume), &io.request);
		}
		WAIT(&w, io.done);
		assert_int_equal(io.error, 0);
		crash_primary(&w.a, SIM_CRASH_POWER_DROP);
		come_back(&w.b, VOLUME_SECONDARY);
		assert_true(sim_file_peek(w.b.env, "/b/backing", &byte, 1, 0) && byte != 7);
		set_role(&w.b, VOLUME_PRIMARY);
		end_io(&w, write_one(&w.b, 8192, 9), 0);
		come_back(&w.a, VOLUME_PRIMARY);
		WAIT(&w, status(&w.a).split_brain || state(&w.a).role == VOLUME_SECONDARY);
		assert_int_equal(state(&w.a).role, VOLUME_PRIMARY);
		assert_true(sim_file_peek(w.a.env, "/a/backing", &byte, 1, 0) && byte == 7);
		world_close(&w);
	}
}

/* What the peer has durably needs no flush of its own: the history stays the same. */
static void a_flush_of_nothing_begins_no_history(void **unused)
{
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	WAIT(&w, volume_dirty_bytes(w.a.volume, VOLUME_PEER) == 0);
	struct volume_state before = state(&w.a);
	crash(&w.b, SIM_CRASH_POWER_DROP);
	flush(&w.a);
	WAIT(&w, status(&w.a).state == REPLICATION_CONNECTING);
	flush(&w.a);
	struct volume_state after = state(&w.a);
	assert_true(same_generation(&before, &after));
	come_back(&w.b, VOLUME_SECONDARY);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

struct restored {
	bool done;
	int error;
	char why[256];
};

static void restored(void *context, int error, const char *why)
{
	struct restored *r = context;

	*r = (struct restored){.done = true, .error = error};
	snprintf(r->why, sizeof(r->why), "%s", why);
}

/* A committed cut waits in the log, the disk is gone: the restore must not be overtaken by the log. */
static void restore_during_recovery(unsigned steps)
{
	struct world w;
	struct restored r = {};

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	disconnect(&w.b);
	write_some(&w.a, 100);
	reconnect(&w.b);
	WAIT(&w, replication_applying(w.b.replication) && state(&w.b).disk == VOLUME_DISK_OUTDATED);
	crash(&w.b, SIM_CRASH_KILL);
	sim_file_remove(w.b.env, "/b/backing");
	w.b.env = sim_restart(w.sim, w.b.env);
	start(&w.b, VOLUME_SECONDARY);
	assert_int_equal(state(&w.b).disk, VOLUME_DISK_FAILED);
	while (steps-- > 0)
		sim_step(w.sim);
	replication_restore_from_peer(w.b.replication, restored, &r);
	listen_on(&w.b);
	WAIT(&w, r.done);
	assert_int_equal(r.error, 0);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void a_restore_voids_what_recovery_would_apply(void **unused)
{
	for (unsigned steps = 0; steps < 24; steps++)
		restore_during_recovery(steps);
}

static void a_restore_onto_a_disk_that_fails_ends(void **unused)
{
	struct sim_disk_options disk;
	struct restored r = {}, again = {};
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 100);
	expect_same(&w, &w.a, __LINE__);
	disconnect(&w.b);
	write_some(&w.a, 100);
	sim_disk_get(w.b.env, &disk);
	disk.write_eio_ppm = 1000000;
	disk.eio_path = "backing";
	sim_disk_set(w.b.env, &disk);
	replication_restore_from_peer(w.b.replication, restored, &r);
	WAIT(&w, r.done);
	assert_int_equal(r.error, -EIO);
	assert_non_null(strstr(r.why, "the disk failed: "));
	assert_int_equal(state(&w.b).disk, VOLUME_DISK_FAILED);
	WAIT(&w, status(&w.b).state == REPLICATION_IDLE); /* what was under way has ended */
	disk.write_eio_ppm = 0;
	sim_disk_set(w.b.env, &disk);
	replication_restore_from_peer(w.b.replication, restored, &again);
	WAIT(&w, again.done);
	assert_int_equal(again.error, 0);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void discarded(void *context, int error, const char *why)
{
	*(int *)context = error;
}

/* The operator was told that nothing was given up: no later start does it. */
static void a_giving_up_that_failed_is_no_wish(void **unused)
{
	struct sim_disk_options disk, fails;
	struct world w;
	int error = 1;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	sim_disk_get(w.b.env, &disk);
	fails = disk;
	fails.eio_path = "super";
	fails.write_eio_ppm = 1000000;
	sim_disk_set(w.b.env, &fails);
	block_link(&w, true);
	replication_discard_changes(w.b.replication, discarded, &error);
	WAIT(&w, error != 1);
	assert_int_equal(error, -EIO);
	sim_disk_set(w.b.env, &disk);
	stop(&w.b);
	start(&w.b, VOLUME_SECONDARY);
	assert_false(status(&w.b).wants);
	block_link(&w, false);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(requests_wait_for_a_peer_that_was_lost),
		cmocka_unit_test(held_writes_reach_the_peer),
		cmocka_unit_test(it_waits_over_a_restart_until_the_operators_word),
		cmocka_unit_test(what_began_before_the_stream_waits_as_well),
		cmocka_unit_test(a_demotion_ends_the_wait),
		cmocka_unit_test(who_steps_down_waits_no_more),
		cmocka_unit_test(a_peer_that_does_nothing_is_lost),
		cmocka_unit_test(a_peer_that_hangs_under_a_cut_is_lost),
		cmocka_unit_test(a_slow_link_is_no_reason),
		cmocka_unit_test(a_history_that_cannot_be_stored_holds_the_clients),
		cmocka_unit_test(what_was_flushed_alone_is_not_rolled_back),
		cmocka_unit_test(a_flush_of_nothing_begins_no_history),
		cmocka_unit_test(a_restore_voids_what_recovery_would_apply),
		cmocka_unit_test(a_giving_up_that_failed_is_no_wish),
		cmocka_unit_test(a_restore_onto_a_disk_that_fails_ends),
	};

	return pair_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
