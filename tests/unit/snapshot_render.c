// SPDX-License-Identifier: Apache-2.0
/* What is said of a snapshot in JSON, whatever its manifest says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "daemon/snapshot/render.h"

static const char *text(const json_t *json, const char *key)
{
	return json_string_value(json_object_get(json, key));
}

static void what_is_not_known_is_null(void **state)
{
	const struct snapshot_info info = {.sequence = 7};
	json_t *json = render_snapshot(&info);

	assert_int_equal(json_integer_value(json_object_get(json, "sequence")), 7);
	assert_true(json_is_null(json_object_get(json, "created")));
	assert_true(json_is_null(json_object_get(json, "history")));
	assert_true(json_is_null(json_object_get(json, "requests")));
	assert_true(json_is_null(json_object_get(json, "lock")));
	assert_true(json_is_null(json_object_get(json, "locked_until")));
	assert_int_equal(json_array_size(json_object_get(json, "given_up_before")), 0);
	json_decref(json);
}

/* A store is anybody's: what it holds is listed all the same. */
static void texts_that_are_no_utf8_hide_no_snapshot(void **state)
{
	struct snapshot_info info = {.created_ns = 1795853540000000000};
	json_t *json;

	strcpy(info.label, "gr\xfc\xdf");
	strcpy(info.node_name, "a\xff");
	json = render_snapshot(&info);
	assert_non_null(json);
	assert_string_equal(text(json, "label"), "gr??");
	assert_string_equal(text(json, "node"), "a?");
	assert_string_equal(text(json, "created"), "2026-11-28T08:12:20Z");
	json_decref(json);
}

static void numbers_end_where_json_does(void **state)
{
	json_t *json = render_number(UINT64_MAX);

	assert_true(json_integer_value(json) == INT64_MAX);
	json_decref(json);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_not_known_is_null),
		cmocka_unit_test(texts_that_are_no_utf8_hide_no_snapshot),
		cmocka_unit_test(numbers_end_where_json_does),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
