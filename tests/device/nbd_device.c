// SPDX-License-Identifier: Apache-2.0
/*
 * nbd_device: the kernel's nbd client, as a program, under a writer that knows what it wrote. For machines without
 * nbd.ko, and for measuring what emulation would spoil: a daemon linked with kernel.c hands it its sockets.
 *
 *   nbd_device --listen PATH --log FILE --blocks N [--depth N] [--seed N] [--rest]
 *       Writes random 4 KiB blocks (each 64th request is a flush) from the moment it is attached until SIGTERM, then
 *       waits for what is under way and ends. The log is nbd_ledger's, whose `check` holds an image against it.
 *       --rest: a pause after as many answers as the depth. SIGUSR1: what is reported begins anew.
 *
 * As in drivers/block/nbd.c: when a socket ends, what was sent over it and not answered stays as it is, until the
 * queue's timer looks at it (every second, at full seconds) and finds that there is another one in its place; then it
 * is sent again. What could not be sent, or came meanwhile, waits for the socket and goes out at once. After
 * each change of sockets, when all that had waited is answered, one line:
 *
 *   again N {"lost": S, "given": S, "first": S, "gap": S, "write": S, "resent": N}
 *
 * lost, given, first: when (CLOCK_MONOTONIC) the first socket ended, the last one came, and the first answer over it;
 * gap: the longest time between two answers; write: the longest that one request took; resent: by the timer.
 */
#include <endian.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "tests/device/order.h"
#include "tests/system/nbd_ledger.h"

#define DEPTH_MAX 64u
#define REST_NS   2000000
#define SECOND_NS 1000000000ull

struct options {
	const char *listen, *log;
	uint64_t blocks;
	unsigned depth, seed;
	bool rest;
};

enum slot_state { SLOT_FREE, SLOT_WAITING, SLOT_SENT };

struct slot {
	enum slot_state state;
	bool flush;
	uint64_t block, sequence;
	uint64_t issued_ns, deadline_ns;
	unsigned connection; /* sent over ... */
	uint64_t cookie;     /* ... the socket that it had then */
};

struct connection {
	int fd;
	bool dead;    /* takes no more */
	bool reading; /* answers may still be in it */
	uint64_t cookie;
	size_t filled;
	uint8_t answers[4096];
};

/* What is reported, since it was begun anew. */
struct report {
	unsigned changes;
	uint64_t lost_ns, given_ns, first_ns; /* of the change under way */
	uint64_t answered_ns, gap_ns, write_ns;
	unsigned resent;
};

struct device {
	struct options options;
	struct log log;
	int listener;
	struct device_order terms; /* as of CONNECT; size_bytes 0: nothing is attached */
	struct connection connections[DEVICE_SOCKETS_MAX];
	unsigned count;
	struct slot slots[DEPTH_MAX];
	bool *block_busy;
	uint64_t sequence, random, looked_s;
	unsigned writes, answers;
	struct report report;
};

static volatile sig_atomic_t stop_wanted, anew_wanted;

