/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resolve: the end of a split brain by an operator's word (node_resolve()) or by a policy. What this node changed is
 * kept first, as a snapshot in the store or in files beside the volume; then it is given up, and the peer's content
 * caught up to.
 */
#ifndef OFFSITE_NODE_RESOLVE_H
#define OFFSITE_NODE_RESOLVE_H

/* By a policy this node gives up what it changed. For replication_config: context is the node_volume. */
void resolve_by_policy(void *volume);

#endif
