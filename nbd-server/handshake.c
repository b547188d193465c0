// SPDX-License-Identifier: Apache-2.0
/*
 * The way from a fresh connection to an open export: greeting, options, STARTTLS.
 *
 * One option at a time: its reply is sent before the next is looked at. Everything a reply needs
 * is built in tx[]; only LIST may need several sends.
 */
#include "nbd-server/connection.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* ---- building and sending replies --------------------------------------------------------- */

void nbd_option_bytes(struct nbd_connection *connection, const void *bytes, size_t length)
{
	assert(length <= NBD_TX_BYTES - connection->tx_used);
	if (length > 0)
		memcpy(connection->tx + connection->tx_used, bytes, length);
	connection->tx_used += (unsigned)length;
}

void nbd_option_reply(struct nbd_connection *connection, uint32_t type, size_t length)
{
	assert(sizeof(struct nbd_option_reply) + length <= NBD_TX_BYTES - connection->tx_used);
	connection->tx_used += (unsigned)nbd_put_option_reply(
		connection->tx + connection->tx_used, connection->option, type, (uint32_t)length);
}

static void put_ack(struct nbd_connection *connection)
{
	nbd_option_reply(connection, NBD_REP_ACK, 0);
}

void nbd_option_error(struct nbd_connection *connection, uint32_t type, const char *message)
{
	size_t length = strnlen(message, 1024);

	nbd_server_log(connection->server, ENV_LOG_DEBUG, "nbd: client %s: option %s refused: %s",
		       stream_peername(connection->stream), nbd_option_name(connection->option),
		       message);
	nbd_option_reply(connection, type, length);
	nbd_option_bytes(connection, message, length);
}

/* Sends tx[]; after: the state when all of it is out. */
void nbd_option_send(struct nbd_connection *connection, enum nbd_state after)
{
	assert(!connection->send_busy && connection->tx_used > 0);
	connection->after = after;
	connection->iov[0].iov_base = connection->tx;
	connection->iov[0].iov_len = connection->tx_used;
	connection->send_busy = true;
	stream_sendv(connection->stream, &connection->send_op, connection->iov, 1);
}

void nbd_handshake_start(struct nbd_connection *connection)
{
	struct nbd_greeting greeting = {
		.init_magic = to_be64(NBD_MAGIC_INIT),
		.option_magic = to_be64(NBD_MAGIC_OPTION),
		.flags = to_be16(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES),
	};

	nbd_option_bytes(connection, &greeting, sizeof(greeting));
	nbd_option_send(connection, NBD_GREETING);
	nbd_connection_receive(connection);
}

/* ---- exports ------------------------------------------------------------------------------ */

static void lookup_done(struct block_lookup *lookup, struct block *block, int error,
			const char *why)
{
	struct nbd_connection *connection = container_of(lookup, struct nbd_connection, lookup);
	const struct nbd_server_config *config = &connection->server->config;

	connection->looking = false;
	if (connection->state != NBD_CLOSED) {
		connection->found(connection, block, block != NULL, error, why);
		return;
	}
	if (block)
		config->release(config->context, block);
	env_defer(connection->env, &connection->task);
}

void nbd_option_find(struct nbd_connection *connection, const char *name, size_t length,
		     void (*found)(struct nbd_connection *connection, struct block *block,
				   bool held, int error, const char *why))
{
	const struct nbd_server_config *config = &connection->server->config;
	char text[NBD_STRING_MAX + 1], why[256], printable[NBD_PRINTABLE_BYTES];
	struct block *block;

	assert(length <= NBD_STRING_MAX);
	memcpy(text, name, length);
	text[length] = '\0';
	block = config->find(config->context, text);
	if (!block && config->look_up && !nbd_server_may_look(connection->server)) {
		found(connection, NULL, false, -EBUSY,
		      "too many clients look something up: try later");
		return;
	}
	if (!block && config->look_up) {
		connection->found = found;
		connection->looking = true;
		connection->lookup.done = lookup_done;
		config->look_up(config->context, text, &connection->lookup);
		return;
	}
	snprintf(why, sizeof(why), "no export of the name \"%s\"",
		 nbd_printable(printable, name, length));
	found(connection, block, false, block ? 0 : -ENOENT, why);
}

