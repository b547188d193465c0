// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/exports.h"
#include "daemon/node/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/node/moment.h"
#include "daemon/node/proof.h"

#define NS_PER_S        1000000000ull
#define WATCH_PERIOD_NS (5 * NS_PER_S)
#define STORE_IDLE_NS   10000000ull
/* A snapshot that was due before the start: its volume, and its peer, come first. */
#define OVERDUE_WAIT_NS (10 * NS_PER_S)
/* The first one of a volume, which may be about to be filled. */
#define FIRST_WAIT_NS (300 * NS_PER_S)
/* One that could not be taken when it was due is tried again after an eighth of the interval, this at least. */
#define RETRY_WAIT_NS (60 * NS_PER_S)

/* One per volume, so that every callback finds its way with the node_volume alone. */
struct volume_slot {
	struct node_volume pub;
	struct config_volume config;      /* as now; its texts are the given config's */
	struct id128 repo_uuid;           /* the volume's uuid when repo was made */
	struct snapshot_repo *retired[4]; /* repos of uuids the volume had before; freed at stop */
	struct id128 newest;              /* snapshot known here ... */
	uint64_t newest_at_ns;            /* ... since; or since the start */
	uint64_t schedule_ns;  /* env_now_ns() at which the first automatic one is due; 0: it was */
	bool split_over;       /* this primary survived a split brain, and took none since */
	bool after_split;      /* the one under way is taken for that */
	struct env_timer idle; /* a stop waits for what is under way in the store */
	struct env_timer watch;  /* opens a store that could not be opened; follows the uuid */
	struct env_work opening; /* under way while pub.store_opening */
	struct store *opened;    /* what it came to: a store, or NULL ... */
	char opening_why[256];   /* ... and why */
	struct tls_context *tls_client; /* looks for this volume's peer-name */
	char *state_dir;
	struct replication *recovery; /* without a peer: finishes what its staging log holds */
	bool writer_gone, replication_gone, volume_gone;
	node_done_fn job_done;
	void *job_context;
	void (*job_progress)(void *context, const struct snapshot_progress *progress);
};

struct node {
	struct env *env;
	const struct config *config;
	struct tls_context *tls_server;
	struct replication_listener *listener;
	struct exports *exports;
	struct volume_slot *slots;
	unsigned count;
	bool stopping;
	bool abandoned; /* stopped in the middle of a restore: nothing is freed any more */
	void (*stopped)(void *context);
	void *stopped_context;
};

static struct volume_slot *slot_of(struct node_volume *volume)
{
	return (struct volume_slot *)((char *)volume - offsetof(struct volume_slot, pub));
}

int node_fail(int error, char *why, size_t why_size, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why, why_size, format, args);
	va_end(args);
	return error;
}

/* ---- snapshots: store, repository, schedule ----------------------------------------------- */

static void retire_repo(struct volume_slot *slot)
{
	for (unsigned i = 0; i < 4; i++) {
		if (!slot->retired[i]) {
			slot->retired[i] = slot->pub.repo;
			slot->pub.repo = NULL;
			return;
		}
	}
}

static void writer_replaced(void *context)
{
	(void)context;
}

/* (Re)makes repository and writer: at start, when the store could be opened at last, and when the
 * volume took over its peer's uuid. */
static void open_repo(struct volume_slot *slot)
{
	struct node_volume *v = &slot->pub;
	struct volume_state state;

	volume_get_state(v->volume, &state);
	if (v->repo && id128_equal(&state.uuid, &slot->repo_uuid))
		return;
	if (v->writer)
		snapshot_writer_free(v->writer, writer_replaced, slot);
	v->writer = NULL;
	if (v->repo)
		retire_repo(slot);
	if (v->repo)
		return; /* uuids do not change that often; the next start sees the new one */

	struct snapshot_writer_config config = {
		.node_name = v->node->config->node.name,
		.zstd_level = v->config->compression_level,
		.policy = node_policy(v->config),
		.rate = v->config->snapshot_rate,
		.latency_percent = v->config->latency_percent,
		.min_rate = v->config->snapshot_min_rate,
		.lock = (enum store_lock)v->config->lock,
		.lock_for_ns = v->config->lock_for_ns,
		.repack = v->config->repack,
		.prepare = v->moment ? moment_prepare : NULL,
		.prepare_context = v->moment,
	};

	slot->repo_uuid = state.uuid;
	v->repo = snapshot_repo_new(v->store, &state.uuid);
	if (v->repo)
		v->writer = snapshot_writer_new(v->volume, v->repo, &config);
}

