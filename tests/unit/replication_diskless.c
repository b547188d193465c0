/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A primary whose disk fails or is replaced, in use all the while: over loopback on both real
 * backends, and (replication_diskless_sim.c includes this file) in the simulator. SEED=n replays.
 */
#include "tests/unit/replication_pair.h"

/* ---- clients that go on while requests are held ------------------------------------------------- */

#define LANES      8u
#define LANE_BYTES (VOLUME_BYTES / LANES)

/* One request at a time in a part of the volume of its own. */
struct lane {
	struct io io;
	uint64_t first;
	bool busy;
	uint8_t *expect; /* READ */
};

struct clients {
	struct node *node;
	struct lane lanes[LANES];
	uint64_t completed;
};

static void lane_end(struct clients *c, struct lane *lane)
{
	struct world *w = c->node->world;
	const struct block_request *r = &lane->io.request;

	if (lane->io.error) {
		dump(w);
		fail_msg("seed %llu: request %d at %llu: %d", (unsigned long long)seed, r->op,
			 (unsigned long long)r->offset_bytes, lane->io.error);
	}
	if (r->op == BLOCK_READ &&
	    memcmp(r->buf->data, w->model + r->offset_bytes, r->length_bytes)) {
		dump(w);
		fail_msg("seed %llu: read at %llu gives something else", (unsigned long long)seed,
			 (unsigned long long)r->offset_bytes);
	}
	buf_put(lane->io.request.buf);
	lane->busy = false;
	c->completed++;
}

static void lane_begin(struct clients *c, unsigned i)
{
	struct world *w = c->node->world;
	struct lane *lane = &c->lanes[i];
	uint64_t length = rnd(w, 3) ? 512 * (1 + rnd(w, 24)) : 1 + rnd(w, 9000);
	uint64_t offset = i * LANE_BYTES + rnd(w, LANE_BYTES - length);
	unsigned what = (unsigned)rnd(w, 12);

	if (rnd(w, 3))
		offset -= offset % 512;
	if (rnd(w, 3) == 0) {
		offset -= offset % 4096;
		length = 4096 * (1 + rnd(w, 4));
	}
	if (offset + length > (i + 1) * LANE_BYTES)
		length = (i + 1) * LANE_BYTES - offset;
	lane->io = (struct io){.request = {.op = what < 6   ? BLOCK_WRITE
						 : what < 7 ? BLOCK_ZERO
						 : what < 8 ? BLOCK_TRIM
						 : what < 9 ? BLOCK_FLUSH
							    : BLOCK_READ,
					   .flags = what < 8 && rnd(w, 6) == 0 ? BLOCK_FUA : 0,
					   .offset_bytes = offset,
					   .length_bytes = length,
					   .done = io_done}};
	if (what >= 8 && what < 9)
		lane->io.request.offset_bytes = lane->io.request.length_bytes = 0;
	if (what < 6 || what >= 9) {
		lane->io.request.buf = buf_alloc(w->pool, (uint32_t)length);
		if (!lane->io.request.buf)
			return;
	}
	if (what < 6) {
		for (uint64_t at = 0; at < length; at++)
			lane->io.request.buf->data[at] = (uint8_t)rnd(w, 256);
		memcpy(w->model + offset, lane->io.request.buf->data, length);
	} else if (what == 6) {
		memset(w->model + offset, 0, length);
	} else if (what == 7) { /* it does whole blocks of the disk only */
		lane->io.request.offset_bytes = offset -= offset % 4096;
		lane->io.request.length_bytes = 4096;
		memset(w->model + offset, 0, 4096);
	}
	lane->busy = true;
	volume_block(c->node->volume)
		->ops->submit(volume_block(c->node->volume), &lane->io.request);
}

static void reap(struct clients *c)
{
	for (unsigned i = 0; i < LANES; i++)
		if (c->lanes[i].busy && c->lanes[i].io.done)
			lane_end(c, &c->lanes[i]);
}

static void keep_busy(struct clients *c)
{
	reap(c);
	for (unsigned i = 0; i < LANES; i++)
		if (!c->lanes[i].busy && rnd(c->node->world, 4) == 0)
			lane_begin(c, i);
}

static void churn(struct clients *c, unsigned turns)
{
	while (turns-- > 0) {
		keep_busy(c);
		turn(c->node->world);
		volume_check(c->node->volume);
	}
}

