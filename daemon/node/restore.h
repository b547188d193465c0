/* SPDX-License-Identifier: Apache-2.0 */
/*
 * restore: a volume's content is replaced in place: by a snapshot, or by what the peer has (node_restore_snapshot(),
 * node_restore_from_peer()). Nobody is served until all of it is there; instant.h serves earlier.
 */
#ifndef OFFSITE_NODE_RESTORE_H
#define OFFSITE_NODE_RESTORE_H

#include "daemon/node/node.h"

/* What speaks against a restore of a snapshot here: -errno and why; else the volume is primary, has a disk, and the
 * peer is kept away. */
int restore_prepare(struct node_volume *volume, char *why, size_t why_size);

#endif
