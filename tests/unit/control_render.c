// SPDX-License-Identifier: Apache-2.0
/*
 * Rendering, the ring of events, and which jobs exclude which.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#include "daemon/control/events.h"
#include "daemon/control/jobs.h"
#include "daemon/control/render.h"
#include "tests/unit/control_fake.h"

struct node fake;

static void text_that_is_no_utf8_is_shown_all_the_same(void **state)
{
	json_t *json = render_text("a\xff"
				   "b");

	assert_string_equal(json_string_value(json), "a?b");
	json_decref(json);
	json = render_text("g\xc3\xbc");
	assert_string_equal(json_string_value(json), "g\xc3\xbc");
	json_decref(json);
}

static void times_are_utc_and_unknown_is_null(void **state)
{
	json_t *json = render_time(1700000000123456789ull);

	assert_string_equal(json_string_value(json), "2023-11-14T22:13:20Z");
	json_decref(json);
	json = render_time(0);
	assert_true(json_is_null(json));
	json_decref(json);
}

static void progress_has_rate_and_time_left(void **state)
{
	struct snapshot_progress progress = {
		.done_bytes = 100, .total_bytes = 400, .started_ns = 1000000000};
	json_t *json = render_progress(&progress, 3000000000);

	assert_true(json_number_value(json_object_get(json, "rate_bytes")) == 50.0);
	assert_true(json_number_value(json_object_get(json, "eta_seconds")) == 6.0);
	json_decref(json);
	/* Nothing done yet: no guess. A total that shrank below done: none either. */
	progress.done_bytes = 0;
	json = render_progress(&progress, 3000000000);
	assert_true(json_is_null(json_object_get(json, "eta_seconds")));
	json_decref(json);
	progress.done_bytes = 500;
	json = render_progress(&progress, 3000000000);
	assert_true(json_is_null(json_object_get(json, "eta_seconds")));
	json_decref(json);
	/* Not started, and a clock before the start. */
	progress = (struct snapshot_progress){.started_ns = 5};
	json = render_progress(&progress, 1);
	assert_true(json_number_value(json_object_get(json, "elapsed_seconds")) == 0.0);
	json_decref(json);
}

static struct watch_sample full_sample(void)
{
	struct watch_sample sample = {.volume = &fake.volumes[0],
				      .open = true,
				      .replicated = true,
				      .stored = true,
				      .size_bytes = 4096};

	sample.state = fake.state;
	sample.replication.state = REPLICATION_CATCH_UP;
	sample.replication.source = true;
	sample.replication.protocol = REPLICATION_B;
	sample.replication.lag_ns = 1500000000;
	sample.replication.catch_up_total_bytes = 10;
	sample.replication.unreadable_bytes = 4096;
	sample.replication.unreadable_offset = 8192;
	sample.exports[0] =
		(struct exports_snapshot){{{7}}, .created_ns = 1700000000000000000, .clients = 2};
	sample.export_count = 1;
	return sample;
}

static void a_volume_has_its_documented_members(void **state)
{
	struct watch_sample sample = full_sample();
	json_t *json = render_volume(&sample, 0, 0), *part;

	assert_string_equal(json_string_value(json_object_get(json, "role")), "primary");
	assert_true(json_is_null(json_object_get(json, "busy")));
	part = json_object_get(json, "replication");
	assert_string_equal(json_string_value(json_object_get(part, "protocol")), "B");
	assert_string_equal(json_string_value(json_object_get(part, "direction")), "source");
	assert_true(json_is_object(json_object_get(part, "catch_up")));
	assert_int_equal(
		json_integer_value(json_object_get(json_object_get(part, "unreadable"), "offset")),
		8192);
	assert_true(json_number_value(json_object_get(part, "lag_seconds")) == 1.5);
	part = json_object_get(json, "exports");
	assert_int_equal(json_array_size(part), 1);
	part = json_array_get(part, 0);
	assert_string_equal(json_string_value(json_object_get(part, "snapshot")),
			    "07000000000000000000000000000000");
	assert_string_equal(json_string_value(json_object_get(part, "created")),
			    "2023-11-14T22:13:20Z");
	assert_int_equal(json_integer_value(json_object_get(part, "clients")), 2);
	part = json_object_get(json, "snapshots");
	assert_true(json_is_null(json_object_get(part, "newest")));
	json_decref(json);
	/* A store that cannot be opened is there all the same, with its reason. */
	sample.stored = false;
	strcpy(fake.volumes[0].store_error, "store file:/store: Permission denied");
	json = render_volume(&sample, 0, 0);
	part = json_object_get(json, "snapshots");
	assert_string_equal(json_string_value(json_object_get(part, "store")), "file:/store");
	assert_true(json_is_false(json_object_get(part, "open")));
	assert_string_equal(json_string_value(json_object_get(part, "last_error")),
			    "store file:/store: Permission denied");
	json_decref(json);
	fake.volumes[0].store_error[0] = '\0';
	/* Not connected: the peer's role is not known. */
	sample.replication.state = REPLICATION_CONNECTING;
	sample.replication.peer_known = false;
	sample.replication.seen_ns = 1700000000000000000;
	sample.replication.seen_disk = VOLUME_DISK_OUTDATED;
	json = render_volume(&sample, 0, 0);
	part = json_object_get(json, "replication");
	assert_string_equal(json_string_value(json_object_get(part, "peer_role")), "unknown");
	assert_string_equal(json_string_value(json_object_get(part, "peer_seen_disk")), "outdated");
	assert_true(json_is_null(json_object_get(part, "catch_up")));
	json_decref(json);
}

