// SPDX-License-Identifier: Apache-2.0
/* The objects of a snapshot, by protocol/snapshot.md, sections 2 to 6. */
#include "tests/sim/spec.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#define HEADER      128u
#define FACTS       512u
#define CHUNK       65536u
#define PAGE_CHUNKS 1024u

enum { PACK = 1, MAPS = 2, MANIFEST = 3 };

struct reader {
	struct sim *sim;
	const char *url;
	const uint8_t *volume;
	uint8_t *content;
	uint64_t size;
	char *why;
	size_t why_size;
};

struct object {
	const uint8_t *data;
	size_t size; /* without its padding */
};

static bool no(struct reader *r, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(r->why, r->why_size, format, args);
	va_end(args);
	return false;
}

static void hex(const uint8_t *bytes, unsigned count, char *text)
{
	for (unsigned i = 0; i < count; i++)
		sprintf(text + 2 * (size_t)i, "%02x", bytes[i]);
}

/* The object whose name begins and ends like this. */
static const char *find(struct sim *sim, const char *url, const char *begin, const char *end,
			const void **data, size_t *size)
{
	const char *name;
	size_t n, b = strlen(begin), e = strlen(end);

	for (unsigned i = 0; (name = store_sim_object(sim, url, i, data, size)) != NULL; i++) {
		n = strlen(name);
		if (n >= b + e && strncmp(name, begin, b) == 0 && strcmp(name + n - e, end) == 0)
			return name;
	}
	return NULL;
}

static const char *find_manifest(struct sim *sim, const char *url, const uint8_t volume[16],
				 const uint8_t snapshot[16], const void **data, size_t *size)
{
	char begin[64], end[40] = "-";

	hex(volume, 16, begin);
	strcat(begin, "/snapshots/");
	hex(snapshot, 16, end + 1);
	return find(sim, url, begin, end, data, size);
}

bool spec_snapshot_exists(struct sim *sim, const char *url, const uint8_t volume[16],
			  const uint8_t snapshot[16])
{
	const char *name = find_manifest(sim, url, volume, snapshot, NULL, NULL);
	char mark[160];

	if (name == NULL)
		return false;
	snprintf(mark, sizeof(mark), "%s-deleted", name);
	return find(sim, url, mark, "", NULL, NULL) == NULL;
}

/* Section 3. source: snapshot and sequence. */
static bool header(struct reader *r, struct object *o, unsigned kind, const uint8_t source[24],
		   uint64_t number)
{
	const uint8_t *d = o->data;

	if (o->size < HEADER || spec_be(d, 4) != 0x4f46534e ||
	    spec_be(d + 124, 4) != spec_crc32c(0, d, 124) || spec_be(d + 4, 2) != 1)
		return no(r, "an object of kind %u without a header", kind);
	if (spec_be(d + 6, 2) != kind || memcmp(d + 8, r->volume, 16) != 0 ||
	    memcmp(d + 24, source, 24) != 0 || spec_be(d + 48, 4) != number)
		return no(r, "an object of kind %u under another's name", kind);
	if (spec_be(d + 56, 8) != o->size || spec_be(d + 80, 4) > o->size - HEADER)
		return no(r, "an object of %zu bytes that says %llu", o->size,
			  (unsigned long long)spec_be(d + 56, 8));
	o->size -= spec_be(d + 80, 4);
	return true;
}

static bool open_object(struct reader *r, unsigned kind, const uint8_t source[24], uint64_t number,
			struct object *o)
{
	char name[160], id[33], volume[33];
	const void *data;

	hex(source, 16, id);
	hex(r->volume, 16, volume);
	snprintf(name, sizeof(name), "%s/%s/%016llx-%s-%08llx", volume,
		 kind == PACK ? "packs" : "maps", (unsigned long long)spec_be(source + 16, 8), id,
		 (unsigned long long)number);
	if (find(r->sim, r->url, name, "", &data, &o->size) == NULL)
		return no(r, "%s is not there", name);
	o->data = data;
	return header(r, o, kind, source, number);
}

