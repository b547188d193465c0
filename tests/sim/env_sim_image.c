// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/env_sim_image.h"

#include <stdlib.h>
#include <string.h>

/* ---- images ----------------------------------------------------------------------------------- */

static void page_put(struct page *page)
{
	if (page != NULL && --page->references == 0)
		free(page);
}

static void leaf_put(struct leaf *leaf)
{
	if (leaf == NULL || --leaf->references > 0)
		return;
	for (uint32_t i = 0; i < LEAF_PAGES; i++)
		page_put(leaf->pages[i]);
	free(leaf);
}

/* The table reaches to that page, and its leaf is there and nobody else's. */
static struct leaf *leaf_to_change(struct image *image, uint32_t i)
{
	uint32_t number = i / LEAF_PAGES;
	struct leaf *leaf;

	if (number >= image->count) {
		uint32_t count = number + 1 + image->count / 2;

		image->leaves = realloc(image->leaves, count * sizeof(struct leaf *));
		if (image->leaves == NULL)
			abort();
		memset(&image->leaves[image->count], 0,
		       (count - image->count) * sizeof(struct leaf *));
		image->count = count;
	}
	leaf = image->leaves[number];
	if (leaf == NULL) {
		leaf = sim_alloc(sizeof(*leaf));
		leaf->references = 1;
	} else if (leaf->references > 1) {
		struct leaf *copy = malloc(sizeof(*copy));

		if (copy == NULL)
			abort();
		*copy = *leaf;
		copy->references = 1;
		for (uint32_t k = 0; k < LEAF_PAGES; k++)
			if (copy->pages[k] != NULL)
				copy->pages[k]->references++;
		leaf->references--;
		leaf = copy;
	}
	image->leaves[number] = leaf;
	return leaf;
}

static void page_drop(struct image *image, uint32_t i)
{
	struct leaf *leaf;

	if (image_page(image, i) == NULL)
		return;
	leaf = leaf_to_change(image, i);
	page_put(leaf->pages[i % LEAF_PAGES]);
	leaf->pages[i % LEAF_PAGES] = NULL;
	leaf->used--;
	if (image->used != NULL)
		--*image->used;
}

static const uint8_t zeroes[PAGE];

static struct page *page_new(const uint8_t *data)
{
	struct page *page = malloc(sizeof(*page));

	if (page == NULL)
		abort();
	page->references = 1;
	if (data != NULL)
		memcpy(page->data, data, PAGE);
	return page;
}

/* whole: all of it is about to be written. */
static uint8_t *page_to_change(struct image *image, uint32_t i, bool whole)
{
	struct leaf *leaf = leaf_to_change(image, i);
	struct page **place = &leaf->pages[i % LEAF_PAGES], *page = *place;

	if (page == NULL) {
		*place = page = page_new(whole ? NULL : zeroes);
		leaf->used++;
		if (image->used != NULL)
			++*image->used;
	} else if (page->references > 1) {
		page->references--;
		*place = page = page_new(whole ? NULL : page->data);
	}
	page->checksums_known = false;
	return page->data;
}

uint8_t *image_page_to_change(struct image *image, uint32_t i)
{
	return page_to_change(image, i, false);
}

void image_read(const struct image *image, void *buf, uint64_t length, uint64_t offset)
{
	uint8_t *to = buf;

	while (length > 0) {
		uint32_t i = (uint32_t)(offset / PAGE), in = (uint32_t)(offset % PAGE);
		uint64_t n = PAGE - in < length ? PAGE - in : length;

		if (image_page(image, i) != NULL)
			memcpy(to, image_page(image, i)->data + in, n);
		else
			memset(to, 0, n);
		to += n;
		offset += n;
		length -= n;
	}
}

void image_write(struct image *image, const void *buf, uint64_t length, uint64_t offset)
{
	const uint8_t *from = buf;

	if (offset + length > image->size)
		image->size = offset + length;
	while (length > 0) {
		uint32_t in = (uint32_t)(offset % PAGE);
		uint64_t n = PAGE - in < length ? PAGE - in : length;

		memcpy(page_to_change(image, (uint32_t)(offset / PAGE), n == PAGE) + in, from, n);
		from += n;
		offset += n;
		length -= n;
	}
}

void image_zero(struct image *image, uint64_t offset, uint64_t length, bool punch)
{
	if (offset >= image->size)
		return;
	if (length > image->size - offset)
		length = image->size - offset;
	while (length > 0) {
		uint32_t i = (uint32_t)(offset / PAGE), in = (uint32_t)(offset % PAGE);
		uint64_t n = PAGE - in < length ? PAGE - in : length;
		bool there = image_page(image, i) != NULL;

		if (n == PAGE && punch) {
			page_drop(image, i);
		} else if (there || !punch) {
			memset(page_to_change(image, i, n == PAGE) + in, 0, n);
		}
		offset += n;
		length -= n;
	}
}

void image_allocate(struct image *image, uint64_t offset, uint64_t length)
{
	if (offset + length > image->size)
		image->size = offset + length;
	for (uint64_t i = offset / PAGE; i * PAGE < offset + length; i++)
		if (image_page(image, i) == NULL)
			image_page_to_change(image, (uint32_t)i);
}

void image_truncate(struct image *image, uint64_t size)
{
	if (size < image->size) {
		if (size % PAGE != 0)
			image_zero(image, size,
				   image->size - size < PAGE - size % PAGE ? image->size - size
									   : PAGE - size % PAGE,
				   true);
		for (uint64_t i = (size + PAGE - 1) / PAGE; i < image->count * LEAF_PAGES; i++)
			page_drop(image, (uint32_t)i);
	}
	image->size = size;
}

