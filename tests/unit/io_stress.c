/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 20,000 random operations on both real backends: reads, writes, zeroes and flushes of two files
 * (direct and buffered) against a model in memory, echoes over sockets that are cut and replaced,
 * timers and deferred calls, all under way at once. Replay: OFFSITE_SEED=N.
 */
#include "tests/unit/io_harness.h"
#include <sys/socket.h>
#include <time.h>

enum {
	OPERATIONS = 20000,
	FILES = 2,
	SLOTS = 64, /* of a file: one operation under way in each at most */
	SLOT_BYTES = 16384,
	LINKS = 4,
	MESSAGE_MAX = 200000,
};

struct stress;

struct slot {
	struct env_op op;
	struct stress *stress;
	struct env_file *file;
	uint64_t offset;
	enum { IDLE, READING, WRITING, ZEROING, FLUSHING } doing;
	size_t at, length;
	uint8_t *buf, *model;
};

/* Messages from near to far; when the last has arrived the next begins. */
struct echo {
	struct env_op send, recv;
	struct stress *stress;
	struct env_sock *near, *far;
	struct iovec iov[2];
	size_t length, received;
	bool sending, receiving, cut;
	uint8_t *out, *in;
};

struct stress {
	struct world *world;
	uint64_t random;
	unsigned left, under_way;
	struct slot slots[FILES * SLOTS];
	struct echo echoes[LINKS];
	struct env_timer timer;
	struct env_task task;
	bool task_queued, end;
};

static uint64_t dice(struct stress *stress, uint64_t sides)
{
	stress->random ^= stress->random << 13;
	stress->random ^= stress->random >> 7;
	stress->random ^= stress->random << 17;
	return stress->random % sides;
}

static void begin_one(struct stress *stress);

static void ended_one(struct stress *stress)
{
	assert_true(stress->under_way > 0);
	stress->under_way--;
	if (stress->left > 0)
		begin_one(stress);
	else if (stress->under_way == 0)
		stress->end = true;
}

/* ---- files ---- */

static void slot_done(struct env_op *op, int64_t result)
{
	struct slot *slot = (struct slot *)op;

	switch (slot->doing) {
	case READING:
		assert_int_equal(result, slot->length);
		assert_memory_equal(slot->buf, slot->model + slot->at, slot->length);
		break;
	case WRITING:
		assert_int_equal(result, slot->length);
		memcpy(slot->model + slot->at, slot->buf, slot->length);
		break;
	case ZEROING:
		assert_int_equal(result, 0);
		memset(slot->model + slot->at, 0, slot->length);
		break;
	case FLUSHING:
		assert_int_equal(result, 0);
		break;
	case IDLE:
		fail();
	}
	slot->doing = IDLE;
	ended_one(slot->stress);
}

static void begin_slot(struct stress *stress, struct slot *slot)
{
	struct env *env = stress->world->env;
	uint64_t offset;
	unsigned die = (unsigned)dice(stress, 100);

	slot->at = dice(stress, SLOT_BYTES / 512) * 512;
	slot->length = 512 + dice(stress, (SLOT_BYTES - slot->at) / 512) * 512;
	offset = slot->offset + slot->at;
	if (die < 45) {
		slot->doing = READING;
		env_read(env, &slot->op, slot->file, slot->buf, slot->length, offset);
	} else if (die < 90) {
		slot->doing = WRITING;
		for (size_t i = 0; i < slot->length; i += 8)
			memcpy(slot->buf + i, &(uint64_t){dice(stress, UINT64_MAX)}, 8);
		env_write(env, &slot->op, slot->file, slot->buf, slot->length, offset,
			  die < 47 ? ENV_WRITE_FUA : 0);
	} else if (die < 98) {
		slot->doing = ZEROING;
		env_zero(env, &slot->op, slot->file, offset, slot->length,
			 die < 94 ? ENV_ZERO_PUNCH : 0);
	} else {
		slot->doing = FLUSHING;
		env_fsync(env, &slot->op, slot->file);
	}
}

/* ---- sockets ---- */

static void new_pair(struct echo *echo)
{
	struct env *env = echo->stress->world->env;
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	assert_int_equal(env_sock_adopt(env, fds[0], &echo->near), 0);
	assert_int_equal(env_sock_adopt(env, fds[1], &echo->far), 0);
	echo->cut = false;
}

static void echo_ended(struct echo *echo)
{
	if (echo->sending || echo->receiving)
		return;
	if (!echo->cut) {
		assert_int_equal(echo->received, echo->length);
		assert_memory_equal(echo->in, echo->out, echo->length);
	}
	ended_one(echo->stress);
}

static void echo_send_done(struct env_op *op, int64_t result)
{
	struct echo *echo = (struct echo *)op;

	assert_true(result == (int64_t)echo->length || (echo->cut && result < 0));
	echo->sending = false;
	echo_ended(echo);
}

static void echo_recv_done(struct env_op *op, int64_t result)
{
	struct echo *echo = (struct echo *)((char *)op - offsetof(struct echo, recv));

	assert_true(result > 0 || echo->cut);
	if (result > 0)
		echo->received += (size_t)result;
	if (result > 0 && !echo->cut && echo->received < echo->length) {
		env_recv(echo->stress->world->env, op, echo->far, echo->in + echo->received,
			 echo->length - echo->received);
		return;
	}
	echo->receiving = false;
	echo_ended(echo);
}

