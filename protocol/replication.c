/* SPDX-License-Identifier: Apache-2.0 */
/* Replication frames: encoding and validation. See replication.h and replication.md. */
#include "protocol/replication.h"

#include <assert.h>
#include <string.h>

enum shape {
	RANGE = 1,        /* offset and length name volume content */
	CONTENT = 2,      /* payload is that content */
	STREAM = 4,       /* has a sequence number */
	PAIRS = 8,        /* payload is made of 16-byte pairs */
	NO_POSITION = 16, /* offset and length are zero */
	QUESTION = 32,    /* COMPARE or HASHES */
	READING = 64,     /* READ or READ_DATA: content, or a flag that stands for it */
};

static const struct {
	const char *name;
	uint32_t payload_min, payload_max;
	unsigned flags; /* allowed */
	unsigned shape;
} types[FRAME_TYPES] = {
	[FRAME_HELLO] = {"HELLO", sizeof(struct hello_wire), 4096, 0, NO_POSITION},
	[FRAME_ERROR] = {"ERROR", 8, sizeof(struct frame_error_wire), 0, NO_POSITION},
	[FRAME_PING] = {"PING", 0, 0, 0, NO_POSITION},
	[FRAME_PONG] = {"PONG", 0, 0, 0, NO_POSITION},
	[FRAME_START] = {"START", 0, 0, 0, NO_POSITION},
	[FRAME_MAP] = {"MAP", 0, 16 * FRAME_RANGES_MAX, FRAME_LAST, PAIRS | NO_POSITION},
	[FRAME_PROPOSE] = {"PROPOSE", 16, 16, 0, 0},
	[FRAME_READY] = {"READY", 0, 0, FRAME_IN_PLACE, 0},
	[FRAME_CUT_BEGIN] = {"CUT_BEGIN", 32, 32, FRAME_FINAL, 0},
	[FRAME_CUT_DATA] = {"CUT_DATA", 512, FRAME_PAYLOAD_MAX, 0, RANGE | CONTENT},
	[FRAME_CUT_ZERO] = {"CUT_ZERO", 0, 0, FRAME_PUNCH, RANGE},
	[FRAME_CUT_END] = {"CUT_END", 0, 0, 0, 0},
	[FRAME_CUT_ACK] = {"CUT_ACK", 0, 0, 0, NO_POSITION},
	[FRAME_WRITE] = {"WRITE", 512, FRAME_PAYLOAD_MAX, FRAME_FUA, RANGE | CONTENT | STREAM},
	[FRAME_ZERO] = {"ZERO", 0, 0, FRAME_FUA | FRAME_PUNCH, RANGE | STREAM},
	[FRAME_FLUSH] = {"FLUSH", 0, 0, FRAME_POINT, STREAM | NO_POSITION},
	[FRAME_SYNCED] = {"SYNCED", 32, 32, 0, NO_POSITION},
	[FRAME_ACK] = {"ACK", 0, 16 * FRAME_RANGES_MAX, 0, PAIRS | NO_POSITION},
	[FRAME_COMPARE] = {"COMPARE", 0, 0, FRAME_FINE | FRAME_HOLE, RANGE | QUESTION},
	[FRAME_HASHES] = {"HASHES", 0, 4096,
			  FRAME_FINE | FRAME_HOLE | FRAME_LATER | FRAME_UNREADABLE,
			  RANGE | QUESTION},
	[FRAME_READ] = {"READ", 0, 0, 0, RANGE | READING},
	[FRAME_READ_DATA] = {"READ_DATA", 0, FRAME_PAYLOAD_MAX, FRAME_HOLE | FRAME_UNREADABLE,
			     RANGE | READING},
	[FRAME_RESIZE] = {"RESIZE", 0, FRAME_ERROR_TEXT_MAX, 0, 0},
	[FRAME_STATE] = {"STATE", sizeof(struct frame_state_wire), sizeof(struct frame_state_wire),
			 0, NO_POSITION},
	[FRAME_SNAPSHOT] = {"SNAPSHOT", 0, sizeof(struct frame_snapshot_wire), FRAME_ASK,
			    PAIRS | NO_POSITION},
	[FRAME_RESUME] = {"RESUME", 16, 16, 0, 0},
	[FRAME_CHANGES] = {"CHANGES", 0, 16 * FRAME_RANGES_MAX, 0, PAIRS},
};
_Static_assert(COMPARE_MAX_BYTES / COMPARE_FINE_BLOCK_BYTES * COMPARE_HASH_BYTES == 4096,
	       "the hashes of one question fit");
