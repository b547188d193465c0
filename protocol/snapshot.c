/* SPDX-License-Identifier: Apache-2.0 */
/* The repository's formats: names, encoding, validation. See snapshot.h and snapshot.md. */
#include "protocol/snapshot.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define HEX_SEQUENCE 16
#define HEX_NUMBER   8

int snapfmt_ref_compare(const struct snapfmt_ref *a, const struct snapfmt_ref *b)
{
	int order;

	if (a->sequence != b->sequence)
		return a->sequence < b->sequence ? -1 : 1;
	order = memcmp(&a->snapshot, &b->snapshot, sizeof(a->snapshot));
	if (order)
		return order;
	return a->number < b->number ? -1 : a->number > b->number;
}

/* ---- names -------------------------------------------------------------------------------- */

static const char *const kind_folder[] = {
	[SNAPFMT_PACK] = "packs",
	[SNAPFMT_MAPS] = "maps",
	[SNAPFMT_MANIFEST] = "snapshots",
};

void snapfmt_prefix(enum snapfmt_kind kind, const struct id128 *volume,
		    char name[SNAPFMT_NAME_BYTES])
{
	char uuid[ID128_TEXT_BYTES];

	id128_format(volume, uuid);
	snprintf(name, SNAPFMT_NAME_BYTES, "%s/%s/", uuid, kind_folder[kind]);
}

void snapfmt_name(enum snapfmt_kind kind, const struct id128 *volume, const struct snapfmt_ref *ref,
		  char name[SNAPFMT_NAME_BYTES])
{
	char id[ID128_TEXT_BYTES];
	size_t used;

	snapfmt_prefix(kind, volume, name);
	id128_format(&ref->snapshot, id);
	used = strlen(name);
	if (kind == SNAPFMT_MANIFEST)
		snprintf(name + used, SNAPFMT_NAME_BYTES - used, "%016llx-%s",
			 (unsigned long long)ref->sequence, id);
	else
		snprintf(name + used, SNAPFMT_NAME_BYTES - used, "%016llx-%s-%08x",
			 (unsigned long long)ref->sequence, id, ref->number);
}

void snapfmt_pin_name(const struct id128 *volume, const struct snapfmt_ref *ref,
		      const struct id128 *holder, char name[SNAPFMT_NAME_BYTES])
{
	char uuid[ID128_TEXT_BYTES], id[ID128_TEXT_BYTES], holder_id[ID128_TEXT_BYTES] = "";
	const bool held = holder && !id128_is_zero(holder);

	id128_format(volume, uuid);
	if (!ref) {
		snprintf(name, SNAPFMT_NAME_BYTES, "%s/pins/", uuid);
		return;
	}
	id128_format(&ref->snapshot, id);
	if (held)
		id128_format(holder, holder_id);
	snprintf(name, SNAPFMT_NAME_BYTES, "%s/pins/%016llx-%s%s%s", uuid,
		 (unsigned long long)ref->sequence, id, held ? "-" : "", holder_id);
}

#define MARK_SUFFIX "-deleted"

void snapfmt_mark_name(const struct id128 *volume, const struct snapfmt_ref *ref,
		       char name[SNAPFMT_NAME_BYTES])
{
	size_t used;

	snapfmt_name(SNAPFMT_MANIFEST, volume, ref, name);
	used = strlen(name);
	snprintf(name + used, SNAPFMT_NAME_BYTES - used, "%s", MARK_SUFFIX);
}

void snapfmt_claim_name(const struct id128 *volume, const struct snapfmt_ref *ref,
			const struct id128 *base, char name[SNAPFMT_NAME_BYTES])
{
	char uuid[ID128_TEXT_BYTES], id[ID128_TEXT_BYTES], base_id[ID128_TEXT_BYTES];

	id128_format(volume, uuid);
	if (!ref) {
		snprintf(name, SNAPFMT_NAME_BYTES, "%s/claims/", uuid);
		return;
	}
	id128_format(&ref->snapshot, id);
	id128_format(base, base_id);
	snprintf(name, SNAPFMT_NAME_BYTES, "%s/claims/%016llx-%s-%s", uuid,
		 (unsigned long long)ref->sequence, id, base_id);
}

