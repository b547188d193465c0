/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dirty: a bitmap of blocks with a count and two levels of summary, so that a sparse map of many
 * millions of blocks is walked quickly. Memory that was never touched costs nothing.
 */
#ifndef OFFSITE_VOLUME_DIRTY_H
#define OFFSITE_VOLUME_DIRTY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DIRTY_NONE UINT64_MAX

struct dirty_map {
	uint64_t blocks;
	uint64_t count;    /* set bits */
	uint64_t *words;   /* bit: block */
	uint64_t *groups;  /* bit: words[i] != 0 */
	uint64_t *summary; /* bit: groups[i] != 0 */
	size_t mapped_bytes;
};

/* False without memory. */
bool dirty_init(struct dirty_map *map, uint64_t blocks);
void dirty_free(struct dirty_map *map);
/* Gives it all of its memory; setting a bit then waits for no page. */
void dirty_brace(const struct dirty_map *map);

static inline bool dirty_test(const struct dirty_map *map, uint64_t block)
{
	return map->words[block / 64] >> (block % 64) & 1;
}

/* Sets [first, first + count); returns how many were not set before. *overlap, if given, is raised
 * by how many of those are set in other. */
uint64_t dirty_set(struct dirty_map *map, uint64_t first, uint64_t count,
		   const struct dirty_map *other, uint64_t *overlap);
/* Sets what is set in words, whose first bit is that of block first, a multiple of 64. */
void dirty_set_words(struct dirty_map *map, uint64_t first, const uint64_t *words, uint64_t count);
/* Clears [first, first + count); returns how many were set. *overlap, if given, is lowered by how many
 * of those are set in other. */
uint64_t dirty_clear(struct dirty_map *map, uint64_t first, uint64_t count,
		     const struct dirty_map *other, uint64_t *overlap);
void dirty_clear_all(struct dirty_map *map);
/* Clears in map all that is set in what. */
void dirty_subtract(struct dirty_map *map, const struct dirty_map *what);
/* Sets in map all that is set in from, which may have fewer blocks. */
void dirty_merge(struct dirty_map *map, const struct dirty_map *from);
/* The first set block at or after from, or DIRTY_NONE. */
uint64_t dirty_next(const struct dirty_map *map, uint64_t from);
/* The first clear block in [from, limit), or limit. */
uint64_t dirty_next_clear(const struct dirty_map *map, uint64_t from, uint64_t limit);
/* Asserts that count and summaries agree with the bits. */
void dirty_check(const struct dirty_map *map);

#endif
