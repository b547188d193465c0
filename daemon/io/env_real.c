/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop both real backends share; the order within a turn stands in env_real.h.
 */
#include "daemon/io/env_real.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "daemon/io/resident.h"

#define TIMERS_MAX   (1u << 20) /* more than there can be sockets and files */
#define TIMERS_USUAL 4096u      /* these have their memory from the beginning */

_Static_assert(sizeof(struct real_op) <= sizeof(((struct env_op *)0)->priv), "priv too small");

int env_real_new(enum env_backend backend, unsigned threads, struct env **env, const char **why)
{
	const char *uring_why = "";
	int uring_error = 0, error;

	assert(threads >= 1);
	*env = NULL;
	*why = "";
	if (backend != ENV_BACKEND_AIO) {
		uring_error = uring_new(threads, env, why);
		if (!uring_error) {
			env_log(*env, ENV_LOG_DEBUG, "io: backend: io_uring");
			return 0;
		}
		if (backend == ENV_BACKEND_URING)
			return uring_error;
		uring_why = *why;
	}
	error = aio_new(threads, env, why);
	if (error)
		return error;
	if (uring_error)
		env_log(*env, ENV_LOG_INFO, "io: backend: libaio (no io_uring: %s: %s)", uring_why,
			strerror(-uring_error));
	else
		env_log(*env, ENV_LOG_DEBUG, "io: backend: libaio");
	return 0;
}

void real_fatal(const char *what, int error)
{
	fprintf(stderr, "io: %s: %s: cannot go on\n", what, strerror(error));
	abort();
}

/* ---- clock, randomness ---- */

static uint64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t real_now_ns(struct env *env)
{
	struct env_real *real = real_of(env);

	if (!real->in_turn)
		real->now_ns = clock_ns(CLOCK_MONOTONIC);
	return real->now_ns;
}

uint64_t real_realtime_ns(struct env *env)
{
	return clock_ns(CLOCK_REALTIME);
}

void real_random(struct env *env, void *buf, size_t length_bytes)
{
	uint8_t *p = buf;

	while (length_bytes > 0) {
		ssize_t got = getrandom(p, length_bytes, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			real_fatal("getrandom", errno);
		p += got;
		length_bytes -= (size_t)got;
	}
}

/* ---- timers: a binary heap, 1-based ---- */

static void heap_set(struct env_real *real, uint32_t index, struct env_timer *timer)
{
	real->heap[index] = timer;
	timer->heap_index = index;
}

static void heap_up(struct env_real *real, uint32_t index, struct env_timer *timer)
{
	while (index > 1 && real->heap[index / 2]->when_ns > timer->when_ns) {
		heap_set(real, index, real->heap[index / 2]);
		index /= 2;
	}
	heap_set(real, index, timer);
}

static void heap_down(struct env_real *real, uint32_t index, struct env_timer *timer)
{
	for (;;) {
		uint32_t child = index * 2;

		if (child > real->heap_count)
			break;
		if (child < real->heap_count &&
		    real->heap[child + 1]->when_ns < real->heap[child]->when_ns)
			child++;
		if (real->heap[child]->when_ns >= timer->when_ns)
			break;
		heap_set(real, index, real->heap[child]);
		index = child;
	}
	heap_set(real, index, timer);
}

void real_timer_stop(struct env *env, struct env_timer *timer)
{
	struct env_real *real = real_of(env);
	uint32_t index = timer->heap_index;
	struct env_timer *last;

	if (index == 0)
		return;
	assert(index <= real->heap_count && real->heap[index] == timer);
	timer->heap_index = 0;
	last = real->heap[real->heap_count--];
	if (last == timer)
		return;
	if (index > 1 && real->heap[index / 2]->when_ns > last->when_ns)
		heap_up(real, index, last);
	else
		heap_down(real, index, last);
}

void real_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_ns)
{
	struct env_real *real = real_of(env);
	uint64_t now_ns = real_now_ns(env);

	real_timer_stop(env, timer);
	/* Strictly later than now, so that firing is bounded within a turn. */
	delay_ns = delay_ns ? delay_ns : 1;
	timer->when_ns = delay_ns < UINT64_MAX - now_ns ? now_ns + delay_ns : UINT64_MAX;
	assert(real->heap_count + 1 < TIMERS_MAX);
	heap_up(real, ++real->heap_count, timer);
}

