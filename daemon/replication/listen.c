/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listen: the node's door for peers. Owns connections until they have said HELLO, in bounded number
 * and time, then hands each to the replication of the volume it names.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/replication/accept.h"

enum {
	PENDING_MAX = 64,
	HELLO_TIMEOUT_MS = 10000,
};
#define LOG_EVERY_NS 1000000000ull

struct pending {
	struct replication_listener *listener;
	struct link *link; /* NULL: unused */
};

struct replication_listener {
	struct env *env;
	struct env_listener *listener;
	struct tls_context *tls;
	struct replication *(*find)(void *context, const char *volume_name);
	void *context;
	struct pending pending[PENDING_MAX];
	uint64_t logged_at_ns;
};

/* Strangers can make us say something once a second at most. */
static void complain(struct replication_listener *listener, const char *peer, const char *why)
{
	uint64_t now = env_now_ns(listener->env);
	bool quiet = listener->logged_at_ns && now - listener->logged_at_ns < LOG_EVERY_NS;

	if (!quiet)
		listener->logged_at_ns = now;
	env_log(listener->env, quiet ? ENV_LOG_DEBUG : ENV_LOG_WARNING, "peer %s: %s", peer, why);
}

static void refuse(struct pending *pending, enum frame_error code, const char *why)
{
	struct link *link = pending->link;

	complain(pending->listener, link_peername(link), why);
	pending->link = NULL;
	link_refuse(link, code, why);
	link_close(link);
}

static bool pending_admit(void *owner, const struct frame *frame, struct buf **buf)
{
	if (frame->type == FRAME_HELLO)
		return true;
	refuse(owner, FRAME_ERROR_PROTOCOL, "does not begin with HELLO");
	return false;
}

static void pending_frame(void *owner, const struct frame *frame, const void *payload,
			  struct buf *buf)
{
	struct pending *pending = owner;
	struct replication_listener *listener = pending->listener;
	struct link *link = pending->link;
	struct hello hello;
	char text[200];

	buf_put(buf);
	if (frame->type != FRAME_HELLO) {
		pending->link = NULL;
		link_close(link);
		return;
	}
	const char *reason = hello_decode(payload, frame->payload_length, &hello);
	if (reason) {
		refuse(pending, FRAME_ERROR_PROTOCOL, reason);
		return;
	}
	if (hello.version != FRAME_VERSION) {
		snprintf(text, sizeof(text), "speaks version %u of the protocol, this node %u",
			 hello.version, FRAME_VERSION);
		refuse(pending, FRAME_ERROR_VERSION, text);
		return;
	}
	struct replication *replication = listener->find(listener->context, hello.volume);
	if (!replication) {
		snprintf(text, sizeof(text), "no replicated volume %s here", hello.volume);
		refuse(pending, FRAME_ERROR_NO_VOLUME, text);
		return;
	}
	if (!replication_admits(replication, link)) {
		snprintf(text, sizeof(text),
			 "volume %.48s: certificate '%.60s' does not carry the peer's name",
			 hello.volume, link_identity(link));
		refuse(pending, FRAME_ERROR_NO_VOLUME, text);
		return;
	}
	pending->link = NULL;
	replication_accept(replication, link, &hello);
}

static void pending_dead(void *owner, int error, const char *why)
{
	struct pending *pending = owner;
	struct link *link = pending->link;

	if (error) /* an orderly end without a word is a port check */
		complain(pending->listener, link_peername(link), why);
	pending->link = NULL;
	link_close(link);
}

static const struct link_ops pending_ops = {
	.admit = pending_admit,
	.frame = pending_frame,
	.dead = pending_dead,
};

static void accepted(void *context, struct env_sock *sock)
{
	struct replication_listener *listener = context;
	static const struct link_config config = {
		.ping_interval_ms = HELLO_TIMEOUT_MS / 3,
		.peer_timeout_ms = HELLO_TIMEOUT_MS,
	};
	struct pending *pending = NULL;

	for (unsigned i = 0; i < PENDING_MAX && !pending; i++)
		if (!listener->pending[i].link)
			pending = &listener->pending[i];
	if (!pending) {
		complain(listener, env_sock_peername(sock), "too many connections without HELLO");
		env_sock_close(listener->env, sock);
		return;
	}
	struct stream *stream = stream_new(listener->env, sock);
	if (!stream) {
		env_sock_close(listener->env, sock);
		return;
	}
	pending->listener = listener;
	pending->link = link_new(listener->env, stream, &config, &pending_ops, pending);
	if (pending->link)
		link_start(pending->link, listener->tls);
}

int replication_listen(struct env *env, const char *addr, struct tls_context *tls_server,
		       struct replication *(*find)(void *context, const char *volume_name),
		       void *context, struct replication_listener **result, char *why,
		       size_t why_size)
{
	struct replication_listener *listener = calloc(1, sizeof(*listener));
	if (!listener) {
		snprintf(why, why_size, "peer-listen: %s: no memory", addr);
		return -ENOMEM;
	}
	listener->env = env;
	listener->tls = tls_server;
	listener->find = find;
	listener->context = context;
	int error = env_listen(env, addr, accepted, listener, &listener->listener);
	if (error) {
		snprintf(why, why_size, "peer-listen: %s: %s", addr, strerror(-error));
		free(listener);
		return error;
	}
	*result = listener;
	return 0;
}

const char *replication_listener_addr(const struct replication_listener *listener)
{
	return env_listener_addr(listener->listener);
}

void replication_listener_free(struct replication_listener *listener)
{
	if (!listener)
		return;
	env_listener_close(listener->env, listener->listener);
	for (unsigned i = 0; i < PENDING_MAX; i++)
		if (listener->pending[i].link)
			link_close(listener->pending[i].link);
	free(listener);
}
