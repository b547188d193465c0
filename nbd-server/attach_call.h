/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attach_call: the calls to the kernel for one attached device, which block: on a thread of the device's own. A call may
 * wait for I/O of that very device, which this process serves: so neither the loop nor the helper threads make it, and a
 * device that hangs holds up no other.
 */
#ifndef OFFSITE_NBD_SERVER_ATTACH_CALL_H
#define OFFSITE_NBD_SERVER_ATTACH_CALL_H

#include "nbd-server/attach.h"

struct attach_call;

enum attach_verb {
	ATTACH_NOTHING,
	ATTACH_CONNECT, /* the kernel gets a device with so many sockets: all or none */
	ATTACH_GIVE,    /* so many sockets in place of dead ones: as many as it took */
	ATTACH_RESIZE,
	ATTACH_DETACH, /* -EBUSY while something uses the device, unless force */
};

struct attach_order {
	enum attach_verb verb;
	int index; /* of the device; CONNECT: the one that is wanted, -1: any */
	const struct nbd_kernel_params *params;
	unsigned sockets; /* CONNECT, GIVE */
	bool force;       /* DETACH */
};

struct attach_result {
	enum attach_verb verb;
	int error; /* of the last thing that was tried: GIVE may have given some sockets before it */
	bool untuned;   /* no error, but not all of the device's limits could be set: why */
	char why[256];  /* CONNECT, DETACH, untuned: one line for people */
	unsigned index; /* CONNECT: of the device */
	int sockets[ATTACH_CONNECTIONS_MAX]; /* our ends of those that the kernel has taken */
	unsigned socket_count;
};

/* done() comes on the loop, after which the result's sockets are the caller's. NULL without memory or threads. */
struct attach_call *attach_call_new(struct env *env, const struct nbd_kernel *kernel,
				    void (*done)(void *context, const struct attach_result *result),
				    void *context);
/* None may be under way. NULL is allowed. */
void attach_call_free(struct attach_call *call);

/* One at a time. */
void attach_call_start(struct attach_call *call, const struct attach_order *order);
/* What is under way; ATTACH_NOTHING from before done() on. */
enum attach_verb attach_call_verb(const struct attach_call *call);

#endif
