/* SPDX-License-Identifier: Apache-2.0 */
/* Changed blocks copied aside. See kept.h. */
#include "daemon/replication/kept.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/io/buf.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

struct kept {
	struct volume *volume;
	struct env *env;
	char node_name[64], reason[128];
	char dir[400], name[64], path[480];
	struct env_file *file;
	struct buf_pool *pool;
	struct buf *buf;
	struct block_request read;
	struct env_op write;
	uint64_t at, left; /* of the extent being copied */
	uint64_t next;     /* where to look for the one after it */
	uint64_t length;   /* of the piece under way */
	bool whole;
	struct kept_result result;
	void (*done)(void *context, const struct kept_result *result);
	void *context;
};

static void finish(struct kept *kept, int error, const char *what)
{
	if (kept->file)
		env_file_close(kept->env, kept->file);
	if (error) {
		kept->result.error = error;
		if (error == -ENOSPC)
			snprintf(kept->result.why, sizeof(kept->result.why),
				 "%s: not enough space to keep the %llu bytes that would be given "
				 "up; make room, or give them up without a copy (--no-keep)",
				 kept->dir, (unsigned long long)kept->result.bytes);
		else
			snprintf(kept->result.why, sizeof(kept->result.why), "%s: %s: %s",
				 kept->path[0] ? kept->path : kept->dir, what, strerror(-error));
		kept->result.index[0] = 0;
		if (kept->path[0])
			(void)env_unlink(kept->env, kept->path);
	}
	buf_put(kept->buf);
	if (kept->pool)
		buf_pool_free(kept->pool);
	kept->done(kept->context, &kept->result);
	free(kept);
}

/* The next run to keep at or after offset: what the map names, or all that is no hole. */
static bool next_extent(const struct kept *kept, uint64_t offset, uint64_t *start, uint64_t *length)
{
	struct block *block = volume_block(kept->volume);
	uint64_t size = volume_size_bytes(kept->volume);

	if (!kept->whole)
		return volume_dirty_next(kept->volume, VOLUME_PEER, offset, start, length);
	while (offset < size) {
		struct block_extent extent;
		uint64_t rest = size - offset;
		if (block->ops->extents(block, offset, rest, &extent, 1) == 0)
			extent = (struct block_extent){.length_bytes = rest};
		if (extent.length_bytes > rest)
			extent.length_bytes = rest;
		*start = offset;
		*length = extent.length_bytes;
		if (!extent.zero)
			return true;
		offset += extent.length_bytes;
	}
	return false;
}

/* ---- the index ------------------------------------------------------------------------------ */

static void put_string(FILE *out, const char *key, const char *value)
{
	fprintf(out, "  \"%s\": \"", key);
	for (; *value; value++) {
		if (*value == '"' || *value == '\\')
			fputc('\\', out);
		fputc((unsigned char)*value < ' ' || (unsigned char)*value > '~' ? '?' : *value,
		      out);
	}
	fputs("\",\n", out);
}

static void put_id(FILE *out, const char *key, const struct id128 *id)
{
	char text[ID128_TEXT_BYTES];

	id128_format(id, text);
	put_string(out, key, text);
}

static void put_extents(FILE *out, const struct kept *kept)
{
	uint64_t offset = 0, start, length;
	const char *comma = "";

	fputs("  \"extents\": [", out);
	while (next_extent(kept, offset, &start, &length)) {
		fprintf(out, "%s\n    [%llu, %llu]", comma, (unsigned long long)start,
			(unsigned long long)length);
		comma = ",";
		offset = start + length;
	}
	fputs("\n  ]\n}\n", out);
}

static char *make_index(const struct kept *kept, size_t *size)
{
	struct volume_state state;
	struct id128 base = {};
	char *text = NULL, image[80];
	FILE *out = open_memstream(&text, size);

	if (!out)
		return NULL;
	volume_get_state(kept->volume, &state);
	if (!kept->whole)
		base = state.generations.base;
	snprintf(image, sizeof(image), "%s.img", kept->name);
	fputs("{\n", out);
	put_string(out, "format", "offsite-kept-1");
	put_string(out, "volume", volume_name(kept->volume));
	put_string(out, "node", kept->node_name);
	put_string(out, "reason", kept->reason);
	put_string(out, "image", image);
	put_id(out, "uuid", &state.uuid);
	put_id(out, "generation", &state.generations.current);
	put_id(out, "base", &base);
	fprintf(out, "  \"created_ns\": %llu,\n  \"size_bytes\": %llu,\n  \"bytes\": %llu,\n",
		(unsigned long long)env_realtime_ns(kept->env),
		(unsigned long long)volume_size_bytes(kept->volume),
		(unsigned long long)kept->result.bytes);
	put_extents(out, kept);
	if (fclose(out) == 0)
		return text;
	free(text);
	return NULL;
}

