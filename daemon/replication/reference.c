/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reference: which snapshot the store's map is relative to, and what that map says: whoever wrote the
 * newest snapshot tells the other, so that either can write the next one at the cost of what changed.
 *
 * Both follow the write order, so a map means the same on both at one point of it. The target says which
 * snapshot it knows. A source that knows a newer one TELLs it with its map as of that point of the stream.
 * One that knows an older one ASKs: it seals its marks there, and drops them for those of the answer. What is
 * marked later stays marked on both sides. Nothing depends on it: where the message is lost, or the store
 * has yet another one, the next snapshot is compared by hash.
 */
#include <assert.h>
#include <string.h>

#include "daemon/replication/replication_internal.h"

#define LOOK_NS 1000000000ull

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* What the map says, in as many runs as fit: those close together become one. */
static unsigned collect(const struct volume *volume,
			struct volume_run runs[FRAME_SNAPSHOT_RUNS_MAX])
{
	uint64_t offset = 0, gap = 0, start, length;
	unsigned count = 0;

	while (volume_dirty_next(volume, VOLUME_STORE, offset, &start, &length)) {
		struct volume_run *last = count ? &runs[count - 1] : NULL;

		if (last && start - (last->offset_bytes + last->length_bytes) <= gap) {
			last->length_bytes = start + length - last->offset_bytes;
		} else if (count < FRAME_SNAPSHOT_RUNS_MAX) {
			runs[count++] = (struct volume_run){start, length};
		} else {
			unsigned kept = 1;

			gap = gap ? 2 * gap : VOLUME_STORE_BLOCK_BYTES;
			for (unsigned i = 1; i < count; i++) {
				struct volume_run *to = &runs[kept - 1];
				uint64_t end = runs[i].offset_bytes + runs[i].length_bytes;

				if (runs[i].offset_bytes - (to->offset_bytes + to->length_bytes) <=
				    gap)
					to->length_bytes = end - to->offset_bytes;
				else
					runs[kept++] = runs[i];
			}
			count = kept;
			continue; /* the run at hand again */
		}
		offset = start + length;
	}
	return count;
}

/* False: no buffer now. with_map false: the name alone. */
static bool send_snapshot(struct replication *r, uint64_t id, bool with_map)
{
	struct frame frame = {.type = FRAME_SNAPSHOT, .id = id};
	struct reference *ref = &r->reference;
	struct volume_state state;
	unsigned count = with_map ? collect(r->volume, ref->runs) : 0;

	volume_get_state(r->volume, &state);
	ref->wire.snapshot = state.snapshot;
	ref->wire.sequence = to_be64(state.snapshot_sequence);
	for (unsigned i = 0; i < count; i++)
		ref->wire.runs[i] = (struct frame_range_wire){to_be64(ref->runs[i].offset_bytes),
							      to_be64(ref->runs[i].length_bytes)};
	return link_send_control(r->link, &frame, &ref->wire, frame_snapshot_bytes(count));
}

static void drop_cut(struct replication *r, bool consumed)
{
	if (r->reference.cut)
		volume_cut_finish(r->reference.cut, consumed);
	r->reference.cut = NULL;
}

/* The runs of a message; -1: not those of this volume. */
static int take_runs(struct replication *r, const struct frame *frame, const void *payload,
		     struct id128 *snapshot, uint64_t *sequence)
{
	const struct frame_snapshot_wire *wire = payload;
	unsigned count = frame_snapshot_runs(frame);

	memcpy(snapshot, &wire->snapshot, sizeof(*snapshot));
	*sequence = from_be64(wire->sequence);
	for (unsigned i = 0; i < count; i++) {
		struct frame_range_wire range;
		uint64_t end;

		memcpy(&range, (const char *)payload + frame_snapshot_bytes(i), sizeof(range));
		r->reference.runs[i] =
			(struct volume_run){from_be64(range.first), from_be64(range.second)};
		end = r->reference.runs[i].offset_bytes + r->reference.runs[i].length_bytes;
		if (end > volume_size_bytes(r->volume) ||
		    (end % VOLUME_STORE_BLOCK_BYTES && end != volume_size_bytes(r->volume)))
			return -1; /* this side is smaller yet */
	}
	return (int)count;
}

static void adopt(struct replication *r, const struct frame *frame, const void *payload)
{
	struct id128 snapshot;
	uint64_t sequence;
	int count = take_runs(r, frame, payload, &snapshot, &sequence);
	/* Its disk may have failed since it asked. */
	int error = count < 0 || id128_is_zero(&snapshot) || !volume_store_follows(r->volume);

	if (!error)
		error = volume_adopt_snapshot(r->volume, &snapshot, sequence, r->reference.runs,
					      (unsigned)count);
	drop_cut(r, !error);
}

/* ---- the target --------------------------------------------------------------------------------- */

bool reference_admit(struct replication *r)
{
	/* A source's words are as of this point of the stream: all before it is applied first. */
	return r->session != SESSION_SINK || sink_is_still(r->sink);
}

static void told(struct replication *r, const struct frame *frame, const void *payload)
{
	struct reference *ref = &r->reference;

	ref->said = false; /* what came of it is said again */
	if (!volume_store_follows(r->volume) ||
	    volume_cut_begin(r->volume, VOLUME_STORE, VOLUME_CUT_BITS_ONLY, NULL, NULL, &ref->cut))
		return;
	adopt(r, frame, payload);
}

static void asked(struct replication *r, const struct frame *frame)
{
	struct frame none = {.type = FRAME_SNAPSHOT, .id = frame->id};

	if (volume_store_follows(r->volume) && send_snapshot(r, frame->id, true))
		return;
	link_send(r->link, &none, NULL, 0);
	r->reference.said = false; /* said again when there is something to be asked for */
}

