/* SPDX-License-Identifier: Apache-2.0 */
/*
 * collect: deletes snapshots, and what no snapshot needs any more. Only manifests are read.
 *
 * A manifest goes first, then what it alone needed. What a snapshot being written has put, and no
 * manifest names yet, is known by its sequence number: it is higher than that of every manifest seen.
 * If one manifest that stays cannot be read, nothing is deleted: what it needs is not known.
 *
 * What is locked is left, counted, and taken by a later run. All that a manifest needs is locked for at
 * least as long as it is, so a snapshot that is left is whole.
 */
#include "daemon/snapshot/internal.h"
#include "daemon/snapshot/retention.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DELETES_MAX 8

struct doomed {
	enum snapfmt_kind kind;
	struct snapfmt_ref ref;
	uint64_t size_bytes;
};

struct collect;

struct delete_op {
	struct env_op op;
	struct collect *collect;
	struct doomed object;
	char name[SNAPFMT_NAME_BYTES];
	bool busy;
};

struct collect {
	struct snapshot_repo *repo;
	struct id128 delete_id; /* zero: none */
	struct id128 *forget;   /* those to go if all others can be read; NULL: none */
	size_t forget_count;
	void (*done)(void *context, const struct snapshot_result *result);
	void *context;
	struct snapshot_result result;
	void (*deleted)(struct collect *c); /* what follows when all of doomed is gone */

	uint64_t sequence_max; /* unreferenced objects up to it are garbage */
	struct names names;
	size_t next;   /* manifest to load */
	size_t stop;   /* the first that is none of those to load */
	bool checking; /* loading those that a prune keeps; else all, for what they need */
	struct doomed *doomed;
	size_t doomed_count, doomed_room, doomed_next;
	struct manifest_object *needed; /* sorted */
	size_t needed_count, needed_room;
	struct env_op list_op;
	enum snapfmt_kind listing;
	char prefix[SNAPFMT_NAME_BYTES];
	struct delete_op deletes[DELETES_MAX];
	unsigned busy;
};

static void collect_finish(struct collect *c)
{
	c->repo->under_way--;
	names_free(&c->names);
	free(c->doomed);
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

/* ---- deleting -------------------------------------------------------------------------------- */

static void delete_pump(struct collect *c);

static void delete_done(struct env_op *op, int64_t result)
{
	struct delete_op *d = container_of(op, struct delete_op, op);
	struct collect *c = d->collect;

	d->busy = false;
	c->busy--;
	if (result == -STORE_LOCKED) {
		c->result.locked_objects++;
		/* Younger snapshots are locked for longer, as a rule. */
		if (d->object.kind == SNAPFMT_MANIFEST)
			c->doomed_next = c->doomed_count;
	} else if (result < 0) {
		char what[WHY_BYTES];

		why_set(what, 0, "%s: not deleted: ", d->name);
		collect_fail(c, (int)result, what, store_strerror((int)result));
	} else {
		c->result.deleted_objects++;
		c->result.freed_bytes += d->object.size_bytes;
	}
	delete_pump(c);
}

static void delete_pump(struct collect *c)
{
	for (unsigned i = 0; i < DELETES_MAX; i++) {
		struct delete_op *d = &c->deletes[i];

		/* Opened since it was decided: it stays, and what it needs is looked for anew. */
		while (c->doomed_next < c->doomed_count &&
		       c->doomed[c->doomed_next].kind == SNAPFMT_MANIFEST &&
		       !repo_may_delete(c->repo, &c->doomed[c->doomed_next].ref.snapshot))
			c->doomed_next++;
		if (d->busy || c->doomed_next == c->doomed_count || c->result.error)
			continue;
		d->busy = true;
		d->collect = c;
		d->object = c->doomed[c->doomed_next++];
		d->op.done = delete_done;
		snapfmt_name(d->object.kind, &c->repo->volume, &d->object.ref, d->name);
		c->busy++;
		c->repo->store->ops->delete (c->repo->store, &d->op, d->name);
	}
	if (c->busy)
		return;
	if (c->result.error)
		collect_finish(c);
	else
		c->deleted(c);
}

static void delete_all(struct collect *c, void (*deleted)(struct collect *c))
{
	c->deleted = deleted;
	c->doomed_next = 0;
	delete_pump(c);
}

static void doom(struct collect *c, enum snapfmt_kind kind, const struct snapfmt_ref *ref,
		 uint64_t size_bytes)
{
	struct doomed *doomed =
		array_add((void **)&c->doomed, &c->doomed_count, &c->doomed_room, sizeof(*doomed));

	*doomed = (struct doomed){kind, *ref, size_bytes};
}

/* ---- what nothing needs ------------------------------------------------------------------------ */

static void garbage_list(struct collect *c, enum snapfmt_kind kind);

static void garbage_each(void *context, const struct store_object *object)
{
	struct collect *c = context;
	enum snapfmt_kind kind;
	struct id128 volume;
	struct manifest_object want = {.live_count = 0};

	if (!snapfmt_name_parse(object->name, &kind, &volume, &want.ref) || kind != c->listing ||
	    !id128_equal(&volume, &c->repo->volume) || want.ref.sequence > c->sequence_max)
		return;
	want.kind = kind;
	if (c->needed_count &&
	    bsearch(&want, c->needed, c->needed_count, sizeof(want), manifest_object_compare))
		return;
	doom(c, kind, &want.ref, object->size_bytes);
}

static void garbage_listed(struct env_op *op, int64_t result)
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
		garbage_list(c, SNAPFMT_MAPS);
	else
		delete_all(c, collect_finish);
}

