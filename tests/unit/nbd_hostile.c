// SPDX-License-Identifier: Apache-2.0
/*
 * Clients that break off, stall, talk nonsense, or never listen; and the server's end. The random
 * client prints its seed; NBD_SEED=N replays it, NBD_ROUNDS=N changes the number of connections.
 */
#include "tests/unit/nbd_harness.h"

#define MIB (1u << 20)

static bool no_connections(struct harness *h)
{
	struct nbd_server_stats stats;

	nbd_server_get_stats(h->server, &stats);
	return stats.connections == 0;
}

/* ---- the random client ------------------------------------------------------------------------ */

static uint64_t next_random(uint64_t *seed)
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15ull);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static size_t put_option(uint8_t *to, uint32_t option, const void *data, uint32_t length)
{
	struct nbd_option_header header = {to_be64(NBD_MAGIC_OPTION), to_be32(option),
					   to_be32(length)};

	memcpy(to, &header, sizeof(header));
	memcpy(to + sizeof(header), data, length);
	return sizeof(header) + length;
}

/* Something between noise and the truth: the more of the bytes is right, the deeper it gets. */
static size_t random_stream(uint64_t *seed, uint8_t *to)
{
	uint64_t kind = next_random(seed);
	size_t n = 4;

	memcpy(to, "\0\0\0\3", 4);
	if (kind % 4 > 0 && kind & 16)
		n += put_option(to + n, NBD_OPT_STRUCTURED_REPLY, "", 0);
	if (kind % 4 > 0 && kind & 32)
		n += put_option(to + n, NBD_OPT_SET_META_CONTEXT, LITERAL(meta_vol));
	if (kind % 4 == 1)
		n += put_option(to + n, (uint32_t)(next_random(seed) % 12), "\0\0\0\1abcdefgh",
				(uint32_t)(next_random(seed) % 12));
	if (kind % 4 > 1) {
		unsigned count = (unsigned)(next_random(seed) % 20);

		n += put_option(to + n, NBD_OPT_GO, LITERAL(go_vol));
		for (unsigned i = 0; i < count; i++) {
			uint64_t r = next_random(seed);
			struct nbd_request_wire wire = {
				to_be32(NBD_MAGIC_REQUEST),
				to_be16((uint16_t)(r % 8 == 0 ? r >> 8 : 0)),
				to_be16((uint16_t)((r >> 24) % 9)),
				to_be64(r),
				to_be64(next_random(seed) >> (r % 60)),
				to_be32((uint32_t)(next_random(seed) >> (34 + r % 28))),
			};

			memcpy(to + n, &wire, sizeof(wire));
			n += sizeof(wire);
		}
	}
	for (unsigned i = 0, noise = (unsigned)(next_random(seed) % 200); i < noise; i++)
		to[n++] = (uint8_t)next_random(seed);
	/* And now and then a bit falls over. */
	if (kind & 64)
		to[next_random(seed) % n] ^= (uint8_t)(1u << (kind >> 8) % 8);
	return n;
}

static void random_bytes(void **state)
{
	const char *seed_text = getenv("NBD_SEED"), *rounds_text = getenv("NBD_ROUNDS");
	uint64_t first = seed_text ? strtoull(seed_text, NULL, 0) : (uint64_t)time(NULL);
	unsigned rounds = rounds_text ? (unsigned)atoi(rounds_text) : 10000;
	struct harness *h = harness_new();
	uint64_t seed = first;
	uint8_t bytes[4096];
	int fd;

	print_message("seed %llu (replay: NBD_SEED=%llu)\n", (unsigned long long)first,
		      (unsigned long long)first);
	h->connections_max = 16;
	harness_start(h);
	for (unsigned i = 0; i < rounds; i++) {
		uint64_t r = next_random(&seed);
		size_t n = random_stream(&seed, bytes);

		fd = client_connect(h);
		if (client_try_send(fd, bytes, n) && r & 1) {
			/* To the orderly end, reading what comes. */
			shutdown(fd, SHUT_WR);
			while (recv(fd, bytes, sizeof(bytes), 0) > 0)
				;
		}
		close(fd);
	}
	harness_wait(h, no_connections);
	fd = client_open(h, CLIENT_STRUCTURED);
	expect_alive(fd);
	client_disconnect(fd);
	harness_end(h);
	print_message("seed %llu: done\n", (unsigned long long)first);
}

