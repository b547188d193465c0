/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams, plain and under TLS, against each other and against OpenSSL used directly, on both real
 * backends; io_stream_sim.c includes this file to run what can be run in the simulator.
 * The certificates are made here, when the tests start.
 */
#include "daemon/io/stream.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#ifdef WORLD_SIM
#include "tests/sim/env_sim.h"
#endif

/* ---- the world: one environment, or a simulated one ---------------------------------------- */

struct world {
	struct env *env;
#ifdef WORLD_SIM
	struct sim *sim;
#endif
};

static unsigned seed;
#ifndef WORLD_SIM
static enum env_backend backend;
#endif
static char folder[] = "/tmp/offsite-stream-XXXXXX";

static void world_open(struct world *world)
{
#ifdef WORLD_SIM
	world->sim = sim_new(seed);
	world->env = sim_node(world->sim, "a");
#else
	const char *why;
	int error = env_real_new(backend, 1, &world->env, &why);

	if (error)
		fail_msg("%s: %s", why, strerror(-error));
#endif
}

static const char *world_listen_addr(void)
{
#ifdef WORLD_SIM
	return "tcp:a:0";
#else
	return "tcp:127.0.0.1:0";
#endif
}

static void world_until(struct world *world, const bool *flag)
{
#ifdef WORLD_SIM
	assert_true(sim_run_until(world->sim, flag, 600ull * 1000000000));
#else
	alarm(30); /* a hang ends the program, and the runner says so */
	env_run_until(world->env, flag);
	alarm(0);
#endif
}

struct pause {
	struct env_timer timer;
	bool over;
};

static void pause_over(struct env_timer *timer)
{
	((struct pause *)timer)->over = true;
}

static void world_close(struct world *world)
{
	/* Streams that still send their last alert. */
	while (stream_lingering(world->env)) {
		struct pause pause = {.timer.fire = pause_over};

		env_timer_start(world->env, &pause.timer, 1000000);
		world_until(world, &pause.over);
	}
#ifdef WORLD_SIM
	sim_free(world->sim);
#else
	env_free(world->env);
#endif
}

/* ---- a pair of connected streams --------------------------------------------------------------- */

struct wait {
	struct env_op op;
	bool done;
	int64_t result;
};

static void wait_done(struct env_op *op, int64_t result)
{
	struct wait *wait = (struct wait *)op;

	assert_false(wait->done);
	wait->done = true;
	wait->result = result;
}

static struct env_op *start(struct wait *wait)
{
	*wait = (struct wait){.op.done = wait_done};
	return &wait->op;
}

static int64_t result_of(struct world *world, struct wait *wait)
{
	world_until(world, &wait->done);
	return wait->result;
}

struct pair {
	struct world world;
	struct stream *server, *client;
	struct tls_context *server_tls, *client_tls;
	bool accepted;
};

static void pair_accept(void *context, struct env_sock *sock)
{
	struct pair *pair = context;

	pair->server = stream_new(pair->world.env, sock);
	assert_non_null(pair->server);
	pair->accepted = true;
}

static void pair_open(struct pair *pair)
{
	struct env_listener *listener;
	struct env_sock *sock;
	struct wait wait;

	memset(pair, 0, sizeof(*pair));
	world_open(&pair->world);
	assert_int_equal(
		env_listen(pair->world.env, world_listen_addr(), pair_accept, pair, &listener), 0);
	env_connect(pair->world.env, start(&wait), env_listener_addr(listener), &sock);
	assert_int_equal(result_of(&pair->world, &wait), 0);
	pair->client = stream_new(pair->world.env, sock);
	assert_non_null(pair->client);
	world_until(&pair->world, &pair->accepted);
	env_listener_close(pair->world.env, listener);
}

static void pair_close(struct pair *pair)
{
	if (pair->client)
		stream_close(pair->client);
	if (pair->server)
		stream_close(pair->server);
	world_close(&pair->world);
	tls_context_free(pair->server_tls);
	tls_context_free(pair->client_tls);
}

/* ---- keys and certificates --------------------------------------------------------------------- */

static char *file_named(const char *name)
{
	static char paths[16][100];
	static unsigned next;
	char *path = paths[next++ % 16];

	snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
	return path;
}

static void write_text(const char *name, const char *text)
{
	FILE *file = fopen(file_named(name), "w");

	assert_non_null(file);
	fputs(text, file);
	fclose(file);
}

static void add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX ctx;

	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);

	assert_non_null(extension);
	assert_int_equal(X509_add_ext(cert, extension, -1), 1);
	X509_EXTENSION_free(extension);
}

