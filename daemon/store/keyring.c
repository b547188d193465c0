/* SPDX-License-Identifier: Apache-2.0 */
/* Wrapped keys in the store. See keyring.h. */
#include "daemon/store/keyring.h"

#include <assert.h>
#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define container_of(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

#define BASE64_KEY_BYTES 45 /* 32 bytes in base64 and a NUL */

static void *must_calloc(size_t size_bytes)
{
	void *memory = calloc(1, size_bytes);

	assert(memory); /* some KiB */
	return memory;
}

/* ---- secrets to wrapping keys ---------------------------------------------------------------- */

static int unwrap_by_command(const struct secret *secret, const char *text,
			     struct cipher_key *wrapping)
{
	char output[256];
	uint8_t bytes[sizeof(output)];
	int length, error = secret_run(secret, "unwrap", text, output, sizeof(output));

	if (error)
		return error;
	length = EVP_DecodeBlock(bytes, (const uint8_t *)output, (int)strlen(output));
	if (strlen(output) != BASE64_KEY_BYTES - 1 || length < (int)CRYPTFMT_KEY_BYTES)
		return -STORE_WRONG_SECRET;
	memcpy(wrapping->bytes, bytes, sizeof(wrapping->bytes));
	explicit_bzero(bytes, sizeof(bytes));
	explicit_bzero(output, sizeof(output));
	return 0;
}

/* Opens a valid key object. -STORE_WRONG_SECRET: not with this secret. */
static int open_slot(const struct secret *secret, const struct cryptfmt_key_wire *wire,
		     const char *text, struct cipher_key *key)
{
	struct cipher_key wrapping;
	char line[CRYPTFMT_TEXT_MAX + 1];
	int error = 0;

	if (from_be16(wire->method) != secret->method)
		return -STORE_WRONG_SECRET;
	switch (secret->method) {
	case CRYPTFMT_PASSPHRASE:
		error = cipher_from_passphrase(secret->bytes, secret->length, wire->salt,
					       from_be32(wire->cost), &wrapping);
		break;
	case CRYPTFMT_KEY_FILE:
		cipher_from_key_file(secret->bytes, secret->length, wire->salt, &wrapping);
		break;
	case CRYPTFMT_COMMAND:
		memcpy(line, text, from_be32(wire->text_bytes));
		line[from_be32(wire->text_bytes)] = '\0';
		error = unwrap_by_command(secret, line, &wrapping);
		break;
	}
	if (!error && !cipher_unwrap(&wrapping, wire, key))
		error = -STORE_WRONG_SECRET;
	explicit_bzero(&wrapping, sizeof(wrapping));
	return error;
}

/* ---- loading ----------------------------------------------------------------------------------- */

struct load {
	struct env_op op;
	struct env_work work;
	struct store *store;
	struct id128 volume;
	const struct secret *secret;
	char prefix[CRYPTFMT_NAME_BYTES], name[CRYPTFMT_NAME_BYTES];
	struct keyring *keyring;
	unsigned slot_room, object_count, next;
	struct object {
		uint8_t *data; /* as read */
		size_t length;
	} * objects; /* of the slots */
	int error;   /* of a command that could not be run */
	void (*done)(void *context, struct keyring *keyring, int error);
	void *context;
};

static void load_finish(struct load *load, int error)
{
	if (error) {
		keyring_free(load->keyring);
		load->keyring = NULL;
	}
	load->done(load->context, load->keyring, error);
	for (unsigned i = 0; i < load->object_count; i++)
		free(load->objects[i].data);
	free(load->objects);
	free(load);
}

static int newest_first(const void *a, const void *b)
{
	const struct data_key *x = a, *y = b;

	if (x->created_ns != y->created_ns)
		return x->created_ns > y->created_ns ? -1 : 1;
	return memcmp(&x->id, &y->id, sizeof(x->id));
}

static const struct data_key *key_find(const struct keyring *ring, const struct id128 *id)
{
	for (unsigned i = 0; i < ring->key_count; i++)
		if (id128_equal(&ring->keys[i].id, id))
			return &ring->keys[i];
	return NULL;
}

