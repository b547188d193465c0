// SPDX-License-Identifier: Apache-2.0
/*
 * nbd_memory: a small NBD server for tests with real clients and for finding the engine's speed
 * limit. Exports memory, a plain file, or nothing at all (--null) through nbd-server/.
 *
 * Writes that overlap while both are under way end in any order here; a volume orders them.
 * Prints "listening: ADDRESS" and runs until SIGTERM or SIGINT.
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "nbd-server/nbd_server.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

struct device {
	struct block block;
	struct env *env;
	uint64_t size_bytes;
	uint32_t block_min_bytes;
	bool read_only, null;
	uint8_t *memory;       /* or ... */
	struct env_file *file; /* ... this */
	uint8_t *zeroes;       /* BUF_SIZE_MAX of them, to write where the file cannot zero */
};

/* ---- a file ------------------------------------------------------------------------------- */

/* In block_request.priv. */
struct file_request {
	struct env_op op;
	struct block_request *request;
	struct device *device;
	uint64_t zeroed_bytes;
};
_Static_assert(sizeof(struct file_request) <= sizeof(((struct block_request *)0)->priv), "fits");

static void file_done(struct env_op *op, int64_t result)
{
	struct file_request *file = container_of(op, struct file_request, op);

	file->request->done(file->request, result < 0 ? (int)result : 0);
}

static void file_sync(struct env_op *op, int64_t result)
{
	struct file_request *file = container_of(op, struct file_request, op);

	if (result < 0) {
		file_done(op, result);
		return;
	}
	op->done = file_done;
	env_fsync(file->device->env, op, file->device->file);
}

/* Writes the next piece of zeroes. */
static void file_zero_step(struct env_op *op, int64_t result)
{
	struct file_request *file = container_of(op, struct file_request, op);
	struct block_request *request = file->request;
	uint64_t left = request->length_bytes - file->zeroed_bytes;
	uint64_t at = request->offset_bytes + file->zeroed_bytes;

	if (result < 0) {
		file_done(op, result);
		return;
	}
	if (left == 0) {
		if (request->flags & BLOCK_FUA)
			file_sync(op, 0);
		else
			file_done(op, 0);
		return;
	}
	if (left > BUF_SIZE_MAX)
		left = BUF_SIZE_MAX;
	file->zeroed_bytes += left;
	op->done = file_zero_step;
	env_write(file->device->env, op, file->device->file, file->device->zeroes, left, at, 0);
}

static void file_zero_done(struct env_op *op, int64_t result)
{
	struct file_request *file = container_of(op, struct file_request, op);
	struct block_request *request = file->request;

	if (result != -EOPNOTSUPP) {
		if (result == 0 && (request->flags & BLOCK_FUA))
			file_sync(op, 0);
		else
			file_done(op, result);
	} else if (request->op == BLOCK_TRIM) {
		file_done(op, 0); /* a hint only */
	} else if (request->flags & BLOCK_FAST_ZERO) {
		file_done(op, result);
	} else {
		file_zero_step(op, 0);
	}
}

static void file_submit(struct device *device, struct block_request *request)
{
	struct file_request *file = (struct file_request *)request->priv;

	file->request = request;
	file->device = device;
	file->zeroed_bytes = 0;
	file->op.done = file_done;
	switch (request->op) {
	case BLOCK_READ:
		env_read(device->env, &file->op, device->file, request->buf->data,
			 request->length_bytes, request->offset_bytes);
		break;
	case BLOCK_WRITE:
		env_write(device->env, &file->op, device->file, request->buf->data,
			  request->length_bytes, request->offset_bytes,
			  request->flags & BLOCK_FUA ? ENV_WRITE_FUA : 0);
		break;
	case BLOCK_FLUSH:
		env_fsync(device->env, &file->op, device->file);
		break;
	case BLOCK_TRIM:
	case BLOCK_ZERO:
		file->op.done = file_zero_done;
		env_zero(device->env, &file->op, device->file, request->offset_bytes,
			 request->length_bytes,
			 request->flags & BLOCK_NO_HOLE ? 0 : ENV_ZERO_PUNCH);
		break;
	case BLOCK_CACHE:
		request->done(request, 0);
		break;
	}
}

