/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop on both real backends: clock, timers, deferred and posted calls, helper threads.
 */
#include "tests/unit/io_harness.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define MS 1000000ull

static uint64_t clock_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- timers ---- */

struct ticker {
	struct env_timer timer;
	struct env *env;
	uint64_t started_ns, begun_ns, delay_ns; /* it was started between those two */
	unsigned *clock, order, fired;
	struct ticker *stops;
	unsigned again;
	bool done;
};

static void tick(struct env_timer *timer)
{
	struct ticker *ticker = (struct ticker *)timer;

	assert_false(env_timer_active(timer));
	assert_true(clock_now_ns() - ticker->started_ns >= ticker->delay_ns);
	ticker->fired++;
	ticker->order = ++*ticker->clock;
	if (ticker->stops)
		env_timer_stop(ticker->env, &ticker->stops->timer);
	if (ticker->again > 0) {
		ticker->again--;
		ticker->started_ns = clock_now_ns();
		env_timer_start(ticker->env, timer, 0);
		assert_true(env_timer_active(timer));
		return;
	}
	ticker->done = true;
}

static void start_ticker(struct world *world, struct ticker *ticker, unsigned *clock,
			 uint64_t delay_ns)
{
	*ticker = (struct ticker){.timer.fire = tick,
				  .env = world->env,
				  .delay_ns = delay_ns,
				  .clock = clock,
				  .started_ns = clock_now_ns()};
	env_timer_start(world->env, &ticker->timer, delay_ns);
	ticker->begun_ns = clock_now_ns();
}

/* Also if this thread stood still between two starts. */
static bool is_due_before(const struct ticker *a, const struct ticker *b)
{
	return a->begun_ns + a->delay_ns < b->started_ns + b->delay_ns;
}

static void test_timer_order(struct world *world)
{
	static const unsigned delays_ms[] = {30, 5, 20, 1, 25, 10, 15};
	enum { COUNT = sizeof(delays_ms) / sizeof(delays_ms[0]) };
	struct ticker tickers[COUNT];
	unsigned clock = 0;

	for (unsigned i = 0; i < COUNT; i++)
		start_ticker(world, &tickers[i], &clock, delays_ms[i] * MS);
	for (unsigned i = 0; i < COUNT; i++)
		if (!tickers[i].done)
			env_run_until(world->env, &tickers[i].done);
	assert_int_equal(clock, COUNT);
	for (unsigned i = 0; i < COUNT; i++)
		for (unsigned j = 0; j < COUNT; j++)
			if (is_due_before(&tickers[i], &tickers[j]))
				assert_true(tickers[i].order < tickers[j].order);
}

static void test_timer_stop(struct world *world)
{
	struct ticker first, second, last;
	unsigned clock = 0;

	start_ticker(world, &first, &clock, 1 * MS);
	first.stops = &second;
	env_timer_stop(world->env, &first.timer);
	env_timer_stop(world->env, &first.timer); /* twice is nothing */
	assert_false(env_timer_active(&first.timer));
	env_timer_start(world->env, &first.timer, 1 * MS);
	start_ticker(world, &second, &clock, 2 * MS);
	start_ticker(world, &last, &clock, 10 * MS);
	env_run_until(world->env, &last.done);
	assert_int_equal(first.fired, 1);
	assert_int_equal(second.fired, 0);
}

static void test_timer_restart(struct world *world)
{
	struct ticker early, late, again;
	unsigned clock = 0;

	start_ticker(world, &early, &clock, 2 * MS);
	start_ticker(world, &late, &clock, 3600000 * MS);
	start_ticker(world, &again, &clock, 1 * MS);
	again.again = 1000;
	again.delay_ns = 0;
	env_timer_start(world->env, &late.timer, 5 * MS);   /* brought forward */
	env_timer_start(world->env, &early.timer, 20 * MS); /* put off */
	late.delay_ns = 5 * MS;
	env_run_until(world->env, &early.done);
	assert_int_equal(early.fired, 1);
	assert_true(late.order < early.order);
	if (!again.done)
		env_run_until(world->env, &again.done);
	assert_int_equal(again.fired, 1001);
}

static void test_timer_random(struct world *world)
{
	enum { COUNT = 500 };
	struct ticker *tickers = calloc(COUNT, sizeof(*tickers));
	unsigned clock = 0, live = 0;

	srand(7);
	for (unsigned i = 0; i < COUNT; i++)
		start_ticker(world, &tickers[i], &clock, (uint64_t)(rand() % 20) * MS);
	for (unsigned i = 0; i < COUNT; i += 3)
		env_timer_stop(world->env, &tickers[i].timer);
	for (unsigned i = 0; i < COUNT; i++)
		live += env_timer_active(&tickers[i].timer);
	for (unsigned i = 0; i < COUNT; i++)
		if (i % 3 != 0)
			env_run_until(world->env, &tickers[i].done);
	assert_int_equal(clock, live);
	free(tickers);
}

/* ---- deferred calls ---- */

struct step {
	struct env_task task;
	struct env *env;
	unsigned calls, again;
	struct step *cancels;
	uint64_t called_ns; /* env_now_ns() */
	bool done;
};

