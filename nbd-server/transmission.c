// SPDX-License-Identifier: Apache-2.0
/*
 * Requests: out of the receive buffer, judged, given buffers and handed to the block device.
 *
 * A READ or WRITE longer than BUF_SIZE_MAX is split: its slot becomes the parent, each part takes
 * a slot of its own. WRITE parts go down as their payload arrives, the parent replies after the
 * last. READ parts go out as structured chunks in whatever order they complete; a client with
 * simple replies gets one header and then the parts in order, so there the split READ runs alone,
 * one part in the device at a time.
 */
#include "nbd-server/connection.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* What one step of the parser came to. */
enum step {
	STEP_MORE,    /* something was done: go on */
	STEP_RECEIVE, /* rx[] is too short */
	STEP_WAIT,    /* blocked, receiving directly, or no longer transmitting */
};

static void slot_done(struct block_request *request, int error);
static void slot_ended(struct nbd_slot *slot);

/* ---- slots and buffers -------------------------------------------------------------------- */

static struct nbd_slot *slot_take(struct nbd_connection *connection)
{
	struct nbd_slot *slot = connection->free_slots;

	if (slot) {
		connection->free_slots = slot->next;
	} else if (connection->slots_fresh < NBD_SLOTS) {
		slot = &connection->slots[connection->slots_fresh++];
		slot->connection = connection;
	} else {
		connection->blocked = true;
		return NULL;
	}
	connection->slots_used++;
	slot->next = NULL;
	slot->parent = NULL;
	slot->reply = NBD_REPLY_STATUS;
	slot->error = NBD_OK;
	slot->reason = NULL;
	slot->parts = 0;
	slot->issued = slot->filled = slot->context = 0;
	slot->last = slot->started = false;
	return slot;
}

/* Undoes slot_take() for a slot that came to nothing. */
static void slot_untake(struct nbd_slot *slot)
{
	struct nbd_connection *connection = slot->connection;

	assert(!slot->buf && !slot->submitted && connection->slots_used > 0);
	slot->next = connection->free_slots;
	connection->free_slots = slot;
	connection->slots_used--;
}

void nbd_slot_drop_buffer(struct nbd_slot *slot)
{
	if (!slot->buf)
		return;
	assert(slot->connection->held_bytes >= slot->buf->size_bytes);
	slot->connection->held_bytes -= slot->buf->size_bytes;
	buf_put(slot->buf);
	slot->buf = NULL;
	if (slot->connection->blocked)
		env_defer(slot->connection->env, &slot->connection->task);
}

void nbd_slot_release(struct nbd_slot *slot)
{
	struct nbd_connection *connection = slot->connection;

	nbd_slot_drop_buffer(slot);
	slot_untake(slot);
	if (connection->blocked || connection->stopping || connection->state != NBD_TRANSMISSION)
		env_defer(connection->env, &connection->task);
}

/* False: the connection is blocked now. */
static bool slot_take_buffer(struct nbd_slot *slot, uint32_t size_bytes)
{
	struct nbd_connection *connection = slot->connection;
	struct nbd_server *server = connection->server;

	assert(!slot->buf && !connection->waiting_buffer);
	if (connection->held_bytes > 0 &&
	    connection->held_bytes + size_bytes > server->held_bytes_max) {
		connection->blocked = true;
		return false;
	}
	slot->buf = buf_alloc(server->config.pool, size_bytes);
	if (!slot->buf) {
		connection->blocked = true;
		connection->waiting_buffer = true;
		buf_wait(server->config.pool, &connection->waiter, size_bytes);
		nbd_server_watch_stalls(server);
		return false;
	}
	connection->held_bytes += slot->buf->size_bytes;
	return true;
}

void nbd_transmission_resume(struct buf_waiter *waiter)
{
	struct nbd_connection *connection = container_of(waiter, struct nbd_connection, waiter);

	/* Called from inside some buf_put(): nothing is done here and now. */
	connection->waiting_buffer = false;
	env_defer(connection->env, &connection->task);
}

static void stop_waiting(struct nbd_connection *connection)
{
	if (!connection->waiting_buffer)
		return;
	connection->waiting_buffer = false;
	buf_wait_cancel(connection->server->config.pool, &connection->waiter);
}

