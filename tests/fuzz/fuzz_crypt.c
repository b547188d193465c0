/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an encrypted store may return: object headers, key objects, their names, and rows of segments. The
 * first byte says which; with its high bit set checksums and names are made right first.
 */
#include <stdlib.h>
#include <string.h>

#include "daemon/store/cipher.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct id128 volume = {{1}}, key_id = {{2}}, slot = {{3}};

static void fuzz_header(uint8_t *data, size_t size, bool seal)
{
	struct cryptfmt_header_wire *wire = (void *)data;
	struct id128 id;

	if (size < sizeof(*wire))
		return;
	if (seal)
		wire->crc = to_be32(crc32c(0, wire, offsetof(struct cryptfmt_header_wire, crc)));
	if (!cryptfmt_header_decode(wire, &id) && !cryptfmt_is_encrypted(data, size))
		abort();
}

static void fuzz_key(uint8_t *data, size_t size, bool seal)
{
	struct cryptfmt_key_wire *wire = (void *)data;
	struct cipher_key wrapping = {{4}}, key;

	if (seal && size >= sizeof(*wire)) {
		wire->magic = to_be32(CRYPTFMT_KEY_MAGIC);
		wire->version = to_be16(CRYPTFMT_VERSION);
		wire->volume = volume;
		wire->key = key_id;
		wire->slot = slot;
		memset(wire->reserved, 0, sizeof(wire->reserved));
		wire->text_bytes = to_be32((uint32_t)(size - sizeof(*wire)));
		cryptfmt_key_seal(wire, (const char *)(wire + 1));
	}
	if (cryptfmt_key_invalid(data, size, &volume, &key_id, &slot))
		return;
	if (from_be32(wire->text_bytes) > CRYPTFMT_TEXT_MAX ||
	    from_be32(wire->cost) > CRYPTFMT_COST_MAX ||
	    !memchr(wire->label, 0, sizeof(wire->label)))
		abort();
	if (cipher_unwrap(&wrapping, wire, &key))
		abort(); /* nobody guesses a tag */
}

static void fuzz_segments(const uint8_t *data, size_t size)
{
	const struct cipher_key key = {{5}};
	uint8_t *out = malloc(size + 1);

	if (cipher_open(&key, size, data, size, out) > 0)
		abort();
	free(out);
}

static void fuzz_name(const uint8_t *data, size_t size)
{
	char name[CRYPTFMT_NAME_BYTES + 32], again[CRYPTFMT_NAME_BYTES];
	struct id128 v, k, s;

	if (size >= sizeof(name))
		size = sizeof(name) - 1;
	memcpy(name, data, size);
	name[size] = '\0';
	if (!cryptfmt_key_name_parse(name, &v, &k, &s))
		return;
	cryptfmt_key_name(&v, &k, &s, again);
	if (strcmp(name, again))
		abort();
}

static void fuzz_sizes(const uint8_t *data, size_t size)
{
	uint64_t plain;

	if (size < sizeof(plain))
		return;
	memcpy(&plain, data, sizeof(plain));
	plain >>= 16; /* no object is larger */
	if (plain && cryptfmt_plain_bytes(cryptfmt_stored_bytes(plain)) != plain)
		abort();
	if (cryptfmt_padded_bytes(plain) < plain || cryptfmt_plain_bytes(plain) > plain)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *copy;
	bool seal;

	if (!size)
		return 0;
	copy = malloc(size);
	memcpy(copy, data + 1, size - 1);
	seal = data[0] & 0x80;
	switch (data[0] % 5) {
	case 0:
		fuzz_header(copy, size - 1, seal);
		break;
	case 1:
		fuzz_key(copy, size - 1, seal);
		break;
	case 2:
		fuzz_segments(copy, size - 1);
		break;
	case 3:
		fuzz_sizes(copy, size - 1);
		break;
	default:
		fuzz_name(copy, size - 1);
	}
	free(copy);
	return 0;
}
