/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The libaio + epoll backend, for hosts that switch io_uring off.
 *
 * Reads and writes under O_DIRECT go to the kernel by io_submit(), all of a turn in one call, and
 * come back through an eventfd. What io_submit() would do while we wait (buffered files), and what
 * it cannot do (fsync, zeroes), is done by blocking calls on helper threads of this backend's own,
 * so that no long work of others holds it up.
 *
 * Sockets do not block. A receive or send is tried when started, its result queued as ready; where
 * it would block, epoll tells when to try again. Input is watched for all the time, by edges;
 * room for output only while a send waits for it.
 */
#include <assert.h>
#include <errno.h>
#include <libaio.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>
#include "daemon/io/env_real.h"

#define BLOCKING_THREADS 4
#define BATCH_MAX        128u
#define ACCEPTS_MAX      16 /* of one listener in one turn */
#define SUBMIT_RETRY_NS  1000000u
#define INPUT_EVENTS     (EPOLLIN | EPOLLRDHUP | EPOLLET)
#define TAG_LISTENER     1u /* low bit of epoll's user data */

enum kind { KIND_READ, KIND_WRITE, KIND_FSYNC, KIND_ZERO };

/* Lies in env_op.priv. */
struct aio_op {
	struct real_op real;
	uint8_t kind;
	unsigned flags;
	union {
		struct env_file *file;
		struct env_sock *sock;
	};
	union {
		struct { /* io_submit() */
			struct iocb iocb;
			uint64_t moved;
		};
		struct { /* helper thread */
			struct env_work work;
			void *buf;
			uint64_t offset, length;
		};
		struct { /* socket */
			void *recv_buf;
			size_t recv_length;
			struct iovec *iov;
			unsigned iov_count;
			uint64_t sent;
		};
	};
};

_Static_assert(sizeof(struct aio_op) <= sizeof(((struct env_op *)0)->priv), "priv too small");

struct aio {
	struct env_real real;
	io_context_t context;
	unsigned depth_max, under_way; /* of the context */
	int event_fd, epoll_fd;
	bool more; /* the last look left completions behind */
	struct real_ops submit;
	struct real_pool *blocking;
	struct env_sock
		*closed_socks; /* freed before the next wait: this turn's events may name them */
	struct env_listener *closed_listeners;
};

static struct aio *aio_of(struct env_real *real)
{
	return (struct aio *)real;
}

static struct aio_op *aio_op(struct env_op *op)
{
	return (struct aio_op *)op->priv;
}

static struct env_op *op_of(struct aio_op *a)
{
	return (struct env_op *)((char *)a - offsetof(struct env_op, priv));
}

/* ---- files through the kernel ---- */

static void queue_submit(struct aio *aio, struct env_op *op)
{
	real_op(op)->next = NULL;
	if (aio->submit.last)
		real_op(aio->submit.last)->next = op;
	else
		aio->submit.first = op;
	aio->submit.last = op;
}

static struct env_op *unqueue_submit(struct aio *aio)
{
	struct env_op *op = aio->submit.first;

	aio->submit.first = real_op(op)->next;
	if (!aio->submit.first)
		aio->submit.last = NULL;
	return op;
}

static void prepare_iocb(struct aio *aio, struct env_op *op, void *buf, uint64_t length,
			 uint64_t offset)
{
	struct aio_op *a = aio_op(op);
	size_t part = length < REAL_TRANSFER_MAX ? length : REAL_TRANSFER_MAX;

	if (a->kind == KIND_READ)
		io_prep_pread(&a->iocb, a->file->fd, buf, part, (long long)offset);
	else
		io_prep_pwrite(&a->iocb, a->file->fd, buf, part, (long long)offset);
	if (a->kind == KIND_WRITE && (a->flags & ENV_WRITE_FUA))
		a->iocb.aio_rw_flags = RWF_DSYNC;
	io_set_eventfd(&a->iocb, aio->event_fd);
	a->iocb.data = op;
	queue_submit(aio, op);
}

