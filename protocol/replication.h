/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replication frames: what two nodes say to each other about one volume. Layout, encoding and
 * validation only; no I/O, no allocation. Specification: replication.md.
 */
#ifndef OFFSITE_PROTOCOL_REPLICATION_H
#define OFFSITE_PROTOCOL_REPLICATION_H

#include "protocol/wire.h"

#define FRAME_MAGIC            0x4f465250u /* "OFRP" */
#define FRAME_VERSION          2u
#define FRAME_PAYLOAD_MAX      (1024u * 1024u)
#define FRAME_ALIGN_BYTES      512u  /* every offset and length of volume content */
#define FRAME_SIZE_ALIGN_BYTES 4096u /* the size of a volume */

enum frame_type {
	FRAME_HELLO = 1, /* who I am and what I have; first frame in each direction */
	FRAME_ERROR,     /* why I am about to close */
	FRAME_PING,      /* id: the sender's */
	FRAME_PONG,      /* id: the ping's */
	FRAME_START,     /* id: the decision this side came to */
	FRAME_MAP,       /* target: runs it changed itself and the source has to send */
	FRAME_PROPOSE,   /* source: id round; length bytes to come; payload: the transfer */
	FRAME_READY,     /* target: id round; length staging limit; how it will take the cut */
	FRAME_CUT_BEGIN, /* source: id round; lsn of the cut; length bytes to come */
	FRAME_CUT_DATA,  /* content of [offset, offset+length): as it is, or as of the cut */
	FRAME_CUT_ZERO,  /* [offset, offset+length) is zero: likewise */
	FRAME_CUT_END, /* id round; offset: number of CUT_DATA and CUT_ZERO; length: their bytes */
	FRAME_CUT_ACK, /* target: id round; the cut is applied and durable */
	FRAME_WRITE,   /* the stream: id sequence, lsn */
	FRAME_ZERO,
	FRAME_FLUSH,
	FRAME_SYNCED, /* source: from here on the target has this generation; target: it has */
	FRAME_ACK,    /* target: id received up to; payload: ranges of sequences carried out */
	FRAME_COMPARE = 19, /* source: id; what are the hashes of [offset, offset+length) here? */
	FRAME_HASHES,      /* target: id; of [offset, offset+length), which is a front part of it */
	FRAME_RESUME = 23, /* target: offset: CUT_DATA and CUT_ZERO it has of the transfer; length:
			     * how many of them are durable */
	FRAME_READ = 24,   /* source: id; what is the content of [offset, offset+length) here? */
	FRAME_READ_DATA,   /* target: id; of the same range */
	FRAME_RESIZE = 26, /* source: make it length bytes big; target: it is length bytes big */
	FRAME_STATE = 27,  /* how far I am; not part of the order of other frames */
	FRAME_CHANGES,  /* split brain: id extents, length bytes changed here; the first of them */
	FRAME_SNAPSHOT, /* which snapshot the store's map is relative to, and the map */
	FRAME_TYPES,
};

enum frame_flags {
	FRAME_FUA = 1,          /* WRITE, ZERO: durable before it is acknowledged */
	FRAME_PUNCH = 2,        /* ZERO, CUT_ZERO: deallocate */
	FRAME_POINT = 4,        /* FLUSH: the source's own */
	FRAME_LAST = 8,         /* MAP: no more */
	FRAME_FINAL = 16,       /* CUT_BEGIN: the stream begins right behind this frame */
	FRAME_IN_PLACE = 32,    /* READY: onto the volume, which is inconsistent until CUT_ACK */
	FRAME_FINE = 64,        /* COMPARE, HASHES: blocks of 4 KiB, not of 64 KiB */
	FRAME_HOLE = 128,       /* COMPARE: it reads as zeroes here; HASHES: here too; READ_DATA */
	FRAME_LATER = 256,      /* HASHES: cannot tell now, ask again */
	FRAME_UNREADABLE = 512, /* HASHES, READ_DATA: the disk fails there */
	FRAME_ASK = 1024,       /* SNAPSHOT: what is yours? */
};

/* The header: the same for all frames. */
struct frame_wire {
	be32_t magic;
	be16_t type;
	be16_t flags;
	be64_t id;
	be64_t lsn;
	be64_t offset;
	be64_t length;
	be32_t payload_length;
	be32_t payload_crc; /* CRC32C of the payload; 0 without one */
	uint8_t reserved[12];
	be32_t header_crc; /* CRC32C of the 60 bytes before */
};
_Static_assert(sizeof(struct frame_wire) == 64, "layout");
_Static_assert(offsetof(struct frame_wire, id) == 8, "layout");
_Static_assert(offsetof(struct frame_wire, payload_length) == 40, "layout");
_Static_assert(offsetof(struct frame_wire, header_crc) == 60, "layout");

