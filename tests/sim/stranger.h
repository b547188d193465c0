/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stranger: a host that is no peer, and connects to the nodes all the same: with anything, or with frames that
 * are whole and mean nothing. Nobody takes harm (promise 8).
 */
#ifndef OFFSITE_TESTS_SIM_STRANGER_H
#define OFFSITE_TESTS_SIM_STRANGER_H

#include "tests/sim/world.h"

void stranger_comes(struct world *world);

#endif