static void complete_file(struct aio_op *a, int64_t result)
{
	struct env_op *op = op_of(a);

	assert(a->file->under_way > 0);
	a->file->under_way--;
	op->done(op, result);
}

/* Hands the queue to the kernel. False if some of it has to wait for nothing else but time. */
static bool submit_queue(struct aio *aio)
{
	while (aio->submit.first && aio->under_way < aio->depth_max) {
		struct iocb *batch[BATCH_MAX];
		struct env_op *op = aio->submit.first;
		unsigned room = aio->depth_max - aio->under_way, count = 0;
		int taken;

		for (; op && count < BATCH_MAX && count < room; op = real_op(op)->next)
			batch[count++] = &aio_op(op)->iocb;
		taken = io_submit(aio->context, count, batch);
		if (taken == -EAGAIN || taken == -EINTR)
			return aio->under_way > 0;
		if (taken <= 0) { /* the first is refused */
			op = unqueue_submit(aio);
			assert(aio_op(op)->file->under_way > 0);
			aio_op(op)->file->under_way--;
			real_ready(&aio->real, op, taken ? taken : -EIO);
			continue;
		}
		aio->under_way += (unsigned)taken;
		while (taken-- > 0)
			unqueue_submit(aio);
	}
	return true;
}

static void complete_iocb(struct aio *aio, struct env_op *op, int64_t res)
{
	struct aio_op *a = aio_op(op);
	const struct iocb *iocb = &a->iocb;
	uint64_t asked = iocb->u.c.nbytes;
	int stuck = 0;

	if (res >= 0) {
		a->moved += (uint64_t)res;
		if ((uint64_t)res < asked)
			stuck = real_transfer_stuck(a->file, a->kind == KIND_WRITE, (size_t)res);
		if (!stuck && a->moved < (uint64_t)a->real.result) {
			prepare_iocb(aio, op, (char *)iocb->u.c.buf + res,
				     (uint64_t)a->real.result - a->moved,
				     (uint64_t)iocb->u.c.offset + (uint64_t)res);
			return;
		}
		res = stuck ? stuck : a->real.result;
	}
	complete_file(a, res);
}

static void reap(struct aio *aio)
{
	struct io_event events[REAL_COMPLETIONS_MAX];
	struct timespec none = {0};
	int count;

	aio->more = false;
	if (aio->under_way == 0)
		return;
	count = io_getevents(aio->context, 0, REAL_COMPLETIONS_MAX, events, &none);
	if (count == -EINTR) {
		aio->more = true;
		return;
	}
	if (count < 0)
		real_fatal("io_getevents", -count);
	aio->more = count == (int)REAL_COMPLETIONS_MAX;
	aio->under_way -= (unsigned)count;
	for (int i = 0; i < count; i++)
		complete_iocb(aio, events[i].data, (int64_t)events[i].res);
}

/* ---- files on helper threads ---- */

static void run_blocking(struct env_work *work)
{
	struct aio_op *a = (struct aio_op *)((char *)work - offsetof(struct aio_op, work));
	int error = 0;

	switch ((enum kind)a->kind) {
	case KIND_READ:
		error = real_pread_all(a->file, a->buf, a->length, a->offset);
		break;
	case KIND_WRITE:
		error = real_pwrite_all(a->file, a->buf, a->length, a->offset,
					a->flags & ENV_WRITE_FUA ? RWF_DSYNC : 0);
		if (!error && (a->flags & ENV_WRITE_FUA) && a->file->sync_apart)
			error = real_file_sync(NULL, a->file);
		break;
	case KIND_FSYNC:
		error = real_file_sync(NULL, a->file);
		break;
	case KIND_ZERO:
		error = real_zero_range(a->file, a->offset, a->length, a->flags);
		break;
	}
	a->real.result = error;
	if (!error && (a->kind == KIND_READ || a->kind == KIND_WRITE))
		a->real.result = (int64_t)a->length;
}

