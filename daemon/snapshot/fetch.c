/* SPDX-License-Identifier: Apache-2.0 */
/* Reading objects: whole or in part, names of manifests, map pages, runs of chunks. See internal.h. */
#include "daemon/snapshot/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/snapshot/sha256.h"

_Static_assert(SHA256_BYTES == SNAPFMT_HASH_BYTES, "one hash");

#define FETCH_MAX (2ull << 30)

/* ---- bytes --------------------------------------------------------------------------------- */

struct fetch_job {
	struct env_op op;
	struct store *store;
	char name[SNAPFMT_NAME_BYTES];
	uint8_t *data;
	uint64_t length;
	fetch_done_fn done;
	void *context;
};

static void fetch_finish(struct fetch_job *job, int error, const char *reason)
{
	char why[WHY_BYTES] = "";
	uint8_t *data = job->data;
	fetch_done_fn done = job->done;
	void *context = job->context;
	size_t length = job->length;

	if (error) {
		why_set(why, error, "%s: %s", job->name, reason);
		free(data);
		data = NULL;
	}
	free(job);
	done(context, data, length, error, why);
}

static void fetch_got(struct env_op *op, int64_t result)
{
	struct fetch_job *job = container_of(op, struct fetch_job, op);

	if (result == -ENOENT)
		fetch_finish(job, -ENOENT, "missing");
	else if (result < 0)
		fetch_finish(job, (int)result, store_strerror((int)result));
	else if ((uint64_t)result != job->length)
		fetch_finish(job, -EBADMSG, "truncated");
	else
		fetch_finish(job, 0, NULL);
}

static void fetch_no_memory(void *context)
{
	fetch_finish(context, -ENOMEM, "too large for this machine's memory");
}

static void fetch_get(struct fetch_job *job, uint64_t offset)
{
	/* As large as the object says it is. */
	job->data = malloc(job->length ? job->length : 1);
	if (!job->data) {
		call_later(job->store->env, fetch_no_memory, job);
		return;
	}
	job->op.done = fetch_got;
	job->store->ops->get(job->store, &job->op, job->name, job->data, job->length, offset);
}

static void fetch_sized(struct env_op *op, int64_t result)
{
	struct fetch_job *job = container_of(op, struct fetch_job, op);

	if (result == -ENOENT) {
		fetch_finish(job, -ENOENT, "missing");
	} else if (result < 0) {
		fetch_finish(job, (int)result, store_strerror((int)result));
	} else if ((uint64_t)result > FETCH_MAX) {
		fetch_finish(job, -EBADMSG, "implausibly large");
	} else {
		job->length = (uint64_t)result;
		fetch_get(job, 0);
	}
}

void fetch(struct store *store, const char *name, uint64_t offset, uint64_t length,
	   fetch_done_fn done, void *context)
{
	struct fetch_job *job = must_alloc(sizeof(*job));

	*job = (struct fetch_job){
		.store = store,
		.length = length,
		.done = done,
		.context = context,
	};
	memcpy(job->name, name, strlen(name) + 1);
	if (length != UINT64_MAX) {
		fetch_get(job, offset);
		return;
	}
	job->op.done = fetch_sized;
	store->ops->size(store, &job->op, job->name);
}

/* ---- names of manifests -------------------------------------------------------------------- */

struct names_job {
	struct env_op op;
	struct id128 volume;
	char prefix[SNAPFMT_NAME_BYTES];
	struct names names;
	size_t ref_room, size_count, size_room, mark_room;
	void (*done)(void *context, struct names *names, int error, const char *why);
	void *context;
};

static void names_each(void *context, const struct store_object *object)
{
	struct names_job *job = context;
	struct names *names = &job->names;
	enum snapfmt_kind kind;
	struct id128 volume;
	struct snapfmt_ref ref, *added;
	uint64_t *size;

	if (snapfmt_mark_parse(object->name, &volume, &ref)) {
		if (!id128_equal(&volume, &job->volume))
			return;
		added = array_add((void **)&names->marks, &names->mark_count, &job->mark_room,
				  sizeof(ref));
		*added = ref;
		return;
	}
	if (!snapfmt_name_parse(object->name, &kind, &volume, &ref) || kind != SNAPFMT_MANIFEST ||
	    !id128_equal(&volume, &job->volume))
		return; /* none of ours */
	added = array_add((void **)&names->refs, &names->count, &job->ref_room, sizeof(ref));
	*added = ref;
	size = array_add((void **)&names->sizes, &job->size_count, &job->size_room, sizeof(*size));
	*size = object->size_bytes;
}

bool refs_have(const struct snapfmt_ref *refs, size_t count, const struct id128 *snapshot)
{
	for (size_t i = 0; i < count; i++)
		if (id128_equal(&refs[i].snapshot, snapshot))
			return true;
	return false;
}

