// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/refusal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

int node_fail(int error, char *why, size_t why_size, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why, why_size, format, args);
	va_end(args);
	return error;
}

int node_check_usable(struct node_volume *v, char *why, size_t why_size)
{
	if (!v->volume)
		return node_fail(-ENODEV, why, why_size, "volume %s: not available: %s",
				 v->config->name, v->error);
	if (v->busy || v->promotion)
		return node_fail(-EBUSY, why, why_size, "volume %s: a %s is under way",
				 v->config->name, v->busy ? v->busy : "promotion");
	return 0;
}