/* ---- the source ----------------------------------------------------------------------------------- */

static void hear(struct replication *r, const void *payload)
{
	struct reference *ref = &r->reference;
	struct frame_snapshot_wire wire;

	memcpy(&wire, payload, frame_snapshot_bytes(0));
	ref->peer = wire.snapshot;
	ref->peer_sequence = from_be64(wire.sequence);
	ref->heard = true;
}

static void answered(struct replication *r, const struct frame *frame, const void *payload)
{
	struct reference *ref = &r->reference;

	if (frame->id == 0) {
		hear(r, payload);
		return;
	}
	if (frame->id > ref->question) {
		replication_refuse(r, FRAME_ERROR_PROTOCOL, "SNAPSHOT that nobody asked for");
		return;
	}
	if (frame->id != ref->question || !ref->cut)
		return; /* given up meanwhile */
	/* What cannot be taken over now (this side is smaller yet, a disk failed) is asked for again. */
	if (frame->payload_length) {
		hear(r, payload);
		adopt(r, frame, payload);
	} else {
		drop_cut(r, false); /* the target says when there is something to be asked for */
	}
}

static void ask(struct replication *r)
{
	struct reference *ref = &r->reference;
	struct frame frame = {.type = FRAME_SNAPSHOT, .flags = FRAME_ASK, .id = ref->question + 1};

	if (volume_cut_begin(r->volume, VOLUME_STORE, VOLUME_CUT_BITS_ONLY, NULL, NULL, &ref->cut))
		return; /* a snapshot is being taken here: later */
	ref->question++;
	ref->heard = false;
	link_send(r->link, &frame, NULL, 0);
}

static void look_as_source(struct replication *r)
{
	struct reference *ref = &r->reference;
	struct volume_state state;

	volume_get_state(r->volume, &state);
	if (!ref->heard || ref->cut || id128_equal(&state.snapshot, &ref->peer))
		return;
	if (!id128_is_zero(&ref->peer) &&
	    (id128_is_zero(&state.snapshot) || ref->peer_sequence > state.snapshot_sequence)) {
		ask(r);
		return;
	}
	/* What becomes of it the target says. */
	if (send_snapshot(r, 0, true))
		ref->peer = state.snapshot;
}

/* ---- both ------------------------------------------------------------------------------------------- */

static void look_fire(struct env_timer *timer)
{
	struct replication *r = container_of(timer, struct replication, reference.timer);
	struct reference *ref = &r->reference;
	struct volume_state state;

	env_timer_start(r->env, timer, LOOK_NS);
	if (!r->link || r->drop_code || !volume_store_follows(r->volume) ||
	    !(r->peer.features & HELLO_SNAPSHOTS))
		return;
	if (r->session == SESSION_SOURCE) {
		look_as_source(r);
		return;
	}
	volume_get_state(r->volume, &state);
	if ((!ref->said || !id128_equal(&ref->said_snapshot, &state.snapshot)) &&
	    send_snapshot(r, 0, false)) {
		ref->said = true;
		ref->said_snapshot = state.snapshot;
	}
}

void reference_frame(struct replication *r, const struct frame *frame, const void *payload)
{
	bool source = r->session == SESSION_SOURCE;
	const char *invalid = frame->payload_length
				      ? frame_snapshot_invalid(payload, frame->payload_length)
				      : NULL;

	if (invalid) {
		replication_refuse(r, FRAME_ERROR_PROTOCOL, invalid);
		return;
	}
	if (source && !(frame->flags & FRAME_ASK) && (frame->id || frame->payload_length))
		answered(r, frame, payload);
	else if (!source && frame->flags & FRAME_ASK)
		asked(r, frame);
	else if (!source && !frame->id && frame->payload_length)
		told(r, frame, payload);
	else
		replication_refuse(r, FRAME_ERROR_PROTOCOL, "SNAPSHOT out of place");
}

void reference_state_changed(struct replication *r)
{
	struct reference *ref = &r->reference;

	drop_cut(r, false);
	ref->heard = ref->said = false;
	if (r->state == REPLICATION_STREAMING)
		env_timer_start(r->env, &ref->timer, LOOK_NS / 4);
	else
		env_timer_stop(r->env, &ref->timer);
}

/*
 * A snapshot takes the chunks that its cut seals and, from the one that the map is relative to, all others. So it
 * misses nothing as long as each chunk that differs from that one is marked; and of the marks those alone may go
 * that the other's map makes up for. Therefore:
 *   - marks are sealed for an exchange at one point of the stream and dropped for the map of that very point: by
 *     the source while its question is under way, by the target in one turn, with nothing half applied;
 *   - what is sealed so is not what a snapshot is taken of: there is one cut of the store's map.
 * That the map's snapshot stays the same while one is being taken: cut_check().
 */
void reference_check(const struct replication *r)
{
	const struct reference *ref = &r->reference;

	if (!ref->cut)
		return;
	assert(r->state == REPLICATION_STREAMING && r->session == SESSION_SOURCE);
	assert(ref->question > 0);
	assert(volume_cut_is_bits_only(r->volume, VOLUME_STORE, ref->cut));
}

void reference_init(struct replication *r)
{
	r->reference.timer.fire = look_fire;
}

void replication_yield_store(struct replication *r)
{
	/* The question is void; what the peer said before it holds, and is looked at again. */
	if (r->reference.cut)
		r->reference.heard = true;
	drop_cut(r, false);
}
