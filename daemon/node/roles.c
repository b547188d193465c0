// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/roles.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/node/hook.h"
#include "daemon/node/peering.h"
#include "daemon/node/refusal.h"
#include "daemon/node/storage.h"

/* A promotion that waits for its fence. */
struct promotion {
	struct hook hook;
	struct node_volume *volume;
	unsigned flags;
	node_done_fn done;
	void *context;
	char variables[5][256];
	/* While the peer seems to be there, and primary: is it? */
	struct env_timer timer;
	uint64_t asked_ns;
	bool given_up, cancelled;
	char refusal[512];
};

#define LOOK_NS      100000000ull
#define ALIVE_MAX_NS 1500000000ull /* a promotion is to be done within two seconds */

int roles_store(struct node_volume *v, const struct volume_state *state, char *why, size_t why_size)
{
	int error = volume_set_state(v->volume, state);

	if (!error)
		return 0;
	/* One that ends with writes on the disk is stored when they are durable. After a failed fsync they never are: it
	 * is not tried again, as the next one would succeed without what the system has dropped. */
	if (volume_flush_fails(v->volume))
		return node_fail(
			error, why, why_size,
			"volume %s: the role stays: its last writes may not be on the disk, whose "
			"flush failed: %s, and ask again",
			v->config->name, volume_failure(v->volume));
	return node_fail(error, why, why_size, "volume %s: role not stored: %s", v->config->name,
			 strerror(-error));
}

static bool peer_seems_primary(struct node_volume *v)
{
	struct replication_status peer;

	peering_get_status(v, &peer);
	return peering_is_connected(&peer) && peer.peer_role == VOLUME_PRIMARY;
}

/* ---- promote -------------------------------------------------------------------------------- */

static int check_disk(struct node_volume *v, const struct volume_state *state, char *why,
		      size_t why_size)
{
	const char *name = v->config->name, *kept = volume_kept_copy(v->volume);

	if (state->disk == VOLUME_DISK_INCONSISTENT && kept)
		return node_fail(
			-EPERM, why, why_size,
			"volume %s: its disk is inconsistent, a mixture of old and new: nothing "
			"could be "
			"served from it, not even by force; what it was before the catch-up is "
			"kept in %s: to "
			"go on with that, stop offsited, mv %s %s, touch %s.restored, start it",
			name, kept, kept, v->config->backing, v->config->backing);
	if (state->disk == VOLUME_DISK_INCONSISTENT)
		return node_fail(
			-EPERM, why, why_size,
			"volume %s: its disk is inconsistent, a mixture of old and new: "
			"nothing could be served from it, not even by force; connect it to a "
			"peer that is up to date, or restore it: offsite restore %s",
			name, name);
	if (state->disk == VOLUME_DISK_FAILED)
		return node_fail(-EPERM, why, why_size,
				 "volume %s: its disk has failed (%s); put it right, then restore "
				 "it: offsite restore %s",
				 name, volume_failure(v->volume), name);
	return 0;
}

static int check_loss(struct node_volume *v, const struct volume_state *state, char *why,
		      size_t why_size)
{
	const char *name = v->config->name;
	struct replication_loss loss = {.risk = REPLICATION_RISK_NONE};
	char text[320];

	if (v->replication)
		replication_get_loss(v->replication, &loss);
	else if (state->disk == VOLUME_DISK_OUTDATED)
		loss = (struct replication_loss){.risk = REPLICATION_RISK_BEHIND,
						 .since_ns = state->outdated_ns};
	if (loss.risk != REPLICATION_RISK_NONE) {
		replication_loss_text(&loss, text, sizeof(text));
		return node_fail(-EPERM, why, why_size,
				 "volume %s: %s: a promotion here would lose %s; --force promotes "
				 "all the same",
				 name,
				 loss.risk == REPLICATION_RISK_UNHEARD ? "may be behind its peer"
				 : loss.risk == REPLICATION_RISK_PEER  ? "behind its peer"
				 : state->disk == VOLUME_DISK_OUTDATED
					 ? "disk is outdated"
					 : "did not receive all its peer wrote",
				 text);
	}
	if (v->replication && !v->config->primary && id128_is_zero(&state->generations.current))
		return node_fail(-EPERM, why, why_size,
				 "volume %s: never synchronised with its peer; use --force to "
				 "start from the empty disk",
				 name);
	return 0;
}

