/* SPDX-License-Identifier: Apache-2.0 */
/* See spawn.h. */
#include "daemon/io/spawn.h"

#include <signal.h>

int spawn_apart(pid_t *pid, const char *path, const posix_spawn_file_actions_t *files,
		char *const arguments[], char *const environment[])
{
	posix_spawnattr_t attributes;
	sigset_t none, all;

	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK |
						      POSIX_SPAWN_SETSIGDEF);
	posix_spawnattr_setpgroup(&attributes, 0);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	int error = posix_spawn(pid, path, files, &attributes, arguments, environment);
	posix_spawnattr_destroy(&attributes);
	return -error;
}
