/* SPDX-License-Identifier: Apache-2.0 */
/*
 * s3_internal: one operation of a store in a bucket, and the store itself, between
 *   s3.c         the store's thread: which operation may run, sleep, finish
 *   s3_op.c      the steps of an operation: its next request, and what an answer means
 *   s3_keep.c    the same of versions, locks and archives
 *   s3_sweep.c   the same of parts that were left behind
 *   s3_access.c  how the bucket is reached: endpoint, region, credentials, keys
 */
#ifndef OFFSITE_STORE_S3_INTERNAL_H
#define OFFSITE_STORE_S3_INTERNAL_H

#include <pthread.h>

#include "daemon/store/s3_exchange.h"
#include "daemon/store/s3_verdict.h"
#include "daemon/store/store.h"

#define S3_TOKEN_TEXT 33

enum s3_op_type {
	S3_OP_PUT,
	S3_OP_READ,
	S3_OP_SIZE,
	S3_OP_LIST,
	S3_OP_DELETE,
	S3_OP_PROBE,
	S3_OP_SWEEP,
	S3_OP_RETAIN,
	S3_OP_RETAINED,
	S3_OP_THAW,
	S3_OP_THAWED
};

/*
 * state     | request                    | next
 * ----------+----------------------------+--------------------------------------------------
 * PLAIN     | the operation's only one   | end; PUT: LOOK if the name is taken, RETAINED; SWEEP: ABORT;
 *           |                            | DELETE: VERSIONS if it left a delete marker
 * LOOK      | HEAD: whose object is it   | end; before the put: PLAIN, CREATE
 * CREATE    | begin a multipart upload   | PART
 * PART      | one part                   | PART, COMPLETE
 * COMPLETE  | put the parts together     | end, LOOK, RETAIN
 * ABORT     | throw the parts away       | end with the error that led here; SWEEP: ABORT, PLAIN
 * VERSIONS  | list the object's versions | ERASE; PLAIN if the bucket has none; end
 * ERASE     | delete one version         | ERASE, end; RETAINED if it was refused
 * RETAIN    | lock it for so long        | end; RETAINED to see whether it is, or why it was refused
 * RETAINED  | for how long is it locked  | end, RETAIN
 */
enum s3_step {
	S3_STEP_PLAIN,
	S3_STEP_LOOK,
	S3_STEP_CREATE,
	S3_STEP_PART,
	S3_STEP_COMPLETE,
	S3_STEP_ABORT,
	S3_STEP_VERSIONS,
	S3_STEP_ERASE,
	S3_STEP_RETAIN,
	S3_STEP_RETAINED,
};

/* Whether a delete has to look for versions. Learned from answers. */
enum s3_versioned { S3_VERSIONED_UNKNOWN, S3_VERSIONED_NO, S3_VERSIONED_YES };

struct s3_found {
	char *name;
	uint64_t size_bytes;
	const char *archive; /* static text, or NULL */
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
	struct iovec body;         /* of COMPLETE, RETAIN, THAW; base is the operation's */
	/* PUT, RETAIN */
	struct store_retention
		retention; /* lock: also what is there already, if that cannot be changed */
	bool retain_again; /* RETAIN was tried after a look */
	/* DELETE */
	bool blind; /* its versions cannot be listed */
	int refused;
	bool dayless; /* THAW: of a class that takes no number of days */
	/* READ */
	void *buf;
	size_t length, got;
	uint64_t offset;
	/* LIST, SWEEP */
	void (*each)(void *context, const struct store_object *object);
	void *context;
	char *more;  /* continuation token, or NULL; of SWEEP the key that it goes on behind */
	char *after; /* last name so far; of SWEEP the upload */
	char *from;  /* names up to this one are not wanted, or NULL */
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
	enum s3_versioned versioned;
	bool lock_proven;                 /* an object was seen to be locked after it was put so */
	struct s3_op *ready, *ready_last; /* in order */
	struct s3_op *asleep;
	struct s3_slot *slots;
	unsigned slot_count, busy;
	uint64_t stop_ms; /* by then all ends, parts thrown away or not; 0: it is not stopped */
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

/* The store is stopped: the operation ends with that error. True: after one more request, for its next step is to throw
 * the parts away that it has put. */
bool s3_op_drop(struct s3_op *op, int error);

/* For s3_keep.c and s3_sweep.c. */
enum s3_next s3_op_done(struct s3_op *op, int64_t result);
enum s3_next s3_op_go(struct s3_op *op, enum s3_step step);
enum s3_next s3_op_failed(struct s3_op *op, const struct s3_answer *answer, int error);
enum s3_next s3_op_again(struct s3_op *op, const struct s3_answer *answer, int error);
/* Sets op->query; a and b are escaped. */
bool s3_op_query(struct s3_op *op, const char *format, const char *a, const char *b);
/* A header; a NULL value is none. Once *ok is false the list is gone. */
void s3_op_add(struct curl_slist **list, bool *ok, const char *name, const char *value);
void s3_op_add_key(const struct s3_op *op, struct curl_slist **list, bool *ok);
bool s3_op_found(struct s3_op *op, const char *name, uint64_t size_bytes, const char *archive);

/* ---- s3_sweep.c ---- */

/* Of a page of the listing. */
bool s3_sweep_query(struct s3_op *op);
enum s3_next s3_sweep_page(struct s3_op *op, const struct s3_answer *answer);
/* The object whose parts are thrown away; they were, or could not be. */
const char *s3_sweep_key(const struct s3_op *op);
enum s3_next s3_sweep_aborted(struct s3_op *op);
/* For today: it sleeps until tomorrow. */
enum s3_next s3_sweep_over(struct s3_op *op);

/* ---- s3_keep.c ---- */

/* Of the steps and operations that are its own. */
bool s3_keep_request(struct s3_op *op, struct s3_request *request);
/* True: *next says how it goes on. False: the answer is one that s3_op.c knows what to do about. */
bool s3_keep_answer(struct s3_op *op, const struct s3_answer *answer,
		    const struct s3_verdict *verdict, enum s3_next *next);
/* Headers of an object that is to be locked. */
void s3_keep_add(const struct s3_op *op, struct curl_slist **list, bool *ok);
/* An object was put; explicitly: whether it is locked as it should be has to be seen to. */
enum s3_next s3_keep_put(struct s3_op *op, bool explicitly);
/* A delete without a version was carried out. */
enum s3_next s3_keep_deleted(struct s3_op *op, const struct s3_answer *answer);
enum s3_versioned s3_versioned_of(const struct s3_answer *answer);

#endif
