/* SPDX-License-Identifier: Apache-2.0 */
/*
 * manifest: from struct manifest to the object and back. The tables of a manifest are kept in memory
 * whole while it is worked on: 24 bytes a map page and 40 an object, some MiB for a TiB of data.
 */
#include "daemon/snapshot/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/crypt.h"

#define MANIFEST_LEVEL 1

_Static_assert((int)STORE_LOCK_GOVERNANCE == (int)SNAPFMT_LOCK_GOVERNANCE &&
		       (int)STORE_LOCK_COMPLIANCE == (int)SNAPFMT_LOCK_COMPLIANCE,
	       "locks are stored as they are");

void manifest_free(struct manifest *manifest)
{
	if (!manifest)
		return;
	free(manifest->objects);
	free(manifest->pages);
	free(manifest);
}

int manifest_object_compare(const void *a, const void *b)
{
	const struct manifest_object *x = a, *y = b;

	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	return snapfmt_ref_compare(&x->ref, &y->ref);
}

struct manifest_object *manifest_find(const struct manifest *manifest, enum snapfmt_kind kind,
				      const struct snapfmt_ref *ref)
{
	struct manifest_object want = {.kind = kind, .ref = *ref};

	if (!manifest->object_count)
		return NULL;
	return bsearch(&want, manifest->objects, manifest->object_count, sizeof(want),
		       manifest_object_compare);
}

/* ---- encoding ------------------------------------------------------------------------------ */

static int source_compare(const void *a, const void *b)
{
	return snapfmt_ref_compare(a, b);
}

/* The distinct writers of the objects, ascending. */
static struct snapfmt_ref *sources_of(const struct manifest *manifest, unsigned *count)
{
	struct snapfmt_ref *sources = must_alloc((manifest->object_count + 1) * sizeof(*sources));
	unsigned kept = 0;

	for (unsigned i = 0; i < manifest->object_count; i++) {
		sources[i] = manifest->objects[i].ref;
		sources[i].number = 0;
	}
	qsort(sources, manifest->object_count, sizeof(*sources), source_compare);
	for (unsigned i = 0; i < manifest->object_count; i++)
		if (!kept || snapfmt_ref_compare(&sources[kept - 1], &sources[i]))
			sources[kept++] = sources[i];
	*count = kept;
	return sources;
}

static void body_encode(const struct manifest *manifest, const struct snapfmt_ref *sources,
			unsigned source_count, uint8_t *body)
{
	struct snapfmt_source_wire *s = (void *)body;
	struct snapfmt_object_wire *o = (void *)(s + source_count);
	struct snapfmt_pointer_wire *p = (void *)(o + manifest->object_count);

	for (unsigned i = 0; i < source_count; i++)
		s[i] = (struct snapfmt_source_wire){sources[i].snapshot,
						    to_be64(sources[i].sequence)};
	for (unsigned i = 0; i < manifest->object_count; i++) {
		const struct manifest_object *object = &manifest->objects[i];
		struct snapfmt_ref want = object->ref;
		const struct snapfmt_ref *source;

		want.number = 0;
		source = bsearch(&want, sources, source_count, sizeof(want), source_compare);
		assert(source && object->live_count);
		o[i] = (struct snapfmt_object_wire){
			.source = to_be32((uint32_t)(source - sources)),
			.number = to_be32(object->ref.number),
			.kind = to_be16((uint16_t)object->kind),
			.total_count = to_be32(object->total_count),
			.live_count = to_be32(object->live_count),
			.size_bytes = to_be64(object->size_bytes),
			.live_bytes = to_be64(object->live_bytes),
		};
	}
	for (unsigned i = 0; i < manifest->page_count; i++)
		p[i] = (struct snapfmt_pointer_wire){
			.number = to_be32(manifest->pages[i].number),
			.object = to_be32(manifest->pages[i].object),
			.offset = to_be32(manifest->pages[i].offset),
			.length_bytes = to_be32(manifest->pages[i].length_bytes),
			.crc = to_be32(manifest->pages[i].crc),
			.chunk_count = to_be32(manifest->pages[i].chunk_count),
		};
}

