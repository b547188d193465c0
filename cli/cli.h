/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cli: what the files of the command share: exit codes, global options, the table of subcommands.
 */
#ifndef OFFSITE_CLI_CLI_H
#define OFFSITE_CLI_CLI_H

#include <getopt.h>
#include <stdbool.h>
#include <stddef.h>

#define CLI_SOCKET_DEFAULT "/run/offsite/control.sock"

/* Documented in docs/man/offsite.1.md: scripts depend on them. */
enum cli_exit {
	CLI_FINE = 0,
	CLI_FAILED = 1,      /* the operation failed */
	CLI_USAGE = 2,       /* wrong usage or configuration */
	CLI_UNREACHABLE = 3, /* no daemon answers */
	CLI_REFUSED = 4,     /* the state does not allow it */
	CLI_DAMAGED = 5,     /* verification found damage */
};

struct cli {
	const char *socket;  /* --socket, or NULL */
	const char *config;  /* --config, or NULL */
	char *config_socket; /* the socket the configuration names, once it was looked up */
};

struct cli_command {
	const char *name;
	/* argv[0] is the command's name; getopt starts anew. Returns the exit code. */
	int (*run)(struct cli *cli, int argc, char **argv);
	const char *summary; /* one line, for offsite --help */
	const char *help;    /* whole text, for offsite COMMAND --help */
};

int cmd_status(struct cli *cli, int argc, char **argv);
int cmd_verify(struct cli *cli, int argc, char **argv);
int cmd_events(struct cli *cli, int argc, char **argv);
int cmd_snapshot(struct cli *cli, int argc, char **argv);
int cmd_restore(struct cli *cli, int argc, char **argv);
int cmd_connect(struct cli *cli, int argc, char **argv);
int cmd_disconnect(struct cli *cli, int argc, char **argv);
int cmd_promote(struct cli *cli, int argc, char **argv);
int cmd_demote(struct cli *cli, int argc, char **argv);
int cmd_resize(struct cli *cli, int argc, char **argv);
int cmd_resume(struct cli *cli, int argc, char **argv);
int cmd_attach(struct cli *cli, int argc, char **argv);
int cmd_detach(struct cli *cli, int argc, char **argv);
int cmd_replace_disk(struct cli *cli, int argc, char **argv);
int cmd_changes(struct cli *cli, int argc, char **argv);
int cmd_resolve(struct cli *cli, int argc, char **argv);
int cmd_wait(struct cli *cli, int argc, char **argv);
int cmd_set(struct cli *cli, int argc, char **argv);
int cmd_config(struct cli *cli, int argc, char **argv);
int cmd_key(struct cli *cli, int argc, char **argv);
int cmd_keygen(struct cli *cli, int argc, char **argv);
extern const char help_verify[], help_status[], help_events[], help_snapshot[], help_restore[],
	help_connect[], help_disconnect[], help_promote[], help_demote[], help_resume[],
	help_resize[], help_replace_disk[], help_changes[], help_resolve[], help_set[], help_wait[],
	help_config[], help_key[], help_keygen[], help_attach[], help_detach[];

/* Options that every command takes; the last entries of each command's getopt table. */
#define CLI_OPTION_SOCKET 0x100
#define CLI_OPTION_CONFIG 0x101
#define CLI_OPTIONS_COMMON                                              \
	{"socket", required_argument, NULL, CLI_OPTION_SOCKET},         \
		{"config", required_argument, NULL, CLI_OPTION_CONFIG}, \
		{"help", no_argument, NULL, 'h'},                       \
	{                                                               \
		NULL, 0, NULL, 0                                        \
	}

/* What getopt_long() gave and the command does not know: -1 go on, else the exit code. */
int cli_common_option(struct cli *cli, int option, const char *help);
/* optind .. argc must hold between min and max arguments; else says so. */
bool cli_arguments(int argc, int min, int max, const char *help_hint);
/* "offsite: ..." on stderr; returns code. */
int cli_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The path of the control socket by --socket, --config, $OFFSITE_SOCKET, default; NULL after
 * saying what is wrong with the configuration. */
const char *cli_socket(struct cli *cli);
/* The exit code for a -errno of a module. */
int cli_code_of(int error);

#endif
