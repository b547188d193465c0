/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything that can go wrong with a store, one by one, for plain and for encrypted ones: each request of a
 * snapshot, a forget, a restore, a verification fails once (with and without effect), fails for good, is cut
 * in the middle, or is the last one before or behind which the process dies. And each byte of each object is
 * flipped, and each object cut at each length.
 */
#include "tests/unit/snapshot_fixture.h"

#include <malloc.h>

#include "daemon/snapshot/internal.h"
#include "daemon/snapshot/retention.h"
#include "daemon/store/crypt.h"
#include "daemon/store/secret.h"
#include "tests/sim/env_sim.h"

#define LABELS 8
#define BYTES  (CHUNK + 4096)

enum fault { FAIL_ONCE, FAIL_WITH_EFFECT, FAIL_FOR_GOOD, CUT, KILL_BEFORE, KILL_BEHIND, FAULTS };
static const char *const fault_names[] = {"fails once",          "fails, and took effect",
					  "fails for good",      "is cut in the middle",
					  "is not made: killed", "is the last: killed"};

enum work { CREATE, FORGET, RESTORE, VERIFY, WORKS };
static const char *const work_names[] = {"create", "forget", "restore", "verify"};

/* ---- a store that fails ------------------------------------------------------------------------ */

struct faulty {
	struct store store; /* first */
	struct memory_store *m;
	unsigned at; /* the request from now that the fault hits; 0: none */
	enum fault fault;
	bool hit;
	bool dead; /* whose requests are never answered */
};

enum verdict { PASS, FAIL, FAIL_BEHIND, SILENT, SILENT_BEHIND };

static enum verdict verdict(struct faulty *f)
{
	if (f->dead)
		return SILENT;
	if (f->hit && f->fault == FAIL_FOR_GOOD)
		return FAIL;
	if (!f->at || --f->at)
		return PASS;
	f->hit = true;
	f->dead = f->fault == KILL_BEFORE || f->fault == KILL_BEHIND;
	switch (f->fault) {
	case KILL_BEFORE:
		return SILENT;
	case KILL_BEHIND:
		return SILENT_BEHIND;
	case FAIL_WITH_EFFECT:
		return FAIL_BEHIND;
	default:
		return FAIL;
	}
}

static void nobody(struct env_op *op, int64_t result)
{
}

/* True: goes on with *op, which may be nobody's. */
static bool goes_on(struct faulty *f, struct env_op **op)
{
	static struct env_op none = {.done = nobody};
	enum verdict v = verdict(f);

	if (v == FAIL || v == FAIL_BEHIND)
		complete(f->store.env, *op, -EIO);
	if (v != PASS)
		*op = &none;
	return v == PASS || v == FAIL_BEHIND || v == SILENT_BEHIND;
}

static void faulty_put(struct store *store, struct env_op *op, const char *name,
		       const struct iovec *iov, unsigned count)
{
	struct faulty *f = (struct faulty *)store;

	if (goes_on(f, &op))
		memory_put(&f->m->store, op, name, iov, count);
}

static void faulty_get(struct store *store, struct env_op *op, const char *name, void *buf,
		       size_t length, uint64_t offset)
{
	struct faulty *f = (struct faulty *)store;

	if (f->at == 1 && f->fault == CUT) {
		f->at = 0;
		f->hit = true;
		memory_get(&f->m->store, op, name, buf, length / 2, offset);
		return;
	}
	if (goes_on(f, &op))
		memory_get(&f->m->store, op, name, buf, length, offset);
}

static void faulty_size(struct store *store, struct env_op *op, const char *name)
{
	struct faulty *f = (struct faulty *)store;

	if (goes_on(f, &op))
		memory_size(&f->m->store, op, name);
}

struct half {
	void (*each)(void *context, const struct store_object *object);
	void *context;
	unsigned left;
};

static void half_each(void *context, const struct store_object *object)
{
	struct half *half = context;

	if (half->left) {
		half->left--;
		half->each(half->context, object);
	}
}

/* A list that is cut is an error, behind some names. */
static void faulty_list(struct store *store, struct env_op *op, const char *prefix,
			void (*each)(void *context, const struct store_object *object),
			void *context)
{
	struct faulty *f = (struct faulty *)store;
	struct half half = {each, context, 1};
	static struct env_op none = {.done = nobody};

	if (f->at == 1 && f->fault == CUT) {
		f->at = 0;
		f->hit = true;
		memory_list(&f->m->store, &none, prefix, half_each, &half);
		complete(f->store.env, op, -EIO);
		return;
	}
	if (goes_on(f, &op))
		memory_list(&f->m->store, op, prefix, each, context);
}

