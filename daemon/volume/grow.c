// SPDX-License-Identifier: Apache-2.0
/*
 * A bigger size, while the volume is in use. In this order:
 *   1. the backing is grown (a file) or looked at (a device);
 *   2. what it has beyond the old end is zeroed, and all of it made durable;
 *   3. no write of map pages begins any more; those under way end;
 *   4. in one turn of the loop: the maps for the new size go to the file that is not in use, durably, then
 *      a superblock with that size and file. From there on the volume has the new size.
 * A crash before 4 leaves a backing that is bigger than the volume, which is nothing new.
 *
 * If that superblock fails, nobody knows which one is on the disk. Then both files stay as they are, with
 * requests waiting that need an intent bit, until another one with the old size was written.
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/mutate.h"

#define LOOK_NS 1000000ull   /* for writes of pages to end */
#define UNDO_NS 100000000ull /* to the next try to write the old superblock */

enum grow_step { GROW_BEGIN, GROW_ZERO, GROW_WAIT, GROW_UNDO, GROW_END };

struct grow {
	struct volume *volume;
	struct env_timer timer; /* drives the steps but ZERO */
	struct env_op io;
	enum grow_step step;
	uint64_t size_bytes;
	uint64_t at, end, piece; /* to be zeroed */
	bool by_writing;
	int error;
	char why[320];
	void (*done)(void *context, int error, const char *why);
	void *context;
};

static void zero_next(struct grow *g);

__attribute__((format(printf, 3, 4))) static void end_with(struct grow *g, int error,
							   const char *format, ...)
{
	va_list arguments;

	g->error = error;
	va_start(arguments, format);
	vsnprintf(g->why, sizeof(g->why), format, arguments);
	va_end(arguments);
	g->step = GROW_END;
	env_timer_start(g->volume->env, &g->timer, 1);
}

/* ---- whether ------------------------------------------------------------------------------------ */

/* Cuts that read content know the volume's end; those of the stream, and of the exchange of maps with the peer
 * (reference.c), have bits only. */
int volume_grow_check(const struct volume *v, uint64_t size_bytes, char *why, size_t why_size)
{
	unsigned long long now = v->size_bytes, wanted = size_bytes;
	int error = -EPERM;

	why[0] = '\0';
	if (v->closing) {
		error = -ESHUTDOWN;
		snprintf(why, why_size, "volume %s: shutting down", v->name);
	} else if (size_bytes % 4096 != 0 || size_bytes > INT64_MAX) {
		error = -EINVAL;
		snprintf(why, why_size, "volume %s: size %llu is not a multiple of 4096", v->name,
			 wanted);
	} else if (size_bytes <= v->size_bytes) {
		error = -EINVAL;
		snprintf(why, why_size,
			 "volume %s: has %llu bytes; %llu is not more, and a volume is never made "
			 "smaller",
			 v->name, now, wanted);
	} else if (v->lean != VOLUME_LEAN_NO || v->hydrate.from_store || !disk_usable(v) ||
		   v->state.disk >= VOLUME_DISK_FAILED) {
		snprintf(why, why_size,
			 v->lean == VOLUME_LEAN_NO && v->state.disk == VOLUME_DISK_FAILED
				 ? "volume %s: its disk has failed: a new one gets the peer's size "
				   "with its content: offsite restore %s --from-peer"
				 : "volume %s: its disk is not whole yet: offsite status %s",
			 v->name, v->name);
	} else if (v->cuts[VOLUME_STORE].active && !v->cuts[VOLUME_STORE].bits_only) {
		error = -EBUSY;
		snprintf(why, why_size, "volume %s: a snapshot is being made: try again afterwards",
			 v->name);
	} else if (v->cuts[VOLUME_PEER].active && !v->cuts[VOLUME_PEER].bits_only) {
		error = -EBUSY;
		snprintf(why, why_size, "volume %s: the peer is catching up: try again afterwards",
			 v->name);
	}
	return why[0] ? error : 0;
}

static bool refused(struct grow *g)
{
	char why[sizeof(g->why)];
	int error = volume_grow_check(g->volume, g->size_bytes, why, sizeof(why));

	if (error != 0)
		end_with(g, error, "%s", why);
	return error != 0;
}

/* ---- the backing -------------------------------------------------------------------------------- */

