/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_s3: see s3.h. The loop hands operations over under a lock; the store's thread has them from then
 * on and posts them back. Everything below "the thread" runs there alone, but while the store is
 * being opened, when the opener takes its place.
 */
#include "daemon/store/s3.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/s3_internal.h"

#define POLL_MAX_MS     60000u
#define STOP_MS         10000u
#define STOP_LOOK_MS    100u
#define PATIENCE_MS     10000u /* beyond it what went well in the end is said too */
#define SAME_MESSAGE_NS (60ull * 1000000000ull)

/* ---- the thread ------------------------------------------------------------------------------ */

static void push(struct s3_op **first, struct s3_op **last, struct s3_op *op)
{
	op->next = NULL;
	if (*first)
		(*last)->next = op;
	else
		*first = op;
	*last = op;
}

static struct s3_op *pop(struct s3_op **first)
{
	struct s3_op *op = *first;

	if (op)
		*first = op->next;
	return op;
}

static void finish(struct s3_op *op)
{
	if (op->op)
		env_post(op->s3->store.env, &op->finished);
	else if (op->type == S3_OP_SWEEP)
		s3_op_free(op); /* the store is being closed, or was stopped */
	else
		op->finished.queued = true; /* the opener looks at it */
}

static void follow(struct s3_op *op, enum s3_next next)
{
	struct s3_store *s3 = op->s3;

	switch (next) {
	case S3_NEXT_DONE:
		finish(op);
		break;
	case S3_NEXT_STEP:
		push(&s3->ready, &s3->ready_last, op);
		break;
	case S3_NEXT_AGAIN:
		op->next = s3->asleep;
		s3->asleep = op;
		break;
	}
}

static void fail(struct s3_op *op, int error)
{
	op->result = error;
	finish(op);
}

static void count(struct s3_op *op, const struct s3_request *r)
{
	struct store_counts *counts = &op->s3->counts;

	pthread_mutex_lock(&op->s3->lock);
	switch (r->method) {
	case S3_PUT:
	case S3_POST:
		counts->puts++;
		break;
	case S3_GET:
		counts->gets += r->key != NULL;
		counts->lists += r->key == NULL;
		break;
	case S3_HEAD:
		counts->heads++;
		break;
	case S3_DELETE:
		counts->deletes++;
		break;
	}
	counts->retries += op->tries > 1;
	pthread_mutex_unlock(&op->s3->lock);
}

static void count_bytes(struct s3_store *s3, CURL *easy)
{
	curl_off_t sent = 0, received = 0;

	curl_easy_getinfo(easy, CURLINFO_SIZE_UPLOAD_T, &sent);
	curl_easy_getinfo(easy, CURLINFO_SIZE_DOWNLOAD_T, &received);
	pthread_mutex_lock(&s3->lock);
	s3->counts.sent_bytes += (uint64_t)sent;
	s3->counts.received_bytes += (uint64_t)received;
	pthread_mutex_unlock(&s3->lock);
}

static void slot_start(struct s3_slot *slot, struct s3_op *op)
{
	struct s3_store *s3 = op->s3;
	struct s3_request request;
	int error;

	if (s3_access_expiring(&s3->access))
		s3_access_refresh(&s3->access);
	error = s3_op_request(op, &request);
	if (!error)
		count(op, &request);
	if (!error)
		error = s3_exchange_begin(slot->exchange, &s3->access, &request, slot);
	if (!error &&
	    curl_multi_add_handle(s3->multi, s3_exchange_easy(slot->exchange)) != CURLM_OK)
		error = -ENOMEM;
	if (error) {
		fail(op, error);
		return;
	}
	slot->op = op;
	s3->busy++;
}

static void slot_clear(struct s3_slot *slot)
{
	struct s3_store *s3 = slot->op->s3;

	curl_multi_remove_handle(s3->multi, s3_exchange_easy(slot->exchange));
	slot->op = NULL;
	s3->busy--;
}

