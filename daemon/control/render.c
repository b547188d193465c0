// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/render.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static json_t *seconds(uint64_t ns)
{
	return json_real((double)ns / 1e9);
}

static json_t *age(uint64_t since_ns, uint64_t now_ns)
{
	if (!since_ns)
		return json_null();
	return seconds(now_ns > since_ns ? now_ns - since_ns : 0);
}

json_t *render_progress(const struct snapshot_progress *progress, uint64_t now_ns)
{
	uint64_t done = progress->done_bytes, total = progress->total_bytes;
	double elapsed_s = now_ns > progress->started_ns && progress->started_ns
				   ? (double)(now_ns - progress->started_ns) / 1e9
				   : 0;
	double rate = elapsed_s > 0 ? (double)done / elapsed_s : 0;
	json_t *eta =
		rate > 0 && total >= done ? json_real((double)(total - done) / rate) : json_null();

	return json_pack("{s:o, s:o, s:f, s:f, s:o, s:o, s:o}", "done_bytes", render_number(done),
			 "total_bytes", render_number(total), "elapsed_seconds", elapsed_s,
			 "rate_bytes", rate, "eta_seconds", eta, "archived_objects",
			 render_number(progress->archived_objects), "archive_seconds",
			 seconds(progress->archive_ns));
}

const char *render_code(int error)
{
	switch (-error) {
	case 0:
		return "fine";
	case EPERM:
	case EBUSY:
	case EEXIST:
	case EALREADY:
	case EINPROGRESS:
	case EAGAIN:
	case ENODEV:
		return "refused";
	case ENOENT:
		return "missing";
	case EINVAL:
		return "invalid";
	case EUCLEAN:
	case EBADMSG:
		return "damaged";
	default:
		return "failed";
	}
}

static json_t *render_result(const struct job *job)
{
	const struct snapshot_result *result = &job->result;
	json_t *json = json_object();

	if (result->info.sequence)
		json_object_set_new(json, "snapshot", render_snapshot(&result->info));
	json_object_set_new(json, "checked_bytes", render_number(result->checked_bytes));
	json_object_set_new(json, "written_bytes", render_number(result->written_bytes));
	json_object_set_new(json, "skipped_bytes", render_number(result->skipped_bytes));
	json_object_set_new(json, "deleted_objects", render_number(result->deleted_objects));
	json_object_set_new(json, "freed_bytes", render_number(result->freed_bytes));
	json_object_set_new(json, "locked_objects", render_number(result->locked_objects));
	json_object_set_new(json, "archived_objects", render_number(result->archived_objects));
	json_object_set_new(json, "bad_objects", render_number(result->bad_objects));
	if (job->damaged)
		json_object_set(json, "damaged", job->damaged);
	if (job->type == JOB_RESOLVE)
		json_object_set_new(json, "kept",
				    job->kept[0] ? render_text(job->kept) : json_null());
	return json;
}

/* A running job's progress stands with whoever does the work. */
static json_t *render_job_progress(const struct job *job, uint64_t now_ns)
{
	struct snapshot_progress progress = job->progress;

	if (job->state == JOB_RUNNING && job->type == JOB_SNAPSHOT_CREATE && job->volume->writer) {
		struct snapshot_writer_status status;

		snapshot_writer_status(job->volume->writer, &status);
		progress = status.progress;
	}
	if (job->state == JOB_RUNNING &&
	    (job->type == JOB_RESTORE_FROM_PEER || job->type == JOB_RESOLVE ||
	     job->type == JOB_REPLACE_DISK) &&
	    job->volume->replication) {
		struct replication_status status;

		replication_get_status(job->volume->replication, &status);
		progress.done_bytes = status.catch_up_done_bytes;
		progress.total_bytes = status.catch_up_total_bytes;
		progress.started_ns = status.catch_up_started_ns;
	}
	if (!progress.started_ns)
		progress.started_ns = job->started_mono_ns;
	return render_progress(&progress, now_ns);
}

/* What is there now, of which all that is not in the source is overwritten. */
static void describe_target(const struct job *job, char *text, size_t size)
{
	const struct snapshot_plan *plan = &job->plan;
	struct volume_state state;
	char changed[64] = "";

	volume_get_state(job->volume->volume, &state);
	if (plan->differing_known)
		snprintf(changed, sizeof(changed), ", %llu bytes changed since this snapshot",
			 (unsigned long long)plan->differing_bytes);
	snprintf(text, size, "%s, disk %s%s", volume_role_name(state.role),
		 volume_disk_state_name(state.disk), changed);
}

