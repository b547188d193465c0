/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams. A plain one hands the caller's operations to the socket as they are. Under TLS the
 * socket's operations are the stream's own, and OpenSSL works on the two buffers between them:
 *
 *   socket -> in -> SSL_read -> caller's buffer
 *   caller's iovecs -> SSL_write -> out[filling] ... out[other] -> socket
 *
 * While one half of out is being sent the other is filled, so memory is bounded whatever the
 * caller sends, and encryption does not wait for the socket. Every event ends in advance(), which
 * does all that can be done now; deliver() then calls the caller back. Both are safe against
 * stream_close() from within a callback: a stream is freed only when nothing holds it.
 */
#include "daemon/io/stream.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <openssl/err.h>
#include "daemon/io/resident.h"
#include "daemon/io/tls.h"

#define RECORD_BYTES  16384u /* the most that one TLS record holds */
#define RECORD_EXTRA  512u   /* more than any record's header, padding and tag */
#define ALERT_RESERVE 2048u  /* what data leaves free for alerts and key updates */
#define IN_BYTES      65536u
#define OUT_BYTES     (4 * (RECORD_BYTES + RECORD_EXTRA) + ALERT_RESERVE)

/*
 *  state      meaning                                       allowed next
 *  PLAIN      no TLS; operations go through untouched       HANDSHAKE
 *  HANDSHAKE  TLS begun, no data yet                        OPEN, FAILED, LINGER, CLOSED
 *  OPEN       TLS, data flows                               FAILED, LINGER, CLOSED
 *  FAILED     broken; every operation gets failure          LINGER, CLOSED
 *  LINGER     the caller is gone, an alert is being sent    CLOSED
 *  CLOSED     the socket is closed; freed when the last operation has come back
 */
enum stream_state { PLAIN, HANDSHAKE, OPEN, FAILED, LINGER, CLOSED };

/* An operation of the caller. */
struct slot {
	struct env_op *op; /* NULL: none */
	bool finished;     /* result stands, deliver() will tell */
	int64_t result;
};

struct out_buffer {
	uint8_t *data;
	size_t used;
};

struct stream {
	struct env *env;
	struct env_sock *sock; /* NULL when CLOSED */
	enum stream_state state;
	bool tls_on;   /* for stream_is_tls(): the handshake succeeded */
	int failure;   /* FAILED: -errno */
	unsigned hold; /* callers of deliver() on the stack */

	SSL *ssl;
	struct tls_proof proof;
	uint8_t *memory; /* in, scratch and out, one allocation */

	uint8_t *in;
	size_t in_start, in_end;
	bool receiving; /* recv_op is under way */
	bool ended;     /* the other side ended the connection */
	struct env_op recv_op;

	uint8_t *scratch; /* gathers small pieces into one record */
	struct out_buffer out[2];
	unsigned filling; /* which of out takes more; the other is being sent or empty */
	bool sending;     /* send_op is under way */
	struct iovec send_iov;
	struct env_op send_op;

	struct slot handshake, recv, send;
	uint8_t *recv_buf;
	size_t recv_length;
	struct iovec *iov; /* what the caller's send still has to encrypt; consumed in place */
	unsigned iov_count;
	int64_t send_total;

	struct env_task task; /* deliver() for what finished inside a call */
	struct env_timer linger;
	char identity[TLS_IDENTITY_BYTES];
	char error[256];
};

static void advance(struct stream *stream);

static struct stream *stream_of(void *member, size_t offset)
{
	return (struct stream *)((char *)member - offset);
}
#define STREAM_OF(pointer, member) stream_of(pointer, offsetof(struct stream, member))

static void set_state(struct stream *stream, enum stream_state next)
{
	static const unsigned allowed[] = {
		[PLAIN] = 1u << HANDSHAKE,
		[HANDSHAKE] = 1u << OPEN | 1u << FAILED | 1u << LINGER | 1u << CLOSED,
		[OPEN] = 1u << FAILED | 1u << LINGER | 1u << CLOSED,
		[FAILED] = 1u << LINGER | 1u << CLOSED,
		[LINGER] = 1u << CLOSED,
		[CLOSED] = 0,
	};

	assert(allowed[stream->state] & 1u << next);
	stream->env->lingering -= stream->state == LINGER;
	stream->env->lingering += next == LINGER;
	stream->state = next;
}

/* ---- completions -------------------------------------------------------------------------------- */

static void finish(struct slot *slot, int64_t result)
{
	if (!slot->op || slot->finished)
		return;
	slot->finished = true;
	slot->result = result;
}

static void finish_all(struct stream *stream, int64_t result)
{
	finish(&stream->handshake, result);
	finish(&stream->recv, result);
	finish(&stream->send, result);
}

