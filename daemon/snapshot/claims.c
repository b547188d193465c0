/* SPDX-License-Identifier: Apache-2.0 */
/*
 * claims: what is being written, and what that shares with. A claim stands from before a snapshot's first
 * object until its manifest is there. One whose writer stopped for good holds space back, so it ends: its
 * own node takes it away when nothing that the attempt sent can arrive any more; anybody after a month, in
 * which a writer has to be done. Whose it is its identifier says: names may be given twice. Clocks may be
 * wrong, so a writer whose claim is gone does not take its snapshot for one (seal.c).
 */
#include "daemon/snapshot/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct claims_job {
	struct env_op op;
	struct snapshot_repo *repo;
	char name[SNAPFMT_NAME_BYTES];
	struct claims claims; /* all, then those before next: the ones that count */
	size_t room, next, kept;
	void (*done)(void *context, const struct claims *claims, int error, const char *why);
	void *context;
};

static void claims_next(struct claims_job *job);

static void claims_finish(struct claims_job *job, int error, const char *why)
{
	job->claims.count = job->kept;
	job->done(job->context, &job->claims, error, why);
	free(job->claims.list);
	free(job);
}

static bool is_nobodys(const struct snapshot_repo *repo, const struct snapfmt_claim_wire *wire)
{
	const uint64_t now = env_realtime_ns(repo->env);

	if (!id128_is_zero(&repo->writer) && id128_equal(&wire->writer, &repo->writer) &&
	    env_now_ns(repo->env) >= repo->stale_from_ns)
		return true;
	return from_be64(wire->created_ns) + CLAIM_END_NS < now;
}

/* One that is there still counts: its writer may look for it, and go on. */
static void claim_deleted(struct env_op *op, int64_t result)
{
	struct claims_job *job = container_of(op, struct claims_job, op);

	if (result < 0)
		job->claims.list[job->kept++] = job->claims.list[job->next];
	job->next++;
	claims_next(job);
}

static void claim_read(void *context, uint8_t *data, size_t length, int error, const char *why)
{
	struct claims_job *job = context;
	struct store *store = job->repo->store;
	bool nobodys = !error && !snapfmt_claim_invalid((const void *)data) &&
		       is_nobodys(job->repo, (const void *)data);

	free(data);
	if (nobodys) {
		job->op.done = claim_deleted;
		store->ops->delete (store, &job->op, job->name);
		return;
	}
	if (error && error != -ENOENT && error != -EBADMSG) {
		claims_finish(job, error, why);
		return;
	}
	if (error != -ENOENT) /* else its manifest is there now */
		job->claims.list[job->kept++] = job->claims.list[job->next];
	job->next++;
	claims_next(job);
}

static void claims_next(struct claims_job *job)
{
	const struct claim *claim = &job->claims.list[job->next];

	if (job->next == job->claims.count) {
		claims_finish(job, 0, "");
		return;
	}
	if (id128_equal(&claim->ref.snapshot, &job->repo->attempt)) {
		job->claims.list[job->kept++] = *claim;
		job->next++;
		claims_next(job);
		return;
	}
	snapfmt_claim_name(&job->repo->volume, &claim->ref, &claim->base, job->name);
	fetch(job->repo->store, job->name, 0, sizeof(struct snapfmt_claim_wire), claim_read, job);
}

static void claims_each(void *context, const struct store_object *object)
{
	struct claims_job *job = context;
	struct claim claim, *added;
	struct id128 volume;

	if (!snapfmt_claim_parse(object->name, &volume, &claim.ref, &claim.base) ||
	    !id128_equal(&volume, &job->repo->volume))
		return;
	added = array_add((void **)&job->claims.list, &job->claims.count, &job->room,
			  sizeof(*added));
	*added = claim;
}

static void claims_listed(struct env_op *op, int64_t result)
{
	struct claims_job *job = container_of(op, struct claims_job, op);
	char why[WHY_BYTES];

	if (result >= 0) {
		claims_next(job);
		return;
	}
	why_set(why, 0, "%s: cannot be listed: %s", job->name, store_strerror((int)result));
	claims_finish(job, (int)result, why);
}

void claims_list(struct snapshot_repo *repo,
		 void (*done)(void *context, const struct claims *claims, int error,
			      const char *why),
		 void *context)
{
	struct claims_job *job = must_alloc(sizeof(*job));

	*job = (struct claims_job){
		.op = {.done = claims_listed},
		.repo = repo,
		.done = done,
		.context = context,
	};
	snapfmt_claim_name(&repo->volume, NULL, NULL, job->name);
	repo->store->ops->list(repo->store, &job->op, job->name, claims_each, job);
}

bool claims_protect_own(const struct claims *claims, const struct id128 *snapshot)
{
	for (size_t i = 0; i < claims->count; i++)
		if (id128_equal(&claims->list[i].ref.snapshot, snapshot))
			return true;
	return false;
}

bool claims_protect(const struct claims *claims, const struct id128 *snapshot)
{
	for (size_t i = 0; i < claims->count; i++)
		if (id128_equal(&claims->list[i].base, snapshot))
			return true;
	return claims_protect_own(claims, snapshot);
}
