// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/jobs.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/control/render.h"

struct jobs {
	struct env *env;
	struct job *first; /* newest first */
	unsigned next_id;
	bool stopping; /* the node may be gone */
	void (*finished)(void *context, struct job *job);
	void *context;
};

static const char *const type_names[JOB_TYPES] = {
	[JOB_SNAPSHOT_CREATE] = "snapshot-create",     [JOB_SNAPSHOT_DELETE] = "snapshot-delete",
	[JOB_SNAPSHOT_VERIFY] = "snapshot-verify",     [JOB_RESTORE] = "restore",
	[JOB_RESTORE_FROM_PEER] = "restore-from-peer", [JOB_RESOLVE] = "resolve",
	[JOB_REPLACE_DISK] = "replace-disk",           [JOB_SNAPSHOT_PROVE] = "snapshot-prove",
};

#define BIT(type) (1u << (type))

/* Which running jobs on the same volume a new one has to wait for. Sealing beside a deletion or a
 * verification is safe: neither touches what a snapshot being written needs. */
static const unsigned excluded_by[JOB_TYPES] = {
	[JOB_SNAPSHOT_CREATE] = BIT(JOB_SNAPSHOT_CREATE) | BIT(JOB_RESTORE) |
				BIT(JOB_RESTORE_FROM_PEER) | BIT(JOB_RESOLVE) |
				BIT(JOB_REPLACE_DISK),
	[JOB_SNAPSHOT_DELETE] = BIT(JOB_SNAPSHOT_DELETE) | BIT(JOB_SNAPSHOT_VERIFY) |
				BIT(JOB_RESTORE) | BIT(JOB_SNAPSHOT_PROVE),
	[JOB_SNAPSHOT_PROVE] = BIT(JOB_SNAPSHOT_DELETE) | BIT(JOB_SNAPSHOT_PROVE),
	[JOB_SNAPSHOT_VERIFY] = BIT(JOB_SNAPSHOT_DELETE) | BIT(JOB_SNAPSHOT_VERIFY),
	[JOB_RESTORE] = BIT(JOB_SNAPSHOT_CREATE) | BIT(JOB_SNAPSHOT_DELETE) | BIT(JOB_RESTORE) |
			BIT(JOB_RESTORE_FROM_PEER) | BIT(JOB_RESOLVE) | BIT(JOB_REPLACE_DISK),
	[JOB_RESTORE_FROM_PEER] = BIT(JOB_SNAPSHOT_CREATE) | BIT(JOB_RESTORE) |
				  BIT(JOB_RESTORE_FROM_PEER) | BIT(JOB_RESOLVE) |
				  BIT(JOB_REPLACE_DISK),
	[JOB_RESOLVE] = BIT(JOB_SNAPSHOT_CREATE) | BIT(JOB_RESTORE) | BIT(JOB_RESTORE_FROM_PEER) |
			BIT(JOB_RESOLVE) | BIT(JOB_REPLACE_DISK),
	[JOB_REPLACE_DISK] = BIT(JOB_SNAPSHOT_CREATE) | BIT(JOB_RESTORE) |
			     BIT(JOB_RESTORE_FROM_PEER) | BIT(JOB_RESOLVE) | BIT(JOB_REPLACE_DISK),
};

const char *job_type_name(enum job_type type)
{
	assert(type < JOB_TYPES);
	return type_names[type];
}

const char *job_state_name(enum job_state state)
{
	switch (state) {
	case JOB_RUNNING:
		return "running";
	case JOB_SUCCEEDED:
		return "succeeded";
	case JOB_FAILED:
		return "failed";
	}
	abort();
}

bool jobs_excludes(enum job_type type, enum job_type running)
{
	assert(type < JOB_TYPES && running < JOB_TYPES);
	return excluded_by[type] & BIT(running);
}

struct jobs *jobs_new(struct env *env, void (*finished)(void *context, struct job *job),
		      void *context)
{
	struct jobs *jobs = calloc(1, sizeof(*jobs));

	if (!jobs)
		return NULL;
	jobs->env = env;
	jobs->next_id = 1;
	jobs->finished = finished;
	jobs->context = context;
	return jobs;
}

static void job_free(struct job *job)
{
	assert(job->state != JOB_RUNNING);
	json_decref(job->damaged);
	free(job->store_url);
	secret_free(job->store_secret);
	free(job);
}

void jobs_stop(struct jobs *jobs)
{
	jobs->stopping = true;
}

