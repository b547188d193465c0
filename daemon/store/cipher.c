/* SPDX-License-Identifier: Apache-2.0 */
/* AES-256-GCM, HKDF and scrypt by OpenSSL. See cipher.h. */
#include "daemon/store/cipher.h"

#include <assert.h>
#include <errno.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdlib.h>
#include <string.h>

#define SHA256_BYTES 32
#define SCRYPT_R     8
#define SCRYPT_P     1

_Static_assert(CRYPTFMT_KEY_BYTES == SHA256_BYTES, "one block of HKDF makes a key");

static const char object_info[] = "offsite object 1:";
static const char key_file_info[] = "offsite key file 1";

/* ---- keys ------------------------------------------------------------------------------------ */

static void hmac(const void *key, size_t key_length, const void *data, size_t length,
		 uint8_t out[SHA256_BYTES])
{
	unsigned got = SHA256_BYTES;

	if (!HMAC(EVP_sha256(), key, (int)key_length, data, length, out, &got))
		assert(!"HMAC: out of memory");
}

/* RFC 5869 with SHA-256, for one block of output. */
static void hkdf(const void *salt, size_t salt_length, const void *secret, size_t length,
		 const char *info, size_t info_length, struct cipher_key *key)
{
	uint8_t pseudo_random[SHA256_BYTES], block[1024];

	assert(info_length < sizeof(block));
	hmac(salt, salt_length, secret, length, pseudo_random);
	memcpy(block, info, info_length);
	block[info_length] = 1;
	hmac(pseudo_random, sizeof(pseudo_random), block, info_length + 1, key->bytes);
	explicit_bzero(pseudo_random, sizeof(pseudo_random));
}

void cipher_object_key(const struct cipher_key *data_key, const char *name,
		       struct cipher_key *object_key)
{
	static const uint8_t no_salt[SHA256_BYTES];
	char info[sizeof(object_info) + 512];
	size_t length = strlen(name), head = sizeof(object_info) - 1;

	assert(length <= 512);
	memcpy(info, object_info, head);
	memcpy(info + head, name, length);
	hkdf(no_salt, sizeof(no_salt), data_key->bytes, sizeof(data_key->bytes), info,
	     head + length, object_key);
}

int cipher_from_passphrase(const uint8_t *secret, size_t length,
			   const uint8_t salt[CRYPTFMT_SALT_BYTES], unsigned cost,
			   struct cipher_key *key)
{
	const uint64_t n = 1ull << cost;

	if (EVP_PBE_scrypt((const char *)secret, length, salt, CRYPTFMT_SALT_BYTES, n, SCRYPT_R,
			   SCRYPT_P, (n + 64) * 128 * SCRYPT_R, key->bytes,
			   sizeof(key->bytes)) != 1)
		return -EINVAL;
	return 0;
}

void cipher_from_key_file(const uint8_t *secret, size_t length,
			  const uint8_t salt[CRYPTFMT_SALT_BYTES], struct cipher_key *key)
{
	hkdf(salt, CRYPTFMT_SALT_BYTES, secret, length, key_file_info, sizeof(key_file_info) - 1,
	     key);
}

/* ---- AES-256-GCM ------------------------------------------------------------------------------- */

/* One context for many messages under one key. */
struct gcm {
	EVP_CIPHER_CTX *context;
	bool sealing;
};

static void gcm_begin(struct gcm *gcm, const struct cipher_key *key, bool sealing)
{
	gcm->context = EVP_CIPHER_CTX_new();
	gcm->sealing = sealing;
	if (!gcm->context || EVP_CipherInit_ex(gcm->context, EVP_aes_256_gcm(), NULL, key->bytes,
					       NULL, sealing) != 1)
		assert(!"AES-256-GCM: out of memory");
}

static void gcm_end(struct gcm *gcm)
{
	EVP_CIPHER_CTX_free(gcm->context);
}

static void gcm_start(struct gcm *gcm, const uint8_t *nonce, const void *bound, size_t bound_length)
{
	int n;

	if (EVP_CipherInit_ex(gcm->context, NULL, NULL, NULL, nonce, gcm->sealing) != 1 ||
	    EVP_CipherUpdate(gcm->context, NULL, &n, bound, (int)bound_length) != 1)
		assert(!"AES-256-GCM");
}

static void gcm_update(struct gcm *gcm, const void *in, size_t length, uint8_t *out)
{
	int n;

	if (length && EVP_CipherUpdate(gcm->context, out, &n, in, (int)length) != 1)
		assert(!"AES-256-GCM");
}