/* Writes NAME.crt and NAME.key, signed by issuer (NULL: by itself, a CA). */
static X509 *make_certificate(const char *name, const char *subject, X509 *issuer,
			      EVP_PKEY *issuer_key, int days, EVP_PKEY **key)
{
	X509 *cert = X509_new();
	char path[64];
	static long serial = 1;

	*key = EVP_EC_gen("P-256");
	assert_non_null(*key);
	X509_set_version(cert, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(cert), serial++);
	X509_gmtime_adj(X509_getm_notBefore(cert), -10 * 86400);
	X509_gmtime_adj(X509_getm_notAfter(cert), days * 86400L);
	X509_set_pubkey(cert, *key);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
				   (const unsigned char *)subject, -1, -1, 0);
	X509_set_issuer_name(cert, X509_get_subject_name(issuer ? issuer : cert));
	if (issuer)
		add_extension(cert, issuer, NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1");
	else
		add_extension(cert, cert, NID_basic_constraints, "critical,CA:TRUE");
	assert_true(X509_sign(cert, issuer ? issuer_key : *key, EVP_sha256()) > 0);
	snprintf(path, sizeof(path), "%s.crt", name);
	FILE *file = fopen(file_named(path), "w");

	PEM_write_X509(file, cert);
	fclose(file);
	snprintf(path, sizeof(path), "%s.key", name);
	file = fopen(file_named(path), "w");
	PEM_write_PrivateKey(file, *key, NULL, NULL, 0, NULL, NULL);
	fclose(file);
	return cert;
}

static void make_certificates(void)
{
	EVP_PKEY *ca_key, *key;
	X509 *ca = make_certificate("ca", "test CA", NULL, NULL, 10, &ca_key);
	static const struct {
		const char *name, *subject;
		int days;
	} leaves[] = {{"server", "server one", 10},
		      {"client", "client one", 10},
		      {"expired", "old one", -1}};

	for (size_t i = 0; i < sizeof(leaves) / sizeof(leaves[0]); i++) {
		X509_free(make_certificate(leaves[i].name, leaves[i].subject, ca, ca_key,
					   leaves[i].days, &key));
		EVP_PKEY_free(key);
	}
	X509_free(ca);
	EVP_PKEY_free(ca_key);
	ca = make_certificate("otherca", "another CA", NULL, NULL, 10, &ca_key);
	X509_free(make_certificate("foreign", "foreign one", ca, ca_key, 10, &key));
	EVP_PKEY_free(key);
	X509_free(ca);
	EVP_PKEY_free(ca_key);
}

#define KEY_A "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF"
#define KEY_B "ff112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF"

static int group_setup(void **state)
{
	if (!mkdtemp(folder))
		return -1;
	make_certificates();
	write_text("keys", "# two of them\nalice:" KEY_A "\n\nbob:" KEY_B "\r\n");
	write_text("alice", "alice:" KEY_A);
	write_text("alice-wrong", "alice:" KEY_B "\n");
	write_text("carol", "carol:" KEY_A "\n");
	return 0;
}

static int group_teardown(void **state)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -r %s", folder);
	return system(command);
}

static struct tls_context *context_of(const struct tls_config *config)
{
	struct tls_context *tls = NULL;
	char why[300] = "";

	if (tls_context_new(config, &tls, why, sizeof(why)) < 0)
		fail_msg("%s", why);
	return tls;
}

/* Both sides' handshakes with these configs; what came of them in results. */
static void pair_handshake(struct pair *pair, const struct tls_config *server,
			   const struct tls_config *client, int64_t *server_result,
			   int64_t *client_result)
{
	struct wait s, c;

	pair_open(pair);
	pair->server_tls = context_of(server);
	pair->client_tls = context_of(client);
	stream_handshake(pair->server, start(&s), pair->server_tls);
	stream_handshake(pair->client, start(&c), pair->client_tls);
	assert_false(s.done || c.done); /* never from inside the call */
	*server_result = result_of(&pair->world, &s);
	*client_result = result_of(&pair->world, &c);
}

static void echo_once(struct pair *pair)
{
	char text[32] = "hello", got[32] = "";
	struct iovec iov[2] = {{text, 3}, {text + 3, 3}};
	struct wait s, r;

	stream_recv(pair->client, start(&r), got, sizeof(got));
	stream_sendv(pair->server, start(&s), iov, 2);
	assert_int_equal(result_of(&pair->world, &s), 6);
	int64_t n = result_of(&pair->world, &r);

	while (n > 0 && n < 6) {
		stream_recv(pair->client, start(&r), got + n, sizeof(got) - (size_t)n);
		assert_true(result_of(&pair->world, &r) > 0);
		n += r.result;
	}
	assert_int_equal(n, 6);
	assert_string_equal(got, "hello");
}

