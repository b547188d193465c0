/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The io_uring backend. Every request to the kernel is an env_op, the caller's or one of ours (the
 * wake-up, an accept), its address the request's user_data. Requests are only written into the
 * submission ring when started; the turn hands them over and waits in a single system call.
 * Where the ring is full it is submitted at once; where even that leaves no room (the kernel is
 * short of memory) operations queue in `backlog` and start in a later turn.
 *
 * Sockets are blocking descriptors here: io_uring tries first and polls by itself, while O_NONBLOCK
 * would make it give up with EAGAIN.
 */
#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "daemon/io/env_real.h"

#define SQ_ENTRIES 1024u
#define CQ_ENTRIES 8192u
#define INLINE_MAX 65536 /* bytes of a transfer that is done on the spot */
#define SLOTS      1024  /* registered descriptors; what does not fit goes without */

enum kind {
	KIND_READ,
	KIND_WRITE,
	KIND_FSYNC,
	KIND_ZERO,
	KIND_RECV,
	KIND_SEND,
	KIND_ACCEPT,
	KIND_WAKE
};

/* Lies in env_op.priv. */
struct uring_op {
	struct real_op real;
	uint8_t kind;
	bool async; /* the kernel said EAGAIN: ask again from one of its threads */
	unsigned flags;
	union {
		struct env_file *file;
		struct env_sock *sock;
		struct env_listener *listener;
	};
	union {
		struct {
			uint8_t *buf;
			uint64_t offset;
			uint64_t length; /* still to do */
			uint64_t moved;
		};
		struct {
			struct msghdr message;
			uint64_t sent;
		};
	};
};

_Static_assert(sizeof(struct uring_op) <= sizeof(((struct env_op *)0)->priv), "priv too small");

struct uring {
	struct env_real real;
	struct io_uring ring;
	struct env_op wake;
	uint64_t wake_count;
	struct real_ops backlog;
	bool ready_first; /* the last turn handed out what was ready, without a system call */
	int slot_count;   /* 0: no registered descriptors */
	int slot_free;    /* first of the free ones, or REAL_NO_SLOT */
	int slots[SLOTS]; /* next free one */
};

static struct uring *uring_of(struct env_real *real)
{
	return (struct uring *)real;
}

static struct uring_op *uring_op(struct env_op *op)
{
	return (struct uring_op *)op->priv;
}

/* ---- starting operations ---- */

static void target(struct io_uring_sqe *sqe, int fd, int slot)
{
	if (slot == REAL_NO_SLOT)
		return;
	sqe->fd = slot;
	sqe->flags |= IOSQE_FIXED_FILE;
}

static unsigned piece(const struct uring_op *u)
{
	return u->length < REAL_TRANSFER_MAX ? (unsigned)u->length : REAL_TRANSFER_MAX;
}

static void prepare_file(struct io_uring_sqe *sqe, struct uring_op *u)
{
	int fd = u->file->fd;

	switch (u->kind) {
	case KIND_READ:
		io_uring_prep_read(sqe, fd, u->buf, piece(u), u->offset);
		break;
	case KIND_WRITE:
		io_uring_prep_write(sqe, fd, u->buf, piece(u), u->offset);
		sqe->rw_flags = (u->flags & ENV_WRITE_FUA) && !u->file->sync_apart ? RWF_DSYNC : 0;
		break;
	case KIND_FSYNC:
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
		break;
	default:
		io_uring_prep_fallocate(sqe, fd, real_zero_mode(u->flags), (off_t)u->offset,
					(off_t)u->length);
		break;
	}
	target(sqe, fd, u->file->slot);
	if (u->async)
		sqe->flags |= IOSQE_ASYNC;
}

static void prepare_sock(struct io_uring_sqe *sqe, struct uring_op *u)
{
	struct env_sock *sock = u->sock;

	if (u->kind == KIND_RECV) {
		io_uring_prep_recv(sqe, sock->fd, u->buf, piece(u), 0);
		/* Nothing was left behind last time: trying before polling is likely in vain. */
		if (!sock->more)
			sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
	} else if (u->message.msg_iovlen == 1) {
		const struct iovec *iov = u->message.msg_iov;

		io_uring_prep_send(sqe, sock->fd, iov->iov_base,
				   iov->iov_len < REAL_TRANSFER_MAX ? iov->iov_len
								    : REAL_TRANSFER_MAX,
				   MSG_NOSIGNAL | MSG_WAITALL);
	} else {
		io_uring_prep_sendmsg(sqe, sock->fd, &u->message, MSG_NOSIGNAL | MSG_WAITALL);
	}
	target(sqe, sock->fd, sock->slot);
}

