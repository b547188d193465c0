/* SPDX-License-Identifier: Apache-2.0 */
/*
 * map: a snapshot's content on its way into the store. Map pages with something sealed are opened in
 * ascending order, a few at a time: the base's page is loaded, the sealed runs are read in batches,
 * hashed and compared with it, and what is new is compressed, on helper threads. On the loop thread a
 * finished batch gets its place in the pack being filled, to which a helper thread copies it. A page whose
 * batches are all done is encoded and gets its place in the maps object. Holes are not read, and a long one
 * is one step.
 */
#include "daemon/snapshot/seal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

void map_begin(struct snapshot_writer *w)
{
	const unsigned counts[3] = {0, 2 * SEAL_BATCHES, 2 * SEAL_BATCHES};

	w->slabs.slab_bytes = SLAB_BYTES;
	w->pool = buf_pool_new(counts);
	assert(w->pool);
	w->cursor = 0;
	w->base_cursor = 0;
	for (unsigned i = 0; i < SEAL_PAGES; i++) {
		w->pages[i] = must_alloc(sizeof(*w->pages[i]));
		w->pages[i]->writer = w;
	}
	for (unsigned i = 0; i < SEAL_BATCHES; i++) {
		w->batches[i] = (struct seal_batch){.writer = w, .zstd = ZSTD_createCCtx()};
		assert(w->batches[i].zstd);
	}
}

void map_end(struct snapshot_writer *w)
{
	assert(!w->batches_busy);
	span_end_last(w);
	for (unsigned i = 0; i < SEAL_PAGES; i++) {
		free(w->pages[i]);
		w->pages[i] = NULL;
	}
	for (unsigned i = 0; i < SEAL_BATCHES; i++) {
		ZSTD_freeCCtx(w->batches[i].zstd);
		w->batches[i].zstd = NULL;
	}
	pack_free(w->pack);
	pack_free(w->maps);
	slabs_end(&w->slabs, w->env);
	buf_pool_free(w->pool);
	w->pool = NULL;
	free(w->packs);
	free(w->mapses);
	free(w->changed);
	w->pack = w->maps = NULL;
	w->packs = w->mapses = NULL;
	w->changed = NULL;
	w->pack_count = w->pack_room = w->maps_count = w->maps_room = 0;
	w->changed_count = w->changed_room = 0;
}

bool map_idle(const struct snapshot_writer *w)
{
	if (w->puts)
		return false;
	for (unsigned i = 0; i < SEAL_BATCHES; i++)
		if (w->batches[i].page)
			return false;
	for (unsigned i = 0; i < SEAL_PAGES; i++)
		if (w->pages[i] &&
		    (w->pages[i]->state == PAGE_LOADING || w->pages[i]->state == PAGE_ENCODING))
			return false;
	return true;
}

/* ---- objects -------------------------------------------------------------------------------- */

static void put_done(void *context, int error, const char *why)
{
	struct snapshot_writer *w = context;

	w->puts--;
	if (error)
		seal_fail(w, error, "%s", why);
	seal_advance(w);
}

/* Reading and writing make room for clients, but not at the price of the cut. */
static bool is_gentle(const struct snapshot_writer *w)
{
	return pacer_beside_clients(&w->pacer) && !(w->cut && volume_cut_is_short(w->cut));
}

static void put_pack(struct snapshot_writer *w, struct pack **pack, struct seal_object *object)
{
	object->size_bytes = pack_size_bytes(*pack);
	object->total_count = pack_count(*pack);
	w->next->info.stored_bytes += object->size_bytes;
	w->next->info.objects++;
	w->puts++;
	rate_limit_take(&w->rate, object->size_bytes);
	w->repo->store->gentle = is_gentle(w);
	pack_put(*pack, w->repo->store, &w->next->info.retention, put_done, w);
	*pack = NULL;
}

static bool pack_is_full(const struct snapshot_writer *w)
{
	return w->pack && (pack_size_bytes(w->pack) >= w->pack_bytes ||
			   pack_count(w->pack) >= PACK_CHUNKS_MAX);
}

static bool maps_is_full(const struct snapshot_writer *w)
{
	return w->maps && pack_size_bytes(w->maps) >= SEAL_MAPS_BYTES;
}

