/* SPDX-License-Identifier: Apache-2.0 */
/* The source's catch-up: reads the sealed blocks, several at a time, and sends them. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/replication/source_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define READ_MIN_BYTES   65536u
#define ZERO_STEP_BYTES  4096u
#define ZERO_SPLIT_BYTES 16384u /* zeroes inside data are worth a frame of their own from here */

static void flush_zeroes(struct source *source)
{
	struct frame frame = {
		.type = FRAME_CUT_ZERO,
		.flags = FRAME_PUNCH,
		.offset = source->zero_offset,
		.length = source->zero_length,
	};

	if (!source->zero_length)
		return;
	source_transfer_sent(source, frame.offset, frame.length, false);
	source->zero_length = 0;
	link_send(source->link, &frame, NULL, 0);
}

static void send_zeroes(struct source *source, uint64_t offset, uint64_t length)
{
	if (source->transfer_zero)
		return; /* it reads as zeroes already */
	if (source->zero_length && source->zero_offset + source->zero_length == offset) {
		source->zero_length += length;
		return;
	}
	flush_zeroes(source);
	source->zero_offset = offset;
	source->zero_length = length;
}

static void send_data(struct source *source, struct buf *buf, uint64_t base, uint32_t from,
		      uint32_t to)
{
	struct frame frame = {
		.type = FRAME_CUT_DATA,
		.offset = base + from,
		.length = to - from,
		.payload_length = to - from,
	};

	if (from == to)
		return;
	source->cut_sent_bytes += to - from;
	source_transfer_sent(source, frame.offset, frame.length, true);
	link_send(source->link, &frame, buf_get(buf), from);
}

/* Length of the zeroes at from, in whole steps. */
static uint32_t zeroes_at(const struct buf *buf, uint32_t from, uint32_t length)
{
	uint32_t at = from;

	while (at < length) {
		uint32_t step = length - at < ZERO_STEP_BYTES ? length - at : ZERO_STEP_BYTES;
		if (!bytes_are_zero(buf->data + at, step))
			break;
		at += step;
	}
	return at - from;
}

static void send_content(struct source *source, struct buf *buf, uint64_t offset, uint32_t length)
{
	uint32_t data = 0; /* data not yet sent begins here */

	for (uint32_t at = 0; at < length;) {
		uint32_t zeroes = zeroes_at(buf, at, length);
		if (zeroes >= ZERO_SPLIT_BYTES || (zeroes && zeroes == length)) {
			send_data(source, buf, offset, data, at);
			send_zeroes(source, offset + at, zeroes);
			data = at + zeroes;
		}
		at += zeroes ? zeroes : ZERO_STEP_BYTES;
	}
	send_data(source, buf, offset, data, length);
}

static void read_done(struct volume_cut_read *done, int error)
{
	struct source_read *read = container_of(done, struct source_read, read);
	struct source *source = read->source;

	read->busy = false;
	source->reads_busy--;
	source->reads_bytes -= done->length_bytes;
	if (error && (source->phase == SOURCE_CUT || source->phase == SOURCE_LIVE)) {
		source_bad_read(source, done->offset_bytes, done->length_bytes);
	} else if (error) {
		; /* nobody waits for it */
	} else if (source->phase == SOURCE_CUT || source->phase == SOURCE_LIVE) {
		uint64_t before = source->cut_sent_bytes;
		if (done->hole)
			send_zeroes(source, done->offset_bytes, done->length_bytes);
		else
			send_content(source, done->buf, done->offset_bytes, done->length_bytes);
		/* Zeroes cost the link nothing. */
		source_pace_zeroes(source, done->length_bytes - (source->cut_sent_bytes - before));
		volume_cut_stage(source->cut, done->offset_bytes, done->length_bytes);
		source->cut_done_bytes += done->length_bytes;
	}
	buf_put(done->buf);
	done->buf = NULL;
	env_defer(source->env, &source->pump_task);
}

static struct source_read *unused_read(struct source *source)
{
	for (unsigned i = 0; i < SOURCE_READS; i++)
		if (!source->reads[i].busy)
			return &source->reads[i];
	return NULL;
}

static bool has_room(const struct source *source)
{
	/* The stream behind the final cut shares the queue: half of it is left to the writers. */
	uint64_t window = source->tapped ? source->queue_max_bytes / 2 : SOURCE_WINDOW_BYTES;

	return source->reads_bytes + BUF_SIZE_MAX <= SOURCE_WINDOW_BYTES &&
	       link_queue_bytes(source->link) <= window &&
	       link_queue_frames(source->link) < SOURCE_RING + 2048 &&
	       source->cut_frames - source->durable_frames < SOURCE_SENT - SOURCE_SENT_MARGIN;
}

