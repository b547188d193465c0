/* SPDX-License-Identifier: Apache-2.0 */
/*
 * snapfmt: the objects of a snapshot repository: packs of chunks, map pages, manifests, and their
 * names. Layout, encoding and validation only. Specification: snapshot.md.
 *
 * What comes out of a store is hostile until a function here said NULL to it.
 */
#ifndef OFFSITE_PROTOCOL_SNAPSHOT_H
#define OFFSITE_PROTOCOL_SNAPSHOT_H

#include "protocol/wire.h"

#define SNAPFMT_MAGIC       0x4f46534eu /* "OFSN" */
#define SNAPFMT_PAGE_MAGIC  0x4f465047u /* "OFPG" */
#define SNAPFMT_CLAIM_MAGIC 0x4f465343u /* "OFSC" */
#define SNAPFMT_VERSION     1u

#define SNAPFMT_CHUNK_BYTES  65536u
#define SNAPFMT_PAGE_CHUNKS  1024u
#define SNAPFMT_PAGE_BYTES   ((uint64_t)SNAPFMT_PAGE_CHUNKS * SNAPFMT_CHUNK_BYTES)
#define SNAPFMT_HASH_BYTES   32u
#define SNAPFMT_TEXT_BYTES   64u
#define SNAPFMT_SIZE_UNIT    4096u        /* volume sizes are multiples of it */
#define SNAPFMT_VOLUME_MAX   (1ull << 50) /* 1 PiB */
#define SNAPFMT_PACK_MAX     (1u << 28)   /* bytes of a pack or maps object */
#define SNAPFMT_BODY_MAX     (1u << 30)   /* bytes of a manifest's body, unpacked */
#define SNAPFMT_GIVEN_UP_MAX 8u  /* generations that a manifest can say were given up with it */
#define SNAPFMT_NAME_BYTES   128 /* longest object name and its NUL fit */

enum snapfmt_kind { SNAPFMT_PACK = 1, SNAPFMT_MAPS = 2, SNAPFMT_MANIFEST = 3 };
enum snapfmt_flags { SNAPFMT_ZSTD = 1 };

/* Which object: the snapshot it was written for, and its number among those. */
struct snapfmt_ref {
	struct id128 snapshot;
	uint64_t sequence;
	uint32_t number; /* 0 for a manifest */
};
/* By sequence, then snapshot, then number. */
int snapfmt_ref_compare(const struct snapfmt_ref *a, const struct snapfmt_ref *b);

/* ---- names ---- */

void snapfmt_name(enum snapfmt_kind kind, const struct id128 *volume, const struct snapfmt_ref *ref,
		  char name[SNAPFMT_NAME_BYTES]);
/* The prefix under which all objects of a kind stand, with its '/'. */
void snapfmt_prefix(enum snapfmt_kind kind, const struct id128 *volume,
		    char name[SNAPFMT_NAME_BYTES]);
/* The object whose being there keeps a snapshot: "VOLUME/pins/SEQUENCE-SNAPSHOT-HOLDER"; holder NULL or zero: the
 * operator's, "VOLUME/pins/SEQUENCE-SNAPSHOT"; ref NULL: the prefix. */
void snapfmt_pin_name(const struct id128 *volume, const struct snapfmt_ref *ref,
		      const struct id128 *holder, char name[SNAPFMT_NAME_BYTES]);
bool snapfmt_pin_parse(const char *name, struct id128 *volume, struct snapfmt_ref *ref,
		       struct id128 *holder);
/* The object whose being there says that a snapshot is deleted: "VOLUME/snapshots/SEQUENCE-SNAPSHOT-deleted". */
void snapfmt_mark_name(const struct id128 *volume, const struct snapfmt_ref *ref,
		       char name[SNAPFMT_NAME_BYTES]);
bool snapfmt_mark_parse(const char *name, struct id128 *volume, struct snapfmt_ref *ref);
/* The object that stands while a snapshot is written, which shares with base (zero: with none):
 * "VOLUME/claims/SEQUENCE-SNAPSHOT-BASE"; ref NULL: the prefix. */
void snapfmt_claim_name(const struct id128 *volume, const struct snapfmt_ref *ref,
			const struct id128 *base, char name[SNAPFMT_NAME_BYTES]);
bool snapfmt_claim_parse(const char *name, struct id128 *volume, struct snapfmt_ref *ref,
			 struct id128 *base);
/* False: not a name of ours. */
bool snapfmt_name_parse(const char *name, enum snapfmt_kind *kind, struct id128 *volume,
			struct snapfmt_ref *ref);

/* ---- header of every object ---- */

