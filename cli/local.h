/* SPDX-License-Identifier: Apache-2.0 */
/*
 * local: a store opened by the command itself, with an event loop of its own: what `restore --store`
 * and `snapshot ... --store` work with when there is no daemon.
 */
#ifndef OFFSITE_CLI_LOCAL_H
#define OFFSITE_CLI_LOCAL_H

#include <jansson.h>

#include "daemon/snapshot/snapshot.h"
#include "daemon/store/crypt.h"

struct local {
	struct env *env;
	struct store *store;
};

/* Options that name a secret: entries of a getopt table, and what takes them (false: another option). */
#define LOCAL_OPTION_PASSPHRASE  0x110
#define LOCAL_OPTION_KEY_FILE    0x111
#define LOCAL_OPTION_KEY_COMMAND 0x112
#define LOCAL_OPTIONS_SECRET                                                     \
	{"passphrase-file", required_argument, NULL, LOCAL_OPTION_PASSPHRASE},   \
		{"key-file", required_argument, NULL, LOCAL_OPTION_KEY_FILE},    \
	{                                                                        \
		"key-command", required_argument, NULL, LOCAL_OPTION_KEY_COMMAND \
	}
#define LOCAL_HELP_SECRET                                                                  \
	"  --passphrase-file FILE, --key-file FILE, --key-command COMMAND\n"               \
	"                   what opens the store if it is encrypted: as in the daemon's\n" \
	"                   configuration (store-passphrase-file ...)\n"
bool local_secret_option(int option, const char *argument, struct secret_source *source);

/* All functions returning int give an exit code, and have said on stderr what is wrong. */
int local_open_env(struct local *local);
/* source: what opens it, if it is encrypted. */
int local_open_store(struct local *local, const char *url, const struct secret_source *source);
void local_close(struct local *local);

/* Snapshots, oldest first; or the newest of each volume. */
struct snapshot_set {
	struct snapshot_info *infos;
	unsigned count, size;
	unsigned damaged;
};
int local_volumes(struct local *local, struct snapshot_set *set);
int local_snapshots(struct local *local, const struct id128 *volume, struct snapshot_set *set);
/* From the API's answer to GET .../snapshots. */
int snapshot_set_from_json(const json_t *answer, struct snapshot_set *set);
void snapshot_set_free(struct snapshot_set *set);
/* By a unique beginning of the id, or "latest" (also NULL). */
int snapshot_set_find(const struct snapshot_set *set, const char *text,
		      const struct snapshot_info **found);
/* The volume of a set made by local_volumes(), by name or uuid (or its beginning); NULL: the only one. */
int snapshot_set_find_volume(const struct snapshot_set *set, const char *text,
			     const struct snapshot_info **found);

/* diff.c: offsite snapshot diff. */
struct cli;
int snapshot_diff_cmd(struct cli *cli, int argc, char **argv, const char *store,
		      const struct secret_source *secret, bool json);

/* What an asynchronous operation left behind; run the loop with local_wait(). */
struct local_run {
	bool done;
	struct snapshot_result result;
};
void local_run_done(void *context, const struct snapshot_result *result);
/* Runs the loop until done; the exit code of the result, after saying what failed. */
int local_wait(struct local *local, struct local_run *run);

#endif
