/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model: what the clients of one volume know, and which contents of a disk follow from it. Shares
 * nothing with the engine.
 *
 * For each 512-byte sector it keeps the contents that were written to it, in the order of their
 * submission (which is the order in which overlapping writes take effect). Every submission and
 * completion has an ordinal; flushes turn completed writes into durable ones. Three kinds of
 * questions are answered about an image, each sector by sector:
 *   - what a disk may hold after a crash (promise 1),
 *   - whether an image is a state that the primary's disk could have had (promise 2),
 *   - whether an image is one point of the write order (promise 4).
 * A sector's content may match several versions (zeroes); then the most lenient one is taken.
 */
#ifndef OFFSITE_TESTS_SIM_MODEL_H
#define OFFSITE_TESTS_SIM_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define MODEL_SECTOR 512u
#define MODEL_NEVER  UINT32_MAX

struct model;

struct model *model_new(uint64_t size_bytes);
/* The volume is bigger, with zeroes behind the old end. A smaller size changes nothing. */
void model_grow(struct model *model, uint64_t size_bytes);
void model_free(struct model *model);

/* The ordinal of what happens next; each call is a new one. */
uint32_t model_tick(struct model *model);

/* A write is submitted; fills data with its content. Data NULL: it writes zeroes. Returns its
 * number. Parts of sectors are allowed if no other write to the sector is under way. */
uint32_t model_submit(struct model *model, uint64_t offset, uint64_t length, uint8_t *data);
/* It completed without error. fua: durable; on_peer: the peer has it durably, too. */
void model_complete(struct model *model, uint32_t write, bool fua, bool on_peer);
/* A flush that was submitted at an ordinal completed without error. */
void model_flushed(struct model *model, uint32_t submitted, bool on_peer);

/* An image: 4096-byte pages, NULL for zeroes. */
struct model_image {
	const uint8_t *(*page)(const void *context, uint64_t index);
	/* CRC32C of each of its sectors, NULL for zeroes. May itself be NULL: the pages are asked. */
	const uint32_t *(*checksums)(const void *context, uint64_t index);
	const void *context;
	uint64_t size_bytes; /* what is behind it does not count; 0: all of it does */
};

/* What the primary's disk shows after a crash. Checks promise 1 (every durable write is there) and
 * makes it the content from which things go on. lost: the disk was lost and the content came from
 * the peer: only what was durable there has to be there. False and a reason if it cannot be. */
bool model_resolve(struct model *model, const struct model_image *image, bool lost, char *why,
		   size_t why_size);

/* The primary's disk, were it powered off here and now (promise 1). What died after the ordinal seen may be
 * back: nobody saw that it was gone. */
bool model_check_local(struct model *model, const struct model_image *image, uint32_t seen,
		       char *why, size_t why_size);
/* The secondary's content at any instant (promise 2, and promise 1 for protocol C). */
bool model_check_peer(struct model *model, const struct model_image *image, char *why,
		      size_t why_size);
/* The peer's disk is new: nothing is durable there any more. */
void model_peer_lost(struct model *model);

/* The peer's disk is the primary's from here on: durable is what was durable there. */
void model_switched(struct model *model);

/* The primary was set back to an image that it had before: that is its content, durably. */
bool model_rolled_back(struct model *model, const struct model_image *image, char *why,
		       size_t why_size);

/* One point of the write order (promise 4), between two ordinals: everything completed before from
 * is there, nothing submitted after to. */
bool model_check_point(struct model *model, const struct model_image *image, uint32_t from,
		       uint32_t to, char *why, size_t why_size);

/* What a read returned: submitted at from, completed at to. offset and length multiples of 512. */
bool model_check_read(struct model *model, const uint8_t *data, uint64_t offset, uint64_t length,
		      uint32_t from, uint32_t to, char *why, size_t why_size);

/* For failures: what is known of a sector, one line a version. */
void model_print(const struct model *model, uint64_t offset, const struct model_image *image,
		 FILE *out);
uint32_t model_writes(const struct model *model);

#endif
