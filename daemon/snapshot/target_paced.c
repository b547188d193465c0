// SPDX-License-Identifier: Apache-2.0
/* A target before another one that lets content through at a rate. */
#include <stdlib.h>

#include "daemon/snapshot/internal.h"

struct paced_write {
	struct env_op *op;
	struct buf *buf;
	uint64_t offset;
	uint32_t length;
	struct paced_write *next;
};

struct paced {
	struct snapshot_target target;
	struct snapshot_target *inner;
	struct env *env;
	struct rate_limit *rate;
	struct env_timer timer;
	struct paced_write *first, **end; /* waiting; bounded by what a restore has under way */
};

static struct paced *paced_of(struct snapshot_target *target)
{
	return container_of(target, struct paced, target);
}

static int paced_begin(struct snapshot_target *target, const struct snapshot_info *info, char *why,
		       size_t why_size)
{
	struct paced *p = paced_of(target);
	int error = p->inner->begin(p->inner, info, why, why_size);

	target->zero_to_bytes = p->inner->zero_to_bytes;
	target->known_zero = p->inner->known_zero;
	target->compare = p->inner->compare;
	target->any_memory = p->inner->any_memory;
	return error;
}

static void paced_read(struct snapshot_target *target, struct env_op *op, struct buf *buf,
		       uint64_t offset, uint32_t length)
{
	struct paced *p = paced_of(target);

	p->inner->read(p->inner, op, buf, offset, length);
}

static void pump(struct paced *p)
{
	while (p->first) {
		uint64_t wait =
			rate_limit_wait_ns(p->rate, env_now_ns(p->env), env_realtime_ns(p->env));
		struct paced_write *write = p->first;

		if (wait) {
			env_timer_start(p->env, &p->timer, wait);
			return;
		}
		p->first = write->next;
		if (!p->first)
			p->end = &p->first;
		rate_limit_take(p->rate, write->length);
		p->inner->write(p->inner, write->op, write->buf, write->offset, write->length);
		free(write);
	}
}

static void timer_fire(struct env_timer *timer)
{
	pump(container_of(timer, struct paced, timer));
}

static void paced_write(struct snapshot_target *target, struct env_op *op, struct buf *buf,
			uint64_t offset, uint32_t length)
{
	struct paced *p = paced_of(target);
	struct paced_write *write = must_alloc(sizeof(*write));

	*write = (struct paced_write){.op = op, .buf = buf, .offset = offset, .length = length};
	*p->end = write;
	p->end = &write->next;
	if (!env_timer_active(&p->timer))
		pump(p);
}

static void paced_zero(struct snapshot_target *target, struct env_op *op, uint64_t offset,
		       uint64_t length)
{
	struct paced *p = paced_of(target);

	p->inner->zero(p->inner, op, offset, length);
}

static void paced_finish(struct snapshot_target *target, struct env_op *op)
{
	struct paced *p = paced_of(target);

	p->inner->finish(p->inner, op);
}

static int paced_next_data(struct snapshot_target *target, uint64_t offset, uint64_t *start,
			   uint64_t *end)
{
	struct paced *p = paced_of(target);

	return p->inner->next_data(p->inner, offset, start, end);
}

static void paced_free(struct snapshot_target *target)
{
	struct paced *p = paced_of(target);

	env_timer_stop(p->env, &p->timer);
	p->inner->free(p->inner);
	free(p);
}

struct snapshot_target *snapshot_target_paced(struct env *env, struct snapshot_target *inner,
					      struct rate_limit *rate)
{
	struct paced *p = must_alloc(sizeof(*p));

	*p = (struct paced){
		.target = {.begin = paced_begin,
			   .read = paced_read,
			   .write = paced_write,
			   .zero = paced_zero,
			   .finish = paced_finish,
			   .free = paced_free,
			   .next_data = inner->next_data ? paced_next_data : NULL,
			   .zero_to_bytes = inner->zero_to_bytes,
			   .known_zero = inner->known_zero,
			   .compare = inner->compare},
		.inner = inner,
		.env = env,
		.rate = rate,
		.timer = {.fire = timer_fire},
	};
	p->end = &p->first;
	return &p->target;
}