static struct tls_config psk_server(bool tls13_only)
{
	return (struct tls_config){
		.role = TLS_SERVER, .psk_file = file_named("keys"), .tls13_only = tls13_only};
}

static struct tls_config psk_client(const char *file)
{
	return (struct tls_config){
		.role = TLS_CLIENT, .psk_file = file_named(file), .tls13_only = true};
}

static struct tls_config cert_server(const char *name, const char *ca)
{
	char crt[32], key[32];

	snprintf(crt, sizeof(crt), "%s.crt", name);
	snprintf(key, sizeof(key), "%s.key", name);
	return (struct tls_config){.role = TLS_SERVER,
				   .cert_file = file_named(crt),
				   .key_file = file_named(key),
				   .ca_file = ca ? file_named(ca) : NULL};
}

static struct tls_config cert_client(const char *name, const char *ca, const char *verify)
{
	struct tls_config config = cert_server(name ? name : "x", ca);

	config.role = TLS_CLIENT;
	config.verify_name = verify;
	if (!name)
		config.cert_file = config.key_file = NULL;
	return config;
}

/* ---- tests ------------------------------------------------------------------------------------------ */

static void test_plain(void **state)
{
	struct pair pair;

	pair_open(&pair);
	echo_once(&pair);
	assert_false(stream_is_tls(pair.server));
	assert_string_equal(stream_identity(pair.server), "");
	assert_string_equal(stream_error(pair.server), "");
	assert_true(stream_peername(pair.server)[0]);
	pair_close(&pair);
}

static void test_psk(void **state)
{
	struct pair pair;
	int64_t s, c;
	struct tls_config server = psk_server(true), client = psk_client("keys");

	client.psk_identity = "bob";
	pair_handshake(&pair, &server, &client, &s, &c);
	assert_int_equal(s, 0);
	assert_int_equal(c, 0);
	assert_true(stream_is_tls(pair.server) && stream_is_tls(pair.client));
	assert_string_equal(stream_identity(pair.server), "bob");
	assert_string_equal(stream_identity(pair.client), "bob");
	echo_once(&pair);
	pair_close(&pair);
}

/* A handshake that the server refuses with -EACCES and words; the client hears of it. */
static void refused(const struct tls_config *server, const struct tls_config *client,
		    int server_error, const char *server_words, const char *client_words)
{
	struct pair pair;
	int64_t s, c;
	char byte;
	struct wait wait;

	pair_handshake(&pair, server, client, &s, &c);
	assert_int_equal(s, server_error);
	if (!strstr(stream_error(pair.server), server_words))
		fail_msg("server: wanted '%s', got '%s'", server_words, stream_error(pair.server));
	if (c == 0) {
		/* A TLS 1.3 client is through before the server has seen its certificate. */
		stream_recv(pair.client, start(&wait), &byte, 1);
		c = result_of(&pair.world, &wait);
	}
	assert_int_equal(c, server_error);
	if (!strstr(stream_error(pair.client), client_words))
		fail_msg("client: wanted '%s', got '%s'", client_words, stream_error(pair.client));
	/* What is broken stays broken, and does not hang. */
	stream_recv(pair.server, start(&wait), &byte, 1);
	assert_int_equal(result_of(&pair.world, &wait), server_error);
	assert_false(stream_is_tls(pair.server));
	pair_close(&pair);
}

static void test_psk_wrong(void **state)
{
	for (int tls13_only = 0; tls13_only < 2; tls13_only++) {
		struct tls_config server = psk_server(tls13_only);
		struct tls_config wrong = psk_client("alice-wrong"), unknown = psk_client("carol");
		struct tls_config none = cert_client(NULL, "ca.crt", NULL);

		refused(&server, &wrong, -EACCES, "wrong pre-shared key for identity 'alice'",
			"wrong pre-shared key or unknown identity 'alice'");
		refused(&server, &unknown, -EACCES, "unknown identity 'carol'",
			"wrong pre-shared key or unknown identity 'carol'");
		refused(&server, &none, -EACCES, "offered no pre-shared key",
			"may want a pre-shared key");
	}
}

static void test_certificates(void **state)
{
	static const char *const names[] = {NULL, "localhost", "127.0.0.1"};

	for (size_t i = 0; i < 3; i++) {
		struct pair pair;
		int64_t s, c;
		struct tls_config server = cert_server("server", "ca.crt");
		struct tls_config client = cert_client("client", "ca.crt", names[i]);

		pair_handshake(&pair, &server, &client, &s, &c);
		assert_int_equal(s, 0);
		assert_int_equal(c, 0);
		assert_string_equal(stream_identity(pair.server), "CN=client one");
		assert_string_equal(stream_identity(pair.client), "CN=server one");
		echo_once(&pair);
		pair_close(&pair);
	}
}

