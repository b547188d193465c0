/* SPDX-License-Identifier: Apache-2.0 */
/*
 * forget: lists, decides by the policy, has what stays locked on (renew.c), and what it does not keep deleted.
 * Manifests say no more than how long they were locked at first: of what would go, or is due, the store is asked.
 */
#include "daemon/snapshot/retention.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/snapshot/internal.h"

struct forget {
	struct snapshot_repo *repo;
	struct retention_policy policy;
	bool dry_run;
	struct snapshot_info *infos;
	size_t count, room;
	/* By index in infos: */
	bool *pinned;
	bool *due; /* to be locked on */
	bool *ask; /* the store for its lock */
	struct retention_verdict *verdicts;
	struct renewed renewed;
	struct env_op op;
	char prefix[SNAPFMT_NAME_BYTES];
	bool damaged;
	char damaged_why[WHY_BYTES];
	void (*each)(void *context, const struct snapshot_info *info, bool keep, const char *why);
	void (*done)(void *context, const struct snapshot_result *result);
	void *context;
};

static void forget_finish(struct forget *f, const struct snapshot_result *result)
{
	f->repo->under_way--;
	f->done(f->context, result);
	free(f->infos);
	free(f->pinned);
	free(f->due);
	free(f->ask);
	free(f->verdicts);
	free(f);
}

static void forget_deleted(void *context, const struct snapshot_result *result)
{
	struct forget *f = context;
	struct snapshot_result both = *result;

	both.renewed_snapshots = f->renewed.snapshots;
	both.renewed_objects = f->renewed.objects;
	if (!both.error && f->renewed.error)
		both.error = why_set(both.why, f->renewed.error, "%s", f->renewed.why);
	forget_finish(f, &both);
}

static void forget_each(void *context, const struct snapshot_info *info)
{
	struct forget *f = context;
	struct snapshot_info *added =
		array_add((void **)&f->infos, &f->count, &f->room, sizeof(*added));

	*added = *info;
}

static void forget_damaged(void *context, const char *object, const char *why)
{
	struct forget *f = context;

	f->damaged = true;
	why_set(f->damaged_why, 0, "a snapshot is damaged; none is deleted: %s: %s", object, why);
}

/* What goes is deleted, after what stays was locked on. */
static void forget_renewed(void *context, const struct renewed *renewed)
{
	struct forget *f = context;
	struct id128 *ids = must_alloc((f->count + 1) * sizeof(*ids));
	const struct snapshot_result fine = {.error = 0};
	size_t going = 0;

	f->renewed = *renewed;
	for (size_t i = 0; i < f->count; i++)
		if (!f->verdicts[i].keep)
			ids[going++] = f->infos[i].id;
	if (going || f->dry_run || f->each) /* who asks is to get all that can go */
		collect_forget(f->repo, ids, going, f->dry_run, forget_deleted, f);
	else
		forget_deleted(f, &fine);
	free(ids);
}

static void forget_decide(struct forget *f)
{
	uint64_t now_ns = env_realtime_ns(f->repo->env);

	retention_decide(&f->policy, f->infos, f->pinned, f->count, now_ns, f->verdicts);
	retention_due(&f->policy, f->infos, f->pinned, f->count, now_ns, f->due);
	for (size_t i = 0; i < f->count; i++) {
		if (f->verdicts[i].keep || !snapshot_is_held(f->repo, &f->infos[i].id))
			continue;
		f->verdicts[i].keep = true;
		strcpy(f->verdicts[i].why, "open as an export");
	}
}

/* Until when what counts is locked is known. */
static void forget_looked(void *context, int error, const char *why)
{
	struct forget *f = context;
	struct snapshot_result failed = {.error = error};
	struct renewed due = {.snapshots = 0};

	if (error) {
		why_set(failed.why, error, "%s", why);
		forget_finish(f, &failed);
		return;
	}
	forget_decide(f);
	for (size_t i = 0; i < f->count; i++) {
		due.snapshots += f->due[i];
		if (f->each)
			f->each(f->context, &f->infos[i], f->verdicts[i].keep, f->verdicts[i].why);
	}
	if (f->dry_run || !due.snapshots)
		forget_renewed(f, &due);
	else
		locks_renew(f->repo, f->policy.lock_for_ns, f->infos, f->due, f->count,
			    forget_renewed, f);
}

