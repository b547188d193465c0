/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS contexts: certificates, pre-shared key files, which versions and ciphers are allowed, and
 * the words for what can go wrong.
 *
 * Pre-shared keys use OpenSSL's one pair of callbacks that serves both TLS 1.2 (RFC 4279, 5489)
 * and TLS 1.3 (where it makes an external PSK bound to SHA-256, as GnuTLS does). A context with
 * keys therefore offers SHA-256 suites only: with SHA-384 chosen the key would be passed over.
 *
 * Who has to prove what:
 *   server with psk_file only          the client offers a known key
 *   server with ca_file                the client shows a certificate (or, with psk_file, a key)
 *   server with cert_file only         nothing: encryption alone
 *   client with psk_file only          the server holds the key; no certificate replaces it
 *   client with ca_file                the server shows a certificate (or, with psk_file, the key)
 */
#include "daemon/io/tls.h"

#include <arpa/inet.h>
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>

#define PSK_KEY_BYTES_MIN      16u
#define PSK_KEY_BYTES_MAX      64u
#define PSK_IDENTITY_BYTES_MAX 128u
#define PSK_LINE_BYTES         512u

struct psk_key {
	struct psk_key *next;
	size_t key_bytes;
	uint8_t key[PSK_KEY_BYTES_MAX];
	char identity[PSK_IDENTITY_BYTES_MAX + 1];
};

struct tls_context {
	enum tls_role role;
	SSL_CTX *ctx;
	BIO_METHOD *bio_method;
	struct psk_key *keys; /* in the file's order */
	bool verify;          /* ca_file was given */
	char *verify_name;
	char *psk_identity;
};

enum tls_role tls_context_role(const struct tls_context *tls)
{
	return tls->role;
}

bool tls_context_has_psk(const struct tls_context *tls)
{
	return tls->keys != NULL;
}

/* ---- key files ------------------------------------------------------------------------------ */

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* NULL, or what is wrong with the line "IDENTITY:HEXKEY". */
static const char *psk_line_invalid(const char *line, struct psk_key *key)
{
	const char *colon = strrchr(line, ':');

	if (!colon)
		return "not of the form IDENTITY:HEXKEY";
	size_t identity_bytes = (size_t)(colon - line), digits = strlen(colon + 1);

	if (identity_bytes == 0)
		return "the identity is empty";
	if (identity_bytes > PSK_IDENTITY_BYTES_MAX)
		return "the identity is longer than 128 bytes";
	if (digits % 2 != 0)
		return "the key has an odd number of hexadecimal digits";
	if (digits / 2 < PSK_KEY_BYTES_MIN)
		return "the key is shorter than 16 bytes";
	if (digits / 2 > PSK_KEY_BYTES_MAX)
		return "the key is longer than 64 bytes";
	memcpy(key->identity, line, identity_bytes);
	key->identity[identity_bytes] = '\0';
	for (size_t i = 0; i < digits / 2; i++) {
		int high = hex_digit(colon[1 + 2 * i]), low = hex_digit(colon[2 + 2 * i]);

		if (high < 0 || low < 0)
			return "the key is not hexadecimal";
		key->key[i] = (uint8_t)(high << 4 | low);
	}
	key->key_bytes = digits / 2;
	return NULL;
}

static const struct psk_key *find_key(const struct tls_context *tls, const char *identity)
{
	const struct psk_key *key = tls->keys;

	while (key && strcmp(key->identity, identity) != 0)
		key = key->next;
	return key;
}

/* One line of the file into the list; *tail is the list's end. */
static int load_psk_line(struct tls_context *tls, struct psk_key ***tail, char *line,
			 const char *where, char *why, size_t why_size)
{
	size_t length = strlen(line);

	while (length && isspace((unsigned char)line[length - 1]))
		line[--length] = '\0';
	if (length == 0 || line[0] == '#')
		return 0;
	struct psk_key *key = calloc(1, sizeof(*key));

	if (!key) {
		snprintf(why, why_size, "%s: out of memory", where);
		return -ENOMEM;
	}
	const char *wrong = psk_line_invalid(line, key);

	if (!wrong && find_key(tls, key->identity))
		wrong = "the identity stands in the file twice";
	if (wrong) {
		snprintf(why, why_size, "%s: %s", where, wrong);
		OPENSSL_cleanse(key, sizeof(*key));
		free(key);
		return -EINVAL;
	}
	**tail = key;
	*tail = &key->next;
	return 0;
}

