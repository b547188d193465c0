// SPDX-License-Identifier: Apache-2.0
/*
 * The simulated disk as a whole. A crash keeps, drops or tears each change of a file that is not
 * durable (env_sim_image.c). Names work the same way: what is there, what is durable, and a list of
 * changes for each directory, of which a crash keeps a prefix.
 */
#include "tests/sim/env_sim_disk.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/wire.h"

/* ---- inodes and names ------------------------------------------------------------------------------ */

struct inode *inode_new(struct sim_disk *disk)
{
	struct inode *inode = sim_alloc(sizeof(*inode));

	inode->now.used = &disk->pages_used;
	inode->end = &inode->first;
	inode->next = disk->inodes;
	inode->previous = &disk->inodes;
	if (inode->next != NULL)
		inode->next->previous = &inode->next;
	disk->inodes = inode;
	return inode;
}

struct inode *inode_get(struct inode *inode)
{
	if (inode != NULL)
		inode->references++;
	return inode;
}

void inode_put(struct inode *inode)
{
	if (inode == NULL || --inode->references > 0)
		return;
	image_free(&inode->now);
	image_free(&inode->durable);
	while (inode->first != NULL) {
		struct change *change = inode->first;

		inode->first = change->next;
		change_free(change);
	}
	*inode->previous = inode->next;
	if (inode->next != NULL)
		inode->next->previous = inode->previous;
	free(inode);
}

struct name *name_find(struct name *names, const char *path)
{
	while (names != NULL && strcmp(names->path, path) != 0)
		names = names->next;
	return names;
}

/* path means inode from now on; NULL: nothing. */
static void name_set(struct name **names, const char *path, struct inode *inode)
{
	struct name *name;

	for (struct name **p = names; *p != NULL; p = &(*p)->next) {
		name = *p;
		if (strcmp(name->path, path) != 0)
			continue;
		*p = name->next;
		inode_put(name->inode);
		free(name);
		break;
	}
	if (inode == NULL)
		return;
	name = sim_alloc(sizeof(*name) + strlen(path) + 1);
	strcpy(name->path, path);
	name->inode = inode_get(inode);
	name->next = *names;
	*names = name;
}

static void names_free(struct name **names)
{
	while (*names != NULL) {
		struct name *name = *names;

		*names = name->next;
		inode_put(name->inode);
		free(name);
	}
}

static void names_copy(struct name **to, struct name *from, bool of_copies)
{
	names_free(to);
	for (; from != NULL; from = from->next) {
		struct name *name = sim_alloc(sizeof(*name) + strlen(from->path) + 1);

		strcpy(name->path, from->path);
		name->inode = inode_get(of_copies && from->inode != NULL ? from->inode->copy
									 : from->inode);
		name->next = *to;
		*to = name;
	}
}

void name_add_directory(struct sim_disk *disk, const char *path)
{
	struct name *name = sim_alloc(sizeof(*name) + strlen(path) + 1);

	strcpy(name->path, path);
	name->next = disk->directories;
	disk->directories = name;
}

bool name_in_directory(const char *path, const char *directory)
{
	size_t n = strlen(directory);

	if (path == NULL || strncmp(path, directory, n) != 0)
		return false;
	if (n == 1) /* "/" */
		return strchr(path + 1, '/') == NULL;
	return path[n] == '/' && strchr(path + n + 1, '/') == NULL;
}

static void name_change_apply(struct name **names, const struct name_change *change)
{
	if (change->from != NULL)
		name_set(names, change->from, NULL);
	name_set(names, change->to, change->inode);
}

static void name_change_free(struct name_change *change)
{
	inode_put(change->inode);
	free(change->from);
	free(change->to);
	free(change);
}

void name_change_add(struct sim_disk *disk, const char *from, const char *to, struct inode *inode)
{
	struct name_change *change = sim_alloc(sizeof(*change));

	change->from = from != NULL ? strdup(from) : NULL;
	change->to = strdup(to);
	change->inode = inode_get(inode);
	name_change_apply(&disk->now, change);
	if (disk->strict_names) {
		*disk->changes_end = change;
		disk->changes_end = &change->next;
		return;
	}
	name_change_apply(&disk->durable, change);
	name_change_free(change);
}

