// SPDX-License-Identifier: Apache-2.0
/*
 * Listeners, the table of connections, and what is common to a connection's phases: receiving,
 * sending, closing, freeing.
 */
#include "nbd-server/connection.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/io/resident.h"

#define CONNECTIONS_DEFAULT 64u
#define CLIENTS_HOLD_ALL \
	4u /* each leaves that to the others, even one that never reads its replies */
#define HANDSHAKE_MS_DEFAULT 30000u
#define STOP_MS              5000u /* a stopping server waits so long for slow clients */
#define QUIET_MS             20u   /* a kernel that sends nothing for so long waits for replies */
/* A stopping server waits so long for that: what it gives up the kernel sends again only after as long. */
#define QUIESCE_MS   2000u
#define EVICT_AGE_NS 1000000000u /* a full server ends handshakes older than that */
#define LOG_BURST    10u         /* lines a second that clients may cause */
#define STALL_MS_DEFAULT \
	30000u /* a client that does not move so long, while others wait for memory */

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* ---- logging ------------------------------------------------------------------------------ */

void nbd_server_log(struct nbd_server *server, enum env_log_level level, const char *format, ...)
{
	uint64_t second = env_now_ns(server->env) / 1000000000u;
	char line[512];
	va_list args;

	if (second != server->log_second) {
		if (server->log_suppressed)
			env_log(server->env, ENV_LOG_INFO, "nbd: %u more messages left out",
				server->log_suppressed);
		server->log_second = second;
		server->log_count = server->log_suppressed = 0;
	}
	if (server->log_count >= LOG_BURST) {
		server->log_suppressed++;
		return;
	}
	server->log_count++;
	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	env_log(server->env, level, "%s", line);
}

const char *nbd_printable(char to[NBD_PRINTABLE_BYTES], const char *text, size_t length)
{
	bool cut = length > NBD_PRINTABLE_BYTES - 4;
	size_t n = cut ? NBD_PRINTABLE_BYTES - 4 : length;

	for (size_t i = 0; i < n; i++) {
		unsigned char c = (unsigned char)text[i];

		to[i] = c < 0x20 || c >= 0x7f ? '?' : (char)c;
	}
	strcpy(to + n, cut ? "..." : "");
	return to;
}

/* ---- states ------------------------------------------------------------------------------- */

#define BIT(state) (1u << (state))

static const unsigned next_states[NBD_STATES] = {
	[NBD_GREETING] = BIT(NBD_OPTION) | BIT(NBD_CLOSED),
	[NBD_OPTION] = BIT(NBD_REPLY) | BIT(NBD_CLOSED),
	[NBD_REPLY] = BIT(NBD_OPTION) | BIT(NBD_TLS) | BIT(NBD_TRANSMISSION) | BIT(NBD_CLOSED),
	[NBD_TLS] = BIT(NBD_OPTION) | BIT(NBD_CLOSED),
	[NBD_TRANSMISSION] = BIT(NBD_DRAINING) | BIT(NBD_CLOSED),
	[NBD_DRAINING] = BIT(NBD_CLOSED),
	[NBD_CLOSED] = 0,
};

void nbd_connection_set_state(struct nbd_connection *connection, enum nbd_state state)
{
	assert(next_states[connection->state] & BIT(state));
	connection->state = state;
}

/* ---- receiving and sending ---------------------------------------------------------------- */

void nbd_connection_receive(struct nbd_connection *connection)
{
	uint32_t kept = connection->rx_end - connection->rx_start;
	uint32_t room;

	assert(!connection->recv_busy && connection->state != NBD_CLOSED);
	/* What is kept is less than a request's header, or an incomplete option. */
	if (connection->rx_start > 0 && kept > 0)
		memmove(connection->rx, connection->rx + connection->rx_start, kept);
	connection->rx_start = 0;
	connection->rx_end = kept;
	room = NBD_RX_BYTES - kept;
	assert(room > 0);
	if (room > connection->rx_limit)
		room = connection->rx_limit;
	connection->recv_busy = true;
	connection->recv_direct = false;
	stream_recv(connection->stream, &connection->recv_op, connection->rx + kept, room);
}

void nbd_connection_receive_direct(struct nbd_connection *connection, void *to, size_t length)
{
	assert(!connection->recv_busy && connection->rx_start == connection->rx_end);
	connection->recv_busy = true;
	connection->recv_direct = true;
	stream_recv(connection->stream, &connection->recv_op, to, length);
}

