// SPDX-License-Identifier: Apache-2.0
/*
 * restore: from a store to a file or device with nothing else at hand; in place through the daemon;
 * in place of a volume whose daemon is stopped; from the peer.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/format.h"
#include "cli/local.h"
#include "daemon/config.h"
#include "daemon/snapshot/plan.h"

const char help_restore[] =
	"Usage: offsite restore --store URL --to PATH [--volume NAME|UUID] [--snapshot ID]\n"
	"                       [--force]\n"
	"       offsite restore VOLUME [--snapshot ID] [--instant [--volume NAME|UUID]]\n"
	"       offsite restore VOLUME --from-peer\n"
	"\n"
	"The first form needs nothing but the store: no daemon, no configuration. PATH is a new\n"
	"file, or with --force an existing file or device, which is then overwritten.\n"
	"The second restores a volume in place: through its daemon, or, when the daemon is "
	"stopped\n"
	"and --config FILE is given, by itself. No client may have the volume open; afterwards\n"
	"the peer catches up. With --instant clients can use it within a second: what they read\n"
	"is fetched first, the rest behind, over restarts; `offsite status` shows how far it is.\n"
	"The third takes the content from the peer (the disk here was lost or replaced).\n"
	"\n"
	"ID is a snapshot's id, a unique beginning of it, or 'latest' (the default).\n"
	"Interrupted at any point, a restore can be run again; what is half restored is never\n"
	"taken for good. Every byte is checked before it is written.\n"
	"\n"
	"  --store URL      s3://bucket/prefix or file:/directory\n"
	"  --to PATH        where to\n"
	"  --volume NAME    which volume of the store, by name or uuid, if it holds several; with\n"
	"                   --instant another volume: a new one that nobody wrote to becomes that\n"
	"  --instant        use it at once, fetch behind\n"
	"  --dry-run        only print the plan: bytes, requests, time, what is overwritten\n"
	"  --json           with --dry-run: the plan as JSON\n"
	"  --snapshot ID    which snapshot\n"
	"  --force          overwrite an existing file or device\n"
	"  --from-peer      everything from the peer\n" LOCAL_HELP_SECRET;

struct options {
	const char *store, *to, *volume, *snapshot;
	bool force, from_peer, instant, dry_run, json;
	struct secret_source secret;
};

/* One restore under way in this process. */
struct restoring {
	struct local_run run; /* first: see local_run_done() */
	struct format_progress progress;
	struct env *env;
	uint64_t started_ns;
};

/* After "there is no snapshot": a volume whose state directory was lost has a new uuid, so what the
 * store has under the old one is not found by the volume's name on this node. */
static void hint_at_store(const struct snapshot_set *set)
{
	if (!set->count)
		fputs("If the store holds them under an older uuid: `offsite snapshot list --store "
		      "URL` shows them,\n`offsite restore --store URL --to PATH` restores one to "
		      "the volume's backing (daemon stopped).\n",
		      stderr);
}

static void restore_progress(void *context, const struct snapshot_progress *progress)
{
	struct restoring *restoring = context;

	format_progress_archive(&restoring->progress, progress->archived_objects,
				(double)progress->archive_ns / 1e9);
	format_progress_show(&restoring->progress, (double)progress->done_bytes,
			     (double)progress->total_bytes,
			     (double)(env_now_ns(restoring->env) - progress->started_ns) / 1e9);
}

/* ---- the plan -------------------------------------------------------------------------------- */

static void plan_print_fetch(FILE *out, const json_t *plan, const struct options *options)
{
	bool known = json_is_number(json_object_get(plan, "estimate_seconds"));

	fprintf(out, "  fetch      %s%s",
		json_is_true(json_object_get(plan, "at_most")) ? "at most " : "",
		format_bytes(client_number(plan, "fetch_bytes")).text);
	if (!options->from_peer)
		fprintf(out, " in %s%.0f requests",
			json_is_true(json_object_get(plan, "exact")) ? "" : "about ",
			client_number(plan, "requests"));
	fprintf(out, ", %s%s%s\n", known ? "about " : "for how long is not known",
		known ? format_duration(client_number(plan, "estimate_seconds")).text : "",
		options->instant ? ", while it is in use" : "");
}