static bool parse_hex(const char *text, unsigned digits, uint64_t *value)
{
	*value = 0;
	for (unsigned i = 0; i < digits; i++) {
		char c = text[i];

		if (c >= '0' && c <= '9')
			*value = *value << 4 | (unsigned)(c - '0');
		else if (c >= 'a' && c <= 'f')
			*value = *value << 4 | (unsigned)(c - 'a' + 10);
		else
			return false;
	}
	return true;
}

bool snapfmt_name_parse(const char *name, enum snapfmt_kind *kind, struct id128 *volume,
			struct snapfmt_ref *ref)
{
	const size_t id_digits = ID128_TEXT_BYTES - 1;
	size_t length = strlen(name), folder = 0, at = id_digits + 1, want;
	uint64_t number = 0;

	if (length <= at || name[id_digits] != '/' || !id128_parse(name, id_digits, volume))
		return false;
	for (*kind = SNAPFMT_PACK; *kind <= SNAPFMT_MANIFEST; (*kind)++) {
		folder = strlen(kind_folder[*kind]);
		if (!strncmp(name + at, kind_folder[*kind], folder) && name[at + folder] == '/')
			break;
	}
	if (*kind > SNAPFMT_MANIFEST)
		return false;
	at += folder + 1;
	want = at + HEX_SEQUENCE + 1 + id_digits;
	if (*kind != SNAPFMT_MANIFEST)
		want += 1 + HEX_NUMBER;
	if (length != want || !parse_hex(name + at, HEX_SEQUENCE, &ref->sequence) ||
	    name[at + HEX_SEQUENCE] != '-')
		return false;
	at += HEX_SEQUENCE + 1;
	if (!id128_parse(name + at, id_digits, &ref->snapshot))
		return false;
	at += id_digits;
	if (*kind != SNAPFMT_MANIFEST &&
	    (name[at] != '-' || !parse_hex(name + at + 1, HEX_NUMBER, &number)))
		return false;
	ref->number = (uint32_t)number;
	return true;
}

bool snapfmt_mark_parse(const char *name, struct id128 *volume, struct snapfmt_ref *ref)
{
	size_t length = strlen(name), suffix = strlen(MARK_SUFFIX);
	char manifest[SNAPFMT_NAME_BYTES];
	enum snapfmt_kind kind;

	if (length <= suffix || length >= sizeof(manifest) ||
	    strcmp(name + length - suffix, MARK_SUFFIX))
		return false;
	memcpy(manifest, name, length - suffix);
	manifest[length - suffix] = '\0';
	return snapfmt_name_parse(manifest, &kind, volume, ref) && kind == SNAPFMT_MANIFEST;
}

/* VOLUME, folder, SEQUENCE, SNAPSHOT; what follows, of so many characters, is rest. */
static bool parse_in_folder(const char *name, const char *folder, struct id128 *volume,
			    struct snapfmt_ref *ref, const char **rest)
{
	const size_t id_digits = ID128_TEXT_BYTES - 1;
	const char *at = name + id_digits;

	*ref = (struct snapfmt_ref){.number = 0};
	if (strlen(name) < id_digits + strlen(folder) + HEX_SEQUENCE + 1 + id_digits ||
	    !id128_parse(name, id_digits, volume) || strncmp(at, folder, strlen(folder)))
		return false;
	at += strlen(folder);
	if (!parse_hex(at, HEX_SEQUENCE, &ref->sequence) || at[HEX_SEQUENCE] != '-')
		return false;
	at += HEX_SEQUENCE + 1;
	*rest = at + id_digits;
	return id128_parse(at, id_digits, &ref->snapshot);
}

/* "-ID", and nothing behind it. */
static bool parse_last_id(const char *rest, struct id128 *id)
{
	const size_t id_digits = ID128_TEXT_BYTES - 1;

	return strlen(rest) == 1 + id_digits && rest[0] == '-' &&
	       id128_parse(rest + 1, id_digits, id);
}

bool snapfmt_pin_parse(const char *name, struct id128 *volume, struct snapfmt_ref *ref,
		       struct id128 *holder)
{
	const char *rest;

	*holder = (struct id128){0};
	if (!parse_in_folder(name, "/pins/", volume, ref, &rest))
		return false;
	return !*rest || (parse_last_id(rest, holder) && !id128_is_zero(holder));
}

bool snapfmt_claim_parse(const char *name, struct id128 *volume, struct snapfmt_ref *ref,
			 struct id128 *base)
{
	const char *rest;

