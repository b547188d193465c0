/* SPDX-License-Identifier: Apache-2.0 */
/*
 * jobs: long work that was asked for through the API: started, asked after by number, kept for a
 * while after its end. Loop thread only.
 *
 *  state      meaning                                        allowed next
 *  RUNNING    under way in the node or the store             SUCCEEDED, FAILED
 *  SUCCEEDED  done                                           -
 *  FAILED     error and why say the reason; a verification   -
 *             that found damage ends here, with code "damaged"
 */
#ifndef OFFSITE_CONTROL_JOBS_H
#define OFFSITE_CONTROL_JOBS_H

#include <jansson.h>

#include "daemon/control/events.h"
#include "daemon/node/node.h"
#include "daemon/snapshot/plan.h"

#define JOBS_FINISHED_KEPT 64u
#define JOBS_DAMAGED_KEPT  100u

enum job_type {
	JOB_SNAPSHOT_CREATE,
	JOB_SNAPSHOT_DELETE,
	JOB_SNAPSHOT_VERIFY,
	JOB_RESTORE,
	JOB_RESTORE_FROM_PEER,
	JOB_RESOLVE,
	JOB_REPLACE_DISK,
	JOB_SNAPSHOT_PROVE,
	JOB_TYPES,
};
enum job_state { JOB_RUNNING, JOB_SUCCEEDED, JOB_FAILED };
const char *job_type_name(enum job_type type);    /* "snapshot-create", ... */
const char *job_state_name(enum job_state state); /* "running", ... */

struct jobs;
struct job {
	/* Read-only for others. */
	struct jobs *jobs;
	unsigned id;
	enum job_type type;
	enum job_state state;
	struct node_volume *volume; /* not to be touched once the node has stopped */
	char volume_name[64];
	struct id128 snapshot; /* zero: newest, all or none */
	unsigned sample_percent;
	char label[SNAPSHOT_NAME_MAX];
	char keep[64];                    /* JOB_RESOLVE: the node whose content counts */
	bool no_keep;                     /* ... and the other's changes are not kept */
	bool dry_run;                     /* JOB_RESTORE: only the plan */
	struct snapshot_plan plan;        /* ... when it succeeded */
	bool instant;                     /* JOB_RESTORE: done when the volume can be used */
	struct id128 source_volume;       /* ... whose snapshot; zero: its own */
	char source_name[64];             /* ... or the same by its name in the store; "" */
	unsigned sources;                 /* volumes of that name */
	char kept[512];                   /* JOB_RESOLVE: where they were kept, else "" */
	uint64_t started_ns, finished_ns; /* realtime */
	uint64_t started_mono_ns;
	struct snapshot_progress progress;
	struct snapshot_result result;
	json_t *damaged;             /* JOB_SNAPSHOT_VERIFY: array of what bad() told, or NULL */
	struct store *store;         /* JOB_SNAPSHOT_VERIFY, and to look at another volume's
					snapshots: its own, so that the node can stop */
	struct snapshot_repo *repo;  /* likewise */
	struct env_work opening;     /* of store, on a helper thread */
	char *store_url;             /* for it: the node's config may be gone */
	struct secret *store_secret; /* likewise; NULL once the store has it */
	struct id128 volume_uuid;
	struct job *next;
};

/* finished() is called once for each job, when it is no longer RUNNING. */
struct jobs *jobs_new(struct env *env, void (*finished)(void *context, struct job *job),
		      void *context);
/* The node is about to stop: jobs begin nothing more in it. */
void jobs_stop(struct jobs *jobs);
/* False, and nothing freed, while a job is RUNNING. */
bool jobs_free(struct jobs *jobs);

/* What to start; the job's fields of the same names. */
struct job_order {
	enum job_type type;
	struct node_volume *volume;
	struct id128 snapshot;
	unsigned sample_percent;
	const char *label;
	const char *keep;
	bool no_keep;
	bool instant;               /* JOB_RESTORE: done when the volume can be used */
	struct id128 source_volume; /* ... whose snapshot; zero: its own */
	const char *source_name;    /* ... or the same by its name in the store; NULL */
	bool dry_run;               /* JOB_RESTORE: only the plan */
};
/* Starts a job. NULL and *error (-errno) and why: -EBUSY when a job on the volume excludes it. The
 * job may have finished already. */
struct job *jobs_start(struct jobs *jobs, const struct job_order *order, int *error, char *why,
		       size_t why_size);
struct job *jobs_find(struct jobs *jobs, unsigned id);
/* Newest first. */
struct job *jobs_first(struct jobs *jobs);
/* How many jobs of a type are RUNNING. */
unsigned jobs_running(const struct jobs *jobs, enum job_type type);
/* True if a job of type `type` may not start while one of type `running` runs on the volume. */
bool jobs_excludes(enum job_type type, enum job_type running);

#endif
