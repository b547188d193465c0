// SPDX-License-Identifier: Apache-2.0
/*
 * Maps of what changed since a snapshot (protocol/nbd.md, section 6), under two names: our own, and that of a
 * dirty bitmap, which other programs know.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/node/exports_internal.h"
#include "protocol/nbd.h"

#define LISTED_SNAPSHOTS 128u
#define LIST_WAIT_NS     2000000000ull /* a store that takes longer is not waited for */
#define TEXT_BYTES       64u

/* ---- a map that is open ---------------------------------------------------------------------------- */

struct changed_map {
	struct block_map map;
	struct exports *exports;
	struct snapshot_diff *diff;
	bool is_bitmap;
	char name[64]; /* of the volume, for the log */
	char logged[256];
};

/* In the question's priv. */
struct map_question {
	struct changed_map *map;
	struct block_status *status;
	struct snapshot_extent *extents;
	struct snapshot_diff_ask ask;
};
_Static_assert(sizeof(struct map_question) <= sizeof(((struct block_status *)0)->priv), "it fits");

static void map_asked(struct snapshot_diff_ask *ask, int error, const char *why)
{
	struct map_question *q = exports_of(ask, struct map_question, ask);
	struct block_status *status = q->status;
	struct changed_map *map = q->map;

	status->count = ask->count;
	for (unsigned i = 0; i < ask->count; i++) {
		const struct snapshot_extent *e = &q->extents[i];
		uint32_t flags = e->changed ? NBD_STATE_CHANGED : 0;

		if (e->zero && !map->is_bitmap)
			flags |= NBD_STATE_CHANGED_ZERO;
		status->extents[i] =
			(struct block_extent){.length_bytes = e->length_bytes, .flags = flags};
	}
	free(q->extents);
	if (error && error != -ECANCELED && strcmp(map->logged, why) != 0) {
		snprintf(map->logged, sizeof(map->logged), "%s", why);
		env_log(map->exports->env, ENV_LOG_ERROR, "volume %s: what changed: %s", map->name,
			why);
	}
	status->done(status, !error ? 0 : error == -ECANCELED ? -ESHUTDOWN : -EIO);
}

static void map_status(struct block_map *block_map, struct block_status *status)
{
	struct changed_map *map = exports_of(block_map, struct changed_map, map);
	struct map_question *q = (struct map_question *)status->priv;
	uint64_t size = snapshot_diff_ends(map->diff)->size_bytes;

	/* A volume that was grown since the map was opened: of the rest nothing is known here. */
	if (status->offset_bytes >= size) {
		status->extents[0] = (struct block_extent){.length_bytes = status->length_bytes,
							   .flags = NBD_STATE_CHANGED};
		status->count = 1;
		status->done(status, 0);
		return;
	}
	*q = (struct map_question){.map = map, .status = status};
	q->extents = calloc(status->max, sizeof(*q->extents));
	if (!q->extents) {
		status->done(status, -ENOMEM);
		return;
	}
	q->ask = (struct snapshot_diff_ask){
		.offset_bytes = status->offset_bytes,
		.length_bytes = status->length_bytes,
		.extents = q->extents,
		.max = status->max,
		.done = map_asked,
	};
	if (q->ask.length_bytes > size - status->offset_bytes)
		q->ask.length_bytes = size - status->offset_bytes;
	snapshot_diff_ask(map->diff, &q->ask);
}

static void map_closed(void *context)
{
	struct changed_map *map = context;
	struct exports *x = map->exports;

	x->map_count--;
	free(map);
	exports_end(x);
}

static void map_close(struct block_map *block_map)
{
	struct changed_map *map = exports_of(block_map, struct changed_map, map);

	snapshot_diff_close(map->diff, map_closed, map);
}

/* ---- opening one ------------------------------------------------------------------------------------- */

struct map_opening {
	struct exports *exports;
	struct map_opening *next;
	struct block_map_open *open; /* NULL: answered, for the server stops */
	struct node_volume *volume;
	struct id128 to; /* zero: the volume as it is */
	struct changed_map *map;
};

static void opening_end(struct map_opening *o, struct changed_map *map, const char *why)
{
	struct exports *x = o->exports;
	struct map_opening **link = &x->openings;
	struct block_map_open *open = o->open;

	if (!map) {
		env_log(x->env, ENV_LOG_DEBUG, "volume %s: what changed: %s",
			o->volume->config->name, why);
		free(o->map);
		x->map_count--;
	}
	while (*link != o)
		link = &(*link)->next;
	*link = o->next;
	free(o);
	if (open)
		open->done(open, map ? &map->map : NULL);
	else if (map)
		map->map.close(&map->map);
	if (!map)
		exports_end(x); /* else it is the map that is counted from now on */
}

static void opening_opened(void *context, struct snapshot_diff *diff, int error, const char *why)
{
	struct map_opening *o = context;

	o->map->diff = diff;
	opening_end(o, error ? NULL : o->map, why);
}

