// SPDX-License-Identifier: Apache-2.0
/*
 * The core of the simulator: the clock, the queue of events, nodes and their crashes, timers,
 * tasks, work, the log. Disk: env_sim_disk.c, network: env_sim_net.c, stores: store_sim.c.
 */
#include "tests/sim/env_sim_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

void *sim_alloc(size_t size)
{
	void *p = calloc(1, size > 0 ? size : 1);

	if (p == NULL)
		abort();
	return p;
}

/* ---- randomness: splitmix64 ------------------------------------------------------------------ */

uint64_t sim_random(struct sim *sim, uint64_t limit)
{
	uint64_t z = sim->random_state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	z ^= z >> 31;
	return limit > 0 ? z % limit : z;
}

uint64_t sim_between(struct sim *sim, uint64_t low, uint64_t high)
{
	return high > low ? low + sim_random(sim, high - low + 1) : low;
}

bool sim_chance(struct sim *sim, uint32_t ppm)
{
	return ppm > 0 && sim_random(sim, 1000000) < ppm;
}

/* ---- events: a binary heap by (when, order) ---------------------------------------------------- */

static bool event_before(const struct sim_event *a, const struct sim_event *b)
{
	return a->when_ns != b->when_ns ? a->when_ns < b->when_ns : a->order < b->order;
}

static void heap_put(struct sim *sim, uint32_t i, struct sim_event *event)
{
	sim->heap[i] = event;
	event->heap_index = i + 1;
}

static void heap_up(struct sim *sim, uint32_t i)
{
	struct sim_event *event = sim->heap[i];

	while (i > 0 && event_before(event, sim->heap[(i - 1) / 2])) {
		heap_put(sim, i, sim->heap[(i - 1) / 2]);
		i = (i - 1) / 2;
	}
	heap_put(sim, i, event);
}

static void heap_down(struct sim *sim, uint32_t i)
{
	struct sim_event *event = sim->heap[i];

	for (;;) {
		uint32_t child = 2 * i + 1;

		if (child >= sim->heap_count)
			break;
		if (child + 1 < sim->heap_count &&
		    event_before(sim->heap[child + 1], sim->heap[child]))
			child++;
		if (!event_before(sim->heap[child], event))
			break;
		heap_put(sim, i, sim->heap[child]);
		i = child;
	}
	heap_put(sim, i, event);
}

void sim_event_add(struct sim *sim, struct sim_event *event, struct sim_env *owner,
		   uint64_t delay_ns)
{
	event->when_ns = sim->now_ns + delay_ns;
	event->order = sim_random(sim, 0);
	event->owner = owner;
	if (owner != NULL) {
		event->next = owner->events;
		event->previous = &owner->events;
		if (event->next != NULL)
			event->next->previous = &event->next;
		owner->events = event;
	}
	if (sim->heap_count == sim->heap_room) {
		sim->heap_room = sim->heap_room > 0 ? 2 * sim->heap_room : 64;
		sim->heap = realloc(sim->heap, sim->heap_room * sizeof(sim->heap[0]));
		if (sim->heap == NULL)
			abort();
	}
	sim->heap[sim->heap_count] = event;
	heap_up(sim, sim->heap_count++);
}

void sim_event_remove(struct sim *sim, struct sim_event *event)
{
	uint32_t i = event->heap_index - 1;
	struct sim_event *last;

	assert(event->heap_index > 0 && sim->heap[i] == event);
	last = sim->heap[--sim->heap_count];
	if (last != event) {
		heap_put(sim, i, last);
		heap_up(sim, i);
		heap_down(sim, last->heap_index - 1);
	}
	event->heap_index = 0;
	if (event->owner != NULL) {
		*event->previous = event->next;
		if (event->next != NULL)
			event->next->previous = event->previous;
	}
}

struct completion {
	struct sim_event event;
	struct env_op *op;
	int64_t result;
};

static void completion_fire(struct sim_event *event)
{
	struct completion *completion = (struct completion *)event;
	struct env_op *op = completion->op;
	int64_t result = completion->result;

	free(completion);
	op->done(op, result);
}

static void event_drop_free(struct sim_event *event, bool power)
{
	free(event);
}

void sim_complete(struct sim_env *env, struct env_op *op, int64_t result, uint64_t delay_ns)
{
	struct completion *completion = sim_alloc(sizeof(*completion));

	completion->event.fire = completion_fire;
	completion->event.drop = event_drop_free;
	completion->op = op;
	completion->result = result;
	sim_event_add(env->sim, &completion->event, env, delay_ns);
}