/* As the daemon's: see docs/API.md. */
static void plan_print(const json_t *plan, const struct options *options)
{
	FILE *out = options->dry_run ? stdout : stderr;

	if (options->json) {
		json_dumpf(plan, stdout, JSON_INDENT(2));
		putchar('\n');
		return;
	}
	if (options->from_peer)
		fprintf(out, "plan: the peer's content onto %s\n",
			client_text(plan, "target", "?"));
	else
		fprintf(out, "plan: snapshot %.12s of %s onto %s\n",
			client_text(plan, "snapshot", "?"), client_text(plan, "created", "?"),
			client_text(plan, "target", "?"));
	plan_print_fetch(out, plan, options);
	if (client_integer(plan, "archived_objects"))
		fprintf(out,
			"  archive    %llu objects, to be brought back first if they are not: up "
			"to %s\n",
			(unsigned long long)client_integer(plan, "archived_objects"),
			format_duration(client_number(plan, "archive_seconds")).text);
	fprintf(out, "  write      %s at most\n",
		format_bytes(client_number(plan, "write_bytes")).text);
	fprintf(out, "  overwrites %s\n", client_text(plan, "target_now", "nothing"));
}

struct planning {
	struct local_run run; /* first: see local_run_done() */
	struct snapshot_plan plan;
};

static void planned(void *context, const struct snapshot_plan *plan, int error, const char *why)
{
	struct planning *planning = context;

	if (plan)
		planning->plan = *plan;
	planning->run.result.error = error;
	snprintf(planning->run.result.why, sizeof(planning->run.result.why), "%s", why);
	planning->run.done = true;
}

/* What is at the path now, which will be overwritten; whether that may have some of it already. */
static bool describe(const char *path, char *text, size_t size)
{
	struct stat st;
	char *half = NULL;
	bool found;

	if (!stat(path, &st)) {
		if (S_ISBLK(st.st_mode))
			snprintf(text, size, "the device");
		else
			snprintf(text, size, "the file: %s, of which %s are allocated",
				 format_bytes((double)st.st_size).text,
				 format_bytes((double)st.st_blocks * 512).text);
		return true;
	}
	if (asprintf(&half, "%s.incomplete", path) < 0)
		exit(cli_fail(CLI_FAILED, "out of memory"));
	found = !stat(half, &st) && st.st_size > 0;
	free(half);
	if (found)
		snprintf(text, size, "nothing: it is new; an interrupted restore left %s",
			 format_bytes((double)st.st_blocks * 512).text);
	else
		snprintf(text, size, "nothing: it is new");
	return found;
}

static int plan_local(struct local *local, const struct snapshot_info *info,
		      const struct options *options, const char *target, const char *target_now,
		      const struct snapshot_plan_target *onto)
{
	struct snapshot_repo *repo = snapshot_repo_new(local->store, &info->volume);
	struct planning planning = {.run = {.done = false}};
	const struct snapshot_plan *plan = &planning.plan;
	char id[ID128_TEXT_BYTES];
	json_t *json;
	int code;

	if (!repo)
		return cli_fail(CLI_FAILED, "out of memory");
	snapshot_plan(repo, &info->id, onto, planned, &planning);
	code = local_wait(local, &planning.run);
	if (!code) {
		id128_format(&plan->info.id, id);
		json = json_pack(
			"{s:s, s:s, s:I, s:b, s:I, s:I, s:b, s:f, s:I, s:f, s:s, s:s}", "snapshot",
			id, "created", format_time(plan->info.created_ns).text, "fetch_bytes",
			(json_int_t)plan->fetch_bytes, "at_most", plan->at_most, "write_bytes",
			(json_int_t)plan->write_bytes, "requests", (json_int_t)plan->requests,
			"exact", plan->exact, "estimate_seconds", (double)plan->estimate_ns / 1e9,
			"archived_objects", (json_int_t)plan->archived_objects, "archive_seconds",
			(double)plan->archive_ns / 1e9, "target", target, "target_now", target_now);
		plan_print(json, options);
		json_decref(json);
	}
	snapshot_repo_free(repo);
	return code;
}

