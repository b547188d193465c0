/* SPDX-License-Identifier: Apache-2.0 */
/* The formats of snapshot.md: golden vectors, and each rule of validation broken once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/snapshot/internal.h"

static const struct id128 volume = {{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99,
				     0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}};
static const struct snapfmt_ref ref = {
	{{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}}, 0x2a, 3};

static void assert_hex(const void *data, size_t length, const char *hex)
{
	char *text = calloc(1, 2 * length + 1);

	for (size_t i = 0; i < length; i++)
		snprintf(text + 2 * i, 3, "%02x", ((const uint8_t *)data)[i]);
	if (getenv("GOLDEN"))
		print_message("%s\n", text);
	else
		assert_string_equal(text, hex);
	free(text);
}

static void names(void **state)
{
	char name[SNAPFMT_NAME_BYTES];
	enum snapfmt_kind kind;
	struct snapfmt_ref back;
	struct id128 uuid;

	snapfmt_name(SNAPFMT_PACK, &volume, &ref, name);
	assert_string_equal(name, "00112233445566778899aabbccddeeff/packs/000000000000002a-"
				  "0102030405060708090a0b0c0d0e0f10-00000003");
	assert_true(snapfmt_name_parse(name, &kind, &uuid, &back));
	assert_int_equal(kind, SNAPFMT_PACK);
	assert_int_equal(snapfmt_ref_compare(&back, &ref), 0);
	assert_true(id128_equal(&uuid, &volume));
	for (size_t i = 0; name[i]; i++) {
		char old = name[i];

		name[i] = 'X';
		assert_false(snapfmt_name_parse(name, &kind, &uuid, &back));
		name[i] = '\0';
		assert_false(snapfmt_name_parse(name, &kind, &uuid, &back));
		name[i] = old;
	}
	snapfmt_name(SNAPFMT_MANIFEST, &volume, &ref, name);
	assert_string_equal(name, "00112233445566778899aabbccddeeff/snapshots/000000000000002a-"
				  "0102030405060708090a0b0c0d0e0f10");
	assert_true(snapfmt_name_parse(name, &kind, &uuid, &back));
	assert_int_equal(kind, SNAPFMT_MANIFEST);
}

static void names_of_pins(void **state)
{
	const char *const id = "0102030405060708090a0b0c0d0e0f10";
	const struct id128 none = {{0}};
	char name[SNAPFMT_NAME_BYTES], want[256];
	struct id128 uuid, holder;
	struct snapfmt_ref back;

	snapfmt_pin_name(&volume, NULL, NULL, name);
	assert_string_equal(name, "00112233445566778899aabbccddeeff/pins/");
	assert_false(snapfmt_pin_parse(name, &uuid, &back, &holder));
	for (unsigned held = 0; held < 3; held++) { /* by nobody but the operator; by someone */
		snapfmt_pin_name(&volume, &ref,
				 held == 0   ? NULL
				 : held == 1 ? &none
					     : &volume,
				 name);
		snprintf(want, sizeof(want),
			 "00112233445566778899aabbccddeeff/pins/000000000000002a-%s%s", id,
			 held == 2 ? "-00112233445566778899aabbccddeeff" : "");
		assert_string_equal(name, want);
		assert_true(snapfmt_pin_parse(name, &uuid, &back, &holder));
		assert_true(id128_equal(&uuid, &volume) &&
			    id128_equal(&back.snapshot, &ref.snapshot));
		assert_int_equal(back.sequence, ref.sequence);
		assert_true(id128_equal(&holder, held == 2 ? &volume : &none));
		assert_false(snapfmt_claim_parse(name, &uuid, &back, &holder));
	}
	for (size_t i = 0; name[i]; i++) {
		const bool operators = i == strlen(want) - 33;
		char old = name[i];

		name[i] = 'X';
		assert_false(snapfmt_pin_parse(name, &uuid, &back, &holder));
		name[i] = '\0';
		assert_int_equal(snapfmt_pin_parse(name, &uuid, &back, &holder), operators);
		name[i] = old;
	}
	snprintf(want, sizeof(want), "%s-", name);
	assert_false(snapfmt_pin_parse(want, &uuid, &back, &holder));
	/* Zero is no holder. */
	memset(strrchr(name, '-') + 1, '0', 32);
	assert_false(snapfmt_pin_parse(name, &uuid, &back, &holder));
}

