// SPDX-License-Identifier: Apache-2.0
/* The NBD server's requests and replies, spoken in raw bytes: each command, each error. */
#include "tests/unit/nbd_harness.h"

#define MIB (1u << 20)

static struct harness *start(void)
{
	struct harness *h = harness_new();

	harness_start(h);
	return h;
}

static uint8_t *pattern(uint32_t length, unsigned seed)
{
	uint8_t *bytes = malloc(length);

	assert_non_null(bytes);
	for (uint32_t i = 0; i < length; i++)
		bytes[i] = (uint8_t)((i * 2654435761u + seed * 40503u) >> 13);
	return bytes;
}

static void write_then_read(void **state)
{
	static const uint32_t lengths[] = {1, 511, 512, 4096, 8192, 8193, 65536, 100000, MIB};
	struct harness *h = start();
	int simple = client_open(h, CLIENT_SIMPLE), structured = client_open(h, CLIENT_STRUCTURED);
	uint64_t offset = 5;

	for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		uint8_t *data = pattern(lengths[i], i);

		client_write(i & 1 ? simple : structured, 0, i, offset, data, lengths[i]);
		expect_simple(i & 1 ? simple : structured, i, 0);
		client_request(simple, NBD_CMD_READ, 0, 100 + i, offset, lengths[i]);
		expect_simple_data(simple, 100 + i, data, lengths[i]);
		client_request(structured, NBD_CMD_READ, 0, 200 + i, offset, lengths[i]);
		expect_data(structured, 200 + i, offset, data, lengths[i]);
		client_request(structured, NBD_CMD_READ, NBD_CMD_FLAG_DF, 300 + i, offset,
			       lengths[i]);
		expect_data(structured, 300 + i, offset, data, lengths[i]);
		offset += lengths[i];
		free(data);
	}
	client_disconnect(simple);
	client_disconnect(structured);
	harness_end(h);
}

/* READ with structured replies comes in parts, in any order; gathers them into data. */
static void gather_parts(int fd, uint64_t cookie, uint64_t offset, uint8_t *data, uint32_t length)
{
	uint32_t got = 0;
	bool done = false;

	while (!done) {
		struct nbd_chunk chunk = client_chunk(fd, cookie);
		uint32_t n = from_be32(chunk.length) - 8;
		be64_t at;

		assert_int_equal(from_be16(chunk.type), NBD_CHUNK_OFFSET_DATA);
		client_recv(fd, &at, sizeof(at));
		assert_true(from_be64(at) >= offset && from_be64(at) - offset + n <= length);
		client_recv(fd, data + (from_be64(at) - offset), n);
		got += n;
		done = from_be16(chunk.flags) & NBD_CHUNK_FLAG_DONE;
	}
	assert_int_equal(got, length);
}

static void payloads_to_32_mib(void **state)
{
	static const uint32_t lengths[] = {MIB + 1, 3 * MIB + 4096, NBD_PAYLOAD_MAX};
	struct harness *h = start();
	int simple = client_open(h, CLIENT_SIMPLE), structured = client_open(h, CLIENT_STRUCTURED);

	for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		uint32_t length = lengths[i];
		uint8_t *data = pattern(length, i), *back = calloc(1, length);

		client_write(structured, NBD_CMD_FLAG_FUA, 1, 4096, data, length);
		expect_simple(structured, 1, 0);
		assert_memory_equal(h->device.memory + 4096, data, length);
		client_request(structured, NBD_CMD_READ, 0, 2, 4096, length);
		gather_parts(structured, 2, 4096, back, length);
		assert_memory_equal(back, data, length);
		/* Requests around a split READ with simple replies: nothing gets in between. */
		client_request(simple, NBD_CMD_FLUSH, 0, 3, 0, 0);
		client_request(simple, NBD_CMD_READ, 0, 4, 4096, length);
		client_request(simple, NBD_CMD_FLUSH, 0, 5, 0, 0);
		client_request(simple, NBD_CMD_READ, 0, 6, 4096, 512);
		expect_simple(simple, 3, 0);
		expect_simple_data(simple, 4, data, length);
		expect_simple(simple, 5, 0);
		expect_simple_data(simple, 6, data, 512);
		free(data);
		free(back);
	}
	client_disconnect(simple);
	client_disconnect(structured);
	harness_end(h);
}

static bool some_held(struct harness *h)
{
	return h->device.held_count > 0;
}

/* A simple reply has one header for all its data: no other reply may get between its parts, whatever
 * the order in which requests before and behind it complete. */
