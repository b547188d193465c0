/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files on both real backends.
 */
#include "tests/unit/io_harness.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define RW (ENV_FILE_READ | ENV_FILE_WRITE)

static struct env_file *open_new(struct world *world, const char *name, unsigned flags)
{
	struct env_file *file;

	assert_int_equal(env_file_open(world->env, path_in(world, name),
				       RW | ENV_FILE_CREATE | ENV_FILE_EXCL | flags, &file),
			 0);
	return file;
}

static int64_t do_read(struct world *world, struct env_file *file, void *buf, size_t length,
		       uint64_t offset)
{
	struct waited waited;

	env_read(world->env, fresh(&waited), file, buf, length, offset);
	return await(world, &waited);
}

static int64_t do_write(struct world *world, struct env_file *file, const void *buf, size_t length,
			uint64_t offset, unsigned flags)
{
	struct waited waited;

	env_write(world->env, fresh(&waited), file, buf, length, offset, flags);
	return await(world, &waited);
}

static int64_t do_zero(struct world *world, struct env_file *file, uint64_t offset, uint64_t length,
		       unsigned flags)
{
	struct waited waited;

	env_zero(world->env, fresh(&waited), file, offset, length, flags);
	return await(world, &waited);
}

static int64_t do_fsync(struct world *world, struct env_file *file)
{
	struct waited waited;

	env_fsync(world->env, fresh(&waited), file);
	return await(world, &waited);
}

static void fill(uint8_t *buf, size_t length, unsigned seed)
{
	for (size_t i = 0; i < length; i++)
		buf[i] = (uint8_t)((i * 2654435761u + seed) >> 7);
}

static void write_read_back(struct world *world, unsigned flags)
{
	size_t length = 3 * 1024 * 1024;
	struct env_file *file = open_new(world, "f", flags);
	uint8_t *out = aligned_bytes(length), *in = aligned_bytes(length);
	struct env_file_info info;

	fill(out, length, 1);
	assert_int_equal(do_write(world, file, out, length, 4096, 0), length);
	assert_int_equal(do_write(world, file, out, 8192, 4096, ENV_WRITE_FUA), 8192);
	assert_int_equal(do_fsync(world, file), 0);
	assert_int_equal(do_read(world, file, in, length, 4096), length);
	assert_memory_equal(in, out, length);
	assert_int_equal(env_file_info(world->env, file, &info), 0);
	assert_int_equal(info.size_bytes, length + 4096);
	assert_false(info.block_device);
	if (flags & ENV_FILE_DIRECT && info.direct)
		assert_true(info.align_bytes >= 512 && info.align_bytes <= 4096);
	else
		assert_int_equal(info.align_bytes, 1);
	env_file_close(world->env, file);
	free(out);
	free(in);
}

static void test_direct(struct world *world)
{
	write_read_back(world, ENV_FILE_DIRECT);
}

static void test_buffered(struct world *world)
{
	write_read_back(world, 0);
}

static void test_odd_sizes(struct world *world)
{
	struct env_file *file = open_new(world, "f", 0);
	uint8_t out[1237], in[1237];

	fill(out, sizeof(out), 2);
	assert_int_equal(do_write(world, file, out, sizeof(out), 77, 0), sizeof(out));
	assert_int_equal(do_read(world, file, in, sizeof(in), 77), sizeof(in));
	assert_memory_equal(in, out, sizeof(in));
	assert_int_equal(env_file_pread(world->env, file, in, 100, 78), 0);
	assert_memory_equal(in, out + 1, 100);
	env_file_close(world->env, file);
}

