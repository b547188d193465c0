/* SPDX-License-Identifier: Apache-2.0 */
/*
 * present: what of a snapshot a target has already. Chunks are looked at in stretches of neighbours: those that
 * lie in a hole differ, those that the target knows to be the snapshot's do not, and both are known without
 * reading; the others are read and hashed, several stretches at a time, on the helper threads. What cannot be read
 * differs.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/snapshot/internal.h"
#include "daemon/snapshot/sha256.h"

_Static_assert(RUN_CHUNKS < 32, "a stretch's chunks have a bit each");

bool present_has_room(const struct present *p)
{
	return p->count < PRESENT_LOOKS;
}

bool present_idle(const struct present *p)
{
	return p->count == 0;
}

/* ---- one stretch ----------------------------------------------------------------------------- */

static void look_done(struct present_look *look)
{
	buf_put(look->buf);
	look->buf = NULL;
	look->state = PRESENT_DONE;
}

static const struct snapfmt_entry *entry_of(const struct present_look *look, unsigned chunk)
{
	unsigned i = 0;

	while (chunk >= look->items[i].count)
		chunk -= (unsigned)look->items[i++].count;
	return &look->items[i].entries[chunk];
}

/* Of one or two chunks of the same length: which of them are not what the snapshot has. */
static uint32_t hash_differs(const struct present_look *look, const uint8_t *data, unsigned chunk,
			     unsigned count, uint32_t length)
{
	uint8_t hash[2][SNAPFMT_HASH_BYTES];
	uint32_t differs = 0;

	if (count == 2)
		sha256_pair(data, data + length, length, hash[0], hash[1]);
	else
		codec_hash(data, length, hash[0]);
	for (unsigned k = 0; k < count; k++)
		if (memcmp(hash[k], entry_of(look, chunk + k)->hash, SNAPFMT_HASH_BYTES) != 0)
			differs |= 1u << (chunk + k);
	return differs;
}

static void look_run(struct env_work *work)
{
	struct present_look *look = container_of(work, struct present_look, work);
	uint64_t size = look->present->volume_size_bytes;

	for (unsigned i = 0, count; i < look->chunks; i += count) {
		uint32_t length = chunk_bytes(look->first_chunk + i, size);

		count = 1;
		if (!(look->unknown >> i & 1))
			continue;
		if (look->unknown >> (i + 1) & 1 &&
		    chunk_bytes(look->first_chunk + i + 1, size) == length)
			count = 2;
		look->differs |= hash_differs(
			look, look->buf->data + (i - look->read_first) * SNAPFMT_CHUNK_BYTES, i,
			count, length);
	}
}

static void look_hashed(struct env_work *work)
{
	struct present_look *look = container_of(work, struct present_look, work);

	look_done(look);
	look->present->ready(look->present);
}

static void look_read(struct env_op *op, int64_t result)
{
	struct present_look *look = container_of(op, struct present_look, op);
	struct present *p = look->present;

	if (result == (int64_t)look->read_bytes) {
		look->work = (struct env_work){.run = look_run, .done = look_hashed};
		env_work_submit(p->env, &look->work);
		return;
	}
	look->differs |= look->unknown;
	look_done(look);
	p->ready(p);
}

/* All of it is known, or what is not is read, as one range. */
static void look_start(struct present_look *look)
{
	struct present *p = look->present;
	unsigned last = look->chunks;
	uint64_t offset, end;

	p->gathering = NULL;
	if (!look->unknown) {
		look_done(look);
		return;
	}
	look->read_first = (unsigned)__builtin_ctz(look->unknown);
	while (!(look->unknown >> (last - 1) & 1))
		last--;
	offset = (look->first_chunk + look->read_first) * SNAPFMT_CHUNK_BYTES;
	end = (look->first_chunk + last) * SNAPFMT_CHUNK_BYTES;
	if (end > p->volume_size_bytes)
		end = p->volume_size_bytes;
	look->read_bytes = (uint32_t)(end - offset);
	look->buf = buf_alloc(p->pool, look->read_bytes);
	assert(look->buf); /* as many as looks */
	look->state = PRESENT_READING;
	look->op.done = look_read;
	p->target->read(p->target, &look->op, look->buf, offset, look->read_bytes);
}

/* ---- what is added --------------------------------------------------------------------------- */

/* The target's next data from offset on; all of it if that cannot be told. */
static void data_at(struct present *p, uint64_t offset)
{
	struct snapshot_target *target = p->target;
	int error = 0;

	if (offset >= p->data_from && offset < p->data_end)
		return;
	p->data_from = p->data_start = offset;
	p->data_end = UINT64_MAX;
	if (target->next_data)
		error = target->next_data(target, offset, &p->data_start, &p->data_end);
	if (error == -ENXIO)
		p->data_start = p->data_end = UINT64_MAX;
	else if (error)
		p->data_start = offset, p->data_end = UINT64_MAX;
}

