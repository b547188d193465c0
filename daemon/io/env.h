/* SPDX-License-Identifier: Apache-2.0 */
/*
 * env: one node's door to everything impure.
 *
 * Clock, randomness, timers, files, sockets, helper threads: a module reaches the outside world
 * through the struct env it was given and through nothing else, and keeps no mutable file-level
 * state. So the same engine runs on io_uring, on libaio + epoll, and N times in one process under
 * the seeded simulator (tests/sim).
 *
 * Threading. One thread runs the loop (env_run) and owns every object reached from it. All
 * functions here must be called on that thread, but for env_post() and the run() of an env_work.
 *
 * Completions. An asynchronous call takes a struct env_op that the caller owns and keeps alive
 * until op->done(op, result) has been called: exactly once, on the loop thread, never from inside
 * the call that started it. result is >= 0 or -errno. Buffers and iovecs given along stay valid
 * and untouched until then. There is no cancel, except by closing a socket.
 */
#ifndef OFFSITE_IO_ENV_H
#define OFFSITE_IO_ENV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct env;
struct env_file;
struct env_sock;
struct env_listener;

struct env_op {
	/* Set by the caller before the start. */
	void (*done)(struct env_op *op, int64_t result);
	/* Private to the backend while the operation is under way. */
	uint64_t priv[14];
};

/* A one-shot timer. Zero-initialise, set fire, then start it as often as wanted. */
struct env_timer {
	void (*fire)(struct env_timer *timer);
	/* private */
	uint64_t when_ns;
	uint32_t heap_index; /* 1-based; 0: not started */
};

/* A call to be made later on the loop thread. Zero-initialise, set call. */
struct env_task {
	void (*call)(struct env_task *task);
	/* private */
	struct env_task *next;
	bool queued;
};

/* CPU-heavy or blocking work for a helper thread. */
struct env_work {
	void (*run)(
		struct env_work *work); /* on a helper thread: touches nothing but its own data */
	void (*done)(struct env_work *work); /* on the loop thread, afterwards */
	/* private */
	uint64_t priv[4];
};

enum env_file_flags {
	ENV_FILE_READ = 1,
	ENV_FILE_WRITE = 2,
	ENV_FILE_CREATE = 4,  /* mode 0600 */
	ENV_FILE_EXCL = 8,    /* with CREATE: -EEXIST if there */
	ENV_FILE_DIRECT = 16, /* O_DIRECT where the file system can; see env_file_info.direct */
	ENV_FILE_LOCK = 32,   /* exclusive advisory lock (OFD), shared for READ only; -EWOULDBLOCK
			       * if another holds it, a block device in use is -EBUSY: both after
			       * 2 s, so that a killed process is not in the way of its successor */
};

struct env_file_info {
	uint64_t size_bytes;
	uint32_t align_bytes; /* memory address, offset and length of every transfer are multiples
			       * of it; 1 without O_DIRECT, else 512..4096 */
	bool direct;          /* O_DIRECT is really in force */
	bool block_device;
	uint64_t fs, inode; /* which file it is, whatever it is called */
};

enum env_write_flags {
	ENV_WRITE_FUA = 1, /* durable when done (RWF_DSYNC) */
};

enum env_zero_flags {
	ENV_ZERO_PUNCH = 1, /* deallocate (hole, unmap); without it the range stays allocated */
};

/* What env_addr_check() and the socket calls understand:
 *   unix:/path/to/socket    tcp:HOST:PORT    HOST:PORT    [V6ADDR]:PORT
 * HOST is resolved with getaddrinfo() on a helper thread. PORT 0 with env_listen(): any free one. */

struct env_ops; /* the backend's table: env_ops.h, for backends only */

struct env {
	const struct env_ops *ops;
	unsigned
		lingering; /* streams (stream.h) that were closed and still send their last message */
};

/* ---- life ------------------------------------------------------------------------------- */

enum env_backend {
	ENV_BACKEND_AUTO, /* io_uring where the kernel allows it, else libaio + epoll */
	ENV_BACKEND_URING,
	ENV_BACKEND_AIO,
};