/* Whether somebody still looks into the store: a plan, a deletion that was asked for. */
static bool store_is_idle(const struct volume_slot *slot)
{
	for (unsigned i = 0; i < 4; i++)
		if (slot->retired[i] && !snapshot_repo_is_idle(slot->retired[i]))
			return false;
	return !slot->pub.repo || snapshot_repo_is_idle(slot->pub.repo);
}

static void close_store(struct volume_slot *slot)
{
	for (unsigned i = 0; i < 4; i++)
		snapshot_repo_free(slot->retired[i]);
	if (slot->pub.repo)
		snapshot_repo_free(slot->pub.repo);
	slot->pub.repo = NULL;
	if (slot->pub.store)
		store_close(slot->pub.store);
	slot->pub.store = NULL;
}

static void finish_stop(struct node *node);
static void idle_fire(struct env_timer *timer);

/* On a helper thread: opening may hang for as long as NFS does. */
static void opening_run(struct env_work *work)
{
	struct volume_slot *slot =
		(struct volume_slot *)((char *)work - offsetof(struct volume_slot, opening));

	const struct secret_source source = node_store_secret(slot->pub.config);

	if (crypt_store_open(slot->pub.node->env, slot->pub.config->store, &source, &slot->opened,
			     slot->opening_why, sizeof(slot->opening_why)))
		slot->opened = NULL;
}

static void opening_done(struct env_work *work)
{
	struct volume_slot *slot =
		(struct volume_slot *)((char *)work - offsetof(struct volume_slot, opening));
	struct node_volume *v = &slot->pub;

	v->store_opening = false;
	if (v->node->stopping) {
		store_close(slot->opened);
		if (slot->volume_gone)
			finish_stop(v->node);
	} else if (slot->opened) {
		v->store = slot->opened;
		v->store->list_lag_ns = v->config->store_list_lag_ns;
		v->store_error[0] = '\0';
		open_repo(slot);
		instant_look(v);
	} else {
		if (strcmp(slot->opening_why, v->store_error) != 0)
			env_log(v->node->env, ENV_LOG_ERROR, "volume %s: %s", v->config->name,
				slot->opening_why);
		memcpy(v->store_error, slot->opening_why, sizeof(v->store_error));
	}
}

static void open_store(struct volume_slot *slot)
{
	struct node_volume *v = &slot->pub;

	if (!v->config->store || !v->volume || v->store_opening)
		return;
	if (v->store) {
		open_repo(slot);
		return;
	}
	v->store_opening = true;
	slot->opening.run = opening_run;
	slot->opening.done = opening_done;
	env_work_submit(v->node->env, &slot->opening);
}

/* Whoever writes it, its id becomes known here. */
static void look_for_newer(struct volume_slot *slot)
{
	struct volume_state state;

	volume_get_state(slot->pub.volume, &state);
	if (id128_equal(&state.snapshot, &slot->newest))
		return;
	slot->newest = state.snapshot;
	slot->newest_at_ns = env_now_ns(slot->pub.node->env);
}

static void watch_fire(struct env_timer *timer)
{
	struct volume_slot *slot =
		(struct volume_slot *)((char *)timer - offsetof(struct volume_slot, watch));
	struct node_volume *v = &slot->pub;

	if (v->store_opening && !v->store_error[0]) {
		snprintf(v->store_error, sizeof(v->store_error), "store %.160s: does not answer",
			 v->config->store);
		env_log(v->node->env, ENV_LOG_ERROR, "volume %s: %s", v->config->name,
			v->store_error);
	}
	open_store(slot);
	look_for_newer(slot);
	instant_look(v);
	env_timer_start(v->node->env, timer, WATCH_PERIOD_NS);
}

static uint64_t retry_wait(const struct config_volume *c)
{
	uint64_t wait = c->snapshot_every_ns / 8;

	if (wait < RETRY_WAIT_NS)
		wait = RETRY_WAIT_NS;
	return wait < c->snapshot_every_ns ? wait : c->snapshot_every_ns;
}

static void scheduled_done(void *context, const struct snapshot_result *result)
{
	struct volume_slot *slot = context;
	struct node_volume *v = &slot->pub;

	slot->split_over = slot->split_over || (result->error && slot->after_split);
	slot->after_split = false;
	if (!result->error)
		return;
	env_log(v->node->env, ENV_LOG_ERROR, "volume %s: scheduled snapshot: %s", v->config->name,
		result->why);
	if (!v->node->stopping)
		env_timer_start(v->node->env, &v->schedule, retry_wait(v->config));
}

