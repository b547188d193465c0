/* SPDX-License-Identifier: Apache-2.0 */
/*
 * record: small files in a volume's state directory that have to be whole and durable: the wish for
 * the peer's content, the split brain. Blocking: for rare moments.
 */
#ifndef OFFSITE_REPLICATION_RECORD_H
#define OFFSITE_REPLICATION_RECORD_H

#include "daemon/volume/volume.h"

/* Durable when it returns 0. Replaces an older one as a whole, or leaves it. */
int record_write(struct volume *volume, const char *name, const void *data, size_t length);
/* -ENOENT: there is none. The file has to have exactly this length, else -EBADMSG. */
int record_read(struct volume *volume, const char *name, void *data, size_t length);
/* Durable when it returns 0, also if there was none. */
int record_remove(struct volume *volume, const char *name);

#endif