_Static_assert(16 * FRAME_RANGES_MAX <= 8192, "a range payload fits the smallest buffer");

const char *frame_name(enum frame_type type)
{
	return type < FRAME_TYPES && types[type].name ? types[type].name : "?";
}

bool frame_is_content(enum frame_type type)
{
	return types[type].shape & CONTENT || type == FRAME_READ_DATA;
}

bool frame_is_stream(enum frame_type type)
{
	return types[type].shape & STREAM;
}

void frame_encode(const struct frame *frame, struct frame_wire *wire)
{
	*wire = (struct frame_wire){
		.magic = to_be32(FRAME_MAGIC),
		.type = to_be16((uint16_t)frame->type),
		.flags = to_be16((uint16_t)frame->flags),
		.id = to_be64(frame->id),
		.lsn = to_be64(frame->lsn),
		.offset = to_be64(frame->offset),
		.length = to_be64(frame->length),
		.payload_length = to_be32(frame->payload_length),
		.payload_crc = to_be32(frame->payload_crc),
	};
	wire->header_crc = to_be32(crc32c(0, wire, offsetof(struct frame_wire, header_crc)));
}

static const char *range_shape_invalid(const struct frame *frame)
{
	if (frame->length == 0)
		return "empty range";
	if (frame->offset % FRAME_ALIGN_BYTES || frame->length % FRAME_ALIGN_BYTES)
		return "range not aligned";
	if (frame->offset + frame->length < frame->offset)
		return "range wraps around";
	return NULL;
}

/* HASHES have one form of answer only: hashes, or the flag that stands for them. */
static const char *question_invalid(const struct frame *frame)
{
	unsigned forms = frame->flags & (FRAME_HOLE | FRAME_LATER | FRAME_UNREADABLE);
	uint32_t block = compare_block_bytes(frame->flags);

	if (frame->id == 0)
		return "question zero";
	if (frame->offset % COMPARE_FINE_BLOCK_BYTES || frame->length % COMPARE_FINE_BLOCK_BYTES)
		return "range not of whole blocks";
	if (forms & (forms - 1))
		return "flags exclude each other";
	if (frame->length > (forms & FRAME_HOLE ? COMPARE_HOLE_MAX_BYTES : COMPARE_MAX_BYTES))
		return "range too long";
	if (frame->type == FRAME_HASHES &&
	    frame->payload_length !=
		    (forms ? 0 : (frame->length + block - 1) / block * COMPARE_HASH_BYTES))
		return "number of hashes and length differ";
	return NULL;
}

static const char *reading_invalid(const struct frame *frame)
{
	unsigned forms = frame->flags & (FRAME_HOLE | FRAME_UNREADABLE);

	if (frame->id == 0)
		return "question zero";
	if (frame->length > FRAME_PAYLOAD_MAX)
		return "range too long";
	if (forms == (FRAME_HOLE | FRAME_UNREADABLE))
		return "flags exclude each other";
	if (frame->type == FRAME_READ_DATA && frame->payload_length != (forms ? 0 : frame->length))
		return "payload and length differ";
	return NULL;
}

static const char *shape_invalid(const struct frame *frame)
{
	unsigned shape = types[frame->type].shape;

	if (frame->flags & ~types[frame->type].flags)
		return "unknown flag";
	if (frame->payload_length < types[frame->type].payload_min)
		return "payload too short";
	if (frame->payload_length > types[frame->type].payload_max)
		return "payload too long";
	if (shape & PAIRS && frame->payload_length % 16)
		return "payload of broken pairs";
	if (shape & CONTENT && frame->payload_length != frame->length)
		return "payload and length differ";
	if (shape & NO_POSITION && (frame->offset || frame->length))
		return "offset or length where none belongs";
	if (frame->type == FRAME_RESIZE &&
	    (frame->offset || !frame->length || frame->length % FRAME_SIZE_ALIGN_BYTES ||
	     frame->length > INT64_MAX))
		return "no size of a volume";
	if (shape & STREAM && frame->id == 0)
		return "sequence zero";
	if (frame->type == FRAME_SNAPSHOT &&
	    (frame->payload_length == 16 || (frame->flags & FRAME_ASK && frame->payload_length)))
		return "payload of another length";
	if (frame->payload_length == 0 && frame->payload_crc)
		return "checksum of no payload";
	const char *invalid = shape & RANGE ? range_shape_invalid(frame) : NULL;
	if (!invalid && shape & READING)
		invalid = reading_invalid(frame);
	return !invalid && shape & QUESTION ? question_invalid(frame) : invalid;
}

