// SPDX-License-Identifier: Apache-2.0
#include "nbd-server/attach_block.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>

static void release(struct attach_block *b, struct block *block)
{
	if (b->held)
		b->config->release(b->config->context, block);
	b->held = false;
}

/* The block was found, or not. */
static void found(struct attach_block *b, struct block *block, int error, const char *reason)
{
	char why[256];

	snprintf(why, sizeof(why), "%s", reason);
	if (block)
		error = block->ops->open(block, why, sizeof(why));
	if (error)
		release(b, block);
	else
		b->block = block;
	b->opened(b, error, error ? why : "");
}

static void lookup_done(struct block_lookup *lookup, struct block *block, int error,
			const char *why)
{
	struct attach_block *b =
		(struct attach_block *)((char *)lookup - offsetof(struct attach_block, lookup));

	b->looking = false;
	b->held = block != NULL;
	if (b->given_up)
		release(b, block);
	else
		found(b, block, block ? 0 : error, why ? why : "");
}

void attach_block_open(struct attach_block *b, const char *name)
{
	const struct attach_config *config = b->config;
	struct block *block = config->find(config->context, name);

	assert(!b->block && !b->looking);
	if (block || !config->look_up) {
		found(b, block, block ? 0 : -ENOENT, "it is not served here");
		return;
	}
	b->looking = true;
	b->lookup.done = lookup_done;
	config->look_up(config->context, name, &b->lookup);
}

void attach_block_close(struct attach_block *b)
{
	if (!b->block)
		return;
	b->block->ops->close(b->block);
	release(b, b->block);
	b->block = NULL;
}

void attach_block_give_up(struct attach_block *b)
{
	b->given_up = true;
}
