/* SPDX-License-Identifier: Apache-2.0 */
/*
 * renew: what rules or pins keep for longer than it was locked is locked on, for lock-for from now.
 *
 * All that a manifest needs, and the keys, are locked for at least as long as the manifest itself, and are so
 * before it is: so its lock, which the store knows, tells of all of it, and what the manifest says, which never
 * changes, is the least. A run that is broken off leaves locks that are too long, and is made up for by the
 * next one.
 *
 * Requests are bounded. A snapshot is due when its lock ends within half of lock-for, so at most twice in
 * that time; then its manifest is read, and the others' that are locked for long enough, to know what of it
 * they have locked already: mostly that which the newest one shares. What is left, and the manifest, is one
 * request an object.
 */
#include "daemon/snapshot/internal.h"
#include "daemon/snapshot/retention.h"

#include <stdlib.h>
#include <string.h>

#define NS_PER_S 1000000000ull
#define LOOKS    8 /* at a time */

/* ---- what is known of locks ------------------------------------------------------------------------ */

struct repo_lock {
	struct id128 snapshot;
	uint64_t until_ns;
};

static void lock_note(struct snapshot_repo *repo, const struct id128 *id, uint64_t until_ns)
{
	uint64_t now_ns = env_realtime_ns(repo->env);
	struct repo_lock *lock;
	size_t kept = 0;

	for (size_t i = 0; i < repo->lock_count; i++) {
		lock = &repo->locks[i];
		if (id128_equal(&lock->snapshot, id) && lock->until_ns > until_ns)
			until_ns = lock->until_ns;
		else if (!id128_equal(&lock->snapshot, id) && lock->until_ns > now_ns)
			repo->locks[kept++] = *lock;
	}
	repo->lock_count = kept;
	if (until_ns <= now_ns)
		return;
	lock = array_add((void **)&repo->locks, &repo->lock_count, &repo->lock_room, sizeof(*lock));
	*lock = (struct repo_lock){*id, until_ns};
}

void lock_raise(const struct snapshot_repo *repo, struct snapshot_info *info)
{
	for (size_t i = 0; i < repo->lock_count; i++)
		if (id128_equal(&repo->locks[i].snapshot, &info->id) &&
		    repo->locks[i].until_ns > info->retention.until_ns)
			info->retention.until_ns = repo->locks[i].until_ns;
}

static void manifest_name(const struct snapshot_repo *repo, const struct snapshot_info *info,
			  char name[SNAPFMT_NAME_BYTES])
{
	const struct snapfmt_ref ref = {info->id, info->sequence, 0};

	snapfmt_name(SNAPFMT_MANIFEST, &repo->volume, &ref, name);
}

/* ---- asking the store ------------------------------------------------------------------------------ */

struct looks;

struct look {
	struct env_op op;
	struct looks *looks;
	size_t index; /* in infos */
	bool busy;
	char name[SNAPFMT_NAME_BYTES];
};

struct looks {
	struct snapshot_repo *repo;
	struct snapshot_info *infos;
	const bool *wanted;
	size_t count, next;
	struct look slots[LOOKS];
	unsigned busy;
	int error;
	char why[WHY_BYTES];
	void (*done)(void *context, int error, const char *why);
	void *context;
};

static void looks_pump(struct looks *l);

static void look_done(struct env_op *op, int64_t result)
{
	struct look *look = container_of(op, struct look, op);
	struct looks *l = look->looks;
	struct snapshot_info *info = &l->infos[look->index];

	look->busy = false;
	l->busy--;
	if (result > 0 && (uint64_t)result <= UINT64_MAX / NS_PER_S) {
		lock_note(l->repo, &info->id, (uint64_t)result * NS_PER_S);
		lock_raise(l->repo, info);
	} else if (result < 0 && result != -ENOENT && !l->error) {
		l->error = why_set(l->why, (int)result, "%s: its lock cannot be looked at: %s",
				   look->name, store_strerror((int)result));
	}
	looks_pump(l);
}

