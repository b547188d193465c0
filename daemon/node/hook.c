// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/hook.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/io/spawn.h"

#define LOOK_MS       50
#define HOOK_GRACE_NS 5000000000ull /* between SIGTERM and SIGKILL */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static int spawn(const struct hook *hook, int output, pid_t *pid)
{
	char *arguments[] = {(char *)(uintptr_t)hook->command, NULL};
	char *environment[HOOK_VARIABLES + 2] = {(char *)(uintptr_t)hook->path};
	posix_spawn_file_actions_t files;

	for (unsigned i = 0; i < HOOK_VARIABLES && hook->environment[i]; i++)
		environment[i + 1] = hook->environment[i];
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&files, output, 1);
	posix_spawn_file_actions_adddup2(&files, output, 2);
	int error = spawn_apart(pid, hook->command, &files, arguments, environment);
	posix_spawn_file_actions_destroy(&files);
	return error;
}

/* Keeps the last line that is not empty. */
static void take_output(struct hook *hook, const char *data, size_t length, size_t *used,
			bool *ended)
{
	for (size_t i = 0; i < length; i++) {
		if (data[i] == '\n') {
			*ended = true;
			continue;
		}
		if (*ended) {
			*ended = false;
			*used = 0;
		}
		if (*used + 1 < sizeof(hook->output)) {
			hook->output[(*used)++] = data[i] >= ' ' && data[i] <= '~' ? data[i] : '?';
			hook->output[*used] = 0;
		}
	}
}

static void read_output(struct hook *hook, int fd, size_t *used, bool *ended)
{
	char data[512];
	ssize_t got;

	while ((got = read(fd, data, sizeof(data))) > 0)
		take_output(hook, data, (size_t)got, used, ended);
}

/* It may have something to put right. */
static void end_group(pid_t pid, int *status)
{
	uint64_t end = now_ns() + HOOK_GRACE_NS;

	kill(-pid, SIGTERM);
	while (waitpid(pid, status, WNOHANG) == 0) {
		if (now_ns() >= end) {
			kill(-pid, SIGKILL);
			waitpid(pid, status, 0);
			return;
		}
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	}
	kill(-pid, SIGKILL); /* what it left behind */
}

static void follow(struct hook *hook, int fd, pid_t pid)
{
	uint64_t end = now_ns() + hook->timeout_ns;
	size_t used = 0;
	bool ended = false;
	int status = 0;

	while (waitpid(pid, &status, WNOHANG) == 0) {
		struct pollfd look = {.fd = fd, .events = POLLIN};

		if (atomic_load(&hook->cancelled) || now_ns() >= end) {
			hook->error = atomic_load(&hook->cancelled) ? -ECANCELED : -ETIMEDOUT;
			end_group(pid, &status);
			break;
		}
		/* Its end closes the pipe, unless a child of its own keeps it. */
		if (poll(&look, 1, LOOK_MS) > 0 && !(look.revents & POLLIN))
			nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
		read_output(hook, fd, &used, &ended);
	}
	read_output(hook, fd, &used, &ended);
	hook->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The daemon is spared by the OOM killer, and may use reserves to write; what it starts is and may not. */
static void give_up_privileges(pid_t pid)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", (int)pid);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	ssize_t written = write(fd, "0", 1); /* it may have ended already */
	(void)written;
	close(fd);
}

static void run(struct hook *hook)
{
	int pipe_fds[2];
	pid_t pid;

	if (pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK)) {
		hook->error = -errno;
		return;
	}
	prctl(PR_SET_IO_FLUSHER, 0, 0, 0, 0); /* of this thread, and inherited */
	hook->error = spawn(hook, pipe_fds[1], &pid);
	close(pipe_fds[1]);
	if (!hook->error)
		give_up_privileges(pid);
	if (!hook->error)
		follow(hook, pipe_fds[0], pid);
	close(pipe_fds[0]);
}

static void *run_thread(void *context)
{
	struct hook *hook = context;

	run(hook);
	env_post(hook->env, &hook->ran);
	return NULL;
}

static void ran(struct env_task *task)
{
	struct hook *hook = (struct hook *)((char *)task - offsetof(struct hook, ran));

	if (hook->has_thread)
		pthread_join(hook->thread, NULL);
	hook->done(hook);
}

/* Signals are for the main thread. */
static void start(struct hook *hook)
{
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int error = pthread_create(&hook->thread, NULL, run_thread, hook);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	hook->has_thread = !error;
	if (!error)
		return;
	hook->error = -error;
	env_defer(hook->env, &hook->ran);
}

void hook_run(struct env *env, struct hook *hook)
{
	const char *path = getenv("PATH");

	hook->error = hook->status = 0;
	hook->output[0] = 0;
	hook->env = env;
	hook->ran = (struct env_task){.call = ran};
	atomic_store(&hook->cancelled, false);
	snprintf(hook->path, sizeof(hook->path), "PATH=%s",
		 path && strlen(path) < sizeof(hook->path) - 5
			 ? path
			 : "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	start(hook);
}

void hook_cancel(struct hook *hook)
{
	atomic_store(&hook->cancelled, true);
}

int hook_result(const struct hook *hook, const char *limit, char *why, size_t why_size)
{
	const char *colon = hook->output[0] ? ": " : "";

	if (!hook->error && hook->status == 0)
		return 0;
	if (hook->error == -ETIMEDOUT)
		snprintf(why, why_size, "%s took longer than %s%s%s", hook->command, limit, colon,
			 hook->output);
	else if (hook->error)
		snprintf(why, why_size, "%s: %s", hook->command, strerror(-hook->error));
	else
		snprintf(why, why_size, "%s ended with %d%s%s", hook->command, hook->status, colon,
			 hook->output);
	return hook->error ? hook->error : -EPERM;
}
