// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/memory.h"

#include <malloc.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Maps are that small here, and have to be zeroes; above it are the arenas of buffer pools, whose
 * content means nothing. */
#define ZEROED_MAX (64u << 10)
#define KEPT_MAX   512u

static struct {
	void *memory;
	size_t length;
	int protection;
} kept[KEPT_MAX], used[KEPT_MAX];
static unsigned kept_count, used_count;

/* For the linker's --wrap. */
void *__real_mmap(void *addr, size_t length, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *addr, size_t length);
void *__wrap_mmap(void *addr, size_t length, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *addr, size_t length);

static void *take_kept(size_t length, int protection)
{
	for (unsigned i = kept_count; i-- > 0;) {
		void *memory = kept[i].memory;

		if (kept[i].length != length || kept[i].protection != protection)
			continue;
		kept[i] = kept[--kept_count];
		if ((protection & PROT_WRITE) && length <= ZEROED_MAX)
			memset(memory, 0, length);
		return memory;
	}
	return NULL;
}

void *__wrap_mmap(void *addr, size_t length, int protection, int flags, int fd, off_t offset)
{
	bool ours = addr == NULL && fd == -1 && (flags & MAP_PRIVATE) && (flags & MAP_ANONYMOUS);
	void *memory = ours ? take_kept(length, protection) : NULL;

	if (memory == NULL)
		memory = __real_mmap(addr, length, protection, flags, fd, offset);
	if (ours && memory != MAP_FAILED && used_count < KEPT_MAX) {
		used[used_count].memory = memory;
		used[used_count].length = length;
		used[used_count++].protection = protection;
	}
	return memory;
}

int __wrap_munmap(void *addr, size_t length)
{
	for (unsigned i = used_count; i-- > 0;) {
		if (used[i].memory != addr || used[i].length != length)
			continue;
		if (kept_count < KEPT_MAX) {
			kept[kept_count++] = used[i];
			addr = NULL;
		}
		used[i] = used[--used_count];
		break;
	}
	return addr != NULL ? __real_munmap(addr, length) : 0;
}

void memory_prepare(char **argv)
{
	static const char name[] = "GLIBC_TUNABLES", huge[] = "glibc.malloc.hugetlb=1";

	/* Nothing goes back to the kernel before the process does. */
	mallopt(M_MMAP_THRESHOLD, 64 << 20);
	mallopt(M_TRIM_THRESHOLD, 1 << 30);
	mallopt(M_TOP_PAD, 16 << 20);
	/* Read once, before main(). */
	if (getenv(name) == NULL && setenv(name, huge, 1) == 0)
		execv("/proc/self/exe", argv);
}
