/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses, listening and connecting, the same for both backends.
 *
 * A connection to a name or over TCP is made on a thread of its own: getaddrinfo() blocks, and
 * however many peers are out of reach at once, none waits for another. The thread tries the
 * addresses in order, within one limit of time for all, and posts the descriptor to the loop.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "daemon/io/env_real.h"

#define BACKLOG             128
#define UNIX_BUFFER_BYTES   (4 * 1024 * 1024)
#define CONNECT_STACK_BYTES (256 * 1024)

struct address {
	bool local;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	char host[256];
	char port[6];
};

/* ---- addresses ---- */

static const char *parse_port(const char *text, struct address *address)
{
	size_t length = strlen(text);
	unsigned long value;

	if (length == 0)
		return "no port after the colon";
	if (length > 5 || strspn(text, "0123456789") != length)
		return "the port is no number of 0..65535";
	value = strtoul(text, NULL, 10);
	if (value > 65535)
		return "the port is no number of 0..65535";
	memcpy(address->port, text, length + 1);
	return NULL;
}

static const char *parse_host_port(const char *text, struct address *address)
{
	const char *colon = strrchr(text, ':');
	size_t length;

	if (text[0] == '[') {
		const char *bracket = strchr(text, ']');

		if (!bracket)
			return "no ] after the IPv6 address";
		if (bracket[1] != ':')
			return "no :PORT after the ]";
		colon = bracket + 1;
		text++;
		length = (size_t)(bracket - text);
	} else {
		if (!colon)
			return "no :PORT (address forms: unix:/PATH, HOST:PORT, [V6ADDR]:PORT)";
		length = (size_t)(colon - text);
		if (memchr(text, ':', length))
			return "an IPv6 address has to stand in [ ]";
	}
	if (length == 0)
		return "no host before the colon";
	if (length >= sizeof(address->host))
		return "the host name is too long";
	memcpy(address->host, text, length);
	address->host[length] = '\0';
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)address->host[i] <= ' ' || strchr("/[]@", address->host[i]))
			return "the host name has a character that no host name has";
	return parse_port(colon + 1, address);
}

static const char *parse_address(const char *text, struct address *address)
{
	*address = (struct address){0};
	if (strncmp(text, "unix:", 5) != 0)
		return parse_host_port(strncmp(text, "tcp:", 4) == 0 ? text + 4 : text, address);
	text += 5;
	if (text[0] != '/')
		return "the path of a unix socket has to begin with /";
	if (strlen(text) >= sizeof(address->path))
		return "the path of a unix socket has at most 107 bytes";
	address->local = true;
	strcpy(address->path, text);
	return NULL;
}

bool env_addr_check(const char *text, const char **why)
{
	struct address address;

	*why = parse_address(text, &address);
	return *why == NULL;
}

static void fill_unix(struct sockaddr_un *un, const char *path)
{
	*un = (struct sockaddr_un){.sun_family = AF_UNIX};
	strcpy(un->sun_path, path);
}

/* 0 or -errno. numeric: do not ask any name server. */
static int resolve(const struct address *address, bool passive, bool numeric,
		   struct addrinfo **list)
{
	struct addrinfo hints = {
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0) |
			    (numeric ? AI_NUMERICHOST : 0),
	};

	switch (getaddrinfo(address->host, address->port, &hints, list)) {
	case 0:
		return 0;
	case EAI_MEMORY:
		return -ENOMEM;
	case EAI_AGAIN:
		return -EAGAIN;
	case EAI_SYSTEM:
		return errno ? -errno : -EIO;
	default:
		return -EADDRNOTAVAIL; /* no such name */
	}
}