static void opening_found(void *context, const struct snapshot_info *found, int error,
			  const char *why)
{
	struct map_opening *o = context;

	if (error || !o->open) {
		opening_end(o, NULL, why);
		return;
	}
	if (!id128_is_zero(&o->to)) {
		snapshot_diff_open(o->volume->repo, &found->id, &o->to, NULL, opening_opened, o);
		return;
	}
	if (!snapshot_diff_knows(o->volume->volume))
		opening_end(o, NULL, "the volume's map is relative to no snapshot");
	else
		snapshot_diff_open(o->volume->repo, &found->id, NULL, o->volume->volume,
				   opening_opened, o);
}

/* The snapshot that the name of a map speaks of; NULL: it is none of these. */
static const char *since_of(const char *name, bool *is_bitmap)
{
	static const char *const prefixes[] = {NBD_META_CHANGED, NBD_META_DIRTY_BITMAP};

	for (unsigned i = 0; i < 2; i++) {
		*is_bitmap = i;
		if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
			return name + strlen(prefixes[i]);
	}
	return NULL;
}

void exports_map_open(struct exports *x, struct block *block, const char *name,
		      struct block_map_open *open)
{
	struct map_opening *o = calloc(1, sizeof(*o));
	struct changed_map *map = calloc(1, sizeof(*map));
	struct node_volume *volume = NULL;
	struct id128 to;
	bool is_bitmap;
	const char *since = since_of(name, &is_bitmap);

	if (!o || !map || !since || x->stopping || x->map_count == EXPORTS_MAPS_MAX ||
	    !exports_device(x, block, &volume, &to) || !volume->repo) {
		free(o);
		free(map);
		open->done(open, NULL);
		return;
	}
	*map = (struct changed_map){{map_status, map_close}, x, NULL, is_bitmap, "", ""};
	snprintf(map->name, sizeof(map->name), "%s", volume->config->name);
	*o = (struct map_opening){x, x->openings, open, volume, to, map};
	x->openings = o;
	x->map_count++;
	exports_begin(x);
	snapshot_find(volume->repo, since, opening_found, o);
}

/* ---- listing ------------------------------------------------------------------------------------------ */

struct map_listing {
	struct exports *exports;
	struct map_listing *next;
	struct block_map_list *list; /* NULL: answered */
	struct id128 to;
	struct env_timer timer;
};

static void listing_answer(struct map_listing *l, const char *const *names, unsigned count)
{
	struct block_map_list *list = l->list;

	env_timer_stop(l->exports->env, &l->timer);
	l->list = NULL;
	if (list)
		list->done(list, names, count);
}

static void listing_late(struct env_timer *timer)
{
	listing_answer(exports_of(timer, struct map_listing, timer), NULL, 0);
}

static void listing_done(void *context, const struct snapshot_info *found, unsigned count,
			 int error, const char *why)
{
	struct map_listing *l = context, **link = &l->exports->listings;
	struct exports *x = l->exports;
	char(*texts)[TEXT_BYTES] = calloc(2 * LISTED_SNAPSHOTS, sizeof(*texts));
	const char *names[2 * LISTED_SNAPSHOTS];
	unsigned used = 0;

	if (error)
		env_log(x->env, ENV_LOG_DEBUG, "exports: %s", why);
	for (unsigned i = 0; texts && i < count; i++) {
		char id[ID128_TEXT_BYTES];

		if (id128_equal(&found[i].id, &l->to))
			continue;
		id128_format(&found[i].id, id);
		snprintf(texts[used], TEXT_BYTES, "%s%s", NBD_META_CHANGED, id);
		names[used] = texts[used];
		used++;
		snprintf(texts[used], TEXT_BYTES, "%s%s", NBD_META_DIRTY_BITMAP, id);
		names[used] = texts[used];
		used++;
	}
	while (*link != l)
		link = &(*link)->next;
	*link = l->next;
	listing_answer(l, names, used);
	free(texts);
	free(l);
	exports_end(x);
}

void exports_map_list(struct exports *x, struct block *block, struct block_map_list *list)
{
	struct map_listing *l = calloc(1, sizeof(*l));
	struct node_volume *volume = NULL;
	struct id128 to;

	if (!l || x->stopping || !exports_device(x, block, &volume, &to) || !volume->repo)
		goto none;
	/* Of a volume that its map says nothing of there is none. */
	if (id128_is_zero(&to) && !snapshot_diff_knows(volume->volume))
		goto none;
	*l = (struct map_listing){.exports = x, .next = x->listings, .list = list, .to = to};
	l->timer.fire = listing_late;
	x->listings = l;
	exports_begin(x);
	env_timer_start(x->env, &l->timer, LIST_WAIT_NS);
	snapshot_ids(volume->repo, LISTED_SNAPSHOTS, listing_done, l);
	return;
none:
	free(l);
	list->done(list, NULL, 0);
}

void exports_stop_maps(struct exports *x)
{
	for (struct map_listing *l = x->listings, *next; l; l = next) {
		next = l->next;
		listing_answer(l, NULL, 0);
	}
	for (struct map_opening *o = x->openings, *next; o; o = next) {
		struct block_map_open *open = o->open;

		next = o->next;
		o->open = NULL;
		if (open)
			open->done(open, NULL);
	}
}