static void facts_encode(const struct manifest *manifest, uint64_t body_bytes,
			 unsigned source_count, struct snapfmt_facts_wire *wire)
{
	const struct snapshot_info *info = &manifest->info;

	*wire = (struct snapfmt_facts_wire){
		.created_ns = to_be64(info->created_ns),
		.lsn = to_be64(info->lsn),
		.size_bytes = to_be64(info->size_bytes),
		.data_bytes = to_be64(info->data_bytes),
		.changed_bytes = to_be64(info->changed_bytes),
		.stored_bytes = to_be64(info->stored_bytes),
		.objects = to_be32(info->objects),
		.chunk_bytes = to_be32(SNAPFMT_CHUNK_BYTES),
		.parent = manifest->parent,
		.body_bytes = to_be64(body_bytes),
		.source_count = to_be32(source_count),
		.object_count = to_be32(manifest->object_count),
		.page_count = to_be32(manifest->page_count),
		.requests = to_be32(info->requests),
		.retain_until_ns = to_be64(info->retention.until_ns),
		.lock = (uint8_t)info->retention.lock,
		.flags = info->given_up ? SNAPFMT_GIVEN_UP : 0,
		.history = info->history,
	};
	memcpy(wire->given_up, info->given_up_before, sizeof(wire->given_up));
	snprintf(wire->volume_name, sizeof(wire->volume_name), "%s", info->volume_name);
	snprintf(wire->node_name, sizeof(wire->node_name), "%s", info->node_name);
	snprintf(wire->label, sizeof(wire->label), "%s", info->label);
	snapfmt_facts_seal(wire);
}

int manifest_encode(struct manifest *manifest, bool padded, uint8_t **data, size_t *length)
{
	unsigned source_count;
	struct snapfmt_ref *sources = sources_of(manifest, &source_count);
	size_t body_bytes = source_count * sizeof(struct snapfmt_source_wire) +
			    manifest->object_count * sizeof(struct snapfmt_object_wire) +
			    manifest->page_count * sizeof(struct snapfmt_pointer_wire);
	uint8_t *body = must_alloc(body_bytes);
	uint8_t *out = must_alloc(cryptfmt_padded_bytes(SNAPFMT_MANIFEST_HEAD_BYTES + body_bytes));
	uint8_t *stored = out + SNAPFMT_MANIFEST_HEAD_BYTES;
	size_t kept;
	struct snapfmt_header header = {.kind = SNAPFMT_MANIFEST, .volume = manifest->info.volume};

	body_encode(manifest, sources, source_count, body);
	free(sources);
	kept = codec_pack(MANIFEST_LEVEL, body, body_bytes, stored, body_bytes);
	header.flags = kept ? SNAPFMT_ZSTD : 0;
	if (!kept) {
		memcpy(stored, body, body_bytes);
		kept = body_bytes;
	}
	free(body);
	if (body_bytes > SNAPFMT_BODY_MAX) {
		free(out);
		return -EFBIG;
	}
	header.ref.snapshot = manifest->info.id;
	header.ref.sequence = manifest->info.sequence;
	header.size_bytes = SNAPFMT_MANIFEST_HEAD_BYTES + kept;
	if (padded)
		header.padding_bytes =
			(uint32_t)(cryptfmt_padded_bytes(header.size_bytes) - header.size_bytes);
	/* What did not fit when it was packed lies there. */
	memset(out + header.size_bytes, 0, header.padding_bytes);
	header.size_bytes += header.padding_bytes;
	header.table_offset = SNAPFMT_MANIFEST_HEAD_BYTES;
	header.table_count = (uint32_t)kept;
	header.table_crc = crc32c(0, stored, kept);
	snapfmt_header_encode(&header, (void *)out);
	manifest->info.stored_bytes += header.size_bytes;
	manifest->info.objects++;
	facts_encode(manifest, body_bytes, source_count,
		     (void *)(out + sizeof(struct snapfmt_header_wire)));
	*data = out;
	*length = header.size_bytes;
	return 0;
}