	return parse_in_folder(name, "/claims/", volume, ref, &rest) && parse_last_id(rest, base);
}

/* ---- claim -------------------------------------------------------------------------------- */

void snapfmt_claim_encode(uint64_t created_ns, const char *node_name, const struct id128 *writer,
			  struct snapfmt_claim_wire *wire)
{
	*wire = (struct snapfmt_claim_wire){
		.magic = to_be32(SNAPFMT_CLAIM_MAGIC),
		.version = to_be16(SNAPFMT_VERSION),
		.created_ns = to_be64(created_ns),
		.writer = *writer,
	};
	snprintf(wire->node_name, sizeof(wire->node_name), "%s", node_name);
	wire->crc = to_be32(crc32c(0, wire, offsetof(struct snapfmt_claim_wire, crc)));
}

const char *snapfmt_claim_invalid(const struct snapfmt_claim_wire *wire)
{
	if (from_be32(wire->magic) != SNAPFMT_CLAIM_MAGIC)
		return "bad magic";
	if (from_be32(wire->crc) != crc32c(0, wire, offsetof(struct snapfmt_claim_wire, crc)))
		return "checksum";
	if (from_be16(wire->version) != SNAPFMT_VERSION)
		return "unknown version";
	if (from_be16(wire->reserved) || !bytes_are_zero(wire->reserved2, sizeof(wire->reserved2)))
		return "reserved bytes are not zero";
	if (wire->node_name[sizeof(wire->node_name) - 1])
		return "name is not ended";
	return NULL;
}

/* ---- header ------------------------------------------------------------------------------- */

void snapfmt_header_encode(const struct snapfmt_header *header, struct snapfmt_header_wire *wire)
{
	*wire = (struct snapfmt_header_wire){
		.magic = to_be32(SNAPFMT_MAGIC),
		.version = to_be16(SNAPFMT_VERSION),
		.kind = to_be16((uint16_t)header->kind),
		.volume = header->volume,
		.snapshot = header->ref.snapshot,
		.sequence = to_be64(header->ref.sequence),
		.number = to_be32(header->ref.number),
		.flags = to_be32(header->flags),
		.size_bytes = to_be64(header->size_bytes),
		.table_offset = to_be64(header->table_offset),
		.table_count = to_be32(header->table_count),
		.table_crc = to_be32(header->table_crc),
		.padding_bytes = to_be32(header->padding_bytes),
	};
	wire->crc = to_be32(crc32c(0, wire, offsetof(struct snapfmt_header_wire, crc)));
}

/* Where the table lies, by kind. */
static const char *table_invalid(const struct snapfmt_header *header)
{
	const uint64_t head = sizeof(struct snapfmt_header_wire);
	uint64_t count = header->table_count, end = header->size_bytes;

	if (header->padding_bytes > end - head)
		return "padding beyond the beginning";
	switch (header->kind) {
	case SNAPFMT_PACK:
		if (end > SNAPFMT_PACK_MAX)
			return "pack too large";
		end -= header->padding_bytes;
		if (!count || count * sizeof(struct snapfmt_index_wire) > end - head)
			return "index beyond the end";
		if (header->table_offset != end - count * sizeof(struct snapfmt_index_wire))
			return "index misplaced";
		return header->flags ? "unknown flags" : NULL;
	case SNAPFMT_MAPS:
		if (end > SNAPFMT_PACK_MAX)
			return "maps object too large";
		if (!count || header->table_offset || header->table_crc)
			return "bad page count";
		return header->flags ? "unknown flags" : NULL;
	default:
		if (header->table_offset != SNAPFMT_MANIFEST_HEAD_BYTES ||
		    end != header->table_offset + count + header->padding_bytes)
			return "body misplaced";
		return header->flags & ~(unsigned)SNAPFMT_ZSTD ? "unknown flags" : NULL;
	}
}

