/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two nodes with one volume, in one process: over loopback on both real backends, and
 * (replication_pair_sim.c includes this file) in the simulator. SEED=n replays.
 * time limit: 300 s
 */
#include "tests/unit/replication_pair.h"

static void first_sync_then_stream(void **unused)
{
	for (unsigned protocol = REPLICATION_A; protocol <= REPLICATION_C; protocol++) {
		struct world w;
		world_open(&w);
		w.a.protocol = w.b.protocol = protocol;
		world_start(&w);
		write_some(&w.a, 100);
		WAIT(&w, in_sync(&w));
		assert_true(status(&w.a).source);
		assert_false(status(&w.b).source);
		write_some(&w.a, 300);
		flush(&w.a);
		expect_same(&w, &w.a, __LINE__);
		/* A point makes the map empty. */
		WAIT(&w, status(&w.a).out_of_sync_bytes == 0);
		replication_set_protocol(w.a.replication, (protocol + 1) % 3);
		write_some(&w.a, 50);
		expect_same(&w, &w.a, __LINE__);
		world_close(&w);
	}
}

struct question {
	struct volume_origin_read read;
	bool done;
	int error;
};

static void question_done(struct volume_origin_read *read, int error)
{
	struct question *q = (struct question *)read;

	q->done = true;
	q->error = error;
}

/* READs put between writes see what was issued before them, and nothing of what comes later. */
static void reads_at_the_peer_are_in_order(void **unused)
{
	enum { QUESTIONS = 40, LENGTH = 65536 };
	struct world w;
	struct question *questions = calloc(QUESTIONS, sizeof(*questions));
	struct io *ios = calloc(QUESTIONS, sizeof(*ios));

	world_open(&w);
	world_start(&w);
	questions[0].read = (struct volume_origin_read){
		.length_bytes = 512, .data = malloc(LENGTH), .done = question_done};
	replication_read(w.b.replication, &questions[0].read); /* no source */
	WAIT(&w, questions[0].done);
	assert_int_equal(questions[0].error, -ENOTCONN);
	free(questions[0].read.data);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	for (unsigned i = 0; i < QUESTIONS; i++) {
		struct io *io = &ios[i];
		io->request = (struct block_request){.op = BLOCK_WRITE,
						     .offset_bytes = 512 * (i % 5),
						     .length_bytes = 4096,
						     .done = io_done};
		WAIT(&w, (io->request.buf = buf_alloc(w.pool, 4096)) != NULL);
		memset(io->request.buf->data, (int)i + 1, 4096);
		volume_block(w.a.volume)->ops->submit(volume_block(w.a.volume), &io->request);
		WAIT(&w, io->done);
		buf_put(io->request.buf);
		memset(w.model + 512 * (i % 5), (int)i + 1, 4096);
		questions[i] =
			(struct question){.read = {.length_bytes = LENGTH, .data = malloc(LENGTH)}};
		questions[i].read.done = question_done;
		replication_read(w.a.replication, &questions[i].read);
		/* Answered or not: whatever is issued later than it is sent may not be in it. */
		if (i % 7 == 0 || i == QUESTIONS - 1) {
			WAIT(&w, questions[i].done);
			assert_int_equal(questions[i].error, 0);
			assert_memory_equal(questions[i].read.data, w.model, LENGTH);
		}
	}
	for (unsigned i = 0; i < QUESTIONS; i++) {
		assert_true(questions[i].done && questions[i].error == 0);
		/* It has its own write at least. */
		assert_true(questions[i].read.data[512 * (i % 5)] >= i + 1);
	}
	disconnect(&w.b);
	questions[0].done = false;
	replication_read(w.a.replication, &questions[0].read);
	WAIT(&w, questions[0].done);
	assert_int_equal(questions[0].error, -ENOTCONN);
	for (unsigned i = 0; i < QUESTIONS; i++)
		free(questions[i].read.data);
	free(questions);
	free(ios);
	world_close(&w);
}

