/* SPDX-License-Identifier: Apache-2.0 */
/*
 * secret: what opens an encrypted repository: a passphrase, a key file, or a command that wraps and
 * unwraps (a key management service, a vault). Opening and using it blocks: helper threads and start-up
 * only.
 */
#ifndef OFFSITE_STORE_SECRET_H
#define OFFSITE_STORE_SECRET_H

#include "protocol/crypt.h"

#define SECRET_BYTES_MAX 4096

struct secret {
	enum cryptfmt_method method;
	uint8_t bytes[SECRET_BYTES_MAX]; /* PASSPHRASE, KEY_FILE */
	size_t length;
	char *command; /* COMMAND: for /bin/sh -c */
	uint32_t cost; /* PASSPHRASE: log2 of scrypt's N for what is wrapped anew */
};

/* Where a secret comes from: at most one is not NULL. */
struct secret_source {
	const char *passphrase_file; /* its first line */
	const char *key_file;        /* all of it, at least 32 bytes */
	const char *key_command;     /* see secret_run() */
};
static inline bool secret_source_given(const struct secret_source *source)
{
	return source->passphrase_file || source->key_file || source->key_command;
}

/* 0 and *secret (NULL if none is given), or -errno and one line in why. */
int secret_open(const struct secret_source *source, struct secret **secret, char *why,
		size_t why_size);
void secret_free(struct secret *secret); /* NULL is allowed */

/* Runs the command with OFFSITE_KEY_ACTION=action ("wrap" or "unwrap") and input as one line on its
 * standard input; its output without the line's end goes to output, zero-terminated. 0, -EBADE if
 * it fails or prints nothing or too much, -ETIMEDOUT after a minute. */
int secret_run(const struct secret *secret, const char *action, const char *input, char *output,
	       size_t output_size);

#endif
