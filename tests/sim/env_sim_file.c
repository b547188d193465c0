// SPDX-License-Identifier: Apache-2.0
/*
 * The file calls of the simulator, blocking and asynchronous, with their latency, injected errors, and
 * assertions about the callers.
 */
#include "tests/sim/env_sim_disk.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/wire.h"

#define TRUNCATE_PAGES_MAX 4096u /* given back by one blocking call */

struct env_file {
	struct sim_env *owner;
	struct inode *inode;
	unsigned flags, under_way;
	struct env_file *next;
	char path[];
};

/* ---- blocking calls -------------------------------------------------------------------------------------- */

static struct sim_disk *disk_of(struct sim_env *env)
{
	return env->machine->disk;
}

/* Without doubled and trailing slashes. */
static char *path_clean(const char *path)
{
	char *clean = sim_alloc(strlen(path) + 2), *to = clean;

	assert(path[0] == '/');
	for (; *path != '\0'; path++)
		if (*path != '/' || to == clean || to[-1] != '/')
			*to++ = *path;
	if (to > clean + 1 && to[-1] == '/')
		to--;
	*to = '\0';
	return clean;
}

static bool parent_exists(struct sim_disk *disk, const char *path)
{
	for (struct name *name = disk->directories; name != NULL; name = name->next)
		if (name_in_directory(path, name->path))
			return true;
	return false;
}

static int open_clean(struct sim_env *env, const char *path, unsigned flags, struct env_file **file)
{
	struct sim_disk *disk = disk_of(env);
	struct name *name = name_find(disk->now, path);
	struct env_file *f;

	if (name_find(disk->directories, path) != NULL)
		return -EISDIR;
	if (name == NULL && (!(flags & ENV_FILE_CREATE) || !parent_exists(disk, path)))
		return -ENOENT;
	if (name != NULL && (flags & ENV_FILE_CREATE) && (flags & ENV_FILE_EXCL))
		return -EEXIST;
	if (name != NULL && (flags & ENV_FILE_LOCK) && name->inode->locked_by != NULL)
		return -EWOULDBLOCK;
	if (name == NULL) {
		if (!sim_io(env))
			return -EIO;
		name_change_add(disk, NULL, path, inode_new(disk));
		name = name_find(disk->now, path);
	}
	f = sim_alloc(sizeof(*f) + strlen(path) + 1);
	strcpy(f->path, path);
	f->owner = env;
	f->flags = flags;
	f->inode = inode_get(name->inode);
	if (flags & ENV_FILE_LOCK)
		f->inode->locked_by = f;
	f->next = env->files;
	env->files = f;
	*file = f;
	return 0;
}

static int file_open(struct env *e, const char *path, unsigned flags, struct env_file **file)
{
	struct sim_env *env = sim_env_of(e);
	char *clean;
	int error;

	if (env->dead)
		return -EIO;
	clean = path_clean(path);
	error = open_clean(env, clean, flags, file);
	free(clean);
	return error;
}

static void file_free(struct env_file *file)
{
	if (file->inode->locked_by == file)
		file->inode->locked_by = NULL;
	inode_put(file->inode);
	free(file);
}

static void file_close(struct env *e, struct env_file *file)
{
	struct sim_env *env = sim_env_of(e);

	if (env->dead)
		return;
	assert(file->under_way == 0);
	for (struct env_file **p = &env->files;; p = &(*p)->next) {
		assert(*p != NULL);
		if (*p == file) {
			*p = file->next;
			break;
		}
	}
	file_free(file);
}

void sim_disk_env_gone(struct sim_env *env)
{
	while (env->files != NULL) {
		struct env_file *file = env->files;

		env->files = file->next;
		file_free(file);
	}
}

static uint32_t file_align(const struct env_file *file)
{
	return file->flags & ENV_FILE_DIRECT ? disk_of(file->owner)->options.align_bytes : 1;
}

