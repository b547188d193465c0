/* SPDX-License-Identifier: Apache-2.0 */
/* See config_options.h. Defaults are texts that go through the same parser as the file's values. */
#include "daemon/config_options.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/config_values.h"
#include "daemon/store/s3_url.h"

#define ADDRESSES_MAX 8u

static const char *const choices_tls[] = {"off", "on", "require", NULL};
static const char *const choices_io[] = {"auto", "uring", "aio", NULL};
static const char *const choices_level[] = {"error", "warning", "info", "debug", NULL};
static const char *const choices_role[] = {"secondary", "primary", NULL};
static const char *const choices_protocol[] = {"A", "B", "C", NULL};
static const char *const choices_block[] = {"1", "512", "4096", NULL};
static const char *const choices_lag[] = {"slow", "catch-up", NULL}; /* enum pace_action */
static const char *const choices_loss[] = {"continue", "suspend", NULL};
static const char *const choices_io_error[] = {"error", "detach", NULL};
static const char *const choices_0pri[] = {"disconnect", "discard-zero-changes",
					   "discard-least-changes", NULL};
static const char *const choices_1pri[] = {"disconnect", "consensus", "discard-secondary", NULL};
static const char *const choices_lock[] = {"none", "governance", "compliance",
					   NULL}; /* enum store_lock */
static const char *const choices_role_from[] = {"primary", "secondary", NULL};
static const char *const choices_failure[] = {"abort", "continue", NULL};
static const char *const choices_yesno[] = {"no", "yes", NULL};

#define NODE(name, type, field, fallback, help, ...)                                           \
	{                                                                                      \
		SECTION_NODE, name, type, offsetof(struct config_node, field), fallback, help, \
			__VA_ARGS__                                                            \
	}
#define VOLUME(name, type, field, fallback, help, ...)                                             \
	{                                                                                          \
		SECTION_VOLUME, name, type, offsetof(struct config_volume, field), fallback, help, \
			__VA_ARGS__                                                                \
	}
#define NO_LIMITS NULL, 0, 0