static void start_ready(struct s3_store *s3)
{
	for (unsigned i = 0; i < s3->slot_count && s3->ready; i++)
		while (!s3->slots[i].op && s3->ready)
			slot_start(&s3->slots[i], pop(&s3->ready));
}

static void take_ended(struct s3_store *s3)
{
	CURLMsg *message;
	int left;

	while ((message = curl_multi_info_read(s3->multi, &left))) {
		struct s3_exchange *x = s3_exchange_of(message->easy_handle);
		CURLcode result = message->data.result;
		struct s3_slot *slot = s3_exchange_context(x);
		struct s3_op *op = slot->op;

		count_bytes(s3, message->easy_handle);
		slot_clear(slot);
		follow(op, s3_op_answer(op, s3_exchange_end(x, result)));
	}
}

/* Those whose pause is over. How long until the next. */
static unsigned wake(struct s3_store *s3)
{
	uint64_t now = s3_now_ms(), wait = POLL_MAX_MS;
	struct s3_op **place = &s3->asleep;

	while (*place) {
		struct s3_op *op = *place;

		if (op->wake_ms <= now) {
			*place = op->next;
			push(&s3->ready, &s3->ready_last, op);
			continue;
		}
		if (op->wake_ms - now < wait)
			wait = op->wake_ms - now;
		place = &op->next;
	}
	return (unsigned)wait;
}

/* It is throwing parts away. */
static bool may_finish(const struct s3_op *op, bool at_once)
{
	return !at_once && op->type == S3_OP_PUT && op->step == S3_STEP_ABORT;
}

/* Parts that were put are thrown away first, while there is time for it. */
static void drop(struct s3_op *op, bool at_once)
{
	if (at_once || !s3_op_drop(op, -ESHUTDOWN))
		fail(op, -ESHUTDOWN);
	else
		push(&op->s3->ready, &op->s3->ready_last, op);
}

/* Everything under way ends: now, or what has parts to throw away soon. */
static void drop_all(struct s3_store *s3, bool at_once)
{
	struct s3_op *ready = s3->ready, *asleep = s3->asleep, *op;

	s3->ready = s3->ready_last = s3->asleep = NULL;
	for (unsigned i = 0; i < s3->slot_count; i++) {
		op = s3->slots[i].op;
		if (!op || may_finish(op, at_once))
			continue;
		slot_clear(&s3->slots[i]);
		drop(op, at_once);
	}
	while ((op = pop(&ready)))
		if (may_finish(op, at_once))
			push(&s3->ready, &s3->ready_last, op);
		else
			drop(op, at_once);
	while ((op = pop(&asleep)))
		if (may_finish(op, at_once)) {
			op->next = s3->asleep;
			s3->asleep = op;
		} else {
			drop(op, at_once);
		}
}

/* What the loop has handed over. True: the store is being closed. */
static bool take_new(struct s3_store *s3)
{
	struct s3_op *op;
	bool ending, stopping;

	pthread_mutex_lock(&s3->lock);
	while ((op = pop(&s3->first))) {
		s3_op_begin(op);
		push(&s3->ready, &s3->ready_last, op);
	}
	ending = s3->ending;
	stopping = s3->stopping;
	pthread_mutex_unlock(&s3->lock);
	if ((stopping || ending) && !s3->stop_ms)
		s3->stop_ms = s3_now_ms() + STOP_MS;
	if (stopping || ending)
		drop_all(s3, ending || s3_now_ms() >= s3->stop_ms);
	return ending;
}

static void turn(struct s3_store *s3)
{
	unsigned wait_ms = wake(s3);
	int running;

	if (s3->stop_ms && (s3->busy || s3->asleep) && wait_ms > STOP_LOOK_MS)
		wait_ms = STOP_LOOK_MS;

	if (!s3->ready)
		curl_multi_poll(s3->multi, NULL, 0, (int)wait_ms, NULL);
	start_ready(s3);
	curl_multi_perform(s3->multi, &running);
	take_ended(s3);
}

