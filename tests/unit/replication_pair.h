/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A world of two nodes with one volume, in one process: on a real environment, or with WORLD_SIM in
 * the simulator. For replication_pair.c and the others that include it.
 */
#ifndef OFFSITE_TESTS_REPLICATION_PAIR_H
#define OFFSITE_TESTS_REPLICATION_PAIR_H

#include "daemon/replication/replication.h"

#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#ifdef WORLD_SIM
#include "tests/sim/env_sim.h"
#endif

#ifndef VOLUME_BYTES
#define VOLUME_BYTES (8u * 1024 * 1024)
#endif
#define WRITERS 16u

struct world;

struct node {
	struct world *world;
	const char *name;
	struct node *peer;
	struct env *env;
	char dir[96], addr[96];
	struct volume *volume;
	struct replication *replication;
	struct replication_listener *listener;
	struct tls_context *tls_client, *tls_server;
	enum replication_protocol protocol;
	uint64_t staging_max_bytes, final_cut_max_bytes, preserve_max_bytes;
	unsigned start_wait_ms;
	bool steps_down; /* if nobody has the volume open */
	bool only_accept, suspends, detach, store_follows;
	enum hello_after_sb_0pri after_sb_0pri;
	enum hello_after_sb_1pri after_sb_1pri;
	unsigned gave_up; /* by them */
};

struct world {
	struct env *env; /* real: of both */
#ifdef WORLD_SIM
	struct sim *sim;
#else
	char dir[64];
	unsigned descriptors; /* before anything was opened */
#endif
	struct node a, b;
	struct buf_pool *pool;
	uint8_t *model; /* what the primary's content has to be */
	uint64_t random;
	bool flag;
};

#pragma GCC diagnostic ignored "-Wunused-function" /* not all includers use all */

static uint64_t seed;
#ifndef WORLD_SIM
static enum env_backend backend;
#endif

static uint64_t rnd(struct world *w, uint64_t limit)
{
	w->random = w->random * 6364136223846793005ull + 1442695040888963407ull;
	return (w->random >> 20) % limit;
}

/* ---- running -------------------------------------------------------------------------------- */

#ifndef WORLD_SIM

struct tick {
	struct env_timer timer;
	bool flag;
};

static void tick_fire(struct env_timer *timer)
{
	((struct tick *)timer)->flag = true;
}
#endif

static void check(struct world *w)
{
	if (w->a.replication)
		replication_check(w->a.replication);
	if (w->b.replication)
		replication_check(w->b.replication);
}

static void turn(struct world *w)
{
#ifdef WORLD_SIM
	if (!sim_step(w->sim))
		fail_msg("nothing is left to happen (seed %llu)", (unsigned long long)seed);
#else
	struct tick t = {.timer = {.fire = tick_fire}};

	env_timer_start(w->env, &t.timer, 200000);
	env_run_until(w->env, &t.flag);
#endif
	check(w);
}

static uint64_t now_ns(struct world *w)
{
#ifdef WORLD_SIM
	return sim_now_ns(w->sim);
#else
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
#endif
}

static struct replication_status status(struct node *n)
{
	struct replication_status s;

	replication_get_status(n->replication, &s);
	return s;
}

static struct volume_state state(struct node *n)
{
	struct volume_state s;

	volume_get_state(n->volume, &s);
	return s;
}

static inline struct replication_loss loss(struct node *n)
{
	struct replication_loss l;

	replication_get_loss(n->replication, &l);
	return l;
}

static void dump(struct world *w)
{
	struct node *nodes[2] = {&w->a, &w->b};

	for (unsigned i = 0; i < 2; i++) {
		struct node *n = nodes[i];
		if (!n->replication)
			continue;
		struct replication_status s = status(n);
		struct volume_state v = state(n);
		char current[33], base[33];
		id128_format(&v.generations.current, current);
		id128_format(&v.generations.base, base);
		fprintf(stderr,
			"%s: %s %s %s source %d refusal '%s' dirty %llu cuts %llu lag %llu queue "
			"%llu\n   current %s base %s\n",
			n->name, replication_state_name(s.state), volume_role_name(v.role),
			volume_disk_state_name(v.disk), s.source, s.refusal,
			(unsigned long long)s.out_of_sync_bytes, (unsigned long long)s.cuts,
			(unsigned long long)s.lag_bytes, (unsigned long long)s.queue_bytes, current,
			base);
	}
#ifdef WORLD_SIM
	sim_print_log(w->sim, stderr);
#endif
}

