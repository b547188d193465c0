// SPDX-License-Identifier: Apache-2.0
/*
 * The blocking file calls of the simulator, what all of them do to a file, injected errors, and
 * assertions about the callers.
 */
#include "tests/sim/env_sim_disk.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/wire.h"

#define TRUNCATE_PAGES_MAX 4096u /* given back by one blocking call */

/* ---- blocking calls -------------------------------------------------------------------------------------- */

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

static bool is_full(const struct sim_disk *disk)
{
	return disk->options.capacity_bytes > 0 &&
	       (disk->pages_used + 1) * PAGE > disk->options.capacity_bytes;
}

static int open_clean(struct sim_env *env, const char *path, unsigned flags, struct env_file **file)
{
	struct sim_disk *disk = file_disk(env);
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
		if (is_full(disk) && sim_random(disk->sim, 2))
			return -ENOSPC;
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
	return file->flags & ENV_FILE_DIRECT ? file_disk(file->owner)->options.align_bytes : 1;
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
	struct sim_disk *disk = file_disk(file->owner);

	if (disk->options.eio_path != NULL && strstr(file->path, disk->options.eio_path) == NULL)
		return false;
	if (!sim_chance(disk->sim, ppm))
		return false;
	sim_note(disk->sim, "injected EIO: %s of %s", file->path, file->owner->machine->name);
	return true;
}

/* How many of the bytes from offset on the disk has room for. */
static uint64_t space_for(const struct sim_disk *disk, const struct inode *inode, uint64_t offset,
			  uint64_t length, bool copies)
{
	uint64_t need = 0, end = offset;

	if (disk->options.capacity_bytes == 0)
		return length;
	for (uint64_t i = offset / PAGE; end < offset + length; i++) {
		need += copies || image_page(&inode->now, i) == NULL;
		if (need > 0 && (disk->pages_used + need) * PAGE > disk->options.capacity_bytes)
			break;
		end = (i + 1) * PAGE;
	}
	return end - offset < length ? end - offset : length;
}

static int file_truncate(struct env *e, struct env_file *file, uint64_t size_bytes)
{
	struct sim_env *env = sim_env_of(e);
	uint64_t used;

	if (!sim_io(env))
		return -EIO;
	assert(file->flags & ENV_FILE_WRITE);
	if (fails(file, file_disk(env)->options.write_eio_ppm))
		return -EIO;
	used = file_disk(env)->pages_used;
	inode_change(file->inode, change_new(CHANGE_TRUNCATE, NULL, 0, size_bytes));
	assert(used <=
	       file_disk(env)->pages_used + TRUNCATE_PAGES_MAX); /* the loop would stand still */
	return 0;
}

static int file_allocate(struct env *e, struct env_file *file, uint64_t offset, uint64_t length)
{
	struct sim_env *env = sim_env_of(e);

	if (!sim_io(env))
		return -EIO;
	assert(file->flags & ENV_FILE_WRITE);
	if (space_for(file_disk(env), file->inode, offset, length, false) < length)
		return -ENOSPC;
	inode_change(file->inode, change_new(CHANGE_ALLOCATE, NULL, offset, length));
	return 0;
}

void file_assert_aligned(const struct env_file *file, const void *buf, uint64_t length,
			 uint64_t offset)
{
	uint32_t align = file_align(file);

	assert((uintptr_t)buf % align == 0);
	assert(length % align == 0);
	assert(offset % align == 0);
}

static bool in_bad_sector(const struct env_file *file, uint64_t offset, uint64_t length)
{
	const struct sim_disk_options *options = &file_disk(file->owner)->options;

	return offset < options->bad_end && offset + length > options->bad_start &&
	       (options->eio_path == NULL || strstr(file->path, options->eio_path) != NULL);
}

int file_do_read(struct env_file *file, void *buf, uint64_t length, uint64_t offset)
{
	if (fails(file, file_disk(file->owner)->options.read_eio_ppm))
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
	struct sim_disk *disk = file_disk(file->owner);

	inode_settle(disk->sim, file->inode, SIM_CRASH_POWER);
	disk->fsync_failed = true;
}

/* What there is no room for ends where the room does. */
static bool fits(struct sim_disk *disk, struct inode *inode, const struct change *change)
{
	uint64_t room;

	if (disk->options.capacity_bytes == 0 || (change->type == CHANGE_ZERO && change->punch))
		return true;
	room = space_for(disk, inode, change->offset, change->length,
			 disk->options.copies_on_write);
	if (room < change->length && room > 0 && change->type == CHANGE_WRITE)
		inode_change(inode,
			     change_new(CHANGE_WRITE, change->payload->data, change->offset, room));
	return room == change->length;
}

int file_do_change(struct env_file *file, struct change *change, bool durable)
{
	struct sim_disk *disk = file_disk(file->owner);
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
	if (!fits(disk, inode, change)) {
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
int file_do_fsync(struct env_file *file, uint64_t upto)
{
	struct sim_disk *disk = file_disk(file->owner);

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
	file_assert_aligned(file, buf, length, offset);
	return file_do_read(file, buf, length, offset);
}

static int file_pwrite(struct env *e, struct env_file *file, const void *buf, size_t length,
		       uint64_t offset)
{
	struct sim_env *env = sim_env_of(e);

	if (env->dead)
		return -EIO;
	assert(file->flags & ENV_FILE_WRITE);
	file_assert_aligned(file, buf, length, offset);
	if (!sim_io(env)) {
		return -EIO;
	}
	return file_do_change(file, change_new(CHANGE_WRITE, buf, offset, length), false);
}

static int file_sync(struct env *e, struct env_file *file)
{
	if (!sim_io(sim_env_of(e)))
		return -EIO;
	return file_do_fsync(file, file->inode->completed);
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
	struct sim_disk *disk = file_disk(env);
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
	if (name_find(file_disk(env)->now, clean) != NULL) {
		name_change_add(file_disk(env), NULL, clean, NULL);
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

	if (!file_disk(file->owner)->options.reflinks)
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
	name = name_find(file_disk(env)->now, clean_from);
	if (name != NULL && !replace && name_find(file_disk(env)->now, clean_to) != NULL) {
		error = -EEXIST;
	} else if (name != NULL && parent_exists(file_disk(env), clean_to)) {
		name_change_add(file_disk(env), clean_from, clean_to, name->inode);
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
	if (name_find(file_disk(env)->directories, clean) != NULL) {
		name_flush_directory(file_disk(env), clean);
		error = 0;
	}
	free(clean);
	return error;
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
	sim_disk_async_ops(ops);
}
