/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the simulator (core, disk, network, store) know of each other.
 */
#ifndef OFFSITE_TESTS_SIM_ENV_SIM_INTERNAL_H
#define OFFSITE_TESTS_SIM_ENV_SIM_INTERNAL_H

#include "daemon/io/env_ops.h"
#include "tests/sim/env_sim.h"

#define SIM_NAME_MAX  32
#define SIM_LOG_LINES 400
#define SIM_US        UINT64_C(1000)
#define SIM_MS        UINT64_C(1000000)
#define SIM_S         UINT64_C(1000000000)

struct sim_disk;
struct sim_env;
struct sim_store;

/* Something that will happen. Embedded first in a structure of malloc's; fire() and drop() own it. */
struct sim_event {
	uint64_t when_ns;
	uint64_t order;                     /* breaks ties, at random */
	uint32_t heap_index;                /* 1-based; 0: not queued */
	struct sim_env *owner;              /* whose death drops it; NULL: the world's */
	struct sim_event *next, **previous; /* the owner's events */
	void (*fire)(struct sim_event *event);
	/* The owner died. power: by a power cut. */
	void (*drop)(struct sim_event *event, bool power);
};

struct sim_machine {       /* what survives a crash */
	uint64_t clock_ns; /* of its realtime clock, against the world's; wraps around */
	char name[SIM_NAME_MAX];
	struct sim_disk *disk;
	struct sim_env *up; /* NULL: down */
	uint16_t next_port;
	struct sim_machine *next;
};

struct sim_env { /* one incarnation: a process */
	struct env env;
	struct sim *sim;
	struct sim_machine *machine;
	bool dead;
	bool stopped;
	enum env_log_level log_level;
	uint64_t ios, crash_at_io; /* 0: not armed */
	enum sim_crash crash_mode;
	struct env_timer **timers; /* binary heap by when_ns */
	uint32_t timer_count, timer_room;
	struct env_task *tasks, **tasks_end;
	struct sim_event *turn; /* the end of the turn, when tasks are queued */
	struct sim_event *events;
	struct env_file *files;
	struct env_sock *socks;
	struct env_listener *listeners;
	struct sim_env *next;
};

struct sim_block_rule {
	char from[SIM_NAME_MAX], to[SIM_NAME_MAX];
	struct sim_block_rule *next;
};

struct sim {
	struct env_ops ops;
	uint64_t random_state;
	uint64_t now_ns;
	uint64_t realtime_offset_ns;
	uint64_t event_serial;
	struct sim_event **heap;
	uint32_t heap_count, heap_room;
	struct sim_machine *machines;
	struct sim_env *envs;
	struct sim_store *stores;
	struct sim_net_options net;
	struct sim_block_rule *blocks;
	FILE *trace;
	char *log[SIM_LOG_LINES];
	unsigned log_next;
};

static inline struct sim_env *sim_env_of(const struct env *env)
{
	return (struct sim_env *)(uintptr_t)env;
}

/* Queues event at now + delay_ns; owner may be NULL. */
void sim_event_add(struct sim *sim, struct sim_event *event, struct sim_env *owner,
		   uint64_t delay_ns);
void sim_event_remove(struct sim *sim, struct sim_event *event);
void *sim_alloc(size_t size); /* zeroed; aborts without memory */
uint64_t sim_between(struct sim *sim, uint64_t low, uint64_t high);
bool sim_chance(struct sim *sim, uint32_t ppm);
/* A plain completion of op, later. */
void sim_complete(struct sim_env *env, struct env_op *op, int64_t result, uint64_t delay_ns);
/* Counts a file operation. False: the node is dead, or dies here. */
bool sim_io(struct sim_env *env);

/* disk */
struct sim_disk *sim_disk_new(struct sim *sim);
void sim_disk_free(struct sim_disk *disk);
struct sim_disk *sim_disk_copy(struct sim *sim, struct sim_disk *from);
void sim_disk_crash(struct sim *sim, struct sim_disk *disk, enum sim_crash mode);
/* A node starts. After a failed fsync it finds what is really on the medium. */
void sim_disk_reopen(struct sim *sim, struct sim_disk *disk);
void sim_disk_env_gone(struct sim_env *env);
/* Writes under way of from's node, applied at random to a copy of its disk. */
void sim_disk_under_way(struct sim *sim, struct sim_env *from, struct sim_disk *copy);
void sim_disk_ops(struct env_ops *ops);

/* network */
void sim_net_env_gone(struct sim_env *env, bool power);
void sim_net_machine_up(struct sim_machine *machine, struct sim *sim);
void sim_net_env_free(struct sim_env *env);
void sim_net_ops(struct env_ops *ops);

/* store */
int sim_store_open(struct env *env, const char *url, struct store **store, char *why,
		   size_t why_size);
void sim_stores_free(struct sim *sim);

#endif
