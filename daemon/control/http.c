// SPDX-License-Identifier: Apache-2.0
/*
 * http: the HTTP threads. One for each connection; each reads a request to its end, queues it for
 * the loop thread, sleeps, and writes the answer. They know nothing of volumes.
 *
 * Limits: CONTROL_CONNECTIONS_MAX connections, a body of CONTROL_BODY_MAX_BYTES, half a minute
 * without a byte while a request is being sent.
 */
#include "daemon/control/internal.h"

#include <errno.h>
#include <math.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/control/render.h"

#define SILENCE_MAX_S    30u
#define BODY_DISCARD_MAX (16u * CONTROL_BODY_MAX_BYTES)

/* What one HTTP thread keeps of its request between libmicrohttpd's calls. */
struct exchange {
	struct control_request request;
	size_t body_bytes; /* received in all; more than the maximum is thrown away */
	char body[CONTROL_BODY_MAX_BYTES];
};

unsigned http_status_of(int error)
{
	const char *code = render_code(error);

	if (!strcmp(code, "refused"))
		return 409;
	if (!strcmp(code, "missing"))
		return 404;
	if (!strcmp(code, "invalid"))
		return 400;
	return 500;
}

static enum MHD_Result send_text(struct MHD_Connection *connection, unsigned status, char *text,
				 const char *type)
{
	struct MHD_Response *response =
		MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE);
	enum MHD_Result result;

	if (!response) {
		free(text);
		return MHD_NO;
	}
	MHD_add_response_header(response, "Content-Type", type);
	MHD_add_response_header(response, "Cache-Control", "no-store");
	if (status == 405)
		MHD_add_response_header(response, "Allow", "GET, POST, DELETE");
	result = MHD_queue_response(connection, status, response);
	MHD_destroy_response(response);
	return result;
}

static enum MHD_Result send_json(struct MHD_Connection *connection, unsigned status, json_t *json)
{
	char *text = json ? json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
	char *line = NULL;

	json_decref(json);
	if (text && asprintf(&line, "%s\n", text) < 0)
		line = NULL;
	free(text);
	return line ? send_text(connection, status, line, "application/json") : MHD_NO;
}

static enum MHD_Result send_error(struct MHD_Connection *connection, unsigned status,
				  const char *text)
{
	return send_json(connection, status,
			 json_pack("{s:o, s:s}", "error", render_text(text), "code",
				   status == 503 ? "stopping" : "invalid"));
}

/* Decimal digits only; NULL gives 0. */
static bool parse_number(const char *text, uint64_t *value)
{
	char *end;

	*value = 0;
	if (!text)
		return true;
	if (!*text || strspn(text, "0123456789") != strlen(text) || strlen(text) > 18)
		return false;
	*value = strtoull(text, &end, 10);
	return !*end;
}

static bool parse_wait(const char *text, double *value)
{
	char *end;

	*value = 0;
	if (!text)
		return true;
	if (!*text || strspn(text, "0123456789.") != strlen(text) || strlen(text) > 18)
		return false;
	*value = strtod(text, &end);
	if (*end || !isfinite(*value))
		return false;
	if (*value > CONTROL_WAIT_MAX_S)
		*value = CONTROL_WAIT_MAX_S;
	return true;
}

/* NULL, or what is wrong with the arguments after '?'. */
static const char *arguments_invalid(struct MHD_Connection *connection,
				     struct control_request *request)
{
	const char *volume =
		MHD_lookup_connection_value(connection, MHD_GET_ARGUMENT_KIND, "volume");

	if (volume && strlen(volume) >= sizeof(request->volume))
		return "volume: name too long";
	if (volume)
		strcpy(request->volume, volume);
	if (!parse_number(MHD_lookup_connection_value(connection, MHD_GET_ARGUMENT_KIND, "since"),
			  &request->since))
		return "since: not a number";
	if (!parse_wait(MHD_lookup_connection_value(connection, MHD_GET_ARGUMENT_KIND, "wait"),
			&request->wait_s))
		return "wait: not a number of seconds";
	return NULL;
}

/* False, and the error sent, if the body is no JSON object. */
static bool parse_body(struct MHD_Connection *connection, struct exchange *exchange,
		       enum MHD_Result *result)
{
	json_error_t error;
	char text[256];

	if (!exchange->body_bytes)
		return true;
	exchange->request.body =
		json_loadb(exchange->body, exchange->body_bytes, JSON_REJECT_DUPLICATES, &error);
	if (json_is_object(exchange->request.body))
		return true;
	if (exchange->request.body)
		snprintf(text, sizeof(text), "body: not a JSON object");
	else
		snprintf(text, sizeof(text), "body: not JSON: line %d, column %d: %s", error.line,
			 error.column, error.text);
	*result = send_error(connection, 400, text);
	return false;
}

