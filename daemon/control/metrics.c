// SPDX-License-Identifier: Apache-2.0
/*
 * metrics: the Prometheus text. One table of numbers: name, kind, help, where in a sample, scale.
 */
#include "daemon/control/render.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum group { OF_VOLUME, OF_REPLICATION, OF_SNAPSHOTS };

struct metric {
	const char *name;
	const char *kind; /* "counter" or "gauge" */
	const char *help;
	enum group group;
	size_t offset; /* of a uint64_t (or uint32_t: narrow) in struct watch_sample */
	bool narrow;
	double scale;
};

#define AT(field)    offsetof(struct watch_sample, field), false, 1
#define AT32(field)  offsetof(struct watch_sample, field), true, 1
#define AT_NS(field) offsetof(struct watch_sample, field), false, 1e-9

static const struct metric table[] = {
	{"offsite_volume_size_bytes", "gauge", "Size of the volume.", OF_VOLUME, AT(size_bytes)},
	{"offsite_volume_lsn", "counter", "Writes issued (primary) or applied (secondary).",
	 OF_VOLUME, AT(state.lsn)},
	{"offsite_volume_clients", "gauge", "NBD clients that have the volume open.", OF_VOLUME,
	 AT32(stats.clients)},
	{"offsite_volume_reads_total", "counter", "Read requests.", OF_VOLUME, AT(stats.reads)},
	{"offsite_volume_read_bytes_total", "counter", "Bytes read.", OF_VOLUME,
	 AT(stats.read_bytes)},
	{"offsite_volume_writes_total", "counter", "Write requests.", OF_VOLUME, AT(stats.writes)},
	{"offsite_volume_written_bytes_total", "counter", "Bytes written.", OF_VOLUME,
	 AT(stats.written_bytes)},
	{"offsite_volume_flushes_total", "counter", "Flush requests.", OF_VOLUME,
	 AT(stats.flushes)},
	{"offsite_volume_trims_total", "counter", "Trim and zero requests.", OF_VOLUME,
	 AT(stats.trims)},
	{"offsite_volume_io_errors_total", "counter", "Errors of the backing.", OF_VOLUME,
	 AT(stats.io_errors)},
	{"offsite_volume_intent_writes_total", "counter", "Write-intent pages written.", OF_VOLUME,
	 AT(stats.intent_writes)},
	{"offsite_volume_intent_regions", "gauge", "Regions with a write-intent bit.", OF_VOLUME,
	 AT(stats.intent_regions)},
	{"offsite_volume_preserved_bytes_total", "counter", "Bytes copied before write for cuts.",
	 OF_VOLUME, AT(stats.preserved_bytes)},
	{"offsite_volume_preserve_used_bytes", "gauge", "Preserve area in use.", OF_VOLUME,
	 AT(stats.preserve_used_bytes)},
	{"offsite_volume_preserve_max_bytes", "gauge", "Limit of the preserve area.", OF_VOLUME,
	 AT(stats.preserve_max_bytes)},
	{"offsite_volume_in_flight", "gauge", "Requests under way.", OF_VOLUME,
	 AT32(stats.in_flight)},
	{"offsite_volume_in_flight_max", "gauge", "Limit of requests under way.", OF_VOLUME,
	 AT32(stats.in_flight_max)},
	{"offsite_replication_lag_bytes", "gauge", "Bytes issued and not yet acknowledged.",
	 OF_REPLICATION, AT(replication.lag_bytes)},
	{"offsite_replication_lag_seconds", "gauge", "Age of the oldest unacknowledged write.",
	 OF_REPLICATION, AT_NS(replication.lag_ns)},
	{"offsite_replication_out_of_sync_bytes", "gauge", "Bytes the peer lacks.", OF_REPLICATION,
	 AT(replication.out_of_sync_bytes)},
	{"offsite_replication_sent_lsn", "counter", "Last LSN sent (source) or received.",
	 OF_REPLICATION, AT(replication.sent_lsn)},
	{"offsite_replication_acked_lsn", "counter", "Last LSN acknowledged (source) or durable.",
	 OF_REPLICATION, AT(replication.acked_lsn)},
	{"offsite_replication_sent_bytes_total", "counter", "Bytes sent to the peer.",
	 OF_REPLICATION, AT(replication.sent_bytes)},
	{"offsite_replication_received_bytes_total", "counter", "Bytes received from the peer.",
	 OF_REPLICATION, AT(replication.received_bytes)},
	{"offsite_replication_staged_bytes", "gauge", "Bytes staged for the next cut.",
	 OF_REPLICATION, AT(replication.staged_bytes)},
	{"offsite_replication_queue_bytes", "gauge", "Bytes in the send queue.", OF_REPLICATION,
	 AT(replication.queue_bytes)},
	{"offsite_replication_catch_up_done_bytes", "gauge", "Catch-up: bytes done.",
	 OF_REPLICATION, AT(replication.catch_up_done_bytes)},
	{"offsite_replication_catch_up_total_bytes", "gauge", "Catch-up: bytes in all.",
	 OF_REPLICATION, AT(replication.catch_up_total_bytes)},
	{"offsite_replication_cuts_total", "counter", "Cuts applied since start.", OF_REPLICATION,
	 AT(replication.cuts)},
	{"offsite_replication_connects_total", "counter", "Connections made.", OF_REPLICATION,
	 AT(replication.connects)},
	{"offsite_replication_disconnects_total", "counter", "Connections lost.", OF_REPLICATION,
	 AT(replication.disconnects)},
	{"offsite_snapshot_succeeded_total", "counter", "Snapshots stored since start.",
	 OF_SNAPSHOTS, AT(writer.succeeded)},
	{"offsite_snapshot_failed_total", "counter", "Snapshots failed since start.", OF_SNAPSHOTS,
	 AT(writer.failed)},
	{"offsite_snapshot_changed_bytes", "gauge", "Bytes changed since the last snapshot.",
	 OF_SNAPSHOTS, AT(dirty_store_bytes)},
	{"offsite_snapshot_progress_done_bytes", "gauge", "Snapshot under way: bytes done.",
	 OF_SNAPSHOTS, AT(writer.progress.done_bytes)},
	{"offsite_snapshot_progress_total_bytes", "gauge", "Snapshot under way: bytes in all.",
	 OF_SNAPSHOTS, AT(writer.progress.total_bytes)},
};

