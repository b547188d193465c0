/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kept: copies content that is going to be given up into files beside the volume:
 * STATE-DIR/kept/NAME.img holds the blocks at their own offsets (holes elsewhere), NAME.json says which
 * they are; it comes last, so a copy without it is not whole. Format: protocol/split.md.
 */
#ifndef OFFSITE_REPLICATION_KEPT_H
#define OFFSITE_REPLICATION_KEPT_H

#include "daemon/volume/volume.h"

struct kept_result {
	int error; /* -ENOSPC: nothing was kept, nothing is left behind */
	char why[640];
	char index[512]; /* the JSON file's path; "" if there was nothing to keep */
	uint64_t bytes, extents;
};

/* What the peer's dirty map names; or, for a map that does not reach back to where the peer's content is, the whole:
 * all that is no hole. Nobody may write to the volume meanwhile. Space is reserved first. done is called once, from
 * inside or later. */
void kept_write(struct volume *volume, const char *node_name, const char *reason, bool whole,
		void (*done)(void *context, const struct kept_result *result), void *context);

#endif