void nbd_transmission_abandon(struct nbd_connection *connection)
{
	assert(connection->state == NBD_CLOSED && !connection->send_busy);
	stop_waiting(connection);
	connection->blocked = false;
	for (unsigned i = 0; i < connection->slots_fresh; i++) {
		if (!connection->slots[i].submitted)
			nbd_slot_drop_buffer(&connection->slots[i]);
	}
}

/* ---- to the device and back --------------------------------------------------------------- */

static const enum block_op block_ops[NBD_COMMANDS] = {
	[NBD_CMD_READ] = BLOCK_READ,         [NBD_CMD_WRITE] = BLOCK_WRITE,
	[NBD_CMD_FLUSH] = BLOCK_FLUSH,       [NBD_CMD_TRIM] = BLOCK_TRIM,
	[NBD_CMD_WRITE_ZEROES] = BLOCK_ZERO, [NBD_CMD_CACHE] = BLOCK_CACHE,
};

/* The slot belongs to the device afterwards, and may even have been answered. */
static void slot_submit(struct nbd_slot *slot)
{
	struct nbd_connection *connection = slot->connection;
	const struct nbd_request *request = &slot->request;
	struct block_request *block = &slot->block;

	block->op = block_ops[request->type];
	block->flags = 0;
	block->done = slot_done;
	/* FUA is allowed on all commands, and means something to those that change the content. */
	if ((request->flags & NBD_CMD_FLAG_FUA) &&
	    (block->op == BLOCK_WRITE || block->op == BLOCK_TRIM || block->op == BLOCK_ZERO))
		block->flags |= BLOCK_FUA;
	if (request->flags & NBD_CMD_FLAG_NO_HOLE)
		block->flags |= BLOCK_NO_HOLE;
	if (request->flags & NBD_CMD_FLAG_FAST_ZERO)
		block->flags |= BLOCK_FAST_ZERO;
	block->offset_bytes = request->offset;
	block->length_bytes = request->length;
	block->buf = slot->buf;
	slot->submitted = true;
	connection->submitted++;
	connection->block->ops->submit(connection->block, block);
}

static void slot_fail(struct nbd_slot *slot, int error)
{
	const struct nbd_request *request = &slot->request;

	slot->error = nbd_error_from_errno(error, request->flags & NBD_CMD_FLAG_FAST_ZERO);
	slot->reason = strerrordesc_np(-error);
	/* Expected from a device that has no fast zeroes. */
	if (slot->error == NBD_ENOTSUP)
		return;
	nbd_server_log(slot->connection->server, ENV_LOG_DEBUG,
		       "nbd: export %s: %s of %u bytes at %llu: %s", slot->connection->block->name,
		       nbd_command_name(request->type), request->length,
		       (unsigned long long)request->offset,
		       slot->reason ? slot->reason : "unknown error");
}

/* All of a split request was given to parts. */
static bool all_issued(const struct nbd_slot *parent)
{
	if (parent->request.type == NBD_CMD_BLOCK_STATUS)
		return parent->issued == parent->connection->context_count;
	return parent->issued == parent->request.length;
}

/* A part of a READ for a client without structured replies. */
static void part_done_simple(struct nbd_slot *part)
{
	struct nbd_connection *connection = part->connection;
	struct nbd_slot *parent = part->parent;
	bool complete = parent->issued == parent->request.length;

	assert(connection->split == parent && parent->parts == 0);
	if (part->error || complete) {
		connection->split = NULL;
		connection->parse = NBD_PARSE_REQUEST;
	}
	if (!part->error) {
		part->reply = parent->started ? NBD_REPLY_MORE : NBD_REPLY_FIRST;
		parent->started = true;
		nbd_reply_queue(part);
		if (complete)
			nbd_slot_release(parent);
		return;
	}
	nbd_slot_release(part);
	if (parent->started) {
		/* The header promised success; only the end of the connection can say otherwise. */
		nbd_server_log(
			connection->server, ENV_LOG_WARNING,
			"nbd: export %s: READ failed after its reply had begun: client %s dropped",
			connection->block->name, stream_peername(connection->stream));
		nbd_connection_close(connection);
		return;
	}
	nbd_reply_queue(parent);
}

