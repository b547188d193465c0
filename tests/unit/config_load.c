/* SPDX-License-Identifier: Apache-2.0 */
/* The config file: what a good one gives, and for each bad one the line that is to be said. */
#include "daemon/config.h"
#include "protocol/replication.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define NODE   "[node]\nname = a\n"
#define VOLUME "[volume v]\nbacking = /v\n"

struct file {
	char path[40];
};

static void write_file(struct file *file, const char *text, size_t length)
{
	strcpy(file->path, "/tmp/offsite-config-XXXXXX");
	int fd = mkstemp(file->path);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, length), length);
	close(fd);
}

static struct config *load(const char *text, char **errors)
{
	struct file file;

	write_file(&file, text, strlen(text));
	struct config *config = config_load(file.path, errors);

	unlink(file.path);
	return config;
}

static struct config *load_good(const char *text)
{
	char *errors = NULL;
	struct config *config = load(text, &errors);

	if (!config)
		fail_msg("%s", errors);
	assert_null(errors);
	return config;
}

static void test_all_options(void **state)
{
	struct config *config = load_good(
		"\xEF\xBB\xBF# comment\n[node]\n"
		"name = onprem\n  state-dir = /s/d\ncontrol = /run/c.sock\n"
		"nbd-listen = unix:/run/n.sock 127.0.0.1:0 [::1]:10809\n"
		"peer-listen = 0.0.0.0:10810 ; the cloud calls here\n"
		"peer-plaintext = no\npsk-file = /k\ntls-cert = /c\ntls-key=/y\ntls-ca = /ca\n"
		"nbd-tls = require\nnbd-psk-file = /nk\nnbd-verify-client = yes\n"
		"io = aio\nlog-level = debug\nthreads = 3\n\n"
		"[ volume   pg.data_1-x ]\nbacking = /dev/sdb\nsize = 3G\nrole = primary\n"
		"peer = cloud.example.org:10810\nprotocol = A\nstaging-max = 2GiB\n"
		"preserve-max=512m\nsend-queue-max = 1048576\nstart-wait = 2s\nafter-sb-0pri = "
		"discard-least-changes\nafter-sb-1pri = consensus\nverify-rate = "
		"10M\nblock-size = 4096\nattach = /dev/nbd3\nattach-timeout = 300\n"
		"attach-connections = 4\nattach-request-timeout = 7\n"
		"store = file:/srv/store\nsnapshot-every = 15m\nkeep-last = 7\n"
		"compression-level = 19\nrepack = no\nstore-list-lag = 1m\nmax-lag = "
		"64M\nmax-lag-time = 10s\nmax-lag-action = "
		"catch-up\n"
		"stream-rate = 30M\ncatch-up-rate = 20M, 5M@mon-fri 08:00-18:00\n"
		"snapshot-rate = 0\ndescription = a disk, #1\n");
	const struct config_node *n = &config->node;
	const struct config_volume *v = &config->volumes[0];

	assert_string_equal(n->name, "onprem");
	assert_int_equal(v->max_lag_bytes, 64 << 20);
	assert_int_equal(v->max_lag_ns, 10000000000);
	assert_int_equal(v->max_lag_action, 1);
	assert_int_equal(v->stream_rate.rate, 30 << 20);
	assert_int_equal(v->catch_up_rate.rate, 20 << 20);
	assert_int_equal(v->catch_up_rate.timed[0].rate, 5 << 20);
	assert_int_equal(v->snapshot_rate.rate, 0);
	assert_string_equal(n->state_dir, "/s/d");
	assert_string_equal(n->control, "/run/c.sock");
	assert_string_equal(n->nbd_listen[0], "unix:/run/n.sock");
	assert_string_equal(n->nbd_listen[1], "127.0.0.1:0");
	assert_string_equal(n->nbd_listen[2], "[::1]:10809");
	assert_null(n->nbd_listen[3]);
	assert_string_equal(n->peer_listen, "0.0.0.0:10810");
	assert_false(n->peer_plaintext);
	assert_string_equal(n->psk_file, "/k");
	assert_string_equal(n->tls_cert, "/c");
	assert_string_equal(n->tls_key, "/y");
	assert_string_equal(n->tls_ca, "/ca");
	assert_int_equal(n->nbd_tls, CONFIG_TLS_REQUIRE);
	assert_string_equal(n->nbd_psk_file, "/nk");
	assert_true(n->nbd_verify_client);
	assert_int_equal(n->io, CONFIG_IO_AIO);
	assert_int_equal(n->log_level, 3);
	assert_int_equal(n->threads, 3);
	assert_int_equal(config->volume_count, 1);
	assert_string_equal(v->name, "pg.data_1-x");
	assert_string_equal(v->backing, "/dev/sdb");
	assert_int_equal(v->size_bytes, 3ull << 30);
	assert_true(v->primary);
	assert_string_equal(v->peer, "cloud.example.org:10810");
	assert_int_equal(v->protocol, 'A');
	assert_int_equal(v->staging_max_bytes, 2ull << 30);
	assert_int_equal(v->preserve_max_bytes, 512u << 20);
	assert_int_equal(v->send_queue_max_bytes, 1u << 20);
	assert_int_equal(v->start_wait_ns, 2000000000);
	assert_int_equal(v->after_sb_0pri, AFTER_SB_0PRI_DISCARD_LEAST_CHANGES);
	assert_int_equal(v->after_sb_1pri, AFTER_SB_1PRI_CONSENSUS);
	assert_int_equal(v->verify_rate_bytes, 10u << 20);
	assert_int_equal(v->block_min_bytes, 4096);
	assert_int_equal(v->attach, 3);
	assert_int_equal(v->attach_timeout_s, 300);
	assert_int_equal(v->attach_connections, 4);
	assert_int_equal(v->attach_request_s, 7);
	assert_string_equal(v->store, "file:/srv/store");
	assert_int_equal(v->snapshot_every_ns, 900000000000ull);
	assert_int_equal(v->keep_last, 7);
	assert_int_equal(v->compression_level, 19);
	assert_false(v->repack);
	assert_int_equal(v->store_list_lag_ns, 60 * 1000000000ull);
	assert_string_equal(v->description, "a disk, #1");
	config_free(config);
}

