/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_file: see file.h. Every call becomes one task on a helper thread, which works below the root's
 * descriptor only; so nothing here is shared between threads but that number and the counter of
 * temporary names' random part, which the loop thread draws.
 */
#include "daemon/store/file.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/mutate.h"
#include "daemon/store/file_write.h"

#define TMP_FOLDER     ".tmp"
#define TMP_STALE_SEC  (24 * 3600)
#define ANNOUNCE_BYTES 262144u

struct file_store {
	struct store store; /* first */
	int root;           /* descriptor of the directory */
	char *url, *path;
	unsigned under_way;
};

enum task_type { TASK_PUT, TASK_GET, TASK_SIZE, TASK_LIST, TASK_DELETE };

struct found {
	char *name;
	uint64_t size_bytes;
};

struct task {
	struct env_work work;
	struct file_store *file;
	enum task_type type;
	struct env_op *op;
	char *name; /* object, or prefix for LIST */
	int64_t result;
	/* PUT */
	const struct iovec *iov;
	unsigned iov_count;
	bool gentle;
	char tmp[48];
	/* GET */
	void *buf;
	size_t length;
	uint64_t offset;
	bool announce; /* to the kernel, that it will be read; then it goes to the end of the queue */
	/* LIST */
	void (*each)(void *context, const struct store_object *object);
	void *context;
	struct found *found;
	size_t found_count, found_room;
	bool blank;
};

static int fsync_folder(int root, const char *path)
{
	int fd = openat(root, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int error = 0;

	if (fd < 0)
		return -errno;
	if (fsync(fd))
		error = -errno;
	close(fd);
	return error;
}

/* Whether the path still leads to what was opened. A directory that was moved away, or that something was mounted
 * over, could be written to all the same: where nobody looks for it. */
static int check_root(const struct file_store *file)
{
	struct stat now, opened;

	if (fstat(file->root, &opened))
		return -errno;
	if (stat(file->path, &now))
		return errno == ENOENT || errno == ENOTDIR ? -STORE_REPLACED : -errno;
	return now.st_dev == opened.st_dev && now.st_ino == opened.st_ino ? 0 : -STORE_REPLACED;
}

/* ---- put -------------------------------------------------------------------------------- */

/* Makes the folders above name; each new one is made durable in its parent. */
static int make_folders(int root, const char *name)
{
	char path[PATH_MAX];
	size_t parent = 0; /* length of the parent's path; 0: the root itself */

	snprintf(path, sizeof(path), "%s", name);
	for (size_t i = 0; path[i]; i++) {
		if (path[i] != '/')
			continue;
		path[i] = '\0';
		if (!mkdirat(root, path, 0700)) {
			char above[PATH_MAX] = ".";
			int error;

			if (parent)
				snprintf(above, sizeof(above), "%.*s", (int)parent, path);
			error = fsync_folder(root, above);
			if (error)
				return error;
		} else if (errno != EEXIST) {
			return -errno;
		}
		path[i] = '/';
		parent = i;
	}
	return 0;
}

static int fsync_parent(int root, const char *name)
{
	char path[PATH_MAX];
	char *slash;

	snprintf(path, sizeof(path), "%s", name);
	slash = strrchr(path, '/');
	if (!slash)
		return fsync_folder(root, ".");
	*slash = '\0';
	return fsync_folder(root, path);
}

/* EPERM of a link has two reasons: nobody may, or the file system (FAT, some network ones) cannot. */
static int link_error(const struct task *task, int error)
{
	int root = task->file->root;
	char probe[sizeof(task->tmp) + 8];

	if (error != -EPERM)
		return error;
	snprintf(probe, sizeof(probe), "%s.link", task->tmp);
	if (linkat(root, task->tmp, root, probe, 0))
		return errno == EPERM ? -EOPNOTSUPP : error;
	unlinkat(root, probe, 0);
	return error;
}

static int put_whole(const struct task *task, int fd)
{
	int root = task->file->root;
	int error = file_write(fd, task->iov, task->iov_count, task->gentle);

	if (!error && !MUTATE(store_put_no_fsync) && fsync(fd))
		error = -errno;
	if (!error)
		error = make_folders(root, task->name);
	if (!error && linkat(root, task->tmp, root, task->name, 0)) {
		error = -errno;
		/* A delete may have taken an empty folder away again in between. */
		if (error == -ENOENT) {
			error = make_folders(root, task->name);
			if (!error && linkat(root, task->tmp, root, task->name, 0))
				error = -errno;
		}
		error = link_error(task, error);
	}
	if (!error && !MUTATE(store_put_no_fsync))
		error = fsync_parent(root, task->name);
	return error;
}

static void put_run(struct task *task)
{
	int root = task->file->root;
	int fd, error;

	if (!faccessat(root, task->name, F_OK, AT_SYMLINK_NOFOLLOW)) {
		task->result = -EEXIST;
		return;
	}
	if (mkdirat(root, TMP_FOLDER, 0700) && errno != EEXIST) {
		task->result = -errno;
		return;
	}
	fd = openat(root, task->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0) {
		task->result = -errno;
		return;
	}
	error = put_whole(task, fd);
	if (close(fd) && !error)
		error = -errno;
	unlinkat(root, task->tmp, 0);
	task->result = error ? error : check_root(task->file); /* it took its time */
}

/* ---- get, size, delete -------------------------------------------------------------------- */

static int open_object(const struct task *task, struct stat *st)
{
	int fd = openat(task->file->root, task->name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0)
		return errno == ENOTDIR ? -ENOENT : -errno;
	if (fstat(fd, st) || !S_ISREG(st->st_mode)) {
		close(fd);
		return -ENOENT;
	}
	return fd;
}

static void get_run(struct task *task)
{
	struct stat st;
	int fd = open_object(task, &st);
	size_t got = 0;

	if (fd < 0) {
		task->result = fd;
		return;
	}
	if (task->announce) {
		posix_fadvise(fd, (off_t)task->offset, (off_t)task->length, POSIX_FADV_WILLNEED);
		close(fd);
		return;
	}
	while (got < task->length && task->offset <= INT64_MAX - got) {
		ssize_t n = pread(fd, (char *)task->buf + got, task->length - got,
				  (off_t)(task->offset + got));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			task->result = -errno;
			close(fd);
			return;
		}
		if (n == 0)
			break;
		got += (size_t)n;
	}
	close(fd);
	task->result = (int64_t)got;
}