/* Those that are marked as deleted are none any more; their manifests are kept apart. */
static void names_split(struct names *names)
{
	size_t kept = 0, mark = 0;

	if (names->count)
		names->highest = names->refs[names->count - 1].sequence;
	names->gone = must_alloc(names->mark_count * sizeof(*names->gone));
	names->gone_sizes = must_alloc(names->mark_count * sizeof(*names->gone_sizes));
	for (size_t i = 0; i < names->count; i++) {
		/* Both lists ascend. */
		while (mark < names->mark_count &&
		       snapfmt_ref_compare(&names->marks[mark], &names->refs[i]) < 0)
			mark++;
		if (mark < names->mark_count &&
		    !snapfmt_ref_compare(&names->marks[mark], &names->refs[i])) {
			names->gone_sizes[names->gone_count] = names->sizes[i];
			names->gone[names->gone_count++] = names->refs[i];
			continue;
		}
		names->sizes[kept] = names->sizes[i];
		names->refs[kept++] = names->refs[i];
	}
	names->count = kept;
}

static void names_done(struct env_op *op, int64_t result)
{
	struct names_job *job = container_of(op, struct names_job, op);
	char why[WHY_BYTES] = "";
	int error = 0;

	if (result < 0)
		error = why_set(why, (int)result, "%s: cannot be listed: %s", job->prefix,
				store_strerror((int)result));
	names_split(&job->names);
	job->done(job->context, &job->names, error, why);
	names_free(&job->names);
	free(job);
}

void names_free(struct names *names)
{
	free(names->refs);
	free(names->sizes);
	free(names->marks);
	free(names->gone);
	free(names->gone_sizes);
	*names = (struct names){.count = 0};
}

void names_list_since(struct store *store, const struct id128 *volume, uint64_t sequence,
		      void (*done)(void *context, struct names *names, int error, const char *why),
		      void *context)
{
	struct names_job *job = must_alloc(sizeof(*job));
	char after[SNAPFMT_NAME_BYTES];

	*job = (struct names_job){
		.op = {.done = names_done},
		.volume = *volume,
		.done = done,
		.context = context,
	};
	snapfmt_prefix(SNAPFMT_MANIFEST, volume, job->prefix);
	/* Sorts before all names of that sequence, behind all of lower ones. */
	snprintf(after, sizeof(after), "%.96s%016llx", job->prefix, (unsigned long long)sequence);
	if (sequence)
		store_list_after(store, &job->op, job->prefix, after, names_each, job);
	else
		store->ops->list(store, &job->op, job->prefix, names_each, job);
}

void names_list(struct store *store, const struct id128 *volume,
		void (*done)(void *context, struct names *names, int error, const char *why),
		void *context)
{
	names_list_since(store, volume, 0, done, context);
}

const struct iovec *mark_content(const struct store *store)
{
	static const char word[] = "deleted\n";
	static const struct iovec some = {(void *)(uintptr_t)word, sizeof(word) - 1};
	static const struct iovec none = {(void *)(uintptr_t)word, 0};

	return store->lists_cost ? &some : &none;
}

/* ---- map pages ----------------------------------------------------------------------------- */

struct page_job {
	struct env_work work;
	struct env *env;
	char name[SNAPFMT_NAME_BYTES];
	struct manifest_page pointer;
	uint64_t volume_size_bytes;
	uint8_t *data;
	struct snapfmt_page *page;
	const char *reason;
	void (*done)(void *context, int error, const char *why);
	void *context;
};

static const char *page_decode(const struct manifest_page *pointer, const uint8_t *data,
			       uint64_t volume_size_bytes, struct snapfmt_page *page)
{
	const struct snapfmt_page_wire *wire = (const void *)data;
	const uint8_t *stored = data + sizeof(*wire);
	const char *why;
	uint32_t length;
	uint8_t *body;
	unsigned chunks = 0;

	if (crc32c(0, data, pointer->length_bytes) != pointer->crc)
		return "checksum of a map page";
	why = snapfmt_page_header_invalid(data, pointer->length_bytes, pointer->number);
	if (why)
		return why;
	length = from_be32(wire->body_bytes);
	if (!(from_be16(wire->flags) & SNAPFMT_ZSTD)) {
		why = snapfmt_page_body_decode(stored, length, pointer->number, volume_size_bytes,
					       page);
	} else {
		body = must_alloc(length);
		why = "map page does not unpack";
		if (codec_unpack(stored, from_be32(wire->stored_bytes), body, length))
			why = snapfmt_page_body_decode(body, length, pointer->number,
						       volume_size_bytes, page);
		free(body);
	}
	for (unsigned i = 0; !why && i < SNAPFMT_PAGE_CHUNKS; i++)
		chunks += page->entries[i].stored_bytes != 0;
	return !why && chunks != pointer->chunk_count ? "chunk count of a map page" : why;
}