/* Restores to target, which is freed in any case. */
static int run_restore(struct local *local, const struct snapshot_info *info,
		       struct snapshot_target *target, const char *where)
{
	struct snapshot_repo *repo = snapshot_repo_new(local->store, &info->volume);
	struct restoring restoring = {.env = local->env, .started_ns = env_now_ns(local->env)};
	const struct snapshot_result *result = &restoring.run.result;
	char id[ID128_TEXT_BYTES];
	int code;

	if (!repo) {
		target->free(target);
		return cli_fail(CLI_FAILED, "out of memory");
	}
	id128_format(&info->id, id);
	fprintf(stderr, "restoring %s as of %s (snapshot %.12s%s%s) to %s\n",
		*info->volume_name ? info->volume_name : "volume",
		format_time(info->created_ns).text, id, *info->label ? ", " : "", info->label,
		where);
	format_progress_begin(&restoring.progress, "restoring");
	snapshot_restore(repo, &info->id, target, restore_progress, local_run_done, &restoring);
	env_run_until(local->env, &restoring.run.done);
	format_progress_end(&restoring.progress);
	code = local_wait(local, &restoring.run);
	if (!code)
		printf("restored snapshot %s to %s: %s in %s (%s written, %s were right already)\n",
		       id, where, format_bytes((double)info->size_bytes).text,
		       format_duration((double)(env_now_ns(local->env) - restoring.started_ns) /
				       1e9)
			       .text,
		       format_bytes((double)result->written_bytes).text,
		       format_bytes((double)result->skipped_bytes).text);
	snapshot_repo_free(repo);
	return code;
}

/* ---- from a store to a file or device -------------------------------------------------------- */

static int restore_to(struct local *local, const struct options *options,
		      const struct snapshot_info *info)
{
	struct snapshot_plan_target onto = {.volume = NULL};
	struct snapshot_target *target;
	char why[512] = "", now[160];
	int error;

	onto.holds_something = describe(options->to, now, sizeof(now));
	onto.exact = options->dry_run && !onto.holds_something;
	error = plan_local(local, info, options, options->to, now, &onto);
	if (error || options->dry_run)
		return error;
	error = snapshot_target_file(local->env, options->to, options->force, &target, why,
				     sizeof(why));

	if (error)
		return cli_fail(cli_code_of(error), "%s%s", why,
				error == -EEXIST && !strstr(why, "--force")
					? " (--force overwrites it)"
					: "");
	return run_restore(local, info, target, options->to);
}

static int restore_from_store(const struct options *options)
{
	const struct snapshot_info *volume, *info;
	struct snapshot_set volumes = {0}, snapshots = {0};
	struct local local;
	int code = local_open_env(&local);

	if (!code)
		code = local_open_store(&local, options->store, &options->secret);
	if (!code)
		code = local_volumes(&local, &volumes);
	if (!code)
		code = snapshot_set_find_volume(&volumes, options->volume, &volume);
	if (!code)
		code = local_snapshots(&local, &volume->volume, &snapshots);
	if (!code)
		code = snapshot_set_find(&snapshots, options->snapshot, &info);
	if (!code)
		code = restore_to(&local, options, info);
	snapshot_set_free(&volumes);
	snapshot_set_free(&snapshots);
	local_close(&local);
	return code;
}

/* ---- in place, the daemon being stopped --------------------------------------------------------- */