static void size_run(struct task *task)
{
	struct stat st;
	int fd = open_object(task, &st);

	task->result = fd < 0 ? fd : st.st_size;
	if (fd >= 0)
		close(fd);
}

/* Removes the object, and the folders above it that became empty. */
static void delete_run(struct task *task)
{
	int root = task->file->root;
	char path[PATH_MAX];
	char *slash;

	if (unlinkat(root, task->name, 0)) {
		task->result = errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
		return;
	}
	task->result = fsync_parent(root, task->name);
	if (task->result == -ENOENT)
		task->result =
			0; /* another delete took the empty folder away, and made that durable */
	snprintf(path, sizeof(path), "%s", task->name);
	while ((slash = strrchr(path, '/'))) {
		*slash = '\0';
		if (unlinkat(root, path, AT_REMOVEDIR))
			break;
	}
}

/* ---- list ---------------------------------------------------------------------------------- */

static int found_add(struct task *task, const char *name, uint64_t size_bytes)
{
	char *copy;

	if (task->found_count == task->found_room) {
		size_t room = task->found_room ? task->found_room * 2 : 64;
		struct found *more = realloc(task->found, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		task->found = more;
		task->found_room = room;
	}
	copy = strdup(name);
	if (!copy)
		return -ENOMEM;
	task->found[task->found_count++] = (struct found){copy, size_bytes};
	return 0;
}

static int walk(struct task *task, const char *folder);

static int walk_entry(struct task *task, DIR *dir, const char *folder, const char *entry)
{
	char path[PATH_MAX];
	struct stat st;
	int length = snprintf(path, sizeof(path), "%s%s%s", folder, *folder ? "/" : "", entry);

	if (length >= (int)sizeof(path) || !store_name_valid(path) ||
	    (!*folder && !strcmp(entry, TMP_FOLDER)))
		return 0; /* no name of an object: nothing of ours */
	if (fstatat(dirfd(dir), entry, &st, AT_SYMLINK_NOFOLLOW))
		return errno == ENOENT ? 0 : -errno;
	if (S_ISDIR(st.st_mode))
		return walk(task, path);
	if (!S_ISREG(st.st_mode))
		return 0;
	return found_add(task, path, (uint64_t)st.st_size);
}

static int walk(struct task *task, const char *folder)
{
	struct dirent *entry;
	DIR *dir;
	int error = 0;
	int fd = openat(task->file->root, *folder ? folder : ".",
			O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0)
		return errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return -ENOMEM;
	}
	while (!error) {
		errno = 0;
		entry = readdir(dir);
		if (!entry) {
			error = -errno;
			break;
		}
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			error = walk_entry(task, dir, folder, entry->d_name);
	}
	closedir(dir);
	return error;
}

