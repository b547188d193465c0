// SPDX-License-Identifier: Apache-2.0
#include "nbd-server/attach_call.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

struct attach_thread {
	struct env *env;
	pthread_t thread;
	pthread_mutex_t lock; /* of the two below */
	pthread_cond_t some;
	struct attach_call *call;
	bool ending;
};

static void call_finished(struct env_task *task)
{
	struct attach_call *call =
		(struct attach_call *)((char *)task - offsetof(struct attach_call, finished));

	call->done(call);
}

static struct attach_call *next_call(struct attach_thread *thread)
{
	struct attach_call *call;

	pthread_mutex_lock(&thread->lock);
	while (!thread->call && !thread->ending)
		pthread_cond_wait(&thread->some, &thread->lock);
	call = thread->call;
	thread->call = NULL;
	pthread_mutex_unlock(&thread->lock);
	return call;
}

static void *thread_main(void *context)
{
	struct attach_thread *thread = context;
	struct attach_call *call;

	while ((call = next_call(thread))) {
		call->run(call);
		env_post(thread->env, &call->finished);
	}
	return NULL;
}

struct attach_thread *attach_thread_new(struct env *env)
{
	struct attach_thread *thread = calloc(1, sizeof(*thread));
	sigset_t all, before;
	int error;

	if (!thread)
		return NULL;
	thread->env = env;
	pthread_mutex_init(&thread->lock, NULL);
	pthread_cond_init(&thread->some, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&thread->thread, NULL, thread_main, thread);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!error)
		return thread;
	pthread_cond_destroy(&thread->some);
	pthread_mutex_destroy(&thread->lock);
	free(thread);
	return NULL;
}

void attach_thread_submit(struct attach_thread *thread, struct attach_call *call)
{
	call->finished = (struct env_task){.call = call_finished};
	pthread_mutex_lock(&thread->lock);
	assert(!thread->call);
	thread->call = call;
	pthread_cond_signal(&thread->some);
	pthread_mutex_unlock(&thread->lock);
}

void attach_thread_free(struct attach_thread *thread)
{
	if (!thread)
		return;
	pthread_mutex_lock(&thread->lock);
	thread->ending = true;
	pthread_cond_signal(&thread->some);
	pthread_mutex_unlock(&thread->lock);
	pthread_join(thread->thread, NULL);
	pthread_cond_destroy(&thread->some);
	pthread_mutex_destroy(&thread->lock);
	free(thread);
}