/* Whether another full object may be put; if it is the rate that forbids it, the timer asks again. */
static bool may_put(struct snapshot_writer *w)
{
	if (w->puts >= (w->repo->store->lists_cost ? SEAL_PUTS_SERVICE : SEAL_PUTS))
		return false;
	uint64_t wait = rate_limit_wait_ns(&w->rate, env_now_ns(w->env), env_realtime_ns(w->env));
	if (wait && !env_timer_active(&w->rate_timer))
		env_timer_start(w->env, &w->rate_timer, wait);
	return wait == 0;
}

static void put_full(struct snapshot_writer *w)
{
	if (pack_is_full(w) && may_put(w))
		put_pack(w, &w->pack, &w->packs[w->pack_count - 1]);
	if (maps_is_full(w) && may_put(w))
		put_pack(w, &w->maps, &w->mapses[w->maps_count - 1]);
}

void map_flush(struct snapshot_writer *w)
{
	if (w->pack)
		put_pack(w, &w->pack, &w->packs[w->pack_count - 1]);
	if (w->maps)
		put_pack(w, &w->maps, &w->mapses[w->maps_count - 1]);
}

static struct snapfmt_ref own_ref(const struct snapshot_writer *w, size_t number)
{
	return (struct snapfmt_ref){w->next->info.id, w->next->info.sequence, (uint32_t)number};
}

static struct pack *current_pack(struct snapshot_writer *w)
{
	struct snapfmt_ref ref = own_ref(w, w->pack_count);

	if (!w->pack) {
		array_add((void **)&w->packs, &w->pack_count, &w->pack_room, sizeof(*w->packs));
		w->pack = pack_new(SNAPFMT_PACK, &w->repo->volume, &ref, w->repo->store->encrypted,
				   &w->slabs);
	}
	return w->pack;
}

static struct pack *current_maps(struct snapshot_writer *w)
{
	struct snapfmt_ref ref = own_ref(w, w->maps_count);

	if (!w->maps) {
		array_add((void **)&w->mapses, &w->maps_count, &w->maps_room, sizeof(*w->mapses));
		w->maps = pack_new(SNAPFMT_MAPS, &w->repo->volume, &ref, w->repo->store->encrypted,
				   NULL);
	}
	return w->maps;
}

/* ---- chunks --------------------------------------------------------------------------------- */

/* The chunk's old place is no longer used by this snapshot. */
static void entry_drop(struct snapshot_writer *w, struct snapfmt_entry *entry)
{
	struct manifest_object *object = manifest_find(w->base, SNAPFMT_PACK, &entry->pack);

	if (!object || !object->live_count || object->live_bytes < entry->stored_bytes) {
		w->base_damaged = true;
		seal_fail(w, -EBADMSG, "the snapshot before: its counts do not match its maps");
	} else {
		object->live_count--;
		object->live_bytes -= entry->stored_bytes;
	}
	*entry = (struct snapfmt_entry){.stored_bytes = 0};
}

/* Gives what the batch brought its place in the pack and in the map page. */
static void batch_attach(struct snapshot_writer *w, struct seal_batch *batch)
{
	struct seal_page *page = batch->page;
	uint32_t base = 0;

	if (batch->stored_bytes)
		base = pack_reserve(current_pack(w), batch->stored_bytes, &batch->place);
	for (unsigned i = 0; i < batch->count; i++) {
		uint64_t chunk = batch->first_chunk + i;
		struct snapfmt_entry *entry = &page->map.entries[chunk % SNAPFMT_PAGE_CHUNKS];
		struct seal_object *object;

		if (batch->chunks[i].state == CHUNK_SAME)
			continue;
		if (entry->stored_bytes) {
			entry_drop(w, entry);
			page->changed = true;
		}
		if (batch->chunks[i].state == CHUNK_ZERO)
			continue;
		*entry = batch->chunks[i].entry;
		entry->offset += base;
		entry->pack = own_ref(w, w->pack_count - 1);
		pack_index(w->pack, chunk, entry);
		object = &w->packs[w->pack_count - 1];
		object->live_count++;
		object->live_bytes += entry->stored_bytes;
		page->changed = true;
	}
}