static void blocking_done(struct env_work *work)
{
	struct aio_op *a = (struct aio_op *)((char *)work - offsetof(struct aio_op, work));

	complete_file(a, a->real.result);
}

static void start_blocking(struct env *env, struct env_op *op, struct aio_op a)
{
	a.work = (struct env_work){.run = run_blocking, .done = blocking_done};
	*aio_op(op) = a;
	a.file->under_way++;
	real_pool_submit(aio_of(real_of(env))->blocking, &aio_op(op)->work);
}

static void transfer(struct env *env, struct env_op *op, enum kind kind, struct env_file *file,
		     void *buf, size_t length, uint64_t offset, unsigned flags)
{
	struct aio_op *a = aio_op(op);

	if (!file->info.direct || ((flags & ENV_WRITE_FUA) && file->sync_apart)) {
		start_blocking(env, op,
			       (struct aio_op){.kind = kind,
					       .flags = flags,
					       .file = file,
					       .buf = buf,
					       .offset = offset,
					       .length = length});
		return;
	}
	*a = (struct aio_op){.kind = kind, .flags = flags, .file = file};
	a->real.result = (int64_t)length; /* what it shall be */
	file->under_way++;
	prepare_iocb(aio_of(real_of(env)), op, buf, length, offset);
}

static void aio_read(struct env *env, struct env_op *op, struct env_file *file, void *buf,
		     size_t length, uint64_t offset)
{
	transfer(env, op, KIND_READ, file, buf, length, offset, 0);
}

static void aio_write(struct env *env, struct env_op *op, struct env_file *file, const void *buf,
		      size_t length, uint64_t offset, unsigned flags)
{
	transfer(env, op, KIND_WRITE, file, (void *)buf, length, offset, flags);
}

static void aio_fsync(struct env *env, struct env_op *op, struct env_file *file)
{
	start_blocking(env, op, (struct aio_op){.kind = KIND_FSYNC, .file = file});
}

static void aio_zero(struct env *env, struct env_op *op, struct env_file *file, uint64_t offset,
		     uint64_t length, unsigned flags)
{
	start_blocking(env, op,
		       (struct aio_op){.kind = KIND_ZERO,
				       .flags = flags,
				       .file = file,
				       .offset = offset,
				       .length = length});
}

/* ---- sockets ---- */