bool jobs_free(struct jobs *jobs)
{
	struct job *job;

	for (job = jobs->first; job; job = job->next)
		if (job->state == JOB_RUNNING)
			return false;
	while ((job = jobs->first)) {
		jobs->first = job->next;
		job_free(job);
	}
	free(jobs);
	return true;
}

/* Forgets the oldest finished jobs beyond JOBS_FINISHED_KEPT. */
static void forget_old(struct jobs *jobs)
{
	unsigned kept = 0;

	for (struct job **link = &jobs->first; *link;) {
		struct job *job = *link;

		if (job->state != JOB_RUNNING && ++kept > JOBS_FINISHED_KEPT) {
			*link = job->next;
			job_free(job);
		} else {
			link = &job->next;
		}
	}
}

struct job *jobs_find(struct jobs *jobs, unsigned id)
{
	for (struct job *job = jobs->first; job; job = job->next)
		if (job->id == id)
			return job;
	return NULL;
}

struct job *jobs_first(struct jobs *jobs)
{
	return jobs->first;
}

unsigned jobs_running(const struct jobs *jobs, enum job_type type)
{
	unsigned count = 0;

	for (const struct job *job = jobs->first; job; job = job->next)
		count += job->state == JOB_RUNNING && job->type == type;
	return count;
}

static void job_finish(struct job *job)
{
	struct jobs *jobs = job->jobs;

	assert(job->state == JOB_RUNNING);
	if (job->repo)
		snapshot_repo_free(job->repo);
	if (job->store)
		store_close(job->store);
	job->repo = NULL;
	job->store = NULL;
	job->finished_ns = env_realtime_ns(jobs->env);
	if (job->result.error && !job->result.why[0])
		snprintf(job->result.why, sizeof(job->result.why), "%s",
			 strerror(-job->result.error));
	job->state = job->result.error ? JOB_FAILED : JOB_SUCCEEDED;
	jobs->finished(jobs->context, job);
}

/* ---- what the modules below call back ------------------------------------------------------ */

static void snapshot_done(void *context, const struct snapshot_result *result)
{
	struct job *job = context;

	job->result = *result;
	job_finish(job);
}

static void snapshot_verify_done(void *context, const struct snapshot_result *result)
{
	struct job *job = context;

	job->result = *result;
	if (!job->result.error && job->result.bad_objects) {
		job->result.error = -EUCLEAN;
		snprintf(job->result.why, sizeof(job->result.why),
			 "volume %s: %u damaged or missing objects", job->volume_name,
			 job->result.bad_objects);
	}
	job_finish(job);
}

static void snapshot_verify_bad(void *context, const char *object, const char *why,
				const struct snapshot_info *hit)
{
	struct job *job = context;
	char id[ID128_TEXT_BYTES] = "";

	if (!job->damaged)
		job->damaged = json_array();
	if (json_array_size(job->damaged) >= JOBS_DAMAGED_KEPT)
		return;
	if (hit)
		id128_format(&hit->id, id);
	json_array_append_new(job->damaged,
			      json_pack("{s:o, s:o, s:s}", "object", render_text(object), "why",
					render_text(why), "snapshot", id));
}

static void progressed(void *context, const struct snapshot_progress *progress)
{
	struct job *job = context;

	job->progress = *progress;
}

static void node_done(void *context, int error, const char *why)
{
	struct job *job = context;

	job->result.error = error;
	snprintf(job->result.why, sizeof(job->result.why), "%s", why && error ? why : "");
	job_finish(job);
}

static void prove_done(void *context, int error, const char *why)
{
	struct job *job = context;

	if (!error)
		job->snapshot = job->volume->proof.proven;
	node_done(context, error, why);
}

static void planned(void *context, const struct snapshot_plan *plan, int error, const char *why)
{
	struct job *job = context;

	if (plan)
		job->plan = *plan;
	node_done(context, error, why);
}

/* From the peer: its content is compared by hashes, what that finds is not known before. Whether it is there is
 * not asked: the restore waits for it. */
static void peer_planned(void *context, int error, const char *why,
			 const struct replication_plan *plan)
{
	struct job *job = context;

	job->plan = (struct snapshot_plan){
		.at_most = true,
		.fetch_bytes = volume_size_bytes(job->volume->volume),
		.write_bytes = volume_size_bytes(job->volume->volume),
	};
	if (!error && plan->rate_bytes)
		job->plan.estimate_ns =
			(uint64_t)((double)job->plan.fetch_bytes * 1e9 / (double)plan->rate_bytes);
	node_done(job, 0, "");
}