/* From before this node stepped down: what they cached is not what the disk holds now. */
static int check_clients(struct node_volume *v, char *why, size_t why_size)
{
	struct volume_stats stats;

	volume_get_stats(v->volume, &stats);
	if (stats.clients == 0)
		return 0;
	return node_fail(
		-EBUSY, why, why_size,
		"volume %s: %u client%s of the time before still ha%s it open: detach first",
		v->config->name, stats.clients, stats.clients == 1 ? "" : "s",
		stats.clients == 1 ? "s" : "ve");
}

static int may_promote(struct node_volume *v, const struct volume_state *state, unsigned flags,
		       char *why, size_t why_size)
{
	struct replication_status peer;
	int error = check_clients(v, why, why_size);

	if (!error)
		error = check_disk(v, state, why, why_size);
	if (error)
		return error;
	peering_get_status(v, &peer);
	if (peering_is_connected(&peer) && peer.peer_role == VOLUME_PRIMARY)
		return node_fail(-EPERM, why, why_size,
				 "volume %s: peer %s is primary; demote it there first",
				 v->config->name, peer.peer_name);
	if (peering_is_applying(v))
		return node_fail(
			-EAGAIN, why, why_size,
			"volume %s: a catch-up that is complete is being applied to its disk: "
			"promote it when that is done",
			v->config->name);
	return flags & NODE_FORCE ? 0 : check_loss(v, state, why, why_size);
}

/* What is given up is said where people look: in the log, in an event, in the answer. */
static void tell_loss(struct node_volume *v)
{
	struct replication_loss loss = {.risk = REPLICATION_RISK_NONE};

	if (v->replication)
		replication_get_loss(v->replication, &loss);
	if (loss.risk == REPLICATION_RISK_NONE)
		return;
	replication_loss_text(&loss, v->lost, sizeof(v->lost));
	v->losses++;
	env_log(node_env(v->node), ENV_LOG_WARNING, "volume %s: promoted by force: lost is %s",
		v->config->name, v->lost);
}

/* Promoted out of the peer's sight: from here on this is a history of its own, also before the first
 * write, so that a peer that was primary can tell that it was replaced. */
static void new_history(struct node_volume *v, struct volume_generations *generations)
{
	struct replication_status peer;

	if (!v->replication || id128_is_zero(&generations->current))
		return;
	peering_get_status(v, &peer);
	if (!peering_is_connected(&peer))
		replication_begin_history(node_env(v->node), generations);
}

static int promote_now(struct node_volume *v, unsigned flags, char *why, size_t why_size)
{
	struct volume_state state;
	int error = node_check_usable(v, why, why_size);

	if (error)
		return error;
	volume_get_state(v->volume, &state);
	if (state.role == VOLUME_PRIMARY)
		return 0;
	error = may_promote(v, &state, flags, why, why_size);
	if (error)
		return error;
	if (flags & NODE_FORCE)
		tell_loss(v);
	state.role = VOLUME_PRIMARY;
	new_history(v, &state.generations);
	if (state.disk == VOLUME_DISK_OUTDATED) {
		state.disk = VOLUME_DISK_UPTODATE;
		state.outdated_ns = 0;
	}
	error = roles_store(v, &state, why, why_size);
	if (error)
		return error;
	storage_open(v->storage);
	if (v->replication)
		replication_role_changed(v->replication);
	env_log(node_env(v->node), ENV_LOG_INFO, "volume %s: promoted to primary%s",
		v->config->name, flags & NODE_FORCE ? " (forced)" : "");
	return 0;
}

int node_promote(struct node_volume *v, bool force, char *why, size_t why_size)
{
	return promote_now(v, force ? NODE_FORCE : 0, why, why_size);
}

/* ---- the fence ------------------------------------------------------------------------------ */

