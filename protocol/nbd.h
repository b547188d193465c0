/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbd: the layouts and numbers of the NBD protocol, and the pure functions that read, judge and
 * write them: no I/O, no state, no allocation. What of the protocol page is implemented, and how
 * its choices were made, stands in nbd.md beside this file.
 *
 * Bytes from a client pass through the *_parse() and *_check() functions here before anything acts
 * on them.
 */
#ifndef OFFSITE_PROTOCOL_NBD_H
#define OFFSITE_PROTOCOL_NBD_H

#include "protocol/wire.h"

/* ---- limits ------------------------------------------------------------------------------- */

#define NBD_STRING_MAX        4096u           /* any string of the protocol */
#define NBD_OPTION_DATA_MAX   (64u * 1024u)   /* more is read away and answered with TOO_BIG */
#define NBD_OPTION_DRAIN_MAX  (1024u * 1024u) /* more than that ends the connection */
#define NBD_PAYLOAD_MAX       (32u * 1024u * 1024u)  /* READ and WRITE; advertised */
#define NBD_PAYLOAD_DRAIN_MAX (128u * 1024u * 1024u) /* a longer WRITE ends the connection */

/* ---- handshake ---------------------------------------------------------------------------- */

#define NBD_MAGIC_INIT         UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_MAGIC_OPTION       UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_MAGIC_OPTION_REPLY UINT64_C(0x0003e889045565a9)

enum nbd_handshake_flags { NBD_FLAG_FIXED_NEWSTYLE = 1, NBD_FLAG_NO_ZEROES = 2 };

enum nbd_option {
	NBD_OPT_EXPORT_NAME = 1,
	NBD_OPT_ABORT = 2,
	NBD_OPT_LIST = 3,
	NBD_OPT_STARTTLS = 5,
	NBD_OPT_INFO = 6,
	NBD_OPT_GO = 7,
	NBD_OPT_STRUCTURED_REPLY = 8,
	NBD_OPT_LIST_META_CONTEXT = 9,
	NBD_OPT_SET_META_CONTEXT = 10,
};

#define NBD_REP_ERROR        0x80000000u
#define NBD_REP_ACK          1u
#define NBD_REP_SERVER       2u
#define NBD_REP_INFO         3u
#define NBD_REP_META_CONTEXT 4u
#define NBD_REP_ERR_UNSUP    (NBD_REP_ERROR | 1u)
#define NBD_REP_ERR_POLICY   (NBD_REP_ERROR | 2u)
#define NBD_REP_ERR_INVALID  (NBD_REP_ERROR | 3u)
#define NBD_REP_ERR_TLS_REQD (NBD_REP_ERROR | 5u)
#define NBD_REP_ERR_UNKNOWN  (NBD_REP_ERROR | 6u)
#define NBD_REP_ERR_SHUTDOWN (NBD_REP_ERROR | 7u)
#define NBD_REP_ERR_TOO_BIG  (NBD_REP_ERROR | 9u)

enum nbd_info {
	NBD_INFO_EXPORT = 0,
	NBD_INFO_NAME = 1,
	NBD_INFO_DESCRIPTION = 2,
	NBD_INFO_BLOCK_SIZE = 3,
};

/* S: first of all. */
struct nbd_greeting {
	be64_t init_magic;
	be64_t option_magic;
	be16_t flags;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_greeting) == 18, "protocol page");

/* C: its flags (32 bits) once, then options of this form, each followed by length bytes. */
struct nbd_option_header {
	be64_t magic;
	be32_t option;
	be32_t length;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_option_header) == 16, "protocol page");

/* S: followed by length bytes. */
struct nbd_option_reply {
	be64_t magic;
	be32_t option;
	be32_t type;
	be32_t length;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_option_reply) == 20, "protocol page");

struct nbd_info_export {
	be16_t type;
	be64_t size;
	be16_t flags;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_info_export) == 12, "protocol page");

struct nbd_info_block_size {
	be16_t type;
	be32_t minimum;
	be32_t preferred;
	be32_t maximum;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_info_block_size) == 14, "protocol page");

