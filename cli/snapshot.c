// SPDX-License-Identifier: Apache-2.0
/*
 * snapshot: create, list, delete, verify: through the daemon, or (list, verify) from the store alone.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/format.h"
#include "cli/local.h"
#include "daemon/config.h"
#include "daemon/config_values.h"
#include "daemon/snapshot/render.h"

const char help_snapshot[] =
	"Usage: offsite snapshot create VOLUME [--label TEXT] [--no-wait]\n"
	"       offsite snapshot list VOLUME [--json]\n"
	"       offsite snapshot list --store URL [VOLUME] [--json]\n"
	"       offsite snapshot delete VOLUME ID\n"
	"       offsite snapshot delete --store URL VOLUME ID\n"
	"       offsite --config FILE snapshot forget VOLUME [--dry-run] [--keep-... N]\n"
	"       offsite snapshot forget --store URL VOLUME --keep-... N [--dry-run]\n"
	"       offsite snapshot pin|unpin VOLUME ID (with --config FILE or --store URL, as "
	"forget)\n"
	"       offsite snapshot prove VOLUME [ID] [--no-wait]\n"
	"       offsite snapshot diff VOLUME A [B] [--json]\n"
	"       offsite snapshot diff --store URL VOLUME A B [--json]\n"
	"       offsite snapshot verify VOLUME [ID] [--sample N%]\n"
	"       offsite snapshot verify --store URL [VOLUME [ID]] [--sample N%]\n"
	"\n"
	"create  takes the volume as it is at this instant and stores what changed since the last\n"
	"        snapshot; waits until it is stored\n"
	"list    shows the snapshots, oldest first\n"
	"delete  deletes a snapshot and every object that no other one needs\n"
	"forget  deletes what a policy does not keep, and says why each other one stays; "
	"--dry-run\n"
	"        only says it. With --config by the volume's own policy, which the daemon applies "
	"after\n"
	"        each snapshot, unless a --keep option is given. Safe while the daemon works.\n"
	"pin     keeps a snapshot: neither forget, nor the daemon, nor delete takes it away\n"
	"unpin   lets it go again, if no restore has pinned it, too\n"
	"prove   restores a snapshot (the newest) to proof-dir, lets proof-command look at it, "
	"and\n"
	"        removes it again\n"
	"diff    shows what changed from snapshot A to snapshot B, or until now, by chunks of\n"
	"        64 KiB: offset and length in bytes, and whether it is data or zeroes\n"
	"verify  reads back and checks every byte of a snapshot, or of all; exit code 5 if\n"
	"        anything is damaged or missing\n"
	"\n"
	"With --store no daemon and no configuration is needed; VOLUME is then a name or uuid.\n"
	"ID is a snapshot's id, a unique beginning of it, or 'latest'.\n"
	"\n"
	"  --label TEXT   a word to find the snapshot again (up to 63 bytes)\n"
	"  --dry-run      forget: delete nothing\n"
	"  --all          unpin: whoever pinned it, e.g. a restore on a host that is no more\n"
	"  --keep-last N, --keep-hourly N, --keep-daily N, --keep-weekly N, --keep-monthly N,\n"
	"  --keep-yearly N, --keep-within DURATION\n"
	"                 forget: any of them keeps a snapshot (UTC; weeks from Monday)\n"
	"  --store-list-lag DURATION\n"
	"                 forget, delete --store: lists of the store may be so late (default: not\n"
	"                 late; with --config: what that says)\n"
	"  --no-wait      return when the job has started; prints its number\n"
	"  --sample N%    check a random sample of the chunks\n"
	"  --store URL    s3://bucket/prefix or file:/directory\n"
	"  --json         for programs\n" LOCAL_HELP_SECRET;

struct options {
	const char *label, *store;
	bool no_wait, json, dry_run;
	struct retention_policy policy;
	const char *one; /* pin, unpin, delete: which; NULL: forget */
	bool pin, all, deletes;
	unsigned sample_percent;
	struct secret_source secret;
	bool list_lag_given;
	uint64_t list_lag_ns;
};

