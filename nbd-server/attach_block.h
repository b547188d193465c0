/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attach_block: the export behind an attached device: found by its name, or looked up, which takes time; open as long as
 * the device has connections.
 */
#ifndef OFFSITE_NBD_SERVER_ATTACH_BLOCK_H
#define OFFSITE_NBD_SERVER_ATTACH_BLOCK_H

#include "nbd-server/attach.h"

struct attach_block {
	const struct attach_config *config;
	/* It is open, or -errno and why. */
	void (*opened)(struct attach_block *block, int error, const char *why);
	struct block *block; /* open, or NULL */
	bool looking;        /* a lookup is under way */
	/* attach_block.c's */
	bool held; /* it was looked up */
	bool given_up;
	struct block_lookup lookup;
};

/* It is neither open nor being looked up. opened() may come from inside. */
void attach_block_open(struct attach_block *block, const char *name);
/* Nothing uses it. No harm if it is not open. */
void attach_block_close(struct attach_block *block);
/* The daemon stops: what is being looked up is not opened any more, and opened() does not come. */
void attach_block_give_up(struct attach_block *block);

#endif
