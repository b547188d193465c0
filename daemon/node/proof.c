// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/proof.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "daemon/node/hook.h"
#include "daemon/node/refusal.h"
#include "daemon/replication/record.h"

#define NS_PER_S       1000000000ull
#define LOOK_MAX_NS    (60 * NS_PER_S)
#define AGAIN_MAX_NS   (3600 * NS_PER_S) /* a failed one is repeated so soon at the latest */
#define ROOM_MARGIN    (16ull << 20)
#define VANISHED_MAX   3u
#define VARIABLE_BYTES 4200u

/*
 *  step       what is under way                                              next
 *  IDLE       nothing                                                        OPENING, CLEANING
 *  OPENING    on a helper: leftovers go, the store is opened                 LISTING, CLEANING
 *  LISTING    which snapshot                                                 ROOM, CLEANING
 *  ROOM       on a helper: is there space for it?                            RESTORING, CLEANING
 *  RESTORING  to the scratch file                                            CHECKING, LISTING, CLEANING
 *  CHECKING   the operator's program                                         CLEANING
 *  CLEANING   on a helper: the file goes, the store is closed                IDLE
 */
enum step { IDLE, OPENING, LISTING, ROOM, RESTORING, CHECKING, CLEANING };

struct proof {
	struct node_volume *volume;
	enum step step;
	bool stopping, abandoned;
	bool waiting;           /* for the cleaning at the start */
	struct env_timer timer; /* the schedule */
	uint64_t not_before_ns; /* monotonic; there was nothing to be proven */

	/* one trial */
	struct id128 uuid, wanted; /* wanted: zero: the newest */
	struct store *store;
	struct snapshot_repo *repo;
	struct env_work work;
	struct snapshot_info info;   /* sequence 0: none found */
	struct snapshot_infos infos; /* of a listing under way, for the newest */
	bool recheck, listed;        /* whether info.id is still there is asked; it is */
	unsigned vanished;
	char *path;
	uint64_t started_ns; /* monotonic */
	struct rate_limit rate;
	struct hook hook;
	char variables[5][VARIABLE_BYTES];
	int error;
	char why[300];
	void (*progress)(void *context, const struct snapshot_progress *progress);
	node_done_fn done;
	void *context;
};

static void list(struct proof *p);
static void clean(struct proof *p);
static void begin(struct proof *p);

static struct env *env_of(const struct proof *p)
{
	return node_env(p->volume->node);
}

static const struct config_volume *config_of(const struct proof *p)
{
	return p->volume->config;
}

static struct proof *of_work(struct env_work *work)
{
	return (struct proof *)((char *)work - offsetof(struct proof, work));
}

static void fail(struct proof *p, int error, const char *why)
{
	if (p->error)
		return;
	p->error = error;
	snprintf(p->why, sizeof(p->why), "%s", why);
}

/* ---- the record ------------------------------------------------------------------------------- */

static void load_record(struct proof *p)
{
	struct proof_wire wire;
	const char *invalid;
	int error = record_read(p->volume->volume, "proof", &wire, sizeof(wire));

	if (error == -ENOENT)
		return;
	invalid = error ? strerror(-error) : proof_decode(&wire, &p->volume->proof);
	if (invalid)
		env_log(env_of(p), ENV_LOG_WARNING, "volume %s: record of the last proof: %s",
			config_of(p)->name, invalid);
}

static void store_record(struct proof *p)
{
	struct proof_record *record = &p->volume->proof;
	struct proof_wire wire;
	char id[ID128_TEXT_BYTES];
	int error;

	record->tried = p->info.sequence ? p->info.id : (struct id128){};
	record->tried_ns = env_realtime_ns(env_of(p));
	record->error = p->error;
	snprintf(record->why, sizeof(record->why), "%.*s", (int)sizeof(record->why) - 1, p->why);
	if (!p->error) {
		record->proven = p->info.id;
		record->proven_ns = record->tried_ns;
		record->created_ns = p->info.created_ns;
		record->duration_ns = env_now_ns(env_of(p)) - p->started_ns;
		record->size_bytes = p->info.size_bytes;
	}
	id128_format(&p->info.id, id);
	if (p->error)
		env_log(env_of(p), ENV_LOG_ERROR, "volume %s: not proven restorable: %s",
			config_of(p)->name, p->why);
	else
		env_log(env_of(p), ENV_LOG_INFO,
			"volume %s: snapshot %s proven restorable, in %.1f s", config_of(p)->name,
			id, (double)record->duration_ns / 1e9);
	proof_encode(record, &wire);
	error = record_write(p->volume->volume, "proof", &wire, sizeof(wire));
	if (error)
		env_log(env_of(p), ENV_LOG_WARNING, "volume %s: record of the proof: %s",
			config_of(p)->name, strerror(-error));
}

