// SPDX-License-Identifier: Apache-2.0
/*
 * The API on a real node: a volume on a file, snapshots into a directory, restored in place. The
 * loop runs in a thread of its own; the test is the client.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/stat.h>

#include "daemon/control/control.h"
#include "daemon/io/env_ops.h"
#include "daemon/store/file.h"
#include "tests/unit/control_http.h"

#define SIZE (8u << 20)

static char directory[64];
static char socket_path[96];
static pthread_t loop;
static sem_t loop_ready;

/* The loop thread's. */
static struct env *env;
static struct config *config;
static struct node *node;
static struct control *control;

static void node_stopped(void *context)
{
	env_stop(env);
}

static void control_stopped(void *context)
{
	node_stop(node, node_stopped, NULL);
}

static void stop_call(struct env_task *task)
{
	control_stop(control, control_stopped, NULL);
}

static struct env_task stop_task = {.call = stop_call};

/* A store whose opening hangs as long as a test wants, as that of a dead NFS server does. */
static bool store_hangs;
static sem_t store_answers;

static int hanging_store_open(struct env *e, const char *url, struct store **store, char *why,
			      size_t why_size)
{
	sem_wait(&store_answers);
	return store_file_open(e, url, url + 5, store, why, why_size);
}

static struct env_ops hanging_ops;

static void hang_store(void)
{
	hanging_ops = *env->ops;
	hanging_ops.store_open = hanging_store_open;
	env->ops = &hanging_ops;
}

static void *loop_main(void *context)
{
	struct control_config control_config = {.socket_path = socket_path};
	char path[128], why[512] = "";
	char *errors = NULL;
	const char *what;

	snprintf(path, sizeof(path), "%s/offsite.conf", directory);
	config = config_load(path, &errors);
	if (!config || env_real_new(ENV_BACKEND_AUTO, 2, &env, &what))
		abort();
	if (store_hangs)
		hang_store();
	if (node_start(env, config, &node, why, sizeof(why))) {
		fprintf(stderr, "%s %s\n", errors ? errors : "", why);
		abort();
	}
	env_log_level(env, ENV_LOG_ERROR);
	control_config.node = node;
	if (control_start(env, &control_config, &control, why, sizeof(why)))
		abort();
	sem_post(&loop_ready);
	env_run(env);
	sem_wait(&loop_ready); /* env_post() of the stop has returned */
	if (!control_free(control))
		abort();
	config_free(config);
	env_free(env);
	return NULL;
}

static void write_file(const char *name, const void *data, size_t length)
{
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "w");
	assert_non_null(file);
	assert_int_equal(fwrite(data, 1, length, file), length);
	assert_int_equal(fclose(file), 0);
}

static void read_backing(unsigned char *data)
{
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), "%s/disk.img", directory);
	file = fopen(path, "r");
	assert_non_null(file);
	assert_int_equal(fread(data, 1, SIZE, file), SIZE);
	fclose(file);
}

static void fill(unsigned char *data)
{
	for (unsigned i = 0; i < SIZE; i++)
		data[i] = i / 65536 % 4 ? (unsigned char)(i * 2654435761u >> 24) : 0;
}

static int set_up(void **state)
{
	unsigned char *data = malloc(SIZE);
	struct timespec limit;
	char text[1024];

	strcpy(directory, "/tmp/control_node.XXXXXX");
	assert_non_null(mkdtemp(directory));
	snprintf(socket_path, sizeof(socket_path), "%s/control.sock", directory);
	fill(data);
	write_file("disk.img", data, SIZE);
	free(data);
	snprintf(text, sizeof(text),
		 "[node]\nname = alpha\nstate-dir = %s/state\ncontrol = %s\n"
		 "nbd-listen = unix:%s/nbd.sock\n"
		 "[volume v]\nbacking = %s/disk.img\nsize = 8M\nrole = primary\n"
		 "store = file:%s/store\n",
		 directory, socket_path, directory, directory, directory);
	write_file("offsite.conf", text, strlen(text));
	sem_init(&loop_ready, 0, 0);
	sem_init(&store_answers, 0, 0);
	pthread_create(&loop, NULL, loop_main, NULL);
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += 60;
	if (sem_timedwait(&loop_ready, &limit)) {
		fprintf(stderr, "the node does not start\n");
		abort();
	}
	return 0;
}

static int set_up_hanging(void **state)
{
	store_hangs = true;
	return set_up(state);
}

static int tear_down(void **state)
{
	char line[128];

	env_post(env, &stop_task);
	sem_post(&loop_ready);
	pthread_join(loop, NULL);
	sem_destroy(&loop_ready);
	assert_int_equal(access(socket_path, F_OK), -1);
	snprintf(line, sizeof(line), "rm -r %s", directory);
	return system(line);
}

