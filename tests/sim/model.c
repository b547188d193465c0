// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/model.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/wire.h"

#define PAGE             4096u
#define SECTORS_PER_PAGE (PAGE / MODEL_SECTOR)

struct write {
	uint32_t submitted, completed, durable, on_peer; /* ordinals, or MODEL_NEVER */
	uint64_t offset, length;
};

/* What a crash left became the content: from then on it counts as completed. */
struct epoch {
	uint32_t completed, durable, on_peer;
};

struct version {
	uint32_t write;
	uint32_t epoch; /* 0: none */
	uint32_t death; /* since then it is known not to be on the primary's disk */
	bool revived;   /* it was dead and came back: only the epoch's ordinals count */
	uint32_t crc;
};

struct sector {
	uint32_t count, room;
	bool repeats; /* two versions are equal and not zeroes: a few bytes were written that were there */
	struct version *versions; /* without the initial zeroes, which come before [0] */
};

struct model {
	uint64_t size;
	uint32_t ordinal;
	uint32_t sector_count, write_count, write_room, epoch_count;
	uint32_t zero_crc;
	struct sector *sectors;
	struct write *writes;
	uint32_t unflushed; /* all writes below this number are durable or will never be */
	struct epoch epochs[256];
	uint8_t *content; /* after all submitted writes */
};

static void *xrealloc(void *p, size_t size)
{
	p = realloc(p, size);
	if (p == NULL)
		abort();
	return p;
}

struct model *model_new(uint64_t size_bytes)
{
	static const uint8_t zeroes[MODEL_SECTOR];
	struct model *model = calloc(1, sizeof(*model));

	if (model == NULL)
		abort();
	model->size = size_bytes;
	model->ordinal = 1;
	model->sector_count = (uint32_t)(size_bytes / MODEL_SECTOR);
	model->sectors = calloc(model->sector_count, sizeof(model->sectors[0]));
	model->content = calloc(1, size_bytes);
	model->zero_crc = crc32c(0, zeroes, sizeof(zeroes));
	model->epoch_count = 1;
	if (model->sectors == NULL || model->content == NULL)
		abort();
	return model;
}

void model_grow(struct model *model, uint64_t size_bytes)
{
	uint32_t count = (uint32_t)(size_bytes / MODEL_SECTOR), old = model->sector_count;

	if (size_bytes <= model->size)
		return;
	model->sectors = xrealloc(model->sectors, count * sizeof(model->sectors[0]));
	model->content = xrealloc(model->content, size_bytes);
	memset(&model->sectors[old], 0, (count - old) * sizeof(model->sectors[0]));
	memset(model->content + model->size, 0, size_bytes - model->size);
	model->size = size_bytes;
	model->sector_count = count;
}

void model_free(struct model *model)
{
	for (uint32_t i = 0; i < model->sector_count; i++)
		free(model->sectors[i].versions);
	free(model->sectors);
	free(model->writes);
	free(model->content);
	free(model);
}

uint32_t model_tick(struct model *model)
{
	return model->ordinal++;
}

uint32_t model_writes(const struct model *model)
{
	return model->write_count;
}

/* ---- writing ------------------------------------------------------------------------------------ */

/* No two sectors ever written are equal, but for zeroes. */
static void fill(uint8_t *data, uint64_t offset, uint64_t length, uint32_t write)
{
	uint64_t end = offset + length;

	while (offset < end) {
		uint64_t word = offset / 8;
		uint64_t x = (word + 1) * UINT64_C(0x9e3779b97f4a7c15) ^
			     (uint64_t)(write + 1) * UINT64_C(0xd1342543de82ef95);
		uint64_t n = 8 - offset % 8 < end - offset ? 8 - offset % 8 : end - offset;

		x ^= x >> 29;
		x *= UINT64_C(0xbf58476d1ce4e5b9);
		if (word % (MODEL_SECTOR / 8) == 0) /* readable in a dump */
			x = (uint64_t)(write + 1) << 32 | (uint32_t)(offset / MODEL_SECTOR);
		memcpy(data, (uint8_t *)&x + offset % 8, n);
		data += n;
		offset += n;
	}
}

