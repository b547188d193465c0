// SPDX-License-Identifier: Apache-2.0
/*
 * key: what opens an encrypted store: showing, adding and removing it. Works on the store itself; no
 * daemon is needed, and one that runs reads what was added before its next snapshot.
 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/format.h"
#include "cli/local.h"
#include "daemon/store/keyring.h"

const char help_key[] =
	"Usage: offsite key list --store URL [--volume NAME|UUID] SECRET\n"
	"       offsite key add --store URL [--volume NAME|UUID] SECRET NEW [--label TEXT]\n"
	"       offsite key remove SLOT --store URL [--volume NAME|UUID] SECRET\n"
	"       offsite key renew --store URL [--volume NAME|UUID] SECRET\n"
	"\n"
	"An encrypted store holds each volume's data key wrapped in one or more slots; any of "
	"them\n"
	"opens it. No data is written anew by any of these.\n"
	"\n"
	"list    shows the slots; * marks those that SECRET opens\n"
	"add     adds a slot that NEW opens\n"
	"remove  removes a slot (a beginning of its id is enough), if SECRET opens another one "
	"for\n"
	"        the same data key\n"
	"renew   makes a new data key for what is written from the next snapshot on, with a slot\n"
	"        for SECRET; what was written before keeps the old one\n"
	"\n"
	"To change a passphrase: add the new one, change the configuration, remove the old slot.\n"
	"\n"
	"SECRET: --passphrase-file FILE, --key-file FILE or --key-command COMMAND\n"
	"NEW:    --new-passphrase-file FILE, --new-key-file FILE or --new-key-command COMMAND\n"
	"  --store URL      s3://bucket/prefix or file:/directory\n"
	"  --volume NAME    which volume of the store, if it holds several\n"
	"  --label TEXT     a word for the new slot\n";

struct options {
	const char *store, *volume, *label;
	struct secret_source secret, added;
};

/* The work of one command. */
struct keys {
	struct local local;
	struct store *bare; /* where the slots are: not encrypted */
	struct secret *secret, *added;
	struct id128 volume;
	struct keyring *ring;
	/* of the operation under way */
	struct env_op op;
	int error;
	bool done;
};

static int store_fail(const char *what, int error)
{
	return cli_fail(cli_code_of(error), "%s: %s", what, store_strerror(error));
}

static void ring_loaded(void *context, struct keyring *ring, int error)
{
	struct keys *keys = context;

	keys->ring = ring;
	keys->error = error;
	keys->done = true;
}

static void slot_added(void *context, const struct id128 *slot, int error)
{
	struct keys *keys = context;

	keys->error = error;
	keys->done = true;
}

static void slot_deleted(struct env_op *op, int64_t result)
{
	struct keys *keys = (struct keys *)((char *)op - offsetof(struct keys, op));

	keys->error = (int)result;
	keys->done = true;
}

static int open_all(struct keys *keys, const struct options *options)
{
	const struct snapshot_info *volume;
	struct snapshot_set volumes = {0};
	char why[512] = "";
	int code = local_open_env(&keys->local);

	if (!code)
		code = local_open_store(&keys->local, options->store, &options->secret);
	if (!code)
		code = local_volumes(&keys->local, &volumes);
	if (!code)
		code = snapshot_set_find_volume(&volumes, options->volume, &volume);
	if (!code)
		keys->volume = volume->volume;
	snapshot_set_free(&volumes);
	if (code)
		return code;
	if (secret_open(&options->secret, &keys->secret, why, sizeof(why)) ||
	    secret_open(&options->added, &keys->added, why, sizeof(why)) ||
	    store_open(keys->local.env, options->store, &keys->bare, why, sizeof(why)))
		return cli_fail(CLI_FAILED, "%s", why);
	keyring_load(keys->bare, &keys->volume, keys->secret, ring_loaded, keys);
	env_run_until(keys->local.env, &keys->done);
	return keys->error ? store_fail(options->store, keys->error) : CLI_FINE;
}

static void close_all(struct keys *keys)
{
	keyring_free(keys->ring);
	secret_free(keys->secret);
	secret_free(keys->added);
	if (keys->bare)
		store_close(keys->bare);
	local_close(&keys->local);
}

static int key_list(struct keys *keys)
{
	static const char *const methods[] = {"damaged", "passphrase", "key file", "command"};

	for (unsigned i = 0; i < keys->ring->slot_count; i++) {
		const struct keyring_slot *slot = &keys->ring->slots[i];
		char id[ID128_TEXT_BYTES], key[ID128_TEXT_BYTES];

		id128_format(&slot->slot, id);
		id128_format(&slot->key, key);
		printf("%c %.12s  %-10s  data key %.12s of %s  %s\n", slot->opened ? '*' : ' ', id,
		       methods[slot->method], key, format_time(slot->created_ns).text, slot->label);
	}
	return CLI_FINE;
}

static int put_slot(struct keys *keys, const struct data_key *key, const struct secret *secret,
		    const char *label)
{
	keys->done = false;
	keyring_add(keys->bare, &keys->volume, key, secret, label, slot_added, keys);
	env_run_until(keys->local.env, &keys->done);
	return keys->error ? store_fail("key not added", keys->error) : CLI_FINE;
}

static bool opens(const struct keyring *ring, const struct id128 *key)
{
	for (unsigned i = 0; i < ring->key_count; i++)
		if (id128_equal(&ring->keys[i].id, key))
			return true;
	return false;
}

