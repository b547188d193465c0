// SPDX-License-Identifier: Apache-2.0
/*
 * sim: whole nodes under the simulator, seed after seed, some of them in a process: an assertion ends one
 * seed only, the next one begins in another process. What crashed nodes leave behind: memory.h.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/sim/memory.h"
#include "tests/sim/mutation.h"
#include "tests/sim/scenario.h"

/* So many seeds to a process, at most. */
#define BATCH 256u

struct options {
	uint64_t first, seeds;
	unsigned seconds;      /* of the processor; 0: no limit */
	unsigned seed_seconds; /* a seed that takes longer hangs */
	bool one, trace, verbose, keep_going;
	const char *mutation;
	const char *program;
};

/* For the handler of SIGABRT and SIGALRM: the seed's world; only ever set in a seed's process. */
static struct world *present;

static void on_signal(int number)
{
	const char *what = number == SIGALRM ? "hangs: it took too long" : "ended by a signal";

	/* The process is lost; its log is worth the risk of printing from here. */
	signal(number, SIG_DFL);
	if (present != NULL) {
		sim_print_log(present->sim, stderr);
		fprintf(stderr, "FAILED: seed %llu at %.6f s: %s (%s)\n",
			(unsigned long long)present->seed, (double)sim_now_ns(present->sim) / 1e9,
			what, strsignal(number));
		fflush(stderr);
	}
	_exit(1);
}

static void run_seed(const struct options *options, uint64_t seed)
{
	signal(SIGABRT, on_signal);
	signal(SIGSEGV, on_signal);
	signal(SIGALRM, on_signal);
	if (!options->trace)
		alarm(options->seed_seconds);
	mutation_set(options->mutation);
	present = world_new(seed, options->trace);
	scenario_run(present);
	if (options->one || options->verbose)
		printf("seed %llu: %llu steps, %.3f s simulated, %llu requests, %llu crashes, %llu "
		       "images, %llu inconsistent, %u snapshots, %llu restores from the peer, %llu "
		       "changes of roles, %llu roll-backs, %llu split brains resolved, %llu disks "
		       "filled, %llu resizes, %llu kept, %llu in files, %llu by a policy, %llu "
		       "jumps of "
		       "clocks, %llu full disks\n",
		       (unsigned long long)seed, (unsigned long long)present->steps,
		       (double)sim_now_ns(present->sim) / 1e9,
		       (unsigned long long)present->requests, (unsigned long long)present->crashes,
		       (unsigned long long)present->image_checks,
		       (unsigned long long)present->refusals, present->snapshots,
		       (unsigned long long)present->restores, (unsigned long long)present->switches,
		       (unsigned long long)present->roll_backs,
		       (unsigned long long)present->resolves, (unsigned long long)present->fills,
		       (unsigned long long)present->resizes, (unsigned long long)present->kept,
		       (unsigned long long)present->kept_files,
		       (unsigned long long)present->policies,
		       (unsigned long long)present->clock_jumps,
		       (unsigned long long)present->full_disks);
	fflush(stdout);
	world_end(present);
	present = NULL;
}

static void print_replay(const struct options *options, uint64_t seed)
{
	fprintf(stderr, "replay: %s --seed %llu --trace%s%s\n", options->program,
		(unsigned long long)seed, options->mutation != NULL ? " --mutation " : "",
		options->mutation != NULL ? options->mutation : "");
}

/* keep_going: only what tells failures apart. */
static void report(const struct options *options, uint64_t seed, FILE *output, int status)
{
	char line[4096];

	if (!options->keep_going)
		print_replay(options, seed);
	rewind(output);
	while (fgets(line, sizeof(line), output) != NULL)
		if (!options->keep_going || strstr(line, "FAILED") || strstr(line, "ERROR:") ||
		    strstr(line, "Assertion") || strstr(line, "runtime error"))
			fputs(line, stderr);
	if (WIFSIGNALED(status))
		fprintf(stderr, "FAILED: seed %llu: %s\n", (unsigned long long)seed,
			strsignal(WTERMSIG(status)));
	if (!options->keep_going)
		print_replay(options, seed);
}

/* Some seeds, in a child whose output is held back until it is known that it failed. Returns how many passed;
 * *failed: the one after these did not. */