static int fence_result(const struct promotion *p, char *why, size_t why_size)
{
	char reason[400];

	if (!hook_result(&p->hook, "fence-timeout", reason, sizeof(reason)))
		return 0;
	return node_fail(-EPERM, why, why_size, "volume %s: not promoted: %s%s",
			 p->volume->config->name,
			 p->hook.error ? "" : "the peer is not fenced: ", reason);
}

static void end_promotion(struct promotion *p, int error, const char *why)
{
	struct node_volume *v = p->volume;

	v->promotion = NULL;
	p->done(p->context, error, why);
	free(p);
	node_stop_go_on(v);
}

static void fenced(struct hook *hook)
{
	struct promotion *p = (struct promotion *)((char *)hook - offsetof(struct promotion, hook));
	struct node_volume *v = p->volume;
	char why[512] = "";
	int error = fence_result(p, why, sizeof(why));

	v->promotion = NULL;
	env_log(node_env(v->node), error ? ENV_LOG_WARNING : ENV_LOG_INFO, "volume %s: %s: %s",
		v->config->name, hook->command, error ? why : "the peer is fenced");
	/* Much may have changed meanwhile: all is looked at again. */
	if (!error)
		error = promote_now(v, p->flags, why, sizeof(why));
	end_promotion(p, error, why);
}

static void start_fence(struct promotion *p)
{
	struct node_volume *v = p->volume;
	struct replication_status peer;

	peering_get_status(v, &peer);
	snprintf(p->variables[0], sizeof(p->variables[0]), "OFFSITE_VOLUME=%s", v->config->name);
	snprintf(p->variables[1], sizeof(p->variables[1]), "OFFSITE_NODE=%s",
		 node_config(v->node)->node.name);
	snprintf(p->variables[2], sizeof(p->variables[2]), "OFFSITE_PEER=%s", peer.peer_name);
	snprintf(p->variables[3], sizeof(p->variables[3]), "OFFSITE_PEER_ADDRESS=%s",
		 v->config->peer ? v->config->peer : "");
	snprintf(p->variables[4], sizeof(p->variables[4]), "OFFSITE_REASON=%s",
		 p->flags & NODE_FORCE ? "promote-forced" : "promote");
	for (unsigned i = 0; i < 5; i++)
		p->hook.environment[i] = p->variables[i];
	p->hook.command = v->config->fence_command;
	p->hook.timeout_ns = v->config->fence_timeout_ns;
	p->hook.done = fenced;
	v->promotion = p;
	env_log(node_env(v->node), ENV_LOG_INFO, "volume %s: fencing the peer: %s", v->config->name,
		p->hook.command);
	hook_run(node_env(v->node), &p->hook);
}

static bool needs_fence(struct node_volume *v, unsigned flags)
{
	struct replication_status peer;

	if (flags & NODE_NO_FENCE || !v->config->fence_command)
		return false;
	peering_get_status(v, &peer);
	return !peering_is_connected(&peer);
}

/* Nothing speaks against it any more, but perhaps the fence. */
static void go_on(struct promotion *p)
{
	struct node_volume *v = p->volume;
	struct volume_state state;
	char why[512] = "";
	int error;

	v->promotion = NULL; /* else the volume is not usable */
	volume_get_state(v->volume, &state);
	error = may_promote(v, &state, p->flags, why, sizeof(why));
	if (!error && needs_fence(v, p->flags)) {
		start_fence(p);
		return;
	}
	if (!error)
		error = promote_now(v, p->flags, why, sizeof(why));
	end_promotion(p, error, why);
}

/* A primary that died without a word looks connected until peer-timeout. */
static void look_fire(struct env_timer *timer)
{
	struct promotion *p =
		(struct promotion *)((char *)timer - offsetof(struct promotion, timer));
	struct node_volume *v = p->volume;
	struct env *env = node_env(v->node);

	if (p->cancelled) {
		end_promotion(p, -ECANCELED, "cancelled");
	} else if (!peer_seems_primary(v)) {
		go_on(p);
	} else if (!replication_is_silent(v->replication, p->asked_ns) && !p->given_up) {
		end_promotion(p, -EPERM, p->refusal);
	} else {
		if (!p->given_up && env_now_ns(env) - p->asked_ns >= ALIVE_MAX_NS) {
			p->given_up = true;
			replication_give_up_peer(
				v->replication, "no sign of life, and this side is to be promoted");
		}
		env_timer_start(env, timer, LOOK_NS);
	}
}