static void nothing_between_the_parts_of_a_simple_reply(void **state)
{
	const uint32_t length = 4 * MIB;
	struct harness *h = harness_new();
	uint8_t *data = pattern(length, 3);
	struct nbd_request_wire wires[3];
	int fd;

	for (unsigned i = 0; i < 3; i++)
		wires[i] = (struct nbd_request_wire){to_be32(NBD_MAGIC_REQUEST),
						     to_be16(0),
						     to_be16(NBD_CMD_READ),
						     to_be64(i),
						     to_be64(0),
						     to_be32(i == 1 ? length : 4096)};
	memcpy(h->device.memory, data, length);
	h->device.hold = true;
	harness_start(h);
	fd = client_open(h, CLIENT_SIMPLE);
	client_send(fd, wires, sizeof(wires));
	harness_wait(h, some_held);
	harness_call(h, call_release, NULL); /* the latest first */
	expect_simple_data(fd, 0, data, 4096);
	expect_simple_data(fd, 1, data, length);
	expect_simple_data(fd, 2, data, 4096);
	client_disconnect(fd);
	free(data);
	harness_end(h);
}

static void too_long(void **state)
{
	struct harness *h = start();
	uint8_t *zeroes = calloc(1, NBD_PAYLOAD_MAX + 1);
	int fd = client_open(h, CLIENT_STRUCTURED);

	client_request(fd, NBD_CMD_READ, 0, 1, 0, NBD_PAYLOAD_MAX + 1);
	expect_error_chunk(fd, 1, NBD_EINVAL);
	client_write(fd, 0, 2, 0, zeroes, NBD_PAYLOAD_MAX + 1);
	expect_error_chunk(fd, 2, NBD_EINVAL);
	client_request(fd, NBD_CMD_READ, NBD_CMD_FLAG_DF, 3, 0, MIB + 1);
	expect_error_chunk(fd, 3, NBD_EOVERFLOW);
	expect_alive(fd);
	client_request(fd, NBD_CMD_WRITE, 0, 4, 0, NBD_PAYLOAD_DRAIN_MAX + 1);
	client_expect_end(fd);
	free(zeroes);
	harness_end(h);
}

static void commands_and_flags_reach_the_device(void **state)
{
	const uint16_t fua = NBD_CMD_FLAG_FUA;
	struct harness *h = start();
	int fd = client_open(h, CLIENT_SIMPLE);

	memset(h->device.memory, 0xff, 65536);
	client_request(fd, NBD_CMD_WRITE_ZEROES,
		       NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO | fua, 1, 4096, 4096);
	expect_simple(fd, 1, 0);
	assert_true(bytes_are_zero(h->device.memory + 4096, 4096));
	assert_int_equal(h->device.memory[8192], 0xff);
	assert_int_equal(h->device.flags_last, BLOCK_NO_HOLE | BLOCK_FAST_ZERO | BLOCK_FUA);
	client_request(fd, NBD_CMD_TRIM, fua, 2, 0, 4096);
	expect_simple(fd, 2, 0);
	assert_int_equal(h->device.flags_last, BLOCK_FUA);
	client_write(fd, fua, 3, 0, "x", 1);
	expect_simple(fd, 3, 0);
	assert_int_equal(h->device.fuas, 3);
	/* FUA is no reason to refuse what writes nothing. */
	client_request(fd, NBD_CMD_CACHE, fua, 4, 0, DEVICE_BYTES);
	expect_simple(fd, 4, 0);
	client_request(fd, NBD_CMD_FLUSH, fua, 5, 0, 0);
	expect_simple(fd, 5, 0);
	client_request(fd, NBD_CMD_READ, fua, 6, 0, 1);
	expect_simple_data(fd, 6, "x", 1);
	assert_int_equal(h->device.fuas, 3);
	assert_int_equal(h->device.flushes, 1);
	/* However long: one request to the device. */
	client_request(fd, NBD_CMD_TRIM, 0, 7, 0, DEVICE_BYTES);
	expect_simple(fd, 7, 0);
	assert_true(h->device.length_last == DEVICE_BYTES);
	assert_int_equal(h->device.requests, 7);
	client_disconnect(fd);
	harness_end(h);
}

