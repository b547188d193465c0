// SPDX-License-Identifier: Apache-2.0
/*
 * attached: what nbd-server/attach.h has to know of the node: which exports there are, who they are, and what
 * the configuration says of them.
 */
#include "daemon/control/control.h"
#include "daemon/node/exports.h"

#include <stdio.h>
#include <string.h>

/* A snapshot's export is VOLUME@SNAPSHOT. */
static struct node_volume *volume_of(struct node *node, const char *name)
{
	size_t length = strcspn(name, "@");
	char volume[128];

	if (!length || length >= sizeof(volume))
		return NULL;
	memcpy(volume, name, length);
	volume[length] = 0;
	return node_find(node, volume);
}

static struct block *find(void *context, const char *name)
{
	return *name ? node_find_block(context, name) : NULL;
}

/* Snapshots. */
static void look_up(void *context, const char *name, struct block_lookup *lookup)
{
	exports_look_up(node_exports(context), name, lookup);
}

static void release(void *context, struct block *block)
{
	exports_release(node_exports(context), block);
}

/* Both nodes have the volume's uuid, and may run on one host. */
static bool identify(void *context, const char *name, char *text, size_t size)
{
	struct node_volume *volume = volume_of(context, name);
	char uuid[ID128_TEXT_BYTES];
	struct volume_state state;

	if (!volume || !volume->volume)
		return false;
	volume_get_state(volume->volume, &state);
	id128_format(&state.uuid, uuid);
	return snprintf(text, size, "%s:%s", node_config(context)->node.name, uuid) < (int)size;
}

static void options(void *context, const char *name, struct attach_options *to)
{
	const struct node_volume *volume = volume_of(context, name);

	*to = (struct attach_options){.index = -1, .connections = 1, .dead_s = 120};
	if (!volume)
		return;
	to->connections = volume->config->attach_connections;
	to->dead_s = volume->config->attach_timeout_s;
	to->request_s = volume->config->attach_request_s;
	if (strchr(name, '@') || volume->config->attach == CONFIG_ATTACH_NO)
		return;
	to->wanted = true;
	to->index = volume->config->attach;
}

/* A snapshot is not written to. */
static void brace(void *context, const char *name)
{
	const struct node_volume *volume = strchr(name, '@') ? NULL : volume_of(context, name);

	if (!volume || !volume->volume)
		return;
	volume_brace(volume->volume, volume->replication, volume->config->store);
	if (volume->replication)
		replication_brace(volume->replication);
}

static const char *name(void *context, unsigned index)
{
	if (index >= node_volume_count(context))
		return NULL;
	return node_volume(context, index)->config->name;
}

struct attach *control_attach_new(struct env *env, struct node *node, struct nbd_server *nbd)
{
	struct attach_config config = {
		.server = nbd,
		.kernel = &nbd_kernel_real,
		.find = find,
		.look_up = look_up,
		.release = release,
		.identify = identify,
		.options = options,
		.brace = brace,
		.name = name,
		.context = node,
	};

	return attach_new(env, &config);
}
