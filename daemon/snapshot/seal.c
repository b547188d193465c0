/* SPDX-License-Identifier: Apache-2.0 */
/*
 * seal: the course of one snapshot; what comes before its data is in seal_open.c. Phases: seal.h.
 *
 * Order at the end. The manifest is put when all it needs is in the store. Then the volume notes the new
 * snapshot, and only then the cut is consumed: a crash in between leaves marks too many, never too few. A
 * manifest whose put failed may be there all the same, or appear: it is marked as deleted.
 */
#include "daemon/snapshot/seal.h"

#include "daemon/snapshot/retention.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PACK_BYTES     (16u << 20)
#define PACK_BYTES_MAX (64u << 20)
#define TRIES_MAX      3
#define PRUNE_EVERY_NS (50ull * 60 * 1000000000) /* where listing is paid for */

static void manifest_start(struct snapshot_writer *w);
static void finish(struct snapshot_writer *w);

void seal_set_phase(struct snapshot_writer *w, enum seal_phase phase)
{
	static const unsigned allowed[SEAL_PHASES] = {
		[SEAL_IDLE] = 1u << SEAL_LOOK,
		[SEAL_LOOK] = 1u << SEAL_CLAIM | 1u << SEAL_UNDO,
		[SEAL_CLAIM] = 1u << SEAL_READY | 1u << SEAL_UNDO,
		[SEAL_READY] = 1u << SEAL_DATA | 1u << SEAL_UNDO,
		[SEAL_DATA] = 1u << SEAL_FLUSH | 1u << SEAL_UNDO,
		[SEAL_FLUSH] = 1u << SEAL_MANIFEST | 1u << SEAL_UNDO,
		[SEAL_MANIFEST] = 1u << SEAL_PRUNE | 1u << SEAL_UNDO,
		[SEAL_PRUNE] = 1u << SEAL_IDLE,
		[SEAL_UNDO] = 1u << SEAL_IDLE | 1u << SEAL_LOOK,
	};

	assert(allowed[w->phase] & 1u << phase);
	w->phase = phase;
}

void seal_fail(struct snapshot_writer *w, int error, const char *format, ...)
{
	va_list args;

	if (w->error)
		return;
	w->error = error;
	va_start(args, format);
	vsnprintf(w->why, sizeof(w->why), format, args);
	va_end(args);
}

static void rate_timer_fire(struct env_timer *timer)
{
	struct snapshot_writer *w = container_of(timer, struct snapshot_writer, rate_timer);

	env_defer(w->env, &w->nudge);
}

void snapshot_writer_set_rate(struct snapshot_writer *writer, const struct rate_schedule *rate)
{
	rate_limit_set(&writer->rate, rate);
	env_defer(writer->env, &writer->nudge);
}

static void pace_timer_fire(struct env_timer *timer)
{
	struct snapshot_writer *w = container_of(timer, struct snapshot_writer, pace_timer);

	env_defer(w->env, &w->nudge);
}

void snapshot_writer_set_pace(struct snapshot_writer *writer, unsigned latency_percent,
			      uint64_t min_rate)
{
	pacer_set(&writer->pacer, latency_percent, min_rate);
	env_defer(writer->env, &writer->nudge);
}

static void nudged(struct env_task *task)
{
	seal_advance(container_of(task, struct snapshot_writer, nudge));
}

/* ---- the manifest ---------------------------------------------------------------------------- */

static void note_success(struct snapshot_writer *w)
{
	struct volume_state state;
	int error;

	repo_changed(w->repo);
	volume_get_state(w->volume, &state);
	state.snapshot = w->next->info.id;
	error = volume_set_state(w->volume, &state);
	if (error)
		env_log(w->env, ENV_LOG_WARNING,
			"volume %s: snapshot stored, but not noted (%s): the next one reads "
			"everything",
			volume_name(w->volume), strerror(-error));
	seal_cut_end(w, !error);
}

static void repack_planned(struct snapshot_writer *w)
{
	w->waiting--;
	seal_advance(w);
}

static void pruned(void *context, const struct snapshot_result *result)
{
	struct snapshot_writer *w = context;

	if (result->error)
		env_log(w->env, ENV_LOG_WARNING,
			"volume %s: older snapshots are not all deleted or locked on: %s",
			volume_name(w->volume), result->why);
	if (result->renewed_snapshots)
		env_log(w->env, ENV_LOG_INFO,
			"volume %s: %llu snapshots that stay were locked on, with %llu objects",
			volume_name(w->volume), (unsigned long long)result->renewed_snapshots,
			(unsigned long long)result->renewed_objects);
	if (result->locked_objects)
		env_log(w->env, ENV_LOG_INFO,
			"volume %s: %llu objects that nothing needs are locked, and left for later",
			volume_name(w->volume), (unsigned long long)result->locked_objects);
	if (result->error)
		repack_planned(w);
	else
		repack_plan(w, repack_planned);
}

