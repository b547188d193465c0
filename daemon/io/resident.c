// SPDX-License-Identifier: Apache-2.0
#include "daemon/io/resident.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

void resident_make(const void *start, size_t size_bytes)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	uintptr_t from = (uintptr_t)start & ~(page - 1);
	uintptr_t to = ((uintptr_t)start + size_bytes + page - 1) & ~(page - 1);

	if (size_bytes)
		(void)madvise((void *)from, to - from, MADV_POPULATE_WRITE);
}
