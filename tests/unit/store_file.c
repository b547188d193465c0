/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of a store, held to a directory, on both real backends. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/store/store.h"
#include "tests/unit/on_backends.h"

struct world {
	struct env *env;
	struct store *store;
	char dir[64];
	char path[96];
};

struct call {
	struct env_op op;
	bool done;
	int64_t result;
	char listed[1024];
};

static void call_done(struct env_op *op, int64_t result)
{
	struct call *call = (struct call *)op;

	assert_false(call->done);
	call->done = true;
	call->result = result;
}

static int64_t put(struct world *w, const char *name, const char *a, const char *b)
{
	struct call call = {.op.done = call_done};
	struct iovec iov[3] = {{(void *)a, strlen(a)}, {NULL, 0}, {(void *)b, strlen(b)}};

	w->store->ops->put(w->store, &call.op, name, iov, 3);
	assert_false(call.done);
	env_run_until(w->env, &call.done);
	assert_ptr_equal(iov[0].iov_base, a);
	assert_int_equal(iov[0].iov_len, strlen(a));
	return call.result;
}

static int64_t get(struct world *w, const char *name, char *buf, size_t length, uint64_t offset)
{
	struct call call = {.op.done = call_done};

	w->store->ops->get(w->store, &call.op, name, buf, length, offset);
	env_run_until(w->env, &call.done);
	return call.result;
}

static int64_t size(struct world *w, const char *name)
{
	struct call call = {.op.done = call_done};

	w->store->ops->size(w->store, &call.op, name);
	env_run_until(w->env, &call.done);
	return call.result;
}

static int64_t delete (struct world *w, const char *name)
{
	struct call call = {.op.done = call_done};

	w->store->ops->delete (w->store, &call.op, name);
	env_run_until(w->env, &call.done);
	return call.result;
}

static void listed(void *context, const struct store_object *object)
{
	struct call *call = context;
	size_t used = strlen(call->listed);

	assert_false(call->done);
	snprintf(call->listed + used, sizeof(call->listed) - used, "%s:%llu ", object->name,
		 (unsigned long long)object->size_bytes);
}

static int64_t list(struct world *w, const char *prefix, char *text)
{
	struct call call = {.op.done = call_done};

	w->store->ops->list(w->store, &call.op, prefix, listed, &call);
	env_run_until(w->env, &call.done);
	strcpy(text, call.listed);
	return call.result;
}

static void open_store(struct world *w, const char *path)
{
	char url[128], why[256] = "";

	snprintf(url, sizeof(url), "file:%s", path);
	if (store_open(w->env, url, &w->store, why, sizeof(why)))
		fail_msg("%s", why);
	assert_string_equal(w->store->url, url);
}

static int setup(void **state, enum env_backend backend)
{
	struct world *w = calloc(1, sizeof(*w));

	*state = NULL;
	if (!backend_begin(backend, "/tmp/offsite-store-XXXXXX", &w->env, w->dir)) {
		free(w);
		return 0;
	}
	snprintf(w->path, sizeof(w->path), "%s/deep/down/store", w->dir);
	open_store(w, w->path);
	*state = w;
	return 0;
}

SETUP_ON_BOTH(setup)

static int teardown(void **state)
{
	struct world *w = *state;

	if (!w)
		return 0;
	store_close(w->store);
	backend_end(w->env, w->dir);
	free(w);
	return 0;
}

