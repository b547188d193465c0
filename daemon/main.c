// SPDX-License-Identifier: Apache-2.0
/*
 * offsited: the daemon. Options, the order of start and stop, signals. Runs in the foreground, as
 * service managers want it. docs/man/offsited.8.md has the exit codes.
 */
#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/control/control.h"
#include "daemon/control/process.h"
#include "daemon/io/buf.h"
#include "daemon/io/env.h"
#include "daemon/io/stream.h"
#include "daemon/node/exports.h"
#include "daemon/node/node.h"
#include "nbd-server/attach.h"
#include "nbd-server/nbd_server.h"

#define LINGER_LOOK_NS 1000000ull

enum { EXIT_FINE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

struct daemon {
	struct config *config;
	struct env *env;
	struct env_file *lock; /* STATE-DIR/lock: one daemon to a state directory */
	struct node *node;
	struct buf_pool *pool; /* the NBD server's */
	struct tls_context *nbd_tls;
	struct nbd_server *nbd;
	struct attach *attach;
	struct control *control;
	bool abandoned; /* a restore was under way when the node stopped */
	struct process_hardening hardening;
	struct env_timer watchdog; /* of the service manager */
	struct env_timer linger;   /* between the last stop and the end of the loop */
	struct env_task stop;      /* posted by the signal thread */
	sigset_t signals;
	pthread_t signal_thread;
};

struct options {
	const char *config;
	int io;        /* enum env_backend, or -1: as the config says */
	int log_level; /* enum env_log_level, or -1 */
};

static const char help[] =
	"Usage: offsited --config FILE [options]\n"
	"Serves, replicates and snapshots the volumes of one node. Runs in the foreground.\n"
	"\n"
	"  -c, --config FILE       the configuration (required; `offsite config check` tests it)\n"
	"      --io BACKEND        auto, uring or aio: overrides io= of the configuration\n"
	"      --log-level LEVEL   error, warning, info or debug: overrides log-level=\n"
	"      --foreground        stay in the foreground (the default, and all there is)\n"
	"  -h, --help              this text\n"
	"  -V, --version           print the version\n"
	"\n"
	"Signals: TERM and INT stop cleanly; a second one stops at once.\n"
	"Exit codes: 0 stopped by a signal; 1 could not start, or stopped at once;\n"
	"2 wrong options or configuration.\n"
	"\n"
	"Options of the configuration:\n";

static int word_index(const char *word, const char *const *words)
{
	for (int i = 0; words[i]; i++)
		if (!strcmp(word, words[i]))
			return i;
	return -1;
}

/* Fills options, or returns false with the exit code. */
static bool parse_options(int argc, char **argv, struct options *options, int *exit_code)
{
	static const struct option longs[] = {
		{"config", required_argument, NULL, 'c'},
		{"io", required_argument, NULL, 'i'},
		{"log-level", required_argument, NULL, 'l'},
		{"foreground", no_argument, NULL, 'f'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{NULL, 0, NULL, 0},
	};
	static const char *const backends[] = {"auto", "uring", "aio", NULL};
	static const char *const levels[] = {"error", "warning", "info", "debug", NULL};
	int option;

	*options = (struct options){.io = -1, .log_level = -1};
	*exit_code = EXIT_USAGE;
	while ((option = getopt_long(argc, argv, "c:hV", longs, NULL)) != -1) {
		switch (option) {
		case 'c':
			options->config = optarg;
			break;
		case 'i':
			options->io = word_index(optarg, backends);
			if (options->io >= 0)
				break;
			fprintf(stderr, "offsited: --io: '%s' is not auto, uring or aio\n", optarg);
			return false;
		case 'l':
			options->log_level = word_index(optarg, levels);
			if (options->log_level >= 0)
				break;
			fprintf(stderr,
				"offsited: --log-level: '%s' is not error, warning, info or "
				"debug\n",
				optarg);
			return false;
		case 'f':
			break;
		case 'h':
			fputs(help, stdout);
			config_print_options(stdout);
			*exit_code = EXIT_FINE;
			return false;
		case 'V':
			puts("offsited " OFFSITE_VERSION);
			*exit_code = EXIT_FINE;
			return false;
		default:
			fputs("Try 'offsited --help'.\n", stderr);
			return false;
		}
	}
	if (optind < argc)
		fprintf(stderr, "offsited: '%s': unexpected\n", argv[optind]);
	else if (!options->config)
		fputs("offsited: --config FILE is required; try 'offsited --help'\n", stderr);
	return optind == argc && options->config;
}

/* ---- signals --------------------------------------------------------------------------------- */

static void *signal_main(void *context)
{
	struct daemon *daemon = context;
	int number;

	if (!sigwait(&daemon->signals, &number))
		env_post(daemon->env, &daemon->stop);
	if (!sigwait(&daemon->signals, &number))
		_exit(EXIT_FAILED);
	return NULL;
}

/* Before any other thread exists, so that all of them inherit the mask. */
static void block_signals(struct daemon *daemon)
{
	sigemptyset(&daemon->signals);
	sigaddset(&daemon->signals, SIGTERM);
	sigaddset(&daemon->signals, SIGINT);
	pthread_sigmask(SIG_BLOCK, &daemon->signals, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
}

/* ---- start ----------------------------------------------------------------------------------- */

static int start_env(struct daemon *daemon, const struct options *options)
{
	static const enum env_backend backends[] = {
		[CONFIG_IO_AUTO] = ENV_BACKEND_AUTO,
		[CONFIG_IO_URING] = ENV_BACKEND_URING,
		[CONFIG_IO_AIO] = ENV_BACKEND_AIO,
	};
	const struct config_node *node = &daemon->config->node;
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned threads = node->threads ? node->threads
			   : cores > 4   ? 4
			   : cores < 1   ? 1
					 : (unsigned)cores;
	enum env_backend backend =
		options->io >= 0 ? (enum env_backend)options->io : backends[node->io];
	const char *why = "";
	int error = env_real_new(backend, threads, &daemon->env, &why);

	if (error) {
		fprintf(stderr, "offsited: io: %s: %s\n", why, strerror(-error));
		return error;
	}
	env_log_level(daemon->env, options->log_level >= 0 ? (enum env_log_level)options->log_level
							   : (enum env_log_level)node->log_level);
	env_log(daemon->env, ENV_LOG_INFO, "offsited %s: node %s, io %s, %u helper threads",
		OFFSITE_VERSION, node->name, env_backend_name(daemon->env), threads);
	return 0;
}

static int take_lock(struct daemon *daemon)
{
	const char *state_dir = daemon->config->node.state_dir;
	char *path = NULL;
	int error = env_mkdir(daemon->env, state_dir);

	if (error) {
		env_log(daemon->env, ENV_LOG_ERROR, "state-dir: %s: %s", state_dir,
			strerror(-error));
		return error;
	}
	if (asprintf(&path, "%s/lock", state_dir) < 0)
		return -ENOMEM;
	error = env_file_open(daemon->env, path,
			      ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE | ENV_FILE_LOCK,
			      &daemon->lock);
	if (error == -EWOULDBLOCK)
		env_log(daemon->env, ENV_LOG_ERROR,
			"state-dir: %s: another offsited is running with it", state_dir);
	else if (error)
		env_log(daemon->env, ENV_LOG_ERROR, "state-dir: %s: %s", path, strerror(-error));
	free(path);
	return error;
}

/* ---- exports: what the NBD server asks for with the node as its context ------------------------- */

static struct block *list_block(void *context, unsigned index)
{
	return exports_list(node_exports(context), index);
}

static void look_up(void *context, const char *name, struct block_lookup *lookup)
{
	exports_look_up(node_exports(context), name, lookup);
}

static void release(void *context, struct block *block)
{
	exports_release(node_exports(context), block);
}

static void map_open(void *context, struct block *block, const char *name,
		     struct block_map_open *open)
{
	exports_map_open(node_exports(context), block, name, open);
}

static void map_list(void *context, struct block *block, struct block_map_list *list)
{
	exports_map_list(node_exports(context), block, list);
}

static int make_nbd_tls(struct daemon *daemon, char *why, size_t why_size)
{
	const struct config_node *node = &daemon->config->node;
	struct tls_config tls = {
		.role = TLS_SERVER,
		.cert_file = node->tls_cert,
		.key_file = node->tls_key,
		.ca_file = node->nbd_verify_client ? node->nbd_ca : NULL,
		.psk_file = node->nbd_psk_file,
	};

	if (node->nbd_tls == CONFIG_TLS_OFF)
		return 0;
	return tls_context_new(&tls, &daemon->nbd_tls, why, why_size);
}

static int start_nbd(struct daemon *daemon, char *why, size_t why_size)
{
	/* 8 KiB, 64 KiB, 1 MiB: 96 MiB of address space; memory only as far as it is used. */
	static const unsigned buffers[3] = {2048, 512, 48};
	static const enum nbd_tls_mode modes[] = {
		[CONFIG_TLS_OFF] = NBD_TLS_OFF,
		[CONFIG_TLS_ON] = NBD_TLS_ON,
		[CONFIG_TLS_REQUIRE] = NBD_TLS_REQUIRE,
	};
	const struct config_node *node = &daemon->config->node;
	struct nbd_server_config config = {
		.tls_mode = modes[node->nbd_tls],
		.find = node_find_block,
		.list = list_block,
		.look_up = look_up,
		.release = release,
		.map_open = map_open,
		.map_list = map_list,
		.context = daemon->node,
	};
	int error = make_nbd_tls(daemon, why, why_size);

	if (error)
		return error;
	snprintf(why, why_size, "nbd: out of memory");
	daemon->pool = buf_pool_new(buffers);
	if (!daemon->pool)
		return -ENOMEM;
	config.pool = daemon->pool;
	config.tls = daemon->nbd_tls;
	daemon->nbd = nbd_server_new(daemon->env, &config);
	if (!daemon->nbd)
		return -ENOMEM;
	for (char **addr = node->nbd_listen; addr && *addr; addr++) {
		error = nbd_server_listen(daemon->nbd, *addr, why, why_size);
		if (error)
			return error;
	}
	for (unsigned i = 0; nbd_server_addr(daemon->nbd, i); i++)
		env_log(daemon->env, ENV_LOG_INFO, "nbd: listening on %s",
			nbd_server_addr(daemon->nbd, i));
	return 0;
}

static int start_control(struct daemon *daemon, char *why, size_t why_size)
{
	struct control_config config = {
		.node = daemon->node,
		.nbd = daemon->nbd,
		.attach = daemon->attach,
		.socket_path = daemon->config->node.control,
	};

	return control_start(daemon->env, &config, &daemon->control, why, why_size);
}

/* From the loop: one that hangs is ended by the service manager, and started anew. */
static void watchdog_fire(struct env_timer *timer)
{
	struct daemon *daemon =
		(struct daemon *)((char *)timer - offsetof(struct daemon, watchdog));

	process_notify(daemon->env, "WATCHDOG=1");
	daemon->watchdog.fire = watchdog_fire;
	env_timer_start(daemon->env, timer, process_watchdog_ns() / 3);
}

/* Whoever waits for this service wants to mount what it attaches. */
static void attach_started(void *context)
{
	struct daemon *daemon = context;

	process_notify(daemon->env, "READY=1");
	if (process_watchdog_ns())
		watchdog_fire(&daemon->watchdog);
}

/* Starts in order; what was started stands in the daemon, for daemon_stop(). */
static int daemon_start(struct daemon *daemon)
{
	char why[512] = "";
	int error;

	process_tell(daemon->env, &daemon->hardening);
	error = node_start(daemon->env, daemon->config, &daemon->node, why, sizeof(why));
	if (!error)
		error = start_nbd(daemon, why, sizeof(why));
	if (!error) {
		daemon->attach = control_attach_new(daemon->env, daemon->node, daemon->nbd);
		error = daemon->attach ? 0 : -ENOMEM;
	}
	if (!error)
		error = start_control(daemon, why, sizeof(why));
	if (error) {
		env_log(daemon->env, ENV_LOG_ERROR, "%s", why[0] ? why : strerror(-error));
		return error;
	}
	env_log(daemon->env, ENV_LOG_INFO, "control: listening on %s",
		daemon->config->node.control);
	attach_start(daemon->attach, attach_started, daemon);
	return 0;
}

/* ---- stop ------------------------------------------------------------------------------------ */

static void linger_fire(struct env_timer *timer);

/* Streams under TLS send their closing message after they were closed: the loop runs on until the last of them is
 * gone. */
static void all_stopped(struct daemon *daemon)
{
	if (!stream_lingering(daemon->env)) {
		env_stop(daemon->env);
		return;
	}
	daemon->linger.fire = linger_fire;
	env_timer_start(daemon->env, &daemon->linger, LINGER_LOOK_NS);
}

static void linger_fire(struct env_timer *timer)
{
	all_stopped((struct daemon *)((char *)timer - offsetof(struct daemon, linger)));
}

static void node_stopped(void *context)
{
	struct daemon *daemon = context;

	daemon->node = NULL;
	all_stopped(daemon);
}

static void control_stopped(void *context)
{
	struct daemon *daemon = context;

	if (daemon->node)
		daemon->abandoned = node_stop(daemon->node, node_stopped, daemon);
	else
		all_stopped(daemon);
}

static void nbd_stopped(void *context)
{
	struct daemon *daemon = context;

	if (daemon->node)
		node_stop_stores(daemon->node); /* control may be listing snapshots */
	if (daemon->control)
		control_stop(daemon->control, control_stopped, daemon);
	else
		control_stopped(daemon);
}

/* Requests that wait for the peer may wait for ever: their clients are told that the server goes. */
static void fail_held(struct daemon *daemon)
{
	for (unsigned i = 0; i < node_volume_count(daemon->node); i++) {
		struct volume *volume = node_volume(daemon->node, i)->volume;

		if (volume && volume_suspended(volume))
			volume_fail_held(volume, -ESHUTDOWN);
	}
}

static void daemon_stop(struct daemon *daemon)
{
	process_notify(daemon->env, "STOPPING=1");
	env_log(daemon->env, ENV_LOG_INFO, "offsited: stopping");
	if (!daemon->nbd) {
		nbd_stopped(daemon);
		return;
	}
	if (daemon->attach)
		attach_stop(daemon->attach);
	nbd_server_stop(daemon->nbd, nbd_stopped, daemon);
	if (daemon->node) {
		exports_stop(node_exports(daemon->node));
		fail_held(daemon);
	}
}

static void stop_call(struct env_task *task)
{
	daemon_stop((struct daemon *)((char *)task - offsetof(struct daemon, stop)));
}

/* Frees all; everything has stopped. Not if a job goes on with what would be freed: of an abandoned
 * restore not even its end can be told from here. What has to be durable is. */
static void daemon_free(struct daemon *daemon)
{
	if (daemon->abandoned || !attach_free(daemon->attach) || !control_free(daemon->control)) {
		env_log(daemon->env, ENV_LOG_INFO, "offsited: left a job unfinished");
		_exit(EXIT_FINE);
	}
	if (daemon->nbd)
		nbd_server_free(daemon->nbd);
	if (daemon->pool)
		buf_pool_free(daemon->pool);
	if (daemon->nbd_tls)
		tls_context_free(daemon->nbd_tls);
	if (daemon->lock)
		env_file_close(daemon->env, daemon->lock);
	env_free(daemon->env);
	config_free(daemon->config);
}

static int daemon_run(struct daemon *daemon)
{
	int exit_code = EXIT_FINE;

	if (take_lock(daemon)) {
		daemon_free(daemon);
		return EXIT_FAILED;
	}
	/* The signal thread first: a start that hangs (recovery of a large volume) can be stopped by
	 * a second signal. */
	if (pthread_create(&daemon->signal_thread, NULL, signal_main, daemon)) {
		env_log(daemon->env, ENV_LOG_ERROR, "offsited: cannot start a thread");
		daemon_free(daemon);
		return EXIT_FAILED;
	}
	if (daemon_start(daemon)) {
		exit_code = EXIT_FAILED;
		/* A signal's stop would come on top of this one. */
		pthread_cancel(daemon->signal_thread);
		pthread_join(daemon->signal_thread, NULL);
		env_post(daemon->env, &daemon->stop);
		env_run(daemon->env);
	} else {
		env_run(daemon->env);
		pthread_cancel(daemon->signal_thread);
		pthread_join(daemon->signal_thread, NULL);
	}
	daemon_free(daemon);
	return exit_code;
}

int main(int argc, char **argv)
{
	struct daemon daemon = {.stop = {.call = stop_call}};
	struct options options;
	char *errors = NULL;
	int exit_code;

	if (!parse_options(argc, argv, &options, &exit_code))
		return exit_code;
	daemon.config = config_load(options.config, &errors);
	if (!daemon.config) {
		fputs(errors ? errors : "offsited: out of memory\n", stderr);
		if (errors && *errors && errors[strlen(errors) - 1] != '\n')
			fputc('\n', stderr);
		free(errors);
		return EXIT_USAGE;
	}
	free(errors);
	block_signals(&daemon);
	process_harden(&daemon.hardening);
	if (start_env(&daemon, &options)) {
		config_free(daemon.config);
		return EXIT_FAILED;
	}
	return daemon_run(&daemon);
}