/* ---- memory ------------------------------------------------------------------------------- */

static void memory_zero(struct device *device, uint64_t offset, uint64_t length)
{
	uint64_t start = (offset + 4095) & ~4095ull, end = (offset + length) & ~4095ull;

	if (start >= end) {
		memset(device->memory + offset, 0, length);
		return;
	}
	memset(device->memory + offset, 0, start - offset);
	madvise(device->memory + start, end - start, MADV_DONTNEED);
	memset(device->memory + end, 0, offset + length - end);
}

static void device_submit(struct block *block, struct block_request *request)
{
	struct device *device = container_of(block, struct device, block);

	if (device->file) {
		file_submit(device, request);
		return;
	}
	if (!device->null) {
		uint8_t *at = device->memory + request->offset_bytes;

		if (request->op == BLOCK_READ)
			memcpy(request->buf->data, at, request->length_bytes);
		else if (request->op == BLOCK_WRITE)
			memcpy(at, request->buf->data, request->length_bytes);
		else if (request->op == BLOCK_TRIM || request->op == BLOCK_ZERO)
			memory_zero(device, request->offset_bytes, request->length_bytes);
	}
	request->done(request, 0);
}

/* ---- what both have ----------------------------------------------------------------------- */

static int device_open(struct block *block, char *why, size_t why_size)
{
	return 0;
}

static void device_close(struct block *block)
{
}

static void device_info(struct block *block, struct block_info *info)
{
	struct device *device = container_of(block, struct device, block);

	*info = (struct block_info){
		.size_bytes = device->size_bytes,
		.block_min_bytes = device->block_min_bytes,
		.block_preferred_bytes = 4096,
		.read_only = device->read_only,
		.can_trim = true,
		.can_zero = true,
		.can_fast_zero = true,
		.can_flush = true,
		.can_multi_conn = true,
	};
}

static unsigned device_extents(struct block *block, uint64_t offset, uint64_t length,
			       struct block_extent *extents, unsigned count)
{
	struct device *device = container_of(block, struct device, block);
	uint64_t end = offset + length;
	unsigned n = 0;

