/* SPDX-License-Identifier: Apache-2.0 */
/*
 * collect: deletes snapshots, and what no snapshot needs any more. Only manifests are read.
 *
 * No locks, any number at once, beside any number of writers: protocol/snapshot.md, section 7, says why
 * this order is safe wherever it is interrupted. A snapshot is deleted by a mark. Then objects are listed,
 * then claims, then manifests. Marked ones that no claim protects are closed: nobody can begin to share
 * with them any more, and who did has its manifest among those listed last. They go, and then every object
 * listed that no other manifest needs and that is not of an attempt under way. If one manifest that stays
 * cannot be read, nothing is deleted: what it needs is not known.
 *
 * What is locked is left, counted, and taken by a later run. All that a manifest needs is locked for at
 * least as long as it is, so a snapshot that is left is whole; it is looked at, and the store is asked for its
 * lock, before it is marked.
 */
#include "daemon/snapshot/internal.h"
#include "daemon/snapshot/retention.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS      8
#define ROUNDS_MAX 5

struct thing {
	enum snapfmt_kind kind;
	struct snapfmt_ref ref;
	uint64_t size_bytes;
	bool pinned; /* of those marked: since then, maybe */
	bool closed; /* of those marked: nobody can begin to share with it any more; who does is listed */
};

struct things {
	struct thing *list;
	size_t count, room;
};

struct collect;

struct slot {
	struct env_op op;
	struct collect *collect;
	struct thing thing;
	char name[SNAPFMT_NAME_BYTES];
	bool busy;
};

enum action { ACTION_MARK, ACTION_DELETE, ACTION_UNMARK };

struct collect {
	struct snapshot_repo *repo;
	struct id128 delete_id;                    /* zero: none */
	bool pinned_by_operator, pinned_by_others; /* that one */
	struct id128 *forget; /* those to go if all others can be read; NULL: none */
	size_t forget_count;
	bool dry_run;
	void (*done)(void *context, const struct snapshot_result *result);
	void *context;
	struct snapshot_result result;

	enum action action; /* what is done to all of todo; then follows next_step */
	void (*next_step)(struct collect *c);
	struct things todo;
	size_t todo_next;
	struct slot slots[SLOTS];
	unsigned busy;

	struct names names;
	size_t next; /* manifest to load */
	struct snapfmt_ref loading;
	struct snapshot_info looked; /* one to go whose lock is asked for */
	bool checking; /* loading those that a prune keeps; else all that stay, for what they need */
	bool manifest_stays;   /* it is locked, though it does not say so */
	struct things marked;  /* manifests: known as marked before the claims are listed */
	struct things objects; /* packs and maps, listed before the claims */
	struct claims claims;
	unsigned rounds;
	struct manifest_object *needed; /* sorted */
	size_t needed_count, needed_room;
	struct env_op list_op;
	struct env_timer lag_timer;
	enum snapfmt_kind listing;
	char prefix[SNAPFMT_NAME_BYTES];
};

static void collect_finish(struct collect *c)
{
	c->repo->under_way--;
	if (c->marked.count)
		repo_changed(c->repo);
	env_timer_stop(c->repo->env, &c->lag_timer);
	names_free(&c->names);
	free(c->todo.list);
	free(c->marked.list);
	free(c->objects.list);
	free(c->claims.list);
	free(c->forget);
	free(c->needed);
	c->done(c->context, &c->result);
	free(c);
}

static void collect_fail(struct collect *c, int error, const char *what, const char *why)
{
	if (!c->result.error)
		c->result.error = why_set(c->result.why, error, "%s%s", what, why);
}

static void things_add(struct things *things, enum snapfmt_kind kind, const struct snapfmt_ref *ref,
		       uint64_t size_bytes)
{
	struct thing *thing =
		array_add((void **)&things->list, &things->count, &things->room, sizeof(*thing));

	*thing = (struct thing){.kind = kind, .ref = *ref, .size_bytes = size_bytes};
}

/* ---- marking, deleting ------------------------------------------------------------------------- */

static void pump(struct collect *c);