enum {
	KEEP_LAST = 0x130,
	KEEP_HOURLY,
	KEEP_DAILY,
	KEEP_WEEKLY,
	KEEP_MONTHLY,
	KEEP_YEARLY,
	KEEP_WITHIN,
	LIST_LAG,
};

/* -1: fine; -2: another option; else the exit code. */
static int parse_keep(int option, const char *text, struct retention_policy *policy)
{
	unsigned *const counts[] = {&policy->last,   &policy->hourly,  &policy->daily,
				    &policy->weekly, &policy->monthly, &policy->yearly};
	unsigned long value;
	const char *wrong;
	char *end;

	if (option == KEEP_WITHIN) {
		wrong = config_parse_duration(text, &policy->within_ns);
		return wrong ? cli_fail(CLI_USAGE, "--keep-within: '%s': %s", text, wrong) : -1;
	}
	if (option < KEEP_LAST || option > KEEP_YEARLY)
		return -2;
	value = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || end - text > 6)
		return cli_fail(CLI_USAGE, "--keep...: '%s': not a number (0 to 999999)", text);
	*counts[option - KEEP_LAST] = (unsigned)value;
	return -1;
}

static bool parse_sample(const char *text, unsigned *percent)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || end - text > 3 || value < 1 || value > 100)
		return false;
	*percent = (unsigned)value;
	return !*end || !strcmp(end, "%");
}

/* -1 to go on, else the exit code. */
static int parse_options(struct cli *cli, int argc, char **argv, struct options *options)
{
	static const struct option longs[] = {
		{"label", required_argument, NULL, 'l'},
		{"no-wait", no_argument, NULL, 'n'},
		{"wait", no_argument, NULL, 'w'},
		{"json", no_argument, NULL, 'j'},
		{"store", required_argument, NULL, 's'},
		{"sample", required_argument, NULL, 'p'},
		{"dry-run", no_argument, NULL, 'd'},
		{"all", no_argument, NULL, 'a'},
		{"keep-last", required_argument, NULL, KEEP_LAST},
		{"keep-hourly", required_argument, NULL, KEEP_HOURLY},
		{"keep-daily", required_argument, NULL, KEEP_DAILY},
		{"keep-weekly", required_argument, NULL, KEEP_WEEKLY},
		{"keep-monthly", required_argument, NULL, KEEP_MONTHLY},
		{"keep-yearly", required_argument, NULL, KEEP_YEARLY},
		{"keep-within", required_argument, NULL, KEEP_WITHIN},
		{"store-list-lag", required_argument, NULL, LIST_LAG},
		LOCAL_OPTIONS_SECRET,
		CLI_OPTIONS_COMMON,
	};
	const char *wrong;
	int option, code;

	*options = (struct options){.sample_percent = 100};
	while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (option) {
		case 'l':
			options->label = optarg;
			break;
		case 'n':
		case 'w':
			options->no_wait = option == 'n';
			break;
		case 'j':
			options->json = true;
			break;
		case 'd':
			options->dry_run = true;
			break;
		case 'a':
			options->all = true;
			break;
		case 's':
			options->store = optarg;
			break;
		case 'p':
			if (parse_sample(optarg, &options->sample_percent))
				break;
			return cli_fail(CLI_USAGE, "--sample: '%s' is not 1%% to 100%%", optarg);
		case LIST_LAG:
			wrong = config_parse_duration(optarg, &options->list_lag_ns);
			if (wrong)
				return cli_fail(CLI_USAGE, "--store-list-lag: '%s': %s", optarg,
						wrong);
			options->list_lag_given = true;
			break;
		default:
			if (local_secret_option(option, optarg, &options->secret))
				break;
			code = parse_keep(option, optarg, &options->policy);
			if (code == -1)
				break;
			if (code >= 0)
				return code;
			code = cli_common_option(cli, option, help_snapshot);
			if (code >= 0)
				return code;
		}
	}
	return -1;
}

