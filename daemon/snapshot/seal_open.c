/* SPDX-License-Identifier: Apache-2.0 */
/*
 * seal_open: a snapshot before its data: what it is compared with, the claim, the cut.
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
 */
#include "daemon/snapshot/seal.h"

#include "daemon/snapshot/retention.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LITTER_AGAIN_NS COUNT_EVERY_NS
#define COUNT_EVERY_NS  (24ull * 3600 * 1000000000) /* the base's objects, where that is paid for */

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

/* Its link may be down, and the primary have gone on: the newest in the store is not to be older than the one
 * before. What a history that this one left had beyond that point is no later content: it was given up. */
static bool base_is_later(const struct snapshot_info *base, const struct volume_state *state)
{
	const struct volume_generations *g = &state->generations;

	if (base->given_up || base->lsn <= state->lsn)
		return false;
	if (id128_is_zero(&base->history) || id128_equal(&base->history, &g->current))
		return true;
	for (unsigned i = 0; i < VOLUME_HISTORY; i++)
		if (id128_equal(&base->history, &g->history[i]))
			return false;
	return true;
}

/* It began a generation whenever it was started apart: all of them are given up. */
static void given_up_list(struct snapshot_writer *w, const struct volume_state *state)
{
	const struct volume_generations *g = &state->generations;
	struct id128 *list = w->next->info.given_up_before;
	unsigned count = 0;

	_Static_assert(SNAPSHOT_GIVEN_UP_MAX >= VOLUME_HISTORY, "all that is remembered");
	if (!w->given_up || id128_is_zero(&w->given_up_since) ||
	    id128_equal(&g->current, &w->given_up_since))
		return;
	for (unsigned i = 0; i < VOLUME_HISTORY && !id128_is_zero(&g->history[i]) &&
			     !id128_equal(&g->history[i], &w->given_up_since);
	     i++)
		list[count++] = g->history[i];
}

/* Without the map's being relative to the base, all that is allocated is in the cut. */
static void cut_take(struct snapshot_writer *w)
{
	struct volume_state state;
	int error = 0;

	assert(!w->cut);
	volume_get_state(w->volume, &state);
	if (w->base && state.role != VOLUME_PRIMARY && !w->given_up &&
	    base_is_later(&w->base->info, &state)) {
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
	w->next->info.history = state.generations.current;
	w->next->info.given_up = w->given_up;
	given_up_list(w, &state);
	w->progress.total_bytes = volume_cut_bytes(w->cut);
}

void seal_cut_end(struct snapshot_writer *w, bool consumed)
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
	next->until_ns = retention_until(w->next->info.created_ns, w->lock_for_ns);
	w->extend = true;
}

void seal_data_begin(struct snapshot_writer *w)
{
	retention_decide_next(w);
	map_begin(w);
	seal_set_phase(w, SEAL_DATA);
	seal_advance(w);
}

/* A window of the pacer's was judged. */
bool seal_pace_judged(struct pacer *pacer)
{
	struct snapshot_writer *w = container_of(pacer, struct snapshot_writer, pacer);

	env_defer(w->env, &w->nudge);
	return w->phase >= SEAL_LOOK && w->phase <= SEAL_DATA;
}

/* All is known that the cut needs: whoever prepares for it is asked to. Writes cost more from the cut on, so what
 * clients get without it is taken before. */