/* What a restore will take, and what it will overwrite. */
static json_t *render_plan(const struct job *job)
{
	const struct snapshot_plan *plan = &job->plan;
	json_t *json = json_object();
	char text[160];

	describe_target(job, text, sizeof(text));
	json_object_set_new(json, "snapshot", render_id(&plan->info.id));
	json_object_set_new(json, "created", render_time(plan->info.created_ns));
	json_object_set_new(json, "fetch_bytes", render_number(plan->fetch_bytes));
	json_object_set_new(json, "at_most", json_boolean(plan->at_most));
	json_object_set_new(json, "write_bytes", render_number(plan->write_bytes));
	json_object_set_new(json, "requests", render_number(plan->requests));
	json_object_set_new(json, "estimate_seconds",
			    plan->estimate_ns || !plan->fetch_bytes
				    ? json_real((double)plan->estimate_ns / 1e9)
				    : json_null());
	json_object_set_new(json, "archived_objects", render_number(plan->archived_objects));
	json_object_set_new(json, "archive_seconds", json_real((double)plan->archive_ns / 1e9));
	json_object_set_new(json, "target", render_text(job->volume_name));
	json_object_set_new(json, "target_now", json_string(text));
	return json;
}

json_t *render_job(const struct job *job, uint64_t now_ns)
{
	json_t *json = json_object();

	json_object_set_new(json, "id", render_number(job->id));
	json_object_set_new(json, "type", json_string(job_type_name(job->type)));
	json_object_set_new(json, "volume", render_text(job->volume_name));
	json_object_set_new(json, "state", json_string(job_state_name(job->state)));
	json_object_set_new(json, "snapshot", render_id(&job->snapshot));
	json_object_set_new(json, "started", render_time(job->started_ns));
	json_object_set_new(json, "finished", render_time(job->finished_ns));
	json_object_set_new(json, "progress", render_job_progress(job, now_ns));
	if (job->state == JOB_FAILED) {
		json_object_set_new(json, "error", render_text(job->result.why));
		json_object_set_new(json, "code", json_string(render_code(job->result.error)));
	}
	if (job->state != JOB_RUNNING)
		json_object_set_new(json, "result", render_result(job));
	if (job->state == JOB_SUCCEEDED && job->dry_run)
		json_object_set_new(json, "plan", render_plan(job));
	return json;
}

/* ---- volumes ------------------------------------------------------------------------------- */

static json_t *render_generations(const struct volume_generations *generations)
{
	json_t *history = json_array();

	for (unsigned i = 0; i < VOLUME_HISTORY; i++)
		if (!id128_is_zero(&generations->history[i]))
			json_array_append_new(history, render_id(&generations->history[i]));
	return json_pack("{s:o, s:o, s:o}", "current", render_id(&generations->current), "base",
			 render_id(&generations->base), "history", history);
}

static json_t *render_stats(const struct volume_stats *stats)
{
	json_t *json = json_object();

	json_object_set_new(json, "reads", render_number(stats->reads));
	json_object_set_new(json, "read_bytes", render_number(stats->read_bytes));
	json_object_set_new(json, "writes", render_number(stats->writes));
	json_object_set_new(json, "written_bytes", render_number(stats->written_bytes));
	json_object_set_new(json, "flushes", render_number(stats->flushes));
	json_object_set_new(json, "trims", render_number(stats->trims));
	json_object_set_new(json, "io_errors", render_number(stats->io_errors));
	json_object_set_new(json, "intent_writes", render_number(stats->intent_writes));
	json_object_set_new(json, "intent_regions", render_number(stats->intent_regions));
	json_object_set_new(json, "preserved_bytes", render_number(stats->preserved_bytes));
	json_object_set_new(json, "preserve_used_bytes", render_number(stats->preserve_used_bytes));
	json_object_set_new(json, "preserve_max_bytes", render_number(stats->preserve_max_bytes));
	json_object_set_new(json, "missing_bytes", render_number(stats->missing_bytes));
	json_object_set_new(json, "hydrated_bytes", render_number(stats->hydrated_bytes));
	json_object_set_new(json, "remote_reads", render_number(stats->remote_reads));
	json_object_set_new(json, "in_flight", render_number(stats->in_flight));
	json_object_set_new(json, "in_flight_max", render_number(stats->in_flight_max));
	return json;
}

