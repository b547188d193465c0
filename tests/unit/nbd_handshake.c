// SPDX-License-Identifier: Apache-2.0
/* The NBD server's option haggling, spoken in raw bytes. */
#include "tests/unit/nbd_harness.h"

static struct harness *start(void)
{
	struct harness *h = harness_new();

	harness_start(h);
	return h;
}

static int greeted(struct harness *h)
{
	int fd = client_connect(h);

	client_greet(fd, 3);
	return fd;
}

static void export_name_pads_unless_told_not_to(void **state)
{
	struct harness *h = start();
	struct nbd_export_name_reply reply;

	for (uint32_t flags = 0; flags < 4; flags++) {
		int fd = client_connect(h);
		bool padded = !(flags & NBD_FLAG_NO_ZEROES);

		client_greet(fd, flags);
		client_option(fd, NBD_OPT_EXPORT_NAME, "vol", 3);
		client_recv(fd, &reply, padded ? sizeof(reply) : NBD_EXPORT_NAME_REPLY_SHORT);
		assert_int_equal(from_be64(reply.size), DEVICE_BYTES);
		assert_int_equal(from_be16(reply.flags),
				 NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
					 NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
					 NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE |
					 NBD_FLAG_SEND_FAST_ZERO);
		if (padded)
			assert_true(bytes_are_zero(reply.padding, sizeof(reply.padding)));
		expect_alive(fd);
		client_disconnect(fd);
	}
	harness_end(h);
}

static void export_name_unknown_ends_the_session(void **state)
{
	struct harness *h = start();
	int fd = greeted(h);

	client_option(fd, NBD_OPT_EXPORT_NAME, "nope", 4);
	client_expect_end(fd);
	harness_end(h);
}

static void unknown_client_flags_end_the_session(void **state)
{
	struct harness *h = start();
	int fd = client_connect(h);

	client_greet(fd, 7);
	client_expect_end(fd);
	assert_int_equal(harness_stats(h).protocol_errors, 1);
	harness_end(h);
}

static void bad_option_magic_ends_the_session(void **state)
{
	struct harness *h = start();
	int fd = greeted(h);

	client_send(fd, "IHAVEOPX\0\0\0\3\0\0\0\0", 16);
	client_expect_end(fd);
	harness_end(h);
}

static void list_tells_every_export(void **state)
{
	struct harness *h = start();
	int fd = greeted(h);
	uint8_t data[65536];
	uint32_t length;

	client_option(fd, NBD_OPT_LIST, NULL, 0);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(client_reply(fd, NBD_OPT_LIST, data, &length), NBD_REP_SERVER);
		assert_int_equal(length, 4 + 3 + 8);
		assert_memory_equal(data, "\0\0\0\3vola volume", length);
	}
	expect_reply(fd, NBD_OPT_LIST, NBD_REP_ACK);
	client_option(fd, NBD_OPT_LIST, "x", 1);
	expect_reply(fd, NBD_OPT_LIST, NBD_REP_ERR_INVALID);
	close(fd);
	harness_end(h);
}

static void info_tells_what_is_asked(void **state)
{
	static const char ask[] = "\0\0\0\3vol\0\4\0\1\0\2\0\3\0\x63";
	struct harness *h = start();
	int fd = greeted(h);
	uint8_t data[65536];
	uint32_t length;

	client_option(fd, NBD_OPT_INFO, LITERAL(ask));
	assert_int_equal(client_reply(fd, NBD_OPT_INFO, data, &length), NBD_REP_INFO);
	assert_int_equal(length, 12);
	assert_memory_equal(data, "\0\0\0\0\0\0\4\0\0\0", 10);
	assert_int_equal(client_reply(fd, NBD_OPT_INFO, data, &length), NBD_REP_INFO);
	assert_memory_equal(data, "\0\1vol", length);
	assert_int_equal(client_reply(fd, NBD_OPT_INFO, data, &length), NBD_REP_INFO);
	assert_memory_equal(data, "\0\2a volume", length);
	assert_int_equal(client_reply(fd, NBD_OPT_INFO, data, &length), NBD_REP_INFO);
	assert_memory_equal(data, "\0\3\0\0\0\1\0\0\x10\0\2\0\0\0", length);
	expect_reply(fd, NBD_OPT_INFO, NBD_REP_ACK);
	assert_int_equal(h->device.opened, 0);
	client_option(fd, NBD_OPT_INFO, "\0\0\0\4vol", 7);
	expect_reply(fd, NBD_OPT_INFO, NBD_REP_ERR_INVALID);
	close(fd);
	harness_end(h);
}