static void batch_end(struct seal_batch *batch)
{
	struct snapshot_writer *w = batch->writer;

	buf_put(batch->buf);
	buf_put(batch->packed);
	batch->buf = batch->packed = NULL;
	batch->page->pending--;
	batch->page = NULL;
	w->batches_busy--;
	seal_advance(w);
}

static void batch_placed(struct env_work *work)
{
	struct seal_batch *batch = container_of(work, struct seal_batch, work);

	pack_placed(&batch->place);
	batch_end(batch);
}

static void batch_done(struct env_work *work)
{
	struct seal_batch *batch = container_of(work, struct seal_batch, work);
	struct snapshot_writer *w = batch->writer;

	w->progress.done_bytes += batch->read.length_bytes;
	if (!w->error)
		batch_attach(w, batch);
	if (!batch->place.pack) {
		batch_end(batch);
		return;
	}
	batch->work = (struct env_work){.run = batch_place_run, .done = batch_placed};
	env_work_submit(w->env, &batch->work);
}

/* The batch is zeroes, however long. */
static void batch_attach_zeroes(struct snapshot_writer *w, struct seal_batch *batch)
{
	struct seal_page *page = batch->page;

	for (unsigned i = 0; i < batch->count; i++) {
		uint64_t chunk = batch->first_chunk + i;
		struct snapfmt_entry *entry = &page->map.entries[chunk % SNAPFMT_PAGE_CHUNKS];

		if (!entry->stored_bytes)
			continue;
		entry_drop(w, entry);
		page->changed = true;
	}
	w->progress.done_bytes += batch->read.length_bytes;
}

static void batch_read_done(struct volume_cut_read *read, int error)
{
	struct seal_batch *batch = container_of(read, struct seal_batch, read);
	struct snapshot_writer *w = batch->writer;

	if (!batch->buf)
		batch->page->asking = false;
	if (error)
		seal_fail(w, error, "volume %s: reading at byte %llu: %s", volume_name(w->volume),
			  (unsigned long long)read->offset_bytes, strerror(-error));
	if (w->error) {
		batch_end(batch);
		return;
	}
	if (!batch->buf && !read->hole) { /* it is read */
		batch->page->at = read->offset_bytes;
		batch->page->read_to = read->offset_bytes + read->length_bytes;
		batch_end(batch);
		return;
	}
	w->next->info.changed_bytes += read->length_bytes;
	if (read->hole) {
		batch_attach_zeroes(w, batch);
		batch_end(batch);
		return;
	}
	batch->work = (struct env_work){.run = batch_run, .done = batch_done};
	env_work_submit(w->env, &batch->work);
}

/* Whether another batch may be read beside the clients; if not, a timer asks again. */
static bool may_read(struct snapshot_writer *w)
{
	uint64_t wait;

	if (volume_cut_is_short(w->cut)) /* too slow, and it is given up */
		return true;
	if (is_gentle(w) && w->batches_busy >= SEAL_GENTLE_BATCHES)
		return false;
	wait = pacer_wait_ns(&w->pacer);
	if (wait && wait != UINT64_MAX && !env_timer_active(&w->pace_timer))
		env_timer_start(w->env, &w->pace_timer, wait);
	return wait == 0;
}