struct offline {
	struct local local;
	struct config *config;
	const struct config_volume *volume_config;
	struct env_file *lock;
	struct volume *volume;
	char *state_dir;
};

static int offline_config(struct cli *cli, const char *name, struct offline *offline)
{
	char *errors = NULL;

	offline->config = config_load(cli->config, &errors);
	if (!offline->config)
		fputs(errors ? errors : "offsite: out of memory\n", stderr);
	free(errors);
	if (!offline->config)
		return CLI_USAGE;
	for (unsigned i = 0; i < offline->config->volume_count; i++)
		if (!strcmp(offline->config->volumes[i].name, name))
			offline->volume_config = &offline->config->volumes[i];
	if (!offline->volume_config)
		return cli_fail(CLI_FAILED, "volume %s: not in %s", name, cli->config);
	if (!offline->volume_config->store)
		return cli_fail(CLI_REFUSED, "volume %s: no store is configured", name);
	return CLI_FINE;
}

/* The daemon's own lock: it can neither run nor start meanwhile. */
static int offline_lock(struct offline *offline)
{
	const char *state_dir = offline->config->node.state_dir;
	char *path = NULL;
	int error = env_mkdir(offline->local.env, state_dir);

	if (!error && asprintf(&path, "%s/lock", state_dir) < 0)
		error = -ENOMEM;
	if (!error)
		error = env_file_open(offline->local.env, path,
				      ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE |
					      ENV_FILE_LOCK,
				      &offline->lock);
	free(path);
	if (error == -EWOULDBLOCK)
		return cli_fail(CLI_REFUSED,
				"%s: an offsited is running with it, but does not answer",
				state_dir);
	return error ? cli_fail(CLI_FAILED, "%s: %s", state_dir, strerror(-error)) : CLI_FINE;
}

static int offline_volume(struct offline *offline)
{
	const struct config_volume *c = offline->volume_config;
	struct volume_config config = {
		.name = c->name,
		.backing = c->backing,
		.size_bytes = c->size_bytes,
		.role = c->primary ? VOLUME_PRIMARY : VOLUME_SECONDARY,
		.block_min_bytes = c->block_min_bytes,
		.preserve_max_bytes = c->preserve_max_bytes,
	};
	struct volume_state state;
	char why[512] = "";
	int error;

	if (asprintf(&offline->state_dir, "%s/%s", offline->config->node.state_dir, c->name) < 0)
		return cli_fail(CLI_FAILED, "out of memory");
	config.state_dir = offline->state_dir;
	error = volume_open(offline->local.env, &config, &offline->volume, why, sizeof(why));
	if (error)
		return cli_fail(cli_code_of(error), "%s", why);
	volume_get_state(offline->volume, &state);
	if (state.role != VOLUME_PRIMARY)
		return cli_fail(
			CLI_REFUSED,
			"volume %s: is secondary on this node; promote it first, or restore "
			"on the primary",
			c->name);
	if (state.disk != VOLUME_DISK_FAILED)
		return CLI_FINE;
	error = volume_replace_backing(offline->volume, why, sizeof(why));
	return error ? cli_fail(cli_code_of(error), "%s", why) : CLI_FINE;
}

static int offline_run(struct offline *offline, const struct options *options)
{
	struct snapshot_set snapshots = {0};
	const struct snapshot_info *info;
	struct snapshot_target *target;
	const struct config_volume *config = offline->volume_config;
	const struct secret_source secret = {config->store_passphrase_file, config->store_key_file,
					     config->store_key_command};
	struct volume_state state;
	char why[512] = "";
	int code, error;

	volume_get_state(offline->volume, &state);
	code = local_open_store(&offline->local, offline->volume_config->store, &secret);
	if (!code)
		code = local_snapshots(&offline->local, &state.uuid, &snapshots);
	if (!code) {
		code = snapshot_set_find(&snapshots, options->snapshot, &info);
		if (code)
			hint_at_store(&snapshots);
	}
	if (!code) {
		snprintf(why, sizeof(why), "primary, disk %s, its daemon stopped",
			 volume_disk_state_name(state.disk));
		code = plan_local(&offline->local, info, options, config->name, why,
				  &(struct snapshot_plan_target){.holds_something = true,
								 .volume = offline->volume});
	}
	if (!code && !options->dry_run) {
		error = snapshot_target_volume(offline->volume, &target, why, sizeof(why));
		code = error ? cli_fail(cli_code_of(error), "%s", why)
			     : run_restore(&offline->local, info, target,
					   offline->volume_config->name);
	}
	snapshot_set_free(&snapshots);
	return code;
}