/* Whether the automatic snapshot is this node's to take. A primary whose secondary should, but did not
 * within two intervals, steps in. */
static bool is_due_here(struct volume_slot *slot)
{
	const struct node_volume *v = &slot->pub;
	struct replication_status peer = {.state = REPLICATION_STANDALONE};
	struct volume_state state;

	look_for_newer(slot);
	volume_get_state(v->volume, &state);
	if (state.disk != VOLUME_DISK_UPTODATE || v->busy)
		return false;
	if (v->replication)
		replication_get_status(v->replication, &peer);
	if (state.role != VOLUME_PRIMARY)
		return v->config->snapshot_from_secondary && peer.state == REPLICATION_STREAMING;
	if (!v->config->snapshot_from_secondary || slot->split_over)
		return true;
	if (env_now_ns(v->node->env) - slot->newest_at_ns <
	    v->config->snapshot_every_ns * 3 / 2 + WATCH_PERIOD_NS)
		return false;
	env_log(v->node->env, ENV_LOG_WARNING,
		"volume %s: no snapshot from the secondary for two intervals: taken here",
		v->config->name);
	return true;
}

/* What is under way may be older than what the other took last. */
static bool must_wait(struct volume_slot *slot)
{
	struct snapshot_writer_status status = {};
	struct node_volume *v = &slot->pub;

	if (!slot->split_over)
		return false;
	if (v->writer)
		snapshot_writer_status(v->writer, &status);
	return v->busy || status.running;
}

static void schedule_fire(struct env_timer *timer)
{
	struct node_volume *v =
		(struct node_volume *)((char *)timer - offsetof(struct node_volume, schedule));

	slot_of(v)->schedule_ns = 0;
	if (must_wait(slot_of(v))) {
		env_timer_start(v->node->env, timer, OVERDUE_WAIT_NS);
		return;
	}
	/* What stands in its way may go soon: a catch-up, a long job, the other node's role. */
	env_timer_start(v->node->env, timer, retry_wait(v->config));
	if (!is_due_here(slot_of(v)))
		return;
	open_store(slot_of(v)); /* the uuid may have been taken over from the peer just now */
	if (!v->writer) {
		env_log(v->node->env, ENV_LOG_ERROR, "volume %s: scheduled snapshot: not taken: %s",
			v->config->name, node_store_why(v));
		return;
	}
	env_timer_start(v->node->env, timer, v->config->snapshot_every_ns);
	slot_of(v)->after_split = slot_of(v)->split_over;
	slot_of(v)->split_over = false;
	snapshot_create(v->writer, "", scheduled_done, slot_of(v));
}

static void schedule_start(struct volume_slot *slot, uint64_t delay_ns)
{
	slot->schedule_ns = env_now_ns(slot->pub.node->env) + delay_ns;
	env_timer_start(slot->pub.node->env, &slot->pub.schedule, delay_ns);
}

/* What the other took while it was apart may be the newest in the store, and be what was given up. So the
 * surviving primary takes one soon, which is newer than that. */
static void split_over(void *volume)
{
	struct node_volume *v = volume;
	struct volume_state state;

	volume_get_state(v->volume, &state);
	if (state.role != VOLUME_PRIMARY || !v->config->snapshot_every_ns || !v->config->store ||
	    v->node->stopping)
		return;
	slot_of(v)->split_over = true;
	schedule_start(slot_of(v), OVERDUE_WAIT_NS);
}

void node_saw_snapshot(struct node_volume *v, uint64_t created_ns)
{
	uint64_t every = v->config->snapshot_every_ns, now = env_realtime_ns(v->node->env);
	uint64_t delay = every;

	if (!slot_of(v)->schedule_ns || v->node->stopping)
		return;
	if (!created_ns || created_ns > now) /* none, or a clock was set back: nobody knows */
		delay = FIRST_WAIT_NS;
	else
		delay = now - created_ns < every ? every - (now - created_ns) : 0;
	if (delay < OVERDUE_WAIT_NS)
		delay = OVERDUE_WAIT_NS;
	/* Never later than without. */
	if (env_now_ns(v->node->env) + delay < slot_of(v)->schedule_ns)
		schedule_start(slot_of(v), delay);
}

/* ---- start ---------------------------------------------------------------------------------- */

static enum replication_protocol protocol_of(char letter)
{
	switch (letter) {
	case 'A':
		return REPLICATION_A;
	case 'B':
		return REPLICATION_B;
	default:
		return REPLICATION_C;
	}
}

static bool peers_by_certificate(const struct config_node *node)
{
	return !node->peer_plaintext && !node->psk_file && node->tls_cert;
}

