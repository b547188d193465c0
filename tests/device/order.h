/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a daemon that is linked with kernel.c says to nbd_device, instead of what it would say to the kernel over
 * netlink: one order and its answer on a SOCK_SEQPACKET connection to the path in the variable OFFSITE_DEVICE.
 */
#ifndef OFFSITE_TESTS_DEVICE_ORDER_H
#define OFFSITE_TESTS_DEVICE_ORDER_H

#include <stdbool.h>
#include <stdint.h>

#define DEVICE_NAME_MAX    256u
#define DEVICE_SOCKETS_MAX 16u

enum device_verb { DEVICE_CONNECT, DEVICE_GIVE, DEVICE_RESIZE, DEVICE_DISCONNECT, DEVICE_SCAN };

/* The sockets of CONNECT and GIVE come along (SCM_RIGHTS). */
struct device_order {
	enum device_verb verb;
	uint32_t sockets;
	uint64_t size_bytes;
	uint32_t dead_s, request_s;
	char identifier[DEVICE_NAME_MAX];
};

/* SCAN: identifier is "" where nothing is attached. */
struct device_answer {
	int error; /* 0 or -errno */
	uint32_t connections;
	uint64_t size_bytes;
	char identifier[DEVICE_NAME_MAX];
};

#endif
