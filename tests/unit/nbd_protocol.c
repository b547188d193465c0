// SPDX-License-Identifier: Apache-2.0
/* protocol/nbd.c: parsers, the rules for requests, errors, encoders with golden bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "protocol/nbd.h"

#define ALL_FLAGS                                                                            \
	(NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | \
	 NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_DF | NBD_FLAG_SEND_CACHE |               \
	 NBD_FLAG_SEND_FAST_ZERO)
#define SIZE (1ull << 40)

static void client_flags(void **state)
{
	for (uint32_t flags = 0; flags < 4; flags++)
		assert_null(nbd_client_flags_invalid(flags));
	for (unsigned bit = 2; bit < 32; bit++)
		assert_non_null(nbd_client_flags_invalid(1u << bit | 1));
}

static void info_requests(void **state)
{
	static const char good[] = "\0\0\0\3vol\0\2\0\1\0\3";
	struct nbd_info_request request;

	assert_null(nbd_info_request_parse(good, sizeof(good) - 1, &request));
	assert_int_equal(request.name_length, 3);
	assert_memory_equal(request.name, "vol", 3);
	assert_true(nbd_info_wanted(&request, NBD_INFO_NAME));
	assert_true(nbd_info_wanted(&request, NBD_INFO_BLOCK_SIZE));
	assert_false(nbd_info_wanted(&request, NBD_INFO_DESCRIPTION));
	for (size_t length = 0; length < sizeof(good) - 1; length++)
		assert_non_null(nbd_info_request_parse(good, length, &request));
	assert_non_null(nbd_info_request_parse(good, sizeof(good), &request));
	assert_non_null(nbd_info_request_parse("\xff\xff\xff\xffvol\0\0", 9, &request));
	assert_non_null(nbd_info_request_parse("\0\0\0\3v\0l\0\0", 9, &request));
}

static void names(void **state)
{
	static char name[NBD_STRING_MAX + 1];

	memset(name, 'n', sizeof(name));
	assert_null(nbd_name_invalid(name, 0));
	assert_null(nbd_name_invalid(name, NBD_STRING_MAX));
	assert_non_null(nbd_name_invalid(name, NBD_STRING_MAX + 1));
}

static void meta_requests(void **state)
{
	static const char good[] = "\0\0\0\3vol\0\0\0\2\0\0\0\5base:\0\0\0\3x:y";
	static const char bare[] = "\0\0\0\3vol\0\0\0\1\0\0\0\4base";
	struct nbd_meta_request request;
	const char *query;
	size_t length;

	assert_null(nbd_meta_request_parse(good, sizeof(good) - 1, &request));
	assert_int_equal(request.count, 2);
	assert_true(nbd_meta_query_next(&request, &query, &length));
	assert_true(nbd_meta_query_names(query, length, NBD_META_ALLOCATION, true));
	assert_false(nbd_meta_query_names(query, length, NBD_META_ALLOCATION, false));
	assert_true(nbd_meta_query_next(&request, &query, &length));
	assert_int_equal(length, 3);
	assert_false(nbd_meta_query_names(query, length, NBD_META_ALLOCATION, true));
	assert_false(nbd_meta_query_next(&request, &query, &length));
	for (size_t n = 0; n < sizeof(good) - 1; n++)
		assert_non_null(nbd_meta_request_parse(good, n, &request));
	assert_non_null(nbd_meta_request_parse(good, sizeof(good), &request));
	assert_non_null(nbd_meta_request_parse(bare, sizeof(bare) - 1, &request));
	assert_true(nbd_meta_query_names("base:allocation", 15, NBD_META_ALLOCATION, false));
	assert_false(nbd_meta_query_names("base:allocatioN", 15, NBD_META_ALLOCATION, true));
}

struct check_case {
	uint16_t type, flags;
	uint64_t offset;
	uint32_t length;
	enum nbd_error error;
};

static void check_cases(const struct nbd_terms *terms, const struct check_case *cases,
			unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		struct nbd_request request = {
			.type = cases[i].type,
			.flags = cases[i].flags,
			.offset = cases[i].offset,
			.length = cases[i].length,
		};
		const char *reason = NULL;

		if (nbd_request_check(&request, terms, &reason) != cases[i].error)
			fail_msg("case %u: %s", i, reason ? reason : "allowed");
		assert_true((reason != NULL) == (cases[i].error != NBD_OK));
	}
}
#define CHECK(terms, cases) check_cases(terms, cases, sizeof(cases) / sizeof((cases)[0]))

static void requests(void **state)
{
	const struct nbd_terms terms = {SIZE, 1, ALL_FLAGS, true, true};
	const struct check_case cases[] = {
		{NBD_CMD_READ, 0, 0, 1, NBD_OK},
		{NBD_CMD_READ, NBD_CMD_FLAG_DF | NBD_CMD_FLAG_FUA, SIZE - 1, 1, NBD_OK},
		{NBD_CMD_READ, 0, 0, NBD_PAYLOAD_MAX, NBD_OK},
		{NBD_CMD_READ, 0, 0, NBD_PAYLOAD_MAX + 1, NBD_EINVAL},
		{NBD_CMD_READ, 0, 0, 0, NBD_EINVAL},
		{NBD_CMD_READ, 0, SIZE, 1, NBD_EINVAL},
		{NBD_CMD_READ, 0, SIZE - 1, 2, NBD_EINVAL},
		{NBD_CMD_READ, 0, UINT64_MAX, 2, NBD_EINVAL},
		{NBD_CMD_READ, NBD_CMD_FLAG_NO_HOLE, 0, 1, NBD_EINVAL},
		{NBD_CMD_READ, 1 << 5, 0, 1, NBD_EINVAL},
		{NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 0, 1, NBD_OK},
		{NBD_CMD_WRITE, NBD_CMD_FLAG_DF, 0, 1, NBD_EINVAL},
		{NBD_CMD_WRITE, 0, SIZE - 1, 2, NBD_ENOSPC},
		{NBD_CMD_WRITE, 0, UINT64_MAX, UINT32_MAX, NBD_EINVAL},
		{NBD_CMD_FLUSH, NBD_CMD_FLAG_FUA, 0, 0, NBD_OK},
		{NBD_CMD_FLUSH, 0, 1, 0, NBD_EINVAL},
		{NBD_CMD_FLUSH, 0, 0, 1, NBD_EINVAL},
		{NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 0, UINT32_MAX, NBD_OK},
		{NBD_CMD_TRIM, NBD_CMD_FLAG_FAST_ZERO, 0, 1, NBD_EINVAL},
		{NBD_CMD_TRIM, 0, SIZE, 1, NBD_EINVAL},
		{NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, 0, 1, NBD_OK},
		{NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_REQ_ONE, 0, 1, NBD_EINVAL},
		{NBD_CMD_WRITE_ZEROES, 0, SIZE, 1, NBD_ENOSPC},
		{NBD_CMD_CACHE, 0, 0, UINT32_MAX, NBD_OK},
		{NBD_CMD_CACHE, NBD_CMD_FLAG_DF, 0, 1, NBD_EINVAL},
		{NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 0, UINT32_MAX, NBD_OK},
		{NBD_CMD_BLOCK_STATUS, 0, SIZE, 1, NBD_EINVAL},
		{NBD_CMD_DISC, 0, 0, 0, NBD_EINVAL},
		{8, 0, 0, 1, NBD_EINVAL},
		{0xffff, 0, 0, 1, NBD_EINVAL},
	};

	CHECK(&terms, cases);
}

static void requests_by_terms(void **state)
{
	const struct nbd_terms plain = {SIZE, 1, NBD_FLAG_HAS_FLAGS, false, false};
	const struct check_case nothing[] = {
		{NBD_CMD_WRITE, 0, 0, 1, NBD_OK},
		{NBD_CMD_WRITE, 1, 0, 1, NBD_EINVAL},
		{NBD_CMD_FLUSH, 0, 0, 0, NBD_EINVAL},
		{NBD_CMD_TRIM, 0, 0, 1, NBD_EINVAL},
		{NBD_CMD_CACHE, 0, 0, 1, NBD_EINVAL},
		{NBD_CMD_WRITE_ZEROES, 0, 0, 1, NBD_EINVAL},
		{NBD_CMD_BLOCK_STATUS, 0, 0, 1, NBD_EINVAL},
		{NBD_CMD_READ, 4, 0, 1, NBD_EINVAL},
	};
	const struct nbd_terms read_only = {SIZE, 1, ALL_FLAGS | NBD_FLAG_READ_ONLY, true, true};
	const struct check_case refused[] = {
		{NBD_CMD_WRITE, 0, 0, 1, NBD_EPERM},        {NBD_CMD_TRIM, 0, 0, 1, NBD_EPERM},
		{NBD_CMD_WRITE_ZEROES, 0, 0, 1, NBD_EPERM}, {NBD_CMD_READ, 0, 0, 1, NBD_OK},
		{NBD_CMD_FLUSH, 0, 0, 0, NBD_OK},
	};
	const struct nbd_terms blocks = {SIZE, 4096, ALL_FLAGS, true, true};
	const struct check_case unaligned[] = {
		{NBD_CMD_READ, 0, 512, 4096, NBD_EINVAL},
		{NBD_CMD_READ, 0, 4096, 512, NBD_EINVAL},
		{NBD_CMD_READ, 0, 4096, 4096, NBD_OK},
		{NBD_CMD_WRITE, 0, 1, 4096, NBD_EINVAL},
		{NBD_CMD_TRIM, 0, 0, 4095, NBD_EINVAL},
		{NBD_CMD_CACHE, 0, 0, 1, NBD_EINVAL},
		{NBD_CMD_WRITE_ZEROES, 0, 0, 1, NBD_EINVAL},
		{NBD_CMD_BLOCK_STATUS, 0, 1, 1, NBD_EINVAL},
	};

	CHECK(&plain, nothing);
	CHECK(&read_only, refused);
	CHECK(&blocks, unaligned);
}

static void errors(void **state)
{
	assert_int_equal(nbd_error_from_errno(0, false), NBD_OK);
	assert_int_equal(nbd_error_from_errno(-EPERM, false), NBD_EPERM);
	assert_int_equal(nbd_error_from_errno(-EROFS, false), NBD_EPERM);
	assert_int_equal(nbd_error_from_errno(-EDQUOT, false), NBD_ENOSPC);
	assert_int_equal(nbd_error_from_errno(-EFBIG, false), NBD_ENOSPC);
	assert_int_equal(nbd_error_from_errno(-EOPNOTSUPP, true), NBD_ENOTSUP);
	assert_int_equal(nbd_error_from_errno(-EOPNOTSUPP, false), NBD_EINVAL);
	assert_int_equal(nbd_error_from_errno(-ESHUTDOWN, false), NBD_ESHUTDOWN);
	assert_int_equal(nbd_error_from_errno(-ENODATA, false), NBD_EIO);
	assert_int_equal(nbd_error_from_errno(-4000, false), NBD_EIO);
}

static void golden_bytes(void **state)
{
	uint8_t to[256];
	struct nbd_request_wire wire;
	struct nbd_request request;

	assert_int_equal(nbd_put_simple_reply(to, NBD_EIO, 0x0102030405060708), 16);
	assert_memory_equal(to, "\x67\x44\x66\x98\0\0\0\5\1\2\3\4\5\6\7\10", 16);
	assert_int_equal(nbd_put_chunk_data(to, 1, 0x0102030405060708, 0x1000, 512), 28);
	assert_memory_equal(
		to, "\x66\x8e\x33\xef\0\1\0\1\1\2\3\4\5\6\7\10\0\0\2\10\0\0\0\0\0\0\x10\0", 28);
	assert_int_equal(nbd_put_chunk_error(to, 1, NBD_EINVAL, "no"), 28);
	assert_memory_equal(
		to, "\x66\x8e\x33\xef\0\1\x80\1\0\0\0\0\0\0\0\1\0\0\0\10\0\0\0\x16\0\2no", 28);
	assert_int_equal(nbd_put_chunk_status(to, NBD_CHUNK_FLAG_DONE, 1, 1, 2), 24);
	assert_memory_equal(to, "\x66\x8e\x33\xef\0\1\0\5\0\0\0\0\0\0\0\1\0\0\0\x14\0\0\0\1", 24);
	assert_int_equal(nbd_put_option_reply(to, 7, NBD_REP_ERR_UNKNOWN, 3), 20);
	assert_memory_equal(to, "\0\3\xe8\x89\4\x55\x65\xa9\0\0\0\7\x80\0\0\6\0\0\0\3", 20);
	memcpy(&wire, "\x25\x60\x95\x13\0\1\0\6\1\2\3\4\5\6\7\10\0\0\0\0\0\0\x10\0\0\0\2\0", 28);
	assert_true(nbd_request_decode(&wire, &request));
	assert_int_equal(request.type, NBD_CMD_WRITE_ZEROES);
	assert_int_equal(request.flags, NBD_CMD_FLAG_FUA);
	assert_int_equal(request.cookie, 0x0102030405060708);
	assert_int_equal(request.offset, 0x1000);
	assert_int_equal(request.length, 512);
	wire.magic = to_be32(NBD_MAGIC_REQUEST + 1);
	assert_false(nbd_request_decode(&wire, &request));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(client_flags), cmocka_unit_test(info_requests),
		cmocka_unit_test(names),        cmocka_unit_test(meta_requests),
		cmocka_unit_test(requests),     cmocka_unit_test(requests_by_terms),
		cmocka_unit_test(errors),       cmocka_unit_test(golden_bytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
