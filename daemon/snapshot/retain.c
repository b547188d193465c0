/* SPDX-License-Identifier: Apache-2.0 */
/*
 * retain: keeps from being deleted, for as long as a new snapshot, what it shares with older ones, and the
 * keys that open it. Or what an older one needs, for longer than it was; see renew.c.
 *
 * One request an object, so not for each snapshot: what is locked is locked for an eighth of lock-for
 * longer than it has to be, and until that is used up later snapshots share without asking (seal.c). But
 * keys may have come meanwhile: they are locked once more when they were read anew.
 */
#include "daemon/snapshot/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUSY_MAX 8

struct retain;

struct retain_op {
	struct env_op op;
	struct retain *retain;
	char name[SNAPFMT_NAME_BYTES];
	bool busy;
};

struct retain {
	struct store *store;
	const struct manifest *manifest;
	const struct store_retention *retention;
	bool keys_wanted;
	bool (*wanted)(void *context, const struct manifest_object *object);
	struct env_op list_op;
	char prefix[SNAPFMT_NAME_BYTES];
	char (*keys)[SNAPFMT_NAME_BYTES];
	size_t key_count, key_room, next_key;
	unsigned next; /* index in the manifest's objects */
	struct retain_op ops[BUSY_MAX];
	unsigned busy;
	int error;
	char why[WHY_BYTES];
	void (*done)(void *context, int error, const char *why);
	void *context;
};

static void pump(struct retain *r);

/* The next name to be locked; false: there is none. */
static bool next_name(struct retain *r, char name[SNAPFMT_NAME_BYTES])
{
	const struct manifest *m = r->manifest;

	if (r->next_key < r->key_count) {
		memcpy(name, r->keys[r->next_key++], SNAPFMT_NAME_BYTES);
		return true;
	}
	while (r->wanted && r->next < m->object_count) {
		const struct manifest_object *object = &m->objects[r->next++];

		if (!r->wanted(r->context, object))
			continue;
		snapfmt_name(object->kind, &m->info.volume, &object->ref, name);
		return true;
	}
	return false;
}

static void retained(struct env_op *op, int64_t result)
{
	struct retain_op *one = container_of(op, struct retain_op, op);
	struct retain *r = one->retain;

	one->busy = false;
	r->busy--;
	if (result < 0 && !r->error)
		r->error = why_set(r->why, (int)result, "%s: not locked for longer: %s", one->name,
				   store_strerror((int)result));
	pump(r);
}

static void pump(struct retain *r)
{
	for (unsigned i = 0; i < BUSY_MAX && !r->error; i++) {
		struct retain_op *one = &r->ops[i];

		if (one->busy || !next_name(r, one->name))
			continue;
		one->busy = true;
		one->retain = r;
		one->op.done = retained;
		r->busy++;
		store_retain(r->store, &one->op, one->name, r->retention);
	}
	if (r->busy)
		return;
	r->done(r->context, r->error, r->why);
	free(r->keys);
	free(r);
}

static void key_listed(void *context, const struct store_object *object)
{
	struct retain *r = context;
	char(*name)[SNAPFMT_NAME_BYTES] =
		array_add((void **)&r->keys, &r->key_count, &r->key_room, sizeof(*name));

	snprintf(*name, sizeof(*name), "%s", object->name);
}

static void keys_listed(struct env_op *op, int64_t result)
{
	struct retain *r = container_of(op, struct retain, list_op);

	if (result < 0)
		r->error = why_set(r->why, (int)result, "%s: cannot be listed: %s", r->prefix,
				   store_strerror((int)result));
	pump(r);
}

static void begin(void *context)
{
	struct retain *r = context;
	char volume[ID128_TEXT_BYTES];

	if (!r->store->encrypted || !r->keys_wanted) {
		pump(r);
		return;
	}
	id128_format(&r->manifest->info.volume, volume);
	snprintf(r->prefix, sizeof(r->prefix), "%s/keys/", volume);
	r->list_op.done = keys_listed;
	r->store->ops->list(r->store, &r->list_op, r->prefix, key_listed, r);
}

void retain_objects(struct store *store, const struct manifest *manifest,
		    const struct store_retention *retention, bool keys,
		    bool (*wanted)(void *context, const struct manifest_object *object),
		    void (*done)(void *context, int error, const char *why), void *context)
{
	struct retain *r = must_alloc(sizeof(*r));

	r->store = store;
	r->manifest = manifest;
	r->retention = retention;
	r->keys_wanted = keys;
	r->wanted = wanted;
	r->done = done;
	r->context = context;
	call_later(store->env, begin, r);
}