static void page_run(struct env_work *work)
{
	struct page_job *job = container_of(work, struct page_job, work);

	job->reason = page_decode(&job->pointer, job->data, job->volume_size_bytes, job->page);
}

static void page_finish(struct page_job *job, int error, const char *why)
{
	void (*done)(void *context, int error, const char *why) = job->done;
	void *context = job->context;
	uint8_t *data = job->data;

	free(job);
	done(context, error, why);
	free(data);
}

static void page_done(struct env_work *work)
{
	struct page_job *job = container_of(work, struct page_job, work);
	char why[WHY_BYTES] = "";
	int error = 0;

	if (job->reason)
		error = why_set(why, -EBADMSG, "%s: page %u: %s", job->name, job->pointer.number,
				job->reason);
	page_finish(job, error, why);
}

static void page_fetched(void *context, uint8_t *data, size_t length, int error, const char *why)
{
	struct page_job *job = context;

	job->data = data;
	if (error) {
		page_finish(job, error, why);
		return;
	}
	job->work = (struct env_work){.run = page_run, .done = page_done};
	env_work_submit(job->env, &job->work);
}

static struct page_job *page_job_new(struct env *env, const struct manifest *manifest,
				     const struct manifest_page *pointer, struct snapfmt_page *page,
				     void (*done)(void *context, int error, const char *why),
				     void *context)
{
	struct page_job *job = must_alloc(sizeof(*job));

	assert(pointer->object < manifest->object_count);
	*job = (struct page_job){
		.env = env,
		.pointer = *pointer,
		.volume_size_bytes = manifest->info.size_bytes,
		.page = page,
		.done = done,
		.context = context,
	};
	snapfmt_name(SNAPFMT_MAPS, &manifest->info.volume, &manifest->objects[pointer->object].ref,
		     job->name);
	return job;
}

void page_load(struct store *store, const struct manifest *manifest,
	       const struct manifest_page *pointer, struct snapfmt_page *page,
	       void (*done)(void *context, int error, const char *why), void *context)
{
	struct page_job *job = page_job_new(store->env, manifest, pointer, page, done, context);

	fetch(store, job->name, pointer->offset, pointer->length_bytes, page_fetched, job);
}

void page_take(struct env *env, const struct manifest *manifest,
	       const struct manifest_page *pointer, const uint8_t *data, struct snapfmt_page *page,
	       void (*done)(void *context, int error, const char *why), void *context)
{
	struct page_job *job = page_job_new(env, manifest, pointer, page, done, context);

	job->data = must_alloc(pointer->length_bytes);
	memcpy(job->data, data, pointer->length_bytes);
	job->work = (struct env_work){.run = page_run, .done = page_done};
	env_work_submit(env, &job->work);
}

/* ---- runs of chunks ------------------------------------------------------------------------ */

uint32_t chunk_bytes(uint64_t chunk, uint64_t volume_size_bytes)
{
	uint64_t start = chunk * SNAPFMT_CHUNK_BYTES;

	assert(start < volume_size_bytes);
	if (volume_size_bytes - start < SNAPFMT_CHUNK_BYTES)
		return (uint32_t)(volume_size_bytes - start);
	return SNAPFMT_CHUNK_BYTES;
}

static bool is_packed(const struct snapfmt_entry *entry)
{
	return entry->flags & SNAPFMT_ZSTD;
}

static bool stored_right(const struct snapfmt_entry *entry, const uint8_t *stored)
{
	return crc32c(0, stored, entry->stored_bytes) == entry->stored_crc ||
	       MUTATE(snapshot_skip_hash_check);
}

/* Puts the content into out, which may be where it is stored. What is stored as it is is judged by the hash alone;
 * its checksum then says only what is wrong with it. */
static const char *chunk_unpack(const struct snapfmt_entry *entry, const uint8_t *stored,
				uint8_t *out, uint32_t length)
{
	if (!is_packed(entry)) {
		if (entry->stored_bytes != length)
			return "wrong length";
		if (out != stored)
			memcpy(out, stored, length);
		return NULL;
	}
	if (!stored_right(entry, stored))
		return "checksum of what is stored";
	if (codec_unpack(stored, entry->stored_bytes, out, length))
		return NULL;
	if (!MUTATE(snapshot_skip_hash_check))
		return "does not unpack";
	memset(out, 0, length);
	return NULL;
}

static const char *chunk_judge(const struct snapfmt_entry *entry, const uint8_t *stored,
			       const uint8_t hash[SNAPFMT_HASH_BYTES])
{
	if (!memcmp(hash, entry->hash, SNAPFMT_HASH_BYTES) || MUTATE(snapshot_skip_hash_check))
		return NULL;
	return stored_right(entry, stored) ? "hash of the content" : "checksum of what is stored";
}