static void garbage_list(struct collect *c, enum snapfmt_kind kind)
{
	c->listing = kind;
	c->list_op.done = garbage_listed;
	snapfmt_prefix(kind, &c->repo->volume, c->prefix);
	c->repo->store->ops->list(c->repo->store, &c->list_op, c->prefix, garbage_each, c);
}

/* ---- what is needed ---------------------------------------------------------------------------- */

static void manifests_next(struct collect *c);

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
	c->needed_count = kept;
}

static void manifest_loaded(void *context, struct manifest *manifest, int error, const char *why)
{
	struct collect *c = context;

	if (error) {
		collect_fail(c, error,
			     c->checking
				     ? "a snapshot to be kept is damaged; no older one is deleted: "
				     : "nothing is collected, as one cannot know what this needs: ",
			     why);
		collect_finish(c);
		return;
	}
	if (!c->checking && !(MUTATE(snapshot_collect_ignores_newest) && c->next == c->stop))
		need(c, manifest);
	manifest_free(manifest);
	manifests_next(c);
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
	*names = (struct names){NULL, NULL, 0};
	if (c->names.count && c->names.refs[c->names.count - 1].sequence > c->sequence_max)
		c->sequence_max = c->names.refs[c->names.count - 1].sequence;
	c->checking = false;
	c->next = 0;
	c->stop = c->names.count;
	manifests_next(c);
}

static void needed_begin(struct collect *c)
{
	if (!id128_is_zero(&c->delete_id) && c->result.locked_objects) {
		collect_fail(c, -EPERM, "the snapshot is locked by the service (object lock)", "");
		collect_finish(c);
		return;
	}
	c->doomed_count = 0;
	names_list(c->repo->store, &c->repo->volume, needed_listed, c);
}

static bool is_forgotten(const struct collect *c, const struct snapfmt_ref *ref)
{
	for (size_t i = 0; i < c->forget_count; i++)
		if (id128_equal(&c->forget[i], &ref->snapshot))
			return true;
	return false;
}

static void manifests_next(struct collect *c)
{
	while (c->checking && c->next < c->stop && is_forgotten(c, &c->names.refs[c->next]))
		c->next++;
	if (c->next < c->stop) {
		manifest_load(c->repo->store, &c->repo->volume, &c->names.refs[c->next++],
			      manifest_loaded, c);
		return;
	}
	if (!c->checking) {
		garbage_list(c, SNAPFMT_PACK);
		return;
	}
	for (size_t i = 0; i < c->names.count; i++)
		if (is_forgotten(c, &c->names.refs[i]))
			doom(c, SNAPFMT_MANIFEST, &c->names.refs[i], c->names.sizes[i]);
	delete_all(c, needed_begin);
}

