// SPDX-License-Identifier: Apache-2.0
#include "cli/local.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/format.h"

int local_open_env(struct local *local)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	const char *why = "";
	int error;

	*local = (struct local){0};
	error = env_real_new(ENV_BACKEND_AUTO,
			     cores > 4   ? 4
			     : cores < 1 ? 1
					 : (unsigned)cores,
			     &local->env, &why);
	if (error)
		return cli_fail(CLI_FAILED, "io: %s: %s", why, strerror(-error));
	env_log_level(local->env, ENV_LOG_WARNING);
	return CLI_FINE;
}

bool local_secret_option(int option, const char *argument, struct secret_source *source)
{
	switch (option) {
	case LOCAL_OPTION_PASSPHRASE:
		source->passphrase_file = argument;
		return true;
	case LOCAL_OPTION_KEY_FILE:
		source->key_file = argument;
		return true;
	case LOCAL_OPTION_KEY_COMMAND:
		source->key_command = argument;
		return true;
	default:
		return false;
	}
}

int local_open_store(struct local *local, const char *url, const struct secret_source *source)
{
	const char *path = !strncmp(url, "file:", 5) ? url + 5 : url;
	struct stat stat_buf;
	char why[512];
	int error;

	/* Opening makes a directory that is missing: right for a daemon, wrong for a reader who
	 * mistyped it. */
	if (*path == '/' && stat(path, &stat_buf))
		return cli_fail(CLI_FAILED, "store %s: %s", url, strerror(errno));
	error = crypt_store_open(local->env, url, source, &local->store, why, sizeof(why));
	if (error)
		return cli_fail(CLI_FAILED, "%s", why);
	return CLI_FINE;
}

void local_close(struct local *local)
{
	if (local->store)
		store_close(local->store);
	if (local->env)
		env_free(local->env);
	*local = (struct local){0};
}

void local_run_done(void *context, const struct snapshot_result *result)
{
	struct local_run *run = context;

	run->result = *result;
	run->done = true;
}

int local_wait(struct local *local, struct local_run *run)
{
	env_run_until(local->env, &run->done);
	if (!run->result.error)
		return CLI_FINE;
	return cli_fail(cli_code_of(run->result.error), "%s",
			run->result.why[0] ? run->result.why : store_strerror(run->result.error));
}

/* ---- sets of snapshots ------------------------------------------------------------------------ */

/* One listing under way. */
struct listing {
	struct local_run run; /* first: local_run_done() takes the listing as its context */
	struct snapshot_set *set;
};

static void set_add(struct snapshot_set *set, const struct snapshot_info *info)
{
	if (set->count == set->size) {
		unsigned size = set->size ? set->size * 2 : 64;
		struct snapshot_info *infos = realloc(set->infos, size * sizeof(*infos));

		if (!infos)
			exit(cli_fail(CLI_FAILED, "out of memory"));
		set->infos = infos;
		set->size = size;
	}
	set->infos[set->count++] = *info;
}

static void listing_each(void *context, const struct snapshot_info *info)
{
	struct listing *listing = context;

	set_add(listing->set, info);
}

static void listing_damaged(void *context, const char *object, const char *why)
{
	struct listing *listing = context;

	listing->set->damaged++;
	cli_fail(CLI_DAMAGED, "damaged: %s: %s", object, why);
}

int local_volumes(struct local *local, struct snapshot_set *set)
{
	struct listing listing = {.set = set};

	*set = (struct snapshot_set){0};
	snapshot_volumes(local->store, listing_each, listing_damaged, local_run_done, &listing);
	return local_wait(local, &listing.run);
}

int local_snapshots(struct local *local, const struct id128 *volume, struct snapshot_set *set)
{
	struct snapshot_repo *repo = snapshot_repo_new(local->store, volume);
	struct listing listing = {.set = set};
	int code;

	*set = (struct snapshot_set){0};
	if (!repo)
		return cli_fail(CLI_FAILED, "out of memory");
	snapshot_list(repo, listing_each, listing_damaged, local_run_done, &listing);
	code = local_wait(local, &listing.run);
	snapshot_repo_free(repo);
	return code;
}

static bool id_member(const json_t *json, const char *key, struct id128 *id)
{
	const char *text = client_text(json, key, "");

	return id128_parse(text, strlen(text), id);
}

static void given_up_from_json(const json_t *json, struct snapshot_info *info)
{
	const json_t *list = json_object_get(json, "given_up_before");

	for (size_t i = 0; i < json_array_size(list) && i < SNAPSHOT_GIVEN_UP_MAX; i++) {
		const char *text = json_string_value(json_array_get(list, i));

		if (text)
			id128_parse(text, strlen(text), &info->given_up_before[i]);
	}
}