/* Breaks the stream, once: the first reason is the one that counts. */
static void fail(struct stream *stream, int error, const char *text)
{
	if (stream->state == FAILED || stream->state == LINGER || stream->state == CLOSED)
		return;
	set_state(stream, FAILED);
	stream->failure = error;
	if (text)
		snprintf(stream->error, sizeof(stream->error), "%s", text);
	finish_all(stream, error);
}

static void fail_ssl(struct stream *stream)
{
	char text[sizeof(stream->error)];
	int error = tls_explain_failure(stream->ssl, &stream->proof, text, sizeof(text));

	fail(stream, error, text);
}

static void deliver_slot(struct slot *slot)
{
	if (!slot->finished)
		return;
	struct env_op *op = slot->op;
	int64_t result = slot->result;

	slot->op = NULL;
	slot->finished = false;
	op->done(op, result);
}

static void free_stream(struct stream *stream)
{
	env_defer_cancel(stream->env, &stream->task);
	env_timer_stop(stream->env, &stream->linger);
	SSL_free(stream->ssl);
	if (stream->memory)
		OPENSSL_cleanse(stream->scratch, RECORD_BYTES);
	free(stream->memory);
	free(stream);
}

static void free_if_done(struct stream *stream)
{
	if (stream->state == CLOSED && stream->hold == 0 && !stream->receiving &&
	    !stream->sending && !stream->handshake.op && !stream->recv.op && !stream->send.op)
		free_stream(stream);
}

/* Calls back what has finished. The stream may be gone afterwards. */
static void deliver(struct stream *stream)
{
	stream->hold++;
	deliver_slot(&stream->handshake);
	deliver_slot(&stream->send);
	deliver_slot(&stream->recv);
	stream->hold--;
	free_if_done(stream);
}

static void deliver_task(struct env_task *task)
{
	deliver(STREAM_OF(task, task));
}

/* For the public calls, which must not call back from within themselves. */
static void advance_from_call(struct stream *stream)
{
	advance(stream);
	if (stream->handshake.finished || stream->recv.finished || stream->send.finished)
		env_defer(stream->env, &stream->task);
}

/* ---- the two buffers between OpenSSL and the socket ------------------------------------------------ */

int stream_bio_read(void *data, char *to, int length)
{
	struct stream *stream = data;
	size_t n = stream->in_end - stream->in_start;

	if (length <= 0)
		return 0;
	if (n > (size_t)length)
		n = (size_t)length;
	memcpy(to, stream->in + stream->in_start, n);
	stream->in_start += n;
	return (int)n;
}

int stream_bio_write(void *data, const char *from, int length)
{
	struct stream *stream = data;
	struct out_buffer *out = &stream->out[stream->filling];
	size_t n = OUT_BYTES - out->used;

	if (length <= 0)
		return 0;
	if (n > (size_t)length)
		n = (size_t)length;
	memcpy(out->data + out->used, from, n);
	out->used += n;
	return (int)n;
}

static void close_socket(struct stream *stream)
{
	set_state(stream, CLOSED);
	env_timer_stop(stream->env, &stream->linger);
	env_sock_close(stream->env, stream->sock);
	stream->sock = NULL;
}

static void recv_done(struct env_op *op, int64_t result)
{
	struct stream *stream = STREAM_OF(op, recv_op);

	assert(stream->receiving);
	stream->receiving = false;
	if (result > 0)
		stream->in_end = (size_t)result;
	else if (result == 0)
		stream->ended = true;
	else
		fail(stream, (int)result, NULL);
	advance(stream);
	deliver(stream);
}

static void start_recv(struct stream *stream)
{
	if (stream->receiving)
		return;
	assert(stream->in_start == stream->in_end);
	stream->in_start = stream->in_end = 0;
	stream->receiving = true;
	env_recv(stream->env, &stream->recv_op, stream->sock, stream->in, IN_BYTES);
}

static void send_done(struct env_op *op, int64_t result)
{
	struct stream *stream = STREAM_OF(op, send_op);

	assert(stream->sending);
	stream->sending = false;
	stream->out[!stream->filling].used = 0;
	if (result < 0) {
		stream->out[stream->filling].used = 0;
		fail(stream, (int)result, NULL);
	}
	advance(stream);
	deliver(stream);
}

/* Sends what has been filled, if nothing is being sent. */
static void flush_out(struct stream *stream)
{
	struct out_buffer *out = &stream->out[stream->filling];

	if (stream->sending || out->used == 0 || stream->state == CLOSED)
		return;
	stream->sending = true;
	stream->filling = !stream->filling;
	stream->send_iov = (struct iovec){out->data, out->used};
	env_sendv(stream->env, &stream->send_op, stream->sock, &stream->send_iov, 1);
}

/* ---- progress ------------------------------------------------------------------------------------------ */

