/* SPDX-License-Identifier: Apache-2.0 */
/* The encrypting store. See crypt.h. */
#include "daemon/store/crypt.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/keyring.h"

#define container_of(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

#define NAME_BYTES  513
#define HEAD_BYTES  sizeof(struct cryptfmt_header_wire)
#define FIRST_LABEL "first"

struct crypt;
struct job;

/*
 * A volume's keys. LOADING: the jobs in waiting go on when it is over. After a failure it is NONE again,
 * so that the next operation looks once more: an operator may have mended it.
 */
struct volume_keys {
	struct crypt *crypt;
	struct id128 volume;
	enum { KEYS_NONE, KEYS_LOADING, KEYS_READY } state;
	struct keyring *ring;
	struct job *waiting;
	bool create;  /* one of those waiting puts */
	bool created; /* this load follows a creation */
	struct data_key fresh;
	struct env_op op;
	char prefix[CRYPTFMT_NAME_BYTES];
	bool has_snapshots;
	struct volume_keys *next;
};

struct crypt {
	struct store store; /* first */
	struct store *inner;
	struct secret *secret;
	struct volume_keys *volumes;
};

/* One operation under way. */
struct job {
	struct crypt *crypt;
	struct env_op *user;
	struct env_op op;
	struct env_work work;
	struct volume_keys *keys;
	void (*ready)(struct job *job); /* the keys are there */
	struct job *next;
	bool is_put, reloaded;
	char name[NAME_BYTES];
	int64_t result;
	/* put */
	const struct iovec *iov;
	unsigned iov_count;
	struct store_retention retention;
	uint8_t *nonces;
	bool spent;          /* sealed where it lies */
	struct iovec sealed; /* the whole; spent: what it is larger by */
	struct iovec *parts; /* spent: of the whole */
	unsigned part_count;
	struct data_key key;
	/* get */
	void *out;
	size_t length;
	uint64_t offset, first; /* first: number of the first segment */
	uint8_t *stored;
	size_t stored_bytes;
	struct data_key *candidates;
	unsigned candidate_count;
	bool unknown_key;
	/* refresh */
	bool unknown_slot;
	/* list */
	void (*each)(void *context, const struct store_object *object);
	void *context;
};

static struct crypt *crypt_of(struct store *store)
{
	return container_of(store, struct crypt, store);
}

/* Memory by the size of what is stored or asked for is the caller's to bound, as there. */
static void *must_have(void *memory)
{
	assert(memory);
	return memory;
}

static struct job *job_new(struct store *store, struct env_op *user, const char *name)
{
	struct job *job = must_have(calloc(1, sizeof(*job)));

	job->crypt = crypt_of(store);
	job->user = user;
	snprintf(job->name, sizeof(job->name), "%s", name);
	return job;
}

static void candidates_free(struct job *job)
{
	if (job->candidates)
		explicit_bzero(job->candidates, job->candidate_count * sizeof(*job->candidates));
	free(job->candidates);
}

static void job_finish(struct job *job, int64_t result)
{
	struct env_op *user = job->user;

	free(job->nonces);
	free(job->sealed.iov_base);
	free(job->parts);
	free(job->stored);
	explicit_bzero(&job->key, sizeof(job->key));
	candidates_free(job);
	free(job);
	user->done(user, result);
}

/* ---- keys ------------------------------------------------------------------------------------ */

static void keys_begin(struct volume_keys *keys);

static void keys_settle(struct volume_keys *keys, int error)
{
	struct job *waiting = keys->waiting;

	keys->waiting = NULL;
	keys->create = keys->created = false;
	keys->state = error ? KEYS_NONE : KEYS_READY;
	while (waiting) {
		struct job *job = waiting;

		waiting = job->next;
		if (error)
			job_finish(job, error);
		else
			job->ready(job);
	}
}

static void keys_put(void *context, const struct id128 *slot, int error)
{
	struct volume_keys *keys = context;

	explicit_bzero(&keys->fresh, sizeof(keys->fresh));
	if (error) {
		keys_settle(keys, error);
		return;
	}
	/* Another node may have made one at the same moment: both are read, and the newer one is used. */
	keys->created = true;
	keys_begin(keys);
}

static void keys_snapshot(void *context, const struct store_object *object)
{
	((struct volume_keys *)context)->has_snapshots = true;
}

