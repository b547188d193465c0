// SPDX-License-Identifier: Apache-2.0
/* The clients of the primary: their requests, and what must hold when these complete. */
#include "tests/sim/world_internal.h"

#include <stdlib.h>
#include <string.h>

bool world_idle(struct world *world)
{
	return world->busy == 0;
}

static bool in_sync(struct world *world, uint64_t *connects)
{
	struct replication_status status;

	world_status(world, world->primary, &status);
	*connects = status.connects + status.disconnects + status.left_stream;
	return status.state == REPLICATION_STREAMING && status.source &&
	       status.protocol == REPLICATION_C;
}

/* What was written is on both disks: the peer said so before it was lost. */
static bool on_both(struct world *world, const struct block_request *r)
{
	uint8_t *own = malloc(r->length_bytes), *other = malloc(r->length_bytes);
	bool same = own != NULL && other != NULL &&
		    sim_file_peek(world->nodes[world->primary].env, WORLD_BACKING, own,
				  r->length_bytes, r->offset_bytes) &&
		    sim_file_peek(world->nodes[1 - world->primary].env, WORLD_BACKING, other,
				  r->length_bytes, r->offset_bytes) &&
		    memcmp(own, other, r->length_bytes) == 0;

	free(own);
	free(other);
	return same;
}

/* on-peer-loss = suspend: once the peer followed, no write completes without it. */
static void check_not_alone(struct client *client)
{
	struct world *world = client->world;
	struct replication_status status;

	if (!world->must_wait || client->request.op == BLOCK_READ ||
	    client->request.op == BLOCK_FLUSH || world->options.protocol != 'C')
		return;
	world_status(world, world->primary, &status);
	if (status.state != REPLICATION_STREAMING && !on_both(world, &client->request))
		world_fail(world, "a write completed while the peer did not follow (%s)",
			   replication_state_name(status.state));
}

static void check_read_done(struct client *client)
{
	struct world *world = client->world;
	struct block_request *r = &client->request;
	char why[1024];

	if (client->whole &&
	    !model_check_read(world->model, r->buf->data, r->offset_bytes, r->length_bytes,
			      client->submitted, model_tick(world->model), why, sizeof(why)))
		world_fail(world, "read [%llu+%llu]: %s", (unsigned long long)r->offset_bytes,
			   (unsigned long long)r->length_bytes, why);
}

static void client_end(struct client *client)
{
	buf_put(client->request.buf);
	client->request.buf = NULL;
	client->busy = false;
	client->world->busy--;
}

static void request_done(struct block_request *request, int error)
{
	struct client *client = (struct client *)request;
	struct world *world = client->world;
	uint64_t connects;
	bool on_peer, leans = world_leans(world, world->primary);
	unsigned asked = world->primary; /* whose disk */

	if (client->incarnation != world->incarnation ||
	    sim_node_dead(world->nodes[world->primary].env))
		return;
	if (!client->busy)
		world_fail(world, "a request completed twice");
	if (leans && !world->nodes[asked].disk_errors)
		asked = 1 - asked;
	if (error != 0 && !world->nodes[asked].disk_errors && !client->excused)
		world_fail(world, "request %d [%llu+%llu] failed: %d", request->op,
			   (unsigned long long)request->offset_bytes,
			   (unsigned long long)request->length_bytes, error);
	if (error != 0) {
		if (request->op != BLOCK_READ && request->op != BLOCK_FLUSH)
			world->nodes[world->primary].unequal = world->write_failed = true;
		/* Where there was only no room it is used on. */
		world->nodes[asked].disk_failed |=
			!client->excused && !world->nodes[asked].disk_full;
		client_end(client);
		return;
	}
	check_not_alone(client);
	on_peer = leans ||
		  (in_sync(world, &connects) && client->streaming && connects == client->connects);
	switch (request->op) {
	case BLOCK_READ:
		check_read_done(client);
		break;
	case BLOCK_WRITE:
	case BLOCK_TRIM:
	case BLOCK_ZERO:
		model_complete(world->model, client->write,
			       (request->flags & BLOCK_FUA) != 0 || leans, on_peer);
		break;
	case BLOCK_FLUSH:
		model_flushed(world->model, client->submitted, on_peer);
		break;
	default:
		break;
	}
	world->answered = model_tick(world->model);
	if ((request->op == BLOCK_FLUSH || (request->flags & BLOCK_FUA)) && world_chance(world, 10))
		world->look = true;
	client_end(client);
}

/* Opens the export when the volume is fit for it. */
static bool open_block(struct world *world)
{
	struct world_node *n = &world->nodes[world->primary];
	struct volume_state state;
	struct block *block;
	char why[256] = "";

	if (world->block != NULL)
		return true;
	if (n->node == NULL || n->content_lost || n->restoring || n->rolling_back || n->unresolved)
		return false;
	world_volume_state(world, world->primary, &state);
	if (n->disk_errors && state.disk == VOLUME_DISK_FAILED)
		n->disk_failed = true;
	if (n->disk_failed)
		return false;
	if (state.role != VOLUME_PRIMARY ||
	    (state.disk != VOLUME_DISK_UPTODATE && !world_leans(world, world->primary)))
		world_fail(world, "the primary is %s and %s", volume_role_name(state.role),
			   volume_disk_state_name(state.disk));
	block = node_find_block(n->node, WORLD_VOLUME);
	if (block == NULL || block->ops->open(block, why, sizeof(why)) != 0)
		world_fail(world, "the primary's export does not open: %s", why);
	world->block = block;
	return true;
}

static struct client *client_new(struct world *world, enum block_op op)
{
	struct client *client = NULL;

