/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The buffer pool: classes, references, waiters.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include "daemon/io/buf.h"

static struct buf_pool *pool_of(unsigned small, unsigned medium, unsigned large)
{
	unsigned counts[3] = {small, medium, large};
	struct buf_pool *pool = buf_pool_new(counts);

	assert_non_null(pool);
	return pool;
}

/* How many of the pages of a buffer are in memory. */
static unsigned resident_pages(const struct buf *buf)
{
	unsigned char pages[BUF_SIZE_MAX / 4096];
	unsigned count = 0;

	assert_int_equal(mincore(buf->data, buf->size_bytes, pages), 0);
	for (unsigned i = 0; i < buf->size_bytes / 4096; i++)
		count += pages[i] & 1;
	return count;
}

/* Only so many, and all of these have their memory; one that is out too much is not given out again. */
static void test_brace(void **state)
{
	struct buf_pool *pool = pool_of(4, 4, 2);
	struct buf *out[4], *bufs[8];
	unsigned count = 0;

	for (unsigned i = 0; i < 4; i++)
		out[i] = buf_alloc(pool, 8192);
	buf_pool_brace(pool, (unsigned[3]){2, 1, 99}); /* no more than there are */
	for (unsigned i = 0; i < 4; i++)
		buf_put(out[3 - i]);
	while (count < 8 && (bufs[count] = buf_alloc(pool, 8192))) {
		assert_int_equal(resident_pages(bufs[count]), bufs[count]->size_bytes / 4096);
		count++;
	}
	assert_int_equal(count, 2 + 1 + 2);
	assert_int_equal(buf_pool_bytes(pool), 2 * 8192 + 65536 + 2 * BUF_SIZE_MAX);
	for (unsigned i = 0; i < count; i++)
		buf_put(bufs[i]);
	assert_int_equal(buf_pool_used_bytes(pool), 0);
	buf_pool_free(pool);
}

static void test_classes(void **state)
{
	struct buf_pool *pool = pool_of(2, 1, 1);
	struct buf *a = buf_alloc(pool, 1), *b = buf_alloc(pool, 8192), *c, *d;

	assert_int_equal(a->size_bytes, 8192);
	assert_int_equal(b->size_bytes, 8192);
	c = buf_alloc(pool, 100); /* the small ones are out */
	assert_int_equal(c->size_bytes, 65536);
	assert_int_equal(buf_pool_used_bytes(pool), 2 * 8192 + 65536);
	d = buf_alloc(pool, 8193);
	assert_int_equal(d->size_bytes, BUF_SIZE_MAX);
	assert_null(buf_alloc(pool, 1));
	buf_put(a);
	assert_null(buf_alloc(pool, 8193));
	a = buf_alloc(pool, 1);
	assert_non_null(a);
	buf_put(a);
	buf_put(b);
	buf_put(c);
	buf_put(d);
	buf_put(NULL);
	assert_int_equal(buf_pool_used_bytes(pool), 0);
	buf_pool_free(pool);
}

static void test_memory(void **state)
{
	struct buf_pool *pool = pool_of(16, 4, 2);
	struct buf *bufs[22];
	unsigned count = 0;
	size_t arena_bytes;
	uint8_t *arena = buf_pool_arena(pool, &arena_bytes);

	assert_int_equal(arena_bytes, 16 * 8192 + 4 * 65536 + 2 * BUF_SIZE_MAX);
	while (count < 22 && (bufs[count] = buf_alloc(pool, 1)))
		count++;
	assert_int_equal(count, 22);
	for (unsigned i = 0; i < count; i++) {
		assert_int_equal((uintptr_t)bufs[i]->data % BUF_ALIGN, 0);
		assert_true(bufs[i]->data >= arena);
		assert_true(bufs[i]->data + bufs[i]->size_bytes <= arena + arena_bytes);
		memset(bufs[i]->data, (int)i, bufs[i]->size_bytes);
	}
	for (unsigned i = 0; i < count; i++) { /* none overlaps another */
		assert_int_equal(bufs[i]->data[0], i);
		assert_int_equal(bufs[i]->data[bufs[i]->size_bytes - 1], i);
		buf_put(bufs[i]);
	}
	buf_pool_free(pool);
}

static void test_references(void **state)
{
	struct buf_pool *pool = pool_of(1, 0, 0);
	struct buf *buf = buf_alloc(pool, 4096);

	assert_ptr_equal(buf_get(buf), buf);
	buf_put(buf);
	assert_null(buf_alloc(pool, 4096));
	buf_put(buf);
	assert_ptr_equal(buf_alloc(pool, 4096), buf);
	buf_put(buf);
	buf_pool_free(pool);
}

/* ---- waiters ---- */

struct taker {
	struct buf_waiter waiter;
	struct buf_pool *pool;
	uint32_t size_bytes;
	unsigned resumed; /* place in the order of resumption, from 1 */
	unsigned *clock;
	bool leave; /* take nothing */
	struct buf *buf;
	struct buf *put_inside;
};

static void take(struct buf_waiter *waiter)
{
	struct taker *taker = (struct taker *)waiter;

	assert_int_equal(taker->resumed, 0);
	taker->resumed = ++*taker->clock;
	buf_put(taker->put_inside);
	if (taker->leave)
		return;
	taker->buf = buf_alloc(taker->pool, taker->size_bytes);
	assert_non_null(taker->buf);
}

static void wait_for(struct taker *taker, struct buf_pool *pool, uint32_t size_bytes,
		     unsigned *clock)
{
	*taker = (struct taker){
		.waiter.resume = take, .pool = pool, .size_bytes = size_bytes, .clock = clock};
	buf_wait(pool, &taker->waiter, size_bytes);
}