static void version_add(struct model *model, uint32_t number, uint32_t write)
{
	struct sector *sector = &model->sectors[number];
	uint32_t crc;

	if (sector->count == sector->room) {
		sector->room = sector->room > 0 ? 2 * sector->room : 2;
		sector->versions =
			xrealloc(sector->versions, sector->room * sizeof(sector->versions[0]));
	}
	crc = crc32c(0, model->content + (uint64_t)number * MODEL_SECTOR, MODEL_SECTOR);
	for (uint32_t i = 0; i < sector->count && crc != model->zero_crc; i++)
		sector->repeats |= sector->versions[i].crc == crc;
	sector->versions[sector->count++] = (struct version){
		.write = write,
		.death = MODEL_NEVER,
		.crc = crc,
	};
}

uint32_t model_submit(struct model *model, uint64_t offset, uint64_t length, uint8_t *data)
{
	uint32_t write = model->write_count;

	assert(length > 0 && offset + length <= model->size);
	if (model->write_count == model->write_room) {
		model->write_room = model->write_room > 0 ? 2 * model->write_room : 256;
		model->writes =
			xrealloc(model->writes, model->write_room * sizeof(model->writes[0]));
	}
	model->writes[model->write_count++] = (struct write){
		.submitted = model_tick(model),
		.completed = MODEL_NEVER,
		.durable = MODEL_NEVER,
		.on_peer = MODEL_NEVER,
		.offset = offset,
		.length = length,
	};
	if (data != NULL) {
		fill(data, offset, length, write);
		memcpy(model->content + offset, data, length);
	} else {
		memset(model->content + offset, 0, length);
	}
	for (uint64_t i = offset / MODEL_SECTOR; i * MODEL_SECTOR < offset + length; i++)
		version_add(model, (uint32_t)i, write);
	return write;
}

void model_complete(struct model *model, uint32_t number, bool fua, bool on_peer)
{
	struct write *write = &model->writes[number];

	write->completed = model_tick(model);
	if (fua)
		write->durable = write->completed;
	if (fua && on_peer)
		write->on_peer = write->completed;
}

void model_flushed(struct model *model, uint32_t submitted, bool on_peer)
{
	uint32_t now = model_tick(model);

	for (uint32_t i = 0; i < model->write_count; i++) {
		struct write *write = &model->writes[i];

		if (write->completed > submitted)
			continue;
		if (write->durable == MODEL_NEVER)
			write->durable = now;
		if (on_peer && write->on_peer == MODEL_NEVER)
			write->on_peer = now;
	}
	for (uint32_t i = 1; i < model->epoch_count; i++) {
		struct epoch *epoch = &model->epochs[i];

		if (epoch->completed > submitted)
			continue;
		if (epoch->durable == MODEL_NEVER)
			epoch->durable = now;
		if (on_peer && epoch->on_peer == MODEL_NEVER)
			epoch->on_peer = now;
	}
}

void model_peer_lost(struct model *model)
{
	for (uint32_t i = 0; i < model->write_count; i++)
		model->writes[i].on_peer = MODEL_NEVER;
	for (uint32_t i = 1; i < model->epoch_count; i++)
		model->epochs[i].on_peer = MODEL_NEVER;
}

void model_switched(struct model *model)
{
	for (uint32_t i = 0; i < model->write_count; i++) {
		model->writes[i].durable = model->writes[i].on_peer;
		model->writes[i].on_peer = MODEL_NEVER;
	}
	for (uint32_t i = 1; i < model->epoch_count; i++) {
		model->epochs[i].durable = model->epochs[i].on_peer;
		model->epochs[i].on_peer = MODEL_NEVER;
	}
}

/* ---- versions ------------------------------------------------------------------------------------- */

enum ordinal { SUBMITTED, COMPLETED, DURABLE, ON_PEER };

