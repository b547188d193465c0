/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sockets on both real backends: addresses, listening, connecting, transfers, closing.
 */
#include "tests/unit/io_harness.h"
#include <arpa/inet.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* A pair of connected sockets and the listener they came by. */
struct link {
	struct env_listener *listener;
	struct env_sock *near, *far;
	bool accepted;
};

static void accept_one(void *context, struct env_sock *sock)
{
	struct link *link = context;

	assert_false(link->accepted);
	link->far = sock;
	link->accepted = true;
}

static const char *unix_addr(struct world *world)
{
	static char addr[128];

	snprintf(addr, sizeof(addr), "unix:%s/socket", world->dir);
	return addr;
}

static int64_t do_connect(struct world *world, const char *addr, struct env_sock **sock)
{
	struct waited waited;

	env_connect(world->env, fresh(&waited), addr, sock);
	return await(world, &waited);
}

static void link_up(struct world *world, struct link *link, const char *addr)
{
	*link = (struct link){0};
	assert_int_equal(env_listen(world->env, addr, accept_one, link, &link->listener), 0);
	assert_int_equal(do_connect(world, env_listener_addr(link->listener), &link->near), 0);
	assert_non_null(link->near);
	env_run_until(world->env, &link->accepted);
}

static void link_down(struct world *world, struct link *link)
{
	env_sock_close(world->env, link->near);
	env_sock_close(world->env, link->far);
	env_listener_close(world->env, link->listener);
}

static void check_hello(struct world *world, struct link *link)
{
	struct waited send, recv;
	char hello[] = "hello, ", other[] = "other side", in[64];
	struct iovec iov[2] = {{hello, 7}, {other, 10}};

	env_recv(world->env, fresh(&recv), link->far, in, sizeof(in));
	env_sendv(world->env, fresh(&send), link->near, iov, 2);
	assert_int_equal(await(world, &recv), 17);
	assert_memory_equal(in, "hello, other side", 17);
	if (!send.done)
		await(world, &send);
	assert_int_equal(send.result, 17);
}

/* Pieces of nothing, alone and around others, are sent at once. */
static void check_empty_pieces(struct world *world, struct link *link)
{
	struct waited send;
	char text[] = "text", in[8];

	for (int with_text = 0; with_text < 2; with_text++) {
		struct iovec iov[3] = {{text, 0}, {text, with_text ? 4 : 0}, {text, 0}};

		env_sendv(world->env, fresh(&send), link->near, iov, 3);
		assert_int_equal(await(world, &send), with_text ? 4 : 0);
	}
	struct iovec none = {text, 0};

	env_sendv(world->env, fresh(&send), link->near, &none, 1);
	assert_int_equal(await(world, &send), 0);
	env_recv(world->env, fresh(&send), link->far, in, sizeof(in));
	assert_int_equal(await(world, &send), 4);
}

static void test_unix(struct world *world)
{
	struct link link;

	link_up(world, &link, unix_addr(world));
	assert_string_equal(env_listener_addr(link.listener), unix_addr(world));
	assert_string_equal(env_sock_peername(link.near), "unix");
	assert_string_equal(env_sock_peername(link.far), "unix");
	check_hello(world, &link);
	check_empty_pieces(world, &link);
	link_down(world, &link);
	assert_int_equal(access(path_in(world, "socket"), F_OK), -1);
}

static void test_tcp(struct world *world)
{
	struct link link;

	link_up(world, &link, "tcp:127.0.0.1:0");
	assert_memory_equal(env_listener_addr(link.listener), "tcp:127.0.0.1:", 14);
	assert_string_equal(env_sock_peername(link.near), env_listener_addr(link.listener) + 4);
	check_hello(world, &link);
	link_down(world, &link);
}

static void test_name(struct world *world)
{
	struct link link;

	link_up(world, &link, "localhost:0");
	check_hello(world, &link);
	link_down(world, &link);
}

