// SPDX-License-Identifier: Apache-2.0
/*
 * api: the endpoints: one table of method, path and handler. Loop thread. docs/API.md describes
 * each; a change here is a change there.
 */
#include "daemon/control/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/config_values.h"
#include "daemon/control/render.h"

typedef enum control_outcome (*handler_fn)(struct control *control,
					   struct control_request *request);

#define SET_OPTIONS_MAX 32u

/* The volume named in the path, or NULL after answering 404. */
static struct node_volume *find_volume(struct control *control, struct control_request *request,
				       const char *name)
{
	struct node_volume *volume = node_find(control->node, name);

	if (!volume)
		control_refuse(control, request, 404, "volume %s: not configured on this node",
			       name);
	return volume;
}

static unsigned volume_index(struct control *control, const struct node_volume *volume)
{
	for (unsigned i = 0; i < node_volume_count(control->node); i++)
		if (node_volume(control->node, i) == volume)
			return i;
	abort();
}

bool api_body_unpack(struct control *control, struct control_request *request, const char *format,
		     ...)
{
	json_t *empty = json_object();
	json_error_t error;
	va_list arguments;
	int result;

	va_start(arguments, format);
	result = json_vunpack_ex(request->body ? request->body : empty, &error, JSON_STRICT, format,
				 arguments);
	va_end(arguments);
	json_decref(empty);
	if (result)
		control_refuse(control, request, 400, "body: %s", error.text);
	return !result;
}

/* ---- status ------------------------------------------------------------------------------------ */

