/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract of a store, held to a bucket of tests/system/fake_s3.py, which checks every signature and
 * misbehaves by the bucket's name.
 * time limit: 300 s
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "tests/unit/s3_fixture.h"

/* ---- the contract --------------------------------------------------------------------------------- */

static void check_contract(struct world *w)
{
	char buf[64], text[4096];

	assert_int_equal(put(w, "v/packs/1", "hello, world"), 0);
	assert_int_equal(put(w, "v/packs/1", "something else"), -EEXIST);
	assert_int_equal(get(w, "v/packs/1", buf, sizeof(buf), 0), 12);
	assert_memory_equal(buf, "hello, world", 12);
	assert_int_equal(get(w, "v/packs/1", buf, 3, 7), 3);
	assert_memory_equal(buf, "wor", 3);
	assert_int_equal(get(w, "v/packs/1", buf, 9, 12), 0);
	assert_int_equal(get(w, "v/packs/1", buf, 9, 99), 0);
	assert_int_equal(get(w, "v/none", buf, 9, 0), -ENOENT);
	assert_int_equal(get(w, "v/none", buf, 0, 0), -ENOENT);
	assert_int_equal(size(w, "v/packs/1"), 12);
	assert_int_equal(size(w, "v/none"), -ENOENT);
	assert_int_equal(put(w, "v/empty", ""), 0);
	assert_int_equal(size(w, "v/empty"), 0);
	assert_int_equal(get(w, "v/empty", buf, 9, 0), 0);
	for (char name[] = "v/maps/a"; name[7] <= 'h'; name[7]++)
		assert_int_equal(put(w, name, "m"), 0);
	assert_int_equal(put(w, "vv/x", "other"), 0);
	assert_int_equal(list(w, "v/maps/", text), 8);
	assert_string_equal(text,
			    "v/maps/a:1 v/maps/b:1 v/maps/c:1 v/maps/d:1 v/maps/e:1 v/maps/f:1 "
			    "v/maps/g:1 v/maps/h:1 ");
	assert_int_equal(list(w, "", text), 11);
	assert_int_equal(list(w, "none/", text), 0);
	assert_int_equal(list(w, "v", text), -EINVAL);
	assert_int_equal(delete (w, "v/packs/1"), 0);
	assert_int_equal(delete (w, "v/packs/1"), 0);
	assert_int_equal(get(w, "v/packs/1", buf, 9, 0), -ENOENT);
	assert_int_equal(put(w, "V/../x", "x"), -EINVAL);
	assert_false(w->store->blank);
}

static void holds_the_contract(void **state)
{
	struct world *w = world_of(state);

	open_bucket(w, "plain", "");
	check_contract(w);
}

/* A service that answers everything well the fourth time only. */
static void survives_a_storm(void **state)
{
	struct world *w = world_of(state);

	open_bucket(w, "storm", "");
	check_contract(w);
}

static void knows_its_own_put(void **state)
{
	struct world *w = world_of(state);
	char buf[64];

	/* Stored, but the answer is lost: the second try meets the object of the first. */
	open_bucket(w, "resets", "");
	assert_int_equal(put(w, "v/one", "mine"), 0);
	assert_int_equal(put(w, "v/one", "that"), -EEXIST);
	assert_int_equal(get(w, "v/one", buf, sizeof(buf), 0), 4);
	assert_memory_equal(buf, "mine", 4);
}

static void does_without_what_a_service_lacks(void **state)
{
	struct world *w = world_of(state);

	open_bucket(w, "simple", "");
	check_contract(w);
}

static void sends_what_was_damaged_again(void **state)
{
	struct world *w = world_of(state);

	open_bucket(w, "damaging", "");
	check_contract(w);
}

/* By number, then by date: each about a second. */
static void waits_as_it_is_told(void **state)
{
	struct world *w = world_of(state);
	struct timespec begun, now;

	open_bucket(w, "patient", "");
	clock_gettime(CLOCK_MONOTONIC, &begun);
	assert_int_equal(put(w, "v/x", "x"), 0);
	clock_gettime(CLOCK_MONOTONIC, &now);
	assert_true(now.tv_sec - begun.tv_sec >= 2);
}

