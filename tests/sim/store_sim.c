// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/store_sim.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/env_sim_internal.h"

struct blob { /* never changes while it is shared */
	uint32_t references;
	uint8_t data[];
};

struct object {
	struct object *next; /* in byte order of the names */
	size_t size;
	struct blob *blob;
	char name[];
};

struct sim_store { /* the bucket */
	struct sim *sim;
	char *url;
	struct object *objects;
	uint64_t bytes, operations;
	struct store_sim_options options;
	unsigned fail_types;
	uint64_t fail_in;
	int fail_error;
	bool fail_effect;
	struct handle *handles;
	struct sim_store *next;
};

struct handle { /* a node's open store */
	struct store store;
	struct sim_store *bucket;
	unsigned under_way;
	bool closed;
	struct handle *next; /* of the bucket; freed with it */
};

struct store_op {
	struct sim_event event;
	struct handle *handle;
	struct sim_store *bucket;
	enum store_sim_op type;
	struct env_op *op;
	char *name;
	void *buf;         /* GET: where to */
	struct blob *blob; /* PUT */
	size_t length;
	uint64_t offset;
	void (*each)(void *context, const struct store_object *object);
	void *context;
	int error; /* to fail with */
	bool effect;
};

/* ---- the bucket --------------------------------------------------------------------------------- */

static struct sim_store *bucket(struct sim *sim, const char *url)
{
	struct sim_store *b;

	for (b = sim->stores; b != NULL; b = b->next)
		if (strcmp(b->url, url) == 0)
			return b;
	b = sim_alloc(sizeof(*b));
	b->sim = sim;
	b->url = strdup(url);
	b->options.latency_min_ns = 100 * SIM_US;
	b->options.latency_max_ns = sim_between(sim, SIM_MS, 50 * SIM_MS);
	b->next = sim->stores;
	sim->stores = b;
	return b;
}

static struct object *object_find(struct sim_store *b, const char *name)
{
	struct object *object = b->objects;

	while (object != NULL && strcmp(object->name, name) != 0)
		object = object->next;
	return object;
}

static struct blob *blob_new(size_t size)
{
	struct blob *blob = malloc(sizeof(*blob) + size);

	if (blob == NULL)
		abort();
	blob->references = 1;
	return blob;
}

static void blob_put(struct blob *blob)
{
	if (--blob->references == 0)
		free(blob);
}

static void object_free(struct object *object)
{
	blob_put(object->blob);
	free(object);
}

static bool object_remove(struct sim_store *b, const char *name)
{
	for (struct object **p = &b->objects; *p != NULL; p = &(*p)->next) {
		struct object *object = *p;

		if (strcmp(object->name, name) != 0)
			continue;
		*p = object->next;
		b->bytes -= object->size;
		object_free(object);
		return true;
	}
	return false;
}

static int object_put(struct sim_store *b, const char *name, struct blob *blob, size_t size)
{
	struct object **p = &b->objects;
	struct object *object;

	if (object_find(b, name) != NULL)
		return -EEXIST;
	if (b->options.capacity_bytes > 0 && b->bytes + size > b->options.capacity_bytes)
		return -ENOSPC;
	object = sim_alloc(sizeof(*object) + strlen(name) + 1);
	strcpy(object->name, name);
	object->size = size;
	object->blob = blob;
	blob->references++;
	while (*p != NULL && strcmp((*p)->name, name) < 0)
		p = &(*p)->next;
	object->next = *p;
	*p = object;
	b->bytes += size;
	return 0;
}

/* ---- operations ------------------------------------------------------------------------------------ */

static void op_free(struct store_op *o)
{
	if (o->blob != NULL)
		blob_put(o->blob);
	free(o->name);
	free(o);
}

/* Lists a copy: each() may put and delete. */
static int64_t do_list(struct store_op *o)
{
	struct object *object;
	struct store_object *found = NULL;
	size_t count = 0, room = 0, length = strlen(o->name);

	for (object = o->bucket->objects; object != NULL; object = object->next) {
		if (strncmp(object->name, o->name, length) != 0)
			continue;
		if (count == room) {
			room = room > 0 ? 2 * room : 16;
			found = realloc(found, room * sizeof(*found));
			if (found == NULL)
				abort();
		}
		found[count++] = (struct store_object){strdup(object->name), object->size, NULL};
	}
	for (size_t i = 0; i < count; i++) {
		o->each(o->context, &found[i]);
		free((void *)(uintptr_t)found[i].name);
	}
	free(found);
	return (int64_t)count;
}