/* clang-format off */
const struct config_option config_options[] = {
	NODE("name", TYPE_NAME, name, NULL,
	     "name of this node, another one on the peer; the host's name by default", NO_LIMITS),
	NODE("state-dir", TYPE_PATH, state_dir, "/var/lib/offsite",
	     "directory for the metadata of the volumes", NO_LIMITS),
	NODE("control", TYPE_SOCKET, control, "/run/offsite/control.sock",
	     "unix socket of the control API", NO_LIMITS),
	NODE("nbd-listen", TYPE_ADDRESSES, nbd_listen, "unix:/run/offsite/nbd.sock",
	     "where NBD clients connect: unix:/PATH or HOST:PORT, several separated by blanks",
	     NO_LIMITS),
	NODE("peer-listen", TYPE_LISTEN, peer_listen, NULL,
	     "where the other node connects: HOST:PORT", NO_LIMITS),
	NODE("peer-plaintext", TYPE_YESNO, peer_plaintext, "no",
	     "replicate without TLS, readable for everybody on the way", choices_yesno, 0, 0),
	NODE("psk-file", TYPE_PATH, psk_file, NULL,
	     "pre-shared key between the nodes, made by: offsite keygen", NO_LIMITS),
	NODE("tls-cert", TYPE_PATH, tls_cert, NULL,
	     "certificate (PEM) shown to the peer and to NBD clients", NO_LIMITS),
	NODE("tls-key", TYPE_PATH, tls_key, NULL, "its private key (PEM)", NO_LIMITS),
	NODE("tls-ca", TYPE_PATH, tls_ca, NULL,
	     "CA (PEM) that must have signed the other side's certificate", NO_LIMITS),
	NODE("nbd-tls", TYPE_CHOICE, nbd_tls, "off",
	     "TLS for NBD clients: off, on (for those who ask), require", choices_tls, 0, 0),
	NODE("nbd-psk-file", TYPE_PATH, nbd_psk_file, NULL,
	     "keys of the NBD clients, a line IDENTITY:HEXKEY each", NO_LIMITS),
	NODE("nbd-verify-client", TYPE_YESNO, nbd_verify_client, "no",
	     "demand a certificate signed by nbd-ca from NBD clients", choices_yesno, 0, 0),
	NODE("nbd-ca", TYPE_PATH, nbd_ca, NULL,
	     "CA (PEM) of the NBD clients; tls-ca by default, unless the peers have certificates of it",
	     NO_LIMITS),
	NODE("io", TYPE_CHOICE, io, "auto",
	     "kernel interface: auto, uring (io_uring), aio (libaio)", choices_io, 0, 0),
	NODE("log-level", TYPE_CHOICE, log_level, "info",
	     "what is logged: error, warning, info, debug", choices_level, 0, 0),
	NODE("threads", TYPE_NUMBER, threads, "0",
	     "helper threads for hashing, compression, storage; 0: one a core, at most 4",
	     NULL, 0, 64),

	VOLUME("backing", TYPE_PATH, backing, NULL,
	       "the local disk or file under the volume (required)", NO_LIMITS),
	VOLUME("size", TYPE_BLOCKS, size_bytes, "0",
	       "size when it is made, a multiple of 4096 (a missing file, too); 0: the "
	       "backing's; later: offsite resize",
	       NO_LIMITS),
	VOLUME("role", TYPE_SECOND, primary, "secondary",
	       "role at the first start: primary or secondary; later the last one counts",
	       choices_role, 0, 0),
	VOLUME("peer", TYPE_ADDRESS, peer, NULL, "the other node's peer-listen: HOST:PORT",
	       NO_LIMITS),
	VOLUME("peer-name", TYPE_HOST, peer_name, NULL,
	       "name or address that the peer's certificate must carry; the host of peer by default",
	       NO_LIMITS),
	VOLUME("protocol", TYPE_LETTER, protocol, "C",
	       "a write is acknowledged when: A locally durable, B received by the peer, C durable there",
	       choices_protocol, 0, 0),
	VOLUME("staging-max", TYPE_SIZE, staging_max_bytes, "0",
	       "most space in state-dir for catch-up data before it is applied; 0: a tenth of the "
	       "volume, 4G at least",
	       NO_LIMITS),
	VOLUME("final-cut-max", TYPE_SIZE, final_cut_max_bytes, "64M",
	       "catch-up sends blocks as they are until no more than this is left, which is then "
	       "taken as one instant",
	       NO_LIMITS),
	VOLUME("preserve-max", TYPE_SIZE, preserve_max_bytes, "1G",
	       "most space for blocks that a running snapshot or catch-up still needs", NO_LIMITS),
	VOLUME("send-queue-max", TYPE_SIZE, send_queue_max_bytes, "32M",
	       "most data on its way to the peer; beyond it writers wait", NO_LIMITS),
	VOLUME("verify-rate", TYPE_SIZE, verify_rate_bytes, "64M",
	       "bytes a second that offsite verify reads at most on each side; 0: unlimited",
	       NO_LIMITS),
	VOLUME("peer-timeout", TYPE_NUMBER, peer_timeout_s, "15",
	       "seconds without a word from the peer after which it counts as lost", NULL, 1, 3600),
	VOLUME("on-peer-loss", TYPE_SECOND, suspend_on_loss, "continue",
	       "while the peer is lost: continue (go on alone), suspend (writers wait for it)",
	       choices_loss, 0, 0),
	VOLUME("on-io-error", TYPE_SECOND, detach_on_error, "detach",
	       "when a primary's disk fails: error (clients get it), detach (the peer takes over)",
	       choices_io_error, 0, 0),
	VOLUME("hydrate-rate", TYPE_SIZE, hydrate_rate_bytes, "0",
	       "bytes a second at which a primary's disk, replaced or restored while in use, is filled at "
	       "most; 0: unlimited",
	       NO_LIMITS),
	VOLUME("hydrate-timeout", TYPE_DURATION, hydrate_timeout_ns, "0",
	       "restored while in use: how long a request waits for what a store that does not answer "
	       "has, before it fails; 0: for ever",
	       NO_LIMITS),
	VOLUME("fence-command", TYPE_PATH, fence_command, NULL,
	       "program that has to succeed before a promotion while the peer is not connected",
	       NO_LIMITS),
	VOLUME("fence-timeout", TYPE_DURATION, fence_timeout_ns, "30s",
	       "how long fence-command may take; then it is killed and the promotion refused",
	       NO_LIMITS),
	VOLUME("max-lag", TYPE_SIZE, max_lag_bytes, "0",
	       "protocol A: how much the peer may be behind at most while streaming; 0: no limit", NO_LIMITS),
	VOLUME("max-lag-time", TYPE_DURATION, max_lag_ns, "0",
	       "protocol A: for how long the peer may be behind at most while streaming; 0: no limit", NO_LIMITS),
	VOLUME("max-lag-action", TYPE_CHOICE, max_lag_action, "slow",
	       "at max-lag: slow (writers wait just enough) or catch-up (nobody waits: the stream is left)",
	       choices_lag, 0, 0),
	VOLUME("start-wait", TYPE_DURATION, start_wait_ns, "5s",
	       "a primary that starts holds requests until it knows whether the peer was promoted, so "
	       "long at most; 0: not at all",
	       NO_LIMITS),
	VOLUME("stream-rate", TYPE_RATE, stream_rate, "0",
	       "most bytes a second of writes to the peer, by day and hour; 0: unlimited", NO_LIMITS),
	VOLUME("catch-up-rate", TYPE_RATE, catch_up_rate, "0",
	       "the same for catch-up, e.g.: 20M, 100M@22:00-06:00, 5M@mon-fri 08:00-18:00", NO_LIMITS),
	VOLUME("catch-up-latency-factor", TYPE_FACTOR, latency_percent, "2.0",
	       "catch-up and snapshots read so slowly that clients' p99 write latency stays within this "
	       "factor; 0: off",
	       NO_LIMITS),
	VOLUME("catch-up-min-rate", TYPE_SIZE, catch_up_min_rate, "1M",
	       "bytes a second that catch-up may always read, whatever the latency", NO_LIMITS),
	VOLUME("snapshot-min-rate", TYPE_SIZE, snapshot_min_rate, "8M",
	       "the same for snapshots", NO_LIMITS),
	VOLUME("snapshot-rate", TYPE_RATE, snapshot_rate, "0",
	       "most bytes a second that snapshots put into the store, by day and hour", NO_LIMITS),
	VOLUME("after-sb-0pri", TYPE_CHOICE, after_sb_0pri, "disconnect",
	       "split brain of two secondaries: disconnect (an operator decides), or who gives up what it "
	       "changed; the same on both nodes",
	       choices_0pri, 0, 0),
	VOLUME("after-sb-1pri", TYPE_CHOICE, after_sb_1pri, "disconnect",
	       "split brain with one primary: disconnect, consensus (after-sb-0pri, if it is the "
	       "secondary that gives up) or discard-secondary; the same on both nodes",
	       choices_1pri, 0, 0),
	VOLUME("block-size", TYPE_BLOCKSIZE, block_min_bytes, "1",
	       "smallest request of a client, in bytes: 1, 512, 4096", choices_block, 0, 0),
	VOLUME("attach", TYPE_ATTACH, attach, "no",
	       "while primary, a block device of this host, /dev/offsite/NAME: no, yes, or /dev/nbdN",
	       NO_LIMITS),
	VOLUME("attach-timeout", TYPE_NUMBER, attach_timeout_s, "120",
	       "seconds for which I/O on the attached device waits while the daemon is away; then it fails",
	       NULL, 1, 86400),
	VOLUME("attach-connections", TYPE_NUMBER, attach_connections, "1",
	       "sockets between kernel and daemon; several make the end of a daemon felt longer",
	       NULL, 1, 16),
	VOLUME("attach-request-timeout", TYPE_NUMBER, attach_request_s, "30",
	       "with several: seconds after which the kernel sends a request again over another one",
	       NULL, 1, 3600),
	VOLUME("store", TYPE_STORE, store, NULL, "where snapshots go: s3://BUCKET/PREFIX or file:/DIRECTORY", NO_LIMITS),
	VOLUME("store-passphrase-file", TYPE_PATH, store_passphrase_file, NULL,
	       "encrypt what goes to the store; the first line of this file opens it", NO_LIMITS),
	VOLUME("store-key-file", TYPE_PATH, store_key_file, NULL,
	       "the same with a key file of at least 32 bytes (offsite keygen)", NO_LIMITS),
	VOLUME("store-key-command", TYPE_TEXT, store_key_command, NULL,
	       "the same with a shell command that wraps and unwraps the key (KMS, vault)", NO_LIMITS),
	VOLUME("snapshot-every", TYPE_DURATION, snapshot_every_ns, "0",
	       "interval of automatic snapshots; 0: none", NO_LIMITS),
	VOLUME("snapshot-from", TYPE_SECOND, snapshot_from_secondary, "primary",
	       "which node takes the automatic ones: primary; secondary (what it has needs not cross the WAN "
	       "again; the primary steps in where it does not). The same on both nodes",
	       choices_role_from, 0, 0),
	VOLUME("snapshot-before-command", TYPE_PATH, snapshot_before_command, NULL,
	       "program that runs before a snapshot's cut: a checkpoint, fsfreeze", NO_LIMITS),
	VOLUME("snapshot-after-command", TYPE_PATH, snapshot_after_command, NULL,
	       "program that runs right after the cut, whenever the one before it was begun", NO_LIMITS),
	VOLUME("snapshot-command-timeout", TYPE_DURATION, snapshot_command_timeout_ns, "30s",
	       "how long each of the two may take; then it is killed and has failed", NO_LIMITS),
	VOLUME("snapshot-on-command-failure", TYPE_SECOND, snapshot_command_continue, "abort",
	       "when snapshot-before-command fails: abort (no snapshot), continue (take it and say so)",
	       choices_failure, 0, 0),
	VOLUME("proof-every", TYPE_DURATION, proof_every_ns, "0",
	       "interval at which the newest snapshot is restored to proof-dir and checked; 0: never",
	       NO_LIMITS),
	VOLUME("proof-dir", TYPE_PATH, proof_dir, NULL,
	       "directory with room for a sparse image of the volume, which is removed afterwards", NO_LIMITS),
	VOLUME("proof-command", TYPE_PATH, proof_command, NULL,
	       "program that checks the restored image: OFFSITE_IMAGE; see examples/prove-postgresql.sh",
	       NO_LIMITS),
	VOLUME("proof-timeout", TYPE_DURATION, proof_timeout_ns, "1h",
	       "how long proof-command may take; then it is killed and the proof has failed", NO_LIMITS),
	VOLUME("proof-rate", TYPE_RATE, proof_rate, "0",
	       "most bytes a second that a proof writes, by day and hour; 0: unlimited", NO_LIMITS),
	VOLUME("keep-last", TYPE_NUMBER, keep_last, "0",
	       "so many of the newest snapshots are kept", NULL, 0, 1000000),
	VOLUME("keep-hourly", TYPE_NUMBER, keep_hourly, "0",
	       "the newest snapshot of each of so many hours (UTC) is kept", NULL, 0, 1000000),
	VOLUME("keep-daily", TYPE_NUMBER, keep_daily, "0",
	       "the newest snapshot of each of so many days (UTC) is kept", NULL, 0, 1000000),
	VOLUME("keep-weekly", TYPE_NUMBER, keep_weekly, "0",
	       "the newest snapshot of each of so many weeks (UTC) is kept", NULL, 0, 1000000),
	VOLUME("keep-monthly", TYPE_NUMBER, keep_monthly, "0",
	       "the newest snapshot of each of so many months (UTC) is kept", NULL, 0, 1000000),
	VOLUME("keep-yearly", TYPE_NUMBER, keep_yearly, "0",
	       "the newest snapshot of each of so many years (UTC) is kept", NULL, 0, 1000000),
	VOLUME("keep-within", TYPE_DURATION, keep_within_ns, "0",
	       "snapshots not older than this are kept; what no keep-... keeps is deleted after the "
	       "next one; none set: all are kept",
	       NO_LIMITS),
	VOLUME("lock", TYPE_CHOICE, lock, "none",
	       "object lock of snapshots (s3: only): none, governance, compliance", choices_lock, 0,
	       0),
	VOLUME("lock-for", TYPE_DURATION, lock_for_ns, "0",
	       "how long from its instant on; 0: keep-within, or keep-last times snapshot-every",
	       NO_LIMITS),
	VOLUME("compression-level", TYPE_LEVEL, compression_level, "1",
	       "zstd level of snapshots, 1 (fast) to 19 (small)", NULL, 1, 19),
	VOLUME("repack", TYPE_YESNO, repack, "yes",
	       "what lives in packs that are four fifths dead is stored again with the next snapshot, so "
	       "that they can go",
	       choices_yesno, 0, 0),
	VOLUME("store-list-lag", TYPE_DURATION, store_list_lag_ns, "0",
	       "how late the store's lists may be: what is deleted goes after twice that; 0 for local "
	       "folders and S3",
	       NO_LIMITS),
	VOLUME("description", TYPE_TEXT, description, NULL, "shown to NBD clients", NO_LIMITS),
};
/* clang-format on */
/* Those that can be changed while running, by `offsite set`. None of them is a text. */
static const char *const live_options[] = {
	"protocol",
	"max-lag",
	"max-lag-time",
	"max-lag-action",
	"stream-rate",
	"catch-up-rate",
	"snapshot-rate",
	"catch-up-latency-factor",
	"catch-up-min-rate",
	"snapshot-min-rate",
	"hydrate-rate",
	"hydrate-timeout",
	NULL,
};
const size_t config_option_count = sizeof(config_options) / sizeof(config_options[0]);
_Static_assert(sizeof(config_options) / sizeof(config_options[0]) <= CONFIG_OPTIONS_MAX, "room");

