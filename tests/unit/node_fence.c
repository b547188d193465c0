// SPDX-License-Identifier: Apache-2.0
/* The fence before a promotion: a program of the operator's, with a real node and a real process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/node/node.h"

static char directory[64];
static struct env *env;
static struct node *node;
static struct config config;
static struct config_volume volume;

struct result {
	bool done;
	int error;
	char why[512];
};

static void write_script(const char *text)
{
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), "%s/fence", directory);
	unlink(path);
	file = fopen(path, "w");
	assert_non_null(file);
	fprintf(file, "#!/bin/sh\n%s\n", text);
	fclose(file);
	assert_int_equal(chmod(path, 0755), 0);
}

static void ticked(struct env_timer *timer);
static struct env_timer tick = {.fire = ticked};
static bool has_ticked;

static void ticked(struct env_timer *timer)
{
	has_ticked = true;
}

static void one_turn(void)
{
	has_ticked = false;
	env_timer_start(env, &tick, 1000000);
	env_run_until(env, &has_ticked);
}

static int set_up_with(uint64_t fence_timeout_ns)
{
	static char paths[4][128];
	char why[256];
	const char *what;

	strcpy(directory, "/tmp/node_fence.XXXXXX");
	assert_non_null(mkdtemp(directory));
	for (unsigned i = 0; i < 4; i++)
		snprintf(paths[i], sizeof(paths[i]), "%s/%s", directory,
			 (const char *[]){"state", "disk.img", "fence", "control"}[i]);
	volume = (struct config_volume){.name = (char *)"v",
					.backing = paths[1],
					.size_bytes = 1 << 20,
					.primary = true,
					.peer = (char *)"tcp:127.0.0.1:1",
					.protocol = 'C',
					.block_min_bytes = 1,
					.fence_command = paths[2],
					.fence_timeout_ns = fence_timeout_ns};
	config = (struct config){
		.node = {.name = (char *)"alpha",
			 .state_dir = paths[0],
			 .control = paths[3],
			 .peer_plaintext = true},
		.volumes = &volume,
		.volume_count = 1,
	};
	assert_int_equal(env_real_new(ENV_BACKEND_AUTO, 1, &env, &what), 0);
	env_log_level(env, ENV_LOG_ERROR);
	assert_int_equal(node_start(env, &config, &node, why, sizeof(why)), 0);
	assert_non_null(node_find(node, "v")->volume);
	assert_int_equal(node_demote(node_find(node, "v"), why, sizeof(why)), 0);
	while (replication_applying(node_find(node, "v")->replication))
		one_turn();
	return 0;
}

static int set_up(void **state)
{
	return set_up_with(60000000000);
}

/* Where it is waited for; it has to say something before. */
static int set_up_hanging(void **state)
{
	return set_up_with(5000000000);
}

static void stopped(void *context)
{
	*(bool *)context = true;
}

static int tear_down(void **state)
{
	char line[128];
	bool done = false;

	node_stop(node, stopped, &done);
	env_run_until(env, &done);
	env_free(env);
	snprintf(line, sizeof(line), "rm -r %s", directory);
	return system(line);
}

static void promoted(void *context, int error, const char *why)
{
	struct result *result = context;

	result->done = true;
	result->error = error;
	snprintf(result->why, sizeof(result->why), "%s", why);
}

static struct result promote(unsigned flags)
{
	struct result result = {.done = false};

	node_promote_start(node_find(node, "v"), flags, promoted, &result);
	env_run_until(env, &result.done);
	return result;
}

static enum volume_role role(void)
{
	struct volume_state state;

	volume_get_state(node_find(node, "v")->volume, &state);
	return state.role;
}

static void one_that_succeeds_lets_the_promotion_go_on(void **state)
{
	char script[256], path[128], line[128] = "";
	FILE *file;

	snprintf(
		script, sizeof(script),
		"echo $OFFSITE_VOLUME $OFFSITE_NODE $OFFSITE_PEER_ADDRESS $OFFSITE_REASON > %s/out",
		directory);
	write_script(script);
	assert_int_equal(promote(0).error, 0);
	assert_int_equal(role(), VOLUME_PRIMARY);
	snprintf(path, sizeof(path), "%s/out", directory);
	file = fopen(path, "r");
	assert_non_null(file);
	assert_non_null(fgets(line, sizeof(line), file));
	fclose(file);
	assert_string_equal(line, "v alpha tcp:127.0.0.1:1 promote\n");
}

static void one_that_fails_is_quoted_with_its_last_line(void **state)
{
	struct result result;

	write_script("echo trying; echo no such host >&2; exit 3");
	result = promote(0);
	assert_int_equal(result.error, -EPERM);
	assert_non_null(strstr(result.why, "not fenced"));
	assert_non_null(strstr(result.why, "ended with 3: no such host"));
	assert_int_equal(role(), VOLUME_SECONDARY);
	/* Not even by force; only when told to go without it. */
	assert_int_equal(promote(NODE_FORCE).error, -EPERM);
	assert_int_equal(role(), VOLUME_SECONDARY);
	assert_int_equal(promote(NODE_NO_FENCE).error, 0);
	assert_int_equal(role(), VOLUME_PRIMARY);
}

static void one_that_hangs_is_killed(void **state)
{
	struct result result;

	write_script("echo still at it; sleep 1000 & wait");
	result = promote(0);
	assert_int_equal(result.error, -EPERM);
	assert_non_null(strstr(result.why, "fence-timeout: still at it"));
	assert_int_equal(role(), VOLUME_SECONDARY);
}

static void one_that_is_not_there_is_said(void **state)
{
	struct result result;

	result = promote(0);
	assert_int_equal(result.error, -EPERM);
	assert_non_null(strstr(result.why, "/fence: No such file"));
}

static void a_stop_does_not_wait_for_it(void **state)
{
	static struct result result, second; /* the last one ends in tear_down() */

	write_script("sleep 1000");
	node_promote_start(node_find(node, "v"), 0, promoted, &result);
	assert_false(result.done);
	node_promote_start(node_find(node, "v"), 0, promoted, &second);
	assert_true(second.done && second.error == -EBUSY);
	node_cancel_fences(node);
	env_run_until(env, &result.done);
	assert_int_equal(result.error, -EPERM);
	node_promote_start(node_find(node, "v"), 0, promoted, &result);
}

int main(void)
{
#define TEST(name)    cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define HANGING(name) cmocka_unit_test_setup_teardown(name, set_up_hanging, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(one_that_succeeds_lets_the_promotion_go_on),
		TEST(one_that_fails_is_quoted_with_its_last_line),
		HANGING(one_that_hangs_is_killed),
		TEST(one_that_is_not_there_is_said),
		HANGING(a_stop_does_not_wait_for_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
