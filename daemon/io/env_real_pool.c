/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Helper threads: a queue under a lock, worked off by a fixed number of threads. What is finished
 * goes back to the loop as a posted task.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>
#include "daemon/io/env_real.h"

#define HELPER_NICE 10

struct work_priv {
	struct env_task finished;
	struct env_work *next;
};

_Static_assert(sizeof(struct work_priv) <= sizeof(((struct env_work *)0)->priv), "priv too small");

struct real_pool {
	struct env_real *real;
	pthread_mutex_t lock; /* of the four below */
	pthread_cond_t some;
	struct env_work *first, *last;
	bool ending;
	unsigned threads;
	pthread_t thread[];
};

static struct work_priv *work_priv(struct env_work *work)
{
	return (struct work_priv *)work->priv;
}

static void work_finished(struct env_task *task)
{
	struct work_priv *priv =
		(struct work_priv *)((char *)task - offsetof(struct work_priv, finished));
	struct env_work *work = (struct env_work *)((char *)priv - offsetof(struct env_work, priv));

	work->done(work);
}

static struct env_work *next_work(struct real_pool *pool)
{
	struct env_work *work;

	pthread_mutex_lock(&pool->lock);
	while (!pool->first && !pool->ending)
		pthread_cond_wait(&pool->some, &pool->lock);
	work = pool->first;
	if (work) {
		pool->first = work_priv(work)->next;
		if (!pool->first)
			pool->last = NULL;
	}
	pthread_mutex_unlock(&pool->lock);
	return work;
}

/* Behind the loop, and behind whoever else is at work on this host: clients wait for the loop, and seldom for
 * a helper. A thread may always ask for less; where it may not, it runs as it is. */
static void step_back(void)
{
	const struct sched_param param = {.sched_priority = 0};

	pthread_setschedparam(pthread_self(), SCHED_BATCH, &param);
	setpriority(PRIO_PROCESS, (id_t)gettid(), HELPER_NICE);
}

static void *helper(void *context)
{
	struct real_pool *pool = context;
	struct env_work *work;

	step_back();
	while ((work = next_work(pool))) {
		work->run(work);
		real_post(&pool->real->env, &work_priv(work)->finished);
	}
	return NULL;
}

/* Signals are for the main thread. */
static unsigned start_threads(struct real_pool *pool, unsigned threads)
{
	sigset_t all, before;
	unsigned started = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (started < threads && !pthread_create(&pool->thread[started], NULL, helper, pool))
		started++;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return started;
}

struct real_pool *real_pool_new(struct env_real *real, unsigned threads)
{
	struct real_pool *pool = calloc(1, sizeof(*pool) + threads * sizeof(pthread_t));

	if (!pool)
		return NULL;
	pool->real = real;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->some, NULL);
	pool->threads = start_threads(pool, threads);
	if (pool->threads == 0) {
		real_pool_free(pool);
		return NULL;
	}
	return pool;
}

void real_pool_free(struct real_pool *pool)
{
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->ending = true;
	pthread_cond_broadcast(&pool->some);
	pthread_mutex_unlock(&pool->lock);
	for (unsigned i = 0; i < pool->threads; i++)
		pthread_join(pool->thread[i], NULL);
	assert(!pool->first);
	pthread_cond_destroy(&pool->some);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}

void real_pool_submit(struct real_pool *pool, struct env_work *work)
{
	*work_priv(work) = (struct work_priv){.finished.call = work_finished};
	pthread_mutex_lock(&pool->lock);
	if (pool->last)
		work_priv(pool->last)->next = work;
	else
		pool->first = work;
	pool->last = work;
	pthread_cond_signal(&pool->some);
	pthread_mutex_unlock(&pool->lock);
}
