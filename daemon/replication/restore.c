/* SPDX-License-Identifier: Apache-2.0 */
/*
 * restore: the operator's word that this node's content is given up and the peer's is wanted. It
 * outlives restarts as the file `wanting` in the volume's state directory.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/replication/replication_internal.h"

static void wanting_path(const struct replication *r, char path[4096])
{
	snprintf(path, 4096, "%s/wanting", volume_state_dir(r->volume));
}

static void forget(struct replication *r)
{
	char path[4096];

	wanting_path(r, path);
	int error = env_unlink(r->env, path);
	if (!error || error == -ENOENT)
		error = env_sync_dir(r->env, volume_state_dir(r->volume));
	if (error)
		env_log(r->env, ENV_LOG_ERROR, "replication: volume %s: %s: %s",
			volume_name(r->volume), path, strerror(-error));
	r->wants = false;
}

/* Content came, and a crash was between the volume's state and the end of the wish. Were the wish taken
 * at its word, the only good copy could be given up for a peer that has lost its own meanwhile. */
static void forget_if_granted(struct replication *r)
{
	struct volume_state state;

	volume_get_state(r->volume, &state);
	if (state.disk == VOLUME_DISK_UPTODATE || state.disk == VOLUME_DISK_OUTDATED)
		forget(r);
}

int restore_load(struct replication *r, char *why, size_t why_size)
{
	char path[4096];
	struct env_file *file;

	wanting_path(r, path);
	int error = env_file_open(r->env, path, ENV_FILE_READ, &file);
	if (error == -ENOENT)
		return 0;
	if (error) {
		snprintf(why, why_size, "%s: %s", path, strerror(-error));
		return error;
	}
	env_file_close(r->env, file);
	r->wants = true;
	forget_if_granted(r);
	return 0;
}

static int remember(struct replication *r)
{
	char path[4096];
	struct env_file *file;

	wanting_path(r, path);
	int error = env_file_open(r->env, path, ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE,
				  &file);
	if (error)
		return error;
	error = env_file_sync(r->env, file);
	env_file_close(r->env, file);
	return error ? error : env_sync_dir(r->env, volume_state_dir(r->volume));
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

void restore_finish(struct replication *r, int error, const char *why)
{
	void (*done)(void *, int, const char *) = r->restore_done;

	r->restore_done = NULL;
	if (done)
		done(r->restore_context, error, why);
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
	int error = 0;
	if (state.disk != VOLUME_DISK_INCONSISTENT) {
		state.disk = VOLUME_DISK_INCONSISTENT;
		error = volume_set_state(r->volume, &state);
	}
	if (!error)
		error = remember(r);
	if (error)
		snprintf(why, why_size, "volume %s: %s", volume_name(r->volume), strerror(-error));
	return error;
}

void replication_restore_from_peer(struct replication *r,
				   void (*done)(void *context, int error, const char *why),
				   void *context)
{
	char why[256] = "";

	if (r->restore_done || r->stopping) {
		done(context, -EBUSY, "a restore from the peer is under way");
		return;
	}
	session_end(r, FRAME_ERROR_CLOSING, "its content is to be restored from the peer");
	sink_discard(r->sink);
	int error = give_up_content(r, why, sizeof(why));
	if (error) {
		done(context, error, why);
		replication_retry(r);
		return;
	}
	r->wants = true;
	r->restore_done = done;
	r->restore_context = context;
	r->operator_off = false;
	r->refusal[0] = 0;
	if (r->state == REPLICATION_STANDALONE)
		replication_set_state(r, REPLICATION_CONNECTING);
	r->backoff_ms = 0;
	replication_retry(r);
}
