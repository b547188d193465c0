// SPDX-License-Identifier: Apache-2.0
/*
 * The command's handling of arguments, keys and unreachable daemons: exit codes and one clear line.
 * Runs the built command: $OFFSITE, or the one beside this test's build folder.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char command[PATH_MAX];
static char directory[64];
static char output[65536];

static int find_command(void **state)
{
	const char *given = getenv("OFFSITE");
	char *slash;
	ssize_t length;

	strcpy(directory, "/tmp/control_cli.XXXXXX");
	assert_non_null(mkdtemp(directory));
	unsetenv("OFFSITE_SOCKET");
	if (given) {
		snprintf(command, sizeof(command), "%s", given);
		return 0;
	}
	length = readlink("/proc/self/exe", command, sizeof(command) - 16);
	assert_true(length > 0);
	command[length] = 0;
	for (int i = 0; i < 3; i++) { /* BUILD/tests/unit/control_cli -> BUILD */
		slash = strrchr(command, '/');
		assert_non_null(slash);
		*slash = 0;
	}
	strcat(command, "/offsite");
	return 0;
}

static int remove_directory(void **state)
{
	return rmdir(directory);
}

/* Runs `offsite arguments` (by the shell); the exit code, with stdout and stderr in output. */
static int run(const char *arguments)
{
	char line[PATH_MAX + 1024];
	FILE *pipe;
	size_t length;
	int status;

	if (access(command, X_OK)) {
		print_message("SKIP: %s is not built\n", command);
		skip();
	}
	snprintf(line, sizeof(line), "cd %s && %s %s 2>&1", directory, command, arguments);
	pipe = popen(line, "r");
	assert_non_null(pipe);
	length = fread(output, 1, sizeof(output) - 1, pipe);
	output[length] = 0;
	status = pclose(pipe);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void expect(const char *arguments, int code, const char *part)
{
	int got = run(arguments);

	if (got != code || !strstr(output, part))
		fail_msg("offsite %s: exit code %d, expected %d with '%s': %s", arguments, got,
			 code, part, output);
}

static void help_is_everywhere(void **state)
{
	static const char *const names[] = {
		"status", "snapshot", "restore", "connect", "disconnect", "promote", "demote",
		"events", "config",   "keygen",  "verify",  "resume",     "key",     "resize"};
	char arguments[64], usage[64];

	expect("--help", 0, "Commands:");
	expect("--help", 0, "Exit codes:");
	expect("--version", 0, "offsite 0.");
	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		expect("--help", 0, names[i]);
		snprintf(usage, sizeof(usage), "Usage: offsite %s", names[i]);
		snprintf(arguments, sizeof(arguments), "%s --help", names[i]);
		expect(arguments, 0, usage);
		snprintf(arguments, sizeof(arguments), "help %s", names[i]);
		expect(arguments, 0, usage);
	}
}

static void wrong_usage_is_exit_code_2(void **state)
{
	expect("", 2, "a command is expected");
	expect("nosuch", 2, "unknown command 'nosuch'");
	expect("--nosuch", 2, "nosuch");
	expect("status --nosuch", 2, "nosuch");
	expect("status a b", 2, "too many arguments");
	expect("connect", 2, "VOLUME expected");
	expect("promote", 2, "VOLUME expected");
	expect("connect pgdata --force", 2, "force");
	expect("connect pgdata --json", 2, "only with --dry-run");
	expect("resize", 2, "VOLUME SIZE expected");
	expect("resize pgdata", 2, "VOLUME SIZE expected");
	expect("resize pgdata big", 2, "SIZE big: ");
	expect("resize pgdata 1234567", 2, "SIZE 1234567: ");
	expect("snapshot", 2,
	       "create, list, delete, forget, pin, unpin, diff, prove or verify expected");
	expect("snapshot burn pgdata", 2, "snapshot burn: unknown");
	expect("snapshot create", 2, "VOLUME expected");
	expect("snapshot delete pgdata", 2, "VOLUME ID expected");
	expect("snapshot create pgdata --store file:/x", 2, "--store: not with create and prove");
	expect("snapshot delete --store file:/x pgdata", 2, "VOLUME ID expected");
	expect("snapshot delete pgdata 12 --store-list-lag 1s", 2, "with delete --store");
	expect("snapshot verify pgdata --sample 0%", 2, "--sample: '0%'");
	expect("snapshot verify pgdata --sample 101", 2, "--sample");
	expect("snapshot verify pgdata --sample 5%x", 2, "--sample");
	expect("restore", 2, "expected");
	expect("restore --store file:/x", 2, "--to PATH is missing");
	expect("restore pgdata --to x", 2, "only together with --store");
	expect("restore pgdata --json", 2, "only together with --dry-run");
	expect("restore pgdata --volume x", 2, "only together with --store or --instant");
	expect("restore --store file:/x --to y --instant", 2, "name a volume of the daemon");
	expect("restore pgdata --from-peer --snapshot latest", 2, "not together");
	expect("restore --store file:/x --to y pgdata", 2, "--volume");
	expect("verify", 2, "VOLUME expected");
	expect("verify pgdata --rate fast", 2, "--rate fast");
	expect("verify pgdata --cancel --wait", 2, "--cancel stands alone");
	expect("config", 2, "expected");
	expect("config check", 2, "expected");
	expect("config check nosuch.conf", 2, "nosuch.conf");
	expect("keygen a b", 2, "too many");
	expect("snapshot forget v", 2, "--store URL, or --config FILE");
	expect("snapshot forget --store file:/x v", 2, "--keep option is missing");
	expect("snapshot forget --store file:/x v --keep-daily x", 2, "not a number");
	expect("snapshot forget --store file:/x v --keep-within x", 2, "--keep-within");
	expect("snapshot forget --store file:/x v --keep-last 1 --store-list-lag 5", 2,
	       "--store-list-lag: '5'");
	expect("snapshot list --store file:/x --store-list-lag 5s", 2, "only with forget");
	expect("key", 2, "list, add, remove or renew");
	expect("key list", 2, "--store URL is missing");
	expect("key list --store file:/nowhere", 2, "--passphrase-file");
	expect("restore v --key-file k", 2, "only together with --store");
	expect("keygen --identity a:b", 2, "--identity");
	expect("keygen --identity ''", 2, "--identity");
	expect("--config nosuch.conf status", 2, "nosuch.conf");
}