static void part_done(struct nbd_slot *part)
{
	struct nbd_connection *connection = part->connection;
	struct nbd_slot *parent = part->parent;
	bool complete;

	assert(parent->parts > 0);
	parent->parts--;
	complete = parent->parts == 0 && all_issued(parent);
	if (part->error && !parent->error) {
		parent->error = part->error;
		parent->reason = part->reason;
	}
	if (part->request.type == NBD_CMD_READ && !connection->terms.structured) {
		part_done_simple(part);
	} else if (part->request.type != NBD_CMD_WRITE && !parent->error) {
		if (part->request.type == NBD_CMD_READ)
			part->reply = NBD_REPLY_PART;
		part->last = complete;
		nbd_reply_queue(part);
		if (complete)
			nbd_slot_release(parent);
	} else {
		nbd_slot_release(part);
		if (complete)
			nbd_reply_queue(parent);
	}
	if (connection->blocked)
		env_defer(connection->env, &connection->task);
}

static void slot_ended(struct nbd_slot *slot)
{
	if (slot->parent)
		part_done(slot);
	else
		nbd_reply_queue(slot);
}

static void slot_done(struct block_request *request, int error)
{
	struct nbd_slot *slot = container_of(request, struct nbd_slot, block);
	struct nbd_connection *connection = slot->connection;

	assert(slot->submitted && connection->submitted > 0 && error <= 0);
	slot->submitted = false;
	connection->submitted--;
	if (connection->state == NBD_CLOSED) {
		/* Its buffer goes with the others, in task. */
		env_defer(connection->env, &connection->task);
		return;
	}
	if (error == -ESHUTDOWN && connection->adopted) {
		/* Not an answer for the kernel: it sends the request again, to the next daemon. */
		nbd_connection_close(connection);
		return;
	}
	if (error)
		slot_fail(slot, error);
	if (error || slot->request.type != NBD_CMD_READ)
		nbd_slot_drop_buffer(slot);
	slot_ended(slot);
}

/* ---- BLOCK_STATUS ------------------------------------------------------------------------- */

static void start_split(struct nbd_slot *slot)
{
	slot->connection->split = slot;
	slot->connection->parse = NBD_PARSE_SPLIT;
}

void nbd_status_answered(struct nbd_slot *slot, int error)
{
	if (error) {
		slot_fail(slot, error);
		nbd_slot_drop_buffer(slot);
	}
	slot->reply = NBD_REPLY_EXTENTS;
	slot->last = !slot->parent;
	slot_ended(slot);
}

/* With several contexts each is a part of its own: a chunk of the one reply. */
static bool start_block_status(struct nbd_slot *slot)
{
	assert(slot->connection->context_count > 0);
	if (slot->connection->context_count > 1) {
		start_split(slot);
		return true;
	}
	if (!slot_take_buffer(slot, NBD_EXTENTS_MAX * sizeof(struct block_extent)))
		return false;
	nbd_meta_status(slot);
	return true;
}

/* ---- parsing ------------------------------------------------------------------------------ */

static uint32_t rx_available(const struct nbd_connection *connection)
{
	return connection->rx_end - connection->rx_start;
}

static void start_payload(struct nbd_slot *slot)
{
	struct nbd_connection *connection = slot->connection;

	connection->filling = slot;
	connection->received_ns = env_now_ns(connection->env);
	connection->parse = NBD_PARSE_PAYLOAD;
}

/* A request that was found to be in order. False: blocked, nothing has happened. */
static bool start_request(struct nbd_slot *slot)
{
	const struct nbd_request *request = &slot->request;

	switch (request->type) {
	case NBD_CMD_READ:
		if (request->length > BUF_SIZE_MAX) {
			start_split(slot);
			return true;
		}
		if (!slot_take_buffer(slot, request->length))
			return false;
		slot->reply = NBD_REPLY_DATA;
		break;
	case NBD_CMD_WRITE:
		if (request->length > BUF_SIZE_MAX) {
			start_split(slot);
			return true;
		}
		if (!slot_take_buffer(slot, request->length))
			return false;
		start_payload(slot);
		return true;
	case NBD_CMD_BLOCK_STATUS:
		return start_block_status(slot);
	default:
		break;
	}
	slot_submit(slot);
	return true;
}

