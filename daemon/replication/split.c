/* SPDX-License-Identifier: Apache-2.0 */
/*
 * split: two histories met. Both sides tell each other what they changed (CHANGES), remember it durably
 * with the moment it was found, and go apart again: STANDALONE, each serving by its role. It ends with
 * the next connection on which something else is decided.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/replication/record.h"
#include "daemon/replication/replication_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define RECORD   "split-brain"
#define PROBE_NS 15000000000ull

/* The word that ends it may be given on the other side, which perhaps cannot connect to this one. */
static void probe(struct env_timer *timer)
{
	struct replication *r = container_of(timer, struct replication, probe_timer);

	if (r->state != REPLICATION_STANDALONE || r->operator_off || !r->is_split ||
	    r->connect_busy)
		return;
	r->probing = true;
	replication_dial(r);
	if (!r->connect_busy) {
		r->probing = false;
		split_probe_later(r);
	}
}

static void give_up(struct env_task *task)
{
	struct replication *r = container_of(task, struct replication, give_up_task);

	if (r->is_split && !r->stopping && r->config.give_up)
		r->config.give_up(r->config.give_up_context);
}

void split_init(struct replication *r)
{
	r->probe_timer.fire = probe;
	r->give_up_task.call = give_up;
}

/* Both have told, and stand alone. */
void split_parted(struct replication *r)
{
	if (r->is_split && r->loser == DECIDE_SELF)
		env_defer(r->env, &r->give_up_task);
	r->loser = DECIDE_NOBODY;
	split_probe_later(r);
}

void split_probe_later(struct replication *r)
{
	if (r->is_split && r->peer_addr && !r->stopping)
		env_timer_start(r->env, &r->probe_timer, PROBE_NS);
}

static void keep(struct replication *r)
{
	struct split_wire wire;

	if (memcmp(&r->split, &r->split_kept, sizeof(r->split)) == 0)
		return;
	split_encode(&r->split, &wire);
	r->split_kept = r->split;
	int error = record_write(r->volume, RECORD, &wire, sizeof(wire));
	if (error)
		env_log(r->env, ENV_LOG_ERROR, "replication: volume %s: %s/" RECORD ": %s",
			volume_name(r->volume), volume_state_dir(r->volume), strerror(-error));
}

int split_load(struct replication *r, char *why, size_t why_size)
{
	struct split_wire wire;
	int error = record_read(r->volume, RECORD, &wire, sizeof(wire));

	if (error == -ENOENT)
		return 0;
	const char *reason = error ? strerror(-error)
				   : split_decode(&wire, volume_size_bytes(r->volume), &r->split);
	if (reason && error && error != -EBADMSG) {
		snprintf(why, why_size, "%s/" RECORD ": %s", volume_state_dir(r->volume), reason);
		return error;
	}
	if (reason) /* found anew with the next connection */
		env_log(r->env, ENV_LOG_WARNING, "replication: volume %s: %s/" RECORD ": %s",
			volume_name(r->volume), volume_state_dir(r->volume), reason);
	r->is_split = !reason;
	return 0;
}

void split_end(struct replication *r)
{
	if (!r->is_split)
		return;
	r->is_split = false;
	r->split = r->split_kept = (struct split_record){};
	int error = record_remove(r->volume, RECORD);
	if (error)
		env_log(r->env, ENV_LOG_ERROR, "replication: volume %s: %s/" RECORD ": %s",
			volume_name(r->volume), volume_state_dir(r->volume), strerror(-error));
	env_log(r->env, ENV_LOG_INFO, "replication: volume %s: the split brain is over",
		volume_name(r->volume));
	if (r->config.split_over)
		r->config.split_over(r->config.split_over_context);
}

static void tell(struct replication *r)
{
	struct frame_range_wire wire[SPLIT_EXTENTS_MAX];
	struct replication_changes mine;

	changes_collect(r->volume, &mine);
	for (unsigned i = 0; i < mine.listed; i++)
		wire[i] = (struct frame_range_wire){to_be64(mine.extents[i].offset_bytes),
						    to_be64(mine.extents[i].length_bytes)};
	struct frame frame = {.type = FRAME_CHANGES, .id = mine.count, .length = mine.bytes};
	link_send_control(r->link, &frame, wire, mine.listed * (uint32_t)sizeof(wire[0]));
}

void split_begin(struct replication *r)
{
	uint64_t since_ns = r->is_split ? r->split.since_ns : env_realtime_ns(r->env);

	r->split = (struct split_record){
		.since_ns = since_ns,
		.common = decide_common(&r->self, &r->peer),
		.self = r->self.current,
		.peer = r->peer.current,
		.peer_bytes = r->peer.dirty_bytes,
		.flags = (decide_relation(&r->self, &r->peer) == RELATION_DIVERGED_NEAR ? SPLIT_NEAR
											: 0) |
			 (r->peer.role ? SPLIT_PEER_PRIMARY : 0),
	};
	memcpy(r->split.node, r->peer.node, sizeof(r->split.node));
	r->is_split = true;
	r->loser = decide_split_brain(&r->self, &r->peer);
	r->session = SESSION_SPLIT;
	r->split_told = false;
	keep(r);
	tell(r);
}

void split_frame(struct replication *r, const struct frame *frame, const void *payload)
{
	const struct frame_range_wire *ranges = payload;
	struct split_record *split = &r->split;
	uint64_t end = 0, size = volume_size_bytes(r->volume);

	split->peer_bytes = frame->length;
	split->peer_extents = frame->id;
	split->listed = 0;
	for (unsigned i = 0; i < frame->payload_length / sizeof(*ranges); i++) {
		uint64_t offset = from_be64(ranges[i].first), length = from_be64(ranges[i].second);
		if (!length || offset < end || offset > size || length > size - offset ||
		    i >= frame->id) {
			split->listed = 0;
			replication_refuse(r, FRAME_ERROR_PROTOCOL, "CHANGES: bad range");
			return;
		}
		end = offset + length;
		if (i < SPLIT_EXTENTS_MAX)
			split->extents[split->listed++] = (struct split_extent){offset, length};
	}
	split->flags |= SPLIT_PEER_KNOWN;
	keep(r);
	r->split_told = true;
	split_sent(r);
}

/* Not before both have told: a refusal throws away what is queued. */
void split_sent(struct replication *r)
{
	if (r->session == SESSION_SPLIT && r->split_told && link_queue_bytes(r->link) == 0)
		replication_refuse(r, FRAME_ERROR_SPLIT_BRAIN, decide_text(VERDICT_SPLIT_BRAIN));
}

const struct split_record *replication_get_split(const struct replication *r)
{
	return r->is_split ? &r->split : NULL;
}