static void test_v6(struct world *world)
{
	struct env_listener *listener;
	struct link link;

	if (env_listen(world->env, "[::1]:0", accept_one, &link, &listener) < 0) {
		print_message("no IPv6 here: not tested\n");
		return;
	}
	env_listener_close(world->env, listener);
	link_up(world, &link, "[::1]:0");
	assert_memory_equal(env_listener_addr(link.listener), "tcp:[::1]:", 10);
	check_hello(world, &link);
	link_down(world, &link);
}

static void test_addresses(struct world *world)
{
	static const char *const good[] = {"unix:/a", "tcp:host:1",           "host:65535",
					   "[::1]:0", "tcp:[fe80::1%eth0]:7", "10.0.0.1:80"};
	static const char *const bad[] = {
		"",        "host",  "host:",  ":1",     "host:65536", "host:1x",
		"host:-1", "unix:", "unix:a", "::1:80", "[::1]",      "[::1:80",
		"[::1]80", "[]:80", "a b:1",  "tcp:",   "http://h:1", "host:000001"};
	char longest[300];
	const char *why;
	struct env_sock *sock;

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		assert_true(env_addr_check(good[i], &why));
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_false(env_addr_check(bad[i], &why));
		assert_non_null(why);
		assert_int_equal(do_connect(world, bad[i], &sock), -EINVAL);
	}
	memset(longest, 'a', sizeof(longest));
	memcpy(longest, "unix:/", 6);
	longest[5 + 107] = '\0';
	assert_true(env_addr_check(longest, &why));
	longest[5 + 107] = 'a';
	longest[5 + 108] = '\0';
	assert_false(env_addr_check(longest, &why));
}

static void test_refused(struct world *world)
{
	struct env_listener *listener;
	struct env_sock *sock;
	struct link link = {0};
	char addr[64];

	assert_int_equal(do_connect(world, unix_addr(world), &sock), -ENOENT);
	assert_null(sock);
	assert_int_equal(env_listen(world->env, "127.0.0.1:0", accept_one, &link, &listener), 0);
	strcpy(addr, env_listener_addr(listener));
	env_listener_close(world->env, listener);
	assert_int_equal(do_connect(world, addr, &sock), -ECONNREFUSED);
	assert_null(sock);
	assert_int_equal(do_connect(world, "no-such-host.invalid:1", &sock) < 0, 1);
}

/* ---- listeners ---- */