/* Answers with slot->error, after reading away the payload that belongs to the request. */
static enum step refuse_request(struct nbd_slot *slot)
{
	struct nbd_connection *connection = slot->connection;

	nbd_server_log(connection->server, ENV_LOG_DEBUG,
		       "nbd: client %s: export %s: %s of %u bytes at %llu, flags 0x%x: refused: %s",
		       stream_peername(connection->stream), connection->block->name,
		       nbd_command_name(slot->request.type), slot->request.length,
		       (unsigned long long)slot->request.offset, slot->request.flags, slot->reason);
	if (slot->request.type != NBD_CMD_WRITE || slot->request.length == 0) {
		nbd_reply_queue(slot);
		return STEP_MORE;
	}
	if (slot->request.length > NBD_PAYLOAD_DRAIN_MAX) {
		nbd_connection_reject(connection, "payload far too long");
		return STEP_WAIT;
	}
	connection->drained = slot;
	connection->drain_bytes = slot->request.length;
	connection->parse = NBD_PARSE_DRAIN;
	return STEP_MORE;
}

static void judge_request(struct nbd_slot *slot)
{
	struct nbd_connection *connection = slot->connection;

	slot->error = nbd_request_check(&slot->request, &connection->terms, &slot->reason);
	/* Without fragments a READ has to fit one buffer. */
	if (!slot->error && (slot->request.flags & NBD_CMD_FLAG_DF) &&
	    slot->request.length > BUF_SIZE_MAX) {
		slot->error = NBD_EOVERFLOW;
		slot->reason = "longer than 1 MiB with the flag DF";
	}
	/* The kernel would take any error for the disk's. */
	if (!slot->error && connection->stopping && !connection->adopted) {
		slot->error = NBD_ESHUTDOWN;
		slot->reason = "the server is stopping";
	}
}

static enum step step_request(struct nbd_connection *connection)
{
	struct nbd_request_wire wire;
	struct nbd_request request;
	struct nbd_slot *slot;

	if (rx_available(connection) < sizeof(wire))
		return STEP_RECEIVE;
	memcpy(&wire, connection->rx + connection->rx_start, sizeof(wire));
	if (!nbd_request_decode(&wire, &request)) {
		nbd_connection_reject(connection, "bad request magic");
		return STEP_WAIT;
	}
	if (request.type == NBD_CMD_DISC) {
		nbd_connection_set_state(connection, NBD_DRAINING);
		env_defer(connection->env, &connection->task);
		return STEP_WAIT;
	}
	slot = slot_take(connection);
	if (!slot)
		return STEP_WAIT;
	slot->request = request;
	judge_request(slot);
	if (slot->error) {
		connection->rx_start += sizeof(wire);
		connection->server->stats.requests++;
		return refuse_request(slot);
	}
	if (!start_request(slot)) {
		/* The header stays in rx[] until there is room for what it asks. */
		slot_untake(slot);
		return STEP_WAIT;
	}
	connection->rx_start += sizeof(wire);
	connection->server->stats.requests++;
	return STEP_MORE;
}

static enum step step_payload(struct nbd_connection *connection)
{
	struct nbd_slot *slot = connection->filling;
	uint32_t left = slot->request.length - slot->filled;
	uint32_t n = rx_available(connection);

	if (n > left)
		n = left;
	memcpy(slot->buf->data + slot->filled, connection->rx + connection->rx_start, n);
	connection->rx_start += n;
	slot->filled += n;
	left -= n;
	if (left == 0) {
		connection->filling = NULL;
		connection->parse = connection->split ? NBD_PARSE_SPLIT : NBD_PARSE_REQUEST;
		slot_submit(slot);
		return STEP_MORE;
	}
	if (left < NBD_DIRECT_BYTES) {
		connection->rx_limit = NBD_RX_BYTES;
		return STEP_RECEIVE;
	}
	/* Large writes come in rows: of the next one, too, little is to be copied. */
	connection->rx_limit = NBD_RX_SMALL;
	nbd_connection_receive_direct(connection, slot->buf->data + slot->filled, left);
	return STEP_WAIT;
}

