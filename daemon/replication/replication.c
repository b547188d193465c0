/* SPDX-License-Identifier: Apache-2.0 */
/* One volume's replication: states, connecting with backoff, operator's verbs, status. */
#include "daemon/replication/replication.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/replication/replication_internal.h"

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

enum {
	BACKOFF_FIRST_MS = 100,
	AT_ONCE_MS = 20,
};

#define S(x) (1u << REPLICATION_##x)
static const struct {
	const char *name;
	unsigned next; /* allowed */
} states[] = {
	[REPLICATION_STANDALONE] = {"standalone", S(CONNECTING)},
	[REPLICATION_CONNECTING] = {"connecting", S(STANDALONE) | S(HANDSHAKE)},
	[REPLICATION_HANDSHAKE] = {"handshake",
				   S(STANDALONE) | S(CONNECTING) | S(IDLE) | S(CATCH_UP)},
	[REPLICATION_IDLE] = {"idle", S(STANDALONE) | S(CONNECTING)},
	[REPLICATION_CATCH_UP] = {"catch-up", S(STANDALONE) | S(CONNECTING) | S(STREAMING)},
	[REPLICATION_STREAMING] = {"streaming", S(STANDALONE) | S(CONNECTING) | S(CATCH_UP)},
};

const char *replication_state_name(enum replication_state state)
{
	return states[state].name;
}

void replication_set_state(struct replication *r, enum replication_state state)
{
	if (r->state == state)
		return;
	assert(states[r->state].next & 1u << state);
	env_log(r->env, ENV_LOG_DEBUG, "replication: volume %s: %s -> %s", volume_name(r->volume),
		states[r->state].name, states[state].name);
	r->state = state;
	reference_state_changed(r);
}

/* ---- connecting ----------------------------------------------------------------------------- */

bool replication_may_connect(const struct replication *r)
{
	bool trying = r->state == REPLICATION_CONNECTING || r->probing;

	return trying && !r->link && !r->stopping && !r->recovering && sink_is_idle(r->sink) &&
	       source_is_idle(r->source) && verify_is_idle(r->verify);
}

static void connect_done(struct env_op *op, int64_t result)
{
	struct replication *r = container_of(op, struct replication, connect_op);
	char why[256];

	r->connect_busy = false;
	bool wanted = !r->connect_abandoned && replication_may_connect(r);
	bool probing = r->probing;
	r->probing = r->connect_abandoned = false;
	if (result < 0 && probing) {
		split_probe_later(r);
	} else if (result < 0) {
		snprintf(why, sizeof(why), "peer %s: %s", r->peer_addr, strerror((int)-result));
		if (wanted)
			replication_lost(r, false, false, why);
	} else if (!wanted) {
		env_sock_close(r->env, r->connect_sock);
	} else {
		struct stream *stream = stream_new(r->env, r->connect_sock);
		if (stream)
			session_open(r, stream);
		else
			env_sock_close(r->env, r->connect_sock);
	}
	r->connect_sock = NULL;
	if (r->stopping)
		env_defer(r->env, &r->end_task);
	else if (!r->link)
		replication_retry(r);
}

void replication_dial(struct replication *r)
{
	if (!replication_may_connect(r) || !r->peer_addr || r->connect_busy)
		return;
	r->connect_busy = true;
	env_connect(r->env, &r->connect_op, r->peer_addr, &r->connect_sock);
}

static void retry_fire(struct env_timer *timer)
{
	replication_dial(container_of(timer, struct replication, retry_timer));
}