/* ---- timers: a binary heap for each incarnation, as heap_index stands in struct env_timer ------ */

static void timer_put(struct sim_env *env, uint32_t i, struct env_timer *timer)
{
	env->timers[i] = timer;
	timer->heap_index = i + 1;
}

static void timer_up(struct sim_env *env, uint32_t i)
{
	struct env_timer *timer = env->timers[i];

	while (i > 0 && timer->when_ns < env->timers[(i - 1) / 2]->when_ns) {
		timer_put(env, i, env->timers[(i - 1) / 2]);
		i = (i - 1) / 2;
	}
	timer_put(env, i, timer);
}

static void timer_down(struct sim_env *env, uint32_t i)
{
	struct env_timer *timer = env->timers[i];

	for (;;) {
		uint32_t child = 2 * i + 1;

		if (child >= env->timer_count)
			break;
		if (child + 1 < env->timer_count &&
		    env->timers[child + 1]->when_ns < env->timers[child]->when_ns)
			child++;
		if (env->timers[child]->when_ns >= timer->when_ns)
			break;
		timer_put(env, i, env->timers[child]);
		i = child;
	}
	timer_put(env, i, timer);
}

static void timer_stop(struct env *e, struct env_timer *timer)
{
	struct sim_env *env = sim_env_of(e);
	uint32_t i = timer->heap_index - 1;
	struct env_timer *last;

	if (env->dead || timer->heap_index == 0)
		return;
	assert(i < env->timer_count && env->timers[i] == timer);
	last = env->timers[--env->timer_count];
	if (last != timer) {
		timer_put(env, i, last);
		timer_up(env, i);
		timer_down(env, last->heap_index - 1);
	}
	timer->heap_index = 0;
}

static void timer_start(struct env *e, struct env_timer *timer, uint64_t delay_ns)
{
	struct sim_env *env = sim_env_of(e);

	if (env->dead)
		return;
	timer_stop(e, timer);
	timer->when_ns = env->sim->now_ns + delay_ns;
	if (sim_random(env->sim, 4) == 0)
		timer->when_ns += sim_random(env->sim, SIM_MS); /* fires "no earlier than" */
	if (env->timer_count == env->timer_room) {
		env->timer_room = env->timer_room > 0 ? 2 * env->timer_room : 16;
		env->timers = realloc(env->timers, env->timer_room * sizeof(struct env_timer *));
		if (env->timers == NULL)
			abort();
	}
	env->timers[env->timer_count] = timer;
	timer_up(env, env->timer_count++);
}

/* ---- tasks and work ----------------------------------------------------------------------------- */

static void turn_fire(struct sim_event *event)
{
	struct sim_env *env = event->owner;
	struct env_task *task;
	unsigned count = 0;

	free(event);
	env->turn = NULL;
	/* What these tasks defer belongs to the next turn, which defer() queues if the list is
	 * not empty after this one. */
	for (task = env->tasks; task != NULL; task = task->next)
		count++;
	while (!env->dead && count-- > 0 && env->tasks != NULL) {
		task = env->tasks;
		env->tasks = task->next;
		if (env->tasks == NULL)
			env->tasks_end = &env->tasks;
		task->queued = false;
		task->next = NULL;
		task->call(task);
	}
}

static void defer(struct env *e, struct env_task *task)
{
	struct sim_env *env = sim_env_of(e);

	if (env->dead || task->queued)
		return;
	task->queued = true;
	task->next = NULL;
	*env->tasks_end = task;
	env->tasks_end = &task->next;
	if (env->turn == NULL) {
		env->turn = sim_alloc(sizeof(*env->turn));
		env->turn->fire = turn_fire;
		env->turn->drop = event_drop_free;
		sim_event_add(env->sim, env->turn, env,
			      sim_random(env->sim, 2) ? sim_random(env->sim, 30 * SIM_US) : 0);
	}
}

static void defer_cancel(struct env *e, struct env_task *task)
{
	struct sim_env *env = sim_env_of(e);

	if (env->dead || !task->queued)
		return;
	for (struct env_task **p = &env->tasks; *p != NULL; p = &(*p)->next) {
		if (*p != task)
			continue;
		*p = task->next;
		if (env->tasks_end == &task->next)
			env->tasks_end = p;
		break;
	}
	task->queued = false;
	task->next = NULL;
}

