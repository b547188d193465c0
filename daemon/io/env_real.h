/* SPDX-License-Identifier: Apache-2.0 */
/*
 * env_real: what the two backends of a real host (io_uring; libaio + epoll) share: the clock,
 * the heap of timers, deferred and posted calls, helper threads, blocking file calls, addresses,
 * connecting, logging. Private to daemon/io/env_*.c.
 *
 * One turn of the loop, in this order:
 *   1. the backend hands everything started since the last turn to the kernel and, in the same
 *      call where it can, waits: until the next timer, or not at all if anything is left to do;
 *   2. the clock is read, once: env_now_ns() stands still until the next turn;
 *   3. completions are handed out: first the operations that ended without the kernel (`ready`),
 *      then the kernel's, at most REAL_COMPLETIONS_MAX of them; the rest stays for the next turn;
 *   4. timers that are due fire (one started in here is not due before the next turn);
 *   5. calls posted by other threads are queued behind the deferred ones;
 *   6. deferred tasks are called, and those they defer once more; what is deferred after that is
 *      called in the next turn, which does not wait.
 * So a completion's done() sees what all earlier ones did, a deferred task sees all completions
 * at hand, and whatever a task starts reaches the kernel in one call at step 1.
 */
#ifndef OFFSITE_IO_ENV_REAL_H
#define OFFSITE_IO_ENV_REAL_H

#include <netinet/in.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "daemon/io/env_ops.h"

#define REAL_COMPLETIONS_MAX  256u
#define REAL_PEERNAME_BYTES   64
#define REAL_CONNECT_LIMIT_MS 10000 /* for all addresses of a name together */
#define REAL_ACCEPT_RETRY_NS  100000000ull
#define REAL_TRANSFER_MAX     (1u << 30) /* of one system call; longer ones go on in pieces */
#define REAL_NO_SLOT          (-1)

struct real_pool; /* helper threads */
struct real_connect;
struct env_real;

/* What a backend adds to its struct env_ops. */
struct real_backend {
	/* Steps 1 and 3 of a turn; calls real_turn_begun() in between. timeout_ns: 0 not to wait,
	 * UINT64_MAX without limit. */
	void (*turn)(struct env_real *real, uint64_t timeout_ns);
	/* A file or socket came or is about to go (registered descriptors). */
	void (*fd_opened)(struct env_real *real, int fd, int *slot);
	void (*fd_closing)(struct env_real *real, int slot);
	/* Begins and ends accepting; after accept_stop() the backend calls real_listener_free()
	 * once nothing of it is under way. */
	int (*accept_start)(struct env_real *real, struct env_listener *listener);
	void (*accept_stop)(struct env_real *real, struct env_listener *listener);
};

struct real_tasks {
	struct env_task *first, *last;
};

struct real_ops {
	struct env_op *first, *last;
};

struct env_real {
	struct env env;
	const struct real_backend *backend;

	uint64_t now_ns;
	bool in_turn;
	bool stop;

	enum env_log_level log_max;
	bool log_journal; /* stderr is the journal: prefix lines with their priority */

	struct env_timer **heap; /* TIMERS_MAX, reserved; heap[1] is due first */
	uint32_t heap_count;

	struct real_tasks deferred, running;
	struct real_ops ready;             /* ended without the kernel; done() not yet called */
	_Atomic(struct env_task *) posted; /* newest first */
	int wake_fd;                       /* eventfd; the backend watches it */

	struct real_pool *helpers;
	int abort_fd; /* eventfd; readable: connecting threads give up */
	struct real_connect *connecting;

	unsigned files, socks, listeners; /* alive */
	unsigned closing;                 /* sockets and listeners given up but still alive */
	bool draining;                    /* env_free() has begun */
};

struct env_file {
	struct env_real *real;
	int fd;
	int slot;           /* registered descriptor, or REAL_NO_SLOT */
	unsigned under_way; /* operations */
	bool in_memory;     /* tmpfs: transfers never wait for a device */
	bool sync_apart; /* FUSE: takes RWF_DSYNC and leaves it out, where the kernel queues a write */
	struct env_file_info info; /* size_bytes is read anew each time */
};

struct env_sock {
	struct env *env; /* first: see env_ops.h */
	int fd;
	int slot;
	bool closing;
	bool readable;              /* aio: no EAGAIN since the last event */
	bool watching_output;       /* aio: epoll tells of room for output */
	bool more;                  /* uring: the last receive left something behind */
	struct env_op *recv, *send; /* under way */
	struct env_sock *next;      /* aio: closed in this turn */
	char peername[REAL_PEERNAME_BYTES];
};

struct env_listener {
	struct env *env; /* first: see env_ops.h */
	int fd;
	bool armed; /* the backend waits for a connection */
	bool closing;
	void (*accept)(void *context, struct env_sock *sock);
	void *context;
	struct env_op op;       /* uring: the accept under way */
	struct env_timer retry; /* after a shortage of descriptors or memory */
	struct env_listener *next;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* "" for TCP */
	char addr[160];
};

static inline struct env_real *real_of(struct env *env)
{
	return (struct env_real *)env;
}

/* Head of what lies in env_op.priv: enough to be queued as ready. */
struct real_op {
	struct env_op *next;
	int64_t result;
};

static inline struct real_op *real_op(struct env_op *op)
{
	return (struct real_op *)op->priv;
}

