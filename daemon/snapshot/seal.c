/* SPDX-License-Identifier: Apache-2.0 */
/*
 * seal: the course of one snapshot, from the cut to the manifest. Phases: seal.h.
 *
 * The cut comes last before the data: what it is compared with is known by then, so that the cut is taken
 * once, at a moment that the owner may prepare (prepare: a database at rest, a stream at a barrier) and
 * that is over when snapshot_cut() returns.
 *
 * What is compared with. volume_state.snapshot names the snapshot that the volume's STORE map is
 * relative to. If it is the newest in the store, only what the map marks can differ from it: the others'
 * entries are taken over unseen. In every other case (none, another node wrote one, the newest was
 * deleted, a crash between the manifest and the note of it) all that is allocated is marked, read, and
 * compared by hash with the newest there is; and what is not allocated is zero. What is compared with has
 * to be whole: a snapshot of which the store lost an object is left aside, else all later ones would lack
 * the same.
 *
 * Where listing is paid for (a bucket), that look is spared: what this writer confirmed last is remembered
 * whole, and counted once a day. If another node wrote meanwhile, or the base is gone, CLAIM sees it, by
 * listing only what is not older than the base, and the run begins anew with a look.
 *
 * Beside others. The store has no locks. Before the first object a claim is put that names what is shared,
 * then the store is asked once more whether that is still there: from then on no collector takes any of it
 * away, nor what is put, until the claim goes. It goes when the manifest is there, or when nothing was sent
 * that could still make it appear. Else it stays, and this node's collectors take it away later (claims.c).
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
#define SECOND_NS      1000000000ull
#define LOCK_SHARE     8 /* of lock-for, by which what is locked outlasts it; see retain.c */
#define COUNT_EVERY_NS (24ull * 3600 * 1000000000) /* the base's objects, where that is paid for */
#define PRUNE_EVERY_NS (50ull * 60 * 1000000000)   /* the same */

static void seal_begin(struct snapshot_writer *w);
static void manifest_start(struct snapshot_writer *w);
static void finish(struct snapshot_writer *w);

static void set_phase(struct snapshot_writer *w, enum seal_phase phase)
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

/* ---- the cut -------------------------------------------------------------------------------- */

/* Called when the preserve area is full. What is read already stays good. */
static void cut_lost(void *context, int error)
{
	struct snapshot_writer *w = context;

	if (w->phase > SEAL_DATA)
		return;
	if (error == -ENOSPC || !error)
		seal_fail(w, -ENOSPC,
			  "volume %s: preserve area full (preserve-max): more was overwritten "
			  "during the "
			  "snapshot than it holds",
			  volume_name(w->volume));
	else
		seal_fail(w, error, "volume %s: the cut is lost: %s", volume_name(w->volume),
			  strerror(-error));
	env_defer(w->env, &w->nudge);
}

/* 0, or the error: no snapshot is to be had of the volume as it is now. */
static int check_volume(struct snapshot_writer *w)
{
	struct volume_state state;

	volume_get_state(w->volume, &state);
	if (!id128_equal(&state.uuid, &w->repo->volume))
		seal_fail(w, -ESTALE, "volume %s: has another uuid than the repository",
			  volume_name(w->volume));
	else if (state.role != VOLUME_PRIMARY && !w->given_up && !w->prepare)
		seal_fail(w, -EPERM, "volume %s: is secondary here", volume_name(w->volume));
	else if (state.disk != VOLUME_DISK_UPTODATE &&
		 !(w->given_up && state.disk == VOLUME_DISK_OUTDATED))
		seal_fail(w, -EPERM, "volume %s: its disk is %s", volume_name(w->volume),
			  volume_disk_state_name(state.disk));
	return w->error;
}

