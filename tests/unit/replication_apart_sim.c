/* SPDX-License-Identifier: Apache-2.0 */
/* Two histories: the old primary's own writes, split brain, and how one of them is given up. */
#define WORLD_SIM
#pragma GCC diagnostic ignored "-Wunused-function"
#include "tests/unit/replication_pair.h"
#include "daemon/replication/kept.h"

struct given_up {
	bool done;
	int error;
	char why[256];
};

static void given_up(void *context, int error, const char *why)
{
	struct given_up *g = context;

	g->done = true;
	g->error = error;
	snprintf(g->why, sizeof(g->why), "%s", why);
}

/* A common content in the model; then both take writes apart. a's in the model, b's in *other. */
static void split_apart(struct world *w, uint8_t **other)
{
	world_open(w);
	world_start(w);
	write_some(&w->a, 300);
	expect_same(w, &w->a, __LINE__);
	WAIT(w, volume_dirty_bytes(w->a.volume, VOLUME_PEER) == 0);
	disconnect(&w->a);
	disconnect(&w->b);
	set_role(&w->b, VOLUME_PRIMARY);
	*other = malloc(VOLUME_BYTES);
	memcpy(*other, w->model, VOLUME_BYTES);
	write_some(&w->a, 20);
	flush(&w->a);
	uint8_t *mine = w->model;
	w->model = *other;
	write_some(&w->b, 20);
	flush(&w->b);
	w->model = mine;
}

static void meet(struct world *w)
{
	reconnect(&w->a);
	reconnect(&w->b);
	WAIT(w, status(&w->a).state == REPLICATION_STANDALONE &&
			status(&w->b).state == REPLICATION_STANDALONE);
	assert_non_null(strstr(status(&w->a).refusal, "split brain"));
	assert_non_null(strstr(status(&w->b).refusal, "split brain"));
}

static void in_every_pair_of_roles_it_is_split_brain(void **unused)
{
	for (unsigned roles = 0; roles < 4; roles++) {
		struct world w;
		uint8_t *other;

		split_apart(&w, &other);
		set_role(&w.a, roles & 1 ? VOLUME_PRIMARY : VOLUME_SECONDARY);
		set_role(&w.b, roles & 2 ? VOLUME_PRIMARY : VOLUME_SECONDARY);
		meet(&w);
		expect_content(&w.a, w.model, __LINE__);
		expect_content(&w.b, other, __LINE__);
		free(other);
		world_close(&w);
	}
}

static void what_is_given_up_costs_the_union(void **unused)
{
	struct given_up g = {};
	struct world w;
	uint8_t *other;

	split_apart(&w, &other);
	uint64_t dirty = volume_dirty_bytes(w.a.volume, VOLUME_PEER) +
			 volume_dirty_bytes(w.b.volume, VOLUME_PEER);
	set_role(&w.b, VOLUME_SECONDARY);
	meet(&w);
	uint64_t sent = status(&w.a).sent_bytes;
	replication_discard_changes(w.b.replication, given_up, &g);
	assert_int_equal(state(&w.b).disk, VOLUME_DISK_OUTDATED);
	assert_true(status(&w.b).wants && !status(&w.a).wants);
	while (!g.done) {
		turn(&w);
		assert_int_not_equal(state(&w.b).disk, VOLUME_DISK_INCONSISTENT);
	}
	assert_int_equal(g.error, 0);
	assert_false(status(&w.b).wants);
	expect_same(&w, &w.a, __LINE__);
	sent = status(&w.a).sent_bytes - sent;
	if (sent > dirty + dirty / 8 + 65536 || dirty > VOLUME_BYTES / 4)
		fail_msg("seed %llu: %llu bytes sent for a union of at most %llu",
			 (unsigned long long)seed, (unsigned long long)sent,
			 (unsigned long long)dirty);
	/* and the generations given up are nobody's ancestors */
	struct volume_state s = state(&w.b);
	for (unsigned i = 0; i < VOLUME_HISTORY; i++)
		assert_false(id128_equal(&s.generations.history[i], &s.generations.current));
	write_some(&w.a, 10);
	expect_same(&w, &w.a, __LINE__);
	free(other);
	world_close(&w);
}