static void test_client_certificate_refused(void **state)
{
	struct tls_config server = cert_server("server", "ca.crt");
	struct tls_config none = cert_client(NULL, "ca.crt", NULL);
	struct tls_config expired = cert_client("expired", "ca.crt", NULL);
	struct tls_config foreign = cert_client("foreign", "ca.crt", NULL);

	refused(&server, &none, -EACCES, "showed no certificate", "refused our certificate");
	refused(&server, &expired, -EACCES, "certificate has expired", "certificate expired");
	refused(&server, &foreign, -EACCES, "unable to get local issuer certificate", "unknown CA");
}

/* A handshake that the client refuses. */
static void server_refused(const struct tls_config *server, const struct tls_config *client,
			   const char *words)
{
	struct pair pair;
	int64_t s, c;

	pair_handshake(&pair, server, client, &s, &c);
	assert_int_equal(c, -EACCES);
	if (!strstr(stream_error(pair.client), words))
		fail_msg("wanted '%s', got '%s'", words, stream_error(pair.client));
	pair_close(&pair);
}

static void test_server_certificate_refused(void **state)
{
	struct tls_config good = cert_server("server", NULL),
			  expired = cert_server("expired", NULL);
	struct tls_config foreign = cert_server("foreign", NULL);
	struct tls_config client = cert_client(NULL, "ca.crt", "localhost");
	struct tls_config other = cert_client(NULL, "ca.crt", "db.example.org");
	struct tls_config psk = psk_client("alice");

	server_refused(&expired, &client, "certificate has expired");
	server_refused(&foreign, &client, "unable to get local issuer certificate");
	server_refused(&good, &other, "hostname mismatch");
	/* Any server can show any certificate: the key is what the client asked for. */
	server_refused(&good, &psk, "did not use the pre-shared key");
}

/* Both kinds of proof on one server: with a CA either will do, without one the key is demanded. */
static void test_psk_and_certificate(void **state)
{
	struct tls_config server = cert_server("server", "ca.crt");
	struct tls_config psk = psk_client("alice");
	struct tls_config cert = cert_client("client", "ca.crt", NULL);
	struct pair pair;
	int64_t s, c;

	server.psk_file = file_named("keys");
	pair_handshake(&pair, &server, &psk, &s, &c);
	assert_int_equal(s, 0);
	assert_int_equal(c, 0);
	assert_string_equal(stream_identity(pair.server), "alice");
	pair_close(&pair);
	pair_handshake(&pair, &server, &cert, &s, &c);
	assert_int_equal(s, 0);
	assert_int_equal(c, 0);
	assert_string_equal(stream_identity(pair.server), "CN=client one");
	pair_close(&pair);
	server.ca_file = NULL;
	pair_handshake(&pair, &server, &cert, &s, &c);
	assert_int_equal(s, -EACCES);
	assert_non_null(strstr(stream_error(pair.server), "no known pre-shared key"));
	pair_close(&pair);
}

static void test_plaintext_client(void **state)
{
	struct tls_config server = psk_server(false);
	struct pair pair;
	struct wait s, c;
	char text[] = "GET / HTTP/1.0\r\n\r\n and so on";
	struct iovec iov = {text, sizeof(text)};

	pair_open(&pair);
	pair.server_tls = context_of(&server);
	stream_handshake(pair.server, start(&s), pair.server_tls);
	stream_sendv(pair.client, start(&c), &iov, 1);
	assert_int_equal(result_of(&pair.world, &s), -EPROTO);
	assert_string_equal(stream_error(pair.server), "what the other side sent is not TLS");
	assert_int_equal(result_of(&pair.world, &c), sizeof(text));
	pair_close(&pair);
}

static void test_random_bytes_client(void **state)
{
	for (unsigned round = 0; round < 20; round++) {
		struct tls_config server = psk_server(round % 2);
		struct pair pair;
		struct wait s, c;
		uint8_t bytes[400];
		struct iovec iov = {bytes, sizeof(bytes)};

		for (size_t i = 0; i < sizeof(bytes); i++)
			bytes[i] = (uint8_t)rand();
		/* Half of them look like the beginning of a ClientHello. */
		if (round % 2)
			memcpy(bytes, "\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03", 11);
		pair_open(&pair);
		pair.server_tls = context_of(&server);
		stream_handshake(pair.server, start(&s), pair.server_tls);
		stream_sendv(pair.client, start(&c), &iov, 1);
		result_of(&pair.world, &c);
		stream_close(pair.client);
		pair.client = NULL;
		assert_true(result_of(&pair.world, &s) < 0);
		assert_true(stream_error(pair.server)[0]);
		pair_close(&pair);
	}
}

