/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes over the wire beside the contract, and what is left behind: encryption by the service, Amazon's
 * accelerated endpoint and TLS through a proxy, a container's credentials, parts of what was stopped or killed, and
 * how long a service is left alone. Against tests/system/fake_s3.py.
 * time limit: 200 s
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <sys/syscall.h>

#include "daemon/store/s3_internal.h"
#include "tests/unit/s3_fixture.h"

#define VOLUME "0123456789abcdef0123456789abcdef"
#define PACK   VOLUME "/packs/0000000000000001-" VOLUME "-00000000"

/* ---- a container's address, which this machine does not have ------------------------------------ */

static unsigned container_port; /* where 169.254.170.2:80 leads to; 0: nowhere else */

/* In place of the C library's, also for libcurl. */
int connect(int fd, const struct sockaddr *address, socklen_t length)
{
	struct sockaddr_in in;

	if (container_port && address->sa_family == AF_INET && length >= sizeof(in)) {
		memcpy(&in, address, sizeof(in));
		if (in.sin_addr.s_addr == inet_addr("169.254.170.2") && in.sin_port == htons(80)) {
			in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
			in.sin_port = htons((uint16_t)container_port);
			return (int)syscall(SYS_connect, fd, &in, sizeof(in));
		}
	}
	return (int)syscall(SYS_connect, fd, address, length);
}

/* With a token that somebody else renews in a file. */
static void role_of_the_container_by_relative_address(void **state)
{
	struct world *w = world_of(state);
	char path[] = "/tmp/offsite-token-XXXXXX";
	int fd = mkstemp(path);

	assert_int_equal(write(fd, "let me in\n", 10), 10);
	close(fd);
	unsetenv("AWS_ACCESS_KEY_ID");
	setenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/container", 1);
	setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "an old one", 1);
	setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", path, 1);
	container_port = w->port;
	open_bucket(w, "plain", "");
	container_port = 0;
	assert_int_equal(put(w, "v/x", "x"), 0);
	assert_int_equal(ask_fake(w, "seen/host-169.254.170.2"), 1);
	unsetenv("AWS_CONTAINER_AUTHORIZATION_TOKEN");
	unsetenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
	clear_environment();
	unlink(path);
}

/* ---- TLS ------------------------------------------------------------------------------------------- */

struct tls {
	char dir[32];
	unsigned port;
};

static struct tls tls_begin(struct world *w)
{
	struct tls tls = {.dir = "/tmp/offsite-tls-XXXXXX"};
	char what[64];

	assert_non_null(mkdtemp(tls.dir));
	snprintf(what, sizeof(what), "tls/%s", tls.dir);
	tls.port = ask_fake(w, what);
	assert_true(tls.port > 0);
	return tls;
}

static void tls_end(struct tls *tls)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -rf '%s'", tls->dir);
	assert_int_equal(system(command), 0);
}

static void open_url(struct world *w, const char *url)
{
	char why[512] = "";

	if (store_open(w->env, url, &w->store, why, sizeof(why)))
		fail_msg("%s", why);
}

/* A tunnel to the service's name, the service's certificate behind it, and the bucket in the host's name. */
static void accelerated_through_a_proxy(void **state)
{
	struct world *w = world_of(state);
	struct tls tls = tls_begin(w);
	char url[256], buf[8];

	snprintf(url, sizeof(url),
		 "s3://quick/p?accelerate=yes&region=here&ca-file=%s/ca.pem&proxy=http://"
		 "127.0.0.1:%u",
		 tls.dir, w->port);
	open_url(w, url);
	assert_int_equal(put(w, "v/x", "fast"), 0);
	assert_int_equal(get(w, "v/x", buf, sizeof(buf), 0), 4);
	assert_memory_equal(buf, "fast", 4);
	assert_true(ask_fake(w, "seen/host-quick.s3-accelerate.amazonaws.com") >= 3);
	assert_true(ask_fake(w, "seen/connect-quick.s3-accelerate.amazonaws.com:443") >= 1);
	tls_end(&tls);
}