static uint32_t version_ordinal(const struct model *model, const struct version *version,
				enum ordinal which)
{
	const struct write *write = &model->writes[version->write];
	const struct epoch *epoch = version->epoch > 0 ? &model->epochs[version->epoch] : NULL;
	uint32_t of_write, of_epoch = MODEL_NEVER;

	switch (which) {
	case SUBMITTED:
		return write->submitted;
	case COMPLETED:
		of_write = version->revived ? MODEL_NEVER : write->completed;
		if (epoch != NULL)
			of_epoch = epoch->completed;
		break;
	case DURABLE:
		of_write = version->revived ? MODEL_NEVER : write->durable;
		if (epoch != NULL)
			of_epoch = epoch->durable;
		break;
	default:
		of_write = version->revived ? MODEL_NEVER : write->on_peer;
		if (epoch != NULL)
			of_epoch = epoch->on_peer;
		break;
	}
	return of_write < of_epoch ? of_write : of_epoch;
}

/* The newest version that had that ordinal at `at` or before, among those not dead at `dead_at`.
 * 0: the initial zeroes; else index + 1. */
static uint32_t newest(const struct model *model, const struct sector *sector, enum ordinal which,
		       uint32_t at, uint32_t dead_at)
{
	for (uint32_t i = sector->count; i > 0; i--) {
		const struct version *version = &sector->versions[i - 1];

		if (version->death > dead_at && version_ordinal(model, version, which) <= at)
			return i;
	}
	return 0;
}

struct match {
	uint32_t first, last; /* 0: the initial zeroes; else index + 1; first > last: none */
};

/* Which versions a content can be, of those not dead at dead_at. */
static struct match match(const struct model *model, const struct sector *sector, uint32_t crc,
			  uint32_t dead_at)
{
	struct match m = {1, 0};

	if (crc == model->zero_crc)
		m.first = 0;
	for (uint32_t i = sector->count; i > 0; i--) {
		const struct version *version = &sector->versions[i - 1];

		if (version->crc != crc || version->death <= dead_at)
			continue;
		if (m.last == 0)
			m.last = i;
		if (m.first == 0)
			return m;
		m.first = i;
		if (!sector->repeats)
			return m;
	}
	return m;
}

static uint32_t submitted(const struct model *model, const struct sector *sector, uint32_t number)
{
	return number == 0 ? 0 : version_ordinal(model, &sector->versions[number - 1], SUBMITTED);
}

/* NULL: zeroes. */
static const uint8_t *image_sector(const struct model_image *image, uint32_t number)
{
	const uint8_t *page;

	if (image->size_bytes > 0 && (uint64_t)number * MODEL_SECTOR >= image->size_bytes)
		return NULL;
	page = image->page(image->context, number / SECTORS_PER_PAGE);
	return page != NULL ? page + number % SECTORS_PER_PAGE * MODEL_SECTOR : NULL;
}

static uint32_t image_crc(const struct model *model, const struct model_image *image,
			  uint32_t number)
{
	const uint8_t *sector = image_sector(image, number);

	return sector != NULL ? crc32c(0, sector, MODEL_SECTOR) : model->zero_crc;
}

/* Goes through an image, sector by sector: those with a history, or content without one. */
struct walk {
	const struct model *model;
	const struct model_image *image;
	uint32_t number; /* the sector it is at */
	uint32_t crc;    /* its content's */
	uint32_t page;   /* whose checksums these are */
	uint32_t of[SECTORS_PER_PAGE];
};

static void walk_load(struct walk *walk)
{
	const struct model_image *image = walk->image;
	uint32_t first = walk->page * SECTORS_PER_PAGE;
	const uint32_t *known = NULL;

	if (image->checksums != NULL)
		known = image->checksums(image->context, walk->page);
	for (uint32_t i = 0; i < SECTORS_PER_PAGE; i++)
		if (image->checksums == NULL)
			walk->of[i] = image_crc(walk->model, image, first + i);
		else if (known == NULL ||
			 (image->size_bytes > 0 &&
			  (uint64_t)(first + i) * MODEL_SECTOR >= image->size_bytes))
			walk->of[i] = walk->model->zero_crc;
		else
			walk->of[i] = known[i];
}

