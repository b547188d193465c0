/* SPDX-License-Identifier: Apache-2.0 */
/* The redo log as a file. See staging.h. */
#include "daemon/replication/staging.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

enum {
	RING_BYTES = 4 * 1024 * 1024,
	WRITE_BYTES = 1024 * 1024, /* at most, in one write */
	EAGER_BYTES = 256 * 1024,  /* so much waiting is written without being asked */
	WINDOW_BYTES = 2 * 1024 * 1024,
	RECORD_BYTES = sizeof(struct staging_record_wire),
};
#define SHRINK_STEP (8ull << 20)
#define LEAST_BYTES (4ull << 30) /* that a log may hold where its limit goes by the volume's size */

_Static_assert(WINDOW_BYTES >= 2 * RECORD_BYTES + STAGING_PAYLOAD_MAX, "a record fits the window");
_Static_assert(RING_BYTES >= 2 * (RECORD_BYTES + STAGING_PAYLOAD_MAX), "and the ring");

struct staging {
	struct env *env;
	struct env_file *file;
	const struct staging_ops *ops;
	void *owner;
	uint64_t volume_size_bytes, max_bytes;

	struct id128 first_id, log_id; /* of the first record, and of the next one to be written */
	uint64_t sequence;
	bool open; /* a log was begun and did not fail */

	uint8_t *ring;
	uint64_t end, submitted, done, synced;
	uint64_t sync_asked, sync_target;
	struct env_op write_op, sync_op;
	bool writing, syncing;

	/* The reader. The window holds file bytes [window_at, window_at + window_used). */
	uint8_t *window;
	struct id128 read_id;
	uint64_t position, next_sequence, window_at;
	size_t window_used;
	struct env_op read_op;
	bool reading;
	int read_error;
	uint64_t file_bytes; /* at recovery */

	/* An emptied log's space, given back from the end: [shrink_to, end of file) is on its way. */
	struct env_op shrink_op;
	bool shrinking, stopping;
	bool emptied; /* no header in the file names a record: only then may they go */
	uint64_t shrink_to, expected_bytes;
};

static void pump(struct staging *staging);

static void log_failed(struct staging *staging, int error)
{
	if (!staging->open)
		return;
	staging->open = false;
	staging->ops->failed(staging->owner, error);
}

static void write_done(struct env_op *op, int64_t result)
{
	struct staging *staging = container_of(op, struct staging, write_op);

	staging->writing = false;
	if (result < 0)
		log_failed(staging, (int)result);
	else
		staging->done = staging->submitted;
	pump(staging);
	staging->ops->progress(staging->owner);
}

static void sync_done(struct env_op *op, int64_t result)
{
	struct staging *staging = container_of(op, struct staging, sync_op);

	staging->syncing = false;
	/* After a failed fsync what was pending may be gone, and the next one would not tell. */
	if (result < 0)
		log_failed(staging, (int)result);
	else
		staging->synced = staging->sync_target;
	pump(staging);
	staging->ops->progress(staging->owner);
}

static void pump(struct staging *staging)
{
	if (!staging->open)
		return;
	uint64_t waiting = staging->end - staging->submitted;
	bool asked = staging->sync_asked > staging->submitted;
	if (!staging->writing && (waiting >= EAGER_BYTES || asked)) {
		size_t at = staging->submitted % RING_BYTES;
		uint64_t length = waiting < WRITE_BYTES ? waiting : WRITE_BYTES;
		if (length > RING_BYTES - at)
			length = RING_BYTES - at;
		uint64_t from = staging->submitted;
		if (staging->shrinking && from + length > staging->shrink_to)
			return; /* it would be punched out again */
		staging->submitted += length;
		staging->writing = true;
		env_write(staging->env, &staging->write_op, staging->file, staging->ring + at,
			  length, from, 0);
	}
	if (!staging->syncing && staging->sync_asked > staging->synced &&
	    staging->done >= staging->sync_asked) {
		staging->syncing = true;
		staging->sync_target = staging->sync_asked; /* done may be inside a record */
		env_fsync(staging->env, &staging->sync_op, staging->file);
	}
}

static void read_done(struct env_op *op, int64_t result)
{
	struct staging *staging = container_of(op, struct staging, read_op);

	staging->reading = false;
	if (result < 0)
		staging->read_error = (int)result;
	else
		staging->window_used += (size_t)result;
	staging->ops->progress(staging->owner);
}