static int watch(struct aio *aio, int fd, uint32_t events, void *data)
{
	struct epoll_event event = {.events = events, .data.ptr = data};

	return epoll_ctl(aio->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static void unwatch(struct aio *aio, int fd)
{
	if (epoll_ctl(aio->epoll_fd, EPOLL_CTL_DEL, fd, NULL) < 0)
		real_fatal("epoll_ctl", errno);
}

static void watch_output(struct aio *aio, struct env_sock *sock, bool on)
{
	struct epoll_event event = {.events = INPUT_EVENTS | (on ? EPOLLOUT : 0), .data.ptr = sock};

	if (sock->watching_output == on)
		return;
	sock->watching_output = on;
	if (epoll_ctl(aio->epoll_fd, EPOLL_CTL_MOD, sock->fd, &event) < 0)
		real_fatal("epoll_ctl", errno);
}

/* True when it ended, with the result. */
static bool try_recv(struct env_sock *sock, struct aio_op *a, int64_t *result)
{
	ssize_t got;

	do {
		got = recv(sock->fd, a->recv_buf, a->recv_length, 0);
	} while (got < 0 && errno == EINTR);
	if (got < 0 && errno == EAGAIN) {
		sock->readable = false;
		return false;
	}
	*result = got < 0 ? -errno : got;
	return true;
}

static bool try_send(struct env_sock *sock, struct aio_op *a, int64_t *result)
{
	while (a->iov_count > 0) {
		struct msghdr message = {.msg_iov = a->iov, .msg_iovlen = a->iov_count};
		ssize_t put = sendmsg(sock->fd, &message, MSG_NOSIGNAL);

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0 && errno == EAGAIN)
			return false;
		if (put < 0) {
			*result = -errno;
			return true;
		}
		a->sent += (uint64_t)put;
		real_iov_advance(&a->iov, &a->iov_count, (size_t)put);
	}
	*result = (int64_t)a->sent;
	return true;
}

static void aio_recv(struct env *env, struct env_op *op, struct env_sock *sock, void *buf,
		     size_t length)
{
	struct aio_op *a = aio_op(op);
	int64_t result;

	assert(!sock->recv && !sock->closing);
	*a = (struct aio_op){
		.sock = sock,
		.recv_buf = buf,
		.recv_length = length < REAL_TRANSFER_MAX ? length : REAL_TRANSFER_MAX,
	};
	if (sock->readable && try_recv(sock, a, &result))
		real_ready(real_of(env), op, result);
	else
		sock->recv = op;
}

static void aio_sendv(struct env *env, struct env_op *op, struct env_sock *sock, struct iovec *iov,
		      unsigned count)
{
	struct aio_op *a = aio_op(op);
	int64_t result;

	assert(!sock->send && !sock->closing);
	*a = (struct aio_op){.sock = sock, .iov = iov, .iov_count = count};
	if (try_send(sock, a, &result)) {
		real_ready(real_of(env), op, result);
	} else {
		sock->send = op;
		watch_output(aio_of(real_of(env)), sock, true);
	}
}

/* What is done in done() may close the socket: `closing` is looked at anew. */
static void sock_event(struct aio *aio, struct env_sock *sock, uint32_t events)
{
	struct env_op *op;
	int64_t result;

	if (sock->closing)
		return;
	if (events & ~(uint32_t)EPOLLOUT)
		sock->readable = true;
	op = sock->recv;
	if (op && sock->readable && try_recv(sock, aio_op(op), &result)) {
		sock->recv = NULL;
		op->done(op, result);
	}
	if (sock->closing)
		return;
	op = sock->send;
	if (!op) {
		watch_output(aio, sock, false);
	} else if (try_send(sock, aio_op(op), &result)) {
		sock->send = NULL;
		op->done(op, result);
	}
}

static int aio_sock_adopt(struct env *env, int fd, struct env_sock **sock)
{
	struct aio *aio = aio_of(real_of(env));
	int error = real_sock_new(&aio->real, fd, true, sock);

	if (error)
		return error;
	error = watch(aio, fd, INPUT_EVENTS, *sock);
	if (error) {
		real_sock_forget(&aio->real, *sock);
		*sock = NULL;
	}
	return error;
}

static void aio_sock_close(struct env *env, struct env_sock *sock)
{
	struct aio *aio = aio_of(real_of(env));

	if (!sock)
		return;
	real_sock_closing(&aio->real, sock);
	unwatch(aio, sock->fd);
	if (sock->recv)
		real_ready(&aio->real, sock->recv, -ECANCELED);
	if (sock->send)
		real_ready(&aio->real, sock->send, -ECANCELED);
	sock->recv = sock->send = NULL;
	sock->next = aio->closed_socks;
	aio->closed_socks = sock;
}

/* ---- listeners ---- */

static void *listener_tag(struct env_listener *listener)
{
	return (void *)((uintptr_t)listener | TAG_LISTENER);
}

static int aio_accept_start(struct env_real *real, struct env_listener *listener)
{
	int error = real_set_nonblocking(listener->fd, true);

	if (error)
		return error;
	error = watch(aio_of(real), listener->fd, EPOLLIN, listener_tag(listener));
	listener->armed = !error;
	return error;
}

static void unwatch_listener(struct aio *aio, struct env_listener *listener)
{
	if (listener->armed)
		unwatch(aio, listener->fd);
	listener->armed = false;
}

static void aio_accept_stop(struct env_real *real, struct env_listener *listener)
{
	struct aio *aio = aio_of(real);

	unwatch_listener(aio, listener);
	listener->next = aio->closed_listeners;
	aio->closed_listeners = listener;
}

static void listener_event(struct aio *aio, struct env_listener *listener)
{
	for (int i = 0; i < ACCEPTS_MAX && !listener->closing; i++) {
		int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (!real_accepted(&aio->real, listener, fd < 0 ? -errno : fd))
			break;
	}
	if (!listener->closing && env_timer_active(&listener->retry))
		unwatch_listener(aio, listener);
}

static bool free_closed(struct aio *aio)
{
	struct env_sock *sock;
	struct env_listener *listener;
	bool some = aio->closed_socks || aio->closed_listeners;

	while ((sock = aio->closed_socks)) {
		aio->closed_socks = sock->next;
		real_sock_free(&aio->real, sock);
	}
	while ((listener = aio->closed_listeners)) {
		aio->closed_listeners = listener->next;
		real_listener_free(&aio->real, listener);
	}
	return some;
}

/* ---- the turn ---- */

static int wait_events(struct aio *aio, struct epoll_event *events, uint64_t timeout_ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(timeout_ns / 1000000000u),
		.tv_nsec = (long)(timeout_ns % 1000000000u),
	};
	uint64_t timeout_ms = (timeout_ns + 999999) / 1000000;
	int count;

	if (timeout_ns == UINT64_MAX)
		return epoll_wait(aio->epoll_fd, events, REAL_COMPLETIONS_MAX, -1);
	if (timeout_ns == 0)
		return epoll_wait(aio->epoll_fd, events, REAL_COMPLETIONS_MAX, 0);
	count = epoll_pwait2(aio->epoll_fd, events, REAL_COMPLETIONS_MAX, &ts, NULL);
	if (count < 0 && errno == ENOSYS) /* before Linux 5.11 */
		count = epoll_wait(aio->epoll_fd, events, REAL_COMPLETIONS_MAX,
				   timeout_ms < 3600000 ? (int)timeout_ms : 3600000);
	return count;
}