/* Starts the timer for the next attempt unless it runs or nothing is to be done. */
void replication_retry(struct replication *r)
{
	uint16_t jitter;

	if (!replication_may_connect(r) || !r->peer_addr || r->connect_busy ||
	    env_timer_active(&r->retry_timer))
		return;
	env_random(r->env, &jitter, sizeof(jitter));
	uint64_t delay_ns = (r->backoff_ms ? r->backoff_ms : AT_ONCE_MS) * 1000000ull;
	delay_ns = delay_ns / 2 + delay_ns / 2 * jitter / UINT16_MAX;
	r->backoff_ms = r->backoff_ms ? r->backoff_ms * 2 : BACKOFF_FIRST_MS;
	if (r->backoff_ms > r->config.connect_retry_max_ms)
		r->backoff_ms = r->config.connect_retry_max_ms;
	env_timer_start(r->env, &r->retry_timer, delay_ns);
}

static void say(struct replication *r, const char *why)
{
	bool again = strcmp(r->logged, why) == 0;

	snprintf(r->logged, sizeof(r->logged), "%s", why);
	env_log(r->env, again ? ENV_LOG_DEBUG : ENV_LOG_WARNING, "replication: volume %s: %s",
		volume_name(r->volume), why);
}

void replication_lost(struct replication *r, bool final, bool at_once, const char *why)
{
	assert(!r->link);
	if (*why) {
		say(r, why);
		snprintf(r->refusal, sizeof(r->refusal), "%s", why);
	}
	if (r->stopping)
		return;
	restore_disk_failed(r);
	if (final) {
		yield_settled(r);
		if (r->state != REPLICATION_STANDALONE)
			replication_set_state(r, REPLICATION_STANDALONE);
		split_parted(r);
		restore_finish(r, -EPERM, why);
		return;
	}
	if (r->state == REPLICATION_HANDSHAKE)
		replication_set_state(r, REPLICATION_CONNECTING);
	if (at_once)
		r->backoff_ms = 0;
	replication_retry(r);
}

static void drop_now(struct env_task *task)
{
	struct replication *r = container_of(task, struct replication, drop_task);
	enum frame_error code = r->drop_code;
	char text[FRAME_ERROR_TEXT_MAX + 1];

	if (!code)
		return;
	memcpy(text, r->drop_text, sizeof(text));
	session_end(r, code, text);
	bool closing = code == FRAME_ERROR_CLOSING;
	replication_lost(r, frame_error_is_final(code), closing, closing ? "" : text);
}

/* May be called from anywhere inside a connection's callbacks. */
void replication_refuse(struct replication *r, enum frame_error code, const char *text)
{
	if (!r->link || r->drop_code)
		return;
	r->drop_code = code;
	snprintf(r->drop_text, sizeof(r->drop_text), "%s", text);
	env_defer(r->env, &r->drop_task);
}

/* ---- life ----------------------------------------------------------------------------------- */

static void free_memory(struct replication *r)
{
	if (r->sink)
		sink_free(r->sink);
	if (r->verify)
		verify_free(r->verify);
	if (r->source)
		source_free(r->source);
	if (r->pool)
		buf_pool_free(r->pool);
	free(r->peer_addr);
	free(r);
}

static void end(struct env_task *task)
{
	struct replication *r = container_of(task, struct replication, end_task);

	if (!r->stopping || r->resize.growing || r->connect_busy || r->flushing ||
	    !plan_is_idle(r) || r->links || !source_is_idle(r->source) ||
	    !verify_is_idle(r->verify) || !sink_is_quiet(r->sink))
		return;
	void (*freed)(void *) = r->freed;
	void *context = r->freed_context;
	env_timer_stop(r->env, &r->retry_timer);
	env_timer_stop(r->env, &r->state_timer);
	env_timer_stop(r->env, &r->probe_timer);
	env_defer_cancel(r->env, &r->drop_task);
	env_defer_cancel(r->env, &r->give_up_task);
	free_memory(r);
	if (freed)
		freed(context);
}

