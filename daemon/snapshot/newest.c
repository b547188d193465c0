/* SPDX-License-Identifier: Apache-2.0 */
/*
 * newest: which snapshot is meant where none is named. After a split brain the store also has what the
 * loser's node took: its own while it was apart, and above them the one that keeps what it gave up. That one
 * says so, and names the history; so going down from the newest it is met before the others of that history.
 */
#include "daemon/snapshot/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const struct snapshot_info *snapshot_newest(const struct snapshot_info *infos, size_t count)
{
	const struct snapshot_info *newest = NULL;

	for (size_t i = 0; i < count; i++) {
		bool is_own = !infos[i].given_up;

		for (size_t j = 0; is_own && j < count; j++)
			is_own = !infos[j].given_up || infos[j].sequence < infos[i].sequence ||
				 id128_is_zero(&infos[i].history) ||
				 !id128_equal(&infos[j].history, &infos[i].history);
		if (is_own && (!newest || infos[i].sequence >= newest->sequence))
			newest = &infos[i];
	}
	return newest;
}

struct newest {
	struct store *store;
	struct id128 volume;
	struct snapfmt_ref *refs;
	size_t candidate;
	struct id128 *given_up; /* histories */
	size_t given_up_count, given_up_room;
	void (*done)(void *context, struct manifest *manifest, int error, const char *why);
	void *context;
};

static void newest_end(struct newest *n, struct manifest *manifest, int error, const char *why)
{
	n->done(n->context, manifest, error, why);
	free(n->refs);
	free(n->given_up);
	free(n);
}

static bool passed_over(struct newest *n, const struct snapshot_info *info)
{
	struct id128 *added;

	if (!info->given_up) {
		for (size_t i = 0; i < n->given_up_count && !id128_is_zero(&info->history); i++)
			if (id128_equal(&n->given_up[i], &info->history))
				return true;
		return false;
	}
	added = array_add((void **)&n->given_up, &n->given_up_count, &n->given_up_room,
			  sizeof(*added));
	*added = info->history;
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