static int bound_socket(const char *path)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(un.sun_path, path);
	assert_int_equal(bind(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	return fd;
}

static void test_stale_socket(struct world *world)
{
	struct env_listener *first, *second;
	struct link link;
	FILE *file;

	close(bound_socket(path_in(world, "socket"))); /* its process is gone */
	assert_int_equal(env_listen(world->env, unix_addr(world), accept_one, &link, &first), 0);
	assert_int_equal(env_listen(world->env, unix_addr(world), accept_one, &link, &second),
			 -EADDRINUSE);
	assert_null(second);
	env_listener_close(world->env, first);
	/* Other files are never replaced. */
	file = fopen(path_in(world, "socket"), "w");
	fclose(file);
	assert_int_equal(env_listen(world->env, unix_addr(world), accept_one, &link, &first),
			 -EADDRINUSE);
	assert_int_equal(access(path_in(world, "socket"), F_OK), 0);
}

static void test_listen_again(struct world *world)
{
	struct env_listener *listener;
	struct link link;
	char addr[64];

	link_up(world, &link, "127.0.0.1:0");
	strcpy(addr, env_listener_addr(link.listener));
	assert_int_equal(env_listen(world->env, addr, accept_one, &link, &listener), -EADDRINUSE);
	link_down(world, &link);
	/* The address is free at once, connections in TIME_WAIT or not. */
	link_up(world, &link, addr);
	check_hello(world, &link);
	link_down(world, &link);
}

struct crowd {
	struct env *env;
	struct env_listener *listener;
	unsigned accepted, close_at;
	bool all;
};

static void accept_crowd(void *context, struct env_sock *sock)
{
	struct crowd *crowd = context;

	env_sock_close(crowd->env, sock);
	crowd->accepted++;
	if (crowd->accepted == crowd->close_at) {
		env_listener_close(crowd->env, crowd->listener);
		crowd->all = true;
	}
}

/* The listener is closed from inside its accept(). */
static void test_crowd(struct world *world)
{
	enum { COUNT = 100 };
	struct crowd crowd = {.env = world->env, .close_at = COUNT};
	struct waited waited[COUNT];
	struct env_sock *socks[COUNT];

	assert_int_equal(
		env_listen(world->env, "127.0.0.1:0", accept_crowd, &crowd, &crowd.listener), 0);
	for (unsigned i = 0; i < COUNT; i++)
		env_connect(world->env, fresh(&waited[i]), env_listener_addr(crowd.listener),
			    &socks[i]);
	env_run_until(world->env, &crowd.all);
	for (unsigned i = 0; i < COUNT; i++) {
		env_run_until(world->env, &waited[i].done);
		assert_int_equal(waited[i].result, 0);
		env_sock_close(world->env, socks[i]);
	}
}

/* Connected, as far as the kernel goes, without a turn of the loop. */
static int do_connect_quietly(struct world *world, struct link *link)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(un.sun_path, path_in(world, "socket"));
	assert_int_equal(connect(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	return env_sock_adopt(world->env, fd, &link->near);
}

struct shortage {
	struct env_timer timer;
	struct rlimit limit;
	bool over;
};

static void end_shortage(struct env_timer *timer)
{
	struct shortage *shortage = (struct shortage *)timer;

	shortage->over = true;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &shortage->limit), 0);
}

/* Out of descriptors for a while: the connection waits and is taken afterwards. */
static void test_shortage(struct world *world)
{
	struct shortage shortage = {.timer.fire = end_shortage};
	struct link link = {0};
	struct rlimit none;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &shortage.limit), 0);
	none = (struct rlimit){4, shortage.limit.rlim_max};
	assert_int_equal(
		env_listen(world->env, unix_addr(world), accept_one, &link, &link.listener), 0);
	assert_int_equal(do_connect_quietly(world, &link), 0);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	env_timer_start(world->env, &shortage.timer, 30000000);
	env_run_until(world->env, &link.accepted);
	assert_true(shortage.over);
	check_hello(world, &link);
	link_down(world, &link);
}

/* ---- transfers ---- */

enum { LARGE = 24 * 1024 * 1024 };

/* One direction of a transfer: sends in iovecs of odd sizes, receives in odd pieces. */
struct flow {
	struct waited send;
	struct env_op recv;
	struct env *env;
	struct env_sock *to;
	uint8_t *out, *in;
	size_t received;
	struct iovec iov[1024];
	bool done;
};

static void flow_recv(struct flow *flow)
{
	size_t left = LARGE - flow->received, piece = 1 + (flow->received * 7919) % 300000;

	env_recv(flow->env, &flow->recv, flow->to, flow->in + flow->received,
		 piece < left ? piece : left);
}

static void flow_recv_done(struct env_op *op, int64_t result)
{
	struct flow *flow = (struct flow *)((char *)op - offsetof(struct flow, recv));

	assert_true(result > 0);
	flow->received += (size_t)result;
	if (flow->received < LARGE)
		flow_recv(flow);
	else
		flow->done = true;
}

static void start_flow(struct world *world, struct flow *flow, struct env_sock *from,
		       struct env_sock *to, unsigned seed)
{
	size_t offset = 0;
	unsigned count = 0;

	*flow = (struct flow){.env = world->env, .to = to, .recv.done = flow_recv_done};
	flow->out = malloc(LARGE);
	flow->in = calloc(1, LARGE);
	for (size_t i = 0; i < LARGE; i++)
		flow->out[i] = (uint8_t)((i * 2654435761u + seed) >> 9);
	while (offset < LARGE) {
		size_t piece = 1 + (count * 104729u) % 60000;

		if (count == 1023 || piece > LARGE - offset)
			piece = LARGE - offset;
		flow->iov[count++] = (struct iovec){flow->out + offset, piece};
		offset += piece;
	}
	flow_recv(flow);
	env_sendv(world->env, fresh(&flow->send), from, flow->iov, count);
}

