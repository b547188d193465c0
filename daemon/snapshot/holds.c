/* SPDX-License-Identifier: Apache-2.0 */
/*
 * holds: which snapshots are in use, so that this process does not delete them. Who holds one before it loads
 * the manifest has everything that it needs until the end: a deletion that had begun before is known.
 */
#include "daemon/snapshot/internal.h"

#include <assert.h>
#include <string.h>

struct repo_hold {
	struct id128 id;
	unsigned count;
};

static struct repo_hold *find(const struct snapshot_repo *repo, const struct id128 *id)
{
	for (size_t i = 0; i < repo->hold_count; i++)
		if (id128_equal(&repo->holds[i].id, id))
			return &repo->holds[i];
	return NULL;
}

bool snapshot_is_held(const struct snapshot_repo *repo, const struct id128 *id)
{
	return find(repo, id) != NULL;
}

bool snapshot_hold(struct snapshot_repo *repo, const struct id128 *id)
{
	struct repo_hold *hold = find(repo, id);

	for (unsigned i = 0; i < sizeof(repo->deleted) / sizeof(repo->deleted[0]); i++)
		if (id128_equal(&repo->deleted[i], id))
			return false;
	if (!hold) {
		hold = array_add((void **)&repo->holds, &repo->hold_count, &repo->hold_room,
				 sizeof(*hold));
		hold->id = *id;
	}
	hold->count++;
	return true;
}

void snapshot_unhold(struct snapshot_repo *repo, const struct id128 *id)
{
	struct repo_hold *hold;

	if (id128_is_zero(id))
		return;
	hold = find(repo, id);
	assert(hold && hold->count);
	if (--hold->count == 0)
		*hold = repo->holds[--repo->hold_count];
}

bool repo_may_delete(struct snapshot_repo *repo, const struct id128 *id)
{
	const unsigned room = sizeof(repo->deleted) / sizeof(repo->deleted[0]);

	if (snapshot_is_held(repo, id))
		return false;
	repo->deleted[repo->deleted_next++ % room] = *id;
	return true;
}