static void connection_recv_done(struct env_op *op, int64_t result)
{
	struct nbd_connection *connection = container_of(op, struct nbd_connection, recv_op);

	connection->recv_busy = false;
	if (connection->state == NBD_CLOSED) {
		env_defer(connection->env, &connection->task);
		return;
	}
	if (result <= 0) {
		if (result < 0 && result != -ECONNRESET)
			nbd_server_log(connection->server, ENV_LOG_DEBUG,
				       "nbd: client %s: receive: %s %s",
				       stream_peername(connection->stream), strerror((int)-result),
				       stream_error(connection->stream));
		/* After DISC the client's end of stream is no reason to drop its replies. */
		if (connection->state != NBD_DRAINING)
			nbd_connection_close(connection);
		return;
	}
	connection->received_ns = env_now_ns(connection->env);
	if (connection->recv_direct)
		nbd_transmission_direct(connection, (uint32_t)result);
	else
		connection->rx_end += (uint32_t)result;
	if (connection->state == NBD_TRANSMISSION)
		nbd_transmission_advance(connection);
	else if (connection->state != NBD_DRAINING)
		nbd_handshake_advance(connection);
}

static void connection_send_done(struct env_op *op, int64_t result)
{
	struct nbd_connection *connection = container_of(op, struct nbd_connection, send_op);

	connection->send_busy = false;
	if (connection->state == NBD_CLOSED) {
		env_defer(connection->env, &connection->task);
		return;
	}
	if (result < 0)
		nbd_connection_close(connection);
	else if (connection->state < NBD_TRANSMISSION)
		nbd_handshake_sent(connection);
	else
		nbd_reply_sent(connection);
}

/* ---- birth and death ---------------------------------------------------------------------- */

static void server_check_stopped(struct nbd_server *server)
{
	if (server->stopping && !server->first)
		env_defer(server->env, &server->stopped_task);
}

static void connection_free(struct nbd_connection *connection)
{
	struct nbd_server *server = connection->server;

	assert(connection->submitted == 0 && connection->held_bytes == 0);
	struct nbd_adopted *adopted = connection->adopted;

	nbd_meta_drop(connection);
	if (connection->block && !adopted)
		connection->block->ops->close(connection->block);
	if (connection->block_held)
		server->config.release(server->config.context, connection->block);
	if (connection->previous)
		connection->previous->next = connection->next;
	else
		server->first = connection->next;
	if (connection->next)
		connection->next->previous = connection->previous;
	else
		server->last = connection->previous;
	if (adopted)
		server->stats.adopted--;
	else
		server->stats.connections--;
	free(connection);
	if (adopted)
		adopted->freed(adopted);
	server_check_stopped(server);
}

void nbd_connection_close(struct nbd_connection *connection)
{
	if (connection->state == NBD_CLOSED)
		return;
	nbd_connection_set_state(connection, NBD_CLOSED);
	env_timer_stop(connection->env, &connection->deadline);
	stream_close(connection->stream);
	connection->stream = NULL;
	env_defer(connection->env, &connection->task);
	if (connection->adopted)
		connection->adopted->closed(connection->adopted);
}

void nbd_connection_reject(struct nbd_connection *connection, const char *reason)
{
	if (connection->state == NBD_CLOSED)
		return;
	connection->server->stats.protocol_errors++;
	nbd_server_log(connection->server, ENV_LOG_INFO, "nbd: client %s: dropped: %s",
		       stream_peername(connection->stream), reason);
	nbd_connection_close(connection);
}

static bool connection_idle(const struct nbd_connection *connection)
{
	return connection->slots_used == 0 && !connection->replies && !connection->send_busy;
}

/* Everything that should not happen inside a completion, once per loop turn. */
static void connection_task(struct env_task *task)
{
	struct nbd_connection *connection = container_of(task, struct nbd_connection, task);

	if (connection->state == NBD_CLOSED) {
		if (connection->send_busy || connection->recv_busy || connection->tls_busy ||
		    connection->looking)
			return;
		nbd_transmission_abandon(connection);
		if (connection->submitted == 0)
			connection_free(connection);
		return;
	}
	if (connection->state < NBD_TRANSMISSION)
		return;
	nbd_reply_send(connection);
	if (connection->blocked && connection->state == NBD_TRANSMISSION)
		nbd_transmission_advance(connection);
	if ((connection->state == NBD_DRAINING || (connection->stopping && !connection->adopted)) &&
	    connection->state != NBD_CLOSED && connection_idle(connection))
		nbd_connection_close(connection);
}