static void finish_flow(struct world *world, struct flow *flow)
{
	env_run_until(world->env, &flow->done);
	env_run_until(world->env, &flow->send.done);
	assert_int_equal(flow->send.result, LARGE);
	assert_memory_equal(flow->in, flow->out, LARGE);
	free(flow->in);
	free(flow->out);
}

static void large_both_ways(struct world *world, const char *addr)
{
	struct flow *there = malloc(sizeof(*there)), *back = malloc(sizeof(*back));
	struct link link;

	link_up(world, &link, addr);
	start_flow(world, there, link.near, link.far, 1);
	start_flow(world, back, link.far, link.near, 2);
	finish_flow(world, there);
	finish_flow(world, back);
	link_down(world, &link);
	free(there);
	free(back);
}

static void test_large_unix(struct world *world)
{
	large_both_ways(world, unix_addr(world));
}

static void test_large_tcp(struct world *world)
{
	large_both_ways(world, "127.0.0.1:0");
}

static void test_adopt(struct world *world)
{
	struct link link = {0};
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	assert_int_equal(env_sock_adopt(world->env, fds[0], &link.near), 0);
	assert_int_equal(env_sock_adopt(world->env, fds[1], &link.far), 0);
	check_hello(world, &link);
	env_sock_close(world->env, link.near);
	env_sock_close(world->env, link.far);
	assert_int_equal(env_sock_adopt(world->env, -1, &link.near), -EBADF);
}

/* ---- ends ---- */

static void test_orderly_end(struct world *world)
{
	struct waited send, recv;
	struct link link;
	char in[16];
	struct iovec iov = {"last words", 10};

	link_up(world, &link, "127.0.0.1:0");
	env_sendv(world->env, fresh(&send), link.near, &iov, 1);
	assert_int_equal(await(world, &send), 10);
	env_sock_close(world->env, link.near);
	env_recv(world->env, fresh(&recv), link.far, in, sizeof(in));
	assert_int_equal(await(world, &recv), 10);
	env_recv(world->env, fresh(&recv), link.far, in, sizeof(in));
	assert_int_equal(await(world, &recv), 0);
	env_recv(world->env, fresh(&recv), link.far, in, sizeof(in)); /* and stays so */
	assert_int_equal(await(world, &recv), 0);
	env_sock_close(world->env, link.far);
	env_listener_close(world->env, link.listener);
}

/* The end arrives while a receive waits. */
static void test_end_while_waiting(struct world *world)
{
	struct waited recv;
	struct link link;
	char in[16];

	link_up(world, &link, unix_addr(world));
	env_recv(world->env, fresh(&recv), link.far, in, sizeof(in));
	env_sock_close(world->env, link.near);
	assert_int_equal(await(world, &recv), 0);
	env_sock_close(world->env, link.far);
	env_listener_close(world->env, link.listener);
}

static void test_send_to_nobody(struct world *world)
{
	struct waited send;
	struct link link;
	struct iovec iov;

	link_up(world, &link, unix_addr(world));
	env_sock_close(world->env, link.far);
	for (unsigned i = 0; i < 3; i++) {
		iov = (struct iovec){"x", 1};
		env_sendv(world->env, fresh(&send), link.near, &iov, 1);
		if (await(world, &send) == -EPIPE)
			break;
	}
	assert_int_equal(send.result, -EPIPE); /* and no SIGPIPE */
	env_sock_close(world->env, link.near);
	env_listener_close(world->env, link.listener);
}

