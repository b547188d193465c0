/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bucket of tests/system/fake_s3.py, which checks every signature and misbehaves by the bucket's name, and
 * the operations of a store on it, waited for. A test includes it behind cmocka.h.
 */
#ifndef TEST_S3_FIXTURE_H
#define TEST_S3_FIXTURE_H

#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/store/store.h"

#define FAKE "tests/system/fake_s3.py"

struct world {
	struct env *env;
	struct store *store;
	pid_t fake;
	int fake_input;
	unsigned port;
};

struct call {
	struct env_op op;
	bool done;
	int64_t result;
	char listed[4096];
};

static inline void call_done(struct env_op *op, int64_t result)
{
	struct call *call = (struct call *)op;

	assert_false(call->done);
	call->done = true;
	call->result = result;
}

static inline int64_t put_bytes(struct world *w, const char *name, const void *data, size_t length)
{
	struct call call = {.op.done = call_done};
	struct iovec iov[3] = {{(void *)data, length / 3},
			       {NULL, 0},
			       {(char *)data + length / 3, length - length / 3}};

	w->store->ops->put(w->store, &call.op, name, iov, 3);
	assert_false(call.done);
	env_run_until(w->env, &call.done);
	return call.result;
}

static inline int64_t put(struct world *w, const char *name, const char *text)
{
	return put_bytes(w, name, text, strlen(text));
}

static inline int64_t get(struct world *w, const char *name, char *buf, size_t length,
			  uint64_t offset)
{
	struct call call = {.op.done = call_done};

	w->store->ops->get(w->store, &call.op, name, buf, length, offset);
	env_run_until(w->env, &call.done);
	return call.result;
}

static inline int64_t size(struct world *w, const char *name)
{
	struct call call = {.op.done = call_done};

	w->store->ops->size(w->store, &call.op, name);
	env_run_until(w->env, &call.done);
	return call.result;
}

static inline int64_t delete (struct world *w, const char *name)
{
	struct call call = {.op.done = call_done};

	w->store->ops->delete (w->store, &call.op, name);
	env_run_until(w->env, &call.done);
	return call.result;
}

static inline void listed(void *context, const struct store_object *object)
{
	struct call *call = context;
	size_t used = strlen(call->listed);

	snprintf(call->listed + used, sizeof(call->listed) - used, "%s:%llu ", object->name,
		 (unsigned long long)object->size_bytes);
}

static inline int64_t list(struct world *w, const char *prefix, char text[4096])
{
	struct call call = {.op.done = call_done};

	w->store->ops->list(w->store, &call.op, prefix, listed, &call);
	env_run_until(w->env, &call.done);
	strcpy(text, call.listed);
	return call.result;
}

static inline int open_why(struct world *w, const char *bucket, const char *options, char *why)
{
	char url[512];

	snprintf(url, sizeof(url), "s3://%s/pre/fix?endpoint=http://127.0.0.1:%u&region=here&%s",
		 bucket, w->port, options);
	return store_open(w->env, url, &w->store, why, 512);
}

static inline void open_bucket(struct world *w, const char *bucket, const char *options)
{
	char why[512] = "";

	if (open_why(w, bucket, options, why))
		fail_msg("%s", why);
}

static inline void close_bucket(struct world *w)
{
	store_close(w->store);
	w->store = NULL;
}

/* ---- the fake ---------------------------------------------------------------------------------- */

static inline void clear_environment(void)
{
	static const char *const names[] = {"AWS_SESSION_TOKEN",
					    "AWS_PROFILE",
					    "AWS_REGION",
					    "AWS_DEFAULT_REGION",
					    "AWS_ENDPOINT_URL",
					    "AWS_ENDPOINT_URL_S3",
					    "AWS_CA_BUNDLE",
					    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
					    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
					    "http_proxy"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		unsetenv(names[i]);
	setenv("AWS_ACCESS_KEY_ID", "AKIAFAKE", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "fakesecret", 1);
	setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent", 1);
	setenv("AWS_CONFIG_FILE", "/nonexistent", 1);
	setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
}

/* It ends when its input does. */
static inline bool fake_start(struct world *w)
{
	int input[2], output[2];
	FILE *line;

	assert_int_equal(pipe(input), 0);
	assert_int_equal(pipe(output), 0);
	w->fake = fork();
	assert_true(w->fake >= 0);
	if (!w->fake) {
		dup2(input[0], 0);
		dup2(output[1], 1);
		close(input[0]);
		close(input[1]);
		close(output[0]);
		close(output[1]);
		execlp("python3", "python3", FAKE, NULL);
		_exit(127);
	}
	close(input[0]);
	close(output[1]);
	w->fake_input = input[1];
	line = fdopen(output[0], "r");
	if (fscanf(line, "%u", &w->port) != 1)
		w->port = 0;
	fclose(line);
	return w->port != 0;
}

/* A number that the fake knows: GET /latest/WHAT. */
static inline unsigned ask_fake(struct world *w, const char *what)
{
	char request[256], answer[4096] = "";
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)w->port)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	size_t used = 0;
	ssize_t got;
	char *body;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	snprintf(request, sizeof(request),
		 "GET /latest/%s HTTP/1.1\r\nHost: fake\r\nConnection: close\r\n\r\n", what);
	assert_int_equal(write(fd, request, strlen(request)), (ssize_t)strlen(request));
	while ((got = read(fd, answer + used, sizeof(answer) - 1 - used)) > 0)
		used += (size_t)got;
	close(fd);
	body = strstr(answer, "\r\n\r\n");
	assert_non_null(body);
	return (unsigned)strtoul(body + 4, NULL, 10);
}

static inline void fake_end(struct world *w)
{
	close(w->fake_input);
	waitpid(w->fake, NULL, 0);
}

static inline int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	const char *why;

	*state = NULL;
	clear_environment();
	if (access(FAKE, R_OK) || !fake_start(w)) {
		print_message("SKIP: needs python3 and %s\n", FAKE);
		free(w);
		return 0;
	}
	assert_int_equal(env_real_new(ENV_BACKEND_AUTO, 1, &w->env, &why), 0);
	env_log_level(w->env, ENV_LOG_ERROR);
	*state = w;
	return 0;
}

static inline int teardown(void **state)
{
	struct world *w = *state;

	if (!w)
		return 0;
	store_close(w->store);
	env_free(w->env);
	fake_end(w);
	free(w);
	return 0;
}

static inline struct world *world_of(void **state)
{
	if (!*state)
		skip();
	return *state;
}

#endif
