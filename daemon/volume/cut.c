// SPDX-License-Identifier: Apache-2.0
/*
 * Cuts: the consumer's active map becomes the sealed map, and until the cut is finished the content of
 * every sealed block as of the cut can be read.
 *
 * A sealed block is "safe" once it was read; before that no mutation of it is issued (cut_ready), but of those
 * units of it that were copied for the preserve file: a write pays for what it overwrites, however large the
 * consumer's blocks are. They go there by way of memory (preserve_buf). Copies and reads wait for the mutations
 * issued before them and keep later ones back (struct reader), so what they see is what was issued up to the cut
 * and nothing else.
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/io/resident.h"
#include "daemon/mutate.h"

#define PRESERVE_PIECE (128u * 1024) /* of old content, written at a time */
#define INDEX_BRACED_BYTES \
	(2ull << 30) /* so much preserved is counted on, of a larger preserve-max */

static uint64_t min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint32_t cut_block(const struct volume_cut *cut)
{
	return volume_consumer_block_bytes(cut->consumer);
}

static uint64_t units_per_block(const struct volume_cut *cut)
{
	return cut_block(cut) / PRESERVE_UNIT;
}

/* ---- the preserve file and its index ---------------------------------------------------------- */

static struct preserve_slot *index_find(const struct volume_cut *cut, uint64_t unit)
{
	uint64_t i = unit * 0x9e3779b97f4a7c15ull;

	for (i ^= i >> 32;; i++) {
		struct preserve_slot *slot = &cut->index[i & (cut->index_size - 1)];

		if (slot->unit_plus_1 == 0 || slot->unit_plus_1 == unit + 1)
			return slot;
	}
}

static bool preserved(const struct volume_cut *cut, uint64_t unit, uint64_t *slot)
{
	const struct preserve_slot *found;

	if (cut->index_count == 0)
		return false;
	found = index_find(cut, unit);
	*slot = found->slot;
	return found->unit_plus_1 != 0;
}

static bool index_reserve(struct volume_cut *cut, uint64_t more)
{
	struct preserve_slot *old = cut->index;
	uint64_t old_size = cut->index_size, size = old_size ? old_size : 4096;

	while ((cut->index_count + more) * 2 > size)
		size *= 2;
	if (size == old_size)
		return true;
	cut->index = calloc(size, sizeof(*cut->index));
	if (cut->index_kept)
		resident_make(cut->index, size * sizeof(*cut->index));
	if (cut->index == NULL) {
		cut->index = old;
		return false;
	}
	cut->index_size = size;
	for (uint64_t i = 0; i < old_size; i++)
		if (old[i].unit_plus_1 != 0)
			*index_find(cut, old[i].unit_plus_1 - 1) = old[i];
	free(old);
	return true;
}

static void index_drop(struct volume_cut *cut)
{
	if (cut->index_kept) {
		if (cut->index_count > 0)
			memset(cut->index, 0, cut->index_size * sizeof(*cut->index));
	} else {
		free(cut->index);
		cut->index = NULL;
		cut->index_size = 0;
	}
	cut->index_count = 0;
}

void cut_brace(struct volume_cut *cut)
{
	uint64_t units =
		min64(cut->volume->config.preserve_max_bytes, INDEX_BRACED_BYTES) / PRESERVE_UNIT;

	if (cut->index_kept)
		return;
	cut->index_kept = true;
	if (cut->index_count < units && !index_reserve(cut, units - cut->index_count))
		cut->index_kept = cut->index != NULL;
	resident_make(cut->index, cut->index_size * sizeof(*cut->index));
}

static void lost_call(struct env_task *task)
{
	struct volume_cut *cut =
		(struct volume_cut *)((char *)task - offsetof(struct volume_cut, lost_task));

	if (cut->active && cut->is_lost && cut->lost != NULL)
		cut->lost(cut->context, cut->lost_error);
}

static void cut_lose(struct volume_cut *cut, int error)
{
	struct volume *v = cut->volume;

	if (cut->is_lost)
		return;
	cut->is_lost = true;
	cut->lost_error = error;
	env_log(v->env, ENV_LOG_WARNING, "volume %s: cut for the %s given up: %s", v->name,
		cut->consumer == VOLUME_PEER ? "peer" : "store",
		error == -ENOSPC ? "preserve area is full (preserve-max)" : strerror(-error));
	env_defer(v->env, &cut->lost_task);
}

/* The area takes no more, whatever its limit is: as if it were full. */
static void preserve_fail(struct volume_cut *cut, int error)
{
	struct volume *v = cut->volume;

	if (!cut->preserve_failed)
		env_log(v->env, ENV_LOG_WARNING,
			"volume %s: %s: %s; writers wait for the catch-up instead", v->name,
			cut->path, strerror(-error));
	cut->preserve_failed = true;
}

void cut_lose_all(struct volume *v, int error)
{
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		if (v->cuts[c].active && !v->cuts[c].bits_only)
			cut_lose(&v->cuts[c], error);
}

