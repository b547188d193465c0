/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cryptfmt: what an encrypted object looks like in the store, and the objects that hold wrapped keys.
 * Layout, sizes and validation only; the cipher is daemon/store/cipher.h. Specification: snapshot.md,
 * section 9.
 */
#ifndef OFFSITE_PROTOCOL_CRYPT_H
#define OFFSITE_PROTOCOL_CRYPT_H

#include "protocol/wire.h"

#define CRYPTFMT_MAGIC     0x4f465345u /* "OFSE" */
#define CRYPTFMT_KEY_MAGIC 0x4f46534bu /* "OFSK" */
#define CRYPTFMT_VERSION   1u

#define CRYPTFMT_SEGMENT_BYTES 16384u
#define CRYPTFMT_NONCE_BYTES   12u
#define CRYPTFMT_TAG_BYTES     16u
#define CRYPTFMT_KEY_BYTES     32u
#define CRYPTFMT_SALT_BYTES    32u
#define CRYPTFMT_LABEL_BYTES   64u
#define CRYPTFMT_TEXT_MAX      4096u /* what a key command printed */
#define CRYPTFMT_COST_MIN      10u   /* log2 of scrypt's N */
#define CRYPTFMT_COST_MAX      18u
#define CRYPTFMT_NAME_BYTES    128 /* longest name of a key object and its NUL fit */

/* A segment as stored: nonce, ciphertext, tag. */
#define CRYPTFMT_SEGMENT_MORE (CRYPTFMT_NONCE_BYTES + CRYPTFMT_TAG_BYTES)
#define CRYPTFMT_STORED_BYTES (CRYPTFMT_SEGMENT_BYTES + CRYPTFMT_SEGMENT_MORE)

/* ---- objects ---- */

struct cryptfmt_header_wire {
	be32_t magic;
	be16_t version;
	be16_t reserved;
	struct id128 key; /* the data key's identifier */
	be32_t reserved2;
	be32_t crc; /* CRC32C of the 28 bytes before */
};
_Static_assert(sizeof(struct cryptfmt_header_wire) == 32, "layout");

void cryptfmt_header_encode(const struct id128 *key, struct cryptfmt_header_wire *wire);
/* NULL, or what is wrong. */
const char *cryptfmt_header_decode(const struct cryptfmt_header_wire *wire, struct id128 *key);
/* Whether something begins as an encrypted object does. */
bool cryptfmt_is_encrypted(const void *data, size_t length);

/* Size in the store of an object of so many bytes, and back (0 for what is too short to be one). */
uint64_t cryptfmt_stored_bytes(uint64_t plain_bytes);
uint64_t cryptfmt_plain_bytes(uint64_t stored_bytes);
/* How long an object of so many bytes is made with zeroes at its end, before it is encrypted. */
uint64_t cryptfmt_padded_bytes(uint64_t plain_bytes);

/* ---- wrapped keys ---- */

enum cryptfmt_method {
	CRYPTFMT_PASSPHRASE = 1, /* scrypt */
	CRYPTFMT_KEY_FILE = 2,   /* HKDF */
	CRYPTFMT_COMMAND = 3,    /* text is for the command */
};

struct cryptfmt_key_wire { /* followed by text */
	be32_t magic;
	be16_t version;
	be16_t method;
	struct id128 volume;
	struct id128 key;  /* the data key's identifier */
	struct id128 slot; /* this object's own */
	be64_t created_ns; /* when the data key was made */
	uint8_t salt[CRYPTFMT_SALT_BYTES];
	be32_t cost; /* PASSPHRASE: log2 of scrypt's N; else 0 */
	be32_t text_bytes;
	char label[CRYPTFMT_LABEL_BYTES]; /* zero-terminated and padded */
	uint8_t reserved[28];
	/* Up to here it is authenticated. */
	uint8_t nonce[CRYPTFMT_NONCE_BYTES];
	uint8_t wrapped[CRYPTFMT_KEY_BYTES + CRYPTFMT_TAG_BYTES];
	be32_t crc; /* CRC32C of all bytes before, then of the text */
};
_Static_assert(sizeof(struct cryptfmt_key_wire) == 260, "layout");
_Static_assert(offsetof(struct cryptfmt_key_wire, salt) == 64, "layout");
_Static_assert(offsetof(struct cryptfmt_key_wire, nonce) == 196, "layout");

#define CRYPTFMT_KEY_MAX (sizeof(struct cryptfmt_key_wire) + CRYPTFMT_TEXT_MAX)

/* "VOLUME/keys/KEY-SLOT", and the prefix of all. */
void cryptfmt_key_name(const struct id128 *volume, const struct id128 *key,
		       const struct id128 *slot, char name[CRYPTFMT_NAME_BYTES]);
void cryptfmt_key_prefix(const struct id128 *volume, char name[CRYPTFMT_NAME_BYTES]);
bool cryptfmt_key_name_parse(const char *name, struct id128 *volume, struct id128 *key,
			     struct id128 *slot);

void cryptfmt_key_seal(struct cryptfmt_key_wire *wire, const char *text); /* sets crc */
/* A whole key object as it was read under its name: NULL, or what is wrong. */
const char *cryptfmt_key_invalid(const uint8_t *data, size_t length, const struct id128 *volume,
				 const struct id128 *key, const struct id128 *slot);

#endif