/* Whether the volume may become secondary without anybody's asking, clients aside. */
static bool no_job_runs(void *context)
{
	const struct node_volume *v = context;
	struct snapshot_writer_status snapshot = {.running = false};

	if (v->writer)
		snapshot_writer_status(v->writer, &snapshot);
	return !v->busy && !snapshot.running;
}

static void get_pace(const struct node_volume *v, struct pace_options *pace)
{
	*pace = (struct pace_options){
		.bound = {.max_bytes = v->config->max_lag_bytes,
			  .max_ns = v->config->max_lag_ns,
			  .action = (enum pace_action)v->config->max_lag_action},
		.stream = v->config->stream_rate,
		.catch_up = v->config->catch_up_rate,
		.latency_percent = v->config->latency_percent,
		.min_rate = v->config->catch_up_min_rate,
	};
}

int node_set_options(struct node_volume *v, const struct node_option *options, unsigned count,
		     char *why, size_t why_size)
{
	struct config_volume changed = slot_of(v)->config;
	struct pace_options pace;
	char reason[512];

	for (unsigned i = 0; i < count; i++)
		if (!config_volume_set(&changed, options[i].name, options[i].value, reason,
				       sizeof(reason))) {
			snprintf(why, why_size, "volume %s: %s", v->config->name, reason);
			return -EINVAL;
		}
	slot_of(v)->config = changed;
	if (v->replication) {
		get_pace(v, &pace);
		replication_set_protocol(v->replication, protocol_of(v->config->protocol));
		replication_set_pace(v->replication, &pace);
	}
	if (v->writer) {
		snapshot_writer_set_rate(v->writer, &v->config->snapshot_rate);
		snapshot_writer_set_pace(v->writer, v->config->latency_percent,
					 v->config->snapshot_min_rate);
	}
	if (v->volume)
		volume_set_hydrate_rate(v->volume, v->config->hydrate_rate_bytes,
					v->config->hydrate_timeout_ns);
	for (unsigned i = 0; i < count; i++)
		env_log(v->node->env, ENV_LOG_INFO, "volume %s: %s = %s until the next start",
			v->config->name, options[i].name, options[i].value);
	return 0;
}

/* Without a peer in the config a secondary still needs it: a cut that was half applied when the daemon
 * ended is known from the staging log alone. */
static int open_replication(struct volume_slot *slot, char *why, size_t why_size)
{
	struct node_volume *v = &slot->pub;
	const struct config_node *node = &v->node->config->node;
	bool alone = !v->config->peer && !node->peer_listen;
	struct volume_state state;

	volume_get_state(v->volume, &state);
	if (alone && state.role == VOLUME_PRIMARY)
		return 0;

	struct replication_config config = {
		.node_name = node->name,
		.peer_addr = v->config->peer,
		.protocol = protocol_of(v->config->protocol),
		.tls_client = slot->tls_client,
		.peer_cert_name = peers_by_certificate(node) ? v->config->peer_name : NULL,
		.staging_max_bytes = v->config->staging_max_bytes,
		.send_queue_max_bytes = v->config->send_queue_max_bytes,
		.final_cut_max_bytes = v->config->final_cut_max_bytes,
		.verify_rate = v->config->verify_rate_bytes,
		.suspend_on_loss = v->config->suspend_on_loss,
		.peer_timeout_ms = v->config->peer_timeout_s * 1000,
		.ping_interval_ms = v->config->peer_timeout_s * 1000 / 3,
		.start_wait_ms = alone ? 0 : (unsigned)(v->config->start_wait_ns / 1000000),
		.vacant = no_job_runs,
		.vacant_context = v,
		.after_sb_0pri = (enum hello_after_sb_0pri)v->config->after_sb_0pri,
		.after_sb_1pri = (enum hello_after_sb_1pri)v->config->after_sb_1pri,
		.give_up = resolve_by_policy,
		.give_up_context = v,
		.split_over = split_over,
		.split_over_context = v,
	};
	get_pace(v, &config.pace);

	/* The peer keeps what it has until this disk is whole. */
	return replication_new(v->volume, &config, !alone && !volume_source(v->volume, NULL),
			       alone ? &slot->recovery : &v->replication, why, why_size);
}

static void volume_discarded(void *context)
{
	*(bool *)context = true;
}

