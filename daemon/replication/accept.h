/* SPDX-License-Identifier: Apache-2.0 */
/* accept: how the listener hands a connection to a volume's replication. */
#ifndef OFFSITE_REPLICATION_ACCEPT_H
#define OFFSITE_REPLICATION_ACCEPT_H

#include "daemon/replication/link.h"
#include "daemon/replication/replication.h"

/* The certificate behind the link is that of the peer, if one is expected. */
bool replication_admits(const struct replication *replication, const struct link *link);
/* The connecting side has said HELLO. Takes the link over, or refuses and closes it. */
void replication_accept(struct replication *replication, struct link *link,
			const struct hello *hello);

#endif