static void faulty_delete(struct store *store, struct env_op *op, const char *name)
{
	struct faulty *f = (struct faulty *)store;

	if (goes_on(f, &op))
		memory_delete(&f->m->store, op, name);
}

static void faulty_close(struct store *store)
{
}

static const struct store_ops faulty_ops = {
	.put = faulty_put,
	.get = faulty_get,
	.size = faulty_size,
	.list = faulty_list,
	.delete = faulty_delete,
	.close = faulty_close,
};

/* ---- a world ------------------------------------------------------------------------------------- */

/* One process: what a kill leaves behind is never looked at again. */
struct process {
	struct faulty *faulty;
	struct store *store;
	struct snapshot_repo *repo;
	struct volume *volume;
	struct snapshot_writer *writer;
};

struct place {
	struct sim *sim;
	struct env *env;
	struct memory_store *m;
	bool encrypted;
	struct process now;
	unsigned labels;
	uint8_t content[LABELS][BYTES]; /* by the label's digit */
};

static struct secret *key(void)
{
	struct secret *secret = calloc(1, sizeof(*secret));

	secret->method = CRYPTFMT_KEY_FILE;
	secret->length = 32;
	memset(secret->bytes, 7, 32);
	return secret;
}

static void process_begin(struct place *p, const struct volume_state *state)
{
	struct snapshot_writer_config config = {.node_name = "a", .pack_bytes = 1 << 20};
	struct faulty *f = calloc(1, sizeof(*f));

	*f = (struct faulty){.store = {.ops = &faulty_ops, .env = p->env, .url = "faulty:"},
			     .m = p->m};
	p->now.faulty = f;
	p->now.store = p->encrypted ? crypt_open(&f->store, key()) : &f->store;
	p->now.volume = fake_volume(p->env, BYTES, 0x11);
	if (state)
		p->now.volume->state = *state;
	p->now.repo = snapshot_repo_new(p->now.store, &p->now.volume->state.uuid);
	p->now.writer = snapshot_writer_new(p->now.volume, p->now.repo, &config);
}

static void wait_for(struct place *p, const bool *done)
{
	if (!sim_run_until(p->sim, done, 3600ull * 1000000000))
		fail_msg("an operation does not end");
}

static void process_end(struct place *p)
{
	struct waited freed = {.done = false};

	snapshot_writer_free(p->now.writer, waited_freed, &freed);
	wait_for(p, &freed.done);
	snapshot_repo_free(p->now.repo);
	fake_volume_free(p->now.volume);
	store_close(p->now.store);
	free(p->now.faulty);
}

/* Another process with the same disk: all that may have changed is marked. */
static void process_again(struct place *p)
{
	struct volume *old = p->now.volume;

	process_begin(p, &old->state);
	for (unsigned i = 0; i < old->chunks; i++)
		fake_write(p->now.volume, i, old->data[i]);
}

static void place_begin(struct place *p, bool encrypted)
{
	*p = (struct place){.encrypted = encrypted, .sim = sim_new(1)};
	p->env = sim_node(p->sim, "a");
	env_log_level(p->env, ENV_LOG_ERROR);
	p->m = memory_store(p->env);
	process_begin(p, NULL);
}

static void place_end(struct place *p)
{
	process_end(p);
	memory_close(&p->m->store);
	sim_free(p->sim);
}

/* Content of the n-th snapshot: a chunk that stays, and one that changes. */
static void change(struct place *p)
{
	uint8_t *data = p->content[p->labels];
	unsigned n = p->labels;

	if (n)
		memcpy(data, p->content[n - 1], BYTES);
	for (unsigned i = 0; i < 300; i++)
		data[n ? CHUNK + i * 7 : i * 100] = (uint8_t)(n * 31 + i + 1);
	if (n == 0)
		fake_write(p->now.volume, 0, data);
	else {
		uint8_t tail[CHUNK] = {0};

		memcpy(tail, data + CHUNK, 4096);
		fake_write(p->now.volume, 1, tail);
	}
}

static void begin(struct place *p, enum work work, struct waited *w, struct snapshot_target *target)
{
	const struct retention_policy policy = {.last = 1};
	char label[2] = {(char)('0' + p->labels), 0};

	switch (work) {
	case CREATE:
		change(p);
		p->labels++;
		snapshot_create(p->now.writer, label, waited_done, w);
		break;
	case FORGET:
		snapshot_forget(p->now.repo, &policy, false, NULL, waited_done, w);
		break;
	case RESTORE:
		snapshot_restore(p->now.repo, NULL, target, NULL, waited_done, w);
		break;
	default:
		snapshot_verify(p->now.repo, NULL, 100, waited_bad, NULL, waited_done, w);
	}
}

