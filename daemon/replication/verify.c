/* SPDX-License-Identifier: Apache-2.0 */
/* Comparison of the whole volume with the peer's, and repair. See verify.h. */
#include "daemon/replication/verify.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/replication/record.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define FILE_NAME   "verify"
#define BLOCK_BYTES COMPARE_FINE_BLOCK_BYTES
#define SAVE_NS     30000000000ull
#define RETRY_NS    100000000ull

enum repair_step {
	REPAIR_NONE,
	REPAIR_LATER,  /* requests are held: tried again in a moment */
	REPAIR_BUFFER, /* waiting for memory */
	REPAIR_HOLD,
	REPAIR_READ, /* here or at the peer */
	REPAIR_WRITE,
};

struct verify {
	struct volume *volume;
	struct env *env;
	struct source *source;
	struct buf_pool *pool;
	void (*idle)(void *owner);
	void *owner;
	struct link *link; /* NULL: the stream is not there */
	struct verify_record record;
	uint64_t since_ns, since_bytes, saved_ns;
	struct env_task task;

	/* The range being repaired; the walk waits for it. */
	bool repairing;
	uint64_t offset, length, repaired_bytes, next_block, run_blocks;
	uint64_t differ[COMPARE_HOLE_MAX_BYTES / BLOCK_BYTES / 64];
	enum repair_step step;
	struct buf *buf;
	struct buf_waiter waiter;
	struct env_timer timer;
	struct env_timer whole_timer; /* looks whether the disk has everything by now */
	struct volume_hold hold;
	struct volume_origin_read fetch;
};

/* ---- the record ------------------------------------------------------------------------------ */

static int save(struct verify *verify)
{
	struct verify_wire wire;

	verify_encode(&verify->record, &wire);
	verify->saved_ns = env_now_ns(verify->env);
	int error = record_write(verify->volume, FILE_NAME, &wire, sizeof(wire));
	if (error)
		env_log(verify->env, ENV_LOG_ERROR, "verify: volume %s: %s/" FILE_NAME ": %s",
			volume_name(verify->volume), volume_state_dir(verify->volume),
			strerror(-error));
	return error;
}

static void load(struct verify *verify)
{
	struct verify_wire wire;
	int error = record_read(verify->volume, FILE_NAME, &wire, sizeof(wire));
	const char *why = error ? strerror(-error) : verify_decode(&wire, &verify->record);

	if (!why)
		return;
	verify->record = (struct verify_record){};
	if (error != -ENOENT)
		env_log(verify->env, ENV_LOG_WARNING,
			"verify: volume %s: %s/" FILE_NAME ": %s; counts as never verified",
			volume_name(verify->volume), volume_state_dir(verify->volume), why);
}

static void list_extent(struct verify_record *record, uint64_t offset, uint64_t length)
{
	struct verify_extent *last = record->listed ? &record->extent[record->listed - 1] : NULL;

	if (last && record->listed == record->extents &&
	    last->offset_bytes + last->length_bytes == offset) {
		last->length_bytes += length;
		return;
	}
	record->extents++;
	if (record->listed < VERIFY_EXTENTS_MAX)
		record->extent[record->listed++] = (struct verify_extent){offset, length};
}

static void end(struct verify *verify, enum verify_state state)
{
	const struct verify_record *record = &verify->record;

	verify->record.state = state;
	verify->record.ended_ns = env_realtime_ns(verify->env);
	(void)save(verify);
	env_log(verify->env, record->differ_bytes ? ENV_LOG_WARNING : ENV_LOG_INFO,
		"verify: volume %s: %s at %llu of %llu bytes: %llu bytes differ, %llu repaired",
		volume_name(verify->volume), state == VERIFY_DONE ? "done" : "cancelled",
		(unsigned long long)record->position_bytes, (unsigned long long)record->size_bytes,
		(unsigned long long)record->differ_bytes,
		(unsigned long long)record->repaired_bytes);
}