static int write_index(struct kept *kept)
{
	char path[512], fresh[516];
	struct env_file *file;
	size_t size = 0;
	char *text = make_index(kept, &size);

	if (!text)
		return -ENOMEM;
	snprintf(path, sizeof(path), "%s/%s.json", kept->dir, kept->name);
	snprintf(fresh, sizeof(fresh), "%s.new", path);
	int error = env_file_open(kept->env, fresh,
				  ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE, &file);
	if (!error) {
		error = env_file_truncate(kept->env, file, 0);
		if (!error)
			error = env_file_pwrite(kept->env, file, text, size, 0);
		if (!error)
			error = env_file_sync(kept->env, file);
		env_file_close(kept->env, file);
	}
	free(text);
	if (!error)
		error = env_rename(kept->env, fresh, path);
	if (!error)
		error = env_sync_dir(kept->env, kept->dir);
	snprintf(kept->result.index, sizeof(kept->result.index), "%s", path);
	return error;
}

/* ---- the blocks ----------------------------------------------------------------------------- */

static void piece_next(struct kept *kept);

static void written(struct env_op *op, int64_t result)
{
	struct kept *kept = container_of(op, struct kept, write);

	if (result < 0) {
		finish(kept, (int)result, "cannot be written");
		return;
	}
	kept->at += kept->length;
	kept->left -= kept->length;
	piece_next(kept);
}

static void piece_read(struct block_request *read, int error)
{
	struct kept *kept = container_of(read, struct kept, read);

	if (error) {
		finish(kept, error, "the volume cannot be read");
		return;
	}
	kept->write.done = written;
	env_write(kept->env, &kept->write, kept->file, kept->buf->data, kept->length, kept->at, 0);
}

static void synced(struct env_op *op, int64_t result)
{
	struct kept *kept = container_of(op, struct kept, write);
	int error = result < 0 ? (int)result : write_index(kept);

	finish(kept, error, "cannot be written");
}

static void piece_next(struct kept *kept)
{
	if (!kept->left) {
		if (!next_extent(kept, kept->next, &kept->at, &kept->left)) {
			kept->write.done = synced;
			env_fsync(kept->env, &kept->write, kept->file);
			return;
		}
		kept->next = kept->at + kept->left;
	}
	kept->length = kept->left < BUF_SIZE_MAX ? kept->left : BUF_SIZE_MAX;
	kept->read = (struct block_request){
		.op = BLOCK_READ,
		.offset_bytes = kept->at,
		.length_bytes = kept->length,
		.buf = kept->buf,
		.done = piece_read,
	};
	volume_read(kept->volume, &kept->read);
}

/* Space first: what does not fit is found before anything is copied. */
static int reserve(struct kept *kept)
{
	uint64_t offset = 0, start, length;
	int error = 0;

	while (!error && next_extent(kept, offset, &start, &length)) {
		error = env_file_allocate(kept->env, kept->file, start, length);
		offset = start + length;
	}
	return error;
}

static int open_image(struct kept *kept)
{
	time_t seconds = (time_t)(env_realtime_ns(kept->env) / 1000000000u);
	struct volume_state state;
	char id[ID128_TEXT_BYTES], when[32] = "";
	struct tm tm;

	volume_get_state(kept->volume, &state);
	id128_format(&state.generations.current, id);
	if (gmtime_r(&seconds, &tm))
		strftime(when, sizeof(when), "%Y%m%dT%H%M%SZ", &tm);
	snprintf(kept->name, sizeof(kept->name), "%s-%.8s", when, id);
	int error = env_mkdir(kept->env, kept->dir);
	if (error)
		return error;
	snprintf(kept->path, sizeof(kept->path), "%s/%s.img", kept->dir, kept->name);
	error = env_file_open(kept->env, kept->path,
			      ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE, &kept->file);
	if (error)
		return error;
	error = env_file_truncate(kept->env, kept->file, volume_size_bytes(kept->volume));
	return error ? error : reserve(kept);
}

static void count(struct kept *kept)
{
	uint64_t offset = 0, start, length;

	while (next_extent(kept, offset, &start, &length)) {
		kept->result.bytes += length;
		kept->result.extents++;
		offset = start + length;
	}
}

void kept_write(struct volume *volume, const char *node_name, const char *reason, bool whole,
		void (*done)(void *context, const struct kept_result *result), void *context)
{
	struct kept *kept = calloc(1, sizeof(*kept));

	if (!kept) {
		struct kept_result result = {.error = -ENOMEM, .why = "out of memory"};

		done(context, &result);
		return;
	}
	kept->volume = volume;
	kept->env = volume_env(volume);
	kept->whole = whole;
	kept->done = done;
	kept->context = context;
	snprintf(kept->node_name, sizeof(kept->node_name), "%s", node_name);
	snprintf(kept->reason, sizeof(kept->reason), "%s", reason);
	if ((size_t)snprintf(kept->dir, sizeof(kept->dir), "%s/kept", volume_state_dir(volume)) >=
	    sizeof(kept->dir)) {
		finish(kept, -ENAMETOOLONG, "cannot be made");
		return;
	}
	count(kept);
	if (!kept->result.extents) {
		finish(kept, 0, "");
		return;
	}
	kept->pool = buf_pool_new((unsigned[3]){1, 1, 1});
	kept->buf = kept->pool ? buf_alloc(kept->pool, BUF_SIZE_MAX) : NULL;
	int error = kept->buf ? open_image(kept) : -ENOMEM;
	if (error)
		finish(kept, error, "cannot be made");
	else
		piece_next(kept);
}