static void *thread_main(void *context)
{
	struct s3_store *s3 = context;

	while (!take_new(s3))
		turn(s3);
	return NULL;
}

/* ---- the loop ------------------------------------------------------------------------------------ */

static void submit(struct s3_op *op)
{
	struct s3_store *s3 = op->s3;

	pthread_mutex_lock(&s3->lock);
	push(&s3->first, &s3->last, op);
	pthread_mutex_unlock(&s3->lock);
	curl_multi_wakeup(s3->multi);
}

/* The same trouble of many operations is one line a minute. */
static void say(struct s3_store *s3, const struct s3_op *op)
{
	uint64_t now = env_now_ns(s3->store.env);

	if (!strcmp(op->message, s3->last_message) && now - s3->last_message_ns < SAME_MESSAGE_NS)
		return;
	memcpy(s3->last_message, op->message, sizeof(s3->last_message));
	s3->last_message_ns = now;
	env_log(s3->store.env, ENV_LOG_WARNING, "store s3://%s: %s: %s%s", s3->url.bucket, op->key,
		op->result < 0 ? "" : "went well in the end, after: ", op->message);
}

static void give_page(struct s3_op *op)
{
	for (size_t i = 0; i < op->found_count; i++) {
		struct store_object object = {op->found[i].name, op->found[i].size_bytes,
					      op->found[i].archive};

		op->each(op->context, &object);
		free(op->found[i].name);
	}
	op->listed += (int64_t)op->found_count;
	op->found_count = 0;
	op->result = op->listed;
}

static void op_finished(struct env_task *task)
{
	struct s3_op *s3_op = (struct s3_op *)task;
	struct s3_store *s3 = s3_op->s3;
	struct env_op *op = s3_op->op;
	int64_t result;

	if (s3_op->type == S3_OP_LIST && !s3_op->result) {
		give_page(s3_op);
		if (s3_op->more) {
			submit(s3_op);
			return;
		}
	}
	result = s3_op->result;
	if (s3_op->message[0] && (result < 0 || s3_now_ms() - s3_op->begun_ms > PATIENCE_MS))
		say(s3, s3_op);
	s3_op_free(s3_op);
	s3->under_way--;
	op->done(op, result);
}

static struct s3_op *op_new(struct store *store, enum s3_op_type type, struct env_op *op,
			    const char *name)
{
	struct s3_store *s3 = (struct s3_store *)store;
	struct s3_op *s3_op = s3_op_new(s3, type, name);

	s3_op->op = op;
	s3_op->finished.call = op_finished;
	s3->under_way++;
	return s3_op;
}

/* Names that are none are refused without a request. */
static void submit_named(struct s3_op *op, const char *name)
{
	if (store_name_valid(name)) {
		submit(op);
		return;
	}
	op->result = -EINVAL;
	env_defer(op->s3->store.env, &op->finished);
}

static void s3_put_retained(struct store *store, struct env_op *op, const char *name,
			    const struct iovec *iov, unsigned count,
			    const struct store_retention *retention)
{
	struct s3_op *s3_op = op_new(store, S3_OP_PUT, op, name);
	uint64_t random[2];

	env_random(store->env, random, sizeof(random));
	snprintf(s3_op->token, sizeof(s3_op->token), "%016llx%016llx",
		 (unsigned long long)random[0], (unsigned long long)random[1]);
	s3_op->iov = iov;
	s3_op->iov_count = count;
	s3_op->retention = *retention;
	for (unsigned i = 0; i < count; i++)
		s3_op->size_bytes += iov[i].iov_len;
	submit_named(s3_op, name);
}

static void s3_put(struct store *store, struct env_op *op, const char *name,
		   const struct iovec *iov, unsigned count)
{
	static const struct store_retention none = {.lock = STORE_LOCK_NONE};

	s3_put_retained(store, op, name, iov, count, &none);
}

