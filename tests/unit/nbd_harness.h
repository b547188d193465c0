/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbd_harness: for the NBD server's unit tests. A server with a memory device on a real backend in
 * a thread of its own, and a client of raw bytes with blocking calls in the test's thread. Each
 * wait has a limit (WAIT_S), after which the test fails instead of hanging.
 */
#ifndef OFFSITE_TESTS_NBD_HARNESS_H
#define OFFSITE_TESTS_NBD_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "nbd-server/nbd_server.h"
#include "protocol/nbd.h"

#define WAIT_S       60
#define DEVICE_BYTES (64ull << 20)
#define HELD_MAX     1024u

#define harness_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* ---- the device: changed by the test through harness_call() only, or before harness_start() --- */

struct device {
	struct block block;
	uint8_t *memory;
	struct block_info info;
	int open_error;
	int fail_error; /* of every request, or of that at fail_offset if fail_one */
	uint64_t fail_offset;
	bool fail_one;
	bool hold; /* keep requests until device_release() */
	struct block_request *held[HELD_MAX];
	unsigned held_count;
	unsigned opened, flushes, fuas, requests, writes_done;
	unsigned flags_last;
	uint64_t length_last;
};

struct harness;
struct harness_later {
	void (*call)(struct harness *h, void *argument);
	void *argument;
};

struct harness {
	/* changed as the device is */
	bool hold; /* lookups, maps and their answers wait for harness_release() */
	int lookup_error, status_error;
	struct harness_later later[16];
	unsigned later_count, snap_holds, maps_open;
	struct block snap;
	struct block_map map;
	/* set-up, before harness_start() */
	struct device device;
	enum nbd_tls_mode tls_mode;
	unsigned connections_max, handshake_timeout_ms, stall_timeout_ms;
	unsigned pool_counts[3];
	void (*ending)(struct harness *h); /* on the loop thread, when the server has stopped */
	/* private */
	char folder[64], path[96], addr[104];
	struct env *env;
	struct buf_pool *pool;
	struct tls_context *tls;
	struct nbd_server *server;
	pthread_t thread;
	sem_t ready;
	bool stopped;
};

static enum env_backend harness_backend;

static inline int device_open(struct block *block, char *why, size_t why_size)
{
	struct device *device = harness_of(block, struct device, block);

	if (device->open_error) {
		snprintf(why, why_size, "volume is secondary on this node");
		return device->open_error;
	}
	device->opened++;
	return 0;
}

static inline void device_close(struct block *block)
{
	struct device *device = harness_of(block, struct device, block);

	assert_true(device->opened > 0);
	device->opened--;
}

static inline void device_info(struct block *block, struct block_info *info)
{
	*info = harness_of(block, struct device, block)->info;
}

static inline void device_finish(struct device *device, struct block_request *request)
{
	uint8_t *at = device->memory + request->offset_bytes;

	if (device->fail_error &&
	    (!device->fail_one || device->fail_offset == request->offset_bytes)) {
		request->done(request, device->fail_error);
		return;
	}
	switch (request->op) {
	case BLOCK_READ:
		memcpy(request->buf->data, at, request->length_bytes);
		break;
	case BLOCK_WRITE:
		memcpy(at, request->buf->data, request->length_bytes);
		device->writes_done++;
		break;
	case BLOCK_TRIM:
	case BLOCK_ZERO:
		memset(at, 0, request->length_bytes);
		break;
	case BLOCK_FLUSH:
		device->flushes++;
		break;
	case BLOCK_CACHE:
		break;
	}
	request->done(request, 0);
}

static inline void device_submit(struct block *block, struct block_request *request)
{
	struct device *device = harness_of(block, struct device, block);

	assert_true(request->offset_bytes + request->length_bytes <= device->info.size_bytes);
	device->requests++;
	device->fuas += !!(request->flags & BLOCK_FUA);
	device->flags_last = request->flags;
	device->length_last = request->length_bytes;
	if (!device->hold) {
		device_finish(device, request);
		return;
	}
	assert_true(device->held_count < HELD_MAX);
	device->held[device->held_count++] = request;
}