static int file_info(struct env *e, struct env_file *file, struct env_file_info *info)
{
	if (sim_env_of(e)->dead)
		return -EIO;
	*info = (struct env_file_info){
		.size_bytes = file->inode->now.size,
		.align_bytes = file_align(file),
		.direct = (file->flags & ENV_FILE_DIRECT) != 0,
	};
	return 0;
}

/* An injected error for this file? */
static bool fails(struct env_file *file, uint32_t ppm)
{
	struct sim_disk *disk = disk_of(file->owner);

	if (disk->options.eio_path != NULL && strstr(file->path, disk->options.eio_path) == NULL)
		return false;
	if (!sim_chance(disk->sim, ppm))
		return false;
	sim_note(disk->sim, "injected EIO: %s of %s", file->path, file->owner->machine->name);
	return true;
}

static bool has_space(struct sim_disk *disk, const struct inode *inode, uint64_t offset,
		      uint64_t length)
{
	uint64_t need = 0;

	if (disk->options.capacity_bytes == 0)
		return true;
	for (uint64_t i = offset / PAGE; i * PAGE < offset + length; i++)
		if (image_page(&inode->now, i) == NULL)
			need++;
	return need == 0 || (disk->pages_used + need) * PAGE <= disk->options.capacity_bytes;
}

static int file_truncate(struct env *e, struct env_file *file, uint64_t size_bytes)
{
	struct sim_env *env = sim_env_of(e);
	uint64_t used;

	if (!sim_io(env))
		return -EIO;
	assert(file->flags & ENV_FILE_WRITE);
	if (fails(file, disk_of(env)->options.write_eio_ppm))
		return -EIO;
	used = disk_of(env)->pages_used;
	inode_change(file->inode, change_new(CHANGE_TRUNCATE, NULL, 0, size_bytes));
	assert(used <=
	       disk_of(env)->pages_used + TRUNCATE_PAGES_MAX); /* the loop would stand still */
	return 0;
}

static int file_allocate(struct env *e, struct env_file *file, uint64_t offset, uint64_t length)
{
	struct sim_env *env = sim_env_of(e);

	if (!sim_io(env))
		return -EIO;
	assert(file->flags & ENV_FILE_WRITE);
	if (!has_space(disk_of(env), file->inode, offset, length))
		return -ENOSPC;
	inode_change(file->inode, change_new(CHANGE_ALLOCATE, NULL, offset, length));
	return 0;
}

static void assert_aligned(const struct env_file *file, const void *buf, uint64_t length,
			   uint64_t offset)
{
	uint32_t align = file_align(file);

	assert((uintptr_t)buf % align == 0);
	assert(length % align == 0);
	assert(offset % align == 0);
}

static bool in_bad_sector(const struct env_file *file, uint64_t offset, uint64_t length)
{
	const struct sim_disk_options *options = &disk_of(file->owner)->options;

	return offset < options->bad_end && offset + length > options->bad_start &&
	       (options->eio_path == NULL || strstr(file->path, options->eio_path) != NULL);
}

static int do_read(struct env_file *file, void *buf, uint64_t length, uint64_t offset)
{
	if (fails(file, disk_of(file->owner)->options.read_eio_ppm))
		return -EIO;
	if (in_bad_sector(file, offset, length))
		return -EIO;
	if (offset + length > file->inode->now.size)
		return -ENODATA;
	image_read(&file->inode->now, buf, length, offset);
	return 0;
}

/* What was pending may stay or be lost, and no later fsync says so. */
static void fsync_failed(struct env_file *file)
{
	struct sim_disk *disk = disk_of(file->owner);

	inode_settle(disk->sim, file->inode, SIM_CRASH_POWER);
	disk->fsync_failed = true;
}

