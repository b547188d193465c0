// SPDX-License-Identifier: Apache-2.0
/*
 * The simulated network. A connection is two sockets and two flows of bytes. A flow is a queue of
 * segments on their way and a buffer of what has arrived; both together are bounded by the window.
 * Segments arrive in order, in random pieces, and wait while their direction is blocked.
 *
 * A socket object lives until its incarnation is freed with the world, so a flow may always look
 * at both ends.
 */
#include "tests/sim/env_sim_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/wire.h"

struct segment {
	struct segment *next;
	uint64_t arrives_ns;
	size_t length;
	uint8_t data[];
};

struct flow { /* towards one socket: what it will receive */
	struct segment *first, **end;
	uint64_t last_arrival_ns;
	size_t under_way; /* bytes in segments */
	uint8_t *ready;
	size_t ready_start, ready_end, ready_room;
	struct sim_event *delivery; /* NULL: none queued */
	bool fin;                   /* the sender closed: after the last segment comes the end */
	bool ended;                 /* ... and it has come */
	bool silent;                /* cut for good: nothing arrives */
};

struct env_sock {
	struct sim_env *owner;
	struct env_sock *other;
	struct flow in;
	uint64_t detour_ns; /* of the connection */
	char peername[SIM_NAME_MAX + 8];
	struct env_op *recv_op;
	void *recv_buf;
	size_t recv_length;
	struct sim_event *recv_event;
	struct env_op *send_op;
	struct iovec *send_iov;
	unsigned send_count, send_index;
	size_t send_in; /* of the present iovec */
	size_t send_total;
	uint32_t send_crc; /* of what is not yet taken over; checked at the end */
	uint32_t send_crc_seen;
	int error;     /* -ECONNRESET... once known here */
	bool closed;   /* by its owner */
	bool vanished; /* the owner lost power: it answers nothing */
	struct env_sock *next;
};

struct env_listener {
	struct sim_env *owner;
	void (*accept)(void *context, struct env_sock *sock);
	void *context;
	char addr[128];
	bool closed;
	struct env_listener *next;
};

/* ---- addresses ----------------------------------------------------------------------------------- */

static bool parse_tcp(const char *addr, char name[SIM_NAME_MAX], unsigned *port)
{
	const char *colon;

	if (strncmp(addr, "tcp:", 4) == 0)
		addr += 4;
	colon = strrchr(addr, ':');
	if (colon == NULL || (size_t)(colon - addr) >= SIM_NAME_MAX || colon == addr)
		return false;
	memcpy(name, addr, (size_t)(colon - addr));
	name[colon - addr] = '\0';
	*port = (unsigned)strtoul(colon + 1, NULL, 10);
	return *port <= 65535;
}

static struct env_listener *listener_find(struct sim_env *from, const char *addr)
{
	char name[SIM_NAME_MAX], wanted[sizeof(((struct env_listener *)0)->addr)];
	unsigned port;
	struct sim_machine *machine = from->machine;

	if (strncmp(addr, "unix:", 5) == 0) {
		snprintf(wanted, sizeof(wanted), "%s", addr);
	} else {
		if (!parse_tcp(addr, name, &port))
			return NULL;
		for (machine = from->sim->machines; machine != NULL; machine = machine->next)
			if (strcmp(machine->name, name) == 0)
				break;
		snprintf(wanted, sizeof(wanted), "tcp:%s:%u", name, port);
	}
	if (machine == NULL || machine->up == NULL)
		return NULL;
	for (struct env_listener *l = machine->up->listeners; l != NULL; l = l->next)
		if (!l->closed && strcmp(l->addr, wanted) == 0)
			return l;
	return NULL;
}

/* ---- blocked directions ------------------------------------------------------------------------------- */

static bool blocked(const struct sim *sim, const char *from, const char *to)
{
	for (const struct sim_block_rule *rule = sim->blocks; rule != NULL; rule = rule->next)
		if (strcmp(rule->from, from) == 0 && strcmp(rule->to, to) == 0)
			return true;
	return false;
}

