/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbd_ledger: a client that knows what it wrote. Each 4 KiB block it writes carries its place and a
 * sequence number; a log keeps, in order, when each write was issued and when it was acknowledged.
 * Afterwards an image can be held against the log.
 *
 *   nbd_ledger write --socket PATH [--export NAME] --log FILE --blocks N [--offset BYTES]
 *                    [--depth N] [--seconds N] [--seed N]
 *       Writes random blocks until the time is over (exit 0), SIGTERM (exit 0) or the server is
 *       gone (exit 3; a refused write: exit 1). Goes on with an existing log. SIGUSR1 puts a mark
 *       into the log and prints "mark N".
 *   nbd_ledger check --image FILE --log FILE --blocks N [--offset BYTES]
 *       Every block holds a write that was issued for it, none older than the last acknowledged.
 *   nbd_ledger cut --image FILE --log FILE --blocks N [--offset BYTES] --from MARK --to MARK
 *       The image is one instant of the write order: it holds all that was acknowledged before
 *       mark FROM, nothing issued after mark TO, and with a write everything that was acknowledged
 *       before that write was issued.
 *
 * The client is its own: nothing of the server's code is used.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "tests/system/nbd_ledger.h"

#define DEPTH_MAX 64u
/* A rest after as many answers as the depth, in which the last of them are under way still: thousands of writes a
 * second, and processors for the daemons and whatever runs beside. */
#define REST_NS 2000000

struct options {
	const char *socket, *export_name, *log, *image;
	uint64_t blocks, offset;
	unsigned depth, seconds, seed;
	uint64_t from, to;
};

static volatile sig_atomic_t marks_wanted, stop_wanted;

static void on_signal(int number)
{
	if (number == SIGUSR1)
		marks_wanted++;
	else
		stop_wanted = 1;
}

/* ---- NBD ------------------------------------------------------------------------------------------ */

