// SPDX-License-Identifier: Apache-2.0
/*
 * Attached devices: the messages to the kernel, and the life of a device over a kernel of the test's own,
 * whose ends of the sockets the test speaks NBD on, as nbd.ko does.
 */
#include "tests/unit/nbd_harness.h"

#include <netlink/attr.h>
#include <netlink/genl/genl.h>
#include <netlink/msg.h>

#include "nbd-server/attach.h"
#include "nbd-server/netlink.h"
#include "tests/unit/count_memory.h"

/* ---- messages ------------------------------------------------------------------------------------ */

static void messages_say_what_is_given(void **state)
{
	const int fds[] = {7, 9};
	const struct nbd_netlink_request request = {
		.command = NBD_CMD_CONNECT,
		.index = 3,
		.size_bytes = 1ull << 40,
		.block_bytes = 512,
		.server_flags = 0x16d,
		.identifier = "offsite:v:a:1",
		.fds = fds,
		.fd_count = 2,
		.dead_s = 120,
		.request_s = 0,
	};
	struct nl_msg *message = nbd_netlink_message(33, &request);
	struct nlattr *a[NBD_ATTR_MAX + 1], *item, *fd;
	struct genlmsghdr *header;
	int left, i = 0;

	assert_non_null(message);
	assert_int_equal(nlmsg_hdr(message)->nlmsg_type, 33);
	header = genlmsg_hdr(nlmsg_hdr(message));
	assert_int_equal(header->cmd, NBD_CMD_CONNECT);
	assert_int_equal(header->version, NBD_GENL_VERSION);
	assert_int_equal(genlmsg_parse(nlmsg_hdr(message), 0, a, NBD_ATTR_MAX, NULL), 0);
	assert_int_equal(nla_get_u32(a[NBD_ATTR_INDEX]), 3);
	assert_int_equal(nla_get_u64(a[NBD_ATTR_SIZE_BYTES]), 1ull << 40);
	assert_int_equal(nla_get_u64(a[NBD_ATTR_BLOCK_SIZE_BYTES]), 512);
	assert_int_equal(nla_get_u64(a[NBD_ATTR_SERVER_FLAGS]), 0x16d);
	assert_int_equal(nla_get_u64(a[NBD_ATTR_DEAD_CONN_TIMEOUT]), 120);
	/* Said, as the device may have another one from its last use. */
	assert_int_equal(nla_get_u64(a[NBD_ATTR_TIMEOUT]), 0);
	assert_null(a[NBD_ATTR_CLIENT_FLAGS]);
	assert_string_equal(nla_get_string(a[NBD_ATTR_BACKEND_IDENTIFIER]), "offsite:v:a:1");
	nla_for_each_nested(item, a[NBD_ATTR_SOCKETS], left)
	{
		assert_int_equal(nla_type(item), NBD_SOCK_ITEM);
		fd = nla_data(item);
		assert_int_equal(nla_type(fd), NBD_SOCK_FD);
		assert_int_equal(nla_get_u32(fd), fds[i++]);
	}
	assert_int_equal(i, 2);
	nlmsg_free(message);
}

static void messages_leave_out_what_is_not(void **state)
{
	const struct nbd_netlink_request request = {.command = NBD_CMD_RECONFIGURE, .index = -1};
	struct nl_msg *message = nbd_netlink_message(33, &request);
	struct nlattr *a[NBD_ATTR_MAX + 1];

	assert_non_null(message);
	assert_int_equal(genlmsg_parse(nlmsg_hdr(message), 0, a, NBD_ATTR_MAX, NULL), 0);
	for (int i = 0; i <= NBD_ATTR_MAX; i++)
		assert_null(a[i]);
	nlmsg_free(message);
}

/* ---- a kernel ---------------------------------------------------------------------------------- */

#define FAKE_INDEX 5u

/* One device, nbd5. Its calls come from the device's thread: everything under the lock. */
struct fake {
	pthread_mutex_t lock;
	struct nbd_kernel_params params;
	bool configured, in_use;
	int sockets[ATTACH_CONNECTIONS_MAX];
	unsigned count, tuned, untuned, connects, gives;
	int connect_error, disconnect_error;
	unsigned disconnects;
	pthread_mutex_t resizing; /* held: a resize takes as long as that */
	unsigned unnoticed; /* so many gives come before the kernel knows of the old socket's end */
};