/* ---- copy before write ------------------------------------------------------------------------ */

/* Of the cut that it was begun for: that may be over meanwhile. */
static bool is_current(const struct volume_cut *cut, uint64_t epoch)
{
	return cut->active && !cut->is_live && cut->epoch == epoch;
}

/* What was copied is found from now on, and may be overwritten. */
static int job_index(struct preserve_job *job)
{
	struct volume_cut *cut = job->cut;

	if (!index_reserve(cut, job->count))
		return -ENOMEM;
	for (uint64_t i = 0; i < job->count; i++) {
		*index_find(cut, job->first + i) = (struct preserve_slot){
			.unit_plus_1 = job->first + i + 1, .slot = job->slot + i};
		cut->index_count++;
	}
	if (units_per_block(cut) == 1)
		dirty_set(&cut->safe, job->first, job->count, NULL, NULL);
	job->volume->stats.preserved_bytes += job->reader.end - job->reader.start;
	return 0;
}

static void held_write(struct preserve_buf *held);

/* Nobody waits for a shared one: it is written when it is full, and dropped when its cut is over. */
static void held_settle(struct preserve_buf *held)
{
	if (held->reading > 0 || !held->closed)
		return;
	if (is_current(held->cut, held->epoch) && !held->cut->is_lost)
		held_write(held);
	else
		held->cut = NULL;
}

static void held_close(struct volume_cut *cut)
{
	struct preserve_buf *held = cut->filling;

	if (held == NULL)
		return;
	cut->filling = NULL;
	held->closed = true;
	held_settle(held);
}

static void job_end(struct preserve_job *job, int error)
{
	struct volume_cut *cut = job->cut;
	struct volume *v = job->volume;
	bool current = is_current(cut, job->epoch);

	if (current && error == 0)
		error = job_index(job);
	if (current && error != 0 && cut->patient)
		preserve_fail(cut, error);
	else if (current && error != 0)
		cut_lose(cut, error);
	job->buf = NULL;
	cut->jobs--;
	preserve_shrink(cut);
	reader_end(v, &job->reader);
	op_gate_all(queue_take(&v->wait_job));
	op_ended(v);
}

static void held_written(struct env_op *io, int64_t result)
{
	struct preserve_buf *held =
		(struct preserve_buf *)((char *)io - offsetof(struct preserve_buf, io));
	struct volume_cut *cut = held->cut;
	struct volume *v = held->volume;
	int error = result < 0 ? (int)result : 0;

	cut->jobs--;
	if (error != 0 && held->job == NULL && is_current(cut, held->epoch))
		cut_lose(cut, error);
	held->cut = NULL;
	if (held->job != NULL) {
		job_end(held->job, error);
	} else {
		preserve_shrink(cut);
		op_gate_all(queue_take(&v->wait_job));
	}
	op_ended(v);
}

static void held_write(struct preserve_buf *held)
{
	held->cut->jobs++;
	held->volume->ops++;
	held->io.done = held_written;
	env_write(held->volume->env, &held->io, held->cut->file, held->buf->data,
		  held->count * PRESERVE_UNIT, held->slot * PRESERVE_UNIT, 0);
}

static void job_read(struct env_op *io, int64_t result)
{
	struct preserve_job *job =
		(struct preserve_job *)((char *)io - offsetof(struct preserve_job, io));
	struct preserve_buf *held = job->buf;

	held->reading--;
	if (result < 0)
		volume_log_error(job->volume, "read", job->reader.start, (int)result);
	if (held->job == NULL) {
		held_settle(held);
	} else if (result >= 0) {
		held_write(held);
		return;
	} else {
		held->cut = NULL;
	}
	job_end(job, result < 0 ? (int)result : 0);
}

static void job_ready(struct reader *reader)
{
	struct preserve_job *job =
		(struct preserve_job *)((char *)reader - offsetof(struct preserve_job, reader));

	job->io.done = job_read;
	env_read(job->volume->env, &job->io, job->volume->backing,
		 job->buf->buf->data + (job->slot - job->buf->slot) * PRESERVE_UNIT,
		 reader->end - reader->start, reader->start);
}

static struct preserve_job *job_free(struct volume *v)
{
	for (unsigned i = 0; i < PRESERVE_JOBS; i++)
		if (v->jobs[i].buf == NULL)
			return &v->jobs[i];
	return NULL;
}

/* A write may go ahead before its old content is in the file: if that fails, the cut is given up anyway. */
static bool goes_ahead(const struct volume_cut *cut)
{
	return !cut->patient && units_per_block(cut) > 1;
}

static struct preserve_buf *held_take(struct volume_cut *cut)
{
	struct volume *v = cut->volume;

	for (unsigned i = 0; i < PRESERVE_BUFS; i++) {
		struct preserve_buf *held = &v->preserve_bufs[i];

		if (held->cut != NULL)
			continue;
		held->volume = v;
		held->cut = cut;
		held->job = NULL;
		held->epoch = cut->epoch;
		held->slot = cut->next_slot;
		held->count = 0;
		held->reading = 0;
		held->closed = false;
		return held;
	}
	return NULL;
}