static void slot_done(struct env_op *op, int64_t result)
{
	struct slot *slot = container_of(op, struct slot, op);
	struct collect *c = slot->collect;
	char what[WHY_BYTES];

	slot->busy = false;
	c->busy--;
	if (result == -STORE_LOCKED) {
		c->result.locked_objects++;
		c->manifest_stays |= slot->thing.kind == SNAPFMT_MANIFEST;
	} else if (result < 0 && !(c->action == ACTION_MARK && result == -EEXIST)) {
		why_set(what, 0, "%s: %s: ", slot->name,
			c->action == ACTION_MARK ? "cannot be put" : "not deleted");
		collect_fail(c, (int)result, what, store_strerror((int)result));
	} else if (c->action == ACTION_DELETE) {
		c->result.deleted_objects++;
		c->result.freed_bytes += slot->thing.size_bytes;
	}
	pump(c);
}

static void slot_start(struct collect *c, struct slot *slot)
{
	const struct iovec *iov = mark_content(c->repo->store);
	struct store *store = c->repo->store;

	slot->busy = true;
	slot->collect = c;
	slot->thing = c->todo.list[c->todo_next++];
	slot->op.done = slot_done;
	c->busy++;
	if (c->action == ACTION_DELETE)
		snapfmt_name(slot->thing.kind, &c->repo->volume, &slot->thing.ref, slot->name);
	else
		snapfmt_mark_name(&c->repo->volume, &slot->thing.ref, slot->name);
	if (c->action == ACTION_MARK)
		store->ops->put(store, &slot->op, slot->name, iov, 1);
	else
		store->ops->delete (store, &slot->op, slot->name);
}

static void pump(struct collect *c)
{
	for (unsigned i = 0; i < SLOTS; i++)
		if (!c->slots[i].busy && c->todo_next < c->todo.count && !c->result.error)
			slot_start(c, &c->slots[i]);
	if (c->busy)
		return;
	if (c->result.error)
		collect_finish(c);
	else
		c->next_step(c);
}

static void do_all(struct collect *c, enum action action, void (*next_step)(struct collect *c))
{
	c->action = action;
	c->next_step = next_step;
	c->todo_next = 0;
	if (c->dry_run) {
		for (size_t i = 0; action == ACTION_DELETE && i < c->todo.count; i++) {
			c->result.deleted_objects++;
			c->result.freed_bytes += c->todo.list[i].size_bytes;
		}
		c->todo_next = c->todo.count;
	}
	pump(c);
}

/* ---- what goes --------------------------------------------------------------------------------- */

static bool is_closed(const struct collect *c, const struct snapfmt_ref *ref)
{
	for (size_t i = 0; i < c->marked.count; i++)
		if (!snapfmt_ref_compare(&c->marked.list[i].ref, ref))
			return c->marked.list[i].closed;
	return false;
}

/* By the claims there are. What is open here stays; else it cannot be opened any more. */
static void close_marked(struct collect *c)
{
	for (size_t i = 0; i < c->marked.count; i++) {
		struct thing *thing = &c->marked.list[i];
		const struct id128 *id = &thing->ref.snapshot;

		thing->closed = !thing->pinned && !claims_protect(&c->claims, id) &&
				(c->dry_run ? !snapshot_is_held(c->repo, id)
					    : repo_may_delete(c->repo, id));
	}
}

/* Marks without a manifest go too. */
static void unmark(struct collect *c)
{
	c->todo.count = 0;
	for (size_t i = 0; i < c->marked.count; i++)
		if (c->marked.list[i].closed)
			things_add(&c->todo, SNAPFMT_MANIFEST, &c->marked.list[i].ref, 0);
	do_all(c, ACTION_UNMARK, collect_finish);
}

/* Those of which no snapshot needs much. */
static void note_sparse(struct collect *c)
{
	size_t room = 0;

	free(c->repo->sparse);
	c->repo->sparse = NULL;
	c->repo->sparse_count = 0;
	for (size_t i = 0; i < c->needed_count; i++) {
		struct snapfmt_ref *ref;

		if (!repack_pays(&c->needed[i]))
			continue;
		ref = array_add((void **)&c->repo->sparse, &c->repo->sparse_count, &room,
				sizeof(*ref));
		*ref = c->needed[i].ref;
	}
}

