/* SPDX-License-Identifier: Apache-2.0 */
/* The source's catch-up: reads the sealed blocks, several at a time, and sends them. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/replication/source_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

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
	source->cut_frames++;
	source->cut_bytes += source->zero_length;
	source->zero_length = 0;
	link_send(source->link, &frame, NULL, 0);
}

static void send_zeroes(struct source *source, uint64_t offset, uint64_t length)
{
	if (source->zero_disk && source->in_place)
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
	source->cut_frames++;
	source->cut_bytes += to - from;
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
	if (error && source->link) {
		/* The connection ends only later: no CUT_END may get onto it before. */
		source->phase = SOURCE_DONE;
		source_refuse(source, FRAME_ERROR_IO, "cannot read the blocks to be sent");
	} else if (source->phase == SOURCE_CUT) {
		send_content(source, done->buf, done->offset_bytes, done->length_bytes);
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

static bool start_read(struct source *source)
{
	uint64_t start, length;
	struct source_read *read = unused_read(source);

	/* The stream behind the final cut shares the queue: half of it is left to the writers. */
	uint64_t window = source->tapped ? source->queue_max_bytes / 2 : SOURCE_WINDOW_BYTES;
	if (!read || link_queue_bytes(source->link) > window ||
	    link_queue_frames(source->link) >= SOURCE_RING + 2048)
		return false;
	if (!volume_cut_next(source->cut, source->scan_offset, BUF_SIZE_MAX, &start, &length)) {
		source->scanned = true;
		return false;
	}
	struct buf *buf = buf_alloc(source->pool, (uint32_t)length);
	if (!buf)
		return false; /* what is being sent gives some back */
	source->scan_offset = start + length;
	read->source = source;
	read->busy = true;
	read->read.offset_bytes = start;
	read->read.length_bytes = (uint32_t)length;
	read->read.buf = buf;
	read->read.done = read_done;
	source->reads_busy++;
	volume_cut_read(source->cut, &read->read);
	return true;
}

void source_cut_pump(struct source *source)
{
	if (source->phase != SOURCE_CUT)
		return;
	while (!source->scanned && start_read(source))
		;
	if (!source->scanned || source->reads_busy)
		return;
	flush_zeroes(source);
	struct frame end = {
		.type = FRAME_CUT_END,
		.id = source->round,
		.offset = source->cut_frames,
		.length = source->cut_bytes,
	};
	link_send(source->link, &end, NULL, 0);
	source->phase = SOURCE_ENDED;
}

void source_cut_reset(struct source *source)
{
	source->scan_offset = source->cut_frames = source->cut_bytes = 0;
	source->cut_done_bytes = source->zero_length = 0;
	source->scanned = false;
}