/* One with room for so many units; NULL: all are on their way. */
static struct preserve_buf *held_for(struct volume_cut *cut, uint64_t count)
{
	if (!goes_ahead(cut))
		return held_take(cut);
	if (cut->filling != NULL && cut->filling->count + count > BUF_SIZE_MAX / PRESERVE_UNIT)
		held_close(cut);
	if (cut->filling == NULL)
		cut->filling = held_take(cut);
	return cut->filling;
}

static bool needed(const struct volume_cut *cut, uint64_t unit)
{
	const uint64_t per = units_per_block(cut), block = unit / per;
	uint64_t slot;

	return dirty_test(&cut->sealed, block) && !dirty_test(&cut->safe, block) &&
	       !dirty_test(&cut->staged, block) && (per == 1 || !preserved(cut, unit, &slot));
}

/* The first unit in [first, last] of a sealed block that is not safe, and not with the consumer, that was not
 * preserved; or DIRTY_NONE. */
static uint64_t unsafe_next(const struct volume_cut *cut, uint64_t first, uint64_t last)
{
	const uint64_t per = units_per_block(cut);

	while (first <= last) {
		uint64_t block = dirty_next(&cut->sealed, first / per);

		if (block == DIRTY_NONE || block * per > last)
			break;
		if (block * per > first)
			first = block * per;
		if (needed(cut, first))
			return first;
		first++;
	}
	return DIRTY_NONE;
}

/* Copies from unit on as much as lies together, up to last, and as the limit allows. False: there is no room for
 * it now. */
static bool job_start(struct volume_cut *cut, uint64_t unit, uint64_t last, struct op *op)
{
	struct volume *v = cut->volume;
	uint64_t size = PRESERVE_UNIT, count = 1;
	uint64_t max =
		min64(BUF_SIZE_MAX / size, v->config.preserve_max_bytes / size - cut->used_slots);
	struct preserve_job *job = job_free(v);
	struct preserve_buf *held;

	max = min64(max, preserve_room(cut));
	if (max == 0)
		return false;
	while (count < max && unit + count <= last && needed(cut, unit + count))
		count++;
	held = job == NULL ? NULL : held_for(cut, count);
	if (held == NULL)
		return false;
	job->buf = held;
	job->cut = cut;
	job->epoch = cut->epoch;
	job->first = unit;
	job->count = count;
	job->slot = cut->next_slot;
	held->count += count;
	held->reading++;
	if (!goes_ahead(cut))
		held->job = job;
	preserve_give(cut, count);
	cut->used_slots += count;
	cut->jobs++;
	v->ops++;
	job->reader.start = unit * size;
	job->reader.end = min64((unit + count) * size, v->size_bytes);
	job->reader.ready = job_ready;
	reader_start(v, &job->reader);
	queue_push(&job->reader.waiters, op);
	if (held == cut->filling && held->count >= PRESERVE_PIECE / size)
		held_close(cut);
	return true;
}

bool cut_ready(struct volume *v, struct op *op)
{
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		struct volume_cut *cut = &v->cuts[c];
		uint64_t unit, last;

		if (!cut->active || cut->bits_only || cut->is_live || cut->is_lost ||
		    MUTATE(volume_skip_preserve))
			continue;
		last = (op->piece_offset + op->piece_length - 1) / PRESERVE_UNIT;
		unit = unsafe_next(cut, op->piece_offset / PRESERVE_UNIT, last);
		if (unit == DIRTY_NONE)
			continue;
		if (cut->preserve_failed ||
		    (cut->used_slots + 1) * PRESERVE_UNIT > v->config.preserve_max_bytes) {
			if (!cut->patient) {
				cut_lose(cut, -ENOSPC);
				continue;
			}
			if (cut->wanted == DIRTY_NONE)
				cut->wanted = unit / units_per_block(cut);
			v->stats.preserve_waits++;
			queue_push(&v->wait_cut, op);
			return false;
		}
		if (!job_start(cut, unit, last, op))
			queue_push(&v->wait_job, op);
		return false;
	}
	return true;
}

/* ---- cut reads -------------------------------------------------------------------------------- */

struct reading {
	struct env_op io;
	struct reader reader;
	struct env_task task;
	struct volume_cut *cut;
	uint64_t pos, hole_bytes;
	int error;
	bool over; /* what was preserved goes over what was read */
};
_Static_assert(sizeof(struct reading) <= sizeof(((struct volume_cut_read *)0)->priv),
	       "priv too small");

static struct volume_cut_read *read_of(struct reading *reading)
{
	return (struct volume_cut_read *)((char *)reading - offsetof(struct volume_cut_read, priv));
}

static void reading_next(struct reading *reading);
static void reading_over(struct reading *reading);