static void delete_objects(struct collect *c)
{
	if (c->manifest_stays) { /* and with it what it needs */
		if (!id128_is_zero(&c->delete_id))
			collect_fail(c, -EPERM,
				     "the snapshot is locked by the service (object lock)", "");
		collect_finish(c);
		return;
	}
	c->todo.count = 0;
	for (size_t i = 0; i < c->objects.count; i++) {
		const struct thing *thing = &c->objects.list[i];
		struct manifest_object want = {.kind = thing->kind, .ref = thing->ref};

		if (claims_protect_own(&c->claims, &thing->ref.snapshot) ||
		    (c->needed_count && bsearch(&want, c->needed, c->needed_count, sizeof(want),
						manifest_object_compare)))
			continue;
		things_add(&c->todo, thing->kind, &thing->ref, thing->size_bytes);
	}
	note_sparse(c);
	do_all(c, ACTION_DELETE, unmark);
}

static void delete_manifests(struct collect *c)
{
	c->todo.count = 0;
	for (size_t i = 0; i < c->names.gone_count; i++)
		if (is_closed(c, &c->names.gone[i]))
			things_add(&c->todo, SNAPFMT_MANIFEST, &c->names.gone[i],
				   c->names.gone_sizes[i]);
	for (size_t i = 0; c->dry_run && i < c->names.count; i++)
		if (is_closed(c, &c->names.refs[i]))
			things_add(&c->todo, SNAPFMT_MANIFEST, &c->names.refs[i],
				   c->names.sizes[i]);
	do_all(c, ACTION_DELETE, delete_objects);
}

/* ---- what is needed ---------------------------------------------------------------------------- */

static void manifests_next(struct collect *c);
static void claims_look(struct collect *c);

static void need(struct collect *c, const struct manifest *manifest)
{
	size_t kept = 0;

	for (unsigned i = 0; i < manifest->object_count; i++) {
		struct manifest_object *object = array_add((void **)&c->needed, &c->needed_count,
							   &c->needed_room, sizeof(*object));

		*object = manifest->objects[i];
	}
	if (!c->needed_count)
		return;
	qsort(c->needed, c->needed_count, sizeof(*c->needed), manifest_object_compare);
	for (size_t i = 0; i < c->needed_count; i++)
		if (!kept || manifest_object_compare(&c->needed[kept - 1], &c->needed[i]))
			c->needed[kept++] = c->needed[i];
		else if (c->needed[kept - 1].live_bytes < c->needed[i].live_bytes)
			c->needed[kept - 1].live_bytes = c->needed[i].live_bytes;
	c->needed_count = kept;
}

static struct id128 *forgotten(const struct collect *c, const struct snapfmt_ref *ref)
{
	for (size_t i = 0; i < c->forget_count; i++)
		if (id128_equal(&c->forget[i], &ref->snapshot))
			return &c->forget[i];
	return NULL;
}

/* Asks until when c->looked is locked, where its manifest does not know: it may have been locked on since. */
static void lock_look(struct collect *c, void (*looked)(void *context, int error, const char *why))
{
	static const bool wanted = true;
	char text[64];

	lock_raise(c->repo, &c->looked);
	if (!c->looked.retention.lock ||
	    retention_is_locked(&c->looked, env_realtime_ns(c->repo->env), text))
		looked(c, 0, "");
	else
		locks_look(c->repo, &c->looked, &wanted, 1, looked, c);
}

/* One to be forgotten that the service would keep stays a snapshot. */
static void take_back_if_locked(void *context, int error, const char *why)
{
	struct collect *c = context;
	struct id128 *id = forgotten(c, &c->loading);
	char text[64];

	if (error) {
		collect_fail(c, error, "", why);
		collect_finish(c);
		return;
	}
	if (retention_is_locked(&c->looked, env_realtime_ns(c->repo->env), text)) {
		c->result.locked_objects++;
		*id = c->forget[--c->forget_count];
	}
	manifests_next(c);
}

