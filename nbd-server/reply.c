// SPDX-License-Identifier: Apache-2.0
/*
 * Replies: what has become done within a loop turn goes out in one send, headers from tx[], data
 * from the buffers themselves. While a send is under way the next batch collects.
 */
#include "nbd-server/connection.h"

#include <assert.h>

void nbd_reply_queue(struct nbd_slot *slot)
{
	struct nbd_connection *connection = slot->connection;

	assert(!slot->next && !slot->submitted);
	*connection->replies_tail = slot;
	connection->replies_tail = &slot->next;
	if (!connection->send_busy)
		env_defer(connection->env, &connection->task);
}

/* Appends length bytes that were just written behind tx_used: to the vector before where it ends
 * right there, so that a row of replies without data is one vector. */
static void append_header(struct nbd_connection *connection, size_t length)
{
	uint8_t *at = connection->tx + connection->tx_used;
	struct iovec *last = connection->iov + connection->iov_count - 1;

	assert(length <= NBD_TX_HEADER_MAX && connection->tx_used + length <= NBD_TX_BYTES);
	connection->tx_used += (unsigned)length;
	if (connection->iov_count > 0 && (uint8_t *)last->iov_base + last->iov_len == at) {
		last->iov_len += length;
		return;
	}
	connection->iov[connection->iov_count++] = (struct iovec){at, length};
}

static void append_data(struct nbd_connection *connection, struct nbd_slot *slot, size_t length)
{
	assert(slot->buf && length > 0 && length <= slot->buf->size_bytes);
	connection->iov[connection->iov_count++] = (struct iovec){slot->buf->data, length};
	slot->next = connection->sending;
	connection->sending = slot;
}

static void append_status(struct nbd_connection *connection, struct nbd_slot *slot)
{
	uint8_t *at = connection->tx + connection->tx_used;
	uint64_t cookie = slot->request.cookie;
	size_t length;

	if (slot->error && connection->terms.structured)
		length = nbd_put_chunk_error(at, cookie, slot->error,
					     slot->reason ? slot->reason : "");
	else
		length = nbd_put_simple_reply(at, slot->error, cookie);
	append_header(connection, length);
	nbd_slot_release(slot);
}

/* Returns the number of data bytes. */
static size_t append_reply(struct nbd_connection *connection, struct nbd_slot *slot)
{
	uint8_t *at = connection->tx + connection->tx_used;
	const struct nbd_request *request = &slot->request;
	size_t length = request->length;

	if (slot->error || slot->reply == NBD_REPLY_STATUS) {
		append_status(connection, slot);
		return 0;
	}
	switch (slot->reply) {
	case NBD_REPLY_DATA:
		if (!connection->terms.structured) {
			append_header(connection,
				      nbd_put_simple_reply(at, NBD_OK, request->cookie));
			break;
		}
		append_header(connection,
			      nbd_put_chunk_data(at, NBD_CHUNK_FLAG_DONE, request->cookie,
						 request->offset, request->length));
		break;
	case NBD_REPLY_PART:
		append_header(connection,
			      nbd_put_chunk_data(at, slot->last ? NBD_CHUNK_FLAG_DONE : 0,
						 request->cookie, request->offset,
						 request->length));
		break;
	case NBD_REPLY_FIRST:
		append_header(connection, nbd_put_simple_reply(at, NBD_OK, request->cookie));
		break;
	case NBD_REPLY_EXTENTS:
		append_header(connection,
			      nbd_put_chunk_status(
				      at, slot->last ? NBD_CHUNK_FLAG_DONE : 0, request->cookie,
				      connection->contexts[slot->context].id, slot->extents));
		length = slot->extents * sizeof(struct nbd_status_extent);
		break;
	case NBD_REPLY_MORE:
	case NBD_REPLY_STATUS:
		break;
	}
	append_data(connection, slot, length);
	return length;
}

void nbd_reply_send(struct nbd_connection *connection)
{
	size_t data_bytes = 0;

	if (connection->send_busy || connection->holding || !connection->replies)
		return;
	connection->tx_used = 0;
	connection->iov_count = 0;
	while (connection->replies && data_bytes < NBD_BATCH_BYTES &&
	       connection->iov_count + 2 <= NBD_IOV &&
	       connection->tx_used + NBD_TX_HEADER_MAX <= NBD_TX_BYTES) {
		struct nbd_slot *slot = connection->replies;

		connection->replies = slot->next;
		if (!connection->replies)
			connection->replies_tail = &connection->replies;
		slot->next = NULL;
		data_bytes += append_reply(connection, slot);
	}
	connection->send_busy = true;
	connection->send_started_ns = env_now_ns(connection->env);
	stream_sendv(connection->stream, &connection->send_op, connection->iov,
		     connection->iov_count);
}

void nbd_reply_sent(struct nbd_connection *connection)
{
	while (connection->sending) {
		struct nbd_slot *slot = connection->sending;

		connection->sending = slot->next;
		slot->next = NULL;
		nbd_slot_release(slot);
	}
	nbd_reply_send(connection);
	/* task goes on with a blocked parser, and with what ends a connection. */
	if (connection->blocked || connection->stopping || connection->state != NBD_TRANSMISSION)
		env_defer(connection->env, &connection->task);
}