static void reading_end(struct reading *reading, int error)
{
	struct volume_cut *cut = reading->cut;
	struct volume *v = cut->volume;
	struct volume_cut_read *read = read_of(reading);
	uint64_t first = reading->reader.start / cut_block(cut);

	uint64_t last = (reading->reader.end - 1) / cut_block(cut);

	if (error != 0)
		v->stats.io_errors++;
	else if (!cut->is_live && (read->buf != NULL || read->hole))
		dirty_set(&cut->safe, first, last - first + 1, NULL, NULL);
	if (cut->wanted >= first && cut->wanted <= last)
		cut->wanted = DIRTY_NONE;
	cut->reads--;
	reader_end(v, &reading->reader);
	read->done(read, error);
	op_gate_all(queue_take(&v->wait_cut));
	op_ended(v);
}

static void reading_done(struct env_op *io, int64_t result)
{
	struct reading *reading = (struct reading *)((char *)io - offsetof(struct reading, io));

	if (result < 0) {
		volume_log_error(reading->cut->volume, "read", reading->pos, (int)result);
		reading_end(reading, -EIO);
		return;
	}
	reading->pos += (uint64_t)result;
	if (reading->over)
		reading_over(reading);
	else if (reading->pos < reading->reader.end)
		reading_next(reading);
	else
		reading_over(reading);
}

/* The next run of units from pos on that were preserved. */
static bool preserved_next(const struct reading *reading, uint64_t *pos, uint64_t *slot,
			   uint64_t *count)
{
	const struct volume_cut *cut = reading->cut;
	uint64_t unit = reading->pos / PRESERVE_UNIT, next;
	const uint64_t end = (reading->reader.end + PRESERVE_UNIT - 1) / PRESERVE_UNIT;

	while (unit < end && !preserved(cut, unit, slot))
		unit++;
	if (unit == end)
		return false;
	for (*count = 1;
	     unit + *count < end && preserved(cut, unit + *count, &next) && next == *slot + *count;)
		++*count;
	*pos = unit * PRESERVE_UNIT;
	return true;
}

/* Old content that is not known to be in the file: what holds the slot, or NULL; then *count ends where the next
 * such begins. */
static const struct preserve_buf *held_at(const struct volume_cut *cut, uint64_t slot,
					  uint64_t *count)
{
	const struct volume *v = cut->volume;

	if (MUTATE(volume_preserve_read_early))
		return NULL;
	for (unsigned i = 0; i < PRESERVE_BUFS; i++) {
		const struct preserve_buf *held = &v->preserve_bufs[i];

		if (held->cut != cut || held->epoch != cut->epoch ||
		    slot >= held->slot + held->count)
			continue;
		if (slot >= held->slot) {
			*count = min64(*count, held->slot + held->count - slot);
			return held;
		}
		*count = min64(*count, held->slot - slot);
	}
	return NULL;
}

/* The whole run is read, in blocks that may be there in part only: the rest was preserved. */
static void reading_over(struct reading *reading)
{
	struct volume_cut *cut = reading->cut;
	struct volume_cut_read *read = read_of(reading);
	uint64_t slot, count, length;
	uint8_t *to;

	if (!reading->over)
		reading->pos = reading->reader.start;
	reading->over = true;
	while (!cut->is_lost && units_per_block(cut) > 1 && cut->index_count > 0 &&
	       preserved_next(reading, &reading->pos, &slot, &count)) {
		const struct preserve_buf *held = held_at(cut, slot, &count);

		to = read->buf->data + (reading->pos - read->offset_bytes);
		length = min64(count * PRESERVE_UNIT, reading->reader.end - reading->pos);
		if (held == NULL) {
			reading->io.done = reading_done;
			env_read(cut->volume->env, &reading->io, cut->file, to, length,
				 slot * PRESERVE_UNIT);
			return;
		}
		memcpy(to, held->buf->data + (slot - held->slot) * PRESERVE_UNIT, length);
		reading->pos += length;
	}
	/* What the index of a lost one names may never have come to the preserve file. */
	reading_end(reading, cut->is_lost ? cut->lost_error : 0);
}

/* How much of [pos, end) is a hole in front, in whole blocks. Where data was seen none is looked for:
 * it may be one by now, but the other way round would be wrong. */
static uint64_t hole_at(struct volume_cut *cut, uint64_t pos, uint64_t end)
{
	struct volume *v = cut->volume;

	if (pos >= cut->data_start && pos < cut->data_end)
		return 0;
	int error = env_file_next_data(v->env, v->backing, pos, &cut->data_start, &cut->data_end);
	if (error != 0) {
		cut->data_start = cut->data_end = 0;
		return error == -ENXIO ? end - pos : 0;
	}
	if (cut->data_start >= end)
		return end - pos;
	uint64_t data = round_down(cut->data_start, cut_block(cut));
	return data > pos ? data - pos : 0;
}