static int load_psk_file(struct tls_context *tls, const char *path, char *why, size_t why_size)
{
	FILE *file = fopen(path, "re");

	if (!file) {
		int error = errno;

		snprintf(why, why_size, "%s: %s", path, strerror(error));
		return -error;
	}
	struct psk_key **tail = &tls->keys;
	char line[PSK_LINE_BYTES], where[600];
	int error = 0;

	for (unsigned number = 1; error == 0 && fgets(line, sizeof(line), file); number++) {
		snprintf(where, sizeof(where), "%s:%u", path, number);
		if (strlen(line) == sizeof(line) - 1 && line[sizeof(line) - 2] != '\n') {
			snprintf(why, why_size, "%s: the line is too long", where);
			error = -EINVAL;
		} else {
			error = load_psk_line(tls, &tail, line, where, why, why_size);
		}
	}
	if (error == 0 && ferror(file)) {
		snprintf(why, why_size, "%s: read error", path);
		error = -EIO;
	}
	if (error == 0 && !tls->keys) {
		snprintf(why, why_size, "%s: no key in it (make one with: offsite keygen)", path);
		error = -EINVAL;
	}
	OPENSSL_cleanse(line, sizeof(line));
	fclose(file);
	return error;
}

/* ---- key callbacks ---------------------------------------------------------------------------- */

/* What a remote sent, made fit for a log line. */
static void copy_printable(char *to, size_t to_size, const char *from)
{
	size_t n = 0;

	for (; from[n] && n + 1 < to_size; n++)
		to[n] = isprint((unsigned char)from[n]) ? from[n] : '?';
	to[n] = '\0';
}

static unsigned int psk_server(SSL *ssl, const char *identity, unsigned char *psk, unsigned int max)
{
	struct tls_proof *proof = SSL_get_app_data(ssl);

	/* TLS 1.3 clients may offer several: once one is known, it is the one to be named. */
	if (proof->identity_known)
		return 0;
	copy_printable(proof->identity, sizeof(proof->identity), identity);
	const struct psk_key *key = find_key(proof->tls, identity);

	if (!key || key->key_bytes > max)
		return 0;
	proof->identity_known = true;
	memcpy(psk, key->key, key->key_bytes);
	return (unsigned int)key->key_bytes;
}

static unsigned int psk_client(SSL *ssl, const char *hint, char *identity,
			       unsigned int identity_size, unsigned char *psk, unsigned int max)
{
	struct tls_proof *proof = SSL_get_app_data(ssl);
	const struct tls_context *tls = proof->tls;
	const struct psk_key *key =
		tls->psk_identity ? find_key(tls, tls->psk_identity) : tls->keys;

	if (!key || key->key_bytes > max || strlen(key->identity) >= identity_size)
		return 0;
	copy_printable(proof->identity, sizeof(proof->identity), key->identity);
	proof->identity_known = true;
	strcpy(identity, key->identity);
	memcpy(psk, key->key, key->key_bytes);
	return (unsigned int)key->key_bytes;
}

/* ---- the BIO ------------------------------------------------------------------------------------ */

static int bio_read(BIO *bio, char *to, int length)
{
	BIO_clear_retry_flags(bio);
	int n = stream_bio_read(BIO_get_data(bio), to, length);

	if (n > 0)
		return n;
	BIO_set_retry_read(bio);
	return -1;
}

static int bio_write(BIO *bio, const char *from, int length)
{
	BIO_clear_retry_flags(bio);
	int n = stream_bio_write(BIO_get_data(bio), from, length);

	if (n > 0)
		return n;
	BIO_set_retry_write(bio);
	return -1;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
	return command == BIO_CTRL_FLUSH ? 1 : 0;
}

BIO *tls_bio_new(struct tls_context *tls, void *data)
{
	BIO *bio = BIO_new(tls->bio_method);

	if (bio) {
		BIO_set_data(bio, data);
		BIO_set_init(bio, 1);
	}
	return bio;
}

