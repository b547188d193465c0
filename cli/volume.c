// SPDX-License-Identifier: Apache-2.0
/*
 * volume: the verbs that are one call of the API: connect, disconnect, promote, demote.
 */
#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"
#include "cli/client.h"

const char help_connect[] =
	"Usage: offsite connect VOLUME\n"
	"Connects a volume to its peer, and keeps trying while the peer does not answer.\n"
	"What the peer lacks is caught up by itself.\n";

const char help_disconnect[] =
	"Usage: offsite disconnect VOLUME\n"
	"Ends replication of a volume until `offsite connect`. Writes go on; what the peer will\n"
	"lack is tracked.\n";

const char help_promote[] =
	"Usage: offsite promote VOLUME [--force]\n"
	"Makes a volume primary on this node: clients may open it. Refused (exit code 4) while\n"
	"the peer is primary or the disk here is not up to date.\n"
	"\n"
	"  --force   also when the disk is outdated: what only the peer has is lost. Never when\n"
	"            the disk is inconsistent: restore it first\n";

const char help_demote[] =
	"Usage: offsite demote VOLUME\n"
	"Makes a volume secondary on this node. Refused (exit code 4) while clients have it open\n"
	"or the peer still lacks something.\n";

static void print_result(const json_t *volume)
{
	const json_t *replication = json_object_get(volume, "replication");

	printf("%s: role %s, disk %s%s%s\n", client_text(volume, "name", "?"),
	       client_text(volume, "role", "?"), client_text(volume, "disk", "?"),
	       json_is_object(replication) ? ", replication " : "",
	       json_is_object(replication) ? client_text(replication, "state", "?") : "");
}

static int verb(struct cli *cli, int argc, char **argv, const char *help, bool forcible)
{
	static const struct option plain[] = {CLI_OPTIONS_COMMON};
	static const struct option with_force[] = {{"force", no_argument, NULL, 'F'},
						   CLI_OPTIONS_COMMON};
	json_t *body, *volume;
	char rest[32], *path;
	bool force = false;
	int option, code;

	while ((option = getopt_long(argc, argv, "h", forcible ? with_force : plain, NULL)) != -1) {
		if (option == 'F')
			force = true;
		else if ((code = cli_common_option(cli, option, help)) >= 0)
			return code;
	}
	if (!cli_arguments(argc, 1, 1, "VOLUME"))
		return CLI_USAGE;
	snprintf(rest, sizeof(rest), "/%s", argv[0]);
	path = client_volume_path(argv[optind], rest);
	body = forcible ? json_pack("{s:b}", "force", force) : NULL;
	code = client_call(cli, "POST", path, body, &volume);
	free(path);
	if (code)
		return code;
	print_result(volume);
	json_decref(volume);
	return CLI_FINE;
}

int cmd_connect(struct cli *cli, int argc, char **argv)
{
	return verb(cli, argc, argv, help_connect, false);
}

int cmd_disconnect(struct cli *cli, int argc, char **argv)
{
	return verb(cli, argc, argv, help_disconnect, false);
}

int cmd_promote(struct cli *cli, int argc, char **argv)
{
	return verb(cli, argc, argv, help_promote, true);
}

int cmd_demote(struct cli *cli, int argc, char **argv)
{
	return verb(cli, argc, argv, help_demote, false);
}