static void read_past_end(struct world *world, unsigned flags)
{
	struct env_file *file = open_new(world, "f", flags);
	uint8_t *buf = aligned_bytes(16384);

	/* An end off the grid of O_DIRECT. */
	assert_int_equal(env_file_truncate(world->env, file, 8192 + 100), 0);
	assert_int_equal(do_read(world, file, buf, 8192, 0), 8192);
	assert_int_equal(do_read(world, file, buf, 16384, 0), -ENODATA);
	assert_int_equal(do_read(world, file, buf, 4096, 8192), -ENODATA);
	assert_int_equal(do_read(world, file, buf, 4096, 1 << 20), -ENODATA);
	assert_int_equal(env_file_pread(world->env, file, buf, 16384, 0), -ENODATA);
	assert_int_equal(env_file_pread(world->env, file, buf, 4096, 1 << 20), -ENODATA);
	env_file_close(world->env, file);
	free(buf);
}

static void test_past_end_direct(struct world *world)
{
	read_past_end(world, ENV_FILE_DIRECT);
}

static void test_past_end_buffered(struct world *world)
{
	read_past_end(world, 0);
}

static void test_zero(struct world *world)
{
	struct env_file *file = open_new(world, "f", ENV_FILE_DIRECT);
	uint8_t *buf = aligned_bytes(65536), *zeroes = aligned_bytes(65536);
	struct env_file_info info;
	uint64_t start, end;

	memset(buf, 0xaa, 65536);
	assert_int_equal(do_write(world, file, buf, 65536, 0, 0), 65536);
	assert_int_equal(do_zero(world, file, 8192, 8192, ENV_ZERO_PUNCH), 0);
	assert_int_equal(do_zero(world, file, 32768, 4096, 0), 0);
	/* Beyond the end: the size stays. */
	assert_int_equal(do_zero(world, file, 65536, 65536, ENV_ZERO_PUNCH), 0);
	assert_int_equal(env_file_info(world->env, file, &info), 0);
	assert_int_equal(info.size_bytes, 65536);
	assert_int_equal(do_read(world, file, buf, 65536, 0), 65536);
	assert_memory_equal(buf + 8192, zeroes, 8192);
	assert_memory_equal(buf + 32768, zeroes, 4096);
	assert_int_equal(buf[8191], 0xaa);
	assert_int_equal(buf[16384], 0xaa);
	assert_int_equal(buf[32767], 0xaa);
	assert_int_equal(buf[36864], 0xaa);

	assert_int_equal(env_file_next_data(world->env, file, 8192, &start, &end), 0);
	assert_int_equal(start, 16384);
	assert_int_equal(env_file_next_data(world->env, file, 0, &start, &end), 0);
	assert_int_equal(start, 0);
	assert_int_equal(end, 8192);
	assert_int_equal(env_file_next_data(world->env, file, 65536, &start, &end), -ENXIO);
	env_file_close(world->env, file);
	free(buf);
	free(zeroes);
}

static void test_hole_at_end(struct world *world)
{
	struct env_file *file = open_new(world, "f", 0);
	uint64_t start, end;

	assert_int_equal(env_file_truncate(world->env, file, 1 << 20), 0);
	assert_int_equal(env_file_next_data(world->env, file, 0, &start, &end), -ENXIO);
	assert_int_equal(env_file_pwrite(world->env, file, "x", 1, 524288), 0);
	assert_int_equal(env_file_next_data(world->env, file, 0, &start, &end), 0);
	assert_int_equal(start, 524288);
	assert_int_equal(env_file_next_data(world->env, file, end, &start, &end), -ENXIO);
	env_file_close(world->env, file);
}

static void test_lock(struct world *world)
{
	struct env_file *first = open_new(world, "f", ENV_FILE_LOCK), *second;
	const char *path = path_in(world, "f");

	assert_int_equal(env_file_open(world->env, path, RW | ENV_FILE_LOCK, &second),
			 -EWOULDBLOCK);
	assert_null(second);
	assert_int_equal(env_file_open(world->env, path, RW, &second), 0);
	env_file_close(world->env, second);
	/* Closing another descriptor of the file does not lose the lock. */
	assert_int_equal(env_file_open(world->env, path, RW | ENV_FILE_LOCK, &second),
			 -EWOULDBLOCK);
	env_file_close(world->env, first);
	assert_int_equal(env_file_open(world->env, path, RW | ENV_FILE_LOCK, &second), 0);
	/* It goes at the close, whoever refers to what was opened then: here a child. */
	pid_t child = fork();
	if (child == 0) {
		pause();
		_exit(0);
	}
	assert_true(child > 0);
	env_file_close(world->env, second);
	int error = env_file_open(world->env, path, RW | ENV_FILE_LOCK, &second);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	assert_int_equal(error, 0);
	env_file_close(world->env, second);
}

