// SPDX-License-Identifier: Apache-2.0
/* The files of a volume, by protocol/metadata.md. */
#include "tests/sim/spec.h"

#include <stdio.h>
#include <string.h>

#define PAGE         4096u
#define PAGE_BITS    32512u
#define REGION_BYTES 1048576u
#define SLOTS        3u
#define COPIES       2u

uint32_t spec_crc32c(uint32_t crc, const void *data, size_t length)
{
	static uint32_t table[256]; /* made by the first who asks */
	const uint8_t *p = data;

	for (uint32_t i = 255; table[1] == 0 && i > 0; i--) {
		table[i] = i;
		for (unsigned bit = 0; bit < 8; bit++)
			table[i] = table[i] >> 1 ^ (table[i] & 1 ? UINT32_C(0x82f63b78) : 0);
	}
	crc = ~crc;
	while (length-- > 0)
		crc = table[(crc ^ *p++) & 255] ^ crc >> 8;
	return ~crc;
}

uint64_t spec_be(const uint8_t *at, unsigned bytes)
{
	uint64_t value = 0;

	while (bytes-- > 0)
		value = value << 8 | *at++;
	return value;
}

static bool is_super(const uint8_t page[PAGE])
{
	return memcmp(page, "OFSSUP01", 8) == 0 && spec_be(page + 8, 4) == 1 &&
	       spec_be(page + 16, 8) != 0 && spec_be(page + 4092, 4) == spec_crc32c(0, page, 4092);
}

bool spec_volume_read(const struct env *env, const char *state, struct spec_volume *volume)
{
	uint8_t page[PAGE];
	char path[128];

	*volume = (struct spec_volume){.env = env};
	snprintf(path, sizeof(path), "%s/super", state);
	for (unsigned i = 0; i < SLOTS * COPIES; i++) {
		if (!sim_file_peek(env, path, page, PAGE, i * PAGE) || !is_super(page) ||
		    spec_be(page + 16, 8) <= volume->sequence)
			continue;
		volume->flags = (unsigned)spec_be(page + 12, 4);
		volume->sequence = spec_be(page + 16, 8);
		memcpy(volume->uuid, page + 24, 16);
		volume->size_bytes = spec_be(page + 40, 8);
		volume->primary = spec_be(page + 64, 2) == 1;
		volume->disk = (unsigned)spec_be(page + 66, 2);
		volume->maps = (unsigned)spec_be(page + 68, 4);
		memcpy(volume->current, page + 72, 16);
		memcpy(volume->base, page + 88, 16);
		memcpy(volume->snapshot, page + 248, 16);
	}
	return volume->sequence != 0;
}

static uint64_t pages_for(uint64_t bits)
{
	return (bits + PAGE_BITS - 1) / PAGE_BITS;
}

/* A page that is not valid counts as all ones. */
static bool bit(const struct spec_volume *volume, const char *state, enum spec_map map,
		uint64_t first_page, uint64_t number)
{
	uint64_t in_kind = number / PAGE_BITS, at = number % PAGE_BITS;
	uint8_t page[PAGE];
	char path[128];
	uint32_t crc;

	snprintf(path, sizeof(path), "%s/maps%s", state, volume->maps == 1 ? ".1" : "");
	if (!sim_file_peek(volume->env, path, page, PAGE, (first_page + in_kind) * PAGE))
		return true;
	crc = spec_crc32c(spec_crc32c(0, page, 28), page + 32, PAGE - 32);
	if (memcmp(page, "OFSMAP01", 8) != 0 || spec_be(page + 8, 2) != 1 ||
	    spec_be(page + 10, 2) != map || spec_be(page + 12, 4) != in_kind ||
	    spec_be(page + 28, 4) != crc)
		return true;
	return page[32 + at / 8] & 1u << at % 8;
}

bool spec_dirty(const struct spec_volume *volume, const char *state, enum spec_map consumer,
		uint64_t offset)
{
	uint64_t regions = (volume->size_bytes + REGION_BYTES - 1) / REGION_BYTES;
	uint64_t peer_blocks = (volume->size_bytes + 4095) / 4096;
	uint64_t intent_pages = pages_for(regions), peer_pages = pages_for(peer_blocks);
	bool peer = consumer == SPEC_PEER;
	/* A secondary's intent bits may stand for what its peer sent: for the store alone. */
	bool intents =
		!(volume->flags & SPEC_CLEAN) && !(peer && volume->flags & SPEC_INTENT_APPLIED);

	if (volume->flags & (peer ? SPEC_PEER_ALL : SPEC_STORE_ALL) ||
	    volume->flags & SPEC_CREATING)
		return true;
	if (intents && bit(volume, state, SPEC_INTENT, 0, offset / REGION_BYTES))
		return true;
	return bit(volume, state, consumer, peer ? intent_pages : intent_pages + peer_pages,
		   offset / (peer ? 4096 : 65536));
}