static void set_defaults(struct replication *r)
{
	struct replication_config *c = &r->config;

	c->send_queue_max_bytes = c->send_queue_max_bytes ? c->send_queue_max_bytes : 32u << 20;
	c->final_cut_max_bytes = c->final_cut_max_bytes ? c->final_cut_max_bytes : 64u << 20;
	c->ping_interval_ms = c->ping_interval_ms ? c->ping_interval_ms : 5000;
	c->peer_timeout_ms = c->peer_timeout_ms ? c->peer_timeout_ms : 15000;
	c->connect_retry_max_ms = c->connect_retry_max_ms ? c->connect_retry_max_ms : 5000;
	r->link_config = (struct link_config){c->ping_interval_ms, c->peer_timeout_ms};
}

static int make_parts(struct replication *r, char *why, size_t why_size)
{
	/* Frames on their way in, and blocks of a cut on their way out: 48 MiB at most. */
	r->pool = buf_pool_new((unsigned[3]){512, 128, 40});
	if (!r->pool) {
		snprintf(why, why_size, "no memory");
		return -ENOMEM;
	}
	r->source = source_new(r->volume, r->pool, r->config.send_queue_max_bytes,
			       r->config.final_cut_max_bytes, &replication_source_ops, r);
	if (!r->source) {
		snprintf(why, why_size, "no memory");
		return -ENOMEM;
	}
	source_configure(r->source, r->config.peer_timeout_ms, r->config.suspend_on_loss);
	source_set_pace(r->source, &r->config.pace);
	r->verify = verify_new(r->volume, r->source, r->pool, session_verify_idle, r);
	if (!r->verify) {
		snprintf(why, why_size, "no memory");
		return -ENOMEM;
	}
	int error = sink_new(r->volume, r->pool, r->config.staging_max_bytes, &replication_sink_ops,
			     r, &r->sink, why, why_size);
	if (!error)
		error = restore_load(r, why, why_size);
	return error ? error : split_load(r, why, why_size);
}

int replication_new(struct volume *volume, const struct replication_config *config, bool connect,
		    struct replication **replication, char *why, size_t why_size)
{
	if (strlen(config->node_name) >= HELLO_NAME_BYTES ||
	    strlen(volume_name(volume)) >= HELLO_NAME_BYTES) {
		snprintf(why, why_size, "volume %s: name of node or volume longer than %d bytes",
			 volume_name(volume), HELLO_NAME_BYTES - 1);
		return -EINVAL;
	}
	struct replication *r = calloc(1, sizeof(*r));
	if (!r || (config->peer_addr && !(r->peer_addr = strdup(config->peer_addr)))) {
		free(r);
		snprintf(why, why_size, "no memory");
		return -ENOMEM;
	}
	r->volume = volume;
	r->env = volume_env(volume);
	r->config = *config;
	snprintf(r->node_name, sizeof(r->node_name), "%s", config->node_name);
	r->config.node_name = r->node_name;
	r->config.peer_addr = r->peer_addr;
	set_defaults(r);
	r->connect_op.done = connect_done;
	r->retry_timer.fire = retry_fire;
	r->drop_task.call = drop_now;
	r->end_task.call = end;
	session_init(r);
	contact_init(r);
	split_init(r);
	resize_init(r);
	reference_init(r);
	env_random(r->env, &r->instance, sizeof(r->instance));
	int error = make_parts(r, why, why_size);
	if (error) {
		free_memory(r);
		return error;
	}
	r->operator_off = !connect;
	yield_init(r);
	r->state = connect ? REPLICATION_CONNECTING : REPLICATION_STANDALONE;
	r->recovering = true;
	sink_recover(r->sink, r->wants);
	*replication = r;
	return 0;
}

void replication_free(struct replication *r, void (*freed)(void *context), void *context)
{
	session_end(r, FRAME_ERROR_CLOSING, "shutting down");
	r->stopping = true;
	r->freed = freed;
	r->freed_context = context;
	env_timer_stop(r->env, &r->retry_timer);
	yield_stop(r);
	plan_stop(r);
	resize_stop(r);
	restore_finish(r, -ECANCELED, "shutting down");
	source_loss_stop(r->source);
	sink_stop(r->sink);
	env_defer(r->env, &r->end_task);
}