static void put_get_size_delete(void **state)
{
	struct world *w = world_of(state);
	char buf[64] = "";

	assert_int_equal(put(w, "a/b/c.x", "hello ", "world"), 0);
	assert_int_equal(size(w, "a/b/c.x"), 11);
	assert_int_equal(get(w, "a/b/c.x", buf, 5, 6), 5);
	assert_memory_equal(buf, "world", 5);
	assert_int_equal(get(w, "a/b/c.x", buf, 64, 6), 5);  /* only up to the end */
	assert_int_equal(get(w, "a/b/c.x", buf, 64, 11), 0); /* at it */
	assert_int_equal(get(w, "a/b/c.x", buf, 64, 1ull << 62), 0);
	assert_int_equal(get(w, "a/b/none", buf, 1, 0), -ENOENT);
	assert_int_equal(get(w, "a/b", buf, 1, 0), -ENOENT); /* a folder is no object */
	assert_int_equal(get(w, "a/b/c.x/d", buf, 1, 0), -ENOENT);
	assert_int_equal(size(w, "none"), -ENOENT);
	assert_int_equal(delete (w, "a/b/c.x"), 0);
	assert_int_equal(delete (w, "a/b/c.x"), 0);
	assert_int_equal(size(w, "a/b/c.x"), -ENOENT);
	assert_int_equal(put(w, "a/b/c.x", "", ""), 0);
	assert_int_equal(size(w, "a/b/c.x"), 0);
}

/* In pieces, so that others get at the disk: however its parts lie, it is the same object. */
static void put_gently(void **state)
{
	enum { PARTS = 700, TOTAL = 3 << 20 };
	struct world *w = world_of(state);
	struct call call = {.op.done = call_done};
	struct iovec *iov = calloc(PARTS, sizeof(*iov));
	char *data = malloc(TOTAL), *back = malloc(TOTAL + 1);
	size_t at = 0;

	for (size_t i = 0; i < TOTAL; i++)
		data[i] = (char)(i * 2654435761u >> 13);
	for (unsigned i = 0; i < PARTS; i++) {
		size_t length = i % 5 == 0 ? 0 : i % 7 == 0 ? 20000 : (i * 37u) % 5000;

		if (i == PARTS - 1 || length > TOTAL - at)
			length = TOTAL - at;
		iov[i] = (struct iovec){data + at, length};
		at += length;
	}
	w->store->gentle = true;
	w->store->ops->put(w->store, &call.op, "a/large", iov, PARTS);
	w->store->gentle = false; /* it counts at the call */
	env_run_until(w->env, &call.done);
	assert_int_equal(call.result, 0);
	assert_int_equal(get(w, "a/large", back, TOTAL + 1, 0), TOTAL);
	assert_memory_equal(data, back, TOTAL);
	w->store->gentle = true;
	assert_int_equal(put(w, "a/empty", "", ""), 0);
	assert_int_equal(size(w, "a/empty"), 0);
	w->store->gentle = false;
	free(iov);
	free(data);
	free(back);
}

/* Large ones go past the page cache where that can be, in pieces on the disk's grid: whatever their size. */
static void put_of_every_size(void **state)
{
	static const unsigned sizes[] = {
		262143,        262144,           262145,        1 << 20,
		(1 << 20) + 1, (1 << 20) + 4096, (2 << 20) - 1, (3 << 20) + 5000,
	};
	struct world *w = world_of(state);
	char *data = malloc(4 << 20), *back = malloc(4 << 20), name[32];

	for (size_t i = 0; i < 4 << 20; i++)
		data[i] = (char)(i * 2654435761u >> 13);
	for (unsigned i = 0; i < 2 * sizeof(sizes) / sizeof(sizes[0]); i++) {
		unsigned size = sizes[i / 2];
		struct iovec iov[3] = {
			{data + i, 77}, {data + i + 77, size - 78}, {data + i + size - 1, 1}};
		struct call call = {.op.done = call_done};

		snprintf(name, sizeof(name), "b/%u", i);
		w->store->gentle = i % 2;
		w->store->ops->put(w->store, &call.op, name, iov, 3);
		env_run_until(w->env, &call.done);
		assert_int_equal(call.result, 0);
		assert_int_equal(get(w, name, back, 4 << 20, 0), size);
		assert_memory_equal(data + i, back, size);
	}
	w->store->gentle = false;
	free(data);
	free(back);
}

static void a_name_is_taken_once(void **state)
{
	struct world *w = world_of(state);
	char buf[8];

	assert_int_equal(put(w, "name", "first", ""), 0);
	assert_int_equal(put(w, "name", "second", ""), -EEXIST);
	assert_int_equal(get(w, "name", buf, 8, 0), 5);
	assert_memory_equal(buf, "first", 5);
}