const char *frame_decode(const struct frame_wire *wire, struct frame *frame)
{
	if (from_be32(wire->magic) != FRAME_MAGIC)
		return "wrong magic";
	if (from_be32(wire->header_crc) != crc32c(0, wire, offsetof(struct frame_wire, header_crc)))
		return "header checksum";
	if (!bytes_are_zero(wire->reserved, sizeof(wire->reserved)))
		return "reserved bytes not zero";
	unsigned type = from_be16(wire->type);
	if (type >= FRAME_TYPES || !types[type].name)
		return "unknown type";
	*frame = (struct frame){
		.type = (enum frame_type)type,
		.flags = from_be16(wire->flags),
		.id = from_be64(wire->id),
		.lsn = from_be64(wire->lsn),
		.offset = from_be64(wire->offset),
		.length = from_be64(wire->length),
		.payload_length = from_be32(wire->payload_length),
		.payload_crc = from_be32(wire->payload_crc),
	};
	return shape_invalid(frame);
}

const char *frame_range_invalid(const struct frame *frame, uint64_t volume_size_bytes)
{
	if (!(types[frame->type].shape & RANGE))
		return NULL;
	if (frame->offset > volume_size_bytes || frame->length > volume_size_bytes - frame->offset)
		return "beyond the end of the volume";
	return NULL;
}

const char *frame_snapshot_invalid(const void *payload, size_t length)
{
	struct frame_snapshot_wire wire;
	uint64_t end = 0;

	assert(length >= frame_snapshot_bytes(0) && length <= sizeof(wire));
	memcpy(&wire, payload, length);
	if (!bytes_are_zero(wire.reserved, sizeof(wire.reserved)))
		return "SNAPSHOT: reserved bytes not zero";
	for (size_t i = 0; i < (length - frame_snapshot_bytes(0)) / 16; i++) {
		uint64_t offset = from_be64(wire.runs[i].first);
		uint64_t run = from_be64(wire.runs[i].second);

		if (!run || offset + run < offset || offset < end ||
		    offset % FRAME_SNAPSHOT_CHUNK_BYTES)
			return "SNAPSHOT: bad run";
		end = offset + run;
	}
	return NULL;
}

void hello_encode(const struct hello *hello, struct hello_wire *wire)
{
	*wire = (struct hello_wire){
		.version = to_be32(hello->version),
		.features = to_be32(hello->features),
		.uuid = hello->uuid,
		.instance = hello->instance,
		.attempt = to_be64(hello->attempt),
		.size_bytes = to_be64(hello->size_bytes),
		.dirty_bytes = to_be64(hello->dirty_bytes),
		.role = (uint8_t)hello->role,
		.disk = (uint8_t)hello->disk,
		.protocol = (uint8_t)hello->protocol,
		.flags = (uint8_t)hello->flags,
		.after_sb_0pri = (uint8_t)hello->after_sb_0pri,
		.after_sb_1pri = (uint8_t)hello->after_sb_1pri,
		.current = hello->current,
		.base = hello->base,
	};
	memcpy(wire->node, hello->node, strnlen(hello->node, HELLO_NAME_BYTES - 1));
	memcpy(wire->volume, hello->volume, strnlen(hello->volume, HELLO_NAME_BYTES - 1));
	memcpy(wire->history, hello->history, sizeof(wire->history));
}

/* A name goes into log lines and file look-ups: printable, no blank, no slash; zeroes behind it. */
static bool name_valid(const char name[HELLO_NAME_BYTES])
{
	size_t length = strnlen(name, HELLO_NAME_BYTES);

	if (length == 0 || length == HELLO_NAME_BYTES)
		return false;
	for (size_t i = 0; i < length; i++)
		if (name[i] <= ' ' || name[i] > '~' || name[i] == '/')
			return false;
	return bytes_are_zero(name + length, HELLO_NAME_BYTES - length);
}

