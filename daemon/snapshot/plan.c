/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/snapshot/plan.h"

#include <errno.h>
#include <stdlib.h>

#include "daemon/snapshot/internal.h"

#define SAMPLE_BYTES (1u << 20)
#define PARALLEL     BULK_GETS
#define PAGES_MAX    64u /* map pages that are read for it */
#define PAGES_QUICK  6u

/* Of a restore: the names, the manifest's size and the manifest, what the store has of packs and maps. */
#define FIRST_REQUESTS 5

struct planning {
	struct snapshot_repo *repo;
	struct id128 id; /* zero: the newest */
	struct walk walk;
	struct gather gather;
	uint64_t requests, bytes; /* for chunks, as gathered */
	struct snapshot_plan_target target;
	struct differing differing; /* of its volume, if that is known */
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
	free(p->differing.bits);
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

static void sample_fetch(struct planning *p)
{
	if (!p->sample_bytes) {
		planning_end(p, 0, "");
		return;
	}
	p->sample_ns = env_now_ns(p->repo->env);
	fetch(p->repo->store, p->sample, 0, p->sample_bytes, sampled, p);
}

/* ---- requests ---------------------------------------------------------------------------------- */

/* What the manifest knows. */
static void count(struct planning *p, const struct manifest *m)
{
	struct snapshot_plan *plan = &p->plan;

	plan->info = m->info;
	plan->write_bytes = m->info.data_bytes;
	plan->requests = FIRST_REQUESTS + m->page_count;
	for (unsigned i = 0; i < m->page_count; i++)
		plan->fetch_bytes += m->pages[i].length_bytes;
	for (unsigned i = 0; i < m->object_count; i++) {
		const struct manifest_object *object = &m->objects[i];

		if (object->kind != SNAPFMT_PACK)
			continue;
		p->bytes += object->live_bytes;
		p->requests += (object->live_bytes + BULK_BYTES - 1) / BULK_BYTES;
	}
}

static void gathered(struct gather *gather, const struct gather_piece *pieces, unsigned count,
		     uint32_t from, uint32_t to)
{
	struct planning *p = container_of(gather, struct planning, gather);

	p->requests++;
	p->bytes += to - from;
}

static void requests_counted(struct planning *p)
{
	p->plan.requests += p->requests;
	p->plan.fetch_bytes += p->bytes;
	sample_fetch(p);
}

/* A page that cannot be read the restore says: the requests are those known by the manifest then. */
static void walk_ready(struct walk *walk)
{
	struct planning *p = container_of(walk, struct planning, walk);
	enum walk_result next;
	struct walk_item item;

	while ((next = walk_next(walk, &item)) == WALK_ITEM) {
		if (!item.page)
			continue;
		gather_add(&p->gather, &item, NULL);
		walk_release(walk, item.page);
	}
	if (next == WALK_WAIT || !walk_idle(walk))
		return;
	gather_flush(&p->gather);
	walk_end(walk);
	p->plan.exact = next == WALK_END;
	if (!p->plan.exact) {
		p->plan.requests = p->plan.fetch_bytes = p->requests = p->bytes = 0;
		count(p, p->manifest);
	}
	requests_counted(p);
}

static void walk_start(struct planning *p)
{
	p->requests = p->bytes = 0;
	p->gather.request = gathered;
	p->walk.store = p->repo->store;
	p->walk.manifest = p->manifest;
	p->walk.ready = walk_ready;
	walk_begin(&p->walk);
	if (walk_idle(&p->walk)) /* it is all zeroes */
		walk_ready(&p->walk);
}

/* What is missing the restore says. */
static void counted(void *context, int error, const char *why)
{
	struct planning *p = context;

	if (!error) {
		p->plan.archived_objects = p->archive.count;
		p->plan.archive_ns = p->archive.takes_ns;
	}
	if (p->target.exact && !p->target.at_once && p->manifest->page_count <= PLAN_PAGES)
		walk_start(p);
	else
		requests_counted(p);
}

/* ---- the course -------------------------------------------------------------------------------- */

static void differing_counted(void *context, const struct differing_cost *cost, int error,
			      const char *why)
{
	struct planning *p = context;

	if (error) {
		planning_end(p, error, why);
		return;
	}
	p->plan.fetch_bytes = cost->fetch_bytes;
	p->plan.requests = FIRST_REQUESTS + cost->requests;
	p->requests = p->bytes = 0; /* of all of it */
	if (!p->plan.differing_bytes)
		p->sample_bytes = 0;
	if (p->target.at_once)
		counted(p, 0, "");
	else
		inventory_look(p->repo->store, p->manifest, &p->archive, counted, p);
}

/* The objects are looked for where there is time for it. */
static void planning_go_on(struct planning *p)
{
	struct snapshot_plan *plan = &p->plan;

	if (p->target.volume)
		differing_find(&p->differing, p->target.volume, &p->manifest->info);
	plan->differing_known = p->differing.bits != NULL;
	plan->at_most = p->target.holds_something || plan->differing_known;
	if (plan->differing_known) {
		plan->differing_bytes = plan->write_bytes = differing_bytes(&p->differing);
		differing_cost(p->repo->store, p->manifest, &p->differing,
			       p->target.at_once ? PAGES_QUICK : PAGES_MAX, differing_counted, p);
	} else if (p->target.at_once) {
		counted(p, 0, "");
	} else {
		inventory_look(p->repo->store, p->manifest, &p->archive, counted, p);
	}
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
	planning_go_on(p);
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
		   const struct snapshot_plan_target *target,
		   void (*done)(void *context, const struct snapshot_plan *plan, int error,
				const char *why),
		   void *context)
{
	struct planning *p = must_alloc(sizeof(*p));

	p->repo = repo;
	p->done = done;
	p->context = context;
	if (target)
		p->target = *target;
	if (id)
		p->id = *id;
	repo->under_way++;
	names_list(repo->store, &repo->volume, planning_listed, p);
}
