/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crypt: a store that encrypts, in front of another. What is put is sealed, what is got is opened and
 * checked; sizes are those before encryption. The first part of an object's name is the volume's uuid, and
 * each volume has data keys of its own: they are read from the store when they are first needed, before a writer
 * begins if some were added, and made when a volume's first object is put. Format and reasons: protocol/snapshot.md, section 9.
 *
 * Results beside those of store.h:
 *   -STORE_WRONG_SECRET  the secret opens none of the volume's keys
 *   -STORE_NO_KEYS   the volume has snapshots but no keys: they are not encrypted, or the keys were lost
 *   -EBADMSG       (get) the object is damaged, another one, or not encrypted
 */
#ifndef OFFSITE_STORE_CRYPT_H
#define OFFSITE_STORE_CRYPT_H

#include "daemon/store/secret.h"
#include "daemon/store/store.h"

/* Takes over inner and secret: closing closes and frees them. */
struct store *crypt_open(struct store *inner, struct secret *secret);

/* store_open(), and crypt_open() if a secret is given. May block; on failure -errno and one line in why. */
int crypt_store_open(struct env *env, const char *url, const struct secret_source *source,
		     struct store **store, char *why, size_t why_size);

#endif
