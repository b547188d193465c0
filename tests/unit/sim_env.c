// SPDX-License-Identifier: Apache-2.0
/* The simulator itself: what survives which crash, and that the same seed gives the same run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/io/env_ops.h"
#include "tests/sim/env_sim.h"
#include "tests/sim/store_sim.h"

#define SECOND UINT64_C(1000000000)

struct waiter {
	struct env_op op;
	bool done;
	int64_t result;
};

static void waiter_done(struct env_op *op, int64_t result)
{
	struct waiter *waiter = (struct waiter *)op;

	waiter->done = true;
	waiter->result = result;
}

static struct waiter waiter_new(void)
{
	return (struct waiter){.op.done = waiter_done};
}

static struct env_file *open_file(struct env *env, const char *path, unsigned flags)
{
	struct env_file *file;

	assert_int_equal(env_file_open(env, path, ENV_FILE_READ | ENV_FILE_WRITE | flags, &file),
			 0);
	return file;
}

static uint8_t byte_at(struct env *env, const char *path, uint64_t offset)
{
	uint8_t byte;

	assert_true(sim_file_peek(env, path, &byte, 1, offset));
	return byte;
}

static void write_byte(struct sim *sim, struct env *env, struct env_file *file, uint8_t value,
		       uint64_t offset, unsigned flags)
{
	static uint8_t block[4096] __attribute__((aligned(4096)));
	struct waiter w = waiter_new();

	memset(block, value, sizeof(block));
	env_write(env, &w.op, file, block, sizeof(block), offset, flags);
	assert_false(w.done);
	assert_true(sim_run_until(sim, &w.done, SECOND));
	assert_int_equal(w.result, sizeof(block));
}

/* Flushed stays; unflushed is lost in one world and kept in another. */
static void test_power(void **state)
{
	unsigned lost = 0, kept = 0, torn = 0;

	for (uint64_t seed = 1; seed <= 40; seed++) {
		struct sim *sim = sim_new(seed);
		struct env *env = sim_node(sim, "a");
		struct env_file *file = open_file(env, "/f", ENV_FILE_CREATE | ENV_FILE_DIRECT);
		struct waiter w = waiter_new();
		unsigned left = 0;

		env_sync_dir(env, "/");
		write_byte(sim, env, file, 1, 0, 0);
		env_fsync(env, &w.op, file);
		assert_true(sim_run_until(sim, &w.done, SECOND));
		write_byte(sim, env, file, 2, 4096, ENV_WRITE_FUA);
		write_byte(sim, env, file, 3, 8192, 0);
		sim_crash(sim, env, SIM_CRASH_POWER);
		assert_true(sim_node_dead(env));
		env = sim_restart(sim, env);
		assert_int_equal(byte_at(env, "/f", 0), 1);
		assert_int_equal(byte_at(env, "/f", 4096), 2);
		for (unsigned i = 0; i < 4096; i += 512)
			left += byte_at(env, "/f", 8192 + i) == 3;
		lost += left == 0;
		kept += left == 8;
		torn += left > 0 && left < 8;
		sim_free(sim);
	}
	assert_true(lost > 3 && kept > 3 && torn > 3);
}

/* An fsync does not cover what completes after its call. */
static void test_fsync_covers_before(void **state)
{
	struct sim *sim = sim_new(7);
	struct env *env = sim_node(sim, "a");
	struct env_file *file = open_file(env, "/f", ENV_FILE_CREATE);
	struct waiter w = waiter_new();

	env_sync_dir(env, "/");
	write_byte(sim, env, file, 1, 0, 0);
	env_fsync(env, &w.op, file);
	assert_int_equal(env_file_pwrite(env, file, "22", 2, 0), 0);
	assert_true(sim_run_until(sim, &w.done, SECOND));
	assert_int_equal(byte_at(env, "/f", 0), '2');
	sim_crash(sim, env, SIM_CRASH_POWER_DROP);
	assert_int_equal(byte_at(env, "/f", 0), 1);
	sim_free(sim);
}

static void test_kill_keeps_completed(void **state)
{
	struct sim *sim = sim_new(3);
	struct env *env = sim_node(sim, "a");
	struct env_file *file = open_file(env, "/f", ENV_FILE_CREATE);

	write_byte(sim, env, file, 9, 0, 0);
	sim_crash(sim, env, SIM_CRASH_KILL);
	assert_int_equal(byte_at(env, "/f", 0), 9);
	env = sim_restart(sim, env);
	sim_crash(sim, env, SIM_CRASH_POWER_DROP);
	assert_false(sim_file_peek(env, "/f", &(uint8_t){0}, 1, 0)); /* no sync_dir */
	sim_free(sim);
}

