/* SPDX-License-Identifier: Apache-2.0 */
/*
 * world: two nodes with one volume, a store, the clients of the primary, and the shadow model of
 * what those clients know. Owns starting, crashing and stopping nodes and the clients' requests;
 * what happens when is the scenario's, what must hold is the checks'.
 */
#ifndef OFFSITE_TESTS_SIM_WORLD_H
#define OFFSITE_TESTS_SIM_WORLD_H

#include "daemon/node/node.h"
#include "tests/sim/env_sim.h"
#include "tests/sim/model.h"
#include "tests/sim/store_sim.h"

#define WORLD_CLIENTS_MAX 32
#define WORLD_STORE       "sim:bucket"
#define WORLD_BACKING     "/srv/volume.img"
#define WORLD_STATE       "/var/offsite/v" /* the volume's state on a node's disk */
#define WORLD_VOLUME      "v"
#define WORLD_SECOND      UINT64_C(1000000000)

enum { A, B, NODES }; /* node A is the primary by its config; roles change */

struct world;

struct world_node {
	struct world *world;
	unsigned index;
	struct env *env;
	struct node *node; /* NULL: down */
	struct config config;
	struct config_volume volume;
	uint32_t incarnation;
	bool content_lost; /* its disk was lost and has not been restored yet */
	bool rolling_back; /* is to be set back to the newest snapshot; not in use meanwhile */
	bool restoring;    /* restore from the peer under way */
	bool refused;      /* ... which the last time was not to be, as the peer had no content */
	bool disconnected; /* by the operator */
	bool disk_errors;  /* its disk may fail now, or did so in this incarnation */
	bool disk_full;    /* ... and that only because there is no room */
	bool unequal;      /* a client's write failed here, and may be on the peer */
	uint8_t *
		giving_up; /* what its disk held when a split brain began to be resolved at its cost */
	uint64_t giving_up_bytes;
	bool giving_up_near; /* ... and both maps reach back to the history that they share */
	bool kept;           /* ... and that is in the store, or in files */
	bool unresolved;     /* leans on its peer since its start, and does not reach it yet */
	bool disk_failed;    /* ... and was seen to: the operator is to look after it */
};

struct client {
	struct block_request request;
	struct world *world;
	bool busy;
	uint32_t incarnation;
	uint32_t write, submitted;
	bool streaming; /* at submission: protocol C and in sync */
	uint64_t connects;
	bool whole;   /* READ: whole sectors, to be compared */
	bool excused; /* there was no room on a disk at the time */
};

/* What happens more often than by chance, so that what needs several things in a row is met. */
enum world_theme {
	THEME_NONE,
	THEME_SIZE, /* the volume is made bigger, again and again */
	THEME_DISK, /* the primary's disk fails while the peer follows, and is replaced */
	THEMES
};

struct world_options { /* of one seed */
	enum world_theme theme;
	uint64_t size_bytes; /* at first */
	char protocol;
	unsigned block_min_bytes;
	bool partial_sectors;
	unsigned queue_depth;
	uint32_t write_max_bytes;
	uint64_t staging_max_bytes, preserve_max_bytes, send_queue_max_bytes;
	uint64_t final_cut_max_bytes;
	unsigned keep_last;
	uint64_t keep_within_ns;
	bool encrypted; /* what the store gets */
	uint64_t max_lag_bytes, max_lag_ns;
	unsigned latency_percent;
	bool max_lag_leave; /* there: catch-up instead of waiting writers */
	uint64_t start_wait_ns;
	bool suspend; /* on-peer-loss = suspend */
	bool detach;  /* on-io-error */
	unsigned after_sb_0pri, after_sb_1pri;
	bool keep;     /* what is given up in a split brain is kept: as a snapshot, or in files */
	bool no_store; /* no snapshots at all, then */
	bool read_by_spec; /* disks and the store are read by the specifications, too */
	bool strict;       /* every step is checked by node_check() */
	/* Zero: the engine's defaults. Bytes a second: */
	uint64_t stream_rate, catch_up_rate, snapshot_rate, verify_rate, hydrate_rate;
	unsigned peer_timeout_s;
	uint64_t snapshot_every_ns;
	bool fence;          /* a promotion asks a program first, which may refuse or hang */
	bool far;            /* the nodes are up to some hundred milliseconds apart */
	uint32_t damage_ppm; /* of the wire */
	bool strangers;      /* connect to the nodes and say anything */
	bool slow_store;     /* some of its operations take seconds */
};