static bool read_all(int fd, void *to, size_t length)
{
	for (size_t done = 0; done < length;) {
		ssize_t n = read(fd, (char *)to + done, length - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

static int connect_export(const struct options *o)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct {
		uint64_t magic, option_magic;
		uint16_t flags;
	} __attribute__((packed)) greeting;
	struct {
		uint32_t client_flags;
		uint64_t magic;
		uint32_t option, length, name_length;
	} __attribute__((packed))
	go = {htobe32(3), htobe64(0x49484156454f5054ull), htobe32(7), 0, 0};
	struct {
		uint64_t magic;
		uint32_t option, type, length;
	} __attribute__((packed)) answer;
	uint16_t no_infos = 0;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	size_t name_length = strlen(o->export_name);
	char skipped[4096];

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", o->socket);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
		die(EXIT_GONE, "cannot connect");
	go.length = htobe32((uint32_t)(4 + name_length + 2));
	go.name_length = htobe32((uint32_t)name_length);
	if (!read_all(fd, &greeting, sizeof(greeting)) || !write_all(fd, &go, sizeof(go)) ||
	    !write_all(fd, o->export_name, name_length) || !write_all(fd, &no_infos, 2))
		die(EXIT_GONE, "gone in the handshake");
	do {
		if (!read_all(fd, &answer, sizeof(answer)) ||
		    be32toh(answer.length) > sizeof(skipped) ||
		    !read_all(fd, skipped, be32toh(answer.length)))
			die(EXIT_GONE, "gone in the handshake");
		if (be32toh(answer.type) & 1u << 31) {
			fprintf(stderr, "nbd_ledger: refused: %.*s\n", (int)be32toh(answer.length),
				skipped);
			exit(EXIT_BAD);
		}
	} while (be32toh(answer.type) != 1);
	return fd;
}

/* ---- write ------------------------------------------------------------------------------------------ */

struct slot {
	bool busy, flush;
	uint64_t block, sequence;
};

struct writer {
	const struct options *options;
	struct log log;
	int fd;
	struct slot slots[DEPTH_MAX];
	bool *block_busy;
	uint64_t sequence, marks;
	uint64_t random;
	unsigned in_flight, writes;
};

static uint64_t next_random(struct writer *w)
{
	return mix(w->random++);
}

/* False: the server is gone. */
static bool send_one(struct writer *w, unsigned slot_index)
{
	struct slot *slot = &w->slots[slot_index];
	struct {
		struct request request;
		struct content content;
	} __attribute__((packed)) *message = malloc(sizeof(*message));
	size_t length = sizeof(message->request);

	if (!message)
		die(EXIT_BAD, "out of memory");
	*slot = (struct slot){.busy = true, .flush = ++w->writes % 64 == 0};
	message->request = (struct request){.magic = htobe32(0x25609513),
					    .type = htobe16(slot->flush ? 3 : 1),
					    .cookie = htobe64(slot_index)};
	if (!slot->flush) {
		struct content content;

		do
			slot->block = next_random(w) % w->options->blocks;
		while (w->block_busy[slot->block]);
		w->block_busy[slot->block] = true;
		slot->sequence = ++w->sequence;
		fill_content(&content, slot->block, slot->sequence);
		memcpy(&message->content, &content, sizeof(content));
		message->request.offset = htobe64(w->options->offset + slot->block * BLOCK_BYTES);
		message->request.length = htobe32(BLOCK_BYTES);
		length = sizeof(*message);
		log_add(&w->log, EVENT_ISSUE, slot->block, slot->sequence);
	}
	w->in_flight++;
	bool sent = write_all(w->fd, message, length);

	free(message);
	return sent;
}

static bool receive_one(struct writer *w)
{
	struct reply reply;

	if (!read_all(w->fd, &reply, sizeof(reply)))
		return false;
	uint64_t index = be64toh(reply.cookie);

	if (be32toh(reply.magic) != 0x67446698 || index >= DEPTH_MAX || !w->slots[index].busy)
		die(EXIT_BAD, "a reply that is none");
	struct slot *slot = &w->slots[index];

	slot->busy = false;
	w->in_flight--;
	if (reply.error) {
		/* 108: the server is stopping. What was not acknowledged may still be there. */
		fprintf(stderr, "nbd_ledger: a %s failed: error %u\n",
			slot->flush ? "flush" : "write", be32toh(reply.error));
		if (be32toh(reply.error) == 108)
			return false;
		log_store(&w->log, w->options->log);
		exit(EXIT_BAD);
	}
	if (!slot->flush) {
		w->block_busy[slot->block] = false;
		log_add(&w->log, EVENT_ACK, slot->block, slot->sequence);
	}
	return true;
}

static void take_marks(struct writer *w)
{
	while ((uint64_t)marks_wanted > w->marks) {
		log_add(&w->log, EVENT_MARK, 0, ++w->marks);
		printf("mark %llu\n", (unsigned long long)w->marks);
		fflush(stdout);
	}
}

static bool write_loop(struct writer *w, double end)
{
	const struct timespec rest = {.tv_nsec = REST_NS};
	struct timespec now;
	unsigned answers = 0;

	for (;;) {
		take_marks(w);
		clock_gettime(CLOCK_MONOTONIC, &now);
		bool over = stop_wanted || (double)now.tv_sec + (double)now.tv_nsec / 1e9 > end;

		if (over && w->in_flight == 0)
			return true;
		for (unsigned i = 0; i < w->options->depth && !over; i++)
			if (!w->slots[i].busy && !send_one(w, i))
				return false;
		if (!receive_one(w))
			return false;
		if (++answers % w->options->depth == 0 && !over)
			nanosleep(&rest, NULL);
	}
}

static int run_write(const struct options *o)
{
	struct writer w = {.options = o, .random = mix(o->seed)};
	struct sigaction action = {.sa_handler = on_signal};
	struct timespec now;

	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	w.block_busy = calloc(o->blocks, sizeof(*w.block_busy));
	if (!w.block_busy)
		die(EXIT_BAD, "out of memory");
	log_load(&w.log, o->log, false);
	for (size_t i = 0; i < w.log.count; i++)
		if (w.log.events[i].type == EVENT_ISSUE)
			w.sequence = w.log.events[i].sequence;
	w.fd = connect_export(o);
	clock_gettime(CLOCK_MONOTONIC, &now);
	bool fine = write_loop(&w, (double)now.tv_sec + (double)now.tv_nsec / 1e9 + o->seconds);

	log_store(&w.log, o->log);
	printf("%u requests, last write %llu%s\n", w.writes, (unsigned long long)w.sequence,
	       fine ? "" : ", then the server was gone");
	if (fine) {
		struct request bye = {.magic = htobe32(0x25609513), .type = htobe16(2)};

		write_all(w.fd, &bye, sizeof(bye));
	}
	close(w.fd);
	free(w.block_busy);
	free(w.log.events);
	return fine ? EXIT_FINE : EXIT_GONE;
}

/* ---- check, cut ----------------------------------------------------------------------------------------- */

#define NEVER UINT64_MAX

/* One write, found by its sequence number. */
struct written {
	uint64_t issued, acked; /* index of the event in the log; NEVER */
	uint32_t block;
	uint64_t next; /* sequence of the next write to the same block; 0: none */
};

struct history {
	struct written *writes; /* by sequence; [0] is not used */
	uint64_t count;
	uint64_t *first, *last; /* per block: sequence of its first and last write; 0: none */
	uint64_t *last_acked;   /* per block: sequence; 0: none */
	uint64_t marks[64];     /* event index by number */
};

static void history_load(struct history *h, const struct log *log, const struct options *o)
{
	memset(h, 0, sizeof(*h));
	for (size_t i = 0; i < log->count; i++)
		if (log->events[i].type == EVENT_ISSUE)
			h->count = log->events[i].sequence;
	h->writes = calloc(h->count + 1, sizeof(*h->writes));
	h->first = calloc(o->blocks, sizeof(*h->first));
	h->last = calloc(o->blocks, sizeof(*h->last));
	h->last_acked = calloc(o->blocks, sizeof(*h->last_acked));
	if (!h->writes || !h->first || !h->last || !h->last_acked)
		die(EXIT_BAD, "out of memory");
	for (size_t i = 0; i < log->count; i++) {
		const struct event *e = &log->events[i];

		if (e->type == EVENT_MARK) {
			if (e->sequence < 64)
				h->marks[e->sequence] = i;
			continue;
		}
		if (e->block >= o->blocks || e->sequence == 0 || e->sequence > h->count)
			die(EXIT_USAGE, "the log does not fit");
		struct written *w = &h->writes[e->sequence];

		if (e->type == EVENT_ACK) {
			w->acked = i;
			h->last_acked[e->block] = e->sequence;
			continue;
		}
		*w = (struct written){.issued = i, .acked = NEVER, .block = e->block};
		if (h->last[e->block])
			h->writes[h->last[e->block]].next = e->sequence;
		else
			h->first[e->block] = e->sequence;
		h->last[e->block] = e->sequence;
	}
}

/* The sequence number in a block of the image; 0: never written (zeroes). Exits on anything else. */
static uint64_t block_sequence(const struct content *c, const struct history *h, uint64_t block)
{
	static const struct content zeroes;
	struct content expected;

	if (memcmp(c, &zeroes, sizeof(*c)) == 0)
		return 0;
	if (c->magic == MAGIC && c->block == block && c->sequence > 0 && c->sequence <= h->count &&
	    h->writes[c->sequence].block == block) {
		fill_content(&expected, block, c->sequence);
		if (memcmp(c, &expected, sizeof(*c)) == 0)
			return c->sequence;
	}
	printf("block %llu: holds what was never written there (magic %llx, block %llu, sequence "
	       "%llu)\n",
	       (unsigned long long)block, (unsigned long long)c->magic,
	       (unsigned long long)c->block, (unsigned long long)c->sequence);
	exit(EXIT_BAD);
}

static uint64_t *load_image(const struct options *o, const struct history *h)
{
	uint64_t *sequences = calloc(o->blocks, sizeof(*sequences));
	int fd = open(o->image, O_RDONLY | O_CLOEXEC);
	struct content content;

	if (fd < 0 || !sequences)
		die(EXIT_USAGE, "the image cannot be read");
	for (uint64_t b = 0; b < o->blocks; b++) {
		if (pread(fd, &content, sizeof(content), (off_t)(o->offset + b * BLOCK_BYTES)) !=
		    sizeof(content))
			die(EXIT_BAD, "the image is too short");
		sequences[b] = block_sequence(&content, h, b);
	}
	close(fd);
	return sequences;
}

static int run_check(const struct options *o, const struct history *h, const uint64_t *found)
{
	uint64_t acked = 0, newer = 0;

	for (uint64_t b = 0; b < o->blocks; b++) {
		if (found[b] < h->last_acked[b]) {
			printf("block %llu: holds write %llu, but %llu was acknowledged\n",
			       (unsigned long long)b, (unsigned long long)found[b],
			       (unsigned long long)h->last_acked[b]);
			return EXIT_BAD;
		}
		acked += h->last_acked[b] != 0;
		newer += found[b] > h->last_acked[b];
	}
	printf("%llu blocks as acknowledged, %llu with a later write\n", (unsigned long long)acked,
	       (unsigned long long)newer);
	return EXIT_FINE;
}

static int run_cut(const struct options *o, const struct history *h, const uint64_t *found)
{
	uint64_t newest = 0, newest_issued = 0;

	if (o->from >= 64 || o->to >= 64 || !h->marks[o->from] || !h->marks[o->to])
		die(EXIT_USAGE, "no such mark in the log");
	for (uint64_t b = 0; b < o->blocks; b++)
		if (found[b] > newest)
			newest = found[b];
	newest_issued = newest ? h->writes[newest].issued : 0;
	if (newest && newest_issued > h->marks[o->to]) {
		printf("write %llu is in the image, but was issued after mark %llu\n",
		       (unsigned long long)newest, (unsigned long long)o->to);
		return EXIT_BAD;
	}
	for (uint64_t b = 0; b < o->blocks; b++) {
		uint64_t missing = found[b] ? h->writes[found[b]].next : h->first[b];

		if (!missing || h->writes[missing].acked == NEVER)
			continue;
		uint64_t acked = h->writes[missing].acked;

		if (acked < h->marks[o->from] || (newest && acked < newest_issued)) {
			printf("block %llu: write %llu is missing, though it was acknowledged "
			       "before %s\n",
			       (unsigned long long)b, (unsigned long long)missing,
			       acked < h->marks[o->from] ? "the snapshot was asked for"
							 : "a write that is there was issued");
			return EXIT_BAD;
		}
	}
	printf("one instant: up to write %llu of %llu\n", (unsigned long long)newest,
	       (unsigned long long)h->count);
	return EXIT_FINE;
}

static int run_on_image(const struct options *o, bool cut)
{
	struct log log;
	struct history history;

	log_load(&log, o->log, true);
	history_load(&history, &log, o);
	uint64_t *found = load_image(o, &history);
	int code = cut ? run_cut(o, &history, found) : run_check(o, &history, found);

	free(found);
	free(history.writes);
	free(history.first);
	free(history.last);
	free(history.last_acked);
	free(log.events);
	return code;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{"socket", 1, NULL, 's'}, {"export", 1, NULL, 'e'},  {"log", 1, NULL, 'l'},
		{"image", 1, NULL, 'i'},  {"blocks", 1, NULL, 'b'},  {"offset", 1, NULL, 'o'},
		{"depth", 1, NULL, 'd'},  {"seconds", 1, NULL, 't'}, {"seed", 1, NULL, 'r'},
		{"from", 1, NULL, 'f'},   {"to", 1, NULL, 'u'},      {NULL, 0, NULL, 0}};
	struct options o = {.export_name = "v", .depth = 16, .seconds = 3600, .seed = 1};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		uint64_t number = optarg ? strtoull(optarg, NULL, 0) : 0;

		switch (c) {
		case 's':
			o.socket = optarg;
			break;
		case 'e':
			o.export_name = optarg;
			break;
		case 'l':
			o.log = optarg;
			break;
		case 'i':
			o.image = optarg;
			break;
		case 'b':
			o.blocks = number;
			break;
		case 'o':
			o.offset = number;
			break;
		case 'd':
			o.depth = (unsigned)number;
			break;
		case 't':
			o.seconds = (unsigned)number;
			break;
		case 'r':
			o.seed = (unsigned)number;
			break;
		case 'f':
			o.from = number;
			break;
		case 'u':
			o.to = number;
			break;
		default:
			return EXIT_USAGE;
		}
	}
	const char *verb = optind < argc ? argv[optind] : "";

	if (!o.log || o.blocks <= DEPTH_MAX || o.depth == 0 || o.depth > DEPTH_MAX)
		die(EXIT_USAGE, "--log, --blocks (more than 64) or --depth (1 to 64) is wrong");
	if (strcmp(verb, "write") == 0 && o.socket)
		return run_write(&o);
	if ((strcmp(verb, "check") == 0 || strcmp(verb, "cut") == 0) && o.image)
		return run_on_image(&o, strcmp(verb, "cut") == 0);
	die(EXIT_USAGE, "write --socket, check --image or cut --image expected");
}