/* ---- repair ---------------------------------------------------------------------------------- */

static void repair_next(struct verify *verify);

static void repair_idle(struct verify *verify)
{
	verify->step = REPAIR_NONE;
	buf_put(verify->buf);
	verify->buf = NULL;
	env_defer(verify->env, &verify->task);
}

static void repair_later(struct verify *verify)
{
	repair_idle(verify);
	verify->step = REPAIR_LATER;
	env_timer_start(verify->env, &verify->timer, RETRY_NS);
}

static void timer_fire(struct env_timer *timer)
{
	struct verify *verify = container_of(timer, struct verify, timer);

	verify->step = REPAIR_NONE;
	env_defer(verify->env, &verify->task);
}

static void run_ended(struct verify *verify, bool repaired)
{
	if (repaired)
		verify->repaired_bytes += verify->run_blocks * BLOCK_BYTES;
	verify->next_block += verify->run_blocks;
	repair_idle(verify);
}

static void read_ended(struct verify *verify, int error)
{
	if (error || !verify->link) {
		volume_hold_release(&verify->hold);
		run_ended(verify, false);
		return;
	}
	verify->step = REPAIR_WRITE;
	volume_hold_write(&verify->hold, verify->buf);
}

static void fetch_done(struct volume_origin_read *fetch, int error)
{
	read_ended(container_of(fetch, struct verify, fetch), error);
}

static void hold_done(struct volume_hold *hold, int error)
{
	struct verify *verify = container_of(hold, struct verify, hold);

	if (verify->step == REPAIR_READ)
		read_ended(verify, error);
	else if (error == -EAGAIN && verify->link)
		repair_later(verify);
	else
		run_ended(verify, !error);
}

static void hold_granted(struct volume_hold *hold)
{
	struct verify *verify = container_of(hold, struct verify, hold);

	verify->step = REPAIR_READ;
	if (!verify->link) {
		volume_hold_release(hold);
		run_ended(verify, false);
	} else if (verify->record.repair == VERIFY_REPAIR_FROM_HERE) {
		volume_hold_read(hold, (uint32_t)hold->length_bytes, verify->buf);
	} else {
		/* In the stream behind all that was written here, ahead of all that waits. */
		verify->fetch = (struct volume_origin_read){
			.offset_bytes = hold->offset_bytes,
			.length_bytes = (uint32_t)hold->length_bytes,
			.data = verify->buf->data,
			.done = fetch_done,
		};
		source_read(verify->source, &verify->fetch);
	}
}

static void memory_came(struct buf_waiter *waiter)
{
	struct verify *verify = container_of(waiter, struct verify, waiter);

	verify->step = REPAIR_NONE;
	env_defer(verify->env, &verify->task);
}

/* The next run of blocks that differ. */
static void repair_next(struct verify *verify)
{
	struct compare_range range = {verify->offset, verify->length, 0, verify->differ};

	if (!compare_range_next(&range, &verify->next_block, &verify->run_blocks)) {
		verify->next_block = UINT64_MAX;
		compare_resume(source_compare(verify->source));
		return;
	}
	if (verify->run_blocks > COMPARE_MAX_BYTES / BLOCK_BYTES)
		verify->run_blocks = COMPARE_MAX_BYTES / BLOCK_BYTES;
	uint32_t length = (uint32_t)verify->run_blocks * BLOCK_BYTES;
	verify->buf = buf_alloc(verify->pool, length);
	if (!verify->buf) {
		verify->step = REPAIR_BUFFER;
		buf_wait(verify->pool, &verify->waiter, length);
		return;
	}
	verify->hold.offset_bytes = verify->offset + verify->next_block * BLOCK_BYTES;
	verify->hold.length_bytes = length;
	verify->step = REPAIR_HOLD;
	volume_hold(verify->volume, &verify->hold);
}

