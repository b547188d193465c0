/* SPDX-License-Identifier: Apache-2.0 */
/*
 * buf: aligned, reference-counted I/O buffers out of an arena that is reserved at start.
 *
 * One buffer carries a block of data all the way: client's socket, disk, peer's socket. Three size
 * classes (8 KiB, 64 KiB, 1 MiB) in one anonymous mapping; pages that were never used cost no
 * memory, unless the pool is braced. An empty pool is no error: the caller stops taking in work and waits.
 * Not thread-safe: loop thread only.
 */
#ifndef OFFSITE_IO_BUF_H
#define OFFSITE_IO_BUF_H

#include <stddef.h>
#include <stdint.h>

#define BUF_SIZE_MAX (1024u * 1024u)
#define BUF_ALIGN    4096u

struct buf_pool;

struct buf {
	uint8_t *data;       /* BUF_ALIGN-aligned */
	uint32_t size_bytes; /* capacity of the class */
	uint32_t references; /* changed by buf_get() and buf_put() only */
	struct buf_pool *pool;
	struct buf *next_free; /* private */
};

/* Waits for a buffer of at least size_bytes; resume() is called from some later buf_put(), once. */
struct buf_waiter {
	void (*resume)(struct buf_waiter *waiter);
	/* private */
	uint32_t size_bytes;
	struct buf_waiter *next;
};

/* counts: how many buffers of each class, smallest first. NULL without memory. */
struct buf_pool *buf_pool_new(const unsigned counts[3]);
/* Every buffer must be back. */
void buf_pool_free(struct buf_pool *pool);
/* From now on the pool has at most so many buffers of each class (fewer than it was made with; not 0 where it has
 * any), and they have their memory: whoever takes one waits for another one, but never for a page. More than that
 * may be out still, and are not given out again. */
void buf_pool_brace(struct buf_pool *pool, const unsigned counts[3]);
/* The arena, e.g. to register it with io_uring. */
void *buf_pool_arena(struct buf_pool *pool, size_t *size_bytes);
/* Bytes in all buffers that may be given out. */
size_t buf_pool_bytes(const struct buf_pool *pool);
/* Bytes in buffers now given out. */
size_t buf_pool_used_bytes(const struct buf_pool *pool);

/* A buffer with one reference and capacity >= size_bytes (<= BUF_SIZE_MAX), from the smallest class
 * that has one, or NULL when there is none now. */
struct buf *buf_alloc(struct buf_pool *pool, uint32_t size_bytes);
void buf_wait(struct buf_pool *pool, struct buf_waiter *waiter, uint32_t size_bytes);
void buf_wait_cancel(struct buf_pool *pool, struct buf_waiter *waiter);
struct buf *buf_get(struct buf *buf); /* one more reference; returns buf */
void buf_put(struct buf *buf);        /* one fewer; NULL is allowed */

#endif