static void test_closed_in_handshake(void **state)
{
	struct tls_config server = psk_server(false);
	struct pair pair;
	struct wait s;

	pair_open(&pair);
	pair.server_tls = context_of(&server);
	stream_handshake(pair.server, start(&s), pair.server_tls);
	stream_close(pair.client);
	pair.client = NULL;
	assert_int_equal(result_of(&pair.world, &s), -ECONNRESET);
	assert_true(stream_error(pair.server)[0]);
	pair_close(&pair);

	pair_open(&pair);
	pair.server_tls = context_of(&server);
	stream_handshake(pair.server, start(&s), pair.server_tls);
	stream_close(pair.server);
	assert_false(s.done);
	pair.server = NULL;
	assert_true(result_of(&pair.world, &s) < 0);
	pair_close(&pair);
}

static void test_bad_contexts(void **state)
{
	static const struct {
		const char *text, *said;
	} keys[] = {
		{"alice\n", "psk:1: not of the form IDENTITY:HEXKEY"},
		{"alice:" KEY_A "\n:" KEY_A "\n", "psk:2: the identity is empty"},
		{"alice:001\n", "odd number"},
		{"alice:0011\n", "shorter than 16 bytes"},
		{"alice:" KEY_A KEY_A "00\n", "longer than 64 bytes"},
		{"alice:zz112233445566778899aabbccddeeff\n", "not hexadecimal"},
		{"alice:" KEY_A "\nalice:" KEY_B "\n",
		 "psk:2: the identity stands in the file twice"},
		{"# nothing\n", "no key in it"},
	};
	char why[300];
	struct tls_context *tls;

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		struct tls_config config = {.role = TLS_SERVER, .psk_file = file_named("psk")};

		write_text("psk", keys[i].text);
		assert_true(tls_context_new(&config, &tls, why, sizeof(why)) < 0);
		if (!strstr(why, keys[i].said))
			fail_msg("wanted '%s', got '%s'", keys[i].said, why);
	}
	struct tls_config config = cert_server("nobody", NULL);

	assert_int_equal(tls_context_new(&config, &tls, why, sizeof(why)), -ENOENT);
	assert_non_null(strstr(why, "nobody.crt: No such file"));
	config = cert_server("server", NULL);
	config.key_file = file_named("client.key");
	assert_int_equal(tls_context_new(&config, &tls, why, sizeof(why)), -EINVAL);
	assert_non_null(strstr(why, "client.key: key values mismatch"));
	config.key_file = NULL;
	assert_int_equal(tls_context_new(&config, &tls, why, sizeof(why)), -EINVAL);
	config = psk_client("alice");
	config.psk_identity = "zoe";
	assert_int_equal(tls_context_new(&config, &tls, why, sizeof(why)), -ENOENT);
	assert_non_null(strstr(why, "no key of identity 'zoe'"));
	config = (struct tls_config){.role = TLS_CLIENT};
	assert_int_equal(tls_context_new(&config, &tls, why, sizeof(why)), -EINVAL);
}

/* ---- bulk ---------------------------------------------------------------------------------------------- */

#define BLOCK_BYTES 1048573u /* a prime: pieces do not fall into step with it */
#ifdef WORLD_SIM
#define BULK_BYTES (4u << 20)
#else
#define BULK_BYTES (64u << 20)
#endif
#define PIECES 24u

struct flow {
	struct env_op op;
	struct stream *stream;
	uint64_t moved;
	struct iovec iov[PIECES];
	uint8_t *buf;
	bool done;
};

static uint8_t block[BLOCK_BYTES * 2]; /* twice, so that pieces may run over the end */

static size_t random_size(void)
{
	return rand() % 4 ? (size_t)rand() % 100 : (size_t)rand() % 300000;
}

static void flow_send(struct flow *flow)
{
	unsigned count = 0;
	uint64_t left = BULK_BYTES - flow->moved;

	if (left == 0) {
		flow->done = true;
		return;
	}
	for (unsigned wanted = 1 + (unsigned)rand() % PIECES; count < wanted && left; count++) {
		size_t n = random_size();

		if (n > left)
			n = left;
		flow->iov[count] = (struct iovec){block + flow->moved % BLOCK_BYTES, n};
		flow->moved += n;
		left -= n;
	}
	stream_sendv(flow->stream, &flow->op, flow->iov, count);
}

static void flow_sent(struct env_op *op, int64_t result)
{
	struct flow *flow = (struct flow *)op;

	assert_true(result >= 0);
	flow_send(flow);
}

static void flow_recv(struct flow *flow)
{
	stream_recv(flow->stream, &flow->op, flow->buf, 1 + random_size());
}