/* Without the map's being relative to the base, all that is allocated is in the cut. */
static void cut_take(struct snapshot_writer *w)
{
	struct volume_state state;
	int error = 0;

	assert(!w->cut);
	volume_get_state(w->volume, &state);
	/* Its link may be down: the newest in the store is not to be older than the one before. */
	if (w->base && state.role != VOLUME_PRIMARY && !w->given_up &&
	    w->base->info.lsn > state.lsn) {
		seal_fail(w, -ESTALE,
			  "volume %s: the newest snapshot is of later content than this secondary "
			  "has (LSN %llu, here %llu)",
			  volume_name(w->volume), (unsigned long long)w->base->info.lsn,
			  (unsigned long long)state.lsn);
		return;
	}
	w->full = w->retried || !w->base || !id128_equal(&w->base->info.id, &state.snapshot) ||
		  w->base->info.size_bytes != volume_size_bytes(w->volume);
	if (w->full)
		error = volume_mark_all(w->volume, VOLUME_STORE, true);
	if (!error)
		error = volume_cut_begin(w->volume, VOLUME_STORE, 0, cut_lost, w, &w->cut);
	if (error) {
		w->cut = NULL;
		seal_fail(w, error, "volume %s: no cut to be had: %s", volume_name(w->volume),
			  strerror(-error));
		return;
	}
	/* The size stays as it is while the cut exists. */
	w->next->info.size_bytes = volume_size_bytes(w->volume);
	w->next->info.created_ns = env_realtime_ns(w->env);
	w->next->info.lsn = volume_cut_lsn(w->cut);
	w->progress.total_bytes = volume_cut_bytes(w->cut);
}

static void cut_end(struct snapshot_writer *w, bool consumed)
{
	if (w->cut)
		volume_cut_finish(w->cut, consumed);
	w->cut = NULL;
}

/* ---- from the look to the data --------------------------------------------------------------- */

/* What it shares is locked long enough already, or everything is locked for a while longer. */
static void retention_decide_next(struct snapshot_writer *w)
{
	struct store_retention *next = &w->next->info.retention;
	const struct store_retention *base = w->base ? &w->base->info.retention : NULL;
	uint64_t until = w->next->info.created_ns + w->lock_for_ns;

	*next = (struct store_retention){.lock = w->lock};
	w->extend = false;
	if (!w->lock)
		return;
	if (base && base->lock == w->lock && base->until_ns >= until) {
		next->until_ns = base->until_ns;
		return;
	}
	/* In whole seconds, as services count: the manifest says no less than they do. */
	next->until_ns = (until + w->lock_for_ns / LOCK_SHARE) / SECOND_NS * SECOND_NS + SECOND_NS;
	w->extend = true;
}

static void data_begin(struct snapshot_writer *w)
{
	retention_decide_next(w);
	map_begin(w);
	set_phase(w, SEAL_DATA);
	seal_advance(w);
}

/* A window of the pacer's was judged. */
static bool pace_judged(struct pacer *pacer)
{
	struct snapshot_writer *w = container_of(pacer, struct snapshot_writer, pacer);

	env_defer(w->env, &w->nudge);
	return w->phase >= SEAL_LOOK && w->phase <= SEAL_DATA;
}

/* All is known that the cut needs: whoever prepares for it is asked to. Writes cost more from the cut on, so what
 * clients get without it is taken before. */
static void cut_ask(struct snapshot_writer *w)
{
	w->pacing = !w->given_up && pacer_wait_ns(&w->pacer) == UINT64_MAX;
	if (w->pacing)
		return;
	w->waiting++;
	w->asked = true;
	if (w->prepare && !w->given_up)
		w->prepare(w->prepare_context, w);
	else
		snapshot_cut(w, 0, "");
}

static void ready(struct snapshot_writer *w)
{
	set_phase(w, SEAL_READY);
	cut_ask(w);
}

int snapshot_cut(struct snapshot_writer *w, int error, const char *why)
{
	assert(w->phase == SEAL_READY || w->phase == SEAL_UNDO);
	assert(w->asked && !w->cut);
	w->asked = false;
	w->waiting--;
	if (error)
		seal_fail(w, error, "%s", why);
	if (!w->error && !check_volume(w))
		cut_take(w);
	env_defer(w->env, &w->nudge);
	return w->error;
}

