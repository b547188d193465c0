/* SPDX-License-Identifier: Apache-2.0 */
/* The bound of the lag, and catch-up beside clients, against a disk made of one formula. */
#include "daemon/replication/pace.h"
#include "daemon/volume/latency.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define M      (1024ull * 1024)
#define MS     1000000ull
#define SECOND 1000000000ull

static void the_bound_by_bytes_and_by_time(void **unused)
{
	static const struct {
		uint64_t max_bytes, max_ns, bytes, ns;
		bool over, flows;
	} table[] = {
		{0, 0, 1ull << 50, 1ull << 60, false, true},
		{64 * M, 0, 0, 1ull << 60, false, true},
		{64 * M, 0, 63 * M, 0, false, true},
		{64 * M, 0, 63 * M + 1, 0, false, false},
		{64 * M, 0, 64 * M, 0, true, false},
		{64 * M, 0, 80 * M, 0, true, false},
		{0, 10 * SECOND, 1ull << 50, 9 * SECOND, false, true},
		{0, 10 * SECOND, 0, 10 * SECOND, true, false},
		{64 * M, 10 * SECOND, 1, 10 * SECOND, true, false},
		{64 * M, 10 * SECOND, 64 * M, 1, true, false},
		{64 * M, 10 * SECOND, 1, 1, false, true},
		{4096, 0, 3584, 0, false, true}, /* a small bound: an eighth of room */
		{4096, 0, 3585, 0, false, false},
		{1, 0, 0, 0, false, true},
	};

	for (unsigned i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		struct pace_bound bound = {.max_bytes = table[i].max_bytes,
					   .max_ns = table[i].max_ns};
		if (pace_over(&bound, table[i].bytes, table[i].ns) != table[i].over ||
		    pace_flows(&bound, table[i].bytes, table[i].ns) != table[i].flows)
			fail_msg("row %u", i);
	}
}

/* A disk on which p99 grows with catch-up's share of what it can do. */
struct model {
	struct pace_control control;
	uint64_t base_ns, capacity, link; /* bytes a second */
	uint64_t writes;                  /* of clients, in a window of 250 ms */
	uint64_t moved, ns, worst_percent, over, judged;
};

static uint64_t latency_at(const struct model *m, uint64_t rate)
{
	return m->base_ns + m->base_ns * 4 * rate / m->capacity;
}

static void run(struct model *m, unsigned calls)
{
	uint64_t bytes = 0, length = 0, writes = 0;

	while (calls--) {
		uint64_t rate = pace_control_rate(&m->control);
		if (!rate || rate > m->link)
			rate = m->link;
		if (pace_control_paused(&m->control))
			rate = 0;
		bytes += rate / 4;
		m->moved += rate / 4;
		length += PACE_WINDOW_NS;
		m->ns += PACE_WINDOW_NS;
		writes += m->writes;
		struct pace_window window = {.writes = writes,
					     .p99_ns = writes ? latency_at(m, rate) : 0,
					     .bytes = bytes,
					     .length_ns = length};
		if (writes) {
			m->judged++;
			m->over += window.p99_ns > m->base_ns * 2;
			if (window.p99_ns * 100 / m->base_ns > m->worst_percent)
				m->worst_percent = window.p99_ns * 100 / m->base_ns;
		}
		if (pace_control_window(&m->control, &window))
			bytes = length = writes = 0;
	}
}

static struct model model(unsigned percent)
{
	struct model m = {.base_ns = MS, .capacity = 400 * M, .link = 1000 * M, .writes = 1000};

	pace_control_set(&m.control, percent, M);
	pace_control_begin(&m.control);
	return m;
}

static void latency_stays_within_the_factor(void **unused)
{
	struct model m = model(200);

	run(&m, 60);
	assert_in_range(m.control.baseline_ns, MS * 99 / 100, MS * 101 / 100);
	m.over = m.judged = m.moved = m.ns = 0;
	run(&m, 2000);
	/* Beyond the factor only to find out where it is. */
	assert_true(m.over * 10 < m.judged);
	/* Twice the latency is at a quarter of the capacity: most of that is used. */
	uint64_t rate = m.moved * 1000 / (m.ns / MS);
	assert_in_range(rate, 70 * M, 105 * M);
}