static void prepare(struct uring *uring, struct io_uring_sqe *sqe, struct env_op *op)
{
	struct uring_op *u = uring_op(op);

	switch ((enum kind)u->kind) {
	case KIND_READ:
	case KIND_WRITE:
	case KIND_FSYNC:
	case KIND_ZERO:
		prepare_file(sqe, u);
		break;
	case KIND_RECV:
	case KIND_SEND:
		prepare_sock(sqe, u);
		break;
	case KIND_ACCEPT:
		io_uring_prep_accept(sqe, u->listener->fd, NULL, NULL, SOCK_CLOEXEC);
		break;
	case KIND_WAKE:
		io_uring_prep_read(sqe, uring->real.wake_fd, &uring->wake_count,
				   sizeof(uring->wake_count), 0);
		break;
	}
	io_uring_sqe_set_data(sqe, op);
}

static struct io_uring_sqe *get_sqe(struct uring *uring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);

	if (sqe)
		return sqe;
	io_uring_submit(&uring->ring);
	return io_uring_get_sqe(&uring->ring);
}

static void start(struct uring *uring, struct env_op *op)
{
	struct io_uring_sqe *sqe = uring->backlog.first ? NULL : get_sqe(uring);

	if (sqe) {
		prepare(uring, sqe, op);
		return;
	}
	real_op(op)->next = NULL;
	if (uring->backlog.last)
		real_op(uring->backlog.last)->next = op;
	else
		uring->backlog.first = op;
	uring->backlog.last = op;
}

static void start_backlog(struct uring *uring)
{
	struct env_op *op;
	struct io_uring_sqe *sqe;

	while ((op = uring->backlog.first) && (sqe = get_sqe(uring))) {
		uring->backlog.first = real_op(op)->next;
		if (!uring->backlog.first)
			uring->backlog.last = NULL;
		prepare(uring, sqe, op);
	}
}

/* Best effort: shutdown() has seen to it that the operations end. */
static void cancel(struct uring *uring, struct env_op *op)
{
	struct io_uring_sqe *sqe = get_sqe(uring);

	if (!sqe)
		return;
	io_uring_prep_cancel(sqe, op, 0);
	io_uring_sqe_set_data(sqe, NULL);
}

/* ---- completions ---- */

/* True if the operation goes on: the rest of a short transfer, or once more from a thread. */
static bool file_goes_on(struct uring *uring, struct env_op *op, int *res)
{
	struct uring_op *u = uring_op(op);
	bool transfer = u->kind == KIND_READ || u->kind == KIND_WRITE;
	int stuck;

	if (*res == -EINTR || (*res == -EAGAIN && !u->async)) {
		u->async = u->async || *res == -EAGAIN;
		start(uring, op);
		return true;
	}
	if (*res < 0 || !transfer)
		return false;
	u->moved += (unsigned)*res;
	u->length -= (unsigned)*res;
	if (u->length == 0)
		return false;
	stuck = real_transfer_stuck(u->file, u->kind == KIND_WRITE, (unsigned)*res);
	if (stuck) {
		*res = stuck;
		return false;
	}
	u->buf += *res;
	u->offset += (unsigned)*res;
	start(uring, op);
	return true;
}

/* True if it goes on with an fsync of its own; its result is still what it wrote. */
static bool sync_follows(struct uring *uring, struct env_op *op)
{
	struct uring_op *u = uring_op(op);

	if (u->kind != KIND_WRITE || !(u->flags & ENV_WRITE_FUA) || !u->file->sync_apart)
		return false;
	u->kind = KIND_FSYNC;
	u->async = false;
	start(uring, op);
	return true;
}

static void complete_file(struct uring *uring, struct env_op *op, int res)
{
	struct uring_op *u = uring_op(op);

	if (file_goes_on(uring, op, &res) || (res >= 0 && sync_follows(uring, op)))
		return;
	assert(u->file->under_way > 0);
	u->file->under_way--;
	op->done(op, res >= 0 ? (int64_t)u->moved : res); /* 0 but for a transfer */
}

static void free_closed(struct uring *uring, struct env_sock *sock)
{
	if (sock->closing && !sock->recv && !sock->send)
		real_sock_free(&uring->real, sock);
}

static void complete_recv(struct uring *uring, struct env_op *op, int res, unsigned flags)
{
	struct env_sock *sock = uring_op(op)->sock;

	if ((res == -EINTR || res == -EAGAIN) && !sock->closing) {
		start(uring, op);
		return;
	}
	sock->more = flags & IORING_CQE_F_SOCK_NONEMPTY;
	if (sock->closing && res <= 0)
		res = -ECANCELED;
	sock->recv = NULL;
	free_closed(uring, sock);
	op->done(op, res);
}