void grow_synced(struct volume *v, int error)
{
	struct grow *g = v->grow;

	if (error != 0) {
		end_with(g, error, "volume %s: %s: fsync: %s", v->name, v->backing_path,
			 strerror(-error));
		return;
	}
	g->step = GROW_WAIT;
	v->maps_held = true;
	env_timer_start(g->volume->env, &g->timer, 1);
}

static void zeroed(struct env_op *io, int64_t result)
{
	struct grow *g = (struct grow *)((char *)io - offsetof(struct grow, io));

	if (result == -EOPNOTSUPP && !g->by_writing) {
		g->by_writing = true;
	} else if (result < 0) {
		end_with(g, (int)result, "volume %s: %s: zeroing it from %llu on: %s",
			 g->volume->name, g->volume->backing_path, (unsigned long long)g->at,
			 strerror((int)-result));
		return;
	} else {
		g->at += g->piece;
	}
	zero_next(g);
}

static void zero_next(struct grow *g)
{
	struct volume *v = g->volume;
	uint64_t most = g->by_writing ? BUF_SIZE_MAX : ZERO_PIECE;

	if (refused(g))
		return;
	if (g->at == g->end && MUTATE(volume_grow_no_fsync)) {
		grow_synced(v, 0);
		return;
	}
	if (g->at == g->end) {
		sync_join_grow(v);
		return;
	}
	g->piece = g->end - g->at < most ? g->end - g->at : most;
	g->io.done = zeroed;
	if (g->by_writing)
		env_write(v->env, &g->io, v->backing, v->zeroes, g->piece, g->at, 0);
	else
		env_zero(v->env, &g->io, v->backing, g->at, g->piece, ENV_ZERO_PUNCH);
}

static void grow_backing(struct grow *g)
{
	struct volume *v = g->volume;
	struct env_file_info info;
	int error;

	if (refused(g))
		return;
	error = env_file_info(v->env, v->backing, &info);
	if (error == 0 && info.block_device && info.size_bytes < g->size_bytes) {
		end_with(g, -ENOSPC,
			 "volume %s: %s: the device has %llu bytes: make it bigger first", v->name,
			 v->backing_path, (unsigned long long)info.size_bytes);
		return;
	}
	g->at = v->size_bytes;
	g->end = info.size_bytes < g->size_bytes ? info.size_bytes : g->size_bytes;
	if (MUTATE(volume_grow_no_zero))
		g->end = g->at;
	if (error == 0 && info.size_bytes < g->size_bytes)
		error = env_file_truncate(v->env, v->backing, g->size_bytes);
	if (error != 0) {
		end_with(g, error, "volume %s: %s: %s", v->name, v->backing_path, strerror(-error));
		return;
	}
	g->step = GROW_ZERO;
	zero_next(g);
}

/* ---- the maps and the superblock ------------------------------------------------------------------- */

/* What belongs to the size; `next` gets the old ones, to be freed. */
static void take_maps(struct volume *v, struct volume *next)
{
	struct intent intent = v->intent;

	v->intent = next->intent;
	v->intent.waiting = intent.waiting;
	next->intent = intent;
	next->intent.waiting = (struct op_queue){0};
	struct page_batch batch = v->checkpoint.batch;
	v->checkpoint.batch = next->checkpoint.batch;
	next->checkpoint.batch = batch;
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++) {
		struct volume_cut *cut = &v->cuts[c], *other = &next->cuts[c];
		struct consumer consumer = v->consumers[c];
		struct dirty_map sealed = cut->sealed, safe = cut->safe, staged = cut->staged;

		v->consumers[c] = next->consumers[c];
		next->consumers[c] = consumer;
		cut->sealed = other->sealed;
		cut->safe = other->safe;
		cut->staged = other->staged;
		other->sealed = sealed;
		other->safe = safe;
		other->staged = staged;
	}
}

static int make_maps(struct volume *v, uint64_t size_bytes, struct volume **out)
{
	struct volume *next = calloc(1, sizeof(*next));
	int error;

	if (next == NULL)
		return -ENOMEM;
	*out = next;
	next->env = v->env;
	next->name = v->name;
	next->state_dir = v->state_dir;
	memcpy(next->maps_paths, v->maps_paths, sizeof(next->maps_paths));
	next->size_bytes = size_bytes;
	error = maps_init(next);
	if (error != 0)
		return error;
	memcpy(next->braced, v->braced, sizeof(next->braced));
	if (v->is_braced)
		maps_brace(next);
	if (!MUTATE(volume_grow_forgets_maps))
		maps_copy(next, v);
	return maps_create_beside(next, 1 - v->maps_number);
}

