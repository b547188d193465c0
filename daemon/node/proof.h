/* SPDX-License-Identifier: Apache-2.0 */
/*
 * proof: the newest snapshot (or one that is named) is restored for real to a scratch file, every byte of
 * it checked on the way, then a program of the operator's looks at it; the file goes again. What came of it is
 * kept in the state directory (protocol/proof.md). By an operator's word, and on a schedule. It works with a
 * store of its own and needs nothing of the volume but its uuid, whatever the node's role.
 */
#ifndef OFFSITE_PROOF_H
#define OFFSITE_PROOF_H

#include "daemon/node/node.h"

struct proof;

/* Reads the record, removes what an interrupted trial left behind, begins with the schedule. NULL: no memory. */
struct proof *proof_new(struct node_volume *volume);
void proof_free(struct proof *proof); /* not under way */
/* No more are begun; the operator's program is killed, and node_stop_go_on() follows. False: it is not
 * over yet. */
bool proof_stop(struct proof *proof);
/* A restore is under way, which cannot be called back: nothing that it uses may be freed. */
bool proof_is_restoring(const struct proof *proof);

#endif