/* The same of what may differ. */
static void differing_at(struct present *p, uint64_t offset)
{
	struct snapshot_target *target = p->target;
	int error = 0;

	if (offset >= p->differing_from && offset < p->differing_end)
		return;
	p->differing_from = p->differing_start = offset;
	p->differing_end = UINT64_MAX;
	if (target->next_differing)
		error = target->next_differing(target, offset, &p->differing_start,
					       &p->differing_end);
	if (error == -ENXIO)
		p->differing_start = p->differing_end = UINT64_MAX;
	else if (error)
		p->differing_start = offset, p->differing_end = UINT64_MAX;
}

static void chunk_add(struct present_look *look, uint64_t chunk)
{
	struct present *p = look->present;
	uint64_t offset = chunk * SNAPFMT_CHUNK_BYTES;
	uint64_t end = offset + chunk_bytes(chunk, p->volume_size_bytes);
	uint32_t bit = 1u << look->chunks++;

	differing_at(p, offset);
	if (p->differing_start >= end)
		return;
	data_at(p, offset);
	if (p->data_start >= end)
		look->differs |= bit; /* it is not zero in the snapshot */
	else
		look->unknown |= bit;
}

static struct present_look *look_new(struct present *p, uint64_t first_chunk)
{
	struct present_look *look = p->looks;

	assert(present_has_room(p));
	while (look->state != PRESENT_FREE)
		look++;
	*look = (struct present_look){.present = p,
				      .state = PRESENT_GATHERING,
				      .number = ++p->added,
				      .first_chunk = first_chunk};
	p->count++;
	p->gathering = look;
	return look;
}

void present_add(struct present *p, const struct walk_item *item)
{
	struct present_look *look = p->gathering;

	assert(item->page && item->count <= RUN_CHUNKS);
	if (look && (item->first_chunk != look->first_chunk + look->chunks ||
		     look->chunks + item->count > RUN_CHUNKS)) {
		look_start(look);
		look = NULL;
	}
	if (!look)
		look = look_new(p, item->first_chunk);
	look->items[look->item_count++] = *item;
	for (uint64_t i = 0; i < item->count; i++)
		chunk_add(look, item->first_chunk + i);
	if (look->chunks == RUN_CHUNKS)
		look_start(look);
}

void present_flush(struct present *p)
{
	if (p->gathering)
		look_start(p->gathering);
}

void present_give_up(struct present *p)
{
	if (!p->gathering)
		return;
	look_done(p->gathering);
	p->gathering = NULL;
}

/* ---- what is taken --------------------------------------------------------------------------- */

static uint64_t item_bytes(const struct present *p, uint64_t first_chunk, uint64_t count)
{
	uint64_t end = (first_chunk + count) * SNAPFMT_CHUNK_BYTES;

	if (end > p->volume_size_bytes)
		end = p->volume_size_bytes;
	return end - first_chunk * SNAPFMT_CHUNK_BYTES;
}

/* The next of the stretch's chunks that differ and lie together. */
static bool look_take(struct present_look *look, struct walk_item *item)
{
	while (look->taken_items < look->item_count) {
		const struct walk_item *from = &look->items[look->taken_items];
		unsigned base = (unsigned)(from->first_chunk - look->first_chunk);
		unsigned first = look->taken_chunks, count = 0;

		while (first < from->count && !(look->differs >> (base + first) & 1))
			first++;
		while (first + count < from->count && look->differs >> (base + first + count) & 1)
			count++;
		look->present->same_bytes +=
			item_bytes(look->present, from->first_chunk + look->taken_chunks,
				   first - look->taken_chunks);
		look->taken_chunks = first + count;
		if (count) {
			*item = (struct walk_item){.page = from->page,
						   .first_chunk = from->first_chunk + first,
						   .count = count,
						   .entries = from->entries + first};
			item->page->references++;
			return true;
		}
		walk_release(look->present->walk, from->page);
		look->taken_items++;
		look->taken_chunks = 0;
	}
	return false;
}

bool present_take(struct present *p, struct walk_item *item)
{
	for (;;) {
		struct present_look *oldest = NULL;

		for (unsigned i = 0; i < PRESENT_LOOKS; i++) {
			struct present_look *look = &p->looks[i];

			if (look->state == PRESENT_DONE &&
			    (!oldest || look->number < oldest->number))
				oldest = look;
		}
		if (!oldest)
			return false;
		if (look_take(oldest, item))
			return true;
		oldest->state = PRESENT_FREE;
		p->count--;
	}
}
