/* SPDX-License-Identifier: Apache-2.0 */
/* Two hashes at once are what the library's one is: for every length around a block's, and long ones. */
#include <openssl/sha.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/snapshot/sha256.h"

static uint8_t *noise(size_t length)
{
	uint8_t *data = malloc(length);
	uint64_t x = 88172645463325252u;

	assert_non_null(data);
	for (size_t i = 0; i < length; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		data[i] = (uint8_t)x;
	}
	return data;
}

static void assert_right(const uint8_t *a, const uint8_t *b, size_t length)
{
	uint8_t hash_a[SHA256_BYTES], hash_b[SHA256_BYTES], want[SHA256_BYTES];

	sha256_pair(a, b, length, hash_a, hash_b);
	assert_memory_equal(hash_a, SHA256(a, length, want), SHA256_BYTES);
	assert_memory_equal(hash_b, SHA256(b, length, want), SHA256_BYTES);
}

static void of_every_length(void **state)
{
	uint8_t *data = noise(4096);

	(void)state;
	for (size_t length = 0; length < 1000; length++)
		assert_right(data + length % 7, data + 2001, length);
	free(data);
}

static void of_chunks_anywhere(void **state)
{
	const size_t lengths[] = {65536, 65535, 4096, 65536 - 9, 65536 - 8, 65536 - 55, 1 << 20};
	uint8_t *data = noise(3 << 20);

	(void)state;
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
		for (size_t at = 0; at < 64; at += 9)
			assert_right(data + at, data + lengths[i] + 64, lengths[i]);
	free(data);
}

static void of_the_same(void **state)
{
	static const uint8_t zeroes[65536];

	(void)state;
	assert_right(zeroes, zeroes, sizeof(zeroes));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(of_every_length),
		cmocka_unit_test(of_chunks_anywhere),
		cmocka_unit_test(of_the_same),
	};

	return cmocka_run_group_tests_name("snapshot_sha256", tests, NULL, NULL);
}