static void begin_echo(struct stress *stress, struct echo *echo)
{
	struct env *env = stress->world->env;
	size_t half;

	if (echo->cut)
		new_pair(echo);
	echo->length = 2 + dice(stress, MESSAGE_MAX - 2);
	half = 1 + dice(stress, echo->length - 1);
	memset(echo->out, (int)dice(stress, 256), half);
	memset(echo->out + half, (int)dice(stress, 256), echo->length - half);
	echo->iov[0] = (struct iovec){echo->out, half};
	echo->iov[1] = (struct iovec){echo->out + half, echo->length - half};
	echo->received = 0;
	echo->sending = echo->receiving = true;
	env_recv(env, &echo->recv, echo->far, echo->in, echo->length);
	env_sendv(env, &echo->send, echo->near, echo->iov, echo->length > half ? 2 : 1);
	if (dice(stress, 10) == 0) { /* cut with both under way */
		echo->cut = true;
		env_sock_close(env, echo->near);
		env_sock_close(env, echo->far);
	}
}

/* ---- timers and tasks ---- */

static void stress_timer(struct env_timer *timer)
{
	struct stress *stress = (struct stress *)((char *)timer - offsetof(struct stress, timer));

	ended_one(stress);
}

static void stress_task(struct env_task *task)
{
	struct stress *stress = (struct stress *)((char *)task - offsetof(struct stress, task));

	stress->task_queued = false;
	ended_one(stress);
}

/* ---- all of it ---- */

static void begin_one(struct stress *stress)
{
	stress->left--;
	stress->under_way++;
	for (;;) {
		uint64_t die = dice(stress, 100);
		struct slot *slot = &stress->slots[dice(stress, FILES * SLOTS)];
		struct echo *echo = &stress->echoes[dice(stress, LINKS)];

		if (die < 5 && !env_timer_active(&stress->timer)) {
			env_timer_start(stress->world->env, &stress->timer, dice(stress, 2000000));
			return;
		}
		if (die < 10 && !stress->task_queued) {
			stress->task_queued = true;
			env_defer(stress->world->env, &stress->task);
			return;
		}
		if (die < 30 && !echo->sending && !echo->receiving) {
			begin_echo(stress, echo);
			return;
		}
		if (die >= 30 && slot->doing == IDLE) {
			begin_slot(stress, slot);
			return;
		}
	}
}

static void open_slots(struct stress *stress)
{
	for (unsigned f = 0; f < FILES; f++) {
		struct env_file *file;

		assert_int_equal(env_file_open(stress->world->env,
					       path_in(stress->world, f ? "buffered" : "direct"),
					       ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE |
						       (f ? 0 : ENV_FILE_DIRECT),
					       &file),
				 0);
		assert_int_equal(env_file_truncate(stress->world->env, file, SLOTS * SLOT_BYTES),
				 0);
		for (unsigned i = 0; i < SLOTS; i++)
			stress->slots[f * SLOTS + i] = (struct slot){
				.op.done = slot_done,
				.stress = stress,
				.file = file,
				.offset = (uint64_t)i * SLOT_BYTES,
				.buf = aligned_bytes(SLOT_BYTES),
				.model = aligned_bytes(SLOT_BYTES),
			};
	}
}

static void close_slots(struct stress *stress)
{
	for (unsigned i = 0; i < FILES * SLOTS; i++) {
		struct slot *slot = &stress->slots[i];

		assert_int_equal(env_file_pread(stress->world->env, slot->file, slot->buf,
						SLOT_BYTES, slot->offset),
				 0);
		assert_memory_equal(slot->buf, slot->model, SLOT_BYTES);
		free(slot->buf);
		free(slot->model);
	}
	env_file_close(stress->world->env, stress->slots[0].file);
	env_file_close(stress->world->env, stress->slots[SLOTS].file);
}

static void test_stress(struct world *world)
{
	struct stress *stress = calloc(1, sizeof(*stress));
	const char *seed_text = getenv("OFFSITE_SEED");
	uint64_t seed = seed_text ? strtoull(seed_text, NULL, 0) : (uint64_t)time(NULL);

	print_message("seed %llu; replay: OFFSITE_SEED=%llu io_stress\n", (unsigned long long)seed,
		      (unsigned long long)seed);
	stress->world = world;
	stress->random = seed * 0x9e3779b97f4a7c15ull | 1;
	stress->left = OPERATIONS;
	stress->timer.fire = stress_timer;
	stress->task.call = stress_task;
	open_slots(stress);
	for (unsigned i = 0; i < LINKS; i++) {
		stress->echoes[i] = (struct echo){.send.done = echo_send_done,
						  .recv.done = echo_recv_done,
						  .stress = stress,
						  .out = malloc(MESSAGE_MAX),
						  .in = malloc(MESSAGE_MAX)};
		new_pair(&stress->echoes[i]);
	}
	for (unsigned i = 0; i < SLOTS; i++)
		begin_one(stress);
	env_run_until(world->env, &stress->end);
	for (unsigned i = 0; i < LINKS; i++) {
		if (!stress->echoes[i].cut) {
			env_sock_close(world->env, stress->echoes[i].near);
			env_sock_close(world->env, stress->echoes[i].far);
		}
		free(stress->echoes[i].out);
		free(stress->echoes[i].in);
	}
	close_slots(stress);
	free(stress);
	print_message("seed %llu\n", (unsigned long long)seed);
}

static const struct io_test io_stress[] = {
	{"20,000 random operations", test_stress},
};

int main(void)
{
	return RUN_ON_BACKENDS(io_stress);
}