static void gcm_tag(struct gcm *gcm, uint8_t *tag)
{
	uint8_t none[CRYPTFMT_TAG_BYTES];
	int n;

	if (EVP_CipherFinal_ex(gcm->context, none, &n) != 1 ||
	    EVP_CIPHER_CTX_ctrl(gcm->context, EVP_CTRL_GCM_GET_TAG, CRYPTFMT_TAG_BYTES, tag) != 1)
		assert(!"AES-256-GCM");
}

static bool gcm_check(struct gcm *gcm, const uint8_t *tag)
{
	uint8_t none[CRYPTFMT_TAG_BYTES], expected[CRYPTFMT_TAG_BYTES];
	int n;

	memcpy(expected, tag, sizeof(expected));
	return EVP_CIPHER_CTX_ctrl(gcm->context, EVP_CTRL_GCM_SET_TAG, CRYPTFMT_TAG_BYTES,
				   expected) == 1 &&
	       EVP_CipherFinal_ex(gcm->context, none, &n) == 1;
}

/* ---- objects ----------------------------------------------------------------------------------- */

/* Where in a row of iovecs one is. */
struct reader {
	const struct iovec *iov;
	unsigned left;
	size_t at;
};

/* The next run of at most most bytes; 0: the end. */
static size_t reader_next(struct reader *reader, size_t most, const uint8_t **data)
{
	size_t length;

	while (reader->left && reader->at == reader->iov->iov_len) {
		reader->iov++;
		reader->left--;
		reader->at = 0;
	}
	if (!reader->left)
		return 0;
	length = reader->iov->iov_len - reader->at;
	if (length > most)
		length = most;
	*data = (const uint8_t *)reader->iov->iov_base + reader->at;
	reader->at += length;
	return length;
}

void cipher_seal(const struct data_key *key, const char *name, const struct iovec *iov,
		 unsigned count, const uint8_t *nonces, uint8_t *out)
{
	struct reader reader = {.iov = iov, .left = count};
	struct cipher_key object_key;
	uint64_t number = 0, total = 0;
	struct gcm gcm;

	for (unsigned i = 0; i < count; i++)
		total += iov[i].iov_len;
	cipher_object_key(&key->key, name, &object_key);
	gcm_begin(&gcm, &object_key, true);
	cryptfmt_header_encode(&key->id, (void *)out);
	out += sizeof(struct cryptfmt_header_wire);
	for (; total; number++) {
		size_t left = total < CRYPTFMT_SEGMENT_BYTES ? total : CRYPTFMT_SEGMENT_BYTES, got;
		be64_t bound = to_be64(number);
		const uint8_t *data;

		total -= left;
		memcpy(out, nonces + number * CRYPTFMT_NONCE_BYTES, CRYPTFMT_NONCE_BYTES);
		gcm_start(&gcm, out, &bound, sizeof(bound));
		out += CRYPTFMT_NONCE_BYTES;
		for (; left; left -= got, out += got) {
			got = reader_next(&reader, left, &data);
			assert(got);
			gcm_update(&gcm, data, got, out);
		}
		gcm_tag(&gcm, out);
		out += CRYPTFMT_TAG_BYTES;
	}
	gcm_end(&gcm);
	explicit_bzero(&object_key, sizeof(object_key));
}

unsigned cipher_parts_max(uint64_t segments, unsigned count)
{
	return (unsigned)(2 * segments + count + 1);
}

unsigned cipher_seal_spent(const struct data_key *key, const char *name, const struct iovec *iov,
			   unsigned count, const uint8_t *nonces, uint8_t *marks,
			   struct iovec *parts)
{
	struct reader reader = {.iov = iov, .left = count};
	uint8_t *mark = marks + sizeof(struct cryptfmt_header_wire);
	struct cipher_key object_key;
	uint64_t number = 0;
	unsigned used = 0;
	const uint8_t *data;
	struct gcm gcm;
	size_t got;