static const char *direction(const struct replication_status *status)
{
	if (status->state < REPLICATION_CATCH_UP)
		return NULL;
	return status->source ? "source" : "target";
}

static json_t *render_catch_up(const struct replication_status *status, uint64_t now_ns)
{
	struct snapshot_progress progress = {
		.done_bytes = status->catch_up_done_bytes,
		.total_bytes = status->catch_up_total_bytes,
		.started_ns = status->catch_up_started_ns,
	};

	return status->state == REPLICATION_CATCH_UP ? render_progress(&progress, now_ns)
						     : json_null();
}

/* Of a full sync, before its first round. */
static json_t *render_comparison(const struct replication_status *status)
{
	if (!status->compare_total_bytes)
		return json_null();
	return json_pack("{s:o, s:o, s:o, s:o, s:o}", "compared_bytes",
			 render_number(status->compared_bytes), "total_bytes",
			 render_number(status->compare_total_bytes), "differ_bytes",
			 render_number(status->compare_differ_bytes), "read_bytes",
			 render_number(status->compare_read_bytes), "skipped_bytes",
			 render_number(status->compare_skipped_bytes));
}

/* What the peer is while connected, and else what it was when it was last seen. */
static void render_peer(const struct replication_status *status, json_t *json)
{
	bool known = status->peer_known, seen = !known && status->seen_ns;

	json_object_set_new(json, "peer_role",
			    json_string(known ? volume_role_name(status->peer_role) : "unknown"));
	json_object_set_new(
		json, "peer_disk",
		json_string(known ? volume_disk_state_name(status->peer_disk) : "unknown"));
	json_object_set_new(json, "peer_suspended", json_boolean(known && status->peer_suspended));
	json_object_set_new(json, "peer_seen", seen ? render_time(status->seen_ns) : json_null());
	json_object_set_new(json, "peer_seen_role",
			    seen ? json_string(volume_role_name(status->seen_role)) : json_null());
	json_object_set_new(json, "peer_seen_disk",
			    seen ? json_string(volume_disk_state_name(status->seen_disk))
				 : json_null());
}

static json_t *render_split_brain(const struct replication_status *status)
{
	if (!status->split_brain)
		return json_null();
	return json_pack("{s:o, s:o, s:o, s:o}", "since", render_time(status->split_since_ns),
			 "bytes", render_number(status->out_of_sync_bytes), "peer",
			 render_text(status->split_peer), "peer_bytes",
			 render_number(status->split_peer_bytes));
}

static json_t *render_rolled_back(const struct replication_status *status)
{
	if (!status->rolled_back_ns)
		return json_null();
	return json_pack("{s:o, s:o, s:o}", "at", render_time(status->rolled_back_ns), "bytes",
			 render_number(status->rolled_back_bytes), "extents",
			 render_number(status->rolled_back_extents));
}

static json_t *render_unreadable(const struct replication_status *status)
{
	if (!status->unreadable_bytes)
		return json_null();
	return json_pack("{s:o, s:o}", "bytes", render_number(status->unreadable_bytes), "offset",
			 render_number(status->unreadable_offset));
}

json_t *render_changes(const struct replication_changes *changes)
{
	json_t *listed = json_array();

	for (unsigned i = 0; i < changes->listed; i++)
		json_array_append_new(
			listed, json_pack("{s:o, s:o}", "offset",
					  render_number(changes->extents[i].offset_bytes), "length",
					  render_number(changes->extents[i].length_bytes)));
	return json_pack("{s:o, s:o, s:o}", "bytes", render_number(changes->bytes), "extents",
			 render_number(changes->count), "listed", listed);
}

/* A rate now: null where it is not limited. */
static json_t *limit(uint64_t rate)
{
	return rate ? render_number(rate) : json_null();
}

static const char *rate_text(const struct rate_schedule *schedule)
{
	return schedule->text[0] ? schedule->text : "0";
}

