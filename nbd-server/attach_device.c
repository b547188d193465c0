// SPDX-License-Identifier: Apache-2.0
#include "nbd-server/attach_device.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbd-server/connection.h"

#define RETRY_NS  50000000ull   /* a socket that was not taken */
#define LOOK_NS   1000000000ull /* an export that cannot be opened; a detach that was refused */
#define BLOCK_MIN 512u

/* One of those that wait for a new size. */
struct resize_waiter {
	struct resize_waiter *next;
	struct attach_waiter waiter;
};

static void device_step(struct attach_device *device);

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

static struct env *env_of(const struct attach_device *device)
{
	return device->owner->env;
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
	env_log(env_of(device), level, "attach: %s: %s%s%s", device->name, device->path,
		device->path[0] ? ": " : "", line);
}

static void settled(struct attach_device *device)
{
	device->settled = true;
	device->owner->settled(device->owner);
}

/* ---- who waits ------------------------------------------------------------------------------------ */

static void tell(struct attach_waiter *waiter, int error, const char *why, const char *device)
{
	struct attach_waiter w = *waiter;

	*waiter = (struct attach_waiter){};
	if (w.done)
		w.done(w.context, error, why, device);
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
	enum attach_verb verb = attach_call_verb(device->call);

	if (verb != ATTACH_RESIZE && (verb == ATTACH_NOTHING || !device->resize_due))
		tell_all_resized(device);
}

/* ---- calls to the kernel -------------------------------------------------------------------------- */

static void start_call(struct attach_device *device, enum attach_verb verb, unsigned sockets)
{
	attach_call_start(
		device->call,
		&(struct attach_order){
			.verb = verb,
			.index = verb == ATTACH_CONNECT ? device->index_wanted : (int)device->index,
			.params = &device->params,
			.sockets = sockets,
			.force = device->force,
		});
}