static void keys_snapshots_listed(struct env_op *op, int64_t result)
{
	struct volume_keys *keys = container_of(op, struct volume_keys, op);

	if (result < 0) {
		keys_settle(keys, (int)result);
	} else if (keys->has_snapshots || keys->created) {
		keys_settle(keys, -STORE_NO_KEYS);
	} else if (!keys->create) {
		keys_settle(keys, -ENOENT);
	} else {
		keyring_new_key(keys->crypt->store.env, &keys->fresh);
		keyring_add(keys->crypt->inner, &keys->volume, &keys->fresh, keys->crypt->secret,
			    FIRST_LABEL, keys_put, keys);
	}
}

static void keys_loaded(void *context, struct keyring *ring, int error)
{
	struct volume_keys *keys = context;
	char volume[ID128_TEXT_BYTES];

	if (error) {
		keys_settle(keys, error);
		return;
	}
	if (ring->key_count) {
		keyring_free(keys->ring);
		keys->ring = ring;
		keys->crypt->store.keys_read++;
		keys_settle(keys, 0);
		return;
	}
	error = ring->slot_count ? -STORE_WRONG_SECRET : 0;
	keyring_free(ring);
	if (error) {
		keys_settle(keys, error);
		return;
	}
	id128_format(&keys->volume, volume);
	snprintf(keys->prefix, sizeof(keys->prefix), "%s/snapshots/", volume);
	keys->has_snapshots = false;
	keys->op.done = keys_snapshots_listed;
	keys->crypt->inner->ops->list(keys->crypt->inner, &keys->op, keys->prefix, keys_snapshot,
				      keys);
}

static void keys_begin(struct volume_keys *keys)
{
	keys->state = KEYS_LOADING;
	keyring_load(keys->crypt->inner, &keys->volume, keys->crypt->secret, keys_loaded, keys);
}

static struct volume_keys *keys_of(struct crypt *crypt, const struct id128 *volume)
{
	struct volume_keys *keys = crypt->volumes;

	while (keys && !id128_equal(&keys->volume, volume))
		keys = keys->next;
	if (keys)
		return keys;
	keys = must_have(calloc(1, sizeof(*keys)));
	keys->crypt = crypt;
	keys->volume = *volume;
	keys->next = crypt->volumes;
	crypt->volumes = keys;
	return keys;
}

static void keys_wait(struct job *job)
{
	struct volume_keys *keys = job->keys;

	job->next = keys->waiting;
	keys->waiting = job;
	keys->create |= job->is_put;
	if (keys->state != KEYS_LOADING)
		keys_begin(keys);
}

/* Goes on with job->ready() when the keys of the volume in its name are there. */
static void keys_need(struct job *job)
{
	const size_t digits = ID128_TEXT_BYTES - 1;
	struct id128 volume;

	if (strlen(job->name) <= digits || job->name[digits] != '/' ||
	    !id128_parse(job->name, digits, &volume))
		assert(!"an encrypted store holds nothing but volumes' objects");
	job->keys = keys_of(job->crypt, &volume);
	if (job->keys->state == KEYS_READY)
		job->ready(job);
	else
		keys_wait(job);
}

/* ---- keys that were added meanwhile ------------------------------------------------------------- */

/* Those that there were open all that they opened before. */
static void refresh_loaded(void *context, struct keyring *ring, int error)
{
	struct job *job = context;
	struct volume_keys *keys = job->keys;

	if (!error && ring->key_count && keys->state == KEYS_READY) {
		keyring_free(keys->ring);
		keys->ring = ring;
		keys->crypt->store.keys_read++;
	} else {
		if (error || !ring->key_count)
			env_log(job->crypt->store.env, ENV_LOG_WARNING,
				"store %.160s: keys were added, but %s: it goes on with those it "
				"has",
				job->crypt->store.url,
				store_strerror(error ? error : -STORE_WRONG_SECRET));
		keyring_free(ring);
	}
	job_finish(job, 0);
}

static void refresh_each(void *context, const struct store_object *object)
{
	struct job *job = context;
	const struct keyring *ring = job->keys->ring;
	struct id128 volume, key, slot;
	bool known = false;

	if (!cryptfmt_key_name_parse(object->name, &volume, &key, &slot))
		return;
	for (unsigned i = 0; i < ring->slot_count; i++)
		known |= id128_equal(&ring->slots[i].slot, &slot);
	job->unknown_slot |= !known;
}

