// SPDX-License-Identifier: Apache-2.0
/*
 * Fuzzes a whole NBD connection: greeting, options, requests and replies, over an environment that
 * lives in this file and a block device without content.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined ... fuzz_nbd.c libnbd.a libio.a libprotocol.a
 *   fuzz_nbd -max_len=4096 CORPUS
 *
 * Byte 0 chooses the set-up (bits below), byte 1 how the stream is cut into receives; the rest is
 * what the client sends. Ends with: every buffer is back, every open() has its close(), and where
 * the replies can be followed (structured), their framing is right.
 */
#include "nbd-server/nbd_server.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/io/env_ops.h"
#include "protocol/nbd.h"

enum setup {
	SETUP_CANNED = 1, /* a good handshake comes before the input */
	SETUP_READ_ONLY = 2,
	SETUP_BLOCK_MIN = 4,  /* 4096, else 1 */
	SETUP_LATE = 8,       /* the device answers later, last first */
	SETUP_ERRORS = 16,    /* every third request fails */
	SETUP_SLOW_SEND = 32, /* sends end only when nothing else can happen */
	SETUP_SIMPLE = 64,    /* the canned handshake leaves out structured replies */
	SETUP_STOP = 128,     /* the server is stopped in the middle */
};

#define OUTPUT_MAX (2u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- an environment of one connection ------------------------------------------------------ */

/* env.h finds the environment of a socket in its first field. */
struct env_sock {
	struct env *env;
	bool closed;
};

struct env_listener {
	struct env *env;
};

struct fuzz {
	struct env env;
	uint64_t now_ns;
	struct env_task *tasks, **tasks_tail;
	void (*accept)(void *context, struct env_sock *sock);
	void *accept_context;
	struct env_listener listener;
	struct env_sock sock;
	struct env_op *recv_op, *send_op;
	void *recv_buf;
	size_t recv_length, send_length;
	const uint8_t *input;
	size_t input_length, input_at;
	unsigned setup, cut;
	/* what the server sent */
	uint8_t *output;
	size_t output_length;
	/* device */
	struct block block;
	struct block_request *late[512];
	unsigned late_count, submitted, opened;
	/* an export that is looked up, and its maps */
	struct block snap;
	struct block_map map;
	struct late_call {
		void (*call)(struct fuzz *fuzz, void *argument);
		void *argument;
	} calls[512];
	unsigned call_count, held, maps;
};

#define FUZZ_OF(e) ((struct fuzz *)((char *)(e)-offsetof(struct fuzz, env)))

static uint64_t fuzz_now_ns(struct env *env)
{
	return FUZZ_OF(env)->now_ns;
}

static void fuzz_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_ns)
{
	timer->heap_index = 1;
}

static void fuzz_timer_stop(struct env *env, struct env_timer *timer)
{
	timer->heap_index = 0;
}

static void fuzz_defer(struct env *env, struct env_task *task)
{
	struct fuzz *fuzz = FUZZ_OF(env);

	if (task->queued)
		return;
	task->queued = true;
	task->next = NULL;
	*fuzz->tasks_tail = task;
	fuzz->tasks_tail = &task->next;
}

static void fuzz_defer_cancel(struct env *env, struct env_task *task)
{
	struct fuzz *fuzz = FUZZ_OF(env);

	if (!task->queued)
		return;
	for (struct env_task **at = &fuzz->tasks; *at; at = &(*at)->next) {
		if (*at != task)
			continue;
		*at = task->next;
		if (!*at)
			fuzz->tasks_tail = at;
		break;
	}
	task->queued = false;
}

static int fuzz_listen(struct env *env, const char *addr,
		       void (*accept)(void *context, struct env_sock *sock), void *context,
		       struct env_listener **listener)
{
	struct fuzz *fuzz = FUZZ_OF(env);

	fuzz->accept = accept;
	fuzz->accept_context = context;
	*listener = &fuzz->listener;
	return 0;
}

static void fuzz_listener_close(struct env *env, struct env_listener *listener)
{
}

static void fuzz_recv(struct env *env, struct env_op *op, struct env_sock *sock, void *buf,
		      size_t length)
{
	struct fuzz *fuzz = FUZZ_OF(env);

	assert(!fuzz->recv_op && length > 0 && !sock->closed);
	fuzz->recv_op = op;
	fuzz->recv_buf = buf;
	fuzz->recv_length = length;
}