/* On the loop thread: ends what was held, the latest first. */
static inline void device_release(struct device *device)
{
	device->hold = false;
	while (device->held_count > 0)
		device_finish(device, device->held[--device->held_count]);
}

/* Every other 64 KiB is a hole that reads as zeroes. */
static inline unsigned device_extents(struct block *block, uint64_t offset, uint64_t length,
				      struct block_extent *extents, unsigned count)
{
	unsigned n = 0;

	while (n < count && length > 0) {
		uint64_t run = 65536 - offset % 65536;
		bool hole = offset / 65536 % 2 == 1;

		if (run > length)
			run = length;
		extents[n++] = (struct block_extent){run, hole, hole, 0};
		offset += run;
		length -= run;
	}
	return n;
}

static const struct block_ops device_ops = {
	device_open, device_close, device_info, device_submit, device_extents, NULL,
};

/* ---- an export that has to be looked up, and maps ------------------------------------------------ */

/* "snap": the device again, with extents that take their time. Everything waits while h->hold. */
static inline void harness_later(struct harness *h, void (*call)(struct harness *h, void *argument),
				 void *argument)
{
	if (!h->hold) {
		call(h, argument);
		return;
	}
	assert_true(h->later_count < 16);
	h->later[h->later_count].call = call;
	h->later[h->later_count++].argument = argument;
}

/* On the loop thread. */
static inline void harness_release(struct harness *h, void *argument)
{
	h->hold = false;
	for (unsigned i = 0; i < h->later_count; i++)
		h->later[i].call(h, h->later[i].argument);
	h->later_count = 0;
}

static inline void lookup_now(struct harness *h, void *argument)
{
	struct block_lookup *lookup = argument;

	if (h->lookup_error) {
		lookup->done(lookup, NULL, h->lookup_error, "store: no answer");
		return;
	}
	h->snap_holds++;
	lookup->done(lookup, &h->snap, 0, "");
}

static inline void harness_look_up(void *context, const char *name, struct block_lookup *lookup)
{
	struct harness *h = context;

	if (strcmp(name, "snap") == 0)
		harness_later(h, lookup_now, lookup);
	else
		lookup->done(lookup, NULL, -ENOENT, "no such snapshot");
}

static inline void harness_let_go(void *context, struct block *block)
{
	struct harness *h = context;

	assert_true(block == &h->snap && h->snap_holds > 0);
	h->snap_holds--;
}

static inline int snap_open(struct block *block, char *why, size_t why_size)
{
	return device_open(&harness_of(block, struct harness, snap)->device.block, why, why_size);
}

static inline void snap_close(struct block *block)
{
	device_close(&harness_of(block, struct harness, snap)->device.block);
}

static inline void snap_info(struct block *block, struct block_info *info)
{
	*info = harness_of(block, struct harness, snap)->device.info;
	info->read_only = true;
}

static inline void snap_submit(struct block *block, struct block_request *request)
{
	device_submit(&harness_of(block, struct harness, snap)->device.block, request);
}

/* Flag 1 for the odd 64 KiB; the device's own holes for the allocation. */
static inline void status_now(struct harness *h, void *argument)
{
	struct block_status *status = argument;

	if (h->status_error) {
		status->done(status, h->status_error);
		return;
	}
	status->count = device_extents(&h->device.block, status->offset_bytes, status->length_bytes,
				       status->extents, status->max);
	for (unsigned i = 0; i < status->count; i++)
		status->extents[i].flags = status->extents[i].hole;
	status->done(status, 0);
}

static inline void snap_status(struct block *block, struct block_status *status)
{
	harness_later(harness_of(block, struct harness, snap), status_now, status);
}

static const struct block_ops snap_ops = {
	snap_open, snap_close, snap_info, snap_submit, NULL, snap_status,
};

static inline void map_status(struct block_map *map, struct block_status *status)
{
	struct harness *h = harness_of(map, struct harness, map);

	assert_true(h->maps_open > 0);
	harness_later(h, status_now, status);
}