static void on_signal(int number)
{
	if (number == SIGUSR1)
		anew_wanted = 1;
	else
		stop_wanted = 1;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static void fail(struct device *d, const char *what)
{
	log_store(&d->log, d->options.log);
	die(EXIT_BAD, what);
}

/* ---- sockets ------------------------------------------------------------------------------------------ */

static void mark_dead(struct device *d, struct connection *c)
{
	if (c->dead)
		return;
	c->dead = true;
	shutdown(c->fd, SHUT_RDWR);
	if (!d->report.lost_ns)
		d->report.lost_ns = now_ns();
	d->report.given_ns = d->report.first_ns = 0;
}

static void take_socket(struct device *d, struct connection *c, int fd)
{
	if (c->fd >= 0)
		close(c->fd);
	*c = (struct connection){.fd = fd, .reading = true, .cookie = c->cookie + 1};
}

/* The one that a slot uses, or any other that lives; NULL: none does. */
static struct connection *live_connection(struct device *d, const struct slot *slot)
{
	unsigned first = (unsigned)(slot - d->slots);

	for (unsigned i = 0; i < d->count; i++) {
		struct connection *c = &d->connections[(first + i) % d->count];

		if (!c->dead)
			return c;
	}
	return NULL;
}

static bool all_live(const struct device *d)
{
	for (unsigned i = 0; i < d->count; i++)
		if (d->connections[i].dead)
			return false;
	return d->count > 0;
}

/* ---- requests ----------------------------------------------------------------------------------------- */

static bool send_request(struct connection *c, const struct slot *slot, unsigned index)
{
	struct {
		struct request request;
		struct content content;
	} __attribute__((packed)) message;
	size_t length = slot->flush ? sizeof(message.request) : sizeof(message);

	message.request = (struct request){.magic = htobe32(0x25609513),
					   .type = htobe16(slot->flush ? 3 : 1),
					   .cookie = htobe64(c->cookie << 32 | index)};
	if (!slot->flush) {
		struct content content;

		fill_content(&content, slot->block, slot->sequence);
		memcpy(&message.content, &content, sizeof(content));
		message.request.offset = htobe64(slot->block * BLOCK_BYTES);
		message.request.length = htobe32(BLOCK_BYTES);
	}
	return write_all(c->fd, &message, length);
}

static uint64_t period_ns(const struct device *d)
{
	return (d->terms.request_s ? d->terms.request_s : 1) * SECOND_NS;
}

/* Over a socket that lives; else it waits for one. */
static void submit(struct device *d, struct slot *slot)
{
	struct connection *c;

	slot->state = SLOT_WAITING;
	while ((c = live_connection(d, slot))) {
		if (send_request(c, slot, (unsigned)(slot - d->slots))) {
			slot->state = SLOT_SENT;
			slot->connection = (unsigned)(c - d->connections);
			slot->cookie = c->cookie;
			slot->deadline_ns = now_ns() + period_ns(d);
			return;
		}
		mark_dead(d, c);
	}
}

static void issue(struct device *d, struct slot *slot)
{
	*slot = (struct slot){.flush = ++d->writes % 64 == 0, .issued_ns = now_ns()};
	if (!slot->flush) {
		do
			slot->block = mix(d->random++) % d->options.blocks;
		while (d->block_busy[slot->block]);
		d->block_busy[slot->block] = true;
		slot->sequence = ++d->sequence;
		log_add(&d->log, EVENT_ISSUE, slot->block, slot->sequence);
	}
	submit(d, slot);
}

static void issue_all(struct device *d)
{
	for (unsigned i = 0; i < d->options.depth && !stop_wanted && d->count > 0; i++)
		if (d->slots[i].state == SLOT_FREE)
			issue(d, &d->slots[i]);
}

static bool is_idle(const struct device *d)
{
	for (unsigned i = 0; i < d->options.depth; i++)
		if (d->slots[i].state != SLOT_FREE)
			return false;
	return true;
}

/* ---- answers ------------------------------------------------------------------------------------------ */

/* All that was under way when the sockets changed is over. */
static bool is_settled(const struct device *d)
{
	for (unsigned i = 0; i < d->options.depth; i++)
		if (d->slots[i].state != SLOT_FREE && d->slots[i].issued_ns <= d->report.given_ns)
			return false;
	return true;
}

static double seconds(uint64_t ns)
{
	return (double)ns / 1e9;
}

static void look_whether_settled(struct device *d)
{
	struct report *r = &d->report;

	if (!r->lost_ns || !r->given_ns || !r->first_ns || !is_settled(d))
		return;
	printf("again %u {\"lost\": %.6f, \"given\": %.6f, \"first\": %.6f, \"gap\": %.6f, "
	       "\"write\": %.6f, \"resent\": %u}\n",
	       ++r->changes, seconds(r->lost_ns), seconds(r->given_ns), seconds(r->first_ns),
	       seconds(r->gap_ns), seconds(r->write_ns), r->resent);
	fflush(stdout);
	r->lost_ns = r->given_ns = r->first_ns = 0;
}

static void take_answer(struct device *d, struct connection *c, const struct reply *reply)
{
	struct report *r = &d->report;
	uint64_t cookie = be64toh(reply->cookie), now = now_ns();
	struct slot *slot = &d->slots[cookie % DEPTH_MAX];

	if (be32toh(reply->magic) != 0x67446698 || (cookie & 0xffffffff) >= DEPTH_MAX ||
	    cookie >> 32 != c->cookie || slot->state != SLOT_SENT || slot->cookie != c->cookie ||
	    slot->connection != (unsigned)(c - d->connections))
		fail(d, "an answer to nothing");
	if (reply->error)
		fail(d, "an I/O error");
	if (!slot->flush) {
		d->block_busy[slot->block] = false;
		log_add(&d->log, EVENT_ACK, slot->block, slot->sequence);
	}
	slot->state = SLOT_FREE;
	d->answers++;
	if (r->answered_ns && now - r->answered_ns > r->gap_ns)
		r->gap_ns = now - r->answered_ns;
	r->answered_ns = now;
	if (now - slot->issued_ns > r->write_ns)
		r->write_ns = now - slot->issued_ns;
	if (r->given_ns && !r->first_ns)
		r->first_ns = now;
}

static void receive(struct device *d, struct connection *c)
{
	ssize_t n =
		recv(c->fd, c->answers + c->filled, sizeof(c->answers) - c->filled, MSG_DONTWAIT);
	struct reply reply;
	size_t used = 0;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		c->reading = false;
		mark_dead(d, c);
		return;
	}
	c->filled += (size_t)n;
	for (; c->filled - used >= sizeof(reply); used += sizeof(reply)) {
		memcpy(&reply, c->answers + used, sizeof(reply));
		take_answer(d, c, &reply);
	}
	c->filled -= used;
	memmove(c->answers, c->answers + used, c->filled);
}

