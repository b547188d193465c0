/* SPDX-License-Identifier: Apache-2.0 */
/*
 * metadata: the formats of a volume's own files: the superblock slots (file "super") and the pages
 * of the write-intent map and the stored dirty maps (file "maps"). Layout and validation only.
 * Specification: metadata.md.
 */
#ifndef OFFSITE_PROTOCOL_METADATA_H
#define OFFSITE_PROTOCOL_METADATA_H

#include "protocol/wire.h"

#define METADATA_SUPER_MAGIC   0x4f46535355503031ull /* "OFSSUP01" */
#define METADATA_PAGE_MAGIC    0x4f46534d41503031ull /* "OFSMAP01" */
#define METADATA_VERSION       1
#define METADATA_SUPER_BYTES   4096u
#define METADATA_SUPER_SLOTS   3u
#define METADATA_SUPER_COPIES  2u /* in each slot, one behind the other */
#define METADATA_HISTORY       8u
#define METADATA_BACKING_BYTES 1024u
#define METADATA_PAGE_BYTES    4096u
#define METADATA_PAYLOAD_BYTES 4064u
#define METADATA_PAGE_BITS     (METADATA_PAYLOAD_BYTES * 8)

#define METADATA_PEER_BLOCK_BYTES  4096u
#define METADATA_STORE_BLOCK_BYTES 65536u
#define METADATA_REGION_BYTES      (1024u * 1024u)
#define METADATA_MAPS_FILES        2u /* "maps" and "maps.1" */

enum metadata_flags {
	METADATA_CREATING = 1,        /* the maps may not exist yet; nothing was ever served */
	METADATA_CLEAN = 2,           /* closed in order: lsn is exact */
	METADATA_PEER_ALL = 4,        /* the peer's stored map counts as all ones */
	METADATA_STORE_ALL = 8,       /* likewise the store's */
	METADATA_STORE_DETACHED = 16, /* content changes by another's hand: the store's map does not
				       * follow, everything counts as dirty whatever is consumed */
	METADATA_PEER_NEEDED = 32, /* a primary whose clients wait while the peer does not follow */
	METADATA_HEARD_STREAMING =
		64,               /* when the primary was last heard, its stream was received */
	METADATA_AT_PEER = 128,   /* a primary whose content is at the peer: its disk has nothing,
				   * or with HYDRATING what the file "missing" does not name */
	METADATA_HYDRATING = 256, /* the file "missing" names the blocks that the disk lacks;
				   * without AT_PEER they are in the snapshot "source" */
	METADATA_APPLYING =
		512, /* a committed cut goes to the backing: a mixture until it is whole */
	METADATA_INTENT_APPLIED =
		1024, /* a secondary: intent bits stand for what it applied, not for own writes */
	METADATA_PINNED = 2048, /* the snapshot that the disk is filled from was pinned for it */
	METADATA_FLAGS_ALL = 4095,
};

enum metadata_role { METADATA_SECONDARY, METADATA_PRIMARY, METADATA_ROLES };
enum metadata_disk {
	METADATA_UPTODATE,
	METADATA_OUTDATED,
	METADATA_INCONSISTENT,
	METADATA_DISKS,
};