static inline void map_close(struct block_map *map)
{
	struct harness *h = harness_of(map, struct harness, map);

	assert_true(h->maps_open > 0);
	h->maps_open--;
}

static inline void map_now(struct harness *h, void *argument)
{
	struct block_map_open *open = argument;

	h->map = (struct block_map){map_status, map_close};
	h->maps_open++;
	open->done(open, &h->map);
}

static inline void harness_map_open(void *context, struct block *block, const char *name,
				    struct block_map_open *open)
{
	if (strncmp(name, "x:odd=", 6) == 0)
		harness_later(context, map_now, open);
	else
		open->done(open, NULL);
}

static inline void harness_map_list(void *context, struct block *block, struct block_map_list *list)
{
	static const char *const names[] = {"x:odd=1", "x:odd=2", "y:none"};

	list->done(list, names, 3);
}

/* ---- the server's thread ------------------------------------------------------------------------ */

static inline struct block *harness_find(void *context, const char *name)
{
	struct harness *h = context;

	return name[0] == '\0' || strcmp(name, "vol") == 0 ? &h->device.block : NULL;
}

static inline struct block *harness_list(void *context, unsigned index)
{
	return index < 2 ? &((struct harness *)context)->device.block : NULL;
}

static inline void harness_started(struct harness *h)
{
	struct nbd_server_config config = {
		.pool = h->pool,
		.tls_mode = h->tls_mode,
		.tls = h->tls,
		.connections_max = h->connections_max,
		.handshake_timeout_ms = h->handshake_timeout_ms,
		.stall_timeout_ms = h->stall_timeout_ms,
		.find = harness_find,
		.list = harness_list,
		.look_up = harness_look_up,
		.release = harness_let_go,
		.map_open = harness_map_open,
		.map_list = harness_map_list,
		.context = h,
	};
	char why[256];

	h->server = nbd_server_new(h->env, &config);
	if (!h->server || nbd_server_listen(h->server, h->addr, why, sizeof(why))) {
		fprintf(stderr, "harness: %s\n", why);
		abort();
	}
}

static inline void *harness_thread(void *context)
{
	struct harness *h = context;
	const char *why;

	if (env_real_new(harness_backend, 1, &h->env, &why)) {
		fprintf(stderr, "harness: %s\n", why);
		abort();
	}
	env_log_level(h->env, getenv("NBD_VERBOSE") ? ENV_LOG_DEBUG : ENV_LOG_ERROR);
	harness_started(h);
	sem_post(&h->ready);
	env_run_until(h->env, &h->stopped);
	if (h->ending)
		h->ending(h);
	nbd_server_free(h->server);
	env_free(h->env);
	return NULL;
}

static inline struct harness *harness_new(void)
{
	struct harness *h = calloc(1, sizeof(*h));

	assert_non_null(h);
	h->device.block = (struct block){&device_ops, "vol", "a volume"};
	h->snap = (struct block){&snap_ops, "snap", "a snapshot"};
	h->device.memory = calloc(1, DEVICE_BYTES);
	assert_non_null(h->device.memory);
	h->device.info = (struct block_info){
		.size_bytes = DEVICE_BYTES,
		.block_min_bytes = 1,
		.block_preferred_bytes = 4096,
		.can_trim = true,
		.can_zero = true,
		.can_fast_zero = true,
		.can_flush = true,
		.can_multi_conn = true,
	};
	h->pool_counts[0] = 256;
	h->pool_counts[1] = 32;
	h->pool_counts[2] = 16;
	return h;
}