static void test_defaults(void **state)
{
	struct config *config = load_good("[volume v]\nbacking = /v\n");
	const struct config_volume *v = &config->volumes[0];

	assert_true(config->node.name[0]);
	assert_string_equal(config->node.state_dir, "/var/lib/offsite");
	assert_string_equal(config->node.nbd_listen[0], "unix:/run/offsite/nbd.sock");
	assert_null(config->node.peer_listen);
	assert_int_equal(config->node.nbd_tls, CONFIG_TLS_OFF);
	assert_int_equal(config->node.io, CONFIG_IO_AUTO);
	assert_int_equal(config->node.log_level, 2);
	assert_int_equal(v->size_bytes, 0);
	assert_false(v->primary);
	assert_int_equal(v->protocol, 'C');
	assert_int_equal(v->staging_max_bytes, 0);
	assert_int_equal(v->send_queue_max_bytes, 32u << 20);
	assert_int_equal(v->start_wait_ns, 5000000000);
	assert_int_equal(v->after_sb_0pri, AFTER_SB_0PRI_DISCONNECT);
	assert_int_equal(v->after_sb_1pri, AFTER_SB_1PRI_DISCONNECT);
	assert_int_equal(v->verify_rate_bytes, 64u << 20);
	assert_int_equal(v->block_min_bytes, 1);
	assert_int_equal(v->snapshot_every_ns, 0);
	assert_int_equal(v->compression_level, 1);
	assert_true(v->repack);
	assert_int_equal(v->store_list_lag_ns, 0);
	config_free(config);
}

#define CERTIFICATES "tls-cert = /c\ntls-key = /k\ntls-ca = /ca\n"

/* Whose certificate is expected, and which CA is whose. */
static void test_names_of_peers(void **state)
{
	struct config *config = load_good(
		NODE CERTIFICATES "peer-listen = 0.0.0.0:1\nnbd-tls = require\n"
				  "nbd-verify-client = yes\nnbd-ca = /nca\n" VOLUME
				  "peer = cloud.example.org:1\n"
				  "[volume w]\nbacking = /w\npeer = tcp:[fe80::1%eth0]:1\n"
				  "[volume x]\nbacking = /x\npeer = 10.0.0.1:1\npeer-name = ec2\n"
				  "[volume y]\nbacking = /y\npeer-name = ::1\n");

	assert_string_equal(config->volumes[0].peer_name, "cloud.example.org");
	assert_string_equal(config->volumes[1].peer_name, "fe80::1");
	assert_string_equal(config->volumes[2].peer_name, "ec2");
	assert_string_equal(config->volumes[3].peer_name, "::1");
	assert_string_equal(config->node.nbd_ca, "/nca");
	config_free(config);
	/* Nothing mixes where the peers have a key, or where there are none. */
	config = load_good(NODE CERTIFICATES "psk-file = /k\nnbd-tls = on\n"
					     "nbd-verify-client = yes\n" VOLUME "peer = h:1\n");
	assert_string_equal(config->node.nbd_ca, "/ca");
	config_free(config);
	config_free(load_good(NODE CERTIFICATES "nbd-tls = on\nnbd-verify-client = yes\n" VOLUME));
}

