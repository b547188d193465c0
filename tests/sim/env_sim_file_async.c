// SPDX-License-Identifier: Apache-2.0
/* The asynchronous file calls of the simulator: their latency and order, and what a crash leaves of them. */
#include "tests/sim/env_sim_disk.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "protocol/wire.h"

enum disk_op_type { DISK_READ, DISK_WRITE, DISK_FSYNC, DISK_ZERO };

struct disk_op {
	struct sim_event event;
	enum disk_op_type type;
	struct env_op *op;
	struct env_file *file;
	void *buf;
	uint64_t length, offset;
	unsigned flags;
	uint32_t crc;  /* WRITE: of the buffer, which must stay as it is */
	uint64_t upto; /* FSYNC */
	bool early;    /* READ: taken when it was submitted */
	int early_result;
};

static struct change *disk_op_change(const struct disk_op *d)
{
	struct change *change;

	if (d->type == DISK_WRITE) {
		assert(crc32c(0, d->buf, d->length) == d->crc); /* changed while under way? */
		return change_new(CHANGE_WRITE, d->buf, d->offset, d->length);
	}
	change = change_new(CHANGE_ZERO, NULL, d->offset, d->length);
	change->punch = (d->flags & ENV_ZERO_PUNCH) != 0;
	return change;
}

static int64_t disk_op_do(struct disk_op *d)
{
	int error = 0;

	switch (d->type) {
	case DISK_READ:
		error = d->early ? d->early_result
				 : file_do_read(d->file, d->buf, d->length, d->offset);
		break;
	case DISK_WRITE:
		error = file_do_change(d->file, disk_op_change(d), (d->flags & ENV_WRITE_FUA) != 0);
		break;
	case DISK_FSYNC:
		error = file_do_fsync(d->file, d->upto);
		break;
	case DISK_ZERO:
		error = file_disk(d->file->owner)->options.zero_unsupported
				? -EOPNOTSUPP
				: file_do_change(d->file, disk_op_change(d), false);
		break;
	}
	if (error != 0)
		return error;
	return d->type == DISK_READ || d->type == DISK_WRITE ? (int64_t)d->length : 0;
}

static void disk_op_fire(struct sim_event *event)
{
	struct disk_op *d = (struct disk_op *)event;
	struct env_op *op = d->op;
	int64_t result = disk_op_do(d);

	d->file->under_way--;
	free(d);
	op->done(op, result);
}

/* The process is gone, the device has the request: it may happen, or in part. */
static void disk_op_orphan(struct sim *sim, struct disk_op *d, struct inode *inode)
{
	struct change *change;

	if (d->type == DISK_READ)
		return;
	if (d->type == DISK_FSYNC) {
		if (sim_random(sim, 2))
			inode_flush(inode, d->upto);
		return;
	}
	change = disk_op_change(d);
	switch (sim_random(sim, 3)) {
	case 0:
		inode_change(inode, change);
		return;
	case 1:
		break;
	default:
		inode_change_torn(sim, inode, change);
	}
	change_free(change);
}

static void disk_op_drop(struct sim_event *event, bool power)
{
	struct disk_op *d = (struct disk_op *)event;

	disk_op_orphan(d->file->owner->sim, d, d->file->inode);
	d->file->under_way--;
	free(d);
}

void sim_disk_under_way(struct sim *sim, struct sim_env *from, struct sim_disk *copy)
{
	for (struct sim_event *event = from->events; event != NULL; event = event->next) {
		struct disk_op *d = (struct disk_op *)event;

		if (event->fire == disk_op_fire && d->file->inode->copy != NULL)
			disk_op_orphan(sim, d, d->file->inode->copy);
	}
}

static struct disk_op *disk_op_new(struct env_op *op, struct env_file *file, enum disk_op_type type)
{
	struct disk_op *d = sim_alloc(sizeof(*d));

	d->event.fire = disk_op_fire;
	d->event.drop = disk_op_drop;
	d->type = type;
	d->op = op;
	d->file = file;
	file->under_way++;
	return d;
}

static void disk_op_start(struct sim_env *env, struct disk_op *d)
{
	const struct sim_disk_options *options = &file_disk(env)->options;
	uint64_t latency = sim_between(env->sim, options->latency_min_ns, options->latency_max_ns);

	if (sim_random(env->sim, 64) == 0)
		latency *= 16;
	if (d->type == DISK_FSYNC)
		latency *= 2;
	sim_event_add(env->sim, &d->event, env, latency);
}

/* Two writes under way to the same place would take effect in any order. */
static void assert_no_overlap(struct sim_env *env, const struct env_file *file, uint64_t offset,
			      uint64_t length)
{
	for (struct sim_event *event = env->events; event != NULL; event = event->next) {
		struct disk_op *d = (struct disk_op *)event;

		if (event->fire != disk_op_fire || d->file->inode != file->inode ||
		    (d->type != DISK_WRITE && d->type != DISK_ZERO))
			continue;
		assert(d->offset + d->length <= offset || offset + length <= d->offset);
	}
}

static void async_read(struct env *e, struct env_op *op, struct env_file *file, void *buf,
		       size_t length, uint64_t offset)
{
	struct sim_env *env = sim_env_of(e);
	struct disk_op *d;

	if (env->dead)
		return;
	assert(file->flags & ENV_FILE_READ);
	assert(length > 0);
	file_assert_aligned(file, buf, length, offset);
	d = disk_op_new(op, file, DISK_READ);
	d->buf = buf;
	d->length = length;
	d->offset = offset;
	d->early = sim_random(env->sim, 2);
	if (d->early)
		d->early_result = file_do_read(file, buf, length, offset);
	disk_op_start(env, d);
}

static void async_write(struct env *e, struct env_op *op, struct env_file *file, const void *buf,
			size_t length, uint64_t offset, unsigned flags)
{
	struct sim_env *env = sim_env_of(e);
	struct disk_op *d;

	if (env->dead)
		return;
	assert(file->flags & ENV_FILE_WRITE);
	assert(length > 0);
	file_assert_aligned(file, buf, length, offset);
	assert_no_overlap(env, file, offset, length);
	if (!sim_io(env))
		return;
	d = disk_op_new(op, file, DISK_WRITE);
	d->buf = (void *)(uintptr_t)buf;
	d->length = length;
	d->offset = offset;
	d->flags = flags;
	d->crc = crc32c(0, buf, length);
	disk_op_start(env, d);
}

static void async_fsync(struct env *e, struct env_op *op, struct env_file *file)
{
	struct sim_env *env = sim_env_of(e);
	struct disk_op *d;

	if (!sim_io(env))
		return;
	d = disk_op_new(op, file, DISK_FSYNC);
	d->upto = file->inode->completed;
	disk_op_start(env, d);
}

static void async_zero(struct env *e, struct env_op *op, struct env_file *file, uint64_t offset,
		       uint64_t length, unsigned flags)
{
	struct sim_env *env = sim_env_of(e);
	struct disk_op *d;

	if (env->dead)
		return;
	assert(file->flags & ENV_FILE_WRITE);
	file_assert_aligned(file, NULL, length, offset);
	assert_no_overlap(env, file, offset, length);
	if (!sim_io(env))
		return;
	d = disk_op_new(op, file, DISK_ZERO);
	d->length = length;
	d->offset = offset;
	d->flags = flags;
	disk_op_start(env, d);
}

void sim_disk_async_ops(struct env_ops *ops)
{
	ops->read = async_read;
	ops->write = async_write;
	ops->fsync = async_fsync;
	ops->zero = async_zero;
}
