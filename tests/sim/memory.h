/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory: a seed starts and ends hundreds of nodes, and the kernel's part of their memory costs more
 * than what they do with it. So it comes in huge pages where they can be had, and what a node maps
 * is kept, when it is unmapped, for the next one.
 */
#ifndef OFFSITE_TESTS_SIM_MEMORY_H
#define OFFSITE_TESTS_SIM_MEMORY_H

/* First thing in main(): may start the program anew, with the allocator's settings. */
void memory_prepare(char **argv);

#endif