static int do_change(struct env_file *file, struct change *change, bool durable)
{
	struct sim_disk *disk = disk_of(file->owner);
	struct inode *inode = file->inode;

	if (in_bad_sector(file, change->offset, change->length))
		disk->options.bad_start = disk->options.bad_end = 0;
	if (fails(file, disk->options.write_eio_ppm)) {
		if (sim_random(disk->sim, 2)) /* it leaves anything of itself */
			inode_change_torn(disk->sim, inode, change);
		change_free(change);
		if (durable) /* a write with FUA is an fsync, too */
			fsync_failed(file);
		return -EIO;
	}
	if ((change->type == CHANGE_WRITE || !change->punch) &&
	    !has_space(disk, inode, change->offset, change->length)) {
		change_free(change);
		return -ENOSPC;
	}
	change->durable = durable;
	inode_change(inode, change);
	if (inode->pending > 8192) /* the kernel's own write-back */
		inode_flush(inode, inode->completed - 4096);
	return 0;
}

/* Covers changes numbered below upto. */
static int do_fsync(struct env_file *file, uint64_t upto)
{
	struct sim_disk *disk = disk_of(file->owner);

	if (fails(file, disk->options.fsync_eio_ppm)) {
		fsync_failed(file);
		return -EIO;
	}
	inode_flush(file->inode, upto);
	return 0;
}

static int file_pread(struct env *e, struct env_file *file, void *buf, size_t length,
		      uint64_t offset)
{
	if (sim_env_of(e)->dead)
		return -EIO;
	assert(file->flags & ENV_FILE_READ);
	assert_aligned(file, buf, length, offset);
	return do_read(file, buf, length, offset);
}

static int file_pwrite(struct env *e, struct env_file *file, const void *buf, size_t length,
		       uint64_t offset)
{
	struct sim_env *env = sim_env_of(e);

	if (env->dead)
		return -EIO;
	assert(file->flags & ENV_FILE_WRITE);
	assert_aligned(file, buf, length, offset);
	if (!sim_io(env)) {
		return -EIO;
	}
	return do_change(file, change_new(CHANGE_WRITE, buf, offset, length), false);
}

static int file_sync(struct env *e, struct env_file *file)
{
	if (!sim_io(sim_env_of(e)))
		return -EIO;
	return do_fsync(file, file->inode->completed);
}

static int file_next_data(struct env *e, struct env_file *file, uint64_t offset, uint64_t *start,
			  uint64_t *end)
{
	const struct image *image = &file->inode->now;
	uint64_t i, pages = (uint64_t)image->count * LEAF_PAGES;

	if (sim_env_of(e)->dead)
		return -EIO;
	for (i = offset / PAGE; i < pages && image_page(image, i) == NULL; i++)
		;
	*start = i * PAGE > offset ? i * PAGE : offset;
	if (i >= pages || *start >= image->size)
		return -ENXIO;
	for (; image_page(image, i) != NULL; i++)
		;
	*end = i * PAGE < image->size ? i * PAGE : image->size;
	return 0;
}

static int make_directory(struct env *e, const char *path)
{
	struct sim_env *env = sim_env_of(e);
	struct sim_disk *disk = disk_of(env);
	char *clean;

	if (!sim_io(env))
		return -EIO;
	clean = path_clean(path);
	for (char *p = clean + 1;; p++) {
		char c = *p;

		if (c != '/' && c != '\0')
			continue;
		*p = '\0';
		if (name_find(disk->now, clean) != NULL) {
			free(clean);
			return -ENOTDIR;
		}
		if (name_find(disk->directories, clean) == NULL)
			name_add_directory(disk, clean);
		*p = c;
		if (c == '\0')
			break;
	}
	free(clean);
	return 0;
}

static int unlink_file(struct env *e, const char *path)
{
	struct sim_env *env = sim_env_of(e);
	char *clean;
	int error = -ENOENT;

	if (!sim_io(env))
		return -EIO;
	clean = path_clean(path);
	if (name_find(disk_of(env)->now, clean) != NULL) {
		name_change_add(disk_of(env), NULL, clean, NULL);
		error = 0;
	}
	free(clean);
	return error;
}

