/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/snapshot/plan.h"

#include <errno.h>
#include <stdlib.h>

#include "daemon/snapshot/internal.h"

#define SAMPLE_BYTES (1u << 20)
#define PARALLEL     BULK_GETS

struct planning {
	struct snapshot_repo *repo;
	struct id128 id; /* zero: the newest */
	struct snapshot_plan plan;
	uint64_t sample_bytes, sample_ns;
	char sample[SNAPFMT_NAME_BYTES];
	struct manifest *manifest;
	struct inventory_archive archive;
	void (*done)(void *context, const struct snapshot_plan *plan, int error, const char *why);
	void *context;
};

static void planning_end(struct planning *p, int error, const char *why)
{
	p->repo->under_way--;
	p->done(p->context, error ? NULL : &p->plan, error, why);
	manifest_free(p->manifest);
	free(p->archive.objects);
	free(p);
}

static void sampled(void *context, uint8_t *data, size_t length, int error, const char *why)
{
	struct planning *p = context;
	uint64_t took = env_now_ns(p->repo->env) - p->sample_ns;
	double alone;

	free(data);
	/* What cannot be read the restore says, or waits for. */
	if (!error && p->sample_bytes) {
		alone = (double)took / (double)p->sample_bytes * (double)p->plan.fetch_bytes;
		p->plan.estimate_ns = (uint64_t)(alone / PARALLEL);
		if (p->plan.estimate_ns < took)
			p->plan.estimate_ns = took;
	}
	planning_end(p, 0, "");
}

static void count(struct planning *p, const struct manifest *m)
{
	struct snapshot_plan *plan = &p->plan;

	plan->info = m->info;
	plan->write_bytes = m->info.data_bytes;
	plan->requests = 3 + m->page_count; /* lists, and the manifest */
	for (unsigned i = 0; i < m->page_count; i++)
		plan->fetch_bytes += m->pages[i].length_bytes;
	for (unsigned i = 0; i < m->object_count; i++) {
		const struct manifest_object *object = &m->objects[i];

		if (object->kind != SNAPFMT_PACK)
			continue;
		plan->fetch_bytes += object->live_bytes;
		plan->requests += (object->live_bytes + BULK_BYTES - 1) / BULK_BYTES;
	}
}

/* What is missing the restore says. */
static void counted(void *context, int error, const char *why)
{
	struct planning *p = context;

	if (!error) {
		p->plan.archived_objects = p->archive.count;
		p->plan.archive_ns = p->archive.takes_ns;
	}
	if (!p->sample_bytes) {
		planning_end(p, 0, "");
		return;
	}
	p->sample_ns = env_now_ns(p->repo->env);
	fetch(p->repo->store, p->sample, 0, p->sample_bytes, sampled, p);
}

static void planning_loaded(void *context, struct manifest *manifest, int error, const char *why)
{
	struct planning *p = context;

	if (error) {
		planning_end(p, error, why);
		return;
	}
	count(p, manifest);
	for (unsigned i = 0; i < manifest->object_count && !p->sample_bytes; i++) {
		const struct manifest_object *object = &manifest->objects[i];

		if (object->kind != SNAPFMT_PACK)
			continue;
		p->sample_bytes =
			object->size_bytes < SAMPLE_BYTES ? object->size_bytes : SAMPLE_BYTES;
		snapfmt_name(SNAPFMT_PACK, &p->repo->volume, &object->ref, p->sample);
	}
	p->manifest = manifest;
	inventory_look(p->repo->store, manifest, &p->archive, counted, p);
}

static void planning_listed(void *context, struct names *names, int error, const char *why)
{
	struct planning *p = context;
	const struct snapfmt_ref *found = NULL;

	for (size_t i = 0; i < names->count; i++)
		if (id128_equal(&p->id, &names->refs[i].snapshot))
			found = &names->refs[i];
	if (error)
		planning_end(p, error, why);
	else if (id128_is_zero(&p->id))
		manifest_load_newest(p->repo->store, &p->repo->volume, names, planning_loaded, p);
	else if (!found)
		planning_end(p, -ENOENT, "no such snapshot in the store");
	else
		manifest_load(p->repo->store, &p->repo->volume, found, planning_loaded, p);
}

void snapshot_plan(struct snapshot_repo *repo, const struct id128 *id,
		   void (*done)(void *context, const struct snapshot_plan *plan, int error,
				const char *why),
		   void *context)
{
	struct planning *p = must_alloc(sizeof(*p));

	p->repo = repo;
	p->done = done;
	p->context = context;
	if (id)
		p->id = *id;
	repo->under_way++;
	names_list(repo->store, &repo->volume, planning_listed, p);
}
