// SPDX-License-Identifier: Apache-2.0
/*
 * The real kernel: netlink for what it does, sysfs for what it is and for its limits.
 */
#include "nbd-server/kernel.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nbd-server/netlink.h"
#include "protocol/nbd.h"

/* A request longer than one buffer (BUF_SIZE_MAX) would be answered alone. */
#define MAX_SECTORS_KB "1024"
/*
 * How often the kernel looks at requests whose socket has died, in milliseconds; those that were sent
 * over it are sent again then, if there is a new one. It looks at full seconds.
 */
#define LOOK_MS  "1000"
#define LINK_DIR "/dev/offsite"

/* ---- files ---------------------------------------------------------------------------------- */

/* The first line of /sys/block/nbdN/NAME; false: there is no such file. */
static bool read_line(unsigned index, const char *name, char *text, size_t size)
{
	char path[96];
	ssize_t length;
	int fd;

	snprintf(path, sizeof(path), "/sys/block/nbd%u/%s", index, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	length = read(fd, text, size - 1);
	close(fd);
	text[length > 0 ? length : 0] = 0;
	text[strcspn(text, "\n")] = 0;
	return length >= 0;
}

/* 0 or -errno. Kernels differ in what they have: what is not there is done without. */
static int write_line(unsigned index, const char *name, const char *text)
{
	char path[96];
	int fd, error = 0;

	snprintf(path, sizeof(path), "/sys/block/nbd%u/%s", index, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	if (write(fd, text, strlen(text)) < 0)
		error = -errno;
	close(fd);
	return error;
}

static unsigned count_queues(unsigned index)
{
	char path[64];
	struct dirent *entry;
	unsigned count = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/block/nbd%u/mq", index);
	dir = opendir(path);
	while (dir && (entry = readdir(dir)))
		count += entry->d_name[0] != '.';
	if (dir)
		closedir(dir);
	return count ? count : 1;
}

/* ---- the module ------------------------------------------------------------------------------ */

static void load_module(void)
{
	static const char *const paths[] = {"/sbin/modprobe", "/usr/sbin/modprobe"};
	char *arguments[] = {"modprobe", "-q", "nbd", NULL}, *environment[] = {NULL};
	pid_t pid;

	for (unsigned i = 0; i < 2; i++) {
		if (posix_spawn(&pid, paths[i], NULL, NULL, arguments, environment))
			continue;
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
		return;
	}
}

static int exchange(const struct nbd_netlink_request *request, unsigned *index)
{
	int error = nbd_netlink_exchange(request, index);

	if (error != -ENODEV || request->command != NBD_CMD_CONNECT)
		return error;
	load_module();
	return nbd_netlink_exchange(request, index);
}

/* ---- what it does ---------------------------------------------------------------------------- */

static void explain_busy(unsigned index, char *why, size_t why_size)
{
	char holder[NBD_KERNEL_NAME_MAX] = "";

	if (read_line(index, "backend", holder, sizeof(holder)) && holder[0])
		snprintf(why, why_size,
			 "/dev/nbd%u is in use (%s): name another device, or none for a free one",
			 index, holder);
	else if (read_line(index, "pid", holder, sizeof(holder)) && holder[0])
		snprintf(why, why_size,
			 "/dev/nbd%u is in use by process %s: name another device, or none for a "
			 "free one",
			 index, holder);
	else
		snprintf(why, why_size,
			 "/dev/nbd%u is in use: name another device, or none for a free one",
			 index);
}

static void explain(int error, int index, char *why, size_t why_size)
{
	switch (error) {
	case -ENODEV:
		snprintf(why, why_size,
			 "the kernel has no nbd: its module cannot be loaded here (modprobe nbd "
			 "says why); clients can use nbdfuse or qemu instead");
		break;
	case -EPERM:
		snprintf(why, why_size,
			 "the kernel does not let this daemon attach devices: it needs "
			 "CAP_SYS_ADMIN, as root or with AmbientCapabilities= in its unit");
		break;
	case -EBUSY:
		if (index >= 0)
			explain_busy((unsigned)index, why, why_size);
		else
			snprintf(why, why_size, "no nbd device is free");
		break;
	default:
		snprintf(why, why_size, "the kernel's nbd: %s", strerror(-error));
	}
}

static int kernel_connect(void *context, int index, const struct nbd_kernel_params *params,
			  const int *fds, unsigned count, unsigned *index_out, char *why,
			  size_t why_size)
{
	struct nbd_netlink_request request = {
		.command = NBD_CMD_CONNECT,
		.index = index,
		.size_bytes = params->size_bytes,
		.block_bytes = params->block_bytes,
		.server_flags = params->flags,
		.identifier = params->identifier,
		.fds = fds,
		.fd_count = count,
		.dead_s = params->dead_s,
		.request_s = params->request_s,
	};
	int error;

	*index_out = index >= 0 ? (unsigned)index : 0;
	error = exchange(&request, index_out);
	if (error)
		explain(error, index, why, why_size);
	return error;
}

static int kernel_give(void *context, unsigned index, const struct nbd_kernel_params *params,
		       int fd)
{
	struct nbd_netlink_request request = {
		.command = NBD_CMD_RECONFIGURE,
		.index = (int)index,
		.identifier = params->identifier,
		.fds = &fd,
		.fd_count = 1,
		.dead_s = params->dead_s,
	};

	return exchange(&request, NULL);
}

static int kernel_resize(void *context, unsigned index, const struct nbd_kernel_params *params)
{
	struct nbd_netlink_request request = {
		.command = NBD_CMD_RECONFIGURE,
		.index = (int)index,
		.identifier = params->identifier,
		.size_bytes = params->size_bytes,
	};

	return exchange(&request, NULL);
}

static int kernel_disconnect(void *context, unsigned index, char *why, size_t why_size)
{
	struct nbd_netlink_request request = {.command = NBD_CMD_DISCONNECT, .index = (int)index};
	int error = exchange(&request, NULL);

	if (error)
		explain(error, (int)index, why, why_size);
	return error;
}

static int kernel_in_use(void *context, unsigned index)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/dev/nbd%u", index);
	fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (fd < 0)
		return errno == EBUSY ? -EBUSY : 0;
	close(fd);
	return 0;
}

/* ---- limits, and the name -------------------------------------------------------------------- */

/* Where udev runs, the name is made by its rule (60-offsite.rules). */
static bool udev_runs(void)
{
	return access("/run/udev/control", F_OK) == 0;
}

static void make_link(unsigned index, const char *name)
{
	char path[NBD_KERNEL_NAME_MAX + 32], target[32];

	snprintf(path, sizeof(path), LINK_DIR "/%s", name);
	snprintf(target, sizeof(target), "../nbd%u", index);
	mkdir(LINK_DIR, 0755);
	unlink(path);
	if (symlink(target, path))
		errno = 0;
}

static int kernel_tune(void *context, unsigned index, const struct nbd_kernel_params *params,
		       bool fresh, char *why, size_t why_size)
{
	const struct {
		const char *name, *text; /* NULL: not now */
	} lines[] = {
		{"queue/max_sectors_kb", MAX_SECTORS_KB},
		{"queue/rotational", params->flags & NBD_FLAG_ROTATIONAL ? "1" : "0"},
		{"queue/io_timeout", params->request_s ? NULL : LOOK_MS},
		/* The kernel's own came before the identifier was there. */
		{"uevent", fresh ? "change" : NULL},
	};
	int failed = 0;

	if (!udev_runs())
		make_link(index, params->link);
	for (unsigned i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		int error = lines[i].text ? write_line(index, lines[i].name, lines[i].text) : 0;

		if (error && !failed)
			snprintf(why, why_size, "/sys/block/nbd%u/%s: %s%s", index, lines[i].name,
				 strerror(-error),
				 error == -EROFS ? " (nbd came after the service: restart that)"
						 : "");
		failed = failed ? failed : error;
	}
	return failed;
}

static void kernel_untune(void *context, unsigned index, const char *link)
{
	char path[NBD_KERNEL_NAME_MAX + 32], target[32], expected[32];
	ssize_t length;

	(void)write_line(index, "uevent", "change"); /* said by tune() */
	snprintf(path, sizeof(path), LINK_DIR "/%s", link);
	snprintf(expected, sizeof(expected), "../nbd%u", index);
	length = readlink(path, target, sizeof(target) - 1);
	if (udev_runs() || length < 0)
		return;
	target[length] = 0;
	if (!strcmp(target, expected))
		unlink(path);
}

static unsigned kernel_scan(void *context, const char *prefix, struct nbd_kernel_device *devices,
			    unsigned max)
{
	DIR *dir = opendir("/sys/block");
	struct dirent *entry;
	unsigned count = 0;

	while (dir && count < max && (entry = readdir(dir))) {
		struct nbd_kernel_device *device = &devices[count];
		char text[NBD_KERNEL_NAME_MAX], *end;
		unsigned long index;

		if (strncmp(entry->d_name, "nbd", 3) || !entry->d_name[3])
			continue;
		index = strtoul(entry->d_name + 3, &end, 10);
		if (*end || index >= NBD_KERNEL_DEVICES ||
		    !read_line((unsigned)index, "backend", text, sizeof(text)) ||
		    strncmp(text, prefix, strlen(prefix)))
			continue;
		*device = (struct nbd_kernel_device){.index = (unsigned)index};
		strcpy(device->identifier, text);
		device->connections = count_queues(device->index);
		if (read_line(device->index, "size", text, sizeof(text)))
			device->size_bytes = strtoull(text, NULL, 10) * 512;
		count++;
	}
	if (dir)
		closedir(dir);
	return count;
}

const struct nbd_kernel nbd_kernel_real = {
	.connect = kernel_connect,
	.give = kernel_give,
	.resize = kernel_resize,
	.disconnect = kernel_disconnect,
	.in_use = kernel_in_use,
	.tune = kernel_tune,
	.untune = kernel_untune,
	.scan = kernel_scan,
};