/* ---- decoding ------------------------------------------------------------------------------ */

static void facts_decode(const struct snapfmt_facts_wire *wire, const struct snapfmt_header *header,
			 struct snapshot_info *info)
{
	*info = (struct snapshot_info){
		.id = header->ref.snapshot,
		.sequence = header->ref.sequence,
		.volume = header->volume,
		.created_ns = from_be64(wire->created_ns),
		.lsn = from_be64(wire->lsn),
		.size_bytes = from_be64(wire->size_bytes),
		.data_bytes = from_be64(wire->data_bytes),
		.changed_bytes = from_be64(wire->changed_bytes),
		.stored_bytes = from_be64(wire->stored_bytes),
		.objects = from_be32(wire->objects),
		.requests = from_be32(wire->requests),
		.retention = {wire->lock, from_be64(wire->retain_until_ns)},
		.history = wire->history,
		.given_up = wire->flags & SNAPFMT_GIVEN_UP,
	};
	memcpy(info->given_up_before, wire->given_up, sizeof(info->given_up_before));
	memcpy(info->volume_name, wire->volume_name, sizeof(info->volume_name));
	memcpy(info->node_name, wire->node_name, sizeof(info->node_name));
	memcpy(info->label, wire->label, sizeof(info->label));
}

static const char *head_decode(const uint8_t *data, size_t length, uint64_t object_size,
			       const struct id128 *volume, const struct snapfmt_ref *ref,
			       struct snapfmt_header *header)
{
	const char *why;

	if (length < SNAPFMT_MANIFEST_HEAD_BYTES)
		return "truncated";
	why = snapfmt_header_decode((const void *)data, SNAPFMT_MANIFEST, volume, ref, header);
	if (why)
		return why;
	if (header->size_bytes != object_size)
		return object_size < header->size_bytes ? "truncated" : "longer than it says";
	return snapfmt_facts_invalid((const void *)(data + sizeof(struct snapfmt_header_wire)));
}

const char *manifest_peek(const uint8_t *head, size_t length, uint64_t object_size,
			  const struct id128 *volume, const struct snapfmt_ref *ref,
			  struct snapshot_info *info)
{
	struct snapfmt_header header;
	const char *why = head_decode(head, length, object_size, volume, ref, &header);

	if (!why)
		facts_decode((const void *)(head + sizeof(struct snapfmt_header_wire)), &header,
			     info);
	return why;
}

/* NULL: no memory. */
static struct manifest *body_decode(const struct snapfmt_facts_wire *facts, const uint8_t *body)
{
	struct manifest *manifest = must_alloc(sizeof(*manifest));
	const struct snapfmt_source_wire *s = (const void *)body;
	const struct snapfmt_object_wire *o = (const void *)(s + from_be32(facts->source_count));
	const struct snapfmt_pointer_wire *p = (const void *)(o + from_be32(facts->object_count));

	manifest->parent = facts->parent;
	manifest->object_count = from_be32(facts->object_count);
	manifest->page_count = from_be32(facts->page_count);
	manifest->objects = calloc(manifest->object_count + 1, sizeof(*manifest->objects));
	manifest->pages = calloc(manifest->page_count + 1, sizeof(*manifest->pages));
	if (!manifest->objects || !manifest->pages) {
		manifest_free(manifest);
		return NULL;
	}
	for (unsigned i = 0; i < manifest->object_count; i++) {
		const struct snapfmt_source_wire *source = &s[from_be32(o[i].source)];

		manifest->objects[i] = (struct manifest_object){
			.kind = from_be16(o[i].kind),
			.ref = {source->snapshot, from_be64(source->sequence),
				from_be32(o[i].number)},
			.total_count = from_be32(o[i].total_count),
			.live_count = from_be32(o[i].live_count),
			.size_bytes = from_be64(o[i].size_bytes),
			.live_bytes = from_be64(o[i].live_bytes),
		};
	}
	for (unsigned i = 0; i < manifest->page_count; i++)
		manifest->pages[i] = (struct manifest_page){
			.number = from_be32(p[i].number),
			.object = from_be32(p[i].object),
			.offset = from_be32(p[i].offset),
			.length_bytes = from_be32(p[i].length_bytes),
			.crc = from_be32(p[i].crc),
			.chunk_count = from_be32(p[i].chunk_count),
		};
	return manifest;
}