struct work_event {
	struct sim_event event;
	struct env_work *work;
	bool ran;
};

static void work_fire(struct sim_event *event)
{
	struct work_event *w = (struct work_event *)event;
	struct env_work *work = w->work;

	if (!w->ran)
		work->run(work);
	free(w);
	work->done(work);
}

static void work_submit(struct env *e, struct env_work *work)
{
	struct sim_env *env = sim_env_of(e);
	struct work_event *w;

	if (env->dead)
		return;
	w = sim_alloc(sizeof(*w));
	w->event.fire = work_fire;
	w->event.drop = event_drop_free;
	w->work = work;
	w->ran = sim_random(env->sim, 2);
	if (w->ran)
		work->run(work);
	sim_event_add(env->sim, &w->event, env, sim_between(env->sim, SIM_US, SIM_MS));
}

/* ---- time, randomness, log ----------------------------------------------------------------------- */

static uint64_t now_ns(struct env *e)
{
	return sim_env_of(e)->sim->now_ns;
}

static uint64_t realtime_ns(struct env *e)
{
	struct sim_env *env = sim_env_of(e);

	return env->sim->realtime_offset_ns + env->machine->clock_ns + env->sim->now_ns;
}

static void random_bytes(struct env *e, void *buf, size_t length_bytes)
{
	uint8_t *p = buf;

	while (length_bytes > 0) {
		uint64_t r = sim_random(sim_env_of(e)->sim, 0);
		size_t n = length_bytes < sizeof(r) ? length_bytes : sizeof(r);

		memcpy(p, &r, n);
		p += n;
		length_bytes -= n;
	}
}

static void log_line(struct sim *sim, const char *who, const char *format, va_list args)
{
	char line[512];
	int n = snprintf(line, sizeof(line), "%9llu.%06llu %-10s ",
			 (unsigned long long)(sim->now_ns / SIM_MS),
			 (unsigned long long)(sim->now_ns % SIM_MS), who);

	vsnprintf(line + n, sizeof(line) - (size_t)n, format, args);
	if (sim->trace != NULL) {
		fprintf(sim->trace, "%s\n", line);
		return;
	}
	free(sim->log[sim->log_next]);
	sim->log[sim->log_next] = strdup(line);
	sim->log_next = (sim->log_next + 1) % SIM_LOG_LINES;
}

static void env_log_out(struct env *e, enum env_log_level level, const char *format, va_list args)
{
	struct sim_env *env = sim_env_of(e);

	if (env->dead || (level > env->log_level && env->sim->trace == NULL))
		return;
	log_line(env->sim, env->machine->name, format, args);
}

static void log_level_set(struct env *e, enum env_log_level max)
{
	sim_env_of(e)->log_level = max;
}

void sim_note(struct sim *sim, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	log_line(sim, "*", format, args);
	va_end(args);
}

void sim_trace(struct sim *sim, FILE *out)
{
	sim->trace = out;
}

void sim_print_log(struct sim *sim, FILE *out)
{
	for (unsigned i = 0; i < SIM_LOG_LINES; i++) {
		const char *line = sim->log[(sim->log_next + i) % SIM_LOG_LINES];

		if (line != NULL)
			fprintf(out, "%s\n", line);
	}
}

/* ---- running --------------------------------------------------------------------------------------- */

bool sim_step(struct sim *sim)
{
	struct sim_event *event = sim->heap_count > 0 ? sim->heap[0] : NULL;
	struct sim_env *who = NULL;

	for (struct sim_env *env = sim->envs; env != NULL; env = env->next)
		if (!env->dead && env->timer_count > 0 &&
		    (who == NULL || env->timers[0]->when_ns < who->timers[0]->when_ns))
			who = env;
	if (who != NULL && (event == NULL || who->timers[0]->when_ns < event->when_ns)) {
		struct env_timer *timer = who->timers[0];

		if (timer->when_ns > sim->now_ns)
			sim->now_ns = timer->when_ns;
		timer_stop(&who->env, timer);
		timer->fire(timer);
		return true;
	}
	if (event == NULL)
		return false;
	if (event->when_ns > sim->now_ns)
		sim->now_ns = event->when_ns;
	sim_event_remove(sim, event);
	event->fire(event);
	return true;
}

