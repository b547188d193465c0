/* SPDX-License-Identifier: Apache-2.0 */
/* The repository: what snapshots and volumes a store holds. */
#include "daemon/snapshot/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct snapshot_repo *snapshot_repo_new(struct store *store, const struct id128 *volume)
{
	struct snapshot_repo *repo = calloc(1, sizeof(*repo));

	if (!repo)
		return NULL;
	*repo = (struct snapshot_repo){.store = store, .env = store->env, .volume = *volume};
	return repo;
}

void snapshot_repo_free(struct snapshot_repo *repo)
{
	if (!repo)
		return;
	assert(!repo->under_way);
	free(repo);
}

/* ---- facts of a row of manifests --------------------------------------------------------------- */

struct manifest_name {
	struct id128 volume;
	struct snapfmt_ref ref;
	uint64_t size_bytes;
};

struct listing {
	struct env_op op;
	struct store *store;
	struct snapshot_repo *repo; /* NULL: all volumes */
	char prefix[SNAPFMT_NAME_BYTES];
	struct manifest_name *names;
	size_t count, room, next;
	size_t group_end; /* all volumes: behind the present volume's names */
	void (*each)(void *context, const struct snapshot_info *info);
	void (*damaged)(void *context, const char *object, const char *why);
	void (*done)(void *context, const struct snapshot_result *result);
	void *context;
	struct snapshot_result result;
};

static void listing_finish(struct listing *listing)
{
	if (listing->repo)
		listing->repo->under_way--;
	free(listing->names);
	listing->done(listing->context, &listing->result);
	free(listing);
}

/* Of all volumes: finds the volume that begins at next, and begins with its newest. */
static void listing_group(struct listing *listing)
{
	const struct manifest_name *names = listing->names;
	size_t end = listing->next;

	while (end < listing->count &&
	       id128_equal(&names[end].volume, &names[listing->next].volume))
		end++;
	if (end > listing->next)
		listing->next = end - 1;
	listing->group_end = end;
}

/* A name was dealt with: the next one, or of all volumes the next volume's newest. */
static void listing_step(struct listing *listing, bool readable)
{
	const struct manifest_name *names = listing->names;
	size_t at = listing->next;

	if (listing->repo) {
		listing->next++;
		return;
	}
	/* Names ascend, but within a volume it goes down until one is readable. */
	if (!readable && at > 0 && id128_equal(&names[at - 1].volume, &names[at].volume)) {
		listing->next--;
		return;
	}
	listing->next = listing->group_end;
	listing_group(listing);
}

static void listing_next(struct listing *listing);

static void listing_fetched(void *context, uint8_t *data, size_t length, int error, const char *why)
{
	struct listing *listing = context;
	const struct manifest_name *name = &listing->names[listing->next];
	char text[SNAPFMT_NAME_BYTES];
	struct snapshot_info info;
	const char *reason = "truncated";

	snapfmt_name(SNAPFMT_MANIFEST, &name->volume, &name->ref, text);
	if (!error)
		reason = manifest_peek(data, length, name->size_bytes, &name->volume, &name->ref,
				       &info);
	free(data);
	if (error && error != -EBADMSG && error != -ENOENT) {
		listing->result.error = why_set(listing->result.why, error, "%s", why);
		listing_finish(listing);
		return;
	}
	if (!reason)
		listing->each(listing->context, &info);
	else if (error != -ENOENT && listing->damaged) /* else deleted just now */
		listing->damaged(listing->context, text, reason);
	listing_step(listing, !reason);
	listing_next(listing);
}

static void listing_next(struct listing *listing)
{
	const struct manifest_name *name = &listing->names[listing->next];
	char text[SNAPFMT_NAME_BYTES];

	if (listing->next == listing->count) {
		listing_finish(listing);
		return;
	}
	snapfmt_name(SNAPFMT_MANIFEST, &name->volume, &name->ref, text);
	fetch(listing->store, text, 0, SNAPFMT_MANIFEST_HEAD_BYTES, listing_fetched, listing);
}

static void listing_each(void *context, const struct store_object *object)
{
	struct listing *listing = context;
	struct manifest_name name = {.size_bytes = object->size_bytes}, *added;
	enum snapfmt_kind kind;

	if (!snapfmt_name_parse(object->name, &kind, &name.volume, &name.ref) ||
	    kind != SNAPFMT_MANIFEST)
		return;
	if (listing->repo && !id128_equal(&name.volume, &listing->repo->volume))
		return;
	added = array_add((void **)&listing->names, &listing->count, &listing->room,
			  sizeof(*added));
	*added = name;
}

static void listing_listed(struct env_op *op, int64_t result)
{
	struct listing *listing = container_of(op, struct listing, op);

	if (result < 0) {
		listing->result.error =
			why_set(listing->result.why, (int)result, "store %s: cannot be listed: %s",
				listing->store->url, store_strerror((int)result));
		listing_finish(listing);
		return;
	}
	if (!listing->repo)
		listing_group(listing);
	listing_next(listing);
}

void snapshot_volumes(struct store *store,
		      void (*each)(void *context, const struct snapshot_info *newest),
		      void (*damaged)(void *context, const char *object, const char *why),
		      void (*done)(void *context, const struct snapshot_result *result),
		      void *context)
{
	struct listing *listing = must_alloc(sizeof(*listing));

	*listing = (struct listing){
		.op = {.done = listing_listed},
		.store = store,
		.each = each,
		.damaged = damaged,
		.done = done,
		.context = context,
	};
	store->ops->list(store, &listing->op, listing->prefix, listing_each, listing);
}

void snapshot_list(struct snapshot_repo *repo,
		   void (*each)(void *context, const struct snapshot_info *info),
		   void (*damaged)(void *context, const char *object, const char *why),
		   void (*done)(void *context, const struct snapshot_result *result), void *context)
{
	struct listing *listing = must_alloc(sizeof(*listing));

	*listing = (struct listing){
		.op = {.done = listing_listed},
		.store = repo->store,
		.repo = repo,
		.each = each,
		.damaged = damaged,
		.done = done,
		.context = context,
	};
	repo->under_way++;
	snapfmt_prefix(SNAPFMT_MANIFEST, &repo->volume, listing->prefix);
	repo->store->ops->list(repo->store, &listing->op, listing->prefix, listing_each, listing);
}