/* The volume's snapshots by the daemon. */
static int fetch_set(struct cli *cli, const char *volume, json_t **answer, struct snapshot_set *set)
{
	char *path = client_volume_path(volume, "/snapshots");
	int code = client_call(cli, "GET", path, NULL, answer);

	free(path);
	if (!code)
		code = snapshot_set_from_json(*answer, set);
	return code;
}

/* A full id for what the user typed. */
static int resolve(struct cli *cli, const char *volume, const char *text, char id[ID128_TEXT_BYTES])
{
	const struct snapshot_info *found;
	struct snapshot_set set = {0};
	json_t *answer = NULL;
	int code = fetch_set(cli, volume, &answer, &set);

	if (!code)
		code = snapshot_set_find(&set, text, &found);
	if (!code)
		id128_format(&found->id, id);
	snapshot_set_free(&set);
	json_decref(answer);
	return code;
}

/* ---- create, delete -------------------------------------------------------------------------- */

static int snapshot_create_cmd(struct cli *cli, int argc, char **argv,
			       const struct options *options)
{
	json_t *job, *end = NULL, *result;
	char *path;
	int code;

	if (!cli_arguments(argc, 1, 1, "VOLUME"))
		return CLI_USAGE;
	path = client_volume_path(argv[optind], "/snapshots");
	code = client_call(cli, "POST", path,
			   options->label ? json_pack("{s:s}", "label", options->label) : NULL,
			   &job);
	free(path);
	if (code)
		return code;
	if (options->no_wait) {
		printf("job %llu\n", (unsigned long long)client_integer(job, "id"));
		json_decref(job);
		return CLI_FINE;
	}
	code = client_follow_job(cli, job, "storing", &end);
	result = json_object_get(json_object_get(end, "result"), "snapshot");
	if (!code && options->json) {
		json_dumpf(result, stdout, JSON_INDENT(2));
		putchar('\n');
	} else if (!code) {
		printf("snapshot %s of %s: %s changed, %s stored in %llu objects",
		       client_text(result, "id", "?"), argv[optind],
		       format_bytes(client_number(result, "changed_bytes")).text,
		       format_bytes(client_number(result, "stored_bytes")).text,
		       (unsigned long long)client_integer(result, "objects"));
		if (client_integer(result, "requests"))
			printf(" (%llu requests)",
			       (unsigned long long)client_integer(result, "requests"));
		if (client_text(result, "locked_until", NULL))
			printf(", locked until %s", client_text(result, "locked_until", ""));
		putchar('\n');
	}
	json_decref(end);
	return code;
}

static int snapshot_prove_cmd(struct cli *cli, int argc, char **argv, const struct options *options)
{
	char id[ID128_TEXT_BYTES];
	json_t *job, *end = NULL;
	char *path;
	int code = 0;

	if (!cli_arguments(argc, 1, 2, "VOLUME [ID]"))
		return CLI_USAGE;
	if (optind + 1 < argc)
		code = resolve(cli, argv[optind], argv[optind + 1], id);
	if (code)
		return code;
	path = client_volume_path(argv[optind], "/prove-snapshot");
	code = client_call(cli, "POST", path,
			   optind + 1 < argc ? json_pack("{s:s}", "snapshot", id) : NULL, &job);
	free(path);
	if (code)
		return code;
	if (options->no_wait) {
		printf("job %llu\n", (unsigned long long)client_integer(job, "id"));
		json_decref(job);
		return CLI_FINE;
	}
	code = client_follow_job(cli, job, "proving", &end);
	if (!code)
		printf("snapshot %s of %s: restored and found good\n",
		       client_text(end, "snapshot", "?"), argv[optind]);
	json_decref(end);
	return code;
}

static void print_deleted(const char *id, const char *volume, double freed_bytes, uint64_t objects)
{
	printf("deleted snapshot %s of %s: %s freed, %llu objects\n", id, volume,
	       format_bytes(freed_bytes).text, (unsigned long long)objects);
}