/* Starts the page's next batch; false if there is no more to read or no room now. */
static bool batch_start(struct snapshot_writer *w, struct seal_page *page)
{
	struct seal_batch *batch = NULL;
	uint64_t start, length, max, hole = 0;

	if (page->at >= page->end || page->asking)
		return false;
	for (unsigned i = 0; i < SEAL_BATCHES && !batch; i++)
		if (!w->batches[i].page)
			batch = &w->batches[i];
	if (!batch || (pack_is_full(w) && !may_put(w)) || !may_read(w))
		return false;
	if (!volume_cut_next(w->cut, page->at, SNAPFMT_PAGE_BYTES, &start, &length) ||
	    start >= page->end) {
		page->at = page->end;
		return false;
	}
	if (length > page->end - start)
		length = page->end - start;
	assert(start % SNAPFMT_CHUNK_BYTES == 0);
	max = is_gentle(w) ? SEAL_GENTLE_BYTES : BUF_SIZE_MAX;
	if (length > max && start >= page->read_to)
		hole = volume_cut_hole_bytes(w->cut, start, length);
	if (hole > max) {
		length = hole;
		page->asking = true;
	} else {
		length = length < max ? length : max;
		batch->buf = buf_alloc(w->pool, (uint32_t)length);
		batch->packed = buf_alloc(w->pool, (uint32_t)length);
		assert(batch->buf && batch->packed); /* as many as slots */
		pacer_take(&w->pacer, length);
	}
	batch->page = page;
	batch->first_chunk = start / SNAPFMT_CHUNK_BYTES;
	batch->count = (unsigned)((length + SNAPFMT_CHUNK_BYTES - 1) / SNAPFMT_CHUNK_BYTES);
	batch->read = (struct volume_cut_read){
		.offset_bytes = start,
		.length_bytes = (uint32_t)length,
		.buf = batch->buf,
		.done = batch_read_done,
		.skip_hole = true,
	};
	page->pending++;
	page->at = start + length;
	w->batches_busy++;
	volume_cut_read(w->cut, &batch->read);
	return true;
}

/* ---- pages ---------------------------------------------------------------------------------- */

static void page_drop_old(struct snapshot_writer *w, const struct manifest_page *old)
{
	struct manifest_object *object;

	if (!old)
		return;
	object = &w->base->objects[old->object];
	if (!object->live_count || object->live_bytes < old->length_bytes) {
		w->base_damaged = true;
		seal_fail(w, -EBADMSG, "the snapshot before: its counts do not match its pages");
		return;
	}
	object->live_count--;
	object->live_bytes -= old->length_bytes;
}

static void page_encode_run(struct env_work *work)
{
	struct seal_page *page = container_of(work, struct seal_page, work);
	const size_t head = sizeof(struct snapfmt_page_wire);
	uint8_t *body = must_alloc(SNAPFMT_PAGE_BODY_MAX);
	size_t length = snapfmt_page_body_encode(&page->map, body);
	uint8_t *out = must_alloc(head + length);
	size_t kept = codec_pack(page->writer->zstd_level, body, length, out + head, length);

	page->chunk_count = 0;
	for (unsigned i = 0; i < SNAPFMT_PAGE_CHUNKS; i++)
		page->chunk_count += page->map.entries[i].stored_bytes != 0;
	if (!kept)
		memcpy(out + head, body, length);
	snapfmt_page_header_encode(page->map.number, kept ? SNAPFMT_ZSTD : 0, (uint32_t)length,
				   out + head, (uint32_t)(kept ? kept : length), (void *)out);
	page->encoded = out;
	page->encoded_bytes = (uint32_t)(head + (kept ? kept : length));
	free(body);
}

static void page_encode_done(struct env_work *work)
{
	struct seal_page *page = container_of(work, struct seal_page, work);
	struct snapshot_writer *w = page->writer;
	struct seal_changed *changed;
	struct seal_object *object;

	page->state = PAGE_FREE;
	if (w->error) {
		free(page->encoded);
		seal_advance(w);
		return;
	}
	page_drop_old(w, page->old);
	changed = array_add((void **)&w->changed, &w->changed_count, &w->changed_room,
			    sizeof(*changed));
	changed->pointer.number = (uint32_t)page->map.number;
	changed->pointer.chunk_count = page->chunk_count;
	if (page->chunk_count) {
		changed->pointer.length_bytes = page->encoded_bytes;
		changed->pointer.crc = crc32c(0, page->encoded, page->encoded_bytes);
		changed->pointer.offset =
			pack_add(current_maps(w), page->encoded, page->encoded_bytes);
		changed->pointer.object = (uint32_t)(w->maps_count - 1);
		pack_count_page(w->maps);
		object = &w->mapses[w->maps_count - 1];
		object->live_count++;
		object->live_bytes += page->encoded_bytes;
	} else {
		free(page->encoded);
	}
	page->encoded = NULL;
	seal_advance(w);
}

