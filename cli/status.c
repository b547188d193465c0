// SPDX-License-Identifier: Apache-2.0
/*
 * status: one screen for people, or the API's answer for programs; and the events.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/format.h"

const char help_status[] =
	"Usage: offsite status [VOLUME] [--json]\n"
	"Shows the node and its volumes: role, disk, peer, what is not yet in sync, snapshots.\n"
	"\n"
	"  --json   the API's answer (GET /v1/status), for programs\n";

const char help_events[] =
	"Usage: offsite events [--follow] [--json]\n"
	"Shows what happened lately: roles, disks, replication, snapshots, jobs.\n"
	"\n"
	"  -f, --follow   wait for more, until interrupted\n"
	"  --json         one JSON object a line, for programs\n";

static const char *state_colour(const char *word)
{
	static const struct {
		const char *word;
		enum format_colour colour;
	} colours[] = {
		{"uptodate", FORMAT_GOOD},    {"streaming", FORMAT_GOOD},
		{"outdated", FORMAT_WARN},    {"connecting", FORMAT_WARN},
		{"handshake", FORMAT_WARN},   {"catch-up", FORMAT_WARN},
		{"inconsistent", FORMAT_BAD}, {"failed", FORMAT_BAD},
		{"standalone", FORMAT_BAD},
	};

	for (unsigned i = 0; i < sizeof(colours) / sizeof(colours[0]); i++)
		if (!strcmp(colours[i].word, word))
			return format_colour(stdout, colours[i].colour);
	return "";
}

/* "role:primary" with the word coloured by what it means. */
static void print_word(const char *name, const char *word)
{
	printf("  %s%s%s%s%s", name, *name ? ":" : "", state_colour(word), word,
	       format_end(stdout));
}

static void print_node(const json_t *status)
{
	const json_t *nbd = json_object_get(status, "nbd");
	const json_t *addresses = json_object_get(nbd, "addresses");
	size_t i;
	json_t *address;

	printf("%snode %s%s  offsite %s  io %s  up %s  memory %s\n",
	       format_colour(stdout, FORMAT_BOLD), client_text(status, "node", "?"),
	       format_end(stdout), client_text(status, "version", "?"),
	       client_text(status, "io", "?"),
	       format_duration(client_number(status, "uptime_seconds")).text,
	       format_bytes(client_number(status, "resident_bytes")).text);
	if (json_array_size(addresses)) {
		printf("  nbd       ");
		json_array_foreach(addresses, i, address)
			printf("  %s", json_string_value(address));
		printf("  (%.0f connected)\n", client_number(nbd, "connections"));
	}
	if (client_text(status, "peer_listen", NULL))
		printf("  peers       %s\n", client_text(status, "peer_listen", ""));
}

static void print_progress(const json_t *progress)
{
	double done = client_number(progress, "done_bytes");
	double total = client_number(progress, "total_bytes");
	char bar[40];

	format_bar(bar, 24, done, total);
	printf("%s %.0f %%  %s of %s, %s/s", bar, total > 0 ? done / total * 100 : 0.0,
	       format_bytes(done).text, format_bytes(total).text,
	       format_bytes(client_number(progress, "rate_bytes")).text);
	if (json_is_number(json_object_get(progress, "eta_seconds")))
		printf(", %s left", format_duration(client_number(progress, "eta_seconds")).text);
	putchar('\n');
}

