/* SPDX-License-Identifier: Apache-2.0 */
/* The source's questions for the target's content: READ, READ_DATA. */
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "daemon/mutate.h"
#include "daemon/replication/source_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

static struct source_question *unused(struct source *source)
{
	for (unsigned i = 0; i < READS_MAX; i++)
		if (!source->questions[i].read)
			return &source->questions[i];
	return NULL;
}

static bool may_ask(const struct source *source)
{
	return source->link && (source->phase == SOURCE_MAP || source->phase == SOURCE_STREAM);
}

/* Asks what waits to be asked, as far as answers have room. */
static void ask(struct source *source)
{
	struct volume_origin_read *read;
	struct source_question *question;

	while (may_ask(source) && (read = source->reads_first) && (question = unused(source))) {
		struct buf *buf = buf_alloc(source->pool, read->length_bytes);
		if (!buf)
			return; /* what is being sent gives some back */
		source->reads_first = read->next;
		*question = (struct source_question){
			.read = read, .buf = buf, .id = ++source->question_id};
		struct frame frame = {
			.type = FRAME_READ,
			.id = question->id,
			.offset = read->offset_bytes,
			.length = read->length_bytes,
		};
		link_send(source->link, &frame, NULL, 0);
	}
}

static void ask_now(struct env_task *task)
{
	ask(container_of(task, struct source, ask_task));
}

void source_reads_init(struct source *source)
{
	source->ask_task.call = ask_now;
}

void source_read(struct source *source, struct volume_origin_read *read)
{
	assert(read->length_bytes > 0 && read->length_bytes <= FRAME_PAYLOAD_MAX);
	assert(read->offset_bytes % FRAME_ALIGN_BYTES == 0);
	assert(read->length_bytes % FRAME_ALIGN_BYTES == 0);
	assert(read->offset_bytes + read->length_bytes <= volume_size_bytes(source->volume));
	read->next = NULL;
	if (!source->reads_first)
		source->reads_first = read;
	else
		source->reads_last->next = read;
	source->reads_last = read;
	/* In a turn of its own: done() is never called from inside. */
	if (may_ask(source))
		env_defer(source->env, &source->ask_task);
	else
		env_defer(source->env, &source->pump_task);
}

void source_reads_resume(struct source *source)
{
	if (source->reads_first && may_ask(source))
		env_defer(source->env, &source->ask_task);
}

static void answer(struct source_question *question, int error)
{
	struct volume_origin_read *read = question->read;

	buf_put(question->buf);
	*question = (struct source_question){};
	read->done(read, error);
}

/* Whoever asks later begins anew: done() may do so from inside. */
void source_reads_fail(struct source *source)
{
	struct volume_origin_read *waiting = source->reads_first, *next;

	source->reads_first = source->reads_last = NULL;
	env_defer_cancel(source->env, &source->ask_task);
	for (unsigned i = 0; i < READS_MAX; i++)
		if (source->questions[i].read)
			answer(&source->questions[i], -ENOTCONN);
	for (; waiting; waiting = next) {
		next = waiting->next;
		waiting->done(waiting, -ENOTCONN);
	}
}

static struct source_question *question_of(struct source *source, const struct frame *frame)
{
	for (unsigned i = 0; i < READS_MAX; i++) {
		struct source_question *question = &source->questions[i];

		if (question->read && question->id == frame->id &&
		    question->read->offset_bytes == frame->offset &&
		    question->read->length_bytes == frame->length)
			return question;
	}
	return NULL;
}

bool source_read_admit(struct source *source, const struct frame *frame, struct buf **buf)
{
	struct source_question *question = question_of(source, frame);

	if (!question) {
		source_refuse(source, FRAME_ERROR_PROTOCOL, "READ_DATA that was not asked for");
		return false;
	}
	*buf = buf_get(question->buf);
	return true;
}

void source_read_data(struct source *source, const struct frame *frame, const void *payload)
{
	struct source_question *question = question_of(source, frame);
	int error = 0;

	if (!question) {
		source_refuse(source, FRAME_ERROR_PROTOCOL, "READ_DATA that was not asked for");
		return;
	}
	if (frame->flags & FRAME_UNREADABLE)
		error = -EIO;
	else if (frame->flags & FRAME_HOLE)
		memset(question->read->data, 0, frame->length);
	else
		memcpy(question->read->data, question->buf->data, frame->length);
	answer(question, error);
	source_reads_resume(source);
}
