// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/scenario.h"

#include <errno.h>
#include <string.h>

#include "tests/sim/check.h"

/* Which faults a seed knows: each seed a few of them, so that rare ones meet undisturbed. */
enum fault {
	CRASH_A = 1 << 0,
	CRASH_B = 1 << 1,
	CRASH_IO = 1 << 2, /* at a chosen file operation rather than between events */
	STOP = 1 << 3,
	CUT = 1 << 4,
	BLOCK = 1 << 5,
	SILENCE = 1 << 6, /* long times without anything */
	STORE_ERRORS = 1 << 7,
	SNAPSHOTS = 1 << 8,
	DISCONNECT = 1 << 9,
	LOSE_A = 1 << 10,
	LOSE_B = 1 << 11,
	PROTOCOL = 1 << 12,
	SLOW_LINK = 1 << 13,
	ZERO_UNSUPPORTED = 1 << 14,
	DISK_A = 1 << 15,
	DISK_B = 1 << 16,
	FAIL_OVER = 1 << 17,
	SWITCH = 1 << 18,
	ROLL_BACK = 1 << 19,
	FLIP = 1 << 20,   /* the medium spoils metadata while a node is down */
	VERIFY = 1 << 21, /* comparisons of both sides, any time */
	RESIZE = 1 << 22,
	FAULTS = 1 << 23,
};

static enum sim_crash any_crash(struct world *world)
{
	static const enum sim_crash modes[] = {
		SIM_CRASH_KILL,  SIM_CRASH_KILL,       SIM_CRASH_POWER,     SIM_CRASH_POWER,
		SIM_CRASH_POWER, SIM_CRASH_POWER_DROP, SIM_CRASH_POWER_KEEP};

	return modes[world_random(world, 7)];
}

/* Where nothing happens but timers, few steps are a long time: that is for run_time(). */
static void run_steps(struct world *world, uint64_t steps)
{
	uint64_t end = sim_now_ns(world->sim) + WORLD_SECOND / 20;

	while (steps-- > 0 && sim_now_ns(world->sim) < end && world_step(world))
		;
}

static void run_time(struct world *world, uint64_t ns)
{
	uint64_t end = sim_now_ns(world->sim) + ns;

	while (sim_now_ns(world->sim) < end && world_step(world))
		;
}

/* ---- faults ---------------------------------------------------------------------------------------- */

static void crash(struct world *world, unsigned faults, unsigned index)
{
	struct world_node *n = &world->nodes[index];

	if (n->node == NULL)
		return;
	if ((faults & CRASH_IO) && world_chance(world, 60))
		sim_crash_after_ios(world->sim, n->env, 1 + world_random(world, 60),
				    any_crash(world));
	else
		world_crash(world, index, any_crash(world));
}

/* One page of the superblock, never both copies of one; one page of the maps; the first record of the redo log: any
 * of them. */
static void flip(struct world *world, unsigned index, bool log)
{
	static const char *const files[] = {"super", "maps", "staging"};
	static const uint64_t limits[] = {6 * 4096, 0, 8192};
	struct env *env = world->nodes[index].env;

	for (unsigned i = 0; i < 3; i++) {
		char path[64];
		uint64_t size, offset;

		snprintf(path, sizeof(path), WORLD_STATE "/%s", files[i]);
		if (!(i == 2 && log) && !world_chance(world, 40))
			continue;
		if (!sim_file_size(env, path, &size) || size == 0)
			continue;
		if (i == 0 && !world_super_is_whole(env))
			continue;
		offset = world_random(world, limits[i] && limits[i] < size ? limits[i] : size);
		sim_file_corrupt(env, path, offset, (uint8_t)(1 + world_random(world, 255)));
		world->flipped = true;
		sim_note(world->sim, "node %u: %s is damaged at %llu", index, path,
			 (unsigned long long)offset);
	}
}