/* ---- contexts ------------------------------------------------------------------------------------ */

static const char *reason_words(unsigned long error)
{
	const char *words = ERR_reason_error_string(error);

	return words ? words : "unknown reason";
}

/* The first error of OpenSSL's queue as text; empties the queue. */
static const char *first_reason(void)
{
	const char *words = reason_words(ERR_peek_error());

	ERR_clear_error();
	return words;
}

static int openssl_failed(char *why, size_t why_size, const char *what)
{
	snprintf(why, why_size, "%s: %s", what, first_reason());
	return -EINVAL;
}

/* OpenSSL's own word for a missing file is "system lib": ask the system first. */
static int check_readable(const char *path, char *why, size_t why_size)
{
	FILE *file = fopen(path, "re");

	if (!file) {
		int error = errno;

		snprintf(why, why_size, "%s: %s", path, strerror(error));
		return -error;
	}
	fclose(file);
	return 0;
}

static int load_certificate(struct tls_context *tls, const struct tls_config *config, char *why,
			    size_t why_size)
{
	if (!config->cert_file && !config->key_file)
		return 0;
	if (!config->cert_file || !config->key_file) {
		snprintf(why, why_size,
			 "a certificate and its private key go together: %s is missing",
			 config->cert_file ? "the key" : "the certificate");
		return -EINVAL;
	}
	int error = check_readable(config->cert_file, why, why_size);

	if (error == 0)
		error = check_readable(config->key_file, why, why_size);
	if (error < 0)
		return error;
	if (SSL_CTX_use_certificate_chain_file(tls->ctx, config->cert_file) != 1)
		return openssl_failed(why, why_size, config->cert_file);
	if (SSL_CTX_use_PrivateKey_file(tls->ctx, config->key_file, SSL_FILETYPE_PEM) != 1)
		return openssl_failed(why, why_size, config->key_file);
	return 0;
}

static int load_ca(struct tls_context *tls, const struct tls_config *config, char *why,
		   size_t why_size)
{
	if (!config->ca_file)
		return 0;
	int error = check_readable(config->ca_file, why, why_size);

	if (error < 0)
		return error;
	if (SSL_CTX_load_verify_locations(tls->ctx, config->ca_file, NULL) != 1)
		return openssl_failed(why, why_size, config->ca_file);
	if (config->role == TLS_SERVER) {
		STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(config->ca_file);

		if (!names)
			return openssl_failed(why, why_size, config->ca_file);
		SSL_CTX_set_client_CA_list(tls->ctx, names);
	}
	SSL_CTX_set_verify(tls->ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	tls->verify = true;
	return 0;
}

static int load_psk(struct tls_context *tls, const struct tls_config *config, char *why,
		    size_t why_size)
{
	if (!config->psk_file)
		return 0;
	int error = load_psk_file(tls, config->psk_file, why, why_size);

	if (error < 0)
		return error;
	if (config->role == TLS_SERVER) {
		SSL_CTX_set_psk_server_callback(tls->ctx, psk_server);
		return 0;
	}
	if (config->psk_identity && !find_key(tls, config->psk_identity)) {
		snprintf(why, why_size, "%s: no key of identity '%s'", config->psk_file,
			 config->psk_identity);
		return -ENOENT;
	}
	SSL_CTX_set_psk_client_callback(tls->ctx, psk_client);
	return 0;
}

/* Versions, ciphers, and no state between connections. */
static int set_policy(struct tls_context *tls, const struct tls_config *config, char *why,
		      size_t why_size)
{
	SSL_CTX *ctx = tls->ctx;
	/* TLS 1.2: forward secrecy and AEAD first; plain PSK last, for clients that have no other. */
	const char *ciphers = tls->keys ? "kECDHEPSK+AESGCM:kECDHEPSK+CHACHA20:kDHEPSK+AESGCM:"
					  "kDHEPSK+CHACHA20:kECDHEPSK+AES:kDHEPSK+AES:"
					  "ECDHE+AESGCM:ECDHE+CHACHA20:kPSK+AESGCM:kPSK+AES"
					: "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20";

	SSL_CTX_set_security_level(ctx, 2);
	if (SSL_CTX_set_min_proto_version(ctx, config->tls13_only ? TLS1_3_VERSION
								  : TLS1_2_VERSION) != 1 ||
	    SSL_CTX_set_cipher_list(ctx, ciphers) != 1 ||
	    (tls->keys && SSL_CTX_set_ciphersuites(ctx, "TLS_AES_128_GCM_SHA256:"
							"TLS_CHACHA20_POLY1305_SHA256") != 1))
		return openssl_failed(why, why_size, "TLS settings");
	SSL_CTX_set_dh_auto(ctx, 1);
	SSL_CTX_set_num_tickets(ctx, 0);
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	/* Without a context OpenSSL refuses a TLS 1.3 key where certificates are demanded too; with
	 * one a client refuses its own key. */
	if (config->role == TLS_SERVER)
		SSL_CTX_set_session_id_context(ctx, (const unsigned char *)"offsite", 7);
	SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET |
					 SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE);
	/* A piece of ciphertext that did not fit is offered again from another address. */
	SSL_CTX_set_mode(ctx, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	return 0;
}

static int make_bio_method(struct tls_context *tls)
{
	tls->bio_method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "stream");
	if (!tls->bio_method)
		return -ENOMEM;
	BIO_meth_set_read(tls->bio_method, bio_read);
	BIO_meth_set_write(tls->bio_method, bio_write);
	BIO_meth_set_ctrl(tls->bio_method, bio_ctrl);
	return 0;
}

