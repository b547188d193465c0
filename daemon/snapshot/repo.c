/* SPDX-License-Identifier: Apache-2.0 */
/* The repository: what snapshots and volumes a store holds. */
#include "daemon/snapshot/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/crypt.h"

struct snapshot_repo *snapshot_repo_new(struct store *store, const struct id128 *volume)
{
	struct snapshot_repo *repo = calloc(1, sizeof(*repo));

	if (!repo)
		return NULL;
	*repo = (struct snapshot_repo){.store = store, .env = store->env, .volume = *volume};
	return repo;
}

bool snapshot_repo_is_idle(const struct snapshot_repo *repo)
{
	return repo->under_way == 0;
}

void snapshot_repo_free(struct snapshot_repo *repo)
{
	if (!repo)
		return;
	assert(!repo->under_way);
	names_free(&repo->seen);
	free(repo->sparse);
	free(repo->known);
	free(repo->locks);
	assert(!repo->hold_count);
	free(repo->holds);
	free(repo);
}

/* ---- facts of a row of manifests --------------------------------------------------------------- */

#define FETCHES 8

struct manifest_name {
	struct id128 volume;
	struct snapfmt_ref ref;
	uint64_t size_bytes;
};

struct listing;

/* What is told of: one snapshot; or of all volumes the newest readable one of a volume. */
struct unit {
	struct listing *listing;
	size_t first, at; /* names: the unit's lowest, the one being looked at */
	bool settled, found;
	struct snapshot_info info;
};

struct listing {
	struct env_op op;
	struct store *store;
	struct snapshot_repo *repo; /* NULL: all volumes */
	char prefix[SNAPFMT_NAME_BYTES];
	struct manifest_name *names;
	size_t count, room;
	struct unit *units;
	size_t unit_count, unit_room;
	size_t next, told; /* units: begun, told of */
	unsigned busy;
	bool any;
	int key_error; /* of a volume that the key given does not open */
	char key_why[WHY_BYTES];
	void (*each)(void *context, const struct snapshot_info *info);
	void (*damaged)(void *context, const char *object, const char *why);
	void (*done)(void *context, const struct snapshot_result *result);
	void *context;
	struct snapshot_result result;
};

/* What was told need not be read again where that is paid for. */
static void known_keep(struct listing *listing)
{
	struct snapshot_repo *repo = listing->repo;
	struct known_info *known;
	size_t count = 0;

	if (!repo->store->lists_cost)
		return;
	known = must_alloc((listing->unit_count + 1) * sizeof(*known));
	for (size_t i = 0; i < listing->unit_count; i++)
		if (listing->units[i].found)
			known[count++] = (struct known_info){
				listing->units[i].info,
				listing->names[listing->units[i].at].size_bytes,
			};
	free(repo->known);
	repo->known = known;
	repo->known_count = count;
}

static bool known_find(struct listing *listing, struct unit *unit)
{
	const struct snapshot_repo *repo = listing->repo;
	const struct manifest_name *name = &listing->names[unit->at];

	for (size_t i = 0; repo && i < repo->known_count && !unit->found; i++) {
		if (!id128_equal(&repo->known[i].info.id, &name->ref.snapshot) ||
		    repo->known[i].size_bytes != name->size_bytes)
			continue;
		unit->info = repo->known[i].info;
		unit->found = unit->settled = true;
	}
	return unit->found;
}

static void listing_finish(struct listing *listing)
{
	struct snapshot_result *result = &listing->result;

	if (listing->repo)
		listing->repo->under_way--;
	if (listing->repo && !result->error)
		known_keep(listing);
	if (!result->error && !listing->any && listing->key_error)
		result->error = why_set(result->why, listing->key_error, "%s", listing->key_why);
	free(listing->names);
	free(listing->units);
	listing->done(listing->context, result);
	free(listing);
}

static void unit_fetch(struct unit *unit);

/* In the order of the names, whatever came first. */
static void listing_tell(struct listing *listing)
{
	while (listing->told < listing->next && listing->units[listing->told].settled) {
		struct unit *unit = &listing->units[listing->told++];

		struct snapshot_info info = unit->info;

		listing->any |= unit->found;
		if (listing->repo)
			lock_raise(listing->repo, &info);
		if (unit->found && !listing->result.error)
			listing->each(listing->context, &info);
	}
}

static void listing_pump(struct listing *listing)
{
	listing_tell(listing);
	while (listing->busy < FETCHES && listing->next < listing->unit_count &&
	       !listing->result.error) {
		struct unit *unit = &listing->units[listing->next++];

		if (known_find(listing, unit))
			continue;
		listing->busy++;
		unit_fetch(unit);
	}
	listing_tell(listing);
	if (!listing->busy)
		listing_finish(listing);
}