/* Makes a real environment, for use on the calling thread only (and not across a fork). threads:
 * helper threads for env_work (at least 1). On failure -errno,
 * and *why (static text) says what was not to be had (e.g. "io_uring_queue_init"). */
int env_real_new(enum env_backend backend, unsigned threads, struct env **env, const char **why);

/* Frees an environment whose files, sockets and listeners have been closed. Runs turns until the
 * last operation on a closed socket is done; connects under way end with -ECANCELED, work under
 * way is waited for and its done() not called. NULL is allowed. */
void env_free(struct env *env);

/* Runs the loop until env_stop(). */
void env_run(struct env *env);
void env_stop(struct env *env);

/* Runs turns of the loop until *flag is true (start-up and shutdown code, tests). Neither it nor
 * env_run() may be called from inside a callback. */
void env_run_until(struct env *env, const bool *flag);

/* "io_uring", "libaio" or "simulator". */
const char *env_backend_name(const struct env *env);

/* ---- time, randomness, calls -------------------------------------------------------------- */

uint64_t env_now_ns(struct env *env);      /* monotonic; constant within a loop turn */
uint64_t env_realtime_ns(struct env *env); /* since 1970, UTC */
void env_random(struct env *env, void *buf, size_t length_bytes); /* cryptographic quality */

/* (Re)starts the timer: fires once, no earlier than delay_ns from now. */
void env_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_ns);
void env_timer_stop(struct env *env, struct env_timer *timer);
static inline bool env_timer_active(const struct env_timer *timer)
{
	return timer->heap_index != 0;
}

/* Calls task at the end of this loop turn, after all completions that are at hand: the place to
 * batch replies, frames, acknowledgements. A task that is queued already stays queued once. */
void env_defer(struct env *env, struct env_task *task);
/* Takes a queued task back. Not for tasks given to env_post(). */
void env_defer_cancel(struct env *env, struct env_task *task);

/* As env_defer(), from any thread; wakes the loop. */
void env_post(struct env *env, struct env_task *task);

void env_work_submit(struct env *env, struct env_work *work);

/* ---- files: blocking calls, for start-up, shutdown and rare control work ----------------- */

int env_file_open(struct env *env, const char *path, unsigned flags, struct env_file **file);
/* No operation may be under way on it. */
void env_file_close(struct env *env, struct env_file *file);
int env_file_info(struct env *env, struct env_file *file, struct env_file_info *info);
/* Sets the size of a regular file. */
int env_file_truncate(struct env *env, struct env_file *file, uint64_t size_bytes);
/* Reserves real space in [offset, offset+length) so that later writes there cannot meet ENOSPC. -EOPNOTSUPP: more than
 * 4 GiB where the file system has no fallocate(2) and all of it would have to be written. */
int env_file_allocate(struct env *env, struct env_file *file, uint64_t offset, uint64_t length);
/* Whole transfer or an error (0 or -errno; a read past the end is -ENODATA). Alignment as in info. */
int env_file_pread(struct env *env, struct env_file *file, void *buf, size_t length,
		   uint64_t offset);
int env_file_pwrite(struct env *env, struct env_file *file, const void *buf, size_t length,
		    uint64_t offset);
int env_file_sync(struct env *env, struct env_file *file);
/* The first allocated run at or after offset: [*start, *end). 0, or -ENXIO when only a hole is left.
 * Files and devices that cannot say report all as allocated. */
int env_file_next_data(struct env *env, struct env_file *file, uint64_t offset, uint64_t *start,
		       uint64_t *end);

/* Makes path a durable copy of a regular file that shares its blocks (reflink), in place of what was
 * there. -EOPNOTSUPP where the file system cannot. Blocking; nothing may be writing to the file. */
int env_file_clone(struct env *env, struct env_file *file, const char *path);

