/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arena lies class after class in one mapping without reservation; the free buffers of a class
 * form a stack, so that the pages used last (and still in the caches) are used next.
 *
 * Waiters stand in one queue. A returned buffer goes to the first of them that can use it: one who
 * waits for 1 MiB does not hold up those who wait for 8 KiB, and no one is passed over for a buffer
 * that would have done for it.
 */
#include "daemon/io/buf.h"
#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "daemon/io/resident.h"

#define CLASSES 3

static const uint32_t class_size_bytes[CLASSES] = {8192, 65536, BUF_SIZE_MAX};

struct buf_pool {
	uint8_t *arena;
	unsigned counts[CLASSES];
	unsigned limits[CLASSES]; /* those with a number beyond are not given out (again) */
	size_t arena_bytes;
	size_t used_bytes;
	struct buf *bufs; /* all of them, smallest class first */
	struct buf *free[CLASSES];
	struct buf_waiter *waiters, **waiters_tail;
	unsigned waiter_count;
	unsigned resume_budget; /* waiters that may still be resumed in the pass under way */
	bool resuming;
};

static unsigned class_of(uint32_t size_bytes)
{
	unsigned c = 0;

	assert(size_bytes > 0 && size_bytes <= BUF_SIZE_MAX);
	while (class_size_bytes[c] < size_bytes)
		c++;
	return c;
}

static void fill_pool(struct buf_pool *pool, const unsigned counts[CLASSES])
{
	struct buf *buf = pool->bufs;
	uint8_t *data = pool->arena;

	for (unsigned c = 0; c < CLASSES; c++) {
		/* Backwards, so that the first buffers given out lie at the low end. */
		for (unsigned i = counts[c]; i-- > 0;) {
			buf[i].data = data + (size_t)i * class_size_bytes[c];
			buf[i].size_bytes = class_size_bytes[c];
			buf[i].pool = pool;
			buf[i].next_free = pool->free[c];
			pool->free[c] = &buf[i];
		}
		data += (size_t)counts[c] * class_size_bytes[c];
		buf += counts[c];
	}
}

struct buf_pool *buf_pool_new(const unsigned counts[CLASSES])
{
	struct buf_pool *pool = calloc(1, sizeof(*pool));
	size_t total = 0;