static void test_waiters_in_order(void **state)
{
	struct buf_pool *pool = pool_of(2, 0, 0);
	struct buf *a = buf_alloc(pool, 1), *b = buf_alloc(pool, 1);
	struct taker takers[3];
	unsigned clock = 0;

	for (unsigned i = 0; i < 3; i++)
		wait_for(&takers[i], pool, 1, &clock);
	buf_put(a);
	assert_int_equal(takers[0].resumed, 1);
	assert_int_equal(clock, 1);
	buf_put(b);
	assert_int_equal(takers[1].resumed, 2);
	buf_put(takers[0].buf);
	assert_int_equal(takers[2].resumed, 3);
	buf_put(takers[1].buf);
	buf_put(takers[2].buf);
	buf_pool_free(pool);
}

static void test_waiter_for_large(void **state)
{
	struct buf_pool *pool = pool_of(1, 0, 1);
	struct buf *small = buf_alloc(pool, 1), *large = buf_alloc(pool, BUF_SIZE_MAX);
	struct taker first, second;
	unsigned clock = 0;

	wait_for(&first, pool, 65537, &clock);
	wait_for(&second, pool, 1, &clock);
	buf_put(small); /* of no use to the first */
	assert_int_equal(first.resumed, 0);
	assert_int_equal(second.resumed, 1);
	buf_put(large);
	assert_int_equal(first.resumed, 2);
	buf_put(first.buf);
	buf_put(second.buf);
	buf_pool_free(pool);
}

static void test_waiter_takes_nothing(void **state)
{
	struct buf_pool *pool = pool_of(1, 0, 0);
	struct buf *buf = buf_alloc(pool, 1);
	struct taker takers[2];
	unsigned clock = 0;

	wait_for(&takers[0], pool, 1, &clock);
	wait_for(&takers[1], pool, 1, &clock);
	takers[0].leave = true;
	buf_put(buf); /* goes on to the next */
	assert_int_equal(takers[1].resumed, 2);
	buf_put(takers[1].buf);
	buf_pool_free(pool);
}

static void test_put_inside_resume(void **state)
{
	struct buf_pool *pool = pool_of(2, 0, 0);
	struct buf *a = buf_alloc(pool, 1), *b = buf_alloc(pool, 1);
	struct taker takers[2];
	unsigned clock = 0;

	wait_for(&takers[0], pool, 1, &clock);
	wait_for(&takers[1], pool, 1, &clock);
	takers[0].put_inside = b;
	buf_put(a);
	assert_int_equal(takers[0].resumed, 1);
	assert_int_equal(takers[1].resumed, 2);
	buf_put(takers[0].buf);
	buf_put(takers[1].buf);
	buf_pool_free(pool);
}

static void test_cancel(void **state)
{
	struct buf_pool *pool = pool_of(1, 0, 0);
	struct buf *buf = buf_alloc(pool, 1);
	struct taker takers[3];
	unsigned clock = 0;

	for (unsigned i = 0; i < 3; i++)
		wait_for(&takers[i], pool, 1, &clock);
	buf_wait_cancel(pool, &takers[2].waiter);
	buf_wait_cancel(pool, &takers[0].waiter);
	buf_wait_cancel(pool, &takers[0].waiter); /* twice is nothing */
	buf_put(buf);
	assert_int_equal(takers[0].resumed + takers[2].resumed, 0);
	assert_int_equal(takers[1].resumed, 1);
	wait_for(&takers[0], pool, 1, &clock); /* the queue's end is right */
	buf_put(takers[1].buf);
	assert_int_equal(takers[0].resumed, 2);
	buf_put(takers[0].buf);
	buf_pool_free(pool);
}

/* ---- our own bugs are caught ---- */

static void put_twice(void)
{
	struct buf *buf = buf_alloc(pool_of(1, 0, 0), 1);

	buf_put(buf);
	buf_put(buf);
}

static void leak(void)
{
	struct buf_pool *pool = pool_of(1, 0, 0);

	buf_alloc(pool, 1);
	buf_pool_free(pool);
}

static void assert_aborts(void (*call)(void))
{
	struct rlimit no_core = {0, 0};
	pid_t child = fork();
	int status;

	assert_true(child >= 0);
	if (child == 0) {
		signal(SIGABRT, SIG_DFL); /* cmocka catches it */
		setrlimit(RLIMIT_CORE, &no_core);
		close(STDERR_FILENO);
		call();
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void test_bugs(void **state)
{
	assert_aborts(put_twice);
	assert_aborts(leak);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		{"the smallest class that has one serves", test_classes, NULL, NULL, NULL},
		{"memory for those used first, in advance", test_brace, NULL, NULL, NULL},
		{"buffers are aligned and do not overlap", test_memory, NULL, NULL, NULL},
		{"the last reference returns the buffer", test_references, NULL, NULL, NULL},
		{"waiters are resumed in order", test_waiters_in_order, NULL, NULL, NULL},
		{"a small buffer goes past who waits for a large one", test_waiter_for_large, NULL,
		 NULL, NULL},
		{"what a waiter leaves goes to the next", test_waiter_takes_nothing, NULL, NULL,
		 NULL},
		{"a buffer put back inside resume() is not lost", test_put_inside_resume, NULL,
		 NULL, NULL},
		{"a cancelled waiter is not resumed", test_cancel, NULL, NULL, NULL},
		{"a double put and a leak abort", test_bugs, NULL, NULL, NULL},
	};

	return cmocka_run_group_tests_name("io_buf", tests, NULL, NULL);
}