/* In a turn of its own: done() is never called from inside the call. */
static void reading_hole_end(struct env_task *task)
{
	struct reading *reading = (struct reading *)((char *)task - offsetof(struct reading, task));
	struct volume_cut_read *read = read_of(reading);

	uint64_t pos, slot, count;

	reading->pos = reading->reader.start;
	read->hole = read->skip_hole && reading->hole_bytes == read->length_bytes &&
		     (units_per_block(reading->cut) == 1 || reading->cut->index_count == 0 ||
		      !preserved_next(reading, &pos, &slot, &count));
	if (!read->hole && reading->hole_bytes == read->length_bytes)
		memset(read->buf->data, 0, read->length_bytes);
	reading_over(reading);
}

/* True: the run of `length` bytes at pos begins with a hole, which is done with. */
static bool reading_skip_hole(struct reading *reading, uint64_t length)
{
	struct volume_cut_read *read = read_of(reading);
	uint64_t hole = hole_at(reading->cut, reading->pos, reading->pos + length);

	if (hole == 0)
		return false;
	reading->hole_bytes += hole;
	if (hole < read->length_bytes)
		memset(read->buf->data + (reading->pos - read->offset_bytes), 0, hole);
	reading->pos += hole;
	if (reading->pos < reading->reader.end) {
		reading_next(reading);
		return true;
	}
	reading->task.call = reading_hole_end;
	env_defer(reading->cut->volume->env, &reading->task);
	return true;
}

/* Whether anything in [start, end) was preserved. */
static bool preserved_in(const struct volume_cut *cut, uint64_t start, uint64_t end)
{
	const uint64_t first = start / PRESERVE_UNIT,
		       last = (end + PRESERVE_UNIT - 1) / PRESERVE_UNIT - 1;
	uint64_t slot;

	if (cut->index_count == 0)
		return false;
	if (last - first < cut->index_size) {
		for (uint64_t unit = first; unit <= last; unit++)
			if (preserved(cut, unit, &slot))
				return true;
		return false;
	}
	for (uint64_t i = 0; i < cut->index_size; i++)
		if (cut->index[i].unit_plus_1 > first && cut->index[i].unit_plus_1 <= last + 1)
			return true;
	return false;
}

static void reading_asked(struct env_task *task)
{
	struct reading *reading = (struct reading *)((char *)task - offsetof(struct reading, task));

	reading_end(reading, 0);
}

/* Nothing that was issued is under way there: the backing is as of the cut but for what was preserved. */
static void reading_ask(struct reading *reading)
{
	struct volume_cut *cut = reading->cut;
	const uint64_t start = reading->reader.start, end = reading->reader.end;

	read_of(reading)->hole =
		hole_at(cut, start, end) == end - start &&
		(MUTATE(volume_hole_ignores_preserved) || !preserved_in(cut, start, end));
	reading->task.call = reading_asked;
	env_defer(cut->volume->env, &reading->task);
}

/* Takes the run at pos that lies together in one of the two places. */
static void reading_next(struct reading *reading)
{
	struct volume_cut *cut = reading->cut;
	struct volume *v = cut->volume;
	struct volume_cut_read *read = read_of(reading);
	uint64_t size = cut_block(cut), block = reading->pos / size, count = 1;
	uint64_t slot = 0, next_slot = 0;
	const bool whole = units_per_block(cut) == 1;
	bool copy = whole && preserved(cut, block, &slot);
	uint64_t length;

	while ((block + count) * size < reading->reader.end &&
	       (!whole || (preserved(cut, block + count, &next_slot) == copy &&
			   (!copy || next_slot == slot + count))))
		count++;
	length = min64(count * size, reading->reader.end - reading->pos);
	if (!copy && reading_skip_hole(reading, length))
		return;
	if (!copy && cut->data_end > reading->pos)
		length = min64(length, round_up(cut->data_end, (uint32_t)size) - reading->pos);
	v->stats.cut_read_bytes += length;
	reading->io.done = reading_done;
	env_read(v->env, &reading->io, copy ? cut->file : v->backing,
		 read->buf->data + (reading->pos - read->offset_bytes), length,
		 copy ? slot * size : reading->pos);
}

/* In a turn of its own: done() is never called from inside the call. */
static void reading_fail(struct env_task *task)
{
	struct reading *reading = (struct reading *)((char *)task - offsetof(struct reading, task));

	reading_end(reading, reading->error);
}

static void reading_ready(struct reader *reader)
{
	struct reading *reading =
		(struct reading *)((char *)reader - offsetof(struct reading, reader));

	if (reading->cut->is_lost || reading->cut->volume->backing == NULL) {
		reading->error = reading->cut->is_lost ? reading->cut->lost_error : -EIO;
		reading->task.call = reading_fail;
		env_defer(reading->cut->volume->env, &reading->task);
		return;
	}
	if (read_of(reading)->buf == NULL)
		reading_ask(reading);
	else
		reading_next(reading);
}

uint64_t volume_cut_hole_bytes(struct volume_cut *cut, uint64_t offset, uint64_t length)
{
	assert(cut->active && !cut->bits_only && offset % cut_block(cut) == 0 && length > 0);
	return cut->volume->backing == NULL ? 0 : hole_at(cut, offset, offset + length);
}