static bool sock_blocked(const struct env_sock *to)
{
	return blocked(to->owner->sim, to->other->owner->machine->name, to->owner->machine->name);
}

static uint64_t latency(struct sim *sim)
{
	return sim_between(sim, sim->net.latency_min_ns, sim->net.latency_max_ns);
}

/* ---- flows --------------------------------------------------------------------------------------------- */

static void flow_kick(struct env_sock *to);
static void send_go_on(struct env_sock *sock);

static void flow_clear(struct flow *flow)
{
	while (flow->first != NULL) {
		struct segment *segment = flow->first;

		flow->first = segment->next;
		free(segment);
	}
	flow->end = &flow->first;
	flow->under_way = 0;
}

static size_t flow_ready(const struct flow *flow)
{
	return flow->ready_end - flow->ready_start;
}

static void flow_append(struct flow *flow, const void *data, size_t length)
{
	if (flow->ready_end + length > flow->ready_room) {
		if (flow->ready_start > 0)
			memmove(flow->ready, flow->ready + flow->ready_start, flow_ready(flow));
		flow->ready_end -= flow->ready_start;
		flow->ready_start = 0;
		if (flow->ready_end + length > flow->ready_room) {
			flow->ready_room = 2 * (flow->ready_end + length);
			flow->ready = realloc(flow->ready, flow->ready_room);
			if (flow->ready == NULL)
				abort();
		}
	}
	memcpy(flow->ready + flow->ready_end, data, length);
	flow->ready_end += length;
}

/* ---- receiving ------------------------------------------------------------------------------------------ */

struct sock_event {
	struct sim_event event;
	struct env_sock *sock;
	int error;
};

static void sock_event_drop(struct sim_event *event, bool power)
{
	free(event);
}

static struct sim_event *sock_event_add(struct env_sock *sock, struct sim_env *owner,
					void (*fire)(struct sim_event *event), uint64_t delay_ns)
{
	struct sock_event *e = sim_alloc(sizeof(*e));

	e->event.fire = fire;
	e->event.drop = sock_event_drop;
	e->sock = sock;
	sim_event_add(sock->owner->sim, &e->event, owner, delay_ns);
	return &e->event;
}

static void recv_fire(struct sim_event *event)
{
	struct env_sock *sock = ((struct sock_event *)event)->sock;
	struct flow *in = &sock->in;
	struct env_op *op = sock->recv_op;
	int64_t result = sock->error;

	free(event);
	sock->recv_event = NULL;
	sock->recv_op = NULL;
	if (sock->closed) {
		result = -ECANCELED;
	} else if (flow_ready(in) > 0 && result == 0) {
		size_t n = flow_ready(in) < sock->recv_length ? flow_ready(in) : sock->recv_length;

		if (n > 1 && sim_random(sock->owner->sim, 4) == 0)
			n = 1 + sim_random(sock->owner->sim, n);
		memcpy(sock->recv_buf, in->ready + in->ready_start, n);
		in->ready_start += n;
		result = (int64_t)n;
		send_go_on(sock->other);
	}
	op->done(op, result);
}

/* Something has come for the socket: data, the end, an error, its own closing. */
static void recv_wake(struct env_sock *sock)
{
	if (sock->recv_op == NULL || sock->recv_event != NULL)
		return;
	if (flow_ready(&sock->in) == 0 && !sock->in.ended && sock->error == 0 && !sock->closed)
		return;
	sock->recv_event = sock_event_add(sock, sock->owner, recv_fire,
					  sim_random(sock->owner->sim, 20 * SIM_US));
}

static void sock_recv(struct env *e, struct env_op *op, struct env_sock *sock, void *buf,
		      size_t length)
{
	if (sim_env_of(e)->dead)
		return;
	assert(!sock->closed && sock->recv_op == NULL && length > 0);
	sock->recv_op = op;
	sock->recv_buf = buf;
	sock->recv_length = length;
	recv_wake(sock);
}

/* ---- sending ------------------------------------------------------------------------------------------------ */