/* The claim is gone: what it protected may go now. */
static void prune_advance(struct snapshot_writer *w)
{
	if (w->waiting || !map_idle(w))
		return;
	if (!w->prune || w->freed) {
		finish(w);
		return;
	}
	w->prune = false;
	w->waiting++;
	snapshot_forget(w->repo, &w->policy, false, NULL, pruned, w);
}

/* Of a bucket the names seen are only the newest ones. */
static bool prune_is_due(struct snapshot_writer *w)
{
	uint64_t now = env_now_ns(w->env);

	if (w->given_up ||
	    (retention_is_empty(&w->policy) && !w->lock)) /* else pins are locked on */
		return false;
	if (!w->repo->store->lists_cost || !w->base)
		return !retention_is_only_last(&w->policy) || w->names.count + 1 > w->policy.last;
	if (w->pruned_ns && now - w->pruned_ns < PRUNE_EVERY_NS)
		return false;
	w->pruned_ns = now;
	return true;
}

/* What is sent twice may arrive twice, and late. */
static uint64_t store_retries(const struct snapshot_writer *w)
{
	struct store_counts counts;

	store_counts(w->repo->store, &counts);
	return counts.retries;
}

static void succeeded(struct snapshot_writer *w)
{
	if (MUTATE(snapshot_manifest_first))
		map_flush(w);
	note_success(w);
	seal_set_phase(w, SEAL_PRUNE);
	w->prune = prune_is_due(w);
	seal_claim_drop(w, w->retries == store_retries(w) && !w->repo->store->list_lag_ns);
	seal_advance(w);
}

static void claim_looked(struct env_op *op, int64_t result)
{
	struct snapshot_writer *w = container_of(op, struct snapshot_writer, claim_op);

	w->waiting--;
	w->relook = result == -ENOENT && !w->error;
	if (w->relook)
		seal_fail(w, -ESTALE,
			  "volume %s: its claim was deleted meanwhile as one of long ago: is a "
			  "clock wrong, or is there a copy of this machine?",
			  volume_name(w->volume));
	else if (result < 0)
		seal_fail(w, (int)result, "%s: %s", w->claim_name, store_strerror((int)result));
	if (w->error)
		seal_advance(w);
	else
		succeeded(w);
}

/* Whoever took the claim for nobody's, as a clock is wrong or this machine has a twin, has deleted it before it listed
 * manifests. So if it is there now, every deleter knows of this one. */
static void manifest_put_done(struct env_op *op, int64_t result)
{
	struct snapshot_writer *w = container_of(op, struct snapshot_writer, manifest_op);
	struct store *store = w->repo->store;

	w->waiting--;
	free(w->manifest_data);
	w->manifest_data = NULL;
	if (result < 0)
		seal_fail(w, (int)result, "%s: %s", w->manifest_name, store_strerror((int)result));
	if (w->error) {
		seal_advance(w);
	} else {
		w->waiting++;
		w->claim_op.done = claim_looked;
		store->ops->size(store, &w->claim_op, w->claim_name);
	}
}

static void manifest_run(struct env_work *work)
{
	struct snapshot_writer *w = container_of(work, struct snapshot_writer, manifest_work);

	w->manifest_error = manifest_encode(w->next, w->repo->store->encrypted, &w->manifest_data,
					    &w->manifest_bytes);
}

static void manifest_encoded(struct env_work *work)
{
	struct snapshot_writer *w = container_of(work, struct snapshot_writer, manifest_work);
	struct snapfmt_ref ref = {w->next->info.id, w->next->info.sequence, 0};

	w->waiting--;
	if (w->manifest_error)
		seal_fail(w, w->manifest_error, "volume %s: manifest: %s", volume_name(w->volume),
			  strerror(-w->manifest_error));
	if (env_now_ns(w->env) - w->claimed_ns > CLAIM_LATE_NS)
		seal_fail(w, -ETIMEDOUT, "volume %s: the snapshot took longer than four weeks",
			  volume_name(w->volume));
	if (w->error) {
		free(w->manifest_data);
		w->manifest_data = NULL;
		seal_advance(w);
		return;
	}
	snapfmt_name(SNAPFMT_MANIFEST, &w->repo->volume, &ref, w->manifest_name);
	w->manifest_iov = (struct iovec){w->manifest_data, w->manifest_bytes};
	w->manifest_op.done = manifest_put_done;
	w->manifest_sent = true;
	w->retries = store_retries(w);
	w->waiting++;
	store_put(w->repo->store, &w->manifest_op, w->manifest_name, &w->manifest_iov, 1,
		  &w->next->info.retention);
}