/* ---- the end ---------------------------------------------------------------------------------- */

/* On a helper thread: all that a restore to the path may have left. */
static void remove_files(const char *path)
{
	static const char *const suffixes[] = {"", ".incomplete", ".restoring", ".restored"};
	char name[4200];

	for (unsigned i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
		snprintf(name, sizeof(name), "%s%s", path, suffixes[i]);
		unlink(name);
	}
}

static void cleaning_run(struct env_work *work)
{
	struct proof *p = of_work(work);

	remove_files(p->path);
}

static void cleaned(struct env_work *work)
{
	struct proof *p = of_work(work);
	node_done_fn done = p->done;
	void *context = p->context;
	bool nothing = p->error == -ENOENT && !p->info.sequence;

	p->step = IDLE;
	if (p->waiting) {
		p->waiting = false;
		begin(p);
		return;
	}
	p->volume->proving = false;
	if (nothing)
		p->not_before_ns = env_now_ns(env_of(p)) + LOOK_MAX_NS;
	if (done && p->volume->volume && !p->stopping && !nothing)
		store_record(p);
	p->done = NULL;
	if (done)
		done(context, p->error, p->why);
	if (p->stopping && !p->abandoned)
		node_stop_go_on(p->volume);
}

static void clean(struct proof *p)
{
	if (p->repo)
		snapshot_repo_free(p->repo);
	if (p->store)
		store_close(p->store);
	p->repo = NULL;
	p->store = NULL;
	p->step = CLEANING;
	p->work = (struct env_work){.run = cleaning_run, .done = cleaned};
	env_work_submit(env_of(p), &p->work);
}

/* ---- the check -------------------------------------------------------------------------------- */

static void checked(struct hook *hook)
{
	struct proof *p = (struct proof *)((char *)hook - offsetof(struct proof, hook));
	char reason[260], why[300];
	int error = hook_result(hook, "proof-timeout", reason, sizeof(reason));

	if (error) {
		snprintf(why, sizeof(why), "restored, but %s", reason);
		fail(p, error == -ECANCELED ? error : -EPERM, why);
	}
	clean(p);
}

static void check(struct proof *p)
{
	const char *names[] = {"OFFSITE_IMAGE", "OFFSITE_VOLUME", "OFFSITE_NODE",
			       "OFFSITE_SNAPSHOT", "OFFSITE_CREATED"};
	char id[ID128_TEXT_BYTES], created[24];
	const char *values[] = {p->path, config_of(p)->name,
				node_config(p->volume->node)->node.name, id, created};

	if (!config_of(p)->proof_command || p->stopping) {
		if (p->stopping)
			fail(p, -ECANCELED, "stopping");
		clean(p);
		return;
	}
	id128_format(&p->info.id, id);
	snprintf(created, sizeof(created), "%llu",
		 (unsigned long long)(p->info.created_ns / NS_PER_S));
	for (unsigned i = 0; i < 5; i++) {
		snprintf(p->variables[i], VARIABLE_BYTES, "%s=%s", names[i], values[i]);
		p->hook.environment[i] = p->variables[i];
	}
	p->hook.command = config_of(p)->proof_command;
	p->hook.timeout_ns = config_of(p)->proof_timeout_ns;
	p->hook.done = checked;
	p->step = CHECKING;
	hook_run(env_of(p), &p->hook);
}

/* ---- the restore ------------------------------------------------------------------------------ */

static void progressed(void *context, const struct snapshot_progress *progress)
{
	struct proof *p = context;

	if (p->progress)
		p->progress(p->context, progress);
}

static void restored(void *context, const struct snapshot_result *result)
{
	struct proof *p = context;

	if (!result->error) {
		check(p);
		return;
	}
	/* Was it deleted meanwhile, as retention may? Then another one is the newest. */
	fail(p, result->error, result->why);
	p->recheck = id128_is_zero(&p->wanted) && p->vanished < VANISHED_MAX && !p->stopping;
	if (p->recheck)
		list(p);
	else
		clean(p);
}