/* A label's value: backslash, quote and newline escaped. */
static void put_label(FILE *out, const char *value)
{
	for (; *value; value++) {
		if (*value == '\n') {
			fputs("\\n", out);
			continue;
		}
		if (*value == '\\' || *value == '"')
			fputc('\\', out);
		fputc(*value, out);
	}
}

static void put_head(FILE *out, const char *name, const char *kind, const char *help)
{
	fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind);
}

static void put_name(FILE *out, const char *name, const struct watch_sample *sample)
{
	fprintf(out, "%s{volume=\"", name);
	put_label(out, sample->volume->config->name);
	fputc('"', out);
}

static bool has_group(const struct watch_sample *sample, enum group group)
{
	switch (group) {
	case OF_VOLUME:
		return sample->open;
	case OF_REPLICATION:
		return sample->replicated;
	case OF_SNAPSHOTS:
		return sample->stored;
	}
	abort();
}

static void put_table(FILE *out, const struct render_metrics *metrics)
{
	for (unsigned i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		const struct metric *metric = &table[i];

		put_head(out, metric->name, metric->kind, metric->help);
		for (unsigned v = 0; v < metrics->count; v++) {
			const struct watch_sample *sample = &metrics->samples[v];
			const char *at = (const char *)sample + metric->offset;
			uint64_t value;
			uint32_t narrow;

			if (!has_group(sample, metric->group))
				continue;
			memcpy(&narrow, at, sizeof(narrow));
			if (metric->narrow)
				value = narrow;
			else
				memcpy(&value, at, sizeof(value));
			put_name(out, metric->name, sample);
			fprintf(out, "} %.*f\n", metric->scale == 1 ? 0 : 6,
				(double)value * metric->scale);
		}
	}
}

