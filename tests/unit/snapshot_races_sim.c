/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writers, deleters and collectors over one store, in every order of their requests. Each actor's requests
 * wait at a gate; a run lets them through one by one in some order, and all orders are tried (those that
 * lead to a state seen before are not gone on with). After each request every listed snapshot has to be
 * whole: so it does not matter who is killed where, as that is somebody who makes no request any more.
 * With three actors only orders with few switches between them are tried; SWITCHES=n tries more (3: minutes).
 * time limit: 300 s
 */
#include "tests/unit/snapshot_fixture.h"

#include <malloc.h>

#include "daemon/snapshot/internal.h"
#include "daemon/snapshot/retention.h"
#include "tests/sim/env_sim.h"

#define ACTORS   4
#define STEPS    512
#define LAG_NS   (10ull * 1000000000)
#define VIEWS    64
#define SEEN_MAX (1u << 20)

/* ---- the bucket as it was --------------------------------------------------------------------- */

/* Names at a time, for lists that are late. */
struct view {
	uint64_t until_ns; /* it was so until then */
	unsigned count;
	char names[64][SNAPFMT_NAME_BYTES];
	uint64_t sizes[64];
};

struct explorer;

/* ---- the gate --------------------------------------------------------------------------------- */

struct request {
	struct request *next;
	int type;
	struct env_op *op;
	char name[SNAPFMT_NAME_BYTES];
	struct iovec iov; /* a copy */
	void *buf;
	size_t length;
	uint64_t offset;
	void (*each)(void *context, const struct store_object *object);
	void *context;
};

struct actor {
	struct store store; /* first */
	struct explorer *explorer;
	struct request *queue;
	uint64_t history; /* hash of what it was answered */
	struct snapshot_repo *repo;
	struct volume *volume;
	struct snapshot_writer *writer;
	struct waited waited;
	bool used;
	unsigned
		fail_put_at; /* its k-th put of a manifest fails, and takes effect when the ghost says */
};

struct scenario {
	const char *name;
	void (*start)(struct explorer *x);
	bool late_lists;
	unsigned switches_max; /* from an actor that could go on to another; 0: any number */
};

struct explorer {
	const struct scenario *scenario;
	void (*check)(struct explorer *x); /* at a run's end; NULL: nothing may be left over */
	struct sim *sim;
	struct env *env;
	struct memory_store *m;
	struct actor actors[ACTORS];
	struct request *ghost;         /* a put that the client has given up, still on its way */
	struct id128 first, second;    /* the snapshots there are, oldest first */
	struct volume_state state;     /* of who wrote them */
	struct memory_object *objects; /* what they are */
	unsigned object_count;
	struct view *views;
	unsigned view_count;
	/* the order of this run */
	uint8_t schedule[STEPS];
	unsigned given, steps, last, switches, switches_max;
	bool known; /* a state that was gone on from before */
};

static uint64_t mix(uint64_t hash, const void *data, size_t length)
{
	const uint8_t *bytes = data;

	for (size_t i = 0; i < length; i++)
		hash = (hash ^ bytes[i]) * 1099511628211ull;
	return hash;
}

static void gate(struct store *store, int type, struct request *r, const char *name)
{
	struct actor *a = (struct actor *)store;
	struct request **end = &a->queue;

	r->type = type;
	snprintf(r->name, sizeof(r->name), "%s", name);
	while (*end)
		end = &(*end)->next;
	*end = r;
}

static void gate_put(struct store *store, struct env_op *op, const char *name,
		     const struct iovec *iov, unsigned count)
{
	struct request *r = calloc(1, sizeof(*r));

	r->op = op;
	for (unsigned i = 0; i < count; i++)
		r->iov.iov_len += iov[i].iov_len;
	r->iov.iov_base = malloc(r->iov.iov_len + 1);
	for (size_t n = 0, i = 0; i < count; n += iov[i++].iov_len)
		memcpy((char *)r->iov.iov_base + n, iov[i].iov_base, iov[i].iov_len);
	gate(store, OP_PUT, r, name);
}

static void gate_get(struct store *store, struct env_op *op, const char *name, void *buf,
		     size_t length, uint64_t offset)
{
	struct request *r = calloc(1, sizeof(*r));

	*r = (struct request){.op = op, .buf = buf, .length = length, .offset = offset};
	gate(store, OP_GET, r, name);
}