static void manifest_loaded(void *context, struct manifest *manifest, int error, const char *why)
{
	struct collect *c = context;

	if (c->checking && forgotten(c, &c->loading)) {
		/* One that cannot be read may go all the same. */
		c->looked = manifest ? manifest->info : (struct snapshot_info){.sequence = 0};
		manifest_free(manifest);
		lock_look(c, take_back_if_locked);
		return;
	}
	if (error == -ENOENT && !c->checking && ++c->rounds < ROUNDS_MAX) {
		claims_look(
			c); /* another collector took it: who shares with it is to be seen anew */
		return;
	}
	if (error) {
		collect_fail(c, error,
			     c->checking
				     ? "a snapshot to be kept is damaged; no older one is deleted: "
				     : "nothing is collected, as one cannot know what this needs: ",
			     why);
		collect_finish(c);
		return;
	}
	if (!c->checking && !(MUTATE(snapshot_collect_ignores_newest) && c->next == c->names.count))
		need(c, manifest);
	manifest_free(manifest);
	manifests_next(c);
}

static void forget_mark(struct collect *c);

/* First the snapshots, then those that are marked and not yet gone. */
static void manifests_next(struct collect *c)
{
	const struct names *names = &c->names;

	while (c->next < names->count + names->gone_count) {
		size_t i = c->next++;
		const struct snapfmt_ref *ref =
			i < names->count ? &names->refs[i] : &names->gone[i - names->count];

		if (c->checking ? i >= names->count ||
					  (forgotten(c, ref) && !c->repo->store->ops->retain)
				: is_closed(c, ref))
			continue;
		c->loading = *ref;
		manifest_load(c->repo->store, &c->repo->volume, ref, manifest_loaded, c);
		return;
	}
	if (c->checking)
		forget_mark(c);
	else
		delete_manifests(c);
}

static void needed_listed(void *context, struct names *names, int error, const char *why)
{
	struct collect *c = context;

	if (error) {
		collect_fail(c, error, "", why);
		collect_finish(c);
		return;
	}
	names_free(&c->names);
	c->names = *names;
	*names = (struct names){.count = 0};
	c->checking = false;
	c->next = 0;
	c->needed_count = 0;
	manifests_next(c);
}

static void claims_looked(void *context, const struct claims *claims, int error, const char *why)
{
	struct collect *c = context;

	if (error) {
		collect_fail(c, error, "", why);
		collect_finish(c);
		return;
	}
	free(c->claims.list);
	c->claims.count = claims->count;
	c->claims.list = must_alloc(claims->count * sizeof(*claims->list));
	if (claims->count)
		memcpy(c->claims.list, claims->list, claims->count * sizeof(*claims->list));
	close_marked(c);
	names_list(c->repo->store, &c->repo->volume, needed_listed, c);
}

/* Who pinned one after it was looked at sees the mark, or is seen here. */
static void pins_each(void *context, const struct store_object *object)
{
	struct collect *c = context;
	struct id128 snapshot, holder;

	if (!pin_is_of(c->repo, object, &snapshot, &holder))
		return;
	for (size_t i = 0; i < c->marked.count; i++)
		c->marked.list[i].pinned |= id128_equal(&c->marked.list[i].ref.snapshot, &snapshot);
}

static void pins_listed(struct env_op *op, int64_t result)
{
	struct collect *c = container_of(op, struct collect, list_op);
	char what[WHY_BYTES];

	for (size_t i = 0; i < c->marked.count; i++)
		if (c->marked.list[i].pinned &&
		    id128_equal(&c->marked.list[i].ref.snapshot, &c->delete_id))
			collect_fail(c, -EPERM, c->prefix,
				     ": the snapshot was pinned just now: it goes when it is "
				     "unpinned");
	if (result < 0) {
		why_set(what, 0, "%s: cannot be listed: ", c->prefix);
		collect_fail(c, (int)result, what, store_strerror((int)result));
	}
	if (c->result.error)
		collect_finish(c);
	else
		claims_list(c->repo, claims_looked, c);
}

static void pins_list(struct collect *c)
{
	for (size_t i = 0; i < c->marked.count; i++)
		c->marked.list[i].pinned = false;
	if (!c->marked.count) {
		claims_list(c->repo, claims_looked, c);
		return;
	}
	c->list_op.done = pins_listed;
	snapfmt_pin_name(&c->repo->volume, NULL, NULL, c->prefix);
	c->repo->store->ops->list(c->repo->store, &c->list_op, c->prefix, pins_each, c);
}

static void lag_over(struct env_timer *timer)
{
	pins_list(container_of(timer, struct collect, lag_timer));
}

/* Where lists are late by so much at most: twice that after the marks nobody overlooks them any more, and
 * the claims of all who did are listed. */