/* For as long as a new snapshot is sure to be kept, where nothing else is said. */
static void test_lock_for(void **state)
{
	struct config *config = load_good(
		NODE VOLUME "store = s3://bucket\nlock = compliance\nlock-for = 30d\n"
			    "[volume w]\nbacking = /w\nstore = s3://bucket\nlock = governance\n"
			    "keep-within = 7d\nkeep-last = 3\nsnapshot-every = 1h\n"
			    "[volume x]\nbacking = /x\nstore = s3://bucket\nlock = governance\n"
			    "keep-last = 48\nsnapshot-every = 1h\n"
			    "[volume y]\nbacking = /y\nstore = file:/s\nlock = none\n");

	assert_int_equal(config->volumes[0].lock, 2);
	assert_int_equal(config->volumes[0].lock_for_ns, 30 * 86400 * 1000000000ull);
	assert_int_equal(config->volumes[1].lock, 1);
	assert_int_equal(config->volumes[1].lock_for_ns, 7 * 86400 * 1000000000ull);
	assert_int_equal(config->volumes[2].lock_for_ns, 48 * 3600 * 1000000000ull);
	assert_int_equal(config->volumes[3].lock, 0);
	config_free(config);
}

static void test_example(void **state)
{
	char *errors = NULL;
	struct config *config = config_load("packaging/offsite.conf.example", &errors);

	if (!config && errors && strstr(errors, "No such file"))
		skip(); /* not run from the top of the tree */
	if (!config)
		fail_msg("%s", errors);
	assert_string_equal(config->volumes[0].name, "pgdata");
	config_free(config);
}

struct bad {
	const char *text;
	const char *said; /* behind "FILE"; NULL-terminated pieces are separate lines */
};

