// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/watch.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* What the last look saw of a volume: only what makes an event. */
struct seen {
	bool valid;
	bool open, replicated, stored;
	enum volume_role role;
	enum volume_disk_state disk;
	uint32_t clients;
	unsigned losses;
	bool waiting;
	enum replication_state link;
	enum verify_state verify;
	uint64_t verify_ended_ns;
	enum volume_disk_state peer_disk;
	bool lag_over, held;
	uint64_t left_stream;
	char refusal[256];
	char store_error[256];
	bool split_brain;
	uint64_t stepped_down_ns, rolled_back_ns;
	char kept[512];
	uint64_t snapshots, snapshots_failed;
	unsigned command_failures;
	uint64_t proof_tried_ns;
	bool listed; /* newest comes from a listing younger than the writer's last snapshot */
	bool look;   /* the newest is not known any more */
	struct snapshot_info newest;
};

struct watch {
	struct node *node;
	struct events *events;
	unsigned count;
	struct seen seen[];
};

struct watch *watch_new(struct node *node, struct events *events)
{
	unsigned count = node_volume_count(node);
	struct watch *watch = calloc(1, sizeof(*watch) + count * sizeof(struct seen));

	if (!watch)
		return NULL;
	watch->node = node;
	watch->events = events;
	watch->count = count;
	return watch;
}

void watch_free(struct watch *watch)
{
	free(watch);
}

static void take_risk(const struct node_volume *nv, struct watch_sample *sample)
{
	struct replication_loss loss;

	replication_get_loss(nv->replication, &loss);
	if (loss.risk != REPLICATION_RISK_NONE)
		replication_loss_text(&loss, sample->risk, sizeof(sample->risk));
}

void watch_take(const struct watch *watch, unsigned index, struct watch_sample *sample)
{
	const struct node_volume *nv = node_volume(watch->node, index);

	assert(index < watch->count);
	*sample = (struct watch_sample){.volume = nv, .newest = watch->seen[index].newest};
	if (nv->volume) {
		sample->open = true;
		volume_get_state(nv->volume, &sample->state);
		volume_get_stats(nv->volume, &sample->stats);
		sample->at_peer = volume_leans(nv->volume);
		sample->from_snapshot = volume_source(nv->volume, &sample->source);
		snprintf(sample->fill_trouble, sizeof(sample->fill_trouble), "%s",
			 node_instant_trouble(nv));
		sample->kept_copy = volume_kept_copy(nv->volume);
		sample->waits_for_peer = volume_suspended(nv->volume) & VOLUME_SUSPEND_ORIGIN;
		snprintf(sample->failure, sizeof(sample->failure), "%s",
			 volume_failure(nv->volume));
		sample->size_bytes = volume_size_bytes(nv->volume);
		sample->dirty_peer_bytes = volume_dirty_bytes(nv->volume, VOLUME_PEER);
		sample->dirty_store_bytes = volume_dirty_bytes(nv->volume, VOLUME_STORE);
	}
	if (nv->replication) {
		sample->replicated = true;
		replication_get_status(nv->replication, &sample->replication);
		replication_get_verify(nv->replication, &sample->verify);
		take_risk(nv, sample);
	}
	sample->export_count = exports_snapshots(nv, sample->exports, EXPORTS_MAX);
	sample->store_up = nv->store != NULL;
	sample->command_failures = nv->command_failures;
	sample->proof = nv->proof;
	sample->proving = nv->proving;
	sample->proof_failed = nv->proof.error != 0;
	store_counts(nv->store, &sample->store);
	if (nv->writer) {
		sample->stored = true;
		snapshot_writer_status(nv->writer, &sample->writer);
		/* A listing knows better, as the writer's last one may have been deleted since. */
		if (!sample->writer.last.error && !sample->writer.last.info.given_up &&
		    !watch->seen[index].listed &&
		    sample->writer.last.info.sequence > sample->newest.sequence)
			sample->newest = sample->writer.last.info;
	}
}

void watch_saw_newest(struct watch *watch, unsigned index, const struct snapshot_info *info)
{
	assert(index < watch->count);
	watch->seen[index].newest = *info;
	watch->seen[index].listed = true;
}

bool watch_wants_listing(struct watch *watch, unsigned index)
{
	bool look = watch->seen[index].look;

	watch->seen[index].look = false;
	return look;
}

static void tell_store(struct watch *watch, const struct seen *old, const struct watch_sample *now,
		       uint64_t when_ns)
{
	const struct node_volume *nv = now->volume;

	if (strcmp(nv->store_error, old->store_error) == 0)
		return;
	events_add(watch->events, when_ns, "store", nv->config->name, "%s",
		   nv->store_error[0] ? nv->store_error : "the store is open");
}