static void open_volume(struct volume_slot *slot)
{
	struct node_volume *v = &slot->pub;
	struct node *node = v->node;
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
	};
	int error = volume_open(node->env, &config, &v->volume, v->error, sizeof(v->error));

	if (!error) {
		error = open_replication(slot, v->error, sizeof(v->error));
		if (error) {
			bool closed = false;

			volume_close(v->volume, volume_discarded, &closed);
			env_run_until(node->env, &closed);
		}
	}
	if (error) {
		v->volume = NULL;
		env_log(node->env, ENV_LOG_ERROR, "volume %s: not available: %s", c->name,
			v->error);
		return;
	}
	v->moment = moment_new(v);
	v->proof_state = proof_new(v);
	look_for_newer(slot);
	slot->newest_at_ns = env_now_ns(node->env);
	open_store(slot);
	slot->watch.fire = watch_fire;
	slot->idle.fire = idle_fire;
	v->schedule.fire = schedule_fire;
	if (c->store)
		env_timer_start(node->env, &slot->watch, WATCH_PERIOD_NS);
	if (c->store && c->snapshot_every_ns)
		schedule_start(slot, c->snapshot_every_ns);
}

static int open_tls(struct node *node, char *why, size_t why_size)
{
	const struct config_node *c = &node->config->node;
	struct tls_config tls = {
		.cert_file = c->tls_cert,
		.key_file = c->tls_key,
		.ca_file = c->tls_ca,
		.psk_file = c->psk_file,
		.tls13_only = true,
	};
	int error = 0;

	if (c->peer_plaintext || (!c->psk_file && !c->tls_cert))
		return 0;
	/* A pre-shared key is proof enough of both sides; certificates are then for NBD clients. */
	if (c->psk_file)
		tls.cert_file = tls.key_file = tls.ca_file = NULL;
	tls.role = TLS_CLIENT;
	for (unsigned i = 0; i < node->count && !error; i++) {
		const struct config_volume *volume = node->slots[i].pub.config;

		tls.verify_name = peers_by_certificate(c) ? volume->peer_name : NULL;
		if (volume->peer)
			error = tls_context_new(&tls, &node->slots[i].tls_client, why, why_size);
	}
	if (error)
		return error;
	tls.role = TLS_SERVER;
	tls.verify_name = NULL; /* asked when the volume is known */
	return tls_context_new(&tls, &node->tls_server, why, why_size);
}

static struct replication *find_replication(void *context, const char *volume_name)
{
	struct node_volume *v = node_find(context, volume_name);

	return v ? v->replication : NULL;
}

static void free_node(struct node *node)
{
	for (unsigned i = 0; i < node->count; i++) {
		free(node->slots[i].state_dir);
		tls_context_free(node->slots[i].tls_client);
	}
	tls_context_free(node->tls_server);
	exports_free(node->exports);
	free(node->slots);
	free(node);
}

static void exports_gone(void *context);

static int make_slots(struct node *node)
{
	const struct config *config = node->config;

	node->slots = calloc(config->volume_count ? config->volume_count : 1, sizeof(*node->slots));
	if (!node->slots)
		return -ENOMEM;
	node->exports = exports_new(node, exports_gone, node);
	if (!node->exports)
		return -ENOMEM;
	node->count = config->volume_count;
	for (unsigned i = 0; i < node->count; i++) {
		struct volume_slot *slot = &node->slots[i];

		slot->pub.node = node;
		slot->config = config->volumes[i];
		slot->pub.config = &slot->config;
		if (asprintf(&slot->state_dir, "%s/%s", config->node.state_dir,
			     config->volumes[i].name) < 0) {
			slot->state_dir = NULL;
			return -ENOMEM;
		}
	}
	return 0;
}

int node_start(struct env *env, const struct config *config, struct node **out, char *why,
	       size_t why_size)
{
	struct node *node = calloc(1, sizeof(*node));
	int error;

	if (!node)
		return node_fail(-ENOMEM, why, why_size, "out of memory");
	node->env = env;
	node->config = config;
	error = make_slots(node);
	if (error) {
		node_fail(error, why, why_size, "out of memory");
		goto fail_node;
	}
	error = env_mkdir(env, config->node.state_dir);
	if (error) {
		node_fail(error, why, why_size, "state-dir %s: %s", config->node.state_dir,
			  strerror(-error));
		goto fail_node;
	}
	error = open_tls(node, why, why_size);
	if (error)
		goto fail_node;
	if (config->node.peer_listen) {
		error = replication_listen(env, config->node.peer_listen, node->tls_server,
					   find_replication, node, &node->listener, why, why_size);
		if (error)
			goto fail_node;
	}
	for (unsigned i = 0; i < node->count; i++)
		open_volume(&node->slots[i]);
	*out = node;
	return 0;

fail_node:
	free_node(node);
	return error;
}