const struct id128 *snapshot_writer_id(const struct snapshot_writer *writer)
{
	return &writer->next->info.id;
}

/* ---- the claim ------------------------------------------------------------------------------ */

/* It is not there any more; or it was remembered, and is not the newest. */
static bool base_has_changed(const struct snapshot_writer *w, const struct names *names, char *why)
{
	const struct id128 *base = &w->base->info.id;

	if (!refs_have(names->refs, names->count, base)) {
		why_set(why, 0, "the snapshot before it was deleted meanwhile");
		return true;
	}
	if (w->trusted && !id128_equal(&names->refs[names->count - 1].snapshot, base)) {
		why_set(why, 0, "another node is writing snapshots of this volume too");
		return true;
	}
	return false;
}

static void claim_confirmed(void *context, struct names *names, int error, const char *why)
{
	struct snapshot_writer *w = context;
	char reason[WHY_BYTES];

	w->waiting--;
	if (error)
		seal_fail(w, error, "%s", why);
	w->relook = !w->error && base_has_changed(w, names, reason);
	if (w->relook)
		seal_fail(w, -ESTALE, "volume %s: %s", volume_name(w->volume), reason);
	if (w->error)
		seal_advance(w);
	else
		ready(w);
}

static void claim_put(struct env_op *op, int64_t result)
{
	struct snapshot_writer *w = container_of(op, struct snapshot_writer, claim_op);

	w->waiting--;
	if (result < 0)
		seal_fail(w, (int)result, "%s: %s", w->claim_name, store_strerror((int)result));
	if (w->error) {
		seal_advance(w);
	} else if (!w->base) {
		ready(w);
	} else {
		w->waiting++;
		names_list_since(w->repo->store, &w->repo->volume,
				 w->repo->store->lists_cost ? w->base->info.sequence : 0,
				 claim_confirmed, w);
	}
}

/* Takes the next sequence number, on disk before anything of it is in the store, so that it is never used
 * twice; and says what is going to be written and shared. */
static void claim_begin(struct snapshot_writer *w)
{
	const struct id128 none = {{0}};
	struct volume_state state;
	struct snapfmt_ref ref;
	uint64_t sequence;
	int error;

	set_phase(w, SEAL_CLAIM);
	volume_get_state(w->volume, &state);
	sequence = state.snapshot_sequence;
	if (w->base && w->base->info.sequence > sequence)
		sequence = w->base->info.sequence;
	if (w->names.highest > sequence)
		sequence = w->names.highest;
	state.snapshot_sequence = w->next->info.sequence = sequence + 1;
	if (id128_is_zero(&state.writer))
		env_random(w->env, &state.writer, sizeof(state.writer));
	if (w->base)
		w->next->parent = w->base->info.id;
	error = volume_set_state(w->volume, &state);
	if (error) {
		seal_fail(w, error, "volume %s: state not stored: %s", volume_name(w->volume),
			  strerror(-error));
		seal_advance(w);
		return;
	}
	ref = (struct snapfmt_ref){w->next->info.id, w->next->info.sequence, 0};
	w->repo->attempt = w->next->info.id;
	w->claimed_ns = env_now_ns(w->env);
	w->repo->writer = state.writer;
	snapfmt_claim_encode(env_realtime_ns(w->env), w->node_name, &state.writer, &w->claim);
	snapfmt_claim_name(&w->repo->volume, &ref, w->base ? &w->base->info.id : &none,
			   w->claim_name);
	w->claimed = true;
	w->waiting++;
	w->claim_iov = (struct iovec){&w->claim, sizeof(w->claim)};
	w->claim_op.done = claim_put;
	w->repo->store->ops->put(w->repo->store, &w->claim_op, w->claim_name, &w->claim_iov, 1);
}