static struct fake fake;

static int fake_connect(void *context, int index, const struct nbd_kernel_params *params,
			const int *fds, unsigned count, unsigned *index_out, char *why,
			size_t why_size)
{
	int error;

	pthread_mutex_lock(&fake.lock);
	fake.connects++;
	error = fake.connect_error ? fake.connect_error : fake.configured ? -EBUSY : 0;
	if (error) {
		snprintf(why, why_size, "/dev/nbd5 is in use");
	} else {
		*index_out = index >= 0 ? (unsigned)index : FAKE_INDEX;
		fake.configured = true;
		fake.params = *params;
		fake.count = count;
		for (unsigned i = 0; i < count; i++)
			fake.sockets[i] = dup(fds[i]);
	}
	pthread_mutex_unlock(&fake.lock);
	return error;
}

static bool fake_is_dead(int fd)
{
	char byte;

	return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

/* As nbd_genl_reconfigure(): 0 also where it drops the new socket. */
static int fake_give(void *context, unsigned index, const struct nbd_kernel_params *params, int fd)
{
	int error = 0;

	pthread_mutex_lock(&fake.lock);
	fake.gives++;
	if (!fake.configured || strcmp(fake.params.identifier, params->identifier) != 0)
		error = -EINVAL;
	for (unsigned i = 0; i < fake.count && !error; i++) {
		if (!fake_is_dead(fake.sockets[i]))
			continue;
		if (fake.unnoticed) {
			fake.unnoticed--;
			break;
		}
		close(fake.sockets[i]);
		fake.sockets[i] = dup(fd);
		break;
	}
	pthread_mutex_unlock(&fake.lock);
	return error;
}

static int fake_resize(void *context, unsigned index, const struct nbd_kernel_params *params)
{
	pthread_mutex_lock(&fake.resizing);
	pthread_mutex_unlock(&fake.resizing);
	pthread_mutex_lock(&fake.lock);
	fake.params.size_bytes = params->size_bytes;
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

static int fake_disconnect(void *context, unsigned index, char *why, size_t why_size)
{
	struct nbd_request_wire disc = {
		.magic = to_be32(NBD_MAGIC_REQUEST),
		.type = to_be16(NBD_CMD_DISC),
	};

	pthread_mutex_lock(&fake.lock);
	fake.disconnects++;
	if (fake.disconnect_error) {
		snprintf(why, why_size, "the kernel does not want to");
		pthread_mutex_unlock(&fake.lock);
		return fake.disconnect_error;
	}
	for (unsigned i = 0; i < fake.count; i++) {
		(void)!send(fake.sockets[i], &disc, sizeof(disc), MSG_NOSIGNAL);
		close(fake.sockets[i]);
	}
	fake.count = 0;
	fake.configured = false;
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

static int fake_in_use(void *context, unsigned index)
{
	return fake.in_use ? -EBUSY : 0;
}

static int fake_tune(void *context, unsigned index, const struct nbd_kernel_params *params,
		     bool fresh, char *why, size_t why_size)
{
	fake.tuned++;
	return 0;
}

static void fake_untune(void *context, unsigned index, const char *link)
{
	fake.untuned++;
}

static unsigned fake_scan(void *context, const char *prefix, struct nbd_kernel_device *devices,
			  unsigned max)
{
	if (!fake.configured || strncmp(fake.params.identifier, prefix, strlen(prefix)))
		return 0;
	devices[0] = (struct nbd_kernel_device){
		.index = FAKE_INDEX,
		.connections = fake.count,
		.size_bytes = fake.params.size_bytes,
	};
	strcpy(devices[0].identifier, fake.params.identifier);
	return 1;
}

static const struct nbd_kernel fake_kernel = {
	.connect = fake_connect,
	.give = fake_give,
	.resize = fake_resize,
	.disconnect = fake_disconnect,
	.in_use = fake_in_use,
	.tune = fake_tune,
	.untune = fake_untune,
	.scan = fake_scan,
};

static void fake_reset(void)
{
	for (unsigned i = 0; i < fake.count; i++)
		close(fake.sockets[i]);
	memset(&fake, 0, sizeof(fake));
	pthread_mutex_init(&fake.lock, NULL);
	pthread_mutex_init(&fake.resizing, NULL);
}

/* ---- a daemon ---------------------------------------------------------------------------------- */

/* What attach asks of its daemon; one at a time, changed on the loop thread only. */
static struct {
	struct attach *attach;
	const char *who;
	struct attach_options options;
	bool is_started;
	unsigned answers, braced;
	int error;
	char why[256], device[32];
} daemon_side;

static bool identify(void *context, const char *name, char *text, size_t size)
{
	snprintf(text, size, "%s", daemon_side.who);
	return strcmp(name, "vol") == 0;
}

static void options(void *context, const char *name, struct attach_options *to)
{
	*to = daemon_side.options;
}

static void brace(void *context, const char *name)
{
	daemon_side.braced++;
}

static const char *name(void *context, unsigned index)
{
	return index == 0 ? "vol" : NULL;
}

static void started(void *context)
{
	daemon_side.is_started = true;
}

static void answer(void *context, int error, const char *why, const char *device)
{
	daemon_side.answers++;
	daemon_side.error = error;
	snprintf(daemon_side.why, sizeof(daemon_side.why), "%s", why);
	snprintf(daemon_side.device, sizeof(daemon_side.device), "%s", device);
}

static struct block_lookup *lookup_pending;
static unsigned releases;

static void look_up(void *context, const char *text, struct block_lookup *lookup)
{
	if (strcmp(text, "vol@latest") == 0)
		lookup_pending = lookup;
	else
		lookup->done(lookup, NULL, -ENOENT, "no such export");
}

static void release(void *context, struct block *block)
{
	releases++;
}

/* Found: its whole name is another one. */
static void call_looked_up(struct harness *h, void *argument)
{
	lookup_pending->done(lookup_pending, &h->device.block, 0, "");
}

static void call_begin(struct harness *h, void *argument)
{
	struct attach_config config = {
		.server = h->server,
		.kernel = &fake_kernel,
		.find = harness_find,
		.look_up = look_up,
		.release = release,
		.identify = identify,
		.options = options,
		.brace = brace,
		.name = name,
		.context = h,
	};

	daemon_side.attach = attach_new(h->env, &config);
	assert_non_null(daemon_side.attach);
	daemon_side.is_started = false;
	daemon_side.answers = daemon_side.braced = 0;
	attach_start(daemon_side.attach, started, NULL);
}

static void call_attach(struct harness *h, void *argument)
{
	attach_export(daemon_side.attach, argument, -1, answer, NULL);
}

static void call_detach(struct harness *h, void *argument)
{
	attach_detach(daemon_side.attach, "vol", argument != NULL, answer, NULL);
}

static void call_get(struct harness *h, void *argument)
{
	struct attach_info *info = argument;

	attach_check(daemon_side.attach);
	if (!attach_get(daemon_side.attach, 0, info))
		info->state = ATTACH_GONE;
}

static enum attach_state state_of(struct harness *h)
{
	struct attach_info info;

	harness_call(h, call_get, &info);
	return info.state;
}

static void call_answers(struct harness *h, void *argument)
{
	*(unsigned *)argument = daemon_side.answers;
}

static void await_answer(struct harness *h, unsigned count)
{
	time_t limit = time(NULL) + WAIT_S;
	unsigned answers;

	do {
		harness_call(h, call_answers, &answers);
		assert_true(time(NULL) < limit);
	} while (answers < count && usleep(1000) == 0);
}

static void await_state(struct harness *h, enum attach_state state)
{
	time_t limit = time(NULL) + WAIT_S;

	while (state_of(h) != state) {
		assert_true(time(NULL) < limit);
		usleep(1000);
	}
}

static void call_attach_stop(struct harness *h, void *argument)
{
	attach_stop(daemon_side.attach);
}

static void free_attach(struct harness *h)
{
	assert_true(attach_free(daemon_side.attach));
}

/* The daemon ends: its devices stay where they are. */
static void end(struct harness *h)
{
	harness_call(h, call_attach_stop, NULL);
	harness_end(h);
}

static struct harness *begin(void)
{
	struct harness *h = harness_new();

	h->ending = free_attach;
	harness_start(h);
	harness_call(h, call_begin, NULL);
	return h;
}

static bool is_idle(struct harness *h)
{
	struct nbd_server_stats stats;

	nbd_server_get_stats(h->server, &stats);
	return stats.adopted == 0;
}

static void reset(void)
{
	fake_reset();
	memset(&daemon_side, 0, sizeof(daemon_side));
	daemon_side.who = "alpha:u1";
	daemon_side.options = (struct attach_options){.index = -1, .connections = 1, .dead_s = 60};
}

static void attach_vol(struct harness *h)
{
	harness_call(h, call_attach, "vol");
	await_answer(h, 1);
	assert_string_equal(daemon_side.why, "");
	assert_int_equal(daemon_side.error, 0);
	assert_string_equal(daemon_side.device, "/dev/nbd5");
	await_state(h, ATTACH_ATTACHED);
}

/* What the kernel does all the time. */
static void use(int fd, uint64_t cookie)
{
	uint8_t data[8192];

	memset(data, (int)cookie, sizeof(data));
	client_write(fd, 0, cookie, 4096 * cookie, data, sizeof(data));
	expect_simple(fd, cookie, 0);
	client_request(fd, NBD_CMD_READ, 0, cookie + 1, 4096 * cookie, sizeof(data));
	expect_simple_data(fd, cookie + 1, data, sizeof(data));
	expect_alive(fd);
}

/* ---- its life ---------------------------------------------------------------------------------- */

static void attach_use_detach(void **state)
{
	struct attach_info info;
	struct harness *h;

	reset();
	h = begin();
	assert_true(daemon_side.is_started); /* nothing to wait for */
	attach_vol(h);
	assert_string_equal(fake.params.identifier, "offsite:vol:alpha:u1");
	assert_string_equal(fake.params.link, "vol");
	assert_int_equal(fake.params.size_bytes, DEVICE_BYTES);
	assert_int_equal(fake.params.block_bytes, 512);
	assert_int_equal(fake.params.dead_s, 60);
	assert_int_equal(fake.params.request_s, 0);
	assert_int_equal(fake.params.flags, NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH |
						    NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |
						    NBD_FLAG_SEND_WRITE_ZEROES |
						    NBD_FLAG_CAN_MULTI_CONN);
	use(fake.sockets[0], 3);

	harness_call(h, call_get, &info);
	assert_string_equal(info.name, "vol");
	assert_string_equal(info.device, "/dev/nbd5");
	assert_int_equal(info.alive, 1);
	assert_int_equal(h->device.opened, 1); /* the device is one client */
	harness_call(h, call_attach, "vol");   /* once more is fine */
	assert_int_equal(daemon_side.error, 0);
	assert_int_equal(fake.connects, 1);
	harness_call(h, call_attach, "other");
	assert_int_equal(daemon_side.error, -ENOENT);

	fake.in_use = true;
	harness_call(h, call_detach, NULL);
	await_answer(h, 4);
	assert_int_equal(daemon_side.error, -EBUSY);
	await_state(h, ATTACH_ATTACHED);
	use(fake.sockets[0], 5);
	harness_call(h, call_detach, "force");
	await_answer(h, 5);
	assert_int_equal(daemon_side.error, 0);
	await_state(h, ATTACH_GONE);
	assert_false(fake.configured);
	assert_int_equal(fake.untuned, 1);
	harness_call(h, call_detach, NULL);
	assert_int_equal(daemon_side.error, -ENOENT);
	harness_wait(h, is_idle);
	end(h);
}

static void call_count(struct harness *h, void *argument)
{
	*(struct memory_count *)argument = memory_counted();
}

/* There may be none to be had. The rest of the way: volume_memory. */
static void io_takes_no_memory(void **state)
{
	struct memory_count before, after;
	struct harness *h;

	if (!COUNT_MEMORY_WORKS)
		skip();
	reset();
	h = begin();
	attach_vol(h);
	assert_int_equal(daemon_side.braced, 1);
	use(fake.sockets[0], 3);
	harness_call(h, call_count, &before);
	for (unsigned i = 0; i < 200; i++)
		use(fake.sockets[0], 1 + i % 100);
	harness_call(h, call_count, &after);
	assert_int_equal(after.allocations, before.allocations);
	end(h);
}

static void what_the_kernel_refuses_is_said(void **state)
{
	struct harness *h;

	reset();
	h = begin();
	fake.connect_error = -EBUSY;
	harness_call(h, call_attach, "vol");
	await_answer(h, 1);
	assert_int_equal(daemon_side.error, -EBUSY);
	assert_string_equal(daemon_side.why, "/dev/nbd5 is in use");
	await_state(h, ATTACH_GONE);
	fake.connect_error = 0;
	h->device.open_error = -EPERM;
	harness_call(h, call_attach, "vol");
	await_answer(h, 2);
	assert_string_equal(daemon_side.why, "volume is secondary on this node");
	h->device.open_error = 0;
	harness_call(h, call_attach, "vol");
	await_answer(h, 3);
	assert_int_equal(daemon_side.error, 0);
	end(h);
}

/* The kernel hears of no error when a daemon goes: it sends again what was not answered, to the next,
 * which has found the device, also when the kernel is slow to see that the old socket is dead. */
static void the_next_daemon_takes_over(void **state)
{
	uint8_t data[4096];
	struct harness *h;

	reset();
	h = begin();
	attach_vol(h);
	use(fake.sockets[0], 3);
	harness_call(h, call_hold, NULL);
	memset(data, 0x55, sizeof(data));
	client_write(fake.sockets[0], 0, 77, 0, data, sizeof(data));
	while (h->device.held_count == 0)
		harness_call(h, call_attach_stop, NULL); /* any call: to look on the loop's time */
	h->device.fail_error = -ESHUTDOWN;               /* as a volume says that is being closed */
	end(h);
	assert_true(fake_is_dead(fake.sockets[0])); /* and nothing came before */

	fake.unnoticed = 3;
	fake.gives = 0;
	h = begin();
	await_state(h, ATTACH_ATTACHED);
	assert_true(daemon_side.is_started);
	assert_int_equal(fake.connects, 1);
	assert_int_equal(fake.gives, 4);
	client_write(fake.sockets[0], 0, 77, 0, data, sizeof(data));
	expect_simple(fake.sockets[0], 77, 0);
	use(fake.sockets[0], 9);
	end(h);
}

struct load {
	int fd;
	unsigned sent, answered;
};

/* As the kernel under load: up to eight requests under way, each answer followed by another request, until
 * sending fails. */
static void *load_main(void *context)
{
	struct load *load = context;
	struct nbd_simple_reply reply;
	bool sending = true;

	for (;;) {
		while (sending && load->sent - load->answered < 8) {
			struct {
				struct nbd_request_wire wire;
				uint8_t data[16384];
			} __attribute__((packed)) bytes = {
				.wire.magic = to_be32(NBD_MAGIC_REQUEST),
				.wire.type = to_be16(NBD_CMD_WRITE),
				.wire.cookie = to_be64(load->sent),
				.wire.offset = to_be64(load->sent % 64 * sizeof(bytes.data)),
				.wire.length = to_be32(sizeof(bytes.data)),
			};

			sending = send(load->fd, &bytes, sizeof(bytes), MSG_NOSIGNAL) ==
				  (ssize_t)sizeof(bytes);
			load->sent += sending;
		}
		if (recv(load->fd, &reply, sizeof(reply), MSG_WAITALL) != sizeof(reply))
			return NULL;
		assert_int_equal(from_be32(reply.error), 0);
		load->answered++;
	}
}

/* What the kernel could send is answered: it would send it again only after a while. */
static void a_stop_under_load_leaves_nothing_unanswered(void **state)
{
	for (unsigned round = 0; round < 10; round++) {
		struct load load = {0};
		struct attach_info info;
		struct harness *h;
		pthread_t thread;

		reset();
		h = begin();
		attach_vol(h);
		load.fd = fake.sockets[0];
		assert_int_equal(pthread_create(&thread, NULL, load_main, &load), 0);
		do {
			harness_call(h, call_get, &info);
		} while (h->device.writes_done < 200);
		end(h);
		pthread_join(thread, NULL);
		assert_true(load.sent >= 200);
		assert_int_equal(load.answered, load.sent);
	}
}

static bool holds_eight(struct harness *h)
{
	return h->device.held_count == 8;
}

static void *release_late(void *context)
{
	usleep(700000);
	harness_call(context, call_release, NULL);
	return NULL;
}

/* Neither does one in which the disk, or the peer, takes its time. */
static void a_stop_waits_for_slow_requests(void **state)
{
	struct load load = {0};
	struct harness *h;
	pthread_t thread, release;

	reset();
	h = begin();
	attach_vol(h);
	load.fd = fake.sockets[0];
	harness_call(h, call_hold, NULL);
	assert_int_equal(pthread_create(&thread, NULL, load_main, &load), 0);
	harness_wait(h, holds_eight);
	harness_call(h, call_attach_stop, NULL);
	harness_call(h, call_stop, NULL);
	assert_int_equal(pthread_create(&release, NULL, release_late, h), 0);
	pthread_join(release, NULL);
	harness_join(h);
	pthread_join(thread, NULL);
	assert_true(load.sent >= 8);
	assert_int_equal(load.answered, load.sent);
}

static void somebody_elses_device_is_left_alone(void **state)
{
	struct harness *h;

	reset();
	h = begin();
	attach_vol(h);
	end(h);
	daemon_side.who = "alpha:u2"; /* the volume was made anew */
	h = begin();
	assert_true(daemon_side.is_started);
	assert_int_equal(state_of(h), ATTACH_GONE);
	assert_int_equal(fake.gives, 0);
	end(h);
}

static void a_device_waits_for_its_export(void **state)
{
	struct attach_info info;
	struct harness *h;

	reset();
	h = begin();
	attach_vol(h);
	end(h);
	h = harness_new();
	h->ending = free_attach;
	h->device.open_error = -EIO;
	harness_start(h);
	harness_call(h, call_begin, NULL);
	assert_true(daemon_side.is_started);
	harness_call(h, call_get, &info);
	assert_int_equal(info.state, ATTACH_WAITING);
	assert_string_equal(info.why, "volume is secondary on this node");
	h->device.open_error = 0; /* looked at every second */
	await_state(h, ATTACH_ATTACHED);
	use(fake.sockets[0], 3);
	end(h);
}

static unsigned disconnects(void)
{
	unsigned count;

	pthread_mutex_lock(&fake.lock);
	count = fake.disconnects;
	pthread_mutex_unlock(&fake.lock);
	return count;
}

/* Its peer was promoted: what a filesystem here has cached is not what the volume will hold. */
static void a_device_of_a_secondary_is_taken_away(void **state)
{
	struct harness *h;
	time_t begun;

	reset();
	h = begin();
	attach_vol(h);
	end(h);
	h = harness_new();
	h->ending = free_attach;
	h->device.open_error = -EPERM;
	fake.disconnect_error = -EPERM; /* tried again now and then, not as fast as one can */
	harness_start(h);
	begun = time(NULL);
	harness_call(h, call_begin, NULL);
	while (!disconnects())
		usleep(1000);
	usleep(300000);
	pthread_mutex_lock(&fake.lock);
	assert_true(fake.disconnects <= 1 + (unsigned)(time(NULL) - begun));
	fake.disconnect_error = 0;
	pthread_mutex_unlock(&fake.lock);
	await_state(h, ATTACH_GONE);
	assert_true(fake.disconnects > 1);
	assert_false(fake.configured);
	assert_int_equal(fake.gives, 0);
	end(h);
	assert_true(daemon_side.is_started);
}

/* A protocol error of the kernel's would end its connection; or a timeout of its own. The new one
 * comes when nothing of the old is under way. */
static void a_lost_socket_is_replaced(void **state)
{
	uint8_t data[4096] = {1};
	struct attach_info info;
	struct harness *h;

	reset();
	h = begin();
	attach_vol(h);
	harness_call(h, call_hold, NULL);
	client_write(fake.sockets[0], 0, 77, 0, data, sizeof(data));
	do {
		harness_call(h, call_get, &info);
	} while (h->device.held_count == 0);
	shutdown(fake.sockets[0], SHUT_RDWR);
	await_state(h, ATTACH_RECONNECTING);
	assert_int_equal(fake.gives, 0);
	harness_call(h, call_release, NULL);
	await_state(h, ATTACH_ATTACHED);
	harness_call(h, call_get, &info);
	assert_int_equal(info.reconnects, 1);
	use(fake.sockets[0], 3);
	end(h);
}

static void a_device_that_others_detached_is_gone(void **state)
{
	struct harness *h;
	char why[8];

	reset();
	h = begin();
	attach_vol(h);
	fake_disconnect(NULL, FAKE_INDEX, why, sizeof(why));
	await_state(h, ATTACH_GONE);
	harness_wait(h, is_idle);
	end(h);
}

static void several_connections(void **state)
{
	struct attach_info info;
	struct harness *h;

	reset();
	daemon_side.options.connections = 4;
	daemon_side.options.request_s = 30;
	h = begin();
	attach_vol(h);
	assert_int_equal(fake.count, 4);
	assert_int_equal(fake.params.request_s, 30);
	for (unsigned i = 0; i < 4; i++)
		use(fake.sockets[i], 3 + 4 * i);
	shutdown(fake.sockets[2], SHUT_RDWR);
	do {
		harness_call(h, call_get, &info);
	} while (info.reconnects == 0);
	use(fake.sockets[2], 3);
	end(h);
	/* As many as the kernel has, whatever the configuration says by now. */
	daemon_side.options.connections = 1;
	h = begin();
	await_state(h, ATTACH_ATTACHED);
	for (unsigned i = 0; i < 4; i++)
		use(fake.sockets[i], 3 + 4 * i);
	end(h);
}

static void what_is_wanted_is_attached(void **state)
{
	struct harness *h;

	reset();
	daemon_side.options.wanted = true;
	h = harness_new();
	h->ending = free_attach;
	h->device.open_error = -EPERM; /* secondary: nothing to be said */
	harness_start(h);
	harness_call(h, call_begin, NULL);
	assert_true(daemon_side.is_started);
	assert_int_equal(fake.connects, 0);
	h->device.open_error = 0;
	await_state(h, ATTACH_ATTACHED);
	use(fake.sockets[0], 3);
	harness_call(h, call_detach, NULL);
	await_answer(h, 1);
	await_state(h, ATTACH_GONE);
	usleep(1200000); /* longer than it looks: detached by hand it stays away */
	assert_int_equal(fake.connects, 1);
	end(h);
	h = begin();
	await_state(h, ATTACH_ATTACHED);
	assert_int_equal(fake.connects, 2);
	end(h);
}

static void call_grow(struct harness *h, void *argument)
{
	h->device.info.size_bytes = DEVICE_BYTES;
	attach_resized(daemon_side.attach, "vol", answer, NULL);
}

static void a_resize_reaches_the_kernel(void **state)
{
	uint8_t data[4096] = {1};
	struct harness *h;

	reset();
	h = harness_new();
	h->ending = free_attach;
	h->device.info.size_bytes = DEVICE_BYTES / 2;
	harness_start(h);
	harness_call(h, call_begin, NULL);
	attach_vol(h);
	assert_int_equal(fake.params.size_bytes, DEVICE_BYTES / 2);
	client_write(fake.sockets[0], 0, 1, DEVICE_BYTES / 2, data, sizeof(data));
	expect_simple(fake.sockets[0], 1, NBD_ENOSPC);
	pthread_mutex_lock(&fake.resizing);
	harness_call(h, call_grow, NULL);
	client_write(fake.sockets[0], 0, 2, DEVICE_BYTES / 2, data, sizeof(data));
	expect_simple(fake.sockets[0], 2, 0);
	assert_int_equal(daemon_side.answers, 1);
	pthread_mutex_unlock(&fake.resizing);
	await_answer(h, 2);
	assert_int_equal(fake.params.size_bytes, DEVICE_BYTES);
	await_state(h, ATTACH_ATTACHED);
	end(h);
}

/* Whoever waits for the kernel is answered when the daemon stops, and where there is no kernel to wait for. */
static void a_resize_is_answered_in_any_case(void **state)
{
	struct harness *h;
	unsigned tuned;

	reset();
	h = begin();
	harness_call(h, call_grow, NULL);
	assert_int_equal(daemon_side.answers, 1); /* nothing is attached */
	harness_call(h, call_attach, "vol");
	await_answer(h, 2);
	await_state(h, ATTACH_ATTACHED);
	pthread_mutex_lock(&fake.resizing);
	harness_call(h, call_grow, NULL);
	harness_call(h, call_grow, NULL); /* again: the first waits on, too */
	assert_int_equal(daemon_side.answers, 2);
	pthread_mutex_unlock(&fake.resizing);
	await_answer(h, 4);
	tuned = fake.tuned;
	pthread_mutex_lock(&fake.resizing);
	harness_call(h, call_grow, NULL);
	assert_int_equal(daemon_side.answers, 4);
	harness_call(h, call_attach_stop, NULL);
	assert_int_equal(daemon_side.answers, 5);
	pthread_mutex_unlock(&fake.resizing);
	while (fake.tuned == tuned) /* the call has to be over before all is freed */
		usleep(1000);
	usleep(100000);
	harness_end(h);
}

static void a_snapshot_is_looked_up(void **state)
{
	struct attach_info info;
	struct harness *h;

	reset();
	releases = 0;
	h = begin();
	harness_call(h, call_attach, "vol@latest");
	assert_int_equal(state_of(h), ATTACH_CONNECTING);
	harness_call(h, call_looked_up, NULL);
	await_state(h, ATTACH_ATTACHED);
	harness_call(h, call_get, &info);
	assert_string_equal(info.name, "vol"); /* the one it was at this moment */
	use(fake.sockets[0], 3);
	harness_call(h, call_attach, "vol@latest"); /* the same again */
	harness_call(h, call_looked_up, NULL);
	assert_int_equal(daemon_side.error, 0);
	assert_string_equal(daemon_side.device, "/dev/nbd5");
	assert_int_equal(fake.connects, 1);
	assert_int_equal(releases, 1);
	harness_call(h, call_detach, NULL);
	await_answer(h, 3);
	await_state(h, ATTACH_GONE);
	harness_wait(h, is_idle);
	end(h);
	assert_int_equal(releases, 2);
}

/* Its name is not the volume's: a resize of that has no device to wait for, and the device is of the size by then. */
static void a_resize_does_not_wait_for_a_lookup(void **state)
{
	struct harness *h;

	reset();
	releases = 0;
	h = harness_new();
	h->ending = free_attach;
	h->device.info.size_bytes = DEVICE_BYTES / 2;
	harness_start(h);
	harness_call(h, call_begin, NULL);
	harness_call(h, call_attach, "vol@latest");
	harness_call(h, call_grow, NULL);
	assert_int_equal(daemon_side.answers, 1);
	harness_call(h, call_looked_up, NULL);
	await_answer(h, 2);
	await_state(h, ATTACH_ATTACHED);
	assert_int_equal(fake.params.size_bytes, DEVICE_BYTES);
	end(h);
	assert_int_equal(releases, 1);
}

static void read_only_exports(void **state)
{
	struct attach_info info;
	struct harness *h;

	reset();
	h = harness_new();
	h->ending = free_attach;
	h->device.info.read_only = true;
	harness_start(h);
	harness_call(h, call_begin, NULL);
	attach_vol(h);
	assert_true(fake.params.flags & NBD_FLAG_READ_ONLY);
	assert_false(fake.params.flags & NBD_FLAG_SEND_TRIM);
	harness_call(h, call_get, &info);
	assert_true(info.read_only);
	end(h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(messages_say_what_is_given),
		cmocka_unit_test(messages_leave_out_what_is_not),
		cmocka_unit_test(attach_use_detach),
		cmocka_unit_test(io_takes_no_memory),
		cmocka_unit_test(what_the_kernel_refuses_is_said),
		cmocka_unit_test(the_next_daemon_takes_over),
		cmocka_unit_test(a_stop_under_load_leaves_nothing_unanswered),
		cmocka_unit_test(a_stop_waits_for_slow_requests),
		cmocka_unit_test(somebody_elses_device_is_left_alone),
		cmocka_unit_test(a_device_waits_for_its_export),
		cmocka_unit_test(a_device_of_a_secondary_is_taken_away),
		cmocka_unit_test(a_lost_socket_is_replaced),
		cmocka_unit_test(a_device_that_others_detached_is_gone),
		cmocka_unit_test(several_connections),
		cmocka_unit_test(what_is_wanted_is_attached),
		cmocka_unit_test(a_resize_reaches_the_kernel),
		cmocka_unit_test(a_resize_is_answered_in_any_case),
		cmocka_unit_test(read_only_exports),
		cmocka_unit_test(a_snapshot_is_looked_up),
		cmocka_unit_test(a_resize_does_not_wait_for_a_lookup),
	};

	return harness_run(tests);
}