/* The k-th operation does not happen, and nothing after it. */
static void test_crash_after_ios(void **state)
{
	struct sim *sim = sim_new(5);
	struct env *env = sim_node(sim, "a");
	struct env_file *file = open_file(env, "/f", ENV_FILE_CREATE);

	sim_crash_after_ios(sim, env, 3, SIM_CRASH_KILL);
	assert_int_equal(env_file_pwrite(env, file, "1", 1, 0), 0);
	assert_int_equal(env_file_pwrite(env, file, "2", 1, 0), 0);
	assert_int_equal(env_file_pwrite(env, file, "3", 1, 0), -EIO);
	assert_true(sim_node_dead(env));
	assert_int_equal(env_file_pwrite(env, file, "4", 1, 0), -EIO);
	assert_int_equal(byte_at(env, "/f", 0), '2');
	sim_free(sim);
}

/* A copy is what would be left; the original goes on. */
static void test_copy(void **state)
{
	struct sim *sim = sim_new(11);
	struct sim *other = sim_new(12);
	struct env *env = sim_node(sim, "a"), *copy;
	struct env_file *file = open_file(env, "/f", ENV_FILE_CREATE);

	env_sync_dir(env, "/");
	write_byte(sim, env, file, 1, 0, ENV_WRITE_FUA);
	write_byte(sim, env, file, 2, 0, 0);
	copy = sim_node_copy(other, "a", env, SIM_CRASH_POWER_DROP);
	assert_int_equal(byte_at(copy, "/f", 0), 1);
	assert_int_equal(byte_at(env, "/f", 0), 2);
	sim_free(other);
	assert_int_equal(env_file_sync(env, file), 0);
	sim_free(sim);
}

static void test_sparse(void **state)
{
	struct sim *sim = sim_new(13);
	struct env *env = sim_node(sim, "a");
	struct env_file *file = open_file(env, "/f", ENV_FILE_CREATE);
	struct waiter w = waiter_new();
	uint64_t start, end;

	assert_int_equal(env_file_truncate(env, file, 1 << 20), 0);
	assert_int_equal(env_file_next_data(env, file, 0, &start, &end), -ENXIO);
	write_byte(sim, env, file, 1, 65536, 0);
	assert_int_equal(env_file_next_data(env, file, 0, &start, &end), 0);
	assert_int_equal(start, 65536);
	assert_int_equal(end, 65536 + 4096);
	env_zero(env, &w.op, file, 0, 1 << 20, ENV_ZERO_PUNCH);
	assert_true(sim_run_until(sim, &w.done, SECOND));
	assert_int_equal(w.result, 0);
	assert_int_equal(env_file_next_data(env, file, 0, &start, &end), -ENXIO);
	sim_free(sim);
}

struct accepted {
	struct env_sock *sock;
	bool done;
};

static void accepted(void *context, struct env_sock *sock)
{
	struct accepted *a = context;

	a->sock = sock;
	a->done = true;
}

static void connect_pair(struct sim *sim, struct env *a, struct env *b, struct env_sock *socks[2])
{
	struct accepted got = {0};
	struct env_listener *listener;
	struct waiter w = waiter_new();

	assert_int_equal(env_listen(b, "tcp:b:0", accepted, &got, &listener), 0);
	env_connect(a, &w.op, b->ops->listener_addr(listener), &socks[0]);
	assert_true(sim_run_until(sim, &w.done, SECOND));
	assert_int_equal(w.result, 0);
	assert_true(got.done);
	socks[1] = got.sock;
	env_listener_close(b, listener);
}

static void test_stream(void **state)
{
	enum { LENGTH = 300000 };
	uint8_t *out = malloc(LENGTH), *in = malloc(LENGTH);

	for (uint64_t seed = 1; seed < 10; seed++) {
		struct sim *sim = sim_new(seed);
		struct env *a = sim_node(sim, "a"), *b = sim_node(sim, "b");
		struct env_sock *socks[2];
		struct waiter send = waiter_new();
		struct iovec iov[2] = {{out, 1000}, {out + 1000, LENGTH - 1000}};
		size_t got = 0;

		connect_pair(sim, a, b, socks);
		env_random(a, out, LENGTH);
		env_sendv(a, &send.op, socks[0], iov, 2);
		for (;;) {
			struct waiter recv = waiter_new();

			env_recv(b, &recv.op, socks[1], in + got, LENGTH - got + 1);
			assert_true(sim_run_until(sim, &recv.done, 10 * SECOND));
			if (got == LENGTH) {
				assert_int_equal(recv.result, 0); /* the end */
				break;
			}
			assert_true(recv.result > 0);
			got += (size_t)recv.result;
			if (got == LENGTH) {
				assert_true(sim_run_until(sim, &send.done, SECOND));
				env_sock_close(a, socks[0]);
			}
		}
		assert_int_equal(send.result, LENGTH);
		assert_memory_equal(in, out, LENGTH);
		sim_free(sim);
	}
	free(out);
	free(in);
}

