/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cipher: the cryptography of encrypted stores, all of it: keys of objects, sealing and opening them,
 * wrapping data keys. Pure functions on memory (OpenSSL); safe on any thread. Format: protocol/crypt.h;
 * specification and reasons: protocol/snapshot.md, section 9.
 */
#ifndef OFFSITE_STORE_CIPHER_H
#define OFFSITE_STORE_CIPHER_H

#include <sys/uio.h>

#include "protocol/crypt.h"

struct cipher_key {
	uint8_t bytes[CRYPTFMT_KEY_BYTES];
};

/* A volume's data key. */
struct data_key {
	struct id128 id;
	uint64_t created_ns;
	struct cipher_key key;
};

/* The key of one object, by its full name. */
void cipher_object_key(const struct cipher_key *data_key, const char *name,
		       struct cipher_key *object_key);

/* The object as it is stored: cryptfmt_stored_bytes() of the iov's sum, into out. nonces: random bytes,
 * CRYPTFMT_NONCE_BYTES a segment, never used before with this key. */
void cipher_seal(const struct data_key *key, const char *name, const struct iovec *iov,
		 unsigned count, const uint8_t *nonces, uint8_t *out);

/* The same where it lies: what iov names is what is stored from then on, in the order of parts (up to
 * cipher_parts_max()), between pieces of marks (what the object is larger by). Returns how many parts. */
unsigned cipher_seal_spent(const struct data_key *key, const char *name, const struct iovec *iov,
			   unsigned count, const uint8_t *nonces, uint8_t *marks,
			   struct iovec *parts);
unsigned cipher_parts_max(uint64_t segments, unsigned count);

/* Opens consecutive segments as stored (without the object's header), the first of which has the number
 * first. Returns the plain bytes, or -EBADMSG: not sealed with this key, under this name, or damaged. */
int64_t cipher_open(const struct cipher_key *object_key, uint64_t first, const uint8_t *stored,
		    size_t length, uint8_t *out);

/* The same, but of the plain bytes only those from skip on, at most so many: returns how many there are. What is
 * in out after an error is worth nothing. */
int64_t cipher_open_part(const struct cipher_key *object_key, uint64_t first, const uint8_t *stored,
			 size_t length, uint64_t skip, uint64_t most, uint8_t *out);

/* From a secret to the key that wraps. -EINVAL: the library refuses the cost (memory). */
int cipher_from_passphrase(const uint8_t *secret, size_t length,
			   const uint8_t salt[CRYPTFMT_SALT_BYTES], unsigned cost,
			   struct cipher_key *key);
void cipher_from_key_file(const uint8_t *secret, size_t length,
			  const uint8_t salt[CRYPTFMT_SALT_BYTES], struct cipher_key *key);

/* Everything else of wire is set, but for the crc. */
void cipher_wrap(const struct cipher_key *wrapping, const struct cipher_key *key,
		 struct cryptfmt_key_wire *wire);
bool cipher_unwrap(const struct cipher_key *wrapping, const struct cryptfmt_key_wire *wire,
		   struct cipher_key *key);

#endif
