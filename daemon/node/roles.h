/* SPDX-License-Identifier: Apache-2.0 */
/*
 * roles: promote and demote (node_promote(), node_promote_start(), node_demote()): what speaks against it, the fence
 * before a promotion, and what a promotion by force gives up.
 */
#ifndef OFFSITE_NODE_ROLES_H
#define OFFSITE_NODE_ROLES_H

#include "daemon/node/node.h"

/* A promotion that waits for its fence, or for a sign of its peer's life, is to end soon; then node_stop_go_on()
 * follows. */
void roles_cancel(struct node_volume *volume);
/* Stores a state with another role. -errno and why. */
int roles_store(struct node_volume *volume, const struct volume_state *state, char *why,
		size_t why_size);

#endif