static void refresh_listed(struct env_op *op, int64_t result)
{
	struct job *job = container_of(op, struct job, op);

	if (result < 0 || !job->unknown_slot)
		job_finish(job, result < 0 ? result : 0);
	else
		keyring_load(job->crypt->inner, &job->keys->volume, job->crypt->secret,
			     refresh_loaded, job);
}

static void refresh_ready(struct job *job)
{
	cryptfmt_key_prefix(&job->keys->volume, job->keys->prefix);
	job->op.done = refresh_listed;
	job->crypt->inner->ops->list(job->crypt->inner, &job->op, job->keys->prefix, refresh_each,
				     job);
}

/* The names of the slots tell. What was read just now, as it was never needed before, is new enough. */
static void crypt_refresh(struct store *store, struct env_op *op, const char *prefix)
{
	struct job *job = job_new(store, op, prefix);

	job->is_put = true; /* comes next: may make the first key */
	job->ready = refresh_ready;
	keys_need(job);
}

/* ---- put --------------------------------------------------------------------------------------- */

static void put_done(struct env_op *op, int64_t result)
{
	job_finish(container_of(op, struct job, op), result);
}

static void put_run(struct env_work *work)
{
	struct job *job = container_of(work, struct job, work);

	if (job->spent)
		job->part_count = cipher_seal_spent(&job->key, job->name, job->iov, job->iov_count,
						    job->nonces, job->sealed.iov_base, job->parts);
	else
		cipher_seal(&job->key, job->name, job->iov, job->iov_count, job->nonces,
			    job->sealed.iov_base);
}

static void put_sealed(struct env_work *work)
{
	struct job *job = container_of(work, struct job, work);

	job->op.done = put_done;
	store_put(job->crypt->inner, &job->op, job->name, job->spent ? job->parts : &job->sealed,
		  job->spent ? job->part_count : 1, &job->retention);
}

static void put_ready(struct job *job)
{
	uint64_t plain = 0, segments;

	for (unsigned i = 0; i < job->iov_count; i++)
		plain += job->iov[i].iov_len;
	if (!plain) {
		job->op.done = put_done;
		store_put(job->crypt->inner, &job->op, job->name, job->iov, job->iov_count,
			  &job->retention);
		return;
	}
	segments = (plain + CRYPTFMT_SEGMENT_BYTES - 1) / CRYPTFMT_SEGMENT_BYTES;
	job->key = job->keys->ring->keys[0];
	job->nonces = must_have(malloc(segments * CRYPTFMT_NONCE_BYTES + 1));
	env_random(job->crypt->store.env, job->nonces, segments * CRYPTFMT_NONCE_BYTES);
	job->sealed.iov_len = cryptfmt_stored_bytes(plain) - (job->spent ? plain : 0);
	if (job->spent)
		job->parts = must_have(
			calloc(cipher_parts_max(segments, job->iov_count), sizeof(*job->parts)));
	job->sealed.iov_base = must_have(malloc(job->sealed.iov_len));
	job->work = (struct env_work){.run = put_run, .done = put_sealed};
	env_work_submit(job->crypt->store.env, &job->work);
}

static void put_begin(struct store *store, struct env_op *op, const char *name,
		      const struct iovec *iov, unsigned count,
		      const struct store_retention *retention, bool spent)
{
	struct job *job = job_new(store, op, name);

	crypt_of(store)->inner->gentle = store->gentle;
	job->retention = *retention;
	job->iov = iov;
	job->iov_count = count;
	job->is_put = true;
	job->spent = spent;
	job->ready = put_ready;
	keys_need(job);
}

static void crypt_put_retained(struct store *store, struct env_op *op, const char *name,
			       const struct iovec *iov, unsigned count,
			       const struct store_retention *retention)
{
	put_begin(store, op, name, iov, count, retention, false);
}

static void crypt_put_spent(struct store *store, struct env_op *op, const char *name,
			    const struct iovec *iov, unsigned count,
			    const struct store_retention *retention)
{
	put_begin(store, op, name, iov, count, retention, true);
}

static void crypt_put(struct store *store, struct env_op *op, const char *name,
		      const struct iovec *iov, unsigned count)
{
	static const struct store_retention none = {.lock = STORE_LOCK_NONE};

	put_begin(store, op, name, iov, count, &none, false);
}

/* ---- get --------------------------------------------------------------------------------------- */

