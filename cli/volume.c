// SPDX-License-Identifier: Apache-2.0
/*
 * volume: the verbs that are one call of the API: connect, disconnect, promote, demote,
 * set.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/format.h"
#include "daemon/config_values.h"

const char help_connect[] =
	"Usage: offsite connect VOLUME [--dry-run [--json]]\n"
	"Connects a volume to its peer, and keeps trying while the peer does not answer.\n"
	"What the peer lacks is caught up by itself.\n"
	"\n"
	"  --dry-run   only asks the peer, and says what would be sent where: nothing changes\n"
	"  --json      the API's answer, for programs\n";

const char help_disconnect[] =
	"Usage: offsite disconnect VOLUME\n"
	"Ends replication of a volume until `offsite connect`. Writes go on; what the peer will\n"
	"lack is tracked.\n";

const char help_promote[] =
	"Usage: offsite promote VOLUME [--force] [--no-fence]\n"
	"Makes a volume primary on this node: clients may open it. Refused (exit code 4) while\n"
	"the peer is primary; while the peer has, or may have, writes that are not here, which "
	"are\n"
	"then named; and when fence-command does not succeed, which runs if the peer is not\n"
	"connected.\n"
	"\n"
	"  --force      also when the peer's writes are lost by it. Never when the disk is\n"
	"               inconsistent: restore it first\n"
	"  --no-fence   without fence-command: the peer is known to be dead\n";

const char help_resume[] =
	"Usage: offsite resume VOLUME\n"
	"Lets the requests of a suspended volume (on-peer-loss = suspend) go on without the peer.\n"
	"What is written is tracked, and caught up when the peer is back. Refused (exit code 4)\n"
	"if they do not wait for the peer.\n";

const char help_demote[] =
	"Usage: offsite demote VOLUME [--force]\n"
	"Makes a volume secondary on this node, once the peer has all that was written. Refused\n"
	"(exit code 4) while clients have it open, or the peer does not get there in 10 seconds.\n"
	"\n"
	"  --force   disconnects the clients; what was acknowledged to them is kept\n";

static void print_result(const json_t *volume)
{
	const json_t *replication = json_object_get(volume, "replication");

	printf("%s: role %s, disk %s%s%s\n", client_text(volume, "name", "?"),
	       client_text(volume, "role", "?"), client_text(volume, "disk", "?"),
	       json_is_object(replication) ? ", replication " : "",
	       json_is_object(replication) ? client_text(replication, "state", "?") : "");
}

enum { OPTION_FORCE = 'F', OPTION_NO_FENCE = 'N' };

/* Takes body over. */
static int call_verb(struct cli *cli, const char *name, const char *volume_name, json_t *body,
		     bool tell_lost)
{
	char rest[32], *path;
	json_t *volume;
	int code;

	snprintf(rest, sizeof(rest), "/%s", name);
	path = client_volume_path(volume_name, rest);
	code = client_call(cli, "POST", path, body, &volume);
	free(path);
	if (code)
		return code;
	print_result(volume);
	if (tell_lost && client_text(volume, "lost", NULL))
		printf("lost: %s\n", client_text(volume, "lost", ""));
	json_decref(volume);
	return CLI_FINE;
}

static int verb(struct cli *cli, int argc, char **argv, const char *help,
		const struct option *options)
{
	json_t *body = json_object();
	int option, code;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (option == OPTION_FORCE)
			json_object_set_new(body, "force", json_true());
		else if (option == OPTION_NO_FENCE)
			json_object_set_new(body, "no_fence", json_true());
		else if ((code = cli_common_option(cli, option, help)) >= 0) {
			json_decref(body);
			return code;
		}
	}
	if (!cli_arguments(argc, 1, 1, "VOLUME")) {
		json_decref(body);
		return CLI_USAGE;
	}
	return call_verb(cli, argv[0], argv[optind], body, options[0].val == OPTION_FORCE);
}