static void a_comparison_has_its_result_and_progress(void **state)
{
	struct verify_status verify = {
		.record = {.state = VERIFY_RUNNING,
			   .repair = VERIFY_REPAIR_FROM_PEER,
			   .size_bytes = 1000 * 4096,
			   .position_bytes = 600 * 4096,
			   .differ_bytes = 8192,
			   .extents = 1,
			   .listed = 1,
			   .extent = {{4096, 8192}}},
		.active = true,
		.since_ns = 1000000000,
		.since_bytes = 500 * 4096, /* went on from here */
	};
	json_t *json = render_verify(&verify, 2000000000), *part;

	part = json_object_get(json, "progress");
	assert_true(json_number_value(json_object_get(part, "eta_seconds")) == 4.0);
	assert_string_equal(json_string_value(json_object_get(json, "repair_from")), "peer");
	assert_true(json_is_false(json_object_get(json, "waiting")));
	part = json_array_get(json_object_get(json, "extents"), 0);
	assert_int_equal(json_integer_value(json_object_get(part, "length_bytes")), 8192);
	json_decref(json);
	verify.active = false;
	json = render_verify(&verify, 2000000000);
	assert_true(json_is_true(json_object_get(json, "waiting")));
	json_decref(json);
	verify.record.state = VERIFY_DONE;
	verify.record.ended_ns = 1700000000000000000;
	json = render_verify(&verify, 2000000000);
	assert_true(json_is_null(json_object_get(json, "progress")));
	assert_string_equal(json_string_value(json_object_get(json, "ended")),
			    "2023-11-14T22:13:20Z");
	json_decref(json);
	verify.record.state = VERIFY_NEVER;
	json = render_verify(&verify, 0);
	assert_true(json_is_null(json));
	json_decref(json);
}

static void metrics_are_grouped_and_escaped(void **state)
{
	struct watch_sample samples[2] = {full_sample(), {.volume = &fake.volumes[1]}};
	struct nbd_server_stats nbd = {.connections = 7};
	struct render_metrics metrics = {.node = "al\"pha\\\n",
					 .backend = "io_uring",
					 .nbd = &nbd,
					 .samples = samples,
					 .count = 2,
					 .realtime_ns = 20000000000};
	char *text, *at;

	samples[0].stored = false; /* its store is not open */
	samples[0].verify.record.differ_bytes = 4096;
	samples[0].newest.sequence = 1;
	samples[0].newest.created_ns = 5000000000;
	text = render_metrics(&metrics);
	assert_non_null(strstr(text, "node=\"al\\\"pha\\\\\\n\""));
	assert_non_null(strstr(text, "\noffsite_volume_up{volume=\"pgdata\"} 1\n"));
	assert_non_null(strstr(text, "\noffsite_verify_differ_bytes{volume=\"pgdata\"} 4096\n"));
	assert_non_null(strstr(text, "\noffsite_volume_up{volume=\"broken\"} 0\n"));
	assert_non_null(strstr(text, "\noffsite_volume_size_bytes{volume=\"pgdata\"} 4096\n"));
	assert_null(strstr(text, "offsite_volume_size_bytes{volume=\"broken\"}"));
	assert_non_null(
		strstr(text, "offsite_replication_lag_seconds{volume=\"pgdata\"} 1.500000\n"));
	assert_non_null(strstr(text, "\noffsite_snapshot_age_seconds{volume=\"pgdata\"} 15.000\n"));
	assert_non_null(strstr(text, "\noffsite_nbd_connections 7\n"));
	assert_non_null(strstr(text, "\noffsite_store_up{volume=\"pgdata\"} 0\n"));
	assert_null(strstr(text, "offsite_store_up{volume=\"broken\"}"));
	assert_non_null(strstr(text, "\noffsite_volume_disk_state{volume=\"pgdata\","
				     "state=\"outdated\"} 0\n"));
	assert_non_null(strstr(text, "\noffsite_replication_state{volume=\"pgdata\","
				     "state=\"catch-up\"} 1\n"));
	/* Every metric is described once. */
	at = strstr(text, "# TYPE offsite_volume_role ");
	assert_non_null(at);
	assert_null(strstr(at + 1, "# TYPE offsite_volume_role "));
	free(text);
}