static json_t *expect(const char *method, const char *path, const char *body, int status)
{
	json_t *json;
	int got = http_call(socket_path, method, path, body, &json, NULL);

	if (got != status)
		fail_msg("%s %s: %d, expected %d: %s", method, path, got, status,
			 json ? json_dumps(json, 0) : "");
	return json;
}

/* Starts a job and waits for its end. */
static json_t *run_job(const char *method, const char *path, const char *body)
{
	json_t *json = expect(method, path, body, 202);
	char job[64];

	snprintf(job, sizeof(job), "/v1/jobs/%lld?wait=60",
		 json_integer_value(json_object_get(json, "id")));
	json_decref(json);
	json = expect("GET", job, NULL, 200);
	return json;
}

static const char *text_of(const json_t *json, const char *key)
{
	const char *text = json_string_value(json_object_get(json, key));

	return text ? text : "";
}

static void succeed(const char *method, const char *path, const char *body)
{
	json_t *json = run_job(method, path, body);

	if (strcmp(text_of(json, "state"), "succeeded"))
		fail_msg("%s %s: %s", method, path, text_of(json, "error"));
	json_decref(json);
}

static json_t *list(size_t count)
{
	json_t *json = expect("GET", "/v1/volumes/v/snapshots", NULL, 200);

	assert_int_equal(json_array_size(json_object_get(json, "snapshots")), count);
	return json;
}

static void snapshots_come_go_and_restore(void **state)
{
	unsigned char *before = malloc(SIZE), *after = malloc(SIZE);
	json_t *json = list(0);
	char path[128], first[64];

	json_decref(json);
	succeed("POST", "/v1/volumes/v/snapshots", "{\"label\":\"one\"}");
	succeed("POST", "/v1/volumes/v/snapshots", NULL);
	json = list(2);
	snprintf(first, sizeof(first), "%s",
		 text_of(json_array_get(json_object_get(json, "snapshots"), 0), "id"));
	assert_string_equal(text_of(json_array_get(json_object_get(json, "snapshots"), 0), "label"),
			    "one");
	json_decref(json);
	succeed("POST", "/v1/volumes/v/verify-snapshots", NULL);
	read_backing(before);
	succeed("POST", "/v1/volumes/v/restore", NULL);
	read_backing(after);
	assert_memory_equal(before, after, SIZE);
	snprintf(path, sizeof(path), "/v1/volumes/v/snapshots/%s", first);
	succeed("DELETE", path, NULL);
	json_decref(list(1));
	json = run_job("DELETE", path, NULL);
	assert_string_equal(text_of(json, "state"), "failed");
	assert_string_equal(text_of(json, "code"), "missing");
	json_decref(json);
	free(before);
	free(after);
}

static void roles_change(void **state)
{
	json_t *json = expect("POST", "/v1/volumes/v/demote", NULL, 200);

	assert_string_equal(text_of(json, "role"), "secondary");
	json_decref(json);
	json = run_job("POST", "/v1/volumes/v/restore", NULL);
	assert_string_equal(text_of(json, "code"), "refused");
	json_decref(json);
	json = expect("POST", "/v1/volumes/v/promote", NULL, 200);
	assert_string_equal(text_of(json, "role"), "primary");
	json_decref(json);
	json_decref(expect("POST", "/v1/volumes/v/connect", NULL, 409));
}

/* The volume's part of the status. */
static json_t *snapshots_of(json_t *status)
{
	json_t *volume = json_array_get(json_object_get(status, "volumes"), 0);

	assert_true(json_is_true(json_object_get(volume, "open")));
	return json_object_get(volume, "snapshots");
}

static void a_store_that_hangs_stops_nothing_else(void **state)
{
	json_t *json = expect("GET", "/v1/status", NULL, 200);

	assert_true(json_is_false(json_object_get(snapshots_of(json), "open")));
	json_decref(json);
	/* Who asks for a snapshot meanwhile waits for it, and is told in the end. */
	json = expect("POST", "/v1/volumes/v/snapshots", NULL, 409);
	assert_non_null(strstr(json_string_value(json_object_get(json, "error")), "store"));
	json_decref(json);
	sem_post(&store_answers);
	sem_post(&store_answers); /* of the verification */
	succeed("POST", "/v1/volumes/v/snapshots", NULL);
	succeed("POST", "/v1/volumes/v/verify-snapshots", NULL);
	json = expect("GET", "/v1/status", NULL, 200);
	assert_true(json_is_true(json_object_get(snapshots_of(json), "open")));
	json_decref(json);
	store_hangs = false;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_store_that_hangs_stops_nothing_else,
						set_up_hanging, tear_down),
		cmocka_unit_test_setup_teardown(snapshots_come_go_and_restore, set_up, tear_down),
		cmocka_unit_test_setup_teardown(roles_change, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