static void has_a_limit_of_transfers(void **state)
{
	struct world *w = world_of(state);
	struct call calls[9] = {{.done = false}};
	struct iovec iov = {(void *)"x", 1};
	char name[] = "v/0";

	open_bucket(w, "slow", "connections=3");
	for (unsigned i = 0; i < 9; i++, name[2]++) {
		calls[i].op.done = call_done;
		w->store->ops->put(w->store, &calls[i].op, name, &iov, 1);
	}
	for (unsigned i = 0; i < 9; i++) {
		env_run_until(w->env, &calls[i].done);
		assert_int_equal(calls[i].result, 0);
	}
	assert_int_equal(ask_fake(w, "seen/most"), 3);
}

/* What is asked for there is nowhere but through the proxy. */
static void goes_through_a_proxy(void **state)
{
	struct world *w = world_of(state);
	char url[256], why[512] = "", proxy[64];

	snprintf(proxy, sizeof(proxy), "http://127.0.0.1:%u", w->port);
	snprintf(url, sizeof(url), "s3://plain/p?endpoint=http://s3.invalid&proxy=%s", proxy);
	if (store_open(w->env, url, &w->store, why, sizeof(why)))
		fail_msg("%s", why);
	assert_int_equal(put(w, "v/x", "x"), 0);
	close_bucket(w);
	assert_true(ask_fake(w, "seen/proxied") >= 2);
	setenv("http_proxy", proxy, 1);
	if (store_open(w->env, "s3://plain/p?endpoint=http://s3.invalid", &w->store, why,
		       sizeof(why)))
		fail_msg("%s", why);
	assert_int_equal(put(w, "v/y", "y"), 0);
	unsetenv("http_proxy");
}

static void goes_on_after_truncation(void **state)
{
	struct world *w = world_of(state);
	char *data = malloc(300000), *back = malloc(300000);

	for (int i = 0; i < 300000; i++)
		data[i] = (char)(i * 7 + i / 251);
	open_bucket(w, "truncate", "");
	assert_int_equal(put_bytes(w, "v/large", data, 300000), 0);
	assert_int_equal(get(w, "v/large", back, 300000, 0), 300000);
	assert_memory_equal(data, back, 300000);
	free(data);
	free(back);
}

static void leaves_a_trickle(void **state)
{
	struct world *w = world_of(state);
	char buf[64];

	open_bucket(w, "trickle", "timeout=1");
	assert_int_equal(put(w, "v/slow", "drip, drip, drip"), 0);
	assert_int_equal(get(w, "v/slow", buf, sizeof(buf), 0), 16);
	assert_memory_equal(buf, "drip, drip, drip", 16);
}

static void gives_up_in_time(void **state)
{
	struct world *w = world_of(state);
	time_t begun = time(NULL);
	char buf[8];

	open_bucket(w, "broken", "retry=1");
	assert_int_equal(get(w, "v/x", buf, 8, 0), -EREMOTEIO);
	assert_int_equal(put(w, "v/x", "x"), -EREMOTEIO);
	close_bucket(w);
	open_bucket(w, "hang", "retry=1&timeout=1");
	assert_int_equal(get(w, "v/x", buf, 8, 0), -ETIMEDOUT);
	assert_true(time(NULL) - begun < 60); /* else two minutes, as in stops_at_once() */
}

static void stops_at_once(void **state)
{
	struct world *w = world_of(state);
	struct call call = {.op.done = call_done};
	time_t begun = time(NULL);
	char buf[8];

	open_bucket(w, "hang", "");
	w->store->ops->get(w->store, &call.op, "v/x", buf, 8, 0);
	store_stop(w->store);
	env_run_until(w->env, &call.done);
	assert_int_equal(call.result, -ESHUTDOWN);
	assert_int_equal(put(w, "v/x", "x"), -ESHUTDOWN);
	assert_true(time(NULL) - begun < 60);
}

static void finds_the_region(void **state)
{
	struct world *w = world_of(state);

	open_bucket(w, "elsewhere", "");
	check_contract(w);
}