static struct waited do_work(struct place *p, enum work work)
{
	struct waited w = {.done = false};

	begin(p, work, &w, NULL);
	wait_for(p, &w.done);
	return w;
}

static struct waited list_all(struct place *p)
{
	struct waited w = {.done = false};

	snapshot_list(p->now.repo, waited_each, waited_damaged, waited_done, &w);
	wait_for(p, &w.done);
	return w;
}

static bool volume_is(const struct volume *v, const uint8_t *content)
{
	static const uint8_t zero[BYTES];

	for (uint64_t i = 0; i < v->chunks; i++) {
		size_t length = i ? 4096 : CHUNK;

		if (memcmp(v->data[i] ? v->data[i] : zero, content + i * CHUNK, length))
			return false;
	}
	return true;
}

/* Into a volume of its own, which the caller frees. */
static struct waited restore_one(struct place *p, const struct id128 *id, struct volume **v)
{
	struct waited w = {.done = false};
	struct snapshot_target *target;
	char why[256];

	*v = fake_volume(p->env, BYTES, 0x22);
	(*v)->state.disk = VOLUME_DISK_INCONSISTENT;
	assert_int_equal(snapshot_target_volume(*v, &target, why, sizeof(why)), 0);
	snapshot_restore(p->now.repo, id, target, NULL, waited_done, &w);
	wait_for(p, &w.done);
	return w;
}

/* Every listed snapshot comes back to the byte. */
static unsigned all_come_back(struct place *p, const char *when)
{
	struct waited listed = list_all(p);

	if (listed.result.error || listed.damaged)
		fail_msg("%s: list: %s", when, listed.result.why);
	for (unsigned i = 0; i < listed.listed; i++) {
		const struct snapshot_info *info = &listed.infos[i];
		struct volume *v;
		struct waited r = restore_one(p, &info->id, &v);

		if (r.result.error)
			fail_msg("%s: restore: %s", when, r.result.why);
		if (!volume_is(v, p->content[info->label[0] - '0']))
			fail_msg("%s: snapshot %s is not what it was", when, info->label);
		fake_volume_free(v);
	}
	return listed.listed;
}

/* ---- faults -------------------------------------------------------------------------------------- */

static unsigned needless(const struct place *p)
{
	unsigned packs, maps, manifests, keys = 0;

	memory_count(p->m, &packs, &maps, &manifests);
	for (unsigned i = 0; i < p->m->count; i++)
		keys += strstr(p->m->objects[i].name, "/keys/") != NULL;
	return p->m->count - keys - packs - maps - manifests;
}

static void afterwards(struct place *p, enum work work, const char *when)
{
	struct waited w;

	if (all_come_back(p, when) < (work == FORGET ? 1 : 2))
		fail_msg("%s: a snapshot is gone", when);
	w = do_work(p, CREATE);
	if (w.result.error)
		fail_msg("%s: the next snapshot: %s", when, w.result.why);
	all_come_back(p, when);
	w = do_work(p, VERIFY);
	if (w.result.error)
		fail_msg("%s: verify: %s", when, w.result.why);
	/* When nothing can arrive any more, nothing is left over. */
	sim_run_until(p->sim, NULL, 2 * CLAIM_QUIET_NS);
	w = do_work(p, FORGET);
	if (!w.result.error)
		w = do_work(p, FORGET);
	if (w.result.error)
		fail_msg("%s: forget: %s", when, w.result.why);
	if (all_come_back(p, when) != 1 || needless(p))
		fail_msg("%s: something is left over", when);
}

/* False: the work makes fewer requests than that. */
static bool one_fault(struct place *p, enum work work, enum fault fault, unsigned k)
{
	struct waited w = {.done = false};
	struct volume *v = NULL;
	struct snapshot_target *target = NULL;
	char when[128], why[256];
	bool hit;

	snprintf(when, sizeof(when), "%s%s: request %u %s", work_names[work],
		 p->encrypted ? ", encrypted" : "", k, fault_names[fault]);
	do_work(p, CREATE);
	assert_int_equal(do_work(p, CREATE).result.error, 0);
	if (work == RESTORE) {
		v = fake_volume(p->env, BYTES, 0x22);
		assert_int_equal(snapshot_target_volume(v, &target, why, sizeof(why)), 0);
	}
	p->now.faulty->fault = fault;
	p->now.faulty->at = k;
	begin(p, work, &w, target);
	if (fault != KILL_BEFORE && fault != KILL_BEHIND)
		wait_for(p, &w.done);
	else
		sim_run_until(p->sim, &w.done, 60ull * 1000000000);
	hit = p->now.faulty->hit;
	if (!hit && w.result.error)
		fail_msg("%s: %s", when, w.result.why);
	if (fault == FAIL_FOR_GOOD && hit && work == RESTORE)
		assert_int_not_equal(w.result.error, 0);
	if (v && w.done && !w.result.error && !volume_is(v, p->content[p->labels - 1]))
		fail_msg("%s: wrong content restored as right", when);
	if (v && w.done && w.result.error)
		assert_int_equal(v->state.disk,
				 v->applied ? VOLUME_DISK_INCONSISTENT : v->state.disk);
	if (!w.done && hit) {
		process_again(p); /* what was is leaked: nobody is there to free it */
	} else {
		p->now.faulty->hit = false;
		p->now.faulty->at = 0;
		if (v)
			fake_volume_free(v);
	}
	afterwards(p, work, when);
	return hit;
}

