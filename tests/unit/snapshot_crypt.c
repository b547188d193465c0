/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encrypted repositories: golden vectors (made with another implementation: Python's cryptography and
 * hashlib), what the store gets to see, wrong and missing keys, objects exchanged or damaged, changing the
 * secret.
 */
#include "tests/unit/snapshot_fixture.h"

#include <fcntl.h>
#include <openssl/sha.h>
#include <sys/stat.h>

#include "daemon/store/crypt.h"
#include "daemon/store/keyring.h"

/* ---- vectors ----------------------------------------------------------------------------------- */

static void rising(void *out, uint8_t from, size_t length)
{
	for (size_t i = 0; i < length; i++)
		((uint8_t *)out)[i] = (uint8_t)(from + i);
}

static void assert_hex(const void *data, size_t length, const char *expected)
{
	char text[512];

	assert_int_equal(strlen(expected), 2 * length);
	for (size_t i = 0; i < length; i++)
		snprintf(text + 2 * i, 3, "%02x", ((const uint8_t *)data)[i]);
	assert_string_equal(text, expected);
}

static void assert_sha256(const void *data, size_t length, const char *expected)
{
	uint8_t hash[32];

	SHA256(data, length, hash);
	assert_hex(hash, sizeof(hash), expected);
}

static struct data_key vector_key(void)
{
	struct data_key key = {.created_ns = 1700000000000000000ull};

	rising(&key.id, 0x20, 16);
	rising(&key.key, 0, 32);
	return key;
}

#define VECTOR_NAME                                    \
	"101112131415161718191a1b1c1d1e1f/packs/"      \
	"0000000000000007-404142434445464748494a4b4c4" \
	"d4e4f-00000001"

/* Whatever part of the plain bytes is wanted: that, and not a byte beside it. */
static void check_parts(const struct cipher_key *object_key, const uint8_t *plain,
			const uint8_t *stored)
{
	static const unsigned at[] = {0,
				      1,
				      100,
				      CRYPTFMT_SEGMENT_BYTES - 1,
				      CRYPTFMT_SEGMENT_BYTES,
				      CRYPTFMT_SEGMENT_BYTES + 1,
				      CRYPTFMT_SEGMENT_BYTES + 5,
				      CRYPTFMT_SEGMENT_BYTES + 9};
	const unsigned count = sizeof(at) / sizeof(at[0]), size = CRYPTFMT_SEGMENT_BYTES + 5;
	static uint8_t out[CRYPTFMT_SEGMENT_BYTES * 2 + 64];

	for (unsigned i = 0; i < count; i++) {
		for (unsigned j = 0; j < count; j++) {
			unsigned there = at[i] < size ? size - at[i] : 0;
			unsigned want = at[j] < there ? at[j] : there;

			memset(out, 0xee, sizeof(out));
			assert_int_equal(cipher_open_part(object_key, 0, stored, size + 56, at[i],
							  at[j], out),
					 want);
			assert_memory_equal(out, plain + (want ? at[i] : 0), want);
			assert_int_equal(out[want], 0xee);
		}
	}
}