static void complete_send(struct uring *uring, struct env_op *op, int res)
{
	struct uring_op *u = uring_op(op);
	struct env_sock *sock = u->sock;
	unsigned count = (unsigned)u->message.msg_iovlen;
	int64_t result;

	if (res >= 0) { /* 0: nothing but empty pieces, which advancing drops */
		u->sent += (unsigned)res;
		real_iov_advance(&u->message.msg_iov, &count, (unsigned)res);
		u->message.msg_iovlen = count;
	}
	if (((res >= 0 && count > 0) || res == -EINTR || res == -EAGAIN) && !sock->closing) {
		start(uring, op);
		return;
	}
	result = res < 0 ? res : (int64_t)u->sent;
	if (count > 0 && sock->closing)
		result = -ECANCELED;
	sock->send = NULL;
	free_closed(uring, sock);
	op->done(op, result);
}

static void complete_accept(struct uring *uring, struct env_op *op, int res)
{
	struct env_listener *listener = uring_op(op)->listener;

	listener->armed = false;
	if (listener->closing) {
		if (res >= 0)
			close(res);
		real_listener_free(&uring->real, listener);
		return;
	}
	/* Stays alive while its owner may close it from inside accept(). */
	listener->armed = true;
	if (real_accepted(&uring->real, listener, res)) {
		start(uring, op);
		return;
	}
	listener->armed = false;
	if (listener->closing)
		real_listener_free(&uring->real, listener);
	else if (!env_timer_active(&listener->retry))
		real_timer_start(&uring->real.env, &listener->retry, REAL_ACCEPT_RETRY_NS);
}

static void complete(struct uring *uring, struct env_op *op, int res, unsigned flags)
{
	switch ((enum kind)uring_op(op)->kind) {
	case KIND_READ:
	case KIND_WRITE:
	case KIND_FSYNC:
	case KIND_ZERO:
		complete_file(uring, op, res);
		break;
	case KIND_RECV:
		complete_recv(uring, op, res, flags);
		break;
	case KIND_SEND:
		complete_send(uring, op, res);
		break;
	case KIND_ACCEPT:
		complete_accept(uring, op, res);
		break;
	case KIND_WAKE:
		start(uring, op);
		break;
	}
}

/* ---- the turn ---- */

static void submit_and_wait(struct uring *uring, uint64_t timeout_ns)
{
	struct __kernel_timespec ts = {
		.tv_sec = (long long)(timeout_ns / 1000000000u),
		.tv_nsec = (long long)(timeout_ns % 1000000000u),
	};
	struct io_uring_cqe *cqe;
	int ret;

	if (timeout_ns == 0)
		ret = io_uring_submit_and_get_events(&uring->ring);
	else
		ret = io_uring_submit_and_wait_timeout(&uring->ring, &cqe, 1,
						       timeout_ns == UINT64_MAX ? NULL : &ts, NULL);
	switch (-ret) {
	case ETIME:
	case EINTR:
	case EAGAIN: /* short of memory, or of room for completions: what is there is taken first */
	case EBUSY:
		return;
	}
	if (ret < 0)
		real_fatal("io_uring_enter", -ret);
}

static void uring_turn(struct env_real *real, uint64_t timeout_ns)
{
	struct uring *uring = uring_of(real);
	struct io_uring_cqe *cqe;
	unsigned left;

	/* What ended on the spot goes first, so that what follows from it is submitted along; but every
	 * other turn asks the kernel. */
	uring->ready_first = real->ready.first && !uring->ready_first;
	if (uring->ready_first) {
		real_turn_begun(real);
		real_call_ready(real);
		return;
	}
	if (uring->backlog.first) {
		start_backlog(uring);
		timeout_ns = uring->backlog.first ? 0 : timeout_ns;
	}
	submit_and_wait(uring, timeout_ns);
	real_turn_begun(real);
	real_call_ready(real);
	left = io_uring_cq_ready(&uring->ring);
	if (left > REAL_COMPLETIONS_MAX)
		left = REAL_COMPLETIONS_MAX;
	while (left-- > 0 && io_uring_peek_cqe(&uring->ring, &cqe) == 0) {
		struct env_op *op = io_uring_cqe_get_data(cqe);
		int res = cqe->res;
		unsigned flags = cqe->flags;

		io_uring_cqe_seen(&uring->ring, cqe);
		if (op)
			complete(uring, op, res, flags);
	}
}

/* ---- operations ---- */

