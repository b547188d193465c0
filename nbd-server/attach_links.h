/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attach_links: the connections of an attached device: those that are served, and those that have ended but whose
 * requests are still under way.
 */
#ifndef OFFSITE_NBD_SERVER_ATTACH_LINKS_H
#define OFFSITE_NBD_SERVER_ATTACH_LINKS_H

#include "nbd-server/nbd_server.h"

struct attach_links {
	struct env *env;
	struct nbd_server *server;
	/* One has ended, or its last request has. To be answered from another turn: it comes from inside the server's
	 * work on it. */
	void (*changed)(struct attach_links *links);
	/* attach_links.c's */
	unsigned alive, old;
	uint64_t lost_ns; /* when the last one ended; 0: with the last daemon */
};

/* Serves a socket that the kernel has taken; name: shown among the clients. Takes it over in any case. 0 or -errno. */
int attach_links_add(struct attach_links *links, int fd, struct block *block, const char *name);
/* Whether a new socket may be given: it waits for the requests of the old ones, so that nothing comes twice at a time
 * without need; but not longer than patience, nor for ever so many of them. */
bool attach_links_may_add(const struct attach_links *links, uint64_t patience_ns);
/* None is served, and nothing under way: the block may be closed. */
bool attach_links_gone(const struct attach_links *links);

#endif