uint32_t nbd_option_error_of(int error)
{
	switch (error) {
	case -ENOENT:
		return NBD_REP_ERR_UNKNOWN;
	case -ESHUTDOWN:
		return NBD_REP_ERR_SHUTDOWN;
	default:
		return NBD_REP_ERR_POLICY;
	}
}

static uint16_t transmission_flags(const struct block_info *info, bool structured)
{
	unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_CACHE;

	if (info->read_only)
		flags |= NBD_FLAG_READ_ONLY;
	if (info->can_flush)
		flags |= NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA;
	if (info->rotational)
		flags |= NBD_FLAG_ROTATIONAL;
	if (info->can_trim && !info->read_only)
		flags |= NBD_FLAG_SEND_TRIM;
	if (info->can_zero && !info->read_only)
		flags |= NBD_FLAG_SEND_WRITE_ZEROES;
	if (info->can_zero && info->can_fast_zero && !info->read_only)
		flags |= NBD_FLAG_SEND_FAST_ZERO;
	if (info->can_multi_conn)
		flags |= NBD_FLAG_CAN_MULTI_CONN;
	if (structured)
		flags |= NBD_FLAG_SEND_DF;
	return (uint16_t)flags;
}

void nbd_take_terms(struct block *block, struct block_info *info, struct nbd_terms *terms)
{
	memset(info, 0, sizeof(*info));
	block->ops->info(block, info);
	if (info->block_min_bytes == 0)
		info->block_min_bytes = 1;
	assert((info->block_min_bytes & (info->block_min_bytes - 1)) == 0);
	assert(info->block_min_bytes <= 65536);
	if (info->block_preferred_bytes < 512)
		info->block_preferred_bytes = 4096;
	if (info->block_preferred_bytes < info->block_min_bytes)
		info->block_preferred_bytes = info->block_min_bytes;
	/* A tail shorter than the minimum block could not be addressed. */
	terms->size_bytes = info->size_bytes & ~((uint64_t)info->block_min_bytes - 1);
	terms->block_min_bytes = info->block_min_bytes;
	terms->transmission_flags = transmission_flags(info, terms->structured);
}

static void take_terms(struct nbd_connection *connection, struct block *block)
{
	struct nbd_terms *terms = &connection->terms;

	nbd_take_terms(block, &connection->info, terms);
	terms->contexts = connection->context_count > 0 && connection->meta_block == block;
}

/* Opens the device that was found; false: type and why to answer with. */
static bool open_export(struct nbd_connection *connection, struct block *block, uint32_t *type,
			char why[256])
{
	int error;

	why[0] = '\0';
	error = block->ops->open(block, why, 256);
	if (!error)
		return true;
	*type = error == -ESHUTDOWN ? NBD_REP_ERR_SHUTDOWN : NBD_REP_ERR_POLICY;
	if (!why[0])
		snprintf(why, 256, "export %s cannot be opened: %s", block->name, strerror(-error));
	return false;
}

static void release_export(struct nbd_connection *connection, struct block *block, bool held)
{
	const struct nbd_server_config *config = &connection->server->config;

	if (held)
		config->release(config->context, block);
}

static void enter_transmission(struct nbd_connection *connection, struct block *block, bool held)
{
	connection->block = block;
	connection->block_held = held;
	if (!connection->terms.contexts)
		nbd_meta_drop(connection); /* they were of another export */
	nbd_option_send(connection, NBD_TRANSMISSION);
}

/* ---- the options -------------------------------------------------------------------------- */

