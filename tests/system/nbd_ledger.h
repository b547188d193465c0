/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What clients that know what they wrote have in common: the content of a block, the log, and the frames of NBD
 * (theirs: nothing of the server's code is used). See nbd_ledger.c.
 */
#ifndef OFFSITE_TESTS_NBD_LEDGER_H
#define OFFSITE_TESTS_NBD_LEDGER_H

#include <errno.h>
#include <stdint.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define BLOCK_BYTES 4096u
#define MAGIC       0x4c45444745522121ull

enum { EXIT_FINE = 0, EXIT_BAD = 1, EXIT_USAGE = 2, EXIT_GONE = 3 };

enum event_type { EVENT_ISSUE = 1, EVENT_ACK = 2, EVENT_MARK = 3 };

/* One line of the log. sequence: of the write; of a mark: its number. */
struct event {
	uint32_t type;
	uint32_t block;
	uint64_t sequence;
};

struct content {
	uint64_t magic, block, sequence;
	uint64_t fill[BLOCK_BYTES / 8 - 3];
};
_Static_assert(sizeof(struct content) == BLOCK_BYTES, "one block");

static inline void die(int code, const char *what)
{
	fprintf(stderr, "%s: %s\n", program_invocation_short_name, what);
	exit(code);
}

static inline uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static inline void fill_content(struct content *content, uint64_t block, uint64_t sequence)
{
	uint64_t x = mix(block << 40 ^ sequence);

	*content = (struct content){.magic = MAGIC, .block = block, .sequence = sequence};
	for (size_t i = 0; i < sizeof(content->fill) / 8; i++)
		content->fill[i] = x += 0x9e3779b97f4a7c15ull;
}

/* ---- the log ----------------------------------------------------------------------------------- */

struct log {
	struct event *events;
	size_t count, room;
};

static inline void log_add(struct log *log, enum event_type type, uint64_t block, uint64_t sequence)
{
	if (log->count == log->room) {
		log->room = log->room ? log->room * 2 : 4096;
		log->events = realloc(log->events, log->room * sizeof(*log->events));
		if (!log->events)
			die(EXIT_BAD, "out of memory");
	}
	log->events[log->count++] = (struct event){type, (uint32_t)block, sequence};
}

static inline void log_load(struct log *log, const char *path, bool must_exist)
{
	FILE *file = fopen(path, "re");
	struct event event;

	memset(log, 0, sizeof(*log));
	if (!file) {
		if (must_exist)
			die(EXIT_USAGE, "the log cannot be read");
		return;
	}
	while (fread(&event, sizeof(event), 1, file) == 1)
		log_add(log, event.type, event.block, event.sequence);
	fclose(file);
}

static inline void log_store(const struct log *log, const char *path)
{
	FILE *file = fopen(path, "we");

	if (!file || fwrite(log->events, sizeof(*log->events), log->count, file) != log->count ||
	    fclose(file) != 0)
		die(EXIT_BAD, "the log cannot be written");
}

/* ---- NBD ------------------------------------------------------------------------------------------ */

struct request {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie, offset;
	uint32_t length;
} __attribute__((packed));

struct reply {
	uint32_t magic, error;
	uint64_t cookie;
} __attribute__((packed));

static inline bool write_all(int fd, const void *from, size_t length)
{
	for (size_t done = 0; done < length;) {
		ssize_t n = send(fd, (const char *)from + done, length - done, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

#endif