static int snapshot_delete_cmd(struct cli *cli, int argc, char **argv)
{
	char id[ID128_TEXT_BYTES], rest[64];
	json_t *job, *end = NULL;
	const json_t *result;
	char *path;
	int code;

	if (!cli_arguments(argc, 2, 2, "VOLUME ID"))
		return CLI_USAGE;
	code = resolve(cli, argv[optind], argv[optind + 1], id);
	if (code)
		return code;
	snprintf(rest, sizeof(rest), "/snapshots/%s", id);
	path = client_volume_path(argv[optind], rest);
	code = client_call(cli, "DELETE", path, NULL, &job);
	free(path);
	if (code)
		return code;
	code = client_follow_job(cli, job, "deleting", &end);
	result = json_object_get(end, "result");
	if (!code)
		print_deleted(id, argv[optind], client_number(result, "freed_bytes"),
			      (uint64_t)client_integer(result, "deleted_objects"));
	json_decref(end);
	return code;
}

/* ---- list --------------------------------------------------------------------------------------- */

static void print_set(const struct snapshot_set *set)
{
	bool locks = false;

	if (!set->count)
		return;
	for (unsigned i = 0; i < set->count; i++)
		locks = locks || set->infos[i].retention.until_ns;
	printf("%-12s  %-19s  %10s  %10s  %10s  %10s  %s%s\n", "ID", "CREATED", "SIZE", "DATA",
	       "CHANGED", "STORED", locks ? "LOCKED UNTIL         " : "", "LABEL");
	for (unsigned i = 0; i < set->count; i++) {
		const struct snapshot_info *info = &set->infos[i];
		char id[ID128_TEXT_BYTES];

		id128_format(&info->id, id);
		printf("%.12s  %-19s  %10s  %10s  %10s  %10s  ", id,
		       format_time(info->created_ns).text, format_bytes(info->size_bytes).text,
		       format_bytes(info->data_bytes).text, format_bytes(info->changed_bytes).text,
		       format_bytes(info->stored_bytes).text);
		if (locks)
			printf("%-19s  ", info->retention.until_ns
						  ? format_time(info->retention.until_ns).text
						  : "-");
		puts(info->label);
	}
}

static int list_by_daemon(struct cli *cli, int argc, char **argv, const struct options *options)
{
	struct snapshot_set set = {0};
	json_t *answer = NULL;
	int code;

	if (!cli_arguments(argc, 1, 1, "VOLUME (or --store URL)"))
		return CLI_USAGE;
	code = fetch_set(cli, argv[optind], &answer, &set);
	if (!code && options->json) {
		json_dumpf(answer, stdout, JSON_INDENT(2));
		putchar('\n');
	} else if (!code) {
		print_set(&set);
		if (!set.count)
			printf("%s has no snapshots\n", argv[optind]);
	}
	if (!code && set.damaged)
		code = CLI_DAMAGED;
	snapshot_set_free(&set);
	json_decref(answer);
	return code;
}

/* Lists one volume of a store; adds to json if there is one. */
static int list_volume(struct local *local, const struct snapshot_info *volume, json_t *json)
{
	struct snapshot_set set;
	char uuid[ID128_TEXT_BYTES];
	int code = local_snapshots(local, &volume->volume, &set);

	id128_format(&volume->volume, uuid);
	if (!code && !json) {
		printf("volume %s  %s\n", *volume->volume_name ? volume->volume_name : "-", uuid);
		print_set(&set);
	}
	for (unsigned i = 0; !code && json && i < set.count; i++)
		json_array_append_new(json, render_snapshot(&set.infos[i]));
	if (!code && set.damaged)
		code = CLI_DAMAGED;
	snapshot_set_free(&set);
	return code;
}

