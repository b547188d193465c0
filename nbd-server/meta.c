// SPDX-License-Identifier: Apache-2.0
/*
 * Metadata contexts: which there are, which a client selects, and BLOCK_STATUS. base:allocation is asked of the
 * device itself; the others are maps that whoever configured the server opens, and that stay open for this
 * client as long as its selection holds.
 */
#include "nbd-server/connection.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define LISTED_MAX 512u /* contexts that one answer names */
_Static_assert(LISTED_MAX *(sizeof(struct nbd_option_reply) + 4 + 64) < NBD_TX_BYTES,
	       "most answers are not cut for want of room");

/* ---- the selection ---------------------------------------------------------------------------- */

void nbd_meta_drop(struct nbd_connection *connection)
{
	const struct nbd_server_config *config = &connection->server->config;

	for (unsigned i = 0; i < connection->context_count; i++)
		if (connection->contexts[i].map)
			connection->contexts[i].map->close(connection->contexts[i].map);
	connection->context_count = 0;
	if (connection->meta_held)
		config->release(config->context, connection->meta_block);
	connection->meta_held = false;
	connection->meta_block = NULL;
}

static void put_context(struct nbd_connection *connection, uint32_t id, const char *name,
			size_t length)
{
	be32_t be = to_be32(id);

	nbd_option_reply(connection, NBD_REP_META_CONTEXT, sizeof(be) + length);
	nbd_option_bytes(connection, &be, sizeof(be));
	nbd_option_bytes(connection, name, length);
}

static bool has_room(const struct nbd_connection *connection, size_t length)
{
	/* And for the final answer. */
	return NBD_TX_BYTES - connection->tx_used >=
	       2 * sizeof(struct nbd_option_reply) + 4 + length;
}

static void end_option(struct nbd_connection *connection)
{
	nbd_option_reply(connection, NBD_REP_ACK, 0);
	nbd_option_send(connection, NBD_OPTION);
}

/* ---- SET ------------------------------------------------------------------------------------------ */

static void select_next(struct nbd_connection *connection);

static void select_map(struct nbd_connection *connection, struct block_map *map)
{
	struct nbd_context *context = &connection->contexts[connection->context_count++];

	*context = (struct nbd_context){connection->context_count, map};
	put_context(connection, context->id, connection->meta_query, connection->meta_query_length);
}

static void map_opened(struct block_map_open *open, struct block_map *map)
{
	struct nbd_connection *connection = container_of(open, struct nbd_connection, map_open);

	connection->looking = false;
	if (connection->state == NBD_CLOSED) {
		if (map)
			map->close(map);
		env_defer(connection->env, &connection->task);
		return;
	}
	if (map)
		select_map(connection, map);
	if (!connection->meta_opening)
		select_next(connection);
}

/* False: none of it, or it has to be looked up. */
static bool select_allocation(struct nbd_connection *connection)
{
	if (!nbd_meta_query_names(connection->meta_query, connection->meta_query_length,
				  NBD_META_ALLOCATION, false))
		return false;
	for (unsigned i = 0; i < connection->context_count; i++)
		if (!connection->contexts[i].map)
			return true; /* named twice */
	select_map(connection, NULL);
	return true;
}

/* The queries one by one, as each may have to be looked up. Those that are answered at once are so many that
 * each must not stand on the stack of the one before. */
static void select_next(struct nbd_connection *connection)
{
	const struct nbd_server_config *config = &connection->server->config;
	bool may_look = config->map_open && nbd_server_may_look(connection->server);

	while (connection->context_count < NBD_CONTEXTS_MAX &&
	       nbd_meta_query_next(&connection->meta_request, &connection->meta_query,
				   &connection->meta_query_length)) {
		char name[256];

		if (!has_room(connection, connection->meta_query_length))
			break;
		if (select_allocation(connection) || !may_look ||
		    connection->meta_query_length >= sizeof(name))
			continue;
		memcpy(name, connection->meta_query, connection->meta_query_length);
		name[connection->meta_query_length] = '\0';
		connection->looking = true;
		connection->map_open.done = map_opened;
		connection->meta_opening = true;
		config->map_open(config->context, connection->meta_block, name,
				 &connection->map_open);
		connection->meta_opening = false;
		if (connection->looking)
			return;
	}
	end_option(connection);
}

/* ---- LIST ----------------------------------------------------------------------------------------- */

static bool is_asked_for(const struct nbd_connection *connection, const char *name)
{
	struct nbd_meta_request request = connection->meta_request;
	const char *query;
	size_t length;
	bool match = request.count == 0;

	while (!match && nbd_meta_query_next(&request, &query, &length))
		match = nbd_meta_query_names(query, length, name, true);
	return match;
}

static void maps_listed(struct block_map_list *list, const char *const *names, unsigned count)
{
	struct nbd_connection *connection = container_of(list, struct nbd_connection, map_list);
	const struct nbd_server_config *config = &connection->server->config;

	connection->looking = false;
	if (connection->list_held)
		config->release(config->context, connection->list_block);
	connection->list_block = NULL;
	if (connection->state == NBD_CLOSED) {
		env_defer(connection->env, &connection->task);
		return;
	}
	if (is_asked_for(connection, NBD_META_ALLOCATION))
		put_context(connection, 0, NBD_META_ALLOCATION, strlen(NBD_META_ALLOCATION));
	for (unsigned i = 0; i < count && i < LISTED_MAX; i++)
		if (is_asked_for(connection, names[i]) && has_room(connection, strlen(names[i])))
			put_context(connection, 0, names[i], strlen(names[i]));
	end_option(connection);
}

