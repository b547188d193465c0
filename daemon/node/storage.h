/* SPDX-License-Identifier: Apache-2.0 */
/*
 * storage: the store of a volume, and the repository and the writer of snapshots in it: opened on a helper thread, as
 * one that hangs must not keep a volume from its clients, and made anew when the volume takes another uuid. It is
 * what sets store, store_opening, store_error, repo and writer of a node_volume.
 */
#ifndef OFFSITE_NODE_STORAGE_H
#define OFFSITE_NODE_STORAGE_H

#include "daemon/node/node.h"

struct storage;

struct storage *storage_new(struct node_volume *volume); /* NULL: no memory */
/* Closed, and not opening. NULL is allowed. */
void storage_free(struct storage *storage);

/* Opens the store if one is configured and it is not open; else follows the volume's uuid. To be called at start, now
 * and then, and when the uuid may have changed. */
void storage_open(struct storage *storage);
/* The volume has taken another: called in the middle of its work, followed in the same turn. */
void storage_uuid_changed(struct storage *storage);
/* Now and then: the same, and says if it is still not open since the last time. */
void storage_look(struct storage *storage);
/* The volume's options have changed. */
void storage_set_options(struct storage *storage);
/* Whether a snapshot is being taken. */
bool storage_is_writing(const struct node_volume *volume);

/* The node stops: in this order, first the writer, whose cut is given up ... */
void storage_stop_writer(struct storage *storage, void (*stopped)(void *context), void *context);
/* ... then, once nothing is under way in it any more, the store. While it is still being opened (store_opening)
 * node_stop_go_on() follows. */
void storage_close(struct storage *storage, void (*closed)(void *context), void *context);

#endif
