// SPDX-License-Identifier: Apache-2.0
/* What is given up in a split brain is kept in files. */
#include "tests/sim/check_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Of the index: the next extent, behind *at. */
static bool next_extent(const char **at, uint64_t *offset, uint64_t *length)
{
	const char *open = strchr(*at, '[');
	char *end;

	if (open == NULL)
		return false;
	*offset = strtoull(open + 1, &end, 10);
	if (*end != ',')
		return false;
	*length = strtoull(end + 1, &end, 10);
	*at = end;
	return *end == ']';
}

/* What files keep: all that differs from what the other has, but for what that one changed itself; all there is, if
 * the maps do not say what that is. */
static void check_image(struct world *world, unsigned index, const char *list,
			const struct inode *image)
{
	struct world_node *n = &world->nodes[index];
	struct node_volume *other = world_volume(world, 1 - index);
	const struct inode *theirs = sim_file_find(world->nodes[1 - index].env, WORLD_BACKING);
	uint64_t offset = 0, length = 0;
	bool more = next_extent(&list, &offset, &length);

	if (other == NULL || other->volume == NULL || volume_leans(other->volume))
		theirs = NULL;
	for (uint64_t at = 0; at < n->giving_up_bytes; at += 4096) {
		const uint8_t *page = n->giving_up + at;
		bool inside;

		while (more && offset + length <= at)
			more = next_extent(&list, &offset, &length);
		inside = more && offset <= at;
		if (!check_pages_equal(inside ? page : NULL, sim_file_page(image, at / 4096), 4096))
			world_fail(world, "promise 5: the files of node %u do not keep %llu", index,
				   (unsigned long long)at);
		if (!inside && !n->giving_up_near && !check_pages_equal(page, NULL, 4096))
			world_fail(world, "promise 5: node %u keeps all, but not %llu", index,
				   (unsigned long long)at);
		if (!inside && n->giving_up_near && theirs != NULL &&
		    !check_pages_equal(page, sim_file_page(theirs, at / 4096), 4096) &&
		    !check_marked(other->volume, VOLUME_PEER, at))
			world_fail(world, "promise 5: node %u gives %llu up, and keeps it nowhere",
				   index, (unsigned long long)at);
	}
}

void check_kept_files(struct world *world, unsigned index, const char *path)
{
	struct sim *sim = sim_new(world_random(world, 0));
	struct env *env = sim_node_copy(sim, "copy", world->nodes[index].env, SIM_CRASH_POWER_DROP);
	char image[512], *text;
	const char *list;
	uint64_t size = 0;

	snprintf(image, sizeof(image), "%.*s.img", (int)strlen(path) - 5, path);
	if (!sim_file_size(env, path, &size) || sim_file_find(env, image) == NULL)
		world_fail(world, "promise 5: kept in %s, which a power cut takes away", path);
	text = calloc(1, size + 1);
	if (text == NULL || !sim_file_peek(env, path, text, size, 0))
		abort();
	list = strstr(text, "\"extents\": [");
	if (list == NULL)
		world_fail(world, "promise 5: %s names no extents", path);
	check_image(world, index, list + strlen("\"extents\": ["), sim_file_find(env, image));
	free(text);
	sim_free(sim);
}
