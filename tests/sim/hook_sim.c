// SPDX-License-Identifier: Apache-2.0
/*
 * The operator's programs (daemon/node/hook.h) in the simulator: the linker's --wrap puts this in the place of
 * hook_run(), see the Makefile. A program takes its time, and succeeds, refuses, or hangs until it is killed.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/node/hook.h"
#include "tests/sim/env_sim_internal.h"

void __wrap_hook_run(struct env *env, struct hook *hook);

struct program {
	struct sim_event event;
	struct hook *hook;
};

static void program_ends(struct sim_event *event)
{
	struct hook *hook = ((struct program *)event)->hook;

	free(event);
	if (atomic_load(&hook->cancelled))
		hook->error = -ECANCELED;
	hook->done(hook);
}

static void program_gone(struct sim_event *event, bool power)
{
	free(event);
}

void __wrap_hook_run(struct env *e, struct hook *hook)
{
	struct sim_env *env = sim_env_of(e);
	struct program *program;
	uint64_t takes_ns;

	if (env->dead)
		return;
	program = sim_alloc(sizeof(*program));
	program->event.fire = program_ends;
	program->event.drop = program_gone;
	program->hook = hook;
	hook->env = e;
	hook->error = hook->status = 0;
	hook->output[0] = '\0';
	atomic_store(&hook->cancelled, false);
	takes_ns = sim_random(env->sim, sim_random(env->sim, 4) ? 100 * SIM_MS : 10 * SIM_S);
	switch (sim_random(env->sim, 8)) {
	case 0:
		hook->status = 1;
		snprintf(hook->output, sizeof(hook->output), "it answers still");
		break;
	case 1:
		hook->error = -ETIMEDOUT;
		takes_ns = hook->timeout_ns;
		break;
	default:
		break;
	}
	sim_event_add(env->sim, &program->event, env, takes_ns);
}
