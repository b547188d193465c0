// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/mutation.h"

#include <stddef.h>
#include <string.h>

/* Set once, by the command line. */
static const char *active;

void mutation_set(const char *name)
{
	active = name;
}

bool mutation_is_active(const char *name)
{
	return active != NULL && strcmp(active, name) == 0;
}
