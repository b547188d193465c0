// SPDX-License-Identifier: Apache-2.0
#include "nbd-server/attach_call.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TRIES_MAX    25u
#define TRY_NS       10000000l
#define SOCKET_BYTES (4 << 20)

struct attach_call {
	struct env *env;
	const struct nbd_kernel *kernel;
	void (*done)(void *context, const struct attach_result *result);
	void *context;
	enum attach_verb verb; /* what the loop waits for */
	struct env_task finished;

	/* The thread's from attach_call_start() until finished is posted. */
	struct attach_order order;
	struct nbd_kernel_params params;
	struct attach_result result;

	pthread_t thread;
	pthread_mutex_t lock; /* of the two below */
	pthread_cond_t some;
	bool due, ending;
};

/* ---- on the thread -------------------------------------------------------------------------------- */

/* One end for the kernel, one for us. */
static int make_pair(int *kernel_end, int *our_end)
{
	int fds[2], size = SOCKET_BYTES;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds))
		return -errno;
	for (int i = 0; i < 2; i++) {
		/* Beyond the limit only for those who may. */
		if (setsockopt(fds[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)))
			setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	}
	*kernel_end = fds[0];
	*our_end = fds[1];
	return 0;
}

static void run_connect(struct attach_call *call, struct attach_result *result)
{
	const struct nbd_kernel *kernel = call->kernel;
	int ends[ATTACH_CONNECTIONS_MAX];
	unsigned made = 0;

	while (made < call->order.sockets && !result->error) {
		result->error = make_pair(&ends[made], &result->sockets[made]);
		made += !result->error;
	}
	if (result->error)
		snprintf(result->why, sizeof(result->why), "socketpair: %s",
			 strerror(-result->error));
	else
		result->error =
			kernel->connect(kernel->context, call->order.index, &call->params, ends,
					made, &result->index, result->why, sizeof(result->why));
	for (unsigned i = 0; i < made; i++) {
		close(ends[i]);
		if (result->error)
			close(result->sockets[i]);
	}
	result->socket_count = result->error ? 0 : made;
}

/*
 * The kernel answers 0 also when it has no dead socket to replace, and then drops the new one: with
 * nobody left at the other end, ours hangs up.
 */
static bool was_taken(int our_end)
{
	struct pollfd look = {.fd = our_end, .events = POLLRDHUP};

	return poll(&look, 1, 0) == 0;
}

static int give_one(struct attach_call *call, int *our_end)
{
	const struct nbd_kernel *kernel = call->kernel;
	int kernel_end, error = make_pair(&kernel_end, our_end);

	if (error)
		return error;
	error = kernel->give(kernel->context, (unsigned)call->order.index, &call->params,
			     kernel_end);
	close(kernel_end);
	if (!error && !was_taken(*our_end))
		error = -EAGAIN;
	if (error)
		close(*our_end);
	return error;
}

/* The kernel learns of a socket's death a moment after it: worth a few tries. */
static void run_give(struct attach_call *call, struct attach_result *result)
{
	unsigned tries = 0;

	while (result->socket_count < call->order.sockets && tries < TRIES_MAX) {
		result->error = give_one(call, &result->sockets[result->socket_count]);
		if (!result->error)
			result->socket_count++;
		else if (result->error != -EAGAIN)
			break;
		else if (++tries < TRIES_MAX)
			nanosleep(&(struct timespec){.tv_nsec = TRY_NS}, NULL);
	}
}

static void run_detach(struct attach_call *call, struct attach_result *result)
{
	const struct nbd_kernel *kernel = call->kernel;
	unsigned index = (unsigned)call->order.index;

	result->error = call->order.force ? 0 : kernel->in_use(kernel->context, index);
	if (result->error)
		snprintf(result->why, sizeof(result->why),
			 "/dev/nbd%u is in use: unmount it first (findmnt /dev/nbd%u; --force "
			 "fails its I/O)",
			 index, index);
	else
		result->error = kernel->disconnect(kernel->context, index, result->why,
						   sizeof(result->why));
	if (!result->error)
		kernel->untune(kernel->context, index, call->params.link);
}