/* Whoever sits in the middle needs the certificate. */
static void what_a_proxy_leads_to_is_checked(void **state)
{
	struct world *w = world_of(state);
	struct tls tls = tls_begin(w);
	char url[256], why[512] = "";

	snprintf(url, sizeof(url),
		 "s3://quick/p?endpoint=https://elsewhere.invalid&ca-file=%s/ca.pem&"
		 "proxy=http://127.0.0.1:%u&retry=0",
		 tls.dir, w->port);
	assert_int_equal(store_open(w->env, url, &w->store, why, sizeof(why)), -EPROTO);
	assert_non_null(strstr(why, "cannot be trusted"));
	tls_end(&tls);
}

static void key_write(const struct tls *tls, char path[64])
{
	FILE *file;

	snprintf(path, 64, "%s/customer", tls->dir);
	file = fopen(path, "w");
	assert_non_null(file);
	assert_int_equal(fprintf(file, "%032d", 7), 32);
	assert_int_equal(fclose(file), 0);
}

/* Amazon wants the key with each part and, as the parts have checksums, when they are put together. */
static void customers_key_goes_with_parts(void **state)
{
	struct world *w = world_of(state);
	struct tls tls = tls_begin(w);
	const size_t length = 5 * 1024 * 1024 + 7;
	char *data = calloc(1, length), *back = malloc(length), url[256], path[64], why[512] = "";

	memset(data, 'd', length / 2);
	key_write(&tls, path);
	snprintf(url, sizeof(url),
		 "s3://plain/p?endpoint=https://127.0.0.1:%u&region=here&ca-file=%s/ca.pem&"
		 "part-size=5&sse=customer&sse-key-file=%s",
		 tls.port, tls.dir, path);
	open_url(w, url);
	assert_int_equal(put_bytes(w, PACK, data, length), 0);
	assert_int_equal(ask_fake(w, "seen/keys"), 3); /* two parts, and the end of it */
	assert_int_equal(get(w, PACK, back, length, 0), (int64_t)length);
	assert_memory_equal(data, back, length);
	close_bucket(w);
	/* Not in plain text, whoever named the endpoint. */
	snprintf(url, sizeof(url), "s3://plain/p?sse=customer&sse-key-file=%s", path);
	setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1", 1);
	assert_int_equal(store_open(w->env, url, &w->store, why, sizeof(why)), -EINVAL);
	assert_non_null(strstr(why, "in plain text"));
	unsetenv("AWS_ENDPOINT_URL_S3");
	tls_end(&tls);
	free(data);
	free(back);
}

static void service_encrypts_as_it_is_told(void **state)
{
	struct world *w = world_of(state);
	const size_t length = 5 * 1024 * 1024 + 7;
	char *data = calloc(1, length);

	open_bucket(w, "plain", "sse=AES256&part-size=5");
	assert_int_equal(put(w, "v/x", "x"), 0);
	assert_int_equal(put_bytes(w, PACK, data, length), 0);
	close_bucket(w);
	assert_int_equal(ask_fake(w, "seen/sse-PUT-AES256"), 1);  /* whole */
	assert_int_equal(ask_fake(w, "seen/sse-POST-AES256"), 1); /* begun; not its parts */
	open_bucket(w, "plain", "sse=aws:kms&sse-kms-key=k");
	assert_int_equal(put(w, "v/y", "y"), 0);
	assert_int_equal(ask_fake(w, "seen/sse-PUT-aws:kms"), 1);
	free(data);
}

/* ---- parts that are left ---------------------------------------------------------------------------- */

static unsigned uploads(struct world *w, const char *bucket)
{
	char what[64];

	snprintf(what, sizeof(what), "uploads/%s", bucket);
	return ask_fake(w, what);
}