static void block_status(void **state)
{
	struct harness *h = start();
	int fd = client_open(h, CLIENT_STRUCTURED);
	struct nbd_status_extent extents[256];
	struct nbd_chunk chunk;
	be32_t context;

	client_request(fd, NBD_CMD_BLOCK_STATUS, 0, 1, 4096, 131072);
	chunk = client_chunk(fd, 1);
	assert_int_equal(from_be16(chunk.type), NBD_CHUNK_BLOCK_STATUS);
	assert_int_equal(from_be16(chunk.flags), NBD_CHUNK_FLAG_DONE);
	assert_int_equal(from_be32(chunk.length), 4 + 3 * 8);
	client_recv(fd, &context, sizeof(context));
	assert_int_equal(from_be32(context), 1);
	client_recv(fd, extents, 3 * 8);
	assert_int_equal(from_be32(extents[0].length), 61440);
	assert_int_equal(from_be32(extents[0].flags), 0);
	assert_int_equal(from_be32(extents[1].length), 65536);
	assert_int_equal(from_be32(extents[1].flags), NBD_STATE_HOLE | NBD_STATE_ZERO);
	assert_int_equal(from_be32(extents[2].length), 4096);
	client_request(fd, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 2, 0, DEVICE_BYTES);
	chunk = client_chunk(fd, 2);
	assert_int_equal(from_be32(chunk.length), 4 + 8);
	client_recv(fd, &context, sizeof(context));
	client_recv(fd, extents, 8);
	assert_int_equal(from_be32(extents[0].length), 65536);
	/* 1,024 extents: as many as one reply takes, not all. */
	client_request(fd, NBD_CMD_BLOCK_STATUS, 0, 3, 0, DEVICE_BYTES);
	chunk = client_chunk(fd, 3);
	assert_int_equal(from_be32(chunk.length), 4 + 256 * 8);
	client_recv(fd, &context, sizeof(context));
	client_recv(fd, extents, sizeof(extents));
	client_disconnect(fd);
	harness_end(h);
}

/* One chunk: its context, its first extent. */
static uint32_t status_chunk(int fd, uint64_t cookie, uint32_t *flags, bool *last)
{
	struct nbd_status_extent extents[256];
	struct nbd_chunk chunk = client_chunk(fd, cookie);
	be32_t context;

	assert_int_equal(from_be16(chunk.type), NBD_CHUNK_BLOCK_STATUS);
	client_recv(fd, &context, sizeof(context));
	client_recv(fd, extents, from_be32(chunk.length) - 4);
	assert_int_equal(from_be32(extents[0].length), 65536);
	*flags = from_be32(extents[0].flags);
	*last = from_be16(chunk.flags) & NBD_CHUNK_FLAG_DONE;
	return from_be32(context);
}

static void set_hold(struct harness *h, void *argument)
{
	h->hold = true;
}

static void set_status_error(struct harness *h, void *argument)
{
	h->status_error = -EIO;
}

/* A chunk for each context, the last of them with DONE; other requests do not wait for them. */
static void block_status_of_several_contexts(void **state)
{
	static const char set[] = "\0\0\0\4snap\0\0\0\3\0\0\0\7x:odd=1"
				  "\0\0\0\17base:allocation\0\0\0\7x:odd=2";
	struct harness *h = start();
	int fd = client_connect(h);
	unsigned seen = 0;
	uint32_t flags, context;
	uint8_t data[4096];
	bool last;

	client_greet(fd, 3);
	client_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	expect_reply(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
	client_option(fd, NBD_OPT_SET_META_CONTEXT, set, sizeof(set) - 1);
	for (unsigned n = 0; n < 4; n++)
		expect_reply(fd, NBD_OPT_SET_META_CONTEXT,
			     n < 3 ? NBD_REP_META_CONTEXT : NBD_REP_ACK);
	client_option(fd, NBD_OPT_GO, "\0\0\0\4snap\0\0", 10);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_ACK);
	for (unsigned round = 0; round < 2; round++) {
		if (round)
			harness_call(h, set_hold, NULL);
		seen = 0;
		client_request(fd, NBD_CMD_BLOCK_STATUS, 0, 7, 65536, 1 << 20);
		if (round) {
			struct nbd_chunk chunk;

			client_request(fd, NBD_CMD_READ, 0, 8, 0, sizeof(data));
			chunk = client_chunk(fd, 8);
			assert_int_equal(from_be16(chunk.type), NBD_CHUNK_OFFSET_DATA);
			client_recv(fd, data, 8);
			client_recv(fd, data, sizeof(data));
			harness_call(h, harness_release, NULL);
		}
		for (unsigned n = 0; n < 3; n++) {
			context = status_chunk(fd, 7, &flags, &last);
			assert_int_equal(last, n == 2);
			assert_int_equal(flags, context == 2 ? NBD_STATE_HOLE | NBD_STATE_ZERO : 1);
			seen |= 1u << context;
		}
		assert_int_equal(seen, 14);
	}
	harness_call(h, set_status_error, NULL);
	client_request(fd, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 9, 0, 1 << 20);
	expect_error_chunk(fd, 9, NBD_EIO);
	/* Many more than there are slots. */
	h->status_error = 0;
	for (unsigned i = 0; i < 300; i++)
		client_request(fd, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 10, 0, 1 << 20);
	for (unsigned i = 0; i < 900; i++)
		status_chunk(fd, 10, &flags, &last);
	client_disconnect(fd);
	harness_end(h);
}