static void start(struct world *world, unsigned faults, unsigned index)
{
	struct world_node *n = &world->nodes[index];

	if (n->node != NULL)
		return;
	if ((faults & FLIP) && world_chance(world, 30))
		flip(world, index, false);
	/* Sometimes it dies again before it is up. */
	if ((faults & CRASH_IO) && (faults & (index == A ? CRASH_A : CRASH_B)) &&
	    world_chance(world, 20)) {
		if (sim_node_dead(n->env))
			n->env = sim_restart(world->sim, n->env);
		sim_crash_after_ios(world->sim, n->env, 1 + world_random(world, 40),
				    any_crash(world));
	}
	world_start(world, index);
}

/* It dies while it applies its redo log, which is spoilt as well. */
static void lose_log(struct world *world)
{
	unsigned index = 1 - world->primary;
	struct node_volume *v = world_volume(world, index);

	if (v == NULL || v->replication == NULL || !replication_applying(v->replication))
		return;
	world_crash(world, index, any_crash(world));
	if (sim_node_dead(world->nodes[index].env))
		flip(world, index, true);
}

static bool secondary_is_good(struct world *world)
{
	struct volume_state state;
	uint64_t size;

	if (world->nodes[1 - world->primary].node == NULL)
		return false;
	world_volume_state(world, 1 - world->primary, &state);
	/* It has asked for the other's content itself, and would give its own up. */
	if (sim_file_size(world->nodes[1 - world->primary].env, WORLD_STATE "/wanting", &size))
		return false;
	/* One that still takes itself for primary would rightly go on as such. */
	return state.role == VOLUME_SECONDARY && state.disk == VOLUME_DISK_UPTODATE &&
	       !id128_is_zero(&state.generations.current);
}

/* The primary's disk, or only the volume's file, is gone. */
static void lose_primary_disk(struct world *world)
{
	struct replication_status status;

	world_status(world, 1 - world->primary, &status);
	/* What is on its way may make the secondary give its content up for a round in place. */
	if (status.state == REPLICATION_HANDSHAKE || status.state == REPLICATION_CATCH_UP)
		return;
	if (!secondary_is_good(world) || world->nodes[world->primary].content_lost ||
	    world->nodes[world->primary].rolling_back ||
	    replication_applying(world_volume(world, 1 - world->primary)->replication))
		return;
	bool leans = world_leans(world, world->primary); /* its content is not on its disk */

	world_crash(world, world->primary, SIM_CRASH_POWER);
	if (!leans && world_chance(world, 50))
		sim_disk_lose(world->nodes[world->primary].env);
	else
		sim_file_remove(world->nodes[world->primary].env, WORLD_BACKING);
	world->nodes[world->primary].content_lost = !leans;
	world->must_wait = false;
	sim_note(world->sim, "the primary's disk is lost");
}

static void lose_secondary_disk(struct world *world)
{
	if (world->nodes[world->primary].content_lost ||
	    world->nodes[world->primary].rolling_back || world->nodes[world->primary].disk_errors ||
	    world_leans(world, world->primary))
		return;
	if (world_at_peer(world->nodes[world->primary].env)) /* it was the only one left */
		return;
	world_crash(world, 1 - world->primary, SIM_CRASH_POWER);
	if (!sim_node_dead(world->nodes[1 - world->primary].env))
		return;
	sim_disk_lose(world->nodes[1 - world->primary].env);
	model_peer_lost(world->model);
	for (unsigned i = 0; i < WORLD_CLIENTS_MAX; i++) /* acknowledgements on their way */
		world->clients[i].streaming = false;
	sim_note(world->sim, "the secondary's disk is lost");
}

static void toggle_connection(struct world *world)
{
	unsigned index = world_chance(world, 80) ? world->primary : 1 - world->primary;
	struct world_node *n = &world->nodes[index];
	char why[256] = "";

	if (n->node == NULL || n->restoring || n->content_lost || n->rolling_back)
		return;
	if (index == world->primary) /* a word of the operator's, too */
		world->must_wait = false;
	if (n->disconnected)
		replication_connect(world_volume(world, index)->replication, why, sizeof(why));
	else
		replication_disconnect(world_volume(world, index)->replication, why, sizeof(why));
	n->disconnected = !n->disconnected;
	sim_note(world->sim, "node %u: %s %s", index, n->disconnected ? "disconnect" : "connect",
		 why);
}