/* Calls each for the volumes of the store, or the one named; the first exit code that is not 0. */
static int each_volume(struct local *local, const char *name,
		       int (*each)(struct local *local, const struct snapshot_info *volume,
				   void *context),
		       void *context)
{
	const struct snapshot_info *found;
	struct snapshot_set volumes = {0};
	int code = local_volumes(local, &volumes);

	if (!code && name) {
		code = snapshot_set_find_volume(&volumes, name, &found);
		if (!code)
			code = each(local, found, context);
	} else if (!code) {
		if (!volumes.count && volumes.damaged)
			code = cli_fail(CLI_DAMAGED,
					"the store holds no snapshot that can be read");
		else if (!volumes.count)
			fprintf(stderr, "the store holds no snapshot\n");
		for (unsigned i = 0; i < volumes.count; i++) {
			int one = each(local, &volumes.infos[i], context);

			code = code ? code : one;
		}
	}
	snapshot_set_free(&volumes);
	return code;
}

static int list_each(struct local *local, const struct snapshot_info *volume, void *context)
{
	return list_volume(local, volume, context);
}

static int list_by_store(int argc, char **argv, const struct options *options)
{
	json_t *json = options->json ? json_array() : NULL;
	struct local local;
	int code;

	if (!cli_arguments(argc, 0, 1, "")) {
		json_decref(json);
		return CLI_USAGE;
	}
	code = local_open_env(&local);
	if (!code)
		code = local_open_store(&local, options->store, &options->secret);
	if (!code)
		code = each_volume(&local, optind < argc ? argv[optind] : NULL, list_each, json);
	if (json && (!code || code == CLI_DAMAGED)) {
		json_t *answer = json_pack("{s:O}", "snapshots", json);

		json_dumpf(answer, stdout, JSON_INDENT(2));
		putchar('\n');
		json_decref(answer);
	}
	json_decref(json);
	local_close(&local);
	return code;
}

/* ---- verify ------------------------------------------------------------------------------------- */

static void print_verified(const char *volume, double checked, unsigned long long bad,
			   unsigned long long archived)
{
	if (archived)
		printf("%s: %llu objects are archived, and were not read\n", volume, archived);
	if (bad)
		printf("%s: %llu damaged or missing objects, %s checked\n", volume, bad,
		       format_bytes(checked).text);
	else
		printf("%s: fine, %s checked\n", volume, format_bytes(checked).text);
}

static int verify_by_daemon(struct cli *cli, int argc, char **argv, const struct options *options)
{
	char id[ID128_TEXT_BYTES];
	json_t *body, *job, *end = NULL, *object;
	const json_t *result;
	char *path;
	size_t i;
	int code;

	if (!cli_arguments(argc, 1, 2, "VOLUME (or --store URL)"))
		return CLI_USAGE;
	body = json_pack("{s:i}", "sample_percent", (int)options->sample_percent);
	if (argc - optind == 2) {
		code = resolve(cli, argv[optind], argv[optind + 1], id);
		if (code) {
			json_decref(body);
			return code;
		}
		json_object_set_new(body, "snapshot", json_string(id));
	}
	path = client_volume_path(argv[optind], "/verify-snapshots");
	code = client_call(cli, "POST", path, body, &job);
	free(path);
	if (code)
		return code;
	code = client_follow_job(cli, job, "verifying", &end);
	result = json_object_get(end, "result");
	json_array_foreach(json_object_get(result, "damaged"), i, object)
		printf("damaged: %s: %s (snapshot %.12s)\n", client_text(object, "object", "?"),
		       client_text(object, "why", "?"), client_text(object, "snapshot", "?"));
	if (!code || code == CLI_DAMAGED)
		print_verified(argv[optind], client_number(result, "checked_bytes"),
			       client_integer(result, "bad_objects"),
			       client_integer(result, "archived_objects"));
	json_decref(end);
	return code;
}

/* One verification under way without a daemon. */
struct verification {
	struct local_run run; /* first: see local_run_done() */
	struct format_progress progress;
	struct env *env;
	unsigned sample_percent;
	const char *id_text; /* NULL: all snapshots */
};