static void gate_size(struct store *store, struct env_op *op, const char *name)
{
	struct request *r = calloc(1, sizeof(*r));

	r->op = op;
	gate(store, OP_SIZE, r, name);
}

static void gate_list(struct store *store, struct env_op *op, const char *prefix,
		      void (*each)(void *context, const struct store_object *object), void *context)
{
	struct request *r = calloc(1, sizeof(*r));

	*r = (struct request){.op = op, .each = each, .context = context};
	gate(store, OP_LIST, r, prefix);
}

static void gate_delete(struct store *store, struct env_op *op, const char *name)
{
	struct request *r = calloc(1, sizeof(*r));

	r->op = op;
	gate(store, OP_DELETE, r, name);
}

static void gate_close(struct store *store)
{
}

static const struct store_ops gate_ops = {
	.put = gate_put,
	.get = gate_get,
	.size = gate_size,
	.list = gate_list,
	.delete = gate_delete,
	.close = gate_close,
};

/* ---- what a request does ---------------------------------------------------------------------- */

static void view_take(struct explorer *x)
{
	struct view *v;

	if (!x->scenario->late_lists)
		return;
	if (x->view_count)
		x->views[x->view_count - 1].until_ns = env_now_ns(x->env);
	assert_true(x->view_count < VIEWS && x->m->count <= 64);
	v = &x->views[x->view_count++];
	v->until_ns = UINT64_MAX;
	v->count = x->m->count;
	for (unsigned i = 0; i < x->m->count; i++) {
		snprintf(v->names[i], sizeof(v->names[i]), "%s", x->m->objects[i].name);
		v->sizes[i] = x->m->objects[i].size;
	}
}

/* As late as a list may be. */
static int64_t list_late(struct explorer *x, struct actor *a, struct request *r)
{
	uint64_t now = env_now_ns(x->env);
	struct view *v = x->views;
	int64_t n = 0;

	while (v->until_ns != UINT64_MAX && v->until_ns + LAG_NS < now)
		v++;
	for (unsigned i = 0; i < v->count; i++) {
		struct store_object object = {.name = v->names[i], .size_bytes = v->sizes[i]};

		if (strncmp(v->names[i], r->name, strlen(r->name)))
			continue;
		a->history = mix(a->history, v->names[i], strlen(v->names[i]) + 1);
		r->each(r->context, &object);
		n++;
	}
	return n;
}

static void list_now(struct explorer *x, struct actor *a, struct request *r)
{
	for (unsigned i = 0; i < x->m->count; i++)
		if (!strncmp(x->m->objects[i].name, r->name, strlen(r->name)))
			a->history = mix(a->history, x->m->objects[i].name,
					 strlen(x->m->objects[i].name) + 1);
	memory_list(&x->m->store, r->op, r->name, r->each, r->context);
}

static void request_free(struct request *r)
{
	free(r->iov.iov_base);
	free(r);
}

static bool is_lost(struct actor *a, const struct request *r)
{
	return r->type == OP_PUT && a->fail_put_at && strstr(r->name, "/snapshots/") &&
	       !strstr(r->name, "-deleted") && !--a->fail_put_at;
}

static void let_through(struct explorer *x, struct actor *a, bool late)
{
	struct request *r = a->queue;
	int found = memory_find(x->m, r->name);

	a->queue = r->next;
	a->history = mix(a->history, r->name, strlen(r->name));
	a->history = mix(a->history, &r->type, sizeof(r->type));
	if (is_lost(a, r)) {
		complete(x->env, r->op, -ETIMEDOUT);
		r->next = NULL;
		x->ghost = r;
		return;
	}
	if (r->type != OP_LIST)
		a->history = mix(a->history, &found, found < 0 ? sizeof(found) : 0);
	switch (r->type) {
	case OP_PUT:
		memory_put(&x->m->store, r->op, r->name, &r->iov, 1);
		break;
	case OP_GET:
		memory_get(&x->m->store, r->op, r->name, r->buf, r->length, r->offset);
		break;
	case OP_SIZE:
		memory_size(&x->m->store, r->op, r->name);
		break;
	case OP_LIST:
		if (late)
			complete(x->env, r->op, list_late(x, a, r));
		else
			list_now(x, a, r);
		break;
	default:
		memory_delete(&x->m->store, r->op, r->name);
	}
	if (r->type == OP_PUT || r->type == OP_DELETE)
		view_take(x);
	request_free(r);
}