static void change_protocol(struct world *world)
{
	struct node_volume *v = world_volume(world, world->primary);

	if (v != NULL)
		replication_set_protocol(v->replication,
					 (enum replication_protocol)world_random(world, 3));
}

static void store_trouble(struct world *world)
{
	struct store_sim_options options;

	store_sim_get_options(world->sim, WORLD_STORE, &options);
	options.error_ppm = world_chance(world, 50) ? 0 : (uint32_t)world_random(world, 200000);
	options.effect_ppm = (uint32_t)world_random(world, 1000000);
	options.error = 0;
	store_sim_set_options(world->sim, WORLD_STORE, &options);
	if (world_chance(world, 50))
		store_sim_fail_at(world->sim, WORLD_STORE, STORE_SIM_ALL,
				  1 + world_random(world, 30), -EIO, world_chance(world, 50));
}

static void net_trouble(struct world *world, unsigned faults)
{
	if ((faults & CUT) && world_chance(world, 60))
		sim_cut(world->sim, "a", "b", world_chance(world, 40));
	if ((faults & BLOCK) && world_chance(world, 60)) {
		bool on = world_chance(world, 40);

		if (world_chance(world, 70))
			sim_block(world->sim, "a", "b", on);
		if (world_chance(world, 70))
			sim_block(world->sim, "b", "a", on);
	}
}

static void disk_trouble(struct world *world, unsigned index)
{
	static const char *const paths[] = {NULL, "volume.img", "staging", "/var/offsite"};
	bool on = world_chance(world, 50);

	/* A failed write leaves a sector old or new: not told apart where sectors are written in
	 * parts. */
	if (index == world->primary && world->options.partial_sectors)
		return;
	world_disk_errors(world, index, on ? (uint32_t)world_random(world, 20000) : 0,
			  paths[world_random(world, 4)]);
}

/* The primary's disk goes at once, while the peer follows: it is to take over. */
static void fail_in_stream(struct world *world)
{
	struct replication_status status;

	world_status(world, world->primary, &status);
	if (status.state == REPLICATION_STREAMING && status.source &&
	    !world->options.partial_sectors && !world_leans(world, world->primary))
		world_disk_errors(world, world->primary, 1000000, "volume.img");
}

/* The new disk is filled from the peer while the clients go on: to its end, if nothing comes between. */
static void fill_under_writes(struct world *world, unsigned faults)
{
	unsigned index = world->primary;
	unsigned count = world_chance(world, 50) ? 400 : (unsigned)world_random(world, 100);

	for (unsigned i = 0; i < count && index == world->primary && world_leans(world, index);
	     i++) {
		world_submit(world);
		run_steps(world, world_random(world, 8));
	}
	if (index == world->primary && world_leans(world, index) && world_chance(world, 50))
		crash(world, faults, index);
}

/* The operator sees a failed disk, has the cause put right and starts the node again. */
static void look_after_disks(struct world *world, unsigned faults)
{
	for (unsigned i = 0; i < NODES; i++) {
		struct world_node *n = &world->nodes[i];
		struct volume_state state;

		if (world_leans(world, i) && world_chance(world, 30)) {
			world_replace_disk(world, i);
			if (i == world->primary &&
			    (world->options.theme == THEME_DISK || world_chance(world, 50)))
				fill_under_writes(world, faults);
		}
		if (n->node == NULL || !n->disk_errors)
			continue;
		world_volume_state(world, i, &state);
		if (!n->disk_failed && state.disk != VOLUME_DISK_FAILED)
			continue;
		world_crash(world, i, SIM_CRASH_KILL);
		world_disk_errors(world, i, 0, NULL);
	}
}

