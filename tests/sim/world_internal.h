/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the world know of each other: options and configs (world_make.c), nodes and steps (world.c), clients
 * (world_clients.c), the operator (world_operator.c).
 */
#ifndef OFFSITE_TESTS_SIM_WORLD_INTERNAL_H
#define OFFSITE_TESTS_SIM_WORLD_INTERNAL_H

#include "tests/sim/world.h"

/* The node is dead: it is forgotten, if it was not before. */
bool world_died(struct world *world, unsigned index);
/* Buffers for the clients, whatever became of those before. */
void world_new_pool(struct world *world);
/* The clients lose their device: what is under way never completes. */
void world_drop_clients(struct world *world);
/* A bigger volume is there for its clients at once; it is never smaller than it was said to be. */
void world_look_at_size(struct world *world);

#endif
