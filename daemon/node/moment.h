/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moment: what is done around the cut of a snapshot. In this order: the operator's command before it
 * (a checkpoint, fsfreeze); on a secondary, the point at which nothing of the stream is half applied; the
 * cut; the operator's command after it. The second command runs whenever the first one was begun,
 * whatever came of it and of the cut, and does not wait for the upload. A file in the state directory says
 * that it is owed, so that a daemon that was killed in between makes up for it at its next start.
 */
#ifndef OFFSITE_MOMENT_H
#define OFFSITE_MOMENT_H

#include "daemon/node/node.h"

struct moment;

struct moment *moment_new(struct node_volume *volume); /* NULL: no memory */
/* Idle. */
void moment_free(struct moment *moment);
/* snapshot_writer_config.prepare; context: the struct moment. */
void moment_prepare(void *moment, struct snapshot_writer *writer);
/* The daemon stops: the command before the cut is killed, the one after it is waited for. True: nothing is
 * under way; else node_stop_go_on() follows. */
bool moment_stop(struct moment *moment);

#endif
