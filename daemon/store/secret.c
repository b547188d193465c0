/* SPDX-License-Identifier: Apache-2.0 */
/* Reading secrets, running key commands. See secret.h. */
#include "daemon/store/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/io/spawn.h"

#define KEY_FILE_MIN    32
#define SCRYPT_COST     16 /* 64 MiB, a fifth of a second */
#define COMMAND_SECONDS 60

/* ---- files --------------------------------------------------------------------------------- */

/* -EFBIG: more than there is room for. */
static ssize_t read_file(const char *path, uint8_t *data, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t used = 0;
	ssize_t got = 0;
	uint8_t more;

	if (fd < 0)
		return -errno;
	while (used < size && (got = read(fd, data + used, size - used)) > 0)
		used += (size_t)got;
	if (got >= 0 && used == size && read(fd, &more, 1) > 0) {
		close(fd);
		return -EFBIG;
	}
	if (got < 0)
		got = -errno;
	close(fd);
	return got < 0 ? got : (ssize_t)used;
}

static int refuse(char *why, size_t why_size, int error, const char *what, const char *path,
		  const char *reason)
{
	snprintf(why, why_size, "%s %s: %s", what, path, reason);
	return error;
}

static int read_passphrase(struct secret *secret, const char *path, char *why, size_t why_size)
{
	ssize_t got = read_file(path, secret->bytes, sizeof(secret->bytes));
	const uint8_t *end;

	if (got < 0)
		return refuse(why, why_size, (int)got, "passphrase file", path,
			      strerror((int)-got));
	end = memchr(secret->bytes, '\n', (size_t)got);
	secret->length = end ? (size_t)(end - secret->bytes) : (size_t)got;
	if (secret->length && secret->bytes[secret->length - 1] == '\r')
		secret->length--;
	if (!secret->length)
		return refuse(why, why_size, -EINVAL, "passphrase file", path,
			      "its first line is empty");
	return 0;
}

static int read_key_file(struct secret *secret, const char *path, char *why, size_t why_size)
{
	ssize_t got = read_file(path, secret->bytes, sizeof(secret->bytes));

	if (got < 0)
		return refuse(why, why_size, (int)got, "key file", path, strerror((int)-got));
	secret->length = (size_t)got;
	if (secret->length < KEY_FILE_MIN)
		return refuse(why, why_size, -EINVAL, "key file", path,
			      "shorter than 32 bytes; make one with: offsite keygen FILE");
	return 0;
}

int secret_open(const struct secret_source *source, struct secret **secret, char *why,
		size_t why_size)
{
	struct secret *s;
	int error = 0;

	*secret = NULL;
	if (!secret_source_given(source))
		return 0;
	if (!!source->passphrase_file + !!source->key_file + !!source->key_command > 1) {
		snprintf(why, why_size,
			 "one of passphrase file, key file and key command is to be given");
		return -EINVAL;
	}
	s = calloc(1, sizeof(*s));
	if (!s) {
		snprintf(why, why_size, "out of memory");
		return -ENOMEM;
	}
	s->cost = SCRYPT_COST;
	if (source->passphrase_file) {
		s->method = CRYPTFMT_PASSPHRASE;
		error = read_passphrase(s, source->passphrase_file, why, why_size);
	} else if (source->key_file) {
		s->method = CRYPTFMT_KEY_FILE;
		error = read_key_file(s, source->key_file, why, why_size);
	} else {
		s->method = CRYPTFMT_COMMAND;
		s->command = strdup(source->key_command);
		error = s->command ? 0 : -ENOMEM;
	}
	if (error)
		secret_free(s);
	else
		*secret = s;
	return error;
}

void secret_free(struct secret *secret)
{
	if (!secret)
		return;
	explicit_bzero(secret->bytes, sizeof(secret->bytes));
	free(secret->command);
	free(secret);
}

/* ---- commands ------------------------------------------------------------------------------ */

extern char **environ;

/* The process's environment with one more; NULL: no memory. Only the array is new. */
static char **environment_with(char *variable)
{
	size_t count = 0;
	char **all;

	while (environ[count])
		count++;
	all = malloc((count + 2) * sizeof(*all));
	if (!all)
		return NULL;
	all[0] = variable;
	memcpy(all + 1, environ, (count + 1) * sizeof(*all));
	return all;
}

static int spawn(const char *command, const char *action, int input, int output, pid_t *pid)
{
	char shell[] = "/bin/sh", option[] = "-c", variable[64];
	char *arguments[] = {shell, option, (char *)(uintptr_t)command, NULL};
	posix_spawn_file_actions_t files;
	char **environment;
	int error = -ENOMEM;

	snprintf(variable, sizeof(variable), "OFFSITE_KEY_ACTION=%s", action);
	environment = environment_with(variable);
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_adddup2(&files, input, 0);
	posix_spawn_file_actions_adddup2(&files, output, 1);
	if (environment)
		error = spawn_apart(pid, shell, &files, arguments, environment);
	posix_spawn_file_actions_destroy(&files);
	free(environment);
	return error;
}

/* Until its end; -EFBIG: it does not fit. */
static int read_output(int fd, char *output, size_t size, size_t *used)
{
	time_t end = time(NULL) + COMMAND_SECONDS;
	ssize_t got;

	*used = 0;
	for (;;) {
		struct pollfd look = {.fd = fd, .events = POLLIN};

		if (time(NULL) >= end)
			return -ETIMEDOUT;
		if (poll(&look, 1, 1000) <= 0)
			continue;
		if (*used == size)
			return -EFBIG;
		got = read(fd, output + *used, size - *used);
		if (got <= 0)
			return got ? -errno : 0;
		*used += (size_t)got;
	}
}

static int run(const struct secret *secret, const char *action, int input, char *output,
	       size_t size, size_t *used)
{
	int fds[2], error, status = 0;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC))
		return -errno;
	error = spawn(secret->command, action, input, fds[1], &pid);
	close(fds[1]);
	if (!error) {
		error = read_output(fds[0], output, size, used);
		if (error)
			kill(-pid, SIGKILL);
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
		if (!error && status)
			error = -EBADE;
	}
	close(fds[0]);
	return error;
}

int secret_run(const struct secret *secret, const char *action, const char *input, char *output,
	       size_t output_size)
{
	size_t length = strlen(input), used = 0;
	int fds[2], error = 0;

	if (pipe2(fds, O_CLOEXEC))
		return -errno;
	/* A few KiB: they fit into the pipe. */
	if (write(fds[1], input, length) != (ssize_t)length || write(fds[1], "\n", 1) != 1)
		error = -EIO;
	close(fds[1]);
	if (!error)
		error = run(secret, action, fds[0], output, output_size - 1, &used);
	close(fds[0]);
	while (used && (output[used - 1] == '\n' || output[used - 1] == '\r'))
		used--;
	output[used] = '\0';
	if (!error && (!used || memchr(output, 0, used)))
		error = -EBADE;
	return error == -EFBIG ? -EBADE : error;
}