void volume_cut_read(struct volume_cut *cut, struct volume_cut_read *read)
{
	struct reading *reading = (struct reading *)read->priv;
	struct volume *v = cut->volume;
	uint64_t end = read->offset_bytes + read->length_bytes;

	assert(cut->active && !cut->bits_only);
	assert(read->length_bytes > 0);
	assert(read->buf == NULL ? read->skip_hole : read->length_bytes <= read->buf->size_bytes);
	assert(read->offset_bytes % cut_block(cut) == 0 && end <= v->size_bytes);
	assert(end % cut_block(cut) == 0 || end == v->size_bytes);
	*reading = (struct reading){.cut = cut, .pos = read->offset_bytes};
	read->hole = false;
	reading->reader.start = read->offset_bytes;
	reading->reader.end = end;
	reading->reader.ready = reading_ready;
	cut->reads++;
	v->ops++;
	reader_start(v, &reading->reader);
}

/* ---- begin and end ---------------------------------------------------------------------------- */

static uint64_t map_bytes(const struct volume *v, const struct dirty_map *map, uint64_t count,
			  uint32_t block)
{
	uint64_t bytes = count * block, tail = v->size_bytes % block;

	/* The last block may be a short one. */
	if (tail != 0 && dirty_test(map, map->blocks - 1))
		bytes -= block - tail;
	return bytes;
}

int volume_cut_begin(struct volume *v, enum volume_consumer c, unsigned flags,
		     void (*lost)(void *context, int error), void *context, struct volume_cut **out)
{
	struct volume_cut *cut = &v->cuts[c];
	struct consumer *consumer = &v->consumers[c];
	struct dirty_map empty = cut->sealed;

	if (cut->active)
		return -EBUSY;
	cut->bits_only = flags & VOLUME_CUT_BITS_ONLY;
	if (!cut->bits_only && (v->backing == NULL || leaning(v) || v->hydrate.active))
		return -EIO;
	cut->preserve_failed = false;
	cut->wanted = DIRTY_NONE;
	if (!cut->bits_only) {
		int error = preserve_open(cut);

		if (error != 0) {
			env_log(v->env, ENV_LOG_ERROR, "volume %s: %s: %s", v->name, cut->path,
				strerror(-error));
			return error;
		}
		assert(lost != NULL || flags & VOLUME_CUT_LIVE);
		cut->failed_covered = true;
	}
	cut->is_live = cut->patient = flags & VOLUME_CUT_LIVE;
	assert(empty.count == 0 && cut->safe.count == 0 && cut->staged.count == 0 &&
	       consumer->both == 0);
	cut->sealed = consumer->active;
	consumer->active = empty;
	cut->active = true;
	cut->is_lost = false;
	cut->epoch++;
	cut->lsn = v->state.lsn;
	cut->snapshot = v->state.snapshot;
	cut->bytes = map_bytes(v, &cut->sealed, cut->sealed.count, cut_block(cut));
	cut->used_slots = 0;
	cut->data_start = cut->data_end = 0;
	cut->lost = lost;
	cut->context = context;
	/* What another's hand changes from now on is not marked. */
	if (c == VOLUME_STORE && v->detached)
		maps_mark(v, c, 0, v->size_bytes, false);
	*out = cut;
	return 0;
}

uint64_t volume_cut_lsn(const struct volume_cut *cut)
{
	return cut->lsn;
}

uint64_t volume_cut_bytes(const struct volume_cut *cut)
{
	return cut->bytes;
}

bool volume_cut_is_short(const struct volume_cut *cut)
{
	return cut->used_slots * PRESERVE_UNIT > cut->volume->config.preserve_max_bytes / 2;
}

bool volume_cut_is_bits_only(const struct volume *v, enum volume_consumer c,
			     const struct volume_cut *cut)
{
	return cut == &v->cuts[c] && cut->active && cut->bits_only;
}

/* Of a patient cut. What was overwritten since it was sealed is sent with what comes later. */
static bool to_be_sent(const struct volume_cut *cut, uint64_t block)
{
	return dirty_test(&cut->sealed, block) && !dirty_test(&cut->staged, block) &&
	       !(cut->is_live && dirty_test(&cut->volume->consumers[cut->consumer].active, block));
}

static uint64_t unstaged_next(const struct volume_cut *cut, uint64_t from)
{
	const struct dirty_map *active = &cut->volume->consumers[cut->consumer].active;

	for (;;) {
		uint64_t block = dirty_next(&cut->sealed, from);

		if (block == DIRTY_NONE || to_be_sent(cut, block))
			return block;
		from = dirty_test(&cut->staged, block)
			       ? dirty_next_clear(&cut->staged, block, cut->staged.blocks)
			       : dirty_next_clear(active, block, active->blocks);
		if (from >= cut->sealed.blocks)
			return DIRTY_NONE;
	}
}

