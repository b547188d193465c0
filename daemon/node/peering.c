// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/peering.h"

#include <errno.h>
#include <stdlib.h>

#include "daemon/node/refusal.h"
#include "daemon/node/resolve.h"
#include "daemon/node/schedule.h"
#include "daemon/node/storage.h"

struct peering_door {
	struct tls_context *tls;
	struct replication_listener *listener;
};

struct peering {
	struct node_volume *volume;
	struct tls_context *tls;      /* looks for this volume's peer-name */
	struct replication *recovery; /* without a peer: finishes what its staging log holds */
	void (*closed)(void *context);
	void *closed_context;
};

/* ---- who is let in -------------------------------------------------------------------------------- */

static bool is_proved(const struct config_node *c)
{
	return !c->peer_plaintext && (c->psk_file || c->tls_cert);
}

static bool is_proved_by_certificate(const struct config_node *c)
{
	return is_proved(c) && !c->psk_file;
}

/* A pre-shared key is proof enough of both sides; certificates are then for NBD clients. */
static struct tls_config proof_of(const struct config_node *c, enum tls_role role)
{
	struct tls_config tls = {.role = role, .psk_file = c->psk_file, .tls13_only = true};

	if (is_proved_by_certificate(c)) {
		tls.cert_file = c->tls_cert;
		tls.key_file = c->tls_key;
		tls.ca_file = c->tls_ca;
	}
	return tls;
}

static struct replication *find_replication(void *context, const char *volume_name)
{
	struct node_volume *v = node_find(context, volume_name);

	return v ? v->replication : NULL;
}

int peering_door_open(struct node *node, struct peering_door **out, char *why, size_t why_size)
{
	const struct config_node *c = &node_config(node)->node;
	/* Which name it has to bear is asked when the volume is known. */
	struct tls_config tls = proof_of(c, TLS_SERVER);
	struct peering_door *door = calloc(1, sizeof(*door));
	int error = 0;

	if (!door)
		return node_fail(-ENOMEM, why, why_size, "out of memory");
	if (is_proved(c))
		error = tls_context_new(&tls, &door->tls, why, why_size);
	if (!error && c->peer_listen)
		error = replication_listen(node_env(node), c->peer_listen, door->tls,
					   find_replication, node, &door->listener, why, why_size);
	if (error) {
		peering_door_free(door);
		return error;
	}
	*out = door;
	return 0;
}

void peering_door_close(struct peering_door *door)
{
	if (door->listener)
		replication_listener_free(door->listener);
	door->listener = NULL;
}

void peering_door_free(struct peering_door *door)
{
	if (!door)
		return;
	peering_door_close(door);
	tls_context_free(door->tls);
	free(door);
}

const char *peering_door_addr(const struct peering_door *door)
{
	return door->listener ? replication_listener_addr(door->listener) : NULL;
}

/* ---- a volume's side ------------------------------------------------------------------------------ */

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

static void get_pace(const struct config_volume *c, struct pace_options *pace)
{
	*pace = (struct pace_options){
		.bound = {.max_bytes = c->max_lag_bytes,
			  .max_ns = c->max_lag_ns,
			  .action = (enum pace_action)c->max_lag_action},
		.stream = c->stream_rate,
		.catch_up = c->catch_up_rate,
		.latency_percent = c->latency_percent,
		.min_rate = c->catch_up_min_rate,
	};
}

/* Whether the volume may become secondary without anybody's asking, clients aside. */
static bool no_job_runs(void *context)
{
	const struct node_volume *v = context;

	return !v->busy && !storage_is_writing(v);
}

