/* SPDX-License-Identifier: Apache-2.0 */
/*
 * target_file: a restore's target on a file system or a device.
 *
 * A new file is written as PATH.incomplete and gets its name when it is whole and durable. What exists
 * is changed in place: a marker beside it, durable before the first byte, says that it is a mixture;
 * it becomes another when everything is durable, which tells a volume that has this for its backing that
 * its maps are void (volume_restore_mark()). A new file has that one too: the backing may have been lost.
 */
#include "daemon/snapshot/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ZERO_BLOCK (1u << 20)

struct file_target {
	struct snapshot_target target; /* first */
	struct env *env;
	char *path;      /* as it is called in the end */
	char *work_path; /* PATH.incomplete, or path */
	char *marker;    /* "restoring"; NULL: a new file */
	char *restored;  /* what tells a volume that has this for its backing */
	struct snapshot_info info;
	struct env_file *file;
	uint64_t size_bytes; /* of a device, else of the file at first */
	bool device;
	bool untouched; /* a file made here into which nothing went yet */
	struct env_op *finish_op;
	struct env_op op;
};

/* A range being zeroed by writing, where the file system cannot do it. */
struct zeroing {
	struct env_op op;
	struct env_op *caller;
	struct file_target *f;
	void *block;
	uint64_t at, end;
	size_t step;
};

static char *text(const char *a, const char *b, const char *c)
{
	size_t length = strlen(a) + strlen(b) + strlen(c) + 1;
	char *all = must_alloc(length);

	snprintf(all, length, "%s%s%s", a, b, c);
	return all;
}

static char *mark_of(const char *path, const char *what)
{
	char *mark = volume_restore_mark(path, what);

	assert(mark);
	return mark;
}

/* ---- begin ----------------------------------------------------------------------------------- */

/* Durable when it returns. */
static int mark_write(struct file_target *f, const char *path, const struct snapshot_info *info)
{
	char line[ID128_TEXT_BYTES + 1], id[ID128_TEXT_BYTES];
	struct env_file *file;
	char *folder;
	int error;

	id128_format(&info->id, id);
	snprintf(line, sizeof(line), "%s\n", id);
	folder = env_parent(path);
	error = folder ? env_mkdir(f->env, folder)
		       : -ENOMEM; /* a device's mark has its own folder */
	free(folder);
	if (error)
		return error;
	error = env_file_open(f->env, path, ENV_FILE_WRITE | ENV_FILE_CREATE, &file);
	if (error)
		return error;
	error = env_file_pwrite(f->env, file, line, strlen(line), 0);
	if (!error)
		error = env_file_sync(f->env, file);
	env_file_close(f->env, file);
	return error ? error : env_sync_parent(f->env, path);
}

static int file_begin(struct snapshot_target *target, const struct snapshot_info *info, char *why,
		      size_t why_size)
{
	struct file_target *f = (struct file_target *)target;
	int error = 0;

	if (f->device && f->size_bytes < info->size_bytes) {
		snprintf(why, why_size, "%s: too small: has %llu bytes, the snapshot needs %llu",
			 f->path, (unsigned long long)f->size_bytes,
			 (unsigned long long)info->size_bytes);
		return -ENOSPC;
	}
	f->untouched = false;
	if (f->marker)
		error = mark_write(f, f->marker, info);
	f->info = *info;
	if (error) {
		snprintf(why, why_size, "%s: %s", f->marker, strerror(-error));
		return error;
	}
	if (!f->device)
		error = env_file_truncate(f->env, f->file, info->size_bytes);
	if (!error)
		error = env_file_sync(f->env, f->file);
	if (!error && !f->marker)
		error = env_sync_parent(f->env, f->work_path);
	if (error)
		snprintf(why, why_size, "%s: %s", f->work_path, strerror(-error));
	return error;
}

/* ---- content --------------------------------------------------------------------------------- */

static void file_read(struct snapshot_target *target, struct env_op *op, struct buf *buf,
		      uint64_t offset, uint32_t length)
{
	struct file_target *f = (struct file_target *)target;

	env_read(f->env, op, f->file, buf->data, length, offset);
}

static void file_write(struct snapshot_target *target, struct env_op *op, struct buf *buf,
		       uint64_t offset, uint32_t length)
{
	struct file_target *f = (struct file_target *)target;

	env_write(f->env, op, f->file, buf->data, length, offset, 0);
}

static void zeroing_next(struct env_op *op, int64_t result)
{
	struct zeroing *z = container_of(op, struct zeroing, op);

	if (result == -EOPNOTSUPP && !z->block) {
		z->block = aligned_alloc(BUF_ALIGN, ZERO_BLOCK);
		assert(z->block);
		memset(z->block, 0, ZERO_BLOCK);
	} else if (result >= 0) {
		z->at += z->step;
	}
	if ((result < 0 && result != -EOPNOTSUPP) || z->at == z->end) {
		struct env_op *caller = z->caller;

		free(z->block);
		free(z);
		caller->done(caller, result < 0 ? result : 0);
		return;
	}
	z->step = z->end - z->at < ZERO_BLOCK ? (size_t)(z->end - z->at) : ZERO_BLOCK;
	env_write(z->f->env, &z->op, z->f->file, z->block, z->step, z->at, 0);
}

