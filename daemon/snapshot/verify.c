/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verify: reads snapshots back and checks them, oldest first: manifest, then each object it names (size,
 * header, index), then its map pages, then its chunks or a random part of them. Snapshots share most of
 * what they need, so what was seen is remembered: a bit a chunk, and a bit for 64 bytes of a maps object
 * (no page is shorter). A page that leads to something bad is looked at again for each snapshot that has
 * it, as each is hit. Snapshots may be deleted meanwhile: damage is told only after one more look whether
 * the snapshot that is hit still exists.
 */
#include "daemon/snapshot/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS       8
#define PAGE_MARK   64u
#define PROGRESS_NS 250000000ull

_Static_assert(sizeof(struct snapfmt_page_wire) >= PAGE_MARK, "pages have marks of their own");

/* An object some snapshot names. */
struct checked {
	struct manifest_object object; /* its counts: of the first manifest that named it */
	bool examined, bad;            /* bad: all of it */
	bool archived;                 /* cannot be read now; that is no damage */
	bool counted;                  /* in bad_objects */
	uint64_t reported;             /* number of the snapshot that it was last reported for */
	uint8_t *seen, *tainted;       /* bits; tainted: bad, or leads to something bad */
	char why[WHY_BYTES];
};

/* Damage found in the present snapshot; told when it is known that nobody deleted it meanwhile. */
struct finding {
	struct checked *checked; /* NULL: the manifest itself */
	char *why;
};

struct verify;

struct verify_slot {
	struct verify *verify;
	bool busy;
	struct run run;
	struct walk_page *page;
	struct bulk_piece *piece;
	uint8_t *out;
};

struct verify {
	struct snapshot_repo *repo;
	struct id128 id; /* zero: all */
	unsigned percent;
	void (*bad)(void *context, const char *object, const char *why,
		    const struct snapshot_info *hit);
	void (*progress_fn)(void *context, const struct snapshot_progress *progress);
	void (*done)(void *context, const struct snapshot_result *result);
	void *context;
	struct snapshot_result result;
	struct snapshot_progress progress;
	uint64_t told_ns, total_before;

	struct names names;
	size_t next;     /* manifest */
	uint64_t number; /* of the present one, from 1 */
	struct manifest *manifest;
	struct checked *objects; /* sorted */
	size_t object_count;

	struct finding *findings;
	size_t finding_count, finding_room;

	size_t examine; /* index in manifest->objects */
	struct env_op op;
	char name[SNAPFMT_NAME_BYTES];
	struct snapfmt_header header;

	struct walk walk;
	struct bulk bulk;
	struct verify_slot slots[SLOTS];
	unsigned busy;
	bool finishing;
};

static void manifests_next(struct verify *v);
static void examine_next(struct verify *v);
static void pump(struct verify *v);

/* ---- what was seen ---------------------------------------------------------------------------- */

static bool bit_get(const uint8_t *bits, uint64_t i)
{
	return bits[i / 8] >> i % 8 & 1;
}

static void bit_set(uint8_t *bits, uint64_t i)
{
	bits[i / 8] |= (uint8_t)(1u << i % 8);
}

static uint64_t mark_count(const struct manifest_object *object)
{
	return object->kind == SNAPFMT_PACK ? object->total_count
					    : object->size_bytes / PAGE_MARK + 1;
}

static struct checked *checked_find(const struct verify *v, enum snapfmt_kind kind,
				    const struct snapfmt_ref *ref)
{
	struct manifest_object want = {.kind = kind, .ref = *ref};

	if (!v->object_count)
		return NULL;
	/* The object is the first member. */
	return bsearch(&want, v->objects, v->object_count, sizeof(*v->objects),
		       manifest_object_compare);
}

/* Takes the manifest's objects in; both lists are sorted alike. */
static void checked_merge(struct verify *v)
{
	const struct manifest *m = v->manifest;
	struct checked *all = must_alloc((v->object_count + m->object_count) * sizeof(*all));
	size_t a = 0, b = 0, n = 0;

	while (a < v->object_count || b < m->object_count) {
		int order = a == v->object_count   ? 1
			    : b == m->object_count ? -1
						   : manifest_object_compare(&v->objects[a].object,
									     &m->objects[b]);

		if (order <= 0) {
			all[n++] = v->objects[a++];
			b += order == 0;
		} else {
			struct checked *c = &all[n++];
			uint64_t bytes = mark_count(&m->objects[b]) / 8 + 1;

			c->object = m->objects[b++];
			c->seen = must_alloc(bytes);
			c->tainted = must_alloc(bytes);
		}
	}
	free(v->objects);
	v->objects = all;
	v->object_count = n;
}