static void go_to_an_unknown_export_can_be_tried_again(void **state)
{
	struct harness *h = start();
	int fd = greeted(h);

	client_option(fd, NBD_OPT_GO, LITERAL(go_nothing));
	expect_reply(fd, NBD_OPT_GO, NBD_REP_ERR_UNKNOWN);
	client_option(fd, NBD_OPT_GO, LITERAL(go_vol));
	expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_ACK);
	expect_alive(fd);
	client_disconnect(fd);
	harness_end(h);
}

static void refused_open_says_why(void **state)
{
	struct harness *h = harness_new();
	uint8_t data[65536];
	uint32_t length;
	int fd;

	h->device.open_error = -EPERM;
	harness_start(h);
	fd = greeted(h);
	client_option(fd, NBD_OPT_GO, LITERAL(go_vol));
	assert_int_equal(client_reply(fd, NBD_OPT_GO, data, &length), NBD_REP_ERR_POLICY);
	assert_memory_equal(data, "volume is secondary on this node", length);
	client_option(fd, NBD_OPT_EXPORT_NAME, "vol", 3);
	client_expect_end(fd);
	harness_end(h);
}

static void abort_is_acknowledged(void **state)
{
	struct harness *h = start();
	int fd = greeted(h);

	client_option(fd, NBD_OPT_ABORT, NULL, 0);
	expect_reply(fd, NBD_OPT_ABORT, NBD_REP_ACK);
	client_expect_end(fd);
	harness_end(h);
}

static void unknown_options_are_unsupported(void **state)
{
	struct harness *h = start();
	int fd = greeted(h);

	for (uint32_t option = 0; option < 20; option++) {
		if (option >= 1 && option <= 10 && option != 4)
			continue;
		client_option(fd, option, "data", 4);
		expect_reply(fd, option, NBD_REP_ERR_UNSUP);
	}
	client_option(fd, 0xffffffff, NULL, 0);
	expect_reply(fd, 0xffffffff, NBD_REP_ERR_UNSUP);
	close(fd);
	harness_end(h);
}

static void oversized_options(void **state)
{
	struct harness *h = start();
	uint8_t *data = calloc(1, NBD_OPTION_DRAIN_MAX);
	struct nbd_option_header header = {to_be64(NBD_MAGIC_OPTION), to_be32(NBD_OPT_GO),
					   to_be32(NBD_OPTION_DRAIN_MAX + 1)};
	int fd = greeted(h);

	client_option(fd, NBD_OPT_GO, data, NBD_OPTION_DATA_MAX + 1);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_ERR_TOO_BIG);
	client_option(fd, NBD_OPT_GO, data, NBD_OPTION_DRAIN_MAX);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_ERR_TOO_BIG);
	client_option(fd, 99, data, NBD_OPTION_DATA_MAX);
	expect_reply(fd, 99, NBD_REP_ERR_UNSUP);
	client_send(fd, &header, sizeof(header));
	client_expect_end(fd);
	free(data);
	harness_end(h);
}