static void looks_pump(struct looks *l)
{
	for (unsigned i = 0; i < LOOKS && !l->error; i++) {
		struct look *look = &l->slots[i];

		while (l->next < l->count && !l->wanted[l->next])
			l->next++;
		if (look->busy || l->next == l->count)
			continue;
		look->looks = l;
		look->index = l->next++;
		look->busy = true;
		look->op.done = look_done;
		l->busy++;
		manifest_name(l->repo, &l->infos[look->index], look->name);
		store_retained(l->repo->store, &look->op, look->name);
	}
	if (l->busy)
		return;
	l->done(l->context, l->error, l->why);
	free(l);
}

static void looks_begin(void *context)
{
	looks_pump(context);
}

void locks_look(struct snapshot_repo *repo, struct snapshot_info *infos, const bool *wanted,
		size_t count, void (*done)(void *context, int error, const char *why),
		void *context)
{
	struct looks *l = must_alloc(sizeof(*l));

	l->repo = repo;
	l->infos = infos;
	l->wanted = wanted;
	l->count = count;
	l->done = done;
	l->context = context;
	call_later(repo->env, looks_begin, l);
}

/* ---- locking on ------------------------------------------------------------------------------------ */

/* One that a manifest read so far needs. */
struct known_object {
	enum snapfmt_kind kind;
	struct snapfmt_ref ref;
	uint64_t until_ns; /* locked, at least */
};

struct renewal {
	struct snapshot_repo *repo;
	const struct snapshot_info *infos;
	const bool *due;
	size_t count, next;
	bool helping; /* reading those that are locked for long enough; then those that are due */
	struct store_retention retention; /* of what is locked on */
	uint64_t enough_ns;               /* what is locked until then is left */
	bool keys_locked;
	struct known_object *known; /* sorted */
	size_t known_count;
	struct manifest *manifest; /* being locked on */
	struct env_op op;
	char name[SNAPFMT_NAME_BYTES];
	struct renewed result;
	void (*done)(void *context, const struct renewed *renewed);
	void *context;
};

static void renewal_next(struct renewal *r);

static int known_compare(const struct known_object *known, const struct manifest_object *object)
{
	if (known->kind != object->kind)
		return known->kind < object->kind ? -1 : 1;
	return snapfmt_ref_compare(&known->ref, &object->ref);
}

/* Both lists are sorted. until_ns: as long all that the manifest needs is locked. */
static void know(struct renewal *r, const struct manifest *m, uint64_t until_ns)
{
	struct known_object *merged =
		must_alloc((r->known_count + m->object_count) * sizeof(*merged));
	size_t count = 0, i = 0;
	unsigned o = 0;

	while (i < r->known_count || o < m->object_count) {
		int order = i == r->known_count    ? 1
			    : o == m->object_count ? -1
						   : known_compare(&r->known[i], &m->objects[o]);

		if (order <= 0)
			merged[count] = r->known[i++];
		else
			merged[count] =
				(struct known_object){m->objects[o].kind, m->objects[o].ref, 0};
		if (order >= 0) {
			o++;
			if (merged[count].until_ns < until_ns)
				merged[count].until_ns = until_ns;
		}
		count++;
	}
	free(r->known);
	r->known = merged;
	r->known_count = count;
}

