/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A full sync, reduced: before the first round the source compares what it has marked with what the
 * target has, and drops the marks of what is equal.
 *
 * The marks stand sealed in a cut meanwhile. A block's mark may go when both sides had the same
 * content at one point after the cut: whatever is written here after the cut marks it once more, in
 * the active map. The target writes nothing until the first round. Until its CUT_ACK it may lose
 * content that is not durable yet, but then its generation is still the old one, and all is marked
 * again.
 */
#include <assert.h>

#include "daemon/mutate.h"
#include "daemon/replication/source_internal.h"

static bool next(void *owner, uint64_t offset, uint64_t *start, uint64_t *length)
{
	struct source *source = owner;

	return volume_cut_next(source->cut, offset, COMPARE_HOLE_MAX_BYTES, start, length);
}

static bool result(void *owner, const struct compare_range *range)
{
	struct source *source = owner;
	uint64_t block = COMPARE_FINE_BLOCK_BYTES, at = 0, first = 0, count;

	_Static_assert(COMPARE_FINE_BLOCK_BYTES == VOLUME_PEER_BLOCK_BYTES, "a mark is a block");
	if (MUTATE(replication_compare_all_equal)) {
		volume_cut_narrow(source->cut, range->offset_bytes, range->length_bytes);
		return true;
	}
	while (at * block < range->length_bytes) {
		uint64_t end = range->length_bytes / block;
		bool differs = compare_range_next(range, &first, &count);
		if (differs)
			end = first;
		if (end > at)
			volume_cut_narrow(source->cut, range->offset_bytes + at * block,
					  (end - at) * block);
		at = differs ? first + count : end;
		first = at;
	}
	return true;
}

static void finished(void *owner)
{
	struct source *source = owner;

	compare_get_status(source->compare, &source->compared);
	compare_stop(source->compare);
	volume_cut_finish(source->cut, false);
	source->cut = NULL;
	source_propose(source);
}

static void idle(void *owner)
{
	struct source *source = owner;

	env_defer(source->env, &source->pump_task);
}

/* It reads the whole disk: beside clients as fast as their latency allows. catch-up-rate is the link's. */
static bool may_read(void *owner)
{
	return source_pace_clients_allow(owner);
}

static void took(void *owner, uint64_t bytes)
{
	struct source *source = owner;

	pacer_take(&source->pacer, bytes);
}

static const struct compare_ops ops = {
	.next = next,
	.result = result,
	.finished = finished,
	.may_read = may_read,
	.took = took,
	.idle = idle,
};

void source_compare_begin(struct source *source)
{
	if (!volume_is_whole(source->volume)) { /* it has nothing to compare with */
		source_propose(source);
		return;
	}
	if (volume_cut_begin(source->volume, VOLUME_PEER, VOLUME_CUT_BITS_ONLY, NULL, NULL,
			     &source->cut)) {
		source->cut = NULL;
		source_refuse(source, FRAME_ERROR_IO, "cannot begin a cut");
		return;
	}
	source->compare_total_bytes = volume_cut_bytes(source->cut);
	source->phase = SOURCE_COMPARE;
	compare_start(source->compare, source->link, 0, false, 0, &ops, source);
}