static const struct bad bad[] = {
	{NODE VOLUME "protocoll = C\n",
	 ":5: [volume v] unknown option 'protocoll' (nearest: protocol)"},
	{NODE "nbd-lisen = x\n" VOLUME,
	 ":3: [node] unknown option 'nbd-lisen' (nearest: nbd-listen)"},
	{NODE "xyzzyxyzzy = x\n" VOLUME, ":3: [node] unknown option 'xyzzyxyzzy'\n"},
	{NODE "backing = /x\n" VOLUME, ":3: [node] option 'backing' belongs into [volume NAME]"},
	{NODE VOLUME "state-dir = /x\n", ":5: [volume v] option 'state-dir' belongs into [node]"},
	{"[nodes]\n" VOLUME, ":1: unknown section [nodes] (nearest: node)"},
	{"[volum v]\n" VOLUME, ":1: unknown section [volum v] (nearest: volume NAME)"},
	{"[whatever]\n" VOLUME, ":1: unknown section [whatever]\n"},
	{"[node\n" VOLUME, ":1: a section's name ends with ']'"},
	{"name = a\n" VOLUME, ":1: option 'name' before the first section"},
	{NODE NODE VOLUME, ":3: [node] again (first in line 1)"},
	{VOLUME VOLUME, ":3: [volume v] again (first in line 1)"},
	{NODE "name = b\n" VOLUME, ":3: [node] option 'name' again (first in line 2)"},
	{NODE "  name = b\n" VOLUME, ":3: [node] option 'name' again (first in line 2)"},
	{NODE VOLUME "size\n", ":5: [volume v] not of the form OPTION = VALUE: 'size'"},
	{NODE VOLUME "size =\n", ":5: [volume v] option 'size' has no value"},
	{NODE VOLUME "size = big\n", ":5: [volume v] size = big: not a size"},
	{NODE VOLUME "size = 1X\n", ":5: [volume v] size = 1X: not a size"},
	{NODE VOLUME "size = 1GB\n", ":5: [volume v] size = 1GB: not a size"},
	{NODE VOLUME "size = -1\n", ":5: [volume v] size = -1: not a size"},
	{NODE VOLUME "size = 5000\n", ":5: [volume v] size = 5000: not a multiple of 4096"},
	{NODE VOLUME "size = 99999999T\n", ":5: [volume v] size = 99999999T: too big"},
	{NODE VOLUME "size = 99999999999999999999999\n", ": not a size"},
	{NODE VOLUME "protocol = D\n", ":5: [volume v] protocol = D: not one of A, B, C"},
	{NODE VOLUME "role = primery\n",
	 ":5: [volume v] role = primery: not one of secondary, primary (nearest: primary)"},
	{NODE VOLUME "attach = maybe\n", "attach = maybe: neither no, yes nor /dev/nbdN"},
	{NODE VOLUME "attach = /dev/nbd1024\n", "attach = /dev/nbd1024: neither no, yes nor"},
	{NODE "peer-plaintext = yes\n" VOLUME
	      "peer = h:1\non-peer-loss = suspend\nattach-connections = 2\n",
	 "attach-connections = 2: the kernel would send"},
	{NODE VOLUME "block-size = 1024\n", "block-size = 1024: not one of 1, 512, 4096"},
	{NODE VOLUME "snapshot-every = 15\nstore = file:/x\n",
	 "snapshot-every = 15: not a duration"},
	{NODE VOLUME "snapshot-every = 1y\nstore = file:/x\n",
	 "snapshot-every = 1y: not a duration"},
	{NODE VOLUME "snapshot-every = 99999999999w\nstore = file:/x\n", ": too long"},
	{NODE VOLUME "snapshot-every = 1h\n", ":5: [volume v] snapshot-every needs a store"},
	{NODE VOLUME "snapshot-from = peer\nstore = file:/x\n",
	 "snapshot-from = peer: not one of primary, secondary"},
	{NODE VOLUME "snapshot-from = secondary\n", "snapshot-from needs a store"},
	{NODE VOLUME "snapshot-before-command = fsfreeze\nstore = file:/x\n",
	 "snapshot-before-command = fsfreeze: not an absolute path"},
	{NODE VOLUME "snapshot-after-command = /bin/true\n",
	 "snapshot-after-command needs a store"},
	{NODE VOLUME "snapshot-command-timeout = 0\n",
	 "snapshot-command-timeout = 0: no program could end in time"},
	{NODE VOLUME "proof-every = 1w\nproof-dir = /tmp\n", "proof-every needs a store"},
	{NODE VOLUME "proof-every = 1w\nstore = file:/x\n", "proof-every needs proof-dir"},
	{NODE VOLUME "proof-timeout = 0\n", "proof-timeout = 0: no program could end in time"},
	{NODE VOLUME "proof-command = check.sh\n",
	 "proof-command = check.sh: not an absolute path"},
	{NODE VOLUME "snapshot-on-command-failure = ignore\n",
	 "snapshot-on-command-failure = ignore: not one of abort, continue"},
	{NODE VOLUME "compression-level = 20\n",
	 ":5: [volume v] compression-level = 20: out of range (1 to 19)"},
	{NODE VOLUME "lock = compliance\nlock-for = 1d\n", ":5: [volume v] lock needs a store"},
	{NODE VOLUME "store = file:/s\nlock = governance\nlock-for = 1d\n",
	 ":6: [volume v] lock: only a bucket (store = s3://...) can lock objects, not file:/s"},
	{NODE VOLUME "store = s3://bucket\nlock = governance\n",
	 ":6: [volume v] lock: for how long? set lock-for (or keep-within, or keep-last and "
	 "snapshot-every)"},
	{NODE VOLUME "store = s3://bucket\nlock = governance\nkeep-last = 1000000\n"
		     "snapshot-every = 1d\n",
	 "lock: for how long? set lock-for"},
	{NODE VOLUME "store = s3://bucket\nlock-for = 1d\n", ":6: [volume v] lock-for needs lock"},
	{NODE VOLUME "keep-last = few\n", "keep-last = few: not a number (0 to 1000000)"},
	{NODE VOLUME "store = /srv\n", "store = /srv: not the address of a store"},
	{NODE VOLUME "store = s3:bucket\n", "store = s3:bucket: must be s3://BUCKET/PREFIX"},
	{NODE VOLUME "store = s3://B/x\n", "the name of a bucket has"},
	{NODE VOLUME "store = s3://bucket/x?conections=3\n", "unknown option 'conections'"},
	{NODE VOLUME "store = s3:\n", "store = s3:: must be s3://BUCKET/PREFIX"},
	{NODE VOLUME "store = file:srv\n", "the directory must be absolute"},
	{NODE VOLUME "peer = host\n", "peer = host: not of the form HOST:PORT"},
	{NODE VOLUME "peer = host:\n", "the port is missing"},
	{NODE VOLUME "peer = :1\n", "the host is missing"},
	{NODE VOLUME "peer = h:65536\n", "not a number from 0 to 65535"},
	{NODE VOLUME "peer = h:0\n", "port 0 is no port to connect to"},
	{NODE VOLUME "peer = ::1:10\n", "an IPv6 address stands in brackets"},
	{NODE VOLUME "peer = h ost:10\n", "not a host name or address"},
	{NODE VOLUME "backing = rel\n", ":5: [volume v] option 'backing' again (first in line 4)"},
	{NODE "[volume v]\nbacking = rel\n", ":4: [volume v] backing = rel: not an absolute path"},
	{NODE "[volume v]\nbacking = /a # b\n", "a comment goes on a line of its own"},
	{NODE "[volume v]\n", ":3: [volume v] option 'backing' is missing"},
	{NODE, ": no [volume NAME] section"},
	{"", ": no [volume NAME] section"},
	{"[volume a/b]\nbacking = /v\n", ":1: [volume a/b]: a name consists of"},
	{"[volume ..]\nbacking = /v\n", ":1: [volume ..]: no name"},
	{"[volume]\nbacking = /v\n", ":1: [volume ]: a name has 1 to 48 characters"},
	{"[volume 1234567890123456789012345678901234567890123456789]\nbacking = /v\n",
	 "a name has 1 to 48 characters"},
	{VOLUME "[volume w]\nbacking = /v\n",
	 ":4: [volume w] backing = /v: volume v has it already"},
	{NODE "log-level = warn\n" VOLUME, "not one of error, warning, info, debug"},
	{NODE "io = uringg\n" VOLUME, "io = uringg: not one of auto, uring, aio (nearest: uring)"},
	{NODE "threads = 65\n" VOLUME, "threads = 65: out of range (0 to 64)"},
	{NODE "nbd-listen = a:1 b:2 c:3 d:4 e:5 f:6 g:7 h:8 i:9\n" VOLUME, "more than 8 addresses"},
	{NODE "nbd-listen = a:1 a:1\n" VOLUME, ":3: [node] nbd-listen: a:1 stands there twice"},
	{NODE "control = /c\nnbd-listen = unix:/c\n" VOLUME, "unix:/c is the control socket"},
	{NODE "nbd-tls = on\n" VOLUME, ":3: [node] nbd-tls = on needs keys"},
	{NODE "nbd-psk-file = /k\n" VOLUME, ":3: [node] nbd-psk-file has no effect"},
	{NODE "nbd-tls = on\ntls-cert = /c\ntls-key = /k\nnbd-verify-client = yes\n" VOLUME,
	 ":6: [node] nbd-verify-client needs tls-ca"},
	{NODE "tls-cert = /c\n" VOLUME, ":3: [node] tls-cert needs tls-key"},
	{NODE "tls-key = /c\n" VOLUME, ":3: [node] tls-key needs tls-cert"},
	{NODE "peer-listen = h:1\n" VOLUME, ":3: [node] peer-listen needs psk-file"},
	{NODE VOLUME "peer = h:1\n", ":5: [volume v] peer needs psk-file"},
	{NODE "tls-cert = /c\ntls-key = /k\n" VOLUME "peer = h:1\n", "peer needs psk-file"},
	{NODE "psk-file = /k\npeer-plaintext = yes\n" VOLUME,
	 ":4: [node] peer-plaintext = yes contradicts"},
	{NODE CERTIFICATES "peer-listen = h:1\n" VOLUME, ":7: [volume v] peer-name is missing"},
	{NODE CERTIFICATES VOLUME "peer = unix:/p\n", ":8: [volume v] peer-name is missing"},
	{NODE CERTIFICATES VOLUME "peer = h:1\npeer-name = a b\n",
	 "peer-name = a b: not a host name or address"},
	{NODE "psk-file = /k\n" VOLUME "peer = h:1\npeer-name = h\n",
	 ":7: [volume v] peer-name has no effect"},
	{NODE CERTIFICATES "nbd-tls = on\nnbd-verify-client = yes\n" VOLUME "peer = h:1\n",
	 ":7: [node] nbd-verify-client: an NBD client's certificate must not do for a peer"},
	{NODE "nbd-ca = /c\n" VOLUME, ":3: [node] nbd-ca has no effect"},
	{NODE "state-dir = /a\1b\n" VOLUME, ":3: [node] a control character in the line"},
};