/* The queue's timer. */
static void look_at_requests(struct device *d)
{
	uint64_t now = now_ns();

	if (now / SECOND_NS == d->looked_s)
		return;
	d->looked_s = now / SECOND_NS;
	for (unsigned i = 0; i < d->options.depth; i++) {
		struct slot *slot = &d->slots[i];
		struct connection *c = &d->connections[slot->connection];

		if (slot->state != SLOT_SENT || slot->deadline_ns > now)
			continue;
		if (slot->cookie == c->cookie && !d->terms.request_s) {
			slot->deadline_ns = now + SECOND_NS;
			continue;
		}
		if (slot->cookie == c->cookie)
			mark_dead(d, c);
		d->report.resent++;
		submit(d, slot);
	}
}

/* ---- orders ------------------------------------------------------------------------------------------- */

static int order_connect(struct device *d, const struct device_order *order, const int *sockets)
{
	if (d->count > 0)
		return -EBUSY;
	d->terms = *order;
	d->count = order->sockets;
	for (unsigned i = 0; i < d->count; i++)
		take_socket(d, &d->connections[i], sockets[i]);
	printf("attached %u\n", d->count);
	fflush(stdout);
	return 0;
}

/* In place of one that is dead; where none is, it is dropped, and that is no error. */
static int order_give(struct device *d, const struct device_order *order, int socket)
{
	if (d->count == 0 || strcmp(d->terms.identifier, order->identifier) != 0) {
		close(socket);
		return -EINVAL;
	}
	for (unsigned i = 0; i < d->count; i++) {
		struct connection *c = &d->connections[i];

		if (!c->dead || c->reading)
			continue;
		take_socket(d, c, socket);
		if (all_live(d))
			d->report.given_ns = now_ns();
		for (unsigned s = 0; s < d->options.depth; s++)
			if (d->slots[s].state == SLOT_WAITING)
				submit(d, &d->slots[s]);
		return 0;
	}
	close(socket);
	return 0;
}

static int order_disconnect(struct device *d)
{
	if (!is_idle(d))
		return -EBUSY;
	for (unsigned i = 0; i < d->count; i++) {
		close(d->connections[i].fd);
		d->connections[i].fd = -1;
	}
	d->count = 0;
	return 0;
}

static void obey(struct device *d, const struct device_order *order, const int *sockets,
		 struct device_answer *answer)
{
	switch (order->verb) {
	case DEVICE_CONNECT:
		answer->error = order_connect(d, order, sockets);
		break;
	case DEVICE_GIVE:
		answer->error = order_give(d, order, sockets[0]);
		break;
	case DEVICE_RESIZE:
		d->terms.size_bytes = order->size_bytes;
		break;
	case DEVICE_DISCONNECT:
		answer->error = order_disconnect(d);
		break;
	case DEVICE_SCAN:
		answer->connections = d->count;
		answer->size_bytes = d->terms.size_bytes;
		if (d->count > 0)
			memcpy(answer->identifier, d->terms.identifier, DEVICE_NAME_MAX);
		break;
	}
}