static uint64_t run_batch(const struct options *options, uint64_t first, uint64_t count,
			  volatile uint64_t *passed, bool *failed)
{
	FILE *output = tmpfile();
	int status;
	pid_t pid;

	if (output == NULL)
		abort();
	fflush(stdout);
	*passed = 0;
	pid = fork();
	if (pid < 0)
		abort();
	if (pid == 0) {
		dup2(fileno(output), STDERR_FILENO);
		memory_prepare();
		do {
			if (ftruncate(STDERR_FILENO, 0) != 0 ||
			    lseek(STDERR_FILENO, 0, SEEK_SET) != 0)
				abort();
			run_seed(options, first + *passed);
			++*passed;
		} while (*passed < count && memory_reset());
		_exit(0);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	*failed = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
	if (*failed)
		report(options, first + *passed, output, status);
	fclose(output);
	return *passed;
}

static double of_time(struct timeval t)
{
	return (double)t.tv_sec + (double)t.tv_usec / 1e6;
}

/* The processor's time of all seeds so far: the same whatever else runs on the machine, almost. */
static double now(void)
{
	struct rusage usage;

	getrusage(RUSAGE_CHILDREN, &usage);
	return of_time(usage.ru_utime) + of_time(usage.ru_stime);
}

static int run_all(const struct options *options)
{
	double start = now();
	uint64_t done = 0, failed = 0;
	uint64_t *passed = mmap(NULL, sizeof(*passed), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (passed == MAP_FAILED)
		abort();
	printf("sim: seeds from %llu\n", (unsigned long long)options->first);
	while (done < options->seeds && (failed == 0 || options->keep_going)) {
		uint64_t left = options->seeds - done;
		bool fails;

		if (options->seconds > 0 && now() - start > options->seconds)
			break;
		done += run_batch(options, options->first + done, left < BATCH ? left : BATCH,
				  passed, &fails);
		failed += fails;
		done += fails;
	}
	if (failed > 0) {
		printf("sim: %llu of %llu seeds from %llu failed\n", (unsigned long long)failed,
		       (unsigned long long)done, (unsigned long long)options->first);
		return 1;
	}
	printf("sim: %llu seeds from %llu passed in %.1f s of the processor\n",
	       (unsigned long long)done, (unsigned long long)options->first, now() - start);
	return 0;
}

static int usage(FILE *to, const char *program, int status)
{
	fprintf(to,
		"usage: %s [--seeds N] [--first SEED] [--seconds LIMIT] [--verbose] [--mutation "
		"NAME]\n"
		"       %s --seed SEED [--trace] [--mutation NAME]\n"
		"       %s --list-mutations (in the source tree)\n",
		program, program, program);
	return status;
}

int main(int argc, char **argv)
{
	static const struct option known[] = {{"seeds", required_argument, NULL, 'n'},
					      {"first", required_argument, NULL, 'f'},
					      {"seconds", required_argument, NULL, 's'},
					      {"seed", required_argument, NULL, 'o'},
					      {"keep-going", no_argument, NULL, 'k'},
					      {"trace", no_argument, NULL, 't'},
					      {"verbose", no_argument, NULL, 'v'},
					      {"mutation", required_argument, NULL, 'm'},
					      {"list-mutations", no_argument, NULL, 'l'},
					      {"help", no_argument, NULL, 'h'},
					      {NULL, 0, NULL, 0}};
	struct options options = {
		.first = 1, .seeds = 1000, .seed_seconds = 120, .program = argv[0]};
	int c;

	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (c) {
		case 'n':
			options.seeds = strtoull(optarg, NULL, 0);
			break;
		case 'f':
			options.first = strtoull(optarg, NULL, 0);
			break;
		case 's':
			options.seconds = (unsigned)strtoul(optarg, NULL, 0);
			break;
		case 'o':
			options.first = strtoull(optarg, NULL, 0);
			options.one = true;
			break;
		case 't':
			options.trace = true;
			break;
		case 'k':
			options.keep_going = true;
			break;
		case 'v':
			options.verbose = true;
			break;
		case 'm':
			options.mutation = optarg;
			break;
		case 'l':
			execl("tests/sim/mutations.sh", "mutations.sh", "--list", (char *)NULL);
			return 2;
		case 'h':
			return usage(stdout, argv[0], 0);
		default:
			return usage(stderr, argv[0], 2);
		}
	}
#ifndef OFFSITE_MUTATIONS
	if (options.mutation != NULL) {
		fprintf(stderr, "sim: built without -DOFFSITE_MUTATIONS\n");
		return 2;
	}
#endif
	if (!options.one)
		return run_all(&options);
	print_replay(&options, options.first);
	memory_prepare();
	run_seed(&options, options.first);
	return 0;
}

/* Crashed nodes' memory is dropped, not freed. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0:handle_abort=0:handle_segv=1";
}