static void volume_closed(void *context)
{
	*(bool *)context = true;
}

static void offline_close(struct offline *offline)
{
	bool closed = false;

	if (offline->volume) {
		volume_close(offline->volume, volume_closed, &closed);
		env_run_until(offline->local.env, &closed);
	}
	if (offline->lock)
		env_file_close(offline->local.env, offline->lock);
	local_close(&offline->local);
	config_free(offline->config);
	free(offline->state_dir);
}

static int restore_offline(struct cli *cli, const char *name, const struct options *options)
{
	struct offline offline = {0};
	int code = offline_config(cli, name, &offline);

	if (!code)
		code = local_open_env(&offline.local);
	if (!code)
		code = offline_lock(&offline);
	if (!code)
		code = offline_volume(&offline);
	if (!code)
		code = offline_run(&offline, options);
	offline_close(&offline);
	return code;
}

/* ---- through the daemon ---------------------------------------------------------------------------- */

/* The body of the API's call: {"from": "peer"} or {"snapshot": full id}. */
static int restore_body(struct cli *cli, const char *name, const struct options *options,
			json_t **body)
{
	struct snapshot_set snapshots = {0};
	const struct snapshot_info *info;
	char id[ID128_TEXT_BYTES];
	json_t *answer = NULL;
	char *path;
	int code;

	*body = NULL;
	if (options->from_peer) {
		*body = json_pack("{s:s}", "from", "peer");
		return CLI_FINE;
	}
	if (options->volume) { /* of the store; its snapshots are not this volume's to list */
		bool latest = !options->snapshot || !strcmp(options->snapshot, "latest");

		*body = json_pack("{s:b, s:s, s:s?}", "instant", 1, "volume", options->volume,
				  "snapshot", latest ? NULL : options->snapshot);
		return *body ? CLI_FINE : cli_fail(CLI_USAGE, "--volume: no text");
	}
	path = client_volume_path(name, "/snapshots");
	code = cli->config ? client_try(cli, "GET", path, NULL, &answer)
			   : client_call(cli, "GET", path, NULL, &answer);
	free(path);
	if (!code)
		code = snapshot_set_from_json(answer, &snapshots);
	if (!code) {
		code = snapshot_set_find(&snapshots, options->snapshot, &info);
		if (code)
			hint_at_store(&snapshots);
	}
	if (!code) {
		id128_format(&info->id, id);
		*body = json_pack("{s:s, s:b}", "snapshot", id, "instant", options->instant);
	}
	snapshot_set_free(&snapshots);
	json_decref(answer);
	return code;
}

/* The daemon's. body: of the restore itself. */
static int plan_remote(struct cli *cli, const char *path, const json_t *body,
		       const struct options *options)
{
	json_t *ask = json_deep_copy(body), *job, *end = NULL;
	int code;

	if (!ask)
		return cli_fail(CLI_FAILED, "out of memory");
	json_object_set_new(ask, "dry_run", json_true());
	code = client_call(cli, "POST", path, ask, &job);

	if (!code)
		code = client_follow_job(cli, job, "looking", &end);
	if (!code)
		plan_print(json_object_get(end, "plan"), options);
	json_decref(end);
	return code;
}