bool volume_cut_next(const struct volume_cut *cut, uint64_t offset, uint64_t max_bytes,
		     uint64_t *start, uint64_t *length)
{
	uint64_t size = cut_block(cut), limit = cut->sealed.blocks;
	uint64_t first, end;

	assert(cut->active && max_bytes >= size);
	if (offset >= cut->volume->size_bytes)
		return false;
	first = cut->patient ? unstaged_next(cut, offset / size)
			     : dirty_next(&cut->sealed, offset / size);
	if (first == DIRTY_NONE)
		return false;
	if (limit - first > max_bytes / size)
		limit = first + max_bytes / size;
	end = dirty_next_clear(&cut->sealed, first, limit);
	for (uint64_t block = first + 1; cut->patient && block < end; block++)
		if (!to_be_sent(cut, block))
			end = block;
	*start = first * size;
	*length = min64(end * size, cut->volume->size_bytes) - *start;
	return true;
}

void volume_cut_narrow(struct volume_cut *cut, uint64_t offset, uint64_t length)
{
	struct volume *v = cut->volume;
	uint64_t size = cut_block(cut), first = offset / size;
	uint64_t count = (offset + length + size - 1) / size - first;

	assert(cut->active && cut->bits_only);
	assert(offset % size == 0 && length > 0 && offset + length <= v->size_bytes);
	assert((offset + length) % size == 0 || offset + length == v->size_bytes);
	if (MUTATE(volume_narrow_active)) /* later writes are forgotten */
		dirty_clear(&v->consumers[cut->consumer].active, first, count, &cut->sealed,
			    &v->consumers[cut->consumer].both);
	if (dirty_clear(&cut->sealed, first, count, &v->consumers[cut->consumer].active,
			&v->consumers[cut->consumer].both) > 0)
		maps_loosened_range(v, cut->consumer, first, count);
}

/* ---- live cuts -------------------------------------------------------------------------------- */

bool volume_cut_wanted(const struct volume_cut *cut, uint64_t *start, uint64_t *length)
{
	if (cut->wanted == DIRTY_NONE || cut->is_live)
		return false;
	*start = cut->wanted * cut_block(cut);
	*length = min64(*start + cut_block(cut), cut->volume->size_bytes) - *start;
	return true;
}

static uint64_t blocks_in(const struct volume_cut *cut, uint64_t offset, uint64_t length)
{
	uint64_t size = cut_block(cut);

	assert(cut->active && cut->patient && length > 0 && offset % size == 0);
	return (length + size - 1) / size;
}

void volume_cut_stage(struct volume_cut *cut, uint64_t offset, uint64_t length)
{
	dirty_set(&cut->staged, offset / cut_block(cut), blocks_in(cut, offset, length), NULL,
		  NULL);
}

void volume_cut_unstage(struct volume_cut *cut, uint64_t offset, uint64_t length)
{
	assert(cut->is_live);
	dirty_clear(&cut->staged, offset / cut_block(cut), blocks_in(cut, offset, length), NULL,
		    NULL);
}

uint64_t volume_cut_left_bytes(const struct volume_cut *cut)
{
	const struct dirty_map *active = &cut->volume->consumers[cut->consumer].active;

	return (cut->sealed.count - cut->staged.count + (cut->is_live ? active->count : 0)) *
	       cut_block(cut);
}

void volume_cut_absorb(struct volume_cut *cut)
{
	struct consumer *consumer = &cut->volume->consumers[cut->consumer];

	assert(cut->active && cut->is_live && cut->reads == 0);
	if (!MUTATE(volume_absorb_keeps_staged))
		dirty_subtract(&cut->staged, &consumer->active);
	dirty_merge(&cut->sealed, &consumer->active);
	dirty_clear_all(&consumer->active);
	consumer->both = 0;
}

void volume_cut_freeze(struct volume_cut *cut)
{
	volume_cut_absorb(cut);
	assert(cut->safe.count == 0);
	cut->bytes = volume_cut_left_bytes(cut);
	cut->is_live = false;
	cut->epoch++;
	cut->lsn = cut->volume->state.lsn;
	cut->used_slots = 0;
	cut->failed_covered = true;
	cut->preserve_failed = false;
}

static void drop_preserved(struct volume_cut *cut)
{
	held_close(cut);
	dirty_clear_all(&cut->safe);
	index_drop(cut);
	cut->used_slots = 0;
	cut->wanted = DIRTY_NONE;
	preserve_shrink(cut);
}

void volume_cut_thaw(struct volume_cut *cut)
{
	assert(cut->active && cut->patient && !cut->is_live && cut->reads == 0);
	cut->is_live = true;
	drop_preserved(cut);
	op_gate_all(queue_take(&cut->volume->wait_cut));
}

/* Where a local write failed this side differs from what was streamed: not equal by a flush point. Nor is the
 * peer's content there that of a snapshot of this side, whose map the peer takes over. */
static void keep_failed(struct volume_cut *cut)
{
	struct volume *v = cut->volume;

	if (v->failed_start == v->failed_end)
		return;
	if (cut->consumer == VOLUME_STORE || cut->bits_only)
		maps_mark(v, cut->consumer, v->failed_start, v->failed_end - v->failed_start,
			  false);
	else if (cut->failed_covered)
		v->failed_start = v->failed_end = 0;
}