/* False if the daemon is stopping. */
static bool ask_loop(struct control *control, struct MHD_Connection *connection,
		     struct control_request *request)
{
	pthread_mutex_lock(&control->mutex);
	if (control->stopping) {
		pthread_mutex_unlock(&control->mutex);
		return false;
	}
	/* A long poll is silent for longer than a client may be: no clock runs meanwhile, and
	 * setting it afterwards starts it anew. */
	MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, 0u);
	request->next = NULL;
	*control->queue_tail = request;
	control->queue_tail = &request->next;
	env_post(control->env, &control->task);
	while (!request->done)
		pthread_cond_wait(&request->answered, &control->mutex);
	pthread_mutex_unlock(&control->mutex);
	MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, SILENCE_MAX_S);
	return true;
}

static enum MHD_Result finish(struct control *control, struct MHD_Connection *connection,
			      struct exchange *exchange)
{
	struct control_request *request = &exchange->request;
	const char *why = arguments_invalid(connection, request);
	enum MHD_Result result = MHD_NO;

	if (why)
		return send_error(connection, 400, why);
	if (exchange->body_bytes > CONTROL_BODY_MAX_BYTES)
		return send_error(connection, 413, "body: more than 64 KiB");
	if (!parse_body(connection, exchange, &result))
		return result;
	if (!ask_loop(control, connection, request))
		return send_error(connection, 503, "the daemon is stopping");
	if (request->text) {
		char *text = request->text;

		request->text = NULL;
		return send_text(connection, request->status, text,
				 "text/plain; version=0.0.4; charset=utf-8");
	}
	result = send_json(connection, request->status, request->json);
	request->json = NULL;
	return result;
}

/* The first call of a request: only its head is there. */
static enum MHD_Result begin(struct MHD_Connection *connection, const char *url, const char *method,
			     void **state)
{
	const char *length = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
							 MHD_HTTP_HEADER_CONTENT_LENGTH);
	struct exchange *exchange;

	if (strlen(url) >= CONTROL_PATH_MAX)
		return send_error(connection, 414, "path: too long");
	if (strlen(method) >= sizeof(exchange->request.method))
		return send_error(connection, 405, "method: unknown");
	if (length && strtoull(length, NULL, 10) > CONTROL_BODY_MAX_BYTES)
		return send_error(connection, 413, "body: more than 64 KiB");
	exchange = calloc(1, sizeof(*exchange));
	if (!exchange)
		return MHD_NO;
	strcpy(exchange->request.path, url);
	strcpy(exchange->request.method, method);
	pthread_cond_init(&exchange->request.answered, NULL);
	*state = exchange;
	return MHD_YES;
}

static enum MHD_Result handle(void *context, struct MHD_Connection *connection, const char *url,
			      const char *method, const char *version, const char *upload,
			      size_t *upload_bytes, void **state)
{
	struct exchange *exchange = *state;

	if (!exchange)
		return begin(connection, url, method, state);
	if (!*upload_bytes)
		return finish(context, connection, exchange);
	if (exchange->body_bytes + *upload_bytes <= CONTROL_BODY_MAX_BYTES)
		memcpy(exchange->body + exchange->body_bytes, upload, *upload_bytes);
	exchange->body_bytes += *upload_bytes;
	*upload_bytes = 0;
	return exchange->body_bytes <= BODY_DISCARD_MAX ? MHD_YES : MHD_NO;
}

static void completed(void *context, struct MHD_Connection *connection, void **state,
		      enum MHD_RequestTerminationCode code)
{
	struct exchange *exchange = *state;

	if (!exchange)
		return;
	json_decref(exchange->request.body);
	json_decref(exchange->request.json);
	free(exchange->request.text);
	pthread_cond_destroy(&exchange->request.answered);
	free(exchange);
	*state = NULL;
}

int http_start(struct control *control, int listen_fd)
{
	control->http = MHD_start_daemon(
		MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL |
			MHD_USE_ITC,
		0, NULL, NULL, handle, control, MHD_OPTION_LISTEN_SOCKET, listen_fd,
		MHD_OPTION_NOTIFY_COMPLETED, completed, NULL, MHD_OPTION_CONNECTION_LIMIT,
		CONTROL_CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT, SILENCE_MAX_S,
		MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)32768, MHD_OPTION_END);
	return control->http ? 0 : -(errno ? errno : EIO);
}

void http_stop(struct control *control)
{
	MHD_stop_daemon(control->http); /* closes the listening socket, joins the threads */
	control->http = NULL;
}
