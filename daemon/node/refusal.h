/* SPDX-License-Identifier: Apache-2.0 */
/* refusal: why what is asked of a volume cannot be done now, as an error and a line for who asks. */
#ifndef OFFSITE_NODE_REFUSAL_H
#define OFFSITE_NODE_REFUSAL_H

#include "daemon/node/node.h"

/* Writes why, and returns the error. */
int node_fail(int error, char *why, size_t why_size, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
/* 0, or why nothing can be done with the volume now: it is not there, a job or a promotion has it. */
int node_check_usable(struct node_volume *volume, char *why, size_t why_size);

#endif