static void send_fire(struct sim_event *event)
{
	struct env_sock *sock = ((struct sock_event *)event)->sock;
	struct env_op *op = sock->send_op;
	int error = ((struct sock_event *)event)->error;

	free(event);
	sock->send_op = NULL;
	op->done(op, error != 0 ? error : (int64_t)sock->send_total);
}

static void send_end(struct env_sock *sock, int error)
{
	struct sim_event *event = sock_event_add(sock, sock->owner, send_fire,
						 sim_random(sock->owner->sim, 20 * SIM_US));

	((struct sock_event *)event)->error = error;
	sock->send_iov = NULL;
	if (error == 0)
		assert(sock->send_crc == sock->send_crc_seen); /* changed while under way? */
}

static void segment_add(struct env_sock *sock, const void *data, size_t length)
{
	struct sim *sim = sock->owner->sim;
	struct flow *flow = &sock->other->in;
	struct segment *segment = malloc(sizeof(*segment) + length);
	uint64_t arrives = sim->now_ns + latency(sim) + sock->detour_ns;

	if (segment == NULL)
		abort();
	if (arrives < flow->last_arrival_ns)
		arrives = flow->last_arrival_ns;
	arrives += length * SIM_S / sim->net.bytes_per_second;
	flow->last_arrival_ns = arrives;
	segment->next = NULL;
	segment->arrives_ns = arrives;
	segment->length = length;
	memcpy(segment->data, data, length);
	if (length > 0 && sim_chance(sim, sim->net.damage_ppm))
		segment->data[sim_random(sim, length)] ^= (uint8_t)(1u << sim_random(sim, 8));
	*flow->end = segment;
	flow->end = &segment->next;
	flow->under_way += length;
}

/* Hands over as much as the window takes. */
static void send_go_on(struct env_sock *sock)
{
	struct flow *flow;
	struct sim *sim = sock->owner->sim;

	if (sock->owner->dead || sock->send_iov == NULL)
		return;
	flow = &sock->other->in;
	if (sock->closed || sock->error != 0) {
		send_end(sock, sock->closed ? -ECANCELED : sock->error);
		return;
	}
	while (sock->send_index < sock->send_count) {
		struct iovec *iov = &sock->send_iov[sock->send_index];
		size_t used = flow->under_way + flow_ready(flow);
		size_t n = iov->iov_len - sock->send_in;

		if (n == 0) {
			sock->send_index++;
			sock->send_in = 0;
			continue;
		}
		if (used >= sim->net.window_bytes)
			break;
		if (n > sim->net.window_bytes - used)
			n = sim->net.window_bytes - used;
		if (n > 1 && sim_random(sim, 16) == 0)
			n = 1 + sim_random(sim, n);
		sock->send_crc_seen =
			crc32c(sock->send_crc_seen, (uint8_t *)iov->iov_base + sock->send_in, n);
		segment_add(sock, (uint8_t *)iov->iov_base + sock->send_in, n);
		sock->send_in += n;
	}
	flow_kick(sock->other);
	if (sock->send_index == sock->send_count)
		send_end(sock, 0);
}

static void sock_sendv(struct env *e, struct env_op *op, struct env_sock *sock, struct iovec *iov,
		       unsigned count)
{
	if (sim_env_of(e)->dead)
		return;
	assert(!sock->closed && sock->send_op == NULL && count > 0 && count <= 1024);
	sock->send_op = op;
	sock->send_iov = iov;
	sock->send_count = count;
	sock->send_index = 0;
	sock->send_in = 0;
	sock->send_total = 0;
	sock->send_crc = 0;
	sock->send_crc_seen = 0;
	for (unsigned i = 0; i < count; i++) {
		sock->send_total += iov[i].iov_len;
		sock->send_crc = crc32c(sock->send_crc, iov[i].iov_base, iov[i].iov_len);
	}
	send_go_on(sock);
}

/* ---- resets ---------------------------------------------------------------------------------------------- */

static void sock_fail(struct env_sock *sock, int error)
{
	if (sock->owner->dead || sock->closed || sock->error != 0)
		return;
	sock->error = error;
	flow_clear(&sock->in);
	recv_wake(sock);
	send_go_on(sock);
}