static bool quiet(struct clients *c)
{
	reap(c);
	for (unsigned i = 0; i < LANES; i++)
		if (c->lanes[i].busy)
			return false;
	return true;
}

#define CHURN_UNTIL(c, condition)                                                          \
	do {                                                                               \
		uint64_t limit_ = now_ns((c)->node->world) + 120000000000ull;              \
		while (!(condition)) {                                                     \
			churn(c, 4);                                                       \
			if (now_ns((c)->node->world) > limit_) {                           \
				dump((c)->node->world);                                    \
				fail_msg("seed %llu: never: %s", (unsigned long long)seed, \
					 #condition);                                      \
			}                                                                  \
		}                                                                          \
	} while (0)

static enum volume_lean lean(struct node *n)
{
	return volume_lean(n->volume);
}

static bool can_hydrate(struct node *n)
{
	char why[256];
	int error = volume_hydrate(n->volume, why, sizeof(why));

	if (error && error != -EBUSY)
		fail_msg("seed %llu: %d %s", (unsigned long long)seed, error, why);
	return error == 0;
}

static uint64_t missing(struct node *n)
{
	struct volume_stats stats;

	volume_get_stats(n->volume, &stats);
	return stats.missing_bytes;
}

/* ---- missing at start ---------------------------------------------------------------------------- */

static void lose_backing(struct node *n)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/backing", n->dir);
	assert_int_equal(env_unlink(n->env, path), 0);
}

static void lean_on_peer(struct node *n)
{
	char why[256] = "";

	if (volume_lean_on_peer(n->volume, why, sizeof(why)))
		fail_msg("%s", why);
	replication_role_changed(n->replication);
}

/* Reads come from the peer, writes go to it; a new disk is filled while both go on; a restart in between
 * goes on where it was; afterwards all is as ever. */