	if (!device->file) {
		extents[0] = (struct block_extent){.length_bytes = length};
		return 1;
	}
	while (n < count && offset < end) {
		uint64_t data_start, data_end;
		bool hole = false;
		uint64_t run = end - offset;
		int error = env_file_next_data(device->env, device->file, offset, &data_start,
					       &data_end);

		if (error == -ENXIO) {
			hole = true;
		} else if (error == 0 && data_start > offset) {
			hole = true;
			run = data_start - offset;
		} else if (error == 0) {
			run = data_end - offset;
		}
		if (run > end - offset)
			run = end - offset;
		extents[n++] =
			(struct block_extent){.length_bytes = run, .hole = hole, .zero = hole};
		offset += run;
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

static struct block *find(void *context, const char *name)
{
	struct device *device = context;

	return name[0] == '\0' || strcmp(name, device->block.name) == 0 ? &device->block : NULL;
}

static struct block *list(void *context, unsigned index)
{
	return index == 0 ? &((struct device *)context)->block : NULL;
}

/* ---- command line ------------------------------------------------------------------------- */

struct options {
	const char *addrs[8];
	unsigned addr_count;
	const char *file;
	uint64_t size_bytes;
	uint32_t block_min_bytes;
	enum env_backend backend;
	struct tls_config tls;
	bool require_tls, read_only, null, direct, verbose;
};

_Noreturn static void fail(const char *what, const char *why)
{
	fprintf(stderr, "nbd_memory: %s: %s\n", what, why);
	exit(1);
}

static uint64_t parse_size(const char *text)
{
	char *end;
	uint64_t value = strtoull(text, &end, 0);

	switch (*end) {
	case 'T':
		value <<= 10; /* fallthrough */
	case 'G':
		value <<= 10; /* fallthrough */
	case 'M':
		value <<= 10; /* fallthrough */
	case 'K':
		value <<= 10;
		end++;
	}
	if (*end || end == text)
		fail(text, "no size; e.g. 4096, 64M, 1G");
	return value;
}

static void add_addr(struct options *options, const char *prefix, const char *addr)
{
	char *text;

	if (options->addr_count == 8 || asprintf(&text, "%s%s", prefix, addr) < 0)
		fail(addr, "too many addresses");
	options->addrs[options->addr_count++] = text;
}

static void parse_options(int argc, char **argv, struct options *options)
{
	static const struct option longs[] = {
		{"unix", 1, NULL, 'u'},      {"tcp", 1, NULL, 't'},
		{"size", 1, NULL, 's'},      {"file", 1, NULL, 'f'},
		{"direct", 0, NULL, 'd'},    {"tls-cert", 1, NULL, 'c'},
		{"tls-key", 1, NULL, 'k'},   {"tls-ca", 1, NULL, 'a'},
		{"tls-psk", 1, NULL, 'p'},   {"require-tls", 0, NULL, 'r'},
		{"io", 1, NULL, 'i'},        {"block-min", 1, NULL, 'b'},
		{"read-only", 0, NULL, 'R'}, {"null", 0, NULL, 'n'},
		{"verbose", 0, NULL, 'v'},   {0},
	};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'u':
			add_addr(options, "unix:", optarg);
			break;
		case 't':
			add_addr(options, "tcp:", optarg);
			break;
		case 's':
			options->size_bytes = parse_size(optarg);
			break;
		case 'f':
			options->file = optarg;
			break;
		case 'd':
			options->direct = true;
			break;
		case 'c':
			options->tls.cert_file = optarg;
			break;
		case 'k':
			options->tls.key_file = optarg;
			break;
		case 'a':
			options->tls.ca_file = optarg;
			break;
		case 'p':
			options->tls.psk_file = optarg;
			break;
		case 'r':
			options->require_tls = true;
			break;
		case 'i':
			options->backend =
				strcmp(optarg, "aio") == 0 ? ENV_BACKEND_AIO : ENV_BACKEND_URING;
			break;
		case 'b':
			options->block_min_bytes = (uint32_t)parse_size(optarg);
			break;
		case 'R':
			options->read_only = true;
			break;
		case 'n':
			options->null = true;
			break;
		case 'v':
			options->verbose = true;
			break;
		default:
			exit(2);
		}
	}
	if (optind < argc || options->addr_count == 0)
		fail("usage", "nbd_memory --unix PATH | --tcp ADDR [--size N] [--file PATH "
			      "[--direct]] [--null] [--tls-cert F --tls-key F [--tls-ca F]] "
			      "[--tls-psk F] [--require-tls] [--io=uring|aio] [--block-min N] "
			      "[--read-only] [--verbose]");
}

/* ---- life --------------------------------------------------------------------------------- */

struct program {
	struct env *env;
	struct nbd_server *server;
	struct env_task signalled;
	sigset_t signals;
	bool stopped;
};

static void stopped(void *context)
{
	*(bool *)context = true;
}

static void signalled(struct env_task *task)
{
	struct program *program = container_of(task, struct program, signalled);

	nbd_server_stop(program->server, stopped, &program->stopped);
}

/* Streams under TLS outlive their connections until their closing message is sent. */
struct linger {
	struct env_timer timer;
	bool over;
};

static void linger_over(struct env_timer *timer)
{
	container_of(timer, struct linger, timer)->over = true;
}

static void linger(struct env *env)
{
	struct linger linger = {.timer.fire = linger_over};

	env_timer_start(env, &linger.timer, (STREAM_LINGER_MS + 50) * 1000000ull);
	env_run_until(env, &linger.over);
}

