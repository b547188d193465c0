// SPDX-License-Identifier: Apache-2.0
#include "nbd-server/attach_links.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define OLD_MAX 8u

struct link {
	struct nbd_adopted adopted;
	struct attach_links *links;
};

static void link_closed(struct nbd_adopted *adopted)
{
	struct attach_links *links = ((struct link *)adopted)->links;

	assert(links->alive > 0);
	links->alive--;
	links->old++;
	links->lost_ns = env_now_ns(links->env);
	links->changed(links);
}

static void link_freed(struct nbd_adopted *adopted)
{
	struct attach_links *links = ((struct link *)adopted)->links;

	assert(links->old > 0);
	links->old--;
	free(adopted);
	links->changed(links);
}

int attach_links_add(struct attach_links *links, int fd, struct block *block, const char *name)
{
	struct link *link = calloc(1, sizeof(*link));
	int error;

	if (!link) {
		close(fd);
		return -ENOMEM;
	}
	link->links = links;
	link->adopted = (struct nbd_adopted){name, link_closed, link_freed};
	links->alive++;
	error = nbd_server_adopt(links->server, fd, block, &link->adopted);
	if (error) {
		links->alive--;
		free(link);
	}
	return error;
}

bool attach_links_may_add(const struct attach_links *links, uint64_t patience_ns)
{
	if (links->old == 0)
		return true;
	return links->old < OLD_MAX && env_now_ns(links->env) - links->lost_ns >= patience_ns;
}

bool attach_links_gone(const struct attach_links *links)
{
	return links->alive + links->old == 0;
}