static void flow_received(struct env_op *op, int64_t result)
{
	struct flow *flow = (struct flow *)op;

	assert_true(result > 0);
	for (uint64_t done = 0; done < (uint64_t)result;) {
		uint64_t at = (flow->moved + done) % BLOCK_BYTES;
		uint64_t n = BLOCK_BYTES - at;

		if (n > (uint64_t)result - done)
			n = (uint64_t)result - done;
		assert_memory_equal(block + at, flow->buf + done, n);
		done += n;
	}
	flow->moved += (uint64_t)result;
	assert_true(flow->moved <= BULK_BYTES);
	if (flow->moved == BULK_BYTES)
		flow->done = true;
	else
		flow_recv(flow);
}

static void bulk(struct pair *pair)
{
	struct stream *ends[2] = {pair->server, pair->client};
	struct flow *send = calloc(2, sizeof(*send)), *recv = calloc(2, sizeof(*recv));

	for (int i = 0; i < 2; i++) {
		send[i] = (struct flow){.op.done = flow_sent, .stream = ends[i]};
		recv[i] = (struct flow){
			.op.done = flow_received, .stream = ends[i], .buf = malloc(300001)};
		flow_recv(&recv[i]);
		flow_send(&send[i]);
	}
	for (int i = 0; i < 2; i++) {
		world_until(&pair->world, &recv[i].done);
		world_until(&pair->world, &send[i].done);
		free(recv[i].buf);
	}
	free(send);
	free(recv);
}

static void fill_block(void)
{
	for (size_t i = 0; i < BLOCK_BYTES; i++)
		block[i] = block[i + BLOCK_BYTES] = (uint8_t)rand();
}

static void test_bulk_plain(void **state)
{
	struct pair pair;

	fill_block();
	pair_open(&pair);
	bulk(&pair);
	pair_close(&pair);
}

static void test_bulk_tls(void **state)
{
	struct tls_config server = psk_server(true), client = psk_client("alice");
	struct pair pair;
	int64_t s, c;

	fill_block();
	pair_handshake(&pair, &server, &client, &s, &c);
	assert_int_equal(s, 0);
	assert_int_equal(c, 0);
	bulk(&pair);
	pair_close(&pair);
}

/* ---- closing ------------------------------------------------------------------------------------------------ */

static void open_psk_pair(struct pair *pair)
{
	struct tls_config server = psk_server(true), client = psk_client("alice");
	int64_t s, c;

	pair_handshake(pair, &server, &client, &s, &c);
	assert_int_equal(s, 0);
	assert_int_equal(c, 0);
}

static void test_orderly_end(void **state)
{
	struct pair pair;
	struct wait wait;
	char byte;

	open_psk_pair(&pair);
	echo_once(&pair);
	assert_int_equal(stream_lingering(pair.world.env), 0);
	stream_close(pair.client);
	assert_int_equal(stream_lingering(pair.world.env), 1);
	pair.client = NULL;
	for (int again = 0; again < 2; again++) {
		stream_recv(pair.server, start(&wait), &byte, 1);
		assert_int_equal(result_of(&pair.world, &wait), 0);
	}
	assert_string_equal(stream_error(pair.server), "");
	pair_close(&pair);
}

static void test_close_with_operations(void **state)
{
	struct pair pair;
	struct wait send, recv, other;
	char byte;
	size_t size = 32u << 20; /* more than any socket takes */
	uint8_t *data = calloc(1, size), *got = malloc(size);

	open_psk_pair(&pair);
	struct iovec iov = {data, size};

	stream_sendv(pair.server, start(&send), &iov, 1);
	stream_recv(pair.server, start(&recv), &byte, 1);
	stream_recv(pair.client, start(&other), got, size);
	assert_true(result_of(&pair.world, &other) > 0);
	stream_close(pair.server);
	pair.server = NULL;
	assert_false(send.done || recv.done);
	free(data); /* the operations come back, but no longer touch it */
	assert_true(result_of(&pair.world, &send) < 0);
	assert_true(result_of(&pair.world, &recv) < 0);
	do {
		stream_recv(pair.client, start(&other), got, size);
	} while (result_of(&pair.world, &other) > 0);
	/* Cut off in the middle: never to be taken for an orderly end. */
	assert_int_equal(other.result, -ECONNRESET);
	pair_close(&pair);
	free(got);
}

struct closer {
	struct env_op op;
	struct stream *stream;
	bool done;
};

static void close_in_callback(struct env_op *op, int64_t result)
{
	struct closer *closer = (struct closer *)op;

	stream_close(closer->stream);
	closer->done = true;
}

