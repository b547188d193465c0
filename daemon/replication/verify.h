/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verify: compares the whole volume with the peer's while both are in use, and on request repairs
 * what differs. Runs on the source while it streams; a lost link or a restart interrupts it, and it goes
 * on by itself. Where it is, and what it found, is kept in the state directory (protocol/verify.md).
 *
 *  state      meaning                                             allowed next
 *  NEVER      nothing is known                                    RUNNING
 *  RUNNING    under way, or waiting for the stream                DONE, CANCELLED
 *  DONE       all was compared                                    RUNNING
 *  CANCELLED  by the operator; what was found until then stands   RUNNING
 *
 * Repair holds the range in the write order: from here, it writes what is here once more, through the
 * volume's own write path, and so to the peer; from the peer, it fetches the content as of that point and
 * writes it the same way.
 */
#ifndef OFFSITE_REPLICATION_VERIFY_H
#define OFFSITE_REPLICATION_VERIFY_H

#include "daemon/replication/source.h"
#include "protocol/verify.h"

struct verify;

/* Loads what is known. idle() is called when nothing is under way any more after verify_detach(). */
struct verify *verify_new(struct volume *volume, struct source *source, struct buf_pool *pool,
			  void (*idle)(void *owner), void *owner);
void verify_free(struct verify *verify); /* idle */
bool verify_is_idle(const struct verify *verify);

/* The source streams on this link, until verify_detach(), which comes before source_detach(). */
void verify_attach(struct verify *verify, struct link *link);
void verify_detach(struct verify *verify);

/* From the beginning. -EBUSY: one is under way; -errno: the record cannot be written. */
int verify_start(struct verify *verify, enum verify_repair repair, uint64_t rate);
/* -ENOENT: none is under way. */
int verify_cancel(struct verify *verify);

void verify_get_status(const struct verify *verify, struct verify_status *status);
void verify_check(const struct verify *verify);

#endif
