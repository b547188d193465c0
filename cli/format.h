/* SPDX-License-Identifier: Apache-2.0 */
/*
 * format: numbers, times, colours and progress for people.
 */
#ifndef OFFSITE_CLI_FORMAT_H
#define OFFSITE_CLI_FORMAT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct format_text {
	char text[40];
};

/* "0 B", "4.0 KiB", "1.5 GiB". By value, so that several fit into one printf. */
struct format_text format_bytes(double bytes);
/* "0.3 s", "12 s", "3 min 5 s", "2 h 10 min", "3 d 4 h". */
struct format_text format_duration(double seconds);
/* Local time: "2026-11-21 09:12:20". */
struct format_text format_time(uint64_t realtime_ns);

enum format_colour { FORMAT_PLAIN, FORMAT_GOOD, FORMAT_WARN, FORMAT_BAD, FORMAT_BOLD };
/* Escape sequences; "" unless on a terminal (and $NO_COLOR is not set). */
const char *format_colour(FILE *out, enum format_colour colour);
const char *format_end(FILE *out);

/* Progress of long work on stderr: a bar on a terminal, else a line at each tenth. */
struct format_progress {
	const char *what;
	bool terminal, shown;
	unsigned last_tenth;
	unsigned long long archive; /* objects waited for */
};
void format_progress_begin(struct format_progress *progress, const char *what);
void format_progress_show(struct format_progress *progress, double done, double total,
			  double elapsed_s);
/* What is waited for before there is any progress: said once, and when it is there. */
void format_progress_archive(struct format_progress *progress, unsigned long long objects,
			     double seconds);
/* Ends the bar's line, if one was drawn. */
void format_progress_end(struct format_progress *progress);
/* "[####......]" of width cells. */
void format_bar(char *text, unsigned width, double done, double total);

#endif