static void test_bad(void **state)
{
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		char *errors = NULL;
		struct config *config = load(bad[i].text, &errors);

		if (config)
			fail_msg("accepted: %s", bad[i].text);
		if (!errors || !strstr(errors, bad[i].said))
			fail_msg("case %zu: wanted '%s', got '%s'", i, bad[i].said, errors);
		if (strchr(errors, '\n') != errors + strlen(errors) - 1)
			fail_msg("case %zu: more than one line: %s", i, errors);
		free(errors);
	}
}

static void test_all_errors_are_collected(void **state)
{
	char *errors = NULL;

	assert_null(load("[node]\nfoo = 1\nio = x\n[volume v]\nsize = y\n", &errors));
	assert_non_null(strstr(errors, ":2: [node] unknown option 'foo'"));
	assert_non_null(strstr(errors, ":3: [node] io = x: not one of"));
	assert_non_null(strstr(errors, ":5: [volume v] size = y: not a size"));
	assert_non_null(strstr(errors, ":4: [volume v] option 'backing' is missing"));
	free(errors);
}

static void test_missing_file(void **state)
{
	char *errors = NULL;

	assert_null(config_load("/nonexistent/offsite.conf", &errors));
	assert_string_equal(errors, "/nonexistent/offsite.conf: No such file or directory\n");
	free(errors);
}