static void test_open_errors(struct world *world)
{
	struct env_file *file;

	assert_int_equal(env_file_open(world->env, path_in(world, "none"), RW, &file), -ENOENT);
	file = open_new(world, "f", 0);
	env_file_close(world->env, file);
	assert_int_equal(env_file_open(world->env, path_in(world, "f"),
				       RW | ENV_FILE_CREATE | ENV_FILE_EXCL, &file),
			 -EEXIST);
	assert_int_equal(env_file_open(world->env, world->dir, ENV_FILE_READ, &file), -EISDIR);
	assert_int_equal(env_file_open(world->env, "/dev/null", ENV_FILE_READ, &file), -EINVAL);
}

static void test_write_refused(struct world *world)
{
	struct env_file *file = open_new(world, "f", 0);
	uint8_t buf[512] = {0};

	env_file_close(world->env, file);
	assert_int_equal(env_file_open(world->env, path_in(world, "f"), ENV_FILE_READ, &file), 0);
	assert_int_equal(do_write(world, file, buf, sizeof(buf), 0, 0), -EBADF);
	env_file_close(world->env, file);
}

static void test_parents(struct world *world)
{
	static const char *const paths[][2] = {{"/a/b", "/a"}, {"/a", "/"},  {"/", "/"},
					       {"a", "."},     {"a/b", "a"}, {"./a", "."}};

	(void)world;
	for (unsigned i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
		char *parent = env_parent(paths[i][0]);

		assert_string_equal(parent, paths[i][1]);
		free(parent);
	}
}

static void test_names(struct world *world)
{
	struct env *env = world->env;
	struct env_file *file;
	char deep[128];

	snprintf(deep, sizeof(deep), "%s/a/b/c", world->dir);
	assert_int_equal(env_mkdir(env, deep), 0);
	assert_int_equal(env_mkdir(env, deep), 0);
	file = open_new(world, "a/b/c/f", 0);
	env_file_close(env, file);
	assert_int_equal(env_mkdir(env, path_in(world, "a/b/c/f")), -ENOTDIR);
	assert_int_equal(env_mkdir(env, path_in(world, "a/b/c/f/g")), -ENOTDIR);
	assert_int_equal(env_rename(env, path_in(world, "a/b/c/f"), path_in(world, "g")), 0);
	assert_int_equal(env_sync_dir(env, deep), 0);
	assert_int_equal(env_sync_dir(env, path_in(world, "none")), -ENOENT);
	assert_int_equal(env_sync_parent(env, path_in(world, "a/b/c/f")), 0);
	assert_int_equal(env_sync_parent(env, path_in(world, "none/f")), -ENOENT);
	assert_int_equal(env_unlink(env, path_in(world, "a/b/c/f")), -ENOENT);
	assert_int_equal(env_unlink(env, path_in(world, "g")), 0);
}

static void test_allocate(struct world *world)
{
	struct env_file *file = open_new(world, "f", 0);
	uint8_t buf[4096], in[4096];
	struct stat st;

	fill(buf, sizeof(buf), 3);
	assert_int_equal(env_file_pwrite(world->env, file, buf, sizeof(buf), 0), 0);
	assert_int_equal(env_file_allocate(world->env, file, 0, 1 << 20), 0);
	assert_int_equal(stat(path_in(world, "f"), &st), 0);
	assert_true(st.st_blocks * 512 >= 1 << 20);
	assert_int_equal(env_file_pread(world->env, file, in, sizeof(in), 0), 0);
	assert_memory_equal(in, buf, sizeof(in));
	env_file_close(world->env, file);
}