const char *hello_decode(const void *payload, size_t length, struct hello *hello)
{
	struct hello_wire wire;

	if (length < sizeof(wire))
		return "HELLO too short";
	memcpy(&wire, payload, sizeof(wire));
	if (!name_valid(wire.node))
		return "HELLO: bad node name";
	if (!name_valid(wire.volume))
		return "HELLO: bad volume name";
	if (wire.role > 1 || wire.disk > 4 || wire.protocol > 2)
		return "HELLO: unknown role, disk state or protocol";
	if (wire.after_sb_0pri >= AFTER_SB_0PRIS || wire.after_sb_1pri >= AFTER_SB_1PRIS)
		return "HELLO: unknown policy for a split brain";
	*hello = (struct hello){
		.version = from_be32(wire.version),
		.features = from_be32(wire.features),
		.uuid = wire.uuid,
		.instance = wire.instance,
		.attempt = from_be64(wire.attempt),
		.size_bytes = from_be64(wire.size_bytes),
		.dirty_bytes = from_be64(wire.dirty_bytes),
		.role = wire.role,
		.disk = wire.disk,
		.protocol = wire.protocol,
		.flags = wire.flags & HELLO_FLAGS_KNOWN,
		.after_sb_0pri = wire.after_sb_0pri,
		.after_sb_1pri = wire.after_sb_1pri,
		.current = wire.current,
		.base = wire.base,
	};
	memcpy(hello->node, wire.node, sizeof(wire.node));
	memcpy(hello->volume, wire.volume, sizeof(wire.volume));
	memcpy(hello->history, wire.history, sizeof(wire.history));
	return NULL;
}

void frame_state_encode(const struct frame_state *state, struct frame_state_wire *wire)
{
	*wire = (struct frame_state_wire){
		.lsn = to_be64(state->lsn),
		.streamed_bytes = to_be64(state->streamed_bytes),
		.lag_ns = to_be64(state->lag_ns),
		.dirty_bytes = to_be64(state->dirty_bytes),
		.role = (uint8_t)state->role,
		.disk = (uint8_t)state->disk,
		.protocol = (uint8_t)state->protocol,
		.flags = (uint8_t)state->flags,
	};
}

const char *frame_state_decode(const void *payload, size_t length, struct frame_state *state)
{
	struct frame_state_wire wire;

	if (length != sizeof(wire))
		return "STATE of a wrong length";
	memcpy(&wire, payload, sizeof(wire));
	if (wire.role > 1 || wire.disk > 4 || wire.protocol > 2)
		return "STATE: unknown role, disk state or protocol";
	if (!bytes_are_zero(wire.reserved, sizeof(wire.reserved)))
		return "STATE: reserved bytes not zero";
	*state = (struct frame_state){
		.lsn = from_be64(wire.lsn),
		.streamed_bytes = from_be64(wire.streamed_bytes),
		.lag_ns = from_be64(wire.lag_ns),
		.dirty_bytes = from_be64(wire.dirty_bytes),
		.role = wire.role,
		.disk = wire.disk,
		.protocol = wire.protocol,
		.flags = wire.flags & (FRAME_STATE_STREAMING | FRAME_STATE_SUSPENDED),
	};
	return NULL;
}

void frame_error_encode(enum frame_error code, const char *text, struct frame_error_wire *wire)
{
	size_t length = strnlen(text, FRAME_ERROR_TEXT_MAX);

	*wire = (struct frame_error_wire){
		.code = to_be32((uint32_t)code),
		.text_length = to_be32((uint32_t)length),
	};
	memcpy(wire->text, text, length);
}

const char *frame_error_decode(const void *payload, size_t length, enum frame_error *code,
			       char text[FRAME_ERROR_TEXT_MAX + 1])
{
	struct frame_error_wire wire = {};

	if (length < 8 || length > sizeof(wire))
		return "ERROR of a wrong length";
	memcpy(&wire, payload, length);
	uint32_t number = from_be32(wire.code), text_length = from_be32(wire.text_length);
	if (number == 0 || number >= FRAME_ERRORS)
		number = FRAME_ERROR_PROTOCOL;
	if (text_length > FRAME_ERROR_TEXT_MAX || text_length > length - 8)
		return "ERROR: text longer than the frame";
	*code = (enum frame_error)number;
	for (uint32_t i = 0; i < text_length; i++)
		text[i] = wire.text[i] >= ' ' && wire.text[i] <= '~' ? wire.text[i] : '?';
	text[text_length] = 0;
	return NULL;
}

bool frame_error_is_final(enum frame_error code)
{
	switch (code) {
	case FRAME_ERROR_SAME_NAME:
	case FRAME_ERROR_SIZE:
	case FRAME_ERROR_BOTH_PRIMARY:
	case FRAME_ERROR_SPLIT_BRAIN:
	case FRAME_ERROR_BEHIND:
	case FRAME_ERROR_UNRELATED:
	case FRAME_ERROR_NO_SOURCE:
		return true;
	default:
		return false;
	}
}
