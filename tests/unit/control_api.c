// SPDX-License-Identifier: Apache-2.0
/*
 * The API over a real unix socket, with a node that does what the test says (control_fake.h). The
 * loop runs in a thread of its own; the test is the client. SEED=N replays the random bytes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/stat.h>
#include <time.h>

#include "daemon/control/internal.h"
#include "tests/unit/control_fake.h"
#include "tests/unit/control_http.h"

struct node fake;

static struct env *env;
static struct control *control;
static pthread_t loop;
static char directory[64];
static char path[96];

/* ---- the loop in its thread --------------------------------------------------------------- */

struct order {
	struct env_task task;
	void (*call)(void);
	sem_t done;
};

static void order_call(struct env_task *task)
{
	struct order *order = (struct order *)task;

	order->call();
	sem_post(&order->done);
}

/* Runs call() on the loop thread and waits for it. */
static void on_loop(void (*call)(void))
{
	struct order order = {.task.call = order_call, .call = call};

	sem_init(&order.done, 0, 0);
	env_post(env, &order.task);
	sem_wait(&order.done);
	sem_destroy(&order.done);
}

static sem_t loop_ready;

/* The loop's thread makes and frees the environment too: a ring belongs to one thread. */
static void *loop_main(void *context)
{
	const char *why;

	if (env_real_new(ENV_BACKEND_AUTO, 1, &env, &why))
		abort();
	fake_init(env);
	sem_post(&loop_ready);
	env_run(env);
	sem_wait(&loop_ready); /* env_post() of the stop has returned */
	env_free(env);
	return NULL;
}

static void stop_loop(void)
{
	env_stop(env);
}

static sem_t stopped_sem;

static void stopped(void *context)
{
	sem_post(&stopped_sem);
}

static void begin_stop(void)
{
	control_stop(control, stopped, NULL);
}

static int start_error;
static char start_why[256];
static struct control *started;

static void start_another(void)
{
	struct control_config config = {.node = &fake,
					.nbd = (struct nbd_server *)&fake,
					.attach = (struct attach *)&fake,
					.socket_path = path};

	start_error = control_start(env, &config, &started, start_why, sizeof(start_why));
}

static bool freed;

static void free_control(void)
{
	freed = control_free(control);
	if (freed)
		control = NULL;
}

static int set_up(void **state)
{
	strcpy(directory, "/tmp/control_api.XXXXXX");
	assert_non_null(mkdtemp(directory));
	snprintf(path, sizeof(path), "%s/control.sock", directory);
	sem_init(&stopped_sem, 0, 0);
	sem_init(&loop_ready, 0, 0);
	pthread_create(&loop, NULL, loop_main, NULL);
	sem_wait(&loop_ready);
	on_loop(start_another);
	assert_int_equal(start_error, 0);
	control = started;
	return 0;
}

static int tear_down(void **state)
{
	if (control) {
		on_loop(begin_stop);
		sem_wait(&stopped_sem);
		on_loop(free_control);
		assert_true(freed);
	}
	on_loop(stop_loop);
	sem_post(&loop_ready);
	pthread_join(loop, NULL);
	assert_int_equal(access(path, F_OK), -1); /* the socket is taken away */
	assert_int_equal(rmdir(directory), 0);
	sem_destroy(&stopped_sem);
	sem_destroy(&loop_ready);
	return 0;
}

/* ---- what the fake node does ---------------------------------------------------------------- */

static void finish_job(int error)
{
	struct snapshot_result result = {.error = error, .info = fake.snapshots[2]};
	fake_result_fn done = fake.pending;

	if (error)
		strcpy(result.why, "store: no space left");
	result.bad_objects = fake.verify_bad;
	fake.pending = NULL;
	done(fake.pending_context, &result);
}

static void finish_well(void)
{
	finish_job(0);
}

static void finish_badly(void)
{
	finish_job(-ENOSPC);
}

static void become_secondary(void)
{
	fake.state.role = VOLUME_SECONDARY;
}

static void finish_restore(void)
{
	struct snapshot_progress progress = {.done_bytes = 3, .total_bytes = 4, .started_ns = 1};

	fake.pending_progress(fake.pending_node_context, &progress);
	fake.pending_node(fake.pending_node_context, 0, NULL);
}

/* ---- helpers ------------------------------------------------------------------------------- */

static void expect_error(const char *method, const char *where, const char *body, int status,
			 const char *part)
{
	json_t *json;
	int got = http_call(path, method, where, body, &json, NULL);
	const char *error = json_string_value(json_object_get(json, "error"));

	if (got != status || !error || !strstr(error, part))
		fail_msg("%s %s %s: %d '%s', expected %d '%s'", method, where, body ? body : "",
			 got, error ? error : "(none)", status, part);
	assert_null(strchr(error, '\n'));
	assert_non_null(json_string_value(json_object_get(json, "code")));
	json_decref(json);
}