/* ---- findings --------------------------------------------------------------------------------- */

static void finding_add(struct verify *v, struct checked *c, const char *why)
{
	struct finding *finding = array_add((void **)&v->findings, &v->finding_count,
					    &v->finding_room, sizeof(*finding));

	finding->checked = c;
	finding->why = must_alloc(strlen(why) + 1);
	memcpy(finding->why, why, strlen(why) + 1);
}

/* An object is bad for the present snapshot; noted once. */
static void report(struct verify *v, struct checked *c, const char *why)
{
	if (c->reported == v->number)
		return;
	c->reported = v->number;
	if (!c->why[0])
		why_set(c->why, 0, "%s", why);
	finding_add(v, c, why);
}

static void finding_tell(struct verify *v, const struct finding *finding)
{
	struct checked *c = finding->checked;
	const char *why = finding->why;
	char name[SNAPFMT_NAME_BYTES];

	if (!c || !c->counted)
		v->result.bad_objects++;
	if (c) {
		c->counted = true;
		snapfmt_name(c->object.kind, &v->repo->volume, &c->object.ref, name);
	} else {
		snapfmt_name(SNAPFMT_MANIFEST, &v->repo->volume, &v->names.refs[v->next - 1], name);
	}
	/* Reasons begin with the object's name, which is told apart. */
	if (!strncmp(why, name, strlen(name)) && why[strlen(name)] == ':')
		why += strlen(name) + 2;
	v->bad(v->context, name, why, c ? &v->manifest->info : NULL);
}

static void snapshot_over(struct verify *v)
{
	for (size_t i = 0; i < v->finding_count; i++)
		free(v->findings[i].why);
	v->finding_count = 0;
	manifest_free(v->manifest);
	v->manifest = NULL;
	manifests_next(v);
}

/* What a snapshot lacks that was deleted (by a prune, say) while it was looked at is no damage. */
static void findings_listed(void *context, struct names *names, int error, const char *why)
{
	struct verify *v = context;
	const struct id128 *snapshot = &v->names.refs[v->next - 1].snapshot;
	char id[ID128_TEXT_BYTES];
	bool there = error != 0; /* nobody knows */

	for (size_t i = 0; i < names->count; i++)
		there = there || id128_equal(&names->refs[i].snapshot, snapshot);
	for (size_t i = 0; there && i < v->finding_count; i++)
		finding_tell(v, &v->findings[i]);
	if (!there && !id128_is_zero(&v->id)) {
		id128_format(&v->id, id);
		v->result.error = why_set(v->result.why, -ENOENT,
					  "%s: was deleted from the store meanwhile", id);
	}
	snapshot_over(v);
}

static void findings_settle(struct verify *v)
{
	if (v->finding_count)
		names_list(v->repo->store, &v->repo->volume, findings_listed, v);
	else
		snapshot_over(v);
}

/* ---- chunks ----------------------------------------------------------------------------------- */

static struct checked *page_object(const struct verify *v, const struct manifest_page *pointer)
{
	struct checked *c =
		checked_find(v, SNAPFMT_MAPS, &v->manifest->objects[pointer->object].ref);

	assert(c);
	return c;
}

/* Marks are by the first manifest's sizes; another one's may be beyond them (and then is wrong). */
static void taint_page(struct verify *v, const struct manifest_page *pointer)
{
	struct checked *c = page_object(v, pointer);

	if (pointer->offset < c->object.size_bytes)
		bit_set(c->tainted, pointer->offset / PAGE_MARK);
}

