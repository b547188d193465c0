// SPDX-License-Identifier: Apache-2.0
#include "daemon/volume/dirty.h"

#include <assert.h>
#include <sys/mman.h>
#include "daemon/io/resident.h"
#include "daemon/volume/bits.h"

bool dirty_init(struct dirty_map *map, uint64_t blocks)
{
	uint64_t words = BITS_WORDS(blocks), groups = BITS_WORDS(words);
	uint64_t summary = BITS_WORDS(groups);
	uint64_t *memory;

	assert(blocks > 0);
	map->mapped_bytes = (words + groups + summary) * 8;
	memory = mmap(NULL, map->mapped_bytes, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return false;
	map->blocks = blocks;
	map->count = 0;
	map->words = memory;
	map->groups = memory + words;
	map->summary = memory + words + groups;
	return true;
}

void dirty_free(struct dirty_map *map)
{
	if (map->words != NULL)
		munmap(map->words, map->mapped_bytes);
	*map = (struct dirty_map){0};
}

void dirty_brace(const struct dirty_map *map)
{
	resident_make(map->words, map->mapped_bytes);
}

uint64_t dirty_set(struct dirty_map *map, uint64_t first, uint64_t count,
		   const struct dirty_map *other, uint64_t *overlap)
{
	uint64_t fresh = 0;

	assert(count > 0 && first < map->blocks && count <= map->blocks - first);
	for (uint64_t w = first / 64; w <= (first + count - 1) / 64; w++) {
		uint64_t added = bits_mask(w, first, count) & ~map->words[w];

		if (added == 0)
			continue;
		if (overlap != NULL)
			*overlap += (uint64_t)__builtin_popcountll(added & other->words[w]);
		fresh += (uint64_t)__builtin_popcountll(added);
		map->words[w] |= added;
		bits_set(map->groups, w);
		bits_set(map->summary, w / 64);
	}
	map->count += fresh;
	return fresh;
}

void dirty_set_words(struct dirty_map *map, uint64_t first, const uint64_t *words, uint64_t count)
{
	assert(first % 64 == 0 && first / 64 + count <= BITS_WORDS(map->blocks));
	for (uint64_t i = 0; i < count; i++) {
		uint64_t w = first / 64 + i;
		uint64_t added = words[i] & bits_mask(w, 0, map->blocks) & ~map->words[w];

		if (added == 0)
			continue;
		map->count += (uint64_t)__builtin_popcountll(added);
		map->words[w] |= added;
		bits_set(map->groups, w);
		bits_set(map->summary, w / 64);
	}
}

static uint64_t clear_in_word(struct dirty_map *map, uint64_t w, uint64_t mask)
{
	uint64_t gone = map->words[w] & mask;

	if (gone == 0)
		return 0;
	map->count -= (uint64_t)__builtin_popcountll(gone);
	map->words[w] &= ~gone;
	if (map->words[w] == 0) {
		bits_clear(map->groups, w);
		if (map->groups[w / 64] == 0)
			bits_clear(map->summary, w / 64);
	}
	return gone;
}

uint64_t dirty_clear(struct dirty_map *map, uint64_t first, uint64_t count,
		     const struct dirty_map *other, uint64_t *overlap)
{
	uint64_t before = map->count;

	assert(count > 0 && first < map->blocks && count <= map->blocks - first);
	for (uint64_t w = first / 64; w <= (first + count - 1) / 64; w++) {
		uint64_t gone = clear_in_word(map, w, bits_mask(w, first, count));

		if (overlap != NULL)
			*overlap -= (uint64_t)__builtin_popcountll(gone & other->words[w]);
	}
	return before - map->count;
}

void dirty_subtract(struct dirty_map *map, const struct dirty_map *what)
{
	uint64_t groups = BITS_WORDS(BITS_WORDS(what->blocks));

	assert(map->blocks == what->blocks);
	for (uint64_t g = bits_next(what->summary, 0, groups); g < groups;
	     g = bits_next(what->summary, g + 1, groups))
		for (uint64_t left = what->groups[g]; left != 0; left &= left - 1) {
			uint64_t w = g * 64 + (uint64_t)__builtin_ctzll(left);

			clear_in_word(map, w, what->words[w]);
		}
}

void dirty_clear_all(struct dirty_map *map)
{
	uint64_t groups = BITS_WORDS(BITS_WORDS(map->blocks));

	for (uint64_t s = 0; map->count > 0 && s < BITS_WORDS(groups); s++) {
		while (map->summary[s] != 0) {
			uint64_t g = s * 64 + (uint64_t)__builtin_ctzll(map->summary[s]);

			while (map->groups[g] != 0) {
				uint64_t w = g * 64 + (uint64_t)__builtin_ctzll(map->groups[g]);

				map->words[w] = 0;
				map->groups[g] &= map->groups[g] - 1;
			}
			map->summary[s] &= map->summary[s] - 1;
		}
	}
	map->count = 0;
}

void dirty_merge(struct dirty_map *map, const struct dirty_map *from)
{
	uint64_t groups = BITS_WORDS(BITS_WORDS(from->blocks));

	assert(map->blocks >= from->blocks);
	for (uint64_t g = bits_next(from->summary, 0, groups); g < groups;
	     g = bits_next(from->summary, g + 1, groups)) {
		for (uint64_t left = from->groups[g]; left != 0; left &= left - 1) {
			uint64_t w = g * 64 + (uint64_t)__builtin_ctzll(left);
			uint64_t added = from->words[w] & ~map->words[w];

			map->count += (uint64_t)__builtin_popcountll(added);
			map->words[w] |= added;
		}
		map->groups[g] |= from->groups[g];
		bits_set(map->summary, g);
	}
}

uint64_t dirty_next(const struct dirty_map *map, uint64_t from)
{
	uint64_t words = BITS_WORDS(map->blocks), groups = BITS_WORDS(words), word, w, g;

	if (from >= map->blocks)
		return DIRTY_NONE;
	w = from / 64;
	word = map->words[w] >> (from % 64);
	if (word != 0)
		return from + (uint64_t)__builtin_ctzll(word);
	/* In this word's group, then in the first group that has anything. */
	w++;
	g = w / 64;
	if (w % 64 != 0) {
		uint64_t end = (g + 1) * 64 < words ? (g + 1) * 64 : words;

		w = bits_next(map->groups, w, end);
		if (w < end)
			return w * 64 + (uint64_t)__builtin_ctzll(map->words[w]);
		g++;
	}
	g = bits_next(map->summary, g, groups);
	if (g >= groups)
		return DIRTY_NONE;
	w = g * 64 + (uint64_t)__builtin_ctzll(map->groups[g]);
	return w * 64 + (uint64_t)__builtin_ctzll(map->words[w]);
}

uint64_t dirty_next_clear(const struct dirty_map *map, uint64_t from, uint64_t limit)
{
	while (from < limit) {
		uint64_t word = ~map->words[from / 64] >> (from % 64);

		if (word != 0) {
			from += (uint64_t)__builtin_ctzll(word);
			return from < limit ? from : limit;
		}
		from = (from / 64 + 1) * 64;
	}
	return limit;
}

void dirty_check(const struct dirty_map *map)
{
	uint64_t words = BITS_WORDS(map->blocks), count = 0;

	for (uint64_t w = 0; w < words; w++) {
		count += (uint64_t)__builtin_popcountll(map->words[w]);
		assert(bits_test(map->groups, w) == (map->words[w] != 0));
	}
	for (uint64_t g = 0; g < BITS_WORDS(words); g++)
		assert(bits_test(map->summary, g) == (map->groups[g] != 0));
	assert(count == map->count);
}