static void names_of_marks_and_claims(void **state)
{
	const char *const id = "0102030405060708090a0b0c0d0e0f10";
	struct snapfmt_claim_wire claim;
	char name[SNAPFMT_NAME_BYTES], want[256];
	enum snapfmt_kind kind;
	struct snapfmt_ref back;
	struct id128 uuid, base;

	snapfmt_mark_name(&volume, &ref, name);
	snprintf(want, sizeof(want),
		 "00112233445566778899aabbccddeeff/snapshots/000000000000002a-%s-deleted", id);
	assert_string_equal(name, want);
	assert_true(snapfmt_mark_parse(name, &uuid, &back));
	assert_true(id128_equal(&uuid, &volume) && id128_equal(&back.snapshot, &ref.snapshot));
	assert_int_equal(back.sequence, ref.sequence);
	assert_false(snapfmt_name_parse(name, &kind, &uuid, &back));
	assert_false(snapfmt_claim_parse(name, &uuid, &back, &base));
	for (size_t i = 0; name[i]; i++) {
		char old = name[i];

		name[i] = 'X';
		assert_false(snapfmt_mark_parse(name, &uuid, &back));
		name[i] = '\0';
		assert_false(snapfmt_mark_parse(name, &uuid, &back));
		name[i] = old;
	}
	snapfmt_claim_name(&volume, &ref, &volume, name);
	snprintf(want, sizeof(want),
		 "00112233445566778899aabbccddeeff/claims/000000000000002a-%s-"
		 "00112233445566778899aabbccddeeff",
		 id);
	assert_string_equal(name, want);
	assert_true(snapfmt_claim_parse(name, &uuid, &back, &base));
	assert_true(id128_equal(&base, &volume) && id128_equal(&back.snapshot, &ref.snapshot));
	assert_int_equal(back.sequence, ref.sequence);
	for (size_t i = 0; name[i]; i++) {
		char old = name[i];

		name[i] = 'X';
		assert_false(snapfmt_claim_parse(name, &uuid, &back, &base));
		name[i] = '\0';
		assert_false(snapfmt_claim_parse(name, &uuid, &back, &base));
		name[i] = old;
	}
	snapfmt_claim_encode(0x0123456789abcdef, "alpha", &ref.snapshot, &claim);
	assert_hex(&claim, sizeof(claim),
		   "4f465343000100000123456789abcdef616c7068610000000000000000000000"
		   "0000000000000000000000000000000000000000000000000000000000000000"
		   "000000000000000000000000000000000102030405060708090a0b0c0d0e0f10"
		   "00000000000000000000000000000000000000000000000000000000db09946a");
	assert_null(snapfmt_claim_invalid(&claim));
	for (size_t i = 0; i < sizeof(claim); i++) {
		((uint8_t *)&claim)[i] ^= 1;
		assert_non_null(snapfmt_claim_invalid(&claim));
		((uint8_t *)&claim)[i] ^= 1;
	}
}

static struct snapfmt_header pack_header(void)
{
	return (struct snapfmt_header){
		.kind = SNAPFMT_PACK,
		.volume = volume,
		.ref = ref,
		.size_bytes = 128 + 100 + 64,
		.table_offset = 228,
		.table_count = 1,
		.table_crc = 0x01020304,
	};
}

static void header(void **state)
{
	struct snapfmt_header h = pack_header(), back;
	struct snapfmt_header_wire wire;

	snapfmt_header_encode(&h, &wire);
	assert_hex(&wire, sizeof(wire),
		   "4f46534e0001000100112233445566778899aabbccddeeff0102030405060708"
		   "090a0b0c0d0e0f10000000000000002a00000003000000000000000000000124"
		   "00000000000000e4000000010102030400000000000000000000000000000000"
		   "00000000000000000000000000000000000000000000000000000000af0d82b8");
	assert_null(snapfmt_header_decode(&wire, SNAPFMT_PACK, &volume, &ref, &back));
	assert_int_equal(back.size_bytes, h.size_bytes);
	assert_int_equal(back.table_offset, h.table_offset);
	assert_int_equal(back.table_crc, h.table_crc);
	assert_non_null(snapfmt_header_decode(&wire, SNAPFMT_MAPS, &volume, &ref, &back));
	for (size_t i = 0; i < sizeof(wire); i++) {
		((uint8_t *)&wire)[i] ^= 0x40;
		assert_non_null(snapfmt_header_decode(&wire, SNAPFMT_PACK, &volume, &ref, &back));
		((uint8_t *)&wire)[i] ^= 0x40;
	}
	h.table_offset = 200;
	snapfmt_header_encode(&h, &wire);
	assert_string_equal(snapfmt_header_decode(&wire, SNAPFMT_PACK, &volume, &ref, &back),
			    "index misplaced");
	h = pack_header();
	h.table_count = 0xffffffff;
	snapfmt_header_encode(&h, &wire);
	assert_string_equal(snapfmt_header_decode(&wire, SNAPFMT_PACK, &volume, &ref, &back),
			    "index beyond the end");
	h = pack_header();
	h.size_bytes = 1;
	snapfmt_header_encode(&h, &wire);
	assert_string_equal(snapfmt_header_decode(&wire, SNAPFMT_PACK, &volume, &ref, &back),
			    "bad size");
}

