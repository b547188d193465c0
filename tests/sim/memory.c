// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/memory.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FOREIGN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer)
#define FOREIGN 1
#endif
#endif

/* For the linker's --wrap. */
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void __real_free(void *memory);
void *__real_mmap(void *addr, size_t length, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *addr, size_t length);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void __wrap_free(void *memory);
void *__wrap_mmap(void *addr, size_t length, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *addr, size_t length);

/* ---- blocks ---------------------------------------------------------------------------------------- */

#define ARENA_BYTES (UINT64_C(16) << 30)  /* of address space */
#define KEPT_BYTES  (UINT64_C(512) << 20) /* more than that of memory is not taken along */
#define CLASSES     160u

/* In front of each block; 16 bytes, so that blocks are aligned like malloc's. */
struct block {
	uint32_t class;
	uint32_t unused;
	struct block *next; /* of the free ones of its class */
};
_Static_assert(sizeof(struct block) == 16, "alignment of what follows");

static struct {
	uint8_t *base, *end;
	uint8_t *next;    /* from here on it is free */
	uint8_t *touched; /* from here on it is zeroes */
	struct block *free[CLASSES];
} arena;

/* Sizes of blocks: 16, 32, 48, 64, then four to each doubling. */
static uint32_t class_of(size_t size)
{
	size_t units = size > 0 ? (size + 15) / 16 : 1;
	unsigned top;

	if (units <= 4)
		return (uint32_t)units - 1;
	top = 63 - (unsigned)__builtin_clzll(units - 1);
	return 4 * (top - 1) + (uint32_t)((units - 1) >> (top - 2)) - 4;
}

static size_t class_bytes(uint32_t class)
{
	if (class < 4)
		return 16 * (class + 1);
	return (size_t)16 * ((5 + class % 4) << (class / 4 - 1));
}

static bool in_arena(const void *memory)
{
	return (const uint8_t *)memory >= arena.base && (const uint8_t *)memory < arena.end;
}

/* zeroed: its content is known to be zeroes. */
static void *block_new(size_t size, bool *zeroed)
{
	uint32_t class = class_of(size);
	size_t bytes = class_bytes(class);
	struct block *block = arena.free[class];

	*zeroed = false;
	if (block != NULL) {
		arena.free[class] = block->next;
		return block + 1;
	}
	if (bytes + sizeof(*block) > (size_t)(arena.end - arena.next))
		abort();
	block = (struct block *)arena.next;
	arena.next += sizeof(*block) + bytes;
	*zeroed = (uint8_t *)(block + 1) >= arena.touched;
	if (arena.touched < arena.next)
		arena.touched = arena.next;
	block->class = class;
	return block + 1;
}

void *__wrap_malloc(size_t size)
{
	bool zeroed;

	return arena.base != NULL ? block_new(size, &zeroed) : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	size_t bytes;
	void *memory;
	bool zeroed;

	if (arena.base == NULL)
		return __real_calloc(count, size);
	if (__builtin_mul_overflow(count, size, &bytes))
		abort();
	memory = block_new(bytes, &zeroed);
	return zeroed ? memory : memset(memory, 0, bytes);
}

void *__wrap_realloc(void *memory, size_t size)
{
	struct block *block = (struct block *)memory - 1;
	void *bigger;
	size_t has;

	if (memory == NULL)
		return __wrap_malloc(size);
	if (!in_arena(memory))
		return __real_realloc(memory, size);
	has = class_bytes(block->class);
	if (size <= has)
		return memory;
	bigger = __wrap_malloc(size);
	memcpy(bigger, memory, has);
	__wrap_free(memory);
	return bigger;
}

void __wrap_free(void *memory)
{
	struct block *block = (struct block *)memory - 1;

	if (!in_arena(memory)) {
		__real_free(memory);
		return;
	}
	block->next = arena.free[block->class];
	arena.free[block->class] = block;
}

/* ---- maps of memory -------------------------------------------------------------------------------------- */

/* Bitmaps are that small here, and have to be zeroes; above it are the arenas of buffer pools, whose
 * content means nothing. */
#define ZEROED_MAX (64u << 10)
#define KEPT_MAX   2048u

struct mapping {
	void *memory;
	size_t length;
	int protection;
};
static struct mapping kept[KEPT_MAX], used[KEPT_MAX];
static unsigned kept_count, used_count;

static void *take_kept(size_t length, int protection)
{
	for (unsigned i = kept_count; i-- > 0;) {
		void *memory = kept[i].memory;

		if (kept[i].length != length || kept[i].protection != protection)
			continue;
		kept[i] = kept[--kept_count];
		if ((protection & PROT_WRITE) && length <= ZEROED_MAX)
			memset(memory, 0, length);
		return memory;
	}
	return NULL;
}

void *__wrap_mmap(void *addr, size_t length, int protection, int flags, int fd, off_t offset)
{
	bool ours = addr == NULL && fd == -1 && (flags & MAP_PRIVATE) && (flags & MAP_ANONYMOUS);
	void *memory = ours ? take_kept(length, protection) : NULL;

	if (memory == NULL)
		memory = __real_mmap(addr, length, protection, flags, fd, offset);
	if (ours && memory != MAP_FAILED && used_count < KEPT_MAX) {
		used[used_count].memory = memory;
		used[used_count].length = length;
		used[used_count++].protection = protection;
	}
	return memory;
}

static void keep(const struct mapping *mapping)
{
	if (kept_count < KEPT_MAX)
		kept[kept_count++] = *mapping;
	else
		__real_munmap(mapping->memory, mapping->length);
}

int __wrap_munmap(void *addr, size_t length)
{
	for (unsigned i = used_count; i-- > 0;) {
		if (used[i].memory != addr || used[i].length != length)
			continue;
		keep(&used[i]);
		used[i] = used[--used_count];
		return 0;
	}
	return __real_munmap(addr, length);
}

/* ---- worlds -------------------------------------------------------------------------------------------------- */

void memory_prepare(void)
{
#ifndef FOREIGN
	void *memory = __real_mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		abort();
	madvise(memory, ARENA_BYTES, MADV_HUGEPAGE);
	arena.base = arena.next = arena.touched = memory;
	arena.end = arena.base + ARENA_BYTES;
#endif
}

bool memory_reset(void)
{
	if (arena.base == NULL || (uint64_t)(arena.touched - arena.base) > KEPT_BYTES)
		return false;
	arena.next = arena.base;
	memset(arena.free, 0, sizeof(arena.free));
	while (used_count > 0)
		keep(&used[--used_count]);
	return true;
}