static void manifest_make(struct snapshot_writer *w)
{
	uint64_t requests = seal_requests(w) - w->requests_before;

	w->next->info.requests =
		requests ? (uint32_t)requests + 3 : 0; /* its own put; the claim's look and end */
	w->manifest_work = (struct env_work){.run = manifest_run, .done = manifest_encoded};
	w->waiting++;
	env_work_submit(w->env, &w->manifest_work);
}

/* Its own it has put so. */
static bool is_shared(void *context, const struct manifest_object *object)
{
	const struct snapshot_writer *w = context;

	return !id128_equal(&object->ref.snapshot, &w->next->info.id);
}

static void shared_retained(void *context, int error, const char *why)
{
	struct snapshot_writer *w = context;

	w->waiting--;
	w->base_damaged = error == -ENOENT;
	if (error)
		seal_fail(w, error, "volume %s: %s", volume_name(w->volume), why);
	else
		w->keys_locked = w->keys_read;
	if (w->error)
		seal_advance(w);
	else
		manifest_make(w);
}

static void assemble_run(struct env_work *work)
{
	map_assemble(container_of(work, struct snapshot_writer, manifest_work));
}

static void assembled(struct env_work *work)
{
	struct snapshot_writer *w = container_of(work, struct snapshot_writer, manifest_work);
	struct store *store = w->repo->store;

	w->waiting--;
	w->keys_read = store->keys_read;
	if (w->error) {
		seal_advance(w);
	} else if (w->extend || (w->lock && store->encrypted && w->keys_locked != w->keys_read)) {
		w->waiting++;
		retain_objects(store, w->next, &w->next->info.retention, true,
			       w->extend ? is_shared : NULL, shared_retained, w);
	} else {
		manifest_make(w);
	}
}