static void *wait_signal(void *context)
{
	struct program *program = context;
	int signal_number;

	sigwait(&program->signals, &signal_number);
	env_post(program->env, &program->signalled);
	return NULL;
}

static void open_device(struct device *device, struct env *env, const struct options *options)
{
	struct env_file_info info;
	unsigned flags = ENV_FILE_READ | ENV_FILE_CREATE;
	int error;

	device->block = (struct block){&device_ops, "memory", "a test's memory or file"};
	device->env = env;
	device->size_bytes = options->size_bytes;
	device->block_min_bytes = options->block_min_bytes;
	device->read_only = options->read_only;
	device->null = options->null;
	if (!options->file) {
		if (device->null)
			return;
		device->memory = mmap(NULL, device->size_bytes, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (device->memory == MAP_FAILED)
			fail("mmap", strerror(errno));
		return;
	}
	flags |= ENV_FILE_WRITE | (options->direct ? ENV_FILE_DIRECT : 0);
	error = env_file_open(env, options->file, flags, &device->file);
	if (error == 0)
		error = env_file_info(env, device->file, &info);
	if (error == 0 && info.size_bytes < device->size_bytes && !info.block_device)
		error = env_file_truncate(env, device->file, device->size_bytes);
	if (error)
		fail(options->file, strerror(-error));
	if (info.size_bytes > device->size_bytes || info.block_device)
		device->size_bytes = info.size_bytes;
	if (device->block_min_bytes < info.align_bytes)
		device->block_min_bytes = info.align_bytes;
	device->zeroes = mmap(NULL, BUF_SIZE_MAX, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (device->zeroes == MAP_FAILED)
		fail("mmap", strerror(errno));
}

static void start_server(struct program *program, struct nbd_server_config *config,
			 const struct options *options)
{
	char why[512] = "";

	if (options->tls.cert_file || options->tls.psk_file) {
		if (tls_context_new(&options->tls, &config->tls, why, sizeof(why)))
			fail("TLS", why);
		config->tls_mode = options->require_tls ? NBD_TLS_REQUIRE : NBD_TLS_ON;
	}
	program->server = nbd_server_new(program->env, config);
	if (!program->server)
		fail("start", "out of memory");
	for (unsigned i = 0; i < options->addr_count; i++) {
		if (nbd_server_listen(program->server, options->addrs[i], why, sizeof(why)))
			fail(options->addrs[i], why);
		printf("listening: %s\n", nbd_server_addr(program->server, i));
	}
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct options options = {.size_bytes = 64 << 20, .block_min_bytes = 1};
	const unsigned counts[3] = {1024, 256, 64};
	struct program program = {.signalled.call = signalled};
	struct device device = {0};
	struct nbd_server_config config = {.find = find, .list = list, .context = &device};
	const char *why;
	pthread_t thread;

	parse_options(argc, argv, &options);
	sigemptyset(&program.signals);
	sigaddset(&program.signals, SIGTERM);
	sigaddset(&program.signals, SIGINT);
	pthread_sigmask(SIG_BLOCK, &program.signals, NULL);
	signal(SIGPIPE, SIG_IGN);
	if (env_real_new(options.backend, 1, &program.env, &why))
		fail("start", why);
	if (options.verbose)
		env_log_level(program.env, ENV_LOG_DEBUG);
	config.pool = buf_pool_new(counts);
	if (!config.pool)
		fail("start", "out of memory");
	open_device(&device, program.env, &options);
	start_server(&program, &config, &options);
	if (pthread_create(&thread, NULL, wait_signal, &program))
		fail("start", "pthread_create");
	env_run_until(program.env, &program.stopped);
	pthread_join(thread, NULL);
	nbd_server_free(program.server);
	if (config.tls)
		linger(program.env);
	if (device.file)
		env_file_close(program.env, device.file);
	env_free(program.env);
	buf_pool_free(config.pool);
	tls_context_free(config.tls);
	for (unsigned i = 0; i < options.addr_count; i++)
		free((char *)(uintptr_t)options.addrs[i]);
	return 0;
}