/* ---- env_real.c: the loop ---- */

/* Initialises the shared part. On failure -errno and *why. */
int real_init(struct env_real *real, unsigned threads, const char **why);
/* Runs turns until all that was closed is gone and no connect is under way. */
void real_drain(struct env_real *real);
/* Frees the shared part. */
void real_exit(struct env_real *real);

void real_turn_begun(struct env_real *real);
/* Queues op as ended: done() comes in step 3. */
void real_ready(struct env_real *real, struct env_op *op, int64_t result);
/* Calls done() of what is in the ready queue now. */
void real_call_ready(struct env_real *real);
void real_fatal(const char *what, int error) __attribute__((noreturn));

void real_run(struct env *env);
void real_run_until(struct env *env, const bool *flag);
void real_stop(struct env *env);
uint64_t real_now_ns(struct env *env);
uint64_t real_realtime_ns(struct env *env);
void real_random(struct env *env, void *buf, size_t length_bytes);
void real_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_ns);
void real_timer_stop(struct env *env, struct env_timer *timer);
void real_defer(struct env *env, struct env_task *task);
void real_defer_cancel(struct env *env, struct env_task *task);
void real_post(struct env *env, struct env_task *task);
void real_work_submit(struct env *env, struct env_work *work);
void real_log(struct env *env, enum env_log_level level, const char *format, va_list args);
void real_log_level(struct env *env, enum env_log_level max);

/* ---- env_real_pool.c: helper threads ---- */

struct real_pool *real_pool_new(struct env_real *real, unsigned threads);
/* Waits for work under way; its done() is no longer called. */
void real_pool_free(struct real_pool *pool);
void real_pool_submit(struct real_pool *pool, struct env_work *work);

/* ---- env_real_file.c: blocking calls ---- */

int real_file_open(struct env *env, const char *path, unsigned flags, struct env_file **file);
void real_file_close(struct env *env, struct env_file *file);
int real_file_info(struct env *env, struct env_file *file, struct env_file_info *info);
int real_file_truncate(struct env *env, struct env_file *file, uint64_t size_bytes);
int real_file_allocate(struct env *env, struct env_file *file, uint64_t offset, uint64_t length);
int real_file_pread(struct env *env, struct env_file *file, void *buf, size_t length,
		    uint64_t offset);
int real_file_pwrite(struct env *env, struct env_file *file, const void *buf, size_t length,
		     uint64_t offset);
int real_file_sync(struct env *env, struct env_file *file);
int real_file_next_data(struct env *env, struct env_file *file, uint64_t offset, uint64_t *start,
			uint64_t *end);
int real_mkdir(struct env *env, const char *path);
int real_unlink(struct env *env, const char *path);
int real_file_clone(struct env *env, struct env_file *file, const char *path);
int real_rename(struct env *env, const char *from, const char *to, bool replace);
int real_sync_dir(struct env *env, const char *path);

/* As env_file_pread() and env_file_pwrite(), from any thread. flags: of pwritev2(). */
int real_pread_all(const struct env_file *file, void *buf, size_t length, uint64_t offset);
int real_pwrite_all(const struct env_file *file, const void *buf, size_t length, uint64_t offset,
		    int flags);
int real_zero_range(const struct env_file *file, uint64_t offset, uint64_t length, unsigned flags);
/* The mode of fallocate(2) for env_zero_flags. */
int real_zero_mode(unsigned flags);
/* A transfer moved `moved` of the bytes it asked for: the error when it cannot go on, else 0. */
int real_transfer_stuck(const struct env_file *file, bool write, size_t moved);

/* ---- env_real_net.c: addresses, listening, connecting ---- */

int real_listen(struct env *env, const char *addr,
		void (*accept)(void *context, struct env_sock *sock), void *context,
		struct env_listener **listener);
const char *real_listener_addr(struct env_listener *listener);
void real_listener_close(struct env *env, struct env_listener *listener);
void real_listener_free(struct env_real *real, struct env_listener *listener);
/* One accepted descriptor, or -errno: hands a socket to the listener's owner, or sets the retry
 * timer. True if accepting should go on at once. */
bool real_accepted(struct env_real *real, struct env_listener *listener, int fd);
void real_connect(struct env *env, struct env_op *op, const char *addr, struct env_sock **sock);
/* Makes threads that are still connecting give up with -ECANCELED. */
void real_connect_abort(struct env_real *real);
const char *real_sock_peername(struct env_sock *sock);
/* A socket with its options set and its name found; the backend does the rest. */
int real_sock_new(struct env_real *real, int fd, bool nonblocking, struct env_sock **sock);
/* Frees sock, leaving the descriptor to the caller of real_sock_new(). */
void real_sock_forget(struct env_real *real, struct env_sock *sock);
/* Marks sock as given up by its owner; real_sock_free() follows when nothing is under way. */
void real_sock_closing(struct env_real *real, struct env_sock *sock);
/* Closes the descriptor, frees sock. */
void real_sock_free(struct env_real *real, struct env_sock *sock);
int real_set_nonblocking(int fd, bool on);
/* Takes `moved` bytes off the front of an iovec array. */
void real_iov_advance(struct iovec **iov, unsigned *count, size_t moved);

/* ---- the backends ---- */

int uring_new(unsigned threads, struct env **env, const char **why);
int aio_new(unsigned threads, struct env **env, const char **why);

#endif