/* On a file system of 1 MiB. */
static void check_no_space(struct world *world)
{
	struct env_file *file = open_new(world, "m/f", ENV_FILE_DIRECT);
	uint8_t *buf = aligned_bytes(2 << 20);
	struct env_file_info info;

	assert_int_equal(env_file_info(world->env, file, &info), 0);
	assert_false(info.direct); /* there is no such thing on tmpfs */
	assert_int_equal(info.align_bytes, 1);
	memset(buf, 1, 2 << 20);
	assert_int_equal(env_file_allocate(world->env, file, 0, 2 << 20), -ENOSPC);
	assert_int_equal(do_write(world, file, buf, 4096, 0, 0), 4096);
	assert_int_equal(do_write(world, file, buf, 2 << 20, 0, 0), -ENOSPC);
	assert_int_equal(env_file_pwrite(world->env, file, buf, 2 << 20, 0), -ENOSPC);
	env_file_close(world->env, file);
	free(buf);
}

static void test_no_space(struct world *world)
{
	char dir[128];

	snprintf(dir, sizeof(dir), "%s/m", world->dir);
	assert_int_equal(env_mkdir(world->env, dir), 0);
	if (mount("tmpfs", dir, "tmpfs", 0, "size=1m") < 0) {
		print_message("SKIP: no space: mount: %s\n", strerror(errno));
		env_free(world->env);
		rmdir(dir);
		rmdir(world->dir);
		skip();
	}
	check_no_space(world);
	assert_int_equal(umount(dir), 0);
}

/* Many at once, more than the rings hold. */
static void test_flood(struct world *world)
{
	enum { COUNT = 3000 };
	struct env_file *file = open_new(world, "f", ENV_FILE_DIRECT);
	struct waited *waited = calloc(COUNT, sizeof(*waited));
	uint8_t *buf = aligned_bytes(4096), *in = aligned_bytes(4096);

	memset(buf, 0x5a, 4096);
	assert_int_equal(env_file_allocate(world->env, file, 0, 4096 * COUNT), 0);
	for (unsigned i = 0; i < COUNT; i++)
		env_write(world->env, fresh(&waited[i]), file, buf, 4096, 4096ull * i, 0);
	for (unsigned i = 0; i < COUNT; i++) {
		env_run_until(world->env, &waited[i].done);
		assert_int_equal(waited[i].result, 4096);
	}
	for (unsigned i = 0; i < COUNT; i += 997) {
		assert_int_equal(do_read(world, file, in, 4096, 4096ull * i), 4096);
		assert_memory_equal(in, buf, 4096);
	}
	env_file_close(world->env, file);
	free(waited);
	free(buf);
	free(in);
}

static void test_many_files(struct world *world)
{
	enum { COUNT = 1100 }; /* more than io_uring's registered descriptors */
	struct env_file *files[COUNT];
	char name[16];
	uint8_t buf[64];

	for (unsigned i = 0; i < COUNT; i++) {
		snprintf(name, sizeof(name), "f%u", i);
		if (env_file_open(world->env, path_in(world, name), RW | ENV_FILE_CREATE,
				  &files[i]) == -EMFILE) {
			files[i] = NULL;
			break;
		}
		if (i % 100 != 0 && i < 1020)
			continue;
		memset(buf, (int)i, sizeof(buf));
		assert_int_equal(do_write(world, files[i], buf, sizeof(buf), 0, 0), sizeof(buf));
	}
	for (unsigned i = 0; i < COUNT && files[i]; i++) {
		env_file_close(world->env, files[i]);
		snprintf(name, sizeof(name), "f%u", i);
		assert_int_equal(env_file_open(world->env, path_in(world, name), RW, &files[i]), 0);
		if (i % 100 == 0 || i >= 1020) {
			assert_int_equal(do_read(world, files[i], buf, sizeof(buf), 0),
					 sizeof(buf));
			assert_int_equal(buf[0], (uint8_t)i);
		}
		env_file_close(world->env, files[i]);
	}
}

