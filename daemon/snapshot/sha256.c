/* SPDX-License-Identifier: Apache-2.0 */
/* Two lanes of x86's SHA instructions, interleaved by hand; FIPS 180-4 has the algorithm. See sha256.h. */
#include "daemon/snapshot/sha256.h"

#include <openssl/sha.h>
#include <stdbool.h>
#include <string.h>

static void one_by_one(const void *a, const void *b, size_t length, uint8_t hash_a[SHA256_BYTES],
		       uint8_t hash_b[SHA256_BYTES])
{
	SHA256(a, length, hash_a);
	SHA256(b, length, hash_b);
}

#if defined(__x86_64__) && __has_include(<sys/platform/x86.h>)
#include <immintrin.h>
#include <sys/platform/x86.h>

#define BLOCK_BYTES 64u
#define WITH_SHA    __attribute__((target("sha,sse4.1,ssse3")))

static const uint32_t round_constants[64] __attribute__((aligned(16))) = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
	0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
	0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
	0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
	0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
	0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
	0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
	0xc67178f2,
};

/* As the instructions want the state: a and b of it stand together, c and d, ... */
struct lane {
	__m128i abef, cdgh;
	__m128i words[4]; /* the last 16 of the message's schedule */
};

/* The next four words of the schedule. */
WITH_SHA static inline void lane_schedule(struct lane *l, unsigned i)
{
	__m128i *w = &l->words[i % 4];
	const __m128i *after = &l->words[(i + 1) % 4], *last = &l->words[(i + 3) % 4];
	__m128i middle = _mm_alignr_epi8(*last, l->words[(i + 2) % 4], 4);

	*w = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(*w, *after), middle), *last);
}

WITH_SHA static inline void lane_load(struct lane *l, unsigned i, const uint8_t *block)
{
	const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll);

	l->words[i] =
		_mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(block + 16 * i)), big_endian);
}

/* Both lanes' four rounds, in turns: neither waits for the other. */
WITH_SHA static inline void rounds(struct lane *a, struct lane *b, unsigned i)
{
	__m128i k = _mm_load_si128((const __m128i *)&round_constants[4 * i]);
	__m128i wa = _mm_add_epi32(a->words[i % 4], k), wb = _mm_add_epi32(b->words[i % 4], k);

	a->cdgh = _mm_sha256rnds2_epu32(a->cdgh, a->abef, wa);
	b->cdgh = _mm_sha256rnds2_epu32(b->cdgh, b->abef, wb);
	wa = _mm_shuffle_epi32(wa, 0x0e);
	wb = _mm_shuffle_epi32(wb, 0x0e);
	a->abef = _mm_sha256rnds2_epu32(a->abef, a->cdgh, wa);
	b->abef = _mm_sha256rnds2_epu32(b->abef, b->cdgh, wb);
}

WITH_SHA static void blocks(struct lane *to_a, struct lane *to_b, const uint8_t *pa,
			    const uint8_t *pb, size_t count)
{
	struct lane a = *to_a, b = *to_b;

	for (; count; count--, pa += BLOCK_BYTES, pb += BLOCK_BYTES) {
		const struct lane a_was = a, b_was = b;

#pragma GCC unroll 16
		for (unsigned i = 0; i < 16; i++) {
			if (i < 4) {
				lane_load(&a, i, pa);
				lane_load(&b, i, pb);
			} else {
				lane_schedule(&a, i);
				lane_schedule(&b, i);
			}
			rounds(&a, &b, i);
		}
		a.abef = _mm_add_epi32(a.abef, a_was.abef);
		b.abef = _mm_add_epi32(b.abef, b_was.abef);
		a.cdgh = _mm_add_epi32(a.cdgh, a_was.cdgh);
		b.cdgh = _mm_add_epi32(b.cdgh, b_was.cdgh);
	}
	*to_a = a;
	*to_b = b;
}

/* What is left of the message, a one bit, zeroes, the length in bits: how many blocks. */
static size_t last_blocks(const uint8_t *rest, size_t rest_bytes, uint64_t length,
			  uint8_t last[2 * BLOCK_BYTES])
{
	size_t count = rest_bytes + 1 + sizeof(length) > BLOCK_BYTES ? 2 : 1;
	uint64_t bits = __builtin_bswap64(length * 8);

	memset(last, 0, 2 * BLOCK_BYTES);
	memcpy(last, rest, rest_bytes);
	last[rest_bytes] = 0x80;
	memcpy(last + count * BLOCK_BYTES - sizeof(bits), &bits, sizeof(bits));
	return count;
}

WITH_SHA static void lane_begin(struct lane *l)
{
	l->abef = _mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c);
	l->cdgh = _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19);
}

static void lane_end(const struct lane *l, uint8_t hash[SHA256_BYTES])
{
	uint32_t abef[4], cdgh[4];

	memcpy(abef, &l->abef, sizeof(abef));
	memcpy(cdgh, &l->cdgh, sizeof(cdgh));
	for (unsigned i = 0; i < 8; i++) {
		const uint32_t *from = i & 2 ? cdgh : abef;
		uint32_t word = __builtin_bswap32(from[(i & 4 ? 1 : 3) - i % 2]);

		memcpy(hash + 4 * i, &word, sizeof(word));
	}
}

static void side_by_side(const uint8_t *a, const uint8_t *b, size_t length,
			 uint8_t hash_a[SHA256_BYTES], uint8_t hash_b[SHA256_BYTES])
{
	size_t whole = length / BLOCK_BYTES, rest = length % BLOCK_BYTES, count;
	uint8_t last_a[2 * BLOCK_BYTES], last_b[2 * BLOCK_BYTES];
	struct lane lane_a, lane_b;

	lane_begin(&lane_a);
	lane_begin(&lane_b);
	blocks(&lane_a, &lane_b, a, b, whole);
	count = last_blocks(a + whole * BLOCK_BYTES, rest, length, last_a);
	last_blocks(b + whole * BLOCK_BYTES, rest, length, last_b);
	blocks(&lane_a, &lane_b, last_a, last_b, count);
	lane_end(&lane_a, hash_a);
	lane_end(&lane_b, hash_b);
}

/* As the C library found it at start: asking the processor itself traps in a virtual machine. */
static bool has_instructions(void)
{
	return CPU_FEATURE_PRESENT(SHA) && CPU_FEATURE_PRESENT(SSE4_1);
}

void sha256_pair(const void *a, const void *b, size_t length_bytes, uint8_t hash_a[SHA256_BYTES],
		 uint8_t hash_b[SHA256_BYTES])
{
	if (has_instructions())
		side_by_side(a, b, length_bytes, hash_a, hash_b);
	else
		one_by_one(a, b, length_bytes, hash_a, hash_b);
}

#else

void sha256_pair(const void *a, const void *b, size_t length_bytes, uint8_t hash_a[SHA256_BYTES],
		 uint8_t hash_b[SHA256_BYTES])
{
	one_by_one(a, b, length_bytes, hash_a, hash_b);
}

#endif
