// SPDX-License-Identifier: Apache-2.0
/*
 * The life of a node: its volumes are started one by one, each with its modules, and stopped together, each from the
 * top down. What a module does while it is alive is its own.
 */
#include "daemon/node/node.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/node/disk.h"
#include "daemon/node/exports.h"
#include "daemon/node/instant.h"
#include "daemon/node/moment.h"
#include "daemon/node/peering.h"
#include "daemon/node/proof.h"
#include "daemon/node/refusal.h"
#include "daemon/node/roles.h"
#include "daemon/node/schedule.h"
#include "daemon/node/storage.h"

/* What is stopped next: what uses the others goes first. Before each of them, whatever else is under way on the volume
 * is waited for: see users_gone(). */
enum stop_step { STOP_WRITER, STOP_PEERING, STOP_STORAGE, STOP_VOLUME, STOP_DONE };

/* One per volume, so that every callback finds its way with the node_volume alone. */
struct volume_slot {
	struct node_volume pub;
	struct config_volume config; /* as now; its texts are the given config's */
	char *state_dir;
	struct env_timer watch; /* looks after what is not called by itself */
	enum stop_step step;
	bool stopping; /* step is under way */
};

struct node {
	struct env *env;
	const struct config *config;
	struct peering_door *door;
	struct exports *exports;
	struct volume_slot *slots;
	unsigned count;
	bool stopping;
	bool holding;   /* volumes are being stopped: the end has to wait */
	bool abandoned; /* stopped in the middle of a restore: nothing is freed any more */
	void (*stopped)(void *context);
	void *stopped_context;
};

static struct volume_slot *slot_of(struct node_volume *volume)
{
	return (struct volume_slot *)((char *)volume - offsetof(struct volume_slot, pub));
}

/* ---- start ---------------------------------------------------------------------------------- */

static void watch_fire(struct env_timer *timer)
{
	struct volume_slot *slot =
		(struct volume_slot *)((char *)timer - offsetof(struct volume_slot, watch));
	struct node_volume *v = &slot->pub;

	storage_look(v->storage);
	schedule_look(v->schedule);
	instant_look(v);
	env_timer_start(v->node->env, timer, SCHEDULE_LOOK_NS);
}

static void uuid_changed(void *context)
{
	struct node_volume *v = context;

	storage_uuid_changed(v->storage);
}

static void volume_discarded(void *context)
{
	*(bool *)context = true;
}

static int open_volume(struct volume_slot *slot)
{
	struct node_volume *v = &slot->pub;
	const struct config_volume *c = v->config;
	struct volume_config config = {
		.name = c->name,
		.backing = c->backing,
		.description = c->description,
		.state_dir = slot->state_dir,
		.size_bytes = c->size_bytes,
		.role = c->primary ? VOLUME_PRIMARY : VOLUME_SECONDARY,
		.block_min_bytes = c->block_min_bytes,
		.preserve_max_bytes = c->preserve_max_bytes,
		.detach_on_error = c->detach_on_error,
		.hydrate_max_bytes_per_second = c->hydrate_rate_bytes,
		.store_follows = c->store != NULL,
		.hydrate_timeout_ns = c->hydrate_timeout_ns,
		.uuid_changed = uuid_changed,
		.uuid_context = v,
	};
	int error = volume_open(v->node->env, &config, &v->volume, v->error, sizeof(v->error));
	bool closed = false;

	if (error)
		return error;
	error = peering_open(v->peering, v->error, sizeof(v->error));
	if (error) {
		volume_close(v->volume, volume_discarded, &closed);
		env_run_until(v->node->env, &closed);
	}
	return error;
}

/* One that cannot be opened is left out, with its reason. */
static void start_volume(struct volume_slot *slot)
{
	struct node_volume *v = &slot->pub;

	if (open_volume(slot)) {
		v->volume = NULL;
		env_log(v->node->env, ENV_LOG_ERROR, "volume %s: not available: %s",
			v->config->name, v->error);
		return;
	}
	v->moment = moment_new(v);
	v->proof_state = proof_new(v);
	storage_open(v->storage);
	schedule_start(v->schedule);
	slot->watch.fire = watch_fire;
	if (v->config->store)
		env_timer_start(v->node->env, &slot->watch, SCHEDULE_LOOK_NS);
}

static int make_slot(struct node *node, struct volume_slot *slot,
		     const struct config_volume *config, char *why, size_t why_size)
{
	struct node_volume *v = &slot->pub;

	v->node = node;
	slot->config = *config;
	v->config = &slot->config;
	if (asprintf(&slot->state_dir, "%s/%s", node->config->node.state_dir, config->name) < 0)
		slot->state_dir = NULL;
	v->storage = storage_new(v);
	v->schedule = schedule_new(v);
	if (!slot->state_dir || !v->storage || !v->schedule)
		return node_fail(-ENOMEM, why, why_size, "out of memory");
	return peering_new(v, &v->peering, why, why_size);
}