const char *snapfmt_header_decode(const struct snapfmt_header_wire *wire, enum snapfmt_kind kind,
				  const struct id128 *volume, const struct snapfmt_ref *ref,
				  struct snapfmt_header *header)
{
	if (from_be32(wire->magic) != SNAPFMT_MAGIC)
		return "wrong magic";
	if (from_be32(wire->crc) != crc32c(0, wire, offsetof(struct snapfmt_header_wire, crc)))
		return "header checksum";
	if (from_be16(wire->version) != SNAPFMT_VERSION)
		return "unknown version";
	if (!bytes_are_zero(wire->reserved, sizeof(wire->reserved)))
		return "reserved bytes are not zero";
	*header = (struct snapfmt_header){
		.kind = kind,
		.volume = wire->volume,
		.ref = {wire->snapshot, from_be64(wire->sequence), from_be32(wire->number)},
		.flags = from_be32(wire->flags),
		.size_bytes = from_be64(wire->size_bytes),
		.table_offset = from_be64(wire->table_offset),
		.table_count = from_be32(wire->table_count),
		.table_crc = from_be32(wire->table_crc),
		.padding_bytes = from_be32(wire->padding_bytes),
	};
	if (from_be16(wire->kind) != kind || !id128_equal(&header->volume, volume) ||
	    snapfmt_ref_compare(&header->ref, ref))
		return "is another object than its name says";
	if (header->size_bytes < sizeof(*wire))
		return "bad size";
	return table_invalid(header);
}

/* ---- packs -------------------------------------------------------------------------------- */

/* A chunk never takes more room than it has bytes: what does not shrink is stored as it is. */
static const char *stored_invalid(uint32_t offset, uint32_t stored_bytes, uint32_t flags)
{
	if (!stored_bytes || stored_bytes > SNAPFMT_CHUNK_BYTES)
		return "bad stored length";
	if (offset < sizeof(struct snapfmt_header_wire) || offset > SNAPFMT_PACK_MAX - stored_bytes)
		return "bad offset";
	return flags & ~(uint32_t)SNAPFMT_ZSTD ? "unknown chunk flags" : NULL;
}

void snapfmt_index_encode(uint64_t chunk, const struct snapfmt_entry *entry,
			  struct snapfmt_index_wire *wire)
{
	*wire = (struct snapfmt_index_wire){
		.chunk = to_be64(chunk),
		.offset = to_be32(entry->offset),
		.stored_bytes = to_be32(entry->stored_bytes),
		.stored_crc = to_be32(entry->stored_crc),
		.flags = to_be32(entry->flags),
	};
	memcpy(wire->hash, entry->hash, sizeof(wire->hash));
}

const char *snapfmt_index_invalid(const struct snapfmt_header *header,
				  const struct snapfmt_index_wire *index)
{
	uint64_t at = sizeof(struct snapfmt_header_wire);

	for (uint32_t i = 0; i < header->table_count; i++) {
		const char *why =
			stored_invalid(from_be32(index[i].offset), from_be32(index[i].stored_bytes),
				       from_be32(index[i].flags));

		if (why)
			return why;
		if (from_be32(index[i].offset) != at)
			return "chunks are not back to back";
		if (!bytes_are_zero(index[i].reserved, sizeof(index[i].reserved)))
			return "reserved bytes are not zero";
		at += from_be32(index[i].stored_bytes);
	}
	return at == header->table_offset ? NULL : "index does not follow the chunks";
}

/* ---- map pages ---------------------------------------------------------------------------- */

static uint32_t pack_slot(struct snapfmt_page_pack_wire *packs, uint32_t *count, uint32_t last,
			  const struct snapfmt_ref *ref)
{
	struct snapfmt_page_pack_wire want = {
		.snapshot = ref->snapshot,
		.sequence = to_be64(ref->sequence),
		.number = to_be32(ref->number),
	};

	if (last < *count && !memcmp(&packs[last], &want, sizeof(want)))
		return last;
	for (uint32_t i = 0; i < *count; i++)
		if (!memcmp(&packs[i], &want, sizeof(want)))
			return i;
	packs[*count] = want;
	return (*count)++;
}

