/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table that a backend of env fills in: for backends only (io_uring, libaio, simulator).
 * Each entry has the contract of the env.h function of the same name. The first member of a
 * backend's struct env_sock and struct env_listener is a pointer to its environment.
 */
#ifndef OFFSITE_IO_ENV_OPS_H
#define OFFSITE_IO_ENV_OPS_H

#include <stdarg.h>
#include "daemon/io/env.h"

struct store;

struct env_ops {
	const char *name;
	void (*free)(struct env *env);
	void (*run_until)(struct env *env, const bool *flag);
	void (*stop)(struct env *env);
	void (*run)(struct env *env);

	uint64_t (*now_ns)(struct env *env);
	uint64_t (*realtime_ns)(struct env *env);
	void (*random)(struct env *env, void *buf, size_t length_bytes);
	void (*timer_start)(struct env *env, struct env_timer *timer, uint64_t delay_ns);
	void (*timer_stop)(struct env *env, struct env_timer *timer);
	void (*defer)(struct env *env, struct env_task *task);
	void (*defer_cancel)(struct env *env, struct env_task *task);
	void (*post)(struct env *env, struct env_task *task);
	void (*work_submit)(struct env *env, struct env_work *work);

	int (*file_open)(struct env *env, const char *path, unsigned flags, struct env_file **file);
	void (*file_close)(struct env *env, struct env_file *file);
	int (*file_info)(struct env *env, struct env_file *file, struct env_file_info *info);
	int (*file_truncate)(struct env *env, struct env_file *file, uint64_t size_bytes);
	int (*file_allocate)(struct env *env, struct env_file *file, uint64_t offset,
			     uint64_t length);
	int (*file_pread)(struct env *env, struct env_file *file, void *buf, size_t length,
			  uint64_t offset);
	int (*file_pwrite)(struct env *env, struct env_file *file, const void *buf, size_t length,
			   uint64_t offset);
	int (*file_sync)(struct env *env, struct env_file *file);
	int (*file_next_data)(struct env *env, struct env_file *file, uint64_t offset,
			      uint64_t *start, uint64_t *end);
	int (*file_clone)(struct env *env, struct env_file *file, const char *path);
	int (*mkdir)(struct env *env, const char *path);
	int (*unlink)(struct env *env, const char *path);
	int (*rename)(struct env *env, const char *from, const char *to, bool replace);
	int (*sync_dir)(struct env *env, const char *path);

	void (*read)(struct env *env, struct env_op *op, struct env_file *file, void *buf,
		     size_t length, uint64_t offset);
	void (*write)(struct env *env, struct env_op *op, struct env_file *file, const void *buf,
		      size_t length, uint64_t offset, unsigned flags);
	void (*fsync)(struct env *env, struct env_op *op, struct env_file *file);
	void (*zero)(struct env *env, struct env_op *op, struct env_file *file, uint64_t offset,
		     uint64_t length, unsigned flags);

	int (*listen)(struct env *env, const char *addr,
		      void (*accept)(void *context, struct env_sock *sock), void *context,
		      struct env_listener **listener);
	const char *(*listener_addr)(struct env_listener *listener);
	void (*listener_close)(struct env *env, struct env_listener *listener);
	void (*connect)(struct env *env, struct env_op *op, const char *addr,
			struct env_sock **sock);
	int (*sock_adopt)(struct env *env, int fd, struct env_sock **sock);
	void (*recv)(struct env *env, struct env_op *op, struct env_sock *sock, void *buf,
		     size_t length);
	void (*sendv)(struct env *env, struct env_op *op, struct env_sock *sock, struct iovec *iov,
		      unsigned count);
	const char *(*sock_peername)(struct env_sock *sock);
	void (*sock_close)(struct env *env, struct env_sock *sock);

	void (*log)(struct env *env, enum env_log_level level, const char *format, va_list args);
	void (*log_level)(struct env *env, enum env_log_level max);

	/* Opens the object store behind a URL, or NULL where the backend leaves that to
	 * daemon/store (every real environment). The simulator sets it. */
	int (*store_open)(struct env *env, const char *url, struct store **store, char *why,
			  size_t why_size);
};

#endif
