/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attach_device: one attached device, as a state machine (attach.h has the states): whatever happens ends in a step that
 * looks at what is and what should be, and starts the one call to the kernel that brings them nearer.
 */
#ifndef OFFSITE_NBD_SERVER_ATTACH_DEVICE_H
#define OFFSITE_NBD_SERVER_ATTACH_DEVICE_H

#include "nbd-server/attach.h"
#include "nbd-server/attach_block.h"
#include "nbd-server/attach_call.h"
#include "nbd-server/attach_links.h"

#define ATTACH_PREFIX "offsite:" /* of the identifiers of our devices in the kernel */

/* Who has the devices. */
struct attach_owner {
	struct env *env;
	struct attach_config config;
	bool stopping;
	/* The one that is, or is being, attached under that name, or has it as its path, other than except (which may be
	 * NULL); NULL: none. */
	struct attach_device *(*find)(const struct attach_owner *owner, const char *name,
				      const struct attach_device *except);
	/* A device has been attached, or given up for now: see settled. */
	void (*settled)(struct attach_owner *owner);
	/* A device is gone: attach_device_is_gone(). */
	void (*gone)(struct attach_owner *owner);
};

struct attach_waiter {
	attach_done_fn done;
	void *context;
};

/* Changed in attach_device.c alone, but for next. */
struct attach_device {
	struct attach_owner *owner;
	struct attach_device *next;
	enum attach_state state;
	char name[NBD_KERNEL_NAME_MAX];
	char path[32]; /* "" until the kernel has said which */
	unsigned index;
	bool read_only;
	unsigned connections; /* wanted */
	unsigned reconnects;
	unsigned request_s;
	bool untuned_told; /* that not all of its limits are set */
	bool settled;      /* it has been attached, or given up for now, since it was begun */
	struct nbd_kernel_params params;

	struct attach_block block;
	struct attach_links links;
	struct attach_call *call;
	struct env_timer retry;
	char why[256]; /* WAITING: why the block cannot be opened */

	/* What is wanted of it, and who is told. */
	int index_wanted;
	bool resize_due, detach_due, force;
	struct attach_waiter attached, detached;
	struct resize_waiter *resized;
};

/* Its first state is CONNECTING or RECONNECTING; nothing is begun before one of the two calls below, and before it the
 * owner's find() has to know the device. NULL without memory or threads. */
struct attach_device *attach_device_new(struct attach_owner *owner, const char *name,
					enum attach_state state);
/* Nothing is under way. */
void attach_device_free(struct attach_device *device);

/* Attaches the export; index: -1, or N of /dev/nbdN. done() may come from inside. */
void attach_device_connect(struct attach_device *device, int index, attach_done_fn done,
			   void *context);
/* Gives new sockets to what the kernel has from an earlier daemon. */
void attach_device_take_over(struct attach_device *device, const struct nbd_kernel_device *found);
/* As attach_detach() and attach_resized(). */
void attach_device_detach(struct attach_device *device, bool force, attach_done_fn done,
			  void *context);
void attach_device_resize(struct attach_device *device, attach_done_fn done, void *context);

/* The owner is stopping: who waits is told so, and nothing is begun any more. */
void attach_device_stop(struct attach_device *device);
/* A call to the kernel or a lookup is under way. */
bool attach_device_is_busy(const struct attach_device *device);
/* GONE, and nothing of it is under way any more. */
bool attach_device_is_gone(const struct attach_device *device);
/* What the kernel calls it: name, node and uuid. False: there is no such export. */
bool attach_device_identifier(const struct attach_config *config, const char *name, char *text,
			      size_t size);
void attach_device_check(const struct attach_device *device); /* invariants */

#endif