static bool walk_next(struct walk *walk)
{
	const struct model *model = walk->model;

	while (++walk->number < model->sector_count) {
		if (walk->number / SECTORS_PER_PAGE != walk->page) {
			walk->page = walk->number / SECTORS_PER_PAGE;
			walk_load(walk);
		}
		walk->crc = walk->of[walk->number % SECTORS_PER_PAGE];
		if (model->sectors[walk->number].count > 0 || walk->crc != model->zero_crc)
			return true;
	}
	return false;
}

static struct walk walk_new(const struct model *model, const struct model_image *image)
{
	return (struct walk){
		.model = model, .image = image, .number = UINT32_MAX, .page = UINT32_MAX};
}

static void describe(const struct model *model, uint32_t number, uint32_t version, char *text,
		     size_t size)
{
	const struct sector *sector = &model->sectors[number];
	const struct version *v;

	if (version == 0) {
		snprintf(text, size, "initial zeroes");
		return;
	}
	v = &sector->versions[version - 1];
	snprintf(
		text, size,
		"version %u = write %u [%llu+%llu] submitted %u completed %d durable %d on peer %d "
		"dead %d",
		version, v->write, (unsigned long long)model->writes[v->write].offset,
		(unsigned long long)model->writes[v->write].length,
		version_ordinal(model, v, SUBMITTED), (int)version_ordinal(model, v, COMPLETED),
		(int)version_ordinal(model, v, DURABLE), (int)version_ordinal(model, v, ON_PEER),
		(int)v->death);
}

void model_print(const struct model *model, uint64_t offset, const struct model_image *image,
		 FILE *out)
{
	uint32_t number = (uint32_t)(offset / MODEL_SECTOR);
	const struct sector *sector = &model->sectors[number];
	uint32_t crc = image_crc(model, image, number);
	char text[300];

	fprintf(out, "sector %u%s\n", number, crc == model->zero_crc ? ": zeroes" : "");
	for (uint32_t i = 1; i <= sector->count; i++) {
		describe(model, number, i, text, sizeof(text));
		fprintf(out, "  %s %s\n", sector->versions[i - 1].crc == crc ? "*" : " ", text);
	}
}

static bool wrong(const struct model *model, uint32_t number, uint32_t has, uint32_t must,
		  const char *what, char *why, size_t why_size)
{
	char a[200], b[200];

	describe(model, number, has, a, sizeof(a));
	describe(model, number, must, b, sizeof(b));
	snprintf(why, why_size,
		 "sector %u (offset %llu): %s: has %s; must have at least %s (now %u)", number,
		 (unsigned long long)number * MODEL_SECTOR, what, a, b, model->ordinal);
	return false;
}

static bool unknown(const struct model *model, uint32_t number, const struct model_image *image,
		    char *why, size_t why_size)
{
	const uint8_t *has = image_sector(image, number);
	uint64_t word = 0;

	if (has != NULL)
		memcpy(&word, has, sizeof(word));
	snprintf(why, why_size,
		 "sector %u (offset %llu): content that it cannot have (begins with %016llx: write "
		 "%d, sector %u); %u versions, now %u",
		 number, (unsigned long long)number * MODEL_SECTOR, (unsigned long long)word,
		 (int)(word >> 32) - 1, (uint32_t)word, model->sectors[number].count,
		 model->ordinal);
	for (uint32_t i = 0; i < model->sectors[number].count; i++)
		if (model->sectors[number].versions[i].crc == image_crc(model, image, number)) {
			size_t n = strlen(why);

			n += (size_t)snprintf(why + n, why_size - n, "; ");
			describe(model, number, i + 1, why + n, why_size - n);
			break;
		}
	return false;
}

/* ---- after a crash -------------------------------------------------------------------------------------- */