static void tell_snapshots(struct watch *watch, const struct seen *old,
			   const struct watch_sample *now, uint64_t when_ns)
{
	const char *name = now->volume->config->name;
	const struct snapshot_result *last = &now->writer.last;

	if (now->writer.succeeded > old->snapshots) {
		char id[ID128_TEXT_BYTES];

		id128_format(&last->info.id, id);
		events_add(watch->events, when_ns, "snapshot", name,
			   "snapshot %s stored: %llu bytes changed, %llu bytes put", id,
			   (unsigned long long)last->info.changed_bytes,
			   (unsigned long long)last->info.stored_bytes);
	}
	if (now->volume->command_failures > old->command_failures)
		events_add(watch->events, when_ns, "snapshot", name, "%s",
			   now->volume->command_failure);
	if (now->writer.failed > old->snapshots_failed)
		events_add(watch->events, when_ns, "snapshot", name, "snapshot failed: %s",
			   last->why[0] ? last->why : strerror(-last->error));
}

static void tell_proof(struct watch *watch, const struct seen *old, const struct watch_sample *now,
		       uint64_t when_ns)
{
	const struct proof_record *record = &now->proof;
	char id[ID128_TEXT_BYTES];

	if (record->tried_ns == old->proof_tried_ns || !old->valid)
		return;
	id128_format(&record->proven, id);
	if (record->error)
		events_add(watch->events, when_ns, "proof", now->volume->config->name,
			   "not proven restorable: %s", record->why);
	else
		events_add(watch->events, when_ns, "proof", now->volume->config->name,
			   "snapshot %s proven restorable, in %.1f s", id,
			   (double)record->duration_ns / 1e9);
}

static void tell_lag(struct watch *watch, const struct seen *old, const struct watch_sample *now,
		     uint64_t when_ns)
{
	const char *name = now->volume->config->name;
	const struct replication_status *link = &now->replication;
	unsigned long long mib = link->lag_bytes >> 20;
	double seconds = (double)link->lag_ns / 1e9;

	if (link->left_stream > old->left_stream)
		events_add(watch->events, when_ns, "lag", name,
			   "max-lag reached: the stream was left for catch-up (%llu MiB, %.1f s "
			   "behind)",
			   mib, seconds);
	if (link->held != old->held)
		events_add(watch->events, when_ns, "lag", name,
			   link->held ? "writers wait for the peer (%llu MiB, %.1f s behind)"
				      : "writers wait no longer (%llu MiB, %.1f s behind)",
			   mib, seconds);
	if (link->lag_over != old->lag_over)
		events_add(watch->events, when_ns, "lag", name,
			   "the peer is %llu MiB, %.1f s behind: %s max-lag", mib, seconds,
			   link->lag_over ? "beyond" : "within");
}

static void tell_verify(struct watch *watch, const struct seen *old, const struct watch_sample *now,
			uint64_t when_ns)
{
	static const char *const words[] = {"never ran", "is under way", "is done",
					    "was cancelled"};
	const struct verify_record *record = &now->verify.record;

	if (record->state == old->verify && record->ended_ns == old->verify_ended_ns)
		return;
	if (!old->valid && record->state != VERIFY_RUNNING)
		return;
	if (record->state == VERIFY_RUNNING)
		events_add(watch->events, when_ns, "verify", now->volume->config->name,
			   "comparison with the peer is under way");
	else
		events_add(watch->events, when_ns, "verify", now->volume->config->name,
			   "comparison with the peer %s: %llu bytes differ, %llu of them repaired",
			   words[record->state], (unsigned long long)record->differ_bytes,
			   (unsigned long long)record->repaired_bytes);
}

static void tell_replication(struct watch *watch, const struct seen *old,
			     const struct watch_sample *now, uint64_t when_ns)
{
	const char *name = now->volume->config->name;
	const struct replication_status *link = &now->replication;

	if (link->state != old->link || !old->replicated)
		events_add(watch->events, when_ns, "replication", name, "replication is %s%s%s",
			   replication_state_name(link->state), link->peer_name[0] ? ", peer " : "",
			   link->peer_name);
	if (link->waiting && !old->waiting)
		events_add(watch->events, when_ns, "suspended", name,
			   "requests wait: the peer does not follow (on-peer-loss = suspend); they "
			   "go on when it does, or with: offsite resume %s",
			   name);
	if (!link->waiting && old->waiting)
		events_add(watch->events, when_ns, "suspended", name, "requests go on");
	if (link->peer_disk != old->peer_disk && link->state >= REPLICATION_IDLE)
		events_add(watch->events, when_ns, "peer-disk", name, "the peer's disk is %s",
			   volume_disk_state_name(link->peer_disk));
	tell_lag(watch, old, now, when_ns);
	tell_verify(watch, old, now, when_ns);
	if (link->refusal[0] && strcmp(link->refusal, old->refusal) != 0)
		events_add(watch->events, when_ns, "replication", name, "%s", link->refusal);
}