/* Nothing is under way, on the wire neither: as far as one can see. */
static bool connection_quiet(const struct nbd_connection *connection)
{
	return connection->submitted == 0 && connection->parse == NBD_PARSE_REQUEST &&
	       connection->rx_start == connection->rx_end && !connection->send_busy &&
	       env_now_ns(connection->env) - connection->received_ns >= QUIET_MS * 1000000ull;
}

/*
 * The end of a connection of the kernel's at a stop. What it has sent and got no answer to it sends again
 * only after a while: so all of it is answered. While it gets no replies it sends no more than its
 * queue is long, and then waits. When it does, reading ends first, and its next send fails, which it notices at
 * once; then the replies go out, and whatever they set free goes to the next daemon.
 */
static void connection_quiesce(struct nbd_connection *connection)
{
	bool late =
		env_now_ns(connection->env) - connection->stopping_ns >= QUIESCE_MS * 1000000ull;

	if (connection->state == NBD_DRAINING) {
		nbd_connection_close(
			connection); /* it does not take its replies, or the device hangs */
		return;
	}
	env_timer_start(connection->env, &connection->deadline, QUIET_MS * 1000000ull);
	if (!late && !connection_quiet(connection))
		return;
	nbd_connection_set_state(connection, NBD_DRAINING);
	shutdown(connection->adopted_fd, SHUT_RD);
	connection->holding = false;
	env_timer_start(connection->env, &connection->deadline,
			(late ? QUIET_MS : QUIESCE_MS) * 1000000ull);
	env_defer(connection->env, &connection->task);
}

static void connection_deadline(struct env_timer *timer)
{
	struct nbd_connection *connection = container_of(timer, struct nbd_connection, deadline);

	if (connection->adopted)
		connection_quiesce(connection);
	else if (connection->state < NBD_TRANSMISSION)
		nbd_connection_reject(connection, "handshake took too long");
	else
		nbd_connection_close(connection);
}

/* Why a client has to go when its buffers are missed; NULL: it may stay. */
static const char *connection_stalled(const struct nbd_connection *connection, uint64_t now_ns,
				      uint64_t limit_ns)
{
	if (connection->state < NBD_TRANSMISSION)
		return NULL;
	if (connection->send_busy && now_ns - connection->send_started_ns > limit_ns)
		return "does not read its replies while others wait for memory";
	if (connection->filling && connection->recv_busy &&
	    now_ns - connection->received_ns > limit_ns)
		return "does not send the rest of its write while others wait for memory";
	return NULL;
}

static void server_stall_start(struct nbd_server *server)
{
	env_timer_start(server->env, &server->stall,
			(uint64_t)server->config.stall_timeout_ms * 1000000u / 6);
}

/*
 * A client that stopped reading its replies keeps their buffers, one that stopped in the middle of
 * a payload the buffer it fills. As long as nobody misses them it may: it could be a machine that
 * sleeps.
 */
static void server_stall(struct env_timer *timer)
{
	struct nbd_server *server = container_of(timer, struct nbd_server, stall);
	uint64_t limit_ns = (uint64_t)server->config.stall_timeout_ms * 1000000u;
	uint64_t now_ns = env_now_ns(server->env);
	bool waiting = false;

	for (struct nbd_connection *c = server->first; c; c = c->next)
		waiting = waiting || c->waiting_buffer;
	if (!waiting)
		return;
	for (struct nbd_connection *c = server->first; c; c = c->next) {
		const char *stalled = connection_stalled(c, now_ns, limit_ns);

		if (stalled)
			nbd_connection_reject(c, stalled);
	}
	server_stall_start(server);
}

void nbd_server_watch_stalls(struct nbd_server *server)
{
	if (!env_timer_active(&server->stall))
		server_stall_start(server);
}

bool nbd_server_may_look(const struct nbd_server *server)
{
	unsigned looking = 0;

	for (const struct nbd_connection *c = server->first; c; c = c->next)
		looking += c->looking;
	return looking < (server->stats.connections_max + 1) / 2;
}

