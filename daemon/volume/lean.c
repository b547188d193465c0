// SPDX-License-Identifier: Apache-2.0
/*
 * A primary without a disk of its own. How it gets there: see enum volume_lean in volume.h.
 *
 *   disk_failed      a request met an error of the disk: the tap is asked to settle
 *   volume_settled   the peer has all that was issued. The superblock says so before anything
 *                    completes that the disk lacks; then what failed locally is a success
 *   op_read          content comes from the disk, or from the peer where the disk lacks it
 *
 * From then on requests are issued to the tap as ever. They are done when the peer has them, and keep
 * their locks until then: so what is under way when the connection ends does not overlap, and can be
 * put to the next one in any order.
 */
#include "daemon/volume/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "daemon/mutate.h"

enum volume_lean volume_lean(const struct volume *v)
{
	return v->lean;
}

bool volume_leans(const struct volume *v)
{
	return leaning(v);
}

bool volume_serves(const struct volume *v)
{
	if (leaning(v) || v->hydrate.active)
		return true;
	return v->backing != NULL &&
	       (v->state.disk == VOLUME_DISK_UPTODATE || v->state.disk == VOLUME_DISK_OUTDATED);
}

/* ---- the disk fails ----------------------------------------------------------------------------- */

static void note_failure(struct volume *v, const char *what, uint64_t offset, int error)
{
	snprintf(v->failure, sizeof(v->failure), "%s: %s at %llu: %s", v->backing_path, what,
		 (unsigned long long)offset, strerror(-error));
}

static void say_failed(struct volume *v, const char *what, uint64_t offset, int error)
{
	v->stats.io_errors++;
	note_failure(v, what, offset, error);
}

/* Nothing of this disk is used any more. */
static void leave_disk(struct volume *v)
{
	for (struct range_lock *lock = v->ranges.all; lock != NULL; lock = lock->all_next)
		((struct op *)((char *)lock - offsetof(struct op, lock)))->on_disk = false;
	cut_lose_all(v, -EIO);
	if (v->hydrate.active)
		hydrate_stop(v);
}

bool disk_failed(struct volume *v, const char *what, uint64_t offset, int error)
{
	switch (v->lean) {
	case VOLUME_LEAN_SETTLING:
	case VOLUME_LEAN_DISKLESS:
		return true; /* one more of what was under way */
	case VOLUME_LEAN_HYDRATING:
		say_failed(v, what, offset, error);
		env_log(v->env, ENV_LOG_ERROR,
			"volume %s: %s; the new disk failed, the content is at the peer only",
			v->name, v->failure);
		leave_disk(v);
		return true;
	case VOLUME_LEAN_NO:
		break;
	}
	if (!v->config.detach_on_error || v->closing || v->hydrate.active ||
	    v->state.role != VOLUME_PRIMARY || v->state.disk != VOLUME_DISK_UPTODATE ||
	    v->tap == NULL || v->tap->settle == NULL || !v->tap->settle(v->tap)) {
		if (v->failure[0] == '\0') /* the first one says the most */
			note_failure(v, what, offset, error);
		return false;
	}
	say_failed(v, what, offset, error);
	env_log(v->env, ENV_LOG_ERROR, "volume %s: %s; the peer takes over", v->name, v->failure);
	v->lean = VOLUME_LEAN_SETTLING;
	volume_suspend(v, VOLUME_SUSPEND_SETTLE, true);
	return true;
}

void op_failed(struct op *op, enum op_failed what, int error)
{
	op->failed = (uint8_t)what;
	op->local_error = error;
	if (op->volume->lean == VOLUME_LEAN_SETTLING)
		queue_push(&op->volume->wait_settled, op);
	else
		op_retry(op, 0);
}

/* 0, or the superblock could not be written: nothing changed. */
static int become_diskless(struct volume *v)
{
	struct volume_state state = v->state;
	enum volume_disk_state recorded = v->disk_recorded;
	enum volume_lean lean = v->lean;
	bool detached = v->detached, all_dirty = v->consumers[VOLUME_STORE].all_dirty;
	int error;

	v->lean = VOLUME_LEAN_DISKLESS;
	v->state.disk = VOLUME_DISK_DISKLESS;
	v->disk_recorded = VOLUME_DISK_INCONSISTENT;
	/* What is written from now on is not marked for the store. */
	v->state.snapshot = (struct id128){0};
	v->detached = v->consumers[VOLUME_STORE].all_dirty = true;
	error = MUTATE(volume_diskless_not_recorded) ? 0 : super_store(v, 0);
	if (error != 0) {
		v->lean = lean;
		v->state = state;
		v->disk_recorded = recorded;
		v->detached = detached;
		v->consumers[VOLUME_STORE].all_dirty = all_dirty;
		return error;
	}
	maps_mark(v, VOLUME_STORE, 0, v->size_bytes, false);
	leave_disk(v);
	return 0;
}

