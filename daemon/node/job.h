/* SPDX-License-Identifier: Apache-2.0 */
/* job: one long job at a time has a volume to itself: it is what node_volume.busy says. */
#ifndef OFFSITE_NODE_JOB_H
#define OFFSITE_NODE_JOB_H

#include "daemon/node/node.h"

/* Takes the volume for what, a word for people. No memory: -ENOMEM and why. */
int node_job_take(struct node_volume *volume, const char *what, node_done_fn done, void *context,
		  char *why, size_t why_size);
/* The same, where nothing else goes on: the volume is usable, no client has it open, no snapshot is being taken;
 * else -errno and why. */
int node_job_begin(struct node_volume *volume, const char *what, node_done_fn done, void *context,
		   char *why, size_t why_size);
/* Gives the volume back, then calls done(). */
void node_job_finish(struct node_volume *volume, int error, const char *why);

#endif