static void catch_up_sends_what_changed(void **unused)
{
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 200);
	WAIT(&w, in_sync(&w));
	expect_same(&w, &w.a, __LINE__);
	WAIT(&w, status(&w.a).out_of_sync_bytes == 0);
	disconnect(&w.b);
	WAIT(&w, status(&w.a).state == REPLICATION_CONNECTING);
	assert_int_equal(status(&w.b).state, REPLICATION_STANDALONE);
	uint8_t *old = malloc(VOLUME_BYTES);
	memcpy(old, w.model, VOLUME_BYTES);
	write_some(&w.a, 10);
	flush(&w.a);
	expect_content(&w.b, old, __LINE__);
	uint64_t dirty = status(&w.a).out_of_sync_bytes, sent = status(&w.a).sent_bytes;
	assert_true(dirty > 0 && dirty < VOLUME_BYTES);
	reconnect(&w.b);
	expect_same(&w, &w.a, __LINE__);
	assert_true(status(&w.a).sent_bytes - sent < dirty + 65536);
	free(old);
	world_close(&w);
}

/* What a promotion of the secondary would lose, in the order in which it may come to that. */
static void a_secondary_knows_what_it_lacks(void **unused)
{
	struct world w;
	char text[320];

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 100);
	expect_same(&w, &w.a, __LINE__);
	assert_int_equal(loss(&w.b).risk, REPLICATION_RISK_NONE);
	/* The primary's daemon ends: all it acknowledged is here, also after a restart of this side. */
	stop(&w.a);
	WAIT(&w, status(&w.b).state == REPLICATION_CONNECTING);
	assert_false(status(&w.b).peer_known);
	assert_true(status(&w.b).seen_ns > 0 && status(&w.b).seen_role == VOLUME_PRIMARY);
	assert_int_equal(loss(&w.b).risk, REPLICATION_RISK_NONE);
	stop(&w.b);
	start(&w.b, VOLUME_SECONDARY);
	assert_int_equal(loss(&w.b).risk, REPLICATION_RISK_NONE);
	start(&w.a, VOLUME_PRIMARY);
	expect_same(&w, &w.a, __LINE__);
	/* It is left on purpose: the primary goes on alone. */
	disconnect(&w.a);
	WAIT(&w, state(&w.b).disk == VOLUME_DISK_OUTDATED);
	write_some(&w.a, 50);
	assert_int_equal(loss(&w.b).risk, REPLICATION_RISK_BEHIND);
	assert_true(loss(&w.b).since_ns > 0 && loss(&w.b).heard_ns > 0);
	replication_loss_text(&(struct replication_loss){.risk = REPLICATION_RISK_BEHIND,
							 .peer_name = "a",
							 .since_ns = 1700000000000000000,
							 .heard_ns = 1700000040500000000,
							 .bytes = 12897485,
							 .first_lsn = 88121,
							 .last_lsn = 88410},
			      text, sizeof(text));
	assert_string_equal(text,
			    "what a wrote since 2023-11-14 22:13:20 UTC (41 s), 12.3 MiB, LSN "
			    "88121..88410, and after 2023-11-14 22:14:00 UTC, when it was last "
			    "heard");
	reconnect(&w.a);
	expect_same(&w, &w.a, __LINE__);
	assert_int_equal(loss(&w.b).risk, REPLICATION_RISK_NONE);
	world_close(&w);
}

struct planned {
	bool done;
	int error;
	char why[256];
	struct replication_plan plan;
};

static void planned(void *context, int error, const char *why, const struct replication_plan *plan)
{
	struct planned *p = context;

	p->done = true;
	p->error = error;
	snprintf(p->why, sizeof(p->why), "%s", why);
	if (plan)
		p->plan = *plan;
}

static struct planned plan(struct node *n)
{
	struct planned p = {};

	replication_plan(n->replication, planned, &p);
	WAIT(n->world, p.done);
	return p;
}

