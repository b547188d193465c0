/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk: a failed disk was replaced (node_replace_disk()): the volume gets its content back from the peer. A secondary
 * syncs anew. A primary leans on its peer, if it does not yet, and its new disk is filled while clients are at work.
 * Or it is to be bigger (node_resize()).
 */
#ifndef OFFSITE_NODE_DISK_H
#define OFFSITE_NODE_DISK_H

#include "daemon/node/node.h"

void disk_cancel(struct node_volume *volume); /* a replacement that waits ends */

#endif
