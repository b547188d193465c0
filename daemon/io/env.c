/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dispatch of env.h onto the backend's table, and the checks that hold for every backend: what a
 * caller may never do is asserted here once, in front of io_uring, libaio and the simulator alike.
 */
#include "daemon/io/env.h"
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/io/env_ops.h"

void env_free(struct env *env)
{
	if (env)
		env->ops->free(env);
}

void env_run(struct env *env)
{
	env->ops->run(env);
}

void env_stop(struct env *env)
{
	env->ops->stop(env);
}

void env_run_until(struct env *env, const bool *flag)
{
	env->ops->run_until(env, flag);
}

const char *env_backend_name(const struct env *env)
{
	return env->ops->name;
}

/* ---- time, randomness, calls ---- */

uint64_t env_now_ns(struct env *env)
{
	return env->ops->now_ns(env);
}

uint64_t env_realtime_ns(struct env *env)
{
	return env->ops->realtime_ns(env);
}

void env_random(struct env *env, void *buf, size_t length_bytes)
{
	env->ops->random(env, buf, length_bytes);
}

void env_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_ns)
{
	assert(timer->fire);
	env->ops->timer_start(env, timer, delay_ns);
}

void env_timer_stop(struct env *env, struct env_timer *timer)
{
	env->ops->timer_stop(env, timer);
}

void env_defer(struct env *env, struct env_task *task)
{
	assert(task->call);
	env->ops->defer(env, task);
}

void env_defer_cancel(struct env *env, struct env_task *task)
{
	env->ops->defer_cancel(env, task);
}

void env_post(struct env *env, struct env_task *task)
{
	assert(task->call);
	env->ops->post(env, task);
}

void env_work_submit(struct env *env, struct env_work *work)
{
	assert(work->run && work->done);
	env->ops->work_submit(env, work);
}

/* ---- files: blocking ---- */

int env_file_open(struct env *env, const char *path, unsigned flags, struct env_file **file)
{
	assert(flags & (ENV_FILE_READ | ENV_FILE_WRITE));
	*file = NULL;
	return env->ops->file_open(env, path, flags, file);
}

void env_file_close(struct env *env, struct env_file *file)
{
	env->ops->file_close(env, file);
}

int env_file_info(struct env *env, struct env_file *file, struct env_file_info *info)
{
	return env->ops->file_info(env, file, info);
}

int env_file_truncate(struct env *env, struct env_file *file, uint64_t size_bytes)
{
	return env->ops->file_truncate(env, file, size_bytes);
}

int env_file_allocate(struct env *env, struct env_file *file, uint64_t offset, uint64_t length)
{
	return env->ops->file_allocate(env, file, offset, length);
}

int env_file_pread(struct env *env, struct env_file *file, void *buf, size_t length,
		   uint64_t offset)
{
	return env->ops->file_pread(env, file, buf, length, offset);
}

int env_file_pwrite(struct env *env, struct env_file *file, const void *buf, size_t length,
		    uint64_t offset)
{
	return env->ops->file_pwrite(env, file, buf, length, offset);
}

int env_file_sync(struct env *env, struct env_file *file)
{
	return env->ops->file_sync(env, file);
}

int env_file_next_data(struct env *env, struct env_file *file, uint64_t offset, uint64_t *start,
		       uint64_t *end)
{
	return env->ops->file_next_data(env, file, offset, start, end);
}

int env_file_clone(struct env *env, struct env_file *file, const char *path)
{
	return env->ops->file_clone(env, file, path);
}

int env_mkdir(struct env *env, const char *path)
{
	return env->ops->mkdir(env, path);
}