static void test_long_line(void **state)
{
	char text[5000], *errors = NULL;

	memset(text, 'x', sizeof(text));
	memcpy(text, "[node]\nname = ", 14);
	strcpy(text + 4200, "\n[volume v]\nbacking = /v\nfoo = 1\n");
	assert_null(load(text, &errors));
	assert_non_null(strstr(errors, ":2: [node] the line is longer than 4096 bytes"));
	assert_non_null(strstr(errors, ":5: [volume v] unknown option 'foo'"));
	free(errors);
}

static void test_longest_line(void **state)
{
	char text[5000] = "[node]\nstate-dir = /";

	memset(text + strlen(text), 'd', 4096 - strlen("state-dir = /"));
	strcat(text, "\n[volume v]\nbacking = /v\n");
	struct config *config = load_good(text);

	assert_int_equal(strlen(config->node.state_dir), 4096 - strlen("state-dir = "));
	config_free(config);
}

/* Whatever its length, a line means the same: the value, without blanks and comment. */
static void test_lines_of_all_lengths(void **state)
{
	for (unsigned length = 150; length < 250; length++) {
		char text[700] = "[node]\nstate-dir=  /";
		struct config *config;

		memset(text + strlen(text), 'd', length);
		strcat(text, ";e \t; a comment; of it\n[volume v]\nbacking = /v\n");
		config = load_good(text);
		assert_int_equal(strlen(config->node.state_dir), 1 + length + 2);
		assert_string_equal(config->node.state_dir + 1 + length, ";e");
		config_free(config);
	}
}

/* Key, class and tags of a bucket. What is wrong with a long line is said as of any other. */
static void test_long_values(void **state)
{
	static const char store[] =
		"s3://backup-of-the-databases/offsite/production?region=eu-central-1&sse=aws:kms&"
		"sse-kms-key=arn%3Aaws%3Akms%3Aeu-central-1%3A123456789012%3Akey%2F"
		"01234567-89ab-cdef-0123-456789abcdef&storage-class=STANDARD_IA&"
		"tags=team:databases,environment:production,cost-centre:4711";
	char text[3000], name[400], *errors = NULL;
	struct config *config;

	snprintf(text, sizeof(text), NODE VOLUME "store = %s\n", store);
	config = load_good(text);
	assert_string_equal(config->volumes[0].store, store);
	config_free(config);
	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	snprintf(text, sizeof(text), NODE VOLUME "%s = %s\nsize = %s\nrole = %s\nsize=    ; %s\n",
		 name, store, name, store, name);
	assert_null(load(text, &errors));
	assert_non_null(strstr(errors, "unknown option 'nnnn"));
	assert_non_null(strstr(errors, "size = nnnn"));
	assert_non_null(strstr(errors, "not a size"));
	assert_non_null(strstr(errors, "role = s3://"));
	assert_non_null(strstr(errors, "option 'size' again"));
	free(errors);
}