static void plan(struct job *job)
{
	const struct snapshot_plan_target target = {
		.holds_something = !job->instant,
		.volume = job->volume->volume,
		.at_once = job->instant,
	};

	snapshot_plan(job->volume->repo, id128_is_zero(&job->snapshot) ? NULL : &job->snapshot,
		      &target, planned, job);
}

static void resolve_done(void *context, int error, const char *why)
{
	struct job *job = context;

	if (!error)
		snprintf(job->kept, sizeof(job->kept), "%s", job->volume->kept);
	node_done(context, error, why);
}

/* ---- starting ---------------------------------------------------------------------------- */

static struct job *job_of_opening(struct env_work *work)
{
	return (struct job *)((char *)work - offsetof(struct job, opening));
}

/* On a helper thread. */
static void opening_run(struct env_work *work)
{
	struct job *job = job_of_opening(work);

	job->result.error = store_open(job->jobs->env, job->store_url, &job->store, job->result.why,
				       sizeof(job->result.why));
	if (job->result.error) {
		job->store = NULL;
	} else if (job->store_secret) {
		job->store = crypt_open(job->store, job->store_secret);
		job->store_secret = NULL;
	}
}

static const struct id128 *snapshot_of(const struct job *job)
{
	return id128_is_zero(&job->snapshot) ? NULL : &job->snapshot;
}

/* Another volume's snapshot: its uuid is known. */
static void source_known(struct job *job)
{
	if (!job->dry_run && job->jobs->stopping) {
		node_done(job, -ESHUTDOWN, "the daemon is stopping");
		return;
	}
	if (!job->dry_run) {
		node_restore_instant(job->volume, &job->source_volume, snapshot_of(job), node_done,
				     job);
		return;
	}
	job->repo = snapshot_repo_new(job->store, &job->source_volume);
	if (job->repo) {
		snapshot_plan(job->repo, snapshot_of(job),
			      &(struct snapshot_plan_target){.at_once = true}, planned, job);
		return;
	}
	job->result.error = -ENOMEM;
	job_finish(job);
}

static void source_each(void *context, const struct snapshot_info *newest)
{
	struct job *job = context;

	if (strcmp(newest->volume_name, job->source_name) != 0)
		return;
	job->source_volume = newest->volume;
	job->sources++;
}

static void sources_listed(void *context, const struct snapshot_result *result)
{
	struct job *job = context;

	job->result = *result;
	if (!result->error && job->sources != 1) {
		job->result.error = job->sources ? -EINVAL : -ENOENT;
		snprintf(job->result.why, sizeof(job->result.why),
			 job->sources ? "volume: %s: the store holds %u volumes of that name; give "
					"the uuid (snapshot list --store)"
				      : "volume: %s: the store holds no volume of that name",
			 job->source_name, job->sources);
	}
	if (job->result.error)
		job_finish(job);
	else
		source_known(job);
}

static void store_opened(struct job *job)
{
	if (job->type == JOB_RESTORE && job->source_name[0]) {
		snapshot_volumes(job->store, source_each, NULL, sources_listed, job);
		return;
	}
	if (job->type == JOB_RESTORE) {
		source_known(job);
		return;
	}
	job->repo = snapshot_repo_new(job->store, &job->volume_uuid);
	if (job->repo) {
		snapshot_verify(job->repo, snapshot_of(job), job->sample_percent,
				snapshot_verify_bad, progressed, snapshot_verify_done, job);
		return;
	}
	job->result.error = -ENOMEM;
	job_finish(job);
}

static void opening_done(struct env_work *work)
{
	struct job *job = job_of_opening(work);

	if (job->result.error)
		job_finish(job);
	else
		store_opened(job);
}

/* With a store handle of the job's own: a verification may take hours and must not keep the node from
 * stopping, and it has no cancel. */
static int with_own_store(struct job *job, char *why, size_t why_size)
{
	const struct secret_source source = node_store_secret(job->volume->config);
	struct volume_state state;
	int error = secret_open(&source, &job->store_secret, why, why_size);

	if (error)
		return error;
	volume_get_state(job->volume->volume, &state);
	job->volume_uuid = state.uuid;
	job->store_url = strdup(job->volume->config->store);
	if (!job->store_url) {
		snprintf(why, why_size, "out of memory");
		return -ENOMEM;
	}
	job->opening.run = opening_run;
	job->opening.done = opening_done;
	env_work_submit(job->jobs->env, &job->opening);
	return 0;
}