static void print_sockaddr(const struct sockaddr_storage *ss, char *text, size_t size)
{
	char host[INET6_ADDRSTRLEN + 1 + 16] = "?", port[8] = "?";

	if (ss->ss_family == AF_UNIX) {
		snprintf(text, size, "unix");
		return;
	}
	getnameinfo((const struct sockaddr *)ss, sizeof(*ss), host, sizeof(host), port,
		    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV);
	snprintf(text, size, ss->ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

/* ---- sockets ---- */

static void set_option(int fd, int level, int name, int value)
{
	/* Each of them is a help, none a need. */
	(void)setsockopt(fd, level, name, &value, sizeof(value));
}

static void set_buffer(int fd, int force, int name)
{
	int bytes = UNIX_BUFFER_BYTES;

	if (setsockopt(fd, SOL_SOCKET, force, &bytes, sizeof(bytes)) < 0)
		set_option(fd, SOL_SOCKET, name, bytes);
}

int real_set_nonblocking(int fd, bool on)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return -errno;
	flags = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
	return fcntl(fd, F_SETFL, flags) < 0 ? -errno : 0;
}

/* On an error fd stays the caller's. */
int real_sock_new(struct env_real *real, int fd, bool nonblocking, struct env_sock **out)
{
	struct sockaddr_storage ss = {0};
	socklen_t length = sizeof(ss);
	struct env_sock *sock;
	int error = real_set_nonblocking(fd, nonblocking);

	if (error)
		return error;
	sock = calloc(1, sizeof(*sock));
	if (!sock)
		return -ENOMEM;
	sock->env = &real->env;
	sock->fd = fd;
	sock->slot = REAL_NO_SLOT;
	sock->readable = true;
	if (getpeername(fd, (struct sockaddr *)&ss, &length) < 0)
		ss.ss_family = AF_UNSPEC; /* gone already: the first operation will say so */
	if (ss.ss_family == AF_UNSPEC)
		strcpy(sock->peername, "(disconnected)");
	else
		print_sockaddr(&ss, sock->peername, sizeof(sock->peername));
	if (ss.ss_family == AF_UNIX) {
		set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF);
		set_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF);
	} else {
		set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
		set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
		set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 30);
		set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
		set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
	}
	real->backend->fd_opened(real, fd, &sock->slot);
	real->socks++;
	*out = sock;
	return 0;
}

void real_sock_forget(struct env_real *real, struct env_sock *sock)
{
	assert(!sock->recv && !sock->send);
	real->backend->fd_closing(real, sock->slot);
	assert(real->socks > 0);
	real->socks--;
	free(sock);
}

void real_sock_free(struct env_real *real, struct env_sock *sock)
{
	int fd = sock->fd;

	assert(sock->closing && real->closing > 0);
	real->closing--;
	real_sock_forget(real, sock);
	close(fd);
}

void real_sock_closing(struct env_real *real, struct env_sock *sock)
{
	assert(!sock->closing);
	sock->closing = true;
	real->closing++;
}

const char *real_sock_peername(struct env_sock *sock)
{
	return sock->peername;
}

void real_iov_advance(struct iovec **iov, unsigned *count, size_t moved)
{
	while (*count > 0 && moved >= (*iov)->iov_len) {
		moved -= (*iov)->iov_len;
		(*iov)++;
		(*count)--;
	}
	if (moved > 0) {
		assert(*count > 0);
		(*iov)->iov_base = (char *)(*iov)->iov_base + moved;
		(*iov)->iov_len -= moved;
	}
}

/* ---- listening ---- */