static void aio_turn(struct env_real *real, uint64_t timeout_ns)
{
	struct aio *aio = aio_of(real);
	struct epoll_event events[REAL_COMPLETIONS_MAX];
	bool submitted = submit_queue(aio);
	int count;

	if (free_closed(aio) || real->ready.first || aio->more)
		timeout_ns = 0;
	else if (!submitted && timeout_ns > SUBMIT_RETRY_NS)
		timeout_ns = SUBMIT_RETRY_NS;
	count = wait_events(aio, events, timeout_ns);
	if (count < 0 && errno != EINTR)
		real_fatal("epoll_wait", errno);
	real_turn_begun(real);
	real_call_ready(real);
	reap(aio);
	for (int i = 0; i < count; i++) {
		void *data = events[i].data.ptr;

		if (!data)
			continue; /* an eventfd: what it tells of is looked at in every turn */
		if ((uintptr_t)data & TAG_LISTENER)
			listener_event(aio, (struct env_listener *)((uintptr_t)data &
								    ~(uintptr_t)TAG_LISTENER));
		else
			sock_event(aio, data, events[i].events);
	}
}

/* ---- life ---- */

static void aio_fd_opened(struct env_real *real, int fd, int *slot)
{
	*slot = REAL_NO_SLOT;
}

static void aio_fd_closing(struct env_real *real, int slot)
{
}

static void aio_exit(struct aio *aio)
{
	real_pool_free(aio->blocking);
	if (aio->context)
		io_destroy(aio->context);
	if (aio->event_fd >= 0)
		close(aio->event_fd);
	if (aio->epoll_fd >= 0)
		close(aio->epoll_fd);
}