/* ---- operator's verbs ----------------------------------------------------------------------- */

int replication_connect(struct replication *r, char *why, size_t why_size)
{
	if (r->stopping) {
		snprintf(why, why_size, "shutting down");
		return -ESHUTDOWN;
	}
	r->operator_off = false;
	if (r->link)
		return 0;
	r->refusal[0] = r->logged[0] = 0;
	r->backoff_ms = 0;
	if (r->state == REPLICATION_STANDALONE)
		replication_set_state(r, REPLICATION_CONNECTING);
	env_timer_stop(r->env, &r->retry_timer);
	replication_retry(r);
	return 0;
}

int replication_disconnect(struct replication *r, char *why, size_t why_size)
{
	int error = source_go_alone(r->source);
	if (error) {
		snprintf(why, why_size, "volume %s: %s", volume_name(r->volume), strerror(-error));
		return error;
	}
	r->operator_off = true;
	contact_left(r);
	session_end(r, FRAME_ERROR_STANDALONE, "disconnected by the operator");
	yield_settled(r);
	if (r->connect_busy)
		r->connect_abandoned = true;
	env_timer_stop(r->env, &r->retry_timer);
	if (r->state != REPLICATION_STANDALONE)
		replication_set_state(r, REPLICATION_STANDALONE);
	r->refusal[0] = 0;
	restore_finish(r, -ECANCELED, "disconnected by the operator");
	return 0;
}

void replication_forget_transfer(struct replication *r)
{
	if (!r->link && source_is_idle(r->source))
		source_forget_transfer(r->source);
}

int replication_resume(struct replication *r, char *why, size_t why_size)
{
	struct source_status source;

	if (volume_leans(r->volume)) {
		snprintf(why, why_size,
			 "volume %s: its content is at the peer: nothing goes on without it",
			 volume_name(r->volume));
		return -EPERM;
	}
	source_get_status(r->source, &source);
	if (!source.waiting) {
		snprintf(why, why_size, "volume %s: its requests do not wait for the peer",
			 volume_name(r->volume));
		return -EPERM;
	}
	int error = source_go_alone(r->source);
	if (error)
		snprintf(why, why_size, "volume %s: not resumed: %s", volume_name(r->volume),
			 strerror(-error));
	return error;
}

void replication_set_protocol(struct replication *r, enum replication_protocol protocol)
{
	r->config.protocol = protocol;
	source_set_protocol(r->source, protocol);
}

void replication_role_changed(struct replication *r)
{
	if (r->stopping)
		return;
	session_end(r, FRAME_ERROR_CLOSING, "its role or state changed");
	sink_forget_transfer(r->sink);
	source_role_changed(r->source);
	restore_void_if_promoted(r);
	if (r->operator_off)
		return;
	if (r->state == REPLICATION_STANDALONE)
		replication_set_state(r, REPLICATION_CONNECTING);
	r->refusal[0] = 0;
	r->backoff_ms = 0;
	env_timer_stop(r->env, &r->retry_timer);
	replication_retry(r);
}

void replication_set_pace(struct replication *r, const struct pace_options *pace)
{
	r->config.pace = *pace;
	source_set_pace(r->source, pace);
}

bool replication_applying(const struct replication *r)
{
	return r->recovering || sink_is_applying(r->sink);
}

void replication_at_rest(struct replication *r, void (*rest)(void *context, int error),
			 void *context)
{
	sink_at_rest(r->sink, rest, context);
}

void replication_read(struct replication *r, struct volume_origin_read *read)
{
	source_read(r->source, read);
}