static void take_step(struct env_task *task)
{
	struct step *step = (struct step *)task;

	step->calls++;
	step->called_ns = env_now_ns(step->env);
	if (step->cancels)
		env_defer_cancel(step->env, &step->cancels->task);
	if (step->again > 0) {
		step->again--;
		env_defer(step->env, task);
		return;
	}
	step->done = true;
}

static void test_defer(struct world *world)
{
	struct step a = {.task.call = take_step, .env = world->env}, b = a, c = a, d = a;

	a.cancels = &b;
	env_defer(world->env, &a.task);
	env_defer(world->env, &a.task); /* stays queued once */
	env_defer(world->env, &b.task);
	env_defer(world->env, &c.task);
	env_defer(world->env, &d.task);
	env_defer_cancel(world->env, &d.task);
	env_defer_cancel(world->env, &d.task); /* twice is nothing */
	env_run_until(world->env, &c.done);
	assert_int_equal(a.calls, 1);
	assert_int_equal(b.calls, 0);
	assert_int_equal(d.calls, 0);
	env_defer(world->env, &d.task);
	env_run_until(world->env, &d.done);
	assert_int_equal(d.calls, 1);
}

/* A task that defers itself for ever starves nobody: a timer fires between. */
static void test_defer_no_starvation(struct world *world)
{
	struct step step = {.task.call = take_step, .env = world->env, .again = UINT32_MAX};
	struct ticker ticker;
	unsigned clock = 0;
	uint64_t before_ns = clock_now_ns();

	env_defer(world->env, &step.task);
	start_ticker(world, &ticker, &clock, 5 * MS);
	env_run_until(world->env, &ticker.done);
	assert_true(step.calls > 10); /* and there was no waiting either */
	assert_true(clock_now_ns() - before_ns < 5000 * MS);
	env_defer_cancel(world->env, &step.task);
}

struct defer_in_done {
	struct waited waited;
	struct env *env;
	struct step *step;
	uint64_t done_ns;
};

static void defer_in_done(struct env_op *op, int64_t result)
{
	struct defer_in_done *d = (struct defer_in_done *)op;

	d->done_ns = env_now_ns(d->env);
	env_defer(d->env, &d->step->task);
	d->waited.done = true;
}

/* The clock stands still from a completion to the tasks it defers: they are of the same turn. */
static void test_defer_same_turn(struct world *world)
{
	struct step step = {.task.call = take_step, .env = world->env};
	struct defer_in_done d = {
		.waited.op.done = defer_in_done, .env = world->env, .step = &step};
	struct env_sock *sock;

	env_connect(world->env, &d.waited.op, "nonsense", &sock);
	assert_false(d.waited.done);
	env_run_until(world->env, &d.waited.done);
	assert_true(step.done);
	assert_true(step.called_ns == d.done_ns);
}

/* ---- posted calls, helper threads ---- */

enum { THREADS = 4, POSTS = 5000 };

struct poster {
	struct env *env;
	struct env_task task;
	pthread_t thread;
	atomic_uint posted; /* by the thread */
	unsigned called;    /* on the loop */
	atomic_bool free;   /* the task may be posted again */
	bool done;
};

static void posted(struct env_task *task)
{
	struct poster *poster = (struct poster *)((char *)task - offsetof(struct poster, task));

	poster->called++;
	poster->done = poster->called == POSTS;
	atomic_store(&poster->free, true);
}

static void *poster_main(void *context)
{
	struct poster *poster = context;

	for (unsigned i = 0; i < POSTS; i++) {
		while (!atomic_exchange(&poster->free, false))
			sched_yield();
		env_post(poster->env, &poster->task);
	}
	return NULL;
}

static void test_post(struct world *world)
{
	struct poster posters[THREADS];

	for (unsigned i = 0; i < THREADS; i++) {
		posters[i] = (struct poster){.env = world->env, .task.call = posted, .free = true};
		assert_int_equal(pthread_create(&posters[i].thread, NULL, poster_main, &posters[i]),
				 0);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		env_run_until(world->env, &posters[i].done);
		pthread_join(posters[i].thread, NULL);
		assert_int_equal(posters[i].called, POSTS);
	}
}

struct job {
	struct env_work work;
	pthread_t ran_on, loop;
	unsigned *finished;
	unsigned value;
	bool done;
};

static void job_run(struct env_work *work)
{
	struct job *job = (struct job *)work;

	job->ran_on = pthread_self();
	job->value *= 2;
}

static void job_done(struct env_work *work)
{
	struct job *job = (struct job *)work;

	assert_true(pthread_equal(pthread_self(), job->loop));
	assert_false(pthread_equal(job->ran_on, job->loop));
	++*job->finished;
	job->done = true;
}