static int fill_context(struct tls_context *tls, const struct tls_config *config, char *why,
			size_t why_size)
{
	if (config->role == TLS_SERVER && !config->cert_file && !config->psk_file) {
		snprintf(why, why_size, "TLS server: neither a certificate nor pre-shared keys");
		return -EINVAL;
	}
	if (config->role == TLS_CLIENT && !config->ca_file && !config->psk_file) {
		snprintf(why, why_size,
			 "TLS client: neither a CA nor a pre-shared key to tell the "
			 "right server by");
		return -EINVAL;
	}
	if ((config->verify_name && !(tls->verify_name = strdup(config->verify_name))) ||
	    (config->psk_identity && !(tls->psk_identity = strdup(config->psk_identity))) ||
	    make_bio_method(tls) < 0) {
		snprintf(why, why_size, "TLS: out of memory");
		return -ENOMEM;
	}
	int error = load_certificate(tls, config, why, why_size);

	if (error == 0)
		error = load_ca(tls, config, why, why_size);
	if (error == 0)
		error = load_psk(tls, config, why, why_size);
	if (error == 0)
		error = set_policy(tls, config, why, why_size);
	return error;
}

int tls_context_new(const struct tls_config *config, struct tls_context **result, char *why,
		    size_t why_size)
{
	struct tls_context *tls = calloc(1, sizeof(*tls));

	ERR_clear_error();
	if (tls) {
		tls->role = config->role;
		tls->ctx = SSL_CTX_new(config->role == TLS_SERVER ? TLS_server_method()
								  : TLS_client_method());
	}
	if (!tls || !tls->ctx) {
		free(tls);
		snprintf(why, why_size, "TLS: out of memory");
		return -ENOMEM;
	}
	int error = fill_context(tls, config, why, why_size);

	if (error < 0) {
		tls_context_free(tls);
		return error;
	}
	*result = tls;
	return 0;
}

void tls_context_free(struct tls_context *tls)
{
	if (!tls)
		return;
	while (tls->keys) {
		struct psk_key *key = tls->keys;

		tls->keys = key->next;
		OPENSSL_cleanse(key, sizeof(*key));
		free(key);
	}
	SSL_CTX_free(tls->ctx);
	BIO_meth_free(tls->bio_method);
	free(tls->verify_name);
	free(tls->psk_identity);
	free(tls);
}

static bool is_ip_address(const char *name)
{
	struct in6_addr address;

	return inet_pton(AF_INET, name, &address) == 1 || inet_pton(AF_INET6, name, &address) == 1;
}

