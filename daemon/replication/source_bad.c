/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks of the volume that its disk does not give. They are never left out in silence: everything else
 * is sent and stays staged at the target, the round does not end, status names them, and they are tried
 * again with growing pauses. A write of a client to such a block makes it readable, and the round ends.
 */
#include <stdio.h>
#include <string.h>

#include "daemon/replication/source_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

static void bad_timer_fire(struct env_timer *timer)
{
	struct source *source = container_of(timer, struct source, bad_timer);

	if (source->phase != SOURCE_LIVE || source->reads_busy)
		return;
	volume_cut_absorb(source->cut); /* what was written may be just these blocks */
	source->pass_bytes = volume_cut_left_bytes(source->cut);
	source_cut_rewind(source);
	env_defer(source->env, &source->pump_task);
}

void source_bad_init(struct source *source)
{
	source->bad_timer.fire = bad_timer_fire;
}

static void refuse(struct source *source, uint64_t offset, uint32_t length)
{
	char text[FRAME_ERROR_TEXT_MAX];

	/* The connection ends only later: no CUT_END may get onto it before. */
	source->phase = SOURCE_DONE;
	snprintf(text, sizeof(text), "the source cannot read %u bytes at %llu of its disk",
		 (unsigned)length, (unsigned long long)offset);
	source_refuse(source, FRAME_ERROR_IO, text);
}

void source_bad_read(struct source *source, uint64_t offset, uint32_t length)
{
	source->suspect = true;
	if (source->phase != SOURCE_LIVE) {
		refuse(source, offset, length);
		return;
	}
	if (length > VOLUME_PEER_BLOCK_BYTES) {
		if (source->careful_end < offset + length)
			source->careful_end = offset + length;
		if (source->scan_offset > offset)
			source->scan_offset = offset;
		source->scanned = false;
		return;
	}
	if (!source->bad_blocks++ || offset < source->unreadable_offset)
		source->unreadable_offset = offset;
	source->unreadable_bytes = (uint64_t)source->bad_blocks * VOLUME_PEER_BLOCK_BYTES;
	if (source->bad_blocks >= SOURCE_BAD_MAX)
		source->scanned = true;
}

bool source_bad_pass(struct source *source)
{
	source->careful_end = 0;
	if (!source->bad_blocks) {
		source->unreadable_bytes = 0;
		return false;
	}
	if (!source->bad_wait_ns)
		env_log(source->env, ENV_LOG_ERROR,
			"replication: volume %s: cannot read %llu bytes at %llu and after: "
			"catch-up "
			"waits; a write there mends it",
			volume_name(source->volume), (unsigned long long)source->unreadable_bytes,
			(unsigned long long)source->unreadable_offset);
	source->bad_wait_ns = source->bad_wait_ns ? source->bad_wait_ns * 2 : SOURCE_BAD_FIRST_NS;
	if (source->bad_wait_ns > SOURCE_BAD_MAX_NS)
		source->bad_wait_ns = SOURCE_BAD_MAX_NS;
	source->bad_blocks = 0;
	env_timer_start(source->env, &source->bad_timer, source->bad_wait_ns);
	return true;
}

void source_bad_reset(struct source *source)
{
	source->suspect = false;
	source->bad_wait_ns = source->unreadable_bytes = 0;
}