void name_flush_directory(struct sim_disk *disk, const char *directory)
{
	struct name_change **p = &disk->changes;

	while (*p != NULL) {
		struct name_change *change = *p;

		if (!name_in_directory(change->to, directory) &&
		    !name_in_directory(change->from, directory)) {
			p = &change->next;
			continue;
		}
		*p = change->next;
		name_change_apply(&disk->durable, change);
		name_change_free(change);
	}
	disk->changes_end = p;
}

/* A crash: of each directory's changes a prefix is kept. */
static void names_settle(struct sim *sim, struct sim_disk *disk, enum sim_crash mode)
{
	unsigned chance =
		1 + (unsigned)sim_random(sim, 4); /* to stop at a change: 1 in this many */

	while (disk->changes != NULL) {
		struct name_change *change = disk->changes;
		bool keep = mode == SIM_CRASH_KILL || mode == SIM_CRASH_POWER_KEEP ||
			    (mode == SIM_CRASH_POWER && sim_random(sim, chance) != 0);
		struct name_change **p;
		char *directory;

		disk->changes = change->next;
		if (keep) {
			name_change_apply(&disk->durable, change);
			name_change_free(change);
			continue;
		}
		directory = strdup(change->to);
		strrchr(directory, '/')[strrchr(directory, '/') == directory ? 1 : 0] = '\0';
		for (p = &disk->changes; *p != NULL;) {
			struct name_change *later = *p;

			if (!name_in_directory(later->to, directory)) {
				p = &later->next;
				continue;
			}
			*p = later->next;
			name_change_free(later);
		}
		free(directory);
		name_change_free(change);
	}
	disk->changes_end = &disk->changes;
	names_copy(&disk->now, disk->durable, false);
}

/* ---- disks ------------------------------------------------------------------------------------------- */

struct sim_disk *sim_disk_new(struct sim *sim)
{
	struct sim_disk *disk = sim_alloc(sizeof(*disk));

	disk->sim = sim;
	disk->changes_end = &disk->changes;
	disk->strict_names = sim_random(sim, 4) != 0;
	disk->options.align_bytes = sim_random(sim, 2) ? 512 : 4096;
	disk->options.latency_min_ns = 10 * SIM_US;
	disk->options.latency_max_ns = sim_between(sim, 20 * SIM_US, 3 * SIM_MS);
	name_add_directory(disk, "/");
	return disk;
}

void sim_disk_free(struct sim_disk *disk)
{
	while (disk->changes != NULL) {
		struct name_change *change = disk->changes;

		disk->changes = change->next;
		name_change_free(change);
	}
	names_free(&disk->now);
	names_free(&disk->durable);
	names_free(&disk->directories);
	assert(disk->inodes == NULL);
	free(disk);
}

struct sim_disk *sim_disk_copy(struct sim *sim, struct sim_disk *from)
{
	struct sim_disk *to = sim_disk_new(sim);

	to->options = from->options;
	to->strict_names = from->strict_names;
	for (struct inode *inode = from->inodes; inode != NULL; inode = inode->next) {
		struct inode *copy = inode_new(to);

		inode->copy = copy;
		image_copy(&copy->now, &inode->now);
		image_copy(&copy->durable, &inode->durable);
		copy->completed = inode->completed;
		copy->pending = inode->pending;
		for (struct change *change = inode->first; change != NULL; change = change->next) {
			struct change *c = change_copy(change);

			*copy->end = c;
			copy->end = &c->next;
		}
		copy->references = 1; /* until the names are there */
	}
	names_copy(&to->now, from->now, true);
	names_copy(&to->durable, from->durable, true);
	names_copy(&to->directories, from->directories, true);
	for (struct name_change *change = from->changes; change != NULL; change = change->next) {
		struct name_change *c = sim_alloc(sizeof(*c));

		c->from = change->from != NULL ? strdup(change->from) : NULL;
		c->to = strdup(change->to);
		c->inode = inode_get(change->inode != NULL ? change->inode->copy : NULL);
		*to->changes_end = c;
		to->changes_end = &c->next;
	}
	for (struct inode *inode = to->inodes, *next; inode != NULL; inode = next) {
		next = inode->next;
		if (inode->references == 1)
			inode->copy = NULL;
		inode_put(inode);
	}
	return to;
}