static void restore(struct proof *p)
{
	struct snapshot_target *target;
	char why[256] = "";
	int error = snapshot_target_file(env_of(p), p->path, false, &target, why, sizeof(why));

	if (!error) {
		target = snapshot_target_paced(env_of(p), target, &p->rate);
		error = target ? 0 : -ENOMEM;
	}
	if (error) {
		fail(p, error, why[0] ? why : strerror(-error));
		clean(p);
		return;
	}
	p->step = RESTORING;
	rate_limit_set(&p->rate, &config_of(p)->proof_rate);
	snapshot_restore(p->repo, &p->info.id, target, progressed, restored, p);
}

/* On a helper thread. */
static void room_run(struct env_work *work)
{
	struct proof *p = of_work(work);
	struct statvfs fs;
	uint64_t need = p->info.data_bytes + ROOM_MARGIN, room;
	char why[300];

	if (p->vanished)
		remove_files(p->path);
	if (statvfs(config_of(p)->proof_dir, &fs)) {
		snprintf(why, sizeof(why), "%s: %s", config_of(p)->proof_dir, strerror(errno));
		fail(p, -errno, why);
		return;
	}
	room = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (room >= need)
		return;
	snprintf(why, sizeof(why),
		 "%s: %llu MiB free, but the snapshot holds %llu MiB: make room, or name "
		 "another proof-dir",
		 config_of(p)->proof_dir, (unsigned long long)(room >> 20),
		 (unsigned long long)(need >> 20));
	fail(p, -ENOSPC, why);
}

static void room_done(struct env_work *work)
{
	struct proof *p = of_work(work);

	if (p->error || p->stopping)
		clean(p);
	else
		restore(p);
}

/* ---- which one -------------------------------------------------------------------------------- */

static void list_each(void *context, const struct snapshot_info *info)
{
	struct proof *p = context;

	if (p->recheck)
		p->listed |= id128_equal(&info->id, &p->info.id);
	else if (id128_is_zero(&p->wanted))
		snapshot_infos_add(&p->infos, info);
	else if (id128_equal(&info->id, &p->wanted))
		p->info = *info;
}

/* As a restore would. */
static void take_newest(struct proof *p)
{
	const struct snapshot_info *newest = snapshot_newest(p->infos.list, p->infos.count);

	if (newest)
		p->info = *newest;
	free(p->infos.list);
	p->infos = (struct snapshot_infos){};
}

static void listed(void *context, const struct snapshot_result *result)
{
	struct proof *p = context;

	if (id128_is_zero(&p->wanted) && !p->recheck)
		take_newest(p);
	if (p->recheck) {
		p->recheck = false;
		if (result->error || p->listed || p->stopping) {
			clean(p);
			return;
		}
		/* What is not there any more need not be restorable: the newest of now. */
		p->error = 0;
		p->why[0] = 0;
		p->info = (struct snapshot_info){};
		p->vanished++;
		list(p);
		return;
	}
	if (result->error)
		fail(p, result->error, result->why);
	else if (!p->info.sequence)
		fail(p, -ENOENT,
		     id128_is_zero(&p->wanted) ? "there is no snapshot"
					       : "there is no such snapshot");
	if (p->error || p->stopping) {
		fail(p, -ECANCELED, "stopping");
		clean(p);
		return;
	}
	p->step = ROOM;
	p->work = (struct env_work){.run = room_run, .done = room_done};
	env_work_submit(env_of(p), &p->work);
}

static void list(struct proof *p)
{
	p->step = LISTING;
	p->listed = false;
	snapshot_list(p->repo, list_each, NULL, listed, p);
}

/* On a helper thread: opening may hang for as long as the store does. */
static void opening_run(struct env_work *work)
{
	struct proof *p = of_work(work);
	const struct secret_source source = node_store_secret(config_of(p));
	char why[256] = "";
	int error;

	mkdir(config_of(p)->proof_dir, 0700);
	remove_files(p->path);
	error = crypt_store_open(env_of(p), config_of(p)->store, &source, &p->store, why,
				 sizeof(why));
	if (error) {
		p->store = NULL;
		fail(p, error, why);
	}
}