static uint64_t next_when(const struct sim *sim)
{
	uint64_t when = sim->heap_count > 0 ? sim->heap[0]->when_ns : UINT64_MAX;

	for (struct sim_env *env = sim->envs; env != NULL; env = env->next)
		if (!env->dead && env->timer_count > 0 && env->timers[0]->when_ns < when)
			when = env->timers[0]->when_ns;
	return when;
}

bool sim_run_until(struct sim *sim, const bool *flag, uint64_t max_ns)
{
	uint64_t end = sim->now_ns + max_ns;

	while (flag == NULL || !*flag) {
		if (next_when(sim) > end) {
			sim->now_ns = end;
			break;
		}
		if (!sim_step(sim))
			break;
	}
	return flag != NULL && *flag;
}

static void run_until(struct env *e, const bool *flag)
{
	struct sim_env *env = sim_env_of(e);

	while (!*flag && !env->dead && sim_step(env->sim))
		;
	assert(*flag || env->dead); /* else it would wait for ever */
}

static void stop(struct env *e)
{
	sim_env_of(e)->stopped = true;
}

static void run(struct env *e)
{
	struct sim_env *env = sim_env_of(e);

	env->stopped = false;
	while (!env->stopped && !env->dead && sim_step(env->sim))
		;
}

/* ---- nodes and crashes ------------------------------------------------------------------------------- */

/* The process ends: its sockets, files, events go; what it did stays. */
static void process_end(struct sim_env *env, bool power)
{
	env->dead = true;
	env->machine->up = NULL;
	while (env->events != NULL) {
		struct sim_event *event = env->events;

		sim_event_remove(env->sim, event);
		event->drop(event, power);
	}
	env->turn = NULL;
	env->tasks = NULL;
	env->tasks_end = &env->tasks;
	env->timer_count = 0; /* the timers' own memory belongs to what is gone */
	sim_disk_env_gone(env);
	sim_net_env_gone(env, power);
}

static void env_end(struct env *e)
{
	struct sim_env *env = sim_env_of(e);

	if (env->dead)
		return;
	assert(env->files == NULL);
	process_end(env, false);
}

void sim_crash(struct sim *sim, struct env *e, enum sim_crash mode)
{
	struct sim_env *env = sim_env_of(e);

	assert(!env->dead);
	sim_note(sim, "crash of %s (mode %d) after %llu file operations", env->machine->name, mode,
		 (unsigned long long)env->ios);
	process_end(env, mode != SIM_CRASH_KILL);
	sim_disk_crash(sim, env->machine->disk, mode);
}

void sim_crash_after_ios(struct sim *sim, struct env *e, uint64_t k, enum sim_crash mode)
{
	struct sim_env *env = sim_env_of(e);

	env->crash_at_io = k > 0 ? env->ios + k : 0;
	env->crash_mode = mode;
}

void sim_clock_jump(struct sim *sim, struct env *e, int64_t by_ns)
{
	sim_env_of(e)->machine->clock_ns += (uint64_t)by_ns;
	sim_note(sim, "the clock of %s jumps by %.3f s", sim_env_of(e)->machine->name,
		 (double)by_ns / 1e9);
}

bool sim_io(struct sim_env *env)
{
	if (env->dead)
		return false;
	env->ios++;
	if (env->crash_at_io == env->ios) {
		sim_crash(env->sim, &env->env, env->crash_mode);
		return false;
	}
	return true;
}

bool sim_node_dead(const struct env *env)
{
	return sim_env_of(env)->dead;
}

const char *sim_node_name(const struct env *env)
{
	return sim_env_of(env)->machine->name;
}

uint64_t sim_node_ios(const struct env *env)
{
	return sim_env_of(env)->ios;
}

static struct env *incarnation_new(struct sim *sim, struct sim_machine *machine)
{
	struct sim_env *env = sim_alloc(sizeof(*env));

	assert(machine->up == NULL);
	env->env.ops = &sim->ops;
	env->sim = sim;
	env->machine = machine;
	env->log_level = ENV_LOG_INFO;
	env->tasks_end = &env->tasks;
	env->next = sim->envs;
	sim->envs = env;
	machine->up = env;
	return &env->env;
}

static struct sim_machine *machine_new(struct sim *sim, const char *name, struct sim_disk *disk)
{
	struct sim_machine *machine = sim_alloc(sizeof(*machine));