struct metadata_super_wire {
	be64_t magic;
	be32_t version;
	be32_t flags;
	be64_t sequence;
	struct id128 uuid;
	be64_t size_bytes;
	be32_t peer_block_bytes;
	be32_t store_block_bytes;
	be32_t region_bytes;
	be32_t page_payload_bytes;
	be16_t role;
	be16_t disk;
	be32_t maps; /* the file of the maps: METADATA_MAPS_FILES of them take turns */
	struct id128 current;
	struct id128 base;
	struct id128 history[METADATA_HISTORY];
	be64_t lsn;
	be64_t outdated_ns;
	struct id128 snapshot;
	be64_t snapshot_sequence;
	char backing[METADATA_BACKING_BYTES]; /* informational; NUL-terminated, NUL-padded */
	be64_t heard_ns;
	be64_t heard_lsn;
	be64_t received_lsn;
	be64_t missing_bytes;
	be64_t behind_ns;
	struct id128 source_volume;
	struct id128 source_snapshot;
	be64_t source_sequence;
	struct id128 writer;
	uint8_t reserved[2700];
	be32_t crc; /* CRC32C of the 4092 bytes before */
};
_Static_assert(sizeof(struct metadata_super_wire) == METADATA_SUPER_BYTES, "layout");
_Static_assert(offsetof(struct metadata_super_wire, uuid) == 24, "layout");
_Static_assert(offsetof(struct metadata_super_wire, size_bytes) == 40, "layout");
_Static_assert(offsetof(struct metadata_super_wire, role) == 64, "layout");
_Static_assert(offsetof(struct metadata_super_wire, current) == 72, "layout");
_Static_assert(offsetof(struct metadata_super_wire, history) == 104, "layout");
_Static_assert(offsetof(struct metadata_super_wire, lsn) == 232, "layout");
_Static_assert(offsetof(struct metadata_super_wire, snapshot) == 248, "layout");
_Static_assert(offsetof(struct metadata_super_wire, backing) == 272, "layout");
_Static_assert(offsetof(struct metadata_super_wire, heard_ns) == 1296, "layout");
_Static_assert(offsetof(struct metadata_super_wire, source_volume) == 1336, "layout");
_Static_assert(offsetof(struct metadata_super_wire, writer) == 1376, "layout");
_Static_assert(offsetof(struct metadata_super_wire, crc) == 4092, "layout");

struct metadata_super {
	unsigned flags;
	uint64_t sequence;
	struct id128 uuid;
	uint64_t size_bytes;
	enum metadata_role role;
	enum metadata_disk disk;
	unsigned maps;
	struct id128 current, base, history[METADATA_HISTORY];
	uint64_t lsn, outdated_ns;
	struct id128 snapshot;
	uint64_t snapshot_sequence;
	char backing[METADATA_BACKING_BYTES];
	uint64_t heard_ns, heard_lsn, received_lsn, missing_bytes, behind_ns;
	struct id128 source_volume, source_snapshot;
	uint64_t source_sequence;
	struct id128 writer;
};

void metadata_super_encode(const struct metadata_super *super, struct metadata_super_wire *wire);
/* NULL, or why the slot holds no superblock. */
const char *metadata_super_decode(const struct metadata_super_wire *wire,
				  struct metadata_super *super);

enum metadata_page_kind {
	METADATA_INTENT = 1,
	METADATA_PEER_MAP,
	METADATA_STORE_MAP,
	METADATA_MISSING
};

/* Bit i of the page is bit i % 8 of payload[i / 8]. */
struct metadata_page_wire {
	be64_t magic;
	be16_t version;
	be16_t kind;
	be32_t number; /* within its kind */
	uint8_t reserved[12];
	be32_t crc; /* CRC32C of the 28 bytes before and of the payload */
	uint8_t payload[METADATA_PAYLOAD_BYTES];
};
_Static_assert(sizeof(struct metadata_page_wire) == METADATA_PAGE_BYTES, "layout");
_Static_assert(offsetof(struct metadata_page_wire, crc) == 28, "layout");
_Static_assert(offsetof(struct metadata_page_wire, payload) == 32, "layout");

/* words: METADATA_PAYLOAD_BYTES / 8 words of bits; bit i of the page is bit i % 64 of word i / 64. */
#define METADATA_PAGE_WORDS (METADATA_PAYLOAD_BYTES / 8)
void metadata_page_encode(enum metadata_page_kind kind, uint32_t number, const uint64_t *words,
			  struct metadata_page_wire *wire);
/* NULL and words filled, or why the page is no good (it then counts as all ones). */
const char *metadata_page_decode(const struct metadata_page_wire *wire,
				 enum metadata_page_kind kind, uint32_t number, uint64_t *words);

#endif