void sim_disk_crash(struct sim *sim, struct sim_disk *disk, enum sim_crash mode)
{
	if (mode == SIM_CRASH_KILL) /* the page cache lives on */
		return;
	for (struct inode *inode = disk->inodes; inode != NULL; inode = inode->next) {
		inode_settle(sim, inode, mode);
		image_copy(&inode->now, &inode->durable);
	}
	names_settle(sim, disk, mode);
}

void sim_disk_reopen(struct sim *sim, struct sim_disk *disk)
{
	if (disk->fsync_failed)
		sim_disk_crash(sim, disk, SIM_CRASH_POWER);
	disk->fsync_failed = false;
}

void sim_disk_get(const struct env *env, struct sim_disk_options *options)
{
	*options = sim_env_of(env)->machine->disk->options;
}

void sim_disk_set(struct env *env, const struct sim_disk_options *options)
{
	sim_env_of(env)->machine->disk->options = *options;
}

uint64_t sim_disk_used(const struct env *env)
{
	return sim_env_of(env)->machine->disk->pages_used * PAGE;
}

static struct inode *find(const struct env *env, const char *path)
{
	struct name *name = name_find(sim_env_of(env)->machine->disk->now, path);

	return name != NULL ? name->inode : NULL;
}

bool sim_file_peek(const struct env *env, const char *path, void *buf, size_t length,
		   uint64_t offset)
{
	struct inode *inode = find(env, path);

	if (inode != NULL)
		image_read(&inode->now, buf, length, offset);
	return inode != NULL;
}

bool sim_file_size(const struct env *env, const char *path, uint64_t *size_bytes)
{
	struct inode *inode = find(env, path);

	if (inode != NULL)
		*size_bytes = inode->now.size;
	return inode != NULL;
}

const struct inode *sim_file_find(const struct env *env, const char *path)
{
	return find(env, path);
}

static struct page *page_of(const struct inode *inode, uint64_t index)
{
	return inode != NULL ? image_page(&inode->now, index) : NULL;
}

const uint8_t *sim_file_page(const struct inode *file, uint64_t index)
{
	struct page *page = page_of(file, index);

	return page != NULL ? page->data : NULL;
}

const uint32_t *sim_file_checksums(const struct inode *file, uint64_t index)
{
	struct page *page = page_of(file, index);

	if (page == NULL)
		return NULL;
	for (unsigned i = 0; !page->checksums_known && i < PAGE / SECTOR; i++)
		page->checksums[i] = crc32c(0, page->data + i * SECTOR, SECTOR);
	page->checksums_known = true;
	return page->checksums;
}

void sim_file_remove(struct env *dead, const char *path)
{
	struct sim_disk *disk = sim_env_of(dead)->machine->disk;

	assert(sim_env_of(dead)->dead);
	name_change_add(disk, NULL, path, NULL);
	names_settle(disk->sim, disk, SIM_CRASH_POWER_KEEP);
}

void sim_file_corrupt(struct env *env, const char *path, uint64_t offset, uint8_t xor_with)
{
	struct inode *inode = find(env, path);

	assert(inode != NULL && offset < inode->now.size);
	/* The medium is spoilt behind what is written: nothing that is still to be flushed covers it. */
	inode_flush(inode, inode->completed);
	image_page_to_change(&inode->now, (uint32_t)(offset / PAGE))[offset % PAGE] ^= xor_with;
	if (offset < inode->durable.size)
		image_page_to_change(&inode->durable, (uint32_t)(offset / PAGE))[offset % PAGE] ^=
			xor_with;
}

void sim_file_append_junk(struct env *env, const char *path, uint64_t length)
{
	struct inode *inode = find(env, path);
	uint8_t *junk = sim_alloc(length);

	assert(inode != NULL);
	memset(junk, 0x5a, length);
	inode_change(inode, change_new(CHANGE_WRITE, junk, inode->now.size, length));
	inode_flush(inode, inode->completed);
	free(junk);
}
