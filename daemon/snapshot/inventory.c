/* SPDX-License-Identifier: Apache-2.0 */
/* inventory: whether all objects that a snapshot needs are in the store; two lists tell, no object is read. */
#include "daemon/snapshot/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct inventory {
	struct env_op op;
	struct store *store;
	const struct manifest *manifest;
	uint64_t *sizes; /* by the manifest's objects; 0: not seen (no object is that small) */
	struct inventory_archive *archive; /* or NULL */
	enum snapfmt_kind listing;
	char prefix[SNAPFMT_NAME_BYTES];
	void (*done)(void *context, int error, const char *why);
	void *context;
};

static void inventory_list(struct inventory *i, enum snapfmt_kind kind);

static void inventory_finish(struct inventory *i, int error, const char *why)
{
	i->done(i->context, error, why);
	free(i->sizes);
	free(i);
}

static void archive_add(struct inventory *i, unsigned index, const struct store_object *object)
{
	struct inventory_archive *archive = i->archive;
	uint64_t takes_ns = i->store->ops->thaw_ns(i->store, object->archive);
	unsigned *added = array_add((void **)&archive->objects, &archive->count, &archive->room,
				    sizeof(*added));

	*added = index;
	archive->bytes += object->size_bytes;
	if (takes_ns > archive->takes_ns) {
		archive->takes_ns = takes_ns;
		archive->class = object->archive;
	}
}

static void inventory_each(void *context, const struct store_object *object)
{
	struct inventory *i = context;
	const struct manifest_object *found;
	enum snapfmt_kind kind;
	struct id128 volume;
	struct snapfmt_ref ref;

	if (!snapfmt_name_parse(object->name, &kind, &volume, &ref) || kind != i->listing ||
	    !id128_equal(&volume, &i->manifest->info.volume))
		return;
	found = manifest_find(i->manifest, kind, &ref);
	if (!found)
		return;
	i->sizes[found - i->manifest->objects] = object->size_bytes;
	if (object->archive && i->archive)
		archive_add(i, (unsigned)(found - i->manifest->objects), object);
}

static void inventory_compare(struct inventory *i)
{
	const struct manifest *m = i->manifest;
	char name[SNAPFMT_NAME_BYTES] = "", why[WHY_BYTES] = "";
	unsigned bad = 0;
	bool truncated = false;

	for (unsigned o = 0; o < m->object_count; o++) {
		if (i->sizes[o] >= m->objects[o].size_bytes)
			continue;
		if (!bad++) {
			snapfmt_name(m->objects[o].kind, &m->info.volume, &m->objects[o].ref, name);
			truncated = i->sizes[o] != 0;
		}
	}
	if (bad)
		why_set(why, 0, "%s: %s (%u of %u objects)", name,
			truncated ? "truncated" : "missing", bad, m->object_count);
	inventory_finish(i, bad ? -EBADMSG : 0, why);
}

static void inventory_listed(struct env_op *op, int64_t result)
{
	struct inventory *i = container_of(op, struct inventory, op);
	char why[WHY_BYTES];

	if (result < 0) {
		why_set(why, 0, "%s: cannot be listed: %s", i->prefix, store_strerror((int)result));
		inventory_finish(i, (int)result, why);
	} else if (i->listing == SNAPFMT_PACK) {
		inventory_list(i, SNAPFMT_MAPS);
	} else {
		inventory_compare(i);
	}
}

static void inventory_list(struct inventory *i, enum snapfmt_kind kind)
{
	i->listing = kind;
	i->op.done = inventory_listed;
	snapfmt_prefix(kind, &i->manifest->info.volume, i->prefix);
	i->store->ops->list(i->store, &i->op, i->prefix, inventory_each, i);
}

static void inventory_no_memory(void *context)
{
	inventory_finish(context, -ENOMEM, "manifest: too many objects for this machine's memory");
}

void inventory_look(struct store *store, const struct manifest *manifest,
		    struct inventory_archive *archive,
		    void (*done)(void *context, int error, const char *why), void *context)
{
	struct inventory *i = must_alloc(sizeof(*i));

	*i = (struct inventory){
		.store = store,
		.manifest = manifest,
		.archive = archive,
		.sizes = calloc(manifest->object_count + 1, sizeof(*i->sizes)),
		.done = done,
		.context = context,
	};
	if (i->sizes)
		inventory_list(i, SNAPFMT_PACK);
	else
		call_later(store->env, inventory_no_memory, i);
}

void inventory_check(struct store *store, const struct manifest *manifest,
		     void (*done)(void *context, int error, const char *why), void *context)
{
	inventory_look(store, manifest, NULL, done, context);
}