static void claims_look(struct collect *c)
{
	if (!c->repo->store->list_lag_ns) {
		pins_list(c);
		return;
	}
	c->lag_timer.fire = lag_over;
	env_timer_start(c->repo->env, &c->lag_timer, 2 * c->repo->store->list_lag_ns);
}

/* ---- objects ----------------------------------------------------------------------------------- */

static void objects_list(struct collect *c, enum snapfmt_kind kind);

static void objects_each(void *context, const struct store_object *object)
{
	struct collect *c = context;
	enum snapfmt_kind kind;
	struct id128 volume;
	struct snapfmt_ref ref;

	if (snapfmt_name_parse(object->name, &kind, &volume, &ref) && kind == c->listing &&
	    id128_equal(&volume, &c->repo->volume))
		things_add(&c->objects, kind, &ref, object->size_bytes);
}

static void objects_listed(struct env_op *op, int64_t result)
{
	struct collect *c = container_of(op, struct collect, list_op);
	char what[WHY_BYTES];

	if (result < 0) {
		why_set(what, 0, "%s: cannot be listed: ", c->prefix);
		collect_fail(c, (int)result, what, store_strerror((int)result));
		collect_finish(c);
		return;
	}
	if (c->listing == SNAPFMT_PACK)
		objects_list(c, SNAPFMT_MAPS);
	else
		claims_look(c);
}

static void objects_list(struct collect *c, enum snapfmt_kind kind)
{
	c->listing = kind;
	c->list_op.done = objects_listed;
	snapfmt_prefix(kind, &c->repo->volume, c->prefix);
	c->repo->store->ops->list(c->repo->store, &c->list_op, c->prefix, objects_each, c);
}

static void objects_begin(struct collect *c)
{
	repo_changed(c->repo);
	objects_list(c, SNAPFMT_PACK);
}

/* ---- which snapshots go ------------------------------------------------------------------------ */

/* Those in todo are as good as deleted when their marks are there. */
static void mark_all(struct collect *c)
{
	for (size_t i = 0; i < c->todo.count; i++)
		things_add(&c->marked, SNAPFMT_MANIFEST, &c->todo.list[i].ref, 0);
	do_all(c, ACTION_MARK, objects_begin);
}

static void forget_mark(struct collect *c)
{
	for (size_t i = 0; i < c->names.count; i++)
		if (forgotten(c, &c->names.refs[i]) &&
		    !snapshot_is_held(c->repo, &c->names.refs[i].snapshot))
			things_add(&c->todo, SNAPFMT_MANIFEST, &c->names.refs[i],
				   c->names.sizes[i]);
	mark_all(c);
}

/* That the service would refuse: said with the time, and before it is marked. */
static void refuse_if_locked(void *context, int error, const char *why)
{
	struct collect *c = context;
	char id[ID128_TEXT_BYTES], text[64], line[WHY_BYTES];

	id128_format(&c->delete_id, id);
	if (error) {
		collect_fail(c, error, "", why);
	} else if (retention_is_locked(&c->looked, env_realtime_ns(c->repo->env), text)) {
		why_set(line, 0, "snapshot %.12s: %s", id, text);
		collect_fail(c, -EPERM, line, "");
	}
	if (c->result.error)
		collect_finish(c);
	else
		mark_all(c);
}

static void head_fetched(void *context, uint8_t *data, size_t length, int error, const char *why)
{
	struct collect *c = context;
	const struct thing *thing = &c->todo.list[0];

	(void)why; /* what cannot be read may go all the same */
	if (error || manifest_peek(data, length, thing->size_bytes, &c->repo->volume, &thing->ref,
				   &c->looked))
		c->looked = (struct snapshot_info){.sequence = 0};
	free(data);
	lock_look(c, refuse_if_locked);
}

/* Of the one snapshot to be deleted by name. */
static void delete_pin(void *context, const struct store_object *object)
{
	struct collect *c = context;
	struct id128 snapshot, holder;

	if (!pin_is_of(c->repo, object, &snapshot, &holder) ||
	    !id128_equal(&snapshot, &c->delete_id))
		return;
	if (id128_is_zero(&holder))
		c->pinned_by_operator = true;
	else
		c->pinned_by_others = true;
}