/* ---- block devices ---- */

/* A loop device over a file of 1 MiB; false without them. */
static bool attach_loop(struct world *world, char device[64])
{
	char command[256];
	FILE *out;
	bool got;

	snprintf(command, sizeof(command),
		 "truncate -s 1M %s/image && losetup -f --show %s/image 2>/dev/null", world->dir,
		 world->dir);
	out = popen(command, "r");
	got = out && fgets(device, 64, out);
	if (out)
		pclose(out);
	if (got)
		device[strcspn(device, "\n")] = '\0';
	return got;
}

static void check_device(struct world *world, const char *device)
{
	uint8_t *buf = aligned_bytes(8192);
	struct env_file *file, *second;
	struct env_file_info info;
	uint64_t start, end;

	assert_int_equal(
		env_file_open(world->env, device, RW | ENV_FILE_DIRECT | ENV_FILE_LOCK, &file), 0);
	assert_int_equal(env_file_open(world->env, device, RW | ENV_FILE_LOCK, &second), -EBUSY);
	assert_int_equal(env_file_info(world->env, file, &info), 0);
	assert_int_equal(info.size_bytes, 1 << 20);
	assert_true(info.block_device);
	assert_true(info.direct && info.align_bytes >= 512);
	memset(buf, 0x77, 8192);
	assert_int_equal(do_write(world, file, buf, 8192, 8192, ENV_WRITE_FUA), 8192);
	assert_int_equal(do_zero(world, file, 8192, 4096, 0), 0);
	assert_int_equal(do_read(world, file, buf, 8192, 8192), 8192);
	assert_int_equal(buf[0], 0);
	assert_int_equal(buf[4096], 0x77);
	assert_int_equal(do_zero(world, file, 12288, 4096, ENV_ZERO_PUNCH), 0);
	assert_int_equal(do_fsync(world, file), 0);
	assert_int_equal(do_read(world, file, buf, 8192, (1 << 20) - 4096), -ENODATA);
	assert_int_equal(do_write(world, file, buf, 8192, 1 << 20, 0), -ENOSPC);
	assert_int_equal(env_file_allocate(world->env, file, 0, 1 << 20), 0);
	assert_int_equal(env_file_allocate(world->env, file, 4096, 1 << 20), -ENOSPC);
	assert_int_equal(env_file_truncate(world->env, file, 4096), -EINVAL);
	assert_int_equal(env_file_next_data(world->env, file, 4096, &start, &end), 0);
	assert_int_equal(start, 4096);
	assert_int_equal(end, 1 << 20);
	assert_int_equal(env_file_next_data(world->env, file, 1 << 20, &start, &end), -ENXIO);
	env_file_close(world->env, file);
	free(buf);
}

static void test_block_device(struct world *world)
{
	char device[64], command[128];

	if (!attach_loop(world, device)) {
		print_message("SKIP: block device: no loop devices here\n");
		unlink(path_in(world, "image"));
		env_free(world->env);
		rmdir(world->dir);
		skip();
	}
	check_device(world, device);
	snprintf(command, sizeof(command), "losetup -d %s", device);
	assert_int_equal(system(command), 0);
}

/* A file whose file system runs a program for each transfer, and notes each fsync. */
static bool mount_fuse(struct world *world)
{
	char command[1400];

	snprintf(command, sizeof(command),
		 "cd %s && mkdir mnt && : >synced && truncate -s 1M raw && "
		 "command -v nbdfuse nbdkit >/dev/null && { nbdfuse mnt/disk --command nbdkit -s "
		 "--exit-with-parent eval get_size='echo 1M' can_write='exit 0' can_flush='exit 0' "
		 "pread='dd if=%s/raw iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none' "
		 "pwrite='dd of=%s/raw oflag=seek_bytes conv=notrunc seek=$4 status=none' "
		 "flush='echo x >>%s/synced' >/dev/null 2>&1 & } && "
		 "for i in $(seq 100); do [ -s mnt/disk ] && exit 0; sleep 0.1; done; exit 1",
		 world->dir, world->dir, world->dir, world->dir);
	return system(command) == 0;
}