	if (!pool)
		return NULL;
	for (unsigned c = 0; c < CLASSES; c++) {
		pool->counts[c] = pool->limits[c] = counts[c];
		pool->arena_bytes += (size_t)counts[c] * class_size_bytes[c];
		total += counts[c];
	}
	assert(total > 0);
	pool->waiters_tail = &pool->waiters;
	pool->bufs = calloc(total, sizeof(*pool->bufs));
	if (!pool->bufs)
		goto free_pool;
	pool->arena = mmap(NULL, pool->arena_bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (pool->arena == MAP_FAILED)
		goto free_bufs;
	fill_pool(pool, counts);
	return pool;

free_bufs:
	free(pool->bufs);
free_pool:
	free(pool);
	return NULL;
}

void buf_pool_free(struct buf_pool *pool)
{
	if (!pool)
		return;
	assert(pool->used_bytes == 0); /* a buffer was not put back */
	assert(!pool->waiters);
	assert(!pool->resuming);
	munmap(pool->arena, pool->arena_bytes);
	free(pool->bufs);
	free(pool);
}

static bool beyond_limit(const struct buf *buf, unsigned c)
{
	const struct buf *first = buf->pool->bufs;

	for (unsigned smaller = 0; smaller < c; smaller++)
		first += buf->pool->counts[smaller];
	return (size_t)(buf - first) >= buf->pool->limits[c];
}

void buf_pool_brace(struct buf_pool *pool, const unsigned counts[CLASSES])
{
	const uint8_t *data = pool->arena;

	for (unsigned c = 0; c < CLASSES; c++) {
		assert(counts[c] > 0 || pool->counts[c] == 0);
		if (counts[c] < pool->limits[c])
			pool->limits[c] = counts[c];
		resident_make(data, (size_t)pool->limits[c] * class_size_bytes[c]);
		data += (size_t)pool->counts[c] * class_size_bytes[c];
		for (struct buf **at = &pool->free[c]; *at;) {
			if (beyond_limit(*at, c))
				*at = (*at)->next_free;
			else
				at = &(*at)->next_free;
		}
	}
}

void *buf_pool_arena(struct buf_pool *pool, size_t *size_bytes)
{
	*size_bytes = pool->arena_bytes;
	return pool->arena;
}

size_t buf_pool_bytes(const struct buf_pool *pool)
{
	size_t bytes = 0;

	for (unsigned c = 0; c < CLASSES; c++)
		bytes += (size_t)pool->limits[c] * class_size_bytes[c];
	return bytes;
}

size_t buf_pool_used_bytes(const struct buf_pool *pool)
{
	return pool->used_bytes;
}

struct buf *buf_alloc(struct buf_pool *pool, uint32_t size_bytes)
{
	for (unsigned c = class_of(size_bytes); c < CLASSES; c++) {
		struct buf *buf = pool->free[c];

		if (!buf)
			continue;
		pool->free[c] = buf->next_free;
		assert(buf->references == 0);
		buf->references = 1;
		buf->next_free = NULL;
		pool->used_bytes += buf->size_bytes;
		return buf;
	}
	return NULL;
}

void buf_wait(struct buf_pool *pool, struct buf_waiter *waiter, uint32_t size_bytes)
{
	assert(waiter->resume);
	for (const struct buf_waiter *other = pool->waiters; other; other = other->next)
		assert(other != waiter);
	waiter->size_bytes = class_size_bytes[class_of(size_bytes)];
	waiter->next = NULL;
	*pool->waiters_tail = waiter;
	pool->waiters_tail = &waiter->next;
	pool->waiter_count++;
}

static void unlink_waiter(struct buf_pool *pool, struct buf_waiter **link)
{
	struct buf_waiter *waiter = *link;

	*link = waiter->next;
	if (!*link)
		pool->waiters_tail = link;
	waiter->next = NULL;
	pool->waiter_count--;
}

void buf_wait_cancel(struct buf_pool *pool, struct buf_waiter *waiter)
{
	for (struct buf_waiter **link = &pool->waiters; *link; link = &(*link)->next) {
		if (*link == waiter) {
			unlink_waiter(pool, link);
			return;
		}
	}
}

/* The first waiter for whom buf_alloc() would now succeed, taken out of the queue; or NULL. */
static struct buf_waiter *next_served(struct buf_pool *pool)
{
	uint32_t free_bytes = 0; /* size of the largest free buffer */

	for (unsigned c = 0; c < CLASSES; c++)
		if (pool->free[c])
			free_bytes = class_size_bytes[c];
	for (struct buf_waiter **link = &pool->waiters; *link; link = &(*link)->next) {
		struct buf_waiter *waiter = *link;

		if (waiter->size_bytes <= free_bytes) {
			unlink_waiter(pool, link);
			return waiter;
		}
	}
	return NULL;
}

/* A waiter may take the buffer, leave it, wait again or put others back from inside resume(): a
 * nested put only raises the budget of the pass under way. The budget ends the pass where waiters
 * queue again although there is something for them. */
static void resume_waiters(struct buf_pool *pool)
{
	struct buf_waiter *waiter;

	pool->resume_budget = pool->waiter_count;
	if (pool->resuming)
		return;
	pool->resuming = true;
	while (pool->resume_budget > 0 && (waiter = next_served(pool))) {
		pool->resume_budget--;
		waiter->resume(waiter);
	}
	pool->resuming = false;
}

struct buf *buf_get(struct buf *buf)
{
	assert(buf->references > 0 && buf->references < UINT32_MAX);
	buf->references++;
	return buf;
}

void buf_put(struct buf *buf)
{
	struct buf_pool *pool;
	unsigned c;

	if (!buf)
		return;
	assert(buf->references > 0); /* put once too often */
	if (--buf->references > 0)
		return;
	pool = buf->pool;
	c = class_of(buf->size_bytes);
	assert(pool->used_bytes >= buf->size_bytes);
	pool->used_bytes -= buf->size_bytes;
	if (beyond_limit(buf, c))
		return;
	buf->next_free = pool->free[c];
	pool->free[c] = buf;
	if (pool->waiters)
		resume_waiters(pool);
}
