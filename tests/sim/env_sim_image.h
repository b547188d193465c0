/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The content of a simulated file: an image is a table of reference-counted leaves of reference-counted
 * pages, so that copying is cheap; an inode has two of them, what reads see and what is durable for certain, and between
 * them the list of changes in the order they completed. What a power cut leaves is decided here.
 */
#ifndef OFFSITE_TESTS_SIM_ENV_SIM_IMAGE_H
#define OFFSITE_TESTS_SIM_ENV_SIM_IMAGE_H

#include "tests/sim/env_sim_internal.h"

#define PAGE       4096u
#define SECTOR     512u
#define LEAF_PAGES 64u

struct page {
	uint32_t references;
	bool checksums_known; /* of data as it is */
	uint32_t checksums[PAGE / SECTOR];
	uint8_t data[PAGE];
};

/* A leaf of several images does not change, nor does a page of several leaves: they are copied then. */
struct leaf {
	uint32_t references;
	uint32_t used; /* pages that are there */
	struct page *pages[LEAF_PAGES];
};

struct image {
	uint64_t size;
	uint32_t count; /* leaves of the table */
	struct leaf **leaves;
	uint64_t *used; /* counts pages; NULL: nobody does */
};

/* NULL: zeroes. */
static inline struct page *image_page(const struct image *image, uint64_t i)
{
	const struct leaf *leaf =
		i / LEAF_PAGES < image->count ? image->leaves[i / LEAF_PAGES] : NULL;

	return leaf != NULL ? leaf->pages[i % LEAF_PAGES] : NULL;
}

enum change_type { CHANGE_WRITE, CHANGE_ZERO, CHANGE_TRUNCATE, CHANGE_ALLOCATE };

struct change {
	enum change_type type;
	bool punch;
	bool durable; /* FUA: kept whatever happens, in its place of the order */
	uint64_t offset, length;
	struct change *next;
	struct payload *payload; /* WRITE */
};

struct payload { /* never changes */
	uint32_t references;
	uint8_t data[];
};

struct inode {
	uint32_t references;
	struct image now, durable;
	struct change *first, **end;
	uint64_t
		completed; /* changes so far; the first of the list is number completed - pending */
	uint64_t pending;
	struct env_file *locked_by;
	struct inode *copy; /* while a disk is copied */
	struct inode *next, **previous;
};

void image_read(const struct image *image, void *buf, uint64_t length, uint64_t offset);
void image_write(struct image *image, const void *buf, uint64_t length, uint64_t offset);
/* Does not grow the file. */
void image_zero(struct image *image, uint64_t offset, uint64_t length, bool punch);
void image_allocate(struct image *image, uint64_t offset, uint64_t length);
void image_truncate(struct image *image, uint64_t size);
void image_free(struct image *image);
/* to becomes what from is; it keeps its own counter. */
void image_copy(struct image *to, const struct image *from);
uint8_t *image_page_to_change(struct image *image, uint32_t i);
/* Some of its sectors: the first few, or any. */
void change_tear(struct sim *sim, struct image *image, const struct change *change);
struct change *change_new(enum change_type type, const void *data, uint64_t offset,
			  uint64_t length);
struct change *change_copy(const struct change *change); /* of no list */
void change_free(struct change *change);
/* A change is complete: reads see it. */
void inode_change(struct inode *inode, struct change *change);
/* Some of its sectors, each a change of its own, so that a power cut decides about each again. */
void inode_change_torn(struct sim *sim, struct inode *inode, const struct change *change);
/* Everything up to change number upto (exclusive) is durable. */
void inode_flush(struct inode *inode, uint64_t upto);
/* What happens to each pending change, by mode; afterwards none is pending. */
void inode_settle(struct sim *sim, struct inode *inode, enum sim_crash mode);

#endif
