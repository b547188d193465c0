/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files by blocking calls: opening (O_DIRECT, locks, alignment), sizes, whole transfers, holes,
 * directories.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>
#include "daemon/io/env_real.h"

#define ALIGN_MIN 512u
#define ALIGN_MAX 4096u

#define LOCK_WAIT_MS  2000
#define LOCK_RETRY_MS 10

/* ---- opening ---- */

static int open_flags(const char *path, unsigned flags)
{
	int o = O_CLOEXEC;
	struct stat st;

	if ((flags & (ENV_FILE_READ | ENV_FILE_WRITE)) == (ENV_FILE_READ | ENV_FILE_WRITE))
		o |= O_RDWR;
	else
		o |= flags & ENV_FILE_WRITE ? O_WRONLY : O_RDONLY;
	if (flags & ENV_FILE_CREATE)
		o |= O_CREAT | (flags & ENV_FILE_EXCL ? O_EXCL : 0);
	/* O_EXCL without O_CREAT claims a block device against mounts and other claimants. */
	if ((flags & ENV_FILE_LOCK) && stat(path, &st) == 0 && S_ISBLK(st.st_mode))
		o = (o & ~O_CREAT) | O_EXCL;
	return o;
}

static int open_retry(const char *path, int o)
{
	int fd;

	do {
		fd = open(path, o, 0600);
	} while (fd < 0 && errno == EINTR);
	return fd < 0 ? -errno : fd;
}

/* Says whether this description takes O_DIRECT; set after opening, so that a refusal leaves no
 * created file behind. Newer kernels accept it on tmpfs, where there is nothing to go around, and
 * io_uring is then only half as fast. */
static bool is_on(int fd, long type)
{
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 && fs.f_type == type;
}

static bool set_direct(int fd)
{
	int o = fcntl(fd, F_GETFL);

	return o >= 0 && fcntl(fd, F_SETFL, o | O_DIRECT) == 0;
}

/* A process that was killed may hold its locks a moment longer than it lives: the kernel gives up an
 * io_uring's registered files only later. A restart at once must not fail over that. */
static void wait_for_the_dead(void)
{
	const struct timespec pause = {.tv_nsec = LOCK_RETRY_MS * 1000000l};

	nanosleep(&pause, NULL);
}

static int lock_file(int fd, unsigned flags)
{
	struct flock lock = {
		.l_type = flags & ENV_FILE_WRITE ? F_WRLCK : F_RDLCK,
		.l_whence = SEEK_SET,
	};

	for (unsigned waited_ms = 0;; waited_ms += LOCK_RETRY_MS) {
		if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
			return 0;
		if (errno != EACCES && errno != EAGAIN)
			return -errno;
		if (waited_ms >= LOCK_WAIT_MS)
			return -EWOULDBLOCK;
		wait_for_the_dead();
	}
}

/* A lock goes with the last reference to what was opened, and io_uring may give its own up only when the ring is
 * entered next: who opens the file again before that would wait in vain. Without a lock nothing happens. */
static void unlock_file(int fd)
{
	struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};

	(void)fcntl(fd, F_OFD_SETLK, &lock);
}

static uint32_t clamp_align(uint32_t bytes)
{
	if (bytes < ALIGN_MIN)
		return ALIGN_MIN;
	return bytes > ALIGN_MAX || (bytes & (bytes - 1)) ? ALIGN_MAX : bytes;
}

/* Without a word from the file system: a read of the smallest unit tells. */
static uint32_t probe_align(int fd)
{
	void *memory;
	uint32_t align = ALIGN_MAX;

	if (posix_memalign(&memory, ALIGN_MAX, ALIGN_MAX) != 0)
		return align;
	if (pread(fd, (char *)memory + ALIGN_MIN, ALIGN_MIN, ALIGN_MIN) >= 0)
		align = ALIGN_MIN;
	free(memory);
	return align;
}

