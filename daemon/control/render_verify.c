// SPDX-License-Identifier: Apache-2.0
/*
 * The comparison with the peer as JSON.
 */
#include "daemon/control/render.h"

/* Since it was begun or gone on with, not since its start: it may have waited long in between. */
static json_t *render_walk(const struct verify_status *verify, uint64_t now_ns)
{
	const struct verify_record *record = &verify->record;
	double elapsed_s = verify->since_ns && now_ns > verify->since_ns
				   ? (double)(now_ns - verify->since_ns) / 1e9
				   : 0;
	uint64_t walked = record->position_bytes > verify->since_bytes
				  ? record->position_bytes - verify->since_bytes
				  : 0;
	double rate = elapsed_s > 0 ? (double)walked / elapsed_s : 0;
	uint64_t left = record->size_bytes - record->position_bytes;

	return json_pack("{s:o, s:o, s:f, s:f, s:o}", "done_bytes",
			 render_number(record->position_bytes), "total_bytes",
			 render_number(record->size_bytes), "elapsed_seconds", elapsed_s,
			 "rate_bytes", rate, "eta_seconds",
			 rate > 0 ? json_real((double)left / rate) : json_null());
}

static json_t *render_extents(const struct verify_record *record)
{
	json_t *extents = json_array();

	for (unsigned i = 0; i < record->listed; i++)
		json_array_append_new(extents,
				      json_pack("{s:o, s:o}", "offset_bytes",
						render_number(record->extent[i].offset_bytes),
						"length_bytes",
						render_number(record->extent[i].length_bytes)));
	return extents;
}

json_t *render_verify(const struct verify_status *verify, uint64_t now_ns)
{
	static const char *const states[VERIFY_STATES] = {
		[VERIFY_RUNNING] = "running",
		[VERIFY_DONE] = "done",
		[VERIFY_CANCELLED] = "cancelled",
	};
	static const char *const repairs[VERIFY_REPAIRS] = {
		[VERIFY_REPAIR_FROM_HERE] = "here",
		[VERIFY_REPAIR_FROM_PEER] = "peer",
	};
	const struct verify_record *record = &verify->record;
	bool running = record->state == VERIFY_RUNNING;
	json_t *json;

	if (record->state == VERIFY_NEVER)
		return json_null();
	json = json_object();
	json_object_set_new(json, "state", json_string(states[record->state]));
	json_object_set_new(json, "waiting", json_boolean(running && !verify->active));
	json_object_set_new(json, "repair_from",
			    repairs[record->repair] ? json_string(repairs[record->repair])
						    : json_null());
	json_object_set_new(json, "started", render_time(record->started_ns));
	json_object_set_new(json, "ended", render_time(record->ended_ns));
	json_object_set_new(json, "compared_bytes", render_number(record->position_bytes));
	json_object_set_new(json, "progress", running ? render_walk(verify, now_ns) : json_null());
	json_object_set_new(json, "rate_limit_bytes",
			    record->rate ? render_number(record->rate) : json_null());
	json_object_set_new(json, "differ_bytes", render_number(record->differ_bytes));
	json_object_set_new(json, "repaired_bytes", render_number(record->repaired_bytes));
	json_object_set_new(json, "extents_total", render_number(record->extents));
	json_object_set_new(json, "extents", render_extents(record));
	return json;
}
