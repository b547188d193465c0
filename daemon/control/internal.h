/* SPDX-License-Identifier: Apache-2.0 */
/*
 * internal: what the files of control share: the server's own state, a request on its way, and who
 * answers it. Loop thread only, but for what stands under `mutex`.
 */
#ifndef OFFSITE_CONTROL_INTERNAL_H
#define OFFSITE_CONTROL_INTERNAL_H

#include <jansson.h>
#include <pthread.h>

#include "daemon/control/control.h"
#include "daemon/control/events.h"
#include "daemon/control/jobs.h"
#include "daemon/control/watch.h"

#define CONTROL_BODY_MAX_BYTES  65536u
#define CONTROL_CONNECTIONS_MAX 64u
#define CONTROL_WAIT_MAX_S      60.0
#define CONTROL_TICK_NS         200000000ull
#define CONTROL_STORE_WAIT_S    5.0 /* so long a request waits for a store that is being opened */
#define CONTROL_PARAMS          2
#define CONTROL_PATH_MAX        512

/*
 * One HTTP request. Its HTTP thread owns it, fills the first part, and sleeps until `done`; in
 * between it belongs to the loop thread, which fills the second part.
 */
struct control_request {
	char method[12];
	char path[CONTROL_PATH_MAX];
	char volume[128]; /* ?volume= */
	uint64_t since;   /* ?since= */
	double wait_s;    /* ?wait= */
	json_t *body;     /* an object; NULL: none was sent */

	unsigned status; /* HTTP */
	json_t *json;    /* the answer, or */
	char *text;      /* the answer as plain text (metrics) */

	/* loop thread's */
	char params[CONTROL_PARAMS][128]; /* what '*' stood for in the route */
	uint64_t deadline_ns;             /* of a long poll; 0: not waiting yet */
	struct control_request *next;

	/* under control.mutex */
	bool done;
	pthread_cond_t answered;
};

struct control {
	struct env *env;
	struct node *node;
	struct nbd_server *nbd;
	struct attach *attach; /* NULL: none */
	char *socket_path;
	uint64_t socket_inode;
	struct MHD_Daemon *http;
	uint64_t started_ns; /* env_now_ns() */
	char instance[ID128_TEXT_BYTES];

	pthread_mutex_t mutex;
	struct control_request *queue, **queue_tail; /* under mutex: from the HTTP threads */
	bool stopping;                               /* under mutex; set by control_stop() */

	struct env_task task;            /* takes the queue; posted by the HTTP threads */
	struct env_timer tick;           /* compares states, ends long polls */
	struct control_request *waiting; /* long polls */
	unsigned operations;             /* listings and deletions under way in the node's stores */
	bool http_stopped;
	void (*stopped)(void *context);
	void *stopped_context;

	struct events *events;
	struct jobs *jobs;
	struct watch *watch;
	const struct snapshot_repo *
		*listed; /* of each volume: the repository that was listed at first */
};

/* What became of a request after its handler. */
enum control_outcome {
	CONTROL_ANSWERED,
	CONTROL_WAIT,    /* run the handler again when something happened, or at the deadline */
	CONTROL_PENDING, /* an operation is under way and will call control_answer() */
};

/* api.c: finds the handler and runs it. Called again for one that waits. */
enum control_outcome api_handle(struct control *control, struct control_request *request);

/* Unpacks the body by jansson's format; members that are not in it are refused, after an answer. */
#define BODY_UNPACK(control, request, ...) api_body_unpack(control, request, __VA_ARGS__)
bool api_body_unpack(struct control *control, struct control_request *request, const char *format,
		     ...);
/* The open volume of the path, or one with a peer; NULL after answering. */
struct node_volume *api_find_open(struct control *control, struct control_request *request);
struct node_volume *api_find_replicated(struct control *control, struct control_request *request);
/* True while the request should wait: the volume's store is being opened, as it is after a start. */
bool api_store_awaited(struct control *control, struct control_request *request,
		       const struct node_volume *volume);
/* The answer to a verb: what the volume looks like afterwards, or the reason it was refused. */
enum control_outcome api_answer_verb(struct control *control, struct control_request *request,
				     const struct node_volume *volume, int error, const char *why);

/* verify.c */
enum control_outcome verify_post_start(struct control *control, struct control_request *request);
enum control_outcome verify_post_cancel(struct control *control, struct control_request *request);

/* roles.c */
enum control_outcome roles_post_promote(struct control *control, struct control_request *request);
/* What connect would do, without doing it. */
enum control_outcome roles_dry_run(struct control *control, struct control_request *request,
				   struct node_volume *volume);
enum control_outcome roles_post_resume(struct control *control, struct control_request *request);
enum control_outcome roles_post_demote(struct control *control, struct control_request *request);

/* attach.c */
enum control_outcome attach_get_list(struct control *control, struct control_request *request);
enum control_outcome attach_post(struct control *control, struct control_request *request);
enum control_outcome attach_post_detach(struct control *control, struct control_request *request);

/* diff.c */
enum control_outcome diff_post(struct control *control, struct control_request *request);

/* resize.c */
enum control_outcome resize_post(struct control *control, struct control_request *request);

/* Starts the job and answers with it, or why not. */
struct job_order;
enum control_outcome api_start_job(struct control *control, struct control_request *request,
				   const struct job_order *order);

/* split.c */
enum control_outcome split_get_changes(struct control *control, struct control_request *request);
enum control_outcome split_post_resolve(struct control *control, struct control_request *request);

/* listing.c: lists the volume's snapshots from its store. With a request, answers it at the end; the
 * newest snapshot is told to the watch in any case. -errno and why if it cannot start (the request is
 * then the caller's to answer). */
int listing_start(struct control *control, unsigned volume_index, struct control_request *request,
		  char *why, size_t why_size);

/* control.c. answer: takes json over. The request belongs to its HTTP thread afterwards. */
void control_answer(struct control *control, struct control_request *request, unsigned status,
		    json_t *json);
/* {"error": text, "code": ...} */
void control_refuse(struct control *control, struct control_request *request, unsigned status,
		    const char *format, ...) __attribute__((format(printf, 4, 5)));
/* True once the deadline of the request's ?wait= is over (at once without one). */
bool control_wait_over(struct control *control, struct control_request *request);
/* Its handler is run again when something happened, or at the next tick. */
void control_hold(struct control *control, struct control_request *request);
/* Something happened: long polls look again. */
void control_wake(struct control *control);
/* One of the operations counted in `operations` has ended. */
void control_operation_done(struct control *control);
/* As env_listen() would find the socket; also for tests. */
int control_listen_unix(struct env *env, const char *path, int *listen_fd, char *why,
			size_t why_size);

/* http.c: the threads. */
int http_start(struct control *control, int listen_fd);
void http_stop(struct control *control);
/* The HTTP status for a -errno of a module. */
unsigned http_status_of(int error);

#endif
