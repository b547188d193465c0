// SPDX-License-Identifier: Apache-2.0
/*
 * split: two histories: what each side changed, and the end of a split brain.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/format.h"

const char help_changes[] =
	"Usage: offsite changes VOLUME [--json]\n"
	"Shows what this node changed that its peer is not known to have; in a split brain also\n"
	"what the peer changed, and since when. After a crash it is an upper bound.\n"
	"\n"
	"  --json   the API's answer, for programs\n";

const char help_resolve[] =
	"Usage: offsite resolve VOLUME --keep NODE [--dry-run] [--no-keep] [--json]\n"
	"Ends a split brain: NODE's content counts, what the other node changed is given up. To\n"
	"be run on the node that gives up; clients there have to be gone. What it changed is kept\n"
	"first: as a snapshot in the volume's store, or, without one, in STATE-DIR/VOLUME/kept/.\n"
	"Then it catches up from NODE; until that is complete its old content stands.\n"
	"\n"
	"  --keep NODE   whose content counts\n"
	"  --dry-run     show what would be given up and what would be sent; change nothing\n"
	"  --no-keep     give it up without keeping it\n"
	"  --json        the API's answer, for programs\n";

static void print_json(const json_t *json)
{
	json_dumpf(json, stdout, JSON_INDENT(2));
	putchar('\n');
}

static void print_changes(const char *who, const json_t *changes)
{
	const json_t *listed = json_object_get(changes, "listed");
	double extents = client_number(changes, "extents");
	json_t *extent;
	size_t i;

	if (!json_is_object(changes)) {
		printf("%s changed: unknown\n", who);
		return;
	}
	printf("%s changed at most %s in %.0f extent%s%s\n", who,
	       format_bytes(client_number(changes, "bytes")).text, extents, extents == 1 ? "" : "s",
	       extents > 0 ? ":" : "");
	json_array_foreach(listed, i, extent)
		printf("  %14llu + %llu\n", (unsigned long long)client_integer(extent, "offset"),
		       (unsigned long long)client_integer(extent, "length"));
	if (extents > (double)json_array_size(listed))
		printf("  ... and %.0f more\n", extents - (double)json_array_size(listed));
}

int cmd_changes(struct cli *cli, int argc, char **argv)
{
	static const struct option longs[] = {{"json", no_argument, NULL, 'j'}, CLI_OPTIONS_COMMON};
	const json_t *split;
	bool as_json = false;
	int option, code;
	json_t *answer;
	char *path;

	while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (option == 'j')
			as_json = true;
		else if ((code = cli_common_option(cli, option, help_changes)) >= 0)
			return code;
	}
	if (!cli_arguments(argc, 1, 1, "VOLUME"))
		return CLI_USAGE;
	path = client_volume_path(argv[optind], "/changes");
	code = client_call(cli, "GET", path, NULL, &answer);
	free(path);
	if (code)
		return code;
	split = json_object_get(answer, "split_brain");
	if (as_json) {
		print_json(answer);
	} else {
		if (json_is_object(split))
			printf("SPLIT BRAIN with %s, found %s; common generation %.12s%s\n",
			       client_text(split, "peer", "?"), client_text(split, "since", "?"),
			       client_text(split, "common", "none"),
			       json_is_true(json_object_get(split, "near"))
				       ? ""
				       : ", which the maps do not reach back to");
		print_changes(client_text(answer, "node", "this node"),
			      json_object_get(answer, "changes"));
		if (json_is_object(split))
			print_changes(client_text(split, "peer", "the peer"),
				      json_object_get(split, "peer_changes"));
	}
	json_decref(answer);
	return CLI_FINE;
}

static void print_plan(const char *volume, const json_t *plan)
{
	const char *loser = client_text(plan, "discard", "?"),
		   *keep = client_text(plan, "keep", "?");
	const char *kept = client_text(plan, "kept_as", "?");
	bool here = json_is_true(json_object_get(plan, "here"));
	bool full = json_is_true(json_object_get(plan, "full"));

	printf("%s: the content of %s counts; %s gives up what it changed\n", volume, keep, loser);
	print_changes(loser, json_object_get(plan, "discarded"));
	printf("sent by %s: %s%s\n", keep,
	       full ? "the whole volume, as far as it differs: at most " : "at most ",
	       format_bytes(client_number(plan, "transfer_bytes")).text);
	if (here && !strcmp(kept, "nothing"))
		puts("not kept: what is given up is gone");
	else if (here)
		printf("kept before: as a %s%s\n", kept,
		       full ? ", the whole content: the maps do not reach back to what both have"
			    : "");
	else
		printf("to be run on %s: offsite resolve %s --keep %s\n", loser, volume, keep);
}

static void print_end(const char *volume, const json_t *result)
{
	const char *kept = client_text(result, "kept", NULL);

	printf("%s: resolved", volume);
	if (kept)
		printf("; what was given up is kept: %s", kept);
	putchar('\n');
}

static int run_resolve(struct cli *cli, const char *volume, json_t *body, bool as_json)
{
	bool dry_run = json_is_true(json_object_get(body, "dry_run"));
	char *path = client_volume_path(volume, "/resolve");
	json_t *answer, *end = NULL;
	int code = client_call(cli, "POST", path, body, &answer);

	free(path);
	if (code)
		return code;
	if (dry_run) {
		if (as_json)
			print_json(answer);
		else
			print_plan(volume, answer);
		json_decref(answer);
		return CLI_FINE;
	}
	code = client_follow_job(cli, answer, "catching up", &end);
	if (!code && as_json)
		print_json(end);
	else if (!code)
		print_end(volume, json_object_get(end, "result"));
	json_decref(end);
	return code;
}

int cmd_resolve(struct cli *cli, int argc, char **argv)
{
	static const struct option longs[] = {{"keep", required_argument, NULL, 'k'},
					      {"dry-run", no_argument, NULL, 'd'},
					      {"no-keep", no_argument, NULL, 'n'},
					      {"json", no_argument, NULL, 'j'},
					      CLI_OPTIONS_COMMON};
	json_t *body = json_object();
	bool as_json = false;
	int option, code;

	while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (option == 'k')
			json_object_set_new(body, "keep", json_string(optarg));
		else if (option == 'd')
			json_object_set_new(body, "dry_run", json_true());
		else if (option == 'n')
			json_object_set_new(body, "no_keep", json_true());
		else if (option == 'j')
			as_json = true;
		else if ((code = cli_common_option(cli, option, help_resolve)) >= 0) {
			json_decref(body);
			return code;
		}
	}
	if (!cli_arguments(argc, 1, 1, "VOLUME") || !json_object_get(body, "keep")) {
		if (optind == argc - 1)
			cli_fail(CLI_USAGE,
				 "--keep NODE expected: whose content counts; try --help");
		json_decref(body);
		return CLI_USAGE;
	}
	return run_resolve(cli, argv[optind], body, as_json);
}