void volume_settled(struct volume *v, int error)
{
	struct op_queue waiting = queue_take(&v->wait_settled);
	struct op *op;

	if (v->lean != VOLUME_LEAN_SETTLING) {
		assert(waiting.first == NULL);
		return;
	}
	if (error == 0)
		error = become_diskless(v);
	if (error == 0) {
		env_log(v->env, ENV_LOG_ERROR,
			"volume %s: DISKLESS: served from the peer; replace the disk, then: "
			"offsite replace-disk %s",
			v->name, v->name);
	} else {
		v->lean = VOLUME_LEAN_NO;
		env_log(v->env, ENV_LOG_ERROR,
			"volume %s: the peer cannot take over (%s): requests that meet the failed "
			"disk fail",
			v->name, error == -ENOTCONN ? "connection lost" : strerror(-error));
	}
	while ((op = queue_pop(&waiting)) != NULL)
		op_retry(op, error == 0 ? 0 : op->local_error);
	volume_suspend(v, VOLUME_SUSPEND_SETTLE, false);
}

int volume_lean_on_peer(struct volume *v, char *why, size_t why_size)
{
	int error;

	if (leaning(v))
		return 0;
	if (v->state.role != VOLUME_PRIMARY || v->state.disk != VOLUME_DISK_FAILED ||
	    v->lean != VOLUME_LEAN_NO || v->hydrate.active) {
		snprintf(why, why_size, "volume %s: is no primary whose disk failed", v->name);
		return -EINVAL;
	}
	error = become_diskless(v);
	if (error != 0) {
		snprintf(why, why_size, "volume %s: %s: %s", v->name, v->super_path,
			 strerror(-error));
		return error;
	}
	lean_tap_changed(v);
	return 0;
}

void apply_failed(struct volume *v, const char *what, uint64_t offset, int error)
{
	if (v->state.role != VOLUME_SECONDARY || v->state.disk == VOLUME_DISK_FAILED)
		return;
	say_failed(v, what, offset, error);
	if (v->state.disk < VOLUME_DISK_FAILED)
		v->disk_recorded = v->state.disk;
	v->state.disk = VOLUME_DISK_FAILED;
	if (error == -ENOSPC || error == -EDQUOT)
		env_log(v->env, ENV_LOG_ERROR,
			"volume %s: disk FAILED: %s; it follows no more; make room, then restart",
			v->name, v->failure);
	else
		env_log(v->env, ENV_LOG_ERROR,
			"volume %s: disk FAILED: %s; it follows no more; replace the disk, then: "
			"offsite replace-disk %s",
			v->name, v->failure, v->name);
}

/* ---- reading where the content is ----------------------------------------------------------------- */

static struct op *op_of_remote(struct volume_origin_read *read)
{
	return (struct op *)((char *)read - offsetof(struct op, ask));
}

static void remote_done(struct volume_origin_read *read, int error)
{
	struct op *op = op_of_remote(read);
	struct volume *v = op->volume;

	if (error == -ENOTCONN && !v->closing && (leaning(v) || v->hydrate.from_store))
		queue_push(&v->wait_origin, op);
	else
		op->read_done(op, error == 0 ? 0 : error == -ENOTCONN ? -ESHUTDOWN : -EREMOTEIO);
}

static void ask_origin(struct op *op)
{
	struct volume *v = op->volume;

	if (v->hydrate.from_store && v->hydrate.origin != NULL)
		v->hydrate.origin->read(v->hydrate.origin, &op->ask);
	else if (!v->hydrate.from_store && v->tap != NULL)
		v->tap->read(v->tap, &op->ask);
	else
		queue_push(&v->wait_origin, op);
}

void origin_ask_all(struct op_queue waiting)
{
	struct op *op;

	while ((op = queue_pop(&waiting)) != NULL)
		ask_origin(op);
}