/* With parents, 0700, each durable; existing is fine. */
int env_mkdir(struct env *env, const char *path);
/* The folder that path stands in, by its text: "." where there is no '/'. The caller frees it; NULL: no memory. */
char *env_parent(const char *path);
/* Makes that folder. Only a try: whoever needs it finds out. */
void env_mkdir_parent(struct env *env, const char *path);
int env_unlink(struct env *env, const char *path); /* -ENOENT if not there */
int env_rename(struct env *env, const char *from, const char *to);
/* The same, but -EEXIST if there is something of the name `to`. */
int env_rename_new(struct env *env, const char *from, const char *to);
int env_sync_dir(struct env *env, const char *path); /* fsync of the directory */
int env_sync_parent(struct env *env,
		    const char *path); /* likewise of the folder that path stands in */

/* ---- files: asynchronous ------------------------------------------------------------------- */

/* Result: length, or -errno. The backend goes on after short transfers; a read that meets the end
 * of the file gives -ENODATA, a write that cannot go on -EIO or -ENOSPC. */
void env_read(struct env *env, struct env_op *op, struct env_file *file, void *buf, size_t length,
	      uint64_t offset);
void env_write(struct env *env, struct env_op *op, struct env_file *file, const void *buf,
	       size_t length, uint64_t offset, unsigned flags);
/* Result 0 or -errno. Covers every write on the file that completed before the call. */
void env_fsync(struct env *env, struct env_op *op, struct env_file *file);
/* Makes [offset, offset+length) read as zeroes. Result 0 or -errno; -EOPNOTSUPP where the file or
 * device cannot do it faster than by writing (the caller then writes). */
void env_zero(struct env *env, struct env_op *op, struct env_file *file, uint64_t offset,
	      uint64_t length, unsigned flags);

/* ---- sockets ------------------------------------------------------------------------------- */

/* True if text is an address of one of the forms above; else false and *why a static reason. */
bool env_addr_check(const char *text, const char **why);

/* Listens; accept() is called on the loop thread for each connection, whose socket it then owns.
 * A stale unix socket file is replaced if nobody listens on it. */
int env_listen(struct env *env, const char *addr,
	       void (*accept)(void *context, struct env_sock *sock), void *context,
	       struct env_listener **listener);
/* The address in use, with the real port ("tcp:127.0.0.1:43211"). Owned by the listener. */
const char *env_listener_addr(struct env_listener *listener);
void env_listener_close(struct env *env, struct env_listener *listener);

/* Result 0 and *sock set, or -errno. Resolution, TCP_NODELAY and keepalive are the backend's. */
void env_connect(struct env *env, struct env_op *op, const char *addr, struct env_sock **sock);

/* Takes over a connected stream socket (socketpair, inherited descriptor). */
int env_sock_adopt(struct env *env, int fd, struct env_sock **sock);

/* Result: bytes received (1..length), 0 at the peer's orderly end, -errno. One at a time. */
void env_recv(struct env *env, struct env_op *op, struct env_sock *sock, void *buf, size_t length);
/* Sends all of it. Result: the sum of lengths, or -errno. One at a time; count <= 1024. The iov
 * array may be changed by the backend. */
void env_sendv(struct env *env, struct env_op *op, struct env_sock *sock, struct iovec *iov,
	       unsigned count);
/* "unix", or "ADDRESS:PORT" of the other side: for messages. Owned by the socket. */
const char *env_sock_peername(struct env_sock *sock);
/* Ends the connection and gives the socket up. Operations under way on it are completed with an
 * error (or their result) in a later turn, and their op->done still called. */
void env_sock_close(struct env *env, struct env_sock *sock);

/* ---- logging ------------------------------------------------------------------------------- */

enum env_log_level { ENV_LOG_ERROR, ENV_LOG_WARNING, ENV_LOG_INFO, ENV_LOG_DEBUG };

/* One line, no newline: "what: which object: why". */
void env_log(struct env *env, enum env_log_level level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* Lines above this level are not written (real environments; default ENV_LOG_INFO). */
void env_log_level(struct env *env, enum env_log_level max);

#endif
