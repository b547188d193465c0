// SPDX-License-Identifier: Apache-2.0
/* Which devices there are: those of an earlier daemon, those that are asked for, those that the configuration wants. */
#include "nbd-server/attach.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbd-server/attach_device.h"
#include "nbd-server/attach_wishes.h"

#define START_NS    20000000000ull
#define DEVICES_MAX 256u

struct attach {
	struct attach_owner owner;
	struct attach_device *devices;
	struct attach_wishes *wishes;
	struct env_task reap;   /* frees devices that are gone */
	struct env_timer limit; /* of started() */
	void (*started)(void *context);
	void *started_context;
};

static struct attach *attach_of(const struct attach_owner *owner)
{
	return (struct attach *)((char *)owner - offsetof(struct attach, owner));
}

/* ---- the devices ------------------------------------------------------------------------------------ */

static struct attach_device *find_device(const struct attach_owner *owner, const char *name,
					 const struct attach_device *except)
{
	for (struct attach_device *d = attach_of(owner)->devices; d; d = d->next)
		if (d != except && d->state != ATTACH_GONE &&
		    (!strcmp(d->name, name) || !strcmp(d->path, name)))
			return d;
	return NULL;
}

static struct attach_device *add_device(struct attach *attach, const char *name,
					enum attach_state state)
{
	struct attach_device *device = attach_device_new(&attach->owner, name, state);

	if (device) {
		device->next = attach->devices;
		attach->devices = device;
	}
	return device;
}

static void device_gone(struct attach_owner *owner)
{
	env_defer(owner->env, &attach_of(owner)->reap);
}

static void reap_run(struct env_task *task)
{
	struct attach *attach = (struct attach *)((char *)task - offsetof(struct attach, reap));
	struct attach_device **at = &attach->devices;

	while (*at) {
		struct attach_device *device = *at;

		if (!attach_device_is_gone(device)) {
			at = &device->next;
			continue;
		}
		*at = device->next;
		attach_device_free(device);
	}
}

/* ---- what is asked for ------------------------------------------------------------------------------ */

void attach_export(struct attach *attach, const char *name, int index, attach_done_fn done,
		   void *context)
{
	struct attach_device *device = find_device(&attach->owner, name, NULL);
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
	if (attach->owner.stopping) {
		done(context, -ESHUTDOWN, "the daemon is stopping", "");
		return;
	}
	device = add_device(attach, name, ATTACH_CONNECTING);
	if (device)
		attach_device_connect(device, index, done, context);
	else
		done(context, -ENOMEM, "out of memory", "");
}

void attach_detach(struct attach *attach, const char *name, bool force, attach_done_fn done,
		   void *context)
{
	struct attach_device *device = find_device(&attach->owner, name, NULL);

	if (!device) {
		done(context, -ENOENT, "it is not attached", "");
		return;
	}
	if (device->detached.done || device->state == ATTACH_CONNECTING || attach->owner.stopping) {
		done(context, -EAGAIN, "it is being attached or detached just now", "");
		return;
	}
	attach_wishes_hold(attach->wishes, device->name);
	attach_device_detach(device, force, done, context);
}

void attach_resized(struct attach *attach, const char *name, attach_done_fn done, void *context)
{
	struct attach_device *device = find_device(&attach->owner, name, NULL);

	if (device && !attach->owner.stopping)
		attach_device_resize(device, done, context);
	else
		done(context, 0, "", "");
}

/* ---- start ------------------------------------------------------------------------------------------ */

/* A device that carries the identifier of one of ours. */
static void take_over(struct attach *attach, const struct nbd_kernel_device *found)
{
	const char *text = found->identifier + sizeof(ATTACH_PREFIX) - 1;
	size_t length = strcspn(text, ":");
	char name[NBD_KERNEL_NAME_MAX], expected[NBD_KERNEL_NAME_MAX];
	struct attach_device *device;

	memcpy(name, text, length);
	name[length] = 0;
	if (!attach_device_identifier(&attach->owner.config, name, expected, sizeof(expected)) ||
	    strcmp(expected, found->identifier) != 0)
		return;
	device = add_device(attach, name, ATTACH_RECONNECTING);
	if (device)
		attach_device_take_over(device, found);
}