/* Block by block: what a crash leaves of it is never taken for a copy. */
static int file_clone(struct env *e, struct env_file *file, const char *path)
{
	uint64_t size = file->inode->now.size;
	struct env_file *copy;
	uint8_t *buf;
	int error;

	if (!disk_of(file->owner)->options.reflinks)
		return -EOPNOTSUPP;
	error = env_file_open(e, path, ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE, &copy);
	if (error != 0)
		return error;
	buf = malloc(size);
	if (buf == NULL)
		abort();
	image_read(&file->inode->now, buf, size, 0);
	error = env_file_pwrite(e, copy, buf, size, 0);
	if (error == 0)
		error = env_file_sync(e, copy);
	free(buf);
	env_file_close(e, copy);
	return error;
}

static int rename_file(struct env *e, const char *from, const char *to, bool replace)
{
	struct sim_env *env = sim_env_of(e);
	char *clean_from, *clean_to;
	struct name *name;
	int error = -ENOENT;

	if (!sim_io(env))
		return -EIO;
	clean_from = path_clean(from);
	clean_to = path_clean(to);
	name = name_find(disk_of(env)->now, clean_from);
	if (name != NULL && !replace && name_find(disk_of(env)->now, clean_to) != NULL) {
		error = -EEXIST;
	} else if (name != NULL && parent_exists(disk_of(env), clean_to)) {
		name_change_add(disk_of(env), clean_from, clean_to, name->inode);
		error = 0;
	}
	free(clean_from);
	free(clean_to);
	return error;
}

static int sync_dir(struct env *e, const char *path)
{
	struct sim_env *env = sim_env_of(e);
	char *clean;
	int error = -ENOENT;

	if (!sim_io(env))
		return -EIO;
	clean = path_clean(path);
	if (name_find(disk_of(env)->directories, clean) != NULL) {
		name_flush_directory(disk_of(env), clean);
		error = 0;
	}
	free(clean);
	return error;
}

/* ---- asynchronous calls ------------------------------------------------------------------------------------- */

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
		error = d->early ? d->early_result : do_read(d->file, d->buf, d->length, d->offset);
		break;
	case DISK_WRITE:
		error = do_change(d->file, disk_op_change(d), (d->flags & ENV_WRITE_FUA) != 0);
		break;
	case DISK_FSYNC:
		error = do_fsync(d->file, d->upto);
		break;
	case DISK_ZERO:
		error = disk_of(d->file->owner)->options.zero_unsupported
				? -EOPNOTSUPP
				: do_change(d->file, disk_op_change(d), false);
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
	const struct sim_disk_options *options = &disk_of(env)->options;
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
	assert_aligned(file, buf, length, offset);
	d = disk_op_new(op, file, DISK_READ);
	d->buf = buf;
	d->length = length;
	d->offset = offset;
	d->early = sim_random(env->sim, 2);
	if (d->early)
		d->early_result = do_read(file, buf, length, offset);
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
	assert_aligned(file, buf, length, offset);
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
	assert_aligned(file, NULL, length, offset);
	assert_no_overlap(env, file, offset, length);
	if (!sim_io(env))
		return;
	d = disk_op_new(op, file, DISK_ZERO);
	d->length = length;
	d->offset = offset;
	d->flags = flags;
	disk_op_start(env, d);
}

void sim_disk_ops(struct env_ops *ops)
{
	ops->file_open = file_open;
	ops->file_close = file_close;
	ops->file_info = file_info;
	ops->file_truncate = file_truncate;
	ops->file_allocate = file_allocate;
	ops->file_pread = file_pread;
	ops->file_pwrite = file_pwrite;
	ops->file_sync = file_sync;
	ops->file_next_data = file_next_data;
	ops->file_clone = file_clone;
	ops->mkdir = make_directory;
	ops->unlink = unlink_file;
	ops->rename = rename_file;
	ops->sync_dir = sync_dir;
	ops->read = async_read;
	ops->write = async_write;
	ops->fsync = async_fsync;
	ops->zero = async_zero;
}
