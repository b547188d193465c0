/* SPDX-License-Identifier: Apache-2.0 */
/* bits: plain bitmaps of 64-bit words, bit i in word i / 64. No bounds are checked here. */
#ifndef OFFSITE_VOLUME_BITS_H
#define OFFSITE_VOLUME_BITS_H

#include <stdbool.h>
#include <stdint.h>

#define BITS_WORDS(count) (((count) + 63) / 64)

static inline bool bits_test(const uint64_t *bits, uint64_t i)
{
	return bits[i / 64] >> (i % 64) & 1;
}

static inline void bits_set(uint64_t *bits, uint64_t i)
{
	bits[i / 64] |= 1ull << (i % 64);
}

static inline void bits_clear(uint64_t *bits, uint64_t i)
{
	bits[i / 64] &= ~(1ull << (i % 64));
}

/* The bits of word `word` that lie in [first, first + count). */
static inline uint64_t bits_mask(uint64_t word, uint64_t first, uint64_t count)
{
	uint64_t mask = ~0ull, last = first + count - 1;

	if (word == first / 64)
		mask &= ~0ull << (first % 64);
	if (word == last / 64)
		mask &= ~0ull >> (63 - last % 64);
	return mask;
}

static inline void bits_set_range(uint64_t *bits, uint64_t first, uint64_t count)
{
	if (count == 0)
		return;
	for (uint64_t w = first / 64; w <= (first + count - 1) / 64; w++)
		bits[w] |= bits_mask(w, first, count);
}

/* True if all of [first, first + count) are set. */
static inline bool bits_all(const uint64_t *bits, uint64_t first, uint64_t count)
{
	if (count == 0)
		return true;
	for (uint64_t w = first / 64; w <= (first + count - 1) / 64; w++)
		if (~bits[w] & bits_mask(w, first, count))
			return false;
	return true;
}

/* The first set bit in [from, limit), or limit. */
static inline uint64_t bits_next(const uint64_t *bits, uint64_t from, uint64_t limit)
{
	while (from < limit) {
		uint64_t word = bits[from / 64] >> (from % 64);

		if (word != 0) {
			from += (uint64_t)__builtin_ctzll(word);
			return from < limit ? from : limit;
		}
		from = (from / 64 + 1) * 64;
	}
	return limit;
}

#endif
