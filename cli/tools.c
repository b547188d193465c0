// SPDX-License-Identifier: Apache-2.0
/*
 * tools: what needs neither daemon nor store: checking a configuration, making a key.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
#include "daemon/config.h"

#define KEY_BYTES 32

const char help_config[] = "Usage: offsite config check FILE\n"
			   "       offsite config options\n"
			   "check: reads a configuration as offsited would and says everything "
			   "that is wrong with it,\n"
			   "one line each with file and line number. Exit code 0 or 2.\n"
			   "options: lists every option with its default.\n";

const char help_keygen[] =
	"Usage: offsite keygen [FILE] [--identity NAME]\n"
	"Makes a pre-shared key of 256 random bits, as one line IDENTITY:HEXKEY, for psk-file or\n"
	"nbd-psk-file; other TLS tools (psktool, nbd clients) read the same format. Copy the file\n"
	"to the peer by a safe way. Without FILE the line goes to standard output. A file gets\n"
	"mode 0600; an existing one is never overwritten.\n"
	"\n"
	"  --identity NAME   default: offsite\n";

static int config_check(const char *path)
{
	char *errors = NULL;
	struct config *config = config_load(path, &errors);

	if (!config) {
		fputs(errors ? errors : "offsite: out of memory\n", stderr);
		if (errors && *errors && errors[strlen(errors) - 1] != '\n')
			fputc('\n', stderr);
		free(errors);
		return CLI_USAGE;
	}
	free(errors);
	printf("%s: fine: node %s, %u volume%s\n", path, config->node.name, config->volume_count,
	       config->volume_count == 1 ? "" : "s");
	config_free(config);
	return CLI_FINE;
}

int cmd_config(struct cli *cli, int argc, char **argv)
{
	static const struct option longs[] = {CLI_OPTIONS_COMMON};
	int option, code;

	while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1)
		if ((code = cli_common_option(cli, option, help_config)) >= 0)
			return code;
	if (argc - optind == 1 && !strcmp(argv[optind], "options")) {
		config_print_options(stdout);
		return CLI_FINE;
	}
	if (argc - optind != 2 || strcmp(argv[optind], "check"))
		return cli_fail(CLI_USAGE, "'config check FILE' or 'config options' expected");
	return config_check(argv[optind + 1]);
}

/* The same limits as the reader of key files: no ':', no blanks, printable. */
static bool identity_valid(const char *identity)
{
	size_t length = strlen(identity);

	if (!length || length > 128 || *identity == '#')
		return false;
	for (; *identity; identity++)
		if (*identity <= ' ' || *identity > '~' || *identity == ':')
			return false;
	return true;
}

/* Writes to a new file, whole or not at all. */
static int write_key_file(const char *path, const char *line)
{
	size_t length = strlen(line);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	int error = 0;

	if (fd < 0 && errno == EEXIST)
		return cli_fail(CLI_REFUSED, "%s: exists; a key is never overwritten", path);
	if (fd < 0)
		return cli_fail(CLI_FAILED, "%s: %s", path, strerror(errno));
	if (fchmod(fd, 0600) || write(fd, line, length) != (ssize_t)length || fsync(fd))
		error = errno ? errno : EIO;
	if (close(fd) && !error)
		error = errno;
	if (!error)
		return CLI_FINE;
	unlink(path);
	return cli_fail(CLI_FAILED, "%s: %s", path, strerror(error));
}

int cmd_keygen(struct cli *cli, int argc, char **argv)
{
	static const struct option longs[] = {{"identity", required_argument, NULL, 'i'},
					      CLI_OPTIONS_COMMON};
	const char *identity = "offsite";
	unsigned char key[KEY_BYTES];
	char line[128 + 1 + 2 * KEY_BYTES + 2];
	size_t at;
	int option, code;

	while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (option == 'i')
			identity = optarg;
		else if ((code = cli_common_option(cli, option, help_keygen)) >= 0)
			return code;
	}
	if (!cli_arguments(argc, 0, 1, ""))
		return CLI_USAGE;
	if (!identity_valid(identity))
		return cli_fail(CLI_USAGE,
				"--identity: '%s': 1 to 128 printable characters "
				"without ':' and blanks",
				identity);
	if (getrandom(key, sizeof(key), 0) != sizeof(key))
		return cli_fail(CLI_FAILED, "getrandom: %s", strerror(errno));
	at = (size_t)snprintf(line, sizeof(line), "%s:", identity);
	for (unsigned i = 0; i < KEY_BYTES; i++)
		at += (size_t)snprintf(line + at, sizeof(line) - at, "%02x", key[i]);
	snprintf(line + at, sizeof(line) - at, "\n");
	if (optind < argc)
		code = write_key_file(argv[optind], line);
	else
		code = fputs(line, stdout) < 0 ? CLI_FAILED : CLI_FINE;
	explicit_bzero(key, sizeof(key));
	explicit_bzero(line, sizeof(line));
	return code;
}