static void no_daemon_is_exit_code_3(void **state)
{
	static const char *const commands[] = {"status",
					       "events",
					       "connect v",
					       "disconnect v",
					       "promote v",
					       "demote v",
					       "resize v 2G",
					       "replace-disk v",
					       "verify v",
					       "verify v --cancel",
					       "snapshot create v",
					       "snapshot list v",
					       "snapshot delete v 12",
					       "snapshot verify v",
					       "restore v",
					       "restore v --from-peer"};
	char arguments[128];

	for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		snprintf(arguments, sizeof(arguments), "--socket ./none.sock %s", commands[i]);
		expect(arguments, 3, "no offsited answers on ./none.sock");
		snprintf(arguments, sizeof(arguments), "%s --socket ./none.sock", commands[i]);
		expect(arguments, 3, "no offsited answers on ./none.sock");
	}
	setenv("OFFSITE_SOCKET", "./other.sock", 1);
	expect("status", 3, "no offsited answers on ./other.sock");
	unsetenv("OFFSITE_SOCKET");
}

static void a_store_that_is_not_there_is_not_made(void **state)
{
	char arguments[256];

	snprintf(arguments, sizeof(arguments), "snapshot list --store file:%s/none", directory);
	expect(arguments, 1, "No such file");
	snprintf(arguments, sizeof(arguments), "restore --store file:%s/none --to x", directory);
	expect(arguments, 1, "No such file");
	expect("snapshot verify --store nosuch:/x", 1, "nosuch:/x");
	assert_int_equal(run("--version"), 0);
	/* tear_down's rmdir() fails if anything was made. */
}

static void keys_are_private_and_never_overwritten(void **state)
{
	char path[128], first[256] = "", again[256] = "";
	struct stat stat_buf;
	FILE *file;

	expect("keygen k.psk --identity alpha", 0, "");
	snprintf(path, sizeof(path), "%s/k.psk", directory);
	assert_int_equal(stat(path, &stat_buf), 0);
	assert_int_equal(stat_buf.st_mode & 07777, 0600);
	file = fopen(path, "r");
	assert_non_null(fgets(first, sizeof(first), file));
	fclose(file);
	assert_int_equal(strncmp(first, "alpha:", 6), 0);
	assert_int_equal(strspn(first + 6, "0123456789abcdef"), 64);
	assert_string_equal(first + 70, "\n");
	expect("keygen k.psk", 4, "never overwritten");
	file = fopen(path, "r");
	assert_non_null(fgets(again, sizeof(again), file));
	fclose(file);
	assert_string_equal(first, again);
	unlink(path);
	expect("keygen", 0, "offsite:");
	assert_int_equal(strlen(output), 8 + 64 + 1);
	expect("keygen none/k.psk", 1, "No such file");
}

static void output_that_cannot_be_written_is_a_failure(void **state)
{
	expect("--help > /dev/full; echo code $?", 0, "code 1");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(help_is_everywhere),
		cmocka_unit_test(wrong_usage_is_exit_code_2),
		cmocka_unit_test(no_daemon_is_exit_code_3),
		cmocka_unit_test(a_store_that_is_not_there_is_not_made),
		cmocka_unit_test(keys_are_private_and_never_overwritten),
		cmocka_unit_test(output_that_cannot_be_written_is_a_failure),
	};

	return cmocka_run_group_tests(tests, find_command, remove_directory);
}