static void print_plan(const json_t *plan)
{
	const char *direction = client_text(plan, "direction", NULL);

	printf("%s%s%s\n", client_text(plan, "peer", ""),
	       *client_text(plan, "peer", "") ? ": " : "", client_text(plan, "decision", "?"));
	if (!direction)
		return;
	printf("  to be sent  %s%s, %s\n",
	       json_is_true(json_object_get(plan, "full")) ? "at most " : "",
	       format_bytes(client_number(plan, "bytes")).text,
	       strcmp(direction, "to-peer") == 0 ? "from here to the peer"
						 : "from the peer to here");
	if (json_is_true(json_object_get(plan, "full")))
		printf("              (only what differs by its hashes)\n");
	if (json_is_number(json_object_get(plan, "seconds")))
		printf("  time        about %s at %s/s\n",
		       format_duration(client_number(plan, "seconds")).text,
		       format_bytes(client_number(plan, "rate_bytes")).text);
	else
		printf("  time        unknown: the link was not measured yet\n");
}

static int dry_run(struct cli *cli, const char *volume, bool as_json)
{
	char *path = client_volume_path(volume, "/connect");
	json_t *plan;
	int code = client_call(cli, "POST", path, json_pack("{s:b}", "dry_run", 1), &plan);

	free(path);
	if (code)
		return code;
	if (as_json) {
		json_dumpf(plan, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
		putchar('\n');
	} else {
		print_plan(plan);
	}
	code = json_is_true(json_object_get(plan, "refused")) ? CLI_REFUSED : CLI_FINE;
	json_decref(plan);
	return code;
}

int cmd_connect(struct cli *cli, int argc, char **argv)
{
	static const struct option options[] = {{"dry-run", no_argument, NULL, 'n'},
						{"json", no_argument, NULL, 'j'},
						CLI_OPTIONS_COMMON};
	bool only_ask = false, as_json = false;
	int option, code;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (option == 'n')
			only_ask = true;
		else if (option == 'j')
			as_json = true;
		else if ((code = cli_common_option(cli, option, help_connect)) >= 0)
			return code;
	}
	if (!cli_arguments(argc, 1, 1, "VOLUME"))
		return CLI_USAGE;
	if (only_ask)
		return dry_run(cli, argv[optind], as_json);
	if (as_json)
		return cli_fail(CLI_USAGE, "--json: only with --dry-run");
	return call_verb(cli, argv[0], argv[optind], json_object(), false);
}

int cmd_disconnect(struct cli *cli, int argc, char **argv)
{
	static const struct option options[] = {CLI_OPTIONS_COMMON};

	return verb(cli, argc, argv, help_disconnect, options);
}

int cmd_resume(struct cli *cli, int argc, char **argv)
{
	static const struct option options[] = {CLI_OPTIONS_COMMON};

	return verb(cli, argc, argv, help_resume, options);
}

int cmd_promote(struct cli *cli, int argc, char **argv)
{
	static const struct option options[] = {{"force", no_argument, NULL, OPTION_FORCE},
						{"no-fence", no_argument, NULL, OPTION_NO_FENCE},
						CLI_OPTIONS_COMMON};

	return verb(cli, argc, argv, help_promote, options);
}

int cmd_demote(struct cli *cli, int argc, char **argv)
{
	static const struct option options[] = {{"force", no_argument, NULL, OPTION_FORCE},
						CLI_OPTIONS_COMMON};

	return verb(cli, argc, argv, help_demote, options);
}

const char help_resize[] =
	"Usage: offsite resize VOLUME SIZE [--force]\n"
	"Makes a volume bigger while it is in use: on the primary, for both nodes. SIZE is a\n"
	"multiple of 4096 with K, M, G, T or P; a volume is never made smaller. A file is grown; "
	"a\n"
	"device must have been, on both nodes. What lies beyond the old end becomes zeroes.\n"
	"Clients see the new size when they connect anew.\n"
	"Refused (exit code 4) while the peer is not in sync, or a snapshot is being made.\n"
	"\n"
	"  --force   this side alone, while the peer is not connected: a smaller secondary grows\n"
	"            by itself when it comes back\n";