size_t snapfmt_page_body_encode(const struct snapfmt_page *page, uint8_t *body)
{
	struct snapfmt_page_body_wire *head = (void *)body;
	struct snapfmt_page_pack_wire *packs = (void *)(head + 1);
	uint32_t slots[SNAPFMT_PAGE_CHUNKS], pack_count = 0, entry_count = 0;
	struct snapfmt_entry_wire *entries;

	memset(head, 0, sizeof(*head));
	for (unsigned i = 0; i < SNAPFMT_PAGE_CHUNKS; i++) {
		uint32_t last = entry_count ? slots[entry_count - 1] : 0;

		if (!page->entries[i].stored_bytes)
			continue;
		head->present[i / 8] |= (uint8_t)(1u << i % 8);
		slots[entry_count++] = pack_slot(packs, &pack_count, last, &page->entries[i].pack);
	}
	head->pack_count = to_be32(pack_count);
	head->entry_count = to_be32(entry_count);
	entries = (void *)(packs + pack_count);
	for (unsigned i = 0, n = 0; i < SNAPFMT_PAGE_CHUNKS; i++) {
		const struct snapfmt_entry *entry = &page->entries[i];

		if (!entry->stored_bytes)
			continue;
		memcpy(entries[n].hash, entry->hash, sizeof(entry->hash));
		entries[n].pack = to_be32(slots[n]);
		entries[n].offset = to_be32(entry->offset);
		entries[n].stored_bytes = to_be32(entry->stored_bytes);
		entries[n].stored_crc = to_be32(entry->stored_crc);
		entries[n].ordinal = to_be32(entry->ordinal);
		entries[n].flags = to_be32(entry->flags);
		n++;
	}
	return (size_t)((uint8_t *)(entries + entry_count) - body);
}

static const char *entry_decode(const struct snapfmt_entry_wire *wire,
				const struct snapfmt_page_pack_wire *packs, uint32_t pack_count,
				struct snapfmt_entry *entry)
{
	uint32_t slot = from_be32(wire->pack);
	const char *why = stored_invalid(from_be32(wire->offset), from_be32(wire->stored_bytes),
					 from_be32(wire->flags));

	if (why)
		return why;
	if (slot >= pack_count)
		return "unknown pack";
	*entry = (struct snapfmt_entry){
		.pack = {packs[slot].snapshot, from_be64(packs[slot].sequence),
			 from_be32(packs[slot].number)},
		.offset = from_be32(wire->offset),
		.stored_bytes = from_be32(wire->stored_bytes),
		.stored_crc = from_be32(wire->stored_crc),
		.ordinal = from_be32(wire->ordinal),
		.flags = from_be32(wire->flags),
	};
	memcpy(entry->hash, wire->hash, sizeof(entry->hash));
	return NULL;
}

const char *snapfmt_page_body_decode(const uint8_t *body, size_t length, uint64_t number,
				     uint64_t volume_size_bytes, struct snapfmt_page *page)
{
	const struct snapfmt_page_body_wire *head = (const void *)body;
	const struct snapfmt_page_pack_wire *packs = (const void *)(head + 1);
	const struct snapfmt_entry_wire *entries;
	uint32_t pack_count, entry_count, n = 0;

	if (length < sizeof(*head))
		return "page truncated";
	pack_count = from_be32(head->pack_count);
	entry_count = from_be32(head->entry_count);
	if (!entry_count || entry_count > SNAPFMT_PAGE_CHUNKS || pack_count > entry_count)
		return "bad page counts";
	if (length != sizeof(*head) + pack_count * sizeof(*packs) + entry_count * sizeof(*entries))
		return "bad page length";
	for (uint32_t i = 0; i < pack_count; i++)
		if (from_be32(packs[i].reserved))
			return "reserved bytes are not zero";
	entries = (const void *)(packs + pack_count);
	page->number = number;
	for (unsigned i = 0; i < SNAPFMT_PAGE_CHUNKS; i++) {
		const char *why;

		if (!(head->present[i / 8] >> i % 8 & 1)) {
			memset(&page->entries[i], 0, sizeof(page->entries[i]));
			continue;
		}
		if (n == entry_count)
			return "more chunks than entries";
		if (number * SNAPFMT_PAGE_BYTES + i * (uint64_t)SNAPFMT_CHUNK_BYTES >=
		    volume_size_bytes)
			return "chunk beyond the end of the volume";
		why = entry_decode(&entries[n++], packs, pack_count, &page->entries[i]);
		if (why)
			return why;
	}
	return n == entry_count ? NULL : "more entries than chunks";
}

