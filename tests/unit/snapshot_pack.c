/* SPDX-License-Identifier: Apache-2.0 */
/* An object being filled: what it keeps in memory is what it holds, whatever the sizes of its parts. */
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
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
	struct pack *pack = pack_new(SNAPFMT_PACK, &volume, &ref, false);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_takes_what_it_holds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
