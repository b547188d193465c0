// SPDX-License-Identifier: Apache-2.0
/*
 * verify: compares a volume with the peer's, and repairs what differs.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/format.h"
#include "daemon/config_values.h"

const char help_verify[] =
	"Usage: offsite verify VOLUME [--repair-from NODE] [--rate BYTES] [--wait]\n"
	"       offsite verify VOLUME --cancel\n"
	"Compares the whole volume with the peer's by checksums, while both are in use. Only on\n"
	"the primary and in sync; goes on by itself after a lost link or a restart. Where it is\n"
	"and what it found is in `offsite status VOLUME`.\n"
	"\n"
	"  --repair-from NODE  make what differs equal to what that node has\n"
	"  --rate BYTES        read at most so much a second (as 50M; 0: unlimited) instead of\n"
	"                      verify-rate\n"
	"  --wait              wait for the end; exit code 5 if something differs and was not\n"
	"                      repaired\n"
	"  --cancel            end the one under way\n";

struct order {
	const char *repair_from;
	int64_t rate; /* -1: as configured */
	bool wait, cancel;
};

static void print_extents(const json_t *verify)
{
	const json_t *extents = json_object_get(verify, "extents");
	double total = client_number(verify, "extents_total");
	json_t *extent;
	size_t i;

	json_array_foreach(extents, i, extent)
		printf("  %12.0f + %.0f\n", client_number(extent, "offset_bytes"),
		       client_number(extent, "length_bytes"));
	if (total > (double)json_array_size(extents))
		printf("  and %.0f more\n", total - (double)json_array_size(extents));
}

static int print_end(const char *volume, const json_t *verify)
{
	double differ = client_number(verify, "differ_bytes");
	double repaired = client_number(verify, "repaired_bytes");

	printf("%s: %s: %s compared, %.0f bytes differ", volume, client_text(verify, "state", "?"),
	       format_bytes(client_number(verify, "compared_bytes")).text, differ);
	if (repaired > 0)
		printf(", %.0f repaired", repaired);
	putchar('\n');
	print_extents(verify);
	if (strcmp(client_text(verify, "state", ""), "done") != 0)
		return CLI_FAILED;
	return differ > repaired ? CLI_DAMAGED : CLI_FINE;
}

/* Shows progress until the comparison ends; the volume as it is then, or NULL and *code. */
static json_t *follow(struct cli *cli, const char *name, int *code)
{
	struct format_progress progress;
	json_t *volume;

	format_progress_begin(&progress, "comparing");
	while (!(*code = client_volume(cli, name, false, LONG_MAX, &volume))) {
		const json_t *verify = json_object_get(volume, "verify");
		const json_t *walk = json_object_get(verify, "progress");
		if (strcmp(client_text(verify, "state", ""), "running") != 0)
			break;
		format_progress_show(&progress, client_number(walk, "done_bytes"),
				     client_number(walk, "total_bytes"),
				     client_number(walk, "elapsed_seconds"));
		json_decref(volume);
		usleep(500000);
	}
	format_progress_end(&progress);
	return volume;
}

static int start(struct cli *cli, const char *name, const struct order *order)
{
	char *path = client_volume_path(name, order->cancel ? "/verify-cancel" : "/verify");
	json_t *body = json_object(), *volume;

	if (order->repair_from)
		json_object_set_new(body, "repair_from", json_string(order->repair_from));
	if (order->rate >= 0)
		json_object_set_new(body, "rate_bytes", json_integer(order->rate));
	int code = client_call(cli, "POST", path, body, &volume);
	free(path);
	if (code)
		return code;
	if (order->cancel) {
		(void)print_end(name, json_object_get(volume, "verify"));
		json_decref(volume);
		return CLI_FINE;
	}
	json_decref(volume);
	if (!order->wait) {
		printf("%s: comparison with the peer begun; offsite status shows how far it is\n",
		       name);
		return CLI_FINE;
	}
	volume = follow(cli, name, &code);
	if (code)
		return code;
	code = print_end(name, json_object_get(volume, "verify"));
	json_decref(volume);
	return code;
}

int cmd_verify(struct cli *cli, int argc, char **argv)
{
	static const struct option longs[] = {{"repair-from", required_argument, NULL, 'R'},
					      {"rate", required_argument, NULL, 'r'},
					      {"wait", no_argument, NULL, 'w'},
					      {"cancel", no_argument, NULL, 'c'},
					      CLI_OPTIONS_COMMON};
	struct order order = {.rate = -1};
	const char *bad;
	uint64_t rate;
	int option, code;

	while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (option) {
		case 'R':
			order.repair_from = optarg;
			break;
		case 'r':
			bad = config_parse_size(optarg, &rate);
			if (bad || rate > INT64_MAX)
				return cli_fail(CLI_USAGE, "--rate %s: %s", optarg,
						bad ? bad : "too large");
			order.rate = (int64_t)rate;
			break;
		case 'w':
			order.wait = true;
			break;
		case 'c':
			order.cancel = true;
			break;
		default:
			if ((code = cli_common_option(cli, option, help_verify)) >= 0)
				return code;
		}
	}
	if (!cli_arguments(argc, 1, 1, "VOLUME"))
		return CLI_USAGE;
	if (order.cancel && (order.repair_from || order.rate >= 0 || order.wait))
		return cli_fail(CLI_USAGE, "--cancel stands alone; try --help");
	return start(cli, argv[optind], &order);
}