/* One side was made bigger alone, and the smaller one does not follow by itself. */
static bool sizes_differ(struct world *world, unsigned index, uint64_t *size_bytes)
{
	struct node_volume *v = world_volume(world, index);

	*size_bytes = world_disk_size(world->nodes[1 - index].env);
	return v != NULL && v->volume != NULL && volume_size_bytes(v->volume) < *size_bytes;
}

static bool refused(struct world *world, unsigned index)
{
	struct replication_status status;

	world_status(world, index, &status);
	return status.state == REPLICATION_STANDALONE && status.refusal[0] != '\0';
}

static bool has_failed(struct world *world, unsigned index)
{
	struct volume_state state;

	world_volume_state(world, index, &state);
	return state.disk == VOLUME_DISK_FAILED && !world->nodes[index].disk_errors;
}

/* The operator makes the smaller side bigger, as the refusal says. */
static bool make_equal(struct world *world)
{
	uint64_t size;

	for (unsigned i = 0; i < NODES; i++)
		if (sizes_differ(world, i, &size) && !has_failed(world, i) &&
		    world_resize_alone(world, i, size))
			return true;
	return false;
}

/* The operator decides whose content counts: the primary's, unless its disk was lost. */
static void look_after_content(struct world *world)
{
	unsigned other = 1 - world->primary;
	char why[256] = "";

	if (world->nodes[world->primary].content_lost) {
		if (!refused(world, world->primary) || !make_equal(world))
			world_restore_from_peer(world, world->primary);
		return;
	}
	if (world->nodes[world->primary].rolling_back)
		world_roll_back(world);
	if (world->nodes[other].node == NULL || world->nodes[world->primary].node == NULL ||
	    world->nodes[other].disconnected || world->nodes[world->primary].disconnected ||
	    !(refused(world, other) || refused(world, world->primary) || has_failed(world, other)))
		return;
	if (make_equal(world))
		return;
	if (!world_chance(world, 70) || !world_resolve(world, other))
		world_restore_from_peer(world, other);
	replication_connect(world_volume(world, world->primary)->replication, why, sizeof(why));
}

/* ---- verify ------------------------------------------------------------------------------------------ */

static void begin_verify(struct world *world)
{
	static const char *const nodes[] = {NULL, "a", "b"};
	struct node_volume *v = world_volume(world, world->primary);
	char why[256];

	if (v == NULL || v->replication == NULL)
		return;
	if (world_chance(world, 10))
		replication_verify_cancel(v->replication, why, sizeof(why));
	else
		replication_verify(v->replication, nodes[world_random(world, 3)],
				   world_chance(world, 50) ? 0
							   : 100000 + world_random(world, 2000000),
				   why, sizeof(why));
}

/* Both sides are the same at every point of the order, and so verify must say. */
static void check_verify(struct world *world)
{
	struct node_volume *v = world_volume(world, world->primary);
	struct verify_status status;

	/* What cannot be read counts as different. */
	if (v == NULL || v->replication == NULL || world->disk_failed)
		return;
	replication_get_verify(v->replication, &status);
	if (status.record.differ_bytes > 0)
		world_fail(world, "verify: %llu bytes differ, at %llu",
			   (unsigned long long)status.record.differ_bytes,
			   (unsigned long long)status.record.extent[0].offset_bytes);
}

static bool verify_ended(struct world *world)
{
	struct node_volume *v = world_volume(world, world->primary);
	struct verify_status status;

	replication_get_verify(v->replication, &status);
	return status.record.state != VERIFY_RUNNING;
}

static bool secondary_took_one(struct world *world)
{
	struct node_volume *v = world_volume(world, 1 - world->primary);
	struct snapshot_writer_status status;

	if (v == NULL || v->writer == NULL)
		return false;
	snapshot_writer_status(v->writer, &status);
	return !status.running;
}

/* Nothing is under way any more and both are equal: so it is exactly that. Returns which one. */
static struct id128 must_snapshot_secondary(struct world *world)
{
	struct node_volume *v = world_volume(world, 1 - world->primary);
	struct snapshot_writer_status status;
	unsigned before;

