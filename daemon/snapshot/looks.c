/* SPDX-License-Identifier: Apache-2.0 */
/*
 * looks: which snapshots the store holds, for those who only look: by name, for a diff, for a list of contexts.
 * What the last list said is kept a little while, and looks at one time share one list, so that clients who
 * open and reopen exports do not list a bucket each time. An id that was seen once means the same for ever;
 * whether it is still there is found out where its manifest is loaded. What this process itself changes is
 * listed anew.
 */
#include "daemon/snapshot/internal.h"

#include <stdlib.h>

#define FRESH_NS 2000000000ull /* for "the newest", and "all" */
#define KEPT_NS  CLAIM_HOUR_NS /* for an id that is among them */

struct look {
	struct look *next;
	struct snapshot_repo *repo;
	struct id128 wanted; /* zero: none in particular */
	void (*done)(void *context, const struct names *names, int error, const char *why);
	void *context;
};

/* One list under way, and who waits for it. */
struct repo_list {
	struct snapshot_repo *repo;
	struct look *looks;
	uint64_t from_ns;
};

static bool seen_answers(const struct look *look)
{
	const struct snapshot_repo *repo = look->repo;
	uint64_t age_ns = env_now_ns(repo->env) - repo->seen_ns;

	if (!repo->seen_valid)
		return false;
	if (id128_is_zero(&look->wanted))
		return age_ns < FRESH_NS;
	return age_ns < KEPT_NS && refs_have(repo->seen.refs, repo->seen.count, &look->wanted);
}

static void look_end(struct look *look, const struct names *names, int error, const char *why)
{
	look->repo->under_way--;
	look->done(look->context, names, error, why);
	free(look);
}

static void looks_listed(void *context, struct names *names, int error, const char *why)
{
	struct repo_list *list = context;
	struct snapshot_repo *repo = list->repo;
	struct look *next;

	if (repo->list == list) { /* else something has changed since it began: told, not kept */
		repo->list = NULL;
		names_free(&repo->seen);
		repo->seen = *names;
		*names = (struct names){.count = 0};
		repo->seen_valid = !error;
		repo->seen_ns = list->from_ns;
		names = &repo->seen; /* stays until the next list ends */
	}
	for (struct look *look = list->looks; look; look = next) {
		next = look->next;
		look_end(look, names, error, why);
	}
	free(list);
}

static void look_start(struct look *look);

static void look_answer(void *context)
{
	struct look *look = context;

	if (seen_answers(look))
		look_end(look, &look->repo->seen, 0, "");
	else
		look_start(look);
}

static void look_start(struct look *look)
{
	struct snapshot_repo *repo = look->repo;

	if (seen_answers(look)) {
		call_later(repo->env, look_answer, look);
		return;
	}
	if (repo->list) {
		look->next = repo->list->looks;
		repo->list->looks = look;
		return;
	}
	repo->list = must_alloc(sizeof(*repo->list));
	*repo->list = (struct repo_list){repo, look, env_now_ns(repo->env)};
	names_list(repo->store, &repo->volume, looks_listed, repo->list);
}

void repo_look(struct snapshot_repo *repo, const struct id128 *wanted,
	       void (*done)(void *context, const struct names *names, int error, const char *why),
	       void *context)
{
	struct look *look = must_alloc(sizeof(*look));

	*look = (struct look){.repo = repo, .done = done, .context = context};
	if (wanted)
		look->wanted = *wanted;
	repo->under_way++;
	look_start(look);
}

void repo_changed(struct snapshot_repo *repo)
{
	repo->seen_valid = false;
	repo->list = NULL;
}