static uint32_t new_epoch(struct model *model, uint32_t now, bool durable)
{
	uint32_t epoch = model->epoch_count++;

	assert(epoch < sizeof(model->epochs) / sizeof(model->epochs[0]));
	model->epochs[epoch] = (struct epoch){now, durable ? now : MODEL_NEVER, MODEL_NEVER};
	return epoch;
}

/* The sector holds version number (0: the initial zeroes); what is newer is not there any more. */
static struct version *settle(struct model *model, const struct model_image *image, uint32_t number,
			      uint32_t version, uint32_t now)
{
	struct sector *sector = &model->sectors[number];
	const uint8_t *has = image_sector(image, number);
	uint8_t *content = model->content + (uint64_t)number * MODEL_SECTOR;

	for (uint32_t v = version; v < sector->count; v++)
		if (sector->versions[v].death == MODEL_NEVER)
			sector->versions[v].death = now;
	if (has != NULL)
		memcpy(content, has, MODEL_SECTOR);
	else
		memset(content, 0, MODEL_SECTOR);
	if (version == 0)
		return NULL;
	sector->versions[version - 1].revived |= sector->versions[version - 1].death != MODEL_NEVER;
	sector->versions[version - 1].death = MODEL_NEVER;
	return &sector->versions[version - 1];
}

bool model_resolve(struct model *model, const struct model_image *image, bool lost, char *why,
		   size_t why_size)
{
	uint32_t now = model_tick(model);
	uint32_t epoch = new_epoch(model, now, false);

	for (struct walk walk = walk_new(model, image); walk_next(&walk);) {
		uint32_t i = walk.number;
		struct sector *sector = &model->sectors[i];
		uint32_t must = newest(model, sector, lost ? ON_PEER : DURABLE, now, now);
		/* What came from the peer may be what the primary itself had lost. */
		struct match m = match(model, sector, walk.crc, lost ? 0 : now);
		struct version *version;
		uint32_t died_at;

		if (m.first > m.last)
			return unknown(model, i, image, why, why_size);
		if (m.last < must)
			return wrong(model, i, m.last, must,
				     lost ? "lost with the primary's disk" : "lost in a crash", why,
				     why_size);
		died_at = m.last > 0 ? sector->versions[m.last - 1].death : MODEL_NEVER;
		version = settle(model, image, i, m.last, now);
		if (version != NULL && (version_ordinal(model, version, COMPLETED) == MODEL_NEVER ||
					died_at != MODEL_NEVER))
			version->epoch = epoch;
	}
	return true;
}

bool model_rolled_back(struct model *model, const struct model_image *image, char *why,
		       size_t why_size)
{
	uint32_t now = model_tick(model);
	uint32_t epoch = new_epoch(model, now, true);

	for (struct walk walk = walk_new(model, image); walk_next(&walk);) {
		uint32_t i = walk.number;
		struct match m = match(model, &model->sectors[i], walk.crc, 0);
		struct version *version;

		if (m.first > m.last)
			return unknown(model, i, image, why, why_size);
		/* Which zeroes these are nobody can tell: the initial ones ask for nothing. */
		version = settle(model, image, i, m.first, now);
		if (version != NULL)
			version->epoch = epoch;
	}
	return true;
}

/* ---- images ---------------------------------------------------------------------------------------------- */

/* The latest submission that the image proves to contain. */
static bool latest(const struct model *model, const struct model_image *image, uint32_t dead_at,
		   uint32_t *ordinal, uint32_t *where, char *why, size_t why_size)
{
	*ordinal = 0;
	*where = 0;
	for (struct walk walk = walk_new(model, image); walk_next(&walk);) {
		uint32_t i = walk.number;
		const struct sector *sector = &model->sectors[i];
		struct match m = match(model, sector, walk.crc, dead_at);
		uint32_t s;

		if (m.first > m.last)
			return unknown(model, i, image, why, why_size);
		s = submitted(model, sector, m.first);
		if (s > *ordinal) {
			*ordinal = s;
			*where = i;
		}
	}
	return true;
}

