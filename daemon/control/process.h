/* SPDX-License-Identifier: Apache-2.0 */
/*
 * process: what the daemon asks of the kernel and tells the service manager.
 */
#ifndef OFFSITE_CONTROL_PROCESS_H
#define OFFSITE_CONTROL_PROCESS_H

#include "daemon/io/env.h"

/* The daemon may stand under its own client's filesystem: it locks the memory it uses, is marked as
 * an I/O flusher, and asks the OOM killer for mercy, so that writing out dirty pages cannot wait
 * for itself. What is not permitted is logged and done without. */
void process_harden(struct env *env);

/* Sends a state ("READY=1") to $NOTIFY_SOCKET, if the service manager gave one. */
void process_notify(struct env *env, const char *state);

#endif