static void load_open(struct load *load, unsigned i)
{
	struct keyring *ring = load->keyring;
	struct keyring_slot *slot = &ring->slots[i];
	const struct object *object = &load->objects[i];
	const struct cryptfmt_key_wire *wire = (const void *)object->data;
	struct data_key key = {.id = slot->key};
	int error;

	if (cryptfmt_key_invalid(object->data, object->length, &load->volume, &slot->key,
				 &slot->slot))
		return;
	slot->method = from_be16(wire->method);
	slot->created_ns = key.created_ns = from_be64(wire->created_ns);
	memcpy(slot->label, wire->label, sizeof(slot->label));
	if (!load->secret)
		return;
	error = open_slot(load->secret, wire, (const char *)(wire + 1), &key.key);
	if (error) {
		if (error != -STORE_WRONG_SECRET)
			load->error = error;
		return;
	}
	slot->opened = true;
	if (!key_find(ring, &key.id))
		ring->keys[ring->key_count++] = key;
	explicit_bzero(&key, sizeof(key));
}

static void load_run(struct env_work *work)
{
	struct load *load = container_of(work, struct load, work);

	for (unsigned i = 0; i < load->keyring->slot_count; i++)
		load_open(load, i);
	if (load->keyring->key_count)
		qsort(load->keyring->keys, load->keyring->key_count, sizeof(struct data_key),
		      newest_first);
}

static void load_done(struct env_work *work)
{
	struct load *load = container_of(work, struct load, work);

	load_finish(load, load->keyring->key_count ? 0 : load->error);
}

static void load_next(struct load *load);

static void load_got(struct env_op *op, int64_t result)
{
	struct load *load = container_of(op, struct load, op);

	if (result < 0 && result != -ENOENT) { /* else removed just now */
		load_finish(load, (int)result);
		return;
	}
	if (result == -ENOENT)
		result = 0;
	load->objects[load->next++].length = (size_t)result;
	load_next(load);
}

static void load_next(struct load *load)
{
	const struct keyring_slot *slot = load->keyring->slots + load->next;

	if (load->next == load->keyring->slot_count) {
		load->work = (struct env_work){.run = load_run, .done = load_done};
		env_work_submit(load->store->env, &load->work);
		return;
	}
	cryptfmt_key_name(&load->volume, &slot->key, &slot->slot, load->name);
	/* One byte more than the longest, so that a longer one is seen to be. */
	load->objects[load->next].data = must_calloc(CRYPTFMT_KEY_MAX + 1);
	load->op.done = load_got;
	load->store->ops->get(load->store, &load->op, load->name, load->objects[load->next].data,
			      CRYPTFMT_KEY_MAX + 1, 0);
}

static void load_each(void *context, const struct store_object *object)
{
	struct load *load = context;
	struct keyring *ring = load->keyring;
	struct keyring_slot slot = {.created_ns = 0};
	struct id128 volume;

	if (!cryptfmt_key_name_parse(object->name, &volume, &slot.key, &slot.slot))
		return;
	if (ring->slot_count == load->slot_room) {
		load->slot_room = load->slot_room ? 2 * load->slot_room : 16;
		ring->slots = realloc(ring->slots, load->slot_room * sizeof(slot));
		assert(ring->slots);
	}
	ring->slots[ring->slot_count++] = slot;
}

static void load_listed(struct env_op *op, int64_t result)
{
	struct load *load = container_of(op, struct load, op);

	if (result < 0) {
		load_finish(load, (int)result);
		return;
	}
	load->object_count = load->keyring->slot_count;
	load->objects = must_calloc(load->object_count * sizeof(*load->objects) + 1);
	load->keyring->keys = must_calloc(load->object_count * sizeof(struct data_key) + 1);
	load_next(load);
}

void keyring_load(struct store *store, const struct id128 *volume, const struct secret *secret,
		  void (*done)(void *context, struct keyring *keyring, int error), void *context)
{
	struct load *load = must_calloc(sizeof(*load));

	*load = (struct load){
		.op = {.done = load_listed},
		.store = store,
		.volume = *volume,
		.secret = secret,
		.keyring = must_calloc(sizeof(*load->keyring)),
		.done = done,
		.context = context,
	};
	cryptfmt_key_prefix(volume, load->prefix);
	store->ops->list(store, &load->op, load->prefix, load_each, load);
}

void keyring_free(struct keyring *keyring)
{
	if (!keyring)
		return;
	if (keyring->keys)
		explicit_bzero(keyring->keys, keyring->key_count * sizeof(*keyring->keys));
	free(keyring->keys);
	free(keyring->slots);
	free(keyring);
}

/* ---- adding ------------------------------------------------------------------------------------ */

