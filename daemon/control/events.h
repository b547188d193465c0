/* SPDX-License-Identifier: Apache-2.0 */
/*
 * events: a ring of what happened lately (roles, disk states, replication, snapshots, jobs), each
 * with a number that only grows. The oldest are forgotten. Loop thread only.
 */
#ifndef OFFSITE_CONTROL_EVENTS_H
#define OFFSITE_CONTROL_EVENTS_H

#include <jansson.h>
#include <stdint.h>

#define EVENTS_KEPT 1024u

struct events;

/* changed() is called after each new event. */
struct events *events_new(void (*changed)(void *context), void *context);
void events_free(struct events *events);

/* type: a static word ("role", "disk", "replication", "snapshot", "job"). volume: "" for none. */
void events_add(struct events *events, uint64_t realtime_ns, const char *type, const char *volume,
		const char *format, ...) __attribute__((format(printf, 5, 6)));
/* The number of the newest event; 0: none yet. */
uint64_t events_newest(const struct events *events);
/* Array of the events kept with a number above since, oldest first. */
json_t *events_render(const struct events *events, uint64_t since);

#endif