/* ---- which snapshots go ------------------------------------------------------------------------ */

/* That the service would refuse: said with the time, and before anything is asked of it. */
static void lock_looked(void *context, uint8_t *data, size_t length, int error, const char *why)
{
	struct collect *c = context;
	const struct doomed *doomed = &c->doomed[0];
	struct snapshot_info info;
	char id[ID128_TEXT_BYTES], text[64];

	(void)why; /* what cannot be read may go all the same */
	id128_format(&c->delete_id, id);
	if (!error &&
	    !manifest_peek(data, length, doomed->size_bytes, &c->repo->volume, &doomed->ref,
			   &info) &&
	    retention_is_locked(&info, env_realtime_ns(c->repo->env), text)) {
		char line[WHY_BYTES];

		why_set(line, 0, "snapshot %.12s: %s", id, text);
		collect_fail(c, -EPERM, line, "");
		collect_finish(c);
	} else {
		delete_all(c, needed_begin);
	}
	free(data);
}

/* Of the one snapshot to be deleted by name. */
static void pin_looked(struct env_op *op, int64_t result)
{
	struct collect *c = container_of(op, struct collect, list_op);

	if (result == -ENOENT && c->repo->store->ops->retain) {
		snapfmt_name(SNAPFMT_MANIFEST, &c->repo->volume, &c->doomed[0].ref, c->prefix);
		fetch(c->repo->store, c->prefix, 0, SNAPFMT_MANIFEST_HEAD_BYTES, lock_looked, c);
		return;
	}
	if (result == -ENOENT) {
		delete_all(c, needed_begin);
		return;
	}
	if (result < 0)
		collect_fail(c, (int)result, "pin: ", store_strerror((int)result));
	else
		collect_fail(c, -EPERM, c->prefix, ": the snapshot is pinned; unpin it first");
	collect_finish(c);
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
	*names = (struct names){NULL, NULL, 0};
	if (c->names.count)
		c->sequence_max = c->names.refs[c->names.count - 1].sequence;
	if (c->forget_count) {
		c->checking = true;
		c->stop = c->names.count;
		c->next = 0;
		manifests_next(c);
		return;
	}
	for (size_t i = 0; i < c->names.count; i++)
		if (id128_equal(&c->names.refs[i].snapshot, &c->delete_id))
			doom(c, SNAPFMT_MANIFEST, &c->names.refs[i], c->names.sizes[i]);
	if (c->doomed_count && snapshot_is_held(c->repo, &c->delete_id)) {
		id128_format(&c->delete_id, id);
		collect_fail(c, -EBUSY, id,
			     ": the snapshot is open as an export; close that first");
		collect_finish(c);
		return;
	}
	if (!id128_is_zero(&c->delete_id) && !c->doomed_count) {
		id128_format(&c->delete_id, id);
		collect_fail(c, -ENOENT, id, ": no such snapshot in the store");
		collect_finish(c);
		return;
	}
	if (c->doomed_count) {
		c->list_op.done = pin_looked;
		snapfmt_pin_name(&c->repo->volume, &c->doomed[0].ref, c->prefix);
		c->repo->store->ops->size(c->repo->store, &c->list_op, c->prefix);
		return;
	}
	delete_all(c, needed_begin);
}

void collect_run(struct snapshot_repo *repo, const struct id128 *delete_id,
		 void (*done)(void *context, const struct snapshot_result *result), void *context)
{
	struct collect *c = must_alloc(sizeof(*c));

	c->repo = repo;
	if (delete_id)
		c->delete_id = *delete_id;
	c->done = done;
	c->context = context;
	repo->under_way++;
	names_list(repo->store, &repo->volume, first_listed, c);
}

void collect_forget(struct snapshot_repo *repo, const struct id128 *ids, size_t count,
		    void (*done)(void *context, const struct snapshot_result *result),
		    void *context)
{
	struct collect *c = must_alloc(sizeof(*c));

	c->repo = repo;
	c->forget = must_alloc(count * sizeof(*ids));
	c->forget_count = count;
	memcpy(c->forget, ids, count * sizeof(*ids));
	c->done = done;
	c->context = context;
	repo->under_way++;
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
