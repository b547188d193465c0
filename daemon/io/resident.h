/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resident: memory that was reserved gets its pages before they are touched. Under a filesystem that has no page to
 * give until we have written one, the first touch of a page would wait for itself.
 */
#ifndef OFFSITE_IO_RESIDENT_H
#define OFFSITE_IO_RESIDENT_H

#include <stddef.h>

/* The content stays. NULL and 0 bytes are allowed. Where the kernel cannot (before 5.14), or has no memory,
 * pages come when they are first touched, as without it. Whether they stay is mlockall()'s business. */
void resident_make(const void *start, size_t size_bytes);

#endif
