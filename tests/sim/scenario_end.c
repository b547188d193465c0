// SPDX-License-Identifier: Apache-2.0
/* The phase without faults: everything must come right within a bound. */
#include "tests/sim/scenario_internal.h"

#include <errno.h>

#include "tests/sim/check.h"

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

	scenario_run_time(world,
			  6 * WORLD_SECOND); /* the repository of a uuid that was taken over */
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
	bool alone = world->options.snapshot_every_ns == 0; /* else one of the primary may begin */
	unsigned spoilt = world_chance(world, 70) || !alone ? 1 - world->primary : world->primary;
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
		scenario_run_steps(world, world_random(world, 30));
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

static void mend(struct world *world)
{
	struct store_sim_options options;
	struct sim_net_options net;
	char why[256];

	sim_note(world->sim, "no faults from here on");
	sim_block(world->sim, "a", "b", false);
	sim_block(world->sim, "b", "a", false);
	sim_net_get(world->sim, &net);
	net.damage_ppm = 0;
	net.bytes_per_second = 100 * 1000 * 1000;
	if (world->options.far &&
	    net.window_bytes < 256 * 1024) /* else it would be a slow link, too */
		net.window_bytes = 256 * 1024;
	sim_net_set(world->sim, &net);
	store_sim_get_options(world->sim, WORLD_STORE, &options);
	options.error_ppm = 0;
	options.capacity_bytes = 0;
	options.stall_ppm = 0;
	store_sim_set_options(world->sim, WORLD_STORE, &options);
	store_sim_fail_at(world->sim, WORLD_STORE, 0, 0, 0, false);
	for (unsigned i = 0; i < NODES; i++) {
		world_disk_room(world, i);
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
	operator_look_after_content(world);
	return !world->nodes[world->primary].content_lost &&
	       !world->nodes[world->primary].rolling_back;
}

static bool streaming(struct world *world)
{
	struct replication_status a, b;
	struct volume_state state;

	operator_look_after_content(world);
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
	operator_look_after_content(world);
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
			scenario_run_time(world, 5 * WORLD_SECOND);
	}
	if (world->size_bytes == before && before < 2 * world->options.size_bytes)
		world_fail(world, "liveness: in sync, and the volume cannot be made bigger");
}

static void must_snapshot(struct world *world)
{
	/* Those of a schedule come between. */
	for (unsigned i = 0; i < 5; i++) {
		if (!world_wait(world, snapshot_ended, 600 * WORLD_SECOND) ||
		    !world_wait(world, no_snapshot_runs, 600 * WORLD_SECOND))
			world_fail(world, "liveness: a snapshot does not end");
		world_snapshot(world);
		if (!world_wait(world, snapshot_ended, 600 * WORLD_SECOND))
			world_fail(world, "liveness: the last snapshot does not end");
		if (world->snapshot_error != -EBUSY || world->options.snapshot_every_ns == 0)
			break;
	}
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

void scenario_without_faults(struct world *world)
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
		scenario_run_steps(world, world_random(world, 40));
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
