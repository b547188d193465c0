/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client: calls of the daemon's HTTP API (docs/API.md) over its unix socket.
 */
#ifndef OFFSITE_CLI_CLIENT_H
#define OFFSITE_CLI_CLIENT_H

#include <jansson.h>
#include <stdint.h>

#include "cli/cli.h"

/* Calls METHOD path with an optional body (a reference is taken over). Returns CLI_FINE and *json
 * (the caller's) for a 2xx answer; else says on stderr what went wrong and returns the exit code. */
int client_call(struct cli *cli, const char *method, const char *path, json_t *body, json_t **json);
/* As client_call(), but CLI_UNREACHABLE (which a daemon that is stopping is, too) is returned without a word. */
int client_try(struct cli *cli, const char *method, const char *path, json_t *body, json_t **json);
/* "/v1/volumes/NAME/rest" with the name encoded; the caller's. Never NULL (exits without memory). */
char *client_volume_path(const char *volume, const char *rest);
/* The volume as GET /v1/status has it: CLI_FINE and *volume (the caller's), or the exit code and NULL.
 * quiet: as client_try(). timeout_ms: of the whole call, if less than what the others have. */
int client_volume(struct cli *cli, const char *name, bool quiet, long timeout_ms, json_t **volume);
/* Follows a job (an answer to 202; a reference is taken over) to its end with progress on stderr.
 * *end: the job as it ended (the caller's; may be NULL, as may end). Says why it failed; returns the exit code. */
int client_follow_job(struct cli *cli, json_t *job, const char *what, json_t **end);
/* Members of JSON objects with a default for what is missing or of another type. */
const char *client_text(const json_t *json, const char *key, const char *otherwise);
double client_number(const json_t *json, const char *key);
uint64_t client_integer(const json_t *json, const char *key);

#endif