static void delete_pins_listed(struct env_op *op, int64_t result)
{
	struct collect *c = container_of(op, struct collect, list_op);
	char id[ID128_TEXT_BYTES];

	id128_format(&c->delete_id, id);
	if (result < 0)
		collect_fail(c, (int)result, "pins: ", store_strerror((int)result));
	else if (c->pinned_by_operator)
		collect_fail(c, -EPERM, id, ": the snapshot is pinned; unpin it first");
	else if (c->pinned_by_others)
		collect_fail(c, -EPERM, id,
			     ": the snapshot is pinned by a restore that reads it still; if that "
			     "is no more: "
			     "snapshot unpin --all");
	if (c->result.error) {
		collect_finish(c);
	} else if (c->repo->store->ops->retain) {
		snapfmt_name(SNAPFMT_MANIFEST, &c->repo->volume, &c->todo.list[0].ref, c->prefix);
		fetch(c->repo->store, c->prefix, 0, SNAPFMT_MANIFEST_HEAD_BYTES, head_fetched, c);
	} else {
		mark_all(c);
	}
}

static void first_listed(void *context, struct names *names, int error, const char *why)
{
	struct collect *c = context;
	char id[ID128_TEXT_BYTES];

	if (error) {
		collect_fail(c, error, "", why);
		collect_finish(c);
		return;
	}
	c->names = *names;
	*names = (struct names){.count = 0};
	for (size_t i = 0; i < c->names.mark_count; i++)
		things_add(&c->marked, SNAPFMT_MANIFEST, &c->names.marks[i], 0);
	if (c->forget_count) {
		c->checking = true;
		manifests_next(c);
		return;
	}
	for (size_t i = 0; i < c->names.count; i++)
		if (id128_equal(&c->names.refs[i].snapshot, &c->delete_id))
			things_add(&c->todo, SNAPFMT_MANIFEST, &c->names.refs[i],
				   c->names.sizes[i]);
	if (c->todo.count && snapshot_is_held(c->repo, &c->delete_id)) {
		id128_format(&c->delete_id, id);
		collect_fail(c, -EBUSY, id,
			     ": the snapshot is open as an export; close that first");
		collect_finish(c);
		return;
	}
	if (!id128_is_zero(&c->delete_id) && !c->todo.count) {
		id128_format(&c->delete_id, id);
		collect_fail(c, -ENOENT, id, ": no such snapshot in the store");
		collect_finish(c);
		return;
	}
	if (!c->todo.count) {
		objects_begin(c);
		return;
	}
	c->list_op.done = delete_pins_listed;
	snapfmt_pin_name(&c->repo->volume, NULL, NULL, c->prefix);
	c->repo->store->ops->list(c->repo->store, &c->list_op, c->prefix, delete_pin, c);
}

static struct collect *
collect_new(struct snapshot_repo *repo,
	    void (*done)(void *context, const struct snapshot_result *result), void *context)
{
	struct collect *c = must_alloc(sizeof(*c));

	c->repo = repo;
	c->done = done;
	c->context = context;
	repo->under_way++;
	return c;
}

void collect_run(struct snapshot_repo *repo, const struct id128 *delete_id,
		 void (*done)(void *context, const struct snapshot_result *result), void *context)
{
	struct collect *c = collect_new(repo, done, context);

	if (delete_id)
		c->delete_id = *delete_id;
	names_list(repo->store, &repo->volume, first_listed, c);
}

void collect_forget(struct snapshot_repo *repo, const struct id128 *ids, size_t count, bool dry_run,
		    void (*done)(void *context, const struct snapshot_result *result),
		    void *context)
{
	struct collect *c = collect_new(repo, done, context);

	c->forget = must_alloc(count * sizeof(*ids));
	c->forget_count = count;
	c->dry_run = dry_run;
	if (count)
		memcpy(c->forget, ids, count * sizeof(*ids));
	names_list(repo->store, &repo->volume, first_listed, c);
}

void snapshot_delete(struct snapshot_repo *repo, const struct id128 *id,
		     void (*done)(void *context, const struct snapshot_result *result),
		     void *context)
{
	collect_run(repo, id, done, context);
}

void snapshot_collect(struct snapshot_repo *repo,
		      void (*done)(void *context, const struct snapshot_result *result),
		      void *context)
{
	collect_run(repo, NULL, done, context);
}