static void ghost_done(struct env_op *op, int64_t result)
{
}

static void ghost_arrives(struct explorer *x)
{
	static struct env_op op = {.done = ghost_done};

	memory_put(&x->m->store, &op, x->ghost->name, &x->ghost->iov, 1);
	request_free(x->ghost);
	x->ghost = NULL;
	view_take(x);
}

/* ---- what has to hold ------------------------------------------------------------------------- */

static void print_schedule(const struct explorer *x)
{
	print_message("%s: order:", x->scenario->name);
	for (unsigned i = 0; i < x->steps; i++)
		print_message(" %u", x->schedule[i]);
	print_message("\n");
	for (unsigned i = 0; i < x->m->count; i++)
		print_message("    %s\n", x->m->objects[i].name);
}

static bool is_marked(struct explorer *x, const struct id128 *volume, const struct snapfmt_ref *ref)
{
	char name[SNAPFMT_NAME_BYTES];

	snapfmt_mark_name(volume, ref, name);
	return memory_find(x->m, name) >= 0;
}

static void whole(struct explorer *x, const struct memory_object *o, const struct id128 *volume,
		  const struct snapfmt_ref *ref)
{
	struct manifest *manifest = NULL;
	const char *why = manifest_decode(o->data, o->size, volume, ref, &manifest);

	if (why)
		fail_msg("%s: %s", o->name, why);
	for (unsigned i = 0; i < manifest->object_count; i++) {
		char name[SNAPFMT_NAME_BYTES];

		snapfmt_name(manifest->objects[i].kind, volume, &manifest->objects[i].ref, name);
		if (memory_find(x->m, name) >= 0)
			continue;
		print_schedule(x);
		fail_msg("%s: needs %s, which is not there", o->name, name);
	}
	manifest_free(manifest);
}

static unsigned all_listed_are_whole(struct explorer *x)
{
	unsigned listed = 0;

	for (unsigned i = 0; i < x->m->count; i++) {
		enum snapfmt_kind kind;
		struct snapfmt_ref ref;
		struct id128 volume;

		if (!snapfmt_name_parse(x->m->objects[i].name, &kind, &volume, &ref) ||
		    kind != SNAPFMT_MANIFEST || is_marked(x, &volume, &ref))
			continue;
		whole(x, &x->m->objects[i], &volume, &ref);
		listed++;
	}
	return listed;
}

/* ---- which orders were tried ------------------------------------------------------------------ */

static uint64_t seen[SEEN_MAX];
static unsigned seen_count, stack_count, runs, requests;
static struct {
	uint8_t schedule[STEPS];
	unsigned given;
} stack[4096];

static bool see(uint64_t hash)
{
	size_t at = hash % SEEN_MAX;

	hash |= 1;
	while (seen[at] && seen[at] != hash)
		at = (at + 1) % SEEN_MAX;
	if (seen[at])
		return true;
	seen[at] = hash;
	assert_true(++seen_count < SEEN_MAX / 2);
	return false;
}

static uint64_t state_hash(const struct explorer *x)
{
	uint64_t hash = 14695981039346656037ull;

	if (x->switches_max) {
		hash = mix(hash, &x->last, sizeof(x->last));
		hash = mix(hash, &x->switches, sizeof(x->switches));
	}
	for (unsigned i = 0; i < x->m->count; i++)
		hash = mix(hash, x->m->objects[i].name, strlen(x->m->objects[i].name) + 1);
	for (unsigned i = 0; i < ACTORS; i++) {
		hash = mix(hash, &x->actors[i].history, sizeof(hash));
		hash = mix(hash, x->actors[i].queue ? "q" : "-", 1);
	}
	if (x->scenario->late_lists) { /* what was when matters too */
		uint64_t now = env_now_ns(x->env);

		for (unsigned i = 0; i < x->view_count; i++) {
			uint64_t age = (now - x->views[i].until_ns) / LAG_NS;

			hash = mix(hash, &age, sizeof(age));
			hash = mix(hash, &x->views[i].count, sizeof(unsigned));
		}
	}
	return mix(hash, x->ghost ? "g" : "-", 1);
}