static void aio_free(struct env *env)
{
	struct aio *aio = aio_of(real_of(env));

	real_drain(&aio->real);
	aio_exit(aio);
	real_exit(&aio->real);
	free(aio);
}

static const struct env_ops aio_ops = {
	.name = "libaio",
	.free = aio_free,
	.run = real_run,
	.run_until = real_run_until,
	.stop = real_stop,
	.now_ns = real_now_ns,
	.realtime_ns = real_realtime_ns,
	.random = real_random,
	.timer_start = real_timer_start,
	.timer_stop = real_timer_stop,
	.defer = real_defer,
	.defer_cancel = real_defer_cancel,
	.post = real_post,
	.work_submit = real_work_submit,
	.file_open = real_file_open,
	.file_close = real_file_close,
	.file_info = real_file_info,
	.file_truncate = real_file_truncate,
	.file_allocate = real_file_allocate,
	.file_pread = real_file_pread,
	.file_pwrite = real_file_pwrite,
	.file_sync = real_file_sync,
	.file_next_data = real_file_next_data,
	.file_clone = real_file_clone,
	.mkdir = real_mkdir,
	.unlink = real_unlink,
	.rename = real_rename,
	.sync_dir = real_sync_dir,
	.read = aio_read,
	.write = aio_write,
	.fsync = aio_fsync,
	.zero = aio_zero,
	.listen = real_listen,
	.listener_addr = real_listener_addr,
	.listener_close = real_listener_close,
	.connect = real_connect,
	.sock_adopt = aio_sock_adopt,
	.recv = aio_recv,
	.sendv = aio_sendv,
	.sock_peername = real_sock_peername,
	.sock_close = aio_sock_close,
	.log = real_log,
	.log_level = real_log_level,
};

static const struct real_backend aio_backend = {
	.turn = aio_turn,
	.fd_opened = aio_fd_opened,
	.fd_closing = aio_fd_closing,
	.accept_start = aio_accept_start,
	.accept_stop = aio_accept_stop,
};

/* The host's aio-max-nr may leave little. */
static int setup_context(struct aio *aio)
{
	int error = -EAGAIN;

	for (aio->depth_max = 1024; error == -EAGAIN && aio->depth_max >= 64; aio->depth_max /= 4) {
		error = io_setup((int)aio->depth_max, &aio->context);
		if (!error)
			break;
	}
	return error;
}

/* The eventfds are never read: by edges, every count on them is told. */
static int setup_polling(struct aio *aio)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET};

	aio->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	aio->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (aio->event_fd < 0 || aio->epoll_fd < 0 ||
	    epoll_ctl(aio->epoll_fd, EPOLL_CTL_ADD, aio->event_fd, &event) < 0 ||
	    epoll_ctl(aio->epoll_fd, EPOLL_CTL_ADD, aio->real.wake_fd, &event) < 0)
		return -errno;
	return 0;
}

int aio_new(unsigned threads, struct env **env, const char **why)
{
	struct aio *aio = calloc(1, sizeof(*aio));
	int error;

	*why = "memory";
	if (!aio)
		return -ENOMEM;
	aio->real.env.ops = &aio_ops;
	aio->real.backend = &aio_backend;
	aio->event_fd = aio->epoll_fd = -1;
	error = real_init(&aio->real, threads, why);
	if (error)
		goto free_aio;
	*why = "io_setup (see fs.aio-max-nr)";
	error = setup_context(aio);
	if (error)
		goto exit_aio;
	*why = "epoll";
	error = setup_polling(aio);
	if (error)
		goto exit_aio;
	*why = "threads for blocking calls";
	aio->blocking = real_pool_new(&aio->real, BLOCKING_THREADS);
	if (!aio->blocking) {
		error = -EAGAIN;
		goto exit_aio;
	}
	*env = &aio->real.env;
	return 0;

exit_aio:
	aio_exit(aio);
	real_exit(&aio->real);
free_aio:
	free(aio);
	return error;
}