static void export_name_found(struct nbd_connection *connection, struct block *block, bool held,
			      int error, const char *why)
{
	struct nbd_export_name_reply reply = {0};
	char text[256];
	uint32_t type;

	if (!block) {
		nbd_connection_reject(connection, why);
		return;
	}
	if (!open_export(connection, block, &type, text)) {
		release_export(connection, block, held);
		nbd_connection_reject(connection, text);
		return;
	}
	take_terms(connection, block);
	reply.size = to_be64(connection->terms.size_bytes);
	reply.flags = to_be16(connection->terms.transmission_flags);
	nbd_option_bytes(connection, &reply,
			 connection->client_flags & NBD_FLAG_NO_ZEROES ? NBD_EXPORT_NAME_REPLY_SHORT
								       : sizeof(reply));
	enter_transmission(connection, block, held);
}

static void option_export_name(struct nbd_connection *connection, const uint8_t *data,
			       uint32_t length)
{
	const char *reason = nbd_name_invalid((const char *)data, length);

	/* This option has no error reply: the connection is all there is to refuse with. */
	if (reason)
		nbd_connection_reject(connection, reason);
	else
		nbd_option_find(connection, (const char *)data, length, export_name_found);
}

static void option_abort(struct nbd_connection *connection, const uint8_t *data, uint32_t length)
{
	put_ack(connection);
	nbd_option_send(connection, NBD_CLOSED);
}

/* As many exports as tx[] takes; nbd_handshake_sent() comes back for the others. */
static void list_some(struct nbd_connection *connection)
{
	const struct nbd_server_config *config = &connection->server->config;
	const size_t entry_max = sizeof(struct nbd_option_reply) + 4 + 2 * NBD_STRING_MAX;

	while (NBD_TX_BYTES - connection->tx_used >= entry_max) {
		struct block *block = config->list(config->context, connection->list_index++);
		size_t name_length, description_length;
		be32_t be;

		if (!block) {
			connection->listing = false;
			put_ack(connection);
			break;
		}
		name_length = strlen(block->name);
		assert(name_length <= NBD_STRING_MAX);
		description_length =
			block->description ? strnlen(block->description, NBD_STRING_MAX) : 0;
		nbd_option_reply(connection, NBD_REP_SERVER,
				 sizeof(be) + name_length + description_length);
		be = to_be32((uint32_t)name_length);
		nbd_option_bytes(connection, &be, sizeof(be));
		nbd_option_bytes(connection, block->name, name_length);
		nbd_option_bytes(connection, block->description, description_length);
	}
	nbd_option_send(connection, NBD_OPTION);
}

static void option_list(struct nbd_connection *connection, const uint8_t *data, uint32_t length)
{
	if (length > 0) {
		nbd_option_error(connection, NBD_REP_ERR_INVALID, "LIST takes no data");
		nbd_option_send(connection, NBD_OPTION);
		return;
	}
	connection->listing = true;
	connection->list_index = 0;
	list_some(connection);
}

static void option_starttls(struct nbd_connection *connection, const uint8_t *data, uint32_t length)
{
	if (connection->server->config.tls_mode == NBD_TLS_OFF) {
		nbd_option_error(connection, NBD_REP_ERR_POLICY, "TLS is not configured");
	} else if (length > 0) {
		nbd_option_error(connection, NBD_REP_ERR_INVALID, "STARTTLS takes no data");
	} else if (stream_is_tls(connection->stream)) {
		nbd_option_error(connection, NBD_REP_ERR_INVALID, "TLS is in use already");
	} else if (connection->rx_start != connection->rx_end) {
		/* Whoever sits between the client and us could have put plaintext there, to be
		 * taken later for what the client said under TLS. */
		nbd_connection_reject(connection, "plaintext behind STARTTLS");
		return;
	} else {
		put_ack(connection);
		nbd_option_send(connection, NBD_TLS);
		return;
	}
	nbd_option_send(connection, NBD_OPTION);
}