/* Every data key gets a slot, else a part of the snapshots could not be read with it. */
static int key_add(struct keys *keys, const char *label)
{
	const struct keyring *ring = keys->ring;
	int code = CLI_FINE;

	if (!keys->added)
		return cli_fail(CLI_USAGE, "the new secret is missing; try --help");
	for (unsigned i = 0; i < ring->slot_count; i++)
		if (!opens(ring, &ring->slots[i].key))
			return cli_fail(
				CLI_REFUSED,
				"the secret given does not open all data keys of the volume "
				"(see offsite key list)");
	for (unsigned i = 0; !code && i < ring->key_count; i++)
		code = put_slot(keys, &ring->keys[i], keys->added, label);
	return code;
}

static int key_renew(struct keys *keys, const char *label)
{
	struct data_key key;
	int code;

	keyring_new_key(keys->local.env, &key);
	code = put_slot(keys, &key, keys->secret, label);
	explicit_bzero(&key, sizeof(key));
	return code;
}

static int find_slot(const struct keyring *ring, const char *text, const struct keyring_slot **slot)
{
	unsigned matches = 0;

	for (unsigned i = 0; i < ring->slot_count; i++) {
		char id[ID128_TEXT_BYTES];

		id128_format(&ring->slots[i].slot, id);
		if (!*text || strncmp(id, text, strlen(text)))
			continue;
		*slot = &ring->slots[i];
		matches++;
	}
	if (matches == 1)
		return CLI_FINE;
	return cli_fail(matches ? CLI_USAGE : CLI_FAILED, "slot '%s': %s", text,
			matches ? "several ids begin so; give more digits"
				: "there is none whose id begins so");
}

static int key_remove(struct keys *keys, const char *text)
{
	const struct keyring *ring = keys->ring;
	const struct keyring_slot *slot = NULL;
	char name[CRYPTFMT_NAME_BYTES];
	bool other = false;
	int code = find_slot(ring, text, &slot);

	if (code)
		return code;
	for (unsigned i = 0; i < ring->slot_count; i++)
		other = other || (ring->slots[i].opened && &ring->slots[i] != slot &&
				  id128_equal(&ring->slots[i].key, &slot->key));
	if (!other)
		return cli_fail(CLI_REFUSED,
				"slot %s: the secret given opens no other slot of this data key; "
				"without one the snapshots could be lost",
				text);
	cryptfmt_key_name(&keys->volume, &slot->key, &slot->slot, name);
	keys->done = false;
	keys->op.done = slot_deleted;
	keys->bare->ops->delete (keys->bare, &keys->op, name);
	env_run_until(keys->local.env, &keys->done);
	return keys->error ? store_fail(name, keys->error) : CLI_FINE;
}

/* -1 to go on, else the exit code. */
static int parse_options(struct cli *cli, int argc, char **argv, struct options *options)
{
	enum { NEW_PASSPHRASE = 0x120, NEW_KEY_FILE, NEW_KEY_COMMAND };
	static const struct option longs[] = {
		{"store", required_argument, NULL, 's'},
		{"volume", required_argument, NULL, 'v'},
		{"label", required_argument, NULL, 'l'},
		{"new-passphrase-file", required_argument, NULL, NEW_PASSPHRASE},
		{"new-key-file", required_argument, NULL, NEW_KEY_FILE},
		{"new-key-command", required_argument, NULL, NEW_KEY_COMMAND},
		LOCAL_OPTIONS_SECRET,
		CLI_OPTIONS_COMMON,
	};
	int option, code;

	*options = (struct options){.label = ""};
	while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (option == 's')
			options->store = optarg;
		else if (option == 'v')
			options->volume = optarg;
		else if (option == 'l')
			options->label = optarg;
		else if (option == NEW_PASSPHRASE)
			options->added.passphrase_file = optarg;
		else if (option == NEW_KEY_FILE)
			options->added.key_file = optarg;
		else if (option == NEW_KEY_COMMAND)
			options->added.key_command = optarg;
		else if (!local_secret_option(option, optarg, &options->secret) &&
			 (code = cli_common_option(cli, option, help_key)) >= 0)
			return code;
	}
	if (strlen(options->label) >= CRYPTFMT_LABEL_BYTES)
		return cli_fail(CLI_USAGE, "--label: longer than %u bytes",
				CRYPTFMT_LABEL_BYTES - 1);
	return -1;
}

int cmd_key(struct cli *cli, int argc, char **argv)
{
	struct options options;
	struct keys keys = {.done = false};
	const char *verb;
	int code = parse_options(cli, argc, argv, &options);

	if (code >= 0)
		return code;
	if (optind == argc)
		return cli_fail(CLI_USAGE, "list, add, remove or renew expected; try --help");
	verb = argv[optind++];
	if (strcmp(verb, "list") && strcmp(verb, "add") && strcmp(verb, "remove") &&
	    strcmp(verb, "renew"))
		return cli_fail(CLI_USAGE, "key %s: unknown; list, add, remove or renew expected",
				verb);
	if (!cli_arguments(argc, !strcmp(verb, "remove"), !strcmp(verb, "remove"), "SLOT"))
		return CLI_USAGE;
	if (!options.store)
		return cli_fail(CLI_USAGE, "--store URL is missing; try --help");
	if (!secret_source_given(&options.secret))
		return cli_fail(CLI_USAGE,
				"one of --passphrase-file, --key-file and --key-command is "
				"missing");
	code = open_all(&keys, &options);
	if (!code && !strcmp(verb, "list"))
		code = key_list(&keys);
	else if (!code && !strcmp(verb, "add"))
		code = key_add(&keys, options.label);
	else if (!code && !strcmp(verb, "remove"))
		code = key_remove(&keys, argv[optind]);
	else if (!code)
		code = key_renew(&keys, options.label);
	close_all(&keys);
	return code;
}
