// SPDX-License-Identifier: Apache-2.0
#include "nbd-server/attach_wishes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_NS      1000000000ull
#define PAUSE_MAX_NS 60000000000ull /* between two tries */

/* A name that the configuration may want attached. */
struct wish {
	struct attach_wishes *wishes;
	unsigned index;    /* config.name()'s */
	bool held;         /* detached by hand */
	uint64_t again_ns; /* not tried before; after a failure */
	uint64_t pause_ns;
	char why[256]; /* what was said last about it */
};

struct attach_wishes {
	struct attach *attach;
	const struct attach_owner *owner;
	struct env_timer look;
	unsigned count;
	struct wish wishes[];
};

static const char *name_of(const struct attach_wishes *wishes, unsigned index)
{
	const struct attach_config *config = &wishes->owner->config;

	return config->name(config->context, index);
}

static void wish_done(void *context, int error, const char *why, const char *device)
{
	struct wish *wish = context;
	struct env *env = wish->wishes->owner->env;

	if (!error) {
		wish->why[0] = 0;
		wish->pause_ns = 0;
		return;
	}
	if (strcmp(why, wish->why) != 0)
		env_log(env, ENV_LOG_WARNING, "attach: %s: not attached: %s",
			name_of(wish->wishes, wish->index), why);
	snprintf(wish->why, sizeof(wish->why), "%s", why);
	wish->pause_ns = wish->pause_ns ? wish->pause_ns * 2 : LOOK_NS;
	if (wish->pause_ns > PAUSE_MAX_NS)
		wish->pause_ns = PAUSE_MAX_NS;
	wish->again_ns = env_now_ns(env) + wish->pause_ns;
}

/* The open is tried here first: that a secondary is not attached is no news. */
static void fulfil(struct wish *wish, const char *name, int index)
{
	const struct attach_owner *owner = wish->wishes->owner;
	struct block *block = owner->config.find(owner->config.context, name);
	char why[256] = "";

	if (!block || block->ops->open(block, why, sizeof(why))) {
		wish->held = false;
		return;
	}
	block->ops->close(block);
	if (!wish->held && env_now_ns(owner->env) >= wish->again_ns)
		attach_export(wish->wishes->attach, name, index, wish_done, wish);
}

void attach_wishes_start(struct attach_wishes *wishes)
{
	const struct attach_owner *owner = wishes->owner;

	for (unsigned i = 0; i < wishes->count; i++) {
		const char *name = name_of(wishes, i);
		struct attach_options options = {.wanted = false};

		owner->config.options(owner->config.context, name, &options);
		if (options.wanted && !owner->find(owner, name, NULL))
			fulfil(&wishes->wishes[i], name, options.index);
	}
	env_timer_start(owner->env, &wishes->look, LOOK_NS);
}

static void look_fire(struct env_timer *timer)
{
	attach_wishes_start(
		(struct attach_wishes *)((char *)timer - offsetof(struct attach_wishes, look)));
}

void attach_wishes_stop(struct attach_wishes *wishes)
{
	env_timer_stop(wishes->owner->env, &wishes->look);
}

void attach_wishes_hold(struct attach_wishes *wishes, const char *name)
{
	for (unsigned i = 0; i < wishes->count; i++)
		if (!strcmp(name_of(wishes, i), name))
			wishes->wishes[i].held = true;
}

struct attach_wishes *attach_wishes_new(struct attach *attach, const struct attach_owner *owner)
{
	const struct attach_config *config = &owner->config;
	struct attach_wishes *wishes;
	unsigned count = 0;

	while (config->name(config->context, count))
		count++;
	wishes = calloc(1, sizeof(*wishes) + count * sizeof(wishes->wishes[0]));
	if (!wishes)
		return NULL;
	wishes->attach = attach;
	wishes->owner = owner;
	wishes->look.fire = look_fire;
	wishes->count = count;
	for (unsigned i = 0; i < count; i++)
		wishes->wishes[i] = (struct wish){.wishes = wishes, .index = i};
	return wishes;
}

void attach_wishes_free(struct attach_wishes *wishes)
{
	free(wishes);
}
