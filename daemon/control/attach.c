// SPDX-License-Identifier: Apache-2.0
/*
 * attach: the endpoints around block devices.
 */
#include "daemon/control/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/config_values.h"
#include "daemon/control/render.h"

#define NAME_MAX_BYTES 200u

static json_t *render_attached(const struct attach_info *info)
{
	return json_pack("{s:o, s:o, s:s, s:I, s:b, s:i, s:i, s:i, s:b, s:o}", "export",
			 render_text(info->name), "device",
			 info->device[0] ? json_string(info->device) : json_null(), "state",
			 attach_state_name(info->state), "size_bytes", (json_int_t)info->size_bytes,
			 "read_only", info->read_only, "connections", (int)info->connections,
			 "alive", (int)info->alive, "reconnects", (int)info->reconnects,
			 "configured", info->wanted, "why",
			 info->why[0] ? render_text(info->why) : json_null());
}

enum control_outcome attach_get_list(struct control *control, struct control_request *request)
{
	json_t *list = json_array();
	struct attach_info info;

	for (unsigned i = 0; control->attach && attach_get(control->attach, i, &info); i++)
		json_array_append_new(list, render_attached(&info));
	control_answer(control, request, 200, json_pack("{s:o}", "attached", list));
	return CONTROL_ANSWERED;
}

struct attaching {
	struct control *control;
	struct control_request *request;
	char name[NAME_MAX_BYTES];
	bool detach;
};

/* The export's whole name: VOLUME@latest stands for one with an id. */
static void take_name(struct attaching *a, const char *device)
{
	struct attach_info info;

	for (unsigned i = 0; attach_get(a->control->attach, i, &info); i++)
		if (!strcmp(info.device, device))
			snprintf(a->name, sizeof(a->name), "%s", info.name);
}

static void answered(void *context, int error, const char *why, const char *device)
{
	struct attaching *a = context;
	struct control *control = a->control;

	if (!error && !a->detach)
		take_name(a, device);
	if (error)
		control_refuse(control, a->request, http_status_of(error), "%s %s: %s",
			       a->detach ? "detach" : "attach", a->name,
			       why[0] ? why : strerror(-error));
	else
		control_answer(
			control, a->request, 200,
			json_pack("{s:o, s:s}", "export", render_text(a->name), "device", device));
	if (!error)
		events_add(control->events, env_realtime_ns(control->env), "attached", a->name,
			   "%s %s", a->detach ? "detached from" : "attached as", device);
	control_operation_done(control);
	free(a);
}

static struct attaching *begin(struct control *control, struct control_request *request,
			       const char *export, bool detach)
{
	struct attaching *a = calloc(1, sizeof(*a));

	if (!a || !control->attach || strlen(export) >= sizeof(a->name)) {
		control_refuse(control, request, a ? 400 : 500, "%s",
			       !a                ? "out of memory"
			       : control->attach ? "export: too long"
						 : "nothing can be attached");
		free(a);
		return NULL;
	}
	*a = (struct attaching){.control = control, .request = request, .detach = detach};
	strcpy(a->name, export);
	control->operations++;
	return a;
}

enum control_outcome attach_post(struct control *control, struct control_request *request)
{
	const char *export = NULL, *device = NULL;
	struct attaching *a;
	int index = -1;

	if (!BODY_UNPACK(control, request, "{s:s, s?s}", "export", &export, "device", &device))
		return CONTROL_ANSWERED;
	if (device && (config_parse_attach(device, &index) || index < 0)) {
		control_refuse(control, request, 400, "device: '%s' is not /dev/nbdN", device);
		return CONTROL_ANSWERED;
	}
	a = begin(control, request, export, false);
	if (a)
		attach_export(control->attach, export, index, answered, a);
	return a ? CONTROL_PENDING : CONTROL_ANSWERED;
}

enum control_outcome attach_post_detach(struct control *control, struct control_request *request)
{
	const char *export = NULL;
	struct attaching *a;
	int force = 0;

	if (!BODY_UNPACK(control, request, "{s:s, s?b}", "export", &export, "force", &force))
		return CONTROL_ANSWERED;
	a = begin(control, request, export, true);
	if (a)
		attach_detach(control->attach, export, force, answered, a);
	return a ? CONTROL_PENDING : CONTROL_ANSWERED;
}