/* ---- stop ----------------------------------------------------------------------------------- */

static void stop_next(struct volume_slot *slot);

static void writer_freed(void *context)
{
	struct volume_slot *slot = context;

	slot->writer_gone = true;
	slot->pub.writer = NULL;
	stop_next(slot);
}

static void replication_freed(void *context)
{
	struct volume_slot *slot = context;

	slot->replication_gone = true;
	slot->pub.replication = NULL;
	slot->recovery = NULL;
	stop_next(slot);
}

static void volume_closed(void *context)
{
	struct volume_slot *slot = context;

	slot->volume_gone = true;
	slot->pub.volume = NULL;
	stop_next(slot);
}

static void finish_stop(struct node *node)
{
	for (unsigned i = 0; i < node->count; i++)
		if (!node->slots[i].volume_gone || node->slots[i].pub.store_opening)
			return;

	void (*stopped)(void *context) = node->stopped;
	void *context = node->stopped_context;

	if (!stopped)
		return; /* said already: only a node that was abandoned gets here twice */
	node->stopped = NULL;
	if (!node->abandoned)
		free_node(node);
	stopped(context);
}

/* Top down: what reads snapshots, the writer's cut, then the link, then the volume itself. */
static void stop_next(struct volume_slot *slot)
{
	struct node_volume *v = &slot->pub;

	if (!exports_idle(v->node->exports)) {
		if (v->store)
			store_stop(v->store);
	} else if (v->promotion) {
		roles_cancel(v);
	} else if (!moment_stop(v->moment)) {
		return; /* it comes here again */
	} else if (!proof_stop(v->proof_state)) {
		return; /* likewise */
	} else if (v->instant) {
		store_stop(v->store);
		instant_stop(v);
	} else if (!slot->writer_gone) {
		store_stop(v->store);
		if (v->writer)
			snapshot_writer_free(v->writer, writer_freed, slot);
		else
			writer_freed(slot);
	} else if (!slot->replication_gone) {
		if (v->replication || slot->recovery)
			replication_free(v->replication ? v->replication : slot->recovery,
					 replication_freed, slot);
		else
			replication_freed(slot);
	} else if (!store_is_idle(slot)) {
		/* The store is stopped: what is under way in it comes to its end. */
		env_timer_start(v->node->env, &slot->idle, STORE_IDLE_NS);
	} else if (!slot->volume_gone) {
		env_timer_stop(v->node->env, &slot->idle);
		close_store(slot);
		moment_free(v->moment);
		v->moment = NULL;
		if (!proof_is_restoring(v->proof_state))
			proof_free(v->proof_state);
		v->proof_state = NULL;
		if (v->volume)
			volume_close(v->volume, volume_closed, slot);
		else
			volume_closed(slot);
	} else {
		finish_stop(v->node);
	}
}

static void idle_fire(struct env_timer *timer)
{
	stop_next((struct volume_slot *)((char *)timer - offsetof(struct volume_slot, idle)));
}

static void exports_gone(void *context)
{
	struct node *node = context;
	struct volume_slot *slots = node->slots;
	unsigned count = node->count;

	/* The last slot's stop may free the node. */
	for (unsigned i = 0; node->stopping && i < count; i++)
		if (!slots[i].volume_gone)
			stop_next(&slots[i]);
}

void node_stop_stores(struct node *node)
{
	for (unsigned i = 0; i < node->count; i++)
		if (node->slots[i].pub.store)
			store_stop(node->slots[i].pub.store);
}

bool node_stop(struct node *node, void (*stopped)(void *context), void *context)
{
	node->stopping = true;
	exports_stop(node->exports);
	node->stopped = stopped;
	node->stopped_context = context;
	if (node->listener)
		replication_listener_free(node->listener);
	node->listener = NULL;
	if (node->count == 0) {
		finish_stop(node);
		return false;
	}

	/* The last slot's stop may free the node: not read after its call. */
	bool abandoned = false;
	unsigned count = node->count;
	struct volume_slot *slots = node->slots;

	for (unsigned i = 0; i < count; i++) {
		env_timer_stop(node->env, &slots[i].watch);
		env_timer_stop(node->env, &slots[i].pub.schedule);
		node_disk_cancel(&slots[i].pub);
	}
	for (unsigned i = 0; i < count; i++) {
		/* It cannot be called back either; the volume is closed in order all the same. */
		if (proof_is_restoring(slots[i].pub.proof_state))
			abandoned = node->abandoned = true;
		if (slots[i].pub.busy) {
			/* A restore cannot be called back, and it need not: the disk is marked
			 * inconsistent until it was run again. The process ends as in a crash. */
			env_log(node->env, ENV_LOG_WARNING,
				"volume %s: stopped during a %s; run it again after the next start",
				slots[i].pub.config->name, slots[i].pub.busy);
			abandoned = node->abandoned = true;
			slots[i].volume_gone = true;
		}
	}
	for (unsigned i = 0; i < count; i++)
		if (!slots[i].volume_gone)
			stop_next(&slots[i]);
	if (abandoned)
		finish_stop(node);
	return abandoned;
}