/* S: the answer to EXPORT_NAME; padding only if the client did not set NO_ZEROES. */
struct nbd_export_name_reply {
	be64_t size;
	be16_t flags;
	uint8_t padding[124];
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_export_name_reply) == 134, "protocol page");
#define NBD_EXPORT_NAME_REPLY_SHORT 10u

/* The data of INFO and GO. Pointers into the bytes parsed. */
struct nbd_info_request {
	const char *name; /* not terminated */
	uint32_t name_length;
	uint16_t count;
	const be16_t *types;
};

/* The data of LIST_META_CONTEXT and SET_META_CONTEXT. */
struct nbd_meta_request {
	const char *name; /* not terminated */
	uint32_t name_length;
	uint32_t count;
	const uint8_t *queries; /* private: nbd_meta_query_next() */
	const uint8_t *end;
};

/* NULL, or why the client's flags must end the connection. */
const char *nbd_client_flags_invalid(uint32_t flags);
/* NULL, or why this is no option's header. */
const char *nbd_option_header_invalid(const struct nbd_option_header *header);
/* NULL, or why the bytes cannot be an export's name. */
const char *nbd_name_invalid(const char *name, size_t length);
/* NULL and *request filled, or why not. */
const char *nbd_info_request_parse(const void *data, size_t length,
				   struct nbd_info_request *request);
bool nbd_info_wanted(const struct nbd_info_request *request, enum nbd_info type);
/* NULL and *request filled, all queries checked, or why not. */
const char *nbd_meta_request_parse(const void *data, size_t length,
				   struct nbd_meta_request *request);
/* Steps through the queries: false after the last. */
bool nbd_meta_query_next(struct nbd_meta_request *request, const char **query, size_t *length);
/* Does the query (not empty) name this context? prefix_too: a beginning of it that ends with ':' or '=' does
 * as well (LIST). */
bool nbd_meta_query_names(const char *query, size_t length, const char *name, bool prefix_too);

#define NBD_META_ALLOCATION "base:allocation"
/* What changed since a snapshot: nbd.md, section 6. */
#define NBD_META_CHANGED      "offsite:changed-since="
#define NBD_META_DIRTY_BITMAP "qemu:dirty-bitmap:"
enum nbd_changed_flags { NBD_STATE_CHANGED = 1, NBD_STATE_CHANGED_ZERO = 2 };

/* ---- transmission ------------------------------------------------------------------------- */

#define NBD_MAGIC_REQUEST      0x25609513u
#define NBD_MAGIC_SIMPLE_REPLY 0x67446698u
#define NBD_MAGIC_CHUNK        0x668e33efu

enum nbd_transmission_flags {
	NBD_FLAG_HAS_FLAGS = 1 << 0,
	NBD_FLAG_READ_ONLY = 1 << 1,
	NBD_FLAG_SEND_FLUSH = 1 << 2,
	NBD_FLAG_SEND_FUA = 1 << 3,
	NBD_FLAG_ROTATIONAL = 1 << 4,
	NBD_FLAG_SEND_TRIM = 1 << 5,
	NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
	NBD_FLAG_SEND_DF = 1 << 7,
	NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
	NBD_FLAG_SEND_CACHE = 1 << 10,
	NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
};

enum nbd_command {
	NBD_CMD_READ = 0,
	NBD_CMD_WRITE = 1,
	NBD_CMD_DISC = 2,
	NBD_CMD_FLUSH = 3,
	NBD_CMD_TRIM = 4,
	NBD_CMD_CACHE = 5,
	NBD_CMD_WRITE_ZEROES = 6,
	NBD_CMD_BLOCK_STATUS = 7,
};
#define NBD_COMMANDS 8u

