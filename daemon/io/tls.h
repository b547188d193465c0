/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tls: what stream.c needs of a TLS context: its OpenSSL objects, and what the key callbacks
 * found out about one connection. Private to stream.c and tls.c; others use stream.h.
 */
#ifndef OFFSITE_IO_TLS_H
#define OFFSITE_IO_TLS_H

#include <openssl/bio.h>
#include <openssl/ssl.h>
#include "daemon/io/stream.h"

#define TLS_IDENTITY_BYTES 256

/* One connection's proof so far. The connection's SSL carries it as its app data. */
struct tls_proof {
	const struct tls_context *tls;
	char identity
		[TLS_IDENTITY_BYTES]; /* the last PSK identity offered, printable; "" if none */
	bool identity_known;          /* it stands in the key file */
};

/* A new connection with bio as both directions (the reference goes to it), proof as its app data.
 * NULL without memory. */
SSL *tls_connection_new(struct tls_context *tls, BIO *bio, struct tls_proof *proof);
/* A BIO whose read and write ends are the two calls given to tls.c's method, with data as its
 * app data. NULL without memory. */
BIO *tls_bio_new(struct tls_context *tls, void *data);
/* The two ends, in stream.c: move up to length bytes, return how many (0: none now, try later). */
int stream_bio_read(void *data, char *to, int length);
int stream_bio_write(void *data, const char *from, int length);

enum tls_role tls_context_role(const struct tls_context *tls);
bool tls_context_has_psk(const struct tls_context *tls);
/* After a handshake: NULL, or why the other side's proof does not do (text for people). Fills in
 * identity: the PSK identity or the certificate's subject. */
const char *tls_check_proof(SSL *ssl, const struct tls_proof *proof,
			    char identity[TLS_IDENTITY_BYTES]);
/* The other side's certificate is for that host name or address. */
bool tls_has_name(SSL *ssl, const char *name);
/* Why the SSL call that just failed did so, from OpenSSL's error queue (which is emptied):
 * one line in text, and -EACCES or -EPROTO. */
int tls_explain_failure(SSL *ssl, const struct tls_proof *proof, char *text, size_t text_size);

#endif