static void start_looking(struct promotion *p, const char *why)
{
	struct node_volume *v = p->volume;
	struct env *env = node_env(v->node);

	v->promotion = p;
	snprintf(p->refusal, sizeof(p->refusal), "%s", why);
	p->timer.fire = look_fire;
	p->asked_ns = env_now_ns(env) + 1; /* what came in this turn was on its way before */
	replication_ping(v->replication);
	env_timer_start(env, &p->timer, LOOK_NS);
}

void node_promote_start(struct node_volume *v, unsigned flags, node_done_fn done, void *context)
{
	struct volume_state state;
	char why[512] = "";
	int error = node_check_usable(v, why, sizeof(why));
	bool look, primary = false;

	if (!error) {
		volume_get_state(v->volume, &state);
		primary = state.role == VOLUME_PRIMARY;
	}
	if (!error && !primary)
		error = may_promote(v, &state, flags, why, sizeof(why));
	look = error == -EPERM && !check_disk(v, &state, why, sizeof(why)) && peer_seems_primary(v);
	if (!look && (error || primary || !needs_fence(v, flags))) {
		if (!error)
			error = promote_now(v, flags, why, sizeof(why));
		done(context, error, why);
		return;
	}
	struct promotion *p = calloc(1, sizeof(*p));

	if (!p) {
		done(context, -ENOMEM, "out of memory");
		return;
	}
	p->volume = v;
	p->flags = flags;
	p->done = done;
	p->context = context;
	if (look)
		start_looking(p, why);
	else
		start_fence(p);
}

void roles_cancel(struct node_volume *v)
{
	if (v->promotion) {
		v->promotion->cancelled = true;
		hook_cancel(&v->promotion->hook);
	}
}

void node_cancel_fences(struct node *node)
{
	for (unsigned i = 0; i < node_volume_count(node); i++)
		roles_cancel(node_volume(node, i));
}

/* ---- demote --------------------------------------------------------------------------------- */

static int may_demote(struct node_volume *v, char *why, size_t why_size)
{
	const char *name = v->config->name;
	struct volume_stats stats;
	struct replication_status peer;

	volume_get_stats(v->volume, &stats);
	if (stats.clients > 0)
		return node_fail(-EBUSY, why, why_size, "volume %s: %u client%s still ha%s it open",
				 name, stats.clients, stats.clients == 1 ? "" : "s",
				 stats.clients == 1 ? "s" : "ve");
	if (volume_source(v->volume, NULL))
		return node_fail(-EBUSY, why, why_size,
				 "volume %s: is being filled from a snapshot: demote it when it is "
				 "whole",
				 name);
	if (storage_is_writing(v))
		return node_fail(-EAGAIN, why, why_size, "volume %s: a snapshot is being taken",
				 name);
	peering_get_status(v, &peer);
	/* What the peer lacks now would be rolled back when the peer is promoted next. */
	if (peering_is_connected(&peer) && peer.source && peer.out_of_sync_bytes > 0)
		return node_fail(-EAGAIN, why, why_size,
				 "volume %s: %llu bytes are still on their way to the peer", name,
				 (unsigned long long)peer.out_of_sync_bytes);
	return 0;
}

int node_demote(struct node_volume *v, char *why, size_t why_size)
{
	struct volume_state state;
	int error = node_check_usable(v, why, why_size);

	if (error)
		return error;
	volume_get_state(v->volume, &state);
	if (state.role == VOLUME_SECONDARY)
		return 0;
	error = may_demote(v, why, why_size);
	if (error)
		return error;
	state.role = VOLUME_SECONDARY;
	error = roles_store(v, &state, why, why_size);
	if (error)
		return error;
	if (v->replication)
		replication_role_changed(v->replication);
	env_log(node_env(v->node), ENV_LOG_INFO, "volume %s: demoted to secondary",
		v->config->name);
	return 0;
}
