// SPDX-License-Identifier: Apache-2.0
/*
 * metrics: the Prometheus text. Tables of numbers: name, kind, help, where in a sample, scale.
 */
#include "daemon/control/render.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum group { OF_ALL, OF_VOLUME, OF_REPLICATION, OF_STORE, OF_SNAPSHOTS };

struct metric {
	const char *name;
	const char *kind; /* "counter" or "gauge" */
	const char *help;
	enum group group;
	size_t offset; /* of an unsigned number or bool in the structure ... */
	size_t width;  /* ... of so many bytes */
	double scale;
};

#define WIDTH(field) sizeof(((struct watch_sample *)0)->field)
#define AT(field)    offsetof(struct watch_sample, field), WIDTH(field), 1
#define AT_NS(field) offsetof(struct watch_sample, field), WIDTH(field), 1e-9

static const struct metric table[] = {
	{"offsite_volume_up", "gauge", "1 if the volume is open.", OF_ALL, AT(open)},
	{"offsite_volume_size_bytes", "gauge", "Size of the volume.", OF_VOLUME, AT(size_bytes)},
	{"offsite_volume_lsn", "counter", "Writes issued (primary) or applied (secondary).",
	 OF_VOLUME, AT(state.lsn)},
	{"offsite_volume_clients", "gauge", "NBD clients that have the volume open.", OF_VOLUME,
	 AT(stats.clients)},
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
	{"offsite_volume_missing_bytes", "gauge", "Of a disk that is being filled: not there yet.",
	 OF_VOLUME, AT(stats.missing_bytes)},
	{"offsite_volume_hydrated_bytes_total", "counter", "Fetched to fill a replaced disk.",
	 OF_VOLUME, AT(stats.hydrated_bytes)},
	{"offsite_volume_remote_reads_total", "counter", "Reads answered by the peer's disk.",
	 OF_VOLUME, AT(stats.remote_reads)},
	{"offsite_volume_preserve_used_bytes", "gauge", "Preserve area in use.", OF_VOLUME,
	 AT(stats.preserve_used_bytes)},
	{"offsite_volume_preserve_max_bytes", "gauge", "Limit of the preserve area.", OF_VOLUME,
	 AT(stats.preserve_max_bytes)},
	{"offsite_volume_in_flight", "gauge", "Requests under way.", OF_VOLUME,
	 AT(stats.in_flight)},
	{"offsite_volume_in_flight_max", "gauge", "Limit of requests under way.", OF_VOLUME,
	 AT(stats.in_flight_max)},
	{"offsite_replication_lag_bytes", "gauge",
	 "Bytes by which the peer is behind, streaming or not.", OF_REPLICATION,
	 AT(replication.lag_bytes)},
	{"offsite_replication_lag_seconds", "gauge", "Time by which the peer is behind.",
	 OF_REPLICATION, AT_NS(replication.lag_ns)},
	{"offsite_replication_holds_total", "counter",
	 "Times that writers began to wait for the peer.", OF_REPLICATION, AT(replication.holds)},
	{"offsite_replication_stream_limit_bytes_per_second", "gauge",
	 "Limit of the stream now; 0: none.", OF_REPLICATION, AT(replication.stream_limit)},
	{"offsite_replication_catch_up_limit_bytes_per_second", "gauge",
	 "Limit of catch-up now, by its rate or the clients' latency; 0: none.", OF_REPLICATION,
	 AT(replication.catch_up_limit)},
	{"offsite_replication_left_stream_total", "counter",
	 "Times that the stream was left for catch-up at max-lag.", OF_REPLICATION,
	 AT(replication.left_stream)},
	{"offsite_replication_out_of_sync_bytes", "gauge", "Bytes the peer lacks.", OF_REPLICATION,
	 AT(replication.out_of_sync_bytes)},
	{"offsite_replication_unreadable_bytes", "gauge",
	 "Bytes that this disk does not give and catch-up waits for.", OF_REPLICATION,
	 AT(replication.unreadable_bytes)},
	{"offsite_replication_resumed_total", "counter",
	 "Catch-ups taken up again behind what the peer had.", OF_REPLICATION,
	 AT(replication.resumes)},
	{"offsite_replication_split_brain", "gauge",
	 "1 while both nodes have writes that the other has not.", OF_REPLICATION,
	 AT(replication.split_brain)},
	{"offsite_replication_split_peer_bytes", "gauge", "Split brain: bytes the peer changed.",
	 OF_REPLICATION, AT(replication.split_peer_bytes)},
	{"offsite_replication_rolled_back_bytes", "gauge",
	 "Bytes that the last catch-up rolled back here, at most.", OF_REPLICATION,
	 AT(replication.rolled_back_bytes)},
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
	{"offsite_replication_compare_total_bytes", "gauge",
	 "Full sync: bytes to be compared by hashes.", OF_REPLICATION,
	 AT(replication.compare_total_bytes)},
	{"offsite_replication_compared_bytes", "gauge", "Full sync: bytes compared by hashes.",
	 OF_REPLICATION, AT(replication.compared_bytes)},
	{"offsite_verify_running", "gauge", "1 while the volume is compared with the peer's.",
	 OF_REPLICATION, AT(verify.active)},
	{"offsite_verify_compared_bytes", "gauge", "Bytes compared by the last verification.",
	 OF_REPLICATION, AT(verify.record.position_bytes)},
	{"offsite_verify_differ_bytes", "gauge", "Bytes that it found different.", OF_REPLICATION,
	 AT(verify.record.differ_bytes)},
	{"offsite_verify_repaired_bytes", "gauge", "Of these, bytes that it repaired.",
	 OF_REPLICATION, AT(verify.record.repaired_bytes)},
	{"offsite_verify_ended_timestamp_seconds", "gauge",
	 "When the last verification ended, since 1970; 0: never, or one is under way.",
	 OF_REPLICATION, AT_NS(verify.record.ended_ns)},
	{"offsite_replication_cuts_total", "counter", "Cuts applied since start.", OF_REPLICATION,
	 AT(replication.cuts)},
	{"offsite_replication_full_syncs_total", "counter",
	 "Catch-ups over the whole volume begun, as the maps did not say what differs.",
	 OF_REPLICATION, AT(replication.full_syncs)},
	{"offsite_replication_suspended", "gauge", "1 if requests wait for the peer to follow.",
	 OF_REPLICATION, AT(replication.waiting)},
	{"offsite_replication_connects_total", "counter", "Connections made.", OF_REPLICATION,
	 AT(replication.connects)},
	{"offsite_replication_disconnects_total", "counter", "Connections lost.", OF_REPLICATION,
	 AT(replication.disconnects)},
	{"offsite_store_up", "gauge", "1 if the store is open.", OF_STORE, AT(store_up)},
	{"offsite_store_puts_total", "counter", "Requests to the bucket that put something.",
	 OF_STORE, AT(store.puts)},
	{"offsite_store_gets_total", "counter", "Requests for objects.", OF_STORE, AT(store.gets)},
	{"offsite_store_heads_total", "counter", "Requests for facts about objects.", OF_STORE,
	 AT(store.heads)},
	{"offsite_store_lists_total", "counter", "Requests for listings.", OF_STORE,
	 AT(store.lists)},
	{"offsite_store_deletes_total", "counter", "Requests that delete.", OF_STORE,
	 AT(store.deletes)},
	{"offsite_store_retries_total", "counter",
	 "Requests that were a repetition after an error.", OF_STORE, AT(store.retries)},
	{"offsite_store_sent_bytes_total", "counter", "Bytes put, repetitions included.", OF_STORE,
	 AT(store.sent_bytes)},
	{"offsite_store_received_bytes_total", "counter", "Bytes got, repetitions included.",
	 OF_STORE, AT(store.received_bytes)},
	{"offsite_snapshot_succeeded_total", "counter", "Snapshots stored since start.",
	 OF_SNAPSHOTS, AT(writer.succeeded)},
	{"offsite_snapshot_failed_total", "counter", "Snapshots failed since start.", OF_SNAPSHOTS,
	 AT(writer.failed)},
	{"offsite_snapshot_command_failures_total", "counter",
	 "Commands before and after a snapshot's cut that failed since start.", OF_SNAPSHOTS,
	 AT(command_failures)},
	{"offsite_proof_last_success_timestamp_seconds", "gauge",
	 "When a snapshot was last restored for a trial and found good, since 1970; 0: never.",
	 OF_SNAPSHOTS, AT_NS(proof.proven_ns)},
	{"offsite_proof_snapshot_timestamp_seconds", "gauge",
	 "When that snapshot was taken, since 1970; 0: there is none.", OF_SNAPSHOTS,
	 AT_NS(proof.created_ns)},
	{"offsite_proof_duration_seconds", "gauge", "How long its restore and check took.",
	 OF_SNAPSHOTS, AT_NS(proof.duration_ns)},
	{"offsite_proof_failed", "gauge", "1 if the last trial failed.", OF_SNAPSHOTS,
	 AT(proof_failed)},
	{"offsite_proof_running", "gauge", "1 while a snapshot is restored for a trial.",
	 OF_SNAPSHOTS, AT(proving)},
	{"offsite_snapshot_running", "gauge", "1 while a snapshot is being stored.", OF_SNAPSHOTS,
	 AT(writer.running)},
	{"offsite_snapshot_changed_bytes", "gauge", "Bytes changed since the last snapshot.",
	 OF_SNAPSHOTS, AT(dirty_store_bytes)},
	{"offsite_snapshot_progress_done_bytes", "gauge", "Snapshot under way: bytes done.",
	 OF_SNAPSHOTS, AT(writer.progress.done_bytes)},
	{"offsite_snapshot_progress_total_bytes", "gauge", "Snapshot under way: bytes in all.",
	 OF_SNAPSHOTS, AT(writer.progress.total_bytes)},
};