	run_time(world, 6 * WORLD_SECOND); /* the repository of a uuid that was taken over */
	if (!world_wait(world, secondary_took_one, 600 * WORLD_SECOND))
		world_fail(world,
			   "liveness: the secondary has no writer, or one that does not end");
	before = world->secondary_snapshots;
	world_snapshot_secondary(world);
	if (!world_wait(world, secondary_took_one, 600 * WORLD_SECOND))
		world_fail(world, "liveness: a snapshot on the secondary does not end");
	snapshot_writer_status(v->writer, &status);
	if (world->secondary_snapshots == before)
		world_fail(world, "liveness: no snapshot on the secondary: %s", status.last.why);
	check_snapshot(world, &status.last.info.id, model_tick(world->model),
		       model_tick(world->model));
	return status.last.info.id;
}

static void must_be_equal(struct world *world);

/* Nothing is marked for the peer: it has all of it durably. */
static bool all_durable(struct world *world)
{
	struct replication_status status;

	world_status(world, world->primary, &status);
	return status.state == REPLICATION_STREAMING && status.out_of_sync_bytes == 0;
}

static void must_stream(struct world *world);

static bool no_snapshot_runs(struct world *world)
{
	for (unsigned i = 0; i < 2; i++) {
		struct node_volume *v = world_volume(world, i);
		struct snapshot_writer_status status;

		if (v == NULL || v->writer == NULL)
			continue;
		snapshot_writer_status(v->writer, &status);
		if (status.running)
			return false;
	}
	return true;
}

/* A few bytes of one side change on the medium: verify finds and mends them, under writes. */
static void must_repair(struct world *world)
{
	struct node_volume *v = world_volume(world, world->primary);
	unsigned spoilt = world_chance(world, 70) ? 1 - world->primary : world->primary;
	unsigned blocks = 1 + (unsigned)world_random(world, 5);
	struct verify_status status;
	char why[256];

	if (!world_wait(world, verify_ended, 600 * WORLD_SECOND))
		world_fail(world, "liveness: a verification does not end");
	/* It would read what is spoilt here. */
	if (!world_wait(world, no_snapshot_runs, 600 * WORLD_SECOND))
		world_fail(world, "liveness: a snapshot does not end");
	must_stream(world); /* it may just have been left at max-lag */
	world->spoilt = true;
	for (unsigned i = 0; i < blocks; i++)
		sim_file_corrupt(world->nodes[spoilt].env, WORLD_BACKING,
				 world_random(world, world->size_bytes), 0x81);
	if (replication_verify(v->replication, spoilt == A ? "b" : "a", 0, why, sizeof(why)))
		world_fail(world, "verify: refused: %s", why);
	for (unsigned i = 0; i < 30 && spoilt != world->primary; i++) {
		world_submit(world);
		run_steps(world, world_random(world, 30));
	}
	if (!world_wait(world, verify_ended, 600 * WORLD_SECOND))
		world_fail(world, "liveness: a repair does not end");
	replication_get_verify(v->replication, &status);
	if (status.record.repaired_bytes != status.record.differ_bytes ||
	    status.record.differ_bytes > blocks * 4096)
		world_fail(world, "verify: %u blocks were spoilt, %llu bytes differ, %llu repaired",
			   blocks, (unsigned long long)status.record.differ_bytes,
			   (unsigned long long)status.record.repaired_bytes);
	must_be_equal(world);
	/* What was repaired there may be in the disk's cache still. */
	if (!world_wait(world, all_durable, 60 * WORLD_SECOND))
		world_fail(world, "liveness: no point of the stream comes");
	world->spoilt = false;
}

/* The primary goes on without its peer, and dies; its peer goes on without it. Then they meet. */
static void come_apart(struct world *world, unsigned faults)
{
	unsigned old = world->primary;

	if (world_leans(world, old) || world->nodes[old].content_lost ||
	    world->nodes[old].rolling_back)
		return;
	sim_cut(world->sim, "a", "b", false);
	sim_block(world->sim, "a", "b", true);
	sim_block(world->sim, "b", "a", true);
	for (unsigned phase = 0; phase < 2; phase++) {
		for (unsigned i = (unsigned)world_random(world, 40); i > 0; i--) {
			world_submit(world);
			run_steps(world, world_random(world, 60));
		}
		if (phase == 0) {
			world_crash(world, old, any_crash(world));
			world_fail_over(world);
		}
	}
	sim_block(world->sim, "a", "b", false);
	sim_block(world->sim, "b", "a", false);
	start(world, faults, old);
	run_time(world, world_random(world, 20 * WORLD_SECOND));
}