static void slot_checked(struct run *run)
{
	struct verify_slot *slot = container_of(run, struct verify_slot, run);
	struct verify *v = slot->verify;
	struct checked *c = checked_find(v, SNAPFMT_PACK, &run->entries[0].pack);

	bulk_release(&v->bulk, slot->piece);
	v->result.checked_bytes += run->length_bytes;
	if (run->error) {
		taint_page(v, slot->page->pointer);
		report(v, c, run->why);
		if (run->error != -EBADMSG || !run->bad)
			run->bad = ~0u;
	}
	for (unsigned i = 0; i < run->count; i++) {
		bit_set(c->seen, run->entries[i].ordinal);
		if (run->error && run->bad >> i & 1)
			bit_set(c->tainted, run->entries[i].ordinal);
	}
	walk_release(&v->walk, slot->page);
	slot->busy = false;
	v->busy--;
	pump(v);
}

/* What can be said about a run without reading it; true: nothing is to be read. */
static bool settled(struct verify *v, const struct walk_item *item)
{
	struct checked *c = checked_find(v, SNAPFMT_PACK, &item->entries[0].pack);
	struct checked *page = page_object(v, item->page->pointer);
	bool all_seen = true;

	if (c && c->archived)
		return true;

	if (!c || !manifest_find(v->manifest, SNAPFMT_PACK, &item->entries[0].pack)) {
		taint_page(v, item->page->pointer);
		report(v, page, "leads to a pack that the manifest does not know");
		return true;
	}
	for (unsigned i = 0; i < item->count; i++) {
		uint32_t ordinal = item->entries[i].ordinal;

		if (ordinal >= c->object.total_count) {
			taint_page(v, item->page->pointer);
			report(v, page, "leads to a chunk that its pack does not have");
			return true;
		}
		all_seen = all_seen && bit_get(c->seen, ordinal);
		if (bit_get(c->tainted, ordinal)) {
			taint_page(v, item->page->pointer);
			report(v, c, c->why);
		}
	}
	if (c->bad)
		taint_page(v, item->page->pointer);
	return c->bad || all_seen;
}

static bool sampled(struct verify *v)
{
	uint32_t random;

	if (v->percent >= 100)
		return true;
	env_random(v->repo->env, &random, sizeof(random));
	return random % 100 < v->percent;
}

static void start_run(struct verify *v, struct bulk_piece *piece)
{
	const struct walk_item *item = &piece->item;
	struct verify_slot *slot = v->slots;

	while (slot->busy)
		slot++;
	assert(slot < v->slots + SLOTS);
	slot->busy = true;
	v->busy++;
	slot->verify = v;
	slot->page = item->page;
	slot->piece = piece;
	if (!slot->out)
		slot->out = must_alloc(BUF_SIZE_MAX);
	slot->run = (struct run){
		.store = v->repo->store,
		.volume = &v->repo->volume,
		.entries = item->entries,
		.first_chunk = item->first_chunk,
		.count = (unsigned)item->count,
		.volume_size_bytes = v->manifest->info.size_bytes,
		.out = slot->out,
		.in_place = true,
		.done = slot_checked,
	};
	if (piece->stored)
		run_check(&slot->run, piece->stored);
	else
		run_start(&slot->run);
}

/* ---- pages ------------------------------------------------------------------------------------- */

static bool page_wanted(struct walk *walk, const struct manifest_page *pointer)
{
	struct verify *v = container_of(walk, struct verify, walk);
	const struct checked *c = page_object(v, pointer);

	if (c->bad || c->archived)
		return false; /* reported, and there is no reading it */
	if (pointer->offset >= c->object.size_bytes)
		return true;
	return !bit_get(c->seen, pointer->offset / PAGE_MARK) ||
	       bit_get(c->tainted, pointer->offset / PAGE_MARK);
}

static void page_bad(struct walk *walk, const struct manifest_page *pointer, int error,
		     const char *why)
{
	struct verify *v = container_of(walk, struct verify, walk);

	taint_page(v, pointer);
	report(v, page_object(v, pointer), why);
}

static void walk_ready(struct walk *walk)
{
	pump(container_of(walk, struct verify, walk));
}

static void bulk_ready(struct bulk *bulk)
{
	pump(container_of(bulk, struct verify, bulk));
}

static void snapshot_finish(struct verify *v)
{
	const struct manifest *m = v->manifest;

	for (unsigned i = 0; i < m->page_count; i++) {
		struct checked *c = page_object(v, &m->pages[i]);

		if (m->pages[i].offset < c->object.size_bytes)
			bit_set(c->seen, m->pages[i].offset / PAGE_MARK);
	}
	v->progress.done_bytes = v->total_before += m->info.size_bytes;
	walk_end(&v->walk);
	findings_settle(v);
}

