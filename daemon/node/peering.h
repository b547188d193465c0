/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peering: the replication of a node's volumes as its config says: who is let in and by what proof (peer-listen, TLS),
 * and each volume's side of it. It is what sets replication of a node_volume.
 */
#ifndef OFFSITE_NODE_PEERING_H
#define OFFSITE_NODE_PEERING_H

#include "daemon/node/node.h"

/* Where peers come in: one for all volumes of a node. */
struct peering_door;

/* With psk-file or tls-cert a peer has to prove who it is, unless peer-plaintext; without peer-listen none comes in.
 * -errno and why. */
int peering_door_open(struct node *node, struct peering_door **door, char *why, size_t why_size);
/* Nobody comes in any more. */
void peering_door_close(struct peering_door *door);
void peering_door_free(struct peering_door *door); /* NULL is allowed */
/* peer-listen's real address, or NULL. */
const char *peering_door_addr(const struct peering_door *door);

/* A volume's side. */
struct peering;

/* What proves its peer to it is read now. -errno and why. */
int peering_new(struct node_volume *volume, struct peering **peering, char *why, size_t why_size);
void peering_free(struct peering *peering); /* closed. NULL is allowed */
/* The volume is open: its replication begins. -errno and why. */
int peering_open(struct peering *peering, char *why, size_t why_size);
void peering_close(struct peering *peering, void (*closed)(void *context), void *context);
/* The volume's options have changed. */
void peering_set_options(struct peering *peering);

/* Staged data goes to the disk; that of an earlier run, too. */
bool peering_is_applying(const struct node_volume *volume);
/* STANDALONE where nothing is replicated. */
void peering_get_status(const struct node_volume *volume, struct replication_status *status);
/* The two nodes talk to each other about this volume. */
bool peering_is_connected(const struct replication_status *status);

#endif
