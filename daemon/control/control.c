// SPDX-License-Identifier: Apache-2.0
/*
 * control: the loop thread's side: the queue of requests, long polls, start and stop.
 */
#include "daemon/control/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/control/render.h"

/* ---- the socket ------------------------------------------------------------------------------ */

/* 0 if nobody answers on the path (a stale socket is taken away), else -errno. */
static int clear_stale(const char *path, const struct sockaddr_un *address)
{
	struct stat stat_buf;
	int fd, error = 0;

	if (lstat(path, &stat_buf))
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(stat_buf.st_mode))
		return -EEXIST;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	/* EAGAIN: the backlog is full, so somebody listens. */
	if (!connect(fd, (const struct sockaddr *)address, sizeof(*address)) || errno == EAGAIN)
		error = -EADDRINUSE;
	else if (errno != ECONNREFUSED)
		error = -errno;
	close(fd);
	if (!error && unlink(path))
		error = -errno;
	return error;
}

int control_listen_unix(struct env *env, const char *path, int *listen_fd, char *why,
			size_t why_size)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd, error;

	if (strlen(path) >= sizeof(address.sun_path)) {
		snprintf(why, why_size, "control socket %s: path longer than %zu bytes", path,
			 sizeof(address.sun_path) - 1);
		return -ENAMETOOLONG;
	}
	strcpy(address.sun_path, path);
	env_mkdir_parent(env, path);
	error = clear_stale(path, &address);
	if (error) {
		snprintf(why, why_size, "control socket %s: %s", path,
			 error == -EADDRINUSE ? "another process answers on it"
			 : error == -EEXIST   ? "exists and is no socket"
					      : strerror(-error));
		return error;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* Before bind(): the file never exists with a wider mode. */
	if (fchmod(fd, 0660) || bind(fd, (struct sockaddr *)&address, sizeof(address)) ||
	    chmod(path, 0660) || listen(fd, 64)) {
		error = -errno;
		snprintf(why, why_size, "control socket %s: %s", path, strerror(-error));
		close(fd);
		return error;
	}
	*listen_fd = fd;
	return 0;
}

/* ---- answers --------------------------------------------------------------------------------- */

/* The HTTP thread may free the request as soon as the mutex is released. */
static void give_back(struct control *control, struct control_request *request)
{
	pthread_mutex_lock(&control->mutex);
	assert(!request->done);
	request->done = true;
	pthread_cond_signal(&request->answered);
	pthread_mutex_unlock(&control->mutex);
}

void control_answer(struct control *control, struct control_request *request, unsigned status,
		    json_t *json)
{
	request->status = status;
	request->json = json;
	give_back(control, request);
}

