/* SPDX-License-Identifier: Apache-2.0 */
/*
 * env_sim: the simulator behind struct env. One struct sim is one world: nodes, each with a disk,
 * a network between them and object stores, all in one thread, one simulated clock, one seed.
 * The same seed and the same calls give the same run.
 *
 * Disk: asynchronous calls take random time and complete in any order. A write is seen by reads once
 * it is complete; it survives a power cut for certain only after an fsync called after its
 * completion, or with FUA. Creating, renaming and unlinking survive for certain only after
 * env_sync_dir(). Blocking calls take no time. With ENV_FILE_DIRECT the alignment is asserted.
 * A buffer that changes while its write or send is under way is an assertion.
 *
 * Network: addresses tcp:NODE:PORT (PORT 0: any free one) and, within a node, unix:/path. In-order
 * byte streams that arrive in random pieces.
 *
 * Crash: the node's operations, timers, tasks and sockets vanish without a callback. The memory of
 * the objects that ran there is simply dropped (leaked) by the caller; its struct env stays valid
 * memory until sim_free(), every call on it fails or does nothing.
 */
#ifndef OFFSITE_TESTS_SIM_ENV_SIM_H
#define OFFSITE_TESTS_SIM_ENV_SIM_H

#include <stdio.h>
#include "daemon/io/env.h"

struct sim;

struct sim *sim_new(uint64_t seed);
/* Frees the world with all nodes, disks, stores. Nothing of it may be used any more. */
void sim_free(struct sim *sim);

uint64_t sim_now_ns(const struct sim *sim);
/* A random number in [0, limit), from the world's seed. limit 0: all 64 bits. */
uint64_t sim_random(struct sim *sim, uint64_t limit);
/* Every log line goes to out as it is written, DEBUG too; NULL: only the last few hundred lines are
 * kept, for sim_print_log(). */
void sim_trace(struct sim *sim, FILE *out);
void sim_print_log(struct sim *sim, FILE *out);
/* A line of the harness's own in the log. */
void sim_note(struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- running ------------------------------------------------------------------------------ */

/* The next event. False: nothing is left to happen. */
bool sim_step(struct sim *sim);
/* Steps until *flag, or until max_ns of simulated time have passed, or nothing is left. Returns
 * *flag. flag may be NULL: just lets time pass. */
bool sim_run_until(struct sim *sim, const bool *flag, uint64_t max_ns);

/* ---- nodes -------------------------------------------------------------------------------- */

/* A new node with an empty disk. name: at most 31 characters. */
struct env *sim_node(struct sim *sim, const char *name);
/* A new node (of this or another world) whose disk is what from's disk holds after a crash of that
 * mode here and now. from itself goes on. */
enum sim_crash {
	SIM_CRASH_KILL, /* kill -9: completed writes stay, those under way do, do not, or in part */
	SIM_CRASH_POWER, /* power cut: each unflushed write is kept, dropped or torn, by the seed */
	SIM_CRASH_POWER_DROP, /* power cut: everything unflushed is lost */
	SIM_CRASH_POWER_KEEP, /* power cut: everything completed is kept */
};
struct env *sim_node_copy(struct sim *sim, const char *name, struct env *from, enum sim_crash mode);

void sim_crash(struct sim *sim, struct env *env, enum sim_crash mode);
/* Crashes the node at its k-th file operation from now (1: the next one), which does not happen any
 * more. 0: disarm. Ask sim_node_dead() after each step. */
void sim_crash_after_ios(struct sim *sim, struct env *env, uint64_t k, enum sim_crash mode);
bool sim_node_dead(const struct env *env);
/* A fresh environment for the same name and disk. The node must be dead. */
struct env *sim_restart(struct sim *sim, struct env *dead);
/* The node's realtime clock is set: it is so much ahead, or behind, of where it was; also after a restart. */
void sim_clock_jump(struct sim *sim, struct env *env, int64_t by_ns);
const char *sim_node_name(const struct env *env);
uint64_t sim_node_ios(const struct env *env); /* file operations since its start */

/* ---- disk --------------------------------------------------------------------------------- */

struct sim_disk_options {
	uint32_t align_bytes; /* with ENV_FILE_DIRECT: 512 or 4096 */
	uint64_t latency_min_ns, latency_max_ns;
	uint64_t capacity_bytes; /* 0: no limit; beyond: ENOSPC, what fits is there */
	bool copies_on_write;    /* ... what is overwritten takes room, too */
	uint32_t read_eio_ppm, write_eio_ppm, fsync_eio_ppm; /* chance in a million */
	const char *eio_path;  /* only for paths that contain this; NULL: all. Must stay
					    * valid */
	bool zero_unsupported; /* env_zero() gives EOPNOTSUPP */
	bool reflinks;         /* env_file_clone() is supported */
	/* A sector of the files of that path that cannot be read until something is written to it. */
	uint64_t bad_start, bad_end;
};
void sim_disk_get(const struct env *env, struct sim_disk_options *options);
void sim_disk_set(struct env *env, const struct sim_disk_options *options);
uint64_t sim_disk_used(const struct env *env); /* bytes of its capacity */
/* What reads see now, without simulated cost; past the end and holes: zeroes. False: no such file. */
bool sim_file_peek(const struct env *env, const char *path, void *buf, size_t length,
		   uint64_t offset);
bool sim_file_size(const struct env *env, const char *path, uint64_t *size_bytes);
/* The content of a file, valid until the next event; NULL: there is none, and it reads as zeroes. */
struct inode;
const struct inode *sim_file_find(const struct env *env, const char *path);
/* Page number index (4096 bytes) of what reads see, or NULL for zeroes. */
const uint8_t *sim_file_page(const struct inode *file, uint64_t index);
/* CRC32C of each 512 bytes of that page, kept until it changes; NULL where sim_file_page is. */
const uint32_t *sim_file_checksums(const struct inode *file, uint64_t index);
/* The file is gone, durably. The node must be dead. */
void sim_file_remove(struct env *dead, const char *path);
/* The disk is replaced by an empty one. The node must be dead. */
void sim_disk_lose(struct env *dead);
/* Behind the file's end there are now so many bytes that mean nothing, durably. */
void sim_file_append_junk(struct env *env, const char *path, uint64_t length);
/* A durable flip of bits in a file: the medium's fault. */
void sim_file_corrupt(struct env *env, const char *path, uint64_t offset, uint8_t xor_with);

/* ---- network ------------------------------------------------------------------------------ */

struct sim_net_options {
	uint64_t latency_min_ns, latency_max_ns;
	/* Each connection takes a way of its own, longer by up to this: what an older one carries may arrive
	 * after what a newer one does. */
	uint64_t detour_max_ns;
	uint32_t
		damage_ppm; /* chance in a million that a piece of what is sent arrives with a wrong bit */
	uint64_t bytes_per_second; /* each direction of each connection */
	uint32_t window_bytes;     /* sent and not yet received */
};
void sim_net_get(const struct sim *sim, struct sim_net_options *options);
void sim_net_set(struct sim *sim, const struct sim_net_options *options);
/* Ends the connections there are between two nodes: with a reset, or silently (both sides hang). */
void sim_cut(struct sim *sim, const char *a, const char *b, bool silent);
/* While blocked nothing passes from one to the other (data waits, connects time out). */
void sim_block(struct sim *sim, const char *from, const char *to, bool blocked);

#endif
