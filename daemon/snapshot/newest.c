/* SPDX-License-Identifier: Apache-2.0 */
/*
 * newest: which snapshot is meant where none is named. After a split brain the store also has what the
 * loser's node took: its own while it was apart, and above them the one that keeps what it gave up. That one
 * says so, and names the histories; so going down from the newest it is met before the others of them.
 */
#include "daemon/snapshot/internal.h"

#include <stdlib.h>

bool snapshot_gave_up(const struct snapshot_info *kept, const struct id128 *history)
{
	if (!kept->given_up || id128_is_zero(history))
		return false;
	if (id128_equal(&kept->history, history))
		return true;
	for (unsigned i = 0; i < SNAPSHOT_GIVEN_UP_MAX; i++)
		if (id128_equal(&kept->given_up_before[i], history))
			return true;
	return false;
}

/* Few as a rule; NULL: none. */
static const struct snapshot_info **kept_of(const struct snapshot_info *infos, size_t count,
					    size_t *kept_count)
{
	const struct snapshot_info **kept;

	*kept_count = 0;
	for (size_t i = 0; i < count; i++)
		*kept_count += infos[i].given_up;
	if (*kept_count == 0)
		return NULL;
	kept = must_alloc(*kept_count * sizeof(*kept));
	*kept_count = 0;
	for (size_t i = 0; i < count; i++)
		if (infos[i].given_up)
			kept[(*kept_count)++] = &infos[i];
	return kept;
}

const struct snapshot_info *snapshot_newest(const struct snapshot_info *infos, size_t count)
{
	const struct snapshot_info *newest = NULL, **kept;
	size_t kept_count;

	kept = kept_of(infos, count, &kept_count);
	for (size_t i = 0; i < count; i++) {
		bool is_own =
			!infos[i].given_up && (!newest || infos[i].sequence >= newest->sequence);

		for (size_t j = 0; is_own && j < kept_count; j++)
			is_own = kept[j]->sequence < infos[i].sequence ||
				 !snapshot_gave_up(kept[j], &infos[i].history);
		if (is_own)
			newest = &infos[i];
	}
	free(kept);
	return newest;
}

void snapshot_infos_add(struct snapshot_infos *infos, const struct snapshot_info *info)
{
	struct snapshot_info *added =
		array_add((void **)&infos->list, &infos->count, &infos->room, sizeof(*added));

	*added = *info;
}
