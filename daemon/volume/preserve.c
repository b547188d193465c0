// SPDX-License-Identifier: Apache-2.0
/*
 * A cut's preserve file: scratch, in slots of one unit each, that are given out from the front and all come back
 * together.
 *
 * Its space is given back from the end, a step at a time and off the loop: emptying a gigabyte takes a file system
 * a third of a second, in which no volume of the node would be served. The next cut does not wait for all of it: what
 * it preserves goes to the front, over old content that is not emptied any more then, so that the file never
 * takes more than the limit. Only a slot in the very step that is under way is not given out before that is over.
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include "daemon/mutate.h"

#define SHRINK_STEP (8ull * 1024 * 1024)

static bool in_use(const struct volume_cut *cut)
{
	return (cut->active && !cut->is_live) || cut->jobs > 0;
}

/* There is only a hole left to be cut off now; or one step, where the file system cannot make holes. */
static void shrink_done(struct env_op *io, int64_t result)
{
	struct volume_cut *cut =
		(struct volume_cut *)((char *)io - offsetof(struct volume_cut, shrink_io));
	struct volume *v = cut->volume;

	cut->shrinking = false;
	cut->file_slots = cut->shrink_slot;
	if (cut->jobs == 0) /* else it would wait for their writes */
		env_file_truncate(v->env, cut->file, cut->file_slots * PRESERVE_UNIT);
	preserve_shrink(cut);
	op_gate_all(queue_take(&v->wait_job));
	op_ended(v);
}

void preserve_shrink(struct volume_cut *cut)
{
	const uint64_t step = SHRINK_STEP / PRESERVE_UNIT;
	struct volume *v = cut->volume;

	if (in_use(cut))
		return;
	cut->next_slot = 0;
	if (cut->shrinking || cut->file_slots == 0 || v->closing)
		return;
	cut->shrinking = true;
	cut->shrink_slot = cut->file_slots > step ? cut->file_slots - step : 0;
	v->ops++;
	env_zero(v->env, &cut->shrink_io, cut->file, cut->shrink_slot * PRESERVE_UNIT,
		 (cut->file_slots - cut->shrink_slot) * PRESERVE_UNIT, ENV_ZERO_PUNCH);
}

uint64_t preserve_room(const struct volume_cut *cut)
{
	if (!cut->shrinking || MUTATE(volume_preserve_shrunk))
		return UINT64_MAX;
	return cut->shrink_slot - cut->next_slot;
}

void preserve_give(struct volume_cut *cut, uint64_t count)
{
	cut->next_slot += count;
	if (cut->file_slots < cut->next_slot)
		cut->file_slots = cut->next_slot;
}

void preserve_init(struct volume_cut *cut)
{
	cut->shrink_io.done = shrink_done;
}

int preserve_open(struct volume_cut *cut)
{
	if (cut->file != NULL)
		return 0;
	return env_file_open(cut->volume->env, cut->path,
			     ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE, &cut->file);
}

void preserve_recover(struct volume_cut *cut)
{
	struct env *env = cut->volume->env;
	struct env_file_info info;

	if (env_file_open(env, cut->path, ENV_FILE_READ | ENV_FILE_WRITE, &cut->file) != 0)
		return; /* there is none; or the next cut says why */
	if (env_file_info(env, cut->file, &info) == 0)
		cut->file_slots = (info.size_bytes + PRESERVE_UNIT - 1) / PRESERVE_UNIT;
	preserve_shrink(cut);
}

void preserve_close(struct volume_cut *cut)
{
	assert(!cut->shrinking);
	if (cut->file != NULL)
		env_file_close(cut->volume->env, cut->file);
	cut->file = NULL;
}

void preserve_check(const struct volume_cut *cut)
{
	assert(cut->next_slot <= cut->file_slots);
	if (cut->shrinking)
		assert(cut->shrink_slot < cut->file_slots && cut->next_slot <= cut->shrink_slot);
}