/* Both sides are asked what would be done, and nothing is. */
static void a_dry_run_changes_nothing(void **unused)
{
	struct world w;
	struct planned p;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 200);
	expect_same(&w, &w.a, __LINE__);
	WAIT(&w, status(&w.a).out_of_sync_bytes == 0);
	/* Connected: what is. */
	p = plan(&w.a);
	assert_true(p.error == 0 && p.plan.connected && p.plan.direction == 0);
	disconnect(&w.b);
	WAIT(&w, status(&w.a).state == REPLICATION_CONNECTING);
	write_some(&w.a, 10);
	struct volume_state a = state(&w.a), b = state(&w.b);
	uint64_t dirty = status(&w.a).out_of_sync_bytes;
	p = plan(&w.b); /* taken off by its operator */
	assert_int_equal(p.error, 0);
	assert_string_equal(p.plan.peer_name, "a");
	assert_int_equal(p.plan.direction, REPLICATION_FROM_PEER);
	assert_true(!p.plan.full && !p.plan.refused);
	assert_int_equal(p.plan.bytes, dirty);
	p = plan(&w.a);
	assert_int_equal(p.error, 0);
	assert_int_equal(p.plan.direction, REPLICATION_TO_PEER);
	assert_int_equal(p.plan.bytes, dirty);
	assert_int_equal(status(&w.b).state, REPLICATION_STANDALONE);
	struct volume_state a2 = state(&w.a), b2 = state(&w.b);
	assert_memory_equal(&a.generations, &a2.generations, sizeof(a.generations));
	assert_memory_equal(&b.generations, &b2.generations, sizeof(b.generations));
	assert_int_equal(b2.disk, b.disk);
	reconnect(&w.b);
	expect_same(&w, &w.a, __LINE__);
	/* Both took writes: nothing could be done, and that is said. */
	disconnect(&w.a);
	set_role(&w.b, VOLUME_PRIMARY);
	disconnect(&w.b);
	write_some(&w.a, 5);
	write_some(&w.b, 5);
	p = plan(&w.a);
	assert_true(p.error == 0 && p.plan.refused && p.plan.direction == 0);
	set_role(&w.b, VOLUME_SECONDARY);
	disconnect(&w.b);
	p = plan(&w.a);
	assert_true(p.error == 0 && p.plan.refused);
	/* Nobody there. */
	stop(&w.b);
	replication_listener_free(w.b.listener);
	w.b.listener = NULL;
	p = plan(&w.a);
	assert_true(p.error < 0 && p.why[0]);
	world_close(&w);
}

static void restarts_of_either_side(void **unused)
{
	struct world w;

	world_open(&w);
	world_start(&w);
	for (unsigned i = 0; i < 3; i++) {
		write_some(&w.a, 60);
		stop(i % 2 ? &w.a : &w.b);
		if (i % 2 == 0)
			write_some(&w.a, 60);
		start(i % 2 ? &w.a : &w.b, i % 2 ? VOLUME_PRIMARY : VOLUME_SECONDARY);
		write_some(&w.a, 60);
		expect_same(&w, &w.a, __LINE__);
	}
	world_close(&w);
}

static void writers_go_on_during_catch_up(void **unused)
{
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 100);
	expect_same(&w, &w.a, __LINE__);
	for (unsigned i = 0; i < 3; i++) {
		disconnect(&w.b);
		write_some(&w.a, 400);
		reconnect(&w.b);
		write_some(&w.a, 400);
		flush(&w.a);
		expect_same(&w, &w.a, __LINE__);
	}
	world_close(&w);
}

#define MAX_LAG (64u * 1024)

/* One write of write_some() at most passes the bound. */
static void write_within_bound(struct world *w)
{
	for (unsigned i = 0; i < 50; i++) {
		write_some(&w->a, 20);
		assert_true(status(&w->a).unacked_bytes <= MAX_LAG + 256 * 512 + 8192);
	}
}