static inline void harness_start(struct harness *h)
{
	char why[256];

	signal(SIGPIPE, SIG_IGN);
	strcpy(h->folder, "/tmp/nbd-unit-XXXXXX");
	assert_non_null(mkdtemp(h->folder));
	snprintf(h->path, sizeof(h->path), "%s/socket", h->folder);
	snprintf(h->addr, sizeof(h->addr), "unix:%s", h->path);
	h->pool = buf_pool_new(h->pool_counts);
	assert_non_null(h->pool);
	if (h->tls_mode != NBD_TLS_OFF) {
		char psk[96];
		struct tls_config config = {.role = TLS_SERVER, .psk_file = psk};
		FILE *file;

		snprintf(psk, sizeof(psk), "%s/psk", h->folder);
		file = fopen(psk, "w");
		assert_non_null(file);
		fputs("alice:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n",
		      file);
		fclose(file);
		assert_int_equal(tls_context_new(&config, &h->tls, why, sizeof(why)), 0);
		unlink(psk);
	}
	sem_init(&h->ready, 0, 0);
	assert_int_equal(pthread_create(&h->thread, NULL, harness_thread, h), 0);
	sem_wait(&h->ready);
}

struct harness_call {
	struct env_task task;
	void (*call)(struct harness *h, void *argument);
	struct harness *h;
	void *argument;
	sem_t done;
};

static inline void harness_called(struct env_task *task)
{
	struct harness_call *call = harness_of(task, struct harness_call, task);

	call->call(call->h, call->argument);
	sem_post(&call->done);
}

/* Runs call() on the loop thread and waits for it. */
static inline void harness_call(struct harness *h, void (*call)(struct harness *h, void *argument),
				void *argument)
{
	struct harness_call c = {{.call = harness_called}, call, h, argument, {{0}}};
	struct timespec limit;

	sem_init(&c.done, 0, 0);
	env_post(h->env, &c.task);
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += WAIT_S;
	while (sem_timedwait(&c.done, &limit) != 0) {
		if (errno != EINTR) {
			fprintf(stderr, "harness: the loop hangs\n");
			abort();
		}
	}
}

static inline void harness_stopped(void *context)
{
	((struct harness *)context)->stopped = true;
}

static inline void call_stop(struct harness *h, void *argument)
{
	nbd_server_stop(h->server, harness_stopped, h);
}

static inline void call_release(struct harness *h, void *argument)
{
	device_release(&h->device);
}

static inline void call_hold(struct harness *h, void *argument)
{
	h->device.hold = true;
}

static inline void call_stats(struct harness *h, void *argument)
{
	nbd_server_get_stats(h->server, argument);
}

static inline struct nbd_server_stats harness_stats(struct harness *h)
{
	struct nbd_server_stats stats;

	harness_call(h, call_stats, &stats);
	return stats;
}

struct harness_condition {
	bool (*holds)(struct harness *h);
	bool result;
};

static inline void call_condition(struct harness *h, void *argument)
{
	struct harness_condition *condition = argument;

	condition->result = condition->holds(h);
}

/* Waits until holds() is true on the loop thread. */
static inline void harness_wait(struct harness *h, bool (*holds)(struct harness *h))
{
	struct harness_condition condition = {holds, false};
	time_t limit = time(NULL) + WAIT_S;

	for (;;) {
		harness_call(h, call_condition, &condition);
		if (condition.result)
			return;
		if (time(NULL) > limit)
			fail_msg("the condition does not become true");
		usleep(1000);
	}
}

/* Stops, frees, and checks that nothing is left. */
/* After call_stop(). */
static inline void harness_join(struct harness *h)
{
	pthread_join(h->thread, NULL);
	assert_int_equal(h->device.opened, 0);
	assert_int_equal(h->snap_holds, 0);
	assert_int_equal(h->maps_open, 0);
	assert_int_equal(buf_pool_used_bytes(h->pool), 0);
	buf_pool_free(h->pool);
	tls_context_free(h->tls);
	sem_destroy(&h->ready);
	unlink(h->path);
	assert_int_equal(rmdir(h->folder), 0);
	free(h->device.memory);
	free(h);
}

static inline void harness_end(struct harness *h)
{
	harness_call(h, call_release, NULL);
	harness_call(h, call_stop, NULL);
	harness_join(h);
}

/* ---- the client ------------------------------------------------------------------------------- */

static inline int client_connect(struct harness *h)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = WAIT_S};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	strcpy(addr.sun_path, h->path);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	return fd;
}