static bool within(const struct object *o, uint64_t offset, uint64_t length)
{
	return offset >= HEADER && offset <= o->size && length <= o->size - offset;
}

/* What is stored, unpacked to exactly so many bytes; NULL: it is not. */
static uint8_t *unpack(const uint8_t *from, size_t stored, bool packed, size_t length)
{
	uint8_t *to = malloc(length > 0 ? length : 1);

	if (to == NULL)
		abort();
	if (packed ? ZSTD_decompress(to, length, from, stored) == length : stored == length) {
		if (!packed)
			memcpy(to, from, length);
		return to;
	}
	free(to);
	return NULL;
}

/* Section 4. entry: of a page, section 5. */
static bool chunk(struct reader *r, uint64_t number, const uint8_t *entry, const uint8_t *pack)
{
	uint64_t at = number * CHUNK, offset = spec_be(entry + 36, 4);
	uint64_t stored = spec_be(entry + 40, 4);
	size_t length = at < r->size && r->size - at < CHUNK ? (size_t)(r->size - at) : CHUNK;
	struct object o;
	uint8_t *content;

	if (at >= r->size)
		return no(r, "chunk %llu lies behind the end", (unsigned long long)number);
	if (!open_object(r, PACK, pack, spec_be(pack + 24, 4), &o))
		return false;
	if (stored < 1 || stored > CHUNK || !within(&o, offset, stored) ||
	    spec_crc32c(0, o.data + offset, stored) != spec_be(entry + 44, 4))
		return no(r, "chunk %llu is not in its pack", (unsigned long long)number);
	content = unpack(o.data + offset, stored, spec_be(entry + 52, 4) & 1, length);
	if (content == NULL)
		return no(r, "chunk %llu does not unpack", (unsigned long long)number);
	memcpy(r->content + at, content, length);
	free(content);
	return true;
}

static bool page_body(struct reader *r, uint64_t page, const uint8_t *body, size_t length)
{
	uint64_t packs = length >= 136 ? spec_be(body + 128, 4) : 0;
	uint64_t entries = length >= 136 ? spec_be(body + 132, 4) : 0, entry = 0;
	const uint8_t *entry_at = body + 136 + 32 * packs;

	if (entries == 0 || length != 136 + 32 * packs + 56 * entries)
		return no(r, "page %llu has another length", (unsigned long long)page);
	for (uint64_t i = 0; i < PAGE_CHUNKS; i++) {
		uint64_t pack;

		if (!(body[i / 8] & 1u << i % 8))
			continue;
		if (entry == entries)
			return no(r, "page %llu has more bits than entries",
				  (unsigned long long)page);
		pack = spec_be(entry_at + 56 * entry + 32, 4);
		if (pack >= packs)
			return no(r, "page %llu names pack %llu", (unsigned long long)page,
				  (unsigned long long)pack);
		if (!chunk(r, page * PAGE_CHUNKS + i, entry_at + 56 * entry,
			   body + 136 + 32 * pack))
			return false;
		entry++;
	}
	return entry == entries ||
	       no(r, "page %llu has more entries than bits", (unsigned long long)page);
}

