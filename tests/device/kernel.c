// SPDX-License-Identifier: Apache-2.0
/*
 * A kernel for machines without nbd.ko: the table that nbd-server/kernel.c fills in elsewhere. What the daemon attaches
 * is handed to the program that listens on OFFSITE_DEVICE (nbd_device). There is one device, nbd0.
 */
#include "nbd-server/kernel.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/device/order.h"

_Static_assert(DEVICE_NAME_MAX == NBD_KERNEL_NAME_MAX, "the same names");

static int connect_device(void)
{
	const char *path = getenv("OFFSITE_DEVICE");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd;

	if (!path)
		return -ENODEV;
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
		return fd;
	close(fd);
	return -ENODEV;
}

static bool send_order(int fd, const struct device_order *order, const int *sockets)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(DEVICE_SOCKETS_MAX * sizeof(int))];
	} control = {.bytes = {0}};
	struct iovec text = {.iov_base = (void *)(uintptr_t)order, .iov_len = sizeof(*order)};
	struct msghdr message = {.msg_iov = &text, .msg_iovlen = 1};

	if (order->sockets > 0) {
		size_t length = order->sockets * sizeof(int);

		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(length);
		memcpy(CMSG_DATA(&control.header), sockets, length);
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(length);
	}
	return sendmsg(fd, &message, MSG_NOSIGNAL) == (ssize_t)sizeof(*order);
}

/* The answer's error, or that there is nobody. */
static int give_order(const struct device_order *order, const int *sockets,
		      struct device_answer *answer)
{
	int fd = connect_device();
	bool answered;

	memset(answer, 0, sizeof(*answer));
	if (fd < 0)
		return fd;
	answered = send_order(fd, order, sockets) &&
		   recv(fd, answer, sizeof(*answer), 0) == (ssize_t)sizeof(*answer);
	close(fd);
	return answered ? answer->error : -ENODEV;
}

static void fill_order(struct device_order *order, enum device_verb verb,
		       const struct nbd_kernel_params *params, unsigned sockets)
{
	memset(order, 0, sizeof(*order));
	order->verb = verb;
	order->sockets = sockets;
	if (!params)
		return;
	order->size_bytes = params->size_bytes;
	order->dead_s = params->dead_s;
	order->request_s = params->request_s;
	snprintf(order->identifier, sizeof(order->identifier), "%s", params->identifier);
}

static int device_connect(void *context, int index, const struct nbd_kernel_params *params,
			  const int *fds, unsigned count, unsigned *index_out, char *why,
			  size_t why_size)
{
	struct device_order order;
	struct device_answer answer;
	int error;

	fill_order(&order, DEVICE_CONNECT, params, count);
	error = give_order(&order, fds, &answer);
	*index_out = 0;
	if (error)
		snprintf(why, why_size, "the device of the test: %s", strerror(-error));
	return error;
}

static int device_give(void *context, unsigned index, const struct nbd_kernel_params *params,
		       int fd)
{
	struct device_order order;
	struct device_answer answer;

	fill_order(&order, DEVICE_GIVE, params, 1);
	return give_order(&order, &fd, &answer);
}

static int device_resize(void *context, unsigned index, const struct nbd_kernel_params *params)
{
	struct device_order order;
	struct device_answer answer;

	fill_order(&order, DEVICE_RESIZE, params, 0);
	return give_order(&order, NULL, &answer);
}

static int device_disconnect(void *context, unsigned index, char *why, size_t why_size)
{
	struct device_order order;
	struct device_answer answer;
	int error;

	fill_order(&order, DEVICE_DISCONNECT, NULL, 0);
	error = give_order(&order, NULL, &answer);
	if (error)
		snprintf(why, why_size, "the device of the test: %s", strerror(-error));
	return error;
}

static int device_in_use(void *context, unsigned index)
{
	return 0;
}

static int device_tune(void *context, unsigned index, const struct nbd_kernel_params *params,
		       bool fresh, char *why, size_t why_size)
{
	return 0;
}

static void device_untune(void *context, unsigned index, const char *link)
{
}

static unsigned device_scan(void *context, const char *prefix, struct nbd_kernel_device *devices,
			    unsigned max)
{
	struct device_order order;
	struct device_answer answer;

	fill_order(&order, DEVICE_SCAN, NULL, 0);
	if (max == 0 || give_order(&order, NULL, &answer) ||
	    strncmp(answer.identifier, prefix, strlen(prefix)) != 0)
		return 0;
	memset(devices, 0, sizeof(*devices));
	devices->connections = answer.connections;
	devices->size_bytes = answer.size_bytes;
	memcpy(devices->identifier, answer.identifier, sizeof(answer.identifier));
	return 1;
}

const struct nbd_kernel nbd_kernel_real = {
	.connect = device_connect,
	.give = device_give,
	.resize = device_resize,
	.disconnect = device_disconnect,
	.in_use = device_in_use,
	.tune = device_tune,
	.untune = device_untune,
	.scan = device_scan,
};
