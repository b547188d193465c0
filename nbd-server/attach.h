/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attach: exports as block devices of this host: /dev/nbdN of the kernel's nbd client, named
 * /dev/offsite/EXPORT.
 *
 * There is no handshake and no listening socket in between: the daemon makes a pair of connected
 * sockets, the kernel gets one end, the NBD server serves the other. So the daemon alone decides when a
 * device gets a new socket, and a socket dies with the process at the very moment it does.
 *
 * The device outlives the daemon. Its identifier in the kernel names volume, node and uuid; at its start
 * the daemon looks for devices that carry one of its own, and gives them new sockets. Until then the
 * kernel holds their requests, for dead_s at most.
 *
 * A request may come twice: what was sent and not answered when a socket died is sent again over the next.
 * It is the same write again, and the filesystem waits for it all the time, so there is no newer write that
 * it could undo: overlapping ones of the same daemon take effect in the order they came in, and a process
 * that was killed has none under way any more when the next one can open the disk.
 */
#ifndef OFFSITE_NBD_SERVER_ATTACH_H
#define OFFSITE_NBD_SERVER_ATTACH_H

#include "nbd-server/kernel.h"
#include "nbd-server/nbd_server.h"

#define ATTACH_CONNECTIONS_MAX 16u

/*
 *  state         what holds                                               next
 *  CONNECTING    the export is open; the kernel is being asked            ATTACHED, GONE
 *  ATTACHED      every connection is served                               RECONNECTING, DETACHING
 *  RECONNECTING  one is missing: a new socket is on its way               ATTACHED, WAITING, DETACHING, GONE
 *  WAITING       the export cannot be opened now; the kernel holds I/O    RECONNECTING, DETACHING, GONE
 *  DETACHING     the kernel is asked to give the device up                RECONNECTING (it is in use), GONE
 *  GONE          the kernel no longer has it; freed when nothing is under way
 */
enum attach_state {
	ATTACH_CONNECTING,
	ATTACH_ATTACHED,
	ATTACH_RECONNECTING,
	ATTACH_WAITING,
	ATTACH_DETACHING,
	ATTACH_GONE,
};
#define ATTACH_STATES 6u
const char *attach_state_name(enum attach_state state);

struct attach_options {
	int index;            /* /dev/nbdN; -1: any that is free */
	unsigned connections; /* 1 ... ATTACH_CONNECTIONS_MAX */
	unsigned dead_s;      /* how long requests wait for a daemon; then they fail */
	unsigned request_s;   /* with several connections: see nbd_kernel_params */
	bool wanted;          /* by configuration: attached whenever the export can be opened */
};

struct attach;

struct attach_config {
	struct nbd_server *server;
	const struct nbd_kernel *kernel;
	/* The export of that name; NULL: there is none (now). look_up: what takes time to find, if find() has
	 * none; held until release(). It may give the block its whole name, which is then the device's. NULL,
	 * both: nothing does. */
	struct block *(*find)(void *context, const char *name);
	void (*look_up)(void *context, const char *name, struct block_lookup *lookup);
	void (*release)(void *context, struct block *block);
	/* Who serves it: text without control characters that another daemon, and the same name with
	 * another content, do not have. False: no such export. */
	bool (*identify)(void *context, const char *name, char *text, size_t size);
	/* How it is to be attached. */
	void (*options)(void *context, const char *name, struct attach_options *options);
	/* It is about to be written to when there is no memory to be had, and has to have what that takes; NULL: it
	 * has. Called again with each new socket. */
	void (*brace)(void *context, const char *name);
	/* Name number index (0...) of those that may be wanted; NULL after the last. */
	const char *(*name)(void *context, unsigned index);
	void *context;
};

/* The names must not change while it lives. NULL without memory. */
struct attach *attach_new(struct env *env, const struct attach_config *config);
/* Takes over the devices of an earlier daemon (but takes away one whose export may not be opened, -EPERM:
 * its content can be another one by now), attaches what is wanted; started() once each of them is
 * there or was tried, 20 s later at most. What cannot be done now is tried again for ever. */
void attach_start(struct attach *attach, void (*started)(void *context), void *context);
/* Devices stay attached, and wait for the next daemon. To be called before nbd_server_stop(). */
void attach_stop(struct attach *attach);
/* After the server has stopped. False: a call to the kernel, or a lookup, is still under way, so nothing was freed; the
 * process should exit without freeing the environment. NULL is allowed. */
bool attach_free(struct attach *attach);

/* error: 0 or -errno and why; device: "/dev/nbdN", or "". */
typedef void (*attach_done_fn)(void *context, int error, const char *why, const char *device);
/* Attaches an export; at once fine if it is attached there already. index: -1, or N of /dev/nbdN. done()
 * may be called from inside. */
void attach_export(struct attach *attach, const char *name, int index, attach_done_fn done,
		   void *context);
/* Detaches an export by its name, or by "/dev/nbdN". -EBUSY while the device is mounted, unless force,
 * which fails its I/O. A wanted one stays away until it could not be opened, or the next start. */
void attach_detach(struct attach *attach, const char *name, bool force, attach_done_fn done,
		   void *context);
/* The export's size has changed: the kernel is told. done() comes without an error, once the device has that size, or
 * one that came after it; at once where none is attached, its sockets are missing (then it follows with them), or
 * there is no memory to wait with. Not for what has to be looked up: no snapshot changes its size. */
void attach_resized(struct attach *attach, const char *name, attach_done_fn done, void *context);

struct attach_info {
	const char *name, *device; /* owned by attach; device "": the kernel is still being asked */
	enum attach_state state;
	uint64_t size_bytes;
	unsigned connections, alive;
	unsigned reconnects; /* sockets given since it was attached, or the daemon started */
	bool read_only, wanted;
	const char *why; /* WAITING: why it cannot be opened; else "" */
};
/* Device number index (0...); false after the last. */
bool attach_get(const struct attach *attach, unsigned index, struct attach_info *info);
/* The device of an export, or NULL. */
const char *attach_device(const struct attach *attach, const char *name);

void attach_check(const struct attach *attach); /* invariants */

#endif
