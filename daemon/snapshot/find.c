/* SPDX-License-Identifier: Apache-2.0 */
/* find: snapshots by what people call them. */
#include "daemon/snapshot/diff.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/snapshot/internal.h"

struct find {
	struct snapshot_repo *repo;
	char text[ID128_TEXT_BYTES];
	uint64_t asked_ns;
	bool again;
	void (*found)(void *context, const struct snapshot_info *found, int error, const char *why);
	unsigned max;
	void (*ids)(void *context, const struct snapshot_info *found, unsigned count, int error,
		    const char *why);
	void *context;
};

/* 0, or -errno and why: which of the names is meant. */
static int choose(const struct find *f, const struct names *names, const struct snapfmt_ref **ref,
		  char why[WHY_BYTES])
{
	const size_t length = strlen(f->text);
	unsigned matches = 0;

	if (!names->count)
		return why_set(why, -ENOENT, "the store holds no snapshot of this volume");
	for (size_t i = 0; length && i < names->count; i++) {
		char id[ID128_TEXT_BYTES];

		id128_format(&names->refs[i].snapshot, id);
		if (strncmp(id, f->text, length))
			continue;
		*ref = &names->refs[i];
		matches++;
	}
	if (matches == 1)
		return 0;
	if (matches)
		return why_set(why, -EINVAL, "snapshot '%s': %u ids begin so; give more digits",
			       f->text, matches);
	return why_set(why, -ENOENT, "snapshot '%s': there is none whose id begins so", f->text);
}

static struct snapshot_info info_of(const struct snapshot_repo *repo, const struct snapfmt_ref *ref)
{
	return (struct snapshot_info){
		.id = ref->snapshot,
		.sequence = ref->sequence,
		.volume = repo->volume,
	};
}

static void find_end(struct find *f, const struct snapshot_info *info, int error, const char *why)
{
	f->repo->under_way--;
	f->found(f->context, info, error, why);
	free(f);
}

static void latest_loaded(void *context, struct manifest *manifest, int error, const char *why)
{
	struct snapshot_info info = {.sequence = 0};

	if (!error) {
		info.id = manifest->info.id;
		info.sequence = manifest->info.sequence;
		info.volume = manifest->info.volume;
	}
	manifest_free(manifest);
	find_end(context, error ? NULL : &info, error, why);
}

static void find_listed(void *context, const struct names *names, int error, const char *why)
{
	struct find *f = context;
	struct snapshot_info info = {.sequence = 0};
	const struct snapfmt_ref *ref = NULL;
	char line[WHY_BYTES];

	if (!error && names->count && !strcmp(f->text, "latest")) {
		manifest_load_newest(f->repo->store, &f->repo->volume, names, latest_loaded, f);
		return;
	}
	if (!error) {
		error = choose(f, names, &ref, line);
		why = error ? line : "";
		if (error == -ENOENT && !f->again && f->repo->seen_ns < f->asked_ns) {
			f->again = true; /* put since that list, maybe */
			repo_changed(f->repo);
			repo_look(f->repo, NULL, find_listed, f);
			return;
		}
	}
	if (!error)
		info = info_of(f->repo, ref);
	find_end(f, error ? NULL : &info, error, why);
}

void snapshot_find(struct snapshot_repo *repo, const char *text,
		   void (*done)(void *context, const struct snapshot_info *found, int error,
				const char *why),
		   void *context)
{
	struct find *f = must_alloc(sizeof(*f));
	struct id128 id;

	f->asked_ns = env_now_ns(repo->env);
	/* What is longer than an id names none, cut or not. */
	f->repo = repo;
	strncpy(f->text, text, sizeof(f->text) - 1);
	if (strlen(text) >= sizeof(f->text))
		f->text[0] = '-';
	f->found = done;
	f->context = context;
	repo->under_way++;
	repo_look(repo, id128_parse(f->text, strlen(f->text), &id) ? &id : NULL, find_listed, f);
}

static void ids_listed(void *context, const struct names *names, int error, const char *why)
{
	struct find *f = context;
	unsigned count = names->count < f->max ? (unsigned)names->count : f->max;
	struct snapshot_info *infos = must_alloc(count * sizeof(*infos));

	for (unsigned i = 0; i < count; i++)
		infos[i] = info_of(f->repo, &names->refs[names->count - 1 - i]);
	f->repo->under_way--;
	f->ids(f->context, infos, error ? 0 : count, error, why);
	free(infos);
	free(f);
}

void snapshot_ids(struct snapshot_repo *repo, unsigned max,
		  void (*done)(void *context, const struct snapshot_info *found, unsigned count,
			       int error, const char *why),
		  void *context)
{
	struct find *f = must_alloc(sizeof(*f));

	f->repo = repo;
	f->max = max;
	f->ids = done;
	f->context = context;
	repo->under_way++;
	repo_look(repo, NULL, ids_listed, f);
}