static void free_slot(struct volume_slot *slot)
{
	free(slot->state_dir);
	storage_free(slot->pub.storage);
	schedule_free(slot->pub.schedule);
	peering_free(slot->pub.peering);
}

static void free_node(struct node *node)
{
	for (unsigned i = 0; i < node->count; i++)
		free_slot(&node->slots[i]);
	peering_door_free(node->door);
	exports_free(node->exports);
	free(node->slots);
	free(node);
}

static void exports_gone(void *context);

static int make_slots(struct node *node, char *why, size_t why_size)
{
	const struct config *config = node->config;
	int error = 0;

	node->slots = calloc(config->volume_count ? config->volume_count : 1, sizeof(*node->slots));
	node->exports = exports_new(node, exports_gone, node);
	if (!node->slots || !node->exports)
		return node_fail(-ENOMEM, why, why_size, "out of memory");
	node->count = config->volume_count;
	for (unsigned i = 0; i < node->count && !error; i++)
		error = make_slot(node, &node->slots[i], &config->volumes[i], why, why_size);
	return error;
}

int node_start(struct env *env, const struct config *config, struct node **out, char *why,
	       size_t why_size)
{
	const char *state_dir = config->node.state_dir;
	struct node *node = calloc(1, sizeof(*node));
	int error;

	if (!node)
		return node_fail(-ENOMEM, why, why_size, "out of memory");
	node->env = env;
	node->config = config;
	error = env_mkdir(env, state_dir);
	if (error)
		node_fail(error, why, why_size, "state-dir %s: %s", state_dir, strerror(-error));
	if (!error)
		error = make_slots(node, why, why_size);
	if (!error)
		error = peering_door_open(node, &node->door, why, why_size);
	if (error) {
		free_node(node);
		return error;
	}
	for (unsigned i = 0; i < node->count; i++)
		start_volume(&node->slots[i]);
	*out = node;
	return 0;
}

/* ---- stop ----------------------------------------------------------------------------------- */

static void finish_stop(struct node *node)
{
	void (*stopped)(void *context) = node->stopped;
	void *context = node->stopped_context;

	for (unsigned i = 0; i < node->count; i++)
		if (node->slots[i].step != STOP_DONE || node->slots[i].pub.store_opening)
			return;
	if (node->holding || !stopped)
		return; /* or said already: only a node that was abandoned gets here twice */
	node->stopped = NULL;
	if (!node->abandoned)
		free_node(node);
	stopped(context);
}

/* What reads snapshots, a fence, an operator's command, a proof, a restore: whoever is not gone calls
 * node_stop_go_on(). */
static bool users_gone(struct node_volume *v)
{
	if (!exports_idle(v->node->exports)) {
		store_stop(v->store);
		return false;
	}
	if (v->promotion) {
		roles_cancel(v);
		return false;
	}
	if (!moment_stop(v->moment) || !proof_stop(v->proof_state))
		return false;
	if (v->instant) {
		store_stop(v->store);
		instant_stop(v);
		return false;
	}
	return true;
}

static void stop_next(struct volume_slot *slot);

static void step_done(void *context)
{
	struct volume_slot *slot = context;

	slot->stopping = false;
	slot->step++;
	stop_next(slot);
}

static void volume_closed(void *context)
{
	struct volume_slot *slot = context;

	slot->pub.volume = NULL;
	step_done(slot);
}

static void stop_volume(struct volume_slot *slot)
{
	struct node_volume *v = &slot->pub;

	moment_free(v->moment);
	v->moment = NULL;
	if (!proof_is_restoring(v->proof_state))
		proof_free(v->proof_state);
	v->proof_state = NULL;
	if (v->volume)
		volume_close(v->volume, volume_closed, slot);
	else
		volume_closed(slot);
}

/* Goes on with the stop of a volume where it can; may be called at any time. */
static void stop_next(struct volume_slot *slot)
{
	struct node_volume *v = &slot->pub;

	if (slot->stopping || (slot->step != STOP_DONE && !users_gone(v)))
		return;
	slot->stopping = slot->step != STOP_DONE;
	switch (slot->step) {
	case STOP_WRITER:
		storage_stop_writer(v->storage, step_done, slot);
		break;
	case STOP_PEERING:
		peering_close(v->peering, step_done, slot);
		break;
	case STOP_STORAGE:
		storage_close(v->storage, step_done, slot);
		break;
	case STOP_VOLUME:
		stop_volume(slot);
		break;
	case STOP_DONE:
		finish_stop(v->node);
		break;
	}
}