static void advance_handshake(struct stream *stream)
{
	ERR_clear_error();
	int rc = SSL_do_handshake(stream->ssl);

	if (rc == 1) {
		const char *why = tls_check_proof(stream->ssl, &stream->proof, stream->identity);

		if (why) {
			fail(stream, -EACCES, why);
			return;
		}
		set_state(stream, OPEN);
		stream->tls_on = true;
		finish(&stream->handshake, 0);
		return;
	}
	switch (SSL_get_error(stream->ssl, rc)) {
	case SSL_ERROR_WANT_READ:
		if (stream->ended)
			fail(stream, -ECONNRESET,
			     "the other side closed the connection during the TLS handshake");
		else
			start_recv(stream);
		break;
	case SSL_ERROR_WANT_WRITE:
		break; /* goes on when out has been sent */
	default:
		fail_ssl(stream);
	}
}

/* After a SSL_read that gave nothing, or that broke the connection: OpenSSL tells why only once. */
static void recv_blocked(struct stream *stream, int rc)
{
	switch (SSL_get_error(stream->ssl, rc)) {
	case SSL_ERROR_WANT_READ:
		if (stream->ended)
			fail(stream, -ECONNRESET,
			     "the connection ended without TLS's closing message");
		else
			start_recv(stream);
		break;
	case SSL_ERROR_WANT_WRITE:
		break; /* a key update waits for room in out: goes on when that has been sent */
	case SSL_ERROR_ZERO_RETURN:
		finish(&stream->recv, 0);
		break;
	default:
		fail_ssl(stream);
	}
}

static void advance_recv(struct stream *stream)
{
	if (!stream->recv.op || stream->recv.finished)
		return;
	size_t got = 0;
	int rc = 1;

	ERR_clear_error();
	while (got < stream->recv_length) {
		size_t n = stream->recv_length - got;

		rc = SSL_read(stream->ssl, stream->recv_buf + got, n > INT_MAX ? INT_MAX : (int)n);
		if (rc <= 0)
			break;
		got += (size_t)rc;
	}
	if (got)
		finish(&stream->recv, (int64_t)got);
	if (!got || (rc <= 0 && SSL_get_error(stream->ssl, rc) == SSL_ERROR_SSL))
		recv_blocked(stream, rc);
}

static void consume(struct stream *stream, size_t length)
{
	stream->iov->iov_base = (char *)stream->iov->iov_base + length;
	stream->iov->iov_len -= length;
	while (stream->iov_count && stream->iov->iov_len == 0) {
		stream->iov++;
		stream->iov_count--;
	}
}

/* The next record's content: straight from the caller's memory if a full record lies there in one
 * piece, else gathered in scratch, so that small headers do not cost a record each. */
static const void *next_record(struct stream *stream, size_t *length)
{
	if (stream->iov->iov_len >= RECORD_BYTES || stream->iov_count == 1) {
		const void *data = stream->iov->iov_base;

		*length = stream->iov->iov_len < RECORD_BYTES ? stream->iov->iov_len : RECORD_BYTES;
		consume(stream, *length);
		return data;
	}
	*length = 0;
	while (stream->iov_count && *length < RECORD_BYTES) {
		size_t n = RECORD_BYTES - *length;

		if (n > stream->iov->iov_len)
			n = stream->iov->iov_len;
		memcpy(stream->scratch + *length, stream->iov->iov_base, n);
		*length += n;
		consume(stream, n);
	}
	return stream->scratch;
}

static bool has_room(const struct stream *stream)
{
	return OUT_BYTES - stream->out[stream->filling].used >=
	       RECORD_BYTES + RECORD_EXTRA + ALERT_RESERVE;
}

/* False when the stream broke. */
static bool encrypt(struct stream *stream)
{
	while (stream->iov_count && has_room(stream)) {
		size_t length;
		const void *data = next_record(stream, &length);

		ERR_clear_error();
		/* There is room for the record, so it goes whole or the connection is broken. */
		if (SSL_write(stream->ssl, data, (int)length) != (int)length) {
			fail_ssl(stream);
			return false;
		}
	}
	return true;
}

static void advance_send(struct stream *stream)
{
	if (!stream->send.op || stream->send.finished)
		return;
	if (!encrypt(stream))
		return;
	flush_out(stream);
	/* The half that has just become free. */
	if (!encrypt(stream))
		return;
	if (!stream->iov_count && !stream->sending && stream->out[stream->filling].used == 0)
		finish(&stream->send, stream->send_total);
}

static void advance(struct stream *stream)
{
	if (stream->state == HANDSHAKE)
		advance_handshake(stream);
	if (stream->state == OPEN)
		advance_recv(stream);
	if (stream->state == OPEN)
		advance_send(stream);
	flush_out(stream);
	if (stream->state == LINGER && !stream->sending)
		close_socket(stream);
}

