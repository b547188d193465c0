/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream: a byte stream to the other side, plain or under TLS (OpenSSL over memory BIOs, so that
 * it runs on every backend of env). Same rules as env sockets: one receive and one send under way
 * at a time, whole sends.
 *
 * TLS: 1.2 or later for NBD (as its protocol page demands), 1.3 for peers; X.509 with optional
 * client certificates, or a pre-shared key (RFC 8446 2.2 external PSK; in TLS 1.2 the RFC 4279
 * and 8442 suites). Key files hold lines IDENTITY:HEXKEY as written by GnuTLS's psktool and by
 * `offsite keygen`.
 */
#ifndef OFFSITE_IO_STREAM_H
#define OFFSITE_IO_STREAM_H

#include "daemon/io/env.h"

struct stream;
struct tls_context;

enum tls_role { TLS_SERVER, TLS_CLIENT };

struct tls_config {
	enum tls_role role;
	const char *cert_file; /* PEM chain; NULL: none */
	const char *key_file;  /* PEM private key */
	const char
		*ca_file; /* PEM; with it the other side's certificate is demanded and verified */
	const char *psk_file;     /* IDENTITY:HEXKEY lines; NULL: none */
	const char *psk_identity; /* client: which line to offer; NULL: the first */
	const char
		*verify_name; /* client: host name or address the certificate must carry, or NULL */
	bool tls13_only;
};

/* Loads keys and certificates. On failure -errno and why (one line: file, reason). */
int tls_context_new(const struct tls_config *config, struct tls_context **tls, char *why,
		    size_t why_size);
void tls_context_free(struct tls_context *tls);

/* Takes sock over. The stream is plain until stream_handshake(). NULL without memory. */
struct stream *stream_new(struct env *env, struct env_sock *sock);

/* Goes over to TLS. Result 0, or -errno: -EACCES when the other side's proof (key, certificate) is
 * wrong or missing, -EPROTO for anything that is no TLS. Bytes already received beyond what the
 * caller consumed may not exist: the caller has read exactly up to the switch. tls outlives the stream. */
void stream_handshake(struct stream *stream, struct env_op *op, struct tls_context *tls);

/* Its buffers, as far as there are any yet, have their memory. */
void stream_brace(struct stream *stream);

/* As env_recv() and env_sendv(). */
void stream_recv(struct stream *stream, struct env_op *op, void *buf, size_t length);
void stream_sendv(struct stream *stream, struct env_op *op, struct iovec *iov, unsigned count);

bool stream_is_tls(const struct stream *stream);
/* Who the other side proved to be: PSK identity or certificate subject; "" when plain. */
const char *stream_identity(const struct stream *stream);
/* True if the other side has shown a certificate for that host name or address. */
bool stream_has_name(const struct stream *stream, const char *name);
const char *stream_peername(const struct stream *stream);
/* One line on why the last operation failed ("" when nothing is known beyond the errno). */
const char *stream_error(const struct stream *stream);

/* Closes and frees. Operations under way are completed with an error in a later turn, their
 * op->done still called; the stream's own memory goes after the last of them. Under TLS the socket
 * may stay open for up to STREAM_LINGER_MS, to get the closing message out: let the loop run until
 * stream_lingering() is 0 before env_free(). */
#define STREAM_LINGER_MS 200
void stream_close(struct stream *stream);
static inline unsigned stream_lingering(const struct env *env)
{
	return env->lingering;
}

#endif