static void fuzz_sendv(struct env *env, struct env_op *op, struct env_sock *sock, struct iovec *iov,
		       unsigned count)
{
	struct fuzz *fuzz = FUZZ_OF(env);

	assert(!fuzz->send_op && count > 0 && count <= 1024 && !sock->closed);
	fuzz->send_op = op;
	fuzz->send_length = 0;
	for (unsigned i = 0; i < count; i++) {
		fuzz->send_length += iov[i].iov_len;
		/* Enough of it is enough: the rest would only cost time. */
		if (fuzz->output_length > OUTPUT_MAX)
			continue;
		fuzz->output = realloc(fuzz->output, fuzz->output_length + iov[i].iov_len);
		assert(fuzz->output);
		memcpy(fuzz->output + fuzz->output_length, iov[i].iov_base, iov[i].iov_len);
		fuzz->output_length += iov[i].iov_len;
	}
}

static const char *fuzz_sock_peername(struct env_sock *sock)
{
	return "fuzz";
}

static void fuzz_sock_close(struct env *env, struct env_sock *sock)
{
	assert(!sock->closed);
	sock->closed = true;
}

static void fuzz_log(struct env *env, enum env_log_level level, const char *format, va_list args)
{
	char line[1024];

	vsnprintf(line, sizeof(line), format, args);
}

static const struct env_ops fuzz_ops = {
	.name = "fuzz",
	.now_ns = fuzz_now_ns,
	.timer_start = fuzz_timer_start,
	.timer_stop = fuzz_timer_stop,
	.defer = fuzz_defer,
	.defer_cancel = fuzz_defer_cancel,
	.listen = fuzz_listen,
	.listener_close = fuzz_listener_close,
	.recv = fuzz_recv,
	.sendv = fuzz_sendv,
	.sock_peername = fuzz_sock_peername,
	.sock_close = fuzz_sock_close,
	.log = fuzz_log,
};

/* ---- the device ----------------------------------------------------------------------------- */

#define DEVICE_BYTES  (64ull << 20)
#define BLOCK_FUZZ(b) ((struct fuzz *)((char *)(b)-offsetof(struct fuzz, block)))

static int device_open(struct block *block, char *why, size_t why_size)
{
	BLOCK_FUZZ(block)->opened++;
	return 0;
}

static void device_close(struct block *block)
{
	assert(BLOCK_FUZZ(block)->opened > 0);
	BLOCK_FUZZ(block)->opened--;
}

static void device_info(struct block *block, struct block_info *info)
{
	struct fuzz *fuzz = BLOCK_FUZZ(block);

	*info = (struct block_info){
		.size_bytes = DEVICE_BYTES,
		.block_min_bytes = fuzz->setup & SETUP_BLOCK_MIN ? 4096 : 1,
		.block_preferred_bytes = 4096,
		.read_only = fuzz->setup & SETUP_READ_ONLY,
		.can_trim = true,
		.can_zero = true,
		.can_fast_zero = true,
		.can_flush = true,
		.can_multi_conn = true,
	};
}

static void device_finish(struct fuzz *fuzz, struct block_request *request)
{
	bool fail = (fuzz->setup & SETUP_ERRORS) && request->priv[0] % 3 == 2;

	if (request->op == BLOCK_READ)
		memset(request->buf->data, 0x5a, 1);
	request->done(request, fail ? -EIO : 0);
}

static void device_submit(struct block *block, struct block_request *request)
{
	struct fuzz *fuzz = BLOCK_FUZZ(block);

	assert(request->offset_bytes <= DEVICE_BYTES &&
	       request->length_bytes <= DEVICE_BYTES - request->offset_bytes);
	assert(!(fuzz->setup & SETUP_READ_ONLY) || request->op == BLOCK_READ ||
	       request->op == BLOCK_FLUSH || request->op == BLOCK_CACHE);
	assert(!(fuzz->setup & SETUP_BLOCK_MIN) ||
	       (request->offset_bytes | request->length_bytes) % 4096 == 0);
	if (request->op == BLOCK_READ || request->op == BLOCK_WRITE)
		assert(request->length_bytes > 0 &&
		       request->length_bytes <= request->buf->size_bytes);
	request->priv[0] = fuzz->submitted++;
	if (!(fuzz->setup & SETUP_LATE)) {
		device_finish(fuzz, request);
		return;
	}
	assert(fuzz->late_count < 512);
	fuzz->late[fuzz->late_count++] = request;
}

