// SPDX-License-Identifier: Apache-2.0
/*
 * The state machine of an attached device: device_step() looks at what is and what should be, and starts
 * the one call to the kernel that brings them nearer; whatever happens ends in another step.
 */
#include "nbd-server/attach.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "nbd-server/attach_call.h"
#include "nbd-server/connection.h"

#define PREFIX       "offsite:"
#define RETRY_NS     50000000ull    /* a socket that was not taken */
#define LOOK_NS      1000000000ull  /* an export that cannot be opened, or is wanted */
#define PAUSE_MAX_NS 60000000000ull /* between two tries to attach what is wanted */
#define START_NS     20000000000ull
#define OLD_MAX      8u /* ended connections whose requests are still under way */
#define TRIES_MAX    25u
#define TRY_MS       10
#define SOCKET_BYTES (4 << 20)
#define BLOCK_MIN    512u
#define DEVICES_MAX  256u

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* What the device's thread is at. */
enum work { WORK_NONE, WORK_CONNECT, WORK_GIVE, WORK_RESIZE, WORK_DETACH };

struct attach_waiter {
	attach_done_fn done;
	void *context;
};

/* One of those that wait for a new size. */
struct resize_waiter {
	struct resize_waiter *next;
	struct attach_waiter waiter;
};

struct attach_device {
	struct attach *attach;
	struct attach_device *next;
	enum attach_state state;
	char name[NBD_KERNEL_NAME_MAX];
	char path[32]; /* "" until the kernel has said which */
	unsigned index;
	struct block *block; /* open, or NULL */
	bool held;           /* it was looked up */
	struct block_lookup lookup;
	bool looking;
	bool read_only;
	unsigned connections, alive, old; /* wanted, served, ended but with requests under way */
	unsigned reconnects;
	uint64_t lost_ns; /* when the last one ended; 0: with the last daemon */
	unsigned request_s;
	char why[256]; /* WAITING */
	bool first;    /* not yet attached, or given up, since the start of all */
	bool resize_due, detach_due, force;
	struct attach_waiter attached, detached;
	struct resize_waiter *resized;
	struct env_timer retry;

	struct attach_thread *thread;
	struct attach_call call;
	enum work work; /* WORK_NONE: no call is under way, and what follows is the loop's */
	struct nbd_kernel_params params;
	int index_wanted;
	int fds[ATTACH_CONNECTIONS_MAX]; /* our ends, out */
	unsigned fd_count;               /* in: how many are missing; out: how many there are */
	int error;
	char error_why[256];
};

struct attach_link {
	struct nbd_adopted adopted;
	struct attach_device *device;
};

/* A name that the configuration may want attached. */
struct wish {
	struct attach *attach;
	unsigned index;    /* config.name()'s */
	bool held;         /* detached by hand */
	uint64_t again_ns; /* not tried before; after a failure */
	uint64_t pause_ns;
	char why[256]; /* what was said last about it */
};

struct attach {
	struct env *env;
	struct attach_config config;
	struct attach_device *devices;
	struct wish *wishes;
	unsigned wish_count;
	struct env_timer look;  /* for wishes */
	struct env_timer limit; /* of started() */
	struct env_task reap;   /* frees devices that are gone */
	bool stopping;
	void (*started)(void *context);
	void *started_context;
};

static void device_step(struct attach_device *device);
static void opened_to_connect(struct attach_device *device, int error);
static void opened_to_reconnect(struct attach_device *device, int error);

const char *attach_state_name(enum attach_state state)
{
	static const char *const names[ATTACH_STATES] = {
		"connecting", "attached", "reconnecting", "waiting", "detaching", "gone",
	};

	return names[state];
}

#define BIT(state) (1u << (state))
static const unsigned next_states[ATTACH_STATES] = {
	[ATTACH_CONNECTING] = BIT(ATTACH_ATTACHED) | BIT(ATTACH_RECONNECTING) | BIT(ATTACH_GONE),
	[ATTACH_ATTACHED] = BIT(ATTACH_RECONNECTING) | BIT(ATTACH_DETACHING),
	[ATTACH_RECONNECTING] = BIT(ATTACH_ATTACHED) | BIT(ATTACH_WAITING) | BIT(ATTACH_DETACHING) |
				BIT(ATTACH_GONE),
	[ATTACH_WAITING] = BIT(ATTACH_RECONNECTING) | BIT(ATTACH_DETACHING) | BIT(ATTACH_GONE),
	[ATTACH_DETACHING] = BIT(ATTACH_RECONNECTING) | BIT(ATTACH_GONE),
	[ATTACH_GONE] = 0,
};

