// SPDX-License-Identifier: Apache-2.0
#include "cli/client.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/format.h"

#define ANSWER_MAX_BYTES (256u * 1024u * 1024u)

struct answer {
	char *text;
	size_t length;
};

static size_t receive(char *data, size_t size, size_t count, void *context)
{
	struct answer *answer = context;
	size_t length = size * count;
	char *text;

	if (answer->length + length > ANSWER_MAX_BYTES)
		return 0;
	text = realloc(answer->text, answer->length + length + 1);
	if (!text)
		return 0;
	memcpy(text + answer->length, data, length);
	answer->text = text;
	answer->length += length;
	text[answer->length] = 0;
	return length;
}

const char *client_text(const json_t *json, const char *key, const char *otherwise)
{
	const char *text = json_string_value(json_object_get(json, key));

	return text ? text : otherwise;
}

double client_number(const json_t *json, const char *key)
{
	return json_number_value(json_object_get(json, key));
}

uint64_t client_integer(const json_t *json, const char *key)
{
	json_int_t value = json_integer_value(json_object_get(json, key));

	return value > 0 ? (uint64_t)value : 0;
}

static int unreachable(const char *socket, CURL *curl, CURLcode result, bool quiet)
{
	long number = 0;

	curl_easy_getinfo(curl, CURLINFO_OS_ERRNO, &number);
	if (quiet)
		return CLI_UNREACHABLE;
	return cli_fail(CLI_UNREACHABLE,
			"no offsited answers on %s: %s (is it running? --socket or --config names "
			"another)",
			socket,
			number && result == CURLE_COULDNT_CONNECT ? strerror((int)number)
								  : curl_easy_strerror(result));
}

#define TIMEOUT_MS 600000L /* of a call */

static int code_of_status(long status)
{
	switch (status) {
	case 400:
	case 413:
	case 414:
		return CLI_USAGE;
	case 409:
		return CLI_REFUSED;
	case 503:
		return CLI_UNREACHABLE;
	default:
		return CLI_FAILED;
	}
}

static CURLcode perform(CURL *curl, const char *socket, const char *method, const char *path,
			const char *body, long timeout_ms, struct answer *answer, long *status)
{
	struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
	char *url = NULL;
	CURLcode result = CURLE_OUT_OF_MEMORY;

	if (!headers || asprintf(&url, "http://offsite%s", path) < 0)
		goto out;
	/* A path too long for a socket address is refused here. */
	result = curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, socket);
	if (result)
		goto out;
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, 10L);
	curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, timeout_ms);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
	if (strcmp(method, "GET")) {
		curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
		curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body ? body : "{}");
		curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
	}
	result = curl_easy_perform(curl);
	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, status);
out:
	curl_slist_free_all(headers);
	free(url);
	return result;
}

static int call(struct cli *cli, const char *method, const char *path, json_t *body, json_t **json,
		bool quiet, long timeout_ms)
{
	const char *socket = cli_socket(cli);
	char *body_text = body ? json_dumps(body, JSON_COMPACT) : NULL;
	CURL *curl = curl_easy_init();
	struct answer answer = {0};
	json_t *answered = NULL;
	CURLcode result;
	long status = 0;
	int code;

	json_decref(body);
	*json = NULL;
	if (!socket || !curl) {
		code = socket ? cli_fail(CLI_FAILED, "out of memory") : CLI_USAGE;
		goto out;
	}
	result = perform(curl, socket, method, path, body_text, timeout_ms, &answer, &status);
	if (result) {
		code = unreachable(socket, curl, result, quiet);
		goto out;
	}
	answered = json_loadb(answer.text ? answer.text : "", answer.length, 0, NULL);
	if (status >= 200 && status < 300 && json_is_object(answered)) {
		*json = json_incref(answered);
		code = CLI_FINE;
	} else if (quiet && code_of_status(status) == CLI_UNREACHABLE) { /* it is stopping */
		code = CLI_UNREACHABLE;
	} else {
		code = cli_fail(code_of_status(status), "%s",
				client_text(answered, "error", "the answer is not offsited's"));
	}
out:
	json_decref(answered);
	free(answer.text);
	free(body_text);
	curl_easy_cleanup(curl);
	return code;
}

int client_call(struct cli *cli, const char *method, const char *path, json_t *body, json_t **json)
{
	return call(cli, method, path, body, json, false, TIMEOUT_MS);
}

int client_try(struct cli *cli, const char *method, const char *path, json_t *body, json_t **json)
{
	return call(cli, method, path, body, json, true, TIMEOUT_MS);
}

/* The volume's name, encoded, between both; the caller's. */
static char *path_of(const char *before, const char *volume, const char *behind)
{
	char *name = curl_easy_escape(NULL, volume, 0);
	char *path = NULL;

	if (!name || asprintf(&path, "%s%s%s", before, name, behind) < 0)
		exit(cli_fail(CLI_FAILED, "out of memory"));
	curl_free(name);
	return path;
}

char *client_volume_path(const char *volume, const char *rest)
{
	return path_of("/v1/volumes/", volume, rest);
}

int client_volume(struct cli *cli, const char *name, bool quiet, long timeout_ms, json_t **volume)
{
	char *path = path_of("/v1/status?volume=", name, "");
	json_t *status;
	int code = call(cli, "GET", path, NULL, &status, quiet,
			timeout_ms < TIMEOUT_MS ? timeout_ms : TIMEOUT_MS);

	*volume = json_incref(json_array_get(json_object_get(status, "volumes"), 0));
	json_decref(status);
	free(path);
	if (!code && !*volume)
		return cli_fail(CLI_FAILED, "the answer is not offsited's");
	return code;
}

static int job_exit_code(const json_t *job)
{
	const char *code = client_text(job, "code", "failed");

	if (!strcmp(client_text(job, "state", ""), "succeeded"))
		return CLI_FINE;
	cli_fail(CLI_FAILED, "%s", client_text(job, "error", "the job failed"));
	if (!strcmp(code, "refused"))
		return CLI_REFUSED;
	return strcmp(code, "damaged") ? CLI_FAILED : CLI_DAMAGED;
}

int client_follow_job(struct cli *cli, json_t *job, const char *what, json_t **end)
{
	struct format_progress progress;
	char path[64];
	int code = CLI_FINE;

	snprintf(path, sizeof(path), "/v1/jobs/%llu?wait=1",
		 (unsigned long long)client_integer(job, "id"));
	format_progress_begin(&progress, what);
	while (!strcmp(client_text(job, "state", ""), "running")) {
		const json_t *now;

		json_decref(job);
		job = NULL;
		code = client_call(cli, "GET", path, NULL, &job);
		if (code)
			break;
		now = json_object_get(job, "progress");
		format_progress_archive(&progress, client_integer(now, "archived_objects"),
					client_number(now, "archive_seconds"));
		format_progress_show(&progress, client_number(now, "done_bytes"),
				     client_number(now, "total_bytes"),
				     client_number(now, "elapsed_seconds"));
	}
	format_progress_end(&progress);
	if (!code)
		code = job_exit_code(job);
	if (end)
		*end = job;
	else
		json_decref(job);
	return code;
}
