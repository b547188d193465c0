/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sink's answers to READ. A READ is put to the volume in the order of the frames: the volume's
 * order of overlapping operations then sees to it that it gives what was written before it, and
 * nothing of what comes later.
 */
#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "daemon/replication/sink_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define QUEUE_BYTES (8u * 1024 * 1024) /* of answers that wait to be sent */

static void read_done(struct block_request *request, int error)
{
	struct sink_read *read = container_of(request, struct sink_read, request);
	struct sink *sink = read->sink;
	struct buf *buf = request->buf;
	struct frame frame = {
		.type = FRAME_READ_DATA,
		.id = read->id,
		.offset = request->offset_bytes,
		.length = request->length_bytes,
	};

	request->buf = NULL;
	read->busy = false;
	sink->reads_busy--;
	if (error)
		frame.flags = FRAME_UNREADABLE;
	else if (bytes_are_zero(buf->data, request->length_bytes))
		frame.flags = FRAME_HOLE;
	else
		frame.payload_length = (uint32_t)request->length_bytes;
	if (sink->link && sink->phase != SINK_OFF && frame.payload_length)
		link_send(sink->link, &frame, buf, 0);
	else if (sink->link && sink->phase != SINK_OFF)
		link_send(sink->link, &frame, NULL, 0);
	if (!frame.payload_length || !sink->link || sink->phase == SINK_OFF)
		buf_put(buf);
	sink_step_later(sink);
}

static struct sink_read *unused(struct sink *sink)
{
	for (unsigned i = 0; i < SINK_READS; i++)
		if (!sink->reads[i].busy)
			return &sink->reads[i];
	return NULL;
}

bool sink_read_admit(struct sink *sink)
{
	/* sink_sent() and what is done ask again. */
	return sink->log == SINK_LOG_NONE && unused(sink) &&
	       link_queue_bytes(sink->link) < QUEUE_BYTES;
}

static bool is_readable(const struct sink *sink)
{
	struct volume_state state;

	volume_get_state(sink->volume, &state);
	return state.disk == VOLUME_DISK_UPTODATE || state.disk == VOLUME_DISK_OUTDATED;
}

void sink_on_read(struct sink *sink, const struct frame *frame, const void *payload,
		  struct buf *buf)
{
	struct sink_read *read = unused(sink);

	assert(read);
	read->busy = true;
	read->sink = sink;
	read->id = frame->id;
	read->request = (struct block_request){
		.op = BLOCK_READ,
		.offset_bytes = frame->offset,
		.length_bytes = frame->length,
		.buf = buf_get(buf),
		.done = read_done,
	};
	sink->reads_busy++;
	if (is_readable(sink))
		volume_read(sink->volume, &read->request);
	else
		read_done(&read->request, -1);
}