static void s3_get(struct store *store, struct env_op *op, const char *name, void *buf,
		   size_t length, uint64_t offset)
{
	/* A range cannot be empty: only whether the object is there can be told. */
	struct s3_op *s3_op = op_new(store, length ? S3_OP_READ : S3_OP_SIZE, op, name);

	s3_op->buf = buf;
	s3_op->length = length;
	s3_op->offset = offset;
	submit_named(s3_op, name);
}

static void s3_size(struct store *store, struct env_op *op, const char *name)
{
	submit_named(op_new(store, S3_OP_SIZE, op, name), name);
}

static void s3_list_after(struct store *store, struct env_op *op, const char *prefix,
			  const char *after,
			  void (*each)(void *context, const struct store_object *object),
			  void *context)
{
	struct s3_op *s3_op = op_new(store, S3_OP_LIST, op, prefix);
	size_t length = strlen(prefix);
	char *name = strdup(prefix);

	assert(name);
	if (*after && asprintf(&s3_op->from, "%s%s", s3_op->s3->url.prefix, after) < 0)
		abort();
	s3_op->each = each;
	s3_op->context = context;
	if (length && name[length - 1] == '/')
		name[length - 1] = '\0';
	else if (length)
		name[0] = '\0'; /* refused */
	if (length)
		submit_named(s3_op, name);
	else
		submit(s3_op);
	free(name);
}

static void s3_list(struct store *store, struct env_op *op, const char *prefix,
		    void (*each)(void *context, const struct store_object *object), void *context)
{
	s3_list_after(store, op, prefix, "", each, context);
}

static void s3_delete(struct store *store, struct env_op *op, const char *name)
{
	submit_named(op_new(store, S3_OP_DELETE, op, name), name);
}

static void s3_retain(struct store *store, struct env_op *op, const char *name,
		      const struct store_retention *retention)
{
	struct s3_op *s3_op = op_new(store, S3_OP_RETAIN, op, name);

	s3_op->retention = *retention;
	submit_named(s3_op, name);
}

static void s3_retained(struct store *store, struct env_op *op, const char *name)
{
	submit_named(op_new(store, S3_OP_RETAINED, op, name), name);
}

static void s3_thaw(struct store *store, struct env_op *op, const char *name)
{
	submit_named(op_new(store, S3_OP_THAW, op, name), name);
}

static void s3_thawed(struct store *store, struct env_op *op, const char *name)
{
	submit_named(op_new(store, S3_OP_THAWED, op, name), name);
}

/* What Amazon promises. */
static uint64_t s3_thaw_ns(struct store *store, const char *archive)
{
	static const uint64_t minutes[2][3] = {{300, 720, 5}, {720, 2880, 720}};
	const struct s3_store *s3 = (struct s3_store *)store;

	return minutes[!strcmp(archive, "DEEP_ARCHIVE")][s3->url.tier] * 60 * 1000000000ull;
}

static void s3_free(struct s3_store *s3)
{
	for (unsigned i = 0; s3->slots && i < s3->slot_count; i++)
		s3_exchange_free(s3->slots[i].exchange);
	free(s3->slots);
	if (s3->multi)
		curl_multi_cleanup(s3->multi);
	s3_access_free(&s3->access);
	s3_url_free(&s3->url);
	pthread_mutex_destroy(&s3->lock);
	free(s3->url_text);
	free(s3);
}

static void set_flag(struct s3_store *s3, bool *flag)
{
	pthread_mutex_lock(&s3->lock);
	*flag = true;
	pthread_mutex_unlock(&s3->lock);
	curl_multi_wakeup(s3->multi);
}

static void s3_stop(struct store *store)
{
	struct s3_store *s3 = (struct s3_store *)store;

	set_flag(s3, &s3->stopping);
}

static void s3_counts(struct store *store, struct store_counts *counts)
{
	struct s3_store *s3 = (struct s3_store *)store;

	pthread_mutex_lock(&s3->lock);
	*counts = s3->counts;
	pthread_mutex_unlock(&s3->lock);
}

