/* SPDX-License-Identifier: Apache-2.0 */
/* spawn: a child process in a group of its own, with signals as they are by default: what ends the daemon does not end
 * it, and it can be ended whole, by kill(-pid). */
#ifndef OFFSITE_IO_SPAWN_H
#define OFFSITE_IO_SPAWN_H

#include <spawn.h>
#include <sys/types.h>

/* As posix_spawn(3) otherwise. 0 or -errno. */
int spawn_apart(pid_t *pid, const char *path, const posix_spawn_file_actions_t *files,
		char *const arguments[], char *const environment[]);

#endif