static void take_order(struct device *d)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(DEVICE_SOCKETS_MAX * sizeof(int))];
	} control;
	struct device_order order;
	struct device_answer answer = {.error = 0};
	struct iovec text = {&order, sizeof(order)};
	struct msghdr message = {.msg_iov = &text,
				 .msg_iovlen = 1,
				 .msg_control = &control,
				 .msg_controllen = sizeof(control)};
	int sockets[DEVICE_SOCKETS_MAX], fd = accept4(d->listener, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return;
	if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) == (ssize_t)sizeof(order) &&
	    order.sockets <= DEVICE_SOCKETS_MAX &&
	    (order.sockets == 0 || CMSG_FIRSTHDR(&message))) {
		if (order.sockets > 0)
			memcpy(sockets, CMSG_DATA(&control.header), order.sockets * sizeof(int));
		obey(d, &order, sockets, &answer);
		(void)!send(fd, &answer, sizeof(answer), MSG_NOSIGNAL);
	}
	close(fd);
}

/* ---- the loop ----------------------------------------------------------------------------------------- */

static void wait_for_something(struct device *d)
{
	struct pollfd fds[1 + DEVICE_SOCKETS_MAX];
	uint64_t now = now_ns();

	fds[0] = (struct pollfd){.fd = d->listener, .events = POLLIN};
	for (unsigned i = 0; i < d->count; i++)
		fds[1 + i] = (struct pollfd){
			.fd = d->connections[i].reading ? d->connections[i].fd : -1,
			.events = POLLIN,
		};
	poll(fds, 1 + d->count, (int)((SECOND_NS - now % SECOND_NS) / 1000000 + 1));
}

static void look_at_time(struct device *d, uint64_t *alive_ns)
{
	if (d->count == 0 || live_connection(d, &d->slots[0]))
		*alive_ns = now_ns();
	if (now_ns() - *alive_ns > d->terms.dead_s * SECOND_NS && d->count > 0)
		fail(d, "no daemon came in time: an I/O error");
	if (!anew_wanted)
		return;
	anew_wanted = 0;
	d->report.gap_ns = d->report.write_ns = 0;
	d->report.resent = 0;
}

static void run(struct device *d)
{
	const struct timespec rest = {.tv_nsec = REST_NS};
	uint64_t alive_ns = now_ns();
	unsigned rested = 0;

	while (!stop_wanted || !is_idle(d)) {
		issue_all(d);
		wait_for_something(d);
		for (unsigned i = 0; i < d->count; i++)
			if (d->connections[i].reading)
				receive(d, &d->connections[i]);
		take_order(d);
		look_at_requests(d);
		look_whether_settled(d);
		look_at_time(d, &alive_ns);
		if (d->options.rest && d->answers - rested >= d->options.depth) {
			rested = d->answers;
			nanosleep(&rest, NULL);
		}
	}
}

static int listen_on(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd < 0 || bind(fd, (const struct sockaddr *)&address, sizeof(address)) || listen(fd, 8))
		die(EXIT_USAGE, "cannot listen");
	return fd;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {{"listen", 1, NULL, 'p'}, {"log", 1, NULL, 'l'},
					      {"blocks", 1, NULL, 'b'}, {"depth", 1, NULL, 'd'},
					      {"seed", 1, NULL, 'r'},   {"rest", 0, NULL, 'R'},
					      {NULL, 0, NULL, 0}};
	static struct device d = {.options = {.depth = 32, .seed = 1}};
	struct sigaction action = {.sa_handler = on_signal};
	struct options *o = &d.options;
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		unsigned long long number = optarg ? strtoull(optarg, NULL, 0) : 0;

		if (c == 'p')
			o->listen = optarg;
		else if (c == 'l')
			o->log = optarg;
		else if (c == 'b')
			o->blocks = number;
		else if (c == 'd')
			o->depth = (unsigned)number;
		else if (c == 'r')
			o->seed = (unsigned)number;
		else if (c == 'R')
			o->rest = true;
		else
			return EXIT_USAGE;
	}
	if (!o->listen || !o->log || o->blocks <= DEPTH_MAX || o->depth == 0 ||
	    o->depth > DEPTH_MAX)
		die(EXIT_USAGE, "--listen, --log, --blocks or --depth (1 to 64) is wrong");
	d.random = mix(o->seed);
	d.block_busy = calloc(o->blocks, sizeof(*d.block_busy));
	if (!d.block_busy)
		die(EXIT_BAD, "out of memory");
	for (unsigned i = 0; i < DEVICE_SOCKETS_MAX; i++)
		d.connections[i].fd = -1;
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGUSR1, &action, NULL);
	d.listener = listen_on(o->listen);
	run(&d);
	log_store(&d.log, o->log);
	printf("%u requests, last write %llu\n", d.writes, (unsigned long long)d.sequence);
	free(d.block_busy);
	free(d.log.events);
	return EXIT_FINE;
}