void seal_cut_ask(struct snapshot_writer *w)
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
	seal_set_phase(w, SEAL_READY);
	seal_cut_ask(w);
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
static void claim_start(struct snapshot_writer *w)
{
	const struct id128 none = {{0}};
	struct volume_state state;
	struct snapfmt_ref ref;
	uint64_t sequence;
	int error;

	seal_set_phase(w, SEAL_CLAIM);
	volume_get_state(w->volume, &state);
	sequence = state.snapshot_sequence;
	if (w->base && w->base->info.sequence > sequence)
		sequence = w->base->info.sequence;
	if (w->names.highest > sequence)
		sequence = w->names.highest;
	if (sequence == UINT64_MAX) {
		seal_fail(w, -EOVERFLOW,
			  "volume %s: there is no sequence number after that of a snapshot in the "
			  "store (ffffffffffffffff-...), which nobody can have counted up to: "
			  "remove that object",
			  volume_name(w->volume));
		seal_advance(w);
		return;
	}
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

static void refreshed(struct env_op *op, int64_t result)
{
	struct snapshot_writer *w = container_of(op, struct snapshot_writer, claim_op);

	w->waiting--;
	if (result < 0)
		seal_fail(w, (int)result, "volume %s: the store's keys: %s", volume_name(w->volume),
			  store_strerror((int)result));
	if (w->error)
		seal_advance(w);
	else
		claim_start(w);
}

/* A new data key is for the next snapshot on, not for a daemon's next start. */
static void refresh(struct snapshot_writer *w)
{
	struct store *store = w->repo->store;
	char volume[ID128_TEXT_BYTES];

	if (!store->ops->refresh) {
		claim_start(w);
		return;
	}
	id128_format(&w->repo->volume, volume);
	snprintf(w->claim_name, sizeof(w->claim_name), "%s/", volume);
	w->waiting++;
	w->claim_op.done = refreshed;
	store->ops->refresh(store, &w->claim_op, w->claim_name);
}

/* ---- what failed attempts left -------------------------------------------------------------- */

static void litter_collected(void *context, const struct snapshot_result *result)
{
	struct snapshot_writer *w = context;

	w->waiting--;
	w->litter_from_ns = 0;
	if (result->error && !w->error) {
		w->litter_from_ns = env_now_ns(w->env) + LITTER_AGAIN_NS;
		env_log(w->env, ENV_LOG_WARNING,
			"volume %s: what a failed snapshot left in the store stays for now: %s",
			volume_name(w->volume), result->why);
	}
	if (w->error)
		seal_advance(w);
	else
		refresh(w);
}

/* A process before this one may have been killed: its attempt's number is not that of a snapshot. */
static void litter_look(struct snapshot_writer *w)
{
	struct volume_state state;

	if (w->litter_looked)
		return;
	w->litter_looked = true;
	volume_get_state(w->volume, &state);
	if (state.snapshot_sequence > (w->base ? w->base->info.sequence : 0))
		w->litter_from_ns = w->repo->stale_from_ns;
}

/* What an attempt before this one put is not to wait for the next deletion: there may be none, and no room. */
static void claim_begin(struct snapshot_writer *w)
{
	litter_look(w);
	if (w->given_up || !w->litter_from_ns || env_now_ns(w->env) < w->litter_from_ns) {
		refresh(w);
		return;
	}
	w->waiting++;
	snapshot_collect(w->repo, litter_collected, w);
}

/* ---- the claim's end ------------------------------------------------------------------------ */

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
void seal_claim_drop(struct snapshot_writer *w, bool now)
{
	if (!w->claimed)
		return;
	w->claimed = false;
	memset(&w->repo->attempt, 0, sizeof(w->repo->attempt));
	if (!now)
		w->repo->stale_from_ns = env_now_ns(w->env) + CLAIM_QUIET_NS;
	if (w->error && w->next->info.objects)
		w->litter_from_ns = now ? env_now_ns(w->env) : w->repo->stale_from_ns;
	if (!now)
		return;
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
		  "volume %s: store %.100s is empty, but snapshot %.8s was stored here: is it "
		  "mounted? "
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

uint64_t seal_requests(const struct snapshot_writer *w)
{
	struct store_counts c;

	store_counts(w->repo->store, &c);
	return c.puts + c.gets + c.heads + c.lists + c.deletes;
}

void seal_open(struct snapshot_writer *w)
{
	struct volume_state state;

	w->error = 0;
	w->why[0] = '\0';
	w->base_damaged = w->trusted = w->relook = false;
	w->manifest_sent = false;
	w->requests_before = seal_requests(w);
	w->full = false;
	w->progress = (struct snapshot_progress){.started_ns = env_now_ns(w->env)};
	seal_set_phase(w, SEAL_LOOK);
	w->pacing = false;
	volume_get_state(w->volume, &state);
	if (!w->given_up && state.role == VOLUME_PRIMARY) /* else there are no clients */
		pacer_begin_looking(&w->pacer);
	if (check_volume(w)) {
		env_defer(w->env, &w->nudge);
		return;
	}
	w->waiting++;
	if (known_take(w, &state)) {
		call_later(w->env, known_begin, w);
		return;
	}
	names_list(w->repo->store, &w->repo->volume, look_listed, w);
}