/* Choices: 2 * actor (+ 1: a late list), 2 * ACTORS: the ghost. */
static unsigned choices(const struct explorer *x, uint8_t *to)
{
	unsigned n = 0;

	for (unsigned i = 0; i < ACTORS; i++) {
		if (!x->actors[i].queue)
			continue;
		to[n++] = (uint8_t)(2 * i);
		if (x->scenario->late_lists && x->actors[i].queue->type == OP_LIST)
			to[n++] = (uint8_t)(2 * i + 1);
	}
	if (x->ghost)
		to[n++] = 2 * ACTORS;
	return n;
}

static void branch(const struct explorer *x, uint8_t choice)
{
	assert_true(stack_count < 4096);
	memcpy(stack[stack_count].schedule, x->schedule, x->steps);
	stack[stack_count].schedule[x->steps] = choice;
	stack[stack_count++].given = x->steps + 1;
}

/* To it without leaving another one that could go on. */
static bool may_go_on(const struct explorer *x, uint8_t choice)
{
	return choice / 2 == x->last || x->last == ACTORS || !x->actors[x->last].queue;
}

static bool may_switch(const struct explorer *x, uint8_t choice)
{
	return !x->switches_max || may_go_on(x, choice) || x->switches < x->switches_max;
}

static bool step(struct explorer *x)
{
	uint8_t possible[2 * ACTORS + 1], choice;
	unsigned n;

	while (sim_step(x->sim))
		;
	n = choices(x, possible);
	if (!n)
		return false;
	assert_true(x->steps < STEPS);
	if (x->steps < x->given) {
		choice = x->schedule[x->steps];
	} else {
		choice = possible[0];
		for (unsigned i = 0; i < n; i++)
			choice = possible[i] / 2 == x->last ? possible[i] : choice;
		if (!x->known)
			x->known = see(state_hash(x));
		for (unsigned i = 0; !x->known && i < n; i++)
			if (possible[i] != choice && may_switch(x, possible[i]))
				branch(x, possible[i]);
	}
	x->switches += !may_go_on(x, choice);
	x->last = choice / 2;
	x->schedule[x->steps++] = choice;
	requests++;
	if (choice == 2 * ACTORS)
		ghost_arrives(x);
	else
		let_through(x, &x->actors[choice / 2], choice % 2);
	if (x->steps >= x->given && !x->known)
		all_listed_are_whole(x);
	return true;
}

/* ---- the world -------------------------------------------------------------------------------- */

static void drain(struct explorer *x)
{
	while (sim_step(x->sim))
		;
}

/* The actor alone, until it is done. */
static void alone(struct explorer *x, struct actor *a)
{
	drain(x);
	while (!a->waited.done) {
		assert_non_null(a->queue);
		let_through(x, a, false);
		drain(x);
	}
}

static void actor_begin(struct explorer *x, struct actor *a, const struct id128 *volume)
{
	*a = (struct actor){
		.store = {.ops = &gate_ops, .env = x->env, .url = "gate:"},
		.explorer = x,
		.used = true,
	};
	if (x->scenario->late_lists)
		a->store.list_lag_ns = LAG_NS;
	a->repo = snapshot_repo_new(&a->store, volume);
}

static void writer_begin(struct explorer *x, struct actor *a, const char *node,
			 struct volume_state *state, unsigned keep_last)
{
	struct snapshot_writer_config config = {.node_name = node, .policy = {.last = keep_last}};
	struct id128 uuid = state->uuid;

	actor_begin(x, a, &uuid);
	a->volume = fake_volume(x->env, CHUNK + 4096, 0x11);
	a->volume->state = *state;
	a->writer = snapshot_writer_new(a->volume, a->repo, &config);
}

static void write_chunk(struct volume *v, unsigned chunk, unsigned seed)
{
	uint8_t data[CHUNK] = {0};

	memset(data, (int)seed, 4096);
	fake_write(v, chunk, data);
}

static void actor_create(struct actor *a)
{
	a->waited = (struct waited){.done = false};
	snapshot_create(a->writer, "", waited_done, &a->waited);
}

static void actor_delete(struct actor *a, const struct id128 *id)
{
	snapshot_delete(a->repo, id, waited_done, &a->waited);
}