/* Many at once for one name: one wins, whole. */
static void races_have_one_winner(void **state)
{
	struct world *w = world_of(state);
	struct call calls[16];
	char text[16][8], buf[8];
	struct iovec iov[16];
	unsigned won = 0;

	for (unsigned i = 0; i < 16; i++) {
		snprintf(text[i], sizeof(text[i]), "text-%02u", i);
		iov[i] = (struct iovec){text[i], 7};
		calls[i] = (struct call){.op.done = call_done};
		w->store->ops->put(w->store, &calls[i].op, "x/race", &iov[i], 1);
	}
	for (unsigned i = 0; i < 16; i++) {
		env_run_until(w->env, &calls[i].done);
		if (!calls[i].result) {
			won++;
			assert_int_equal(get(w, "x/race", buf, 8, 0), 7);
			assert_memory_equal(buf, text[i], 7);
		} else {
			assert_int_equal(calls[i].result, -EEXIST);
		}
	}
	assert_int_equal(won, 1);
}

static void lists_are_sorted_and_by_prefix(void **state)
{
	struct world *w = world_of(state);
	char text[1024];

	assert_int_equal(list(w, "", text), 0);
	assert_int_equal(put(w, "b/2", "22", ""), 0);
	assert_int_equal(put(w, "b/10", "1", ""), 0);
	assert_int_equal(put(w, "a/z/1", "1", ""), 0);
	assert_int_equal(put(w, "a.b", "", ""), 0);
	assert_int_equal(put(w, "b-c/1", "333", ""), 0);
	assert_int_equal(list(w, "", text), 5);
	assert_string_equal(text, "a.b:0 a/z/1:1 b-c/1:3 b/10:1 b/2:2 ");
	assert_int_equal(list(w, "b/", text), 2);
	assert_string_equal(text, "b/10:1 b/2:2 ");
	assert_int_equal(list(w, "none/", text), 0);
	assert_int_equal(list(w, "b", text), -EINVAL);
	assert_int_equal(list(w, "../", text), -EINVAL);
	delete (w, "b/10");
	delete (w, "b/2");
	assert_int_equal(list(w, "b/", text), 0);
	assert_int_equal(put(w, "b/3", "", ""), 0); /* its folder had gone */
}

static void names_are_checked(void **state)
{
	struct world *w = world_of(state);
	const char *const bad[] = {"",    "/a",  "a/",  "a//b", "../x",   "a/../b", ".",
				   "a/.", "A/b", "a b", "a\n",  ".tmp/x", "a*b"};
	char longest[600], buf[4];

	memset(longest, 'a', sizeof(longest));
	longest[513] = '\0';
	assert_false(store_name_valid(longest));
	longest[512] = '\0';
	assert_true(store_name_valid(longest));
	assert_true(store_name_valid("a/b-c_d.e/0"));
	for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		assert_int_equal(put(w, bad[i], "x", ""), -EINVAL);
		assert_int_equal(get(w, bad[i], buf, 1, 0), -EINVAL);
		assert_int_equal(size(w, bad[i]), -EINVAL);
		assert_int_equal(delete (w, bad[i]), -EINVAL);
	}
}

static void leftovers_go_after_a_day(void **state)
{
	struct world *w = world_of(state);
	char tmp[128], old[160], new[160], text[1024];
	struct timespec times[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};

	assert_int_equal(put(w, "x", "x", ""), 0);
	snprintf(tmp, sizeof(tmp), "%s/.tmp", w->path);
	snprintf(old, sizeof(old), "%s/old", tmp);
	snprintf(new, sizeof(new), "%s/new", tmp);
	close(open(old, O_CREAT | O_WRONLY, 0600));
	close(open(new, O_CREAT | O_WRONLY, 0600));
	assert_int_equal(utimensat(AT_FDCWD, old, times, 0), 0);
	assert_int_equal(list(w, "", text), 1);
	store_close(w->store);
	open_store(w, w->path);
	assert_int_not_equal(access(old, F_OK), 0);
	assert_int_equal(access(new, F_OK), 0);
}