static void put_infos(struct nbd_connection *connection, const struct block *block,
		      const struct nbd_info_request *request)
{
	struct nbd_info_export export = {
		.type = to_be16(NBD_INFO_EXPORT),
		.size = to_be64(connection->terms.size_bytes),
		.flags = to_be16(connection->terms.transmission_flags),
	};
	struct nbd_info_block_size size = {
		.type = to_be16(NBD_INFO_BLOCK_SIZE),
		.minimum = to_be32(connection->terms.block_min_bytes),
		.preferred = to_be32(connection->info.block_preferred_bytes),
		.maximum = to_be32(NBD_PAYLOAD_MAX),
	};
	be16_t type;

	nbd_option_reply(connection, NBD_REP_INFO, sizeof(export));
	nbd_option_bytes(connection, &export, sizeof(export));
	if (nbd_info_wanted(request, NBD_INFO_NAME)) {
		size_t length = strnlen(block->name, NBD_STRING_MAX);

		type = to_be16(NBD_INFO_NAME);
		nbd_option_reply(connection, NBD_REP_INFO, sizeof(type) + length);
		nbd_option_bytes(connection, &type, sizeof(type));
		nbd_option_bytes(connection, block->name, length);
	}
	if (nbd_info_wanted(request, NBD_INFO_DESCRIPTION) && block->description) {
		size_t length = strnlen(block->description, NBD_STRING_MAX);

		type = to_be16(NBD_INFO_DESCRIPTION);
		nbd_option_reply(connection, NBD_REP_INFO, sizeof(type) + length);
		nbd_option_bytes(connection, &type, sizeof(type));
		nbd_option_bytes(connection, block->description, length);
	}
	/* Told unasked too: a minimum is enforced whether or not the client knows it. */
	nbd_option_reply(connection, NBD_REP_INFO, sizeof(size));
	nbd_option_bytes(connection, &size, sizeof(size));
}

static void info_found(struct nbd_connection *connection, struct block *block, bool held, int error,
		       const char *why)
{
	struct nbd_info_request request;
	uint32_t type = nbd_option_error_of(error);
	char text[256];

	if (block && !open_export(connection, block, &type, text)) {
		release_export(connection, block, held);
		block = NULL;
		why = text;
	}
	if (!block) {
		nbd_option_error(connection, type, why);
		nbd_option_send(connection, NBD_OPTION);
		return;
	}
	/* It was looked at before, and stays in rx[] as nothing is received meanwhile. */
	nbd_info_request_parse(connection->option_data, connection->option_length, &request);
	take_terms(connection, block);
	put_infos(connection, block, &request);
	put_ack(connection);
	if (connection->option == NBD_OPT_GO) {
		enter_transmission(connection, block, held);
	} else {
		block->ops->close(block);
		release_export(connection, block, held);
		nbd_option_send(connection, NBD_OPTION);
	}
}

/* INFO and GO. */
static void option_info(struct nbd_connection *connection, const uint8_t *data, uint32_t length)
{
	struct nbd_info_request request;
	const char *reason = nbd_info_request_parse(data, length, &request);

	if (reason) {
		nbd_option_error(connection, NBD_REP_ERR_INVALID, reason);
		nbd_option_send(connection, NBD_OPTION);
		return;
	}
	nbd_option_find(connection, request.name, request.name_length, info_found);
}

static void option_structured_reply(struct nbd_connection *connection, const uint8_t *data,
				    uint32_t length)
{
	if (length > 0) {
		nbd_option_error(connection, NBD_REP_ERR_INVALID, "STRUCTURED_REPLY takes no data");
	} else {
		connection->terms.structured = true;
		put_ack(connection);
	}
	nbd_option_send(connection, NBD_OPTION);
}

struct option_rule {
	void (*handle)(struct nbd_connection *connection, const uint8_t *data, uint32_t length);
	bool before_tls; /* allowed in the clear where TLS is required */
};

