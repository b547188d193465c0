/* SPDX-License-Identifier: Apache-2.0 */
/*
 * split: what a volume's state directory holds about a peer whose history went another way: the
 * record of a split brain (file "split-brain") and the word that this side's content is given up for
 * the peer's (file "wanting"). Layout and validation only. Specification: split.md.
 */
#ifndef OFFSITE_PROTOCOL_SPLIT_H
#define OFFSITE_PROTOCOL_SPLIT_H

#include "protocol/wire.h"

#define SPLIT_MAGIC       0x4f4653504c543031ull /* "OFSPLT01" */
#define SPLIT_WISH_MAGIC  0x4f46535753483031ull /* "OFSWSH01" */
#define SPLIT_NODE_BYTES  64u
#define SPLIT_EXTENTS_MAX 64u

struct split_extent_wire {
	be64_t offset;
	be64_t length;
};

struct split_wire {
	be64_t magic;
	be64_t since_ns;         /* realtime: when the two met and found it out */
	struct id128 common;     /* the youngest generation that both descend from */
	struct id128 self, peer; /* their current generations then */
	be64_t peer_bytes;       /* what the peer changed since, in all */
	be64_t peer_extents;
	be32_t flags;
	be32_t listed; /* of peer_extents, below */
	char node[SPLIT_NODE_BYTES];
	struct split_extent_wire extents[SPLIT_EXTENTS_MAX];
	uint8_t reserved[28];
	be32_t crc; /* CRC32C of all before */
};
_Static_assert(sizeof(struct split_wire) == 1208, "layout");
_Static_assert(offsetof(struct split_wire, node) == 88, "layout");
_Static_assert(offsetof(struct split_wire, crc) == 1204, "layout");

enum split_flags {
	SPLIT_NEAR = 1,         /* the union of both maps names every difference */
	SPLIT_PEER_KNOWN = 2,   /* the peer told what it changed */
	SPLIT_PEER_PRIMARY = 4, /* its role then */
};
#define SPLIT_FLAGS_ALL 7u

struct split_extent {
	uint64_t offset_bytes, length_bytes;
};

struct split_record {
	uint64_t since_ns;
	struct id128 common, self, peer;
	uint64_t peer_bytes, peer_extents;
	unsigned flags, listed;
	char node[SPLIT_NODE_BYTES];
	struct split_extent extents[SPLIT_EXTENTS_MAX];
};

void split_encode(const struct split_record *record, struct split_wire *wire);
/* NULL, or why it is no record of a volume of this size. */
const char *split_decode(const struct split_wire *wire, uint64_t volume_size_bytes,
			 struct split_record *record);

/* "wanting", when good content is given up. An empty file of that name: content was lost. */
struct split_wish_wire {
	be64_t magic;
	struct id128
		gives_up; /* the generation given up: any other means that the wish was granted */
	be32_t flags;     /* SPLIT_WISH_WAS_UPTODATE */
	uint8_t reserved[32];
	be32_t crc; /* CRC32C of all before */
};
_Static_assert(sizeof(struct split_wish_wire) == 64, "layout");

/* The disk's state before the wish, which is the state again if that is taken back; else it was outdated. */
#define SPLIT_WISH_WAS_UPTODATE 1u

void split_wish_encode(const struct id128 *gives_up, unsigned flags, struct split_wish_wire *wire);
const char *split_wish_decode(const struct split_wish_wire *wire, struct id128 *gives_up,
			      unsigned *flags);

#endif