static void run(struct attach_call *call)
{
	const struct nbd_kernel *kernel = call->kernel;
	struct attach_result *result = &call->result;

	*result = (struct attach_result){.verb = call->order.verb,
					 .index = (unsigned)call->order.index};
	switch (result->verb) {
	case ATTACH_CONNECT:
		run_connect(call, result);
		break;
	case ATTACH_GIVE:
		run_give(call, result);
		break;
	case ATTACH_RESIZE:
		result->error = kernel->resize(kernel->context, result->index, &call->params);
		break;
	case ATTACH_DETACH:
		run_detach(call, result);
		return;
	case ATTACH_NOTHING:
		abort();
	}
	/* Also after a change of daemon: its limits may be other ones. */
	if (!result->error)
		result->untuned = kernel->tune(kernel->context, result->index, &call->params,
					       result->verb == ATTACH_CONNECT, result->why,
					       sizeof(result->why)) != 0;
}

/* False: there is to be no other. */
static bool await_order(struct attach_call *call)
{
	bool due;

	pthread_mutex_lock(&call->lock);
	while (!call->due && !call->ending)
		pthread_cond_wait(&call->some, &call->lock);
	due = call->due;
	call->due = false;
	pthread_mutex_unlock(&call->lock);
	return due;
}

static void *thread_main(void *context)
{
	struct attach_call *call = context;

	while (await_order(call)) {
		run(call);
		env_post(call->env, &call->finished);
	}
	return NULL;
}

/* ---- on the loop ------------------------------------------------------------------------------------ */

static void finished(struct env_task *task)
{
	struct attach_call *call =
		(struct attach_call *)((char *)task - offsetof(struct attach_call, finished));
	struct attach_result result = call->result; /* the next call may begin in done() */

	call->verb = ATTACH_NOTHING;
	call->done(call->context, &result);
}

static void signal_thread(struct attach_call *call, bool *what)
{
	pthread_mutex_lock(&call->lock);
	assert(!call->due);
	*what = true;
	pthread_cond_signal(&call->some);
	pthread_mutex_unlock(&call->lock);
}

void attach_call_start(struct attach_call *call, const struct attach_order *order)
{
	assert(call->verb == ATTACH_NOTHING && order->sockets <= ATTACH_CONNECTIONS_MAX);
	call->verb = order->verb;
	call->order = *order;
	call->params = *order->params;
	call->finished = (struct env_task){.call = finished};
	signal_thread(call, &call->due);
}

enum attach_verb attach_call_verb(const struct attach_call *call)
{
	return call->verb;
}

/* No signal is for this thread. */
static int start_thread(struct attach_call *call)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&call->thread, NULL, thread_main, call);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return error;
}

static void release(struct attach_call *call)
{
	pthread_cond_destroy(&call->some);
	pthread_mutex_destroy(&call->lock);
	free(call);
}

struct attach_call *attach_call_new(struct env *env, const struct nbd_kernel *kernel,
				    void (*done)(void *context, const struct attach_result *result),
				    void *context)
{
	struct attach_call *call = calloc(1, sizeof(*call));

	if (!call)
		return NULL;
	call->env = env;
	call->kernel = kernel;
	call->done = done;
	call->context = context;
	pthread_mutex_init(&call->lock, NULL);
	pthread_cond_init(&call->some, NULL);
	if (start_thread(call)) {
		release(call);
		return NULL;
	}
	return call;
}

void attach_call_free(struct attach_call *call)
{
	if (!call)
		return;
	assert(call->verb == ATTACH_NOTHING);
	signal_thread(call, &call->ending);
	pthread_join(call->thread, NULL);
	release(call);
}