void snapfmt_page_header_encode(uint64_t number, unsigned flags, uint32_t body_bytes,
				const void *stored, uint32_t stored_bytes,
				struct snapfmt_page_wire *wire)
{
	*wire = (struct snapfmt_page_wire){
		.magic = to_be32(SNAPFMT_PAGE_MAGIC),
		.version = to_be16(SNAPFMT_VERSION),
		.flags = to_be16((uint16_t)flags),
		.number = to_be64(number),
		.body_bytes = to_be32(body_bytes),
		.stored_bytes = to_be32(stored_bytes),
		.stored_crc = to_be32(crc32c(0, stored, stored_bytes)),
	};
	wire->crc = to_be32(crc32c(0, wire, offsetof(struct snapfmt_page_wire, crc)));
}

const char *snapfmt_page_header_invalid(const uint8_t *stored, size_t length, uint64_t number)
{
	const struct snapfmt_page_wire *wire = (const void *)stored;
	uint32_t body, kept;

	if (length < sizeof(*wire))
		return "page truncated";
	if (from_be32(wire->magic) != SNAPFMT_PAGE_MAGIC)
		return "wrong magic of a page";
	if (from_be32(wire->crc) != crc32c(0, wire, offsetof(struct snapfmt_page_wire, crc)))
		return "page header checksum";
	body = from_be32(wire->body_bytes);
	kept = from_be32(wire->stored_bytes);
	if (from_be16(wire->version) != SNAPFMT_VERSION ||
	    from_be16(wire->flags) & ~(unsigned)SNAPFMT_ZSTD ||
	    !bytes_are_zero(wire->reserved, sizeof(wire->reserved)))
		return "unknown page version or flags";
	if (from_be64(wire->number) != number)
		return "is another page";
	if (body > SNAPFMT_PAGE_BODY_MAX || kept != length - sizeof(*wire) ||
	    (!(from_be16(wire->flags) & SNAPFMT_ZSTD) && body != kept))
		return "bad page length";
	if (from_be32(wire->stored_crc) != crc32c(0, stored + sizeof(*wire), kept))
		return "page checksum";
	return NULL;
}

/* ---- manifest ----------------------------------------------------------------------------- */

void snapfmt_facts_seal(struct snapfmt_facts_wire *wire)
{
	wire->crc = to_be32(crc32c(0, wire, offsetof(struct snapfmt_facts_wire, crc)));
}

static bool text_valid(const char text[SNAPFMT_TEXT_BYTES])
{
	const char *end = memchr(text, 0, SNAPFMT_TEXT_BYTES);

	return end && bytes_are_zero(end, (size_t)(text + SNAPFMT_TEXT_BYTES - end));
}

static bool given_up_valid(const struct snapfmt_facts_wire *wire)
{
	unsigned count = 0;

	while (count < SNAPFMT_GIVEN_UP_MAX && !id128_is_zero(&wire->given_up[count]))
		count++;
	if (count && !(wire->flags & SNAPFMT_GIVEN_UP))
		return false;
	while (count < SNAPFMT_GIVEN_UP_MAX && id128_is_zero(&wire->given_up[count]))
		count++;
	return count == SNAPFMT_GIVEN_UP_MAX;
}

const char *snapfmt_facts_invalid(const struct snapfmt_facts_wire *wire)
{
	uint64_t size = from_be64(wire->size_bytes);
	uint64_t pages = (size + SNAPFMT_PAGE_BYTES - 1) / SNAPFMT_PAGE_BYTES;
	uint64_t body =
		(uint64_t)from_be32(wire->source_count) * sizeof(struct snapfmt_source_wire) +
		(uint64_t)from_be32(wire->object_count) * sizeof(struct snapfmt_object_wire) +
		(uint64_t)from_be32(wire->page_count) * sizeof(struct snapfmt_pointer_wire);

	if (from_be32(wire->crc) != crc32c(0, wire, offsetof(struct snapfmt_facts_wire, crc)))
		return "facts checksum";
	if (!bytes_are_zero(wire->reserved, sizeof(wire->reserved)))
		return "reserved bytes are not zero";
	if (wire->flags & ~SNAPFMT_GIVEN_UP)
		return "unknown flags";
	if (!given_up_valid(wire))
		return "bad list of what was given up";
	if (wire->lock > SNAPFMT_LOCK_COMPLIANCE ||
	    !wire->lock != !from_be64(wire->retain_until_ns))
		return "bad lock";
	if (from_be32(wire->chunk_bytes) != SNAPFMT_CHUNK_BYTES)
		return "unknown chunk size";
	if (!size || size > SNAPFMT_VOLUME_MAX || size % SNAPFMT_SIZE_UNIT)
		return "bad volume size";
	if (from_be32(wire->page_count) > pages)
		return "more pages than the volume has";
	if (body != from_be64(wire->body_bytes) || body > SNAPFMT_BODY_MAX)
		return "bad body length";
	if (!text_valid(wire->volume_name) || !text_valid(wire->node_name) ||
	    !text_valid(wire->label))
		return "bad text";
	return NULL;
}