/* Section 5. listed: as the manifest has it, section 6. */
static bool page(struct reader *r, const uint8_t *listed, const uint8_t *objects, uint64_t count,
		 const uint8_t *sources)
{
	uint64_t number = spec_be(listed, 4), object = spec_be(listed + 4, 4);
	uint64_t offset = spec_be(listed + 8, 4), length = spec_be(listed + 12, 4);
	const uint8_t *named = objects + 40 * object, *d;
	struct object o;
	uint8_t *body;
	bool good;

	if (object >= count || spec_be(named + 8, 2) != MAPS)
		return no(r, "page %llu is in no object", (unsigned long long)number);
	if (!open_object(r, MAPS, sources + 24 * spec_be(named, 4), spec_be(named + 4, 4), &o))
		return false;
	if (length < 64 || !within(&o, offset, length))
		return no(r, "page %llu is not in its object", (unsigned long long)number);
	d = o.data + offset;
	if (spec_crc32c(0, d, length) != spec_be(listed + 16, 4) || spec_be(d, 4) != 0x4f465047 ||
	    spec_be(d + 4, 2) != 1 || spec_be(d + 60, 4) != spec_crc32c(0, d, 60) ||
	    spec_be(d + 8, 8) != number || spec_be(d + 20, 4) != length - 64 ||
	    spec_be(d + 24, 4) != spec_crc32c(0, d + 64, length - 64))
		return no(r, "page %llu is not what the manifest says", (unsigned long long)number);
	body = unpack(d + 64, length - 64, spec_be(d + 6, 2) & 1, spec_be(d + 16, 4));
	if (body == NULL)
		return no(r, "page %llu does not unpack", (unsigned long long)number);
	good = page_body(r, number, body, spec_be(d + 16, 4));
	free(body);
	return good;
}

/* Section 6. */
static bool lists(struct reader *r, const uint8_t *facts, const uint8_t *body)
{
	uint64_t sources = spec_be(facts + 272, 4), objects = spec_be(facts + 276, 4);
	uint64_t pages = spec_be(facts + 280, 4);
	const uint8_t *object_at = body + 24 * sources, *page_at = object_at + 40 * objects;

	if (spec_be(facts + 264, 8) != 24 * sources + 40 * objects + 24 * pages)
		return no(r, "the manifest's lists have another length");
	for (uint64_t i = 0; i < objects; i++)
		if (spec_be(object_at + 40 * i, 4) >= sources)
			return no(r, "object %llu has no source", (unsigned long long)i);
	for (uint64_t i = 0; i < pages; i++)
		if (!page(r, page_at + 24 * i, object_at, objects, body))
			return false;
	return true;
}

static bool manifest(struct reader *r, const uint8_t snapshot[16], const char *name,
		     struct object *o)
{
	const uint8_t *d = o->data, *facts = d + HEADER;
	uint64_t stored = spec_be(d + 72, 4);
	uint8_t source[24], *body;
	const char *sequence = strrchr(name, '-') - 16;
	bool good;

	memcpy(source, snapshot, 16);
	for (unsigned i = 0; i < 8; i++)
		sscanf(sequence + 2 * i, "%2hhx", &source[16 + i]);
	if (!header(r, o, MANIFEST, source, 0))
		return false;
	if (spec_be(d + 64, 8) != HEADER + FACTS || !within(o, HEADER + FACTS, stored) ||
	    spec_crc32c(0, facts, 508) != spec_be(facts + 508, 4) ||
	    spec_crc32c(0, d + HEADER + FACTS, stored) != spec_be(d + 76, 4))
		return no(r, "the manifest is damaged");
	if (spec_be(facts + 52, 4) != CHUNK)
		return no(r, "the manifest has other chunks");
	r->size = spec_be(facts + 16, 8);
	r->content = calloc(1, r->size);
	body = unpack(d + HEADER + FACTS, stored, spec_be(d + 52, 4) & 1, spec_be(facts + 264, 8));
	if (r->content == NULL || body == NULL)
		return no(r, "the manifest does not unpack");
	good = lists(r, facts, body);
	free(body);
	return good;
}

uint8_t *spec_snapshot_read(struct sim *sim, const char *url, const uint8_t volume[16],
			    const uint8_t snapshot[16], uint64_t *size_bytes, char *why,
			    size_t why_size)
{
	struct reader r = {sim, url, volume, NULL, 0, why, why_size};
	const void *data = NULL;
	struct object o = {NULL, 0};
	const char *name = find_manifest(sim, url, volume, snapshot, &data, &o.size);

	o.data = data;
	if (name == NULL) {
		no(&r, "no manifest");
		return NULL;
	}
	if (!manifest(&r, snapshot, name, &o)) {
		free(r.content);
		return NULL;
	}
	*size_bytes = r.size;
	return r.content;
}