/* A full table: the oldest client that is still in its handshake makes room. */
static bool server_make_room(struct nbd_server *server)
{
	uint64_t now_ns = env_now_ns(server->env);

	for (struct nbd_connection *c = server->first; c; c = c->next) {
		if (c->state >= NBD_TRANSMISSION)
			continue;
		if (now_ns - c->accepted_ns < EVICT_AGE_NS)
			return false;
		nbd_connection_reject(c, "still in its handshake while others wait");
		return true;
	}
	return false;
}

/* Takes sock over; in the list, and nothing under way. NULL without memory. */
static struct nbd_connection *connection_new(struct nbd_server *server, struct env_sock *sock)
{
	struct nbd_connection *connection = calloc(1, sizeof(*connection));

	if (connection)
		connection->stream = stream_new(server->env, sock);
	if (!connection || !connection->stream) {
		free(connection);
		env_sock_close(server->env, sock);
		return NULL;
	}
	connection->server = server;
	connection->env = server->env;
	connection->accepted_ns = env_now_ns(server->env);
	connection->deadline.fire = connection_deadline;
	connection->task.call = connection_task;
	connection->recv_op.done = connection_recv_done;
	connection->send_op.done = connection_send_done;
	connection->tls_op.done = nbd_handshake_tls_done;
	connection->waiter.resume = nbd_transmission_resume;
	connection->replies_tail = &connection->replies;
	connection->rx_limit = NBD_RX_BYTES;
	connection->previous = server->last;
	if (server->last)
		server->last->next = connection;
	else
		server->first = connection;
	server->last = connection;
	return connection;
}

static void server_accept(void *context, struct env_sock *sock)
{
	struct nbd_server *server = context;
	struct nbd_connection *connection;

	/* One that makes room is freed a turn later: the table may be over by the evicted ones. */
	if (server->stopping || (server->stats.connections >= server->stats.connections_max &&
				 !server_make_room(server))) {
		server->stats.refused++;
		nbd_server_log(server, ENV_LOG_WARNING, "nbd: client %s: refused: %s",
			       env_sock_peername(sock),
			       server->stopping ? "stopping" : "too many connections");
		env_sock_close(server->env, sock);
		return;
	}
	connection = connection_new(server, sock);
	if (!connection) {
		server->stats.refused++;
		return;
	}
	server->stats.connections++;
	server->stats.accepted++;
	env_timer_start(server->env, &connection->deadline,
			(uint64_t)server->config.handshake_timeout_ms * 1000000u);
	nbd_handshake_start(connection);
}
int nbd_server_adopt(struct nbd_server *server, int fd, struct block *block,
		     struct nbd_adopted *adopted)
{
	static const unsigned braced[3] = {1024, 128, 32}; /* 48 MiB */
	struct nbd_connection *connection;
	struct env_sock *sock;
	int error = server->stopping ? -ESHUTDOWN : env_sock_adopt(server->env, fd, &sock);

	if (error) {
		close(fd);
		return error;
	}
	connection = connection_new(server, sock);
	if (!connection)
		return -ENOMEM;
	/* Its memory may be wanted for writing out dirty pages when there is none to be had. */
	if (!server->braced) {
		buf_pool_brace(server->config.pool, braced);
		server->held_bytes_max = buf_pool_bytes(server->config.pool) / CLIENTS_HOLD_ALL;
	}
	server->braced = true;
	resident_make(connection, sizeof(*connection));
	server->stats.adopted++;
	connection->adopted = adopted;
	connection->adopted_fd = fd;
	connection->block = block;
	connection->state = NBD_TRANSMISSION;
	nbd_take_terms(block, &connection->info, &connection->terms);
	nbd_transmission_advance(connection);
	return 0;
}

void nbd_server_resized(struct nbd_server *server, struct block *block)
{
	for (struct nbd_connection *c = server->first; c; c = c->next)
		if (c->adopted && c->block == block)
			nbd_take_terms(block, &c->info, &c->terms);
}

/* ---- the server --------------------------------------------------------------------------- */

static void server_stopped(struct env_task *task)
{
	struct nbd_server *server = container_of(task, struct nbd_server, stopped_task);
	void (*stopped)(void *context) = server->stopped;

	server->stopped = NULL;
	if (stopped)
		stopped(server->stopped_context);
}

