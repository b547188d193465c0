/* SPDX-License-Identifier: Apache-2.0 */
/*
 * count_memory: what a thread asks of the allocator and of the kernel between two points: calls of malloc() and
 * the like, and pages that were touched for the first time. For one source file of a test program.
 */
#ifndef OFFSITE_TESTS_COUNT_MEMORY_H
#define OFFSITE_TESTS_COUNT_MEMORY_H

#include <stdbool.h>
#include <stdlib.h>
#include <sys/resource.h>

struct memory_count {
	unsigned long allocations;
	long faults; /* minor ones */
};

#ifdef __SANITIZE_ADDRESS__ /* has an allocator of its own */
#define COUNT_MEMORY_WORKS false
static unsigned long memory_allocations;
#else
#define COUNT_MEMORY_WORKS true
static __thread unsigned long memory_allocations;

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);
void *malloc(size_t size)
{
	memory_allocations++;
	return __libc_malloc(size);
}
void *calloc(size_t count, size_t size)
{
	memory_allocations++;
	return __libc_calloc(count, size);
}
void *realloc(void *old, size_t size)
{
	memory_allocations++;
	return __libc_realloc(old, size);
}
#endif

/* Of the calling thread, since it began. */
static inline struct memory_count memory_counted(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return (struct memory_count){memory_allocations, usage.ru_minflt};
}

#endif