static void test_work(struct world *world)
{
	enum { JOBS = 1000 };
	struct job *jobs = calloc(JOBS, sizeof(*jobs));
	unsigned finished = 0;

	for (unsigned i = 0; i < JOBS; i++) {
		jobs[i] = (struct job){.work = {.run = job_run, .done = job_done},
				       .loop = pthread_self(),
				       .finished = &finished,
				       .value = i};
		env_work_submit(world->env, &jobs[i].work);
	}
	assert_int_equal(finished, 0);
	for (unsigned i = 0; i < JOBS; i++) {
		env_run_until(world->env, &jobs[i].done);
		assert_int_equal(jobs[i].value, 2 * i);
	}
	assert_int_equal(finished, JOBS);
	free(jobs);
}

/* ---- run and stop, clock, randomness ---- */

struct stopper {
	struct env_timer timer;
	struct env *env;
};

static void stop_it(struct env_timer *timer)
{
	env_stop(((struct stopper *)timer)->env);
}

static void test_stop(struct world *world)
{
	struct stopper stopper = {.timer.fire = stop_it, .env = world->env};

	env_timer_start(world->env, &stopper.timer, 1 * MS);
	env_run(world->env);
	assert_false(env_timer_active(&stopper.timer));
	env_timer_start(world->env, &stopper.timer, 1 * MS);
	env_run(world->env); /* and again */
	env_stop(world->env);
	env_run(world->env); /* stopped before it began */
}

static void test_clock(struct world *world)
{
	uint64_t before_ns = clock_now_ns(), now_ns = env_now_ns(world->env);
	uint8_t a[64] = {0}, b[64] = {0};

	assert_true(now_ns >= before_ns && now_ns <= clock_now_ns());
	uint64_t second = (uint64_t)time(NULL),
		 realtime = env_realtime_ns(world->env) / 1000000000u;
	assert_in_range(realtime, second - 1, (uint64_t)time(NULL) + 1);
	env_random(world->env, a, sizeof(a));
	env_random(world->env, b, sizeof(b));
	assert_memory_not_equal(a, b, sizeof(a));
	assert_string_equal(env_backend_name(world->env),
			    world->backend == ENV_BACKEND_URING ? "io_uring" : "libaio");
}

static void test_log(struct world *world)
{
	int pipes[2], kept = dup(STDERR_FILENO);
	char line[2048] = {0};
	ssize_t got;

	assert_int_equal(pipe(pipes), 0);
	dup2(pipes[1], STDERR_FILENO);
	env_log(world->env, ENV_LOG_DEBUG, "hidden");
	env_log(world->env, ENV_LOG_WARNING, "a: %d\nforged \033[1m", 5);
	env_log_level(world->env, ENV_LOG_DEBUG);
	env_log(world->env, ENV_LOG_DEBUG, "shown");
	dup2(kept, STDERR_FILENO);
	close(kept);
	close(pipes[1]);
	got = read(pipes[0], line, sizeof(line) - 1);
	close(pipes[0]);
	assert_true(got > 0);
	assert_null(strstr(line, "hidden"));
	assert_non_null(strstr(line, "a: 5?forged ?[1m\n"));
	assert_non_null(strstr(line, "shown\n"));
}

/* ---- the choice of the backend ---- */

/* Forbids io_uring_setup() to this process, as container runtimes do. */
static bool forbid_uring(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static int choose_without_uring(void)
{
	struct env *env;
	const char *why;

	close(STDERR_FILENO);
	if (!forbid_uring())
		return 77;
	if (env_real_new(ENV_BACKEND_URING, 1, &env, &why) != -EPERM)
		return 1;
	if (strcmp(why, "io_uring_queue_init") != 0 || env)
		return 2;
	if (env_real_new(ENV_BACKEND_AUTO, 1, &env, &why) != 0)
		return 3;
	if (strcmp(env_backend_name(env), "libaio") != 0)
		return 4;
	env_free(env);
	return 0;
}

static void test_choice(struct world *world)
{
	struct env *env;
	const char *why;
	pid_t child = fork();
	int status;

	assert_true(child >= 0);
	if (child == 0)
		_exit(choose_without_uring());
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		print_message("SKIP: choice without io_uring: no seccomp here\n");
	else
		assert_int_equal(WEXITSTATUS(status), 0);
	assert_int_equal(env_real_new(ENV_BACKEND_AUTO, 1, &env, &why), 0);
	if (world->backend == ENV_BACKEND_URING)
		assert_string_equal(env_backend_name(env), "io_uring");
	env_free(env);
}

static const struct io_test io_loop[] = {
	{"timers fire in order, never early", test_timer_order},
	{"a stopped timer does not fire, also from inside another", test_timer_stop},
	{"a timer is restarted, also from inside itself", test_timer_restart},
	{"500 timers, a third stopped", test_timer_random},
	{"deferred calls: once, in order, cancelled", test_defer},
	{"a task that defers itself starves nobody", test_defer_no_starvation},
	{"what a completion defers runs in its turn", test_defer_same_turn},
	{"calls posted by threads all arrive", test_post},
	{"work runs on helpers and ends on the loop", test_work},
	{"run and stop", test_stop},
	{"clock, randomness, name", test_clock},
	{"without io_uring libaio is chosen", test_choice},
	{"log lines: levels, nothing forged", test_log},
};

int main(void)
{
	return RUN_ON_BACKENDS(io_loop);
}