/* ---- public ---------------------------------------------------------------------------------------------- */

static void linger_over(struct env_timer *timer)
{
	struct stream *stream = STREAM_OF(timer, linger);

	close_socket(stream);
	free_if_done(stream);
}

struct stream *stream_new(struct env *env, struct env_sock *sock)
{
	struct stream *stream = calloc(1, sizeof(*stream));

	if (!stream)
		return NULL;
	stream->env = env;
	stream->sock = sock;
	stream->recv_op.done = recv_done;
	stream->send_op.done = send_done;
	stream->task.call = deliver_task;
	stream->linger.fire = linger_over;
	return stream;
}

static int set_up_tls(struct stream *stream, struct tls_context *tls)
{
	stream->proof.tls = tls;
	stream->memory = malloc(IN_BYTES + RECORD_BYTES + 2 * OUT_BYTES);
	if (!stream->memory)
		return -ENOMEM;
	stream->in = stream->memory;
	stream->scratch = stream->in + IN_BYTES;
	stream->out[0].data = stream->scratch + RECORD_BYTES;
	stream->out[1].data = stream->out[0].data + OUT_BYTES;
	BIO *bio = tls_bio_new(tls, stream);

	if (!bio)
		return -ENOMEM;
	stream->ssl = tls_connection_new(tls, bio, &stream->proof);
	return stream->ssl ? 0 : -ENOMEM;
}

void stream_brace(struct stream *stream)
{
	resident_make(stream, sizeof(*stream));
	if (stream->memory)
		resident_make(stream->memory, IN_BYTES + RECORD_BYTES + 2 * OUT_BYTES);
}

void stream_handshake(struct stream *stream, struct env_op *op, struct tls_context *tls)
{
	assert(stream->state == PLAIN);
	set_state(stream, HANDSHAKE);
	stream->handshake.op = op;
	if (set_up_tls(stream, tls) < 0)
		fail(stream, -ENOMEM, "TLS: out of memory");
	advance_from_call(stream);
}

void stream_recv(struct stream *stream, struct env_op *op, void *buf, size_t length)
{
	assert(length > 0);
	if (stream->state == PLAIN) {
		env_recv(stream->env, op, stream->sock, buf, length);
		return;
	}
	assert(stream->state == OPEN || stream->state == FAILED);
	assert(!stream->recv.op);
	stream->recv.op = op;
	stream->recv_buf = buf;
	stream->recv_length = length;
	if (stream->state == FAILED)
		finish(&stream->recv, stream->failure);
	advance_from_call(stream);
}

void stream_sendv(struct stream *stream, struct env_op *op, struct iovec *iov, unsigned count)
{
	if (stream->state == PLAIN) {
		env_sendv(stream->env, op, stream->sock, iov, count);
		return;
	}
	assert(stream->state == OPEN || stream->state == FAILED);
	assert(!stream->send.op);
	stream->send.op = op;
	stream->iov = iov;
	stream->iov_count = count;
	stream->send_total = 0;
	for (unsigned i = 0; i < count; i++)
		stream->send_total += (int64_t)iov[i].iov_len;
	if (count)
		consume(stream, 0);
	if (stream->state == FAILED)
		finish(&stream->send, stream->failure);
	advance_from_call(stream);
}

bool stream_is_tls(const struct stream *stream)
{
	return stream->tls_on;
}

const char *stream_identity(const struct stream *stream)
{
	return stream->identity;
}

bool stream_has_name(const struct stream *stream, const char *name)
{
	return stream->ssl && tls_has_name(stream->ssl, name);
}

const char *stream_peername(const struct stream *stream)
{
	return env_sock_peername(stream->sock);
}

const char *stream_error(const struct stream *stream)
{
	return stream->error;
}

void stream_close(struct stream *stream)
{
	if (stream->state == PLAIN) {
		env_sock_close(stream->env, stream->sock);
		free_stream(stream);
		return;
	}
	assert(stream->state != LINGER && stream->state != CLOSED);
	bool half_sent = stream->send.op && !stream->send.finished;

	/* TLS's closing message tells the other side that nothing was cut off: not sent where
	 * something was. */
	if (stream->state == OPEN && !half_sent) {
		ERR_clear_error();
		SSL_shutdown(stream->ssl);
		flush_out(stream);
	}
	/* The context may go before the last alert has gone. */
	SSL_free(stream->ssl);
	stream->ssl = NULL;
	finish_all(stream, -ECANCELED);
	if (stream->sending && !half_sent) {
		set_state(stream, LINGER);
		env_timer_start(stream->env, &stream->linger, STREAM_LINGER_MS * 1000000ull);
	} else {
		close_socket(stream);
	}
	if (stream->handshake.op || stream->recv.op || stream->send.op)
		env_defer(stream->env, &stream->task);
	else
		free_if_done(stream);
}