static void print_split(const json_t *replication)
{
	const json_t *split = json_object_get(replication, "split_brain");
	const json_t *rolled_back = json_object_get(replication, "rolled_back");

	if (json_is_object(split))
		printf("  %sSPLIT BRAIN%s since %s: changed here %s, on %s %s\n"
		       "              offsite changes, then offsite resolve --keep NODE\n",
		       format_colour(stdout, FORMAT_BAD), format_end(stdout),
		       client_text(split, "since", "?"),
		       format_bytes(client_number(split, "bytes")).text,
		       client_text(split, "peer", "?"),
		       format_bytes(client_number(split, "peer_bytes")).text);
	if (json_is_true(json_object_get(replication, "wants")))
		puts("  gives up    its content for the peer's, once that comes");
	if (json_is_true(json_object_get(replication, "starting")))
		puts("  starting    requests are held until the peer is known (start-wait)");
	if (client_text(replication, "stepped_down", NULL))
		printf("  stepped down %s: the peer was promoted meanwhile\n",
		       client_text(replication, "stepped_down", ""));
	if (json_is_object(rolled_back))
		printf("  rolled back %s: at most %s in %.0f extents that never reached the peer\n",
		       client_text(rolled_back, "at", "?"),
		       format_bytes(client_number(rolled_back, "bytes")).text,
		       client_number(rolled_back, "extents"));
}

/* What slows whom down. */
static void print_pace(const json_t *replication)
{
	const json_t *pace = json_object_get(replication, "pace");
	const char *reason = client_text(pace, "catch_up_reason", NULL);

	if (json_is_true(json_object_get(replication, "held")))
		printf("  %sheld        writers wait for the peer%s\n",
		       format_colour(stdout, FORMAT_BAD), format_end(stdout));
	if (!reason || !client_number(pace, "catch_up_limit"))
		return;
	printf("  limit       %s/s by %s", format_bytes(client_number(pace, "catch_up_limit")).text,
	       reason);
	if (client_number(pace, "write_p99_baseline_seconds"))
		printf(", p99 %.1f ms (%.1f ms without catch-up)",
		       client_number(pace, "write_p99_seconds") * 1e3,
		       client_number(pace, "write_p99_baseline_seconds") * 1e3);
	putchar('\n');
}

static void print_replication(const json_t *replication)
{
	const char *peer = client_text(replication, "peer", "");
	const char *refusal = client_text(replication, "refusal", NULL);
	const json_t *catch_up = json_object_get(replication, "catch_up");
	const json_t *unreadable = json_object_get(replication, "unreadable");

	printf("  peer        %s%s%s", *peer ? peer : "(unknown yet)",
	       *client_text(replication, "peer_address", "") ? " at " : "",
	       client_text(replication, "peer_address", ""));
	print_word("", client_text(replication, "state", "?"));
	if (client_text(replication, "direction", NULL))
		printf(" as %s", client_text(replication, "direction", ""));
	print_word("role", client_text(replication, "peer_role", "unknown"));
	print_word("disk", client_text(replication, "peer_disk", "unknown"));
	printf("  protocol:%s", client_text(replication, "protocol", "?"));
	if (strcmp(client_text(replication, "peer_role", "unknown"), "unknown") != 0)
		printf("  %s",
		       json_is_true(json_object_get(replication, "tls")) ? "tls" : "plaintext");
	putchar('\n');
	if (client_text(replication, "peer_seen", NULL))
		printf("  last seen   %s: %s, disk %s\n", client_text(replication, "peer_seen", ""),
		       client_text(replication, "peer_seen_role", "?"),
		       client_text(replication, "peer_seen_disk", "?"));
	print_split(replication);
	if (json_is_true(json_object_get(replication, "suspended")))
		printf("  %ssuspended   since %s: requests wait for the peer, or for: offsite "
		       "resume%s\n",
		       format_colour(stdout, FORMAT_BAD),
		       client_text(replication, "suspended_since", "?"), format_end(stdout));
	if (refusal)
		printf("  %srefused     %s%s\n", format_colour(stdout, FORMAT_BAD), refusal,
		       format_end(stdout));
	printf("  lag         %s, %s   out of sync: %s\n",
	       format_bytes(client_number(replication, "lag_bytes")).text,
	       format_duration(client_number(replication, "lag_seconds")).text,
	       format_bytes(client_number(replication, "out_of_sync_bytes")).text);
	if (json_is_object(catch_up)) {
		printf("  catch-up    ");
		print_progress(catch_up);
	}
	if (json_is_true(json_object_get(replication, "in_place")))
		printf("              in place: until it is done the target is inconsistent (a "
		       "first "
		       "sync, or larger than staging-max)\n");
	if (json_is_object(unreadable))
		printf("  %sunreadable  primary cannot read %.0f bytes at %.0f and after: catch-up "
		       "waits; a write there mends it%s\n",
		       format_colour(stdout, FORMAT_BAD), client_number(unreadable, "bytes"),
		       client_number(unreadable, "offset"), format_end(stdout));
	print_pace(replication);
}

