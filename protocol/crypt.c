/* SPDX-License-Identifier: Apache-2.0 */
/* Encrypted objects and wrapped keys: layout, sizes, validation. See crypt.h. */
#include "protocol/crypt.h"

#include <stdio.h>
#include <string.h>

/* ---- objects ------------------------------------------------------------------------------- */

void cryptfmt_header_encode(const struct id128 *key, struct cryptfmt_header_wire *wire)
{
	*wire = (struct cryptfmt_header_wire){
		.magic = to_be32(CRYPTFMT_MAGIC),
		.version = to_be16(CRYPTFMT_VERSION),
		.key = *key,
	};
	wire->crc = to_be32(crc32c(0, wire, offsetof(struct cryptfmt_header_wire, crc)));
}

const char *cryptfmt_header_decode(const struct cryptfmt_header_wire *wire, struct id128 *key)
{
	if (from_be32(wire->magic) != CRYPTFMT_MAGIC)
		return "is not encrypted";
	if (from_be32(wire->crc) != crc32c(0, wire, offsetof(struct cryptfmt_header_wire, crc)))
		return "checksum of the encryption's header";
	if (from_be16(wire->version) != CRYPTFMT_VERSION)
		return "unknown version of encryption";
	if (from_be16(wire->reserved) || from_be32(wire->reserved2))
		return "reserved bytes are not zero";
	*key = wire->key;
	return NULL;
}

bool cryptfmt_is_encrypted(const void *data, size_t length)
{
	be32_t magic;

	if (length < sizeof(magic))
		return false;
	memcpy(&magic, data, sizeof(magic));
	return from_be32(magic) == CRYPTFMT_MAGIC;
}

uint64_t cryptfmt_stored_bytes(uint64_t plain_bytes)
{
	uint64_t segments = (plain_bytes + CRYPTFMT_SEGMENT_BYTES - 1) / CRYPTFMT_SEGMENT_BYTES;

	return sizeof(struct cryptfmt_header_wire) + plain_bytes + segments * CRYPTFMT_SEGMENT_MORE;
}

uint64_t cryptfmt_plain_bytes(uint64_t stored_bytes)
{
	uint64_t body, rest;

	if (stored_bytes <= sizeof(struct cryptfmt_header_wire))
		return 0;
	body = stored_bytes - sizeof(struct cryptfmt_header_wire);
	rest = body % CRYPTFMT_STORED_BYTES;
	return body / CRYPTFMT_STORED_BYTES * CRYPTFMT_SEGMENT_BYTES +
	       (rest > CRYPTFMT_SEGMENT_MORE ? rest - CRYPTFMT_SEGMENT_MORE : 0);
}

/* Padmé (Nikitin et al., 2019): as many low bits are zero as cost at most 12 %, so that the size of an
 * object of n bytes tells O(log log n) bits. */
uint64_t cryptfmt_padded_bytes(uint64_t plain_bytes)
{
	const uint64_t least = 4096;
	unsigned exponent, kept;
	uint64_t mask;

	if (plain_bytes <= least)
		return least;
	exponent = 63u - (unsigned)__builtin_clzll(plain_bytes);
	kept = 32u - (unsigned)__builtin_clz(exponent);
	mask = (1ull << (exponent - kept)) - 1;
	return (plain_bytes + mask) & ~mask;
}

/* ---- wrapped keys -------------------------------------------------------------------------- */

#define FOLDER "/keys/"

void cryptfmt_key_prefix(const struct id128 *volume, char name[CRYPTFMT_NAME_BYTES])
{
	char text[ID128_TEXT_BYTES];

	id128_format(volume, text);
	snprintf(name, CRYPTFMT_NAME_BYTES, "%s" FOLDER, text);
}

void cryptfmt_key_name(const struct id128 *volume, const struct id128 *key,
		       const struct id128 *slot, char name[CRYPTFMT_NAME_BYTES])
{
	char volume_text[ID128_TEXT_BYTES], key_text[ID128_TEXT_BYTES], slot_text[ID128_TEXT_BYTES];

	id128_format(volume, volume_text);
	id128_format(key, key_text);
	id128_format(slot, slot_text);
	snprintf(name, CRYPTFMT_NAME_BYTES, "%s" FOLDER "%s-%s", volume_text, key_text, slot_text);
}

bool cryptfmt_key_name_parse(const char *name, struct id128 *volume, struct id128 *key,
			     struct id128 *slot)
{
	const size_t digits = ID128_TEXT_BYTES - 1, folder = strlen(FOLDER);
	const char *at = name + digits + folder;

	return strlen(name) == 3 * digits + folder + 1 && id128_parse(name, digits, volume) &&
	       !strncmp(name + digits, FOLDER, folder) && id128_parse(at, digits, key) &&
	       at[digits] == '-' && id128_parse(at + digits + 1, digits, slot);
}

static uint32_t key_crc(const struct cryptfmt_key_wire *wire, const void *text, size_t text_bytes)
{
	uint32_t crc = crc32c(0, wire, offsetof(struct cryptfmt_key_wire, crc));

	return text_bytes ? crc32c(crc, text, text_bytes) : crc;
}

void cryptfmt_key_seal(struct cryptfmt_key_wire *wire, const char *text)
{
	wire->crc = to_be32(key_crc(wire, text, from_be32(wire->text_bytes)));
}

static const char *method_invalid(const struct cryptfmt_key_wire *wire)
{
	uint32_t cost = from_be32(wire->cost), text = from_be32(wire->text_bytes);

	switch (from_be16(wire->method)) {
	case CRYPTFMT_PASSPHRASE:
		if (cost < CRYPTFMT_COST_MIN || cost > CRYPTFMT_COST_MAX)
			return "bad cost of scrypt";
		return text ? "text without a command" : NULL;
	case CRYPTFMT_KEY_FILE:
		return cost || text ? "cost or text without use" : NULL;
	case CRYPTFMT_COMMAND:
		return cost || !text ? "command without text" : NULL;
	default:
		return "unknown way of wrapping";
	}
}

const char *cryptfmt_key_invalid(const uint8_t *data, size_t length, const struct id128 *volume,
				 const struct id128 *key, const struct id128 *slot)
{
	const struct cryptfmt_key_wire *wire = (const void *)data;
	const char *end;

	if (length < sizeof(*wire))
		return "truncated";
	if (from_be32(wire->magic) != CRYPTFMT_KEY_MAGIC)
		return "wrong magic";
	if (from_be32(wire->text_bytes) > CRYPTFMT_TEXT_MAX ||
	    length != sizeof(*wire) + from_be32(wire->text_bytes))
		return "bad length";
	if (from_be32(wire->crc) !=
	    key_crc(wire, data + sizeof(*wire), from_be32(wire->text_bytes)))
		return "checksum";
	if (from_be16(wire->version) != CRYPTFMT_VERSION)
		return "unknown version";
	if (!bytes_are_zero(wire->reserved, sizeof(wire->reserved)))
		return "reserved bytes are not zero";
	if (!id128_equal(&wire->volume, volume) || !id128_equal(&wire->key, key) ||
	    !id128_equal(&wire->slot, slot))
		return "is another object than its name says";
	end = memchr(wire->label, 0, sizeof(wire->label));
	if (!end || !bytes_are_zero(end, (size_t)(wire->label + sizeof(wire->label) - end)))
		return "bad label";
	return method_invalid(wire);
}