static void fire_timers(struct env_real *real)
{
	while (real->heap_count > 0 && real->heap[1]->when_ns <= real->now_ns) {
		struct env_timer *timer = real->heap[1];

		real_timer_stop(&real->env, timer);
		timer->fire(timer);
	}
}

/* ---- deferred and posted calls ---- */

/* A task may be given to post() by another thread while its flag changes here, hence atomics. */
static bool take_queued(struct env_task *task)
{
	return !__atomic_exchange_n(&task->queued, true, __ATOMIC_ACQ_REL);
}

static void tasks_add(struct real_tasks *tasks, struct env_task *task)
{
	task->next = NULL;
	if (tasks->last)
		tasks->last->next = task;
	else
		tasks->first = task;
	tasks->last = task;
}

void real_defer(struct env *env, struct env_task *task)
{
	if (take_queued(task))
		tasks_add(&real_of(env)->deferred, task);
}

static bool tasks_remove(struct real_tasks *tasks, struct env_task *task)
{
	struct env_task *before = NULL;

	for (struct env_task *t = tasks->first; t; before = t, t = t->next) {
		if (t != task)
			continue;
		if (before)
			before->next = t->next;
		else
			tasks->first = t->next;
		if (tasks->last == t)
			tasks->last = before;
		return true;
	}
	return false;
}

void real_defer_cancel(struct env *env, struct env_task *task)
{
	struct env_real *real = real_of(env);
	bool found;

	if (!task->queued)
		return;
	found = tasks_remove(&real->deferred, task) || tasks_remove(&real->running, task);
	assert(found);
	task->next = NULL;
	task->queued = false;
}

