/* SPDX-License-Identifier: Apache-2.0 */
/* forget: lists, decides by the policy, and has what it does not keep deleted. */
#include "daemon/snapshot/retention.h"

#include <errno.h>
#include <stdlib.h>

#include "daemon/snapshot/internal.h"

struct forget {
	struct snapshot_repo *repo;
	struct retention_policy policy;
	bool dry_run;
	struct snapshot_info *infos;
	size_t count, room;
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
	free(f);
}

static void forget_deleted(void *context, const struct snapshot_result *result)
{
	forget_finish(context, result);
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

static void forget_decide(struct forget *f)
{
	struct retention_verdict *verdicts = must_alloc(f->count * sizeof(*verdicts));
	struct id128 *ids = must_alloc(f->count * sizeof(*ids));
	struct snapshot_result fine = {.error = 0};
	size_t going = 0;

	retention_decide(&f->policy, f->infos, f->count, env_realtime_ns(f->repo->env), verdicts);
	for (size_t i = 0; i < f->count; i++) {
		if (f->each)
			f->each(f->context, &f->infos[i], verdicts[i].keep, verdicts[i].why);
		if (!verdicts[i].keep)
			ids[going++] = f->infos[i].id;
	}
	free(verdicts);
	if (going && !f->dry_run)
		collect_forget(f->repo, ids, going, forget_deleted, f);
	else
		forget_finish(f, &fine);
	free(ids);
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
		forget_decide(f);
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
	snapshot_list(repo, forget_each, forget_damaged, forget_listed, f);
}