bool node_is_stopping(const struct node_volume *v)
{
	return v->node->stopping;
}

void node_stop_go_on(struct node_volume *v)
{
	if (v->node->stopping)
		stop_next(slot_of(v));
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
	return node->listener ? replication_listener_addr(node->listener) : NULL;
}

int node_check_usable(struct node_volume *v, char *why, size_t why_size)
{
	if (!v->volume)
		return node_fail(-ENODEV, why, why_size, "volume %s: not available: %s",
				 v->config->name, v->error);
	if (v->busy || v->promotion)
		return node_fail(-EBUSY, why, why_size, "volume %s: a %s is under way",
				 v->config->name, v->busy ? v->busy : "promotion");
	return 0;
}

bool node_is_applying(const struct node_volume *v)
{
	const struct volume_slot *slot =
		(const struct volume_slot *)((const char *)v - offsetof(struct volume_slot, pub));

	return (v->replication && replication_applying(v->replication)) ||
	       (slot->recovery && replication_applying(slot->recovery));
}

void node_open_store(struct node_volume *v)
{
	if (v->config->store)
		open_store(slot_of(v));
}

/* ---- restore -------------------------------------------------------------------------------- */

void node_job_finish(struct node_volume *v, int error, const char *why)
{
	struct volume_slot *slot = slot_of(v);
	node_done_fn done = slot->job_done;
	void *context = slot->job_context;

	slot->pub.busy = NULL;
	slot->job_done = NULL;
	done(context, error, why);
}

int node_job_begin(struct node_volume *v, const char *what, node_done_fn done, void *context,
		   char *why, size_t why_size)
{
	struct volume_slot *slot = slot_of(v);
	struct volume_stats stats;
	struct snapshot_writer_status snapshot = {.running = false};
	int error = node_check_usable(v, why, why_size);

	if (error)
		return error;
	volume_get_stats(v->volume, &stats);
	if (stats.clients > 0)
		return node_fail(-EBUSY, why, why_size,
				 "volume %s: clients have it open; detach them before a restore",
				 v->config->name);
	if (v->writer)
		snapshot_writer_status(v->writer, &snapshot);
	if (snapshot.running)
		return node_fail(-EBUSY, why, why_size, "volume %s: a snapshot is being taken",
				 v->config->name);
	v->busy = what;
	slot->job_done = done;
	slot->job_context = context;
	return 0;
}

static void restored(void *context, const struct snapshot_result *result)
{
	struct volume_slot *slot = context;
	struct node_volume *v = &slot->pub;
	char why[256];

	/* Even after a failure: the link then tells the peer that this disk is inconsistent. */
	if (v->replication && replication_connect(v->replication, why, sizeof(why)))
		env_log(v->node->env, ENV_LOG_WARNING, "volume %s: %s", v->config->name, why);
	else if (v->replication)
		/* Connected meanwhile it was left alone; and an older wish for the peer's content is void. */
		replication_role_changed(v->replication);
	node_job_finish(&slot->pub, result->error, result->why);
}

static void restore_progress(void *context, const struct snapshot_progress *progress)
{
	struct volume_slot *slot = context;

	if (slot->job_progress)
		slot->job_progress(slot->job_context, progress);
}

/* A secondary is restored on its own only if it has nothing to lose and no primary feeds it: the peer is
 * gone in the middle of a sync. It cannot be promoted as it is, so it becomes primary here; its disk stays
 * inconsistent, and so unserved, until the snapshot is there. */
static int restore_on_secondary(struct node_volume *v, struct volume_state *state, char *why,
				size_t why_size)
{
	struct replication_status peer = {.state = REPLICATION_STANDALONE};
	int error;

	if (v->replication)
		replication_get_status(v->replication, &peer);
	if ((state->disk != VOLUME_DISK_INCONSISTENT && state->disk != VOLUME_DISK_FAILED) ||
	    (node_is_connected(&peer) && peer.peer_role == VOLUME_PRIMARY))
		return node_fail(
			-EPERM, why, why_size,
			"volume %s: is secondary on this node; promote it first, or restore "
			"on the primary",
			v->config->name);
	state->role = VOLUME_PRIMARY;
	error = volume_set_state(v->volume, state);
	if (error)
		return node_fail(error, why, why_size, "volume %s: role not stored: %s",
				 v->config->name, strerror(-error));
	if (v->replication)
		replication_role_changed(v->replication);
	return 0;
}

