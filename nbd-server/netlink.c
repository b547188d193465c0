// SPDX-License-Identifier: Apache-2.0
#include "nbd-server/netlink.h"

#include <errno.h>
#include <netlink/attr.h>
#include <netlink/errno.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <stdbool.h>

static bool put_sockets(struct nl_msg *message, const int *fds, unsigned count)
{
	struct nlattr *sockets = nla_nest_start(message, NBD_ATTR_SOCKETS);

	if (!sockets)
		return false;
	for (unsigned i = 0; i < count; i++) {
		struct nlattr *item = nla_nest_start(message, NBD_SOCK_ITEM);

		if (!item || nla_put_u32(message, NBD_SOCK_FD, (uint32_t)fds[i]))
			return false;
		nla_nest_end(message, item);
	}
	nla_nest_end(message, sockets);
	return true;
}

static bool put_request(struct nl_msg *message, const struct nbd_netlink_request *r)
{
	bool connect = r->command == NBD_CMD_CONNECT;

	return (r->index < 0 || !nla_put_u32(message, NBD_ATTR_INDEX, (uint32_t)r->index)) &&
	       (!r->size_bytes || !nla_put_u64(message, NBD_ATTR_SIZE_BYTES, r->size_bytes)) &&
	       (!r->block_bytes ||
		!nla_put_u64(message, NBD_ATTR_BLOCK_SIZE_BYTES, r->block_bytes)) &&
	       (!connect || !nla_put_u64(message, NBD_ATTR_SERVER_FLAGS, r->server_flags)) &&
	       (!connect || !nla_put_u64(message, NBD_ATTR_TIMEOUT, r->request_s)) &&
	       (!r->dead_s || !nla_put_u64(message, NBD_ATTR_DEAD_CONN_TIMEOUT, r->dead_s)) &&
	       (!r->identifier ||
		!nla_put_string(message, NBD_ATTR_BACKEND_IDENTIFIER, r->identifier)) &&
	       (!r->fd_count || put_sockets(message, r->fds, r->fd_count));
}

struct nl_msg *nbd_netlink_message(int family, const struct nbd_netlink_request *request)
{
	struct nl_msg *message = nlmsg_alloc();

	if (message &&
	    genlmsg_put(message, NL_AUTO_PORT, NL_AUTO_SEQ, family, 0, 0, request->command,
			NBD_GENL_VERSION) &&
	    put_request(message, request))
		return message;
	nlmsg_free(message);
	return NULL;
}

struct answer {
	bool over;
	int error;
	unsigned *index;
};

static int answer_valid(struct nl_msg *message, void *context)
{
	struct answer *answer = context;
	struct nlattr *index = nlmsg_find_attr(nlmsg_hdr(message), GENL_HDRLEN, NBD_ATTR_INDEX);

	if (index && answer->index)
		*answer->index = nla_get_u32(index);
	return NL_OK;
}

static int answer_ack(struct nl_msg *message, void *context)
{
	((struct answer *)context)->over = true;
	return NL_STOP;
}

/* libnl has codes of its own, and fewer: the kernel's is taken as it is. */
static int answer_error(struct sockaddr_nl *from, struct nlmsgerr *error, void *context)
{
	struct answer *answer = context;

	answer->over = true;
	answer->error = error->error;
	return NL_STOP;
}

static int exchange(struct nl_sock *socket, struct nl_msg *message, unsigned *index)
{
	struct answer answer = {.index = index};
	struct nl_cb *callbacks = nl_cb_alloc(NL_CB_DEFAULT);
	int result;

	if (!callbacks)
		return -ENOMEM;
	nl_cb_set(callbacks, NL_CB_VALID, NL_CB_CUSTOM, answer_valid, &answer);
	nl_cb_set(callbacks, NL_CB_ACK, NL_CB_CUSTOM, answer_ack, &answer);
	nl_cb_err(callbacks, NL_CB_CUSTOM, answer_error, &answer);
	result = nl_send_auto(socket, message);
	while (result >= 0 && !answer.over)
		result = nl_recvmsgs(socket, callbacks);
	nl_cb_put(callbacks);
	return answer.over ? answer.error : -EIO;
}

int nbd_netlink_exchange(const struct nbd_netlink_request *request, unsigned *index)
{
	struct nl_sock *socket = nl_socket_alloc();
	struct nl_msg *message = NULL;
	int family, error;

	if (!socket)
		return -ENOMEM;
	error = genl_connect(socket);
	family = error ? error : genl_ctrl_resolve(socket, NBD_GENL_FAMILY_NAME);
	if (family < 0) {
		nl_socket_free(socket);
		return family == -NLE_OBJ_NOTFOUND ? -ENODEV
		       : family == -NLE_NOMEM      ? -ENOMEM
						   : -EPROTONOSUPPORT;
	}
	message = nbd_netlink_message(family, request);
	error = message ? exchange(socket, message, index) : -ENOMEM;
	nlmsg_free(message);
	nl_socket_free(socket);
	return error;
}
