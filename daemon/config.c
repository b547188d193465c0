/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The config file. One table holds every option; defaults are texts that go through the same
 * parser as the file's values. inih splits the lines into keys and values; the reader in front of
 * it keeps the line numbers and the section names (inih gives no numbers and cuts long names), and
 * refuses what inih would pass over in silence.
 *
 * Everything wrong is collected, so that one run of `offsite config check` shows it all.
 */
#include "daemon/config.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "daemon/config_values.h"
#include "daemon/store/s3_url.h"

#define CONFIG_NAME_BYTES_MAX 48u
#define VOLUMES_MAX           64u
#define ADDRESSES_MAX         8u
#define SECTION_BYTES_MAX     128u
/* inih's buffer for a line is 200 bytes with its default build. */
#define LINE_BYTES_MAX 198u

enum section_kind { SECTION_NONE, SECTION_NODE, SECTION_VOLUME, SECTION_UNKNOWN };

enum option_type {
	TYPE_NAME,      /* char *: [A-Za-z0-9._-]{1,48} */
	TYPE_TEXT,      /* char * */
	TYPE_PATH,      /* char *: absolute */
	TYPE_SOCKET,    /* char *: absolute, short enough for a unix socket */
	TYPE_LISTEN,    /* char *: address, port 0 allowed */
	TYPE_ADDRESS,   /* char *: address */
	TYPE_ADDRESSES, /* char **: listening addresses separated by blanks */
	TYPE_HOST,      /* char *: host name or address without a port */
	TYPE_STORE,     /* char *: URL of an object store */
	TYPE_SIZE,      /* uint64_t, bytes */
	TYPE_BLOCKS,    /* uint64_t, bytes, multiple of 4096 */
	TYPE_FACTOR,    /* unsigned, in hundredths: 0, or 1.1 to 100 */
	TYPE_RATE,      /* struct rate_schedule */
	TYPE_DURATION,  /* uint64_t, nanoseconds */
	TYPE_NUMBER,    /* unsigned, min..max */
	TYPE_LEVEL,     /* int, min..max */
	TYPE_YESNO,     /* bool */
	TYPE_CHOICE,    /* enum or unsigned: the position in choices */
	TYPE_LETTER,    /* char: the choice itself */
	TYPE_SECOND,    /* bool: the second choice */
	TYPE_BLOCKSIZE, /* unsigned: the choice itself */
	TYPE_ATTACH,    /* int: no, yes, or a device's number */
};

struct option {
	enum section_kind section;
	const char *name;
	enum option_type type;
	size_t offset;
	const char *fallback; /* the default; NULL: none */
	const char *help;
	const char *const *choices;
	unsigned min, max;
};

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
static const struct option options[] = {
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
	VOLUME("staging-max", TYPE_SIZE, staging_max_bytes, "1G",
	       "most space in state-dir for catch-up data before it is applied", NO_LIMITS),
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
	       "catch-up is so slow that clients' p99 write latency stays within this factor; 0: off",
	       NO_LIMITS),
	VOLUME("catch-up-min-rate", TYPE_SIZE, catch_up_min_rate, "1M",
	       "bytes a second that catch-up may always use, whatever the latency", NO_LIMITS),
	VOLUME("snapshot-rate", TYPE_RATE, snapshot_rate, "0",
	       "the same for what snapshots put into the store", NO_LIMITS),
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
	"protocol",          "max-lag",       "max-lag-time",    "max-lag-action",
	"stream-rate",       "catch-up-rate", "snapshot-rate",   "catch-up-latency-factor",
	"catch-up-min-rate", "hydrate-rate",  "hydrate-timeout", NULL,
};
#define OPTION_COUNT (sizeof(options) / sizeof(options[0]))

/* What the parser knows of one section. */
struct section {
	enum section_kind kind;
	unsigned line;
	unsigned volume_index;
	unsigned option_line[OPTION_COUNT]; /* where each option was given; 0: not */
};

struct parser {
	struct config *config;
	FILE *file;
	FILE *errors;
	unsigned error_count;
	unsigned line; /* the line that inih has at hand */
	struct section node;
	struct section volumes[VOLUMES_MAX];
	struct section unknown;
	struct section *section; /* the one the line belongs to; NULL before the first */
	char *line_text;         /* getline()'s */
	size_t line_size;
};