static void verify_bad(void *context, const char *object, const char *why,
		       const struct snapshot_info *hit)
{
	struct verification *verification = context;
	char id[ID128_TEXT_BYTES] = "?";

	format_progress_end(&verification->progress);
	if (hit)
		id128_format(&hit->id, id);
	printf("damaged: %s: %s (snapshot %.12s)\n", object, why, id);
}

static void verify_progress(void *context, const struct snapshot_progress *progress)
{
	struct verification *verification = context;

	format_progress_show(&verification->progress, (double)progress->done_bytes,
			     (double)progress->total_bytes,
			     (double)(env_now_ns(verification->env) - progress->started_ns) / 1e9);
}

static int verify_volume(struct local *local, const struct snapshot_info *volume, void *context)
{
	struct verification *verification = context;
	const struct snapshot_info *found = NULL;
	struct snapshot_set set = {0};
	struct snapshot_repo *repo;
	unsigned unreadable;
	int code = local_snapshots(local, &volume->volume, &set);

	if (!code && verification->id_text)
		code = snapshot_set_find(&set, verification->id_text, &found);
	unreadable = set.damaged;
	repo = code ? NULL : snapshot_repo_new(local->store, &volume->volume);
	if (!repo) {
		snapshot_set_free(&set);
		return code ? code : cli_fail(CLI_FAILED, "out of memory");
	}
	verification->run = (struct local_run){0};
	format_progress_begin(&verification->progress, "verifying");
	snapshot_verify(repo, found ? &found->id : NULL, verification->sample_percent, verify_bad,
			verify_progress, local_run_done, verification);
	code = local_wait(local, &verification->run);
	format_progress_end(&verification->progress);
	print_verified(volume->volume_name, (double)verification->run.result.checked_bytes,
		       verification->run.result.bad_objects,
		       verification->run.result.archived_objects);
	if ((!code || code == CLI_FAILED) &&
	    (verification->run.result.bad_objects || (unreadable && !found)))
		code = CLI_DAMAGED;
	snapshot_repo_free(repo);
	snapshot_set_free(&set);
	return code;
}

static int verify_by_store(int argc, char **argv, const struct options *options)
{
	struct verification verification = {.sample_percent = options->sample_percent};
	struct local local;
	int code;

	if (!cli_arguments(argc, 0, 2, ""))
		return CLI_USAGE;
	if (argc - optind == 2)
		verification.id_text = argv[optind + 1];
	code = local_open_env(&local);
	if (!code)
		code = local_open_store(&local, options->store, &options->secret);
	verification.env = local.env;
	if (!code)
		code = each_volume(&local, optind < argc ? argv[optind] : NULL, verify_volume,
				   &verification);
	local_close(&local);
	return code;
}

/* ---- forget ------------------------------------------------------------------------------------- */

static void forget_each(void *context, const struct snapshot_info *info, bool keep, const char *why)
{
	char id[ID128_TEXT_BYTES];

	id128_format(&info->id, id);
	printf("%-4s  %.12s  %s  %s%s%s\n", keep ? "keep" : "go", id,
	       format_time(info->created_ns).text, why, *why && *info->label ? "; " : "",
	       info->label);
}

static int forget_volume(struct local *local, const struct snapshot_info *volume, void *context)
{
	const struct options *options = context;
	struct snapshot_repo *repo = snapshot_repo_new(local->store, &volume->volume);
	struct local_run run = {.done = false};
	int code;

	if (!repo)
		return cli_fail(CLI_FAILED, "out of memory");
	snapshot_forget(repo, &options->policy, options->dry_run, forget_each, local_run_done,
			&run);
	code = local_wait(local, &run);
	if (!code)
		printf("%s: %s%s freed, %llu objects\n", volume->volume_name,
		       options->dry_run ? "would be " : "",
		       format_bytes((double)run.result.freed_bytes).text,
		       (unsigned long long)run.result.deleted_objects);
	if (!code && run.result.renewed_snapshots && options->dry_run)
		printf("%s: %llu snapshots that stay would be locked for longer\n",
		       volume->volume_name, (unsigned long long)run.result.renewed_snapshots);
	else if (!code && run.result.renewed_snapshots)
		printf("%s: %llu snapshots that stay are locked for longer, with %llu objects\n",
		       volume->volume_name, (unsigned long long)run.result.renewed_snapshots,
		       (unsigned long long)run.result.renewed_objects);
	if (!code && run.result.locked_objects)
		printf("%s: %llu objects are locked, and left for a later run\n",
		       volume->volume_name, (unsigned long long)run.result.locked_objects);
	snapshot_repo_free(repo);
	return code;
}