static void manifest_start(struct snapshot_writer *w)
{
	seal_set_phase(w, SEAL_MANIFEST);
	w->manifest_work = (struct env_work){.run = assemble_run, .done = assembled};
	w->waiting++;
	env_work_submit(w->env, &w->manifest_work);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void run_free(struct snapshot_writer *w)
{
	map_end(w);
	pacer_end(&w->pacer);
	env_timer_stop(w->env, &w->pace_timer);
	names_free(&w->names);
	manifest_free(w->base);
	manifest_free(w->next);
	w->base = w->next = NULL;
}

static void writer_release(void *context)
{
	struct snapshot_writer *w = context;
	void (*freed)(void *) = w->freed;
	void *freed_context = w->freed_context;

	env_defer_cancel(w->env, &w->nudge);
	env_timer_stop(w->env, &w->rate_timer);
	manifest_free(w->known);
	free(w->repack);
	w->repo->under_way--;
	free(w);
	freed(freed_context);
}

static struct manifest *next_new(struct snapshot_writer *w, const char *label)
{
	struct manifest *next = must_alloc(sizeof(*next));

	env_random(w->env, &next->info.id, sizeof(next->info.id));
	next->info.volume = w->repo->volume;
	next->info.size_bytes = volume_size_bytes(w->volume);
	snprintf(next->info.volume_name, sizeof(next->info.volume_name), "%s",
		 volume_name(w->volume));
	snprintf(next->info.node_name, sizeof(next->info.node_name), "%s", w->node_name);
	snprintf(next->info.label, sizeof(next->info.label), "%s", label ? label : "");
	return next;
}

static bool may_try_again(const struct snapshot_writer *w)
{
	if (!w->error || w->freed)
		return false;
	return (w->base_damaged && !w->retried) || (w->relook && w->tries < TRIES_MAX);
}

/* Everything of the run is over; says so, or begins anew without the damaged base. */
static void finish(struct snapshot_writer *w)
{
	void (*done)(void *context, const struct snapshot_result *result) = w->done;

	seal_cut_end(w, false);
	if (may_try_again(w)) {
		char label[SNAPSHOT_NAME_MAX];

		env_log(w->env, ENV_LOG_WARNING, "volume %s: %s: the snapshot is taken anew%s",
			volume_name(w->volume), w->why, w->relook ? "" : ", complete in itself");
		memcpy(label, w->next->info.label, sizeof(label));
		w->retried = !w->relook;
		w->tries++;
		run_free(w);
		w->next = next_new(w, label);
		seal_open(w);
		return;
	}
	w->last = (struct snapshot_result){
		.error = w->error,
		.info = w->next->info,
		.checked_bytes = w->next->info.changed_bytes,
		.written_bytes = w->error ? 0 : w->next->info.stored_bytes,
	};
	memcpy(w->last.why, w->why, sizeof(w->last.why));
	w->last_done_ns = env_realtime_ns(w->env);
	w->error ? w->failed++ : w->succeeded++;
	if (!w->error && w->repo->store->lists_cost) {
		w->known = w->next;
		w->next = NULL;
	}
	run_free(w);
	seal_set_phase(w, SEAL_IDLE);
	done(w->context, &w->last);
	if (w->freed)
		writer_release(w);
}

static void undone(struct env_op *op, int64_t result)
{
	struct snapshot_writer *w = container_of(op, struct snapshot_writer, manifest_op);

	/* If this failed too, and the manifest is there, it is a snapshot like others. */
	repo_changed(w->repo);
	w->waiting--;
	w->manifest_sent = false;
	seal_claim_drop(w, false);
	seal_advance(w);
}

/* After a failure: waits for what is under way. A manifest that may be there, or appear yet, is marked as
 * deleted; a collector does the rest. */
static void undo_advance(struct snapshot_writer *w)
{
	struct snapfmt_ref ref = {w->next->info.id, w->next->info.sequence, 0};

	if (w->waiting || !map_idle(w))
		return;
	if (w->manifest_sent) {
		w->waiting++;
		w->manifest_op.done = undone;
		snapfmt_mark_name(&w->repo->volume, &ref, w->manifest_name);
		w->repo->store->ops->put(w->repo->store, &w->manifest_op, w->manifest_name,
					 mark_content(w->repo->store), 1);
		return;
	}
	seal_claim_drop(w, true);
	if (!w->waiting)
		finish(w);
}

void seal_advance(struct snapshot_writer *w)
{
	if (w->phase == SEAL_IDLE)
		return; /* a nudge that came too late */
	if (w->error && w->phase != SEAL_UNDO && w->phase != SEAL_PRUNE)
		seal_set_phase(w, SEAL_UNDO);
	switch (w->phase) {
	case SEAL_READY:
		if (w->cut)
			seal_data_begin(w);
		else if (w->pacing)
			seal_cut_ask(w);
		return;
	case SEAL_DATA:
		map_pump(w);
		if (w->error) {
			seal_advance(w);
			return;
		}
		if (!map_drained(w))
			return;
		seal_set_phase(w, SEAL_FLUSH);
		if (MUTATE(snapshot_finish_cut_early))
			seal_cut_end(w, true);
		if (MUTATE(snapshot_manifest_first)) {
			manifest_start(w);
			return;
		}
		map_flush(w);
		seal_advance(w);
		return;
	case SEAL_FLUSH:
		if (map_idle(w))
			manifest_start(w);
		return;
	case SEAL_PRUNE:
		prune_advance(w);
		return;
	case SEAL_UNDO:
		undo_advance(w);
		return;
	default:
		return; /* each goes on in its own callback */
	}
}

/* ---- public --------------------------------------------------------------------------------- */

struct snapshot_writer *snapshot_writer_new(struct volume *volume, struct snapshot_repo *repo,
					    const struct snapshot_writer_config *config)
{
	struct volume_state state;
	struct snapshot_writer *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	w->nudge.call = nudged;
	w->rate_timer.fire = rate_timer_fire;
	w->pace_timer.fire = pace_timer_fire;
	rate_limit_set(&w->rate, &config->rate);
	w->volume = volume;
	w->repo = repo;
	w->env = repo->env;
	w->pacer.env = w->env;
	w->pacer.volume = volume;
	w->pacer.judged = seal_pace_judged;
	pacer_init(&w->pacer);
	pacer_set(&w->pacer, config->latency_percent, config->min_rate);
	w->pack_bytes = config->pack_bytes ? config->pack_bytes : PACK_BYTES;
	if (w->pack_bytes > PACK_BYTES_MAX)
		w->pack_bytes = PACK_BYTES_MAX;
	w->zstd_level = config->zstd_level ? config->zstd_level : 1;
	w->policy = config->policy;
	w->policy.locks |= config->lock != STORE_LOCK_NONE;
	w->policy.lock_for_ns = config->lock ? config->lock_for_ns : 0;
	w->lock = config->lock;
	w->lock_for_ns = config->lock_for_ns;
	w->repack_on = config->repack;
	w->prepare = config->prepare;
	w->prepare_context = config->prepare_context;
	snprintf(w->node_name, sizeof(w->node_name), "%s",
		 config->node_name ? config->node_name : "");
	volume_get_state(volume, &state);
	repo->writer = state.writer;
	repo->stale_from_ns = env_now_ns(w->env) + CLAIM_QUIET_NS;
	repo->under_way++;
	return w;
}

void snapshot_writer_free(struct snapshot_writer *writer, void (*freed)(void *context),
			  void *context)
{
	assert(!writer->freed);
	writer->freed = freed;
	writer->freed_context = context;
	if (writer->phase == SEAL_IDLE) {
		call_later(writer->env, writer_release, writer);
		return;
	}
	if (writer->phase != SEAL_PRUNE)
		seal_fail(writer, -ECANCELED, "volume %s: snapshot given up: stopping",
			  volume_name(writer->volume));
	env_defer(writer->env, &writer->nudge);
}

struct refusal {
	void (*done)(void *context, const struct snapshot_result *result);
	void *context;
	struct snapshot_result result;
};

static void refuse(void *context)
{
	struct refusal *refusal = context;

	refusal->done(refusal->context, &refusal->result);
	free(refusal);
}

static void create(struct snapshot_writer *w, const char *label, bool given_up,
		   void (*done)(void *context, const struct snapshot_result *result), void *context)
{
	if (w->phase != SEAL_IDLE || w->freed) {
		struct refusal *refusal = must_alloc(sizeof(*refusal));

		*refusal = (struct refusal){.done = done, .context = context};
		refusal->result.error = why_set(refusal->result.why, -EBUSY,
						"volume %s: a snapshot is being taken already",
						volume_name(w->volume));
		call_later(w->env, refuse, refusal);
		return;
	}
	w->done = done;
	w->context = context;
	w->retried = false;
	w->tries = 1;
	w->given_up = given_up;
	w->next = next_new(w, label);
	seal_open(w);
}

void snapshot_create(struct snapshot_writer *writer, const char *label,
		     void (*done)(void *context, const struct snapshot_result *result),
		     void *context)
{
	create(writer, label, false, done, context);
}

void snapshot_create_given_up(struct snapshot_writer *writer, const char *node,
			      const struct id128 *common,
			      void (*done)(void *context, const struct snapshot_result *result),
			      void *context)
{
	char label[SNAPSHOT_NAME_MAX];

	snprintf(label, sizeof(label), "given up for %.40s", node);
	if (writer->phase == SEAL_IDLE)
		writer->given_up_since = *common;
	create(writer, label, true, done, context);
}

void snapshot_writer_status(const struct snapshot_writer *writer,
			    struct snapshot_writer_status *status)
{
	*status = (struct snapshot_writer_status){
		.running = writer->phase != SEAL_IDLE,
		.progress = writer->progress,
		.last = writer->last,
		.last_done_ns = writer->last_done_ns,
		.succeeded = writer->succeeded,
		.failed = writer->failed,
		.read_reason = "",
	};
	if (writer->phase < SEAL_LOOK || writer->phase > SEAL_DATA)
		return;
	status->read_limit = pace_control_rate(&writer->pacer.control);
	status->read_reason = pace_control_reason(&writer->pacer.control);
	status->write_p99_ns = writer->pacer.control.p99_ns;
	status->write_baseline_ns = writer->pacer.control.baseline_ns;
}

void snapshot_check(const struct snapshot_writer *writer)
{
	const struct snapshot_writer *w = writer;
	bool running = w->phase != SEAL_IDLE;

	assert(w->phase < SEAL_PHASES);
	assert(running == (w->next != NULL));
	assert(running || (!w->cut && !w->waiting && !w->puts && !w->base && !w->pack && !w->maps));
	assert(w->phase != SEAL_DATA || w->cut || w->error);
	assert(!w->asked || w->waiting);
	assert(w->puts <= SEAL_PUTS_SERVICE + 2);
	for (unsigned i = 0; i < SEAL_BATCHES; i++)
		assert(!w->batches[i].page || (w->batches[i].page->pending &&
					       (w->batches[i].buf || w->batches[i].page->asking)));
}