static void repair_begin(struct verify *verify, const struct compare_range *range)
{
	verify->repairing = true;
	verify->offset = range->offset_bytes;
	verify->length = range->length_bytes;
	verify->repaired_bytes = verify->next_block = 0;
	memcpy(verify->differ, range->differ, (range->length_bytes / BLOCK_BYTES + 63) / 64 * 8);
	env_defer(verify->env, &verify->task);
}

/* ---- the walk -------------------------------------------------------------------------------- */

static void stop_walk(struct verify *verify);

static bool next(void *owner, uint64_t offset, uint64_t *start, uint64_t *length)
{
	struct verify *verify = owner;

	if (offset >= verify->record.size_bytes)
		return false;
	*start = offset;
	*length = verify->record.size_bytes - offset;
	return true;
}

static bool result(void *owner, const struct compare_range *range)
{
	struct verify *verify = owner;
	struct verify_record *record = &verify->record;
	uint64_t first = 0, count;

	/* What the disk lacks is no difference: on from here when it has everything. */
	if (!volume_is_whole(verify->volume)) {
		stop_walk(verify);
		return false;
	}
	if (range->differ_bytes && record->repair != VERIFY_REPAIR_NONE && !verify->repairing) {
		repair_begin(verify, range);
		return false;
	}
	if (verify->repairing && verify->next_block != UINT64_MAX)
		return false;
	if (verify->repairing)
		record->repaired_bytes += verify->repaired_bytes;
	verify->repairing = false;
	record->differ_bytes += range->differ_bytes;
	for (; compare_range_next(range, &first, &count); first += count)
		list_extent(record, range->offset_bytes + first * BLOCK_BYTES, count * BLOCK_BYTES);
	record->position_bytes = range->offset_bytes + range->length_bytes;
	if (env_now_ns(verify->env) - verify->saved_ns >= SAVE_NS)
		(void)save(verify);
	return true;
}

static void finished(void *owner)
{
	struct verify *verify = owner;

	compare_stop(source_compare(verify->source));
	end(verify, VERIFY_DONE);
}

static void walk_idle(void *owner)
{
	struct verify *verify = owner;

	env_defer(verify->env, &verify->task);
}

static const struct compare_ops ops = {
	.next = next,
	.result = result,
	.finished = finished,
	.idle = walk_idle,
};

static bool may_walk(const struct verify *verify)
{
	return verify->link && verify->record.state == VERIFY_RUNNING && !verify->repairing &&
	       volume_is_whole(verify->volume) && compare_is_idle(source_compare(verify->source));
}

/* Whatever can begin now begins. */
static void step(struct env_task *task)
{
	struct verify *verify = container_of(task, struct verify, task);
	bool walking = compare_is_running(source_compare(verify->source));

	/* The range may be held by what waits for the next connection. */
	if (verify->step == REPAIR_HOLD && !walking && volume_hold_cancel(&verify->hold))
		repair_idle(verify);
	if (verify->repairing && verify->step == REPAIR_NONE && verify->link && walking) {
		if (verify->next_block != UINT64_MAX)
			repair_next(verify);
		return;
	}
	if (verify->repairing && verify->step == REPAIR_NONE)
		verify->repairing = false; /* interrupted: it will be found again */
	if (may_walk(verify)) {
		verify->since_ns = env_now_ns(verify->env);
		verify->since_bytes = verify->record.position_bytes;
		compare_start(source_compare(verify->source), verify->link,
			      verify->record.position_bytes, true, verify->record.rate, &ops,
			      verify);
	}
	if (verify->link && verify->record.state == VERIFY_RUNNING &&
	    !volume_is_whole(verify->volume))
		env_timer_start(verify->env, &verify->whole_timer, RETRY_NS);
	if (!verify->link && verify_is_idle(verify))
		verify->idle(verify->owner);
}

static void whole_timer_fire(struct env_timer *timer)
{
	struct verify *verify = container_of(timer, struct verify, whole_timer);

	env_defer(verify->env, &verify->task);
}