/* Whether any query could name another one than base:allocation. */
static bool wants_maps(const struct nbd_connection *connection)
{
	struct nbd_meta_request request = connection->meta_request;
	const char *query;
	size_t length;

	if (request.count == 0)
		return true;
	while (nbd_meta_query_next(&request, &query, &length))
		if (length < 5 || memcmp(query, "base:", 5) != 0)
			return true;
	return false;
}

/* ---- the options ------------------------------------------------------------------------------- */

static void meta_found(struct nbd_connection *connection, struct block *block, bool held, int error,
		       const char *why)
{
	const struct nbd_server_config *config = &connection->server->config;

	if (!block) {
		nbd_option_error(connection, nbd_option_error_of(error), why);
		nbd_option_send(connection, NBD_OPTION);
		return;
	}
	if (connection->option == NBD_OPT_SET_META_CONTEXT) {
		connection->meta_block = block;
		connection->meta_held = held;
		select_next(connection);
		return;
	}
	if (config->map_list && wants_maps(connection) && nbd_server_may_look(connection->server)) {
		connection->list_block = block;
		connection->list_held = held;
		connection->looking = true;
		connection->map_list.done = maps_listed;
		config->map_list(config->context, block, &connection->map_list);
		return;
	}
	if (is_asked_for(connection, NBD_META_ALLOCATION))
		put_context(connection, 0, NBD_META_ALLOCATION, strlen(NBD_META_ALLOCATION));
	if (held)
		config->release(config->context, block);
	end_option(connection);
}

void nbd_meta_option(struct nbd_connection *connection, const uint8_t *data, uint32_t length)
{
	const char *reason = nbd_meta_request_parse(data, length, &connection->meta_request);

	/* Whatever comes of it, the earlier selection is gone. */
	if (connection->option == NBD_OPT_SET_META_CONTEXT)
		nbd_meta_drop(connection);
	if (!connection->terms.structured)
		reason = "structured replies come first";
	if (reason) {
		nbd_option_error(connection, NBD_REP_ERR_INVALID, reason);
		nbd_option_send(connection, NBD_OPTION);
		return;
	}
	nbd_option_find(connection, connection->meta_request.name,
			connection->meta_request.name_length, meta_found);
}

/* ---- BLOCK_STATUS --------------------------------------------------------------------------------- */

/* What the device said becomes descriptors, in place; equal neighbours are one. */
static void make_descriptors(struct nbd_slot *slot, bool is_map)
{
	struct block_extent *from = (struct block_extent *)slot->buf->data;
	struct nbd_status_extent *to = (struct nbd_status_extent *)slot->buf->data;
	uint32_t flags = 0, run = 0;
	unsigned count = 0;

	for (unsigned i = 0; i < slot->status.count; i++) {
		const struct block_extent extent = from[i];
		uint32_t now = is_map ? extent.flags
				      : (extent.hole ? NBD_STATE_HOLE : 0) |
						(extent.zero ? NBD_STATE_ZERO : 0);

		assert(extent.length_bytes > 0 && extent.length_bytes <= slot->request.length);
		if (run == 0 || now != flags) {
			count++;
			flags = now;
			run = 0;
		}
		run += (uint32_t)extent.length_bytes;
		to[count - 1].length = to_be32(run);
		to[count - 1].flags = to_be32(flags);
	}
	assert(count > 0 && run > 0);
	slot->extents = count;
}

static void status_end(struct nbd_slot *slot, int error)
{
	if (!error)
		make_descriptors(slot, slot->connection->contexts[slot->context].map != NULL);
	nbd_status_answered(slot, error);
}

static void status_done(struct block_status *status, int error)
{
	struct nbd_slot *slot = container_of(status, struct nbd_slot, status);
	struct nbd_connection *connection = slot->connection;

	assert(slot->submitted && connection->submitted > 0 && error <= 0);
	slot->submitted = false;
	connection->submitted--;
	if (connection->state == NBD_CLOSED)
		env_defer(connection->env, &connection->task);
	else
		status_end(slot, error);
}

/* The number of questions is limited, too: a device may answer with equal neighbours. */
static void ask_extents(struct block *block, struct block_status *status)
{
	uint64_t at = status->offset_bytes, left = status->length_bytes;

	for (unsigned round = 0; round < 8 && left > 0 && status->count < status->max; round++) {
		unsigned n = block->ops->extents(block, at, left, status->extents + status->count,
						 status->max - status->count);

		assert(n > 0 && n <= status->max - status->count);
		for (unsigned i = 0; i < n; i++) {
			assert(status->extents[status->count].length_bytes <= left);
			at += status->extents[status->count].length_bytes;
			left -= status->extents[status->count].length_bytes;
			status->count++;
		}
	}
}

void nbd_meta_status(struct nbd_slot *slot)
{
	struct nbd_connection *connection = slot->connection;
	struct block_map *map = connection->contexts[slot->context].map;
	struct block *block = connection->block;

	slot->status = (struct block_status){
		.offset_bytes = slot->request.offset,
		.length_bytes = slot->request.length,
		.extents = (struct block_extent *)slot->buf->data,
		.max = slot->request.flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_EXTENTS_MAX,
		.done = status_done,
	};
	if (!map && block->ops->extents) {
		ask_extents(block, &slot->status);
		status_end(slot, 0);
		return;
	}
	slot->submitted = true;
	connection->submitted++;
	if (map)
		map->status(map, &slot->status);
	else
		block->ops->status(block, &slot->status);
}