void volume_cut_finish(struct volume_cut *cut, bool consumed)
{
	struct volume *v = cut->volume;
	struct consumer *consumer = &v->consumers[cut->consumer];

	assert(cut->active && cut->reads == 0);
	cut->active = false;
	if (!consumed)
		dirty_merge(&consumer->active, &cut->sealed);
	else if (MUTATE(volume_clear_active_on_consume))
		dirty_clear_all(&consumer->active);
	dirty_clear_all(&cut->sealed);
	dirty_clear_all(&cut->staged);
	consumer->both = 0;
	env_defer_cancel(v->env, &cut->lost_task);
	if (consumed) {
		keep_failed(cut);
		maps_loosened(v, cut->consumer);
	}
	cut->is_live = false;
	drop_preserved(cut);
	if (cut->patient)
		op_gate_all(queue_take(&v->wait_cut));
	/* Mutations that wait for a copy find that they need none when its job ends. */
}

uint64_t volume_dirty_bytes(const struct volume *v, enum volume_consumer c)
{
	const struct consumer *consumer = &v->consumers[c];
	const struct dirty_map *active = &consumer->active, *sealed = &v->cuts[c].sealed;
	uint64_t count = active->count + sealed->count - consumer->both;

	return map_bytes(v, dirty_test(active, active->blocks - 1) ? active : sealed, count,
			 volume_consumer_block_bytes(c));
}

uint64_t volume_dirty_since_ns(const struct volume *v, enum volume_consumer c)
{
	return v->consumers[c].dirty_since_ns;
}

bool volume_dirty_next(const struct volume *v, enum volume_consumer c, uint64_t offset,
		       uint64_t *start, uint64_t *length)
{
	const struct dirty_map *active = &v->consumers[c].active, *sealed = &v->cuts[c].sealed;
	uint64_t size = volume_consumer_block_bytes(c), first, end;

	if (offset >= v->size_bytes)
		return false;
	first = min64(dirty_next(active, offset / size), dirty_next(sealed, offset / size));
	if (first == DIRTY_NONE)
		return false;
	for (end = first; end < active->blocks;) {
		if (dirty_test(active, end))
			end = dirty_next_clear(active, end, active->blocks);
		else if (dirty_test(sealed, end))
			end = dirty_next_clear(sealed, end, active->blocks);
		else
			break;
	}
	*start = first * size;
	*length = min64(end * size, v->size_bytes) - *start;
	return true;
}

void cut_init(struct volume *v)
{
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		v->cuts[c].volume = v;
		v->cuts[c].consumer = (enum volume_consumer)c;
		v->cuts[c].lost_task.call = lost_call;
		preserve_init(&v->cuts[c]);
	}
	for (unsigned i = 0; i < PRESERVE_JOBS; i++)
		v->jobs[i].volume = v;
}

void cut_release(struct volume *v)
{
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		struct volume_cut *cut = &v->cuts[c];

		assert(!cut->active);
		preserve_close(cut);
		free(cut->path);
		cut->path = NULL;
		free(cut->index);
		cut->index = NULL;
	}
}

void cut_check(const struct volume *v)
{
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		const struct volume_cut *cut = &v->cuts[c];
		const struct consumer *consumer = &v->consumers[c];
		uint64_t both = 0;

		dirty_check(&consumer->active);
		dirty_check(&cut->sealed);
		dirty_check(&cut->safe);
		for (uint64_t w = 0; w < BITS_WORDS(cut->sealed.blocks); w++)
			both += (uint64_t)__builtin_popcountll(cut->sealed.words[w] &
							       consumer->active.words[w]);
		assert(both == consumer->both);
		dirty_check(&cut->staged);
		if (!cut->active)
			assert(cut->sealed.count == 0 && cut->safe.count == 0 &&
			       cut->staged.count == 0);
		if (cut->is_live)
			assert(cut->active && cut->safe.count == 0 && cut->index_count == 0);
		preserve_check(cut);
		if (cut->filling != NULL)
			assert(cut->active && goes_ahead(cut) && cut->filling->cut == cut &&
			       cut->filling->epoch == cut->epoch && !cut->filling->closed);
		if (cut->active && cut->patient)
			for (uint64_t w = 0; w < BITS_WORDS(cut->sealed.blocks); w++)
				assert((cut->staged.words[w] & ~cut->sealed.words[w]) == 0);
		if (c == VOLUME_STORE && v->detached)
			assert(consumer->active.count == consumer->active.blocks);
		/* What a snapshot leaves out it takes from the one that the map was relative to at its cut:
		 * nobody puts another one in its place. */
		if (c == VOLUME_STORE && cut->active && !cut->bits_only)
			assert(id128_is_zero(&v->state.snapshot) ||
			       id128_equal(&v->state.snapshot, &cut->snapshot));
	}
}