static void close_under_way(struct world *world, const char *addr)
{
	size_t size = 64 * 1024 * 1024; /* more than socket buffers take */
	struct waited send, recv;
	uint8_t *out = calloc(1, size);
	struct iovec iov[2] = {{out, size / 2}, {out + size / 2, size / 2}};
	struct link link;
	char in[16];

	link_up(world, &link, addr);
	env_recv(world->env, fresh(&recv), link.near, in, sizeof(in));
	env_sendv(world->env, fresh(&send), link.near, iov, 2);
	env_sock_close(world->env, link.near);
	assert_false(send.done);
	assert_true(await(world, &recv) < 0);
	env_run_until(world->env, &send.done);
	assert_true(send.result < 0);
	env_sock_close(world->env, link.far);
	env_listener_close(world->env, link.listener);
	free(out);
}

static void test_close_unix(struct world *world)
{
	close_under_way(world, unix_addr(world));
}

static void test_close_tcp(struct world *world)
{
	close_under_way(world, "127.0.0.1:0");
}

/* Once both have been waiting for a while. */
static void test_close_blocked(struct world *world)
{
	size_t size = 64 * 1024 * 1024;
	struct waited send, recv, other;
	uint8_t *out = calloc(1, size);
	struct iovec iov = {out, size}, ping = {"ping", 4};
	struct link link;
	char in[16];

	link_up(world, &link, "127.0.0.1:0");
	env_sendv(world->env, fresh(&send), link.near, &iov, 1);
	env_sendv(world->env, fresh(&other), link.far, &ping, 1);
	env_recv(world->env, fresh(&recv), link.near, in, sizeof(in));
	assert_int_equal(await(world, &recv), 4);
	env_recv(world->env, fresh(&recv), link.near, in, sizeof(in));
	if (!other.done)
		await(world, &other);
	assert_false(send.done);
	env_sock_close(world->env, link.near);
	env_run_until(world->env, &send.done);
	env_run_until(world->env, &recv.done);
	assert_int_equal(send.result, -ECANCELED);
	assert_int_equal(recv.result, -ECANCELED);
	link.near = NULL;
	link_down(world, &link);
	free(out);
}

/* env_free() waits for what was closed, calling done(). */
static void test_free_under_way(struct world *world)
{
	struct waited recv, connect;
	struct link link;
	struct env_sock *sock;
	const char *why;
	char in[16];

	link_up(world, &link, unix_addr(world));
	env_recv(world->env, fresh(&recv), link.near, in, sizeof(in));
	/* 192.0.2.0/24 answers nowhere. */
	env_connect(world->env, fresh(&connect), "192.0.2.1:9", &sock);
	link_down(world, &link);
	env_free(world->env);
	assert_true(recv.done && recv.result < 0);
	assert_true(connect.done && connect.result < 0);
	assert_null(sock);
	assert_int_equal(env_real_new(world->backend, 1, &world->env, &why), 0);
}

static const struct io_test io_sock[] = {
	{"unix sockets", test_unix},
	{"TCP sockets", test_tcp},
	{"a host name", test_name},
	{"IPv6", test_v6},
	{"addresses are checked", test_addresses},
	{"nobody listens", test_refused},
	{"a stale socket file is replaced, one in use is not", test_stale_socket},
	{"an address is free once its listener is closed", test_listen_again},
	{"100 connections at once", test_crowd},
	{"a shortage of descriptors passes", test_shortage},
	{"24 MiB both ways at once, unix", test_large_unix},
	{"24 MiB both ways at once, TCP", test_large_tcp},
	{"an adopted socketpair", test_adopt},
	{"an orderly end comes after the data", test_orderly_end},
	{"an end wakes a waiting receive", test_end_while_waiting},
	{"a send to nobody is EPIPE, no signal", test_send_to_nobody},
	{"closing a unix socket with operations under way", test_close_unix},
	{"closing a TCP socket with operations under way", test_close_tcp},
	{"closing a socket with operations blocked", test_close_blocked},
	{"freeing the environment ends what is under way", test_free_under_way},
};

int main(void)
{
	return RUN_ON_BACKENDS(io_sock);
}