	cipher_object_key(&key->key, name, &object_key);
	gcm_begin(&gcm, &object_key, true);
	cryptfmt_header_encode(&key->id, (void *)marks);
	while ((got = reader_next(&reader, CRYPTFMT_SEGMENT_BYTES, &data))) {
		size_t left = CRYPTFMT_SEGMENT_BYTES;
		be64_t bound = to_be64(number);

		memcpy(mark, nonces + number++ * CRYPTFMT_NONCE_BYTES, CRYPTFMT_NONCE_BYTES);
		gcm_start(&gcm, mark, &bound, sizeof(bound));
		mark += CRYPTFMT_NONCE_BYTES;
		parts[used++] = (struct iovec){marks, (size_t)(mark - marks)};
		marks = mark;
		for (; got; got = left ? reader_next(&reader, left, &data) : 0) {
			gcm_update(&gcm, data, got, (uint8_t *)(uintptr_t)data);
			parts[used++] = (struct iovec){(void *)(uintptr_t)data, got};
			left -= got;
		}
		gcm_tag(&gcm, mark);
		mark += CRYPTFMT_TAG_BYTES;
	}
	parts[used++] = (struct iovec){marks, (size_t)(mark - marks)};
	gcm_end(&gcm);
	explicit_bzero(&object_key, sizeof(object_key));
	return used;
}

/* Of the plain bytes [at, at + length) those that are wanted. */
static void copy_wanted(const uint8_t *plain, uint64_t at, size_t length, uint64_t skip,
			uint64_t most, uint8_t *out)
{
	uint64_t from = at > skip ? at : skip, end = at + length;

	if (end - skip > most && end > skip)
		end = skip + most;
	if (from < end)
		memcpy(out + (from - skip), plain + (from - at), end - from);
}

int64_t cipher_open_part(const struct cipher_key *object_key, uint64_t first, const uint8_t *stored,
			 size_t length, uint64_t skip, uint64_t most, uint8_t *out)
{
	uint8_t *apart = NULL; /* a segment of which only a part is wanted */
	uint64_t at = 0;
	bool fine = true;
	struct gcm gcm;

	gcm_begin(&gcm, object_key, false);
	while (length && fine) {
		size_t now = length < CRYPTFMT_STORED_BYTES ? length : CRYPTFMT_STORED_BYTES;
		size_t bytes = now - CRYPTFMT_SEGMENT_MORE;
		be64_t bound = to_be64(first++);
		bool whole = at >= skip && at - skip + CRYPTFMT_SEGMENT_BYTES <= most;

		if (now <= CRYPTFMT_SEGMENT_MORE) {
			fine = false;
			break;
		}
		if (!whole && !apart) {
			apart = malloc(CRYPTFMT_SEGMENT_BYTES);
			assert(apart);
		}
		gcm_start(&gcm, stored, &bound, sizeof(bound));
		gcm_update(&gcm, stored + CRYPTFMT_NONCE_BYTES, bytes,
			   whole ? out + (at - skip) : apart);
		fine = gcm_check(&gcm, stored + CRYPTFMT_NONCE_BYTES + bytes);
		if (fine && !whole)
			copy_wanted(apart, at, bytes, skip, most, out);
		at += bytes;
		stored += now;
		length -= now;
	}
	gcm_end(&gcm);
	free(apart);
	if (!fine)
		return -EBADMSG;
	at = at > skip ? at - skip : 0;
	return (int64_t)(at < most ? at : most);
}

int64_t cipher_open(const struct cipher_key *object_key, uint64_t first, const uint8_t *stored,
		    size_t length, uint8_t *out)
{
	return cipher_open_part(object_key, first, stored, length, 0, INT64_MAX, out);
}

/* ---- wrapping ---------------------------------------------------------------------------------- */

void cipher_wrap(const struct cipher_key *wrapping, const struct cipher_key *key,
		 struct cryptfmt_key_wire *wire)
{
	struct gcm gcm;

	gcm_begin(&gcm, wrapping, true);
	gcm_start(&gcm, wire->nonce, wire, offsetof(struct cryptfmt_key_wire, nonce));
	gcm_update(&gcm, key->bytes, sizeof(key->bytes), wire->wrapped);
	gcm_tag(&gcm, wire->wrapped + sizeof(key->bytes));
	gcm_end(&gcm);
}

bool cipher_unwrap(const struct cipher_key *wrapping, const struct cryptfmt_key_wire *wire,
		   struct cipher_key *key)
{
	struct gcm gcm;
	bool fine;

	gcm_begin(&gcm, wrapping, false);
	gcm_start(&gcm, wire->nonce, wire, offsetof(struct cryptfmt_key_wire, nonce));
	gcm_update(&gcm, wire->wrapped, sizeof(key->bytes), key->bytes);
	fine = gcm_check(&gcm, wire->wrapped + sizeof(key->bytes));
	gcm_end(&gcm);
	return fine;
}