/* In a full comparison what is not sealed is not allocated: zeroes. */
static void page_drop_unsealed(struct snapshot_writer *w, struct seal_page *page)
{
	uint64_t first = page->map.number * SNAPFMT_PAGE_BYTES, at = first, start, length;

	while (at < page->end) {
		if (!volume_cut_next(w->cut, at, SNAPFMT_PAGE_BYTES, &start, &length) ||
		    start > page->end) {
			start = page->end;
			length = 0;
		}
		for (; at < start; at += SNAPFMT_CHUNK_BYTES) {
			struct snapfmt_entry *entry =
				&page->map.entries[(at - first) / SNAPFMT_CHUNK_BYTES];

			if (!entry->stored_bytes)
				continue;
			entry_drop(w, entry);
			page->changed = true;
		}
		at = start + length;
		if (!length)
			break;
	}
}

static void page_open(struct snapshot_writer *w, struct seal_page *page)
{
	page->state = PAGE_OPEN;
	if (w->full && page->old)
		page_drop_unsealed(w, page);
}

static void seal_page_loaded(void *context, int error, const char *why)
{
	struct seal_page *page = context;
	struct snapshot_writer *w = page->writer;

	if (error) {
		/* Of the store, for now; or the base is not what it should be, for good. */
		w->base_damaged |= error == -EBADMSG || error == -ENOENT;
		page->state = PAGE_FREE;
		seal_fail(w, error, "%s", why);
	} else if (w->error) {
		page->state = PAGE_FREE;
	} else {
		page_open(w, page);
	}
	seal_advance(w);
}

/* The next page that may change; false if there is none. */
static bool page_next(struct snapshot_writer *w, uint64_t *number, const struct manifest_page **old)
{
	uint64_t start, length, size = volume_size_bytes(w->volume);
	bool found = w->cursor * SNAPFMT_PAGE_BYTES < size &&
		     volume_cut_next(w->cut, w->cursor * SNAPFMT_PAGE_BYTES, SNAPFMT_PAGE_BYTES,
				     &start, &length);

	*number = found ? start / SNAPFMT_PAGE_BYTES : 0;
	*old = NULL;
	if (!w->base)
		return found;
	while (w->base_cursor < w->base->page_count &&
	       w->base->pages[w->base_cursor].number < w->cursor)
		w->base_cursor++;
	if (!w->full && !found)
		return false;
	if (!w->full)
		while (w->base_cursor < w->base->page_count &&
		       w->base->pages[w->base_cursor].number < *number)
			w->base_cursor++;
	if (w->base_cursor == w->base->page_count)
		return found;
	if (!found || w->base->pages[w->base_cursor].number <= *number) {
		*old = &w->base->pages[w->base_cursor];
		*number = (*old)->number;
	}
	return true;
}

static bool pages_open_next(struct snapshot_writer *w)
{
	struct seal_page *page = NULL;
	uint64_t number, size = volume_size_bytes(w->volume);

	for (unsigned i = 0; i < SEAL_PAGES && !page; i++)
		if (w->pages[i]->state == PAGE_FREE)
			page = w->pages[i];
	if (!page || (maps_is_full(w) && !may_put(w)) || !page_next(w, &number, &page->old))
		return false;
	w->cursor = number + 1;
	memset(&page->map, 0, sizeof(page->map));
	page->map.number = number;
	page->at = number * SNAPFMT_PAGE_BYTES;
	page->end = page->at + SNAPFMT_PAGE_BYTES < size ? page->at + SNAPFMT_PAGE_BYTES : size;
	page->read_to = 0;
	page->asking = false;
	page->pending = 0;
	page->changed = false;
	page->state = PAGE_LOADING;
	if (page->old)
		span_load(w, page, seal_page_loaded);
	else
		page_open(w, page);
	return true;
}

static struct seal_page *oldest_open(const struct snapshot_writer *w, uint64_t from)
{
	struct seal_page *oldest = NULL;

	for (unsigned i = 0; i < SEAL_PAGES; i++)
		if (w->pages[i]->state == PAGE_OPEN && w->pages[i]->map.number >= from &&
		    (!oldest || w->pages[i]->map.number < oldest->map.number))
			oldest = w->pages[i];
	return oldest;
}