static void matrix(bool encrypted)
{
	unsigned cases = 0;

	for (enum work work = 0; work < WORKS; work++)
		for (enum fault fault = 0; fault < FAULTS; fault++) {
			bool hit = true;

			for (unsigned k = 1; hit; k++) {
				static struct place p;

				place_begin(&p, encrypted);
				hit = one_fault(&p, work, fault, k);
				place_end(&p);
				cases++;
				assert_true(k < 100);
			}
		}
	print_message("%u cases\n", cases);
}

static void every_request_of_a_plain_store(void **state)
{
	matrix(false);
}

static void every_request_of_an_encrypted_store(void **state)
{
	matrix(true);
}

/* ---- bytes --------------------------------------------------------------------------------------- */

/* The base name is what people look for. */
static bool names_it(const char *text, const char *object)
{
	return strstr(text, strrchr(object, '/') + 1) != NULL;
}

static void damaged(struct place *p, const char *object, const char *what, size_t at)
{
	bool is_key = strstr(object, "/keys/") != NULL;
	struct volume *v;
	struct waited w;

	if (is_key) { /* the process has it in memory */
		struct volume_state state = p->now.volume->state;

		process_end(p);
		process_begin(p, &state);
	}
	w = do_work(p, VERIFY);
	if (!w.result.error)
		fail_msg("%s: %s %zu: verify is content", object, what, at);
	if (is_key ? !names_it(w.result.why, object) && !names_it(w.why, object) && !*w.result.why
		   : strcmp(w.object, object))
		fail_msg("%s: %s %zu: verify names %s (%s)", object, what, at, w.object,
			 w.result.why);
	w = restore_one(p, NULL, &v);
	if (!w.result.error && !volume_is(v, p->content[p->labels - 1]))
		fail_msg("%s: %s %zu: wrong content restored as right", object, what, at);
	if (w.result.error && !is_key && !names_it(w.result.why, object))
		fail_msg("%s: %s %zu: restore says %s", object, what, at, w.result.why);
	fake_volume_free(v);
}

static void bytes(bool encrypted)
{
	static struct place p;
	unsigned tried = 0;
	/* What is encrypted is padded to pages: there a cut in the midst of zeroes is like another. */
	const size_t step = encrypted ? 13 : 1;

	place_begin(&p, encrypted);
	assert_int_equal(do_work(&p, CREATE).result.error, 0);
	assert_int_equal(do_work(&p, VERIFY).result.error, 0);
	for (unsigned o = 0; o < p.m->count; o++) {
		struct memory_object *object = &p.m->objects[o];
		size_t size = object->size;

		for (size_t at = 0; at < size; at += at < 512 || size - at < 64 ? 1 : step) {
			object->data[at] ^= (uint8_t)(1u << at % 8);
			damaged(&p, object->name, "byte", at);
			object->data[at] ^= (uint8_t)(1u << at % 8);
			tried++;
		}
		for (size_t at = 0; at < size; at += at < 256 || size - at < 64 ? 1 : step) {
			object->size = at;
			damaged(&p, object->name, "cut at", at);
			object->size = size;
			tried++;
		}
	}
	print_message("%u damages\n", tried);
	place_end(&p);
}

static void every_byte_of_a_plain_store(void **state)
{
	bytes(false);
}

static void every_byte_of_an_encrypted_store(void **state)
{
	bytes(true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_request_of_a_plain_store),
		cmocka_unit_test(every_request_of_an_encrypted_store),
		cmocka_unit_test(every_byte_of_a_plain_store),
		cmocka_unit_test(every_byte_of_an_encrypted_store),
	};

	mallopt(M_MMAP_THRESHOLD, 64 << 20);
	mallopt(M_TRIM_THRESHOLD, 512 << 20);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
