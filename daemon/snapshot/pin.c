/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pins: who needs a snapshot says so in the store, and each for itself: the operator, and by an identifier of its own
 * (a holder) whatever reads it for long. So nobody takes away what another one counts on.
 */
#include "daemon/snapshot/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct pin {
	struct env_op op;
	struct snapshot_repo *repo;
	struct id128 id, holder;
	bool all;    /* unpin: whoever holds it */
	bool is_put; /* pin: it is there */
	bool ours;   /* pin: nobody else counts on this object, it may be withdrawn */
	int error;   /* what it is withdrawn for */
	char why[WHY_BYTES];
	unsigned left; /* unpin: pins of others */
	char (*names)[SNAPFMT_NAME_BYTES];
	size_t count, room, next; /* unpin: those to be deleted */
	char name[SNAPFMT_NAME_BYTES];
	char content[8];
	struct iovec iov;
	void (*done)(void *context, const struct snapshot_result *result);
	void *context;
};

bool pin_is_of(const struct snapshot_repo *repo, const struct store_object *object,
	       struct id128 *snapshot, struct id128 *holder)
{
	struct snapfmt_ref ref;
	struct id128 volume;

	if (!snapfmt_pin_parse(object->name, &volume, &ref, holder) ||
	    !id128_equal(&volume, &repo->volume))
		return false;
	*snapshot = ref.snapshot;
	return true;
}

static void pin_finish(struct pin *pin, int error, const char *why)
{
	struct snapshot_result result = {.error = error, .pins_left = pin->left};

	if (error)
		why_set(result.why, error, "%s", why);
	pin->repo->under_way--;
	pin->done(pin->context, &result);
	free(pin->names);
	free(pin);
}

static struct pin *pin_new(struct snapshot_repo *repo, const struct id128 *id,
			   const struct id128 *holder,
			   void (*done)(void *context, const struct snapshot_result *result),
			   void *context)
{
	struct pin *pin = must_alloc(sizeof(*pin));

	*pin = (struct pin){.repo = repo, .id = *id, .done = done, .context = context};
	if (holder)
		pin->holder = *holder;
	repo->under_way++;
	return pin;
}

/* ---- pin ------------------------------------------------------------------------------------- */

static void pin_withdrawn(struct env_op *op, int64_t result)
{
	struct pin *pin = container_of(op, struct pin, op);
	char why[WHY_BYTES];

	if (result >= 0 || !pin->is_put) {
		pin_finish(pin, pin->error, pin->why);
		return;
	}
	why_set(why, 0, "%s; and the pin stays: %s: %s", pin->why, pin->name,
		store_strerror((int)result));
	pin_finish(pin, pin->error, why);
}

/* Nobody can count on it: so it does not stay. But one that was there before may be counted on. */
static void pin_withdraw(struct pin *pin, int error, const char *why)
{
	pin->error = error;
	why_set(pin->why, error, "%s", why);
	if (!pin->ours) {
		pin_finish(pin, error, why);
		return;
	}
	pin->op.done = pin_withdrawn;
	pin->repo->store->ops->delete (pin->repo->store, &pin->op, pin->name);
}

/* Its deletion may have begun before anybody could see the pin. */
static void pin_confirmed(void *context, struct names *names, int error, const char *why)
{
	struct pin *pin = context;

	if (error)
		pin_withdraw(pin, error, why);
	else if (!refs_have(names->refs, names->count, &pin->id))
		pin_withdraw(pin, -ENOENT, "the snapshot was deleted from the store meanwhile");
	else
		pin_finish(pin, 0, "");
}