static void meta_contexts(void **state)
{
	static const char all[] = "\0\0\0\3vol\0\0\0\0";
	static const char space[] = "\0\0\0\3vol\0\0\0\1\0\0\0\5base:";
	static const char other[] = "\0\0\0\3vol\0\0\0\1\0\0\0\6x-no:a";
	static const char begun[] = "\0\0\0\3vol\0\0\0\2\0\0\0\4x:od\0\0\0\6x:odd=";
	static const char nowhere[] = "\0\0\0\2no\0\0\0\1\0\0\0\17base:allocation";
	const uint32_t list = NBD_OPT_LIST_META_CONTEXT, set = NBD_OPT_SET_META_CONTEXT;
	struct harness *h = start();
	int fd = greeted(h);
	uint8_t data[65536];
	uint32_t length;

	client_option(fd, set, LITERAL(meta_vol));
	expect_reply(fd, set, NBD_REP_ERR_INVALID); /* structured replies first */
	client_option(fd, NBD_OPT_STRUCTURED_REPLY, "x", 1);
	expect_reply(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID);
	client_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	expect_reply(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
	client_option(fd, list, LITERAL(all));
	assert_int_equal(client_reply(fd, list, data, &length), NBD_REP_META_CONTEXT);
	assert_memory_equal(data, "\0\0\0\0base:allocation", length);
	assert_int_equal(client_reply(fd, list, data, &length), NBD_REP_META_CONTEXT);
	assert_memory_equal(data, "\0\0\0\0x:odd=1", length);
	expect_reply(fd, list, NBD_REP_META_CONTEXT);
	expect_reply(fd, list, NBD_REP_META_CONTEXT);
	expect_reply(fd, list, NBD_REP_ACK);
	client_option(fd, list, LITERAL(begun));
	expect_reply(fd, list, NBD_REP_META_CONTEXT);
	expect_reply(fd, list, NBD_REP_META_CONTEXT);
	expect_reply(fd, list, NBD_REP_ACK);
	client_option(fd, list, LITERAL(space));
	expect_reply(fd, list, NBD_REP_META_CONTEXT);
	expect_reply(fd, list, NBD_REP_ACK);
	client_option(fd, list, LITERAL(other));
	expect_reply(fd, list, NBD_REP_ACK);
	client_option(fd, set, LITERAL(nowhere));
	expect_reply(fd, set, NBD_REP_ERR_UNKNOWN);
	client_option(fd, set, LITERAL(meta_vol));
	assert_int_equal(client_reply(fd, set, data, &length), NBD_REP_META_CONTEXT);
	assert_memory_equal(data, "\0\0\0\1base:allocation", length);
	expect_reply(fd, set, NBD_REP_ACK);
	client_option(fd, set, LITERAL(all)); /* none asked for: none selected */
	expect_reply(fd, set, NBD_REP_ACK);
	client_option(fd, NBD_OPT_GO, LITERAL(go_vol));
	expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_ACK);
	client_request(fd, NBD_CMD_BLOCK_STATUS, 0, 5, 0, 4096);
	expect_error_chunk(fd, 5, NBD_EINVAL);
	client_disconnect(fd);
	harness_end(h);
}