static void writers_wait_at_max_lag(void **unused)
{
	struct pace_options pace = {.bound = {.max_bytes = MAX_LAG, .action = PACE_SLOW}};
	struct world w;

	world_open(&w);
	w.a.protocol = w.b.protocol = REPLICATION_A;
	world_start(&w);
	WAIT(&w, in_sync(&w));
	replication_set_pace(w.a.replication, &pace);
	write_within_bound(&w);
	struct replication_status s = status(&w.a);
	assert_true(s.holds > 0 && s.held);
	assert_int_equal(s.left_stream, 0);
	assert_true(in_sync(&w));
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void the_stream_is_left_at_max_lag(void **unused)
{
	struct pace_options pace = {.bound = {.max_bytes = MAX_LAG, .action = PACE_CATCH_UP}};
	struct world w;

	world_open(&w);
	w.a.protocol = w.b.protocol = REPLICATION_A;
	world_start(&w);
	WAIT(&w, in_sync(&w));
	replication_set_pace(w.a.replication, &pace);
	uint64_t connects = status(&w.a).connects;
	write_within_bound(&w);
	struct replication_status s = status(&w.a);
	assert_true(s.left_stream > 0);
	assert_int_equal(s.holds, 0);
	expect_same(&w, &w.a, __LINE__);
	assert_int_equal(status(&w.a).connects, connects);
	/* With clients that wait for the peer anyway there is no such bound. */
	replication_set_protocol(w.a.replication, REPLICATION_C);
	uint64_t left = status(&w.a).left_stream;
	write_some(&w.a, 200);
	assert_int_equal(status(&w.a).left_stream, left);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void the_lag_is_known_without_a_link(void **unused)
{
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 20);
	expect_same(&w, &w.a, __LINE__);
	WAIT(&w, status(&w.a).out_of_sync_bytes == 0);
	disconnect(&w.b);
	let_pass(&w, 300);
	assert_int_equal(status(&w.a).lag_bytes, 0);
	assert_int_equal(status(&w.a).lag_ns, 0);
	write_some(&w.a, 20);
	uint64_t before = now_ns(&w);
	let_pass(&w, 300);
	uint64_t passed = now_ns(&w) - before;
	struct replication_status s = status(&w.a);
	assert_int_equal(s.lag_bytes, s.out_of_sync_bytes);
	assert_true(s.lag_bytes > 0);
	assert_true(s.lag_ns >= passed && s.lag_ns < 60000000000ull);
	reconnect(&w.b);
	expect_same(&w, &w.a, __LINE__);
	assert_int_equal(status(&w.a).lag_ns, 0);
	world_close(&w);
}

#ifdef WORLD_SIM
static void set_rates(struct world *w, const char *stream, const char *catch_up)
{
	struct pace_options pace = {};

	assert_null(rate_parse(stream, &pace.stream));
	assert_null(rate_parse(catch_up, &pace.catch_up));
	replication_set_pace(w->a.replication, &pace);
}

static void catch_up_keeps_to_its_rate(void **unused)
{
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 100);
	expect_same(&w, &w.a, __LINE__);
	disconnect(&w.b);
	write_some(&w.a, 400);
	flush(&w.a);
	/* Half of it is zeroes at most, which cost nothing. */
	set_rates(&w, "0", "256K");
	uint64_t before = now_ns(&w), sent = status(&w.a).sent_bytes;
	reconnect(&w.b);
	WAIT(&w, in_sync(&w));
	sent = status(&w.a).sent_bytes - sent;
	uint64_t ms = (now_ns(&w) - before) / 1000000, least = sent * 1000 / (256 * 1024);
	assert_in_range(ms, least - least / 10 - 300, least + least / 10 + 1500);
	assert_true(ms > 2000);
	/* Changed while it runs: the rest is there in no time. */
	disconnect(&w.b);
	write_some(&w.a, 800);
	flush(&w.a);
	set_rates(&w, "0", "128K");
	reconnect(&w.b);
	let_pass(&w, 2000);
	assert_int_equal(status(&w.a).state, REPLICATION_CATCH_UP);
	set_rates(&w, "0", "0");
	before = now_ns(&w);
	WAIT(&w, in_sync(&w));
	assert_true(now_ns(&w) - before < 1500000000ull);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void the_stream_keeps_to_its_rate(void **unused)
{
	struct world w;

	world_open(&w);
	w.a.protocol = w.b.protocol = REPLICATION_A;
	world_start(&w);
	WAIT(&w, in_sync(&w));
	set_rates(&w, "256K", "0");
	uint64_t sent = status(&w.a).sent_bytes, before = now_ns(&w);
	write_some(&w.a, 400);
	/* Nobody waits while the queue has room. */
	assert_int_equal(status(&w.a).holds, 0);
	WAIT(&w, status(&w.a).lag_bytes == 0);
	sent = status(&w.a).sent_bytes - sent;
	uint64_t ms = (now_ns(&w) - before) / 1000000, least = sent * 1000 / (256 * 1024);
	assert_in_range(ms, least - least / 10 - 300, least + least / 10 + 500);
	assert_true(ms > 2000 && status(&w.a).connects == 1);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}
#endif

static void too_much_for_staging_goes_in_place(void **unused)
{
	struct world w;

	world_open(&w);
	w.b.staging_max_bytes = 256 * 1024;
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	disconnect(&w.b);
#ifdef WORLD_SIM
	struct sim_disk_options disk;
	sim_disk_get(w.b.env, &disk);
	disk.reflinks = true;
	sim_disk_set(w.b.env, &disk);
	uint8_t *old = malloc(VOLUME_BYTES);
	memcpy(old, w.model, VOLUME_BYTES);
#endif
	write_some(&w.a, 300);
	reconnect(&w.b);
	WAIT(&w, state(&w.b).disk == VOLUME_DISK_INCONSISTENT);
#ifdef WORLD_SIM
	/* The content before is kept where there are reflinks, as long as the new one is not whole. */
	uint8_t *copy = malloc(VOLUME_BYTES);
	char path[256];
	snprintf(path, sizeof(path), "%s", volume_kept_copy(w.b.volume));
	assert_true(sim_file_peek(w.b.env, path, copy, VOLUME_BYTES, 0));
	assert_memory_equal(copy, old, VOLUME_BYTES);
	free(copy);
	free(old);
	WAIT(&w, state(&w.b).disk != VOLUME_DISK_INCONSISTENT);
	assert_null(volume_kept_copy(w.b.volume));
	uint64_t size;
	assert_false(sim_file_size(w.b.env, path, &size));
#endif
	/* Then whole, but behind a primary that went on meanwhile; up to date only in the stream. */
	WAIT(&w, state(&w.b).disk != VOLUME_DISK_INCONSISTENT);
	assert_int_equal(state(&w.b).disk, VOLUME_DISK_OUTDATED);
	assert_true(state(&w.b).outdated_ns > 0);
	WAIT(&w, state(&w.b).disk == VOLUME_DISK_UPTODATE);
	assert_int_equal(status(&w.b).state, REPLICATION_STREAMING);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void failover_and_back(void **unused)
{
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 100);
	expect_same(&w, &w.a, __LINE__);
	stop(&w.a);
	set_role(&w.b, VOLUME_PRIMARY);
	write_some(&w.b, 100);
	start(&w.a, VOLUME_PRIMARY); /* its persisted role is primary */
	WAIT(&w, status(&w.a).state == REPLICATION_STANDALONE &&
			 status(&w.b).state == REPLICATION_STANDALONE);
	assert_non_null(strstr(status(&w.a).refusal, "both nodes are primary"));
	set_role(&w.a, VOLUME_SECONDARY);
	expect_same(&w, &w.b, __LINE__);
	/* and back, both connected */
	set_role(&w.b, VOLUME_SECONDARY);
	WAIT(&w, status(&w.a).state == REPLICATION_IDLE && status(&w.b).state == REPLICATION_IDLE);
	set_role(&w.a, VOLUME_PRIMARY);
	write_some(&w.a, 100);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

struct restored {
	bool done;
	int error;
	char why[256];
};

static void restored(void *context, int error, const char *why)
{
	struct restored *r = context;

	r->done = true;
	r->error = error;
	snprintf(r->why, sizeof(r->why), "%s", why);
}

static void split_brain_is_refused_until_one_gives_in(void **unused)
{
	struct world w;
	uint8_t *lost = malloc(VOLUME_BYTES);

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 100);
	expect_same(&w, &w.a, __LINE__);
	disconnect(&w.a);
	disconnect(&w.b);
	set_role(&w.b, VOLUME_PRIMARY);
	memcpy(lost, w.model, VOLUME_BYTES);
	write_some(&w.a, 20);
	flush(&w.a);
	uint8_t *kept = w.model; /* a's */
	w.model = lost;
	write_some(&w.b, 20);
	flush(&w.b);
	set_role(&w.b, VOLUME_SECONDARY);
	reconnect(&w.a);
	reconnect(&w.b);
	WAIT(&w, status(&w.a).state == REPLICATION_STANDALONE &&
			 status(&w.b).state == REPLICATION_STANDALONE);
	assert_non_null(strstr(status(&w.a).refusal, "split brain"));
	assert_non_null(strstr(status(&w.b).refusal, "split brain"));
	let_pass(&w, 1000);
	expect_content(&w.a, kept, __LINE__);
	expect_content(&w.b, lost, __LINE__);
	w.model = kept;
	struct restored r = {};
	replication_restore_from_peer(w.b.replication, restored, &r);
	WAIT(&w, r.done);
	assert_int_equal(r.error, 0);
	expect_same(&w, &w.a, __LINE__);
	free(lost);
	world_close(&w);
}

static void reverse_sync_gives_a_lost_disk_back(void **unused)
{
	struct world w;
	struct restored r = {};

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 200);
	expect_same(&w, &w.a, __LINE__);
	replication_restore_from_peer(w.a.replication, restored, &r);
	WAIT(&w, state(&w.a).disk == VOLUME_DISK_INCONSISTENT || r.done);
	assert_false(r.done);
	WAIT(&w, r.done);
	assert_int_equal(r.error, 0);
	expect_same(&w, &w.a, __LINE__);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void the_operator_can_end_a_restore(void **unused)
{
	struct world w;
	struct restored r = {};

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 10);
	expect_same(&w, &w.a, __LINE__);
	stop(&w.b);
	replication_restore_from_peer(w.a.replication, restored, &r);
	let_pass(&w, 300);
	assert_false(r.done);
	disconnect(&w.a);
	assert_true(r.done);
	assert_int_equal(r.error, -ECANCELED);
	/* nothing was given up without the peer */
	assert_int_equal(state(&w.a).disk, VOLUME_DISK_UPTODATE);
	stop(&w.a);
	start(&w.b, VOLUME_SECONDARY);
	start(&w.a, VOLUME_PRIMARY);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void unrelated_volumes_are_refused(void **unused)
{
	struct world w;

	world_open(&w);
	listeners(&w);
	start(&w.a, VOLUME_PRIMARY);
	write_some(&w.a, 20);
	start(&w.b, VOLUME_PRIMARY);
	struct volume_state s = state(&w.b);
	s.role = VOLUME_SECONDARY;
	memset(&s.generations.current, 7, sizeof(s.generations.current));
	assert_int_equal(volume_set_state(w.b.volume, &s), 0);
	replication_role_changed(w.b.replication);
	replication_role_changed(w.a.replication);
	WAIT(&w, status(&w.a).state == REPLICATION_STANDALONE &&
			 status(&w.b).state == REPLICATION_STANDALONE);
	assert_non_null(strstr(status(&w.a).refusal, "no history in common"));
	world_close(&w);
}

/* Promise 6: nothing is given up for a peer that has nothing. */
static void the_last_good_copy_is_not_given_up(void **unused)
{
	struct world w;
	struct restored r = {};

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 20);
	expect_same(&w, &w.a, __LINE__);
	struct volume_state s = state(&w.a);
	s.disk = VOLUME_DISK_INCONSISTENT; /* a restore in place is under way there */
	assert_int_equal(volume_set_state(w.a.volume, &s), 0);
	replication_role_changed(w.a.replication);
	WAIT(&w, status(&w.b).state == REPLICATION_IDLE);
	replication_restore_from_peer(w.b.replication, restored, &r);
	WAIT(&w, r.done);
	assert_int_equal(r.error, -EPERM);
	assert_non_null(strstr(r.why, "nothing was given up"));
	assert_int_equal(state(&w.b).disk, VOLUME_DISK_UPTODATE);
	world_close(&w);
}