const char *manifest_decode(const uint8_t *data, size_t length, const struct id128 *volume,
			    const struct snapfmt_ref *ref, struct manifest **manifest)
{
	struct snapfmt_header header;
	const struct snapfmt_facts_wire *facts =
		(const void *)(data + sizeof(struct snapfmt_header_wire));
	const char *why = head_decode(data, length, length, volume, ref, &header);
	const uint8_t *stored = data + SNAPFMT_MANIFEST_HEAD_BYTES;
	uint8_t *body = NULL;
	uint64_t body_bytes;

	if (why)
		return why;
	if (crc32c(0, stored, header.table_count) != header.table_crc)
		return "body checksum";
	if (!bytes_are_zero(stored + header.table_count, header.padding_bytes))
		return "padding is not zero";
	body_bytes = from_be64(facts->body_bytes);
	if (header.flags & SNAPFMT_ZSTD) {
		body = malloc(body_bytes ? body_bytes : 1);
		if (!body)
			return "body too large for this machine's memory";
		if (!codec_unpack(stored, header.table_count, body, body_bytes))
			why = "body does not unpack";
	} else if (header.table_count != body_bytes) {
		why = "bad body length";
	}
	if (!why)
		why = snapfmt_body_invalid(facts, body ? body : stored);
	if (!why) {
		struct manifest *decoded = body_decode(facts, body ? body : stored);

		if (decoded) {
			facts_decode(facts, &header, &decoded->info);
			*manifest = decoded;
		} else {
			why = "body too large for this machine's memory";
		}
	}
	free(body);
	return why;
}

/* ---- loading ------------------------------------------------------------------------------- */

struct load {
	struct env_work work;
	struct id128 volume;
	struct snapfmt_ref ref;
	char name[SNAPFMT_NAME_BYTES];
	uint8_t *data;
	size_t length;
	struct manifest *manifest;
	const char *reason;
	void (*done)(void *context, struct manifest *manifest, int error, const char *why);
	void *context;
	struct env *env;
};

static void load_run(struct env_work *work)
{
	struct load *load = container_of(work, struct load, work);

	load->reason = manifest_decode(load->data, load->length, &load->volume, &load->ref,
				       &load->manifest);
}

static void load_done(struct env_work *work)
{
	struct load *load = container_of(work, struct load, work);
	char why[WHY_BYTES] = "";
	int error = 0;

	if (load->reason)
		error = why_set(why, -EBADMSG, "%s: %s", load->name, load->reason);
	free(load->data);
	load->done(load->context, load->manifest, error, why);
	free(load);
}

static void load_fetched(void *context, uint8_t *data, size_t length, int error, const char *why)
{
	struct load *load = context;
	char reason[WHY_BYTES];

	if (!error && cryptfmt_is_encrypted(data, length)) {
		free(data);
		error = why_set(reason, -STORE_NO_SECRET, "%s: %s", load->name,
				store_strerror(-STORE_NO_SECRET));
		why = reason;
	}
	if (error) {
		load->done(load->context, NULL, error, why);
		free(load);
		return;
	}
	load->data = data;
	load->length = length;
	load->work = (struct env_work){.run = load_run, .done = load_done};
	env_work_submit(load->env, &load->work);
}

void manifest_load(struct store *store, const struct id128 *volume, const struct snapfmt_ref *ref,
		   void (*done)(void *context, struct manifest *manifest, int error,
				const char *why),
		   void *context)
{
	struct load *load = must_alloc(sizeof(*load));

	*load = (struct load){
		.volume = *volume,
		.ref = *ref,
		.done = done,
		.context = context,
		.env = store->env,
	};
	snapfmt_name(SNAPFMT_MANIFEST, volume, ref, load->name);
	fetch(store, load->name, 0, UINT64_MAX, load_fetched, load);
}