static void a_missing_disk_is_replaced_under_clients(void **unused)
{
	struct world w;
	struct clients c = {.node = &w.a};
	char why[256];

	world_open(&w);
	w.a.detach = w.a.store_follows = true;
	world_start(&w);
	write_some(&w.a, 150);
	expect_same(&w, &w.a, __LINE__);
	WAIT(&w, status(&w.a).out_of_sync_bytes == 0);
	stop(&w.a);
	lose_backing(&w.a);
	start(&w.a, VOLUME_PRIMARY);
	assert_int_equal(state(&w.a).disk, VOLUME_DISK_FAILED);
	assert_int_not_equal(
		volume_block(w.a.volume)->ops->open(volume_block(w.a.volume), why, sizeof(why)), 0);
	lean_on_peer(&w.a);
	assert_int_equal(state(&w.a).disk, VOLUME_DISK_DISKLESS);
	/* What goes to the peer alone is not marked for the store: no change of its state makes that map follow again. */
	struct volume_state same = state(&w.a);
	assert_int_equal(volume_set_state(w.a.volume, &same), 0);
	assert_false(volume_store_follows(w.a.volume));
	WAIT(&w, in_sync(&w));
	assert_int_equal(
		volume_block(w.a.volume)->ops->open(volume_block(w.a.volume), why, sizeof(why)), 0);
	volume_block(w.a.volume)->ops->close(volume_block(w.a.volume));
	churn(&c, 400);
	WAIT(&w, quiet(&c));
	expect_content(&w.a, w.model, __LINE__);
	expect_content(&w.b, w.model, __LINE__);
	/* A restart leans again, and serves nothing of its own. */
	stop(&w.a);
	start(&w.a, VOLUME_PRIMARY);
	assert_int_equal(lean(&w.a), VOLUME_LEAN_DISKLESS);
	churn(&c, 100);
	WAIT(&w, in_sync(&w) && quiet(&c));
	assert_int_equal(volume_hydrate(w.a.volume, why, sizeof(why)), 0);
	assert_int_equal(state(&w.a).disk, VOLUME_DISK_INCONSISTENT);
	churn(&c, 2);
	WAIT(&w, quiet(&c));
	if (lean(&w.a) == VOLUME_LEAN_HYDRATING) {
		stop(&w.a);
		start(&w.a, VOLUME_PRIMARY);
		assert_int_equal(lean(&w.a), VOLUME_LEAN_HYDRATING);
	}
	CHURN_UNTIL(&c, lean(&w.a) == VOLUME_LEAN_NO);
	WAIT(&w, quiet(&c));
	assert_int_equal(state(&w.a).disk, VOLUME_DISK_UPTODATE);
	churn(&c, 100);
	WAIT(&w, quiet(&c));
	expect_same(&w, &w.a, __LINE__);
	stop(&w.a);
	start(&w.a, VOLUME_PRIMARY);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* While the peer is away requests wait; nothing of them is lost or done twice in the wrong order. */
static void requests_wait_for_the_peer(void **unused)
{
	struct world w;
	struct clients c = {.node = &w.a};
	uint64_t before;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	WAIT(&w, status(&w.a).out_of_sync_bytes == 0);
	stop(&w.a);
	lose_backing(&w.a);
	start(&w.a, VOLUME_PRIMARY);
	lean_on_peer(&w.a);
	WAIT(&w, in_sync(&w));
	for (unsigned round = 0; round < 6; round++) {
		if (round == 3)
			CHURN_UNTIL(&c, can_hydrate(&w.a));
		churn(&c, 30 + (unsigned)rnd(&w, 60));
		if (round % 2) {
			disconnect(&w.b);
		} else {
			stop(&w.b);
		}
		if (lean(&w.a) == VOLUME_LEAN_NO)
			break;
		WAIT(&w, !volume_leans(w.a.volume) ||
				 (volume_suspended(w.a.volume) & VOLUME_SUSPEND_ORIGIN));
		if (lean(&w.a) == VOLUME_LEAN_NO)
			break;
		churn(&c, 60);
		before = c.completed;
		churn(&c, 100);
		assert_int_equal(c.completed, before);
		if (round % 2)
			reconnect(&w.b);
		else
			start(&w.b, VOLUME_SECONDARY);
		CHURN_UNTIL(&c, c.completed > before + 30);
	}
	if (!w.b.volume)
		start(&w.b, VOLUME_SECONDARY);
	else if (status(&w.b).state == REPLICATION_STANDALONE)
		reconnect(&w.b);
	if (lean(&w.a) != VOLUME_LEAN_NO)
		CHURN_UNTIL(&c, lean(&w.a) == VOLUME_LEAN_NO);
	WAIT(&w, quiet(&c));
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* A peer that took writes of its own meanwhile is not what this side left. */
static void a_peer_that_went_on_alone_is_not_leaned_on(void **unused)
{
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	stop(&w.a);
	lose_backing(&w.a);
	set_role(&w.b, VOLUME_PRIMARY);
	write_some(&w.b, 5);
	set_role(&w.b, VOLUME_SECONDARY);
	start(&w.a, VOLUME_PRIMARY);
	lean_on_peer(&w.a);
	/* What b said when it was primary may be heard before: both nodes are. */
	WAIT(&w, status(&w.a).state == REPLICATION_STANDALONE &&
			 strstr(status(&w.a).refusal, "behind"));
	assert_true(volume_suspended(w.a.volume) & VOLUME_SUSPEND_ORIGIN);
	/* Demoted, it is a secondary without a disk. */
	set_role(&w.a, VOLUME_SECONDARY);
	assert_int_equal(state(&w.a).disk, VOLUME_DISK_FAILED);
	assert_int_equal(lean(&w.a), VOLUME_LEAN_NO);
	world_close(&w);
}

/* on-peer-loss = suspend: to go alone cannot be done without content, and must not make the history
 * another one than that of the peer, which has it. */
static void the_operators_word_does_not_part_it_from_its_content(void **unused)
{
	struct world w;
	struct clients c = {.node = &w.a};
	char why[256];

	world_open(&w);
	w.a.suspends = w.b.suspends = true;
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	WAIT(&w, status(&w.a).out_of_sync_bytes == 0);
	stop(&w.a);
	lose_backing(&w.a);
	start(&w.a, VOLUME_PRIMARY);
	lean_on_peer(&w.a);
	WAIT(&w, in_sync(&w));
	churn(&c, 100);
	WAIT(&w, quiet(&c));
	stop(&w.a);
	stop(&w.b);
	start(&w.a, VOLUME_PRIMARY);
	assert_true(status(&w.a).waiting);
	assert_int_equal(replication_resume(w.a.replication, why, sizeof(why)), -EPERM);
	assert_non_null(strstr(why, "its content is at the peer"));
	disconnect(&w.a);
	reconnect(&w.a);
	start(&w.b, VOLUME_SECONDARY);
	WAIT(&w, in_sync(&w));
	churn(&c, 100);
	WAIT(&w, quiet(&c));
	expect_content(&w.a, w.model, __LINE__);
	expect_content(&w.b, w.model, __LINE__);
	world_close(&w);
}

#ifdef WORLD_SIM

/* What the peer has of a catch-up that was cut off is nothing for a primary whose disk is gone. */
static void an_unfinished_catch_up_does_not_keep_the_peer_from_serving(void **unused)
{
	struct sim_net_options net, slow;
	struct io ios[24] = {};
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	WAIT(&w, status(&w.a).out_of_sync_bytes == 0);
	block_link(&w, true);
	for (unsigned i = 0; i < 24; i++) {
		struct block *block = volume_block(w.a.volume);
		ios[i].request = (struct block_request){.op = BLOCK_WRITE,
							.offset_bytes = 131072 * i,
							.length_bytes = 65536,
							.done = io_done};
		ios[i].request.buf = buf_alloc(w.pool, 65536);
		memset(ios[i].request.buf->data, 0x55, 65536);
		block->ops->submit(block, &ios[i].request);
	}
	let_pass(&w, 500);
	crash_primary(&w.a, SIM_CRASH_POWER_KEEP); /* nobody saw the end of them */
	let_pass(&w, 3000);                        /* what was on its way is gone */
	sim_net_get(w.sim, &net);
	slow = net;
	slow.bytes_per_second = 300000;
	sim_net_set(w.sim, &slow);
	block_link(&w, false);
	come_back(&w.a, VOLUME_PRIMARY);
	WAIT(&w, status(&w.b).staged_bytes > 300000);
	assert_true(status(&w.b).staged_bytes < 24 * 65536);
	block_link(&w, true);
	stop(&w.a);
	lose_backing(&w.a);
	sim_net_set(w.sim, &net);
	block_link(&w, false);
	start(&w.a, VOLUME_PRIMARY);
	lean_on_peer(&w.a);
	WAIT(&w, in_sync(&w));
	expect_content(&w.a, w.model, __LINE__);
	write_some(&w.a, 20);
	expect_content(&w.a, w.model, __LINE__);
	WAIT(&w, status(&w.a).lag_bytes == 0);
	expect_content(&w.b, w.model, __LINE__);
	world_close(&w);
}

/* Filled, it is a primary as any other: a peer whose disk hangs is lost. */
static void a_peer_that_hangs_after_the_filling_is_lost(void **unused)
{
	struct sim_disk_options disk;
	struct io io = {.request = {.op = BLOCK_WRITE, .length_bytes = 4096}};
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	WAIT(&w, status(&w.a).out_of_sync_bytes == 0);
	stop(&w.a);
	lose_backing(&w.a);
	start(&w.a, VOLUME_PRIMARY);
	lean_on_peer(&w.a);
	WAIT(&w, in_sync(&w));
	WAIT(&w, can_hydrate(&w.a));
	WAIT(&w, lean(&w.a) == VOLUME_LEAN_NO);
	expect_same(&w, &w.a, __LINE__);
	sim_disk_get(w.b.env, &disk);
	struct sim_disk_options hangs = disk;
	hangs.latency_min_ns = hangs.latency_max_ns = 8000000000ull;
	sim_disk_set(w.b.env, &hangs);
	io.request.buf = buf_alloc(w.pool, 4096);
	memset(io.request.buf->data, 7, 4096);
	memset(w.model, 7, 4096);
	uint64_t begun = now_ns(&w);
	assert_int_equal(submit_and_wait(&w.a, &io), 0);
	assert_true(now_ns(&w) - begun < 5000000000ull);
	buf_put(io.request.buf);
	sim_disk_set(w.b.env, &disk);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* ---- errors of the disk --------------------------------------------------------------------------- */

static void disk_errors(struct node *n, uint32_t ppm, bool reads, bool writes, bool syncs)
{
	struct sim_disk_options options;

	sim_disk_get(n->env, &options);
	options.read_eio_ppm = reads ? ppm : 0;
	options.write_eio_ppm = writes ? ppm : 0;
	options.fsync_eio_ppm = syncs ? ppm : 0;
	options.eio_path = "/backing";
	sim_disk_set(n->env, &options);
}

/* Clients notice nothing, whatever fails first and whatever protocol is used. */
static void a_failing_disk_is_taken_over_by_the_peer(void **unused)
{
	for (unsigned round = 0; round < 12; round++) {
		struct world w;
		struct clients c = {.node = &w.a};

		world_open(&w);
		w.a.protocol = w.b.protocol = round % 3;
		w.a.detach = true;
		world_start(&w);
		write_some(&w.a, 50);
		expect_same(&w, &w.a, __LINE__);
		churn(&c, 200);
		disk_errors(&w.a, round % 2 ? 1000000 : 100000, round & 1 || round % 5 == 0,
			    round & 2 || round % 4 == 0, round & 4);
		if (!(round & 1 || round % 5 == 0 || round & 2 || round % 4 == 0 || round & 4))
			disk_errors(&w.a, 100000, true, true, true);
		CHURN_UNTIL(&c, lean(&w.a) == VOLUME_LEAN_DISKLESS);
		churn(&c, 500);
		WAIT(&w, quiet(&c));
		expect_content(&w.a, w.model, __LINE__);
		expect_content(&w.b, w.model, __LINE__);
		assert_int_equal(state(&w.a).disk, VOLUME_DISK_DISKLESS);
		disk_errors(&w.a, 0, false, false, false);
		CHURN_UNTIL(&c, can_hydrate(&w.a));
		if (round % 4 == 1) { /* the new one fails, too */
			churn(&c, 20);
			disk_errors(&w.a, 1000000, true, true, true);
			CHURN_UNTIL(&c, lean(&w.a) != VOLUME_LEAN_HYDRATING);
			churn(&c, 100);
			disk_errors(&w.a, 0, false, false, false);
			if (lean(&w.a) == VOLUME_LEAN_DISKLESS)
				CHURN_UNTIL(&c, can_hydrate(&w.a));
		}
		CHURN_UNTIL(&c, lean(&w.a) == VOLUME_LEAN_NO);
		churn(&c, 100);
		WAIT(&w, quiet(&c));
		expect_same(&w, &w.a, __LINE__);
		world_close(&w);
	}
}

/* The primary was killed: what was under way may be there or not, in whole sectors; everything else is. */
static void expect_after_crash(struct clients *c)
{
	struct world *w = c->node->world;

	w->pool = buf_pool_new((unsigned[3]){64, 64, 32}); /* the old one went with the node */
	for (unsigned i = 0; i < LANES; i++) {
		struct lane *lane = &c->lanes[i];
		const struct block_request *r = &lane->io.request;
		uint64_t from = r->offset_bytes / 512 * 512;
		uint64_t end = (r->offset_bytes + r->length_bytes + 511) / 512 * 512;
		struct io io = {.request = {.op = BLOCK_READ,
					    .offset_bytes = from,
					    .length_bytes = end - from,
					    .done = io_done}};

		if (!lane->busy)
			continue;
		lane->busy = false;
		if (lane->io.done || r->op == BLOCK_READ || r->op == BLOCK_FLUSH)
			continue;
		WAIT(w, (io.request.buf = buf_alloc(w->pool, (uint32_t)(end - from))) != NULL);
		volume_block(c->node->volume)
			->ops->submit(volume_block(c->node->volume), &io.request);
		WAIT(w, io.done);
		assert_int_equal(io.error, 0);
		memcpy(w->model + from, io.request.buf->data, end - from);
		buf_put(io.request.buf);
	}
}

static void power_cut(struct clients *c, struct node *n)
{
	crash(n, (enum sim_crash)sim_random(n->world->sim, 4));
	come_back(n, n == &n->world->a ? VOLUME_PRIMARY : VOLUME_SECONDARY);
	if (n == c->node)
		expect_after_crash(c);
	(void)c;
}

/* Either side dies at any moment while the volume leans. Nothing that a client saw done is lost: flushed or
 * not, since it was durable at the peer before. */
static void crashes_while_it_leans(void **unused)
{
	for (unsigned round = 0; round < 6; round++) {
		struct world w;
		struct clients c = {.node = &w.a};

		world_open(&w);
		w.a.detach = true;
		w.a.protocol = w.b.protocol = round % 3;
		world_start(&w);
		write_some(&w.a, 50);
		expect_same(&w, &w.a, __LINE__);
		disk_errors(&w.a, 1000000, true, true, true);
		CHURN_UNTIL(&c, lean(&w.a) == VOLUME_LEAN_DISKLESS);
		for (unsigned i = 0; i < 12; i++) {
			churn(&c, (unsigned)rnd(&w, 300));
			if (i == 4) {
				disk_errors(&w.a, 0, false, false, false);
				CHURN_UNTIL(&c, volume_leans(w.a.volume) && in_sync(&w));
				CHURN_UNTIL(&c, can_hydrate(&w.a));
				churn(&c, (unsigned)rnd(&w, 60));
			}
			if (lean(&w.a) == VOLUME_LEAN_NO)
				break;
			power_cut(&c, rnd(&w, 2) ? &w.a : &w.b);
			assert_true(volume_leans(w.a.volume));
			if (rnd(&w, 3))
				CHURN_UNTIL(&c, in_sync(&w));
		}
		CHURN_UNTIL(&c, lean(&w.a) == VOLUME_LEAN_NO);
		WAIT(&w, quiet(&c));
		expect_same(&w, &w.a, __LINE__);
		world_close(&w);
	}
}

/* A secondary whose disk fails drops out, once, and says so; the primary goes on and tracks. */
static void a_secondarys_disk_fails(void **unused)
{
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 100);
	expect_same(&w, &w.a, __LINE__);
	disk_errors(&w.b, 1000000, false, true, true);
	write_some(&w.a, 50);
	flush(&w.a);
	WAIT(&w, state(&w.b).disk == VOLUME_DISK_FAILED);
	WAIT(&w, status(&w.a).state == REPLICATION_IDLE);
	assert_int_equal(status(&w.a).peer_disk, VOLUME_DISK_FAILED);
	uint64_t connects = status(&w.a).connects;
	write_some(&w.a, 50);
	flush(&w.a);
	let_pass(&w, 30000);
	assert_int_equal(status(&w.a).connects, connects);
	assert_true(status(&w.a).out_of_sync_bytes > 0);
	disk_errors(&w.b, 0, false, false, false);
	stop(&w.b);
	start(&w.b, VOLUME_SECONDARY);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* Its disk failed at an fsync, and the operator moves the clients over to the peer. */
static void a_primary_without_a_disk_is_demoted(void **unused)
{
	struct world w;

	world_open(&w);
	w.a.detach = true;
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	disk_errors(&w.a, 1000000, false, false, true);
	write_some(&w.a, 10);
	flush(&w.a);
	assert_int_equal(lean(&w.a), VOLUME_LEAN_DISKLESS);
	WAIT(&w, status(&w.a).out_of_sync_bytes == 0);
	set_role(&w.a, VOLUME_SECONDARY);
	assert_int_equal(state(&w.a).role, VOLUME_SECONDARY);
	assert_int_equal(state(&w.a).disk, VOLUME_DISK_FAILED);
	set_role(&w.b, VOLUME_PRIMARY);
	expect_content(&w.b, w.model, __LINE__);
	world_close(&w);
}

/* Without a peer in sync there is nothing to lean on: the error is the client's, as with `error`. */
static void without_a_peer_errors_are_errors(void **unused)
{
	struct world w;
	struct io io = {.request = {.op = BLOCK_WRITE, .length_bytes = 4096}};

	world_open(&w);
	w.a.detach = true;
	world_start(&w);
	write_some(&w.a, 50);
	expect_same(&w, &w.a, __LINE__);
	disconnect(&w.b);
	WAIT(&w, status(&w.a).state == REPLICATION_CONNECTING);
	disk_errors(&w.a, 1000000, false, true, false);
	io.request.buf = buf_alloc(w.pool, 4096);
	assert_int_equal(submit_and_wait(&w.a, &io), -EIO);
	buf_put(io.request.buf);
	assert_int_equal(lean(&w.a), VOLUME_LEAN_NO);
	disk_errors(&w.a, 0, false, false, false);
	world_close(&w);
}
#endif

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_missing_disk_is_replaced_under_clients),
		cmocka_unit_test(requests_wait_for_the_peer),
		cmocka_unit_test(a_peer_that_went_on_alone_is_not_leaned_on),
		cmocka_unit_test(the_operators_word_does_not_part_it_from_its_content),
#ifdef WORLD_SIM
		cmocka_unit_test(a_peer_that_hangs_after_the_filling_is_lost),
		cmocka_unit_test(an_unfinished_catch_up_does_not_keep_the_peer_from_serving),
		cmocka_unit_test(a_failing_disk_is_taken_over_by_the_peer),
		cmocka_unit_test(crashes_while_it_leans),
		cmocka_unit_test(a_secondarys_disk_fails),
		cmocka_unit_test(a_primary_without_a_disk_is_demoted),
		cmocka_unit_test(without_a_peer_errors_are_errors),
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