static void only_one_side_knows_the_other(void **unused)
{
	struct world w;

	for (unsigned i = 0; i < 2; i++) {
		world_open(&w);
		(i ? &w.a : &w.b)->only_accept = true;
		world_start(&w);
		write_some(&w.a, 30);
		expect_same(&w, &w.a, __LINE__);
		world_close(&w);
	}
}

struct stranger {
	struct env_op op;
	struct env_sock *sock;
	bool done;
	int64_t result;
};

static void stranger_done(struct env_op *op, int64_t result)
{
	struct stranger *s = (struct stranger *)op;

	s->done = true;
	s->result = result;
}

static void garbage_is_answered_by_hanging_up(void **unused)
{
	struct world w;
	uint8_t bytes[4096];

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 10);
	expect_same(&w, &w.a, __LINE__);
	for (unsigned i = 0; i < 5; i++) {
		struct stranger s = {.op = {.done = stranger_done}};
		struct env *env = w.b.env;
		env_connect(env, &s.op, w.a.addr, &s.sock);
		WAIT(&w, s.done);
		assert_int_equal(s.result, 0);
		for (unsigned at = 0; at < sizeof(bytes); at++)
			bytes[at] = (uint8_t)rnd(&w, 256);
		struct iovec iov = {bytes, 64 + rnd(&w, 4000)};
		s.done = false;
		env_sendv(env, &s.op, s.sock, &iov, 1);
		WAIT(&w, s.done);
		do {
			s.done = false;
			env_recv(env, &s.op, s.sock, bytes, sizeof(bytes));
			WAIT(&w, s.done);
		} while (s.result > 0);
		env_sock_close(env, s.sock);
	}
	assert_true(in_sync(&w));
	world_close(&w);
}