struct nbd_server *nbd_server_new(struct env *env, const struct nbd_server_config *config)
{
	struct nbd_server *server = calloc(1, sizeof(*server));

	assert(config->pool && config->find && config->list);
	assert(config->tls_mode == NBD_TLS_OFF || config->tls);
	if (!server)
		return NULL;
	server->env = env;
	server->config = *config;
	if (server->config.handshake_timeout_ms == 0)
		server->config.handshake_timeout_ms = HANDSHAKE_MS_DEFAULT;
	if (server->config.stall_timeout_ms == 0)
		server->config.stall_timeout_ms = STALL_MS_DEFAULT;
	server->stats.connections_max =
		config->connections_max ? config->connections_max : CONNECTIONS_DEFAULT;
	server->held_bytes_max = buf_pool_bytes(config->pool) / CLIENTS_HOLD_ALL;
	server->stall.fire = server_stall;
	server->stopped_task.call = server_stopped;
	return server;
}

int nbd_server_listen(struct nbd_server *server, const char *addr, char *why, size_t why_size)
{
	struct env_listener **listeners;
	int error;

	assert(!server->stopping);
	listeners = realloc(server->listeners,
			    (server->listener_count + 1) * sizeof(struct env_listener *));
	if (!listeners) {
		snprintf(why, why_size, "nbd: %s: cannot listen: out of memory", addr);
		return -ENOMEM;
	}
	server->listeners = listeners;
	if (strncmp(addr, "unix:", 5) == 0)
		env_mkdir_parent(server->env, addr + 5);
	error = env_listen(server->env, addr, server_accept, server,
			   &server->listeners[server->listener_count]);
	if (error) {
		snprintf(why, why_size, "nbd: %s: cannot listen: %s", addr, strerror(-error));
		return error;
	}
	server->listener_count++;
	return 0;
}

const char *nbd_server_addr(struct nbd_server *server, unsigned index)
{
	if (index >= server->listener_count)
		return NULL;
	return env_listener_addr(server->listeners[index]);
}

void nbd_server_stop(struct nbd_server *server, void (*stopped)(void *context), void *context)
{
	assert(!server->stopping);
	server->stopping = true;
	server->stopped = stopped;
	server->stopped_context = context;
	for (unsigned i = 0; i < server->listener_count; i++)
		env_listener_close(server->env, server->listeners[i]);
	server->listener_count = 0;
	/* Closed connections stay in the list until their task has run. */
	for (struct nbd_connection *c = server->first; c; c = c->next) {
		if (c->state < NBD_TRANSMISSION) {
			nbd_connection_close(c);
		} else if (c->state != NBD_CLOSED) {
			c->stopping = true;
			c->holding = c->adopted != NULL;
			c->stopping_ns = env_now_ns(c->env);
			env_timer_start(c->env, &c->deadline,
					(c->adopted ? QUIET_MS : STOP_MS) * 1000000ull);
			env_defer(c->env, &c->task);
		}
	}
	server_check_stopped(server);
}

void nbd_server_free(struct nbd_server *server)
{
	if (!server)
		return;
	assert(!server->first);
	assert(server->stopping || server->listener_count == 0);
	env_defer_cancel(server->env, &server->stopped_task);
	env_timer_stop(server->env, &server->stall);
	free(server->listeners);
	free(server);
}

void nbd_server_clients(const struct nbd_server *server, const struct block *block, char *text,
			size_t size)
{
	size_t used = 0;

	text[0] = 0;
	for (const struct nbd_connection *c = server->first; c; c = c->next) {
		int length;

		if (c->block != block || !c->stream)
			continue;
		length = snprintf(text + used, size - used, "%s%s", used ? ", " : "",
				  c->adopted ? c->adopted->name : stream_peername(c->stream));
		if (length < 0 || (size_t)length >= size - used) {
			if (size - used > 4) /* no room for its name */
				strcpy(text + used, "...");
			else
				text[used] = 0;
			return;
		}
		used += (size_t)length;
	}
}

void nbd_server_drop(struct nbd_server *server, struct block *block)
{
	for (struct nbd_connection *c = server->first; c; c = c->next) {
		if (c->block == block)
			nbd_connection_close(c);
	}
}

void nbd_server_get_stats(const struct nbd_server *server, struct nbd_server_stats *stats)
{
	*stats = server->stats;
}
