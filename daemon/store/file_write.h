/* SPDX-License-Identifier: Apache-2.0 */
/*
 * file_write: an object's content into a file of a directory store. Past the page cache where the file system
 * can: nobody reads it soon, the page cache is somebody else's (a database's), and filling it costs more of the
 * processor than all the rest of a write.
 */
#ifndef OFFSITE_STORE_FILE_WRITE_H
#define OFFSITE_STORE_FILE_WRITE_H

#include <stdbool.h>
#include <sys/uio.h>

/* Writes all of iov into a new, empty file; the caller makes it durable. gentle: in small pieces, leaving the disk
 * to others as long as each took. Blocks. 0 or -errno. */
int file_write(int fd, const struct iovec *iov, unsigned count, bool gentle);

#endif