#ifndef WORLD_SIM

static void make_tls(struct world *w, struct node *n, const char *key)
{
	char path[128], why[256];

	snprintf(path, sizeof(path), "%s/%s.psk", w->dir, n->name);
	FILE *file = fopen(path, "w");
	fprintf(file, "offsite:%s\n", key);
	fclose(file);
	struct tls_config config = {.role = TLS_CLIENT, .psk_file = path, .tls13_only = true};
	if (tls_context_new(&config, &n->tls_client, why, sizeof(why)))
		fail_msg("%s", why);
	config.role = TLS_SERVER;
	if (tls_context_new(&config, &n->tls_server, why, sizeof(why)))
		fail_msg("%s", why);
}

#define KEY_A "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define KEY_B "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

static void under_tls(void **unused)
{
	struct world w;

	world_open(&w);
	make_tls(&w, &w.a, KEY_A);
	make_tls(&w, &w.b, KEY_A);
	world_start(&w);
	write_some(&w.a, 200);
	expect_same(&w, &w.a, __LINE__);
	assert_true(status(&w.a).tls && status(&w.b).tls);
	world_close(&w);
}

static void wrong_key_is_said(void **unused)
{
	struct world w;

	world_open(&w);
	make_tls(&w, &w.a, KEY_A);
	make_tls(&w, &w.b, KEY_B);
	world_start(&w);
	WAIT(&w, strstr(status(&w.a).refusal, "TLS: ") && strstr(status(&w.b).refusal, "TLS: "));
	assert_non_null(strstr(status(&w.a).refusal, "key"));
	assert_true(status(&w.a).connects == 0);
	world_close(&w);
}