static void reset_fire(struct sim_event *event)
{
	struct env_sock *sock = ((struct sock_event *)event)->sock;

	free(event);
	sock_fail(sock, -ECONNRESET);
}

/* A reset travels to the socket, unless its direction is blocked: then the socket finds out when
 * it sends, or never. */
static void reset_send(struct env_sock *to)
{
	struct sim *sim = to->owner->sim;

	if (to->owner->dead || to->in.silent || sock_blocked(to))
		return;
	sock_event_add(to, NULL, reset_fire, latency(sim) + to->detour_ns);
}

/* Bytes reached a host that has no such connection (any more). */
static void flow_refused(struct env_sock *to)
{
	flow_clear(&to->in);
	if (!to->other->owner->dead)
		reset_send(to->other);
}

static void delivery_fire(struct sim_event *event)
{
	struct env_sock *to = ((struct sock_event *)event)->sock;
	struct flow *in = &to->in;

	free(event);
	in->delivery = NULL;
	if (in->silent || sock_blocked(to))
		return;
	if (to->owner->dead && to->vanished && to->owner->machine->up == NULL)
		return; /* no power: nobody answers; TCP goes on trying */
	if (to->closed || to->owner->dead) {
		flow_refused(to);
		return;
	}
	if (in->first != NULL) {
		struct segment *segment = in->first;

		in->first = segment->next;
		if (in->first == NULL)
			in->end = &in->first;
		in->under_way -= segment->length;
		flow_append(in, segment->data, segment->length);
		free(segment);
	} else if (in->fin) {
		in->ended = true;
	}
	recv_wake(to);
	flow_kick(to);
}

/* Queues the arrival of what is next in the flow. */
static void flow_kick(struct env_sock *to)
{
	struct flow *in = &to->in;
	struct sim *sim = to->owner->sim;
	uint64_t when;

	if (in->delivery != NULL || in->silent || sock_blocked(to) || to->error != 0)
		return;
	if (in->first != NULL)
		when = in->first->arrives_ns;
	else if (in->fin && !in->ended)
		when = in->last_arrival_ns + sim_random(sim, 50 * SIM_US);
	else
		return;
	in->delivery = sock_event_add(to, NULL, delivery_fire,
				      when > sim->now_ns ? when - sim->now_ns : 0);
}

/* ---- closing ------------------------------------------------------------------------------------------------ */

static void sock_close(struct env *e, struct env_sock *sock)
{
	if (sim_env_of(e)->dead)
		return;
	assert(!sock->closed);
	sock->closed = true;
	recv_wake(sock);
	send_go_on(sock);
	if (sock->error != 0)
		return;
	if (flow_ready(&sock->in) > 0 || sock->in.first != NULL) {
		reset_send(sock->other); /* as TCP does when there is unread data */
		return;
	}
	sock->other->in.fin = true;
	flow_kick(sock->other);
}

void sim_net_env_gone(struct sim_env *env, bool power)
{
	for (struct env_sock *sock = env->socks; sock != NULL; sock = sock->next) {
		sock->recv_op = NULL;
		sock->recv_event = NULL;
		sock->send_op = NULL;
		sock->send_iov = NULL;
		if (sock->closed)
			continue;
		sock->vanished = power;
		if (power) { /* what was still in its own memory is gone, too */
			if (sim_random(env->sim, 2))
				flow_clear(&sock->other->in);
		} else {
			reset_send(sock->other);
		}
	}
}

/* A host that is back answers retransmissions of connections that it does not know with a reset. */
void sim_net_machine_up(struct sim_machine *machine, struct sim *sim)
{
	for (struct sim_env *env = sim->envs; env != NULL; env = env->next) {
		if (env->machine != machine || !env->dead)
			continue;
		for (struct env_sock *sock = env->socks; sock != NULL; sock = sock->next)
			if (sock->in.first != NULL)
				flow_kick(sock);
	}
}

/* ---- connecting ------------------------------------------------------------------------------------------------ */

struct connecting {
	struct sim_event event;
	struct env_op *op;
	struct env_sock **sock;
	char addr[128];
	uint64_t give_up_ns;
};