static void claim_dropped(struct env_op *op, int64_t result)
{
	struct snapshot_writer *w = container_of(op, struct snapshot_writer, claim_op);

	w->waiting--;
	if (result < 0)
		env_log(w->env, ENV_LOG_WARNING, "volume %s: %s: not deleted: %s",
			volume_name(w->volume), w->claim_name, store_strerror((int)result));
	seal_advance(w);
}

/* Collectors need not heed it any more; or only when what may be on its way has arrived. */
static void claim_drop(struct snapshot_writer *w, bool now)
{
	if (!w->claimed)
		return;
	w->claimed = false;
	memset(&w->repo->attempt, 0, sizeof(w->repo->attempt));
	if (!now) {
		w->repo->stale_from_ns = env_now_ns(w->env) + CLAIM_QUIET_NS;
		return;
	}
	w->waiting++;
	w->claim_op.done = claim_dropped;
	w->repo->store->ops->delete (w->repo->store, &w->claim_op, w->claim_name);
}

/* ---- looking for the snapshot before -------------------------------------------------------- */

static void base_look(struct snapshot_writer *w);

/* The newest one cannot be relied on: the one before it is tried, and everything compared. */
static void base_leave(struct snapshot_writer *w, const char *why)
{
	env_log(w->env, ENV_LOG_WARNING, "volume %s: snapshot to compare with: %s",
		volume_name(w->volume), why);
	w->candidate--;
	base_look(w);
}

/* What is missing now would be missing in every snapshot to come. */
static void base_counted(void *context, int error, const char *why)
{
	struct snapshot_writer *w = context;

	w->waiting--;
	if (error && error != -EBADMSG)
		seal_fail(w, error, "%s", why);
	if (w->error) {
		seal_advance(w);
		return;
	}
	if (error) {
		manifest_free(w->base);
		w->base = NULL;
		base_leave(w, why);
		return;
	}
	claim_begin(w);
}

static void base_loaded(void *context, struct manifest *manifest, int error, const char *why)
{
	struct snapshot_writer *w = context;

	w->waiting--;
	if (w->error || (error && error != -EBADMSG && error != -ENOENT)) {
		manifest_free(manifest);
		seal_fail(w, error, "%s", why);
		seal_advance(w);
		return;
	}
	if (error) {
		base_leave(w, why);
		return;
	}
	if (manifest->info.size_bytes > volume_size_bytes(w->volume)) {
		manifest_free(manifest); /* not this volume any more, whatever its uuid says */
		claim_begin(w);
		return;
	}
	w->base = manifest;
	w->counted_ns = env_now_ns(w->env);
	w->waiting++;
	inventory_check(w->repo->store, manifest, base_counted, w);
}

/* Loads the newest manifest below w->candidate. */
static void base_look(struct snapshot_writer *w)
{
	if (w->error) {
		seal_advance(w);
		return;
	}
	if (!w->candidate) {
		claim_begin(w);
		return;
	}
	w->waiting++;
	manifest_load(w->repo->store, &w->repo->volume, &w->names.refs[w->candidate - 1],
		      base_loaded, w);
}

/* What would be written now would land below the mount point. */
static bool is_mount_missing(struct snapshot_writer *w, const struct volume_state *state)
{
	char id[ID128_TEXT_BYTES];

	if (w->names.count || !w->repo->store->blank || id128_is_zero(&state->snapshot))
		return false;
	id128_format(&state->snapshot, id);
	seal_fail(w, -ENOENT,
		  "volume %s: store %s is empty, but snapshot %.8s was stored here: is it mounted? "
		  "(a new, empty one is taken as soon as any file lies in it)",
		  volume_name(w->volume), w->repo->store->url, id);
	return true;
}

