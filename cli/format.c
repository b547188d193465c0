// SPDX-License-Identifier: Apache-2.0
#include "cli/format.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct format_text format_bytes(double bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	struct format_text out;
	unsigned unit = 0;

	while (bytes >= 1024 && unit < 6) {
		bytes /= 1024;
		unit++;
	}
	snprintf(out.text, sizeof(out.text), unit && bytes < 100 ? "%.1f %s" : "%.0f %s", bytes,
		 units[unit]);
	return out;
}

struct format_text format_duration(double seconds)
{
	struct format_text out;
	unsigned long long s = seconds > 0 && seconds < 1e15 ? (unsigned long long)seconds : 0;

	if (seconds < 9.95)
		snprintf(out.text, sizeof(out.text), "%.1f s", seconds < 0 ? 0 : seconds);
	else if (s < 60)
		snprintf(out.text, sizeof(out.text), "%llu s", s);
	else if (s < 3600)
		snprintf(out.text, sizeof(out.text), "%llu min %llu s", s / 60, s % 60);
	else if (s < 86400)
		snprintf(out.text, sizeof(out.text), "%llu h %llu min", s / 3600, s / 60 % 60);
	else
		snprintf(out.text, sizeof(out.text), "%llu d %llu h", s / 86400, s / 3600 % 24);
	return out;
}

struct format_text format_time(uint64_t realtime_ns)
{
	struct format_text out = {"-"};
	time_t seconds = (time_t)(realtime_ns / 1000000000u);
	struct tm tm;

	if (realtime_ns && localtime_r(&seconds, &tm))
		strftime(out.text, sizeof(out.text), "%Y-%m-%d %H:%M:%S", &tm);
	return out;
}

static bool coloured(FILE *out)
{
	const char *no_color = getenv("NO_COLOR");

	return isatty(fileno(out)) && !(no_color && *no_color);
}

const char *format_colour(FILE *out, enum format_colour colour)
{
	static const char *const codes[] = {"", "\033[32m", "\033[33m", "\033[31m", "\033[1m"};

	return coloured(out) ? codes[colour] : "";
}

const char *format_end(FILE *out)
{
	return coloured(out) ? "\033[0m" : "";
}

void format_bar(char *text, unsigned width, double done, double total)
{
	unsigned filled = total > 0 ? (unsigned)(done / total * width) : 0;

	if (filled > width)
		filled = width;
	*text++ = '[';
	memset(text, '#', filled);
	memset(text + filled, '.', width - filled);
	text[width] = ']';
	text[width + 1] = 0;
}

void format_progress_begin(struct format_progress *progress, const char *what)
{
	*progress = (struct format_progress){.what = what, .terminal = isatty(STDERR_FILENO)};
}

void format_progress_show(struct format_progress *progress, double done, double total,
			  double elapsed_s)
{
	double rate = elapsed_s > 0.05 ? done / elapsed_s : 0;
	unsigned tenth = total > 0 ? (unsigned)(done / total * 10) : 0;
	char left[64] = "";
	char bar[40];

	if (total <= 0 || (!progress->terminal && tenth <= progress->last_tenth))
		return;
	progress->last_tenth = tenth;
	if (rate > 0 && done < total)
		snprintf(left, sizeof(left), ", %s left",
			 format_duration((total - done) / rate).text);
	format_bar(bar, 24, done, total);
	fprintf(stderr, "%s%s %s%s%3.0f %%  %s of %s, %s/s%s%s", progress->terminal ? "\r" : "",
		progress->what, progress->terminal ? bar : "", progress->terminal ? " " : "",
		done >= total ? 100.0 : done / total * 100, format_bytes(done).text,
		format_bytes(total).text, format_bytes(rate).text, left,
		progress->terminal ? "\033[K" : "\n");
	fflush(stderr);
	progress->shown = progress->terminal;
}

void format_progress_archive(struct format_progress *progress, unsigned long long objects,
			     double seconds)
{
	if (objects && !progress->archive)
		fprintf(stderr,
			"%llu objects are archived and have been asked for: as a rule that takes "
			"up to "
			"%s; waiting\n",
			objects, format_duration(seconds).text);
	if (!objects && progress->archive)
		fputs("they are there\n", stderr);
	progress->archive = objects;
}

void format_progress_end(struct format_progress *progress)
{
	if (progress->shown)
		fputc('\n', stderr);
	progress->shown = false;
}