int node_restore_prepare(struct node_volume *v, char *why, size_t why_size)
{
	struct volume_state state;
	int error;

	if (!v->repo)
		return node_fail(-ENODEV, why, why_size, "volume %s: %s", v->config->name,
				 node_store_why(v));
	volume_get_state(v->volume, &state);
	if (volume_leans(v->volume))
		return node_fail(-EPERM, why, why_size,
				 "volume %s: its content is at the peer; give it a disk first "
				 "(offsite replace-disk)",
				 v->config->name);
	if (state.role != VOLUME_PRIMARY) {
		error = restore_on_secondary(v, &state, why, why_size);
		if (error)
			return error;
	}
	if (state.disk == VOLUME_DISK_FAILED) {
		error = volume_replace_backing(v->volume, why, why_size);
		if (error)
			return error;
	}
	/* The peer keeps what it has until the new content is whole, and then catches up. */
	return v->replication ? replication_disconnect(v->replication, why, why_size) : 0;
}

static int restore_begin(struct node_volume *v, struct snapshot_target **target, char *why,
			 size_t why_size)
{
	int error = node_restore_prepare(v, why, why_size);

	if (!error)
		error = volume_hydrate_give_up(v->volume);
	if (error && !why[0])
		node_fail(error, why, why_size, "volume %s: %s", v->config->name, strerror(-error));
	return error ? error : snapshot_target_volume(v->volume, target, why, why_size);
}

void node_restore_snapshot(struct node_volume *v, const struct id128 *id,
			   void (*progress)(void *context, const struct snapshot_progress *p),
			   node_done_fn done, void *context)
{
	struct volume_slot *slot = slot_of(v);
	struct snapshot_target *target = NULL;
	char why[256] = "";
	int error = node_job_begin(v, "restore", done, context, why, sizeof(why));

	if (error) {
		done(context, error, why);
		return;
	}
	error = restore_begin(v, &target, why, sizeof(why));
	if (error) {
		node_job_finish(&slot->pub, error, why);
		return;
	}
	slot->job_progress = progress;
	snapshot_restore(v->repo, id, target, restore_progress, restored, slot);
}

/* The configured role comes back, unless the peer is at work as primary. */
static void synced_from_peer(void *context, int error, const char *why)
{
	struct volume_slot *slot = context;
	struct node_volume *v = &slot->pub;
	struct replication_status peer;
	char problem[256];

	v->busy = NULL;
	if (!error && v->config->primary) {
		replication_get_status(v->replication, &peer);
		if (peer.peer_role != VOLUME_PRIMARY &&
		    node_promote(v, false, problem, sizeof(problem)))
			env_log(v->node->env, ENV_LOG_WARNING, "volume %s: %s", v->config->name,
				problem);
	}
	node_job_finish(&slot->pub, error, why);
}

void node_restore_from_peer(struct node_volume *v, node_done_fn done, void *context)
{
	struct volume_slot *slot = slot_of(v);
	struct volume_state state;
	char why[256] = "";
	int error = node_job_begin(v, "restore from the peer", done, context, why, sizeof(why));

	if (error) {
		done(context, error, why);
		return;
	}
	volume_get_state(v->volume, &state);
	if (!v->replication)
		error = node_fail(-ENODEV, why, sizeof(why), "volume %s: no peer is configured",
				  v->config->name);
	if (!error && state.disk == VOLUME_DISK_FAILED) {
		error = volume_replace_backing(v->volume, why, sizeof(why));
		volume_get_state(v->volume, &state);
	}
	if (!error && state.role == VOLUME_PRIMARY) {
		/* As long as its content is not there again it must not count as primary. */
		state.role = VOLUME_SECONDARY;
		error = volume_set_state(v->volume, &state);
		if (error)
			node_fail(error, why, sizeof(why), "volume %s: role not stored: %s",
				  v->config->name, strerror(-error));
	}
	if (error) {
		node_job_finish(&slot->pub, error, why);
		return;
	}
	replication_restore_from_peer(v->replication, synced_from_peer, slot);
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
		assert(v->busy == NULL || node->slots[i].job_done || v->resolve);
	}
}
