/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keyring: a volume's wrapped keys in a store: reading and opening them, adding and removing ways to open
 * them. A data key may be wrapped by several slots, each for another secret; to change a secret is to add
 * a slot and to remove the old one. No data is written anew.
 *
 * Asynchronous as store.h; done() is called on the loop thread, never from inside the call.
 */
#ifndef OFFSITE_STORE_KEYRING_H
#define OFFSITE_STORE_KEYRING_H

#include "daemon/store/cipher.h"
#include "daemon/store/secret.h"
#include "daemon/store/store.h"

struct keyring_slot {
	struct id128 key, slot;
	enum cryptfmt_method method; /* 0: damaged */
	uint64_t created_ns;
	char label[CRYPTFMT_LABEL_BYTES];
	bool opened; /* by the secret given */
};

struct keyring {
	struct keyring_slot *slots;
	unsigned slot_count;
	struct data_key *keys; /* those opened; the first is the newest */
	unsigned key_count;
};

/* Reads and, if secret is not NULL, opens what it opens. keyring: NULL on error, else the receiver's
 * (keyring_free). Secret stays the caller's until done. */
void keyring_load(struct store *store, const struct id128 *volume, const struct secret *secret,
		  void (*done)(void *context, struct keyring *keyring, int error), void *context);
void keyring_free(struct keyring *keyring); /* NULL is allowed */

/* Wraps a data key for secret and puts it as a slot of its own. */
void keyring_add(struct store *store, const struct id128 *volume, const struct data_key *key,
		 const struct secret *secret, const char *label,
		 void (*done)(void *context, const struct id128 *slot, int error), void *context);

/* A new, random data key; not yet in the store. */
void keyring_new_key(struct env *env, struct data_key *key);

#endif