/* pin, unpin, delete */
static int do_to_one(struct local *local, const struct snapshot_info *volume, void *context)
{
	const struct options *options = context;
	const struct snapshot_info *found;
	struct snapshot_set set = {0};
	struct snapshot_repo *repo = NULL;
	struct local_run run = {.done = false};
	int code = local_snapshots(local, &volume->volume, &set);

	if (!code)
		code = snapshot_set_find(&set, options->one, &found);
	if (!code)
		repo = snapshot_repo_new(local->store, &volume->volume);
	if (!code && !repo)
		code = cli_fail(CLI_FAILED, "out of memory");
	if (!code && options->deletes)
		snapshot_delete(repo, &found->id, local_run_done, &run);
	else if (!code && options->pin)
		snapshot_pin(repo, &found->id, NULL, local_run_done, &run);
	else if (!code)
		snapshot_unpin(repo, &found->id, NULL, options->all, local_run_done, &run);
	if (!code)
		code = local_wait(local, &run);
	if (!code && options->deletes) {
		char id[ID128_TEXT_BYTES];

		id128_format(&found->id, id);
		print_deleted(id, volume->volume_name, (double)run.result.freed_bytes,
			      run.result.deleted_objects);
	}
	if (!code && run.result.pins_left)
		printf("%s: still pinned by %u restore%s; if that is no more: unpin --all\n",
		       options->one, run.result.pins_left, run.result.pins_left == 1 ? "" : "s");
	snapshot_repo_free(repo);
	snapshot_set_free(&set);
	return code;
}

static bool policy_given(const struct retention_policy *policy)
{
	const struct retention_policy none = {.last = 0};

	return memcmp(policy, &none, sizeof(none)) != 0;
}

static int forget_in(const char *volume, struct options *options)
{
	struct local local;
	int code = local_open_env(&local);

	if (!code)
		code = local_open_store(&local, options->store, &options->secret);
	if (!code) {
		local.store->list_lag_ns = options->list_lag_ns;
		code = each_volume(&local, volume, options->one ? do_to_one : forget_volume,
				   options);
	}
	local_close(&local);
	return code;
}

/* Store, secret and policy as the volume's section of the configuration has them. */
static int forget_by_config(struct cli *cli, const char *volume, struct options *options)
{
	char *errors = NULL;
	struct config *config = config_load(cli->config, &errors);
	const struct config_volume *c = NULL;
	bool given;
	int code;

	if (!config)
		fputs(errors ? errors : "offsite: out of memory\n", stderr);
	free(errors);
	if (!config)
		return CLI_USAGE;
	for (unsigned i = 0; i < config->volume_count; i++)
		if (!strcmp(config->volumes[i].name, volume))
			c = &config->volumes[i];
	if (!c || !c->store) {
		code = cli_fail(CLI_FAILED, "volume %s: %s %s", volume,
				c ? "no store is configured in" : "not in", cli->config);
		config_free(config);
		return code;
	}
	options->store = c->store;
	if (!options->list_lag_given)
		options->list_lag_ns = c->store_list_lag_ns;
	options->secret = (struct secret_source){c->store_passphrase_file, c->store_key_file,
						 c->store_key_command};
	if (!policy_given(&options->policy))
		options->policy = (struct retention_policy){
			.last = c->keep_last,
			.hourly = c->keep_hourly,
			.daily = c->keep_daily,
			.weekly = c->keep_weekly,
			.monthly = c->keep_monthly,
			.yearly = c->keep_yearly,
			.within_ns = c->keep_within_ns,
		};
	given = policy_given(&options->policy);
	options->policy.lock_for_ns = c->lock ? c->lock_for_ns : 0;
	options->policy.every_ns = c->snapshot_every_ns;
	code = options->one || given
		       ? forget_in(volume, options)
		       : cli_fail(CLI_USAGE, "volume %s: no keep-... in %s: all snapshots stay",
				  volume, cli->config);
	config_free(config);
	return code;
}