SSL *tls_connection_new(struct tls_context *tls, BIO *bio, struct tls_proof *proof)
{
	SSL *ssl = SSL_new(tls->ctx);

	if (!ssl)
		return NULL;
	SSL_set_bio(ssl, bio, bio);
	SSL_set_app_data(ssl, proof);
	if (tls->role == TLS_SERVER) {
		SSL_set_accept_state(ssl);
		return ssl;
	}
	SSL_set_connect_state(ssl);
	const char *name = tls->verify_name;

	if (!name)
		return ssl;
	int ok = is_ip_address(name)
			 ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name)
			 : SSL_set1_host(ssl, name) && SSL_set_tlsext_host_name(ssl, name);

	if (!ok) {
		SSL_free(ssl); /* with the bio */
		return NULL;
	}
	return ssl;
}

/* ---- proofs and failures ------------------------------------------------------------------------- */

static void certificate_subject(X509 *certificate, char *text, size_t text_size)
{
	BIO *bio = BIO_new(BIO_s_mem());
	int n = 0;

	if (bio) {
		X509_NAME_print_ex(bio, X509_get_subject_name(certificate), 0,
				   XN_FLAG_RFC2253 & ~ASN1_STRFLGS_ESC_MSB);
		n = BIO_read(bio, text, (int)text_size - 1);
		BIO_free(bio);
	}
	text[n > 0 ? n : 0] = '\0';
	for (char *c = text; *c; c++)
		if (!isprint((unsigned char)*c))
			*c = '?';
}

bool tls_has_name(SSL *ssl, const char *name)
{
	X509 *certificate = SSL_get0_peer_certificate(ssl);

	if (!certificate)
		return false;
	if (is_ip_address(name))
		return X509_check_ip_asc(certificate, name, 0) == 1;
	return X509_check_host(certificate, name, 0, 0, NULL) == 1;
}

/* TLS 1.3 presents an external key as a resumption; there are no tickets here, so nothing else
 * can be resumed. */
static bool psk_was_used(SSL *ssl)
{
	if (SSL_version(ssl) >= TLS1_3_VERSION)
		return SSL_session_reused(ssl);
	return SSL_CIPHER_get_auth_nid(SSL_get_current_cipher(ssl)) == NID_auth_psk;
}

const char *tls_check_proof(SSL *ssl, const struct tls_proof *proof,
			    char identity[TLS_IDENTITY_BYTES])
{
	const struct tls_context *tls = proof->tls;

	identity[0] = '\0';
	if (psk_was_used(ssl)) {
		memcpy(identity, proof->identity, TLS_IDENTITY_BYTES);
		return NULL;
	}
	X509 *certificate = SSL_get0_peer_certificate(ssl);

	if (certificate)
		certificate_subject(certificate, identity, TLS_IDENTITY_BYTES);
	if (tls->verify)
		return certificate && SSL_get_verify_result(ssl) == X509_V_OK
			       ? NULL
			       : "no valid certificate was shown";
	if (!tls->keys)
		return NULL;
	return tls->role == TLS_SERVER ? "no known pre-shared key was offered"
				       : "the server did not use the pre-shared key";
}

/* The first error of OpenSSL's TLS part (a cipher's own may stand before it), else the first of
 * all, else 0; empties the queue. */
static unsigned long first_tls_error(void)
{
	unsigned long first = ERR_peek_error(), error;

	while ((error = ERR_get_error()) && ERR_GET_LIB(error) != ERR_LIB_SSL)
		;
	ERR_clear_error();
	return error ? error : first;
}

/* The alert the other side sent, by its number; 0 if the failure is no received alert. */
static int received_alert(unsigned long error)
{
	int reason = ERR_GET_REASON(error);

	if (ERR_GET_LIB(error) != ERR_LIB_SSL || reason < SSL_AD_REASON_OFFSET ||
	    reason >= SSL_AD_REASON_OFFSET + 256)
		return 0;
	return reason - SSL_AD_REASON_OFFSET;
}

