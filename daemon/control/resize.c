// SPDX-License-Identifier: Apache-2.0
/* resize: the endpoint that makes a volume bigger. It answers when both nodes' are, and the device attached here. */
#include "daemon/control/internal.h"

#include <stdlib.h>
#include <string.h>

struct resizing {
	struct control *control;
	struct control_request *request;
	struct node_volume *volume;
	uint64_t before_bytes;
};

static void finish(struct resizing *z, int error, const char *why)
{
	api_answer_verb(z->control, z->request, z->volume, error, why);
	control_operation_done(z->control);
	free(z);
}

static void device_resized(void *context, int error, const char *why, const char *device)
{
	finish(context, 0, "");
}

static void resized(void *context, int error, const char *why)
{
	struct resizing *z = context;

	if (!error)
		events_add(z->control->events, env_realtime_ns(z->control->env), "resize",
			   z->volume->config->name, "has %llu bytes now, and had %llu",
			   (unsigned long long)volume_size_bytes(z->volume->volume),
			   (unsigned long long)z->before_bytes);
	if (!error && z->control->attach)
		attach_resized(z->control->attach, z->volume->config->name, device_resized, z);
	else
		finish(z, error, why);
}

enum control_outcome resize_post(struct control *control, struct control_request *request)
{
	struct node_volume *volume = api_find_open(control, request);
	json_int_t size = 0;
	int force = 0;
	struct resizing *z;

	if (!volume ||
	    !BODY_UNPACK(control, request, "{s:I, s?b}", "size_bytes", &size, "force", &force))
		return CONTROL_ANSWERED;
	z = calloc(1, sizeof(*z));
	if (!z || size < 0) {
		control_refuse(control, request, z ? 400 : 500, "%s",
			       z ? "size_bytes: less than zero" : "out of memory");
		free(z);
		return CONTROL_ANSWERED;
	}
	*z = (struct resizing){control, request, volume, volume_size_bytes(volume->volume)};
	control->operations++;
	node_resize(volume, (uint64_t)size, force, resized, z);
	return CONTROL_PENDING;
}