/* In the middle of an object that is put in parts. */
static void stop_while_parts_are_put(struct world *w, const char *bucket, unsigned left)
{
	struct call call = {.op.done = call_done};
	char *data = calloc(1, 11 << 20);
	struct iovec iov = {data, 11 << 20};
	unsigned before = ask_fake(w, "seen/stuck");

	open_bucket(w, bucket, "part-size=5&checksum=md5");
	w->store->ops->put(w->store, &call.op, PACK, &iov, 1);
	for (unsigned i = 0; ask_fake(w, "seen/stuck") == before && i < 600; i++)
		usleep(100000);
	assert_int_equal(uploads(w, bucket), 1);
	store_stop(w->store);
	env_run_until(w->env, &call.done);
	assert_int_equal(call.result, -ESHUTDOWN);
	close_bucket(w);
	assert_int_equal(uploads(w, bucket), left);
	free(data);
}

static void what_is_stopped_leaves_no_parts(void **state)
{
	struct world *w = world_of(state);

	stop_while_parts_are_put(w, "stuck", 0);
	/* Not for long, if the service does not answer. */
	stop_while_parts_are_put(w, "stubborn", 1);
}

static void plant(struct world *w, const char *key)
{
	char what[256];

	snprintf(what, sizeof(what), "plant/shared/%s", key);
	ask_fake(w, what);
}

/* Ours are on the second and third page; the bucket is not ours alone. */
static void sweeps_its_own_parts_on_all_pages(void **state)
{
	static const char *const others[] = {"0/a",
					     "0/b",
					     "0/c",
					     "0/d",
					     VOLUME "/packs/film.mkv",
					     "backup/packs/0000000000000001-" VOLUME "-00000000",
					     "zebra"};
	struct world *w = world_of(state);
	char url[256];

	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		plant(w, others[i]);
	plant(w, PACK);
	plant(w, VOLUME "/packs/0000000000000002-" VOLUME "-00000000");
	plant(w, VOLUME "/maps/0000000000000002-" VOLUME "-00000001");
	plant(w, VOLUME "/snapshots/0000000000000002-" VOLUME);
	assert_int_equal(uploads(w, "shared"), 11);
	snprintf(url, sizeof(url), "s3://shared?endpoint=http://127.0.0.1:%u&region=here", w->port);
	open_url(w, url);
	for (unsigned i = 0; uploads(w, "shared") > 7 && i < 600; i++)
		usleep(100000);
	close_bucket(w);
	assert_int_equal(uploads(w, "shared"), 7);
}

static enum s3_next sweep_answer(struct s3_op *op, const char *text, long status)
{
	struct s3_answer a = {.status = status, .text = (char *)text, .text_length = strlen(text)};
	struct s3_request r;

	assert_int_equal(s3_op_request(op, &r), 0);
	curl_slist_free_all(r.headers);
	return s3_op_answer(op, &a);
}

/* Whatever came of it: it sleeps, and begins at the first page then. */
static void sweeps_every_day(void **state)
{
	struct s3_store s3 = {.url = {.prefix = (char *)"p/", .retry_s = 0}};
	struct s3_op *op = s3_op_new(&s3, S3_OP_SWEEP, "");
	const uint64_t day = 24ull * 3600 * 1000;

	s3_op_begin(op);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(
			sweep_answer(op,
				     "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>"
				     "<NextKeyMarker>p/k&amp;</NextKeyMarker><NextUploadIdMarker>u+"
				     "</NextUploadIdMarker></ListMultipartUploadsResult>",
				     200),
			S3_NEXT_STEP);
		assert_string_equal(op->query, "prefix=p%2F&uploads=");
		assert_int_equal(sweep_answer(op,
					      i == 0   ? "<ListMultipartUploadsResult>"
							 "</ListMultipartUploadsResult>"
					      : i == 1 ? "<ListMultipartUploadsResult>cut"
						       : "<Error><Code>AccessDenied</Code></Error>",
					      i == 2 ? 403 : 200),
				 S3_NEXT_AGAIN);
		assert_string_equal(
			op->query,
			"key-marker=p%2Fk%26&prefix=p%2F&upload-id-marker=u%2B&uploads=");
		assert_true(op->wake_ms > s3_now_ms() + day / 2);
		assert_true(op->wake_ms <= s3_now_ms() + day);
	}
	s3_op_free(op);
}