/* ---- errors ---------------------------------------------------------------------------------- */

static const char *section_text(const struct parser *p, const struct section *section,
				char text[SECTION_BYTES_MAX])
{
	if (section && section->kind == SECTION_NODE)
		return "[node] ";
	if (!section || section->kind != SECTION_VOLUME)
		return "";
	snprintf(text, SECTION_BYTES_MAX, "[volume %s] ",
		 p->config->volumes[section->volume_index].name);
	return text;
}

static void complain(struct parser *p, unsigned line, const struct section *section,
		     const char *format, ...) __attribute__((format(printf, 4, 5)));
static void complain(struct parser *p, unsigned line, const struct section *section,
		     const char *format, ...)
{
	char text[SECTION_BYTES_MAX];
	va_list args;

	if (line)
		fprintf(p->errors, "%s:%u: %s", p->config->path, line,
			section_text(p, section, text));
	else
		fprintf(p->errors, "%s: %s", p->config->path, section_text(p, section, text));
	va_start(args, format);
	vfprintf(p->errors, format, args);
	va_end(args);
	fputc('\n', p->errors);
	p->error_count++;
}

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

static const char *nearest_choice(const char *const *choices, const char *text)
{
	const char *best = NULL;
	unsigned distance = near_enough(text);

	for (; *choices; choices++)
		consider(text, *choices, &best, &distance);
	return best;
}

static const struct option *find_option(enum section_kind section, const char *name)
{
	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (options[i].section == section && strcmp(options[i].name, name) == 0)
			return &options[i];
	return NULL;
}

