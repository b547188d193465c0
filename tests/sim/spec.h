/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spec: readers of what the engine leaves on disks and in the store, written from the specifications in
 * protocol/ alone. They share neither code nor structures with the engine and its formats: what both
 * agree on stands in the specification.
 */
#ifndef OFFSITE_TESTS_SIM_SPEC_H
#define OFFSITE_TESTS_SIM_SPEC_H

#include "tests/sim/store_sim.h"

uint32_t spec_crc32c(uint32_t crc, const void *data, size_t length);
/* Big-endian integers at any place. */
uint64_t spec_be(const uint8_t *at, unsigned bytes);

/* ---- protocol/metadata.md ----------------------------------------------------------------------------- */

enum spec_flags {
	SPEC_CREATING = 1,
	SPEC_CLEAN = 2,
	SPEC_PEER_ALL = 4,
	SPEC_STORE_ALL = 8,
	SPEC_AT_PEER = 128,
	SPEC_HYDRATING = 256,
	SPEC_APPLYING = 512,
	SPEC_INTENT_APPLIED = 1024,
};
enum spec_disk { SPEC_UPTODATE, SPEC_OUTDATED, SPEC_INCONSISTENT };
enum spec_map { SPEC_INTENT = 1, SPEC_PEER, SPEC_STORE };

/* A volume's metadata as a start would find them, whole. */
struct spec_volume {
	const struct env *env;
	unsigned flags, disk, maps;
	bool primary;
	uint64_t sequence, size_bytes;
	uint8_t uuid[16], current[16], base[16], snapshot[16];
};

/* False: no superblock is valid. state: the volume's directory. */
bool spec_volume_read(const struct env *env, const char *state, struct spec_volume *volume);
/* Whether the block at offset counts as dirty for a consumer, by what is on the disk. */
bool spec_dirty(const struct spec_volume *volume, const char *state, enum spec_map consumer,
		uint64_t offset);

/* ---- protocol/snapshot.md ------------------------------------------------------------------------------- */

/* The content of a snapshot in a store that is not encrypted: allocated, size_bytes long. NULL and the reason: it is
 * not what the specification says. */
uint8_t *spec_snapshot_read(struct sim *sim, const char *url, const uint8_t volume[16],
			    const uint8_t snapshot[16], uint64_t *size_bytes, char *why,
			    size_t why_size);
bool spec_snapshot_exists(struct sim *sim, const char *url, const uint8_t volume[16],
			  const uint8_t snapshot[16]);

#endif