int replication_verify(struct replication *r, const char *repair_from, uint64_t rate, char *why,
		       size_t why_size)
{
	const char *name = volume_name(r->volume), *peer = r->peer.node;
	enum verify_repair repair = VERIFY_REPAIR_NONE;
	struct volume_state state;

	volume_get_state(r->volume, &state);
	if (state.role != VOLUME_PRIMARY) {
		snprintf(why, why_size, "volume %s is secondary on this node: verify it on %s",
			 name, *peer ? peer : "the primary");
		return -EPERM;
	}
	if (state.disk != VOLUME_DISK_UPTODATE || !volume_is_whole(r->volume)) {
		snprintf(why, why_size, "volume %s: its disk is %s", name,
			 state.disk == VOLUME_DISK_UPTODATE ? "being filled"
							    : volume_disk_state_name(state.disk));
		return -EPERM;
	}
	if (r->state != REPLICATION_STREAMING || r->session != SESSION_SOURCE) {
		snprintf(why, why_size, "volume %s: the peer is not in sync (%s)", name,
			 states[r->state].name);
		return -EPERM;
	}
	if (repair_from && strcmp(repair_from, r->node_name) == 0) {
		repair = VERIFY_REPAIR_FROM_HERE;
	} else if (repair_from && strcmp(repair_from, peer) == 0) {
		repair = VERIFY_REPAIR_FROM_PEER;
	} else if (repair_from) {
		snprintf(why, why_size, "repair from %s: the nodes are %s (this one) and %s",
			 repair_from, r->node_name, peer);
		return -EINVAL;
	}
	int error =
		verify_start(r->verify, repair, rate == UINT64_MAX ? r->config.verify_rate : rate);
	if (error)
		snprintf(why, why_size, "volume %s: %s", name,
			 error == -EBUSY ? "a verification is under way" : strerror(-error));
	return error;
}

int replication_verify_cancel(struct replication *r, char *why, size_t why_size)
{
	int error = verify_cancel(r->verify);

	if (error)
		snprintf(why, why_size, "volume %s: no verification is under way",
			 volume_name(r->volume));
	return error ? -EALREADY : 0;
}

void replication_get_verify(const struct replication *r, struct verify_status *status)
{
	verify_get_status(r->verify, status);
}

/* ---- status --------------------------------------------------------------------------------- */