static json_t *render_pace(const struct replication_status *status,
			   const struct config_volume *config)
{
	json_t *json = json_object();

	json_object_set_new(json, "max_lag_bytes", limit(config->max_lag_bytes));
	json_object_set_new(json, "max_lag_seconds",
			    config->max_lag_ns ? seconds(config->max_lag_ns) : json_null());
	json_object_set_new(
		json, "max_lag_action",
		json_string(config->max_lag_action == PACE_CATCH_UP ? "catch-up" : "slow"));
	json_object_set_new(json, "stream_rate", render_text(rate_text(&config->stream_rate)));
	json_object_set_new(json, "catch_up_rate", render_text(rate_text(&config->catch_up_rate)));
	json_object_set_new(json, "stream_limit", limit(status->stream_limit));
	json_object_set_new(json, "catch_up_limit", limit(status->catch_up_limit));
	json_object_set_new(json, "catch_up_reason",
			    status->catch_up_reason && *status->catch_up_reason
				    ? json_string(status->catch_up_reason)
				    : json_null());
	json_object_set_new(json, "latency_factor", json_real(config->latency_percent / 100.0));
	json_object_set_new(json, "catch_up_min_rate", render_number(config->catch_up_min_rate));
	json_object_set_new(json, "write_p99_seconds",
			    status->write_p99_ns ? seconds(status->write_p99_ns) : json_null());
	json_object_set_new(json, "write_p99_baseline_seconds",
			    status->write_baseline_ns ? seconds(status->write_baseline_ns)
						      : json_null());
	return json;
}

static json_t *render_replication(const struct replication_status *status,
				  const struct config_volume *config, uint64_t now_ns)
{
	const char protocol[] = {(char)('A' + status->protocol), 0};
	json_t *json = json_object();

	json_object_set_new(json, "state", json_string(replication_state_name(status->state)));
	json_object_set_new(json, "direction",
			    direction(status) ? json_string(direction(status)) : json_null());
	json_object_set_new(json, "protocol", json_string(protocol));
	json_object_set_new(json, "tls", json_boolean(status->tls));
	json_object_set_new(json, "peer", render_text(status->peer_name));
	json_object_set_new(json, "peer_address", render_text(status->peer_addr));
	render_peer(status, json);
	json_object_set_new(json, "refusal",
			    status->refusal[0] ? render_text(status->refusal) : json_null());
	json_object_set_new(json, "split_brain", render_split_brain(status));
	json_object_set_new(json, "wants", json_boolean(status->wants));
	json_object_set_new(json, "starting", json_boolean(status->starting));
	json_object_set_new(json, "stepped_down", render_time(status->stepped_down_ns));
	json_object_set_new(json, "rolled_back", render_rolled_back(status));
	json_object_set_new(json, "sent_lsn", render_number(status->sent_lsn));
	json_object_set_new(json, "acked_lsn", render_number(status->acked_lsn));
	json_object_set_new(json, "lag_bytes", render_number(status->lag_bytes));
	json_object_set_new(json, "lag_seconds", seconds(status->lag_ns));
	json_object_set_new(json, "pace", render_pace(status, config));
	json_object_set_new(json, "lag_over", json_boolean(status->lag_over));
	json_object_set_new(json, "held", json_boolean(status->held));
	json_object_set_new(json, "holds", render_number(status->holds));
	json_object_set_new(json, "left_stream", render_number(status->left_stream));
	json_object_set_new(json, "out_of_sync_bytes", render_number(status->out_of_sync_bytes));
	json_object_set_new(json, "suspended", json_boolean(status->waiting));
	json_object_set_new(json, "suspended_since", render_time(status->waiting_since_ns));
	json_object_set_new(json, "catch_up", render_catch_up(status, now_ns));
	json_object_set_new(json, "in_place", json_boolean(status->in_place));
	json_object_set_new(json, "peer_staging_max",
			    status->target_staging_max_bytes
				    ? render_number(status->target_staging_max_bytes)
				    : json_null());
	json_object_set_new(json, "unreadable", render_unreadable(status));
	json_object_set_new(json, "resumed", render_number(status->resumes));
	json_object_set_new(json, "comparison", render_comparison(status));
	json_object_set_new(json, "cuts", render_number(status->cuts));
	json_object_set_new(json, "sent_bytes", render_number(status->sent_bytes));
	json_object_set_new(json, "received_bytes", render_number(status->received_bytes));
	json_object_set_new(json, "staged_bytes", render_number(status->staged_bytes));
	json_object_set_new(json, "queue_bytes", render_number(status->queue_bytes));
	json_object_set_new(json, "full_syncs", render_number(status->full_syncs));
	json_object_set_new(json, "connects", render_number(status->connects));
	json_object_set_new(json, "disconnects", render_number(status->disconnects));
	return json;
}

