// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/stranger.h"

#include <stdlib.h>
#include <string.h>

#include "protocol/replication.h"

#define BYTES_MAX 65536u

struct visit {
	struct env_op op;
	struct env *env;
	struct env_sock *sock;
	struct iovec iov;
	uint8_t data[BYTES_MAX];
};

static struct visit *visit_of(struct env_op *op)
{
	return (struct visit *)((char *)op - offsetof(struct visit, op));
}

static void gone(struct env_op *op, int64_t result)
{
	struct visit *visit = visit_of(op);

	env_sock_close(visit->env, visit->sock);
	free(visit);
}

static void arrived(struct env_op *op, int64_t result)
{
	struct visit *visit = visit_of(op);

	if (result < 0) {
		free(visit);
		return;
	}
	visit->op.done = gone;
	env_sendv(visit->env, &visit->op, visit->sock, &visit->iov, 1);
}

static void put(struct world *world, struct visit *visit, const void *data, size_t length)
{
	if (visit->iov.iov_len + length > BYTES_MAX)
		return;
	if (data != NULL)
		memcpy(visit->data + visit->iov.iov_len, data, length);
	for (size_t i = 0; data == NULL && i < length; i++)
		visit->data[visit->iov.iov_len + i] = (uint8_t)world_random(world, 256);
	visit->iov.iov_len += length;
}

/* Whole and with the right checksums, and that is all that is right about it. */
static void put_frame(struct world *world, struct visit *visit)
{
	uint64_t volume = world->size_bytes;
	size_t payload = world_random(world, world_chance(world, 70) ? 512 : 8192);
	struct frame frame = {
		.type = (enum frame_type)world_random(world, 48),
		.flags = (unsigned)(world_chance(world, 50) ? 0 : world_random(world, 0)),
		.id = world_random(world, world_chance(world, 50) ? 4 : 0),
		.lsn = world_random(world, world_chance(world, 50) ? 1000 : 0),
		.offset = world_random(world, world_chance(world, 50) ? volume : 0),
		.length = world_random(world, world_chance(world, 50) ? 1 << 20 : 0),
	};
	struct frame_wire wire;
	uint8_t body[8192];

	for (size_t i = 0; i < payload; i++)
		body[i] = (uint8_t)world_random(world, 256);
	frame.payload_length = (uint32_t)payload;
	frame.payload_crc = payload > 0 ? crc32c(0, body, payload) : 0;
	frame_encode(&frame, &wire);
	put(world, visit, &wire, sizeof(wire));
	put(world, visit, body, payload);
}

void stranger_comes(struct world *world)
{
	struct visit *visit = calloc(1, sizeof(*visit));

	if (visit == NULL)
		abort();
	visit->env = world->stranger;
	visit->iov.iov_base = visit->data;
	visit->op.done = arrived;
	put(world, visit, NULL, 1); /* something, at least */
	if (world_chance(world, 70))
		visit->iov.iov_len = 0;
	for (unsigned i = 1 + (unsigned)world_random(world, 4); i > 0; i--) {
		if (world_chance(world, 70))
			put_frame(world, visit);
		else
			put(world, visit, NULL, 1 + world_random(world, 4096));
	}
	sim_note(world->sim, "a stranger comes with %zu bytes", visit->iov.iov_len);
	env_connect(visit->env, &visit->op, world_chance(world, 50) ? "tcp:a:7000" : "tcp:b:7000",
		    &visit->sock);
}