static void all_settled(struct attach *attach)
{
	void (*started)(void *context) = attach->started;

	if (!started)
		return;
	attach->started = NULL;
	env_timer_stop(attach->owner.env, &attach->limit);
	started(attach->started_context);
}

static void device_settled(struct attach_owner *owner)
{
	struct attach *attach = attach_of(owner);

	for (struct attach_device *d = attach->devices; d; d = d->next)
		if (!d->settled)
			return;
	all_settled(attach);
}

static void limit_fire(struct env_timer *timer)
{
	all_settled((struct attach *)((char *)timer - offsetof(struct attach, limit)));
}

void attach_start(struct attach *attach, void (*started)(void *context), void *context)
{
	const struct nbd_kernel *kernel = attach->owner.config.kernel;
	struct nbd_kernel_device *found = calloc(DEVICES_MAX, sizeof(*found));
	unsigned count =
		found ? kernel->scan(kernel->context, ATTACH_PREFIX, found, DEVICES_MAX) : 0;

	attach->started = started;
	attach->started_context = context;
	env_timer_start(attach->owner.env, &attach->limit, START_NS);
	for (unsigned i = 0; i < count; i++)
		take_over(attach, &found[i]);
	free(found);
	attach_wishes_start(attach->wishes);
	device_settled(&attach->owner);
}

/* ---- life ------------------------------------------------------------------------------------------- */

struct attach *attach_new(struct env *env, const struct attach_config *config)
{
	struct attach *attach = calloc(1, sizeof(*attach));

	if (!attach)
		return NULL;
	attach->owner = (struct attach_owner){
		.env = env,
		.config = *config,
		.find = find_device,
		.settled = device_settled,
		.gone = device_gone,
	};
	attach->reap.call = reap_run;
	attach->limit.fire = limit_fire;
	attach->wishes = attach_wishes_new(attach, &attach->owner);
	if (!attach->wishes) {
		free(attach);
		return NULL;
	}
	return attach;
}

void attach_stop(struct attach *attach)
{
	attach->owner.stopping = true;
	attach->started = NULL;
	attach_wishes_stop(attach->wishes);
	env_timer_stop(attach->owner.env, &attach->limit);
	for (struct attach_device *d = attach->devices; d; d = d->next)
		attach_device_stop(d);
}

bool attach_free(struct attach *attach)
{
	if (!attach)
		return true;
	for (struct attach_device *d = attach->devices; d; d = d->next)
		if (attach_device_is_busy(d))
			return false;
	env_defer_cancel(attach->owner.env, &attach->reap);
	while (attach->devices) {
		struct attach_device *device = attach->devices;

		attach->devices = device->next;
		attach_device_free(device);
	}
	attach_wishes_free(attach->wishes);
	free(attach);
	return true;
}

/* ---- what there is ---------------------------------------------------------------------------------- */

bool attach_get(const struct attach *attach, unsigned index, struct attach_info *info)
{
	const struct attach_config *config = &attach->owner.config;

	for (struct attach_device *d = attach->devices; d; d = d->next) {
		struct attach_options options = {.wanted = false};

		if (d->state == ATTACH_GONE || index--)
			continue;
		config->options(config->context, d->name, &options);
		*info = (struct attach_info){
			.name = d->name,
			.device = d->path,
			.state = d->state,
			.size_bytes = d->params.size_bytes,
			.connections = d->connections,
			.alive = d->links.alive,
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
	struct attach_device *device = find_device(&attach->owner, name, NULL);

	return device && device->path[0] ? device->path : NULL;
}

void attach_check(const struct attach *attach)
{
	for (struct attach_device *d = attach->devices; d; d = d->next)
		attach_device_check(d);
}