static json_t *render_requests(const struct store_counts *counts)
{
	uint64_t total =
		counts->puts + counts->gets + counts->heads + counts->lists + counts->deletes;

	if (!total)
		return json_null();
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "total", render_number(total),
			 "puts", render_number(counts->puts), "gets", render_number(counts->gets),
			 "heads", render_number(counts->heads), "lists",
			 render_number(counts->lists), "deletes", render_number(counts->deletes),
			 "retries", render_number(counts->retries));
}

static json_t *render_snapshots(const struct watch_sample *sample, uint64_t now_ns,
				uint64_t realtime_ns)
{
	const struct snapshot_writer_status *writer = &sample->writer;
	const struct config_volume *config = sample->volume->config;
	const char *error = sample->volume->store_error;
	json_t *json = json_object();

	if (!error[0] && writer->last.error && (writer->failed || writer->last.why[0]))
		error = writer->last.why;

	json_object_set_new(json, "store", render_text(config->store));
	json_object_set_new(json, "open", json_boolean(sample->store_up));
	json_object_set_new(json, "every_seconds", seconds(config->snapshot_every_ns));
	json_object_set_new(json, "rate", render_text(rate_text(&config->snapshot_rate)));
	json_object_set_new(json, "min_rate", render_number(config->snapshot_min_rate));
	json_object_set_new(json, "keep_last", render_number(config->keep_last));
	json_object_set_new(json, "lock", render_lock((enum store_lock)config->lock));
	json_object_set_new(json, "lock_seconds", seconds(config->lock_for_ns));
	json_object_set_new(json, "requests", render_requests(&sample->store));
	json_object_set_new(json, "from",
			    json_string(config->snapshot_from_secondary ? "secondary" : "primary"));
	json_object_set_new(json, "relative_to", render_id(&sample->state.snapshot));
	json_object_set_new(json, "command_failures",
			    render_number(sample->volume->command_failures));
	json_object_set_new(json, "command_failure",
			    sample->volume->command_failure[0]
				    ? render_text(sample->volume->command_failure)
				    : json_null());
	json_object_set_new(json, "running", json_boolean(writer->running));
	json_object_set_new(json, "progress",
			    writer->running ? render_progress(&writer->progress, now_ns)
					    : json_null());
	json_object_set_new(json, "read_limit",
			    writer->read_limit ? render_number(writer->read_limit) : json_null());
	json_object_set_new(json, "read_reason",
			    writer->read_reason && *writer->read_reason
				    ? json_string(writer->read_reason)
				    : json_null());
	json_object_set_new(json, "write_p99_seconds",
			    writer->write_p99_ns ? seconds(writer->write_p99_ns) : json_null());
	json_object_set_new(json, "write_p99_baseline_seconds",
			    writer->write_baseline_ns ? seconds(writer->write_baseline_ns)
						      : json_null());
	json_object_set_new(json, "newest",
			    sample->newest.sequence ? render_snapshot(&sample->newest)
						    : json_null());
	json_object_set_new(json, "newest_age_seconds",
			    age(sample->newest.created_ns, realtime_ns));
	json_object_set_new(json, "last_error", error[0] ? render_text(error) : json_null());
	json_object_set_new(json, "succeeded", render_number(writer->succeeded));
	json_object_set_new(json, "failed", render_number(writer->failed));
	json_object_set_new(json, "changed_bytes", render_number(sample->dirty_store_bytes));
	return json;
}

/* A disk that clients use while it is filled. */
static json_t *render_filling(const struct watch_sample *sample, uint64_t now_ns)
{
	const struct volume_stats *stats = &sample->stats;
	struct snapshot_progress progress = {
		.done_bytes = stats->fill_total_bytes - stats->missing_bytes,
		.total_bytes = stats->fill_total_bytes,
		.started_ns = stats->fill_started_ns,
	};

	if (!sample->from_snapshot && !stats->missing_bytes)
		return json_null();
	if (stats->fill_total_bytes < stats->missing_bytes)
		progress.done_bytes = 0;
	return json_pack("{s:s, s:o, s:o, s:o, s:o}", "from",
			 sample->from_snapshot ? "snapshot" : "peer", "snapshot",
			 sample->from_snapshot ? render_id(&sample->source.snapshot) : json_null(),
			 "missing_bytes", render_number(stats->missing_bytes), "progress",
			 render_progress(&progress, now_ns), "trouble",
			 sample->fill_trouble[0] ? render_text(sample->fill_trouble) : json_null());
}