void map_pump(struct snapshot_writer *w)
{
	struct seal_page *page;
	uint64_t from = 0;

	put_full(w);
	while (!w->error && pages_open_next(w))
		;
	while (!w->error && (page = oldest_open(w, from))) {
		from = page->map.number + 1;
		while (batch_start(w, page))
			;
		if (page->at < page->end || page->pending)
			continue;
		page->state = page->changed ? PAGE_ENCODING : PAGE_FREE;
		if (page->changed) {
			page->work =
				(struct env_work){.run = page_encode_run, .done = page_encode_done};
			env_work_submit(w->env, &page->work);
		} else {
			while (pages_open_next(w))
				;
			from = 0;
		}
	}
}

bool map_drained(struct snapshot_writer *w)
{
	const struct manifest_page *old;
	uint64_t number;

	for (unsigned i = 0; i < SEAL_PAGES; i++)
		if (w->pages[i]->state != PAGE_FREE)
			return false;
	return !page_next(w, &number, &old);
}

/* ---- the new map ---------------------------------------------------------------------------- */

static int changed_compare(const void *a, const void *b)
{
	uint32_t x = ((const struct seal_changed *)a)->pointer.number;
	uint32_t y = ((const struct seal_changed *)b)->pointer.number;

	return x < y ? -1 : x > y;
}

static void assemble_objects(struct snapshot_writer *w)
{
	struct manifest *next = w->next;
	unsigned base_count = w->base ? w->base->object_count : 0;
	const size_t sizes[] = {w->pack_count, w->maps_count};
	const struct seal_object *const own[] = {w->packs, w->mapses};
	const enum snapfmt_kind kinds[] = {SNAPFMT_PACK, SNAPFMT_MAPS};

	next->objects =
		must_alloc((base_count + w->pack_count + w->maps_count) * sizeof(*next->objects));
	for (unsigned i = 0; i < base_count; i++)
		if (w->base->objects[i].live_count)
			next->objects[next->object_count++] = w->base->objects[i];
	for (unsigned k = 0; k < 2; k++)
		for (size_t i = 0; i < sizes[k]; i++)
			next->objects[next->object_count++] = (struct manifest_object){
				.kind = kinds[k],
				.ref = own_ref(w, i),
				.total_count = own[k][i].total_count,
				.live_count = own[k][i].live_count,
				.size_bytes = own[k][i].size_bytes,
				.live_bytes = own[k][i].live_bytes,
			};
	qsort(next->objects, next->object_count, sizeof(*next->objects), manifest_object_compare);
}

static void assemble_page(struct manifest *next, const struct manifest_page *pointer,
			  const struct snapfmt_ref *ref)
{
	struct manifest_object *object = manifest_find(next, SNAPFMT_MAPS, ref);

	assert(object);
	next->pages[next->page_count] = *pointer;
	next->pages[next->page_count++].object = (uint32_t)(object - next->objects);
	next->info.data_bytes += (uint64_t)pointer->chunk_count * SNAPFMT_CHUNK_BYTES;
}

void map_assemble(struct snapshot_writer *w)
{
	struct manifest *next = w->next;
	unsigned base_count = w->base ? w->base->page_count : 0, b = 0;
	size_t c = 0;

	if (w->changed_count)
		qsort(w->changed, w->changed_count, sizeof(*w->changed), changed_compare);
	assemble_objects(w);
	next->pages = must_alloc((base_count + w->changed_count) * sizeof(*next->pages));
	while (b < base_count || c < w->changed_count) {
		const struct manifest_page *old = b < base_count ? &w->base->pages[b] : NULL;
		const struct manifest_page *new =
			c < w->changed_count ? &w->changed[c].pointer : NULL;
		struct snapfmt_ref ref;

		if (new && (!old || new->number <= old->number)) {
			ref = own_ref(w, new->object);
			if (new->chunk_count)
				assemble_page(next, new, &ref);
			b += old && old->number == new->number;
			c++;
		} else {
			assemble_page(next, old, &w->base->objects[old->object].ref);
			b++;
		}
	}
	/* The last chunk may be shorter; what is shown need not be nicer than that. */
	if (next->info.data_bytes > next->info.size_bytes)
		next->info.data_bytes = next->info.size_bytes;
}