static struct known_object *known_find(const struct renewal *r,
				       const struct manifest_object *object)
{
	size_t low = 0, high = r->known_count;

	while (low < high) {
		size_t middle = (low + high) / 2;
		int order = known_compare(&r->known[middle], object);

		if (!order)
			return &r->known[middle];
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL; /* never of what know() was told */
}

static void renewal_fail(struct renewal *r, int error, const char *what, const char *why)
{
	if (!r->result.error)
		r->result.error = why_set(r->result.why, error, "%s%s", what, why);
}

static void manifest_over(struct renewal *r)
{
	manifest_free(r->manifest);
	r->manifest = NULL;
	renewal_next(r);
}

static void manifest_retained(struct env_op *op, int64_t result)
{
	struct renewal *r = container_of(op, struct renewal, op);

	char what[WHY_BYTES];

	if (result < 0) {
		why_set(what, 0, "%s: not locked for longer: ", r->name);
		renewal_fail(r, (int)result, what, store_strerror((int)result));
	} else {
		r->result.snapshots++;
		r->result.objects++;
		lock_note(r->repo, &r->manifest->info.id, r->retention.until_ns);
	}
	manifest_over(r);
}

static void objects_retained(void *context, int error, const char *why)
{
	struct renewal *r = context;
	const struct manifest *m = r->manifest;
	uint64_t least_ns = r->retention.until_ns;

	if (error) {
		renewal_fail(r, error, "", why);
		manifest_over(r);
		return;
	}
	r->keys_locked = true;
	for (unsigned i = 0; i < m->object_count; i++) {
		struct known_object *known = known_find(r, &m->objects[i]);

		if (known->until_ns < r->enough_ns)
			known->until_ns = r->retention.until_ns;
		if (known->until_ns < least_ns)
			least_ns = known->until_ns;
	}
	/* No longer than what it needs. */
	r->retention.until_ns = least_ns;
	manifest_name(r->repo, &m->info, r->name);
	r->op.done = manifest_retained;
	store_retain(r->repo->store, &r->op, r->name, &r->retention);
}

static bool object_is_wanted(void *context, const struct manifest_object *object)
{
	struct renewal *r = context;
	bool wanted = known_find(r, object)->until_ns < r->enough_ns;

	r->result.objects += wanted;
	return wanted;
}

static void manifest_loaded(void *context, struct manifest *manifest, int error, const char *why)
{
	struct renewal *r = context;
	const struct snapshot_info *info = &r->infos[r->next - 1];

	if (error || r->helping) {
		/* Deleted meanwhile; and of those that would only help verification tells. */
		if (error && error != -ENOENT && !r->helping)
			renewal_fail(r, error, "", why);
		if (!error)
			know(r, manifest, info->retention.until_ns);
		manifest_free(manifest);
		renewal_next(r);
		return;
	}
	r->manifest = manifest;
	know(r, manifest, info->retention.until_ns);
	r->retention = (struct store_retention){info->retention.lock, r->result.until_ns};
	retain_objects(r->repo->store, manifest, &r->retention, !r->keys_locked, object_is_wanted,
		       objects_retained, r);
}

static void renewal_end(struct renewal *r)
{
	r->done(r->context, &r->result);
	free(r->known);
	free(r);
}

static void renewal_next(struct renewal *r)
{
	while (r->next < r->count) {
		const struct snapshot_info *info = &r->infos[r->next++];
		const struct snapfmt_ref ref = {info->id, info->sequence, 0};
		bool helps = info->retention.lock && info->retention.until_ns >= r->enough_ns;

		if (r->helping ? !helps : !r->due[r->next - 1])
			continue;
		manifest_load(r->repo->store, &r->repo->volume, &ref, manifest_loaded, r);
		return;
	}
	if (r->helping) {
		r->helping = false;
		r->next = 0;
		renewal_next(r);
	} else {
		renewal_end(r);
	}
}

static void renewal_begin(void *context)
{
	renewal_next(context);
}

void locks_renew(struct snapshot_repo *repo, uint64_t lock_for_ns,
		 const struct snapshot_info *infos, const bool *due, size_t count,
		 void (*done)(void *context, const struct renewed *renewed), void *context)
{
	uint64_t now_ns = env_realtime_ns(repo->env);
	struct renewal *r = must_alloc(sizeof(*r));

	r->repo = repo;
	r->infos = infos;
	r->due = due;
	r->count = count;
	r->helping = true;
	r->enough_ns = now_ns + lock_for_ns / 2;
	r->result.until_ns = retention_until(now_ns, lock_for_ns);
	r->done = done;
	r->context = context;
	call_later(repo->env, renewal_begin, r);
}
