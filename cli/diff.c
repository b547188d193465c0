// SPDX-License-Identifier: Apache-2.0
/*
 * diff: what changed between two snapshots, or since one: through the daemon, or from the store alone. What
 * comes is printed at once, whatever there is of it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/format.h"
#include "cli/local.h"
#include "daemon/snapshot/diff.h"
#include "daemon/snapshot/render.h"

#define ASKED_EXTENTS 256u

struct output {
	bool json;
	bool begun;
	uint64_t extents, changed_bytes, zero_bytes;
	/* What is not printed yet: it may go on. */
	uint64_t offset, length;
	bool zero;
};

static void output_flush(struct output *o)
{
	if (!o->length)
		return;
	if (o->json)
		printf("%s\n    {\"offset\": %" PRIu64 ", \"length\": %" PRIu64 ", \"zero\": %s}",
		       o->extents ? "," : "", o->offset, o->length, o->zero ? "true" : "false");
	else if (!o->extents)
		printf("%18s  %18s  %s\n", "OFFSET", "LENGTH", "CONTENT");
	if (!o->json)
		printf("%18" PRIu64 "  %18" PRIu64 "  %s\n", o->offset, o->length,
		       o->zero ? "zero" : "data");
	o->extents++;
	o->changed_bytes += o->length;
	if (o->zero)
		o->zero_bytes += o->length;
	o->length = 0;
}

static void output_extent(struct output *o, uint64_t offset, uint64_t length, bool zero)
{
	if (o->length && o->offset + o->length == offset && o->zero == zero) {
		o->length += length;
		return;
	}
	output_flush(o);
	o->offset = offset;
	o->length = length;
	o->zero = zero;
}

/* References are taken over. to NULL: the volume as it is. */
static void output_begin(struct output *o, json_t *from, json_t *to, uint64_t size_bytes)
{
	char *from_text = json_dumps(from, JSON_COMPACT);
	char *to_text = json_dumps(to ? to : json_null(), JSON_COMPACT | JSON_ENCODE_ANY);

	if (!o->begun && o->json)
		printf("{\n  \"from\": %s,\n  \"to\": %s,\n  \"size_bytes\": %" PRIu64
		       ",\n  \"extents\": [",
		       from_text ? from_text : "null", to_text ? to_text : "null", size_bytes);
	o->begun = true;
	free(from_text);
	free(to_text);
	json_decref(from);
	json_decref(to);
}

static int output_end(struct output *o)
{
	output_flush(o);
	if (o->json)
		printf("%s],\n  \"changed_bytes\": %" PRIu64 ",\n  \"zero_bytes\": %" PRIu64
		       "\n}\n",
		       o->extents ? "\n  " : "", o->changed_bytes, o->zero_bytes);
	else
		printf("%s changed in %" PRIu64 " extents, %s of it zeroes\n",
		       format_bytes((double)o->changed_bytes).text, o->extents,
		       format_bytes((double)o->zero_bytes).text);
	if (fflush(stdout) || ferror(stdout))
		return cli_fail(CLI_FAILED, "standard output: cannot be written");
	return CLI_FINE;
}

/* ---- through the daemon ------------------------------------------------------------------------ */

static int diff_by_daemon(struct cli *cli, char **argv, const char *to, struct output *o)
{
	char *path = client_volume_path(argv[0], "/diff");
	/* Pinned down by the first answer: 'latest' may be another one by the next. */
	char from_id[ID128_TEXT_BYTES] = "", to_id[ID128_TEXT_BYTES] = "";
	uint64_t at = 0;
	bool more = true;
	int code = CLI_FINE;

	while (more && !code) {
		json_t *body = json_pack("{s:s, s:I}", "from", from_id[0] ? from_id : argv[1],
					 "offset", (json_int_t)at);
		json_t *answer = NULL, *extent, *ends;
		size_t i;

		if (to)
			json_object_set_new(body, "to", json_string(to_id[0] ? to_id : to));
		code = client_call(cli, "POST", path, body, &answer);
		if (code)
			break;
		ends = json_object_get(answer, "to");
		snprintf(from_id, sizeof(from_id), "%s",
			 client_text(json_object_get(answer, "from"), "id", ""));
		snprintf(to_id, sizeof(to_id), "%s", client_text(ends, "id", ""));
		output_begin(o, json_incref(json_object_get(answer, "from")), json_incref(ends),
			     client_integer(answer, "size_bytes"));
		json_array_foreach(json_object_get(answer, "extents"), i, extent) output_extent(
			o, client_integer(extent, "offset"), client_integer(extent, "length"),
			json_is_true(json_object_get(extent, "zero")));
		more = json_is_integer(json_object_get(answer, "next_offset"));
		at = client_integer(answer, "next_offset");
		json_decref(answer);
	}
	free(path);
	return code ? code : output_end(o);
}

