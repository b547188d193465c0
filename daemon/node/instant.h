/* SPDX-License-Identifier: Apache-2.0 */
/*
 * instant: a restore that is used before it is whole (node_restore_instant()):
 *
 *   OPENING   the snapshot's manifest is loaded; nothing has changed yet
 *   PINNING   the snapshot is pinned, so that no retention takes it away meanwhile
 *   WAITING   something under way on the volume, or a client that has just gone, has to end first
 *   FILLING   the volume serves clients; volume/hydrate.c fetches. A restart comes back here by OPENING. If the
 *             disk may have held the last copy of something, nothing but what clients want is fetched over it before
 *             the store was found to have all that the snapshot needs: which takes lists, and is looked for behind
 *   UNPINNING it is over; the pin is taken away, also after a restart
 *   CLOSING   nothing more is asked of the store
 */
#ifndef OFFSITE_NODE_INSTANT_H
#define OFFSITE_NODE_INSTANT_H

#include "daemon/node/node.h"

/* Now and then: goes on with one that a restart interrupted; takes the pin of one that is over away. */
void instant_look(struct node_volume *volume);
/* The node stops: calls node_stop_go_on() when volume->instant is NULL. */
void instant_stop(struct node_volume *volume);

#endif