static void object_vector(void **state)
{
	static uint8_t plain[CRYPTFMT_SEGMENT_BYTES + 5], out[20000], again[20000];
	uint8_t nonces[2 * CRYPTFMT_NONCE_BYTES];
	struct data_key key = vector_key();
	struct cipher_key object_key;
	struct iovec iov[3] = {{plain, 7}, {plain + 7, 10000}, {plain + 10007, 6382}};

	for (unsigned i = 0; i < sizeof(plain); i++)
		plain[i] = (uint8_t)(i * 7 % 251);
	memset(nonces, 0xa0, CRYPTFMT_NONCE_BYTES);
	memset(nonces + CRYPTFMT_NONCE_BYTES, 0xa1, CRYPTFMT_NONCE_BYTES);
	cipher_object_key(&key.key, VECTOR_NAME, &object_key);
	assert_hex(&object_key, 32,
		   "ad4075f3898384ba2a68cad770e0659cbd2c43e0486d3c602f376540c94e945a");
	assert_int_equal(cryptfmt_stored_bytes(sizeof(plain)), 16477);
	cipher_seal(&key, VECTOR_NAME, iov, 3, nonces, out);
	assert_hex(out, 32, "4f46534500010000202122232425262728292a2b2c2d2e2f000000004b502482");
	assert_hex(out + 16477 - 33, 33,
		   "a1a1a1a1a1a1a1a1a1a1a1a124a38071864a6e7c510b3f90cdc7478e372bf9dd36");
	assert_sha256(out, 16477,
		      "904ea4e9a383a45ca90dcde00c6ffceacfe341e617e3fc5976a4dcfff7fa9c6a");
	assert_int_equal(cipher_open(&object_key, 0, out + 32, 16477 - 32, again), sizeof(plain));
	assert_memory_equal(plain, again, sizeof(plain));
	/* Not in another place, not in part. */
	assert_int_equal(cipher_open(&object_key, 1, out + 32, 16477 - 32, again), -EBADMSG);
	assert_int_equal(cipher_open(&object_key, 1, out + 16477 - 33, 33, again), 5);
	assert_int_equal(cipher_open(&object_key, 1, out + 16477 - 33, 32, again), -EBADMSG);
	check_parts(&object_key, plain, out + 32);
}

/* What is sealed where it lies is the same object, in pieces. */
static void sealed_where_it_lies(void **state)
{
	enum { SEGMENTS = 4, TOTAL = 3 * CRYPTFMT_SEGMENT_BYTES + 100 };
	static const unsigned cuts[][3] = {
		{TOTAL, TOTAL, TOTAL},
		{1, CRYPTFMT_SEGMENT_BYTES, 2 * CRYPTFMT_SEGMENT_BYTES},
		{CRYPTFMT_SEGMENT_BYTES - 1, CRYPTFMT_SEGMENT_BYTES + 1, TOTAL - 1},
		{0, 0, 5},
	};
	static uint8_t plain[TOTAL], spent[TOTAL], want[TOTAL + 500], got[TOTAL + 500], marks[500];
	uint8_t nonces[SEGMENTS * CRYPTFMT_NONCE_BYTES];
	struct data_key key = vector_key();
	size_t length, stored = cryptfmt_stored_bytes(TOTAL);

	for (unsigned i = 0; i < TOTAL; i++)
		plain[i] = (uint8_t)(i * 7 % 251);
	rising(nonces, 0x40, sizeof(nonces));
	for (unsigned c = 0; c < sizeof(cuts) / sizeof(cuts[0]); c++) {
		unsigned a = cuts[c][0], b = cuts[c][1], d = cuts[c][2];
		struct iovec iov[4] = {
			{spent, a}, {spent + a, b - a}, {spent + b, d - b}, {spent + d, TOTAL - d}};
		struct iovec parts[2 * SEGMENTS + 4 + 1];
		unsigned count;

		assert_int_equal(cipher_parts_max(SEGMENTS, 4), sizeof(parts) / sizeof(parts[0]));
		memcpy(spent, plain, TOTAL);
		cipher_seal(&key, VECTOR_NAME, iov, 4, nonces, want);
		count = cipher_seal_spent(&key, VECTOR_NAME, iov, 4, nonces, marks, parts);
		assert_in_range(count, 1, sizeof(parts) / sizeof(parts[0]));
		length = 0;
		for (unsigned i = 0; i < count; i++) {
			memcpy(got + length, parts[i].iov_base, parts[i].iov_len);
			length += parts[i].iov_len;
		}
		assert_int_equal(length, stored);
		assert_memory_equal(got, want, stored);
	}
}

