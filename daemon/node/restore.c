// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/restore.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/node/job.h"
#include "daemon/node/peering.h"
#include "daemon/node/refusal.h"
#include "daemon/node/roles.h"

/* ---- from a snapshot ------------------------------------------------------------------------------- */

/* A secondary is restored on its own only if it has nothing to lose and no primary feeds it: the peer is
 * gone in the middle of a sync. It cannot be promoted as it is, so it becomes primary here; its disk stays
 * inconsistent, and so unserved, until the snapshot is there. */
static int become_primary(struct node_volume *v, struct volume_state *state, char *why,
			  size_t why_size)
{
	struct replication_status peer;
	int error;

	peering_get_status(v, &peer);
	if ((state->disk != VOLUME_DISK_INCONSISTENT && state->disk != VOLUME_DISK_FAILED) ||
	    (peering_is_connected(&peer) && peer.peer_role == VOLUME_PRIMARY))
		return node_fail(
			-EPERM, why, why_size,
			"volume %s: is secondary on this node; promote it first, or restore "
			"on the primary",
			v->config->name);
	state->role = VOLUME_PRIMARY;
	error = roles_store(v, state, why, why_size);
	if (!error && v->replication)
		replication_role_changed(v->replication);
	return error;
}

int restore_prepare(struct node_volume *v, char *why, size_t why_size)
{
	struct volume_state state;
	int error = 0;

	if (!v->repo)
		return node_fail(-ENODEV, why, why_size, "volume %s: %s", v->config->name,
				 node_store_why(v));
	volume_get_state(v->volume, &state);
	if (volume_leans(v->volume))
		return node_fail(-EPERM, why, why_size,
				 "volume %s: its content is at the peer; give it a disk first "
				 "(offsite replace-disk)",
				 v->config->name);
	if (state.role != VOLUME_PRIMARY)
		error = become_primary(v, &state, why, why_size);
	if (!error && state.disk == VOLUME_DISK_FAILED)
		error = volume_replace_backing(v->volume, why, why_size);
	/* The peer keeps what it has until the new content is whole, and then catches up. */
	if (!error && v->replication)
		error = replication_disconnect(v->replication, why, why_size);
	return error;
}

static int open_target(struct node_volume *v, struct snapshot_target **target, char *why,
		       size_t why_size)
{
	int error = restore_prepare(v, why, why_size);

	if (!error)
		error = volume_hydrate_give_up(v->volume);
	if (error && !why[0])
		node_fail(error, why, why_size, "volume %s: %s", v->config->name, strerror(-error));
	return error ? error : snapshot_target_volume(v->volume, target, why, why_size);
}

/* One of a snapshot, under way. */
struct restore {
	struct node_volume *volume;
	void (*progress)(void *context, const struct snapshot_progress *progress);
	void *context;
};

static void restore_progress(void *context, const struct snapshot_progress *progress)
{
	struct restore *r = context;

	if (r->progress)
		r->progress(r->context, progress);
}

static void restored(void *context, const struct snapshot_result *result)
{
	struct restore *r = context;
	struct node_volume *v = r->volume;
	char why[256];

	free(r);
	/* Even after a failure: the link then tells the peer that this disk is inconsistent. */
	if (v->replication && replication_connect(v->replication, why, sizeof(why)))
		env_log(node_env(v->node), ENV_LOG_WARNING, "volume %s: %s", v->config->name, why);
	else if (v->replication)
		/* Connected meanwhile it was left alone; and an older wish for the peer's content is void. */
		replication_role_changed(v->replication);
	node_job_finish(v, result->error, result->why);
}

void node_restore_snapshot(struct node_volume *v, const struct id128 *id,
			   void (*progress)(void *context, const struct snapshot_progress *p),
			   node_done_fn done, void *context)
{
	struct snapshot_target *target = NULL;
	struct restore *r = NULL;
	char why[256] = "";
	int error = node_job_begin(v, "restore", done, context, why, sizeof(why));

	if (error) {
		done(context, error, why);
		return;
	}
	r = malloc(sizeof(*r));
	error = r ? open_target(v, &target, why, sizeof(why))
		  : node_fail(-ENOMEM, why, sizeof(why), "out of memory");
	if (error) {
		free(r);
		node_job_finish(v, error, why);
		return;
	}
	*r = (struct restore){v, progress, context};
	snapshot_restore(v->repo, id, target, restore_progress, restored, r);
}

/* ---- from the peer --------------------------------------------------------------------------------- */

/* The configured role comes back, unless the peer is at work as primary. */
static void synced_from_peer(void *context, int error, const char *why)
{
	struct node_volume *v = context;
	struct replication_status peer;
	char problem[256];

	v->busy = NULL; /* else it is not usable */
	if (!error && v->config->primary) {
		peering_get_status(v, &peer);
		if (peer.peer_role != VOLUME_PRIMARY &&
		    node_promote(v, false, problem, sizeof(problem)))
			env_log(node_env(v->node), ENV_LOG_WARNING, "volume %s: %s",
				v->config->name, problem);
	}
	node_job_finish(v, error, why);
}

/* As long as the peer's content is not here it must not count as primary. */
static int become_target(struct node_volume *v, char *why, size_t why_size)
{
	struct volume_state state;

	if (!v->replication)
		return node_fail(-ENODEV, why, why_size, "volume %s: no peer is configured",
				 v->config->name);
	volume_get_state(v->volume, &state);
	if (state.role != VOLUME_PRIMARY)
		return 0;
	state.role = VOLUME_SECONDARY;
	return roles_store(v, &state, why, why_size);
}

void node_restore_from_peer(struct node_volume *v, node_done_fn done, void *context)
{
	char why[512] = "";
	int error = node_job_begin(v, "restore from the peer", done, context, why, sizeof(why));

	if (error) {
		done(context, error, why);
		return;
	}
	error = become_target(v, why, sizeof(why));
	if (error) {
		node_job_finish(v, error, why);
		return;
	}
	replication_restore_from_peer(v->replication, synced_from_peer, v);
}