int cmd_resize(struct cli *cli, int argc, char **argv)
{
	static const struct option options[] = {{"force", no_argument, NULL, OPTION_FORCE},
						CLI_OPTIONS_COMMON};
	int option, code, force = 0;
	const char *bad;
	json_t *volume;
	uint64_t size;
	char *path;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (option == OPTION_FORCE)
			force = 1;
		else if ((code = cli_common_option(cli, option, help_resize)) >= 0)
			return code;
	}
	if (!cli_arguments(argc, 2, 2, "VOLUME SIZE"))
		return CLI_USAGE;
	bad = config_parse_blocks(argv[optind + 1], &size);
	if (bad)
		return cli_fail(CLI_USAGE, "resize: SIZE %s: %s", argv[optind + 1], bad);
	path = client_volume_path(argv[optind], "/resize");
	code = client_call(cli, "POST", path,
			   json_pack("{s:I, s:b}", "size_bytes", (json_int_t)size, "force", force),
			   &volume);
	free(path);
	if (code)
		return code;
	printf("%s: %s (%llu bytes)\n", argv[optind],
	       format_bytes(client_number(volume, "size_bytes")).text,
	       (unsigned long long)client_integer(volume, "size_bytes"));
	json_decref(volume);
	return CLI_FINE;
}

const char help_replace_disk[] =
	"Usage: offsite replace-disk VOLUME\n"
	"Brings a volume back whose disk failed and was replaced, at the same path. Its content\n"
	"comes from the peer. On a primary clients go on meanwhile: the command ends when the new\n"
	"disk is being filled (see `offsite status`). On a secondary it ends when that is in "
	"sync.\n";

int cmd_replace_disk(struct cli *cli, int argc, char **argv)
{
	static const struct option options[] = {CLI_OPTIONS_COMMON};
	json_t *job;
	int option, code;
	char *path;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1)
		if ((code = cli_common_option(cli, option, help_replace_disk)) >= 0)
			return code;
	if (!cli_arguments(argc, 1, 1, "VOLUME"))
		return CLI_USAGE;
	path = client_volume_path(argv[optind], "/replace-disk");
	code = client_call(cli, "POST", path, json_object(), &job);
	free(path);
	if (!code)
		code = client_follow_job(cli, job, "from the peer", NULL);
	if (code)
		return code;
	printf("%s: the replaced disk is in sync, or is being filled: see `offsite status`\n",
	       argv[optind]);
	return CLI_FINE;
}

const char help_set[] =
	"Usage: offsite set VOLUME OPTION=VALUE...\n"
	"Changes options of a running volume, all of them or none, until the daemon's next start:\n"
	"protocol, max-lag, max-lag-time, max-lag-action, stream-rate, catch-up-rate,\n"
	"catch-up-latency-factor, catch-up-min-rate, snapshot-rate, snapshot-min-rate, "
	"hydrate-rate,\n"
	"hydrate-timeout. Names and values are those of the config; see offsited(8).\n";

int cmd_set(struct cli *cli, int argc, char **argv)
{
	static const struct option options[] = {CLI_OPTIONS_COMMON};
	json_t *body, *volume;
	int option, code;
	char *path;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1)
		if ((code = cli_common_option(cli, option, help_set)) >= 0)
			return code;
	if (!cli_arguments(argc, 2, 32, "VOLUME OPTION=VALUE..."))
		return CLI_USAGE;
	body = json_object();
	for (int i = optind + 1; i < argc; i++) {
		char *equals = strchr(argv[i], '=');

		if (!equals) {
			fprintf(stderr, "offsite: set: '%s' is not of the form OPTION=VALUE\n",
				argv[i]);
			json_decref(body);
			return CLI_USAGE;
		}
		*equals = '\0';
		json_object_set_new(body, argv[i], json_string(equals + 1));
	}
	path = client_volume_path(argv[optind], "/set");
	code = client_call(cli, "POST", path, body, &volume);
	free(path);
	if (code)
		return code;
	print_result(volume);
	json_decref(volume);
	return CLI_FINE;
}