/* ---- the two phases ------------------------------------------------------------------------------------ */

static void one_action(struct world *world, unsigned faults)
{
	unsigned what = (unsigned)world_random(world, 1000);

	if (what < 560) {
		world_submit(world);
	} else if (what < 840) {
		run_steps(world, 1 + world_random(world, 60));
	} else if (what < 880) {
		run_time(world,
			 world_random(world, world_chance(world, 10) ? 2000000000 : 50000000));
	} else if (what < 895 && (faults & CRASH_A)) {
		crash(world, faults, A);
	} else if (what < 910 && (faults & CRASH_B)) {
		crash(world, faults, B);
	} else if (what < 940) {
		start(world, faults, (unsigned)world_random(world, NODES));
	} else if (what < 955 && (faults & (CUT | BLOCK))) {
		net_trouble(world, faults);
	} else if (what < 970 && (faults & SNAPSHOTS)) {
		world_chance(world, 40) ? world_snapshot_secondary(world) : world_snapshot(world);
	} else if (what < 980) {
		check_primary(world);
		check_secondary(world);
	} else if (what < 984 && (faults & DISCONNECT)) {
		toggle_connection(world);
	} else if (what < 987 && (faults & STORE_ERRORS)) {
		store_trouble(world);
	} else if (what < 989 && (faults & PROTOCOL)) {
		change_protocol(world);
	} else if (what < 991 && (faults & SILENCE)) {
		run_time(world, world_random(world, 40 * WORLD_SECOND));
	} else if (what < 994 && (faults & STOP)) {
		unsigned index = (unsigned)world_random(world, NODES);

		/* What is blocked or disconnected is no reason for requests to hang. */
		if (!world->nodes[index].content_lost)
			world_stop(world, index);
	} else if (what < 996 && (faults & LOSE_A)) {
		lose_primary_disk(world);
	} else if (what < 997 && (faults & LOSE_B)) {
		lose_secondary_disk(world);
	} else if (what < 999 && (faults & (DISK_A | DISK_B))) {
		disk_trouble(world, !(faults & DISK_A)   ? B
				    : !(faults & DISK_B) ? A
							 : (unsigned)world_random(world, NODES));
	}
	if (world_chance(world, 2))
		look_after_content(world);
	if ((faults & FAIL_OVER) && world_chance(world, 1))
		world_fail_over(world);
	if ((faults & FAIL_OVER) && world->seed % 5 < 2 && world_random(world, 120) == 0)
		come_apart(world, faults);
	if ((faults & ROLL_BACK) && (faults & SNAPSHOTS) && world_random(world, 500) == 0)
		world_roll_back(world);
	if ((faults & FLIP) && world_chance(world, 2))
		lose_log(world);
	if ((faults & VERIFY) && world_chance(world, 2))
		begin_verify(world);
	if (!(faults & (DISK_A | DISK_B)))
		check_verify(world);
	if ((faults & SWITCH) && world_chance(world, 1))
		world_switch(world);
	if ((faults & RESIZE) &&
	    world_random(world, world->options.theme == THEME_SIZE ? 20 : 200) == 0)
		world_resize(world);
	if (world->options.detach &&
	    world_random(world, world->options.theme == THEME_DISK ? 30 : 150) == 0)
		fail_in_stream(world);
	if (world_chance(world, 10))
		look_after_disks(world, faults);
	if (world_chance(world, 1))
		world_resume(world);
	if (world->seed % 4 == 3 && world_chance(world, 1))
		world_clock_jump(world);
}