struct bad {
	uint16_t type, flags;
	uint64_t offset;
	uint32_t length, error;
};

static const struct bad bad_requests[] = {
	{NBD_CMD_READ, 0, DEVICE_BYTES, 1, NBD_EINVAL},
	{NBD_CMD_READ, 0, UINT64_MAX, 4096, NBD_EINVAL},
	{NBD_CMD_READ, NBD_CMD_FLAG_NO_HOLE, 0, 1, NBD_EINVAL},
	{NBD_CMD_READ, 0x8000, 0, 1, NBD_EINVAL},
	{NBD_CMD_WRITE, 0, DEVICE_BYTES, 4096, NBD_ENOSPC},
	{NBD_CMD_WRITE, NBD_CMD_FLAG_DF, 0, 70000, NBD_EINVAL},
	{NBD_CMD_WRITE, 0, 0, 0, NBD_EINVAL},
	{NBD_CMD_WRITE_ZEROES, 0, DEVICE_BYTES - 1, 2, NBD_ENOSPC},
	{NBD_CMD_TRIM, 0, DEVICE_BYTES, 1, NBD_EINVAL},
	{NBD_CMD_FLUSH, 0, 0, 1, NBD_EINVAL},
	{8, 0, 0, 4096, NBD_EINVAL},
	{0xffff, 0xffff, UINT64_MAX, UINT32_MAX, NBD_EINVAL},
};

static void bad_requests_are_answered_in_place(void **state)
{
	struct harness *h = start();
	int simple = client_open(h, CLIENT_SIMPLE), structured = client_open(h, CLIENT_STRUCTURED);
	uint8_t *data = calloc(1, 70000);

	for (unsigned i = 0; i < sizeof(bad_requests) / sizeof(bad_requests[0]); i++) {
		const struct bad *bad = &bad_requests[i];
		int fds[] = {simple, structured};

		for (int k = 0; k < 2; k++) {
			client_request(fds[k], bad->type, bad->flags, i, bad->offset, bad->length);
			if (bad->type == NBD_CMD_WRITE)
				client_send(fds[k], data, bad->length);
			if (k == 0)
				expect_simple(fds[k], i, bad->error);
			else
				expect_error_chunk(fds[k], i, bad->error);
			expect_alive(fds[k]);
		}
	}
	client_request(simple, NBD_CMD_BLOCK_STATUS, 0, 1, 0, 1);
	expect_simple(simple, 1, NBD_EINVAL);
	client_disconnect(simple);
	client_disconnect(structured);
	free(data);
	harness_end(h);
}

static void minimum_block_is_enforced(void **state)
{
	struct harness *h = harness_new();
	int fd;

	h->device.info.block_min_bytes = 4096;
	harness_start(h);
	fd = client_open(h, CLIENT_SIMPLE);
	client_request(fd, NBD_CMD_READ, 0, 1, 512, 4096);
	expect_simple(fd, 1, NBD_EINVAL);
	client_write(fd, 0, 2, 0, "abc", 3);
	expect_simple(fd, 2, NBD_EINVAL);
	client_request(fd, NBD_CMD_READ, 0, 3, 4096, 4096);
	expect_simple_data(fd, 3, h->device.memory + 4096, 4096);
	assert_int_equal(h->device.requests, 1);
	client_disconnect(fd);
	harness_end(h);
}

static void read_only_is_read_only(void **state)
{
	struct harness *h = harness_new();
	int fd;

	h->device.info.read_only = true;
	harness_start(h);
	fd = client_open(h, CLIENT_SIMPLE);
	client_write(fd, 0, 1, 0, "abc", 3);
	expect_simple(fd, 1, NBD_EPERM);
	client_request(fd, NBD_CMD_TRIM, 0, 2, 0, 1);
	expect_simple(fd, 2, NBD_EPERM);
	client_request(fd, NBD_CMD_WRITE_ZEROES, 0, 3, 0, 1);
	expect_simple(fd, 3, NBD_EPERM);
	expect_alive(fd);
	client_disconnect(fd);
	harness_end(h);
}

