/* SPDX-License-Identifier: Apache-2.0 */
/* An object being filled: what it keeps in memory is what it holds, whatever the sizes of its parts. */
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "daemon/snapshot/pack.h"

static size_t allocated(void)
{
	struct mallinfo2 info = mallinfo2();

	return info.uordblks + info.hblkhd;
}

/* The sizes of parts, in turn; what is allocated for 8 MiB of them. */
static size_t cost_of(const uint32_t *sizes, unsigned count)
{
	const struct id128 volume = {{1}};
	const struct snapfmt_ref ref = {0};
	struct pack *pack = pack_new(SNAPFMT_MAPS, &volume, &ref, false, NULL);
	size_t before = allocated(), cost;
	uint32_t bytes = 0;

	for (unsigned i = 0; bytes < 8u << 20; i++) {
		uint32_t length = sizes[i % count];
		void *data = malloc(length);

		assert_non_null(data);
		memset(data, (int)i, length);
		pack_add(pack, data, length);
		bytes += length;
	}
	cost = allocated() - before;
	pack_free(pack);
	return cost;
}

static void it_takes_what_it_holds(void **state)
{
	static const uint32_t sizes[][3] = {
		{65536, 65536, 65536}, {4096, 4096, 4096},  {33000, 32000, 33000},
		{65536, 100, 65536},   {40000, 512, 20000}, {32768, 32769, 1},
	};

	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		size_t cost = cost_of(sizes[i], 3);

		if (cost > (8u << 20) + (8u << 20) / 4)
			fail_msg("parts of %u, %u, %u: 8 MiB take %zu KiB", sizes[i][0],
				 sizes[i][1], sizes[i][2], cost >> 10);
	}
}

/* A store that keeps what was put last. */
static struct {
	unsigned puts;
	uint8_t data[16 << 20];
	size_t bytes;
} kept;

static void keep(struct store *store, struct env_op *op, const char *name, const struct iovec *iov,
		 unsigned count)
{
	kept.puts++;
	for (unsigned i = 0; i < count; i++) {
		memcpy(kept.data + kept.bytes, iov[i].iov_base, iov[i].iov_len);
		kept.bytes += iov[i].iov_len;
	}
	op->done(op, 0);
}

static void put_ended(void *context, int error, const char *why)
{
	assert_int_equal(error, 0);
	++*(unsigned *)context;
}

/* Places may lie over the end of a slab; who puts does not wait until they are filled. */
static void put_when_it_is_filled(void **state)
{
	const struct store_ops ops = {.put = keep};
	const struct store_retention none = {.lock = STORE_LOCK_NONE};
	const struct id128 volume = {{1}};
	const struct snapfmt_ref ref = {0};
	struct store store = {.ops = &ops};
	struct slabs slabs = {.slab_bytes = SLAB_BYTES};
	struct pack *pack = pack_new(SNAPFMT_PACK, &volume, &ref, false, &slabs);
	struct pack_place places[7];
	static uint8_t data[1 << 20];
	uint32_t offset[7], length = 700001;
	unsigned ended = 0;

	for (unsigned i = 0; i < 7; i++)
		offset[i] = pack_reserve(pack, length, &places[i]);
	pack_put(pack, &store, &none, put_ended, &ended);
	for (unsigned i = 7; i-- > 0;) {
		assert_int_equal(kept.puts, 0);
		memset(data, (int)i + 1, length);
		for (uint32_t at = 0; at < length; at += 65537)
			pack_place_write(&places[i], at, data,
					 length - at < 65537 ? length - at : 65537);
		pack_placed(&places[i]);
	}
	assert_int_equal(kept.puts, 1);
	assert_int_equal(ended, 1);
	for (unsigned i = 0; i < 7; i++) {
		memset(data, (int)i + 1, length);
		assert_int_equal(offset[i], sizeof(struct snapfmt_header_wire) + i * length);
		assert_memory_equal(kept.data + offset[i], data, length);
	}
	assert_int_equal(slabs.count, 3); /* they are used again */
	slabs_free(&slabs);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_takes_what_it_holds),
		cmocka_unit_test(put_when_it_is_filled),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
