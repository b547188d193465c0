/* SPDX-License-Identifier: Apache-2.0 */
/* newest_load: the newest of the volume's own history (newest.c), of which only as much is read as is needed: going
 * down from the newest of all. */
#include "daemon/snapshot/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct newest {
	struct store *store;
	struct id128 volume;
	struct snapfmt_ref *refs;
	size_t candidate;
	struct snapshot_info *kept; /* that keep what was given up */
	size_t kept_count, kept_room;
	void (*done)(void *context, struct manifest *manifest, int error, const char *why);
	void *context;
};

static void newest_end(struct newest *n, struct manifest *manifest, int error, const char *why)
{
	n->done(n->context, manifest, error, why);
	free(n->refs);
	free(n->kept);
	free(n);
}

static bool passed_over(struct newest *n, const struct snapshot_info *info)
{
	struct snapshot_info *added;

	if (!info->given_up) {
		for (size_t i = 0; i < n->kept_count; i++)
			if (snapshot_gave_up(&n->kept[i], &info->history))
				return true;
		return false;
	}
	added = array_add((void **)&n->kept, &n->kept_count, &n->kept_room, sizeof(*added));
	*added = *info;
	return true;
}

static void newest_loaded(void *context, struct manifest *manifest, int error, const char *why)
{
	struct newest *n = context;

	if (error || !passed_over(n, &manifest->info)) {
		newest_end(n, manifest, error, why);
		return;
	}
	manifest_free(manifest);
	if (!n->candidate) {
		newest_end(n, NULL, -ENOENT,
			   "the store holds no snapshot of this volume but of what was given up in "
			   "a split brain: name one by its id");
		return;
	}
	manifest_load(n->store, &n->volume, &n->refs[--n->candidate], newest_loaded, n);
}

void manifest_load_newest(struct store *store, const struct id128 *volume,
			  const struct names *names,
			  void (*done)(void *context, struct manifest *manifest, int error,
				       const char *why),
			  void *context)
{
	struct newest *n;

	if (!names->count) {
		done(context, NULL, -ENOENT, "the store holds no snapshot of this volume");
		return;
	}
	n = must_alloc(sizeof(*n));
	*n = (struct newest){.store = store, .volume = *volume, .done = done, .context = context};
	n->refs = must_alloc(names->count * sizeof(*n->refs));
	memcpy(n->refs, names->refs, names->count * sizeof(*n->refs));
	n->candidate = names->count - 1;
	manifest_load(store, volume, &n->refs[n->candidate], newest_loaded, n);
}