static void pin_put(struct env_op *op, int64_t result)
{
	struct pin *pin = container_of(op, struct pin, op);
	char why[WHY_BYTES];

	/* A holder's is nobody else's. Of the operator's only a success says that there was none before. */
	pin->ours = result >= 0 || !id128_is_zero(&pin->holder);
	pin->is_put = result >= 0 || result == -EEXIST;
	if (pin->is_put) {
		names_list(pin->repo->store, &pin->repo->volume, pin_confirmed, pin);
		return;
	}
	/* It may be there all the same, or come later. */
	why_set(why, 0, "%s: %s%s", pin->name, store_strerror((int)result),
		pin->ours ? "" : "; it may be there all the same");
	pin_withdraw(pin, (int)result, why);
}

static void pin_named(void *context, struct names *names, int error, const char *why)
{
	struct pin *pin = context;
	const struct snapfmt_ref *found = NULL;

	for (size_t i = 0; i < names->count; i++)
		if (id128_equal(&names->refs[i].snapshot, &pin->id))
			found = &names->refs[i];
	if (error || !found) {
		pin_finish(pin, error ? error : -ENOENT,
			   error ? why : "no such snapshot in the store");
		return;
	}
	snapfmt_pin_name(&pin->repo->volume, found, &pin->holder, pin->name);
	pin->op.done = pin_put;
	pin->repo->store->ops->put(pin->repo->store, &pin->op, pin->name, &pin->iov, 1);
}

void snapshot_pin(struct snapshot_repo *repo, const struct id128 *id, const struct id128 *holder,
		  void (*done)(void *context, const struct snapshot_result *result), void *context)
{
	struct pin *pin = pin_new(repo, id, holder, done, context);

	strcpy(pin->content, "pinned\n");
	pin->iov = (struct iovec){pin->content, sizeof(pin->content)};
	names_list(repo->store, &repo->volume, pin_named, pin);
}

/* ---- unpin ----------------------------------------------------------------------------------- */

static void unpin_next(struct pin *pin);

static void unpinned(struct env_op *op, int64_t result)
{
	struct pin *pin = container_of(op, struct pin, op);
	char why[WHY_BYTES];

	if (result < 0) {
		why_set(why, 0, "%s: %s", pin->names[pin->next], store_strerror((int)result));
		pin_finish(pin, (int)result, why);
		return;
	}
	pin->next++;
	unpin_next(pin);
}

static void unpin_next(struct pin *pin)
{
	if (pin->next == pin->count) {
		pin_finish(pin, 0, "");
		return;
	}
	pin->op.done = unpinned;
	pin->repo->store->ops->delete (pin->repo->store, &pin->op, pin->names[pin->next]);
}

static void unpin_each(void *context, const struct store_object *object)
{
	struct pin *pin = context;
	struct id128 snapshot, holder;
	char(*name)[SNAPFMT_NAME_BYTES];

	if (!pin_is_of(pin->repo, object, &snapshot, &holder) || !id128_equal(&snapshot, &pin->id))
		return;
	if (!pin->all && !id128_equal(&holder, &pin->holder)) {
		pin->left++;
		return;
	}
	name = array_add((void **)&pin->names, &pin->count, &pin->room, sizeof(*name));
	strcpy(*name, object->name);
}

static void unpin_listed(struct env_op *op, int64_t result)
{
	struct pin *pin = container_of(op, struct pin, op);
	char why[WHY_BYTES];

	if (result >= 0) {
		unpin_next(pin);
		return;
	}
	why_set(why, 0, "%s: cannot be listed: %s", pin->name, store_strerror((int)result));
	pin_finish(pin, (int)result, why);
}

/* Also of a snapshot that is marked as deleted: it stays as long as it is pinned. */
void snapshot_unpin(struct snapshot_repo *repo, const struct id128 *id, const struct id128 *holder,
		    bool all, void (*done)(void *context, const struct snapshot_result *result),
		    void *context)
{
	struct pin *pin = pin_new(repo, id, holder, done, context);

	pin->all = all;
	pin->op.done = unpin_listed;
	snapfmt_pin_name(&repo->volume, NULL, NULL, pin->name);
	repo->store->ops->list(repo->store, &pin->op, pin->name, unpin_each, pin);
}