static unsigned device_extents(struct block *block, uint64_t offset, uint64_t length,
			       struct block_extent *extents, unsigned count)
{
	unsigned n = 0;

	while (n < count && length > 0) {
		uint64_t run = 65536 - offset % 65536;

		if (run > length)
			run = length;
		extents[n++] = (struct block_extent){
			.length_bytes = run,
			.hole = (offset >> 16) & 1,
			.zero = (offset >> 16) & 1,
		};
		offset += run;
		length -= run;
	}
	return n;
}

static const struct block_ops device_ops = {
	.open = device_open,
	.close = device_close,
	.info = device_info,
	.submit = device_submit,
	.extents = device_extents,
};

/* ---- "snap": looked up, with maps "x:...", all of which may take its time ------------------------ */

static void later(struct fuzz *fuzz, void (*call)(struct fuzz *fuzz, void *argument),
		  void *argument)
{
	if (!(fuzz->setup & SETUP_LATE)) {
		call(fuzz, argument);
		return;
	}
	assert(fuzz->call_count < 512);
	fuzz->calls[fuzz->call_count++] = (struct late_call){call, argument};
}

static bool run_call(struct fuzz *fuzz)
{
	struct late_call late;

	if (fuzz->call_count == 0)
		return false;
	late = fuzz->calls[--fuzz->call_count];
	late.call(fuzz, late.argument);
	return true;
}

static void lookup_now(struct fuzz *fuzz, void *argument)
{
	struct block_lookup *lookup = argument;

	fuzz->held++;
	lookup->done(lookup, &fuzz->snap, 0, "");
}

static void look_up(void *context, const char *name, struct block_lookup *lookup)
{
	if (strcmp(name, "snap") == 0)
		later(context, lookup_now, lookup);
	else
		lookup->done(lookup, NULL, -ENOENT, "no such export");
}

static void release(void *context, struct block *block)
{
	struct fuzz *fuzz = context;

	assert(block == &fuzz->snap && fuzz->held > 0);
	fuzz->held--;
}

static void status_now(struct fuzz *fuzz, void *argument)
{
	struct block_status *status = argument;

	assert(status->max > 0 && status->length_bytes > 0);
	status->count = device_extents(&fuzz->block, status->offset_bytes, status->length_bytes,
				       status->extents, status->max);
	status->done(status, status->offset_bytes % 7 == 3 ? -EIO : 0);
}

static void map_status(struct block_map *map, struct block_status *status)
{
	struct fuzz *fuzz = (struct fuzz *)((char *)map - offsetof(struct fuzz, map));

	assert(fuzz->maps > 0);
	later(fuzz, status_now, status);
}

static void map_close(struct block_map *map)
{
	struct fuzz *fuzz = (struct fuzz *)((char *)map - offsetof(struct fuzz, map));

	assert(fuzz->maps > 0);
	fuzz->maps--;
}

static void map_now(struct fuzz *fuzz, void *argument)
{
	struct block_map_open *open = argument;

	fuzz->maps++;
	open->done(open, &fuzz->map);
}

static void map_open(void *context, struct block *block, const char *name,
		     struct block_map_open *open)
{
	if (name[0] == 'x')
		later(context, map_now, open);
	else
		open->done(open, NULL);
}

static void map_list_now(struct fuzz *fuzz, void *argument)
{
	static const char *const names[] = {"x:one", "x:two", "y:none"};
	struct block_map_list *list = argument;

	list->done(list, names, 3);
}

static void map_list(void *context, struct block *block, struct block_map_list *list)
{
	later(context, map_list_now, list);
}

static struct fuzz *fuzz_of_snap(struct block *block)
{
	return (struct fuzz *)((char *)block - offsetof(struct fuzz, snap));
}

static int snap_open(struct block *block, char *why, size_t why_size)
{
	return device_open(&fuzz_of_snap(block)->block, why, why_size);
}

static void snap_close(struct block *block)
{
	device_close(&fuzz_of_snap(block)->block);
}