static void drop_maps(struct volume *v, struct volume *next)
{
	if (next == NULL)
		return;
	if (next->maps != NULL)
		env_file_close(v->env, next->maps);
	maps_free(next);
	free(next);
}

/* The old size again, with a superblock that is newer than the one that failed. */
static void undo(struct grow *g)
{
	struct volume *v = g->volume;

	if (super_store(v, 0) != 0 && !v->closing) {
		env_timer_start(v->env, &g->timer, UNDO_NS);
		return;
	}
	intent_go_on(v);
	end_with(g, -EIO, "volume %s: %s: not written: the size is the old one", v->name,
		 v->super_path);
}

static void switch_over(struct grow *g, struct volume *next)
{
	struct volume *v = g->volume;
	uint64_t old_size = v->size_bytes;
	struct env_file *maps = v->maps;

	v->size_bytes = g->size_bytes;
	v->maps_number = 1 - v->maps_number;
	if (super_store(v, 0) != 0) {
		v->size_bytes = old_size;
		v->maps_number = 1 - v->maps_number;
		g->step = GROW_UNDO;
		env_timer_start(v->env, &g->timer, 1);
		return;
	}
	take_maps(v, next);
	v->maps = next->maps;
	next->maps = maps;
	intent_go_on(v);
	env_log(v->env, ENV_LOG_INFO, "volume %s: has %llu bytes now, and had %llu", v->name,
		(unsigned long long)g->size_bytes, (unsigned long long)old_size);
	end_with(g, 0, "%s", "");
}

static void wait_for_maps(struct grow *g)
{
	struct volume *v = g->volume, *next = NULL;
	int error;

	if (refused(g)) {
		intent_go_on(v);
		return;
	}
	if ((!intent_idle(v) && !MUTATE(volume_grow_not_waiting)) || v->super.writing >= 0) {
		env_timer_start(v->env, &g->timer, LOOK_NS);
		return;
	}
	error = make_maps(v, g->size_bytes, &next);
	if (error != 0) {
		intent_go_on(v);
		end_with(g, error, "volume %s: %s: %s", v->name, v->maps_paths[1 - v->maps_number],
			 strerror(-error));
	} else {
		switch_over(g, next);
	}
	drop_maps(v, next);
	if (g->step == GROW_END)
		grow_look(v);
}

/* ---- life --------------------------------------------------------------------------------------- */

static void finish(struct grow *g)
{
	struct volume *v = g->volume;

	if (v->grow == g)
		v->grow = NULL;
	g->done(g->context, g->error, g->why);
	free(g);
	op_ended(v);
}

static void next_step(struct env_timer *timer)
{
	struct grow *g = (struct grow *)((char *)timer - offsetof(struct grow, timer));

	switch (g->step) {
	case GROW_BEGIN:
		grow_backing(g);
		break;
	case GROW_WAIT:
		wait_for_maps(g);
		break;
	case GROW_UNDO:
		undo(g);
		break;
	case GROW_END:
		finish(g);
		break;
	case GROW_ZERO:
		assert(!"driven by its I/O");
	}
}

void volume_grow(struct volume *v, uint64_t size_bytes,
		 void (*done)(void *context, int error, const char *why), void *context)
{
	struct grow *g = calloc(1, sizeof(*g));
	bool busy = v->grow != NULL;

	if (g == NULL)
		abort();
	*g = (struct grow){.volume = v,
			   .timer.fire = next_step,
			   .size_bytes = size_bytes,
			   .done = done,
			   .context = context};
	v->ops++;
	if (busy) {
		end_with(g, -EBUSY, "volume %s: is being made bigger already", v->name);
		return;
	}
	v->grow = g;
	env_timer_start(v->env, &g->timer, 1);
}

/* The file of maps that is not in use has no meaning. */
void grow_look(struct volume *v)
{
	int error = env_unlink(v->env, v->maps_paths[1 - v->maps_number]);

	if (error != 0 && error != -ENOENT)
		env_log(v->env, ENV_LOG_WARNING, "volume %s: %s: not removed: %s", v->name,
			v->maps_paths[1 - v->maps_number], strerror(-error));
}