struct snapfmt_header_wire {
	be32_t magic;
	be16_t version;
	be16_t kind;
	struct id128 volume;
	struct id128 snapshot;
	be64_t sequence;
	be32_t number;
	be32_t flags; /* MANIFEST: SNAPFMT_ZSTD: the body is one zstd frame */
	be64_t size_bytes;
	be64_t table_offset;  /* PACK: the index; MANIFEST: the body; MAPS: 0 */
	be32_t table_count;   /* PACK: entries; MANIFEST: stored bytes; MAPS: pages */
	be32_t table_crc;     /* CRC32C of what table_offset names; MAPS: 0 */
	be32_t padding_bytes; /* zeroes at the object's end, counted in its size */
	uint8_t reserved[40];
	be32_t crc; /* CRC32C of the 124 bytes before */
};
_Static_assert(sizeof(struct snapfmt_header_wire) == 128, "layout");
_Static_assert(offsetof(struct snapfmt_header_wire, size_bytes) == 56, "layout");

struct snapfmt_header {
	enum snapfmt_kind kind;
	struct id128 volume;
	struct snapfmt_ref ref;
	unsigned flags;
	uint64_t size_bytes, table_offset;
	uint32_t table_count, table_crc;
	uint32_t padding_bytes;
};
void snapfmt_header_encode(const struct snapfmt_header *header, struct snapfmt_header_wire *wire);
/* NULL, or why it is no header of this object. */
const char *snapfmt_header_decode(const struct snapfmt_header_wire *wire, enum snapfmt_kind kind,
				  const struct id128 *volume, const struct snapfmt_ref *ref,
				  struct snapfmt_header *header);

/* ---- claim: who writes, since when ---- */

struct snapfmt_claim_wire {
	be32_t magic; /* "OFSC" */
	be16_t version;
	be16_t reserved;
	be64_t created_ns; /* realtime */
	char node_name[SNAPFMT_TEXT_BYTES];
	struct id128 writer; /* the same over restarts, of no other node; zero: not known */
	uint8_t reserved2[28];
	be32_t crc; /* CRC32C of the 124 bytes before */
};
_Static_assert(sizeof(struct snapfmt_claim_wire) == 128, "layout");

void snapfmt_claim_encode(uint64_t created_ns, const char *node_name, const struct id128 *writer,
			  struct snapfmt_claim_wire *wire);
/* NULL, or why it is none. */
const char *snapfmt_claim_invalid(const struct snapfmt_claim_wire *wire);

/* ---- pack: header, stored chunks back to back, index ---- */

struct snapfmt_index_wire {
	be64_t chunk; /* its place in the volume, in chunks */
	be32_t offset;
	be32_t stored_bytes;
	be32_t stored_crc;
	be32_t flags;
	uint8_t hash[SNAPFMT_HASH_BYTES];
	uint8_t reserved[8];
};
_Static_assert(sizeof(struct snapfmt_index_wire) == 64, "layout");

/* ---- map page ---- */

/* Where a chunk is. stored_bytes 0: nowhere, it is all zeroes. */
struct snapfmt_entry {
	uint8_t hash[SNAPFMT_HASH_BYTES];
	struct snapfmt_ref pack;
	uint32_t offset, stored_bytes, stored_crc;
	uint32_t ordinal; /* among the pack's chunks */
	unsigned flags;
};

void snapfmt_index_encode(uint64_t chunk, const struct snapfmt_entry *entry,
			  struct snapfmt_index_wire *wire);
/* The whole index of a pack (its checksum is the caller's business): NULL, or what is wrong. */
const char *snapfmt_index_invalid(const struct snapfmt_header *header,
				  const struct snapfmt_index_wire *index);

struct snapfmt_page {
	uint64_t number; /* chunks number * SNAPFMT_PAGE_CHUNKS on */
	struct snapfmt_entry entries[SNAPFMT_PAGE_CHUNKS];
};

struct snapfmt_page_wire {
	be32_t magic;
	be16_t version;
	be16_t flags; /* SNAPFMT_ZSTD */
	be64_t number;
	be32_t body_bytes; /* unpacked */
	be32_t stored_bytes;
	be32_t stored_crc;
	uint8_t reserved[32];
	be32_t crc; /* CRC32C of the 60 bytes before */
};
_Static_assert(sizeof(struct snapfmt_page_wire) == 64, "layout");

struct snapfmt_page_pack_wire {
	struct id128 snapshot;
	be64_t sequence;
	be32_t number;
	be32_t reserved;
};
struct snapfmt_entry_wire {
	uint8_t hash[SNAPFMT_HASH_BYTES];
	be32_t pack; /* slot in the page's own table */
	be32_t offset;
	be32_t stored_bytes;
	be32_t stored_crc;
	be32_t ordinal;
	be32_t flags;
};
struct snapfmt_page_body_wire { /* followed by packs, then entries in ascending chunk order */
	uint8_t present[SNAPFMT_PAGE_CHUNKS / 8]; /* bit i%8 of byte i/8: chunk i has an entry */
	be32_t pack_count;
	be32_t entry_count;
};
_Static_assert(sizeof(struct snapfmt_page_pack_wire) == 32, "layout");
_Static_assert(sizeof(struct snapfmt_entry_wire) == 56, "layout");
_Static_assert(sizeof(struct snapfmt_page_body_wire) == 136, "layout");
#define SNAPFMT_PAGE_BODY_MAX                    \
	(sizeof(struct snapfmt_page_body_wire) + \
	 SNAPFMT_PAGE_CHUNKS *                   \
		 (sizeof(struct snapfmt_page_pack_wire) + sizeof(struct snapfmt_entry_wire)))