/* What the last comparison found, or how far the one under way is. */
static void print_verify(const json_t *verify)
{
	double differ = client_number(verify, "differ_bytes");
	double left = differ - client_number(verify, "repaired_bytes");

	printf("  verify      ");
	if (json_is_object(json_object_get(verify, "progress")) &&
	    json_is_false(json_object_get(verify, "waiting")))
		print_progress(json_object_get(verify, "progress"));
	else
		printf("%s%s, %s compared\n", client_text(verify, "state", "?"),
		       json_is_true(json_object_get(verify, "waiting")) ? " (waits for the peer)"
									: "",
		       format_bytes(client_number(verify, "compared_bytes")).text);
	printf("              %s%.0f bytes differ%s",
	       left > 0 ? format_colour(stdout, FORMAT_BAD) : "", differ, format_end(stdout));
	if (differ > left)
		printf(", %.0f repaired", differ - left);
	if (client_text(verify, "ended", NULL))
		printf("; ended %s", client_text(verify, "ended", ""));
	putchar('\n');
}

static void print_snapshots(const json_t *snapshots)
{
	const json_t *newest = json_object_get(snapshots, "newest");
	double every_s = client_number(snapshots, "every_seconds");
	const char *failure = client_text(snapshots, "last_error", NULL);

	printf("  store       %s%s\n  snapshot    ", client_text(snapshots, "store", ""),
	       json_is_false(json_object_get(snapshots, "open")) ? "  (not open)" : "");
	if (json_is_object(newest))
		printf("%.12s, %s ago", client_text(newest, "id", "?"),
		       format_duration(client_number(snapshots, "newest_age_seconds")).text);
	else
		printf("%s",
		       json_is_false(json_object_get(snapshots, "open")) ? "unknown" : "none yet");
	printf("; changed since: %s", format_bytes(client_number(snapshots, "changed_bytes")).text);
	if (every_s > 0)
		printf("; every %s", format_duration(every_s).text);
	putchar('\n');
	if (client_text(newest, "locked_until", NULL))
		printf("  locked      until %s (%s)\n", client_text(newest, "locked_until", ""),
		       client_text(newest, "lock", ""));
	if (client_integer(newest, "requests"))
		printf("  requests    %llu for the newest; %llu since the store was opened\n",
		       (unsigned long long)client_integer(newest, "requests"),
		       (unsigned long long)client_integer(json_object_get(snapshots, "requests"),
							  "total"));
	if (failure)
		printf("  %sfailed      %s%s\n", format_colour(stdout, FORMAT_BAD), failure,
		       format_end(stdout));
	const char *command = client_text(snapshots, "command_failure", NULL);
	if (command)
		printf("  command     %s\n", command);
	if (json_is_true(json_object_get(snapshots, "running"))) {
		printf("  sealing     ");
		print_progress(json_object_get(snapshots, "progress"));
		if (client_number(snapshots, "read_limit"))
			printf("  limit       %s/s by %s, p99 %.1f ms (%.1f ms without it)\n",
			       format_bytes(client_number(snapshots, "read_limit")).text,
			       client_text(snapshots, "read_reason", "?"),
			       client_number(snapshots, "write_p99_seconds") * 1e3,
			       client_number(snapshots, "write_p99_baseline_seconds") * 1e3);
	}
}

/* What nobody deletes here while it is open. */
static void print_exports(const json_t *exports)
{
	json_t *each;
	size_t i;

	json_array_foreach(exports, i, each)
		printf("  %s@%.12s as of %s, clients:%.0f\n", i ? "            " : "exported    ",
		       client_text(each, "snapshot", "?"), client_text(each, "created", "?"),
		       client_number(each, "clients"));
}