static const char *sources_invalid(const struct snapfmt_source_wire *sources, uint32_t count)
{
	for (uint32_t i = 1; i < count; i++) {
		struct snapfmt_ref a = {sources[i - 1].snapshot, from_be64(sources[i - 1].sequence),
					0};
		struct snapfmt_ref b = {sources[i].snapshot, from_be64(sources[i].sequence), 0};

		if (snapfmt_ref_compare(&a, &b) >= 0)
			return "sources out of order";
	}
	return NULL;
}

static const char *objects_invalid(const struct snapfmt_object_wire *objects, uint32_t count,
				   uint32_t source_count)
{
	uint64_t last = 0;
	uint16_t last_kind = 0;

	for (uint32_t i = 0; i < count; i++) {
		const struct snapfmt_object_wire *o = &objects[i];
		uint16_t kind = from_be16(o->kind);
		uint64_t key = (uint64_t)from_be32(o->source) << 32 | from_be32(o->number);
		uint64_t size = from_be64(o->size_bytes);

		if ((kind != SNAPFMT_PACK && kind != SNAPFMT_MAPS) || from_be16(o->reserved) ||
		    from_be32(o->reserved2) || from_be32(o->source) >= source_count)
			return "bad object";
		if (kind < last_kind || (kind == last_kind && key <= last))
			return "objects out of order";
		if (size > SNAPFMT_PACK_MAX || from_be64(o->live_bytes) > size ||
		    !from_be32(o->live_count) ||
		    from_be32(o->live_count) > from_be32(o->total_count) ||
		    from_be32(o->total_count) > size)
			return "bad object counts";
		last = key;
		last_kind = kind;
	}
	return NULL;
}

static const char *pointers_invalid(const struct snapfmt_pointer_wire *pages, uint32_t count,
				    const struct snapfmt_object_wire *objects,
				    uint32_t object_count, uint64_t volume_pages)
{
	for (uint32_t i = 0; i < count; i++) {
		const struct snapfmt_pointer_wire *p = &pages[i];
		uint32_t slot = from_be32(p->object), length = from_be32(p->length_bytes);

		if (from_be32(p->number) >= volume_pages ||
		    (i && from_be32(p->number) <= from_be32(pages[i - 1].number)))
			return "pages out of order";
		if (slot >= object_count || from_be16(objects[slot].kind) != SNAPFMT_MAPS)
			return "page in an unknown object";
		if (length <= sizeof(struct snapfmt_page_wire) ||
		    length > SNAPFMT_PAGE_STORED_MAX ||
		    from_be32(p->offset) < sizeof(struct snapfmt_header_wire) ||
		    (uint64_t)from_be32(p->offset) + length > from_be64(objects[slot].size_bytes))
			return "page beyond its object";
		if (!from_be32(p->chunk_count) || from_be32(p->chunk_count) > SNAPFMT_PAGE_CHUNKS)
			return "bad chunk count of a page";
	}
	return NULL;
}

const char *snapfmt_body_invalid(const struct snapfmt_facts_wire *facts, const uint8_t *body)
{
	uint32_t source_count = from_be32(facts->source_count);
	uint32_t object_count = from_be32(facts->object_count);
	uint64_t pages =
		(from_be64(facts->size_bytes) + SNAPFMT_PAGE_BYTES - 1) / SNAPFMT_PAGE_BYTES;
	const struct snapfmt_source_wire *sources = (const void *)body;
	const struct snapfmt_object_wire *objects = (const void *)(sources + source_count);
	const struct snapfmt_pointer_wire *pointers = (const void *)(objects + object_count);
	const char *why = sources_invalid(sources, source_count);

	if (!why)
		why = objects_invalid(objects, object_count, source_count);
	if (!why)
		why = pointers_invalid(pointers, from_be32(facts->page_count), objects,
				       object_count, pages);
	return why;
}