static json_t *render_proof(const struct watch_sample *sample, uint64_t realtime_ns)
{
	const struct proof_record *record = &sample->proof;
	json_t *json = json_object();

	json_object_set_new(json, "every_seconds", seconds(sample->volume->config->proof_every_ns));
	json_object_set_new(json, "running", json_boolean(sample->proving));
	json_object_set_new(json, "proven", render_id(&record->proven));
	json_object_set_new(json, "proven_at", render_time(record->proven_ns));
	json_object_set_new(json, "proven_age_seconds", age(record->proven_ns, realtime_ns));
	json_object_set_new(json, "proven_created", render_time(record->created_ns));
	json_object_set_new(json, "duration_seconds",
			    record->proven_ns ? seconds(record->duration_ns) : json_null());
	json_object_set_new(json, "tried", render_id(&record->tried));
	json_object_set_new(json, "tried_at", render_time(record->tried_ns));
	json_object_set_new(json, "last_error",
			    record->error ? render_text(record->why) : json_null());
	return json;
}

static json_t *render_exports(const struct watch_sample *sample)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < sample->export_count; i++) {
		const struct exports_snapshot *e = &sample->exports[i];

		json_array_append_new(list,
				      json_pack("{s:o, s:o, s:I}", "snapshot", render_id(&e->id),
						"created", render_time(e->created_ns), "clients",
						(json_int_t)e->clients));
	}
	return list;
}

json_t *render_volume(const struct watch_sample *sample, uint64_t now_ns, uint64_t realtime_ns)
{
	const struct node_volume *nv = sample->volume;
	json_t *json = json_object();

	json_object_set_new(json, "name", render_text(nv->config->name));
	json_object_set_new(json, "backing", render_text(nv->config->backing));
	json_object_set_new(json, "open", json_boolean(sample->open));
	json_object_set_new(json, "error", nv->error[0] ? render_text(nv->error) : json_null());
	json_object_set_new(json, "busy", nv->busy ? render_text(nv->busy) : json_null());
	if (sample->open) {
		const struct volume_state *state = &sample->state;

		json_object_set_new(json, "kept_copy",
				    sample->kept_copy ? render_text(sample->kept_copy)
						      : json_null());
		json_object_set_new(json, "uuid", render_id(&state->uuid));
		json_object_set_new(json, "size_bytes", render_number(sample->size_bytes));
		json_object_set_new(json, "role", json_string(volume_role_name(state->role)));
		json_object_set_new(json, "disk", json_string(volume_disk_state_name(state->disk)));
		json_object_set_new(json, "outdated_since", render_time(state->outdated_ns));
		json_object_set_new(json, "disk_failure",
				    sample->failure[0] ? render_text(sample->failure)
						       : json_null());
		json_object_set_new(json, "at_peer", json_boolean(sample->at_peer));
		json_object_set_new(json, "waits_for_peer", json_boolean(sample->waits_for_peer));
		json_object_set_new(json, "filling", render_filling(sample, now_ns));
		json_object_set_new(json, "at_risk",
				    sample->risk[0] ? render_text(sample->risk) : json_null());
		json_object_set_new(json, "lost",
				    nv->lost[0] ? render_text(nv->lost) : json_null());
		json_object_set_new(json, "lsn", render_number(state->lsn));
		json_object_set_new(json, "clients", render_number(sample->stats.clients));
		json_object_set_new(json, "generations", render_generations(&state->generations));
		json_object_set_new(json, "stats", render_stats(&sample->stats));
	}
	json_object_set_new(json, "replication",
			    sample->replicated
				    ? render_replication(&sample->replication, nv->config, now_ns)
				    : json_null());
	json_object_set_new(json, "verify",
			    sample->replicated ? render_verify(&sample->verify, now_ns)
					       : json_null());
	json_object_set_new(json, "proof",
			    nv->config->proof_dir || sample->proof.tried_ns
				    ? render_proof(sample, realtime_ns)
				    : json_null());
	json_object_set_new(json, "exports", render_exports(sample));
	json_object_set_new(json, "snapshots",
			    nv->config->store ? render_snapshots(sample, now_ns, realtime_ns)
					      : json_null());
	return json;
}
