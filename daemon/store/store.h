/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store: object storage behind one small interface. Objects are immutable: put once, read by
 * range, listed by prefix, deleted whole. Nothing here that a bucket could not do.
 *
 * Names are paths of [a-z0-9._-] components joined by '/', at most 512 bytes, no leading '/', no
 * component "." or "..". All calls are asynchronous with env's completion rules; several may be
 * under way. The contract of each stands at its field.
 */
#ifndef OFFSITE_STORE_H
#define OFFSITE_STORE_H

#include <errno.h>

#include "daemon/io/env.h"

struct store;

/* What an encrypted store's operations may fail with (negated) beside the usual; see crypt.h. */
enum store_secret_error {
	STORE_NO_SECRET = ENOANO,   /* it is encrypted, and nothing was given that opens it */
	STORE_WRONG_SECRET = EBADE, /* what was given does not open it */
	STORE_NO_KEYS = EBADSLT,    /* it has snapshots but no keys */
};

struct store_object {
	const char *name; /* full name */
	uint64_t size_bytes;
};

/* What a store has asked its service for since it was opened. */
struct store_counts {
	uint64_t puts, gets, heads, lists,
		deletes;                     /* requests; those of multipart uploads are puts */
	uint64_t retries;                    /* of these: again after an error */
	uint64_t sent_bytes, received_bytes; /* bodies */
};

struct store_ops {
	/* Stores an object, whole and durable before done(0), or not at all. -EEXIST: the name is
	 * taken (its content is left alone; but a service that ignores conditions replaces it, so
	 * names must not be used twice). Other results: -errno, retryable or not; afterwards the
	 * object may or may not be there, never in part. iov stays the caller's until done. */
	void (*put)(struct store *store, struct env_op *op, const char *name,
		    const struct iovec *iov, unsigned count);
	/* Reads length bytes at offset. Result: bytes read (fewer only at the object's end),
	 * -ENOENT if there is no such object. */
	void (*get)(struct store *store, struct env_op *op, const char *name, void *buf,
		    size_t length, uint64_t offset);
	/* Result: size in bytes, or -ENOENT. */
	void (*size)(struct store *store, struct env_op *op, const char *name);
	/* Calls each() on the loop thread for every object whose name begins with prefix, in
	 * ascending byte order, then done(count). prefix ends with '/' or is empty. */
	void (*list)(struct store *store, struct env_op *op, const char *prefix,
		     void (*each)(void *context, const struct store_object *object), void *context);
	/* Result 0 also if it is not there. */
	void (*delete)(struct store *store, struct env_op *op, const char *name);
	/* What is under way ends soon, with an error where it would have taken long; nothing new is
	 * begun. May be NULL: nothing there takes long. */
	void (*stop)(struct store *store);
	/* May be NULL: there is no service. */
	void (*counts)(struct store *store, struct store_counts *counts);
	void (*close)(struct store *store); /* nothing under way */
};

struct store {
	const struct store_ops *ops;
	struct env *env;
	const char *url; /* as opened; owned by the store */
	/* Set by each list: this place shows no trace of ever having been a store, as where something
	 * is not mounted. Not merely one whose last object was deleted. */
	bool blank;
	/* What is put here is encrypted: writers hide sizes by padding. Set at opening. */
	bool encrypted;
};

/* Opens "file:/directory" (made if missing; a bare absolute path is the same) or "s3://bucket/prefix"
 * (s3_url.h). On failure -errno and one line in why: unknown scheme, not a directory, no permission,
 * wrong credentials. Blocks; may be called on any thread. */
int store_open(struct env *env, const char *url, struct store **store, char *why, size_t why_size);
void store_stop(struct store *store);
void store_close(struct store *store);

/* All 0 where the store (may be NULL) has no service. */
void store_counts(struct store *store, struct store_counts *counts);

bool store_name_valid(const char *name);
/* One line for an error of a store operation: "no space left in the store", ... */
const char *store_strerror(int error);

#endif