char *env_parent(const char *path)
{
	const char *slash = strrchr(path, '/');

	if (!slash)
		return strdup(".");
	return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

void env_mkdir_parent(struct env *env, const char *path)
{
	char *parent = env_parent(path);

	if (parent && strcmp(parent, ".") && strcmp(parent, "/"))
		env_mkdir(env, parent);
	free(parent);
}

int env_unlink(struct env *env, const char *path)
{
	return env->ops->unlink(env, path);
}

int env_rename(struct env *env, const char *from, const char *to)
{
	return env->ops->rename(env, from, to, true);
}

int env_rename_new(struct env *env, const char *from, const char *to)
{
	return env->ops->rename(env, from, to, false);
}

int env_sync_dir(struct env *env, const char *path)
{
	return env->ops->sync_dir(env, path);
}

int env_sync_parent(struct env *env, const char *path)
{
	char *parent = env_parent(path);
	int error = parent ? env_sync_dir(env, parent) : -ENOMEM;

	free(parent);
	return error;
}

/* ---- files: asynchronous ---- */

void env_read(struct env *env, struct env_op *op, struct env_file *file, void *buf, size_t length,
	      uint64_t offset)
{
	assert(op->done && file && length > 0);
	env->ops->read(env, op, file, buf, length, offset);
}

void env_write(struct env *env, struct env_op *op, struct env_file *file, const void *buf,
	       size_t length, uint64_t offset, unsigned flags)
{
	assert(op->done && file && length > 0);
	assert((flags & ~(unsigned)ENV_WRITE_FUA) == 0);
	env->ops->write(env, op, file, buf, length, offset, flags);
}

void env_fsync(struct env *env, struct env_op *op, struct env_file *file)
{
	assert(op->done && file);
	env->ops->fsync(env, op, file);
}

void env_zero(struct env *env, struct env_op *op, struct env_file *file, uint64_t offset,
	      uint64_t length, unsigned flags)
{
	assert(op->done && file && length > 0);
	assert((flags & ~(unsigned)ENV_ZERO_PUNCH) == 0);
	env->ops->zero(env, op, file, offset, length, flags);
}

/* ---- sockets ---- */

/* Sockets and listeners of every backend begin with a pointer to their environment (env_ops.h). */
static struct env *owner(void *object)
{
	return *(struct env **)object;
}

int env_listen(struct env *env, const char *addr,
	       void (*accept)(void *context, struct env_sock *sock), void *context,
	       struct env_listener **listener)
{
	assert(accept);
	*listener = NULL;
	return env->ops->listen(env, addr, accept, context, listener);
}

const char *env_listener_addr(struct env_listener *listener)
{
	return owner(listener)->ops->listener_addr(listener);
}

void env_listener_close(struct env *env, struct env_listener *listener)
{
	env->ops->listener_close(env, listener);
}

void env_connect(struct env *env, struct env_op *op, const char *addr, struct env_sock **sock)
{
	assert(op->done);
	*sock = NULL;
	env->ops->connect(env, op, addr, sock);
}

int env_sock_adopt(struct env *env, int fd, struct env_sock **sock)
{
	*sock = NULL;
	return env->ops->sock_adopt(env, fd, sock);
}

void env_recv(struct env *env, struct env_op *op, struct env_sock *sock, void *buf, size_t length)
{
	assert(op->done && sock && length > 0);
	env->ops->recv(env, op, sock, buf, length);
}

void env_sendv(struct env *env, struct env_op *op, struct env_sock *sock, struct iovec *iov,
	       unsigned count)
{
	assert(op->done && sock && count > 0 && count <= 1024);
	env->ops->sendv(env, op, sock, iov, count);
}

const char *env_sock_peername(struct env_sock *sock)
{
	return owner(sock)->ops->sock_peername(sock);
}

void env_sock_close(struct env *env, struct env_sock *sock)
{
	env->ops->sock_close(env, sock);
}

/* ---- logging ---- */

void env_log(struct env *env, enum env_log_level level, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	env->ops->log(env, level, format, args);
	va_end(args);
}

void env_log_level(struct env *env, enum env_log_level max)
{
	env->ops->log_level(env, max);
}
