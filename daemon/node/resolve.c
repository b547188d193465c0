// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/resolve.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/node/job.h"
#include "daemon/node/refusal.h"
#include "daemon/node/roles.h"
#include "daemon/replication/kept.h"

struct resolve {
	struct node_volume *volume;
	char keep[64];
	bool was_primary;
	struct id128 snapshot;
};

int node_resolve_plan(struct node_volume *v, const char *keep, bool no_keep,
		      struct node_resolve_plan *plan, char *why, size_t why_size)
{
	const char *name = v->config->name, *self = node_config(v->node)->node.name;
	const struct split_record *split;

	*plan = (struct node_resolve_plan){};
	if (!v->volume || !v->replication)
		return node_fail(-EPERM, why, why_size, "volume %s: no peer is configured", name);
	split = replication_get_split(v->replication);
	if (!split)
		return node_fail(-EPERM, why, why_size,
				 "volume %s: there is no split brain to resolve", name);
	if (strcmp(keep, self) != 0 && strcmp(keep, split->node) != 0)
		return node_fail(-EINVAL, why, why_size,
				 "volume %s: keep: '%s' is neither this node, %s, nor its peer, %s",
				 name, keep, self, split->node);
	plan->here = strcmp(keep, self) != 0;
	plan->loser = plan->here ? self : split->node;
	plan->full = !(split->flags & SPLIT_NEAR);
	replication_get_changes(v->replication, &plan->discarded);
	plan->transfer_bytes = plan->full ? volume_size_bytes(v->volume)
					  : plan->discarded.bytes + split->peer_bytes;
	if (!plan->here) {
		plan->discarded = (struct replication_changes){
			.bytes = split->peer_bytes,
			.count = split->peer_extents,
			.listed = split->listed,
		};
		memcpy(plan->discarded.extents, split->extents, sizeof(split->extents));
	}
	plan->kept = no_keep ? "nothing" : v->config->store ? "snapshot" : "file";
	return 0;
}

static void end(struct resolve *resolve, int error, const char *why)
{
	struct node_volume *v = resolve->volume;

	v->resolve = NULL;
	free(resolve);
	node_job_finish(v, error, why);
}

/* Nothing was given up: it serves again what it served. */
static void back_out(struct resolve *resolve, int error, const char *why)
{
	struct node_volume *v = resolve->volume;
	struct volume_state state;
	char problem[256];
	int failed = 0;

	volume_get_state(v->volume, &state);
	if (resolve->was_primary && state.role == VOLUME_SECONDARY) {
		state.role = VOLUME_PRIMARY;
		failed = roles_store(v, &state, problem, sizeof(problem));
	}
	if (failed)
		env_log(node_env(v->node), ENV_LOG_ERROR, "%s", problem);
	else if (resolve->was_primary)
		replication_role_changed(v->replication);
	end(resolve, error, why);
}

static void caught_up(void *context, int error, const char *why)
{
	end(context, error, why);
}

static void give_up(struct resolve *resolve)
{
	struct node_volume *v = resolve->volume;

	env_log(node_env(v->node), ENV_LOG_WARNING,
		"volume %s: what this node changed is given up for the content of %s",
		v->config->name, resolve->keep);
	replication_discard_changes(v->replication, caught_up, resolve);
}

static void kept_in_file(void *context, const struct kept_result *result)
{
	struct resolve *resolve = context;
	struct node_volume *v = resolve->volume;

	if (result->error) {
		back_out(resolve, result->error, result->why);
		return;
	}
	snprintf(v->kept, sizeof(v->kept), "%s", result->index);
	if (result->index[0])
		env_log(node_env(v->node), ENV_LOG_WARNING,
			"volume %s: kept before it is given up: %llu bytes: %s", v->config->name,
			(unsigned long long)result->bytes, result->index);
	give_up(resolve);
}

static void not_in_store(struct resolve *resolve, const struct snapshot_result *result)
{
	char why[400];

	snprintf(why, sizeof(why),
		 "volume %s: nothing was given up: the snapshot that keeps it failed: %s",
		 resolve->volume->config->name, result->why);
	back_out(resolve, result->error, why);
}