/* 0: no O_DIRECT here. */
static uint32_t direct_align(int fd, bool block_device)
{
	int sector = 0;
#ifdef STATX_DIOALIGN
	struct statx stx;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
	    (stx.stx_mask & STATX_DIOALIGN)) {
		uint32_t memory = stx.stx_dio_mem_align, offset = stx.stx_dio_offset_align;

		return offset ? clamp_align(memory > offset ? memory : offset) : 0;
	}
#endif
	if (block_device)
		return ioctl(fd, BLKSSZGET, &sector) == 0 ? clamp_align((uint32_t)sector)
							  : ALIGN_MAX;
	return probe_align(fd);
}

/* Reads that O_DIRECT would refuse at this alignment show only in use: a write-only descriptor
 * cannot be probed and gets the largest alignment. */
static int look_at(struct env_file *file, unsigned flags)
{
	struct stat st;
	uint32_t align;
	int o;

	if (fstat(file->fd, &st) < 0)
		return -errno;
	if (S_ISDIR(st.st_mode))
		return -EISDIR;
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return -EINVAL;
	file->info.block_device = S_ISBLK(st.st_mode);
	file->info.fs = st.st_dev;
	file->info.inode = st.st_ino;
	file->info.align_bytes = 1;
	/* (A device's node lies on one as a rule, the device does not.) */
	file->in_memory = !file->info.block_device && is_on(file->fd, TMPFS_MAGIC);
	file->sync_apart = !file->info.block_device && is_on(file->fd, FUSE_SUPER_MAGIC);
	if (!(flags & ENV_FILE_DIRECT) || file->in_memory || !set_direct(file->fd))
		return 0;
	align = direct_align(file->fd, file->info.block_device);
	if (align > 0) {
		file->info.align_bytes = align;
		file->info.direct = true;
		return 0;
	}
	o = fcntl(file->fd, F_GETFL);
	return fcntl(file->fd, F_SETFL, o & ~O_DIRECT) < 0 ? -errno : 0;
}

int real_file_open(struct env *env, const char *path, unsigned flags, struct env_file **out)
{
	struct env_real *real = real_of(env);
	struct env_file *file = calloc(1, sizeof(*file));
	int error;

	if (!file)
		return -ENOMEM;
	file->real = real;
	file->slot = REAL_NO_SLOT;
	file->fd = open_retry(path, open_flags(path, flags));
	/* The same for the claim on a block device (O_EXCL). */
	for (unsigned waited_ms = 0; file->fd == -EBUSY && waited_ms < LOCK_WAIT_MS;
	     waited_ms += LOCK_RETRY_MS) {
		wait_for_the_dead();
		file->fd = open_retry(path, open_flags(path, flags));
	}
	if (file->fd < 0) {
		error = file->fd;
		goto free_file;
	}
	error = look_at(file, flags);
	if (!error && (flags & ENV_FILE_LOCK))
		error = lock_file(file->fd, flags);
	if (error)
		goto close_fd;
	real->backend->fd_opened(real, file->fd, &file->slot);
	real->files++;
	*out = file;
	return 0;

close_fd:
	close(file->fd);
free_file:
	free(file);
	return error;
}

void real_file_close(struct env *env, struct env_file *file)
{
	struct env_real *real = real_of(env);

	if (!file)
		return;
	assert(file->under_way == 0); /* closed with operations under way */
	real->backend->fd_closing(real, file->slot);
	unlock_file(file->fd);
	close(file->fd);
	assert(real->files > 0);
	real->files--;
	free(file);
}

/* ---- size and space ---- */

static int file_size(const struct env_file *file, uint64_t *size_bytes)
{
	struct stat st;

	if (file->info.block_device)
		return ioctl(file->fd, BLKGETSIZE64, size_bytes) < 0 ? -errno : 0;
	if (fstat(file->fd, &st) < 0)
		return -errno;
	*size_bytes = (uint64_t)st.st_size;
	return 0;
}

int real_file_info(struct env *env, struct env_file *file, struct env_file_info *info)
{
	*info = file->info;
	return file_size(file, &info->size_bytes);
}