static uint64_t resident_bytes(void)
{
	FILE *file = fopen("/proc/self/statm", "re");
	unsigned long long size = 0, resident = 0;

	if (!file)
		return 0;
	if (fscanf(file, "%llu %llu", &size, &resident) != 2)
		resident = 0;
	fclose(file);
	return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static json_t *render_nbd(struct control *control)
{
	struct nbd_server_stats stats;
	json_t *addresses = json_array();
	const char *address;

	if (!control->nbd)
		return json_null();
	for (unsigned i = 0; (address = nbd_server_addr(control->nbd, i)); i++)
		json_array_append_new(addresses, render_text(address));
	nbd_server_get_stats(control->nbd, &stats);
	return json_pack("{s:o, s:I, s:I, s:I, s:I, s:I, s:I}", "addresses", addresses,
			 "connections", (json_int_t)stats.connections, "connections_max",
			 (json_int_t)stats.connections_max, "accepted", (json_int_t)stats.accepted,
			 "refused", (json_int_t)stats.refused, "requests",
			 (json_int_t)stats.requests, "protocol_errors",
			 (json_int_t)stats.protocol_errors);
}

static json_t *render_node(struct control *control)
{
	const struct config *config = node_config(control->node);
	const char *peer_addr = node_peer_addr(control->node);
	uint64_t now_ns = env_now_ns(control->env);
	json_t *json = json_object();

	json_object_set_new(json, "version", json_string(OFFSITE_VERSION));
	json_object_set_new(json, "node", render_text(config->node.name));
	json_object_set_new(json, "pid", json_integer(getpid()));
	json_object_set_new(json, "instance", json_string(control->instance));
	json_object_set_new(json, "config", render_text(config->path ? config->path : ""));
	json_object_set_new(json, "io", json_string(env_backend_name(control->env)));
	json_object_set_new(json, "time", render_time(env_realtime_ns(control->env)));
	json_object_set_new(json, "uptime_seconds",
			    json_real((double)(now_ns - control->started_ns) / 1e9));
	json_object_set_new(json, "resident_bytes", json_integer((json_int_t)resident_bytes()));
	json_object_set_new(json, "nbd", render_nbd(control));
	json_object_set_new(json, "peer_listen", peer_addr ? render_text(peer_addr) : json_null());
	return json;
}

static enum control_outcome get_status(struct control *control, struct control_request *request)
{
	json_t *json, *volumes;

	if (request->volume[0] && !find_volume(control, request, request->volume))
		return CONTROL_ANSWERED;
	/* What an answer shows is an event to those who ask for events afterwards, however short it was. */
	watch_compare(control->watch);
	json = render_node(control);
	volumes = json_array();
	for (unsigned i = 0; i < node_volume_count(control->node); i++) {
		struct watch_sample sample;

		watch_take(control->watch, i, &sample);
		if (request->volume[0] && strcmp(request->volume, sample.volume->config->name))
			continue;
		json_t *volume = render_volume(&sample, env_now_ns(control->env),
					       env_realtime_ns(control->env));
		const char *device = control->attach ? attach_device(control->attach,
								     sample.volume->config->name)
						     : NULL;

		json_object_set_new(volume, "attached", device ? json_string(device) : json_null());
		json_array_append_new(volumes, volume);
	}
	json_object_set_new(json, "volumes", volumes);
	control_answer(control, request, 200, json);
	return CONTROL_ANSWERED;
}

static enum control_outcome get_metrics(struct control *control, struct control_request *request)
{
	unsigned count = node_volume_count(control->node);
	struct watch_sample *samples = calloc(count ? count : 1, sizeof(*samples));
	struct nbd_server_stats nbd;
	struct render_metrics metrics = {
		.node = node_config(control->node)->node.name,
		.backend = env_backend_name(control->env),
		.uptime_s = (double)(env_now_ns(control->env) - control->started_ns) / 1e9,
		.resident_bytes = resident_bytes(),
		.realtime_ns = env_realtime_ns(control->env),
		.samples = samples,
		.count = count,
	};

	if (!samples) {
		control_refuse(control, request, 500, "out of memory");
		return CONTROL_ANSWERED;
	}
	for (unsigned i = 0; i < count; i++)
		watch_take(control->watch, i, &samples[i]);
	for (int type = 0; type < JOB_TYPES; type++)
		metrics.jobs_running[type] = jobs_running(control->jobs, type);
	if (control->nbd) {
		nbd_server_get_stats(control->nbd, &nbd);
		metrics.nbd = &nbd;
	}
	request->text = render_metrics(&metrics);
	free(samples);
	if (request->text)
		control_answer(control, request, 200, NULL);
	else
		control_refuse(control, request, 500, "out of memory");
	return CONTROL_ANSWERED;
}

static enum control_outcome get_events(struct control *control, struct control_request *request)
{
	uint64_t newest;

	watch_compare(control->watch);
	newest = events_newest(control->events);
	/* A number from before a restart asks for all there is. */
	if (request->since > newest)
		request->since = 0;
	if (newest == request->since && !control_wait_over(control, request))
		return CONTROL_WAIT;
	control_answer(control, request, 200,
		       json_pack("{s:s, s:I, s:o}", "instance", control->instance, "next",
				 (json_int_t)newest, "events",
				 events_render(control->events, request->since)));
	return CONTROL_ANSWERED;
}

/* ---- verbs ------------------------------------------------------------------------------------- */

/* An open volume of the path with a peer, or NULL after answering. */
struct node_volume *api_find_replicated(struct control *control, struct control_request *request)
{
	struct node_volume *volume = find_volume(control, request, request->params[0]);

	if (!volume)
		return NULL;
	if (volume->replication)
		return volume;
	control_refuse(control, request, 409, "volume %s: %s%s", volume->config->name,
		       volume->volume ? "no peer is configured" : "not open: ",
		       volume->volume ? "" : volume->error);
	return NULL;
}

struct node_volume *api_find_open(struct control *control, struct control_request *request)
{
	struct node_volume *volume = find_volume(control, request, request->params[0]);

	if (volume && !volume->volume) {
		control_refuse(control, request, 409, "volume %s: not open: %s",
			       volume->config->name, volume->error);
		return NULL;
	}
	return volume;
}

/* The answer to a verb: what the volume looks like afterwards, or the reason it was refused. */
enum control_outcome api_answer_verb(struct control *control, struct control_request *request,
				     const struct node_volume *volume, int error, const char *why)
{
	struct watch_sample sample;

	watch_compare(control->watch);
	if (error) {
		control_refuse(control, request, http_status_of(error), "%s",
			       why[0] ? why : strerror(-error));
		return CONTROL_ANSWERED;
	}
	watch_take(control->watch, volume_index(control, volume), &sample);
	control_answer(
		control, request, 200,
		render_volume(&sample, env_now_ns(control->env), env_realtime_ns(control->env)));
	return CONTROL_ANSWERED;
}

static enum control_outcome post_connect(struct control *control, struct control_request *request)
{
	struct node_volume *volume = api_find_replicated(control, request);
	char why[512] = "";
	int dry_run = 0, error;

	if (!volume || !BODY_UNPACK(control, request, "{s?b}", "dry_run", &dry_run))
		return CONTROL_ANSWERED;
	if (dry_run)
		return roles_dry_run(control, request, volume);
	/* A restore keeps the peer away until the new content is whole. */
	if (volume->busy) {
		control_refuse(control, request, 409, "volume %s: a %s is under way",
			       volume->config->name, volume->busy);
		return CONTROL_ANSWERED;
	}
	if (volume_source(volume->volume, NULL)) {
		control_refuse(control, request, 409,
			       "volume %s: is being filled from a snapshot; it connects by itself "
			       "when it is whole",
			       volume->config->name);
		return CONTROL_ANSWERED;
	}
	error = replication_connect(volume->replication, why, sizeof(why));
	return api_answer_verb(control, request, volume, error, why);
}

static enum control_outcome post_disconnect(struct control *control,
					    struct control_request *request)
{
	struct node_volume *volume = api_find_replicated(control, request);
	char why[512] = "";
	int error;

	if (!volume || !BODY_UNPACK(control, request, "{}"))
		return CONTROL_ANSWERED;
	error = replication_disconnect(volume->replication, why, sizeof(why));
	return api_answer_verb(control, request, volume, error, why);
}

/* Options by their names in the config, as texts. */
static enum control_outcome post_set(struct control *control, struct control_request *request)
{
	struct node_volume *volume = api_find_open(control, request);
	struct node_option options[SET_OPTIONS_MAX];
	char why[512] = "";
	unsigned count = 0;
	const char *name;
	json_t *value;

	if (!volume)
		return CONTROL_ANSWERED;
	json_object_foreach(request->body, name, value)
	{
		if (!json_is_string(value) || count == SET_OPTIONS_MAX) {
			control_refuse(control, request, 400, "%s: %s", name,
				       count == SET_OPTIONS_MAX ? "too many options"
								: "the value is no text");
			return CONTROL_ANSWERED;
		}
		options[count++] = (struct node_option){name, json_string_value(value)};
	}
	if (!count) {
		control_refuse(control, request, 400, "body: no option is named");
		return CONTROL_ANSWERED;
	}
	int error = node_set_options(volume, options, count, why, sizeof(why));
	for (unsigned i = 0; i < count && !error; i++)
		events_add(control->events, env_realtime_ns(control->env), "options",
			   volume->config->name, "%s = %s until the next start", options[i].name,
			   options[i].value);
	return api_answer_verb(control, request, volume, error, why);
}

/* ---- jobs -------------------------------------------------------------------------------------- */

enum control_outcome api_start_job(struct control *control, struct control_request *request,
				   const struct job_order *order)
{
	char why[512] = "";
	struct job *job;
	int error;

	/* A deletion works in the node's own repository, so the node waits for it at its stop. It
	 * may end at once: count first. */
	if (order->type == JOB_SNAPSHOT_DELETE)
		control->operations++;
	job = jobs_start(control->jobs, order, &error, why, sizeof(why));
	if (!job) {
		if (order->type == JOB_SNAPSHOT_DELETE)
			control_operation_done(control);
		control_refuse(control, request, http_status_of(error), "%s",
			       why[0] ? why : strerror(-error));
		return CONTROL_ANSWERED;
	}
	if (job->state == JOB_RUNNING)
		events_add(control->events, job->started_ns, "job", job->volume_name,
			   "job %u (%s) started", job->id, job_type_name(job->type));
	control_answer(control, request, 202, render_job(job, env_now_ns(control->env)));
	return CONTROL_ANSWERED;
}

/* False, after answering, if text is no snapshot id. NULL stands for zero: the newest, or all. */
static bool parse_id(struct control *control, struct control_request *request, const char *text,
		     struct id128 *id)
{
	if (!text)
		return true;
	if (id128_parse(text, strlen(text), id) && !id128_is_zero(id))
		return true;
	control_refuse(control, request, 400,
		       "snapshot: '%s' is no snapshot id (32 hexadecimal digits)", text);
	return false;
}

bool api_store_awaited(struct control *control, struct control_request *request,
		       const struct node_volume *volume)
{
	if (!volume->store_opening)
		return false;
	if (!request->deadline_ns)
		request->wait_s = CONTROL_STORE_WAIT_S;
	return !control_wait_over(control, request);
}

static enum control_outcome post_snapshot(struct control *control, struct control_request *request)
{
	struct job_order order = {.type = JOB_SNAPSHOT_CREATE};
	const char *label = NULL;

	order.volume = find_volume(control, request, request->params[0]);
	if (!order.volume || !BODY_UNPACK(control, request, "{s?s}", "label", &label))
		return CONTROL_ANSWERED;
	if (label && strlen(label) >= SNAPSHOT_NAME_MAX) {
		control_refuse(control, request, 400, "label: longer than %u bytes",
			       SNAPSHOT_NAME_MAX - 1);
		return CONTROL_ANSWERED;
	}
	if (api_store_awaited(control, request, order.volume))
		return CONTROL_WAIT;
	order.label = label;
	return api_start_job(control, request, &order);
}

static enum control_outcome delete_snapshot(struct control *control,
					    struct control_request *request)
{
	struct job_order order = {.type = JOB_SNAPSHOT_DELETE};

	order.volume = find_volume(control, request, request->params[0]);
	if (!order.volume || !BODY_UNPACK(control, request, "{}") ||
	    !parse_id(control, request, request->params[1], &order.snapshot))
		return CONTROL_ANSWERED;
	if (api_store_awaited(control, request, order.volume))
		return CONTROL_WAIT;
	return api_start_job(control, request, &order);
}

static enum control_outcome post_verify_snapshots(struct control *control,
						  struct control_request *request)
{
	struct job_order order = {.type = JOB_SNAPSHOT_VERIFY};
	const char *id = NULL;
	int percent = 100;

	order.volume = find_volume(control, request, request->params[0]);
	if (!order.volume || !BODY_UNPACK(control, request, "{s?s, s?i}", "snapshot", &id,
					  "sample_percent", &percent))
		return CONTROL_ANSWERED;
	if (percent < 1 || percent > 100) {
		control_refuse(control, request, 400, "sample_percent: %d is not within 1 to 100",
			       percent);
		return CONTROL_ANSWERED;
	}
	order.sample_percent = (unsigned)percent;
	if (!parse_id(control, request, id, &order.snapshot))
		return CONTROL_ANSWERED;
	if (api_store_awaited(control, request, order.volume))
		return CONTROL_WAIT;
	return api_start_job(control, request, &order);
}

static enum control_outcome post_prove_snapshot(struct control *control,
						struct control_request *request)
{
	struct job_order order = {.type = JOB_SNAPSHOT_PROVE};
	const char *id = NULL;

	order.volume = find_volume(control, request, request->params[0]);
	if (!order.volume || !BODY_UNPACK(control, request, "{s?s}", "snapshot", &id) ||
	    !parse_id(control, request, id, &order.snapshot))
		return CONTROL_ANSWERED;
	if (api_store_awaited(control, request, order.volume))
		return CONTROL_WAIT;
	return api_start_job(control, request, &order);
}

static enum control_outcome post_replace_disk(struct control *control,
					      struct control_request *request)
{
	struct job_order order = {.type = JOB_REPLACE_DISK};

	order.volume = find_volume(control, request, request->params[0]);
	if (!order.volume || !BODY_UNPACK(control, request, "{}"))
		return CONTROL_ANSWERED;
	return api_start_job(control, request, &order);
}

static enum control_outcome post_restore(struct control *control, struct control_request *request)
{
	struct job_order order = {.type = JOB_RESTORE};
	const char *from = NULL, *id = NULL;
	const char *source = NULL;
	json_t *snapshot = NULL;
	int instant = 0, dry_run = 0;

	order.volume = find_volume(control, request, request->params[0]);
	if (!order.volume || !BODY_UNPACK(control, request, "{s?o, s?s, s?b, s?s, s?b}", "snapshot",
					  &snapshot, "from", &from, "instant", &instant, "volume",
					  &source, "dry_run", &dry_run))
		return CONTROL_ANSWERED;
	order.instant = instant;
	order.dry_run = dry_run;
	if ((from || !instant) && (source || (from && instant))) {
		control_refuse(control, request, 400, "%s",
			       from ? "from: not together with instant or volume"
				    : "volume: only together with instant");
		return CONTROL_ANSWERED;
	}
	if (source && (!id128_parse(source, strlen(source), &order.source_volume) ||
		       id128_is_zero(&order.source_volume))) {
		if (config_name_invalid(source)) {
			control_refuse(control, request, 400,
				       "volume: '%s' is neither a uuid (32 hexadecimal digits) "
				       "nor a volume's name",
				       source);
			return CONTROL_ANSWERED;
		}
		order.source_name = source;
	}
	if (snapshot && !json_is_null(snapshot) && !json_is_string(snapshot)) {
		control_refuse(control, request, 400, "snapshot: neither an id nor null");
		return CONTROL_ANSWERED;
	}
	id = json_string_value(snapshot);
	if (from && (strcmp(from, "peer") || snapshot)) {
		control_refuse(control, request, 400,
			       snapshot ? "from: not together with snapshot"
					: "from: only \"peer\" is known");
		return CONTROL_ANSWERED;
	}
	if (from)
		order.type = JOB_RESTORE_FROM_PEER;
	if (!parse_id(control, request, id, &order.snapshot))
		return CONTROL_ANSWERED;
	if (order.type == JOB_RESTORE && api_store_awaited(control, request, order.volume))
		return CONTROL_WAIT;
	return api_start_job(control, request, &order);
}

static enum control_outcome get_jobs(struct control *control, struct control_request *request)
{
	json_t *list = json_array();

	for (struct job *job = jobs_first(control->jobs); job; job = job->next)
		json_array_append_new(list, render_job(job, env_now_ns(control->env)));
	control_answer(control, request, 200, json_pack("{s:o}", "jobs", list));
	return CONTROL_ANSWERED;
}

static enum control_outcome get_job(struct control *control, struct control_request *request)
{
	const char *text = request->params[0];
	struct job *job = NULL;

	if (*text && strlen(text) < 10 && strspn(text, "0123456789") == strlen(text))
		job = jobs_find(control->jobs, (unsigned)strtoul(text, NULL, 10));
	if (!job) {
		control_refuse(control, request, 404,
			       "job %s: unknown (finished jobs are kept up "
			       "to %u)",
			       text, JOBS_FINISHED_KEPT);
		return CONTROL_ANSWERED;
	}
	if (job->state == JOB_RUNNING && !control_wait_over(control, request))
		return CONTROL_WAIT;
	control_answer(control, request, 200, render_job(job, env_now_ns(control->env)));
	return CONTROL_ANSWERED;
}

static enum control_outcome get_snapshots(struct control *control, struct control_request *request)
{
	struct node_volume *volume = api_find_open(control, request);
	char why[512] = "";
	int error;

	if (!volume)
		return CONTROL_ANSWERED;
	if (api_store_awaited(control, request, volume))
		return CONTROL_WAIT;
	error = listing_start(control, volume_index(control, volume), request, why, sizeof(why));
	if (!error)
		return CONTROL_PENDING;
	control_refuse(control, request, http_status_of(error), "%s", why);
	return CONTROL_ANSWERED;
}

/* ---- routes -------------------------------------------------------------------------------------- */

static const struct route {
	const char *method;
	const char *path; /* '*' stands for one component */
	handler_fn handler;
} routes[] = {
	{"GET", "/v1/status", get_status},
	{"GET", "/v1/events", get_events},
	{"GET", "/v1/jobs", get_jobs},
	{"GET", "/v1/jobs/*", get_job},
	{"POST", "/v1/volumes/*/connect", post_connect},
	{"POST", "/v1/volumes/*/disconnect", post_disconnect},
	{"POST", "/v1/volumes/*/promote", roles_post_promote},
	{"POST", "/v1/volumes/*/resume", roles_post_resume},
	{"POST", "/v1/volumes/*/demote", roles_post_demote},
	{"POST", "/v1/volumes/*/resize", resize_post},
	{"GET", "/v1/attached", attach_get_list},
	{"POST", "/v1/attach", attach_post},
	{"POST", "/v1/detach", attach_post_detach},
	{"GET", "/v1/volumes/*/changes", split_get_changes},
	{"POST", "/v1/volumes/*/resolve", split_post_resolve},
	{"POST", "/v1/volumes/*/verify", verify_post_start},
	{"POST", "/v1/volumes/*/verify-cancel", verify_post_cancel},
	{"POST", "/v1/volumes/*/set", post_set},
	{"GET", "/v1/volumes/*/snapshots", get_snapshots},
	{"POST", "/v1/volumes/*/snapshots", post_snapshot},
	{"DELETE", "/v1/volumes/*/snapshots/*", delete_snapshot},
	{"POST", "/v1/volumes/*/verify-snapshots", post_verify_snapshots},
	{"POST", "/v1/volumes/*/diff", diff_post},
	{"POST", "/v1/volumes/*/prove-snapshot", post_prove_snapshot},
	{"POST", "/v1/volumes/*/restore", post_restore},
	{"POST", "/v1/volumes/*/replace-disk", post_replace_disk},
	{"GET", "/metrics", get_metrics},
};

static bool match(const char *pattern, const char *path, struct control_request *request)
{
	unsigned params = 0;

	while (*pattern) {
		if (*pattern == '*') {
			size_t length = strcspn(path, "/");

			assert(params < CONTROL_PARAMS);
			if (!length || length >= sizeof(request->params[0]))
				return false;
			memcpy(request->params[params], path, length);
			request->params[params++][length] = 0;
			path += length;
			pattern++;
		} else if (*pattern++ != *path++) {
			return false;
		}
	}
	return !*path;
}

enum control_outcome api_handle(struct control *control, struct control_request *request)
{
	bool known = false;

	for (unsigned i = 0; i < sizeof(routes) / sizeof(routes[0]); i++) {
		if (!match(routes[i].path, request->path, request))
			continue;
		if (!strcmp(routes[i].method, request->method))
			return routes[i].handler(control, request);
		known = true;
	}
	if (known)
		control_refuse(control, request, 405, "%s %s: method not allowed", request->method,
			       request->path);
	else
		control_refuse(control, request, 404, "%s: no such thing in this API",
			       request->path);
	return CONTROL_ANSWERED;
}