static void full_disk(void **state)
{
	struct world *w = world_of(state);
	char path[96], tmp[128], *block;
	struct call call = {.op.done = call_done};
	struct iovec iov;
	struct stat st;

	snprintf(path, sizeof(path), "%s/small", w->dir);
	assert_int_equal(mkdir(path, 0700), 0);
	if (mount("none", path, "tmpfs", 0, "size=1m")) {
		print_message("SKIP: cannot mount a tmpfs here\n");
		skip();
	}
	store_close(w->store);
	open_store(w, path);
	assert_int_equal(put(w, "a/small", "fits", ""), 0);
	block = calloc(1, 2 << 20);
	iov = (struct iovec){block, 2 << 20};
	w->store->ops->put(w->store, &call.op, "a/large", &iov, 1);
	env_run_until(w->env, &call.done);
	free(block);
	assert_int_equal(call.result, -ENOSPC);
	assert_int_equal(size(w, "a/large"), -ENOENT);
	assert_int_equal(put(w, "a/next", "fits again", ""), 0); /* nothing was left behind */
	snprintf(tmp, sizeof(tmp), "%s/.tmp", path);
	assert_int_equal(stat(tmp, &st), 0);
	store_close(w->store);
	assert_int_equal(umount(path), 0);
	open_store(w, w->path);
}

static bool is_empty(const char *path)
{
	return !rmdir(path) && !mkdir(path, 0700);
}

/* What was moved away, or lies below a mount point now, is not written to: nobody would find it there. */
static void a_directory_that_was_replaced(void **state)
{
	struct world *w = world_of(state);
	char away[128], text[1024], buf[8];

	snprintf(away, sizeof(away), "%s/away", w->dir);
	assert_int_equal(put(w, "a/1", "first", ""), 0);
	assert_int_equal(rename(w->path, away), 0);
	assert_int_equal(put(w, "a/2", "x", ""), -STORE_REPLACED);
	assert_int_equal(mkdir(w->path, 0700), 0);
	assert_int_equal(put(w, "a/2", "x", ""), -STORE_REPLACED);
	assert_int_equal(list(w, "a/", text), -STORE_REPLACED);
	assert_int_equal(delete (w, "a/1"), -STORE_REPLACED);
	assert_int_equal(get(w, "a/1", buf, 8, 0), 5);
	assert_true(is_empty(w->path));
	assert_int_equal(rmdir(w->path), 0);
	assert_int_equal(rename(away, w->path), 0);
	assert_int_equal(put(w, "a/2", "x", ""), 0);
	assert_int_equal(list(w, "a/", text), 2);
	if (mount("none", w->path, "tmpfs", 0, "size=1m")) {
		print_message("SKIP: cannot mount a tmpfs here\n");
		skip();
	}
	assert_int_equal(put(w, "a/3", "x", ""), -STORE_REPLACED);
	assert_int_equal(umount2(w->path, MNT_DETACH), 0);
	assert_int_equal(list(w, "a/", text), 2);
	assert_int_equal(put(w, "a/3", "x", ""), 0);
}

/* The folder that all are in goes with the last: none of them fails for it. */
static void many_are_deleted_at_once(void **state)
{
	struct world *w = world_of(state);

	for (unsigned round = 0; round < 100; round++) {
		struct call calls[8];
		char names[8][16];

		for (unsigned i = 0; i < 8; i++) {
			snprintf(names[i], sizeof(names[i]), "a/b/c%u", i);
			assert_int_equal(put(w, names[i], "x", ""), 0);
		}
		for (unsigned i = 0; i < 8; i++) {
			calls[i] = (struct call){.op.done = call_done};
			w->store->ops->delete (w->store, &calls[i].op, names[i]);
		}
		for (unsigned i = 0; i < 8; i++) {
			env_run_until(w->env, &calls[i].done);
			assert_int_equal(calls[i].result, 0);
		}
	}
}

