/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A volume is made bigger on two nodes: while it is written to, without the peer, with either of them
 * dying at any operation on its files. In the simulator; SEED=n replays.
 */
#define WORLD_SIM
#pragma GCC diagnostic ignored "-Wunused-function"
#include "tests/unit/replication_pair.h"

#define BIGGER (VOLUME_BYTES + 5u * 1024 * 1024 + 4096)

struct resized {
	bool done;
	int error;
	char why[512];
};

static void resize_done(void *context, int error, const char *why)
{
	struct resized *z = context;

	*z = (struct resized){.done = true, .error = error};
	snprintf(z->why, sizeof(z->why), "%s", why);
}

static struct resized resize(struct node *n, uint64_t size, bool force)
{
	struct resized z = {};

	replication_resize(n->replication, size, force, resize_done, &z);
	WAIT(n->world, z.done);
	return z;
}

static struct io *submit_write(struct node *n, uint64_t offset, int fill)
{
	struct io *io = calloc(1, sizeof(*io));
	struct block *block = volume_block(n->volume);

	io->request = (struct block_request){
		.op = BLOCK_WRITE, .offset_bytes = offset, .length_bytes = 4096, .done = io_done};
	io->request.buf = buf_alloc(n->world->pool, 4096);
	memset(io->request.buf->data, fill, 4096);
	if (offset < VOLUME_BYTES)
		memset(n->world->model + offset, fill, 4096);
	block->ops->submit(block, &io->request);
	return io;
}

static void end_write(struct world *w, struct io *io)
{
	WAIT(w, io->done);
	assert_int_equal(io->error, 0);
	buf_put(io->request.buf);
	free(io);
}

static void expect_filled(struct node *n, uint64_t offset, uint32_t length, int fill)
{
	struct io io = {.request = {.op = BLOCK_READ,
				    .offset_bytes = offset,
				    .length_bytes = length,
				    .done = io_done}};

	io.request.buf = buf_alloc(n->world->pool, length);
	volume_read(n->volume, &io.request);
	WAIT(n->world, io.done);
	assert_int_equal(io.error, 0);
	for (uint32_t i = 0; i < length; i++)
		assert_int_equal(io.request.buf->data[i], fill);
	buf_put(io.request.buf);
}

/* Both have the size, the old part, zeroes behind it, and what is written at the new end. */
static void expect_bigger(struct world *w, int line)
{
	expect_same(w, &w->a, line);
	assert_int_equal(volume_size_bytes(w->a.volume), BIGGER);
	assert_int_equal(volume_size_bytes(w->b.volume), BIGGER);
	end_write(w, submit_write(&w->a, BIGGER - 4096, 9));
	expect_same(w, &w->a, line);
	for (unsigned i = 0; i < 2; i++) {
		struct node *n = i ? &w->b : &w->a;

		expect_filled(n, BIGGER - 4096, 4096, 9);
		for (uint64_t at = VOLUME_BYTES; at < BIGGER - 4096; at += 1 << 20)
			expect_filled(n, at, 1 << 20, 0);
	}
}

static void open_synced(struct world *w)
{
	world_open(w);
	world_start(w);
	write_some(&w->a, 100);
	flush(&w->a);
	expect_same(w, &w->a, __LINE__);
}

static void both_grow_while_it_is_written_to(void **unused)
{
	struct io *ios[8];
	struct world w;
	struct resized z = {};

	open_synced(&w);
	uint64_t sent = status(&w.a).sent_bytes, connects = status(&w.a).connects;
	replication_resize(w.a.replication, BIGGER, false, resize_done, &z);
	for (unsigned i = 0; i < 8; i++)
		ios[i] = submit_write(&w.a, i * 1024 * 1024, 3);
	for (unsigned i = 0; i < 8; i++)
		end_write(&w, ios[i]);
	WAIT(&w, z.done);
	assert_int_equal(z.error, 0);
	expect_bigger(&w, __LINE__);
	assert_int_equal(status(&w.a).connects, connects);
	assert_int_equal(status(&w.a).full_syncs, 1);
	/* Nothing of the new part was sent as content. */
	assert_true(status(&w.a).sent_bytes - sent < 1 << 20);
	stop(&w.b);
	stop(&w.a);
	start(&w.a, VOLUME_PRIMARY);
	start(&w.b, VOLUME_SECONDARY);
	expect_bigger(&w, __LINE__);
	world_close(&w);
}