static void snap_info(struct block *block, struct block_info *info)
{
	device_info(&fuzz_of_snap(block)->block, info);
}

static void snap_submit(struct block *block, struct block_request *request)
{
	device_submit(&fuzz_of_snap(block)->block, request);
}

static void snap_status(struct block *block, struct block_status *status)
{
	later(fuzz_of_snap(block), status_now, status);
}

static const struct block_ops snap_ops = {
	.open = snap_open,
	.close = snap_close,
	.info = snap_info,
	.submit = snap_submit,
	.status = snap_status,
};

static struct block *find(void *context, const char *name)
{
	struct fuzz *fuzz = context;

	return name[0] == '\0' || strcmp(name, "vol") == 0 ? &fuzz->block : NULL;
}

static struct block *list(void *context, unsigned index)
{
	return index < 40 ? &((struct fuzz *)context)->block : NULL;
}

/* ---- the loop --------------------------------------------------------------------------------- */

static bool run_tasks(struct fuzz *fuzz)
{
	if (!fuzz->tasks)
		return false;
	while (fuzz->tasks) {
		struct env_task *task = fuzz->tasks;

		fuzz->tasks = task->next;
		if (!fuzz->tasks)
			fuzz->tasks_tail = &fuzz->tasks;
		task->queued = false;
		task->call(task);
	}
	return true;
}

static bool run_send(struct fuzz *fuzz)
{
	struct env_op *op = fuzz->send_op;

	if (!op)
		return false;
	fuzz->send_op = NULL;
	op->done(op, fuzz->sock.closed ? -ECANCELED : (int64_t)fuzz->send_length);
	return true;
}

static bool run_recv(struct fuzz *fuzz)
{
	struct env_op *op = fuzz->recv_op;
	size_t n = fuzz->input_length - fuzz->input_at;

	if (!op)
		return false;
	fuzz->recv_op = NULL;
	if (fuzz->sock.closed) {
		op->done(op, -ECANCELED);
		return true;
	}
	if (n > fuzz->recv_length)
		n = fuzz->recv_length;
	if (fuzz->cut && n > fuzz->cut)
		n = fuzz->cut;
	if (n > 0)
		memcpy(fuzz->recv_buf, fuzz->input + fuzz->input_at, n);
	fuzz->input_at += n;
	op->done(op, (int64_t)n);
	return true;
}

static bool run_device(struct fuzz *fuzz)
{
	if (fuzz->late_count == 0)
		return false;
	device_finish(fuzz, fuzz->late[--fuzz->late_count]);
	return true;
}

/* One turn; false when nothing is left to do. */
static bool turn(struct fuzz *fuzz)
{
	fuzz->now_ns += 1000000;
	if (run_tasks(fuzz))
		return true;
	if (!(fuzz->setup & SETUP_SLOW_SEND) && run_send(fuzz))
		return true;
	if (run_recv(fuzz) || run_device(fuzz) || run_call(fuzz))
		return true;
	return run_send(fuzz);
}

/* ---- input and output ------------------------------------------------------------------------- */

static size_t put_option(uint8_t *to, uint32_t option, const void *data, uint32_t length)
{
	struct nbd_option_header header = {
		.magic = to_be64(NBD_MAGIC_OPTION),
		.option = to_be32(option),
		.length = to_be32(length),
	};

	memcpy(to, &header, sizeof(header));
	if (length > 0)
		memcpy(to + sizeof(header), data, length);
	return sizeof(header) + length;
}