static int64_t do_get(struct store_op *o)
{
	struct object *object = object_find(o->bucket, o->name);
	size_t n;

	if (object == NULL)
		return -ENOENT;
	if (o->type == STORE_SIM_SIZE)
		return (int64_t)object->size;
	if (o->offset >= object->size)
		return 0;
	n = object->size - o->offset < o->length ? object->size - o->offset : o->length;
	memcpy(o->buf, object->blob->data + o->offset, n);
	return (int64_t)n;
}

static int64_t do_op(struct store_op *o)
{
	switch (o->type) {
	case STORE_SIM_PUT:
		return object_put(o->bucket, o->name, o->blob, o->length);
	case STORE_SIM_DELETE:
		object_remove(o->bucket, o->name);
		return 0;
	case STORE_SIM_LIST:
		return do_list(o);
	default:
		return do_get(o);
	}
}

static void op_fire(struct sim_event *event)
{
	struct store_op *o = (struct store_op *)event;
	struct env_op *op = o->op;
	int64_t result;

	if (o->error != 0) {
		if (o->effect && (o->type == STORE_SIM_PUT || o->type == STORE_SIM_DELETE))
			do_op(o);
		result = o->error;
		sim_note(o->bucket->sim, "injected store error %d: %s", o->error, o->name);
	} else {
		result = do_op(o);
	}
	o->handle->under_way--;
	op_free(o);
	op->done(op, result);
}

/* The node died: the store may have the request. */
static void op_drop(struct sim_event *event, bool power)
{
	struct store_op *o = (struct store_op *)event;

	if ((o->type == STORE_SIM_PUT || o->type == STORE_SIM_DELETE) &&
	    sim_random(o->bucket->sim, 2))
		do_op(o);
	op_free(o);
}

static void decide_failure(struct store_op *o)
{
	static const int errors[] = {-EIO, -ETIMEDOUT, -ECONNRESET};
	struct sim_store *b = o->bucket;

	if (sim_chance(b->sim, b->options.error_ppm)) {
		o->error = b->options.error != 0 ? b->options.error : errors[sim_random(b->sim, 3)];
		if (o->error > 0)
			o->error = -o->error;
		o->effect = sim_chance(b->sim, b->options.effect_ppm);
	}
	if (b->fail_in > 0 && (b->fail_types & o->type) && --b->fail_in == 0) {
		o->error = b->fail_error > 0 ? -b->fail_error : b->fail_error;
		o->effect = b->fail_effect;
	}
}

/* The rule of store.h, once more: this library does not depend on daemon/store. */
static bool name_valid(const char *name)
{
	const char *component = name;

	if (strlen(name) > 512)
		return false;
	for (const char *p = name;; p++) {
		if (*p == '/' || *p == '\0') {
			size_t n = (size_t)(p - component);

			if (n == 0 || (n <= 2 && strspn(component, ".") >= n))
				return false;
			component = p + 1;
			if (*p == '\0')
				return true;
		} else if (strchr("abcdefghijklmnopqrstuvwxyz0123456789._-", *p) == NULL) {
			return false;
		}
	}
}

static struct store_op *op_new(struct store *store, struct env_op *op, enum store_sim_op type,
			       const char *name)
{
	struct handle *handle = (struct handle *)store;
	struct store_op *o;

	if (sim_env_of(store->env)->dead)
		return NULL;
	assert(!handle->closed);
	if (type != STORE_SIM_LIST)
		assert(name_valid(name));
	o = sim_alloc(sizeof(*o));
	o->handle = handle;
	o->bucket = handle->bucket;
	o->type = type;
	o->op = op;
	o->name = strdup(name);
	return o;
}

static void op_start(struct store_op *o)
{
	struct sim_store *b = o->bucket;
	uint64_t delay = sim_between(b->sim, b->options.latency_min_ns, b->options.latency_max_ns);

	if (sim_chance(b->sim, b->options.stall_ppm))
		delay += sim_random(b->sim, b->options.stall_max_ns);
	o->handle->under_way++;
	b->operations++;
	decide_failure(o);
	o->event.fire = op_fire;
	o->event.drop = op_drop;
	sim_event_add(b->sim, &o->event, sim_env_of(o->handle->store.env), delay);
}

static void put_start(struct store *store, struct env_op *op, const char *name,
		      const struct iovec *iov, unsigned count)
{
	struct store_op *o = op_new(store, op, STORE_SIM_PUT, name);
	uint8_t *to;

	if (o == NULL)
		return;
	for (unsigned i = 0; i < count; i++)
		o->length += iov[i].iov_len;
	o->blob = blob_new(o->length);
	to = o->blob->data;
	for (unsigned i = 0; i < count; i++) {
		memcpy(to, iov[i].iov_base, iov[i].iov_len);
		to += iov[i].iov_len;
	}
	op_start(o);
}