/* With the key that the object's header names, or (of a part without header) whichever fits. */
static int64_t get_open(struct job *job)
{
	const uint8_t *segments = job->stored;
	size_t length = job->stored_bytes;
	uint64_t skip = job->offset - job->first * CRYPTFMT_SEGMENT_BYTES;
	bool has_head = !job->first;
	struct cipher_key object_key;
	int64_t plain = -EBADMSG;
	struct id128 id;

	if (has_head) {
		if (length < HEAD_BYTES || cryptfmt_header_decode((const void *)segments, &id))
			return -EBADMSG;
		segments += HEAD_BYTES;
		length -= HEAD_BYTES;
		job->unknown_key = true;
	}
	for (unsigned i = 0; i < job->candidate_count && plain < 0; i++) {
		if (has_head && !id128_equal(&id, &job->candidates[i].id))
			continue;
		job->unknown_key = false;
		cipher_object_key(&job->candidates[i].key, job->name, &object_key);
		plain = cipher_open_part(&object_key, job->first, segments, length, skip,
					 job->length, job->out);
	}
	explicit_bzero(&object_key, sizeof(object_key));
	return plain;
}

static void get_run(struct env_work *work)
{
	struct job *job = container_of(work, struct job, work);

	job->result = get_open(job);
}

static void get_opened(struct env_work *work)
{
	struct job *job = container_of(work, struct job, work);

	/* Sealed with a data key made since the keys were read? A part without header cannot tell. */
	if (job->result == -EBADMSG && !job->reloaded && (job->unknown_key || job->first)) {
		job->reloaded = true;
		keys_wait(job);
		return;
	}
	job_finish(job, job->unknown_key ? -STORE_WRONG_SECRET : job->result);
}

static void get_work(struct job *job)
{
	const struct keyring *ring = job->keys->ring;

	candidates_free(job);
	job->candidate_count = ring->key_count;
	job->candidates = must_have(malloc(ring->key_count * sizeof(*ring->keys)));
	memcpy(job->candidates, ring->keys, ring->key_count * sizeof(*ring->keys));
	job->unknown_key = false;
	job->work = (struct env_work){.run = get_run, .done = get_opened};
	env_work_submit(job->crypt->store.env, &job->work);
}

static void get_got(struct env_op *op, int64_t result)
{
	struct job *job = container_of(op, struct job, op);

	if (result <= 0) {
		job_finish(job, result);
		return;
	}
	job->stored_bytes = (size_t)result;
	get_work(job);
}

static void get_ready(struct job *job)
{
	uint64_t end = job->offset + (job->length ? job->length : 1), from, to;

	if (job->stored) { /* the keys were read again */
		get_work(job);
		return;
	}
	job->first = job->offset / CRYPTFMT_SEGMENT_BYTES;
	from = job->first ? HEAD_BYTES + job->first * CRYPTFMT_STORED_BYTES : 0;
	to = HEAD_BYTES + ((end - 1) / CRYPTFMT_SEGMENT_BYTES + 1) * CRYPTFMT_STORED_BYTES;
	job->stored = malloc(to - from);
	if (!job->stored) {
		job_finish(job, -ENOMEM);
		return;
	}
	job->op.done = get_got;
	job->crypt->inner->ops->get(job->crypt->inner, &job->op, job->name, job->stored, to - from,
				    from);
}

static void crypt_get(struct store *store, struct env_op *op, const char *name, void *buf,
		      size_t length, uint64_t offset)
{
	struct job *job = job_new(store, op, name);

	job->out = buf;
	job->length = length;
	job->offset = offset;
	job->ready = get_ready;
	keys_need(job);
}

/* ---- the others ---------------------------------------------------------------------------------- */

static void size_done(struct env_op *op, int64_t result)
{
	job_finish(container_of(op, struct job, op),
		   result < 0 ? result : (int64_t)cryptfmt_plain_bytes((uint64_t)result));
}

static void crypt_size(struct store *store, struct env_op *op, const char *name)
{
	struct job *job = job_new(store, op, name);

	job->op.done = size_done;
	job->crypt->inner->ops->size(job->crypt->inner, &job->op, name);
}

static void list_each(void *context, const struct store_object *object)
{
	struct job *job = context;
	struct store_object plain = {
		.name = object->name,
		.size_bytes = cryptfmt_plain_bytes(object->size_bytes),
		.archive = object->archive,
	};

	job->each(job->context, &plain);
}