static void file_op(struct env *env, struct env_op *op, struct env_file *file, struct uring_op u)
{
	u.file = file;
	*uring_op(op) = u;
	file->under_way++;
	start(uring_of(real_of(env)), op);
}

/* The ring gives transfers of a file on tmpfs to a kernel thread, though there is nothing to wait for:
 * small ones are faster by a plain system call. Whatever is unusual is left to the ring. */
static bool done_inline(struct env *env, struct env_op *op, ssize_t moved, size_t length)
{
	if (moved < 0 || (size_t)moved != length)
		return false;
	real_ready(real_of(env), op, moved);
	return true;
}

static void uring_read(struct env *env, struct env_op *op, struct env_file *file, void *buf,
		       size_t length, uint64_t offset)
{
	if (file->in_memory && length <= INLINE_MAX &&
	    done_inline(env, op, pread(file->fd, buf, length, (off_t)offset), length))
		return;
	file_op(env, op, file,
		(struct uring_op){
			.kind = KIND_READ, .buf = buf, .offset = offset, .length = length});
}

static void uring_write(struct env *env, struct env_op *op, struct env_file *file, const void *buf,
			size_t length, uint64_t offset, unsigned flags)
{
	if (file->in_memory && length <= INLINE_MAX &&
	    done_inline(env, op, pwrite(file->fd, buf, length, (off_t)offset), length))
		return;
	file_op(env, op, file,
		(struct uring_op){.kind = KIND_WRITE,
				  .flags = flags,
				  .buf = (void *)buf,
				  .offset = offset,
				  .length = length});
}

static void uring_fsync(struct env *env, struct env_op *op, struct env_file *file)
{
	if (file->in_memory) {
		real_ready(real_of(env), op, 0);
		return;
	}
	file_op(env, op, file, (struct uring_op){.kind = KIND_FSYNC});
}

static void uring_zero(struct env *env, struct env_op *op, struct env_file *file, uint64_t offset,
		       uint64_t length, unsigned flags)
{
	file_op(env, op, file,
		(struct uring_op){
			.kind = KIND_ZERO, .flags = flags, .offset = offset, .length = length});
}

static void uring_recv(struct env *env, struct env_op *op, struct env_sock *sock, void *buf,
		       size_t length)
{
	assert(!sock->recv && !sock->closing);
	*uring_op(op) =
		(struct uring_op){.kind = KIND_RECV, .sock = sock, .buf = buf, .length = length};
	sock->recv = op;
	start(uring_of(real_of(env)), op);
}

static void uring_sendv(struct env *env, struct env_op *op, struct env_sock *sock,
			struct iovec *iov, unsigned count)
{
	assert(!sock->send && !sock->closing);
	*uring_op(op) = (struct uring_op){
		.kind = KIND_SEND,
		.sock = sock,
		.message = {.msg_iov = iov, .msg_iovlen = count},
	};
	sock->send = op;
	start(uring_of(real_of(env)), op);
}

static int uring_sock_adopt(struct env *env, int fd, struct env_sock **sock)
{
	return real_sock_new(real_of(env), fd, false, sock);
}

static void uring_sock_close(struct env *env, struct env_sock *sock)
{
	struct uring *uring = uring_of(real_of(env));

	if (!sock)
		return;
	real_sock_closing(&uring->real, sock);
	if (sock->recv || sock->send)
		shutdown(sock->fd, SHUT_RDWR);
	if (sock->recv)
		cancel(uring, sock->recv);
	if (sock->send)
		cancel(uring, sock->send);
	free_closed(uring, sock);
}

static int uring_accept_start(struct env_real *real, struct env_listener *listener)
{
	listener->armed = true;
	*uring_op(&listener->op) = (struct uring_op){.kind = KIND_ACCEPT, .listener = listener};
	start(uring_of(real), &listener->op);
	return 0;
}

static void uring_accept_stop(struct env_real *real, struct env_listener *listener)
{
	if (listener->armed)
		cancel(uring_of(real), &listener->op);
	else
		real_listener_free(real, listener);
}

/* ---- registered descriptors ---- */

static void uring_fd_opened(struct env_real *real, int fd, int *slot)
{
	struct uring *uring = uring_of(real);
	int index = uring->slot_free;

	if (index == REAL_NO_SLOT ||
	    io_uring_register_files_update(&uring->ring, (unsigned)index, &fd, 1) != 1)
		return;
	uring->slot_free = uring->slots[index];
	*slot = index;
}