#define SNAPFMT_PAGE_STORED_MAX (sizeof(struct snapfmt_page_wire) + SNAPFMT_PAGE_BODY_MAX)

/* Encodes into body (SNAPFMT_PAGE_BODY_MAX bytes); returns its length. */
size_t snapfmt_page_body_encode(const struct snapfmt_page *page, uint8_t *body);
const char *snapfmt_page_body_decode(const uint8_t *body, size_t length, uint64_t number,
				     uint64_t volume_size_bytes, struct snapfmt_page *page);
void snapfmt_page_header_encode(uint64_t number, unsigned flags, uint32_t body_bytes,
				const void *stored, uint32_t stored_bytes,
				struct snapfmt_page_wire *wire);
/* Checks header and checksum of a stored page of length bytes in all. */
const char *snapfmt_page_header_invalid(const uint8_t *stored, size_t length, uint64_t number);

/* ---- manifest: header, facts, body ---- */

struct snapfmt_facts_wire {
	be64_t created_ns;
	be64_t lsn;
	be64_t size_bytes;
	be64_t data_bytes;
	be64_t changed_bytes;
	be64_t stored_bytes;
	be32_t objects;
	be32_t chunk_bytes;
	struct id128 parent; /* the snapshot it was compared with; zero: none */
	char volume_name[SNAPFMT_TEXT_BYTES];
	char node_name[SNAPFMT_TEXT_BYTES];
	char label[SNAPFMT_TEXT_BYTES];
	be64_t body_bytes; /* unpacked */
	be32_t source_count;
	be32_t object_count;
	be32_t page_count;
	be32_t requests; /* that were made to the service for it, its own put included; 0: not known */
	be64_t retain_until_ns; /* it and all it needs is locked until then, or longer; 0: not */
	uint8_t lock;           /* enum snapfmt_lock */
	uint8_t flags;          /* SNAPFMT_GIVEN_UP */
	struct id128 history;   /* the generation that its content belongs to; zero: not known */
	/* With SNAPFMT_GIVEN_UP: the generations before it that were given up with it; first those there are. */
	struct id128 given_up[SNAPFMT_GIVEN_UP_MAX];
	uint8_t reserved[66];
	be32_t crc; /* CRC32C of the 508 bytes before */
};
_Static_assert(sizeof(struct snapfmt_facts_wire) == 512, "layout");
_Static_assert(offsetof(struct snapfmt_facts_wire, given_up) == 314, "layout");

/* Of the facts: it keeps what was given up in a split brain. */
#define SNAPFMT_GIVEN_UP 1u

enum snapfmt_lock {
	SNAPFMT_LOCK_NONE = 0,
	SNAPFMT_LOCK_GOVERNANCE = 1,
	SNAPFMT_LOCK_COMPLIANCE = 2
};

/* The body: sources, objects, pages; each sorted. */
struct snapfmt_source_wire { /* whose objects are used */
	struct id128 snapshot;
	be64_t sequence;
};
struct snapfmt_object_wire { /* sorted by kind, source, number */
	be32_t source;
	be32_t number;
	be16_t kind; /* PACK or MAPS */
	be16_t reserved;
	be32_t total_count; /* chunks or pages in it */
	be32_t live_count;  /* of them used by this snapshot; >= 1 */
	be32_t reserved2;
	be64_t size_bytes;
	be64_t live_bytes;
};
struct snapfmt_pointer_wire { /* a map page; pages without an entry are left out */
	be32_t number;
	be32_t object; /* slot in the objects; of kind MAPS */
	be32_t offset;
	be32_t length_bytes;
	be32_t crc; /* CRC32C of the stored page */
	be32_t chunk_count;
};
_Static_assert(sizeof(struct snapfmt_source_wire) == 24, "layout");
_Static_assert(sizeof(struct snapfmt_object_wire) == 40, "layout");
_Static_assert(sizeof(struct snapfmt_pointer_wire) == 24, "layout");

#define SNAPFMT_MANIFEST_HEAD_BYTES \
	(sizeof(struct snapfmt_header_wire) + sizeof(struct snapfmt_facts_wire))

void snapfmt_facts_seal(struct snapfmt_facts_wire *wire); /* sets crc */
const char *snapfmt_facts_invalid(const struct snapfmt_facts_wire *wire);
/* Checks a whole unpacked body of the length the facts give: order, slots, limits. */
const char *snapfmt_body_invalid(const struct snapfmt_facts_wire *facts, const uint8_t *body);

#endif
