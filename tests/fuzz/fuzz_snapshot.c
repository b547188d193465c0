/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever a store returns: names, headers, indexes, map pages, manifests. The first byte says which; with
 * its high bit set the checksums are made right first, so that the rules behind them are reached.
 */
#include <stdlib.h>
#include <string.h>

#include "daemon/snapshot/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct id128 volume = {{1}};
static const struct snapfmt_ref ref = {{{2}}, 3, 0};

static void seal_header(struct snapfmt_header_wire *wire, enum snapfmt_kind kind)
{
	wire->magic = to_be32(SNAPFMT_MAGIC);
	wire->version = to_be16(SNAPFMT_VERSION);
	wire->kind = to_be16((uint16_t)kind);
	wire->volume = volume;
	wire->snapshot = ref.snapshot;
	wire->sequence = to_be64(ref.sequence);
	wire->number = to_be32(ref.number);
	memset(wire->reserved, 0, sizeof(wire->reserved));
	wire->crc = to_be32(crc32c(0, wire, offsetof(struct snapfmt_header_wire, crc)));
}

static void fuzz_manifest(uint8_t *data, size_t size, bool seal)
{
	struct snapfmt_header_wire *header = (void *)data;
	struct snapfmt_facts_wire *facts = (void *)(header + 1);
	struct manifest *manifest = NULL;

	if (seal && size >= SNAPFMT_MANIFEST_HEAD_BYTES) {
		header->size_bytes = to_be64(size);
		header->table_offset = to_be64(SNAPFMT_MANIFEST_HEAD_BYTES);
		header->table_count = to_be32((uint32_t)(size - SNAPFMT_MANIFEST_HEAD_BYTES));
		header->table_crc = to_be32(crc32c(0, data + SNAPFMT_MANIFEST_HEAD_BYTES,
						   size - SNAPFMT_MANIFEST_HEAD_BYTES));
		header->flags = to_be32(0);
		seal_header(header, SNAPFMT_MANIFEST);
		memset(facts->reserved, 0, sizeof(facts->reserved));
		facts->chunk_bytes = to_be32(SNAPFMT_CHUNK_BYTES);
		facts->body_bytes = to_be64(size - SNAPFMT_MANIFEST_HEAD_BYTES);
		snapfmt_facts_seal(facts);
	}
	if (!manifest_decode(data, size, &volume, &ref, &manifest)) {
		for (unsigned i = 0; i < manifest->page_count; i++)
			if (manifest->pages[i].object >= manifest->object_count)
				abort();
		manifest_free(manifest);
	}
}

static void fuzz_pack(uint8_t *data, size_t size, bool seal)
{
	struct snapfmt_header header;

	if (size < sizeof(struct snapfmt_header_wire))
		return;
	if (seal)
		seal_header((void *)data, SNAPFMT_PACK);
	if (snapfmt_header_decode((void *)data, SNAPFMT_PACK, &volume, &ref, &header))
		return;
	if (header.table_offset + header.table_count * sizeof(struct snapfmt_index_wire) +
		    header.padding_bytes !=
	    header.size_bytes)
		abort();
	if (header.size_bytes <= size)
		snapfmt_index_invalid(&header, (void *)(data + header.table_offset));
}

static void fuzz_page(uint8_t *data, size_t size, bool seal)
{
	static struct snapfmt_page page;
	struct snapfmt_page_wire *wire = (void *)data;

	if (snapfmt_page_body_decode(data, size, 1, 2 * SNAPFMT_PAGE_BYTES, &page) == NULL)
		for (unsigned i = 0; i < SNAPFMT_PAGE_CHUNKS; i++)
			if (page.entries[i].stored_bytes > SNAPFMT_CHUNK_BYTES)
				abort();
	if (seal && size >= sizeof(*wire))
		wire->crc = to_be32(crc32c(0, wire, offsetof(struct snapfmt_page_wire, crc)));
	snapfmt_page_header_invalid(data, size, 1);
}

static void fuzz_name(const uint8_t *data, size_t size)
{
	char name[SNAPFMT_NAME_BYTES + 32], again[SNAPFMT_NAME_BYTES];
	enum snapfmt_kind kind;
	struct id128 uuid;
	struct snapfmt_ref parsed;

	if (size >= sizeof(name))
		size = sizeof(name) - 1;
	memcpy(name, data, size);
	name[size] = '\0';
	if (!snapfmt_name_parse(name, &kind, &uuid, &parsed))
		return;
	snapfmt_name(kind, &uuid, &parsed, again);
	if (strcmp(name, again))
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
	switch (data[0] % 4) {
	case 0:
		fuzz_manifest(copy, size - 1, seal);
		break;
	case 1:
		fuzz_pack(copy, size - 1, seal);
		break;
	case 2:
		fuzz_page(copy, size - 1, seal);
		break;
	default:
		fuzz_name(copy, size - 1);
	}
	free(copy);
	return 0;
}
