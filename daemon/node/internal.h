/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the node share: node.c (life, stores, restores) and roles.c. */
#ifndef OFFSITE_NODE_INTERNAL_H
#define OFFSITE_NODE_INTERNAL_H

#include "daemon/node/node.h"

/* node.c */
int node_fail(int error, char *why, size_t why_size, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
/* 0, or why nothing can be done with the volume now. */
int node_check_usable(struct node_volume *volume, char *why, size_t why_size);
bool node_is_applying(const struct node_volume *volume); /* staged data of an earlier run, too */
void node_open_store(struct node_volume *volume);
/* The promotion, or the command of a snapshot, that a stop waited for has ended. */
void node_stop_go_on(struct node_volume *volume);
bool node_is_stopping(const struct node_volume *volume);

/* One long job at a time has a volume, without clients; -errno and why: it cannot now. */
int node_job_begin(struct node_volume *volume, const char *what, node_done_fn done, void *context,
		   char *why, size_t why_size);
void node_job_finish(struct node_volume *volume, int error, const char *why);
/* What speaks against a restore here; else the volume is primary, has a disk, and the peer is kept away. */
int node_restore_prepare(struct node_volume *volume, char *why, size_t why_size);

/* instant.c: restores that are used before they are whole. */
/* Now and then: goes on with one that a restart interrupted; takes the pin of one that is over away. */
void instant_look(struct node_volume *volume);
/* The node stops: calls node_stop_go_on() when volume->instant is NULL. */
void instant_stop(struct node_volume *volume);

/* disk.c */
void node_disk_cancel(struct node_volume *volume); /* a replacement that waits ends */
/* resolve.c: by a policy this node gives up what it changed. */
void resolve_by_policy(void *volume);

/* roles.c */
bool node_is_connected(const struct replication_status *status);
/* A promotion that waits for its fence is to end soon. */
void roles_cancel(struct node_volume *volume);

#endif