static bool being_read(const struct source *source, uint64_t offset)
{
	for (unsigned i = 0; i < SOURCE_READS; i++) {
		const struct source_read *read = &source->reads[i];
		if (read->busy && offset >= read->read.offset_bytes &&
		    offset - read->read.offset_bytes < read->read.length_bytes)
			return true;
	}
	return false;
}

bool source_cut_is_stuck(const struct source *source)
{
	uint64_t start, length;

	return source->phase == SOURCE_CUT && volume_cut_wanted(source->cut, &start, &length) &&
	       !being_read(source, start);
}

/* At a low rate in small pieces, so that they leave evenly. */
static uint32_t read_max(const struct source *source)
{
	uint64_t rate = source_pace_rate(source);
	uint64_t length = rate / 20 / ZERO_SPLIT_BYTES * ZERO_SPLIT_BYTES;

	if (!rate || length > BUF_SIZE_MAX)
		return BUF_SIZE_MAX;
	return length > READ_MIN_BYTES ? (uint32_t)length : READ_MIN_BYTES;
}

enum next { NEXT_RUN, NEXT_LATER, NEXT_NONE };

/* What a writer waits for comes first, whatever the rate. */
static enum next next_run(struct source *source, uint64_t *start, uint64_t *length)
{
	if (volume_cut_wanted(source->cut, start, length) && !being_read(source, *start))
		return NEXT_RUN;
	/* A pass ends early where the log has just room for what is left: it is the cut then. */
	if (source->phase == SOURCE_LIVE && !source_transfer_fits(source, SOURCE_WINDOW_BYTES))
		return NEXT_NONE;
	if (source->reads_busy >= source_pace_depth(source) || !source_pace_allows(source))
		return NEXT_LATER;
	uint64_t most = source->scan_offset < source->careful_end ? VOLUME_PEER_BLOCK_BYTES
								  : read_max(source);
	if (!volume_cut_next(source->cut, source->scan_offset, most, start, length))
		return NEXT_NONE;
	source->scan_offset = *start + *length;
	return NEXT_RUN;
}

static bool start_read(struct source *source)
{
	uint64_t start, length;
	struct source_read *read = unused_read(source);

	if (!read || !has_room(source))
		return false;
	uint64_t before = source->scan_offset;
	enum next next = next_run(source, &start, &length);
	if (next == NEXT_LATER)
		return false;
	if (next == NEXT_NONE) {
		source->scanned = true;
		return false;
	}
	struct buf *buf = buf_alloc(source->pool, (uint32_t)length);
	if (!buf) {
		source->scan_offset = before;
		return false; /* what is being sent gives some back */
	}
	source_pace_take(source, length);
	read->source = source;
	read->busy = true;
	read->read.offset_bytes = start;
	read->read.length_bytes = (uint32_t)length;
	read->read.buf = buf;
	read->read.skip_hole = true;
	read->read.done = read_done;
	source->reads_busy++;
	source->reads_bytes += length;
	volume_cut_read(source->cut, &read->read);
	return true;
}

/* A pass over the blocks as they are is done: another one, or the cut proper. */
static void pass_done(struct source *source)
{
	source->transfer_zero = false; /* what comes now may replace data */
	if (source_bad_pass(source))
		return;
	uint64_t left = volume_cut_left_bytes(source->cut);
	if (left <= source->final_max_bytes || ++source->passes >= SOURCE_PASSES_MAX ||
	    left > source->pass_bytes / 2 || !source_transfer_fits(source, left)) {
		source_freeze(source);
		return;
	}
	volume_cut_absorb(source->cut);
	source->pass_bytes = left;
	source_cut_rewind(source);
}

void source_cut_pump(struct source *source)
{
	if (source->phase != SOURCE_CUT && source->phase != SOURCE_LIVE)
		return;
	/* What is little from the beginning needs no passes. */
	if (source->phase == SOURCE_LIVE && !source->passes && !source->scan_offset &&
	    !source->reads_busy && !source->suspect &&
	    source->pass_bytes <= source->final_max_bytes) {
		source_freeze(source);
		return;
	}
	while (!source->scanned && start_read(source))
		;
	if (!source->scanned || source->reads_busy)
		return;
	flush_zeroes(source);
	if (source->phase == SOURCE_LIVE) {
		if (!env_timer_active(&source->bad_timer))
			pass_done(source);
		if (env_timer_active(&source->bad_timer))
			return;
		env_defer(source->env, &source->pump_task);
		return;
	}
	struct frame end = {
		.type = FRAME_CUT_END,
		.id = source->round,
		.offset = source->cut_frames,
		.length = source->cut_bytes,
	};
	link_send(source->link, &end, NULL, 0);
	source->phase = SOURCE_ENDED;
	source->ended = true;
}

void source_cut_rewind(struct source *source)
{
	source->scan_offset = 0;
	source->scanned = false;
}
