/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A simulated disk: its names, durable or not, and the files they mean. The calls of env are in
 * env_sim_file.c and env_sim_file_async.c, what a crash leaves of a disk in env_sim_disk.c, of a file in env_sim_image.c.
 */
#ifndef OFFSITE_TESTS_SIM_ENV_SIM_DISK_H
#define OFFSITE_TESTS_SIM_ENV_SIM_DISK_H

#include "tests/sim/env_sim_image.h"

struct name {
	struct inode *inode;
	struct name *next;
	char path[];
};

struct name_change { /* to now means inode (NULL: nothing), from means nothing */
	char *from, *to;
	struct inode *inode;
	struct name_change *next;
};

struct sim_disk {
	struct sim *sim;
	struct sim_disk_options options;
	bool strict_names; /* names are durable after sync_dir only */
	bool fsync_failed; /* what reads see may never have reached the medium */
	uint64_t pages_used;
	struct inode *inodes;
	struct name *now, *durable, *directories;
	struct name_change *changes, **changes_end;
};

struct inode *inode_new(struct sim_disk *disk);
struct inode *inode_get(struct inode *inode);
void inode_put(struct inode *inode);
struct name *name_find(struct name *names, const char *path);
void name_add_directory(struct sim_disk *disk, const char *path);
bool name_in_directory(const char *path, const char *directory);
void name_change_add(struct sim_disk *disk, const char *from, const char *to, struct inode *inode);
/* All changes in the directory become durable. */
void name_flush_directory(struct sim_disk *disk, const char *directory);

/* ---- files ----------------------------------------------------------------------------------------- */

struct env_file {
	struct sim_env *owner;
	struct inode *inode;
	unsigned flags, under_way;
	struct env_file *next;
	char path[];
};

static inline struct sim_disk *file_disk(struct sim_env *env)
{
	return env->machine->disk;
}

void file_assert_aligned(const struct env_file *file, const void *buf, uint64_t length,
			 uint64_t offset);
int file_do_read(struct env_file *file, void *buf, uint64_t length, uint64_t offset);
/* Takes the change over. durable: as with FUA. */
int file_do_change(struct env_file *file, struct change *change, bool durable);
/* Covers changes numbered below upto. */
int file_do_fsync(struct env_file *file, uint64_t upto);
void sim_disk_async_ops(struct env_ops *ops);

#endif