/* ---- breaking off ----------------------------------------------------------------------------- */

static void disconnect_in_the_middle_of_a_payload(void **state)
{
	static const uint32_t lengths[] = {4096, 65536, MIB, 8 * MIB};
	struct harness *h = harness_new();
	uint8_t *data = calloc(1, 8 * MIB);

	harness_start(h);
	for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		for (unsigned part = 0; part < 3; part++) {
			int fd = client_open(h, CLIENT_SIMPLE);

			client_request(fd, NBD_CMD_WRITE, 0, 1, 0, lengths[i]);
			client_send(fd, data, lengths[i] * part / 3);
			close(fd);
			harness_wait(h, no_connections);
		}
	}
	/* What was incomplete is not written: only whole MiB of the last are. */
	assert_int_equal(h->device.writes_done, 8 / 3 + 16 / 3);
	free(data);
	harness_end(h);
}

static bool some_held(struct harness *h)
{
	return h->device.held_count == 20;
}

static bool stream_closed(struct harness *h)
{
	/* Closed, but kept for the requests that the device still has. */
	return h->device.opened == 1 && h->device.held_count == 20;
}

static void disconnect_with_requests_under_way(void **state)
{
	struct harness *h = harness_new();
	int fd;

	h->device.hold = true;
	harness_start(h);
	fd = client_open(h, CLIENT_SIMPLE);
	for (unsigned i = 0; i < 10; i++) {
		client_request(fd, NBD_CMD_READ, 0, i, i * 4096, 4096);
		client_write(fd, 0, i, i * 4096, go_vol, 8);
	}
	harness_wait(h, some_held);
	close(fd);
	harness_wait(h, stream_closed);
	harness_call(h, call_release, NULL);
	harness_wait(h, no_connections);
	harness_end(h);
}

static void call_drop(struct harness *h, void *argument)
{
	nbd_server_drop(h->server, &h->device.block);
}

static void drop_ends_an_exports_connections(void **state)
{
	struct harness *h = harness_new();
	int fds[3];

	h->device.hold = true;
	harness_start(h);
	for (int i = 0; i < 3; i++) {
		fds[i] = client_open(h, CLIENT_SIMPLE);
		client_request(fds[i], NBD_CMD_READ, 0, 1, 0, 4096);
	}
	harness_call(h, call_drop, NULL);
	for (int i = 0; i < 3; i++)
		client_expect_end(fds[i]);
	harness_call(h, call_release, NULL);
	harness_wait(h, no_connections);
	harness_end(h);
}

/* ---- not listening ---------------------------------------------------------------------------- */

static void call_used(struct harness *h, void *argument)
{
	*(size_t *)argument = buf_pool_used_bytes(h->pool);
}

static bool some_is_used(struct harness *h)
{
	return buf_pool_used_bytes(h->pool) > 0;
}

/* Asks and asks, and never reads: is stopped being read, holds a bounded part of the pool, and
 * others are served beside it. */
static void client_that_never_reads(void **state)
{
	struct harness *h = harness_new();
	struct nbd_request_wire wire = {to_be32(NBD_MAGIC_REQUEST),
					to_be16(0),
					to_be16(NBD_CMD_READ),
					to_be64(1),
					to_be64(0),
					to_be32(65536)};
	int deaf, other;
	size_t sent = 0, used, arena;

	harness_start(h);
	deaf = client_open(h, CLIENT_SIMPLE);
	fcntl(deaf, F_SETFL, O_NONBLOCK);
	/* Until the socket has been full for a while. */
	for (int full = 0; full < 50;) {
		ssize_t n = send(deaf, &wire, sizeof(wire), MSG_NOSIGNAL);

		if (n > 0) {
			sent += (size_t)n;
			full = 0;
			assert_int_equal(n, sizeof(wire));
			assert_true(sent < 64 * MIB);
		} else {
			assert_int_equal(errno, EAGAIN);
			full++;
			usleep(2000);
		}
	}
	buf_pool_arena(h->pool, &arena);
	harness_wait(h, some_is_used);
	harness_call(h, call_used, &used);
	assert_true(used > 0 && used <= arena / 4 + 65536);
	other = client_open(h, CLIENT_STRUCTURED);
	for (unsigned i = 0; i < 100; i++) {
		client_request(other, NBD_CMD_READ, 0, i, 0, 65536);
		expect_data(other, i, 0, h->device.memory, 65536);
	}
	client_disconnect(other);
	close(deaf);
	harness_wait(h, no_connections);
	harness_end(h);
}