static void opened(struct env_work *work)
{
	struct proof *p = of_work(work);

	if (!p->error)
		p->repo = snapshot_repo_new(p->store, &p->uuid);
	if (!p->error && !p->repo)
		fail(p, -ENOMEM, "out of memory");
	if (p->stopping)
		fail(p, -ECANCELED, "stopping");
	if (p->error)
		clean(p);
	else
		list(p);
}

static void begin(struct proof *p)
{
	p->step = OPENING;
	p->work = (struct env_work){.run = opening_run, .done = opened};
	env_work_submit(env_of(p), &p->work);
}

/* ---- public ------------------------------------------------------------------------------------- */

void node_prove(struct node_volume *v, const struct id128 *id,
		void (*progress)(void *context, const struct snapshot_progress *progress),
		node_done_fn done, void *context)
{
	struct proof *p = v->proof_state;
	struct volume_state state;
	char why[256] = "";
	int error = 0;

	if (!v->volume || !p)
		error = node_fail(-ENODEV, why, sizeof(why), "volume %s: not available: %s",
				  v->config->name, v->error);
	else if (!v->config->store || !v->config->proof_dir)
		error = node_fail(-EPERM, why, sizeof(why), "volume %s: no %s is configured",
				  v->config->name, v->config->store ? "proof-dir" : "store");
	else if (p->stopping || (p->step != IDLE && (p->step != CLEANING || p->done)))
		error = node_fail(-EBUSY, why, sizeof(why),
				  "volume %s: a snapshot is being proven already", v->config->name);
	if (error) {
		done(context, error, why);
		return;
	}
	volume_get_state(v->volume, &state);
	p->uuid = state.uuid;
	p->wanted = id ? *id : (struct id128){};
	p->info = (struct snapshot_info){};
	p->recheck = false;
	p->vanished = 0;
	p->error = 0;
	p->why[0] = 0;
	p->started_ns = env_now_ns(env_of(p));
	p->progress = progress;
	p->done = done;
	p->context = context;
	v->proving = true;
	p->waiting = p->step == CLEANING;
	if (!p->waiting)
		begin(p);
}

/* What came of it is in the log and in the record. */
static void scheduled_done(void *context, int error, const char *why)
{
	(void)context;
	(void)error;
	(void)why;
}

static bool is_due(const struct proof *p)
{
	const struct proof_record *record = &p->volume->proof;
	uint64_t now = env_realtime_ns(env_of(p)), every = config_of(p)->proof_every_ns;

	if (p->step != IDLE || p->stopping || env_now_ns(env_of(p)) < p->not_before_ns)
		return false;
	if (record->error && every > AGAIN_MAX_NS)
		every = AGAIN_MAX_NS;
	/* Also where the clock was set back. */
	return now - record->tried_ns >= every || now < record->tried_ns;
}

static void look_fire(struct env_timer *timer)
{
	struct proof *p = (struct proof *)((char *)timer - offsetof(struct proof, timer));
	uint64_t every = config_of(p)->proof_every_ns;

	if (is_due(p))
		node_prove(p->volume, NULL, NULL, scheduled_done, p);
	env_timer_start(env_of(p), timer, every / 4 < LOOK_MAX_NS ? every / 4 : LOOK_MAX_NS);
}

struct proof *proof_new(struct node_volume *volume)
{
	const struct config_volume *config = volume->config;
	struct proof *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->volume = volume;
	p->timer.fire = look_fire;
	load_record(p);
	if (!config->store || !config->proof_dir)
		return p;
	if (asprintf(&p->path, "%s/offsite-proof-%s-%s.img", config->proof_dir,
		     node_config(volume->node)->node.name, config->name) < 0) {
		free(p);
		return NULL;
	}
	clean(p); /* of a daemon that was killed in the middle */
	if (config->proof_every_ns)
		env_timer_start(env_of(p), &p->timer, NS_PER_S);
	return p;
}

void proof_free(struct proof *p)
{
	if (!p)
		return;
	assert(p->step == IDLE);
	free(p->path);
	free(p);
}

bool proof_stop(struct proof *p)
{
	if (!p)
		return true;
	p->stopping = true;
	env_timer_stop(env_of(p), &p->timer);
	if (p->step == CHECKING)
		hook_cancel(&p->hook);
	p->abandoned = p->step == RESTORING;
	if (p->store && !p->abandoned)
		store_stop(p->store);
	return p->step == IDLE || p->abandoned;
}

bool proof_is_restoring(const struct proof *p)
{
	return p && (p->step == RESTORING || p->abandoned);
}