/* As many queries as an option takes, none of which names anything. */
static void meta_queries_without_end(void **state)
{
	enum { COUNT = 13100, BYTES = 7 + 4 + COUNT * 5 };
	static uint8_t data[BYTES] = "\0\0\0\3vol";
	const be32_t count = to_be32(COUNT), one = to_be32(1);
	struct harness *h = start();
	int fd = greeted(h);

	memcpy(data + 7, &count, sizeof(count));
	for (size_t at = 11; at < BYTES; at += 5) {
		memcpy(data + at, &one, sizeof(one));
		data[at + 4] = ':';
	}
	client_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	expect_reply(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
	client_option(fd, NBD_OPT_SET_META_CONTEXT, data, BYTES);
	expect_reply(fd, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
	client_disconnect(fd);
	harness_end(h);
}

static void call_hold_all(struct harness *h, void *argument)
{
	h->hold = true;
}

static void call_counts(struct harness *h, void *argument)
{
	unsigned *counts = argument;

	counts[0] = h->snap_holds;
	counts[1] = h->maps_open;
	counts[2] = h->later_count;
	counts[3] = h->device.opened;
}

static void await_counts(struct harness *h, unsigned holds, unsigned maps, unsigned later)
{
	unsigned counts[4];

	for (unsigned i = 0; i < 12000; i++) {
		harness_call(h, call_counts, counts);
		if (counts[0] == holds && counts[1] == maps && counts[2] == later)
			return;
		usleep(5000);
	}
	fail_msg("%u holds, %u maps, %u calls", counts[0], counts[1], counts[2]);
}

static const char go_snap[] = "\0\0\0\4snap\0\0";
static const char set_snap[] = "\0\0\0\4snap\0\0\0\3\0\0\0\7x:odd=1"
			       "\0\0\0\17base:allocation\0\0\0\7x:odd=2";

/* Held from the lookup on as long as it is needed, and no longer. */
static void exports_that_are_looked_up(void **state)
{
	struct harness *h = start();
	int fd = greeted(h), other = greeted(h);
	uint8_t data[65536];
	uint32_t length;

	client_option(fd, NBD_OPT_GO, LITERAL("\0\0\0\4none\0\0"));
	expect_reply(fd, NBD_OPT_GO, NBD_REP_ERR_UNKNOWN);
	harness_call(h, call_hold_all, NULL);
	client_option(fd, NBD_OPT_INFO, LITERAL(go_snap));
	await_counts(h, 0, 0, 1);
	/* Nobody else waits for it. */
	client_option(other, NBD_OPT_GO, LITERAL(go_vol));
	expect_reply(other, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(other, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(other, NBD_OPT_GO, NBD_REP_ACK);
	expect_alive(other);
	harness_call(h, harness_release, NULL);
	expect_reply(fd, NBD_OPT_INFO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_INFO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_INFO, NBD_REP_ACK);
	await_counts(h, 0, 0, 0);
	h->lookup_error = -EIO;
	client_option(fd, NBD_OPT_GO, LITERAL(go_snap));
	assert_int_equal(client_reply(fd, NBD_OPT_GO, data, &length), NBD_REP_ERR_POLICY);
	assert_memory_equal(data, "store: no answer", length);
	h->lookup_error = 0;
	client_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	expect_reply(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
	client_option(fd, NBD_OPT_SET_META_CONTEXT, LITERAL(set_snap));
	assert_int_equal(client_reply(fd, NBD_OPT_SET_META_CONTEXT, data, &length),
			 NBD_REP_META_CONTEXT);
	assert_memory_equal(data, "\0\0\0\1x:odd=1", length);
	assert_int_equal(client_reply(fd, NBD_OPT_SET_META_CONTEXT, data, &length),
			 NBD_REP_META_CONTEXT);
	assert_memory_equal(data, "\0\0\0\2base:allocation", length);
	expect_reply(fd, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT);
	expect_reply(fd, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
	await_counts(h, 1, 2, 0);
	client_option(fd, NBD_OPT_LIST_META_CONTEXT, LITERAL("\0\0\0\4snap\0\0\0\1\0\0\0\2y:"));
	expect_reply(fd, NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT);
	expect_reply(fd, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ACK);
	await_counts(h, 1, 2, 0); /* the selection stays */
	client_option(fd, NBD_OPT_GO, LITERAL(go_snap));
	expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_ACK);
	await_counts(h, 2, 2, 0);
	client_disconnect(fd);
	await_counts(h, 0, 0, 0);
	client_disconnect(other);
	harness_end(h);
}

/* Clients that go, and a server that stops, while something is looked up. */
static void gone_during_a_lookup(void **state)
{
	struct harness *h = start();
	int fd;

	h->handshake_timeout_ms = 0;
	for (unsigned i = 0; i < 3; i++) {
		fd = greeted(h);
		client_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
		expect_reply(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
		if (i == 1) {
			client_option(fd, NBD_OPT_SET_META_CONTEXT, LITERAL(set_snap));
			for (unsigned n = 0; n < 4; n++)
				expect_reply(fd, NBD_OPT_SET_META_CONTEXT,
					     n < 3 ? NBD_REP_META_CONTEXT : NBD_REP_ACK);
			/* Selected for another export: nothing is. */
			client_option(fd, NBD_OPT_GO, LITERAL(go_vol));
			expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
			expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
			expect_reply(fd, NBD_OPT_GO, NBD_REP_ACK);
			await_counts(h, 0, 0, 0);
			client_disconnect(fd);
			continue;
		}
		harness_call(h, call_hold_all, NULL);
		client_option(fd, i ? NBD_OPT_SET_META_CONTEXT : NBD_OPT_GO, i ? set_snap : go_snap,
			      i ? sizeof(set_snap) - 1 : sizeof(go_snap) - 1);
		await_counts(h, 0, 0, 1);
		close(fd);
		harness_call(h, harness_release, NULL);
		await_counts(h, 0, 0, 0);
	}
	fd = greeted(h);
	harness_call(h, call_hold_all, NULL);
	client_option(fd, NBD_OPT_GO, LITERAL(go_snap));
	await_counts(h, 0, 0, 1);
	harness_call(h, call_stop, NULL);
	harness_call(h, harness_release, NULL);
	close(fd);
	harness_join(h);
}

static void options_byte_by_byte(void **state)
{
	static const char bytes[] = "\0\0\0\3"
				    "IHAVEOPT\0\0\0\x08\0\0\0\0"
				    "IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\3vol\0\0";
	struct harness *h = start();
	int fd = client_connect(h);
	struct nbd_greeting greeting;

	for (size_t i = 0; i < sizeof(bytes) - 1; i++)
		client_send(fd, bytes + i, 1);
	client_recv(fd, &greeting, sizeof(greeting));
	expect_reply(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_ACK);
	expect_alive(fd);
	client_disconnect(fd);
	harness_end(h);
}

static void without_fixed_newstyle_only_export_name(void **state)
{
	struct harness *h = start();
	int fd = client_connect(h);

	client_greet(fd, 0);
	client_option(fd, NBD_OPT_LIST, NULL, 0);
	client_expect_end(fd);
	harness_end(h);
}

static void endless_options_end(void **state)
{
	struct harness *h = start();
	int fd = greeted(h);

	for (unsigned i = 0; i < 256; i++) {
		client_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
		expect_reply(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
	}
	client_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	client_expect_end(fd);
	harness_end(h);
}

static void starttls_without_tls_is_refused(void **state)
{
	struct harness *h = start();
	int fd = greeted(h);

	client_option(fd, NBD_OPT_STARTTLS, NULL, 0);
	expect_reply(fd, NBD_OPT_STARTTLS, NBD_REP_ERR_POLICY);
	close(fd);
	harness_end(h);
}

static void required_tls_is_required(void **state)
{
	struct harness *h = harness_new();
	int fd;

	h->tls_mode = NBD_TLS_REQUIRE;
	harness_start(h);
	fd = greeted(h);
	for (uint32_t option = 3; option < 15; option++) {
		if (option == NBD_OPT_STARTTLS)
			continue;
		client_option(fd, option, NULL, 0);
		expect_reply(fd, option, NBD_REP_ERR_TLS_REQD);
	}
	client_option(fd, NBD_OPT_STARTTLS, "x", 1);
	expect_reply(fd, NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID);
	client_option(fd, NBD_OPT_ABORT, NULL, 0);
	expect_reply(fd, NBD_OPT_ABORT, NBD_REP_ACK);
	client_expect_end(fd);
	fd = greeted(h);
	client_option(fd, NBD_OPT_EXPORT_NAME, "vol", 3);
	client_expect_end(fd);
	harness_end(h);
}

/* What a man in the middle puts behind STARTTLS must not be taken for the client's words. */
static void plaintext_behind_starttls_is_refused(void **state)
{
	static const char both[] = "IHAVEOPT\0\0\0\5\0\0\0\0IHAVEOPT\0\0\0\3\0\0\0\0";
	struct harness *h = harness_new();
	int fd;

	h->tls_mode = NBD_TLS_ON;
	harness_start(h);
	fd = greeted(h);
	client_send(fd, both, sizeof(both) - 1);
	client_expect_end(fd);
	/* Behind the ACK: no TLS record, so the TLS handshake fails. */
	fd = greeted(h);
	client_option(fd, NBD_OPT_STARTTLS, NULL, 0);
	expect_reply(fd, NBD_OPT_STARTTLS, NBD_REP_ACK);
	client_option(fd, NBD_OPT_LIST, NULL, 0);
	for (char byte; recv(fd, &byte, 1, 0) > 0;)
		assert_true((unsigned char)byte != 0); /* an alert (0x15...), no option reply */
	close(fd);
	assert_int_equal(harness_stats(h).protocol_errors, 2);
	harness_end(h);
}

static void silent_clients_are_dropped(void **state)
{
	struct harness *h = harness_new();
	int silent, halfway, served;
	struct nbd_greeting greeting;

	h->handshake_timeout_ms = 5000; /* the one that is served has to be done by then */
	harness_start(h);
	served = client_open(h, CLIENT_SIMPLE);
	silent = client_connect(h);
	halfway = greeted(h);
	client_send(halfway, "IHAVE", 5);
	client_expect_end(halfway);
	client_recv(silent, &greeting, sizeof(greeting));
	client_expect_end(silent);
	expect_alive(served);
	client_disconnect(served);
	harness_end(h);
}

static bool nobody_left(struct harness *h)
{
	struct nbd_server_stats stats;

	nbd_server_get_stats(h->server, &stats);
	return stats.connections == 0;
}

static void connections_are_limited(void **state)
{
	struct harness *h = harness_new();
	int first, second, third;

	h->connections_max = 2;
	harness_start(h);
	first = client_open(h, CLIENT_SIMPLE);
	second = client_open(h, CLIENT_SIMPLE);
	third = client_connect(h);
	client_expect_end(third);
	assert_int_equal(harness_stats(h).refused, 1);
	expect_alive(first);
	client_disconnect(first);
	client_disconnect(second);
	harness_wait(h, nobody_left);
	third = client_open(h, CLIENT_SIMPLE);
	client_disconnect(third);
	harness_end(h);
}

/* A full table of clients that do not get on with their handshake does not lock others out. */
static void idle_handshakes_make_room(void **state)
{
	struct harness *h = harness_new();
	int idle[2], served;
	time_t begun;
	ssize_t n;
	char byte;

	h->connections_max = 2;
	harness_start(h);
	begun = time(NULL);
	idle[0] = greeted(h);
	idle[1] = greeted(h);
	/* They are too young to be put out; unless this test stood still for a second. */
	served = client_connect(h);
	n = recv(served, &byte, 1, 0);
	assert_true(n <= 0 || time(NULL) > begun);
	close(served);
	for (time_t limit = time(NULL) + WAIT_S; time(NULL) < limit;) {
		served = client_connect(h);
		if (recv(served, &byte, 1, MSG_PEEK) == 1)
			break;
		close(served);
		usleep(50000);
	}
	client_greet(served, 3);
	client_option(served, NBD_OPT_LIST, "x", 1);
	expect_reply(served, NBD_OPT_LIST, NBD_REP_ERR_INVALID);
	client_expect_end(idle[0]);
	close(idle[1]);
	close(served);
	harness_end(h);
}

/* A store that does not answer: clients that ask, and go, and ask again, leave room for others. */
static void lookups_are_limited(void **state)
{
	struct harness *h = harness_new();
	int fds[2], fd;

	h->connections_max = 4;
	harness_start(h);
	harness_call(h, call_hold_all, NULL);
	for (unsigned i = 0; i < 2; i++) {
		fds[i] = greeted(h);
		client_option(fds[i], NBD_OPT_GO, LITERAL(go_snap));
		await_counts(h, 0, 0, i + 1);
	}
	fd = greeted(h);
	client_option(fd, NBD_OPT_GO, LITERAL(go_snap));
	expect_reply(fd, NBD_OPT_GO, NBD_REP_ERR_POLICY);
	client_option(fd, NBD_OPT_GO, LITERAL(go_vol));
	expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(fd, NBD_OPT_GO, NBD_REP_ACK);
	expect_alive(fd);
	client_disconnect(fd);
	harness_call(h, harness_release, NULL);
	for (unsigned i = 0; i < 2; i++) {
		expect_reply(fds[i], NBD_OPT_GO, NBD_REP_INFO);
		expect_reply(fds[i], NBD_OPT_GO, NBD_REP_INFO);
		expect_reply(fds[i], NBD_OPT_GO, NBD_REP_ACK);
		client_disconnect(fds[i]);
	}
	harness_end(h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(export_name_pads_unless_told_not_to),
		cmocka_unit_test(export_name_unknown_ends_the_session),
		cmocka_unit_test(unknown_client_flags_end_the_session),
		cmocka_unit_test(bad_option_magic_ends_the_session),
		cmocka_unit_test(list_tells_every_export),
		cmocka_unit_test(info_tells_what_is_asked),
		cmocka_unit_test(go_to_an_unknown_export_can_be_tried_again),
		cmocka_unit_test(refused_open_says_why),
		cmocka_unit_test(abort_is_acknowledged),
		cmocka_unit_test(unknown_options_are_unsupported),
		cmocka_unit_test(oversized_options),
		cmocka_unit_test(meta_contexts),
		cmocka_unit_test(meta_queries_without_end),
		cmocka_unit_test(exports_that_are_looked_up),
		cmocka_unit_test(gone_during_a_lookup),
		cmocka_unit_test(lookups_are_limited),
		cmocka_unit_test(options_byte_by_byte),
		cmocka_unit_test(without_fixed_newstyle_only_export_name),
		cmocka_unit_test(endless_options_end),
		cmocka_unit_test(starttls_without_tls_is_refused),
		cmocka_unit_test(required_tls_is_required),
		cmocka_unit_test(plaintext_behind_starttls_is_refused),
		cmocka_unit_test(silent_clients_are_dropped),
		cmocka_unit_test(connections_are_limited),
		cmocka_unit_test(idle_handshakes_make_room),
	};

	return harness_run(tests);
}
