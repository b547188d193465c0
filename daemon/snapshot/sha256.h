/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sha256: SHA-256 of two blocks at once. A processor with instructions for it spends most of one block's time
 * waiting for its own results; two blocks side by side take hardly longer than one.
 */
#ifndef OFFSITE_SNAPSHOT_SHA256_H
#define OFFSITE_SNAPSHOT_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32

/* Both of the same length. Without such instructions, one after the other. Any thread. */
void sha256_pair(const void *a, const void *b, size_t length_bytes, uint8_t hash_a[SHA256_BYTES],
		 uint8_t hash_b[SHA256_BYTES]);

#endif