static void s3_close(struct store *store)
{
	struct s3_store *s3 = (struct s3_store *)store;

	assert(!s3->under_way);
	set_flag(s3, &s3->ending);
	pthread_join(s3->thread, NULL);
	s3_free(s3);
}

static const struct store_ops s3_ops = {
	.put = s3_put,
	.get = s3_get,
	.size = s3_size,
	.list = s3_list,
	.delete = s3_delete,
	.put_retained = s3_put_retained,
	.retain = s3_retain,
	.retained = s3_retained,
	.list_after = s3_list_after,
	.thaw = s3_thaw,
	.thawed = s3_thawed,
	.thaw_ns = s3_thaw_ns,
	.stop = s3_stop,
	.counts = s3_counts,
	.close = s3_close,
};

/* ---- opening --------------------------------------------------------------------------------------- */

static void global_init(void)
{
	curl_global_init(CURL_GLOBAL_ALL);
}

static int open_handles(struct s3_store *s3)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, global_init);
	s3->multi = curl_multi_init();
	s3->slots = calloc(s3->url.connections, sizeof(*s3->slots));
	if (!s3->multi || !s3->slots)
		return -ENOMEM;
	s3->slot_count = s3->url.connections;
	for (unsigned i = 0; i < s3->slot_count; i++)
		if (!(s3->slots[i].exchange = s3_exchange_new()))
			return -ENOMEM;
	curl_multi_setopt(s3->multi, CURLMOPT_MAXCONNECTS, (long)s3->slot_count);
	return 0;
}

/* Asks for one name: address, credentials, bucket and region are right, or why not. */
static int probe(struct s3_store *s3, char *why, size_t why_size)
{
	struct s3_op *op = s3_op_new(s3, S3_OP_PROBE, "");
	sigset_t pipe, before;
	int error;

	sigemptyset(&pipe);
	sigaddset(&pipe, SIGPIPE);
	pthread_sigmask(SIG_BLOCK, &pipe, &before);
	s3_op_begin(op);
	push(&s3->ready, &s3->ready_last, op);
	while (!op->finished.queued)
		turn(s3);
	sigtimedwait(&pipe, NULL, &(struct timespec){0});
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	error = (int)op->result;
	if (error)
		snprintf(why, why_size, "%s", op->message[0] ? op->message : store_strerror(error));
	s3_op_free(op);
	return error;
}

static int start_thread(struct s3_store *s3)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = -pthread_create(&s3->thread, NULL, thread_main, s3);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return error;
}

static int s3_open(struct s3_store *s3, char *why, size_t why_size)
{
	int error = s3_url_parse(s3->url_text, &s3->url, why, why_size);

	if (!error)
		error = open_handles(s3);
	if (!error)
		error = s3_access_init(&s3->access, &s3->url, why, why_size);
	if (!error)
		error = probe(s3, why, why_size);
	if (!error)
		error = start_thread(s3);
	return error;
}

int store_s3_open(struct env *env, const char *url, struct store **store, char *why,
		  size_t why_size)
{
	struct s3_store *s3 = calloc(1, sizeof(*s3));
	char reason[512] = "";
	int error;

	*store = NULL;
	if (!s3 || !(s3->url_text = strdup(url))) {
		free(s3);
		snprintf(why, why_size, "store %.160s: out of memory", url);
		return -ENOMEM;
	}
	pthread_mutex_init(&s3->lock, NULL);
	error = s3_open(s3, reason, sizeof(reason));
	if (error) {
		snprintf(why, why_size, "store %.160s: %s", url,
			 reason[0] ? reason : store_strerror(error));
		s3_free(s3);
		return error;
	}
	s3->store =
		(struct store){.ops = &s3_ops, .env = env, .url = s3->url_text, .lists_cost = true};
	submit(s3_op_new(s3, S3_OP_SWEEP, ""));
	*store = &s3->store;
	return 0;
}