static struct env_sock *sock_new(struct sim_env *owner, const char *peername, unsigned port)
{
	struct env_sock *sock = sim_alloc(sizeof(*sock));

	sock->owner = owner;
	sock->in.end = &sock->in.first;
	snprintf(sock->peername, sizeof(sock->peername), "%s:%u", peername, port);
	sock->next = owner->socks;
	owner->socks = sock;
	return sock;
}

/* Where the address is, and whether a connect comes through. Returns 0 to go on, -EAGAIN when there
 * is no answer. */
static int connect_try(struct sim_env *env, const char *addr, struct env_listener **listener)
{
	char name[SIM_NAME_MAX];
	const char *self = env->machine->name;
	unsigned port;
	struct sim_machine *machine;

	*listener = listener_find(env, addr);
	if (strncmp(addr, "unix:", 5) == 0)
		return *listener != NULL ? 0 : -ECONNREFUSED;
	if (!parse_tcp(addr, name, &port))
		return -EINVAL;
	for (machine = env->sim->machines; machine != NULL; machine = machine->next)
		if (strcmp(machine->name, name) == 0)
			break;
	if (machine == NULL)
		return -ENOENT;
	if (machine->up == NULL || blocked(env->sim, self, name) || blocked(env->sim, name, self))
		return -EAGAIN;
	return *listener != NULL ? 0 : -ECONNREFUSED;
}

static void connect_fire(struct sim_event *event)
{
	struct connecting *c = (struct connecting *)event;
	struct sim_env *env = event->owner;
	struct sim *sim = env->sim;
	struct env_listener *listener;
	struct env_sock *mine, *theirs;
	int error = connect_try(env, c->addr, &listener);

	if (error == -EAGAIN && sim->now_ns < c->give_up_ns) {
		sim_event_add(sim, event, env, sim_between(sim, 100 * SIM_MS, SIM_S));
		return;
	}
	if (error != 0) {
		sim_complete(env, c->op, error == -EAGAIN ? -ETIMEDOUT : error, 0);
		free(c);
		return;
	}
	mine = sock_new(env, listener->owner->machine->name, 0);
	theirs = sock_new(listener->owner, env->machine->name, env->machine->next_port++);
	snprintf(mine->peername, sizeof(mine->peername), "%.*s", (int)sizeof(mine->peername) - 1,
		 strncmp(c->addr, "tcp:", 4) ? c->addr : c->addr + 4);
	mine->other = theirs;
	theirs->other = mine;
	if (sim->net.detour_max_ns > 0)
		mine->detour_ns = theirs->detour_ns = sim_random(sim, sim->net.detour_max_ns);
	*c->sock = mine;
	sim_complete(env, c->op, 0, latency(sim) + mine->detour_ns);
	free(c);
	listener->accept(listener->context, theirs);
}

static void sock_connect(struct env *e, struct env_op *op, const char *addr, struct env_sock **sock)
{
	struct sim_env *env = sim_env_of(e);
	struct sim *sim = env->sim;
	struct connecting *c;

	if (env->dead)
		return;
	c = sim_alloc(sizeof(*c));
	assert(strlen(addr) < sizeof(c->addr));
	strcpy(c->addr, addr);
	c->event.fire = connect_fire;
	c->event.drop = sock_event_drop;
	c->op = op;
	c->sock = sock;
	c->give_up_ns = sim->now_ns + sim_between(sim, SIM_S, 10 * SIM_S);
	sim_event_add(sim, &c->event, env, latency(sim));
}

static int sock_listen(struct env *e, const char *addr,
		       void (*accept)(void *context, struct env_sock *sock), void *context,
		       struct env_listener **listener)
{
	struct sim_env *env = sim_env_of(e);
	char name[SIM_NAME_MAX];
	unsigned port;
	struct env_listener *l;