static void prepare(struct world *world, unsigned faults)
{
	struct sim_net_options net;
	struct sim_disk_options disk;

	for (unsigned i = 0; i < NODES; i++) {
		sim_disk_get(world->nodes[i].env, &disk);
		disk.zero_unsupported = (faults & ZERO_UNSUPPORTED) && world_chance(world, 70);
		disk.reflinks = world_chance(world, 30);
		sim_disk_set(world->nodes[i].env, &disk);
	}
	sim_net_get(world->sim, &net);
	if (faults & SLOW_LINK)
		net.bytes_per_second = 100000 + world_random(world, 2000000);
	sim_net_set(world->sim, &net);
}

static void with_faults(struct world *world)
{
	unsigned faults = (unsigned)world_random(world, FAULTS);
	unsigned actions = 100 + (unsigned)world_random(world, 900);

	if (world->options.suspend) /* whether a write had to wait would not be known */
		faults &= ~(unsigned)PROTOCOL;
	if (world_chance(world, 60)) /* losing disks is for a few seeds only */
		faults &= ~(unsigned)(LOSE_A | LOSE_B);
	if (world_chance(world, 70))
		faults &= ~(unsigned)(DISK_A | DISK_B);
	if (world_chance(world, 50))
		faults &= ~(unsigned)FLIP;
	if (world->options.theme == THEME_DISK)
		faults &= ~(unsigned)(BLOCK | DISK_A | DISK_B | LOSE_A | LOSE_B | FLIP | ROLL_BACK |
				      DISCONNECT | FAIL_OVER);
	if (world->options.theme == THEME_SIZE)
		faults |= RESIZE;
	sim_note(world->sim, "faults %04x, %u actions", faults, actions);
	prepare(world, faults);
	world_start(world, A);
	if (world->options.theme != THEME_NONE || world_chance(world, 80))
		world_start(world, B);
	if (world->options.theme != THEME_NONE || world_chance(world, 60)) /* many begin in sync */
		run_time(world, 5 * WORLD_SECOND);
	while (actions-- > 0)
		one_action(world, faults);
}

static void mend(struct world *world)
{
	struct store_sim_options options;
	struct sim_net_options net;
	char why[256];

	sim_note(world->sim, "no faults from here on");
	sim_block(world->sim, "a", "b", false);
	sim_block(world->sim, "b", "a", false);
	sim_net_get(world->sim, &net);
	net.bytes_per_second = 100 * 1000 * 1000;
	sim_net_set(world->sim, &net);
	store_sim_get_options(world->sim, WORLD_STORE, &options);
	options.error_ppm = 0;
	store_sim_set_options(world->sim, WORLD_STORE, &options);
	store_sim_fail_at(world->sim, WORLD_STORE, 0, 0, 0, false);
	for (unsigned i = 0; i < NODES; i++) {
		if (world->nodes[i].disk_errors) {
			world_crash(world, i, SIM_CRASH_KILL);
			world_disk_errors(world, i, 0, NULL);
		}
		if (!sim_node_dead(world->nodes[i].env))
			sim_crash_after_ios(world->sim, world->nodes[i].env, 0, SIM_CRASH_KILL);
		world_start(world, i);
	}
	for (unsigned i = 0; i < NODES; i++) {
		if (world->nodes[i].disconnected)
			replication_connect(world_volume(world, i)->replication, why, sizeof(why));
		world->nodes[i].disconnected = false;
	}
}

static bool content_is_back(struct world *world)
{
	look_after_content(world);
	return !world->nodes[world->primary].content_lost &&
	       !world->nodes[world->primary].rolling_back;
}

static bool streaming(struct world *world)
{
	struct replication_status a, b;
	struct volume_state state;

	look_after_content(world);
	world_replace_disk(world, world->primary);
	world_status(world, world->primary, &a);
	world_status(world, 1 - world->primary, &b);
	world_volume_state(world, 1 - world->primary, &state);
	return a.state == REPLICATION_STREAMING && a.source && b.state == REPLICATION_STREAMING &&
	       !b.source && state.disk == VOLUME_DISK_UPTODATE &&
	       !world_leans(world, world->primary);
}