struct add {
	struct env_op op;
	struct env_work work;
	struct store *store;
	const struct secret *secret;
	struct data_key key;
	struct cipher_key random; /* what a command wraps */
	struct {
		struct cryptfmt_key_wire wire;
		char text[CRYPTFMT_TEXT_MAX + 1];
	} object;
	char name[CRYPTFMT_NAME_BYTES];
	struct iovec iov;
	int error;
	void (*done)(void *context, const struct id128 *slot, int error);
	void *context;
};

static int wrap_by_command(struct add *add)
{
	char line[BASE64_KEY_BYTES];
	int error;

	EVP_EncodeBlock((uint8_t *)line, add->random.bytes, sizeof(add->random.bytes));
	error = secret_run(add->secret, "wrap", line, add->object.text, sizeof(add->object.text));
	add->object.wire.text_bytes = to_be32((uint32_t)strlen(add->object.text));
	explicit_bzero(line, sizeof(line));
	return error;
}

static void add_run(struct env_work *work)
{
	struct add *add = container_of(work, struct add, work);
	const struct secret *secret = add->secret;
	struct cryptfmt_key_wire *wire = &add->object.wire;
	struct cipher_key wrapping = add->random;

	switch (secret->method) {
	case CRYPTFMT_PASSPHRASE:
		wire->cost = to_be32(secret->cost);
		add->error = cipher_from_passphrase(secret->bytes, secret->length, wire->salt,
						    secret->cost, &wrapping);
		break;
	case CRYPTFMT_KEY_FILE:
		cipher_from_key_file(secret->bytes, secret->length, wire->salt, &wrapping);
		break;
	case CRYPTFMT_COMMAND:
		add->error = wrap_by_command(add);
		break;
	}
	cipher_wrap(&wrapping, &add->key.key, wire);
	cryptfmt_key_seal(wire, add->object.text);
	explicit_bzero(&wrapping, sizeof(wrapping));
}

static void add_finish(struct add *add)
{
	add->done(add->context, &add->object.wire.slot, add->error);
	explicit_bzero(add, sizeof(*add));
	free(add);
}

static void add_put(struct env_op *op, int64_t result)
{
	struct add *add = container_of(op, struct add, op);

	add->error = (int)result;
	add_finish(add);
}

static void add_wrapped(struct env_work *work)
{
	struct add *add = container_of(work, struct add, work);

	if (add->error) {
		add_finish(add);
		return;
	}
	add->iov = (struct iovec){&add->object, sizeof(add->object.wire) +
							from_be32(add->object.wire.text_bytes)};
	add->op.done = add_put;
	add->store->ops->put(add->store, &add->op, add->name, &add->iov, 1);
}

void keyring_add(struct store *store, const struct id128 *volume, const struct data_key *key,
		 const struct secret *secret, const char *label,
		 void (*done)(void *context, const struct id128 *slot, int error), void *context)
{
	struct add *add = must_calloc(sizeof(*add));
	struct cryptfmt_key_wire *wire = &add->object.wire;

	_Static_assert(offsetof(struct add, object.text) - offsetof(struct add, object) ==
			       sizeof(struct cryptfmt_key_wire),
		       "the text follows");
	add->store = store;
	add->secret = secret;
	add->key = *key;
	add->done = done;
	add->context = context;
	wire->magic = to_be32(CRYPTFMT_KEY_MAGIC);
	wire->version = to_be16(CRYPTFMT_VERSION);
	wire->method = to_be16((uint16_t)secret->method);
	wire->volume = *volume;
	wire->key = key->id;
	wire->created_ns = to_be64(key->created_ns);
	env_random(store->env, &wire->slot, sizeof(wire->slot));
	env_random(store->env, wire->salt, sizeof(wire->salt));
	env_random(store->env, wire->nonce, sizeof(wire->nonce));
	env_random(store->env, &add->random, sizeof(add->random));
	snprintf(wire->label, sizeof(wire->label), "%s", label);
	cryptfmt_key_name(volume, &key->id, &wire->slot, add->name);
	add->work = (struct env_work){.run = add_run, .done = add_wrapped};
	env_work_submit(store->env, &add->work);
}

void keyring_new_key(struct env *env, struct data_key *key)
{
	env_random(env, &key->id, sizeof(key->id));
	env_random(env, &key->key, sizeof(key->key));
	key->created_ns = env_realtime_ns(env);
}