/* ---- how long it waits ------------------------------------------------------------------------------ */

/* How long until the next try, the tries-th of which failed just now; from before it was asked, and from after. */
struct pause {
	bool none;
	int64_t before_ms, after_ms;
};

static struct pause pause_of(struct s3_op *op, unsigned tries, unsigned retry_after_s)
{
	struct s3_answer a = {.status = 503, .retry_after_s = retry_after_s};
	uint64_t now = s3_now_ms();
	struct pause pause;

	op->tries = tries;
	op->first_try_ms = now;
	pause.none = s3_op_again(op, &a, -EAGAIN) == S3_NEXT_DONE;
	pause.before_ms = (int64_t)(op->wake_ms - now);
	pause.after_ms = (int64_t)(op->wake_ms - s3_now_ms());
	return pause;
}

static void pauses_grow_and_are_random(void **state)
{
	struct s3_store s3 = {.url = {.prefix = (char *)"p/", .retry_s = 86400}};
	struct s3_op *op = s3_op_new(&s3, S3_OP_DELETE, "x");

	for (unsigned tries = 1; tries < 12; tries++) {
		int64_t limit = 100ll << (tries > 8 ? 8 : tries - 1);
		int64_t least = INT64_MAX, most = 0;

		for (unsigned i = 0; i < 200; i++) {
			struct pause pause = pause_of(op, tries, 0);

			assert_false(pause.none);
			least = pause.before_ms < least ? pause.before_ms : least;
			most = pause.before_ms > most ? pause.before_ms : most;
			assert_true(pause.before_ms >= limit / 2);
			assert_true(pause.after_ms <= (limit < 20000 ? limit : 20000));
		}
		if (limit < 20000) /* 200 clients do not come back at one moment */
			assert_true(most - least > limit / 4);
	}
	s3_op_free(op);
}

static void is_left_alone_as_long_as_it_says(void **state)
{
	struct s3_store s3 = {.url = {.prefix = (char *)"p/", .retry_s = 600}};
	struct s3_op *op = s3_op_new(&s3, S3_OP_DELETE, "x");

	assert_true(pause_of(op, 1, 30).before_ms >= 30000);
	assert_true(pause_of(op, 1, 61).before_ms >= 61000);
	assert_true(pause_of(op, 1, 590).before_ms >= 590000);
	assert_true(pause_of(op, 1, 590).after_ms <= 600000);
	assert_false(pause_of(op, 1, 590).none);
	/* Longer than it may take at all: not tried again, and said. */
	assert_true(pause_of(op, 1, 601).none);
	assert_int_equal(op->result, -EAGAIN);
	assert_non_null(strstr(op->message, "before 601 s (Retry-After)"));
	s3_op_free(op);
}

static void gives_up_where_it_would_have_to_wait_for_too_long(void **state)
{
	struct world *w = world_of(state);

	open_bucket(w, "busy", "");
	assert_int_equal(put(w, "v/x", "x"), -EAGAIN);
	assert_int_equal(size(w, "v/x"), -EAGAIN);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(role_of_the_container_by_relative_address),
		TEST(accelerated_through_a_proxy),
		TEST(what_a_proxy_leads_to_is_checked),
		TEST(customers_key_goes_with_parts),
		TEST(service_encrypts_as_it_is_told),
		TEST(what_is_stopped_leaves_no_parts),
		TEST(sweeps_its_own_parts_on_all_pages),
		cmocka_unit_test(sweeps_every_day),
		cmocka_unit_test(pauses_grow_and_are_random),
		cmocka_unit_test(is_left_alone_as_long_as_it_says),
		TEST(gives_up_where_it_would_have_to_wait_for_too_long),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
