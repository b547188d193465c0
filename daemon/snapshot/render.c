// SPDX-License-Identifier: Apache-2.0
#include "daemon/snapshot/render.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

json_t *render_text(const char *text)
{
	json_t *json = json_string(text);
	size_t length = strlen(text);
	char *copy;

	if (json)
		return json;
	copy = strdup(text);
	if (!copy)
		return json_null();
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)copy[i] >= 0x80)
			copy[i] = '?';
	json = json_string(copy);
	free(copy);
	return json ? json : json_null();
}

json_t *render_time(uint64_t realtime_ns)
{
	time_t seconds = (time_t)(realtime_ns / 1000000000u);
	struct tm tm;
	char text[40];

	if (!realtime_ns || !gmtime_r(&seconds, &tm))
		return json_null();
	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm);
	return json_string(text);
}

json_t *render_id(const struct id128 *id)
{
	char text[ID128_TEXT_BYTES];

	if (id128_is_zero(id))
		return json_null();
	id128_format(id, text);
	return json_string(text);
}

json_t *render_number(uint64_t value)
{
	return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

json_t *render_lock(enum store_lock lock)
{
	return lock == STORE_LOCK_NONE         ? json_null()
	       : lock == STORE_LOCK_GOVERNANCE ? json_string("governance")
					       : json_string("compliance");
}

static json_t *render_given_up(const struct snapshot_info *info)
{
	json_t *json = json_array();

	for (unsigned i = 0; i < SNAPSHOT_GIVEN_UP_MAX; i++)
		if (!id128_is_zero(&info->given_up_before[i]))
			json_array_append_new(json, render_id(&info->given_up_before[i]));
	return json;
}

json_t *render_snapshot(const struct snapshot_info *info)
{
	json_t *json = json_object();

	json_object_set_new(json, "id", render_id(&info->id));
	json_object_set_new(json, "sequence", render_number(info->sequence));
	json_object_set_new(json, "created", render_time(info->created_ns));
	json_object_set_new(json, "created_ns", render_number(info->created_ns));
	json_object_set_new(json, "volume", render_text(info->volume_name));
	json_object_set_new(json, "volume_uuid", render_id(&info->volume));
	json_object_set_new(json, "node", render_text(info->node_name));
	json_object_set_new(json, "label", render_text(info->label));
	json_object_set_new(json, "history",
			    id128_is_zero(&info->history) ? json_null()
							  : render_id(&info->history));
	json_object_set_new(json, "given_up", json_boolean(info->given_up));
	json_object_set_new(json, "given_up_before", render_given_up(info));
	json_object_set_new(json, "lsn", render_number(info->lsn));
	json_object_set_new(json, "size_bytes", render_number(info->size_bytes));
	json_object_set_new(json, "data_bytes", render_number(info->data_bytes));
	json_object_set_new(json, "changed_bytes", render_number(info->changed_bytes));
	json_object_set_new(json, "stored_bytes", render_number(info->stored_bytes));
	json_object_set_new(json, "objects", render_number(info->objects));
	json_object_set_new(json, "requests",
			    info->requests ? render_number(info->requests) : json_null());
	json_object_set_new(json, "lock", render_lock(info->retention.lock));
	json_object_set_new(json, "locked_until", render_time(info->retention.until_ns));
	json_object_set_new(json, "locked_until_ns", render_number(info->retention.until_ns));
	return json;
}