static void test_close_in_callback(void **state)
{
	for (int recv_pending = 0; recv_pending < 2; recv_pending++) {
		struct pair pair;
		struct wait recv;
		char text[] = "x", byte;
		struct iovec iov = {text, 1};

		open_psk_pair(&pair);
		struct closer closer = {.op.done = close_in_callback, .stream = pair.client};

		if (recv_pending)
			stream_recv(pair.client, start(&recv), &byte, 1);
		stream_sendv(pair.client, &closer.op, &iov, 1);
		world_until(&pair.world, &closer.done);
		pair.client = NULL;
		if (recv_pending)
			assert_true(result_of(&pair.world, &recv) < 0);
		pair_close(&pair);
	}
}

/* ---- OpenSSL itself as the other side (it needs threads and real sockets) --------------------------------- */

#ifndef WORLD_SIM
struct raw_client {
	pthread_t thread;
	int fd;
	int max_version;
	const char *identity; /* NULL: no PSK */
	uint8_t key[32];
	const char *ciphers; /* TLS 1.2; NULL: the default */
	bool truncate;       /* end without the closing message */
	bool ok;             /* handshake and echo went well */
	char cipher[64];
};

static unsigned raw_psk(SSL *ssl, const char *hint, char *identity, unsigned size,
			unsigned char *psk, unsigned max)
{
	struct raw_client *raw = SSL_get_app_data(ssl);

	snprintf(identity, size, "%s", raw->identity);
	memcpy(psk, raw->key, sizeof(raw->key));
	return sizeof(raw->key);
}

static void *raw_main(void *context)
{
	struct raw_client *raw = context;
	SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
	SSL *ssl;
	char byte;

	SSL_CTX_set_max_proto_version(ctx, raw->max_version);
	if (raw->identity)
		SSL_CTX_set_psk_client_callback(ctx, raw_psk);
	if (raw->ciphers && SSL_CTX_set_cipher_list(ctx, raw->ciphers) != 1)
		abort();
	ssl = SSL_new(ctx);
	SSL_set_app_data(ssl, raw);
	SSL_set_fd(ssl, raw->fd);
	if (SSL_connect(ssl) == 1) {
		snprintf(raw->cipher, sizeof(raw->cipher), "%s", SSL_get_cipher(ssl));
		raw->ok =
			SSL_write(ssl, "q", 1) == 1 && SSL_read(ssl, &byte, 1) == 1 && byte == 'a';
		if (raw->ok && !raw->truncate)
			SSL_shutdown(ssl);
	}
	SSL_free(ssl);
	SSL_CTX_free(ctx);
	close(raw->fd);
	return NULL;
}

/* Our server, with raw on the other side: the handshake's result; if good, an echo, and what a
 * receive gives at the end. */
static int64_t serve_raw(const struct tls_config *config, struct raw_client *raw, int64_t *end,
			 char *error, size_t error_size)
{
	struct world world;
	struct env_sock *sock;
	struct wait wait;
	struct tls_context *tls = context_of(config);
	int fds[2];

	world_open(&world);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	raw->fd = fds[1];
	assert_int_equal(pthread_create(&raw->thread, NULL, raw_main, raw), 0);
	assert_int_equal(env_sock_adopt(world.env, fds[0], &sock), 0);
	struct stream *stream = stream_new(world.env, sock);

	stream_handshake(stream, start(&wait), tls);
	int64_t result = result_of(&world, &wait);

	if (result == 0) {
		char byte, answer[] = "a";
		struct iovec iov = {answer, 1};

		stream_recv(stream, start(&wait), &byte, 1);
		assert_int_equal(result_of(&world, &wait), 1);
		assert_int_equal(byte, 'q');
		stream_sendv(stream, start(&wait), &iov, 1);
		assert_int_equal(result_of(&world, &wait), 1);
		stream_recv(stream, start(&wait), &byte, 1);
		*end = result_of(&world, &wait);
	}
	snprintf(error, error_size, "%s", stream_error(stream));
	stream_close(stream);
	world_close(&world);
	pthread_join(raw->thread, NULL);
	tls_context_free(tls);
	return result;
}

static void raw_key(struct raw_client *raw, const char *identity, const char *hex)
{
	raw->identity = identity;
	for (size_t i = 0; i < sizeof(raw->key); i++)
		sscanf(hex + 2 * i, "%2hhx", &raw->key[i]);
}

static void test_tls12(void **state)
{
	struct tls_config server = cert_server("server", NULL);
	struct raw_client raw = {.max_version = TLS1_2_VERSION};
	char error[256];
	int64_t end = 1;

	assert_int_equal(serve_raw(&server, &raw, &end, error, sizeof(error)), 0);
	assert_true(raw.ok);
	assert_int_equal(end, 0);
	server.tls13_only = true;
	raw = (struct raw_client){.max_version = TLS1_2_VERSION};
	assert_int_equal(serve_raw(&server, &raw, &end, error, sizeof(error)), -EPROTO);
	assert_string_equal(error, "the other side's version of TLS is too old");
	server.tls13_only = false;
	raw = (struct raw_client){.max_version = TLS1_1_VERSION, .ciphers = "ALL:@SECLEVEL=0"};
	assert_int_equal(serve_raw(&server, &raw, &end, error, sizeof(error)), -EPROTO);
	assert_string_equal(error, "the other side's version of TLS is too old");
}