static void print_proof(const json_t *proof)
{
	const char *failure = client_text(proof, "last_error", NULL);

	if (client_text(proof, "proven", NULL))
		printf("  proven      %.12s, %s ago, in %s\n", client_text(proof, "proven", ""),
		       format_duration(client_number(proof, "proven_age_seconds")).text,
		       format_duration(client_number(proof, "duration_seconds")).text);
	else
		printf("  proven      never\n");
	if (failure)
		printf("  %snot proven  %s%s\n", format_colour(stdout, FORMAT_BAD), failure,
		       format_end(stdout));
	if (json_is_true(json_object_get(proof, "running")))
		printf("  proving     under way\n");
}

/* What is wrong with the disk, and where the content is meanwhile. */
static void print_disk(const json_t *volume)
{
	bool at_peer = json_is_true(json_object_get(volume, "at_peer"));
	double missing = client_number(json_object_get(volume, "stats"), "missing_bytes");
	double size = client_number(volume, "size_bytes");
	const json_t *filling = json_object_get(volume, "filling");

	if (client_text(volume, "disk_failure", NULL))
		printf("  %s%s %s%s\n", format_colour(stdout, FORMAT_BAD),
		       strcmp(client_text(volume, "disk", ""), "uptodate") ? "disk failed"
									   : "disk error ",
		       client_text(volume, "disk_failure", ""), format_end(stdout));
	if (json_is_object(filling)) {
		printf("  filling     from %s %.12s: %s of %s to come; ",
		       client_text(filling, "from", "?"), client_text(filling, "snapshot", ""),
		       format_bytes(missing).text, format_bytes(size).text);
		print_progress(json_object_get(filling, "progress"));
		if (client_text(filling, "trouble", NULL))
			printf("  %swaiting     what is missing cannot be read now: %s%s\n",
			       format_colour(stdout, FORMAT_BAD),
			       client_text(filling, "trouble", ""), format_end(stdout));
	} else if (at_peer && strcmp(client_text(volume, "disk", ""), "diskless") == 0)
		printf("  %sDISKLESS%s    served from the peer; replace the disk, then: offsite "
		       "replace-disk\n",
		       format_colour(stdout, FORMAT_BAD), format_end(stdout));
	if (json_is_true(json_object_get(volume, "waits_for_peer")))
		printf("  %swaiting     requests wait: the content is at the peer, which is "
		       "away%s\n",
		       format_colour(stdout, FORMAT_BAD), format_end(stdout));
}

static void print_volume(const json_t *volume)
{
	const json_t *replication = json_object_get(volume, "replication");
	const json_t *snapshots = json_object_get(volume, "snapshots");

	printf("\n%s%s%s", format_colour(stdout, FORMAT_BOLD), client_text(volume, "name", "?"),
	       format_end(stdout));
	if (!json_is_true(json_object_get(volume, "open"))) {
		printf("  %snot open%s: %s\n", format_colour(stdout, FORMAT_BAD),
		       format_end(stdout), client_text(volume, "error", "?"));
		return;
	}
	printf("  %s", format_bytes(client_number(volume, "size_bytes")).text);
	print_word("role", client_text(volume, "role", "?"));
	print_word("disk", client_text(volume, "disk", "?"));
	printf("  clients:%.0f", client_number(volume, "clients"));
	if (client_text(volume, "busy", NULL))
		printf("  %s under way", client_text(volume, "busy", ""));
	if (client_text(volume, "outdated_since", NULL))
		printf("  since %s", client_text(volume, "outdated_since", ""));
	printf("\n  backing     %s\n", client_text(volume, "backing", ""));
	print_disk(volume);
	if (client_text(volume, "kept_copy", NULL))
		printf("  kept        the content before this catch-up: %s\n",
		       client_text(volume, "kept_copy", ""));
	if (client_text(volume, "at_risk", NULL))
		printf("  %sat risk     a promotion here would lose %s%s\n",
		       format_colour(stdout, FORMAT_WARN), client_text(volume, "at_risk", ""),
		       format_end(stdout));
	if (json_is_object(replication))
		print_replication(replication);
	if (json_is_object(json_object_get(volume, "verify")))
		print_verify(json_object_get(volume, "verify"));
	if (json_is_object(snapshots))
		print_snapshots(snapshots);
	print_exports(json_object_get(volume, "exports"));
	if (json_is_object(json_object_get(volume, "proof")))
		print_proof(json_object_get(volume, "proof"));
}