static const struct option_rule option_rules[] = {
	[NBD_OPT_EXPORT_NAME] = {option_export_name, false},
	[NBD_OPT_ABORT] = {option_abort, true},
	[NBD_OPT_LIST] = {option_list, false},
	[NBD_OPT_STARTTLS] = {option_starttls, true},
	[NBD_OPT_INFO] = {option_info, false},
	[NBD_OPT_GO] = {option_info, false},
	[NBD_OPT_STRUCTURED_REPLY] = {option_structured_reply, false},
	[NBD_OPT_LIST_META_CONTEXT] = {nbd_meta_option, false},
	[NBD_OPT_SET_META_CONTEXT] = {nbd_meta_option, false},
};

static const struct option_rule *option_rule(uint32_t option)
{
	if (option >= sizeof(option_rules) / sizeof(option_rules[0]) ||
	    !option_rules[option].handle)
		return NULL;
	return &option_rules[option];
}

/* data: all option_length bytes, or NULL when they were too many and have been read away. */
static void handle_option(struct nbd_connection *connection, const uint8_t *data)
{
	const struct option_rule *rule = option_rule(connection->option);
	bool plain = connection->server->config.tls_mode == NBD_TLS_REQUIRE &&
		     !stream_is_tls(connection->stream);

	nbd_connection_set_state(connection, NBD_REPLY);
	connection->tx_used = 0;
	if (plain && !(rule && rule->before_tls)) {
		if (connection->option == NBD_OPT_EXPORT_NAME) {
			nbd_connection_reject(connection, "EXPORT_NAME without TLS");
			return;
		}
		nbd_option_error(connection, NBD_REP_ERR_TLS_REQD, "TLS is required here");
		nbd_option_send(connection, NBD_OPTION);
	} else if (!rule) {
		nbd_option_error(connection, NBD_REP_ERR_UNSUP, "option not known here");
		nbd_option_send(connection, NBD_OPTION);
	} else if (!data) {
		if (connection->option == NBD_OPT_EXPORT_NAME) {
			nbd_connection_reject(connection, "option data too long");
			return;
		}
		nbd_option_error(connection, NBD_REP_ERR_TOO_BIG, "option data longer than 64 KiB");
		nbd_option_send(connection, NBD_OPTION);
	} else {
		connection->option_data = data;
		rule->handle(connection, data, connection->option_length);
	}
}

/* ---- receiving ---------------------------------------------------------------------------- */

/* Consumes length bytes of rx[]; NULL when there are fewer. */
static const uint8_t *take(struct nbd_connection *connection, uint32_t length)
{
	const uint8_t *bytes = connection->rx + connection->rx_start;

	if (connection->rx_end - connection->rx_start < length)
		return NULL;
	connection->rx_start += length;
	return bytes;
}

static bool advance_greeting(struct nbd_connection *connection)
{
	const uint8_t *bytes = take(connection, sizeof(be32_t));
	const char *reason;
	be32_t flags;

	if (!bytes)
		return false;
	memcpy(&flags, bytes, sizeof(flags));
	reason = nbd_client_flags_invalid(from_be32(flags));
	if (reason) {
		nbd_connection_reject(connection, reason);
		return false;
	}
	connection->client_flags = from_be32(flags);
	nbd_connection_set_state(connection, NBD_OPTION);
	return true;
}