int real_file_truncate(struct env *env, struct env_file *file, uint64_t size_bytes)
{
	if (file->info.block_device)
		return -EINVAL;
	if (size_bytes > INT64_MAX)
		return -EFBIG;
	while (ftruncate(file->fd, (off_t)size_bytes) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

static int call_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
	if (offset > INT64_MAX || length > INT64_MAX - offset)
		return -EFBIG;
	while (fallocate(fd, mode, (off_t)offset, (off_t)length) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

static int write_zeroes(const struct env_file *file, uint64_t offset, uint64_t length)
{
	uint64_t chunk = 1024 * 1024;
	void *zeroes;
	int error = 0;

	if (posix_memalign(&zeroes, ALIGN_MAX, chunk) != 0)
		return -ENOMEM;
	memset(zeroes, 0, chunk);
	while (length > 0 && !error) {
		uint64_t part = length < chunk ? length : chunk;

		error = real_pwrite_all(file, zeroes, part, offset, 0);
		offset += part;
		length -= part;
	}
	free(zeroes);
	return error;
}

/* More would hold the loop for too long. */
#define WRITTEN_MAX (4ull << 30)

/* For file systems without fallocate(2): zeroes are written where the range lies beyond the end or
 * in a hole, so that no data is ever overwritten. */
static int allocate_by_writing(struct env *env, struct env_file *file, uint64_t offset,
			       uint64_t length)
{
	uint64_t end = offset + length, start, data_end, size;
	int error = file_size(file, &size);

	while (!error && offset < end) {
		start = end;
		data_end = end;
		if (offset < size)
			error = real_file_next_data(env, file, offset, &start, &data_end);
		if (error == -ENXIO) {
			start = data_end = end;
			error = 0;
		}
		start = start < end ? start : end;
		if (!error && start > offset)
			error = write_zeroes(file, offset, start - offset);
		offset = data_end;
	}
	return error;
}

int real_file_allocate(struct env *env, struct env_file *file, uint64_t offset, uint64_t length)
{
	uint64_t size;
	int error;

	if (length == 0)
		return 0;
	if (file->info.block_device) { /* its space is real */
		error = file_size(file, &size);
		if (error)
			return error;
		return offset > size || length > size - offset ? -ENOSPC : 0;
	}
	error = call_fallocate(file->fd, FALLOC_FL_KEEP_SIZE, offset, length);
	if (error != -EOPNOTSUPP && error != -ENOSYS)
		return error;
	return length > WRITTEN_MAX ? -EOPNOTSUPP : allocate_by_writing(env, file, offset, length);
}

int real_zero_mode(unsigned flags)
{
	return FALLOC_FL_KEEP_SIZE |
	       (flags & ENV_ZERO_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

int real_zero_range(const struct env_file *file, uint64_t offset, uint64_t length, unsigned flags)
{
	return call_fallocate(file->fd, real_zero_mode(flags), offset, length);
}

/* ---- transfers ---- */

int real_transfer_stuck(const struct env_file *file, bool write, size_t moved)
{
	if (moved == 0)
		return write ? -EIO : -ENODATA;
	/* Under O_DIRECT the rest of a transfer that ended off the grid cannot be asked for. A read
	 * does so at the end of the file only. */
	if (file->info.direct && moved % file->info.align_bytes != 0)
		return write ? -EIO : -ENODATA;
	return 0;
}

static size_t transfer_part(size_t length)
{
	return length < REAL_TRANSFER_MAX ? length : REAL_TRANSFER_MAX;
}

int real_pread_all(const struct env_file *file, void *buf, size_t length, uint64_t offset)
{
	char *p = buf;

	while (length > 0) {
		ssize_t got = pread(file->fd, p, transfer_part(length), (off_t)offset);
		int stuck;

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if ((size_t)got == length)
			return 0;
		stuck = real_transfer_stuck(file, false, (size_t)got);
		if (stuck)
			return stuck;
		p += got;
		offset += (size_t)got;
		length -= (size_t)got;
	}
	return 0;
}

int real_pwrite_all(const struct env_file *file, const void *buf, size_t length, uint64_t offset,
		    int flags)
{
	const char *p = buf;

	while (length > 0) {
		struct iovec iov = {(void *)p, transfer_part(length)};
		ssize_t put = pwritev2(file->fd, &iov, 1, (off_t)offset, flags);
		int stuck;

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return -errno;
		if ((size_t)put == length)
			return 0;
		stuck = real_transfer_stuck(file, true, (size_t)put);
		if (stuck)
			return stuck;
		p += put;
		offset += (size_t)put;
		length -= (size_t)put;
	}
	return 0;
}

int real_file_pread(struct env *env, struct env_file *file, void *buf, size_t length,
		    uint64_t offset)
{
	return real_pread_all(file, buf, length, offset);
}

int real_file_pwrite(struct env *env, struct env_file *file, const void *buf, size_t length,
		     uint64_t offset)
{
	return real_pwrite_all(file, buf, length, offset, 0);
}

int real_file_sync(struct env *env, struct env_file *file)
{
	while (fdatasync(file->fd) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

int real_file_next_data(struct env *env, struct env_file *file, uint64_t offset, uint64_t *start,
			uint64_t *end)
{
	uint64_t size;
	off_t data, hole;
	int error = file_size(file, &size);

	if (error)
		return error;
	if (offset >= size)
		return -ENXIO;
	*start = offset;
	*end = size;
	if (file->info.block_device)
		return 0;
	data = lseek(file->fd, (off_t)offset, SEEK_DATA);
	if (data < 0)
		return errno == ENXIO                           ? -ENXIO
		       : errno == EINVAL || errno == EOPNOTSUPP ? 0
								: -errno;
	hole = lseek(file->fd, data, SEEK_HOLE);
	if (hole < 0)
		return -errno;
	*start = (uint64_t)data;
	*end = (uint64_t)hole;
	return 0;
}

/* ---- names ---- */

/* Who makes a file in it durable syncs the folder, but not where that stands. Without a right to read that, as
 * durable as it can be. */
static int sync_parent(struct env *env, const char *path)
{
	int error = env_sync_parent(env, path);

	return error == -EACCES || error == -EINVAL ? 0 : error;
}

static int make_one(struct env *env, const char *path)
{
	struct stat st;

	if (mkdir(path, 0700) == 0)
		return sync_parent(env, path);
	if (errno != EEXIST)
		return -errno;
	if (stat(path, &st) < 0)
		return -errno;
	return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

int real_mkdir(struct env *env, const char *path)
{
	char copy[PATH_MAX];
	size_t length = strlen(path);
	int error;

	if (length == 0)
		return -ENOENT;
	if (length >= sizeof(copy))
		return -ENAMETOOLONG;
	memcpy(copy, path, length + 1);
	for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		error = make_one(env, copy);
		*slash = '/';
		/* A parent that is there but may not be made anew (read-only, no permission). */
		if (error && error != -EROFS && error != -EACCES && error != -EPERM)
			return error;
	}
	return make_one(env, copy);
}

int real_unlink(struct env *env, const char *path)
{
	return unlink(path) < 0 ? -errno : 0;
}

int real_file_clone(struct env *env, struct env_file *file, const char *path)
{
	int error = 0;
	int fd = open_retry(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC);

	if (fd < 0)
		return fd;
	if (ioctl(fd, FICLONE, file->fd) < 0 || fsync(fd) < 0)
		error = -errno;
	close(fd);
	if (!error)
		return 0;
	unlink(path);
	return error == -ENOTTY || error == -EXDEV || error == -EINVAL || error == -ENOSYS
		       ? -EOPNOTSUPP
		       : error;
}

int real_rename(struct env *env, const char *from, const char *to, bool replace)
{
	struct stat st;

	if (replace)
		return rename(from, to) < 0 ? -errno : 0;
	if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -errno;
	/* A file system that cannot tell (NFS): nearly as good. */
	if (lstat(to, &st) == 0)
		return -EEXIST;
	return rename(from, to) < 0 ? -errno : 0;
}

int real_sync_dir(struct env *env, const char *path)
{
	int fd = open_retry(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int error = 0;

	if (fd < 0)
		return fd;
	if (fsync(fd) < 0)
		error = -errno;
	close(fd);
	return error;
}