/* Nobody is lost in real time because the test stood still for a while. */
#ifdef WORLD_SIM
#define PEER_TIMEOUT_MS 2000
#else
#define PEER_TIMEOUT_MS 60000
#endif

#define WAIT(w, condition)                                                                 \
	do {                                                                               \
		uint64_t limit_ = now_ns(w) + 60000000000ull;                              \
		while (!(condition)) {                                                     \
			turn(w);                                                           \
			if (now_ns(w) > limit_) {                                          \
				dump(w);                                                   \
				fail_msg("seed %llu: never: %s", (unsigned long long)seed, \
					 #condition);                                      \
			}                                                                  \
		}                                                                          \
	} while (0)

static void let_pass(struct world *w, unsigned ms)
{
#ifdef WORLD_SIM
	sim_run_until(w->sim, NULL, ms * 1000000ull);
#else
	uint64_t end = now_ns(w) + ms * 1000000ull;

	while (now_ns(w) < end)
		turn(w);
#endif
}

/* ---- nodes ---------------------------------------------------------------------------------- */

static struct replication *find(void *context, const char *volume_name)
{
	struct node *n = context;

	return strcmp(volume_name, "v") == 0 ? n->replication : NULL;
}

static void set_flag(void *context)
{
	*(bool *)context = true;
}

static void gave_up(void *context, int error, const char *why)
{
}

static void gives_up(void *context)
{
	struct node *n = context;

	n->gave_up++;
	replication_discard_changes(n->replication, gave_up, n);
}

static bool nothing_runs(void *context)
{
	return true;
}

static void start(struct node *n, enum volume_role role)
{
	char why[256], backing[128], state_dir[128];

	snprintf(backing, sizeof(backing), "%s/backing", n->dir);
	snprintf(state_dir, sizeof(state_dir), "%s/state", n->dir);
	assert_int_equal(env_mkdir(n->env, n->dir), 0);
	struct volume_config vc = {.name = "v",
				   .backing = backing,
				   .state_dir = state_dir,
				   .size_bytes = VOLUME_BYTES,
				   .preserve_max_bytes = n->preserve_max_bytes,
				   .role = role,
				   .store_follows = n->store_follows,
				   .detach_on_error = n->detach};
	if (volume_open(n->env, &vc, &n->volume, why, sizeof(why)))
		fail_msg("%s", why);
	struct replication_config rc = {.node_name = n->name,
					.peer_addr = n->only_accept ? NULL : n->peer->addr,
					.protocol = n->protocol,
					.tls_client = n->tls_client,
					.staging_max_bytes = n->staging_max_bytes,
					.final_cut_max_bytes = n->final_cut_max_bytes,
					.start_wait_ms = n->start_wait_ms,
					.after_sb_0pri = n->after_sb_0pri,
					.after_sb_1pri = n->after_sb_1pri,
					.give_up = gives_up,
					.give_up_context = n,
					.vacant = n->steps_down ? nothing_runs : NULL,
					.suspend_on_loss = n->suspends,
					.ping_interval_ms = 200,
					.peer_timeout_ms = PEER_TIMEOUT_MS,
					.connect_retry_max_ms = 300};
	if (replication_new(n->volume, &rc, true, &n->replication, why, sizeof(why)))
		fail_msg("%s", why);
}

static void stop(struct node *n)
{
	struct replication *r = n->replication;
	bool done = false;

	if (!n->volume)
		return;
	n->replication = NULL;
	replication_free(r, set_flag, &done);
	WAIT(n->world, done);
	done = false;
	volume_close(n->volume, set_flag, &done);
	WAIT(n->world, done);
	n->volume = NULL;
}

static void listen_on(struct node *n)
{
	char why[256];

	if (replication_listen(n->env, n->addr, n->tls_server, find, n, &n->listener, why,
			       sizeof(why)))
		fail_msg("%s", why);
	snprintf(n->addr, sizeof(n->addr), "%s", replication_listener_addr(n->listener));
}

#ifndef WORLD_SIM
static unsigned open_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned count = 0;

	assert_non_null(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}
#endif

static void world_open(struct world *w)
{
	memset(w, 0, sizeof(*w));
	w->random = seed;
	w->a = (struct node){.world = w, .name = "a", .peer = &w->b, .protocol = REPLICATION_C};
	w->b = (struct node){.world = w, .name = "b", .peer = &w->a, .protocol = REPLICATION_C};
#ifdef WORLD_SIM
	w->sim = sim_new(seed);
	w->a.env = sim_node(w->sim, "a");
	w->b.env = sim_node(w->sim, "b");
	strcpy(w->a.dir, "/a");
	strcpy(w->b.dir, "/b");
	strcpy(w->a.addr, "tcp:a:7790");
	strcpy(w->b.addr, "tcp:b:7790");
#else
	const char *why;
	int error = env_real_new(backend, 2, &w->env, &why);
	if (error)
		fail_msg("%s: %s", why, strerror(-error));
	env_log_level(w->env, getenv("VERBOSE") ? ENV_LOG_DEBUG : ENV_LOG_ERROR);
	w->descriptors = open_descriptors();
	strcpy(w->dir, "/tmp/offsite-pair-XXXXXX");
	assert_non_null(mkdtemp(w->dir));
	w->a.env = w->b.env = w->env;
	snprintf(w->a.dir, sizeof(w->a.dir), "%s/a", w->dir);
	snprintf(w->b.dir, sizeof(w->b.dir), "%s/b", w->dir);
	strcpy(w->a.addr, "tcp:127.0.0.1:0");
	strcpy(w->b.addr, "tcp:127.0.0.1:0");
#endif
	w->pool = buf_pool_new((unsigned[3]){64, 64, 32});
	w->model = calloc(1, VOLUME_BYTES);
	assert_true(w->pool && w->model);
}

static void listeners(struct world *w)
{
	listen_on(&w->a);
	listen_on(&w->b);
}

static void world_start(struct world *w)
{
	listeners(w);
	start(&w->a, VOLUME_PRIMARY);
	start(&w->b, VOLUME_SECONDARY);
}

static void world_close(struct world *w)
{
	stop(&w->a);
	stop(&w->b);
	replication_listener_free(w->a.listener);
	replication_listener_free(w->b.listener);
	/* Connections that linger after a refusal. */
#ifdef WORLD_SIM
	let_pass(w, 1500);
#else
	WAIT(w, open_descriptors() <= w->descriptors);
	let_pass(w, 20);
#endif
	tls_context_free(w->a.tls_client);
	tls_context_free(w->a.tls_server);
	tls_context_free(w->b.tls_client);
	tls_context_free(w->b.tls_server);
	buf_pool_free(w->pool);
	free(w->model);
#ifdef WORLD_SIM
	sim_free(w->sim);
#else
	char command[128];
	env_free(w->env);
	snprintf(command, sizeof(command), "rm -rf %s", w->dir);
	assert_int_equal(system(command), 0);
#endif
}

static bool in_sync(struct world *w)
{
	return w->a.replication && w->b.replication &&
	       status(&w->a).state == REPLICATION_STREAMING &&
	       status(&w->b).state == REPLICATION_STREAMING;
}

/* ---- I/O ------------------------------------------------------------------------------------ */

struct io {
	struct block_request request;
	bool done;
	int error;
};

static void io_done(struct block_request *request, int error)
{
	struct io *io = (struct io *)request;

	io->done = true;
	io->error = error;
}

static int submit_and_wait(struct node *n, struct io *io)
{
	struct block *block = volume_block(n->volume);

	io->request.done = io_done;
	io->done = false;
	block->ops->submit(block, &io->request);
	WAIT(n->world, io->done);
	return io->error;
}

static void flush(struct node *n)
{
	struct io io = {.request = {.op = BLOCK_FLUSH}};

	assert_int_equal(submit_and_wait(n, &io), 0);
}

/* Random writes, zeroes and trims, several at a time; the model follows. */
static void write_some(struct node *n, unsigned count)
{
	struct world *w = n->world;
	struct block *block = volume_block(n->volume);
	struct io *ios = calloc(WRITERS, sizeof(*ios));

	for (unsigned i = 0; i < count + WRITERS; i++) {
		struct io *io = &ios[i % WRITERS];
		if (io->request.op == BLOCK_WRITE || io->request.op == BLOCK_ZERO) {
			WAIT(w, io->done);
			assert_int_equal(io->error, 0);
			buf_put(io->request.buf);
		}
		memset(io, 0, sizeof(*io));
		if (i >= count)
			continue;
		uint64_t length = 512 * (1 + rnd(w, rnd(w, 8) == 0 ? 256 : 16));
		uint64_t offset = 512 * rnd(w, (VOLUME_BYTES - length) / 512);
		io->request = (struct block_request){
			.op = rnd(w, 6) == 0 ? BLOCK_ZERO : BLOCK_WRITE,
			.flags = rnd(w, 8) == 0 ? BLOCK_FUA : 0,
			.offset_bytes = offset,
			.length_bytes = length,
			.done = io_done,
		};
		if (io->request.op == BLOCK_WRITE) {
			/* What is waiting to be sent keeps its buffers. */
			WAIT(w, (io->request.buf = buf_alloc(w->pool, (uint32_t)length)) != NULL);
			for (uint64_t at = 0; at < length; at++)
				io->request.buf->data[at] = (uint8_t)rnd(w, 256);
			memcpy(w->model + offset, io->request.buf->data, length);
		} else {
			memset(w->model + offset, 0, length);
		}
		block->ops->submit(block, &io->request);
		if (rnd(w, 32) == 0)
			flush(n);
	}
	free(ios);
}

/* 64 KiB of its content; the caller puts the buffer back. */
static inline struct buf *read_piece(struct node *n, uint64_t at)
{
	struct world *w = n->world;
	struct io io = {.request = {.op = BLOCK_READ,
				    .offset_bytes = at,
				    .length_bytes = 65536,
				    .done = io_done}};

	io.request.buf = buf_alloc(w->pool, 65536);
	volume_read(n->volume, &io.request);
	WAIT(w, io.done);
	assert_int_equal(io.error, 0);
	return io.request.buf;
}

static void expect_content(struct node *n, const uint8_t *model, int line)
{
	for (uint64_t at = 0; at < VOLUME_BYTES; at += 65536) {
		struct buf *piece = read_piece(n, at);

		for (unsigned i = 0; i < 65536; i += 512)
			if (memcmp(piece->data + i, model + at + i, 512)) {
				dump(n->world);
				fail_msg("line %d, seed %llu: node %s differs at %llu", line,
					 (unsigned long long)seed, n->name,
					 (unsigned long long)(at + i));
			}
		buf_put(piece);
	}
}

/* Everything streamed is carried out by the peer, and both have the model's content. */
static void expect_same(struct world *w, struct node *primary, int line)
{
	WAIT(w, in_sync(w) && status(primary).lag_bytes == 0);
	expect_content(primary, w->model, line);
	expect_content(primary->peer, w->model, line);
	struct volume_state a = state(&w->a), b = state(&w->b);
	assert_true(id128_equal(&a.uuid, &b.uuid));
	WAIT(w, (a = state(&w->a), b = state(&w->b),
		 id128_equal(&a.generations.current, &b.generations.current)));
	WAIT(w, (a = state(primary), id128_is_zero(&a.generations.base)));
	if (b.disk != VOLUME_DISK_UPTODATE)
		dump(w);
	assert_int_equal(b.disk, VOLUME_DISK_UPTODATE);
}

static inline void set_role(struct node *n, enum volume_role role)
{
	struct volume_state s = state(n);

	s.role = role;
	if (role == VOLUME_PRIMARY)
		s.disk = VOLUME_DISK_UPTODATE;
	assert_int_equal(volume_set_state(n->volume, &s), 0);
	replication_role_changed(n->replication);
}

static void disconnect(struct node *n)
{
	char why[256];

	assert_int_equal(replication_disconnect(n->replication, why, sizeof(why)), 0);
}

static void reconnect(struct node *n)
{
	char why[256];

	assert_int_equal(replication_connect(n->replication, why, sizeof(why)), 0);
}

#ifdef WORLD_SIM
static inline void block_link(struct world *w, bool blocked)
{
	sim_block(w->sim, "a", "b", blocked);
	sim_block(w->sim, "b", "a", blocked);
}

/* Its process is gone; it may have died before. */
static inline void crash(struct node *n, enum sim_crash mode)
{
	if (!sim_node_dead(n->env))
		sim_crash(n->world->sim, n->env, mode);
	n->replication = NULL;
	n->volume = NULL;
	n->listener = NULL;
}

/* Clients' buffers that it had go with it. */
static inline void crash_primary(struct node *n, enum sim_crash mode)
{
	crash(n, mode);
	n->world->pool = buf_pool_new((unsigned[3]){64, 64, 32});
}

static inline void come_back(struct node *n, enum volume_role role)
{
	n->env = sim_restart(n->world->sim, n->env);
	listen_on(n);
	start(n, role);
}
#endif

/* All of them, or TEST=pattern. The seed: the program's argument, SEED=, or a new one. */
static int pair_main(int argc, char **argv, const struct CMUnitTest *tests, size_t count)
{
	const char *text = argc > 1 ? argv[1] : getenv("SEED");
	int failed;

	seed = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid();
	printf("seed: SEED=%llu\n", (unsigned long long)seed);
	if (getenv("TEST"))
		cmocka_set_test_filter(getenv("TEST"));
	failed = _cmocka_run_group_tests("tests", tests, count, NULL, NULL);
	printf("seed: SEED=%llu\n", (unsigned long long)seed);
	return failed;
}

#endif