/* ---- giving space back ---------------------------------------------------------------------- */

static int reserve(struct staging *staging)
{
	int error = env_file_allocate(staging->env, staging->file, 0,
				      staging->expected_bytes + sizeof(struct staging_header));

	return error == -EOPNOTSUPP ? 0 : error;
}

/* A step at a time and off the loop: to free some GiB takes a file system seconds, in which nothing else of the node
 * would go on. A log that is begun meanwhile ends it. */
static void shrink(struct staging *staging)
{
	struct env_file_info info;

	if (staging->shrinking || staging->stopping || !staging->emptied ||
	    env_file_info(staging->env, staging->file, &info))
		return;
	if (info.size_bytes <= SHRINK_STEP) {
		(void)env_file_truncate(staging->env, staging->file, sizeof(struct staging_header));
		return;
	}
	staging->shrink_to = (info.size_bytes - SHRINK_STEP) / 4096 * 4096;
	staging->shrinking = true;
	env_zero(staging->env, &staging->shrink_op, staging->file, staging->shrink_to,
		 info.size_bytes - staging->shrink_to, ENV_ZERO_PUNCH);
}

/* What was reserved behind the end, too: as a part of the file it goes in steps. */
static void give_back(struct staging *staging)
{
	uint64_t reserved = staging->expected_bytes + sizeof(struct staging_header);
	struct env_file_info info;

	if (staging->emptied && !staging->shrinking &&
	    !env_file_info(staging->env, staging->file, &info) && info.size_bytes < reserved)
		(void)env_file_truncate(staging->env, staging->file, reserved);
	shrink(staging);
}

/* Where holes cannot be made the first step is the last one. */
static void shrink_done(struct env_op *op, int64_t result)
{
	struct staging *staging = container_of(op, struct staging, shrink_op);
	int error = 0;

	staging->shrinking = false;
	if (staging->open)
		error = reserve(staging); /* a part of it may have been punched out */
	else if (staging->emptied &&
		 !env_file_truncate(staging->env, staging->file,
				    result ? sizeof(struct staging_header) : staging->shrink_to))
		shrink(staging);
	if (error)
		log_failed(staging, error);
	pump(staging);
	staging->ops->progress(staging->owner);
}

void staging_stop(struct staging *staging)
{
	staging->stopping = true;
}

bool staging_is_shrinking(const struct staging *staging)
{
	return staging->shrinking;
}

/* ---- life ----------------------------------------------------------------------------------- */

int staging_open(struct env *env, const char *dir, uint64_t volume_size_bytes, uint64_t max_bytes,
		 const struct staging_ops *ops, void *owner, struct staging **result, char *why,
		 size_t why_size)
{
	char path[4096];
	struct env_file_info info;
	int error = -ENOMEM;

	snprintf(path, sizeof(path), "%s/staging", dir);
	struct staging *staging = calloc(1, sizeof(*staging));
	if (!staging)
		goto fail;
	staging->ring = malloc(RING_BYTES);
	staging->window = malloc(WINDOW_BYTES);
	if (!staging->ring || !staging->window)
		goto fail_memory;
	error = env_file_open(env, path, ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE,
			      &staging->file);
	if (error)
		goto fail_memory;
	error = env_file_info(env, staging->file, &info);
	if (!error)
		error = env_sync_dir(env, dir);
	/* A COMMIT that a killed process left in the page cache is durable before it is believed. */
	if (!error)
		error = env_file_sync(env, staging->file);
	if (error)
		goto fail_file;
	staging->env = env;
	staging->ops = ops;
	staging->owner = owner;
	staging->volume_size_bytes = volume_size_bytes;
	staging->max_bytes = max_bytes;
	staging->file_bytes = info.size_bytes;
	staging->write_op.done = write_done;
	staging->sync_op.done = sync_done;
	staging->read_op.done = read_done;
	staging->shrink_op.done = shrink_done;
	*result = staging;
	return 0;

fail_file:
	env_file_close(env, staging->file);
fail_memory:
	free(staging->ring);
	free(staging->window);
	free(staging);
fail:
	snprintf(why, why_size, "%s: %s", path, strerror(-error));
	return error;
}