struct frame {
	enum frame_type type;
	unsigned flags;
	uint64_t id, lsn, offset, length;
	uint32_t payload_length, payload_crc;
};

const char *frame_name(enum frame_type type); /* "HELLO"; "?" for no type */
/* Whether the payload is volume content, which goes into an aligned buffer. */
bool frame_is_content(enum frame_type type);
/* Whether the frame is an event of the stream, with a sequence number in id. */
bool frame_is_stream(enum frame_type type);

void frame_encode(const struct frame *frame, struct frame_wire *wire);
/* Checks a header of unknown origin and takes it apart. NULL, or why it is no valid header. */
const char *frame_decode(const struct frame_wire *wire, struct frame *frame);
/* NULL, or why frame does not fit a volume of this size. */
const char *frame_range_invalid(const struct frame *frame, uint64_t volume_size_bytes);

/* ---- payloads ------------------------------------------------------------------------------- */

#define HELLO_NAME_BYTES 64 /* with the terminating NUL */
#define HELLO_HISTORY    8

enum hello_flags {
	HELLO_WANTS = 1,     /* my content is lost or given up: send me yours */
	HELLO_ZERO_DISK = 2, /* my whole disk reads as zeroes */
	HELLO_VACANT = 4,    /* primary that nobody has open */
	HELLO_STARTING = 8,  /* ... that has just started and served nobody yet */
	HELLO_LEANS = 16,   /* primary whose disk failed or is not filled yet: you have all of it */
	HELLO_DRY_RUN = 32, /* only to know what would be decided */
};
#define HELLO_FLAGS_KNOWN 63u

/* What ends a split brain without an operator, by DRBD's names: with no primary, with one. */
enum hello_after_sb_0pri {
	AFTER_SB_0PRI_DISCONNECT,
	AFTER_SB_0PRI_DISCARD_ZERO_CHANGES,  /* who changed nothing gives up, if the other did */
	AFTER_SB_0PRI_DISCARD_LEAST_CHANGES, /* who changed less */
	AFTER_SB_0PRIS,
};
enum hello_after_sb_1pri {
	AFTER_SB_1PRI_DISCONNECT,
	AFTER_SB_1PRI_CONSENSUS,         /* as without a primary, if that is the secondary's loss */
	AFTER_SB_1PRI_DISCARD_SECONDARY, /* the secondary gives up */
	AFTER_SB_1PRIS,
};

/* Features the sender can use; those unknown to the receiver are ignored. */
enum hello_features {
	HELLO_SNAPSHOTS = 1, /* SNAPSHOT */
};
#define HELLO_FEATURES HELLO_SNAPSHOTS

struct hello_wire {
	be32_t version;
	be32_t features;
	char node[HELLO_NAME_BYTES];
	char volume[HELLO_NAME_BYTES];
	struct id128 uuid;
	struct id128 instance; /* random, new at each start of the node */
	be64_t attempt;        /* counts this instance's HELLOs */
	be64_t size_bytes;
	be64_t dirty_bytes;
	uint8_t role;     /* 0 secondary, 1 primary */
	uint8_t disk;     /* 0 uptodate, 1 outdated, 2 inconsistent, 3 failed, 4 diskless */
	uint8_t protocol; /* 0 A, 1 B, 2 C */
	uint8_t flags;
	uint8_t after_sb_0pri; /* enum hello_after_sb_0pri */
	uint8_t after_sb_1pri;
	uint8_t reserved[2];
	struct id128 current;
	struct id128 base;
	struct id128 history[HELLO_HISTORY];
};
_Static_assert(sizeof(struct hello_wire) == 8 + 128 + 32 + 24 + 8 + 160, "layout");

struct hello {
	uint32_t version, features;
	char node[HELLO_NAME_BYTES], volume[HELLO_NAME_BYTES];
	struct id128 uuid, instance;
	uint64_t attempt, size_bytes, dirty_bytes;
	unsigned role, disk, protocol, flags;
	unsigned after_sb_0pri, after_sb_1pri;
	struct id128 current, base, history[HELLO_HISTORY];
};
void hello_encode(const struct hello *hello, struct hello_wire *wire);
/* NULL, or why it is no valid HELLO. The version is left for the caller to judge. */
const char *hello_decode(const void *payload, size_t length, struct hello *hello);