#define NBD(field)                                        \
	OF_ALL, offsetof(struct nbd_server_stats, field), \
		sizeof(((struct nbd_server_stats *)0)->field), 1

static const struct metric nbd_table[] = {
	{"offsite_nbd_connections", "gauge", "NBD connections.", NBD(connections)},
	{"offsite_nbd_connections_max", "gauge", "Limit of NBD connections.", NBD(connections_max)},
	{"offsite_nbd_accepted_total", "counter", "NBD connections accepted.", NBD(accepted)},
	{"offsite_nbd_refused_total", "counter", "NBD connections refused.", NBD(refused)},
	{"offsite_nbd_requests_total", "counter", "NBD requests.", NBD(requests)},
	{"offsite_nbd_protocol_errors_total", "counter",
	 "Violations of the NBD protocol by clients.", NBD(protocol_errors)},
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
	case OF_ALL:
		return true;
	case OF_VOLUME:
		return sample->open;
	case OF_REPLICATION:
		return sample->replicated;
	case OF_STORE:
		return sample->volume->config->store != NULL;
	case OF_SNAPSHOTS:
		return sample->stored;
	}
	abort();
}

static uint64_t value_of(const void *structure, const struct metric *metric)
{
	const char *at = (const char *)structure + metric->offset;

	switch (metric->width) {
	case sizeof(uint8_t):
		return *(const uint8_t *)at;
	case sizeof(uint32_t):
		return *(const uint32_t *)at;
	case sizeof(uint64_t):
		return *(const uint64_t *)at;
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

			if (!has_group(sample, metric->group))
				continue;
			put_name(out, metric->name, sample);
			fprintf(out, "} %.*f\n", metric->scale == 1 ? 0 : 6,
				(double)value_of(sample, metric) * metric->scale);
		}
	}
}

