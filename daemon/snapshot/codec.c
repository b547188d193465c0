/* SPDX-License-Identifier: Apache-2.0 */
/* Hashing, compression, and the small helpers all of daemon/snapshot uses. See internal.h. */
#include "daemon/snapshot/internal.h"

#include <assert.h>
#include <openssl/sha.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

int why_set(char why[WHY_BYTES], int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why, WHY_BYTES, format, args);
	va_end(args);
	return error;
}

struct later {
	struct env_task task;
	void (*call)(void *context);
	void *context;
};

static void later_call(struct env_task *task)
{
	struct later *later = container_of(task, struct later, task);
	void (*call)(void *context) = later->call;
	void *context = later->context;

	free(later);
	call(context);
}

void call_later(struct env *env, void (*call)(void *context), void *context)
{
	struct later *later = must_alloc(sizeof(*later));

	*later = (struct later){.task = {.call = later_call}, .call = call, .context = context};
	env_defer(env, &later->task);
}

void *must_alloc(size_t size_bytes)
{
	void *memory = calloc(1, size_bytes ? size_bytes : 1);

	assert(memory);
	return memory;
}

void *array_add(void **array, size_t *count, size_t *room, size_t size_bytes)
{
	if (*count == *room) {
		*room = *room ? *room * 2 : 16;
		*array = realloc(*array, *room * size_bytes);
		assert(*array);
	}
	return memset((char *)*array + (*count)++ * size_bytes, 0, size_bytes);
}

void codec_hash(const void *data, size_t length, uint8_t hash[SNAPFMT_HASH_BYTES])
{
	SHA256(data, length, hash);
}

size_t codec_pack(int level, const void *data, size_t length, void *out, size_t out_size)
{
	size_t packed = ZSTD_compress(out, out_size, data, length, level);

	return ZSTD_isError(packed) || packed >= length ? 0 : packed;
}

bool codec_unpack(const void *stored, size_t stored_bytes, void *out, size_t length)
{
	size_t unpacked = ZSTD_decompress(out, length, stored, stored_bytes);

	return !ZSTD_isError(unpacked) && unpacked == length;
}