static void tell_split(struct watch *watch, const struct seen *old, const struct watch_sample *now,
		       uint64_t when_ns)
{
	const char *name = now->volume->config->name;
	const struct replication_status *link = &now->replication;

	if (link->split_brain && !old->split_brain)
		events_add(watch->events, when_ns, "split-brain", name,
			   "split brain with %s: changed here %llu bytes, there %llu",
			   link->split_peer, (unsigned long long)link->out_of_sync_bytes,
			   (unsigned long long)link->split_peer_bytes);
	if (!link->split_brain && old->split_brain)
		events_add(watch->events, when_ns, "split-brain", name, "the split brain is over");
	if (link->stepped_down_ns != old->stepped_down_ns)
		events_add(watch->events, when_ns, "role", name,
			   "the peer was promoted and went on: this node stepped down");
	if (link->rolled_back_ns != old->rolled_back_ns)
		events_add(watch->events, when_ns, "rolled-back", name,
			   "rolled back: at most %llu bytes in %llu extents, written here and not "
			   "known to be on the peer",
			   (unsigned long long)link->rolled_back_bytes,
			   (unsigned long long)link->rolled_back_extents);
	if (strcmp(now->volume->kept, old->kept) != 0 && now->volume->kept[0])
		events_add(watch->events, when_ns, "kept", name, "kept before it is given up: %s",
			   now->volume->kept);
}

static void tell_volume(struct watch *watch, const struct seen *old, const struct watch_sample *now,
			uint64_t when_ns)
{
	const char *name = now->volume->config->name;

	if (!old->valid && !now->open)
		events_add(watch->events, when_ns, "disk", name, "not open: %s",
			   now->volume->error);
	if (!now->open)
		return;
	if (!old->open || now->state.role != old->role)
		events_add(watch->events, when_ns, "role", name, "role is %s",
			   volume_role_name(now->state.role));
	if (now->volume->losses > old->losses)
		events_add(watch->events, when_ns, "role", name, "promoted by force: lost is %s",
			   now->volume->lost);
	if (!old->open || now->state.disk != old->disk)
		events_add(watch->events, when_ns, "disk", name, "disk is %s",
			   volume_disk_state_name(now->state.disk));
	if (now->stats.clients != old->clients)
		events_add(watch->events, when_ns, "clients", name, "%u client%s",
			   now->stats.clients, now->stats.clients == 1 ? "" : "s");
}

static void remember(struct seen *seen, const struct watch_sample *now)
{
	seen->valid = true;
	seen->open = now->open;
	seen->replicated = now->replicated;
	seen->stored = now->stored;
	seen->role = now->state.role;
	seen->disk = now->state.disk;
	seen->waiting = now->replication.waiting;
	seen->losses = now->volume->losses;
	seen->clients = now->stats.clients;
	seen->link = now->replication.state;
	seen->peer_disk = now->replication.peer_disk;
	seen->split_brain = now->replication.split_brain;
	seen->stepped_down_ns = now->replication.stepped_down_ns;
	seen->rolled_back_ns = now->replication.rolled_back_ns;
	memcpy(seen->kept, now->volume->kept, sizeof(seen->kept));
	seen->verify = now->verify.record.state;
	seen->verify_ended_ns = now->verify.record.ended_ns;
	seen->lag_over = now->replication.lag_over;
	seen->held = now->replication.held;
	seen->left_stream = now->replication.left_stream;
	memcpy(seen->refusal, now->replication.refusal, sizeof(seen->refusal));
	memcpy(seen->store_error, now->volume->store_error, sizeof(seen->store_error));
	if (now->writer.succeeded > seen->snapshots && now->writer.last.info.given_up) {
		/* What was the newest may be given up with it: then a listing is to say which one is. */
		seen->look = snapshot_gave_up(&now->writer.last.info, &now->newest.history);
		seen->newest = seen->look ? (struct snapshot_info){} : now->newest;
	} else if (now->writer.succeeded > seen->snapshots) {
		seen->listed = false;
		seen->newest = now->writer.last.info;
	} else {
		seen->newest = now->newest;
	}
	seen->snapshots = now->writer.succeeded;
	seen->snapshots_failed = now->writer.failed;
	seen->command_failures = now->volume->command_failures;
	seen->proof_tried_ns = now->proof.tried_ns;
}

void watch_compare(struct watch *watch)
{
	uint64_t when_ns = env_realtime_ns(node_env(watch->node));

	for (unsigned i = 0; i < watch->count; i++) {
		struct seen *seen = &watch->seen[i];
		struct watch_sample now;

		watch_take(watch, i, &now);
		tell_volume(watch, seen, &now, when_ns);
		if (now.replicated)
			tell_replication(watch, seen, &now, when_ns);
		tell_split(watch, seen, &now, when_ns);
		tell_store(watch, seen, &now, when_ns);
		if (now.stored)
			tell_snapshots(watch, seen, &now, when_ns);
		tell_proof(watch, seen, &now, when_ns);
		remember(seen, &now);
	}
}