/* The export as it is now. */
static void take_params(struct attach_device *device)
{
	struct nbd_terms terms = {0};
	struct block_info info = {0};
	uint32_t block_bytes;

	nbd_take_terms(device->block.block, &info, &terms);
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

/* Serves the sockets that the kernel has taken. */
static void serve(struct attach_device *device, const struct attach_result *result)
{
	const struct attach_config *config = &device->owner->config;

	if (config->brace && result->socket_count > 0)
		config->brace(config->context, device->name);
	for (unsigned i = 0; i < result->socket_count; i++) {
		int error = attach_links_add(&device->links, result->sockets[i],
					     device->block.block, device->path);

		if (error)
			device_log(device, ENV_LOG_ERROR, "connection: %s", strerror(-error));
	}
}

static void connect_done(struct attach_device *device, const struct attach_result *result)
{
	if (result->error) {
		attach_block_close(&device->block);
		device_set_state(device, ATTACH_GONE);
		tell(&device->attached, result->error, result->why, "");
		return;
	}
	device->index = result->index;
	snprintf(device->path, sizeof(device->path), "/dev/nbd%u", device->index);
	serve(device, result);
	device_log(device, ENV_LOG_INFO, "attached, %u connection%s%s", device->links.alive,
		   device->links.alive == 1 ? "" : "s", device->read_only ? ", read-only" : "");
	device_set_state(device, ATTACH_ATTACHED);
	tell(&device->attached, 0, "", device->path);
}

static void give_done(struct attach_device *device, const struct attach_result *result)
{
	serve(device, result);
	device->reconnects += result->socket_count;
	if (device->links.alive >= device->connections) {
		device_log(device, ENV_LOG_INFO, "connected again, %u connection%s",
			   device->links.alive, device->links.alive == 1 ? "" : "s");
		device_set_state(device, ATTACH_ATTACHED);
	} else if (result->error == -EINVAL || result->error == -ENODEV ||
		   result->error == -ENOENT) {
		/* Somebody else has detached it. */
		device_log(device, ENV_LOG_WARNING, "the kernel no longer has it");
		device_set_state(device, ATTACH_GONE);
		tell(&device->detached, 0, "", device->path);
	} else {
		env_timer_start(env_of(device), &device->retry, RETRY_NS);
	}
}

/* False: the kernel keeps it. */
static bool detach_done(struct attach_device *device, const struct attach_result *result)
{
	bool was_gone = result->error == -EINVAL || result->error == -ENODEV;
	int error = was_gone ? 0 : result->error;

	device_log(device, error ? ENV_LOG_WARNING : ENV_LOG_INFO, "%s",
		   error ? result->why : "detached");
	device_set_state(device, error ? ATTACH_RECONNECTING : ATTACH_GONE);
	tell(&device->detached, error, result->why, device->path);
	return !error;
}

static void call_done(void *context, const struct attach_result *result)
{
	struct attach_device *device = context;
	bool kept = false;

	if (device->owner->stopping) {
		/* What the kernel was given dies with us. */
		for (unsigned i = 0; i < result->socket_count; i++)
			close(result->sockets[i]);
		return;
	}
	if (result->untuned && !device->untuned_told) {
		device_log(device, ENV_LOG_WARNING, "not all of its limits are set: %s",
			   result->why);
		device->untuned_told = true;
	}
	switch (result->verb) {
	case ATTACH_CONNECT:
		connect_done(device, result);
		break;
	case ATTACH_GIVE:
		give_done(device, result);
		break;
	case ATTACH_RESIZE:
		if (result->error)
			device_log(device, ENV_LOG_WARNING,
				   "the kernel does not take the new size: %s: it is seen when it "
				   "is attached again",
				   strerror(-result->error));
		break;
	case ATTACH_DETACH:
		kept = !detach_done(device, result);
		break;
	case ATTACH_NOTHING:
		abort();
	}
	if (result->verb != ATTACH_GIVE || device->links.alive > 0 || device->state == ATTACH_GONE)
		settled(device);
	if (kept && device->links.alive < device->connections)
		env_timer_start(env_of(device), &device->retry,
				LOOK_NS); /* it may be tried again */
	else if (result->verb != ATTACH_GIVE || !env_timer_active(&device->retry))
		device_step(device);
	tell_resized(device);
}

/* ---- the export is open, or cannot be ------------------------------------------------------------- */

static void not_attached(struct attach_device *device, int error, const char *why, const char *path)
{
	attach_block_close(&device->block);
	device_set_state(device, ATTACH_GONE);
	tell(&device->attached, error, why, path);
	settled(device);
	device_step(device);
}

/* Under another name of the same snapshot it may be there already. */
static bool is_attached_already(struct attach_device *device)
{
	const struct attach_device *other;

	/* VOLUME@latest is another one tomorrow. */
	snprintf(device->name, sizeof(device->name), "%s", device->block.block->name);
	other = device->owner->find(device->owner, device->name, device);
	if (!other)
		return false;
	if (other->path[0])
		not_attached(device, 0, "", other->path);
	else
		not_attached(device, -EAGAIN, "it is being attached just now", "");
	return true;
}

static void opened_to_connect(struct attach_device *device, int error, const char *why)
{
	if (error) {
		not_attached(device, error, why, "");
		return;
	}
	if (is_attached_already(device))
		return;
	if (!attach_device_identifier(&device->owner->config, device->name,
				      device->params.identifier,
				      sizeof(device->params.identifier))) {
		not_attached(device, -ENOENT, "it is not served here", "");
		return;
	}
	take_params(device);
	start_call(device, ATTACH_CONNECT, device->connections);
}

static void opened_to_reconnect(struct attach_device *device, int error, const char *why)
{
	if (error && strcmp(why, device->why) != 0)
		device_log(device, ENV_LOG_WARNING, "its I/O %s: %s",
			   error == -EPERM ? "fails" : "waits", why);
	snprintf(device->why, sizeof(device->why), "%s", why);
	if (error == -EPERM) {
		/* Another node may have written meanwhile, and filesystems here have cached the time before. */
		device->detach_due = device->force = true;
	} else if (error) {
		device_set_state(device, ATTACH_WAITING);
		settled(device);
		env_timer_start(env_of(device), &device->retry, LOOK_NS);
		return;
	}
	device_step(device);
}

static void opened(struct attach_block *block, int error, const char *why)
{
	struct attach_device *device =
		(struct attach_device *)((char *)block - offsetof(struct attach_device, block));

	if (device->state == ATTACH_CONNECTING)
		opened_to_connect(device, error, why);
	else
		opened_to_reconnect(device, error, why);
}

/* ---- steps ---------------------------------------------------------------------------------------- */

static void step_reconnect(struct attach_device *device)
{
	/* Not longer than the kernel can wait. */
	uint64_t patience_ns = device->params.dead_s * 1000000000ull / 2;

	device_set_state(device, ATTACH_RECONNECTING);
	if (!device->block.block) {
		attach_block_open(&device->block, device->name);
	} else if (!attach_links_may_add(&device->links, patience_ns)) {
		env_timer_start(env_of(device), &device->retry, LOOK_NS);
	} else {
		take_params(device);
		start_call(device, ATTACH_GIVE, device->connections - device->links.alive);
	}
}

static void step_detach(struct attach_device *device)
{
	device->detach_due = false;
	if (device->state == ATTACH_CONNECTING)
		device_set_state(device, ATTACH_RECONNECTING);
	device_set_state(device, ATTACH_DETACHING);
	start_call(device, ATTACH_DETACH, 0);
}

static void step_resize(struct attach_device *device)
{
	device->resize_due = false;
	take_params(device);
	nbd_server_resized(device->owner->config.server, device->block.block);
	start_call(device, ATTACH_RESIZE, 0);
}

static void device_step(struct attach_device *device)
{
	if (attach_device_is_busy(device) || device->owner->stopping)
		return;
	if (attach_device_is_gone(device))
		device->owner->gone(device->owner);
	else if (device->state == ATTACH_GONE)
		return;
	else if (device->detach_due)
		step_detach(device);
	else if (device->links.alive < device->connections)
		step_reconnect(device);
	else if (device->resize_due)
		step_resize(device);
	else
		device_set_state(device, ATTACH_ATTACHED);
}

static void retry_fire(struct env_timer *timer)
{
	device_step(
		(struct attach_device *)((char *)timer - offsetof(struct attach_device, retry)));
}

static void links_changed(struct attach_links *links)
{
	struct attach_device *device =
		(struct attach_device *)((char *)links - offsetof(struct attach_device, links));

	if (!device->owner->stopping && !env_timer_active(&device->retry))
		env_timer_start(env_of(device), &device->retry, 0);
	else if (device->owner->stopping && attach_links_gone(links))
		attach_block_close(&device->block);
}

/* ---- what is asked of it -------------------------------------------------------------------------- */

bool attach_device_identifier(const struct attach_config *config, const char *name, char *text,
			      size_t size)
{
	char who[NBD_KERNEL_NAME_MAX];

	return config->identify(config->context, name, who, sizeof(who)) &&
	       snprintf(text, size, ATTACH_PREFIX "%s:%s", name, who) < (int)size;
}

void attach_device_connect(struct attach_device *device, int index, attach_done_fn done,
			   void *context)
{
	device->attached = (struct attach_waiter){done, context};
	device->index_wanted = index;
	attach_block_open(&device->block, device->name);
}

void attach_device_take_over(struct attach_device *device, const struct nbd_kernel_device *found)
{
	device->index = found->index;
	device->connections = found->connections <= ATTACH_CONNECTIONS_MAX ? found->connections
									   : ATTACH_CONNECTIONS_MAX;
	snprintf(device->path, sizeof(device->path), "/dev/nbd%u", found->index);
	snprintf(device->params.identifier, sizeof(device->params.identifier), "%s",
		 found->identifier);
	device->resize_due = true; /* it may have grown meanwhile */
	device_step(device);
}

void attach_device_detach(struct attach_device *device, bool force, attach_done_fn done,
			  void *context)
{
	device->detached = (struct attach_waiter){done, context};
	device->detach_due = true;
	device->force = force;
	device_step(device);
}

void attach_device_resize(struct attach_device *device, attach_done_fn done, void *context)
{
	struct resize_waiter *waiter = calloc(1, sizeof(*waiter));

	/* What is looked up is not there yet, or has lost its sockets, and keeps its size. */
	assert(!device->block.looking);
	device->resize_due = true;
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

/* ---- life ------------------------------------------------------------------------------------------ */

struct attach_device *attach_device_new(struct attach_owner *owner, const char *name,
					enum attach_state state)
{
	const struct attach_config *config = &owner->config;
	struct attach_options options = {.connections = 1};
	struct attach_device *device = calloc(1, sizeof(*device));

	if (device)
		device->call = attach_call_new(owner->env, config->kernel, call_done, device);
	if (!device || !device->call) {
		free(device);
		return NULL;
	}
	config->options(config->context, name, &options);
	device->owner = owner;
	device->state = state;
	snprintf(device->name, sizeof(device->name), "%s", name);
	device->connections = options.connections < 1 ? 1
			      : options.connections > ATTACH_CONNECTIONS_MAX
				      ? ATTACH_CONNECTIONS_MAX
				      : options.connections;
	device->params.dead_s = options.dead_s;
	device->request_s = options.request_s;
	device->block = (struct attach_block){.config = config, .opened = opened};
	device->links = (struct attach_links){
		.env = owner->env, .server = config->server, .changed = links_changed};
	device->retry.fire = retry_fire;
	return device;
}

void attach_device_free(struct attach_device *device)
{
	attach_block_close(&device->block);
	env_timer_stop(env_of(device), &device->retry);
	attach_call_free(device->call);
	free(device);
}

void attach_device_stop(struct attach_device *device)
{
	env_timer_stop(env_of(device), &device->retry);
	attach_block_give_up(&device->block);
	if (attach_links_gone(&device->links))
		attach_block_close(&device->block);
	tell(&device->attached, -ESHUTDOWN, "the daemon is stopping", "");
	tell(&device->detached, -ESHUTDOWN, "the daemon is stopping", "");
	tell_all_resized(device);
}

bool attach_device_is_busy(const struct attach_device *device)
{
	return attach_call_verb(device->call) != ATTACH_NOTHING || device->block.looking;
}

bool attach_device_is_gone(const struct attach_device *device)
{
	return device->state == ATTACH_GONE && !attach_device_is_busy(device) &&
	       attach_links_gone(&device->links);
}

void attach_device_check(const struct attach_device *device)
{
	assert(attach_links_gone(&device->links) || device->block.block);
	assert(device->state != ATTACH_ATTACHED || device->path[0]);
	assert(device->links.alive <= device->connections);
}
