// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/node/refusal.h"

#define LOOK_NS 100000000ull
#define MAX_NS  60000000000ull

/* A primary's, until its disk is being filled. */
struct replacement {
	struct node_volume *volume;
	struct env_timer timer;
	uint64_t end_ns;
	node_done_fn done;
	void *context;
};

static void end(struct replacement *r, int error, const char *why)
{
	env_timer_stop(node_env(r->volume->node), &r->timer);
	r->volume->replacement = NULL;
	r->done(r->context, error, why);
	free(r);
}

/* Until the peer is there and the last request on the old disk has come back. */
static void look(struct env_timer *timer)
{
	struct replacement *r =
		(struct replacement *)((char *)timer - offsetof(struct replacement, timer));
	char why[256] = "";
	int error = volume_hydrate(r->volume->volume, why, sizeof(why));

	if ((error == -ENOTCONN || error == -EBUSY) &&
	    env_now_ns(node_env(r->volume->node)) < r->end_ns)
		env_timer_start(node_env(r->volume->node), timer, LOOK_NS);
	else
		end(r, error, why);
}

void disk_cancel(struct node_volume *v)
{
	if (v->replacement)
		end(v->replacement, -ECANCELED, "shutting down");
}

static int replace_invalid(struct node_volume *v, const struct volume_state *state, char *why,
			   size_t why_size)
{
	const char *name = v->config->name;

	if (!v->replication)
		return node_fail(-ENODEV, why, why_size, "volume %s: no peer is configured", name);
	if (v->replacement)
		return node_fail(-EBUSY, why, why_size,
				 "volume %s: its disk is being replaced already", name);
	if (volume_lean(v->volume) == VOLUME_LEAN_HYDRATING)
		return node_fail(-EBUSY, why, why_size,
				 "volume %s: its disk is being filled already", name);
	if (state->role == VOLUME_PRIMARY && !volume_leans(v->volume) &&
	    state->disk != VOLUME_DISK_FAILED)
		return node_fail(-EPERM, why, why_size,
				 "volume %s: is primary and its disk is %s: it is not replaced in "
				 "use; promote the peer first",
				 name, volume_disk_state_name(state->disk));
	return 0;
}

static void replace_primary(struct node_volume *v, node_done_fn done, void *context)
{
	struct replacement *r = calloc(1, sizeof(*r));
	char why[256] = "out of memory";
	int error = r ? 0 : -ENOMEM;

	if (!error && !volume_leans(v->volume)) {
		error = volume_lean_on_peer(v->volume, why, sizeof(why));
		if (!error)
			replication_role_changed(v->replication);
	}
	if (error) {
		free(r);
		done(context, error, why);
		return;
	}
	*r = (struct replacement){
		.volume = v, .timer.fire = look, .done = done, .context = context};
	r->end_ns = env_now_ns(node_env(v->node)) + MAX_NS;
	v->replacement = r;
	env_timer_start(node_env(v->node), &r->timer, 1);
}

void node_replace_disk(struct node_volume *v, node_done_fn done, void *context)
{
	struct volume_state state;
	char why[256] = "";
	int error = node_check_usable(v, why, sizeof(why));

	if (!error) {
		volume_get_state(v->volume, &state);
		error = replace_invalid(v, &state, why, sizeof(why));
	}
	if (error)
		done(context, error, why);
	else if (state.role == VOLUME_PRIMARY)
		replace_primary(v, done, context);
	else
		node_restore_from_peer(v, done, context);
}

void node_resize(struct node_volume *v, uint64_t size_bytes, bool force, node_done_fn done,
		 void *context)
{
	char why[512] = "";
	int error = node_check_usable(v, why, sizeof(why));

	if (error)
		done(context, error, why);
	else if (v->replication)
		replication_resize(v->replication, size_bytes, force, done, context);
	else
		volume_grow(v->volume, size_bytes, done, context);
}