static int explain_alert(int alert, const struct tls_proof *proof, char *text, size_t text_size)
{
	const char *words = SSL_alert_desc_string_long(alert);
	bool psk = tls_context_has_psk(proof->tls);

	switch (alert) {
	case SSL_AD_BAD_CERTIFICATE:
	case SSL_AD_UNSUPPORTED_CERTIFICATE:
	case SSL_AD_CERTIFICATE_REVOKED:
	case SSL_AD_CERTIFICATE_EXPIRED:
	case SSL_AD_CERTIFICATE_UNKNOWN:
	case SSL_AD_UNKNOWN_CA:
	case SSL_AD_CERTIFICATE_REQUIRED:
	case SSL_AD_ACCESS_DENIED:
		snprintf(text, text_size, "the other side refused our certificate: %s", words);
		return -EACCES;
	case SSL_AD_HANDSHAKE_FAILURE:
	case SSL_AD_ILLEGAL_PARAMETER:
	case SSL_AD_DECRYPT_ERROR:
	case SSL_AD_BAD_RECORD_MAC:
	case SSL_AD_UNKNOWN_PSK_IDENTITY:
		if (psk) {
			snprintf(text, text_size,
				 "the other side refused us: wrong pre-shared key or unknown "
				 "identity '%s'",
				 proof->identity);
			return -EACCES;
		}
		if (alert == SSL_AD_HANDSHAKE_FAILURE || alert == SSL_AD_UNKNOWN_PSK_IDENTITY) {
			snprintf(text, text_size,
				 "the other side refused us: it may want a pre-shared key (%s)",
				 words);
			return -EACCES;
		}
		break;
	case SSL_AD_PROTOCOL_VERSION:
		snprintf(text, text_size, "the other side does not accept our version of TLS");
		return -EPROTO;
	}
	snprintf(text, text_size, "the other side ended TLS: %s", words);
	return -EPROTO;
}

/* A key that does not fit shows as a binder (1.3) or a first record (1.2) that does not verify. */
static int explain_wrong_key(const struct tls_proof *proof, char *text, size_t text_size)
{
	if (!proof->identity[0]) {
		snprintf(text, text_size, "the other side offered no pre-shared key");
		return -EACCES;
	}
	snprintf(text, text_size, "%s '%s'",
		 proof->identity_known ? "wrong pre-shared key for identity" : "unknown identity",
		 proof->identity);
	return -EACCES;
}

static int explain_certificate(SSL *ssl, char *text, size_t text_size)
{
	snprintf(text, text_size, "the other side's certificate: %s",
		 X509_verify_cert_error_string(SSL_get_verify_result(ssl)));
	return -EACCES;
}

int tls_explain_failure(SSL *ssl, const struct tls_proof *proof, char *text, size_t text_size)
{
	unsigned long error = first_tls_error();
	int alert = received_alert(error), result = -EPROTO;
	bool psk = tls_context_has_psk(proof->tls);

	if (alert)
		return explain_alert(alert, proof, text, text_size);
	switch (ERR_GET_LIB(error) == ERR_LIB_SSL ? ERR_GET_REASON(error) : 0) {
	case SSL_R_BINDER_DOES_NOT_VERIFY:
	case SSL_R_PSK_IDENTITY_NOT_FOUND:
		result = explain_wrong_key(proof, text, text_size);
		break;
	case SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM:
	case SSL_R_NO_SHARED_CIPHER:
	case SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC:
	case SSL_R_DIGEST_CHECK_FAILED:
		if (psk && !SSL_is_init_finished(ssl))
			result = explain_wrong_key(proof, text, text_size);
		else
			snprintf(text, text_size, "TLS: %s", reason_words(error));
		break;
	case SSL_R_CERTIFICATE_VERIFY_FAILED:
		result = explain_certificate(ssl, text, text_size);
		break;
	case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
		snprintf(text, text_size, "the other side showed no certificate");
		result = -EACCES;
		break;
	case SSL_R_WRONG_VERSION_NUMBER:
	case SSL_R_HTTP_REQUEST:
	case SSL_R_HTTPS_PROXY_REQUEST:
	case SSL_R_BAD_RECORD_TYPE:
		snprintf(text, text_size, "what the other side sent is not TLS");
		break;
	case SSL_R_UNSUPPORTED_PROTOCOL:
	case SSL_R_VERSION_TOO_LOW:
		snprintf(text, text_size, "the other side's version of TLS is too old");
		break;
	default:
		snprintf(text, text_size, "TLS: %s", reason_words(error));
	}
	return result;
}