static int found_compare(const void *a, const void *b)
{
	return strcmp(((const struct found *)a)->name, ((const struct found *)b)->name);
}

/* No entry at all: the first put makes TMP_FOLDER, and nothing takes it away. */
static bool root_is_blank(int root)
{
	struct dirent *entry;
	bool blank = true;
	DIR *dir;
	int fd = openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return false;
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return false;
	}
	while (blank && (entry = readdir(dir)))
		blank = !strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
			!strcmp(entry->d_name, "lost+found");
	closedir(dir);
	return blank;
}

static void list_run(struct task *task)
{
	char folder[PATH_MAX];
	size_t length = strlen(task->name);

	/* The prefix ends with '/' or is empty (checked at the call). */
	snprintf(folder, sizeof(folder), "%.*s", (int)(length ? length - 1 : 0), task->name);
	task->result = walk(task, folder);
	if (task->found_count)
		qsort(task->found, task->found_count, sizeof(*task->found), found_compare);
	task->blank = !task->found_count && root_is_blank(task->file->root);
}

/* ---- tasks ---------------------------------------------------------------------------------- */

static void task_run(struct env_work *work)
{
	struct task *task = (struct task *)work;

	if (task->result) /* refused at the call */
		return;
	/* What is there can be read for as long as it is there. */
	if (task->type != TASK_GET && task->type != TASK_SIZE)
		task->result = check_root(task->file);
	if (task->result)
		return;
	switch (task->type) {
	case TASK_PUT:
		put_run(task);
		break;
	case TASK_GET:
		get_run(task);
		break;
	case TASK_SIZE:
		size_run(task);
		break;
	case TASK_LIST:
		list_run(task);
		break;
	case TASK_DELETE:
		delete_run(task);
		break;
	}
}

static void task_done(struct env_work *work)
{
	struct task *task = (struct task *)work;
	struct env_op *op = task->op;
	int64_t result = task->result;

	if (task->announce && !result) {
		task->announce = false;
		env_work_submit(task->file->store.env, &task->work);
		return;
	}
	if (task->type == TASK_LIST && !result)
		for (size_t i = 0; i < task->found_count; i++) {
			struct store_object object = {task->found[i].name,
						      task->found[i].size_bytes, NULL};

			task->each(task->context, &object);
		}
	if (task->type == TASK_LIST && !result) {
		task->file->store.blank = task->blank;
		result = (int64_t)task->found_count;
	}
	for (size_t i = 0; i < task->found_count; i++)
		free(task->found[i].name);
	free(task->found);
	task->file->under_way--;
	free(task->name);
	free(task);
	op->done(op, result);
}

/* Without memory for a task of some hundred bytes there is nothing to answer with. */
static struct task *task_new(struct store *store, enum task_type type, struct env_op *op,
			     const char *name)
{
	struct file_store *file = (struct file_store *)store;
	struct task *task = calloc(1, sizeof(*task));

	assert(task);
	*task = (struct task){
		.work = {.run = task_run, .done = task_done},
		.file = file,
		.type = type,
		.op = op,
		.name = strdup(name),
	};
	assert(task->name);
	if (type != TASK_LIST && (!store_name_valid(name) || !strncmp(name, ".tmp", 4)))
		task->result = -EINVAL;
	file->under_way++;
	return task;
}

static void file_put(struct store *store, struct env_op *op, const char *name,
		     const struct iovec *iov, unsigned count)
{
	struct task *task = task_new(store, TASK_PUT, op, name);
	uint64_t random[2];

	env_random(store->env, random, sizeof(random));
	snprintf(task->tmp, sizeof(task->tmp), TMP_FOLDER "/%016llx%016llx",
		 (unsigned long long)random[0], (unsigned long long)random[1]);
	task->iov = iov;
	task->iov_count = count;
	task->gentle = store->gentle;
	env_work_submit(store->env, &task->work);
}

