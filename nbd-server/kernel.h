/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernel: the kernel's nbd client as attach.h needs it. A table, so that tests put a kernel of their own
 * behind it. All calls block, and are made by attach_call.c, but for scan(), which only reads sysfs.
 */
#ifndef OFFSITE_NBD_SERVER_KERNEL_H
#define OFFSITE_NBD_SERVER_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NBD_KERNEL_NAME_MAX 256u
#define NBD_KERNEL_DEVICES  1024u /* with a number above, a device is not looked for */

struct nbd_kernel_params {
	uint64_t size_bytes;
	uint32_t block_bytes;
	uint16_t flags;  /* NBD_FLAG_... */
	unsigned dead_s; /* so long requests wait while no socket is alive; then they fail */
	/* So long a request waits for its reply before it is sent again over another socket; 0: as long
	 * as its own lives. */
	unsigned request_s;
	char identifier[NBD_KERNEL_NAME_MAX];
	char link[NBD_KERNEL_NAME_MAX]; /* the name below /dev/offsite */
};

struct nbd_kernel_device {
	unsigned index;
	unsigned connections;
	uint64_t size_bytes;
	char identifier[NBD_KERNEL_NAME_MAX];
};

struct nbd_kernel {
	/* index -1: any that is free. The descriptors stay the caller's, here and below. On failure
	 * -errno and why: one line that says what to do. */
	int (*connect)(void *context, int index, const struct nbd_kernel_params *params,
		       const int *fds, unsigned count, unsigned *index_out, char *why,
		       size_t why_size);
	/* Gives the device a socket in place of a dead one. 0 also means that none was dead, and nothing
	 * was done: whether it was taken can be seen at the other end. -EINVAL: the device is not, or no
	 * longer, configured under the identifier. */
	int (*give)(void *context, unsigned index, const struct nbd_kernel_params *params, int fd);
	int (*resize)(void *context, unsigned index, const struct nbd_kernel_params *params);
	int (*disconnect)(void *context, unsigned index, char *why, size_t why_size);
	/* -EBUSY: mounted, or held by something else. */
	int (*in_use)(void *context, unsigned index);
	/* Sets the limits of a connected device, and makes its name; fresh: it has just been connected.
	 * What could not be set: -errno and why, one line; the device works all the same.
	 * untune() takes the name away. */
	int (*tune)(void *context, unsigned index, const struct nbd_kernel_params *params,
		    bool fresh, char *why, size_t why_size);
	void (*untune)(void *context, unsigned index, const char *link);
	/* The devices with an identifier that begins with prefix, up to max of them. */
	unsigned (*scan)(void *context, const char *prefix, struct nbd_kernel_device *devices,
			 unsigned max);
	void *context;
};

/* The real one. */
extern const struct nbd_kernel nbd_kernel_real;

#endif