static void pump(struct verify *v)
{
	enum walk_result next = WALK_ITEM;
	struct bulk_piece *piece;
	struct walk_item item;
	uint64_t now = env_now_ns(v->repo->env);

	if (v->finishing)
		return;
	v->progress.done_bytes = v->total_before + v->walk.at * SNAPFMT_CHUNK_BYTES;
	if (v->progress_fn && now >= v->told_ns + PROGRESS_NS) {
		v->told_ns = now;
		v->progress_fn(v->context, &v->progress);
	}
	while (v->busy < SLOTS && (piece = bulk_take(&v->bulk)))
		start_run(v, piece);
	while (next == WALK_ITEM && bulk_has_room(&v->bulk)) {
		next = walk_next(&v->walk, &item);
		if (next != WALK_ITEM || !item.page)
			continue;
		if (settled(v, &item) || !sampled(v))
			walk_release(&v->walk, item.page);
		else
			bulk_add(&v->bulk, &item);
	}
	if (next == WALK_END)
		bulk_flush(&v->bulk);
	if (next != WALK_END || v->busy || !bulk_idle(&v->bulk) || !walk_idle(&v->walk))
		return;
	v->finishing = true; /* of this snapshot */
	snapshot_finish(v);
}

static void walk_start(struct verify *v)
{
	v->finishing = false;
	v->bulk.store = v->repo->store;
	v->bulk.volume = &v->repo->volume;
	v->bulk.ready = bulk_ready;
	v->walk = (struct walk){
		.store = v->repo->store,
		.manifest = v->manifest,
		.ready = walk_ready,
		.bad_page = page_bad,
		.wanted = page_wanted,
	};
	walk_begin(&v->walk);
	pump(v);
}

/* ---- objects ----------------------------------------------------------------------------------- */

static void examined(struct verify *v, const char *why)
{
	struct checked *c = checked_find(v, v->manifest->objects[v->examine].kind,
					 &v->manifest->objects[v->examine].ref);

	c->examined = true;
	if (why) {
		c->bad = true;
		report(v, c, why);
	}
	v->examine++;
	examine_next(v);
}

static void examined_archived(struct verify *v)
{
	checked_find(v, v->manifest->objects[v->examine].kind,
		     &v->manifest->objects[v->examine].ref)
		->archived = true;
	v->result.archived_objects++;
	examined(v, NULL);
}

/* The end of the object: a pack's index; zeroes, if it is padded. */
static const char *tail_invalid(const struct snapfmt_header *header, const uint8_t *data,
				size_t length)
{
	size_t index = length - header->padding_bytes;

	if (!bytes_are_zero(data + index, header->padding_bytes))
		return "padding is not zero";
	if (header->kind != SNAPFMT_PACK)
		return NULL;
	if (crc32c(0, data, index) != header->table_crc)
		return "index checksum";
	return snapfmt_index_invalid(header, (const void *)data);
}

static void tail_fetched(void *context, uint8_t *data, size_t length, int error, const char *why)
{
	struct verify *v = context;
	const char *reason = error ? why : tail_invalid(&v->header, data, length);

	free(data);
	examined(v, reason);
}

static void header_fetched(void *context, uint8_t *data, size_t length, int error, const char *why)
{
	struct verify *v = context;
	const struct manifest_object *object = &v->manifest->objects[v->examine];
	const char *reason = why;
	uint64_t tail;

	if (error == -STORE_ARCHIVED) {
		examined_archived(v);
		return;
	}

	if (!error) {
		reason = snapfmt_header_decode((const void *)data, object->kind, &v->repo->volume,
					       &object->ref, &v->header);
		if (!reason && (v->header.size_bytes != object->size_bytes ||
				v->header.table_count != object->total_count))
			reason = "is not as the manifest says";
	}
	free(data);
	tail = v->header.padding_bytes;
	if (object->kind == SNAPFMT_PACK)
		tail += v->header.table_count * sizeof(struct snapfmt_index_wire);
	if (reason || !tail)
		examined(v, reason);
	else
		fetch(v->repo->store, v->name, v->header.size_bytes - tail, tail, tail_fetched, v);
}