/* Nothing of it is under way, so the slot is free at once. */
static void uring_fd_closing(struct env_real *real, int slot)
{
	struct uring *uring = uring_of(real);
	int none = -1;

	if (slot == REAL_NO_SLOT)
		return;
	if (io_uring_register_files_update(&uring->ring, (unsigned)slot, &none, 1) != 1)
		return; /* the slot is lost, and keeps the descriptor's file open */
	uring->slots[slot] = uring->slot_free;
	uring->slot_free = slot;
}

static void register_slots(struct uring *uring)
{
	uring->slot_free = REAL_NO_SLOT;
	if (io_uring_register_files_sparse(&uring->ring, SLOTS) < 0)
		return;
	uring->slot_count = SLOTS;
	for (int i = SLOTS; i-- > 0;) {
		uring->slots[i] = uring->slot_free;
		uring->slot_free = i;
	}
}

/* ---- life ---- */

static void uring_free(struct env *env)
{
	struct uring *uring = uring_of(real_of(env));

	real_drain(&uring->real);
	io_uring_queue_exit(&uring->ring);
	real_exit(&uring->real);
	free(uring);
}

static const struct env_ops uring_ops = {
	.name = "io_uring",
	.free = uring_free,
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
	.read = uring_read,
	.write = uring_write,
	.fsync = uring_fsync,
	.zero = uring_zero,
	.listen = real_listen,
	.listener_addr = real_listener_addr,
	.listener_close = real_listener_close,
	.connect = real_connect,
	.sock_adopt = uring_sock_adopt,
	.recv = uring_recv,
	.sendv = uring_sendv,
	.sock_peername = real_sock_peername,
	.sock_close = uring_sock_close,
	.log = real_log,
	.log_level = real_log_level,
};

static const struct real_backend uring_backend = {
	.turn = uring_turn,
	.fd_opened = uring_fd_opened,
	.fd_closing = uring_fd_closing,
	.accept_start = uring_accept_start,
	.accept_stop = uring_accept_stop,
};

/* The newest way this kernel knows: completions only when asked for, one thread, no interrupts. */
static int init_ring(struct uring *uring)
{
	static const unsigned ways[] = {
		IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER |
			IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN,
		0,
	};
	int error = -EINVAL;

	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]) && error == -EINVAL; i++) {
		struct io_uring_params params = {
			.flags = ways[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
			.cq_entries = CQ_ENTRIES,
		};

		error = io_uring_queue_init_params(SQ_ENTRIES, &uring->ring, &params);
	}
	return error;
}

/* Recent enough for what is used: Linux 5.19 (MSG_WAITALL on sends, POLL_FIRST), which is told by
 * one of its opcodes, since neither has a feature bit. */
static bool ring_can(struct uring *uring)
{
	struct io_uring_probe *probe = io_uring_get_probe_ring(&uring->ring);
	unsigned needed = IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP | IORING_FEAT_FAST_POLL;
	bool can;

	if (!probe)
		return false;
	can = io_uring_opcode_supported(probe, IORING_OP_SOCKET) &&
	      (uring->ring.features & needed) == needed;
	io_uring_free_probe(probe);
	return can;
}

/* A read that really goes through the ring: policies may allow the set-up and forbid the use. */
static int try_ring(struct uring *uring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
	struct io_uring_cqe *cqe;
	int error;

	io_uring_prep_nop(sqe);
	io_uring_sqe_set_data(sqe, NULL);
	error = io_uring_submit_and_wait(&uring->ring, 1);
	if (error < 0)
		return error;
	error = io_uring_wait_cqe(&uring->ring, &cqe);
	if (error)
		return error;
	error = cqe->res;
	io_uring_cqe_seen(&uring->ring, cqe);
	return error;
}

int uring_new(unsigned threads, struct env **env, const char **why)
{
	struct uring *uring = calloc(1, sizeof(*uring));
	int error = -ENOMEM;

	*why = "memory";
	if (!uring)
		return error;
	uring->real.env.ops = &uring_ops;
	uring->real.backend = &uring_backend;
	*why = "io_uring_queue_init";
	error = init_ring(uring);
	if (error)
		goto free_uring;
	*why = "io_uring older than Linux 5.19";
	error = ring_can(uring) ? 0 : -EOPNOTSUPP;
	if (error)
		goto exit_ring;
	*why = "io_uring_enter";
	error = try_ring(uring);
	if (error)
		goto exit_ring;
	register_slots(uring);
	error = real_init(&uring->real, threads, why);
	if (error)
		goto exit_ring;
	uring_op(&uring->wake)->kind = KIND_WAKE;
	start(uring, &uring->wake);
	*env = &uring->real.env;
	return 0;

exit_ring:
	io_uring_queue_exit(&uring->ring);
free_uring:
	free(uring);
	return error;
}
