// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/moment.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/node/hook.h"

#define VARIABLE_BYTES 480u

/*
 *  step    what is under way                        next
 *  IDLE    nothing                                  BEFORE, REST, AFTER
 *  BEFORE  the command before the cut               REST, AFTER
 *  REST    the secondary's stream is brought to     AFTER, IDLE
 *          rest; then the cut is taken at once
 *  AFTER   the command after the cut                IDLE; BEFORE or REST for a snapshot that waited
 */
enum step { IDLE, BEFORE, REST, AFTER };

struct moment {
	struct node_volume *volume;
	enum step step;
	struct snapshot_writer *writer;  /* whose cut is to come; NULL: it is taken, or given up */
	struct snapshot_writer *waiting; /* the next one, while AFTER runs */
	struct hook hook;
	char variables[5][VARIABLE_BYTES];
	char snapshot[ID128_TEXT_BYTES];
	char *owed; /* path of the file that says so */
	bool after_due;
	int error; /* of what comes before the cut, to be told to the writer */
	char why[400];
	char result[400]; /* OFFSITE_RESULT */
	bool stopping;
};

static void step_next(struct moment *m);

static struct env *env_of(const struct moment *m)
{
	return node_env(m->volume->node);
}

static const struct config_volume *config_of(const struct moment *m)
{
	return m->volume->config;
}

/* ---- the commands ----------------------------------------------------------------------------- */

static void set_variable(struct moment *m, unsigned i, const char *name, const char *value)
{
	snprintf(m->variables[i], VARIABLE_BYTES, "%s=%s", name, value);
	m->hook.environment[i] = m->variables[i];
}

static void hook_start(struct moment *m, const char *command, const char *when,
		       void (*done)(struct hook *hook))
{
	set_variable(m, 0, "OFFSITE_VOLUME", config_of(m)->name);
	set_variable(m, 1, "OFFSITE_NODE", node_config(m->volume->node)->node.name);
	set_variable(m, 2, "OFFSITE_SNAPSHOT", m->snapshot);
	set_variable(m, 3, "OFFSITE_WHEN", when);
	set_variable(m, 4, "OFFSITE_RESULT", m->result);
	m->hook.command = command;
	m->hook.timeout_ns = config_of(m)->snapshot_command_timeout_ns;
	m->hook.done = done;
	hook_run(env_of(m), &m->hook);
}

static void note_failure(struct moment *m, const char *text, bool tolerated)
{
	m->volume->command_failures++;
	snprintf(m->volume->command_failure, sizeof(m->volume->command_failure), "%s", text);
	env_log(env_of(m), tolerated ? ENV_LOG_WARNING : ENV_LOG_ERROR, "volume %s: %s",
		config_of(m)->name, text);
}

/* Only for a daemon that is killed: after a power cut nothing is frozen any more. Where the file cannot
 * be made the snapshot goes on; it is not worth less. */
static void owe(struct moment *m)
{
	struct env_file *file;
	int error = env_file_open(env_of(m), m->owed, ENV_FILE_WRITE | ENV_FILE_CREATE, &file);

	m->after_due = true;
	if (!error)
		env_file_close(env_of(m), file);
	else
		env_log(env_of(m), ENV_LOG_WARNING, "volume %s: %s: %s", config_of(m)->name,
			m->owed, strerror(-error));
}

static void after_done(struct hook *hook)
{
	struct moment *m = (struct moment *)((char *)hook - offsetof(struct moment, hook));
	char reason[300], text[400];

	if (hook_result(hook, "snapshot-command-timeout", reason, sizeof(reason))) {
		snprintf(text, sizeof(text), "after the cut of a snapshot: %s", reason);
		note_failure(m, text, true);
	}
	env_unlink(env_of(m), m->owed);
	m->step = IDLE;
	if (m->waiting) {
		struct snapshot_writer *writer = m->waiting;

		m->waiting = NULL;
		moment_prepare(m, writer);
	} else if (m->stopping) {
		node_stop_go_on(m->volume);
	}
}

static void after_start(struct moment *m)
{
	m->after_due = false;
	m->step = AFTER;
	hook_start(m, config_of(m)->snapshot_after_command, "after", after_done);
}