	assert(strlen(name) < sizeof(machine->name));
	for (struct sim_machine *m = sim->machines; m != NULL; m = m->next)
		assert(strcmp(m->name, name) != 0);
	strcpy(machine->name, name);
	machine->disk = disk;
	machine->next_port = 40000;
	machine->next = sim->machines;
	sim->machines = machine;
	return machine;
}

struct env *sim_node(struct sim *sim, const char *name)
{
	return incarnation_new(sim, machine_new(sim, name, sim_disk_new(sim)));
}

struct env *sim_node_copy(struct sim *sim, const char *name, struct env *from, enum sim_crash mode)
{
	struct sim_env *source = sim_env_of(from);
	struct sim_disk *disk = sim_disk_copy(sim, source->machine->disk);

	if (!source->dead) {
		sim_disk_under_way(sim, source, disk);
		sim_disk_crash(sim, disk, mode);
	}
	return incarnation_new(sim, machine_new(sim, name, disk));
}

struct env *sim_restart(struct sim *sim, struct env *dead)
{
	struct sim_env *old = sim_env_of(dead);
	struct env *env;

	assert(old->dead && old->machine->up == NULL);
	sim_disk_reopen(sim, old->machine->disk);
	env = incarnation_new(sim, old->machine);
	sim_note(sim, "restart of %s", old->machine->name);
	sim_net_machine_up(old->machine, sim);
	return env;
}

void sim_disk_lose(struct env *dead)
{
	struct sim_env *env = sim_env_of(dead);
	struct sim_disk *disk = sim_disk_new(env->sim);
	struct sim_disk_options options;

	assert(env->dead);
	sim_disk_get(dead, &options);
	sim_disk_free(env->machine->disk);
	env->machine->disk = disk;
	sim_disk_set(dead, &options);
}

/* ---- the world ------------------------------------------------------------------------------------------ */

static const struct env_ops core_ops = {
	.name = "simulator",
	.free = env_end,
	.run_until = run_until,
	.stop = stop,
	.run = run,
	.now_ns = now_ns,
	.realtime_ns = realtime_ns,
	.random = random_bytes,
	.timer_start = timer_start,
	.timer_stop = timer_stop,
	.defer = defer,
	.defer_cancel = defer_cancel,
	.post = defer,
	.work_submit = work_submit,
	.log = env_log_out,
	.log_level = log_level_set,
	.store_open = sim_store_open,
};

struct sim *sim_new(uint64_t seed)
{
	struct sim *sim = sim_alloc(sizeof(*sim));

	sim->ops = core_ops;
	sim_disk_ops(&sim->ops);
	sim_net_ops(&sim->ops);
	sim->random_state = seed * UINT64_C(0xd1342543de82ef95) + 1;
	sim->now_ns = SIM_S;
	sim->realtime_offset_ns = UINT64_C(1700000000) * SIM_S + sim_random(sim, SIM_S);
	sim->net.latency_min_ns = 20 * SIM_US;
	sim->net.latency_max_ns = sim_between(sim, 50 * SIM_US, 5 * SIM_MS);
	sim->net.bytes_per_second = sim_between(sim, 10, 1000) * 1000 * 1000;
	sim->net.window_bytes = (uint32_t)sim_between(sim, 4096, 1024 * 1024);
	return sim;
}

void sim_free(struct sim *sim)
{
	if (sim == NULL)
		return;
	for (struct sim_env *env = sim->envs; env != NULL; env = env->next)
		if (!env->dead)
			process_end(env, false);
	while (sim->heap_count > 0) {
		struct sim_event *event = sim->heap[0];

		sim_event_remove(sim, event);
		event->drop(event, false);
	}
	while (sim->envs != NULL) {
		struct sim_env *env = sim->envs;

		sim->envs = env->next;
		sim_net_env_free(env);
		free(env->timers);
		free(env);
	}
	while (sim->machines != NULL) {
		struct sim_machine *machine = sim->machines;

		sim->machines = machine->next;
		sim_disk_free(machine->disk);
		free(machine);
	}
	while (sim->blocks != NULL) {
		struct sim_block_rule *rule = sim->blocks;

		sim->blocks = rule->next;
		free(rule);
	}
	sim_stores_free(sim);
	for (unsigned i = 0; i < SIM_LOG_LINES; i++)
		free(sim->log[i]);
	free(sim->heap);
	free(sim);
}

uint64_t sim_now_ns(const struct sim *sim)
{
	return sim->now_ns;
}
