/* SPDX-License-Identifier: Apache-2.0 */
/*
 * staging: the format of the secondary's redo log, in which a cut is collected beside the volume
 * and what is streamed behind it waits. Layout and validation only. Specification: staging.md.
 */
#ifndef OFFSITE_PROTOCOL_STAGING_H
#define OFFSITE_PROTOCOL_STAGING_H

#include "protocol/wire.h"

#define STAGING_MAGIC        0x4f46535447303031ull /* "OFSTG001" */
#define STAGING_RECORD_MAGIC 0x53524543u           /* "SREC" */
#define STAGING_PAYLOAD_MAX  (1024u * 1024u)

/* At offset 0. All zero: the log is empty. */
struct staging_header {
	be64_t magic;
	struct id128 log_id;     /* random, new for each use of the file */
	struct id128 uuid;       /* of the volume */
	be64_t size_bytes;       /* of the volume */
	struct id128 generation; /* the volume's when the log was begun */
	struct id128 transfer;   /* the source's name for it */
	uint8_t reserved[44];
	be32_t crc; /* CRC32C of the 124 bytes before */
};
_Static_assert(sizeof(struct staging_header) == 128, "layout");

enum staging_type {
	STAGING_CUT_DATA = 1,
	STAGING_CUT_ZERO,
	STAGING_COMMIT, /* all of the cut stands before this record */
	STAGING_WRITE,  /* streamed behind the cut */
	STAGING_ZERO,
	STAGING_FLUSH,
	STAGING_RESUME, /* gone on with: what was streamed before is void; a new log id follows */
	STAGING_TYPES,
};

enum staging_flags {
	STAGING_PUNCH = 1, /* ZERO, CUT_ZERO: deallocate */
	STAGING_FINAL = 2, /* COMMIT: the source's own content at that moment */
};

struct staging_record_wire {
	be32_t magic;
	be16_t type;
	be16_t flags;
	struct id128 log_id;
	be64_t sequence; /* 1, 2, 3... */
	be64_t lsn;
	be64_t offset;
	be64_t length;
	be32_t payload_crc;
	be32_t header_crc; /* CRC32C of the 60 bytes before */
};
_Static_assert(sizeof(struct staging_record_wire) == 64, "layout");

struct staging_record {
	enum staging_type type;
	unsigned flags;
	uint64_t sequence, lsn, offset, length;
	uint32_t payload_crc;
};

/* RESUME's payload: the log id of the records behind it. */
struct staging_resume_wire {
	struct id128 log_id;
};

/* COMMIT's payload. */
struct staging_commit_wire {
	struct id128 generation; /* the volume's, once the cut is applied */
	struct id128 uuid;       /* the volume's, from then on */
};

void staging_header_encode(const struct id128 *log_id, const struct id128 *uuid,
			   const struct id128 *generation, const struct id128 *transfer,
			   uint64_t size_bytes, struct staging_header *header);
/* NULL, or why there is no log for this volume in the file. */
const char *staging_header_decode(const struct staging_header *header, uint64_t size_bytes,
				  struct id128 *log_id, struct id128 *generation,
				  struct id128 *transfer);

void staging_record_encode(const struct staging_record *record, const struct id128 *log_id,
			   struct staging_record_wire *wire);
/* NULL, or why the log ends before this record. */
const char *staging_record_decode(const struct staging_record_wire *wire,
				  const struct id128 *log_id, uint64_t sequence,
				  uint64_t volume_size_bytes, struct staging_record *record);
/* Bytes that follow the record's header. */
uint32_t staging_payload_bytes(const struct staging_record *record);

#endif
