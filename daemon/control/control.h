/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control: the daemon's HTTP + JSON API on a unix socket, its events and its metrics (docs/API.md).
 *
 * libmicrohttpd runs a thread for each connection. Those threads read the request, hand it to the
 * loop thread as a message, wait, and write the answer; volume state is touched on the loop thread
 * only. Long work becomes a job that is asked after by its number.
 */
#ifndef OFFSITE_CONTROL_H
#define OFFSITE_CONTROL_H

#include "daemon/node/node.h"
#include "nbd-server/attach.h"
#include "nbd-server/nbd_server.h"

struct control;

struct control_config {
	struct node *node;
	struct nbd_server *nbd;  /* NULL: no NBD server */
	struct attach *attach;   /* NULL: nothing is attached to the kernel */
	const char *socket_path; /* made with mode 0660; a stale one is replaced */
};

/* Listens and answers from now on. On failure -errno and why (-EADDRINUSE: another process answers
 * on the socket). */
int control_start(struct env *env, const struct control_config *config, struct control **control,
		  char *why, size_t why_size);

/* The exports of a node as block devices, by its configuration: for attach_start(). NULL without memory. */
struct attach *control_attach_new(struct env *env, struct node *node, struct nbd_server *nbd);

/* Answers what is asked with 503, waits for listings and deletions under way, ends the HTTP
 * threads and takes the socket away; then stopped(). Jobs that belong to the node (snapshots,
 * restores) go on until the node stops. */
void control_stop(struct control *control, void (*stopped)(void *context), void *context);

/* After stopped() and after the node has stopped. False: a verification still reads the store, so
 * nothing was freed; the process should exit without freeing the environment. */
bool control_free(struct control *control);

#endif
