/* SPDX-License-Identifier: Apache-2.0 */
/*
 * answer: the target's side of a comparison. Each COMPARE holds its range at the point of the write
 * order at which it came, reads and hashes it, and is answered with HASHES. Outlives links.
 */
#ifndef OFFSITE_REPLICATION_ANSWER_H
#define OFFSITE_REPLICATION_ANSWER_H

#include "daemon/replication/link.h"
#include "daemon/volume/volume.h"

struct answer;

/* idle() is called when nothing is under way any more after answer_detach(). NULL without memory. */
struct answer *answer_new(struct volume *volume, void (*idle)(void *owner), void *owner);
void answer_free(struct answer *answer); /* idle */
bool answer_is_idle(const struct answer *answer);

void answer_attach(struct answer *answer, struct link *link);
void answer_detach(struct answer *answer);
/* The frame is COMPARE and lies within the volume. later: not to be told now. False: more questions
 * than are allowed. */
bool answer_question(struct answer *answer, const struct frame *frame, bool later);
void answer_sent(struct answer *answer);
void answer_check(const struct answer *answer);

#endif