static void file_get(struct store *store, struct env_op *op, const char *name, void *buf,
		     size_t length, uint64_t offset)
{
	struct task *task = task_new(store, TASK_GET, op, name);

	task->buf = buf;
	task->length = length;
	task->offset = offset;
	/* As many reads as there are helpers do not keep a disk busy. */
	task->announce = length >= ANNOUNCE_BYTES;
	env_work_submit(store->env, &task->work);
}

static void file_size(struct store *store, struct env_op *op, const char *name)
{
	env_work_submit(store->env, &task_new(store, TASK_SIZE, op, name)->work);
}

static void file_list(struct store *store, struct env_op *op, const char *prefix,
		      void (*each)(void *context, const struct store_object *object), void *context)
{
	struct task *task = task_new(store, TASK_LIST, op, prefix);
	size_t length = strlen(prefix);

	if (length) {
		if (prefix[length - 1] == '/')
			task->name[length - 1] = '\0';
		if (prefix[length - 1] != '/' || !store_name_valid(task->name))
			task->result = -EINVAL;
		task->name[length - 1] = prefix[length - 1];
	}
	task->each = each;
	task->context = context;
	env_work_submit(store->env, &task->work);
}

static void file_delete(struct store *store, struct env_op *op, const char *name)
{
	env_work_submit(store->env, &task_new(store, TASK_DELETE, op, name)->work);
}

static void file_close(struct store *store)
{
	struct file_store *file = (struct file_store *)store;

	assert(!file->under_way);
	close(file->root);
	free(file->url);
	free(file->path);
	free(file);
}

static const struct store_ops file_ops = {
	.put = file_put,
	.get = file_get,
	.size = file_size,
	.list = file_list,
	.delete = file_delete,
	.close = file_close,
};

/* ---- opening -------------------------------------------------------------------------------- */

/* What an interrupted put left behind. A day: longer than any put that may still be under way. */
static void remove_stale(int root)
{
	time_t now = time(NULL);
	struct dirent *entry;
	DIR *dir;
	int fd = openat(root, TMP_FOLDER, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0)
		return;
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return;
	}
	while ((entry = readdir(dir))) {
		struct stat st;

		if (entry->d_name[0] != '.' &&
		    !fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) && S_ISREG(st.st_mode) &&
		    st.st_mtime < now - TMP_STALE_SEC)
			unlinkat(fd, entry->d_name, 0);
	}
	closedir(dir);
}

/* Makes path with its parents, each durable in its own parent. */
static int make_root(const char *path)
{
	char part[PATH_MAX];
	size_t length = strlen(path);

	if (length >= sizeof(part))
		return -ENAMETOOLONG;
	for (size_t i = 1; i <= length; i++) {
		if (path[i] != '/' && path[i])
			continue;
		memcpy(part, path, i);
		part[i] = '\0';
		if (mkdir(part, 0700)) {
			if (errno != EEXIST)
				return -errno;
			continue;
		}
		snprintf(part + i, sizeof(part) - i, "/..");
		fsync_folder(AT_FDCWD, part);
	}
	return 0;
}

int store_file_open(struct env *env, const char *url, const char *path, struct store **store,
		    char *why, size_t why_size)
{
	struct file_store *file;
	int error = make_root(path);
	int root = -1;

	if (!error) {
		root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (root < 0)
			error = -errno;
	}
	if (!error && faccessat(root, ".", R_OK | X_OK, AT_EACCESS))
		error = -errno;
	if (error) {
		if (root >= 0)
			close(root);
		snprintf(why, why_size, "store %s: %s", url, strerror(-error));
		return error;
	}
	file = calloc(1, sizeof(*file));
	if (file) {
		file->url = strdup(url);
		file->path = strdup(path);
	}
	if (!file || !file->url || !file->path) {
		if (file) {
			free(file->url);
			free(file->path);
		}
		free(file);
		close(root);
		snprintf(why, why_size, "store %s: out of memory", url);
		return -ENOMEM;
	}
	remove_stale(root);
	file->root = root;
	file->store = (struct store){.ops = &file_ops, .env = env, .url = file->url};
	*store = &file->store;
	return 0;
}