void replication_get_status(const struct replication *r, struct replication_status *status)
{
	struct source_status source;
	struct sink_status sink;
	bool sends = r->session == SESSION_SOURCE;

	source_get_status(r->source, &source);
	sink_get_status(r->sink, &sink);
	*status = (struct replication_status){
		.state = r->state,
		.source = sends,
		.protocol = r->config.protocol,
		.peer_role = (enum volume_role)r->peer.role,
		.peer_disk = (enum volume_disk_state)r->peer.disk,
		.sent_lsn = sends ? source.sent_lsn : sink.received_lsn,
		.acked_lsn = sends ? source.acked_lsn : sink.durable_lsn,
		.unacked_bytes = source.unacked_bytes,
		.stream_limit = source.stream_limit,
		.catch_up_limit = source.catch_up_limit,
		.catch_up_reason = source.catch_up_reason,
		.write_p99_ns = source.write_p99_ns,
		.write_baseline_ns = source.write_baseline_ns,
		.held = source.held,
		.holds = source.holds,
		.left_stream = source.left,
		.waiting = source.waiting,
		.waiting_since_ns = source.waiting_since_ns,
		.out_of_sync_bytes = volume_dirty_bytes(r->volume, VOLUME_PEER),
		.resumes = source.resumes,
		.in_place = sends ? source.in_place : sink.in_place,
		.target_staging_max_bytes = sends ? source.room_bytes : 0,
		.unreadable_bytes = sends ? source.unreadable_bytes : 0,
		.unreadable_offset = sends ? source.unreadable_offset : 0,
		.catch_up_done_bytes = sends ? source.cut_done_bytes : sink.cut_done_bytes,
		.catch_up_total_bytes = sends ? source.cut_total_bytes : sink.cut_total_bytes,
		.catch_up_started_ns = sends ? source.cut_started_ns : sink.cut_started_ns,
		.compare_total_bytes = source.compare_total_bytes,
		.compared_bytes = source.compare.compared_bytes,
		.compare_differ_bytes = source.compare.differ_bytes,
		.compare_read_bytes = source.compare.read_bytes,
		.compare_skipped_bytes = source.compare.skipped_bytes,
		.cuts = sink.cuts + source.cuts,
		.sent_bytes = r->sent_bytes,
		.received_bytes = r->received_bytes,
		.staged_bytes = sink.staged_bytes,
		.connects = r->connects,
		.disconnects = r->disconnects,
		.full_syncs = r->full_syncs,
		.split_brain = r->is_split,
		.split_since_ns = r->split.since_ns,
		.starting = r->starting,
		.wants = r->wants,
		.stepped_down_ns = r->stepped_down_ns,
		.rolled_back_ns = r->rolled_back_ns,
		.rolled_back_bytes = r->rolled_back.bytes,
		.rolled_back_extents = r->rolled_back.count,
	};
	if (r->has_heard) {
		status->peer_role = (enum volume_role)r->heard.role;
		status->peer_disk = (enum volume_disk_state)r->heard.disk;
		status->peer_suspended = r->heard.flags & FRAME_STATE_SUSPENDED;
	}
	status->peer_known = r->link && r->session >= SESSION_SOURCE;
	status->seen_ns = r->seen_ns;
	status->seen_role = r->seen_role;
	status->seen_disk = r->seen_disk;
	struct volume_state state;
	volume_get_state(r->volume, &state);
	if (sends || state.role == VOLUME_PRIMARY) {
		status->lag_bytes = source.lag_bytes;
		status->lag_ns = source.lag_ns;
		status->lag_over =
			pace_over(&r->config.pace.bound, source.lag_bytes, source.lag_ns);
	} else {
		contact_lag(r, &status->lag_bytes, &status->lag_ns);
	}
	if (r->state == REPLICATION_STREAMING) /* in sync since: the peer's disk followed */
		status->peer_disk = VOLUME_DISK_UPTODATE;
	status->split_peer_bytes = r->split.peer_bytes;
	snprintf(status->split_peer, sizeof(status->split_peer), "%s", r->split.node);
	snprintf(status->peer_name, sizeof(status->peer_name), "%s", r->peer.node);
	snprintf(status->refusal, sizeof(status->refusal), "%s", r->refusal);
	if (!r->link) {
		snprintf(status->peer_addr, sizeof(status->peer_addr), "%s",
			 r->peer_addr ? r->peer_addr : "");
		return;
	}
	snprintf(status->peer_addr, sizeof(status->peer_addr), "%s", link_peername(r->link));
	status->tls = link_is_tls(r->link);
	status->queue_bytes = link_queue_bytes(r->link);
	status->sent_bytes += link_sent_bytes(r->link);
	status->received_bytes += link_received_bytes(r->link);
}

void replication_brace(struct replication *r)
{
	r->braced = true;
	buf_pool_brace(r->pool, (unsigned[3]){128, 64, 16});
	source_brace(r->source);
	if (r->link)
		link_brace(r->link);
}

void replication_check(const struct replication *r)
{
	source_check(r->source);
	sink_check(r->sink);
	verify_check(r->verify);
	reference_check(r);
	if (r->link)
		link_check(r->link);
	assert((r->link != NULL) == (r->session != SESSION_NONE));
	assert((r->link != NULL) == (r->state >= REPLICATION_HANDSHAKE));
	assert(r->state != REPLICATION_IDLE || r->session == SESSION_IDLE);
	assert(r->state < REPLICATION_CATCH_UP || r->session == SESSION_SOURCE ||
	       r->session == SESSION_SINK);
	assert(!r->operator_off || r->state == REPLICATION_STANDALONE);
	assert(!r->restore_done || r->wants || r->asking);
	assert(!r->asking || r->restore_done);
}
