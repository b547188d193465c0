// SPDX-License-Identifier: Apache-2.0
/*
 * wait: until a volume is in the state that a script goes on from.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/format.h"
#include "daemon/config_values.h"

const char help_wait[] =
	"Usage: offsite wait VOLUME [--for STATE] [--timeout TIME]\n"
	"Waits until the volume is in a state, and says so with exit code 0; for scripts. A\n"
	"daemon that is restarted meanwhile is waited for, too.\n"
	"\n"
	"  --for STATE      connected: the peer is there\n"
	"                   streaming: and caught up once; writes go to it as they come\n"
	"                   in-sync: and has everything that was written (the default): seen at a\n"
	"                   moment when nothing is under way; of a volume that is written to all\n"
	"                   the time wait for streaming. The primary tells, not the secondary\n"
	"                   filled: all content is on this disk\n"
	"  --timeout TIME   give up after so long (90s, 10m, ...): exit code 1, and what the\n"
	"                   state is then. Without it: never\n";

static const char *replication_state(const json_t *volume)
{
	return client_text(json_object_get(volume, "replication"), "state", "");
}

static bool is_streaming(const json_t *volume)
{
	return !strcmp(replication_state(volume), "streaming");
}

static bool is_connected(const json_t *volume)
{
	const char *state = replication_state(volume);

	return is_streaming(volume) || !strcmp(state, "idle") || !strcmp(state, "catch-up");
}

static bool is_in_sync(const json_t *volume)
{
	const json_t *replication = json_object_get(volume, "replication");

	return is_streaming(volume) && !client_integer(replication, "out_of_sync_bytes") &&
	       !client_integer(replication, "lag_bytes");
}

static bool is_filled(const json_t *volume)
{
	return json_is_true(json_object_get(volume, "open")) &&
	       !json_is_object(json_object_get(volume, "filling")) &&
	       !strcmp(client_text(volume, "disk", ""), "uptodate");
}

static const struct state {
	const char *name;
	bool (*reached)(const json_t *volume);
	bool of_replication;
} states[] = {
	{"in-sync", is_in_sync, true},
	{"connected", is_connected, true},
	{"streaming", is_streaming, true},
	{"filled", is_filled, false},
};

static const struct state *find_state(const char *name)
{
	for (unsigned i = 0; i < sizeof(states) / sizeof(states[0]); i++)
		if (!strcmp(states[i].name, name))
			return &states[i];
	return NULL;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* volume: as it was last seen, or NULL when the daemon went. */
static int timed_out(const char *name, const struct state *state, const char *time,
		     const json_t *volume)
{
	const json_t *replication = json_object_get(volume, "replication");
	const char *refusal = client_text(replication, "refusal", NULL);
	uint64_t lacks = client_integer(replication, "out_of_sync_bytes");

	if (!volume)
		return cli_fail(CLI_FAILED, "volume %s: not %s within %s: no daemon answers", name,
				state->name, time);
	if (!state->of_replication)
		return cli_fail(CLI_FAILED, "volume %s: not %s within %s: disk %s", name,
				state->name, time,
				client_text(volume, "disk", client_text(volume, "error", "?")));
	return cli_fail(CLI_FAILED, "volume %s: not %s within %s: replication is %s%s%s%s%s", name,
			state->name, time, replication_state(volume),
			lacks ? ", the peer lacks " : "", lacks ? format_bytes(lacks).text : "",
			refusal ? ", " : "", refusal ? refusal : "");
}

/* One look: CLI_FINE: reached; CLI_UNREACHABLE: go on; else the exit code. */
static int look(const char *name, const struct state *state, const json_t *volume)
{
	if (!volume)
		return CLI_UNREACHABLE;
	if (state->reached == is_in_sync && !strcmp(client_text(volume, "role", ""), "secondary"))
		return cli_fail(CLI_REFUSED,
				"volume %s is secondary here: the primary knows what it has", name);
	if (state->reached(volume))
		return CLI_FINE;
	if (state->of_replication && json_is_true(json_object_get(volume, "open")) &&
	    !json_is_object(json_object_get(volume, "replication")))
		return cli_fail(CLI_REFUSED, "volume %s has no peer", name);
	return CLI_UNREACHABLE;
}

static int await(struct cli *cli, const char *name, const struct state *state, const char *timeout,
		 uint64_t timeout_ns)
{
	uint64_t begun_ns = now_ns(), pause_ns = 10000000, left_ns = timeout_ns;
	bool seen = false;
	json_t *volume;

	for (;;) {
		/* The last look may take a moment longer. */
		int code =
			client_volume(cli, name, seen, 1000 + (long)(left_ns / 1000000), &volume);
		if (code && !(seen && code == CLI_UNREACHABLE))
			return code;
		seen = true;
		code = look(name, state, volume);
		uint64_t gone_ns = now_ns() - begun_ns;
		left_ns = timeout_ns > gone_ns ? timeout_ns - gone_ns : 0;
		if (code == CLI_UNREACHABLE && left_ns == 0)
			code = timed_out(name, state, timeout, volume);
		json_decref(volume);
		if (code != CLI_UNREACHABLE)
			return code;
		if (pause_ns > left_ns)
			pause_ns = left_ns;
		nanosleep(&(struct timespec){.tv_nsec = (long)pause_ns}, NULL);
		if (pause_ns < 200000000)
			pause_ns += pause_ns / 2;
	}
}

int cmd_wait(struct cli *cli, int argc, char **argv)
{
	static const struct option longs[] = {{"for", required_argument, NULL, 'f'},
					      {"timeout", required_argument, NULL, 't'},
					      CLI_OPTIONS_COMMON};
	const struct state *state = &states[0];
	const char *timeout = NULL, *bad;
	uint64_t timeout_ns = UINT64_MAX; /* never */
	int option, code;

	while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (option == 'f') {
			state = find_state(optarg);
			if (!state)
				return cli_fail(CLI_USAGE, "--for %s: no such state; try --help",
						optarg);
		} else if (option == 't') {
			timeout = optarg;
			bad = config_parse_duration(timeout, &timeout_ns);
			if (bad)
				return cli_fail(CLI_USAGE, "--timeout %s: %s", optarg, bad);
		} else if ((code = cli_common_option(cli, option, help_wait)) >= 0)
			return code;
	}
	if (!cli_arguments(argc, 1, 1, "VOLUME"))
		return CLI_USAGE;
	return await(cli, argv[optind], state, timeout, timeout_ns);
}
