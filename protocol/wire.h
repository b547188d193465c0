/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire: big-endian integers as distinct types, so that a missed conversion does not compile, and
 * CRC32C. Every structure on the wire or on disk is built from these.
 */
#ifndef OFFSITE_PROTOCOL_WIRE_H
#define OFFSITE_PROTOCOL_WIRE_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
	uint16_t be;
} __attribute__((packed)) be16_t;
typedef struct {
	uint32_t be;
} __attribute__((packed)) be32_t;
typedef struct {
	uint64_t be;
} __attribute__((packed)) be64_t;

static inline uint16_t from_be16(be16_t v)
{
	return be16toh(v.be);
}
static inline uint32_t from_be32(be32_t v)
{
	return be32toh(v.be);
}
static inline uint64_t from_be64(be64_t v)
{
	return be64toh(v.be);
}
static inline be16_t to_be16(uint16_t v)
{
	return (be16_t){htobe16(v)};
}
static inline be32_t to_be32(uint32_t v)
{
	return (be32_t){htobe32(v)};
}
static inline be64_t to_be64(uint64_t v)
{
	return (be64_t){htobe64(v)};
}

/* 128-bit identifiers (volumes, generations, snapshots, objects). All zero: none. */
struct id128 {
	uint8_t bytes[16];
};
_Static_assert(sizeof(struct id128) == 16, "no padding");

#define ID128_TEXT_BYTES 33 /* 32 hexadecimal digits and a NUL */
bool id128_is_zero(const struct id128 *id);
bool id128_equal(const struct id128 *a, const struct id128 *b);
void id128_format(const struct id128 *id, char text[ID128_TEXT_BYTES]);
/* Exactly 32 lower-case hexadecimal digits. */
bool id128_parse(const char *text, size_t length, struct id128 *id);

/* CRC-32C (Castagnoli; RFC 3720 section 12.1), by ISA-L. crc: 0 to start, or the last result to go on. */
uint32_t crc32c(uint32_t crc, const void *data, size_t length_bytes);

/* True if all bytes are zero. */
bool bytes_are_zero(const void *data, size_t length_bytes);

#endif
