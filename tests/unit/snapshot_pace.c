/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast a volume is read for a snapshot beside its clients, on a disk made of one formula: a write takes
 * longer by what is read meanwhile.
 */
#include "tests/unit/snapshot_fixture.h"

#include "daemon/snapshot/internal.h"
#include "daemon/snapshot/seal.h"
#include "daemon/volume/pacer.h"

#define TICK_NS    5000000ull
#define BASE_NS    200000ull
#define CAPACITY   (16.0 * 1024 * 1024) /* bytes a second that make a write take twice as long */
#define VOLUME_MIB 24u

struct clients {
	struct env *env;
	struct volume *volume;
	struct env_timer timer;
	uint64_t read_bytes; /* as of the last tick */
	double ticked;       /* when that was */
	double rate;         /* smoothed */
	unsigned writes;     /* in a tick */
	unsigned told, beyond;
};

static void tick(struct env_timer *timer)
{
	struct clients *c = container_of(timer, struct clients, timer);
	double since = seconds() - c->ticked;
	double now = (double)(c->volume->stats.cut_read_bytes - c->read_bytes) / since;
	uint64_t ns;

	c->ticked += since;
	c->read_bytes = c->volume->stats.cut_read_bytes;
	c->rate += (now - c->rate) / 10;
	ns = (uint64_t)(BASE_NS * (1 + c->rate / CAPACITY));
	for (unsigned i = 0; i < c->writes; i++)
		latency_add(&c->volume->latency, ns);
	c->told++;
	c->beyond += ns > BASE_NS * 2;
	env_timer_start(c->env, &c->timer, TICK_NS);
}

static void turned(void *context)
{
	*(bool *)context = true;
}

static void take_turn(struct world *w)
{
	struct late *late = late_new(w->env);
	bool turn = false;

	late->call = turned;
	late->context = &turn;
	env_run_until(w->env, &turn);
}

static void writer_with(struct world *w, unsigned percent)
{
	struct snapshot_writer_config config = {.node_name = "node",
						.pack_bytes = 4 << 20,
						.latency_percent = percent,
						.min_rate = 1 << 20};

	world_volume(w, VOLUME_MIB << 20, 0, 0);
	writer_free(w->env, w->writer);
	w->writer = snapshot_writer_new(w->v, w->repo, &config);
	for (unsigned i = 0; i < w->v->chunks; i++)
		fake_fill(w->v, i, i);
}

static void start_clients(struct world *w, struct clients *c, unsigned writes)
{
	*c = (struct clients){.env = w->env,
			      .volume = w->v,
			      .timer.fire = tick,
			      .writes = writes,
			      .ticked = seconds()};
	env_timer_start(w->env, &c->timer, TICK_NS);
}

/* By the ticks: while this process stands still there are none. */
static double seconds_told(const struct clients *c)
{
	return (double)c->told * (TICK_NS / 1e9);
}

/* How long it takes, by the ticks. */
static double take(struct world *w, struct clients *c, unsigned writes)
{
	struct waited snapshot;

	start_clients(w, c, writes);
	snapshot = create(w->env, w->writer, "");
	env_timer_stop(w->env, &c->timer);
	assert_string_equal(snapshot.result.why, "");
	return seconds_told(c);
}

/* The clients' latency stays within the factor, the snapshot comes to its end. */
static void beside_clients_it_makes_room(void **state)
{
	struct world *w = world_of(state);
	struct clients c;
	double took, begun;

	writer_with(w, 200);
	begun = seconds();
	took = take(w, &c, 4);
	print_message("beside clients: %.2f s, beyond twice in %u of %u\n", took, c.beyond, c.told);
	assert_true(c.beyond * 5 < c.told);
	/* Not at the floor, with which it would take 24 s. */
	assert_true(seconds() - begun > 1 && took < 12);
}

/* Nobody is there: as fast as it can be, but for a look around. */
static void without_clients_it_is_as_fast_as_ever(void **state)
{
	struct world *w = world_of(state);
	struct clients c;
	double off, on;

	writer_with(w, 0);
	off = take(w, &c, 0);
	world_drop(w);
	writer_with(w, 200);
	on = take(w, &c, 0);
	print_message("alone: %.3f s without pace, %.3f s with it\n", off, on);
	assert_true(on < 2 * off + 0.5);
}

/* Where what clients overwrite may soon be more than is kept for it, nobody waits. */
static void not_where_it_would_be_given_up(void **state)
{
	struct world *w = world_of(state);
	struct clients c;
	double off;

	writer_with(w, 0);
	off = take(w, &c, 4);
	world_drop(w);
	writer_with(w, 200);
	w->v->cut_is_short = true;
	assert_true(take(w, &c, 4) < 2 * off + 0.5);
}

/* Turned off, clients are not cared for; turned on in the middle, they are. */
static void changed_while_it_runs(void **state)
{
	struct world *w = world_of(state);
	struct waited snapshot = {.done = false};
	struct clients c;
	double off;

	writer_with(w, 0);
	off = take(w, &c, 4);
	assert_true(off < 5);
	for (unsigned i = 0; i < w->v->chunks; i++)
		fake_fill(w->v, i, 1000 + i);
	snapshot_writer_set_pace(w->writer, 200, 1 << 20);
	start_clients(w, &c, 4);
	snapshot_create(w->writer, "", waited_done, &snapshot);
	while (c.told < 60)
		take_turn(w);
	snapshot_writer_set_pace(w->writer, 0, 1 << 20);
	env_run_until(w->env, &snapshot.done);
	env_timer_stop(w->env, &c.timer);
	assert_string_equal(snapshot.result.why, "");
	assert_true(seconds_told(&c) < 60 * (TICK_NS / 1e9) + 2 * off + 0.5);
}

/* Given up while the clients' latency is being taken. */
static void given_up_while_it_waits(void **state)
{
	struct world *w = world_of(state);
	struct waited snapshot = {.done = false};
	struct clients c;
	unsigned told;

	writer_with(w, 200);
	start_clients(w, &c, 4);
	snapshot_create(w->writer, "", waited_done, &snapshot);
	while (!w->writer->pacing)
		take_turn(w);
	assert_false(snapshot.done);
	assert_null(w->v->cut);
	told = c.told;
	writer_free(w->env, w->writer);
	env_timer_stop(w->env, &c.timer);
	assert_true(snapshot.done && c.told - told < 200);
	w->writer = snapshot_writer_new(w->v, w->repo, &(struct snapshot_writer_config){0});
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH(beside_clients_it_makes_room),
		ON_BOTH(without_clients_it_is_as_fast_as_ever),
		ON_BOTH(not_where_it_would_be_given_up),
		ON_BOTH(changed_while_it_runs),
		ON_BOTH(given_up_while_it_waits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
