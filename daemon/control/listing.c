// SPDX-License-Identifier: Apache-2.0
/*
 * listing: one listing of a volume's snapshots, in the node's repository: the node stops after it
 * (control->operations).
 */
#include "daemon/control/internal.h"

#include <errno.h>
#include <stdlib.h>

#include "daemon/control/render.h"

struct listing {
	struct control *control;
	struct control_request *request; /* NULL: only to learn the newest */
	unsigned volume_index;
	struct snapshot_infos infos;
	json_t *snapshots, *damaged; /* with a request */
};

static void listing_each(void *context, const struct snapshot_info *info)
{
	struct listing *listing = context;

	if (listing->request)
		json_array_append_new(listing->snapshots, render_snapshot(info));
	snapshot_infos_add(&listing->infos, info);
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
	json_decref(listing->snapshots);
	json_decref(listing->damaged);
	free(listing->infos.list);
	free(listing);
}

static void listing_done(void *context, const struct snapshot_result *result)
{
	struct listing *listing = context;
	struct control *control = listing->control;
	const char *why = result->why[0] ? result->why : store_strerror(result->error);

	if (!result->error) {
		const struct snapshot_info none = {}, *newest;

		newest = snapshot_newest(listing->infos.list, listing->infos.count);
		newest = newest ? newest : &none;
		watch_saw_newest(control->watch, listing->volume_index, newest);
		node_saw_snapshot(node_volume(control->node, listing->volume_index),
				  newest->created_ns);
	}
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
	struct listing *listing;

	if (!volume->repo) {
		snprintf(why, why_size, "volume %s: %s", volume->config->name,
			 node_store_why(volume));
		return -EPERM;
	}
	listing = calloc(1, sizeof(*listing));
	if (!listing)
		goto no_memory;
	listing->control = control;
	listing->request = request;
	listing->volume_index = volume_index;
	listing->snapshots = json_array();
	listing->damaged = json_array();
	if (!listing->snapshots || !listing->damaged) {
		listing_free(listing);
		goto no_memory;
	}
	control->operations++;
	snapshot_list(volume->repo, listing_each, listing_damaged, listing_done, listing);
	return 0;
no_memory:
	snprintf(why, why_size, "out of memory");
	return -ENOMEM;
}
