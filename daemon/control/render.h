/* SPDX-License-Identifier: Apache-2.0 */
/*
 * render: samples and jobs as JSON (docs/API.md has the members) and as Prometheus text.
 * Pure functions of what they are given, but for the process's own memory figures.
 */
#ifndef OFFSITE_CONTROL_RENDER_H
#define OFFSITE_CONTROL_RENDER_H

#include <jansson.h>

#include "daemon/control/jobs.h"
#include "daemon/control/watch.h"
#include "daemon/snapshot/render.h"
#include "nbd-server/nbd_server.h"

/* done, total, rate, eta. now_ns: env_now_ns(). */
json_t *render_progress(const struct snapshot_progress *progress, uint64_t now_ns);
json_t *render_job(const struct job *job, uint64_t now_ns);
/* {bytes, extents, listed: [{offset, length}]} */
json_t *render_changes(const struct replication_changes *changes);
/* now_ns: env_now_ns(); realtime_ns: for ages. */
json_t *render_volume(const struct watch_sample *sample, uint64_t now_ns, uint64_t realtime_ns);
/* The last comparison with the peer, or the one under way; null: there was none. */
json_t *render_verify(const struct verify_status *verify, uint64_t now_ns);
/* "refused" (the state does not allow it), "missing", "invalid", "damaged", "failed". */
const char *render_code(int error);

/* What /metrics is made from. */
struct render_metrics {
	const char *node, *backend;
	double uptime_s;
	uint64_t resident_bytes;
	uint64_t realtime_ns;
	const struct nbd_server_stats *nbd; /* NULL: none */
	const struct watch_sample *samples;
	unsigned count;
	unsigned jobs_running[JOB_TYPES];
};
/* Prometheus text format 0.0.4; malloc'ed. NULL without memory. */
char *render_metrics(const struct render_metrics *metrics);

#endif
