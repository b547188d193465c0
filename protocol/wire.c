// SPDX-License-Identifier: Apache-2.0
#include "protocol/wire.h"

#include <isa-l/crc.h>
#include <isa-l/mem_routines.h>
#include <string.h>

bool id128_is_zero(const struct id128 *id)
{
	return bytes_are_zero(id->bytes, sizeof(id->bytes));
}

bool id128_equal(const struct id128 *a, const struct id128 *b)
{
	return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

void id128_format(const struct id128 *id, char text[ID128_TEXT_BYTES])
{
	static const char digits[] = "0123456789abcdef";

	for (unsigned i = 0; i < sizeof(id->bytes); i++) {
		text[2 * i] = digits[id->bytes[i] >> 4];
		text[2 * i + 1] = digits[id->bytes[i] & 15];
	}
	text[ID128_TEXT_BYTES - 1] = '\0';
}

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

bool id128_parse(const char *text, size_t length, struct id128 *id)
{
	if (length != ID128_TEXT_BYTES - 1)
		return false;
	for (unsigned i = 0; i < sizeof(id->bytes); i++) {
		int high = hex_value(text[2 * i]);
		int low = hex_value(text[2 * i + 1]);

		if (high < 0 || low < 0)
			return false;
		id->bytes[i] = (uint8_t)(high << 4 | low);
	}
	return true;
}

uint32_t crc32c(uint32_t crc, const void *data, size_t length_bytes)
{
	/* ISA-L takes and gives the register itself (no inversions) and an int length. */
	const uint8_t *p = data;

	crc = ~crc;
	while (length_bytes > 0) {
		int n = length_bytes > 1u << 30 ? 1 << 30 : (int)length_bytes;

		/* The parameter lacks const; the function does not write. */
		crc = crc32_iscsi((unsigned char *)(uintptr_t)p, n, crc);
		p += n;
		length_bytes -= (size_t)n;
	}
	return ~crc;
}

bool bytes_are_zero(const void *data, size_t length_bytes)
{
	return isal_zero_detect((void *)(uintptr_t)data, length_bytes) == 0;
}