/* Removes the socket file of a process that is gone. */
static void remove_stale(const struct sockaddr_un *un)
{
	struct stat st;
	int fd;

	if (lstat(un->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
		return;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return;
	if (connect(fd, (const struct sockaddr *)un, sizeof(*un)) < 0 && errno == ECONNREFUSED)
		unlink(un->sun_path);
	close(fd);
}

static int listen_unix(const char *path)
{
	struct sockaddr_un un;
	int fd, error;

	fill_unix(&un, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	remove_stale(&un);
	if (bind(fd, (const struct sockaddr *)&un, sizeof(un)) == 0) {
		if (listen(fd, BACKLOG) == 0)
			return fd;
		error = -errno;
		unlink(path);
	} else {
		error = -errno;
	}
	close(fd);
	return error;
}

static int listen_tcp(const struct address *address)
{
	struct addrinfo *list, *ai;
	int fd = -EADDRNOTAVAIL, error = resolve(address, true, false, &list);

	if (error)
		return error;
	for (ai = list; ai; ai = ai->ai_next) {
		fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd < 0) {
			fd = -errno;
			continue;
		}
		set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
		if (bind(fd, ai->ai_addr, ai->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
			break;
		error = -errno;
		close(fd);
		fd = error;
	}
	freeaddrinfo(list);
	return fd;
}

static void name_listener(struct env_listener *listener, const struct address *address)
{
	struct sockaddr_storage ss = {0};
	socklen_t length = sizeof(ss);
	char text[REAL_PEERNAME_BYTES];

	if (address->local) {
		strcpy(listener->path, address->path);
		snprintf(listener->addr, sizeof(listener->addr), "unix:%s", address->path);
		return;
	}
	getsockname(listener->fd, (struct sockaddr *)&ss, &length);
	print_sockaddr(&ss, text, sizeof(text));
	snprintf(listener->addr, sizeof(listener->addr), "tcp:%s", text);
}

static void retry_accept(struct env_timer *timer)
{
	struct env_listener *listener =
		(struct env_listener *)((char *)timer - offsetof(struct env_listener, retry));
	struct env_real *real = real_of(listener->env);

	if (real->backend->accept_start(real, listener))
		real_timer_start(&real->env, timer, REAL_ACCEPT_RETRY_NS);
}

int real_listen(struct env *env, const char *addr,
		void (*accept)(void *context, struct env_sock *sock), void *context,
		struct env_listener **out)
{
	struct env_real *real = real_of(env);
	struct env_listener *listener;
	struct address address;
	int error;

	if (parse_address(addr, &address))
		return -EINVAL;
	listener = calloc(1, sizeof(*listener));
	if (!listener)
		return -ENOMEM;
	listener->env = env;
	listener->accept = accept;
	listener->context = context;
	listener->retry.fire = retry_accept;
	listener->fd = address.local ? listen_unix(address.path) : listen_tcp(&address);
	if (listener->fd < 0) {
		error = listener->fd;
		free(listener);
		return error;
	}
	name_listener(listener, &address);
	real->listeners++;
	error = real->backend->accept_start(real, listener);
	if (error) {
		real_listener_free(real, listener);
		return error;
	}
	*out = listener;
	return 0;
}

const char *real_listener_addr(struct env_listener *listener)
{
	return listener->addr;
}

void real_listener_close(struct env *env, struct env_listener *listener)
{
	struct env_real *real = real_of(env);

	if (!listener)
		return;
	assert(!listener->closing);
	listener->closing = true;
	real->closing++;
	real_timer_stop(env, &listener->retry);
	if (listener->path[0]) {
		unlink(listener->path);
		listener->path[0] = '\0';
	}
	/* The address is free from here on, whatever is still under way. */
	shutdown(listener->fd, SHUT_RDWR);
	real->backend->accept_stop(real, listener);
}

void real_listener_free(struct env_real *real, struct env_listener *listener)
{
	if (listener->path[0])
		unlink(listener->path);
	close(listener->fd);
	assert(real->listeners > 0);
	real->listeners--;
	if (listener->closing)
		real->closing--;
	free(listener);
}

bool real_accepted(struct env_real *real, struct env_listener *listener, int fd)
{
	struct env_sock *sock = NULL;
	int error;

	if (fd >= 0) {
		error = real->env.ops->sock_adopt(&real->env, fd, &sock);
		if (!error) {
			listener->accept(listener->context, sock);
			return !listener->closing;
		}
		close(fd);
		fd = error;
	}
	switch (fd) {
	case -ECONNABORTED:
	case -EINTR:
	case -EPROTO:
	case -EPERM:
		return true; /* that connection only */
	case -EAGAIN:
		return false;
	}
	env_log(&real->env, ENV_LOG_WARNING, "accept: %s: %s: next try in %llu ms", listener->addr,
		strerror(-fd), REAL_ACCEPT_RETRY_NS / 1000000);
	real_timer_start(&real->env, &listener->retry, REAL_ACCEPT_RETRY_NS);
	return false;
}

/* ---- connecting ---- */

struct real_connect {
	struct env_real *real;
	struct env_op *op;
	struct env_sock **sock;
	struct address address;
	pthread_t thread;
	int result; /* descriptor or -errno */
	struct env_task finished;
	struct real_connect *next;
};

static int64_t clock_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Waits until the connection stands or limit_ms have passed or the environment is being freed. */
static int wait_connected(struct env_real *real, int fd, int64_t limit_ms)
{
	struct pollfd polls[2] = {{fd, POLLOUT, 0}, {real->abort_fd, POLLIN, 0}};
	int64_t end_ms = clock_ms() + limit_ms;
	socklen_t length = sizeof(int);
	int error = 0;

	for (;;) {
		int64_t left_ms = end_ms - clock_ms();
		int ready = poll(polls, 2, left_ms > 0 ? (int)left_ms : 0);

		if (ready < 0 && errno != EINTR)
			return -errno;
		if (ready > 0 && polls[1].revents)
			return -ECANCELED;
		if (ready > 0)
			break;
		if (ready == 0 && left_ms <= 0)
			return -ETIMEDOUT;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
		return -errno;
	return -error;
}

static int connect_one(struct env_real *real, const struct sockaddr *address, socklen_t length,
		       int64_t limit_ms)
{
	int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int error = 0;

	if (fd < 0)
		return -errno;
	if (connect(fd, address, length) < 0) {
		error = -errno;
		if (error == -EINPROGRESS || error == -EINTR)
			error = wait_connected(real, fd, limit_ms);
	}
	if (!error)
		return fd;
	close(fd);
	return error;
}

/* Each address gets an even share of the time that is left. */
static int connect_list(struct env_real *real, const struct addrinfo *list)
{
	int64_t end_ms = clock_ms() + REAL_CONNECT_LIMIT_MS;
	int64_t left = 0;
	int fd = -EADDRNOTAVAIL;

	for (const struct addrinfo *ai = list; ai; ai = ai->ai_next)
		left++;
	for (const struct addrinfo *ai = list; ai; ai = ai->ai_next) {
		fd = connect_one(real, ai->ai_addr, ai->ai_addrlen, (end_ms - clock_ms()) / left--);
		if (fd >= 0 || fd == -ECANCELED)
			break;
	}
	return fd;
}

static int connect_unix(struct env_real *real, const struct address *address)
{
	struct sockaddr_un un;

	fill_unix(&un, address->path);
	return connect_one(real, (const struct sockaddr *)&un, sizeof(un), REAL_CONNECT_LIMIT_MS);
}

/* A unix socket whose backlog is full gives EAGAIN and cannot be polled for room. */
static int connect_unix_patiently(struct env_real *real, const struct address *address)
{
	int64_t end_ms = clock_ms() + REAL_CONNECT_LIMIT_MS;
	struct pollfd aborted = {real->abort_fd, POLLIN, 0};
	int fd;

	for (;;) {
		fd = connect_unix(real, address);
		if (fd != -EAGAIN)
			return fd;
		if (clock_ms() >= end_ms)
			return -ETIMEDOUT;
		if (poll(&aborted, 1, 10) > 0)
			return -ECANCELED;
	}
}

static void *connect_thread(void *context)
{
	struct real_connect *connect = context;
	struct addrinfo *list;

	if (connect->address.local) {
		connect->result = connect_unix_patiently(connect->real, &connect->address);
	} else {
		connect->result = resolve(&connect->address, false, false, &list);
		if (!connect->result) {
			connect->result = connect_list(connect->real, list);
			freeaddrinfo(list);
		}
	}
	real_post(&connect->real->env, &connect->finished);
	return NULL;
}

static int adopt_connected(struct env_real *real, int fd, struct env_sock **sock)
{
	int error = real->env.ops->sock_adopt(&real->env, fd, sock);

	if (error)
		close(fd);
	return error;
}

static void connect_finished(struct env_task *task)
{
	struct real_connect *connect =
		(struct real_connect *)((char *)task - offsetof(struct real_connect, finished));
	struct env_op *op = connect->op;
	struct real_connect **link = &connect->real->connecting;
	int result = connect->result;

	pthread_join(connect->thread, NULL);
	while (*link != connect)
		link = &(*link)->next;
	*link = connect->next;
	if (result >= 0 && connect->real->draining) {
		close(result);
		result = -ECANCELED;
	}
	if (result >= 0)
		result = adopt_connected(connect->real, result, connect->sock);
	free(connect);
	op->done(op, result);
}

static int start_connect_thread(struct real_connect *connect)
{
	pthread_attr_t attr;
	sigset_t all, before;
	int error;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, CONNECT_STACK_BYTES);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&connect->thread, &attr, connect_thread, connect);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	return -error;
}

void real_connect(struct env *env, struct env_op *op, const char *addr, struct env_sock **sock)
{
	struct env_real *real = real_of(env);
	struct real_connect *connect;
	struct address address;
	int result;

	if (parse_address(addr, &address)) {
		real_ready(real, op, -EINVAL);
		return;
	}
	if (address.local) {
		result = connect_unix(real, &address);
		if (result >= 0)
			result = adopt_connected(real, result, sock);
		if (result != -EAGAIN) {
			real_ready(real, op, result);
			return;
		}
	}
	connect = calloc(1, sizeof(*connect));
	if (!connect) {
		real_ready(real, op, -ENOMEM);
		return;
	}
	*connect = (struct real_connect){
		.real = real,
		.op = op,
		.sock = sock,
		.address = address,
		.finished.call = connect_finished,
	};
	result = start_connect_thread(connect);
	if (result) {
		free(connect);
		real_ready(real, op, result);
		return;
	}
	connect->next = real->connecting;
	real->connecting = connect;
}

void real_connect_abort(struct env_real *real)
{
	static const uint64_t one = 1;

	while (write(real->abort_fd, &one, sizeof(one)) < 0)
		if (errno != EINTR)
			real_fatal("eventfd", errno);
}