static bool is_key_error(int error)
{
	return error == -STORE_NO_SECRET || error == -STORE_WRONG_SECRET || error == -STORE_NO_KEYS;
}

/* Of the store; or of the key, which among several volumes may fit others. */
static void unit_failed(struct unit *unit, int error, const char *why)
{
	struct listing *listing = unit->listing;

	unit->settled = true;
	if (!listing->repo && is_key_error(error)) {
		listing->key_error = error;
		why_set(listing->key_why, 0, "%s", why);
	} else if (!listing->result.error) {
		listing->result.error = why_set(listing->result.why, error, "%s", why);
	}
}

static void unit_fetched(void *context, uint8_t *data, size_t length, int error, const char *why)
{
	struct unit *unit = context;
	struct listing *listing = unit->listing;
	const struct manifest_name *name = &listing->names[unit->at];
	char text[SNAPFMT_NAME_BYTES], line[WHY_BYTES];
	const char *reason = error == -EBADMSG ? "damaged or truncated" : "";

	snapfmt_name(SNAPFMT_MANIFEST, &name->volume, &name->ref, text);
	if (!error && cryptfmt_is_encrypted(data, length)) {
		error = why_set(line, -STORE_NO_SECRET, "%s: %s", text,
				store_strerror(-STORE_NO_SECRET));
		why = line;
	}
	if (!error)
		reason = manifest_peek(data, length, name->size_bytes, &name->volume, &name->ref,
				       &unit->info);
	free(data);
	listing->busy--;
	if (error && error != -EBADMSG && error != -ENOENT) {
		unit_failed(unit, error, why);
		listing_pump(listing);
		return;
	}
	if (reason && error != -ENOENT && listing->damaged) /* else deleted just now */
		listing->damaged(listing->context, text, reason);
	unit->found = !reason;
	if (!unit->found && unit->at > unit->first && !listing->result.error) {
		unit->at--;
		listing->busy++;
		unit_fetch(unit);
		return;
	}
	unit->settled = true;
	listing_pump(listing);
}

static void unit_fetch(struct unit *unit)
{
	const struct manifest_name *name = &unit->listing->names[unit->at];
	char text[SNAPFMT_NAME_BYTES];

	snapfmt_name(SNAPFMT_MANIFEST, &name->volume, &name->ref, text);
	fetch(unit->listing->store, text, 0, SNAPFMT_MANIFEST_HEAD_BYTES, unit_fetched, unit);
}

static void listing_each(void *context, const struct store_object *object)
{
	struct listing *listing = context;
	struct manifest_name name = {.size_bytes = object->size_bytes}, *added;
	enum snapfmt_kind kind;

	/* A mark of deletion follows what it is about. */
	if (snapfmt_mark_parse(object->name, &name.volume, &name.ref)) {
		added = listing->count ? &listing->names[listing->count - 1] : NULL;
		if (added && id128_equal(&added->volume, &name.volume) &&
		    !snapfmt_ref_compare(&added->ref, &name.ref))
			listing->count--;
		return;
	}
	if (!snapfmt_name_parse(object->name, &kind, &name.volume, &name.ref) ||
	    kind != SNAPFMT_MANIFEST)
		return;
	if (listing->repo && !id128_equal(&name.volume, &listing->repo->volume))
		return;
	added = array_add((void **)&listing->names, &listing->count, &listing->room,
			  sizeof(*added));
	*added = name;
}

static void units_make(struct listing *listing)
{
	const struct manifest_name *names = listing->names;

	for (size_t i = 0; i < listing->count; i++) {
		struct unit *unit;

		if (!listing->repo && i && id128_equal(&names[i - 1].volume, &names[i].volume)) {
			listing->units[listing->unit_count - 1].at = i;
			continue;
		}
		unit = array_add((void **)&listing->units, &listing->unit_count,
				 &listing->unit_room, sizeof(*unit));
		unit->listing = listing;
		unit->first = unit->at = i;
	}
}

static void listing_listed(struct env_op *op, int64_t result)
{
	struct listing *listing = container_of(op, struct listing, op);

	if (result < 0) {
		listing->result.error = why_set(listing->result.why, (int)result,
						"store %.140s: cannot be listed: %s",
						listing->store->url, store_strerror((int)result));
		listing_finish(listing);
		return;
	}
	units_make(listing);
	listing_pump(listing);
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