static void refusals_name_the_reason(void **unused)
{
	struct resized z;
	struct world w;

	open_synced(&w);
	z = resize(&w.a, VOLUME_BYTES - 4096, false);
	assert_int_equal(z.error, -EINVAL);
	assert_non_null(strstr(z.why, "never made smaller"));
	z = resize(&w.b, BIGGER, false);
	assert_int_equal(z.error, -EPERM);
	assert_non_null(strstr(z.why, "secondary on this node: resize it on a"));
	assert_int_equal(resize(&w.b, BIGGER, true).error, -EPERM);
	stop(&w.b);
	WAIT(&w, status(&w.a).state != REPLICATION_STREAMING);
	z = resize(&w.a, BIGGER, false);
	assert_int_equal(z.error, -EPERM);
	assert_non_null(strstr(z.why, "--force"));
	assert_int_equal(volume_size_bytes(w.a.volume), VOLUME_BYTES);
	start(&w.b, VOLUME_SECONDARY);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void what_the_peer_cannot_is_not_done_here(void **unused)
{
	struct sim_disk_options options, full;
	struct resized z;
	struct world w;

	open_synced(&w);
	sim_disk_get(w.b.env, &options);
	full = options;
	full.capacity_bytes = 1;
	sim_disk_set(w.b.env, &full);
	z = resize(&w.a, BIGGER, false);
	assert_int_equal(z.error, -EPERM);
	assert_non_null(strstr(z.why, "peer b: volume v: "));
	assert_int_equal(volume_size_bytes(w.a.volume), VOLUME_BYTES);
	sim_disk_set(w.b.env, &options);
	assert_int_equal(resize(&w.a, BIGGER, false).error, 0);
	expect_bigger(&w, __LINE__);
	world_close(&w);
}

static void a_smaller_secondary_grows_when_it_meets_its_primary(void **unused)
{
	struct world w;

	open_synced(&w);
	stop(&w.b);
	WAIT(&w, status(&w.a).state != REPLICATION_STREAMING);
	assert_int_equal(resize(&w.a, BIGGER, true).error, 0);
	end_write(&w, submit_write(&w.a, 4096, 5));
	start(&w.b, VOLUME_SECONDARY);
	expect_bigger(&w, __LINE__);
	assert_int_equal(status(&w.a).full_syncs, 1);
	world_close(&w);
}

static void a_smaller_primary_says_what_to_type(void **unused)
{
	struct world w;

	open_synced(&w);
	stop(&w.a);
	WAIT(&w, status(&w.b).state != REPLICATION_STREAMING);
	assert_int_equal(resize(&w.b, BIGGER, true).error, 0);
	start(&w.a, VOLUME_PRIMARY);
	WAIT(&w, status(&w.a).state == REPLICATION_STANDALONE);
	assert_non_null(strstr(status(&w.a).refusal, "on a: offsite resize v 13635584 --force"));
	assert_int_equal(resize(&w.a, BIGGER, true).error, 0);
	expect_bigger(&w, __LINE__);
	world_close(&w);
}

/* The primary dies after its peer was made bigger alone. */
static void open_with_bigger_secondary(struct world *w)
{
	open_synced(w);
	crash(&w->a, SIM_CRASH_POWER);
	WAIT(w, !status(&w->b).peer_known);
	assert_int_equal(resize(&w->b, BIGGER, true).error, 0);
}

static struct resized restore(struct node *n)
{
	struct resized z = {};

	replication_restore_from_peer(n->replication, resize_done, &z);
	WAIT(n->world, z.done);
	return z;
}

static void expect_restored(struct world *w)
{
	struct resized z = restore(&w->a);

	if (z.error)
		fail_msg("%s", z.why);
	assert_int_equal(volume_size_bytes(w->a.volume), BIGGER);
	set_role(&w->a, VOLUME_PRIMARY);
	expect_bigger(w, __LINE__);
	world_close(w);
}

static void a_new_disk_takes_its_size_with_its_content(void **unused)
{
	struct world w;

	open_with_bigger_secondary(&w);
	sim_disk_lose(w.a.env);
	come_back(&w.a, VOLUME_SECONDARY);
	assert_int_equal(volume_size_bytes(w.a.volume), VOLUME_BYTES);
	expect_restored(&w);
}

static void a_failed_disk_is_to_be_restored_not_resized(void **unused)
{
	struct resized z;
	struct world w;

	open_with_bigger_secondary(&w);
	sim_file_remove(w.a.env, "/a/backing");
	come_back(&w.a, VOLUME_PRIMARY);
	assert_int_equal(state(&w.a).disk, VOLUME_DISK_FAILED);
	WAIT(&w, status(&w.a).state == REPLICATION_STANDALONE &&
			 status(&w.b).state == REPLICATION_STANDALONE);
	for (unsigned i = 0; i < 2; i++)
		assert_non_null(
			strstr(status(i ? &w.b : &w.a).refusal,
			       "the disk of a failed; there: offsite restore v --from-peer"));
	z = resize(&w.a, BIGGER, true);
	assert_int_equal(z.error, -EPERM);
	assert_non_null(strstr(z.why, "offsite restore v --from-peer"));
	struct volume_state s = state(&w.a);
	s.role = VOLUME_SECONDARY;
	assert_int_equal(volume_set_state(w.a.volume, &s), 0);
	expect_restored(&w);
}

/* Whoever dies whenever: each has one of the sizes; one word at most, and both have the new one. */
static bool dies_once(bool primary, uint64_t k, enum sim_crash mode)
{
	struct resized z = {}, last;
	struct io *ios[4];
	struct world w;

	open_synced(&w);
	struct node *n = primary ? &w.a : &w.b;
	sim_crash_after_ios(w.sim, n->env, k, mode);
	replication_resize(w.a.replication, BIGGER, false, resize_done, &z);
	for (unsigned i = 0; i < 4; i++)
		ios[i] = submit_write(&w.a, i * 2 * 1024 * 1024, 4);
	while (!sim_node_dead(n->env) && !z.done)
		sim_step(w.sim);
	bool died = sim_node_dead(n->env);
	primary ? crash_primary(n, mode) : crash(n, mode);
	come_back(n, primary ? VOLUME_PRIMARY : VOLUME_SECONDARY);
	/* Acknowledged or not: written again, so that the model is right. */
	for (unsigned i = 0; i < 4; i++) {
		if (primary)
			free(ios[i]);
		else
			end_write(&w, ios[i]);
		end_write(&w, submit_write(&w.a, i * 2 * 1024 * 1024, 4));
	}
	uint64_t a = volume_size_bytes(w.a.volume), b = volume_size_bytes(w.b.volume);
	assert_true(a == VOLUME_BYTES || a == BIGGER);
	assert_true(b == VOLUME_BYTES || b == BIGGER);
	if (!primary)
		WAIT(&w, z.done);
	if (volume_size_bytes(w.a.volume) == VOLUME_BYTES) {
		WAIT(&w, in_sync(&w) || status(&w.a).state == REPLICATION_STANDALONE);
		last = resize(&w.a, BIGGER, !in_sync(&w));
		if (last.error)
			fail_msg("%s", last.why);
	}
	expect_bigger(&w, __LINE__);
	world_close(&w);
	return died;
}

static void a_crash_at_any_operation_can_be_gone_on_from(void **unused)
{
	for (unsigned primary = 0; primary < 2; primary++)
		for (unsigned mode = 0; mode < 4; mode++) {
			uint64_t k = 1;

			while (dies_once(primary, k, (enum sim_crash)mode))
				k += mode == SIM_CRASH_POWER ? 1 : 3;
			assert_true(k > 10);
		}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(both_grow_while_it_is_written_to),
		cmocka_unit_test(refusals_name_the_reason),
		cmocka_unit_test(what_the_peer_cannot_is_not_done_here),
		cmocka_unit_test(a_smaller_secondary_grows_when_it_meets_its_primary),
		cmocka_unit_test(a_smaller_primary_says_what_to_type),
		cmocka_unit_test(a_new_disk_takes_its_size_with_its_content),
		cmocka_unit_test(a_failed_disk_is_to_be_restored_not_resized),
		cmocka_unit_test(a_crash_at_any_operation_can_be_gone_on_from),
	};

	return pair_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