static bool disks_equal(struct world *world)
{
	uint64_t offset;

	/* They may only have looked as if they streamed, and refuse each other when they meet again. */
	look_after_content(world);
	return !check_disks_differ(world, &offset);
}

static bool snapshot_ended(struct world *world)
{
	return !world->snapshot_running;
}

static void must_stream(struct world *world)
{
	struct replication_status a, b;
	struct volume_state va, vb;

	if (world_wait(world, streaming, 300 * WORLD_SECOND))
		return;
	world_status(world, world->primary, &a);
	world_status(world, 1 - world->primary, &b);
	world_volume_state(world, world->primary, &va);
	world_volume_state(world, 1 - world->primary, &vb);
	world_fail(world,
		   "liveness: not streaming after 300 s without faults: the primary%s is %s %s %s "
		   "(%s), "
		   "the other %s %s %s (%s)",
		   a.source ? "" : " (no source)", replication_state_name(a.state),
		   volume_role_name(va.role), volume_disk_state_name(va.disk), a.refusal,
		   replication_state_name(b.state), volume_role_name(vb.role),
		   volume_disk_state_name(vb.disk), b.refusal);
}

static bool resize_ended(struct world *world)
{
	return !world->resizing;
}

/* In sync and without faults, the operator's word is done. */
static void must_resize(struct world *world)
{
	uint64_t before = world->size_bytes;

	for (unsigned i = 0; i < 20 && world->size_bytes == before; i++) {
		if (!world_wait(world, snapshot_ended, 600 * WORLD_SECOND))
			world_fail(world, "liveness: a snapshot does not end");
		must_stream(world);
		world_resize(world);
		if (!world_wait(world, resize_ended, 60 * WORLD_SECOND))
			world_fail(world, "liveness: a resize does not end");
		if (world->size_bytes == before) /* a snapshot of the other node */
			run_time(world, 5 * WORLD_SECOND);
	}
	if (world->size_bytes == before && before < 2 * world->options.size_bytes)
		world_fail(world, "liveness: in sync, and the volume cannot be made bigger");
}

static void must_snapshot(struct world *world)
{
	if (!world_wait(world, snapshot_ended, 600 * WORLD_SECOND))
		world_fail(world, "liveness: a snapshot does not end");
	world_snapshot(world);
	if (!world_wait(world, snapshot_ended, 600 * WORLD_SECOND))
		world_fail(world, "liveness: the last snapshot does not end");
	if (world->snapshot_error != 0)
		world_fail(world, "liveness: the last snapshot failed: %d", world->snapshot_error);
}

static void must_be_equal(struct world *world)
{
	if (!world_wait(world, world_idle, 300 * WORLD_SECOND))
		world_fail(world, "liveness: requests under way for 300 s");
	if (!world_wait(world, disks_equal, 60 * WORLD_SECOND))
		check_equal(world);
}

static void without_faults(struct world *world)
{
	struct id128 last;

	mend(world);
	if (!world_wait(world, content_is_back, 600 * WORLD_SECOND))
		world_fail(world, "liveness: the restore from the peer does not end");
	must_stream(world);
	if (world->options.theme == THEME_SIZE)
		must_resize(world);
	for (unsigned i = 0; i < 40; i++) {
		world_submit(world);
		run_steps(world, world_random(world, 40));
	}
	must_stream(world);
	must_be_equal(world);
	if (world_chance(world, 50))
		must_repair(world);
	if (!world->options.no_store) {
		must_snapshot(world);
		last = must_snapshot_secondary(world);
		check_all_snapshots(world, &last);
	}
	check_secondary(world);
	/* A clean restart of both forgets nothing and finds nothing to do. */
	world_stop(world, A);
	world_stop(world, B);
	world_start(world, B);
	world_start(world, A);
	must_stream(world);
	must_be_equal(world);
}

void scenario_run(struct world *world)
{
	with_faults(world);
	without_faults(world);
}
