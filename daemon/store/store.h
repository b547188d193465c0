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
/* The same for what the service does with objects. */
enum store_service_error {
	STORE_LOCKED = ETXTBSY,              /* not deleted: its retention has not ended */
	STORE_CANNOT_LOCK = EPROTONOSUPPORT, /* the service keeps nothing from being deleted here */
	STORE_ARCHIVED = ENOMEDIUM, /* cannot be read before it is brought back; see thaw */
	STORE_REPLACED = EIDRM,     /* what is at the place now is not what was opened */
};

/* Who may delete an object before its time: with GOVERNANCE those to whom the service gives that right,
 * with COMPLIANCE nobody. (As kept in manifests: numbers stay.) */
enum store_lock { STORE_LOCK_NONE, STORE_LOCK_GOVERNANCE, STORE_LOCK_COMPLIANCE };

/* How long an object cannot be deleted, whoever asks. */
struct store_retention {
	enum store_lock lock; /* NONE: not at all */
	uint64_t until_ns;    /* since 1970 */
};

struct store_object {
	const char *name; /* full name */
	uint64_t size_bytes;
	const char *
		archive; /* static text: the class it has to be brought back from before it can be read, or
				NULL: it can be read (or, rarely, that cannot be told here) */
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
	/* The rest may be NULL: such a store has nothing of the kind. */

	/* put, of what cannot be deleted before its time: -STORE_CANNOT_LOCK if the service does not see
	 * to that. retention is copied. */
	void (*put_retained)(struct store *store, struct env_op *op, const char *name,
			     const struct iovec *iov, unsigned count,
			     const struct store_retention *retention);
	/* The same, of what nobody needs any more: what iov names may be changed until done, e.g. encrypted
	 * where it lies. retention may be none. */
	void (*put_spent)(struct store *store, struct env_op *op, const char *name,
			  const struct iovec *iov, unsigned count,
			  const struct store_retention *retention);
	/* Keeps an object at least so long; never shorter than it was. -ENOENT: there is none. What is
	 * locked otherwise already stays locked in that way. */
	void (*retain)(struct store *store, struct env_op *op, const char *name,
		       const struct store_retention *retention);
	/* Until when it cannot be deleted, in seconds since 1970; 0: it is not locked. -ENOENT: there is
	 * none. NULL: nothing ever is. */
	void (*retained)(struct store *store, struct env_op *op, const char *name);
	/* As list, but only names after that one (which need not exist): its cost does not depend on what
	 * stands before. NULL: store_list_after() makes do with list. */
	void (*list_after)(struct store *store, struct env_op *op, const char *prefix,
			   const char *after,
			   void (*each)(void *context, const struct store_object *object),
			   void *context);
	/* Asks for an archived object to be brought back. Result: 1, it can be read; 0, it is on its
	 * way; asking again does no harm. */
	void (*thaw)(struct store *store, struct env_op *op, const char *name);
	/* Result: 1, it can be read; 0, it is archived, or on its way back. */
	void (*thawed)(struct store *store, struct env_op *op, const char *name);
	/* How long thaw takes for an object of that class, at most, as a rule. */
	uint64_t (*thaw_ns)(struct store *store, const char *archive);
	/* A writer is about to begin below that prefix, a volume's: what is remembered of it (keys) is looked at
	 * anew, as others may have added to it. NULL: nothing is remembered. */
	void (*refresh)(struct store *store, struct env_op *op, const char *prefix);
	/* What is under way ends soon, with an error where it would have taken long (within seconds: of what was
	 * put in part nothing is to be left); nothing new is begun. NULL: nothing there takes long. */
	void (*stop)(struct store *store);
	void (*counts)(struct store *store, struct store_counts *counts);
	void (*close)(struct store *store); /* nothing under way; never NULL */
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
	/* If it is: how often keys were read; with them that with which it is done may have changed. */
	unsigned keys_read;
	/* Listing is paid for, by the number of names: not to be done where it can be helped. Set at
	 * opening. */
	bool lists_cost;
	/* What is put from now on is to leave the disk to others, if this store is on one here. Set by
	 * whoever puts beside clients. */
	bool gentle;
	/* Lists may show what was so long ago; 0: they show what is. Set by who opened it. */
	uint64_t list_lag_ns;
};

/* Opens "file:/directory" (made if missing; a bare absolute path is the same) or "s3://bucket/prefix"
 * (s3_url.h). On failure -errno and one line in why: unknown scheme, not a directory, no permission,
 * wrong credentials. Blocks; may be called on any thread. */
int store_open(struct env *env, const char *url, struct store **store, char *why, size_t why_size);
void store_stop(struct store *store);
void store_close(struct store *store);

/* All 0 where the store (may be NULL) has no service. */
void store_counts(struct store *store, struct store_counts *counts);

/* put or, if it is to be retained, put_retained: -STORE_CANNOT_LOCK where there is none. */
void store_put(struct store *store, struct env_op *op, const char *name, const struct iovec *iov,
	       unsigned count, const struct store_retention *retention);
/* The same, and what iov names may be changed until done. */
void store_put_spent(struct store *store, struct env_op *op, const char *name,
		     const struct iovec *iov, unsigned count,
		     const struct store_retention *retention);
/* -STORE_CANNOT_LOCK where there is none. */
void store_retain(struct store *store, struct env_op *op, const char *name,
		  const struct store_retention *retention);
/* 0 where nothing is ever locked. */
void store_retained(struct store *store, struct env_op *op, const char *name);
void store_list_after(struct store *store, struct env_op *op, const char *prefix, const char *after,
		      void (*each)(void *context, const struct store_object *object),
		      void *context);

bool store_name_valid(const char *name);
/* One line for an error of a store operation: "no space left in the store", ... */
const char *store_strerror(int error);

#endif