static char *status_path(const char *volume)
{
	char *query = volume ? client_volume_path(volume, "") : NULL;
	char *path = NULL;

	/* The encoded name stands behind "/v1/volumes/". */
	if (asprintf(&path, "/v1/status%s%s", volume ? "?volume=" : "",
		     volume ? query + strlen("/v1/volumes/") : "") < 0)
		exit(cli_fail(CLI_FAILED, "out of memory"));
	free(query);
	return path;
}

int cmd_status(struct cli *cli, int argc, char **argv)
{
	static const struct option longs[] = {{"json", no_argument, NULL, 'j'}, CLI_OPTIONS_COMMON};
	bool as_json = false;
	json_t *status, *volume;
	size_t i;
	char *path;
	int option, code;

	while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (option == 'j')
			as_json = true;
		else if ((code = cli_common_option(cli, option, help_status)) >= 0)
			return code;
	}
	if (!cli_arguments(argc, 0, 1, ""))
		return CLI_USAGE;
	path = status_path(optind < argc ? argv[optind] : NULL);
	code = client_call(cli, "GET", path, NULL, &status);
	free(path);
	if (code)
		return code;
	if (as_json) {
		json_dumpf(status, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
		putchar('\n');
	} else {
		print_node(status);
		json_array_foreach(json_object_get(status, "volumes"), i, volume)
			print_volume(volume);
	}
	json_decref(status);
	return CLI_FINE;
}

static void print_events(const json_t *answer, bool as_json)
{
	const json_t *events = json_object_get(answer, "events");
	json_t *event;
	size_t i;

	json_array_foreach(events, i, event)
	{
		if (as_json) {
			json_dumpf(event, stdout, JSON_COMPACT);
			putchar('\n');
		} else {
			printf("%s  %-12s %-12s %s\n", client_text(event, "time", "?"),
			       client_text(event, "volume", ""), client_text(event, "type", "?"),
			       client_text(event, "text", ""));
		}
	}
	fflush(stdout);
}

int cmd_events(struct cli *cli, int argc, char **argv)
{
	static const struct option longs[] = {{"json", no_argument, NULL, 'j'},
					      {"follow", no_argument, NULL, 'f'},
					      CLI_OPTIONS_COMMON};
	bool as_json = false, follow = false;
	unsigned long long next = 0;
	char instance[64] = "";
	char path[96];
	json_t *answer;
	int option, code;

	while ((option = getopt_long(argc, argv, "fh", longs, NULL)) != -1) {
		if (option == 'j')
			as_json = true;
		else if (option == 'f')
			follow = true;
		else if ((code = cli_common_option(cli, option, help_events)) >= 0)
			return code;
	}
	if (!cli_arguments(argc, 0, 0, ""))
		return CLI_USAGE;
	do {
		snprintf(path, sizeof(path), "/v1/events?since=%llu&wait=%d", next,
			 follow && *instance ? 30 : 0);
		code = client_call(cli, "GET", path, NULL, &answer);
		if (code)
			return code;
		/* Another instance of the daemon counts from 1 again. */
		if (*instance && strcmp(instance, client_text(answer, "instance", ""))) {
			*instance = 0;
			next = 0;
			json_decref(answer);
			continue;
		}
		snprintf(instance, sizeof(instance), "%s", client_text(answer, "instance", ""));
		print_events(answer, as_json);
		next = client_integer(answer, "next");
		json_decref(answer);
	} while (follow && !ferror(stdout));
	return CLI_FINE;
}
