// SPDX-License-Identifier: Apache-2.0
/*
 * offsite: the command. Global options and the table of subcommands.
 */
#include "cli/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/config.h"

static const struct cli_command commands[] = {
	{"status", cmd_status, "show the node, its volumes, peers and snapshots", help_status},
	{"snapshot", cmd_snapshot, "create, list, delete and verify snapshots", help_snapshot},
	{"restore", cmd_restore, "get a volume back: from the store or from the peer",
	 help_restore},
	{"verify", cmd_verify, "compare a volume with the peer's, and repair it", help_verify},
	{"attach", cmd_attach, "make a volume a block device of this host", help_attach},
	{"detach", cmd_detach, "take its block device away", help_detach},
	{"connect", cmd_connect, "connect a volume to its peer", help_connect},
	{"disconnect", cmd_disconnect, "leave the peer, until connect", help_disconnect},
	{"wait", cmd_wait, "wait until a volume is connected, in sync, filled", help_wait},
	{"promote", cmd_promote, "make a volume primary here", help_promote},
	{"resize", cmd_resize, "make a volume bigger", help_resize},
	{"demote", cmd_demote, "make a volume secondary here", help_demote},
	{"resume", cmd_resume, "let suspended requests go on without the peer", help_resume},
	{"replace-disk", cmd_replace_disk, "fill a replaced disk from the peer", help_replace_disk},
	{"set", cmd_set, "change options of a running volume", help_set},
	{"events", cmd_events, "show what happened lately, or follow it", help_events},
	{"changes", cmd_changes, "what this node, and in a split brain its peer, changed",
	 help_changes},
	{"resolve", cmd_resolve, "end a split brain", help_resolve},
	{"config", cmd_config, "check a configuration file", help_config},
	{"key", cmd_key, "show, add and remove what opens an encrypted store", help_key},
	{"keygen", cmd_keygen, "make a pre-shared key", help_keygen},
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

int cli_fail(int code, const char *format, ...)
{
	va_list arguments;

	fputs("offsite: ", stderr);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	return code;
}

int cli_code_of(int error)
{
	switch (-error) {
	case 0:
		return CLI_FINE;
	case EPERM:
	case EBUSY:
	case EAGAIN:
	case EEXIST:
	case EALREADY:
		return CLI_REFUSED;
	case EUCLEAN:
	case EBADMSG:
	case EILSEQ:
		return CLI_DAMAGED;
	default:
		return CLI_FAILED;
	}
}

int cli_common_option(struct cli *cli, int option, const char *help)
{
	switch (option) {
	case CLI_OPTION_SOCKET:
		cli->socket = optarg;
		return -1;
	case CLI_OPTION_CONFIG:
		cli->config = optarg;
		return -1;
	case 'h':
		fputs(help, stdout);
		return CLI_FINE;
	default: /* getopt has said what is wrong */
		fputs("Try --help.\n", stderr);
		return CLI_USAGE;
	}
}

bool cli_arguments(int argc, int min, int max, const char *what)
{
	if (argc - optind < min)
		cli_fail(CLI_USAGE, "%s expected; try --help", what);
	else if (argc - optind > max)
		cli_fail(CLI_USAGE, "too many arguments; try --help");
	return argc - optind >= min && argc - optind <= max;
}

const char *cli_socket(struct cli *cli)
{
	const char *environment = getenv("OFFSITE_SOCKET");
	struct config *config;
	char *errors = NULL;

	if (cli->socket)
		return cli->socket;
	if (!cli->config)
		return environment && *environment ? environment : CLI_SOCKET_DEFAULT;
	if (cli->config_socket)
		return cli->config_socket;
	config = config_load(cli->config, &errors);
	if (!config) {
		fputs(errors ? errors : "offsite: out of memory\n", stderr);
		if (errors && *errors && errors[strlen(errors) - 1] != '\n')
			fputc('\n', stderr);
		free(errors);
		return NULL;
	}
	free(errors);
	cli->config_socket = strdup(config->node.control);
	config_free(config);
	return cli->config_socket;
}

static void print_help(void)
{
	puts("Usage: offsite [--socket PATH | --config FILE] COMMAND [arguments]\n"
	     "\n"
	     "Commands:");
	for (unsigned i = 0; i < COMMANDS; i++)
		printf("  %-12s %s\n", commands[i].name, commands[i].summary);
	puts("\n"
	     "Options:\n"
	     "  --socket PATH   the daemon's control socket (default $OFFSITE_SOCKET, else\n"
	     "                  " CLI_SOCKET_DEFAULT ")\n"
	     "  --config FILE   take the socket's path from the daemon's configuration\n"
	     "  -h, --help      this text; after a command: about the command\n"
	     "  -V, --version   print the version\n"
	     "\n"
	     "Exit codes: 0 fine; 1 the operation failed; 2 wrong usage or configuration;\n"
	     "3 no daemon answers; 4 refused: the state does not allow it; 5 damage found.");
}

static int run_command(struct cli *cli, int argc, char **argv)
{
	const char *name = argv[0];

	if (!strcmp(name, "help")) {
		for (unsigned i = 0; argc > 1 && i < COMMANDS; i++) {
			if (strcmp(commands[i].name, argv[1]))
				continue;
			fputs(commands[i].help, stdout);
			return CLI_FINE;
		}
		print_help();
		return CLI_FINE;
	}
	for (unsigned i = 0; i < COMMANDS; i++) {
		if (strcmp(commands[i].name, name))
			continue;
		optind = 0; /* glibc: start anew */
		return commands[i].run(cli, argc, argv);
	}
	return cli_fail(CLI_USAGE, "unknown command '%s'; try 'offsite --help'", name);
}

/* The exit code of the whole command line. */
static int run(struct cli *cli, int argc, char **argv)
{
	static const struct option longs[] = {{"version", no_argument, NULL, 'V'},
					      CLI_OPTIONS_COMMON};
	int option, code;

	while ((option = getopt_long(argc, argv, "+hV", longs, NULL)) != -1) {
		if (option == 'V') {
			puts("offsite " OFFSITE_VERSION);
			return CLI_FINE;
		}
		if (option == 'h') {
			print_help();
			return CLI_FINE;
		}
		code = cli_common_option(cli, option, "");
		if (code >= 0)
			return code;
	}
	if (optind == argc)
		return cli_fail(CLI_USAGE, "a command is expected; try 'offsite --help'");
	return run_command(cli, argc - optind, argv + optind);
}

int main(int argc, char **argv)
{
	struct cli cli = {0};
	int code = run(&cli, argc, argv);

	free(cli.config_socket);
	/* A full disk behind stdout must not look like success. */
	if ((fflush(stdout) || ferror(stdout)) && !code)
		code = cli_fail(CLI_FAILED, "output: %s", strerror(errno));
	return code;
}