/* From the first window on: what a short catch-up, or a snapshot, does to clients is its beginning. */
static void it_does_not_begin_with_too_much(void **unused)
{
	struct model m = model(200);

	m.capacity = 300 * M;
	pace_control_begin_probing(&m.control);
	assert_true(pace_control_paused(&m.control));
	run(&m, 40);
	assert_in_range(m.control.baseline_ns, MS * 99 / 100, MS * 101 / 100);
	assert_true(m.worst_percent < 220);
	/* Yet it is not timid. */
	assert_true(pace_control_rate(&m.control) > 45 * M);
}

static void catch_up_has_its_floor(void **unused)
{
	struct model m = model(110);

	m.capacity = M; /* whatever catch-up does is too much */
	run(&m, 400);
	m.moved = m.ns = 0;
	run(&m, 400);
	assert_int_equal(m.control.rate, M);
	assert_true(m.moved * 1000 / (m.ns / MS) >= M * 9 / 10);
}

static void without_clients_or_factor_any_rate(void **unused)
{
	struct model m = model(200);

	m.writes = 1;
	run(&m, 100);
	assert_int_equal(m.control.state, PACE_FREE);
	assert_int_equal(m.moved, 100 * m.link / 4);
	/* Clients come, and go. */
	m.writes = 100;
	run(&m, 200);
	assert_int_not_equal(m.control.state, PACE_FREE);
	assert_true(pace_control_rate(&m.control) < 200 * M);
	m.writes = 0;
	run(&m, 8);
	assert_int_equal(pace_control_rate(&m.control), 0);
	assert_false(pace_control_paused(&m.control));
	m = model(0);
	run(&m, 100);
	assert_int_equal(m.moved, 100 * m.link / 4);
}

static void the_baseline_follows_the_clients(void **unused)
{
	struct model m = model(200);

	run(&m, 200);
	m.base_ns = 5 * MS; /* they do more now: what was too much is not */
	run(&m, 400);
	assert_in_range(m.control.baseline_ns, 4 * MS, 5 * MS + 1);
	m.moved = m.ns = 0;
	run(&m, 400);
	assert_true(m.moved * 1000 / (m.ns / MS) > 60 * M);
}

static void quantiles_of_latencies(void **unused)
{
	struct latency latency = {}, before = {};

	assert_int_equal(latency_quantile_ns(&latency, NULL, 990), 0);
	for (unsigned i = 0; i < 990; i++)
		latency_add(&latency, MS);
	for (unsigned i = 0; i < 10; i++)
		latency_add(&latency, 100 * MS);
	assert_int_equal(latency_count(&latency, NULL), 1000);
	/* To an eighth, upwards. */
	assert_in_range(latency_quantile_ns(&latency, NULL, 990), MS, MS * 9 / 8 + 8192);
	assert_in_range(latency_quantile_ns(&latency, NULL, 991), 100 * MS, 113 * MS);
	before = latency;
	for (unsigned i = 0; i < 100; i++)
		latency_add(&latency, 20 * MS);
	assert_int_equal(latency_count(&latency, &before), 100);
	assert_in_range(latency_quantile_ns(&latency, &before, 990), 20 * MS, 23 * MS);
	/* Every length has its bucket. */
	for (unsigned shift = 0; shift < 64; shift++)
		for (uint64_t ns = 1ull << shift, step = 0; step < 3; step++, ns += ns / 3) {
			struct latency one = {};
			latency_add(&one, ns);
			uint64_t end = latency_quantile_ns(&one, NULL, 1000);
			if (ns < 60 * SECOND && (end < ns || end > ns + ns / 8 + 4097))
				fail_msg("%llu ns count as %llu", (unsigned long long)ns,
					 (unsigned long long)end);
			assert_int_equal(latency_count(&one, NULL), 1);
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_bound_by_bytes_and_by_time),
		cmocka_unit_test(latency_stays_within_the_factor),
		cmocka_unit_test(it_does_not_begin_with_too_much),
		cmocka_unit_test(catch_up_has_its_floor),
		cmocka_unit_test(without_clients_or_factor_any_rate),
		cmocka_unit_test(the_baseline_follows_the_clients),
		cmocka_unit_test(quantiles_of_latencies),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
