/* SPDX-License-Identifier: Apache-2.0 */
/*
 * schedule: when the automatic snapshot of a volume is due (snapshot-every), and whether it is this node's to
 * take: the primary's, or with snapshot-from the secondary's, for which the primary steps in when none comes.
 */
#ifndef OFFSITE_NODE_SCHEDULE_H
#define OFFSITE_NODE_SCHEDULE_H

#include "daemon/node/node.h"

#define SCHEDULE_LOOK_NS 5000000000ull /* so often schedule_look() is called */

struct schedule;

struct schedule *schedule_new(struct node_volume *volume); /* NULL: no memory */
void schedule_free(struct schedule *schedule);             /* stopped. NULL is allowed */

/* The volume is open: the first one is due an interval from now, unless node_saw_snapshot() says otherwise. */
void schedule_start(struct schedule *schedule);
void schedule_stop(struct schedule *schedule);
/* Whether a newer snapshot is known, whoever wrote it. */
void schedule_look(struct schedule *schedule);
/* Of a split brain, for replication_config: context is the node_volume. What the other took while it was apart may
 * be the newest in the store, and be what was given up. So the surviving primary takes one soon, which is newer. */
void schedule_split_over(void *volume);

#endif
