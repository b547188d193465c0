// SPDX-License-Identifier: Apache-2.0
/* A new generation begins: writes without the peer, content that came from outside. */
#include <string.h>

#include "daemon/volume/internal.h"

void generation_begin(struct volume *v)
{
	struct volume_generations *g = &v->state.generations;

	if (!id128_is_zero(&g->current)) {
		memmove(&g->history[1], &g->history[0], sizeof(g->history) - sizeof(g->history[0]));
		g->history[0] = g->current;
		if (id128_is_zero(&g->base))
			g->base = g->current;
	}
	do
		env_random(v->env, &g->current, sizeof(g->current));
	while (id128_is_zero(&g->current));
}