int snapshot_set_from_json(const json_t *answer, struct snapshot_set *set)
{
	const json_t *json;
	size_t i;

	*set = (struct snapshot_set){0};
	json_array_foreach(json_object_get(answer, "snapshots"), i, json)
	{
		struct snapshot_info info = {
			.sequence = client_integer(json, "sequence"),
			.created_ns = client_integer(json, "created_ns"),
			.lsn = client_integer(json, "lsn"),
			.size_bytes = client_integer(json, "size_bytes"),
			.data_bytes = client_integer(json, "data_bytes"),
			.changed_bytes = client_integer(json, "changed_bytes"),
			.stored_bytes = client_integer(json, "stored_bytes"),
			.objects = (uint32_t)client_integer(json, "objects"),
			.requests = (uint32_t)client_integer(json, "requests"),
			.retention.until_ns = client_integer(json, "locked_until_ns"),
			.given_up = json_is_true(json_object_get(json, "given_up")),
		};

		if (!id_member(json, "id", &info.id) ||
		    !id_member(json, "volume_uuid", &info.volume))
			return cli_fail(CLI_FAILED,
					"the daemon's answer has a snapshot without id");
		if (!id_member(json, "history", &info.history))
			info.history = (struct id128){{0}};
		given_up_from_json(json, &info);
		snprintf(info.volume_name, sizeof(info.volume_name), "%s",
			 client_text(json, "volume", ""));
		snprintf(info.node_name, sizeof(info.node_name), "%s",
			 client_text(json, "node", ""));
		snprintf(info.label, sizeof(info.label), "%s", client_text(json, "label", ""));
		set_add(set, &info);
	}
	json_array_foreach(json_object_get(answer, "damaged"), i, json)
	{
		set->damaged++;
		cli_fail(CLI_DAMAGED, "damaged: %s: %s", client_text(json, "object", "?"),
			 client_text(json, "why", "?"));
	}
	return CLI_FINE;
}

void snapshot_set_free(struct snapshot_set *set)
{
	free(set->infos);
	*set = (struct snapshot_set){0};
}

int snapshot_set_find(const struct snapshot_set *set, const char *text,
		      const struct snapshot_info **found)
{
	unsigned matches = 0;

	if (!set->count && set->damaged)
		return cli_fail(CLI_DAMAGED, "there is no snapshot that can be read");
	if (!set->count)
		return cli_fail(CLI_FAILED, "there is no snapshot");
	if (!text || !strcmp(text, "latest")) {
		*found = snapshot_newest(set->infos, set->count);
		return *found ? CLI_FINE
			      : cli_fail(CLI_FAILED,
					 "there is no snapshot but of what was given up in a split "
					 "brain: name one by its id");
	}
	for (unsigned i = 0; *text && i < set->count; i++) {
		char id[ID128_TEXT_BYTES];

		id128_format(&set->infos[i].id, id);
		if (strncmp(id, text, strlen(text)))
			continue;
		*found = &set->infos[i];
		matches++;
	}
	if (matches == 1)
		return CLI_FINE;
	if (!matches)
		return cli_fail(CLI_FAILED, "snapshot '%s': there is none whose id begins so",
				text);
	return cli_fail(CLI_USAGE, "snapshot '%s': %u ids begin so; give more digits", text,
			matches);
}

static void show_volumes(const struct snapshot_set *set)
{
	for (unsigned i = 0; i < set->count; i++) {
		char uuid[ID128_TEXT_BYTES];

		id128_format(&set->infos[i].volume, uuid);
		fprintf(stderr, "  %s  %s  newest snapshot %s\n", uuid, set->infos[i].volume_name,
			format_time(set->infos[i].created_ns).text);
	}
}

int snapshot_set_find_volume(const struct snapshot_set *set, const char *text,
			     const struct snapshot_info **found)
{
	unsigned matches = 0;

	if (!set->count && set->damaged)
		return cli_fail(CLI_DAMAGED, "the store holds no snapshot that can be read");
	if (!set->count)
		return cli_fail(CLI_FAILED, "the store holds no snapshot");
	for (unsigned i = 0; i < set->count; i++) {
		char uuid[ID128_TEXT_BYTES];

		id128_format(&set->infos[i].volume, uuid);
		if (text && strcmp(text, set->infos[i].volume_name) &&
		    (strlen(text) < 4 || strncmp(uuid, text, strlen(text))))
			continue;
		*found = &set->infos[i];
		matches++;
	}
	if (matches == 1)
		return CLI_FINE;
	if (!matches)
		cli_fail(CLI_FAILED, "volume '%s': not in this store, which has:", text);
	else if (text)
		cli_fail(CLI_USAGE, "volume '%s': not unique, give its uuid:", text);
	else
		cli_fail(CLI_USAGE, "the store has several volumes, choose with --volume:");
	show_volumes(set);
	return matches ? CLI_USAGE : CLI_FAILED;
}