static void before_done(struct hook *hook)
{
	struct moment *m = (struct moment *)((char *)hook - offsetof(struct moment, hook));
	bool go_on = config_of(m)->snapshot_command_continue;
	char reason[300], text[400];

	if (hook_result(hook, "snapshot-command-timeout", reason, sizeof(reason))) {
		snprintf(text, sizeof(text), "before the cut of a snapshot: %s%s", reason,
			 go_on ? "; the snapshot is taken all the same" : "");
		note_failure(m, text, go_on);
		if (!go_on) {
			m->error = -EPERM;
			snprintf(m->why, sizeof(m->why), "volume %s: no snapshot: %s",
				 config_of(m)->name, reason);
		}
	}
	m->step = IDLE;
	step_next(m);
}

/* ---- the cut ------------------------------------------------------------------------------------ */

static void cut(struct moment *m)
{
	struct snapshot_writer *writer = m->writer;
	int error;

	m->writer = NULL;
	m->step = IDLE;
	if (m->stopping && !m->error) {
		m->error = -ECANCELED;
		snprintf(m->why, sizeof(m->why), "volume %s: snapshot given up: stopping",
			 config_of(m)->name);
	}
	if (m->volume->replication)
		replication_yield_store(m->volume->replication);
	error = snapshot_cut(writer, m->error, m->why);
	snprintf(m->result, sizeof(m->result), "%s", error ? "failed" : "cut");
	if (m->after_due)
		after_start(m);
	else if (m->stopping)
		node_stop_go_on(m->volume);
}

static void at_rest(void *context, int error)
{
	struct moment *m = context;

	if (error && !m->error) {
		m->error = error;
		snprintf(m->why, sizeof(m->why), "volume %s: staged data cannot be applied: %s",
			 config_of(m)->name, strerror(-error));
	}
	cut(m);
}

static void step_next(struct moment *m)
{
	struct volume_state state;

	volume_get_state(m->volume->volume, &state);
	if (m->error || m->stopping || state.role == VOLUME_PRIMARY || !m->volume->replication) {
		cut(m);
		return;
	}
	m->step = REST;
	replication_at_rest(m->volume->replication, at_rest, m);
}

void moment_prepare(void *moment, struct snapshot_writer *writer)
{
	struct moment *m = moment;
	const struct config_volume *config = config_of(m);

	/* The writer of a uuid that the volume had before. */
	if (m->writer || m->waiting) {
		snapshot_cut(writer, -EBUSY, "another snapshot is about to be cut");
		return;
	}
	if (m->step == AFTER) {
		m->waiting = writer;
		return;
	}
	m->writer = writer;
	m->error = 0;
	m->why[0] = m->result[0] = 0;
	m->after_due = false;
	id128_format(snapshot_writer_id(writer), m->snapshot);
	if (m->stopping || (!config->snapshot_before_command && !config->snapshot_after_command)) {
		step_next(m);
		return;
	}
	if (config->snapshot_after_command)
		owe(m);
	if (!config->snapshot_before_command) {
		step_next(m);
		return;
	}
	m->step = BEFORE;
	hook_start(m, config->snapshot_before_command, "before", before_done);
}

/* ---- life ----------------------------------------------------------------------------------------- */

struct moment *moment_new(struct node_volume *volume)
{
	struct moment *m = calloc(1, sizeof(*m));
	struct env_file *file;

	if (!m)
		return NULL;
	m->volume = volume;
	if (asprintf(&m->owed, "%s/after-command", volume_state_dir(volume->volume)) < 0) {
		free(m);
		return NULL;
	}
	/* The daemon was killed between the two commands. */
	if (volume->config->snapshot_after_command &&
	    !env_file_open(env_of(m), m->owed, ENV_FILE_READ, &file)) {
		env_file_close(env_of(m), file);
		snprintf(m->result, sizeof(m->result), "interrupted");
		after_start(m);
	}
	return m;
}

void moment_free(struct moment *m)
{
	if (!m)
		return;
	assert(m->step == IDLE && !m->writer && !m->waiting);
	free(m->owed);
	free(m);
}

bool moment_stop(struct moment *m)
{
	if (!m)
		return true;
	m->stopping = true;
	if (m->step == BEFORE)
		hook_cancel(&m->hook);
	if (m->step == REST)
		replication_at_rest(m->volume->replication, NULL, NULL);
	return m->step == IDLE && !m->writer && !m->waiting;
}