/* What Prometheus calls a state set: one line for each possible state, 1 for the present one. */
struct state_set {
	const char *name, *label, *help;
	enum group group;
	int count;
	const char *(*word)(int state);
	int (*state)(const struct watch_sample *sample);
};

static const char *role_word(int state)
{
	return volume_role_name((enum volume_role)state);
}

static int role_of(const struct watch_sample *sample)
{
	return (int)sample->state.role;
}

static const char *disk_word(int state)
{
	return volume_disk_state_name((enum volume_disk_state)state);
}

static int disk_of(const struct watch_sample *sample)
{
	return (int)sample->state.disk;
}

static const char *link_word(int state)
{
	return replication_state_name((enum replication_state)state);
}

static int link_of(const struct watch_sample *sample)
{
	return (int)sample->replication.state;
}

static const struct state_set state_sets[] = {
	{"offsite_volume_role", "role", "1 for the present role.", OF_VOLUME, VOLUME_PRIMARY + 1,
	 role_word, role_of},
	{"offsite_volume_disk_state", "state", "1 for the present disk state.", OF_VOLUME,
	 VOLUME_DISK_DISKLESS + 1, disk_word, disk_of},
	{"offsite_replication_state", "state", "1 for the present state.", OF_REPLICATION,
	 REPLICATION_STREAMING + 1, link_word, link_of},
};

static void put_states(FILE *out, const struct render_metrics *metrics)
{
	for (unsigned i = 0; i < sizeof(state_sets) / sizeof(state_sets[0]); i++) {
		const struct state_set *set = &state_sets[i];

		put_head(out, set->name, "gauge", set->help);
		for (unsigned v = 0; v < metrics->count; v++) {
			const struct watch_sample *sample = &metrics->samples[v];

			if (!has_group(sample, set->group))
				continue;
			for (int state = 0; state < set->count; state++) {
				put_name(out, set->name, sample);
				fprintf(out, ",%s=\"%s\"} %d\n", set->label, set->word(state),
					set->state(sample) == state);
			}
		}
	}
}

static void put_snapshot_age(FILE *out, const struct render_metrics *metrics)
{
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
	for (unsigned i = 0; i < sizeof(nbd_table) / sizeof(nbd_table[0]); i++)
		put_one(out, nbd_table[i].name, nbd_table[i].kind, nbd_table[i].help,
			(double)value_of(metrics->nbd, &nbd_table[i]));
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
	put_snapshot_age(out, metrics);
	if (fclose(out)) {
		free(text);
		return NULL;
	}
	return text;
}