static json_t *expect(const char *method, const char *where, const char *body, int status)
{
	json_t *json;
	int got = http_call(path, method, where, body, &json, NULL);

	if (got != status) {
		char *text = json ? json_dumps(json, 0) : NULL;

		fail_msg("%s %s: %d, expected %d: %s", method, where, got, status, text);
	}
	assert_non_null(json);
	return json;
}

static const char *text_of(const json_t *json, const char *key)
{
	const char *text = json_string_value(json_object_get(json, key));

	return text ? text : "";
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void status_tells_of_node_and_volumes(void **state)
{
	json_t *json = expect("GET", "/v1/status", NULL, 200);
	const json_t *volumes = json_object_get(json, "volumes");

	assert_string_equal(text_of(json, "node"), "alpha");
	assert_string_equal(text_of(json, "peer_listen"), "tcp:127.0.0.1:7788");
	assert_int_equal(json_array_size(volumes), 2);
	assert_string_equal(text_of(json_array_get(volumes, 0), "role"), "primary");
	assert_true(json_is_false(json_object_get(json_array_get(volumes, 1), "open")));
	assert_non_null(strstr(text_of(json_array_get(volumes, 1), "error"), "no such device"));
	json_decref(json);
	json = expect("GET", "/v1/status?volume=pgdata", NULL, 200);
	assert_int_equal(json_array_size(json_object_get(json, "volumes")), 1);
	json_decref(json);
	expect_error("GET", "/v1/status?volume=nosuch", NULL, 404, "volume nosuch: not configured");
}

static void wrong_requests_get_one_clear_line(void **state)
{
	expect_error("GET", "/", NULL, 404, "/: no such thing");
	expect_error("GET", "/v1/statusx", NULL, 404, "no such thing");
	expect_error("GET", "/v1/volumes/pgdata/", NULL, 404, "no such thing");
	expect_error("GET", "/v1/volumes//snapshots", NULL, 404, "no such thing");
	expect_error("POST", "/v1/status", NULL, 405, "method not allowed");
	expect_error("PUT", "/v1/volumes/pgdata/connect", "{}", 405, "method not allowed");
	expect_error("BREW", "/metrics", NULL, 405, "method not allowed");
	expect_error("POST", "/v1/volumes/nosuch/connect", NULL, 404, "volume nosuch");
	expect_error("POST", "/v1/volumes/pgdata/connect", "{", 400, "body: not JSON");
	expect_error("POST", "/v1/volumes/pgdata/connect", "[1]", 400, "not a JSON object");
	expect_error("POST", "/v1/volumes/pgdata/connect", "{\"forcee\":true}", 400, "forcee");
	expect_error("POST", "/v1/volumes/pgdata/promote", "{\"force\":1}", 400, "body: ");
	expect_error("POST", "/v1/volumes/pgdata/promote", "{\"force\":true,\"force\":true}", 400,
		     "duplicate");
	expect_error("GET", "/v1/events?since=-1", NULL, 400, "since");
	expect_error("GET", "/v1/events?wait=inf", NULL, 400, "wait");
	expect_error("GET", "/v1/events?wait=1.2.3", NULL, 400, "wait");
	expect_error("GET", "/v1/jobs/99", NULL, 404, "job 99");
	expect_error("GET", "/v1/jobs/x", NULL, 404, "job x");
	expect_error("GET", "/v1/jobs/-1", NULL, 404, "job -1");
	expect_error("DELETE", "/v1/volumes/pgdata/snapshots/abc", NULL, 400, "no snapshot id");
	expect_error("DELETE", "/v1/volumes/pgdata/snapshots/00000000000000000000000000000000",
		     NULL, 400, "no snapshot id");
	expect_error("POST", "/v1/volumes/pgdata/restore", "{\"snapshot\":5}", 400, "neither");
	expect_error("POST", "/v1/volumes/pgdata/restore", "{\"from\":\"moon\"}", 400, "peer");
	expect_error("POST", "/v1/volumes/pgdata/restore", "{\"from\":\"peer\",\"snapshot\":null}",
		     400, "not together");
	expect_error("POST", "/v1/volumes/pgdata/verify-snapshots", "{\"sample_percent\":101}", 400,
		     "within 1 to 100");
	expect_error("POST", "/v1/volumes/pgdata/snapshots",
		     "{\"label\":\"0123456789012345678901234567890123456789012345678901234567890123"
		     "\"}",
		     400, "label");
	expect_error("GET", "/v1/volumes/broken/snapshots", NULL, 409, "no such device");
	expect_error("POST", "/v1/volumes/broken/connect", NULL, 409, "no such device");
	expect_error("POST", "/v1/volumes/broken/promote", NULL, 409, "no such device");
	expect_error("POST", "/v1/volumes/broken/snapshots", NULL, 409, "not open");
}

static void be_busy(void)
{
	fake.volumes[0].busy = "restore";
}

static void a_restore_keeps_the_peer_away(void **state)
{
	json_decref(expect("POST", "/v1/volumes/pgdata/connect", NULL, 200));
	on_loop(be_busy);
	expect_error("POST", "/v1/volumes/pgdata/connect", NULL, 409, "a restore is under way");
}

static void options_are_set(void **state)
{
	json_decref(expect("POST", "/v1/volumes/pgdata/set",
			   "{\"max-lag\": \"64M\", \"catch-up-rate\": \"1M, 2M@sat\"}", 200));
	assert_string_equal(fake.options, "max-lag=64M;catch-up-rate=1M, 2M@sat;");
	expect_error("POST", "/v1/volumes/pgdata/set", NULL, 400, "no option is named");
	expect_error("POST", "/v1/volumes/pgdata/set", "{\"max-lag\": 64}", 400,
		     "max-lag: the value is no text");
	fake.verb_error = -EINVAL;
	expect_error("POST", "/v1/volumes/pgdata/set", "{\"max-lag\": \"x\"}", 400, "no, because");
	fake.verb_error = 0;
}

static void oversize_is_refused_without_reading_it(void **state)
{
	char *body = malloc(70001), *long_path = malloc(5001), *answer, *chunked;
	size_t length;

	memset(body, 'x', 70000);
	body[70000] = 0;
	assert_int_equal(http_call(path, "POST", "/v1/volumes/pgdata/promote", body, NULL, NULL),
			 413);
	/* Without its length said beforehand. */
	chunked = malloc(80000);
	length = (size_t)sprintf(chunked,
				 "POST /v1/volumes/pgdata/promote HTTP/1.1\r\nHost: x\r\n"
				 "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n",
				 70000);
	memcpy(chunked + length, body, 70000);
	length += 70000;
	length += (size_t)sprintf(chunked + length, "\r\n0\r\n\r\n");
	answer = http_raw(path, chunked, length);
	assert_non_null(strstr(answer, "HTTP/1.1 413"));
	free(answer);
	memset(long_path, 'a', 5000);
	long_path[0] = '/';
	long_path[5000] = 0;
	assert_int_equal(http_call(path, "GET", long_path, NULL, NULL, NULL), 414);
	free(chunked);
	free(body);
	free(long_path);
	/* 64 KiB exactly is read (and is no JSON). */
	body = malloc(65537);
	memset(body, 'x', 65536);
	body[65536] = 0;
	expect_error("POST", "/v1/volumes/pgdata/promote", body, 400, "not JSON");
	free(body);
}

static void random_bytes_hurt_nobody(void **state)
{
	const char *seed_text = getenv("SEED");
	unsigned seed = seed_text ? (unsigned)atoi(seed_text) : (unsigned)time(NULL);
	static const char *const heads[] = {"", "GET ",
					    "POST /v1/volumes/pgdata/promote HTTP/1.1\r\n",
					    "GET /v1/events?since=", "GET /v1/volumes/%00%ff%"};
	unsigned char bytes[4096];

	print_message("SEED=%u\n", seed);
	srand(seed);
	for (unsigned round = 0; round < 200; round++) {
		const char *head = heads[rand() % 5];
		size_t length = strlen(head), more = (size_t)rand() % 2000;

		memcpy(bytes, head, length);
		for (size_t i = 0; i < more; i++)
			bytes[length + i] = (unsigned char)(rand() % (round % 2 ? 256 : 128));
		length += more;
		memcpy(bytes + length, "\r\n\r\n", 4);
		free(http_raw(path, bytes, length + 4));
	}
	json_decref(expect("GET", "/v1/status", NULL, 200));
}

static void verbs_answer_with_the_volume_or_the_reason(void **state)
{
	static const char *const verbs[] = {"connect", "disconnect", "promote", "demote", "resume"};
	char where[64];
	json_t *json;

	for (unsigned i = 0; i < 5; i++) {
		snprintf(where, sizeof(where), "/v1/volumes/pgdata/%s", verbs[i]);
		fake.verb_error = 0;
		json = expect("POST", where, NULL, 200);
		assert_string_equal(text_of(json, "name"), "pgdata");
		json_decref(json);
		fake.verb_error = -EBUSY;
		expect_error("POST", where, "{}", 409, "volume pgdata: no, because");
		fake.verb_error = -EIO;
		expect_error("POST", where, "{}", 500, "volume pgdata: no, because");
	}
	fake.verb_error = 0;
	json_decref(expect("POST", "/v1/volumes/pgdata/promote", "{\"force\":true}", 200));
	assert_true(fake.forced && !fake.unfenced);
	json_decref(expect("POST", "/v1/volumes/pgdata/promote", "{\"no_fence\":true}", 200));
	assert_true(fake.unfenced && !fake.forced);
	json_decref(expect("POST", "/v1/volumes/pgdata/demote", "{\"force\":true}", 200));
	json = expect("POST", "/v1/volumes/pgdata/connect", "{\"dry_run\":true}", 200);
	assert_string_equal(text_of(json, "decision"), "catch-up to the peer");
	assert_string_equal(text_of(json, "direction"), "to-peer");
	assert_true(json_number_value(json_object_get(json, "seconds")) == 2.0);
	json_decref(json);
	expect_error("POST", "/v1/volumes/pgdata/demote", "{\"no_fence\":true}", 400, "body: ");
}

static void a_resize_answers_with_the_volume_or_the_reason(void **state)
{
	static const char where[] = "/v1/volumes/pgdata/resize";

	fake.verb_error = 0;
	json_decref(expect("POST", where, "{\"size_bytes\":8589934592}", 200));
	assert_true(fake.resized_bytes == 8589934592 && !fake.resize_force);
	assert_int_equal(fake.grown, 1); /* an attached device learns of it */
	json_decref(expect("POST", where, "{\"size_bytes\":4096,\"force\":true}", 200));
	assert_true(fake.resized_bytes == 4096 && fake.resize_force);
	expect_error("POST", where, "{}", 400, "body: ");
	expect_error("POST", where, "{\"size_bytes\":\"8G\"}", 400, "body: ");
	expect_error("POST", where, "{\"size_bytes\":-4096}", 400, "less than zero");
	fake.verb_error = -EPERM;
	expect_error("POST", where, "{\"size_bytes\":4096}", 409, "volume pgdata: refused");
	fake.verb_error = 0;
}

static void devices_are_attached_listed_detached(void **state)
{
	json_t *json = expect("GET", "/v1/attached", NULL, 200), *one;

	assert_int_equal(json_array_size(json_object_get(json, "attached")), 0);
	json_decref(json);
	json = expect("POST", "/v1/attach", "{\"export\":\"pgdata\",\"device\":\"/dev/nbd7\"}",
		      200);
	assert_string_equal(json_string_value(json_object_get(json, "device")), "/dev/nbd7");
	assert_int_equal(fake.attach_index, 7);
	json_decref(json);
	json = expect("GET", "/v1/attached", NULL, 200);
	one = json_array_get(json_object_get(json, "attached"), 0);
	assert_string_equal(json_string_value(json_object_get(one, "export")), "pgdata");
	assert_string_equal(json_string_value(json_object_get(one, "state")), "waiting");
	assert_string_equal(json_string_value(json_object_get(one, "why")),
			    "volume pgdata is secondary");
	assert_int_equal(json_integer_value(json_object_get(one, "alive")), 1);
	assert_true(json_is_true(json_object_get(one, "configured")));
	json_decref(json);
	json = expect("GET", "/v1/status?volume=pgdata", NULL, 200);
	one = json_array_get(json_object_get(json, "volumes"), 0);
	assert_string_equal(json_string_value(json_object_get(one, "attached")), "/dev/nbd7");
	json_decref(json);
	fake.verb_error = -EBUSY;
	expect_error("POST", "/v1/volumes/pgdata/demote", "{}", 409, "offsite detach pgdata");
	fake.verb_error = 0;
	json_decref(expect("POST", "/v1/detach", "{\"export\":\"pgdata\",\"force\":true}", 200));
	assert_true(fake.detach_force && !fake.attached[0]);
	expect_error("POST", "/v1/attach", "{}", 400, "body: ");
	expect_error("POST", "/v1/attach", "{\"export\":\"pgdata\",\"device\":\"/dev/sda\"}", 400,
		     "is not /dev/nbdN");
	fake.attach_error = -EBUSY;
	expect_error("POST", "/v1/attach", "{\"export\":\"pgdata\"}", 409,
		     "attach pgdata: no, because");
	assert_int_equal(fake.attach_index, -1);
	expect_error("POST", "/v1/detach", "{\"export\":\"pgdata\"}", 409,
		     "detach pgdata: no, because");
}

static void what_both_changed_and_its_end(void **state)
{
	json_t *json = expect("GET", "/v1/volumes/pgdata/changes", NULL, 200);
	const json_t *changes = json_object_get(json, "changes"), *split;

	assert_true(json_is_null(json_object_get(json, "split_brain")));
	assert_int_equal(json_integer_value(json_object_get(changes, "bytes")), 4096);
	json_decref(json);
	fake.split = true;
	json = expect("GET", "/v1/volumes/pgdata/changes", NULL, 200);
	split = json_object_get(json, "split_brain");
	assert_string_equal(json_string_value(json_object_get(split, "peer")), "beta");
	assert_true(json_is_true(json_object_get(split, "near")));
	changes = json_object_get(split, "peer_changes");
	assert_int_equal(json_array_size(json_object_get(changes, "listed")), 1);
	json_decref(json);
	json = expect("POST", "/v1/volumes/pgdata/resolve", "{\"keep\":\"beta\",\"dry_run\":true}",
		      200);
	assert_string_equal(text_of(json, "discard"), "alpha");
	assert_string_equal(text_of(json, "kept_as"), "file");
	assert_int_equal(json_integer_value(json_object_get(json, "transfer_bytes")), 12288);
	assert_string_equal(fake.keep, "");
	json_decref(json);
	json = expect("POST", "/v1/volumes/pgdata/resolve", "{\"keep\":\"beta\",\"no_keep\":true}",
		      202);
	assert_string_equal(text_of(json, "type"), "resolve");
	assert_string_equal(text_of(json, "state"), "succeeded");
	assert_string_equal(fake.keep, "beta without a copy");
	json_decref(json);
	expect_error("POST", "/v1/volumes/pgdata/resolve", "{}", 400, "keep");
	fake.verb_error = -EPERM;
	expect_error("POST", "/v1/volumes/pgdata/resolve", "{\"keep\":\"x\"}", 409, "no, because");
	fake.verb_error = 0;
	fake.split = false;
}

static void verify_is_begun_and_cancelled(void **state)
{
	static const char where[] = "/v1/volumes/pgdata/verify";
	json_t *json = expect("GET", "/v1/status", NULL, 200), *verify;

	verify = json_object_get(json_array_get(json_object_get(json, "volumes"), 0), "verify");
	assert_true(json_is_null(verify));
	json_decref(json);
	json = expect("POST", where, NULL, 200);
	assert_string_equal(text_of(json_object_get(json, "verify"), "state"), "running");
	json_decref(json);
	assert_string_equal(fake.repair_from, "");
	assert_true(fake.verify_rate == UINT64_MAX);
	json_decref(expect("POST", where, "{\"repair_from\":\"beta\",\"rate_bytes\":0}", 200));
	assert_string_equal(fake.repair_from, "beta");
	assert_true(fake.verify_rate == 0);
	expect_error("POST", where, "{\"rate_bytes\":-5}", 400, "negative");
	expect_error("POST", where, "{\"repair\":\"beta\"}", 400, "body: ");
	json = expect("POST", "/v1/volumes/pgdata/verify-cancel", NULL, 200);
	assert_string_equal(text_of(json_object_get(json, "verify"), "state"), "cancelled");
	json_decref(json);
	fake.verb_error = -EALREADY;
	expect_error("POST", "/v1/volumes/pgdata/verify-cancel", NULL, 409, "no, because");
	expect_error("POST", "/v1/volumes/broken/verify", NULL, 409, "no such device");
}

static void *poll_job(void *context)
{
	json_t *json;

	http_call(path, "GET", "/v1/jobs/1?wait=30", NULL, &json, NULL);
	return json;
}

static void a_job_runs_and_is_asked_after(void **state)
{
	json_t *json =
		expect("POST", "/v1/volumes/pgdata/snapshots", "{\"label\":\"before\"}", 202);
	pthread_t poller;
	void *polled;

	assert_int_equal(json_integer_value(json_object_get(json, "id")), 1);
	assert_string_equal(text_of(json, "state"), "running");
	assert_string_equal(fake.label, "before");
	json_decref(json);
	expect_error("POST", "/v1/volumes/pgdata/snapshots", NULL, 409, "job 1 (snapshot-create)");
	expect_error("POST", "/v1/volumes/pgdata/restore", NULL, 409, "job 1 (snapshot-create)");
	json = expect("GET", "/v1/jobs/1", NULL, 200);
	assert_string_equal(text_of(json, "state"), "running");
	json_decref(json);
	/* A short wait ends without the job. */
	json = expect("GET", "/v1/jobs/1?wait=0.3", NULL, 200);
	assert_string_equal(text_of(json, "state"), "running");
	json_decref(json);
	pthread_create(&poller, NULL, poll_job, NULL);
	on_loop(finish_well);
	pthread_join(poller, &polled);
	json = polled;
	assert_string_equal(text_of(json, "state"), "succeeded");
	assert_true(json_is_object(json_object_get(json_object_get(json, "result"), "snapshot")));
	json_decref(json);
	json = expect("GET", "/v1/jobs", NULL, 200);
	assert_int_equal(json_array_size(json_object_get(json, "jobs")), 1);
	json_decref(json);
}

static void a_failed_job_says_why(void **state)
{
	json_t *json = expect("POST", "/v1/volumes/pgdata/snapshots", NULL, 202);

	json_decref(json);
	on_loop(finish_badly);
	json = expect("GET", "/v1/jobs/1", NULL, 200);
	assert_string_equal(text_of(json, "state"), "failed");
	assert_string_equal(text_of(json, "error"), "store: no space left");
	assert_string_equal(text_of(json, "code"), "failed");
	json_decref(json);
	/* One that fails at once is a job too. */
	json = expect("POST", "/v1/volumes/pgdata/restore", "{\"from\":\"peer\"}", 202);
	assert_string_equal(text_of(json, "state"), "failed");
	assert_string_equal(text_of(json, "code"), "refused");
	json_decref(json);
}

static bool verification_begun;

static void look_for_verification(void)
{
	verification_begun = fake.pending && fake.sample_percent;
}

/* A verification opens a store of its own first, beside the loop. */
static void await_verification(void)
{
	for (unsigned i = 0; i < 60000 && !verification_begun; i++) {
		on_loop(look_for_verification);
		usleep(1000);
	}
	assert_true(verification_begun);
	verification_begun = false;
}

static void verification_tells_what_is_damaged(void **state)
{
	json_t *json, *result;

	fake.verify_bad = 150;
	json = expect("POST", "/v1/volumes/pgdata/verify-snapshots",
		      "{\"snapshot\":\"a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0\",\"sample_percent\":7}",
		      202);
	json_decref(json);
	await_verification();
	assert_int_equal(fake.sample_percent, 7);
	on_loop(finish_well);
	json = expect("GET", "/v1/jobs/1?wait=5", NULL, 200);
	assert_string_equal(text_of(json, "code"), "damaged");
	result = json_object_get(json, "result");
	assert_int_equal(json_integer_value(json_object_get(result, "bad_objects")), 150);
	assert_int_equal(json_array_size(json_object_get(result, "damaged")), JOBS_DAMAGED_KEPT);
	json_decref(json);
	assert_int_equal(fake.stores_open, 0);
}

static void restore_takes_an_id_or_the_newest(void **state)
{
	json_t *json = expect("POST", "/v1/volumes/pgdata/restore", "{\"snapshot\":null}", 202);

	json_decref(json);
	assert_true(id128_is_zero(&fake.asked));
	on_loop(finish_restore);
	json = expect("GET", "/v1/jobs/1", NULL, 200);
	assert_string_equal(text_of(json, "state"), "succeeded");
	assert_int_equal(json_integer_value(
				 json_object_get(json_object_get(json, "progress"), "done_bytes")),
			 3);
	json_decref(json);
	json = expect("POST", "/v1/volumes/pgdata/restore",
		      "{\"snapshot\":\"a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1\"}", 202);
	json_decref(json);
	assert_memory_equal(&fake.asked, &fake.snapshots[1].id, sizeof(struct id128));
	on_loop(finish_restore);
}

/* In parts, each of which goes on where the one before ended, without a gap or anything twice. */
static void what_changed_comes_in_parts(void **state)
{
	uint64_t at = 0, seen = 0, zero = 0;
	unsigned parts = 0;

	for (bool more = true; more; parts++) {
		const json_t *extent, *listed;
		char body[128];
		json_t *json;
		size_t i;

		snprintf(body, sizeof(body),
			 "{\"from\":\"a0a0\",\"to\":\"latest\",\"offset\":%llu}",
			 (unsigned long long)at);
		json = expect("POST", "/v1/volumes/pgdata/diff", body, 200);
		listed = json_object_get(json, "extents");
		assert_true(json_array_size(listed) <= 8192);
		json_array_foreach(listed, i, extent)
		{
			assert_int_equal(json_integer_value(json_object_get(extent, "offset")),
					 seen * 131072);
			zero += json_is_true(json_object_get(extent, "zero"));
			seen++;
		}
		more = json_is_integer(json_object_get(json, "next_offset"));
		at = (uint64_t)json_integer_value(json_object_get(json, "next_offset"));
		json_decref(json);
	}
	assert_true(parts > 3);
	assert_int_equal(seen, 32768);
	assert_int_equal(zero, 16384);
	fake.diff_error = -EBADMSG;
	expect_error("POST", "/v1/volumes/pgdata/diff", "{\"from\":\"latest\",\"to\":\"a0\"}", 500,
		     "maps/1: damaged");
	fake.diff_error = 0;
	expect_error("POST", "/v1/volumes/pgdata/diff", "{\"from\":\"b\",\"to\":\"a0\"}", 404,
		     "begins so");
	expect_error("POST", "/v1/volumes/pgdata/diff", "{\"to\":\"a0\"}", 400, "from");
	expect_error("POST", "/v1/volumes/pgdata/diff",
		     "{\"from\":\"a0\",\"to\":\"a1\",\"offset\":99999999999}", 400, "offset");
	fake.state.snapshot = (struct id128){.bytes = {0}};
	expect_error("POST", "/v1/volumes/pgdata/diff", "{\"from\":\"a0\"}", 409, "map of changes");
	assert_int_equal(fake.diffs_open, 0);
}

static void snapshots_are_listed_and_the_newest_is_known(void **state)
{
	json_t *json = expect("GET", "/v1/volumes/pgdata/snapshots", NULL, 200);
	const json_t *newest;

	assert_int_equal(json_array_size(json_object_get(json, "snapshots")), 2);
	json_decref(json);
	assert_int_equal(fake.stores_open, 0);
	json = expect("GET", "/v1/status?volume=pgdata", NULL, 200);
	newest = json_object_get(
		json_object_get(json_array_get(json_object_get(json, "volumes"), 0), "snapshots"),
		"newest");
	assert_string_equal(text_of(newest, "id"), "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1");
	json_decref(json);
	assert_int_equal(fake.saw_created_ns, fake.snapshots[1].created_ns);
}

/* As a restore takes it: not what was given up in a split brain. */
static void the_newest_is_of_the_own_history(void **state)
{
	const json_t *newest;
	json_t *json;

	fake.snapshots[1].given_up = true;
	json_decref(expect("GET", "/v1/volumes/pgdata/snapshots", NULL, 200));
	json = expect("GET", "/v1/status?volume=pgdata", NULL, 200);
	newest = json_object_get(
		json_object_get(json_array_get(json_object_get(json, "volumes"), 0), "snapshots"),
		"newest");
	assert_string_equal(text_of(newest, "id"), "a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0");
	json_decref(json);
	assert_int_equal(fake.saw_created_ns, fake.snapshots[0].created_ns);
	fake.snapshots[1].given_up = false;
}

static struct id128 newest_of_status(void)
{
	json_t *json = expect("GET", "/v1/status?volume=pgdata", NULL, 200);
	const char *text = text_of(
		json_object_get(json_object_get(json_array_get(json_object_get(json, "volumes"), 0),
						"snapshots"),
				"newest"),
		"id");
	struct id128 id = {{0}};

	if (text)
		id128_parse(text, strlen(text), &id);
	json_decref(json);
	return id;
}

/* What this node took while it was apart is the newest no more once that is given up; nor is what keeps it. */
static void what_is_given_up_is_not_the_newest(void **state)
{
	struct snapshot_info *kept = &fake.writer.last.info;
	struct id128 newest;

	fake.snapshots[1].history = (struct id128){{7}};
	json_decref(expect("GET", "/v1/volumes/pgdata/snapshots", NULL, 200));
	newest = newest_of_status();
	assert_true(id128_equal(&newest, &fake.snapshots[1].id));
	*kept = fake.snapshots[1];
	kept->id = (struct id128){{0xaa}};
	kept->sequence++;
	kept->history = (struct id128){{8}};
	kept->given_up = true;
	kept->given_up_before[0] = fake.snapshots[1].history;
	fake.snapshots[2] = *kept;
	fake.snapshot_count = 3;
	fake.writer.succeeded++;
	for (unsigned i = 0; i < 600 && !id128_equal(&newest, &fake.snapshots[0].id); i++) {
		usleep(100000);
		newest = newest_of_status();
	}
	assert_true(id128_equal(&newest, &fake.snapshots[0].id));
}

static void *poll_events(void *context)
{
	json_t *json;
	char where[64];

	snprintf(where, sizeof(where), "/v1/events?since=%llu&wait=30",
		 *(unsigned long long *)context);
	http_call(path, "GET", where, NULL, &json, NULL);
	return json;
}

static void changes_become_events(void **state)
{
	json_t *json = expect("GET", "/v1/events", NULL, 200);
	unsigned long long next =
		(unsigned long long)json_integer_value(json_object_get(json, "next"));
	pthread_t poller;
	void *polled;

	assert_true(next > 0); /* the volumes' first states */
	json_decref(json);
	pthread_create(&poller, NULL, poll_events, &next);
	on_loop(become_secondary);
	pthread_join(poller, &polled);
	json = polled;
	assert_int_equal(json_array_size(json_object_get(json, "events")), 1);
	assert_string_equal(text_of(json_array_get(json_object_get(json, "events"), 0), "text"),
			    "role is secondary");
	json_decref(json);
	/* A number from before a restart asks for all. */
	json = expect("GET", "/v1/events?since=100000", NULL, 200);
	assert_int_equal(json_array_size(json_object_get(json, "events")), next + 1);
	json_decref(json);
}

static void metrics_are_prometheus_text(void **state)
{
	char *text;

	assert_int_equal(http_call(path, "GET", "/metrics", NULL, NULL, &text), 200);
	assert_non_null(strstr(text, "\noffsite_nbd_connections 1\n"));
	assert_non_null(strstr(text, "\nprocess_resident_memory_bytes "));
	free(text);
}

static void *ask_job(void *context)
{
	int *status = context;

	*status = http_call(path, "GET", "/v1/jobs/1?wait=30", NULL, NULL, NULL);
	return NULL;
}

static bool waits;

static void look_for_waiting(void)
{
	waits = control->waiting != NULL;
}

static void stop_ends_long_polls_and_waits_for_deletions(void **state)
{
	json_t *json =
		expect("DELETE", "/v1/volumes/pgdata/snapshots/a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0",
		       NULL, 202);
	pthread_t poller;
	int status = 0;

	json_decref(json);
	pthread_create(&poller, NULL, ask_job, &status);
	while (!waits)
		on_loop(look_for_waiting);
	on_loop(begin_stop);
	pthread_join(poller, NULL);
	assert_int_equal(status, 503);
	expect_error("GET", "/v1/status", NULL, 503, "stopping");
	assert_int_equal(sem_trywait(&stopped_sem), -1);
	on_loop(finish_well);
	sem_wait(&stopped_sem);
	assert_true(http_connect(path) < 0);
	on_loop(free_control);
	assert_true(freed);
}

static void a_running_job_keeps_its_memory(void **state)
{
	json_decref(expect("POST", "/v1/volumes/pgdata/verify-snapshots", NULL, 202));
	await_verification();
	on_loop(begin_stop);
	sem_wait(&stopped_sem);
	on_loop(free_control);
	assert_false(freed);
	on_loop(finish_well);
	on_loop(free_control);
	assert_true(freed);
}

static void the_socket_is_private_and_never_stolen(void **state)
{
	struct stat stat_buf;

	assert_int_equal(stat(path, &stat_buf), 0);
	assert_int_equal(stat_buf.st_mode & 07777, 0660);
	on_loop(start_another);
	assert_int_equal(start_error, -EADDRINUSE);
	assert_non_null(strstr(start_why, "another process answers"));
	json_decref(expect("GET", "/v1/status", NULL, 200));
}

static char listen_path[200];
static int listen_error, listen_fd;
static char listen_why[256];

static void try_listen(void)
{
	listen_error =
		control_listen_unix(env, listen_path, &listen_fd, listen_why, sizeof(listen_why));
}

static void a_stale_socket_is_replaced_a_file_is_not(void **state)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(listen_path, sizeof(listen_path), "%s/stale.sock", directory);
	strcpy(address.sun_path, listen_path);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	close(fd);
	on_loop(try_listen);
	assert_int_equal(listen_error, 0);
	close(listen_fd);
	unlink(listen_path);
	fclose(fopen(listen_path, "w"));
	on_loop(try_listen);
	assert_int_equal(listen_error, -EEXIST);
	assert_non_null(strstr(listen_why, "is no socket"));
	assert_int_equal(unlink(listen_path), 0);
	memset(listen_path, 'x', sizeof(listen_path) - 1);
	on_loop(try_listen);
	assert_int_equal(listen_error, -ENAMETOOLONG);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(status_tells_of_node_and_volumes),
		TEST(wrong_requests_get_one_clear_line),
		TEST(options_are_set),
		TEST(a_restore_keeps_the_peer_away),
		TEST(oversize_is_refused_without_reading_it),
		TEST(random_bytes_hurt_nobody),
		TEST(verbs_answer_with_the_volume_or_the_reason),
		TEST(a_resize_answers_with_the_volume_or_the_reason),
		TEST(devices_are_attached_listed_detached),
		TEST(what_both_changed_and_its_end),
		TEST(verify_is_begun_and_cancelled),
		TEST(a_job_runs_and_is_asked_after),
		TEST(a_failed_job_says_why),
		TEST(verification_tells_what_is_damaged),
		TEST(restore_takes_an_id_or_the_newest),
		TEST(what_changed_comes_in_parts),
		TEST(snapshots_are_listed_and_the_newest_is_known),
		TEST(the_newest_is_of_the_own_history),
		TEST(what_is_given_up_is_not_the_newest),
		TEST(changes_become_events),
		TEST(metrics_are_prometheus_text),
		TEST(stop_ends_long_polls_and_waits_for_deletions),
		TEST(a_running_job_keeps_its_memory),
		TEST(the_socket_is_private_and_never_stolen),
		TEST(a_stale_socket_is_replaced_a_file_is_not),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