void nbd_transmission_direct(struct nbd_connection *connection, uint32_t length)
{
	if (connection->state != NBD_TRANSMISSION)
		return;
	assert(connection->filling &&
	       length <= connection->filling->request.length - connection->filling->filled);
	connection->filling->filled += length;
}

/* A split READ with simple replies: may its next part start? Nothing else may be answered from its
 * first part to its last. */
static bool simple_part_may_start(const struct nbd_connection *connection,
				  const struct nbd_slot *parent)
{
	if (parent->issued == 0)
		return connection->slots_used == 1;
	return parent->parts == 0;
}

/* The next of the contexts of a BLOCK_STATUS. */
static enum step step_split_status(struct nbd_connection *connection)
{
	struct nbd_slot *parent = connection->split, *part = slot_take(connection);

	if (!part)
		return STEP_WAIT;
	if (!slot_take_buffer(part, NBD_EXTENTS_MAX * sizeof(struct block_extent))) {
		slot_untake(part);
		return STEP_WAIT;
	}
	part->parent = parent;
	part->request = parent->request;
	part->context = parent->issued++;
	parent->parts++;
	if (all_issued(parent)) {
		connection->split = NULL;
		connection->parse = NBD_PARSE_REQUEST;
	}
	nbd_meta_status(part);
	return STEP_MORE;
}

static enum step step_split(struct nbd_connection *connection)
{
	struct nbd_slot *parent = connection->split, *part;
	bool is_read = parent->request.type == NBD_CMD_READ;
	bool is_simple = is_read && !connection->terms.structured;
	uint32_t length = parent->request.length - parent->issued;

	if (parent->request.type == NBD_CMD_BLOCK_STATUS)
		return step_split_status(connection);
	if (length > BUF_SIZE_MAX)
		length = BUF_SIZE_MAX;
	if (is_simple && !simple_part_may_start(connection, parent)) {
		connection->blocked = true;
		return STEP_WAIT;
	}
	assert(length > 0);
	part = slot_take(connection);
	if (!part)
		return STEP_WAIT;
	if (!slot_take_buffer(part, length)) {
		slot_untake(part);
		return STEP_WAIT;
	}
	part->parent = parent;
	part->request = parent->request;
	part->request.offset += parent->issued;
	part->request.length = length;
	parent->issued += length;
	parent->parts++;
	if (parent->issued == parent->request.length && !is_simple)
		connection->split = NULL;
	if (!is_read) {
		start_payload(part);
		return STEP_MORE;
	}
	if (!connection->split)
		connection->parse = NBD_PARSE_REQUEST;
	slot_submit(part);
	return STEP_MORE;
}

static enum step step_drain(struct nbd_connection *connection)
{
	struct nbd_slot *slot = connection->drained;
	uint32_t n = rx_available(connection);

	if (n > connection->drain_bytes)
		n = (uint32_t)connection->drain_bytes;
	connection->rx_start += n;
	connection->drain_bytes -= n;
	if (connection->drain_bytes > 0)
		return STEP_RECEIVE;
	connection->drained = NULL;
	connection->parse = NBD_PARSE_REQUEST;
	nbd_reply_queue(slot);
	return STEP_MORE;
}

void nbd_transmission_advance(struct nbd_connection *connection)
{
	static enum step (*const steps[])(struct nbd_connection * connection) = {
		[NBD_PARSE_REQUEST] = step_request,
		[NBD_PARSE_PAYLOAD] = step_payload,
		[NBD_PARSE_SPLIT] = step_split,
		[NBD_PARSE_DRAIN] = step_drain,
	};
	enum step step;

	if (connection->recv_busy)
		return;
	stop_waiting(connection);
	connection->blocked = false;
	do {
		step = steps[connection->parse](connection);
	} while (step == STEP_MORE && connection->state == NBD_TRANSMISSION);
	if (step == STEP_RECEIVE && connection->state == NBD_TRANSMISSION)
		nbd_connection_receive(connection);
	/* While blocked, buffers may have come back before blocked was set: nothing is lost, as
	 * they only ever come back from completions and sends that are still under way. */
}