static void refuses_wrong_answers(void **state)
{
	struct world *w = world_of(state);
	char buf[64], text[4096];

	open_bucket(w, "noranges", "");
	assert_int_equal(put(w, "v/x", "0123456789"), 0);
	assert_int_equal(get(w, "v/x", buf, 64, 0), 10);
	assert_int_equal(get(w, "v/x", buf, 4, 3), -EREMOTEIO);
	assert_int_equal(get(w, "v/x", buf, 4, 0), -EREMOTEIO);
	close_bucket(w);
	open_bucket(w, "otherrange", "");
	assert_int_equal(put(w, "v/x", "0123456789"), 0);
	assert_int_equal(get(w, "v/x", buf, 4, 3), -EREMOTEIO);
	close_bucket(w);
	open_bucket(w, "disordered", "");
	assert_int_equal(put(w, "v/a", "1"), 0);
	assert_int_equal(put(w, "v/b", "1"), 0);
	assert_int_equal(list(w, "v/", text), -EREMOTEIO);
	close_bucket(w);
	open_bucket(w, "cutlist", "");
	assert_int_equal(put(w, "v/a", "1"), 0);
	assert_int_equal(list(w, "v/", text), 1);
	assert_string_equal(text, "v/a:1 ");
}

static void one_line_of_reason(void **state)
{
	static const struct {
		const char *bucket;
		int error;
		const char *words;
	} cases[] = {
		{"missing", -ENXIO, "there is no such bucket (status 404 NoSuchBucket: it & that)"},
		{"skewed", -ETIME, "the clock here is 0 minutes"},
		{"expired", -EKEYEXPIRED, "have expired"},
		{"forbidden", -EACCES, "the store denies access (status 403 AccessDenied"},
		{"lost", -EREMOTE, "the bucket is in another region"},
		{"BAD", -EINVAL, "the name of a bucket"},
	};
	struct world *w = world_of(state);
	char why[512];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(open_why(w, cases[i].bucket, "", why), cases[i].error);
		if (!strstr(why, cases[i].words) || strchr(why, '\n'))
			fail_msg("%s: %s", cases[i].bucket, why);
	}
	setenv("AWS_SECRET_ACCESS_KEY", "wrong", 1);
	assert_int_equal(open_why(w, "plain", "", why), -EKEYREJECTED);
	clear_environment();
	open_bucket(w, "readonly", "");
	assert_int_equal(put(w, "v/x", "x"), -EACCES);
}

/* ---- in parts ----------------------------------------------------------------------------------------- */

#define LARGE_BYTES (11u * 1024 * 1024 + 5)

static char *large(void)
{
	char *data = malloc(LARGE_BYTES);

	for (unsigned i = 0; i < LARGE_BYTES; i++)
		data[i] = (char)(i * 31 + i / 65537);
	return data;
}

static void put_large(struct world *w, const char *bucket, const char *name, int64_t expected)
{
	char *data = large(), *back = malloc(LARGE_BYTES);

	open_bucket(w, bucket, "part-size=5&checksum=md5");
	assert_int_equal(put_bytes(w, name, data, LARGE_BYTES), expected);
	if (!expected) {
		assert_int_equal(get(w, name, back, LARGE_BYTES, 0), LARGE_BYTES);
		assert_memory_equal(data, back, LARGE_BYTES);
		assert_int_equal(put_bytes(w, name, data, LARGE_BYTES), -EEXIST);
	}
	close_bucket(w);
	free(data);
	free(back);
}

static void puts_large_objects_in_parts(void **state)
{
	struct world *w = world_of(state);

	put_large(w, "plain", "v/packs/large", 0);
	put_large(w, "resets", "v/packs/large", 0);
	put_large(w, "halfdone", "v/packs/large", 0);
}

static unsigned uploads(struct world *w, const char *bucket)
{
	char what[64];

	snprintf(what, sizeof(what), "uploads/%s", bucket);
	return ask_fake(w, what);
}