/* A killed process resets; a host without power is silent until it is back. */
static void test_half_open(void **state)
{
	for (unsigned power = 0; power < 2; power++) {
		struct sim *sim = sim_new(21 + power);
		struct env *a = sim_node(sim, "a"), *b = sim_node(sim, "b");
		struct env_sock *socks[2];
		struct waiter recv = waiter_new(), send = waiter_new();
		struct iovec iov = {(void *)"x", 1};
		char byte;

		connect_pair(sim, a, b, socks);
		env_recv(a, &recv.op, socks[0], &byte, 1);
		sim_crash(sim, b, power ? SIM_CRASH_POWER : SIM_CRASH_KILL);
		assert_int_equal(sim_run_until(sim, &recv.done, 5 * SECOND), !power);
		if (power) {
			env_sendv(a, &send.op, socks[0], &iov, 1);
			assert_false(sim_run_until(sim, &recv.done, 5 * SECOND));
			sim_restart(sim, b);
			assert_true(sim_run_until(sim, &recv.done, 5 * SECOND));
		}
		assert_int_equal(recv.result, -ECONNRESET);
		sim_free(sim);
	}
}

static void test_block(void **state)
{
	struct sim *sim = sim_new(31);
	struct env *a = sim_node(sim, "a"), *b = sim_node(sim, "b");
	struct env_sock *socks[2];
	struct waiter recv = waiter_new(), send = waiter_new();
	struct iovec iov = {(void *)"x", 1};
	char byte;

	connect_pair(sim, a, b, socks);
	sim_block(sim, "a", "b", true);
	env_recv(b, &recv.op, socks[1], &byte, 1);
	env_sendv(a, &send.op, socks[0], &iov, 1);
	assert_false(sim_run_until(sim, &recv.done, 5 * SECOND));
	sim_block(sim, "a", "b", false);
	assert_true(sim_run_until(sim, &recv.done, 5 * SECOND));
	assert_int_equal(recv.result, 1);
	sim_free(sim);
}

static void count_object(void *context, const struct store_object *object)
{
	++*(unsigned *)context;
}

static void test_store(void **state)
{
	struct sim *sim = sim_new(41);
	struct env *env = sim_node(sim, "a");
	struct store *store = store_sim_open(env, "sim:x");
	struct waiter put = waiter_new(), again = waiter_new(), get = waiter_new(),
		      list = waiter_new();
	struct iovec iov[2] = {{(void *)"hel", 3}, {(void *)"lo", 2}};
	char buf[8] = "";
	unsigned count = 0;

	store->ops->put(store, &put.op, "a/b", iov, 2);
	assert_true(sim_run_until(sim, &put.done, SECOND));
	assert_int_equal(put.result, 0);
	store->ops->put(store, &again.op, "a/b", iov, 1);
	assert_true(sim_run_until(sim, &again.done, SECOND));
	assert_int_equal(again.result, -EEXIST);
	sim_crash(sim, env, SIM_CRASH_POWER_DROP);
	env = sim_restart(sim, env);
	store = store_sim_open(env, "sim:x");
	store->ops->get(store, &get.op, "a/b", buf, sizeof(buf), 1);
	assert_true(sim_run_until(sim, &get.done, SECOND));
	assert_int_equal(get.result, 4);
	assert_string_equal(buf, "ello");
	store->ops->list(store, &list.op, "a/", count_object, &count);
	assert_true(sim_run_until(sim, &list.done, SECOND));
	assert_int_equal(list.result, 1);
	assert_int_equal(count, 1);
	sim_free(sim);
}

struct order {
	struct env_task first, second, third;
	struct env_timer timer;
	struct env *env;
	char text[8];
	bool done;
};

static void call_first(struct env_task *task)
{
	struct order *order = (struct order *)task;

	strcat(order->text, "1");
	env_defer_cancel(order->env, &order->second);
	env_defer(order->env, &order->third);
}

static void call_never(struct env_task *task)
{
	fail();
}

static void call_third(struct env_task *task)
{
	strcat((char *)task - offsetof(struct order, third) + offsetof(struct order, text), "3");
}

static void fire(struct env_timer *timer)
{
	struct order *order =
		(struct order *)(void *)((char *)timer - offsetof(struct order, timer));

	strcat(order->text, "t");
	order->done = true;
}

static void test_tasks(void **state)
{
	struct sim *sim = sim_new(51);
	struct order order = {.env = sim_node(sim, "a"),
			      .first.call = call_first,
			      .second.call = call_never,
			      .third.call = call_third,
			      .timer.fire = fire};
	uint64_t start = env_now_ns(order.env);

	env_timer_start(order.env, &order.timer, SECOND);
	env_defer(order.env, &order.first);
	env_defer(order.env, &order.second);
	assert_true(sim_run_until(sim, &order.done, 2 * SECOND));
	assert_string_equal(order.text, "13t");
	assert_true(env_now_ns(order.env) >= start + SECOND);
	sim_free(sim);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_power),
		cmocka_unit_test(test_fsync_covers_before),
		cmocka_unit_test(test_kill_keeps_completed),
		cmocka_unit_test(test_crash_after_ios),
		cmocka_unit_test(test_copy),
		cmocka_unit_test(test_sparse),
		cmocka_unit_test(test_stream),
		cmocka_unit_test(test_half_open),
		cmocka_unit_test(test_block),
		cmocka_unit_test(test_store),
		cmocka_unit_test(test_tasks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