static void fill_page(struct snapfmt_page *page)
{
	memset(page, 0, sizeof(*page));
	page->number = 2;
	for (unsigned i = 0; i < 2; i++) {
		struct snapfmt_entry *entry = &page->entries[i * 1000 + 1];

		memset(entry->hash, (int)(0xa0 + i), sizeof(entry->hash));
		entry->pack = ref;
		entry->pack.number = i;
		entry->offset = 128 + 500 * i;
		entry->stored_bytes = 500;
		entry->stored_crc = 0xdeadbeef;
		entry->ordinal = i;
		entry->flags = SNAPFMT_ZSTD;
	}
}

static void page(void **state)
{
	static struct snapfmt_page one, back;
	static uint8_t body[SNAPFMT_PAGE_BODY_MAX];
	struct snapfmt_page_wire wire;
	const uint64_t size = 3 * SNAPFMT_PAGE_BYTES;
	size_t length;
	unsigned accepted = 0;

	fill_page(&one);
	length = snapfmt_page_body_encode(&one, body);
	assert_int_equal(length, 136 + 2 * 32 + 2 * 56);
	assert_hex(body + 128, length - 128,
		   "00000002000000020102030405060708090a0b0c0d0e0f10000000000000002a"
		   "00000000000000000102030405060708090a0b0c0d0e0f10000000000000002a"
		   "0000000100000000a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0"
		   "a0a0a0a0a0a0a0a00000000000000080000001f4deadbeef0000000000000001"
		   "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1"
		   "0000000100000274000001f4deadbeef0000000100000001");
	assert_int_equal(body[0], 2);
	assert_int_equal(body[1001 / 8], 1 << 1001 % 8);
	assert_null(snapfmt_page_body_decode(body, length, 2, size, &back));
	for (unsigned i = 0; i < SNAPFMT_PAGE_CHUNKS; i++) {
		const struct snapfmt_entry *a = &one.entries[i], *b = &back.entries[i];

		assert_memory_equal(a->hash, b->hash, sizeof(a->hash));
		assert_int_equal(snapfmt_ref_compare(&a->pack, &b->pack), 0);
		assert_int_equal(a->offset, b->offset);
		assert_int_equal(a->stored_bytes, b->stored_bytes);
		assert_int_equal(a->stored_crc, b->stored_crc);
		assert_int_equal(a->ordinal, b->ordinal);
		assert_int_equal(a->flags, b->flags);
	}
	assert_non_null(
		snapfmt_page_body_decode(body, length, 2, size - SNAPFMT_PAGE_BYTES, &back));
	for (size_t i = 0; i < length; i++) {
		assert_non_null(snapfmt_page_body_decode(body, i, 2, size, &back));
		body[i] ^= 0x80; /* must not crash; content is under the checksum */
		accepted += !snapfmt_page_body_decode(body, length, 2, size, &back);
		body[i] ^= 0x80;
	}
	assert_true(accepted < length);
	snapfmt_page_header_encode(2, 0, (uint32_t)length, body, (uint32_t)length, &wire);
	assert_hex(&wire, sizeof(wire),
		   "4f4650470001000000000000000000020000013800000138976f07ab00000000"
		   "00000000000000000000000000000000000000000000000000000000d5b8e667");
}

