/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's transfer: which frames are out, which of them the target has on its disk, and where to
 * go on after a link was lost.
 *
 * A block that was sent is staged in the cut until it is overwritten. The frames that are not durable
 * at the target are remembered in the order in which they were sent; when it comes back with fewer of
 * them, the blocks of the others are to be sent again.
 */
#include <assert.h>
#include <string.h>

#include "daemon/mutate.h"
#include "daemon/replication/source_internal.h"

static uint64_t log_need(uint64_t bytes)
{
	return bytes + bytes / VOLUME_PEER_BLOCK_BYTES * SOURCE_HEAD_BYTES;
}

bool source_transfer_fits(const struct source *source, uint64_t more_bytes)
{
	uint64_t left = source->cut ? volume_cut_left_bytes(source->cut) : 0;

	return !source->room_bytes ||
	       source->log_bytes + log_need(left + more_bytes) <= source->room_bytes;
}

void source_transfer_new(struct source *source)
{
	env_random(source->env, &source->transfer, sizeof(source->transfer));
	source->cut_frames = source->cut_bytes = source->durable_frames = 0;
	source->log_bytes = source->room_bytes = source->cut_done_bytes = 0;
	source->ended = false;
}

int source_transfer_begin(struct source *source)
{
	int error = volume_cut_begin(source->volume, VOLUME_PEER, VOLUME_CUT_LIVE, NULL, NULL,
				     &source->cut);

	if (error) {
		source->cut = NULL;
		return error;
	}
	source->moving = true;
	source->begun_with = source->target;
	source->transfer_zero = source->in_place && source->target.zero_disk;
	source->cut_started_ns = env_now_ns(source->env);
	return 0;
}

void source_transfer_sent(struct source *source, uint64_t offset, uint64_t length, bool data)
{
	assert(source->cut_frames - source->durable_frames < SOURCE_SENT);
	source->sent[source->cut_frames % SOURCE_SENT] = (struct source_sent){offset, length, data};
	source->cut_frames++;
	source->cut_bytes += length;
	source->log_bytes += SOURCE_HEAD_BYTES + (data ? length : 0);
}

void source_transfer_park(struct source *source)
{
	if (!source->moving) {
		volume_cut_finish(source->cut, false);
		source->cut = NULL;
		return;
	}
	if (source->frozen)
		volume_cut_thaw(source->cut);
	source->frozen = false;
	source->parked = true;
	if (source->zero_length)
		volume_cut_unstage(source->cut, source->zero_offset, source->zero_length);
	source->zero_length = 0;
}

void source_transfer_end(struct source *source, bool consumed)
{
	if (!source->cut)
		return;
	volume_cut_finish(source->cut, consumed);
	source->cut = NULL;
	source->parked = source->frozen = source->ended = source->moving = false;
	source->zero_length = 0;
}

/* Its CUT_ACK was lost: the generation tells, unless the target had it before. */
bool source_transfer_was_applied(const struct source *source)
{
	return source->moving && source->ended && !source->begun_with.unsure &&
	       id128_equal(&source->target.generation, &source->cut_generation) &&
	       !id128_equal(&source->begun_with.generation, &source->cut_generation);
}

/* The frames from first on did not get there. */
static void take_back(struct source *source, uint64_t first)
{
	for (uint64_t f = first; f < source->cut_frames && !MUTATE(replication_trust_in_flight);
	     f++) {
		const struct source_sent *sent = &source->sent[f % SOURCE_SENT];
		volume_cut_unstage(source->cut, sent->offset, sent->length);
		source->cut_bytes -= sent->length;
		source->cut_done_bytes -= sent->length;
		source->log_bytes -= SOURCE_HEAD_BYTES + (sent->data ? sent->length : 0);
	}
	source->cut_frames = first;
}

static bool fits_transfer(const struct source *source, const struct id128 *transfer,
			  uint64_t received, uint64_t durable)
{
	return source->moving && id128_equal(transfer, &source->transfer) &&
	       received <= source->cut_frames && received >= source->durable_frames &&
	       durable >= source->durable_frames && durable <= received;
}

/* The target's own content, beside which the transfer is, is the same still. What it found equal by
 * comparison it may have lost with its power, so no restart may be between. */
static bool fits_target(const struct source *source)
{
	const struct source_target *now = &source->target, *then = &source->begun_with;

	if ((now->full && !then->full) || then->unsure)
		return false;
	if (then->full && !id128_equal(&now->instance, &then->instance))
		return false;
	return id128_equal(&now->generation, &then->generation);
}

/* Before MAP: what the target has of the transfer; it may be one that nobody knows any more. Later: how
 * much of it is durable there. */
void source_transfer_resume(struct source *source, const struct frame *frame, const void *payload)
{
	struct frame_transfer_wire wire;

	memcpy(&wire, payload, sizeof(wire));
	bool fits = fits_transfer(source, &wire.transfer, frame->offset, frame->length);
	if (source->phase != SOURCE_MAP) {
		if (!fits) {
			source_refuse(source, FRAME_ERROR_PROTOCOL, "RESUME of what was not sent");
			return;
		}
		if (frame->length > source->durable_frames)
			source->moved_ns = env_now_ns(source->env);
		source->durable_frames = frame->length;
		env_defer(source->env, &source->pump_task);
		return;
	}
	if (!fits || source->map_begun || !fits_target(source))
		return;
	take_back(source, frame->offset);
	source->durable_frames = frame->length;
	source->transfer_zero = source->transfer_zero && source->target.zero_disk;
	source->resuming = true;
	source->resumes++;
}
