/* SPDX-License-Identifier: Apache-2.0 */
/*
 * netlink: messages to the kernel's generic netlink family "nbd" (linux/nbd-netlink.h), over libnl-3.
 * Blocking; each exchange has a socket of its own, so any thread may call.
 */
#ifndef OFFSITE_NBD_SERVER_NETLINK_H
#define OFFSITE_NBD_SERVER_NETLINK_H

#include <linux/nbd-netlink.h>
#include <stddef.h>
#include <stdint.h>

struct nl_msg;

/* What a message says of a device; members that are not given are left out. */
struct nbd_netlink_request {
	uint8_t command;        /* NBD_CMD_CONNECT, _RECONFIGURE or _DISCONNECT */
	int index;              /* -1: none, the kernel picks */
	uint64_t size_bytes;    /* 0: none */
	uint64_t block_bytes;   /* 0: none */
	uint64_t server_flags;  /* NBD_FLAG_..., CONNECT only */
	const char *identifier; /* NULL: none */
	const int *fds;         /* sockets */
	unsigned fd_count;
	/* In seconds. dead: 0: none. request: sent with CONNECT only, 0 too: it means that a request
	 * whose socket lives is never given up. */
	unsigned dead_s, request_s;
};

/* The message, or NULL without memory. For nlmsg_free(). */
struct nl_msg *nbd_netlink_message(int family, const struct nbd_netlink_request *request);

/* Sends it and waits for the kernel's answer: 0, or its -errno; -ENODEV: there is no such family (the
 * module is not loaded). index: of the device, where the answer names it; may be NULL. */
int nbd_netlink_exchange(const struct nbd_netlink_request *request, unsigned *index);

#endif