static void test_tls12_psk(void **state)
{
	static const char *const ciphers[] = {
		"ECDHE-PSK-CHACHA20-POLY1305", "DHE-PSK-AES128-GCM-SHA256",
		"DHE-PSK-AES256-GCM-SHA384",   "ECDHE-PSK-AES128-CBC-SHA256",
		"PSK-AES128-GCM-SHA256",       "PSK-AES256-CBC-SHA384"};
	struct tls_config server = psk_server(false);
	char error[256];
	int64_t end = 1;

	for (size_t i = 0; i < sizeof(ciphers) / sizeof(ciphers[0]); i++) {
		struct raw_client raw = {.max_version = TLS1_2_VERSION, .ciphers = ciphers[i]};

		raw_key(&raw, "alice", KEY_A);
		assert_int_equal(serve_raw(&server, &raw, &end, error, sizeof(error)), 0);
		assert_true(raw.ok);
		assert_string_equal(raw.cipher, ciphers[i]);
		raw_key(&raw, "alice", KEY_B);
		assert_int_equal(serve_raw(&server, &raw, &end, error, sizeof(error)), -EACCES);
		assert_string_equal(error, "wrong pre-shared key for identity 'alice'");
		raw_key(&raw, "m\nllory", KEY_B);
		assert_int_equal(serve_raw(&server, &raw, &end, error, sizeof(error)), -EACCES);
		assert_string_equal(error, "unknown identity 'm?llory'");
	}
}

static void test_truncation(void **state)
{
	struct tls_config server = psk_server(false);
	char error[256];
	int64_t end = 1;
	struct raw_client raw = {.max_version = TLS1_3_VERSION, .truncate = true};

	raw_key(&raw, "alice", KEY_A);
	assert_int_equal(serve_raw(&server, &raw, &end, error, sizeof(error)), 0);
	assert_true(raw.ok);
	assert_int_equal(end, -ECONNRESET);
	assert_non_null(strstr(error, "without TLS's closing message"));
	raw.truncate = false;
	assert_int_equal(serve_raw(&server, &raw, &end, error, sizeof(error)), 0);
	assert_int_equal(end, 0);
}
#endif

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_plain),
		cmocka_unit_test(test_psk),
		cmocka_unit_test(test_psk_wrong),
		cmocka_unit_test(test_certificates),
		cmocka_unit_test(test_client_certificate_refused),
		cmocka_unit_test(test_server_certificate_refused),
		cmocka_unit_test(test_psk_and_certificate),
		cmocka_unit_test(test_plaintext_client),
		cmocka_unit_test(test_random_bytes_client),
		cmocka_unit_test(test_closed_in_handshake),
		cmocka_unit_test(test_bad_contexts),
		cmocka_unit_test(test_bulk_plain),
		cmocka_unit_test(test_bulk_tls),
		cmocka_unit_test(test_orderly_end),
		cmocka_unit_test(test_close_with_operations),
		cmocka_unit_test(test_close_in_callback),
#ifndef WORLD_SIM
		cmocka_unit_test(test_tls12),
		cmocka_unit_test(test_tls12_psk),
		cmocka_unit_test(test_truncation),
#endif
	};
	const char *env = getenv("SEED");
	int failed = 0;

	seed = env ? (unsigned)strtoul(env, NULL, 0) : (unsigned)time(NULL);
	printf("seed %u (SEED=%u replays)\n", seed, seed);
	srand(seed);
	if (group_setup(NULL) < 0)
		return 1;
#ifdef WORLD_SIM
	failed = cmocka_run_group_tests_name("simulator", tests, NULL, NULL);
#else
	static const enum env_backend backends[] = {ENV_BACKEND_URING, ENV_BACKEND_AIO};
	static const char *const names[] = {"io_uring", "libaio"};

	for (unsigned i = 0; i < 2; i++) {
		struct env *probe;
		const char *why;

		backend = backends[i];
		if (env_real_new(backend, 1, &probe, &why) < 0) {
			printf("SKIP io_stream on %s: not to be had here: %s\n", names[i], why);
			continue;
		}
		env_free(probe);
		failed += cmocka_run_group_tests_name(names[i], tests, NULL, NULL);
	}
#endif
	group_teardown(NULL);
	printf("seed %u\n", seed);
	return failed;
}
