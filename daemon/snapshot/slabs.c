/* SPDX-License-Identifier: Apache-2.0 */
/* See slabs.h. */
#include "daemon/snapshot/slabs.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "daemon/snapshot/internal.h"

struct ending {
	struct env_work work;
	struct slabs slabs;
};

uint8_t *slab_take(struct slabs *slabs)
{
	void *slab;

	if (slabs->count)
		return slabs->spare[--slabs->count];
	slab = mmap(NULL, slabs->slab_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		    -1, 0);
	assert(slab != MAP_FAILED);
	(void)madvise(slab, slabs->slab_bytes, MADV_HUGEPAGE);
	return slab;
}

void slab_give(struct slabs *slabs, uint8_t *slab)
{
	uint8_t **spare =
		array_add((void **)&slabs->spare, &slabs->count, &slabs->room, sizeof(*spare));

	*spare = slab;
}

void slabs_free(struct slabs *slabs)
{
	while (slabs->count)
		munmap(slabs->spare[--slabs->count], slabs->slab_bytes);
	free(slabs->spare);
	*slabs = (struct slabs){0};
}

static void end_run(struct env_work *work)
{
	slabs_free(&container_of(work, struct ending, work)->slabs);
}

static void end_done(struct env_work *work)
{
	free(container_of(work, struct ending, work));
}

void slabs_end(struct slabs *slabs, struct env *env)
{
	struct ending *ending;

	if (!slabs->count)
		return;
	ending = must_alloc(sizeof(*ending));
	ending->work = (struct env_work){.run = end_run, .done = end_done};
	ending->slabs = *slabs;
	*slabs = (struct slabs){0};
	env_work_submit(env, &ending->work);
}
