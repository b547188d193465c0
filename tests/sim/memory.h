/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory: of one simulated world after the other in the same process. What a crashed node had is lost to
 * the program, so everything that the engine and the simulator allocate comes from one arena (the linker's
 * --wrap, see the Makefile), and the arena begins anew with each world. Its pages stay with the process: the
 * kernel does not clear them again. Under a sanitizer the allocator is the sanitizer's, and each world has
 * a process of its own.
 */
#ifndef OFFSITE_TESTS_SIM_MEMORY_H
#define OFFSITE_TESTS_SIM_MEMORY_H

#include <stdbool.h>

/* Before the first world. */
void memory_prepare(void);

/* All that was allocated since memory_prepare() is gone; nothing points to it any more. False: this
 * process cannot, or has grown too big. */
bool memory_reset(void);

#endif