/* Whether what is stored is the content, from the first byte to the last. */
static bool is_content(const struct run *run)
{
	for (unsigned i = 0; i < run->count; i++)
		if (is_packed(&run->entries[i]))
			return false;
	return run->stored_bytes == run->length_bytes;
}

static const uint8_t *run_stored(const struct run *run, unsigned i)
{
	return run->stored + (run->entries[i].offset - run->entries[0].offset);
}

static void run_bad(struct run *run, unsigned i, const char *reason)
{
	if (!reason)
		return;
	if (!run->bad)
		run->error = why_set(run->why, -EBADMSG, "%s: chunk %llu at byte %u: %s", run->name,
				     (unsigned long long)(run->first_chunk + i),
				     run->entries[i].offset, reason);
	run->bad |= 1u << i;
}

/* Of one or two chunks of the same length, from i on: unpacks and judges them. */
static void run_chunks(struct run *run, unsigned i, unsigned count, uint8_t *out, uint32_t length)
{
	uint8_t hash[2][SNAPFMT_HASH_BYTES];
	const char *reason[2];

	for (unsigned k = 0; k < count; k++)
		reason[k] = chunk_unpack(&run->entries[i + k], run_stored(run, i + k),
					 out + k * length, length);
	if (count == 2)
		sha256_pair(out, out + length, length, hash[0], hash[1]);
	else
		codec_hash(out, length, hash[0]);
	for (unsigned k = 0; k < count; k++) {
		if (!reason[k])
			reason[k] =
				chunk_judge(&run->entries[i + k], run_stored(run, i + k), hash[k]);
		run_bad(run, i + k, reason[k]);
	}
}

static void run_run(struct env_work *work)
{
	struct run *run = container_of(work, struct run, work);
	uint8_t *out = run->in_place && run->borrowed && is_content(run) ? run->stored : run->out;
	uint32_t at = 0;

	for (unsigned i = 0, count; i < run->count; i += count) {
		uint32_t length = chunk_bytes(run->first_chunk + i, run->volume_size_bytes);

		count = i + 1 < run->count && chunk_bytes(run->first_chunk + i + 1,
							  run->volume_size_bytes) == length
				? 2
				: 1;
		run_chunks(run, i, count, out + at, length);
		at += count * length;
	}
	run->content = out;
}

static void run_done(struct env_work *work)
{
	struct run *run = container_of(work, struct run, work);

	if (!run->borrowed)
		free(run->stored);
	run->stored = NULL;
	run->done(run);
}

static void run_submit(struct run *run)
{
	run->work = (struct env_work){.run = run_run, .done = run_done};
	env_work_submit(run->store->env, &run->work);
}

static void run_got(struct env_op *op, int64_t result)
{
	struct run *run = container_of(op, struct run, op);

	if (result == (int64_t)run->stored_bytes) {
		run_submit(run);
		return;
	}
	if (result == -ENOENT)
		run->error = why_set(run->why, -ENOENT, "%s: missing", run->name);
	else if (result < 0)
		run->error = why_set(run->why, (int)result, "%s: %s", run->name,
				     store_strerror((int)result));
	else
		run->error = why_set(run->why, -EBADMSG, "%s: truncated: chunk %llu at byte %u",
				     run->name, (unsigned long long)run->first_chunk,
				     run->entries[0].offset);
	run_done(&run->work);
}

static void run_begin(struct run *run)
{
	const struct snapfmt_entry *first = run->entries, *last = first + run->count - 1;

	assert(run->count >= 1 && run->count <= RUN_CHUNKS);
	run->error = 0;
	run->bad = 0;
	run->content = run->out;
	run->why[0] = '\0';
	run->length_bytes = 0;
	for (unsigned i = 0; i < run->count; i++)
		run->length_bytes += chunk_bytes(run->first_chunk + i, run->volume_size_bytes);
	snapfmt_name(SNAPFMT_PACK, run->volume, &first->pack, run->name);
	run->stored_bytes = last->offset + last->stored_bytes - first->offset;
}

void run_start(struct run *run)
{
	run_begin(run);
	run->borrowed = false;
	run->stored = malloc(run->stored_bytes);
	assert(run->stored);
	run->op.done = run_got;
	run->store->ops->get(run->store, &run->op, run->name, run->stored, run->stored_bytes,
			     run->entries[0].offset);
}

void run_check(struct run *run, const uint8_t *stored)
{
	run_begin(run);
	run->borrowed = true;
	run->stored = (uint8_t *)(uintptr_t)stored; /* only read */
	run_submit(run);
}
