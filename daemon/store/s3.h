/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_s3: a bucket as an object store. A thread of the store's own drives libcurl's multi interface,
 * so that a slow or dead service holds up no helper thread; each operation is a short row of requests
 * (one, as a rule) that are tried again with growing pauses until `retry` seconds have passed.
 *
 * A put asks for "if none of this name" where the service knows that, and carries a random token, by
 * which a put whose answer was lost is told from another's object of the same name. Where the service
 * ignores conditions an object of that name is looked for first, which two writers at one moment can
 * pass both; names of snapshots are never used twice.
 */
#ifndef OFFSITE_STORE_S3_H
#define OFFSITE_STORE_S3_H

#include "daemon/store/store.h"

/* Looks at the bucket, for some seconds at most: what is wrong with address, credentials, bucket or
 * network is one line in why. Blocks. */
int store_s3_open(struct env *env, const char *url, struct store **store, char *why,
		  size_t why_size);

#endif
