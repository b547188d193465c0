// SPDX-License-Identifier: Apache-2.0
/*
 * split: the endpoints about two histories: what each side changed, and the end of a split brain.
 */
#include "daemon/control/internal.h"

#include <errno.h>
#include <string.h>

#include "daemon/control/jobs.h"
#include "daemon/control/render.h"

static json_t *render_split(const struct split_record *split)
{
	struct replication_changes peer = {
		.bytes = split->peer_bytes,
		.count = split->peer_extents,
		.listed = split->listed,
	};

	memcpy(peer.extents, split->extents, sizeof(peer.extents));
	return json_pack("{s:o, s:o, s:o, s:b, s:s, s:o}", "since", render_time(split->since_ns),
			 "common", render_id(&split->common), "peer", render_text(split->node),
			 "near", split->flags & SPLIT_NEAR, "peer_role",
			 split->flags & SPLIT_PEER_PRIMARY ? "primary" : "secondary",
			 "peer_changes",
			 split->flags & SPLIT_PEER_KNOWN ? render_changes(&peer) : json_null());
}

enum control_outcome split_get_changes(struct control *control, struct control_request *request)
{
	struct node_volume *volume = api_find_replicated(control, request);
	const struct split_record *split;
	struct replication_changes mine;

	if (!volume)
		return CONTROL_ANSWERED;
	split = replication_get_split(volume->replication);
	replication_get_changes(volume->replication, &mine);
	control_answer(control, request, 200,
		       json_pack("{s:o, s:o, s:o, s:o}", "volume",
				 render_text(volume->config->name), "node",
				 render_text(node_config(control->node)->node.name), "changes",
				 render_changes(&mine), "split_brain",
				 split ? render_split(split) : json_null()));
	return CONTROL_ANSWERED;
}

static json_t *render_plan(const struct node_resolve_plan *plan, const char *keep)
{
	return json_pack("{s:o, s:s, s:b, s:b, s:o, s:I, s:s}", "keep", render_text(keep),
			 "discard", plan->loser, "here", plan->here, "full", plan->full,
			 "discarded", render_changes(&plan->discarded), "transfer_bytes",
			 (json_int_t)plan->transfer_bytes, "kept_as", plan->kept);
}

enum control_outcome split_post_resolve(struct control *control, struct control_request *request)
{
	struct node_volume *volume = api_find_replicated(control, request);
	struct job_order order = {.type = JOB_RESOLVE, .volume = volume};
	struct node_resolve_plan plan;
	int dry_run = 0, no_keep = 0, error;
	char why[512] = "";

	if (!volume || !BODY_UNPACK(control, request, "{s:s, s?b, s?b}", "keep", &order.keep,
				    "dry_run", &dry_run, "no_keep", &no_keep))
		return CONTROL_ANSWERED;
	order.no_keep = no_keep;
	error = node_resolve_plan(volume, order.keep, no_keep, &plan, why, sizeof(why));
	if (error) {
		control_refuse(control, request, http_status_of(error), "%s", why);
		return CONTROL_ANSWERED;
	}
	if (!dry_run)
		return api_start_job(control, request, &order);
	control_answer(control, request, 200, render_plan(&plan, order.keep));
	return CONTROL_ANSWERED;
}