static void device_errors_are_mapped(void **state)
{
	static const struct {
		int error;
		uint32_t wire;
	} cases[] = {{-EIO, NBD_EIO},          {-ENOSPC, NBD_ENOSPC},       {-EDQUOT, NBD_ENOSPC},
		     {-EPERM, NBD_EPERM},      {-ESHUTDOWN, NBD_ESHUTDOWN}, {-ENODATA, NBD_EIO},
		     {-EOPNOTSUPP, NBD_EINVAL}};

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct harness *h = harness_new();
		int simple, structured;

		h->device.fail_error = cases[i].error;
		harness_start(h);
		simple = client_open(h, CLIENT_SIMPLE);
		structured = client_open(h, CLIENT_STRUCTURED);
		client_request(simple, NBD_CMD_READ, 0, 1, 0, 4096);
		expect_simple(simple, 1, cases[i].wire);
		client_request(structured, NBD_CMD_READ, 0, 2, 0, 4096);
		expect_error_chunk(structured, 2, cases[i].wire);
		client_write(structured, 0, 3, 0, "x", 1);
		expect_error_chunk(structured, 3, cases[i].wire);
		client_request(simple, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 4, 0, 1);
		expect_simple(simple, 4,
			      cases[i].error == -EOPNOTSUPP ? NBD_ENOTSUP : cases[i].wire);
		client_disconnect(simple);
		client_disconnect(structured);
		harness_end(h);
	}
}

/* One part of a split request fails: so does the request, once. */
static void error_in_a_part(void **state)
{
	struct harness *h = harness_new();
	uint8_t *data = calloc(1, 4 * MIB);
	int simple, structured;
	bool done = false;

	h->device.fail_error = -EIO;
	h->device.fail_one = true;
	h->device.fail_offset = 2 * MIB;
	harness_start(h);
	simple = client_open(h, CLIENT_SIMPLE);
	structured = client_open(h, CLIENT_STRUCTURED);
	client_write(simple, 0, 1, 0, data, 4 * MIB);
	expect_simple(simple, 1, NBD_EIO);
	client_write(structured, 0, 2, 0, data, 4 * MIB);
	expect_error_chunk(structured, 2, NBD_EIO);
	client_request(structured, NBD_CMD_READ, 0, 3, 0, 4 * MIB);
	while (!done) {
		struct nbd_chunk chunk = client_chunk(structured, 3);

		done = from_be16(chunk.flags) & NBD_CHUNK_FLAG_DONE;
		assert_int_equal(from_be16(chunk.type),
				 done ? NBD_CHUNK_ERROR : NBD_CHUNK_OFFSET_DATA);
		client_recv(structured, data, from_be32(chunk.length));
	}
	expect_alive(structured);
	/* Failed before its header went out: an error. After that: only the end can tell. */
	client_request(simple, NBD_CMD_READ, 0, 4, 2 * MIB, 2 * MIB);
	expect_simple(simple, 4, NBD_EIO);
	expect_alive(simple);
	client_request(simple, NBD_CMD_READ, 0, 5, 0, 4 * MIB);
	for (ssize_t n, sum = 0; (n = recv(simple, data, 4 * MIB, 0)) > 0;) {
		sum += n;
		assert_true(sum < 4 * MIB);
	}
	close(simple);
	client_disconnect(structured);
	free(data);
	harness_end(h);
}

static bool two_held(struct harness *h)
{
	return h->device.held_count == 2;
}

static void disc_waits_for_requests(void **state)
{
	struct harness *h = harness_new();
	int fd;

	h->device.hold = true;
	harness_start(h);
	fd = client_open(h, CLIENT_SIMPLE);
	client_write(fd, 0, 1, 0, "abc", 3);
	client_write(fd, 0, 2, 10, "def", 3);
	client_request(fd, NBD_CMD_DISC, 0, 3, 0, 0);
	client_request(fd, NBD_CMD_WRITE, 0, 4, 0, 3); /* not to be looked at any more */
	shutdown(fd, SHUT_WR);
	harness_wait(h, two_held);
	harness_call(h, call_release, NULL);
	expect_simple(fd, 2, 0); /* held requests end last first: replies in any order */
	expect_simple(fd, 1, 0);
	client_expect_end(fd);
	assert_int_equal(h->device.requests, 2);
	harness_end(h);
}