/* Every call of it fails so from here on, in this process and what it starts. */
static bool forbid(unsigned call, unsigned error)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(filter) / sizeof(*filter), filter};

	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
	       !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

/* For a child: 0 if the put ends as expected, 77 where that cannot be tried. */
static int put_without(const char *path, unsigned call, unsigned error, bool gentle,
		       int64_t expected)
{
	struct world w = {.env = NULL};
	char why[256];
	int64_t result;

	if (!forbid(call, error))
		return 77;
	if (env_real_new(ENV_BACKEND_AIO, 1, &w.env, (const char *[1]){NULL}))
		return 77;
	if (store_open(w.env, path, &w.store, why, sizeof(why)))
		return 1;
	w.store->gentle = gentle;
	result = put(&w, "a/b", "x", "");
	store_close(w.store);
	env_free(w.env);
	return result == expected ? 0 : 2;
}

static void expect_put_without(struct world *w, unsigned call, unsigned error, bool gentle,
			       int64_t expected)
{
	int status;
	pid_t child = fork();

	if (!child)
		_exit(put_without(w->path, call, error, gentle, expected));
	assert_int_equal(waitpid(child, &status, 0), child);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
		print_message("SKIP: no seccomp or no libaio here\n");
		skip();
	}
	assert_int_equal(status, 0);
}

/* EPERM, as on FAT. */
static void no_hard_links(void **state)
{
	expect_put_without(world_of(state), SYS_linkat, EPERM, false, -EOPNOTSUPP);
	assert_non_null(strstr(store_strerror(-EOPNOTSUPP), "no hard links"));
}

/* Who is told of an error of what was written is the only one: the fsync at the end succeeds. */
static void an_error_on_the_way_to_the_disk(void **state)
{
	struct world *w = world_of(state);

	expect_put_without(w, SYS_sync_file_range, EIO, true, -EIO);
	assert_int_equal(size(w, "a/b"), -ENOENT);
	expect_put_without(w, SYS_sync_file_range, ENOSYS, true, 0);
	assert_int_equal(size(w, "a/b"), 1);
}

static void what_cannot_be_opened(void **state)
{
	struct world *w = world_of(state);
	struct store *store;
	char why[256] = "", url[128];

	assert_int_equal(store_open(w->env, "ftp://x", &store, why, sizeof(why)), -EINVAL);
	assert_non_null(strstr(why, "unknown scheme"));
	assert_int_equal(store_open(w->env, "file:rel", &store, why, sizeof(why)), -EINVAL);
	assert_non_null(strstr(why, "absolute"));
	snprintf(url, sizeof(url), "file:%s/plain", w->dir);
	close(open(url + 5, O_CREAT | O_WRONLY, 0600));
	assert_true(store_open(w->env, url, &store, why, sizeof(why)) < 0);
	assert_non_null(strstr(why, "plain"));
	assert_null(store);
	assert_int_equal(store_open(w->env, w->path, &store, why, sizeof(why)), 0);
	store_close(store);
}

#define ON_BOTH(test)                                              \
	{#test " (io_uring)", test, setup_uring, teardown, NULL},  \
	{                                                          \
#test " (libaio)", test, setup_aio, teardown, NULL \
	}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH(put_get_size_delete),
		ON_BOTH(a_name_is_taken_once),
		ON_BOTH(races_have_one_winner),
		ON_BOTH(lists_are_sorted_and_by_prefix),
		ON_BOTH(names_are_checked),
		ON_BOTH(leftovers_go_after_a_day),
		ON_BOTH(put_gently),
		ON_BOTH(put_of_every_size),
		ON_BOTH(full_disk),
		ON_BOTH(a_directory_that_was_replaced),
		ON_BOTH(many_are_deleted_at_once),
		ON_BOTH(no_hard_links),
		ON_BOTH(an_error_on_the_way_to_the_disk),
		ON_BOTH(what_cannot_be_opened),
	};

	alarm(120);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