static void a_secondary_can_be_the_source(void **unused)
{
	struct given_up g = {};
	struct world w;
	uint8_t *other;

	split_apart(&w, &other);
	set_role(&w.a, VOLUME_SECONDARY);
	set_role(&w.b, VOLUME_SECONDARY);
	meet(&w);
	replication_discard_changes(w.b.replication, given_up, &g);
	WAIT(&w, g.done);
	assert_int_equal(g.error, 0);
	WAIT(&w, status(&w.a).state == REPLICATION_IDLE && status(&w.b).state == REPLICATION_IDLE);
	expect_content(&w.a, w.model, __LINE__);
	expect_content(&w.b, w.model, __LINE__);
	assert_int_equal(state(&w.b).disk, VOLUME_DISK_UPTODATE);
	set_role(&w.b, VOLUME_PRIMARY);
	write_some(&w.b, 20);
	expect_same(&w, &w.b, __LINE__);
	free(other);
	world_close(&w);
}

static void a_primary_gives_nothing_up(void **unused)
{
	struct given_up g = {};
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 10);
	expect_same(&w, &w.a, __LINE__);
	replication_discard_changes(w.a.replication, given_up, &g);
	assert_true(g.done);
	assert_int_equal(g.error, -EPERM);
	assert_non_null(strstr(g.why, "only a secondary"));
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void dies_somewhere(struct world *w, struct node *n)
{
	enum sim_crash mode = (enum sim_crash)sim_random(w->sim, 4);

	sim_crash_after_ios(w->sim, n->env, 1 + sim_random(w->sim, 80), mode);
	uint64_t end = now_ns(w) + 2000000000ull;
	while (!sim_node_dead(n->env) && now_ns(w) < end && sim_step(w->sim))
		;
	crash(n, mode);
	come_back(n, VOLUME_SECONDARY);
}

/* Whoever dies whenever: the wish outlives it, the loser's disk is old or new, never a mixture. */
static void giving_up_outlives_crashes(void **unused)
{
	for (unsigned i = 0; i < 24; i++) {
		struct given_up g = {};
		struct world w;
		uint8_t *other;

		split_apart(&w, &other);
		set_role(&w.b, VOLUME_SECONDARY);
		meet(&w);
		replication_discard_changes(w.b.replication, given_up, &g);
		dies_somewhere(&w, i % 3 ? &w.b : &w.a);
		if (i % 4 == 0)
			dies_somewhere(&w, &w.b);
		assert_int_not_equal(state(&w.b).disk, VOLUME_DISK_INCONSISTENT);
		reconnect(&w.a);
		expect_same(&w, &w.a, __LINE__);
		free(other);
		world_close(&w);
	}
}

/* a is not there when b gives its changes up. */
static void give_up_alone(struct world *w, uint8_t **other, struct given_up *g)
{
	split_apart(w, other);
	set_role(&w->b, VOLUME_SECONDARY);
	meet(w);
	disconnect(&w->a);
	replication_discard_changes(w->b.replication, given_up, g);
	let_pass(w, 100);
	assert_false(g->done);
}

/* Promoted before the peer's content came: the wish is void, and what is here stays. */
static void a_promotion_takes_it_back(void **unused)
{
	struct given_up g = {};
	struct world w;
	uint8_t *other;

	give_up_alone(&w, &other, &g);
	set_role(&w.b, VOLUME_PRIMARY);
	assert_true(g.done);
	assert_int_equal(g.error, -ECANCELED);
	reconnect(&w.a);
	WAIT(&w, status(&w.b).state == REPLICATION_STANDALONE);
	expect_content(&w.b, other, __LINE__);
	free(other);
	world_close(&w);
}

