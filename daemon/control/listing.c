// SPDX-License-Identifier: Apache-2.0
/*
 * listing: one listing of a volume's snapshots, with a store handle of its own.
 */
#include "daemon/control/internal.h"

#include <errno.h>
#include <stdlib.h>

#include "daemon/control/render.h"

struct listing {
	struct control *control;
	struct control_request *request; /* NULL: only to learn the newest */
	unsigned volume_index;
	struct store *store;
	struct snapshot_repo *repo;
	struct snapshot_info newest;
	json_t *snapshots, *damaged; /* with a request */
};

static void listing_each(void *context, const struct snapshot_info *info)
{
	struct listing *listing = context;

	if (listing->request)
		json_array_append_new(listing->snapshots, render_snapshot(info));
	if (info->sequence > listing->newest.sequence)
		listing->newest = *info;
}

static void listing_damaged(void *context, const char *object, const char *why)
{
	struct listing *listing = context;

	json_array_append_new(
		listing->damaged,
		json_pack("{s:o, s:o}", "object", render_text(object), "why", render_text(why)));
}

static void listing_free(struct listing *listing)
{
	if (listing->repo)
		snapshot_repo_free(listing->repo);
	if (listing->store)
		store_close(listing->store);
	json_decref(listing->snapshots);
	json_decref(listing->damaged);
	free(listing);
}

static void listing_done(void *context, const struct snapshot_result *result)
{
	struct listing *listing = context;
	struct control *control = listing->control;
	const char *why = result->why[0] ? result->why : store_strerror(result->error);

	if (!result->error)
		watch_saw_newest(control->watch, listing->volume_index, &listing->newest);
	if (!listing->request && result->error)
		env_log(control->env, ENV_LOG_WARNING, "control: listing snapshots: %s", why);
	else if (result->error)
		control_refuse(control, listing->request, http_status_of(result->error), "%s", why);
	else if (listing->request)
		control_answer(control, listing->request, 200,
			       json_pack("{s:O, s:O}", "snapshots", listing->snapshots, "damaged",
					 listing->damaged));
	listing_free(listing);
	control_operation_done(control);
}

int listing_start(struct control *control, unsigned volume_index, struct control_request *request,
		  char *why, size_t why_size)
{
	const struct node_volume *volume = node_volume(control->node, volume_index);
	struct volume_state state;
	struct listing *listing;
	int error;

	if (!volume->config->store) {
		snprintf(why, why_size, "volume %s: no store is configured", volume->config->name);
		return -EPERM;
	}
	listing = calloc(1, sizeof(*listing));
	if (!listing)
		goto no_memory;
	listing->control = control;
	listing->request = request;
	listing->volume_index = volume_index;
	error = store_open(control->env, volume->config->store, &listing->store, why, why_size);
	if (error) {
		free(listing);
		return error;
	}
	volume_get_state(volume->volume, &state);
	listing->snapshots = json_array();
	listing->damaged = json_array();
	listing->repo = snapshot_repo_new(listing->store, &state.uuid);
	if (!listing->repo || !listing->snapshots || !listing->damaged) {
		listing_free(listing);
		goto no_memory;
	}
	control->operations++;
	snapshot_list(listing->repo, listing_each, listing_damaged, listing_done, listing);
	return 0;
no_memory:
	snprintf(why, why_size, "out of memory");
	return -ENOMEM;
}