struct world {
	uint64_t seed, random_state;
	uint64_t
		extra_state; /* of what is not drawn for every seed: the others stay what they were */
	struct sim *sim;
	struct world_options options;
	char key_path[32];    /* of the host, not of the simulation */
	const char *key_file; /* that, or NULL */
	int key_fd;
	struct world_node nodes[NODES];
	struct env *stranger; /* a host of its own; NULL: none */
	struct model *model;
	bool disk_failed;     /* some disk, at some time */
	bool write_failed;    /* some client's, at some time: it may be on one disk only */
	bool flipped;         /* the medium spoilt metadata, at some time */
	unsigned primary;     /* whom the clients use */
	uint32_t incarnation; /* of the clients' device; requests of older ones are forgotten */
	struct block *block;  /* opened; NULL: not */
	bool spoilt;    /* the medium changed content: not to be looked at until it is mended */
	bool must_wait; /* its peer was in sync: nothing may complete without it (suspend) */
	struct node_volume *leaning; /* the primary, if its content was at its peer one step ago */
	uint32_t answered;           /* ordinal of the last request that did not fail */
	bool look;             /* something was just acknowledged as durable: look whether it is */
	uint64_t size_bytes;   /* of the volume, as the clients know it */
	bool resizing;         /* by the operator's word, at this time */
	unsigned resize_index; /* of that node */
	uint64_t resize_bytes;
	bool resize_alone;           /* without the peer */
	uint32_t resize_incarnation; /* of the other node, when it began */
	struct buf_pool *pool;
	struct client clients[WORLD_CLIENTS_MAX];
	unsigned busy;
	/* the snapshot under way */
	bool snapshot_running;
	uint32_t snapshot_from;
	uint64_t snapshot_size_bytes; /* when it began */
	unsigned snapshots, secondary_snapshots;
	unsigned secondary_maybe; /* begun there, and not known to have failed */
	int snapshot_error;
	/* counters, for the end's line */
	uint64_t lag_bytes; /* at the step before, of a stream with max-lag; UINT64_MAX: none */
	uint64_t steps, requests, crashes, image_checks, refusals, restores, resolves, switches,
		full_disks, roll_backs, kept, kept_files, policies, clock_jumps, point_checks,
		resumes, fills, resizes;
};

/* Ends the process with the reason, the log and the command that replays the seed. */
void world_fail(struct world *world, const char *format, ...)
	__attribute__((format(printf, 2, 3), noreturn));

struct world *world_new(uint64_t seed, bool trace);
/* All but its memory, which goes as a whole (memory.h). */
void world_end(struct world *world);
uint64_t world_random(struct world *world, uint64_t limit);
bool world_chance(struct world *world, unsigned percent);
uint64_t world_extra(struct world *world, uint64_t limit); /* of the other state */

/* Starts a node that is down: restarts its env if that is dead, checks what recovery left. */
void world_start(struct world *world, unsigned index);
void world_crash(struct world *world, unsigned index, enum sim_crash mode);
/* The disk fails with that chance, for paths that contain path (NULL: all). ppm 0: no more; its errors are excused until
 * its next start. */
void world_disk_errors(struct world *world, unsigned index, uint32_t ppm, const char *path);
/* No room is left on the node's disk but for so many bytes. copies: what is overwritten takes room, too. */
void world_disk_full(struct world *world, unsigned index, uint64_t left_bytes, bool copies);
/* Room is made: nothing fails from here on, also where it failed before. */
void world_disk_room(struct world *world, unsigned index);
/* Clean stop; waits for the requests under way. Faults are to be off or may strike during it. */
void world_stop(struct world *world, unsigned index);
/* One step of the simulation, with node_check() and the forgetting of nodes that died in it. False:
 * nothing is left to happen. */
bool world_step(struct world *world);
/* Steps until the condition holds, at most for max_ns. */
bool world_wait(struct world *world, bool (*condition)(struct world *world), uint64_t max_ns);

struct node_volume *world_volume(struct world *world, unsigned index); /* NULL: down */
void world_status(struct world *world, unsigned index, struct replication_status *status);
void world_volume_state(struct world *world, unsigned index, struct volume_state *state);

/* A random request, if the primary is open and a client is free. */
void world_submit(struct world *world);
void world_flush(struct world *world);
bool world_idle(struct world *world); /* no request under way */
void world_snapshot(struct world *world);
/* By the node that the clients do not use. */
void world_snapshot_secondary(struct world *world);
void world_restore_from_peer(struct world *world, unsigned index);
/* The realtime clock of one of the nodes is set. */
void world_clock_jump(struct world *world);
/* Split brain: the node's changes are given up for the other's content. False: there is none. */
bool world_resolve(struct world *world, unsigned index);
/* Sets the primary back to its newest snapshot, in place; or goes on with that after a crash. */
void world_roll_back(struct world *world);
/* The operator lets requests go on that wait for the peer. */
void world_resume(struct world *world);
/* The secondary takes over from a primary that is down, as it is. */
void world_fail_over(struct world *world);
/* A planned change of roles, if it is possible now. */
void world_switch(struct world *world);

/* Each copy of its newest superblock is good. */
bool world_super_is_whole(const struct env *env);
/* By its superblock this node's content is at its peer: its own disk means nothing. */
bool world_at_peer(const struct env *env);
/* It runs so now. */
bool world_leans(struct world *world, unsigned index);
/* It applies what it collected beside the volume: a cut, and what was streamed behind it. */
bool world_applies_log(struct world *world, unsigned index);
/* The operator gives a volume that leans a good disk, if it wants one. */
void world_replace_disk(struct world *world, unsigned index);
/* The operator makes the volume bigger: the primary's and its peer's, or the given node's alone. */
void world_resize(struct world *world);
bool world_resize_alone(struct world *world, unsigned index, uint64_t size_bytes);
/* The size by the superblock on that disk; 0: there is none. */
uint64_t world_disk_size(const struct env *env);
void world_configure_size(const struct world *world, const struct env *env,
			  struct config_volume *config);
/* A file on a node's disk as it is now: until the next step. */
struct model_image world_image_of(const struct env *env, const char *path);
/* The volume's, as far as the volume goes. */
struct model_image world_image(const struct env *env);

#endif