static bool advance_option_header(struct nbd_connection *connection)
{
	const uint8_t *bytes = take(connection, sizeof(struct nbd_option_header));
	struct nbd_option_header header;
	const char *reason;

	if (!bytes)
		return false;
	memcpy(&header, bytes, sizeof(header));
	reason = nbd_option_header_invalid(&header);
	if (!reason && ++connection->options > NBD_OPTIONS_MAX)
		reason = "too many options";
	/* A client of the older newstyle knows one option, and no replies to others. */
	if (!reason && !(connection->client_flags & NBD_FLAG_FIXED_NEWSTYLE) &&
	    from_be32(header.option) != NBD_OPT_EXPORT_NAME)
		reason = "option without fixed newstyle";
	if (reason) {
		nbd_connection_reject(connection, reason);
		return false;
	}
	connection->option = from_be32(header.option);
	connection->option_length = from_be32(header.length);
	connection->option_drain =
		connection->option_length > NBD_OPTION_DATA_MAX ? connection->option_length : 0;
	connection->option_pending = true;
	return true;
}

/* True if an option was handled, and its reply is under way. */
static bool advance_option_data(struct nbd_connection *connection)
{
	const uint8_t *data;

	if (connection->option_drain > 0) {
		uint32_t n = connection->rx_end - connection->rx_start;

		if (n > connection->option_drain)
			n = connection->option_drain;
		connection->rx_start += n;
		connection->option_drain -= n;
		if (connection->option_drain > 0)
			return false;
		data = NULL;
	} else {
		data = take(connection, connection->option_length);
		if (!data)
			return false;
	}
	connection->option_pending = false;
	handle_option(connection, data);
	return true;
}

void nbd_handshake_advance(struct nbd_connection *connection)
{
	/* The greeting may still be on its way out when the client's first bytes come. */
	if (connection->send_busy || connection->recv_busy)
		return;
	if (connection->state == NBD_GREETING && !advance_greeting(connection)) {
		if (connection->state != NBD_CLOSED)
			nbd_connection_receive(connection);
		return;
	}
	assert(connection->state == NBD_OPTION);
	if (!connection->option_pending && !advance_option_header(connection)) {
		if (connection->state != NBD_CLOSED)
			nbd_connection_receive(connection);
		return;
	}
	if (!advance_option_data(connection))
		nbd_connection_receive(connection);
}

void nbd_handshake_sent(struct nbd_connection *connection)
{
	connection->tx_used = 0;
	if (connection->state == NBD_GREETING) {
		nbd_handshake_advance(connection);
		return;
	}
	assert(connection->state == NBD_REPLY);
	if (connection->listing) {
		list_some(connection);
		return;
	}
	switch (connection->after) {
	case NBD_OPTION:
		nbd_connection_set_state(connection, NBD_OPTION);
		nbd_handshake_advance(connection);
		break;
	case NBD_TLS:
		nbd_connection_set_state(connection, NBD_TLS);
		connection->tls_busy = true;
		stream_handshake(connection->stream, &connection->tls_op,
				 connection->server->config.tls);
		break;
	case NBD_TRANSMISSION:
		nbd_connection_set_state(connection, NBD_TRANSMISSION);
		env_timer_stop(connection->env, &connection->deadline);
		nbd_transmission_advance(connection);
		break;
	default:
		nbd_connection_close(connection);
		break;
	}
}

void nbd_handshake_tls_done(struct env_op *op, int64_t result)
{
	struct nbd_connection *connection = container_of(op, struct nbd_connection, tls_op);

	connection->tls_busy = false;
	if (connection->state == NBD_CLOSED) {
		env_defer(connection->env, &connection->task);
		return;
	}
	if (result < 0) {
		const char *why = stream_error(connection->stream);

		connection->server->stats.protocol_errors++;
		nbd_server_log(connection->server, ENV_LOG_INFO, "nbd: client %s: TLS: %s",
			       stream_peername(connection->stream),
			       why[0] ? why : strerror((int)-result));
		nbd_connection_close(connection);
		return;
	}
	/* Nothing agreed in the clear counts any more. */
	memset(&connection->terms, 0, sizeof(connection->terms));
	nbd_meta_drop(connection);
	assert(connection->rx_start == connection->rx_end);
	nbd_connection_set_state(connection, NBD_OPTION);
	nbd_handshake_advance(connection);
}