void staging_close(struct staging *staging)
{
	assert(staging_is_idle(staging) && !staging->shrinking);
	env_file_close(staging->env, staging->file);
	free(staging->ring);
	free(staging->window);
	free(staging);
}

bool staging_is_idle(const struct staging *staging)
{
	return !staging->writing && !staging->syncing && !staging->reading;
}

/* ---- appending ------------------------------------------------------------------------------ */

static void ring_put(struct staging *staging, const void *data, size_t length)
{
	const uint8_t *from = data;

	while (length) {
		size_t at = staging->end % RING_BYTES;
		size_t part = length < RING_BYTES - at ? length : RING_BYTES - at;
		memcpy(staging->ring + at, from, part);
		staging->end += part;
		from += part;
		length -= part;
	}
}

void staging_resized(struct staging *staging, uint64_t volume_size_bytes)
{
	assert(volume_size_bytes >= staging->volume_size_bytes);
	staging->volume_size_bytes = volume_size_bytes;
}

int staging_begin(struct staging *staging, const struct id128 *uuid, const struct id128 *generation,
		  const struct id128 *transfer, uint64_t expected_bytes)
{
	struct staging_header header;

	assert(staging_is_idle(staging));
	if (expected_bytes > staging_max_bytes(staging))
		return -ENOSPC;
	staging->expected_bytes = expected_bytes;
	int error = reserve(staging);
	if (error) {
		give_back(staging); /* what it got before the disk was full */
		return error;
	}
	staging->emptied = false;
	env_random(staging->env, &staging->log_id, sizeof(staging->log_id));
	staging->first_id = staging->log_id;
	staging->sequence = 0;
	staging->end = staging->submitted = staging->done = staging->synced = 0;
	staging->sync_asked = staging->sync_target = 0;
	staging->open = true;
	staging_header_encode(&staging->log_id, uuid, generation, transfer,
			      staging->volume_size_bytes, &header);
	ring_put(staging, &header, sizeof(header));
	return 0;
}

void staging_continue(struct staging *staging)
{
	assert(staging_is_idle(staging) && !staging->open);
	staging->emptied = false;
	staging->end = staging->submitted = staging->done = staging->synced = staging->position;
	staging->sync_asked = staging->sync_target = staging->position;
	staging->sequence = staging->next_sequence - 1;
	staging->log_id = staging->read_id;
	staging->open = true;
}

void staging_mark_resumed(struct staging *staging)
{
	struct staging_resume_wire wire;
	struct staging_record record = {.type = STAGING_RESUME, .length = sizeof(wire)};

	env_random(staging->env, &wire, sizeof(wire));
	staging_append(staging, &record, &wire);
	staging->log_id = wire.log_id;
}

bool staging_has_room(const struct staging *staging, uint32_t payload_bytes)
{
	return staging->open && !staging_is_full(staging) &&
	       staging->end - staging->done + 2 * RECORD_BYTES + payload_bytes +
			       sizeof(struct staging_commit_wire) <=
		       RING_BYTES;
}

uint64_t staging_max_bytes(const struct staging *staging)
{
	uint64_t tenth = staging->volume_size_bytes / 10;

	if (staging->max_bytes)
		return staging->max_bytes;
	return tenth > LEAST_BYTES ? tenth : LEAST_BYTES;
}

bool staging_is_full(const struct staging *staging)
{
	/* Room for one more record and the commit is always kept. */
	return staging->end + 2 * RECORD_BYTES + STAGING_PAYLOAD_MAX +
		       sizeof(struct staging_commit_wire) >
	       staging_max_bytes(staging) + 4 * STAGING_PAYLOAD_MAX;
}

void staging_append(struct staging *staging, struct staging_record *record, const void *payload)
{
	struct staging_record_wire wire;
	uint32_t length = staging_payload_bytes(record);

	if (!staging->open) /* it failed; the owner was told */
		return;
	assert(staging->end - staging->done + RECORD_BYTES + length <= RING_BYTES);
	record->sequence = ++staging->sequence;
	record->payload_crc = length ? crc32c(0, payload, length) : 0;
	staging_record_encode(record, &staging->log_id, &wire);
	ring_put(staging, &wire, sizeof(wire));
	ring_put(staging, payload, length);
	pump(staging);
}

void staging_sync(struct staging *staging)
{
	staging->sync_asked = staging->end;
	pump(staging);
}

uint64_t staging_end(const struct staging *staging)
{
	return staging->end;
}

