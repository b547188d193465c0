// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/job.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "daemon/node/refusal.h"
#include "daemon/node/storage.h"

struct node_job {
	node_done_fn done;
	void *context;
};

int node_job_take(struct node_volume *v, const char *what, node_done_fn done, void *context,
		  char *why, size_t why_size)
{
	assert(!v->busy && !v->job);
	v->job = malloc(sizeof(*v->job));
	if (!v->job)
		return node_fail(-ENOMEM, why, why_size, "out of memory");
	*v->job = (struct node_job){done, context};
	v->busy = what;
	return 0;
}

int node_job_begin(struct node_volume *v, const char *what, node_done_fn done, void *context,
		   char *why, size_t why_size)
{
	struct volume_stats stats;
	int error = node_check_usable(v, why, why_size);

	if (error)
		return error;
	volume_get_stats(v->volume, &stats);
	if (stats.clients > 0)
		return node_fail(-EBUSY, why, why_size,
				 "volume %s: clients have it open; detach them before a restore",
				 v->config->name);
	if (storage_is_writing(v))
		return node_fail(-EBUSY, why, why_size, "volume %s: a snapshot is being taken",
				 v->config->name);
	return node_job_take(v, what, done, context, why, why_size);
}

void node_job_finish(struct node_volume *v, int error, const char *why)
{
	struct node_job job = *v->job;

	free(v->job);
	v->job = NULL;
	v->busy = NULL;
	job.done(job.context, error, why);
}