	if (env->dead)
		return -EIO;
	l = sim_alloc(sizeof(*l));
	if (strncmp(addr, "unix:", 5) == 0) {
		snprintf(l->addr, sizeof(l->addr), "%s", addr);
	} else {
		if (!parse_tcp(addr, name, &port)) {
			free(l);
			return -EINVAL;
		}
		if (port == 0)
			port = env->machine->next_port++;
		snprintf(l->addr, sizeof(l->addr), "tcp:%s:%u", env->machine->name, port);
	}
	for (struct env_listener *other = env->listeners; other != NULL; other = other->next)
		if (!other->closed && strcmp(other->addr, l->addr) == 0) {
			free(l);
			return -EADDRINUSE;
		}
	l->owner = env;
	l->accept = accept;
	l->context = context;
	l->next = env->listeners;
	env->listeners = l;
	*listener = l;
	return 0;
}

static const char *listener_addr(struct env_listener *listener)
{
	return listener->addr;
}

static void listener_close(struct env *e, struct env_listener *listener)
{
	listener->closed = true;
}

static int sock_adopt(struct env *e, int fd, struct env_sock **sock)
{
	return -EOPNOTSUPP;
}

static const char *sock_peername(struct env_sock *sock)
{
	return sock->peername;
}

/* ---- the harness's hands --------------------------------------------------------------------------------------- */

void sim_net_get(const struct sim *sim, struct sim_net_options *options)
{
	*options = sim->net;
}

void sim_net_set(struct sim *sim, const struct sim_net_options *options)
{
	assert(options->bytes_per_second > 0 && options->window_bytes > 0);
	sim->net = *options;
}

static bool sock_between(const struct env_sock *sock, const char *a, const char *b)
{
	const char *from = sock->owner->machine->name, *to = sock->other->owner->machine->name;

	return (strcmp(from, a) == 0 && strcmp(to, b) == 0) ||
	       (strcmp(from, b) == 0 && strcmp(to, a) == 0);
}

void sim_cut(struct sim *sim, const char *a, const char *b, bool silent)
{
	sim_note(sim, "cut %s between %s and %s", silent ? "silently" : "with a reset", a, b);
	for (struct sim_env *env = sim->envs; env != NULL; env = env->next)
		for (struct env_sock *sock = env->socks; sock != NULL; sock = sock->next) {
			if (!sock_between(sock, a, b))
				continue;
			if (silent)
				sock->in.silent = true;
			else
				reset_send(sock);
		}
}

void sim_block(struct sim *sim, const char *from, const char *to, bool block)
{
	if (block == blocked(sim, from, to))
		return;
	sim_note(sim, "%s from %s to %s", block ? "block" : "unblock", from, to);
	if (block) {
		struct sim_block_rule *rule = sim_alloc(sizeof(*rule));

		snprintf(rule->from, sizeof(rule->from), "%s", from);
		snprintf(rule->to, sizeof(rule->to), "%s", to);
		rule->next = sim->blocks;
		sim->blocks = rule;
		return;
	}
	for (struct sim_block_rule **p = &sim->blocks; *p != NULL; p = &(*p)->next)
		if (strcmp((*p)->from, from) == 0 && strcmp((*p)->to, to) == 0) {
			struct sim_block_rule *rule = *p;

			*p = rule->next;
			free(rule);
			break;
		}
	for (struct sim_env *env = sim->envs; env != NULL; env = env->next)
		for (struct env_sock *sock = env->socks; sock != NULL; sock = sock->next)
			if (sock_between(sock, from, to))
				flow_kick(sock);
}

void sim_net_env_free(struct sim_env *env)
{
	while (env->socks != NULL) {
		struct env_sock *sock = env->socks;

		env->socks = sock->next;
		flow_clear(&sock->in);
		free(sock->in.ready);
		free(sock);
	}
	while (env->listeners != NULL) {
		struct env_listener *listener = env->listeners;

		env->listeners = listener->next;
		free(listener);
	}
}

void sim_net_ops(struct env_ops *ops)
{
	ops->listen = sock_listen;
	ops->listener_addr = listener_addr;
	ops->listener_close = listener_close;
	ops->connect = sock_connect;
	ops->sock_adopt = sock_adopt;
	ops->recv = sock_recv;
	ops->sendv = sock_sendv;
	ops->sock_peername = sock_peername;
	ops->sock_close = sock_close;
}
