/* SPDX-License-Identifier: Apache-2.0 */
/*
 * s3_internal: one operation of a store in a bucket, and the store itself, between
 *   s3.c         the store's thread: which operation may run, sleep, finish
 *   s3_op.c      the steps of an operation: its next request, and what an answer means
 *   s3_access.c  how the bucket is reached: endpoint, region, credentials, keys
 */
#ifndef OFFSITE_STORE_S3_INTERNAL_H
#define OFFSITE_STORE_S3_INTERNAL_H

#include <pthread.h>

#include "daemon/store/s3_exchange.h"
#include "daemon/store/store.h"

#define S3_TOKEN_TEXT 33

enum s3_op_type {
	S3_OP_PUT,
	S3_OP_READ,
	S3_OP_SIZE,
	S3_OP_LIST,
	S3_OP_DELETE,
	S3_OP_PROBE,
	S3_OP_SWEEP
};

/*
 * state     | request                    | next
 * ----------+----------------------------+--------------------------------------------------
 * PLAIN     | the operation's only one   | end; PUT: LOOK if the name is taken; SWEEP: ABORT
 * LOOK      | HEAD: whose object is it   | end; before the put: PLAIN, CREATE
 * CREATE    | begin a multipart upload   | PART
 * PART      | one part                   | PART, COMPLETE
 * COMPLETE  | put the parts together     | end, LOOK
 * ABORT     | throw the parts away       | end with the error that led here
 */
enum s3_step {
	S3_STEP_PLAIN,
	S3_STEP_LOOK,
	S3_STEP_CREATE,
	S3_STEP_PART,
	S3_STEP_COMPLETE,
	S3_STEP_ABORT,
};

struct s3_found {
	char *name;
	uint64_t size_bytes;
};

struct s3_part {
	char etag[72];
	char checksum[40];
};

struct s3_op {
	struct env_task finished; /* posted to the loop */
	struct s3_op *next;
	struct s3_store *s3;
	enum s3_op_type type;
	enum s3_step step;
	struct env_op *op; /* NULL: one of the store's own */
	char *key;         /* of the bucket; the prefix for LIST and SWEEP */
	int64_t result;
	char message[512]; /* why it failed, for the log */
	/* the running step's tries; the thread's */
	unsigned tries;
	uint64_t first_try_ms, wake_ms, begun_ms;
	unsigned generation, changes; /* of the access it was sent with; how often that changed */
	unsigned plain;               /* what it leaves out, see s3_store.plain */
	char *query;                  /* of the request under way */
	/* PUT */
	const struct iovec *iov;
	unsigned iov_count;
	uint64_t size_bytes;
	char token[S3_TOKEN_TEXT];
	bool looked;  /* at what was there before, or no need to */
	char *upload; /* multipart: its id */
	struct s3_part *parts;
	unsigned part, part_count; /* the next one, from 0 */
	int abort_error;           /* what the operation ends with */
	struct iovec body;         /* of COMPLETE; base is the operation's */
	/* READ */
	void *buf;
	size_t length, got;
	uint64_t offset;
	/* LIST, SWEEP */
	void (*each)(void *context, const struct store_object *object);
	void *context;
	char *more;  /* continuation token, or NULL */
	char *after; /* last name so far */
	int64_t listed;
	struct s3_found *found;
	size_t found_count, found_room;
};

struct s3_slot {
	struct s3_exchange *exchange;
	struct s3_op *op; /* NULL: free */
};

struct s3_store {
	struct store store; /* first */
	struct s3_url url;
	char *url_text;
	unsigned under_way; /* the loop's */
	char last_message[512];
	uint64_t last_message_ns;
	pthread_t thread;
	CURLM *multi;

	pthread_mutex_t lock; /* of the next five */
	struct s3_op *first, *last;
	bool ending, stopping;
	struct store_counts counts;

	/* The thread's. */
	struct s3_access access;
	unsigned
		plain; /* what the service does not know: 1: CRC32C (MD5 instead), 2: and conditions */
	struct s3_op *ready, *ready_last; /* in order */
	struct s3_op *asleep;
	struct s3_slot *slots;
	unsigned slot_count, busy;
};

uint64_t s3_now_ms(void);

/* ---- s3_access.c ---- */

/* Endpoint, region, credentials, keys by address, environment and shared files. why: fit for
 * "store URL: REASON". */
int s3_access_init(struct s3_access *access, const struct s3_url *url, char *why, size_t why_size);
void s3_access_free(struct s3_access *access);
/* Another region. False: it is the one in use already, or no name. */
bool s3_access_move(struct s3_access *access, const char *region);
/* Reads or asks for the credentials again. True: they are others now. */
bool s3_access_refresh(struct s3_access *access);
/* They have to be refreshed before the next request. */
bool s3_access_expiring(const struct s3_access *access);

/* ---- s3_op.c ---- */

struct s3_op *s3_op_new(struct s3_store *s3, enum s3_op_type type, const char *name);
void s3_op_free(struct s3_op *op);
/* The request of the step that the operation is at. 0 or -ENOMEM. */
int s3_op_request(struct s3_op *op, struct s3_request *request);
enum s3_next {
	S3_NEXT_DONE,  /* op->result is set */
	S3_NEXT_STEP,  /* another request, at once */
	S3_NEXT_AGAIN, /* the same request, at op->wake_ms */
};
/* What follows from the answer. */
enum s3_next s3_op_answer(struct s3_op *op, const struct s3_answer *answer);
/* Sets the first step. */
void s3_op_begin(struct s3_op *op);

#endif