/* False when the server has closed. */
static inline bool client_try_send(int fd, const void *data, size_t length)
{
	const uint8_t *at = data;

	while (length > 0) {
		ssize_t n = send(fd, at, length, MSG_NOSIGNAL);

		if (n <= 0) {
			assert_true(errno == EPIPE || errno == ECONNRESET);
			return false;
		}
		at += n;
		length -= (size_t)n;
	}
	return true;
}

static inline void client_send(int fd, const void *data, size_t length)
{
	assert_true(client_try_send(fd, data, length));
}

static inline void client_recv(int fd, void *data, size_t length)
{
	uint8_t *at = data;

	while (length > 0) {
		ssize_t n = recv(fd, at, length, 0);

		if (n <= 0)
			fail_msg("receive: %s", n < 0 ? strerror(errno) : "end of stream");
		at += n;
		length -= (size_t)n;
	}
}

/* The server has ended the connection, and sent nothing before. */
static inline void client_expect_end(int fd)
{
	char byte;
	ssize_t n = recv(fd, &byte, 1, 0);

	if (n > 0 || (n < 0 && errno != ECONNRESET))
		fail_msg("no end of stream: %s", n > 0 ? "a byte" : strerror(errno));
	close(fd);
}

static inline void client_greet(int fd, uint32_t flags)
{
	struct nbd_greeting greeting;
	be32_t be = to_be32(flags);

	client_recv(fd, &greeting, sizeof(greeting));
	assert_true(from_be64(greeting.init_magic) == NBD_MAGIC_INIT);
	assert_true(from_be64(greeting.option_magic) == NBD_MAGIC_OPTION);
	assert_int_equal(from_be16(greeting.flags), 3);
	client_send(fd, &be, sizeof(be));
}

static inline void client_option(int fd, uint32_t option, const void *data, uint32_t length)
{
	struct nbd_option_header header = {to_be64(NBD_MAGIC_OPTION), to_be32(option),
					   to_be32(length)};

	client_send(fd, &header, sizeof(header));
	client_send(fd, data, length);
}

/* Returns the reply's type; its data goes to data (room for 64 KiB), or nowhere if NULL. */
static inline uint32_t client_reply(int fd, uint32_t option, void *data, uint32_t *length)
{
	static uint8_t nowhere[65536];
	struct nbd_option_reply reply;
	uint32_t n;

	client_recv(fd, &reply, sizeof(reply));
	assert_true(from_be64(reply.magic) == NBD_MAGIC_OPTION_REPLY);
	assert_int_equal(from_be32(reply.option), option);
	n = from_be32(reply.length);
	assert_true(n <= sizeof(nowhere));
	client_recv(fd, data ? data : nowhere, n);
	if (length)
		*length = n;
	return from_be32(reply.type);
}

#define expect_reply(fd, option, type) assert_int_equal(client_reply(fd, option, NULL, NULL), type)

static const char go_vol[] = "\0\0\0\3vol\0\0";
static const char go_nothing[] = "\0\0\0\2no\0\0";
static const char meta_vol[] = "\0\0\0\3vol\0\0\0\1\0\0\0\17base:allocation";
#define LITERAL(text) text, sizeof(text) - 1

enum client_kind { CLIENT_SIMPLE, CLIENT_STRUCTURED };