#endif

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(first_sync_then_stream),
		cmocka_unit_test(reads_at_the_peer_are_in_order),
		cmocka_unit_test(catch_up_sends_what_changed),
		cmocka_unit_test(a_secondary_knows_what_it_lacks),
		cmocka_unit_test(a_dry_run_changes_nothing),
		cmocka_unit_test(restarts_of_either_side),
		cmocka_unit_test(writers_go_on_during_catch_up),
		cmocka_unit_test(writers_wait_at_max_lag),
		cmocka_unit_test(the_stream_is_left_at_max_lag),
		cmocka_unit_test(the_lag_is_known_without_a_link),
		cmocka_unit_test(too_much_for_staging_goes_in_place),
		cmocka_unit_test(failover_and_back),
		cmocka_unit_test(split_brain_is_refused_until_one_gives_in),
		cmocka_unit_test(reverse_sync_gives_a_lost_disk_back),
		cmocka_unit_test(the_operator_can_end_a_restore),
		cmocka_unit_test(unrelated_volumes_are_refused),
		cmocka_unit_test(the_last_good_copy_is_not_given_up),
		cmocka_unit_test(only_one_side_knows_the_other),
		cmocka_unit_test(garbage_is_answered_by_hanging_up),
#ifdef WORLD_SIM
		cmocka_unit_test(catch_up_keeps_to_its_rate),
		cmocka_unit_test(the_stream_keeps_to_its_rate),
#else
		cmocka_unit_test(under_tls),
		cmocka_unit_test(wrong_key_is_said),
#endif
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv)
{
	const char *text = argc > 1 ? argv[1] : getenv("SEED");
	int failed = 0;

	seed = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid();
	printf("seed: SEED=%llu\n", (unsigned long long)seed);
	if (getenv("TEST"))
		cmocka_set_test_filter(getenv("TEST"));
#ifdef WORLD_SIM
	failed = run();
#else
	static const enum env_backend backends[] = {ENV_BACKEND_URING, ENV_BACKEND_AIO};
	for (unsigned i = 0; i < 2; i++) {
		struct env *env;
		const char *why;
		backend = backends[i];
		if (env_real_new(backend, 1, &env, &why)) {
			printf("SKIP: %s\n", why);
			continue;
		}
		printf("backend: %s\n", env_backend_name(env));
		env_free(env);
		failed += run();
	}
#endif
	printf("seed: SEED=%llu\n", (unsigned long long)seed);
	return failed;
}
