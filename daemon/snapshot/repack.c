/* SPDX-License-Identifier: Apache-2.0 */
/*
 * repack: gives the space of packs back that are mostly dead. A pack stays as long as one chunk of it is
 * needed; where writes are scattered, most packs keep a few such chunks for very long.
 *
 * Nothing is read back from the store but the packs' indexes: what lives in them is unchanged in the volume.
 * So the chunks that a chosen pack held are marked as if written; the next snapshot reads them, finds those
 * that are still the same, and stores them again in packs of its own (map.c). It is a snapshot like any other,
 * and safe as such; a crash costs reads. The old pack goes with the last older snapshot that needs it.
 *
 * A pack is chosen when no snapshot there is needs more than a fifth of it, and at least a MiB is dead: to
 * store that fifth once more costs at most a quarter of what comes back. As it is asked after each deletion
 * only, nothing is repacked where all snapshots stay. Not where packs are locked: they could not go. A pack
 * that cannot be read now, as it is archived, is left alone.
 */
#include "daemon/snapshot/seal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define PACKS_MAX 16 /* a snapshot: bounds what is read, and stored again, beside what changed */
#define LIVE_PART 5
#define DEAD_MIN  (1u << 20)

struct repack {
	struct snapshot_writer *writer;
	struct snapfmt_ref chosen[PACKS_MAX];
	unsigned count, next;
	uint64_t live_bytes, dead_bytes;
	char name[SNAPFMT_NAME_BYTES];
	struct snapfmt_header header;
	void (*done)(struct snapshot_writer *w);
};

static int ref_compare(const void *a, const void *b)
{
	return snapfmt_ref_compare(a, b);
}

bool repack_wants(const struct snapshot_writer *w, const struct snapfmt_ref *pack)
{
	return w->repack_count &&
	       bsearch(pack, w->repack, w->repack_count, sizeof(*w->repack), ref_compare) != NULL;
}

bool repack_pays(const struct manifest_object *object)
{
	return object->kind == SNAPFMT_PACK &&
	       object->live_bytes <= object->size_bytes / LIVE_PART &&
	       object->size_bytes - object->live_bytes >= DEAD_MIN;
}

static void pack_next(struct repack *r);

static void repack_end(struct repack *r)
{
	struct snapshot_writer *w = r->writer;
	void (*done)(struct snapshot_writer *) = r->done;

	qsort(w->repack, w->repack_count, sizeof(*w->repack), ref_compare);
	if (w->repack_count)
		env_log(w->env, ENV_LOG_INFO,
			"volume %s: the next snapshot stores %llu KiB again, so that %u packs with "
			"%llu KiB of what is dead can go",
			volume_name(w->volume), (unsigned long long)(r->live_bytes >> 10),
			w->repack_count, (unsigned long long)(r->dead_bytes >> 10));
	free(r);
	done(w);
}

/* The chunks it was written for; most of them lie elsewhere by now, which the next snapshot sees. */
static void index_fetched(void *context, uint8_t *data, size_t length, int error, const char *why)
{
	struct repack *r = context;
	struct snapshot_writer *w = r->writer;
	const struct snapfmt_index_wire *index = (const void *)data;
	const struct manifest_object *object;
	uint64_t size = volume_size_bytes(w->volume);

	if (!error && crc32c(0, data, length) == r->header.table_crc &&
	    !snapfmt_index_invalid(&r->header, index)) {
		for (uint32_t i = 0; !error && i < r->header.table_count; i++) {
			uint64_t chunk = from_be64(index[i].chunk);

			if (chunk < (size + SNAPFMT_CHUNK_BYTES - 1) / SNAPFMT_CHUNK_BYTES)
				error = volume_mark(w->volume, VOLUME_STORE,
						    chunk * SNAPFMT_CHUNK_BYTES,
						    chunk_bytes(chunk, size));
		}
		object = manifest_find(w->next, SNAPFMT_PACK, &r->chosen[r->next]);
		if (!error && object) {
			w->repack[w->repack_count++] = r->chosen[r->next];
			r->live_bytes += object->live_bytes;
			r->dead_bytes += object->size_bytes - object->live_bytes;
		}
	}
	free(data);
	r->next++;
	pack_next(r);
}

static void header_fetched(void *context, uint8_t *data, size_t length, int error, const char *why)
{
	struct repack *r = context;

	if (!error &&
	    !snapfmt_header_decode((const void *)data, SNAPFMT_PACK, &r->writer->repo->volume,
				   &r->chosen[r->next], &r->header)) {
		fetch(r->writer->repo->store, r->name, r->header.table_offset,
		      r->header.table_count * sizeof(struct snapfmt_index_wire), index_fetched, r);
	} else {
		r->next++;
		pack_next(r);
	}
	free(data);
}

static void pack_next(struct repack *r)
{
	struct snapshot_writer *w = r->writer;

	if (r->next == r->count || w->freed) {
		repack_end(r);
		return;
	}
	snapfmt_name(SNAPFMT_PACK, &w->repo->volume, &r->chosen[r->next], r->name);
	fetch(w->repo->store, r->name, 0, sizeof(struct snapfmt_header_wire), header_fetched, r);
}

void repack_plan(struct snapshot_writer *w, void (*done)(struct snapshot_writer *w))
{
	struct repack *r = must_alloc(sizeof(*r));

	*r = (struct repack){.writer = w, .done = done};
	free(w->repack);
	w->repack = must_alloc(PACKS_MAX * sizeof(*w->repack));
	w->repack_count = 0;
	for (size_t i = 0; i < w->repo->sparse_count && r->count < PACKS_MAX; i++)
		if (w->repack_on && !w->lock &&
		    manifest_find(w->next, SNAPFMT_PACK, &w->repo->sparse[i]))
			r->chosen[r->count++] = w->repo->sparse[i];
	pack_next(r);
}