/* Clients that stop in the middle of a payload hold every large buffer; those that wait for one get it
 * in the end. */
static void clients_that_never_send_the_rest(void **state)
{
	enum { LARGE = 4 };
	struct harness *h = harness_new();
	uint8_t *data = calloc(1, MIB);
	int mute[LARGE], patient, other;

	h->pool_counts[2] = LARGE;
	h->stall_timeout_ms = 600;
	harness_start(h);
	for (unsigned i = 0; i < LARGE; i++) {
		mute[i] = client_open(h, CLIENT_SIMPLE);
		client_request(mute[i], NBD_CMD_WRITE, 0, 1, 0, MIB);
		client_send(mute[i], data, i % 2 ? MIB / 2 : MIB - 100);
	}
	/* Nobody misses them: they may stay. */
	usleep(900000);
	patient = client_open(h, CLIENT_SIMPLE);
	assert_int_equal(harness_stats(h).connections, LARGE + 1);
	other = client_open(h, CLIENT_SIMPLE);
	client_write(other, 0, 2, 0, data, MIB);
	expect_simple(other, 2, 0);
	for (unsigned i = 0; i < LARGE; i++)
		client_expect_end(mute[i]);
	assert_int_equal(h->device.writes_done, 1);
	expect_alive(patient);
	client_disconnect(patient);
	client_disconnect(other);
	free(data);
	harness_end(h);
}

/* ---- several connections ---------------------------------------------------------------------- */

static void flush_covers_all_connections(void **state)
{
	struct harness *h = harness_new();
	int writer, flusher;

	harness_start(h);
	writer = client_open(h, CLIENT_SIMPLE);
	flusher = client_open(h, CLIENT_SIMPLE);
	client_write(writer, 0, 1, 0, "abc", 3);
	expect_simple(writer, 1, 0);
	client_request(flusher, NBD_CMD_FLUSH, 0, 2, 0, 0);
	expect_simple(flusher, 2, 0);
	/* One device under both: its flush came after the write it completed. */
	assert_int_equal(h->device.flushes, 1);
	assert_int_equal(h->device.writes_done, 1);
	client_request(flusher, NBD_CMD_READ, 0, 3, 0, 3);
	expect_simple_data(flusher, 3, "abc", 3);
	client_disconnect(writer);
	client_disconnect(flusher);
	harness_end(h);
}

/* ---- the server's end ------------------------------------------------------------------------- */

static bool one_held(struct harness *h)
{
	return h->device.held_count == 1;
}

static void stop_finishes_what_is_under_way(void **state)
{
	struct harness *h = harness_new();
	int busy, idle, handshake;
	struct nbd_greeting greeting;

	h->device.hold = true;
	harness_start(h);
	busy = client_open(h, CLIENT_SIMPLE);
	idle = client_open(h, CLIENT_SIMPLE);
	handshake = client_connect(h);
	client_recv(handshake, &greeting, sizeof(greeting));
	client_write(busy, 0, 1, 0, "abc", 3);
	harness_wait(h, one_held);
	harness_call(h, call_stop, NULL);
	client_expect_end(idle);
	client_expect_end(handshake);
	client_request(busy, NBD_CMD_READ, 0, 2, 0, 3);
	expect_simple(busy, 2, NBD_ESHUTDOWN);
	assert_false(h->stopped);
	harness_call(h, call_release, NULL);
	expect_simple(busy, 1, 0);
	client_expect_end(busy);
	pthread_join(h->thread, NULL);
	assert_int_equal(h->device.opened, 0);
	assert_int_equal(buf_pool_used_bytes(h->pool), 0);
	buf_pool_free(h->pool);
	sem_destroy(&h->ready);
	unlink(h->path);
	rmdir(h->folder);
	free(h->device.memory);
	free(h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_bytes),
		cmocka_unit_test(disconnect_in_the_middle_of_a_payload),
		cmocka_unit_test(disconnect_with_requests_under_way),
		cmocka_unit_test(drop_ends_an_exports_connections),
		cmocka_unit_test(client_that_never_reads),
		cmocka_unit_test(clients_that_never_send_the_rest),
		cmocka_unit_test(flush_covers_all_connections),
		cmocka_unit_test(stop_finishes_what_is_under_way),
	};

	return harness_run(tests);
}