/* The other's content is lost before it came: what was to be given up is the only good copy now. */
static void what_is_the_last_copy_is_not_given_up(void **unused)
{
	struct given_up given = {}, restored = {};
	struct world w;
	uint8_t *other;

	give_up_alone(&w, &other, &given);
	assert_int_equal(state(&w.b).disk, VOLUME_DISK_OUTDATED);
	struct volume_state lost = state(&w.a);
	lost.disk = VOLUME_DISK_INCONSISTENT;
	assert_int_equal(volume_set_state(w.a.volume, &lost), 0);
	replication_restore_from_peer(w.a.replication, given_up, &restored);
	WAIT(&w, given.done);
	assert_int_equal(state(&w.b).disk, VOLUME_DISK_UPTODATE); /* what it was */
	WAIT(&w, restored.done);
	assert_int_equal(given.error, -ECANCELED);
	assert_non_null(strstr(given.why, "is lost"));
	assert_int_equal(restored.error, 0);
	expect_content(&w.a, other, __LINE__);
	expect_content(&w.b, other, __LINE__);
	assert_false(status(&w.a).wants || status(&w.b).wants);
	free(w.model);
	w.model = other;
	write_some(&w.a, 10);
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

/* ---- the old primary comes back --------------------------------------------------------------- */

/* In sync; then a dies with writes on its disk that never reached b. */
static void primary_dies(struct world *w)
{
	struct io ios[20] = {};

	world_open(w);
	w->a.start_wait_ms = 2000;
	w->a.steps_down = w->b.steps_down = true;
	world_start(w);
	write_some(&w->a, 50);
	expect_same(w, &w->a, __LINE__);
	WAIT(w, volume_dirty_bytes(w->a.volume, VOLUME_PEER) == 0);
	block_link(w, true);
	for (unsigned i = 0; i < 20; i++) {
		struct block *block = volume_block(w->a.volume);
		ios[i].request = (struct block_request){.op = BLOCK_WRITE,
							.offset_bytes = 65536 * i,
							.length_bytes = 4096,
							.done = io_done};
		ios[i].request.buf = buf_alloc(w->pool, 4096);
		memset(ios[i].request.buf->data, 0x55, 4096);
		block->ops->submit(block, &ios[i].request);
	}
	let_pass(w, 500);
	for (unsigned i = 0; i < 20; i++)
		assert_false(ios[i].done); /* protocol C */
	crash_primary(&w->a, SIM_CRASH_POWER_KEEP);
	block_link(w, false);
}

static void a_replaced_primary_steps_down_and_is_rolled_back(void **unused)
{
	for (unsigned used = 0; used < 2; used++) {
		struct world w;
		char why[256];

		primary_dies(&w);
		set_role(&w.b, VOLUME_PRIMARY);
		if (used) /* in use, but not written yet */
			assert_int_equal(
				volume_block(w.b.volume)
					->ops->open(volume_block(w.b.volume), why, sizeof(why)),
				0);
		else
			write_some(&w.b, 5);
		come_back(&w.a, VOLUME_PRIMARY);
		assert_true(status(&w.a).starting);
		/* Its clients are there before it knows: nothing of theirs is done. */
		struct io io = {
			.request = {.op = BLOCK_WRITE, .length_bytes = 4096, .done = io_done}};
		struct block *block = volume_block(w.a.volume);
		assert_int_equal(block->ops->open(block, why, sizeof(why)), 0);
		io.request.buf = buf_alloc(w.pool, 4096);
		memset(io.request.buf->data, 0xaa, 4096);
		block->ops->submit(block, &io.request);
		expect_same(&w, &w.b, __LINE__);
		assert_int_equal(state(&w.a).role, VOLUME_SECONDARY);
		assert_true(io.done && io.error == -EIO);
		buf_put(io.request.buf);
		struct replication_status s = status(&w.a);
		assert_true(s.stepped_down_ns && s.rolled_back_ns && !s.starting);
		assert_true(s.rolled_back_bytes >= 20 * 4096 && s.rolled_back_extents);
		block->ops->close(block);
		if (used)
			volume_block(w.b.volume)->ops->close(volume_block(w.b.volume));
		world_close(&w);
	}
}

static void a_primary_alone_serves_after_its_wait(void **unused)
{
	struct world w;

	primary_dies(&w);
	block_link(&w, true);
	come_back(&w.a, VOLUME_PRIMARY);
	uint64_t begun = now_ns(&w);
	struct io io = {.request = {.op = BLOCK_FLUSH}};
	assert_int_equal(submit_and_wait(&w.a, &io), 0);
	assert_true(now_ns(&w) - begun >= 1900000000ull && now_ns(&w) - begun < 2500000000ull);
	/* It has been alone now; a wait could not make it step down any more. */
	write_some(&w.a, 5);
	stop(&w.a);
	start(&w.a, VOLUME_PRIMARY);
	assert_false(status(&w.a).starting);
	set_role(&w.b, VOLUME_PRIMARY);
	write_some(&w.b, 5);
	block_link(&w, false);
	WAIT(&w, status(&w.a).state == REPLICATION_STANDALONE);
	assert_non_null(strstr(status(&w.a).refusal, "split brain"));
	assert_int_equal(state(&w.a).role, VOLUME_PRIMARY);
	world_close(&w);
}

/* Stopped while it waits: what its clients asked for is not done behind its own back, so it can still
 * step down later. */
static void who_is_stopped_in_its_wait_did_nothing(void **unused)
{
	struct world w;

	primary_dies(&w);
	set_role(&w.b, VOLUME_PRIMARY);
	write_some(&w.b, 5);
	block_link(&w, true);
	come_back(&w.a, VOLUME_PRIMARY);
	assert_true(status(&w.a).starting);
	struct io io = {.request = {.op = BLOCK_WRITE, .length_bytes = 4096, .done = io_done}};
	struct block *block = volume_block(w.a.volume);
	io.request.buf = buf_alloc(w.pool, 4096);
	memset(io.request.buf->data, 0xaa, 4096);
	block->ops->submit(block, &io.request);
	stop(&w.a);
	assert_true(io.done && io.error == -ESHUTDOWN);
	buf_put(io.request.buf);
	block_link(&w, false);
	start(&w.a, VOLUME_PRIMARY);
	expect_same(&w, &w.b, __LINE__);
	assert_int_equal(state(&w.a).role, VOLUME_SECONDARY);
	world_close(&w);
}

static void who_is_not_replaced_serves_at_once(void **unused)
{
	struct world w;
	struct io io = {.request = {.op = BLOCK_FLUSH}};

	primary_dies(&w);
	come_back(&w.a, VOLUME_PRIMARY);
	uint64_t begun = now_ns(&w);
	assert_int_equal(submit_and_wait(&w.a, &io), 0);
	assert_true(now_ns(&w) - begun < 1000000000ull);
	assert_int_equal(state(&w.a).role, VOLUME_PRIMARY);
	assert_int_equal(status(&w.a).stepped_down_ns, 0);
	world_close(&w);
}

/* Two that are in use, the same generation: neither is told to go. */
static void who_is_in_use_does_not_step_down(void **unused)
{
	struct block *blocks[2];
	struct world w;
	char why[256];

	primary_dies(&w);
	set_role(&w.b, VOLUME_PRIMARY);
	w.a.start_wait_ms = 0;
	block_link(&w, true);
	come_back(&w.a, VOLUME_PRIMARY);
	blocks[0] = volume_block(w.a.volume);
	blocks[1] = volume_block(w.b.volume);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(blocks[i]->ops->open(blocks[i], why, sizeof(why)), 0);
	block_link(&w, false);
	WAIT(&w, status(&w.a).state == REPLICATION_STANDALONE);
	assert_non_null(strstr(status(&w.a).refusal, "both nodes are primary"));
	blocks[0]->ops->close(blocks[0]);
	reconnect(&w.a);
	reconnect(&w.b);
	WAIT(&w, in_sync(&w) && state(&w.a).role == VOLUME_SECONDARY);
	blocks[1]->ops->close(blocks[1]);
	world_close(&w);
}

/* ---- the report ------------------------------------------------------------------------------- */

static void both_sides_keep_the_report(void **unused)
{
	struct replication_changes a, b;
	const struct split_record *split;
	struct world w;
	uint8_t *other;

	split_apart(&w, &other);
	replication_get_changes(w.a.replication, &a);
	replication_get_changes(w.b.replication, &b);
	meet(&w);
	for (unsigned i = 0; i < 2; i++) { /* also over a restart, with nobody there */
		assert_true(status(&w.a).split_brain && status(&w.b).split_brain);
		split = replication_get_split(w.a.replication);
		assert_true(split->flags & SPLIT_PEER_KNOWN && split->flags & SPLIT_NEAR);
		assert_string_equal(split->node, "b");
		assert_true(split->since_ns);
		assert_int_equal(split->peer_bytes, b.bytes);
		assert_int_equal(split->peer_extents, b.count);
		assert_memory_equal(split->extents, b.extents, sizeof(b.extents[0]) * b.listed);
		split = replication_get_split(w.b.replication);
		assert_int_equal(split->peer_bytes, a.bytes);
		assert_memory_equal(split->extents, a.extents, sizeof(a.extents[0]) * a.listed);
		if (i)
			break;
		block_link(&w, true);
		stop(&w.a);
		stop(&w.b);
		start(&w.a, VOLUME_PRIMARY);
		start(&w.b, VOLUME_PRIMARY);
	}
	block_link(&w, false);
	struct given_up g = {};
	set_role(&w.b, VOLUME_SECONDARY);
	WAIT(&w, status(&w.a).state == REPLICATION_STANDALONE);
	replication_discard_changes(w.b.replication, given_up, &g);
	expect_same(&w, &w.a, __LINE__);
	assert_false(status(&w.a).split_brain || status(&w.b).split_brain);
	free(other);
	world_close(&w);
}

/* The word is given where nobody can connect from; the other side looks again by itself. */
static void who_can_connect_looks_again(void **unused)
{
	struct given_up g = {};
	struct world w;
	uint8_t *other;

	split_apart(&w, &other);
	stop(&w.b);
	w.b.only_accept = true;
	start(&w.b, VOLUME_SECONDARY);
	set_role(&w.b, VOLUME_SECONDARY);
	reconnect(&w.a);
	WAIT(&w, status(&w.a).state == REPLICATION_STANDALONE && status(&w.b).split_brain);
	let_pass(&w, 40000);
	assert_true(status(&w.a).split_brain);
	replication_discard_changes(w.b.replication, given_up, &g);
	expect_same(&w, &w.a, __LINE__);
	assert_true(g.done && !g.error);
	free(other);
	world_close(&w);
}

static void restarts_with_policies(struct world *w, enum hello_after_sb_0pri p0,
				   enum hello_after_sb_1pri p1, bool a_primary)
{
	set_role(&w->b, VOLUME_SECONDARY);
	if (!a_primary)
		set_role(&w->a, VOLUME_SECONDARY);
	stop(&w->a);
	stop(&w->b);
	w->a.after_sb_0pri = w->b.after_sb_0pri = p0;
	w->a.after_sb_1pri = w->b.after_sb_1pri = p1;
	start(&w->a, VOLUME_SECONDARY);
	start(&w->b, VOLUME_SECONDARY);
}

static void a_policy_ends_it_without_an_operator(void **unused)
{
	for (unsigned i = 0; i < 3; i++) {
		struct world w;
		uint8_t *other;

		split_apart(&w, &other);
		disconnect(&w.b);
		if (i == 0) /* a, the secondary of both that changed more, counts */
			write_some(&w.a, 60);
		restarts_with_policies(&w, i == 0 ? AFTER_SB_0PRI_DISCARD_LEAST_CHANGES : 0,
				       i == 1 ? AFTER_SB_1PRI_DISCARD_SECONDARY : 0, i != 0);
		if (i == 2) { /* the default */
			WAIT(&w, status(&w.a).state == REPLICATION_STANDALONE &&
					 status(&w.b).split_brain);
			let_pass(&w, 20000);
			assert_true(status(&w.a).split_brain && !w.b.gave_up);
			expect_content(&w.b, other, __LINE__);
		} else {
			WAIT(&w, w.b.gave_up && !status(&w.a).split_brain &&
					 !status(&w.b).split_brain &&
					 status(&w.b).state >= REPLICATION_IDLE &&
					 state(&w.b).disk == VOLUME_DISK_UPTODATE);
			if (i == 1)
				expect_same(&w, &w.a, __LINE__);
			expect_content(&w.a, w.model, __LINE__);
			expect_content(&w.b, w.model, __LINE__);
			assert_int_equal(status(&w.b).full_syncs + status(&w.a).full_syncs, 0);
		}
		assert_int_equal(w.a.gave_up, 0);
		free(other);
		world_close(&w);
	}
}

/* ---- what is given up is kept ---------------------------------------------------------------- */

struct kept_end {
	bool done;
	struct kept_result result;
};

static void kept(void *context, const struct kept_result *result)
{
	struct kept_end *end = context;

	end->done = true;
	end->result = *result;
}

static void what_is_given_up_can_be_read_again(void **unused)
{
	struct kept_end end = {};
	struct env_file *file;
	struct env_file_info info;
	struct world w;
	uint8_t *other, *piece = malloc(VOLUME_BYTES);
	uint64_t offset = 0, start, length;
	char path[512], *index;

	split_apart(&w, &other);
	disconnect(&w.b);
	kept_write(w.b.volume, "b", "given up for a", false, kept, &end);
	WAIT(&w, end.done);
	assert_int_equal(end.result.error, 0);
	assert_int_equal(end.result.bytes, volume_dirty_bytes(w.b.volume, VOLUME_PEER));
	assert_int_equal(env_file_open(w.b.env, end.result.index, ENV_FILE_READ, &file), 0);
	assert_int_equal(env_file_info(w.b.env, file, &info), 0);
	index = calloc(1, info.size_bytes + 1);
	assert_int_equal(env_file_pread(w.b.env, file, index, info.size_bytes, 0), 0);
	env_file_close(w.b.env, file);
	assert_non_null(strstr(index, "\"format\": \"offsite-kept-1\""));
	assert_non_null(strstr(index, "\"reason\": \"given up for a\""));
	snprintf(path, sizeof(path), "%.*s.img", (int)strlen(end.result.index) - 5,
		 end.result.index);
	assert_int_equal(env_file_open(w.b.env, path, ENV_FILE_READ, &file), 0);
	while (volume_dirty_next(w.b.volume, VOLUME_PEER, offset, &start, &length)) {
		char extent[64];
		snprintf(extent, sizeof(extent), "[%llu, %llu]", (unsigned long long)start,
			 (unsigned long long)length);
		assert_non_null(strstr(index, extent));
		assert_int_equal(env_file_pread(w.b.env, file, piece, length, start), 0);
		assert_memory_equal(piece, other + start, length);
		offset = start + length;
	}
	env_file_close(w.b.env, file);
	free(index);
	free(piece);
	free(other);
	world_close(&w);
}

/* A map that does not reach back to the peer's content names too little. */
static void the_whole_is_kept_where_the_map_says_too_little(void **unused)
{
	struct kept_end end = {};
	struct env_file *file;
	struct world w;
	uint8_t *other, *image = malloc(VOLUME_BYTES);
	char path[512];

	split_apart(&w, &other);
	disconnect(&w.b);
	kept_write(w.b.volume, "b", "given up for a", true, kept, &end);
	WAIT(&w, end.done);
	assert_int_equal(end.result.error, 0);
	assert_true(end.result.bytes > volume_dirty_bytes(w.b.volume, VOLUME_PEER));
	snprintf(path, sizeof(path), "%.*s.img", (int)strlen(end.result.index) - 5,
		 end.result.index);
	assert_int_equal(env_file_open(w.b.env, path, ENV_FILE_READ, &file), 0);
	assert_int_equal(env_file_pread(w.b.env, file, image, VOLUME_BYTES, 0), 0);
	assert_memory_equal(image, other, VOLUME_BYTES);
	env_file_close(w.b.env, file);
	free(image);
	free(other);
	world_close(&w);
}

static void without_space_nothing_is_kept_and_nothing_left(void **unused)
{
	struct sim_disk_options disk;
	struct kept_end end = {};
	struct world w;
	uint8_t *other;

	split_apart(&w, &other);
	disconnect(&w.b);
	sim_disk_get(w.b.env, &disk);
	disk.capacity_bytes = 1;
	sim_disk_set(w.b.env, &disk);
	kept_write(w.b.volume, "b", "given up for a", false, kept, &end);
	WAIT(&w, end.done);
	assert_int_equal(end.result.error, -ENOSPC);
	assert_non_null(strstr(end.result.why, "--no-keep"));
	assert_string_equal(end.result.index, "");
	disk.capacity_bytes = 0;
	sim_disk_set(w.b.env, &disk);
	free(other);
	world_close(&w);
}

/* ---- full circles ---------------------------------------------------------------------------- */

#define CIRCLES      50
#define CIRCLE_IOS   48u
#define CIRCLE_BYTES 4096u
#define CIRCLE_SLOTS (VOLUME_BYTES / CIRCLE_BYTES)

struct circles {
	struct world w;
	struct node *primary;
	struct io ios[CIRCLE_IOS];
	uint64_t offsets[CIRCLE_IOS];
	uint8_t values[CIRCLE_IOS];
	unsigned count, kills, cuts, switches, unacknowledged, stepped_down;
	uint64_t full_syncs;
};

static bool settled(struct circles *c)
{
	struct volume_state a = state(&c->w.a), b = state(&c->w.b);

	return in_sync(&c->w) && status(c->primary).lag_bytes == 0 &&
	       id128_equal(&a.generations.current, &b.generations.current);
}

/* Writes under way, none over another; some are done when the primary dies, some not. */
static void write_until_killed(struct circles *c)
{
	struct block *block = volume_block(c->primary->volume);
	struct world *w = &c->w;

	c->count = 0;
	sim_crash_after_ios(w->sim, c->primary->env, 1 + sim_random(w->sim, 120), SIM_CRASH_KILL);
	for (unsigned i = 0; i < CIRCLE_IOS && !sim_node_dead(c->primary->env); i++) {
		struct io *io = &c->ios[i];
		memset(io, 0, sizeof(*io));
		c->offsets[i] = CIRCLE_BYTES *
				(CIRCLE_SLOTS / CIRCLE_IOS * i + rnd(w, CIRCLE_SLOTS / CIRCLE_IOS));
		c->values[i] = (uint8_t)(1 + rnd(w, 255));
		io->request = (struct block_request){.op = BLOCK_WRITE,
						     .flags = rnd(w, 4) ? 0 : BLOCK_FUA,
						     .offset_bytes = c->offsets[i],
						     .length_bytes = CIRCLE_BYTES,
						     .done = io_done};
		io->request.buf = buf_alloc(w->pool, CIRCLE_BYTES);
		assert_non_null(io->request.buf);
		memset(io->request.buf->data, c->values[i], CIRCLE_BYTES);
		block->ops->submit(block, &io->request);
		c->count++;
		for (unsigned steps = (unsigned)rnd(w, 30); steps && sim_step(w->sim); steps--)
			;
	}
	crash_primary(c->primary, SIM_CRASH_KILL);
	c->kills++;
}

/* What clients saw the end of is on the peer; what was under way is there whole or not at all. */
static void nothing_acknowledged_is_lost(struct circles *c, struct node *n)
{
	for (unsigned i = 0; i < c->count; i++) {
		struct io read = {.request = {.op = BLOCK_READ,
					      .offset_bytes = c->offsets[i],
					      .length_bytes = CIRCLE_BYTES,
					      .done = io_done}};
		uint8_t fresh[CIRCLE_BYTES];
		read.request.buf = buf_alloc(c->w.pool, CIRCLE_BYTES);
		memset(fresh, c->values[i], sizeof(fresh));
		volume_read(n->volume, &read.request);
		WAIT(&c->w, read.done);
		assert_int_equal(read.error, 0);
		bool is_new = memcmp(read.request.buf->data, fresh, sizeof(fresh)) == 0;
		if (!is_new && c->ios[i].done && !c->ios[i].error)
			fail_msg("seed %llu: an acknowledged write at %llu is lost",
				 (unsigned long long)seed, (unsigned long long)c->offsets[i]);
		if (!is_new)
			assert_memory_equal(read.request.buf->data, c->w.model + c->offsets[i],
					    CIRCLE_BYTES);
		else
			memset(c->w.model + c->offsets[i], c->values[i], CIRCLE_BYTES);
		c->unacknowledged += !c->ios[i].done;
		buf_put(read.request.buf);
	}
}

static void count_full_syncs(struct circles *c, struct node *n)
{
	if (n->replication)
		c->full_syncs += status(n).full_syncs;
}

static void fail_over(struct circles *c)
{
	struct node *old = c->primary, *fresh = old->peer;
	struct world *w = &c->w;

	count_full_syncs(c, old);
	write_until_killed(c);
	WAIT(w,
	     status(fresh).state < REPLICATION_IDLE && !replication_applying(fresh->replication));
	set_role(fresh, VOLUME_PRIMARY);
	c->primary = fresh;
	nothing_acknowledged_is_lost(c, fresh);
	write_some(fresh, (unsigned)rnd(w, 30));
	/* The old one comes back as what it was, and finds out; it may die again in the middle. */
	for (unsigned deaths = (unsigned)rnd(w, 3);; deaths--) {
		come_back(old, VOLUME_PRIMARY);
		if (!deaths)
			break;
		sim_crash_after_ios(w->sim, old->env, 1 + sim_random(w->sim, 60), SIM_CRASH_POWER);
		sim_run_until(w->sim, NULL, rnd(w, 800) * 1000000ull);
		crash(old, SIM_CRASH_POWER);
		c->kills++;
	}
}

static void cut_links(struct circles *c)
{
	for (unsigned cuts = (unsigned)rnd(&c->w, 3); cuts; cuts--) {
		sim_cut(c->w.sim, "a", "b", rnd(&c->w, 2));
		write_some(c->primary, (unsigned)rnd(&c->w, 10));
		c->cuts++;
	}
}

static void switch_over(struct circles *c)
{
	struct node *old = c->primary, *fresh = old->peer;

	flush(old);
	WAIT(&c->w, volume_dirty_bytes(old->volume, VOLUME_PEER) == 0);
	set_role(old, VOLUME_SECONDARY);
	let_pass(&c->w, (unsigned)rnd(&c->w, 300));
	set_role(fresh, VOLUME_PRIMARY);
	c->primary = fresh;
	c->switches++;
}

/* Fail over, work, fail back, under kills and lost links: the same content on both, nothing that was
 * acknowledged lost, and never more than what both changed crosses the wire. */
static void fifty_circles_without_a_full_sync(void **unused)
{
	struct circles c = {};
	struct world *w = &c.w;

	world_open(w);
	w->a.start_wait_ms = w->b.start_wait_ms = 2000;
	w->a.steps_down = w->b.steps_down = true;
	world_start(w);
	c.primary = &w->a;
	write_some(&w->a, 200);
	expect_same(w, &w->a, __LINE__);
	uint64_t first = status(&w->a).full_syncs + status(&w->b).full_syncs;
	for (unsigned circle = 0; circle < CIRCLES; circle++) {
		WAIT(w, settled(&c));
		if (rnd(w, 4))
			fail_over(&c);
		else
			switch_over(&c);
		cut_links(&c);
		write_some(c.primary, (unsigned)rnd(w, 20));
		expect_same(w, c.primary, __LINE__);
		c.stepped_down += status(c.primary->peer).stepped_down_ns != 0;
	}
	count_full_syncs(&c, &w->a);
	count_full_syncs(&c, &w->b);
	printf("%u kills, %u links cut, %u planned changes, %u writes without an answer, "
	       "%u stepped down\n",
	       c.kills, c.cuts, c.switches, c.unacknowledged, c.stepped_down);
	assert_true(first == 2 && c.full_syncs <= first);
	assert_true(c.kills > 20 && c.cuts > 20 && c.switches > 2 && c.stepped_down > 4);
	world_close(w);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(in_every_pair_of_roles_it_is_split_brain),
		cmocka_unit_test(what_is_given_up_costs_the_union),
		cmocka_unit_test(a_secondary_can_be_the_source),
		cmocka_unit_test(a_primary_gives_nothing_up),
		cmocka_unit_test(giving_up_outlives_crashes),
		cmocka_unit_test(a_promotion_takes_it_back),
		cmocka_unit_test(a_replaced_primary_steps_down_and_is_rolled_back),
		cmocka_unit_test(a_primary_alone_serves_after_its_wait),
		cmocka_unit_test(who_is_stopped_in_its_wait_did_nothing),
		cmocka_unit_test(what_is_the_last_copy_is_not_given_up),
		cmocka_unit_test(who_is_not_replaced_serves_at_once),
		cmocka_unit_test(who_is_in_use_does_not_step_down),
		cmocka_unit_test(both_sides_keep_the_report),
		cmocka_unit_test(who_can_connect_looks_again),
		cmocka_unit_test(a_policy_ends_it_without_an_operator),
		cmocka_unit_test(fifty_circles_without_a_full_sync),
		cmocka_unit_test(what_is_given_up_can_be_read_again),
		cmocka_unit_test(the_whole_is_kept_where_the_map_says_too_little),
		cmocka_unit_test(without_space_nothing_is_kept_and_nothing_left),
	};

	return pair_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