static void device_set_state(struct attach_device *device, enum attach_state state)
{
	if (device->state == state)
		return;
	assert(next_states[device->state] & BIT(state));
	device->state = state;
}

static void device_log(const struct attach_device *device, enum env_log_level level,
		       const char *format, ...) __attribute__((format(printf, 3, 4)));
static void device_log(const struct attach_device *device, enum env_log_level level,
		       const char *format, ...)
{
	char line[384];
	va_list args;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	env_log(device->attach->env, level, "attach: %s: %s%s%s", device->name, device->path,
		device->path[0] ? ": " : "", line);
}

static void tell(struct attach_waiter *waiter, int error, const char *why, const char *device)
{
	struct attach_waiter w = *waiter;

	*waiter = (struct attach_waiter){};
	if (w.done)
		w.done(w.context, error, why, device);
}

/* ---- on the device's thread ------------------------------------------------------------------- */

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

static void run_connect(struct attach_device *device)
{
	const struct nbd_kernel *kernel = device->attach->config.kernel;
	int ends[ATTACH_CONNECTIONS_MAX];
	unsigned wanted = device->fd_count;

	device->fd_count = 0;
	device->error = 0;
	while (device->fd_count < wanted && !device->error) {
		device->error = make_pair(&ends[device->fd_count], &device->fds[device->fd_count]);
		device->fd_count += !device->error;
	}
	if (device->error)
		snprintf(device->error_why, sizeof(device->error_why), "socketpair: %s",
			 strerror(-device->error));
	else
		device->error =
			kernel->connect(kernel->context, device->index_wanted, &device->params,
					ends, device->fd_count, &device->index, device->error_why,
					sizeof(device->error_why));
	for (unsigned i = 0; i < device->fd_count; i++) {
		close(ends[i]);
		if (device->error)
			close(device->fds[i]);
	}
	if (device->error)
		device->fd_count = 0;
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

static int give_one(struct attach_device *device, int *our_end)
{
	const struct nbd_kernel *kernel = device->attach->config.kernel;
	int kernel_end, error = make_pair(&kernel_end, our_end);

	if (error)
		return error;
	error = kernel->give(kernel->context, device->index, &device->params, kernel_end);
	close(kernel_end);
	if (!error && !was_taken(*our_end))
		error = -EAGAIN;
	if (error)
		close(*our_end);
	return error;
}

/* The kernel learns of a socket's death a moment after it: worth a few tries. */
static void run_give(struct attach_device *device)
{
	unsigned wanted = device->fd_count, tries = 0;

	device->fd_count = 0;
	device->error = 0;
	while (device->fd_count < wanted && tries < TRIES_MAX) {
		device->error = give_one(device, &device->fds[device->fd_count]);
		if (!device->error)
			device->fd_count++;
		else if (device->error != -EAGAIN)
			break;
		else if (++tries < TRIES_MAX)
			nanosleep(&(struct timespec){.tv_nsec = TRY_MS * 1000000}, NULL);
	}
}

static void run_detach(struct attach_device *device)
{
	const struct nbd_kernel *kernel = device->attach->config.kernel;

	device->error = device->force ? 0 : kernel->in_use(kernel->context, device->index);
	if (device->error)
		snprintf(device->error_why, sizeof(device->error_why),
			 "%s is in use: unmount it first (findmnt %s; --force fails its I/O)",
			 device->path, device->path);
	else
		device->error = kernel->disconnect(kernel->context, device->index,
						   device->error_why, sizeof(device->error_why));
	if (!device->error)
		kernel->untune(kernel->context, device->index, device->params.link);
}

static void device_run(struct attach_call *call)
{
	struct attach_device *device = container_of(call, struct attach_device, call);
	const struct nbd_kernel *kernel = device->attach->config.kernel;

	switch (device->work) {
	case WORK_CONNECT:
		run_connect(device);
		break;
	case WORK_GIVE:
		run_give(device);
		break;
	case WORK_RESIZE:
		device->error = kernel->resize(kernel->context, device->index, &device->params);
		break;
	case WORK_DETACH:
		run_detach(device);
		return;
	case WORK_NONE:
		abort();
	}
	/* Also after a change of daemon: its limits may be other ones. */
	if (!device->error)
		kernel->tune(kernel->context, device->index, &device->params,
			     device->work == WORK_CONNECT);
}

/* ---- connections -------------------------------------------------------------------------------- */

static void link_closed(struct nbd_adopted *adopted)
{
	struct attach_device *device = container_of(adopted, struct attach_link, adopted)->device;

	assert(device->alive > 0);
	device->alive--;
	device->old++;
	device->lost_ns = env_now_ns(device->attach->env);
	/* Not from inside the server's work on it. */
	if (!env_timer_active(&device->retry) && !device->attach->stopping)
		env_timer_start(device->attach->env, &device->retry, 0);
}

static void device_close(struct attach_device *device)
{
	assert(!device->alive && !device->old);
	if (device->block)
		device->block->ops->close(device->block);
	if (device->held)
		device->attach->config.release(device->attach->config.context, device->block);
	device->block = NULL;
	device->held = false;
}

static void link_freed(struct nbd_adopted *adopted)
{
	struct attach_link *link = container_of(adopted, struct attach_link, adopted);
	struct attach_device *device = link->device;

	assert(device->old > 0);
	device->old--;
	free(link);
	if (device->attach->stopping && device->alive + device->old == 0)
		device_close(device);
	if (!env_timer_active(&device->retry) && !device->attach->stopping)
		env_timer_start(device->attach->env, &device->retry, 0);
}

/* Serves the sockets that the kernel has taken. */
static void adopt_all(struct attach_device *device)
{
	for (unsigned i = 0; i < device->fd_count; i++) {
		struct attach_link *link = calloc(1, sizeof(*link));
		int error = -ENOMEM;

		if (link) {
			link->device = device;
			link->adopted = (struct nbd_adopted){device->path, link_closed, link_freed};
			device->alive++;
			error = nbd_server_adopt(device->attach->config.server, device->fds[i],
						 device->block, &link->adopted);
		} else {
			close(device->fds[i]);
		}
		if (!error)
			continue;
		device->alive -= link != NULL;
		free(link);
		device_log(device, ENV_LOG_ERROR, "connection: %s", strerror(-error));
	}
	device->fd_count = 0;
}

/* ---- steps ---------------------------------------------------------------------------------------- */

static void attach_check_started(struct attach *attach)
{
	void (*started)(void *context) = attach->started;

	if (!started)
		return;
	for (struct attach_device *d = attach->devices; d; d = d->next)
		if (d->first)
			return;
	attach->started = NULL;
	env_timer_stop(attach->env, &attach->limit);
	started(attach->started_context);
}

static void settled(struct attach_device *device)
{
	device->first = false;
	attach_check_started(device->attach);
}

/* The block was found, or not; opened() goes on in the state that the device is in. */
static void device_found(struct attach_device *device, struct block *block, int error,
			 const char *reason)
{
	const struct attach_config *config = &device->attach->config;
	char why[sizeof(device->why)];

	snprintf(why, sizeof(why), "%s", reason);
	if (block)
		error = block->ops->open(block, why, sizeof(why));
	if (error && device->held)
		config->release(config->context, block);
	device->held = device->held && !error;
	device->block = error ? NULL : block;
	if (error && device->state != ATTACH_CONNECTING && strcmp(why, device->why) != 0)
		device_log(device, ENV_LOG_WARNING, "its I/O %s: %s",
			   error == -EPERM ? "fails" : "waits", why);
	memcpy(device->why, error ? why : "", error ? sizeof(why) : 1);
	if (device->state == ATTACH_CONNECTING)
		opened_to_connect(device, error);
	else
		opened_to_reconnect(device, error);
}

static void lookup_done(struct block_lookup *lookup, struct block *block, int error,
			const char *why)
{
	struct attach_device *device = container_of(lookup, struct attach_device, lookup);
	const struct attach_config *config = &device->attach->config;

	device->looking = false;
	device->held = block != NULL;
	if (device->attach->stopping) {
		if (block)
			config->release(config->context, block);
		device->held = false;
		return;
	}
	/* VOLUME@latest is another one tomorrow. */
	if (block && device->state == ATTACH_CONNECTING)
		snprintf(device->name, sizeof(device->name), "%s", block->name);
	device_found(device, block, block ? 0 : error, why ? why : "");
}

static void device_open(struct attach_device *device)
{
	const struct attach_config *config = &device->attach->config;
	struct block *block = config->find(config->context, device->name);

	assert(!device->block && !device->looking);
	if (block || !config->look_up) {
		device_found(device, block, block ? 0 : -ENOENT, "it is not served here");
		return;
	}
	device->looking = true;
	device->lookup.done = lookup_done;
	config->look_up(config->context, device->name, &device->lookup);
}

static void take_params(struct attach_device *device)
{
	struct nbd_terms terms = {0};
	struct block_info info = {0};
	uint32_t block_bytes;

	nbd_take_terms(device->block, &info, &terms);
	block_bytes = terms.block_min_bytes < BLOCK_MIN ? BLOCK_MIN : terms.block_min_bytes;
	device->params.block_bytes = block_bytes;
	device->params.size_bytes = terms.size_bytes & ~((uint64_t)block_bytes - 1);
	device->params.flags = terms.transmission_flags &
			       (NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_FLUSH |
				NBD_FLAG_SEND_FUA | NBD_FLAG_ROTATIONAL | NBD_FLAG_SEND_TRIM |
				NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_CAN_MULTI_CONN);
	device->params.request_s = device->connections > 1 ? device->request_s : 0;
	device->read_only = info.read_only;
	snprintf(device->params.link, sizeof(device->params.link), "%s", device->name);
}

static void start_work(struct attach_device *device, enum work work)
{
	assert(device->work == WORK_NONE);
	device->work = work;
	device->error_why[0] = 0;
	attach_thread_submit(device->thread, &device->call);
}

/* A new socket waits for the requests of the old ones, so that nothing comes twice at a time without
 * need; but not longer than the kernel can wait, nor for ever so many of them. */
static bool may_give(struct attach_device *device)
{
	uint64_t patience_ns = device->params.dead_s * 1000000000ull / 2;

	if (device->old == 0)
		return true;
	return device->old < OLD_MAX &&
	       env_now_ns(device->attach->env) - device->lost_ns >= patience_ns;
}

static void step_give(struct attach_device *device)
{
	if (!may_give(device)) {
		env_timer_start(device->attach->env, &device->retry, LOOK_NS);
		return;
	}
	take_params(device);
	device->fd_count = device->connections - device->alive;
	start_work(device, WORK_GIVE);
}

static void opened_to_reconnect(struct attach_device *device, int error)
{
	if (error == -EPERM) {
		/* Another node may have written meanwhile, and filesystems here have cached the time before. */
		device->detach_due = device->force = true;
	} else if (error) {
		device_set_state(device, ATTACH_WAITING);
		settled(device);
		env_timer_start(device->attach->env, &device->retry, LOOK_NS);
		return;
	}
	device_step(device);
}

static void step_reconnect(struct attach_device *device)
{
	device_set_state(device, ATTACH_RECONNECTING);
	if (device->block)
		step_give(device);
	else
		device_open(device);
}

static void device_step(struct attach_device *device)
{
	if (device->work != WORK_NONE || device->looking || device->attach->stopping)
		return;
	if (device->state == ATTACH_GONE) {
		if (device->alive == 0 && device->old == 0)
			env_defer(device->attach->env, &device->attach->reap);
	} else if (device->detach_due) {
		device->detach_due = false;
		device_set_state(device, device->state == ATTACH_CONNECTING ? ATTACH_RECONNECTING
									    : device->state);
		device_set_state(device, ATTACH_DETACHING);
		start_work(device, WORK_DETACH);
	} else if (device->alive < device->connections) {
		step_reconnect(device);
	} else if (device->resize_due) {
		device->resize_due = false;
		take_params(device);
		nbd_server_resized(device->attach->config.server, device->block);
		start_work(device, WORK_RESIZE);
	} else {
		device_set_state(device, ATTACH_ATTACHED);
	}
}

static void retry_fire(struct env_timer *timer)
{
	device_step(container_of(timer, struct attach_device, retry));
}

static void connect_done(struct attach_device *device)
{
	if (device->error) {
		device_close(device);
		device_set_state(device, ATTACH_GONE);
		tell(&device->attached, device->error, device->error_why, "");
		return;
	}
	snprintf(device->path, sizeof(device->path), "/dev/nbd%u", device->index);
	adopt_all(device);
	device_log(device, ENV_LOG_INFO, "attached, %u connection%s%s", device->alive,
		   device->alive == 1 ? "" : "s", device->read_only ? ", read-only" : "");
	device_set_state(device, ATTACH_ATTACHED);
	tell(&device->attached, 0, "", device->path);
}

static void give_done(struct attach_device *device)
{
	unsigned given = device->fd_count;

	adopt_all(device);
	device->reconnects += given;
	if (device->alive >= device->connections) {
		device_log(device, ENV_LOG_INFO, "connected again, %u connection%s", device->alive,
			   device->alive == 1 ? "" : "s");
		device_set_state(device, ATTACH_ATTACHED);
	} else if (device->error == -EINVAL || device->error == -ENODEV ||
		   device->error == -ENOENT) {
		/* Somebody else has detached it. */
		device_log(device, ENV_LOG_WARNING, "the kernel no longer has it");
		device_set_state(device, ATTACH_GONE);
		tell(&device->detached, 0, "", device->path);
	} else {
		env_timer_start(device->attach->env, &device->retry, RETRY_NS);
	}
}

static void tell_all_resized(struct attach_device *device)
{
	struct resize_waiter *w;

	while ((w = device->resized)) {
		device->resized = w->next;
		tell(&w->waiter, 0, "", device->path);
		free(w);
	}
}

/* Whoever waits for the new size waits for a call that is under way, and for nothing else. */
static void tell_resized(struct attach_device *device)
{
	if (device->work == WORK_RESIZE || (device->work != WORK_NONE && device->resize_due))
		return;
	tell_all_resized(device);
}

static void detach_done(struct attach_device *device)
{
	if (device->error == -EINVAL || device->error == -ENODEV)
		device->error = 0; /* it was gone already */
	device_log(device, device->error ? ENV_LOG_WARNING : ENV_LOG_INFO, "%s",
		   device->error ? device->error_why : "detached");
	device_set_state(device, device->error ? ATTACH_RECONNECTING : ATTACH_GONE);
	tell(&device->detached, device->error, device->error_why, device->path);
}

static void device_done(struct attach_call *call)
{
	struct attach_device *device = container_of(call, struct attach_device, call);
	enum work work = device->work;

	device->work = WORK_NONE;
	if (device->attach->stopping) {
		/* What the kernel was given dies with us. */
		for (unsigned i = 0; i < device->fd_count && work != WORK_DETACH; i++)
			close(device->fds[i]);
		device->fd_count = 0;
		return;
	}
	switch (work) {
	case WORK_CONNECT:
		connect_done(device);
		break;
	case WORK_GIVE:
		give_done(device);
		break;
	case WORK_RESIZE:
		if (device->error)
			device_log(device, ENV_LOG_WARNING,
				   "the kernel does not take the new size: %s: it is seen when it "
				   "is attached again",
				   strerror(-device->error));
		break;
	case WORK_DETACH:
		detach_done(device);
		break;
	case WORK_NONE:
		abort();
	}
	if (work != WORK_GIVE || device->alive > 0 || device->state == ATTACH_GONE)
		settled(device);
	if (work == WORK_DETACH && device->error && device->alive < device->connections)
		env_timer_start(device->attach->env, &device->retry,
				LOOK_NS); /* it may be tried again */
	else if (work != WORK_GIVE || !env_timer_active(&device->retry))
		device_step(device);
	tell_resized(device);
}

/* ---- devices -------------------------------------------------------------------------------------- */

static void device_free(struct attach_device *device)
{
	env_timer_stop(device->attach->env, &device->retry);
	attach_thread_free(device->thread);
	free(device);
}

static void attach_reap(struct env_task *task)
{
	struct attach *attach = container_of(task, struct attach, reap);
	struct attach_device **at = &attach->devices;

	while (*at) {
		struct attach_device *device = *at;

		if (device->state != ATTACH_GONE || device->work != WORK_NONE || device->looking ||
		    device->alive || device->old) {
			at = &device->next;
			continue;
		}
		*at = device->next;
		device_close(device);
		device_free(device);
	}
}

static struct attach_device *device_new(struct attach *attach, const char *name,
					enum attach_state state)
{
	struct attach_device *device = calloc(1, sizeof(*device));
	struct attach_options options = {.connections = 1};

	if (device)
		device->thread = attach_thread_new(attach->env);
	if (!device || !device->thread) {
		free(device);
		return NULL;
	}
	attach->config.options(attach->config.context, name, &options);
	device->attach = attach;
	device->state = state;
	snprintf(device->name, sizeof(device->name), "%s", name);
	device->connections = options.connections < 1 ? 1
			      : options.connections > ATTACH_CONNECTIONS_MAX
				      ? ATTACH_CONNECTIONS_MAX
				      : options.connections;
	device->params.dead_s = options.dead_s;
	device->request_s = options.request_s;
	device->retry.fire = retry_fire;
	device->call.run = device_run;
	device->call.done = device_done;
	device->first = attach->started != NULL;
	device->next = attach->devices;
	attach->devices = device;
	return device;
}

static bool identifier_of(struct attach *attach, const char *name, char *text, size_t size)
{
	char who[NBD_KERNEL_NAME_MAX];

	return attach->config.identify(attach->config.context, name, who, sizeof(who)) &&
	       snprintf(text, size, PREFIX "%s:%s", name, who) < (int)size;
}

static struct attach_device *find_device(const struct attach *attach, const char *name)
{
	for (struct attach_device *d = attach->devices; d; d = d->next)
		if (d->state != ATTACH_GONE && (!strcmp(d->name, name) || !strcmp(d->path, name)))
			return d;
	return NULL;
}

/* A device that carries the identifier of one of ours. */
static void take_over(struct attach *attach, const struct nbd_kernel_device *found)
{
	const char *text = found->identifier + sizeof(PREFIX) - 1;
	size_t length = strcspn(text, ":");
	char name[NBD_KERNEL_NAME_MAX], expected[NBD_KERNEL_NAME_MAX];
	struct attach_device *device;

	memcpy(name, text, length);
	name[length] = 0;
	if (!identifier_of(attach, name, expected, sizeof(expected)) ||
	    strcmp(expected, found->identifier) != 0)
		return;
	device = device_new(attach, name, ATTACH_RECONNECTING);
	if (!device)
		return;
	device->index = found->index;
	device->connections = found->connections <= ATTACH_CONNECTIONS_MAX ? found->connections
									   : ATTACH_CONNECTIONS_MAX;
	snprintf(device->path, sizeof(device->path), "/dev/nbd%u", found->index);
	snprintf(device->params.identifier, sizeof(device->params.identifier), "%s",
		 found->identifier);
	device->resize_due = true; /* it may have grown meanwhile */
	device_step(device);
}

static void not_attached(struct attach_device *device, int error, const char *why, const char *path)
{
	device_close(device);
	device_set_state(device, ATTACH_GONE);
	tell(&device->attached, error, why, path);
	settled(device);
	device_step(device);
}

static void opened_to_connect(struct attach_device *device, int error)
{
	struct attach_device *other = NULL;

	if (error) {
		not_attached(device, error, device->why, "");
		return;
	}
	/* Under another name of the same snapshot it may be there already. */
	for (struct attach_device *d = device->attach->devices; d && !other; d = d->next)
		if (d != device && d->state != ATTACH_GONE && !strcmp(d->name, device->name))
			other = d;
	if (other) {
		not_attached(device, other->path[0] ? 0 : -EAGAIN,
			     other->path[0] ? "" : "it is being attached just now", other->path);
		return;
	}
	if (!identifier_of(device->attach, device->name, device->params.identifier,
			   sizeof(device->params.identifier))) {
		not_attached(device, -ENOENT, "it is not served here", "");
		return;
	}
	take_params(device);
	device->fd_count = device->connections;
	start_work(device, WORK_CONNECT);
}

void attach_export(struct attach *attach, const char *name, int index, attach_done_fn done,
		   void *context)
{
	struct attach_device *device = find_device(attach, name);
	char why[320] = "";

	if (device && (!device->path[0] || device->state == ATTACH_DETACHING)) {
		done(context, -EAGAIN, "it is being attached or detached just now", "");
		return;
	}
	if (device) {
		bool same = index < 0 || (unsigned)index == device->index;

		snprintf(why, sizeof(why), "%s is attached as %s", name, device->path);
		done(context, same ? 0 : -EEXIST, same ? "" : why, device->path);
		return;
	}
	if (attach->stopping) {
		done(context, -ESHUTDOWN, "the daemon is stopping", "");
		return;
	}
	device = device_new(attach, name, ATTACH_CONNECTING);
	if (!device) {
		done(context, -ENOMEM, "out of memory", "");
		return;
	}
	device->attached = (struct attach_waiter){done, context};
	device->index_wanted = index;
	device_open(device);
}

static struct wish *wish_of(struct attach *attach, const char *name)
{
	for (unsigned i = 0; i < attach->wish_count; i++)
		if (!strcmp(attach->config.name(attach->config.context, i), name))
			return &attach->wishes[i];
	return NULL;
}

void attach_detach(struct attach *attach, const char *name, bool force, attach_done_fn done,
		   void *context)
{
	struct attach_device *device = find_device(attach, name);
	struct wish *wish;

	if (!device) {
		done(context, -ENOENT, "it is not attached", "");
		return;
	}
	if (device->detached.done || device->state == ATTACH_CONNECTING || attach->stopping) {
		done(context, -EAGAIN, "it is being attached or detached just now", "");
		return;
	}
	wish = wish_of(attach, device->name);
	if (wish)
		wish->held = true;
	device->detached = (struct attach_waiter){done, context};
	device->detach_due = true;
	device->force = force;
	device_step(device);
}

void attach_resized(struct attach *attach, const char *name, attach_done_fn done, void *context)
{
	struct attach_device *device = find_device(attach, name);
	struct resize_waiter *waiter;

	if (!device || attach->stopping) {
		done(context, 0, "", "");
		return;
	}
	/* What is looked up is not there yet, or has lost its sockets, and keeps its size. */
	assert(!device->looking);
	device->resize_due = true;
	waiter = calloc(1, sizeof(*waiter));
	if (waiter) {
		*waiter = (struct resize_waiter){device->resized, {done, context}};
		device->resized = waiter;
	}
	device_step(device);
	if (waiter)
		tell_resized(device);
	else
		done(context, 0, "", device->path);
}

/* ---- what is wanted ---------------------------------------------------------------------------- */

static void wish_done(void *context, int error, const char *why, const char *device)
{
	struct wish *wish = context;
	struct attach *attach = wish->attach;

	if (!error) {
		wish->why[0] = 0;
		wish->pause_ns = 0;
		return;
	}
	if (strcmp(why, wish->why) != 0)
		env_log(attach->env, ENV_LOG_WARNING, "attach: %s: not attached: %s",
			attach->config.name(attach->config.context, wish->index), why);
	snprintf(wish->why, sizeof(wish->why), "%s", why);
	wish->pause_ns = wish->pause_ns ? wish->pause_ns * 2 : LOOK_NS;
	if (wish->pause_ns > PAUSE_MAX_NS)
		wish->pause_ns = PAUSE_MAX_NS;
	wish->again_ns = env_now_ns(attach->env) + wish->pause_ns;
}

/* The open is tried here first: that a secondary is not attached is no news. */
static void fulfil(struct attach *attach, struct wish *wish, const char *name,
		   const struct attach_options *options)
{
	struct block *block = attach->config.find(attach->config.context, name);
	char why[256] = "";

	if (!block || block->ops->open(block, why, sizeof(why))) {
		wish->held = false;
		return;
	}
	block->ops->close(block);
	if (!wish->held && env_now_ns(attach->env) >= wish->again_ns)
		attach_export(attach, name, options->index, wish_done, wish);
}

static void look_at_wishes(struct attach *attach)
{
	for (unsigned i = 0; i < attach->wish_count; i++) {
		const char *name = attach->config.name(attach->config.context, i);
		struct attach_options options = {.wanted = false};

		attach->config.options(attach->config.context, name, &options);
		if (options.wanted && !find_device(attach, name))
			fulfil(attach, &attach->wishes[i], name, &options);
	}
	env_timer_start(attach->env, &attach->look, LOOK_NS);
}

static void look_fire(struct env_timer *timer)
{
	look_at_wishes(container_of(timer, struct attach, look));
}

/* ---- life ------------------------------------------------------------------------------------------ */

static void limit_fire(struct env_timer *timer)
{
	struct attach *attach = container_of(timer, struct attach, limit);

	for (struct attach_device *d = attach->devices; d; d = d->next)
		d->first = false;
	attach_check_started(attach);
}

struct attach *attach_new(struct env *env, const struct attach_config *config)
{
	struct attach *attach = calloc(1, sizeof(*attach));

	if (!attach)
		return NULL;
	attach->env = env;
	attach->config = *config;
	while (config->name(config->context, attach->wish_count))
		attach->wish_count++;
	attach->wishes = calloc(attach->wish_count + 1, sizeof(*attach->wishes));
	if (!attach->wishes) {
		free(attach);
		return NULL;
	}
	for (unsigned i = 0; i < attach->wish_count; i++)
		attach->wishes[i] = (struct wish){.attach = attach, .index = i};
	attach->look.fire = look_fire;
	attach->limit.fire = limit_fire;
	attach->reap.call = attach_reap;
	return attach;
}

void attach_start(struct attach *attach, void (*started)(void *context), void *context)
{
	const struct nbd_kernel *kernel = attach->config.kernel;
	struct nbd_kernel_device *found = calloc(DEVICES_MAX, sizeof(*found));
	unsigned count = found ? kernel->scan(kernel->context, PREFIX, found, DEVICES_MAX) : 0;

	attach->started = started;
	attach->started_context = context;
	env_timer_start(attach->env, &attach->limit, START_NS);
	for (unsigned i = 0; i < count; i++)
		take_over(attach, &found[i]);
	free(found);
	look_at_wishes(attach);
	attach_check_started(attach);
}

void attach_stop(struct attach *attach)
{
	attach->stopping = true;
	attach->started = NULL;
	env_timer_stop(attach->env, &attach->look);
	env_timer_stop(attach->env, &attach->limit);
	for (struct attach_device *d = attach->devices; d; d = d->next) {
		env_timer_stop(attach->env, &d->retry);
		if (d->alive + d->old == 0)
			device_close(d);
		tell(&d->attached, -ESHUTDOWN, "the daemon is stopping", "");
		tell(&d->detached, -ESHUTDOWN, "the daemon is stopping", "");
		tell_all_resized(d);
	}
}

bool attach_free(struct attach *attach)
{
	if (!attach)
		return true;
	for (struct attach_device *d = attach->devices; d; d = d->next)
		if (d->work != WORK_NONE || d->looking)
			return false;
	env_defer_cancel(attach->env, &attach->reap);
	while (attach->devices) {
		struct attach_device *device = attach->devices;

		attach->devices = device->next;
		device_free(device);
	}
	free(attach->wishes);
	free(attach);
	return true;
}

/* ---- what there is ------------------------------------------------------------------------------- */

bool attach_get(const struct attach *attach, unsigned index, struct attach_info *info)
{
	for (struct attach_device *d = attach->devices; d; d = d->next) {
		struct attach_options options = {.wanted = false};

		if (d->state == ATTACH_GONE || index--)
			continue;
		attach->config.options(attach->config.context, d->name, &options);
		*info = (struct attach_info){
			.name = d->name,
			.device = d->path,
			.state = d->state,
			.size_bytes = d->params.size_bytes,
			.connections = d->connections,
			.alive = d->alive,
			.reconnects = d->reconnects,
			.read_only = d->read_only,
			.wanted = options.wanted,
			.why = d->state == ATTACH_WAITING ? d->why : "",
		};
		return true;
	}
	return false;
}

const char *attach_device(const struct attach *attach, const char *name)
{
	struct attach_device *device = find_device(attach, name);

	return device && device->path[0] ? device->path : NULL;
}

void attach_check(const struct attach *attach)
{
	for (struct attach_device *d = attach->devices; d; d = d->next) {
		assert(d->alive + d->old == 0 || d->block);
		assert(d->work != WORK_NONE || d->fd_count == 0 || d->state == ATTACH_GONE);
		assert(d->state != ATTACH_ATTACHED || d->path[0]);
		assert(d->alive <= d->connections);
	}
}
