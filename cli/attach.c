// SPDX-License-Identifier: Apache-2.0
/*
 * attach: volumes and snapshots as block devices of this host.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/format.h"

#define LINK_DIR    "/dev/offsite"
#define LINK_WAIT_S 15 /* when the module has just come, udev looks at all its devices */

const char help_attach[] =
	"Usage: offsite attach VOLUME[@SNAPSHOT] [/dev/nbdN]\n"
	"       offsite attach --list [--json]\n"
	"Makes a volume a block device of this host: /dev/nbdN, any that is free, and its name\n"
	"/dev/offsite/VOLUME. It outlives the daemon: while that is away, for attach-timeout= at\n"
	"most, I/O waits. A volume that is to be attached after a reboot, too, says attach = yes "
	"in\n"
	"the configuration. A snapshot is attached read-only. Needs the kernel's nbd module.\n"
	"\n"
	"  --list   what is attached, instead\n"
	"  --json   the API's answer, for programs\n";

const char help_detach[] = "Usage: offsite detach VOLUME[@SNAPSHOT]|/dev/nbdN [--force]\n"
			   "Takes the block device away. Refused (exit code 4) while it is mounted "
			   "or otherwise held.\n"
			   "A volume with attach = yes stays detached until it has been secondary, "
			   "or the next start.\n"
			   "\n"
			   "  --force   all the same: its I/O fails\n";

static void print_list(const json_t *list)
{
	json_t *entry;
	size_t i;

	json_array_foreach(list, i, entry)
	{
		const char *why = client_text(entry, "why", NULL);

		printf("%-12s %-24s %8s  %s%s%s%s\n", client_text(entry, "device", "-"),
		       client_text(entry, "export", "?"),
		       format_bytes(client_number(entry, "size_bytes")).text,
		       client_text(entry, "state", "?"),
		       json_is_true(json_object_get(entry, "read_only")) ? ", read-only" : "",
		       why ? ": " : "", why ? why : "");
	}
}

static int list(struct cli *cli, bool as_json)
{
	json_t *answer;
	int code = client_call(cli, "GET", "/v1/attached", NULL, &answer);

	if (code)
		return code;
	if (as_json) {
		json_dumpf(answer, stdout, JSON_INDENT(2));
		putchar('\n');
	} else {
		print_list(json_object_get(answer, "attached"));
	}
	json_decref(answer);
	return CLI_FINE;
}

/* udev makes the name, a moment later; whoever uses it next in a script shall find it. */
static const char *await_link(const char *name, const char *device, char *link, size_t size)
{
	char target[PATH_MAX];

	if (snprintf(link, size, LINK_DIR "/%s", name) >= (int)size)
		return NULL;
	for (int i = 0; i < LINK_WAIT_S * 50; i++) {
		if (realpath(link, target) && !strcmp(target, device))
			return link;
		nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	}
	return NULL;
}

int cmd_attach(struct cli *cli, int argc, char **argv)
{
	static const struct option options[] = {{"list", no_argument, NULL, 'l'},
						{"json", no_argument, NULL, 'j'},
						CLI_OPTIONS_COMMON};
	bool only_list = false, as_json = false;
	char link[PATH_MAX];
	const char *name, *device, *found;
	json_t *body, *answer;
	int option, code;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (option == 'l')
			only_list = true;
		else if (option == 'j')
			as_json = true;
		else if ((code = cli_common_option(cli, option, help_attach)) >= 0)
			return code;
	}
	if (!cli_arguments(argc, only_list ? 0 : 1, only_list ? 0 : 2, "VOLUME"))
		return CLI_USAGE;
	if (only_list)
		return list(cli, as_json);
	name = argv[optind];
	body = json_pack("{s:s}", "export", name);
	if (argv[optind + 1])
		json_object_set_new(body, "device", json_string(argv[optind + 1]));
	code = client_call(cli, "POST", "/v1/attach", body, &answer);
	if (code)
		return code;
	device = client_text(answer, "device", "?");
	found = await_link(client_text(answer, "export", name), device, link, sizeof(link));
	if (as_json) {
		json_object_set_new(answer, "link", found ? json_string(found) : json_null());
		json_dumpf(answer, stdout, JSON_INDENT(2));
		putchar('\n');
	} else {
		printf("%s%s%s\n", device, found ? " " : "", found ? found : "");
	}
	json_decref(answer);
	return CLI_FINE;
}

int cmd_detach(struct cli *cli, int argc, char **argv)
{
	static const struct option options[] = {{"force", no_argument, NULL, 'F'},
						CLI_OPTIONS_COMMON};
	json_t *answer;
	int option, code, force = 0;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (option == 'F')
			force = 1;
		else if ((code = cli_common_option(cli, option, help_detach)) >= 0)
			return code;
	}
	if (!cli_arguments(argc, 1, 1, "VOLUME or /dev/nbdN"))
		return CLI_USAGE;
	code = client_call(cli, "POST", "/v1/detach",
			   json_pack("{s:s, s:b}", "export", argv[optind], "force", force),
			   &answer);
	if (code)
		return code;
	printf("%s: detached from %s\n", argv[optind], client_text(answer, "device", "?"));
	json_decref(answer);
	return CLI_FINE;
}
