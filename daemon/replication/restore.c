/* SPDX-License-Identifier: Apache-2.0 */
/*
 * restore: the operator's word that this node's content is given up and the peer's is wanted. It
 * outlives restarts as the file `wanting` in the volume's state directory (protocol/split.md).
 *
 *   all of it       the disk was lost or replaced: INCONSISTENT; nothing here is believed, the map
 *                   included; a full sync
 *   its changes     the disk is good, but its history is given up: OUTDATED, readable and whole until
 *                   the peer's content is; a catch-up over both maps where they reach back far enough
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/replication/record.h"
#include "daemon/replication/replication_internal.h"
#include "protocol/split.h"

#define WISH "wanting"

static void forget(struct replication *r)
{
	int error = record_remove(r->volume, WISH);
	if (error)
		env_log(r->env, ENV_LOG_ERROR, "replication: volume %s: %s/" WISH ": %s",
			volume_name(r->volume), volume_state_dir(r->volume), strerror(-error));
	r->wants = false;
	r->gives_up = (struct id128){};
}

/* Whether what was wanted is here. A crash may be between the volume's state and the end of the wish.
 * Were the wish taken at its word then, the only good copy could be given up for a peer that has lost
 * its own meanwhile. */
static bool granted(const struct replication *r)
{
	struct volume_state state;

	volume_get_state(r->volume, &state);
	if (state.disk != VOLUME_DISK_UPTODATE && state.disk != VOLUME_DISK_OUTDATED)
		return false;
	return !id128_equal(&state.generations.current, &r->gives_up);
}

int restore_load(struct replication *r, char *why, size_t why_size)
{
	struct split_wish_wire wire;
	int error = record_read(r->volume, WISH, &wire, sizeof(wire));

	if (error == -ENOENT)
		return 0;
	if (error && error != -EBADMSG) {
		snprintf(why, why_size, "%s/" WISH ": %s", volume_state_dir(r->volume),
			 strerror(-error));
		return error;
	}
	/* Empty, or not readable: the disk's state alone then tells whether the wish still stands. */
	if (error || split_wish_decode(&wire, &r->gives_up, &r->wish_flags))
		r->gives_up = (struct id128){};
	r->wants = true;
	if (granted(r))
		forget(r);
	return 0;
}

void restore_recheck(struct replication *r)
{
	if (r->wants && !sink_is_applying(r->sink) && granted(r))
		restore_satisfied(r);
}

/* Content came. A crash between the volume's state and this leaves the wish behind for the next start
 * to forget. */
void restore_satisfied(struct replication *r)
{
	if (!r->wants)
		return;
	forget(r);
	env_log(r->env, ENV_LOG_INFO, "replication: volume %s: restored from the peer",
		volume_name(r->volume));
	restore_finish(r, 0, "");
}

/* A wish from before a promotion (it was cut short by a crash, or left behind by one) must not take a
 * primary's content away. */
void restore_void_if_promoted(struct replication *r)
{
	struct volume_state state;

	volume_get_state(r->volume, &state);
	if (!r->wants || state.role != VOLUME_PRIMARY ||
	    (state.disk != VOLUME_DISK_UPTODATE && state.disk != VOLUME_DISK_OUTDATED))
		return;
	env_log(r->env, ENV_LOG_WARNING,
		"replication: volume %s: was promoted: its content is no longer to come from the "
		"peer",
		volume_name(r->volume));
	forget(r);
	restore_finish(r, -ECANCELED, "the volume was promoted");
}

void restore_take_back(struct replication *r)
{
	struct volume_state state;
	char why[256];

	snprintf(why, sizeof(why),
		 "the content of %s is lost: what this node changed is not given up", r->peer.node);
	env_log(r->env, ENV_LOG_WARNING, "replication: volume %s: %s", volume_name(r->volume), why);
	volume_get_state(r->volume, &state);
	/* Should it not be stored, it stays outdated: the peer gets it all the same. */
	if (r->wish_flags & SPLIT_WISH_WAS_UPTODATE && state.disk == VOLUME_DISK_OUTDATED) {
		state.disk = VOLUME_DISK_UPTODATE;
		state.outdated_ns = 0;
		(void)volume_set_state(r->volume, &state);
	}
	forget(r);
	restore_finish(r, -ECANCELED, why);
}

void restore_finish(struct replication *r, int error, const char *why)
{
	void (*done)(void *, int, const char *) = r->restore_done;

	r->restore_done = NULL;
	r->asking = false;
	if (done)
		done(r->restore_context, error, why);
}

/* Nobody waits for content that this disk cannot take. The wish stands: a disk that is good is filled. */
void restore_disk_failed(struct replication *r)
{
	struct volume_state state;
	char why[512];

	volume_get_state(r->volume, &state);
	if (!r->restore_done || !r->wants || state.disk != VOLUME_DISK_FAILED)
		return;
	snprintf(why, sizeof(why), "volume %s: the disk failed: %s", volume_name(r->volume),
		 volume_failure(r->volume));
	restore_finish(r, -EIO, why);
}

static int give_up_content(struct replication *r, char *why, size_t why_size)
{
	struct volume_state state;

	volume_get_state(r->volume, &state);
	if (state.disk == VOLUME_DISK_FAILED) {
		int error = volume_replace_backing(r->volume, why, why_size);
		if (error)
			return error;
		volume_get_state(r->volume, &state);
	}
	/* In this order: a wish beside good content then is one that was granted. */
	enum volume_disk_state before = state.disk;
	int error = 0;
	if (before != VOLUME_DISK_INCONSISTENT) {
		state.disk = VOLUME_DISK_INCONSISTENT;
		error = volume_set_state(r->volume, &state);
	}
	if (!error)
		error = record_write(r->volume, WISH, "", 0);
	if (error &&
	    before != VOLUME_DISK_INCONSISTENT) { /* nothing was touched: it is what it was */
		state.disk = before;
		(void)volume_set_state(r->volume, &state);
	}
	if (error)
		snprintf(why, why_size, "volume %s: %s", volume_name(r->volume), strerror(-error));
	return error;
}