static void complain_unknown_option(struct parser *p, const char *name)
{
	enum section_kind kind = p->section->kind;
	enum section_kind other = kind == SECTION_NODE ? SECTION_VOLUME : SECTION_NODE;
	const char *best = NULL;
	unsigned distance = near_enough(name);

	if (find_option(other, name)) {
		complain(p, p->line, p->section, "option '%s' belongs into [%s]", name,
			 other == SECTION_NODE ? "node" : "volume NAME");
		return;
	}
	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (options[i].section == kind)
			consider(name, options[i].name, &best, &distance);
	if (best)
		complain(p, p->line, p->section, "unknown option '%s' (nearest: %s)", name, best);
	else
		complain(p, p->line, p->section, "unknown option '%s'", name);
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

static const char *set_choice(const struct option *option, void *field, const char *text)
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

/* Checks text and stores it in the field of base that the option names. */
static const char *set_option(const struct option *option, void *base, const char *text)
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

/* ---- lines ------------------------------------------------------------------------------------------ */

static void *section_base(struct parser *p, const struct section *section)
{
	return section->kind == SECTION_NODE ? (void *)&p->config->node
					     : (void *)&p->config->volumes[section->volume_index];
}

static void explain_value(const struct option *option, const char *value, const char *wrong,
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
	const char *nearest = nearest_choice(option->choices, value);

	for (const char *const *c = option->choices; *c; c++) {
		strcat(all, *c);
		if (c[1])
			strcat(all, ", ");
	}
	snprintf(text, size, "%s = %s: not one of %s%s%s%s", option->name, value, all,
		 nearest ? " (nearest: " : "", nearest ? nearest : "", nearest ? ")" : "");
}

static void complain_value(struct parser *p, const struct option *option, const char *value,
			   const char *wrong)
{
	char text[512];

	explain_value(option, value, wrong, text, sizeof(text));
	complain(p, p->line, p->section, "%s", text);
}

bool config_volume_set(struct config_volume *volume, const char *name, const char *text, char *why,
		       size_t why_size)
{
	const struct option *option = find_option(SECTION_VOLUME, name);
	unsigned index;

	if (!option) {
		const char *best = nearest_choice(live_options, name);
		snprintf(why, why_size, "%s: no option of a volume%s%s%s", name,
			 best ? " (nearest: " : "", best ? best : "", best ? ")" : "");
		return false;
	}
	if (config_parse_choice(name, live_options, &index)) {
		snprintf(why, why_size, "%s: cannot be changed while running", name);
		return false;
	}
	const char *wrong = *text ? set_option(option, volume, text) : "no value";
	if (wrong)
		explain_value(option, text, wrong, why, why_size);
	return !wrong;
}

/* inih's callback, for each KEY = VALUE. */
static int take_pair(void *user, const char *section_name, const char *name, const char *value)
{
	struct parser *p = user;

	if (!p->section) {
		complain(p, p->line, NULL, "option '%s' before the first section", name);
		return 1;
	}
	if (p->section->kind == SECTION_UNKNOWN)
		return 1;
	const struct option *option = find_option(p->section->kind, name);

	if (!option) {
		complain_unknown_option(p, name);
		return 1;
	}
	unsigned *given = &p->section->option_line[option - options];

	if (*given) {
		complain(p, p->line, p->section, "option '%s' again (first in line %u)", name,
			 *given);
		return 1;
	}
	*given = p->line;
	const char *wrong =
		*value ? set_option(option, section_base(p, p->section), value) : "no value";

	if (wrong && *value)
		complain_value(p, option, value, wrong);
	else if (wrong)
		complain(p, p->line, p->section, "option '%s' has no value", name);
	return 1;
}

static void begin_volume(struct parser *p, const char *name)
{
	struct config *config = p->config;
	const char *wrong = config_name_invalid(name);

	p->section = &p->unknown;
	if (wrong) {
		complain(p, p->line, NULL, "[volume %s]: %s", name, wrong);
		return;
	}
	for (unsigned i = 0; i < config->volume_count; i++)
		if (strcmp(config->volumes[i].name, name) == 0) {
			complain(p, p->line, NULL, "[volume %s] again (first in line %u)", name,
				 p->volumes[i].line);
			return;
		}
	if (config->volume_count == VOLUMES_MAX) {
		complain(p, p->line, NULL, "[volume %s]: more than %u volumes", name, VOLUMES_MAX);
		return;
	}
	unsigned index = config->volume_count;

	config->volumes[index].name = strdup(name);
	if (!config->volumes[index].name) {
		complain(p, p->line, NULL, "out of memory");
		return;
	}
	config->volume_count++;
	p->section = &p->volumes[index];
	*p->section =
		(struct section){.kind = SECTION_VOLUME, .line = p->line, .volume_index = index};
}

static void begin_section(struct parser *p, char *text)
{
	char *end = strchr(text, ']');

	p->section = &p->unknown;
	if (!end) {
		complain(p, p->line, NULL, "a section's name ends with ']'");
		return;
	}
	*end = '\0';
	char *name = text + 1 + strspn(text + 1, " \t");

	for (end = name + strlen(name); end > name && isblank((unsigned char)end[-1]);)
		*--end = '\0';
	size_t word = strcspn(name, " \t");

	if (strcmp(name, "node") == 0) {
		if (p->node.line) {
			complain(p, p->line, NULL, "[node] again (first in line %u)", p->node.line);
			return;
		}
		p->section = &p->node;
		p->node.line = p->line;
	} else if (word == 6 && strncmp(name, "volume", 6) == 0) {
		begin_volume(p, name + word + strspn(name + word, " \t"));
	} else {
		static const char *const kinds[] = {"node", "volume", NULL};
		char first[CONFIG_NAME_BYTES_MAX + 1];

		snprintf(first, sizeof(first), "%.*s", (int)word, name);
		const char *nearest = nearest_choice(kinds, first);

		complain(p, p->line, NULL, "unknown section [%s]%s%s%s", name,
			 nearest ? " (nearest: " : "",
			 !nearest                       ? ""
			 : strcmp(nearest, "node") == 0 ? "node"
							: "volume NAME",
			 nearest ? ")" : "");
	}
}

/* Looks at a line before inih does. Returns what inih is to see of it: the line without leading
 * blanks (an indented line would be taken as the continuation of the value above), or nothing. */
static const char *prepare_line(struct parser *p, char *text, size_t length)
{
	if (strlen(text) != length) {
		complain(p, p->line, p->section, "a NUL byte in the line");
		return "";
	}
	while (length && isspace((unsigned char)text[length - 1]))
		text[--length] = '\0';
	if (p->line == 1 && strncmp(text, "\xEF\xBB\xBF", 3) == 0)
		text += 3;
	while (isspace((unsigned char)*text))
		text++;
	if (*text == '\0' || *text == ';' || *text == '#')
		return "";
	if (*text == '[') {
		begin_section(p, text);
		return "";
	}
	if (strlen(text) > LINE_BYTES_MAX) {
		complain(p, p->line, p->section, "the line is longer than %u bytes",
			 LINE_BYTES_MAX);
		return "";
	}
	for (const char *c = text; *c; c++)
		if (iscntrl((unsigned char)*c) && *c != '\t') {
			complain(p, p->line, p->section, "a control character in the line");
			return "";
		}
	if (!strchr(text, '=')) {
		complain(p, p->line, p->section, "not of the form OPTION = VALUE: '%s'", text);
		return "";
	}
	return text;
}

/* inih's fgets(). */
static char *read_line(char *to, int size, void *stream)
{
	struct parser *p = stream;
	ssize_t length = getline(&p->line_text, &p->line_size, p->file);

	if (length < 0)
		return NULL;
	p->line++;
	assert(size > (int)LINE_BYTES_MAX + 1);
	snprintf(to, (size_t)size, "%s\n", prepare_line(p, p->line_text, (size_t)length));
	return to;
}

/* ---- defaults and what options demand of each other --------------------------------------------------- */

static void fill_defaults(struct parser *p, const struct section *section)
{
	for (size_t i = 0; i < OPTION_COUNT; i++) {
		if (options[i].section != section->kind || section->option_line[i] ||
		    !options[i].fallback)
			continue;
		const char *wrong =
			set_option(&options[i], section_base(p, section), options[i].fallback);

		if (wrong)
			complain(p, 0, section, "%s: %s", options[i].name, wrong);
	}
}

static void default_node_name(struct parser *p)
{
	char host[CONFIG_NAME_BYTES_MAX + 1] = "";

	if (p->config->node.name)
		return;
	if (gethostname(host, sizeof(host)) != 0 || host[sizeof(host) - 1] ||
	    config_name_invalid(host))
		strcpy(host, "node");
	if (set_text(&p->config->node.name, host))
		complain(p, 0, NULL, "out of memory");
}

/* Where an option of the section was given, or the section itself. */
static unsigned line_of(const struct section *section, const char *name)
{
	const struct option *option = find_option(section->kind, name);

	assert(option);
	unsigned line = section->option_line[option - options];

	return line ? line : section->line;
}

static bool was_given(const struct section *section, const char *name)
{
	const struct option *option = find_option(section->kind, name);

	assert(option);
	return section->option_line[option - options] != 0;
}

/* The other node proves itself by a certificate, here or there. */
static bool peers_by_certificate(const struct parser *p)
{
	const struct config_node *node = &p->config->node;
	bool peers = node->peer_listen != NULL;

	for (unsigned i = 0; i < p->config->volume_count; i++)
		peers = peers || p->config->volumes[i].peer;
	return peers && !node->peer_plaintext && !node->psk_file && node->tls_cert && node->tls_ca;
}

/* Whatever else a certificate of the right CA is good for: the peer's carries the peer's name. */
static void check_peer_names(struct parser *p)
{
	bool certificates = peers_by_certificate(p);

	for (unsigned i = 0; i < p->config->volume_count; i++) {
		const struct config_volume *volume = &p->config->volumes[i];
		const struct section *s = &p->volumes[i];

		if (certificates && !volume->peer_name && !was_given(s, "peer-name") &&
		    (volume->peer || p->config->node.peer_listen))
			complain(p, volume->peer ? line_of(s, "peer") : s->line, s,
				 "peer-name is missing: the name in the certificate of the other "
				 "node");
		if (!certificates && was_given(s, "peer-name"))
			complain(p, line_of(s, "peer-name"), s,
				 "peer-name has no effect: the peers do not prove themselves by "
				 "certificates");
	}
}

static void default_names(struct parser *p)
{
	struct config_node *node = &p->config->node;
	char host[CONFIG_HOST_BYTES_MAX + 1];

	if (!node->nbd_ca && node->tls_ca && !was_given(&p->node, "nbd-ca") &&
	    set_text(&node->nbd_ca, node->tls_ca))
		complain(p, 0, NULL, "out of memory");
	for (unsigned i = 0; i < p->config->volume_count; i++) {
		struct config_volume *volume = &p->config->volumes[i];

		if (volume->peer && !volume->peer_name && !was_given(&p->volumes[i], "peer-name") &&
		    config_address_host(volume->peer, host) && set_text(&volume->peer_name, host))
			complain(p, 0, NULL, "out of memory");
	}
}

static void check_nbd_tls(struct parser *p)
{
	const struct config_node *node = &p->config->node;
	const struct section *s = &p->node;

	if (node->nbd_tls != CONFIG_TLS_OFF && !node->nbd_psk_file && !node->tls_cert)
		complain(p, line_of(s, "nbd-tls"), s,
			 "nbd-tls = %s needs keys: tls-cert and tls-key, or nbd-psk-file",
			 choices_tls[node->nbd_tls]);
	if (node->nbd_tls == CONFIG_TLS_OFF && was_given(s, "nbd-psk-file"))
		complain(p, line_of(s, "nbd-psk-file"), s,
			 "nbd-psk-file has no effect: set nbd-tls = require (or on)");
	if (node->nbd_verify_client && node->nbd_tls == CONFIG_TLS_OFF)
		complain(p, line_of(s, "nbd-verify-client"), s,
			 "nbd-verify-client has no effect: set nbd-tls = require (or on)");
	if (node->nbd_verify_client && !node->nbd_ca)
		complain(p, line_of(s, "nbd-verify-client"), s,
			 "nbd-verify-client needs tls-ca (or nbd-ca), the CA of the clients");
	if (was_given(s, "nbd-ca") && !node->nbd_verify_client)
		complain(p, line_of(s, "nbd-ca"), s,
			 "nbd-ca has no effect: set nbd-verify-client = yes");
	if (node->nbd_verify_client && peers_by_certificate(p) && node->nbd_ca && node->tls_ca &&
	    strcmp(node->nbd_ca, node->tls_ca) == 0)
		complain(p, line_of(s, "nbd-verify-client"), s,
			 "nbd-verify-client: an NBD client's certificate must not do for a peer: "
			 "set nbd-ca to another CA than tls-ca, or give the peers a psk-file");
	if (node->nbd_verify_client && !node->tls_cert)
		complain(p, line_of(s, "nbd-verify-client"), s,
			 "nbd-verify-client needs tls-cert and tls-key");
}

static void check_certificates(struct parser *p)
{
	const struct config_node *node = &p->config->node;
	const struct section *s = &p->node;

	if (node->tls_cert && !node->tls_key)
		complain(p, line_of(s, "tls-cert"), s, "tls-cert needs tls-key, its private key");
	if (node->tls_key && !node->tls_cert)
		complain(p, line_of(s, "tls-key"), s, "tls-key needs tls-cert, its certificate");
}

/* Replication is in plain text only where somebody said so. */
static void check_peer_tls(struct parser *p)
{
	const struct config_node *node = &p->config->node;
	bool keys = node->psk_file || (node->tls_cert && node->tls_ca);

	if (node->peer_plaintext && node->psk_file)
		complain(p, line_of(&p->node, "peer-plaintext"), &p->node,
			 "peer-plaintext = yes contradicts psk-file: drop one of them");
	if (keys || node->peer_plaintext)
		return;
	if (node->peer_listen)
		complain(
			p, line_of(&p->node, "peer-listen"), &p->node,
			"peer-listen needs psk-file (see offsite keygen), or tls-cert, tls-key and "
			"tls-ca, or peer-plaintext = yes");
	for (unsigned i = 0; i < p->config->volume_count && !node->peer_listen; i++)
		if (p->config->volumes[i].peer)
			complain(p, line_of(&p->volumes[i], "peer"), &p->volumes[i],
				 "peer needs psk-file (see offsite keygen), or tls-cert, tls-key "
				 "and "
				 "tls-ca, or peer-plaintext = yes in [node]");
}

static void check_addresses(struct parser *p)
{
	const struct config_node *node = &p->config->node;
	unsigned line = line_of(&p->node, "nbd-listen");

	for (char **a = node->nbd_listen; a && *a; a++) {
		const char *port = strrchr(*a, ':') + 1;

		for (char **b = node->nbd_listen; b < a; b++)
			if (strcmp(*a, *b) == 0 && strcmp(port, "0") != 0)
				complain(p, line, &p->node, "nbd-listen: %s stands there twice",
					 *a);
		if (strncmp(*a, "unix:", 5) == 0 && node->control &&
		    strcmp(*a + 5, node->control) == 0)
			complain(p, line, &p->node, "nbd-listen: %s is the control socket", *a);
	}
}

static void check_secret(struct parser *p, const struct config_volume *volume,
			 const struct section *s)
{
	static const char *const names[] = {"store-passphrase-file", "store-key-file",
					    "store-key-command"};
	const char *first = NULL;

	for (unsigned i = 0; i < 3; i++) {
		if (!was_given(s, names[i]))
			continue;
		if (!volume->store && !was_given(s, "store"))
			complain(p, line_of(s, names[i]), s, "%s needs a store", names[i]);
		if (first)
			complain(p, line_of(s, names[i]), s,
				 "%s: there is %s already; one opens it", names[i], first);
		first = names[i];
	}
}

/* For as long as a new snapshot is sure to be kept; longer than any time can be said: not at all. */
static void default_lock(struct config_volume *volume)
{
	uint64_t kept_ns;

	if (volume->lock && !volume->lock_for_ns)
		volume->lock_for_ns = volume->keep_within_ns;
	if (volume->lock && !volume->lock_for_ns &&
	    !__builtin_mul_overflow(volume->keep_last, volume->snapshot_every_ns, &kept_ns) &&
	    kept_ns <= INT64_MAX)
		volume->lock_for_ns = kept_ns;
}

static void check_lock(struct parser *p, struct config_volume *volume, const struct section *s)
{
	if (was_given(s, "lock-for") && !volume->lock)
		complain(p, line_of(s, "lock-for"), s, "lock-for needs lock");
	if (!volume->lock)
		return;
	default_lock(volume);
	if (!volume->store && !was_given(s, "store"))
		complain(p, line_of(s, "lock"), s, "lock needs a store");
	else if (volume->store && strncmp(volume->store, "s3:", 3) != 0)
		complain(p, line_of(s, "lock"), s,
			 "lock: only a bucket (store = s3://...) can lock objects, not %s",
			 volume->store);
	if (!volume->lock_for_ns)
		complain(p, line_of(s, "lock"), s,
			 "lock: for how long? set lock-for (or keep-within, or keep-last and "
			 "snapshot-every)");
	else if (volume->lock_for_ns < 1000000000ull)
		complain(p, line_of(s, "lock-for"), s, "lock-for: at least one second");
}

/* What is of no use without a store, and what is missing. */
static void check_snapshots(struct parser *p, const struct config_volume *volume,
			    const struct section *s)
{
	static const char *const needing[] = {"snapshot-every", "snapshot-from",
					      "snapshot-before-command", "snapshot-after-command",
					      "proof-every"};

	for (unsigned i = 0; i < sizeof(needing) / sizeof(needing[0]); i++) {
		const struct option *option = find_option(SECTION_VOLUME, needing[i]);
		/* Durations: 0 asks for nothing. */
		bool asked = option->type != TYPE_DURATION ||
			     *(const uint64_t *)((const char *)volume + option->offset);

		if (was_given(s, needing[i]) && asked && !volume->store && !was_given(s, "store"))
			complain(p, line_of(s, needing[i]), s, "%s needs a store", needing[i]);
	}
	if (volume->proof_every_ns && !volume->proof_dir && !was_given(s, "proof-dir"))
		complain(p, line_of(s, "proof-every"), s, "proof-every needs proof-dir");
	if (!volume->proof_timeout_ns)
		complain(p, line_of(s, "proof-timeout"), s,
			 "proof-timeout = 0: no program could end in time");
	if (!volume->snapshot_command_timeout_ns)
		complain(p, line_of(s, "snapshot-command-timeout"), s,
			 "snapshot-command-timeout = 0: no program could end in time");
}

static void check_volumes(struct parser *p)
{
	const struct config *config = p->config;

	if (config->volume_count == 0 && p->error_count == 0)
		complain(p, 0, NULL, "no [volume NAME] section");
	for (unsigned i = 0; i < config->volume_count; i++) {
		const struct config_volume *volume = &config->volumes[i];
		const struct section *s = &p->volumes[i];

		if (!volume->backing && !was_given(s, "backing"))
			complain(p, s->line, s, "option 'backing' is missing");
		check_snapshots(p, volume, s);
		if (volume->suspend_on_loss && !volume->peer && !was_given(s, "peer") &&
		    !config->node.peer_listen)
			complain(p, line_of(s, "on-peer-loss"), s,
				 "on-peer-loss = suspend needs a peer");
		if (volume->suspend_on_loss && volume->attach_connections > 1)
			complain(p, line_of(s, "attach-connections"), s,
				 "attach-connections = %u: the kernel would send what "
				 "on-peer-loss = suspend holds again and again; take 1",
				 volume->attach_connections);
		if (volume->suspend_on_loss && volume->max_lag_action)
			complain(p, line_of(s, "max-lag-action"), s,
				 "max-lag-action = catch-up leaves the peer behind, which "
				 "on-peer-loss = suspend forbids");
		check_secret(p, volume, s);
		check_lock(p, &p->config->volumes[i], s);
		if (!volume->fence_timeout_ns)
			complain(p, line_of(s, "fence-timeout"), s,
				 "fence-timeout = 0: no program could end in time");
		for (unsigned j = 0; j < i && volume->backing; j++)
			if (config->volumes[j].backing &&
			    strcmp(config->volumes[j].backing, volume->backing) == 0)
				complain(p, line_of(s, "backing"), s,
					 "backing = %s: volume %s has it already", volume->backing,
					 config->volumes[j].name);
	}
}

/* ---- public -------------------------------------------------------------------------------------------- */

static void parse(struct parser *p)
{
	p->node.kind = SECTION_NODE;
	p->unknown.kind = SECTION_UNKNOWN;
	p->config->volumes = calloc(VOLUMES_MAX, sizeof(*p->config->volumes));
	if (!p->config->volumes) {
		complain(p, 0, NULL, "out of memory");
		return;
	}
	/* Its result repeats what read_line() and take_pair() have said. */
	(void)ini_parse_stream(read_line, p, take_pair, p);
	if (ferror(p->file))
		complain(p, p->line, NULL, "read error");
	fill_defaults(p, &p->node);
	default_node_name(p);
	for (unsigned i = 0; i < p->config->volume_count; i++)
		fill_defaults(p, &p->volumes[i]);
	default_names(p);
	check_certificates(p);
	check_nbd_tls(p);
	check_peer_tls(p);
	check_peer_names(p);
	check_addresses(p);
	check_volumes(p);
}

struct config *config_load(const char *path, char **errors)
{
	struct config *config = calloc(1, sizeof(*config));
	struct parser *p = calloc(1, sizeof(*p));
	size_t errors_size;
	bool ok = false;

	*errors = NULL;
	FILE *text = open_memstream(errors, &errors_size);

	if (!config || !p || !text || !(config->path = strdup(path)))
		goto out;
	p->config = config;
	p->errors = text;
	p->file = fopen(path, "re");
	if (!p->file) {
		complain(p, 0, NULL, "%s", strerror(errno));
		goto out;
	}
	parse(p);
	fclose(p->file);
	ok = p->error_count == 0;
out:
	if (text)
		fclose(text);
	if (p)
		free(p->line_text);
	free(p);
	if (ok) {
		free(*errors);
		*errors = NULL;
		return config;
	}
	config_free(config);
	return NULL;
}

static void free_texts(enum section_kind section, void *base)
{
	for (size_t i = 0; i < OPTION_COUNT; i++) {
		void *field = (char *)base + options[i].offset;

		if (options[i].section != section)
			continue;
		if (options[i].type == TYPE_ADDRESSES)
			free_list(*(char ***)field);
		else if (options[i].type < TYPE_SIZE)
			free(*(char **)field);
	}
}

void config_free(struct config *config)
{
	if (!config)
		return;
	free_texts(SECTION_NODE, &config->node);
	for (unsigned i = 0; i < config->volume_count; i++) {
		free_texts(SECTION_VOLUME, &config->volumes[i]);
		free(config->volumes[i].name);
	}
	free(config->volumes);
	free(config->path);
	free(config);
}

void config_print_options(FILE *out)
{
	enum section_kind section = SECTION_NONE;

	for (size_t i = 0; i < OPTION_COUNT; i++) {
		if (options[i].section != section) {
			section = options[i].section;
			fprintf(out, "%s[%s]\n", i ? "\n" : "",
				section == SECTION_NODE ? "node" : "volume NAME");
		}
		fprintf(out, "  %-18s %s", options[i].name, options[i].help);
		if (options[i].fallback && strcmp(options[i].fallback, "0") != 0)
			fprintf(out, " [%s]", options[i].fallback);
		fputc('\n', out);
	}
	fputs("\nstore = s3://BUCKET[/PREFIX][?OPTION=VALUE[&OPTION=VALUE...]]\n", out);
	s3_url_print_options(out);
}
