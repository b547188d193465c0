/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of the clients when the peer is lost, and when it is back.
 *
 *   on-peer-loss = continue: they wait no more; if that shows them writes as completed that the peer
 *   lacks, the history becomes another one first. If that cannot be made durable they wait until it can.
 *
 *   on-peer-loss = suspend: from the first time the peer streams (PEER_NEEDED, durable) until the
 *   operator says otherwise, no completion is given that the peer has no part in. What is issued behind
 *   the final cut waits already: it may still be under way here when the peer streams. When the peer is
 *   lost, also by a restart of this side, the clients' requests wait: those issued for their tokens, new
 *   ones at the volume's door. Issued ones are on this disk and marked for the peer, so the final cut of
 *   the next connection has them, and its acknowledgement ends the wait.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/mutate.h"
#include "daemon/replication/sink.h"
#include "daemon/replication/source_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define RETRY_NS 1000000000ull

/* ---- generations ---------------------------------------------------------------------------- */

void replication_begin_history(struct env *env, struct volume_generations *generations)
{
	struct id128 old = generations->current;

	if (id128_is_zero(&generations->base))
		generations->base = old;
	generations_push(generations, &old);
	env_random(env, &generations->current, sizeof(generations->current));
}

/* Completed writes that the peer lacks make this history another than the peer's. */
static int bump(struct source *source)
{
	struct volume_state state;

	volume_get_state(source->volume, &state);
	replication_begin_history(source->env, &state.generations);
	return volume_set_state(source->volume, &state);
}

bool source_completed_alone(const struct source *source, bool to_come)
{
	bool marked = volume_dirty_bytes(source->volume, VOLUME_PEER) > 0;

	for (uint64_t s = source->oldest; s < source->next; s++) {
		const struct source_entry *entry = &source->ring[s % SOURCE_RING];
		bool counts = entry->bytes || (entry->client && entry->flush && marked);

		if (!entry->written && counts && (to_come || entry->wait == WAIT_NOTHING))
			return true;
	}
	return false;
}

/* Without a link, or with one that has just begun to stream, all who wait do so for an earlier one. */
static void let_go(struct source *source)
{
	if (source->bump_due || source->waiting)
		return;
	volume_suspend(source->volume, VOLUME_SUSPEND_HISTORY, false);
	if (source->phase != SOURCE_LEAVE)
		volume_tap_release_all(source->volume);
}

void source_bump(struct source *source)
{
	int error = bump(source);

	if (error && !source->bump_due)
		env_log(source->env, ENV_LOG_ERROR,
			"replication: volume %s: the peer is lost, and the new generation is not "
			"stored: %s; the clients' requests wait until it is",
			volume_name(source->volume), strerror(-error));
	source->bump_due = error != 0;
	if (source->bump_due) {
		volume_suspend(source->volume, VOLUME_SUSPEND_HISTORY, true);
		env_timer_start(source->env, &source->bump_timer, RETRY_NS);
	}
}

static void bump_timer_fire(struct env_timer *timer)
{
	struct source *source = container_of(timer, struct source, bump_timer);

	source_bump(source);
	if (source->bump_due)
		return;
	let_go(source);
	env_defer(source->env, &source->pump_task);
}

/* ---- waiting for the peer -------------------------------------------------------------------- */

static bool is_needed(const struct source *source)
{
	struct volume_state state;

	volume_get_state(source->volume, &state);
	return source->suspends && state.role == VOLUME_PRIMARY && state.peer_needed;
}

static int store_needed(struct source *source, bool needed)
{
	struct volume_state state;

	volume_get_state(source->volume, &state);
	if (state.peer_needed == needed || MUTATE(replication_need_unstored))
		return 0;
	state.peer_needed = needed;
	return volume_set_state(source->volume, &state);
}

static void wait_for_peer(struct source *source)
{
	if (source->waiting)
		return;
	source->waiting = true;
	source->waiting_since_ns = env_realtime_ns(source->env);
	volume_suspend(source->volume, VOLUME_SUSPEND_PEER, true);
	env_log(source->env, ENV_LOG_WARNING,
		"replication: volume %s: the peer does not follow: all requests of clients wait "
		"(on-peer-loss = suspend) until it does, or until: offsite resume %s",
		volume_name(source->volume), volume_name(source->volume));
}

static void end_wait(struct source *source, const char *why)
{
	if (!source->waiting)
		return;
	source->waiting = false;
	env_log(source->env, ENV_LOG_WARNING, "replication: volume %s: requests go on: %s",
		volume_name(source->volume), why);
	/* First those that were issued, then those at the door. */
	let_go(source);
	volume_suspend(source->volume, VOLUME_SUSPEND_PEER, false);
}

void source_loss_init(struct source *source, bool suspends)
{
	source->suspends = suspends;
	source->bump_timer.fire = bump_timer_fire;
	if (is_needed(source))
		wait_for_peer(source);
}

void source_loss_stop(struct source *source)
{
	source->bump_due = false;
	env_timer_stop(source->env, &source->bump_timer);
}

int source_followed(struct source *source)
{
	return store_needed(source, source->suspends);
}

/* The final cut is acknowledged: the peer has all that was issued before the stream. */
void source_followed_done(struct source *source)
{
	end_wait(source, "the peer is in sync");
}

void source_lost(struct source *source, bool streamed)
{
	bool wait = is_needed(source) && !MUTATE(replication_suspend_ignored);

	if (wait)
		wait_for_peer(source);
	/* A volume that leans holds its requests itself, and completed nothing that the peer lacks. But
	 * the last of its new disk may be filled without the peer. */
	if (volume_leans(source->volume)) {
		volume_set_peer_in_sync(source->volume, false);
		return;
	}
	if (streamed && source_completed_alone(source, !wait))
		source_bump(source);
	/* Before the clients are released: what they write next belongs to the new history. */
	volume_set_peer_in_sync(source->volume, false);
}

void source_lost_tap(struct source *source)
{
	if ((!source->waiting && !source->bump_due) || volume_leans(source->volume))
		volume_tap_release_all(source->volume);
}

/* Without content of its own nothing can be completed that the peer lacks: were the history another
 * one, the peer's content would not be this side's any more. */
static bool has_content(const struct source *source)
{
	struct volume_state state;

	volume_get_state(source->volume, &state);
	return !volume_leans(source->volume) && state.disk != VOLUME_DISK_FAILED;
}

int source_go_alone(struct source *source)
{
	int error = 0;

	/* What is completed now is not known to the peer. */
	if (source->waiting && has_content(source))
		error = bump(source);
	if (!error)
		error = store_needed(source, false);
	if (error)
		return error;
	if (source->waiting)
		source_loss_stop(source);
	end_wait(source, "without the peer, by the operator's word");
	return 0;
}

void source_role_changed(struct source *source)
{
	struct volume_state state;

	volume_get_state(source->volume, &state);
	if (state.role != VOLUME_PRIMARY)
		end_wait(source, "no longer primary");
}