/* One line for each possible state, 1 for the present one: what Prometheus calls a state set. */
static void put_states(FILE *out, const struct render_metrics *metrics)
{
	put_head(out, "offsite_volume_up", "gauge", "1 if the volume is open.");
	for (unsigned v = 0; v < metrics->count; v++) {
		put_name(out, "offsite_volume_up", &metrics->samples[v]);
		fprintf(out, "} %d\n", metrics->samples[v].open);
	}
	put_head(out, "offsite_volume_role", "gauge", "1 for the present role.");
	for (unsigned v = 0; v < metrics->count; v++)
		for (int role = VOLUME_SECONDARY; role <= VOLUME_PRIMARY; role++) {
			if (!metrics->samples[v].open)
				continue;
			put_name(out, "offsite_volume_role", &metrics->samples[v]);
			fprintf(out, ",role=\"%s\"} %d\n", volume_role_name(role),
				(int)metrics->samples[v].state.role == role);
		}
	put_head(out, "offsite_volume_disk_state", "gauge", "1 for the present disk state.");
	for (unsigned v = 0; v < metrics->count; v++)
		for (int disk = VOLUME_DISK_UPTODATE; disk <= VOLUME_DISK_FAILED; disk++) {
			if (!metrics->samples[v].open)
				continue;
			put_name(out, "offsite_volume_disk_state", &metrics->samples[v]);
			fprintf(out, ",state=\"%s\"} %d\n", volume_disk_state_name(disk),
				(int)metrics->samples[v].state.disk == disk);
		}
	put_head(out, "offsite_replication_state", "gauge", "1 for the present state.");
	for (unsigned v = 0; v < metrics->count; v++)
		for (int state = 0; state <= REPLICATION_STREAMING; state++) {
			if (!metrics->samples[v].replicated)
				continue;
			put_name(out, "offsite_replication_state", &metrics->samples[v]);
			fprintf(out, ",state=\"%s\"} %d\n", replication_state_name(state),
				(int)metrics->samples[v].replication.state == state);
		}
}

static void put_snapshots(FILE *out, const struct render_metrics *metrics)
{
	put_head(out, "offsite_snapshot_running", "gauge", "1 while a snapshot is being stored.");
	for (unsigned v = 0; v < metrics->count; v++) {
		if (!metrics->samples[v].stored)
			continue;
		put_name(out, "offsite_snapshot_running", &metrics->samples[v]);
		fprintf(out, "} %d\n", metrics->samples[v].writer.running);
	}
	put_head(out, "offsite_snapshot_age_seconds", "gauge",
		 "Seconds since the newest snapshot's instant; absent while there is none.");
	for (unsigned v = 0; v < metrics->count; v++) {
		uint64_t created_ns = metrics->samples[v].newest.created_ns;

		if (!metrics->samples[v].newest.sequence)
			continue;
		put_name(out, "offsite_snapshot_age_seconds", &metrics->samples[v]);
		fprintf(out, "} %.3f\n",
			metrics->realtime_ns > created_ns
				? (double)(metrics->realtime_ns - created_ns) / 1e9
				: 0.0);
	}
}

static void put_one(FILE *out, const char *name, const char *kind, const char *help, double value)
{
	put_head(out, name, kind, help);
	fprintf(out, "%s %.*f\n", name, value == (double)(uint64_t)value ? 0 : 3, value);
}

static void put_process(FILE *out, const struct render_metrics *metrics)
{
	put_head(out, "offsite_info", "gauge", "Version, node and I/O backend.");
	fputs("offsite_info{version=\"" OFFSITE_VERSION "\",node=\"", out);
	put_label(out, metrics->node);
	fputs("\",io=\"", out);
	put_label(out, metrics->backend);
	fputs("\"} 1\n", out);
	put_one(out, "offsite_uptime_seconds", "gauge", "Since the daemon's start.",
		metrics->uptime_s);
	put_one(out, "process_resident_memory_bytes", "gauge", "Resident memory.",
		(double)metrics->resident_bytes);
	put_head(out, "offsite_jobs_running", "gauge", "Jobs under way.");
	for (int type = 0; type < JOB_TYPES; type++)
		fprintf(out, "offsite_jobs_running{type=\"%s\"} %u\n", job_type_name(type),
			metrics->jobs_running[type]);
	if (!metrics->nbd)
		return;
	put_one(out, "offsite_nbd_connections", "gauge", "NBD connections.",
		metrics->nbd->connections);
	put_one(out, "offsite_nbd_connections_max", "gauge", "Limit of NBD connections.",
		metrics->nbd->connections_max);
	put_one(out, "offsite_nbd_accepted_total", "counter", "NBD connections accepted.",
		(double)metrics->nbd->accepted);
	put_one(out, "offsite_nbd_refused_total", "counter", "NBD connections refused.",
		(double)metrics->nbd->refused);
	put_one(out, "offsite_nbd_requests_total", "counter", "NBD requests.",
		(double)metrics->nbd->requests);
	put_one(out, "offsite_nbd_protocol_errors_total", "counter",
		"Violations of the NBD protocol by clients.",
		(double)metrics->nbd->protocol_errors);
}

char *render_metrics(const struct render_metrics *metrics)
{
	char *text = NULL;
	size_t length = 0;
	FILE *out = open_memstream(&text, &length);

	if (!out)
		return NULL;
	put_process(out, metrics);
	put_states(out, metrics);
	put_table(out, metrics);
	put_snapshots(out, metrics);
	if (fclose(out)) {
		free(text);
		return NULL;
	}
	return text;
}
