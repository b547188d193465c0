// SPDX-License-Identifier: Apache-2.0
/*
 * Fuzzes the metadata decoders. Byte 0: bit 0 chooses superblock or page, bit 1 repairs magic and
 * checksum, so that the checks behind them are reached. What is accepted must survive a round trip.
 */
#include <assert.h>
#include <string.h>
#include "protocol/metadata.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_super(const uint8_t *data, size_t size, bool repair)
{
	struct metadata_super_wire wire = {0}, again;
	struct metadata_super super, back;

	memcpy(&wire, data, size < sizeof(wire) ? size : sizeof(wire));
	if (repair) {
		wire.magic = to_be64(METADATA_SUPER_MAGIC);
		wire.version = to_be32(METADATA_VERSION);
		wire.peer_block_bytes = to_be32(METADATA_PEER_BLOCK_BYTES);
		wire.store_block_bytes = to_be32(METADATA_STORE_BLOCK_BYTES);
		wire.region_bytes = to_be32(METADATA_REGION_BYTES);
		wire.page_payload_bytes = to_be32(METADATA_PAYLOAD_BYTES);
		wire.crc = to_be32(crc32c(0, &wire, offsetof(struct metadata_super_wire, crc)));
	}
	if (metadata_super_decode(&wire, &super) != NULL)
		return;
	assert(super.size_bytes > 0 && super.size_bytes % 4096 == 0);
	assert(super.role < METADATA_ROLES && super.disk < METADATA_DISKS);
	assert(memchr(super.backing, 0, sizeof(super.backing)) != NULL);
	metadata_super_encode(&super, &again);
	assert(metadata_super_decode(&again, &back) == NULL);
	assert(back.sequence == super.sequence && back.lsn == super.lsn);
}

static void fuzz_page(const uint8_t *data, size_t size, bool repair)
{
	struct metadata_page_wire wire = {0}, again;
	uint64_t words[METADATA_PAGE_WORDS];

	memcpy(&wire, data, size < sizeof(wire) ? size : sizeof(wire));
	if (repair) {
		wire.magic = to_be64(METADATA_PAGE_MAGIC);
		wire.version = to_be16(METADATA_VERSION);
		wire.kind = to_be16(METADATA_PEER_MAP);
		wire.number = to_be32(1);
		wire.crc =
			to_be32(crc32c(crc32c(0, &wire, offsetof(struct metadata_page_wire, crc)),
				       wire.payload, sizeof(wire.payload)));
	}
	if (metadata_page_decode(&wire, METADATA_PEER_MAP, 1, words) != NULL)
		return;
	metadata_page_encode(METADATA_PEER_MAP, 1, words, &again);
	assert(memcmp(&wire, &again, sizeof(wire)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 1)
		return 0;
	if (data[0] & 1)
		fuzz_page(data + 1, size - 1, data[0] & 2);
	else
		fuzz_super(data + 1, size - 1, data[0] & 2);
	return 0;
}
