// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/process.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

static bool has_capability(unsigned capability)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		return false;
	return data[capability / 32].effective & (1u << (capability % 32));
}

/* With MCL_FUTURE and a limit, later mmap() calls would fail: only where there is none. ONFAULT
 * locks pages as they are touched; arenas that were reserved and never used cost nothing. */
static int lock_memory(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_MEMLOCK, &limit))
		return -errno;
	if (limit.rlim_cur != RLIM_INFINITY && !has_capability(CAP_IPC_LOCK))
		return -EPERM;
	return mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) ? -errno : 0;
}

static int write_oom_score(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	int error = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, "-900", 4) != 4)
		error = -errno;
	close(fd);
	return error;
}

static void tell(struct env *env, const char *what, int error, const char *need)
{
	if (error)
		env_log(env, ENV_LOG_INFO, "process: %s: %s (%s)", what, strerror(-error), need);
}

void process_harden(struct process_hardening *hardening)
{
	hardening->memory = lock_memory();
	hardening->flusher = prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) ? -errno : 0;
	hardening->oom = write_oom_score();
}

void process_tell(struct env *env, const struct process_hardening *hardening)
{
	tell(env, "memory not locked", hardening->memory,
	     "needs CAP_IPC_LOCK or LimitMEMLOCK=infinity");
	tell(env, "not marked as I/O flusher", hardening->flusher, "needs CAP_SYS_RESOURCE");
	tell(env, "not protected from the OOM killer", hardening->oom,
	     "needs CAP_SYS_RESOURCE or OOMScoreAdjust=");
}

uint64_t process_watchdog_ns(void)
{
	const char *microseconds = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");

	if (!microseconds || (pid && strtol(pid, NULL, 10) != getpid()))
		return 0;
	return strtoull(microseconds, NULL, 10) * 1000;
}

void process_notify(struct env *env, const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t length = path ? strlen(path) : 0;
	int fd;

	if (!length || length >= sizeof(address.sun_path))
		return;
	memcpy(address.sun_path, path, length);
	if (*path == '@') /* abstract */
		address.sun_path[0] = 0;
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	/* A manager that does not read must not hold up the loop. */
	if (sendto(fd, state, strlen(state), MSG_NOSIGNAL | MSG_DONTWAIT,
		   (struct sockaddr *)&address,
		   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) < 0)
		env_log(env, ENV_LOG_INFO, "process: NOTIFY_SOCKET %s: %s", path, strerror(errno));
	close(fd);
}