/* With CRC32C, which the parts and their list carry then. Small, as the fake counts it in Python. */
static void parts_carry_checksums(void **state)
{
	struct world *w = world_of(state);
	char *data = large(), *back = malloc(LARGE_BYTES);
	struct store_counts counts;

	open_bucket(w, "plain", "part-size=5");
	assert_int_equal(put_bytes(w, "v/packs/sums", data, 5 * 1024 * 1024 + 7), 0);
	assert_int_equal(get(w, "v/packs/sums", back, LARGE_BYTES, 0), 5 * 1024 * 1024 + 7);
	assert_memory_equal(data, back, 5 * 1024 * 1024 + 7);
	store_counts(w->store, &counts);
	assert_int_equal(counts.puts, 4); /* begin, two parts, end */
	assert_int_equal(counts.gets, 1);
	assert_int_equal(counts.heads, 1);
	assert_int_equal(counts.retries, 0);
	assert_true(counts.sent_bytes >= 5 * 1024 * 1024 + 7);
	free(data);
	free(back);
}

/* What a process left that was killed while it put an object in parts, more than a day ago. */
static void sweeps_old_parts(void **state)
{
	struct world *w = world_of(state);

	put_large(w, "forgetful",
		  "0123456789abcdef0123456789abcdef/packs/0000000000000001-"
		  "0123456789abcdef0123456789abcdef-00000000",
		  -EREMOTEIO);
	assert_int_equal(uploads(w, "forgetful"), 1);
	open_bucket(w, "forgetful", "");
	for (unsigned i = 0; uploads(w, "forgetful") && i < 600; i++)
		usleep(100000);
	close_bucket(w);
	assert_int_equal(uploads(w, "forgetful"), 0);
}

static void leaves_no_parts_behind(void **state)
{
	struct world *w = world_of(state);

	put_large(w, "parts", "v/packs/failpart", -EREMOTEIO);
	assert_int_equal(uploads(w, "parts"), 0);
}

/* ---- credentials ------------------------------------------------------------------------------------------ */

static void take_roles(struct world *w)
{
	char host[64];

	unsetenv("AWS_ACCESS_KEY_ID");
	unsetenv("AWS_EC2_METADATA_DISABLED");
	snprintf(host, sizeof(host), "http://127.0.0.1:%u", w->port);
	setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", host, 1);
}

/* The first keys that the instance gets are refused as expired, the next ones do. */
static void role_of_the_instance(void **state)
{
	struct world *w = world_of(state);

	take_roles(w);
	open_bucket(w, "expired", "");
	check_contract(w);
	clear_environment();
}

static void role_of_the_container(void **state)
{
	struct world *w = world_of(state);
	char url[64];

	take_roles(w);
	setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
	snprintf(url, sizeof(url), "http://127.0.0.1:%u/container", w->port);
	setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url, 1);
	setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "let me in", 1);
	open_bucket(w, "plain", "");
	assert_int_equal(put(w, "v/x", "x"), 0);
	unsetenv("AWS_CONTAINER_AUTHORIZATION_TOKEN");
	clear_environment();
}

/* Keys that end in three minutes are replaced before the next request, not when they are refused. */
static void role_is_asked_again_in_time(void **state)
{
	struct world *w = world_of(state);

	ask_fake(w, "short");
	take_roles(w);
	open_bucket(w, "early", "");
	assert_int_equal(put(w, "v/x", "x"), 0);
	clear_environment();
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(holds_the_contract),
		TEST(survives_a_storm),
		TEST(knows_its_own_put),
		TEST(does_without_what_a_service_lacks),
		TEST(sends_what_was_damaged_again),
		TEST(waits_as_it_is_told),
		TEST(has_a_limit_of_transfers),
		TEST(goes_through_a_proxy),
		TEST(goes_on_after_truncation),
		TEST(leaves_a_trickle),
		TEST(gives_up_in_time),
		TEST(stops_at_once),
		TEST(finds_the_region),
		TEST(refuses_wrong_answers),
		TEST(one_line_of_reason),
		TEST(puts_large_objects_in_parts),
		TEST(parts_carry_checksums),
		TEST(sweeps_old_parts),
		TEST(leaves_no_parts_behind),
		TEST(role_of_the_instance),
		TEST(role_of_the_container),
		TEST(role_is_asked_again_in_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