/* A connection in its transmission phase. */
static inline int client_open(struct harness *h, enum client_kind kind)
{
	int fd = client_connect(h);
	uint32_t type;

	client_greet(fd, 3);
	if (kind == CLIENT_STRUCTURED) {
		client_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
		expect_reply(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
		client_option(fd, NBD_OPT_SET_META_CONTEXT, LITERAL(meta_vol));
		expect_reply(fd, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT);
		expect_reply(fd, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
	}
	client_option(fd, NBD_OPT_GO, LITERAL(go_vol));
	do {
		type = client_reply(fd, NBD_OPT_GO, NULL, NULL);
	} while (type == NBD_REP_INFO);
	assert_int_equal(type, NBD_REP_ACK);
	return fd;
}

static inline void client_request(int fd, uint16_t type, uint16_t flags, uint64_t cookie,
				  uint64_t offset, uint32_t length)
{
	struct nbd_request_wire wire = {
		to_be32(NBD_MAGIC_REQUEST),
		to_be16(flags),
		to_be16(type),
		to_be64(cookie),
		to_be64(offset),
		to_be32(length),
	};

	client_send(fd, &wire, sizeof(wire));
}

static inline void client_write(int fd, uint16_t flags, uint64_t cookie, uint64_t offset,
				const void *data, uint32_t length)
{
	client_request(fd, NBD_CMD_WRITE, flags, cookie, offset, length);
	client_send(fd, data, length);
}

static inline void expect_simple(int fd, uint64_t cookie, uint32_t error)
{
	struct nbd_simple_reply reply;

	client_recv(fd, &reply, sizeof(reply));
	assert_int_equal(from_be32(reply.magic), NBD_MAGIC_SIMPLE_REPLY);
	assert_int_equal(from_be64(reply.cookie), cookie);
	assert_int_equal(from_be32(reply.error), error);
}

static inline struct nbd_chunk client_chunk(int fd, uint64_t cookie)
{
	struct nbd_chunk chunk;

	client_recv(fd, &chunk, sizeof(chunk));
	assert_int_equal(from_be32(chunk.magic), NBD_MAGIC_CHUNK);
	assert_int_equal(from_be64(chunk.cookie), cookie);
	return chunk;
}

/* An ERROR chunk that ends its reply. */
static inline void expect_error_chunk(int fd, uint64_t cookie, uint32_t error)
{
	struct nbd_chunk chunk = client_chunk(fd, cookie);
	char message[256];
	be32_t code;
	be16_t length;

	assert_int_equal(from_be16(chunk.type), NBD_CHUNK_ERROR);
	assert_int_equal(from_be16(chunk.flags), NBD_CHUNK_FLAG_DONE);
	client_recv(fd, &code, sizeof(code));
	client_recv(fd, &length, sizeof(length));
	assert_int_equal(from_be32(chunk.length), 6 + from_be16(length));
	assert_true(from_be16(length) < sizeof(message));
	client_recv(fd, message, from_be16(length));
	assert_int_equal(from_be32(code), error);
}

/* A whole READ's data as one chunk. */
static inline void expect_data(int fd, uint64_t cookie, uint64_t offset, const void *data,
			       uint32_t length)
{
	struct nbd_chunk chunk = client_chunk(fd, cookie);
	uint8_t *got = malloc(length);
	be64_t at;

	assert_int_equal(from_be16(chunk.type), NBD_CHUNK_OFFSET_DATA);
	assert_int_equal(from_be16(chunk.flags), NBD_CHUNK_FLAG_DONE);
	assert_int_equal(from_be32(chunk.length), length + 8);
	client_recv(fd, &at, sizeof(at));
	assert_int_equal(from_be64(at), offset);
	client_recv(fd, got, length);
	assert_memory_equal(got, data, length);
	free(got);
}

static inline void expect_simple_data(int fd, uint64_t cookie, const void *data, uint32_t length)
{
	uint8_t *got = malloc(length);

	expect_simple(fd, cookie, 0);
	client_recv(fd, got, length);
	assert_memory_equal(got, data, length);
	free(got);
}

/* The connection still works. */
static inline void expect_alive(int fd)
{
	client_request(fd, NBD_CMD_FLUSH, 0, 0xa11e, 0, 0);
	expect_simple(fd, 0xa11e, 0);
}

static inline void client_disconnect(int fd)
{
	client_request(fd, NBD_CMD_DISC, 0, 1, 0, 0);
	client_expect_end(fd);
}

/* Runs the group on both backends. */
#define harness_run(tests)                                                           \
	__extension__({                                                              \
		int failed;                                                          \
		harness_backend = ENV_BACKEND_URING;                                 \
		failed = cmocka_run_group_tests_name("io_uring", tests, NULL, NULL); \
		harness_backend = ENV_BACKEND_AIO;                                   \
		failed + cmocka_run_group_tests_name("libaio", tests, NULL, NULL);   \
	})

#endif