static void store_get(struct store *store, struct env_op *op, const char *name, void *buf,
		      size_t length, uint64_t offset)
{
	struct store_op *o = op_new(store, op, STORE_SIM_GET, name);

	if (o == NULL)
		return;
	o->buf = buf;
	o->length = length;
	o->offset = offset;
	op_start(o);
}

static void store_size(struct store *store, struct env_op *op, const char *name)
{
	struct store_op *o = op_new(store, op, STORE_SIM_SIZE, name);

	if (o != NULL)
		op_start(o);
}

static void store_list(struct store *store, struct env_op *op, const char *prefix,
		       void (*each)(void *context, const struct store_object *object),
		       void *context)
{
	struct store_op *o = op_new(store, op, STORE_SIM_LIST, prefix);

	if (o == NULL)
		return;
	o->each = each;
	o->context = context;
	op_start(o);
}

static void store_delete(struct store *store, struct env_op *op, const char *name)
{
	struct store_op *o = op_new(store, op, STORE_SIM_DELETE, name);

	if (o != NULL)
		op_start(o);
}

static void handle_close(struct store *store)
{
	struct handle *handle = (struct handle *)store;

	if (sim_env_of(store->env)->dead)
		return;
	assert(handle->under_way == 0 && !handle->closed);
	handle->closed = true;
}

static const struct store_ops ops = {
	.put = put_start,
	.get = store_get,
	.size = store_size,
	.list = store_list,
	.delete = store_delete,
	.close = handle_close,
};

struct store *store_sim_open(struct env *env, const char *url)
{
	struct handle *handle = sim_alloc(sizeof(*handle));

	handle->bucket = bucket(sim_env_of(env)->sim, url);
	handle->next = handle->bucket->handles;
	handle->bucket->handles = handle;
	handle->store.ops = &ops;
	handle->store.env = env;
	handle->store.url = handle->bucket->url;
	/* Half of the seeds: writers then trust what they remember. */
	handle->store.lists_cost = handle->bucket->options.latency_max_ns / 1000 % 2;
	return &handle->store;
}

int sim_store_open(struct env *env, const char *url, struct store **store, char *why,
		   size_t why_size)
{
	*store = store_sim_open(env, url);
	return 0;
}

/* ---- the harness's hands -------------------------------------------------------------------------------- */

void store_sim_get_options(struct sim *sim, const char *url, struct store_sim_options *options)
{
	*options = bucket(sim, url)->options;
}

void store_sim_set_options(struct sim *sim, const char *url,
			   const struct store_sim_options *options)
{
	bucket(sim, url)->options = *options;
}

void store_sim_fail_at(struct sim *sim, const char *url, unsigned types, uint64_t k, int error,
		       bool effect)
{
	struct sim_store *b = bucket(sim, url);

	b->fail_types = types;
	b->fail_in = k;
	b->fail_error = error;
	b->fail_effect = effect;
}

const char *store_sim_object(struct sim *sim, const char *url, unsigned index, const void **data,
			     size_t *size_bytes)
{
	struct object *object = bucket(sim, url)->objects;

	while (object != NULL && index-- > 0)
		object = object->next;
	if (object == NULL)
		return NULL;
	if (data != NULL)
		*data = object->blob->data;
	if (size_bytes != NULL)
		*size_bytes = object->size;
	return object->name;
}

void store_sim_copy(struct sim *to, struct sim *from, const char *url)
{
	struct sim_store *target = bucket(to, url);

	for (struct object *o = bucket(from, url)->objects; o != NULL; o = o->next)
		object_put(target, o->name, o->blob, o->size);
}

uint64_t store_sim_bytes(struct sim *sim, const char *url)
{
	return bucket(sim, url)->bytes;
}

uint64_t store_sim_operations(struct sim *sim, const char *url)
{
	return bucket(sim, url)->operations;
}

bool store_sim_remove(struct sim *sim, const char *url, const char *name)
{
	return object_remove(bucket(sim, url), name);
}

bool store_sim_corrupt(struct sim *sim, const char *url, const char *name, size_t offset,
		       uint8_t xor_with)
{
	struct object *object = object_find(bucket(sim, url), name);
	struct blob *blob;

	if (object == NULL || offset >= object->size)
		return false;
	blob = blob_new(object->size);
	memcpy(blob->data, object->blob->data, object->size);
	blob->data[offset] ^= xor_with;
	blob_put(object->blob);
	object->blob = blob;
	return true;
}

void sim_stores_free(struct sim *sim)
{
	while (sim->stores != NULL) {
		struct sim_store *b = sim->stores;

		sim->stores = b->next;
		while (b->objects != NULL) {
			struct object *object = b->objects;

			b->objects = object->next;
			object_free(object);
		}
		while (b->handles != NULL) {
			struct handle *handle = b->handles;

			b->handles = handle->next;
			free(handle);
		}
		free(b->url);
		free(b);
	}
}