uint64_t staging_written(const struct staging *staging)
{
	return staging->done;
}

uint64_t staging_synced(const struct staging *staging)
{
	return staging->synced;
}

uint64_t staging_sequence(const struct staging *staging)
{
	return staging->sequence;
}

int staging_reset(struct staging *staging)
{
	static const struct staging_header empty;

	assert(staging_is_idle(staging));
	staging->open = false;
	staging->end = staging->submitted = staging->done = staging->synced = 0;
	int error = env_file_pwrite(staging->env, staging->file, &empty, sizeof(empty), 0);
	if (!error)
		error = env_file_sync(staging->env, staging->file);
	/* Only now, when no header names them, may the records go. */
	if (!error) {
		staging->emptied = true;
		give_back(staging);
	}
	return error;
}

/* ---- reading -------------------------------------------------------------------------------- */

int staging_recover(struct staging *staging, struct id128 *generation, struct id128 *transfer)
{
	struct staging_header header;

	if (staging->file_bytes < sizeof(header)) {
		staging->emptied = true;
		shrink(staging);
		return -ENOENT;
	}
	int error = env_file_pread(staging->env, staging->file, &header, sizeof(header), 0);
	if (error)
		return error;
	const char *reason = staging_header_decode(&header, staging->volume_size_bytes,
						   &staging->first_id, generation, transfer);
	staging->log_id = staging->first_id;
	if (reason) {
		staging->emptied = bytes_are_zero(&header, sizeof(header));
		shrink(staging); /* what a stop left of it */
		return -ENOENT;
	}
	staging_seek(staging, STAGING_FIRST, 1);
	return 0;
}

void staging_seek(struct staging *staging, uint64_t position, uint64_t sequence)
{
	assert(!staging->reading);
	staging->position = position;
	staging->read_id = position == STAGING_FIRST ? staging->first_id : staging->log_id;
	staging->next_sequence = sequence;
	staging->window_at = position;
	staging->window_used = 0;
	staging->read_error = 0;
}

/* Makes [position, position + want) part of the window: true, or the read is under way. */
static bool fill(struct staging *staging, uint64_t limit, size_t want)
{
	size_t used = (size_t)(staging->position - staging->window_at);
	if (staging->window_used - used >= want)
		return true;
	memmove(staging->window, staging->window + used, staging->window_used - used);
	staging->window_used -= used;
	staging->window_at = staging->position;
	uint64_t from = staging->window_at + staging->window_used;
	uint64_t length = limit - from;
	if (length > WINDOW_BYTES - staging->window_used)
		length = WINDOW_BYTES - staging->window_used;
	staging->reading = true;
	env_read(staging->env, &staging->read_op, staging->file,
		 staging->window + staging->window_used, length, from);
	return false;
}

int staging_next(struct staging *staging, uint64_t limit, struct staging_record *record,
		 const uint8_t **payload)
{
	struct staging_record_wire wire;

	if (staging->reading)
		return -EAGAIN;
	if (staging->read_error)
		return staging->read_error;
	if (limit < staging->position + RECORD_BYTES)
		return 0;
	if (!fill(staging, limit, RECORD_BYTES))
		return -EAGAIN;
	const uint8_t *at = staging->window + (staging->position - staging->window_at);
	memcpy(&wire, at, sizeof(wire));
	if (staging_record_decode(&wire, &staging->read_id, staging->next_sequence,
				  staging->volume_size_bytes, record))
		return 0;
	uint32_t length = staging_payload_bytes(record);
	if (limit < staging->position + RECORD_BYTES + length)
		return 0;
	if (!fill(staging, limit, RECORD_BYTES + length))
		return -EAGAIN;
	*payload = staging->window + (staging->position - staging->window_at) + RECORD_BYTES;
	if (length && crc32c(0, *payload, length) != record->payload_crc)
		return 0;
	if (record->type == STAGING_RESUME) {
		memcpy(&staging->read_id, *payload, sizeof(staging->read_id));
		if (!staging->open)
			staging->log_id = staging->read_id;
	}
	staging->position += RECORD_BYTES + length;
	staging->next_sequence++;
	return 1;
}

uint64_t staging_position(const struct staging *staging)
{
	return staging->position;
}

uint64_t staging_file_bytes(const struct staging *staging)
{
	return staging->file_bytes;
}