static void list_done(struct env_op *op, int64_t result)
{
	struct job *job = container_of(op, struct job, op);

	job->crypt->store.blank = job->crypt->inner->blank;
	job_finish(job, result);
}

static void crypt_list(struct store *store, struct env_op *op, const char *prefix,
		       void (*each)(void *context, const struct store_object *object),
		       void *context)
{
	struct job *job = job_new(store, op, prefix);

	job->each = each;
	job->context = context;
	job->op.done = list_done;
	job->crypt->inner->ops->list(job->crypt->inner, &job->op, prefix, list_each, job);
}

static void crypt_list_after(struct store *store, struct env_op *op, const char *prefix,
			     const char *after,
			     void (*each)(void *context, const struct store_object *object),
			     void *context)
{
	struct job *job = job_new(store, op, prefix);

	job->each = each;
	job->context = context;
	job->op.done = list_done;
	store_list_after(job->crypt->inner, &job->op, prefix, after, list_each, job);
}

static void crypt_retain(struct store *store, struct env_op *op, const char *name,
			 const struct store_retention *retention)
{
	store_retain(crypt_of(store)->inner, op, name, retention);
}

static void crypt_retained(struct store *store, struct env_op *op, const char *name)
{
	store_retained(crypt_of(store)->inner, op, name);
}

static void crypt_thaw(struct store *store, struct env_op *op, const char *name)
{
	struct store *inner = crypt_of(store)->inner;

	inner->ops->thaw(inner, op, name);
}

static void crypt_thawed(struct store *store, struct env_op *op, const char *name)
{
	struct store *inner = crypt_of(store)->inner;

	inner->ops->thawed(inner, op, name);
}

static uint64_t crypt_thaw_ns(struct store *store, const char *archive)
{
	struct store *inner = crypt_of(store)->inner;

	return inner->ops->thaw_ns(inner, archive);
}

static void crypt_counts(struct store *store, struct store_counts *counts)
{
	store_counts(crypt_of(store)->inner, counts);
}

static void crypt_delete(struct store *store, struct env_op *op, const char *name)
{
	struct store *inner = crypt_of(store)->inner;

	inner->ops->delete (inner, op, name);
}

static void crypt_stop(struct store *store)
{
	store_stop(crypt_of(store)->inner);
}

static void crypt_close(struct store *store)
{
	struct crypt *crypt = crypt_of(store);

	while (crypt->volumes) {
		struct volume_keys *keys = crypt->volumes;

		assert(keys->state != KEYS_LOADING);
		crypt->volumes = keys->next;
		keyring_free(keys->ring);
		free(keys);
	}
	store_close(crypt->inner);
	secret_free(crypt->secret);
	free(crypt);
}

/* ---- opening ------------------------------------------------------------------------------------- */

static const struct store_ops crypt_ops = {
	.put = crypt_put,
	.get = crypt_get,
	.size = crypt_size,
	.list = crypt_list,
	.delete = crypt_delete,
	.put_retained = crypt_put_retained,
	.put_spent = crypt_put_spent,
	.retain = crypt_retain,
	.retained = crypt_retained,
	.list_after = crypt_list_after,
	.thaw = crypt_thaw,
	.thawed = crypt_thawed,
	.thaw_ns = crypt_thaw_ns,
	.refresh = crypt_refresh,
	.counts = crypt_counts,
	.stop = crypt_stop,
	.close = crypt_close,
};

struct store *crypt_open(struct store *inner, struct secret *secret)
{
	struct crypt *crypt = must_have(calloc(1, sizeof(*crypt)));

	crypt->store = (struct store){
		.ops = &crypt_ops,
		.env = inner->env,
		.url = inner->url,
		.encrypted = true,
		.lists_cost = inner->lists_cost,
	};
	crypt->inner = inner;
	crypt->secret = secret;
	return &crypt->store;
}

int crypt_store_open(struct env *env, const char *url, const struct secret_source *source,
		     struct store **store, char *why, size_t why_size)
{
	struct secret *secret;
	int error = secret_open(source, &secret, why, why_size);

	*store = NULL;
	if (error)
		return error;
	error = store_open(env, url, store, why, why_size);
	if (error) {
		secret_free(secret);
		return error;
	}
	if (secret)
		*store = crypt_open(*store, secret);
	return 0;
}
