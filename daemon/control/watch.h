/* SPDX-License-Identifier: Apache-2.0 */
/*
 * watch: a look at all of a volume at one moment (sample), and the difference between two looks,
 * told as events. The status answer, the metrics and the events are all made from samples, so they
 * cannot disagree. Loop thread only.
 */
#ifndef OFFSITE_CONTROL_WATCH_H
#define OFFSITE_CONTROL_WATCH_H

#include "daemon/control/events.h"
#include "daemon/node/exports.h"
#include "daemon/node/node.h"

struct watch_sample {
	const struct node_volume *volume;
	bool open;       /* state, stats and dirty bytes are filled */
	bool replicated; /* replication is filled */
	bool stored;     /* writer is filled */
	bool store_up;   /* the store is open */
	struct store_counts store;
	struct volume_state state;
	struct volume_stats stats;
	uint64_t size_bytes;
	bool from_snapshot; /* the disk is being filled from source ... */
	struct volume_source source;
	char fill_trouble[256];       /* ... which cannot be read now; "" */
	bool at_peer, waits_for_peer; /* a primary that leans on it; ... and it is away */
	char failure[256];            /* of the disk; "" */
	const char *kept_copy;        /* of the content before a catch-up in place; NULL */
	uint64_t dirty_peer_bytes, dirty_store_bytes;
	struct replication_status replication;
	struct verify_status verify; /* likewise */
	char risk[320];              /* secondary: what its promotion now would lose; "" nothing */
	struct proof_record proof;
	bool proving, proof_failed;
	uint64_t command_failures; /* around snapshots' cuts */
	struct snapshot_writer_status writer;
	struct exports_snapshot exports[EXPORTS_MAX];
	unsigned export_count;
	struct snapshot_info
		newest; /* newest snapshot known in the store; sequence 0: none known */
};

struct watch;

struct watch *watch_new(struct node *node, struct events *events);
void watch_free(struct watch *watch);

void watch_take(const struct watch *watch, unsigned index, struct watch_sample *sample);
/* The newest snapshot of a volume as a listing of the store found it; sequence 0: there is none. */
void watch_saw_newest(struct watch *watch, unsigned index, const struct snapshot_info *info);
/* Once: the newest is not known any more, and a listing is to say which one it is. */
bool watch_wants_listing(struct watch *watch, unsigned index);
/* Compares all volumes with the last call and tells the differences. */
void watch_compare(struct watch *watch);

#endif