static void unmount_fuse(struct world *world)
{
	char command[256];

	snprintf(command, sizeof(command), "fusermount3 -u %s/mnt || umount %s/mnt", world->dir,
		 world->dir);
	assert_int_equal(system(command), 0);
}

static void test_fua_on_fuse(struct world *world)
{
	uint8_t *buf = aligned_bytes(8192);
	struct env_file *file;
	struct stat st;

	if (!mount_fuse(world)) {
		char command[128];

		print_message("SKIP: FUSE: no nbdfuse or nbdkit here\n");
		env_free(world->env);
		snprintf(command, sizeof(command), "rm -rf %s", world->dir);
		assert_int_equal(system(command), 0);
		free(buf);
		skip();
	}
	assert_int_equal(
		env_file_open(world->env, path_in(world, "mnt/disk"), RW | ENV_FILE_DIRECT, &file),
		0);
	assert_int_equal(do_write(world, file, buf, 8192, 4096, 0), 8192);
	assert_int_equal(stat(path_in(world, "synced"), &st), 0);
	assert_int_equal(st.st_size, 0);
	assert_int_equal(do_write(world, file, buf, 8192, 4096, ENV_WRITE_FUA), 8192);
	assert_int_equal(stat(path_in(world, "synced"), &st), 0);
	assert_true(st.st_size > 0);
	env_file_close(world->env, file);
	unmount_fuse(world);
	free(buf);
}

/* In place of the C library's, for what the environment calls: notes which folders are synced. */
static struct {
	dev_t dev;
	ino_t ino;
} synced[8];
static unsigned synced_count;

int fsync(int fd)
{
	struct stat st;

	if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode) && synced_count < 8) {
		synced[synced_count].dev = st.st_dev;
		synced[synced_count++].ino = st.st_ino;
	}
	return (int)syscall(SYS_fsync, fd);
}

static void test_folders_are_durable(struct world *world)
{
	static const char *const parents[] = {"", "x", "x/y"};
	struct stat st;

	synced_count = 0;
	assert_int_equal(env_mkdir(world->env, path_in(world, "x/y/z")), 0);
	assert_int_equal(synced_count, 3);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(stat(path_in(world, parents[i]), &st), 0);
		assert_true(synced[i].dev == st.st_dev && synced[i].ino == st.st_ino);
	}
	assert_int_equal(env_mkdir(world->env, path_in(world, "x/y/z")), 0);
	assert_int_equal(synced_count, 3);
}

static const struct io_test io_file[] = {
	{"direct I/O reads back what was written", test_direct},
	{"buffered I/O reads back what was written", test_buffered},
	{"buffered I/O has no alignment", test_odd_sizes},
	{"a direct read past the end is ENODATA", test_past_end_direct},
	{"a buffered read past the end is ENODATA", test_past_end_buffered},
	{"zeroed ranges read as zeroes and show as holes", test_zero},
	{"an unallocated end is a hole", test_hole_at_end},
	{"a locked file is refused to others", test_lock},
	{"opening tells what is wrong", test_open_errors},
	{"a write to a file opened for reading fails later", test_write_refused},
	{"the folder of a path", test_parents},
	{"folders and names", test_names},
	{"a new folder is durable where it stands", test_folders_are_durable},
	{"a write with FUA is durable on FUSE, too", test_fua_on_fuse},
	{"allocate reserves and keeps the data", test_allocate},
	{"a full file system is ENOSPC", test_no_space},
	{"a block device: size, lock, zeroes, end", test_block_device},
	{"more operations at once than the rings hold", test_flood},
	{"more files than registered descriptors", test_many_files},
};

int main(void)
{
	return RUN_ON_BACKENDS(io_file);
}