static void file_zero(struct snapshot_target *target, struct env_op *op, uint64_t offset,
		      uint64_t length)
{
	struct file_target *f = (struct file_target *)target;
	struct zeroing *z = must_alloc(sizeof(*z));

	*z = (struct zeroing){
		.op = {.done = zeroing_next},
		.caller = op,
		.f = f,
		.at = offset,
		.end = offset + length,
		.step = (size_t)length,
	};
	env_zero(f->env, &z->op, f->file, offset, length, ENV_ZERO_PUNCH);
}

static int file_next_data(struct snapshot_target *target, uint64_t offset, uint64_t *start,
			  uint64_t *end)
{
	struct file_target *f = (struct file_target *)target;

	return env_file_next_data(f->env, f->file, offset, start, end);
}

/* ---- finish ----------------------------------------------------------------------------------- */

static int file_complete(struct file_target *f)
{
	int error;

	if (f->marker) {
		error = env_rename(f->env, f->marker, f->restored);
		if (error == -ENOENT) /* somebody took it away */
			return mark_write(f, f->restored, &f->info);
		return error ? error : env_sync_parent(f->env, f->marker);
	}
	/* It may take the place of a backing that was lost. */
	error = mark_write(f, f->restored, &f->info);
	if (error)
		return error;
	/* Somebody may have made one of that name meanwhile. */
	error = env_rename_new(f->env, f->work_path, f->path);
	return error ? error : env_sync_parent(f->env, f->path);
}

static void file_synced(struct env_op *op, int64_t result)
{
	struct file_target *f = container_of(op, struct file_target, op);

	if (!result)
		result = file_complete(f);
	f->finish_op->done(f->finish_op, result);
}

static void file_finish(struct snapshot_target *target, struct env_op *op)
{
	struct file_target *f = (struct file_target *)target;

	f->finish_op = op;
	f->op.done = file_synced;
	env_fsync(f->env, &f->op, f->file);
}

static void file_free(struct snapshot_target *target)
{
	struct file_target *f = (struct file_target *)target;

	if (f->untouched) /* before the lock goes */
		env_unlink(f->env, f->work_path);
	if (f->file)
		env_file_close(f->env, f->file);
	free(f->path);
	free(f->work_path);
	free(f->marker);
	free(f->restored);
	free(f);
}

/* ---- opening ---------------------------------------------------------------------------------- */

/* Whether there is something at path; -errno if that cannot be told. */
static int look(struct env *env, const char *path, bool *exists)
{
	struct env_file *file;
	int error = env_file_open(env, path, ENV_FILE_READ, &file);

	*exists = !error;
	if (!error)
		env_file_close(env, file);
	return error == -ENOENT ? 0 : error;
}

/* The lock may have been waited for, until another restore was complete and gave the file its name. */
static int still_named(struct file_target *f, const struct env_file_info *info)
{
	struct env_file_info named;
	struct env_file *file;
	int error = env_file_open(f->env, f->work_path, ENV_FILE_READ, &file);

	if (error)
		return error == -ENOENT ? -EWOULDBLOCK : error;
	error = env_file_info(f->env, file, &named);
	env_file_close(f->env, file);
	if (!error && (named.fs != info->fs || named.inode != info->inode))
		error = -EWOULDBLOCK;
	return error;
}

static int file_open(struct file_target *f, bool exists, char *why, size_t why_size)
{
	unsigned flags = ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_DIRECT | ENV_FILE_LOCK;
	struct env_file_info info;
	int error = env_file_open(f->env, f->work_path, flags | (exists ? 0 : ENV_FILE_CREATE),
				  &f->file);

	if (!error)
		error = env_file_info(f->env, f->file, &info);
	if (!error)
		error = still_named(f, &info);
	if (error) {
		const char *reason = strerror(-error);

		if (error == -EWOULDBLOCK)
			reason = "in use by another process (another restore?)";
		else if (error == -EBUSY)
			reason = "the device is mounted or otherwise in use";
		snprintf(why, why_size, "%s: %s", f->work_path, reason);
		return error;
	}
	f->device = info.block_device;
	f->size_bytes = info.size_bytes;
	/* Left by an interrupted restore: what is right already need not be written again. */
	f->target.compare = exists || info.size_bytes > 0;
	f->target.known_zero = !f->target.compare;
	f->untouched = !f->target.compare;
	return 0;
}

int snapshot_target_file(struct env *env, const char *path, bool overwrite,
			 struct snapshot_target **target, char *why, size_t why_size)
{
	struct file_target *f;
	bool exists;
	int error = look(env, path, &exists);

	if (!error && exists && !overwrite)
		error = -EEXIST;
	if (error) {
		snprintf(why, why_size, "%s: %s", path,
			 error == -EEXIST ? "exists; it is overwritten only with --force"
					  : strerror(-error));
		return error;
	}
	f = must_alloc(sizeof(*f));
	*f = (struct file_target){
		.target =
			{
				.begin = file_begin,
				.read = file_read,
				.write = file_write,
				.zero = file_zero,
				.finish = file_finish,
				.free = file_free,
				.next_data = file_next_data,
				.any_memory = true,
			},
		.env = env,
		.path = text(path, "", ""),
		.work_path = text(path, exists ? "" : ".incomplete", ""),
		.marker = exists ? mark_of(path, "restoring") : NULL,
		.restored = mark_of(path, "restored"),
	};
	error = file_open(f, exists, why, why_size);
	if (error) {
		file_free(&f->target);
		return error;
	}
	*target = &f->target;
	return 0;
}