static void pinned(void *context, const struct snapshot_result *result)
{
	struct resolve *resolve = context;
	struct node_volume *v = resolve->volume;
	char id[ID128_TEXT_BYTES];

	if (result->error) {
		not_in_store(resolve, result);
		return;
	}
	id128_format(&resolve->snapshot, id);
	snprintf(v->kept, sizeof(v->kept), "snapshot %s", id);
	env_log(node_env(v->node), ENV_LOG_WARNING,
		"volume %s: kept before it is given up: snapshot %s", v->config->name, id);
	give_up(resolve);
}

/* No retention is to take it away: what it holds is nowhere else. */
static void kept_in_store(void *context, const struct snapshot_result *result)
{
	struct resolve *resolve = context;

	if (result->error) {
		not_in_store(resolve, result);
		return;
	}
	resolve->snapshot = result->info.id;
	snapshot_pin(resolve->volume->repo, &resolve->snapshot, NULL, pinned, resolve);
}

static int may_resolve(struct node_volume *v, const struct node_resolve_plan *plan,
		       const char *keep, char *why, size_t why_size)
{
	struct volume_state state;
	int error = node_check_usable(v, why, why_size);

	if (error)
		return error;
	if (!plan->here)
		return node_fail(-EPERM, why, why_size,
				 "volume %s: it is %s that gives its changes up: run it there: "
				 "offsite resolve %s --keep %s",
				 v->config->name, plan->loser, v->config->name, keep);
	volume_get_state(v->volume, &state);
	if (state.disk != VOLUME_DISK_UPTODATE && state.disk != VOLUME_DISK_OUTDATED)
		return node_fail(-EPERM, why, why_size,
				 "volume %s: disk is %s: offsite restore %s --from-peer",
				 v->config->name, volume_disk_state_name(state.disk),
				 v->config->name);
	if (!strcmp(plan->kept, "snapshot") && !v->writer)
		return node_fail(-EPERM, why, why_size,
				 "volume %s: what would be given up cannot be kept: %s; --no-keep "
				 "gives it up all the same",
				 v->config->name, node_store_why(v));
	return node_demote(v, why, why_size);
}

void node_resolve(struct node_volume *v, const char *keep, bool no_keep, node_done_fn done,
		  void *context)
{
	struct node_resolve_plan plan;
	struct resolve *resolve;
	struct volume_state state = {};
	struct id128 common = {};
	char why[512] = "", reason[SNAPSHOT_NAME_MAX];
	int error = node_resolve_plan(v, keep, no_keep, &plan, why, sizeof(why));

	if (!error) { /* before the demotion */
		volume_get_state(v->volume, &state);
		common = replication_get_split(v->replication)->common;
		error = may_resolve(v, &plan, keep, why, sizeof(why));
	}
	resolve = error ? NULL : calloc(1, sizeof(*resolve));
	if (!error)
		error = resolve ? node_job_take(v, "resolve", done, context, why, sizeof(why))
				: node_fail(-ENOMEM, why, sizeof(why), "out of memory");
	if (error) {
		free(resolve);
		done(context, error, why);
		return;
	}
	*resolve = (struct resolve){.volume = v, .was_primary = state.role == VOLUME_PRIMARY};
	snprintf(resolve->keep, sizeof(resolve->keep), "%s", keep);
	v->resolve = resolve;
	v->kept[0] = 0;
	snprintf(reason, sizeof(reason), "given up for %.40s", keep);
	if (!strcmp(plan.kept, "snapshot"))
		snapshot_create_given_up(v->writer, keep, &common, kept_in_store, resolve);
	else if (!strcmp(plan.kept, "file"))
		kept_write(v->volume, node_config(v->node)->node.name, reason, plan.full,
			   kept_in_file, resolve);
	else
		give_up(resolve);
}

static void policy_done(void *context, int error, const char *why)
{
	struct node_volume *v = context;

	if (error)
		env_log(node_env(v->node), ENV_LOG_ERROR,
			"volume %s: the split brain stays, though after-sb would end it: %s",
			v->config->name, why);
}

void resolve_by_policy(void *volume)
{
	struct node_volume *v = volume;
	const struct split_record *split = replication_get_split(v->replication);

	if (!split || v->busy)
		return;
	env_log(node_env(v->node), ENV_LOG_WARNING,
		"volume %s: after-sb: this node gives up what it changed for the content of %s",
		v->config->name, split->node);
	node_resolve(v, split->node, false, policy_done, v);
}