void control_refuse(struct control *control, struct control_request *request, unsigned status,
		    const char *format, ...)
{
	static const struct {
		unsigned status;
		const char *code;
	} codes[] = {{400, "invalid"},
		     {404, "missing"},
		     {405, "invalid"},
		     {409, "refused"},
		     {503, "stopping"}};
	const char *code = "failed";
	char text[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	for (unsigned i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
		if (codes[i].status == status)
			code = codes[i].code;
	control_answer(control, request, status,
		       json_pack("{s:o, s:s}", "error", render_text(text), "code", code));
}

bool control_wait_over(struct control *control, struct control_request *request)
{
	uint64_t now_ns = env_now_ns(control->env);

	if (!request->deadline_ns)
		request->deadline_ns = now_ns + (uint64_t)(request->wait_s * 1e9);
	return now_ns >= request->deadline_ns;
}

void control_hold(struct control *control, struct control_request *request)
{
	request->next = control->waiting;
	control->waiting = request;
}

static void handle(struct control *control, struct control_request *request)
{
	if (api_handle(control, request) == CONTROL_WAIT)
		control_hold(control, request);
}

static void look_again(struct control *control)
{
	struct control_request *waiting = control->waiting;

	control->waiting = NULL;
	while (waiting) {
		struct control_request *request = waiting;

		waiting = request->next;
		handle(control, request);
	}
}

void control_wake(struct control *control)
{
	/* Not from here: the caller may stand in the middle of something. */
	if (!control->http_stopped)
		env_post(control->env, &control->task);
}

/* ---- stop ------------------------------------------------------------------------------------ */

static void remove_socket(struct control *control)
{
	struct stat stat_buf;

	if (!lstat(control->socket_path, &stat_buf) && S_ISSOCK(stat_buf.st_mode) &&
	    stat_buf.st_ino == control->socket_inode)
		unlink(control->socket_path);
}

/* The queue is closed and empty and nothing is under way: no HTTP thread waits for the loop. The
 * task may still be queued from before; posting it once more and waiting for it makes sure that
 * it is not when the control is freed. */
static void stop_http(struct control *control)
{
	assert(!control->waiting && !control->operations);
	env_timer_stop(control->env, &control->tick);
	http_stop(control);
	remove_socket(control);
	control->http_stopped = true;
	env_post(control->env, &control->task);
}

static struct control_request *take_queue(struct control *control, bool *stopping)
{
	struct control_request *queue;

	pthread_mutex_lock(&control->mutex);
	queue = control->queue;
	control->queue = NULL;
	control->queue_tail = &control->queue;
	*stopping = control->stopping;
	pthread_mutex_unlock(&control->mutex);
	return queue;
}

static void refuse_list(struct control *control, struct control_request *list)
{
	while (list) {
		struct control_request *request = list;

		list = request->next;
		control_refuse(control, request, 503, "the daemon is stopping");
	}
}

static void task_call(struct env_task *task)
{
	struct control *control = (struct control *)((char *)task - offsetof(struct control, task));
	struct control_request *queue;
	bool stopping;

	if (control->http_stopped) {
		control->stopped(control->stopped_context);
		return;
	}
	queue = take_queue(control, &stopping);
	if (stopping) {
		refuse_list(control, queue);
		refuse_list(control, control->waiting);
		control->waiting = NULL;
		node_cancel_fences(control->node);
		if (!control->operations)
			stop_http(control);
		return;
	}
	while (queue) {
		struct control_request *request = queue;

		queue = request->next;
		handle(control, request);
	}
	look_again(control);
}

void control_operation_done(struct control *control)
{
	assert(control->operations > 0);
	control->operations--;
	control_wake(control);
}

void control_stop(struct control *control, void (*stopped)(void *context), void *context)
{
	jobs_stop(control->jobs);
	control->stopped = stopped;
	control->stopped_context = context;
	pthread_mutex_lock(&control->mutex);
	assert(!control->stopping);
	control->stopping = true;
	pthread_mutex_unlock(&control->mutex);
	env_post(control->env, &control->task);
}

bool control_free(struct control *control)
{
	if (!control)
		return true;
	if (!jobs_free(control->jobs))
		return false;
	events_free(control->events);
	watch_free(control->watch);
	pthread_mutex_destroy(&control->mutex);
	free(control->listed);
	free(control->socket_path);
	free(control);
	return true;
}

/* ---- start ----------------------------------------------------------------------------------- */

/* What the newest snapshot is, as far as the store says: after a restart nobody else knows. */
static void learn_snapshots(struct control *control, unsigned index)
{
	const struct node_volume *nv = node_volume(control->node, index);
	char why[512];

	control->listed[index] = nv->repo;
	if (nv->repo && listing_start(control, index, NULL, why, sizeof(why)))
		env_log(control->env, ENV_LOG_WARNING, "control: %s", why);
}

/* A store is opened some time after the start, and a volume that took over its peer's uuid gets
 * another repository. */
static void learn_new_stores(struct control *control)
{
	for (unsigned i = 0; i < node_volume_count(control->node); i++)
		if (watch_wants_listing(control->watch, i) ||
		    node_volume(control->node, i)->repo != control->listed[i])
			learn_snapshots(control, i);
}

static void tick_fire(struct env_timer *timer)
{
	struct control *control =
		(struct control *)((char *)timer - offsetof(struct control, tick));

	learn_new_stores(control);
	watch_compare(control->watch);
	look_again(control);
	env_timer_start(control->env, &control->tick, CONTROL_TICK_NS);
}

static void event_added(void *context)
{
	struct control *control = context;

	if (control->waiting)
		control_wake(control);
}

static void job_finished(void *context, struct job *job)
{
	struct control *control = context;

	events_add(control->events, job->finished_ns, "job", job->volume_name, "job %u (%s) %s%s%s",
		   job->id, job_type_name(job->type), job_state_name(job->state),
		   job->state == JOB_FAILED ? ": " : "",
		   job->state == JOB_FAILED ? job->result.why : "");
	if (job->type == JOB_SNAPSHOT_DELETE) {
		for (unsigned i = 0; i < node_volume_count(control->node); i++)
			if (node_volume(control->node, i) == job->volume)
				learn_snapshots(control, i);
		control_operation_done(control);
	}
	control_wake(control);
}

static void set_instance(struct control *control)
{
	struct id128 id;

	env_random(control->env, &id, sizeof(id));
	id128_format(&id, control->instance);
}

static struct control *new_control(struct env *env, const struct control_config *config)
{
	struct control *control = calloc(1, sizeof(*control));

	if (!control)
		return NULL;
	control->env = env;
	control->node = config->node;
	control->nbd = config->nbd;
	control->attach = config->attach;
	control->started_ns = env_now_ns(env);
	control->queue_tail = &control->queue;
	control->task.call = task_call;
	control->tick.fire = tick_fire;
	pthread_mutex_init(&control->mutex, NULL);
	set_instance(control);
	control->socket_path = strdup(config->socket_path);
	control->listed = calloc(node_volume_count(config->node) + 1, sizeof(*control->listed));
	control->events = events_new(event_added, control);
	control->jobs = jobs_new(env, job_finished, control);
	if (control->events)
		control->watch = watch_new(config->node, control->events);
	if (control->socket_path && control->listed && control->jobs && control->watch)
		return control;
	if (control->jobs)
		jobs_free(control->jobs);
	control->jobs = NULL;
	events_free(control->events);
	free(control->listed);
	free(control->socket_path);
	free(control);
	return NULL;
}

int control_start(struct env *env, const struct control_config *config, struct control **out,
		  char *why, size_t why_size)
{
	struct control *control = new_control(env, config);
	struct stat stat_buf;
	int fd, error;

	if (!control) {
		snprintf(why, why_size, "control: out of memory");
		return -ENOMEM;
	}
	error = control_listen_unix(env, config->socket_path, &fd, why, why_size);
	if (error)
		goto free_control;
	if (!lstat(config->socket_path, &stat_buf))
		control->socket_inode = stat_buf.st_ino;
	error = http_start(control, fd);
	if (error) {
		snprintf(why, why_size, "control: HTTP server does not start: %s",
			 strerror(-error));
		close(fd);
		remove_socket(control);
		goto free_control;
	}
	watch_compare(control->watch);
	learn_new_stores(control);
	env_timer_start(env, &control->tick, CONTROL_TICK_NS);
	*out = control;
	return 0;
free_control:
	control_free(control);
	return error;
}
