// SPDX-License-Identifier: Apache-2.0
/*
 * roles: the endpoints around who is primary: promote, demote, resume, and
 * the dry run of connect. A promotion may wait for its
 * fence, a demotion for clients to be gone and for the peer to have everything.
 */
#include "daemon/control/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/control/render.h"

#define VERB_WAIT_NS 10000000000ull /* for what passes by itself */

enum control_outcome roles_post_resume(struct control *control, struct control_request *request)
{
	struct node_volume *volume = api_find_replicated(control, request);
	char why[512] = "";
	int error;

	if (!volume || !BODY_UNPACK(control, request, "{}"))
		return CONTROL_ANSWERED;
	error = replication_resume(volume->replication, why, sizeof(why));
	return api_answer_verb(control, request, volume, error, why);
}

struct dry_run {
	struct control *control;
	struct control_request *request;
};

static json_t *render_plan(const struct replication_plan *plan)
{
	static const char *const directions[] = {NULL, "to-peer", "from-peer"};
	const char *direction = directions[plan->direction];
	json_t *json = json_object();

	json_object_set_new(json, "connected", json_boolean(plan->connected));
	json_object_set_new(json, "peer", render_text(plan->peer_name));
	json_object_set_new(json, "decision", render_text(plan->decision));
	json_object_set_new(json, "refused", json_boolean(plan->refused));
	json_object_set_new(json, "direction", direction ? json_string(direction) : json_null());
	json_object_set_new(json, "full", json_boolean(plan->full));
	json_object_set_new(json, "bytes", json_integer((json_int_t)plan->bytes));
	json_object_set_new(json, "rate_bytes",
			    plan->rate_bytes ? json_integer((json_int_t)plan->rate_bytes)
					     : json_null());
	json_object_set_new(json, "seconds",
			    plan->rate_bytes
				    ? json_real((double)plan->bytes / (double)plan->rate_bytes)
				    : json_null());
	return json;
}

static void planned(void *context, int error, const char *why, const struct replication_plan *plan)
{
	struct dry_run *d = context;

	if (error)
		control_refuse(d->control, d->request, http_status_of(error), "%s",
			       why[0] ? why : strerror(-error));
	else
		control_answer(d->control, d->request, 200, render_plan(plan));
	control_operation_done(d->control);
	free(d);
}

enum control_outcome roles_dry_run(struct control *control, struct control_request *request,
				   struct node_volume *volume)
{
	struct dry_run *d = malloc(sizeof(*d));

	if (!d) {
		control_refuse(control, request, 500, "out of memory");
		return CONTROL_ANSWERED;
	}
	*d = (struct dry_run){control, request};
	control->operations++;
	replication_plan(volume->replication, planned, d);
	return CONTROL_PENDING;
}

struct promoting {
	struct control *control;
	struct control_request *request;
	struct node_volume *volume;
};

static void promoted(void *context, int error, const char *why)
{
	struct promoting *p = context;

	if (error == -EAGAIN && env_now_ns(p->control->env) < p->request->deadline_ns)
		control_hold(p->control, p->request);
	else
		api_answer_verb(p->control, p->request, p->volume, error, why);
	control_operation_done(p->control);
	free(p);
}

enum control_outcome roles_post_promote(struct control *control, struct control_request *request)
{
	struct node_volume *volume = api_find_open(control, request);
	int force = 0, no_fence = 0;
	struct promoting *p;

	if (!volume ||
	    !BODY_UNPACK(control, request, "{s?b, s?b}", "force", &force, "no_fence", &no_fence))
		return CONTROL_ANSWERED;
	if (!request->deadline_ns)
		request->deadline_ns = env_now_ns(control->env) + VERB_WAIT_NS;
	p = calloc(1, sizeof(*p));
	if (!p) {
		control_refuse(control, request, 500, "out of memory");
		return CONTROL_ANSWERED;
	}
	*p = (struct promoting){control, request, volume};
	control->operations++;
	node_promote_start(volume, (force ? NODE_FORCE : 0) | (no_fence ? NODE_NO_FENCE : 0),
			   promoted, p);
	return CONTROL_PENDING;
}

/* Requests that wait for the peer would keep their connections from closing. */
static void send_clients_away(struct control *control, struct node_volume *volume)
{
	if (volume_suspended(volume->volume))
		volume_fail_held(volume->volume, -EIO);
	if (control->nbd)
		nbd_server_drop(control->nbd, volume_block(volume->volume));
}

static void detached(void *context, int error, const char *why, const char *device)
{
	/* A refusal comes from inside the request's handling, which would go round and round. */
	if (!error)
		control_wake(context);
}

static enum control_outcome demote_refused(struct control *control, struct control_request *request,
					   const struct node_volume *volume, int error,
					   const char *why)
{
	char clients[256] = "";

	if (error == -EBUSY && control->nbd)
		nbd_server_clients(control->nbd, volume_block(volume->volume), clients,
				   sizeof(clients));
	const char *device =
		control->attach ? attach_device(control->attach, volume->config->name) : NULL;

	if (device && error == -EBUSY) {
		watch_compare(control->watch);
		control_refuse(control, request, 409,
			       "volume %s: is attached as %s: unmount it, then offsite detach %s; "
			       "--force fails its I/O",
			       volume->config->name, device, volume->config->name);
		return CONTROL_ANSWERED;
	}
	if (!clients[0])
		return api_answer_verb(control, request, volume, error, why);
	watch_compare(control->watch);
	control_refuse(control, request, 409, "%s: %s; --force disconnects them", why, clients);
	return CONTROL_ANSWERED;
}

enum control_outcome roles_post_demote(struct control *control, struct control_request *request)
{
	struct node_volume *volume = api_find_open(control, request);
	uint64_t now_ns = env_now_ns(control->env);
	char why[512] = "";
	int force = 0, error;

	if (!volume || !BODY_UNPACK(control, request, "{s?b}", "force", &force))
		return CONTROL_ANSWERED;
	if (!request->deadline_ns)
		request->deadline_ns = now_ns + VERB_WAIT_NS;
	error = node_demote(volume, why, sizeof(why));
	if (error == -EBUSY && force) {
		/* First: a device that loses its sockets would be given new ones. */
		if (control->attach)
			attach_detach(control->attach, volume->config->name, true, detached,
				      control);
		send_clients_away(control, volume);
	}
	if ((error == -EAGAIN || (error == -EBUSY && force)) && now_ns < request->deadline_ns)
		return CONTROL_WAIT;
	if (error)
		return demote_refused(control, request, volume, error, why);
	return api_answer_verb(control, request, volume, 0, "");
}
