/* SPDX-License-Identifier: Apache-2.0 */
/*
 * block: the one interface between the front door (nbd-server) and what lies behind it (a volume,
 * a snapshot opened read-only, a test's memory disk).
 *
 * The front door owns the request and keeps it alive until done() has been called: once, on the
 * loop thread, possibly from inside submit(). Requests may complete in any order; the device sees
 * to it that overlapping writes take effect in the order of their submission, and that a FLUSH
 * covers every request that completed before the FLUSH was submitted.
 */
#ifndef OFFSITE_BLOCK_H
#define OFFSITE_BLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include "daemon/io/buf.h"

enum block_op { BLOCK_READ, BLOCK_WRITE, BLOCK_FLUSH, BLOCK_TRIM, BLOCK_ZERO, BLOCK_CACHE };

enum block_request_flags {
	BLOCK_FUA = 1,       /* WRITE, TRIM, ZERO: durable when done */
	BLOCK_NO_HOLE = 2,   /* ZERO: keep the range allocated */
	BLOCK_FAST_ZERO = 4, /* ZERO: -EOPNOTSUPP rather than slower than a write */
};

struct block;

struct block_request {
	enum block_op op;
	unsigned flags;
	uint64_t offset_bytes;
	uint64_t length_bytes; /* READ, WRITE: 1..BUF_SIZE_MAX; TRIM, ZERO, CACHE: up to the size */
	/* READ: filled from buf->data on. WRITE: content from buf->data on. The device takes a
	 * reference of its own if it needs the buffer after done(). Bytes of the buffer beyond
	 * length_bytes, up to the next multiple of 4096, may be overwritten by a READ. */
	struct buf *buf;
	/* error: 0 or -errno (-EINVAL, -ENOSPC beyond the end, -EPERM read-only, -EIO,
	 * -ESHUTDOWN, -EOPNOTSUPP for FAST_ZERO only). */
	void (*done)(struct block_request *request, int error);
	uint64_t priv[44]; /* the device's own while the request is under way */
};

/* A run of the device with one allocation status. */
struct block_extent {
	uint64_t length_bytes;
	bool hole;      /* not allocated */
	bool zero;      /* reads as zeroes */
	uint32_t flags; /* of a block_map instead: what it says, in numbers of its own */
};

/* A question for extents whose answer may take time. The asker's until done: once, on the loop thread,
 * possibly from inside. */
struct block_status {
	uint64_t offset_bytes, length_bytes; /* within the device; length >= 1 */
	struct block_extent *extents;        /* room for max >= 1 */
	unsigned max;
	unsigned
		count; /* filled, >= 1 without an error: from the offset on, as far as it was easy */
	void (*done)(struct block_status *status, int error);
	uint64_t priv[48]; /* the answerer's own */
};

/* What is known of a device's parts beside their allocation. Made by whoever knows it, for one client. */
struct block_map {
	void (*status)(struct block_map *map, struct block_status *status);
	void (*close)(struct block_map *map); /* with no question under way */
};

struct block_info {
	uint64_t size_bytes;
	uint32_t block_min_bytes;       /* 1, 512 or 4096: alignment enforced by the front door */
	uint32_t block_preferred_bytes; /* 4096 as a rule */
	bool read_only;
	bool can_trim, can_zero, can_fast_zero, can_flush, can_multi_conn, rotational;
};

struct block_ops {
	/* A client wants to open it: 0, or -errno with a reason (e.g. "volume pgdata is secondary
	 * on this node"). Each success is matched by one close(). */
	int (*open)(struct block *block, char *why, size_t why_size);
	void (*close)(struct block *block);
	void (*info)(struct block *block, struct block_info *info);
	void (*submit)(struct block *block, struct block_request *request);
	/* Writes up to count extents from offset on, in order, covering at least 1 byte and at
	 * most length_bytes; returns how many. Quick: no I/O beyond lseek. */
	unsigned (*extents)(struct block *block, uint64_t offset_bytes, uint64_t length_bytes,
			    struct block_extent *extents, unsigned count);
	/* The same where it cannot be quick; extents is NULL then, else this. */
	void (*status)(struct block *block, struct block_status *status);
};

struct block {
	const struct block_ops *ops;
	const char *name;        /* the export's name; owned by the device */
	const char *description; /* one line for clients */
};

/* What it takes to find a device that is not there yet. The asker's until done: once, on the loop thread,
 * possibly from inside. block: held for the asker until it releases it; NULL: -errno (-ENOENT: there is no such) and one line. */
struct block_lookup {
	void (*done)(struct block_lookup *lookup, struct block *block, int error, const char *why);
};

/* As a lookup: a map by its full name; NULL: there is no such. */
struct block_map_open {
	void (*done)(struct block_map_open *open, struct block_map *map);
};

/* As a lookup: the names of the maps that a device has; not necessarily all. */
struct block_map_list {
	void (*done)(struct block_map_list *list, const char *const *names, unsigned count);
};

#endif