static int restore_in_place(struct cli *cli, const char *name, const struct options *options)
{
	json_t *body, *job, *end = NULL;
	char *path;
	int code = restore_body(cli, name, options, &body);

	if (code == CLI_UNREACHABLE && cli->config && options->instant)
		return cli_fail(CLI_UNREACHABLE,
				"volume %s: its daemon does not run; start it: --instant needs it",
				name);
	if (code == CLI_UNREACHABLE && cli->config)
		return restore_offline(cli, name, options);
	if (code)
		return code;
	path = client_volume_path(name, "/restore");
	code = plan_remote(cli, path, body, options);
	if (code || options->dry_run) {
		json_decref(body);
		free(path);
		return code;
	}
	code = client_call(cli, "POST", path, body, &job);
	free(path);
	if (code)
		return code;
	code = client_follow_job(cli, job, options->from_peer ? "from the peer" : "restoring",
				 &end);
	if (!code && options->instant)
		printf("%s: can be used; the rest is fetched behind: offsite status %s\n", name,
		       name);
	else if (!code)
		printf("%s: restored%s\n", name, options->from_peer ? " from the peer" : "");
	json_decref(end);
	return code;
}

/* NULL, or what is wrong with the options together. */
static const char *options_invalid(const struct options *options, int arguments)
{
	if (options->store && arguments)
		return "--store: name the volume with --volume";
	if (options->store && !options->to)
		return "--store: --to PATH is missing";
	if (options->store && options->from_peer)
		return "--from-peer: not together with --store";
	if (options->json && !options->dry_run)
		return "--json: only together with --dry-run";
	if (options->store && options->instant)
		return "--instant: name a volume of the daemon, not --store";
	if (options->store)
		return NULL;
	if (options->volume && !options->instant)
		return "--volume: only together with --store or --instant";
	if (options->instant && options->from_peer)
		return "--instant: not together with --from-peer";
	if (options->to || options->force)
		return "--to and --force: only together with --store";
	if (secret_source_given(&options->secret) && !options->store)
		return "--passphrase-file, --key-file, --key-command: only together with --store";
	if (arguments != 1)
		return "VOLUME, or --store URL --to PATH, expected; try --help";
	if (options->from_peer && options->snapshot)
		return "--from-peer: not together with --snapshot";
	return NULL;
}

int cmd_restore(struct cli *cli, int argc, char **argv)
{
	static const struct option longs[] = {
		{"store", required_argument, NULL, 's'},
		{"to", required_argument, NULL, 't'},
		{"volume", required_argument, NULL, 'v'},
		{"snapshot", required_argument, NULL, 'i'},
		{"force", no_argument, NULL, 'F'},
		{"from-peer", no_argument, NULL, 'p'},
		{"instant", no_argument, NULL, 'I'},
		{"dry-run", no_argument, NULL, 'n'},
		{"json", no_argument, NULL, 'j'},
		LOCAL_OPTIONS_SECRET,
		CLI_OPTIONS_COMMON,
	};
	struct options options = {0};
	const char *wrong;
	int option, code;

	while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (option) {
		case 's':
			options.store = optarg;
			break;
		case 't':
			options.to = optarg;
			break;
		case 'v':
			options.volume = optarg;
			break;
		case 'i':
			options.snapshot = optarg;
			break;
		case 'F':
			options.force = true;
			break;
		case 'p':
			options.from_peer = true;
			break;
		case 'I':
			options.instant = true;
			break;
		case 'n':
			options.dry_run = true;
			break;
		case 'j':
			options.json = true;
			break;
		default:
			if (local_secret_option(option, optarg, &options.secret))
				break;
			code = cli_common_option(cli, option, help_restore);
			if (code >= 0)
				return code;
		}
	}
	wrong = options_invalid(&options, argc - optind);
	if (wrong)
		return cli_fail(CLI_USAGE, "%s", wrong);
	if (options.store)
		return restore_from_store(&options);
	return restore_in_place(cli, argv[optind], &options);
}