enum nbd_command_flags {
	NBD_CMD_FLAG_FUA = 1 << 0,
	NBD_CMD_FLAG_NO_HOLE = 1 << 1,
	NBD_CMD_FLAG_DF = 1 << 2,
	NBD_CMD_FLAG_REQ_ONE = 1 << 3,
	NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

#define NBD_CHUNK_FLAG_DONE    1u
#define NBD_CHUNK_NONE         0u
#define NBD_CHUNK_OFFSET_DATA  1u
#define NBD_CHUNK_OFFSET_HOLE  2u
#define NBD_CHUNK_BLOCK_STATUS 5u
#define NBD_CHUNK_ERROR        0x8001u
#define NBD_CHUNK_ERROR_OFFSET 0x8002u

#define NBD_STATE_HOLE 1u
#define NBD_STATE_ZERO 2u

enum nbd_error {
	NBD_OK = 0,
	NBD_EPERM = 1,
	NBD_EIO = 5,
	NBD_ENOMEM = 12,
	NBD_EINVAL = 22,
	NBD_ENOSPC = 28,
	NBD_EOVERFLOW = 75,
	NBD_ENOTSUP = 95,
	NBD_ESHUTDOWN = 108,
};

/* C: followed by length bytes if type is WRITE. */
struct nbd_request_wire {
	be32_t magic;
	be16_t flags;
	be16_t type;
	be64_t cookie;
	be64_t offset;
	be32_t length;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_request_wire) == 28, "protocol page");
_Static_assert(offsetof(struct nbd_request_wire, offset) == 16, "protocol page");

struct nbd_simple_reply {
	be32_t magic;
	be32_t error;
	be64_t cookie;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_simple_reply) == 16, "protocol page");

/* S: followed by length bytes. */
struct nbd_chunk {
	be32_t magic;
	be16_t flags;
	be16_t type;
	be64_t cookie;
	be32_t length;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_chunk) == 20, "protocol page");

struct nbd_chunk_data {
	struct nbd_chunk chunk;
	be64_t offset;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_chunk_data) == 28, "protocol page");

struct nbd_chunk_error {
	struct nbd_chunk chunk;
	be32_t error;
	be16_t message_length;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_chunk_error) == 26, "protocol page");

struct nbd_chunk_status {
	struct nbd_chunk chunk;
	be32_t context_id;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_chunk_status) == 24, "protocol page");

struct nbd_status_extent {
	be32_t length;
	be32_t flags;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_status_extent) == 8, "protocol page");

struct nbd_request {
	uint16_t flags, type;
	uint32_t length;
	uint64_t cookie, offset;
};

/* What was advertised to a client and agreed with it: what its requests are judged by. */
struct nbd_terms {
	uint64_t size_bytes;
	uint32_t block_min_bytes;
	uint16_t transmission_flags;
	bool structured;
	bool contexts; /* at least one metadata context is selected */
};

/* False if the magic number is wrong: then nothing of the stream can be trusted any more. */
bool nbd_request_decode(const struct nbd_request_wire *wire, struct nbd_request *request);
/* NBD_OK, or the error to answer with and *reason (static text). Not for DISC. */
enum nbd_error nbd_request_check(const struct nbd_request *request, const struct nbd_terms *terms,
				 const char **reason);
/* The one place where a -errno becomes a number of the protocol. */
enum nbd_error nbd_error_from_errno(int error, bool fast_zero);
/* "READ"... or "?". */
const char *nbd_command_name(uint16_t type);
const char *nbd_option_name(uint32_t option);

/* Each writes one header and returns its length in bytes. */
size_t nbd_put_option_reply(void *to, uint32_t option, uint32_t type, uint32_t length);
size_t nbd_put_simple_reply(void *to, enum nbd_error error, uint64_t cookie);
size_t nbd_put_chunk(void *to, uint16_t flags, uint16_t type, uint64_t cookie, uint32_t length);
/* Followed by length bytes of data. */
size_t nbd_put_chunk_data(void *to, uint16_t flags, uint64_t cookie, uint64_t offset,
			  uint32_t length);
/* Followed by count struct nbd_status_extent. */
size_t nbd_put_chunk_status(void *to, uint16_t flags, uint64_t cookie, uint32_t context_id,
			    uint32_t count);
/* With the message's bytes, at most NBD_MESSAGE_MAX of them. */
size_t nbd_put_chunk_error(void *to, uint64_t cookie, enum nbd_error error, const char *message);
#define NBD_MESSAGE_MAX 96u

#endif
