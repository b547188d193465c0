// SPDX-License-Identifier: Apache-2.0
/* diff: the endpoint that says what changed between two snapshots, or since one; in parts of a bounded size. */
#include "daemon/control/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/control/render.h"
#include "daemon/snapshot/diff.h"

#define DIFF_EXTENTS  256u  /* of one question */
#define DIFF_LISTED   8192u /* of one answer */
#define DIFF_NAME_MAX 64u

struct diffing {
	struct control *control;
	struct control_request *request;
	struct node_volume *volume;
	struct snapshot_repo *repo;
	char to_text[DIFF_NAME_MAX]; /* "": what the volume holds now */
	struct id128 from, to;
	uint64_t at;
	struct snapshot_diff *diff;
	struct snapshot_diff_ask ask;
	struct snapshot_extent extents[DIFF_EXTENTS];
	json_t *listed;
	int error;
	char why[256];
};

static void diff_end(struct diffing *d)
{
	struct control *control = d->control;

	if (d->error)
		control_refuse(control, d->request, http_status_of(d->error), "volume %s: %s",
			       d->volume->config->name, d->why);
	json_decref(d->listed);
	free(d);
	control_operation_done(control);
}

static void diff_closed(void *context)
{
	diff_end(context);
}

static void diff_fail(struct diffing *d, int error, const char *why)
{
	d->error = error;
	snprintf(d->why, sizeof(d->why), "%s", why);
	if (d->diff)
		snapshot_diff_close(d->diff, diff_closed, d);
	else
		diff_end(d);
}

static void diff_answer(struct diffing *d)
{
	const struct snapshot_diff_ends *ends = snapshot_diff_ends(d->diff);
	const bool over = d->at == ends->size_bytes;

	control_answer(d->control, d->request, 200,
		       json_pack("{s:o, s:o, s:I, s:O, s:o}", "from", render_snapshot(&ends->from),
				 "to", d->to_text[0] ? render_snapshot(&ends->to) : json_null(),
				 "size_bytes", (json_int_t)ends->size_bytes, "extents", d->listed,
				 "next_offset",
				 over ? json_null() : json_integer((json_int_t)d->at)));
	snapshot_diff_close(d->diff, diff_closed, d);
}

static void diff_ask(struct diffing *d);

static void diff_asked(struct snapshot_diff_ask *ask, int error, const char *why)
{
	struct diffing *d = (struct diffing *)((char *)ask - offsetof(struct diffing, ask));

	/* A long one must not keep the daemon from stopping. (Written by this thread alone.) */
	if (!error && d->control->stopping) {
		error = -ESHUTDOWN;
		why = "the daemon is stopping";
	}
	if (error) {
		diff_fail(d, error, why);
		return;
	}
	for (unsigned i = 0; i < ask->count; i++) {
		const struct snapshot_extent *e = &ask->extents[i];

		d->at = e->offset_bytes + e->length_bytes;
		if (e->changed)
			json_array_append_new(
				d->listed,
				json_pack("{s:I, s:I, s:b}", "offset", (json_int_t)e->offset_bytes,
					  "length", (json_int_t)e->length_bytes, "zero", e->zero));
	}
	if (d->at == snapshot_diff_ends(d->diff)->size_bytes ||
	    json_array_size(d->listed) + DIFF_EXTENTS > DIFF_LISTED)
		diff_answer(d);
	else
		diff_ask(d);
}

static void diff_ask(struct diffing *d)
{
	d->ask = (struct snapshot_diff_ask){
		.offset_bytes = d->at,
		.length_bytes = snapshot_diff_ends(d->diff)->size_bytes - d->at,
		.extents = d->extents,
		.max = DIFF_EXTENTS,
		.done = diff_asked,
	};
	snapshot_diff_ask(d->diff, &d->ask);
}

static void diff_opened(void *context, struct snapshot_diff *diff, int error, const char *why)
{
	struct diffing *d = context;

	d->diff = diff;
	if (error) {
		diff_fail(d, error, why);
	} else if (d->at >= snapshot_diff_ends(diff)->size_bytes) {
		diff_fail(d, -EINVAL, "offset: not within the volume");
	} else {
		diff_ask(d);
	}
}

static void diff_found_to(void *context, const struct snapshot_info *found, int error,
			  const char *why)
{
	struct diffing *d = context;

	if (error)
		diff_fail(d, error, why);
	else
		snapshot_diff_open(d->repo, &d->from, &found->id, NULL, diff_opened, d);
}

static void diff_found_from(void *context, const struct snapshot_info *found, int error,
			    const char *why)
{
	struct diffing *d = context;
	struct volume_state state;

	if (error) {
		diff_fail(d, error, why);
		return;
	}
	d->from = found->id;
	if (d->to_text[0]) {
		snapshot_find(d->repo, d->to_text, diff_found_to, d);
		return;
	}
	volume_get_state(d->volume->volume, &state);
	if (!snapshot_diff_knows(d->volume->volume))
		diff_fail(
			d, -EPERM,
			state.role != VOLUME_PRIMARY
				? "is secondary on this node: ask the primary, or name two "
				  "snapshots"
				: "its map of changes is relative to no snapshot; take one first");
	else
		snapshot_diff_open(d->repo, &d->from, NULL, d->volume->volume, diff_opened, d);
}

enum control_outcome diff_post(struct control *control, struct control_request *request)
{
	struct node_volume *volume = api_find_open(control, request);
	const char *from = NULL, *to = NULL;
	json_int_t offset = 0;
	struct diffing *d;

	if (!volume || !BODY_UNPACK(control, request, "{s:s, s?s, s?I}", "from", &from, "to", &to,
				    "offset", &offset))
		return CONTROL_ANSWERED;
	if (api_store_awaited(control, request, volume))
		return CONTROL_WAIT;
	if (offset < 0 || (to && (!*to || strlen(to) >= DIFF_NAME_MAX))) {
		control_refuse(control, request, 400, "%s",
			       offset < 0 ? "offset: less than zero" : "to: no snapshot's name");
		return CONTROL_ANSWERED;
	}
	if (!volume->repo) {
		control_refuse(control, request, 409, "volume %s: %s", volume->config->name,
			       node_store_why(volume));
		return CONTROL_ANSWERED;
	}
	d = calloc(1, sizeof(*d));
	if (!d) {
		control_refuse(control, request, 500, "out of memory");
		return CONTROL_ANSWERED;
	}
	*d = (struct diffing){
		.control = control,
		.request = request,
		.volume = volume,
		.repo = volume->repo,
		.at = (uint64_t)offset,
		.listed = json_array(),
	};
	snprintf(d->to_text, sizeof(d->to_text), "%s", to ? to : "");
	control->operations++;
	snapshot_find(d->repo, from, diff_found_from, d);
	return CONTROL_PENDING;
}