/* Whatever stands in the file: an answer, never a crash; refused with a reason or accepted. */
static void test_random_bytes(void **state)
{
	const char *env = getenv("SEED");
	unsigned seed = env ? (unsigned)strtoul(env, NULL, 0) : (unsigned)time(NULL);
	static const char good[] = NODE "nbd-listen = unix:/a [::1]:0\nthreads = 2\n" VOLUME
					"size = 1M\nsnapshot-every = 1h\nstore = file:/s\n";

	printf("seed %u (SEED=%u replays)\n", seed, seed);
	srand(seed);
	for (unsigned round = 0; round < 2000; round++) {
		char text[sizeof(good)];
		struct file file;
		char *errors = NULL;

		memcpy(text, good, sizeof(good));
		for (int n = rand() % 6; n >= 0; n--)
			text[rand() % (int)(sizeof(good) - 1)] =
				rand() % 2 ? (char)rand() : "=[]:;# \n\t/0"[rand() % 11];
		write_file(&file, text, sizeof(good) - 1);
		struct config *config = config_load(file.path, &errors);

		unlink(file.path);
		assert_true((config == NULL) == (errors != NULL));
		if (errors)
			assert_int_equal(errors[strlen(errors) - 1], '\n');
		free(errors);
		config_free(config);
	}
}

static void test_set_while_running(void **state)
{
	static const char *const wrong[][3] = {
		{"catch-up-rat", "20M",
		 "catch-up-rat: no option of a volume (nearest: catch-up-rate)"},
		{"backing", "/dev/sdc", "backing: cannot be changed while running"},
		{"catch-up-rate", "fast",
		 "catch-up-rate = fast: not a rate (a number with K, M, G or nothing behind it)"},
		{"max-lag-action", "slo",
		 "max-lag-action = slo: not one of slow, catch-up (nearest: slow)"},
		{"max-lag", "", "max-lag = : no value"},
	};
	struct config_volume volume = {.protocol = 'C', .max_lag_bytes = 7};
	char why[512];

	assert_true(config_volume_set(&volume, "protocol", "A", why, sizeof(why)));
	assert_int_equal(volume.protocol, 'A');
	assert_true(config_volume_set(&volume, "max-lag", "64M", why, sizeof(why)));
	assert_int_equal(volume.max_lag_bytes, 64 << 20);
	assert_true(config_volume_set(&volume, "stream-rate", "1M, 2M@sat", why, sizeof(why)));
	assert_int_equal(volume.stream_rate.rate, 1 << 20);
	assert_int_equal(volume.stream_rate.count, 1);
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_false(
			config_volume_set(&volume, wrong[i][0], wrong[i][1], why, sizeof(why)));
		assert_string_equal(why, wrong[i][2]);
	}
}

static void test_print_options(void **state)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	config_print_options(out);
	fclose(out);
	assert_non_null(strstr(text, "[node]\n  name "));
	assert_non_null(strstr(text, "\n[volume NAME]\n  backing "));
	assert_non_null(strstr(text, "state-dir          directory for the metadata of the volumes "
				     "[/var/lib/offsite]"));
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_all_options),
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_names_of_peers),
		cmocka_unit_test(test_lock_for),
		cmocka_unit_test(test_example),
		cmocka_unit_test(test_bad),
		cmocka_unit_test(test_all_errors_are_collected),
		cmocka_unit_test(test_missing_file),
		cmocka_unit_test(test_long_line),
		cmocka_unit_test(test_longest_line),
		cmocka_unit_test(test_lines_of_all_lengths),
		cmocka_unit_test(test_long_values),
		cmocka_unit_test(test_random_bytes),
		cmocka_unit_test(test_set_while_running),
		cmocka_unit_test(test_print_options),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