static void look_listed(void *context, struct names *names, int error, const char *why)
{
	struct snapshot_writer *w = context;
	struct volume_state state;

	w->waiting--;
	if (error)
		seal_fail(w, error, "%s", why);
	if (w->error) {
		seal_advance(w);
		return;
	}
	w->names = *names;
	*names = (struct names){.count = 0};
	volume_get_state(w->volume, &state);
	if (is_mount_missing(w, &state)) {
		seal_advance(w);
		return;
	}
	w->candidate = w->retried ? 0 : w->names.count;
	base_look(w);
}

/* Nothing is listed: the base is what was confirmed last. */
static bool known_take(struct snapshot_writer *w, const struct volume_state *state)
{
	struct manifest *known = w->known;

	w->known = NULL;
	if (!known || w->retried || !id128_equal(&known->info.id, &state->snapshot) ||
	    known->info.size_bytes != volume_size_bytes(w->volume) ||
	    env_now_ns(w->env) - w->counted_ns > COUNT_EVERY_NS) {
		manifest_free(known);
		return false;
	}
	w->base = known;
	w->trusted = true;
	return true;
}

static void known_begin(void *context)
{
	struct snapshot_writer *w = context;

	w->waiting--;
	if (w->error)
		seal_advance(w);
	else
		claim_begin(w);
}

static uint64_t requests_of(const struct snapshot_writer *w)
{
	struct store_counts c;

	store_counts(w->repo->store, &c);
	return c.puts + c.gets + c.heads + c.lists + c.deletes;
}