static int job_run(struct job *job, char *why, size_t why_size)
{
	const struct id128 *id = snapshot_of(job);
	bool elsewhere = !id128_is_zero(&job->source_volume);

	switch (job->type) {
	case JOB_SNAPSHOT_CREATE:
		snapshot_create(job->volume->writer, job->label, snapshot_done, job);
		return 0;
	case JOB_SNAPSHOT_DELETE:
		snapshot_delete(job->volume->repo, &job->snapshot, snapshot_done, job);
		return 0;
	case JOB_SNAPSHOT_VERIFY:
		return with_own_store(job, why, why_size);
	case JOB_SNAPSHOT_PROVE:
		node_prove(job->volume, id, progressed, prove_done, job);
		return 0;
	case JOB_RESTORE:
		if (job->source_name[0] || (job->dry_run && elsewhere))
			return with_own_store(job, why, why_size);
		if (job->dry_run)
			plan(job);
		else if (job->instant)
			node_restore_instant(job->volume, &job->source_volume, id, node_done, job);
		else
			node_restore_snapshot(job->volume, id, progressed, node_done, job);
		return 0;
	case JOB_RESTORE_FROM_PEER:
		if (job->dry_run)
			replication_plan(job->volume->replication, peer_planned, job);
		else
			node_restore_from_peer(job->volume, node_done, job);
		return 0;
	case JOB_RESOLVE:
		node_resolve(job->volume, job->keep, job->no_keep, resolve_done, job);
		return 0;
	case JOB_REPLACE_DISK:
		node_replace_disk(job->volume, node_done, job);
		return 0;
	case JOB_TYPES:
		break;
	}
	abort();
}

/* 0, or -errno and why the volume cannot do it as it is configured, or because of another job. */
static int order_invalid(struct jobs *jobs, const struct job_order *order, char *why,
			 size_t why_size)
{
	const struct node_volume *nv = order->volume;
	const char *name = nv->config->name;

	for (struct job *job = jobs->first; job; job = job->next) {
		if (job->state != JOB_RUNNING || job->volume != nv ||
		    !jobs_excludes(order->type, job->type))
			continue;
		snprintf(why, why_size, "volume %s: job %u (%s) is under way", name, job->id,
			 job_type_name(job->type));
		return -EBUSY;
	}
	if (!nv->volume) {
		snprintf(why, why_size, "volume %s: not open: %s", name, nv->error);
		return -EPERM;
	}
	if (order->type == JOB_RESTORE_FROM_PEER || order->type == JOB_RESOLVE ||
	    order->type == JOB_REPLACE_DISK) {
		if (!nv->replication) {
			snprintf(why, why_size, "volume %s: no peer is configured", name);
			return -EPERM;
		}
	} else if (!nv->repo || (order->type == JOB_SNAPSHOT_CREATE && !nv->writer)) {
		snprintf(why, why_size, "volume %s: %s", name, node_store_why(nv));
		return -EPERM;
	}
	if (order->type == JOB_SNAPSHOT_CREATE && volume_source(nv->volume, NULL)) {
		snprintf(why, why_size,
			 "volume %s: is being filled from a snapshot: none is taken until it is "
			 "whole",
			 name);
		return -EPERM;
	}
	return 0;
}

struct job *jobs_start(struct jobs *jobs, const struct job_order *order, int *error, char *why,
		       size_t why_size)
{
	struct job *job;

	*error = order_invalid(jobs, order, why, why_size);
	if (*error)
		return NULL;
	job = calloc(1, sizeof(*job));
	if (!job) {
		snprintf(why, why_size, "out of memory");
		*error = -ENOMEM;
		return NULL;
	}
	job->jobs = jobs;
	job->id = jobs->next_id++;
	job->type = order->type;
	job->volume = order->volume;
	job->snapshot = order->snapshot;
	job->sample_percent = order->sample_percent;
	snprintf(job->volume_name, sizeof(job->volume_name), "%s", order->volume->config->name);
	snprintf(job->keep, sizeof(job->keep), "%s", order->keep ? order->keep : "");
	job->no_keep = order->no_keep;
	job->instant = order->instant;
	job->dry_run = order->dry_run;
	job->source_volume = order->source_volume;
	snprintf(job->source_name, sizeof(job->source_name), "%s",
		 order->source_name ? order->source_name : "");
	snprintf(job->label, sizeof(job->label), "%s", order->label ? order->label : "");
	job->started_ns = env_realtime_ns(jobs->env);
	job->started_mono_ns = env_now_ns(jobs->env);
	job->next = jobs->first;
	jobs->first = job;
	*error = job_run(job, why, why_size);
	if (*error) {
		assert(jobs->first == job);
		jobs->first = job->next;
		job->state = JOB_FAILED;
		job_free(job);
		return NULL;
	}
	forget_old(jobs);
	return jobs_find(jobs, jobs->next_id - 1);
}