static void local_read_done(struct env_op *io, int64_t result)
{
	struct op *op = (struct op *)((char *)io - offsetof(struct op, io));

	if (--op->volume->local_io == 0 && op->volume->suspended & VOLUME_SUSPEND_FILLED)
		hydrate_pump_later(op->volume);
	op->read_done(op, result >= 0 ? 0 : result == -EREMOTEIO ? -EIO : (int)result);
}

uint32_t op_read_align(const struct volume *v)
{
	return leaning(v) && v->io_align_bytes < 512 ? 512 : v->io_align_bytes;
}

static bool is_elsewhere(const struct volume *v, uint64_t offset, uint64_t length)
{
	return v->lean == VOLUME_LEAN_DISKLESS ||
	       (v->hydrate.active && hydrate_is_missing(v, offset, length));
}

void op_read(struct op *op, uint8_t *data, size_t length, uint64_t offset,
	     void (*done)(struct op *op, int error))
{
	struct volume *v = op->volume;

	op->read_done = done;
	if (is_elsewhere(v, offset, length) || op->kind == OP_FETCH) {
		v->stats.remote_reads++;
		op->ask = (struct volume_origin_read){
			.offset_bytes = offset,
			.length_bytes = (uint32_t)length,
			.data = data,
			.done = remote_done,
		};
		ask_origin(op);
		return;
	}
	v->local_io++;
	op->io.done = local_read_done;
	env_read(v->env, &op->io, v->backing, data, length, offset);
}

/* ---- the peer comes and goes ---------------------------------------------------------------------- */

void lean_tap_changed(struct volume *v)
{
	if (v->lean == VOLUME_LEAN_SETTLING && v->tap == NULL)
		volume_settled(v, -ENOTCONN);
	if (!leaning(v))
		return;
	if (v->tap == NULL) {
		if (!(v->suspended & VOLUME_SUSPEND_ORIGIN))
			env_log(v->env, ENV_LOG_ERROR,
				"volume %s: its content is at the peer, which is away: requests "
				"wait "
				"until it is back",
				v->name);
		volume_suspend(v, VOLUME_SUSPEND_ORIGIN, true);
		return;
	}
	origin_ask_all(queue_take(&v->wait_origin));
	volume_suspend(v, VOLUME_SUSPEND_ORIGIN, false);
	hydrate_pump_later(v);
}

void lean_fail_waiting(struct volume *v, int error)
{
	struct op_queue waiting = queue_take(&v->wait_origin),
			hydrate = queue_take(&v->hydrate.wait);
	struct op *op;

	while ((op = queue_pop(&waiting)) != NULL)
		op->read_done(op, error == -ESHUTDOWN ? error : -EREMOTEIO);
	while ((op = queue_pop(&hydrate)) != NULL)
		op_complete_later(op, error);
}

void lean_check(const struct volume *v)
{
	assert(!leaning(v) || v->state.role == VOLUME_PRIMARY);
	assert((v->lean == VOLUME_LEAN_DISKLESS) == (v->state.disk == VOLUME_DISK_DISKLESS));
	assert((v->lean == VOLUME_LEAN_SETTLING) == ((v->suspended & VOLUME_SUSPEND_SETTLE) != 0));
	assert(v->lean == VOLUME_LEAN_SETTLING || v->wait_settled.first == NULL);
	assert(v->lean != VOLUME_LEAN_HYDRATING || v->hydrate.active);
	assert(!leaning(v) || v->detached || MUTATE(volume_diskless_attached));
	assert(!leaning(v) || v->tap != NULL || (v->suspended & VOLUME_SUSPEND_ORIGIN));
	assert(!v->hydrate.active || leaning(v) != v->hydrate.from_store);
	if (v->hydrate.active)
		dirty_check(&v->hydrate.missing);
}

void lean_recover(struct volume *v)
{
	if (!leaning(v))
		return;
	v->suspended |= VOLUME_SUSPEND_ORIGIN;
	if (v->lean == VOLUME_LEAN_DISKLESS) {
		v->state.disk = VOLUME_DISK_DISKLESS;
		snprintf(v->failure, sizeof(v->failure),
			 "%s: failed before; the content is at the peer", v->backing_path);
	}
	env_log(v->env, ENV_LOG_ERROR,
		"volume %s: %s: its content is at the peer: requests wait until that is here",
		v->name,
		v->lean == VOLUME_LEAN_DISKLESS ? "DISKLESS" : "its disk is not filled yet");
}