static void size_got(struct env_op *op, int64_t result)
{
	struct verify *v = container_of(op, struct verify, op);
	const struct manifest_object *object = &v->manifest->objects[v->examine];

	if (result == -ENOENT)
		examined(v, "missing");
	else if (result < 0)
		examined(v, store_strerror((int)result));
	else if ((uint64_t)result != object->size_bytes)
		examined(v, (uint64_t)result < object->size_bytes ? "truncated"
								  : "longer than it should be");
	else
		fetch(v->repo->store, v->name, 0, sizeof(struct snapfmt_header_wire),
		      header_fetched, v);
}

static void examine_next(struct verify *v)
{
	const struct manifest *m = v->manifest;

	for (; v->examine < m->object_count; v->examine++) {
		const struct manifest_object *object = &m->objects[v->examine];
		struct checked *c = checked_find(v, object->kind, &object->ref);

		if (!c->examined) {
			snapfmt_name(object->kind, &v->repo->volume, &object->ref, v->name);
			v->op.done = size_got;
			v->repo->store->ops->size(v->repo->store, &v->op, v->name);
			return;
		}
		if (c->bad)
			report(v, c, c->why);
	}
	walk_start(v);
}

/* ---- manifests --------------------------------------------------------------------------------- */

static void verify_end(struct verify *v)
{
	if (!v->result.error && v->result.bad_objects)
		v->result.error = why_set(v->result.why, -EBADMSG, "%u damaged or missing objects",
					  v->result.bad_objects);
	if (v->progress_fn)
		v->progress_fn(v->context, &v->progress);
	for (size_t i = 0; i < v->object_count; i++) {
		free(v->objects[i].seen);
		free(v->objects[i].tainted);
	}
	bulk_end(&v->bulk);
	free(v->objects);
	free(v->findings);
	for (unsigned i = 0; i < SLOTS; i++)
		free(v->slots[i].out);
	names_free(&v->names);
	v->repo->under_way--;
	v->done(v->context, &v->result);
	free(v);
}

static void manifest_loaded(void *context, struct manifest *manifest, int error, const char *why)
{
	struct verify *v = context;

	v->number++;
	if (error) {
		finding_add(v, NULL, why);
		findings_settle(v);
		return;
	}
	v->manifest = manifest;
	v->progress.total_bytes += manifest->info.size_bytes;
	checked_merge(v);
	v->examine = 0;
	examine_next(v);
}

static void manifests_next(struct verify *v)
{
	while (v->next < v->names.count && !id128_is_zero(&v->id) &&
	       !id128_equal(&v->id, &v->names.refs[v->next].snapshot))
		v->next++;
	if (v->next == v->names.count) {
		verify_end(v);
		return;
	}
	manifest_load(v->repo->store, &v->repo->volume, &v->names.refs[v->next++], manifest_loaded,
		      v);
}

static void verify_listed(void *context, struct names *names, int error, const char *why)
{
	struct verify *v = context;
	char id[ID128_TEXT_BYTES];
	bool found = id128_is_zero(&v->id);

	for (size_t i = 0; i < names->count; i++)
		found = found || id128_equal(&v->id, &names->refs[i].snapshot);
	id128_format(&v->id, id);
	if (error)
		v->result.error = why_set(v->result.why, error, "%s", why);
	else if (!found)
		v->result.error =
			why_set(v->result.why, -ENOENT, "%s: no such snapshot in the store", id);
	if (v->result.error) {
		verify_end(v);
		return;
	}
	v->names = *names;
	*names = (struct names){.count = 0};
	manifests_next(v);
}

void snapshot_verify(struct snapshot_repo *repo, const struct id128 *id, unsigned sample_percent,
		     void (*bad)(void *context, const char *object, const char *why,
				 const struct snapshot_info *hit),
		     void (*progress)(void *context, const struct snapshot_progress *progress),
		     void (*done)(void *context, const struct snapshot_result *result),
		     void *context)
{
	struct verify *v = must_alloc(sizeof(*v));

	v->repo = repo;
	v->percent = sample_percent;
	v->bad = bad;
	v->progress_fn = progress;
	v->done = done;
	v->context = context;
	v->progress.started_ns = env_now_ns(repo->env);
	if (id)
		v->id = *id;
	repo->under_way++;
	names_list(repo->store, &repo->volume, verify_listed, v);
}