static size_t put_canned(uint8_t *to, bool structured)
{
	static const uint8_t meta[] = "\0\0\0\4snap\0\0\0\2\0\0\0\17base:allocation\0\0\0\5x:one";
	static const uint8_t go[] = "\0\0\0\4snap\0\0";
	be32_t flags = to_be32(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
	size_t n = sizeof(flags);

	memcpy(to, &flags, sizeof(flags));
	if (structured) {
		n += put_option(to + n, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
		n += put_option(to + n, NBD_OPT_SET_META_CONTEXT, meta, sizeof(meta) - 1);
	}
	return n + put_option(to + n, NBD_OPT_GO, go, sizeof(go) - 1);
}

/* Greeting, option replies up to GO's ACK, then chunks and simple replies. The end may be cut. */
static void check_output(const struct fuzz *fuzz)
{
	const uint8_t *at = fuzz->output + sizeof(struct nbd_greeting);
	const uint8_t *end = fuzz->output + fuzz->output_length;
	bool go = false;

	assert(fuzz->output_length >= sizeof(struct nbd_greeting));
	while (!go && (size_t)(end - at) >= sizeof(struct nbd_option_reply)) {
		struct nbd_option_reply reply;

		memcpy(&reply, at, sizeof(reply));
		assert(from_be64(reply.magic) == NBD_MAGIC_OPTION_REPLY);
		assert(from_be32(reply.type) < NBD_REP_ERROR);
		at += sizeof(reply) + from_be32(reply.length);
		go = from_be32(reply.option) == NBD_OPT_GO && from_be32(reply.type) == NBD_REP_ACK;
	}
	while (at < end) {
		be32_t magic;
		struct nbd_chunk chunk;

		assert((size_t)(end - at) >= sizeof(struct nbd_simple_reply));
		memcpy(&magic, at, sizeof(magic));
		if (from_be32(magic) == NBD_MAGIC_SIMPLE_REPLY) {
			at += sizeof(struct nbd_simple_reply);
			continue;
		}
		assert(from_be32(magic) == NBD_MAGIC_CHUNK);
		assert((size_t)(end - at) >= sizeof(chunk));
		memcpy(&chunk, at, sizeof(chunk));
		at += sizeof(chunk);
		assert((size_t)(end - at) >= from_be32(chunk.length));
		at += from_be32(chunk.length);
	}
}

static void stopped(void *context)
{
	*(bool *)context = true;
}

static void run(struct fuzz *fuzz)
{
	const unsigned counts[3] = {6, 4, 4};
	struct buf_pool *pool = buf_pool_new(counts);
	struct nbd_server_config config = {
		.pool = pool,
		.find = find,
		.list = list,
		.look_up = look_up,
		.release = release,
		.map_open = map_open,
		.map_list = map_list,
		.context = fuzz,
	};
	struct nbd_server *server = nbd_server_new(&fuzz->env, &config);
	bool done = false, stopping = false;
	unsigned turns = 0;
	char why[128];

	assert(pool && server);
	assert(nbd_server_listen(server, "tcp:fuzz:1", why, sizeof(why)) == 0);
	fuzz->accept(fuzz->accept_context, &fuzz->sock);
	while (turn(fuzz)) {
		if (++turns == 40 && (fuzz->setup & SETUP_STOP)) {
			nbd_server_stop(server, stopped, &done);
			stopping = true;
		}
	}
	/* The input has ended: so has the connection. */
	assert(fuzz->sock.closed && fuzz->opened == 0 && fuzz->held == 0 && fuzz->maps == 0);
	assert(buf_pool_used_bytes(pool) == 0);
	if (!stopping)
		nbd_server_stop(server, stopped, &done);
	while (turn(fuzz))
		;
	assert(done);
	nbd_server_free(server);
	buf_pool_free(pool);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const unsigned cuts[] = {0, 1, 3, 27, 28, 29, 1000, 5000};
	struct fuzz fuzz = {.env = {.ops = &fuzz_ops}, .now_ns = 1};
	uint8_t *input;

	if (size < 2)
		return 0;
	fuzz.sock.env = fuzz.listener.env = &fuzz.env;
	fuzz.tasks_tail = &fuzz.tasks;
	fuzz.setup = data[0];
	fuzz.cut = cuts[data[1] % 8];
	fuzz.block = (struct block){&device_ops, "vol", "a volume"};
	fuzz.snap = (struct block){&snap_ops, "snap", "a snapshot"};
	fuzz.map = (struct block_map){map_status, map_close};
	input = malloc(size + 256);
	assert(input);
	if (fuzz.setup & SETUP_CANNED)
		fuzz.input_length = put_canned(input, !(fuzz.setup & SETUP_SIMPLE));
	memcpy(input + fuzz.input_length, data + 2, size - 2);
	fuzz.input_length += size - 2;
	fuzz.input = input;
	run(&fuzz);
	if ((fuzz.setup & SETUP_CANNED) && !(fuzz.setup & SETUP_SIMPLE) &&
	    fuzz.output_length <= OUTPUT_MAX)
		check_output(&fuzz);
	free(fuzz.output);
	free(input);
	return 0;
}
