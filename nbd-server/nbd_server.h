/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbd_server: the front door. Serves exports (struct block) to NBD clients over unix and TCP
 * sockets, with or without TLS. Follows the NBD protocol page (doc/proto.md of
 * NetworkBlockDevice/nbd); protocol/nbd.h has the layouts.
 *
 * Memory is bounded: a fixed number of connections, each with a fixed number of requests under way;
 * data in buffers of one shared pool. When the pool is empty, sockets are not read.
 */
#ifndef OFFSITE_NBD_SERVER_H
#define OFFSITE_NBD_SERVER_H

#include "daemon/block.h"
#include "daemon/io/env.h"
#include "daemon/io/stream.h"

struct nbd_server;

enum nbd_tls_mode { NBD_TLS_OFF, NBD_TLS_ON, NBD_TLS_REQUIRE };

struct nbd_server_config {
	struct buf_pool *pool; /* shared with the devices; outlives the server */
	enum nbd_tls_mode tls_mode;
	struct tls_context *tls;       /* needed unless OFF */
	unsigned connections_max;      /* 0: 64 */
	unsigned handshake_timeout_ms; /* 0: 30,000; a client that takes longer is dropped */
	unsigned stall_timeout_ms; /* 0: 30,000; while others wait for memory, a client that so long
	                                  neither reads its replies nor sends the rest of its write is
	                                  dropped */
	/* The export of that name; "" asks for the default. NULL: no such export. */
	struct block *(*find)(void *context, const char *name);
	/* For LIST: export number index (0...), NULL after the last. Only its name and description are
	 * looked at. */
	struct block *(*list)(void *context, unsigned index);
	/* These may be NULL. An export is held while a map of it is open. */
	void (*look_up)(void *context, const char *name, struct block_lookup *lookup);
	void (*release)(void *context, struct block *block); /* with look_up */
	void (*map_open)(void *context, struct block *block, const char *name,
			 struct block_map_open *open);
	void (*map_list)(void *context, struct block *block, struct block_map_list *list);
	void *context;
};

struct nbd_server *nbd_server_new(struct env *env, const struct nbd_server_config *config);
/* Adds a listening address ("unix:/path", whose folder is made if missing, or "HOST:PORT"). -errno
 * and why. */
int nbd_server_listen(struct nbd_server *server, const char *addr, char *why, size_t why_size);
/* The real address of listener number index, or NULL. */
const char *nbd_server_addr(struct nbd_server *server, unsigned index);
/* Stops listening, lets requests under way finish (new ones get ESHUTDOWN), closes, then stopped(). */
void nbd_server_stop(struct nbd_server *server, void (*stopped)(void *context), void *context);
void nbd_server_free(struct nbd_server *server); /* after stopped() */
/* Ends all connections to one export (its volume was demoted or goes away). */
void nbd_server_drop(struct nbd_server *server, struct block *block);

/*
 * A connected socket without a handshake: its other end is the kernel's nbd client (attach.h). The
 * transmission phase begins at once, with simple replies. Whoever adopts has opened the block, and
 * keeps it open until freed(). At a stop such a connection gets no errors: it is closed, and what was
 * not answered is sent again by the kernel, to whoever comes next.
 */
struct nbd_adopted {
	const char *name; /* shown among the clients */
	/* It has ended, on either side's wish; requests of it may still be under way. */
	void (*closed)(struct nbd_adopted *adopted);
	/* None is any more. The last call. */
	void (*freed)(struct nbd_adopted *adopted);
};
/* Takes fd over in any case. 0, or -errno (nothing is called then). */
int nbd_server_adopt(struct nbd_server *server, int fd, struct block *block,
		     struct nbd_adopted *adopted);
/* The block's size has changed: adopted connections go by the new one from now on. */
void nbd_server_resized(struct nbd_server *server, struct block *block);

/* The addresses of those who have the export open, separated by ", ". */
void nbd_server_clients(const struct nbd_server *server, const struct block *block, char *text,
			size_t size);

struct nbd_server_stats {
	unsigned connections, connections_max;
	unsigned adopted; /* not among connections, and not limited by connections_max */
	uint64_t accepted, refused, requests, protocol_errors;
};
void nbd_server_get_stats(const struct nbd_server *server, struct nbd_server_stats *stats);

#endif