static unsigned changes;

static void changed(void *context)
{
	changes++;
}

static void the_ring_keeps_the_newest_events(void **state)
{
	struct events *events = events_new(changed, NULL);
	json_t *list = events_render(events, 0);

	assert_int_equal(json_array_size(list), 0);
	json_decref(list);
	for (unsigned i = 1; i <= EVENTS_KEPT + 10; i++)
		events_add(events, 1, "job", "v", "event %u", i);
	assert_int_equal(changes, EVENTS_KEPT + 10);
	list = events_render(events, 0);
	assert_int_equal(json_array_size(list), EVENTS_KEPT);
	assert_int_equal(json_integer_value(json_object_get(json_array_get(list, 0), "id")), 11);
	json_decref(list);
	list = events_render(events, EVENTS_KEPT + 9);
	assert_int_equal(json_array_size(list), 1);
	assert_string_equal(json_string_value(json_object_get(json_array_get(list, 0), "text")),
			    "event 1034");
	json_decref(list);
	list = events_render(events, EVENTS_KEPT + 10);
	assert_int_equal(json_array_size(list), 0);
	json_decref(list);
	events_free(events);
}

static void every_pair_of_jobs_is_decided(void **state)
{
	/* docs/API.md's table: rows wanted, columns running. */
	static const bool excluded[JOB_TYPES][JOB_TYPES] = {
		[JOB_SNAPSHOT_CREATE] = {true, false, false, true, true, true, true},
		[JOB_SNAPSHOT_DELETE] = {false, true, true, true, false, false, false, true},
		[JOB_SNAPSHOT_VERIFY] = {false, true, true, false, false, false, false},
		[JOB_SNAPSHOT_PROVE] = {false, true, false, false, false, false, false, true},
		[JOB_RESTORE] = {true, true, false, true, true, true, true},
		[JOB_RESTORE_FROM_PEER] = {true, false, false, true, true, true, true},
		[JOB_RESOLVE] = {true, false, false, true, true, true, true},
		[JOB_REPLACE_DISK] = {true, false, false, true, true, true, true},
	};

	for (int wanted = 0; wanted < JOB_TYPES; wanted++)
		for (int running = 0; running < JOB_TYPES; running++)
			assert_int_equal(jobs_excludes(wanted, running), excluded[wanted][running]);
}

static void errors_have_codes(void **state)
{
	assert_string_equal(render_code(-EBUSY), "refused");
	assert_string_equal(render_code(-EPERM), "refused");
	assert_string_equal(render_code(-ENOENT), "missing");
	assert_string_equal(render_code(-EUCLEAN), "damaged");
	assert_string_equal(render_code(-EIO), "failed");
	assert_string_equal(render_code(-EINVAL), "invalid");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(text_that_is_no_utf8_is_shown_all_the_same),
		cmocka_unit_test(times_are_utc_and_unknown_is_null),
		cmocka_unit_test(progress_has_rate_and_time_left),
		cmocka_unit_test(a_volume_has_its_documented_members),
		cmocka_unit_test(a_comparison_has_its_result_and_progress),
		cmocka_unit_test(metrics_are_grouped_and_escaped),
		cmocka_unit_test(the_ring_keeps_the_newest_events),
		cmocka_unit_test(every_pair_of_jobs_is_decided),
		cmocka_unit_test(errors_have_codes),
	};

	fake_init(NULL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