void image_free(struct image *image)
{
	for (uint32_t i = 0; i < image->count; i++) {
		if (image->used != NULL && image->leaves[i] != NULL)
			*image->used -= image->leaves[i]->used;
		leaf_put(image->leaves[i]);
	}
	free(image->leaves);
	image->leaves = NULL;
	image->count = 0;
	image->size = 0;
}

void image_copy(struct image *to, const struct image *from)
{
	image_free(to);
	to->size = from->size;
	to->count = from->count;
	if (from->count == 0)
		return;
	to->leaves = sim_alloc(from->count * sizeof(struct leaf *));
	for (uint32_t i = 0; i < from->count; i++) {
		to->leaves[i] = from->leaves[i];
		if (to->leaves[i] == NULL)
			continue;
		to->leaves[i]->references++;
		if (to->used != NULL)
			*to->used += to->leaves[i]->used;
	}
}

/* ---- changes ------------------------------------------------------------------------------------- */

static void change_apply(struct image *image, const struct change *change)
{
	switch (change->type) {
	case CHANGE_WRITE:
		image_write(image, change->payload->data, change->length, change->offset);
		break;
	case CHANGE_ZERO:
		image_zero(image, change->offset, change->length, change->punch);
		break;
	case CHANGE_TRUNCATE:
		image_truncate(image, change->length);
		break;
	case CHANGE_ALLOCATE:
		image_allocate(image, change->offset, change->length);
		break;
	}
}

void change_tear(struct sim *sim, struct image *image, const struct change *change)
{
	uint64_t sectors = (change->length + SECTOR - 1) / SECTOR;
	bool prefix = sim_random(sim, 2);
	uint64_t keep = sim_random(sim, sectors + 1);

	if (change->type == CHANGE_TRUNCATE || change->type == CHANGE_ALLOCATE)
		return;
	for (uint64_t i = 0; i < sectors; i++) {
		uint64_t from = i * SECTOR;
		uint64_t n = change->length - from < SECTOR ? change->length - from : SECTOR;

		if (prefix ? i >= keep : sim_random(sim, 2))
			continue;
		if (change->type == CHANGE_WRITE)
			image_write(image, change->payload->data + from, n, change->offset + from);
		else
			image_zero(image, change->offset + from, n, change->punch);
	}
}

struct change *change_new(enum change_type type, const void *data, uint64_t offset, uint64_t length)
{
	struct change *change = malloc(sizeof(*change));

	if (change == NULL)
		abort();
	*change = (struct change){.type = type, .offset = offset, .length = length};
	if (data == NULL)
		return change;
	change->payload = malloc(sizeof(*change->payload) + length);
	if (change->payload == NULL)
		abort();
	change->payload->references = 1;
	memcpy(change->payload->data, data, length);
	return change;
}

struct change *change_copy(const struct change *change)
{
	struct change *copy = malloc(sizeof(*copy));

	if (copy == NULL)
		abort();
	*copy = *change;
	copy->next = NULL;
	if (copy->payload != NULL)
		copy->payload->references++;
	return copy;
}

void change_free(struct change *change)
{
	if (change->payload != NULL && --change->payload->references == 0)
		free(change->payload);
	free(change);
}

void inode_change(struct inode *inode, struct change *change)
{
	change_apply(&inode->now, change);
	*inode->end = change;
	inode->end = &change->next;
	inode->completed++;
	inode->pending++;
}

void inode_change_torn(struct sim *sim, struct inode *inode, const struct change *change)
{
	for (uint64_t i = 0; i < change->length; i += SECTOR) {
		uint64_t n = change->length - i < SECTOR ? change->length - i : SECTOR;
		struct change *c;

		if (sim_random(sim, 2))
			continue;
		c = change_new(change->type,
			       change->type == CHANGE_WRITE ? change->payload->data + i : NULL,
			       change->offset + i, n);
		c->punch = change->punch;
		inode_change(inode, c);
	}
}

/* Everything up to change number upto (exclusive) is durable. */
void inode_flush(struct inode *inode, uint64_t upto)
{
	while (inode->pending > 0 && inode->completed - inode->pending < upto) {
		struct change *change = inode->first;

		change_apply(&inode->durable, change);
		inode->first = change->next;
		inode->pending--;
		change_free(change);
	}
	if (inode->first == NULL)
		inode->end = &inode->first;
}

void inode_settle(struct sim *sim, struct inode *inode, enum sim_crash mode)
{
	unsigned bias = (unsigned)sim_random(sim, 4); /* 0: mixed, 1: mostly kept, 2: mostly lost */

	while (inode->first != NULL) {
		struct change *change = inode->first;
		unsigned what = (unsigned)sim_random(sim, 3);

		if (bias == 1 && sim_random(sim, 8) != 0)
			what = 0;
		if (bias == 2 && sim_random(sim, 8) != 0)
			what = 1;
		if (change->durable || mode == SIM_CRASH_KILL || mode == SIM_CRASH_POWER_KEEP)
			what = 0;
		else if (mode == SIM_CRASH_POWER_DROP)
			what = 1;
		if (what == 0)
			change_apply(&inode->durable, change);
		else if (what == 2)
			change_tear(sim, &inode->durable, change);
		inode->first = change->next;
		change_free(change);
	}
	inode->pending = 0;
	inode->end = &inode->first;
}
