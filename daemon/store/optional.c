/* SPDX-License-Identifier: Apache-2.0 */
/* What not every store can: done otherwise, or refused. See store.h. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/io/env_ops.h"
#include "daemon/store/store.h"

struct answer {
	struct env_task task;
	struct env_op *op;
	int64_t result;
};

static void answer_give(struct env_task *task)
{
	struct answer answer = *(struct answer *)task;

	free(task);
	answer.op->done(answer.op, answer.result);
}

static void answer_later(struct store *store, struct env_op *op, int64_t result)
{
	struct answer *answer = calloc(1, sizeof(*answer));

	assert(answer);
	*answer = (struct answer){{.call = answer_give}, op, result};
	env_defer(store->env, &answer->task);
}

static void refuse(struct store *store, struct env_op *op)
{
	answer_later(store, op, -STORE_CANNOT_LOCK);
}

void store_put(struct store *store, struct env_op *op, const char *name, const struct iovec *iov,
	       unsigned count, const struct store_retention *retention)
{
	if (!retention || retention->lock == STORE_LOCK_NONE) {
		store->ops->put(store, op, name, iov, count);
	} else if (store->ops->put_retained) {
		store->ops->put_retained(store, op, name, iov, count, retention);
	} else {
		refuse(store, op);
	}
}

void store_put_spent(struct store *store, struct env_op *op, const char *name,
		     const struct iovec *iov, unsigned count,
		     const struct store_retention *retention)
{
	static const struct store_retention none = {.lock = STORE_LOCK_NONE};

	if (store->ops->put_spent)
		store->ops->put_spent(store, op, name, iov, count, retention ? retention : &none);
	else
		store_put(store, op, name, iov, count, retention);
}

void store_retain(struct store *store, struct env_op *op, const char *name,
		  const struct store_retention *retention)
{
	if (store->ops->retain)
		store->ops->retain(store, op, name, retention);
	else
		refuse(store, op);
}

void store_retained(struct store *store, struct env_op *op, const char *name)
{
	if (store->ops->retained)
		store->ops->retained(store, op, name);
	else
		answer_later(store, op, 0);
}

struct listing_after {
	struct env_op op;
	struct env_op *user;
	void (*each)(void *context, const struct store_object *object);
	void *context;
	int64_t count;
	char after[];
};

static void after_each(void *context, const struct store_object *object)
{
	struct listing_after *l = context;

	if (strcmp(object->name, l->after) <= 0)
		return;
	l->count++;
	l->each(l->context, object);
}

static void after_done(struct env_op *op, int64_t result)
{
	struct listing_after *l = (struct listing_after *)op;
	struct env_op *user = l->user;

	if (result >= 0)
		result = l->count;
	free(l);
	user->done(user, result);
}

void store_list_after(struct store *store, struct env_op *op, const char *prefix, const char *after,
		      void (*each)(void *context, const struct store_object *object), void *context)
{
	struct listing_after *l;

	if (store->ops->list_after) {
		store->ops->list_after(store, op, prefix, after, each, context);
		return;
	}
	l = calloc(1, sizeof(*l) + strlen(after) + 1);
	assert(l);
	l->op.done = after_done;
	l->user = op;
	l->each = each;
	l->context = context;
	strcpy(l->after, after);
	store->ops->list(store, &l->op, prefix, after_each, l);
}