static void forget_look_at_locks(struct forget *f)
{
	bool any = false;

	f->due = must_alloc((f->count + 1) * sizeof(*f->due));
	f->ask = must_alloc((f->count + 1) * sizeof(*f->ask));
	f->verdicts = must_alloc((f->count + 1) * sizeof(*f->verdicts));
	forget_decide(f);
	for (size_t i = 0; i < f->count; i++) {
		f->ask[i] = f->infos[i].retention.lock && (!f->verdicts[i].keep || f->due[i]);
		any |= f->ask[i];
	}
	if (any)
		locks_look(f->repo, f->infos, f->ask, f->count, forget_looked, f);
	else
		forget_looked(f, 0, "");
}

static void forget_pin(void *context, const struct store_object *object)
{
	struct forget *f = context;
	struct id128 snapshot, holder;

	if (!pin_is_of(f->repo, object, &snapshot, &holder))
		return;
	for (size_t i = 0; i < f->count; i++)
		f->pinned[i] |= id128_equal(&f->infos[i].id, &snapshot);
}

static void forget_pins_listed(struct env_op *op, int64_t result)
{
	struct forget *f = container_of(op, struct forget, op);
	struct snapshot_result failed = {.error = 0};

	if (result >= 0) {
		forget_look_at_locks(f);
		return;
	}
	failed.error = why_set(failed.why, (int)result, "%s: cannot be listed: %s", f->prefix,
			       store_strerror((int)result));
	forget_finish(f, &failed);
}

static void forget_look_at_pins(struct forget *f)
{
	f->pinned = must_alloc(f->count * sizeof(*f->pinned));
	f->op.done = forget_pins_listed;
	snapfmt_pin_name(&f->repo->volume, NULL, NULL, f->prefix);
	f->repo->store->ops->list(f->repo->store, &f->op, f->prefix, forget_pin, f);
}

/* The rules ask for nothing but the order: no manifest is read to decide. */
static void forget_named(void *context, struct names *names, int error, const char *why)
{
	struct forget *f = context;
	struct snapshot_result failed = {.error = error};

	for (size_t i = 0; i < names->count; i++) {
		struct snapshot_info info = {.id = names->refs[i].snapshot,
					     .sequence = names->refs[i].sequence};

		forget_each(f, &info);
	}
	if (!error) {
		forget_look_at_pins(f);
		return;
	}
	why_set(failed.why, error, "%s", why);
	forget_finish(f, &failed);
}

static void forget_listed(void *context, const struct snapshot_result *result)
{
	struct forget *f = context;
	struct snapshot_result failed = *result;

	if (!failed.error && f->damaged)
		failed.error = why_set(failed.why, -EBADMSG, "%s", f->damaged_why);
	if (failed.error)
		forget_finish(f, &failed);
	else
		forget_look_at_pins(f);
}

void snapshot_forget(
	struct snapshot_repo *repo, const struct retention_policy *policy, bool dry_run,
	void (*each)(void *context, const struct snapshot_info *info, bool keep, const char *why),
	void (*done)(void *context, const struct snapshot_result *result), void *context)
{
	struct forget *f = must_alloc(sizeof(*f));

	*f = (struct forget){
		.repo = repo,
		.policy = *policy,
		.dry_run = dry_run,
		.each = each,
		.done = done,
		.context = context,
	};
	repo->under_way++;
	if (!each && retention_is_only_last(policy))
		names_list(repo->store, &repo->volume, forget_named, f);
	else
		snapshot_list(repo, forget_each, forget_damaged, forget_listed, f);
}
