/* SPDX-License-Identifier: Apache-2.0 */
/*
 * yield: a primary that was replaced while it was away. It holds its clients' requests for a short time
 * at its start, until it knows what its peer is; if the peer was promoted, and this side has nothing of
 * its own but what was on its way when it died, it steps down by itself. What was on its way is then
 * rolled back by the catch-up that follows: no client of protocol C saw the end of it.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/replication/replication_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

static void wait_over(struct env_timer *timer)
{
	struct replication *r = container_of(timer, struct replication, start_timer);

	env_log(r->env, ENV_LOG_WARNING,
		"replication: volume %s: the peer was not reached within start-wait: clients are "
		"served",
		volume_name(r->volume));
	yield_settled(r);
}

void yield_init(struct replication *r)
{
	struct volume_state state;

	r->start_timer.fire = wait_over;
	volume_get_state(r->volume, &state);
	if (!r->config.start_wait_ms || r->operator_off || state.role != VOLUME_PRIMARY ||
	    state.disk != VOLUME_DISK_UPTODATE || id128_is_zero(&state.generations.current) ||
	    !id128_is_zero(&state.generations.base))
		return; /* never in sync, or it went on alone already: it could not step down */
	r->starting = true;
	volume_suspend(r->volume, VOLUME_SUSPEND_START, true);
	env_timer_start(r->env, &r->start_timer, r->config.start_wait_ms * 1000000ull);
}

void yield_settled(struct replication *r)
{
	if (!r->starting)
		return;
	r->starting = false;
	env_timer_stop(r->env, &r->start_timer);
	volume_suspend(r->volume, VOLUME_SUSPEND_START, false);
}

void yield_stop(struct replication *r)
{
	r->starting = false;
	env_timer_stop(r->env, &r->start_timer);
}

bool yield_vacant(const struct replication *r)
{
	struct volume_stats stats;

	if (!r->config.vacant || !r->config.vacant(r->config.vacant_context))
		return false;
	volume_get_stats(r->volume, &stats);
	return stats.clients == 0 || r->starting; /* none of them was served yet */
}

void yield_step_down(struct replication *r)
{
	struct volume_state state;
	char text[200];

	volume_get_state(r->volume, &state);
	if (state.role != VOLUME_PRIMARY || !yield_vacant(r) ||
	    !id128_equal(&state.generations.current, &r->self.current)) {
		replication_refuse(r, FRAME_ERROR_CLOSING, "it is in use again");
		return;
	}
	state.role = VOLUME_SECONDARY;
	if (volume_set_state(r->volume, &state)) {
		replication_refuse(r, FRAME_ERROR_IO, "cannot persist the volume's role");
		return;
	}
	volume_fail_held(r->volume, -EIO);
	source_role_changed(r->source);
	yield_settled(r);
	r->stepped_down_ns = env_realtime_ns(r->env);
	snprintf(text, sizeof(text), "peer %s was promoted and went on: this node steps down",
		 r->peer.node);
	env_log(r->env, ENV_LOG_WARNING, "replication: volume %s: %s", volume_name(r->volume),
		text);
	replication_refuse(r, FRAME_ERROR_CLOSING, "it steps down");
}

/* ---- what is rolled back ---------------------------------------------------------------------- */

void changes_collect(struct volume *volume, struct replication_changes *changes)
{
	uint64_t offset = 0, start, length;

	*changes = (struct replication_changes){};
	while (volume_dirty_next(volume, VOLUME_PEER, offset, &start, &length)) {
		if (changes->listed && changes->count == changes->listed &&
		    changes->extents[changes->listed - 1].offset_bytes +
				    changes->extents[changes->listed - 1].length_bytes ==
			    start)
			changes->extents[changes->listed - 1].length_bytes += length;
		else {
			if (changes->listed < SPLIT_EXTENTS_MAX)
				changes->extents[changes->listed++] =
					(struct split_extent){start, length};
			changes->count++;
		}
		changes->bytes += length;
		offset = start + length;
	}
}

void replication_get_changes(const struct replication *r, struct replication_changes *changes)
{
	changes_collect(r->volume, changes);
}

void yield_roll_back(struct replication *r)
{
	struct replication_changes now;

	changes_collect(r->volume, &now);
	if (!now.count)
		return;
	bool again = memcmp(&now, &r->rolled_back, sizeof(now)) == 0;
	r->rolled_back = now;
	r->rolled_back_ns = env_realtime_ns(r->env);
	env_log(r->env, again ? ENV_LOG_DEBUG : ENV_LOG_WARNING,
		"replication: volume %s: rolled back: at most %llu bytes in %llu extent%s (the "
		"first at "
		"%llu), written here and not known to be on peer %s",
		volume_name(r->volume), (unsigned long long)now.bytes,
		(unsigned long long)now.count, now.count == 1 ? "" : "s",
		(unsigned long long)now.extents[0].offset_bytes, r->peer.node);
}