/* ---- nearest names ------------------------------------------------------------------------------ */

/* Levenshtein's distance, for words of at most CONFIG_NAME_BYTES_MAX. */
static unsigned edit_distance(const char *a, const char *b)
{
	unsigned row[CONFIG_NAME_BYTES_MAX + 1];
	size_t a_length = strlen(a), b_length = strlen(b);

	if (a_length > CONFIG_NAME_BYTES_MAX || b_length > CONFIG_NAME_BYTES_MAX)
		return CONFIG_NAME_BYTES_MAX;
	for (unsigned j = 0; j <= b_length; j++)
		row[j] = j;
	for (unsigned i = 1; i <= a_length; i++) {
		unsigned diagonal = row[0];

		row[0] = i;
		for (unsigned j = 1; j <= b_length; j++) {
			unsigned best = diagonal + (a[i - 1] != b[j - 1]);

			if (row[j] + 1 < best)
				best = row[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			diagonal = row[j];
			row[j] = best;
		}
	}
	return row[b_length];
}

/* Remembers name in *best if it is nearer to text than what is there. Starts with *distance at the
 * most that still counts as near. */
static void consider(const char *text, const char *name, const char **best, unsigned *distance)
{
	unsigned d = edit_distance(text, name);

	if (d <= *distance) {
		if (d < *distance || !*best)
			*best = name;
		*distance = d;
	}
}

static unsigned near_enough(const char *text)
{
	unsigned third = (unsigned)strlen(text) / 3;

	return third < 2 ? 2 : third;
}

const char *config_nearest(const char *const *choices, const char *text)
{
	const char *best = NULL;
	unsigned distance = near_enough(text);

	for (; *choices; choices++)
		consider(text, *choices, &best, &distance);
	return best;
}

const struct config_option *config_option_find(enum section_kind section, const char *name)
{
	for (size_t i = 0; i < config_option_count; i++)
		if (config_options[i].section == section &&
		    strcmp(config_options[i].name, name) == 0)
			return &config_options[i];
	return NULL;
}

const struct config_option *config_option_nearest(enum section_kind section, const char *name)
{
	const struct config_option *best = NULL;
	const char *nearest = NULL;
	unsigned distance = near_enough(name);

	for (size_t i = 0; i < config_option_count; i++) {
		const char *before = nearest;

		if (config_options[i].section == section)
			consider(name, config_options[i].name, &nearest, &distance);
		if (nearest != before)
			best = &config_options[i];
	}
	return best;
}

/* ---- values ---------------------------------------------------------------------------------------- */

static const char *set_text(char **field, const char *text)
{
	free(*field);
	*field = strdup(text);
	return *field ? NULL : "out of memory";
}

static void free_list(char **list)
{
	for (char **item = list; item && *item; item++)
		free(*item);
	free(list);
}

static const char *set_addresses(char ***field, const char *text)
{
	char **list = calloc(ADDRESSES_MAX + 1, sizeof(*list));
	char *copy = strdup(text), *position = NULL;
	const char *wrong = list && copy ? NULL : "out of memory";
	unsigned count = 0;

	for (char *word = copy ? strtok_r(copy, " \t", &position) : NULL; word && !wrong;
	     word = strtok_r(NULL, " \t", &position)) {
		wrong = count == ADDRESSES_MAX ? "more than 8 addresses"
					       : config_address_invalid(word, true);
		if (!wrong && !(list[count++] = strdup(word)))
			wrong = "out of memory";
	}
	free(copy);
	if (wrong) {
		free_list(list);
		return wrong;
	}
	free_list(*field);
	*field = list;
	return NULL;
}

static const char *set_choice(const struct config_option *option, void *field, const char *text)
{
	unsigned index;
	const char *wrong = config_parse_choice(text, option->choices, &index);

	if (wrong)
		return wrong;
	switch (option->type) {
	case TYPE_YESNO:
	case TYPE_SECOND:
		*(bool *)field = index == 1;
		break;
	case TYPE_LETTER:
		*(char *)field = text[0];
		break;
	case TYPE_BLOCKSIZE:
		*(unsigned *)field = (unsigned)strtoul(text, NULL, 10);
		break;
	default:
		*(unsigned *)field = index;
	}
	return NULL;
}

const char *config_option_set(const struct config_option *option, void *base, const char *text)
{
	void *field = (char *)base + option->offset;
	const char *wrong = NULL;
	unsigned number = 0;

	_Static_assert(sizeof(enum config_nbd_tls) == sizeof(unsigned) &&
			       sizeof(enum config_io) == sizeof(unsigned),
		       "choices are stored as unsigned");
	switch (option->type) {
	case TYPE_NAME:
		wrong = config_name_invalid(text);
		break;
	case TYPE_TEXT:
		break;
	case TYPE_PATH:
		wrong = config_path_invalid(text);
		break;
	case TYPE_SOCKET:
		wrong = config_socket_invalid(text);
		break;
	case TYPE_LISTEN:
	case TYPE_ADDRESS:
		wrong = config_address_invalid(text, option->type == TYPE_LISTEN);
		break;
	case TYPE_HOST:
		wrong = config_host_invalid(text);
		break;
	case TYPE_STORE:
		wrong = config_store_invalid(text);
		break;
	case TYPE_ADDRESSES:
		return set_addresses(field, text);
	case TYPE_SIZE:
		return config_parse_size(text, field);
	case TYPE_BLOCKS:
		return config_parse_blocks(text, field);
	case TYPE_FACTOR:
		return config_parse_factor(text, field);
	case TYPE_RATE:
		return rate_parse(text, field);
	case TYPE_DURATION:
		return config_parse_duration(text, field);
	case TYPE_NUMBER:
		return config_parse_number(text, option->min, option->max, field);
	case TYPE_ATTACH:
		return config_parse_attach(text, field);
	case TYPE_LEVEL:
		wrong = config_parse_number(text, option->min, option->max, &number);
		if (!wrong)
			*(int *)field = (int)number;
		return wrong;
	default:
		return set_choice(option, field, text);
	}
	return wrong ? wrong : set_text(field, text);
}

void config_option_explain(const struct config_option *option, const char *value, const char *wrong,
			   char *text, size_t size)
{
	if (!option->choices) {
		if (option->type == TYPE_NUMBER || option->type == TYPE_LEVEL)
			snprintf(text, size, "%s = %s: %s (%u to %u)", option->name, value, wrong,
				 option->min, option->max);
		else
			snprintf(text, size, "%s = %s: %s", option->name, value, wrong);
		return;
	}
	char all[100] = "";
	const char *nearest = config_nearest(option->choices, value);

	for (const char *const *c = option->choices; *c; c++) {
		strcat(all, *c);
		if (c[1])
			strcat(all, ", ");
	}
	snprintf(text, size, "%s = %s: not one of %s%s%s%s", option->name, value, all,
		 nearest ? " (nearest: " : "", nearest ? nearest : "", nearest ? ")" : "");
}

bool config_volume_set(struct config_volume *volume, const char *name, const char *text, char *why,
		       size_t why_size)
{
	const struct config_option *option = config_option_find(SECTION_VOLUME, name);
	unsigned index;

	if (!option) {
		const char *best = config_nearest(live_options, name);
		snprintf(why, why_size, "%s: no option of a volume%s%s%s", name,
			 best ? " (nearest: " : "", best ? best : "", best ? ")" : "");
		return false;
	}
	if (config_parse_choice(name, live_options, &index)) {
		snprintf(why, why_size, "%s: cannot be changed while running", name);
		return false;
	}
	const char *wrong = *text ? config_option_set(option, volume, text) : "no value";
	if (wrong)
		config_option_explain(option, text, wrong, why, why_size);
	return !wrong;
}

void config_options_free(enum section_kind section, void *base)
{
	for (size_t i = 0; i < config_option_count; i++) {
		void *field = (char *)base + config_options[i].offset;

		if (config_options[i].section != section)
			continue;
		if (config_options[i].type == TYPE_ADDRESSES)
			free_list(*(char ***)field);
		else if (config_options[i].type < TYPE_SIZE)
			free(*(char **)field);
	}
}

void config_print_options(FILE *out)
{
	enum section_kind section = SECTION_NONE;

	for (size_t i = 0; i < config_option_count; i++) {
		if (config_options[i].section != section) {
			section = config_options[i].section;
			fprintf(out, "%s[%s]\n", i ? "\n" : "",
				section == SECTION_NODE ? "node" : "volume NAME");
		}
		fprintf(out, "  %-18s %s", config_options[i].name, config_options[i].help);
		if (config_options[i].fallback && strcmp(config_options[i].fallback, "0") != 0)
			fprintf(out, " [%s]", config_options[i].fallback);
		fputc('\n', out);
	}
	fputs("\nstore = s3://BUCKET[/PREFIX][?OPTION=VALUE[&OPTION=VALUE...]]\n", out);
	s3_url_print_options(out);
}