static void actor_collect(struct actor *a)
{
	a->waited = (struct waited){.done = false};
	snapshot_collect(a->repo, waited_done, &a->waited);
}

static void actor_end(struct explorer *x, struct actor *a)
{
	struct waited freed = {.done = false};

	if (!a->used)
		return;
	if (a->writer)
		snapshot_writer_free(a->writer, waited_freed, &freed);
	drain(x);
	if (a->volume)
		fake_volume_free(a->volume);
	snapshot_repo_free(a->repo);
}

static void world_new(struct explorer *x)
{
	x->sim = sim_new(2);
	x->env = sim_node(x->sim, "a");
	env_log_level(x->env, ENV_LOG_ERROR);
	x->m = memory_store(x->env);
	x->view_count = 0;
	x->ghost = NULL;
	x->steps = x->switches = 0;
	x->last = ACTORS;
	x->known = false;
	memset(x->actors, 0, sizeof(x->actors));
}

static void world_end(struct explorer *x)
{
	for (unsigned i = 0; i < ACTORS; i++)
		actor_end(x, &x->actors[i]);
	memory_close(&x->m->store);
	sim_free(x->sim);
}

/* What every run begins with: two snapshots of two chunks, which share the first. */
static void prepare(struct explorer *x)
{
	struct volume_state fresh = {.role = VOLUME_PRIMARY, .disk = VOLUME_DISK_UPTODATE};
	struct actor *a = &x->actors[0];

	memset(&fresh.uuid, 0x11, sizeof(fresh.uuid));
	world_new(x);
	writer_begin(x, a, "a", &fresh, 0);
	a->store.list_lag_ns = 0;
	write_chunk(a->volume, 0, 1);
	write_chunk(a->volume, 1, 2);
	actor_create(a);
	alone(x, a);
	x->first = a->waited.result.info.id;
	write_chunk(a->volume, 1, 3);
	actor_create(a);
	alone(x, a);
	assert_string_equal(a->waited.result.why, "");
	x->second = a->waited.result.info.id;
	x->state = a->volume->state;
	x->object_count = x->m->count;
	x->objects = calloc(x->m->count, sizeof(*x->objects));
	memcpy(x->objects, x->m->objects, x->m->count * sizeof(*x->objects));
	x->m->count = 0; /* they stay ours */
	world_end(x);
}

/* Actor 0 is who wrote them, with something new to write. */
static void world_begin(struct explorer *x)
{
	struct actor *a = &x->actors[0];

	world_new(x);
	for (unsigned i = 0; i < x->object_count; i++) {
		struct memory_object *o = &x->m->objects[x->m->count++];

		*o = x->objects[i];
		o->name = strdup(o->name);
		o->data = malloc(o->size);
		memcpy(o->data, x->objects[i].data, o->size);
	}
	writer_begin(x, a, "a", &x->state, 0);
	write_chunk(a->volume, 0, 4);
	write_chunk(a->volume, 1, 3);
	bit_assign(a->volume->dirty, 1, false); /* what is in the second's own pack is shared */
	sim_run_until(x->sim, NULL, 10 * LAG_NS);
	view_take(x);
}

/* What no snapshot needs is not there for long. */
static void nothing_is_left_over(struct explorer *x)
{
	struct volume_state state = x->actors[0].volume->state;
	struct actor last = {.used = false};
	unsigned packs, maps, manifests, objects;

	sim_run_until(x->sim, NULL, 2 * CLAIM_QUIET_NS);
	for (unsigned i = 1; i < ACTORS; i++)
		if (x->actors[i].used && x->actors[i].writer) {
			actor_collect(&x->actors[i]); /* ends what its node left */
			alone(x, &x->actors[i]);
		}
	writer_begin(x, &last, "a", &state, 1);
	last.store.list_lag_ns = 0;
	sim_run_until(x->sim, NULL, 2 * CLAIM_QUIET_NS);
	write_chunk(last.volume, 0, 9);
	write_chunk(last.volume, 1, 9);
	memset(last.volume->dirty, 255, 1);
	actor_create(&last);
	alone(x, &last);
	assert_string_equal(last.waited.result.why, "");
	assert_int_equal(all_listed_are_whole(x), 1);
	objects = x->m->count;
	memory_count(x->m, &packs, &maps, &manifests);
	if (packs != 1 || maps != 1 || manifests != 1 || objects != 3) {
		print_schedule(x);
		fail_msg("something is left over");
	}
	actor_end(x, &last);
}