/* The sector that lacks something, and the one that says that it should not. */
static bool print_both(const struct model *model, uint32_t lacks, uint32_t where,
		       const struct model_image *image)
{
	model_print(model, (uint64_t)lacks * MODEL_SECTOR, image, stderr);
	model_print(model, (uint64_t)where * MODEL_SECTOR, image, stderr);
	return false;
}

bool model_check_local(struct model *model, const struct model_image *image, uint32_t seen,
		       char *why, size_t why_size)
{
	uint32_t now = model->ordinal, dead_at = seen < now ? seen : now;

	for (struct walk walk = walk_new(model, image); walk_next(&walk);) {
		uint32_t i = walk.number;
		const struct sector *sector = &model->sectors[i];
		struct match m = match(model, sector, walk.crc, dead_at);
		uint32_t must = newest(model, sector, DURABLE, now, now);

		if (m.first > m.last)
			return unknown(model, i, image, why, why_size);
		if (m.last < must)
			return wrong(model, i, m.last, must, "not durable", why, why_size);
	}
	return true;
}

bool model_check_peer(struct model *model, const struct model_image *image, char *why,
		      size_t why_size)
{
	uint32_t now = model->ordinal, last, where;

	if (!latest(model, image, 0, &last, &where, why, why_size))
		return false;
	for (struct walk walk = walk_new(model, image); walk_next(&walk);) {
		uint32_t i = walk.number;
		const struct sector *sector = &model->sectors[i];
		struct match m = match(model, sector, walk.crc, last);
		uint32_t must = newest(model, sector, DURABLE, last, last);
		uint32_t must_on_peer = newest(model, sector, ON_PEER, now, now);

		if (m.first > m.last)
			return wrong(model, i, 0, must,
				     "content lost by the primary together with later writes", why,
				     why_size);
		if (m.last < must)
			return wrong(model, i, m.last, must,
				     "a mixture: flushed before later writes", why, why_size) ||
			       print_both(model, i, where, image);
		m = match(model, sector, walk.crc, 0);
		if (m.last < must_on_peer)
			return wrong(model, i, m.last, must_on_peer,
				     "acknowledged as durable on the peer", why, why_size);
	}
	return true;
}

bool model_check_point(struct model *model, const struct model_image *image, uint32_t from,
		       uint32_t to, char *why, size_t why_size)
{
	uint32_t last, where;

	if (!latest(model, image, from, &last, &where, why, why_size))
		return false;
	if (last > to) {
		snprintf(why, why_size,
			 "contains what was submitted at %u, after it was complete at %u", last,
			 to);
		return false;
	}
	if (last < from)
		last = from;
	for (struct walk walk = walk_new(model, image); walk_next(&walk);) {
		uint32_t i = walk.number;
		const struct sector *sector = &model->sectors[i];
		struct match m = match(model, sector, walk.crc, from);
		uint32_t must = newest(model, sector, COMPLETED, last, from);

		if (m.last < must)
			return wrong(model, i, m.last, must,
				     "not one instant: completed before later writes", why,
				     why_size) ||
			       print_both(model, i, where, image);
	}
	return true;
}

bool model_check_read(struct model *model, const uint8_t *data, uint64_t offset, uint64_t length,
		      uint32_t from, uint32_t to, char *why, size_t why_size)
{
	for (uint64_t at = 0; at < length; at += MODEL_SECTOR) {
		uint32_t number = (uint32_t)((offset + at) / MODEL_SECTOR);
		const struct sector *sector = &model->sectors[number];
		struct match m = match(model, sector, crc32c(0, data + at, MODEL_SECTOR), from);
		uint32_t must = newest(model, sector, COMPLETED, from, from);

		if (m.first > m.last || submitted(model, sector, m.first) > to) {
			snprintf(why, why_size, "read of sector %u: content it never had", number);
			return false;
		}
		if (m.last < must)
			return wrong(model, number, m.last, must, "read of old content", why,
				     why_size);
	}
	return true;
}