/* The node may be gone when it returns. */
static void stop_all(struct node *node)
{
	node->holding = true;
	for (unsigned i = 0; i < node->count; i++)
		stop_next(&node->slots[i]);
	node->holding = false;
	finish_stop(node);
}

static void exports_gone(void *context)
{
	struct node *node = context;

	if (node->stopping)
		stop_all(node);
}

void node_stop_go_on(struct node_volume *v)
{
	if (v->node->stopping)
		stop_next(slot_of(v));
}

bool node_is_stopping(const struct node_volume *v)
{
	return v->node->stopping;
}

void node_stop_stores(struct node *node)
{
	for (unsigned i = 0; i < node->count; i++)
		store_stop(node->slots[i].pub.store);
}

/* A restore cannot be called back, and it need not: the disk is marked inconsistent until it was run again. The
 * process ends as in a crash. */
static bool must_abandon(struct volume_slot *slot)
{
	struct node_volume *v = &slot->pub;

	if (v->busy) {
		env_log(v->node->env, ENV_LOG_WARNING,
			"volume %s: stopped during a %s; run it again after the next start",
			v->config->name, v->busy);
		slot->step = STOP_DONE;
		return true;
	}
	/* The volume is closed in order all the same. */
	return proof_is_restoring(v->proof_state);
}

bool node_stop(struct node *node, void (*stopped)(void *context), void *context)
{
	bool abandoned = false;

	node->stopping = true;
	exports_stop(node->exports);
	node->stopped = stopped;
	node->stopped_context = context;
	peering_door_close(node->door);
	for (unsigned i = 0; i < node->count; i++) {
		env_timer_stop(node->env, &node->slots[i].watch);
		schedule_stop(node->slots[i].pub.schedule);
		disk_cancel(&node->slots[i].pub);
	}
	for (unsigned i = 0; i < node->count; i++)
		abandoned |= must_abandon(&node->slots[i]);
	node->abandoned = abandoned;
	stop_all(node);
	return abandoned;
}

/* ---- finding -------------------------------------------------------------------------------- */

struct exports *node_exports(struct node *node)
{
	return node->exports;
}

struct env *node_env(struct node *node)
{
	return node->env;
}

const struct config *node_config(struct node *node)
{
	return node->config;
}

unsigned node_volume_count(struct node *node)
{
	return node->count;
}

struct node_volume *node_volume(struct node *node, unsigned index)
{
	assert(index < node->count);
	return &node->slots[index].pub;
}

struct node_volume *node_find(struct node *node, const char *name)
{
	for (unsigned i = 0; i < node->count; i++)
		if (strcmp(node->slots[i].pub.config->name, name) == 0)
			return &node->slots[i].pub;
	return NULL;
}

struct block *node_find_block(void *context, const char *export_name)
{
	struct node *node = context;
	struct node_volume *v = NULL;

	if (export_name[0] != '\0')
		v = node_find(node, export_name);
	else if (node->count == 1)
		v = node_volume(node, 0);
	return v && v->volume ? volume_block(v->volume) : NULL;
}

const char *node_peer_addr(struct node *node)
{
	return peering_door_addr(node->door);
}

/* ---- options --------------------------------------------------------------------------------- */

int node_set_options(struct node_volume *v, const struct node_option *options, unsigned count,
		     char *why, size_t why_size)
{
	struct config_volume changed = slot_of(v)->config;
	char reason[512];

	for (unsigned i = 0; i < count; i++)
		if (!config_volume_set(&changed, options[i].name, options[i].value, reason,
				       sizeof(reason))) {
			snprintf(why, why_size, "volume %s: %s", v->config->name, reason);
			return -EINVAL;
		}
	slot_of(v)->config = changed;
	peering_set_options(v->peering);
	storage_set_options(v->storage);
	if (v->volume)
		volume_set_hydrate_rate(v->volume, v->config->hydrate_rate_bytes,
					v->config->hydrate_timeout_ns);
	for (unsigned i = 0; i < count; i++)
		env_log(v->node->env, ENV_LOG_INFO, "volume %s: %s = %s until the next start",
			v->config->name, options[i].name, options[i].value);
	return 0;
}

void node_check(struct node *node)
{
	for (unsigned i = 0; i < node->count; i++) {
		struct node_volume *v = &node->slots[i].pub;

		if (v->volume)
			volume_check(v->volume);
		if (v->replication)
			replication_check(v->replication);
		if (v->writer)
			snapshot_check(v->writer);
		assert(v->busy == NULL || v->job);
	}
}