void real_post(struct env *env, struct env_task *task)
{
	struct env_real *real = real_of(env);
	struct env_task *newest;

	if (!take_queued(task))
		return;
	newest = atomic_load_explicit(&real->posted, memory_order_relaxed);
	do {
		task->next = newest;
	} while (!atomic_compare_exchange_weak_explicit(
		&real->posted, &newest, task, memory_order_release, memory_order_relaxed));
	/* Whoever found it empty wakes the loop; the others come along with that one. */
	if (!newest) {
		static const uint64_t one = 1;

		while (write(real->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
			;
	}
}

static void take_posted(struct env_real *real)
{
	struct env_task *task, *next, *oldest = NULL;

	if (!atomic_load_explicit(&real->posted, memory_order_relaxed))
		return;
	task = atomic_exchange_explicit(&real->posted, NULL, memory_order_acquire);
	for (; task; task = next) {
		next = task->next;
		task->next = oldest;
		oldest = task;
	}
	for (task = oldest; task; task = next) {
		next = task->next;
		tasks_add(&real->deferred, task);
	}
}

static void call_deferred(struct env_real *real)
{
	struct env_task *task;

	real->running = real->deferred;
	real->deferred = (struct real_tasks){0};
	while ((task = real->running.first)) {
		real->running.first = task->next;
		if (!task->next)
			real->running.last = NULL;
		task->next = NULL;
		__atomic_store_n(&task->queued, false, __ATOMIC_RELEASE);
		task->call(task);
	}
}

/* ---- operations that ended without the kernel ---- */

void real_ready(struct env_real *real, struct env_op *op, int64_t result)
{
	real_op(op)->next = NULL;
	real_op(op)->result = result;
	if (real->ready.last)
		real_op(real->ready.last)->next = op;
	else
		real->ready.first = op;
	real->ready.last = op;
}

void real_call_ready(struct env_real *real)
{
	struct env_op *op = real->ready.first;

	real->ready = (struct real_ops){0};
	while (op) {
		struct env_op *next = real_op(op)->next;

		op->done(op, real_op(op)->result);
		op = next;
	}
}

/* ---- turns ---- */

void real_turn_begun(struct env_real *real)
{
	real->now_ns = clock_ns(CLOCK_MONOTONIC);
	real->in_turn = true;
}

static uint64_t wait_limit_ns(struct env_real *real)
{
	uint64_t now_ns;

	if (real->deferred.first || real->ready.first)
		return 0;
	if (real->heap_count == 0)
		return UINT64_MAX;
	now_ns = clock_ns(CLOCK_MONOTONIC);
	return real->heap[1]->when_ns > now_ns ? real->heap[1]->when_ns - now_ns : 0;
}

static void turn(struct env_real *real)
{
	assert(!real->in_turn); /* env_run*() from inside a callback */
	real->backend->turn(real, wait_limit_ns(real));
	assert(real->in_turn);
	fire_timers(real);
	take_posted(real);
	call_deferred(real);
	if (real->deferred.first)
		call_deferred(real);
	real->in_turn = false;
}

void real_run_until(struct env *env, const bool *flag)
{
	while (!*flag)
		turn(real_of(env));
}

void real_run(struct env *env)
{
	struct env_real *real = real_of(env);

	while (!real->stop)
		turn(real);
	real->stop = false;
}

void real_stop(struct env *env)
{
	real_of(env)->stop = true;
}

void real_work_submit(struct env *env, struct env_work *work)
{
	real_pool_submit(real_of(env)->helpers, work);
}

/* ---- life ---- */

int real_init(struct env_real *real, unsigned threads, const char **why)
{
	int error;

	real->log_max = ENV_LOG_INFO;
	real->log_journal = getenv("JOURNAL_STREAM") != NULL;
	real->wake_fd = real->abort_fd = -1;
	real->heap = mmap(NULL, TIMERS_MAX * sizeof(struct env_timer *), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	*why = "timers";
	if (real->heap == MAP_FAILED)
		return -ENOMEM;
	resident_make(real->heap, TIMERS_USUAL * sizeof(struct env_timer *));
	*why = "eventfd";
	real->wake_fd = eventfd(0, EFD_CLOEXEC);
	real->abort_fd = eventfd(0, EFD_CLOEXEC);
	if (real->wake_fd < 0 || real->abort_fd < 0) {
		error = -errno;
		real_exit(real);
		return error;
	}
	*why = "helper threads";
	real->helpers = real_pool_new(real, threads);
	if (!real->helpers) {
		real_exit(real);
		return -EAGAIN;
	}
	return 0;
}

void real_drain(struct env_real *real)
{
	assert(!real->in_turn); /* env_free() from inside a callback */
	real->draining = true;
	real_connect_abort(real);
	while (real->ready.first || real->closing > 0 || real->connecting)
		turn(real);
	assert(real->socks == 0 && real->listeners == 0); /* not closed before env_free() */
}

void real_exit(struct env_real *real)
{
	real_pool_free(real->helpers);
	assert(real->files == 0); /* a file was not closed */
	if (real->wake_fd >= 0)
		close(real->wake_fd);
	if (real->abort_fd >= 0)
		close(real->abort_fd);
	munmap(real->heap, TIMERS_MAX * sizeof(struct env_timer *));
}

/* ---- logging ---- */

static void put_stamp(char *line, size_t size, enum env_log_level level, bool journal)
{
	static const char *const words[] = {"error", "warning", "info", "debug"};
	static const int priorities[] = {3, 4, 6, 7};
	struct timespec ts;
	struct tm tm;
	size_t used;

	if (journal) {
		snprintf(line, size, "<%d>", priorities[level]);
		return;
	}
	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	used = strftime(line, size, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(line + used, size - used, ".%03ldZ %s: ", ts.tv_nsec / 1000000, words[level]);
}

/* One write(2) a line, so that lines of several threads do not mix. Bytes that could forge a line
 * or steer a terminal are replaced. */
void real_log(struct env *env, enum env_log_level level, const char *format, va_list args)
{
	struct env_real *real = real_of(env);
	char line[1024];
	size_t start, length;

	if (level > __atomic_load_n(&real->log_max, __ATOMIC_RELAXED))
		return;
	put_stamp(line, sizeof(line), level, real->log_journal);
	start = strlen(line);
	vsnprintf(line + start, sizeof(line) - start - 1, format, args);
	length = strlen(line);
	for (size_t i = start; i < length; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			line[i] = '?';
	line[length++] = '\n';
	if (write(STDERR_FILENO, line, length) < 0)
		return; /* nobody to tell */
}

void real_log_level(struct env *env, enum env_log_level max)
{
	__atomic_store_n(&real_of(env)->log_max, max, __ATOMIC_RELAXED);
}
