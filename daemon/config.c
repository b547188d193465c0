/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The config file; its options: config_options.h. inih splits the lines into keys and values; the reader in front of
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
#include "daemon/config_options.h"
#include "daemon/config_values.h"

#define CONFIG_NAME_BYTES_MAX 48u
#define VOLUMES_MAX           64u
#define SECTION_BYTES_MAX     128u
#define LINE_BYTES_MAX        4096u
/* Of a name that inih sees: its buffer for a line is 200 bytes with its default build. */
#define INIH_NAME_BYTES 100

/* What the parser knows of one section. */
struct section {
	enum section_kind kind;
	unsigned line;
	unsigned volume_index;
	unsigned option_line[CONFIG_OPTIONS_MAX]; /* where each option was given; 0: not */
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
	char *long_value; /* of the line, which inih does not see; or NULL */
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

static void complain_unknown_option(struct parser *p, const char *name)
{
	enum section_kind kind = p->section->kind;
	enum section_kind other = kind == SECTION_NODE ? SECTION_VOLUME : SECTION_NODE;
	const struct config_option *best = config_option_nearest(kind, name);

	if (config_option_find(other, name)) {
		complain(p, p->line, p->section, "option '%s' belongs into [%s]", name,
			 other == SECTION_NODE ? "node" : "volume NAME");
		return;
	}
	if (best)
		complain(p, p->line, p->section, "unknown option '%s' (nearest: %s)", name,
			 best->name);
	else
		complain(p, p->line, p->section, "unknown option '%s'", name);
}

/* ---- lines ------------------------------------------------------------------------------------------ */

static void *section_base(struct parser *p, const struct section *section)
{
	return section->kind == SECTION_NODE ? (void *)&p->config->node
					     : (void *)&p->config->volumes[section->volume_index];
}

static void complain_value(struct parser *p, const struct config_option *option, const char *value,
			   const char *wrong)
{
	char text[512];

	config_option_explain(option, value, wrong, text, sizeof(text));
	complain(p, p->line, p->section, "%s", text);
}

/* inih's callback, for each KEY = VALUE. */
static int take_pair(void *user, const char *section_name, const char *name, const char *value)
{
	struct parser *p = user;

	if (p->long_value)
		value = p->long_value;
	if (!p->section) {
		complain(p, p->line, NULL, "option '%s' before the first section", name);
		return 1;
	}
	if (p->section->kind == SECTION_UNKNOWN)
		return 1;
	const struct config_option *option = config_option_find(p->section->kind, name);

	if (!option) {
		complain_unknown_option(p, name);
		return 1;
	}
	unsigned *given = &p->section->option_line[option - config_options];

	if (*given) {
		complain(p, p->line, p->section, "option '%s' again (first in line %u)", name,
			 *given);
		return 1;
	}
	*given = p->line;
	const char *wrong =
		*value ? config_option_set(option, section_base(p, p->section), value) : "no value";

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
		const char *nearest = config_nearest(kinds, first);

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
static char *prepare_line(struct parser *p, char *text, size_t length)
{
	char *const nothing = text + strlen(text);

	if (strlen(text) != length) {
		complain(p, p->line, p->section, "a NUL byte in the line");
		return nothing;
	}
	while (length && isspace((unsigned char)text[length - 1]))
		text[--length] = '\0';
	if (p->line == 1 && strncmp(text, "\xEF\xBB\xBF", 3) == 0)
		text += 3;
	while (isspace((unsigned char)*text))
		text++;
	if (*text == '\0' || *text == ';' || *text == '#')
		return nothing;
	if (*text == '[') {
		begin_section(p, text);
		return nothing;
	}
	if (strlen(text) > LINE_BYTES_MAX) {
		complain(p, p->line, p->section, "the line is longer than %u bytes",
			 LINE_BYTES_MAX);
		return nothing;
	}
	for (const char *c = text; *c; c++)
		if (iscntrl((unsigned char)*c) && *c != '\t') {
			complain(p, p->line, p->section, "a control character in the line");
			return nothing;
		}
	if (!strchr(text, '=')) {
		complain(p, p->line, p->section, "not of the form OPTION = VALUE: '%s'", text);
		return nothing;
	}
	return text;
}

/* The value of a line that is too long for inih goes past it, read by its rules: a comment begins with a ';' behind a
 * blank. What is left of the line has the name. */
static void take_long_value(struct parser *p, char *text)
{
	char *value = text + strcspn(text, "=:") + 1, *end = value;

	while (*end && !(*end == ';' && end > value && isspace((unsigned char)end[-1])))
		end++;
	while (end > value && isspace((unsigned char)end[-1]))
		end--;
	*end = '\0';
	while (isspace((unsigned char)*value))
		value++;
	p->long_value = value;
}

/* inih's fgets(). */
static char *read_line(char *to, int size, void *stream)
{
	struct parser *p = stream;
	ssize_t length = getline(&p->line_text, &p->line_size, p->file);
	char *text;

	if (length < 0)
		return NULL;
	p->line++;
	p->long_value = NULL;
	text = prepare_line(p, p->line_text, (size_t)length);
	assert(size > INIH_NAME_BYTES + 8);
	if (strlen(text) + 2 <= (size_t)size) {
		snprintf(to, (size_t)size, "%s\n", text);
		return to;
	}
	take_long_value(p, text);
	length = (ssize_t)strcspn(text, "=:");
	snprintf(to, (size_t)size, "%.*s = long\n",
		 length < INIH_NAME_BYTES ? (int)length : INIH_NAME_BYTES, text);
	return to;
}

/* ---- defaults and what options demand of each other --------------------------------------------------- */

static void fill_defaults(struct parser *p, const struct section *section)
{
	for (size_t i = 0; i < config_option_count; i++) {
		if (config_options[i].section != section->kind || section->option_line[i] ||
		    !config_options[i].fallback)
			continue;
		const char *wrong = config_option_set(&config_options[i], section_base(p, section),
						      config_options[i].fallback);

		if (wrong)
			complain(p, 0, section, "%s: %s", config_options[i].name, wrong);
	}
}

/* Of a field without a value. */
static void default_text(struct parser *p, char **field, const char *text)
{
	*field = strdup(text);
	if (!*field)
		complain(p, 0, NULL, "out of memory");
}

static void default_node_name(struct parser *p)
{
	char host[CONFIG_NAME_BYTES_MAX + 1] = "";

	if (p->config->node.name)
		return;
	if (gethostname(host, sizeof(host)) != 0 || host[sizeof(host) - 1] ||
	    config_name_invalid(host))
		strcpy(host, "node");
	default_text(p, &p->config->node.name, host);
}

/* Where an option of the section was given, or the section itself. */
static unsigned line_of(const struct section *section, const char *name)
{
	const struct config_option *option = config_option_find(section->kind, name);

	assert(option);
	unsigned line = section->option_line[option - config_options];

	return line ? line : section->line;
}

static bool was_given(const struct section *section, const char *name)
{
	const struct config_option *option = config_option_find(section->kind, name);

	assert(option);
	return section->option_line[option - config_options] != 0;
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

	if (!node->nbd_ca && node->tls_ca && !was_given(&p->node, "nbd-ca"))
		default_text(p, &node->nbd_ca, node->tls_ca);
	for (unsigned i = 0; i < p->config->volume_count; i++) {
		struct config_volume *volume = &p->config->volumes[i];

		if (volume->peer && !volume->peer_name && !was_given(&p->volumes[i], "peer-name") &&
		    config_address_host(volume->peer, host))
			default_text(p, &volume->peer_name, host);
	}
}

static void check_nbd_tls(struct parser *p)
{
	const struct config_node *node = &p->config->node;
	const struct section *s = &p->node;

	if (node->nbd_tls != CONFIG_TLS_OFF && !node->nbd_psk_file && !node->tls_cert)
		complain(p, line_of(s, "nbd-tls"), s,
			 "nbd-tls = %s needs keys: tls-cert and tls-key, or nbd-psk-file",
			 config_option_find(SECTION_NODE, "nbd-tls")->choices[node->nbd_tls]);
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
		const struct config_option *option = config_option_find(SECTION_VOLUME, needing[i]);
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

void config_free(struct config *config)
{
	if (!config)
		return;
	config_options_free(SECTION_NODE, &config->node);
	for (unsigned i = 0; i < config->volume_count; i++) {
		config_options_free(SECTION_VOLUME, &config->volumes[i]);
		free(config->volumes[i].name);
	}
	free(config->volumes);
	free(config->path);
	free(config);
}