static void run(struct explorer *x)
{
	world_begin(x);
	x->scenario->start(x);
	while (step(x))
		;
	for (unsigned i = 0; i < ACTORS; i++)
		assert_true(!x->actors[i].used || x->actors[i].waited.done);
	if (x->check)
		x->check(x);
	else if (runs % 16 == 0)
		nothing_is_left_over(x);
	world_end(x);
	runs++;
}

static void prepared_free(struct explorer *x)
{
	for (unsigned i = 0; i < x->object_count; i++) {
		free(x->objects[i].name);
		free(x->objects[i].data);
	}
	free(x->objects);
}

static void explore_with(const struct scenario *scenario, void (*check)(struct explorer *x))
{
	static struct explorer x;
	struct view *views = calloc(VIEWS, sizeof(*views));
	const char *text = getenv("SWITCHES");
	double from = seconds();

	x = (struct explorer){.scenario = scenario, .check = check, .views = views};
	x.switches_max = scenario->switches_max;
	if (text && x.switches_max)
		x.switches_max = (unsigned)strtoul(text, NULL, 0);
	memset(seen, 0, sizeof(seen));
	seen_count = stack_count = runs = requests = 0;
	prepare(&x);
	do {
		if (stack_count) {
			stack_count--;
			memcpy(x.schedule, stack[stack_count].schedule, STEPS);
			x.given = stack[stack_count].given;
		}
		run(&x);
	} while (stack_count);
	print_message("%s: %u states, %u runs, %u requests, %.1f s\n", scenario->name, seen_count,
		      runs, requests, seconds() - from);
	prepared_free(&x);
	free(views);
}

static void explore(const struct scenario *scenario)
{
	explore_with(scenario, NULL);
}

/* ---- scenarios -------------------------------------------------------------------------------- */

static void start_delete_base(struct explorer *x)
{
	struct id128 volume = x->actors[0].volume->state.uuid;

	actor_create(&x->actors[0]);
	actor_begin(x, &x->actors[1], &volume);
	actor_delete(&x->actors[1], &x->second);
}

/* Both snapshots there are go while a third is written that shares with the second. */
static void the_base_is_deleted(void **state)
{
	explore(&(struct scenario){"base deleted", start_delete_base, false, 0});
}

static void start_two_deleters(struct explorer *x)
{
	struct id128 volume = x->actors[0].volume->state.uuid;

	start_delete_base(x);
	actor_begin(x, &x->actors[2], &volume);
	actor_collect(&x->actors[2]);
}

static void a_deleter_and_a_collector(void **state)
{
	explore(&(struct scenario){"base deleted, another collector", start_two_deleters, false,
				   2});
}

static void start_two_writers(struct explorer *x)
{
	struct volume_state other = x->actors[0].volume->state;

	memset(&other.snapshot, 0, sizeof(other.snapshot));
	memset(&other.writer, 0, sizeof(other.writer));
	other.snapshot_sequence = 0;
	start_delete_base(x);
	writer_begin(x, &x->actors[2], "b", &other, 0);
	write_chunk(x->actors[2].volume, 0, 7);
	write_chunk(x->actors[2].volume, 1, 3);
	actor_create(&x->actors[2]);
}

static void two_writers_and_a_deleter(void **state)
{
	explore(&(struct scenario){"two writers, base deleted", start_two_writers, false, 2});
}

/* The other one has been up for long: what its own processes left would be gone. */
static void start_two_of_one_name(struct explorer *x)
{
	struct volume_state other = x->actors[0].volume->state;

	memset(&other.snapshot, 0, sizeof(other.snapshot));
	memset(&other.writer, 0, sizeof(other.writer));
	writer_begin(x, &x->actors[2], "a", &other, 0);
	sim_run_until(x->sim, NULL, 2 * CLAIM_QUIET_NS);
	start_delete_base(x);
	actor_collect(&x->actors[2]);
}

static void a_node_of_the_same_name(void **state)
{
	explore(&(struct scenario){"two nodes of one name", start_two_of_one_name, false, 2});
}

static void start_lost_answer(struct explorer *x)
{
	start_delete_base(x);
	x->actors[0].fail_put_at = 1;
}

