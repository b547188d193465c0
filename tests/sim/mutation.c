// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/mutation.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static const char *active; /* NULL: not known yet; "": none */

void mutation_set(const char *name)
{
	active = name != NULL ? name : "";
}

bool mutation_is_active(const char *name)
{
	if (active == NULL)
		mutation_set(getenv("MUTATION"));
	return strcmp(active, name) == 0;
}