static void configure(const struct peering *p, bool alone, struct replication_config *config)
{
	struct node_volume *v = p->volume;
	const struct config_volume *c = v->config;
	const struct config_node *node = &node_config(v->node)->node;

	*config = (struct replication_config){
		.node_name = node->name,
		.peer_addr = c->peer,
		.protocol = protocol_of(c->protocol),
		.tls_client = p->tls,
		.peer_cert_name = is_proved_by_certificate(node) ? c->peer_name : NULL,
		.staging_max_bytes = c->staging_max_bytes,
		.send_queue_max_bytes = c->send_queue_max_bytes,
		.final_cut_max_bytes = c->final_cut_max_bytes,
		.verify_rate = c->verify_rate_bytes,
		.suspend_on_loss = c->suspend_on_loss,
		.peer_timeout_ms = c->peer_timeout_s * 1000,
		.ping_interval_ms = c->peer_timeout_s * 1000 / 3,
		.start_wait_ms = alone ? 0 : (unsigned)(c->start_wait_ns / 1000000),
		.vacant = no_job_runs,
		.vacant_context = v,
		.after_sb_0pri = (enum hello_after_sb_0pri)c->after_sb_0pri,
		.after_sb_1pri = (enum hello_after_sb_1pri)c->after_sb_1pri,
		.give_up = resolve_by_policy,
		.give_up_context = v,
		.split_over = schedule_split_over,
		.split_over_context = v,
	};
	get_pace(c, &config->pace);
}

int peering_new(struct node_volume *v, struct peering **out, char *why, size_t why_size)
{
	const struct config_node *c = &node_config(v->node)->node;
	struct tls_config tls = proof_of(c, TLS_CLIENT);
	struct peering *p = calloc(1, sizeof(*p));
	int error = 0;

	if (!p)
		return node_fail(-ENOMEM, why, why_size, "out of memory");
	p->volume = v;
	tls.verify_name = is_proved_by_certificate(c) ? v->config->peer_name : NULL;
	if (is_proved(c) && v->config->peer)
		error = tls_context_new(&tls, &p->tls, why, why_size);
	if (error) {
		peering_free(p);
		return error;
	}
	*out = p;
	return 0;
}

void peering_free(struct peering *p)
{
	if (!p)
		return;
	tls_context_free(p->tls);
	free(p);
}

/* Without a peer in the config a secondary still needs it: a cut that was half applied when the daemon
 * ended is known from the staging log alone. */
int peering_open(struct peering *p, char *why, size_t why_size)
{
	struct node_volume *v = p->volume;
	bool alone = !v->config->peer && !node_config(v->node)->node.peer_listen;
	struct replication_config config;
	struct volume_state state;

	volume_get_state(v->volume, &state);
	if (alone && state.role == VOLUME_PRIMARY)
		return 0;
	configure(p, alone, &config);
	/* The peer keeps what it has until this disk is whole. */
	return replication_new(v->volume, &config, !alone && !volume_source(v->volume, NULL),
			       alone ? &p->recovery : &v->replication, why, why_size);
}

static void replication_freed(void *context)
{
	struct peering *p = context;

	p->volume->replication = NULL;
	p->recovery = NULL;
	p->closed(p->closed_context);
}

void peering_close(struct peering *p, void (*closed)(void *context), void *context)
{
	struct replication *replication =
		p->volume->replication ? p->volume->replication : p->recovery;

	p->closed = closed;
	p->closed_context = context;
	if (replication)
		replication_free(replication, replication_freed, p);
	else
		replication_freed(p);
}

void peering_set_options(struct peering *p)
{
	const struct node_volume *v = p->volume;
	struct pace_options pace;

	if (!v->replication)
		return;
	get_pace(v->config, &pace);
	replication_set_protocol(v->replication, protocol_of(v->config->protocol));
	replication_set_pace(v->replication, &pace);
}

/* ---- how it stands -------------------------------------------------------------------------------- */

bool peering_is_applying(const struct node_volume *v)
{
	return (v->replication && replication_applying(v->replication)) ||
	       (v->peering->recovery && replication_applying(v->peering->recovery));
}

void peering_get_status(const struct node_volume *v, struct replication_status *status)
{
	*status = (struct replication_status){.state = REPLICATION_STANDALONE};
	if (v->replication)
		replication_get_status(v->replication, status);
}

bool peering_is_connected(const struct replication_status *status)
{
	return status->state == REPLICATION_IDLE || status->state == REPLICATION_CATCH_UP ||
	       status->state == REPLICATION_STREAMING;
}