/* ---- from outside ---------------------------------------------------------------------------- */

struct verify *verify_new(struct volume *volume, struct source *source, struct buf_pool *pool,
			  void (*idle)(void *owner), void *owner)
{
	struct verify *verify = calloc(1, sizeof(*verify));
	if (!verify)
		return NULL;
	verify->volume = volume;
	verify->env = volume_env(volume);
	verify->source = source;
	verify->pool = pool;
	verify->idle = idle;
	verify->owner = owner;
	verify->task.call = step;
	verify->waiter.resume = memory_came;
	verify->timer.fire = timer_fire;
	verify->whole_timer.fire = whole_timer_fire;
	verify->hold.granted = hold_granted;
	verify->hold.done = hold_done;
	load(verify);
	return verify;
}

void verify_free(struct verify *verify)
{
	assert(verify_is_idle(verify));
	env_timer_stop(verify->env, &verify->whole_timer);
	env_defer_cancel(verify->env, &verify->task);
	free(verify);
}

bool verify_is_idle(const struct verify *verify)
{
	return !verify->repairing;
}

void verify_attach(struct verify *verify, struct link *link)
{
	assert(!verify->link);
	verify->link = link;
	if (verify->record.state == VERIFY_RUNNING) /* it may have grown */
		verify->record.size_bytes = volume_size_bytes(verify->volume);
	env_defer(verify->env, &verify->task);
}

static void stop_walk(struct verify *verify)
{
	if (verify->step == REPAIR_BUFFER) {
		buf_wait_cancel(verify->pool, &verify->waiter);
		verify->step = REPAIR_NONE;
	}
	if (verify->step == REPAIR_LATER) {
		env_timer_stop(verify->env, &verify->timer);
		verify->step = REPAIR_NONE;
	}
	compare_stop(source_compare(verify->source));
	env_defer(verify->env, &verify->task);
}

void verify_detach(struct verify *verify)
{
	if (!verify->link)
		return;
	stop_walk(verify);
	verify->link = NULL;
}

int verify_start(struct verify *verify, enum verify_repair repair, uint64_t rate)
{
	struct verify_record old = verify->record;

	if (old.state == VERIFY_RUNNING || verify->repairing)
		return -EBUSY;
	verify->record = (struct verify_record){
		.state = VERIFY_RUNNING,
		.repair = repair,
		.started_ns = env_realtime_ns(verify->env),
		.size_bytes = volume_size_bytes(verify->volume),
		.rate = rate,
	};
	int error = save(verify);
	if (error)
		verify->record = old;
	env_defer(verify->env, &verify->task);
	return error;
}

int verify_cancel(struct verify *verify)
{
	if (verify->record.state != VERIFY_RUNNING)
		return -ENOENT;
	if (verify->link) /* else the comparison is not ours, but a full sync's */
		stop_walk(verify);
	end(verify, VERIFY_CANCELLED);
	return 0;
}

void verify_get_status(const struct verify *verify, struct verify_status *status)
{
	struct compare *compare = source_compare(verify->source);
	struct compare_status compared = {};

	*status = (struct verify_status){
		.record = verify->record,
		.active = verify->record.state == VERIFY_RUNNING && verify->link,
		.since_ns = verify->since_ns,
		.since_bytes = verify->since_bytes,
	};
	if (!status->active || !compare_is_running(compare))
		return;
	compare_get_status(compare, &compared);
	status->read_bytes = compared.read_bytes;
	status->skipped_bytes = compared.skipped_bytes;
}

void verify_check(const struct verify *verify)
{
	const struct verify_record *record = &verify->record;

	assert(verify->repairing || verify->step == REPAIR_NONE);
	assert(record->position_bytes <= record->size_bytes);
	assert(record->repaired_bytes <= record->differ_bytes);
	assert(record->differ_bytes <= record->position_bytes);
	assert(record->listed <= record->extents);
}