/* ERROR: a code, and text for people. */
enum frame_error {
	FRAME_ERROR_PROTOCOL = 1, /* you broke the protocol */
	FRAME_ERROR_VERSION,
	FRAME_ERROR_NO_VOLUME,
	FRAME_ERROR_STANDALONE, /* the operator took this side off */
	FRAME_ERROR_BUSY,       /* try again in a moment */
	FRAME_ERROR_COLLISION,  /* another connection between us is the one to keep */
	FRAME_ERROR_SAME_NAME,
	FRAME_ERROR_SIZE,
	FRAME_ERROR_BOTH_PRIMARY,
	FRAME_ERROR_SPLIT_BRAIN,
	FRAME_ERROR_BEHIND, /* the primary is older than the secondary */
	FRAME_ERROR_UNRELATED,
	FRAME_ERROR_NO_SOURCE, /* content is wanted, but the other side has none */
	FRAME_ERROR_STAGING,   /* no room to stage */
	FRAME_ERROR_IO,
	FRAME_ERROR_CLOSING, /* going away or negotiating anew: no fault */
	FRAME_ERRORS,
};
#define FRAME_ERROR_TEXT_MAX 240
struct frame_error_wire {
	be32_t code;
	be32_t text_length;
	char text[FRAME_ERROR_TEXT_MAX];
};
_Static_assert(sizeof(struct frame_error_wire) == 248, "layout");
void frame_error_encode(enum frame_error code, const char *text, struct frame_error_wire *wire);
/* text gets printable ASCII only. NULL, or why it is invalid. */
const char *frame_error_decode(const void *payload, size_t length, enum frame_error *code,
			       char text[FRAME_ERROR_TEXT_MAX + 1]);
/* Whether trying again without an operator's action is pointless. */
bool frame_error_is_final(enum frame_error code);

/* STATE: what one side tells the other about itself now and then. */
enum frame_state_flags {
	FRAME_STATE_STREAMING =
		1, /* source: its clients wait as the protocol says, and what they saw the
				    * end of before they did is durable at the target */
	FRAME_STATE_SUSPENDED = 2, /* its clients wait for the other side to follow */
};
struct frame_state_wire {
	be64_t lsn;            /* source: last issued; target: last received */
	be64_t streamed_bytes; /* source: of WRITE and ZERO issued on this connection */
	be64_t lag_ns;         /* source: age of the oldest of them not carried out; 0: none */
	be64_t dirty_bytes;    /* source: marked for the target */
	uint8_t role, disk, protocol, flags; /* as in HELLO; flags: enum frame_state_flags */
	uint8_t reserved[12];
};
_Static_assert(sizeof(struct frame_state_wire) == 48, "layout");
struct frame_state {
	uint64_t lsn, streamed_bytes, lag_ns, dirty_bytes;
	unsigned role, disk, protocol, flags;
};
void frame_state_encode(const struct frame_state *state, struct frame_state_wire *wire);
/* NULL, or why it is invalid. Unknown flags are ignored. */
const char *frame_state_decode(const void *payload, size_t length, struct frame_state *state);

/* MAP: offset and length of runs in bytes. ACK: first and last sequence. */
struct frame_range_wire {
	be64_t first;
	be64_t second;
};
#define FRAME_RANGES_MAX 500u /* in one frame */

/* SNAPSHOT. Runs: offset and length, ascending, of whole chunks but for the volume's end. */
#define FRAME_SNAPSHOT_RUNS_MAX    498u
#define FRAME_SNAPSHOT_CHUNK_BYTES 65536u
struct frame_snapshot_wire {
	struct id128 snapshot; /* zero: none */
	be64_t sequence;       /* the highest used in the store, as far as the sender knows */
	uint8_t reserved[8];
	struct frame_range_wire runs[FRAME_SNAPSHOT_RUNS_MAX];
};
_Static_assert(sizeof(struct frame_snapshot_wire) == 16 * FRAME_RANGES_MAX, "layout");
static inline uint32_t frame_snapshot_bytes(unsigned runs)
{
	return 32 + 16 * runs;
}
static inline unsigned frame_snapshot_runs(const struct frame *frame)
{
	return frame->payload_length ? (frame->payload_length - 32) / 16 : 0;
}
/* NULL, or why a payload that is not empty is invalid. */
const char *frame_snapshot_invalid(const void *payload, size_t length);

/* HASHES: the first 16 bytes of each block's SHA-256, or 16 zero bytes for a block of zeroes. */
#define COMPARE_BLOCK_BYTES      (64u * 1024)
#define COMPARE_FINE_BLOCK_BYTES 4096u
#define COMPARE_MAX_BYTES        (1024u * 1024)
#define COMPARE_HOLE_MAX_BYTES   (64u * 1024 * 1024)
#define COMPARE_HASH_BYTES       16u
#define COMPARES_MAX             16u /* questions without an answer */
static inline uint32_t compare_block_bytes(unsigned flags)
{
	return flags & FRAME_FINE ? COMPARE_FINE_BLOCK_BYTES : COMPARE_BLOCK_BYTES;
}

#define READS_MAX 16u /* READs without an answer */
/* PROPOSE and RESUME: a transfer is one use of the target's log; its rounds may be taken up again. */
struct frame_transfer_wire {
	struct id128 transfer; /* random, the source's; not zero */
};

/* CUT_BEGIN and SYNCED: the generation of the source's content there. */
struct frame_generation_wire {
	struct id128 current;
	struct id128 uuid;
};

#endif