static void manifest(void **state)
{
	struct manifest m = {.info = {.id = ref.snapshot,
				      .sequence = 0x2a,
				      .volume = volume,
				      .volume_name = "pgdata",
				      .node_name = "a",
				      .label = "label",
				      .created_ns = 1,
				      .lsn = 2,
				      .size_bytes = 1 << 30,
				      .data_bytes = 65536,
				      .changed_bytes = 65536,
				      .stored_bytes = 1000,
				      .objects = 2,
				      .history = {{7}},
				      .given_up = true,
				      .given_up_before = {{{8}}, {{9}}}},
			     .parent = {{5}}};
	struct snapfmt_facts_wire *facts;
	struct snapfmt_ref own = ref;
	struct manifest *back = NULL;
	uint8_t *data;
	size_t length;

	m.object_count = 2;
	m.objects = calloc(2, sizeof(*m.objects));
	m.objects[0] = (struct manifest_object){SNAPFMT_PACK, ref, 2, 1, 5000, 100};
	m.objects[1] = (struct manifest_object){SNAPFMT_MAPS, ref, 1, 1, 500, 300};
	m.page_count = 1;
	m.pages = calloc(1, sizeof(*m.pages));
	m.pages[0] = (struct manifest_page){5, 1, 128, 300, 0x11223344, 1};
	own.number = 0;
	assert_int_equal(manifest_encode(&m, false, &data, &length), 0);
	assert_hex(data + 128, 40,
		   "0000000000000001000000000000000200000000400000000000000000010000"
		   "0000000000010000");
	/* In between: stored_bytes, which depends on how well zstd packs the body. */
	assert_hex(data + 176, 248,
		   "0000000300010000050000000000000000000000000000007067646174610000"
		   "0000000000000000000000000000000000000000000000000000000000000000"
		   "0000000000000000000000000000000000000000000000006100000000000000"
		   "0000000000000000000000000000000000000000000000000000000000000000"
		   "0000000000000000000000000000000000000000000000006c6162656c000000"
		   "0000000000000000000000000000000000000000000000000000000000000000"
		   "0000000000000000000000000000000000000000000000000000000000000080"
		   "000000010000000200000001000000000000000000000000");
	assert_hex(data + 424, 52,
		   "0001070000000000000000000000000000000800000000000000000000000000"
		   "0000090000000000000000000000000000000000");
	assert_null(manifest_decode(data, length, &volume, &own, &back));
	assert_int_equal(back->info.stored_bytes, 1000 + length);
	assert_true(back->info.given_up && id128_equal(&back->info.history, &m.info.history));
	assert_memory_equal(back->info.given_up_before, m.info.given_up_before,
			    sizeof(m.info.given_up_before));
	assert_int_equal(back->info.objects, 3);
	assert_string_equal(back->info.volume_name, "pgdata");
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(manifest_object_compare(&back->objects[i], &m.objects[i]), 0);
		assert_int_equal(back->objects[i].total_count, m.objects[i].total_count);
		assert_int_equal(back->objects[i].live_count, m.objects[i].live_count);
		assert_int_equal(back->objects[i].size_bytes, m.objects[i].size_bytes);
		assert_int_equal(back->objects[i].live_bytes, m.objects[i].live_bytes);
	}
	assert_memory_equal(back->pages, m.pages, sizeof(*m.pages)); /* has no padding */
	assert_true(id128_equal(&back->parent, &m.parent));
	manifest_free(back);
	for (size_t i = 0; i < length; i++) {
		assert_non_null(manifest_decode(data, i, &volume, &own, &back));
		data[i] ^= 1;
		assert_non_null(manifest_decode(data, length, &volume, &own, &back));
		data[i] ^= 1;
	}
	facts = (void *)(data + sizeof(struct snapfmt_header_wire));
	facts->flags = 2;
	snapfmt_facts_seal(facts);
	assert_string_equal(manifest_decode(data, length, &volume, &own, &back), "unknown flags");
	facts->flags = 0; /* then nothing was given up with it */
	snapfmt_facts_seal(facts);
	assert_string_equal(manifest_decode(data, length, &volume, &own, &back),
			    "bad list of what was given up");
	facts->flags = SNAPFMT_GIVEN_UP;
	facts->given_up[0] = (struct id128){{0}};
	snapfmt_facts_seal(facts);
	assert_string_equal(manifest_decode(data, length, &volume, &own, &back),
			    "bad list of what was given up");
	free(data);
	m.pages[0].offset = 400; /* beyond its object */
	assert_int_equal(manifest_encode(&m, false, &data, &length), 0);
	assert_string_equal(manifest_decode(data, length, &volume, &own, &back),
			    "page beyond its object");
	free(data);
	m.pages[0].offset = 128;
	m.pages[0].object = 0;
	assert_int_equal(manifest_encode(&m, false, &data, &length), 0);
	assert_string_equal(manifest_decode(data, length, &volume, &own, &back),
			    "page in an unknown object");
	free(data);
	free(m.objects);
	free(m.pages);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names),         cmocka_unit_test(names_of_marks_and_claims),
		cmocka_unit_test(names_of_pins), cmocka_unit_test(header),
		cmocka_unit_test(page),          cmocka_unit_test(manifest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
