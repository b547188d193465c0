// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/events.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/control/render.h"

struct event {
	uint64_t number;
	uint64_t realtime_ns;
	const char *type;
	char volume[64];
	char text[320];
};

struct events {
	struct event ring[EVENTS_KEPT]; /* number n stands at n % EVENTS_KEPT */
	uint64_t newest;
	void (*changed)(void *context);
	void *context;
};

struct events *events_new(void (*changed)(void *context), void *context)
{
	struct events *events = calloc(1, sizeof(*events));

	if (!events)
		return NULL;
	events->changed = changed;
	events->context = context;
	return events;
}

void events_free(struct events *events)
{
	free(events);
}

void events_add(struct events *events, uint64_t realtime_ns, const char *type, const char *volume,
		const char *format, ...)
{
	struct event *event = &events->ring[++events->newest % EVENTS_KEPT];
	va_list arguments;

	event->number = events->newest;
	event->realtime_ns = realtime_ns;
	event->type = type;
	snprintf(event->volume, sizeof(event->volume), "%s", volume);
	va_start(arguments, format);
	vsnprintf(event->text, sizeof(event->text), format, arguments);
	va_end(arguments);
	if (events->changed)
		events->changed(events->context);
}

uint64_t events_newest(const struct events *events)
{
	return events->newest;
}

json_t *events_render(const struct events *events, uint64_t since)
{
	json_t *list = json_array();
	uint64_t oldest = events->newest >= EVENTS_KEPT ? events->newest - EVENTS_KEPT + 1 : 1;

	for (uint64_t n = since < oldest ? oldest : since + 1; n <= events->newest; n++) {
		const struct event *event = &events->ring[n % EVENTS_KEPT];

		assert(event->number == n);
		json_array_append_new(list,
				      json_pack("{s:I, s:o, s:s, s:o, s:o}", "id", (json_int_t)n,
						"time", render_time(event->realtime_ns), "type",
						event->type, "volume", render_text(event->volume),
						"text", render_text(event->text)));
	}
	return list;
}