/* ---- from the store ------------------------------------------------------------------------------ */

struct opening {
	struct local_run run;
	struct snapshot_diff *diff;
};

static void opened(void *context, struct snapshot_diff *diff, int error, const char *why)
{
	struct opening *opening = context;
	struct snapshot_result result = {.error = error};

	opening->diff = diff;
	snprintf(result.why, sizeof(result.why), "%s", why);
	local_run_done(&opening->run, &result);
}

struct asking {
	struct snapshot_diff_ask ask;
	struct local_run run;
	struct snapshot_extent extents[ASKED_EXTENTS];
};

static void asked(struct snapshot_diff_ask *ask, int error, const char *why)
{
	struct asking *asking = (struct asking *)ask;
	struct snapshot_result result = {.error = error};

	snprintf(result.why, sizeof(result.why), "%s", why);
	local_run_done(&asking->run, &result);
}

static void closed(void *context)
{
	const struct snapshot_result fine = {.error = 0};

	local_run_done(context, &fine);
}

static int read_diff(struct local *local, struct snapshot_diff *diff, struct output *o)
{
	uint64_t size = snapshot_diff_ends(diff)->size_bytes, at = 0;
	struct asking *asking = calloc(1, sizeof(*asking));
	int code = asking ? CLI_FINE : cli_fail(CLI_FAILED, "out of memory");

	while (!code && at < size) {
		asking->run = (struct local_run){.done = false};
		asking->ask = (struct snapshot_diff_ask){.offset_bytes = at,
							 .length_bytes = size - at,
							 .extents = asking->extents,
							 .max = ASKED_EXTENTS,
							 .done = asked};
		snapshot_diff_ask(diff, &asking->ask);
		code = local_wait(local, &asking->run);
		for (unsigned i = 0; !code && i < asking->ask.count; i++) {
			const struct snapshot_extent *e = &asking->extents[i];

			if (e->changed)
				output_extent(o, e->offset_bytes, e->length_bytes, e->zero);
			at = e->offset_bytes + e->length_bytes;
		}
	}
	free(asking);
	return code ? code : output_end(o);
}

static int diff_ids(struct local *local, struct snapshot_repo *repo, const struct id128 *from,
		    const struct id128 *to, struct output *o)
{
	struct opening opening = {.diff = NULL};
	struct local_run close = {.done = false};
	const struct snapshot_diff_ends *ends;
	int code;

	snapshot_diff_open(repo, from, to, NULL, opened, &opening);
	code = local_wait(local, &opening.run);
	if (code)
		return code;
	ends = snapshot_diff_ends(opening.diff);
	output_begin(o, render_snapshot(&ends->from), render_snapshot(&ends->to), ends->size_bytes);
	code = read_diff(local, opening.diff, o);
	snapshot_diff_close(opening.diff, closed, &close);
	local_wait(local, &close);
	return code;
}

static int diff_by_store(char **argv, const char *store, const struct secret_source *secret,
			 struct output *o)
{
	struct snapshot_set volumes = {0}, set = {0};
	const struct snapshot_info *volume = NULL, *from = NULL, *to = NULL;
	struct snapshot_repo *repo = NULL;
	struct local local;
	int code = local_open_env(&local);

	if (!code)
		code = local_open_store(&local, store, secret);
	if (!code)
		code = local_volumes(&local, &volumes);
	if (!code)
		code = snapshot_set_find_volume(&volumes, argv[0], &volume);
	if (!code)
		code = local_snapshots(&local, &volume->volume, &set);
	if (!code)
		code = snapshot_set_find(&set, argv[1], &from);
	if (!code)
		code = snapshot_set_find(&set, argv[2], &to);
	if (!code) {
		repo = snapshot_repo_new(local.store, &volume->volume);
		code = repo ? diff_ids(&local, repo, &from->id, &to->id, o)
			    : cli_fail(CLI_FAILED, "out of memory");
	}
	snapshot_repo_free(repo);
	snapshot_set_free(&set);
	snapshot_set_free(&volumes);
	local_close(&local);
	return code;
}

int snapshot_diff_cmd(struct cli *cli, int argc, char **argv, const char *store,
		      const struct secret_source *secret, bool json)
{
	struct output output = {.json = json};

	if (!cli_arguments(argc, store ? 3 : 2, 3, store ? "VOLUME A B" : "VOLUME A [B]"))
		return CLI_USAGE;
	if (store)
		return diff_by_store(argv + optind, store, secret, &output);
	return diff_by_daemon(cli, argv + optind, argc - optind == 3 ? argv[optind + 2] : NULL,
			      &output);
}