static int snapshot_forget_cmd(struct cli *cli, int argc, char **argv, struct options *options)
{
	const bool pins = strcmp(argv[optind - 1], "forget") != 0;

	if (!cli_arguments(argc, 1 + pins, 1 + pins, pins ? "VOLUME ID" : "VOLUME"))
		return CLI_USAGE;
	options->pin = !strcmp(argv[optind - 1], "pin");
	options->one = pins ? argv[optind + 1] : NULL;
	if (!options->store && !cli->config)
		return cli_fail(CLI_USAGE, "--store URL, or --config FILE, expected");
	if (!options->store)
		return forget_by_config(cli, argv[optind], options);
	if (!pins && !policy_given(&options->policy))
		return cli_fail(CLI_USAGE, "forget: a --keep option is missing; try --help");
	return forget_in(argv[optind], options);
}

static int delete_by_store(int argc, char **argv, struct options *options)
{
	if (!cli_arguments(argc, 2, 2, "VOLUME ID"))
		return CLI_USAGE;
	options->deletes = true;
	options->one = argv[optind + 1];
	return forget_in(argv[optind], options);
}

/* ---- the verbs ------------------------------------------------------------------------------ */

int cmd_snapshot(struct cli *cli, int argc, char **argv)
{
	struct options options;
	const char *verb;
	int code = parse_options(cli, argc, argv, &options);

	if (code >= 0)
		return code;
	if (optind == argc)
		return cli_fail(CLI_USAGE,
				"create, list, delete, forget, pin, unpin, diff, prove or "
				"verify expected; try --help");
	verb = argv[optind++];
	if (options.list_lag_given && strcmp(verb, "forget") &&
	    (strcmp(verb, "delete") || !options.store))
		return cli_fail(CLI_USAGE,
				"--store-list-lag: only with forget, and with delete --store");
	if (options.all && strcmp(verb, "unpin"))
		return cli_fail(CLI_USAGE, "--all: only with unpin");
	if (!strcmp(verb, "list"))
		return options.store ? list_by_store(argc, argv, &options)
				     : list_by_daemon(cli, argc, argv, &options);
	if (!strcmp(verb, "verify"))
		return options.store ? verify_by_store(argc, argv, &options)
				     : verify_by_daemon(cli, argc, argv, &options);
	if (!strcmp(verb, "diff"))
		return snapshot_diff_cmd(cli, argc, argv, options.store, &options.secret,
					 options.json);
	if (!strcmp(verb, "forget") || !strcmp(verb, "pin") || !strcmp(verb, "unpin"))
		return snapshot_forget_cmd(cli, argc, argv, &options);
	if (!strcmp(verb, "delete"))
		return options.store ? delete_by_store(argc, argv, &options)
				     : snapshot_delete_cmd(cli, argc, argv);
	if (options.store)
		return cli_fail(CLI_USAGE, "--store: not with create and prove");
	if (!strcmp(verb, "create"))
		return snapshot_create_cmd(cli, argc, argv, &options);
	if (!strcmp(verb, "prove"))
		return snapshot_prove_cmd(cli, argc, argv, &options);
	return cli_fail(CLI_USAGE,
			"snapshot %s: unknown; create, list, delete, forget, pin, unpin, diff, "
			"prove or verify "
			"expected",
			verb);
}