/* The put of the manifest is given up, and arrives at any time later. */
static void a_manifest_arrives_late(void **state)
{
	explore(&(struct scenario){"manifest arrives late", start_lost_answer, false, 3});
}

static void start_late_lists(struct explorer *x)
{
	start_delete_base(x);
}

static void lists_are_late(void **state)
{
	explore(&(struct scenario){"late lists", start_late_lists, true, 2});
}

static void start_pin_by(struct explorer *x, const struct id128 *holder)
{
	const struct retention_policy policy = {.last = 1};
	struct id128 volume = x->actors[0].volume->state.uuid;

	x->actors[0].waited.done = true;
	for (unsigned i = 1; i < ACTORS; i++)
		actor_begin(x, &x->actors[i], &volume);
	snapshot_pin(x->actors[1].repo, &x->first, holder, waited_done, &x->actors[1].waited);
	snapshot_forget(x->actors[2].repo, &policy, false, NULL, waited_done, &x->actors[2].waited);
	actor_delete(&x->actors[3], &x->first);
}

static void start_pin(struct explorer *x)
{
	start_pin_by(x, NULL);
}

static void start_pin_of_a_restore(struct explorer *x)
{
	start_pin_by(x, &(const struct id128){{1}});
}

/* Whether listed or not: who pinned it goes on reading. */
static void check_pin(struct explorer *x)
{
	for (unsigned i = 0; i < x->m->count; i++) {
		enum snapfmt_kind kind;
		struct snapfmt_ref ref;
		struct id128 volume;

		if (!snapfmt_name_parse(x->m->objects[i].name, &kind, &volume, &ref) ||
		    kind != SNAPFMT_MANIFEST || !id128_equal(&ref.snapshot, &x->first))
			continue;
		whole(x, &x->m->objects[i], &volume, &ref);
		return;
	}
	if (x->actors[1].waited.result.error == 0) {
		print_schedule(x);
		fail_msg("what was pinned is deleted");
	}
}

static void what_is_pinned_stays(void **state)
{
	explore_with(&(struct scenario){"pinned, pruned, deleted", start_pin, false, 2}, check_pin);
	explore_with(&(struct scenario){"pinned by a restore, pruned, deleted",
					start_pin_of_a_restore, false, 2},
		     check_pin);
}

/* The node's clock is set right while it writes: its claim looks like one of two months ago. */
static void a_claim_of_a_wrong_clock(void **state)
{
	static struct explorer x;
	static const struct scenario scenario = {.name = "wrong clock"};
	const int64_t months = 60 * 24 * (int64_t)CLAIM_HOUR_NS;
	unsigned at = 0, seen_wrong = 0;

	x = (struct explorer){.scenario = &scenario};
	prepare(&x);
	for (bool over = false; !over; at++) {
		struct actor *a = &x.actors[0], *b = &x.actors[1];

		world_begin(&x);
		sim_clock_jump(x.sim, x.env, -months);
		actor_create(a);
		drain(&x);
		for (unsigned i = 0; i < at && !a->waited.done; i++) {
			let_through(&x, a, false);
			drain(&x);
		}
		over = a->waited.done;
		sim_clock_jump(x.sim, x.env, months);
		actor_begin(&x, b, &a->repo->volume);
		actor_collect(b);
		alone(&x, b);
		alone(&x, a);
		seen_wrong += b->waited.result.deleted_objects > 0;
		assert_string_equal(a->waited.result.why, "");
		assert_int_equal(all_listed_are_whole(&x), 3);
		world_end(&x);
	}
	assert_true(seen_wrong > 0);
	prepared_free(&x);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_base_is_deleted),
		cmocka_unit_test(a_deleter_and_a_collector),
		cmocka_unit_test(two_writers_and_a_deleter),
		cmocka_unit_test(a_node_of_the_same_name),
		cmocka_unit_test(a_manifest_arrives_late),
		cmocka_unit_test(lists_are_late),
		cmocka_unit_test(what_is_pinned_stays),
		cmocka_unit_test(a_claim_of_a_wrong_clock),
	};

	/* The same few MiB are had and given back in each run. */
	mallopt(M_MMAP_THRESHOLD, 64 << 20);
	mallopt(M_TRIM_THRESHOLD, 512 << 20);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