static void seal_begin(struct snapshot_writer *w)
{
	struct volume_state state;

	w->error = 0;
	w->why[0] = '\0';
	w->base_damaged = w->trusted = w->relook = false;
	w->manifest_sent = false;
	w->requests_before = requests_of(w);
	w->full = false;
	w->progress = (struct snapshot_progress){.started_ns = env_now_ns(w->env)};
	set_phase(w, SEAL_LOOK);
	w->pacing = false;
	if (!w->given_up)
		pacer_begin_looking(&w->pacer);
	if (check_volume(w)) {
		env_defer(w->env, &w->nudge);
		return;
	}
	w->waiting++;
	volume_get_state(w->volume, &state);
	if (known_take(w, &state)) {
		call_later(w->env, known_begin, w);
		return;
	}
	names_list(w->repo->store, &w->repo->volume, look_listed, w);
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
	cut_end(w, !error);
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
		env_log(w->env, ENV_LOG_WARNING, "volume %s: older snapshots stay: %s",
			volume_name(w->volume), result->why);
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

	if (w->given_up || retention_is_empty(&w->policy))
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

static void manifest_put_done(struct env_op *op, int64_t result)
{
	struct snapshot_writer *w = container_of(op, struct snapshot_writer, manifest_op);

	w->waiting--;
	free(w->manifest_data);
	w->manifest_data = NULL;
	if (result < 0)
		seal_fail(w, (int)result, "%s: %s", w->manifest_name, store_strerror((int)result));
	if (w->error) {
		seal_advance(w);
		return;
	}
	if (MUTATE(snapshot_manifest_first))
		map_flush(w);
	note_success(w);
	set_phase(w, SEAL_PRUNE);
	w->prune = prune_is_due(w);
	claim_drop(w, w->retries == store_retries(w) && !w->repo->store->list_lag_ns);
	seal_advance(w);
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
	uint64_t requests = requests_of(w) - w->requests_before;

	w->next->info.requests =
		requests ? (uint32_t)requests + 2 : 0; /* its own put, and the end of the claim */
	w->manifest_work = (struct env_work){.run = manifest_run, .done = manifest_encoded};
	w->waiting++;
	env_work_submit(w->env, &w->manifest_work);
}

static void shared_retained(void *context, int error, const char *why)
{
	struct snapshot_writer *w = context;

	w->waiting--;
	w->base_damaged = error == -ENOENT;
	if (error)
		seal_fail(w, error, "volume %s: %s", volume_name(w->volume), why);
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

	w->waiting--;
	if (w->error) {
		seal_advance(w);
	} else if (w->extend) {
		w->waiting++;
		retain_shared(w->repo->store, w->next, shared_retained, w);
	} else {
		manifest_make(w);
	}
}

static void manifest_start(struct snapshot_writer *w)
{
	set_phase(w, SEAL_MANIFEST);
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
	buf_pool_free(w->pool);
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

	cut_end(w, false);
	if (may_try_again(w)) {
		char label[SNAPSHOT_NAME_MAX];

		env_log(w->env, ENV_LOG_WARNING, "volume %s: %s: the snapshot is taken anew%s",
			volume_name(w->volume), w->why, w->relook ? "" : ", complete in itself");
		memcpy(label, w->next->info.label, sizeof(label));
		w->retried = !w->relook;
		w->tries++;
		run_free(w);
		w->next = next_new(w, label);
		seal_begin(w);
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
	set_phase(w, SEAL_IDLE);
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
	claim_drop(w, false);
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
		w->manifest_iov = (struct iovec){(void *)(uintptr_t) "deleted\n", 8};
		snapfmt_mark_name(&w->repo->volume, &ref, w->manifest_name);
		w->repo->store->ops->put(w->repo->store, &w->manifest_op, w->manifest_name,
					 &w->manifest_iov, 1);
		return;
	}
	claim_drop(w, true);
	if (!w->waiting)
		finish(w);
}

void seal_advance(struct snapshot_writer *w)
{
	if (w->phase == SEAL_IDLE)
		return; /* a nudge that came too late */
	if (w->error && w->phase != SEAL_UNDO && w->phase != SEAL_PRUNE)
		set_phase(w, SEAL_UNDO);
	switch (w->phase) {
	case SEAL_READY:
		if (w->cut)
			data_begin(w);
		else if (w->pacing)
			cut_ask(w);
		return;
	case SEAL_DATA:
		map_pump(w);
		if (w->error) {
			seal_advance(w);
			return;
		}
		if (!map_drained(w))
			return;
		set_phase(w, SEAL_FLUSH);
		if (MUTATE(snapshot_finish_cut_early))
			cut_end(w, true);
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
	const unsigned counts[3] = {0, SEAL_BATCHES, SEAL_BATCHES};
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
	w->pacer.judged = pace_judged;
	pacer_init(&w->pacer);
	pacer_set(&w->pacer, config->latency_percent, config->min_rate);
	w->pack_bytes = config->pack_bytes ? config->pack_bytes : PACK_BYTES;
	if (w->pack_bytes > PACK_BYTES_MAX)
		w->pack_bytes = PACK_BYTES_MAX;
	w->zstd_level = config->zstd_level ? config->zstd_level : 1;
	w->policy = config->policy;
	w->policy.locks |= config->lock != STORE_LOCK_NONE;
	w->lock = config->lock;
	w->lock_for_ns = config->lock_for_ns;
	w->repack_on = config->repack;
	w->prepare = config->prepare;
	w->prepare_context = config->prepare_context;
	snprintf(w->node_name, sizeof(w->node_name), "%s",
		 config->node_name ? config->node_name : "");
	w->pool = buf_pool_new(counts);
	if (!w->pool) {
		free(w);
		return NULL;
	}
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
	seal_begin(w);
}

void snapshot_create(struct snapshot_writer *writer, const char *label,
		     void (*done)(void *context, const struct snapshot_result *result),
		     void *context)
{
	create(writer, label, false, done, context);
}

void snapshot_create_given_up(struct snapshot_writer *writer, const char *node,
			      void (*done)(void *context, const struct snapshot_result *result),
			      void *context)
{
	char label[SNAPSHOT_NAME_MAX];

	snprintf(label, sizeof(label), "given up for %.40s", node);
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
	};
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
	assert(w->puts <= SEAL_PUTS_MAX + 2);
	for (unsigned i = 0; i < SEAL_BATCHES; i++)
		assert(!w->batches[i].page || (w->batches[i].buf && w->batches[i].page->pending));
}