/* The content stays what it is until the peer's is here: OUTDATED, so that nobody promotes it by
 * mistake. */
static int give_up_changes(struct replication *r, char *why, size_t why_size)
{
	struct split_wish_wire wire;
	struct volume_state state;

	volume_get_state(r->volume, &state);
	if (state.role != VOLUME_SECONDARY ||
	    (state.disk != VOLUME_DISK_UPTODATE && state.disk != VOLUME_DISK_OUTDATED)) {
		snprintf(why, why_size,
			 "volume %s: only a secondary with usable content can give "
			 "its changes up; this is a %s, disk %s",
			 volume_name(r->volume), volume_role_name(state.role),
			 volume_disk_state_name(state.disk));
		return -EPERM;
	}
	r->wish_flags = state.disk == VOLUME_DISK_UPTODATE ? SPLIT_WISH_WAS_UPTODATE : 0;
	split_wish_encode(&state.generations.current, r->wish_flags, &wire);
	int error = record_write(r->volume, WISH, &wire, sizeof(wire));
	if (!error && state.disk != VOLUME_DISK_OUTDATED) {
		state.disk = VOLUME_DISK_OUTDATED;
		state.outdated_ns = env_realtime_ns(r->env);
		error = volume_set_state(r->volume, &state);
	}
	if (error) {
		snprintf(why, why_size, "volume %s: %s", volume_name(r->volume), strerror(-error));
		(void)record_remove(r->volume, WISH); /* the next start is not to do it after all */
	} else {
		r->gives_up = state.generations.current;
	}
	return error;
}

static void connect_anew(struct replication *r)
{
	r->operator_off = false;
	r->refusal[0] = 0;
	if (r->state == REPLICATION_STANDALONE)
		replication_set_state(r, REPLICATION_CONNECTING);
	r->backoff_ms = 0;
	replication_retry(r);
}

/* False: it has come to its end. */
static bool begin(struct replication *r, void (*done)(void *context, int error, const char *why),
		  void *context)
{
	if (r->restore_done || r->stopping) {
		done(context, -EBUSY, "a restore from the peer is under way");
		return false;
	}
	if (volume_leans(r->volume)) {
		done(context, -EBUSY,
		     "the content is at the peer already: offsite replace-disk brings it to this "
		     "disk");
		return false;
	}
	session_end(r, FRAME_ERROR_CLOSING, "its content is to come from the peer");
	sink_forget_transfer(r->sink);
	r->restore_done = done;
	r->restore_context = context;
	return true;
}

static int give_up_all(struct replication *r, char *why, size_t why_size)
{
	r->gives_up = (struct id128){};
	int error = give_up_content(r, why, why_size);
	/* Not before: without its log, content that is half applied would pass for good. */
	if (!error)
		sink_discard(r->sink);
	return error;
}

/* A disk that failed may only have been full: what is on it may be all there is. But where it is gone, nothing is; and
 * where a cut was half applied to it the peer cannot be asked, and had all of it not long ago. */
static bool may_be_good(const struct replication *r)
{
	struct volume_state state;

	volume_get_state(r->volume, &state);
	if (state.disk == VOLUME_DISK_FAILED && !volume_has_backing(r->volume))
		return false;
	return !sink_is_stuck(r->sink) && state.disk != VOLUME_DISK_INCONSISTENT &&
	       !id128_is_zero(&state.generations.current);
}

/* What may be the last good copy is given up only when the peer has said that it has one. */
bool restore_heard(struct replication *r)
{
	const struct hello *peer = &r->peer;
	char why[256] = "";
	int error = -EPERM;

	if (!r->asking)
		return false;
	r->asking = false;
	if (id128_is_zero(&peer->current) || peer->flags & (HELLO_WANTS | HELLO_LEANS) ||
	    (peer->disk != VOLUME_DISK_UPTODATE && peer->disk != VOLUME_DISK_OUTDATED))
		snprintf(why, sizeof(why),
			 "volume %s: peer %s has no content to give: nothing was given up",
			 volume_name(r->volume), peer->node);
	else
		error = give_up_all(r, why, sizeof(why));
	if (!error)
		r->wants = true;
	else
		restore_finish(r, error, why);
	/* Also where a failed disk was exchanged, and only the wish could not be stored: the peer was told of the old one. */
	struct volume_state state;
	volume_get_state(r->volume, &state);
	if (error && state.disk == (enum volume_disk_state)r->self.disk)
		return false;
	replication_refuse(r, FRAME_ERROR_CLOSING, "its content is to come from the peer");
	return true;
}

void replication_restore_from_peer(struct replication *r,
				   void (*done)(void *context, int error, const char *why),
				   void *context)
{
	char why[256] = "";
	int error = 0;

	if (!begin(r, done, context))
		return;
	if (may_be_good(r))
		r->asking = true;
	else
		error = give_up_all(r, why, sizeof(why));
	if (error) {
		restore_finish(r, error, why);
		replication_retry(r);
		return;
	}
	r->wants = !r->asking;
	connect_anew(r);
}

void replication_discard_changes(struct replication *r,
				 void (*done)(void *context, int error, const char *why),
				 void *context)
{
	char why[256] = "";

	if (!begin(r, done, context))
		return;
	int error = give_up_changes(r, why, sizeof(why));
	if (error) {
		restore_finish(r, error, why);
		replication_retry(r);
		return;
	}
	r->wants = true;
	connect_anew(r);
}