	if (world->busy >= world->options.queue_depth || !open_block(world))
		return NULL;
	for (unsigned i = 0; client == NULL && i < WORLD_CLIENTS_MAX; i++)
		if (!world->clients[i].busy)
			client = &world->clients[i];
	if (client == NULL)
		return NULL;
	memset(client, 0, sizeof(*client));
	client->world = world;
	client->busy = true;
	client->incarnation = world->incarnation;
	client->streaming = in_sync(world, &client->connects);
	if (world->options.suspend && client->streaming)
		world->must_wait = true;
	client->request.op = op;
	client->request.done = request_done;
	world->busy++;
	return client;
}

static void submit(struct world *world, struct client *client)
{
	world->requests++;
	world->block->ops->submit(world->block, &client->request);
	for (unsigned i = 0; i < NODES; i++)
		world_died(world, i);
}

void world_flush(struct world *world)
{
	struct client *client = client_new(world, BLOCK_FLUSH);

	if (client == NULL)
		return;
	client->submitted = model_tick(world->model);
	submit(world, client);
}

static void choose_range(struct world *world, struct block_request *r, uint64_t align,
			 uint64_t length_max)
{
	uint64_t size = world->size_bytes;
	uint64_t length = 1 + world_random(world, length_max);

	/* Half of it in a few places, so that requests meet. */
	if (world_chance(world, 50))
		r->offset_bytes =
			(world_random(world, 8) * 131072 + world_random(world, 16384)) % size;
	else
		r->offset_bytes = world_random(world, size);
	r->offset_bytes -= r->offset_bytes % align;
	length += align - 1;
	length -= length % align;
	if (length > size - r->offset_bytes)
		length = size - r->offset_bytes;
	r->length_bytes = length;
}

/* Two writes that share a sector without sharing a byte may take effect in any order: not told
 * apart by the model, so not done at the same time. */
static bool shares_sector(const struct world *world, const struct client *client)
{
	const struct block_request *r = &client->request;
	uint64_t start = r->offset_bytes / MODEL_SECTOR;
	uint64_t end = (r->offset_bytes + r->length_bytes - 1) / MODEL_SECTOR;

	for (unsigned i = 0; i < WORLD_CLIENTS_MAX; i++) {
		const struct client *other = &world->clients[i];
		const struct block_request *o = &other->request;

		if (!other->busy || other == client || o->length_bytes == 0 || o->op == BLOCK_READ)
			continue;
		if (o->offset_bytes / MODEL_SECTOR <= end &&
		    (o->offset_bytes + o->length_bytes - 1) / MODEL_SECTOR >= start)
			return true;
	}
	return false;
}

static void submit_write(struct world *world)
{
	uint64_t align = world->options.block_min_bytes > 512 ? 4096 : 512;
	struct client *client = client_new(world, BLOCK_WRITE);
	struct block_request *r;

	if (client == NULL)
		return;
	r = &client->request;
	if (world->options.partial_sectors && world_chance(world, 50))
		align = 1;
	choose_range(world, r, align, world->options.write_max_bytes);
	if (world->options.partial_sectors && shares_sector(world, client)) {
		client_end(client);
		return;
	}
	if (world_chance(world, 10))
		r->flags = BLOCK_FUA;
	r->buf = buf_alloc(world->pool, (uint32_t)r->length_bytes);
	if (r->buf == NULL) {
		client_end(client);
		return;
	}
	client->write = model_submit(world->model, r->offset_bytes, r->length_bytes, r->buf->data);
	submit(world, client);
}

static void submit_zero(struct world *world)
{
	struct client *client;
	struct block_request *r;
	struct sim_disk_options disk;
	uint64_t align = 4096;
	bool trim;

	/* A TRIM may leave the content where the disk cannot punch: not told apart. */
	sim_disk_get(world->nodes[world->primary].env, &disk);
	trim = !disk.zero_unsupported && world_chance(world, 50);
	client = client_new(world, trim ? BLOCK_TRIM : BLOCK_ZERO);
	if (client == NULL)
		return;
	r = &client->request;
	if (r->op == BLOCK_ZERO && world->options.block_min_bytes <= 512)
		align = 512;
	choose_range(world, r, align, world_chance(world, 20) ? 1 << 20 : 65536);
	if (world->options.partial_sectors && shares_sector(world, client)) {
		client_end(client);
		return;
	}
	if (world_chance(world, 10))
		r->flags |= BLOCK_FUA;
	if (r->op == BLOCK_ZERO && world_chance(world, 30))
		r->flags |= BLOCK_NO_HOLE;
	client->write = model_submit(world->model, r->offset_bytes, r->length_bytes, NULL);
	submit(world, client);
}

static void submit_read(struct world *world)
{
	uint64_t align = world->options.block_min_bytes > 512 ? 4096 : 512;
	struct client *client = client_new(world, BLOCK_READ);
	struct block_request *r;

	if (client == NULL)
		return;
	r = &client->request;
	client->whole = true;
	if (world->options.block_min_bytes == 1 && world_chance(world, 20)) {
		align = 1;
		client->whole = false;
	}
	choose_range(world, r, align, world->options.write_max_bytes);
	r->buf = buf_alloc(world->pool, (uint32_t)r->length_bytes);
	if (r->buf == NULL) {
		client_end(client);
		return;
	}
	client->submitted = model_tick(world->model);
	submit(world, client);
}

void world_submit(struct world *world)
{
	unsigned what = (unsigned)world_random(world, 100);

	if (what < 55)
		submit_write(world);
	else if (what < 65)
		submit_zero(world);
	else if (what < 85)
		submit_read(world);
	else
		world_flush(world);
}