/* A wrapped key as section 9 has it; text may be "". */
static size_t wrap_vector(enum cryptfmt_method method, unsigned cost, const char *text,
			  const char *label, const struct cipher_key *wrapping, uint8_t *out)
{
	struct cryptfmt_key_wire *wire = (void *)out;
	struct data_key key = vector_key();

	memset(wire, 0, sizeof(*wire));
	wire->magic = to_be32(CRYPTFMT_KEY_MAGIC);
	wire->version = to_be16(CRYPTFMT_VERSION);
	wire->method = to_be16((uint16_t)method);
	rising(&wire->volume, 0x10, 16);
	wire->key = key.id;
	rising(&wire->slot, 0x30, 16);
	wire->created_ns = to_be64(key.created_ns);
	rising(wire->salt, 0x50, 32);
	wire->cost = to_be32(cost);
	wire->text_bytes = to_be32((uint32_t)strlen(text));
	snprintf(wire->label, sizeof(wire->label), "%s", label);
	memset(wire->nonce, 0xb0, sizeof(wire->nonce));
	cipher_wrap(wrapping, &key.key, wire);
	memcpy(out + sizeof(*wire), text, strlen(text));
	cryptfmt_key_seal(wire, text);
	return sizeof(*wire) + strlen(text);
}

static void key_vectors(void **state)
{
	struct cipher_key wrapping, key;
	struct id128 volume, id, slot;
	uint8_t salt[32], file[32], out[512];
	size_t length;

	rising(&volume, 0x10, 16);
	rising(&id, 0x20, 16);
	rising(&slot, 0x30, 16);
	rising(salt, 0x50, 32);
	rising(file, 0x80, 32);
	assert_int_equal(
		cipher_from_passphrase((const void *)"correct horse", 13, salt, 10, &wrapping), 0);
	assert_hex(&wrapping, 32,
		   "83777b8caeea64f085e0f1619742518ed0ae85d7d8d6dbc81437e5aa3d705e47");
	length = wrap_vector(CRYPTFMT_PASSPHRASE, 10, "", "one", &wrapping, out);
	assert_sha256(out, length,
		      "e5e274a92143859df2fe11c04e960e9f9e56dec78c6bcb2dd7ee3da64b1faa5d");
	assert_null(cryptfmt_key_invalid(out, length, &volume, &id, &slot));
	assert_non_null(cryptfmt_key_invalid(out, length, &volume, &slot, &slot));
	assert_true(cipher_unwrap(&wrapping, (void *)out, &key));
	assert_hex(&key, 32, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
	((struct cryptfmt_key_wire *)out)->label[0] ^= 1; /* all of it is bound to the key */
	assert_false(cipher_unwrap(&wrapping, (void *)out, &key));

	cipher_from_key_file(file, sizeof(file), salt, &wrapping);
	assert_hex(&wrapping, 32,
		   "a96599f8301dd3ac5e94474ee647607ab3bb4be920464b17327ba8359c327649");
	length = wrap_vector(CRYPTFMT_KEY_FILE, 0, "", "two", &wrapping, out);
	assert_sha256(out, length,
		      "cf7aff3d1b4ea93ea3d57f6dbd9980a72ecf6c7c32f6bc66e01b7e1c2388e004");
	rising(&wrapping, 0xc0, 32);
	length = wrap_vector(CRYPTFMT_COMMAND, 0, "vault:v1:abc", "three", &wrapping, out);
	assert_sha256(out, length,
		      "0a2cafda0662391bab965e5ddeb8d9dda1ff64f1c52565ef8f41a16ef6b04012");
	assert_null(cryptfmt_key_invalid(out, length, &volume, &id, &slot));
	assert_non_null(cryptfmt_key_invalid(out, length - 1, &volume, &id, &slot));
}

static void sizes(void **state)
{
	uint64_t last = 0;

	for (uint64_t plain = 1; plain < 70000; plain++)
		assert_int_equal(cryptfmt_plain_bytes(cryptfmt_stored_bytes(plain)), plain);
	for (uint64_t plain = 1; plain < 300u << 20; plain += plain / 100 + 1) {
		uint64_t padded = cryptfmt_padded_bytes(plain);

		assert_true(padded >= plain && padded >= last);
		assert_true(padded <= 4096 || padded - plain <= plain / 8);
		assert_int_equal(cryptfmt_padded_bytes(padded), padded);
		last = padded;
	}
	/* All packs of about 16 MiB have one of few sizes. */
	assert_int_equal(cryptfmt_padded_bytes((16u << 20) + 1), (16u << 20) + (512u << 10));
}

/* ---- a world with an encrypting store in front of the one in memory ------------------------------ */

static void keep_open(struct store *store)
{
}

static struct secret *secret_of(const char *text)
{
	struct secret *secret = calloc(1, sizeof(*secret));

	secret->method = CRYPTFMT_PASSPHRASE;
	secret->cost = CRYPTFMT_COST_MIN;
	secret->length = strlen(text);
	memcpy(secret->bytes, text, secret->length);
	return secret;
}

static struct secret *file_secret(uint8_t from)
{
	struct secret *secret = calloc(1, sizeof(*secret));

	secret->method = CRYPTFMT_KEY_FILE;
	secret->length = 32;
	rising(secret->bytes, from, 32);
	return secret;
}

struct crypted {
	struct world *w;
	struct store_ops ops;
	const struct store_ops *ops_before;
	struct store *plain_store;
	struct store *store;
};

/* secret NULL: the bare store. */
static void use_secret(struct crypted *c, struct secret *secret)
{
	struct world *w = c->w;
	struct snapshot_writer_config config = {.node_name = "node", .pack_bytes = 1 << 20};

	writer_free(w->env, w->writer);
	snapshot_repo_free(w->repo);
	if (c->store)
		store_close(c->store);
	c->store = secret ? crypt_open(&w->m->store, secret) : NULL;
	w->repo = snapshot_repo_new(c->store ? c->store : &w->m->store, &w->v->state.uuid);
	w->writer = snapshot_writer_new(w->v, w->repo, &config);
}

static void crypted_begin(struct crypted *c, struct world *w, uint64_t size, struct secret *secret)
{
	world_volume(w, size, 0, 1 << 20);
	*c = (struct crypted){.w = w, .ops = *w->m->store.ops, .ops_before = w->m->store.ops};
	c->ops.close = keep_open;
	w->m->store.ops = &c->ops;
	use_secret(c, secret);
}

static void crypted_end(struct crypted *c)
{
	use_secret(c, NULL);
	c->w->m->store.ops = c->ops_before;
}

static bool restores(struct world *w, const char *name)
{
	uint8_t data[CHUNK];
	char path[128];
	struct waited r;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", w->dir, name);
	r = restore_file(w->env, w->repo, NULL, path, false);
	if (r.result.error)
		return false;
	fd = open(path, O_RDONLY);
	assert_true(fd >= 0);
	for (uint64_t i = 0; i < w->v->chunks; i++) {
		assert_int_equal(pread(fd, data, CHUNK, (off_t)(i * CHUNK)), CHUNK);
		assert_memory_equal(data, w->v->data[i] ? w->v->data[i] : zero_chunk, CHUNK);
	}
	close(fd);
	unlink(path);
	return true;
}

static bool store_contains(const struct memory_store *m, const void *text, size_t length)
{
	for (unsigned i = 0; i < m->count; i++)
		if (memmem(m->objects[i].data, m->objects[i].size, text, length))
			return true;
	return false;
}

static struct memory_object *object_in(struct memory_store *m, const char *folder, unsigned skip)
{
	for (unsigned i = 0; i < m->count; i++)
		if (strstr(m->objects[i].name, folder) && !skip--)
			return &m->objects[i];
	fail_msg("no object in %s", folder);
	return NULL;
}

static void fill(struct world *w, unsigned count, uint64_t seed)
{
	for (unsigned i = 0; i < count; i++)
		fake_fill(w->v, (seed + i * 3) % w->v->chunks, seed * 100 + i);
}

static void nothing_shows_and_all_comes_back(void **state)
{
	struct world *w = world_of(state);
	struct waited made;
	struct crypted c;

	crypted_begin(&c, w, 128 << 20, secret_of("correct horse"));
	fill(w, 60, 1);
	memset(w->v->data[1], 'q', CHUNK); /* packs to almost nothing */
	made = create(w->env, w->writer, "a label");
	assert_string_equal(made.result.why, "");
	fill(w, 7, 2);
	assert_int_equal(create(w->env, w->writer, "another").result.error, 0);
	assert_false(store_contains(w->m, "OFSN", 4));
	assert_false(store_contains(w->m, "OFPG", 4));
	assert_false(store_contains(w->m, "a label", 7));
	assert_false(store_contains(w->m, w->v->data[4], 64));
	for (unsigned i = 0; i < w->m->count; i++) {
		uint64_t plain = cryptfmt_plain_bytes(w->m->objects[i].size);

		if (!strstr(w->m->objects[i].name, "/keys/"))
			assert_int_equal(plain, cryptfmt_padded_bytes(plain));
	}
	assert_true(restores(w, "same"));
	use_secret(&c, secret_of("correct horse")); /* who knows nothing but the passphrase */
	assert_true(restores(w, "other"));
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	assert_int_equal(w->v->state.snapshot_sequence, 2);
	memory_fail(w->m, OP_DELETE, 1, -EIO, MEMORY_ONCE);
	assert_int_equal(delete (w->env, w->repo, &made.result.info.id).result.error, -EIO);
	/* There is room for a mark on a full disk. */
	assert_int_equal(object_in(w->m, "-deleted", 0)->size, 0);
	made = collect(w->env, w->repo);
	assert_int_equal(made.result.error, 0);
	assert_true(restores(w, "after"));
	crypted_end(&c);
}

static void wrong_key_is_one_line(void **state)
{
	struct world *w = world_of(state);
	struct waited r;
	struct crypted c;
	unsigned count;

	crypted_begin(&c, w, 8 << 20, secret_of("right"));
	fill(w, 9, 1);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	count = w->m->count;

	use_secret(&c, secret_of("wrong"));
	r = list(w->env, w->repo);
	assert_int_equal(r.result.error, -STORE_WRONG_SECRET);
	assert_non_null(strstr(r.result.why, "encrypted with another key"));
	assert_int_equal(r.listed, 0);
	assert_int_equal(create(w->env, w->writer, "").result.error, -STORE_WRONG_SECRET);
	assert_false(restores(w, "wrong"));
	assert_int_equal(collect(w->env, w->repo).result.error, -STORE_WRONG_SECRET);

	use_secret(&c, NULL);
	r = list(w->env, w->repo);
	assert_int_equal(r.result.error, -STORE_NO_SECRET);
	assert_non_null(strstr(r.result.why, "no key is given"));
	assert_int_equal(create(w->env, w->writer, "").result.error, -STORE_NO_SECRET);
	assert_false(restores(w, "none"));
	assert_int_equal(collect(w->env, w->repo).result.error, -STORE_NO_SECRET);
	assert_int_equal(w->m->count, count); /* nothing was put, nothing deleted */

	use_secret(&c, secret_of("right"));
	assert_true(restores(w, "right"));
	crypted_end(&c);
}

static void plain_repository_is_not_mixed(void **state)
{
	struct world *w = world_of(state);
	struct crypted c;
	unsigned count;

	crypted_begin(&c, w, 8 << 20, NULL);
	fill(w, 9, 1);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	count = w->m->count;
	use_secret(&c, secret_of("late"));
	assert_int_equal(list(w->env, w->repo).result.error, -STORE_NO_KEYS);
	assert_int_equal(create(w->env, w->writer, "").result.error, -STORE_NO_KEYS);
	assert_int_equal(w->m->count, count);
	crypted_end(&c);
}

/* An object under another's name, and every byte of every object flipped (most of the pack's: some). */
static void exchange_and_damage_are_named(void **state)
{
	struct world *w = world_of(state);
	struct memory_object *a, *b, swap;
	struct waited v;
	struct crypted c;

	crypted_begin(&c, w, 4 << 20, file_secret(9));
	fill(w, 1, 1);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	fill(w, 1, 2);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	a = object_in(w->m, "/packs/", 0);
	b = object_in(w->m, "/packs/", 1);
	assert_int_equal(a->size, b->size);
	swap = *a;
	a->data = b->data;
	b->data = swap.data;
	v = verify(w->env, w->repo);
	assert_int_equal(v.result.bad_objects, 2);
	assert_false(restores(w, "exchanged"));
	b->data = a->data;
	a->data = swap.data;
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	for (unsigned i = 0; i < w->m->count; i++) {
		struct memory_object *o = &w->m->objects[i];

		if (strstr(o->name, "/keys/"))
			continue;
		for (size_t at = 0; at < o->size; at += at < 300 || o->size - at < 40 ? 1 : 331) {
			o->data[at] ^= 0x10;
			v = verify(w->env, w->repo);
			if (!v.bad || strcmp(v.object, o->name))
				fail_msg("%s: byte %zu flipped: not noticed", o->name, at);
			o->data[at] ^= 0x10;
		}
		o->size--;
		if (!verify(w->env, w->repo).bad)
			fail_msg("%s: cut: not noticed", o->name);
		o->size++;
	}
	crypted_end(&c);
}

/* ---- slots ----------------------------------------------------------------------------------------- */

struct ring_wait {
	struct keyring *ring;
	struct id128 slot;
	int error;
	bool done;
};

static void ring_loaded(void *context, struct keyring *ring, int error)
{
	struct ring_wait *wait = context;

	wait->ring = ring;
	wait->error = error;
	wait->done = true;
}

static void ring_added(void *context, const struct id128 *slot, int error)
{
	struct ring_wait *wait = context;

	wait->slot = *slot;
	wait->error = error;
	wait->done = true;
}

static struct keyring *ring_of(struct world *w, const struct secret *secret)
{
	struct ring_wait wait = {.done = false};

	keyring_load(&w->m->store, &w->v->state.uuid, secret, ring_loaded, &wait);
	env_run_until(w->env, &wait.done);
	assert_int_equal(wait.error, 0);
	return wait.ring;
}

static void ring_add(struct world *w, const struct data_key *key, const struct secret *secret)
{
	struct ring_wait wait = {.done = false};

	keyring_add(&w->m->store, &w->v->state.uuid, key, secret, "new", ring_added, &wait);
	env_run_until(w->env, &wait.done);
	assert_int_equal(wait.error, 0);
}

static void the_secret_changes_without_rewriting(void **state)
{
	struct world *w = world_of(state);
	struct secret *old = secret_of("old"), *new = file_secret(77);
	struct crypted c;
	struct keyring *ring;
	struct data_key fresh;
	struct store *reader;
	struct snapshot_repo *repo;
	unsigned count;

	crypted_begin(&c, w, 8 << 20, secret_of("old"));
	fill(w, 9, 1);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	count = w->m->count;
	ring = ring_of(w, old);
	assert_int_equal(ring->key_count, 1);
	ring_add(w, &ring->keys[0], new);
	keyring_free(ring);
	assert_int_equal(w->m->count, count + 1);
	ring = ring_of(w, new);
	for (unsigned i = 0; i < 2; i++) {
		char name[CRYPTFMT_NAME_BYTES];

		if (ring->slots[i].opened)
			continue;
		cryptfmt_key_name(&w->v->state.uuid, &ring->slots[i].key, &ring->slots[i].slot,
				  name);
		memory_remove(w->m, (unsigned)memory_find(w->m, name));
	}
	keyring_free(ring);
	use_secret(&c, secret_of("old"));
	assert_int_equal(list(w->env, w->repo).result.error, -STORE_WRONG_SECRET);
	use_secret(&c, file_secret(77));
	assert_true(restores(w, "new"));

	/* A new data key is for what comes; a reader that has the keys from before finds it. */
	keyring_new_key(w->env, &fresh);
	reader = crypt_open(&w->m->store, file_secret(77));
	repo = snapshot_repo_new(reader, &w->v->state.uuid);
	assert_int_equal(list(w->env, repo).listed, 1);
	ring_add(w, &fresh, new);
	use_secret(&c, file_secret(77));
	fill(w, 3, 2);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	ring = ring_of(w, new);
	assert_int_equal(ring->key_count, 2);
	assert_true(id128_equal(&ring->keys[0].id, &fresh.id));
	keyring_free(ring);
	assert_int_equal(list(w->env, repo).listed, 2);
	snapshot_repo_free(repo);
	store_close(reader);
	assert_true(restores(w, "both"));
	secret_free(old);
	secret_free(new);
	crypted_end(&c);
}

/* Renewed every month for three years, by two who each have a secret. */
static void however_many_keys_there_are(void **state)
{
	struct world *w = world_of(state);
	struct secret *first = file_secret(1), *second = file_secret(2);
	struct keyring *ring;
	struct crypted c;

	crypted_begin(&c, w, 8 << 20, file_secret(1));
	for (unsigned month = 0; month < 36; month++) {
		struct data_key fresh;

		fill(w, 3, month);
		assert_string_equal(create(w->env, w->writer, "").result.why, "");
		keyring_new_key(w->env, &fresh);
		ring_add(w, &fresh, first);
		ring_add(w, &fresh, second);
		use_secret(&c, file_secret(1));
	}
	ring = ring_of(w, second);
	assert_int_equal(ring->slot_count, 73);
	assert_int_equal(ring->key_count, 36);
	keyring_free(ring);
	assert_int_equal(verify(w->env, w->repo).bad, 0);
	assert_true(restores(w, "all"));
	secret_free(first);
	secret_free(second);
	crypted_end(&c);
}

/* ---- where secrets come from --------------------------------------------------------------------------- */

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static void secrets_are_read(void **state)
{
	struct world *w = world_of(state);
	struct secret *secret;
	char path[128], why[256] = "";

	snprintf(path, sizeof(path), "%s/secret", w->dir);
	write_text(path, "a phrase \r\nsecond line\n");
	assert_int_equal(secret_open(&(struct secret_source){.passphrase_file = path}, &secret, why,
				     sizeof(why)),
			 0);
	assert_int_equal(secret->length, 9);
	secret_free(secret);
	assert_int_equal(
		secret_open(&(struct secret_source){.key_file = path}, &secret, why, sizeof(why)),
		-EINVAL);
	assert_non_null(strstr(why, "shorter than 32 bytes"));
	write_text(path, "\nx");
	assert_int_equal(secret_open(&(struct secret_source){.passphrase_file = path}, &secret, why,
				     sizeof(why)),
			 -EINVAL);
	assert_non_null(strstr(why, "first line is empty"));
	assert_int_equal(
		secret_open(&(struct secret_source){path, path, NULL}, &secret, why, sizeof(why)),
		-EINVAL);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(
		secret_open(&(struct secret_source){.key_file = path}, &secret, why, sizeof(why)),
		-ENOENT);
	assert_non_null(strstr(why, path));
}

static void a_command_wraps(void **state)
{
	struct world *w = world_of(state);
	struct secret *secret;
	char why[256] = "", output[64];
	struct crypted c;
	const struct secret_source rot = {
		.key_command = "if [ $OFFSITE_KEY_ACTION = wrap ]; then sed 's/^/vault:/'; "
			       "else sed 's/^vault://'; fi"};

	assert_int_equal(secret_open(&rot, &secret, why, sizeof(why)), 0);
	crypted_begin(&c, w, 8 << 20, secret);
	fill(w, 9, 1);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	assert_true(store_contains(w->m, "vault:", 6));
	assert_int_equal(secret_open(&rot, &secret, why, sizeof(why)), 0);
	use_secret(&c, secret);
	assert_true(restores(w, "command"));
	assert_int_equal(secret_open(&(struct secret_source){.key_command = "exit 3"}, &secret, why,
				     sizeof(why)),
			 0);
	assert_int_equal(secret_run(secret, "wrap", "x", output, sizeof(output)),
			 -STORE_WRONG_SECRET);
	use_secret(&c, secret);
	assert_int_equal(list(w->env, w->repo).result.error, -STORE_WRONG_SECRET);
	crypted_end(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(object_vector),
		cmocka_unit_test(sealed_where_it_lies),
		cmocka_unit_test(key_vectors),
		cmocka_unit_test(sizes),
		ON_BOTH(nothing_shows_and_all_comes_back),
		ON_BOTH(wrong_key_is_one_line),
		ON_BOTH(plain_repository_is_not_mixed),
		ON_BOTH(exchange_and_damage_are_named),
		ON_BOTH(the_secret_changes_without_rewriting),
		ON_BOTH(however_many_keys_there_are),
		ON_BOTH(secrets_are_read),
		ON_BOTH(a_command_wraps),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