static void bad_magic_ends_the_session(void **state)
{
	struct harness *h = start();
	int fd = client_open(h, CLIENT_SIMPLE);
	uint8_t junk[28] = {0x25, 0x60, 0x95, 0x14};

	client_send(fd, junk, sizeof(junk));
	client_expect_end(fd);
	assert_int_equal(harness_stats(h).protocol_errors, 1);
	harness_end(h);
}

static void requests_byte_by_byte(void **state)
{
	struct harness *h = start();
	int fd = client_open(h, CLIENT_STRUCTURED);
	struct nbd_request_wire wire[2] = {
		{to_be32(NBD_MAGIC_REQUEST), to_be16(0), to_be16(NBD_CMD_WRITE), to_be64(1),
		 to_be64(100), to_be32(28)},
		{to_be32(NBD_MAGIC_REQUEST), to_be16(0), to_be16(NBD_CMD_READ), to_be64(2),
		 to_be64(100), to_be32(28)},
	};
	uint8_t bytes[84];

	memcpy(bytes, &wire[0], 28);
	memset(bytes + 28, 'y', 28);
	memcpy(bytes + 56, &wire[1], 28);
	for (unsigned i = 0; i < sizeof(bytes); i++)
		client_send(fd, bytes + i, 1);
	expect_simple(fd, 1, 0);
	expect_data(fd, 2, 100, bytes + 28, 28);
	client_disconnect(fd);
	harness_end(h);
}

/* More requests at once than there are slots or small buffers: all are answered. */
static void a_thousand_requests_in_one_send(void **state)
{
	struct harness *h = harness_new();
	const unsigned count = 1000;
	uint8_t *bytes = malloc(count * (28 + 512));
	bool *seen = calloc(count, sizeof(*seen));
	uint8_t data[512];
	int fd;

	h->pool_counts[0] = 16;
	h->pool_counts[1] = 4;
	harness_start(h);
	fd = client_open(h, CLIENT_SIMPLE);
	for (unsigned i = 0; i < count; i++) {
		struct nbd_request_wire wire = {to_be32(NBD_MAGIC_REQUEST), to_be16(0),
						to_be16(NBD_CMD_WRITE),     to_be64(i),
						to_be64(i * 512ull),        to_be32(512)};

		memcpy(bytes + i * 540, &wire, 28);
		memset(bytes + i * 540 + 28, (int)(i % 251), 512);
	}
	client_send(fd, bytes, count * 540);
	for (unsigned i = 0; i < count; i++) {
		struct nbd_simple_reply reply;

		client_recv(fd, &reply, sizeof(reply));
		assert_int_equal(from_be32(reply.error), 0);
		assert_true(from_be64(reply.cookie) < count && !seen[from_be64(reply.cookie)]);
		seen[from_be64(reply.cookie)] = true;
	}
	for (unsigned i = 0; i < count; i++)
		client_request(fd, NBD_CMD_READ, 0, i, i * 512ull, 512);
	for (unsigned i = 0; i < count; i++) {
		struct nbd_simple_reply reply;

		client_recv(fd, &reply, sizeof(reply));
		client_recv(fd, data, sizeof(data));
		assert_int_equal(data[0], from_be64(reply.cookie) % 251);
		assert_int_equal(data[511], from_be64(reply.cookie) % 251);
	}
	client_disconnect(fd);
	free(bytes);
	free(seen);
	harness_end(h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(write_then_read),
		cmocka_unit_test(payloads_to_32_mib),
		cmocka_unit_test(nothing_between_the_parts_of_a_simple_reply),
		cmocka_unit_test(too_long),
		cmocka_unit_test(commands_and_flags_reach_the_device),
		cmocka_unit_test(block_status),
		cmocka_unit_test(block_status_of_several_contexts),
		cmocka_unit_test(bad_requests_are_answered_in_place),
		cmocka_unit_test(minimum_block_is_enforced),
		cmocka_unit_test(read_only_is_read_only),
		cmocka_unit_test(device_errors_are_mapped),
		cmocka_unit_test(error_in_a_part),
		cmocka_unit_test(disc_waits_for_requests),
		cmocka_unit_test(bad_magic_ends_the_session),
		cmocka_unit_test(requests_byte_by_byte),
		cmocka_unit_test(a_thousand_requests_in_one_send),
	};

	return harness_run(tests);
}
